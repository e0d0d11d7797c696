"""Spectra without the matrix: what they cost, against SciPy and the exact method, and whether their brackets cover.

    matrix_free.py                      time and memory for n = 1024, 2048, 4096, and where the exact method crosses
    matrix_free.py --sizes 8192 16384   the same for other sizes, without the exact method from 8192 on
    matrix_free.py --svds               leading 32 of n = 4096 against SciPy's svds (ARPACK)
    matrix_free.py --calibration 200    coverage of the 95% brackets over so many trials (--sizes 1024 2048)

One head, random Q and K with the given logit std (`--std 1 0.3`), head dimension 64, masks causal and prefix n/2. Each
measurement runs in a process of its own, whose memory is its peak above that with torch and rankkit loaded.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from rankkit.masks import Bidirectional, Causal, Mask, Prefix
from rankkit.operators import AttentionOperator
from rankkit.spectra import DEFAULT_MEASURES, MEASURES, MatrixFreeConfig, spectrum
from rankkit.spectra.leading import leading_triplets
from rankkit_kernels.singular_values import singular_values

HEAD_DIM = 64
EXACT_UP_TO = 4096  # the matrix takes 128 MiB there, and its eigenvalues some minutes
MEASURED = tuple(dict.fromkeys((*DEFAULT_MEASURES, "nuclear_norm", "effective_rank_energy", "mass_at_quarter")))
TARGETS = "at n = 16384, std 1: half-width at most 6%, at most 20 minutes, at most 1024 MiB"


def attention(size: int, mask: Mask, std: float, seed: int = 0) -> AttentionOperator:
    """One head whose logits have the given standard deviation."""
    random = np.random.default_rng(seed)
    query, key = (torch.from_numpy(random.normal(size=(1, size, HEAD_DIM)) * std**0.5) for _ in range(2))
    return AttentionOperator(query=query, key=key, mask=mask, scale=HEAD_DIM**-0.5)


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one spectrum took."""

    seconds: float
    processor_seconds: float
    mebibytes: float
    note: str


def measured(size: int, mask: Mask, std: float, method: Any, threads: int, config: MatrixFreeConfig) -> Cost:
    """In a process of its own."""
    torch.set_num_threads(threads)
    spectrum(attention(64, Causal(), 1.0), method=method)  # libraries wake up untimed
    operator, before = attention(size, mask, std), peak_bytes()
    wall, processor = perf_counter(), process_time()
    found = spectrum(operator, method=method, matrix_free=config, measures=MEASURED, memory_budget=1 << 40)
    wall, processor = perf_counter() - wall, process_time() - processor
    note = f"{float(found.measures['effective_rank']):.1f}" if method == "exact" else bracket_note(found)
    return Cost(seconds=wall, processor_seconds=processor, mebibytes=(peak_bytes() - before) / 2**20, note=note)


