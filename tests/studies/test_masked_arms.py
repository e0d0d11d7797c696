"""Runs in which some arms predict hidden tokens: what matches, what is subtracted, and what says that they are trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from small_run import assert_same_runs, copy_of, new_run, run_config, trained_by, trained_run
from tiny import CPU, STEPS, N

from rankkit.data import evaluation_sequences, neighbour_cross_entropy
from rankkit.errors import MatchError, RunError
from rankkit.masks import MaskKind
from rankkit.studies import (
    Run,
    certificate_problems,
    compare_losses,
    load_model,
    open_run,
    train_units,
    verdict,
)
from rankkit.studies.verify import verify_run
from rankkit.training import ArmConfig, Trainer, read_facts
from rankkit.training.objective import Examples, evaluation_key

ARMS = ("gpt", "bert", "mixed-heads", "mixed-layers")
MASK = 257


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of one suffix arm and three masked ones."""
    return trained_run(tmp_path_factory.mktemp("masked") / "run", run_config(ARMS))


def examples_of(run: Run) -> Any:
    tokens = evaluation_sequences(run.tokens(), count=3, sequence_length=N).tokens
    config = run.config.arm("bert")
    task = config.task.in_evaluation()
    return tokens, task.examples(config.model.mask, torch.tensor(tokens), [N // 2] * 3, evaluation_key(tokens))


def test_all_arms_have_one_id_more_than_the_tokenizer_and_the_same_initial_weights(masked: Run) -> None:
    assert masked.tokens().vocab_size == MASK
    first = [read_facts(masked.directory.checkpoint(arm, 0, 0)) for arm in ARMS]
    assert {facts.configuration.model.vocab_size for facts in first} == {MASK + 1}
    assert all(facts.parameters == first[0].parameters for facts in first)


def test_one_row_more_leaves_the_other_initial_weights_alone(masked: Run, trained: Run) -> None:
    with_id, without = (load_model(run.directory.path, arm="gpt", seed=1, step=0) for run in (masked, trained))
    assert torch.equal(with_id.embedding.weight[:MASK], without.embedding.weight)
    for name, parameter in without.named_parameters():
        if name != "embedding.weight":
            assert torch.equal(dict(with_id.named_parameters())[name], parameter)


def test_a_run_without_masked_arms_reads_the_same_stream_and_keeps_its_vocabulary(masked: Run, trained: Run) -> None:
    assert trained.config.base.model.vocab_size == MASK
    one, other = (read_facts(run.directory.checkpoint("gpt", 1, STEPS)).chains for run in (masked, trained))
    assert one == other
    bert = read_facts(masked.directory.checkpoint("bert", 1, STEPS)).chains
    assert {name for name in one if one[name] == bert[name]} == {"tokens", "prefix_lengths"}
    assert set(bert) == {*one, "inputs"}


def test_the_certificate_lists_what_differs_and_what_does_not(masked: Run) -> None:
    found = json.loads(masked.directory.certificate.read_text())
    assert found["matched"] is True
    assert certificate_problems(found) == []
    pairs = {tuple(pair["arms"]): pair for pair in found["pairs"] if pair["seed"] == 0}
    assert len(pairs) == 6
    apart, alike = pairs["gpt", "bert"], pairs["bert", "mixed-heads"]
    assert apart["declared"] == sorted(apart["fields"]) == ["mask", "objective"]
    assert apart["fields"] == {"mask": ["causal", "bidirectional"], "objective": ["suffix", "masked"]}
    assert apart["compared"] == ["settings", "initial weights", "evaluation sequences", "tokens", "prefix lengths"]
    assert alike["fields"] == {"mask": ["bidirectional", "mixed-heads"]}
    assert alike["compared"] == [*apart["compared"], "target rows", "masked inputs"]
    for pair in (apart, alike):
        assert not set(pair["same"]) & set(pair["fields"])
        assert {"position", "d_model", "masked_fraction", "tokenizer", "learning_rate"} <= set(pair["same"])
    assert "objective" in alike["same"]


def test_a_masked_run_is_verified_from_its_files(masked: Run) -> None:
    assert verify_run(masked) == []


class OtherInputs(Trainer):
    """A trainer whose mixed arm reads one other token at step 6; what it predicts is the same."""

    @staticmethod
    def examples_of(
        config: ArmConfig, seed: int, number: int, tokens: torch.Tensor, prefix_lengths: Sequence[int]
    ) -> Examples:
        found = Trainer.examples_of(config, seed, number, tokens, prefix_lengths)
        if config.model.mask is MaskKind.MIXED_HEADS and number == 5:
            found.inputs[0, 0] = 7 if int(found.inputs[0, 0]) != 7 else 8
        return found


def test_arms_that_read_other_inputs_are_stopped_at_that_step(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", run_config(("bert", "mixed-heads"), seeds=(0,)))
    expected = "mixed-heads must differ in mask alone, but under seed 0 they also differ in masked inputs of step 6"
    with trained_by(OtherInputs), pytest.raises(MatchError, match=expected):
        train_units(run, device=CPU, workers=1)


def test_arms_with_different_tokenizers_are_not_compared(masked: Run, tmp_path: Path) -> None:
    run = copy_of(masked, tmp_path / "run")
    for step in run.directory.checkpoint_steps("bert", 0):
        path = run.directory.checkpoint("bert", 0, step) / "checkpoint.json"
        facts = json.loads(path.read_text())
        facts["configuration"]["data"]["tokenizer"] = "bpe:300"
        path.write_text(json.dumps(facts))
    with pytest.raises(MatchError, match=r"gpt and bert, seed 0: setting tokenizer. Do not compare these runs"):
        train_units(run, device=CPU, workers=1)


def test_an_older_certificate_that_lists_less_is_still_believed(masked: Run, tmp_path: Path) -> None:
    run = copy_of(masked, tmp_path / "run")
    found = json.loads(run.directory.certificate.read_text())
    found["rankkit_certificate"] = 1
    for pair in found["pairs"]:
        del pair["same"]
    run.directory.certificate.write_text(json.dumps(found))
    assert verify_run(run) == []
    found["pairs"][0]["steps"] = []
    run.directory.certificate.write_text(json.dumps(found))
    assert any("must be what the checkpoints give" in problem for problem in verify_run(run))


def test_masked_losses_are_those_of_hidden_tokens_by_a_model_written_slowly(masked: Run) -> None:
    tokens, examples = examples_of(masked)
    compared = compare_losses(masked)
    for arm in ARMS[1:]:
        model = load_model(masked.directory.path, arm=arm, seed=1)
        allowed = reference.allowed(model.config, N // 2, N)
        expected = np.full((3, N), np.nan)
        for sequence in range(3):
            logits = reference.forward(model, examples.inputs[sequence].tolist(), allowed).logits
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            losses = -np.log(shares / shares.sum(axis=1, keepdims=True))[np.arange(N), tokens[sequence]]
            hidden = examples.inputs[sequence].numpy() == MASK
            expected[sequence, hidden] = losses[hidden]
        found = compared.arm(arm)
        np.testing.assert_allclose(
            found.by_sequence[1], np.nanmean(expected, axis=1), rtol=1e-5
        )  # float32 forward pass
        chosen = np.isfinite(expected).any(axis=0)
        np.testing.assert_allclose(found.by_position[1][chosen], np.nanmean(expected[:, chosen], axis=0), rtol=1e-5)
        assert np.isnan(found.by_position[1][~chosen]).all()
        assert (~chosen).any()
        assert (found.task, found.reference) == ("masked", "neighbours")
        assert found.loss_tokens == STEPS * 2 * round(0.15 * N)


def test_each_task_has_its_own_reference_on_its_own_targets(masked: Run) -> None:
    tokens, examples = examples_of(masked)
    compared = compare_losses(masked)
    hidden = examples.inputs.numpy() == MASK
    expected = neighbour_cross_entropy(masked.tokens().train, tokens, hidden=hidden, vocab_size=MASK)
    assert compared.references["masked"] == expected
    assert compared.references["suffix"].keys() == {"unigram", "bigram"}
    assert compared.ngrams == {**compared.references["suffix"], **expected}
    for arm in compared.arms:
        assert arm.reference_loss == compared.ngrams[arm.reference]
        assert not arm.is_trained_enough  # twelve steps


def test_an_arm_is_trained_enough_two_standard_errors_below_its_reference(masked: Run) -> None:
    arm = compare_losses(masked).arm("bert")
    just = arm.loss + 2 * arm.loss_error
    assert replace(arm, reference_loss=just * (1 + 1e-12)).is_trained_enough
    assert not replace(arm, reference_loss=just).is_trained_enough
    alone = replace(arm, seeds=(0,), by_sequence=arm.by_sequence[:1], documents=np.zeros(3, dtype=np.int64))
    assert np.isnan(alone.loss_error)
    assert replace(alone, reference_loss=alone.loss + 1e-9).is_trained_enough


def test_losses_over_different_targets_are_not_subtracted(masked: Run) -> None:
    compared = compare_losses(masked)
    assert compared.apart == (("bert", "gpt"), ("mixed-heads", "gpt"), ("mixed-layers", "gpt"))
    assert [difference.arms for difference in compared.differences] == [
        ("mixed-heads", "bert"), ("mixed-layers", "bert"), ("mixed-layers", "mixed-heads"),
    ]  # fmt: skip
    for difference in compared.differences:
        assert (difference.task, difference.declared) == ("masked", ("mask",))
    lower = replace(
        compared.differences[0], interval=replace(compared.differences[0].interval, mean=-1, lower=-2, upper=-0.5)
    )
    assert verdict(lower).startswith("mixed-heads has the lower masked loss than bert: mixed-heads - bert is -1.0000")


def test_a_masked_run_that_was_stopped_resumes_to_the_same_bits(masked: Run, tmp_path: Path) -> None:
    run, heard = new_run(tmp_path / "run", run_config(ARMS)), []
    assert not train_units(run, device=CPU, workers=1, on_message=heard.append, stop=lambda: len(heard) > 30)
    assert train_units(open_run(run.directory.path), device=CPU, workers=1)
    assert_same_runs(run, masked)


def wrong(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.__setitem__(key, value)


def finite_where_nothing_was_hidden(document: dict[str, Any]) -> None:
    losses = document["trained"]["by_position"]
    losses[losses.index(None)] = 1.0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (wrong("task", "suffix"), "got: that of task suffix instead of masked"),
        (lambda document: document.pop("task"), "got: "),
        (finite_where_nothing_was_hidden, "got: trained losses whose mean is not"),
        (wrong("loss", 1.0), "got: trained losses whose mean is not 1.0"),
    ],
)
def test_an_evaluation_of_another_task_is_refused(
    damage: Callable[[dict[str, Any]], None], message: str, masked: Run, tmp_path: Path
) -> None:
    run = copy_of(masked, tmp_path / "run")
    path = run.directory.evaluation("bert", 0)
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(RunError, match=message):
        compare_losses(run)
