"""Run the bodies of tests/gpu/test_graphs_cuda.py on the pretended GPU.

    python -m tests.pretended_gpu.bodies

The last line is JSON: the names of the bodies that passed.
"""

from __future__ import annotations

import json

import torch

from tests.gpu import test_graphs_cuda
from tests.pretended_gpu.device import install
from tests.pretended_gpu.graphs import install_graphs


def main() -> None:
    """Run them all; what one raises ends it."""
    # What they are compared with is computed on the CPU, before there is a GPU.
    test_graphs_cuda.prompt_ids()
    machine = install()
    install_graphs(machine)
    waits = []

    def set_mode(mode: str | int) -> None:
        """PyTorch's sync debug mode, which would raise at the line itself."""
        if mode == "error":
            machine.begin("no waiting")
        elif machine.steps[-1].kind == "no waiting":
            waits.append(sum(machine.steps[-1].waits.values()))

    torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode = set_mode, int
    with machine:
        for body in test_graphs_cuda.BODIES:
            body("cuda")
    assert waits and not any(waits), waits
    assert not machine.mismatches
    print(json.dumps([body.__name__ for body in test_graphs_cuda.BODIES]))


if __name__ == "__main__":
    main()
