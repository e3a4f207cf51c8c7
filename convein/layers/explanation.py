"""Which modules of a network Triton kernels could speed up, and whether they do."""

from __future__ import annotations

from torch import nn

from convein.layers.bqn.categorical import Categorical
from convein.layers.recurrence import Cell


def explain(network: nn.Module) -> str:
    """A line for every module that a kernel could compute: its name, its kind, and which kernel does or why none does.

    For inputs of the dtype and on the device of the weights, outside of graphs and of torch.func.

    Args:
        network: any module.
    """
    lines = [
        f"{name or 'network'} ({type(module).__name__}): {module.explain()}"
        for name, module in network.named_modules()
        if isinstance(module, (Categorical, Cell))
    ]
    return (
        "\n".join(lines)
        or "No module has a kernel of its own; what an expression calls, explain() of a compiled one says."
    )
