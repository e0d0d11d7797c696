"""The model once more, slow and obvious: NumPy float64, loops over heads and rows, nothing fused or shared."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import erf

import numpy as np
from numpy.typing import NDArray

from rankkit.models import ModelConfig, Transformer

Array = NDArray[np.float64]


@dataclass
class Forward:
    """What one forward pass over one sequence computed."""

    logits: Array
    """"position vocabulary"."""
    queries: list[list[Array]] = field(default_factory=list)
    """By layer and head: "query feature", after the position encoding."""
    keys: list[list[Array]] = field(default_factory=list)
    attention: list[list[Array]] = field(default_factory=list)
    """By layer and head: "query key"."""


def allowed(config: ModelConfig, prefix_length: int, n: int) -> NDArray[np.bool_]:
    """Who sees whom, "layer head query key", from the name of a model's mask."""
    query, key = np.indices((n, n))
    backward = key >= query
    visible = {
        "causal": key <= query,
        "prefix": (key <= query) | (key < prefix_length),
        "bidirectional": np.ones((n, n), dtype=bool),
        "backward": backward,
    }
    found = np.empty((config.num_layers, config.num_heads, n, n), dtype=bool)
    for layer, head in np.ndindex(*found.shape[:2]):
        looks_back = head < config.num_heads / 2 if config.mask == "mixed-heads" else layer % 2 == 0
        found[layer, head] = visible.get(str(config.mask), visible["causal"] if looks_back else backward)
    return found


def forward(model: Transformer, tokens: list[int], allowed: NDArray[np.bool_], *, uniform: bool = False) -> Forward:
    """Logits of one sequence under masks whose axes broadcast to "layer head query key".

    `uniform` makes every row attend alike to all it may see.
    """
    config = model.config
    weights = {name: tensor.detach().double().numpy() for name, tensor in model.named_parameters()}
    x = weights["embedding.weight"][tokens]
    if config.position == "learned":
        x = x + weights["positions.weight"][: len(tokens)]
    result = Forward(logits=np.empty(0))
    masks = np.broadcast_to(allowed, (config.num_layers, config.num_heads, len(tokens), len(tokens)))
    for layer in range(config.num_layers):
        block = {name.removeprefix(f"blocks.{layer}."): weight for name, weight in weights.items()}
        x = x + _attention(block, rms_norm(x, block["attention_norm.weight"]), model, masks[layer], uniform, result)
        hidden = rms_norm(x, block["mlp_norm.weight"]) @ block["mlp.input.weight"].T
        x = x + np.vectorize(gelu)(hidden) @ block["mlp.output.weight"].T
    result.logits = rms_norm(x, weights["norm.weight"]) @ weights["embedding.weight"].T
    return result


def _attention(
    block: dict[str, Array], x: Array, model: Transformer, allowed: NDArray[np.bool_], uniform: bool, result: Forward
) -> Array:
    config = model.config
    width = config.num_heads * config.head_dim
    projected = x @ block["attention.projection.weight"].T
    outputs, queries, keys, matrices = [], [], [], []
    for head in range(config.num_heads):
        columns = slice(head * config.head_dim, (head + 1) * config.head_dim)
        query, key, value = (projected[:, part * width : (part + 1) * width][:, columns] for part in range(3))
        if config.position == "rope":
            query, key = rope(query, config.rope_base), rope(key, config.rope_base)
        matrix = np.zeros((len(x), len(x)))
        for row in range(len(x)):
            seen = np.flatnonzero(allowed[head, row])
            scores = key[seen] @ query[row] / np.sqrt(config.head_dim)
            if config.position == "alibi":
                scores = scores - 2 ** (-8 * (head + 1) / config.num_heads) * np.abs(seen - row)
            scores = np.zeros(len(seen)) if uniform else scores
            shares = np.exp(scores - scores.max())
            matrix[row, seen] = shares / shares.sum()
        outputs.append(matrix @ value)
        queries.append(query)
        keys.append(key)
        matrices.append(matrix)
    result.queries.append(queries)
    result.keys.append(keys)
    result.attention.append(matrices)
    return np.concatenate(outputs, axis=1) @ block["attention.output.weight"].T


def rope(x: Array, base: float) -> Array:
    """Pairs (k, k + d/2) as complex numbers, turned by position times base^(-2k/d)."""
    half = x.shape[1] // 2
    frequencies = np.array([base ** (-2 * k / x.shape[1]) for k in range(half)])
    angles = np.outer(np.arange(len(x)), frequencies)
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=1)


def rms_norm(x: Array, gain: Array) -> Array:
    """Each row over its root mean square."""
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * gain


def gelu(x: float) -> float:
    """x times the standard normal's distribution function."""
    return x * 0.5 * (1 + erf(x / 2**0.5))
