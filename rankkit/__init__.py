"""What the attention mask does to the rank of attention, and to what a model learns, measured.

A few verbs; everything else is found under the room it belongs to. Names are loaded when they are first used, so that
`import rankkit` is quick and loads no plotting, file or command-line library.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankkit import data
    from rankkit.errors import RankkitError
    from rankkit.hooks import capture
    from rankkit.masks import Backward, Bidirectional, Causal, Cross, Mask, MaskKind, Padded, Prefix, Window
    from rankkit.operators import AttentionOperator, DenseBias, OffsetBias
    from rankkit.spectra import spectrum
    from rankkit.store.labelled import open_spectra
    from rankkit.studies import Monitor, compare_losses, functional_rank, load_model, measure_run, open_run, train_pair
    from rankkit.studies.pretrained.opening import measure_model
    from rankkit.training import presets

__all__ = [
    "AttentionOperator",
    "Backward",
    "Bidirectional",
    "Causal",
    "Cross",
    "DenseBias",
    "Mask",
    "MaskKind",
    "Monitor",
    "OffsetBias",
    "Padded",
    "Prefix",
    "RankkitError",
    "Window",
    "capture",
    "compare_losses",
    "data",
    "functional_rank",
    "load_model",
    "measure_model",
    "measure_run",
    "open_run",
    "open_spectra",
    "presets",
    "spectrum",
    "train_pair",
]

_HOMES = {
    "AttentionOperator": "rankkit.operators",
    "Backward": "rankkit.masks",
    "Bidirectional": "rankkit.masks",
    "Causal": "rankkit.masks",
    "Cross": "rankkit.masks",
    "DenseBias": "rankkit.operators",
    "Mask": "rankkit.masks",
    "MaskKind": "rankkit.masks",
    "Monitor": "rankkit.studies",
    "OffsetBias": "rankkit.operators",
    "Padded": "rankkit.masks",
    "Prefix": "rankkit.masks",
    "RankkitError": "rankkit.errors",
    "Window": "rankkit.masks",
    "capture": "rankkit.hooks",
    "compare_losses": "rankkit.studies",
    "functional_rank": "rankkit.studies",
    "load_model": "rankkit.studies",
    "measure_model": "rankkit.studies.pretrained.opening",
    "measure_run": "rankkit.studies",
    "open_run": "rankkit.studies",
    "open_spectra": "rankkit.store.labelled",
    "spectrum": "rankkit.spectra",
    "train_pair": "rankkit.studies",
}
_MODULES = {"data": "rankkit.data", "presets": "rankkit.training.presets"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("rankkit")
    if name in _MODULES:
        module: ModuleType = import_module(_MODULES[name])
        return module
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module rankkit has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
