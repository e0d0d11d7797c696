"""Attention as a linear map by blocks of rows, in plain torch: A X, A^T Y, A^T A X, and what each row holds.

    A = softmax(scale Q K^T, masked)

or of other logits made from these, and with a sink (`scores`), in place of the block's products.

One block of rows of A exists at a time, only over the columns that it sees, so memory is O(n). A row is complete within
its block, so nothing has to be known beforehand, and A^T A X = sum over blocks of A_B^T (A_B X) takes one pass in which
every entry is computed once. The plans of `attention` serve here too: a block is a `FusedCall` of fewer rows.

Probes are kept as rows: a sum "probe key" over blocks takes half the time of one "key probe" (64 probes, float64, one
core, ns per entry of A: logits 2.5, softmax 1.4, A_B X 3.2, A_B^T Y 2.6 against 5.6).

Blocks are shared out in runs that depend on the plan alone. One thread computes a run, and runs are summed in their
order, so the bits of a result depend neither on the number of threads nor on the other matrices of the batch. The pool
has as many threads as torch has, and while it works torch is set to one; whoever has a pool of their own sets torch to
one thread first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from rankkit_kernels.plans import FusedCall, Plan, check_plan
from rankkit_kernels.scores import Scores, softmax_with_sink

__all__ = ["RowStatistics", "adjoint_product", "gram_product", "product", "row_statistics"]

CPU_BLOCK_ROWS: Final = 96
"""Fastest of 32, 64, 96 and 128 at n = 1024 to 8192, by 3 to 20%; the block of n = 16384 takes 12.6 MB in float64."""
CUDA_BLOCK_ROWS: Final = 1024  # enough to fill a device at n = 1024; chosen, not measured
RUN_PAIRS: Final = 1 << 20  # entries of A in a run at least: about 10 ms of one core
RUNS: Final = 8  # of one matrix at most: each has a sum "probe key" of its own; 8 or 1 take the same time on one core
ALIGNMENT: Final = 64  # bytes; BLAS may round differently in memory that lies otherwise
NEGLIGIBLE: Final = -746.0  # exp of it is 0 in float64 and float32, and unlike that of -inf its product with 0 is 0

_THREADS_LOCK = threading.Lock()  # torch's number of threads belongs to the process: one pool at a time changes it

Run: TypeAlias = tuple[FusedCall, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowStatistics:
    """What one pass over the rows of A = softmax(s, masked) gives, in the dtype of its factors unless said.

    A row whose visible logits are all -inf is a row of zeros; a visible logit of nan or +inf makes its row nan. A sink is no
    visible key: it is in `log_sum_exp` and in the denominator of every entry, and everything else is of entries as they are.
    """

    log_sum_exp: Tensor
    """"... query": log of the sum over visible keys, and the sink, of exp(s_ij); -inf for a row of zeros without a sink."""
    column_sums: Tensor
    """"... key": sum_i A_ij, in [0, number of queries]."""
    entropy: Tensor
    """"... query": -sum_j A_ij log A_ij over visible keys, nats, in [0, log visible]; 0 for a row of zeros. With a sink,
    whose own term is left out, A_ij sum to less than 1; it is then at most visible / e for one or two visible keys."""
    squared_norm: Tensor
    """"...": sum_ij A_ij^2, the squared Frobenius norm."""
    visible: Tensor
    """"query", int64: how many keys the mask lets a row see."""
    diagonal: Tensor
    """"... query": A_ii; nan where A is not square."""
    previous: Tensor
    """"... query": A_{i,i-1}; nan in row 0, and where A is not square."""
    diagonal_logit: Tensor
    """"... query": s_ii, so that log A_ii = s_ii - log_sum_exp; -inf where row i does not see itself, nan where A is not
    square."""
    logit_squares: Tensor
    """"... query": sum over visible keys of (s_ij - their mean)^2; nan where a visible logit is infinite."""


def product(query: Tensor, key: Tensor, x: Tensor, plan: Plan, *, scale: float, scores: Scores | None = None) -> Tensor:
    """A X.

    Args:
        query: "... query feature", float64 or float32; one matrix for each entry of the leading axes.
        key: "... key feature"; leading axes, dtype and device as the query's.
        x: "... key probe", likewise.
        plan: calls whose rows are 0..query in order, without gap or overlap.
        scale: of the products of queries and keys.
        scores: a soft cap, a bias, a sink; leading axes broadcast to the query's. None where there is none.

    Returns:
        "... query probe", without gradients, in memory probe by probe: passed on as it is, it need not be transposed
        again. A row whose visible logits are all -inf gives zeros; other logits that are not finite give nan in their
        own matrix alone.

    Raises:
        TypeError: a dtype other than float64 and float32, or several.
        ValueError: shapes, devices, the scores or the plan do not fit.
    """
    found, _ = _multiply(query, key, x, plan, scale, scores, forward=True, adjoint=False)
    return found


def adjoint_product(
    query: Tensor, key: Tensor, y: Tensor, plan: Plan, *, scale: float, scores: Scores | None = None
) -> Tensor:
    """A^T Y, by the plan of A.

    Args:
        query: as for `product`.
        key: as for `product`.
        y: "... query probe".
        plan: as for `product`.
        scale: as for `product`.
        scores: as for `product`.

    Returns:
        "... key probe", as from `product`; zeros for a key that nobody sees.

    Raises:
        TypeError: as `product`.
        ValueError: as `product`.
    """
    _, found = _multiply(query, key, y, plan, scale, scores, forward=False, adjoint=True)
    return found


def gram_product(
    query: Tensor, key: Tensor, x: Tensor, plan: Plan, *, scale: float, scores: Scores | None = None
) -> tuple[Tensor, Tensor]:
    """A X and A^T A X in one pass.

    Args:
        query: as for `product`.
        key: as for `product`.
        x: "... key probe".
        plan: as for `product`.
        scale: as for `product`.
        scores: as for `product`.

    Returns:
        A X, "... query probe", and A^T A X, "... key probe": to the last bit what `product`, and `adjoint_product` of
        it, give.

    Raises:
        TypeError: as `product`.
        ValueError: as `product`.
    """
    return _multiply(query, key, x, plan, scale, scores, forward=True, adjoint=True)


def row_statistics(
    query: Tensor, key: Tensor, plan: Plan, *, scale: float, scores: Scores | None = None
) -> RowStatistics:
    """Sums, entropies and norms of the rows of A in one pass.

    With t_ij = s_ij - max_k s_ik and z_i = sum of exp(t_ij) but for the largest, the entropy is
    log1p(z_i) - sum_j t_ij exp(t_ij) / (1 + z_i). Its terms are all at least 0, so nothing cancels, and a row that is almost
    one-hot keeps its digits, where in -sum p log p the largest p is rounded to 1. The squares of logits are
    summed around the row's own mean.

    Args:
        query: as for `product`; float64 where more than six digits matter.
        key: as for `product`.
        plan: as for `product`.
        scale: as for `product`.
        scores: as for `product`.

    Returns:
        The statistics, with the leading axes of the factors.

    Raises:
        TypeError: as `product`.
        ValueError: as `product`.
    """
    _check(query, key, plan)
    matrices = _Matrices(query, key, scale, scores)
    count, rows, columns = len(matrices.query), query.shape[-2], key.shape[-2]
    found = {name: query.new_full((count, rows), torch.nan) for name in _ROW_NUMBERS}
    sums = query.new_zeros(count, columns + 1)  # of the columns, and in the last place of all squares

    def measure(index: int, run: Run) -> Tensor:
        numbers = {name: values[index] for name, values in found.items()}
        return _measure(matrices[index], run, numbers)

    _sum_runs(measure, plan, sums)
    shape = query.shape[:-2]
    return RowStatistics(
        column_sums=sums[:, :columns].reshape(*shape, columns),
        squared_norm=sums[:, columns].reshape(shape),
        visible=torch.cat([_visible(call) for call in plan]).to(query.device),
        **{name: values.reshape(*shape, rows) for name, values in found.items()},
    )


def _check(query: Tensor, key: Tensor, plan: Plan, probes: Tensor | None = None, *, forward: bool = True) -> None:
    """Factors that fit each other and the plan, and probes that fit A, or A^T if not `forward`."""
    tensors = [query, key] if probes is None else [query, key, probes]
    if query.dtype not in (torch.float64, torch.float32) or any(tensor.dtype != query.dtype for tensor in tensors):
        raise TypeError(
            f"query, key and probes must all be float64 or all float32, got {[tensor.dtype for tensor in tensors]}. "
            "Convert them to one of the two."
        )
    fits = min(query.dim(), key.dim()) >= 2 and all(tensor.device == query.device for tensor in tensors)
    fits = fits and query.shape[:-2] == key.shape[:-2] and query.shape[-1] == key.shape[-1]
    if fits and probes is not None:
        fits = probes.shape[:-1] == (key if forward else query).shape[:-1]
    if not fits:
        raise ValueError(
            "query, key and probes must be (..., query, feature), (..., key, feature) and, for A, (..., key, probe), for "
            f"its transpose (..., query, probe), on one device, got {[tuple(tensor.shape) for tensor in tensors]} on "
            f"{[str(tensor.device) for tensor in tensors]}. Expand the leading axes; cut the probes to the positions."
        )
    check_plan(plan, query.shape[-2], key.shape[-2])


# Products.


def _multiply(
    query: Tensor, key: Tensor, probes: Tensor, plan: Plan, scale: float, scores: Scores | None,
    *, forward: bool, adjoint: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A X if `forward`, and A^T of it, or of the probes themselves, if `adjoint`; what is not asked for is empty."""
    _check(query, key, plan, probes, forward=forward)
    matrices, given = _Matrices(query, key, scale, scores), _flat(probes).mT.contiguous()
    count, width, rows, columns = len(given), given.shape[1], query.shape[-2], key.shape[-2]
    mixed = query.new_empty(count, width if forward else 0, rows)
    sums = query.new_zeros(count, width if adjoint else 0, columns)

    def sweep(index: int, run: Run) -> Tensor:
        target = mixed[index] if forward else None
        return _sweep(matrices[index], _alone(given[index]), run, target, sums.shape[1])

    _sum_runs(sweep, plan, sums)
    shape = query.shape[:-2]
    return mixed.mT.reshape(*shape, rows, mixed.shape[1]), sums.mT.reshape(*shape, columns, sums.shape[1])


