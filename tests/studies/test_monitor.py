"""A monitor measures what capture and spectrum measure, and training goes on as if it had not been there."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import model_config
from torch import Tensor, nn

import rankkit
from rankkit.errors import CaptureError, ConfigurationError
from rankkit.models import Transformer
from rankkit.spectra import MatrixFreeConfig
from rankkit.studies.monitoring import monitor as monitor_module
from rankkit.studies.monitoring.undisturbed import undisturbed

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")

LENGTH, VOCABULARY = 12, 20
SMALL = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}


class SelfMade(nn.Module):
    """One block that calls SDPA, and changes itself in every forward pass: a counter, a buffer, a cached table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 24)])
        self.dropout = nn.Dropout(0.5)
        self.calls = 0
        self.register_buffer("counted", torch.zeros(3))

    def forward(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        self.counted += 1
        self.register_buffer("table", torch.arange(tokens.shape[1]))
        torch.rand(3, device=tokens.device)  # a model may draw in evaluation mode too
        x = self.embedding(tokens)
        query, key, value = (part[:, None] for part in self.blocks[0](x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)[:, 0]
        return self.dropout(x + mixed) @ self.embedding.weight.T


def own() -> Transformer:
    return Transformer(model_config(vocab_size=VOCABULARY, sequence_length=LENGTH), seed=1).train()


def gpt2(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(**SMALL, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2, **changes)
    model = transformers.GPT2LMHeadModel(config).train()
    model.transformer.h[1].eval()  # somebody's frozen block
    return model


def self_made() -> SelfMade:
    torch.manual_seed(0)
    return SelfMade()


def some_tokens(seed: int = 0, sequences: int = 3) -> Tensor:
    return torch.randint(2, VOCABULARY, (sequences, LENGTH), generator=torch.Generator().manual_seed(seed))


def probe_of(model: nn.Module) -> Any:
    return (some_tokens(), 4) if isinstance(model, Transformer) else some_tokens()


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    if isinstance(model, Transformer):
        return model.logits(model(tokens, 0))
    found = model(tokens)
    return found if isinstance(found, Tensor) else found.logits


MODELS: list[Callable[[], nn.Module]] = [own, gpt2, self_made]


# What is measured.


@pytest.mark.parametrize("make", MODELS)
def test_values_are_means_of_the_spectra_of_captured_attention(make: Callable[[], nn.Module]) -> None:
    model = make()
    monitor = rankkit.Monitor(model, probe_of(model), every=1, measures=("effective_rank", "sink_mass"))
    logged = monitor(3)
    assert logged is not None
    copied, inputs = copy.deepcopy(model).eval(), probe_of(model)
    with torch.no_grad(), rankkit.capture(copied) as attention:
        copied(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    found: dict[int, list[Tensor]] = {}
    for operator in attention:
        spectrum = rankkit.spectrum(operator, measures=("effective_rank", "sink_mass"))
        found.setdefault(operator.labels["layer"], []).append(  # type: ignore[arg-type]
            torch.stack([spectrum.effective_rank, spectrum.sink_mass])
        )
    every = []
    for layer, parts in found.items():
        whole = torch.stack(parts)  # "sequence measure head"
        every.append(whole)
        for index, name in enumerate(("effective_rank", "sink_mass")):
            assert logged[f"rank/{name}/layer_{layer}"] == pytest.approx(float(whole[:, index].mean()), rel=1e-12)
            np.testing.assert_array_equal(monitor.history.values[name][0, :, layer], whole[:, index].numpy())
    assert logged["rank/effective_rank/mean"] == pytest.approx(float(torch.stack(every)[:, :, 0].mean()), rel=1e-12)


def test_heads_under_masks_of_their_own_stand_in_their_places() -> None:
    """Nearly uniform attention rests on the first key where rows look back, on the last where they look ahead."""
    config = model_config(vocab_size=VOCABULARY, sequence_length=LENGTH, mask="mixed-heads")
    model = Transformer(config, seed=1)
    monitor = rankkit.Monitor(model, probe_of(model), every=1, measures=("diagonal_mass", "sink_position"))
    monitor(0)
    sinks = monitor.history.values["sink_position"][0]  # "sequence layer head"
    assert (sinks[..., :2] == 0).all()
    assert (sinks[..., 2] == LENGTH - 1).all()


def test_names_of_what_is_logged_are_the_documented_ones() -> None:
    logged: list[tuple[dict[str, float], int]] = []
    monitor = rankkit.Monitor(gpt2(), some_tokens(), log=lambda values, step: logged.append((values, step)))
    assert monitor(0) == logged[0][0]
    layers = ("layer_0", "layer_1", "mean")
    measures = ("effective_rank", "stable_rank", "sink_mass")
    expected = {f"rank/{measure}/{layer}" for measure in measures for layer in layers}
    assert logged[0][0].keys() == expected | {"rank/failed", "rank/seconds_share"}
    assert logged[0][1] == 0
    assert all(type(value) is float for value in logged[0][0].values())


def test_stacks_and_cross_attention_have_names_of_their_own() -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(**SMALL, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, pad_token_id=0,
                                   decoder_start_token_id=0)  # fmt: skip
    inputs = {"input_ids": some_tokens(), "decoder_input_ids": some_tokens(1)[:, :5]}
    monitor = rankkit.Monitor(transformers.T5ForConditionalGeneration(config), inputs, measures=("stable_rank",))
    monitor(0)
    assert monitor.history.layers == ("encoder/layer_0", "decoder/layer_0", "decoder/cross/layer_0")
    assert monitor.history.values["stable_rank"].shape == (1, 3, 3, 2)


def test_layers_and_heads_are_chosen() -> None:
    model = own()
    monitor = rankkit.Monitor(model, probe_of(model), layers=[1], heads=[0, 2], measures=("stable_rank",))
    monitor(0)
    assert monitor.history.layers == ("layer_1",)
    assert monitor.history.values["stable_rank"].shape == (1, 3, 1, 2)


def test_an_estimate_is_logged_as_the_ends_of_its_bracket() -> None:
    model = own()
    monitor = rankkit.Monitor(
        model, probe_of(model), measures=("effective_rank", "stable_rank"), method="matrix-free", layers=[0],
        matrix_free=MatrixFreeConfig(leading=2, probes=8, steps=8),
    )  # fmt: skip
    logged = monitor(0)
    assert logged is not None
    assert "rank/effective_rank/layer_0" not in logged
    assert logged["rank/effective_rank_lower/layer_0"] <= logged["rank/effective_rank_upper/layer_0"]
    assert logged["rank/stable_rank/layer_0"] >= 1  # known exactly from the leading value and the norm


def test_a_measure_that_does_not_hold_is_named_with_its_reason() -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(**SMALL, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, pad_token_id=0,
                                   decoder_start_token_id=0)  # fmt: skip
    inputs = {"input_ids": some_tokens(), "decoder_input_ids": some_tokens(1)[:, :5]}
    monitor = rankkit.Monitor(
        transformers.T5ForConditionalGeneration(config), inputs, measures=("log_abs_det", "stable_rank")
    )
    logged = monitor(0)
    assert logged is not None
    assert monitor.unavailable == {"log_abs_det": "it needs as many rows as columns"}  # of cross attention
    assert math.isnan(logged["rank/log_abs_det/decoder/cross/layer_0"])
    assert logged["rank/log_abs_det/decoder/layer_0"] < 0
    assert logged["rank/log_abs_det/mean"] == pytest.approx(
        float(np.nanmean(monitor.history.values["log_abs_det"])), rel=1e-12
    )


def test_padding_is_left_out() -> None:
    mask = torch.ones(3, LENGTH, dtype=torch.int64)
    mask[0, 8:] = 0
    tokens, other = some_tokens(), some_tokens()
    other[0, 8:] = 5
    found = [
        rankkit.Monitor(gpt2(), {"input_ids": ids, "attention_mask": mask})(0) for ids in (tokens, other)
    ]  # fmt: skip
    for one in found:
        assert one is not None
        one.pop("rank/seconds_share")
    assert found[0] == found[1]


def test_a_model_that_has_diverged_is_counted_and_logged() -> None:
    model = own()
    with torch.no_grad():
        model.blocks[1].attention.projection.weight[0, 0] = torch.nan
    monitor = rankkit.Monitor(model, probe_of(model), measures=("stable_rank",))
    logged = monitor(0)
    assert logged is not None
    assert logged["rank/failed"] >= 3  # head 0 of layer 1 in three sequences, and whatever it poisons
    assert logged["rank/stable_rank/layer_0"] >= 1
    assert monitor.history.failed.tolist() == [int(logged["rank/failed"])]


def test_under_autocast_the_model_is_rounded_and_the_measurement_is_not() -> None:
    model = own()
    monitor = rankkit.Monitor(model, probe_of(model), measures=("stable_rank",), every=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        monitor(0)
    monitor(1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), rankkit.capture(model) as attention:
        model(*probe_of(model))
    exact = [rankkit.spectrum(operator, measures=("stable_rank",)).stable_rank for operator in attention]
    rounded, plain = monitor.history.values["stable_rank"]
    np.testing.assert_array_equal(rounded[:, 0], torch.stack(exact[:3]).numpy())
    assert (rounded != plain).any()


# When.


def test_it_probes_at_multiples_of_every_and_once_each() -> None:
    monitor = rankkit.Monitor(self_made(), some_tokens(), every=3, measures=("stable_rank",))
    answers = [monitor(step) is not None for step in (0, 0, 1, 2, 3, 3, 4, 6)]
    assert answers == [True, False, False, False, True, False, False, True]
    monitor.probe(7)
    assert monitor.history.steps.tolist() == [0, 3, 6, 7]


def test_probe_tokens_are_a_copy() -> None:
    tokens = some_tokens()
    monitor = rankkit.Monitor(gpt2(), tokens, every=1, measures=("stable_rank",))
    monitor(0)
    tokens.fill_(3)
    monitor(1)
    first, second = monitor.history.values["stable_rank"]
    np.testing.assert_array_equal(first, second)


def test_history_before_the_first_probe_is_empty() -> None:
    history = rankkit.Monitor(gpt2(), some_tokens()).history
    assert history.steps.shape == history.seconds.shape == (0,)
    assert history.layers == ()
    assert dict(history.values) == {}


def test_history_is_saved_and_read_without_pickle(tmp_path: Path) -> None:
    monitor = rankkit.Monitor(gpt2(), some_tokens(), every=1)
    for step in range(2):
        monitor(step)
    monitor.history.save(tmp_path / "history.npz")
    with np.load(tmp_path / "history.npz", allow_pickle=False) as saved:
        assert set(saved) == {"steps", "layers", "failed", "seconds"} | {
            f"values/{name}" for name in ("effective_rank", "stable_rank", "sink_mass")
        }
        assert saved["steps"].tolist() == [0, 1]
        assert saved["layers"].tolist() == ["layer_0", "layer_1"]
        np.testing.assert_array_equal(saved["values/sink_mass"], monitor.history.values["sink_mass"])
    assert [path.name for path in tmp_path.iterdir()] == ["history.npz"]


def test_share_is_the_probes_part_of_the_time_since_the_monitor_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 110.0, 115.0, 120.0, 150.0, 160.0])  # made, probe from and to, share asked for twice

    def clock() -> float:
        return next(times)

    monkeypatch.setattr(monitor_module.time, "perf_counter", clock)
    monitor = rankkit.Monitor(self_made(), some_tokens(), measures=("stable_rank",))
    logged = monitor(0)
    assert logged is not None
    assert logged["rank/seconds_share"] == 5 / 20
    assert monitor.share == 5 / 50
    assert monitor.history.seconds.tolist() == [5.0]


# Without a trace.


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a probe must leave alone."""
    config = getattr(model, "config", None)
    return {
        "training": [module.training for module in model.modules()],
        "attributes": [{k: id(v) for k, v in vars(module).items()} for module in model.modules()],
        "buffers": [(name, id(b), b.tolist()) for module in model.modules() for name, b in module._buffers.items()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "weights": [(id(p), p._version, p.requires_grad, p.tolist()) for p in model.parameters()],
        "gradients": [(id(p.grad), p.grad._version, p.grad.tolist()) for p in model.parameters() if p.grad is not None],
        "attention": getattr(config, "_attn_implementation", None),
        "generator": torch.get_rng_state().tolist(),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_everything_is_as_it_was(make: Callable[[], nn.Module], fails: bool, autocast: bool) -> None:
    model = make()
    logits_of(model, some_tokens(1)).sum().backward()
    monitor = rankkit.Monitor(model, probe_of(model), every=1, measures=("stable_rank",))
    if fails:
        list(model.modules())[-1].register_forward_hook(refuse)
    with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
        before = state(model)
        with pytest.raises(RuntimeError, match="refused") if fails else nullcontext():
            monitor(0)
        assert state(model) == before


def refuse(*_: Any) -> None:
    raise RuntimeError("refused")


def test_an_error_of_the_log_leaves_everything_as_it_was() -> None:
    model = gpt2()

    def log(values: dict[str, float], step: int) -> None:
        raise OSError("no network")

    monitor = rankkit.Monitor(model, some_tokens(), log=log)
    before = state(model)
    with pytest.raises(OSError, match="no network"):
        monitor(0)
    assert state(model) == before
    assert len(monitor.history.steps) == 1


def test_overridden_train_methods_are_not_called() -> None:
    model = gpt2()
    model.transformer.train = refuse  # merges weights, say
    rankkit.Monitor(model, some_tokens())(0)


def trained(make: Callable[[], nn.Module], *, monitored: bool, autocast: bool) -> Iterator[Tensor]:
    """Weights after some steps with dropout, probed before, inside and after the forward pass's autocast."""
    model = make()
    monitor = rankkit.Monitor(model, probe_of(model), every=1, measures=("stable_rank",)) if monitored else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(3)
    for step in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
            if monitor is not None:
                monitor(step)  # before the weights are cast for the loss, in the same autocast
            logits = logits_of(model, some_tokens(step))
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), some_tokens(step)[:, 1:].flatten())
            if monitor is not None:
                monitor.probe(step)  # with a graph alive
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    yield from (parameter.detach() for parameter in model.parameters())


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_training_is_the_same_to_the_bit(make: Callable[[], nn.Module], autocast: bool) -> None:
    with_it = trained(make, monitored=True, autocast=autocast)
    without = trained(make, monitored=False, autocast=autocast)
    for one, other in zip(with_it, without, strict=True):
        assert torch.equal(one, other)


def test_the_model_runs_under_the_callers_autocast_and_the_measurement_under_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = gpt2()
    seen: list[tuple[Any, ...]] = []

    def look(module: nn.Module, *_: Any) -> None:
        training = [part.training for part in module.modules()]
        autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()
        seen.append((any(training), torch.is_grad_enabled(), *autocast))

    def measure(operator: Any, **options: Any) -> Any:
        seen.append((options["precision"], torch.is_autocast_enabled("cpu")))
        return rankkit.spectrum(operator, **options)

    model.register_forward_hook(look)
    monkeypatch.setattr(monitor_module, "spectrum", measure)
    monitor = rankkit.Monitor(model, some_tokens(), measures=("stable_rank",))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        monitor.probe(0)
    # Without a cache: older torch would compute the next loss from weights that were cast without gradients.
    assert seen == [(torch.bfloat16, False), (torch.bfloat16, False), (False, False, True, False)]
    seen.clear()
    monitor.probe(1)
    assert seen == [(torch.float32, False), (torch.float32, False), (False, False, False, False)]


# The trainer of transformers.


class Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = some_tokens(index, 1)[0]
        return {"input_ids": row, "labels": row}


def train_with_trainer(folder: Path, *, monitored: bool) -> tuple[Any, rankkit.Monitor]:
    model = gpt2()
    monitor = rankkit.Monitor(model, some_tokens(), every=2, measures=("stable_rank",))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=2, report_to=[], disable_tqdm=True, seed=5,
        save_strategy="no", logging_strategy="no", use_cpu=True, learning_rate=1e-2, dataloader_pin_memory=False,
    )  # fmt: skip
    callbacks = [monitor.as_callback()] if monitored else []
    transformers.Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=callbacks).train()
    return model, monitor


