"""What is hidden, what stands in its place, and that no target can be seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chisquare
from tiny import model_config, widen
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.models import Transformer
from rankkit.training.objective import MaskedTokens, evaluation_key, token_losses

MASK = 40
TASK = MaskedTokens(0.25, mask_id=MASK)
EVERY = list(MaskKind)
CHANCE = 1e-6  # of a failure by chance in tests of distributions; keys are fixed, so they fail always or never


def tokens_of(sequences: int, n: int, *, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, MASK, (sequences, n)))


@given(st.integers(2, 60), st.floats(0.01, 0.95), st.integers(1, 5), st.integers(0, 99))
def test_the_same_number_of_tokens_is_predicted_in_every_sequence_and_at_least_one(
    n: int, fraction: float, sequences: int, step: int
) -> None:
    count = max(1, round(fraction * n))
    task, tokens = MaskedTokens(fraction, mask_id=MASK), tokens_of(sequences, n)
    if count == n:
        with pytest.raises(ConfigurationError, match=rf"masked_fraction must leave a token of {n} \(sequence_length\)"):
            task.examples(MaskKind.BIDIRECTIONAL, tokens, [0] * sequences, "0 0")
        return
    found = task.examples(MaskKind.BIDIRECTIONAL, tokens, [0] * sequences, f"0 {step}")
    assert found.rows.sequences.tolist() == [s for s in range(sequences) for _ in range(count)]
    rows = found.rows.rows.reshape(sequences, count)
    assert bool((rows[:, 1:] > rows[:, :-1]).all())
    assert torch.equal(found.rows.targets, tokens[found.rows.sequences, found.rows.rows])
    chosen = torch.zeros_like(tokens, dtype=torch.bool)
    chosen[found.rows.sequences, found.rows.rows] = True
    assert torch.equal(found.inputs[~chosen], tokens[~chosen])
    assert bool(((found.inputs >= 0) & (found.inputs <= MASK)).all())


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_what_is_hidden_is_a_function_of_seed_and_step(seed: int, step: int, seed_: int, step_: int) -> None:
    tokens = tokens_of(4, 64)
    one, other = (
        TASK.examples(MaskKind.BIDIRECTIONAL, tokens, [0] * 4, key) for key in (f"{seed} {step}", f"{seed_} {step_}")
    )
    same = (seed, step) == (seed_, step_)
    assert torch.equal(one.rows.rows, other.rows.rows) == same
    assert torch.equal(one.inputs, other.inputs) == same


def test_what_is_hidden_depends_neither_on_the_mask_nor_on_the_prefix_nor_on_the_tokens() -> None:
    one = TASK.examples(MaskKind.BIDIRECTIONAL, tokens_of(4, 64), [0] * 4, "0 7")
    other = TASK.examples(MaskKind.PREFIX, tokens_of(4, 64, seed=1), [8, 8, 16, 32], "0 7")
    assert torch.equal(one.rows.rows, other.rows.rows)
    hidden = one.inputs == MASK
    assert torch.equal(hidden, other.inputs == MASK)


def test_tokens_are_not_changed_in_place() -> None:
    tokens = tokens_of(2, 32)
    before = tokens.clone()
    TASK.examples(MaskKind.BIDIRECTIONAL, tokens, [0, 0], "0 0")
    assert torch.equal(tokens, before)


def test_the_draws_of_a_step_are_pinned() -> None:
    """Where these differ, no older run can be resumed."""
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    found = MaskedTokens(0.5, mask_id=257).examples(MaskKind.BIDIRECTIONAL, tokens, [0, 0], "0 1")
    assert found.rows.rows.tolist() == [3, 5, 7, 9, 10, 12, 13, 14, 0, 2, 3, 4, 6, 8, 11, 12]
    shown = found.inputs[found.rows.sequences, found.rows.rows].tolist()
    assert shown == [257, 257, 257, 257, 257, 257, 257, 257, 257, 257, 257, 0, 0, 70, 116, 257]


def test_eight_in_ten_are_hidden_one_is_random_and_one_is_kept() -> None:
    tokens = tokens_of(400, 100)
    found = TASK.examples(MaskKind.BIDIRECTIONAL, tokens, [0] * 400, "3 1")
    shown, targets = found.inputs[found.rows.sequences, found.rows.rows], found.rows.targets
    count = len(targets)
    hidden, kept = int((shown == MASK).sum()), int((shown == targets).sum())
    random = shown[(shown != MASK) & (shown != targets)]
    shares = (
        (hidden, 0.8),
        (kept, 0.1 + 0.1 / MASK),
        (len(random), 0.1 - 0.1 / MASK),
    )  # a random token may be the true one
    for number, share in shares:
        low, high = binom.interval(1 - CHANCE, count, share)
        assert low <= number <= high
    assert hidden + kept + len(random) == count
    assert chisquare(np.bincount(random.numpy(), minlength=MASK)).pvalue > CHANCE
    assert int(random.max()) < MASK


def test_every_position_is_chosen_equally_often_and_neighbours_independently() -> None:
    tokens = tokens_of(2000, 20)
    rows = TASK.examples(MaskKind.BIDIRECTIONAL, tokens, [0] * 2000, "0 0").rows
    chosen = torch.zeros(2000, 20, dtype=torch.bool)
    chosen[rows.sequences, rows.rows] = True
    assert chisquare(chosen.sum(dim=0).numpy()).pvalue > CHANCE
    both = int((chosen[:, 3] & chosen[:, 4]).sum())
    low, high = binom.interval(1 - CHANCE, 2000, 5 / 20 * 4 / 19)  # without replacement
    assert low <= both <= high


def test_in_evaluation_every_target_is_hidden_by_a_pattern_of_the_sequences_alone() -> None:
    tokens = tokens_of(6, 48)
    task = TASK.in_evaluation()
    found = [task.examples(mask, tokens, [0] * 6, evaluation_key(tokens.numpy())) for mask in EVERY]
    for each in found:
        assert bool((each.inputs[each.rows.sequences, each.rows.rows] == MASK).all())
        assert int((each.inputs == MASK).sum()) == len(each.rows.targets) == 6 * 12
        assert torch.equal(each.inputs, found[0].inputs)
    assert evaluation_key(tokens.numpy()) != evaluation_key(tokens_of(6, 48, seed=1).numpy())


@pytest.mark.parametrize("mask", EVERY)
def test_no_prediction_changes_with_the_token_that_is_hidden(mask: MaskKind) -> None:
    """The leak test: other true tokens under the same inputs change neither inputs nor logits, only the targets."""
    model = widen(Transformer(model_config(mask=mask, vocab_size=MASK + 1)))
    tokens, lengths, key = tokens_of(3, 24), [8, 8, 16], "0 0"
    task = TASK.in_evaluation()
    before = task.examples(mask, tokens, lengths, key)
    changed = tokens.clone()
    index = (before.rows.sequences, before.rows.rows)
    changed[index] = (tokens[index] + 1) % MASK
    after = task.examples(mask, changed, lengths, key)
    assert torch.equal(before.inputs, after.inputs)
    assert not bool((before.rows.targets == after.rows.targets).any())
    with torch.no_grad():
        logits = [model.logits(model(each.inputs, lengths)[index]) for each in (before, after)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("mask", EVERY)
def test_in_training_only_the_tokens_that_are_kept_are_seen_by_their_own_row(mask: MaskKind) -> None:
    """The gradient of a row's loss reaches the embedding of what it reads; the true token is among that where kept."""
    tokens = tokens_of(3, 24)
    found = TASK.examples(mask, tokens, [8, 8, 16], "0 2")
    index = (found.rows.sequences, found.rows.rows)
    hidden = found.inputs[index] == MASK
    assert 0 < int(hidden.sum()) < len(hidden)
    changed = tokens.clone()
    changed[index[0][hidden], index[1][hidden]] = (tokens[index[0][hidden], index[1][hidden]] + 1) % MASK
    assert torch.equal(TASK.examples(mask, changed, [8, 8, 16], "0 2").inputs, found.inputs)


def test_a_model_that_copies_its_input_gains_nothing_on_hidden_tokens() -> None:
    """Identity attention, a bigram's worth of weights: logits depend on the token read, which says nothing here."""
    model = widen(Transformer(model_config(mask="bidirectional", vocab_size=MASK + 1)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("output.weight"):
                parameter.zero_()  # what is left is the embedding of the token itself
        tokens = tokens_of(2, 24)
        found = TASK.in_evaluation().examples(MaskKind.BIDIRECTIONAL, tokens, [0, 0], "0 0")
        model.embedding.weight.mul_(20)  # far above the others' products: a token predicts itself
        losses = token_losses(model, found.inputs, [0, 0], found.rows)
        own = token_losses(model, tokens, [0, 0], found.rows)
    assert float(own.mean()) < 0.1 < math.log(MASK) < float(losses.mean())