class _Attention(NamedTuple):
    """One matrix, not formed."""

    query: Tensor
    """"query feature"."""
    key: Tensor
    """"key feature"."""
    scale: float
    """Of their products."""
    scores: Scores | None
    """What else there is."""


class _Matrices:
    """All of them, along one leading axis and without gradients."""

    def __init__(self, query: Tensor, key: Tensor, scale: float, scores: Scores | None) -> None:
        self.query, self.key = _flat(query), _flat(key)
        self._scale, self._leading = scale, query.shape[:-2]
        self._scores = scores.expanded(self._leading, query.shape[-2], key.shape[-2]) if scores else None

    def __getitem__(self, index: int) -> _Attention:
        scores = self._scores
        if scores is not None:
            for place in np.unravel_index(index, self._leading):  # a dense bias that broadcasts is not copied
                scores = scores[int(place)]
        return _Attention(_alone(self.query[index]), _alone(self.key[index]), self._scale, scores)


def _flat(factor: Tensor) -> Tensor:
    return rearrange(factor.detach(), "... position feature -> (...) position feature")


def _alone(matrix: Tensor) -> Tensor:
    """A matrix in rows and in memory as if it had been allocated alone, copied only where it is not."""
    if matrix.is_contiguous() and matrix.data_ptr() % ALIGNMENT == 0:
        return matrix
    return matrix.clone(memory_format=torch.contiguous_format)


