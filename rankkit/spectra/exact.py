"""Exact spectra: every singular value of every matrix, with both noise floors, within a memory budget.

The matrix is formed in float64 from the captured Q and K. `auto` computes by `gram`, and again by `svd` where gram leaves
values unresolved that a requested measure must tell from noise; what was used is kept per matrix.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal

import torch
from einops import rearrange
from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.operators import AttentionOperator
from rankkit.spectra.floors import arithmetic_floor, model_floor, resolved
from rankkit.spectra.measures import DEFAULT_MEASURES, MEASURES, Measure
from rankkit_kernels.singular_values import Method, singular_values

__all__ = ["DEFAULT_MEMORY_BUDGET", "Spectrum", "check_measures", "spectrum"]

DEFAULT_MEMORY_BUDGET: Final = 512 << 20  # bytes of dense matrices and their temporaries at any time
_COPIES: Final = 6
"""Float64 copies of a matrix alive at once: logits, attention, a measure\'s temporaries, its Gram matrix."""
_CACHED_BYTES: Final = 4 << 20
"""Of one dense array per chunk: it stays in the cache, and a chunk of small matrices still takes 20 ms."""

METHODS: Final[tuple[Method, ...]] = ("gram", "svd")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum:
    """Singular values of a batch of attention matrices, their floors, and their measures.

    Measures are attributes too: `spectrum.effective_rank` is `spectrum.measures["effective_rank"]`.
    """

    singular_values: Tensor
    """"... component", float64, descending; nan throughout a matrix that failed."""
    floor_arithmetic: Tensor
    """"...", what the method may have moved a value by."""
    floor_model: Tensor
    """"...", what the model's own arithmetic may have moved a value by."""
    method: Tensor
    """"...", int8, index into `METHODS`."""
    failed: Tensor
    """"...", bool: not finite, or LAPACK did not converge."""
    measures: Mapping[str, Tensor]
    """"..." by name, float64."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.measures[name]
        except KeyError:
            raise AttributeError(
                f"a measure must have been asked for, got {name!r}. Measured: {', '.join(self.measures)}."
            ) from None

    @property
    def floor(self) -> Tensor:
        """The larger of the two floors, "..."; a value below it is unresolved."""
        return torch.maximum(self.floor_arithmetic, self.floor_model)

    @property
    def resolved(self) -> Tensor:
        """Values above the arithmetic floor, "..."."""
        return resolved(self.singular_values, self.floor_arithmetic)

    @property
    def resolved_model(self) -> Tensor:
        """Values above the model floor, "..."."""
        return resolved(self.singular_values, self.floor_model)


def check_measures(names: Sequence[str]) -> tuple[Measure, ...]:
    """The measures of those names.

    Raises:
        ConfigurationError: an unknown name.
    """
    for name in names:
        if name not in MEASURES:
            raise ConfigurationError(f"measure must be one of {', '.join(MEASURES)}, got {name!r}. Choose one of them.")
    return tuple(MEASURES[name] for name in names)


def spectrum(
    operator: AttentionOperator,
    /,
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
    method: Literal["auto", "gram", "svd"] = "auto",
    precision: torch.dtype = torch.float32,
    workers: int | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Spectrum:
    """Measure every matrix of an operator exactly.

    Args:
        operator: "... query feature"; any leading axes.
        measures: names from `MEASURES`.
        method: `gram`, `svd`, or `auto` (see the module docstring).
        precision: dtype in which the model applied its probabilities, for `floor_model`.
        workers: threads for the singular values; the available cores by default. Results do not depend on it.
        memory_budget: bytes for dense matrices at any time; at least one matrix is always worked on.

    Returns:
        The spectrum, with the operator's leading axes.

    Raises:
        ConfigurationError: an unknown measure or method.
    """
    chosen = check_measures(measures)
    if method not in ("auto", *METHODS):
        raise ConfigurationError(f"method must be auto, gram or svd, got {method!r}. Choose one of them.")
    n = operator.size
    pooled = (workers or _cores()) if operator.query.device.type == "cpu" else 1
    matrix = n * n * 8  # bytes
    chunk = max(1, min(memory_budget // (_COPIES * matrix * pooled), max(1, _CACHED_BYTES // matrix)))
    pooled = max(1, min(pooled, memory_budget // (_COPIES * matrix)))
    query = rearrange(operator.query, "... query feature -> (...) query feature")
    key = rearrange(operator.key, "... key feature -> (...) key feature")
    found = _unfilled(len(query), n, chosen)

    def measure(start: int) -> None:
        rows = slice(start, start + chunk)
        part = _chunk(operator, query[rows], key[rows], chosen, method, precision, workers if pooled == 1 else 1)
        for whole, values in zip(_tensors(found), _tensors(part), strict=True):
            whole[rows] = values

    with _one_torch_thread(), ThreadPoolExecutor(pooled, "spectrum") as pool:
        for _ in pool.map(measure, range(0, len(query), chunk)):
            pass
    return _shaped(found, operator.batch_shape)


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


def _chunk(
    operator: AttentionOperator,
    query: Tensor,
    key: Tensor,
    measures: Sequence[Measure],
    method: Literal["auto", "gram", "svd"],
    precision: torch.dtype,
    workers: int | None,
) -> Spectrum:
    """One chunk "matrix query key"."""
    part = AttentionOperator(query=query, key=key, mask=operator.mask, scale=operator.scale)
    n, allowed, logits = part.size, part.allowed(), _logits(part)
    found = {measure.name: measure.compute(logits, allowed).cpu() for measure in measures if measure.needs == "logits"}
    attention = torch.softmax(logits.masked_fill_(~allowed, -torch.inf), dim=-1)
    del logits
    _assert_rows_sum_to_one(attention)
    for measure in measures:
        if measure.needs == "attention":
            found[measure.name] = measure.compute(attention, allowed).cpu()
    values, used, failed = _values(attention, measures, method, workers)
    for measure in measures:
        if measure.needs == "singular_values":
            found[measure.name] = measure.compute(values, n, n)
    largest = values[..., 0]
    floors = torch.stack([arithmetic_floor(name, n, n, largest) for name in METHODS])
    return Spectrum(
        singular_values=values,
        floor_arithmetic=floors.gather(0, used.long()[None])[0],
        floor_model=model_floor(query.cpu(), key.cpu(), scale=operator.scale, largest=largest, probabilities=precision),
        method=used,
        failed=failed,
        measures={measure.name: found[measure.name] for measure in measures},
    )


def _assert_rows_sum_to_one(attention: Tensor) -> None:
    """Masking after the softmax, or a wrong mask, would show here; rows that are not finite are flagged elsewhere."""
    sums = attention.sum(dim=-1)
    error = (sums - 1).abs().where(sums.isfinite(), 0.0).max()
    assert float(error) <= 1e-12, f"rows must sum to 1, off by {float(error)}"  # n roundings of 1e-16 at n = 4096


def _logits(part: AttentionOperator) -> Tensor:
    """Scaled products "matrix query key" in float64, each by itself from memory of its own.

    The last bits of a product depend on its place in a batch and in memory, and a Gram matrix magnifies them.
    """
    logits = torch.empty(*part.batch_shape, part.size, part.size, dtype=torch.float64, device=part.query.device)
    for product, query, key in zip(logits, part.query, part.key, strict=True):
        product[:] = AttentionOperator(
            query=query.to(torch.float64, copy=True),
            key=key.to(torch.float64, copy=True),
            mask=part.mask,
            scale=part.scale,
        ).logits()
    return logits


def _values(
    attention: Tensor, measures: Sequence[Measure], method: Literal["auto", "gram", "svd"], workers: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values "matrix component", the method of each, and which failed."""
    n = attention.shape[-1]
    first: Method = "svd" if method == "svd" else "gram"
    result = singular_values(attention, method=first, workers=workers)
    values, failed = result.values, result.failed
    used = torch.full(failed.shape, METHODS.index(first), dtype=torch.int8)
    if method == "auto":
        again = _needs_svd(values, measures, n) | failed
        if bool(again.any()):
            result = singular_values(attention[again.to(attention.device)], method="svd", workers=workers)
            values[again], failed[again], used[again] = result.values, result.failed, METHODS.index("svd")
    return values, used, failed


