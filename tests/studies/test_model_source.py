"""Spectra of Hugging Face models against their own eager attention; what is loaded, read and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import new_model, saved_model, saved_text
from hooks.families import eager_maps, tiny_model
from measured_run import FAST
from tiny import model_config

from rankkit.errors import CaptureError, ConfigurationError, DataError, RankkitError, SpectrumFileError
from rankkit.masks import Causal, Mask, Prefix
from rankkit.models import Transformer
from rankkit.store import describe, read_group, read_root, writer
from rankkit.studies import MeasureConfig, Measured, measure_attention
from rankkit.studies.measuring.kept_source import kept_source
from rankkit.studies.merging.merge import merge
from rankkit.studies.pretrained.files import FoundModel, find_model, group_name
from rankkit.studies.pretrained.inputs import ModelInputs, read_array
from rankkit.studies.pretrained.loading import load_checkpoint
from rankkit.studies.pretrained.opening import Reading, measure_model, open_model, positions
from rankkit.studies.pretrained.plan import SwapMask
from rankkit.studies.pretrained.source import ModelSettings
from rankkit.studies.pretrained.text import ModelText, TokenPolicy
from rankkit.studies.verify import verify_file

CPU = torch.device("cpu")
FEW = ("effective_rank", "log_abs_det", "mean_ipr")
N = 16
DOCUMENTS = TokenPolicy(packing="documents")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models and some text."""
    folder = tmp_path_factory.mktemp("models")
    saved_model(folder / "gpt2")
    saved_model(folder / "llama", "LlamaForCausalLM", bos=True)
    saved_text(folder / "text.jsonl", words=30)
    return folder


def measured(
    path: str | Path,
    out: Path,
    *,
    text: Path | None = None,
    policy: TokenPolicy | None = None,
    settings: ModelSettings | None = None,
    reading: Reading | None = None,
    opening: Mapping[str, Any] | None = None,
    checked: bool = False,
    **config: Any,
) -> Measured:
    """Measure a model; on request verify the file."""
    read = reading or Reading(text=(str(text),), policy=policy or TokenPolicy())
    source = open_model(str(path), read, CPU, settings=settings or ModelSettings(batch=2), **(opening or {}))
    chosen = MeasureConfig(**{"measures": FEW, "workers": 1, "samples": 2, **config})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "verify_written", lambda partial: [])
        found = measure_attention(source, chosen, out, device=CPU, command="rankkit spectrum hf:it")
    assert not checked or verify_file(out) == []
    return found


def eager(folder: Path, architecture: str, arguments: Mapping[str, torch.Tensor]) -> Any:
    """The model's own attention matrices."""
    import transformers

    kind = getattr(transformers, architecture)
    model = kind.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(**arguments, output_attentions=True)


def singular_values(matrices: Any, rows: slice, columns: slice) -> Any:
    """Of "head query key" without padding."""
    return np.linalg.svd(matrices.double().numpy()[:, rows, columns], compute_uv=False)


CASES = [("GPT2LMHeadModel", "left"), ("LlamaForCausalLM", "right"), ("BertForMaskedLM", "right")]


@pytest.mark.parametrize(("architecture", "side"), CASES)
def test_spectra_are_those_of_the_models_own_eager_attention_without_padding(
    architecture: str, side: str, tmp_path: Path
) -> None:
    model = new_model(architecture)
    lengths, generator = [N, 11, 7], torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 300, (3, N), generator=generator)
    mask = torch.zeros(3, N, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, N - length if side == "left" else 0 :][:length] = 1
    inputs = {"input_ids": tokens, "attention_mask": mask}
    measure_model(model, inputs, tmp_path / "s.h5", name="It", config=MeasureConfig(measures=FEW, workers=1), batch=2)
    assert verify_file(tmp_path / "s.h5") == []
    stored = read_group(tmp_path / "s.h5", "it")
    np.testing.assert_array_equal(stored["valid_row"], mask.numpy())
    np.testing.assert_array_equal(stored["rows"], [lengths, [length - 1 for length in lengths]])
    np.testing.assert_array_equal(stored["tokens"], tokens.numpy())
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    for row, length in enumerate(lengths):
        part = slice(N - length, N) if side == "left" else slice(length)
        for layer, map_ in enumerate(maps):
            expected = singular_values(map_[row], part, part)
            np.testing.assert_allclose(
                stored["singular_values"][0, 0, 0, 0, row, layer, :, :length], expected, atol=1e-5
            )


