"""Losses of a run against a model written slowly and counts made by hand, and what a verdict may say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from numpy.typing import NDArray
from small_run import ALL_ARMS, copy_of, new_run, run_config, trained_run
from tiny import CPU, STEPS, N

from rankkit.data.evaluation import evaluation_sequences
from rankkit.errors import RunError
from rankkit.models import Transformer
from rankkit.statistics import Interval, bootstrap_over_documents, mean_interval, standard_error
from rankkit.studies import LossComparison, Run, compare_losses, load_model, train_units, verdict
from rankkit.studies.losses import PairDifference
from rankkit.training.unit import Finished, Message

P = N // 2
"""The prefix length of every evaluation."""


@pytest.fixture(scope="module")
def compared(trained: Run) -> LossComparison:
    return compare_losses(trained)


def sequences_of(run: Run) -> Any:
    return evaluation_sequences(run.tokens(), count=3, sequence_length=N)


def slow_losses(run: Run, arm: str, seed: int, *, uniform: bool = False) -> NDArray[np.float64]:
    """ "sequence target": cross-entropy of tokens p .. n - 1, from a forward pass in NumPy."""
    model = load_model(run.directory.path, arm=arm, seed=seed)
    allowed = model.config.mask.at(run.prefix_length).allowed(N).numpy()
    table = []
    for tokens in sequences_of(run).tokens.tolist():
        logits = reference.forward(model, tokens, allowed, uniform=uniform).logits
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        first = max(run.prefix_length, 1)
        table.append([-log_shares[position - 1, tokens[position]] for position in range(first, N)])
    return np.array(table)


# One arm.


@pytest.mark.parametrize("arm", ALL_ARMS)
def test_losses_are_those_of_the_suffix_tokens_by_a_model_written_slowly(
    arm: str, trained: Run, compared: LossComparison
) -> None:
    found = compared.arm(arm)
    for index, seed in enumerate((0, 1)):
        expected = slow_losses(trained, arm, seed)
        assert expected.shape == (3, N - P)
        np.testing.assert_allclose(found.by_sequence[index], expected.mean(axis=1), rtol=1e-5)  # float32 forward pass
        np.testing.assert_allclose(found.by_position[index], expected.mean(axis=0), rtol=1e-5)
        assert found.by_seed[index] == pytest.approx(expected.mean(), rel=1e-5)
    assert found.loss == pytest.approx(found.by_sequence.mean(), rel=1e-12)
    assert found.loss_error == pytest.approx(standard_error(found.by_seed), rel=1e-12)


def test_the_loss_without_attention_is_that_of_uniform_rows(trained: Run, compared: LossComparison) -> None:
    for arm in ("gpt", "unilm"):
        found = compared.arm(arm).uniform_attention[1]
        assert found == pytest.approx(slow_losses(trained, arm, 1, uniform=True).mean(), rel=1e-5)
        assert found != compared.arm(arm).by_seed[1]


def test_costs_are_counted_from_the_model_itself(trained: Run, compared: LossComparison) -> None:
    for arm in ALL_ARMS:
        model = Transformer(trained.config.arm(arm).model)
        weights = {name: parameter.numel() for name, parameter in model.named_parameters()}
        found = compared.arm(arm)
        assert found.parameters == sum(weights.values())
        assert found.non_embedding_parameters == sum(weights.values()) - weights["embedding.weight"]
        assert found.tokens == STEPS * 2 * N
        assert found.compute == 6 * found.non_embedding_parameters * found.tokens
    assert compared.arm("gpt-full").loss_tokens == STEPS * 2 * (N - 1)


def test_loss_tokens_are_the_mean_over_seeds_of_what_the_stream_drew(trained: Run, compared: LossComparison) -> None:
    from rankkit.training import Trainer

    counted = []
    for seed in (0, 1):
        stream = Trainer.stream_of(trained.config.arm("gpt"), seed=seed, tokens=trained.tokens())
        counted += [sum(N - p for step in range(STEPS) for p in stream.batch(step).prefix_lengths)]
    assert compared.arm("gpt").loss_tokens == compared.arm("unilm").loss_tokens == round(np.mean(counted))


def test_attention_flops_are_those_of_the_pairs_that_the_mask_allows(trained: Run, compared: LossComparison) -> None:
    lengths = trained.config.base.train.prefix_lengths(N).choices
    assert lengths == (8, 16, 24)
    for arm in ALL_ARMS:
        mask = trained.config.arm(arm).model.mask
        pairs = np.mean([int(mask.at(p).allowed(N).sum()) for p in lengths])
        # Two operations per feature for Q K^T and for A V; backward is twice forward; 3 heads of 8 features, 2 layers.
        assert compared.arm(arm).attention_flops == pytest.approx(3 * 4 * 8 * pairs * 3 * 2 * STEPS * 2, rel=1e-12)


def test_the_unigram_is_measured_on_exactly_the_evaluated_tokens(trained: Run, compared: LossComparison) -> None:
    tokens = trained.tokens()
    counts = np.bincount(tokens.train, minlength=257) + 1
    shares = counts / counts.sum()
    targets = sequences_of(trained).tokens[:, P:]
    assert compared.ngrams["unigram"] == pytest.approx(-np.log(shares[targets]).mean(), rel=1e-12)
    assert compared.ngrams["bigram"] < compared.ngrams["unigram"]
    assert (compared.prefix_length, compared.sequences) == (P, 3)
    assert compared.documents == len(np.unique(sequences_of(trained).documents))


# Two arms.


def test_differences_are_paired_by_seed_and_say_what_was_declared(compared: LossComparison) -> None:
    arms = [(later, earlier) for earlier, later in combinations(ALL_ARMS, 2)]
    assert [difference.arms for difference in compared.differences] == arms
    assert [difference.declared for difference in compared.differences] == [
        ("mask",), ("objective",), ("mask", "objective"),
    ]  # fmt: skip
    for difference in compared.differences:
        one, other = (compared.arm(name) for name in difference.arms)
        by_seed = one.by_seed - other.by_seed
        np.testing.assert_allclose(difference.by_seed, by_seed, atol=1e-12)
        expected = mean_interval(by_seed)
        assert difference.interval.kind == expected.kind
        bounds = difference.interval.mean, difference.interval.lower, difference.interval.upper
        assert bounds == pytest.approx((expected.mean, expected.lower, expected.upper), rel=1e-6)
        squares = [np.diff(arm.by_seed)[0] ** 2 for arm in (one, other)]
        assert difference.same_mask == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-12)


def test_one_seed_has_the_error_of_its_evaluation_and_no_control(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", run_config(seeds=(1,)))
    found = compare_losses(run)
    (difference,) = found.differences
    table = found.arm("unilm").by_sequence[0] - found.arm("gpt").by_sequence[0]
    assert difference.interval == bootstrap_over_documents(table, sequences_of(run).documents)
    assert math.isnan(difference.same_mask)
    assert verdict(difference).startswith("No verdict: unilm - gpt is ")


def test_with_an_empty_prefix_the_arms_are_one_model_and_their_difference_is_zero(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", run_config(prefix_fraction=0.0))
    found = compare_losses(run)
    assert found.prefix_length == 0
    assert found.arm("gpt").by_position.shape == (2, N - 1)
    for index, seed in enumerate((0, 1)):
        expected = slow_losses(run, "unilm", seed)
        assert found.arm("unilm").by_seed[index] == pytest.approx(expected.mean(), rel=1e-5)
    (difference,) = found.differences
    assert difference.interval.mean == 0.0
    assert math.isnan(difference.interval.lower)
    assert difference.same_mask > 0
    assert verdict(difference) == (
        "Not resolved: unilm - gpt is +0.0000 nats per token under every one of 2 seeds; without any spread there is no "
        "interval."
    )


def test_only_finished_seeds_are_compared(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"must have a finished unit, but has none\. Continue it with --resume"):
        compare_losses(run)
    heard: list[Message] = []
    train_units(run, device=CPU, workers=1, shard=(0, 2), on_message=heard.append,
                stop=lambda: any(isinstance(message, Finished) for message in heard))  # fmt: skip
    found = compare_losses(run)
    assert [(losses.arm, losses.seeds) for losses in found.arms] == [("gpt", (0,))]
    assert found.differences == ()


# Evaluations that are damaged.


def change(key: str, value: Any, *inside: str) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        for name in inside:
            document = document[name]
        document[key] = value

    return edit


def shorten(document: dict[str, Any]) -> None:
    document["trained"]["by_sequence"].pop()


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a key is missing": (lambda document: document.pop("uniform_attention_loss"), "KeyError"),
    "no losses": (change("trained", None), "TypeError"),
    "a sequence is missing": (shorten, r"trained losses of shape \(2,\) by sequence and \(16,\) by position"),
    "a loss was changed": (change("loss", 0.5), "trained losses whose mean is not 0.5"),
    "losses are not numbers": (change("by_sequence", ["a", "b", "c"], "trained"), "could not convert string"),
    "losses are nested": (change("by_sequence", [[1, 2], [3], [4]], "uniform_attention"), "ValueError"),
    "losses are not finite": (change("by_sequence", [float("nan")] * 3, "trained"), "trained losses whose mean is not"),
    "of another step": (change("step", 4), "step 4 and prefix length 16 instead of 12 and 16"),
    "of another prefix": (change("prefix_length", 8), "step 12 and prefix length 8 instead of 12 and 16"),
    "loss tokens are no number": (change("loss_tokens", "many"), "loss_tokens 'many'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_evaluation_is_named_with_what_is_wrong(name: str, trained: Run, tmp_path: Path) -> None:
    edit, message = DAMAGE[name]
    run = copy_of(trained, tmp_path / "run")
    path = run.directory.evaluation("unilm", 1)
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    pattern = (
        rf"unilm/seed-1/evaluation\.json must hold a finished evaluation, got: .*{message}.*Delete it and --resume"
    )
    with pytest.raises(RunError, match=pattern):
        compare_losses(run)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null"])
def test_an_evaluation_that_is_no_json_object_is_named(content: bytes, trained: Run, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    run.directory.evaluation("gpt", 0).write_bytes(content)
    with pytest.raises(RunError, match=r"gpt/seed-0/evaluation\.json must hold a finished evaluation"):
        compare_losses(run)


def test_a_deleted_evaluation_is_made_again_by_resuming(trained: Run, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    path = run.directory.evaluation("gpt", 0)
    before = path.read_bytes()
    path.unlink()
    assert train_units(run, device=CPU, workers=1)
    assert path.read_bytes() == before


# Verdicts.


def difference(mean: float, half: float, *, seeds: int = 3, declared: tuple[str, ...] = ("mask",)) -> PairDifference:
    interval = Interval(mean=mean, lower=mean - half, upper=mean + half, count=seeds, kind="paired t over seeds")
    return PairDifference(
        arms=("unilm", "gpt"), task="suffix", declared=declared, seeds=tuple(range(seeds)), by_seed=np.full(seeds, mean),
        interval=interval, same_mask=0.02,
    )  # fmt: skip


def test_one_seed_gets_no_verdict_however_narrow_its_interval() -> None:
    assert verdict(difference(-0.5, 0.001, seeds=1)) == (
        "No verdict: unilm - gpt is -0.5000 nats per token (95%: -0.5010 to -0.4990) under one seed, and that interval is "
        "the error of the evaluation alone; another seed may reverse its sign. Train at least three seeds."
    )


@pytest.mark.parametrize(("mean", "bound"), [(0.003, "0.0530"), (-0.003, "0.0530")])
def test_an_interval_with_zero_inside_says_what_it_cannot_exclude(mean: float, bound: str) -> None:
    assert verdict(difference(mean, 0.05)) == (
        f"Not resolved: unilm - gpt is {mean:+.4f} nats per token (95%: {mean - 0.05:+.4f} to {mean + 0.05:+.4f}) over 3 "
        f"seeds; an effect of the mask smaller than {bound} cannot be excluded."
    )


@pytest.mark.parametrize(("mean", "better", "worse"), [(-0.02, "unilm", "gpt"), (0.02, "gpt", "unilm")])
def test_the_arm_with_the_lower_loss_is_named_better(mean: float, better: str, worse: str) -> None:
    assert verdict(difference(mean, 0.01)) == (
        f"{better} has the lower suffix loss than {worse}: unilm - gpt is {mean:+.4f} nats per token (95%: "
        f"{mean - 0.01:+.4f} to {mean + 0.01:+.4f}) over 3 seeds, for this model, text and number of steps; the arms differ "
        "in mask alone, and nothing is said of other sizes or of longer training."
    )


def test_two_declared_fields_are_both_named() -> None:
    text = verdict(replace(difference(0.02, 0.01, declared=("mask", "objective")), arms=("gpt-full", "unilm")))
    assert "the arms differ in mask and objective together, and nothing says which of them did it" in text
    assert text.startswith("unilm has the lower suffix loss than gpt-full")


def test_torch_agrees_with_the_slow_model_to_float32() -> None:
    """The oracle of this file is itself held against the fused model."""
    model = Transformer(run_config().arm("unilm").model, seed=0).double()
    tokens = torch.arange(N)[None]
    fused = model.logits(model(tokens, P))[0].detach().numpy()
    slow = reference.forward(model, list(range(N)), model.config.mask.at(P).allowed(N).numpy()).logits
    np.testing.assert_allclose(fused, slow, atol=1e-12)
