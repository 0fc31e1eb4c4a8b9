"""All settings of a training run: the options of `smalti train`, recorded in RUN/train.yaml."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from smalti.data import TransformConfig
from smalti.data.loader import check_workers
from smalti.formats.arguments import construct
from smalti.losses import check_weights
from smalti.ops.device import Precision
from smalti.training import AdversarialConfig, OptimizationConfig, read_settings
from smalti.zoo import DEFAULT, TRAINING, saved_folder

FINE_TUNING = {"steps": 2_000, "warmup_steps": 100, "decay_steps": None}
"""Optimization settings for fine-tuning a trained model."""
FINE_TUNING_LR = 0.2
"""Learning rate of fine-tuning, as a fraction of that of the training."""


@dataclass(frozen=True)
class ModelDefaults:
    """Default values that depend on the model; these are fields of `TrainConfig`."""

    input: TransformConfig
    """Preparation of the images."""
    optimization: OptimizationConfig
    """Optimization."""
    loss_weights: dict[str, float]
    """Weights of the losses."""

    @classmethod
    def of(cls, model: str = "auto", init_from: str = "") -> "ModelDefaults":
        """The defaults of a model by its name, or of the model in `init_from`.

        The latter is fine-tuned: with the image settings and losses of its training, a lower learning rate and fewer
        steps. If they are not recorded, the settings of the default model are used.
        """
        fine_tuned = model == "auto" and bool(init_from)
        recipe = {**TRAINING[DEFAULT], **(_recorded(init_from) if fine_tuned else TRAINING.get(model, {}))}
        optimization = dict(recipe["optimization"])
        if fine_tuned:
            lr = optimization.get("lr", OptimizationConfig().lr)
            optimization |= {**FINE_TUNING, "lr": lr * FINE_TUNING_LR}
        return cls(
            construct(TransformConfig, {"crop": "random", "flip": True, **_tupled(recipe["input"])}),
            construct(OptimizationConfig, _tupled(optimization)),
            dict(recipe["loss_weights"]),
        )

    def options(self) -> dict[str, Any]:
        """The defaults by the dotted names of their options."""
        nested = {"input": asdict(self.input), "optimization": asdict(self.optimization)}
        dotted = {f"{table}.{name}": value for table, values in nested.items() for name, value in values.items()}
        return {**dotted, "loss_weights": self.loss_weights}


def _tupled(table: Mapping[str, Any]) -> dict[str, Any]:
    """The lists of YAML as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}


def _recorded(source: str) -> dict[str, Any]:
    """The settings of the run that a source of weights belongs to (the run itself or a checkpoint); {} if unknown."""
    folder = saved_folder(source)
    return read_settings(folder.parent.parent if folder.parent.name == "checkpoints" else folder) or {}


@dataclass(frozen=True)
class TrainConfig:
    """Train a tokenizer on images.

    It has many fields because it holds all settings of a run; related settings are configs of their own.
    """

    data: str
    """Images: a folder (searched recursively), a file, or a name: embedded, fashion-mnist."""
    out: str
    """Run directory to write."""
    model: str = "auto"
    """Name of the model in smalti.zoo; auto: the model of --init_from, or photo-f8. It sets the defaults of image size,
    steps, batch size, learning rate and losses."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of the model to change: vocab_size, hidden_dim, patch_nums, ..."""
    init_from: str = ""
    """Initial weights: a built-in name (photo-f8), a run or one of its checkpoints, a saved model, a published
    checkpoint, or a name on the Hugging Face hub."""
    validation: str = ""
    """Images (as for data) whose PSNR selects the best checkpoint; empty: the images of the sample pictures."""
    input: TransformConfig = field(default_factory=lambda: ModelDefaults.of().input)
    """Preparation of the images."""
    optimization: OptimizationConfig = field(default_factory=lambda: ModelDefaults.of().optimization)
    """Optimization."""
    loss_weights: dict[str, float] = field(default_factory=lambda: ModelDefaults.of().loss_weights)
    """Weights of l1, l2, charbonnier, ms_ssim; of lpips, efficientnet_lite0, hed_vgg16 (need a pretrained network); of
    adversarial, r1, lecam; and of the quantizer's loss terms, to change the values of its paper."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Discriminator, if loss_weights has adversarial."""
    pretrained: str = ""
    """Folder to search first for the pretrained networks of the losses."""
    download: bool = False
    """Download pretrained networks that are not on this machine."""
    precision: Precision = "auto"
    """Number format of forward passes: fp32, bf16, fp16; auto: bf16 if the hardware supports it, else fp32."""
    channels_last: Literal["auto"] | bool = "auto"
    """Memory layout NHWC; auto: true."""
    compile: bool = False
    """Run encoder and decoder through torch.compile: slow start, faster steps. Needs a C++ compiler."""
    seed: int = 0
    """Seed of initial weights, order of the images and augmentation."""
    device: str = "auto"
    """Device to compute on: cpu, cuda, cuda:1, ...; auto: cuda if available."""
    distributed: Literal["auto"] | bool = "auto"
    """Train in all processes of torchrun or accelerate launch together; auto: if they started more than one."""
    workers: int | Literal["auto"] = "auto"
    """Processes that read images, per training process; 0: none beside it; auto: up to 4 for a GPU, 0 for a CPU."""
    log_every: int = 10
    """Steps between lines of the log."""
    sample_every: int = 500
    """Steps between sample pictures."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    resume: bool = False
    """Continue from the last checkpoint in the run directory."""
    force: bool = False
    """Replace an existing run in the run directory."""

    def __post_init__(self) -> None:
        check_session(self)
        if self.workers != "auto":
            check_workers(self.workers)
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"precision: got {self.precision!r}, expected auto, fp32, bf16 or fp16")
        if self.channels_last not in ("auto", True, False):
            raise ValueError(f"channels_last: got {self.channels_last!r}, expected auto, true or false")
        if self.init_from and self.model == "auto" and self.model_args:
            raise ValueError(f"model_args: got {self.model_args}, expected none with init_from, unless model is given")
        check_weights(self.loss_weights)


def check_session(config: Any) -> None:
    """Refuse bad settings of a session (`training/session.py`), for tokenizers and priors."""
    for name in ("log_every", "sample_every", "checkpoint_every"):
        if getattr(config, name, 1) < 1:
            raise ValueError(f"{name}: got {getattr(config, name)}, expected at least 1")
    if config.seed < 0:
        raise ValueError(f"seed: got {config.seed}, expected at least 0")
    if config.resume and config.force:
        raise ValueError("resume, force: got both, expected one: resume continues the run, force replaces it")


def plain_settings(config: Any) -> dict[str, Any]:
    """The config of a run as written to RUN/train.yaml: plain types, without `resume` and `force`."""
    settings = _plain(asdict(config))
    del settings["resume"], settings["force"]
    return settings


def _plain(value: Any) -> Any:
    """Tuples as lists, at any depth: YAML has one kind of sequence."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
