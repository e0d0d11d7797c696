"""What capturing costs: at most 1.15 times the plain forward pass, and Q and K of one layer at a time.

The time is the median ratio over alternating rounds. The memory is what the allocator holds of queries and keys: the
largest number of layers whose captured factors were alive at once.
"""

from __future__ import annotations

import gc
import statistics
import weakref
from time import perf_counter

import torch

from rankkit.hooks import LayerFactors, capture
from rankkit.models import ModelConfig, Transformer

ROUNDS = 15


def main() -> None:
    config = ModelConfig(sequence_length=512, num_layers=6, d_model=256, num_heads=4, head_dim=64)
    model = Transformer(config).eval()
    tokens = torch.randint(0, 256, (4, 512), generator=torch.Generator().manual_seed(0))
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def receive(factors: LayerFactors) -> None:
        nonlocal most
        alive.append(weakref.ref(factors.query))
        most = max(most, sum(reference() is not None for reference in alive))

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return model(tokens, 256)  # type: ignore[no-any-return]

    def captured() -> torch.Tensor:
        with torch.no_grad(), capture(model, on_layer=receive):
            return model(tokens, 256)  # type: ignore[no-any-return]

    assert torch.equal(plain(), captured()), "the captured forward pass must be bit-identical"
    ratios = []
    for number in range(ROUNDS):
        order = (captured, plain) if number % 2 else (plain, captured)
        times = {}
        for run in order:
            started = perf_counter()
            run()
            times[run] = perf_counter() - started
        ratios.append(times[captured] / times[plain])
        gc.collect()
    median = statistics.median(ratios)
    print(f"capture / plain forward: {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f})  target at most 1.15: "
          f"{'met' if median <= 1.15 else 'NOT MET'}")  # fmt: skip
    print(f"layers of Q and K alive at once: {most}  target 1: {'met' if most == 1 else 'NOT MET'}")


if __name__ == "__main__":
    main()
