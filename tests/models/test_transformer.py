"""The model against itself written slowly, who can influence whom, and that every mask trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch
from tiny import model_config, widen
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.models import Transformer
from rankkit.models.positions import alibi, rotate, rotation_angles
from rankkit.training import Objective
from rankkit.training.objective import NextTokens

LENGTH = 12
POSITIONS = ("rope", "learned", "none", "alibi")
ARMS = (MaskKind.CAUSAL, MaskKind.PREFIX)
ROUNDING = 1e-12  # float64, a few thousand operations on numbers of order one


def model_of(mask: MaskKind, position: Any, **changes: Any) -> Transformer:
    return widen(Transformer(model_config(mask=mask, position=position, vocab_size=40, **changes)))


def some_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 40, shape))


@torch.no_grad()
def predictions(model: Transformer, tokens: Tensor, prefix_lengths: Any) -> Tensor:
    return model.logits(model(tokens, prefix_lengths))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mask", list(MaskKind))
def test_forward_equals_the_model_written_slowly(mask: MaskKind, position: Any) -> None:
    model, lengths = model_of(mask, position), [5, 0, LENGTH, 1, 11]
    tokens = some_tokens(len(lengths), LENGTH)
    found = predictions(model, tokens, lengths).numpy()
    for row, prefix_length in enumerate(lengths):
        allowed = reference.allowed(model.config, prefix_length, LENGTH)
        expected = reference.forward(model, tokens[row].tolist(), allowed).logits
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


def test_float32_model_equals_the_slow_one_to_its_precision() -> None:
    model = Transformer(model_config(mask="prefix"), seed=1).eval()
    tokens = some_tokens(1, LENGTH)
    expected = reference.forward(model, tokens[0].tolist(), MaskKind.PREFIX.at(5).allowed(LENGTH).numpy()).logits
    found = predictions(model, tokens, 5)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())  # some ten roundings


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("prefix_length", [0, 1, 5, 11])
@pytest.mark.parametrize("mask", ARMS)
def test_a_token_changes_exactly_the_rows_that_may_see_it(mask: MaskKind, prefix_length: int, position: Any) -> None:
    """The model does not leak: through two layers, row i depends on token j if and only if the mask allows it."""
    model, tokens = model_of(mask, position), some_tokens(1, LENGTH)
    before = predictions(model, tokens, prefix_length)[0]
    depends = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    for column in range(LENGTH):
        changed = tokens.clone()
        changed[0, column] = (tokens[0, column] + 1) % 40
        difference = (predictions(model, changed, prefix_length)[0] - before).abs().amax(dim=1)
        assert not ((difference > ROUNDING) & (difference < 1e-6)).any()  # it does, or it does not
        depends[:, column] = difference > ROUNDING
    assert torch.equal(depends, mask.at(prefix_length).allowed(LENGTH))


@pytest.mark.parametrize("objective", [Objective.SUFFIX, Objective.FULL])
@pytest.mark.parametrize("mask", ARMS)
def test_no_predicting_row_changes_with_the_token_that_it_predicts(mask: MaskKind, objective: Objective) -> None:
    """What the loss reads, as the loss reads it: rows of the objective, in one batch of all prefix lengths."""
    lengths = [1] if objective is Objective.FULL and mask is MaskKind.PREFIX else list(range(LENGTH))
    model, tokens = model_of(mask, "rope"), some_tokens(len(lengths), LENGTH)
    rows = NextTokens(objective).examples(mask, tokens, lengths, "").rows
    before = predictions(model, tokens, lengths)
    for column in range(1, LENGTH):
        changed = tokens.clone()
        changed[:, column:] = (tokens[:, column:] + 1) % 40
        chosen = rows.rows + 1 == column
        index = (rows.sequences[chosen], rows.rows[chosen])
        torch.testing.assert_close(predictions(model, changed, lengths)[index], before[index], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("mask", ARMS)
def test_gradient_of_a_row_reaches_no_token_that_it_may_not_see(mask: MaskKind) -> None:
    model, tokens = model_of(mask, "rope"), some_tokens(1, LENGTH)
    captured: list[Tensor] = []
    handle = model.embedding.register_forward_hook(lambda *parts: captured.append(parts[2]))
    hidden = model(tokens, 5)
    handle.remove()
    for row in range(LENGTH):
        (gradient,) = torch.autograd.grad(hidden[0, row].sum(), captured[0], retain_graph=True)
        reached = gradient[0].abs().amax(dim=1) > 0
        assert torch.equal(reached, mask.at(5).allowed(LENGTH)[row])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mask", list(MaskKind))
def test_every_mask_trains_with_every_position(mask: MaskKind, position: Any) -> None:
    """The gradient is the slope of the loss along a random direction, and a step against it lowers the loss."""
    model, tokens, lengths = model_of(mask, position).train(), some_tokens(3, LENGTH), [5, 5, 2]
    parameters = dict(model.named_parameters())

    def loss() -> Tensor:
        predicted = model.logits(model(tokens, lengths)).flatten(0, 1)
        return torch.nn.functional.cross_entropy(
            predicted, tokens.flatten()
        )  # of what a row reads: all that has to fall

    def moved(step: float) -> float:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.add_(step * directions[name])
            found = float(loss())
            for name, parameter in parameters.items():
                parameter.sub_(step * directions[name])
        return found

    loss().backward()
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    assert gradients.keys() == parameters.keys()
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients.values())
    random = np.random.default_rng(0)
    directions = {name: torch.from_numpy(random.standard_normal(tuple(p.shape))) for name, p in parameters.items()}
    slope = sum(float((gradient * directions[name]).sum()) for name, gradient in gradients.items())
    # Central differences: 1e-4 squared times third derivatives, and rounding of 1e-16 over 1e-4.
    assert (moved(1e-4) - moved(-1e-4)) / 2e-4 == pytest.approx(slope, rel=1e-4, abs=1e-5)
    directions = dict(gradients)
    assert moved(-1e-4) < moved(0)


def test_rotation_keeps_norms_and_makes_scores_of_distances_alone() -> None:
    query, key = (torch.from_numpy(np.random.default_rng(seed).standard_normal((5, 8))) for seed in range(2))

    def turned(x: Tensor, first: int) -> Tensor:
        return rotate(x, *rotation_angles(torch.arange(first, first + 5), 8, 10000.0, torch.float64))

    torch.testing.assert_close(turned(query, 9).norm(dim=1), query.norm(dim=1), rtol=ROUNDING, atol=0)
    scores, later = (turned(query, first) @ turned(key, first).T for first in (0, 1000))
    torch.testing.assert_close(later, scores, rtol=0, atol=1e-11)  # angles up to 1000 are rounded to 1e-13
    assert float((turned(query, 0) @ turned(key, 1).T - scores).abs().max()) > 1e-3


def test_alibi_falls_with_the_distance_by_slopes_that_halve_over_eight_heads() -> None:
    found = alibi(8, 3, 5, device=torch.device("cpu"), dtype=torch.float64)  # rows are positions 2, 3 and 4
    assert found.shape == (8, 7)
    for head, slope in enumerate((1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256)):
        for row, column in np.ndindex(3, 5):
            assert float(found[head, column - row + 2]) == -slope * abs(row + 2 - column)
    assert float(alibi(3, 2, 2, device=torch.device("cpu"), dtype=torch.float32)[0, 0]) == -np.float32(2 ** (-8 / 3))


def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    model, tokens = model_of(MaskKind.PREFIX, "rope"), some_tokens(4, LENGTH)
    lengths = [3, 8, 3, 0]
    together = predictions(model, tokens, lengths)
    for row, prefix_length in enumerate(lengths):
        alone = predictions(model, tokens[row : row + 1], prefix_length)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=ROUNDING)


def test_arms_agree_where_their_masks_do() -> None:
    tokens = some_tokens(2, LENGTH)
    causal, prefix = (predictions(model_of(mask, "rope"), tokens, [0, 1]) for mask in ARMS)
    torch.testing.assert_close(causal, prefix, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("mask", list(MaskKind))
@pytest.mark.parametrize("lengths", [13, -1, [4, 13]])
def test_prefixes_beyond_the_sequence_are_refused_under_every_mask(mask: MaskKind, lengths: Any) -> None:
    model = model_of(mask, "rope")
    with pytest.raises(
        ConfigurationError, match=r"prefix_length must be between 0 and 12 \(tokens of the sequence\), got"
    ):
        model(some_tokens(2, LENGTH), lengths)


def test_one_prefix_length_per_sequence_is_required() -> None:
    with pytest.raises(ConfigurationError, match=r"prefix_lengths must have one entry for each of 2 sequences, got 3"):
        model_of(MaskKind.PREFIX, "rope")(some_tokens(2, LENGTH), [1, 2, 3])


def test_learned_positions_end_and_others_do_not() -> None:
    tokens = some_tokens(1, 33)
    for position in ("rope", "none", "alibi"):
        assert model_of(MaskKind.CAUSAL, position)(tokens, 0).isfinite().all()
    with pytest.raises(
        ConfigurationError, match=r"tokens must be at most 32 \(sequence_length of learned positions\), got 33"
    ):
        model_of(MaskKind.CAUSAL, "learned")(tokens, 0)
