"""Every command that is disturbed, and what they read and write over."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from robustness.fault_exports import FILE, Making, Spectrum, SpectrumOver
from robustness.fault_injection import Ended, Injector
from robustness.fault_training import Train, TrainFigures, TrainOver
from robustness.fault_workloads import Workload

__all__ = ["WORKLOADS", "make_inputs"]

_SETTINGS: Final = """
arms = ["gpt", "unilm"]
seeds = [0, 1]

[model]
sequence_length = 32
num_layers = 2
d_model = 16
num_heads = 2
head_dim = 8

[train]
steps = 2
batch_size = 2
evaluation_sequences = 12
evaluation_interval = 1
checkpoint_interval = 1
log_interval = 1
"""


def make_inputs(injector: Injector, inputs: Path, *, shards: bool) -> None:
    """The text and the settings of every run here, a finished run to measure, and older results to write over.

    Args:
        injector: runs what makes them.
        inputs: a new folder.
        shards: whether to measure the run in two parts, too.
    """
    from rankkit.data import synthetic

    (inputs / "text").mkdir(parents=True)
    for number, document in enumerate(synthetic(0, 12)):
        (inputs / "text" / f"{number:02d}.txt").write_text(document.text, encoding="utf-8")
    for name, settings in (("run", _SETTINGS), ("old-run", _SETTINGS.replace("seeds = [0, 1]", "seeds = [5]"))):
        (inputs / "run.toml").write_text(settings, encoding="utf-8")
        train = Train(name=name, inputs=inputs)
        train.arrange(injector.place)
        _must_end(train.run(injector, train.arguments(), None))
        shutil.copytree(injector.place / "run", inputs / name)
    (inputs / "run.toml").write_text(_SETTINGS, encoding="utf-8")
    older = ["spectrum", str(inputs / "old-run"), "--out", FILE, "--samples", "1", "--device", "cpu", "--quiet"]
    _must_end(injector.run(older, None))
    shutil.copy(injector.place / FILE, inputs / "old.h5")
    for shard in ("0", "1") if shards else ():
        measure = Spectrum(name="shard", inputs=inputs).arguments()
        _must_end(injector.run([*measure, "--shard", f"{shard}/2", "--force"], None))
        shutil.copy(injector.place / FILE, inputs / f"shard-{shard}.h5")


def _must_end(ended: Ended) -> None:
    if ended.status != 0:
        raise RuntimeError(f"inputs could not be made: {ended.errors}")


_MERGE: Final = ("merge", "{inputs}/shard-0.h5", "{inputs}/shard-1.h5")
_EXPORT: Final = ("export", "{inputs}/shard-0.h5")

WORKLOADS: Final[dict[str, Callable[[str, Path], Workload]]] = {
    "train-pair": lambda name, inputs: Train(name=name, inputs=inputs),
    "train-pair --force": lambda name, inputs: TrainOver(name=name, inputs=inputs),
    "train-pair, figures": lambda name, inputs: TrainFigures(name=name, inputs=inputs, pictures=True, at_most=24),
    "train-pair --workers 2": lambda name, inputs: Train(name=name, inputs=inputs, fresh=True, at_most=24),
    "spectrum": lambda name, inputs: Spectrum(name=name, inputs=inputs, most_writes=50),
    "spectrum --force": lambda name, inputs: SpectrumOver(name=name, inputs=inputs, most_writes=30),
    "merge": lambda name, inputs: Making(name=name, inputs=inputs, command=_MERGE, file=FILE, most_writes=20),
    "merge --force": lambda name, inputs: Making(
        name=name, inputs=inputs, command=_MERGE, file=FILE, over=True, most_writes=20
    ),
    "export --to csv --force": lambda name, inputs: Making(
        name=name, inputs=inputs, command=(*_EXPORT, "--to", "csv"), file="spectrum.csv", over=True
    ),
    "export --to parquet --force": lambda name, inputs: Making(
        name=name, inputs=inputs, command=(*_EXPORT, "--to", "parquet"), file="spectrum.parquet", over=True
    ),
}
"""What makes each, by name."""
