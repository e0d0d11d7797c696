"""Singular values of attention, what they measure, and the error of every number."""

from __future__ import annotations

from rankkit.spectra.exact import DEFAULT_MEMORY_BUDGET, METHODS, Spectrum, check_measures, spectrum
from rankkit.spectra.floors import arithmetic_floor, model_floor, resolved
from rankkit.spectra.measures import DEFAULT_MEASURES, MEASURES, Measure

__all__ = [
    "DEFAULT_MEASURES",
    "DEFAULT_MEMORY_BUDGET",
    "MEASURES",
    "METHODS",
    "Measure",
    "Spectrum",
    "arithmetic_floor",
    "check_measures",
    "model_floor",
    "resolved",
    "spectrum",
]
