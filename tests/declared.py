"""A declared experiment on trained arms that takes a second: its file, its runs and what they found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import CPU

from rankkit.studies.experiments.experiment import load_experiment
from rankkit.studies.experiments.study import Study, resolve
from rankkit.studies.experiments.trained import TrainedResult, analyse
from rankkit.studies.experiments.trained_runs import train_study

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

NAMES = (
    "gpt_vs_unilm",
    "gpt_rank_split",
    "gpt_functional_rank",
    "rank_predicts_loss",
    "positions",
    "mixed_heads",
    "head_size",
    "mask_switch",
    "gpt_full",
)
"""The declared experiments on trained arms."""

SMALL = (
    "base.synthetic_documents=40",
    "base.model.sequence_length=32",
    "base.model.d_model=16",
    "base.model.num_layers=2",
    "base.model.num_heads=4",
    "base.model.head_dim=8",
    "base.train.steps=20",
    "base.train.batch_size=2",
    "base.train.evaluation_sequences=6",
    "base.train.evaluation_interval=5",
    "base.train.checkpoint_interval=5",
    "base.train.log_interval=10",
    "samples=2",
)
"""Makes any of them take seconds: the synthetic corpus at 20 steps."""


def study(name: str, *assignments: str, folder: Path = EXPERIMENTS) -> Study:
    """A declared experiment, made small."""
    loaded = load_experiment(folder / f"{name}.toml", (*SMALL, *assignments))
    return resolve(loaded.config, loaded.name, loaded.reused)


def found(declared: Study, root: Path, *, stop: Callable[[], bool] = lambda: False, **options: Any) -> TrainedResult:
    """Train what is missing in this process, and judge."""
    runs = train_study(declared, root, device=CPU, command="rankkit run it", workers=1, stop=stop, **options)
    return analyse(declared, runs, device=CPU, command="rankkit run it", stop=stop)
