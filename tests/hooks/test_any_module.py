"""Any module is captured where it calls scaled_dot_product_attention, or softmax, and computes what it would have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rankkit
from rankkit.errors import CaptureError
from rankkit.hooks import LayerFactors, LayerMatrices
from rankkit.masks import Causal, Cross, Padded

WIDTH, HEADS, LENGTH, LAYERS, VOCABULARY = 16, 2, 10, 3, 20


class Attention(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = (
            part.view(batch, length, HEADS, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            logits = query @ key.mT / (WIDTH // HEADS) ** 0.5
            hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
            mixed = logits.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))


class Experts(nn.Module):
    """A mixture with as many experts as there are heads, whose router takes softmaxes too."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(WIDTH, HEADS), nn.Linear(WIDTH, HEADS * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shares = F.softmax(self.router(x), dim=-1)
        flat = torch.softmax(self.router(x.flatten(0, 1)), -1).view_as(shares)
        return (self.experts(F.gelu(x)).unflatten(-1, (HEADS, WIDTH)) * (shares + flat)[..., None]).sum(dim=-2)


class Block(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(fused=fused), Experts()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class GPT(nn.Module):
    def __init__(self, *, fused: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(fused=fused) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def some_tokens(sequences: int = 4) -> Tensor:
    return torch.randint(0, VOCABULARY, (sequences, LENGTH), generator=torch.Generator().manual_seed(0))


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def slow_maps(model: GPT, tokens: Tensor) -> list[Tensor]:
    """Every layer's attention, "sequence head query key", from the inputs of its module."""
    maps: list[Tensor] = []

    def keep(module: Any, inputs: tuple[Tensor, ...]) -> None:
        query, key, _ = module.qkv(inputs[0]).chunk(3, dim=-1)
        query, key = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2).double() for t in (query, key))
        logits = query @ key.mT / (WIDTH // HEADS) ** 0.5
        maps.append((logits + torch.full((LENGTH, LENGTH), -torch.inf).triu(1)).softmax(dim=-1))

    handles = [block.attn.register_forward_pre_hook(keep) for block in model.blocks]
    model(tokens)
    for handle in handles:
        handle.remove()
    return maps


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "softmax"])
@torch.no_grad()
def test_a_gpt_of_one_s_own_gives_its_attention_and_keeps_its_bits(fused: bool) -> None:
    model, tokens = GPT(fused=fused), some_tokens()
    plain = model(tokens)
    with rankkit.capture(model) as captured:
        during = model(tokens)
    assert torch.equal(plain, during)
    assert torch.equal(plain, model(tokens))
    assert (captured.mode, captured.reason) == ("torch", "GPT is no Hugging Face model")
    assert [found.layer for found in captured.found] == list(range(LAYERS))
    assert all(isinstance(found, LayerFactors if fused else LayerMatrices) for found in captured.found)
    for found, expected in zip(captured.found, slow_maps(model, tokens), strict=True):
        assert (found.kind, found.stack, found.masks) == ("self", "", (Causal(),) * len(tokens))
        assert found.module == f"blocks.{found.layer}.attn"
        ((_, operator),) = found.operators_by_mask()
        torch.testing.assert_close(operator.dense(), expected, rtol=0, atol=2e-7)
        single = torch.stack([each.dense() for each in found.operators()])
        torch.testing.assert_close(operator.dense(), single, rtol=0, atol=1e-14)
    if not fused:
        assert captured.matrices[0].reason == "only the softmax of its attention can be seen"


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "softmax"])
@torch.no_grad()
def test_layers_and_heads_are_chosen(fused: bool) -> None:
    model, tokens = GPT(fused=fused), some_tokens()
    with rankkit.capture(model) as everything:
        model(tokens)
    seen: list[Any] = []
    with rankkit.capture(model, layers=[2, 0], heads=[1], on_layer=seen.append) as kept:
        model(tokens)
    assert [found.layer for found in seen] == [0, 2]
    assert len(kept) == 0
    for found in seen:
        for chosen, whole in zip(found.operators(), everything.found[found.layer].operators(), strict=True):
            assert torch.equal(chosen.dense(), whole.dense()[1:])


