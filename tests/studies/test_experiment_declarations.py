"""Declared experiments on trained arms: those of the repository, and what cannot be declared."""

from __future__ import annotations

from pathlib import Path

import pytest
from declared import EXPERIMENTS, NAMES

from rankkit.errors import ConfigurationError
from rankkit.studies.experiments.experiment import load_experiment
from rankkit.studies.experiments.study import Study, resolve
from rankkit.studies.experiments.trained_config import scaled

HEAD = """
kind = "trained"
question = "Is it?"
expectation = "It is"
source = "nobody"
cost = 1
"""
CLAIM = '[[claims]]\nclaim = "pair/gpt < pair/unilm"\n'
RUN = '[[runs]]\nname = "pair"\n'


def resolved(folder: Path, *assignments: str, **files: str) -> Study:
    """The last of these files, each written beside the others."""
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    experiment = load_experiment(folder / f"{[*files][-1]}.toml", assignments)
    return resolve(experiment.config, experiment.name, experiment.reused)


def declared(name: str, *assignments: str) -> Study:
    experiment = load_experiment(EXPERIMENTS / f"{name}.toml", assignments)
    return resolve(experiment.config, experiment.name, experiment.reused)


@pytest.mark.parametrize("preset", ["tiny", "base"])
@pytest.mark.parametrize("name", NAMES)
def test_a_declared_experiment_resolves_at_every_size_by_changing_one_line(name: str, preset: str) -> None:
    found = declared(name, f"base.preset={preset}")
    layers = {run.config.base.model.num_layers for run in found.runs.values()}
    assert layers == {{"tiny": 4, "base": 12}[preset]}
    assert len(found.contrasts) == len(found.config.claims)
    assert found.config.cost > 0


def test_positions_reuses_the_rope_column_at_every_size() -> None:
    for preset in ("tiny", "base"):
        runs = declared("positions", f"base.preset={preset}").runs
        assert {name: run.config.base.model.position for name, run in runs.items()} == {
            "pair": "rope", "learned": "learned", "none": "none", "alibi": "alibi",
        }  # fmt: skip


def test_all_of_them_together_cost_four_hours_on_two_cores_at_most() -> None:
    assert sum(declared(name).config.cost for name in NAMES) / 2 <= 240


def test_the_first_four_analyse_six_seeds_of_four_million_tokens() -> None:
    for name in NAMES[:4]:
        run = declared(name).runs["pair"].config
        train, model = run.base.train, run.base.model
        assert (run.arms, run.seeds) == (("gpt", "unilm"), (0, 1, 2, 3, 4, 5))
        assert train.steps * train.batch_size * model.sequence_length >= 4_000_000
        assert model.sequence_length / model.head_dim >= 8
        assert train.checkpoint_interval % train.evaluation_interval == 0  # a loss at every checkpoint


@pytest.mark.parametrize("name", NAMES[4:])
def test_the_others_have_three_seeds_of_two_million_tokens_at_least(name: str) -> None:
    for run in declared(name).runs.values():
        train = run.config.base.train
        assert len(run.config.seeds) >= 3
        assert train.steps * train.batch_size * run.config.base.model.sequence_length >= 2_000_000


def test_sizes_are_factors_of_the_presets() -> None:
    runs = declared("head_size", "base.preset=base").runs
    shapes = {name: (run.config.base.model.num_heads, run.config.base.model.head_dim) for name, run in runs.items()}
    assert shapes["size_d4"] == (48, 16)
    assert shapes["size_x4"] == (3, 256)
    assert shapes["heads_d4"] == (3, 64)
    assert all(heads * size == 768 for name, (heads, size) in shapes.items() if name.startswith("size"))


def test_a_run_comes_after_the_one_that_it_begins_from() -> None:
    found = declared("mask_switch")
    assert list(found.runs) == ["pair", "from_gpt", "from_unilm"]
    assert found.runs["from_gpt"].init_from == ("pair", "gpt")


def test_only_what_claims_need_is_taken_from_another_experiment(tmp_path: Path) -> None:
    other = HEAD + RUN + RUN.replace("pair", "spare") + CLAIM
    found = resolved(tmp_path, other=other, mine=HEAD + 'reuses = ["other"]\n' + CLAIM)
    assert list(found.runs) == ["pair"]
    assert found.runs["pair"].experiment == "other"


def test_assignments_go_over_a_file_and_those_that_it_reuses(tmp_path: Path) -> None:
    other = HEAD + "seeds = [0, 1, 2, 3]\n" + RUN + "[base.train]\nsteps = 30\n" + CLAIM
    files = {"other": other, "mine": HEAD + 'reuses = ["other"]\n' + CLAIM}
    config = resolved(tmp_path, "base.train.batch_size=3", "seeds=[4]", **files).runs["pair"].config
    assert (config.base.train.steps, config.base.train.batch_size, config.seeds) == (30, 3, (4,))


