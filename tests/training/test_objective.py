"""Which rows are trained on, exactly, and that none of them sees its target."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import model_config, widen

from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.models import Transformer
from rankkit.training import Objective
from rankkit.training.objective import NextTokens, TargetRows, token_losses

N = 8
NEXT = [Objective.SUFFIX, Objective.FULL]
TOKENS = torch.arange(10, 10 + N)[None]


def target_rows(objective: Objective, mask: MaskKind, tokens: torch.Tensor, lengths: list[int]) -> TargetRows:
    """Of a next-token objective, whose inputs are the tokens themselves."""
    examples = NextTokens(objective).examples(mask, tokens, lengths, "")
    assert examples.inputs is tokens
    return examples.rows


def pairs(objective: Objective, mask: MaskKind, prefix_length: int) -> list[tuple[int, int]]:
    """(row, target) of one sequence."""
    found = target_rows(objective, mask, TOKENS, [prefix_length])
    assert found.sequences.tolist() == [0] * len(found.rows)
    return list(zip(found.rows.tolist(), found.targets.tolist(), strict=True))


@pytest.mark.parametrize("mask", [MaskKind.CAUSAL, MaskKind.PREFIX])
@pytest.mark.parametrize(
    ("prefix_length", "targets"),
    [(0, range(1, N)), (1, range(1, N)), (2, range(2, N)), (5, range(5, N)), (N - 1, range(N - 1, N))],
)
def test_suffix_predicts_tokens_p_to_n_from_the_rows_before_them(
    mask: MaskKind, prefix_length: int, targets: range
) -> None:
    assert pairs(Objective.SUFFIX, mask, prefix_length) == [(t - 1, 10 + t) for t in targets]


@pytest.mark.parametrize("prefix_length", [0, 1, 5, N - 1, N])
def test_full_predicts_all_tokens_but_the_first_whatever_the_prefix(prefix_length: int) -> None:
    assert pairs(Objective.FULL, MaskKind.CAUSAL, prefix_length) == [(t - 1, 10 + t) for t in range(1, N)]


@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=6))
def test_batches_put_their_sequences_rows_one_after_another_alike_in_both_arms(lengths: list[int]) -> None:
    tokens = torch.arange(len(lengths) * N).reshape(len(lengths), N)
    expected = [
        (sequence, row, int(tokens[sequence, row + 1]))
        for sequence, length in enumerate(lengths)
        for row in range(max(length - 1, 0), N - 1)
    ]
    for mask in (MaskKind.CAUSAL, MaskKind.PREFIX):
        found = target_rows(Objective.SUFFIX, mask, tokens, lengths)
        parts = (found.sequences, found.rows, found.targets)
        assert list(zip(*(part.tolist() for part in parts), strict=True)) == expected


@given(st.integers(2, 24), st.integers(0, 24), st.sampled_from(list(MaskKind)), st.sampled_from(NEXT))
def test_rows_are_given_exactly_if_none_sees_the_token_that_it_predicts(
    n: int, p: int, mask: MaskKind, objective: Objective
) -> None:
    p = min(p, n - 1)
    first = 0 if objective is Objective.FULL else max(p - 1, 0)
    allowed = torch.stack([each.allowed(n) for each in mask.masks(p)]).any(dim=0)
    leaks = any(bool(allowed[row, row + 1]) for row in range(first, n - 1))
    tokens = torch.zeros(1, n, dtype=torch.int64)
    if leaks:
        with pytest.raises(ConfigurationError, match="objective must not predict tokens that the mask shows"):
            target_rows(objective, mask, tokens, [p])
    else:
        assert target_rows(objective, mask, tokens, [p]).rows.tolist() == list(range(first, n - 1))


@pytest.mark.parametrize(
    ("objective", "mask", "lengths", "message"),
    [
        (
            "suffix",
            "causal",
            [N],
            f"prefix_length must be at least 0 and leave a suffix of {N} tokens to predict, got {N}",
        ),
        ("suffix", "prefix", [N], f"leave a suffix of {N} tokens to predict, got {N}. Choose one below {N}"),
        ("suffix", "causal", [N + 1], f"got {N + 1}"),
        ("full", "causal", [N + 1], f"got {N + 1}"),
        ("suffix", "causal", [-1], "prefix_length must be at least 0 .*, got -1"),
        ("suffix", "prefix", [-1], "prefix_length must be at least 0 .*, got -1"),
        (
            "full",
            "prefix",
            [2],
            "objective must not predict .* objective full with mask prefix and a prefix of 2: rows see",
        ),
        ("suffix", "bidirectional", [4], "objective must not predict .* objective suffix with mask bidirectional"),
        ("suffix", "backward", [N - 1], "objective must not predict .* mask backward and a prefix of 7"),
        (
            "suffix",
            "causal",
            [1, 2],
            "prefix_lengths must have one entry for each of 1 sequences, got 2. Pass one each",
        ),
        ("suffix", "causal", [], "prefix_lengths must have one entry for each of 1 sequences, got 0"),
    ],
)
def test_rows_that_leak_or_predict_nothing_are_refused(
    objective: str, mask: str, lengths: list[int], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        target_rows(Objective(objective), MaskKind(mask), TOKENS, lengths)


def test_one_leaking_sequence_refuses_the_batch() -> None:
    with pytest.raises(ConfigurationError, match="mask shows, got objective full with mask prefix and a prefix of 6"):
        target_rows(Objective.FULL, MaskKind.PREFIX, TOKENS.repeat(3, 1), [0, 1, 6])


@pytest.mark.parametrize("mask", [MaskKind.CAUSAL, MaskKind.PREFIX])
def test_losses_are_the_cross_entropy_of_the_whole_predictions_at_the_chosen_rows(mask: MaskKind) -> None:
    model = widen(Transformer(model_config(mask=mask, vocab_size=40)))
    tokens, lengths = torch.randint(0, 40, (3, N), generator=torch.Generator().manual_seed(0)), [5, 0, 7]
    rows = target_rows(Objective.SUFFIX, mask, tokens, lengths)
    with torch.no_grad():
        found = token_losses(model, tokens, lengths, rows)
        logits = model.logits(model(tokens, lengths))
    expected = [
        F.cross_entropy(logits[s, t - 1], tokens[s, t]) for s, p in enumerate(lengths) for t in range(max(p, 1), N)
    ]
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-6, atol=1e-6)  # logits are cut to float32
