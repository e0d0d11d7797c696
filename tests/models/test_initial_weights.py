"""Initial weights are a function of (configuration, seed) alone: the same bits whatever else happens."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch
from tiny import model_config
from torch import Tensor, nn

from rankkit.models import Transformer, initialize, uniform_tensor
from rankkit.training.presets import tiny

# Bytes of every weight of `model_config(position="learned")` under seed 3, little-endian float32, sorted by name. A
# machine or a version on which this differs draws other initial weights, and its runs do not match older ones.
PINNED = "b089b1fee39760d6db0709ad81a660ce7f2201d5c11bd83e19e425fe4437f8d2"


def weights(seed: int = 3, **changes: Any) -> dict[str, Tensor]:
    return {
        name: tensor.detach() for name, tensor in Transformer(model_config(**changes), seed=seed).named_parameters()
    }


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_initial_weights_are_pinned() -> None:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights(position="learned").items()):
        digest.update(name.encode() + tensor.numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == PINNED


def test_mask_does_not_change_them() -> None:
    assert_equal(weights(mask="causal"), weights(mask="prefix"))


def test_parameters_that_only_one_model_has_do_not_change_the_others() -> None:
    learned, rope, none = (weights(position=position) for position in ("learned", "rope", "none"))
    del learned["positions.weight"]
    assert_equal(learned, rope)
    assert_equal(learned, none)


def test_deeper_models_begin_like_shallower_ones_but_for_the_residual_scale() -> None:
    shallow, deep = weights(num_layers=1), weights(num_layers=4)
    for name, tensor in shallow.items():
        expected = tensor / 2 if name.endswith("output.weight") else tensor
        torch.testing.assert_close(deep[name], expected, rtol=1e-6, atol=0)  # a rounding to float32 each


def test_neither_the_order_of_construction_nor_other_random_numbers_change_them() -> None:
    class Backwards(nn.Module):
        """The same names, made last to first."""

        def __init__(self, shapes: dict[str, torch.Size]) -> None:
            super().__init__()
            for name, shape in reversed(shapes.items()):
                *path, last = name.split(".")
                module: nn.Module = self
                for part in path:
                    if part not in dict(module.named_children()):
                        module.add_module(part, nn.Module())
                    module = module.get_submodule(part)
                module.register_parameter(last, nn.Parameter(torch.rand(shape)))

    expected = weights()
    torch.manual_seed(99)
    model = Backwards({name: tensor.shape for name, tensor in expected.items()})
    initialize(model, model_config(), seed=3)
    found = {name: tensor.detach() for name, tensor in model.named_parameters()}
    assert list(found) == list(reversed(expected))
    assert_equal(found, expected)


def test_drawing_does_not_touch_the_global_generators() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    uniform_tensor(0, "x", (4, 4), 1.0)
    assert torch.equal(torch.rand(3), expected)


def test_precision_rounds_the_same_numbers() -> None:
    single = weights()
    for dtype in (torch.float64, torch.bfloat16):
        model = Transformer(model_config()).to(dtype)
        initialize(model, model_config(), seed=3)
        for name, tensor in model.named_parameters():
            rounded = tensor.detach().float() if dtype is torch.float64 else tensor.detach()
            assert torch.equal(rounded, single[name].to(rounded.dtype)), name


def test_thread_count_does_not_change_them() -> None:
    expected, before = weights(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert_equal(weights(), expected)
    finally:
        torch.set_num_threads(before)


def test_every_weight_depends_on_the_seed_and_no_two_are_alike() -> None:
    one, other = weights(seed=0), weights(seed=1)
    matrices = [name for name, tensor in one.items() if tensor.dim() == 2]
    for name in matrices:
        assert not (one[name] == other[name]).any()
    starts = {tuple(one[name].flatten()[:4].tolist()) for name in matrices}
    assert len(starts) == len(matrices)


def test_gains_begin_at_one() -> None:
    for name, tensor in weights().items():
        if name.endswith("norm.weight"):
            assert bool((tensor == 1).all()), name


def test_weights_are_uniform_with_the_stated_deviation() -> None:
    config = tiny().model
    for name, tensor in Transformer(config).named_parameters():
        if tensor.dim() < 2:
            continue
        residual = name.endswith(("attention.output.weight", "mlp.output.weight"))
        deviation = config.initial_std / (math.sqrt(2 * config.num_layers) if residual else 1.0)
        numbers = tensor.detach().double() / deviation
        slack = 5 / math.sqrt(numbers.numel())  # five standard errors of a mean of numbers of order one
        assert abs(float(numbers.mean())) < slack, name
        assert abs(float(numbers.square().mean()) - 1) < slack, name
        assert abs(float(numbers.pow(4).mean()) - 9 / 5) < 2 * slack, name  # the kurtosis of a uniform number
        assert float(numbers.abs().max()) <= math.sqrt(3) * (1 + 1e-6), name  # rounded to float32


@pytest.mark.parametrize(("seed", "name"), [(1, "1 x"), (11, "x")])
def test_seed_and_name_do_not_run_together(seed: int, name: str) -> None:
    assert not torch.equal(uniform_tensor(seed, name, (8,), 1.0), uniform_tensor(1, "x", (8,), 1.0))
