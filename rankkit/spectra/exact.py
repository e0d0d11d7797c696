"""Exact spectra: every singular value of every matrix, with both noise floors, within a memory budget.

The matrix is formed in float64: attention from the captured Q and K. `exact` computes by `gram`, and again by `svd` where
gram leaves values unresolved that a requested measure must tell from noise; what was used is kept per matrix.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
from torch import Tensor

from rankkit.masks import Padded
from rankkit.operators import AttentionOperator, Operator, masked_softmax
from rankkit.spectra.floors import applied_floor, arithmetic_floor, entry_error, resolved
from rankkit.spectra.measures import Measure
from rankkit.spectra.result import METHODS, STATUSES, Spectrum
from rankkit.spectra.row_measures import ROW_MEASURES, row_measures
from rankkit_kernels.row_blocks import RowStatistics
from rankkit_kernels.singular_values import Method, singular_values

__all__ = ["COPIES", "DEFAULT_MEMORY_BUDGET", "ExactMethod", "copies", "exact_spectrum"]

DEFAULT_MEMORY_BUDGET: Final = 512 << 20  # bytes of dense matrices and their temporaries at any time

COPIES: Final = 6
"""Float64 copies of a matrix alive at once: logits, attention, a measure's temporaries, its Gram matrix."""
_MORE_COPIES: Final = {"log10_smallest_singular_value": 12, "off_diagonal_block_rank": 12}
"""Where a measure takes more: an inverse, blocks of the matrix."""
_CACHED_BYTES: Final = 4 << 20
"""Of one dense array per chunk: it stays in the cache, and a chunk of small matrices still takes 20 ms."""

ExactMethod = Literal["exact", "gram", "svd"]

_BY_ROWS: Final = frozenset(ROW_MEASURES) - {"rank_one_residual"}
"""Taken from sums over rows, once for all of them; the distance of nearly equal rows would cancel in such sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is done to every chunk."""

    measures: tuple[Measure, ...]
    method: ExactMethod
    precision: torch.dtype
    workers: int | None
    rule: str


