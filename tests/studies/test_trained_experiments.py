"""Experiments on trained arms: found again, never trained twice, resumed to the same table, and judged by the same numbers
as everything else in rankkit."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from declared import EXPERIMENTS, found, study
from numpy.testing import assert_allclose
from tiny import CPU

from rankkit.errors import RunError
from rankkit.files import exclusive
from rankkit.report.experiment_figures import draw_trained
from rankkit.studies import MeasureConfig, compare_losses, functional_rank, measure_run
from rankkit.studies.experiments.trained import TrainedResult
from rankkit.studies.experiments.trained_plan import plan_study
from rankkit.studies.experiments.trained_runs import missing_units, run_folder, train_study
from rankkit.studies.experiments.trained_table import markdown
from rankkit.studies.experiments.verdicts import Outcome
from rankkit.studies.measuring.measure import MeasurementInterruptedError
from rankkit.training.unit import Message, Stepped

SEEDS = "seeds=[0, 1, 2]"


@contextlib.contextmanager
def untouched(name: str, run: object) -> Iterator[None]:
    """A listener for runs that must not be trained."""
    pytest.fail(f"{name} was trained again")
    yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of all these experiments lie."""
    return tmp_path_factory.mktemp("runs") / "experiments"


@pytest.fixture(scope="module")
def split(root: Path) -> TrainedResult:
    """Rank differences and their parts."""
    return found(study("gpt_rank_split", SEEDS), root)


def test_the_same_declaration_gives_the_same_table_to_the_last_digit(split: TrainedResult, tmp_path: Path) -> None:
    again = found(study("gpt_rank_split", SEEDS), tmp_path / "elsewhere")
    assert again.runs["pair"].directory.path != split.runs["pair"].directory.path
    assert markdown(again) == markdown(split)
    assert again.as_dict()["verdicts"] == split.as_dict()["verdicts"]


