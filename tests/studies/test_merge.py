"""Merged files against the file that one measurement writes, and one line for files that are not of one study."""

from __future__ import annotations

import math
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measured_run import FAST, FEW
from merging import WHOLE, Piece, boxes
from numpy.typing import NDArray
from small_run import run_config, trained_run
from store.spectra_file import CREATED, HOST, edited
from tiny import CPU

from rankkit.axes import REGIONS, SPECTRUM_AXES
from rankkit.errors import ConfigurationError, MatchError, OutputExistsError, SpectrumFileError
from rankkit.store import Root, describe, read_root, schema, verify
from rankkit.store.contents import GroupContents
from rankkit.studies import MeasureConfig, Run, measure_run
from rankkit.studies.measuring.plan import MeasurementInterruptedError
from rankkit.studies.merging import groups as merge_groups
from rankkit.studies.merging import matching as merge_match
from rankkit.studies.merging import parts as merge_parts
from rankkit.studies.merging.merge import Merged, MergeProgress, merge

COMMAND = "rankkit spectrum runs/demo"
MODULE = import_module("rankkit.studies.merging.merge")  # by its path: the package gives the function that name
SMALL = {**WHOLE, "sequence": (0, 1), "step": (12,)}
ONE = Piece(labels=SMALL, arms=("gpt",), names=("effective_rank",))
"""The least that one file can hold."""


def merged(paths: Sequence[Path], out: Path, **options: Any) -> Merged:
    return merge(paths, out, **{"command": COMMAND, "created": CREATED, **options})


def write_all(pieces: Sequence[Piece], folder: Path) -> list[Path]:
    return [piece.write(folder / f"{number:02d}.h5") for number, piece in enumerate(pieces)]


def same_bytes(one: Path, other: Path) -> bool:
    """Outside of an assertion, which would look for the first difference for minutes."""
    return one.read_bytes() == other.read_bytes()


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are believed, for tests of what comes after."""
    monkeypatch.setattr(MODULE, "verify", lambda path: [])


# Equal to one run.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One pair under two seeds."""
    return trained_run(tmp_path_factory.mktemp("merged") / "run", run_config())


def measure(run: Run, path: Path, **config: Any) -> None:
    settings = MeasureConfig(**{"measures": FEW, "workers": 1, **config})
    measure_run(run, settings, path, device=CPU, command="rankkit spectrum it")


def assert_pieces_equal_whole(run: Run, folder: Path, common: Mapping[str, Any], pieces: Sequence[Any]) -> None:
    whole = folder / "whole.h5"
    measure(run, whole, **common)
    paths = [folder / f"piece-{number}.h5" for number in range(len(pieces))]
    for path, piece in zip(paths, pieces, strict=True):
        measure(run, path, **{**common, **piece})
    root = read_root(whole)
    merge(paths[::-1], folder / "merged.h5", command=root.command, created=str(root.attributes["created"]))
    assert same_bytes(folder / "merged.h5", whole)


def test_a_run_measured_in_pieces_merges_into_the_bytes_of_one_measurement(
    run: Run, unverified: None, tmp_path: Path
) -> None:
    """Seeds and shards of samples, with all that a measurement can add; regions, layers and heads are parted below."""
    common: dict[str, Any] = {
        "sequence_length": 12, "samples": 10, "layers": (1,), "heads": (0, 2), "baselines": ("init",),
        "layer_output": True, "keep_qk": True, "keep_attention": True, "regions": REGIONS[:2],
        "measures": ("stable_rank", "effective_rank"),
    }  # fmt: skip
    pieces = [{"seeds": (0,)}, {"seeds": (1,), "shard": (1, 2)}, {"seeds": (1,), "shard": (0, 2)}]
    assert_pieces_equal_whole(run, tmp_path, common, pieces)


