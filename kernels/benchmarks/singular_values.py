"""Singular values of attention matrices: rankkit_kernels against batched torch.linalg.svdvals in float32.

Run as `python kernels/benchmarks/singular_values.py` (about three minutes on two cores; `--quick` for small sizes, a few
seconds, without targets). Both sides get the same float32 tensor and every core: torch by its own threads, the kernel
by its pool. Rounds rotate who goes first, and a ratio is taken within a round, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rankkit_kernels.singular_values import Method, singular_values

Matrix = NDArray[np.float64]

ROUNDS = 7
HEAD_DIM = 64
RANDOM_LOGIT_ERROR = 1e-8  # of sigma_1: what Gram must reach on matrices like those of a model


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One shape, and how many times faster than torch each method must be."""

    count: int
    """Matrices in the batch."""
    size: int
    """Queries and keys."""
    targets: dict[Method, float]
    """Least median ratio; a method without one is only reported."""


CASES = (
    Case(count=144, size=512, targets={"gram": 2.0}),
    Case(count=36, size=1024, targets={"gram": 2.5}),
)
QUICK_CASES = (Case(count=96, size=128, targets={}), Case(count=24, size=256, targets={}))


def softmax(logits: Matrix, visible: NDArray[np.bool_]) -> Matrix:
    shifted = np.where(visible, logits, -np.inf)
    weights = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    probabilities: Matrix = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities


def masks(size: int) -> dict[str, NDArray[np.bool_]]:
    query, key = np.arange(size)[:, None], np.arange(size)[None, :]
    return {"causal": key <= query, "prefix": (key < size // 2) | (key <= query)}


def random_logits(size: int, std: float, seed: int) -> Matrix:
    random = np.random.default_rng(seed)
    queries, keys = (random.normal(size=(size, HEAD_DIM)) * np.sqrt(std) for _ in range(2))
    logits: Matrix = queries @ keys.T / np.sqrt(HEAD_DIM)
    return logits


def batch(case: Case) -> torch.Tensor:
    """Half causal, half prefix attention, float32."""
    visible = list(masks(case.size).values())
    matrices = [softmax(random_logits(case.size, 1.0, seed), visible[seed % 2]) for seed in range(case.count)]
    return torch.from_numpy(np.stack(matrices).astype(np.float32))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds of `torch`, `gram` and `svd` in every round; the order rotates from round to round."""
    matrices = batch(case)
    contestants: dict[str, Callable[[], object]] = {
        "torch": lambda: torch.linalg.svdvals(matrices),
        "gram": lambda: singular_values(matrices, method="gram"),
        "svd": lambda: singular_values(matrices, method="svd"),
    }
    names = list(contestants)
    taken: dict[str, list[float]] = {name: [] for name in names}
    singular_values(matrices[:4], method="gram"), torch.linalg.svdvals(matrices[:4])  # libraries wake up untimed
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            taken[name].append(seconds(contestants[name]))
    return taken


def zoo(size: int) -> Iterator[tuple[str, Matrix]]:
    """Random-logit matrices, then those whose small singular values are hardest."""
    for kind, visible in masks(size).items():
        for std in (0.3, 1.0, 2.0):
            yield f"random {kind}", softmax(random_logits(size, std, seed=int(10 * std)), visible)
    for kind, visible in {**masks(size), "bidirectional": np.ones((size, size), dtype=bool)}.items():
        yield f"uniform {kind}", softmax(np.zeros((size, size)), visible)
        for position in (0, size // 3):
            logits = random_logits(size, 1.0, seed=3)
            logits[:, position] += 8
            yield f"sink {kind}", softmax(logits, visible)
    random = np.random.default_rng(4)
    yield "rank one", np.outer(random.random(size), random.random(size))


def worst_errors(size: int, method: Method) -> dict[str, float]:
    """Largest error against float64 SVD for each kind of matrix, in units of sigma_1."""
    worst: dict[str, float] = {}
    for name, matrix in zoo(size):
        exact = np.linalg.svd(matrix, compute_uv=False)
        found = singular_values(matrix, method=method).values.numpy()
        worst[name] = max(worst.get(name, 0.0), float(np.abs(found - exact).max() / exact[0]))
    return worst


def met(value: bool | None) -> str:
    return {True: "yes", False: "NO", None: "-"}[value]


def print_speed(cases: tuple[Case, ...], rounds: int) -> None:
    print(
        f"{'shape':>16} {'method':>6} {'torch ms':>9} {'kernel ms':>9} {'ratio min/median/max':>22} {'target':>7} met"
    )
    methods: tuple[Method, ...] = ("gram", "svd")
    for case in cases:
        taken = alternate(case, rounds)
        for method in methods:
            torch_ms, kernel_ms = (1e3 * statistics.median(taken[name]) / case.count for name in ("torch", method))
            ratios = sorted(theirs / ours for theirs, ours in zip(taken["torch"], taken[method], strict=True))
            median, target = statistics.median(ratios), case.targets.get(method)
            spread = f"{ratios[0]:.2f} / {median:.2f} / {ratios[-1]:.2f}"
            verdict = met(None if target is None else median >= target)
            print(
                f"{f'{case.count}x{case.size}x{case.size}':>16} {method:>6} {torch_ms:9.2f} {kernel_ms:9.2f} "
                f"{spread:>22} {target or '-':>7} {verdict}",
                flush=True,
            )


def print_errors(sizes: list[int]) -> None:
    print(f"\n{'size':>6} {'method':>6} {'matrix':>22} {'worst error / sigma_1':>22} {'must be below':>14} met")
    for size in sizes:
        for name, error in worst_errors(size, "gram").items():
            limit = RANDOM_LOGIT_ERROR if name.startswith("random") else float(np.sqrt(size * 2.0**-52))
            print(f"{size:>6} {'gram':>6} {name:>22} {error:22.1e} {limit:14.1e} {met(error < limit)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, three rounds, no targets")
    quick = parser.parse_args().quick
    chosen = QUICK_CASES if quick else CASES
    print(
        f"torch {torch.__version__} ({torch.get_num_threads()} threads), numpy {np.__version__}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; milliseconds per matrix\n"
    )
    print_speed(chosen, 3 if quick else ROUNDS)
    print_errors([case.size for case in chosen])
