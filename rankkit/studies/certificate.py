"""The proof that arms match: what each arm hashed of itself, compared.

For every two arms of a seed the certificate lists the configuration fields in which they differ, which must be the
declared ones, and whether initial weights, tokens, prefix lengths and target rows were the same at every
checkpoint. It is made from files alone, so that units trained on other machines are compared like local ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch

from rankkit.data.evaluation import evaluation_sequences
from rankkit.errors import MatchError
from rankkit.files import write_json
from rankkit.models.transformer import Transformer
from rankkit.studies.run import Run
from rankkit.training.checkpoints import CheckpointFacts, read_facts
from rankkit.training.config import ARMS, ArmConfig, differing_fields
from rankkit.training.consumption import Consumption, evaluation_hash, parameter_hashes
from rankkit.training.trainer import Trainer

__all__ = [
    "MatchWatch",
    "build_certificate",
    "certificate_problems",
    "declared_fields",
    "recompute_problems",
    "write_certificate",
]


def declared_fields(one: str, other: str) -> list[str]:
    """Fields in which two arms declare to differ."""
    return sorted(key for key in ARMS[one] if ARMS[one][key] != ARMS[other][key])


_MEANING = {
    "tokens": "tokens",
    "prefix_lengths": "prefix lengths",
    "target_rows": "target rows",
    "inputs": "masked inputs",
}
_OF_THE_STREAM = ("tokens", "prefix_lengths")  # the other chains are what an objective makes of it


def _must_match(one: str, other: str, chains: Iterable[str]) -> list[str]:
    """Those of an arm's chains that another arm must share."""
    same_objective = "objective" not in declared_fields(one, other)
    return [chain for chain in _MEANING if chain in chains and (same_objective or chain in _OF_THE_STREAM)]


def compare_chains(one: CheckpointFacts, other: CheckpointFacts) -> list[str]:
    """What two arms did not consume alike up to the same step, named."""
    return [
        f"{_MEANING[chain]} up to step {one.step}"
        for chain in _must_match(one.arm, other.arm, one.chains)
        if one.chains[chain] != other.chains.get(chain)
    ]


def compare_settings(one: CheckpointFacts, other: CheckpointFacts) -> list[str]:
    """Settings in which two arms differed without declaring it, by their own accounts."""
    fields = differing_fields(one.configuration, other.configuration)
    return [f"setting {name}" for name in fields if name not in declared_fields(one.arm, other.arm)]


def compare_beginning(one: CheckpointFacts, other: CheckpointFacts) -> list[str]:
    """Undeclared settings and weights in which two arms differed at step 0, named."""
    names = one.parameters.keys() | other.parameters.keys()
    wrong = sorted(name for name in names if one.parameters.get(name) != other.parameters.get(name))
    found = compare_settings(one, other) + [f"initial weights of {name}" for name in wrong]
    if one.evaluation_sha256 != other.evaluation_sha256:
        found.append("evaluation sequences")
    return found


def _mismatch(one: str, other: str, seed: int, what: list[str]) -> MatchError:
    return MatchError(
        f"arms {one} and {other} must differ in {' and '.join(declared_fields(one, other))} alone, but under seed {seed} "
        f"they also differ in {'; '.join(what[:3])}. The run was stopped; its checkpoints are kept for inspection."
    )