def test_regions_with_and_without_the_matrix_merge_into_one_file(run: Run, unverified: None, tmp_path: Path) -> None:
    """Estimated regions bring brackets and leading values alone, exact ones whole spectra: one run has room for both."""
    common = {
        "memory_budget": 40_000,  # a matrix of the prefix block with its working copies fits, a whole one does not
        "matrix_free": FAST, "samples": 1, "seeds": (0,), "layers": (1,), "heads": (0,),
        "measures": (*FEW, "log10_smallest_singular_value"),  # unavailable in some places, each with its reason
    }  # fmt: skip
    pieces = [{"regions": REGIONS[:1]}, {"regions": REGIONS[1:2]}, {"regions": REGIONS[2:]}]
    assert_pieces_equal_whole(run, tmp_path, common, pieces)
    methods = [describe(tmp_path / f"piece-{number}.h5").groups[0].methods for number in range(2)]
    assert set(methods[0]) <= {"krylov", "quadrature"}
    assert not set(methods[1]) & {"krylov", "quadrature"}


def test_functional_ranks_of_seeds_merge(run: Run, unverified: None, tmp_path: Path) -> None:
    common = {
        "functional_scopes": ("all", "head"), "functional_ranks": (4,), "samples": 2, "layers": (0,),
        "regions": REGIONS[:1],
    }  # fmt: skip
    assert_pieces_equal_whole(run, tmp_path, common, [{"seeds": (1,)}, {"seeds": (0,)}])


@st.composite
def cuts(draw: st.DrawFn) -> list[tuple[int, str, frozenset[Any]]]:
    found = []
    for _ in range(draw(st.integers(0, 3))):
        axis = draw(st.sampled_from(SPECTRUM_AXES))
        found.append((draw(st.integers(0, 9)), axis, draw(st.frozensets(st.sampled_from(WHOLE[axis]), min_size=1))))
    return found


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=cuts(), apart=st.booleans(), extras=st.booleans(), order=st.randoms(use_true_random=False))
def test_any_parts_merge_into_the_bytes_of_the_whole(
    cuts: list[tuple[int, str, frozenset[Any]]], apart: bool, extras: bool, order: Any, tmp_path: Path, unverified: None
) -> None:
    """Parts along any axes, arms in one file or in files of their own, files in any order."""
    folder = tmp_path / "example"
    folder.mkdir()
    labels = {**WHOLE, "step": (12,), "layer": (0,)}
    whole = Piece(labels=labels, names=("effective_rank",), outputs=extras, kept=extras)
    arms = [("gpt",), ("unilm",)] if apart else [whole.arms]
    pieces = [replace(whole, labels=box, arms=some) for box, some in product(boxes(labels, cuts), arms)]
    paths = write_all(pieces, folder)
    order.shuffle(paths)
    found = merged(paths, folder / "merged.h5")
    assert same_bytes(folder / "merged.h5", whole.write(folder / "whole.h5"))
    assert found.compared == ("gpt", "unilm")
    assert found.groups == {arm: dict(labels) for arm in whole.arms}
    assert found.files == tuple(sorted(paths))
    shutil.rmtree(folder)


@settings(max_examples=25, deadline=None)
@given(cuts=cuts(), wanted=st.fixed_dictionaries(
    {axis: st.lists(st.sampled_from(WHOLE[axis]), min_size=1, unique=True).map(tuple) for axis in SPECTRUM_AXES}
))  # fmt: skip
def test_cells_are_found_wherever_the_parts_hold_them(
    cuts: list[tuple[int, str, frozenset[Any]]], wanted: Mapping[str, tuple[Any, ...]]
) -> None:
    """Labels in any order, of parts cut along any axes."""
    numbers = np.arange(math.prod(map(len, WHOLE.values())), dtype=np.int32).reshape(
        [len(WHOLE[a]) for a in SPECTRUM_AXES]
    )

    def of(labels: Mapping[str, tuple[Any, ...]]) -> NDArray[np.int32]:
        return numbers[np.ix_(*([WHOLE[axis].index(x) for x in labels[axis]] for axis in SPECTRUM_AXES))]

    with h5py.File.in_memory() as file:
        parts = []
        for number, labels in enumerate(boxes(WHOLE, cuts)):
            group = file.create_group(str(number))
            group["resolved"] = of(labels)
            parts.append(part_of(labels, group))
        (variable,) = (v for v in schema.GROUP_VARIABLES if v.name == "resolved")
        assert np.array_equal(merge_parts.assembled(parts, variable, wanted), of(wanted))


