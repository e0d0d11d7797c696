"""Attention by plan against the obvious alternatives, forward and backward, as ratios within one run.

    dense mask   one SDPA call with a boolean n x n mask
    eager        softmax(Q K^T) V written out

Both compute the same as prefix attention by plan; the ratio says how much longer they take than `attend`. Then each plan
against one causal call: what a mask costs. `--quick` for small sizes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from rankkit_kernels.attention import FusedCall, Group, attend, attend_groups
from rankkit_kernels.scores import OffsetBias

ROUNDS = 7
HEADS, HEAD_DIM = 4, 64


def eager(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    logits = query @ key.transpose(-1, -2) * HEAD_DIM**-0.5
    return torch.softmax(logits.masked_fill(~allowed, -torch.inf), dim=-1) @ value


def milliseconds(compute: Callable[[], Tensor]) -> float:
    started = perf_counter()
    compute().sum().backward()
    return (perf_counter() - started) * 1e3


def ratios(sides: dict[str, Callable[[], Tensor]], to: str) -> tuple[dict[str, float], float]:
    """Median over rounds of each side's time over that of one of them, and that one's median in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        names = list(sides)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(milliseconds(sides[name]))
    found = {
        name: statistics.median(a / b for a, b in zip(of_side[1:], times[to][1:], strict=True))
        for name, of_side in times.items()
    }
    return found, statistics.median(times[to][1:])


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
    ratio, attended = ratios(sides, "attend")
    print(
        f"n = {n:5}, p = {p:5}: attend {attended:7.1f} ms;  causal {ratio['causal']:.2f}, "
        f"dense mask {ratio['dense mask']:.2f}, eager {ratio['eager']:.2f} times as long"
    )


def plans_against_causal(n: int) -> None:
    query, key, value = (torch.randn(1, HEADS, n, HEAD_DIM, requires_grad=True) for _ in range(3))
    past, future = (FusedCall((0, n), (0, n), "past"),), (FusedCall((0, n), (0, n), "future"),)
    halves = [Group(1, heads=(Group(HEADS // 2, past), Group(HEADS // 2, future)))]
    slopes = 2.0 ** (-8 * torch.arange(1, HEADS + 1) / HEADS)
    bias = OffsetBias(values=-slopes[:, None] * torch.arange(1 - n, n).abs())
    sides: dict[str, Callable[[], Tensor]] = {
        "causal": lambda: attend(query, key, value, past),
        "prefix n/2": lambda: attend(
            query, key, value, (FusedCall((0, n // 2), (0, n // 2), "all"), FusedCall((n // 2, n), (0, n), "past"))
        ),
        "bidirectional": lambda: attend(query, key, value, (FusedCall((0, n), (0, n), "all"),)),
        "backward": lambda: attend(query, key, value, future),
        "half the heads backward": lambda: attend_groups(query, key, value, halves),
        "causal with alibi": lambda: attend(query, key, value, past, bias=bias),
    }
    ratio = ratios(sides, "causal")[0]
    print(f"n = {n:5}: " + ", ".join(f"{name} {ratio[name]:.2f}" for name in sides) + " times as long as causal")


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
        plans_against_causal(n)


if __name__ == "__main__":
    main()
