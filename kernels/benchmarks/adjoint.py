"""A^T Y against autograd's, and A^T A X against one product after the other, as ratios within one run.

    backward      autograd's adjoint of a fused forward call, without the forward call
    fused         forward calls with queries and keys exchanged, log-sum-exps and column sums known
    statistics    the pass that finds these, in float64; it is paid once per matrix
    row blocks    plain torch, nothing known beforehand
    gram          A X and A^T A X in one pass over row blocks
    forward       one fused forward call: A X

One head width of probes, one thread, processor time per visible pair of positions: other work on the machine disturbs
that least. The target is against all that autograd does for A^T Y, forward and backward; against its backward call alone
the ratio is printed too. `--quick` for a small size.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import process_time

import torch
from torch import Tensor

from rankkit_kernels.adjoint import attend_adjoint
from rankkit_kernels.attention import FusedCall, attend
from rankkit_kernels.row_blocks import gram_product, row_statistics

ROUNDS = 7
HEADS, HEAD_DIM = 4, 64
SCALE = HEAD_DIM**-0.5
TARGET = 2.0  # times faster than autograd's adjoint at n = 4096
TARGETED = ("autograd / row blocks", "autograd / fused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A mask at one size: its plan, the transposed plan and its visible pairs."""

    name: str
    """For the table."""
    plan: tuple[FusedCall, ...]
    """Of A."""
    transposed: tuple[FusedCall, ...]
    """Of A^T."""
    pairs: int
    """Of one head."""


def cases(n: int) -> tuple[Case, Case]:
    p = n // 2
    prefix = (FusedCall((0, p), (0, p), "all"), FusedCall((p, n), (0, n), "past"))
    transposed = (FusedCall((0, p), (0, n), "all"), FusedCall((p, n), (p, n), "future"))
    triangle = n * (n + 1) // 2
    return (
        Case(
            name="causal",
            plan=(FusedCall((0, n), (0, n), "past"),),
            transposed=(FusedCall((0, n), (0, n), "future"),),
            pairs=triangle,
        ),
        Case(name="prefix n/2", plan=prefix, transposed=transposed, pairs=triangle + p * (p - 1) // 2),
    )


def contestants(case: Case, n: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    query, key, y = (torch.randn(1, HEADS, n, HEAD_DIM, dtype=dtype) for _ in range(3))
    found = row_statistics(query.double(), key.double(), case.plan, scale=SCALE)
    known = (found.log_sum_exp, found.column_sums)
    value = torch.zeros_like(y, requires_grad=True)
    output = attend(query, key, value, case.plan, scale=SCALE)

    def adjoint(**options: object) -> Tensor:
        return attend_adjoint(query, key, y, case.plan, case.transposed, scale=SCALE, **options)  # type: ignore[arg-type]

    return {
        "backward": lambda: torch.autograd.grad(output, value, y, retain_graph=True),
        "fused": lambda: adjoint(statistics=known, path="fused"),
        "statistics": lambda: row_statistics(query.double(), key.double(), case.plan, scale=SCALE),
        "row blocks": lambda: adjoint(path="row-blocks"),
        "gram": lambda: gram_product(query, key, y, case.plan, scale=SCALE),
        "forward": lambda: attend(query, key, y, case.plan, scale=SCALE),
    }


def seconds(work: Callable[[], object]) -> float:
    started = process_time()
    work()
    return process_time() - started


def alternate(sides: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Processor seconds of every side in every round; the order rotates, and the first round is not counted."""
    names = list(sides)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken[name].append(seconds(sides[name]))
    return {name: found[1:] for name, found in taken.items()}


def ratio(taken: dict[str, list[float]], slow: tuple[str, ...], fast: tuple[str, ...]) -> str:
    """Median (least to largest) over rounds of how many times longer one sum of sides took than another."""
    rounds = range(len(taken[slow[0]]))
    found = sorted(sum(taken[side][r] for side in slow) / sum(taken[side][r] for side in fast) for r in rounds)
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def compare(case: Case, n: int, dtype: torch.dtype) -> None:
    taken = alternate(contestants(case, n, dtype))
    per_pair = {
        name: 1e9 * statistics.median(found) / (HEADS * case.pairs) for name, found in taken.items()
    }  # fmt: skip
    print(f"\nn = {n}, {case.name}, {str(dtype).removeprefix('torch.')}")
    print("  ns per pair:  " + ", ".join(f"{name} {time:.2f}" for name, time in per_pair.items()))
    autograd = ("forward", "backward")
    comparisons = {
        "autograd / row blocks": (autograd, ("row blocks",)),
        "autograd / fused": (autograd, ("fused",)),
        "autograd / statistics and fused": (autograd, ("statistics", "fused")),
        "backward / row blocks": (("backward",), ("row blocks",)),
        "backward / fused": (("backward",), ("fused",)),
        "fused / row blocks": (("fused",), ("row blocks",)),
        "forward and row blocks / gram": (("forward", "row blocks"), ("gram",)),
        "forward and fused / gram": (("forward", "fused"), ("gram",)),
    }
    for name, (slow, fast) in comparisons.items():
        target = f"   target {TARGET}" if name in TARGETED else ""
        print(f"  {name:32}{ratio(taken, slow, fast)}{target}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="n = 512 only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, one thread, load {os.getloadavg()[0]:.1f} at the start; "
        f"{HEADS} heads of {HEAD_DIM}, {HEAD_DIM} probes"
    )
    for n in (512,) if options.quick else (1024, 4096):
        for case in cases(n):
            for dtype in (torch.float64, torch.float32):
                compare(case, n, dtype)


if __name__ == "__main__":
    main()
