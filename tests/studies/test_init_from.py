"""Going on from a trained arm under another mask or objective: the same bits, proven, or refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import CORPUS, assert_same_runs, copy_of, run_config, trained_run
from tiny import CPU, STEPS

from rankkit.data import synthetic
from rankkit.errors import ConfigurationError, RunError
from rankkit.studies import Run, create_run, drive, load_model, open_run, train_pair, train_units
from rankkit.studies.initial_weights import open_source
from rankkit.studies.verify import verify_run
from rankkit.training import RunConfig, Trainer, read_facts
from rankkit.training.consumption import Consumption
from rankkit.training.unit import Finished


def gone_on(path: Path, source: str, config: RunConfig | None = None, corpus: Any = CORPUS) -> Run:
    """A run that has not begun."""
    create_run(
        config or run_config(steps=8), path, device=CPU, threads=1, command="rankkit test", corpus=corpus,
        source=open_source(source),
    )  # fmt: skip
    return open_run(path)


@pytest.fixture(scope="module")
def source(trained: Run) -> str:
    return f"{trained.directory.path}/gpt"


@pytest.fixture(scope="module")
def switched(source: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """gpt and unilm, both from the trained gpt."""
    run = gone_on(tmp_path_factory.mktemp("switched") / "run", source)
    assert train_units(run, device=CPU, workers=1)
    return run


def test_every_arm_begins_with_the_weights_of_its_seed(switched: Run, trained: Run) -> None:
    for seed in (0, 1):
        expected = read_facts(trained.directory.checkpoint("gpt", seed, STEPS))
        for arm in ("gpt", "unilm"):
            assert read_facts(switched.directory.checkpoint(arm, seed, 0)).parameters == expected.parameters
    weights = [load_model(switched.directory.path, arm="unilm", seed=seed, step=0).embedding.weight for seed in (0, 1)]
    assert not torch.equal(*weights)


def test_the_source_stands_in_run_toml_and_in_the_certificate(switched: Run, source: str, trained: Run) -> None:
    digests = [read_facts(trained.directory.checkpoint("gpt", seed, STEPS)).weights_sha256 for seed in (0, 1)]
    assert switched.config.initial is not None
    assert switched.config.initial.source == f"{source}@{STEPS}"
    assert list(switched.config.initial.sha256) == digests
    found = json.loads(switched.directory.certificate.read_text())
    assert found["matched"] is True
    assert found["initial"] == {
        "source": f"{source}@{STEPS}", "same_text": True, "batches": STEPS, "optimizer": "fresh",
        "weights_sha256": dict(zip("01", digests, strict=True)),
    }  # fmt: skip
    assert "initial" not in json.loads(trained.directory.certificate.read_text())


def test_the_stream_goes_on_behind_what_the_weights_have_read(switched: Run, trained: Run) -> None:
    config = switched.config.arm("unilm")
    stream = Trainer.stream_of(config, seed=1, tokens=switched.tokens())
    consumption = Consumption.of(config.task)
    for number in range(STEPS, STEPS + 8):
        batch = stream.batch(number)
        tokens = torch.from_numpy(batch.tokens)
        consumption.add(
            tokens, batch.prefix_lengths, Trainer.examples_of(config, 1, number, tokens, batch.prefix_lengths)
        )
    assert read_facts(switched.directory.checkpoint("unilm", 1, 8)).chains == consumption.chains


def test_a_run_that_goes_on_is_verified_without_its_source(switched: Run, tmp_path: Path) -> None:
    assert verify_run(switched) == []
    run = copy_of(switched, tmp_path / "run")
    path = run.directory.initial_weights(0)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert any(
        "seed-0.safetensors must match its hash in run.toml, but it does not" in problem for problem in verify_run(run)
    )
    path.unlink()
    assert any("seed-0.safetensors must be readable, got: No such file" in problem for problem in verify_run(run))


def test_other_initial_weights_than_the_sources_are_found(switched: Run, tmp_path: Path) -> None:
    run = copy_of(switched, tmp_path / "run")
    shutil.rmtree(run.directory.unit("gpt", 0))
    shutil.copytree(run.directory.unit("gpt", 1), run.directory.unit("gpt", 0))
    path = run.directory.checkpoint("gpt", 0, 0) / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 0}))
    assert switched.config.initial is not None
    expected = f"gpt, seed 0: initial weights are not those of {switched.config.initial.source}"
    assert expected in verify_run(run)


@pytest.mark.parametrize("stop_after", [1, 5, 20])
def test_stopped_and_resumed_it_ends_in_the_same_bits(
    stop_after: int, switched: Run, source: str, tmp_path: Path
) -> None:
    run, heard = gone_on(tmp_path / "run", source), []
    assert not train_units(run, device=CPU, workers=1, on_message=heard.append, stop=lambda: len(heard) >= stop_after)
    assert train_units(open_run(run.directory.path), device=CPU, workers=1)
    assert_same_runs(run, switched)


class Parent:
    """The other end of a worker's connection, which lets every unit go."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def recv(self) -> str:
        return "go"