@torch.no_grad()
def test_every_forward_pass_is_counted_anew() -> None:
    model = GPT()
    with rankkit.capture(model) as captured:
        model(some_tokens(1))
        model(some_tokens(2))
        model.blocks[1](torch.randn(1, LENGTH, WIDTH))
    assert [found.layer for found in captured.found] == [0, 1, 2, 0, 1, 2, 1]


@torch.no_grad()
def test_captures_nest() -> None:
    model = GPT()
    with rankkit.capture(model, layers=[0]) as outer, rankkit.capture(model, layers=[0, 1]) as inner:
        model(some_tokens())
    assert ([f.layer for f in outer.layers], [f.layer for f in inner.layers]) == ([0], [0, 1])


@pytest.mark.parametrize("failure", ["none", "body", "receiver", "forward"])
@torch.no_grad()
def test_hooks_and_mode_are_gone_however_the_context_ends(failure: str) -> None:
    model, tokens, calls = GPT(), some_tokens(), []

    def receive(factors: LayerFactors) -> None:
        calls.append(factors.layer)
        if failure == "receiver":
            raise KeyError

    try:
        with rankkit.capture(model, on_layer=receive):
            model(tokens + (VOCABULARY if failure == "forward" else 0))
            if failure == "body":
                raise KeyError
    except (KeyError, IndexError):
        assert failure != "none"
    assert hooks_of(model) == 0
    count = len(calls)
    model(tokens)
    assert len(calls) == count


@torch.no_grad()
def test_after_a_failed_pass_the_next_one_counts_from_the_start() -> None:
    model, seen = GPT(), []

    def receive(factors: LayerFactors) -> None:
        seen.append(factors.layer)
        if len(seen) == 2:
            raise KeyError

    with rankkit.capture(model, on_layer=receive):
        with pytest.raises(KeyError):
            model(some_tokens())
        model(some_tokens())
    assert seen == [0, 1, 0, 1, 2]


CLOSED = r" \(nn\.MultiheadAttention\)"


@pytest.mark.parametrize(("model", "inputs", "name"), [
    (nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, batch_first=True), 2), 1, CLOSED),
    (nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), 3, CLOSED),
    (nn.Linear(WIDTH, 2), 1, ""),
])  # fmt: skip
@torch.no_grad()
def test_a_module_without_attention_that_can_be_seen_says_why(model: nn.Module, inputs: int, name: str) -> None:
    x = torch.randn(2, LENGTH, WIDTH)
    with pytest.raises(CaptureError, match=f"attention must be seen while {type(model).__name__} runs, got no matrix.*"
                       f"nn.TransformerEncoder{name}, cannot be looked into: let the module call"), \
            rankkit.capture(model.eval()):  # fmt: skip
        model(*[x] * inputs)
    assert hooks_of(model) == 0


@pytest.mark.parametrize("layers", [[3], [0, 7]])
@torch.no_grad()
def test_layers_that_are_not_there_are_refused_after_the_pass(layers: list[int]) -> None:
    model = GPT()
    with pytest.raises(CaptureError, match=r"layers must be within 0\.\.2, got .*Choose layers of this model"), \
            rankkit.capture(model, layers=layers):  # fmt: skip
        model(some_tokens())


@pytest.mark.parametrize("layers", [[], [-1]])
def test_layers_that_no_model_has_are_refused_at_once(layers: list[int]) -> None:
    with pytest.raises(CaptureError, match=r"layers must be one or more, counted from 0, got .*Name layers to capture"), \
            rankkit.capture(GPT(), layers=layers):  # fmt: skip
        pass


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "softmax"])
@torch.no_grad()
def test_heads_that_are_not_there_are_refused(fused: bool) -> None:
    model = GPT(fused=fused)
    with pytest.raises(CaptureError, match=r"heads must be within 0\.\.1 \(layer 0\), got \[2\]\. Choose heads"), \
            rankkit.capture(model, heads=[2]):  # fmt: skip
        model(some_tokens())


