"""Training steps against each other, as ratios within one run.

    prefix step / causal step of the same model            at most 1.05 / 1.10 / 1.15 at n = 256 / 1024 / 2048, p = n/2,
                                                           and 1.05 / 1.15 / 1.30 at p = 3n/4
    forward and backward of each mask / causal             at most 1.35 at n = 1024; alibi under causal is reported
    tokens/s of a causal step / a Hugging Face GPT-2's     at least 1.15, same size, SDPA, same work
    the pair driven together / the sum of its arms alone   at most 1.05

A ratio is the median over rounds in which both sides run, in alternating order. `--quick` for a look.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import nn

from rankkit.data import DataConfig, prepare_tokens, synthetic
from rankkit.data.tokens import TokenFiles
from rankkit.masks import MaskKind
from rankkit.models import ModelConfig, Transformer
from rankkit.training import ArmConfig, Objective, TrainConfig, Trainer, arm_config
from rankkit.training.objective import NextTokens, TargetRows, token_losses

ROUNDS = 7
TOKENS_PER_STEP = 4096

Step = Callable[[], object]


def seconds(step: Step, repeats: int) -> float:
    started = perf_counter()
    for _ in range(repeats):
        step()
    return (perf_counter() - started) / repeats


def paired(first: Step, second: Step, *, rounds: int, repeats: int = 1) -> tuple[float, float, list[float]]:
    """Median seconds of both, and the ratio first / second of every round."""
    first(), second()
    times: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:
            later = seconds(second, repeats)
            times.append((seconds(first, repeats), later))
        else:
            earlier = seconds(first, repeats)
            times.append((earlier, seconds(second, repeats)))
    return (
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        sorted(a / b for a, b in times),
    )


def verdict(name: str, ratios: list[float], *, at_most: float = 0.0, at_least: float = 0.0, extra: str = "") -> None:
    median = statistics.median(ratios)
    met = median <= at_most if at_most else median >= at_least
    target = f"at most {at_most:.2f}" if at_most else f"at least {at_least:.2f}"
    spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    print(f"{name:<52} {median:6.3f}  ({spread})  target {target}: {'met' if met else 'NOT MET'}{extra}", flush=True)


def training_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(config: ModelConfig, prefix_length: int, objective: Objective, batch: int) -> Step:
    model = Transformer(config)
    tokens = torch.randint(0, 256, (batch, config.sequence_length), generator=torch.Generator().manual_seed(0))
    lengths = [prefix_length] * batch
    rows = NextTokens(objective).examples(config.mask, tokens, lengths, "").rows
    return training_step(model, lambda: token_losses(model, tokens, lengths, rows).mean())


def forward_and_backward(config: ModelConfig, prefix_length: int, batch: int) -> Step:
    """Every row predicts the token it reads: the same work under every mask."""
    model, n = Transformer(config), config.sequence_length
    tokens = torch.randint(0, 256, (batch, n), generator=torch.Generator().manual_seed(0))
    sequences, places = torch.ones(batch, n).nonzero().unbind(1)
    rows = TargetRows(sequences, places, tokens.flatten())

    def step() -> None:
        token_losses(model, tokens, [prefix_length] * batch, rows).mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def masks_against_causal(rounds: int) -> None:
    n, limit = 1024, 1.35
    print(f"forward and backward / causal with rope (4 layers, d_model 256, 4 heads of 64, n = {n}, p = {n // 2})")
    base, batch = ModelConfig(sequence_length=n, d_model=256, num_heads=4, head_dim=64), TOKENS_PER_STEP // n
    causal = forward_and_backward(base, n // 2, batch)
    for kind in MaskKind:
        if kind is not MaskKind.CAUSAL:
            other = forward_and_backward(replace(base, mask=kind), n // 2, batch)
            a, b, ratios = paired(other, causal, rounds=rounds)
            verdict(f"  {kind}", ratios, at_most=limit, extra=f"  [{a * 1e3:.0f} / {b * 1e3:.0f} ms]")
    biased = forward_and_backward(replace(base, position="alibi"), n // 2, batch)
    a, b, ratios = paired(biased, causal, rounds=rounds)
    print(
        f"  causal with alibi: {statistics.median(ratios):.3f}, no target  [{a * 1e3:.0f} / {b * 1e3:.0f} ms]",
        flush=True,
    )


def prefix_against_causal(rounds: int) -> None:
    print("prefix step / causal step (4 layers, d_model 256, 4 heads of 64)")
    targets = {256: (1.05, 1.05), 1024: (1.10, 1.15), 2048: (1.15, 1.30)}
    for n, limits in targets.items():
        config = ModelConfig(sequence_length=n, d_model=256, num_heads=4, head_dim=64)
        batch = max(1, TOKENS_PER_STEP // n)
        for p, limit in zip((n // 2, 3 * n // 4), limits, strict=True):
            prefix = our_step(replace(config, mask=MaskKind.PREFIX), p, Objective.SUFFIX, batch)
            causal = our_step(config, p, Objective.SUFFIX, batch)
            a, b, ratios = paired(prefix, causal, rounds=rounds)
            verdict(f"  n = {n}, p = {p}", ratios, at_most=limit, extra=f"  [{a * 1e3:.0f} / {b * 1e3:.0f} ms]")


def peak_flops(rounds: int) -> float:
    """The machine's measured float32 matrix product."""
    a, b = torch.randn(2, 2048, 2048)
    a @ b
    return 2 * 2048**3 / min(seconds(lambda: a @ b, 3) for _ in range(rounds))


