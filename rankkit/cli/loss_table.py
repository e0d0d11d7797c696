"""The closing table of `train-pair`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankkit.cli.console import Output, counted, new_table
from rankkit.studies.certificate import declared_fields
from rankkit.studies.losses import LossComparison, PairDifference, verdict
from rankkit.studies.words import few_seeds

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["losses_as_dict", "show_losses"]


def show_losses(comparison: LossComparison, output: Output) -> None:
    """Arms, baselines, paired differences with their intervals and the same-mask control, one sentence each."""
    output.table(_cost_table(comparison))
    for task in comparison.references:
        output.table(_loss_table(comparison, task))
    seeds = len(comparison.arms[0].seeds)
    over = "seeds" if seeds > 1 else "the sequences of one seed, and says nothing of another seed"
    output.say(f"The standard error is over {over}. Uniform attention: the loss when no head may choose.")
    for arm in comparison.arms:
        if not arm.is_trained_enough:
            output.say(
                f"note: {arm.arm} is not trained enough: its loss is not below that of the {arm.reference} model by two "
                "standard errors; its ranks are those of its start."
            )
    for difference in comparison.differences:
        output.say(_difference_line(difference))
    if comparison.apart:
        output.say(_apart_line(comparison))
    for difference in comparison.differences:
        output.say(verdict(difference))
    for line in few_seeds(seeds if comparison.differences else 0):
        output.say(line)


def _cost_table(comparison: LossComparison) -> Table:
    headings = ("arm", "parameters", "non-embedding N", "tokens D", "loss tokens", "attention FLOPs", "C = 6ND")
    table = new_table("cost of each arm under each seed", headings)
    for arm in comparison.arms:
        table.add_row(
            arm.arm, f"{arm.parameters:,}", f"{arm.non_embedding_parameters:,}", f"{arm.tokens:,}",
            f"{arm.loss_tokens:,}", f"{arm.attention_flops:.2e}", f"{arm.compute:.2e}",
        )  # fmt: skip
    return table


def _loss_table(comparison: LossComparison, task: str) -> Table:
    where = f"prefix {comparison.prefix_length}" if task == "suffix" else "every predicted token hidden"
    title = (
        f"{task} loss in nats per token: {counted(comparison.sequences, 'held-out sequence')} of "
        f"{counted(comparison.documents, 'document')}, {where}"
    )
    quarters = ("1st quarter", "2nd", "3rd", "4th of the suffix" if task == "suffix" else "4th")
    table = new_table(title, ("arm", "seeds", "loss", "standard error", "uniform attention", *quarters))
    for arm in comparison.arms:
        if arm.task == task:
            uniform = f"{arm.uniform_attention.mean():.4f}"
            parts = [_mean(part) for part in np.array_split(arm.by_position.mean(axis=0), 4) if part.size]
            table.add_row(arm.arm, str(len(arm.seeds)), f"{arm.loss:.4f}", f"{arm.loss_error:.4f}", uniform, *parts)
    for name, value in comparison.references[task].items():
        table.add_row(f"{name.replace('_', ' ')} model", "", f"{value:.4f}")
    return table


def _mean(losses: NDArray[np.float64]) -> str:
    """Over the positions that have a loss."""
    known = losses[~np.isnan(losses)]
    return f"{known.mean():.3f}" if known.size else ""


def _apart_line(comparison: LossComparison) -> str:
    groups = [
        f"the {task} losses of {', '.join(arm.arm for arm in comparison.arms if arm.task == task)}"
        for task in comparison.references
    ]
    return f"Not subtracted from each other, being means over different targets: {' and '.join(groups)}."


def _difference_line(difference: PairDifference) -> str:
    interval = difference.interval
    control = (
        f"same-mask control (two seeds of one arm): {difference.same_mask:.4f} rms"
        if len(difference.seeds) > 1
        else "same-mask control: needs a second seed"
    )
    declared = " and ".join(difference.declared)
    together = " together" if len(difference.declared) > 1 else ""
    return (
        f"{difference.arms[0]} - {difference.arms[1]} (differ in {declared}{together}): {interval.mean:+.4f}, 95% interval "
        f"{interval.words()}, {interval.kind}, {interval.count} of them; {control}."
    )


def losses_as_dict(comparison: LossComparison) -> dict[str, Any]:
    """The table as plain values."""
    return {
        "prefix_length": comparison.prefix_length,
        "sequences": comparison.sequences,
        "documents": comparison.documents,
        "baselines": comparison.ngrams,
        "arms": {
            arm.arm: {
                "seeds": list(arm.seeds),
                "parameters": arm.parameters,
                "non_embedding_parameters": arm.non_embedding_parameters,
                "tokens": arm.tokens,
                "loss_tokens": arm.loss_tokens,
                "attention_flops": arm.attention_flops,
                "compute": arm.compute,
                "task": arm.task,
                "loss": arm.loss,
                "standard_error": arm.loss_error,
                "loss_by_seed": arm.by_seed.tolist(),
                f"loss_by_{'suffix_' if arm.task == 'suffix' else ''}position": [
                    None if math.isnan(loss) else loss for loss in arm.by_position.mean(axis=0).tolist()
                ],
                "reference": arm.reference,
                "reference_loss": arm.reference_loss,
                "trained_enough": arm.is_trained_enough,
                "uniform_attention_loss": arm.uniform_attention.tolist(),
            }
            for arm in comparison.arms
        },
        "differences": [
            {
                "arms": list(difference.arms),
                "task": difference.task,
                "declared": list(difference.declared),
                "told_apart": len(difference.declared) < 2,
                "by_seed": difference.by_seed.tolist(),
                "mean": difference.interval.mean,
                "lower": difference.interval.lower,
                "upper": difference.interval.upper,
                "interval": difference.interval.kind,
                "same_mask_rms": difference.same_mask,
                "verdict": verdict(difference),
            }
            for difference in comparison.differences
        ],
        "not_subtracted": [
            {
                "arms": list(pair),
                "declared": declared_fields(*pair),
                "tasks": [comparison.arm(name).task for name in pair],
            }
            for pair in comparison.apart
        ],
    }
