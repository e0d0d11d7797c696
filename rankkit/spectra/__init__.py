"""Singular values of attention, what they measure, and the error of every number."""

from __future__ import annotations

from rankkit.spectra.exact import DEFAULT_MEMORY_BUDGET
from rankkit.spectra.floors import applied_floor, arithmetic_floor, model_floor, resolved
from rankkit.spectra.layer_output import OutputSpectrum, layer_output_spectrum
from rankkit.spectra.matrix_free import expected_products
from rankkit.spectra.measurement import (
    MatrixFreeConfig,
    MethodName,
    check_measures,
    chosen_method,
    spectrum,
    switched_off,
)
from rankkit.spectra.measures import DEFAULT_MEASURES, MEASURES, Measure
from rankkit.spectra.result import METHODS, STATUSES, Spectrum

__all__ = [
    "DEFAULT_MEASURES",
    "DEFAULT_MEMORY_BUDGET",
    "MEASURES",
    "METHODS",
    "STATUSES",
    "MatrixFreeConfig",
    "Measure",
    "MethodName",
    "OutputSpectrum",
    "Spectrum",
    "applied_floor",
    "arithmetic_floor",
    "check_measures",
    "chosen_method",
    "expected_products",
    "layer_output_spectrum",
    "model_floor",
    "resolved",
    "spectrum",
    "switched_off",
]
