"""`rankkit export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from rankkit.cli.console import Output, command_line, common_options, counted, examples, guarded

if TYPE_CHECKING:
    from rankkit.store.tables.export import Exported, TableFormat

__all__ = ["command"]

_TABLES = ("matrices", "layer_outputs", "comparison", "functional")


@click.command(
    "export",
    epilog=examples(
        "rankkit export runs/tiny/spectrum.h5 --to csv",
        "rankkit export runs/tiny/spectrum.h5 --to parquet --select layer=0:3 region=full",
        "rankkit export runs/tiny/spectrum.h5 --to csv --select arm=gpt --select head=0,4: --out gpt.csv",
        "rankkit export runs/tiny/spectrum.h5 --to csv --table comparison",
        "rankkit export runs/tiny/gpt --to huggingface --out gpt-hf",
    ),
)
@click.argument("file", metavar="FILE|RUN|RUN/ARM")
@click.argument("terms", nargs=-1, metavar="")  # what follows the first term of --select
@click.option("--to", type=click.Choice(("csv", "parquet", "huggingface")), required=True,
              help="A table (Parquet takes pyarrow), or the model of RUN/ARM for transformers.")  # fmt: skip
@click.option("--select", "selected", multiple=True, metavar="AXIS=LABELS ...",
              help="Rows to take: layer=5, layer=0:3 (0, 1, 2), layer=0,4: (0, 4, 5 ...), region=full.")  # fmt: skip
@click.option("--table", type=click.Choice(_TABLES), default="matrices", show_default=True,
              help="One row for each matrix, layer's output, effect of the mask, or loss with cut attention.")  # fmt: skip
@click.option("--baselines", is_flag=True, help="Baselines too: rows with their name in the column `baseline`.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the model.  [default: the run's first]")
@click.option("--step", type=click.IntRange(min=0), help="Checkpoint of the model.  [default: the last]")
@click.option(
    "--out", type=click.Path(), help="File to make (default: beside FILE, with its name), or the model's folder."
)
@click.option("--force", is_flag=True, help="Replace an existing file, or an earlier export of a model.")
@common_options
@guarded
def command(
    output: Output,
    file: str,
    terms: tuple[str, ...],
    to: TableFormat | Literal["huggingface"],
    selected: tuple[str, ...],
    table: str,
    baselines: bool,
    seed: int | None,
    step: int | None,
    out: str | None,
    force: bool,
) -> None:
    """A spectrum file as one tidy table, or a trained arm as a Hugging Face model.

    A table has a row per matrix, a column per label and measure.

    Rows are (arm, seed, step, region, applied_mask, sequence, layer, head); columns are these, what the matrix was, how it
    was measured, and every measure with its error and, where it was estimated, its bracket. Singular values are not in it:
    they are arrays, which HDF5 is for.

    What is not known is an empty cell (null in Parquet). Numbers have all their digits: pandas 3 reads back the very same
    ones, older pandas with read_csv(..., float_precision="round_trip").

    --select takes labels, in ranges without their end as in Python. Choices about one axis add up, those about
    different axes must all hold. Axes: arm, baseline, seed, step, region, applied_mask, sequence, layer, head; in the
    other tables quantity, measure, kept_rank and cut.

    A model (--to huggingface) goes into the folder --out: configuration, safetensors, tokenizer, and a card that says where
    it comes from. Causal arms with rotary positions are Arcee, Llama without the gate in its MLP; others are refused by
    name. The folder appears once transformers has loaded it and given the arm's logits on held-out text.
    """
    if to == "huggingface":
        _refuse_table_options(
            given={"--select": selected or terms, "--table": table != _TABLES[0], "--baselines": baselines}
        )
        _export_model(output, Path(file), seed=seed, step=step, out=out, force=force)
        return
    if seed is not None or step is not None:
        raise click.UsageError("--seed and --step choose a model: use them with --to huggingface, or --select.")
    from rankkit.files import RunDirectory
    from rankkit.store.tables.export import export_table
    from rankkit.store.tables.selection import read_terms

    path = RunDirectory(Path(file)).spectrum if Path(file).is_dir() else Path(file)
    place = Path(out) if out else path.with_name(f"{path.stem}{'' if table == 'matrices' else f'-{table}'}.{to}")
    select = read_terms((*selected, *terms))
    with output.progress(1) as progress:
        found = export_table(
            path, place, to=to, table=table, select=select, baselines=baselines, force=force, progress=progress
        )
    if found.left_out:
        output.note(f"left out: baselines {', '.join(found.left_out)}. Add --baselines to have them too.")
    output.say(
        f"{place}: {counted(found.rows, 'row')} of {counted(len(found.columns), 'column')}, {found.size / 2**20:.1f} MiB"
    )
    output.result(_as_dict(found, file=path, to=to, table=table))


def _refuse_table_options(*, given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value:
            raise click.UsageError(f"{name} is for tables: leave it out with --to huggingface.")


def _export_model(
    output: Output, path: Path, *, seed: int | None, step: int | None, out: str | None, force: bool
) -> None:
    """The model of RUN/ARM."""
    from rankkit.files import RunDirectory
    from rankkit.studies.stock.export import export_model

    if out is None:
        raise click.UsageError("--out must name a folder for --to huggingface.")
    if RunDirectory(path).configuration.is_file():
        raise click.UsageError(f"{path} must be RUN/ARM for --to huggingface, got a run. Name one of its arms.")
    found = export_model(
        path.parent, out, arm=path.name, seed=seed, step=step, command=command_line(without=("--force",)), force=force
    )
    output.say(
        f"{found.folder}: {found.architecture}, {counted(found.parameters, 'weight')} of {found.run}, {found.arm}, "
        f"seed {found.seed}, step {found.step}"
    )
    output.say(
        f"logits on {counted(found.compared_tokens, 'held-out token')}: within {found.logits_difference:.1e} of the largest"
    )
    if found.tokenizer != "yes":
        output.note(f"tokenizer: {found.tokenizer}.")
    output.result(asdict(found))


def _as_dict(found: Exported, *, file: Path, to: str, table: str) -> dict[str, Any]:
    from rankkit.store.tables.export import column_facts

    return {
        "file": str(file),
        "out": str(found.path),
        "format": to,
        "table": table,
        "rows": found.rows,
        "bytes": found.size,
        "columns": {column.name: column_facts(column) for column in found.columns},
        "quantities": {column.name: column_facts(column) for column in found.quantities},
        "baselines_left_out": list(found.left_out),
    }