def test_a_worker_begins_with_the_same_weights(switched: Run, source: str, tmp_path: Path) -> None:
    """What a worker process calls, without the seconds that a process takes to start."""
    run, parent = gone_on(tmp_path / "run", source, run_config(seeds=(0,), steps=8)), Parent()
    drive._train(parent, run, "unilm", 0, CPU, lambda: False)  # type: ignore[arg-type]
    assert isinstance(parent.sent[-1], Finished)
    one, other = (read_facts(each.directory.checkpoint("unilm", 0, 8)).weights_sha256 for each in (run, switched))
    assert one == other


def test_weights_that_were_damaged_before_the_first_step_are_refused(source: str, tmp_path: Path) -> None:
    run = gone_on(tmp_path / "run", source)
    path = run.directory.initial_weights(0)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"seed-0.safetensors must match its hash in run.toml, but it does not. Restore"):
        train_units(run, device=CPU, workers=1)


def test_a_step_may_be_named_and_steps_add_up(switched: Run, source: str, tmp_path: Path) -> None:
    early = gone_on(tmp_path / "early", f"{source}@4", run_config(seeds=(1,)))
    assert early.config.initial is not None
    assert (early.config.initial.source, early.config.initial.batches) == (f"{source}@4", 4)
    again = gone_on(tmp_path / "again", f"{switched.directory.path}/unilm", run_config(seeds=(1, 0)))
    assert again.config.initial is not None
    assert again.config.initial.batches == STEPS + 8
    digests = [read_facts(switched.directory.checkpoint("unilm", seed, 8)).weights_sha256 for seed in (1, 0)]
    assert list(again.config.initial.sha256) == digests


def test_other_text_is_recorded(source: str, tmp_path: Path) -> None:
    run = gone_on(tmp_path / "run", source, corpus=synthetic(1, 40))
    assert run.config.initial is not None
    assert run.config.initial.same_text is False


def test_a_vocabulary_with_an_id_for_hidden_tokens_is_kept(tmp_path: Path) -> None:
    """So that a model may go from masked to suffix training and back."""
    masked = trained_run(tmp_path / "masked", run_config(("bert",), seeds=(0,), steps=4))
    back = gone_on(tmp_path / "back", f"{masked.directory.path}/bert", run_config(("gpt",), seeds=(0,), steps=4))
    assert back.config.base.model.vocab_size == 258
    assert train_units(back, device=CPU, workers=1)
    assert verify_run(back) == []


def test_from_python(source: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    run = train_pair(
        run_config(steps=2).base,
        out=tmp_path / "run",
        text=CORPUS,
        seeds=(0,),
        device="cpu",
        workers=1,
        init_from=source,
    )
    torch.set_num_threads(threads)
    assert run.config.initial is not None


def shape(**changes: Any) -> RunConfig:
    config = run_config()
    return replace(config, base=replace(config.base, model=replace(config.base.model, **changes)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (shape(d_model=32), r"must name a model of this shape, got .* with d_model 16 where this run has 32. Set"),
        (shape(num_layers=3), "with num_layers 2 where this run has 3"),
        (shape(position="none"), "with position rope where this run has none. Set model.position to rope"),
        (run_config(seeds=(0, 2)), "under every seed of this run, got .* without seed 2 at that step. It has seeds 0, 1"),
        (run_config(("gpt", "bert")), "of this vocabulary, got .* with vocab_size 257 where this run has 258. It has no id"),
        (replace(run_config(), base=replace(run_config().base, data=replace(run_config().base.data, tokenizer="bpe:300"))),
         "must name a model of this tokenizer, got .* with 'bytes' where this run has 'bpe:300', and other words"),
    ],
)  # fmt: skip
def test_what_cannot_be_gone_on_from_is_refused_by_name(
    config: RunConfig, message: str, source: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        gone_on(tmp_path / "run", source, config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt@x", "--init-from must look like RUN/ARM or RUN/ARM@STEP, got '.*gpt@x'. Name a trained arm"),
        ("bert", "--init-from must name an arm of .*, got 'bert'. It has gpt, unilm, gpt-full"),
        (
            "gpt@5",
            r"got .*gpt@5 without seed 0 at that step. It has seeds 0, 1, and seed 0 checkpoints at \[0, 4, 8, 12\]",
        ),
    ],
)
def test_sources_that_are_not_there_are_refused(name: str, message: str, trained: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        gone_on(tmp_path / "run", f"{trained.directory.path}/{name}")
    with pytest.raises(RunError, match=r"nothing must be a rankkit run, got no such file or folder"):
        open_source(str(tmp_path / "nothing" / "gpt"))
    with pytest.raises(ConfigurationError, match=r"got the run .* with arms gpt, unilm, gpt-full. Write .*/ARM"):
        open_source(str(trained.directory.path))


def test_a_source_whose_weights_are_damaged_is_refused(trained: Run, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "source")
    path = run.directory.checkpoint("gpt", 1, STEPS) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"model.safetensors must match the hash in checkpoint.json"):
        gone_on(tmp_path / "run", f"{run.directory.path}/gpt")
