"""`rankkit report`."""

from __future__ import annotations

from pathlib import Path

import click

from rankkit.cli.console import Output, common_options, examples, guarded

__all__ = ["command"]


@click.command(
    "report",
    epilog=examples(
        "rankkit report runs/demo",
        "rankkit report runs/demo/training.h5 --out training.html",
        "rankkit report runs/demo --measure stable_rank --full --force",
        "rankkit report runs/small runs/medium runs/large --out sizes.html",
    ),
)
@click.argument("targets", nargs=-1, required=True, metavar="RUN|FILE...")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
              help="Page to make.  [default: RUN/report.html, FILE-report.html; report.html for several]")  # fmt: skip
@click.option("--measure", help="Which to show.  [default: effective_rank, or the first there is]")
@click.option("--full", is_flag=True, help="All measures and regions, however large the page; else under a megabyte.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@common_options
@guarded
def command(
    output: Output, targets: tuple[str, ...], out: Path | None, measure: str | None, full: bool, force: bool
) -> None:
    """One self-contained HTML page: did the arms match, what happened to the loss, where does rank differ, and why.

    RUN is a run directory with its spectrum.h5; FILE a spectrum file, which brings the run in whose folder it lies. The page
    needs no network and can be read without JavaScript. Targets that are one study under other seeds are pooled; models of
    several sizes become a series; anything else stands side by side.
    """
    from rankkit.report.page.build import write_report

    written = write_report(targets, out, measure=measure, full=full, force=force)
    for sentence in written.answers:
        output.say(sentence)
    if written.left_out:
        output.note(f"left out: {'; '.join(written.left_out)}. Add --full to have all.")
    output.say(f"page: {written.path}, {written.size / 1e6:.2f} MB")
    output.result(
        {
            "page": str(written.path),
            "bytes": written.size,
            "answers": list(written.answers),
            "left_out": list(written.left_out),
        }
    )
