"""Numbers that say what rank an attention matrix has, each for a whole batch of matrices at once.

Four kinds, by what they read: the singular values, the attention matrix, the logits before the softmax, or the operator.
All work in float64 and return "..." from "... component", "... query key" or an operator with leading axes "...". What none
of them does is average matrices. Each comes with a function that says how far it can be off: see `Measure.error`.

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

from rankkit.spectra.measures.decay import (
    decay_exponent,
    decay_exponent_r_squared,
    decay_exponent_standard_error,
)
from rankkit.spectra.measures.measure import Measure
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
from rankkit.spectra.measures.of_operators import log10_smallest_singular_value, log_abs_det, log_abs_det_bound
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
    spectral_ratio,
    stable_rank,
)
from rankkit.spectra.measures.off_diagonal_blocks import off_diagonal_block_rank
from rankkit.spectra.measures.registry import DEFAULT_MEASURES, MEASURES

__all__ = [
    "DEFAULT_MEASURES",
    "MEASURES",
    "Measure",
    "attention_entropy",
    "attention_entropy_relative",
    "decay_exponent",
    "decay_exponent_r_squared",
    "decay_exponent_standard_error",
    "default_tolerance",
    "diagonal_mass",
    "effective_rank",
    "effective_rank_energy",
    "energy_rank",
    "frobenius_norm",
    "log10_smallest_singular_value",
    "log_abs_det",
    "log_abs_det_bound",
    "logit_std",
    "mass_at_quarter",
    "mass_rank",
    "mean_ipr",
    "nuclear_norm",
    "numerical_rank",
    "off_diagonal_block_rank",
    "participation_ratio",
    "previous_key_mass",
    "rank_one_residual",
    "sink_mass",
    "sink_position",
    "spectral_norm",
    "spectral_ratio",
    "stable_rank",
]
