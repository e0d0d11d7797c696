"""`rankkit.spectrum`: any matrix measured, exactly where it can be formed, from products alone where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.masks import Padded
from rankkit.operators import AttentionOperator, DenseOperator, Operator, SumOperator
from rankkit.spectra.exact import DEFAULT_MEMORY_BUDGET, ExactMethod, copies, exact_spectrum
from rankkit.spectra.measures import DEFAULT_MEASURES, MEASURES, Measure
from rankkit.spectra.quadrature import FEWEST_PROBES
from rankkit.spectra.result import Spectrum

__all__ = [
    "MatrixFreeConfig",
    "MethodName",
    "check_measures",
    "chosen_method",
    "spectrum",
    "switched_off",
]

MethodName = Literal["auto", "exact", "gram", "svd", "matrix-free"]
_METHOD_NAMES: Final = ("auto", "exact", "gram", "svd", "matrix-free")

_REASONS: Final = {
    "attention": "it needs logits and a mask, and this matrix is not attention made from them",
    "rows_sum_to_one": "its definition needs rows that sum to 1, and these do not",
    "non_negative": "its definition needs entries of at least 0, and some are negative",
    "square": "it needs as many rows as columns",
    "triangular": "its theorem needs a triangular matrix",
}


_ALL_PROBES_UP_TO: Final = 4096  # singular values
_FEWEST_BY_SIZE: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixFreeConfig:
    """How far an estimate without the matrix goes."""

    leading: int = 32
    """Leading singular values, each with a certified residual."""
    probes: int = 32
    """Random vectors behind every estimate, of matrices up to 4096; larger ones take fewer (`probes_of`)."""
    steps: int = 240
    """Lanczos steps at most; the brackets narrow with them."""
    half_width: float = 0.05
    """Stop when the effective rank's bracket is this narrow, as a share of its middle."""
    seed: int = 0
    """Of the probes."""

    def __post_init__(self) -> None:
        for name, least in (("leading", 1), ("probes", FEWEST_PROBES), ("steps", 2)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} must be at least {least}, got {getattr(self, name)}. Raise it.")
        if not 0 < self.half_width < 1:
            raise ConfigurationError(f"half_width must be between 0 and 1, got {self.half_width}. Pass 0.05 for 5%.")

    def probes_of(self, size: int) -> int:
        """How many random vectors a matrix with so many singular values takes; their error is in the brackets.

        A sum over n values, seen by k probes, is off by a share that falls as 1 / sqrt(n k). Beyond 4096 values fewer
        probes keep the error that `probes` leave there, down to twelve: with fewer, the error's own estimate is coarse.
        """
        return min(self.probes, max(_FEWEST_BY_SIZE, -(-self.probes * _ALL_PROBES_UP_TO // max(1, size))))


def check_measures(names: Sequence[str]) -> tuple[Measure, ...]:
    """The measures of those names.

    Raises:
        ConfigurationError: an unknown name.
    """
    for name in names:
        if name not in MEASURES:
            raise ConfigurationError(f"measure must be one of {', '.join(MEASURES)}, got {name!r}. Choose one of them.")
    return tuple(MEASURES[name] for name in names)


def chosen_method(
    method: MethodName, rows: int, columns: int, memory_budget: int, measures: Sequence[str] = ()
) -> tuple[MethodName, str]:
    """The rule of `auto`: exact where one matrix and its working copies fit the memory budget, else without the matrix.

    Returns:
        `exact`, `gram`, `svd` or `matrix-free`, and the reason in words, which is recorded with the results.

    Raises:
        ConfigurationError: an unknown method.
    """
    if method not in _METHOD_NAMES:
        raise ConfigurationError(f"method must be one of {', '.join(_METHOD_NAMES)}, got {method!r}. Choose one.")
    if method != "auto":
        return method, "asked for"
    needed = copies(measures) * rows * columns * 8
    size, budget = (f"{count / 2**20:.3g}" for count in (needed, memory_budget))
    rule = f"auto: a {rows} x {columns} matrix with its working copies takes {size} MiB of {budget}"
    return ("exact" if needed <= memory_budget else "matrix-free"), rule


def spectrum(
    matrix: Operator | Tensor,
    /,
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
    method: MethodName = "auto",
    matrix_free: MatrixFreeConfig | None = None,
    precision: torch.dtype = torch.float32,
    workers: int | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    on_progress: Callable[[float], None] | None = None,
) -> Spectrum:
    """Measure every matrix of an operator, or any tensor "... row column".

    Args:
        matrix: an operator (attention, a sum of operators) or a tensor.
        measures: names from `MEASURES`. One that rests on something which does not hold here (rows that sum to 1, a
            mask, a triangle) is switched off and named in `Spectrum.unavailable`.
        method: `exact` (`gram`, and `svd` where a measure needs what gram cannot resolve), `gram` or `svd` alone,
            `matrix-free` (leading values and brackets, from products in O(n) memory), or `auto` (see `chosen_method`).
        matrix_free: how far an estimate goes.
        precision: dtype in which a model applied its attention, for `floor_model`.
        workers: threads, or matrices estimated at a time; the available cores by default. Results do not depend on it.
        memory_budget: bytes for dense matrices, or for estimates, at any time; one matrix at least is always worked on.
        on_progress: told the finished share of an estimate, 0 to 1.

    Returns:
        The spectrum, with the operator's leading axes. A matrix that cannot be measured has status `failed` and leaves
        the others alone.

    Raises:
        ConfigurationError: an unknown measure or method.
    """
    operator = _marked(matrix if isinstance(matrix, Operator) else DenseOperator(matrix=matrix))
    chosen = check_measures(measures)
    usable, unavailable = switched_off(chosen, operator.structure)
    found, rule = chosen_method(method, operator.rows, operator.columns, memory_budget, measures)
    if found == "matrix-free":
        from rankkit.spectra.matrix_free import matrix_free_spectrum

        estimated = matrix_free_spectrum(
            operator, measures=usable, config=matrix_free or MatrixFreeConfig(), precision=precision, rule=rule,
            workers=workers, memory_budget=memory_budget, on_progress=on_progress,
        )  # fmt: skip
        return replace(estimated, unavailable={**unavailable, **estimated.unavailable})
    exact = exact_spectrum(
        operator, measures=usable, method=cast(ExactMethod, found), precision=precision, workers=workers,
        memory_budget=memory_budget, rule=rule,
    )  # fmt: skip
    return replace(exact, unavailable=unavailable)


def _marked(operator: Operator) -> Operator:
    """The same matrices, those that hold something that is not finite nan throughout.

    Beside an infinite entry may stand others that measures refuse, because a batch has the structure of its finite matrices
    alone; an infinite factor leaves no bound of what rounding did. Padding may hold anything.
    """
    if isinstance(operator, SumOperator):
        return replace(operator, terms=tuple((weight, _marked(term)) for weight, term in operator.terms))
    if isinstance(operator, DenseOperator):
        broken = ~_is_finite(operator.matrix)
        return replace(operator, matrix=_as_nan(operator.matrix, broken)) if bool(broken.any()) else operator
    if not isinstance(operator, AttentionOperator):
        return operator
    query, key = _without_padding(operator)
    broken = ~(_is_finite(query) & _is_finite(key) & _is_sound(operator))
    return replace(operator, query=_as_nan(query, broken) if bool(broken.any()) else query, key=key)


def _without_padding(operator: AttentionOperator) -> tuple[Tensor, Tensor]:
    """Query and key with zeros for padding."""
    if not isinstance(operator.mask, Padded):
        return operator.query, operator.key
    inside = operator.mask.visible_positions(operator.rows)
    padding = (0, 0, inside.start, operator.rows - inside.stop)
    query, key = (
        F.pad(factor[..., inside.start : inside.stop, :], padding) for factor in (operator.query, operator.key)
    )
    return query, key


def _is_sound(operator: AttentionOperator) -> Tensor:
    """Whether no bias between positions, nor a sink, is nan or +inf; -inf is a key that is hidden, or no sink: "..."."""
    positions, scores = operator.mask.visible_positions(operator.rows), operator.scores
    if isinstance(operator.mask, Padded):
        inside = (positions.start, positions.stop)
        scores = scores.within(inside, inside, operator.rows)
    sound = torch.ones(operator.batch_shape, dtype=torch.bool, device=operator.device)
    if scores.sink is not None:
        sound = scores.sink < torch.inf  # nan is not
    if scores.bias is not None:
        sound = sound & (scores.bias.values < torch.inf).flatten(-scores.bias.axes).all(dim=-1)
    return sound


def _is_finite(matrices: Tensor) -> Tensor:
    """Of each matrix "... row column": "..."."""
    return matrices.isfinite().all(dim=-1).all(dim=-1)


def _as_nan(matrices: Tensor, chosen: Tensor) -> Tensor:
    return matrices.masked_fill(rearrange(chosen, "... -> ... 1 1"), torch.nan)


def switched_off(measures: Sequence[Measure], structure: Collection[str]) -> tuple[tuple[Measure, ...], dict[str, str]]:
    """Which measures hold for matrices of that structure, and why the others do not.

    Args:
        measures: that were asked for.
        structure: of the operator, as `Operator.structure`.

    Returns:
        The measures that can be computed, and a reason by name for each of the rest.
    """
    missing = {measure.name: sorted(measure.requires - set(structure)) for measure in measures}
    reasons = {name: "; ".join(_REASONS[part] for part in parts) for name, parts in missing.items() if parts}
    return tuple(measure for measure in measures if not missing[measure.name]), reasons
