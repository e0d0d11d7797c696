"""What people look at: figures, which take plain arrays, and the page, which shows a run or file as a whole."""

from __future__ import annotations

from rankkit.report.figures import losses, measure_by_layer, spectra_by_layer
from rankkit.report.page.build import write_report
from rankkit.report.style import save

__all__ = ["losses", "measure_by_layer", "save", "spectra_by_layer", "write_report"]
