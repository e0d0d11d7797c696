"""Spectra without the matrix: leading values with residuals, and a bracket for every measure of the rest.

Per matrix: one pass over its rows (`row_measures`), block Lanczos (`leading`), then probes until the bracket of the
effective rank is as narrow as asked (`quadrature`, `brackets`). Matrices are worked on one by one and meet the same
random vectors, so a result depends neither on the batch nor on the number of workers.
"""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch import Tensor

from rankkit.operators import AttentionOperator, DenseOperator, Operator
from rankkit.spectra.brackets import Bracket, Estimates
from rankkit.spectra.determinant import log_abs_det, moved_log_abs_det
from rankkit.spectra.exact import DEFAULT_MEMORY_BUDGET
from rankkit.spectra.floors import applied_floor, entry_error
from rankkit.spectra.leading import Leading, expected_passes, krylov_bytes, leading_triplets, squared_norm
from rankkit.spectra.measures import Measure, default_tolerance
from rankkit.spectra.quadrature import Probed, probe
from rankkit.spectra.result import METHODS, STATUSES, Spectrum
from rankkit.spectra.row_measures import ROW_MEASURES, row_measures
from rankkit.spectra.threads import one_thread
from rankkit_kernels.row_blocks import RUNS

if TYPE_CHECKING:
    from rankkit.spectra.measurement import MatrixFreeConfig

__all__ = ["expected_products", "matrix_free_spectrum", "memory_bytes"]

RESIDUAL: Final = 1e-6  # of leading values, relative to sigma_1
PROBES_DECIDE: Final = 0.1  # share of a bracket's width below which quadrature is not worth more steps
EXPECTED_STEPS: Final = 80  # 45 to 150 were needed for 2% at n = 1024, logit std 0.1 to 4
LEADING_SHARE: Final = 0.3  # of the work, for progress

Numbers: TypeAlias = dict[str, tuple[float, float]]
"""Two numbers by the name of a measure."""

_ESTIMATED: Final[Mapping[str, Callable[[Estimates], Bracket]]] = {
    "effective_rank": Estimates.effective_rank,
    "effective_rank_energy": Estimates.effective_rank_energy,
    "participation_ratio": Estimates.participation_ratio,
    "nuclear_norm": Estimates.nuclear_norm,
    "mass_at_quarter": Estimates.mass_at_quarter,
    **{f"energy_rank_{t}": partial(Estimates.share_rank, kind="energy", fraction=t / 100) for t in (90, 95, 99)},
    **{f"mass_rank_{t}": partial(Estimates.share_rank, kind="mass", fraction=t / 100) for t in (80, 90)},
}
_NORMS: Final[Mapping[str, Callable[[Estimates], Bracket]]] = {
    "frobenius_norm": Estimates.frobenius_norm,
    "stable_rank": Estimates.stable_rank,
}
"""Exact where ||A||_F is known."""
_FOUND: Final = ("spectral_norm", "spectral_ratio")

_REASONS: Final = {
    "decay_exponent": "it needs all singular values, and only the leading ones are known",
    "decay_exponent_standard_error": "it needs all singular values, and only the leading ones are known",
    "decay_exponent_r_squared": "it needs all singular values, and only the leading ones are known",
    "off_diagonal_block_rank": "it needs all singular values of blocks of the matrix",
    "log10_smallest_singular_value": "it needs the inverse of the matrix",
}
_NO_TRIANGLE: Final = (
    "it needs an LU factorisation of the full block; without the matrix only triangular masks have one"
)
_NO_ROWS: Final = "it needs the entries of the matrix, and a sum of operators gives products only"


