"""The figures: losses, spectra by layer, a measure by layer, head, step and size, functional rank, phase diagram, claims.

Each takes plain arrays and axes, and gives axes back; without axes it makes a figure of its own, outside pyplot.
Intervals and floors are always drawn; where one seed gives no interval, the figure says so. Every argument is
checked before the first line is drawn, so axes that were passed in are never left half drawn.
"""

from __future__ import annotations

from rankkit.report.figures.association import measure_against_loss
from rankkit.report.figures.cells import CellNumbers, numbers_by_cell
from rankkit.report.figures.claims import ClaimMark, claims_by_quantity
from rankkit.report.figures.functional import extra_loss_by_rank
from rankkit.report.figures.heads import measure_by_head
from rankkit.report.figures.loss import losses
from rankkit.report.figures.measure import measure_by_layer
from rankkit.report.figures.phase_diagram import phase_diagram
from rankkit.report.figures.positions import losses_by_position
from rankkit.report.figures.sizes import measure_by_size
from rankkit.report.figures.spectrum import spectra_by_layer
from rankkit.report.figures.steps import measure_by_step

__all__ = [
    "CellNumbers",
    "ClaimMark",
    "claims_by_quantity",
    "extra_loss_by_rank",
    "losses",
    "losses_by_position",
    "measure_against_loss",
    "measure_by_head",
    "measure_by_layer",
    "measure_by_size",
    "measure_by_step",
    "numbers_by_cell",
    "phase_diagram",
    "spectra_by_layer",
]
