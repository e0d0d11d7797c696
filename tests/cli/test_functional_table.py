"""The table of functional rank: what stands in it, what is said of every column, and the same as plain values."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from rankkit.cli.console import Output
from rankkit.cli.functional_table import functional_as_dict, show_functional
from rankkit.studies.functional import ArmCuts, FunctionalRank, Scope

RANKS = (1, 2, 4, 8, 16, 32)


def made(
    *,
    seeds: int = 3,
    scopes: tuple[Scope, ...] = ("all", "layer", "head"),
    pair: tuple[str, str] | None = ("gpt", "unilm"),
) -> FunctionalRank:
    """Losses that halve with every rank; the causal arm's are twice the prefix arm's, a layer's a tenth of all heads'."""
    fall = np.array([0.5**k for k in range(5)] + [0.0])

    def arm(name: str, size: float) -> ArmCuts:
        base = size * fall * (1 + 0.1 * np.arange(seeds))[:, None, None] * np.ones((seeds, 4, 1))
        both = np.stack([base, 0.5 * base], axis=-1)
        layer = np.stack([0.1 * both, 0.2 * both], axis=2)
        tables: dict[Scope, Any] = {"all": both, "layer": layer, "head": np.stack([0.5 * layer, 0.1 * layer], axis=3)}
        return ArmCuts(
            arm=name,
            seeds=tuple(range(seeds)),
            loss_uncut=np.full((seeds, 4), 2.0),
            extra_loss={scope: tables[scope] for scope in scopes},
            removed_share=np.full((seeds, 4, 2, 2, 6), 0.05 * size),
            cut_error=np.full((seeds, 4, 2, 2, 6, 2), 0.5 * size) * np.array([1.0, 1.5]),
        )

    return FunctionalRank(
        ranks=RANKS, scopes=scopes, sequence_length=32, prefix_length=16, documents=np.arange(4),
        arms=(arm("gpt", 0.8), arm("unilm", 0.4)), pair=pair,
    )  # fmt: skip


def shown(found: FunctionalRank, capsys: pytest.CaptureFixture[str], **settings: Any) -> list[str]:
    show_functional(found, Output(as_json=False, quiet=True), **settings)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def line(lines: list[str], start: str) -> list[str]:
    (found,) = [text for text in lines if text.lstrip().startswith(start)]
    return found.split()


def test_every_rank_has_both_arms_their_difference_and_its_control(capsys: pytest.CaptureFixture[str]) -> None:
    found = made()
    row = found.row(4)
    assert row.difference is not None
    expected = ["4"]
    for interval in (*row.extra_loss.values(), row.difference):
        expected += [f"{interval.mean:+.4f}", "±", f"{interval.half_width:.4f}"]
    lines = shown(found, capsys)
    losses, damage = [text.split() for text in lines if text.split()[:1] == ["4"]]
    assert losses == [*expected, f"{row.same_mask:.4f}"]
    assert " ".join(damage) == "4 +0.110 / +0.055 4.0% / 2.0% 0.400 / 0.200 0.600 / 0.300"
    assert [text.split()[0] for text in lines if text.split()[:1] and text.split()[0] in map(str, RANKS)] == [
        *map(str, RANKS), *map(str, RANKS),
    ]  # fmt: skip
    assert max(map(len, lines)) <= 125
    assert "…" not in "".join(lines)


def test_single_layers_and_heads_have_their_functional_rank_by_seed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(made(), capsys, threshold=0.05)
    assert line(lines, "all heads ")[2:] == ["32", "16", "+0.220", "/", "+0.110", "+0.1100", "±", "0.0248", "0.0224"]
    assert line(lines, "layer 0 ")[2:4] == ["2", "1"]
    assert " ".join(line(lines, "one head, layer 1"))[18:].startswith("1, 2, 2 1 ")
    assert any("below 0.05 nats" in text for text in lines)


def test_seeds_that_differ_are_named_and_a_rank_beyond_the_tested_is_said_to_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = shown(made(scopes=("all",)), capsys, threshold=0.105)
    assert "8, 16, 16" in " ".join(line(lines, "all heads"))
    assert "> 32" in " ".join(line(shown(made(scopes=("all",)), capsys, threshold=-1.0), "all heads"))


def test_every_column_is_explained_and_the_sentence_says_what_is_resolved(capsys: pytest.CaptureFixture[str]) -> None:
    said = "\n".join(shown(made(), capsys))
    for column in (
        "k:",
        "gpt, unilm:",
        "gpt - unilm:",
        "same mask:",
        "plain:",
        "removed:",
        "error:",
        "needed:",
        "layer:",
        "one head:",
    ):
        assert f"\n{column} " in said, column
    assert "At k = 4, gpt loses +0.1100 nats (95%: +0.0852 to +0.1348) more than unilm over 3 seeds: resolved." in said


def test_one_seed_has_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    said = " ".join(shown(made(seeds=1), capsys))
    assert "No verdict: at k = 4 gpt loses +0.1000 nats" in said
    assert "one seed: ± is the error of the evaluation alone, no verdict" in said


def test_what_was_not_measured_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    said = " ".join(shown(made(scopes=("layer",), pair=None), capsys))
    assert "all heads" not in said
    assert "one head" not in said
    assert "gpt - unilm" not in said
    assert "No difference to show: the run has no causal and prefix arm" in " ".join(shown(made(pair=None), capsys))


def test_plain_values_hold_everything_and_are_json() -> None:
    found = made()
    values = json.loads(json.dumps(functional_as_dict(found, threshold=0.05)))
    assert values["ranks"] == list(RANKS)
    assert values["pair"] == {"causal": "gpt", "prefix": "unilm"}
    assert values["arms"]["gpt"] == {"seeds": [0, 1, 2], "loss_uncut": [2.0, 2.0, 2.0]}
    assert [len(values["scopes"][scope]) for scope in ("all", "layer", "head")] == [1, 2, 4]
    (everything,) = values["scopes"]["all"]
    assert everything["needed"]["gpt"] == list(found.needed("gpt", threshold=0.05))
    entry, row = everything["cuts"]["plain"][2], found.row(4, cut="plain")
    assert entry["k"] == 4
    assert entry["extra_loss"]["unilm"]["mean"] == row.extra_loss["unilm"].mean
    assert entry["difference"]["upper"] == pytest.approx(row.difference.upper if row.difference else math.nan)
    head = values["scopes"]["head"][3]
    assert (head["layer"], head["head"]) == (1, 1)
    assert head["cuts"]["remasked"][0]["difference"] is None
    assert head["cuts"]["remasked"][0]["extra_loss"]["gpt"]["mean"] == pytest.approx(0.8 * 1.1 * 0.02)