def exact_spectrum(
    operator: Operator,
    /,
    *,
    measures: Sequence[Measure],
    method: ExactMethod,
    precision: torch.dtype,
    workers: int | None,
    memory_budget: int,
    rule: str,
) -> Spectrum:
    """Measure every matrix of an operator exactly.

    Args:
        operator: any; what its measures rest on must hold for it.
        measures: what to compute.
        method: `gram`, `svd`, or `exact` for the choice between them (see the module docstring).
        precision: dtype in which the model applied its probabilities, for `floor_model`.
        workers: threads for the singular values; the available cores for None. Results do not depend on it.
        memory_budget: bytes for dense matrices at any time; at least one matrix is always worked on.
        rule: why this method, in words.

    Returns:
        The spectrum, with the operator's leading axes.
    """
    flat = operator.flattened()
    count, matrix = flat.batch_shape[0], flat.rows * flat.columns * 8  # bytes
    pooled = (workers or _cores()) if flat.device.type == "cpu" else 1
    fitting = memory_budget // (copies([measure.name for measure in measures]) * matrix)
    chunk = max(1, min(fitting // pooled, max(1, _CACHED_BYTES // matrix)))
    pooled = max(1, min(pooled, fitting))
    work = _Work(
        measures=tuple(measures), method=method, precision=precision, workers=workers if pooled == 1 else 1, rule=rule
    )
    found = _unfilled(count, min(flat.rows, flat.columns), work)

    def measure(start: int) -> None:
        rows = slice(start, start + chunk)
        for whole, values in zip(_tensors(found), _tensors(_chunk(flat[rows], work)), strict=True):
            whole[rows] = values

    # OpenMP's number of threads belongs to each thread that asks: every worker sets its own.
    with _one_torch_thread(), ThreadPoolExecutor(pooled, "spectrum", torch.set_num_threads, (1,)) as pool:
        for _ in pool.map(measure, range(0, count, chunk)):
            pass
    return _shaped(found, operator.batch_shape)


def copies(measures: Sequence[str]) -> int:
    """Float64 copies of a matrix that are alive at once while these measures are computed."""
    return max([COPIES, *(_MORE_COPIES.get(name, COPIES) for name in measures)])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """One thread for each torch operation: the pool keeps every core busy, and sums differ between thread counts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chunk(part: Operator, work: _Work) -> Spectrum:
    """One chunk "matrix row column"."""
    found = _Found(entry_error(part, probabilities=work.precision))
    for measure in work.measures:
        if measure.needs == "operator":
            found.add(measure, part)
    matrix = _formed(part, work.measures, found)
    values, used, failed = _values(matrix, work)
    rows, columns = matrix.shape[-2:]
    del matrix
    largest = values[..., 0]
    floors = torch.stack([arithmetic_floor(name, rows, columns, largest) for name in ("gram", "svd")])
    arithmetic = floors.gather(0, used.long()[None])[0]
    model = applied_floor(part, largest=largest, probabilities=work.precision)
    for measure in work.measures:
        if measure.needs == "singular_values":
            found.add(measure, values, rows, columns, arithmetic, moved_by=arithmetic + model)
    return Spectrum(
        singular_values=values,
        floor_arithmetic=arithmetic,
        floor_model=model,
        method=used,
        status=_statuses(values, failed),
        measures={measure.name: found.values[measure.name].where(~failed, torch.nan) for measure in work.measures},
        errors={measure.name: found.errors[measure.name].where(~failed, torch.nan) for measure in work.measures},
        rule=work.rule,
    )


class _Found:
    """Measures of one chunk and their errors, on the CPU.

    Args:
        eta: "matrix", the relative error of every entry that the model applied.
    """

    def __init__(self, eta: Tensor) -> None:
        self.eta = eta
        self.values: dict[str, Tensor] = {}
        self.errors: dict[str, Tensor] = {}

    def add(self, measure: Measure, *given: Any, moved_by: Tensor | None = None) -> None:
        """Compute a measure from what it needs, and how far it can be off."""
        self.values[measure.name] = measure.compute(*given).cpu()
        eta = self.eta.to(given[0].device) if moved_by is None else moved_by
        error = measure.error(*given, eta).cpu()
        self.errors[measure.name] = error.where(self.values[measure.name].isfinite(), torch.nan)

    def take(self, measured: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Values and errors of rows, by name."""
        for name, (value, error) in measured.items():
            if name in _BY_ROWS:
                self.values[name], self.errors[name] = value.cpu(), error.cpu().where(value.isfinite().cpu(), torch.nan)


def _formed(part: Operator, measures: Sequence[Measure], found: _Found) -> Tensor:
    """Matrices "matrix row column" in float64; measures of logits and of rows go into `found`."""
    if isinstance(part, AttentionOperator):
        allowed, logits = part.allowed(), _logits(part)
        squares = _logit_squares(logits, allowed) if any(measure.needs == "logits" for measure in measures) else None
        matrix = masked_softmax(logits, allowed, part.sink)
        if "rows_sum_to_one" in part.structure:
            _assert_rows_sum_to_one(matrix)
        if any(measure.name in _BY_ROWS for measure in measures):
            first, statistics = _row_statistics(part, matrix, squares)
            found.take(row_measures(statistics, found.eta.to(matrix.device), first=first))
    else:
        matrix = torch.empty(*part.batch_shape, part.rows, part.columns, dtype=torch.float64, device=part.device)
        allowed = torch.ones(part.rows, part.columns, dtype=torch.bool, device=part.device)
        for index in range(len(matrix)):  # each by itself, so that its bits do not depend on its neighbours
            matrix[index] = part[index : index + 1].dense()[0]
    for measure in measures:
        if measure.needs == "attention" and measure.name not in found.values:
            found.add(measure, matrix, allowed)
    return matrix


def _logit_squares(logits: Tensor, allowed: Tensor) -> Tensor:
    """Sum over visible keys of squared row-centred logits, "matrix query"."""
    hidden = ~allowed
    centred = logits.masked_fill(hidden, 0.0)
    centred -= centred.sum(dim=-1, keepdim=True) / allowed.sum(dim=-1, keepdim=True).clamp(min=1)
    norms: Tensor = torch.linalg.vector_norm(centred.masked_fill_(hidden, 0.0), dim=-1)
    return norms.square()


def _row_statistics(part: AttentionOperator, matrix: Tensor, logit_squares: Tensor | None) -> tuple[int, RowStatistics]:
    """What `AttentionOperator.row_statistics` gives, from the matrix; of log-sum-exps only whether there is one.

    Before them how much padding stands before the positions that they are of.
    """
    attention, allowed = matrix, part.allowed()
    inside = part.mask.visible_positions(part.rows)
    if isinstance(part.mask, Padded):
        taking_part = slice(inside.start, inside.stop)
        attention, allowed = matrix[..., taking_part, taking_part], allowed[taking_part, taking_part]
        logit_squares = None if logit_squares is None else logit_squares[..., taking_part]
    sums = attention.sum(dim=-1)
    unknown = torch.full_like(sums, torch.nan)
    square = attention.shape[-2] == attention.shape[-1]
    previous = unknown.clone()
    if square:
        previous[..., 1:] = attention.diagonal(offset=-1, dim1=-2, dim2=-1)
    return inside.start, RowStatistics(
        log_sum_exp=unknown.where(sums != 0, -torch.inf),
        column_sums=attention.sum(dim=-2),
        entropy=torch.special.entr(attention).sum(dim=-1),
        squared_norm=attention.square().sum(dim=(-2, -1)),
        visible=allowed.sum(dim=-1),
        diagonal=attention.diagonal(dim1=-2, dim2=-1) if square else unknown,
        previous=previous,
        diagonal_logit=unknown,
        logit_squares=unknown if logit_squares is None else logit_squares,
    )


def _assert_rows_sum_to_one(attention: Tensor) -> None:
    """Masking after the softmax, or a wrong mask, would show; empty rows and rows that are not finite are known."""
    sums = attention.sum(dim=-1)
    error = (sums - 1).abs().where(sums.isfinite() & (sums != 0), 0.0).max()
    assert float(error) <= 1e-12, f"rows must sum to 1, off by {float(error)}"  # n roundings of 1e-16 at n = 4096


def _logits(part: AttentionOperator) -> Tensor:
    """What enters the softmax, "matrix query key", in float64, each by itself from memory of its own.

    The last bits of a product depend on its place in a batch and in memory, and a Gram matrix magnifies them.
    """
    logits = torch.empty(*part.batch_shape, part.rows, part.columns, dtype=torch.float64, device=part.device)
    for index, product in enumerate(logits):
        query, key = (factor[index].to(torch.float64, copy=True) for factor in (part.query, part.key))
        scores = part.scores[index]
        product[:] = replace(part, query=query, key=key, bias=scores.bias, sink=scores.sink).logits()
    return logits


def _values(matrix: Tensor, work: _Work) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values "matrix component", the method of each, and which failed."""
    first: Method = "svd" if work.method == "svd" else "gram"
    result = singular_values(matrix, method=first, workers=work.workers)
    values, failed = result.values, result.failed
    used = torch.full(failed.shape, METHODS.index(first), dtype=torch.int8)
    if work.method == "exact":
        again = _needs_svd(values, work.measures, *matrix.shape[-2:]) | failed
        if bool(again.any()):
            result = singular_values(matrix[again.to(matrix.device)], method="svd", workers=work.workers)
            values[again], failed[again], used[again] = result.values, result.failed, METHODS.index("svd")
    return values, used, failed


def _needs_svd(values: Tensor, measures: Sequence[Measure], rows: int, columns: int) -> Tensor:
    """Matrices with values under gram's floor, where a measure has to tell some of those from noise."""
    floor = arithmetic_floor("gram", rows, columns, values[..., 0])
    unresolved = resolved(values, floor) < min(rows, columns)
    thresholds = [float(m.relative_threshold(rows, columns)) for m in measures if m.relative_threshold is not None]
    if not thresholds:
        return torch.zeros_like(unresolved)
    return unresolved & (min(thresholds) * values[..., 0] < floor)


def _statuses(values: Tensor, failed: Tensor) -> Tensor:
    """`degenerate` where nothing can be said of a distribution of singular values: the zero matrix, or only one value."""
    degenerate = (values[..., 0] == 0) | (values.shape[-1] == 1)
    codes = torch.where(degenerate, STATUSES.index("degenerate"), STATUSES.index("ok"))
    return torch.where(failed, STATUSES.index("failed"), codes).to(torch.int8)


def _unfilled(count: int, components: int, work: _Work) -> Spectrum:
    """A spectrum of `count` matrices to be filled in: small results kept between large temporaries would pin them all."""
    names = [measure.name for measure in work.measures]
    numbers = torch.empty(2 + 2 * len(names), count, dtype=torch.float64)
    return Spectrum(
        singular_values=torch.empty(count, components, dtype=torch.float64),
        floor_arithmetic=numbers[0],
        floor_model=numbers[1],
        method=torch.empty(count, dtype=torch.int8),
        status=torch.empty(count, dtype=torch.int8),
        measures=dict(zip(names, numbers[2:], strict=False)),
        errors=dict(zip(names, numbers[2 + len(names) :], strict=True)),
        rule=work.rule,
    )


def _tensors(found: Spectrum) -> list[Tensor]:
    every = (found.singular_values, found.floor_arithmetic, found.floor_model, found.method, found.status)
    return [*every, *found.measures.values(), *found.errors.values()]


def _shaped(found: Spectrum, shape: tuple[int, ...]) -> Spectrum:
    """Leading axes back from "matrix"."""

    def shaped(tensor: Tensor) -> Tensor:
        return tensor.reshape((*shape, *tensor.shape[1:]))  # a matrix alone has no leading axes

    return Spectrum(
        singular_values=shaped(found.singular_values),
        floor_arithmetic=shaped(found.floor_arithmetic),
        floor_model=shaped(found.floor_model),
        method=shaped(found.method),
        status=shaped(found.status),
        measures={name: shaped(values) for name, values in found.measures.items()},
        errors={name: shaped(values) for name, values in found.errors.items()},
        rule=found.rule,
    )
