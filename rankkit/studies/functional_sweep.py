"""Measuring functional rank: one forward pass for every cut of every scope, seed and arm.

The uncut model's matrices are decomposed once per layer, whatever is cut to whichever k; where all heads are cut, the
layers after the first react to the cut and are decomposed anew. So a model of L layers of H heads takes, per sequence and
seed, L H + 2 R (L - 1) H decompositions (the second term for scope `all`) and 2 R (1 + L + L H) forward passes (a term
for each scope), with R ranks. The tiny pair (4 layers of 4 heads, n = 256, two arms of three seeds, 16 sequences, 9 ranks)
takes 200 / 100 / 310 seconds of processor time for all / layer / head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from itertools import product
from time import perf_counter
from typing import Final

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from rankkit.data.evaluation import evaluation_sequences
from rankkit.errors import ConfigurationError, MatchError, NonFiniteLossError
from rankkit.hooks.capture import capture
from rankkit.hooks.replacement import replaced_attention
from rankkit.masks import MaskKind
from rankkit.models.transformer import Transformer
from rankkit.operators import AttentionOperator
from rankkit.spectra.exact import DEFAULT_MEMORY_BUDGET
from rankkit.spectra.truncated import COPIES, Triplets, cut_product, singular_triplets
from rankkit.store.journal.slabs import Journal
from rankkit.studies.certificate import build_certificate, certificate_problems
from rankkit.studies.decomposition import arms_of, causal_and_prefix
from rankkit.studies.functional import CUTS, SCOPES, ArmCuts, Array, FunctionalRank, Scope
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.plan import MeasurementInterruptedError
from rankkit.studies.measuring.run_source import plan_measurement
from rankkit.studies.run import Run
from rankkit.training.checkpoints import load_model
from rankkit.training.environment import prepare_device
from rankkit.training.evaluation import evaluate

__all__ = ["CutProgress", "FunctionalPlan", "expected_seconds", "functional_rank", "plan_functional_rank"]

DEFAULT_SAMPLES: Final = 16  # the error over sequences is then at most k below that over three seeds (tiny pair)
DEFAULT_SCOPES: Final[tuple[Scope, ...]] = ("all", "layer")
"""Single heads on request: as many forward passes again for each head of a layer."""
_TOKENS_AT_ONCE: Final = 8192  # as many as an evaluation takes, so that one batch here is one batch there


@dataclass(frozen=True, slots=True)
class CutProgress:
    """How far a measurement is."""

    done: int
    """Forward passes made."""
    total: int
    """Forward passes to make."""
    label: str
    """What is being cut."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FunctionalPlan:
    """What would be measured."""

    ranks: tuple[int, ...]
    scopes: tuple[Scope, ...]
    units: tuple[tuple[str, int], ...]
    """Finished (arm, seed)."""
    sequences: NDArray[np.int64]
    """"sequence position"."""
    documents: NDArray[np.int64]
    """"sequence": the held-out document each starts in."""
    prefix_length: int
    layers: int
    heads: int
    batch: int
    """Sequences at once."""

    @property
    def batches(self) -> list[slice]:
        """The sequences in turn."""
        count = len(self.sequences)
        return [slice(start, min(start + self.batch, count)) for start in range(0, count, self.batch)]

    @property
    def passes(self) -> int:
        """Forward passes with a cut."""
        places = {"all": 1, "layer": self.layers, "head": self.layers * self.heads}
        per_batch = len(CUTS) * len(self.ranks) * sum(places[scope] for scope in self.scopes)
        return len(self.units) * len(self.batches) * per_batch

    @property
    def decompositions(self) -> int:
        """Matrices decomposed."""
        again = len(CUTS) * len(self.ranks) * (self.layers - 1) if "all" in self.scopes else 0
        return len(self.units) * len(self.sequences) * self.heads * (self.layers + again)


