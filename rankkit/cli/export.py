"""`rankkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankkit.cli.console import Output, common_options, examples, guarded

if TYPE_CHECKING:
    from rankkit.store.export import Exported, TableFormat

__all__ = ["command"]

_TABLES = ("matrices", "layer_outputs", "comparison", "functional")


@click.command(
    "export",
    epilog=examples(
        "rankkit export runs/tiny/spectrum.h5 --to csv",
        "rankkit export runs/tiny/spectrum.h5 --to parquet --select layer=0:3 region=full",
        "rankkit export runs/tiny/spectrum.h5 --to csv --select arm=gpt --select head=0,4: --out gpt.csv",
        "rankkit export runs/tiny/spectrum.h5 --to csv --table comparison",
    ),
)
@click.argument("file", metavar="FILE|RUN")
@click.argument("terms", nargs=-1, metavar="")  # what follows the first term of --select
@click.option("--to", type=click.Choice(("csv", "parquet")), required=True, help="Format. Parquet takes pyarrow.")
@click.option("--select", "selected", multiple=True, metavar="AXIS=LABELS ...",
              help="Rows to take: layer=5, layer=0:3 (0, 1, 2), layer=0,4: (0, 4, 5 ...), region=full.")  # fmt: skip
@click.option("--table", type=click.Choice(_TABLES), default="matrices", show_default=True,
              help="One row for each matrix, layer's output, effect of the mask, or loss with cut attention.")  # fmt: skip
@click.option("--baselines", is_flag=True, help="Baselines too: rows with their name in the column `baseline`.")
@click.option("--out", type=click.Path(dir_okay=False), help="File to make.  [default: beside FILE, with its name]")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@common_options
@guarded
def command(
    output: Output,
    file: str,
    terms: tuple[str, ...],
    to: TableFormat,
    selected: tuple[str, ...],
    table: str,
    baselines: bool,
    out: str | None,
    force: bool,
) -> None:
    """A spectrum file as one tidy table: a row per matrix, a column per label and measure.

    Rows are (arm, seed, step, region, applied_mask, sequence, layer, head); columns are these, what the matrix was, how it
    was measured, and every measure with its error and, where it was estimated, its bracket. Singular values are not in it:
    they are arrays, which HDF5 is for.

    What is not known is an empty cell (null in Parquet). Numbers have all their digits: pandas 3 reads back the very same
    ones, older pandas with read_csv(..., float_precision="round_trip").

    --select takes labels, in ranges without their end as in Python. Choices about one axis add up, those about
    different axes must all hold. Axes: arm, baseline, seed, step, region, applied_mask, sequence, layer, head; in the
    other tables quantity, measure, kept_rank and cut.
    """
    from rankkit.files import RunDirectory
    from rankkit.store.export import export_table
    from rankkit.store.selection import read_terms

    path = RunDirectory(Path(file)).spectrum if Path(file).is_dir() else Path(file)
    place = Path(out) if out else path.with_name(f"{path.stem}{'' if table == 'matrices' else f'-{table}'}.{to}")
    select = read_terms((*selected, *terms))
    with output.progress(1) as progress:
        found = export_table(
            path, place, to=to, table=table, select=select, baselines=baselines, force=force, progress=progress
        )
    if found.left_out:
        output.note(f"left out: baselines {', '.join(found.left_out)}. Add --baselines to have them too.")
    output.say(f"{place}: {found.rows:,} rows of {len(found.columns)} columns, {found.size / 2**20:.1f} MiB")
    output.result(_as_dict(found, file=path, to=to, table=table))


def _as_dict(found: Exported, *, file: Path, to: str, table: str) -> dict[str, Any]:
    from rankkit.store.export import column_facts

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
