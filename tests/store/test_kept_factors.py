"""What spectra came from is kept beside them, and read back a layer at a time."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from store.rich_file import HEADS, KEPT, LAYERS, SEQUENCES, SHAPE, kept_slab, positions, rich_layout, write_arm
from store.spectra_file import MEASURES, RECOMPUTE, edited, new_writer, spoil_chunks

from rankkit.errors import SpectrumFileError
from rankkit.store import (
    GroupLayout,
    GroupWriter,
    KeptSlab,
    Slab,
    describe,
    kept_in,
    read_group,
    read_kept,
    schema,
    verification,
    verify,
)
from rankkit.store.door.hdf5 import DEFAULT_LIMIT, opened
from rankkit.store.groups.kept import attention_violations
from rankkit.store.groups.writing import create_group

LEAN: dict[str, Any] = {"seeds": [7], "steps": [500], "regions": ["full"], "applied_masks": ["own"]}
LEAN |= {"layer_measures": {}, "output_components": None}
FIRST = {"seed": 0, "step": 0, "sequence": 0, "layer": 0}
AXES = {"queries": ["query", "feature"], "keys": ["key", "feature"], "attention": ["query", "key"]}
NAN = np.float32("nan")


def one_slab() -> KeptSlab:
    """ "sequence head"."""
    return kept_slab(np.random.default_rng(0))


def write_one(path: Path, values: KeptSlab, index: dict[str, Any] | None = None, **changes: Any) -> None:
    """The first slab of one arm; the file stays unfinished."""
    with new_writer(path) as writer:
        group = writer.group("gpt", rich_layout(**(LEAN | KEPT | changes)))
        group.write_kept({"seed": 0, "step": 0, "layer": 1} if index is None else index, values)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "a.h5"
    with new_writer(path) as writer:
        write_arm(writer, "gpt", **LEAN, **KEPT)
        write_arm(writer, "unilm", **LEAN)
        write_arm(writer, "bert", **LEAN, kept=["attention"])
    return path


@pytest.fixture
def kept_copy(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(kept, tmp_path / "copy.h5"))


def test_what_was_written_reads_back_layer_by_layer(rich: Path) -> None:
    generator, chosen = np.random.default_rng(3), rich_layout(**KEPT)
    with opened(rich) as file:
        for index in positions(chosen, "seed", "step", "layer"):
            written = kept_slab(generator)
            for sequence in range(SEQUENCES):
                found = read_kept(file, "gpt", index | {"sequence": sequence})
                assert list(found) == ["queries", "keys", "attention"]
                for name, values in found.items():
                    assert values.dtype == np.float32
                    np.testing.assert_array_equal(values, getattr(written, name)[sequence])


def test_a_path_gives_what_the_open_file_gives(kept: Path) -> None:
    with opened(kept) as file:
        np.testing.assert_equal(read_kept(str(kept), "gpt", FIRST), read_kept(file, "gpt", FIRST))


def test_a_group_says_what_it_keeps(kept: Path) -> None:
    assert kept_in(kept, "gpt") == ("queries", "keys", "attention")
    assert kept_in(kept, "unilm") == ()
    with opened(kept) as file:
        assert kept_in(file, "bert") == ("attention",)
        assert list(read_kept(file, "bert", FIRST)) == ["attention"]
    gpt, unilm, bert = describe(kept).groups
    assert gpt.attributes["logit_scale"] == KEPT["logit_scale"]
    assert not {"logit_scale"} & {*unilm.attributes, *bert.attributes}
    assert gpt.dimensions["feature"] == KEPT["features"]
    assert gpt.measures == unilm.measures  # what is kept is no measure
    assert "feature" not in bert.dimensions


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_kept_matrices_open_in_xarray_with_the_axes_of_the_schema(kept: Path, engine: Any) -> None:
    with xarray.open_dataset(kept, engine=engine, group="gpt") as dataset:
        for name, axes in AXES.items():
            assert list(dataset[name].dims) == [*schema.KEPT_AXES, *axes]
            assert dataset[name].dtype == np.float32
            assert dataset[name].attrs["units"] == "1"
        chosen = dataset["keys"].sel(seed=7, step=500, sequence=1, layer=1).values
        np.testing.assert_array_equal(chosen, read_kept(kept, "gpt", FIRST | {"sequence": 1, "layer": 1})["keys"])


def test_queries_keys_and_scale_give_the_attention_back(kept: Path) -> None:
    found = read_kept(kept, "gpt", FIRST)
    scale = describe(kept).groups[0].attributes["logit_scale"]
    logits = float(scale) * found["queries"].astype(float) @ np.swapaxes(found["keys"], -1, -2)
    weights = np.exp(logits) * np.tri(6)
    np.testing.assert_allclose(weights / weights.sum(axis=-1, keepdims=True), found["attention"], rtol=1e-5)


def long_layout(length: int, **changes: Any) -> GroupLayout:
    sizes = np.full((1, 2), length)
    return rich_layout(
        **LEAN,
        **KEPT,
        tokens=np.zeros((2, length), dtype=np.int32),
        valid_row=np.ones((2, length), dtype=np.int8),
        prefix_length=np.zeros(2, dtype=np.int32),
        rows=sizes,
        columns=sizes,
        **changes,
    )


@pytest.mark.parametrize("length", [6, 512, 3000])
def test_a_chunk_holds_rows_of_one_head_of_one_sequence_and_at_most_a_mebibyte(length: int) -> None:
    chosen = long_layout(length)
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        waiting = create_group(file, "gpt", chosen)
        datasets = [waiting[variable.name] for variable in schema.KEPT_VARIABLES]
        for dataset in datasets:
            assert dataset.chunks[:5] == (1,) * 5
            assert dataset.chunks[-1] == dataset.shape[-1]
            assert np.prod(dataset.chunks) * 4 <= 1 << 20 or dataset.chunks[-2] == 1
            assert dataset.chunks[-2] == length or np.prod(dataset.chunks) * 4 > 1 << 18  # no smaller than it must be
            assert dataset.id.get_access_plist().get_chunk_cache()[1] <= 1 << 20
            assert np.isnan(dataset.fillvalue)  # a lost chunk does not look like data
            assert (dataset.compression, dataset.shuffle, dataset.fletcher32) == ("gzip", True, True)
        assert chosen.kept_bytes == sum(dataset.nbytes for dataset in datasets)
    assert rich_layout(**LEAN).kept_bytes == 0


@pytest.mark.parametrize("name", AXES)
def test_reading_one_layer_of_one_sequence_touches_only_its_chunks(kept_copy: Path, name: str) -> None:
    before = read_kept(kept_copy, "gpt", FIRST | {"sequence": 1, "layer": 1})
    spoilt = spoil_chunks(kept_copy, f"gpt/{name}", lambda offset: offset[2:4] == (1, 1))
    assert spoilt == (SEQUENCES * LAYERS - 1) * HEADS
    np.testing.assert_equal(read_kept(kept_copy, "gpt", FIRST | {"sequence": 1, "layer": 1}), before)
    with pytest.raises(SpectrumFileError, match=f"/gpt/{name} must be readable, got .*. The file is damaged"):
        read_kept(kept_copy, "gpt", FIRST)
    assert verify(kept_copy) == [f"gpt/{name} must match its checksum, got a damaged chunk"]


def test_an_unwritten_matrix_is_named_and_refused(tmp_path: Path) -> None:
    def forget() -> None:
        with new_writer(tmp_path / "a.h5") as writer:
            write_arm(writer, "unilm", **LEAN)
            group = writer.group("gpt", rich_layout(**LEAN, **KEPT))
            write_failed(group)
            group.write_kept({"layer": 0}, whole(one_slab()))

    cell = "seed 7, step 500, sequence 0, layer 1, head 0"
    with pytest.raises(SpectrumFileError, match=f"gpt must be written whole, got nothing for what is kept of {cell}"):
        forget()
    assert list(tmp_path.iterdir()) == []


def write_failed(group: GroupWriter) -> None:
    """No spectrum at all, for tests that are not about spectra."""
    nothing = np.full((1, 1, 1, 1, SEQUENCES, LAYERS, HEADS, 0), NAN)
    codes = {"resolved": 0, "resolved_model": 0, "method": 1, "status": 3}
    measures = dict.fromkeys(MEASURES, NAN)
    group.write({}, Slab(singular_values=nothing, floor_arithmetic=NAN, floor_model=NAN, measures=measures, **codes))


def whole(values: KeptSlab) -> KeptSlab:
    """ "sequence head" with the axes before it, of length one."""
    return KeptSlab(**{name: getattr(values, name)[np.newaxis, np.newaxis] for name in AXES})


def test_a_matrix_is_written_once_and_by_its_own_axes(tmp_path: Path) -> None:
    def twice() -> None:
        with new_writer(tmp_path / "a.h5") as writer:
            group = writer.group("gpt", rich_layout(**LEAN, **KEPT))
            group.write_kept({"layer": 0}, whole(one_slab()))
            group.write_kept({"seed": 0, "step": 0, "layer": 0}, one_slab())

    with pytest.raises(ValueError, match="index must name cells that are not written yet"):
        twice()
    with pytest.raises(ValueError, match="index must name axes among seed, step, sequence, layer, head, got 'region'"):
        write_one(tmp_path / "a.h5", one_slab(), {"seed": 0, "step": 0, "layer": 0, "region": 0})


def test_half_precision_is_kept_exactly_and_nan_is_a_number_a_model_can_produce(tmp_path: Path) -> None:
    values = one_slab()
    halves = replace(values, queries=values.queries.astype(np.float16))
    assert halves.queries is not None
    halves.queries[0, 0, 0, 0] = np.nan
    halves.queries[0, 0, 1, 0] = np.inf
    with new_writer(tmp_path / "a.h5") as writer:
        group = writer.group("gpt", rich_layout(**LEAN, **KEPT))
        for index in positions(rich_layout(**LEAN), "seed", "step", "layer"):
            group.write_kept(index, halves)
        write_failed(group)
    assert verify(tmp_path / "a.h5") == []
    np.testing.assert_array_equal(read_kept(tmp_path / "a.h5", "gpt", FIRST)["queries"], halves.queries[0])


def with_attention(change: Callable[[NDArray[np.float32]], None]) -> KeptSlab:
    values = one_slab()
    assert values.attention is not None
    change(values.attention)
    return values


def put(place: Any, number: float) -> Callable[[NDArray[np.float32]], None]:
    def change(attention: NDArray[np.float32]) -> None:
        attention[place] = number

    return change


BETWEEN = "attention must be between 0 and 1, got 1 matrices that break it"
ROWS = "rows of attention must sum to at most 1, got 1 matrices that break it"
IMPOSSIBLE = [
    (put((1, 0, 2, 2), -1e-6), BETWEEN),
    (put((1, 0, 2, 2), 1.01), BETWEEN),
    (put((1, 0, 2, 2), np.inf), BETWEEN),
    (put((1, 0, 5), 0.2), ROWS),
]


@pytest.mark.parametrize(("change", "claim"), IMPOSSIBLE)
def test_a_matrix_that_is_no_attention_is_refused_at_once_and_named(
    tmp_path: Path, change: Callable[[NDArray[np.float32]], None], claim: str
) -> None:
    cell = "the first at seed 7, step 500, sequence 1, layer 1, head 0"
    with pytest.raises(SpectrumFileError, match=f"gpt: {claim}, {cell}"):
        write_one(tmp_path / "a.h5", with_attention(change))


@pytest.mark.parametrize(
    ("change", "layout"),
    [
        (put((1, 0, 2), np.nan), {}),
        (put((1, 0, 2), 0.0), {}),
        (put((1, 0, 0, 0), 1 + 1e-6), {}),
        (put((1, 0, 2, 2), -7.0), {"rows_sum_to_one": False}),
    ],
)
def test_failed_rows_lost_mass_rounding_and_signed_matrices_are_kept(
    tmp_path: Path, change: Callable[[NDArray[np.float32]], None], layout: dict[str, Any]
) -> None:
    with pytest.raises(SpectrumFileError, match="gpt must be written whole"):  # the slab itself was taken
        write_one(tmp_path / "a.h5", with_attention(change), **layout)


def changed(**changes: Any) -> KeptSlab:
    return replace(one_slab(), **changes)


NO_FIT = [
    (changed(attention=None), {}, "kept must be attention, keys, queries, got keys, queries. Give the group's kept"),
    (
        changed(),
        {"kept": ["attention"], "features": None, "logit_scale": None},
        "kept must be attention, got attention, ",
    ),
    (changed(), {"kept": (), "features": None, "logit_scale": None}, "kept must be none, got attention, keys, queries"),
    (
        changed(keys=np.zeros((*SHAPE, 6, 2), np.float32)),
        {},
        r"keys must have shape \(2, 2, 6, 3\), got \(2, 2, 6, 2\)",
    ),
    (changed(queries=np.float32(0)), {}, r"queries must have shape \(2, 2, 6, 3\), got \(\). Match the index"),
    (
        changed(queries=np.zeros((*SHAPE, 6, 3))),
        {},
        "queries must be of a type that float32 holds without loss, got float",
    ),
]


@pytest.mark.parametrize(("values", "layout", "message"), NO_FIT)
def test_a_slab_that_does_not_fit_the_layout_is_refused(
    tmp_path: Path, values: KeptSlab, layout: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_one(tmp_path / "a.h5", values, **layout)


BAD_LAYOUTS = [
    (KEPT | {"kept": ["values"]}, "kept must be among queries, keys, attention, got 'values'"),
    (KEPT | {"kept": ["keys", "attention"]}, "kept must hold queries and keys together, got keys alone"),
    (KEPT | {"features": None}, "features must be given exactly where queries and keys are kept, got None"),
    (KEPT | {"logit_scale": None}, "logit_scale must be given exactly where queries and keys are kept, got None"),
    (KEPT | {"kept": ["attention"]}, "features must be given exactly where queries and keys are kept, got 3"),
    (KEPT | {"logit_scale": float("nan")}, "logit_scale must be a finite number, got nan"),
    (KEPT | {"features": 0}, "feature must hold at least one label"),
    (KEPT | {"measures": {"queries": rich_layout().measures["stable_rank"]}}, "measure must have a name .* 'queries'"),
    ({"sequences": [1, 0]}, r"sequence must rise, got \[1, 0\]"),
    ({"sequences": [-1, 0]}, "sequence must be at least 0, got -1"),
    ({"sequences": [3, 3]}, "sequence must hold at least one label and none twice"),
    ({"sequences": [3, 4, 5]}, "tokens must have shape .3, 6., got .2, 6."),
]


@pytest.mark.parametrize(("changes", "message"), BAD_LAYOUTS)
def test_a_layout_that_cannot_hold_is_refused(changes: dict[str, Any], message: str) -> None:
    settings_of_all = {"estimated": (), "errors": ()} if "measures" in changes else {}
    with pytest.raises(ValueError, match=message):
        rich_layout(**(LEAN | settings_of_all | changes))


def test_more_than_readers_take_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(
        ValueError, match=f"attention must take at most {DEFAULT_LIMIT} bytes, or readers refuse it, got"
    ):
        long_layout(18_000)


def test_logit_scale_is_no_attribute_of_ones_own() -> None:
    policy = {"bos": "", "packing": "", "truncation": "", "logit_scale": 1.0}
    with pytest.raises(ValueError, match="attributes must not hold logit_scale, which the writer sets itself"):
        rich_layout(**LEAN, attributes=policy)


def without(name: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]

    return edit


def without_scale(file: h5py.File) -> None:
    del file["gpt"].attrs["logit_scale"]


def with_scale(value: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file["gpt"].attrs["logit_scale"] = value

    return edit


def in_double_precision(file: h5py.File) -> None:
    values = file["gpt/keys"][...]
    scales = [axis[0] for axis in file["gpt/keys"].dims]
    del file["gpt/keys"]
    keys = file["gpt"].create_dataset("keys", data=values.astype(np.float64), chunks=values.shape, fletcher32=True)
    for axis, scale in zip(keys.dims, scales, strict=True):
        axis.attach_scale(scale)


def in_one_piece(file: h5py.File) -> None:
    scale = file["gpt/sequence"]
    del file["gpt/prefix_length"]
    file["gpt"].create_dataset("prefix_length", data=np.full(SEQUENCES, 4, dtype=np.int32)).dims[0].attach_scale(scale)


def at(name: str, place: Any, number: float) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        file["gpt"][name][place] = number

    return edit


CELL = "the first at seed 7, step 500, sequence 1, layer 0, head 1"
EDITS = [
    (without("gpt/keys"), "gpt: queries and keys must be kept together, got queries alone"),
    (without_scale, "gpt: logit_scale must be given beside queries and keys, got none"),
    (with_scale(np.inf), "gpt: logit_scale must be a finite number, got inf"),
    (with_scale("much"), "gpt: logit_scale must be a finite number, got 'much'"),
    (in_double_precision, "gpt/keys must be of type float32, got float64"),
    (in_one_piece, "gpt/prefix_length must have a checksum, got numbers that lie in one piece"),
    (at("attention", (0, 0, 1, 0, 1, 5, 0), 1.5), f"gpt: {BETWEEN}, {CELL}"),
    (at("attention", (0, 0, 1, 0, 1, 5), 0.2), f"gpt: {ROWS}, {CELL}"),
    (at("sequence", 0, 5), "gpt: sequence must rise, got [5, 1]"),
]


@pytest.mark.parametrize(("edit", "problem"), EDITS)
def test_verification_finds_what_was_changed(kept_copy: Path, edit: Callable[[h5py.File], None], problem: str) -> None:
    assert problem in verify(edited(kept_copy, edit), RECOMPUTE)


def test_numbers_that_a_model_can_produce_verify(kept_copy: Path) -> None:
    def edit(file: h5py.File) -> None:
        file["gpt/queries"][0, 0, 1, 0, 1] = np.nan
        file["gpt/keys"][0, 0, 1, 0, 1, 2] = -np.inf
        file["gpt/attention"][0, 0, 1, 0, 1, 2] = np.nan

    assert verify(edited(kept_copy, edit), RECOMPUTE) == []


def test_matrices_larger_than_a_block_are_verified_row_by_row(kept_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_BLOCK_BYTES", 48)  # two rows
    assert verify(kept_copy) == []
    path = edited(kept_copy, at("attention", (0, 0, 1, 0, 1, slice(3, 5), 0), 1.5))
    assert verify(path) == [f"gpt: {BETWEEN}, {CELL}", f"gpt: {ROWS}, {CELL}"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0, 30), rows=st.integers(1, 6))
def test_softmax_breaks_no_claim_however_its_rows_are_split(seed: int, spread: float, rows: int) -> None:
    logits = spread * np.random.default_rng(seed).normal(size=(2, 6, 5)).astype(np.float32)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    attention = weights / weights.sum(axis=-1, keepdims=True)
    blocks = [attention[:, start : start + rows] for start in range(0, 6, rows)]
    assert list(attention_violations(blocks)) == []
    attention[1, 4, 2] += 1.1
    ((between, broken), (sums, also)) = attention_violations(blocks)
    assert (between, broken.tolist()) == ("attention must be between 0 and 1", [False, True])
    assert (sums, also.tolist()) == ("rows of attention must sum to at most 1", [False, True])


BAD_INDICES = [
    ({"seed": 0, "step": 0, "layer": 0}, "index must name seed, step, sequence, layer, got seed, step, layer. Give"),
    (FIRST | {"head": 0}, "index must name seed, step, sequence, layer, got .*, head. Give one position each"),
    (FIRST | {"layer": 2}, "layer must be a position from 0 to 1, got 2. Pass positions, not labels"),
    (FIRST | {"seed": -1}, "seed must be a position from 0 to 0, got -1"),
]


@pytest.mark.parametrize(("index", "message"), BAD_INDICES)
def test_a_wrong_index_is_refused(kept: Path, index: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_kept(kept, "gpt", index)


def test_a_group_that_is_not_there_or_keeps_nothing_is_refused(kept: Path) -> None:
    with pytest.raises(SpectrumFileError, match=r"must hold group 't5', got gpt, unilm, bert. Choose one of them"):
        read_kept(kept, "t5", FIRST)
    with pytest.raises(
        SpectrumFileError, match=r"unilm must keep queries and keys, or attention, got neither. Measure"
    ):
        read_kept(kept, "unilm", FIRST)


def test_a_kept_variable_of_another_type_or_shape_is_refused_before_it_is_read(kept_copy: Path) -> None:
    with h5py.File(kept_copy, "r+", libver=("v110", "v110")) as file:
        in_double_precision(file)
    with pytest.raises(
        SpectrumFileError, match=r"/gpt/keys must be of type float32 with axes .seed, .*, got float64 of"
    ):
        read_kept(kept_copy, "gpt", FIRST)


def test_a_part_of_a_measurement_keeps_the_numbers_of_its_sequences(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with new_writer(path) as writer:
        write_arm(writer, "gpt", **LEAN, **KEPT, sequences=[8, 11])
    assert verify(path, RECOMPUTE) == []
    assert read_group(path, "gpt", ["sequence"])["sequence"].tolist() == [8, 11]
    assert describe(path).groups[0].labels["sequence"] == (8, 11)
    positions_of_all = product(range(SEQUENCES), range(LAYERS))
    for sequence, layer in positions_of_all:
        assert read_kept(path, "gpt", FIRST | {"sequence": sequence, "layer": layer})["keys"].shape == (HEADS, 6, 3)
