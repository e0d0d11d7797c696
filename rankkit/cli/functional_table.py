"""The table of `spectrum --functional`: what cutting attention to k singular triplets costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rankkit.cli.console import Output, counted, new_table
from rankkit.statistics import Interval
from rankkit.studies.functional import CUTS, THRESHOLD, CutRow, FunctionalRank, Scope

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["functional_as_dict", "show_functional"]


def show_functional(found: FunctionalRank, output: Output, *, threshold: float = THRESHOLD) -> None:
    """Extra loss by k with all heads cut, then what single layers and heads need, and one line for each column."""
    if "all" in found.scopes:
        output.table(_loss_table(found))
        output.table(_damage_table(found))
    output.table(_place_table(found, threshold))
    for line in _explanations(found, threshold):
        output.say(line)
    if "all" in found.scopes:
        output.say(_sentence(found, threshold))


def _loss_table(found: FunctionalRank) -> Table:
    names = [arm.arm for arm in found.arms]
    title = f"extra suffix loss, nats per token: all heads cut to k of {found.sequence_length}\n{_over(found)}"
    table = new_table(title, ["k", *names, *_difference_headings(found)])
    for rank in found.ranks:
        row = found.row(rank)
        table.add_row(str(rank), *(_interval(row.extra_loss[name]) for name in names), *_difference(row, found))
    return table


def _damage_table(found: FunctionalRank) -> Table:
    """What stands beside a loss: the cut without re-masking, and how much of the matrices is gone."""
    names = [arm.arm for arm in found.arms]
    headings = ["k", "plain", "removed", "error", "error, plain"]
    table = new_table(f"what the cut to k triplets took: {' / '.join(names)}", headings)
    for rank in found.ranks:
        row, plain = found.row(rank), found.row(rank, cut="plain")
        table.add_row(
            str(rank),
            _slashed(plain.extra_loss),
            " / ".join(f"{row.removed_share[name]:.1%}" for name in names),
            " / ".join(f"{row.cut_error[name]:.3f}" for name in names),
            " / ".join(f"{plain.cut_error[name]:.3f}" for name in names),
        )
    return table


def _place_table(found: FunctionalRank, threshold: float) -> Table:
    """What is cut, its functional rank in each arm, and its extra loss at one k."""
    names, rank = [arm.arm for arm in found.arms], _middle(found)
    title = (
        f"functional rank: the k that keeps the extra loss below {threshold:g} nats; and the extra loss at k = {rank}"
    )
    headings = ["cut", *(f"needed: {name}" for name in names), f"k = {rank}", *_difference_headings(found)]
    table = new_table(title, headings)
    for words, scope, layer in _places(found):
        row = found.row(rank, scope=scope, layer=layer)
        needed = [found.needed(name, threshold=threshold, scope=scope, layer=layer) for name in names]
        table.add_row(
            words, *(_needed(seeds, found) for seeds in needed), _slashed(row.extra_loss), *_difference(row, found)
        )
    return table


def _slashed(intervals: Mapping[str, Interval]) -> str:
    """The means of all arms."""
    return " / ".join(f"{interval.mean:+.3f}" for interval in intervals.values())


def _difference_headings(found: FunctionalRank) -> list[str]:
    return [" - ".join(found.pair), "same mask"] if found.pair else []


def _places(found: FunctionalRank) -> list[tuple[str, Scope, int | None]]:
    """Words, scope and layer of each line."""
    layers = range(found.arms[0].removed_share.shape[2])
    lines: list[tuple[str, Scope, int | None]] = [("all heads", "all", None)] if "all" in found.scopes else []
    if "layer" in found.scopes:
        lines += [(f"layer {layer}", "layer", layer) for layer in layers]
    if "head" in found.scopes:
        lines += [(f"one head, layer {layer}", "head", layer) for layer in layers]
    return lines


def _middle(found: FunctionalRank) -> int:
    """The tested k nearest to an eighth of n, where curves are neither at their top nor at zero."""
    return min(found.ranks, key=lambda rank: (abs(rank - found.sequence_length / 8), rank))


def _over(found: FunctionalRank) -> str:
    seeds = len(found.arms[0].seeds)
    if seeds > 1:
        return f"mean ± half of the 95% interval over {seeds} seeds"
    return "one seed: ± is the error of the evaluation alone, no verdict"


def _interval(interval: Interval) -> str:
    known = interval.half_width == interval.half_width
    return f"{interval.mean:+.4f}" + (f" ± {interval.half_width:.4f}" if known else "")


def _difference(row: CutRow, found: FunctionalRank) -> list[str]:
    """Cells of the difference and its control; none where the run has no pair."""
    if found.pair is None or row.difference is None:
        return []
    same = "-" if row.same_mask != row.same_mask else f"{row.same_mask:.4f}"
    return [_interval(row.difference), same]


def _needed(seeds: Sequence[int | None], found: FunctionalRank) -> str:
    words = [f"> {found.ranks[-1]}" if rank is None else str(rank) for rank in seeds]
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def _explanations(found: FunctionalRank, threshold: float) -> list[str]:
    """One line for each column."""
    names = [arm.arm for arm in found.arms]
    lines = [
        "cut: A replaced by the sum of its k leading singular triplets, with what the mask forbids set to 0 (re-masked).",
        "   Rows are not normalised again, and everything else runs as before.",
        "k: leading singular triplets kept. A re-masked matrix may have a higher rank, and a row's weights still depend on",
        f"   later rows through the singular vectors. k = {found.sequence_length} cuts nothing: what is left is rounding.",
        f"{', '.join(names)}: loss with the cut minus loss without it, over the same "
        f"{counted(len(found.documents), 'sequence')}, prefix {found.prefix_length}.",
    ]
    if found.pair:
        lines += [
            f"{' - '.join(found.pair)}: the causal arm's extra loss minus the prefix arm's, paired by seed and sequence.",
            "same mask: rms difference of the extra loss between two seeds of one arm, for the difference of a single seed.",
        ]
    if "all" in found.scopes:
        lines += [
            "plain: the same cut without re-masking. Rows then mix in values of their future: no language model's loss, and "
            "no bound.",
            "removed: share of the cut matrix's energy that re-masking takes away: more from a triangular matrix.",
            "error: ||A - cut A|| / ||A|| (Frobenius), mean over the uncut model's heads. Compare arms at equal error, too.",
        ]
    lines += [
        f"needed: least tested k from which on the extra loss stays below {threshold:g} nats, at most one step too high.",
        "   Where seeds differ each is named: tested k are a grid, and an interval would show the grid.",
    ]
    if "layer" in found.scopes:
        lines.append(
            "layer: only that layer is cut. In the last one, rows before the prefix's last hardly reach the loss."
        )
    if "head" in found.scopes:
        lines.append("one head: mean over the heads of the layer, each cut alone.")
    return lines


def _sentence(found: FunctionalRank, threshold: float) -> str:
    """What the difference at one k shows, in words."""
    rank = _middle(found)
    difference = found.row(rank).difference
    if found.pair is None or difference is None:
        return "No difference to show: the run has no causal and prefix arm with the same objective."
    causal, prefix = found.pair
    size = f"{difference.mean:+.4f} nats (95%: {difference.words()})"
    if len(found.arm(causal).seeds) == 1:
        return (
            f"No verdict: at k = {rank} {causal} loses {size} more than {prefix}, under one seed. Train at least three."
        )
    shown = "resolved" if difference.resolved else "not resolved"
    return f"At k = {rank}, {causal} loses {size} more than {prefix} over {difference.count} seeds: {shown}."


def functional_as_dict(found: FunctionalRank, *, threshold: float = THRESHOLD) -> dict[str, Any]:
    """Everything as plain values: by scope and cut one entry per layer, head and k, and the functional ranks."""
    return {
        "ranks": list(found.ranks),
        "sequence_length": found.sequence_length,
        "prefix_length": found.prefix_length,
        "sequences": len(found.documents),
        "threshold": threshold,
        "pair": {"causal": found.pair[0], "prefix": found.pair[1]} if found.pair else None,
        "arms": {
            arm.arm: {"seeds": list(arm.seeds), "loss_uncut": arm.loss_uncut.mean(axis=1).tolist()} for arm in found.arms
        },
        "scopes": {scope: [_place_as_dict(found, scope, *place, threshold) for place in _every(found, scope)]
                   for scope in found.scopes},
    }  # fmt: skip


def _every(found: FunctionalRank, scope: Scope) -> list[tuple[int | None, int | None]]:
    """Layer and head of everything that was cut."""
    layers, heads = found.arms[0].removed_share.shape[2:4]
    if scope == "all":
        return [(None, None)]
    if scope == "layer":
        return [(layer, None) for layer in range(layers)]
    return [(layer, head) for layer in range(layers) for head in range(heads)]


def _place_as_dict(
    found: FunctionalRank, scope: Scope, layer: int | None, head: int | None, threshold: float
) -> dict[str, Any]:
    where: Mapping[str, Any] = {"scope": scope, "layer": layer, "head": head}
    return {
        "layer": layer,
        "head": head,
        "needed": {arm.arm: list(found.needed(arm.arm, threshold=threshold, **where)) for arm in found.arms},
        "cuts": {
            cut: [_row_as_dict(rank, found.row(rank, cut=cut, **where)) for rank in found.ranks] for cut in CUTS
        },
    }  # fmt: skip


def _row_as_dict(rank: int, row: CutRow) -> dict[str, Any]:
    return {
        "k": rank,
        "extra_loss": {arm: _interval_as_dict(interval) for arm, interval in row.extra_loss.items()},
        "difference": _interval_as_dict(row.difference) if row.difference is not None else None,
        "same_mask_rms": row.same_mask,
        "removed_share": dict(row.removed_share),
        "cut_error": dict(row.cut_error),
    }


def _interval_as_dict(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "lower": interval.lower, "upper": interval.upper, "interval": interval.kind}
