"""The one vocabulary of axes, used in docstrings, einops patterns and HDF5 dimension names."""

from __future__ import annotations

from typing import Final

__all__ = ["AXES", "REGIONS", "SPECTRUM_AXES"]

AXES: Final = (
    "arm",
    "seed",
    "step",
    "region",
    "applied_mask",
    "sequence",
    "layer",
    "head",
    "component",
    "query",
    "key",
    "feature",
)
"""Every axis that rankkit names, in the order in which arrays carry them."""

SPECTRUM_AXES: Final = ("seed", "step", "region", "applied_mask", "sequence", "layer", "head")
"""The axes of one number per attention matrix; singular values add `component`."""

REGIONS: Final = ("full", "prefix_block")
"""Parts of an attention matrix that are measured: all of it, and its first p rows and columns."""
