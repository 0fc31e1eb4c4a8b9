"""The one page that says everything about a training run: what `smalti train` takes and RUN/train.yaml records."""

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
"""How long a model that is trained already learns on other images."""
FINE_TUNING_LR = 0.2
"""Its learning rate, as a share of the one that it was trained with."""


@dataclass(frozen=True)
class ModelDefaults:
    """What a run takes from its model where nobody says otherwise; these are fields of `TrainConfig`."""

    input: TransformConfig
    """How images become the model's input."""
    optimization: OptimizationConfig
    """How long and how fast to learn."""
    loss_weights: dict[str, float]
    """Weights of the losses."""

    @classmethod
    def of(cls, model: str = "auto", init_from: str = "") -> "ModelDefaults":
        """The defaults of a model by its name, or of the one that `init_from` holds.

        The latter goes on with the images and losses that it was trained with, slower and not as long. Where it does
        not say what these were, it is trained as the default model is.
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
    """Tuples again where YAML has lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}


def _recorded(source: str) -> dict[str, Any]:
    """The settings of the run that a source of weights is, or is a checkpoint of; {} where there are none."""
    folder = saved_folder(source)
    return read_settings(folder.parent.parent if folder.parent.name == "checkpoints" else folder) or {}


@dataclass(frozen=True)
class TrainConfig:
    """Train a tokenizer on images.

    It has many fields, because it is the one page that says everything about a run; those that belong together are
    configs of their own.
    """

    data: str
    """Images: a folder, searched through; a file; or a name: embedded, fashion-mnist."""
    out: str
    """The run folder to make."""
    model: str = "auto"
    """Which model, by its name in smalti.zoo; auto: the one that init_from holds, or photo-f8. Size of the images,
    steps, batch, learning rate and losses that nobody gives are those that suit the model."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of the model to change: vocab_size, hidden_dim, patch_nums, ..."""
    init_from: str = ""
    """Weights to begin with: a name of the box, a run or one of its checkpoints, a saved model, a published checkpoint,
    or a name on the hub."""
    validation: str = ""
    """Images, as for data, whose PSNR decides which checkpoint is the best; empty: those of the sample pictures."""
    input: TransformConfig = field(default_factory=lambda: ModelDefaults.of().input)
    """How images become the model's input."""
    optimization: OptimizationConfig = field(default_factory=lambda: ModelDefaults.of().optimization)
    """How long and how fast to learn."""
    loss_weights: dict[str, float] = field(default_factory=lambda: ModelDefaults.of().loss_weights)
    """Weights of l1, l2, charbonnier, ms_ssim; of lpips, efficientnet_lite0, hed_vgg16, which need a pretrained
    network; of adversarial, r1, lecam; and of the quantizer's terms where they should differ from its paper."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """The discriminator, if loss_weights names adversarial."""
    pretrained: str = ""
    """Folder to look for pretrained networks of losses in before the usual places."""
    download: bool = False
    """Fetch pretrained networks that are nowhere on this machine."""
    precision: Precision = "auto"
    """Number format of forward passes: fp32, bf16, fp16; auto: bf16 where the hardware multiplies it, else fp32."""
    channels_last: Literal["auto"] | bool = "auto"
    """Whether images lie in memory as NHWC; auto: yes."""
    compile: bool = False
    """Run encoder and decoder through torch.compile, which needs a C++ compiler: a slow start, then faster steps."""
    seed: int = 0
    """Decides initial weights, order of the images and augmentation."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: cuda if there is one."""
    distributed: Literal["auto"] | bool = "auto"
    """Train together with the other processes of torchrun or accelerate launch; auto: if they started more than one."""
    workers: int | Literal["auto"] = "auto"
    """Processes that read images, for each that trains; 0: that one does; auto: up to 4 for a GPU, 0 for a CPU."""
    log_every: int = 10
    """Steps between lines of the log."""
    sample_every: int = 500
    """Steps between sample pictures."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    resume: bool = False
    """Go on from the last checkpoint in the run folder."""
    force: bool = False
    """Replace the run that is in the folder."""

    def __post_init__(self) -> None:
        check_session(self)
        if self.workers != "auto":
            check_workers(self.workers)
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"precision: got {self.precision!r}, expected auto, fp32, bf16 or fp16")
        if self.channels_last not in ("auto", True, False):
            raise ValueError(f"channels_last: got {self.channels_last!r}, expected auto, true or false")
        if self.init_from and self.model == "auto" and self.model_args:
            raise ValueError(f"model_args: got {self.model_args}, expected none with init_from, or a model's name too")
        check_weights(self.loss_weights)


def check_session(config: Any) -> None:
    """Refuse settings that no session can have (`training/session.py`), of tokenizers and priors alike."""
    for name in ("log_every", "sample_every", "checkpoint_every"):
        if getattr(config, name, 1) < 1:
            raise ValueError(f"{name}: got {getattr(config, name)}, expected at least 1")
    if config.seed < 0:
        raise ValueError(f"seed: got {config.seed}, expected at least 0")
    if config.resume and config.force:
        raise ValueError("resume, force: got both, expected one: go on with the run in the folder, or replace it")


def plain_settings(config: Any) -> dict[str, Any]:
    """The config of a run as it stands in RUN/train.yaml: plain types, without `resume` and `force`."""
    settings = _plain(asdict(config))
    del settings["resume"], settings["force"]
    return settings


def _plain(value: Any) -> Any:
    """Tuples as lists, in any depth: YAML has one kind of sequence."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