def matrix_free_spectrum(
    operator: Operator,
    /,
    *,
    measures: Sequence[Measure],
    config: MatrixFreeConfig,
    precision: torch.dtype = torch.float32,
    rule: str = "asked for",
    workers: int | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    on_progress: Callable[[float], None] | None = None,
) -> Spectrum:
    """Measure every matrix of an operator from products alone.

    A measure is in `measures` of the result where it is known without the whole spectrum (norms, rows, the
    log-determinant under a triangular mask), in `brackets` where it is estimated, and in `unavailable` otherwise, for all
    matrices alike. A bracket whose ends are equal is exact: an energy rank that the leading values reach, say.

    Args:
        operator: any; what its measures rest on must hold for it.
        measures: what to compute.
        config: how far to go.
        precision: dtype in which the model applied its probabilities, for `floor_model` and errors.
        rule: why this method, in words; what ended the quadrature is added to it.
        workers: matrices worked on at a time, within the budget; the available cores if None. On CUDA one.
        memory_budget: bytes; at least one matrix is always worked on. See `memory_bytes`.
        on_progress: told the finished share, 0 to 1; by one thread at a time.

    Returns:
        The spectrum, with the operator's leading axes. `singular_values` are the leading ones and `floor_arithmetic` is
        the largest of their residuals. A matrix that is not finite has status `failed` and leaves the others alone.

    Raises:
        ConfigurationError: fewer probes or steps than `quadrature.probe` takes.
    """
    flat = operator.flattened()
    count = flat.batch_shape[0]
    plan = _plan(flat, measures, config, precision)
    progress = _Progress(count, on_progress)
    pooled = _pooled(flat, config, workers, memory_budget)

    def work(index: int) -> _Measured:
        return _measured(flat[index : index + 1], plan, partial(progress.tell, index))

    if pooled == 1:
        found = [work(index) for index in range(count)]
    else:
        with one_thread(), ThreadPoolExecutor(pooled, "matrix-free", torch.set_num_threads, (1,)) as pool:
            found = list(pool.map(work, range(count)))
    return _assembled(found, operator, plan, rule)


def expected_products(size: int, config: MatrixFreeConfig, /) -> dict[str, tuple[int, int]]:
    """What one matrix of so many singular values takes, for plans: passes over it, and vectors in each, by stage.

    A pass computes every visible entry of A once and costs, on one core in float64 with 64 features, about
    4.5 + 0.08 vectors ns per entry (`statistics`: 20 ns).
    """
    leading, block = expected_passes(config.leading)
    return {
        "statistics": (1, 0),
        "leading": (leading, block),
        "probes": (min(config.steps, EXPECTED_STEPS), config.probes_of(size)),
    }


def memory_bytes(rows: int, columns: int, config: MatrixFreeConfig, /) -> int:
    """Most memory that one matrix takes beyond what the operator holds: proportional to rows + columns."""
    sums = RUNS * columns  # of a product, each run of rows has its own
    count = config.probes_of(min(rows, columns))
    probes = count * (sums + 8 * (rows + columns))
    nodes = 4 * count * config.steps**2 + 10 * (count + 1) * (min(rows, columns) + 1)
    return krylov_bytes(rows, columns, config.leading, sums) + 8 * (probes + nodes)


# One matrix.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is done to every matrix."""

    config: MatrixFreeConfig
    precision: torch.dtype
    by_rows: tuple[Measure, ...]
    """Exact from the rows or the logits."""
    found: tuple[str, ...]
    """Exact from the leading values and ||A||_F."""
    estimated: Mapping[str, Callable[[Estimates], Bracket]]
    measures: Mapping[str, Measure]
    """Those that are had, by name."""
    unavailable: Mapping[str, str]


@dataclass(slots=True, kw_only=True)
class _Measured:
    """One matrix."""

    values: Tensor
    residual: float
    floor_model: float
    status: str
    exact: Numbers
    """Value and error."""
    brackets: Numbers
    """Lower and upper end."""
    ended: str = ""
    """What ended the quadrature."""


def _plan(flat: Operator, measures: Sequence[Measure], config: MatrixFreeConfig, precision: torch.dtype) -> _Plan:
    """Who computes what."""
    known = isinstance(flat, AttentionOperator | DenseOperator)  # their ||A||_F and rows
    estimated = dict(_ESTIMATED)
    tolerance = float(default_tolerance(flat.rows, flat.columns))
    estimated["numerical_rank"] = partial(Estimates.count_above, threshold=tolerance)
    estimated |= {} if known else _NORMS
    found = _FOUND + (tuple(_NORMS) if known else ())
    reasons = {measure.name: _reason(measure.name, flat, known) for measure in measures}
    had = {measure.name: measure for measure in measures if not reasons[measure.name]}
    rows = (*ROW_MEASURES, "log_abs_det", "log_abs_det_bound")
    assert had.keys() <= {*rows, *found, *estimated}, f"measures must have a way or a reason: {sorted(had)}"
    return _Plan(
        config=config,
        precision=precision,
        by_rows=tuple(measure for name, measure in had.items() if name in rows),
        found=tuple(name for name in had if name in found),
        estimated={name: estimated[name] for name in had if name in estimated},
        measures=had,
        unavailable={name: reason for name, reason in reasons.items() if reason},
    )


def _reason(name: str, flat: Operator, known: bool) -> str:
    """Why a measure cannot be had, or nothing."""
    if name.startswith("log_abs_det"):
        return "" if "triangular" in flat.structure else _NO_TRIANGLE
    if name in ROW_MEASURES:
        return "" if known else _NO_ROWS
    return _REASONS.get(name, "")


