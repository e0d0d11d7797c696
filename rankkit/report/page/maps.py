"""Numbers of single heads for the browser: packed into few bytes, and no finer than their errors justify.

A map is of one arm under one seed: heads of separately trained models do not correspond, so nothing here subtracts or
averages heads of two models. Values are codes of one or two bytes, little-endian, in base64: value = lowest + code * unit,
the largest code for none. One byte is enough where its unit is at most half of the typical standard error of a head's mean
over sequences.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from rankkit.report.page.colours import colour_map
from rankkit.report.page.numbers import ArmNumbers, Numbers
from rankkit.studies.head_means import mean_of_known
from rankkit.studies.words import region_words, spoken

__all__ = ["DEFAULT_MEASURES", "HeadData", "attention_share", "head_data", "packed", "script_text", "unpacked"]

Array: TypeAlias = NDArray[np.float64]
Pack: TypeAlias = dict[str, Any]

DEFAULT_MEASURES: Final = (
    "effective_rank",
    "stable_rank",
    "participation_ratio",
    "attention_entropy",
    "sink_mass",
    "logit_std",
)
"""Whose maps a page holds, as far as there is room; all of them with `full`."""

_POINTS: Final = 40  # of a head's spectrum: its curve is smooth, and 40 pixels are seen as one
_SIZES: Final = (64, 32, 16)  # sides of an attention map in cells, the largest that has room
_COLOURS: Final = 33  # of the colour map; the browser mixes what lies between
_BELOW: Final = 100  # values under a floor are noise, drawn at most at a hundredth of it
_FEWEST_STEPS: Final = 2  # first and last


@dataclass(slots=True, kw_only=True)
class HeadData:
    """What a browser needs to draw one subject's heads."""

    document: dict[str, Any]
    """JSON object."""
    left_out: list[str] = field(default_factory=list)
    """What had no room, in words."""
    size: int = 0
    """Bytes of the packs."""


def head_data(numbers: Numbers, measure: str, *, room: int | None) -> HeadData:
    """Pack maps, spectra and attention of every head.

    Args:
        numbers: open.
        measure: whose maps are shown first.
        room: bytes that all packs may take; None for no limit, and every measure.
    """
    arms = [arm for arm in numbers.arms if measure in arm.description.measures]
    found = HeadData(document={"arms": [_labels(arm) for arm in arms], "colours": colour_map("cividis", _COLOURS)})
    if not arms:
        return found
    filler = _Filler(found, room)
    steps = filler.maps(arms, measure, thin=True)
    filler.spectra(arms)
    filler.attention(arms)
    others = [name for name in numbers.measures if name != measure]
    wanted = others if room is None else [name for name in DEFAULT_MEASURES if name in others]
    for name in wanted:
        filler.maps(arms, name, steps=steps)
    if more := [spoken(name) for name in others if name not in wanted]:
        found.left_out.append(f"maps of {', '.join(more)}")
    filler.baselines(numbers, arms)
    return found


def _labels(arm: ArmNumbers) -> dict[str, Any]:
    return {
        "name": arm.name,
        "mask": str(arm.description.attributes["mask"]),
        "seeds": list(arm.seeds),
        "steps": [int(step) for step in arm.labels("step")],
        "layers": [int(layer) for layer in arm.labels("layer")],
        "heads": [int(head) for head in arm.labels("head")],
        "regions": [{"name": str(region), "words": region_words(str(region))} for region in arm.labels("region")],
        "untrained": arm.untrained.astype(int).tolist(),
        "sequences": len(arm.labels("sequence")),
    }