def test_a_t5_has_groups_for_encoder_decoder_and_rectangular_cross_attention(root: Path, tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "t5-tiny", "T5ForConditionalGeneration")
    reading = Reading(text=(str(root / "text.jsonl"),), policy=DOCUMENTS, target_length=12)
    found = measured(folder, tmp_path / "s.h5", reading=reading, sequence_length=N, samples=3, checked=True)
    names = ["t5-tiny/encoder", "t5-tiny/decoder", "t5-tiny/cross"]
    assert [arm.name for arm in found.plan.arms] == names
    stored = {name: read_group(tmp_path / "s.h5", name) for name in names}
    groups = {group.name: group.attributes for group in describe(tmp_path / "s.h5").groups}
    assert [(groups[name]["kind"], groups[name]["mask"], groups[name]["logits"]) for name in names] == [
        ("self", "bidirectional", "bias"),
        ("self", "causal", "bias"),
        ("cross", "cross", "plain"),
    ]
    source = open_model(str(folder), reading, CPU)
    source.plan(MeasureConfig(samples=3, sequence_length=N))
    arguments = source._inputs.on(CPU) if source._inputs else {}
    output = eager(folder, "T5ForConditionalGeneration", arguments)
    maps = {
        "encoder": output.encoder_attentions,
        "decoder": output.decoder_attentions,
        "cross": output.cross_attentions,
    }
    cross, encoder = stored[names[2]], stored[names[0]]
    assert len(set(encoder["rows"][0].tolist())) > 1 or encoder["rows"][0, 0] < N, "some have padding"
    np.testing.assert_array_equal(cross["columns"][0], encoder["rows"][0])
    np.testing.assert_array_equal(cross["rows"][0], stored[names[1]]["rows"][0])
    for name in names:
        group = stored[name]
        for row, (rows, columns) in enumerate(zip(group["rows"][0], group["columns"][0], strict=True)):
            for layer, map_ in enumerate(maps[name.split("/")[1]]):
                expected = singular_values(map_[row], slice(rows), slice(columns))
                values = group["singular_values"][0, 0, 0, 0, row, layer, :, : min(rows, columns)]
                np.testing.assert_allclose(values, expected, atol=1e-5)


def test_layers_with_different_masks_and_capped_logits_are_recorded_by_layer(root: Path, tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "gemma", "Gemma2ForCausalLM")
    measured(folder, tmp_path / "s.h5", text=root / "text.jsonl", sequence_length=N, keep_qk=True, checked=True)
    (group,) = describe(tmp_path / "s.h5").groups
    assert group.attributes["mask"] == "mixed"
    assert group.attributes["masks"] == "layers 0: Window(behind=4, ahead=0); layers 1: Causal()"
    assert group.attributes["logits"] == "softcap 2"
    assert group.attributes["capture"] == "eager: Gemma2ForCausalLM does not support SDPA"
    assert not np.isnan(read_group(tmp_path / "s.h5", "gemma")["log_abs_det"]).any()
    message = "gemma must be self-attention with plain logits .* got self attention with 'softcap 2'. Measure the model"
    with kept_source(tmp_path / "s.h5", CPU) as kept, pytest.raises(SpectrumFileError, match=message):
        kept.plan(MeasureConfig())


@pytest.mark.parametrize(("family", "first"), [("mistral", 4), ("mistral", 12), ("modernbert", 3), ("gemma2", 4)])
def test_sequences_that_a_window_covers_are_measured_beside_longer_ones(
    family: str, first: int, tmp_path: Path
) -> None:
    model, _ = tiny_model(family)
    lengths = (first, *({12, 7, 2} - {first}))
    mask = torch.tensor([[position < length for position in range(12)] for length in lengths]).long()
    inputs = {"input_ids": torch.arange(3, 3 + mask.numel()).reshape(mask.shape) % 50, "attention_mask": mask}
    measure_model(model, inputs, tmp_path / "s.h5", config=MeasureConfig(measures=FEW, workers=1))
    assert verify_file(tmp_path / "s.h5") == []
    assert "Window(" in str(describe(tmp_path / "s.h5").groups[0].attributes["masks"])
    stored = read_group(tmp_path / "s.h5", "model", ("rows", "singular_values"))
    for number, map_ in enumerate(eager_maps(model, inputs)["", "self"][0]):
        inside = map_[:, : lengths[number], : lengths[number]].double()
        values = stored["singular_values"][0, 0, 0, 0, number, 0, :, : lengths[number]]
        np.testing.assert_allclose(values, torch.linalg.svdvals(inside).numpy(), atol=1e-5)


def test_what_is_kept_of_a_model_is_measured_again_without_it(root: Path, tmp_path: Path) -> None:
    settings = ModelSettings(swap=SwapMask.parsed("prefix:6"))
    first = tmp_path / "a.h5"
    measured(root / "llama", first, text=root / "text.jsonl", sequence_length=N, keep_qk=True, settings=settings)
    with kept_source(first, CPU) as kept:
        measure_attention(kept, MeasureConfig(measures=FEW, workers=1), tmp_path / "b.h5", device=CPU, command="again")
    one, other = (read_group(path, "llama") for path in (first, tmp_path / "b.h5"))
    assert one["applied_mask"].tolist() == other["applied_mask"].tolist() == ["own", "swapped"]
    for name in ("singular_values", "log_abs_det"):
        np.testing.assert_array_equal(one[name], other[name])


def test_without_a_swap_nothing_is_swapped_when_kept_factors_are_measured_again(root: Path, tmp_path: Path) -> None:
    measured(root / "gpt2", tmp_path / "a.h5", text=root / "text.jsonl", sequence_length=N, keep_qk=True)
    with kept_source(tmp_path / "a.h5", CPU) as kept:
        plan = kept.plan(MeasureConfig())
    assert (plan.applied, plan.regions) == (("own",), ("full", "first_key_removed"))


