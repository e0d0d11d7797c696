"""The command line: one file per command; the only place that prints, parses options or knows exit codes."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

import click

__all__ = ["main"]

_COMMANDS = (
    "demo",
    "train-pair",
    "spectrum",
    "report",
    "compare",
    "run",
    "inspect",
    "merge",
    "export",
    "sample",
    "presets",
)


class _Commands(click.Group):
    """Commands in the order in which a newcomer needs them, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"rankkit.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("rankkit"), prog_name="rankkit")
def main() -> None:
    """What the attention mask does to the rank of attention, and to what a model learns, measured.

    Start with `rankkit demo`. Shell completion: eval "$(_RANKKIT_COMPLETE=bash_source rankkit)" (or zsh_source,
    fish_source).
    """
