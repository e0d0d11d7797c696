"""Finished slabs of a measurement that has not ended: an append-only file beside the one it becomes."""
