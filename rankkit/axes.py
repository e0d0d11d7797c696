"""The one vocabulary of axes, used in docstrings, einops patterns and HDF5 dimension names."""

from __future__ import annotations

from typing import Final

__all__ = ["AXES", "LAYER_AXES", "REGIONS", "SPECTRUM_AXES"]

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
    "output_component",
    "kept_rank",
    "cut",
    "query",
    "key",
    "feature",
)
"""Every axis that rankkit names, in the order in which arrays carry them.

`kept_rank`, not rank: pandas and xarray have a method of that name.
"""

SPECTRUM_AXES: Final = ("seed", "step", "region", "applied_mask", "sequence", "layer", "head")
"""The axes of one number per attention matrix; singular values add `component`."""

LAYER_AXES: Final = ("seed", "step", "sequence", "layer")
"""The axes of one number per layer's output; its singular values add `output_component`."""

REGIONS: Final = ("full", "prefix_block", "first_key_removed", "prefix_block_first_key_removed")
"""Parts of an attention matrix that are measured.

All of it; its first p rows and columns; and each of the two for the queries and keys after the first, with the mask
restricted (the softmax is taken without the first key, the usual sink).
"""
