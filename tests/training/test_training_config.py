"""Arms as declared differences, every refusal, and prefix lengths that leave something to predict."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import arm, model_config

from rankkit.errors import ConfigurationError
from rankkit.masks import MaskKind
from rankkit.training import (
    ARMS,
    ArmConfig,
    InitialWeights,
    Objective,
    RunConfig,
    TrainConfig,
    arm_config,
    differing_fields,
)
from rankkit.training.presets import PRESETS, preset

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "some"}, "objective must be one of suffix, full, masked, got 'some'. Choose one of them"),
        ({"precision": "float16"}, "precision must be one of float32, bfloat16, got 'float16'. Choose one of them"),
        *(({name: 0}, f"{name} must be at least 1, got 0. Choose a positive number")
          for name in ("steps", "batch_size", "prefix_multiple", "evaluation_sequences", "evaluation_interval",
                       "checkpoint_interval", "log_interval")),
        *(({name: value}, f"{name} must be positive, got {value}. Choose a positive number")
          for name in ("learning_rate", "gradient_clip") for value in (0.0, -1.0, NAN, INF)),
        *(({name: value}, f"{name} must be between 0 and 1, got {value}. Choose a fraction")
          for name in ("final_learning_rate_fraction", "warmup_fraction", "prefix_lowest", "prefix_highest")
          for value in (-0.1, 1.1, NAN)),
        *(({name: value}, f"{name} must be at least 0 and below 1, got {value}. AdamW divides by 1 - {name}")
          for name in ("beta1", "beta2") for value in (-0.1, 1.0, NAN)),
        *(({"weight_decay": value}, f"weight_decay must be at least 0, got {value}. Use 0 for none")
          for value in (-0.1, NAN, INF)),
        *(({"masked_fraction": value}, f"masked_fraction must be above 0 and below 1, got {value}. Choose for example")
          for value in (-0.1, 0.0, 1.0, NAN)),
        *(({"prefix_fraction": value}, f"prefix_fraction must be at least 0 and below 1, got {value}. A prefix of the")
          for value in (-0.1, 1.0, NAN)),
        ({"prefix_lowest": 0.6, "prefix_highest": 0.5}, r"prefix_lowest must be at most prefix_highest \(0.5\), got 0.6"),
        ({"micro_batch_size": 3}, r"micro_batch_size must divide batch_size \(16\), got 3. Choose a divisor, or 0"),
        ({"micro_batch_size": 32}, r"micro_batch_size must divide batch_size \(16\), got 32"),
        ({"micro_batch_size": -1}, r"micro_batch_size must divide batch_size \(16\), got -1"),
    ],
)  # fmt: skip
def test_impossible_training_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TrainConfig(**changes)


def test_limits_that_are_possible_are_accepted() -> None:
    TrainConfig(
        warmup_fraction=1.0, final_learning_rate_fraction=0.0, weight_decay=0.0, beta1=0.0, beta2=0.0, prefix_fraction=0.0,
        micro_batch_size=16,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        ({}, {"prefix_fraction": 0.99}, "prefix_length must leave a suffix of 32 tokens to predict, got 32. Shorten the"),
        ({}, {"prefix_highest": 1.0}, "prefix_length must leave a suffix of 32 tokens to predict, got 32"),
        ({"sequence_length": 4}, {}, "prefix_multiple must have a multiple between 0.25 and 0.75 of 4 tokens, got 8"),
        ({"mask": "bidirectional"}, {}, "objective must not predict tokens that the mask shows, got objective suffix with "
         "mask bidirectional and a prefix of 24: rows see the token after them, .* Use objective masked or mask causal"),
        ({"mask": "backward"}, {}, "objective must not predict .* mask backward"),
        ({"mask": "backward"}, {"prefix_fraction": 0.95}, "objective must not predict .* mask backward"),
        ({"mask": "prefix"}, {"objective": "full"}, "objective must not predict tokens .* objective full with mask prefix"),
        ({"mask": "mixed-heads"}, {}, "objective must not predict .* objective suffix with mask mixed-heads and a prefix"),
        ({"mask": "mixed-layers"}, {"objective": "full"}, "objective must not predict .* objective full with mask mixed-l"),
        ({}, {"objective": "masked", "masked_fraction": 0.99}, r"masked_fraction must leave a token of 32 \(sequence_leng"),
        ({"mask": "prefix"}, {"objective": "full", "prefix_fraction": 0.0625}, "objective must not .* a prefix of 2"),
    ],
)  # fmt: skip
def test_arms_that_predict_nothing_or_what_they_see_are_refused(
    model: dict[str, Any], train: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ArmConfig(model=model_config(**model), train=TrainConfig(**train))


@given(st.integers(2, 40), st.integers(0, 39), st.sampled_from(list(MaskKind)), st.sampled_from(list(Objective)))
def test_an_arm_is_accepted_exactly_if_no_predicting_row_sees_its_target(
    n: int, p: int, mask: MaskKind, objective: Objective
) -> None:
    """By the definition: the mask's matrix and the rows of the objective; a masked token is not in the input."""
    p = min(p, n - 1)
    first = 0 if objective is Objective.FULL else max(p - 1, 0)
    allowed = torch.stack([each.allowed(n) for each in mask.masks(p)]).any(dim=0)
    leaks = any(bool(allowed[row, row + 1]) for row in range(first, n - 1)) and objective is not Objective.MASKED
    train = TrainConfig(objective=objective, prefix_fraction=p / n)
    assert train.prefix_lengths(n).choices == (p,)
    model = model_config(mask=mask, sequence_length=n)
    if leaks:
        with pytest.raises(ConfigurationError, match="objective must not predict tokens that the mask shows"):
            ArmConfig(model=model, train=train)
    else:
        ArmConfig(model=model, train=train)


