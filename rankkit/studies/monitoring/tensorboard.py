"""TensorBoard as a log: the one adapter that there is, behind its extra.

    with TensorBoardLog("logs") as log:
        rankkit.train_pair(base, out="runs/mine", log=log)

Then `tensorboard --logdir logs`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from rankkit.errors import ConfigurationError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardLog"]

_OF_A_UNIT: Final = re.compile(r"(?P<unit>.+/seed-\d+)/(?P<tag>.+)")
_FLUSH_SECONDS: Final = 10  # whoever looks wants the newest points, and a file takes that many a second


class TensorBoardLog:
    """Writes scalars for TensorBoard; for `train_pair(log=...)` and `Monitor(log=...)`.

    `gpt/seed-0/loss` becomes `loss` of TensorBoard's run `gpt/seed-0`, so that one chart shows the losses of all arms and
    seeds; a name without a seed stays whole. TensorBoard keeps single precision. Where a run is resumed, what the folder
    holds of a unit from the first step told anew is superseded, so a folder is for one run.

    Args:
        folder: where event files go; made with the first value.

    Raises:
        ConfigurationError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigurationError(
                "a TensorBoard log must have tensorboard installed, which it is not. Run pip install 'rankkit[tensorboard]'."
            )
        self.folder = Path(folder)
        """Where event files go."""
        self._writers: dict[str, SummaryWriter] = {}

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        """Write values of one step.

        Args:
            values: by name.
            step: of the unit or the training loop.

        Raises:
            OSError: the file system refuses.
        """
        for name, value in values.items():
            found = _OF_A_UNIT.fullmatch(name)
            unit, tag = (found["unit"], found["tag"]) if found else ("", name)
            if unit not in self._writers:
                self._writers[unit] = self._writer(unit, step)
            self._writers[unit].add_scalar(tag, value, step)

    def _writer(self, unit: str, step: int) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self.folder / unit, purge_step=step, flush_secs=_FLUSH_SECONDS)

    def close(self) -> None:
        """Bring everything to the disk."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
