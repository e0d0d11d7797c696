"""Spectrum files of any size with known answers: geometric spectra whose decay the mask, the arm and the seed decide."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from store.spectra_file import CREATED, FUNCTIONS, HOST, MEASURES, TOKEN_POLICY

from rankkit.axes import REGIONS
from rankkit.store import METHODS, STATUSES, GroupLayout, KeptSlab, Slab, SpectrumWriter, writer
from rankkit.studies.arm_values import ArmValues, decompositions, write_comparison
from rankkit.studies.decomposition import ArmFacts

Array = NDArray[np.float64]

ERRORS = 1e-7  # both floors, relative


@dataclass(kw_only=True)
class Setting:
    """What is in the file; effects are on the decay length, which the effective rank follows."""

    arms: tuple[str, ...] = ("gpt", "unilm")
    seeds: Sequence[int] = (0, 1, 2)
    steps: Sequence[int] = (500,)
    regions: Sequence[str] = REGIONS
    layers: int = 2
    heads: int = 2
    sequences: int = 3
    size: int = 12
    mask: float = 1.0
    """What a causal mask adds."""
    learned: float = 0.0
    """What the Q and K of the first arm add."""
    spread: float = 0.02
    """Of seeds, heads and sequences."""
    kept: bool = False
    """Whether attention is kept."""
    baselines: tuple[str, ...] = ()
    compared: bool = True
    change: Callable[[Slab], Slab] = field(default=lambda slab: slab)
    group: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the layout that differ."""
    file: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the writer that differ."""


def write(path: Path, setting: Setting) -> Path:
    """A finished file; what was written is not verified again, which takes longer than all else."""
    values: dict[str, Any] = {"title": "a synthetic study", "configuration": "", "certificate": "", "command": "none"}
    values |= {"attributes": HOST, "created": CREATED, **setting.file}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "verify_written", lambda partial: [])
        with SpectrumWriter(path, **values) as file:
            measured = {arm: _arm(file, arm, number, setting) for number, arm in enumerate(setting.arms)}
            for name in setting.baselines:
                for number, arm in enumerate(setting.arms):
                    _arm(file, f"baselines/{name}/{arm}", number, setting)
            if setting.compared:
                _compare(file, measured, setting)
    return path


def _sizes(setting: Setting) -> NDArray[np.int64]:
    half = setting.size // 2
    known = dict(zip(REGIONS, (setting.size, half, setting.size - 1, half - 1), strict=True))
    return np.array([[known[region]] * setting.sequences for region in setting.regions])


def _untrained(setting: Setting) -> NDArray[np.int64]:
    flags = np.zeros((len(setting.regions), setting.layers), dtype=np.int64)
    flags[["prefix" in region for region in setting.regions], -1] = 1
    return flags


def _layout(number: int, setting: Setting, *, kept: bool) -> GroupLayout:
    fields: dict[str, Any] = {
        "mask": ("causal", "prefix", "bidirectional")[number],
        "objective": "suffix",
        "kind": "self",
        "seeds": setting.seeds,
        "steps": setting.steps,
        "regions": setting.regions,
        "applied_masks": ("own", "swapped"),
        "layers": range(setting.layers),
        "heads": range(setting.heads),
        "tokens": np.arange(setting.sequences * setting.size).reshape(setting.sequences, -1),
        "prefix_length": np.full(setting.sequences, setting.size // 2),
        "valid_row": np.ones((setting.sequences, setting.size), dtype=np.int8),
        "rows": _sizes(setting),
        "columns": _sizes(setting),
        "untrained": _untrained(setting),
        "checkpoint_sha256": [["ab" * 32] * len(setting.steps)] * len(setting.seeds),
        "measures": MEASURES,
        "attributes": TOKEN_POLICY,
        "document": np.arange(setting.sequences),
        "kept": ("attention",) if kept else (),
        **setting.group,
    }
    return GroupLayout(**fields)


def _arm(file: SpectrumWriter, name: str, number: int, setting: Setting) -> ArmValues:
    is_baseline = name.startswith("baselines/")
    group = file.group(name, _layout(number, setting, kept=setting.kept and not is_baseline))
    slabs = []
    for seed, _ in enumerate(setting.seeds):
        for step, _ in enumerate(setting.steps):
            slab = setting.change(_slab(number, seed, step, setting))
            group.write({"seed": seed, "step": step}, slab)
            slabs.append(slab)
            if setting.kept and not is_baseline:
                _keep(group, {"seed": seed, "step": step}, setting)
    shape = (len(setting.seeds), len(setting.steps))
    tables = {
        key: np.stack([slab.measures[key] for slab in slabs]).reshape(*shape, *slabs[0].singular_values.shape[:-1])
        for key in MEASURES
    }
    return ArmValues(measures=tables, brackets={}, status=np.empty(0, dtype=np.int8))


def _slab(number: int, seed: int, step: int, setting: Setting) -> Slab:
    """ "region applied_mask sequence layer head component"."""
    generator = np.random.default_rng([number, seed, step])
    shape = (len(setting.regions), 2, setting.sequences, setting.layers, setting.heads)
    own = np.array([number == 0, number != 0])[:, None, None, None]  # whether the applied mask is causal
    base = 2 + 0.3 * step / max(1, len(setting.steps)) + 0.1 * np.arange(setting.heads)
    noise = setting.spread * (
        generator.normal() + generator.normal(size=(setting.sequences, setting.layers, setting.heads))
    )
    decay = base + setting.mask * own + setting.learned * (number == 0) + noise
    component = np.arange(setting.size)
    sizes = _sizes(setting)[:, :1]
    spectrum = np.exp(-component / np.broadcast_to(decay, shape)[..., None])
    sigma = np.where(component < sizes[:, :, None, None, None, None], spectrum, np.nan)
    floor = np.full(shape, ERRORS)
    known = np.where(np.isnan(sigma), 0, sigma)
    measures = {name: _measure(name, known) for name in FUNCTIONS}
    resolved = (known > ERRORS).sum(axis=-1)
    return Slab(
        singular_values=sigma,
        floor_arithmetic=floor,
        floor_model=floor * 10,
        resolved=resolved,
        resolved_model=(known > 10 * ERRORS).sum(axis=-1),
        method=METHODS.index("gram"),
        status=STATUSES.index("ok"),
        measures=measures | {"attention_entropy": np.log(measures["effective_rank"])},
    )


def _measure(name: str, sigma: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 log 0 of the padding
        if name != "effective_rank":
            return FUNCTIONS[name](sigma)
        shares = sigma / sigma.sum(axis=-1, keepdims=True)
        return np.asarray(np.exp(-np.nansum(shares * np.log(shares), axis=-1)))


def _keep(group: Any, where: Mapping[str, int], setting: Setting) -> None:
    lower = np.tril(np.ones((setting.size, setting.size)))
    shape = (setting.sequences, setting.layers, setting.heads, setting.size, setting.size)
    attention = np.broadcast_to(lower / lower.sum(axis=-1, keepdims=True), shape)
    group.write_kept(where, KeptSlab(attention=attention.astype(np.float32)))


def _compare(file: SpectrumWriter, measured: Mapping[str, ArmValues], setting: Setting) -> None:
    facts = [
        ArmFacts(
            name=arm,
            mask=("causal", "prefix", "bidirectional")[number],
            objective="suffix",
            untrained=_untrained(setting) > 0,
        )
        for number, arm in enumerate(setting.arms)
    ]
    documents = np.arange(setting.sequences)
    found = decompositions(
        facts, measured, tuple(setting.steps), documents, tuple(range(setting.layers)), tuple(setting.regions)
    )
    write_comparison(file, dict(found))
