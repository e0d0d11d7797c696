"""Devices by name, and the facts a result depends on."""

from __future__ import annotations

import pytest
import torch

from rankkit.errors import ConfigurationError
from rankkit.training import choose_device, environment, prepare_device


@pytest.mark.parametrize("name", ["tpu", "", "cpu:x", "meta", "cuda:-1"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f"device must be auto, cpu, cuda, cuda:N or mps, got '{name}'. Choose one"
    ):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "mps"])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(
        ConfigurationError, match=f"device must be present on this machine, got '{name}'. Use --device auto"
    ):
        choose_device(name)


def test_auto_takes_what_is_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_threads_are_fixed() -> None:
    before = torch.get_num_threads()
    try:
        prepare_device(torch.device("cpu"), 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_environment_names_versions_machine_threads_and_kernel() -> None:
    found = environment(torch.device("cpu"), torch.float32, 3)
    assert found["torch_version"] == torch.__version__.partition("+")[0] or found["torch_version"] == torch.__version__
    assert (found["threads"], found["device"], found["attention_kernel"]) == (3, "cpu", "cpu-flash")
    assert all(isinstance(value, str | int) and value != "" for value in found.values())
    assert {"rankkit_version", "numpy_version", "scipy_version", "python_version", "processor", "cpu_count"} <= set(
        found
    )
