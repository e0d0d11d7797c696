"""`rankkit merge`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankkit.cli.console import INTERRUPTED, Output, common_options, counted, examples, guarded

if TYPE_CHECKING:
    from rankkit.studies.merging.merge import Merged

__all__ = ["command"]


@click.command(
    "merge",
    epilog=examples(
        "rankkit merge shard-0.h5 shard-1.h5 shard-2.h5 --out spectrum.h5",
        "rankkit merge seed-*.h5 --out spectrum.h5 --force",
        "rankkit merge layers-0-5.h5 layers-6-11.h5 --out spectrum.h5 --json",
    ),
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="HDF5 file to make.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@common_options
@guarded
def command(output: Output, files: tuple[Path, ...], out: Path, force: bool) -> None:
    """Put spectrum files of one study together: seeds, checkpoints, shards of samples, layers, heads, regions or arms.

    The result is the file that one `rankkit spectrum` would have written. The files must come from one run, measured when
    it was whole: configuration, certificate, checkpoints, tokens, measures and methods must match, and every matrix must be
    in exactly one file. What does not match is refused by name. Host facts that differ between machines are listed, joined
    by ";".
    """
    from rankkit.studies.drive import interruption
    from rankkit.studies.measuring.plan import MeasurementInterruptedError
    from rankkit.studies.merging.merge import merge

    if len(files) == 1:
        output.note("only one file was given: the result will hold what it holds.")
    try:
        with interruption() as request, output.progress(1) as advance:
            found = merge(files, out, force=force, on_progress=advance, stop=request)
    except MeasurementInterruptedError as error:
        click.echo(f"Interrupted: {error}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    _show(found, output)
    output.result(_as_dict(found))


def _show(found: Merged, output: Output) -> None:
    """What was merged, and the next command."""
    for name, labels in found.groups.items():
        axes = "; ".join(f"{axis} {_in_words(values)}" for axis, values in labels.items())
        output.say(f"/{name}: {counted(found.matrices[name], 'matrix')}; {axes}")
    if found.compared is not None:
        output.say(f"/comparison: {' and '.join(found.compared)}, computed again")
    for arm in found.functional:
        output.say(f"/functional/{arm}")
    size = found.path.stat().st_size / 2**20
    output.say(f"file: {found.path}, {size:.1f} MiB, from {counted(len(found.files), 'file')}")
    output.say(f"next: rankkit inspect {shlex.quote(str(found.path))} --verify")


def _in_words(labels: Sequence[Any]) -> str:
    """Names one by one, and runs of numbers as 0-15."""
    runs: list[list[Any]] = []
    for label in labels:
        if runs and isinstance(label, int) and label == runs[-1][-1] + 1:
            runs[-1][1:] = [label]
        else:
            runs.append([label])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _as_dict(found: Merged) -> dict[str, Any]:
    return {
        "file": str(found.path),
        "files": [str(path) for path in found.files],
        "groups": {name: {**labels, "matrices": found.matrices[name]} for name, labels in found.groups.items()},
        "comparison": found.compared,
        "functional": found.functional,
    }