def test_the_callback_probes_in_a_trainer_whose_result_stays_the_same_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers.Trainer needs it")
    model, monitor = train_with_trainer(tmp_path, monitored=True)
    assert monitor.history.steps.tolist() == [0, 2, 4]
    first, *_, last = monitor.history.values["stable_rank"]
    assert (first != last).any()
    other, idle = train_with_trainer(tmp_path, monitored=False)
    assert idle.history.steps.tolist() == []
    for one, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, expected)


def test_only_the_main_process_of_a_trainer_probes() -> None:
    monitor = rankkit.Monitor(gpt2(), some_tokens(), every=1, measures=("stable_rank",))
    callback = monitor.as_callback()
    assert isinstance(callback, transformers.TrainerCallback)
    for is_main in (False, True):
        callback.on_step_end(None, transformers.TrainerState(global_step=7, is_world_process_zero=is_main), None)
        assert monitor.history.steps.tolist() == [7] * is_main
    callback.on_train_begin(None, transformers.TrainerState(global_step=8), None)
    assert monitor.history.steps.tolist() == [7, 8]


def test_the_callback_says_that_transformers_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = own()
    monitor = rankkit.Monitor(model, probe_of(model))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigurationError, match=r"transformers must be installed .* pip install 'rankkit\[hf\]'"):
        monitor.as_callback()


