"""An exported arm is a stock model with the arm's logits, attention, tokens and provenance; other arms are refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from small_run import run_config, trained_run
from tiny import model_config, widen

import rankkit
from rankkit.cli import main
from rankkit.data import DataConfig
from rankkit.data.tokenizers import BytePairTokenizer, ByteTokenizer, Tokenizer
from rankkit.errors import ConfigurationError, OutputExistsError, RunError
from rankkit.files import sha256_of_file
from rankkit.models import ModelConfig, Transformer
from rankkit.studies import Run
from rankkit.studies.stock import export as hugging_face
from rankkit.studies.stock.export import export_model
from rankkit.studies.stock.model import check_expressible, stock_config, stock_weights
from rankkit.studies.stock.tokenizer import reads_alike, write_tokenizer

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")

SHAPE = {"d_model": 16, "num_heads": 2, "head_dim": 12}
TEXT = "def f(x):\r\n    return x  # \x00 caf\u00e9 \u4e2d \U0001f600 <|document|> \x7f\xad\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained_run(tmp_path_factory.mktemp("export") / "run", run_config(seeds=(0, 1), model=SHAPE))


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, hugging_face.ExportedModel]:
    folder = tmp_path_factory.mktemp("exported") / "gpt"
    return folder, export_model(run.directory.path, folder, arm="gpt", seed=1, command="rankkit export me")


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def stock(model: Transformer) -> Any:
    found = transformers.ArceeForCausalLM(stock_config(model.config, document_token=256)).eval()
    report = found.load_state_dict(stock_weights(model), strict=False)
    assert report.missing_keys == ["lm_head.weight"]  # tied
    assert report.unexpected_keys == []
    return found


def difference(model: Transformer, other: Any, length: int) -> float:
    """Of logits, over the largest."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (3, length), generator=generator)
    with torch.no_grad():
        own, found = model.logits(model(tokens, 0)), other(input_ids=tokens).logits
    return float((own - found).abs().max() / own.abs().max())


# The model.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_heads": 4, "head_dim": 2, "mlp_ratio": 3},
        {"num_layers": 3, "rope_base": 500.0, "vocab_size": 61},
        {"sequence_length": 256, "num_heads": 1, "head_dim": 32},
    ],
)
def test_logits_are_those_of_the_stock_model(changes: dict[str, Any]) -> None:
    config = model_config(**{**SHAPE, **changes})
    model = widen(Transformer(config)).float()
    assert difference(model, stock(model), config.sequence_length) <= 1e-5


def test_a_trained_arm_has_the_same_logits_after_saving(run: Run, exported: tuple[Path, Any]) -> None:
    folder, facts = exported
    model = rankkit.load_model(run.directory.path, arm="gpt", seed=1)
    assert difference(model, loaded(folder), 32) <= 1e-5
    assert facts.logits_difference <= 1e-5
    assert facts.compared_tokens == 64


def test_a_trained_arm_has_the_same_attention(run: Run, exported: tuple[Path, Any]) -> None:
    model, other = rankkit.load_model(run.directory.path, arm="gpt", seed=1), loaded(exported[0])
    tokens = torch.arange(32)[None]
    with torch.no_grad(), rankkit.capture(model) as own, rankkit.capture(other) as found:
        model(tokens, 0)
        other(input_ids=tokens)
    for one, theirs in zip(own, found, strict=True):
        assert one.labels["layer"] == theirs.labels["layer"]
        assert theirs.mask == rankkit.Causal()
        torch.testing.assert_close(one.dense(), theirs.dense(), atol=1e-6, rtol=0)


def test_the_weights_are_the_runs_and_no_more(run: Run, exported: tuple[Path, Any]) -> None:
    folder, facts = exported
    model = rankkit.load_model(run.directory.path, arm="gpt", seed=1)
    assert facts.parameters == model.config.parameters == sum(p.numel() for p in loaded(folder).parameters())
    assert not list(folder.glob("*.bin"))
    config = loaded(folder).config
    assert (config.model_type, config.dtype, config.tie_word_embeddings) == ("arcee", torch.float32, True)