def part_of(labels: Mapping[str, tuple[Any, ...]], group: Any = None) -> merge_parts.Part:
    """A part that is nothing but its labels, and perhaps numbers."""
    places = {axis: {x: place for place, x in enumerate(labels[axis])} for axis in SPECTRUM_AXES}
    contents = GroupContents(measures={})
    return merge_parts.Part(
        path=Path(), name="gpt", group=group, places=places, attributes={}, contents=contents, arrays={}
    )


def test_baselines_merge_beside_their_arm(unverified: None, tmp_path: Path) -> None:
    whole = Piece(labels=SMALL, arms=("gpt",), names=("effective_rank",), baselines=("uniform", "init"))
    cuts = [(0, axis, frozenset(SMALL[axis][:1])) for axis in ("seed", "sequence", "head")]
    merged(write_all([replace(whole, labels=box) for box in boxes(SMALL, cuts)], tmp_path), tmp_path / "merged.h5")
    assert same_bytes(tmp_path / "merged.h5", whole.write(tmp_path / "whole.h5"))


def test_a_merge_of_merges_is_the_merge_of_all(unverified: None, tmp_path: Path) -> None:
    one, two, three = write_all([replace(ONE, labels=box) for box in boxes(SMALL, [
        (0, "seed", frozenset({0})), (0, "layer", frozenset({2}))])], tmp_path)  # fmt: skip
    merged([one, three], tmp_path / "first.h5")
    merged([tmp_path / "first.h5", two], tmp_path / "second.h5")
    merged([one, two, three], tmp_path / "all.h5")
    assert same_bytes(tmp_path / "second.h5", tmp_path / "all.h5")


def test_a_single_file_merges_into_itself(tmp_path: Path) -> None:
    whole = replace(ONE.of(step=(4, 12)), arms=("gpt", "unilm"), outputs=True, kept=True, functional=True)
    path = whole.write(tmp_path / "whole.h5")
    merged([path], tmp_path / "merged.h5")
    assert same_bytes(tmp_path / "merged.h5", path)


# What a merged file says of where it comes from.


def test_a_merged_file_names_its_arms_its_machines_and_its_commands(unverified: None, tmp_path: Path) -> None:
    for arm, changes in (("unilm", {"cpu": "B"}), ("gpt", {"cpu": "A", "platform": "Linux"})):
        root = {"title": f"Attention spectra of {arm}", "attributes": HOST | changes, "command": f"rankkit of {arm}"}
        replace(ONE, arms=(arm,), root=root).write(tmp_path / f"{arm} a.h5")
    merge(sorted(tmp_path.iterdir(), reverse=True), tmp_path / "merged.h5")
    root = read_root(tmp_path / "merged.h5")
    assert root.attributes["title"] == "Attention spectra of gpt and unilm"
    assert [root.attributes[name] for name in ("cpu", "platform", "kernel", "threads")] == ["A; B", "Linux", "sdpa", 2]
    assert root.command.split("\n") == [
        f"rankkit merge '{tmp_path}/gpt a.h5' '{tmp_path}/unilm a.h5' --out {tmp_path}/merged.h5",
        "rankkit of gpt",
        "rankkit of unilm",
    ]


