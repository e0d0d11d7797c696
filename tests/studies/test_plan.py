"""What a run would cost, roughly; what its seeds could show, exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_run import ALL_ARMS, run_config, trained_run
from tiny import CPU, N

from rankkit.statistics import smallest_resolvable_difference
from rankkit.studies.plan import SEED_DEVIATION, plan_training
from rankkit.training import RunConfig
from rankkit.training.presets import base


def test_a_plan_counts_what_the_run_will_do_and_says_it_in_json() -> None:
    config = run_config(ALL_ARMS, range(4), steps=50)
    found = plan_training(config, device=CPU, workers=2)
    assert (found.units, found.steps, found.tokens, found.workers) == (12, 50, 50 * 2 * N, 2)
    assert found.parameters == config.base.model.parameters
    assert found.smallest_difference == smallest_resolvable_difference(4, SEED_DEVIATION)
    assert 0 < found.seconds < 3600
    assert json.loads(json.dumps(found.as_dict()))["units"] == 12
    assert plan_training(run_config(seeds=(0,)), device=CPU, workers=64).workers == 2  # no more than units


def test_memory_and_disk_cover_what_a_run_needs(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run")
    found = plan_training(run.config, device=CPU)
    kept = sum(path.stat().st_size for arm, seed in run.config.units
               for path in run.directory.unit(arm, seed).rglob("*.safetensors"))  # fmt: skip
    assert kept <= found.disk_bytes <= 4 * kept
    assert found.memory_bytes >= found.workers * 16 * found.parameters  # weights, gradients, two moments


def test_a_gpts_plan_says_gigabytes_without_taking_them() -> None:
    """Numbers of the base preset, from its configuration alone: 124 million weights in float32 with their moments."""
    config = RunConfig(base=base(), seeds=(0,))
    assert config.base.model.parameters == pytest.approx(124e6, rel=0.01)
    assert 16 * config.base.model.parameters == pytest.approx(2e9, rel=0.01)


def test_planning_leaves_torchs_threads_alone() -> None:
    torch.set_num_threads(2)
    plan_training(run_config(), device=CPU)
    assert torch.get_num_threads() == 2
