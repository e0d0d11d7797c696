"""Making a run, opening it again, and every reason to refuse either."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_run import CORPUS, copy_of, new_run, run_config
from tiny import CPU, STEPS

from rankkit.data import Corpus, DataConfig, Document, synthetic
from rankkit.errors import ConfigurationError, DataError, OutputExistsError, RankkitError, RunError
from rankkit.models import Transformer
from rankkit.studies import Run, create_run, load_model, open_run
from rankkit.studies import run as run_module
from rankkit.training import ARMS, RunConfig, read_facts
from rankkit.training.consumption import parameter_hashes
from rankkit.training.presets import PRESETS

Edit = Callable[[str], str]


def make(config: RunConfig, path: Path, *, corpus: Corpus | None = CORPUS, force: bool = False) -> Run:
    return create_run(config, path, device=CPU, threads=1, command="it", force=force, corpus=corpus)


def edited(run: Run, path: Path, edit: Edit) -> Path:
    """A copy of a run whose run.toml was changed."""
    copy_of(run, path)
    file = path / "run.toml"
    text = file.read_text()
    assert edit(text) != text
    file.write_text(edit(text))
    return path


def put(old: str, new: str) -> Edit:
    return lambda text: text.replace(old, new)


def files_of(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*")} if path.exists() else set()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has not begun."""
    return new_run(tmp_path_factory.mktemp("made") / "run")


# Making one.


def test_what_is_made_is_what_is_opened(tmp_path: Path) -> None:
    config = run_config(("unilm", "gpt-full"), (7, 3), prefix_fraction=0.25, learning_rate=1e-3)
    made = make(config, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    assert opened == made
    assert opened.config == config
    assert opened.config.units == [("unilm", 7), ("gpt-full", 7), ("unilm", 3), ("gpt-full", 3)]
    assert opened.prefix_length == 8
    assert opened.threads == 1
    assert opened.unfinished == opened.config.units
    assert open_run(str(tmp_path / "run")) == replace(opened, directory=opened.directory)


settable = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(1e-300, 1e300),
        "weight_decay": st.floats(0, 1e300),
        "prefix_fraction": st.none() | st.floats(0, 0.9),
        "beta2": st.floats(0, 1, exclude_max=True),
        "steps": st.integers(1, 2**62),
        "compile": st.booleans(),
    },
)
unicode = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(settable, st.lists(unicode, max_size=2), st.lists(st.integers(0, 2**62), min_size=1, max_size=3, unique=True))
def test_every_configuration_comes_back_from_its_file(
    made: Run, tmp_path: Path, train: dict[str, object], text: list[str], seeds: list[int]
) -> None:
    base = run_config().base
    base = replace(
        base, train=replace(base.train, **train), data=DataConfig(text=tuple(text), text_key="é\n\"'\\" )
    )  # fmt: skip
    config = RunConfig(arms=("gpt", "gpt-full"), seeds=tuple(seeds), base=base)
    facts = {**made.facts, "command": "".join(text)}
    (tmp_path / "run.toml").write_text(run_module.toml_text(run_module._table(config, facts)), encoding="utf-8")
    opened = open_run(tmp_path)
    assert opened.config == config
    assert opened.facts == facts


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_comes_back_from_its_file(name: str, made: Run, tmp_path: Path) -> None:
    config = RunConfig(base=PRESETS[name]())
    (tmp_path / "run.toml").write_text(run_module.toml_text(run_module._table(config, made.facts)))
    assert open_run(tmp_path).config == config


def test_the_vocabulary_is_that_of_the_tokenizer(tmp_path: Path) -> None:
    config = run_config(model={"vocab_size": 1000})
    assert make(config, tmp_path / "run").config.base.model.vocab_size == 257


