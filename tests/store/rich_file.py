"""A small file with everything the schema knows, from estimates, baselines and several steps to kept matrices."""

from collections.abc import Collection, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from store.spectra_file import FUNCTIONS, MEASURES, layout, new_writer

from rankkit.axes import REGIONS
from rankkit.store import CUTS, METHODS, STATUSES, CutLosses, GroupLayout, KeptSlab, LayerSlab, Slab, SpectrumWriter

SEEDS, STEPS, SEQUENCES, LAYERS, HEADS = (0, 7), (100, 500), 2, 2, 2
LENGTHS = dict(zip(REGIONS, (6, 4, 5, 3), strict=True))
WIDTH = 4  # singular values of a layer's output
LEADING = 2  # singular values of an estimated matrix
ESTIMATED = ("effective_rank", "stable_rank")
ERRORS = ("attention_entropy", "effective_rank")
LAYER_MEASURES = {name: MEASURES[name] for name in ("effective_rank", "stable_rank")}
UNAVAILABLE = {"log_abs_det": "rows do not sum to 1", "causal_determinant": "the mask is bidirectional"}
RULE = "exact up to n = 4096, else matrix-free"
SHAPE = (SEQUENCES, HEADS)
KEPT: dict[str, Any] = {"kept": ("queries", "keys", "attention"), "features": 3, "logit_scale": 0.5}


def rich_layout(
    *, seeds: Sequence[int] = SEEDS, steps: Sequence[int] = STEPS, regions: Sequence[str] = REGIONS, **changes: Any
) -> GroupLayout:
    sizes = np.array([[LENGTHS[region]] * SEQUENCES for region in regions])
    values: dict[str, Any] = {
        "seeds": seeds,
        "steps": steps,
        "regions": regions,
        "layers": range(LAYERS),
        "heads": range(HEADS),
        "tokens": np.arange(SEQUENCES * 6).reshape(SEQUENCES, 6),
        "prefix_length": np.full(SEQUENCES, 4),
        "valid_row": np.ones((SEQUENCES, 6), dtype=np.int8),
        "rows": sizes,
        "columns": sizes,
        "untrained": np.zeros((len(regions), LAYERS), dtype=np.int8),
        "checkpoint_sha256": [["ab" * 32] * len(steps)] * len(seeds),
        "estimated": ESTIMATED,
        "errors": ERRORS,
        "layer_measures": LAYER_MEASURES,
        "output_components": WIDTH,
        "document": np.array([3, 3]),
        "method_rule": RULE,
    }
    return layout(**(values | changes))


def spectra(shape: tuple[int, ...], size: int, generator: np.random.Generator) -> NDArray[np.float64]:
    return -np.sort(-generator.uniform(0.01, 2, (*shape, size)), axis=-1)


def mixed_slab(size: int, generator: np.random.Generator, *, attention: bool = True) -> Slab:
    """Head 0 exact, head 1 estimated; "sequence head"."""
    values = spectra(SHAPE, size, generator)
    values[:, 1, LEADING:] = np.nan
    exact = np.broadcast_to([True, False], SHAPE)
    floor = np.full(SHAPE, 0.02)
    with np.errstate(invalid="ignore"):
        measures = {name: np.where(exact, function(values), np.nan) for name, function in FUNCTIONS.items()}
        resolved = (values > floor[..., None]).sum(axis=-1)
    entropy = generator.uniform(0, np.log(size), SHAPE) if attention else np.full(SHAPE, np.nan)
    return Slab(
        singular_values=values,
        floor_arithmetic=floor,
        floor_model=floor,
        resolved=resolved,
        resolved_model=resolved,
        method=np.where(exact, METHODS.index("svd"), METHODS.index("krylov")),
        status=np.where(exact, STATUSES.index("ok"), STATUSES.index("estimated")),
        measures=measures | {"attention_entropy": entropy},
        brackets={name: (np.where(exact, np.nan, 1.5), np.where(exact, np.nan, 2.5)) for name in ESTIMATED},
        errors={"effective_rank": np.where(exact, 0.25, np.nan)} | ({"attention_entropy": 1e-3} if attention else {}),
    )


def layer_slab(generator: np.random.Generator) -> LayerSlab:
    """ "sequence"."""
    values = spectra((SEQUENCES,), WIDTH, generator)
    measures = {name: FUNCTIONS[name](values) for name in LAYER_MEASURES}
    return LayerSlab(singular_values=values, floor_arithmetic=1e-12, measures=measures)


def kept_slab(generator: np.random.Generator, *, names: Collection[str] = KEPT["kept"]) -> KeptSlab:
    """Causal attention of six positions, "sequence head"."""
    queries, keys = (generator.normal(size=(*SHAPE, 6, 3)).astype(np.float32) for _ in range(2))
    logits = np.where(np.tri(6, dtype=np.bool_), KEPT["logit_scale"] * queries @ np.swapaxes(keys, -1, -2), -np.inf)
    weights = np.exp(logits)
    attention = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    arrays = {"queries": queries, "keys": keys, "attention": attention}
    return KeptSlab(**{name: arrays[name] for name in names})