def _sweep(matrix: _Attention, given: Tensor, run: Run, mixed: Tensor | None, width: int) -> Tensor:
    """What the rows of a run give: X^T A^T in `mixed` "probe query", and a sum "probe key" of `width` probes returned."""
    total = given.new_zeros(width, len(matrix.key))
    sink = None if matrix.scores is None else matrix.scores.sink
    for block, logits in _logit_blocks(matrix, run):
        attention = _softmax(logits, block, sink)
        columns = slice(*block.columns)
        rows = slice(*block.rows)
        if mixed is None:
            seen = given[:, rows]
        else:
            seen = given[:, columns] @ attention.mT
            mixed[:, rows] = seen
        if width:
            total[:, columns].addmm_(seen, attention)
    return total


def _logit_blocks(matrix: _Attention, run: Run) -> Iterator[tuple[FusedCall, Tensor]]:
    """Each block with its logits "row column" before the mask, in memory that the next one takes over."""
    query, key, scale, scores = matrix
    memory = query.new_empty(max(_pairs(block) for block in run))
    for block in run:
        rows, columns = query[slice(*block.rows)], key[slice(*block.columns)]
        logits = memory[: _pairs(block)].view(len(rows), len(columns))
        torch.addmm(logits, rows, columns.mT, beta=0, alpha=scale, out=logits)
        yield block, logits if scores is None else scores.apply_(logits, block.rows, block.columns, len(query))


def _hide(entries: Tensor, block: FusedCall, value: float) -> None:
    """Write a value wherever a row of the block does not see a column: in a triangle beside its diagonal, or in two."""
    if block.sees == "all":
        return
    if block.sees == "band":
        _hide_beside_band(entries, block, value)
        return
    rows = len(entries)
    square = torch.ones(rows, rows, dtype=torch.bool, device=entries.device)
    if block.sees == "past":
        entries[:, -rows:].masked_fill_(square.triu_(1), value)
    else:
        entries[:, :rows].masked_fill_(square.tril_(-1), value)


