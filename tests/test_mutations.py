"""Every theorem's tests notice when what they are about is broken.

A mutation counts as noticed if a claim itself says so: an AssertionError of the claim, not a number that some function
cannot take on the way. A mutated mask changes its definition and its plan together, so that both still agree; its rows all
see something and n = 1 is left as it was, so that what fails is what the theorem says. Theorem 7 holds for all rows that sum
to 1 and theorem 9 for every matrix, whatever the mask: there the rows, or the measures, are broken.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_theorems
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

import rankkit
from rankkit.masks import Backward, Causal, Mask, Prefix
from rankkit.models import transformer
from rankkit.operators import AttentionOperator
from rankkit.spectra import measures
from rankkit.spectra.determinant import LogAbsDet, log_abs_det
from rankkit_kernels.attention import FusedCall

FEW = settings(
    max_examples=12, derandomize=True, database=None, deadline=None, phases=[Phase.generate], report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
CRASHES = (ArithmeticError, ValueError, RuntimeError, RuntimeWarning)
"""What else a broken premise may end in: a number outside the domain of the next function. It shows nothing."""
PACKAGE = Path(rankkit.__file__).parent

Visible = Callable[[Tensor], Tensor]
"""From who sees whom, "query key", to a mutation of it."""


def notices(claim: test_theorems.Claim, drawn: dict[str, Any]) -> bool:
    """Whether a claim fails, by its own assertion, on one of a few examples."""
    try:
        (FEW(given(**drawn)(claim)) if drawn else claim)()
    except AssertionError as failure:
        frames = list(traceback.walk_tb(failure.__traceback__))
        inside = [Path(frame.f_code.co_filename).is_relative_to(PACKAGE) for frame, _ in frames]
        return any(frame.f_code is claim.__code__ for frame, _ in frames) and not any(inside)
    except CRASHES:
        return False
    return False


def noticed(number: int) -> list[str]:
    """The claims of a theorem that fail."""
    return [claim.__name__ for claim, drawn in test_theorems.CLAIMS[number] if notices(claim, drawn)]


def mutate(monkeypatch: pytest.MonkeyPatch, mask: type[Mask], visible: Visible) -> None:
    """Let a mask be another: its definition, and a plan row by row that agrees with it."""
    allowed = mask.allowed

    def mutated(self: Mask, n: int) -> Tensor:
        return visible(allowed(self, n))

    monkeypatch.setattr(mask, "allowed", mutated)
    monkeypatch.setattr(mask, "fused_plan", lambda self, n: row_by_row(mutated(self, n)))


def row_by_row(allowed: Tensor) -> tuple[FusedCall, ...]:
    """A call for every row, which must see keys without a gap."""
    calls = []
    for row, seen in enumerate(allowed):
        keys = seen.nonzero().flatten().tolist()
        if not keys or keys != list(range(keys[0], keys[-1] + 1)):
            raise LookupError(f"row {row} must see some keys without a gap, got {keys}")  # no claim's assertion
        calls.append(FusedCall((row, row + 1), (keys[0], keys[-1] + 1), "all"))
    return tuple(calls)


def without_diagonal(allowed: Tensor) -> Tensor:
    """Row i sees j < i for j <= i, or j > i for j >= i; those that see all, and a first or last row by itself, as before."""
    others = allowed & ~torch.eye(len(allowed), dtype=torch.bool)
    kept = allowed.sum(dim=1, keepdim=True) == 1
    prefix = (allowed & allowed.T).sum(dim=1, keepdim=True) > 1
    return torch.where(kept | prefix, allowed, others)


def one_ahead(allowed: Tensor) -> Tensor:
    """Row i sees j <= i + 1 for j <= i, or j >= i - 1 for j >= i."""
    upper = bool(allowed[0].all()) and not bool(allowed[-1].all())
    return allowed | torch.ones_like(allowed).triu(-1) if upper else allowed | torch.ones_like(allowed).tril(1)


NEED_THE_DIAGONAL = {
    1: "test_1_a_triangle_has_full_rank",
    2: "test_2_only_the_prefix_block_can_lose_rank",
    3: "test_3_lapack_sees_neither_the_determinant_nor_the_smallest_singular_value",
    4: "test_4_softmax_lifts_the_rank_of_logits_to_all",
    5: "test_5_softmax_has_off_diagonal_blocks_of_rank_half_of_n",
    6: "test_6_condition_numbers_are_those_of_the_table",
    8: "test_8_the_inverse_of_uniform_causal_attention_is_bidiagonal",
    11: "test_11_attention_to_oneself_is_the_identity",
}
"""By theorem: a claim that fails without the diagonal."""


@pytest.mark.parametrize("number", NEED_THE_DIAGONAL)
def test_masks_that_forget_the_diagonal_fail_every_theorem_about_masks(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mask in (Causal, Backward, Prefix):
        mutate(monkeypatch, mask, without_diagonal)
    assert NEED_THE_DIAGONAL[number] in noticed(number)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 11])
def test_masks_that_see_one_ahead_fail_the_theorems_of_triangles(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for mask in (Causal, Backward, Prefix):
        mutate(monkeypatch, mask, one_ahead)
    assert noticed(number)


@pytest.mark.parametrize(
    ("number", "claim"),
    [
        (1, "test_1_the_determinant_of_a_triangle_is_positive_and_comes_from_its_logits"),
        (2, "test_2_the_determinant_is_that_of_the_block_times_the_diagonal"),
        (3, "test_3_lapack_sees_neither_the_determinant_nor_the_smallest_singular_value"),
    ],
)
def test_a_plan_that_forgets_a_key_of_its_mask_fails_the_theorems_of_determinants(
    number: int, claim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last row does not see key 0: triangular as before, but not what the mask's definition says."""
    for mask in (Causal, Prefix):
        monkeypatch.setattr(mask, "fused_plan", forgetting_a_key(mask))
    assert claim in noticed(number)