def test_it_generates_with_and_without_a_cache_alike(exported: tuple[Path, Any]) -> None:
    model, prompt = loaded(exported[0]), torch.arange(40, 50)[None]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    one, other = (model.generate(prompt, use_cache=use, **options) for use in (True, False))
    assert torch.equal(one, other)
    assert one.shape[1] > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": "prefix"}, "mask must be causal for ArceeForCausalLM, got prefix"),
        ({"mask": "bidirectional"}, "mask must be causal for ArceeForCausalLM, got bidirectional"),
        ({"position": "learned"}, "position must be rope for ArceeForCausalLM, got learned"),
        ({"position": "none"}, "position must be rope for ArceeForCausalLM, got none"),
        ({"d_model": 15}, "d_model must be a multiple of num_heads for ArceeForCausalLM, got 15 and 2"),
    ],
)
def test_what_the_architecture_is_not_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_expressible(model_config(**{**SHAPE, **changes}))


def test_every_other_field_of_the_configuration_reaches_the_stock_model() -> None:
    """A field added to ModelConfig must be expressed or refused: this test then asks which."""
    assert set(ModelConfig.__slots__) == {
        "mask", "vocab_size", "sequence_length", "num_layers", "d_model", "num_heads", "head_dim", "mlp_ratio", "position",
        "rope_base", "initial_std",
    }  # fmt: skip


# The folder.


def test_provenance_is_in_the_card_and_in_a_file(run: Run, exported: tuple[Path, Any]) -> None:
    folder, facts = exported
    checkpoint = run.directory.checkpoint("gpt", 1, 12) / "model.safetensors"
    assert facts.checkpoint_sha256 == sha256_of_file(checkpoint)
    assert facts.weights_sha256 == sha256_of_file(folder / "model.safetensors")
    assert (facts.run, facts.arm, facts.seed, facts.step) == (str(run.directory.path), "gpt", 1, 12)
    assert json.loads((folder / "rankkit.json").read_text()) == asdict(facts)
    card = (folder / "README.md").read_text()
    for part in (str(run.directory.path), "# gpt, seed 1, step 12", facts.checkpoint_sha256, facts.weights_sha256,
                 "`rankkit export me`", "mask causal", "12 of 12"):  # fmt: skip
        assert part in card


def test_the_cards_snippet_runs(exported: tuple[Path, Any]) -> None:
    card = (exported[0] / "README.md").read_text()
    found: dict[str, Any] = {}
    exec(card.split("```python")[1].split("```")[0], found)
    assert found["tokenizer"]("ab")["input_ids"] == [97, 98]
    assert found["model"].config.vocab_size == 257


def test_seed_and_step_are_chosen(run: Run, tmp_path: Path) -> None:
    facts = export_model(run.directory.path, tmp_path / "a", arm="gpt", step=4)
    assert (facts.seed, facts.step) == (0, 4)
    model = rankkit.load_model(run.directory.path, arm="gpt", seed=0, step=4)
    assert torch.equal(loaded(tmp_path / "a").model.norm.weight, model.norm.weight)


def test_an_arm_that_is_refused_leaves_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="mask must be causal"):
        export_model(run.directory.path, tmp_path / "unilm", arm="unilm")
    with pytest.raises(RunError, match="must hold arm bert under seed 0"):
        export_model(run.directory.path, tmp_path / "bert", arm="bert")
    assert list(tmp_path.iterdir()) == []


def test_other_logits_are_refused_and_leave_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exchanged(model: Transformer) -> dict[str, torch.Tensor]:
        weights = stock_weights(model)
        one, other = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")
        return weights | {one: weights[other], other: weights[one]}

    monkeypatch.setattr(hugging_face, "stock_weights", exchanged)
    with pytest.raises(
        RunError, match=r"logits of ArceeForCausalLM must be those of the arm within 1\.0e-05 of the largest"
    ):
        export_model(run.directory.path, tmp_path / "gpt", arm="gpt")
    assert list(tmp_path.iterdir()) == []


def test_only_an_earlier_export_is_replaced(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpt"
    out.mkdir()
    export_model(run.directory.path, out, arm="gpt")  # an empty folder is free
    with pytest.raises(OutputExistsError, match="must not exist yet"):
        export_model(run.directory.path, out, arm="gpt")
    assert export_model(run.directory.path, out, arm="gpt", step=4, force=True).step == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match="must be an earlier export to be replaced"):
        export_model(run.directory.path, tmp_path / "mine", arm="gpt", force=True)
    monkeypatch.chdir(out)
    with pytest.raises(OutputExistsError, match="or the folder that you are in"):
        export_model(run.directory.path, out, arm="gpt", force=True)


def test_without_transformers_the_error_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigurationError, match=r"transformers must be installed .* pip install 'rankkit\[hf\]'"):
        export_model(run.directory.path, tmp_path / "gpt", arm="gpt")


# The tokenizer.


