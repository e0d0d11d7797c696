"""Evaluation against a loop written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch
from tiny import model_config, widen

from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.models import Transformer
from rankkit.training import evaluate, evaluation
from rankkit.training.objective import MaskedTokens, evaluation_key

N = 10
TOKENS = np.random.default_rng(0).integers(0, 40, (5, N))


def model_of(mask: MaskKind = MaskKind.PREFIX) -> Transformer:
    return widen(Transformer(model_config(mask=mask, vocab_size=40)))


def losses_by_hand(model: Transformer, prefix_length: int) -> list[list[float]]:
    """-log softmax at every target of every sequence, from the model written slowly."""
    allowed = model.config.mask.at(prefix_length).allowed(N).numpy()
    table = []
    for tokens in TOKENS.tolist():
        logits = reference.forward(model, tokens, allowed).logits
        row = []
        for target in range(max(prefix_length, 1), N):
            scores = logits[target - 1] - logits[target - 1].max()
            row.append(float(np.log(np.exp(scores).sum()) - scores[tokens[target]]))
        table.append(row)
    return table


@pytest.mark.parametrize("prefix_length", [0, 1, 5, N - 1])
@pytest.mark.parametrize("mask", [MaskKind.CAUSAL, MaskKind.PREFIX])
def test_evaluation_equals_a_loop_by_hand(mask: MaskKind, prefix_length: int) -> None:
    model = model_of(mask)
    expected = np.array(losses_by_hand(model, prefix_length))
    found = evaluate(model, TOKENS, prefix_length)
    assert found.by_sequence.shape == (5,)
    assert found.by_position.shape == (N - max(prefix_length, 1),)
    assert found.by_sequence.dtype == found.by_position.dtype == np.float64
    # Logits are cut to float32 before the logarithm, so losses of up to 30 nats carry 24 bits.
    np.testing.assert_allclose(found.by_sequence, expected.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.by_position, expected.mean(axis=0), rtol=1e-6)
    assert found.loss == pytest.approx(expected.mean(), rel=1e-6)
    assert type(found.loss) is float


@pytest.mark.parametrize("at_once", [1, N, 2 * N, 3 * N + 1, 10**6])
def test_how_many_sequences_are_taken_at_once_does_not_matter(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    expected = evaluate(model, TOKENS, 5)
    seen: list[int] = []
    monkeypatch.setattr(evaluation, "_TOKENS_AT_ONCE", at_once)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = evaluate(model, TOKENS, 5)
    assert sum(seen) == 5
    assert max(seen) == min(5, max(1, at_once // N))
    np.testing.assert_allclose(found.by_sequence, expected.by_sequence, rtol=1e-6)
    np.testing.assert_allclose(found.by_position, expected.by_position, rtol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_restored_and_no_gradient_is_made(training: bool) -> None:
    model = model_of().train(training)
    during: list[bool] = []
    model.register_forward_pre_hook(lambda module, inputs: during.append(module.training or torch.is_grad_enabled()))
    evaluate(model, TOKENS, 5)
    assert during == [False]
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluation_changes_neither_weights_nor_tokens() -> None:
    model, tokens = model_of(), TOKENS.copy()
    tokens.flags.writeable = False  # as `evaluation_sequences` returns them
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, tokens, 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_arm_trained_on_all_tokens_is_evaluated_on_the_suffix_alone() -> None:
    """The objective is training's: every arm is compared on the same targets."""
    causal = model_of(MaskKind.CAUSAL)
    np.testing.assert_allclose(
        evaluate(causal, TOKENS, 5).by_position, np.array(losses_by_hand(causal, 1)).mean(axis=0)[4:], rtol=1e-6
    )


@pytest.mark.parametrize("mask", ["bidirectional", "backward"])
def test_models_that_see_what_they_are_asked_for_are_refused(mask: Any) -> None:
    model = model_of(MaskKind(mask))
    with pytest.raises(ConfigurationError, match=f"objective must not predict tokens that the mask shows.*{mask}"):
        evaluate(model, TOKENS, 5)


def test_a_prefix_without_a_suffix_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="leave a suffix of 10 tokens to predict, got 10"):
        evaluate(model_of(), TOKENS, N)


def test_a_masked_model_is_evaluated_on_tokens_that_are_all_hidden() -> None:
    """Against a loop: the pattern from the task, everything else by hand."""
    model, task = model_of(MaskKind.BIDIRECTIONAL), MaskedTokens(0.3, mask_id=39)
    found = evaluate(model, TOKENS, 5, task)
    examples = task.in_evaluation().examples(
        MaskKind.BIDIRECTIONAL, torch.tensor(TOKENS), [5] * 5, evaluation_key(TOKENS)
    )
    everything = np.ones((N, N), dtype=bool)
    table = np.full((5, N), np.nan)
    for sequence, row in zip(examples.rows.sequences.tolist(), examples.rows.rows.tolist(), strict=True):
        inputs = examples.inputs[sequence].tolist()
        assert inputs[row] == 39
        logits = reference.forward(model, inputs, everything).logits[row]
        table[sequence, row] = (
            np.log(np.exp(logits - logits.max()).sum()) - logits[TOKENS[sequence, row]] + logits.max()
        )
    assert (np.isfinite(table).sum(axis=1) == 3).all()
    chosen = np.isfinite(table).any(axis=0)
    assert 0 < chosen.sum() < N  # so few sequences leave a position out
    np.testing.assert_allclose(found.by_sequence, np.nanmean(table, axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.by_position[chosen], np.nanmean(table[:, chosen], axis=0), rtol=1e-6)
    assert np.isnan(found.by_position[~chosen]).all()
    assert found.by_position.shape == (N,)


@pytest.mark.parametrize("at_once", [1, 2 * N, 10**6])
def test_what_is_hidden_does_not_depend_on_how_many_are_taken_at_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = model_of(MaskKind.MIXED_LAYERS), MaskedTokens(0.3, mask_id=39)
    expected = evaluate(model, TOKENS, 5, task)
    monkeypatch.setattr(evaluation, "_TOKENS_AT_ONCE", at_once)
    np.testing.assert_allclose(evaluate(model, TOKENS, 5, task).by_sequence, expected.by_sequence, rtol=1e-6)
