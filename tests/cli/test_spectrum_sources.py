"""`rankkit spectrum` of files with kept factors, and of arrays that were made elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from small_run import run_config, trained_run

from rankkit.cli import main
from rankkit.cli.measuring import check_some_measured
from rankkit.errors import SpectrumFileError
from rankkit.store import describe, read_group
from rankkit.studies import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One pair under two seeds."""
    return trained_run(tmp_path_factory.mktemp("small") / "run", run_config())


@pytest.fixture(scope="module")
def kept(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spectrum file with its factors, made by the command."""
    path = tmp_path_factory.mktemp("kept") / "kept.h5"
    result = invoke(run.directory.path, "--samples", "2", "--keep-qk", "--out", path)
    assert result.exit_code == 0, result.output
    assert "keeping 0.094 MiB before compression" in result.stderr or "before compression" in result.stderr
    return path


def invoke(*arguments: Any) -> Result:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(main, ["spectrum", *map(str, arguments)])
    torch.set_num_threads(threads)
    return result


def test_a_file_prints_the_table_that_its_run_printed(run: Run, kept: Path, tmp_path: Path) -> None:
    of_run = invoke(run.directory.path, "--samples", "2", "--out", tmp_path / "a.h5")
    of_file = invoke(kept, "--out", tmp_path / "b.h5")
    assert of_file.exit_code == 0, of_file.output
    tables = [result.stdout.partition("matrices in")[0].splitlines()[:-1] for result in (of_run, of_file)]
    assert tables[0] == tables[1]
    np.testing.assert_array_equal(
        read_group(tmp_path / "a.h5", "unilm")["singular_values"],
        read_group(tmp_path / "b.h5", "unilm")["singular_values"],
    )


def test_a_file_is_measured_beside_itself_unless_told_otherwise(kept: Path) -> None:
    result = invoke(kept, "--layers", "0", "--regions", "full", "--samples", "1")
    assert result.exit_code == 0, result.output
    made = kept.with_name("kept-measured.h5")
    assert f"file: {made}" in result.stdout
    assert describe(made).groups[0].dimensions["layer"] == 1
    made.unlink()


def test_a_file_that_holds_less_is_measured_as_it_was(run: Run, tmp_path: Path) -> None:
    few = ("--samples", "1", "--layers", "1", "--heads", "2", "--regions", "full", "--measures", "stable_rank")
    assert invoke(run.directory.path, *few, "--keep-qk", "--out", tmp_path / "kept.h5").exit_code == 0
    result = invoke(tmp_path / "kept.h5")
    assert result.exit_code == 0, result.output
    (one, _), (again, _) = (describe(tmp_path / name).groups for name in ("kept.h5", "kept-measured.h5"))
    assert (again.labels, again.measures) == (one.labels, one.measures)
    refused = invoke(tmp_path / "kept.h5", "--regions", "prefix_block", "--out", tmp_path / "other.h5")
    assert refused.exit_code == 2
    assert "got prefix_block. Write --regions full." in " ".join(refused.stderr.split())


def test_seeds_and_shards_are_parts_of_the_whole(run: Run, kept: Path, tmp_path: Path) -> None:
    result = invoke(run.directory.path, "--samples", "2", "--seeds", "1", "--out", tmp_path / "s.h5")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(
        read_group(tmp_path / "s.h5", "gpt")["effective_rank"][0], read_group(kept, "gpt")["effective_rank"][1]
    )
    refused = invoke(run.directory.path, "--samples", "2", "--shard", "0/2", "--out", tmp_path / "t.h5")
    assert refused.exit_code == 2
    assert (
        "shard must be of at most 1 here, because a shard holds whole batches of 8 sequences and there are 2, got 0/2"
        in refused.stderr
    )


def test_the_plan_says_what_would_be_kept_and_more_than_the_limit_is_refused(run: Run, tmp_path: Path) -> None:
    options = ("--samples", "2", "--keep-qk", "--keep-attention", "--out", tmp_path / "s.h5")
    found = json.loads(invoke(run.directory.path, *options, "--plan", "--json").stdout)
    assert found["kept_bytes"] > 0
    assert any(line.startswith("kept: ") for line in invoke(run.directory.path, *options, "--plan").stdout.splitlines())
    refused = invoke(run.directory.path, *options, "--keep-limit", "0.0001")
    assert refused.exit_code == 2
    assert "Raise --keep-limit" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_measured_under_the_mask_that_they_were_made_under(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "qk.npz", **{name: generator.normal(size=(2, 4, 24, 8)) for name in ("queries", "keys")})
    result = invoke(tmp_path / "qk.npz", "--mask", "prefix:8")
    assert result.exit_code == 0, result.output
    (group,) = describe(tmp_path / "qk-measured.h5").groups
    assert (group.name, group.attributes["mask"], group.dimensions["head"]) == ("arrays", "prefix", 4)
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"n = 24, p = 8; 1 sequences?; layers 0-1, heads 0-3", lines[0])
    assert "No gap" not in result.stdout
    means = read_group(tmp_path / "qk-measured.h5", "arrays")["effective_rank"][0, 0, 0, :, 0].mean(axis=-1)
    table = lines[lines.index("arrays (prefix), full: effective rank".ljust(len(lines[2]))) :]
    row = next(line.split() for line in table if line.split()[:1] == ["1"])
    assert row[1:3] == [f"{mean:.4g}" for mean in means[:, 1]]
    floor = next(line for line in result.stdout.splitlines() if "model floor" in line)
    assert "float64" in floor


def test_matrices_print_their_ranks_without_a_prefix_that_they_do_not_have(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.tril(np.ones((2, 3, 6, 6))) / np.arange(1, 7)[:, None])
    result = invoke(tmp_path / "a.npy", "--mask", "causal")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"n = 6; 1 sequences?; layers 0-1, heads 0-2", result.stdout.splitlines()[0])
    assert "arrays (causal), full: effective rank" in result.stdout
    assert "the floors may have moved one matrix's effective rank by" in result.stdout
    assert "No gap" not in result.stdout


def test_arrays_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((4, 4), np.nan))
    result = invoke(tmp_path / "a.npy", "--mask", "none")
    assert result.exit_code == 1
    assert (
        "must hold finite numbers, got nan at entry (0, 0) of attention, sequence 0, layer 0, head 0" in result.stderr
    )


def test_a_measurement_of_which_nothing_came_is_an_error() -> None:
    counts = {"ok": 0, "estimated": 0, "degenerate": 0, "failed": 3}
    with pytest.raises(SpectrumFileError, match=r"s\.h5 must hold spectra, but all 6 matrices failed"):
        check_some_measured({"file": "s.h5", "statuses": {"gpt": counts, "unilm": counts}})
    check_some_measured({"file": "s.h5", "statuses": {"gpt": counts, "unilm": counts | {"ok": 1}}})


def test_the_floor_that_half_precision_leaves_is_said(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((4, 24, 24))
    np.save(tmp_path / "a.npy", (rows / rows.sum(axis=-1, keepdims=True)).astype(np.float16))
    result = invoke(tmp_path / "a.npy", "--mask", "none")
    assert result.exit_code == 0, result.output
    assert any("float16" in line and "model floor" in line for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--mask must say under which mask ARRAYS were made"),
        (("--scale", "1"), "--mask must say under which mask ARRAYS were made"),
        (("--mask", "lower"), "mask must be causal, prefix:P or none, got 'lower'"),
        (("--mask", "causal"), "causal hides an entry"),
    ],
)
def test_arrays_without_their_mask_are_refused(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((4, 4), 0.25))
    result = invoke(tmp_path / "a.npy", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npy"]


def test_a_mask_for_what_says_its_own_is_refused(run: Run, kept: Path) -> None:
    result = invoke(run.directory.path, "--mask", "causal")
    assert (result.exit_code, "a run says its own" in result.stderr) == (2, True)
    result = invoke(kept, "--scale", "1")
    assert (result.exit_code, "has its own" in " ".join(result.stderr.split())) == (2, True)