def byte_pairs() -> BytePairTokenizer:
    return BytePairTokenizer.train([TEXT, "return x " * 20], vocab_size=300)


def foreign() -> BytePairTokenizer:
    """One that puts a token before every text when asked, and knows a special token."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, processors, trainers
    from tokenizers.decoders import ByteLevel

    library = Library(models.BPE())
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    library.train_from_iterator([TEXT, "return x " * 20], trainer)
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return BytePairTokenizer(library.to_str())


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), byte_pairs(), foreign()], ids=["bytes", "pairs", "foreign"])
def test_transformers_gives_the_ids_of_training_and_the_text_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_tokenizer(tokenizer, tmp_path, sequence_length=32)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = f"{TEXT}<s></s>"
    assert found(text, verbose=False)["input_ids"] == tokenizer.encode(text).tolist()
    assert found.decode(tokenizer.encode(text)) == text
    assert found.eos_token_id == tokenizer.document_token
    assert len(found) == tokenizer.vocab_size
    assert found.model_max_length == 32
    assert found.decode([*tokenizer.encode("ab"), tokenizer.document_token], skip_special_tokens=True) == "ab"
    assert reads_alike(tokenizer, tmp_path, TEXT)


def test_every_byte_is_its_own_id(tmp_path: Path) -> None:
    write_tokenizer(ByteTokenizer(), tmp_path, sequence_length=32)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "".join(map(chr, range(0x2000)))
    assert found(text, verbose=False)["input_ids"] == list(text.encode())


def test_a_tokenizer_that_reads_otherwise_is_noticed(tmp_path: Path) -> None:
    write_tokenizer(byte_pairs(), tmp_path, sequence_length=32)
    assert not reads_alike(ByteTokenizer(), tmp_path, TEXT)


def test_it_is_left_out_with_its_reason(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face, "reads_alike", lambda *_: False)
    facts = export_model(run.directory.path, tmp_path / "gpt", arm="gpt")
    assert facts.tokenizer == "no: transformers reads text otherwise than the run's own tokenizer"
    assert not list((tmp_path / "gpt").glob("tokenizer*"))
    assert "AutoTokenizer.from_pretrained" not in (tmp_path / "gpt" / "README.md").read_text()


def test_a_run_of_token_ids_has_none(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(4000, dtype=np.uint16) % 50)
    base = run_config(("gpt",), (0,), model=SHAPE, steps=1).base
    base = replace(base, data=DataConfig(text=(str(tmp_path / "ids.npy"),), vocab_size=50))
    rankkit.train_pair(base, out=tmp_path / "run", arms=("gpt",), seeds=(0,), workers=1)
    facts = export_model(tmp_path / "run", tmp_path / "gpt", arm="gpt")
    assert facts.tokenizer == "no: the run was given token ids, without their tokenizer"
    assert loaded(tmp_path / "gpt").config.eos_token_id is None


# The command.


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def test_the_command_says_what_it_made(run: Run, tmp_path: Path) -> None:
    path, out = run.directory.path, tmp_path / "gpt"
    result = invoke(path / "gpt", "--to", "huggingface", "--out", out, "--seed", 1, "--step", 8, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((out / "rankkit.json").read_text())
    assert json.loads(result.stdout)["step"] == 8
    result = invoke(path / "gpt", "--to", "huggingface", "--out", out, "--force")
    assert result.exit_code == 0, result.output
    assert f"{out}: ArceeForCausalLM, " in result.stdout
    assert "logits on 64 held-out tokens: within " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("RUN/gpt", "--to", "huggingface"), 2, "--out must name a folder for --to huggingface"),
        (("RUN", "--to", "huggingface", "--out", "x"), 2, "must be RUN/ARM for --to huggingface, got a run"),
        (("RUN/gpt", "--to", "huggingface", "--out", "x", "--baselines"), 2, "--baselines is for tables"),
        (("RUN/gpt", "--to", "huggingface", "--out", "x", "--table", "functional"), 2, "--table is for tables"),
        (("RUN/gpt", "--to", "huggingface", "--out", "x", "--select", "seed=1"), 2, "--select is for tables"),
        (("RUN", "--to", "csv", "--seed", "1"), 2, "--seed and --step choose a model"),
        (("RUN/unilm", "--to", "huggingface", "--out", "x"), 2, "mask must be causal for ArceeForCausalLM, got prefix"),
    ],
)
def test_the_command_refuses(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    first, *others = arguments
    result = invoke(first.replace("RUN", str(run.directory.path)), *others)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []
