"""What has to be true of the small helpers (notebook 01).

GPUs are simulated where one is needed, so that the same properties are judged on every
machine. The caller's generators are left as they were.
"""

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy
import torch

from folovllm_lite import utils as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail

_SUITE = utils = Suite(
    package,
    """Judge the helpers for seeds, ids, devices and GPU memory, or some of them.

    `checks.utils(get_device=mine)` judges one function, `checks.utils(module)` all of a
    module.
    """,
)
_GIB = 1024**3

_DRAWS = {
    "random.random()": random.random,
    "numpy.random.rand()": numpy.random.rand,
    "torch.rand(1)": lambda: torch.rand(1).item(),
}


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Put the three global generators back to where they stood."""
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def _gpus(count: int) -> Iterator[None]:
    """A machine that seems to have `count` GPUs of 8 GiB.

    On GPU 0 there are 3 GiB free, 2 reserved and 1 allocated; on GPU 1 one less each.
    """

    def less(gib: int, device: Any) -> int:
        number = getattr(device, "index", device) or 0
        if number >= count:
            raise RuntimeError(f"there is no GPU {number}")
        return (gib - number) * _GIB

    fakes = {
        "is_available": lambda: count > 0,
        "device_count": lambda: count,
        "mem_get_info": lambda device=0: (less(3, device), 8 * _GIB),
        "memory_allocated": lambda device=0: less(1, device),
        "memory_reserved": lambda device=0: less(2, device),
    }
    with mock.patch.multiple(torch.cuda, **fakes):
        yield


@_SUITE.property(
    "set_random_seed", hint="each of the three libraries has a generator of its own"
)
def _seeds_repeat(p: SimpleNamespace) -> None:
    """The same seed gives the same numbers in Python, NumPy and PyTorch."""
    with _generators_kept():
        for name, draw in _DRAWS.items():
            for seed in (7, 0):
                p.set_random_seed(seed)
                first = draw()
                p.set_random_seed(seed)
                if draw() != first:
                    given = f"{name} after set_random_seed({seed}), twice"
                    fail(given, "two numbers", "one")


@_SUITE.property("set_random_seed", hint="is the argument used everywhere?")
def _seeds_differ(p: SimpleNamespace) -> None:
    """Another seed gives other numbers."""
    with _generators_kept():
        for name, draw in _DRAWS.items():
            p.set_random_seed(7)
            first = draw()
            p.set_random_seed(8)
            if draw() == first:
                fail(f"{name} after set_random_seed of 7 and of 8", "one number", "two")


@_SUITE.property("set_random_seed", hint="NumPy takes 32 bits: what if there are more?")
def _large_seeds(p: SimpleNamespace) -> None:
    """A seed may have more than 32 bits."""
    with _generators_kept():
        for seed in (0, 2**32, 2**40, 2**63 - 1):
            try:
                p.set_random_seed(seed)
            except (ValueError, RuntimeError) as error:
                fail(f"set_random_seed({seed})", error, "no error")


@_SUITE.property(
    "set_random_seed", hint="cut to NumPy's 32 bits, the two have to stay different"
)
def _large_seeds_differ(p: SimpleNamespace) -> None:
    """That holds for large neighbours too."""
    with _generators_kept():
        for name, draw in _DRAWS.items():
            for bits in (40, 62):
                p.set_random_seed(2**bits)
                first = draw()
                p.set_random_seed(2**bits + 1)
                if draw() == first:
                    given = f"{name} after set_random_seed of 2**{bits} and one more"
                    fail(given, "one number", "two")


@_SUITE.property(
    "generate_request_id", hint="where does the randomness of your id come from?"
)
def _ids(p: SimpleNamespace) -> None:
    """An id is a string that never comes again, not even after the same seed."""
    expect("type of an id", type(p.generate_request_id()).__name__, "str")
    with _generators_kept():
        seen = []
        for _ in range(2):
            package.set_random_seed(7)
            seen += [p.generate_request_id() for _ in range(50)]
    given = "50 ids after set_random_seed(7), twice: how many different ones"
    expect(given, len(set(seen)), 100)


@_SUITE.property("is_cuda_available", hint="ask torch.cuda when called, not before")
def _cuda(p: SimpleNamespace) -> None:
    """is_cuda_available says whether PyTorch sees a GPU."""
    for count in (0, 1):
        with _gpus(count):
            got = p.is_cuda_available()
        expect(f"with {count} GPUs", got, count > 0)


@_SUITE.property("get_device", hint="None means: the GPU if there is one")
def _devices(p: SimpleNamespace) -> None:
    """None picks CUDA where there is a GPU and the CPU elsewhere; a name is kept."""
    for count, device, wanted in (
        (0, None, torch.device("cpu")),
        (1, None, torch.device("cuda")),
        (1, "cpu", torch.device("cpu")),
        (1, "cuda", torch.device("cuda")),
        (1, torch.device("cuda:0"), torch.device("cuda:0")),
        (2, "cuda:1", torch.device("cuda:1")),
        (0, torch.device("cpu"), torch.device("cpu")),
    ):
        with _gpus(count):
            got = p.get_device(device)
        expect(f"get_device({device!r}), {count} GPUs", got, wanted)


@_SUITE.property(
    "get_device", hint="torch.device('cuda:99') is made without a look at the machine"
)
def _no_devices(p: SimpleNamespace) -> None:
    """A device that doesn't exist is a ValueError that names it."""
    for count, device in (
        (0, "gpu9"),
        (0, ""),  # and not None
        (0, 3.5),
        (0, "cuda"),
        (1, "cuda:1"),
        (1, torch.device("cuda:1")),
        (2, "cuda:99"),
        (0, "meta"),  # known to PyTorch, and it holds no numbers
    ):
        with _gpus(count):
            expect_error(
                f"get_device({device!r}), {count} GPUs",
                lambda device=device: p.get_device(device),
                ValueError,
                str(device),
            )


