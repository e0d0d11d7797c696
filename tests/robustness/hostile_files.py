"""Hand-made hostile files: each a change of a finished file, and what must be said of it.

The base may be any finished file with an arm called gpt and a comparison.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from robustness.edits import sealed
from robustness.metadata import blocks_in, reseal
from robustness.outside import OUTSIDE_BYTES, OUTSIDE_FILE

from rankkit.store.door.chunks import fletcher32

__all__ = ["HOSTILE", "Hostile", "make_hostile"]

LIBRARY_VERSIONS = ("v110", "v110")

Verdict = Literal["refused", "problem", "harmless"]
"""Refused before anything is read; opened, and `inspect --verify` says what is wrong; or opened, with no effect on those who
read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """One hand-made file."""

    make: Callable[[h5py.File], None] | Callable[[bytearray], bytearray]
    """Changes a finished file: through h5py, or its bytes."""
    verdict: Verdict
    """How it ends."""
    message: str = ""
    """Regular expression of what is said."""
    of_bytes: bool = False
    """Whether `make` takes bytes."""


HOSTILE: dict[str, Hostile] = {}
"""By name."""


def _hostile(verdict: Verdict, message: str = "", *, of_bytes: bool = False) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        HOSTILE[make.__name__] = Hostile(make=make, verdict=verdict, message=message, of_bytes=of_bytes)
        return make

    return add


def make_hostile(name: str, base: bytes, path: Path) -> Path:
    """Write one of the files.

    Args:
        name: of HOSTILE.
        base: bytes of a finished file.
        path: where to.
    """
    hostile = HOSTILE[name]
    path.write_bytes(hostile.make(bytearray(base)) if hostile.of_bytes else base)
    if not hostile.of_bytes:
        with h5py.File(path, "r+", libver=LIBRARY_VERSIONS) as file:
            hostile.make(file)
    return path


# What points elsewhere.

_ELSEWHERE = "must be inside the file, got a link to elsewhere"


@_hostile("refused", f"/gpt/other {_ELSEWHERE}")
def external_link(file: h5py.File) -> None:
    file["gpt/other"] = h5py.ExternalLink(OUTSIDE_FILE, "/x")


@_hostile("refused", f"/gpt {_ELSEWHERE}")
def external_link_for_an_arm(file: h5py.File) -> None:
    del file["gpt"]
    file["gpt"] = h5py.ExternalLink(OUTSIDE_FILE, "/")


@_hostile("refused", f"/configuration {_ELSEWHERE}")
def external_link_for_a_text(file: h5py.File) -> None:
    del file["configuration"]
    file["configuration"] = h5py.ExternalLink(OUTSIDE_FILE, "/text")


@_hostile("refused", f"/gpt/other {_ELSEWHERE}")
def soft_link(file: h5py.File) -> None:
    file["gpt/other"] = h5py.SoftLink("/comparison/gap")


@_hostile("refused", f"/gpt/other {_ELSEWHERE}")
def soft_link_to_itself(file: h5py.File) -> None:
    file["gpt/other"] = h5py.SoftLink("/gpt/other")


@_hostile("refused", "/gpt/other must hold its data, got external storage")
def external_storage(file: h5py.File) -> None:
    file["gpt"].create_dataset("other", (100,), "i1", external=[(OUTSIDE_BYTES, 0, 100)])


@_hostile("refused", "/gpt/tokens must hold its data, got external storage")
def external_storage_of_tokens(file: h5py.File) -> None:
    shape = file["gpt/tokens"].shape
    del file["gpt/tokens"]
    file["gpt"].create_dataset("tokens", shape, "<i4", external=[(OUTSIDE_BYTES, 0, 4 * math.prod(shape))])


@_hostile("refused", "/gpt/other must hold its data, got a virtual dataset")
def virtual_dataset(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "<f8")
    layout[:] = h5py.VirtualSource(OUTSIDE_FILE, "x", (3,))
    file["gpt"].create_virtual_dataset("other", layout)


