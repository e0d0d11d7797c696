"""Chains are equal if and only if everything consumed was equal, from the step on where it was not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import model_config
from torch import Tensor, nn

from rankkit.masks import MaskKind
from rankkit.models import Transformer
from rankkit.training import Objective
from rankkit.training.consumption import Consumption, parameter_hashes, tensors_hash
from rankkit.training.objective import Examples, MaskedTokens, NextTokens, TargetRows, Task

STEPS = 5
SUFFIX = NextTokens(Objective.SUFFIX)
MASKED = MaskedTokens(0.5, mask_id=99)
CHAINS = SUFFIX.chains


@dataclass
class Entered:
    """What enters at one step, mutable so that one thing can be changed."""

    tokens: Tensor
    prefix_lengths: list[int]
    rows: TargetRows
    inputs: Tensor


def entered(step: int, task: Task = SUFFIX) -> Entered:
    tokens = torch.arange(step, step + 24).reshape(3, 8)
    lengths = [2, 3, 5]
    examples = task.examples(MaskKind.PREFIX, tokens, lengths, f"0 {step}")
    return Entered(tokens, lengths, examples.rows, examples.inputs)


def history(
    change: Callable[[Entered], None] = lambda _: None, at: int = -1, task: Task = SUFFIX
) -> list[dict[str, str]]:
    """The chains after every step, with one thing changed at one of them."""
    consumption, found = Consumption.of(task), []
    for step in range(STEPS):
        this = entered(step, task)
        if step == at:
            change(this)
        consumption.add(this.tokens, this.prefix_lengths, Examples(this.inputs, this.rows))
        found.append(dict(consumption.chains))
    return found


def change_token(this: Entered) -> None:
    this.tokens = this.tokens.clone()
    this.tokens[2, 7] += 1


def swap_tokens(this: Entered) -> None:
    this.tokens = this.tokens.flip(0)


def change_prefix(this: Entered) -> None:
    this.prefix_lengths[1] = 4


def change_row(this: Entered) -> None:
    this.rows = TargetRows(this.rows.sequences, this.rows.rows.clone(), this.rows.targets)
    this.rows.rows[0] += 1


def change_target(this: Entered) -> None:
    this.rows = TargetRows(this.rows.sequences, this.rows.rows, this.rows.targets + 1)


def change_sequence(this: Entered) -> None:
    this.rows = TargetRows(this.rows.sequences.flip(0), this.rows.rows, this.rows.targets)


def change_input(this: Entered) -> None:
    this.inputs = this.inputs.clone()
    this.inputs[1, 2] = 98


def drop_row(this: Entered) -> None:
    this.rows = TargetRows(this.rows.sequences[1:], this.rows.rows[1:], this.rows.targets[1:])


@pytest.mark.parametrize("at", range(STEPS))
@pytest.mark.parametrize(
    ("change", "chain"),
    [
        (change_token, "tokens"), (swap_tokens, "tokens"), (change_prefix, "prefix_lengths"), (change_row, "target_rows"),
        (change_target, "target_rows"), (change_sequence, "target_rows"), (drop_row, "target_rows"),
    ],
)  # fmt: skip
def test_one_change_breaks_its_own_chain_from_its_step_on(
    change: Callable[[Entered], None], chain: str, at: int
) -> None:
    for step, (found, expected) in enumerate(zip(history(change, at), history(), strict=True)):
        for name in CHAINS:
            assert (found[name] == expected[name]) == (name != chain or step < at), (step, name)


@pytest.mark.parametrize("at", range(STEPS))
def test_what_a_masked_arm_reads_has_a_chain_of_its_own(at: int) -> None:
    assert MASKED.chains == (*CHAINS, "inputs")
    for step, (found, expected) in enumerate(zip(history(change_input, at, MASKED), history(task=MASKED), strict=True)):
        for name in MASKED.chains:
            assert (found[name] == expected[name]) == (name != "inputs" or step < at), (step, name)
    assert history(change_input, at) == history()  # without an objective that changes them, inputs are the tokens


def test_equal_histories_have_equal_chains_and_every_step_a_new_one() -> None:
    chains = history()
    assert chains == history()
    for name in CHAINS:
        assert len({step[name] for step in chains}) == STEPS
        assert all(len(step[name]) == 64 for step in chains)
    assert Consumption.of(SUFFIX).chains == dict.fromkeys(CHAINS, "")


@given(st.integers(0, STEPS))
def test_chains_continue_where_they_stood(split: int) -> None:
    consumption = Consumption.of(SUFFIX)
    for step in range(STEPS):
        if step == split:
            consumption = Consumption(consumption.chains)
        this = entered(step)
        consumption.add(this.tokens, this.prefix_lengths, Examples(this.inputs, this.rows))
    assert consumption.chains == history()[-1]


def test_the_order_of_steps_matters() -> None:
    forwards, backwards = Consumption.of(SUFFIX), Consumption.of(SUFFIX)
    for one, other in zip((0, 1), (1, 0), strict=True):
        for consumption, step in ((forwards, one), (backwards, other)):
            this = entered(step)
            consumption.add(this.tokens, [2, 3, 5], Examples(this.inputs, this.rows))
    assert forwards.chains["tokens"] != backwards.chains["tokens"]


def test_given_chains_are_copied_not_shared() -> None:
    chains = dict.fromkeys(CHAINS, "")
    consumption = Consumption(chains)
    this = entered(0)
    consumption.add(this.tokens, this.prefix_lengths, Examples(this.inputs, this.rows))
    assert chains == dict.fromkeys(CHAINS, "")


def test_layout_in_memory_does_not_matter() -> None:
    tokens = torch.arange(24).reshape(8, 3).T  # not contiguous
    examples = SUFFIX.examples(MaskKind.CAUSAL, tokens, [2, 3, 5], "")
    one, other = Consumption.of(SUFFIX), Consumption.of(SUFFIX)
    one.add(tokens, [2, 3, 5], examples)
    other.add(tokens.contiguous(), (2, 3, 5), examples)
    assert one.chains == other.chains


def test_arms_consume_alike_but_for_the_objective() -> None:
    tokens, lengths = torch.arange(24).reshape(3, 8), [2, 3, 5]
    tasks = (SUFFIX, MaskKind.CAUSAL), (SUFFIX, MaskKind.PREFIX), (NextTokens(Objective.FULL), MaskKind.CAUSAL), \
        (MASKED, MaskKind.BIDIRECTIONAL), (MASKED, MaskKind.MIXED_HEADS)  # fmt: skip
    found = []
    for task, mask in tasks:
        consumption = Consumption.of(task)
        consumption.add(tokens, lengths, task.examples(mask, tokens, lengths, "0 0"))
        found.append(consumption.chains)
    gpt, unilm, full, bert, mixed = found
    assert gpt == unilm
    assert bert == mixed
    for other in (full, bert):
        assert {name for name in CHAINS if gpt[name] != other[name]} == {"target_rows"}


def test_parameter_hashes_tell_every_bit_shape_dtype_and_name() -> None:
    model = Transformer(model_config())
    before = parameter_hashes(model)
    assert before == parameter_hashes(Transformer(model_config()))
    assert before.keys() == dict(model.named_parameters()).keys()
    with torch.no_grad():
        weight = model.blocks[1].mlp.input.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(1.0))
    changed = parameter_hashes(model)
    assert {name for name in before if before[name] != changed[name]} == {"blocks.1.mlp.input.weight"}
    x = torch.arange(6.0)
    variants = [{"x": x}, {"y": x}, {"x": x.reshape(2, 3)}, {"x": x.double()}, {"x": x.view(torch.int32)}, {"x": -x}]
    assert len({tensors_hash(variant) for variant in variants}) == len(variants)


def test_hashes_do_not_depend_on_the_order_in_which_tensors_are_given() -> None:
    x, y = torch.zeros(2), torch.ones(3)
    assert tensors_hash({"x": x, "y": y}) == tensors_hash({"y": y, "x": x})
    assert tensors_hash({"x": x, "y": y}) != tensors_hash({"x": y, "y": x})
    assert parameter_hashes(nn.Linear(1, 1)).keys() == {"weight", "bias"}