def _measured(one: Operator, plan: _Plan, tell: Callable[[float], None]) -> _Measured:
    energy = squared_norm(one)  # by all threads
    with one_thread():
        return _measured_beyond(one, energy, plan, tell)


def _measured_beyond(one: Operator, energy: Tensor | None, plan: _Plan, tell: Callable[[float], None]) -> _Measured:
    """What follows the pass over the rows."""
    leading = leading_triplets(
        one, max(2, plan.config.leading), tolerance=RESIDUAL, seed=plan.config.seed, vectors=True, energy=energy
    )  # two, for the spectral ratio
    tell(LEADING_SHARE)
    values = leading.values[0, : plan.config.leading]
    if bool(leading.failed[0]):
        tell(1.0)
        return _Measured(
            values=values, residual=math.nan, floor_model=math.nan, status="failed",
            exact=_nothing(plan.by_rows, plan.found), brackets=_nothing((), plan.estimated),
        )  # fmt: skip
    total = None if energy is None else float(energy)
    floor = float(applied_floor(one, largest=leading.values[:, 0], probabilities=plan.precision))
    result = _Measured(
        values=values,
        residual=float(leading.residuals[0, : plan.config.leading].max()),
        floor_model=floor,
        status="degenerate" if float(values[0]) == 0 or min(one.rows, one.columns) == 1 else "estimated",
        exact=_by_rows(one, plan) | _from_leading(one, leading, total, floor, plan),
        brackets={},
    )
    if float(values[0]) == 0:
        result.brackets = _of_zero(one, plan)
    elif plan.estimated:
        probed, result.ended = _probed(one, leading, total, plan.config, tell)
        result.ended += _doubts(leading)
        estimates = Estimates(probed)
        for name, estimate in plan.estimated.items():
            bracket = estimate(estimates)
            result.brackets[name] = (bracket.lower, bracket.upper)
    tell(1.0)
    return result


def _doubts(leading: Leading) -> str:
    """What the leading values leave open; a value between two of them may be missing below `Leading.missed_bound`."""
    doubts = "" if bool(leading.converged[0]) else ", leading values not to tolerance"
    return doubts + (", a larger value not excluded" if _excess(leading) > 0 else "")


def _excess(leading: Leading) -> float:
    """How far a singular value that was missed might exceed the largest one found."""
    return max(0.0, float(leading.missed_bound[0]) - float(leading.values[0, 0]))


def _nothing(measures: Sequence[Measure], names: Sequence[str] | Mapping[str, object]) -> Numbers:
    return dict.fromkeys((*(measure.name for measure in measures), *names), (math.nan, math.nan))


def _probed(
    one: Operator, leading: Leading, energy: float | None, config: MatrixFreeConfig, tell: Callable[[float], None]
) -> tuple[Probed, str]:
    """Probes of a finite matrix that is not zero, and why they stopped."""
    seen: Probed | None = None
    probes = config.probes_of(min(one.rows, one.columns))
    for seen in probe(one, leading, energy=energy, probes=probes, steps=config.steps, seed=config.seed):
        tell(LEADING_SHARE + (1 - LEADING_SHARE) * seen.steps / config.steps)
        bracket = Estimates(seen).effective_rank()
        if seen.closed:
            return seen, "closed spaces"
        if bracket.half_width <= config.half_width:
            return seen, "half-width"
        if bracket.quadrature <= PROBES_DECIDE * (bracket.upper - bracket.lower):
            return seen, "probes"
    assert seen is not None, "products of a matrix that was finite must stay finite"
    return seen, "steps"


def _by_rows(one: Operator, plan: _Plan) -> Numbers:
    """Measures of rows and logits, and the log-determinant."""
    if not plan.by_rows:
        return {}
    eta = entry_error(one, probabilities=plan.precision)
    if isinstance(one, AttentionOperator):
        first = one.mask.visible_positions(one.rows).start
        found = row_measures(one.row_statistics, eta.to(one.device), first=first)
        if any(measure.needs == "operator" for measure in plan.by_rows):
            value, bound = log_abs_det(one)
            found |= {
                "log_abs_det": (value, moved_log_abs_det(one, eta)),
                "log_abs_det_bound": (bound, torch.nan * eta),
            }
    else:
        assert isinstance(one, DenseOperator)
        given = (one.dense(), torch.ones(one.rows, one.columns, dtype=torch.bool, device=one.device))
        found = {m.name: (m.compute(*given), m.error(*given, eta.to(one.device))) for m in plan.by_rows}
    return {m.name: (float(found[m.name][0]), float(found[m.name][1])) for m in plan.by_rows}