def bracket_note(found: Any) -> str:
    lower, upper = (float(end) for end in found.brackets["effective_rank"])
    residual = float(found.floor_arithmetic / found.singular_values[0, 0])
    return (
        f"{lower:.1f} .. {upper:.1f} (+-{100 * (upper - lower) / (upper + lower):.1f}%), "
        f"{found.rule.split('; ')[-1]}, residual {residual:.0e}"
    )


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def print_costs(sizes: list[int], deviations: list[float], threads: int, config: MatrixFreeConfig) -> None:
    print(f"{'n':>6} {'mask':>14} {'std':>4} {'method':>11} {'seconds':>8} {'CPU s':>8} {'MiB':>6}  effective rank")
    for size in sizes:
        for std in deviations:
            for mask in (Causal(), Prefix(size // 2)):
                methods = ["matrix-free", "exact"] if size <= EXACT_UP_TO else ["matrix-free"]
                for method in methods:
                    cost: Cost = alone(measured, size, mask, std, method, threads, config)
                    print(
                        f"{size:>6} {type(mask).__name__:>14} {std:>4} {method:>11} {cost.seconds:8.2f} "
                        f"{cost.processor_seconds:8.2f} {cost.mebibytes:6.0f}  {cost.note}",
                        flush=True,
                    )
    print(f"targets: {TARGETS}")


def against_svds(size: int, count: int = 32) -> None:
    """CPU seconds of both on one thread, and errors against the dense matrix in float64."""
    from scipy.sparse.linalg import svds

    torch.set_num_threads(1)
    for mask in (Causal(), Prefix(size // 2)):
        operator = attention(size, mask, 1.0)
        exact = singular_values(operator.dense()[0], method="gram", workers=1).values[:count].numpy()
        started = process_time()
        found = leading_triplets(operator, count, tolerance=1e-6)
        ours = process_time() - started
        started = process_time()
        arpack = np.sort(
            svds(operator.as_linear_operator(), count, tol=1e-6, return_singular_vectors=False, random_state=0)
        )[::-1]
        theirs = process_time() - started
        errors = [float(np.abs(values - exact).max() / exact[0]) for values in (found.values[0].numpy(), arpack)]
        residual = float(found.residuals.max() / found.values[0, 0])
        print(
            f"leading {count} of n = {size}, {type(mask).__name__}: {ours:.1f} CPU s ({int(found.passes)} passes, error "
            f"{errors[0]:.0e} sigma_1, residual {residual:.0e}); svds {theirs:.1f} CPU s (error {errors[1]:.0e}); ratio "
            f"{theirs / ours:.1f}, target at least 5: {'met' if theirs >= 5 * ours else 'NOT MET'}",
            flush=True,
        )


Trial = tuple[dict[str, tuple[float, float, float]], str]


def trial(size: int, seed: int, std: float | None, config: MatrixFreeConfig) -> Trial:
    """Bracket and exact value of every estimated measure."""
    torch.set_num_threads(1)
    random = np.random.default_rng(seed)
    deviation = float(0.1 * 40 ** random.random()) if std is None else std  # 0.1 to 4, evenly in the logarithm
    mask = (Causal(), Prefix(size // 2), Bidirectional())[seed % 3]
    operator = attention(size, mask, deviation, seed)
    seeded = MatrixFreeConfig(
        leading=config.leading, probes=config.probes, steps=config.steps, half_width=config.half_width, seed=seed
    )
    found = spectrum(operator, method="matrix-free", matrix_free=seeded, measures=MEASURED, workers=1)
    values = singular_values(operator.dense()[0], method="gram", workers=1).values
    exact = {name: float(MEASURES[name].compute(values, size, size)) for name in found.brackets}
    return {name: (float(low), float(high), exact[name]) for name, (low, high) in found.brackets.items()}, found.rule


def calibrate(size: int, trials: int, std: float | None, config: MatrixFreeConfig, processes: int) -> None:
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(trial, [size] * trials, range(trials), [std] * trials, [config] * trials))
    logits = "0.1 to 4" if std is None else f"{std}"
    print(f"\nn = {size}, {trials} trials, logit std {logits}, {config}")
    print(f"{'measure':>24} {'covered':>8} {'below':>6} {'above':>6} {'median half-width':>18}")
    for name in results[0][0]:
        ends = np.array([brackets[name] for brackets, _ in results])
        slack = 1e-9 * np.abs(ends[:, 2])
        below, above = ends[:, 2] < ends[:, 0] - slack, ends[:, 2] > ends[:, 1] + slack
        half_width = statistics.median((ends[:, 1] - ends[:, 0]) / (ends[:, 1] + ends[:, 0]))
        share = 1 - (below | above).mean()
        print(
            f"{name:>24} {share:8.3f} {below.mean():6.3f} {above.mean():6.3f} {half_width:18.4f} "
            f"{'' if share >= 0.92 else 'BELOW 0.92'}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", help="positions")
    parser.add_argument(
        "--std", type=float, nargs="+", help="logit standard deviations; calibration: 0.1 to 4 if left out"
    )
    parser.add_argument("--svds", action="store_true", help="compare with SciPy")
    parser.add_argument("--calibration", type=int, metavar="TRIALS", help="coverage of the brackets")
    parser.add_argument("--half-width", type=float, default=MatrixFreeConfig().half_width)
    parser.add_argument("--steps", type=int, default=MatrixFreeConfig().steps)
    parser.add_argument("--probes", type=int, default=MatrixFreeConfig().probes, help="12 are those of n = 16384")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    config = MatrixFreeConfig(half_width=options.half_width, steps=options.steps, probes=options.probes)
    print(
        f"torch {torch.__version__}, {options.threads} threads, load {os.getloadavg()[0]:.1f} at the start", flush=True
    )
    if options.svds:
        for size in options.sizes or [4096]:
            against_svds(size)
    elif options.calibration:
        for size in options.sizes or [1024]:
            for std in options.std or [None]:
                calibrate(size, options.calibration, std, config, options.threads)
    else:
        print_costs(options.sizes or [1024, 2048, 4096], options.std or [1.0], options.threads, config)


if __name__ == "__main__":
    main()
