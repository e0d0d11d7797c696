"""Kernels of rankkit: tensors in, tensors out. Knows nothing of masks as values, models or files."""

from __future__ import annotations