def _from_leading(one: Operator, leading: Leading, energy: float | None, floor: float, plan: _Plan) -> Numbers:
    """Norms and ratios; each error is how far residuals and the model's own floor may move the measure together."""
    values = [*leading.values[0].tolist(), 0.0]
    first, second = values[0], values[1]
    errors = [residual + floor for residual in leading.residuals[0].tolist()] + [floor]
    found = {
        "spectral_norm": (first, errors[0] + _excess(leading)),
        "spectral_ratio": (math.inf if first > 0 else math.nan, math.nan),
    }
    if second > float(leading.residuals[0, 1:2].sum()):
        worst = (first + errors[0]) / (second - errors[1]) if second > errors[1] else math.inf
        found["spectral_ratio"] = (first / second, worst - first / second)
    if energy is not None:
        norm = math.sqrt(energy)
        moved = float(applied_floor(one, largest=torch.tensor([norm]), probabilities=plan.precision))
        found["frobenius_norm"] = (norm, moved)
        least, most = max(0.0, first - errors[0]), first + errors[0]
        rank = energy / first**2 if first > 0 else math.nan
        above = ((norm + moved) / least) ** 2 - rank if least > 0 else math.nan
        found["stable_rank"] = (
            rank,
            max(above, rank - (max(0.0, norm - moved) / most) ** 2) if first > 0 else math.nan,
        )
    return {name: found[name] for name in plan.found}


def _of_zero(one: Operator, plan: _Plan) -> Numbers:
    """What the exact measures say of the zero matrix."""
    zeros = torch.zeros(1, min(one.rows, one.columns), dtype=torch.float64)
    values = {name: float(plan.measures[name].compute(zeros, one.rows, one.columns)) for name in plan.estimated}
    return {name: (value, value) for name, value in values.items()}


# All matrices.


def _assembled(found: Sequence[_Measured], operator: Operator, plan: _Plan, rule: str) -> Spectrum:
    shape = operator.batch_shape

    def numbers(of: Callable[[_Measured], float]) -> Tensor:
        return torch.tensor([of(one) for one in found], dtype=torch.float64).reshape(shape)

    def codes(of: Callable[[_Measured], int]) -> Tensor:
        return torch.tensor([of(one) for one in found], dtype=torch.int8).reshape(shape)

    def pairs(name: str, of: Callable[[_Measured], Numbers]) -> tuple[Tensor, Tensor]:
        return numbers(lambda one: of(one)[name][0]), numbers(lambda one: of(one)[name][1])

    exact = {name: pairs(name, lambda one: one.exact) for name in plan.measures if name not in plan.estimated}
    components = min(plan.config.leading, operator.rows, operator.columns)
    values = torch.stack([one.values for one in found]) if found else torch.empty(0, dtype=torch.float64)
    return Spectrum(
        singular_values=values.reshape(*shape, components),
        floor_arithmetic=numbers(lambda one: one.residual),
        floor_model=numbers(lambda one: one.floor_model),
        method=codes(lambda one: METHODS.index("krylov")),
        status=codes(lambda one: STATUSES.index(one.status)),
        measures={name: value for name, (value, _) in exact.items()},
        errors={name: error for name, (_, error) in exact.items()},
        brackets={name: pairs(name, lambda one: one.brackets) for name in plan.estimated},
        unavailable=plan.unavailable,
        rule=_recorded(rule, found),
    )


def _recorded(rule: str, found: Sequence[_Measured]) -> str:
    """The rule, and what ended how many quadratures."""
    ended = Counter(one.ended for one in found if one.ended)
    if not ended:
        return rule
    return f"{rule}; probes ended by " + ", ".join(f"{reason} ({count})" for reason, count in sorted(ended.items()))


class _Progress:
    """The finished share of a batch, told by one thread at a time."""

    def __init__(self, count: int, listener: Callable[[float], None] | None) -> None:
        self._shares = [0.0] * count
        self._listener = listener
        self._lock = threading.Lock()

    def tell(self, index: int, share: float) -> None:
        with self._lock:
            self._shares[index] = share
            if self._listener is not None:
                self._listener(sum(self._shares) / len(self._shares))


def _pooled(flat: Operator, config: MatrixFreeConfig, workers: int | None, memory_budget: int) -> int:
    """How many matrices are worked on at a time; a single one has the kernel's threads for itself."""
    if flat.device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    affordable = memory_budget // memory_bytes(flat.rows, flat.columns, config)
    return max(1, min(workers or cores, flat.batch_shape[0], affordable))
