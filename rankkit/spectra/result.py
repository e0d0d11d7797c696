"""What measuring a batch of matrices gives: singular values, floors, measures, the error of each, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from rankkit.display import html_table, short
from rankkit.spectra.floors import resolved

__all__ = ["METHODS", "STATUSES", "Spectrum"]

METHODS: Final = ("gram", "svd", "krylov")
"""How singular values were made; `Spectrum.method` holds the index."""

STATUSES: Final = ("ok", "estimated", "degenerate", "failed")
"""What a spectrum is worth; `Spectrum.status` holds the index.

`ok`: every singular value, to its floor. `estimated`: the leading ones, and brackets for measures of the rest.
`degenerate`: exact, of a matrix without structure (zero, or one row or column). `failed`: not finite, or no method
converged; everything is nan.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum:
    """Singular values of a batch of matrices, their floors, and their measures.

    Measures are attributes too: `spectrum.effective_rank` is `spectrum.measures["effective_rank"]`.
    """

    singular_values: Tensor
    """"... component", float64, descending: all of them, or the leading ones of an estimate; nan where failed."""
    floor_arithmetic: Tensor
    """"...", what the method may have moved a value by; of an estimate the largest certified residual."""
    floor_model: Tensor
    """"...", what the model's own arithmetic may have moved a value by."""
    method: Tensor
    """"...", int8, index into `METHODS`."""
    status: Tensor
    """"...", int8, index into `STATUSES`."""
    measures: Mapping[str, Tensor]
    """"..." by name, float64: exact values, nan where there is only a bracket or none."""
    errors: Mapping[str, Tensor]
    """"..." by name: how far both floors together may have moved the measure; nan where no bound is known."""
    brackets: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """(lower, upper) "..." by name: 95% brackets of what was estimated; nan where the value is exact. They are of the exact
    matrix: what `floor_model` says of the model's own arithmetic is not in them."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Measures that were asked for and cannot be had, with the reason: a theorem that does not hold here, or the size."""
    rule: str
    """Why this method: in words, for the file."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.measures[name]
        except KeyError:
            pass
        if name in self.unavailable:
            raise AttributeError(f"{name} must be defined for this operator, but {self.unavailable[name]}.")
        if name in self.brackets:
            raise AttributeError(
                f"{name} must be known exactly to be a value, got an estimate. Read spectrum.brackets[{name!r}]."
            )
        raise AttributeError(
            f"a measure must have been asked for, got {name!r}. Measured: {', '.join(self.measures)}."
        ) from None

    def expanded(self, batch_shape: tuple[int, ...]) -> Spectrum:
        """The spectrum of one matrix as that of many equal ones.

        Args:
            batch_shape: their leading axes.
        """

        def many(tensor: Tensor) -> Tensor:
            return tensor.expand(*batch_shape, *tensor.shape[1:])

        return replace(
            self,
            singular_values=many(self.singular_values),
            floor_arithmetic=many(self.floor_arithmetic),
            floor_model=many(self.floor_model),
            method=many(self.method),
            status=many(self.status),
            measures={name: many(values) for name, values in self.measures.items()},
            errors={name: many(values) for name, values in self.errors.items()},
            brackets={name: (many(lower), many(upper)) for name, (lower, upper) in self.brackets.items()},
        )

    @property
    def floor(self) -> Tensor:
        """The larger of the two floors, "..."; a value below it is unresolved."""
        return torch.maximum(self.floor_arithmetic, self.floor_model)

    @property
    def failed(self) -> Tensor:
        """Which matrices could not be measured, "...", bool."""
        return self.status == STATUSES.index("failed")

    @property
    def resolved(self) -> Tensor:
        """Values above the arithmetic floor, "..."."""
        return resolved(self.singular_values, self.floor_arithmetic)

    @property
    def resolved_model(self) -> Tensor:
        """Values above the model floor, "..."."""
        return resolved(self.singular_values, self.floor_model)

    def __repr__(self) -> str:
        rank = self.measures.get("effective_rank")
        mean = "" if rank is None else f"; mean effective_rank {short(_mean(rank))}"
        return f"Spectrum({_shape(self.status)}, {self._states()}{mean}; measures {len(self.measures)})"

    def _repr_html_(self) -> str:
        """Measures over all matrices, for notebooks."""
        rows = [[name, *_summary(values), short(_largest(self.errors[name]))] for name, values in self.measures.items()]
        rows += [
            [f"{name}, bracket", f"{short(_mean(lower))} to {short(_mean(upper))}", "", "", ""]
            for name, (lower, upper) in self.brackets.items()
            if bool(lower.isfinite().any())
        ]
        count = self.singular_values.shape[-1]
        notes = [
            f"{self._states()}. {self.rule}.",
            f"Of {count} singular values {short(_mean(self.resolved))} lie above the arithmetic floor and "
            f"{short(_mean(self.resolved_model))} above the model floor (means).",
            *(f"no {name}: {reason}" for name, reason in self.unavailable.items()),
        ]
        return html_table(
            f"Spectra of {_shape(self.status)}", ("measure", "mean", "smallest", "largest", "error at most"), rows,
            notes=notes,
        )  # fmt: skip

    def _states(self) -> str:
        counts = {name: int((self.status == code).sum()) for code, name in enumerate(STATUSES)}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _shape(tensor: Tensor) -> str:
    return f"{' x '.join(map(str, tensor.shape)) or '1'} matri{'x' if tensor.numel() == 1 else 'ces'}"


def _summary(values: Tensor) -> tuple[str, str, str]:
    """Mean, smallest and largest of the finite ones, and how many those are where not all are."""
    known = values[values.isfinite()].double()
    if known.numel() == 0:
        return "-", "-", "-"
    of = "" if known.numel() == values.numel() else f" (of {known.numel()})"
    return f"{short(float(known.mean()))}{of}", short(float(known.min())), short(float(known.max()))


def _mean(values: Tensor) -> float:
    return float(values[values.isfinite()].double().mean())


def _largest(values: Tensor) -> float:
    known = values[~values.isnan()]
    return float(known.max()) if known.numel() else float("nan")