def study(**attributes: Any) -> merge_parts.StudyFile:
    """A file that is nothing but its attributes."""
    given = {"title": "t", "rankkit_version": "1.0"} | attributes
    root = Root(attributes=given, configuration="", certificate="", command="")
    return merge_parts.StudyFile(path=Path(), root=root, parts={}, functional={}, compared=())


def test_facts_of_machines_are_kept_where_equal_and_else_joined_each_once() -> None:
    files = [study(cpu="B", threads=16, zip=1), study(cpu="A", threads=2, zip=1), study(cpu="B", threads=2)]
    once = merge_match.root_attributes(files, "1.0")
    assert once == {"cpu": "A; B", "threads": "16; 2", "zip": 1}
    assert merge_match.root_attributes([study(**once), study(cpu="C", threads=2)], "1.0")["cpu"] == "A; B; C"


def test_a_version_that_is_not_this_one_is_recorded() -> None:
    other = merge_match.root_attributes([study(rankkit_version="0.9"), study()], "1.0")
    assert other == {"measured_with_rankkit": "0.9; 1.0"}
    assert merge_match.root_attributes([study(**other), study()], "1.0") == other
    assert merge_match.root_attributes([study()], "1.1") == {"measured_with_rankkit": "1.0"}


def test_files_with_one_mask_or_one_arm_have_no_comparison(unverified: None, tmp_path: Path) -> None:
    for number, piece in enumerate([
        replace(ONE, arms=("gpt", "unilm")).of(applied_mask=("own",)), ONE]):  # fmt: skip
        found = merged([piece.write(tmp_path / f"{number}.h5")], tmp_path / f"merged-{number}.h5")
        assert found.compared is None
        assert describe(tmp_path / f"merged-{number}.h5").comparison is None


# Refused.


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[merge_parts.StudyFile, merge_parts.StudyFile]]:
    """Two files of one study, open."""
    folder = tmp_path_factory.mktemp("pair")
    paths = write_all([Piece(labels=SMALL, arms=("gpt",)).of(seed=(seed,)) for seed in (0, 3)], folder)
    with merge_parts.study_file(paths[0]) as one, merge_parts.study_file(paths[1]) as other:
        yield one, other


Change = Callable[[merge_parts.Part], merge_parts.Part]


def attribute(name: str, value: Any) -> Change:
    return lambda part: replace(part, attributes={**part.attributes, name: value})


def entry(name: str, value: int, place: Any = 0) -> Change:
    def change(part: merge_parts.Part) -> merge_parts.Part:
        array = part.arrays[name].copy()
        array[place] = value
        return replace(part, arrays={**part.arrays, name: array})

    return change


def contents(**changes: Any) -> Change:
    return lambda part: replace(part, contents=replace(part.contents, **changes))


def described(name: str, **texts: str) -> Change:
    return lambda part: contents(
        measures={**part.contents.measures, name: replace(part.contents.measures[name], **texts)}
    )(part)


def without_document(part: merge_parts.Part) -> merge_parts.Part:
    return replace(part, arrays={name: array for name, array in part.arrays.items() if name != "document"})


def with_outputs(part: merge_parts.Part) -> merge_parts.Part:
    return replace(part, places={**part.places, "output_component": {place: place for place in range(4)}})


