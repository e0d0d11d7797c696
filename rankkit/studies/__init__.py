"""The verbs: train a pair, measure a run, compare."""

from __future__ import annotations

from rankkit.studies.certificate import build_certificate, certificate_problems
from rankkit.studies.decomposition import Decomposition, decompose
from rankkit.studies.functional import FunctionalRank
from rankkit.studies.functional_sweep import functional_rank, plan_functional_rank
from rankkit.studies.losses import LossComparison, compare_losses, verdict
from rankkit.studies.measuring.config import MeasureConfig
from rankkit.studies.measuring.measure import Measured, measure_attention, measure_run
from rankkit.studies.measuring.run_source import plan_measurement
from rankkit.studies.merging.merge import Merged, merge
from rankkit.studies.monitoring.history import MonitorHistory
from rankkit.studies.monitoring.monitor import Monitor
from rankkit.studies.monitoring.tensorboard import TensorBoardLog
from rankkit.studies.recomputation import recompute_problems
from rankkit.studies.run import Run, create_run, load_model, open_run
from rankkit.studies.stock.export import ExportedModel, export_model
from rankkit.studies.train_pair import train_pair, train_units
from rankkit.studies.training_log import TrainingLog
from rankkit.studies.truncation import truncated_attention

__all__ = [
    "Decomposition",
    "ExportedModel",
    "FunctionalRank",
    "LossComparison",
    "MeasureConfig",
    "Measured",
    "Merged",
    "Monitor",
    "MonitorHistory",
    "Run",
    "TensorBoardLog",
    "TrainingLog",
    "build_certificate",
    "certificate_problems",
    "compare_losses",
    "create_run",
    "decompose",
    "export_model",
    "functional_rank",
    "load_model",
    "measure_attention",
    "measure_run",
    "merge",
    "open_run",
    "plan_functional_rank",
    "plan_measurement",
    "recompute_problems",
    "train_pair",
    "train_units",
    "truncated_attention",
    "verdict",
]
