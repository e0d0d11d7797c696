"""Declared experiments: the file, what it expects, and what was found."""
