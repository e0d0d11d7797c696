"""What the gallery draws: numbers of a demo run and of two small simulations, written once to `numbers.json`.

    PYTHONPATH=tests python tests/report/gallery_numbers.py RUN SPECTRA

RUN is what `rankkit demo` made; SPECTRA measures it through training, with its functional rank:

    rankkit spectrum RUN --checkpoints all --samples 4 --regions prefix_block \\
        --functional --functional-scopes all --out SPECTRA
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from rankkit.files import read_json_lines
from rankkit.report import run_figures
from rankkit.report.measured_arms import measured_arms
from rankkit.statistics import between_seeds, mean_interval, minimum_detectable_effect
from rankkit.store import read_group
from rankkit.studies import compare_losses, open_run

__all__ = ["NUMBERS", "demo_numbers", "simulated_numbers"]

NUMBERS = Path(__file__).parents[2] / "experiments" / "figures" / "gallery" / "numbers.json"
MEASURE, REGION = "effective_rank", "prefix_block"
ARGUMENTS = {
    "losses": ("curves",),
    "losses_by_position": ("values",),
    "measure_by_head": ("own", "change"),
    "measure_by_layer": ("values",),
    "measure_by_step": ("values",),
    "spectra_by_layer": ("spectra",),
}
"""Positional ones of what draws a run."""
DIGITS = 5  # more than a pixel of any picture


def demo_numbers(run_path: Path, spectra: Path) -> dict[str, dict[str, Any]]:
    """By function, its arguments as the figures of the run and of the file have them."""
    run = open_run(run_path)
    comparison = compare_losses(run)
    drawn = _calls(
        lambda: [
            run_figures.draw_losses(run, comparison),
            run_figures.draw_spectra(run.directory.spectrum, run_path),
            run_figures.draw_spectra(spectra, run_path),
        ]
    )
    chosen = {name: next(call for call in calls if _is_of_region(call)) for name, calls in drawn.items()}
    by_arm = {arm.arm: dict(zip(arm.seeds, arm.by_seed.tolist(), strict=True)) for arm in comparison.arms}
    references = {arm.arm: arm.reference_loss for arm in comparison.arms}
    ranks, effects = _over_layers(run.directory.spectrum)
    cells = {
        "suffix loss (nats per token)": {
            arm: {"arm": arm, "by_seed": losses, "reference": references[arm]} for arm, losses in by_arm.items()
        },
        "effective rank, prefix block, mean over trained layers": {
            arm: {"arm": arm, "by_seed": dict(enumerate(values.tolist()))} for arm, values in ranks.items()
        },
    }
    losses = {arm: np.array([*values.values()]) for arm, values in by_arm.items()}
    claims = {
        "suffix loss": [
            _claim("gpt > unilm", losses["gpt"] - losses["unilm"], "gpt - unilm (nats per token)", [*losses.values()])
        ],
        "effective rank, prefix block, mean over trained layers": [
            _claim("gap: gpt > unilm", ranks["gpt"] - ranks["unilm"], "gpt - unilm", [*ranks.values()]),
            *(_claim(f"{name} effect > 0", values, "gpt - unilm", []) for name, values in effects.items()),
        ],
    }
    return {
        **chosen,
        "measure_against_loss": {"points": _points(run, spectra)},
        "extra_loss_by_rank": _functional(spectra, list(by_arm)),
        "numbers_by_cell": {"cells": cells},
        "claims_by_quantity": {"claims": claims},
    }


def _calls(draw: Callable[[], object]) -> dict[str, list[dict[str, Any]]]:
    """What each drawing function is called with, its first argument under that name; nothing is saved."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(run_figures, "save", return_value=[]))
        spies = {
            name: stack.enter_context(mock.patch.object(run_figures, name, wraps=getattr(run_figures, name)))
            for name in ARGUMENTS
        }
        draw()
    return {
        name: [dict(zip(ARGUMENTS[name], call.args, strict=True)) | call.kwargs for call in spy.call_args_list]
        for name, spy in spies.items()
    }


def _is_of_region(call: Mapping[str, Any]) -> bool:
    """Whether a figure shows the prefix block of 128 rows, or no region at all."""
    label = call.get("label", "prefix block")
    return "prefix block" in label and "first key" not in label and _width(call) in (None, 128)


def _width(call: Mapping[str, Any]) -> int | None:
    return next(iter(call["spectra"].values())).shape[1] if "spectra" in call else None


