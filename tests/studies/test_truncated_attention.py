"""A model with cut attention against one written slowly, whose matrices are cut by NumPy's SVD."""

from __future__ import annotations

import contextlib
from collections.abc import Collection

import numpy as np
import pytest
import reference
import torch
from numpy.typing import NDArray
from tiny import model_config, widen
from torch import Tensor

from rankkit.errors import CaptureError, ConfigurationError, NonFiniteLossError
from rankkit.masks import MaskKind
from rankkit.models import Transformer
from rankkit.studies.truncation import truncated_attention

LENGTH, PREFIX, LAYERS, HEADS = 12, 5, 3, 3
Array = NDArray[np.float64]


def model_of(mask: MaskKind = MaskKind.PREFIX) -> Transformer:
    return widen(Transformer(model_config(mask=mask, num_layers=LAYERS, num_heads=HEADS, vocab_size=40)))


def some_tokens(sequences: int = 2) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 40, (sequences, LENGTH)))


def slow_logits(
    model: Transformer, tokens: list[int], *, rank: int, remask: bool, layers: Collection[int], heads: Collection[int]
) -> Array:
    """Logits "position vocabulary" with the matrices of those layers and heads cut."""
    config, allowed = model.config, model.config.mask.at(PREFIX).allowed(LENGTH).numpy()
    weights = {name: tensor.detach().double().numpy() for name, tensor in model.named_parameters()}
    x = weights["embedding.weight"][tokens]
    for layer in range(config.num_layers):
        block = {name.removeprefix(f"blocks.{layer}."): weight for name, weight in weights.items()}
        projected = reference.rms_norm(x, block["attention_norm.weight"]) @ block["attention.projection.weight"].T
        outputs = []
        for head in range(HEADS):
            query, key, value = (
                projected[:, start : start + 8] for start in (8 * head, 8 * (3 + head), 8 * (6 + head))
            )
            scores = reference.rope(query, config.rope_base) @ reference.rope(key, config.rope_base).T / np.sqrt(8)
            shares = np.where(allowed, np.exp(scores - scores.max(axis=1, keepdims=True)), 0)
            matrix = shares / shares.sum(axis=1, keepdims=True)
            if layer in layers and head in heads:
                left, values, right = np.linalg.svd(matrix)
                matrix = sum(values[i] * np.outer(left[:, i], right[i]) for i in range(rank))
                matrix = np.where(allowed, matrix, 0) if remask else matrix
            outputs.append(matrix @ value)
        x = x + np.concatenate(outputs, axis=1) @ block["attention.output.weight"].T
        hidden = reference.rms_norm(x, block["mlp_norm.weight"]) @ block["mlp.input.weight"].T
        x = x + np.vectorize(reference.gelu)(hidden) @ block["mlp.output.weight"].T
    return np.asarray(reference.rms_norm(x, weights["norm.weight"]) @ weights["embedding.weight"].T)


@pytest.mark.parametrize("mask", [MaskKind.CAUSAL, MaskKind.PREFIX])
@pytest.mark.parametrize("remask", [True, False])
@pytest.mark.parametrize(
    ("rank", "layers", "heads"), [(1, None, None), (3, [1], None), (4, [0, 2], [1]), (11, None, [2, 0])]
)
def test_logits_are_those_of_a_model_written_slowly(
    mask: MaskKind, remask: bool, rank: int, layers: list[int] | None, heads: list[int] | None
) -> None:
    model, tokens = model_of(mask), some_tokens()
    with truncated_attention(model, rank=rank, layers=layers, heads=heads, remask=remask):
        found = model.logits(model(tokens, PREFIX)).numpy()
    uncut = model.logits(model(tokens, PREFIX)).detach().numpy()
    for sequence, row in enumerate(tokens.tolist()):
        expected = slow_logits(
            model, row, rank=rank, remask=remask, layers=layers or range(LAYERS), heads=heads or range(HEADS)
        )
        np.testing.assert_allclose(found[sequence], expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    if rank < 11:
        assert np.abs(found - uncut).max() > 1e-3 * np.abs(uncut).max()


@pytest.mark.parametrize("mask", list(MaskKind))
@pytest.mark.parametrize("remask", [True, False])
def test_all_triplets_give_the_models_own_output_to_rounding(mask: MaskKind, remask: bool) -> None:
    model, tokens = model_of(mask), some_tokens()
    with torch.no_grad():
        expected = model(tokens, [PREFIX, 0])
    with truncated_attention(model, rank=LENGTH, remask=remask):
        torch.testing.assert_close(model(tokens, [PREFIX, 0]), expected, rtol=0, atol=1e-11)


def test_uncut_layers_before_the_first_cut_keep_their_bits() -> None:
    model, tokens, seen = model_of(), some_tokens(), []
    model.blocks[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(tokens, PREFIX)
    with truncated_attention(model, rank=2, layers=[1]):
        model(tokens, PREFIX)
    assert torch.equal(seen[0], seen[1])


def test_gradients_are_off_within_and_as_before_after_even_an_exception() -> None:
    model, tokens = model_of(), some_tokens()
    with torch.no_grad():
        before = model(tokens, PREFIX)
    with contextlib.suppress(KeyError), truncated_attention(model, rank=2):
        assert not torch.is_grad_enabled()
        assert not model(tokens, PREFIX).requires_grad
        raise KeyError
    assert torch.is_grad_enabled()
    assert torch.equal(model(tokens, PREFIX), before)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_pass_stays_in_the_models_dtype(dtype: torch.dtype) -> None:
    model, tokens = model_of().to(dtype), some_tokens()
    with torch.no_grad():
        expected = model(tokens, PREFIX)
    with truncated_attention(model, rank=LENGTH):
        found = model(tokens, PREFIX)
    assert found.dtype == dtype
    tolerance = 200 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_ranks_layers_and_weights_that_cannot_be_cut_are_refused() -> None:
    model, tokens = model_of(), some_tokens()
    with pytest.raises(ConfigurationError, match=r"rank must be at least 1, got 0\. Keep at least one triplet\."), \
            truncated_attention(model, rank=0):  # fmt: skip
        pass
    with pytest.raises(ConfigurationError, match=rf"rank must be a whole number from 1 to {LENGTH} \(keys\), got 13"), \
            truncated_attention(model, rank=13):  # fmt: skip
        model(tokens, PREFIX)
    with pytest.raises(CaptureError, match=r"layers must be within 0\.\.2"), \
            truncated_attention(model, rank=1, layers=[9]):  # fmt: skip
        pass
    model.blocks[1].attention.projection.weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="attention must be finite to be cut"), \
            truncated_attention(model, rank=1):  # fmt: skip
        model(tokens, PREFIX)
