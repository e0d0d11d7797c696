"""Every error that rankkit raises on purpose.

    RankkitError
    ├── ConfigurationError      a setting, option or argument that cannot hold     (also a ValueError)
    ├── DataError               text or token ids that cannot be used              (also a ValueError)
    ├── OutputExistsError       something stands where the output should go
    ├── RunError                a run directory that is missing, damaged, foreign, newer or in use
    ├── MatchError              two arms, or files of one study, differ in something undeclared
    ├── NonFiniteLossError      training left the real numbers
    ├── CaptureError            attention factors could not be captured
    ├── SpectrumFileError       an HDF5 file that is missing, damaged, foreign or newer
    └── StorageError            the file system refused: no space, read-only, input/output error

The command line turns each into one line on stderr and exit code 1. A message says what must hold,
what was found, and what to do.
"""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "ConfigurationError",
    "DataError",
    "MatchError",
    "NonFiniteLossError",
    "OutputExistsError",
    "RankkitError",
    "RunError",
    "SpectrumFileError",
    "StorageError",
]


class RankkitError(Exception):
    """Base of every error raised on purpose; catch this one to catch them all."""


class ConfigurationError(RankkitError, ValueError):
    """A setting, option or argument that cannot hold."""


class DataError(RankkitError, ValueError):
    """Text or token ids that cannot be used."""


class OutputExistsError(RankkitError):
    """Something stands where the output should go; `--force` replaces it."""


class RunError(RankkitError):
    """A run directory that is missing, damaged, foreign, made by a newer version, or in use."""


class MatchError(RankkitError):
    """Two arms, or files of one study, differ in something that was not declared."""


class NonFiniteLossError(RankkitError):
    """The loss or the gradient became infinite or not a number."""


class CaptureError(RankkitError):
    """Attention factors could not be captured."""


class SpectrumFileError(RankkitError):
    """An HDF5 file that is missing, damaged, foreign, or of a newer schema."""


class StorageError(RankkitError):
    """The file system refused: no space left, read-only, or an input/output error."""