@pytest.mark.parametrize(("text", "mask", "regions"), [("prefix:6", Prefix(6), 4), ("bidirectional", None, 2)])
def test_a_swapped_mask_is_put_on_the_models_own_queries_and_keys(
    text: str, mask: Mask | None, regions: int, root: Path, tmp_path: Path
) -> None:
    settings = ModelSettings(swap=SwapMask.parsed(text))
    path = tmp_path / "s.h5"
    measured(root / "gpt2", path, text=root / "text.jsonl", sequence_length=N, settings=settings, keep_qk=True)
    stored = read_group(path, "gpt2") | read_group(path, "gpt2", ("queries", "keys"))
    assert describe(path).groups[0].attributes["swapped_mask"] == text
    assert len(stored["region"]) == regions
    allowed = torch.ones(N, N, dtype=torch.bool) if mask is None else mask.allowed(N)
    for applied, seen in enumerate((Causal().allowed(N), allowed)):
        logits = stored["queries"].astype(float) @ stored["keys"].astype(float).swapaxes(-1, -2) / np.sqrt(8)
        matrix = torch.from_numpy(logits[0, 0]).masked_fill(~seen, -torch.inf).softmax(dim=-1)
        expected = torch.linalg.svdvals(matrix).numpy()
        np.testing.assert_allclose(stored["singular_values"][0, 0, 0, applied], expected, atol=1e-7)


@pytest.mark.parametrize(
    ("architecture", "text", "message"),
    [
        ("GPT2LMHeadModel", "causal", "can have, got causal: it is the model's own. Leave it out"),
        ("BertForMaskedLM", "bidirectional", "got bidirectional: it is the model's own"),
        ("GPT2LMHeadModel", "prefix:17", r"at least 17 tokens \(prefix of swap_mask: 17\), got 16. Shorten the prefix"),
        (
            "GPT2LMHeadModel",
            "window",
            "swap_mask must be causal, bidirectional or prefix:P, got 'window'. Write prefix:128",
        ),
    ],
)
def test_a_mask_that_cannot_be_swapped_in_is_refused(
    architecture: str, text: str, message: str, tmp_path: Path
) -> None:
    inputs = {"input_ids": torch.ones(1, N, dtype=torch.long)}
    with pytest.raises(ConfigurationError, match=message):
        measure_model(new_model(architecture), inputs, tmp_path / "s.h5", swap_mask=text)


def test_a_bias_that_the_model_hides_lets_no_mask_show_more(tmp_path: Path) -> None:
    tokens = torch.ones(1, N, dtype=torch.long)
    inputs = {"input_ids": tokens, "decoder_input_ids": tokens}
    config = MeasureConfig(measures=("mean_ipr",), workers=1)
    found = measure_model(
        new_model("T5ForConditionalGeneration"), inputs, tmp_path / "s.h5", swap_mask="causal", config=config
    )
    said = {arm.name: (arm.attributes["swapped_mask"], arm.part.applied if arm.part else ()) for arm in found.plan.arms}
    assert said == {
        "model/encoder": ("causal", ("own", "swapped")),
        "model/decoder": ("none: the bias of keys that the model hides is not known", ("own",)),
        "model/cross": ("none: a mask of class cross cannot be swapped", ("own",)),
    }


def test_the_first_batch_is_held_against_eager_attention_and_the_numbers_are_stored(root: Path, tmp_path: Path) -> None:
    measured(root / "gpt2", tmp_path / "s.h5", text=root / "text.jsonl", sequence_length=N)
    said = describe(tmp_path / "s.h5").groups[0].attributes
    assert (
        said["agreement"] == "16 matrices of the first 2 sequences, 16 positions each, against its own eager attention"
    )
    assert 0 < float(said["agreement_attention"]) <= 5e-6
    assert (said["agreement_output"], said["agreement_tolerance"]) == (0.0, 1e-4)


def test_attention_that_is_not_the_models_own_is_refused_unless_allowed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankkit.hooks.check import Agreement
    from rankkit.studies.pretrained import agreement as model_agreement

    wrong = Agreement(
        mode="qk", reason="it", against="eager", matrices=0.2, outputs=0.0, compared=8, tolerance=1e-4
    )  # fmt: skip
    monkeypatch.setattr(model_agreement, "check_against_eager", lambda *_: wrong)
    message = r"must be the model's own within 0\.0001, got a largest difference of 0\.2 from its eager, .* --allow-dis"
    with pytest.raises(CaptureError, match=message):
        measured(root / "gpt2", tmp_path / "s.h5", text=root / "text.jsonl", sequence_length=N)
    settings = ModelSettings(allow_disagreement=True)
    measured(root / "gpt2", tmp_path / "s.h5", text=root / "text.jsonl", sequence_length=N, settings=settings)
    assert describe(tmp_path / "s.h5").groups[0].attributes["agreement_attention"] == 0.2