def forgetting_a_key(mask: type[Mask]) -> Callable[[Mask, int], tuple[FusedCall, ...]]:
    def plan(self: Mask, n: int) -> tuple[FusedCall, ...]:
        allowed = mask.allowed(self, n).clone()
        allowed[-1, : min(1, n - 1)] = False
        return row_by_row(allowed)

    return plan


def test_every_theorem_has_claims_and_holds_before_it_is_broken() -> None:
    assert sorted(test_theorems.CLAIMS) == list(range(1, 12))
    for number in (1, 2, 4, 5, 7, 9, 10):  # the others, whole, take their time in their own tests
        assert not noticed(number)


def test_a_crash_or_an_assertion_of_the_package_is_not_a_claim_that_fails() -> None:
    def crash() -> None:
        raise ZeroDivisionError

    def claim() -> None:
        assert math.pi == 3

    def inside() -> None:
        exec(compile("assert False", str(PACKAGE / "masks.py"), "exec"))

    assert [notices(each, {}) for each in (crash, claim, inside)] == [False, True, False]


def test_a_prefix_whose_suffix_sees_the_future_fails_theorem_2(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, Prefix, torch.ones_like)
    assert "test_2_the_determinant_is_that_of_the_block_times_the_diagonal" in noticed(2)


@pytest.mark.parametrize(("error", "bound"), [(math.nan, 2e-3), (0.9e-3, 0.95e-3), (1e-8, 0.0)])
def test_a_determinant_that_is_never_known_or_is_off_fails_theorem_2(
    error: float, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vague(op: AttentionOperator) -> LogAbsDet:
        found = log_abs_det(op)
        return LogAbsDet(found.value + error, found.bound + bound)

    monkeypatch.setattr(test_theorems, "log_abs_det", vague)
    assert set(noticed(2)) >= {
        "test_2_the_determinant_is_that_of_the_block_times_the_diagonal",
        "test_2_the_determinant_is_known_to_twelve_digits_where_the_block_is_well_conditioned",
    }


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_of_blocks_that_is_zero_or_one_short_fails_theorem_5(lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = measures.off_diagonal_block_rank

    def short(matrix: Tensor, /, *, tolerance: float | None = None) -> Tensor:
        return (rank(matrix, tolerance=tolerance) - 1) * lost

    monkeypatch.setattr(measures, "off_diagonal_block_rank", short)
    assert set(noticed(5)) >= {
        "test_5_softmax_has_off_diagonal_blocks_of_rank_half_of_n",
        "test_5_float64_sees_off_diagonal_blocks_of_rank_half_of_n_where_they_are_well_conditioned",
    }


def test_a_smallest_value_by_lapack_fails_theorems_3_and_6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        test_theorems, "log10_smallest_singular_value", lambda matrix: torch.linalg.svdvals(matrix)[-1].log10()
    )
    assert "test_3_a_triangle_of_full_rank_has_a_smallest_value_far_below_what_an_svd_returns" in noticed(3)
    assert len(noticed(6)) == 2


def test_logits_with_a_bias_or_squared_fail_theorem_4(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = AttentionOperator.logits

    def biased(self: AttentionOperator, dtype: torch.dtype = torch.float64) -> Tensor:
        found = logits(self, dtype)
        return found - torch.arange(self.rows)[:, None].sub(torch.arange(self.columns)).abs()

    for mutated in (biased, lambda self, dtype=torch.float64: logits(self, dtype) ** 2):
        monkeypatch.setattr(AttentionOperator, "logits", mutated)
        assert noticed(4)


def test_rotations_that_do_not_turn_fail_theorem_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_theorems, "rotate", lambda x, cosine, sine: x)
    assert noticed(4)


def test_a_softmax_over_columns_fails_theorem_7(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transposed: columns sum to 1 and rows do not."""
    dense = AttentionOperator.dense

    def transposed(self: AttentionOperator, dtype: torch.dtype = torch.float64) -> Tensor:
        return dense(self, dtype).mT if self.rows == self.columns else dense(self, dtype)

    monkeypatch.setattr(AttentionOperator, "dense", transposed)
    assert "test_7_rows_of_a_matrix_of_attention_sum_to_one" in noticed(7)


def test_rows_that_leave_half_to_a_sink_fail_theorem_7(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = AttentionOperator.dense
    monkeypatch.setattr(AttentionOperator, "dense", lambda self, dtype=torch.float64: dense(self, dtype) / 2)
    assert len(noticed(7)) > 3


@pytest.mark.parametrize("name", ["stable_rank", "participation_ratio", "effective_rank_energy", "effective_rank"])
def test_a_measure_of_the_wrong_power_fails_theorem_9(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = getattr(measures, name)
    monkeypatch.setattr(measures, name, lambda sigma: measure(sigma**0.5))
    assert noticed(9)


def test_a_scale_that_is_not_the_logits_fails_theorem_8_and_11(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = AttentionOperator.logits
    monkeypatch.setattr(
        AttentionOperator,
        "logits",
        lambda self, dtype=torch.float64: logits(self, dtype) + torch.arange(self.columns, dtype=dtype) / 8,
    )
    assert noticed(8)
    monkeypatch.setattr(AttentionOperator, "logits", lambda self, dtype=torch.float64: logits(self, dtype) / 800)
    assert noticed(11)


def test_a_prefix_that_is_one_position_short_fails_theorem_10(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, plan = Prefix.allowed, Prefix.fused_plan
    monkeypatch.setattr(Prefix, "allowed", lambda self, n: allowed(Prefix(self.length - 1), n))
    monkeypatch.setattr(Prefix, "fused_plan", lambda self, n: plan(Prefix(self.length - 1), n))
    assert "test_10_without_positions_the_prefix_is_a_set" in noticed(10)


def test_a_causal_mask_that_sees_all_fails_the_other_half_of_theorem_10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Causal, "allowed", lambda self, n: torch.ones(n, n, dtype=torch.bool))
    monkeypatch.setattr(Causal, "fused_plan", lambda self, n: (FusedCall((0, n), (0, n), "all"),))
    assert noticed(10) == ["test_10_a_causal_model_knows_the_order_of_its_prefix_from_two_layers_on"]


def test_positions_that_are_forgotten_fail_the_last_part_of_theorem_10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "rotate", lambda x, *_: x)
    monkeypatch.setattr(transformer, "alibi", lambda *_, **__: None)
    assert noticed(10) == ["test_10_positions_tell_a_prefix_from_its_permutations"]