def test_a_run_records_command_time_machine_and_what_arms_declare(made: Run) -> None:
    table = tomllib.loads(made.directory.configuration.read_text())
    assert table["rankkit_run"] == 1
    assert table["command"] == "rankkit test"
    assert table["created"].endswith("+00:00")
    assert table["environment"]["torch_version"] == torch.__version__
    assert table["arms"] == {name: {key: str(value) for key, value in ARMS[name].items()} for name in ("gpt", "unilm")}


def test_a_run_that_exists_is_only_replaced_with_force(made: Run, tmp_path: Path) -> None:
    run = copy_of(made, tmp_path / "run")
    before = files_of(run.directory.path)
    with pytest.raises(OutputExistsError, match=r"run must not exist yet\. Go on with it by --resume .*run, choose"):
        make(run_config(seeds=(5,)), tmp_path / "run")
    assert files_of(run.directory.path) == before
    (tmp_path / "run" / "old").touch()
    make(run_config(seeds=(5,)), tmp_path / "run", force=True)
    assert open_run(tmp_path / "run").config.seeds == (5,)
    assert not (tmp_path / "run" / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_force_does_not_cost_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(
        OutputExistsError, match=r"home must be a rankkit run to be replaced, got something without run"
    ):
        make(run_config(), tmp_path / "home", force=True)
    assert files_of(tmp_path / "home") == {"thesis.tex"}


def interrupted() -> Corpus:
    def read():  # type: ignore[no-untyped-def]
        yield from synthetic(0, 3)
        raise KeyboardInterrupt

    return replace(CORPUS, read=read)


@pytest.mark.parametrize(
    ("changes", "corpus", "error"),
    [
        ({}, replace(CORPUS, read=lambda: iter([Document("note", "too short")])), DataError),
        ({"model": {"sequence_length": 100_000}}, CORPUS, DataError),
        ({}, interrupted(), KeyboardInterrupt),
        ({"precision": "bfloat16"}, CORPUS, ConfigurationError),
    ],
)
def test_a_failure_leaves_nothing_and_costs_nothing(
    changes: dict[str, object], corpus: Corpus, error: type[BaseException], made: Run, tmp_path: Path
) -> None:
    with pytest.raises(error):
        make(run_config(**changes), tmp_path / "new", corpus=corpus)
    assert files_of(tmp_path) == set()
    run = copy_of(made, tmp_path / "old")
    before = files_of(run.directory.path)
    with pytest.raises(error):
        make(run_config(**changes), tmp_path / "old", corpus=corpus, force=True)
    assert files_of(tmp_path / "old") == before
    assert open_run(tmp_path / "old").config == made.config
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    config = run_config()
    config = replace(config, base=replace(config.base, data=DataConfig(text=(str(tmp_path / "no.txt"),))))
    with pytest.raises(DataError, match=r"no\.txt"):
        make(config, tmp_path / "run", corpus=None)
    assert files_of(tmp_path) == set()


def test_bfloat16_is_refused_without_cuda(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"precision must be float32 on cpu, got bfloat16\. Add --set"):
        make(run_config(precision="bfloat16"), tmp_path / "run")


# Opening one.


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: "not = toml =", r"run\.toml must be TOML, got: .*Restore the file"),
        (lambda text: "", "must name its format in rankkit_run, got None. It is not ours"),
        (put("rankkit_run = 1", 'rankkit_run = "1"'), "must name its format in rankkit_run, got '1'"),
        (put("rankkit_run = 1", "rankkit_run = 2"), r"must be of run format 1 or older, got 2\. Install a newer rankkit"),
        (put("d_model = 16", "d_modle = 16"), "unknown key 'd_modle'. Did you mean d_model?"),
        (put("d_model = 16", "d_model = true"), r"model\.d_model must be of type int, got True"),
        (put("d_model = 16", "d_model = 0"), "d_model must be at least 1, got 0"),
        (put("learning_rate = 0.003", "learning_rate = nan"), r"train\.learning_rate must be of type float, got nan"),
        (put('arms = ["gpt", "unilm"]', 'arms = ["gpt", "t5"]'), "arm must be one of gpt, unilm, .*got 't5'"),
        (put('arms = ["gpt", "unilm"]', 'arms = "gpt"'), r"run\.arms must be of type list, got 'gpt'"),
        (put("seeds = [0, 1]", "seeds = [0, 0.5]"), r"run\.seeds\[1\] must be of type int, got 0.5"),
        (put("seeds = [0, 1]", "seed = [0, 1]"), "unknown key 'seed'. Did you mean seeds?"),
        (put("[model]", "[modell]"), "must hold a valid configuration, got: 'model'"),
        (put("[environment]", "[surroundings]"), "must hold a valid configuration, got: 'environment'"),
        (put("threads = 1", "threads = 0"), "threads must be at least 1, got 0"),
        (put("threads = 1", 'threads = "1"'), "threads must be at least 1, got '1'"),
        (put('mask = "prefix"', 'mask = "causal"'), "arms must declare .*'prefix'.* got"),
        (put("[arms.unilm]", "[arms.other]"), "arms must declare"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_trusted_is_refused_by_name(edit: Edit, message: str, made: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=message) as caught:
        open_run(edited(made, tmp_path / "run", edit))
    assert str(tmp_path / "run") in str(caught.value)


def test_a_folder_without_run_toml_and_no_folder_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must be a rankkit run, but holds no run\.toml\. Make one with"):
        open_run(tmp_path)
    with pytest.raises(
        RunError, match=r"missing must be a rankkit run, got no such file or folder\. Check the spelling"
    ):
        open_run(tmp_path / "missing")


def test_bytes_that_are_no_text_are_refused(made: Run, tmp_path: Path) -> None:
    run = copy_of(made, tmp_path / "run")
    run.directory.configuration.write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=r"run\.toml must be TOML"):
        open_run(tmp_path / "run")


