"""Going on from a trained arm under another mask or objective.

The weights are copied into the new run, seed by seed, so that it can be resumed, verified and spread over machines without
the old one. The optimizer starts fresh and the learning rate warms up again: what goes on is the model, not the training.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from rankkit.data.tokens import TokenFiles
from rankkit.errors import ConfigurationError, RunError
from rankkit.files import RunDirectory, sha256_of_file
from rankkit.models.config import ModelConfig
from rankkit.studies.run import Run, open_run
from rankkit.training.checkpoints import read_facts
from rankkit.training.config import InitialWeights, RunConfig
from rankkit.training.settings import to_table

__all__ = ["Source", "open_source"]


@dataclass(frozen=True, slots=True)
class Source:
    """A trained arm at one step, under all its seeds."""

    run: Run
    """That trained it."""
    arm: str
    """Its name."""
    step: int
    """Of its checkpoints."""

    @property
    def name(self) -> str:
        """RUN/ARM@STEP."""
        return f"{self.run.directory.path}/{self.arm}@{self.step}"

    @property
    def has_mask_id(self) -> bool:
        """Whether its vocabulary has an id for hidden tokens."""
        return self.run.config.base.model.vocab_size > self.run.tokens().vocab_size

    def check(self, config: RunConfig) -> None:
        """Refuse what can be refused before the text is prepared.

        Raises:
            ConfigurationError: another shape, or a seed that was not trained.
        """
        given, own = (to_table(model) for model in (config.base.model, self._model))
        for name, value in given.items():
            if name not in ("mask", "vocab_size") and own[name] != value:
                raise ConfigurationError(
                    f"--init-from must name a model of this shape, got {self.name} with {name} {own[name]} where this run "
                    f"has {value}. Set model.{name} to {own[name]}."
                )
        for seed in config.seeds:
            steps = self.run.directory.checkpoint_steps(self.arm, seed)
            if seed not in self.run.config.seeds or self.step not in steps:
                raise ConfigurationError(
                    f"--init-from must name an arm trained under every seed of this run, got {self.name} without seed "
                    f"{seed} at that step. It has seeds {', '.join(map(str, self.run.config.seeds))}, and seed {seed} "
                    f"checkpoints at {steps or 'no step'}. Choose from them with --seeds and @STEP."
                )

    @property
    def _model(self) -> ModelConfig:
        return self.run.config.arm(self.arm).model

    def copy_to(self, directory: RunDirectory, config: RunConfig, tokens: TokenFiles) -> InitialWeights:
        """Copy the weights of every seed into a new run.

        Args:
            directory: of the new run.
            config: of the new run, with the vocabulary of its tokenizer.
            tokens: of the new run.

        Raises:
            ConfigurationError: another shape, tokenizer or vocabulary, or a seed that was not trained.
            RunError: a checkpoint that does not match its hash.
        """
        self.check(config)
        self._check_tokens(config, tokens)
        directory.initial_weights(0).parent.mkdir()
        before = self.run.config.initial
        return InitialWeights(
            source=self.name,
            batches=self.step + (before.batches if before is not None else 0),
            same_text=tokens.description["train"]["sha256"] == self.run.tokens().description["train"]["sha256"],
            sha256=tuple(self._copied(seed, directory.initial_weights(seed)) for seed in config.seeds),
        )

    def _check_tokens(self, config: RunConfig, tokens: TokenFiles) -> None:
        theirs = self.run.tokens().description
        if theirs["tokenizer_sha256"] != tokens.description["tokenizer_sha256"]:
            raise ConfigurationError(
                f"--init-from must name a model of this tokenizer, got {self.name} with {theirs['tokenizer']!r} where this "
                f"run has {tokens.description['tokenizer']!r}, and other words or merges. Pass --tokenizer "
                f"{self.run.directory.tokenizer}."
            )
        ours, own = config.base.model.vocab_size, self._model.vocab_size
        if ours != own:
            remedy = "Use the text and the tokenizer that it was trained on."
            if config.needs_mask_id and not self.has_mask_id:
                remedy = "It has no id for hidden tokens: train it in a run that has a masked arm too."
            raise ConfigurationError(
                f"--init-from must name a model of this vocabulary, got {self.name} with vocab_size {own} where this run "
                f"has {ours}. {remedy}"
            )

    def _copied(self, seed: int, path: Path) -> str:
        folder = self.run.directory.checkpoint(self.arm, seed, self.step)
        expected = read_facts(folder).weights_sha256
        shutil.copyfile(folder / "model.safetensors", path)
        if sha256_of_file(path) != expected:
            raise RunError(f"{folder}/model.safetensors must match the hash in checkpoint.json. Check it with inspect.")
        return expected


def open_source(name: str) -> Source:
    """The trained arm that RUN/ARM[@STEP] names; without a step its last one.

    Raises:
        ConfigurationError: not of that form, or no arm of the run.
        RunError: no such run.
    """
    path = Path(name)
    arm, at, step = path.name.partition("@")
    if not arm or (at and not step.isdecimal()):
        raise ConfigurationError(
            f"--init-from must look like RUN/ARM or RUN/ARM@STEP, got {name!r}. Name a trained arm."
        )
    if RunDirectory(path).configuration.is_file():
        arms = ", ".join(open_run(path).config.arms)
        raise ConfigurationError(
            f"--init-from must name an arm of a run, got the run {name!r} with arms {arms}. Write {name}/ARM."
        )
    run = open_run(path.parent)
    if arm not in run.config.arms:
        raise ConfigurationError(
            f"--init-from must name an arm of {path.parent}, got {arm!r}. It has {', '.join(run.config.arms)}."
        )
    return Source(run, arm, int(step) if at else run.config.base.train.steps)
