"""Training: the loop, and what it stands on. Readable in one sitting; begin with `loop.py`."""

from smalti.training.averaging import AveragedModel
from smalti.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    read_notes,
    restore_random_state,
    save_checkpoint,
)
from smalti.training.interruption import StopRequest
from smalti.training.loop import NonFiniteLossError, StepResult, TrainingState, start_state, train_steps
from smalti.training.optimization import OptimizationConfig, build_optimizer, learning_rate, parameter_groups
from smalti.training.progress import Bar, Lines, Reporter, Silent, console_reporter
from smalti.training.record import RunRecord, measure, read_log
from smalti.training.run_folder import RunFolder, deliver
from smalti.training.runtime import Precision, Runtime, choose_runtime, find_device, has_bf16
from smalti.training.samples import picture_grid, reconstruction_grid

__all__ = [
    "AveragedModel",
    "Bar",
    "Lines",
    "NonFiniteLossError",
    "OptimizationConfig",
    "Precision",
    "Reporter",
    "RunFolder",
    "RunRecord",
    "Runtime",
    "Silent",
    "StepResult",
    "StopRequest",
    "TrainingState",
    "build_optimizer",
    "choose_runtime",
    "console_reporter",
    "deliver",
    "find_device",
    "has_bf16",
    "learning_rate",
    "list_checkpoints",
    "load_checkpoint",
    "measure",
    "parameter_groups",
    "picture_grid",
    "read_log",
    "read_notes",
    "reconstruction_grid",
    "restore_random_state",
    "save_checkpoint",
    "start_state",
    "train_steps",
]
