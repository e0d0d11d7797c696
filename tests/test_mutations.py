"""Every theorem's tests notice when what they are about is broken.

A mask that forgets the diagonal (j < i for j <= i) makes the first row empty and every A_ii zero. Each theorem has claims of
matrices that a mask made, so for each at least one must fail. Where the mask is not what a theorem is about, that is broken
besides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_theorems
import torch
from hypothesis import HealthCheck, Phase, given, settings
from models import test_transformer
from torch import Tensor

from rankkit.masks import Backward, Causal, MaskKind, Prefix
from rankkit.operators import AttentionOperator
from rankkit.spectra import measures
from rankkit_kernels.attention import FusedCall

FEW = settings(
    max_examples=12, derandomize=True, database=None, deadline=None, phases=[Phase.generate], report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
FAILURES = (AssertionError, ArithmeticError, ValueError, RuntimeError, RuntimeWarning)
"""What a broken premise may end in: a claim that does not hold, or a number outside the domain of the next function."""


def holds(claim: test_theorems.Claim, drawn: dict[str, Any]) -> bool:
    """Whether a claim holds on a few examples."""
    try:
        (FEW(given(**drawn)(claim)) if drawn else claim)()
    except FAILURES:
        return False
    return True


def survives(number: int) -> bool:
    """Whether all claims of a theorem hold."""
    return all(holds(claim, drawn) for claim, drawn in test_theorems.CLAIMS[number])


def without_diagonal(mask: type) -> Callable[..., Tensor]:
    """`allowed` of that mask with j < i for j <= i, or j > i for j >= i."""
    allowed = mask.allowed

    def mutated(self: object, n: int) -> Tensor:
        found: Tensor = allowed(self, n)
        prefix = getattr(self, "length", 0)  # whose keys are seen by everybody
        diagonal = torch.eye(n, dtype=torch.bool)
        diagonal[:prefix, :prefix] = False
        return found & ~diagonal

    return mutated


@pytest.mark.parametrize("number", sorted(test_theorems.CLAIMS))
def test_a_mask_that_forgets_the_diagonal_fails_every_theorem(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for mask in (Causal, Backward, Prefix):
        monkeypatch.setattr(mask, "allowed", without_diagonal(mask))
    assert not survives(number)


def test_every_theorem_has_claims_and_holds_before_it_is_broken() -> None:
    """Theorem 10 stands in the tests of the models."""
    assert sorted(test_theorems.CLAIMS) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    for number in (1, 2, 4, 5, 7, 9):  # the others, whole, take their time in their own tests
        assert survives(number)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_mask_that_forgets_a_key_fails_the_theorems_of_determinants(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row n - 1 does not see key 0: the matrix stays triangular and of full rank, only its plan no longer says so."""
    for mask in (Causal, Prefix):
        monkeypatch.setattr(mask, "allowed", forgetting_a_key(mask))
    assert not survives(number)


def forgetting_a_key(mask: type) -> Callable[..., Tensor]:
    allowed = mask.allowed

    def mutated(self: object, n: int) -> Tensor:
        found: Tensor = allowed(self, n).clone()
        found[-1, : min(1, n - 1)] = False
        return found

    return mutated


def test_a_prefix_whose_suffix_sees_the_future_fails_theorem_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prefix, "allowed", lambda self, n: torch.ones(n, n, dtype=torch.bool))
    assert not survives(2)


def test_logits_with_a_bias_or_squared_fail_theorem_4(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = AttentionOperator.logits

    def biased(self: AttentionOperator, dtype: torch.dtype = torch.float64) -> Tensor:
        found = logits(self, dtype)
        return found - torch.arange(self.rows)[:, None].sub(torch.arange(self.columns)).abs()

    for mutated in (biased, lambda self, dtype=torch.float64: logits(self, dtype) ** 2):
        monkeypatch.setattr(AttentionOperator, "logits", mutated)
        assert not survives(4)


def test_rotations_that_do_not_turn_fail_theorem_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_theorems, "rotate", lambda x, cosine, sine: x)
    assert not survives(4)


def test_a_softmax_over_columns_fails_theorem_7(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transposed: columns sum to 1 and rows do not."""
    dense = AttentionOperator.dense

    def transposed(self: AttentionOperator, dtype: torch.dtype = torch.float64) -> Tensor:
        return dense(self, dtype).mT if self.rows == self.columns else dense(self, dtype)

    monkeypatch.setattr(AttentionOperator, "dense", transposed)
    assert not survives(7)


@pytest.mark.parametrize("name", ["stable_rank", "participation_ratio", "effective_rank_energy", "effective_rank"])
def test_a_measure_of_the_wrong_power_fails_theorem_9(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = getattr(measures, name)
    monkeypatch.setattr(measures, name, lambda sigma: measure(sigma**0.5))
    assert not survives(9)


def test_a_scale_that_is_not_the_logits_fails_theorem_8_and_11(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = AttentionOperator.logits
    monkeypatch.setattr(
        AttentionOperator,
        "logits",
        lambda self, dtype=torch.float64: logits(self, dtype) + torch.arange(self.columns, dtype=dtype) / 8,
    )
    assert not survives(8)
    monkeypatch.setattr(AttentionOperator, "logits", lambda self, dtype=torch.float64: logits(self, dtype) / 800)
    assert not survives(11)


def test_a_prefix_that_is_one_position_short_fails_theorem_10(monkeypatch: pytest.MonkeyPatch) -> None:
    test_transformer.test_theorem_10_without_positions_the_prefix_is_a_set()

    def short(self: Prefix, n: int) -> tuple[FusedCall, ...]:
        return plan(Prefix(self.length - 1), n)

    plan = Prefix.fused_plan
    monkeypatch.setattr(Prefix, "fused_plan", short)
    with pytest.raises(AssertionError):
        test_transformer.test_theorem_10_without_positions_the_prefix_is_a_set()


def test_a_causal_mask_that_is_a_prefix_fails_the_other_half_of_theorem_10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Causal, "fused_plan", lambda self, n: Prefix(6).fused_plan(n))
    with pytest.raises(AssertionError):
        test_transformer.test_theorem_10_fails_for_causal_masks_and_with_positions("none", MaskKind.CAUSAL)