def test_full_objective_is_allowed_with_a_prefix_of_one_token_which_is_causal() -> None:
    config = ArmConfig(
        model=model_config(mask="prefix"), train=TrainConfig(objective=Objective.FULL, prefix_fraction=1 / 32)
    )
    assert config.train.evaluation_prefix_length(32) == 1


@given(st.integers(2, 2000), st.floats(0, 0.999))
def test_evaluation_uses_half_of_the_sequence_or_the_one_fraction(n: int, fraction: float) -> None:
    assert TrainConfig().evaluation_prefix_length(n) == round(n / 2)
    train = TrainConfig(prefix_fraction=fraction)
    assert train.evaluation_prefix_length(n) == round(fraction * n)
    assert train.prefix_lengths(n).choices == (round(fraction * n),)


def test_default_prefixes_are_multiples_of_eight_in_the_middle_half() -> None:
    assert TrainConfig().prefix_lengths(256).choices == tuple(range(64, 193, 8))
    assert TrainConfig().prefix_lengths(512).choices == tuple(range(128, 385, 8))


DECLARED = {
    "gpt": (MaskKind.CAUSAL, Objective.SUFFIX),
    "unilm": (MaskKind.PREFIX, Objective.SUFFIX),
    "gpt-full": (MaskKind.CAUSAL, Objective.FULL),
    "bert": (MaskKind.BIDIRECTIONAL, Objective.MASKED),
    "mixed-heads": (MaskKind.MIXED_HEADS, Objective.MASKED),
    "mixed-layers": (MaskKind.MIXED_LAYERS, Objective.MASKED),
}


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize(("one", "other"), list(combinations(ARMS, 2)))
def test_arms_differ_in_what_they_declare_and_in_nothing_else(name: str, one: str, other: str) -> None:
    base = PRESETS[name]()
    values = zip(("mask", "objective"), DECLARED[one], DECLARED[other], strict=True)
    expected = {field: (first, second) for field, first, second in values if first != second}
    assert expected
    assert differing_fields(arm_config(base, one), arm_config(base, other)) == expected


def test_an_arm_does_not_depend_on_the_arm_that_the_base_was() -> None:
    for name in ARMS:
        assert arm_config(arm("gpt-full"), name) == arm_config(arm("unilm"), name)


def test_every_changed_field_is_found() -> None:
    one = arm("gpt")
    other = replace(
        one, model=replace(one.model, d_model=8), train=replace(one.train, steps=7), data=replace(one.data, text=("a",))
    )
    assert differing_fields(one, other) == {"d_model": (16, 8), "steps": (12, 7), "text": ((), ("a",))}
    assert differing_fields(one, one) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ()}, r"arms must be named once each, got \[\]. Remove the repetition"),
        ({"arms": ("gpt", "gpt")}, r"arms must be named once each, got \['gpt', 'gpt'\]"),
        (
            {"arms": ("gpt", "t5")},
            "arm must be one of gpt, unilm, gpt-full, bert, mixed-heads, mixed-layers, got 't5'. Choose",
        ),
        (
            {"initial": InitialWeights(source="r/gpt@3", batches=3, same_text=True, sha256=("a", "b"))},
            r"initial.sha256 must have one entry for each of 3 seeds, got 2. Make the run again with --init-from",
        ),
        ({"seeds": ()}, r"seeds must be different numbers of at least 0, got \[\]. Name each seed once"),
        ({"seeds": (1, 1)}, r"seeds must be different numbers of at least 0, got \[1, 1\]"),
        ({"seeds": (0, -1)}, r"seeds must be different numbers of at least 0, got \[0, -1\]"),
    ],
)
def test_impossible_runs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RunConfig(**changes)


@pytest.mark.parametrize("arms", [("gpt",), ("gpt", "unilm", "gpt-full"), ("gpt", "bert"), ("mixed-layers",)])
def test_a_run_needs_an_id_for_hidden_tokens_exactly_if_an_arm_hides_some(arms: tuple[str, ...]) -> None:
    assert RunConfig(arms=arms).needs_mask_id == any(DECLARED[name][1] is Objective.MASKED for name in arms)


def test_units_come_seed_by_seed_with_all_arms_of_each() -> None:
    run = RunConfig(arms=("unilm", "gpt"), seeds=(3, 1))
    assert run.units == [("unilm", 3), ("gpt", 3), ("unilm", 1), ("gpt", 1)]
    assert run.arm("gpt") == arm_config(run.base, "gpt")
    assert RunConfig().seeds == (0, 1, 2)


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"preset must be one of tiny, small, base, got 'huge'\. Choose one"):
        preset("huge")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_make_every_arm(name: str) -> None:
    for arm_name in ARMS:
        config = arm_config(PRESETS[name](), arm_name)
        tokenizer = config.data.tokenizer
        assert config.model.vocab_size == (257 if tokenizer == "bytes" else config.data.byte_pair_vocabulary)
