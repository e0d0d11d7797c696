"""The figure of a run's functional rank: what was measured, as `figures` draws it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rankkit.errors import ConfigurationError
from rankkit.report.figures import extra_loss_by_rank
from rankkit.report.style import save
from rankkit.studies.functional import CUTS, THRESHOLD, ArmCuts, Cut, FunctionalRank

__all__ = ["draw_functional_rank"]


def draw_functional_rank(found: FunctionalRank, folder: Path, *, threshold: float = THRESHOLD) -> list[Path]:
    """Extra loss against k, with all heads cut and with one layer at a time, as `functional_rank.png` and `.svg`.

    Args:
        found: with at least one of the scopes `all` and `layer`; single heads are in the table.
        folder: for the pictures.
        threshold: nats per token, drawn as a line.

    Returns:
        The files, PNG first.

    Raises:
        ConfigurationError: single heads alone were measured.
    """
    layers = found.arms[0].removed_share.shape[2]
    panels = ["all heads"] if "all" in found.scopes else []
    panels += [f"layer {layer}" for layer in range(layers)] if "layer" in found.scopes else []
    if not panels:
        raise ConfigurationError("scopes must hold all or layer to be drawn, got head alone. See the table instead.")
    tables = {cut: {arm.arm: _table(arm, cut) for arm in found.arms} for cut in CUTS}
    axes = extra_loss_by_rank(
        tables["remasked"], ranks=found.ranks, panels=panels, plain=tables["plain"], threshold=threshold
    )
    return save(axes[0].figure, folder, "functional_rank")  # type: ignore[arg-type]


def _table(arm: ArmCuts, cut: Cut) -> NDArray[np.float64]:
    """One cut, "seed panel kept_rank"."""
    c = CUTS.index(cut)
    parts = []
    if "all" in arm.extra_loss:
        parts.append(arm.extra_loss["all"][..., c].mean(axis=1)[:, np.newaxis])
    if "layer" in arm.extra_loss:
        parts.append(arm.extra_loss["layer"][..., c].mean(axis=1))
    return np.concatenate(parts, axis=1)
