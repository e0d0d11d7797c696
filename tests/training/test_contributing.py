"""The worked example of CONTRIBUTING.md, applied to a copy of the source and trained."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = """
import json, sys
from pathlib import Path
import torch
import rankkit
from small_run import run_config, trained_run
from rankkit.studies import MeasureConfig, compare_losses, measure_run
from rankkit.studies.verify import verify_run

out = Path(sys.argv[1])
run = trained_run(out / "run", run_config(("gpt", "window-last", "bert"), seeds=(0,), steps=2))
measure_run(run, MeasureConfig(samples=1), out / "s.h5", device=torch.device("cpu"), command="test")
compared = compare_losses(run)
print(json.dumps({
    "source": rankkit.__file__,
    "problems": verify_run(run),
    "declared": compared.differences[0].declared,
    "arms": compared.differences[0].arms,
    "loss_tokens": compared.arm("window-last").loss_tokens,
}))
"""


def test_the_worked_example_adds_a_mask_an_objective_and_an_arm_in_one_file_each(tmp_path: Path) -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    files = re.findall(r"^\+\+\+ b/(.*)$", diff, flags=re.MULTILINE)
    assert files == ["rankkit/masks/kinds.py", "rankkit/training/objective.py", "rankkit/training/config.py"]
    for package in ("rankkit", "kernels"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "apply", "-C1", "--whitespace=nowarn"]
    subprocess.run(git, cwd=tmp_path, input=diff, text=True, check=True)
    paths = [tmp_path, tmp_path / "kernels", ROOT / "tests"]
    found = subprocess.run(
        [sys.executable, "-c", EXAMPLE, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout.splitlines()[-1])
    assert said["source"] == str(tmp_path / "rankkit" / "__init__.py")
    assert said["problems"] == []
    assert said["arms"] == ["window-last", "gpt"]
    assert said["declared"] == ["mask", "objective"]
    assert said["loss_tokens"] == 2 * 2 * 8  # the last quarter of 32 tokens, in two sequences of two steps
