"""The groups of a spectrum file, kind by kind: how each is written, read back and checked."""