# Wrapped models.


class Compiler:
    """A backend that compiles nothing and counts how often it was asked to."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


def whole(model: nn.Module, backend: Compiler) -> nn.Module:
    return torch.compile(model, backend=backend)


def in_place(model: nn.Module, backend: Compiler) -> nn.Module:
    model.compile(backend=backend)
    return model


def in_parts(model: nn.Module, backend: Compiler) -> nn.Module:
    blocks = model.transformer.h if hasattr(model, "transformer") else model.blocks
    for index, block in enumerate(blocks):
        blocks[index] = torch.compile(block, backend=backend)
    return model


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
@pytest.mark.parametrize(("make", "compiled"), [(gpt2, whole), (own, in_place), (gpt2, in_parts)])
def test_a_compiled_model_is_probed_uncompiled_and_not_compiled_again(
    make: Callable[[], nn.Module], compiled: Callable[[nn.Module, Compiler], nn.Module]
) -> None:
    torch._dynamo.reset()
    model, backend = make(), Compiler()
    expected = rankkit.Monitor(model, probe_of(model), measures=("stable_rank",)).probe(0)
    inputs = (some_tokens(), 0) if isinstance(model, Transformer) else (some_tokens(),)
    faster = compiled(model, backend)
    for _ in range(2):
        faster(*inputs)
    before = backend.count
    assert before > 0
    found = rankkit.Monitor(faster, probe_of(model), measures=("stable_rank",)).probe(0)
    faster(*inputs)
    assert backend.count == before
    torch._dynamo.reset()
    assert found["rank/stable_rank/mean"] == expected["rank/stable_rank/mean"]


def test_the_module_inside_data_parallelism_is_probed() -> None:
    model = gpt2()
    monitor = rankkit.Monitor(nn.DataParallel(model), some_tokens(), measures=("stable_rank",))
    assert monitor.mode == "qk"
    assert monitor.probe(0)["rank/stable_rank/mean"] >= 1


def test_a_model_in_shards_is_refused_by_name() -> None:
    class FSDPModule(nn.Module):
        """Has the name of torch's."""

    with pytest.raises(ConfigurationError, match="model must be whole on one rank and run by Python, got a FSDPModule"):
        rankkit.Monitor(nn.Sequential(FSDPModule()), some_tokens())