def test_factors_are_of_what_stands_there() -> None:
    table = {"model": {"num_heads": 4, "position": "rope"}, "train": {"learning_rate": 0.5, "compile": False}}
    layer = {"model": {"num_heads": "x2.5", "position": "x2"}, "train": {"learning_rate": "/2", "compile": "x2"}}
    assert scaled(table, layer) == {
        "model": {"num_heads": 10, "position": "x2"},
        "train": {"learning_rate": 0.25, "compile": "x2"},
    }
    with pytest.raises(ConfigurationError, match=r"model.num_heads must stay a whole number, got 4 x1\.3\. Choose"):
        scaled(table, {"model": {"num_heads": "x1.3"}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD.replace("It is", "") + RUN + CLAIM, "expectation must be declared before anything is trained, got none"),
        (HEAD.replace("cost = 1", "") + RUN + CLAIM, r"cost must be CPU minutes above 0, got 0\.0\. See --plan"),
        (HEAD + "samples = 0\n" + RUN + CLAIM, "samples must be at least 1, got 0"),
        (HEAD + RUN, "claims must hold at least one claim, got none. Say what is expected"),
        (HEAD + RUN + RUN + CLAIM, r"runs must each have a name of their own.*got \['pair', 'pair'\]"),
        (HEAD + RUN.replace("pair", "a/b") + CLAIM, r"runs must each have a name of their own"),
        (HEAD + CLAIM, "claim must name runs among"),
        (HEAD + RUN + 'arm = ["gpt"]\n' + CLAIM, r"runs\[0\] must not hold the unknown key 'arm'. Did you mean arms"),
        (HEAD + RUN + "model = 3\n" + CLAIM, r"runs\[0\].model must be of type table, got 3"),
        (HEAD + RUN + 'model = { mask = "causal" }\n' + CLAIM, "model.mask must be left to the arms"),
        (HEAD + RUN + 'model = { with = 1 }\n' + CLAIM, "must not hold the unknown key 'with'"),
        (HEAD + RUN + 'init_from = "pair/gpt"\n' + CLAIM, "init_from must not lead back to the run itself, got 'pair'"),
        (HEAD + RUN + 'init_from = "old/gpt"\n' + CLAIM, "init_from must be among pair/gpt, pair/unilm, got 'old/gpt'"),
        (HEAD + RUN + CLAIM + 'of = "rank"\n', "of must be loss, extra_loss or a measure"),
        (HEAD + RUN + CLAIM + 'region = "suffix"\n', "region must be one of full, .*, got 'suffix'"),
        (HEAD + RUN + CLAIM + 'cut = "half"\n', "cut must be one of remasked, plain, got 'half'"),
        (HEAD + RUN + CLAIM + "kept = 0.0\n", r"kept must be above 0 and at most 1, got 0\.0"),
        (HEAD + RUN + CLAIM + "effect = 0.0\n", r"effect must be above 0, got 0\.0"),
        (HEAD + RUN + '[[claims]]\nclaim = "pair/mask_effect > 0"\n', "claim must leave masks alone for loss"),
        (HEAD + RUN + CLAIM + '[[correlations]]\ncells = ["pair/bert"]\n', "cells must be among pair/gpt, pair/unilm, got"),
        (HEAD + 'reuses = ["mine"]\n' + RUN + CLAIM, "reuses must not lead back to 'mine'. Leave it out"),
        (HEAD + 'reuses = ["gone"]\n' + RUN + CLAIM, "experiment must be a file that can be read, got .*gone.toml"),
        (HEAD + 'reuses = ["null"]\n' + RUN + CLAIM, "reuses must name experiments of kind trained, got 'null'"),
    ],
)  # fmt: skip
def test_what_cannot_be_declared_is_refused(text: str, message: str, tmp_path: Path) -> None:
    null = (EXPERIMENTS / "null_table.toml").read_text(encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        resolved(tmp_path, null=null, mine=text)


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    text = HEAD + RUN + CLAIM
    with pytest.raises(ConfigurationError, match="runs must have different names, got 'pair' in other and mine"):
        resolved(tmp_path, other=text, mine=HEAD + 'reuses = ["other"]\n' + RUN + CLAIM)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ('data = { tokenizer = "bpe:300" }', "text and tokenizer"),
        ("model = { sequence_length = 128 }", "sequence length"),
        ("train = { prefix_fraction = 0.25 }", "prefix length"),
        ("train = { evaluation_sequences = 5 }", "evaluation sequences"),
        ('arms = ["bert", "gpt"]', "predicted tokens"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused_by_name(settings: str, what: str, tmp_path: Path) -> None:
    other = '[[runs]]\nname = "other"\n' + settings + "\n"
    arm = "bert" if "bert" in settings else "gpt"
    claim = f'[[claims]]\nclaim = "other/{arm} < pair/gpt"\n'
    with pytest.raises(ConfigurationError, match=f"claim must compare arms on the same {what}, got .* for pair/gpt"):
        resolved(tmp_path, mine=HEAD + RUN + other + claim)
    for over in ("steps", "arms", "seeds"):
        pooled = f'[[correlations]]\nover = "{over}"\ncells = ["other/{arm}", "pair/gpt"]\n'
        with pytest.raises(
            ConfigurationError, match=f"cells must compare arms on the same {what}, got .* for pair/gpt"
        ):
            resolved(tmp_path, mine=HEAD + RUN + other + pooled)
