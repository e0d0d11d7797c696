"""One optimizer step: schedule, gradient, decay, clipping, and what it counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import CPU, N, arm, run_in, tokens_in, trainer
from torch import Tensor

from rankkit.data import open_tokens
from rankkit.data.stream import Batch
from rankkit.errors import ConfigurationError, NonFiniteLossError
from rankkit.files import RunDirectory
from rankkit.training import TrainConfig, Trainer
from rankkit.training import trainer as trainer_module
from rankkit.training.consumption import Consumption, parameter_hashes
from rankkit.training.objective import Examples, TargetRows
from rankkit.training.trainer import learning_rate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_in(tmp_path_factory.mktemp("run"))


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1), st.floats(1e-6, 1.0))
def test_learning_rate_rises_linearly_to_its_peak_and_falls_to_its_final_fraction(
    steps: int, warmup_fraction: float, final: float, peak: float
) -> None:
    config = TrainConfig(
        steps=steps, warmup_fraction=warmup_fraction, final_learning_rate_fraction=final, learning_rate=peak
    )
    rates = np.array([learning_rate(config, step) for step in range(steps)])
    warmup = max(1, round(warmup_fraction * steps))
    np.testing.assert_allclose(rates[:warmup], peak * np.arange(1, warmup + 1) / warmup, rtol=1e-12)
    assert rates.max() == pytest.approx(peak)
    assert (np.diff(rates[warmup - 1 :]) <= 1e-15).all()
    assert rates.min() > 0 or final == 0
    if steps > warmup:
        assert learning_rate(config, steps) == pytest.approx(peak * final, abs=1e-15)
        assert learning_rate(config, warmup) == pytest.approx(peak)


def test_learning_rate_at_known_steps() -> None:
    config = TrainConfig(steps=110, warmup_fraction=0.0909, learning_rate=1.0, final_learning_rate_fraction=0.2)
    found = [learning_rate(config, step) for step in (0, 4, 9, 10, 35, 60, 85, 110)]
    quarter = math.sqrt(0.5)
    expected = [0.1, 0.5, 1.0, 1.0, 0.2 + 0.4 * (1 + quarter), 0.6, 0.2 + 0.4 * (1 - quarter), 0.2]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def gradients(config: Any, run: RunDirectory) -> tuple[float, int, dict[str, Tensor]]:
    it = trainer(config, run)
    it.model.double()
    loss, count = it._accumulate_gradients()
    return loss, count, {name: parameter.grad for name, parameter in it.model.named_parameters()}


@pytest.mark.parametrize("name", ["gpt", "unilm", "gpt-full", "bert", "mixed-heads"])
def test_micro_batches_give_the_gradient_and_loss_of_the_whole_batch(name: str, run: RunDirectory) -> None:
    model = {"vocab_size": 258}
    loss, count, whole = gradients(arm(name, model=model, batch_size=8), run)
    for size in (1, 2, 4, 8):
        part_loss, part_count, parts = gradients(arm(name, model=model, batch_size=8, micro_batch_size=size), run)
        assert part_count == count
        assert part_loss == pytest.approx(loss, rel=1e-7)
        for key, gradient in whole.items():  # float64 but for the cross-entropy, which is float32
            torch.testing.assert_close(parts[key], gradient, rtol=1e-5, atol=1e-8, msg=key)


@pytest.mark.parametrize("name", ["gpt", "unilm", "gpt-full"])
def test_loss_is_the_mean_over_all_predicted_tokens_of_the_batch(name: str, run: RunDirectory) -> None:
    """Not the mean of the sequences' means: prefixes differ, so sequences predict different numbers of tokens."""
    config = arm(name, batch_size=8)
    loss, count, found = gradients(config, run)
    it = trainer(config, run)
    it.model.double()
    batch = it.stream.batch(0)
    assert len(set(batch.prefix_lengths)) > 1
    tokens = torch.from_numpy(batch.tokens)
    logits = it.model.logits(it.model(tokens, batch.prefix_lengths))
    firsts = [1 if name == "gpt-full" else p for p in batch.prefix_lengths]
    terms = torch.cat([
        F.cross_entropy(logits[s, first - 1 : N - 1], tokens[s, first:], reduction="none")
        for s, first in enumerate(firsts)
    ])  # fmt: skip
    assert count == len(terms) == sum(N - first for first in firsts)
    assert loss == pytest.approx(float(terms.detach().mean()), rel=1e-6)
    terms.mean().backward()
    for key, parameter in it.model.named_parameters():
        torch.testing.assert_close(found[key], parameter.grad, rtol=1e-4, atol=1e-7, msg=key)


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_what_is_hashed_is_what_enters_the_loss(name: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    it, entered = trainer(arm(name, model={"vocab_size": 258}, batch_size=4, micro_batch_size=2), run), []
    original = trainer_module.token_losses

    def token_losses(model: Any, inputs: Tensor, lengths: Any, rows: Any) -> Tensor:
        entered.append((inputs, lengths, rows))
        return original(model, inputs, lengths, rows)

    monkeypatch.setattr(trainer_module, "token_losses", token_losses)
    chains = it.train_step().chains
    rows = [torch.cat([getattr(part[2], name) for part in entered]) for name in ("sequences", "rows", "targets")]
    rows[0] += 2 * torch.cat([torch.full_like(part[2].rows, index) for index, part in enumerate(entered)])
    consumption = Consumption.of(it.config.task)
    inputs = torch.cat([part[0] for part in entered])
    tokens = torch.from_numpy(it.stream.batch(0).tokens)
    assert torch.equal(inputs, tokens) == (name == "gpt")
    consumption.add(tokens, [p for part in entered for p in part[1]], Examples(inputs, TargetRows(*rows)))
    assert consumption.chains == chains


def test_a_masked_arm_needs_an_id_that_no_token_has(run: RunDirectory) -> None:
    with pytest.raises(
        ConfigurationError, match=r"vocab_size must be at least 258 \(that of the tokens and the id of a hid"
    ):
        trainer(arm("bert"), run)


def test_a_stream_goes_on_where_earlier_weights_stopped_reading_it(run: RunDirectory) -> None:
    """Batches and what is hidden of them: the fourth step of one trainer is the first of another."""
    config = arm("bert", model={"vocab_size": 258})
    early, late = (
        Trainer(config, seed=0, tokens=open_tokens(run.tokens), device=CPU, first_batch=first) for first in (0, 3)
    )
    for _ in range(3):
        early.train_step()
    early.consumption = Consumption.of(config.task)
    assert early.train_step().chains == late.train_step().chains


def test_decay_shrinks_matrices_by_rate_times_decay_and_leaves_gains_alone(run: RunDirectory) -> None:
    it = trainer(arm(weight_decay=0.5, learning_rate=0.1, warmup_fraction=0.0), run)
    before = {name: parameter.detach().clone() for name, parameter in it.model.named_parameters()}
    for parameter in it.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    it.optimizer.step()
    for name, parameter in it.model.named_parameters():
        factor = 0.95 if parameter.dim() >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name], rtol=1e-6, atol=0, msg=name)
    grouped = [id(parameter) for group in it.optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in it.model.parameters())


