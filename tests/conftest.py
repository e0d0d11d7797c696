"""One hypothesis profile for every machine, and one thread for every library."""

import os

import hypothesis
import torch

# Derandomised, so that a failure seen once is seen by everybody; no deadline, because machines are shared.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50, database=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
torch.set_num_threads(1)