@pytest.mark.parametrize(("change", "message"), [
    (entry("tokens", 8), "01.h5: gpt: tokens of sequence 0, key 0 must be 0 as in .*00.h5, got 8. Merge files of one study"),
    (entry("prefix_length", 3), "gpt: prefix_length of sequence 0 must be 4 as in .*, got 3"),
    (entry("document", 8), "gpt: document of sequence 0 must be 0 as in .*, got 8"),
    (without_document, "gpt: document must be 'given' as in .*, got nothing"),
    (entry("valid_row", 0, (1, 2)), "valid_row of sequence 1, query 2 must be 1 as in .*, got 0"),
    (entry("untrained", 1, (0, 1)), "untrained of region full, layer 2 must be 0 as in .*, got 1"),
    (entry("rows", 3, (1, 0)), "rows of region prefix_block, sequence 0 must be 4 as in .*, got 3"),
    (entry("columns", 3, (1, 0)), "columns of region prefix_block, sequence 0 must be 4 as in .*, got 3"),
    (attribute("mask", "prefix"), "gpt: mask must be 'causal' as in .*, got 'prefix'"),
    (attribute("objective", "full"), "gpt: objective must be 'suffix' as in"),
    (attribute("kind", "cross"), "gpt: kind must be 'self' as in"),
    (attribute("rows_sum_to_one", 0), "gpt: rows_sum_to_one must be 1 as in .*, got 0"),
    (attribute("bos", "one"), "gpt: bos must be 'none' as in .*, got 'one'"),
    (attribute("more", "x" * 99), "gpt: more must be absent as in .*, got 'x{79}[.][.][.]"),
    (attribute("logit_scale", 0.5), "gpt: logit_scale must be absent as in .*, got 0.5"),
    (described("stable_rank", definition="\x1b[2J"), r"definition of stable_rank must be .*, got '\\x1b\[2J'"),
    (described("stable_rank", source="me"), "source of stable_rank must be 'a paper' as in .*, got 'me'"),
    (contents(measures={}), "gpt: measures must be 'attention_entropy, effective_rank, .*, got ''"),
    (contents(errors=()), "measures with errors must be 'attention_entropy, effective_rank' as in .*, got ''"),
    (attribute("method_rule", "full: exact (asked for); prefix_block: gram (asked for)"),
     r"method_rule of prefix_block must be 'exact \(asked for\)' as in .*, got 'gram \(asked for\)'"),
    (attribute("method_rule", "by hand"), "gpt: method_rule must be 'full: .*, got 'by hand'"),
    (attribute("unavailable", '{"log_abs_det": "swapped mask: not triangular"}'),
     "why log_abs_det is unavailable in full under its swapped mask must be absent as in .*, got 'not triangular'"),
    (with_outputs, "gpt: length of axis output_component must be absent as in .*, got 4"),
])  # fmt: skip
def test_a_group_of_another_study_is_refused_by_what_differs(
    change: Change, message: str, pair: tuple[merge_parts.StudyFile, merge_parts.StudyFile]
) -> None:
    one, other = pair
    with pytest.raises(MatchError, match=message):
        merge_groups.merged_groups([one, replace(other, parts={"gpt": change(other.parts["gpt"])})])


@pytest.mark.parametrize(("changes", "message"), [
    ({"configuration": "seed = 0\n# kleiner\n"},
     r"01.h5: configuration must be that of .*00.h5, got '# kleiner' instead of '# größer' in line 2"),
    ({"configuration": "seed = 0"}, "got '' instead of '# größer' in line 2. Merge files that were measured from one run"),
    ({"certificate": "{}"}, "certificate must be that of .* measure its parts when it is whole"),
    ({"attributes": {"precision": "bfloat16"}}, "precision must be absent as in .*, got 'bfloat16'"),
])  # fmt: skip
def test_a_file_of_another_run_is_refused_by_what_differs(
    changes: dict[str, Any], message: str, pair: tuple[merge_parts.StudyFile, merge_parts.StudyFile]
) -> None:
    one, other = pair
    with pytest.raises(MatchError, match=message):
        merge_match.check_roots([one, replace(other, root=replace(other.root, **changes))])


def test_a_checkpoint_must_have_one_hash(unverified: None, tmp_path: Path) -> None:
    """Layers of the same arm, seed and step, of which one was measured on other weights."""
    other = {"checkpoint_sha256": [["ab" * 32], ["ab" * 32]]}
    parts = [ONE.of(layer=(layer,)) for layer in (0, 2)]
    paths = write_all([parts[0], replace(parts[1], layout=other)], tmp_path)
    with pytest.raises(MatchError, match=r"01.h5: gpt: checkpoint_sha256 of seed 0, step 12 must be .*, got 'abab"):
        merged(paths, tmp_path / "merged.h5")


