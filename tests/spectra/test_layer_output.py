"""The spectrum of a layer's output: matrices of known rank, floors, and what is refused."""

from __future__ import annotations

import matrices
import numpy as np
import pytest
import torch

from rankkit.errors import ConfigurationError
from rankkit.spectra.layer_output import layer_output_spectrum


def outputs() -> tuple[torch.Tensor, np.ndarray]:
    """Two sequences of 12 positions and width 7, with known singular values."""
    values = np.array([[8.0, 4, 2, 1, 0.5, 0.25, 0.125], [3.0, 3, 3, 0, 0, 0, 0]])
    return torch.from_numpy(np.stack([matrices.prescribed(row, 12, 7, seed=i) for i, row in enumerate(values)])), values


def test_singular_values_and_effective_rank_are_those_prescribed() -> None:
    output, values = outputs()
    found = layer_output_spectrum(output)
    np.testing.assert_allclose(found.singular_values.numpy(), values, rtol=0, atol=1e-13)
    shares = values[0] / values[0].sum()
    expected = [np.exp(-(shares * np.log(shares)).sum()), 3.0]
    np.testing.assert_allclose(found.measures["effective_rank"].numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(found.floor_arithmetic.numpy(), 12 * 2.0**-52 * values[:, 0], rtol=1e-12)
    assert not found.failed.any()


def test_any_shape_dtype_and_measure_of_singular_values_is_taken() -> None:
    output, _ = outputs()
    wide = layer_output_spectrum(output.mT.to(torch.bfloat16)[None], measures=("stable_rank", "numerical_rank"))
    assert wide.singular_values.shape == (1, 2, 7)
    assert list(wide.measures) == ["stable_rank", "numerical_rank"]
    assert wide.measures["stable_rank"].shape == (1, 2)
    np.testing.assert_allclose(wide.measures["stable_rank"][0, 1], 3, rtol=0.02)


def test_an_output_that_is_not_finite_fails_alone() -> None:
    output, _ = outputs()
    spoilt = output.clone()
    spoilt[0, 3, 3] = torch.inf
    found = layer_output_spectrum(spoilt)
    assert found.failed.tolist() == [True, False]
    assert found.measures["effective_rank"].isnan().tolist() == [True, False]
    assert torch.equal(found.singular_values[1], layer_output_spectrum(output).singular_values[1])


@pytest.mark.parametrize("name", ["attention_entropy", "logit_std", "rank"])
def test_measures_that_need_more_than_singular_values_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"measure must be one of .* for a layer's output, got '{name}'\."):
        layer_output_spectrum(outputs()[0], measures=(name,))
