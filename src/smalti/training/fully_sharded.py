"""The runtime of several processes that share a model: each process holds a shard of every weight (FSDP).

With `ManyProcesses` in `runtime.py` each process holds the whole model. Here weights, gradients, averaged weights and
AdamW's moments are sharded over the processes; a layer's weights are complete only while it computes. Steps and
checkpoints are the same up to rounding; any number of processes can resume from a checkpoint.

Source: Rajbhandari et al. 2020, "ZeRO" (arXiv 1910.02054), stage 3; Zhao et al. 2023, "PyTorch FSDP" (arXiv
2304.11277), in the form of `torch.distributed.fsdp.fully_shard`. Accelerate joins the processes.
"""

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from smalti.distributed import process_rank
from smalti.models import SavedModel
from smalti.ops.device import Precision
from smalti.training.runtime import Runtime, join_processes

if TYPE_CHECKING:
    from smalti.training.state import TrainingState


@final
@dataclass(frozen=True)
class FullySharded(Runtime):
    """One of several processes, each on its own device with its own part of every batch and every weight."""

    def prepare(self, model: SavedModel) -> None:
        """Do not move the model: no device needs to hold all of it."""

    @contextmanager
    def accumulate(self, module: nn.Module, last: bool) -> Iterator[None]:
        """See `Runtime.accumulate`."""
        for part in module.modules():
            synchronize = getattr(part, "set_requires_gradient_sync", None)
            if synchronize is not None:
                synchronize(last, recurse=False)
        with warnings.catch_warnings():  # layers return views, which are never changed in place
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            yield

    def shard(self, state: Any) -> Callable[[], Any]:
        """See `Runtime.shard`."""
        skeleton = copy.deepcopy(state.model).to("meta")
        frozen = {name for name, parameter in state.model.named_parameters() if not parameter.requires_grad}
        names = {parameter: name for name, parameter in state.model.named_parameters()}
        for model in (state.model, state.averaged.model):
            self._cut(model, frozen)
        cut = dict(state.model.named_parameters())
        optimizer = state.optimizer
        moved = {parameter: cut[name] for parameter, name in names.items()}
        for group in optimizer.param_groups:
            group["params"] = [moved[parameter] for parameter in group["params"]]
        parts = {
            moved[p]: {k: _cut_like(v, moved[p]) for k, v in entry.items()} for p, entry in optimizer.state.items()
        }
        optimizer.state = defaultdict(dict, parts)
        return lambda: _whole(state, skeleton)

    def _cut(self, model: nn.Module, frozen: set[str]) -> None:
        """Shard each layer of every block on its own, and the rest of the model as one unit; never a frozen weight."""
        from torch.distributed.fsdp import fully_shard  # takes half a second to import

        left_alone = {parameter for name, parameter in model.named_parameters() if name in frozen}
        for parameter in left_alone:
            parameter.data = parameter.data.to(self.device)
        mesh = torch.distributed.init_device_mesh(self.device.type, (torch.distributed.get_world_size(),))
        blocks = model.get_submodule("blocks").children()
        layers = [layer for block in blocks for layer in block.children() if _has_matrices(layer)]
        for module in (*layers, model):
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=left_alone)


def join_sharded(device: str = "auto", precision: Precision = "auto") -> FullySharded:
    """Join the other processes of the launch, for a sharded model.

    Raises:
        ValueError: as in `join_processes`; or fp16, as its scaler does not support shards.
    """
    joined = join_processes(device, precision, False)
    if joined.dtype == torch.float16:
        raise ValueError("precision: got fp16, expected bf16 or fp32 for sharded weights")
    return FullySharded(joined.device, joined.dtype, joined.channels_last, joined.compile)


def _has_matrices(layer: nn.Module) -> bool:
    """Whether a layer is large enough for its own exchange; norms are exchanged with the rest of the model."""
    return any(parameter.dim() > 1 for parameter in layer.parameters())


def _cut_like(value: Any, parameter: Tensor) -> Any:
    """A moment of AdamW, sharded as its weight; a step count unchanged."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def _joined(value: Any) -> Any:
    """A sharded tensor gathered on the CPU of the first process; all processes must call this."""
    if not hasattr(value, "full_tensor"):
        return value
    whole = value.full_tensor()
    return whole.cpu().clone() if process_rank() == 0 else None  # not a view of padded memory, for safetensors


def _whole(state: "TrainingState[Any]", skeleton: nn.Module) -> "TrainingState[Any]":
    """The unsharded state on the first process; the other processes take part and get their shards."""
    models = []
    for model in (state.model, state.averaged.model):
        tensors = {name: _joined(tensor) for name, tensor in model.state_dict().items()}
        if process_rank() == 0:
            models.append(copy.deepcopy(skeleton))
            models[-1].load_state_dict(tensors, assign=True)
    moments = {p: {k: _joined(v) for k, v in entry.items()} for p, entry in state.optimizer.state.items()}
    if process_rank() > 0:
        return state
    trained, average = models
    plain = dict(trained.named_parameters())
    whole_of = {parameter: plain[name] for name, parameter in state.model.named_parameters()}
    groups = [{**group, "params": [whole_of[p] for p in group["params"]]} for group in state.optimizer.param_groups]
    optimizer = torch.optim.AdamW(groups)
    optimizer.state = defaultdict(dict, {whole_of[parameter]: entry for parameter, entry in moments.items()})
    averaged = copy.copy(state.averaged)
    averaged.model = average
    return replace(state, model=trained, averaged=averaged, optimizer=optimizer)
