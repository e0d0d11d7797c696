"""Every command and every snippet of the README, parsed or run."""

import re
import shlex
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from rankkit.cli import _COMMANDS, main
from rankkit.data import synthetic

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
LINES = [line.strip().split("   ")[0] for line in README.splitlines() if line.startswith("    rankkit ")]
INLINE = re.findall(r"`(rankkit [a-z][^`]*)`", README)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small `runs/demo` in it, shaped like the real one."""
    root = tmp_path_factory.mktemp("readme")
    text = root / "text"
    text.mkdir()
    for number, document in enumerate(synthetic(0, 60)):
        (text / f"{number}.txt").write_text(document.text, encoding="utf-8")
    settings = ("model.d_model=16", "model.num_heads=2", "model.head_dim=8", "model.num_layers=2", "train.batch_size=2",
                "train.evaluation_sequences=4")  # fmt: skip
    sets = [part for setting in settings for part in ("--set", setting)]
    demo = str(root / "runs" / "demo")
    threads = torch.get_num_threads()
    for command in (
        ["train-pair", str(text), "--out", demo, "--steps", "2", "--seeds", "0,1", "--workers", "1", *sets],
        ["spectrum", demo, "--samples", "2"],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    torch.set_num_threads(threads)
    (root / "prompt.txt").write_text("def", encoding="utf-8")
    return root


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_python_snippet_runs_and_prints(
    snippet: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    exec(compile(snippet, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 2


@pytest.mark.parametrize("line", [*LINES, *INLINE])
def test_command_line_is_one_that_rankkit_accepts(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    name, *arguments = shlex.split(line.partition("#")[0])[1:]
    assert name in _COMMANDS
    command = main.get_command(click.Context(main), name)
    assert command is not None
    if {"RUN", "FILE", "ARM"} & set(arguments):
        return  # a synopsis, not a command line
    with command.make_context(name, arguments) as context:
        assert context.params


def test_readme_shows_commands_snippets_and_pictures_that_exist() -> None:
    assert len(SNIPPETS) >= 2
    assert len(LINES) >= 4
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert len(pictures) >= 3
    for picture in pictures:
        assert (Path(__file__).parent.parent / picture).stat().st_size > 1000
    for target in re.findall(r"\]\(([A-Za-z/]+\.md)\)", README):
        assert (Path(__file__).parent.parent / target).is_file()


def test_the_figure_from_the_file_is_the_snippet_of_the_format_page() -> None:
    """Which a test of the page compares with the figure's own numbers."""
    page = (Path(__file__).parent.parent / "rankkit" / "store" / "README.md").read_text(encoding="utf-8")
    (snippet,) = [found for found in SNIPPETS if found.startswith("import h5py")]
    assert f"```python\n{snippet}```" in page
    assert len(snippet.splitlines()) <= 11