def test_what_is_there_is_neither_trained_nor_measured_again(
    split: TrainedResult, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankkit.studies.experiments.quantities.measure_run", untouched)
    again = found(study("gpt_rank_split", SEEDS), root, watch=untouched)
    assert markdown(again) == markdown(split)


def test_the_table_says_what_its_digits_depend_on(split: TrainedResult) -> None:
    table, run = markdown(split), split.runs["pair"]
    facts, corpus = run.facts["environment"], run.tokens().description["corpus"]
    for text in (facts["processor"], f"threads {facts['threads']}", f"Python {facts['python_version']}",
                 corpus["sha256"], run.directory.path.name):  # fmt: skip
        assert str(text) in table
    assert "| pair/mask_effect > 0 | effective rank, prefix block, layers trained in every arm | +" in table
    assert "nan" not in table


def test_effects_and_losses_are_those_of_the_decomposition_and_the_comparison(
    split: TrainedResult, tmp_path: Path
) -> None:
    run = split.runs["pair"]
    measured = measure_run(
        run,
        MeasureConfig(samples=2, measures=("effective_rank",), regions=("prefix_block",)),
        tmp_path / "it.h5",
        device=CPU,
        command="rankkit test",
    )
    assert measured.decomposition is not None
    (row,) = measured.decomposition.means("effective_rank")
    for verdict, name in zip(split.verdicts, ("gap", "mask_effect", None, "interaction"), strict=False):
        if name is not None:
            interval = row.effects[name]
            assert (verdict.interval.mean, verdict.interval.lower + verdict.error) == pytest.approx(
                (interval.mean, interval.lower)
            )
            assert verdict.error > 0
    assert split.verdicts[0].same_mask == pytest.approx(row.same_mask)
    losses = compare_losses(run)
    for line in split.rows:
        if line.of == "loss":
            assert [*line.by_seed.values()] == losses.arm(line.arm).by_seed.tolist()
            assert line.reference == losses.arm(line.arm).reference_loss


def test_untrained_arms_have_no_verdict_whatever_their_interval(split: TrainedResult) -> None:
    assert split.verdicts[0].interval.resolved
    assert {verdict.outcome for verdict in split.verdicts} == {Outcome.NOT_TRAINED}
    assert split.verdicts[0].untrained == ("pair/gpt", "pair/unilm")
    assert split.verdicts[0].differs == ("mask",)


def test_losses_are_paired_by_seed_as_train_pair_pairs_them(split: TrainedResult, root: Path) -> None:
    (verdict,) = found(study("gpt_vs_unilm", SEEDS), root, watch=untouched).verdicts
    (difference,) = compare_losses(split.runs["pair"]).differences
    assert verdict.interval.mean == pytest.approx(-difference.interval.mean)
    assert verdict.interval.upper == pytest.approx(-difference.interval.lower)
    assert verdict.same_mask == pytest.approx(difference.same_mask)


def test_extra_losses_are_those_of_functional_rank(split: TrainedResult, root: Path) -> None:
    result = found(study("gpt_functional_rank", SEEDS), root, watch=untouched)
    functional = functional_rank(split.runs["pair"], ranks=[4], scopes=("all",), samples=2)  # an eighth of 32
    for verdict, cut in zip(result.verdicts, ("remasked", "plain"), strict=True):
        difference = functional.row(4, cut=cut).difference  # type: ignore[arg-type]
        assert difference is not None
        assert verdict.interval.mean == pytest.approx(difference.mean, abs=1e-9)
        assert verdict.interval.lower == pytest.approx(difference.lower, abs=1e-9)


def test_a_unit_that_another_experiment_trained_is_linked_and_the_match_is_proven(
    split: TrainedResult, root: Path
) -> None:
    declared, trained = study("gpt_full", SEEDS), set[tuple[str, int]]()
    assert missing_units("full", declared, root) == [("gpt-full", seed) for seed in (0, 1, 2)]

    @contextlib.contextmanager
    def watch(name: str, run: object) -> Iterator[object]:
        def listen(message: Message) -> None:
            if isinstance(message, Stepped):
                trained.add((message.arm, message.seed))

        yield listen

    result = found(declared, root, watch=watch)
    assert trained == {("gpt-full", seed) for seed in (0, 1, 2)}
    run, pair = result.runs["full"], split.runs["pair"]
    for seed in (0, 1, 2):
        files = [each.directory.evaluation("gpt", seed).read_bytes() for each in (run, pair)]
        assert files[0] == files[1]
    assert '"matched": true' in run.directory.certificate.read_text()
    assert result.verdicts[0].differs == ("objective",)
    assert missing_units("full", declared, root) == []


def test_a_unit_is_linked_only_where_everything_that_decides_it_is_the_same(split: TrainedResult, root: Path) -> None:
    for other in ("base.train.learning_rate=0.001", "base.synthetic_documents=41", "seeds=[3, 4]"):
        declared = study("gpt_full", SEEDS, other)
        assert len(missing_units("full", declared, root)) == len(declared.runs["full"].config.units)


def test_a_run_is_found_by_what_decides_it_and_not_by_how_it_is_called(root: Path) -> None:
    pair = run_folder("pair", study("gpt_vs_unilm", SEEDS), root)
    assert run_folder("pair", study("positions", SEEDS), root) == pair
    assert run_folder("pair", study("gpt_vs_unilm", SEEDS, "question=Why?", "samples=1", "cost=3"), root) == pair
    others = ("seeds=[0, 1]", "base.train.steps=21", "base.synthetic_documents=41", "base.model.position=none")
    assert len({run_folder("pair", study("gpt_vs_unilm", SEEDS, other), root) for other in others} | {pair}) == 5


def test_begun_runs_depend_on_what_they_begin_from(root: Path) -> None:
    folders = [run_folder(name, study("mask_switch", SEEDS), root) for name in ("from_gpt", "from_unilm")]
    other = run_folder("from_gpt", study("mask_switch", SEEDS, "base.train.weight_decay=0.2"), root)
    assert len({*folders, other}) == 3


def test_a_trained_arm_goes_on_under_the_other_mask(split: TrainedResult, root: Path) -> None:
    result = found(study("mask_switch", "seeds=[1]"), root)
    pair, begun = result.runs["pair"], result.runs["from_gpt"]
    before = pair.directory.checkpoint("gpt", 1, 20) / "model.safetensors"
    after = begun.directory.checkpoint("unilm", 1, 0) / "model.safetensors"
    assert before.read_bytes() == after.read_bytes()
    assert pair.directory.path != split.runs["pair"].directory.path  # of one seed, which was linked
    assert (split.runs["pair"].directory.checkpoint("gpt", 1, 20) / "model.safetensors").samefile(before)
    assert '"matched": true' in pair.directory.certificate.read_text()
    assert result.verdicts[0].differs == ("initial weights",)


def test_masked_arms_are_judged_by_their_own_reference(root: Path) -> None:
    result = found(study("mixed_heads", "seeds=[0]"), root)
    assert [verdict.differs for verdict in result.verdicts] == [("mask",), ("mask",)]
    losses = compare_losses(result.runs["masked"])
    assert {row.reference for row in result.rows} == {losses.references["masked"]["neighbours"]}


CORRELATIONS = """
kind = "trained"
question = "Does it?"
expectation = "It does"
source = "nobody"
cost = 1
reuses = ["gpt_vs_unilm", "gpt_full"]

[[correlations]]
cells = ["pair/gpt", "pair/unilm"]

[[correlations]]
over = "arms"
controls = []
cells = ["pair/gpt", "pair/unilm", "full/gpt-full"]
"""


def test_correlations_take_every_checkpoint_but_the_first_and_every_arm(
    split: TrainedResult, root: Path, tmp_path: Path
) -> None:
    for name in ("gpt_vs_unilm", "gpt_full"):
        shutil.copy(EXPERIMENTS / f"{name}.toml", tmp_path)
    (tmp_path / "correlations.toml").write_text(CORRELATIONS, encoding="utf-8")
    result = found(study("correlations", SEEDS, folder=tmp_path), root)
    over_steps, over_arms = result.associations
    assert over_steps.points.steps == ((5, 10, 15, 20),) * 2
    assert over_steps.loss.shape == (2, 3, 4)
    assert (over_steps.loss[:, :, 0] > over_steps.loss[:, :, -1]).all()
    assert over_arms.points.steps == ((20,),) * 3
    losses = compare_losses(result.runs["full"])
    assert_allclose(over_arms.loss[2, :, 0], losses.arm("gpt-full").by_seed)
    assert over_arms.verdict.interval.count == 3
    assert [verdict.correlation is None for verdict in result.verdicts] == [False, False]
    assert [found.verdict for found in result.associations] == [*result.verdicts]
    drawn = [path.name for path in draw_trained(result, tmp_path)]
    names = ("claims", "measure_against_loss_0", "measure_against_loss_1")
    assert drawn == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    assert "| negative over arms: pair/gpt, pair/unilm, full/gpt-full |" in markdown(result)


LAYERS = """
kind = "trained"
question = "Is it?"
expectation = "It is"
source = "nobody"
cost = 1
reuses = ["gpt_full"]

[[claims]]
claim = "full/gpt < full/gpt-full"
of = "effective_rank"
region = "prefix_block"

[[correlations]]
region = "prefix_block"
over = "arms"
controls = []
cells = ["full/gpt", "full/gpt-full"]
"""


def test_arms_are_compared_over_the_layers_that_are_trained_in_all_of_them(
    split: TrainedResult, root: Path, tmp_path: Path
) -> None:
    """The last layer's prefix block is trained in gpt-full alone."""
    shutil.copy(EXPERIMENTS / "gpt_full.toml", tmp_path)
    (tmp_path / "layers.toml").write_text(LAYERS, encoding="utf-8")
    result = found(study("layers", "seeds=[0, 1]", folder=tmp_path), root)
    measured = measure_run(
        result.runs["full"],
        MeasureConfig(samples=2, measures=("effective_rank",), regions=("prefix_block",)),
        tmp_path / "it.h5",
        device=CPU,
        command="rankkit test",
    )
    gpt, full = (
        measured.values[arm].measures["effective_rank"][:, -1, 0, 0, :, 0].mean(axis=(1, 2))
        for arm in ("gpt", "gpt-full")
    )
    assert result.verdicts[0].by_seed == pytest.approx(tuple(gpt - full))
    assert_allclose(result.associations[0].measure[..., 0], [gpt, full])
    of = "effective rank, prefix block, layers trained in every arm"
    assert {row.cell for row in result.rows if row.of == of} == {"full/gpt", "full/gpt-full"}


class _After:
    """Asks to stop at the n-th question."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_an_interrupted_experiment_goes_on_to_the_same_table(split: TrainedResult, root: Path, tmp_path: Path) -> None:
    declared, interruptions = study("gpt_rank_split", "seeds=[0, 1]"), 0
    for questions in (15, 40, 30, 6, 10, 10_000):
        with contextlib.suppress(MeasurementInterruptedError):
            result = found(declared, tmp_path, stop=_After(questions))
            break
        interruptions += 1
    assert interruptions == 5
    assert markdown(result) == markdown(found(declared, root))


def test_an_interruption_says_what_is_kept(tmp_path: Path) -> None:
    with pytest.raises(MeasurementInterruptedError, match="training was interrupted; every finished step is kept in"):
        train_study(study("gpt_vs_unilm", SEEDS), tmp_path, device=CPU, command="it", workers=1, stop=_After(3))


def test_a_run_that_another_process_makes_is_left_alone(tmp_path: Path) -> None:
    declared = study("gpt_vs_unilm", "seeds=[0]")
    folder = run_folder("pair", declared, tmp_path)
    with (
        exclusive(tmp_path / f".{folder.name}.lock", "it"),
        pytest.raises(RunError, match=f"run .*{folder.name} must not be in use"),
    ):
        train_study(declared, tmp_path, device=CPU, command="it", workers=1)
    assert not folder.exists()


def test_a_measurement_that_other_code_began_is_begun_again(
    split: TrainedResult, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = study("gpt_rank_split", "seeds=[2]")
    train_study(declared, root, device=CPU, command="it", workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["rankkit.training.environment"], "_source_hash", lambda: "other")
        with pytest.raises(
            MeasurementInterruptedError, match=r"measuring .* was interrupted; what was finished is kept. Run the"
        ):
            found(declared, root, stop=_After(3))
    result = found(declared, root, watch=untouched)
    assert [verdict.seeds for verdict in result.verdicts] == [(2,)] * 5


def test_damaged_numbers_are_refused_by_name(split: TrainedResult, root: Path) -> None:
    run = split.runs["pair"]
    (path, *_) = sorted((run.directory.path / "measurements").glob("*.json"))
    text = path.read_text()
    kept = {each: each.read_text() for each in (run.directory.path / "measurements").glob("*.json")}
    for damaged in (text[:100], "[]", text.replace('"rankkit_measurement": 2', '"rankkit_measurement": 3')):
        for each in kept:
            each.write_text(damaged)
        with pytest.raises(RunError, match=r"must hold the numbers of a measurement, got damage: .* Delete it"):
            found(study("gpt_rank_split", SEEDS), root)
    for each, whole in kept.items():
        each.write_text(whole)


def test_a_plan_counts_what_is_missing_and_says_what_seeds_can_find(split: TrainedResult, root: Path) -> None:
    plan = plan_study(study("gpt_vs_unilm", SEEDS), root, device=CPU)
    assert [(run.missing, run.units, run.seconds) for run in plan.runs] == [(0, 6, 0.0)]
    assert plan.resolvable == (
        "pair/gpt < pair/unilm (loss): 3 seeds find 0.069 nats with 80% power, if paired differences vary by 0.021 between "
        "seeds; 0.02 nats take 11 seeds",
    )
    fresh = plan_study(study("gpt_vs_unilm", "seeds=[7, 8]"), root, device=CPU)
    assert (fresh.runs[0].missing, fresh.runs[0].tokens) == (4, 20 * 2 * 32)
    assert fresh.seconds > 0
    assert fresh.as_dict()["runs"][0]["name"] == "pair"


def test_every_number_is_in_the_table_of_values(split: TrainedResult) -> None:
    rows = list(split.values())
    assert len(rows) == sum(len(row.by_seed) for row in split.rows)
    assert {row["cell"] for row in rows} == {"pair/gpt", "pair/unilm", "pair/gpt@swapped", "pair/unilm@swapped"}
    assert {row["step"] for row in rows} == {20}
