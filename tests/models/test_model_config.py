"""What a model configuration promises about sizes, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import model_config

from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.models import ModelConfig, Transformer, transformer
from rankkit.training.presets import preset

POSITIONS = ("rope", "learned", "none", "alibi")


def counts(config: ModelConfig) -> tuple[int, int]:
    """All weights, and those that are no embedding, counted without memory for them."""
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(transformer, "initialize", lambda *_: None)  # drawing 124 million numbers takes seconds
        model = Transformer(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    embeddings = ("embedding.weight", "positions.weight")
    return sum(sizes.values()), sum(size for name, size in sizes.items() if name not in embeddings)


@given(
    st.sampled_from(POSITIONS), st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4),
    st.integers(1, 4), st.integers(1, 20), st.integers(2, 20),
)  # fmt: skip
def test_formulas_count_the_weights_of_the_model(
    position: Any, layers: int, width: int, heads: int, half: int, ratio: int, vocabulary: int, length: int
) -> None:
    config = ModelConfig(
        position=position, num_layers=layers, d_model=width, num_heads=heads, head_dim=2 * half, mlp_ratio=ratio,
        vocab_size=vocabulary, sequence_length=length,
    )  # fmt: skip
    assert counts(config) == (config.parameters, config.non_embedding_parameters)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("tiny", 820_480), ("small", 9_917_120), ("base", 124_337_664)],
)
def test_presets_have_the_stated_number_of_weights(name: str, parameters: int) -> None:
    config = preset(name).model
    assert config.parameters == parameters
    assert counts(config) == (config.parameters, config.non_embedding_parameters)


def test_base_has_gpt2s_shape_and_tiny_eight_times_as_many_positions_as_features() -> None:
    base, tiny = preset("base").model, preset("tiny").model
    assert (base.num_layers, base.d_model, base.num_heads, base.head_dim) == (12, 768, 12, 64)
    assert (base.sequence_length, base.vocab_size, base.position) == (1024, 50257, "learned")
    assert (tiny.num_layers, tiny.d_model, tiny.num_heads) == (4, 128, 4)
    assert tiny.sequence_length / tiny.head_dim == 8


@pytest.mark.parametrize("position", POSITIONS)
def test_width_is_independent_of_the_heads(position: Any) -> None:
    model = Transformer(model_config(position=position, d_model=10, num_heads=3, head_dim=6))
    hidden = model(torch.arange(8).reshape(2, 4), 2)
    assert hidden.shape == (2, 4, 10)
    assert model.logits(hidden).shape == (2, 4, 257)


def test_a_plain_string_names_its_mask() -> None:
    config = model_config(mask="prefix")
    assert config.mask is MaskKind.PREFIX
    assert config == model_config(mask=MaskKind.PREFIX)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": "sideways"}, "mask must be one of .*backward, mixed-heads, mixed-layers, got 'sideways'. Choose"),
        (
            {"mask": "mixed-heads", "num_heads": 1},
            "num_heads must be at least 2 with mask mixed-heads, got 1. Choose more",
        ),
        ({"mask": "mixed-layers", "num_layers": 1}, "num_layers must be at least 2 with mask mixed-layers, got 1"),
        ({"mask": None}, "mask must be one of .*, got None"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0. Choose a positive number"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"d_model": -4}, "d_model must be at least 1, got -4"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"mlp_ratio": 0}, "mlp_ratio must be at least 1, got 0"),
        ({"sequence_length": 1}, "sequence_length must be at least 2, got 1. One token predicts nothing"),
        ({"position": "sinusoidal"}, "position must be one of rope, learned, none, alibi, got 'sinusoidal'. Choose"),
        ({"head_dim": 7}, "head_dim must be even with rope, got 7. Choose an even head_dim or another position"),
        ({"initial_std": 0.0}, "initial_std must be positive, got 0.0"),
        ({"initial_std": float("nan")}, "initial_std must be positive, got nan"),
        ({"initial_std": float("inf")}, "initial_std must be positive, got inf"),
        ({"rope_base": -1.0}, "rope_base must be positive, got -1.0"),
        ({"rope_base": float("inf")}, "rope_base must be positive, got inf"),
    ],
)
def test_impossible_models_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        model_config(**changes)


def test_odd_heads_are_fine_without_rotation() -> None:
    model = Transformer(model_config(position="none", head_dim=7))
    assert model(torch.arange(4)[None], 2).isfinite().all()
