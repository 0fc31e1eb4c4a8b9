"""Training: one loop, one session around it, and their parts. Start reading at `loop.py`, then `session.py`."""

from smalti.training.checkpoint import best_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from smalti.training.finite_check import NonFiniteLossError
from smalti.training.gan import AdversarialConfig, GANTrainer
from smalti.training.initial_weights import take_weights
from smalti.training.loop import DataError, StepResult, train_steps
from smalti.training.objectives import Objective, PriorObjective, TokenizerObjective, TokenizerPass, validation_nats
from smalti.training.optimization import AveragedModel, OptimizationConfig, build_optimizer, learning_rate, piece_size
from smalti.training.progress import Reporter, Silent, console_reporter
from smalti.training.record import prior_line, read_log, reconstruction_grid, tokenizer_line
from smalti.training.run_folder import read_settings
from smalti.training.runtime import Runtime, choose_runtime, launched_rank, leave_processes
from smalti.training.session import Quality, Task, open_runtime, run_session
from smalti.training.state import SkippedStep, TrainingState, start_state

__all__ = [
    "AdversarialConfig",
    "AveragedModel",
    "DataError",
    "GANTrainer",
    "NonFiniteLossError",
    "Objective",
    "OptimizationConfig",
    "PriorObjective",
    "Quality",
    "Reporter",
    "Runtime",
    "Silent",
    "SkippedStep",
    "StepResult",
    "Task",
    "TokenizerObjective",
    "TokenizerPass",
    "TrainingState",
    "best_checkpoint",
    "build_optimizer",
    "choose_runtime",
    "console_reporter",
    "launched_rank",
    "learning_rate",
    "leave_processes",
    "list_checkpoints",
    "load_checkpoint",
    "open_runtime",
    "piece_size",
    "prior_line",
    "read_log",
    "read_settings",
    "reconstruction_grid",
    "run_session",
    "save_checkpoint",
    "start_state",
    "take_weights",
    "tokenizer_line",
    "train_steps",
    "validation_nats",
]
