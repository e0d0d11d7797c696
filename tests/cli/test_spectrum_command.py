"""`rankkit spectrum`: what every option chooses, what it prints, and one line for what a run cannot give."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from small_run import run_config, trained_run
from tiny import N

from rankkit.axes import REGIONS
from rankkit.cli import main
from rankkit.cli import spectrum as spectrum_command
from rankkit.cli.measuring import figures_folder
from rankkit.cli.model_options import take_model_options
from rankkit.report import functional_figures, run_figures
from rankkit.spectra import MEASURES, MatrixFreeConfig
from rankkit.spectra.baselines import BASELINES
from rankkit.store import describe, read_root
from rankkit.studies import MeasureConfig, Run
from rankkit.studies.losses import ArmLosses
from rankkit.studies.measuring import measure
from rankkit.studies.verify import verify_file

LAYERS, HEADS = 2, 3
ONE = 2 * LAYERS * HEADS  # matrices of both arms, one seed, sequence, region and mask


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One pair under one seed."""
    return trained_run(tmp_path_factory.mktemp("small") / "run", run_config(seeds=(0,)))


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Figures have tests of their own, and take a second each."""

    def spectra(path: Path, folder: Path, *, measure: str) -> list[Path]:
        return [folder / f"{measure}_full.{kind}" for kind in ("png", "svg")]

    def cuts(found: object, folder: Path) -> list[Path]:
        return [folder / f"functional_rank.{kind}" for kind in ("png", "svg")]

    monkeypatch.setattr(run_figures, "draw_spectra", spectra)
    monkeypatch.setattr(functional_figures, "draw_functional_rank", cuts)
    yield
    torch.set_num_threads(1)


def invoke(run: Run | str, *arguments: str | Path) -> Result:
    folder = run if isinstance(run, str) else str(run.directory.path)
    return CliRunner().invoke(main, ["spectrum", folder, *map(str, arguments)])


def configured(*arguments: str) -> MeasureConfig:
    """What the command would measure."""
    context = spectrum_command.command.make_context("spectrum", ["RUN", *arguments])
    params = dict(context.params)
    for name in ("target", "mask", "scale", "device", "out", "force", "resume", "plan", "as_json", "quiet", "debug"):
        params.pop(name)
    take_model_options(params)
    return spectrum_command._configuration(**params)


# Options.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), {}),
        (("--samples", "3", "--sequence-length", "64", "--prefix-length", "0"),
         {"samples": 3, "sequence_length": 64, "prefix_length": 0}),
        (("--layers", "0,2-3", "--heads", "1"), {"layers": (0, 2, 3), "heads": (1,)}),
        (("--regions", "full, first_key_removed"), {"regions": ("full", "first_key_removed")}),
        (("--regions", "all"), {"regions": REGIONS}),
        (("--checkpoints", "every:100"), {"checkpoints": "every:100"}),
        (("--measures", "mean_ipr"), {"measures": ("mean_ipr",)}),
        (("--measures", "all"), {"measures": tuple(MEASURES)}),
        (("--baselines", "uniform,init"), {"baselines": ("uniform", "init")}),
        (("--baselines", "all"), {"baselines": BASELINES}),
        (("--layer-output",), {"layer_output": True}),
        (("--functional",), {"functional_scopes": ("all", "layer")}),
        (("--functional", "--functional-scopes", "head", "--functional-ranks", "1,4-6"),
         {"functional_scopes": ("head",), "functional_ranks": (1, 4, 5, 6)}),
        (("--method", "matrix-free", "--leading", "8", "--half-width", "0.2"),
         {"method": "matrix-free", "matrix_free": MatrixFreeConfig(leading=8, half_width=0.2)}),
        (("--memory", "3", "--workers", "2"), {"memory_budget": 3 << 20, "workers": 2}),
        (("--seeds", "0,2", "--shard", "1/3"), {"seeds": (0, 2), "shard": (1, 3)}),
        (("--keep-qk", "--keep-attention", "--keep-limit", "0.5"),
         {"keep_qk": True, "keep_attention": True, "keep_limit": 2**29}),
    ],
)  # fmt: skip
def test_every_option_chooses_what_it_says(arguments: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert configured(*arguments) == MeasureConfig(**expected)


def test_every_setting_of_a_measurement_has_an_option() -> None:
    options = {parameter.name for parameter in spectrum_command.command.params}
    renamed = {"memory_budget": "memory", "matrix_free": "half_width", "functional_scopes": "functional"}
    assert {renamed.get(name, name) for name in MeasureConfig.__dataclass_fields__} <= options


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--checkpoints", "first"), "checkpoints must be last, all or every:N, got 'first'. Write every:100"),
        (("--checkpoints", "every:0"), "checkpoints must be last, all or every:N, got 'every:0'"),
        (("--baselines", "random"), "baselines must be among uniform, init, shuffled, gaussian, logits, got ['random']"),
        (("--baselines", "init,init"), "baselines must hold no name twice"),
        (("--regions", "suffix"), "regions must be among full, prefix_block"),
        (("--regions", ","), "regions must hold at least one name, got none"),
        (("--measures", "rank"), "measure must be one of numerical_rank"),
        (("--half-width", "0"), "half_width must be between 0 and 1, got 0.0. Pass 0.05 for 5%"),
        (("--half-width", "nan"), "half_width must be between 0 and 1, got nan"),
        (("--leading", "0"), "Invalid value for '--leading'"),
        (("--memory", "0"), "Invalid value for '--memory'"),
        (("--method", "lanczos"), "Invalid value for '--method'"),
        (("--layers", "5-2"), "Invalid value for --layers: must be numbers such as 0,2,5-8, got '5-2'"),
        (("--layers", "2"), "layers must be within 0..1, got [2]"),
        (("--samples", "4"), "samples must be at most 3 (evaluation sequences of this run), got 4"),
        (("--prefix-length", "33"), "prefix_length must be between 0 and 32 (sequence_length), got 33"),
        (("--functional-scopes", "all"), "--functional-scopes must stand with --functional: nothing is cut without it"),
        (("--functional-ranks", "1"), "--functional-ranks must stand with --functional: nothing is cut without it"),
        (("--functional", "--functional-scopes", ","), "must be among all, layer, head, got ','"),
        (("--functional", "--functional-scopes", "heads"), "functional_scopes must be among all, layer, head"),
        (("--functional", "--functional-ranks", "0"), "ranks must be within 1..32 (sequence_length), got [0]"),
        (("--functional", "--functional-ranks", "33"), "ranks must be within 1..32 (sequence_length), got [33]"),
        (("--functional", "--functional-ranks", "x"), "must be numbers such as 0,2,5-8, got 'x'"),
        (("--functional", "--sequence-length", "20"), "sequence_length must be 32 (the run's) for functional rank, got 20"),
        (("--functional", "--prefix-length", "32"), "prefix_length must be below 32 to leave tokens to predict"),
        (("--device", "tpu"), "device must be auto, cpu, cuda"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_before_anything_is_measured(
    arguments: tuple[str, ...], says: str, run: Run, tmp_path: Path
) -> None:
    result = invoke(run, *arguments, "--out", tmp_path / "s.h5")
    assert result.exit_code == 2, result.output
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert says in error
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


# Plans.


def test_a_plan_refuses_what_a_measurement_would(run: Run) -> None:
    for arguments in (("--layers", "2"), ("--functional", "--functional-ranks", "33")):
        assert invoke(run, *arguments, "--plan").exit_code == 2


def test_a_plan_names_sizes_methods_and_cuts_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    options = ("--samples", "2", "--checkpoints", "every:8", "--functional", "--functional-ranks", "1,8", "--plan")
    result = invoke(run, *options, "--out", tmp_path / "s.h5")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"matrices: {2 * 3 * ONE * 2 * 4:,}; sequences: 2; steps: 0, 8, 12"
    for line, (region, size) in zip(lines[1:5], zip(REGIONS, (32, 16, 31, 15), strict=True), strict=True):
        assert line.startswith(f"  {region}: {size} x {size}, exact (auto: a {size} x {size} matrix with its working")
    passes, decompositions = 2 * 2 * 2 * (1 + LAYERS), 2 * 2 * HEADS * (LAYERS + 4 * (LAYERS - 1))
    assert lines[5] == f"functional rank: {passes} forward passes, {decompositions} matrices decomposed"
    assert lines[6].startswith("time: about ")
    assert list(tmp_path.iterdir()) == []
    plain = json.loads(invoke(run, *options, "--json").stdout)
    assert plain["functional"] == {"forward_passes": passes, "matrices_decomposed": decompositions, "ranks": [1, 8]}
    assert (plain["matrices"], plain["steps"], plain["sequences"]) == (2 * 3 * ONE * 2 * 4, [0, 8, 12], 2)
    assert plain["sizes"] == dict(zip(REGIONS, (32, 16, 31, 15), strict=True))
    assert set(plain["methods"].values()) == {"exact"}
    assert plain["seconds"] > 0


def test_a_plan_says_of_each_region_whether_it_is_estimated_and_why(run: Run) -> None:
    options = ("--sequence-length", "300", "--memory", "2", "--plan", "--json", "--baselines", "uniform,logits")
    plain = json.loads(invoke(run, *options).stdout)
    assert plain["methods"] == {
        "full": "matrix-free", "prefix_block": "exact", "first_key_removed": "matrix-free",
        "prefix_block_first_key_removed": "exact",
    }  # fmt: skip
    assert plain["rules"]["full"].startswith("auto: a 300 x 300 matrix with its working copies takes 4.12 MiB of 2")
    assert plain["functional"] is None
    assert (plain["sequences"], plain["matrices"]) == (1, ONE * 3 * 4)


def test_more_tokens_than_the_models_were_trained_on_are_measured_with_a_warning(run: Run, tmp_path: Path) -> None:
    options = (
        "--sequence-length",
        "48",
        "--samples",
        "1",
        "--layers",
        "0",
        "--regions",
        "full",
        "--measures",
        "mean_ipr",
    )
    warning = f"warning: 48 tokens are more than the {N} that the models were trained on."
    for more in (("--plan",), ("--out", tmp_path / "s.h5")):
        result = invoke(run, *options, *more)
        assert result.exit_code == 0, result.output
        assert warning in result.stderr.splitlines()
    assert verify_file(tmp_path / "s.h5") == []
    assert invoke(run, *options, "--plan", "--quiet").stderr == ""
    assert invoke(run, "--sequence-length", N, "--plan").stderr == ""


def test_learned_positions_cannot_be_exceeded(tmp_path: Path) -> None:
    learned = trained_run(tmp_path / "run", run_config(seeds=(0,), model={"position": "learned"}, steps=2))
    result = invoke(learned, "--sequence-length", N + 1, "--method", "matrix-free", "--layers", "1", "--heads", "0")
    assert result.exit_code == 2
    assert "sequence_length must be at most 32 with learned positions, got 33. Shorten it." in result.stderr
    assert not learned.directory.spectrum.exists()


# Results.


def test_the_result_is_one_json_object(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "s.h5"
    result = invoke(
        run, "--samples", "1", "--layers", "1", "--regions", "full", "--checkpoints", "every:12", "--baselines",
        "init", "--functional", "--functional-ranks", "1", "--functional-scopes", "layer", "--measures",
        "effective_rank,mean_ipr", "--out", out, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["matrices"] == 2 * HEADS * (2 * 2 + 1)  # arms, heads, two steps under two masks, init
    assert found["file"] == str(out)
    assert found["comparison"]["step"] == 12
    assert found["comparison"]["measures"].keys() == {"effective_rank", "mean_ipr"}
    assert found["statuses"] == {
        arm: {"ok": 2 * 2 * HEADS, "estimated": 0, "degenerate": 0, "failed": 0} for arm in ("gpt", "unilm")
    }
    assert found["functional"]["ranks"] == [1]
    assert found["functional"]["scopes"].keys() == {"layer"}
    assert [Path(figure).name for figure in found["figures"]] == [
        "effective_rank_full.png", "effective_rank_full.svg", "functional_rank.png", "functional_rank.svg"
    ]  # fmt: skip
    assert verify_file(out) == []
    again = invoke(run, "--samples", "1", "--layers", "1", "--regions", "full", "--out", out)
    assert again.exit_code == 1
    assert "must not exist yet" in again.stderr


def test_everything_is_shown_and_ends_with_what_to_do_next(run: Run, tmp_path: Path) -> None:
    result = invoke(
        run, "--samples", "2", "--regions", "prefix_block", "--checkpoints", "every:12", "--baselines", "uniform",
        "--layer-output", "--functional", "--functional-ranks", "1,32", "--functional-scopes", "all", "--measures",
        "effective_rank,log10_smallest_singular_value", "--out", tmp_path / "s.h5",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for part in (
        "prefix block: effective rank (one seed: no verdict)",
        "through training, prefix block: effective rank",
        "uniform = the same mask, all logits equal",
        "layer outputs: effective rank",
        "singular values of the prefix_block matrix lie above the arithmetic floor",
        "gpt: no log10 smallest singular value (swapped mask: its theorem needs a triangular matrix)",
        "unilm: no log10 smallest singular value (own mask: its theorem needs a triangular matrix)",
        "extra suffix loss, nats per token: all heads cut to k of 32",
    ):
        assert part in result.stdout, part
    lines = result.stdout.splitlines()
    assert lines[0] == f"n = {N}, p = {N // 2}; 2 sequences of 2 documents; layers 0-1, heads 0-2; step 0, 12"
    assert f"figures: 2 in {tmp_path / 's-figures'}, such as effective_rank_full.png" in lines
    assert lines[-1] == f"next: rankkit inspect {tmp_path / 's.h5'} --verify"
    assert "96 matrices, about " in result.stderr


@pytest.mark.parametrize("enough", [False, True])
def test_an_arm_that_learned_too_little_is_said_to_where_its_ranks_are_shown(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, enough: bool
) -> None:
    if enough:
        monkeypatch.setattr(ArmLosses, "is_trained_enough", True)
    out = tmp_path / "s.h5"
    result = invoke(run, "--samples", "1", "--layers", "1", "--regions", "full", "--out", out)
    assert result.exit_code == 0, result.output
    for arm in ("gpt", "unilm"):
        assert (f"note: {arm} is not trained enough: " in result.stdout) != enough
    assert [group.attributes["trained_enough"] for group in describe(out).groups] == [int(enough)] * 2
    inspected = CliRunner().invoke(main, ["inspect", str(out)])
    assert inspected.stdout.count("  not trained enough: ") == (0 if enough else 2)


def test_estimates_are_counted_in_the_table_and_named_in_the_plan_of_the_file(run: Run, tmp_path: Path) -> None:
    result = invoke(
        run, "--samples", "1", "--layers", "1", "--heads", "0,1", "--regions", "full", "--method", "matrix-free",
        "--leading", "5", "--half-width", "0.3", "--measures", "effective_rank,decay_exponent", "--out", tmp_path / "s.h5",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "8 of 8 matrices have a bracket instead of a value" in text
    assert "of the 5 leading singular values of the full matrix" in text
    assert "gpt: no decay exponent (it needs all singular values, and only the leading ones are known)" in text


def test_figures_stand_in_the_run_or_under_the_name_of_the_file(tmp_path: Path) -> None:
    assert figures_folder(tmp_path / "spectrum.h5") == tmp_path / "figures"
    assert figures_folder(tmp_path / "training.h5") == tmp_path / "training-figures"


@pytest.mark.parametrize(
    ("arms", "measures", "why"),
    [
        (("unilm", "gpt-full"), "effective_rank", "there are no causal and prefix arm with the same objective"),
        (("gpt", "unilm"), "sink_position", "nothing was measured that has a mean"),
    ],
)
def test_where_there_is_no_gap_it_says_why(
    arms: tuple[str, ...], measures: str, why: str, run: Run, tmp_path: Path
) -> None:
    which = run if arms == ("gpt", "unilm") else trained_run(tmp_path / "run", run_config(arms, (0,)))
    options = ("--samples", "1", "--layers", "0", "--regions", "full", "--measures", measures)
    result = invoke(which, *options, "--out", tmp_path / "s.h5")
    assert result.exit_code == 0, result.output
    assert f"No gap to split: {why}." in result.stdout.splitlines()
    assert f"such as {measures}_full.png" in result.stdout


def test_an_arm_without_a_partner_has_the_table_of_a_single_model(tmp_path: Path) -> None:
    alone = trained_run(tmp_path / "run", run_config(("unilm",), (0,)))
    result = invoke(alone, "--samples", "1", "--layers", "0", "--regions", "full", "--out", tmp_path / "s.h5")
    assert result.exit_code == 0, result.output
    assert "unilm (prefix), full: effective rank" in result.stdout
    assert "No gap" not in result.stdout


def test_without_a_picture_no_figures_are_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_figures, "draw_spectra", lambda path, folder, *, measure: [])
    options = ("--samples", "1", "--layers", "0", "--regions", "full", "--measures", "effective_rank")
    result = invoke(run, *options, "--out", tmp_path / "s.h5")
    assert result.exit_code == 0, result.output
    assert "figures:" not in result.stdout


def test_an_interruption_says_what_is_kept_and_how_to_go_on_and_exits_with_130(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second slab asks to stop, as Ctrl-C would; the command that is printed finishes the file."""
    original, asked = measure._Measurement._report, []

    def stopping(self: Any, done: float, label: str) -> None:
        asked.append(label)
        monkeypatch.setattr(self, "_stop", lambda: len(asked) == 2)
        original(self, done, label)

    monkeypatch.setattr(measure._Measurement, "_report", stopping)
    options = ("--samples", "1", "--regions", "full", "--measures", "mean_ipr", "--out", tmp_path / "s.h5")
    monkeypatch.setattr("sys.argv", ["rankkit", "spectrum", "RUN", *map(str, options)])
    result = invoke(run, *options)
    assert result.exit_code == 130
    assert "Interrupted: measurement was interrupted; 2 finished slabs are kept." in result.stderr
    assert f"Continue with: rankkit spectrum RUN {shlex.join(map(str, options))} --resume" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5.journal"]
    refused = invoke(run, *options)
    assert refused.exit_code == 1
    assert "--resume" in refused.stderr
    monkeypatch.setattr("sys.argv", ["rankkit", "spectrum", "RUN", *map(str, options), "--resume"])
    finished = invoke(run, *options, "--resume")
    assert finished.exit_code == 0, finished.output
    assert "finished slabs taken over: 2" in finished.stderr
    assert read_root(tmp_path / "s.h5").command == f"rankkit spectrum RUN {shlex.join(map(str, options))}"


def test_resuming_what_is_finished_prints_its_table_and_another_command_is_told_what_differs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*options: Any) -> Result:
        monkeypatch.setattr("sys.argv", ["rankkit", "spectrum", "RUN", *map(str, options)])
        return invoke(run, *options)

    options = ("--samples", "1", "--regions", "full", "--measures", "mean_ipr", "--out", tmp_path / "s.h5")
    first = said(*options)
    content = (tmp_path / "s.h5").read_bytes()
    again = said(*options, "--resume")
    assert again.exit_code == 0, again.output
    assert "s.h5 is finished: this very command made it" in again.stderr
    tables = [result.stdout.partition("matrices in")[0].splitlines()[:-1] for result in (first, again)]
    assert tables[0] == tables[1]
    other = said(*options, "--layers", "0", "--resume")
    assert other.exit_code == 1
    assert "to be taken as finished, but it was made by 'rankkit spectrum RUN --samples 1" in other.stderr
    assert "--force" not in other.stderr
    assert (tmp_path / "s.h5").read_bytes() == content


def test_help_names_every_option_in_a_line_or_two() -> None:
    text = CliRunner().invoke(main, ["spectrum", "--help"]).stdout
    for parameter in spectrum_command.command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in text
            assert parameter.help, parameter.name
