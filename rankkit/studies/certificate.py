"""The proof that arms match: what each arm hashed of itself, compared.

For every two arms of a seed the certificate lists the configuration fields in which they differ, which must be the
declared ones, those in which they do not, and whether initial weights, tokens, prefix lengths and (under one objective)
target rows and masked inputs were the same at every checkpoint. It is made from files alone, so that units trained on
other machines are compared like local ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields as fields_of
from itertools import combinations
from typing import Any, Final

from rankkit.data.config import DataConfig
from rankkit.errors import MatchError
from rankkit.files import write_json
from rankkit.models.config import ModelConfig
from rankkit.studies.run import Run
from rankkit.training.checkpoints import CheckpointFacts, read_facts
from rankkit.training.config import ARMS, InitialWeights, TrainConfig, differing_fields

__all__ = [
    "MatchWatch",
    "build_certificate",
    "certificate_problems",
    "declared_fields",
    "write_certificate",
]


FORMAT: Final = 2
"""Of certificate.json; 1 did not list the settings that two arms share."""


def declared_fields(one: str, other: str) -> list[str]:
    """Fields in which two arms declare to differ."""
    return sorted(key for key in ARMS[one] if ARMS[one][key] != ARMS[other][key])


MEANING: Final = {
    "tokens": "tokens",
    "prefix_lengths": "prefix lengths",
    "target_rows": "target rows",
    "inputs": "masked inputs",
}
"""What a chain is a chain of."""
_OF_THE_STREAM = ("tokens", "prefix_lengths")  # the other chains are what an objective makes of it


def _must_match(one: str, other: str, chains: Iterable[str]) -> list[str]:
    """Those of an arm's chains that another arm must share."""
    same_objective = "objective" not in declared_fields(one, other)
    return [chain for chain in MEANING if chain in chains and (same_objective or chain in _OF_THE_STREAM)]


def compare_chains(one: CheckpointFacts, other: CheckpointFacts) -> list[str]:
    """What two arms did not consume alike up to the same step, named."""
    return [
        f"{MEANING[chain]} up to step {one.step}"
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
                what = [f"{MEANING[chain]} of step {step}" for chain in wrong]
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


def facts_by_step(run: Run, arm: str, seed: int) -> dict[int, CheckpointFacts]:
    """What every checkpoint of a unit says, by step."""
    steps = run.directory.checkpoint_steps(arm, seed)
    return {step: read_facts(run.directory.checkpoint(arm, seed, step)) for step in steps}


def build_certificate(run: Run, *, version: int = FORMAT) -> dict[str, Any]:
    """The certificate from the checkpoints on disk.

    Args:
        run: whose certificate it is.
        version: of the format, for comparing with a certificate that is there.

    Returns:
        A JSON object: `units` (what each arm hashed of itself) and `pairs` (the comparison of every two arms by seed),
        `matched`, true when every pair has been compared and matches, and in a run that goes on from another one `initial`.
    """
    facts = {unit: facts_by_step(run, *unit) for unit in run.config.units}
    pairs = list(_pairs(run, facts))
    if version < FORMAT:
        pairs = [{name: value for name, value in pair.items() if name != "same"} for pair in pairs]
    initial = {} if run.config.initial is None else {"initial": _initial_entry(run.config.initial, run.config.seeds)}
    return {
        "rankkit_certificate": version,
        **initial,
        "matched": all(pair["matched"] for pair in pairs),
        "corpus": {"description": run.tokens().description},
        "units": [_unit_entry(arm, seed, by_step) for (arm, seed), by_step in facts.items()],
        "pairs": pairs,
    }


def _initial_entry(initial: InitialWeights, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "source": initial.source,
        "same_text": initial.same_text,
        "batches": initial.batches,
        "weights_sha256": {str(seed): digest for seed, digest in zip(seeds, initial.sha256, strict=True)},
        "optimizer": "fresh",
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
                "same": sorted(_setting_names() - fields.keys()) if common else [],
                "compared": _compared(common, _must_match(one, other, first[common[0]].chains)) if common else [],
                "steps": common,
                "environment": _environments(first, second, common),
                "problems": problems,
                "matched": not problems and bool(common),
            }


def _setting_names() -> set[str]:
    """Of everything that an arm's configuration holds."""
    return {item.name for section in (ModelConfig, TrainConfig, DataConfig) for item in fields_of(section)}


def _compared(steps: Sequence[int], chains: Sequence[str]) -> list[str]:
    """What the common checkpoints allow to compare."""
    beginning = ["initial weights", "evaluation sequences"] if 0 in steps else []
    return ["settings", *beginning, *(MEANING[chain] for chain in chains)]


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
