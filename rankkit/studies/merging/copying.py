"""Copying cells from many files into one: an arm and its baselines, layer by layer, in the order of a measurement.

HDF5 gives a chunk its place when it is written, so a file has the bytes of the one that a single run would have written
only where its slabs come in that run's order: by seed, step, batch of sequences and layer; there the arm, its baselines,
the layer's output, what is kept; and after all steps of a seed the baseline of its initialisation. Within a slab the
measures come in the order of the layout. No more than one layer of one batch is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from numpy.typing import NDArray

from rankkit.axes import LAYER_AXES, SPECTRUM_AXES
from rankkit.store import SEQUENCES_PER_CHUNK, GroupWriter, KeptSlab, LayerSlab, Slab, SpectrumWriter, Variable, schema
from rankkit.store.names import baseline_of
from rankkit.store.variables import LAYER_OUTPUT
from rankkit.studies.merging.groups import MergedGroup
from rankkit.studies.merging.parts import assembled

__all__ = ["copy_arm"]

Advance = Callable[[int, str], None]
"""Told how many matrices were written, and of what."""

_PER_MATRIX: Final = tuple(v.name for v in schema.GROUP_VARIABLES if v.dimensions == SPECTRUM_AXES)


def copy_arm(writer: SpectrumWriter, groups: Sequence[MergedGroup], advance: Advance) -> None:
    """Write an arm with its baselines, or baselines alone.

    Args:
        writer: of the merged file.
        groups: of one arm, itself first.
        advance: told after every batch of a layer.

    Raises:
        SpectrumFileError: a part is damaged, or its numbers contradict one another.
        StorageError: the file system refuses.
    """
    copies = [_Copy(group=group, target=writer.group(group.name, group.layout)) for group in groups]
    late = [copy for copy in copies if baseline_of(copy.group.name) == "init"]
    others = [copy for copy in copies if copy not in late]
    for seed in range(len(groups[0].layout.seeds)):
        for visited in (others, late):
            _copy_seed(visited, seed, advance)


def _copy_seed(copies: Sequence[_Copy], seed: int, advance: Advance) -> None:
    """Everything of one seed, of groups with the same axes but for regions and masks."""
    if not copies:
        return
    layout = copies[0].group.layout
    for step, rows, layer in product(range(len(layout.steps)), _batches(len(layout.tokens)), range(len(layout.layers))):
        place = {"seed": seed, "step": step, "sequence": rows, "layer": layer}
        for copy in copies:
            written = copy.spectra(place)
            advance(written, f"{copy.group.name}, seed {layout.seeds[seed]}, step {layout.steps[step]}")
        for copy in copies:
            copy.layer_output(place)
            copy.kept(place)


def _batches(count: int) -> Iterator[slice]:
    """The sequences in turn, as many at once as share a chunk of the file."""
    for start in range(0, count, SEQUENCES_PER_CHUNK):
        yield slice(start, min(start + SEQUENCES_PER_CHUNK, count))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Copy:
    """One group, on its way from its parts into the merged file."""

    group: MergedGroup
    target: GroupWriter

    def spectra(self, place: Mapping[str, int | slice]) -> int:
        """One layer of a batch, every region under every mask; how many matrices that is."""
        contents = self.group.layout.contents
        variables = [v for v in contents.variables if v.dimensions[: len(SPECTRUM_AXES)] == SPECTRUM_AXES]
        block = {variable.name: self._read(variable, place) for variable in variables}
        whole = {axis: slice(0, len(self.group.labels[axis])) for axis in ("region", "applied_mask")}
        self.target.write(
            {**place, **whole}, self._slab({name: array[0, 0, :, :, :, 0] for name, array in block.items()})
        )
        return block["status"].size

    def _slab(self, arrays: Mapping[str, NDArray[Any]]) -> Slab:
        contents = self.group.layout.contents
        return Slab(
            singular_values=arrays["singular_values"],
            **{name: arrays[name] for name in _PER_MATRIX},
            measures={name: arrays[name] for name in contents.measures},
            brackets={name: (arrays[f"{name}_lower"], arrays[f"{name}_upper"]) for name in contents.estimated},
            errors={name: arrays[f"{name}_error"] for name in contents.errors},
        )

    def layer_output(self, place: Mapping[str, int | slice]) -> None:
        """The output of one layer for a batch, where the group has that."""
        if self.group.layout.output_components is None:
            return
        variables = [v for v in self.group.layout.contents.variables if v.name.startswith(LAYER_OUTPUT)]
        arrays = {v.name.removeprefix(LAYER_OUTPUT): self._read(v, place)[0, 0, :, 0] for v in variables}
        taken = LayerSlab(
            singular_values=arrays["singular_values"],
            floor_arithmetic=arrays["floor_arithmetic"],
            measures={name: arrays[name] for name in self.group.layout.layer_measures},
        )
        self.target.write_layer_output({axis: place[axis] for axis in LAYER_AXES}, taken)

    def kept(self, place: Mapping[str, int | slice]) -> None:
        """What is kept of one layer of a batch, one sequence at a time."""
        variables = [v for v in schema.KEPT_VARIABLES if v.name in self.group.layout.kept]
        rows = place["sequence"]
        assert isinstance(rows, slice), "a batch"
        for number in range(rows.start, rows.stop) if variables else ():
            one = {**place, "sequence": number}
            self.target.write_kept(one, KeptSlab(**{v.name: self._read(v, one)[0, 0, 0, 0] for v in variables}))

    def _read(self, variable: Variable, place: Mapping[str, int | slice]) -> NDArray[Any]:
        """A variable over all its axes; those that the place fixes to one number have length 1."""
        chosen = {axis: at if isinstance(at, slice) else slice(at, at + 1) for axis, at in place.items()}
        labels = self.group.labels
        wanted = {axis: labels[axis][chosen.get(axis, slice(None))] for axis in variable.dimensions}
        return assembled(self.group.parts, variable, wanted)
