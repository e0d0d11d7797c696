"""What a run would cost, roughly; what its seeds could show, exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from small_run import ALL_ARMS, run_config, trained_run
from tiny import CPU, N

from rankkit.studies.plan import SEED_DEVIATION, plan_training, smallest_resolvable_difference
from rankkit.training import RunConfig
from rankkit.training.presets import base


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_smallest_difference_is_found_four_times_in_five(seeds: int) -> None:
    true = smallest_resolvable_difference(seeds, deviation=0.5)
    differences = np.random.default_rng(seeds).normal(true, 0.5, size=(20_000, seeds))
    found = stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05
    assert abs(found.mean() - 0.8) < 0.01  # 3.5 standard errors of a proportion


def test_the_smallest_difference_shrinks_with_seeds_and_scales_with_their_spread() -> None:
    sizes = [smallest_resolvable_difference(seeds) for seeds in range(2, 40)]
    assert sizes == sorted(sizes, reverse=True)
    assert smallest_resolvable_difference(3, 2.0) == pytest.approx(2 * smallest_resolvable_difference(3, 1.0))
    assert smallest_resolvable_difference(3) == pytest.approx(SEED_DEVIATION * smallest_resolvable_difference(3, 1.0))
    many = 2.8016 / math.sqrt(1000)  # z(0.975) + z(0.8), to which the t test tends
    assert smallest_resolvable_difference(1000, 1.0) == pytest.approx(many, rel=1e-2)


@pytest.mark.parametrize("seeds", [0, 1])
def test_one_seed_resolves_nothing(seeds: int) -> None:
    assert math.isnan(smallest_resolvable_difference(seeds))


def test_a_plan_counts_what_the_run_will_do_and_says_it_in_json() -> None:
    config = run_config(ALL_ARMS, range(4), steps=50)
    found = plan_training(config, device=CPU, workers=2)
    assert (found.units, found.steps, found.tokens, found.workers) == (12, 50, 50 * 2 * N, 2)
    assert found.parameters == config.base.model.parameters
    assert found.smallest_difference == smallest_resolvable_difference(4)
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
