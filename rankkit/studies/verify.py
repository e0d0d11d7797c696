"""Whether a run or a spectrum file is whole and consistent, from the files alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from rankkit.data.tokens import verify_tokens
from rankkit.errors import RankkitError, RunError
from rankkit.spectra.measures import MEASURES, Measure
from rankkit.store import Spectra, describe, read_group, verify
from rankkit.studies.certificate import FORMAT, build_certificate, certificate_problems
from rankkit.studies.evaluations import read_evaluation
from rankkit.studies.recomputation import recompute_problems
from rankkit.studies.run import Run
from rankkit.training.checkpoints import load_model, read_facts

__all__ = ["verify_file", "verify_run"]


def verify_run(run: Run) -> list[str]:
    """Check tokens, tokenizer, checkpoints, certificate, evaluations and spectrum of a run.

    The certificate is built again from the checkpoints and compared with the one on file; initial weights and batches are
    made again from configuration, text and seed and compared with what every arm hashed of itself.

    Returns:
        What is wrong, as sentences; empty when nothing is.
    """
    problems = []
    try:
        verify_tokens(run.directory.tokens, run.directory.tokenizer)
    except RankkitError as error:
        problems.append(str(error))
        return problems  # without the text nothing else can be made again
    problems += _checkpoint_problems(run)
    try:
        problems += _certificate_problems(run)
        problems += recompute_problems(run)
    except RankkitError as error:  # a checkpoint that cannot be read, or a configuration that does not fit the text
        if str(error) not in problems:
            problems.append(str(error))
    problems += _evaluation_problems(run)
    if run.directory.spectrum.is_file():
        problems += [f"{run.directory.spectrum.name}: {problem}" for problem in _spectrum_problems(run)]
    return problems


def _spectrum_problems(run: Run) -> list[str]:
    """The run's spectrum file against itself, and against the checkpoints and the text that it says it measured."""
    path = run.directory.spectrum
    try:
        problems = verify_file(path)
        for group in describe(path).groups:
            arrays = read_group(path, group.name)
            for (s, seed), (k, step) in product(enumerate(arrays["seed"]), enumerate(arrays["step"])):
                facts = read_facts(run.directory.checkpoint(group.name, int(seed), int(step)))
                if str(arrays["checkpoint_sha256"][s][k]) != facts.weights_sha256:
                    problems.append(
                        f"{group.name}, seed {seed}, step {step}: measured on other weights than this run's"
                    )
            n = arrays["tokens"].shape[1]
            held_out = run.tokens().validation
            windows = rearrange(held_out[: len(held_out) // n * n], "(window position) -> window position", position=n)
            known = {row.tobytes() for row in np.asarray(windows, dtype=np.int32)}
            if not all(row.tobytes() in known for row in np.asarray(arrays["tokens"], dtype=np.int32)):
                problems.append(f"{group.name}: measured on other sequences than this run's held-out text")
    except RankkitError as error:
        return [str(error)]
    return problems


def _certificate_problems(run: Run) -> list[str]:
    path = run.directory.certificate
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        listed = certificate_problems(stored)
        version = min(int(stored["rankkit_certificate"]), FORMAT)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{path} must be a readable certificate, got: {error}"]
    again = build_certificate(run, version=version)
    problems = listed + [problem for problem in certificate_problems(again) if problem not in listed]
    if not problems and stored != again:
        problems.append(f"{path} must be what the checkpoints give, but differs. Write it again with --resume")
    return problems


def _checkpoint_problems(run: Run) -> list[str]:
    """Every checkpoint's weights against their hash, names and shapes."""
    problems = []
    for arm, seed in run.config.units:
        for step in run.directory.checkpoint_steps(arm, seed):
            try:
                load_model(run.directory.checkpoint(arm, seed, step), run.config.arm(arm).model)
            except RunError as error:
                problems.append(str(error))
    return problems


def _evaluation_problems(run: Run) -> list[str]:
    """Every finished unit's evaluation, against itself, its run and its last checkpoint."""
    problems = []
    for arm, seed in run.config.units:
        if run.finished(arm, seed):
            try:
                counted = read_evaluation(run, arm, seed)["loss_tokens"]
                trained = read_facts(run.directory.checkpoint(arm, seed, run.config.base.train.steps)).loss_tokens
            except RankkitError as error:
                problems.append(str(error))
                continue
            if counted != trained:
                problems.append(
                    f"{arm}, seed {seed}: evaluation after {counted} loss tokens, checkpoint after {trained}"
                )
    return problems


def verify_file(path: Path) -> list[str]:
    """Read a spectrum file whole, and compute every measure of the singular values again.

    Returns:
        What is wrong, as sentences; empty when nothing is.

    Raises:
        SpectrumFileError: not one of our files, or unreadable.
    """
    return verify(path, _recompute())


def _recompute() -> dict[str, Callable[[Spectra], NDArray[np.float64]]]:
    return {name: _again(measure) for name, measure in MEASURES.items() if measure.needs == "singular_values"}


def _again(measure: Measure) -> Callable[[Spectra], NDArray[np.float64]]:
    def compute(stored: Spectra) -> NDArray[np.float64]:
        numbers = (stored.singular_values, stored.rows, stored.columns, stored.floor_arithmetic)
        found: NDArray[np.float64] = measure.compute(*map(torch.from_numpy, numbers)).numpy()
        return found

    return compute
