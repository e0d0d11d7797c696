"""What an arm holds and consumes, hashed by the arm itself.

Each of the things that enter the loss (tokens, prefix lengths, target rows; where an objective changes what the model
reads, the inputs too) has a chain: after step k it is SHA-256(chain before, SHA-256 of what entered at step k). Two arms
consumed the same if and only if their chains are equal, at every step up to where they are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankkit.training.objective import Examples, Task

__all__ = ["Consumption", "evaluation_hash", "parameter_hashes", "tensors_hash"]


def _bytes(tensor: Tensor) -> bytes:
    contiguous = tensor.detach().cpu().contiguous()
    return contiguous.view(torch.uint8).numpy().tobytes() if contiguous.numel() else b""


class Consumption:
    """The chains of one arm.

    Args:
        chains: where they stand, by name.
    """

    def __init__(self, chains: Mapping[str, str]) -> None:
        self.chains = dict(chains)

    @classmethod
    def of(cls, task: Task) -> Consumption:
        """At step 0 of a task, where nothing has entered the loss."""
        return cls(dict.fromkeys(task.chains, ""))

    def add(self, tokens: Tensor, prefix_lengths: Sequence[int], examples: Examples) -> None:
        """Extend the chains by one step, from the very tensors that enter the model and its loss.

        Args:
            tokens: "sequence position", int64: of the stream.
            prefix_lengths: one per sequence.
            examples: what was made of them.
        """
        rows = examples.rows
        pairs = torch.stack((rows.sequences, rows.rows, rows.targets))
        entered = {
            "tokens": _bytes(tokens),
            "prefix_lengths": np.asarray(prefix_lengths, dtype="<i8").tobytes(),
            "target_rows": _bytes(pairs),
            "inputs": _bytes(examples.inputs),
        }
        for name in self.chains:
            link = self.chains[name].encode() + hashlib.sha256(entered[name]).digest()
            self.chains[name] = hashlib.sha256(link).hexdigest()


def evaluation_hash(tokens: NDArray[np.int64], prefix_length: int) -> str:
    """SHA-256 of what an arm is evaluated on: the sequences "sequence position" and their one prefix length."""
    digest = hashlib.sha256(f"rankkit evaluation {tokens.shape} {prefix_length} ".encode())
    digest.update(np.ascontiguousarray(tokens, dtype="<i8").tobytes())
    return digest.hexdigest()


def parameter_hashes(model: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter's shape, dtype and bytes, by name."""
    return {name: tensors_hash({name: parameter}) for name, parameter in model.named_parameters()}


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()