class _Filler:
    """Adds one kind of numbers after the other, as long as there is room."""

    def __init__(self, found: HeadData, room: int | None) -> None:
        self._found, self._room = found, room

    def _take(self, name: str, packs: Any, size: int, words: str) -> bool:
        if self._room is not None and self._found.size + size > self._room:
            self._found.left_out.append(words)
            return False
        self._found.document[name] = packs
        self._found.size += size
        return True

    def maps(
        self, arms: Sequence[ArmNumbers], measure: str, *, steps: Sequence[int] | None = None, thin: bool = False
    ) -> list[int]:
        """The measure of every head under its own mask, at some steps or, where `thin`, at as many as have room.

        Returns:
            Places of the steps that were taken.
        """
        tables = {arm.name: _map_table(arm, measure) for arm in arms if measure in arm.description.measures}
        every = range(max(table.shape[2] for table, _ in tables.values()))
        chosen = list(every if steps is None else steps)
        packs = self._map_packs(tables, chosen)
        while thin and self._room is not None and _size(packs) > self._room and len(chosen) > _FEWEST_STEPS:
            chosen = chosen[:-1:2] + chosen[-1:]
            packs = self._map_packs(tables, chosen)
        words = f"maps of {spoken(measure)}"
        entries = self._found.document.setdefault("measures", [])
        description = next(arm.description.measures[measure] for arm in arms if measure in arm.description.measures)
        entry = {"name": measure, "words": spoken(measure), "definition": description.definition, "maps": packs}
        if self._room is not None and self._found.size + _size(packs) > self._room and not thin:
            self._found.left_out.append(words)
            return chosen
        entries.append(entry | {"steps": chosen})
        self._found.size += _size(packs)
        if len(chosen) < len(every):
            self._found.left_out.append(f"{len(every) - len(chosen)} of {len(every)} steps in the maps")
        return chosen

    @staticmethod
    def _map_packs(tables: dict[str, tuple[Array, Array]], steps: Sequence[int]) -> list[list[Pack]]:
        return [
            [
                packed(part[:, [step for step in steps if step < part.shape[1]]], unit)
                for part, unit in zip(table, units, strict=True)
            ]
            for table, units in tables.values()
        ]

    def spectra(self, arms: Sequence[ArmNumbers]) -> None:
        """Singular values of every head at the last step, and both floors."""
        packs = [[_spectrum_pack(arm, region) for region in range(len(arm.labels("region")))] for arm in arms]
        self._take("spectra", packs, _size(packs), "spectra of single heads")

    def baselines(self, numbers: Numbers, arms: Sequence[ArmNumbers]) -> None:
        """Spectra of what the heads are held against."""
        for name in dict.fromkeys(baseline for baseline, _ in numbers.baselines):
            packs = []
            for arm in arms:
                baseline = numbers.baselines.get((name, arm.name))
                regions = range(len(arm.labels("region")))
                packs.append(
                    []
                    if baseline is None
                    else [_spectrum_pack(baseline, region, same=name == "uniform") for region in regions]
                )
            words = f"spectra of the baseline {name}"
            if self._room is not None and self._found.size + _size(packs) > self._room:
                self._found.left_out.append(words)
                continue
            self._found.document.setdefault("baselines", []).append({"name": name, "spectra": packs})
            self._found.size += _size(packs)

    def attention(self, arms: Sequence[ArmNumbers]) -> None:
        """Attention of the first sequence at the last step, in cells."""
        having = [arm for arm in arms if arm.keeps("attention")]
        if not having:
            return
        cells = sum(len(arm.seeds) * len(arm.labels("layer")) * len(arm.labels("head")) for arm in having)
        left = None if self._room is None else self._room - self._found.size
        side = next((size for size in _SIZES if left is None or cells * size * size * 4 // 3 <= left * 2 // 3), None)
        if side is None:
            self._found.left_out.append("attention maps")
            return
        packs = [_attention_pack(arm, side) if arm in having else None for arm in arms]
        self._take("attention", packs, _size(packs), "attention maps")


def _map_table(arm: ArmNumbers, measure: str) -> tuple[Array, Array]:
    """Means over sequences, "region seed step layer head", and half the typical standard error of one, "region"."""
    values = arm.values(measure)[:, :, :, 0]
    known = rearrange(
        np.where(np.isfinite(values), values, np.nan),
        "seed step region sequence layer head -> region seed step layer head sequence",
    )
    means = mean_of_known(known, axis=-1)
    count = (~np.isnan(known)).sum(axis=-1)
    squares = mean_of_known((known - means[..., None]) ** 2, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):  # one sequence has no standard error
        errors = np.sqrt(squares / (count - 1))
    half = [float(np.median(found)) / 2 if (found := part[np.isfinite(part)]).size else 0.0 for part in errors]
    return means, np.array(half)


def packed(values: Array, unit: float) -> Pack:
    """Values as codes.

    Args:
        values: any shape; what is not finite has no value.
        unit: the coarsest step that their errors justify; 0 for as fine as two bytes go.
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    kind, codes = ("<u1", 254) if unit > 0 and (high - low) / 254 <= unit else ("<u2", 65534)
    step = (high - low) / codes
    filled = np.where(np.isfinite(values), values, low)
    numbers = np.round((filled - low) / step) if step > 0 else np.zeros(values.shape)
    table = np.where(np.isfinite(values), numbers, codes + 1).astype(kind)
    data = base64.b64encode(table.tobytes()).decode("ascii")
    return {
        "bytes": table.itemsize,
        "low": _significant(low),
        "unit": _significant(step),
        "shape": list(values.shape),
        "data": data,
    }


def unpacked(pack: Pack) -> Array:
    """What a browser reads from a pack."""
    codes = np.frombuffer(base64.b64decode(pack["data"]), dtype=f"<u{pack['bytes']}").astype(np.float64)
    values = np.where(codes == 256 ** pack["bytes"] - 1, np.nan, pack["low"] + codes * pack["unit"])
    return np.asarray(values.reshape(pack["shape"]))


def _significant(number: float) -> float:
    return float(f"{number:.9g}")


def _spectrum_pack(arm: ArmNumbers, region: int, *, same: bool = False) -> Pack:
    """Median over sequences of log10(sigma / sigma_1) at some components, and of both floors.

    Args:
        arm: or a baseline of it.
        region: place along the axis.
        same: whether all heads and seeds of a layer have the same matrices.
    """
    where = arm.last, slice(region, region + 1), slice(0, 1)
    sigma = arm.read("singular_values", *where)[:, 0, 0, 0]  # "seed sequence layer head component"
    floors = np.stack([arm.read(f"floor_{name}", *where)[:, 0, 0, 0] for name in ("arithmetic", "model")], axis=-1)
    if same:
        sigma, floors = sigma[:1, :1, :, :1], floors[:1, :1, :, :1]
    known = np.isfinite(sigma).any(axis=(0, 1, 2, 3))
    width = int(known.sum())
    places = _spread(width)
    largest = np.where(sigma[..., :1] > 0, sigma[..., :1], np.nan)
    raised = np.fmax(sigma[..., places], floors[..., :1] / _BELOW)
    curves = _log_median(np.where(np.isnan(sigma[..., places]), np.nan, raised) / largest)
    return {
        "components": [int(place) + 1 for place in places],
        "curves": packed(curves, 1.0),  # a byte each: 254 steps over all decades are finer than a screen's pixels
        "floors": packed(_log_median(floors / largest), 1.0),
    }


def _spread(width: int) -> NDArray[np.int64]:
    """At most `_POINTS` places of so many, evenly by their logarithms and by themselves."""
    if width <= _POINTS:
        return np.arange(width)
    half = _POINTS // 2
    both = [np.geomspace(1, width, half), np.linspace(1, width, half)]
    return np.unique(np.round(np.concatenate(both)).astype(np.int64)) - 1


def _log_median(ratios: Array) -> Array:
    """Median over sequences, "seed sequence layer head ..." to "seed layer head ..."; nan where none has a value."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(ratios)
    logs = np.where(np.isfinite(logs), logs, np.nan)
    ordered = np.sort(logs, axis=1)  # nan last
    count = (~np.isnan(logs)).sum(axis=1, keepdims=True)
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=1)
    return np.asarray(middle[:, 0])


def _attention_pack(arm: ArmNumbers, side: int) -> Pack:
    """Attention of the first sequence at the last step, square roots of shares in a byte: "seed layer head row column"."""
    last = len(arm.labels("step")) - 1
    layers = []
    for layer in range(len(arm.labels("layer"))):
        part = arm.read("attention", slice(last, last + 1), slice(0, 1), slice(layer, layer + 1))
        layers.append(attention_share(part[:, 0, 0, 0].astype(np.float64), side))
    shares = np.stack(layers, axis=1)
    codes = np.round(np.sqrt(np.clip(np.nan_to_num(shares), 0, 1)) * 255).astype("<u1")
    data = base64.b64encode(codes.tobytes()).decode("ascii")
    return {"shape": list(codes.shape), "data": data, "positions": list(part.shape[-2:])}


def attention_share(attention: Array, side: int) -> Array:
    """What a query of a block gives to all keys of another together, mean over the block's queries.

    Args:
        attention: "... query key".
        side: blocks along each axis at most.
    """
    rows, columns = (_edges(size, side) for size in attention.shape[-2:])
    summed = np.add.reduceat(np.add.reduceat(attention, columns, axis=-1), rows, axis=-2)
    sizes = np.diff([*rows, attention.shape[-2]])
    return np.asarray(summed / sizes[:, None])


def _edges(size: int, side: int) -> NDArray[np.int64]:
    """Where blocks begin."""
    count = min(size, side)
    return np.arange(count) * size // count


def _size(value: Any) -> int:
    """Bytes of the base64 inside."""
    if isinstance(value, dict):
        return sum(len(entry) if key == "data" else _size(entry) for key, entry in value.items())
    return sum(map(_size, value)) if isinstance(value, list) else 0


def script_text(document: dict[str, Any]) -> str:
    """JSON that may stand inside a script element: whatever its texts say, they end neither it nor a line of it."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text