@_hostile("refused", "/gpt/other must have a fixed shape, got one that may grow")
def virtual_dataset_without_end(file: h5py.File) -> None:
    """HDF5 opens the other file to tell how long this one is."""
    layout = h5py.VirtualLayout((3,), "<f8", maxshape=(None,))
    source = h5py.VirtualSource(OUTSIDE_FILE, "x", (3,), maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file["gpt"].create_virtual_dataset("other", layout)


@_hostile("refused", "/gpt/other must hold its data, got a virtual dataset")
def virtual_dataset_of_itself(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "<f8")
    layout[:] = h5py.VirtualSource(".", "/gpt/other", (3,))
    file["gpt"].create_virtual_dataset("other", layout)


# What runs in circles.

_TWICE = "must have one name, got a second name for the same object"


@_hostile("refused", _TWICE)
def hard_link(file: h5py.File) -> None:
    file["gpt/other"] = file["comparison/gap"]


@_hostile("refused", _TWICE)
def cyclic_group(file: h5py.File) -> None:
    file["gpt/again"] = file["gpt"]


@_hostile("refused", _TWICE)
def cycle_to_the_root(file: h5py.File) -> None:
    file["gpt/root"] = file["/"]


@_hostile("refused", _TWICE)
def two_groups_in_each_other(file: h5py.File) -> None:
    one, two = file.create_group("one"), file.create_group("two")
    one["two"], two["one"] = two, one


@_hostile("refused", "must be small, got more than 10000 objects or 8 levels")
def deep_groups(file: h5py.File) -> None:
    file.create_group("/".join("abcdefghij"))


@_hostile("refused", "must be small, got more than 10000 things in one place: 10001")
def many_groups(file: h5py.File) -> None:
    group = file.create_group("many")
    for number in range(10_001):
        h5py.h5g.create(group.id, b"g%d" % number)  # h5py's own way takes ten times as long


# What asks for too much.


@_hostile("refused", "/gpt/other must take at most 8589934592 bytes, .*, got 4398046511104")
def four_terabytes(file: h5py.File) -> None:
    file["gpt"].create_dataset("other", (1 << 39,), "<f8", chunks=(1 << 16,), compression=1)


@_hostile("refused", "in chunks of at most 4194304, got 33554432 in chunks of 33554432")
def huge_chunk(file: h5py.File) -> None:
    file["gpt"].create_dataset("other", (1 << 22,), "<f8", chunks=(1 << 22,), compression=1)


@_hostile("refused", "must hold what it declares, got .* bytes declared in a file of")
def four_gigabytes_that_are_not_there(file: h5py.File) -> None:
    file["gpt"].create_dataset("other", (1 << 29,), "<f8", chunks=(1 << 16,), compression=1)


@_hostile("refused", "must hold what it declares, got .* chunks in a file of")
def more_chunks_than_bytes(file: h5py.File) -> None:
    file["gpt"].create_dataset("other", (1 << 24,), "<i1", chunks=(1,), compression=1)


def _stretched(file: h5py.File, group: str, axis: str, size: int) -> None:
    """Make an axis long, and every variable along it: one compressed chunk, written again and again."""
    names = [
        (name, [[scale.name.rpartition("/")[2] for scale in dim.values()] for dim in dataset.dims])
        for name, dataset in file[group].items()
        if any([axis] == [scale.name.rpartition("/")[2] for scale in dim.values()] for dim in dataset.dims)
    ]
    _replaced(file[group], axis, (size,), np.arange(size)).make_scale(axis)
    for name, dims in names:
        old = file[group][name]
        shape = tuple(size if scales == [axis] else length for scales, length in zip(dims, old.shape, strict=True))
        new = _replaced(file[group], name, shape, None)
        for dim, scales in zip(new.dims, dims, strict=True):
            dim.attach_scale(file[group][scales[0]])


def _replaced(group: h5py.Group, name: str, shape: tuple[int, ...], data: Any) -> h5py.Dataset:
    """A dataset of another shape with the same attributes, its first value everywhere."""
    old = group[name]
    attributes = {key: old.attrs[key] for key in old.attrs if not key.isupper()}
    first, dtype = old[(0,) * old.ndim], old.dtype
    del group[name]
    chunk = list(shape)
    while math.prod(chunk) * dtype.itemsize > 1 << 20:
        longest = max(range(len(chunk)), key=chunk.__getitem__)
        chunk[longest] = -(-chunk[longest] // 2)
    new = group.create_dataset(
        name, shape, dtype, chunks=tuple(chunk), compression="gzip", shuffle=True, fletcher32=True, fillvalue=first
    )
    new.attrs.update(attributes)
    if data is not None:
        new[...] = data
        return new
    new[tuple(slice(0, length) for length in chunk)] = first
    new.file.flush()
    mask, packed = new.id.read_direct_chunk((0,) * len(shape))
    for place in np.ndindex(*(-(-length // part) for length, part in zip(shape, chunk, strict=True))):
        new.id.write_direct_chunk(tuple(p * part for p, part in zip(place, chunk, strict=True)), packed, mask)
    return new


@_hostile("refused", "/gpt must take at most 67108864 bytes in variables that are read at once")
def a_gigabyte_of_tokens(file: h5py.File) -> None:
    """Of zeros, which take a megabyte."""
    _replaced(file["gpt"], "tokens", (4, 1 << 26), None)


@_hostile("refused", "/gpt/layer must hold at most 100000 labels, got 1000000")
def a_million_layers(file: h5py.File) -> None:
    _stretched(file, "gpt", "layer", 1_000_000)
    sealed(file)


@_hostile("problem", "matrices that break it, the first at seed 0")
def many_layers(file: h5py.File) -> None:
    """The same number everywhere."""
    _stretched(file, "gpt", "layer", 1_000)
    sealed(file)


@_hostile("problem", "matrices that break it, the first at seed 0")
def many_heads(file: h5py.File) -> None:
    _stretched(file, "gpt", "head", 1_000)
    sealed(file)


@_hostile("refused", "must hold at most 100000 plain labels, got 200000")
def many_texts(file: h5py.File) -> None:
    file["gpt"].create_dataset("other", (200_000,), h5py.string_dtype())


@_hostile("refused", "must hold at most 100000 labels together")
def many_texts_in_many_datasets(file: h5py.File) -> None:
    for number in range(30):
        file["gpt"].create_dataset(f"other{number}", (50_000,), h5py.string_dtype())


@_hostile("problem", "gpt/region must match its checksum")
def one_long_label(file: h5py.File) -> None:
    """NumPy would give every label as much room."""
    file["gpt/region"][0] = "x" * 5000
    sealed(file)


@_hostile("refused", "attribute 'other' must be small, got shape .7000,.")
def large_attribute(file: h5py.File) -> None:
    file["gpt"].attrs["other"] = np.zeros(7000)


@_hostile("refused", "attribute 'other' must be small, got more than 65536 bytes")
def huge_attribute(file: h5py.File) -> None:
    file["gpt"].attrs["other"] = "x" * 100_000


@_hostile("refused", "must have at most 200 attributes, got")
def many_attributes(file: h5py.File) -> None:
    for number in range(500):
        file["gpt"].attrs[f"a{number}"] = number


@_hostile("refused", "must have at most 200000 attributes, of 16777216 bytes of text")
def much_text_in_attributes(file: h5py.File) -> None:
    for number in range(600):
        group = file.create_group(f"group{number}")
        group.attrs["text"] = "x" * 60_000


@_hostile("refused", "must have its texts in whole heaps, got object 0 of 0 bytes", of_bytes=True)
def heap_without_end(data: bytearray) -> bytearray:
    """Free space without a size: HDF5 steps over it by nothing, for ever."""
    heap = data.find(b"GCOL")
    while heap >= 0:
        position, stop = heap + 16, heap + int.from_bytes(data[heap + 8 : heap + 16], "little")
        while position < stop and int.from_bytes(data[position : position + 2], "little"):
            position += 16 + -(-int.from_bytes(data[position + 8 : position + 16], "little") // 8) * 8
        if position + 16 <= stop:
            data[position + 8 : position + 16] = bytes(8)
            return data
        heap = data.find(b"GCOL", stop)  # this one has no room for an object
    raise AssertionError("one heap must have free space")


@_hostile("harmless", of_bytes=True)
def heaps_inside_heaps(data: bytearray) -> bytearray:
    """Thousands of heaps that begin inside one another, each of thousands of objects; nothing points at them."""
    size = 1 << 20
    unit = b"GCOL\x01\x00\x00\x00" + b"\x01\x00\x00\x00\x00\x00\x00\x00" + bytes(8)
    block = bytearray((unit * (size // len(unit) + 1))[:size])
    for place in range(0, size, len(unit)):
        block[place + 8 : place + 16] = max(4096, size - place).to_bytes(8, "little")
    return data + block


@_hostile("refused", "must hold every block at a place of its own", of_bytes=True)
def header_that_goes_on_in_itself(data: bytearray) -> bytearray:
    """A block of an object's header, continued in the very same block."""
    block = [block for block in blocks_in(bytes(data)) if block.kind == "OCHK" and block.stop - block.start >= 40][-1]
    goes_on = b"\x10\x10\0\0" + block.start.to_bytes(8, "little") + (block.stop + 4 - block.start).to_bytes(8, "little")
    data[block.start + 4 : block.start + 24] = goes_on
    data[block.start + 24 : block.stop] = bytes(block.stop - block.start - 24)
    reseal(data, block)
    return data


# Types that no version writes.

_NUMBERS_OR_TEXT = "must hold numbers or UTF-8 text"


def _typed(name: str, make: Callable[[h5py.Group], None], message: str = _NUMBERS_OR_TEXT) -> None:
    def add(file: h5py.File) -> None:
        make(file["gpt"])

    HOSTILE[name] = Hostile(make=add, verdict="refused", message=message)


def _values(values: Any) -> Callable[[h5py.Group], None]:
    def make(group: h5py.Group) -> None:
        group["other"] = values

    return make


_typed("float16", _values(np.zeros(3, dtype=np.float16)), f"{_NUMBERS_OR_TEXT}, got type floats in 2 bytes")
_typed("compound", _values(np.zeros(3, dtype=[("a", "f8"), ("b", "i4")])))
_typed("boolean", _values(np.zeros(3, dtype=bool)), f"{_NUMBERS_OR_TEXT}, got type named codes in 1 bytes")
_typed("complex_numbers", _values(np.zeros(3, dtype=complex)))
_typed("big_endian", _values(np.zeros(3, dtype=">f8")))
_typed("fixed_text", _values(np.array([b"abc"])))
_typed("opaque", _values(np.zeros(3, dtype="V5")))
_typed("object_reference", lambda group: group.create_dataset("other", data=group.ref, dtype=h5py.ref_dtype))
_typed("ragged", lambda group: group.create_dataset("other", (3,), h5py.vlen_dtype(np.int32)))
_typed("empty", _values(h5py.Empty("<f8")), "must have a shape, got an empty one")
_typed("named_type", _values(np.dtype("<f8")), "must be a dataset or a group, got a named type")
_typed(
    "unknown_filter",
    lambda group: group.create_dataset("other", (10,), "<f8", chunks=(10,), compression="lzf"),
    "must use gzip, shuffle and fletcher32 only",
)


@_hostile("refused", "/gpt/singular_values must hold numbers or UTF-8 text, got type floats in 2 bytes")
def float16_singular_values(file: h5py.File) -> None:
    values = file["gpt/singular_values"][...].astype(np.float16)
    del file["gpt/singular_values"]
    file["gpt/singular_values"] = values


@_hostile(
    "refused", "/gpt must have attributes that hold numbers or UTF-8 text, got type compound in 8 bytes in 'other'"
)
def compound_attribute(file: h5py.File) -> None:
    file["gpt"].attrs["other"] = np.zeros(2, dtype=[("a", "f8")])


@_hostile("refused", "/gpt must have attributes that have a shape, got an empty one in 'other'")
def empty_attribute(file: h5py.File) -> None:
    file["gpt"].attrs["other"] = h5py.Empty("<f8")


@_hostile("refused", "/gpt: attribute 'other' must be UTF-8, got b'a")
def text_that_is_no_utf8(file: h5py.File) -> None:
    file["gpt"].attrs.create("other", b"a\xff", dtype=h5py.string_dtype())


@_hostile("refused", "DIMENSION_LIST of /gpt/tokens must be a list of references for each of 2 axes")
def labels_of_axes_of_another_type(file: h5py.File) -> None:
    """HDF5's own library would copy these bytes over a buffer made for two lists."""
    file["gpt/tokens"].attrs["DIMENSION_LIST"] = np.full(4000, 0x41, dtype=np.int64)


@_hostile("refused", "DIMENSION_LIST of /gpt/tokens must be a list of references for each of 2 axes")
def labels_of_more_axes_than_there_are(file: h5py.File) -> None:
    lists = np.empty(30, dtype=object)
    for place in range(30):
        lists[place] = np.array([file["gpt/key"].ref], dtype=h5py.ref_dtype)
    del file["gpt/tokens"].attrs["DIMENSION_LIST"]
    file["gpt/tokens"].attrs.create("DIMENSION_LIST", lists, dtype=h5py.vlen_dtype(h5py.ref_dtype))


@_hostile("refused", "CLASS of /gpt/key must be DIMENSION_SCALE")
def class_of_another_name(file: h5py.File) -> None:
    """HDF5 frees something twice when it meets this."""
    file["gpt/key"].attrs["CLASS"] = np.bytes_(b"DIMENSION_SCALF")


@_hostile("refused", "CLASS of /gpt/key must be a short text")
def class_of_another_type(file: h5py.File) -> None:
    file["gpt/key"].attrs["CLASS"] = np.arange(2000)


@_hostile("refused", "/gpt/key must have attributes that hold numbers or UTF-8 text, got type text of fixed length")
def long_name_of_an_axis(file: h5py.File) -> None:
    file["gpt/key"].attrs["NAME"] = np.bytes_(b"key" * 5000)


@_hostile("refused", "/gpt/tokens must have its axes labelled by variables of the file, got a label at")
def axis_labelled_by_nothing(file: h5py.File) -> None:
    lists = np.empty(2, dtype=object)
    for place in range(2):
        lists[place] = np.array([h5py.Reference()], dtype=h5py.ref_dtype)
    del file["gpt/tokens"].attrs["DIMENSION_LIST"]
    file["gpt/tokens"].attrs.create("DIMENSION_LIST", lists, dtype=h5py.vlen_dtype(h5py.ref_dtype))
    sealed(file)


@_hostile("refused", "/gpt/tokens must have its axes labelled by variables of the file, got a label at")
def axis_labelled_by_a_group(file: h5py.File) -> None:
    lists = np.empty(2, dtype=object)
    for place in range(2):
        lists[place] = np.array([file["gpt"].ref], dtype=h5py.ref_dtype)
    del file["gpt/tokens"].attrs["DIMENSION_LIST"]
    file["gpt/tokens"].attrs.create("DIMENSION_LIST", lists, dtype=h5py.vlen_dtype(h5py.ref_dtype))
    sealed(file)


# Names and texts that would mislead those who read them.


@_hostile("refused", r"must have plain names, got 'red\\x1b\[31m'")
def name_that_paints_the_terminal(file: h5py.File) -> None:
    file["gpt/red\x1b[31m"] = np.arange(3)


@_hostile("refused", "must have plain names, got 'line")
def name_of_two_lines(file: h5py.File) -> None:
    file.create_group("line\nbreak")


@_hostile("refused", "must have plain names")
def name_of_a_thousand_letters(file: h5py.File) -> None:
    file["gpt"].attrs["x" * 1000] = 1


@_hostile("harmless")
def title_that_paints_the_terminal(file: h5py.File) -> None:
    file.attrs["title"] = "\x1b[2J\x1b]0;owned\x07 all is well\nspectrum.h5: whole and consistent\u202e"
    sealed(file)


@_hostile("problem", "unavailable must be JSON")
def reasons_of_a_thousand_brackets(file: h5py.File) -> None:
    file["gpt"].attrs["unavailable"] = "[" * 9000
    sealed(file)


@_hostile("problem", "unavailable must give a a reason of 1 to 500 printable characters")
def reason_that_paints_the_terminal(file: h5py.File) -> None:
    file["gpt"].attrs["unavailable"] = '{"a": "\\u001b[31m"}'
    sealed(file)


@_hostile("problem", "gpt/singular_values must match its checksum, got a damaged chunk")
def chunk_that_unpacks_to_less(file: h5py.File) -> None:
    """HDF5 would fill the rest with what lies in memory."""
    _repacked(file["gpt/singular_values"], 8)


@_hostile("problem", "gpt/singular_values must match its checksum, got a damaged chunk")
def chunk_that_unpacks_to_a_thousand_chunks(file: h5py.File) -> None:
    _repacked(file["gpt/singular_values"], 48 << 20)


def _repacked(dataset: h5py.Dataset, size: int) -> None:
    """Let the first chunk be so many zeros, with a right checksum."""
    pack, packed = zlib.compressobj(9), b""
    while size:
        piece = min(size, 1 << 20)
        packed, size = packed + pack.compress(bytes(piece)), size - piece
    packed += pack.flush()
    dataset.id.write_direct_chunk((0,) * dataset.ndim, packed + fletcher32(packed).to_bytes(4, "little"))


# What is missing, or not for us.


@_hostile("refused", "/gpt/tokens must have its axes labelled by variables of the file, got a label at")
def missing_scale(file: h5py.File) -> None:
    del file["gpt/key"]
    sealed(file)


@_hostile("problem", "gpt/tokens must have its axes labelled sequence, key, got other labels")
def missing_labels_of_axes(file: h5py.File) -> None:
    for dim, axis in zip(file["gpt/tokens"].dims, ("sequence", "key"), strict=True):
        dim.detach_scale(file["gpt"][axis])
    sealed(file)


@_hostile("problem", "gpt/tokens must be of type int32, got int64")
def wrong_dtype(file: h5py.File) -> None:
    values = file["gpt/tokens"][...].astype(np.int64)
    del file["gpt/tokens"]
    new = file["gpt"].create_dataset("tokens", data=values)
    for dim, axis in zip(new.dims, ("sequence", "key"), strict=True):
        dim.attach_scale(file["gpt"][axis])
    sealed(file)


def _unchecked(file: h5py.File, **storage: Any) -> None:
    values = file["gpt/prefix_length"][...]
    attributes = {key: file["gpt/prefix_length"].attrs[key] for key in ("long_name", "units")}
    del file["gpt/prefix_length"]
    new = file["gpt"].create_dataset("prefix_length", data=values, **storage)
    new.attrs.update(attributes)
    new.dims[0].attach_scale(file["gpt/sequence"])
    sealed(file)


@_hostile("problem", "gpt/prefix_length must have a checksum, got numbers that lie in one piece")
def numbers_in_one_piece(file: h5py.File) -> None:
    _unchecked(file)


@_hostile("problem", "gpt/prefix_length must have every chunk, got a lost or unchecked one")
def numbers_without_checksum(file: h5py.File) -> None:
    _unchecked(file, chunks=True, compression="gzip", shuffle=True)


@_hostile("problem", "/ must hold the spectra of at least one arm, got none")
def no_arm(file: h5py.File) -> None:
    for name in ("gpt", "baselines", "functional"):
        if name in file:
            del file[name]
    sealed(file)


@_hostile("refused", "must be written by rankkit, got an HDF5 file without rankkit_schema")
def no_schema(file: h5py.File) -> None:
    del file.attrs["rankkit_schema"]


@_hostile("refused", "must be complete, got an unfinished file")
def unfinished(file: h5py.File) -> None:
    file.attrs["complete"] = 0


@_hostile("refused", r"must follow schema 1.x, got '2.1'. Install rankkit 3.4.0 or newer to read it")
def newer_version(file: h5py.File) -> None:
    file.attrs.update(rankkit_schema="2.1", rankkit_version="3.4.0")


@_hostile("refused", "Install rankkit of the machine that wrote it or newer")
def newer_version_with_a_command(file: h5py.File) -> None:
    file.attrs.update(rankkit_schema="12.0", rankkit_version="1; rm -rf /")


@_hostile("refused", "rankkit_schema must be a version such as")
def version_in_other_digits(file: h5py.File) -> None:
    file.attrs["rankkit_schema"] = "².1"


@_hostile("harmless")
def newer_minor_version(file: h5py.File) -> None:
    file.attrs["rankkit_schema"] = "1.99"
    sealed(file)


# Damage.


def _cut(share: float) -> Callable[[bytearray], bytearray]:
    return lambda data: data[: int(len(data) * share)]


def _flipped(place: int) -> Callable[[bytearray], bytearray]:
    def make(data: bytearray) -> bytearray:
        data[place] ^= 1
        return data

    return make


for _share in (0.001, 0.3, 0.9, 0.999):
    HOSTILE[f"truncated_to_{_share}"] = Hostile(
        make=_cut(_share), verdict="refused", message="damaged|must be an HDF5 file", of_bytes=True
    )
for _place in (
    0,
    8,
    9,
    10,
    12,
    20,
    28,
    36,
    44,
):  # signature, version, sizes, flags, addresses, checksum
    HOSTILE[f"flipped_bit_at_{_place}"] = Hostile(
        make=_flipped(_place), verdict="refused", message="damaged|must be an HDF5 file", of_bytes=True
    )


@_hostile("refused", "must be an HDF5 file, got one that starts with", of_bytes=True)
def another_kind_of_file(data: bytearray) -> bytearray:
    return bytearray(b"PK\x03\x04 not HDF5" * 100)


@_hostile("refused", "must be an HDF5 file, got an empty one", of_bytes=True)
def nothing(data: bytearray) -> bytearray:
    return bytearray()
