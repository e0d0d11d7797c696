"""One hypothesis profile for every machine, and one thread for every library."""

import os
import signal

import hypothesis
import torch

# Derandomised, so that a failure seen once is seen by everybody; no deadline, because machines are shared.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50, database=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
torch.set_num_threads(1)

# A shell starts background jobs with Ctrl-C ignored, and they would hand that on to everything the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
