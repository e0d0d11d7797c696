"""Figures of a comparison; they take plain arrays and know neither run directories nor HDF5."""

from __future__ import annotations

from rankkit.report.figures import losses, measure_by_layer, spectra_by_layer
from rankkit.report.style import save

__all__ = ["losses", "measure_by_layer", "save", "spectra_by_layer"]
