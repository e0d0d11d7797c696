"""The closing table of `train-pair`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rankkit.cli.console import Output, new_table
from rankkit.studies.losses import LossComparison, PairDifference, verdict

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["losses_as_dict", "show_losses"]


def show_losses(comparison: LossComparison, output: Output) -> None:
    """Arms, baselines, paired differences with their intervals and the same-mask control, one sentence each."""
    output.table(_cost_table(comparison))
    output.table(_loss_table(comparison))
    seeds = len(comparison.arms[0].seeds)
    over = "seeds" if seeds > 1 else "the sequences of one seed, and says nothing of another seed"
    output.say(f"The standard error is over {over}. Uniform attention: the loss when no head may choose.")
    for arm in comparison.arms:
        if "bigram" in comparison.ngrams and arm.loss > comparison.ngrams["bigram"]:
            output.say(
                f"note: {arm.arm} does not yet predict better than a bigram model; its ranks are those of its start."
            )
    for difference in comparison.differences:
        output.say(_difference_line(difference))
    for difference in comparison.differences:
        output.say(verdict(difference))


def _cost_table(comparison: LossComparison) -> Table:
    headings = ("arm", "parameters", "non-embedding N", "tokens D", "loss tokens", "attention FLOPs", "C = 6ND")
    table = new_table("cost of each arm under each seed", headings)
    for arm in comparison.arms:
        table.add_row(
            arm.arm, f"{arm.parameters:,}", f"{arm.non_embedding_parameters:,}", f"{arm.tokens:,}",
            f"{arm.loss_tokens:,}", f"{arm.attention_flops:.2e}", f"{arm.compute:.2e}",
        )  # fmt: skip
    return table


def _loss_table(comparison: LossComparison) -> Table:
    title = (
        f"suffix loss in nats per token: {comparison.sequences} held-out sequences of {comparison.documents} documents, "
        f"prefix {comparison.prefix_length}"
    )
    quarters = ("1st quarter", "2nd", "3rd", "4th of the suffix")
    table = new_table(title, ("arm", "seeds", "loss", "standard error", "uniform attention", *quarters))
    for arm in comparison.arms:
        uniform = f"{arm.uniform_attention.mean():.4f}"
        parts = [f"{part.mean():.3f}" for part in np.array_split(arm.by_position.mean(axis=0), 4) if part.size]
        table.add_row(arm.arm, str(len(arm.seeds)), f"{arm.loss:.4f}", f"{arm.loss_error:.4f}", uniform, *parts)
    for name, value in comparison.ngrams.items():
        table.add_row(f"{name} model", "", f"{value:.4f}")
    return table


def _difference_line(difference: PairDifference) -> str:
    interval = difference.interval
    control = (
        f"same-mask control (two seeds of one arm): {difference.same_mask:.4f} rms"
        if len(difference.seeds) > 1
        else "same-mask control: needs a second seed"
    )
    declared = " and ".join(difference.declared)
    return (
        f"{difference.arms[0]} - {difference.arms[1]} (differ in {declared}): {interval.mean:+.4f}, 95% interval "
        f"{interval.lower:+.4f} to {interval.upper:+.4f}, {interval.kind}, {interval.count} of them; {control}."
    )


def losses_as_dict(comparison: LossComparison) -> dict[str, Any]:
    """The table as plain values."""
    return {
        "prefix_length": comparison.prefix_length,
        "sequences": comparison.sequences,
        "documents": comparison.documents,
        "baselines": dict(comparison.ngrams),
        "arms": {
            arm.arm: {
                "seeds": list(arm.seeds),
                "parameters": arm.parameters,
                "non_embedding_parameters": arm.non_embedding_parameters,
                "tokens": arm.tokens,
                "loss_tokens": arm.loss_tokens,
                "attention_flops": arm.attention_flops,
                "compute": arm.compute,
                "loss": arm.loss,
                "standard_error": arm.loss_error,
                "loss_by_seed": arm.by_seed.tolist(),
                "loss_by_suffix_position": arm.by_position.mean(axis=0).tolist(),
                "uniform_attention_loss": arm.uniform_attention.tolist(),
            }
            for arm in comparison.arms
        },
        "differences": [
            {
                "arms": list(difference.arms),
                "declared": list(difference.declared),
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
    }
