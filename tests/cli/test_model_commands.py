"""`rankkit spectrum hf:PATH` and `rankkit compare` as somebody types them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hf_models import saved_model, saved_text

from rankkit.cli import main, measuring
from rankkit.store import describe, read_group
from rankkit.studies.verify import verify_file

PAGE = (Path(__file__).parents[2] / "rankkit" / "hooks" / "README.md").read_text(encoding="utf-8")
FEW = ("--sequence-length", "16", "--samples", "2", "--workers", "1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models and some text."""
    folder = tmp_path_factory.mktemp("models")
    saved_model(folder / "gpt2")
    saved_model(folder / "bert", "BertForMaskedLM")
    saved_text(folder / "text.jsonl", words=30)
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which take longer than all else."""
    monkeypatch.setattr(measuring, "_figures", lambda found, path: [])


def invoke(*arguments: Any) -> Result:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(main, [*map(str, arguments)])
    torch.set_num_threads(threads)
    return result


@pytest.mark.usefixtures("undrawn")
def test_a_model_is_measured_where_one_stands(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(
        "spectrum", f"hf:{root / 'gpt2'}", "--text", root / "text.jsonl", *FEW, "--swap-mask", "prefix:6", "--json"
    )
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["file"] == "gpt2-spectrum.h5"
    assert "captured (qk: GPT2LMHeadModel supports SDPA) and checked (16 matrices of the first 2" in result.stderr
    assert "of the output 0" in result.stderr
    stored = read_group("gpt2-spectrum.h5", "gpt2")
    (row,) = [
        row
        for row in said["models"]["gpt2"]["0"]["measures"]["effective_rank"]
        if (row["region"], row["layer"]) == ("prefix_block", 1)
    ]
    place = stored["region"].tolist().index("prefix_block")
    own, swapped = (stored["effective_rank"][0, 0, place, applied, :, 1].mean() for applied in (0, 1))
    np.testing.assert_allclose([row["own"]["mean"], row["swapped"]["mean"]], [own, swapped])


@pytest.mark.usefixtures("undrawn")
def test_the_table_of_a_model_shows_its_masks_and_steps(root: Path, tmp_path: Path) -> None:
    for step in (1, 20):
        saved_model(tmp_path / "run" / f"checkpoint-{step}", seed=step)
    out = tmp_path / "s.h5"
    result = invoke(
        "spectrum", f"hf:{tmp_path / 'run'}", "--revision", "checkpoint-1,checkpoint-20", "--text", root / "text.jsonl",
        *FEW, "--swap-mask", "bidirectional", "--regions", "full", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    printed = " ".join(result.stdout.split())
    for words in ("run (causal), full: effective rank", "under bidirectional", "run through training: effective rank"):
        assert words in printed
    assert describe(out).groups[0].labels["step"] == (1, 20)


def test_a_plan_measures_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("spectrum", f"hf:{root / 'bert'}", "--text", root / "text.jsonl", *FEW, "--plan")
    assert result.exit_code == 0, result.output
    assert "matrices: 32; sequences: 2; steps: 0" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("spectrum", "run", "--text", "t"), 2, "--text must stand with hf:PATH: only a model needs it."),
        (("spectrum", "run", "--allow-pickle"), 2, "--allow-pickle must stand with hf:PATH"),
        (
            ("spectrum", "hf:m", "--mask", "causal"),
            2,
            "--mask and --scale must stand with ARRAYS: a model has its own.",
        ),
        (("spectrum", "hf:m"), 2, "exactly one of text, tokens and pixels must be given, got none."),
        (("spectrum", "hf:./m", "--text", "t"), 2, "model folder must exist, got './m'. Check the path after hf:."),
        (("compare", "a.h5", "b.h5", "--swap-mask", "other"), 2, "--swap-mask must stand with hf:PATH"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == code
    assert message in result.output


def test_models_that_cannot_be_compared_are_refused_before_they_are_measured(root: Path, tmp_path: Path) -> None:
    saved_model(tmp_path / "t5", "T5ForConditionalGeneration")
    saved_model(tmp_path / "other", bos=True)
    options = ("--text", root / "text.jsonl", "--sequence-length", 16, "--samples", 2, "--out", tmp_path)
    gpt2 = f"hf:{root / 'gpt2'}"
    for second, message in (
        (
            f"hf:{tmp_path / 't5'}",
            "must have one kind of attention, or one be named, got encoder, decoder, cross. Write hf:",
        ),
        (f"hf:{tmp_path / 't5'}::middle", "or one be named, got encoder, decoder, cross"),
        (f"hf:{root / 'bert'}::encoder", "or one be named, got one alone"),
        (f"hf:{tmp_path / 'other'}", "must read the same tokens, got others. Models with different tokenizers"),
    ):
        result = invoke("compare", gpt2, second, *options)
        assert (result.exit_code, list(tmp_path.glob("*.h5"))) == (2, [])
        assert message in result.stderr
    result = invoke("compare", *2 * [f"hf:{tmp_path / 't5'}::encoder"], *options, "--heads", 0)
    assert result.exit_code == 0, result.output


def test_a_model_without_hf_before_it_says_what_to_write(root: Path) -> None:
    result = invoke("spectrum", root / "gpt2")
    assert result.exit_code == 2
    assert f"{root / 'gpt2'} is a Hugging Face model: write hf:{root / 'gpt2'}." in result.stderr


def test_functional_rank_of_a_model_is_refused(root: Path) -> None:
    result = invoke("spectrum", f"hf:{root / 'gpt2'}", "--text", root / "text.jsonl", *FEW, "--functional")
    assert result.exit_code == 2
    assert "functional rank must have the model" in result.stderr


def test_two_models_are_compared_each_under_the_mask_of_the_other(root: Path, tmp_path: Path) -> None:
    arguments = (
        "compare", f"hf:{root / 'gpt2'}", f"hf:{root / 'bert'}", "--text", root / "text.jsonl", *FEW, "--swap-mask", "other",
        "--out", tmp_path,
    )  # fmt: skip
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    for words in ("mask effect", "learned effect", "No verdict: without paired seeds", "on the same 2 sequences"):
        assert words in result.stdout
    files = [tmp_path / f"{name}-spectrum.h5" for name in ("gpt2", "bert")]
    swapped = [describe(path).groups[0].attributes["swapped_mask"] for path in files]
    assert swapped == ["bidirectional", "causal"]
    again = invoke("compare", *files, "--json", "--measures", "all")
    assert again.exit_code == 0, again.output
    said = json.loads(again.stdout)
    assert (said["verdict"], said["layers_correspond"]) == (False, True)
    row = said["measures"]["effective_rank"][0]
    own = [
        read_group(path, name)["effective_rank"][0, 0, 0, 0, :, 0].mean()
        for path, name in zip(files, ("gpt2", "bert"), strict=True)
    ]
    np.testing.assert_allclose([interval["mean"] for interval in row["own"]], own)
    assert row["gap"]["mean"] == pytest.approx(row["mask_effect"]["mean"] + row["learned_effect"]["mean"])
    refused = invoke(*arguments)
    assert refused.exit_code == 1
    assert "gpt2-spectrum.h5" in refused.stderr
    unknown = invoke("compare", *files, "--measures", "nothing")
    assert unknown.exit_code == 2
    assert "must be among" in unknown.output


@pytest.mark.usefixtures("undrawn")
def test_the_example_of_the_page_makes_a_model_and_measures_it_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snippet, *_ = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    command = next(line.strip() for line in PAGE.splitlines() if "hf:tiny-llama" in line)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    exec(compile(snippet, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert "Causal()" in "".join(printed)
    assert printed[-1] == "(1, 1, 2, 2, 2, 2, 4)"
    result = invoke(*shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert verify_file(tmp_path / "tiny-llama-spectrum.h5") == []
