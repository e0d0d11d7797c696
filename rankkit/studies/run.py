"""A run on disk: made once, opened by every verb after it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rankkit.data.config import DataConfig
from rankkit.data.corpora import Corpus
from rankkit.data.tokens import TokenFiles, open_tokens, prepare_tokens
from rankkit.display import html_table
from rankkit.errors import ConfigurationError, RunError
from rankkit.files import RunDirectory, atomic_directory, check_output_folder, write_text
from rankkit.models.config import ModelConfig
from rankkit.models.transformer import Transformer
from rankkit.training import checkpoints
from rankkit.training.beginning import Beginning
from rankkit.training.config import ARMS, ArmConfig, RunConfig, TrainConfig
from rankkit.training.environment import environment
from rankkit.training.settings import from_table, to_table, toml_text

if TYPE_CHECKING:
    from rankkit.studies.initial_weights import Source

__all__ = ["Run", "create_run", "load_model", "open_run"]

FORMAT = 1  # of run.toml; a newer one is refused


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """A run directory together with its configuration."""

    directory: RunDirectory
    """Where its files are."""
    config: RunConfig
    """Arms, seeds and what they share."""
    facts: Mapping[str, Any]
    """`command`, `created` and `environment` as recorded when it was made."""

    @property
    def threads(self) -> int:
        """CPU threads of each worker; fixed for the life of the run, because results depend on it in the last bits."""
        return int(self.facts["environment"]["threads"])

    @property
    def prefix_length(self) -> int:
        """The one prefix length of evaluation and spectra."""
        return self.config.base.train.evaluation_prefix_length(self.config.base.model.sequence_length)

    def tokens(self) -> TokenFiles:
        """The prepared text, memory-mapped."""
        return open_tokens(self.directory.tokens)

    def finished(self, arm: str, seed: int) -> bool:
        """Whether a unit is complete."""
        return self.directory.evaluation(arm, seed).is_file()

    def beginning(self, seed: int) -> Beginning | None:
        """The trained weights that a seed's arms begin with; None where they are drawn."""
        initial = self.config.initial
        if initial is None:
            return None
        digest = initial.sha256[self.config.seeds.index(seed)]
        return Beginning(self.directory.initial_weights(seed), digest, initial.batches)

    def __repr__(self) -> str:
        seeds = ", ".join(map(str, self.config.seeds))
        return f"Run({str(self.directory.path)!r}, arms {', '.join(self.config.arms)}, seeds {seeds})"

    def _repr_html_(self) -> str:
        """How far every unit is, for notebooks."""
        train, model = self.config.base.train, self.config.base.model
        headings = ("arm", "mask", "objective", *(f"seed {seed}" for seed in self.config.seeds))
        rows = [
            [
                arm,
                str(config.model.mask),
                str(config.train.objective),
                *(self._state(arm, seed) for seed in self.config.seeds),
            ]
            for arm, config in ((name, self.config.arm(name)) for name in self.config.arms)
        ]
        note = (
            f"{train.steps:,} steps of {train.batch_size} sequences of {model.sequence_length} tokens; {model.num_layers} "
            f"layers of {model.num_heads} heads; made {self.facts['created']}."
        )
        return html_table(f"Run {self.directory.path}", headings, rows, notes=[note])

    def _state(self, arm: str, seed: int) -> str:
        if self.finished(arm, seed):
            return "finished"
        steps = self.directory.checkpoint_steps(arm, seed)
        return f"step {steps[-1]:,}" if steps else "not begun"

    @property
    def unfinished(self) -> list[tuple[str, int]]:
        """Units that are not complete."""
        return [unit for unit in self.config.units if not self.finished(*unit)]


def create_run(
    config: RunConfig,
    path: Path,
    *,
    device: torch.device,
    threads: int,
    command: str,
    force: bool = False,
    corpus: Corpus | None = None,
    source: Source | None = None,
) -> Run:
    """Prepare the text and write the resolved configuration.

    The directory appears under its name when everything is in it; a failure leaves nothing, and an existing run that
    `force` would replace stays until then.

    Args:
        config: arms, seeds and what they share; its vocabulary is replaced by the tokenizer's, with one id more where an arm
            predicts hidden tokens or the source's vocabulary has it.
        path: of the run directory.
        device: where it will train; decides the recorded kernel.
        threads: CPU threads of each worker, fixed for the life of the run.
        command: the command line, recorded.
        force: replace an existing run.
        corpus: documents to train on instead of those that the configuration names.
        source: a trained arm whose weights all arms begin with, seed by seed; None draws them.

    Raises:
        ConfigurationError: bfloat16 without CUDA, or a source of another shape, tokenizer or vocabulary.
        OutputExistsError: the directory exists.
        DataError: the text cannot be used.
        StorageError: the file system refused.
    """
    if config.base.train.precision == "bfloat16" and device.type != "cuda":
        raise ConfigurationError(
            f"precision must be float32 on {device.type}, got bfloat16. Add --set train.precision=float32, or use CUDA."
        )
    check_output_folder(path, force=force)
    with atomic_directory(path) as temporary:
        directory = RunDirectory(temporary)
        tokens = prepare_tokens(
            config.base.data,
            directory.tokens,
            directory.tokenizer,
            sequence_length=config.base.model.sequence_length,
            corpus=corpus,
        )
        reserved = config.needs_mask_id or (source is not None and source.has_mask_id)
        base = replace(config.base, model=replace(config.base.model, vocab_size=tokens.vocab_size + reserved))
        config = replace(config, base=base)
        if source is not None:
            config = replace(config, initial=source.copy_to(directory, config, tokens))
        facts = _facts(base, device, threads, command)
        write_text(directory.configuration, toml_text(_table(config, facts)))
    return Run(RunDirectory(path), config, facts)


