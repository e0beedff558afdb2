"""CUDA graphs of the pretended GPU: what was recorded runs again, at its addresses.

A replay computes each recorded operation once more from the tensors that it had, and
writes the result to where it was: whatever the host decided when it recorded stays
decided, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten

from folovllm_lite import gpu
from tests.pretended_gpu.device import Machine


def install_graphs(machine: Machine) -> None:
    """Let PyTorch have CUDA graphs on the machine."""

    class Graph:
        def __init__(self) -> None:
            self.recorded: list = []

        def replay(self) -> None:
            with _disable_current_modes(), torch.inference_mode():
                for func, args, kwargs, out in self.recorded:
                    write(out, func(*args, **kwargs), args)
            machine.launched("replay")

    @contextmanager
    def graph(made: Graph, pool: Any = None) -> Iterator[None]:
        machine.begin("capture")
        machine.recording = made.recorded
        try:
            yield
        finally:
            machine.recording = None
            machine.begin("captured")

    torch.cuda.CUDAGraph, torch.cuda.graph = Graph, graph
    torch.cuda.graph_pool_handle = lambda: (0, 0)
    gpu.can_record = lambda: True


def write(into: Any, made: Any, given: Any) -> None:
    """Copy results to where they were recorded; what was made in place is there."""
    read = {x.untyped_storage()._cdata for x in tree_flatten(given)[0] if is_tensor(x)}
    for old, new in zip(tree_flatten(into)[0], tree_flatten(made)[0], strict=True):
        if is_tensor(old) and old.untyped_storage()._cdata not in read:
            old.copy_(new)


def is_tensor(x: Any) -> bool:
    """Whether there is something to copy."""
    return isinstance(x, Tensor)
