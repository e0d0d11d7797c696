"""Functional rank of a run: every loss by hand, what is paired with what, and what a table may say."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_run import ALL_ARMS
from tiny import N

from rankkit.data.evaluation import evaluation_sequences
from rankkit.errors import ConfigurationError, MatchError, NonFiniteLossError
from rankkit.hooks import capture
from rankkit.models import Transformer
from rankkit.spectra.truncated import singular_triplets
from rankkit.statistics import bootstrap_over_documents, mean_interval
from rankkit.studies import Run, functional_sweep, load_model
from rankkit.studies.functional import CUTS, SCOPES, ArmCuts, FunctionalRank
from rankkit.studies.functional_sweep import CutProgress, expected_seconds, functional_rank, plan_functional_rank
from rankkit.studies.measuring.measure import MeasurementInterruptedError
from rankkit.studies.truncation import truncated_attention
from rankkit.training.evaluation import evaluate

P, LAYERS, HEADS, SEQUENCES, SEEDS = N // 2, 2, 3, 3, (0, 1)
RANKS = (1, 4, N)
ROUNDING = 2e-6  # nats: of a loss near 5.5 in float32


@pytest.fixture(scope="module")
def found(trained: Run) -> FunctionalRank:
    return functional_rank(trained, ranks=(N, 1, 4), scopes=SCOPES)


def sequences_of(run: Run) -> Any:
    return evaluation_sequences(run.tokens(), count=SEQUENCES, sequence_length=N)


def loss(model: Transformer, run: Run, prefix_length: int = P) -> Any:
    return evaluate(model, sequences_of(run).tokens, prefix_length).by_sequence


# What is measured.


def test_axes_are_those_that_were_asked_for(found: FunctionalRank) -> None:
    assert (found.ranks, found.scopes, found.pair) == (RANKS, SCOPES, ("gpt", "unilm"))
    assert (found.sequence_length, found.prefix_length) == (N, P)
    assert [arm.arm for arm in found.arms] == list(ALL_ARMS)
    for arm in found.arms:
        assert arm.seeds == SEEDS
        assert arm.loss_uncut.shape == (2, SEQUENCES)
        assert {scope: table.shape for scope, table in arm.extra_loss.items()} == {
            "all": (2, SEQUENCES, 3, 2),
            "layer": (2, SEQUENCES, LAYERS, 3, 2),
            "head": (2, SEQUENCES, LAYERS, HEADS, 3, 2),
        }
        assert arm.removed_share.shape == (2, SEQUENCES, LAYERS, HEADS, 3)
        assert arm.cut_error.shape == (2, SEQUENCES, LAYERS, HEADS, 3, 2)


@pytest.mark.parametrize("arm", ALL_ARMS)
def test_extra_losses_are_those_of_models_cut_one_by_one(arm: str, trained: Run, found: FunctionalRank) -> None:
    arm_found, seed = found.arm(arm), 1
    model = load_model(trained.directory.path, arm=arm, seed=seed)
    uncut = loss(model, trained)
    np.testing.assert_allclose(arm_found.loss_uncut[seed], uncut, rtol=0, atol=ROUNDING)
    places: list[tuple[Any, Any]] = [(None, None), *((layer, None) for layer in range(LAYERS))]
    places += itertools.product(range(LAYERS), range(HEADS))
    for (layer, head), (k, rank), (c, cut) in itertools.product(places, enumerate(RANKS), enumerate(CUTS)):
        chosen = {"layers": None if layer is None else [layer], "heads": None if head is None else [head]}
        with truncated_attention(model, rank=rank, remask=cut == "remasked", **chosen):
            expected = loss(model, trained) - uncut
        scope = "all" if layer is None else "layer" if head is None else "head"
        table = arm_found.extra_loss[scope][seed]
        index = tuple(place for place in (layer, head) if place is not None)
        np.testing.assert_allclose(table[:, *index, k, c], expected, rtol=0, atol=ROUNDING)


def test_keeping_all_triplets_costs_nothing_and_keeping_one_does(found: FunctionalRank) -> None:
    for arm in found.arms:
        for table in arm.extra_loss.values():
            assert np.abs(table[..., RANKS.index(N), :]).max() <= ROUNDING
        assert np.abs(arm.extra_loss["all"][..., 0, :]).min() > 10 * ROUNDING


def test_shares_and_errors_are_those_of_the_uncut_models_own_matrices(trained: Run, found: FunctionalRank) -> None:
    model = load_model(trained.directory.path, arm="unilm", seed=0)
    with torch.no_grad(), capture(model) as captured:
        model(torch.from_numpy(sequences_of(trained).tokens.copy()), P)
    arm = found.arm("unilm")
    for operator in captured:
        layer, sequence = int(operator.labels["layer"]), int(operator.labels["sequence"])
        for k, rank in enumerate(RANKS):
            effect = singular_triplets(operator).effect(rank)
            for values, expected in (
                (arm.removed_share[0, sequence, layer, :, k], effect.removed),
                (arm.cut_error[0, sequence, layer, :, k, 0], effect.error),
                (arm.cut_error[0, sequence, layer, :, k, 1], effect.error_plain),
            ):
                np.testing.assert_allclose(values, expected.numpy(), rtol=1e-6, atol=1e-8)
    assert (
        found.arm("gpt").removed_share[..., 0] > arm.removed_share[..., 0]
    ).mean() > 0.9  # a full block is left alone


def test_batches_and_workers_change_nothing(trained: Run, found: FunctionalRank) -> None:
    parts = functional_rank(trained, ranks=[4], scopes=("layer", "all"), memory_budget=1, workers=1)
    assert plan_functional_rank(trained, memory_budget=1).batch == 1
    assert parts.scopes == ("all", "layer")
    for arm in parts.arms:
        for scope in parts.scopes:
            expected = found.arm(arm.arm).extra_loss[scope][..., 1:2, :]
            np.testing.assert_allclose(arm.extra_loss[scope], expected, rtol=0, atol=ROUNDING)


def test_another_prefix_and_fewer_sequences_can_be_asked_for(trained: Run) -> None:
    few = functional_rank(trained, ranks=[4], scopes=["all"], samples=1, prefix_length=5)
    assert few.prefix_length == 5
    model = load_model(trained.directory.path, arm="gpt", seed=0)
    uncut = loss(model, trained, 5)[:1]
    with truncated_attention(model, rank=4):
        expected = loss(model, trained, 5)[:1] - uncut
    np.testing.assert_allclose(few.arm("gpt").extra_loss["all"][0, :, 0, 0], expected, rtol=0, atol=ROUNDING)


def test_every_forward_pass_is_counted_and_announced(trained: Run) -> None:
    seen: list[CutProgress] = []
    plan = plan_functional_rank(trained, ranks=(2, N), scopes=SCOPES, memory_budget=1)
    assert plan.passes == 6 * 3 * 2 * 2 * (1 + LAYERS + LAYERS * HEADS)  # units, batches, cuts, ranks, places
    assert plan.decompositions == 6 * SEQUENCES * HEADS * (LAYERS + 2 * 2 * (LAYERS - 1))
    functional_rank(trained, ranks=[2], scopes=SCOPES, samples=1, on_progress=seen.append)
    plan = plan_functional_rank(trained, ranks=[2], scopes=SCOPES, samples=1)
    assert [(step.done, step.total) for step in seen] == [(i + 1, plan.passes) for i in range(plan.passes)]
    assert seen[0].label == "gpt, seed 0, layer 0"
    assert expected_seconds(trained, plan) > 0


def test_it_stops_when_asked_to(trained: Run) -> None:
    seen: list[CutProgress] = []
    with pytest.raises(
        MeasurementInterruptedError, match="functional rank was interrupted, and nothing of it was kept"
    ):
        functional_rank(trained, ranks=[1], on_progress=seen.append, stop=lambda: len(seen) == 5)
    assert len(seen) == 5


# What is refused.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": [0, 3]}, rf"ranks must be within 1\.\.{N} \(sequence_length\), got \[0, 3\]"),
        ({"ranks": [N + 1]}, r"ranks must be within"),
        ({"ranks": []}, r"ranks must be within"),
        ({"scopes": []}, r"scopes must be among all, layer, head, each once, got \[\]"),
        ({"scopes": ["all", "all"]}, r"scopes must be among"),
        ({"scopes": ["model"]}, r"scopes must be among"),
        ({"samples": 9}, r"samples must be at most 3"),
        ({"prefix_length": N}, rf"prefix_length must be below {N} to leave tokens to predict, got {N}"),
    ],
)
def test_what_a_run_does_not_have_is_refused(trained: Run, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        functional_rank(trained, **settings)


def test_arms_that_do_not_match_are_not_compared(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional_sweep, "certificate_problems", lambda _: ["they differ"])
    with pytest.raises(MatchError, match="arms must match to be compared, but they differ"):
        functional_rank(trained, ranks=[1])


def test_a_model_without_a_finite_loss_is_named(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    load = functional_sweep.load_model

    def broken(*arguments: Any) -> Transformer:
        model = load(*arguments)
        model.norm.weight.data[0] = torch.nan
        return model

    monkeypatch.setattr(functional_sweep, "load_model", broken)
    with pytest.raises(NonFiniteLossError, match="loss must be finite before anything is cut, got gpt under seed 0"):
        functional_rank(trained, ranks=[1])


@pytest.mark.parametrize(("n", "expected"), [(1, (1,)), (2, (1, 2)), (5, (1, 2, 4, 5)), (8, (1, 2, 4, 8))])
def test_ranks_double_up_to_the_sequence_length_unless_given(n: int, expected: tuple[int, ...]) -> None:
    assert functional_sweep._checked_ranks(None, n) == expected


# What is said of it: tables with known answers.


def made(arms: dict[str, Any], *, pair: tuple[str, str] | None = ("gpt", "unilm")) -> FunctionalRank:
    """Arms whose extra loss with all heads cut is "seed sequence kept_rank", and twice that in the plain cut."""

    def one(name: str, table: Any) -> ArmCuts:
        values = np.asarray(table, dtype=float)
        seeds, sequences, ranks = values.shape
        both = np.stack([values, 2 * values], axis=-1)
        by_layer = np.stack([both, 3 * both], axis=2)  # the second of two layers costs three times as much
        return ArmCuts(
            arm=name,
            seeds=tuple(range(seeds)),
            loss_uncut=np.ones((seeds, sequences)),
            extra_loss={"all": both, "layer": by_layer, "head": np.stack([by_layer, 5 * by_layer], axis=3)},
            removed_share=np.full((seeds, sequences, 2, 2, ranks), 0.1) * np.array([1.0, 3.0])[:, None, None],
            cut_error=np.full((seeds, sequences, 2, 2, ranks, 2), 0.2) * np.array([1.0, 2.0]),
        )

    tables = tuple(one(name, table) for name, table in arms.items())
    sequences, ranks = tables[0].extra_loss["all"].shape[1:3]
    return FunctionalRank(
        ranks=tuple(2**k for k in range(ranks)),
        scopes=SCOPES,
        sequence_length=2 ** (ranks - 1),
        prefix_length=1,
        documents=np.arange(sequences) // 2,
        arms=tables,
        pair=pair,
    )


GPT = [[[0.5, 0.02, 0.0], [0.7, 0.04, 0.0]], [[0.4, 0.009, 0.0], [0.4, 0.005, 0.0]], [[0.9, 0.2, 0.0], [0.9, 0.1, 0.0]]]
UNILM = [[[0.3, 0.0, 0.0], [0.1, 0.0, 0.0]], [[0.3, 0.1, 0.0], [0.3, 0.1, 0.0]], [[0.6, 0.0, 0.0], [0.4, 0.0, 0.0]]]


def test_a_row_has_the_interval_of_each_arm_and_of_their_paired_difference() -> None:
    row = made({"gpt": GPT, "unilm": UNILM}).row(1)
    assert row.extra_loss["gpt"] == mean_interval([0.6, 0.4, 0.9])
    expected = mean_interval(np.array([0.6, 0.4, 0.9]) - np.array([0.2, 0.3, 0.5]))
    assert row.difference is not None
    assert (row.difference.mean, row.difference.half_width) == pytest.approx((expected.mean, expected.half_width))
    squares = [
        (a - b) ** 2 for seeds in ((0.6, 0.4, 0.9), (0.2, 0.3, 0.5)) for a, b in itertools.combinations(seeds, 2)
    ]
    assert row.same_mask == pytest.approx(math.sqrt(sum(squares) / 6))


def test_with_one_seed_intervals_are_over_documents_and_there_is_no_control() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.normal(1, 0.1, (2, 1, 24, 2))
    row = made({"gpt": one, "unilm": other}).row(2)
    assert row.extra_loss["unilm"] == bootstrap_over_documents(other[0, :, 1], np.arange(24) // 2)
    assert row.difference == bootstrap_over_documents(one[0, :, 1] - other[0, :, 1], np.arange(24) // 2)
    assert math.isnan(row.same_mask)


def test_layers_and_heads_that_are_not_named_are_averaged_and_heads_are_not_subtracted() -> None:
    found = made({"gpt": GPT, "unilm": UNILM})
    base = found.row(1).extra_loss["gpt"].mean

    def mean(**chosen: Any) -> float:
        return found.row(1, **chosen).extra_loss["gpt"].mean / base

    assert mean(cut="plain") == pytest.approx(2)
    assert [mean(scope="layer", layer=layer) for layer in (0, 1, None)] == pytest.approx([1, 3, 2])
    assert [mean(scope="head", layer=1, head=head) for head in (0, 1, None)] == pytest.approx([3, 15, 9])
    assert mean(scope="head") == pytest.approx(6)
    assert found.row(1, scope="layer", layer=1).difference is not None
    single = found.row(1, scope="head", layer=1, head=0)
    assert single.difference is None
    assert math.isnan(single.same_mask)
    shares = [found.row(1, scope="layer", layer=layer).removed_share["gpt"] for layer in (0, 1, None)]
    assert shares == pytest.approx([0.1, 0.3, 0.2])
    assert found.row(1).cut_error["gpt"] == pytest.approx(0.2)
    assert found.row(1, cut="plain").cut_error["gpt"] == pytest.approx(0.4)


def test_a_run_without_a_causal_and_a_prefix_arm_has_no_difference() -> None:
    row = made({"gpt": GPT, "gpt-full": UNILM}, pair=None).row(1)
    assert row.difference is None
    assert math.isnan(row.same_mask)
    assert set(row.extra_loss) == {"gpt", "gpt-full"}


def test_functional_rank_is_the_least_k_from_which_on_the_loss_stays_below_the_threshold() -> None:
    found = made({"gpt": GPT, "unilm": UNILM})
    assert found.needed("gpt") == (4, 2, 4)
    assert found.needed("gpt", threshold=0.05) == (2, 2, 4)
    assert found.needed("gpt", threshold=1) == (1, 1, 1)
    assert found.needed("gpt", threshold=0) == (None, None, None)
    assert found.needed("gpt", threshold=0.05, scope="layer", layer=1) == (4, 2, 4)
    back = made({"gpt": [[[0.001, 0.5, 0.002]]]}, pair=None)
    assert back.needed("gpt") == (4,), "a loss that rises again is not low yet"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"rank": 3}, r"rank must be one of \(1, 2, 4\), got 3\. Choose one that was measured\."),
        ({"scope": "model"}, r"scope must be one of \('all', 'layer', 'head'\), got 'model'"),
        ({"cut": "masked"}, r"cut must be one of \('remasked', 'plain'\), got 'masked'"),
        ({"layer": 0}, r"layer must be None for scope all, got 0\. Name a layer only for"),
        ({"scope": "layer", "layer": 2}, r"layer must be None or within 0\.\.1 for scope layer, got 2"),
        ({"scope": "layer", "layer": 0, "head": 0}, r"head must be None for scope layer, got 0"),
        (
            {"scope": "head", "head": 0},
            r"head must be None for scope head, got 0\. .* a head only together with its layer",
        ),
        ({"scope": "head", "layer": 0, "head": -1}, r"head must be None or within 0\.\.1 for scope head, got -1"),
    ],
)
def test_rows_that_were_not_measured_are_refused(chosen: dict[str, Any], message: str) -> None:
    found = made({"gpt": GPT, "unilm": UNILM})
    with pytest.raises(ConfigurationError, match=message):
        found.row(**{"rank": 1, **chosen})
    with pytest.raises(ConfigurationError, match="scope must be one of"):
        replace(found, scopes=("all",)).row(1, scope="layer")