def test_optimizer_is_adamw_with_the_configured_numbers(run: RunDirectory) -> None:
    config = arm(beta1=0.8, beta2=0.9, weight_decay=0.3, learning_rate=0.01, warmup_fraction=0.0)
    it = trainer(config, run)
    before = {name: parameter.detach().double() for name, parameter in it.model.named_parameters()}
    recorded: dict[str, Tensor] = {}
    it.optimizer.register_step_pre_hook(
        lambda *_: recorded.update({n: p.grad.double().clone() for n, p in it.model.named_parameters()})
    )
    record = it.train_step()
    assert record.learning_rate == 0.01
    for name, parameter in it.model.named_parameters():
        gradient, decay = recorded[name], 0.3 if parameter.dim() >= 2 else 0.0
        # Bias correction makes the moments of the first step the gradient and its square.
        expected = before[name] * (1 - 0.01 * decay) - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_the_whole_gradient_is_clipped_and_its_norm_before_clipping_is_recorded(clip: float, run: RunDirectory) -> None:
    it = trainer(arm(gradient_clip=clip), run)
    norms: list[float] = []
    it.optimizer.register_step_pre_hook(
        lambda *_: norms.append(float(torch.cat([p.grad.flatten() for p in it.model.parameters()]).norm()))
    )
    record = it.train_step()
    unclipped = trainer(arm(), run)
    unclipped._accumulate_gradients()
    full = float(torch.cat([p.grad.flatten() for p in unclipped.model.parameters() if p.grad is not None]).norm())
    assert record.gradient_norm == pytest.approx(full, rel=1e-5)
    assert norms[0] == pytest.approx(min(full, clip), rel=1e-3)  # torch divides by norm + 1e-6
    assert all(parameter.grad is None for parameter in it.model.parameters())


def test_a_step_counts_tokens_and_takes_the_next_batch(run: RunDirectory) -> None:
    it, used = trainer(arm(), run), []
    it.optimizer.register_step_pre_hook(lambda *_: used.append({group["lr"] for group in it.optimizer.param_groups}))
    predicted = 0
    for step in range(3):
        batch = it.stream.batch(step)
        record = it.train_step()
        predicted += sum(N - p for p in batch.prefix_lengths)
        assert (record.step, it.step) == (step + 1, step + 1)
        assert record.tokens == (step + 1) * 2 * N
        assert record.loss_tokens == it.loss_tokens == predicted
        assert record.learning_rate == learning_rate(it.config.train, step)
        assert used[step] == {record.learning_rate}
        assert record.chains == it.consumption.chains
        assert record.chains is not it.consumption.chains
        assert set(record.chains) == set(it.config.task.chains)


