"""What makes a host wait for a GPU, what doesn't, and what is an error on one.

    python -m tests.pretended_gpu.snippets

prints JSON: name -> [waits, mismatches] that the pretended GPU notes. tests/gpu runs
the same lines under PyTorch's sync debug mode.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor


def pinned(values: list) -> Tensor:
    return torch.tensor(values, pin_memory=True)


# PyTorch's mode believes what `non_blocking` says.
_HURRIED = "a copy from memory that isn't pinned"
UNSEEN = {_HURRIED}

# Each is called with x, float32 [3] on the device, and the device's name.
WAITS: dict[str, Callable[[Tensor, str], object]] = {
    "a number for Python": lambda x, device: x.sum().item(),
    "a condition": lambda x, device: bool((x > 0).all()),
    "int()": lambda x, device: int(x[0]),
    "tolist": lambda x, device: x.tolist(),
    "nonzero": lambda x, device: x.nonzero(),
    "unique": lambda x, device: x.unique(),
    "a mask as index": lambda x, device: x[x > 0],
    "a list as index": lambda x, device: x[[0, 2]],
    "a list as index, written to": lambda x, device: x.__setitem__([0, 2], x[:2] + 1),
    "a number written to an index": lambda x, device: x.__setitem__(
        torch.arange(2, device=device), 1.0
    ),
    "a tensor from a list": lambda x, device: torch.tensor([1, 2], device=device),
    "a copy there": lambda x, device: torch.ones(3).to(device),
    "an impatient copy there": lambda x, device: pinned([1, 2]).to(device),
    _HURRIED: lambda x, device: torch.ones(3).to(device, non_blocking=True),
    "a copy back": lambda x, device: x.cpu(),
    "a copy into memory that isn't pinned": lambda x, device: torch.ones(3).copy_(x),
}
FREE: dict[str, Callable[[Tensor, str], object]] = {
    "arithmetic": lambda x, device: (x * 2 + 1).argmax(-1),
    "a slice": lambda x, device: x[:2].add_(1),
    "a number written": lambda x, device: x.fill_(2),
    "an index of the device's": lambda x, device: x[torch.arange(2, device=device)],
    "a mask filled in": lambda x, device: x.masked_fill(x > 0, 1.0),
    "a patient copy there": lambda x, device: pinned([1, 2]).to(
        device, non_blocking=True
    ),
    "a patient copy back": lambda x, device: torch.empty(3, pin_memory=True).copy_(
        x, non_blocking=True
    ),
    "a draw": lambda x, device: x.exponential_(
        generator=torch.Generator(device).manual_seed(1)
    ),
}
MISMATCHES: dict[str, Callable[[Tensor, str], object]] = {
    "operands on two devices": lambda x, device: x + torch.ones(3),
    "the CPU's tensor first": lambda x, device: torch.ones(3) * x,
    "concatenation": lambda x, device: torch.cat([x, torch.ones(3)]),
    "an index into the CPU's memory": lambda x, device: torch.ones(3)[
        torch.arange(2, device=device)
    ],
    "values of the CPU's": lambda x, device: x.__setitem__(
        torch.arange(2, device=device), torch.ones(2)
    ),
    "another device's generator": lambda x, device: x.exponential_(
        generator=torch.Generator().manual_seed(1)
    ),
}


def main() -> None:
    """Run them all on the pretended device."""
    from tests.pretended_gpu.device import install

    machine, seen = install(), {}
    for name, snippet in (WAITS | FREE | MISMATCHES).items():
        machine.clear()
        with machine:
            x = torch.zeros(3, device="cuda")
            snippet(x, "cuda")
        waits = sum(machine.steps[-1].waits.values())
        seen[name] = [waits, sum(machine.mismatches.values())]
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
