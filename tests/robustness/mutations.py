"""Seeded mutations of a file's bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from robustness.metadata import Block, reseal

__all__ = ["BYTE_MUTATIONS", "mutate_bytes", "mutate_metadata"]

Mutation = Callable[[bytearray, np.random.Generator, Sequence[bytes]], bytearray]
"""From bytes, a source of randomness and other files to other bytes; the first may be changed in place."""

_LONGEST = 4096  # bytes of a block that is moved, copied or lost
_INTERESTING = (0, 1, 7, 8, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1)


def _somewhere(data: bytearray, wave: np.random.Generator) -> tuple[int, int]:
    """A block of the file, short ones as likely as long ones."""
    start = int(wave.integers(len(data)))
    length = int(2 ** wave.uniform(0, np.log2(_LONGEST)))
    return start, min(len(data), start + length)


def _number(wave: np.random.Generator) -> bytes:
    """A number at the edge of some type, in 1, 2, 4 or 8 bytes."""
    size = int(wave.choice([1, 2, 4, 8]))
    value = int(_INTERESTING[wave.integers(len(_INTERESTING))]) + int(wave.integers(-1, 2))
    return (value % (1 << 8 * size)).to_bytes(size, "little")


def flipped_bits(data: bytearray, wave: np.random.Generator, others: Sequence[bytes]) -> bytearray:
    for place in wave.integers(len(data), size=wave.integers(1, 9)):
        data[place] ^= 1 << int(wave.integers(8))
    return data


def noise(data: bytearray, wave: np.random.Generator, others: Sequence[bytes]) -> bytearray:
    start, stop = _somewhere(data, wave)
    data[start:stop] = wave.bytes(stop - start)
    return data


def zeros(data: bytearray, wave: np.random.Generator, others: Sequence[bytes]) -> bytearray:
    start, stop = _somewhere(data, wave)
    data[start:stop] = bytes(stop - start)
    return data


def edge_numbers(data: bytearray, wave: np.random.Generator, others: Sequence[bytes]) -> bytearray:
    for place in wave.integers(len(data) - 8, size=wave.integers(1, 5)):
        number = _number(wave)
        data[place : place + len(number)] = number
    return data


def truncated(data: bytearray, wave: np.random.Generator, others: Sequence[bytes]) -> bytearray:
    return data[: int(wave.integers(len(data)))]


def extended(data: bytearray, wave: np.random.Generator, others: Sequence[bytes]) -> bytearray:
    return data + wave.bytes(int(wave.integers(1, _LONGEST)))


def block_twice(data: bytearray, wave: np.random.Generator, others: Sequence[bytes]) -> bytearray:
    start, stop = _somewhere(data, wave)
    return data[:stop] + data[start:]


def block_lost(data: bytearray, wave: np.random.Generator, others: Sequence[bytes]) -> bytearray:
    start, stop = _somewhere(data, wave)
    return data[:start] + data[stop:]


def block_copied(data: bytearray, wave: np.random.Generator, others: Sequence[bytes]) -> bytearray:
    """Over another place, so that everything else stays where it is."""
    start, stop = _somewhere(data, wave)
    place = int(wave.integers(len(data) - (stop - start) + 1))
    data[place : place + stop - start] = data[start:stop]
    return data


def blocks_swapped(data: bytearray, wave: np.random.Generator, others: Sequence[bytes]) -> bytearray:
    size = int(2 ** wave.uniform(0, np.log2(_LONGEST)))
    first, second = sorted(int(place) for place in wave.integers(len(data) - size, size=2))
    second = max(second, min(first + size, len(data) - size))
    one, two = data[first : first + size], data[second : second + size]
    data[first : first + size], data[second : second + size] = two, one
    return data


def spliced(data: bytearray, wave: np.random.Generator, others: Sequence[bytes]) -> bytearray:
    """The end, or a part in the middle, is another file's at the same place."""
    other = others[int(wave.integers(len(others)))]
    start, stop = _somewhere(data, wave)
    if wave.random() < 0.5:
        return data[:start] + other[start:]
    data[start:stop] = other[start:stop].ljust(stop - start, b"\0")
    return data


BYTE_MUTATIONS: Mapping[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        block_copied, block_lost, block_twice, blocks_swapped, edge_numbers, extended, flipped_bits, noise, spliced,
        truncated, zeros,
    )
}  # fmt: skip


def mutate_bytes(data: bytes, wave: np.random.Generator, others: Sequence[bytes]) -> tuple[str, bytes]:
    """One to three mutations, one after another.

    Args:
        data: of a file, not empty.
        wave: source of randomness.
        others: bytes of files to splice with.

    Returns:
        The names of the mutations, and the bytes.
    """
    names, changed = [], bytearray(data)
    for _ in range(int(wave.choice([1, 1, 2, 3]))):
        if len(changed) < 2 * _LONGEST:  # cut short: nothing is left to mutate
            break
        name = str(wave.choice(list(BYTE_MUTATIONS)))
        names.append(name)
        changed = BYTE_MUTATIONS[name](changed, wave, others)
    return "+".join(names), bytes(changed)


def mutate_metadata(data: bytes, wave: np.random.Generator, blocks: Sequence[Block]) -> tuple[str, bytes]:
    """A few bytes of checksummed metadata changed, with the checksums of a forger.

    Args:
        data: of a file.
        wave: source of randomness.
        blocks: of the file's metadata.

    Returns:
        The kinds of blocks that were changed, and the bytes.
    """
    changed, kinds = bytearray(data), []
    every = sorted({block.kind for block in blocks})
    for _ in range(int(wave.choice([1, 1, 1, 2, 4]))):
        kind = str(wave.choice(every))  # object headers outnumber all others by far
        of_kind = [block for block in blocks if block.kind == kind]
        block = of_kind[int(wave.integers(len(of_kind)))]
        kinds.append(kind)
        for _ in range(int(wave.choice([1, 1, 2, 3]))):
            place = int(wave.integers(block.start, block.stop))
            number = _number(wave) if wave.random() < 0.7 else bytes([changed[place] ^ 1 << int(wave.integers(8))])
            number = number[: block.stop - place]
            changed[place : place + len(number)] = number
        reseal(changed, block)
    return "+".join(kinds), bytes(changed)