def against_hugging_face(rounds: int) -> None:
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        print("Hugging Face GPT-2: skipped, transformers is not installed")
        return
    print("tokens/s of our causal step / Hugging Face GPT-2's (4 layers, d_model 256, n = 256, all tokens predicted)")
    n, batch = 256, TOKENS_PER_STEP // 256
    config = ModelConfig(sequence_length=n, d_model=256, num_heads=4, head_dim=64, position="learned")
    hf_config = GPT2Config(
        vocab_size=config.vocab_size, n_positions=n, n_embd=256, n_layer=4, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(hf_config)
    tokens = torch.randint(0, 256, (batch, n), generator=torch.Generator().manual_seed(0))

    def loss() -> torch.Tensor:
        logits = model(input_ids=tokens).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    theirs = training_step(model, loss)
    ours = our_step(config, 0, Objective.FULL, batch)
    their_seconds, our_seconds, ratios = paired(theirs, ours, rounds=rounds)
    peak = peak_flops(rounds)
    attention = 3 * config.num_layers * config.num_heads * batch * config.mask.at(0).attention_flops(n, config.head_dim)
    embedding = 6 * config.vocab_size * config.d_model * batch * n
    flops = 6 * config.non_embedding_parameters * batch * n + attention + embedding
    verdict(
        "  ours / theirs", ratios, at_least=1.15, extra=f"  [{our_seconds * 1e3:.0f} / {their_seconds * 1e3:.0f} ms]"
    )
    print(
        f"  ours: {batch * n / our_seconds:,.0f} tokens/s, {flops / our_seconds / peak:.0%} of {peak / 1e9:.0f} GFLOP/s"
    )


def pair_against_its_arms(rounds: int, tokens: TokenFiles) -> None:
    """What `train-pair` adds to a step in turn: two trainers stepped alternately, hashes compared, over each one alone."""
    print("pair in turn / sum of its arms alone (tiny preset)")
    base = ArmConfig(train=TrainConfig(steps=10_000))

    def trainer(arm: str) -> Trainer:
        return Trainer(arm_config(base, arm), seed=0, tokens=tokens, device=torch.device("cpu"))

    gpt, unilm, pair = trainer("gpt"), trainer("unilm"), (trainer("gpt"), trainer("unilm"))

    def together() -> None:
        one, other = (member.train_step() for member in pair)
        assert one.chains == other.chains

    def alone() -> None:
        gpt.train_step()
        unilm.train_step()

    a, b, ratios = paired(together, alone, rounds=rounds, repeats=2)
    verdict("  gpt and unilm", ratios, at_most=1.05, extra=f"  [{a * 1e3:.0f} / {b * 1e3:.0f} ms]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of seven")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; one, as train-pair uses on the CPU")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else ROUNDS
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module="transformers")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} alternating rounds: median (min to max)"
    )
    prefix_against_causal(rounds)
    masks_against_causal(rounds)
    against_hugging_face(rounds)
    with tempfile.TemporaryDirectory() as folder:
        tokens = prepare_tokens(
            DataConfig(), Path(folder) / "tokens", Path(folder) / "tokenizer.json", sequence_length=256,
            corpus=synthetic(0, 400),
        )  # fmt: skip
        pair_against_its_arms(rounds, tokens)


if __name__ == "__main__":
    main()
