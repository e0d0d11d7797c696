"""Real processes, killed by SIGKILL at random moments."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

from tiny import arm, assert_same_outcome, outcome, run_in, train, train_in_child

ATTEMPTS = 9


def test_a_unit_killed_at_random_moments_and_resumed_ends_like_one_that_was_not(tmp_path: Path) -> None:
    config = arm("unilm", checkpoint_interval=1)
    whole, run = run_in(tmp_path / "whole"), run_in(tmp_path / "run")
    train(whole, config)
    # Children are forked off a server that has imported torch once: real processes, without its start-up time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rankkit.training"])
    moments, killed = random.Random(11), 0
    for attempt in range(ATTEMPTS):
        ours, theirs = context.Pipe()
        child = context.Process(target=train_in_child, args=(theirs, run.path, config, "unilm"))
        child.start()
        theirs.close()
        try:
            last = attempt == ATTEMPTS - 1
            for _ in range(10**9 if last else moments.randint(1, 8)):
                ours.recv()
            time.sleep(moments.uniform(0, 0.03))
            child.kill()
        except EOFError:  # it came to its end first
            pass
        finally:
            child.join()
            ours.close()
        killed += child.exitcode == -9
    assert killed >= 3
    assert child.exitcode == 0
    assert_same_outcome(outcome(run), outcome(whole))
