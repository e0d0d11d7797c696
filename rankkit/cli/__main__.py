"""`python -m rankkit.cli`, for where the script is not on the path."""

from __future__ import annotations

from rankkit.cli import main

main(prog_name="rankkit")
