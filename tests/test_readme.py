"""Every command and every snippet of the README and of the pages behind it, parsed or run."""

import re
import shlex
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from rankkit.cli import _COMMANDS, main
from rankkit.data import synthetic

ROOT = Path(__file__).parent.parent
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", *(f"rankkit/{room}/README.md" for room in ("hooks", "report", "spectra", "studies")))
}
README = PAGES["README.md"]
SNIPPETS = [
    pytest.param(snippet, id=f"{name}-{number}")
    for name, page in PAGES.items()
    for number, snippet in enumerate(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
]
LINES = [
    line.strip().split("   ")[0]
    for page in PAGES.values()
    for line in page.splitlines()
    if line.startswith("    rankkit ")
]
INLINE = [line for page in PAGES.values() for line in re.findall(r"`(rankkit [a-z][^`]*)`", page)]


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


@pytest.mark.parametrize("snippet", SNIPPETS)
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


def test_the_pages_show_commands_snippets_pictures_and_links_that_exist() -> None:
    assert len(SNIPPETS) >= 5
    assert len(LINES) >= 20
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert len(pictures) >= 3
    for picture in pictures:
        assert (ROOT / picture).stat().st_size > 1000
    links = [
        (name, target) for name, page in PAGES.items() for target in re.findall(r"\]\(([A-Za-z/.]+\.md)\S*\)", page)
    ]
    assert len(links) >= 10
    for name, target in links:
        assert (ROOT / name).parent.joinpath(target).is_file(), (name, target)


def test_the_figure_from_the_file_is_the_snippet_of_the_format_page() -> None:
    """Which a test of the page compares with the figure's own numbers."""
    page = (ROOT / "rankkit" / "store" / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(import h5py.*?)```", README, flags=re.DOTALL)
    assert f"```python\n{snippet}```" in page
    assert len(snippet.splitlines()) <= 11