def write_arm(writer: SpectrumWriter, name: str, **changes: Any) -> None:
    generator, chosen = np.random.default_rng(len(name)), rich_layout(**changes)
    group = writer.group(name, chosen)
    for index in positions(chosen, "seed", "step", "region", "applied_mask", "layer"):
        size = LENGTHS[chosen.regions[index["region"]]]
        group.write(index, mixed_slab(size, generator, attention=chosen.rows_sum_to_one))
    if chosen.output_components is not None:
        for index in positions(chosen, "seed", "step", "layer"):
            group.write_layer_output(index, layer_slab(generator))
    if chosen.kept:
        generator = np.random.default_rng(len(name))
        for index in positions(chosen, "seed", "step", "layer"):
            group.write_kept(index, kept_slab(generator, names=chosen.kept))


def positions(chosen: GroupLayout, *axes: str) -> Iterator[dict[str, int]]:
    for position in product(*(range(len(chosen.labels[axis])) for axis in axes)):
        yield dict(zip(axes, position, strict=True))


def comparison_arrays(*, steps: int | None = len(STEPS)) -> dict[str, NDArray[np.float64]]:
    """Every variable of the comparison, with a step axis of that length or without."""
    labels = {"measure": 2, "region": 4, "layer": LAYERS}
    first = () if steps is None else (steps,)
    wave = np.random.default_rng(0)

    def interval(*axes: str) -> NDArray[np.float64]:
        mean = wave.normal(size=(*first, *(labels[axis] for axis in axes)))
        return np.stack([mean, mean - 0.5, mean + 0.5], axis=-1)

    effects = ("gap", "mask_effect", "learned_effect", "interaction")
    layers = {name: interval("measure", "region", "layer") for name in effects}
    means = {f"mean_{name}": interval("measure", "region") for name in effects}
    same = {
        "same_mask": wave.uniform(size=(*first, 2, 4, LAYERS)),
        "mean_same_mask": wave.uniform(size=(*first, 2, 4)),
    }
    return layers | means | same


COMPARISON = {
    "measures": ("effective_rank", "stable_rank"),
    "regions": REGIONS,
    "layers": range(LAYERS),
    "attributes": {"causal_arm": "gpt", "prefix_arm": "unilm", "seeds": 2},
}


def cut_losses(**changes: Any) -> CutLosses:
    wave = np.random.default_rng(1)
    matrices = (len(SEEDS), LAYERS, HEADS, 3)
    values: dict[str, Any] = {
        "seeds": SEEDS,
        "kept_ranks": (1, 2, 6),
        "cuts": CUTS,
        "layers": range(LAYERS),
        "heads": range(HEADS),
        "loss_uncut": wave.uniform(4, 5, (len(SEEDS), SEQUENCES)),
        "extra_loss_all": wave.uniform(-0.1, 1, (len(SEEDS), SEQUENCES, 3, 2)),
        "extra_loss_layer": wave.uniform(-0.1, 1, (len(SEEDS), LAYERS, 3, 2)),
        "extra_loss_head": wave.uniform(-0.1, 1, (*matrices, 2)),
        "removed_share": wave.uniform(0, 1, matrices),
        "cut_error": wave.uniform(0, 1, (*matrices, 2)),
        "document": np.array([3, 3]),
        "attributes": {"mask": "causal", "objective": "suffix", "step": 500},
    }
    return CutLosses(**(values | changes))


def write_rich(path: Path) -> Path:
    """One arm with two baselines, everything there is."""
    plain = {"layer_measures": {}, "output_components": None, "seeds": [0]}
    with new_writer(path) as writer:
        write_arm(writer, "gpt", **KEPT)
        write_arm(writer, "baselines/init/gpt", **plain)
        write_arm(writer, "baselines/logits/gpt", **plain, rows_sum_to_one=False, unavailable=UNAVAILABLE)
        writer.comparison(**COMPARISON, steps=STEPS, **comparison_arrays())
        writer.functional("gpt", cut_losses())
    return path


def write_lean(path: Path) -> Path:
    """One arm from one seed, step and mask and two regions, without baselines: quick to verify again and again."""
    lean = {"seeds": [7], "steps": [500], "regions": REGIONS[::2], "applied_masks": ["own"]}
    with new_writer(path) as writer:
        write_arm(writer, "gpt", **lean, **KEPT, unavailable=UNAVAILABLE)
        writer.comparison(**COMPARISON, steps=STEPS, **comparison_arrays())
        writer.functional("gpt", cut_losses())
    return path
