"""A declaration on trained arms, resolved: full configurations of its runs, and its claims as arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankkit.data.corpora import Corpus, synthetic
from rankkit.errors import ConfigurationError
from rankkit.files import RunDirectory
from rankkit.spectra import MEASURES
from rankkit.studies.configure import run_config
from rankkit.studies.decomposition import arms_of, causal_and_prefix
from rankkit.studies.experiments.contrasts import Cell, Contrast, parse_contrast
from rankkit.studies.experiments.trained_config import (
    SECTIONS,
    BaseConfig,
    ClaimConfig,
    RunsConfig,
    TrainedConfig,
    scaled,
)
from rankkit.studies.run import Run
from rankkit.training.config import RunConfig
from rankkit.training.presets import preset
from rankkit.training.settings import to_table

__all__ = ["DeclaredRun", "Study", "resolve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredRun:
    """One run of an experiment, with nothing left open but what it begins with."""

    name: str
    """What claims call it."""
    experiment: str
    """Whose declaration it stands in."""
    config: RunConfig
    """Arms, seeds and settings; without initial weights, which may not be there yet."""
    synthetic_documents: int
    """Documents of the seeded grammar; 0 where it reads the text of its configuration."""
    init_from: Cell | None
    """(run, arm) with whose last weights every arm begins."""

    @property
    def corpus(self) -> Corpus | None:
        """The seeded grammar; None where it reads the text of its configuration."""
        return synthetic(0, self.synthetic_documents) if self.synthetic_documents else None

    @property
    def pair(self) -> tuple[str, str] | None:
        """Its (causal arm, prefix arm) with one objective."""
        return causal_and_prefix(arms_of(Run(RunDirectory(Path()), self.config, {})))


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What an experiment trains and claims."""

    config: TrainedConfig
    """As declared."""
    runs: Mapping[str, DeclaredRun]
    """Those that its claims need, each after those that it begins from."""
    contrasts: tuple[Contrast, ...]
    """One for each of `config.claims`."""

    def cells(self, number: int) -> tuple[Cell, ...]:
        """The arms of one of `config.correlations`."""
        return tuple(_cell(text, self.runs) for text in self.config.correlations[number].cells)


def resolve(config: TrainedConfig, name: str, reused: Mapping[str, TrainedConfig]) -> Study:
    """Resolve a declaration against those that it reuses.

    Args:
        config: the declaration.
        name: of its file.
        reused: declarations by name, those that these reuse among them.

    Raises:
        ConfigurationError: settings that cannot hold, a claim that names what there is not, or two runs of one name.
    """
    runs: dict[str, DeclaredRun] = {}
    for experiment, declaration in {**reused, name: config}.items():
        for declared in declaration.runs:
            if declared.name in runs:
                raise ConfigurationError(
                    f"runs must have different names, got {declared.name!r} in {runs[declared.name].experiment} and "
                    f"{experiment}. Rename one."
                )
            runs[declared.name] = _declared(experiment, declaration, declared)
    for run in runs.values():
        if run.init_from is not None:
            _check_cell("init_from", run.init_from, runs)
    arms = {run.name: run.config.arms for run in runs.values()}
    pairs = {run.name: run.pair for run in runs.values()}
    contrasts = tuple(parse_contrast(claim.claim, arms, pairs) for claim in config.claims)
    for claim, contrast in zip(config.claims, contrasts, strict=True):
        _check_swaps(claim, contrast)
        _check_comparable("claim", contrast.text, contrast.cells, runs, of_loss=claim.of not in MEASURES)
    for correlation in config.correlations:
        cells = tuple(_cell(text, runs) for text in correlation.cells)
        _check_comparable("cells", ", ".join(correlation.cells), cells, runs, of_loss=True)
    named = {run.name for run in config.runs} | {run for contrast in contrasts for run, _ in contrast.cells}
    named |= {_cell(text, runs)[0] for correlation in config.correlations for text in correlation.cells}
    needed = dict.fromkeys(run for run in runs if run in named for run in _with_sources(run, runs))
    return Study(config=config, runs={name: runs[name] for name in needed}, contrasts=contrasts)


def _check_swaps(claim: ClaimConfig, contrast: Contrast) -> None:
    if contrast.swaps and claim.of not in MEASURES:
        raise ConfigurationError(
            f"claim must leave masks alone for {claim.of}, got {contrast.text!r}. Swap masks only for measures."
        )


def _check_comparable(
    name: str, text: str, cells: tuple[Cell, ...], runs: Mapping[str, DeclaredRun], *, of_loss: bool
) -> None:
    """Refuse arms whose numbers are not of the same tokens."""
    found: dict[str, Any] = {}
    for run, arm in cells:
        config = runs[run].config.arm(arm)
        read: dict[str, Any] = {
            "text and tokenizer": (config.data, runs[run].synthetic_documents),
            "sequence length": config.model.sequence_length,
            "prefix length": config.train.evaluation_prefix_length(config.model.sequence_length),
            "evaluation sequences": config.train.evaluation_sequences,
        }
        if of_loss:
            read["predicted tokens"] = config.task.in_evaluation()
        for what, value in read.items():
            first = found.setdefault(what, value)
            if value != first:
                raise ConfigurationError(
                    f"{name} must compare arms on the same {what}, got {value} for {run}/{arm} and {first} before it in "
                    f"{text!r}. Train them alike."
                )


def _with_sources(name: str, runs: Mapping[str, DeclaredRun], waiting: tuple[str, ...] = ()) -> Iterator[str]:
    """A run after those that it begins from."""
    if name in waiting:
        raise ConfigurationError(f"init_from must not lead back to the run itself, got {name!r}. Begin somewhere else.")
    source = runs[name].init_from
    if source is not None:
        yield from _with_sources(source[0], runs, (*waiting, name))
    yield name


def _declared(experiment: str, declaration: TrainedConfig, run: RunsConfig) -> DeclaredRun:
    base = declaration.base
    run_arm = run.init_from.partition("/") if run.init_from else None
    return DeclaredRun(
        name=run.name,
        experiment=experiment,
        config=run_config(
            preset=base.preset, options=_settings(base, run), arms=run.arms, seeds=run.seeds or declaration.seeds
        ),
        synthetic_documents=base.synthetic_documents,
        init_from=(run_arm[0], run_arm[2]) if run_arm else None,
    )


def _settings(base: BaseConfig, run: RunsConfig) -> dict[str, dict[str, Any]]:
    """By section, what the base and the run say over the preset, factors resolved."""
    present = to_table(preset(base.preset))
    said: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for layer in (base, run):
        present = scaled(present, {section: getattr(layer, section) for section in SECTIONS})
        for section in SECTIONS:
            said[section] |= {key: present[section][key] for key in getattr(layer, section)}
    return said


def _cell(text: str, runs: Mapping[str, DeclaredRun]) -> Cell:
    run, _, arm = text.partition("/")
    _check_cell("cells", (run, arm), runs)
    return run, arm


def _check_cell(name: str, cell: Cell, runs: Mapping[str, DeclaredRun]) -> None:
    if cell[0] not in runs or cell[1] not in runs[cell[0]].config.arms:
        known = ", ".join(f"{run.name}/{arm}" for run in runs.values() for arm in run.config.arms)
        raise ConfigurationError(f"{name} must be among {known}, got {'/'.join(cell)!r}. Correct the name.")
