"""`rankkit merge`: what it prints, its JSON, and exit codes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from merging import WHOLE, Piece

from rankkit.cli import main
from rankkit.studies import drive
from rankkit.studies.verify import verify_file

PIECE = Piece(
    labels={**WHOLE, "sequence": (0, 1, 2, 7), "step": (12,)}, arms=("gpt", "unilm"), names=("effective_rank",)
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of a pair, each with its functional rank."""
    folder = tmp_path_factory.mktemp("parts")
    pieces = [PIECE.of(seed=(seed,)) for seed in (0, 3)]
    return [piece.write(folder / f"seed {number}.h5") for number, piece in enumerate(pieces)]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["merge", *map(str, arguments)])


def test_what_was_merged_and_the_next_command_are_printed(parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "all seeds.h5"
    result = invoke(*parts, "--out", out)
    assert result.exit_code == 0, result.output
    axes = "seed 0, 3; step 12; region full, prefix_block; applied_mask own, swapped; sequence 0-2, 7; layer 0, 2; head 0-1"
    size = f"{out.stat().st_size / 2**20:.1f} MiB"
    assert result.stdout.splitlines() == [
        f"/gpt: 128 matrices; {axes}",
        f"/unilm: 128 matrices; {axes}",
        "/comparison: gpt and unilm, computed again",
        f"file: {out}, {size}, from 2 files",
        f"next: rankkit inspect {shlex.quote(str(out))} --verify",
    ]
    assert result.stderr == ""
    assert verify_file(out) == []


def test_the_same_as_one_json_object(parts: list[Path], tmp_path: Path) -> None:
    piece = PIECE.of(seed=(0,))
    one = Piece(labels=piece.labels, arms=("gpt",), names=piece.names, functional=True).write(tmp_path / "one.h5")
    result = invoke(one, "--out", tmp_path / "out.h5", "--json")
    found = json.loads(result.stdout)
    assert found == {
        "file": str(tmp_path / "out.h5"),
        "files": [str(one)],
        "groups": {"gpt": {axis: list(labels) for axis, labels in piece.labels.items()} | {"matrices": 64}},
        "comparison": None,
        "functional": ["gpt"],
    }
    shown = invoke(one, "--out", tmp_path / "out.h5", "--force").stdout.splitlines()
    assert "/functional/gpt" in shown
    assert any(line.endswith("from 1 file") for line in shown)


def test_files_that_do_not_match_are_one_line_and_exit_with_one(parts: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    copy.write_bytes(parts[0].read_bytes())
    result = invoke(*parts, copy, "--out", tmp_path / "out.h5")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "gpt must hold no matrix of" in line
    assert invoke(tmp_path / "none.h5", "--out", tmp_path / "out.h5").exit_code == 1
    assert invoke(parts[0], "--out", copy).exit_code == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["copy.h5"]


def test_a_missing_file_is_named_before_a_result_that_exists(parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    out.write_text("mine")
    (line,) = invoke(parts[0], tmp_path / "none.h5", "--out", out).stderr.splitlines()
    assert "none.h5" in line
    (line,) = invoke(*parts, "--out", out).stderr.splitlines()
    assert f"{out} must not exist" in line
    assert out.read_text() == "mine"


def test_a_single_file_is_remarked_on(parts: list[Path], tmp_path: Path) -> None:
    result = invoke(parts[0], "--out", tmp_path / "out.h5")
    assert result.exit_code == 0, result.output
    assert result.stderr == "only one file was given: the result will hold what it holds.\n"
    assert invoke(parts[0], "--out", tmp_path / "other.h5", "--quiet").stderr == ""


@pytest.mark.parametrize("arguments", [("--out", "out.h5"), ("one.h5",), ("one.h5", "one.h5", "--out", "out.h5")])
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_an_interruption_exits_with_130_and_leaves_nothing(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive.Interruption, "__call__", lambda _: True)
    result = invoke(*parts, "--out", tmp_path / "out.h5")
    assert result.exit_code == 130
    assert result.stderr == ("Interrupted: merge was interrupted, and left nothing. Run the same command again.\n")
    assert list(tmp_path.iterdir()) == []
