"""Arrays that other tools saved: read by piece as they are, and refused in one line where they are not what they say."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankkit.errors import SpectrumFileError
from rankkit.store.arrays.opening import FACTOR_NAMES, GivenArrays, read_arrays

KINDS = ["npy", "npz", "compressed npz", "h5", "gzip h5", "lzf h5"]
SHAPES = [(5, 7), (3, 5, 7), (2, 3, 5, 7), (4, 2, 3, 5, 7)]


def numbers(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def attention(shape: tuple[int, ...] = (2, 2, 3, 6, 6), dtype: str = "float32", *, causal: bool = False) -> np.ndarray:
    logits = 2 * numbers(shape, "float64")
    if causal:
        logits[..., np.triu(np.ones(shape[-2:], dtype=bool), 1)] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(dtype)


def save(folder: Path, kind: str, **arrays: np.ndarray) -> Path:
    path = folder / f"arrays.{kind.split()[-1]}"
    if kind == "npy":
        np.save(path, next(iter(arrays.values())))
    elif kind.endswith("npz"):
        (np.savez_compressed if kind.startswith("compressed") else np.savez)(path, **arrays)
    else:
        options = {"h5": {}, "gzip h5": {"compression": 1, "shuffle": True, "fletcher32": True}}
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, **options.get(kind, {"compression": "lzf"}))
    return path


def expanded(array: np.ndarray) -> np.ndarray:
    return array.reshape((1,) * (5 - array.ndim) + array.shape)


def refused(path: Path, message: str, **options: Any) -> None:
    """One line when the file is opened or, at the latest, when everything in it is read."""
    with pytest.raises(SpectrumFileError, match=message) as caught:
        read_everything(path, **options)
    assert "\n" not in str(caught.value)


def read_everything(path: Path, **options: Any) -> None:
    with read_arrays(path, **options) as found:
        for layer in range(found.layers):
            found.block(slice(None), layer, range(found.heads))
        assert found.precision
        assert found.rows_sum_to_one == (found.reason == "")


# What is read


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_equals_that_part_of_the_array(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    array = numbers(shape)
    whole = expanded(array)
    with read_arrays(save(tmp_path, kind, attention=array)) as found:
        assert (found.sequences, found.layers, found.heads) == whole.shape[:3]
        assert (found.queries_count, found.keys_count, found.features) == (5, 7, None)
        assert (found.what, found.dtype) == ("attention", np.float32)
        for layer in range(found.layers):
            block = found.block(slice(0, found.sequences), layer, range(found.heads))
            assert block.keys() == {"attention"}
            np.testing.assert_array_equal(block["attention"], whole[:, layer])
        part = found.block(slice(-1, None), found.layers - 1, [found.heads - 1])["attention"]
        np.testing.assert_array_equal(part, whole[-1:, -1, -1:])
        part[...] = 0  # writable: torch warns of arrays that are not


@pytest.mark.parametrize("kind", ["npy", "compressed npz", "h5"])
@pytest.mark.parametrize("heads", [[2, 0], [1], [0, 1, 3], [3, 2, 1, 0], [1, 1], range(1, 3)])
def test_heads_come_in_the_order_asked_for(tmp_path: Path, kind: str, heads: Any) -> None:
    array = numbers((2, 2, 4, 3, 3))
    with read_arrays(save(tmp_path, kind, attention=array)) as found:
        np.testing.assert_array_equal(found.block(slice(1, 2), 1, heads)["attention"], array[1:2, 1, list(heads)])
        assert found.block(slice(1, 1), 1, heads)["attention"].shape == (0, len(heads), 3, 3)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("names", FACTOR_NAMES)
def test_queries_and_keys_are_found_under_every_name(tmp_path: Path, kind: str, names: tuple[str, str]) -> None:
    queries, keys = numbers((2, 2, 3, 5, 4)), numbers((2, 2, 3, 7, 4), seed=1)
    arrays = dict(zip(names, (queries, keys), strict=True), tokens=np.arange(10), labels=np.zeros((2, 2)))
    with read_arrays(save(tmp_path, kind, **arrays)) as found:
        assert (found.what, found.queries_count, found.keys_count, found.features) == ("factors", 5, 7, 4)
        assert found.rows_sum_to_one
        assert found.hidden_mass(np.zeros((5, 7), dtype=bool)) == 0
        block = found.block(slice(0, 2), 1, [0, 2])
    assert list(block) == ["queries", "keys"]
    np.testing.assert_array_equal(block["queries"], queries[:, 1, [0, 2]])
    np.testing.assert_array_equal(block["keys"], keys[:, 1, [0, 2]])


@pytest.mark.parametrize("kind", ["npz", "h5"])
@pytest.mark.parametrize("heads", [range(6), [5], [0, 3], [4, 2, 1], [2, 3]])
def test_a_key_head_serves_neighbouring_heads_of_the_queries(tmp_path: Path, kind: str, heads: Any) -> None:
    queries, keys = numbers((6, 5, 4)), numbers((2, 5, 4), seed=1)
    with read_arrays(save(tmp_path, kind, q=queries, k=keys)) as found:
        assert found.heads == 6
        block = found.block(slice(None), 0, heads)
    np.testing.assert_array_equal(block["queries"][0], queries[list(heads)])
    np.testing.assert_array_equal(block["keys"][0], np.repeat(keys, 3, axis=0)[list(heads)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", ">f8"])
def test_values_keep_their_type_in_the_byte_order_of_the_machine(tmp_path: Path, kind: str, dtype: str) -> None:
    array = numbers((3, 4), dtype)
    with read_arrays(save(tmp_path, kind, attention=array)) as found:
        block = found.block(slice(None), 0, [0])["attention"]
        assert found.dtype == block.dtype == np.dtype(dtype).newbyteorder("=")
        assert block.dtype.isnative
        np.testing.assert_array_equal(block[0, 0], array)
        assert found.precision == found.dtype.name


@pytest.mark.parametrize("kind", ["npy", "npz", "compressed npz"])
def test_arrays_in_column_order_are_read_as_they_are_indexed(tmp_path: Path, kind: str) -> None:
    array = np.asfortranarray(numbers((2, 3, 4, 5)))
    with read_arrays(save(tmp_path, kind, attention=array)) as found:
        np.testing.assert_array_equal(found.block(slice(None), 1, range(3))["attention"][0], array[1])


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_the_only_matrix_under_another_name_is_attention(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path, kind, weights=attention(), ids=np.arange(4), table=np.ones((2, 2), dtype=np.int64))
    with read_arrays(path) as found:
        assert found.what == "attention"


def test_the_only_matrix_of_a_hierarchy_is_found_and_links_to_it_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["layer/deep/weights"] = attention()
        file["layer/note"] = "text"
        file["again"] = file["layer/deep/weights"]
        file["layer/circle"] = file["layer"]
        file["soft"] = h5py.SoftLink("/layer/deep/weights")
        file["type"] = np.dtype("<f8")
        file["none"] = h5py.Empty("<f8")
    with read_arrays(path) as found:
        assert found.block(slice(0, 1), 0, [0])["attention"].shape == (1, 1, 6, 6)


def test_a_file_is_known_by_its_first_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    path = save(tmp_path, "npz", attention=attention())
    with read_arrays(path.rename(tmp_path / "arrays.h5")) as found:
        assert found.heads == 3


def test_only_the_part_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("attention", data=attention((2, 3, 4, 8, 8)), chunks=(1, 1, 1, 8, 8), compression=1)
        chunk = file["attention"].id.get_chunk_info(0)
    harm(path, chunk.byte_offset, chunk.size)
    with read_arrays(path) as found:
        assert found.block(slice(1, 2), 0, [0, 1])["attention"].shape == (1, 2, 8, 8)
        assert found.block(slice(0, 2), 2, range(4))["attention"].shape == (2, 4, 8, 8)
        with pytest.raises(SpectrumFileError, match="'attention' must be readable"):
            found.block(slice(0, 1), 0, [0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((slice(None), 2, [0]), "layer must be between 0 and 1, got 2. Choose one"),
        ((slice(None), -1, [0]), "layer must be between 0 and 1, got -1"),
        ((slice(None), 0, [0, 3]), r"heads must be between 0 and 2, got \[0, 3\]. Choose some"),
        ((slice(None), 0, [-1]), r"heads must be between 0 and 2, got \[-1\]"),
        ((slice(None), 0, []), r"heads must be between 0 and 2, got \[\]"),
        ((slice(None, None, 2), 0, [0]), "sequence must be in steps of 1, got slice"),
    ],
)
def test_a_block_outside_the_arrays_is_refused(tmp_path: Path, arguments: Any, message: str) -> None:
    with read_arrays(save(tmp_path, "npy", attention=attention())) as found, pytest.raises(ValueError, match=message):
        found.block(*arguments)


# What the entries say


def facts(folder: Path, array: np.ndarray) -> GivenArrays:
    return read_arrays(save(folder, "npy", attention=array))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [6, 300])
def test_a_softmax_stored_in_any_type_sums_to_one(tmp_path: Path, dtype: str, size: int) -> None:
    found = facts(tmp_path, attention((2, size, size), dtype, causal=True))
    assert found.rows_sum_to_one
    assert (found.reason, found.precision) == ("", dtype)


def test_entries_that_underflow_in_float16_may_take_more_from_a_sum(tmp_path: Path) -> None:
    keys = round(2**24 / 100.49)  # every entry loses 0.49 of the smallest number of float16
    array = np.full((2, keys), 1 / keys, dtype=np.float16)
    assert np.abs(array.sum(axis=-1, dtype=np.float64) - 1).min() > 4 * 2.0**-11
    assert facts(tmp_path, array).rows_sum_to_one
    assert not facts(tmp_path, np.float16(0.9) * array).rows_sum_to_one


def bfloat16(array: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, as float32."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bfloat16_and_float16_show_in_the_entries_of_wider_types(tmp_path: Path, dtype: str) -> None:
    exact = attention((3, 40, 40))
    rounded = bfloat16(exact)
    assert np.abs(rounded.sum(axis=-1) - 1).max() > 1e-3
    found = facts(tmp_path, rounded.astype(dtype))
    assert (found.precision, found.rows_sum_to_one) == ("bfloat16", True)
    assert facts(tmp_path, exact.astype(np.float16).astype(dtype)).precision == "float16"
    rounded[-1, -1, -1] += np.float32(2.0**-24)
    assert facts(tmp_path, rounded.astype(dtype)).precision == "float32"


def test_float32_shows_in_float64_and_keys_count_as_queries_do(tmp_path: Path) -> None:
    assert facts(tmp_path, attention().astype(np.float64)).precision == "float32"
    path = save(tmp_path, "npz", queries=bfloat16(numbers((20, 20))), keys=numbers((20, 20)))
    with read_arrays(path) as found:
        assert found.precision == "float32"
    path = save(tmp_path, "npz", queries=bfloat16(numbers((20, 20))), keys=bfloat16(numbers((20, 20), seed=1)))
    with read_arrays(path) as found:
        assert found.precision == "bfloat16"


@pytest.mark.parametrize("array", [np.eye(100), np.full((64, 64), 1 / 64), np.zeros((9, 9))])
def test_entries_that_every_format_holds_show_none(tmp_path: Path, array: np.ndarray) -> None:
    found = facts(tmp_path, array.astype(np.float32))
    assert (found.precision, found.rows_sum_to_one) == ("float32", True)


def change(array: np.ndarray, where: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[where] = value
    return array


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (
            change(attention(), (1, 0, 2, 4, 5), -0.25),
            r"entry \(4, 5\) of sequence 1, layer 0, head 2 is -0.25, less than 0",
        ),
        (2 * attention(), r"row \d of sequence 0, layer \d, head \d sums to 2, not to 1 within 1e-05"),
        (change(attention(), (0, 1, 1, 3), 0.3), "row 3 of sequence 0, layer 1, head 1 sums to 1.8, not to 1 within"),
        (attention().swapaxes(-1, -2), "row . of sequence ., layer ., head . sums to"),
        (numbers((5, 5)), "less than 0"),
        (np.full((2, 2), 1e308), "row 0 of sequence 0, layer 0, head 0 sums to inf"),
    ],
)
def test_what_is_no_attention_is_told_with_the_place(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    found = facts(tmp_path, array)
    assert not found.rows_sum_to_one
    assert re.search(reason, found.reason)


def test_empty_rows_and_matrices_with_nan_or_infinity_do_not_count_against_attention(tmp_path: Path) -> None:
    array = attention()
    array[0, 0, 0, 2] = 0
    array[0, 0, 1, 0, 0] = np.nan
    array[1, 1, 2] = -np.inf
    assert facts(tmp_path, array).rows_sum_to_one
    assert facts(tmp_path, np.full((3, 3), np.nan)).rows_sum_to_one


@pytest.mark.parametrize("kind", ["npy", "npz", "h5"])
def test_hidden_mass_is_zero_under_the_own_mask_and_the_largest_entry_under_another(tmp_path: Path, kind: str) -> None:
    visible = np.tril(np.ones((6, 6), dtype=bool))
    with read_arrays(save(tmp_path, kind, attention=attention(causal=True))) as found:
        assert found.hidden_mass(visible) == 0
        assert found.hidden_mass(np.ones((6, 6), dtype=bool)) == 0
    array = attention()
    array[0, 0, 0, 0, 5] = np.nan
    with read_arrays(save(tmp_path, kind, attention=array)) as found:
        assert found.hidden_mass(visible) == np.nanmax(array[..., ~visible])
        with pytest.raises(ValueError, match=r"allowed must have shape \(6, 6\), got \(3, 3\)"):
            found.hidden_mass(np.ones((3, 3), dtype=bool))


def test_the_mass_that_is_hidden_is_that_of_all_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankkit.store.arrays.given._PIECE_BYTES", 1)
    array = change(attention(causal=True), (1, 1, 1, 0, 3), -0.5)
    found = facts(tmp_path, array)
    assert found.hidden_mass(np.tril(np.ones((6, 6), dtype=bool))) == 0.5
    assert found.reason.startswith("entry (0, 3) of sequence 1, layer 1, head 1 is")


# What is refused


def test_a_missing_file_a_folder_an_empty_file_and_another_kind_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.npz", "must be a file of arrays, got no such file. Check the path")
    refused(tmp_path, "must be a file of arrays, got a folder")
    path = tmp_path / "a.npy"
    path.touch()
    refused(path, "must be a .npy, .npz or HDF5 file, got an empty one")
    path.write_bytes(b"\x80\x04\x95 a pickle")
    refused(path, "must be a .npy, .npz or HDF5 file, got one that starts with .*. Save the arrays with numpy.savez")


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "npy", attention=attention())

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    refused(path, "must be readable, got: permission denied. Ask its owner")


@pytest.mark.parametrize(
    ("array", "found"),
    [(np.zeros(5), r"float64 of shape \(5,\)"), (np.array([{}], dtype=object), r"object of shape \(1,\)")],
)
def test_a_single_array_is_told_the_shape_and_type_that_it_should_have(array: Any, found: str, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", array)
    with pytest.raises(
        SpectrumFileError, match=f"must hold floats with 2 to 5 axes, .* got {found}. Save it with that"
    ):
        read_arrays(tmp_path / "one.npy")


@pytest.mark.parametrize("kind", ["npz", "h5"])
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"attention": numbers((3, 3)), "q": numbers((3, 3)), "k": numbers((3, 3))},
            "got attention and q, k. Save one",
        ),
        ({"queries": numbers((3, 3))}, r"got 'queries' \(float32 \(3, 3\)\). Save them under these names"),
        (
            {"keys": numbers((3, 3)), "q": numbers((3, 3))},
            "must hold attention, or queries and keys, or a single array",
        ),
        ({"a": numbers((3, 3)), "b": numbers((3, 3))}, r"got 'a' \(float32 \(3, 3\)\), 'b'"),
        ({f"a{number}": numbers((2, 2)) for number in range(12)}, "4 more. Save"),
        ({"a": np.arange(5)}, r"or a single array, got 'a' \(int64 \(5,\)\)"),
        (
            {"attention": np.ones((3, 3), dtype=np.int64)},
            "'attention' must hold float16, float32 or float64, got int64. Save",
        ),
        ({"a": np.ones((3, 3), dtype=np.int32)}, "'a' must hold float16, float32 or float64, got int32"),
        ({"attention": np.ones(3)}, r"'attention' must have 2 to 5 axes, .*, got shape \(3,\). Reshape"),
        ({"attention": np.ones((1,) * 6)}, r"must have 2 to 5 axes"),
        ({"attention": np.ones((0, 3, 3))}, r"'attention' must not be empty, got shape \(0, 3, 3\)"),
        ({"attention": np.ones((20, 20))}, "'attention' must take at most 3000 bytes, got 3200. Save fewer sequences"),
        (
            {"q": numbers((4, 3, 5)), "k": numbers((3, 3, 5))},
            r"keys must have .*, got shapes \(4, 3, 5\) and \(3, 3, 5\). Save",
        ),
        ({"q": numbers((2, 4, 3, 5)), "k": numbers((4, 3, 5))}, "keys must have the sequences, layers and features"),
        ({"q": numbers((2, 4, 3, 5)), "k": numbers((1, 4, 3, 5))}, "keys must have the sequences, layers and features"),
        ({"q": numbers((3, 5)), "k": numbers((3, 6))}, "keys must have the sequences, layers and features"),
        (
            {"q": numbers((3, 5)), "k": numbers((3, 5), "float16")},
            "must be of one type, got float32 and float16. Save both",
        ),
    ],
)
def test_arrays_that_are_not_what_is_described_are_refused(
    tmp_path: Path, kind: str, arrays: dict[str, np.ndarray], message: str
) -> None:
    refused(save(tmp_path, kind, **arrays), message, limit=3000)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((3, 3), dtype="V2"), "2-byte values without a type, as NumPy stores bfloat16. Save it as float32"),
        (np.zeros((3, 3), dtype=np.complex64), "got complex64"),
        (np.zeros((3, 3), dtype=bool), "got bool"),
        (np.zeros((3, 3), dtype=np.longdouble), "got float128|got float64"),
        (np.zeros((3, 3), dtype=[("a", "f4")]), "got .*'a'"),
        (np.array([["a", "b"]]), "got <U1"),
        (np.array([[{}, {}]]), "got object"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_entries_that_are_no_floats_are_refused(tmp_path: Path, kind: str, array: np.ndarray, found: str) -> None:
    refused(save(tmp_path, kind, attention=array), f"must hold float16, float32 or float64, .*{found}")


def harm(path: Path, start: int, size: int) -> None:
    data = bytearray(path.read_bytes())
    for position in range(start, start + size):
        data[position] ^= 0x5A
    path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = save(tmp_path, kind, attention=attention((4, 3, 16, 16)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path, "damaged or cut short|must be a .npy")


def npy_header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    data = text.encode("latin1")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", len(data)) + data


DESCRIBED = "{'descr': %s, 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (DESCRIBED % ("'<f4'", "(1024, 1024, 1024, 1024)"), "must take at most 8589934592 bytes, got 4398046511104"),
        (
            DESCRIBED % ("'<f4'", "(16, 16)"),
            "the array must be readable, got .* bytes of .*. The file is damaged or cut short",
        ),
        (DESCRIBED % ("'<f4'", f"({'9' * 4000}, 2)"), "a shape that no array has"),
        (DESCRIBED % ("'<f4'", "(-4, -4)"), "a shape that no array has"),
        (DESCRIBED % ("'<f4'", "(" + "1, " * 2000 + ")"), "a shape that no array has"),
        (DESCRIBED % ("'<f4'", "[4, 4]"), "shape is not valid"),
        (DESCRIBED % ("'<f4'", "(16L, 16L)"), "bytes of"),  # as Python 2 wrote
        (DESCRIBED % ("'|O'", "(2, 2)"), "got object"),
        (DESCRIBED % ("[(1, 2)]", "(2, 2)"), "must be readable"),
        (DESCRIBED % ("()", "(2, 2)"), "must be readable"),
        (DESCRIBED % ("'nothing'", "(2, 2)"), "must be readable"),
        ("{'descr': '<f4'}", "does not contain the correct keys"),
        ("(" * 5000, "must be readable"),
        ("-" * 9000 + "1", "must be readable"),
        ("__import__('os').system('true')", "must be readable"),
        ("{'''", "must be readable"),
        ("x" * 20000, "must be readable"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, header: str, message: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy_header(header) + bytes(64))
    refused(path, message)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("attention.npy", path.read_bytes())
    refused(tmp_path / "a.npz", "must|damaged")


def test_a_header_of_a_version_without_plain_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy_header(DESCRIBED % ("'<f4'", "(1, 1)"), (3, 0)) + bytes(64))
    refused(path, r"version \(3, 0\) of the .npy format")


def zipped(path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def stored_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_a_member_that_declares_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    header = npy_header(DESCRIBED % ("'<f4'", "(1024, 1024, 1024)"))
    refused(zipped(tmp_path / "a.npz", [("attention.npy", header + bytes(1000))]), "4294967.* bytes from 1.* in ")


def test_a_member_that_says_it_unpacks_to_more_than_deflate_can_is_refused(tmp_path: Path) -> None:
    size = 1 << 30
    header = npy_header(DESCRIBED % ("'<f4'", f"({size // 4096}, 1024)"))
    path = zipped(tmp_path / "a.npz", [("attention.npy", header + bytes(1000))])
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    for position in (22, entry + 24):  # the size unpacked, beside the member and in the list of members
        struct.pack_into("<I", data, position, len(header) + size)
    path.write_bytes(data)
    refused(path, r"bytes from 1073741.* in \d{2,3}'")


def test_a_flipped_bit_in_a_member_fails_its_checksum(tmp_path: Path) -> None:
    path = save(tmp_path, "npz", attention=attention())
    harm(path, path.stat().st_size // 2, 1)
    refused(path, "'attention' must be readable, got .*CRC")


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    data = stored_bytes(attention())
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "a.npz", [("attention.npy", data), ("attention.npy", data)])
    refused(path, "must hold at most 1000 arrays of different names, got 2 with 1 names")


def test_too_many_members_are_refused_before_their_headers_are_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", [(f"{number}.npy", b"") for number in range(1001)])
    refused(path, "must hold at most 1000 arrays of different names, got 1001")


def test_a_long_list_of_members_is_not_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", [("x" * 60_000 + str(number), b"") for number in range(20)])
    refused(path, "got 'a list of members of 12.* bytes'")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, compression: int) -> None:
    path = zipped(tmp_path / "a.npz", [("attention.npy", stored_bytes(attention()))], compression)
    refused(
        path, "'attention' must be an array in the file, got a member that is encrypted or neither stored nor deflated"
    )


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", [("attention.npy", stored_bytes(attention()))])
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused(path, "got a member that is encrypted")


def test_names_that_point_elsewhere_are_only_names(tmp_path: Path) -> None:
    data = stored_bytes(attention())
    path = zipped(
        tmp_path / "a.npz", [("../../outside.npy", data), ("/tmp/outside.npy", data), ("note\n\x1b[31m.txt", b"")]
    )
    before = set(tmp_path.rglob("*"))
    refused(path, r"got '../../outside' \(float32 .*\), '/tmp/outside' .*'note\\n\\x1b\[31m.txt' \(no array")
    assert set(tmp_path.rglob("*")) == before


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
            return Path.write_text, (tmp_path / "harm", "done")  # type: ignore[return-value]

    for kind in ("npy", "npz"):
        refused(save(tmp_path, kind, attention=np.array([[Harm(), Harm()]])), "got object")
    assert not (tmp_path / "harm").exists()


def soft_link(file: h5py.File) -> None:
    file["other"] = attention()
    file["attention"] = h5py.SoftLink("/other")


def external_link(file: h5py.File) -> None:
    file["attention"] = h5py.ExternalLink("/etc/hostname", "/")


def external_storage(file: h5py.File) -> None:
    file.create_dataset("attention", (4, 4), "<f4", external=[("/etc/passwd", 0, 64)])


def virtual_dataset(file: h5py.File) -> None:
    virtual = h5py.VirtualLayout((3, 3), "<f8")
    virtual[:] = h5py.VirtualSource("/tmp/other.h5", "x", (3, 3))
    file.create_virtual_dataset("attention", virtual)


def four_terabytes(file: h5py.File) -> None:
    file.create_dataset("attention", (1 << 19, 1 << 20), "<f8", chunks=(1 << 8, 1 << 8), compression=1)


def huge_chunk(file: h5py.File) -> None:
    file.create_dataset("attention", (1 << 12, 1 << 13), "<f4", chunks=(1 << 12, 1 << 13), compression=1)


def other_filter(file: h5py.File) -> None:
    file.create_dataset("attention", (8, 8), "<f4", scaleoffset=3)


def group(file: h5py.File) -> None:
    file["attention/a"] = numbers((3, 3))
    file["attention/b"] = numbers((3, 3))


def text(file: h5py.File) -> None:
    file["attention"] = "text"


def compound(file: h5py.File) -> None:
    file["attention"] = np.zeros((3, 3), dtype=[("a", "f8")])


def empty(file: h5py.File) -> None:
    file["attention"] = h5py.Empty("<f8")


def references(file: h5py.File) -> None:
    file["a"] = numbers((3, 3))
    file.create_dataset("attention", data=np.array([[file["a"].ref]], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)


def ours(file: h5py.File) -> None:
    file.attrs["rankkit_schema"] = "1.0"
    file["attention"] = attention()


def deep(file: h5py.File) -> None:
    file["/".join("abcdefghijk")] = attention()


HOSTILE = [
    (soft_link, "'attention' must be an array in the file, got a link. Save the array itself"),
    (external_link, "'attention' must be an array in the file, got a link"),
    (external_storage, "'attention' must hold its values, got a view of other files. Copy the values"),
    (virtual_dataset, "'attention' must hold its values, got a view of other files"),
    (four_terabytes, "'attention' must take at most 8589934592 bytes, got 4398046511104"),
    (huge_chunk, "'attention' must have chunks of at most 67108864 bytes, got 134217728. Copy it with h5repack"),
    (other_filter, r"'attention' must be plain or use gzip, lzf, shuffle and fletcher32 only, got filters \[6\]"),
    (group, r"got 'attention/a' \(float32 .*'attention/b'"),
    (text, "'attention' must be an array in the file, got no numbers"),
    (compound, "'attention' must be an array in the file, got no numbers"),
    (empty, "'attention' must be an array in the file, got no numbers"),
    (references, "'attention' must be an array in the file, got no numbers"),
    (ours, "must hold arrays of another tool, got a file that rankkit wrote. Measure it without --mask"),
    (deep, "more than 10000 objects or 8 levels"),
]


@pytest.mark.parametrize(("edit", "message"), HOSTILE, ids=[edit.__name__ for edit, _ in HOSTILE])
def test_a_hostile_hdf5_file_is_refused_before_anything_is_read(
    tmp_path: Path, edit: Callable[[h5py.File], None], message: str
) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        edit(file)
    refused(path, message)
    with h5py.File(path, "r+"):  # h5py refuses this while the file is open for reading
        pass


def test_many_objects_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankkit.store.arrays.hdf5_files._OBJECTS_LIMIT", 5)
    refused(save(tmp_path, "h5", **{f"a{number}": numbers((2, 2)) for number in range(6)}), "more than 5 objects")


def test_a_text_heap_that_would_hold_hdf5_forever_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["attention"], file["note"] = attention(), "text"
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    position = heap + 16
    while int.from_bytes(data[position : position + 2], "little"):
        position += 16 + -(-int.from_bytes(data[position + 8 : position + 16], "little") // 8) * 8
    data[position + 8 : position + 16] = bytes(8)
    path.write_bytes(data)
    refused(path, f"a broken text heap at byte {heap}")


def bomb(path: Path, *, deflates: int = 1, skipped: int = 0) -> Path:
    """A chunk of 1 MiB whose stored bytes, enough for 137 MiB, unpack to 3."""
    with h5py.File(path, "w") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((512, 512))
        plan.set_shuffle()
        for _ in range(deflates):
            plan.set_deflate(1)
        space = h5py.h5s.create_simple((1024, 512))
        dataset = h5py.Dataset(h5py.h5d.create(file.id, b"attention", h5py.h5t.IEEE_F32LE, space, plan))
        data = zlib.compress(np.random.default_rng(0).bytes(140_000) + bytes(3 << 20))
        for _ in range(deflates - 1):
            data = zlib.compress(data)
        dataset.id.write_direct_chunk((512, 0), data, skipped)
    return path


@pytest.mark.parametrize("skipped", [0, 1])  # the shuffle, which says nothing of the gzip after it
def test_a_chunk_that_unpacks_beyond_its_size_is_refused_before_hdf5_unpacks_it(tmp_path: Path, skipped: int) -> None:
    path = bomb(tmp_path / "a.h5", skipped=skipped)
    refused(path, "'attention' must be readable, got 'a chunk that unpacks to more than its 1048576 bytes'")


def test_data_compressed_twice_are_refused(tmp_path: Path) -> None:
    refused(bomb(tmp_path / "a.h5", deflates=2), "'attention' must be readable, got 'data that is compressed twice'")


@pytest.mark.parametrize("kind", ["gzip h5", "lzf h5"])
def test_chunks_that_can_grow_are_looked_at_and_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankkit.store.door.inflation._HARMLESS", 1)
    array = attention((2, 1, 5, 40, 40))
    path = save(tmp_path, kind, attention=array)
    if kind == "lzf h5":
        refused(path, "a chunk of .* bytes in lzf, which only gzip may have")
        return
    with read_arrays(path) as found:
        for _ in range(2):
            np.testing.assert_array_equal(found.block(slice(1, 2), 0, [4])["attention"], array[1:2, 0, 4:])


FUZZED = ["npy", "npz", "compressed npz", "gzip h5"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(FUZZED),
    position=st.floats(0, 1, exclude_max=True),
    bits=st.integers(1, 255),
    head=st.booleans(),
)
def test_a_changed_byte_ends_in_success_or_in_one_line(
    tmp_path: Path, kind: str, position: float, bits: int, head: bool
) -> None:
    """Half of the changes fall into the first and last 200 bytes, where what is declared stands."""
    path = save(tmp_path, kind, attention=attention((2, 2, 8, 8)), ids=np.arange(3))
    data = bytearray(path.read_bytes())
    span = 400 if head else len(data)
    data[int(position * span) - (200 if head else 0)] ^= bits
    path.write_bytes(data)
    with contextlib.suppress(SpectrumFileError):
        read_everything(path, limit=1 << 24)
