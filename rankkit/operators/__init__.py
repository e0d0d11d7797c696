"""Matrices as linear maps: attention from its factors, matrices of one's own, and sums of either.

Capture makes operators and spectra consume them; neither knows the other. An operator is a batch of matrices that share
one shape. Nothing is computed until it is asked for, and products with vectors never form a matrix of attention.
"""

from rankkit.operators.attention import AttentionOperator, masked_softmax
from rankkit.operators.base import Operator, Transposed
from rankkit.operators.dense import DenseOperator
from rankkit.operators.sums import SumOperator
from rankkit_kernels.scores import Bias, DenseBias, OffsetBias

__all__ = [
    "AttentionOperator",
    "Bias",
    "DenseBias",
    "DenseOperator",
    "OffsetBias",
    "Operator",
    "SumOperator",
    "Transposed",
    "masked_softmax",
]