def plan_functional_rank(
    run: Run,
    *,
    ranks: Sequence[int] | None = None,
    scopes: Sequence[Scope] = DEFAULT_SCOPES,
    seeds: Sequence[int] | None = None,
    samples: int | None = None,
    prefix_length: int | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> FunctionalPlan:
    """Resolve what to measure against a run, and refuse what cannot be measured, before anything is computed.

    Args:
        run: with at least one finished seed in every arm.
        ranks: k; None for 1, 2, 4, ... and n.
        scopes: from `SCOPES`.
        seeds: of the models; None for all that are finished.
        samples: held-out sequences, spread over those of the evaluation; None for 16, or all where there are fewer.
        prefix_length: p of all sequences; None for the evaluation's.
        memory_budget: bytes for dense matrices at any time; at least one sequence is always worked on.

    Raises:
        RunError: no arm has finished a seed, or arms have finished different seeds.
        ConfigurationError: ranks, scopes, samples or a prefix that this run does not have; an arm without a suffix loss.
    """
    model, n = run.config.base.model, run.config.base.model.sequence_length
    if not scopes or len(set(scopes)) < len(scopes) or set(scopes) - set(SCOPES):
        raise ConfigurationError(
            f"scopes must be among {', '.join(SCOPES)}, each once, got {list(scopes)}. Choose some."
        )
    for arm in run.config.arms:
        _check_arm(run, arm)
    if samples is None:
        count = run.config.base.train.evaluation_sequences
        available = evaluation_sequences(run.tokens(), count=count, sequence_length=n).tokens
        samples = min(DEFAULT_SAMPLES, len(available))
    chosen = None if seeds is None else tuple(seeds)
    plan = plan_measurement(run, MeasureConfig(seeds=chosen, samples=samples, prefix_length=prefix_length))
    if plan.prefix_length >= n:
        raise ConfigurationError(
            f"prefix_length must be below {n} to leave tokens to predict, got {plan.prefix_length}. Shorten it."
        )
    assert plan.documents is not None, "the sequences of a run come from documents"
    fitting = memory_budget // (COPIES * 8 * n * n * model.num_heads)
    return FunctionalPlan(
        ranks=_checked_ranks(ranks, n),
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        units=plan.units,
        sequences=plan.sequences,
        documents=plan.documents,
        prefix_length=plan.prefix_length,
        layers=model.num_layers,
        heads=model.num_heads,
        batch=max(1, min(fitting, _TOKENS_AT_ONCE // n)),
    )


def _check_arm(run: Run, arm: str) -> None:
    task = run.config.arm(arm).task.evaluated_as
    if task != "suffix":
        raise ConfigurationError(
            f"functional rank must be of arms with a suffix loss, got {arm}, whose loss is over {task} tokens. Train the "
            "others in a run of their own."
        )


def _checked_ranks(ranks: Sequence[int] | None, n: int) -> tuple[int, ...]:
    if ranks is None:
        return (*(2**power for power in range((n - 1).bit_length())), n)
    chosen = tuple(sorted(set(ranks)))
    if not chosen or chosen[0] < 1 or chosen[-1] > n:
        raise ConfigurationError(f"ranks must be within 1..{n} (sequence_length), got {list(ranks)}. Choose from them.")
    return chosen


def expected_seconds(run: Run, plan: FunctionalPlan, *, workers: int | None = None) -> float:
    """Time one forward pass and a few decompositions here and now on the CPU, and multiply."""
    arm, seed = plan.units[0]
    model = _load(run, arm, seed)
    tokens = plan.sequences[plan.batches[0]]
    n, width = tokens.shape[1], run.config.base.model.head_dim
    query, key = torch.randn(2, 16, n, width, generator=torch.Generator().manual_seed(0)).unbind(0)
    operator = AttentionOperator(query=query, key=key, mask=MaskKind.CAUSAL.at(0), scale=width**-0.5)
    forward = decomposition = 0.0
    for matrices in (1, len(query)):  # the first starts the threads
        started = perf_counter()
        evaluate(model, tokens, plan.prefix_length)
        forward = perf_counter() - started
        started = perf_counter()
        singular_triplets(operator[slice(matrices)], workers=workers).cut(max(1, n // 4))
        decomposition = (perf_counter() - started) / matrices
    return plan.passes * forward + plan.decompositions * decomposition


def functional_rank(
    run: Run,
    *,
    ranks: Sequence[int] | None = None,
    scopes: Sequence[Scope] = DEFAULT_SCOPES,
    seeds: Sequence[int] | None = None,
    samples: int | None = None,
    prefix_length: int | None = None,
    device: torch.device | None = None,
    workers: int | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    journal: Journal | None = None,
    on_progress: Callable[[CutProgress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> FunctionalRank:
    """What every arm and seed of a run loses when its attention is cut to k triplets, for every k.

    Args:
        run: with at least one finished seed in every arm; its last checkpoints are measured.
        ranks: k; None for 1, 2, 4, ... and n.
        scopes: which heads are cut at once, from `SCOPES`.
        seeds: of the models; None for all that are finished.
        samples: held-out sequences; None for 16, or all where there are fewer.
        prefix_length: p of all sequences; None for the evaluation's.
        device: where the model runs and matrices are formed; None for the CPU. LAPACK runs on the CPU.
        workers: threads for LAPACK; None for the available cores.
        memory_budget: bytes for dense matrices at any time.
        journal: keeps the loss of every forward pass, and gives back those that it has, bit for bit; opened with facts that
            hold everything they depend on: run, checkpoints, prefix, device, precision, threads, versions.
        on_progress: told after every forward pass, also after one that the journal had.
        stop: asked after every forward pass.

    Returns:
        Extra losses, paired by sequence.

    Raises:
        MeasurementInterruptedError: stopped as asked; the journal has what was finished.
        StorageError: the journal cannot be written.
        MatchError: the arms do not match.
        NonFiniteLossError: a model whose loss or attention is not finite.
        RankkitError: as `plan_functional_rank` raises.
    """
    plan = plan_functional_rank(
        run, ranks=ranks, scopes=scopes, seeds=seeds, samples=samples, prefix_length=prefix_length,
        memory_budget=memory_budget,
    )  # fmt: skip
    place = torch.device("cpu") if device is None else device
    prepare_device(place, torch.get_num_threads())
    unmatched = certificate_problems(build_certificate(run))
    if unmatched:
        raise MatchError(f"arms must match to be compared, but {unmatched[0]}. See rankkit inspect RUN --verify.")
    sweep = _Sweep(run, plan, place, workers, memory_budget, journal, on_progress, stop)
    names = tuple(dict.fromkeys(arm for arm, _ in plan.units))
    return FunctionalRank(
        ranks=plan.ranks,
        scopes=plan.scopes,
        sequence_length=plan.sequences.shape[1],
        prefix_length=plan.prefix_length,
        documents=plan.documents,
        arms=tuple(sweep.arm(name) for name in names),
        pair=causal_and_prefix(arms_of(run)),
    )


def _load(run: Run, arm: str, seed: int) -> Transformer:
    folder = run.directory.checkpoint(arm, seed, run.config.base.train.steps)
    return load_model(folder, run.config.arm(arm).model)


@dataclass(slots=True, eq=False)
class _Unit:
    """What one (arm, seed) gives, filled in batch by batch; axes as in `ArmCuts`, without `seed`."""

    loss_uncut: Array
    losses: dict[Scope, Array]
    removed_share: Array
    cut_error: Array

    @classmethod
    def unfilled(cls, plan: FunctionalPlan) -> _Unit:
        count, cuts = len(plan.sequences), (len(plan.ranks), len(CUTS))
        places: dict[Scope, tuple[int, ...]] = {"all": (), "layer": (plan.layers,), "head": (plan.layers, plan.heads)}
        return cls(
            loss_uncut=np.full(count, np.nan),
            losses={scope: np.full((count, *places[scope], *cuts), np.nan) for scope in plan.scopes},
            removed_share=np.full((count, *places["head"], cuts[0]), np.nan),
            cut_error=np.full((count, *places["head"], *cuts), np.nan),
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """One model on a batch of sequences; what the journal has whole is never made."""

    arm: str
    seed: int
    rows: slice
    tokens: NDArray[np.int64]
    """"sequence position"."""
    prefix_length: int
    model: Callable[[], Transformer]
    """Loaded when it is first asked for."""
    operators: Callable[[], list[AttentionOperator]]
    """Every layer's Q and K without a cut, "sequence head query feature"; captured when they are first asked for."""

    def key(self, *names: object) -> str:
        """In the journal; tells these sequences from any others."""
        inputs = sha256(
            np.asarray([self.prefix_length, *self.tokens.shape, *self.tokens.flat], dtype=np.int64).tobytes()
        )
        place = ("functional", self.arm, f"seed-{self.seed}", f"inputs-{inputs.hexdigest()[:32]}")
        return "/".join(map(str, (*place, *names)))


class _Sweep:
    """Cuts one model after the other."""

    def __init__(
        self,
        run: Run,
        plan: FunctionalPlan,
        device: torch.device,
        workers: int | None,
        memory_budget: int,
        journal: Journal | None,
        on_progress: Callable[[CutProgress], None],
        stop: Callable[[], bool],
    ) -> None:
        self._run, self._plan, self._device = run, plan, device
        self._workers, self._memory_budget, self._journal = workers, memory_budget, journal
        self._on_progress, self._stop, self._done = on_progress, stop, 0

    def arm(self, name: str) -> ArmCuts:
        """Every seed of one arm."""
        seeds = tuple(seed for arm, seed in self._plan.units if arm == name)
        units = [self._unit(name, seed) for seed in seeds]
        uncut = np.stack([unit.loss_uncut for unit in units])
        extra = {}
        for scope in self._plan.scopes:
            losses = np.stack([unit.losses[scope] for unit in units])
            extra[scope] = losses - uncut.reshape(*uncut.shape, *[1] * (losses.ndim - uncut.ndim))
        return ArmCuts(
            arm=name,
            seeds=seeds,
            loss_uncut=uncut,
            extra_loss=extra,
            removed_share=np.stack([unit.removed_share for unit in units]),
            cut_error=np.stack([unit.cut_error for unit in units]),
        )

    def _unit(self, arm: str, seed: int) -> _Unit:
        unit = _Unit.unfilled(self._plan)
        model = cache(lambda: _load(self._run, arm, seed).to(self._device))
        for rows in self._plan.batches:
            tokens = self._plan.sequences[rows]
            operators = cache(partial(self._operators, model, tokens))
            part = _Part(arm, seed, rows, tokens, self._plan.prefix_length, model, operators)
            unit.loss_uncut[rows] = self._kept(part.key("uncut"), partial(self._uncut, part))["loss"]
            for layer in range(self._plan.layers):
                triplets = cache(partial(self._triplets, part, layer))
                self._effects(unit, part, layer, triplets)
                self._cuts(unit, part, layer, triplets)
        return unit

    def _kept(self, key: str, measure: Callable[[], dict[str, Array]]) -> Mapping[str, Array]:
        """Arrays from the journal, or measured and put there."""
        found = None if self._journal is None else self._journal.get(key)
        if found is None:
            found = measure()
            if self._journal is not None:
                self._journal.put(key, found)
        return found

    def _uncut(self, part: _Part) -> dict[str, Array]:
        losses = self._loss(part.model(), part.tokens)
        if not np.isfinite(losses).all():
            raise NonFiniteLossError(
                f"loss must be finite before anything is cut, got {part.arm} under seed {part.seed} without one. Train it "
                "again."
            )
        return {"loss": losses}

    def _operators(self, model: Callable[[], Transformer], tokens: NDArray[np.int64]) -> list[AttentionOperator]:
        batch = torch.tensor(tokens).to(self._device)
        with torch.no_grad(), self._precision(), capture(model()) as captured:
            model()(batch, self._plan.prefix_length)
        found = []
        for factors in captured.layers:
            (_, operator), *others = factors.operators_by_mask()
            assert not others  # one prefix length for all sequences gives one mask
            found.append(operator)
        return found

    def _triplets(self, part: _Part, layer: int) -> Triplets:
        (operator,) = (found for found in part.operators() if found.labels["layer"] == layer)
        return singular_triplets(operator, workers=self._workers)

    def _effects(self, unit: _Unit, part: _Part, layer: int, triplets: Callable[[], Triplets]) -> None:
        def measure() -> dict[str, Array]:
            effects = [triplets().effect(rank) for rank in self._plan.ranks]
            cuts = [[effect.error, effect.error_plain] for effect in effects]  # as in CUTS
            errors = [[error.numpy(force=True) for error in of_rank] for of_rank in cuts]
            removed = [effect.removed.numpy(force=True) for effect in effects]
            return {
                "removed_share": rearrange(removed, "kept_rank sequence head -> sequence head kept_rank"),
                "cut_error": rearrange(
                    np.asarray(errors), "kept_rank cut sequence head -> sequence head kept_rank cut"
                ),
            }

        found = self._kept(part.key(f"layer-{layer}", "effects", *self._plan.ranks), measure)
        unit.removed_share[part.rows, layer] = found["removed_share"]
        unit.cut_error[part.rows, layer] = found["cut_error"]

    def _cuts(self, unit: _Unit, part: _Part, layer: int, triplets: Callable[[], Triplets]) -> None:
        """Every cut that involves one layer's own matrices; that of all heads belongs to the first."""
        plan = self._plan
        places: dict[Scope, list[tuple[int, ...]]] = {
            "all": [()] if layer == 0 else [],
            "layer": [(layer,)],
            "head": [(layer, head) for head in range(plan.heads)],
        }
        chosen = [(scope, place) for scope in plan.scopes for place in places[scope]]
        for (k, rank), (c, cut), (scope, place) in product(enumerate(plan.ranks), enumerate(CUTS), chosen):
            names = (f"{name}-{number}" for name, number in zip(("layer", "head"), place, strict=False))
            measure = partial(self._cut_loss, part, triplets, rank, cut == "remasked", *place)
            found = self._kept(part.key(*names, f"rank-{rank}", cut), measure)
            where: tuple[int | slice, ...] = (part.rows, *place, k, c)
            unit.losses[scope][where] = found["loss"]
            self._advance(f"{part.arm}, seed {part.seed}, layer {layer}")

    def _cut_loss(
        self,
        part: _Part,
        triplets: Callable[[], Triplets],
        rank: int,
        remask: bool,
        layer: int | None = None,
        head: int | None = None,
    ) -> dict[str, Array]:
        """Loss "sequence" with a cut; `triplets` are those of the layer, or of layer 0 where all layers are cut."""
        own = triplets() if head is None else triplets()[:, head : head + 1]

        def cut(operator: AttentionOperator, value: Tensor) -> Tensor:
            if layer is not None or operator.labels["layer"] == 0:
                return own.product(value, rank, remask=remask)
            return cut_product(
                operator, value, rank=rank, remask=remask, workers=self._workers, memory_budget=self._memory_budget
            )

        layers, heads = ([place] if place is not None else None for place in (layer, head))
        with replaced_attention(part.model(), cut, layers=layers, heads=heads):
            return {"loss": self._loss(part.model(), part.tokens)}

    def _loss(self, model: Transformer, tokens: NDArray[np.int64]) -> Array:
        with self._precision():
            return evaluate(model, tokens, self._plan.prefix_length).by_sequence

    def _precision(self) -> AbstractContextManager[object]:
        """The run's own precision on CUDA, float32 elsewhere; the cut itself stays in float64."""
        if self._run.config.base.train.precision == "bfloat16" and self._device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()

    def _advance(self, label: str) -> None:
        self._done += 1
        self._on_progress(CutProgress(self._done, self._plan.passes, label))
        if self._stop():
            kept = "nothing of it was kept. Run the same command again"
            if self._journal is not None:
                kept = (
                    f"{self._done} of {self._plan.passes} passes are kept. Add --resume to the same command to continue"
                )
            raise MeasurementInterruptedError(f"functional rank was interrupted, and {kept}.")
