"""Every objective's loss, from its definition in NumPy alone, and a model small enough to check by hand."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
import reference
import torch
from numpy.typing import NDArray
from tiny import arm, model_config, widen

from rankkit.masks import MaskKind
from rankkit.models import ModelConfig, Transformer
from rankkit.training.objective import MaskedTokens, NextTokens, Objective, Task, token_losses

VOCABULARY, N = 41, 14
TOKENS = np.random.default_rng(3).integers(0, VOCABULARY - 1, (4, N))
LENGTHS = [0, 5, 5, 12]
KEY = "1 6"


def raw(name: str, count: int) -> NDArray[np.uint64]:
    """Philox keyed by the first 128 bits of a name's SHA-256."""
    key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], dtype="<u8")
    return np.random.Philox(key=key.astype(np.uint64)).random_raw(count)  # type: ignore[no-any-return]


def next_token_examples(first: list[int]) -> tuple[NDArray[Any], list[tuple[int, int, int]]]:
    return TOKENS, [(s, t - 1, TOKENS[s, t]) for s, start in enumerate(first) for t in range(start, N)]


def masked_examples(fraction: float) -> tuple[NDArray[Any], list[tuple[int, int, int]]]:
    """(inputs, [(sequence, row, target)]), one number at a time."""
    inputs, count, wanted = TOKENS.copy(), max(1, round(fraction * N)), []
    for sequence, draws in enumerate(raw(f"rankkit masked positions {KEY}", TOKENS.size).reshape(TOKENS.shape)):
        smallest = sorted(sorted(range(N), key=lambda position, draws=draws: draws[position])[:count])  # type: ignore[misc]
        wanted += [(sequence, position, TOKENS[sequence, position]) for position in smallest]
    draws = raw(f"rankkit masked inputs {KEY}", 2 * len(wanted))
    for (sequence, position, _), fate, other in zip(wanted, draws[: len(wanted)], draws[len(wanted) :], strict=True):
        if int(fate) % 10 < 8:
            inputs[sequence, position] = VOCABULARY - 1
        elif int(fate) % 10 == 8:
            inputs[sequence, position] = int(other) % (VOCABULARY - 1)
    return inputs, wanted


CASES: list[tuple[Task, MaskKind, tuple[NDArray[Any], list[tuple[int, int, int]]]]] = [
    *((NextTokens(Objective.SUFFIX), mask, next_token_examples([max(p, 1) for p in LENGTHS]))
      for mask in (MaskKind.CAUSAL, MaskKind.PREFIX)),
    (NextTokens(Objective.FULL), MaskKind.CAUSAL, next_token_examples([1] * 4)),
    *((MaskedTokens(fraction, mask_id=VOCABULARY - 1), mask, masked_examples(fraction))
      for fraction in (0.15, 0.4) for mask in MaskKind),
]  # fmt: skip


@pytest.mark.parametrize(("task", "mask", "examples"), CASES)
def test_losses_equal_the_definition_in_numpy(
    task: Task, mask: MaskKind, examples: tuple[NDArray[Any], list[tuple[int, int, int]]]
) -> None:
    model = widen(Transformer(model_config(mask=mask, vocab_size=VOCABULARY)))
    inputs, wanted = examples
    logits = [
        reference.forward(model, row.tolist(), reference.allowed(model.config, p, N)).logits
        for row, p in zip(inputs, LENGTHS, strict=True)
    ]
    expected = []
    for sequence, row, target in wanted:
        scores = logits[sequence][row] - logits[sequence][row].max()
        expected.append(np.log(np.exp(scores).sum()) - scores[target])
    found = task.examples(mask, torch.from_numpy(TOKENS), LENGTHS, KEY)
    with torch.no_grad():
        losses = token_losses(model, found.inputs, LENGTHS, found.rows)
    # Logits are cut to float32 before the logarithm, so losses of up to 30 nats carry 24 bits.
    np.testing.assert_allclose(losses.numpy(), expected, rtol=2e-6, atol=1e-6)