def test_a_matrix_in_two_files_is_refused_by_name(unverified: None, tmp_path: Path) -> None:
    paths = write_all([ONE.of(head=heads) for heads in ((0, 1), (1, 5))], tmp_path)
    with pytest.raises(MatchError, match=(
        r"01.h5: gpt must hold no matrix of .*00.h5, got both with seed 0, step 12, region full, applied_mask own, "
        r"sequence 0, layer 0, head 1. Leave one of them out."
    )):  # fmt: skip
        merged(paths, tmp_path / "merged.h5")


def test_a_matrix_in_no_file_is_refused_by_name(unverified: None, tmp_path: Path) -> None:
    found = list(boxes(SMALL, [(0, "seed", frozenset({0})), (1, "layer", frozenset({0}))]))
    with pytest.raises(MatchError, match=(
        r"gpt must be whole, got no file with seed 3, step 12, region full, applied_mask own, sequence 0, layer 2, head 0. "
        "Add the file"
    )):  # fmt: skip
        merged(write_all([replace(ONE, labels=box) for box in found[:2]], tmp_path), tmp_path / "merged.h5")


@settings(max_examples=40, deadline=None)
@given(cuts=cuts(), lost=st.integers(0, 9))
def test_the_hole_that_is_named_is_the_first_that_no_part_fills(
    cuts: list[tuple[int, str, frozenset[Any]]], lost: int
) -> None:
    parts = list(boxes(WHOLE, cuts))
    del parts[lost % len(parts)]
    if parts:
        labels = {
            axis: tuple(x for x in WHOLE[axis] if any(x in part[axis] for part in parts)) for axis in SPECTRUM_AXES
        }
        cells = product(*(labels[axis] for axis in SPECTRUM_AXES))
        holes = (
            cell for cell in cells
            if not any(all(x in part[axis] for axis, x in zip(SPECTRUM_AXES, cell, strict=True)) for part in parts)
        )  # fmt: skip
        first = next(holes, None)
        named = None if first is None else ", ".join(f"{a} {x}" for a, x in zip(SPECTRUM_AXES, first, strict=True))
        assert merge_match._first_hole([part_of(part) for part in parts], labels) == named


def test_arms_on_other_tokens_are_refused(unverified: None, tmp_path: Path) -> None:
    paths = write_all([ONE, replace(ONE, arms=("unilm",), layout={"tokens": np.full((2, 6), 7)})], tmp_path)
    with pytest.raises(
        MatchError, match=r"01.h5: unilm: tokens of sequence 0 must be that of gpt in .*00.h5, got another"
    ):
        merged(paths, tmp_path / "merged.h5")


@pytest.mark.parametrize(("labels", "message"), [
    ({"seed": (0,)}, "unilm must hold what gpt holds along seed, got no seed 3. Two arms are compared on the same"),
    ({"layer": (0, 1, 2)}, "unilm must hold what gpt holds along layer, got layer 1 too"),
])  # fmt: skip
def test_arms_that_cannot_be_paired_are_refused(labels: Any, message: str, unverified: None, tmp_path: Path) -> None:
    pieces = [ONE, replace(ONE, arms=("unilm",)).of(**labels)]
    with pytest.raises(MatchError, match=message):
        merged(write_all(pieces, tmp_path), tmp_path / "merged.h5")


def test_arms_with_different_measures_are_refused(unverified: None, tmp_path: Path) -> None:
    more = replace(ONE, arms=("unilm",), names=("effective_rank", "stable_rank"))
    with pytest.raises(
        MatchError, match=r"unilm must hold the measures of gpt, effective_rank, got effective_rank, stable_rank\."
    ):
        merged(write_all([ONE, more], tmp_path), tmp_path / "merged.h5")