def _hide_beside_band(entries: Tensor, block: FusedCall, value: float) -> None:
    """Hide what lies too far behind, lower left, and too far ahead, upper right."""
    rows, place = len(entries), block.rows[0] - block.columns[0]  # of the first row's own column
    early, late = entries[:, :rows], entries[:, place + block.ahead + 1 :]
    ones = torch.ones(rows, rows, dtype=torch.bool, device=entries.device)
    early.masked_fill_(ones[:, : early.shape[1]].tril(place - block.behind - 1), value)
    late.masked_fill_(ones[:, : late.shape[1]].triu(), value)


def _softmax(logits: Tensor, block: FusedCall, sink: Tensor | None) -> Tensor:
    """Rows of A, in place of their logits; zeros where all visible logits are -inf."""
    _hide(logits, block, -torch.inf)
    if sink is not None:
        return softmax_with_sink(logits, sink)
    blind = logits.amax(dim=-1, keepdim=True) == -torch.inf
    attention = torch.softmax(logits, dim=-1, out=logits)
    return attention.masked_fill_(blind, 0.0) if bool(blind.any()) else attention


# Statistics.

_ROW_NUMBERS: Final = ("log_sum_exp", "entropy", "diagonal", "previous", "diagonal_logit", "logit_squares")


def _measure(matrix: _Attention, run: Run, numbers: dict[str, Tensor]) -> Tensor:
    """Fill in the numbers of a run's rows; returns what they add to the column sums and to the sum of squares."""
    query, key = matrix.query, matrix.key
    total = query.new_zeros(len(key) + 1)
    spare = query.new_empty(max(_pairs(block) for block in run))
    sink = None if matrix.scores is None else matrix.scores.sink
    for block, logits in _logit_blocks(matrix, run):
        rows = slice(*block.rows)
        memory = spare[: _pairs(block)].view_as(logits)
        numbers["logit_squares"][rows] = _logit_squares(logits, block, memory)
        _hide(logits, block, -torch.inf)
        if len(query) == len(key):
            numbers["diagonal_logit"][rows] = _diagonal(logits, block, 0, -torch.inf)
        targets = numbers["log_sum_exp"][rows], numbers["entropy"][rows]
        if sink is None:
            weights, normalizer = _exponentials(logits, *targets, memory)
        else:
            weights, normalizer = _exponentials_with_sink(logits, sink.to(logits), *targets, memory)
        if len(query) == len(key):
            numbers["diagonal"][rows] = _diagonal(weights, block, 0, 0.0) / normalizer
            numbers["previous"][rows] = _diagonal(weights, block, 1, 0.0) / normalizer
        total[slice(*block.columns)] += weights.mT @ normalizer.reciprocal()
        total[-1] += (torch.linalg.vector_norm(weights, dim=-1) / normalizer).square().sum()
    if run[0].rows[0] == 0:
        numbers["previous"][0] = torch.nan
    return total


def _logit_squares(logits: Tensor, block: FusedCall, memory: Tensor) -> Tensor:
    """Squares around the mean of what a row sees; overwrites the logits that it does not see, and `memory`."""
    _hide(logits, block, 0.0)
    mean = logits.sum(dim=-1) / _visible(block).to(logits)
    centred = torch.sub(logits, rearrange(mean, "row -> row 1"), out=memory)
    _hide(centred, block, 0.0)
    norms: Tensor = torch.linalg.vector_norm(centred, dim=-1)
    return norms.square()