class MatchWatch:
    """Compares what arms report while they train, and with what is already on disk.

    Args:
        run: whose units are watched.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._steps: dict[tuple[int, int], dict[str, Mapping[str, str]]] = {}

    def started(self, initial: CheckpointFacts) -> None:
        """Compare settings and initial weights with those of the seed's other arms.

        Raises:
            MatchError: they differ.
        """
        self._compare_with_files(initial, compare_beginning)

    def stepped(self, arm: str, seed: int, step: int, chains: Mapping[str, str]) -> None:
        """Compare what two arms have consumed, as soon as both have reached a step.

        Raises:
            MatchError: it differs.
        """
        reported = self._steps.setdefault((seed, step), {})
        for other, others_chains in reported.items():
            shared = _must_match(arm, other, chains)
            wrong = [chain for chain in shared if chains[chain] != others_chains.get(chain)]
            if wrong:
                what = [f"{_MEANING[chain]} of step {step}" for chain in wrong]
                raise _mismatch(other, arm, seed, what)
        reported[arm] = chains
        if len(reported) == len(self._run.config.arms):
            del self._steps[seed, step]

    def saved(self, facts: CheckpointFacts) -> None:
        """Compare a checkpoint with the other arms' checkpoints of the same step.

        Raises:
            MatchError: they consumed different things.
        """
        self._compare_with_files(facts, compare_chains)

    def _compare_with_files(self, facts: CheckpointFacts, compare: Any) -> None:
        for other in self._run.config.arms:
            folder = self._run.directory.checkpoint(other, facts.seed, facts.step)
            if other != facts.arm and (folder / "checkpoint.json").is_file():
                what = compare(facts, read_facts(folder))
                if what:
                    raise _mismatch(facts.arm, other, facts.seed, what)


def _facts_by_step(run: Run, arm: str, seed: int) -> dict[int, CheckpointFacts]:
    steps = run.directory.checkpoint_steps(arm, seed)
    return {step: read_facts(run.directory.checkpoint(arm, seed, step)) for step in steps}


def build_certificate(run: Run) -> dict[str, Any]:
    """The certificate from the checkpoints on disk.

    Returns:
        A JSON object: `units` (what each arm hashed of itself) and `pairs` (the comparison of every two arms by seed), and
        `matched`, true when every pair has been compared and matches.
    """
    facts = {unit: _facts_by_step(run, *unit) for unit in run.config.units}
    pairs = list(_pairs(run, facts))
    return {
        "rankkit_certificate": 1,
        "matched": all(pair["matched"] for pair in pairs),
        "corpus": {"description": run.tokens().description},
        "units": [_unit_entry(arm, seed, by_step) for (arm, seed), by_step in facts.items()],
        "pairs": pairs,
    }


def _unit_entry(arm: str, seed: int, by_step: Mapping[int, CheckpointFacts]) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "initial_weights": by_step[0].parameters if 0 in by_step else {},
        "checkpoints": {
            str(step): {
                "consumed": facts.chains,
                "weights_sha256": facts.weights_sha256,
                "loss_tokens": facts.loss_tokens,
            }
            for step, facts in by_step.items()
        },
    }


def _pairs(run: Run, facts: Mapping[tuple[str, int], Mapping[int, CheckpointFacts]]) -> Iterator[dict[str, Any]]:
    for seed in run.config.seeds:
        for one, other in combinations(run.config.arms, 2):
            first, second = facts[one, seed], facts[other, seed]
            common = sorted(first.keys() & second.keys())
            fields: dict[str, tuple[Any, Any]] = {}
            problems: list[str] = []
            if first and second and 0 not in common:
                problems.append("no checkpoint of step 0 in both, so that initial weights cannot be compared")
            for step in common:
                fields |= differing_fields(first[step].configuration, second[step].configuration)
                compare = compare_settings if step else compare_beginning
                found = compare(first[step], second[step]) + compare_chains(first[step], second[step])
                problems += [problem for problem in found if problem not in problems]
            yield {
                "arms": [one, other],
                "seed": seed,
                "declared": declared_fields(one, other),
                "fields": {name: [str(value) for value in values] for name, values in fields.items()},
                "compared": _compared(common, _must_match(one, other, first[common[0]].chains)) if common else [],
                "steps": common,
                "environment": _environments(first, second, common),
                "problems": problems,
                "matched": not problems and bool(common),
            }


def _compared(steps: Sequence[int], chains: Sequence[str]) -> list[str]:
    """What the common checkpoints allow to compare."""
    beginning = ["initial weights", "evaluation sequences"] if 0 in steps else []
    return ["settings", *beginning, *(_MEANING[chain] for chain in chains)]


def _environments(
    first: Mapping[int, CheckpointFacts], second: Mapping[int, CheckpointFacts], steps: Sequence[int]
) -> dict[str, list[str | int | None]]:
    """Facts in which the machines, versions and code behind two units' checkpoints differ: not a mismatch, but known.

    Another processor, thread count or version rounds differently, which no arm declares and no arm can avoid when its
    partner trained elsewhere. `source_sha256` tells two states of the code apart.
    """
    found: dict[str, list[str | int | None]] = {}
    for step in steps:
        one, other = first[step].environment, second[step].environment
        found |= {
            key: [one.get(key), other.get(key)]
            for key in sorted(one.keys() | other.keys())
            if one.get(key) != other.get(key)
        }
    return found


def write_certificate(run: Run, mismatch: str | None = None) -> dict[str, Any]:
    """Build and write `certificate.json`; returns it.

    Args:
        run: whose certificate it is.
        mismatch: what stopped the run. It is recorded as `observed` where the checkpoints do not show it: units of
            several workers stop at different steps, and share no checkpoint after the difference.
    """
    certificate = build_certificate(run)
    if mismatch is not None and not certificate_problems(certificate):
        certificate |= {"matched": False, "observed": [mismatch]}
    write_json(run.directory.certificate, certificate)
    return certificate


def certificate_problems(certificate: Mapping[str, Any]) -> list[str]:
    """Every undeclared difference that a certificate lists, as sentences."""
    compared = [
        f"{pair['arms'][0]} and {pair['arms'][1]}, seed {pair['seed']}: {problem}"
        for pair in certificate["pairs"]
        for problem in pair["problems"]
    ]
    return [*certificate.get("observed", ()), *compared]


def recompute_problems(run: Run) -> list[str]:
    """Recompute from configuration and text what every arm must have held and consumed, and compare.

    Initial weights are drawn again from the seed, and the whole stream is read again up to the last checkpoint, so a
    certificate cannot agree with itself by accident: it takes the same configuration, the same text and the same code.

    Returns:
        What does not agree, as sentences; empty when everything does.
    """
    problems = []
    for arm, seed in run.config.units:
        by_step = _facts_by_step(run, arm, seed)
        if not by_step:
            continue
        config = run.config.arm(arm)
        problems += [
            f"{arm}, seed {seed}, step {step}: trained with {name} {then}, where run.toml has {now}"
            for step, facts in by_step.items()
            for name, (then, now) in differing_fields(facts.configuration, config).items()
        ]
        if 0 not in by_step:
            problems.append(f"{arm}, seed {seed}: the checkpoint of step 0 is missing")
        elif parameter_hashes(_initial_model(run, config, seed)) != by_step[0].parameters:
            whose = "its configuration and seed" if run.config.initial is None else run.config.initial.source
            problems.append(f"{arm}, seed {seed}: initial weights are not those of {whose}")
        if any(facts.evaluation_sha256 != _evaluation_hash(run) for facts in by_step.values()):
            problems.append(f"{arm}, seed {seed}: evaluation sequences are not those of its configuration and text")
        chains = dict(_replayed_chains(run, config, seed, max(by_step)))
        problems += [
            f"{arm}, seed {seed}, step {step}: {_MEANING[chain]} consumed are not those of its configuration and text"
            for step, facts in by_step.items()
            for chain in facts.chains
            if facts.chains[chain] != chains[step].get(chain)
        ]
    return problems


def _initial_model(run: Run, config: ArmConfig, seed: int) -> Transformer:
    beginning = run.beginning(seed)
    return Transformer(config.model, seed=seed) if beginning is None else beginning.model(config.model)


def _evaluation_hash(run: Run) -> str:
    train, n = run.config.base.train, run.config.base.model.sequence_length
    sequences = evaluation_sequences(run.tokens(), count=train.evaluation_sequences, sequence_length=n)
    return evaluation_hash(sequences.tokens, run.prefix_length)


def _replayed_chains(run: Run, config: ArmConfig, seed: int, steps: int) -> Iterator[tuple[int, dict[str, str]]]:
    """The chains after every step, from the stream alone."""
    stream = Trainer.stream_of(config, seed=seed, tokens=run.tokens())
    consumption = Consumption.of(config.task)
    beginning = run.beginning(seed)
    first = beginning.batches if beginning is not None else 0
    yield 0, dict(consumption.chains)
    for step in range(steps):
        batch = stream.batch(first + step)
        tokens = torch.from_numpy(batch.tokens)
        examples = Trainer.examples_of(config, seed, first + step, tokens, batch.prefix_lengths)
        consumption.add(tokens, batch.prefix_lengths, examples)
        yield step + 1, dict(consumption.chains)
