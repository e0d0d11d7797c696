"""Arms with another task on the command line: tables, JSON, plan, inspection, and going on from a trained arm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from rankkit.cli import main
from rankkit.data import synthetic
from rankkit.statistics import smallest_resolvable_difference
from rankkit.studies.plan import SEED_DEVIATION

SETTINGS = [
    part
    for setting in (
        "model.d_model=16", "model.num_heads=2", "model.head_dim=8", "model.num_layers=2", "model.sequence_length=32",
        "train.batch_size=2", "train.evaluation_sequences=8", "train.masked_fraction=0.4",
    )
    for part in ("--set", setting)
]  # fmt: skip


def invoke(*arguments: str | Path) -> Result:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(main, list(map(str, arguments)))
    torch.set_num_threads(threads)
    return result


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number, document in enumerate(synthetic(0, 40)):
        (folder / f"{number:02}.txt").write_text(document.text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("runs") / "run"
    arms = "gpt,gpt-full,unilm,bert,mixed-heads"
    result = invoke(
        "train-pair", text, "--out", out, "--steps", "2", "--seeds", "0,1", "--workers", "1", "--arms", arms, *SETTINGS
    )
    assert result.exit_code == 0, result.output
    return out, result


def test_each_task_has_a_table_and_losses_of_two_tasks_are_not_subtracted(trained: tuple[Path, Result]) -> None:
    out, result = trained
    said = result.stdout
    assert "suffix loss in nats per token: 8 held-out sequences" in said
    assert "masked loss in nats per token: 8 held-out sequences" in said
    assert "every predicted token hidden" in said
    for name in ("bigram model", "neighbours model", "hidden unigram model"):
        assert name in said
    assert "unilm - gpt-full (differ in mask and objective together): " in said
    assert "mixed-heads - bert (differ in mask): " in said
    assert "bert - gpt" not in said
    assert (
        "Not subtracted from each other, being means over different targets: the suffix losses of gpt, gpt-full, unilm and "
        "the masked losses of bert, mixed-heads."
    ) in said
    assert "note: bert is not trained enough: its loss is not below that of the neighbours model" in said
    for name in ("losses", "losses_masked"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 1000


def test_json_says_the_same(trained: tuple[Path, Result]) -> None:
    found = json.loads(invoke("train-pair", "--resume", trained[0], "--workers", "1", "--json").stdout)
    bert, gpt = found["arms"]["bert"], found["arms"]["gpt"]
    assert (bert["task"], bert["reference"], bert["trained_enough"]) == ("masked", "neighbours", False)
    assert (gpt["task"], gpt["reference"], gpt["reference_loss"]) == ("suffix", "bigram", found["baselines"]["bigram"])
    assert bert["reference_loss"] == found["baselines"]["neighbours"]
    assert len(bert["loss_by_position"]) == 32
    assert len(gpt["loss_by_suffix_position"]) == 16
    told = {tuple(pair["arms"]): (pair["task"], pair["told_apart"]) for pair in found["differences"]}
    assert told == {
        ("gpt-full", "gpt"): ("suffix", True), ("unilm", "gpt"): ("suffix", True), ("unilm", "gpt-full"): ("suffix", False),
        ("mixed-heads", "bert"): ("masked", True),
    }  # fmt: skip
    assert {"arms": ["bert", "gpt"], "declared": ["mask", "objective"], "tasks": ["masked", "suffix"]} in found[
        "not_subtracted"
    ]
    assert len(found["not_subtracted"]) == 6


def test_inspect_says_what_each_arm_is_and_how_two_differ(trained: tuple[Path, Result]) -> None:
    lines = invoke("inspect", trained[0], "--verify").stdout.splitlines()
    assert "  bert: mask bidirectional, objective masked, evaluated by its masked loss" in lines
    assert "  gpt and bert differ in mask and objective; their losses are over different targets" in lines
    assert "  bert and mixed-heads differ in mask" in lines
    assert lines[-1].endswith("whole and consistent")
    found = json.loads(invoke("inspect", trained[0], "--json").stdout)
    assert found["initial"] is None
    assert found["arms"]["bert"] == {"mask": "bidirectional", "objective": "masked", "task": "masked"}
    assert {"arms": ["gpt", "bert"], "declared": ["mask", "objective"], "losses_subtracted": False} in found["pairs"]


def test_a_plan_says_what_each_arm_predicts_and_what_other_numbers_of_seeds_resolve(text: Path) -> None:
    arguments = ("train-pair", text, "--arms", "gpt,bert", "--seeds", "0-2", "--steps", "10", "--plan", *SETTINGS)
    said = invoke(*arguments).stdout
    assert (
        "gpt: mask causal, objective suffix, 50% of the tokens predicted; its suffix loss must come below a bigram"
        in said
    )
    assert "bert: mask bidirectional, objective masked, 41% of the tokens predicted" in said  # 13 of 32
    assert "will not be subtracted from each other" in said
    assert "the variation between seeds was measured on suffix losses" in said
    found = json.loads(invoke(*arguments, "--json").stdout)
    expected = {str(seeds): smallest_resolvable_difference(seeds, SEED_DEVIATION) for seeds in (3, 5, 6, 8, 10, 20)}
    assert found["resolvable"] == expected
    assert found["smallest_difference"] == expected["3"]
    assert found["arms"]["bert"]["loss_tokens"] == 13 * 2 * 10
    assert found["apart"] == [["bert", "gpt"]]
    assert found["parameters"] - 258 * 16 == json.loads(
        invoke("train-pair", text, "--plan", "--json", *SETTINGS).stdout
    )["parameters"] - 257 * 16  # fmt: skip


def test_going_on_from_an_arm_says_so_and_is_inspected(
    trained: tuple[Path, Result], text: Path, tmp_path: Path
) -> None:
    source, out = f"{trained[0]}/gpt", tmp_path / "run"
    result = invoke(
        "train-pair",
        text,
        "--out",
        out,
        "--steps",
        "2",
        "--seeds",
        "1",
        "--workers",
        "1",
        "--init-from",
        source,
        *SETTINGS,
    )
    assert result.exit_code == 0, result.output
    note = f"every arm begins with the weights of {source}@2, trained on 2 batches; its optimizer starts fresh"
    assert note in result.stderr
    assert note in invoke("inspect", out).stdout
    found = json.loads(invoke("inspect", out, "--verify", "--json").stdout)
    assert (found["initial"]["source"], found["initial"]["batches"], found["problems"]) == (f"{source}@2", 2, [])


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--init-from", "RUN/gpt", "--seeds", "0,3"), 2, "trained under every seed of this run"),
        (("--init-from", "RUN/gpt", "--set", "model.d_model=32"), 2, "must name a model of this shape"),
        (("--init-from", "RUN/gpt", "--set", "model.position=none", "--plan"), 2, "with position rope where this run"),
        (("--init-from", "RUN/gpt", "--tokenizer", "bpe:300"), 2, "must name a model of this tokenizer"),
        (("--init-from", "gpt"), 1, "must be a rankkit run"),
        (("--arms", "gpt,t5"), 2, "arm must be one of gpt, unilm, gpt-full, bert, mixed-heads, mixed-layers, got 't5'"),
        (("--set", "train.masked_fraction=1.5"), 2, "masked_fraction must be above 0 and below 1, got 1.5"),
        (("--arms", "bert", "--set", "train.masked_fraction=0.99"), 2, "masked_fraction must leave a token of 32"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line(
    options: tuple[str, ...], code: int, message: str, trained: tuple[Path, Result], text: Path, tmp_path: Path
) -> None:
    chosen = [option.replace("RUN", str(trained[0])) for option in options]
    result = invoke("train-pair", text, "--out", tmp_path / "run", "--seeds", "0", *SETTINGS, *chosen)
    assert result.exit_code == code
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert message in error
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_does_not_begin_elsewhere(trained: tuple[Path, Result]) -> None:
    result = invoke("train-pair", "--resume", trained[0], "--init-from", f"{trained[0]}/gpt")
    assert result.exit_code == 2
    assert "--resume must stand without init_from" in result.stderr
