"""HDF5: what a spectrum file holds, writing, reading and verifying it. Takes arrays and knows no model.

Importing this package imports h5py and sets HDF5_PLUGIN_PRELOAD (see rankkit.store.door.hdf5).
"""

from rankkit.store.consistency import Spectra
from rankkit.store.groups.datasets import SEQUENCES_PER_CHUNK
from rankkit.store.groups.functional import CutLosses
from rankkit.store.groups.kept import kept_in, read_kept
from rankkit.store.groups.writing import GroupWriter
from rankkit.store.layout import GroupLayout
from rankkit.store.reader import (
    ComparisonDescription,
    FileDescription,
    GroupDescription,
    Root,
    describe,
    read_group,
    read_root,
)
from rankkit.store.schema import BASELINES, CUTS, METHODS, SCHEMA_VERSION, STATUSES
from rankkit.store.slabs import KeptSlab, LayerSlab, Slab
from rankkit.store.tables.export import export_table
from rankkit.store.tables.rows import TABLES
from rankkit.store.tables.tidy import TidyTable, tidy_table
from rankkit.store.variables import MeasureDescription, Variable
from rankkit.store.verification import verify
from rankkit.store.writer import SpectrumWriter

__all__ = [
    "BASELINES",
    "CUTS",
    "METHODS",
    "SCHEMA_VERSION",
    "SEQUENCES_PER_CHUNK",
    "STATUSES",
    "TABLES",
    "ComparisonDescription",
    "CutLosses",
    "FileDescription",
    "GroupDescription",
    "GroupLayout",
    "GroupWriter",
    "KeptSlab",
    "LayerSlab",
    "MeasureDescription",
    "Root",
    "Slab",
    "Spectra",
    "SpectrumWriter",
    "TidyTable",
    "Variable",
    "describe",
    "export_table",
    "kept_in",
    "read_group",
    "read_kept",
    "read_root",
    "tidy_table",
    "verify",
]
