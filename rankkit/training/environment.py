"""The machine and the software of a run, and the settings that decide its bits."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch

from rankkit.errors import ConfigurationError
from rankkit_kernels.attention import backend

__all__ = ["choose_device", "environment", "prepare_device"]


def choose_device(name: str) -> torch.device:
    """The device that a `--device` option names.

    Args:
        name: `auto` (CUDA, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        ConfigurationError: an unknown name, or a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigurationError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}. Choose one of them.")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device.type]
    if not present or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigurationError(f"device must be present on this machine, got {name!r}. Use --device auto.")
    return device


def prepare_device(device: torch.device, threads: int) -> None:
    """Fix what decides the bits of a result: threads on the CPU, deterministic kernels on CUDA.

    Args:
        device: where training happens.
        threads: for torch on the CPU; results differ in the last bits between thread counts.
    """
    torch.set_num_threads(threads)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products need
        torch.use_deterministic_algorithms(True)


def environment(device: torch.device, dtype: torch.dtype, threads: int) -> dict[str, str | int]:
    """Facts that a result depends on, for `run.toml` and HDF5 attributes."""
    packages = {f"{name}_version": version(name) for name in ("rankkit", "torch", "numpy", "scipy")}
    return {
        **packages,
        "source_sha256": _source_hash(),
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count() or 1,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": threads,
        "attention_kernel": backend(device, dtype),
    }


@functools.cache
def _source_hash() -> str:
    """SHA-256 of the Python files of both packages: two versions of the code may carry one version number."""
    digest = hashlib.sha256()
    for package in ("rankkit", "rankkit_kernels"):
        root = Path(str(import_module(package).__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - not a path of ours
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