def _needs_svd(values: Tensor, measures: Sequence[Measure], n: int) -> Tensor:
    """Matrices with values under gram's floor, where a measure has to tell some of those from noise."""
    floor = arithmetic_floor("gram", n, n, values[..., 0])
    unresolved = resolved(values, floor) < n
    thresholds = [float(m.relative_threshold(n, n)) for m in measures if m.relative_threshold is not None]
    if not thresholds:
        return torch.zeros_like(unresolved)
    return unresolved & (min(thresholds) * values[..., 0] < floor)


def _unfilled(count: int, n: int, measures: Sequence[Measure]) -> Spectrum:
    """A spectrum of `count` matrices to be filled in: small results kept between large temporaries would pin them all."""
    numbers = torch.empty(2 + len(measures), count, dtype=torch.float64)
    return Spectrum(
        singular_values=torch.empty(count, n, dtype=torch.float64),
        floor_arithmetic=numbers[0],
        floor_model=numbers[1],
        method=torch.empty(count, dtype=torch.int8),
        failed=torch.empty(count, dtype=torch.bool),
        measures={measure.name: values for measure, values in zip(measures, numbers[2:], strict=True)},
    )


def _tensors(found: Spectrum) -> list[Tensor]:
    every = (found.singular_values, found.floor_arithmetic, found.floor_model, found.method, found.failed)
    return [*every, *found.measures.values()]


def _shaped(found: Spectrum, shape: tuple[int, ...]) -> Spectrum:
    """Leading axes back from "matrix"."""

    def shaped(tensor: Tensor) -> Tensor:
        return tensor.reshape((*shape, *tensor.shape[1:]))  # a matrix alone has no leading axes

    return Spectrum(
        singular_values=shaped(found.singular_values),
        floor_arithmetic=shaped(found.floor_arithmetic),
        floor_model=shaped(found.floor_model),
        method=shaped(found.method),
        failed=shaped(found.failed),
        measures={name: shaped(values) for name, values in found.measures.items()},
    )
