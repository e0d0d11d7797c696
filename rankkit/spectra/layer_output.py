"""The spectrum of a layer's output, sum_h A_h X W_V^h W_O^h: the rank of a layer is not the rank of its heads.

Heads of low rank may write into different directions, and one head of full rank may write into few; what the residual
stream receives is their sum. It is measured as it was added, positions by d_model, neither centred nor normalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from rankkit.errors import ConfigurationError
from rankkit.spectra.floors import arithmetic_floor
from rankkit.spectra.measures import MEASURES
from rankkit_kernels.singular_values import singular_values

__all__ = ["OutputSpectrum", "layer_output_spectrum"]

METHOD: Final = "svd"
"""One matrix per layer and sequence, not one per head: there is no need for Gram's speed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutputSpectrum:
    """Singular values of the outputs of one layer."""

    singular_values: Tensor
    """"... component", float64 on the CPU, descending, min(positions, d_model) of them; nan where it failed."""
    floor_arithmetic: Tensor
    """"...", what the method may have moved a value by; nan where it failed."""
    failed: Tensor
    """"...", bool: the output is not finite, or LAPACK did not converge."""
    measures: Mapping[str, Tensor]
    """"..." by name, float64."""


def layer_output_spectrum(
    output: Tensor, /, *, measures: Sequence[str] = ("effective_rank",), workers: int | None = None
) -> OutputSpectrum:
    """Measure what one layer adds to the residual stream.

    Args:
        output: "... query d_model", any floating-point dtype and device, such as `LayerFactors.output`; each position a row.
        measures: names from `MEASURES` of those that need singular values alone.
        workers: threads for the singular values; the available cores by default. Results do not depend on it.

    Raises:
        ConfigurationError: an unknown measure, or one that needs attention or logits.
    """
    usable = [name for name, measure in MEASURES.items() if measure.needs == "singular_values"]
    for name in measures:
        if name not in usable:
            raise ConfigurationError(
                f"measure must be one of {', '.join(usable)} for a layer's output, got {name!r}. Choose one of them."
            )
    rows, columns = output.shape[-2:]
    found = singular_values(output, method=METHOD, workers=workers)
    return OutputSpectrum(
        singular_values=found.values,
        floor_arithmetic=arithmetic_floor(METHOD, rows, columns, found.values[..., 0]),
        failed=found.failed,
        measures={name: MEASURES[name].compute(found.values, rows, columns) for name in measures},
    )