def test_matched_arms_begin_alike_consume_alike_and_learn_differently(run: RunDirectory) -> None:
    one, other = trainer(arm("gpt"), run), trainer(arm("unilm"), run)
    assert parameter_hashes(one.model) == parameter_hashes(other.model)
    records = [(one.train_step(), other.train_step()) for _ in range(2)]
    for first, second in records:
        assert first.chains == second.chains
        assert first.loss_tokens == second.loss_tokens
    assert records[1][0].loss != records[1][1].loss
    assert (one.evaluation_tokens == other.evaluation_tokens).all()
    assert one.prefix_length == other.prefix_length == N // 2


def test_one_swapped_batch_breaks_the_chains(run: RunDirectory) -> None:
    one, other = trainer(arm("gpt"), run), trainer(arm("unilm"), run)
    original = other.stream.batch
    other.stream.batch = lambda step: original(7 if step == 1 else step)  # type: ignore[method-assign]
    assert one.train_step().chains == other.train_step().chains
    assert one.train_step().chains != other.train_step().chains
    assert one.train_step().chains != other.train_step().chains


def test_training_lowers_the_loss(run: RunDirectory) -> None:
    it = trainer(arm(steps=60, batch_size=8, learning_rate=1e-2), run)
    before = it.evaluate().loss
    for _ in range(60):
        it.train_step()
    assert it.evaluate().loss < before - 1.5


def test_evaluating_between_steps_changes_no_bit_of_training(run: RunDirectory) -> None:
    plain, watched = trainer(arm(), run), trainer(arm(), run)
    for _ in range(3):
        plain.train_step()
        watched.evaluate()
        watched.evaluate_without_attention()
        watched.train_step()
    assert parameter_hashes(plain.model) == parameter_hashes(watched.model)


def test_evaluation_without_attention_differs_once_attention_has_learnt(run: RunDirectory) -> None:
    it = trainer(arm(steps=30, learning_rate=1e-2), run)
    for _ in range(30):
        it.train_step()
    assert it.evaluate_without_attention().loss != it.evaluate().loss


def test_bfloat16_is_autocast_around_float32_weights(run: RunDirectory) -> None:
    single, half = trainer(arm(), run), trainer(arm(precision="bfloat16"), run)
    losses = single.train_step().loss, half.train_step().loss
    assert all(parameter.dtype is torch.float32 for parameter in half.model.parameters())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)  # eight bits of mantissa
    assert half.evaluate().loss == pytest.approx(single.evaluate().loss, rel=1e-2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_its_step_and_leaves_the_weights(
    value: float, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = trainer(arm(), run)
    it.train_step()
    before, consumed = parameter_hashes(it.model), dict(it.consumption.chains)
    original = trainer_module.token_losses
    monkeypatch.setattr(trainer_module, "token_losses", lambda *arguments: original(*arguments) * value)
    message = rf"must stay finite, got loss {value} and gradient norm nan at step 2\. Step 1 was saved; lower train\."
    with pytest.raises(NonFiniteLossError, match=message):
        it.train_step()
    assert parameter_hashes(it.model) == before
    assert it.step == 1
    assert it.consumption.chains == consumed
    assert all(parameter.grad is None for parameter in it.model.parameters())


def test_a_gradient_that_is_not_finite_stops_even_where_the_loss_is(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * math.inf

    it, original = trainer(arm(), run), trainer_module.token_losses
    before = parameter_hashes(it.model)
    monkeypatch.setattr(trainer_module, "token_losses", lambda *arguments: Broken.apply(original(*arguments)))
    with pytest.raises(NonFiniteLossError, match=r"got loss 5\.\d+ and gradient norm (nan|inf) at step 1\."):
        it.train_step()
    assert parameter_hashes(it.model) == before


def test_an_evaluation_that_is_not_finite_names_its_step(run: RunDirectory) -> None:
    it = trainer(arm(), run)
    it.train_step()
    with torch.no_grad():
        it.model.norm.weight.fill_(math.inf)
    for evaluation in (it.evaluate, it.evaluate_without_attention):
        with pytest.raises(NonFiniteLossError, match=r"evaluation loss must stay finite, got nan at step 1\. Lower"):
            evaluation()


def test_text_beyond_the_vocabulary_is_refused(run: RunDirectory) -> None:
    with pytest.raises(ConfigurationError, match=r"vocab_size must be at least 257 \(that of the tokens\), got 256"):
        trainer(arm(model={"vocab_size": 256}), run)


def test_stream_of_an_arm_is_the_trainers(tmp_path: Path) -> None:
    tokens = tokens_in(tmp_path)
    config = arm()
    it = Trainer(config, seed=3, tokens=tokens, device=torch.device("cpu"))
    found: list[Batch] = [it.stream.batch(2), Trainer.stream_of(config, seed=3, tokens=tokens).batch(2)]
    assert (found[0].tokens == found[1].tokens).all()
    assert found[0].prefix_lengths == found[1].prefix_lengths
