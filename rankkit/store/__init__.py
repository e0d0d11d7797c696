"""HDF5: what a spectrum file holds, writing, reading and verifying it. Takes arrays and knows no model.

Importing this package imports h5py and sets HDF5_PLUGIN_PRELOAD (see rankkit.store.hdf5).
"""

from rankkit.store.datasets import SEQUENCES_PER_CHUNK
from rankkit.store.groups import GroupWriter
from rankkit.store.layout import GroupLayout, Slab
from rankkit.store.reader import (
    ComparisonDescription,
    FileDescription,
    GroupDescription,
    Root,
    describe,
    read_group,
    read_root,
)
from rankkit.store.schema import METHODS, SCHEMA_VERSION, STATUSES, MeasureDescription, Variable
from rankkit.store.verification import verify
from rankkit.store.writer import SpectrumWriter

__all__ = [
    "METHODS",
    "SCHEMA_VERSION",
    "SEQUENCES_PER_CHUNK",
    "STATUSES",
    "ComparisonDescription",
    "FileDescription",
    "GroupDescription",
    "GroupLayout",
    "GroupWriter",
    "MeasureDescription",
    "Root",
    "Slab",
    "SpectrumWriter",
    "Variable",
    "describe",
    "read_group",
    "read_root",
    "verify",
]
