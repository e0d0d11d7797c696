"""The whole page: in its order, from every kind of target, under a megabyte, the same bytes again, and every text a text."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from measured_run import measured
from report.synthetic_file import Setting, write
from small_run import copy_of, run_config, trained_run
from store.spectra_file import HOST, MEASURES

import rankkit.report
from rankkit.cli import main
from rankkit.errors import ConfigurationError, MatchError, OutputExistsError, RankkitError, RunError
from rankkit.report import write_report
from rankkit.report.page import overview, pictures
from rankkit.report.page.build import LIMIT
from rankkit.report.page.drawings import Drawing
from rankkit.report.page.maps import unpacked
from rankkit.store import STATUSES, Slab
from rankkit.studies import Run, compare_losses
from rankkit.studies.losses import pooled_losses

HOSTILE = "</script><img src=x onerror=alert(1)>&\u2028{{7*7}}"
TITLES = [
    "Do the arms match?",
    "What happened to the loss?",
    "Where does rank differ, by layer?",
    "Every head, one network at a time",
    "The singular values behind the ranks",
    "Through training",
    "Rank against loss",
    "What was not resolved, and why",
    "How this was made",
]


class Page(HTMLParser):
    """What a reader of the markup finds."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.markup = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(self.markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("h1", "h2", "h3"):
            self.headings.append((int(tag[1]), ""))
        if tag in ("h1", "h2", "h3", "script", "style"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("h1", "h2", "h3"):
            level, words = self.headings[-1]
            self.headings[-1] = level, words + data
        if not self._open or self._open[-1] not in ("script", "style"):
            self.words += data

    @property
    def text(self) -> str:
        return " ".join(self.words.split())

    def data(self, key: str = "s0") -> dict[str, Any]:
        match = re.search(rf'<script type="application/json" id="data-{key}">(.*?)</script>', self.markup, re.DOTALL)
        assert match is not None
        found: dict[str, Any] = json.loads(match[1])
        return found


def page(target: Path | str, *more: Path | str, **options: Any) -> Page:
    path = Path(target) if Path(target).is_dir() else Path(target).parent
    return Page(write_report([target, *more], path / "page.html", force=True, **options).path)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib, which takes most of the time."""

    def fake(axes: Any, key: str, *, says: str, caption: str, arm_colours: Any) -> Drawing:
        return Drawing(svg="<svg></svg>", says=says, caption=caption)

    for name in ("measure_axes", "measure_against_loss", "spectrum_axes", "training_axes"):
        monkeypatch.setattr(pictures, name, lambda *_, **__: object())
    monkeypatch.setattr(pictures, "loss_axes", lambda *_: {})
    monkeypatch.setattr(pictures, "head_axes", lambda *_: [])
    monkeypatch.setattr(pictures, "drawing", fake)
    monkeypatch.setattr(overview, "drawing", fake)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = trained_run(tmp_path_factory.mktemp("report") / "run", run_config(seeds=(0, 1)))
    measured(made, made.directory.spectrum, regions=("full", "prefix_block"), checkpoints="all")
    return made


@pytest.fixture(scope="module")
def whole(run: Run) -> Page:
    """The page of a run, as it is."""
    written = write_report([run.directory.path])
    assert written.path == run.directory.report
    return Page(written.path)


# What stands where


def test_the_page_of_a_run_is_in_the_order_of_a_sceptic(whole: Page) -> None:
    assert [words for level, words in whole.headings if words in TITLES] == TITLES
    question, *shorts = whole.headings[:4]
    assert question[0] == 1
    assert question[1].startswith("Do gpt (causal mask) and unilm (prefix mask) differ in the effective rank")
    assert [words for _, words in shorts] == [
        "Which arm has the lower effective rank?", "Is it the mask, or was it learned?", "How sure is that?",
    ]  # fmt: skip
    levels = [level for level, _ in whole.headings]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_certificate_says_what_differs_and_what_was_compared(whole: Page) -> None:
    assert "Yes. Every two arms differ in mask alone, under each seed." in whole.text
    assert "initial weights, evaluation sequences, tokens, prefix lengths, target rows" in whole.text


def test_losses_come_with_their_errors_references_and_what_is_not_trained_enough(run: Run, whole: Page) -> None:
    comparison = compare_losses(run)
    for arm in comparison.arms:
        assert f"{arm.loss:.4f}" in whole.text
        assert f"{arm.loss_error:.4f}" in whole.text
        assert arm.is_trained_enough or f"{arm.arm} is not trained enough" in whole.text
    assert f"{comparison.ngrams['bigram']:.4f}" in whole.text


def test_every_figure_has_words_with_numbers(whole: Page) -> None:
    drawn = [attributes for tag, attributes in whole.tags if tag == "svg"]
    assert len(drawn) >= 8
    for attributes in drawn:
        assert attributes.get("role") == "img"
        assert re.search(r"\d", attributes.get("aria-label") or "")


def test_the_foot_holds_configuration_versions_machine_command_and_definitions(run: Run, whole: Page) -> None:
    foot = whole.text[whole.text.rindex("How this was made") :]
    for name in ("torch_version", "processor", "threads", "attention_kernel"):
        assert str(run.facts["environment"][name]) in foot
    assert "rankkit test" in foot
    assert "exp(-sum p log p)" in foot
    assert "num_layers = 2" in foot
    assert hashlib.sha256(run.directory.certificate.read_bytes()).hexdigest() in foot
    assert "How to cite" in foot


def test_the_maps_hold_every_head_of_each_network_alone(run: Run, whole: Page) -> None:
    from rankkit.store import read_group

    data = whole.data()
    assert [arm["name"] for arm in data["arms"]] == ["gpt", "unilm"]
    first = data["measures"][0]
    for number, arm in enumerate(("gpt", "unilm")):
        values = read_group(run.directory.spectrum, arm, ["effective_rank"])["effective_rank"][:, :, :, 0]
        means = np.nanmean(values, axis=3)  # seed step region layer head
        for region, pack in enumerate(first["maps"][number]):
            np.testing.assert_allclose(unpacked(pack), means[:, :, region], atol=pack["unit"])
    assert "Head 3 of one network is no relative of head 3 of another" in whole.text


# Rules of the page


def test_nothing_runs_and_nothing_is_loaded_but_what_the_page_brings(whole: Page) -> None:
    (policy,) = [
        a["content"] for tag, a in whole.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", whole.markup, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    for tag, attributes in whole.tags:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base")
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_identifiers_are_unique_and_links_lead_to_them(whole: Page) -> None:
    known = [attributes["id"] for _, attributes in whole.tags if "id" in attributes]
    assert len(known) == len(set(known))
    links = {link[1:] for _, attributes in whole.tags if (link := attributes.get("href") or "").startswith("#")}
    links |= {str(a["aria-labelledby"]) for _, a in whole.tags if "aria-labelledby" in a}
    assert links <= set(known)


def test_the_same_files_give_the_same_bytes_in_another_process(run: Run, whole: Page, tmp_path: Path) -> None:
    targets, out = [str(run.directory.path)], str(tmp_path / "p.html")
    code = f"from rankkit.report import write_report; write_report({targets!r}, {out!r})"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "p.html").read_bytes() == run.directory.report.read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_hostile_texts_of_a_file_stay_texts(tmp_path: Path) -> None:
    described = {name: replace(one, definition=HOSTILE, source=HOSTILE) for name, one in MEASURES.items()}
    path = write(
        tmp_path / "</script><img src=x>.h5".replace("/", "_"),
        Setting(
            group={"objective": HOSTILE, "measures": described, "unavailable": {"rank": HOSTILE.replace("\u2028", "")}},
            file={
                **dict.fromkeys(("title", "command", "configuration"), HOSTILE), "attributes": {**HOST, "cpu": HOSTILE},
                "certificate": json.dumps(_certificate(HOSTILE)),
            },
            compared=False,
        ),
    )  # fmt: skip
    found = page(path)
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert len(re.findall(r"<script", found.markup)) == 2
    assert found.text.count("{{7*7}}") >= 5
    assert found.data()["measures"][0]["definition"] == HOSTILE
    assert "\u2028" not in found.markup[found.markup.index("<script type") :]


def _certificate(text: str) -> dict[str, Any]:
    pair = {
        "arms": [text, "unilm"], "seed": 0, "fields": {text: [text, "b"]}, "declared": [text], "compared": [text],
        "same": [], "steps": [0], "environment": {text: [1, 2]}, "problems": [], "matched": True,
    }  # fmt: skip
    unit = {"arm": text, "seed": text, "checkpoints": {text: {"consumed": {text: text}, "weights_sha256": text}}}
    return {"matched": True, "pairs": [pair], "units": [unit]}


@pytest.mark.parametrize(
    "certificate",
    ['{"matched": true, "pairs": 3, "units": []}', "[]", "no JSON", '{"matched": true, "pairs": [{}], "units": [{}]}'],
)
@pytest.mark.usefixtures("undrawn")
def test_what_is_no_certificate_of_ours_is_not_available(certificate: str, tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", Setting(regions=("full",), file={"certificate": certificate}, compared=False))
    assert "Not available: no certificate came with this." in page(path).text


@pytest.mark.usefixtures("undrawn")
def test_a_certificate_that_found_a_difference_says_no(tmp_path: Path) -> None:
    certificate = _certificate("gpt") | {"matched": False}
    certificate["pairs"][0] |= {"matched": False, "problems": ["tokens up to step 4"]}
    path = write(
        tmp_path / "s.h5", Setting(regions=("full",), file={"certificate": json.dumps(certificate)}, compared=False)
    )
    found = page(path)
    assert "No. gpt and unilm, seed 0: tokens up to step 4." in found.text
    assert "Yes. Every two arms" not in found.text


def test_twelve_layers_twelve_heads_and_twenty_steps_take_less_than_a_megabyte(tmp_path: Path) -> None:
    steps = range(0, 1000, 50)
    setting = Setting(layers=12, heads=12, steps=steps, seeds=(0,), sequences=2, size=8, compared=False, kept=True)
    path = write(tmp_path / "large.h5", setting)
    written = write_report([path])
    assert written.path == tmp_path / "large-report.html"
    assert 200_000 < written.size < LIMIT
    found = Page(written.path)
    assert found.data()["measures"][0]["steps"] == list(range(20))
    assert len(found.data()["attention"]) == 2
    assert all(words in found.text for words in written.left_out)


# What may be missing


@pytest.mark.usefixtures("undrawn")
def test_a_file_alone_says_that_there_is_no_certificate_and_no_loss(tmp_path: Path) -> None:
    found = page(write(tmp_path / "s.h5", Setting()))
    assert "Not available: no certificate came with this." in found.text
    assert "Not available: there is no run with finished training beside these spectra." in found.text
    assert "Not measured: ranks through training." in found.text
    assert "Not measured: baselines." in found.text


@pytest.mark.usefixtures("undrawn")
def test_the_answer_of_a_file_is_what_was_put_into_it(tmp_path: Path) -> None:
    found = page(write(tmp_path / "s.h5", Setting(mask=1.0, learned=0.0, spread=0.01)))
    assert "unilm has the lower effective rank" in found.text
    assert "mask resolved, learned not resolved" in found.text
    found = page(write(tmp_path / "t.h5", Setting(mask=0.0, learned=-1.0, spread=0.01)))
    assert "gpt has the lower effective rank" in found.text
    assert "learned resolved" in found.text


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_spectra_has_its_losses_and_says_what_to_do(run: Run, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path / "copy")
    copy.directory.spectrum.unlink()
    found = page(copy.directory.path)
    assert "No spectra were measured" in found.text
    assert "Not measured: spectra. rankkit spectrum RUN measures them." in found.text
    assert "Suffix loss on" in found.text
    assert "data-s0" not in found.markup


@pytest.mark.usefixtures("undrawn")
def test_a_file_in_the_folder_of_its_run_brings_the_run(run: Run, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path / "copy")
    copy.directory.spectrum.rename(copy.directory.path / "other.h5")
    assert "Suffix loss on" in page(copy.directory.path / "other.h5").text


def test_a_certificate_of_a_run_that_is_none_is_refused(run: Run, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path / "copy")
    copy.directory.certificate.write_text("[]")
    with pytest.raises(RunError, match=r"certificate.json must hold a certificate, got something else\. Delete it and"):
        page(copy.directory.path)


@pytest.mark.usefixtures("undrawn")
def test_one_seed_gives_no_verdict_anywhere(tmp_path: Path) -> None:
    found = page(write(tmp_path / "s.h5", Setting(seeds=(4,))))
    assert "No verdict: with one seed" in found.text
    assert "has the lower" not in found.text.replace("Which arm has the lower", "")
    assert "Train at least three seeds" in found.text


@pytest.mark.usefixtures("undrawn")
def test_arms_that_were_not_compared_are_shown_without_a_comparison(tmp_path: Path) -> None:
    found = page(write(tmp_path / "s.h5", Setting(arms=("gpt",), compared=False)))
    assert "No comparison: it takes a causal and a prefix arm" in found.text
    assert "Mean effective rank, whole matrix: gpt" in found.text


def _failed(slab: Slab) -> Slab:
    """The first head of every layer failed."""

    def without(values: Any) -> Any:
        table = np.array(values, dtype=np.float64)
        table[..., 0] = np.nan
        return table

    status = np.full(slab.singular_values.shape[:-1], STATUSES.index("ok"))
    status[..., 0] = STATUSES.index("failed")
    sigma = slab.singular_values.copy()
    sigma[..., 0, :] = np.nan
    counts = {name: np.where(status > 0, 0, getattr(slab, name)) for name in ("resolved", "resolved_model")}
    measures = {name: without(values) for name, values in slab.measures.items()}
    return replace(slab, singular_values=sigma, status=status, measures=measures, **counts)


@pytest.mark.usefixtures("undrawn")
def test_heads_that_failed_have_no_value_and_are_counted(tmp_path: Path) -> None:
    found = page(write(tmp_path / "s.h5", Setting(change=_failed)))
    assert "matrices failed; means are of the others" in found.text
    maps = unpacked(found.data()["measures"][0]["maps"][0][0])
    assert np.isnan(maps[..., 0]).all()
    assert np.isfinite(maps[..., 1:]).all()


def _estimated(slab: Slab) -> Slab:
    """Every matrix has its three leading values and brackets."""
    sigma = slab.singular_values[..., :3]
    shape = sigma.shape[:-1]
    values = {name: np.asarray(table) for name, table in slab.measures.items()}
    unknown = {name: np.full(shape, np.nan) for name in values}
    unknown["attention_entropy"] = values["attention_entropy"]
    brackets = {name: (values[name] - 0.1, values[name] + 0.1) for name in ("effective_rank", "stable_rank")}
    three = np.full(shape, 3)
    return replace(
        slab, singular_values=sigma, status=STATUSES.index("estimated"), measures=unknown, brackets=brackets, resolved=three,
        resolved_model=three, method=2,
    )  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_estimates_have_brackets_instead_of_values_and_the_page_says_so(tmp_path: Path) -> None:
    setting = Setting(
        change=_estimated, group={"estimated": ("effective_rank", "stable_rank"), "components": 3}, compared=False
    )
    found = page(write(tmp_path / "s.h5", setting))
    assert "matrices were estimated without being formed" in found.text
    assert "widened by the brackets of estimates" in found.text
    assert np.isnan(unpacked(found.data()["measures"][0]["maps"][0][0])).all()


@pytest.mark.usefixtures("undrawn")
def test_baselines_and_attention_are_there_where_the_file_has_them(tmp_path: Path) -> None:
    setting = Setting(baselines=("uniform", "init"), kept=True, size=70, regions=("full",), seeds=(0,), compared=False)
    data = page(write(tmp_path / "s.h5", setting), full=True).data()
    assert [one["name"] for one in data["baselines"]] == ["uniform", "init"]
    assert data["attention"][0]["shape"] == [1, 2, 2, 64, 64]
    assert len(data["measures"]) == len(MEASURES)


# Several targets


def _part(path: Path, seeds: tuple[int, ...], **changes: Any) -> Path:
    """A small file that says of which run it is."""
    configuration = f"rankkit_run = 1\ncommand = '{path.stem}'\n[run]\nseeds = {list(seeds)}\n[model]\nd_model = 8\n"
    return write(path, Setting(seeds=seeds, regions=("full",), **{"file": {"configuration": configuration}, **changes}))


@pytest.mark.usefixtures("undrawn")
def test_files_of_one_study_under_other_seeds_are_pooled(tmp_path: Path) -> None:
    both = [_part(tmp_path / "a.h5", (3,), compared=False), _part(tmp_path / "b.h5", (0, 5), compared=False)]
    found = page(*both)
    assert "3 seeds" in found.text
    assert found.data()["arms"][0]["seeds"] == [0, 3, 5]
    first, second = (page(one).data()["measures"][0]["maps"][0][0] for one in both)
    pooled = found.data()["measures"][0]["maps"][0][0]
    expected = np.concatenate([unpacked(second), unpacked(first)])[[0, 2, 1]]
    np.testing.assert_allclose(unpacked(pooled), expected, atol=pooled["unit"] + first["unit"] + second["unit"])


@pytest.mark.parametrize(
    "changes",
    [{"seeds": (1, 2)}, {"seeds": (5,), "steps": (7,)}, {"seeds": (5,), "file": {"configuration": "x = 1"}}],
)
@pytest.mark.usefixtures("undrawn")
def test_what_is_not_one_study_stands_side_by_side(tmp_path: Path, changes: dict[str, Any]) -> None:
    seeds = changes.pop("seeds")
    found = page(_part(tmp_path / "a.h5", (0, 1)), _part(tmp_path / "b.h5", seeds, **changes))
    assert found.headings[0] == (1, "Side by side")
    assert "a.h5" in found.text
    assert found.data("s1")["arms"][0]["seeds"] == list(seeds)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The study of `run` under one more seed."""
    made = trained_run(tmp_path_factory.mktemp("other") / "other", run_config(seeds=(7,)))
    measured(made, made.directory.spectrum, regions=("full", "prefix_block"), checkpoints="all")
    return made


@pytest.mark.usefixtures("undrawn")
def test_runs_of_one_study_are_pooled(run: Run, other: Run) -> None:
    pooled = page(run.directory.path, other.directory.path)
    assert "3 seeds" in pooled.text
    assert "run + other" in pooled.text
    assert pooled.data()["arms"][0]["seeds"] == [0, 1, 7]


@pytest.mark.usefixtures("undrawn")
def test_sizes_become_a_series(run: Run, tmp_path: Path) -> None:
    large = trained_run(tmp_path / "large", run_config(seeds=(0, 1), model={"d_model": 24}))
    measured(large, large.directory.spectrum, regions=("full", "prefix_block"))
    series = page(run.directory.path, large.directory.path)
    assert "A series of 2 sizes" in series.text
    sizes = [f"{one.config.base.model.non_embedding_parameters:,}" for one in (run, large)]
    assert all(size in series.text for size in sizes)


def test_pooled_losses_are_those_of_all_seeds(run: Run, other: Run) -> None:
    both = [compare_losses(one) for one in (other, run)]
    found = pooled_losses(both)
    assert [arm.seeds for arm in found.arms] == [(0, 1, 7)] * 2
    for number, arm in enumerate(found.arms):
        expected = np.concatenate([both[1].arms[number].by_seed, both[0].arms[number].by_seed])
        np.testing.assert_array_equal(arm.by_seed, expected)
    (difference,) = found.differences
    np.testing.assert_allclose(difference.by_seed, found.arms[1].by_seed - found.arms[0].by_seed)
    with pytest.raises(
        MatchError, match=r"seeds must differ to be pooled, got \[7, 7\] of gpt\. Show the runs side by side"
    ):
        pooled_losses([both[0], both[0]])
    with pytest.raises(MatchError, match="runs must be evaluated on the same targets to be pooled, got others"):
        pooled_losses([both[0], replace(both[1], sequences=9)])


# The command


@pytest.mark.usefixtures("undrawn")
def test_the_command_names_the_page_and_refuses_to_replace_it(run: Run, whole: Page, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["report", str(run.directory.path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert f"page: {out}" in result.stdout
    again = CliRunner().invoke(main, ["report", str(run.directory.path), "--out", str(out)])
    assert again.exit_code == 1
    assert "must not exist yet. Add --force to replace it" in again.stderr
    with pytest.raises(OutputExistsError, match="Add --force"):
        write_report([run.directory.path])


@pytest.mark.usefixtures("undrawn")
def test_the_command_prints_one_object_with_json(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", Setting(regions=("full",), compared=False))
    result = CliRunner().invoke(main, ["report", str(path), "--json"])
    found = json.loads(result.stdout)
    assert found["page"] == str(tmp_path / "s-report.html")
    assert found["bytes"] == (tmp_path / "s-report.html").stat().st_size


def test_a_measure_that_no_file_has_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", Setting(regions=("full",), compared=False))
    with pytest.raises(
        ConfigurationError, match=r"measure must be among .*stable_rank.*, got 'rank'\. Choose one of them"
    ):
        write_report([path], measure="rank")
    with pytest.raises(
        ConfigurationError, match=r"targets must be at least one, got none\. Name a run or a spectrum file"
    ):
        write_report([])


@pytest.mark.usefixtures("undrawn")
def test_another_measure_can_be_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", Setting(regions=("full",), compared=False))
    assert page(path, measure="stable_rank").data()["measures"][0]["name"] == "stable_rank"


def test_what_is_no_run_and_no_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "no.h5").write_text("nothing")
    for target in (tmp_path / "missing", tmp_path / "no.h5", tmp_path):
        with pytest.raises(RankkitError, match="must be"):
            write_report([target])


README = (Path(rankkit.report.__file__).parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", [line.strip() for line in README.splitlines() if line.startswith("    rankkit ")])
def test_commands_of_the_readme_are_ones_that_rankkit_accepts(line: str) -> None:
    name, *arguments = shlex.split(line.partition("#")[0])[1:]
    command = main.get_command(click.Context(main), name)
    assert command is not None
    command.make_context(name, arguments, resilient_parsing=False)
