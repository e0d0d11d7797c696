"""A spectrum file as tidy tables: one row per matrix, loss or difference."""