# Refusals.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"measures": ()}, "measures must hold at least one name, got none"),
        ({"measures": ("rank",)}, "measure must be one of numerical_rank, .*, got 'rank'"),
        ({"tokens": {}}, "tokens must hold a tensor, got dict without one"),
        ({"tokens": (3,)}, "tokens must hold a tensor, got tuple without one"),
        ({"tokens": torch.zeros(1, 4)}, r"tokens must be \(tokens, prefix_lengths\) for a rankkit Transformer"),
    ],
)
def test_arguments_that_cannot_hold_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        rankkit.Monitor(own(), **{"tokens": (some_tokens(), 0), **changes})


def test_a_model_without_attention_is_an_error_that_says_so() -> None:
    monitor = rankkit.Monitor(nn.Linear(LENGTH, 3), torch.zeros(2, LENGTH))
    with pytest.raises(CaptureError, match="attention must be seen while Linear runs, got no matrix"):
        monitor(0)


def test_a_model_that_loses_a_layer_is_refused() -> None:
    model = own()
    monitor = rankkit.Monitor(model, probe_of(model), every=1, measures=("stable_rank",))
    monitor(0)
    del model.blocks[1]
    with pytest.raises(
        CaptureError, match="layers must be the same in every probe, got layer_0 after layer_0, layer_1"
    ):
        monitor(1)


def test_attributes_that_a_forward_pass_adds_are_removed() -> None:
    model = self_made()
    with undisturbed(model):
        model(some_tokens())
        assert model.calls == 1
    assert model.calls == 0
    assert "table" not in dict(model.named_buffers())
    assert model.counted.tolist() == [0, 0, 0]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", MODELS)
def test_on_cuda_values_agree_and_the_generator_stays(make: Callable[[], nn.Module]) -> None:
    model = make()
    expected = rankkit.Monitor(model, probe_of(model)).probe(0)
    monitor = rankkit.Monitor(model, probe_of(model))
    model.cuda()
    before = torch.cuda.get_rng_state()
    found = monitor.probe(0)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert found["rank/effective_rank/mean"] == pytest.approx(expected["rank/effective_rank/mean"], rel=1e-4)