def _exponentials(logits: Tensor, log_sum_exp: Tensor, entropy: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """exp(s_ij - max) in `memory` and its row sums, inf for a row of zeros; overwrites the logits, fills in the others."""
    largest, place = logits.max(dim=-1, keepdim=True)
    largest = largest.masked_fill(largest == torch.inf, torch.nan)
    blind = largest == -torch.inf
    logits.sub_(largest.masked_fill(blind, 0.0))
    weights = torch.exp(logits, out=memory).scatter_(1, place, 0.0)
    others = weights.sum(dim=-1)
    normalizer = (1 + others).masked_fill_(blind[:, 0], torch.inf)
    log_sum_exp.copy_(largest[:, 0] + others.log1p())
    entropy.copy_(others.log1p() - logits.clamp_(min=NEGLIGIBLE).mul_(weights).sum(dim=-1) / normalizer)
    return weights.scatter_(1, place, 1.0), normalizer


def _exponentials_with_sink(
    logits: Tensor, sink: Tensor, log_sum_exp: Tensor, entropy: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with a sink z among what is summed: exp(s_ij - max) with max over keys and sink.

    With W the sum over visible keys and Z = W + exp(z - max), their entropy is (W log Z - sum_j t_j exp(t_j)) / Z.
    """
    greatest, place = logits.max(dim=-1, keepdim=True)
    largest = torch.maximum(greatest, sink)
    largest = largest.masked_fill(largest == torch.inf, torch.nan)
    blind = largest == -torch.inf
    shift = largest.masked_fill(blind, 0.0)
    logits.sub_(shift)
    first, drain = (greatest - shift).exp_()[:, 0], (sink - shift).exp_()[:, 0]  # one of them is 1, but in a blind row
    weights = torch.exp(logits, out=memory).scatter_(1, place, 0.0)
    seen = weights.sum(dim=-1)
    others = seen + torch.minimum(first, drain)
    normalizer = (1 + others).masked_fill_(blind[:, 0], torch.inf)
    log_sum_exp.copy_(largest[:, 0] + others.log1p())
    weights.scatter_(1, place, first[:, None])
    spread = logits.clamp_(min=NEGLIGIBLE).mul_(weights).sum(dim=-1)
    entropy.copy_(((seen + first) * others.log1p() - spread) / normalizer)
    return weights, normalizer


def _diagonal(entries: Tensor, block: FusedCall, behind: int, unseen: float) -> Tensor:
    """Entry (i, i - behind) for every row i of the block."""
    found = entries.new_full((len(entries),), unseen)
    offset = block.rows[0] - behind - block.columns[0]
    inside = entries.diagonal(offset)
    first = max(0, -offset)
    found[first : first + len(inside)] = inside
    return found


# Which rows, and who computes them.


def _runs(plan: Plan, device: torch.device) -> list[Run]:
    """Blocks of rows in consecutive runs of about equal work; they depend on the plan and the kind of device alone."""
    size = CPU_BLOCK_ROWS if device.type == "cpu" else CUDA_BLOCK_ROWS
    blocks = [block for call in plan for block in call.blocks(size)]
    target = max(RUN_PAIRS, sum(map(_pairs, blocks)) / RUNS)
    runs: list[list[FusedCall]] = [[]]
    filled = 0
    for block in blocks:
        if filled >= target:
            runs.append([])
            filled = 0
        runs[-1].append(block)
        filled += _pairs(block)
    return [tuple(run) for run in runs]


def _pairs(block: FusedCall) -> int:
    return (block.rows[1] - block.rows[0]) * (block.columns[1] - block.columns[0])


def _visible(call: FusedCall) -> Tensor:
    """How many columns each row sees, "row", int64."""
    positions = torch.arange(*call.rows)
    first, last = (torch.full_like(positions, column) for column in call.columns)
    if call.sees == "band":
        first = torch.maximum(first, positions - call.behind)
        last = torch.minimum(last, positions + call.ahead + 1)
    elif call.sees == "future":
        first = positions
    elif call.sees == "past":
        last = positions + 1
    return last - first


def _sum_runs(work: Callable[[int, Run], Tensor], plan: Plan, sums: Tensor) -> None:
    """sums[matrix] += work(matrix, run) for all runs of the plan in their order; on the CPU each by one of a pool."""
    runs = _runs(plan, sums.device)
    tasks = [(index, run) for index in range(len(sums)) for run in runs]
    inference = torch.is_inference_mode_enabled()  # known to the calling thread only

    def part(task: tuple[int, Run]) -> Tensor:
        with torch.inference_mode(inference):
            return work(*task)

    # OpenMP's number of threads belongs to each thread that asks: every worker sets its own.
    one = (torch.set_num_threads, (1,))
    with (
        _one_torch_thread(sums.device) as threads,
        ThreadPoolExecutor(max(1, min(threads, len(tasks))), "row-blocks", *one) as pool,
    ):
        parts = map(part, tasks) if min(threads, len(tasks)) <= 1 else pool.map(part, tasks)
        for (index, _), found in zip(tasks, parts, strict=True):
            sums[index] += found


@contextmanager
def _one_torch_thread(device: torch.device) -> Iterator[int]:
    """On the CPU, torch set to one thread; yields how many threads may work instead."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        yield 1
        return
    with _THREADS_LOCK:
        torch.set_num_threads(1)
        try:
            yield threads
        finally:
            torch.set_num_threads(threads)
