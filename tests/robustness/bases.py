"""The finished files that mutations start from."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from merging import MASKS, WHOLE, Piece
from store.rich_file import (
    ESTIMATED,
    HEADS,
    LAYERS,
    LEADING,
    SEQUENCES,
    comparison_arrays,
    cut_losses,
    positions,
    rich_layout,
    spectra,
    write_arm,
    write_lean,
    write_rich,
)
from store.spectra_file import MEASURES, new_writer

from rankkit.axes import REGIONS
from rankkit.store import METHODS, STATUSES, Slab

__all__ = ["BASES", "write_bases"]

OLD = Path(__file__).parents[1] / "store" / "spectrum_1_0.h5.gz"
ONE: dict[str, Any] = {"seeds": [0], "steps": [500], "regions": ["full"], "applied_masks": ["own"]}
COMPARISON: dict[str, Any] = {
    "measures": ("effective_rank", "stable_rank"),
    "regions": REGIONS,
    "layers": range(LAYERS),
    "attributes": {"causal_arm": "gpt", "prefix_arm": "unilm", "seeds": 2},
}


def _small(path: Path) -> None:
    """One cell along most axes, and every kind of variable: most mutations start here, because it is quick to verify."""
    plain = {"layer_measures": {}, "output_components": None}
    with new_writer(path) as writer:
        write_arm(writer, "gpt", **ONE)
        write_arm(
            writer, "baselines/logits/gpt", **ONE, **plain, rows_sum_to_one=False, unavailable={"log_abs_det": "no"}
        )
        writer.comparison(**COMPARISON, steps=(100, 500), **comparison_arrays())
        writer.functional("gpt", cut_losses())


def _estimated(path: Path) -> None:
    """Leading singular values, brackets, and nothing exact."""
    generator = np.random.default_rng(3)
    chosen = rich_layout(**ONE, components=LEADING, errors=(), layer_measures={}, output_components=None)
    shape = (SEQUENCES, HEADS)
    with new_writer(path) as writer:
        group = writer.group("gpt", chosen)
        for index in positions(chosen, "seed", "step", "region", "applied_mask", "layer"):
            values = spectra(shape, LEADING, generator)
            count = (values > 0.02).sum(axis=-1)
            slab = Slab(
                singular_values=values, floor_arithmetic=0.02, floor_model=0.02, resolved=count, resolved_model=count,
                method=METHODS.index("krylov"), status=STATUSES.index("estimated"),
                measures=dict.fromkeys(MEASURES, float("nan")), brackets=dict.fromkeys(ESTIMATED, (1.5, 2.5)),
            )  # fmt: skip
            group.write(index, slab)


def _old(path: Path) -> None:
    """Schema 1.0, as its own writer left it."""
    path.write_bytes(gzip.decompress(OLD.read_bytes()))


def _old_format(path: Path) -> None:
    """The same in the format of HDF5 1.6, whose metadata has no checksums: what a careless tool would make of it."""
    source = path.with_suffix(".source")
    _old(source)
    with h5py.File(source) as before, h5py.File(path, "w", libver="earliest") as after:
        for name in before:
            before.copy(name, after)
        after.attrs.update(before.attrs)
    source.unlink()


def _half(path: Path, seed: int = 0) -> None:
    """One half of a study of two arms, with queries, keys and attention."""
    labels = {
        "seed": (seed,),
        "step": (12,),
        "region": ("full",),
        "applied_mask": MASKS,
        "sequence": (0, 1),
        "layer": (0,),
    }
    kept = {"outputs": True, "kept": True, "functional": True, "root": {"configuration": "study = halves\n"}}
    Piece(labels={**WHOLE, **labels}, **kept).write(path)


def _partner(path: Path) -> None:
    """The other half."""
    _half(path, seed=3)


BASES = {
    "small": _small,
    "estimated": _estimated,
    "schema 1.0": _old,
    "half": _half,
    "partner": _partner,
    "HDF5 1.6": _old_format,
    "lean": write_lean,
    "rich": write_rich,
}
"""By name."""


def write_bases(folder: Path, names: Iterable[str] = tuple(BASES)) -> dict[str, bytes]:
    """The bytes of bases, by name.

    Args:
        folder: for temporary files.
        names: which.
    """
    found = {}
    for name, write in ((name, BASES[name]) for name in names):
        path = folder / f"{name.replace(' ', '-')}.h5"
        write(path)
        found[name] = path.read_bytes()
        path.unlink()
    return found
