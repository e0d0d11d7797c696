"""An interrupted measurement goes on from its finished slabs, to the same bytes."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from measured_run import FAST, FEW
from small_run import copy_of, trained_run
from store.spectra_file import edited
from tiny import CPU

from rankkit.cli.spectrum_table import decomposition_as_dict
from rankkit.errors import ConfigurationError, OutputExistsError
from rankkit.store import read_root, writer
from rankkit.store.journal.slabs import journal_path
from rankkit.studies import MeasureConfig, Measured, Run, measure_run
from rankkit.studies.measuring import measure as measure_module
from rankkit.studies.measuring.finished import finished_measurement
from rankkit.studies.measuring.measure import MeasurementInterruptedError, Progress
from rankkit.studies.measuring.run_source import RunSource

CONFIGS: dict[str, dict[str, Any]] = {
    "exact": {"samples": 3},
    "with everything beside": {
        "samples": 2, "baselines": ("uniform", "init", "shuffled"), "layer_output": True, "checkpoints": "all",
        "regions": ("full", "prefix_block"), "layers": (1,), "functional_scopes": ("all",), "functional_ranks": (1, 8),
    },
    "estimated": {"samples": 1, "method": "matrix-free", "matrix_free": FAST, "regions": ("full",), "layers": (0,)},
    "kept": {"samples": 2, "keep_qk": True, "keep_attention": True, "regions": ("full",)},
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished pair."""
    return trained_run(tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(autouse=True)
def _one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are made at one time, so that they can be compared byte for byte."""

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Frozen:
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(writer, "datetime", Frozen)


def measured(run: Run, path: Path, *, after: int | None = None, command: str = "it", **options: Any) -> Measured:
    """Measure, or be interrupted after some steps of progress."""
    heard: list[Progress] = []
    config = MeasureConfig(**{"measures": FEW, "workers": 1, **options.pop("config", {})})
    return measure_run(
        run, config, path, device=CPU, command=command, on_progress=heard.append,
        stop=lambda: after is not None and len(heard) >= after, **options,
    )  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("after", [1, 7])
def test_a_resumed_measurement_has_the_bytes_of_one_that_was_never_interrupted(
    config: dict[str, Any], after: int, small: Run, tmp_path: Path
) -> None:
    whole, path = tmp_path / "whole.h5", tmp_path / "s.h5"
    measured(small, whole, config=config)
    with pytest.raises(MeasurementInterruptedError):
        measured(small, path, config=config, after=after)
    measured(small, path, config=config, resume=True)
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s.h5", "whole.h5"]


def test_finished_slabs_are_not_computed_again(small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"samples": 1, "regions": ("full",)}
    computed: list[str] = []
    original = measure_module.spectrum

    def counting(*arguments: Any, **options: Any) -> Any:
        computed.append("spectrum")
        return original(*arguments, **options)

    monkeypatch.setattr(measure_module, "spectrum", counting)
    measured(small, tmp_path / "whole.h5", config=config)
    every = len(computed)
    with pytest.raises(MeasurementInterruptedError):
        measured(small, tmp_path / "s.h5", config=config, after=5)
    computed.clear()
    found = measured(small, tmp_path / "s.h5", config=config, resume=True, command="another")
    assert (found.resumed, len(computed)) == (5, every - 5)
    assert read_root(tmp_path / "s.h5").command == "it"


def test_a_checkpoint_whose_slabs_are_finished_is_not_loaded_again(small: Run, tmp_path: Path) -> None:
    run = copy_of(small, tmp_path / "run")
    config = {"samples": 1, "regions": ("full",), "layers": (0,)}
    with pytest.raises(MeasurementInterruptedError):
        measured(run, tmp_path / "s.h5", config=config, after=4)  # two masks under each of two seeds of the first arm
    for seed in (0, 1):
        (run.directory.checkpoint("gpt", seed, run.config.base.train.steps) / "model.safetensors").unlink()
    assert measured(run, tmp_path / "s.h5", config=config, resume=True).resumed == 4


def test_resuming_nothing_is_beginning(small: Run, tmp_path: Path) -> None:
    config = {"samples": 1, "regions": ("full",)}
    assert measured(small, tmp_path / "s.h5", config=config, resume=True).resumed == 0


def test_what_was_kept_is_neither_overwritten_nor_mixed_with_another_measurement(small: Run, tmp_path: Path) -> None:
    config, path = {"samples": 1, "regions": ("full",)}, tmp_path / "s.h5"
    with pytest.raises(MeasurementInterruptedError):
        measured(small, path, config=config, after=2)
    with pytest.raises(OutputExistsError, match="--resume"):
        measured(small, path, config=config)
    with pytest.raises(ConfigurationError, match=r"samples must be .*, '1', got '2'\. .* It was begun by: it$"):
        measured(small, path, config={**config, "samples": 2}, resume=True)
    with pytest.raises(ConfigurationError, match=r"checkpoints must be .*, 'last', got 'all'"):
        measured(small, path, config={**config, "checkpoints": "all"}, resume=True)
    with pytest.raises(ConfigurationError, match=r"layers must be .*, 'all', got '0, 1'"):
        measured(small, path, config={**config, "layers": (0, 1), "measures": ("stable_rank",)}, resume=True)
    other = replace(small, config=replace(small.config, seeds=(0,)))
    with pytest.raises(ConfigurationError):
        measured(other, path, config=config, resume=True)
    assert measured(small, path, config=config, force=True).resumed == 0


def test_a_measurement_that_replaces_a_file_does_so_after_it_was_resumed_too(small: Run, tmp_path: Path) -> None:
    config, path = {"samples": 1, "regions": ("full",)}, tmp_path / "s.h5"
    path.write_bytes(b"old")
    with pytest.raises(MeasurementInterruptedError):
        measured(small, path, config=config, after=2, force=True)
    assert path.read_bytes() == b"old"
    measured(small, path, config=config, resume=True)
    assert path.read_bytes()[:4] == b"\x89HDF"


def test_a_kill_between_the_rename_and_the_end_costs_nothing(
    small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = {"samples": 1, "regions": ("full",)}, tmp_path / "s.h5"
    with monkeypatch.context() as patch:
        patch.setattr(measure_module.Journal, "discard", lambda self: None)
        measured(small, path, config=config)
    content = path.read_bytes()
    assert journal_path(path).exists()
    measured(small, path, config=config, resume=True)
    assert path.read_bytes() == content
    assert not journal_path(path).exists()


# What is finished.

ESTIMATED: dict[str, Any] = {**CONFIGS["estimated"], "regions": ("full", "prefix_block")}


@pytest.fixture(scope="module")
def finished(small: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Measured]:
    """A file with brackets and errors."""
    path = tmp_path_factory.mktemp("finished") / "s.h5"
    return path, measured(small, path, config=ESTIMATED)


def taken(run: Run, path: Path, **config: Any) -> Measured:
    settings = MeasureConfig(**{"measures": FEW, "workers": 1, **ESTIMATED, **config})
    return finished_measurement(RunSource(run, CPU), settings, path, command="it")


def test_a_finished_file_gives_the_numbers_that_were_measured(finished: tuple[Path, Measured], small: Run) -> None:
    path, first = finished
    again = taken(small, path)
    assert again.values.keys() == first.values.keys()
    for arm, ours in again.values.items():
        theirs = first.values[arm]
        np.testing.assert_array_equal(ours.status, theirs.status)
        for ours_of, theirs_of in (
            (ours.measures, theirs.measures),
            (ours.errors, theirs.errors),
            (ours.brackets, theirs.brackets),
        ):
            assert ours_of.keys() == theirs_of.keys()
            for name, array in theirs_of.items():
                np.testing.assert_array_equal(ours_of[name], array)
    for found in (again, first):
        assert found.decomposition is not None
    assert str(decomposition_as_dict(again.decomposition)) == str(decomposition_as_dict(first.decomposition))


def another(name: str) -> Any:
    """Changes one stored entry of a variable of the first arm."""

    def edit(file: h5py.File) -> None:
        dataset = file["gpt"][name]
        place = (0,) * dataset.ndim
        stored = dataset[place]
        dataset[place] = "ab" * 32 if isinstance(stored, bytes) else (stored + 1) % 4

    return edit


@pytest.mark.parametrize(("name", "what"), [("tokens", "tokens"), ("checkpoint_sha256", "checkpoints")])
def test_a_file_of_other_tokens_or_checkpoints_is_not_taken_as_finished(
    name: str, what: str, finished: tuple[Path, Measured], small: Run, tmp_path: Path
) -> None:
    (tmp_path / "s.h5").write_bytes(finished[0].read_bytes())
    edited(tmp_path / "s.h5", another(name))
    with pytest.raises(
        OutputExistsError, match=f"to be taken as finished, but gpt has other {what}. Name another --out"
    ):
        taken(small, tmp_path / "s.h5")


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"layers": (1,)}, "layers"),
        ({"regions": ("full",)}, "regions"),
        ({"seeds": (0,)}, "seeds"),
        ({"measures": FEW[:1]}, "measures"),
    ],
)
def test_other_settings_of_the_same_words_are_not_taken_as_finished(
    config: dict[str, Any], what: str, finished: tuple[Path, Measured], small: Run
) -> None:
    with pytest.raises(OutputExistsError, match=f"gpt has other {what}. Name another --out"):
        taken(small, finished[0], **config)
