"""`rankkit inspect`: everything that a file or a run holds, and what a verification has looked at."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import h5py
import pytest
import torch
from click.testing import CliRunner, Result
from measured_run import FAST, measured
from merging import WHOLE, Piece
from small_run import PAIR, copy_of, run_config, trained_run

from rankkit.cli import main
from rankkit.spectra.baselines import BASELINE_DEFINITIONS
from rankkit.studies import Run

LAYERS, HEADS = 2, 3
OLD = Path(__file__).parents[1] / "store" / "spectrum_1_0.h5.gz"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One pair under one seed."""
    return trained_run(tmp_path_factory.mktemp("small") / "run", run_config(seeds=(0,)))


@pytest.fixture(scope="module")
def file(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of everything: steps, baselines, outputs, functional rank, a theorem that does not hold."""
    path = tmp_path_factory.mktemp("file") / "s.h5"
    measured(
        run, path, samples=1, layers=(1,), regions=("full",), checkpoints="every:12", baselines=("uniform", "logits"),
        layer_output=True, functional_scopes=("all",), functional_ranks=(1,),
        measures=("effective_rank", "mean_ipr", "log10_smallest_singular_value"),
    )  # fmt: skip
    return path


def invoke(*arguments: str | Path) -> Result:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
    torch.set_num_threads(threads)
    return result


def test_a_file_is_described_with_all_that_it_holds(file: Path) -> None:
    result = invoke(file)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    rule = "  method: full: exact (auto: a 32 x 32 matrix with its working copies takes 0.0938 MiB of 512)"
    assert lines.count(rule.replace("0.0938", "0.188")) + lines.count(rule) == 2  # of each arm, not of its baselines
    places = {arm: lines.index(next(line for line in lines if line.startswith(f"/{arm}: mask"))) for arm in PAIR}
    for arm, mask in (("gpt", "swapped"), ("unilm", "own")):
        below = lines[places[arm] : places[arm] + 5]
        assert f"  no log10_smallest_singular_value: {mask} mask: its theorem needs a triangular matrix" in below
        assert f"{2 * 2 * HEADS} matrices" in below[1]
    for name in ("uniform", "logits"):
        for arm in PAIR:
            assert f"/baselines/{name}/{arm}: {BASELINE_DEFINITIONS[name]}" in lines
    assert sum(line == "  rows need not sum to 1: these are not attention" for line in lines) == 2
    assert any(line.startswith("  no mean_ipr: its definition needs entries of at least 0") for line in lines)
    assert (
        "  effective_rank: exp(-sum p log p), p = sigma / sum(sigma) [Roy and Vetterli (2007)]; beside it "
        "effective_rank_error"
    ) in lines
    assert lines.index("of layer outputs:") > lines.index("measures:")
    (comparison,) = [line for line in lines if line.startswith("/comparison: ")]
    assert "gap, mask_effect, learned_effect, interaction of gpt and unilm; " in comparison
    assert "/comparison/by_step: the same at steps 0, 12" in lines
    for arm in PAIR:
        assert f"/functional/{arm}: loss when attention is cut to its leading singular triplets" in lines
    assert not any(line.startswith("checked") for line in lines)
    assert lines[-1] == f"{file}: not verified; --verify does it"


def test_the_same_as_one_json_object(file: Path) -> None:
    found = json.loads(invoke(file, "--verify", "--json").stdout)
    assert found["groups"] == list(PAIR)
    assert found["baselines"] == [f"baselines/{name}/{arm}" for name in ("uniform", "logits") for arm in PAIR]
    assert found["functional"] == [f"functional/{arm}" for arm in PAIR]
    assert found["comparison"]["steps"] == [0, 12]
    assert found["comparison"]["regions"] == ["full"]
    assert set(found["measured"]) == {*PAIR, *found["baselines"]}
    of_gpt = found["measured"]["gpt"]
    assert of_gpt["statuses"] == {"ok": 2 * 2 * HEADS}
    assert of_gpt["method_rule"].startswith("full: exact (auto: ")
    assert of_gpt["unavailable"].keys() == {"log10_smallest_singular_value"}
    assert (found["verified"], found["problems"]) == (True, [])
    assert "matrices" in found["checked"]
    plain = json.loads(invoke(file, "--json").stdout)
    assert (plain["verified"], plain["checked"]) == (False, None)


def test_a_verification_counts_what_it_looked_at(file: Path) -> None:
    result = invoke(file, "--verify")
    matrices = 2 * HEADS * (2 * 2 + 2 * 2)  # arms, heads; two steps under two masks, and of two baselines
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-2:] == [
        f"checked every checksum, {matrices:,} matrices and {3 * matrices:,} values of measures, {matrices:,} of them "
        "computed again from singular values",
        f"{file}: whole and consistent",
    ]


def test_estimates_are_not_said_to_be_computed_again(run: Run, tmp_path: Path) -> None:
    measured(run, tmp_path / "s.h5", samples=1, layers=(1,), regions=("full",), method="matrix-free", matrix_free=FAST)
    lines = invoke(tmp_path / "s.h5", "--verify").stdout.splitlines()
    assert any(
        line.startswith("checked ") and " 24 values of measures, 0 of them computed again" in line for line in lines
    )
    assert any(
        line.endswith("; beside it effective_rank_error, effective_rank_lower, effective_rank_upper") for line in lines
    )
    assert "  method: full: matrix-free (asked for)" in lines


def test_a_changed_number_is_named_and_exits_with_one(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "s.h5"
    copy.write_bytes(file.read_bytes())
    with h5py.File(copy, "r+") as opened:
        opened["unilm/effective_rank"][0, 0, 0, 0, 0, 0, 1] *= 1.001
    result = invoke(copy, "--verify")
    assert result.exit_code == 1
    (problem,) = [line for line in result.stdout.splitlines() if line.startswith("PROBLEM ")]
    assert "effective_rank must be what its singular values give" in problem
    assert result.stdout.splitlines()[-1] == f"{copy}: 1 problem"


def test_a_file_of_the_first_schema_is_described_without_what_it_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "old.h5").write_bytes(gzip.decompress(OLD.read_bytes()))
    result = invoke(tmp_path / "old.h5", "--verify")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "/comparison: gap, mask_effect, learned_effect, interaction; paired t over seeds" in lines
    assert not any(line.startswith("  method: ") for line in lines)
    assert lines[-2].startswith("checked every checksum, 96 matrices and 384 values of measures, 288 of them")


def test_a_run_counts_its_checkpoints_and_its_spectrum(run: Run, tmp_path: Path) -> None:
    result = invoke(run.directory.path, "--verify")
    assert result.exit_code == 0, result.output
    assert "checked tokens, certificate, and 8 checkpoints of 2 units" in result.stdout.splitlines()
    copy = copy_of(run, tmp_path / "run")
    measured(copy, copy.directory.spectrum, samples=1, layers=(0,), regions=("full",))
    assert "checked tokens, certificate, and 8 checkpoints of 2 units, and spectrum.h5" in (
        invoke(copy.directory.path, "--verify").stdout.splitlines()
    )
    assert "checked" not in invoke(run.directory.path).stdout


def two_seeds(path: Path) -> Path:
    """A pair under two seeds, with its comparison."""
    piece = Piece(labels={**WHOLE, "seed": (0, 3), "step": (12,)}, arms=PAIR, names=("effective_rank",))
    return piece.write(path)


def test_the_comparison_is_shown_whole_however_narrow_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = two_seeds(tmp_path / "s.h5")
    text = invoke(path).stdout
    lines = text.splitlines()
    assert "…" not in text
    start = lines.index(next(line for line in lines if line.startswith("full: effective rank")))
    headings = [part.strip() for part in lines[start + 2].split("  ") if part.strip()]
    assert headings == ["layer", "gap", "A/A", "mask effect", "learned effect", "interaction"]
    with h5py.File(path) as stored:
        gap, control = stored["comparison/gap"][0, 0, 0], stored["comparison/same_mask"][0, 0, 0]
    cells = [part.strip() for part in lines[start + 4].split("  ") if part.strip()]
    mean, half = map(float, cells[1].split(" ± "))
    assert (mean, half, float(cells[2])) == pytest.approx((gap[0], (gap[2] - gap[1]) / 2, control), abs=0.5)
    assert "A/A = root mean square difference between two single seeds of one arm." in lines
    assert any(line.startswith("Two seeds make an interval of one degree of freedom") for line in lines)


def test_a_control_that_is_not_known_is_neither_shown_nor_explained(file: Path) -> None:
    text = invoke(file).stdout
    assert "full: effective rank" in text
    assert "A/A" not in text
    assert "Two seeds" not in text


def test_two_arms_are_compared_with_every_effect_and_the_mark_of_what_is_hardly_trained(tmp_path: Path) -> None:
    path = two_seeds(tmp_path / "s.h5")
    result = CliRunner().invoke(main, ["compare", f"{path}::gpt", f"{path}::unilm"])
    assert result.exit_code == 0, result.output
    (said,) = [
        line for line in result.stdout.splitlines() if line.startswith("full, mean over trained layers, 2 seeds")
    ]
    assert [part.split()[0] for part in said.split(": ", 1)[1].split(", ")] == ["gap", "mask", "learned"]
    assert said.count("resolved)") == 3
    assert result.stdout.count("Two seeds make an interval of one degree of freedom") == 1
    with h5py.File(path) as stored:
        untrained = int(stored["gpt/untrained"][()].sum())
    assert sum(line.split()[:1] == ["2*"] for line in result.stdout.splitlines()) == untrained
    assert result.stdout.count("* rows before p - 1 of the last layer") == (untrained > 0) == 1
