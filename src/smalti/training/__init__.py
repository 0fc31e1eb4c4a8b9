"""Training: the loop, and what it stands on. Readable in one sitting; begin with `loop.py`."""

from smalti.training.adversarial import AdversarialConfig, Adversary, Verdict
from smalti.training.agreement import any_process, in_all, on_main, share
from smalti.training.averaging import AveragedModel
from smalti.training.checkpoint import (
    best_checkpoint,
    check_whole,
    deliver,
    list_checkpoints,
    load_checkpoint,
    read_notes,
    save_checkpoint,
)
from smalti.training.finite_check import NonFiniteLossError
from smalti.training.fully_sharded import join_sharded
from smalti.training.initial_weights import PartTaken, take_weights
from smalti.training.interruption import StopRequest
from smalti.training.loop import DataError, Piece, StepResult, train_steps
from smalti.training.many_processes import ManyProcesses, join_processes, leave_processes
from smalti.training.optimization import (
    OptimizationConfig,
    build_optimizer,
    learning_rate,
    parameter_groups,
    piece_size,
)
from smalti.training.prior_loop import PriorStep, train_prior_steps, validation_nats
from smalti.training.progress import Bar, Lines, Reporter, Silent, console_reporter
from smalti.training.randomness import (
    begin_random_numbers,
    own_random_numbers,
    random_state,
    restore_random_state,
    seed_everything,
)
from smalti.training.record import RunRecord, measure, read_log, read_numbers
from smalti.training.run_folder import ResumePoint, RunFolder, read_settings
from smalti.training.runtime import (
    Runtime,
    choose_runtime,
    launched_processes,
    launched_rank,
)
from smalti.training.samples import reconstruction_grid
from smalti.training.state import SkippedStep, TrainingState, start_state

__all__ = [
    "AdversarialConfig",
    "Adversary",
    "AveragedModel",
    "Bar",
    "DataError",
    "Lines",
    "ManyProcesses",
    "NonFiniteLossError",
    "OptimizationConfig",
    "PartTaken",
    "Piece",
    "PriorStep",
    "Reporter",
    "ResumePoint",
    "RunFolder",
    "RunRecord",
    "Runtime",
    "Silent",
    "SkippedStep",
    "StepResult",
    "StopRequest",
    "TrainingState",
    "Verdict",
    "any_process",
    "begin_random_numbers",
    "best_checkpoint",
    "build_optimizer",
    "check_whole",
    "choose_runtime",
    "console_reporter",
    "deliver",
    "in_all",
    "join_processes",
    "join_sharded",
    "launched_processes",
    "launched_rank",
    "learning_rate",
    "leave_processes",
    "list_checkpoints",
    "load_checkpoint",
    "measure",
    "on_main",
    "own_random_numbers",
    "parameter_groups",
    "piece_size",
    "random_state",
    "read_log",
    "read_notes",
    "read_numbers",
    "read_settings",
    "reconstruction_grid",
    "restore_random_state",
    "save_checkpoint",
    "seed_everything",
    "share",
    "start_state",
    "take_weights",
    "train_prior_steps",
    "train_steps",
    "validation_nats",
]