def test_arms_of_unknown_documents_are_not_compared(unverified: None, tmp_path: Path) -> None:
    path = replace(ONE, arms=("gpt", "unilm"), layout={"document": None}).write(tmp_path / "00.h5")
    with pytest.raises(
        MatchError, match=r"gpt must say from which document each sequence is, got a file of schema 1.0"
    ):
        merged([path], tmp_path / "merged.h5")


def test_a_baseline_of_some_parts_alone_is_refused(unverified: None, tmp_path: Path) -> None:
    pieces = [replace(ONE.of(seed=(0,)), baselines=("uniform",)), ONE.of(seed=(3,))]
    with pytest.raises(MatchError, match=(
        r"baselines/uniform/gpt must hold what gpt holds along seed, got no seed 3. Measure a baseline with every part"
    )):  # fmt: skip
        merged(write_all(pieces, tmp_path), tmp_path / "merged.h5")


def test_layer_outputs_that_differ_between_regions_are_refused(unverified: None, tmp_path: Path) -> None:
    parts = [replace(ONE.of(region=(region,)), outputs=True) for region in SMALL["region"]]
    paths = write_all(parts, tmp_path)
    edited(paths[1], lambda file: file["gpt/layer_output_floor_arithmetic"].__setitem__((0, 0, 0, 0), 1e-9))
    with pytest.raises(MatchError, match=(
        r"01.h5: gpt: layer_output_floor_arithmetic must be that of the other files with the same seed, step, sequence, "
        r"layer, got other numbers. Measure these parts on one machine."
    )):  # fmt: skip
        merged(paths, tmp_path / "merged.h5")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["00.h5", "01.h5"]


@pytest.mark.parametrize(("first", "second", "message"), [
    ({"losses": {"seeds": (0, 3)}}, {}, "01.h5: functional/gpt must hold no seed of .*00.h5, got both with seed 3. A fun"),
    ({}, {"functional": False}, "functional/gpt must hold every seed of gpt, got none of seed 3. Add the file that holds"),
    ({}, {"losses": {"kept_ranks": (2, 6)}}, r"01.h5: functional/gpt: kept_ranks must be '\[1, 6\]' as in .*, got '\[2, 6"),
    ({}, {"losses": {"document": None}}, "functional/gpt: variables must be '.*document, .*, got"),
    ({}, {"losses": {"attributes": {"mask": "causal", "objective": "suffix", "step": 4}}}, "step must be 12 as in .*, got"),
])  # fmt: skip
def test_functional_ranks_that_do_not_fit_are_refused(
    first: Any, second: Any, message: str, unverified: None, tmp_path: Path
) -> None:
    pieces = [
        replace(ONE.of(seed=(0,)), **{"functional": True, **first}),
        replace(ONE.of(seed=(3,)), **{"functional": True, **second}),
    ]
    with pytest.raises(MatchError, match=message):
        merged(write_all(pieces, tmp_path), tmp_path / "merged.h5")


def test_shards_with_another_prefix_length_are_refused(unverified: None, tmp_path: Path) -> None:
    pieces = [ONE.of(sequence=(0,)), replace(ONE.of(sequence=(1,)), layout={"prefix_length": np.array([3])})]
    with pytest.raises(
        MatchError, match=r"01.h5: gpt: prefix_length must be 4 as in .*00.h5, got 3. Merge files of one"
    ):
        merged(write_all(pieces, tmp_path), tmp_path / "merged.h5")


def test_functional_ranks_of_shards_are_refused_with_what_to_do(unverified: None, tmp_path: Path) -> None:
    pieces = [replace(ONE.of(sequence=(number,)), functional=True) for number in (0, 1)]
    with pytest.raises(
        MatchError, match="means over sequences, which shards of them do not give: measure it in one file"
    ):
        merged(write_all(pieces, tmp_path), tmp_path / "merged.h5")


# Files.


