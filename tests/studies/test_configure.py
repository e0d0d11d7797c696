"""From preset, file, assignments and options to one configuration, each over the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankkit.errors import ConfigurationError
from rankkit.studies.configure import run_config
from rankkit.training import RunConfig
from rankkit.training.presets import preset, small, tiny

FILE = """
preset = "small"
arms = ["gpt", "gpt-full"]
seeds = [4, 5]
[model]
position = "learned"
[train]
steps = 100
learning_rate = 1e-4
[data]
tokenizer = "bytes"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_given_is_the_tiny_pair_under_three_seeds() -> None:
    assert run_config() == RunConfig(base=tiny())
    assert run_config().arms == ("gpt", "unilm")
    assert run_config().seeds == (0, 1, 2)


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_a_preset_is_taken_by_name(name: str) -> None:
    assert run_config(preset=name).base == preset(name)


def test_a_file_lies_over_the_preset_that_it_names(tmp_path: Path) -> None:
    found = run_config(file=written(tmp_path, FILE))
    assert (found.arms, found.seeds) == (("gpt", "gpt-full"), (4, 5))
    assert found.base.model.d_model == small().model.d_model
    assert found.base.model.position == "learned"
    assert (found.base.train.steps, found.base.train.learning_rate) == (100, 1e-4)


def test_each_source_lies_over_the_one_before(tmp_path: Path) -> None:
    file = written(tmp_path, FILE)
    default, of_preset, of_file = tiny().train, small().train, 1e-4
    assert default.learning_rate != of_preset.learning_rate != of_file
    layers: list[tuple[dict[str, Any], float]] = [
        ({}, default.learning_rate),
        ({"preset": "small"}, of_preset.learning_rate),
        ({"file": file}, of_file),
        ({"assignments": ["train.learning_rate=2e-4"]}, 2e-4),
        ({"options": {"train": {"learning_rate": 3e-4}}}, 3e-4),
    ]
    given: dict[str, Any] = {}
    for arguments, expected in layers:
        given |= arguments
        assert run_config(**given).base.train.learning_rate == expected
    assert run_config(**given).base.train.steps == 100  # what nobody else said is still the file's


def test_an_option_preset_arms_and_seeds_lie_over_those_of_the_file(tmp_path: Path) -> None:
    found = run_config(file=written(tmp_path, FILE), preset="tiny", arms=("unilm",), seeds=(9,))
    assert found.base.model.d_model == tiny().model.d_model
    assert (found.arms, found.seeds) == (("unilm",), (9,))


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (4096, 1), (4097, 2), (10 * 4096, 10)])
def test_tokens_decide_the_steps_and_are_read_at_least(tokens: int, steps: int) -> None:
    per_step = tiny().train.batch_size * tiny().model.sequence_length
    assert per_step == 4096
    assert run_config(tokens=tokens).base.train.steps == steps


@pytest.mark.parametrize("tokens", [0, -5])
def test_no_tokens_are_refused(tokens: int) -> None:
    with pytest.raises(ConfigurationError, match=f"tokens must be at least 1, got {tokens}"):
        run_config(tokens=tokens)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps=3", r"setting must begin with model, train, data, got 'steps'\. Write for example train\.steps=500"),
        ("modle.d_model=3", "setting must begin with model, train, data, got 'modle'"),
        ("model=3", "setting must begin with model, train, data, got 'model'"),
        ("model.d_modle=3", "unknown key 'd_modle'. Did you mean d_model?"),
        ("model.d_model=true", "d_model must be of type int, got True"),
        ("train.steps=1.5", "steps must be of type int, got 1.5"),
        ("train.steps=0", "steps must be at least 1, got 0"),
        ("train.steps", "--set must look like train.learning_rate=3e-4, got 'train.steps'"),
    ],
)
def test_a_setting_that_does_not_exist_or_fit_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run_config(assignments=[assignment])


@pytest.mark.parametrize(
    ("section", "key", "value", "whose"),
    [
        ("model", "mask", "prefix", "the arms, got 'prefix'. Choose --arms instead"),
        ("train", "objective", "full", "the arms, got 'full'. Choose --arms instead"),
        ("model", "vocab_size", 512, "the tokenizer, got 512. Choose --tokenizer instead"),
    ],
)
def test_what_is_decided_elsewhere_is_refused_whoever_says_it(
    section: str, key: str, value: Any, whose: str, tmp_path: Path
) -> None:
    text = f'[{section}]\n{key} = "{value}"\n' if isinstance(value, str) else f"[{section}]\n{key} = {value}\n"
    sources: tuple[dict[str, Any], ...] = (
        {"file": written(tmp_path, text)},
        {"assignments": [f"{section}.{key}={value}"]},
        {"options": {section: {key: value}}},
    )
    for source in sources:
        with pytest.raises(ConfigurationError, match=f"{section}.{key} must be left to {whose}"):
            run_config(**source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3", "must not hold the unknown key 'step'. Known: preset, arms, seeds"),
        ("[mode]\nd_model = 3", "must not hold the unknown key 'mode'"),
        ("model = 3", "setting must begin with model, train, data, got 'model'"),
        ("[model]\nd_modle = 3", "unknown key 'd_modle'. Did you mean d_model?"),
        ("seeds = 3", r"config\.seeds must be of type list, got 3"),
        ('seeds = "012"', r"config\.seeds must be of type list, got '012'"),
        ("seeds = [0, 0.5]", r"config\.seeds\[1\] must be of type int, got 0.5"),
        ("seeds = [true]", r"config\.seeds\[0\] must be of type int, got True"),
        ("seeds = []", "seeds must be different numbers"),
        ("seeds = [1, 1]", "seeds must be different numbers"),
        ('arms = "gpt"', r"config\.arms must be of type list, got 'gpt'"),
        ('arms = ["gpt", "t5"]', "arm must be one of gpt, unilm, gpt-full, bert, mixed-heads, mixed-layers, got 't5'"),
        ('preset = ["tiny"]', r"preset must be a name, got \['tiny'\]"),
        ('preset = "huge"', "preset must be one of tiny, small, base, got 'huge'"),
        ('preset = ""', "preset must be one of tiny, small, base, got ''"),
        ("this is not toml", "must be TOML, got: .*Correct that line"),
    ],
)
def test_a_file_that_cannot_hold_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run_config(file=written(tmp_path, text))


def test_a_file_that_is_missing_a_folder_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"config must be an existing file, got '.*none\.toml'\. Check the path"
    ):
        run_config(file=tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match=r"must be TOML, got: .*directory"):
        run_config(file=tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"[data]\ntext = ['caf\xe9']")
    with pytest.raises(ConfigurationError, match=r"latin\.toml must be TOML"):
        run_config(file=tmp_path / "latin.toml")
