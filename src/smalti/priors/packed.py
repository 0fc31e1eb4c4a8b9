"""A network for one run of sampling, whose linear layers keep their weights as the CPU's library multiplies them.

Drawing token by token, each layer multiplies a row or two an image, hundreds of times, and the time goes into reading
the weights. In their usual order they are rearranged before every product (see `ops/linear.py`); here only once.
逐词元采样时,每层每次只乘寥寥几行,却重复数百次,时间几乎都花在读取权重上。这里只重排权重一次,而非每次相乘前都重排。
"""

import copy
from typing import Any, TypeVar, cast

from torch import nn

from smalti.ops.linear import packed_linear

Network = TypeVar("Network", bound=nn.Module)


def packed(network: Network, rows: int) -> Network:
    """A twin to be read by, without gradients: its linear layers have packed weights where that is faster.

    All else is shared with the network, which stays as it is. The packed weights take as much memory as those that they
    stand for, as long as the twin lives. The same numbers but for the order of sums.

    Args:
        network: the original; changes of its weights do not reach packed ones.
        rows: vectors that a layer will read in a call.
    """
    if type(network) is nn.Linear:  # no subclass, whose weights may be anything
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