def test_a_damaged_file_is_refused_before_it_is_copied(tmp_path: Path) -> None:
    paths = write_all([ONE.of(seed=(0,)), ONE.of(seed=(3,))], tmp_path)
    edited(paths[1], lambda file: file["gpt/resolved"].__setitem__((0, 0, 0, 0, 0, 0, 0), 1))
    with pytest.raises(SpectrumFileError, match=r"01.h5 must be whole to be merged, got problem 1 of 1: gpt: resol"):
        merged(paths, tmp_path / "merged.h5")
    paths[1].write_bytes(paths[1].read_bytes()[:-1000])
    with pytest.raises(SpectrumFileError, match=r"01.h5"):
        merged(paths, tmp_path / "merged.h5")
    with pytest.raises(SpectrumFileError, match=r"02.h5 must be an HDF5 file, got no such file"):
        merged([paths[0], tmp_path / "02.h5"], tmp_path / "merged.h5")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["00.h5", "01.h5"]


def test_a_file_of_a_newer_schema_is_refused_for_what_would_be_lost(tmp_path: Path) -> None:
    path = edited(ONE.write(tmp_path / "00.h5"), lambda file: file.attrs.modify("rankkit_schema", "1.99"))
    with pytest.raises(
        SpectrumFileError, match=r"must follow schema 1.\d or older, got '1.99': what this version does not"
    ):
        merged([path], tmp_path / "merged.h5")


def test_positions_that_are_numbered_in_another_way_are_refused(unverified: None, tmp_path: Path) -> None:
    path = edited(ONE.write(tmp_path / "00.h5"), lambda file: file["gpt/component"].__setitem__(0, 7))
    with pytest.raises(SpectrumFileError, match=r"gpt: component must count from 0, got \[7, 1"):
        merged([path], tmp_path / "merged.h5")


def test_no_file_a_file_twice_and_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ONE.write(tmp_path / "00.h5")
    with pytest.raises(ConfigurationError, match="files must be at least one, got none"):
        merged([], tmp_path / "merged.h5")
    (tmp_path / "link.h5").symlink_to(path)
    with pytest.raises(ConfigurationError, match=r"files must differ, got .* twice. Name each once"):
        merged([path, tmp_path / "link.h5"], tmp_path / "merged.h5")
    with pytest.raises(ConfigurationError, match="out must be another file than those merged"):
        merged([path], tmp_path / "link.h5", force=True)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65, 65))
    with pytest.raises(
        ConfigurationError, match=r"files must be at most 1 \(open files of a process\), got 2. Merge some"
    ):
        merged([path, tmp_path / "01.h5"], tmp_path / "merged.h5")


def test_an_existing_file_is_replaced_only_by_force(unverified: None, tmp_path: Path) -> None:
    path, out = ONE.write(tmp_path / "00.h5"), tmp_path / "merged.h5"
    out.write_text("mine")
    with pytest.raises(OutputExistsError, match="must not exist yet"):
        merged([path], out)
    assert out.read_text() == "mine"
    merged([path], out, force=True)
    assert verify(out) == []


def test_progress_rises_to_its_total_and_a_stop_leaves_nothing(unverified: None, tmp_path: Path) -> None:
    path, seen = ONE.write(tmp_path / "00.h5"), list[MergeProgress]()
    merged([path], tmp_path / "merged.h5", on_progress=seen.append)
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1].done == seen[-1].total == 3 * path.stat().st_size
    assert [step.label for step in seen[:2]] == ["verified 00.h5", "gpt, seed 0, step 12"]
    for count in (0, 1, len(seen) - 2):  # the last word comes when the file is there
        stops = iter([False] * count + [True])
        with pytest.raises(MeasurementInterruptedError, match="merge was interrupted, and left nothing"):
            merged([path], tmp_path / "again.h5", stop=lambda stops=stops: next(stops))
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["00.h5", "merged.h5"]
