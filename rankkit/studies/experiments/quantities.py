"""Numbers of a run that claims are made of: one for every arm, seed and checkpoint.

Losses stand in the run. Attention is measured once for all experiments that measure it alike, into
RUN/measurements/KEY.h5, and its means over heads and sequences are kept beside it in KEY.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from einops import rearrange, reduce
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError, RunError
from rankkit.files import read_json_lines, write_json
from rankkit.store.journal.slabs import journal_path
from rankkit.studies.functional import CUTS, FunctionalRank
from rankkit.studies.head_means import head_means
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.measure import Measured, MeasurementInterruptedError, Progress, measure_run
from rankkit.studies.run import Run

__all__ = ["AttentionNumbers", "evaluated_losses", "measure_attention_of"]

Array: TypeAlias = NDArray[np.float64]

FORMAT: Final = 2  # of KEY.json


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionNumbers:
    """What was measured of the attention of a run."""

    steps: tuple[int, ...]
    """Of the checkpoints."""
    seeds: tuple[int, ...]
    """Of the models."""
    measures: Mapping[str, Array]
    """By `key`: "seed step layer"; nan where no matrix has a value."""
    errors: Mapping[str, Array]
    """By `key`: "step layer", how far the mean over seeds may be off; nan where no bound is known."""
    extra_losses: Mapping[str, Array]
    """By `cut_key`: "seed", nats per token."""

    def over_layers(self, key: str, omitted: Collection[int] = ()) -> tuple[Array, Array]:
        """A measure and its error, averaged over layers.

        Args:
            key: of the measure.
            omitted: layers that are left out, by their distance from the last.

        Returns:
            "seed step" and "step"; nan where no layer is left.
        """
        table, errors = self.measures[key], self.errors[key]
        last = table.shape[-1] - 1
        kept = [layer for layer in range(last + 1) if last - layer not in omitted]
        if not kept:
            return np.full(table.shape[:2], np.nan), np.full(table.shape[1], np.nan)
        return table[..., kept].mean(axis=-1), errors[..., kept].mean(axis=-1)

    @staticmethod
    def key(arm: str, measure: str, region: str, applied: str) -> str:
        """Of a measure of an arm in a region, under its `own` mask or `swapped`."""
        return f"{arm} {applied} {measure} {region}"

    @staticmethod
    def cut_key(arm: str, kept: int, cut: str) -> str:
        """Of what an arm loses when all its heads are cut to so many triplets."""
        return f"{arm} {cut} {kept}"


def evaluated_losses(run: Run, arm: str, seed: int) -> dict[int, float]:
    """Loss of a unit on the held-out sequences by step, nats per token.

    Raises:
        RunError: its log is damaged.
    """
    path = run.directory.metrics(arm, seed)
    try:
        lines = (line for line in read_json_lines(path) if line["kind"] == "evaluation")
        return {int(line["step"]): float(line["loss"]) for line in lines}
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} must hold log lines with a step and a loss, got {error!r}. Restore the file."
        ) from error


def measure_attention_of(
    run: Run,
    config: MeasureConfig,
    *,
    device: torch.device,
    command: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> AttentionNumbers:
    """Measure a finished run, or take what was measured of it in the same way; an interrupted measurement goes on.

    Args:
        run: with all its seeds finished.
        config: what to measure.
        device: where models run.
        command: recorded in the file.
        on_progress: told how far it is.
        stop: asked often.

    Raises:
        MeasurementInterruptedError: stopped as asked; what was finished is kept.
        RankkitError: as `measure_run` raises.
    """
    settings = replace(config, workers=None)  # results do not depend on it
    text = "\n".join(f"{entry.name} = {getattr(settings, entry.name)!r}" for entry in fields(settings))
    key = hashlib.sha256(f"{text}\nformat = {FORMAT}".encode()).hexdigest()[:16]
    path = run.directory.path / "measurements" / f"{key}.h5"
    summary = path.with_suffix(".json")
    if not summary.is_file():
        try:
            found = _measured(run, config, path, device=device, command=command, on_progress=on_progress, stop=stop)
        except MeasurementInterruptedError:
            raise MeasurementInterruptedError(
                f"measuring {run.directory.path} was interrupted; what was finished is kept. Run the same command again to "
                "go on."
            ) from None
        write_json(summary, {"rankkit_measurement": FORMAT, "configuration": text, **_plain(_numbers(found))})
    return _read(summary)


def _measured(run: Run, config: MeasureConfig, path: Path, **options: Any) -> Measured:
    """Go on where an interruption stopped; what other versions or another machine have begun is begun again."""
    try:
        return measure_run(run, config, path, resume=journal_path(path).exists(), force=path.exists(), **options)
    except ConfigurationError:
        if not journal_path(path).exists():
            raise
        return measure_run(run, config, path, force=True, **options)


def _numbers(measured: Measured) -> AttentionNumbers:
    found = list(_means(measured))
    cuts = dict(_cut_losses(measured.functional)) if measured.functional is not None else {}
    return AttentionNumbers(
        steps=measured.plan.steps,
        seeds=measured.plan.arms[0].seeds,
        measures={key: means for key, means, _ in found},
        errors={key: errors for key, _, errors in found},
        extra_losses=cuts,
    )


def _means(measured: Measured) -> Iterator[tuple[str, Array, Array]]:
    """Key, "seed step layer" and "step layer": over heads and sequences, as the comparison of two arms takes them."""
    for part in measured.plan.parts:
        facts, values = part.arms[0].facts, measured.values[part.arms[0].name]
        for name, table in values.measures.items():
            bracket = values.brackets.get(name)
            by_step = [
                head_means(table[:, step], (bracket[0][:, step], bracket[1][:, step]) if bracket else None)
                for step in range(len(part.steps))
            ]
            bounds = _bounds(table, values.errors[name])
            for (r, region), (a, applied) in ((x, y) for x in enumerate(part.regions) for y in enumerate(part.applied)):
                means = [rearrange(found.paired[a, r].mean(axis=-1), "layer seed -> seed layer") for found in by_step]
                halves = np.stack([found.error[a, r] for found in by_step])
                key = AttentionNumbers.key(facts.name, name, region, applied)
                yield key, np.stack(means, axis=1), halves + bounds[a, r]


def _bounds(values: Array, errors: Array) -> Array:
    """Mean bound of what has a value, "applied_mask region step layer"; nan where one of them has none."""
    known = np.where(np.isfinite(values), errors, 0.0)
    counts = np.maximum(reduce(np.isfinite(values).astype(np.float64), _TO_LAYERS, "sum"), 1)
    return np.asarray(reduce(known, _TO_LAYERS, "sum") / counts)


_TO_LAYERS: Final = "seed step region applied_mask sequence layer head -> applied_mask region step layer"


def _cut_losses(functional: FunctionalRank) -> Iterator[tuple[str, Array]]:
    for arm in functional.arms:
        for rank in functional.ranks:
            for cut in CUTS:
                by_sequence = functional.by_sequence(arm.arm, rank, cut=cut)
                yield AttentionNumbers.cut_key(arm.arm, rank, cut), by_sequence.mean(axis=1)


def _plain(numbers: AttentionNumbers) -> dict[str, Any]:
    """As JSON has it; nan is null."""

    def listed(table: Array) -> Any:
        return np.where(np.isfinite(table), table, None).tolist()  # type: ignore[call-overload]

    return {
        "steps": list(numbers.steps),
        "seeds": list(numbers.seeds),
        "measures": {key: listed(table) for key, table in numbers.measures.items()},
        "errors": {key: listed(table) for key, table in numbers.errors.items()},
        "extra_losses": {key: listed(table) for key, table in numbers.extra_losses.items()},
    }


def _read(path: Path) -> AttentionNumbers:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["rankkit_measurement"] != FORMAT:
            raise ValueError(f"format {document['rankkit_measurement']!r}")
        return AttentionNumbers(
            steps=tuple(document["steps"]),
            seeds=tuple(document["seeds"]),
            **{
                name: {key: np.asarray(table, dtype=np.float64) for key, table in document[name].items()}
                for name in ("measures", "errors", "extra_losses")
            },
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} must hold the numbers of a measurement, got damage: {error!r}. Delete it; it is measured again."
        ) from error