def test_other_modes_and_outputs_are_refused() -> None:
    for mode in ("qk", "eager"):
        with pytest.raises(CaptureError, match=f"mode must be torch for GPT, which is no Hugging .*, got '{mode}'"), \
                rankkit.capture(GPT(), mode=mode):  # fmt: skip
            pass
    with pytest.raises(CaptureError, match=r"mode must be auto, qk, eager or torch, got 'fast'\. Leave it out"), \
            rankkit.capture(GPT(), mode="fast"):  # type: ignore[arg-type] # fmt: skip
        pass
    with pytest.raises(CaptureError, match=r"outputs must be False for GPT, got True\. Only a rankkit Transformer"), \
            rankkit.capture(GPT(), outputs=True):  # fmt: skip
        pass


def test_a_compiled_model_is_refused() -> None:
    compiled = torch.compile(GPT(), backend="eager")
    with pytest.raises(CaptureError, match=r"model must not be compiled, got .*its _orig_mod"), \
            rankkit.capture(compiled):  # fmt: skip
        pass


def test_factors_carry_no_gradient_and_gradients_keep_their_bits() -> None:
    found = []
    for captured in (False, True):
        model = GPT()
        if captured:
            with rankkit.capture(model) as attention:
                model(some_tokens()).square().sum().backward()
            assert not any(operator.query.requires_grad for operator in attention)
        else:
            model(some_tokens()).square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(plain, during) for plain, during in zip(*found, strict=True))


class Call(nn.Module):
    """One call of attention with arguments of one's own."""

    def forward(self, *args: Tensor, **kwargs: Any) -> Tensor:
        return F.scaled_dot_product_attention(*args, **kwargs)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


ALLOWED = Padded(Causal(), 4, 1).allowed(6)
CALLS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("plain", (2, 3, 6, 4), (2, 3, 6, 4), {}),
    ("scale", (2, 3, 6, 4), (2, 3, 6, 4), {"scale": 0.9, "is_causal": True}),
    ("grouped", (2, 4, 6, 4), (2, 2, 6, 4), {"enable_gqa": True}),
    ("three axes", (2, 6, 4), (2, 6, 4), {"is_causal": True}),
    ("two axes", (6, 4), (6, 4), {}),
    ("five axes", (2, 2, 2, 6, 4), (2, 2, 2, 6, 4), {"is_causal": True}),
    ("cross", (2, 3, 5, 4), (2, 3, 6, 4), {}),
    ("causal rectangle", (2, 3, 5, 4), (2, 3, 6, 4), {"is_causal": True}),
    ("bool", (2, 3, 6, 4), (2, 3, 6, 4), {"attn_mask": ALLOWED}),
    ("bool of three axes", (2, 6, 4), (2, 6, 4), {"attn_mask": ALLOWED.expand(2, 6, 6)}),
    ("bool of heads", (2, 3, 6, 4), (2, 3, 6, 4), {"attn_mask": random(3, 6, 6) > 0}),
    ("bool of one row", (2, 3, 6, 4), (2, 3, 6, 4), {"attn_mask": torch.arange(6)[None, None, None] < 5}),
    ("float", (2, 3, 6, 4), (2, 3, 6, 4), {"attn_mask": random(2, 1, 6, 6)}),
    ("one query for all", (1, 3, 6, 4), (2, 3, 6, 4), {}),
]


