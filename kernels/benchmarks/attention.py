"""Prefix attention by plan against the obvious alternatives, forward and backward, as ratios within one run.

    dense mask   one SDPA call with a boolean n x n mask
    eager        softmax(Q K^T) V written out

Both compute the same; the ratio says how much longer they take than `attend`. `--quick` for small sizes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from rankkit_kernels.attention import FusedCall, attend

ROUNDS = 7
HEADS, HEAD_DIM = 4, 64


def eager(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    logits = query @ key.transpose(-1, -2) * HEAD_DIM**-0.5
    return torch.softmax(logits.masked_fill(~allowed, -torch.inf), dim=-1) @ value


def milliseconds(compute: Callable[[], Tensor]) -> float:
    started = perf_counter()
    compute().sum().backward()
    return (perf_counter() - started) * 1e3


def compare(n: int, p: int) -> None:
    query, key, value = (torch.randn(1, HEADS, n, HEAD_DIM, requires_grad=True) for _ in range(3))
    positions = torch.arange(n)
    allowed = (positions < p)[None, :] | (positions[None, :] <= positions[:, None])
    plan = (FusedCall((0, p), (0, p), "all"), FusedCall((p, n), (0, n), "past"))
    sides: dict[str, Callable[[], Tensor]] = {
        "attend": lambda: attend(query, key, value, plan),
        "causal": lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True),
        "dense mask": lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=allowed),
        "eager": lambda: eager(query, key, value, allowed),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        names = list(sides)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(milliseconds(sides[name]))
    ratio = {
        name: statistics.median(a / b for a, b in zip(found[1:], times["attend"][1:], strict=True))
        for name, found in times.items()
    }
    print(
        f"n = {n:5}, p = {p:5}: attend {statistics.median(times['attend'][1:]):7.1f} ms;  causal {ratio['causal']:.2f}, "
        f"dense mask {ratio['dense mask']:.2f}, eager {ratio['eager']:.2f} times as long"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="n = 256 and 512 only")
    sizes = (256, 512) if parser.parse_args().quick else (256, 512, 1024, 2048)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; forward and backward, {HEADS} heads of {HEAD_DIM}"
    )
    for n in sizes:
        for p in (n // 2, 3 * n // 4):
            compare(n, p)


if __name__ == "__main__":
    main()
