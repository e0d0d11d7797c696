"""Probes for other people's training loops."""