@pytest.mark.parametrize(("query", "key", "kwargs"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
@torch.no_grad()
def test_operators_times_values_are_what_the_call_returned(
    query: tuple[int, ...], key: tuple[int, ...], kwargs: dict[str, Any]
) -> None:
    queries, keys, values = random(*query), random(*key).flip(0), random(*key).flip(-1)
    with rankkit.capture(model := Call()) as captured:
        mixed = model(queries, keys, values, **kwargs)
    (factors,) = captured.layers
    axes = (1,) * (3 - len(query))
    mixed, values = (t.reshape(*axes, *t.shape)[:, None] if t.dim() < 4 else t.flatten(1, -3) for t in (mixed, values))
    for sequence, operator in enumerate(factors.operators()):
        value = values[sequence].repeat_interleave(mixed.shape[1] // values.shape[1], dim=0)
        value = value if factors.seen[sequence].keys is None else value[:, factors.seen[sequence].keys]
        rows = operator.dense().sum(dim=(0, -1)) > 0
        assert rows.any()
        torch.testing.assert_close((operator.dense() @ value)[:, rows], mixed[sequence][:, rows], rtol=0, atol=1e-12)


def test_a_mask_beside_five_axes_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"queries must have at most 4 axes .* beside a mask, got 5\. Join the others"), \
            rankkit.capture(model := Call()):  # fmt: skip
        model(*[random(2, 2, 2, 6, 4)] * 3, attn_mask=torch.ones(2, 1, 1, 6, 6, dtype=torch.bool))


def test_attention_to_another_sequence_is_cross() -> None:
    with rankkit.capture(model := Call()) as captured:
        model(random(2, 3, 5, 4), random(2, 3, 6, 4), random(2, 3, 6, 4))
    assert (captured.layers[0].kind, captured.layers[0].masks) == ("cross", (Cross(5, 6),) * 2)


def test_rows_over_a_cache_are_refused_where_a_module_says_that_it_is_causal() -> None:
    model = Call()
    model.is_causal = True
    with pytest.raises(CaptureError, match="attention must be captured over whole sequences, got 1 queries for 6 keys"), \
            rankkit.capture(model):  # fmt: skip
        model(random(2, 3, 1, 4), random(2, 3, 6, 4), random(2, 3, 6, 4))


def test_a_softmax_over_joined_heads_is_told_apart() -> None:
    class Joined(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            query = x.unflatten(-1, (HEADS, -1)).transpose(1, 2).flatten(0, 1)
            return (F.softmax(query @ query.mT, -1) @ query).unflatten(0, (len(x), HEADS)).transpose(1, 2).flatten(2)

    x = random(4, LENGTH, WIDTH)
    with rankkit.capture(model := Joined()) as captured:
        model(x)
    (found,) = captured.matrices
    assert found.matrices.shape == (4, HEADS, LENGTH, LENGTH)
    query = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    torch.testing.assert_close(found.matrices, (query @ query.mT).softmax(dim=-1), rtol=0, atol=1e-14)


def test_functions_called_outside_a_forward_pass_are_none_of_its_business() -> None:
    with rankkit.capture(GPT()) as captured:
        F.scaled_dot_product_attention(*[random(2, 3, 6, 4)] * 3)
    assert len(captured) == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_capture_on_cuda_keeps_bits_and_device() -> None:
    with torch.device("cuda"):
        query, key, value = (torch.randn(2, 3, 64, 32) for _ in range(3))
        mask = Padded(Causal(), 40, 4).allowed(64).cuda()
    model = Call()
    plain = model(query, key, value, attn_mask=mask)
    with rankkit.capture(model) as captured:
        assert torch.equal(model(query, key, value, attn_mask=mask), plain)
    for sequence, operator in enumerate(captured):
        assert operator.mask == Padded(Causal(), 40, 4)
        assert operator.device.type == "cuda"
        mixed = operator.dense() @ value[sequence].double()
        torch.testing.assert_close(mixed[:, 4:44].float(), plain[sequence, :, 4:44], rtol=0, atol=1e-3)
