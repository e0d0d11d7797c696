"""Numbers that say what rank an attention matrix has, each for a whole batch of matrices at once.

Three kinds, by what they read: the singular values, the attention matrix, or the logits before the softmax. All work
in float64 and return "..." from "... component" or "... query key". What none of them does is average matrices.

Edge cases, the same everywhere:

- nan among singular values is padding past the last component, or the mark of a matrix that failed; it is dropped, and
  a spectrum with nothing left measures nan;
- the zero matrix has rank 0 and norm 0; ratios of its values (effective rank, shares, ...) are nan;
- a row of attention that sums to 0 sees nothing (padding): it is left out of every mean; all rows empty measures nan;
- a matrix with a non-finite entry measures nan, alone in its batch; infinite or negative singular values and
  negative attention cannot come from any matrix and are refused.

For every spectrum, in the Renyi order: stable rank <= participation ratio <= effective rank of sigma^2 <= effective
rank <= rank.
"""

from __future__ import annotations

from rankkit.spectra.measures.of_attention import (
    attention_entropy,
    attention_entropy_relative,
    diagonal_mass,
    logit_std,
    mean_ipr,
    previous_key_mass,
    rank_one_residual,
    sink_mass,
    sink_position,
)
from rankkit.spectra.measures.of_singular_values import (
    default_tolerance,
    effective_rank,
    effective_rank_energy,
    energy_rank,
    frobenius_norm,
    mass_at_quarter,
    mass_rank,
    nuclear_norm,
    numerical_rank,
    participation_ratio,
    spectral_norm,
    stable_rank,
)
from rankkit.spectra.measures.registry import DEFAULT_MEASURES, MEASURES, Measure

__all__ = [
    "DEFAULT_MEASURES",
    "MEASURES",
    "Measure",
    "attention_entropy",
    "attention_entropy_relative",
    "default_tolerance",
    "diagonal_mass",
    "effective_rank",
    "effective_rank_energy",
    "energy_rank",
    "frobenius_norm",
    "logit_std",
    "mass_at_quarter",
    "mass_rank",
    "mean_ipr",
    "nuclear_norm",
    "numerical_rank",
    "participation_ratio",
    "previous_key_mass",
    "rank_one_residual",
    "sink_mass",
    "sink_position",
    "spectral_norm",
    "stable_rank",
]
