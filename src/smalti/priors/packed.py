"""A copy of a network for sampling, with weights packed in the memory layout of the CPU's matrix library.

In sampling token by token, each layer multiplies one or two rows per image, hundreds of times, and reading the weights
takes most of the time. Unpacked weights are rearranged before every product (see `ops/linear.py`); here only once.
逐词元采样时，每层每次只乘寥寥几行，却重复数百次，时间几乎都花在读取权重上。这里只重排权重一次，而非每次相乘前都重排。
"""

import copy
from typing import Any, TypeVar, cast

from torch import nn

from smalti.ops.linear import packed_linear

Network = TypeVar("Network", bound=nn.Module)


def packed(network: Network, rows: int) -> Network:
    """A copy for inference without gradients, with packed weights in linear layers where that is faster.

    All other tensors are shared with the network, which is not changed. Packed weights take as much memory again as
    the original ones. Results differ only by the order of sums.

    Args:
        network: the original; later changes of its weights do not change packed ones.
        rows: vectors per call of a layer.
    """
    if type(network) is nn.Linear:  # no subclasses, as their weights may have other meanings
        layer = cast(nn.Linear, network)
        multiply = packed_linear(layer.weight, layer.bias, rows)
        return network if multiply is None else _twin(network, forward=multiply)
    modules = network._modules
    children = {name: None if child is None else packed(child, rows) for name, child in modules.items()}
    changed = any(child is not modules[name] for name, child in children.items())
    return _twin(network, _modules=children) if changed else network


def _twin(network: Network, **changes: Any) -> Network:
    twin = copy.copy(network)
    vars(twin).update(changes)
    return twin
