"""Tidy tables: every number once, in its row, as it is stored."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from store.rich_file import COMPARISON, ERRORS, ESTIMATED, comparison_arrays, cut_losses
from store.spectra_file import MEASURES, edited, slabs

from rankkit.axes import LAYER_AXES, SPECTRUM_AXES
from rankkit.errors import ConfigurationError, SpectrumFileError
from rankkit.store import METHODS, STATUSES, read_group, tidy_table
from rankkit.store.schema import BOUNDS, COMPARISON_VARIABLES
from rankkit.store.tables.selection import Selection, read_terms

OLD = Path(__file__).with_name("spectrum_1_0.h5.gz")
MEASURED = (
    *MEASURES,
    *(f"{name}_{end}" for name in ESTIMATED for end in ("lower", "upper")),
    *(f"{name}_error" for name in ERRORS),
)
PLAIN = ("floor_arithmetic", "floor_model", "resolved", "resolved_model")
STATIC = {
    "prefix_length": ("sequence",),
    "document": ("sequence",),
    "rows": ("region", "sequence"),
    "columns": ("region", "sequence"),
    "untrained": ("region", "layer"),
}

Columns = dict[str, NDArray[Any]]


def columns(path: Path, table: str = "matrices", **options: Any) -> Columns:
    """A whole table, blocks joined; a column that some rows lack is nan or "" there."""
    with tidy_table(path, table, **options) as tidy:
        blocks = list(tidy.blocks())
        found = {}
        for column in tidy.columns:
            filler = "" if column.dtype == "string" else np.nan
            parts = [block.get(column.name, np.full(len(next(iter(block.values()))), filler)) for block in blocks]
            found[column.name] = np.concatenate(parts)
        assert {len(values) for values in found.values()} == {tidy.rows}
        assert set().union(*blocks) == set(found)
    return found


@pytest.fixture(scope="module")
def whole(rich: Path) -> Columns:
    """Every row of the arm of `rich`."""
    return columns(rich)


def cells(group: Mapping[str, NDArray[Any]], name: str, axes: tuple[str, ...]) -> dict[tuple[Any, ...], Any]:
    """Every number of a variable by its labels, read the plain way."""
    labels = [group[axis].tolist() for axis in axes]
    return {
        tuple(values[i] for values, i in zip(labels, place, strict=True)): group[name][place]
        for place in product(*(range(len(values)) for values in labels))
    }


def assert_same(
    table: Columns, name: str, expected: Mapping[tuple[Any, ...], Any], axes: tuple[str, ...], column: str | None = None
) -> None:
    keys = zip(*(table[axis].tolist() for axis in axes), strict=True)
    wanted = np.array([expected[key] for key in keys])
    np.testing.assert_array_equal(table[column or name], wanted)


def test_every_matrix_is_a_row_with_its_labels_and_every_number_as_stored(rich: Path, whole: Columns) -> None:
    table, group = whole, read_group(rich, "gpt")
    keys = list(zip(*(table[axis].tolist() for axis in SPECTRUM_AXES), strict=True))
    assert len(set(keys)) == len(keys) == group["status"].size
    for name in (*MEASURED, *PLAIN):
        assert table[name].dtype == group[name].dtype
        assert_same(table, name, cells(group, name, SPECTRUM_AXES), SPECTRUM_AXES)
    for name, axes in STATIC.items():
        assert_same(table, name, cells(group, name, axes), axes)
    for name, words in (("method", METHODS), ("status", STATUSES)):
        codes = cells(group, name, SPECTRUM_AXES)
        assert_same(table, name, {key: words[code] for key, code in codes.items()}, SPECTRUM_AXES)
    assert set(table["arm"]) == {"gpt"}
    assert set(table["baseline"]) == {""}


def test_the_columns_of_matrices_are_labels_then_facts_then_measures_and_no_singular_value(
    rich: Path, whole: Columns
) -> None:
    names = list(whole)
    assert names[:9] == ["arm", "baseline", *SPECTRUM_AXES]
    assert set(names[9:]) == {*STATIC, *PLAIN, "method", "status", *MEASURED}
    assert names.index("status") < names.index("attention_entropy")
    with tidy_table(rich) as tidy:
        (entropy,) = [column for column in tidy.columns if column.name == "attention_entropy"]
        assert entropy.definition == MEASURES["attention_entropy"].definition
        assert tidy.attributes["gpt"]["mask"] == "causal"
        assert tidy.attributes["/"]["title"] == "a small file"
        assert (tidy.quantities, tidy.left_out) == ((), ("init", "logits"))


def test_every_arm_has_its_rows(finished: Path) -> None:
    table = columns(finished)
    assert {name: int((table["arm"] == name).sum()) for name in ("gpt", "unilm")} == {"gpt": 96, "unilm": 96}
    of_unilm = {name: values[table["arm"] == "unilm"] for name, values in table.items()}
    assert_same(
        of_unilm, "stable_rank", cells(read_group(finished, "unilm"), "stable_rank", SPECTRUM_AXES), SPECTRUM_AXES
    )


def test_baselines_are_rows_only_where_they_are_asked_for(rich: Path) -> None:
    table = columns(rich, baselines=True)
    assert set(table["baseline"]) == {"", "init", "logits"}
    assert set(table["arm"]) == {"gpt"}
    alone = columns(rich, select={"baseline": "init"})
    assert set(alone["baseline"]) == {"init"}
    group = read_group(rich, "baselines/init/gpt")
    assert_same(alone, "effective_rank", cells(group, "effective_rank", SPECTRUM_AXES), SPECTRUM_AXES)
    with tidy_table(rich, baselines=True) as tidy:
        assert tidy.left_out == ()
        assert list(tidy.attributes) == ["/", "gpt", "baselines/init/gpt", "baselines/logits/gpt"]


def test_every_output_of_a_layer_is_a_row(rich: Path) -> None:
    table, group = columns(rich, "layer_outputs", baselines=True), read_group(rich, "gpt")
    assert len(table["layer"]) == group["layer_output_effective_rank"].size  # the baselines have none
    for name in ("layer_output_effective_rank", "layer_output_stable_rank", "layer_output_floor_arithmetic"):
        assert_same(table, name, cells(group, name, LAYER_AXES), LAYER_AXES)
    assert_same(table, "prefix_length", cells(group, "prefix_length", ("sequence",)), ("sequence",))
    assert "head" not in table
    assert "effective_rank" not in table


def test_every_effect_is_a_row_with_its_interval(rich: Path) -> None:
    table, group = columns(rich, "comparison"), read_group(rich, "comparison/by_step")
    assert list(table) == ["quantity", "step", "region", "layer", "measure", "value", "lower", "upper"]
    assert set(table["quantity"]) == {variable.name for variable in COMPARISON_VARIABLES}
    for variable in COMPARISON_VARIABLES:
        chosen = {name: values[table["quantity"] == variable.name] for name, values in table.items()}
        axes = ("step", *(axis for axis in variable.dimensions if axis != "bound"))
        for column, bound in zip(("value", "lower", "upper"), BOUNDS, strict=True):
            if "bound" in variable.dimensions:
                numbers = {
                    key[:-1]: x for key, x in cells(group, variable.name, (*axes, "bound")).items() if key[-1] == bound
                }
                assert_same(chosen, variable.name, numbers, axes, column)
            elif column != "value":
                assert np.isnan(chosen[column]).all()
        if "layer" not in axes:
            assert np.isnan(chosen["layer"]).all()
    same = {name: values[table["quantity"] == "same_mask"] for name, values in table.items()}
    axes = ("step", "measure", "region", "layer")
    assert_same(same, "value", cells(group, "same_mask", axes), axes)
    with tidy_table(rich, "comparison", select={"quantity": "gap"}) as tidy:
        assert [(v.name, v.definition is not None) for v in tidy.quantities] == [("gap", True)]
        assert tidy.attributes["comparison/by_step"]["causal_arm"] == COMPARISON["attributes"]["causal_arm"]


def test_a_comparison_of_one_step_takes_the_step_from_its_group_or_has_none(
    tmp_path: Path, lean: Path, finished: Path
) -> None:
    assert "step" not in columns(finished, "comparison")

    def one_step(file: h5py.File) -> None:
        del file["comparison/by_step"]

    path = edited(Path(shutil.copy(lean, tmp_path)), one_step)
    table = columns(path, "comparison", select={"quantity": "gap", "measure": "stable_rank", "layer": 1})
    assert set(table["step"]) == {500}
    np.testing.assert_array_equal(table["value"], comparison_arrays()["gap"][-1, 1, :, 1, 0])


def test_every_loss_with_cut_attention_is_a_row(rich: Path) -> None:
    table, written = columns(rich, "functional"), cut_losses()
    assert list(table)[:8] == ["arm", "step", "quantity", "seed", "sequence", "layer", "head", "kept_rank"]
    assert set(table["step"]) == {500}
    group = read_group(rich, "functional/gpt")
    for variable in written.variables:
        if variable.name == "document":
            continue
        chosen = {name: values[table["quantity"] == variable.name] for name, values in table.items()}
        assert len(chosen["value"]) == getattr(written, variable.name).size
        assert_same(chosen, "value", cells(group, variable.name, variable.dimensions), variable.dimensions)
        for axis in ("seed", "sequence", "layer", "head", "kept_rank"):
            assert np.isnan(chosen[axis]).all() == (axis not in variable.dimensions)
    losses = table["quantity"] == "loss_uncut"
    assert set(table["document"][losses]) == {3}
    assert set(table["cut"][losses]) == {""}


SELECTIONS = [
    ("layer=0:1", {"layer": [0]}),
    ("layer=1", {"layer": [1]}),
    ("seed=7", {"seed": [7]}),
    ("seed=:7", {"seed": [0]}),
    ("seed=1:", {"seed": [7]}),
    ("seed=0:100", {"seed": [0, 7]}),
    ("step=100 region=full,prefix_block", {"step": [100], "region": ["full", "prefix_block"]}),
    ("head=1 applied_mask=swapped sequence=0", {"head": [1], "applied_mask": ["swapped"], "sequence": [0]}),
    ("arm=gpt layer=0 layer=1", {}),
]


@pytest.mark.parametrize(("text", "kept"), SELECTIONS)
def test_a_selection_keeps_the_rows_of_its_labels_and_their_numbers(
    rich: Path, whole: Columns, text: str, kept: Mapping[str, list[Any]]
) -> None:
    table = columns(rich, select=read_terms([text]))
    chosen = np.ones(len(whole["arm"]), dtype=np.bool_)
    for axis, labels in kept.items():
        chosen &= np.isin(whole[axis], labels)
    for name, values in whole.items():
        np.testing.assert_array_equal(table[name], values[chosen])


@pytest.mark.parametrize(
    "layers", [[2, 5], range(1, 6), slice(2, 6), np.array([5, 2]), "2:6", "2,5", ["2", slice(3, None)]]
)
def test_a_selection_from_python_may_be_numbers_texts_slices_and_any_of_these(layers: Any) -> None:
    labels, selection = np.array([0, 2, 5]), Selection.of({"layer": layers, "arm": "gpt"})
    assert labels[selection.places("layer", labels)].tolist() == [2, 5]
    assert selection.places("arm", np.array(["unilm", "gpt"])).tolist() == [1]
    assert selection.places("head", labels).tolist() == list(range(labels.size))


BAD_TERMS = [
    ("layer", "select must be AXIS=LABELS, got 'layer'. Write layer=0:3"),
    ("=3", "select must be AXIS=LABELS, got '=3'"),
    ("layer=", "select must be AXIS=LABELS, got 'layer='"),
    ("colour=red", "select must name one of arm, baseline, seed, step, region, .* got 'colour'"),
    ("component=0", "select must name one of .* got 'component'"),
    ("layer=2", "layer must be among 0, 1, got '2'. Choose what the file holds"),
    ("layer=full", "layer must be among 0, 1, got 'full'"),
    ("layer=5:9", "layer must be among 0, 1, got '5:9'"),
    ("layer=1,7", "layer must be among 0, 1, got '7'"),
    ("layer=0:2:1", "layer must have ranges of whole numbers without a step, got '0:2:1'"),
    ("layer=a:b", "layer must have ranges of whole numbers without a step, got 'a:b'"),
    ("layer=0,", "layer must have labels between its commas, got an empty one"),
    ("arm=bert", "arm must be among gpt, got 'bert'"),
    ("region=0:2", "region must be chosen by name among .*full.*, got the range '0:2'"),
    ("baseline=uniform", "baseline must be among init, logits, got 'uniform'"),
    ("baseline=init seed=7", "select must leave at least one row, got none that all choices take"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_TERMS)
def test_a_selection_that_selects_nothing_names_what_there_is(rich: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message), tidy_table(rich, select=read_terms([text])):
        pass


def test_a_selection_without_labels_or_with_a_step_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="layer must be given at least one label, got none"):
        Selection.of({"layer": []})
    with pytest.raises(ConfigurationError, match="without a step, got '0:4:2'"):
        Selection.of({"layer": slice(0, 4, 2)})
    with pytest.raises(ConfigurationError, match="ranges of whole numbers"):
        Selection.of({"layer": slice("a", None)})


def test_many_labels_are_named_in_short() -> None:
    with pytest.raises(ConfigurationError, match="layer must be among 0 to 99, got '100'"):
        Selection.of({"layer": 100}).check({"layer": np.arange(100)})
    with pytest.raises(ConfigurationError, match=r"seed must be among 0, 2, .* 22, \.\.\., got '1'"):
        Selection.of({"seed": 1}).check({"seed": 2 * np.arange(50)})


def test_a_table_that_is_unknown_or_absent_is_refused(one_arm: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"table must be one of matrices, layer_outputs, .*, got 'spectra'"):
        columns(one_arm, "spectra")
    for table in ("layer_outputs", "functional"):
        with pytest.raises(SpectrumFileError, match=f"must hold the table {table}, got none"):
            columns(one_arm, table)


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(5, 70), axis=st.sampled_from(["seed", "sequence", "layer", "head"]))
def test_blocks_are_small_and_their_size_changes_nothing(rich: Path, whole: Columns, rows: int, axis: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankkit.store.tables.parts.BLOCK_ROWS", rows)
        with tidy_table(rich, select={axis: 0}) as tidy:
            blocks = list(tidy.blocks())
    assert max(len(block["arm"]) for block in blocks) <= rows
    chosen = whole[axis] == 0
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), values[chosen])


def test_labels_that_are_not_neighbours_are_read_apart(rich: Path, whole: Columns) -> None:
    chosen = np.isin(whole["region"], ["full", "first_key_removed"]) & (whole["step"] == 500)
    table = columns(rich, select={"region": ["first_key_removed", "full"], "step": 500})
    for name, values in whole.items():
        np.testing.assert_array_equal(table[name], values[chosen])


def damaged(path: Path, name: str, layer: int) -> None:
    """Flip a bit in the chunk of a measure that holds a layer."""
    with h5py.File(path) as file:
        dataset = file[name]
        number = next(
            n for n in range(dataset.id.get_num_chunks()) if dataset.id.get_chunk_info(n).chunk_offset[5] == layer
        )
        chunk = dataset.id.get_chunk_info(number)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(data)


def test_only_the_chunks_of_what_is_selected_are_read(copy: Path) -> None:
    damaged(copy, "gpt/stable_rank", layer=1)
    assert len(columns(copy, select={"layer": 0})["stable_rank"]) == 48
    with pytest.raises(SpectrumFileError, match=r"/gpt/stable_rank must be readable, got .*. The file is damaged"):
        columns(copy, select={"layer": 1})


def test_a_file_of_schema_1_0_is_a_table_of_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    path.write_bytes(gzip.decompress(OLD.read_bytes()))
    table = columns(path)
    assert "document" not in table
    for index, values in slabs("gpt"):
        chosen = (
            (table["seed"] == (0, 7)[index["seed"]])
            & (table["region"] == ("full", "prefix_block")[index["region"]])
            & (table["applied_mask"] == ("own", "swapped")[index["applied_mask"]])
            & (table["layer"] == index["layer"])
        )
        np.testing.assert_array_equal(table["effective_rank"][chosen], values.measures["effective_rank"].ravel())
    assert set(columns(path, "comparison")["quantity"]) == {"gap", "mask_effect", "learned_effect", "interaction"}


def test_what_a_newer_minor_schema_added_is_left_alone(copy: Path) -> None:
    expected = columns(copy)

    def newer(file: h5py.File) -> None:
        file.attrs["rankkit_schema"] = "1.9"
        file["gpt"].create_dataset("something_new", data=np.arange(3), chunks=(3,), fletcher32=True)
        file.create_group("something").create_dataset("new", data=np.arange(3), chunks=(3,), fletcher32=True)

    np.testing.assert_equal(columns(edited(copy, newer)), expected)


def relabelled(name: str, labels: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        kind = h5py.string_dtype() if isinstance(labels[0], str) else None
        file.create_dataset(name, data=labels, dtype=kind)

    return edit


def renamed(old: str, new: str) -> Callable[[h5py.File], None]:
    return lambda file: file.move(old, new)


def put(name: str, value: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file[name][(0,) * file[name].ndim] = value

    return edit


def lost_chunk(file: h5py.File) -> None:
    old = file["gpt/stable_rank"]
    values = old[...]
    attributes = dict(old.attrs)
    del file["gpt/stable_rank"]
    new = file["gpt"].create_dataset("stable_rank", values.shape, "<f8", chunks=(1, 1, 1, 1, 3, 1, 2), fletcher32=True)
    new[0] = values[0]
    new.attrs["definition"] = attributes["definition"]


def missing_axis(file: h5py.File) -> None:
    del file["gpt/head"]


HOSTILE = [
    (relabelled("gpt/region", ["=1+1", "full"]), "/gpt/region must be of lower-case letters, digits .*, got '=1.1'"),
    (relabelled("gpt/region", ["full", "@a"]), "/gpt/region must be of lower-case letters"),
    (relabelled("gpt/applied_mask", ["own", "a b"]), "/gpt/applied_mask must be of lower-case letters"),
    (relabelled("gpt/seed", [3, 3]), "must have its axes labelled by variables of the file, got a label at"),
    (relabelled("gpt/seed", [[3, 4]]), "must have its axes labelled by variables of the file, got a label at"),
    (relabelled("gpt/seed", [0.5, 1]), "must have its axes labelled by variables of the file, got a label at"),
    (relabelled("gpt/seed", [1, 2, 3]), "must have its axes labelled by variables of the file, got a label at"),
    (renamed("gpt", "+cmd"), "must have plain names, got .*cmd"),
    (renamed("gpt", "Gpt"), "/Gpt/arm must be of lower-case letters"),
    (renamed("gpt/stable_rank", "gpt/-2"), "/gpt/measures must have new names .*, got '-2'"),
    (renamed("gpt/stable_rank", "gpt/baseline"), "/gpt/measures must have new names .*, got 'baseline'"),
    (renamed("gpt/floor_model", "gpt/other"), "/gpt/floor_model must exist, got nothing of that name"),
    (put("gpt/status", 9), "/gpt/status must hold codes from 0 to 3, got 9"),
    (put("gpt/method", -1), "/gpt/method must hold codes from 0 to 3, got -1"),
    (lost_chunk, "/gpt/stable_rank must have every chunk, got a lost or unchecked one"),
    (missing_axis, "must have its axes labelled by variables of the file, got a label at"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), HOSTILE)
def test_a_hostile_file_makes_no_table(copy: Path, edit: Callable[[h5py.File], None], message: str) -> None:
    path = edited(copy, edit)
    with pytest.raises(SpectrumFileError, match=message) as caught:
        columns(path)
    assert "\n" not in str(caught.value)


def test_bounds_of_another_order_are_refused(copy: Path) -> None:
    path = edited(copy, relabelled("comparison/bound", ["lower", "mean", "upper"]))
    with pytest.raises(SpectrumFileError, match=r"/comparison/bound must be mean, lower, upper, got .'lower'"):
        columns(path, "comparison")