def _over_layers(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The measure of each arm over trained layers, "seed", and the two parts of the gap."""
    arms = {arm.name: arm for arm in measured_arms(path, MEASURE)}
    own, swapped = (
        {name: arm.by_step(REGION, mask)[:, -1] for name, arm in arms.items()} for mask in ("own", "swapped")
    )
    mask = (own["gpt"] - swapped["gpt"] + swapped["unilm"] - own["unilm"]) / 2
    return own, {"mask": mask, "learned": own["gpt"] - own["unilm"] - mask}


def _claim(label: str, differences: Any, found_as: str, parts: list[Any]) -> dict[str, Any]:
    """A claim that the differences are above zero, held against the seeds as declared experiments do."""
    interval = mean_interval(differences)
    outcome = "supported" if interval.mean > 0 else "contradicted"
    return {
        "label": label,
        "outcome": outcome if interval.resolved else "not resolved at this scale",
        "found_as": found_as,
        "mean": interval.mean,
        "lower": interval.lower,
        "upper": interval.upper,
        "detectable": minimum_detectable_effect(differences),
        "control": float(np.sqrt(sum(between_seeds(part) ** 2 / 2 for part in parts))) if parts else None,
    }


def _points(run: Any, spectra: Path) -> dict[str, Any]:
    """Measure and loss of each arm at the steps that have both."""
    points = {}
    for arm in measured_arms(spectra, MEASURE):
        lines = [read_json_lines(run.directory.metrics(arm.name, seed)) for seed in run.config.seeds]
        losses = [{line["step"]: line["loss"] for line in of if line["kind"] == "evaluation"} for of in lines]
        steps = [step for step in arm.steps if all(step in found for found in losses)]
        measure = arm.by_step(REGION, "own")
        assert measure is not None
        at = [arm.steps.index(step) for step in steps]
        points[arm.name] = (arm.name, measure[:, at], [[found[step] for step in steps] for found in losses])
    return points


def _functional(spectra: Path, arms: list[str]) -> dict[str, Any]:
    """Extra loss with all heads cut, mean over sequences, "seed panel kept_rank" by cut."""
    groups = {arm: read_group(spectra, f"functional/{arm}") for arm in arms}
    cuts = [str(cut) for cut in groups[arms[0]]["cut"]]
    tables = {
        cut: {arm: group["extra_loss_all"][..., place].mean(axis=1)[:, np.newaxis] for arm, group in groups.items()}
        for place, cut in enumerate(cuts)
    }
    ranks = groups[arms[0]]["kept_rank"].tolist()
    return {"extra_loss": tables["remasked"], "plain": tables["plain"], "ranks": ranks}


def simulated_numbers() -> dict[str, dict[str, Any]]:
    """Random attention over the standard deviation of its logits, and ranks that rise with size as declared here."""
    return {"phase_diagram": {"panels": _random_attention()}, "measure_by_size": {"values": _rising_ranks()}}


def _random_attention(n: int = 64, seeds: int = 10) -> dict[str, dict[str, Any]]:
    """Effective and stable rank of causal over bidirectional softmax attention with Gaussian queries and keys."""
    stds = np.geomspace(0.1, 8, 9)
    causal = np.tril(np.ones((n, n), dtype=bool))
    panels: dict[str, dict[str, Any]] = {"effective rank, simulated": {}, "stable rank, simulated": {}}
    for head_dim in (8, 32):
        draw = np.random.default_rng(head_dim)
        dots = [_unit_dots(draw, n, head_dim) for _ in range(seeds)]
        ranks = np.array(
            [[[_ranks(std * dot, mask) for dot in dots] for std in stds] for mask in (causal, causal | True)]
        )
        ratios = ranks[0] / ranks[1]  # std seed measure
        for place, title in enumerate(panels):
            half = [mean_interval(by_seed).half_width for by_seed in ratios[..., place]]
            panels[title][f"head_dim {head_dim}"] = (stds, ratios[..., place].mean(axis=1), half)
    return panels


def _unit_dots(draw: np.random.Generator, n: int, head_dim: int) -> Any:
    query, key = draw.normal(size=(2, n, head_dim))
    return query @ key.T / np.sqrt(head_dim)


def _ranks(logits: Any, mask: Any) -> tuple[float, float]:
    shifted = np.exp(np.where(mask, logits - logits.max(axis=1, keepdims=True), -np.inf))
    sigma = np.linalg.svd(shifted / shifted.sum(axis=1, keepdims=True), compute_uv=False)
    share = sigma / sigma.sum()
    known = share[share > 0]
    return float(np.exp(-(known * np.log(known)).sum())), float((sigma**2).sum() / sigma[0] ** 2)


def _rising_ranks() -> dict[str, dict[int, Any]]:
    """Ranks of 9 N^0.12, an eighth less for unilm, and a spread over seeds of 2; one seed of the largest model."""
    draw = np.random.default_rng(0)
    sizes = {98_304: 3, 787_584: 3, 10_616_832: 3, 84_934_656: 1}
    return {
        arm: {size: factor * 9 * size**0.12 + draw.normal(0, 2, seeds) for size, seeds in sizes.items()}
        for arm, factor in (("gpt", 1.0), ("unilm", 0.875))
    }


def _plain(value: Any) -> Any:
    """Lists, texts and rounded numbers, as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _lines(numbers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One line for every argument."""
    for place, (name, arguments) in enumerate(sorted(numbers.items())):
        yield f"{',' if place else ''}\n{json.dumps(name)}: {{"
        lines = (f"\n {json.dumps(key)}: {json.dumps(_plain(one), allow_nan=False)}" for key, one in arguments.items())
        yield ",".join(lines)
        yield "}"


if __name__ == "__main__":
    found = demo_numbers(Path(sys.argv[1]), Path(sys.argv[2])) | simulated_numbers()
    NUMBERS.parent.mkdir(parents=True, exist_ok=True)
    NUMBERS.write_text("".join(["{", *_lines(found), "\n}\n"]), encoding="utf-8")