def _facts(base: ArmConfig, device: torch.device, threads: int, command: str) -> dict[str, Any]:
    precision = torch.bfloat16 if base.train.precision == "bfloat16" else torch.float32
    return {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(device, precision, threads),
    }


def _table(config: RunConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """`run.toml`."""
    return {
        "rankkit_run": FORMAT,
        "command": facts["command"],
        "created": facts["created"],
        "run": {key: value for key, value in to_table(config).items() if key != "base"},
        **to_table(config.base),
        "arms": _declarations(config),
        "environment": facts["environment"],
    }


def _declarations(config: RunConfig) -> dict[str, dict[str, str]]:
    """What every arm of a run declares."""
    return {name: {key: str(value) for key, value in ARMS[name].items()} for name in config.arms}


def open_run(path: str | Path) -> Run:
    """Open a run directory.

    Raises:
        RunError: missing, foreign, damaged, or made by a newer version.
    """
    directory = RunDirectory(Path(path))
    if not directory.path.exists():
        raise RunError(f"{path} must be a rankkit run, got no such file or folder. Check the spelling.")
    if not directory.configuration.is_file():
        raise RunError(f"{path} must be a rankkit run, but holds no run.toml. Make one with rankkit train-pair.")
    try:
        table = tomllib.loads(directory.configuration.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{directory.configuration} must be TOML, got: {error}. Restore the file.") from error
    found = table.get("rankkit_run")
    if not isinstance(found, int):
        raise RunError(f"{directory.configuration} must name its format in rankkit_run, got {found!r}. It is not ours.")
    if found > FORMAT:
        raise RunError(f"{path} must be of run format {FORMAT} or older, got {found}. Install a newer rankkit.")
    try:
        config, facts = _config(table), {key: table[key] for key in ("command", "created", "environment")}
        _check(table, config)
    except (ConfigurationError, KeyError, TypeError) as error:
        raise RunError(
            f"{directory.configuration} must hold a valid configuration, got: {error}. Restore it."
        ) from error
    return Run(directory, config, facts)


def _check(table: Mapping[str, Any], config: RunConfig) -> None:
    """Refuse what the configuration does not read itself, but what the results depend on."""
    if table["arms"] != _declarations(config):
        raise ConfigurationError(f"arms must declare {_declarations(config)}, got {table['arms']}")
    if type(table["environment"]["threads"]) is not int or table["environment"]["threads"] < 1:
        raise ConfigurationError(f"threads must be at least 1, got {table['environment']['threads']!r}")


def _config(table: Mapping[str, Any]) -> RunConfig:
    base = ArmConfig(
        model=from_table(ModelConfig, table["model"], "model"),
        train=from_table(TrainConfig, table["train"], "train"),
        data=from_table(DataConfig, table["data"], "data"),
    )
    return replace(from_table(RunConfig, table["run"], "run"), base=base)


def load_model(path: str | Path, *, arm: str, seed: int, step: int | None = None) -> Transformer:
    """A trained arm of a run, in evaluation mode on the CPU, its weights proven by their hash.

    Args:
        path: of the run directory.
        arm: name of the arm.
        seed: under which it was trained.
        step: of the checkpoint; None for the last one.

    Raises:
        RunError: no such run, arm, seed or step, or a damaged checkpoint.
    """
    run = open_run(path)
    if (arm, seed) not in run.config.units:
        raise RunError(
            f"{path} must hold arm {arm} under seed {seed}, but has arms {', '.join(run.config.arms)} and seeds "
            f"{', '.join(map(str, run.config.seeds))}. Choose from them."
        )
    steps = run.directory.checkpoint_steps(arm, seed)
    chosen = (steps[-1] if steps else None) if step is None else step
    if chosen not in steps:
        raise RunError(f"{path} must have a checkpoint of {arm} at step {chosen}, but has {steps}. Choose one of them.")
    return checkpoints.load_model(run.directory.checkpoint(arm, seed, chosen), run.config.arm(arm).model)
