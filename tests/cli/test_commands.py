"""The command line as a user meets it: results, exit codes, one-line errors, JSON, interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from rankkit.cli import main
from rankkit.cli.console import Output
from rankkit.cli.loss_table import show_losses
from rankkit.data import synthetic
from rankkit.studies import compare_losses
from rankkit.studies.plan import plan_training
from rankkit.studies.run import open_run
from rankkit.training.config import RunConfig
from rankkit.training.presets import PRESETS

SMALL = (
    "model.d_model=16", "model.num_heads=2", "model.head_dim=8", "model.num_layers=2", "model.sequence_length=32",
    "train.batch_size=2", "train.evaluation_sequences=8", "train.evaluation_interval=4", "train.checkpoint_interval=4",
    "train.log_interval=2",
)  # fmt: skip
SETTINGS = [part for assignment in SMALL for part in ("--set", assignment)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number, document in enumerate(synthetic(0, 40)):
        (folder / f"{number:02}.txt").write_text(document.text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pair"
    result = invoke(
        "train-pair", str(text), "--out", str(out), "--steps", "8", "--seeds", "0,1", "--workers", "1", *SETTINGS
    )
    assert result.exit_code == 0, result.output
    return out


def invoke(*arguments: str, stdin: str | None = None) -> Result:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(main, list(arguments), input=stdin)
    torch.set_num_threads(threads)
    return result


def one_line_error(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.output
    return errors[0]


def test_train_pair_ends_with_the_table_the_verdict_and_the_next_command(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = invoke(
        "train-pair", str(text), "--out", str(out), "--steps", "4", "--seeds", "0", "--workers", "1", *SETTINGS
    )
    assert result.exit_code == 0
    assert "suffix loss in nats per token: 8 held-out sequences" in result.stdout
    assert "No verdict: unilm - gpt is" in result.stdout
    assert f"next: rankkit spectrum {out}" in result.stdout
    assert "were trained with different" not in result.stdout
    assert json.loads((out / "certificate.json").read_text())["matched"] is True
    assert (out / "figures" / "losses.png").stat().st_size > 1000


def test_json_prints_one_object_and_nothing_else_on_stdout(text: Path, tmp_path: Path) -> None:
    result = invoke(
        "train-pair", str(text), "--out", str(tmp_path / "run"), "--steps", "4", "--seeds", "0", "--workers", "1",
        "--json", *SETTINGS,
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert set(found["arms"]) == {"gpt", "unilm"}
    assert found["arms"]["gpt"]["compute"] == 6.0 * found["arms"]["gpt"]["non_embedding_parameters"] * 4 * 2 * 32
    assert found["differences"][0]["same_mask_rms"] is None  # one seed has none, and JSON has no nan


def test_arms_of_different_machines_are_told_apart_but_still_match(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    invoke("train-pair", str(text), "--out", str(out), "--steps", "4", "--seeds", "0", "--workers", "1", *SETTINGS)
    path = out / "gpt" / "seed-0" / "step-000004" / "checkpoint.json"
    facts = json.loads(path.read_text())
    facts["environment"]["processor"] = "another one"
    path.write_text(json.dumps(facts))
    result = invoke("train-pair", "--resume", str(out), "--workers", "1")
    assert result.exit_code == 0
    assert "gpt and unilm, seed 0, were trained with different processor" in result.stdout
    assert json.loads((out / "certificate.json").read_text())["matched"] is True


def test_resuming_a_finished_run_trains_nothing_and_shows_the_same_table(run: Path) -> None:
    weights = run / "gpt" / "seed-1" / "step-000008" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    first = invoke("train-pair", "--resume", str(run), "--workers", "1", "--json")
    second = invoke("train-pair", "--resume", str(run), "--workers", "1", "--json")
    assert first.exit_code == 0
    assert json.loads(first.stdout) == json.loads(second.stdout)
    assert weights.stat().st_mtime_ns == before


def test_spectrum_measures_writes_and_splits_the_gap(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.h5"
    result = invoke("spectrum", str(run), "--samples", "4", "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    # arms x seeds x samples x layers x heads x regions x masks
    assert found["matrices"] == 2 * 2 * 4 * 2 * 2 * 4 * 2
    for rows in found["comparison"]["measures"].values():
        for row in rows:
            parts = row["mask_effect"]["mean"] + row["learned_effect"]["mean"]
            assert row["gap"]["mean"] == pytest.approx(parts, abs=1e-9)
    assert {Path(name).suffix for name in found["figures"]} == {".png", ".svg"}
    verified = invoke("inspect", str(out), "--verify")
    assert verified.exit_code == 0
    assert "whole and consistent" in verified.stdout


def test_spectrum_table_shows_effects_companions_and_what_was_resolved(run: Path, tmp_path: Path) -> None:
    result = invoke("spectrum", str(run), "--samples", "2", "--out", str(tmp_path / "s.h5"))
    assert "gap = gpt - unilm = mask effect + learned effect" in result.stdout
    assert "beside every rank: gpt / unilm" in result.stdout
    assert "lie above the arithmetic floor" in result.stdout
    assert "rows before p - 1 of the last layer enter the loss only where a shorter prefix was drawn" in result.stdout


def test_losses_of_two_seeds_say_that_two_are_few(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_losses(compare_losses(open_run(run)), Output(as_json=False, quiet=True))
    assert capsys.readouterr().out.count("Two seeds make an interval of one degree of freedom") == 1


def test_inspect_verifies_a_run_and_names_what_was_tampered_with(run: Path) -> None:
    assert invoke("inspect", str(run), "--verify").exit_code == 0
    weights = run / "unilm" / "seed-0" / "step-000004" / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        result = invoke("inspect", str(run), "--verify")
    finally:
        weights.write_bytes(original)
    assert result.exit_code == 1
    assert "PROBLEM" in result.stdout
    assert "step-000004" in result.stdout


def test_sample_continues_the_prompt_and_repeats_itself_under_one_seed(run: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("ab", encoding="utf-8")
    options = ("--prompt", str(prompt), "--max-tokens", "5", "--temperature", "1.0", "--seed", "7", "--json")
    first, again = (json.loads(invoke("sample", str(run / "unilm"), *options).stdout) for _ in range(2))
    assert first == again
    assert first["prompt"] == "ab"
    assert len(first["tokens"]) == 5
    other = json.loads(invoke("sample", str(run / "unilm" / "seed-1"), *options).stdout)
    assert other["seed"] == 1
    piped = invoke("sample", str(run / "gpt"), "--prompt", "-", "--max-tokens", "1", stdin="x")
    assert piped.stdout.startswith("x")


def test_presets_lists_every_preset_without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankkit.studies.plan._seconds_per_sequence", lambda *_: 0.01)
    found = json.loads(invoke("presets", "--json").stdout)
    assert list(found) == list(PRESETS)
    table = invoke("presets").stdout
    assert "124.3 M" in table
    assert "0.8 M" in table


TIMES = [(0.4, "0.4 s"), (90, "90 s"), (150, "2.5 min"), (119 * 60, "119 min"), (9000, "2.5 h"), (47 * 3600, "47 h"),
         (60 * 3600, "2.5 days"), (86400 * 1234, "1,234 days")]  # fmt: skip


@pytest.mark.parametrize(("seconds", "words"), TIMES)
def test_presets_say_times_in_the_unit_that_reads_best(
    monkeypatch: pytest.MonkeyPatch, seconds: float, words: str
) -> None:
    plan = plan_training(RunConfig(seeds=(0,), base=PRESETS["tiny"]()), device=torch.device("cpu"))
    monkeypatch.setattr("rankkit.studies.plan.plan_training", lambda *_, **__: replace(plan, seconds=seconds))
    rows = [line for line in invoke("presets").stdout.splitlines() if "GiB" in line]
    assert len(rows) == len(PRESETS)
    assert all(row.rstrip().endswith(f" {words}") for row in rows)


def test_plan_says_what_it_would_take_and_does_nothing(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = invoke("train-pair", str(text), "--out", str(out), "--plan", "--json", *SETTINGS)
    found = json.loads(result.stdout)
    assert found["units"] == 6
    assert found["smallest_difference"] > 0
    assert not out.exists()


def test_plan_of_a_spectrum_counts_matrices_and_writes_nothing(run: Path) -> None:
    result = invoke("spectrum", str(run), "--samples", "3", "--plan", "--json")
    assert json.loads(result.stdout)["matrices"] == 2 * 2 * 3 * 2 * 2 * 4 * 2
    assert not (run / "spectrum.h5").exists()


def test_shards_complete_a_run_only_together(text: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    options = ("--steps", "4", "--seeds", "0", "--workers", "1", *SETTINGS)
    first = invoke("train-pair", str(text), "--out", out, "--shard", "0/2", *options)
    assert first.exit_code == 0
    assert "left: unilm seed 0" in first.stdout
    second = invoke("train-pair", "--resume", out, "--workers", "1")
    assert second.exit_code == 0
    assert "No verdict" in second.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("train-pair", "missing.txt"), 1, "must exist"),
        (("train-pair", "--prefix-fraction", "1"), 2, "leaves no suffix to predict"),
        (("train-pair", "--set", "model.num_heads=0"), 2, "num_heads must be at least 1"),
        (("train-pair", "--set", "model.n_layers=3"), 2, "Did you mean num_layers"),
        (("train-pair", "--set", "model.mask=prefix"), 2, "must be left to the arms"),
        (("train-pair", "--set", "model.vocab_size=10"), 2, "must be left to the tokenizer"),
        (("train-pair", "--set", "train.precision=bfloat16", "--device", "cpu"), 2, "precision must be float32"),
        (("train-pair", "--arms", "gpt,foo"), 2, "arm must be one of gpt, unilm, gpt-full"),
        (("train-pair", "--config", "missing.toml"), 2, "config must be an existing file"),
        (("train-pair", "--resume", "missing"), 1, "must be a rankkit run"),
        (("train-pair", "--device", "tpu"), 2, "device must be auto, cpu, cuda"),
        (("spectrum", "missing"), 1, "must be a rankkit run"),
        (("inspect", "missing.h5"), 1, "missing.h5"),
        (("sample", "missing/gpt", "--prompt", "-"), 1, "must be a rankkit run"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    arguments: tuple[str, ...], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in one_line_error(invoke(*arguments), code)
    assert not list(tmp_path.rglob("run.toml"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "must not be empty"),
        (b"a\0b", "must be text"),
        (b"\xff\xfe", "must be UTF-8"),
        (b"short", "must hold at least"),
    ],
)
def test_bad_text_is_refused_and_an_existing_run_survives_force(
    content: bytes, says: str, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    before = sorted(path for path in run.rglob("*"))
    assert says in one_line_error(invoke("train-pair", str(file), "--out", str(run), "--force", *SETTINGS), 1)
    assert sorted(path for path in run.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("train-pair", "--steps", "3", "--tokens", "4"),
        ("train-pair", "--shard", "2/2"),
        ("train-pair", "--seeds", "one"),
        ("train-pair", "--resume", "x", "--steps", "3"),
        ("spectrum",),
        ("nothing",),
    ],
)
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_an_existing_run_is_refused_without_force(run: Path, text: Path) -> None:
    assert "Go on with it by --resume" in one_line_error(
        invoke("train-pair", str(text), "--out", str(run), *SETTINGS), 1
    )


def test_choices_beyond_the_run_are_refused(run: Path) -> None:
    assert "layers must be within 0..1" in one_line_error(invoke("spectrum", str(run), "--layers", "5"), 2)
    assert "samples must be at most 8" in one_line_error(invoke("spectrum", str(run), "--samples", "99"), 2)
    assert "measure must be one of" in one_line_error(invoke("spectrum", str(run), "--measures", "rank"), 2)
    assert "has arms gpt, unilm" in one_line_error(invoke("sample", str(run / "bert"), "--prompt", "-", stdin="a"), 1)
    too_long = invoke("sample", str(run / "gpt"), "--prompt", "-", stdin="a" * 40)
    assert "must fit 32 tokens" in one_line_error(too_long, 2)


def test_debug_shows_the_traceback(run: Path) -> None:
    result = invoke("spectrum", str(run), "--layers", "5", "--debug")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "ConfigurationError"


def test_help_of_every_command_has_an_example_and_imports_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from rankkit.cli import main, _COMMANDS\n"
        "for name in ((), *((name,) for name in _COMMANDS)):\n"
        "    result = CliRunner().invoke(main, [*name, '--help'])\n"
        "    assert result.exit_code == 0, result.output\n"
        "    assert not name or 'Examples:' in result.output, name\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'help must stay quick'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_preset_names_of_the_option_are_those_of_the_library() -> None:
    from rankkit.cli.train_pair import _PRESETS

    assert tuple(PRESETS) == _PRESETS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_says_how_to_resume_and_does(number: int, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rankkit.cli", "train-pair", str(text), "--out", str(out), "--steps", "4000",
               "--seeds", "0", "--workers", "1", *SETTINGS]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = out / "gpt" / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"rankkit train-pair --resume {out}" in errors
    steps = sorted(path.name for path in (out / "gpt" / "seed-0").glob("step-*"))
    assert steps[-1] > "step-000000"
    assert not list(out.rglob(".*partial*"))
