"""Attention matrices, or queries and keys, in files that other tools wrote."""
