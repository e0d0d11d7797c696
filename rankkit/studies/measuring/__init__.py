"""Measuring attention: where matrices come from, what is planned, and the measurement itself."""