def one_layer(mask: MaskKind) -> Transformer:
    """Width 2, one head of width 2, tokens 0 = (1, 1) and 1 = (1, -1), the mask id 2 = (-1, 1); all norms sqrt(2).

    Queries are zero, so a row takes the mean of what it sees; values and outputs are the identity; no MLP. RMS norm
    leaves vectors of length sqrt(2) alone, so with m the mean of the vectors a row sees and e its own,
    logits = E (e + m) sqrt(2) / |e + m|.
    """
    model = Transformer(
        ModelConfig(
            mask=mask,
            vocab_size=3,
            sequence_length=3,
            num_layers=1,
            d_model=2,
            num_heads=1,
            head_dim=2,
            position="none",
        )
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_() if parameter.dim() == 2 else parameter.fill_(1.0)
        model.embedding.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]))
        model.blocks[0].attention.projection.weight[4:] = torch.eye(2)
        model.blocks[0].attention.output.weight.copy_(torch.eye(2))
    return model.eval()


def by_hand(e: tuple[float, float], mean: tuple[float, float], target: int) -> float:
    """-log softmax of the target."""
    x, y = e[0] + mean[0], e[1] + mean[1]
    scale = math.sqrt(2) / math.hypot(x, y)
    scores = [(x + y) * scale, (x - y) * scale, (y - x) * scale]
    return math.log(sum(math.exp(score) for score in scores)) - scores[target]


def test_the_hand_computes_the_number_of_the_comment() -> None:
    assert by_hand((1, -1), (1, 0), 0) == pytest.approx(1.531, abs=5e-4)


@pytest.mark.parametrize(
    ("task", "mask", "prefix", "expected"),
    [
        # Tokens 0 1 0 = (1, 1) (1, -1) (1, 1); prefix of 2: token 2 from row 1, which sees (1, 1) and (1, -1): mean (1, 0),
        # so that x = (2, -1) sqrt(2 / 5) and the logits are 0.632, 1.897, -1.897: a loss of 1.531.
        (NextTokens(Objective.SUFFIX), MaskKind.CAUSAL, 2, [by_hand((1, -1), (1, 0), 0)]),
        (NextTokens(Objective.SUFFIX), MaskKind.PREFIX, 2, [by_hand((1, -1), (1, 0), 0)]),
        (NextTokens(Objective.FULL), MaskKind.CAUSAL, 2, [by_hand((1, 1), (1, 1), 1), by_hand((1, -1), (1, 0), 0)]),
        # With its middle hidden the sequence reads (1, 1) (-1, 1) (1, 1): mean (1/3, 1), and causally (0, 1).
        (MaskedTokens(0.3, 2, hides_all=True), MaskKind.BIDIRECTIONAL, 0, [by_hand((-1, 1), (1 / 3, 1), 1)]),
        (MaskedTokens(0.3, 2, hides_all=True), MaskKind.CAUSAL, 0, [by_hand((-1, 1), (0, 1), 1)]),
    ],
)  # fmt: skip
def test_a_model_of_one_layer_loses_what_a_hand_computes(
    task: Task, mask: MaskKind, prefix: int, expected: list[float]
) -> None:
    tokens = torch.tensor([[0, 1, 0]])
    found = task.examples(mask, tokens, [prefix], MIDDLE)
    with torch.no_grad():
        losses = token_losses(one_layer(mask), found.inputs, [prefix], found.rows)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=5e-6)  # norms add 1e-6 to a mean square of 1


MIDDLE = next(key for key in map(str, range(99)) if raw(f"rankkit masked positions {key}", 3).argmin() == 1)
"""A batch whose one hidden token of three is the middle one."""


def test_the_arms_have_these_tasks() -> None:
    tasks = {name: arm(name).task for name in ("gpt", "unilm", "gpt-full", "bert", "mixed-heads", "mixed-layers")}
    assert tasks["gpt"] == tasks["unilm"] == NextTokens(Objective.SUFFIX)
    assert tasks["gpt-full"] == NextTokens(Objective.FULL)
    assert tasks["bert"] == tasks["mixed-heads"] == tasks["mixed-layers"] == MaskedTokens(0.15, mask_id=256)