@_SUITE.property("move_to_device", hint="Tensor.to copies only where it has to")
def _moves(p: SimpleNamespace) -> None:
    """Tensors are moved in order; what is there already is not copied."""
    tensors = [torch.zeros(1), torch.zeros(2, dtype=torch.int64)]
    given = list(tensors)
    moved = p.move_to_device(tensors, "meta")
    expect("to 'meta': devices", [str(t.device) for t in moved], ["meta", "meta"])
    expect("to 'meta': shapes", [list(t.shape) for t in moved], [[1], [2]])
    expect("to 'meta': dtypes", [t.dtype for t in moved], [t.dtype for t in given])
    kept = all(t is old for t, old in zip(tensors, given, strict=True))
    expect("the list that was passed in holds the same tensors", kept, True)
    stayed = p.move_to_device(tensors, torch.device("cpu"))
    same = [t is old for t, old in zip(stayed, given, strict=True)]
    expect("to 'cpu', where they are: the same objects", same, [True, True])
    mixed = p.move_to_device([tensors[0], moved[1]], "meta")
    expect("one of two to 'meta'", [str(t.device) for t in mixed], ["meta", "meta"])
    expect("no tensors at all", p.move_to_device([], "cpu"), [])


@_SUITE.property("tensor_on", hint="torch.tensor finds a dtype, unless it is told one")
def _tensor_on(p: SimpleNamespace) -> None:
    """tensor_on gives what torch.tensor does: shape, values, and dtype."""
    cpu = torch.device("cpu")
    for values, dtype, wanted in (
        ([1, 2], None, torch.int64),
        ([0.5, 1], None, torch.float32),
        ((True, False), None, torch.bool),
        ([], torch.long, torch.int64),
        ([[1, 2], [3, 4]], torch.float16, torch.float16),
    ):
        got = p.tensor_on(values, cpu, dtype)
        given = f"tensor_on({values}, cpu, {dtype})"
        expect(given, got, torch.tensor(values, dtype=dtype))
        expect(f"{given}: dtype, device", [got.dtype, got.device.type], [wanted, "cpu"])


@_SUITE.property(
    "get_gpu_memory_info",
    hint="1 GiB is 1024**3 bytes, 1 GB 1000**3; and who else may use the GPU?",
)
def _memory(p: SimpleNamespace) -> None:
    """Memory comes in GiB, for the GPU that was asked about."""
    for device, wanted in ((0, [1.0, 2.0, 3.0, 8.0]), (1, [0.0, 1.0, 2.0, 8.0])):
        with _gpus(2):
            got = p.get_gpu_memory_info(device)
        names = ["allocated_gb", "reserved_gb", "free_gb", "total_gb"]
        expect(f"a GPU of 8 GiB, device {device}: keys", list(got), names)
        expect(f"a GPU of 8 GiB, device {device}", list(got.values()), wanted)
    with _gpus(2):
        got = p.get_gpu_memory_info()
    expect("a GPU of 8 GiB, no device named: free_gb, of GPU 0", got["free_gb"], 3.0)


@_SUITE.property("get_gpu_memory_info", hint="ask is_cuda_available first")
def _no_memory(p: SimpleNamespace) -> None:
    """Without a GPU there is nothing to tell, and no error."""
    with _gpus(0):
        got = p.get_gpu_memory_info()
    expect("no GPU", got, {})


@_SUITE.property("print_gpu_memory_info", hint="print what get_gpu_memory_info returns")
def _printed(p: SimpleNamespace) -> None:
    """The printed lines say the same, or that there is no GPU."""
    for count, words in ((0, ["not available"]), (1, ["total", "8.00 GiB", "3.00"])):
        out = io.StringIO()
        with _gpus(count), redirect_stdout(out):
            p.print_gpu_memory_info()
        for word in words:
            if word not in out.getvalue():
                fail(f"{count} GPUs", repr(out.getvalue()), f"a text with {word!r}")