def test_the_file_says_what_was_loaded_and_read(root: Path, tmp_path: Path) -> None:
    measured(root / "llama", tmp_path / "s.h5", text=root / "text.jsonl", sequence_length=N)
    file = describe(tmp_path / "s.h5")
    sha256 = find_model(str(root / "llama")).checkpoints[0].sha256
    assert read_group(tmp_path / "s.h5", "llama")["checkpoint_sha256"].tolist() == [[sha256]]
    said = file.groups[0].attributes
    assert (said["objective"], said["architecture"]) == ("causal lm", "LlamaForCausalLM")
    assert said["bos"] == "auto: <s> before and nothing after every sequence"
    configuration = json.loads(read_root(tmp_path / "s.h5").configuration)
    assert configuration["config"]["num_key_value_heads"] == 2
    assert configuration["dtype"] == "torch.float32"


def test_revisions_become_steps_of_one_file(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pythia"
    for step in (1000, 20):
        saved_model(folder / f"step{step}", seed=step)
    opening = {"revisions": ("step1000", "step20")}
    text = root / "text.jsonl"
    measured(folder, tmp_path / "both.h5", text=text, sequence_length=N, opening=opening, samples=1, checked=True)
    measured(folder / "step1000", tmp_path / "one.h5", text=text, sequence_length=N, samples=1)
    both, one = read_group(tmp_path / "both.h5", "pythia"), read_group(tmp_path / "one.h5", "step1000")
    assert both["step"].tolist() == [20, 1000]
    assert describe(tmp_path / "both.h5").groups[0].attributes["revisions"] == "20: step20; 1000: step1000"
    np.testing.assert_array_equal(both["singular_values"][:, 1], one["singular_values"][:, 0])
    assert np.abs(both["effective_rank"][:, 0] - both["effective_rank"][:, 1]).min() > 1e-3


def test_shards_of_a_model_merge_into_the_file_of_one_measurement(root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"text": root / "text.jsonl", "sequence_length": 6, "samples": 11, "heads": (1,)}
    options |= {"regions": ("full",), "measures": ("mean_ipr",)}
    for number in range(2):
        measured(root / "gpt2", tmp_path / f"{number}.h5", shard=(number, 2), **options)
    measured(root / "gpt2", tmp_path / "whole.h5", **options)
    merge([tmp_path / "0.h5", tmp_path / "1.h5"], tmp_path / "merged.h5")
    merged, whole = (read_group(tmp_path / f"{name}.h5", "gpt2") for name in ("merged", "whole"))
    assert all(
        np.array_equal(merged[name], values, equal_nan=values.dtype.kind == "f") for name, values in whole.items()
    )


def test_revisions_without_numbers_of_their_own_are_counted(root: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(root / "gpt2", tmp_path / name)
    found = find_model(str(tmp_path), ("second", "first"))
    assert [(one.step, one.label) for one in found.checkpoints] == [(0, "second"), (1, "first")]


def test_revisions_of_another_model_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "gpt2", tmp_path / "step1")
    shutil.copytree(root / "llama", tmp_path / "step2")
    with pytest.raises(ConfigurationError, match=r"must be of one model, but step2 has another .* than step1"):
        find_model(str(tmp_path), ("step1", "step2"))
    shutil.copytree(root / "gpt2", tmp_path / "step3")
    (tmp_path / "step3" / "tokenizer.json").unlink()
    with pytest.raises(ConfigurationError, match="must have one tokenizer, but step3 has another than step1"):
        find_model(str(tmp_path), ("step1", "step3"))
    with pytest.raises(ConfigurationError, match=r"revision must name none twice, got step1, step1. Name each once"):
        find_model(str(tmp_path), ("step1", "step1"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("EleutherAI/Pythia-70m", "pythia-70m"),
        ("a/Meta Llama 3.1", "meta-llama-3.1"),
        ("x/comparison", "model-comparison"),
        ("x/_", "model"),
    ],
)
def test_a_groups_name_is_the_last_part_of_the_models(path: str, name: str) -> None:
    assert group_name(path) == name


def damaged(root: Path, tmp_path: Path, change: Any) -> FoundModel:
    """GPT-2 with other weights."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "damaged"
    shutil.copytree(root / "gpt2", folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return find_model(str(folder))


def loaded(found: FoundModel, **options: Any) -> Any:
    return load_checkpoint(found.checkpoints[0], dtype=torch.float32, device=CPU, **options)


KEY = "transformer.h.0.attn.c_attn.weight"


def test_missing_weights_are_refused_by_name(root: Path, tmp_path: Path) -> None:
    found = damaged(root, tmp_path, lambda weights: weights.pop(KEY))
    with pytest.raises(
        ConfigurationError, match=f"must hold every weight of GPT2LMHeadModel, got 1 missing keys: {KEY}."
    ):
        loaded(found)


def test_weights_of_another_shape_are_refused(root: Path, tmp_path: Path) -> None:
    found = damaged(root, tmp_path, lambda weights: weights.update({KEY: torch.ones(3, 3)}))
    with pytest.raises(ConfigurationError, match="must load as GPT2LMHeadModel, got RuntimeError"):
        loaded(found)


def test_weights_that_are_left_over_are_refused_unless_named(root: Path, tmp_path: Path) -> None:
    found = damaged(root, tmp_path, lambda weights: weights.update({"pooler.dense": torch.ones(3)}))
    message = (
        "must hold no weight that GPT2LMHeadModel lacks, got 1: pooler.dense. .* name their prefixes with --unused"
    )
    with pytest.raises(ConfigurationError, match=message):
        loaded(found)
    assert loaded(found, unused=("pooler",)).training is False


def test_damaged_weights_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "gpt2", tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"garbage" * 9)
    with pytest.raises(ConfigurationError, match="must load as GPT2LMHeadModel, got SafetensorError"):
        loaded(find_model(str(tmp_path / "m")))


def test_pickled_weights_are_refused_unless_allowed(root: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "m"
    shutil.copytree(root / "gpt2", folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    assert find_model(str(folder), allow_pickle=True).checkpoints[0].pickled is False  # where there is a choice
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ConfigurationError, match=r"as model.safetensors, got pytorch_model.bin, which is pickled .*allow-p"
    ):
        find_model(str(folder))
    found = find_model(str(folder), allow_pickle=True)
    assert found.checkpoints[0].pickled
    own, other = loaded(found).state_dict(), loaded(find_model(str(root / "gpt2"))).state_dict()
    assert all(torch.equal(values, other[name]) for name, values in own.items())


def test_pickled_weights_with_code_run_none_of_it(root: Path, tmp_path: Path) -> None:

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = tmp_path / "m"
    shutil.copytree(root / "gpt2", folder)
    (folder / "model.safetensors").unlink()
    torch.save({KEY: Code()}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="must load as GPT2LMHeadModel"):
        loaded(find_model(str(folder), allow_pickle=True))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.safetensors": None}, "must hold a checkpoint .* got none. Without one the weights would be random"),
        ({"config.json": None}, "must hold config.json of a model, got none. Name the folder"),
        ({"config.json": b"{"}, "config.json must be readable JSON, got"),
        ({"config.json": b"[]"}, r"config.json must hold an object, got \[\]. Restore"),
        ({"config.json": b'{"model_type": "gpt2"}'}, "must name the model's class under architectures, got None"),
        ({"config.json": b'{"model_type": "x", "architectures": ["Mine"]}'}, "must name a model class of .* got 'Mine'"),
        ({"config.json": b'{"model_type": "x", "architectures": ["pipeline"]}'}, "must name a model class of transf"),
        (
            {"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"a": "one.safetensors"}}'},
            "must name weight files that are there, got none of one.safetensors. Copy the whole folder",
        ),
        (
            {"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"a": "../one.safetensors"}}'},
            "must name files beside it, got '../one.safetensors'. Restore",
        ),
        ({"model.safetensors": None, "model.safetensors.index.json": b"{}"}, "must map weights to files, got: KeyError"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_model_is_refused(
    change: dict[str, bytes | None], message: str, root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(root / "gpt2", folder)
    for name, content in change.items():
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        loaded(find_model(str(folder)))


def test_several_weight_files_have_one_hash(root: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    shutil.copytree(root / "gpt2", folder)
    weights = load_file(folder / "model.safetensors")
    names = {name: f"part{number % 2}.safetensors" for number, name in enumerate(weights)}
    for file in set(names.values()):
        own = {name: values for name, values in weights.items() if names[name] == file}
        save_file(own, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "model.safetensors").unlink()
    found = find_model(str(folder))
    assert [file.name for file in found.checkpoints[0].weights] == ["part0.safetensors", "part1.safetensors"]
    assert all(
        torch.equal(value, weights[name]) for name, value in loaded(found).state_dict().items() if name in weights
    )
    before = found.checkpoints[0].sha256
    (folder / "part1.safetensors").write_bytes(b"x")
    assert find_model(str(folder)).checkpoints[0].sha256 != before


def test_a_hub_that_cannot_be_reached_says_how_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("Got: ConnectError: Name or service not known\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    message = (
        r"hf:someone/model, revision v1 must be on the hub or in its cache, got: Got: .* not known\. Check .* hf:/path"
    )
    with pytest.raises(ConfigurationError, match=message):
        find_model("someone/model", ("v1",))
    with pytest.raises(ConfigurationError, match=r"model folder must exist, got './nothing'. Check the path after hf:"):
        find_model("./nothing")


def test_of_a_hub_model_only_safe_files_are_fetched(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []

    def fetched(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(root / name.split("/")[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    found = find_model("someone/gpt2", ("step5",))
    assert (found.name, found.checkpoints[0].step) == ("gpt2", 5)
    assert not [pattern for pattern in asked if pattern.endswith((".bin", ".py", "*"))]


@pytest.fixture(scope="module")
def llama(root: Path) -> FoundModel:
    return find_model(str(root / "llama"))


def text_of(found: FoundModel, entry: Path, **policy: Any) -> ModelText:
    return ModelText(found, (str(entry),), TokenPolicy(**policy))


def test_packed_windows_follow_one_another_with_an_end_after_each_document(llama: FoundModel, root: Path) -> None:
    whole = text_of(llama, root / "text.jsonl", bos="no").sequences(5)
    windows = whole.arguments["input_ids"]
    stream = windows.flatten().tolist()
    ends = [place for place, token in enumerate(stream) if token == 1]
    assert len(ends) >= 5, "every document but perhaps the last ends in </s>"
    assert whole.documents is not None
    expected = [sum(end < start for end in ends) for start in range(0, len(stream), 5)]
    assert whole.documents.tolist() == expected
    framed = text_of(llama, root / "text.jsonl").sequences(6).arguments["input_ids"]
    assert torch.equal(framed[:, 1:], windows)
    assert framed[:, 0].eq(0).all()


def test_a_beginning_of_text_is_added_where_asked_and_the_tokenizer_adds_none(root: Path) -> None:
    found = find_model(str(root / "gpt2"))
    auto, forced = (text_of(found, root / "text.jsonl", bos=bos).sequences(6) for bos in ("auto", "yes"))
    assert not auto.arguments["input_ids"][:, 0].eq(0).any()
    assert forced.arguments["input_ids"][:, 0].eq(0).all()
    assert forced.policy["bos"] == "yes: <s> before and nothing after every sequence"


@pytest.mark.parametrize(
    ("truncation", "side", "expected"),
    [
        ("right", "left", [[0, 97, 98, 99], [2, 2, 0, 97]]),
        ("left", "right", [[0, 98, 99, 100], [0, 97, 2, 2]]),
        ("drop", "right", [[0, 97]]),
    ],
)
def test_documents_are_cut_and_padded_as_the_policy_says(
    truncation: str, side: str, expected: list[list[int]], llama: FoundModel, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "abcd"}\n{"text": "a"}\n')
    policy = {"packing": "documents", "truncation": truncation, "padding_side": side}
    found = text_of(llama, tmp_path / "t.jsonl", **policy).sequences(4)
    letters = {token: 97 + number for number, token in enumerate(_letters(llama))}
    ids = [[letters.get(token, token) for token in row] for row in found.arguments["input_ids"].tolist()]
    assert ids == expected
    padding = found.valid("")
    assert (padding is None) == (truncation == "drop")
    if padding is not None:
        np.testing.assert_array_equal(padding, np.array(expected) != 2)
    assert found.policy["packing"] == f"documents: one a sequence, padding on the {side}"
    assert found.policy["truncation"].startswith(f"{truncation}: ")


def _letters(found: FoundModel) -> list[int]:
    """Token ids of a, b, c, d."""
    vocabulary = json.loads((found.checkpoints[0].folder / "tokenizer.json").read_text())["model"]["vocab"]
    return [vocabulary[letter] for letter in "abcd"]


@pytest.mark.parametrize(
    ("policy", "length", "error", "message"),
    [
        ({"bos": "perhaps"}, 8, ConfigurationError, "bos must be among auto, yes, no, got 'perhaps'. Choose one"),
        ({}, 1, ConfigurationError, r"sequence_length must be above 1 \(special tokens of each\), got 1. Raise it"),
        ({}, 5000, DataError, "text must give at least one sequence of 5000 tokens, got .* tokens in 6 documents"),
    ],
)
def test_text_that_gives_no_sequence_is_refused(
    policy: dict[str, Any], length: int, error: type[RankkitError], message: str, llama: FoundModel, root: Path
) -> None:
    with pytest.raises(error, match=message):
        text_of(llama, root / "text.jsonl", **policy).sequences(length)


def test_a_model_without_a_tokenizer_reads_token_ids(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(root / "gpt2", folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigurationError, match=r"must hold tokenizer.json to read text, got none. Give token ids"):
        measured(folder, tmp_path / "s.h5", text=root / "text.jsonl")
    tokens = np.arange(30, dtype=np.uint16).reshape(3, 10)
    np.save(tmp_path / "t.npy", tokens)
    measured(folder, tmp_path / "s.h5", reading=Reading(tokens=tmp_path / "t.npy"), samples=3)
    np.testing.assert_array_equal(read_group(tmp_path / "s.h5", "m")["tokens"], tokens)


def test_an_image_model_reads_pixels(root: Path, tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "vit", "ViTForImageClassification")
    pixels = np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)
    np.save(tmp_path / "p.npy", pixels)
    measured(folder, tmp_path / "s.h5", reading=Reading(pixels=tmp_path / "p.npy"))
    stored = read_group(tmp_path / "s.h5", "vit")
    assert stored["tokens"].tolist() == [[-1] * 10] * 2
    maps = eager(folder, "ViTForImageClassification", {"pixel_values": torch.from_numpy(pixels)}).attentions
    for layer, map_ in enumerate(maps):
        expected = [singular_values(one, slice(None), slice(None)) for one in map_]
        np.testing.assert_allclose(stored["singular_values"][0, 0, 0, 0, :, layer], expected, atol=1e-5)
    with pytest.raises(
        ConfigurationError, match=r"text must be for a model that reads token ids, got ViT.* pixel_values"
    ):
        measured(folder, tmp_path / "t.h5", text=root / "text.jsonl")


@pytest.mark.parametrize(
    ("array", "argument", "message"),
    [
        (
            np.ones(3, dtype=np.int64),
            "input_ids",
            r"must hold whole numbers \(sequence, position\), got int64 of shape",
        ),
        (np.ones((2, 3)), "input_ids", r"must hold whole numbers \(sequence, position\), got float64"),
        (-np.ones((2, 3), dtype=np.int64), "input_ids", "must hold token ids of at least 0, got -1"),
        (
            np.ones((2, 3)),
            "pixel_values",
            r"must hold numbers \(sequence, channel, height, width\), got float64 of shape",
        ),
        (np.array([{}]), "input_ids", "must be a readable .npy file, got"),
    ],
)
def test_arrays_that_are_no_inputs_are_refused(array: Any, argument: str, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=message):
        read_array(tmp_path / "a.npy", argument)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"must have as many sequences in every argument, got \{\}"),
        ({"a": torch.ones(2, 3), "b": torch.ones(3, 3)}, "must have as many sequences in every argument, got"),
        (
            {"attention_mask": torch.tensor([[1, 0, 1]])},
            "must be 1 in one run of positions of every sequence, got holes",
        ),
        ({"attention_mask": torch.tensor([[0, 0]])}, "or a sequence of padding alone. Pad on one side"),
        ({"attention_mask": torch.ones(1, 1, 2, 2)}, r"must be \(sequence, position\) of 0 and 1, got \(1, 1, 2, 2\)"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(arguments: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ModelInputs(arguments=arguments)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sequence_length": 65}, r"sequence_length must be at most 64 \(the model's table of positions\), got 65"),
        ({"samples": 1000}, r"samples must be at most \d+ \(sequences in the text\), got 1000. Give more text"),
        ({"layers": (7,)}, r"layers must be within 0..1, got \[7\]. Choose layers that there are"),
        ({"layers": (0, 5)}, r"layers must be within 0..1, got \[0, 5\]"),
        ({"layers": ()}, r"layers must be within 0..1, got \[\]"),
        ({"heads": (4,)}, r"heads must be within 0..3, got \[4\]"),
        ({"seeds": (1,)}, r"seeds must be 0 for a model, got \[1\]"),
        ({"prefix_length": 4}, "prefix_length must stand in --swap-mask prefix:P for a model, got 4"),
        ({"checkpoints": "every:2"}, "checkpoints must be named as revisions for a model, got 'every:2'"),
        ({"layer_output": True}, "layer_output must have a rankkit model, got another"),
        ({"baselines": ("init",)}, "baselines must be among uniform, shuffled, gaussian, logits .*, got init"),
        (
            {"regions": ("prefix_block",)},
            "must be among full, first_key_removed .* got prefix_block. .*--swap-mask prefix",
        ),
    ],
)
def test_what_a_model_does_not_have_is_refused(config: dict[str, Any], message: str, root: Path) -> None:
    source = open_model(str(root / "gpt2"), Reading(text=(str(root / "text.jsonl"),)), CPU)
    with pytest.raises(ConfigurationError, match=message):
        source.plan(MeasureConfig(**{"sequence_length": N, **config}))


def test_baselines_that_rest_on_plain_logits_are_refused_for_a_bias() -> None:
    tokens = torch.ones(1, N, dtype=torch.long)
    inputs = {"input_ids": tokens, "decoder_input_ids": tokens}
    with pytest.raises(
        ConfigurationError, match=r"among shuffled for encoder \(logits: bias\), got uniform. Leave it out"
    ):
        measure_model(
            new_model("T5ForConditionalGeneration"), inputs, "s.h5", config=MeasureConfig(baselines=("uniform",))
        )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.full((1, N), 300)}, r"input_ids must be below 300 \(the model's vocabulary\), got 300"),
        ({"input_ids": torch.ones(1, 1, dtype=torch.long)}, "sequences must have at least 2 tokens, got 1"),
        ({"input_ids": torch.ones(1, 99, dtype=torch.long)}, "sequence_length must be at most 64"),
    ],
)
def test_token_ids_that_the_model_cannot_read_are_refused(inputs: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        measure_model(new_model("GPT2LMHeadModel"), inputs, tmp_path / "s.h5")


def test_an_encoder_alone_does_not_feed_a_decoder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"must hold decoder_input_ids, got input_ids. Give --text, or both"):
        measure_model(
            new_model("T5ForConditionalGeneration"),
            {"input_ids": torch.ones(1, N, dtype=torch.long)},
            tmp_path / "s.h5",
        )


def test_exactly_one_thing_is_read() -> None:
    with pytest.raises(
        ConfigurationError, match=r"exactly one of text, tokens and pixels must be given, got none. Pass"
    ):
        Reading()
    with pytest.raises(ConfigurationError, match="must be given, got text, tokens"):
        Reading(text=("a",), tokens=Path("b"))


def test_what_only_text_needs_is_refused_without_it() -> None:
    for given in ({"policy": TokenPolicy(bos="yes")}, {"target_length": 3}):
        with pytest.raises(
            ConfigurationError, match=r"bos, packing, .* must stand with text, got tokens. Leave them out"
        ):
            Reading(tokens=Path("b"), **given)
    for name, value in (("truncation", "drop"), ("padding_side", "left")):
        with pytest.raises(
            ConfigurationError, match=f"{name} must be .* for packed windows, .* got '{value}'. Add --packing"
        ):
            TokenPolicy(**{name: value})


@pytest.mark.parametrize(
    ("architecture", "argument", "values", "message"),
    [
        (
            "ViTForImageClassification",
            "input_ids",
            np.ones((2, N), dtype=np.int64),
            "must hold pixel_values, got input_ids. Give images",
        ),
        (
            "LlamaForCausalLM",
            "pixel_values",
            np.ones((2, 3, 8, 8)),
            "must hold input_ids, got pixel_values. Give text, or",
        ),
    ],
)
def test_a_model_is_not_given_what_it_cannot_read(
    architecture: str, argument: str, values: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        measure_model(new_model(architecture), {argument: torch.from_numpy(values)}, tmp_path / "s.h5")


def test_a_rankkit_model_is_measured_by_its_run(tmp_path: Path) -> None:
    own = Transformer(model_config())
    for model in (own, torch.nn.Sequential(own)):
        message = f"must not be rankkit's own, nor hold it, got {type(model).__name__}. Measure its run with"
        with pytest.raises(ConfigurationError, match=message):
            measure_model(model, {"tokens": torch.zeros(1, N)}, tmp_path / "s.h5")


def test_a_batch_fits_a_chunk() -> None:
    with pytest.raises(
        ConfigurationError, match=r"batch must be between 1 and 8 \(sequences in a chunk of the file\), got"
    ):
        ModelSettings(batch=9)


def test_a_measured_model_is_as_it_was(tmp_path: Path) -> None:
    model = new_model("GPT2LMHeadModel")
    model.train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    config = MeasureConfig(measures=("mean_ipr",), workers=1)
    measure_model(model, {"input_ids": torch.ones(1, N, dtype=torch.long)}, tmp_path / "s.h5", config=config)
    assert [module.training for module in model.modules()] == before
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_half_precision_widens_the_models_floor(root: Path, tmp_path: Path) -> None:
    floors = {}
    for dtype in ("float32", "bfloat16"):
        path = tmp_path / f"{dtype}.h5"
        opening = {"dtype": dtype}
        measured(root / "gpt2", path, text=root / "text.jsonl", sequence_length=N, opening=opening, regions=("full",))
        floors[dtype] = float(np.median(read_group(path, "gpt2")["floor_model"]))
        assert describe(path).root.attributes["precision"] == dtype
    assert floors["bfloat16"] > 100 * floors["float32"]
    with pytest.raises(ConfigurationError, match="dtype must be among float32, bfloat16, float16, got 'int8'"):
        open_model(str(root / "gpt2"), Reading(text=("a",)), CPU, dtype="int8")


def test_matrix_free_brackets_hold_the_exact_values(root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"text": root / "text.jsonl", "sequence_length": 40, "measures": ("effective_rank",)}
    options |= {"layers": (1,), "heads": (0, 3), "regions": ("full",), "samples": 1}
    measured(root / "llama", tmp_path / "exact.h5", **options)
    measured(root / "llama", tmp_path / "free.h5", method="matrix-free", matrix_free=FAST, **options)
    exact = read_group(tmp_path / "exact.h5", "llama")["effective_rank"]
    free = read_group(tmp_path / "free.h5", "llama")
    assert ((free["effective_rank_lower"] <= exact) & (exact <= free["effective_rank_upper"])).all()


def test_a_model_without_factors_gives_its_matrices(tmp_path: Path) -> None:
    class Plain(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            heads = hidden[:, None].repeat(1, 2, 1, 1)
            return (heads @ heads.mT).softmax(dim=-1) @ heads

    hidden = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    config = MeasureConfig(measures=FEW, workers=1)
    measure_model(Plain(), {"hidden": hidden}, tmp_path / "s.h5", config=config, batch=2)
    assert verify_file(tmp_path / "s.h5") == []
    (group,) = describe(tmp_path / "s.h5").groups
    assert str(group.attributes["logits"]).startswith("none: ")
    assert str(group.attributes["agreement"]).startswith(
        "every matrix is the model's own softmax; the output of the first 2"
    )
    stored = read_group(tmp_path / "s.h5", "model")
    assert (stored["region"].tolist(), stored["tokens"].tolist()) == (["full"], [[-1] * 7] * 2)
    expected = torch.linalg.svdvals((hidden @ hidden.mT).softmax(dim=-1).double())
    np.testing.assert_allclose(stored["singular_values"][0, 0, 0, 0, :, 0, 1], expected, atol=1e-5)
    with pytest.raises(ConfigurationError, match="got causal: there are matrices without queries and keys"):
        measure_model(Plain(), {"hidden": hidden}, tmp_path / "t.h5", swap_mask="causal")
    with pytest.raises(ConfigurationError, match="keep_qk must have queries and keys, got attention matrices"):
        measure_model(Plain(), {"hidden": hidden}, tmp_path / "t.h5", config=MeasureConfig(keep_qk=True))


@pytest.mark.parametrize(
    ("architecture", "limit"), [("GPT2LMHeadModel", 64), ("LlamaForCausalLM", None), ("BertForMaskedLM", 64)]
)
def test_the_longest_sequence_is_that_of_the_table_of_positions(architecture: str, limit: int | None) -> None:
    assert positions(new_model(architecture)) == limit


def test_padding_is_not_kept(root: Path, tmp_path: Path) -> None:
    message = "keep_qk and keep_attention must have whole sequences, got padding. Pack the text"
    with pytest.raises(ConfigurationError, match=message):
        measured(root / "gpt2", tmp_path / "s.h5", text=root / "text.jsonl", policy=DOCUMENTS, keep_qk=True, samples=6)
