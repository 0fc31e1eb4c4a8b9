"""Training: one loop, one session around it, and their parts. Start reading at `loop.py`, then `session.py`."""

from smalti.distributed import all_gather, any_process, in_all, on_main
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
from smalti.training.gan import AdversarialConfig, DiscriminatorResult, GANTrainer
from smalti.training.initial_weights import PartTaken, take_weights
from smalti.training.loop import DataError, StepResult, train_steps
from smalti.training.objectives import (
    Objective,
    PriorObjective,
    TokenizerObjective,
    TokenizerPass,
    validation_nats,
)
from smalti.training.optimization import (
    AveragedModel,
    OptimizationConfig,
    build_optimizer,
    learning_rate,
    parameter_groups,
    piece_size,
)
from smalti.training.progress import Bar, Lines, Reporter, Silent, console_reporter
from smalti.training.randomness import (
    begin_random_numbers,
    own_random_numbers,
    random_state,
    restore_random_state,
    seed_everything,
)
from smalti.training.record import (
    RunRecord,
    prior_line,
    read_log,
    read_numbers,
    reconstruction_grid,
    tokenizer_line,
)
from smalti.training.run_folder import ResumePoint, RunFolder, read_settings
from smalti.training.runtime import (
    ManyProcesses,
    Runtime,
    choose_runtime,
    join_processes,
    launched_processes,
    launched_rank,
    leave_processes,
)
from smalti.training.session import Quality, SessionEnd, StopRequest, Task, open_runtime, run_session
from smalti.training.state import SkippedStep, TrainingState, start_state

__all__ = [
    "AdversarialConfig",
    "AveragedModel",
    "Bar",
    "DataError",
    "DiscriminatorResult",
    "GANTrainer",
    "Lines",
    "ManyProcesses",
    "NonFiniteLossError",
    "Objective",
    "OptimizationConfig",
    "PartTaken",
    "PriorObjective",
    "Quality",
    "Reporter",
    "ResumePoint",
    "RunFolder",
    "RunRecord",
    "Runtime",
    "SessionEnd",
    "Silent",
    "SkippedStep",
    "StepResult",
    "StopRequest",
    "Task",
    "TokenizerObjective",
    "TokenizerPass",
    "TrainingState",
    "all_gather",
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
    "on_main",
    "open_runtime",
    "own_random_numbers",
    "parameter_groups",
    "piece_size",
    "prior_line",
    "random_state",
    "read_log",
    "read_notes",
    "read_numbers",
    "read_settings",
    "reconstruction_grid",
    "restore_random_state",
    "run_session",
    "save_checkpoint",
    "seed_everything",
    "start_state",
    "take_weights",
    "tokenizer_line",
    "train_steps",
    "validation_nats",
]