# Loading a model.


def test_a_loaded_model_has_the_weights_of_its_checkpoint_and_is_in_evaluation_mode(trained: Run) -> None:
    for arm, step in (("gpt", None), ("unilm", 4), ("gpt-full", 0)):
        model = load_model(trained.directory.path, arm=arm, seed=1, step=step)
        facts = read_facts(trained.directory.checkpoint(arm, 1, STEPS if step is None else step))
        assert parameter_hashes(model) == facts.parameters
        assert not model.training
        assert model.config == trained.config.arm(arm).model
    begun = load_model(str(trained.directory.path), arm="gpt", seed=0, step=0)
    assert parameter_hashes(begun) == parameter_hashes(Transformer(begun.config, seed=0))


@pytest.mark.parametrize(
    ("arm", "seed", "step", "message"),
    [
        ("bert", 0, None, "must hold arm bert under seed 0, but has arms gpt, unilm, gpt-full and seeds 0, 1"),
        ("gpt", 2, None, "must hold arm gpt under seed 2"),
        ("gpt", 0, 5, r"must have a checkpoint of gpt at step 5, but has \[0, 4, 8, 12\]\. Choose one of them"),
    ],
)
def test_a_model_that_is_not_there_is_refused(
    arm: str, seed: int, step: int | None, message: str, trained: Run
) -> None:
    with pytest.raises(RunError, match=message):
        load_model(trained.directory.path, arm=arm, seed=seed, step=step)


def test_a_run_that_has_not_begun_has_no_model(made: Run) -> None:
    with pytest.raises(RunError, match=r"must have a checkpoint of gpt at step None, but has \[\]"):
        load_model(made.directory.path, arm="gpt", seed=0)


def test_damaged_weights_are_refused(trained: Run, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    file = run.directory.checkpoint("gpt", 0, STEPS) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RankkitError, match=r"model\.safetensors must match the hash in checkpoint\.json"):
        load_model(run.directory.path, arm="gpt", seed=0)
    assert load_model(run.directory.path, arm="gpt", seed=1).config == trained.config.arm("gpt").model
