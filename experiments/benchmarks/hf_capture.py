"""What capturing a Hugging Face model costs, beside `output_attentions=True`: GPT-2's shape, batch 1, 1024 tokens.

    hf_capture.py               memory of every way, each in a process of its own, and the time of capture alone
    hf_capture.py --rounds 5    fewer rounds of the timing

12 layers, 12 heads, width 768, random weights. Memory is the peak of the process above what it held with the model loaded
and warm on 64 tokens. `spectra` measures every head exactly as it comes, with `--budget` MiB for dense matrices.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import rankkit
from rankkit.hooks import LayerFactors
from rankkit.spectra import spectrum

TOKENS = 1024
WAYS = ("plain", "capture", "spectra", "output_attentions")


def loaded(implementation: str) -> Any:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    return GPT2Model(GPT2Config(attn_implementation=implementation)).eval()


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def memory(way: str, budget: int) -> tuple[float, float, float]:
    """MiB above the loaded model, MiB in all, and seconds."""
    torch.set_num_threads(2)
    model = loaded("eager" if way == "output_attentions" else "sdpa")

    def measure(factors: LayerFactors) -> None:
        for operator in factors.operators():
            spectrum(operator, method="exact", memory_budget=budget << 20)

    receivers: dict[str, Callable[[LayerFactors], None]] = {"capture": lambda _: None, "spectra": measure}

    def run(length: int) -> None:
        capturing = rankkit.capture(model, on_layer=receivers[way]) if way in receivers else nullcontext()
        with torch.no_grad(), capturing:
            model(torch.arange(length)[None], use_cache=False, output_attentions=way == "output_attentions")

    run(64)  # libraries wake up
    before, started = peak_bytes(), perf_counter()
    run(TOKENS)
    return (peak_bytes() - before) / 2**20, peak_bytes() / 2**20, perf_counter() - started


def print_memory(budget: int) -> None:
    context = multiprocessing.get_context("spawn")
    found = {}
    print(f"{'':20}{'MiB above the model':>22}{'MiB in all':>14}{'seconds':>10}")
    for way in WAYS:
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            found[way] = executor.submit(memory, way, budget).result()
        above, total, seconds = found[way]
        print(f"{way:20}{above:22.0f}{total:14.0f}{seconds:10.1f}", flush=True)
    limit = 1.25 * found["plain"][0] + budget
    print(
        f"spectra at most 1.25 plain + {budget} = {limit:.0f} MiB: {'met' if found['spectra'][0] <= limit else 'NOT MET'}"
    )


def print_times(rounds: int) -> None:
    model, tokens = loaded("sdpa"), torch.arange(TOKENS)[None]
    padded = torch.ones_like(tokens).index_fill(1, torch.arange(100), 0)

    def plain(mask: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(tokens, attention_mask=mask, use_cache=False).last_hidden_state

    def captured(mask: Any) -> torch.Tensor:
        with torch.no_grad(), rankkit.capture(model, on_layer=lambda _: None):
            return model(tokens, attention_mask=mask, use_cache=False).last_hidden_state

    def watched(mask: Any) -> torch.Tensor:
        with torch.no_grad(), rankkit.capture(model, on_layer=lambda _: None, mode="torch"):
            return model(tokens, attention_mask=mask, use_cache=False).last_hidden_state

    for name, way, mask in (("qk", captured, None), ("qk, padded", captured, padded), ("torch", watched, None)):
        assert torch.equal(plain(mask), way(mask)), "the captured forward pass must be bit-identical"
        ratios = []
        for number in range(rounds):
            seconds = {}
            for run in (way, plain) if number % 2 else (plain, way):
                started = perf_counter()
                run(mask)
                seconds[run] = perf_counter() - started
            ratios.append(seconds[way] / seconds[plain])
        median = statistics.median(ratios)
        print(f"capture / plain forward ({name}): {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), at most 1.15: "
              f"{'met' if median <= 1.15 else 'NOT MET'}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of the timing (default %(default)s)")
    parser.add_argument("--budget", type=int, default=64, help="MiB for dense matrices (default %(default)s)")
    options = parser.parse_args()
    print_memory(options.budget)
    print_times(options.rounds)


if __name__ == "__main__":
    main()
