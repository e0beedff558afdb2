"""The pretended GPU: real numbers, computed on the CPU, behind a device called "cuda".

A tensor on it wraps a tensor on the CPU. Whatever asks where it is hears "cuda:0": the
engine, which branches on it, and PyTorch itself. Every operation passes `Machine`,
which notes

- mismatches: operands on two devices, or a generator of another device than its draw,
  both of which are errors on a GPU;
- waits: where a GPU's host would stop until the device has caught up. That is a number
  for Python, a shape that depends on values, a mask or a list as an index, and each
  copy between the two that isn't from or to pinned memory with `non_blocking`;
- launches: operations that a GPU would run a kernel for.

It knows nothing of CUDA's own kernels, streams or times. Triton's kernels are stood in
for by functions that read the same arguments. `snippets` has what it must and mustn't
note; where there is a GPU, tests/gpu asks PyTorch's sync debug mode the same.

    machine = install()
    with machine:
        ...            # device="cuda" from here on
    machine.steps[-1].waits
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import traceback
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

import folovllm_lite

PACKAGE = Path(folovllm_lite.__file__).parent
MIB = 1024**2

# A build without CUDA has nobody who would switch to one of its devices.
_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>);
}
"""
_WAITS = {
    *("_local_scalar_dense", "equal"),  # a number for Python
    *("nonzero", "_unique2", "unique_dim", "masked_select"),  # shapes by values
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_COPIES = {"_to_copy", "copy_", "_copy_from"}
_FREE = {"detach", "lift_fresh", "alias"}  # as views: no kernel runs


@dataclass
class Step:
    """What the machine saw from one `begin` to the next.

    Args:
        kind: that `begin` was told.
        waits: (place in the package, what) -> how often.
        launches: operation -> how often.
    """

    kind: str
    waits: Counter = field(default_factory=Counter)
    launches: Counter = field(default_factory=Counter)


class OnGPU(torch.Tensor):
    """A tensor on the pretended device; `held` is its CPU tensor."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGPU:
        """Wrap `held`, in inference mode if it was made in it."""
        with torch.inference_mode(held.is_inference()):
            self = torch.Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                held.stride(),
                held.storage_offset(),
                dtype=held.dtype,
                device="cuda:0",
            )
        self.held = held
        _machine[0].memory.hold(self)
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        """Copied to the CPU first, as PyTorch does (but not for subclasses)."""
        return self.to("cpu").tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Reached outside of `with machine`, where the machine is off: put it on."""
        with install():
            return func(*args, **(kwargs or {}))


class Memory:
    """How much of the device's memory is held, and was at most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._holders: Counter = Counter()  # address of a storage -> tensors

    def hold(self, tensor: OnGPU) -> None:
        """Count a tensor's storage for as long as any tensor has it."""
        storage = tensor.held.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if not self._holders[address]:
            self.now += size
            self.most = max(self.most, self.now)
        self._holders[address] += 1
        weakref.finalize(tensor, self._let_go, address, size)

    def _let_go(self, address: int, size: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            self.now -= size

    def reset(self) -> None:
        """The most, from now on."""
        self.most = self.now


class Generator(torch._C.Generator):
    """`torch.Generator` that remembers which device it was made for."""

    places: dict[int, str] = {}  # address of the C++ object -> type of device

    def __new__(cls, device: str | torch.device = "cpu") -> Generator:
        """A CPU's generator that says it is the device's."""
        self = super().__new__(cls, "cpu")
        self._place = torch.device(device)
        cls.places[self._cdata] = self._place.type
        return self

    @property
    def device(self) -> torch.device:
        """Where it was made for."""
        return self._place


class Machine(TorchDispatchMode):
    """The device, and the judge of what it is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [Step("start")]
        self.mismatches: Counter = Counter()  # (place, operation) -> how often
        # Storages of pinned memory, kept alive: an address must not come back.
        self.pinned: dict[int, Any] = {}
        self.memory = Memory()
        self.recording: list | None = None  # see `graphs`
        self.strays: set[int] = set()  # slots that a graph must not have written

    def clear(self) -> None:
        """Forget what was seen."""
        self.steps, self.mismatches = [Step("start")], Counter()
        self.strays = set()

    def begin(self, kind: str) -> Step:
        """What is seen from now on belongs to a new step."""
        self.steps.append(Step(kind))
        return self.steps[-1]

    def waited(self, what: str) -> None:
        """Note a wait, at the line of the package that asked for it."""
        self.steps[-1].waits[place(), what] += 1

    def launched(self, name: str) -> None:
        """Note a kernel."""
        self.steps[-1].launches[name] += 1

    def pin(self, tensor: Tensor) -> Tensor:
        """Let a CPU tensor count as pinned memory."""
        storage = tensor.untyped_storage()
        self.pinned[storage._cdata] = storage
        return tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Judge an operation, compute it on the CPU, wrap what belongs to the GPU."""
        kwargs, name = dict(kwargs or {}), func.overloadpacket.__name__
        if name in ("pin_memory", "_pin_memory"):
            return self.pin(args[0].clone())
        if name == "is_pinned":
            return args[0].untyped_storage()._cdata in self.pinned
        if torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
        ):  # inference mode hands these over whole
            with self:
                return func.decompose(*args, **kwargs)
        if name == "_fused_sdp_choice":
            return 0  # the form that any CPU can compute
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        there = [x for x in tensors if isinstance(x, OnGPU)]
        here = [x for x in tensors if not isinstance(x, OnGPU) and x.is_cpu]
        device = kwargs.get("device") or ("cuda" if there else "cpu")
        target = torch.device(device).type
        self._judge(func, name, args, kwargs, there, here, target)
        if there and not func.is_view and name not in _FREE:
            self.launched(name)
        if kwargs.get("device") is not None and target == "cuda":
            kwargs["device"] = torch.device("cpu")
        pinned = kwargs.pop("pin_memory", False)
        args, kwargs = tree_map(
            lambda x: x.held if isinstance(x, OnGPU) else x, (args, kwargs)
        )
        out = func(*args, **kwargs)
        if self.recording is not None and not func.is_view:
            self.recording.append((func, args, kwargs, out))
        if pinned:
            self.pin(out)
        if target != "cuda" or (name == "copy_" and not there_is(there, args[0])):
            return out
        known = {id(x.held): x for x in there}  # written in place: the same tensor

        def wrap(x: Any) -> Any:
            if not isinstance(x, Tensor) or not x.is_cpu:
                return x
            return known[id(x)] if id(x) in known else OnGPU(x)

        return tree_map(wrap, out)

    def _judge(
        self,
        func: Any,
        name: str,
        args: tuple,
        kwargs: dict,
        there: list[OnGPU],
        here: list[Tensor],
        target: str,
    ) -> None:
        """Note what would be an error on a GPU, and where its host would wait."""
        if name in _COPIES:
            self._judge_copy(name, args, kwargs, target)
        elif name in _INDEXING and there:
            indices = [x for x in args[1] if x is not None]
            if any(x.dtype == torch.bool for x in indices):
                self.waited(f"{name} with a mask")
            elif any(not isinstance(x, OnGPU) for x in indices):
                self.waited(f"{name} with an index of the CPU's")
            # A lone number may come from the CPU, with a copy; nothing larger may.
            values = [x for x in args[2:3] if not isinstance(x, OnGPU)]
            if any(x.dim() == 0 for x in values):
                self.waited(f"{name} with a value of the CPU's")
            if not isinstance(args[0], OnGPU) or any(x.dim() for x in values):
                self.mismatches[place(), str(func)] += 1
        elif there and name != "fill_":
            lone = torch.Tag.pointwise in func.tags
            if any(x.dim() or not lone for x in here):
                self.mismatches[place(), str(func)] += 1
        if name in _WAITS and there:
            self.waited(name)
        for x in (*args, *kwargs.values()):
            if isinstance(x, torch._C.Generator):
                if Generator.places.get(x._cdata, "cpu") != target:
                    self.mismatches[place(), f"the generator of {func}"] += 1

    def _judge_copy(self, name: str, args: tuple, kwargs: dict, target: str) -> None:
        """A copy between the two waits, unless the CPU's side of it is pinned."""
        into, source = (None, args[0]) if name == "_to_copy" else args[:2]
        to_gpu = target == "cuda" if into is None else isinstance(into, OnGPU)
        if to_gpu == isinstance(source, OnGPU) or source.is_meta:
            return
        soon = kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))
        host = source if to_gpu else into  # None: new memory, which isn't pinned
        if host is None or host.untyped_storage()._cdata not in self.pinned:
            soon = False
        if not soon:
            self.waited("a copy to the GPU" if to_gpu else "a copy to the CPU")


def there_is(tensors: list[OnGPU], held: Tensor) -> bool:
    """Whether `held` is the memory of one of the tensors."""
    return any(x.held is held for x in tensors)


def place() -> str:
    """The innermost line of the package that led here, as "module.py:12"."""
    for frame in reversed(traceback.extract_stack()):
        if Path(frame.filename).is_relative_to(PACKAGE):
            return f"{Path(frame.filename).relative_to(PACKAGE)}:{frame.lineno}"
    return "outside"


# ----- Triton's kernels


def paged_decode(
    q, keys, values, plan, out, lse, scale, head_stride, Hq, group, *, SPLITS, **shapes
):
    """What `flash.paged_decode` writes, row by row."""
    for n, (row, end, *blocks) in enumerate(plan.T.tolist()):
        tiles = -(-end // shapes["TOKENS"])
        share = -(-tiles // SPLITS) * shapes["TOKENS"]
        blocks = blocks[: -(-end // shapes["S"])]
        # [Hkv, B, S, D] -> [Hq, end, D]
        k, v = (
            x[:, blocks].flatten(1, 2)[:, :end].float().repeat_interleave(group, 0)
            for x in (keys, values)
        )
        scores = (k @ q[row].float().unsqueeze(-1)).squeeze(-1) * scale  # [Hq, end]
        if SPLITS == 1:
            out[row] = (scores.softmax(-1).unsqueeze(1) @ v).squeeze(1)
            continue
        for split in range(SPLITS):
            part = slice(split * share, min((split + 1) * share, end))
            lse[n, :, split] = scores[:, part].logsumexp(-1)
            weights = scores[:, part].softmax(-1).unsqueeze(1)
            out[n, :, split] = (weights @ v[:, part]).squeeze(1)


def merge_splits(parts, lse, plan, out, Hq, **shapes):
    """What `flash.merge_splits` writes."""
    merged = (parts * lse.softmax(-1).unsqueeze(-1)).sum(2)  # [N, Hq, D]
    out[plan[0]] = merged.to(out.dtype)


STAND_INS = {"paged_decode": paged_decode, "merge_splits": merge_splits}


def on_gpu(kernel: Callable) -> Any:
    """In place of `flash.on_gpu`: `on_gpu(kernel)[grid](...)` runs what stands in."""
    stand_in = STAND_INS[kernel.__name__]

    class Compiled:
        def __getitem__(self, grid: tuple) -> Callable:
            def launch(*args: Any, **shapes: Any) -> None:
                lost = [x for x in args if isinstance(x, Tensor) and x.is_cpu]
                if lost:
                    install().mismatches[place(), kernel.__name__] += 1
                held = [x.held if isinstance(x, OnGPU) else x for x in args]
                with torch._C._DisableTorchDispatch():
                    stand_in(*held, **shapes)
                install().launched(kernel.__name__)
                if install().recording is not None:
                    install().recording.append((stand_in, held, shapes, None))

            return launch

    return Compiled()


# ----- putting it in


_machine: list[Machine] = []


def install(total: int = 32 * MIB, free: int = 30 * MIB) -> Machine:
    """Let PyTorch believe in the device, once for this process; the machine.

    Args:
        total, free: bytes of the GPU's memory, for whoever asks.
    """
    if _machine:
        return _machine[0]
    machine = Machine()
    _machine.append(machine)
    with tempfile.TemporaryDirectory() as folder:
        root, library = Path(torch.__file__).parent, f"{folder}/guard.so"
        compiler = ["g++", "-std=c++20", "-shared", "-fPIC", "-x", "c++", "-"]
        paths = ["-o", library, f"-I{root}/include", f"-L{root}/lib", "-lc10"]
        subprocess.run([*compiler, *paths], input=_GUARD, encoding="utf-8", check=True)
        ctypes.CDLL(library)
    # torch.tensor(list, device=...) shows its copy.
    torch._C._set_only_lift_cpu_tensors(True)
    make = torch.tensor

    def tensor(*args: Any, pin_memory: bool = False, **named: Any) -> Tensor:
        made = make(*args, **named)
        return machine.pin(made) if pin_memory else made

    torch.tensor, torch.Generator = tensor, Generator
    cuda = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.is_available, cuda.device_count = lambda: True, lambda: 1
    cuda.current_device = lambda: 0
    cuda.mem_get_info = lambda device=None: (free, total)
    cuda.get_device_properties = lambda device=None: SimpleNamespace(
        multi_processor_count=132, total_memory=total
    )
    cuda.memory_allocated = lambda device=None: machine.memory.now
    cuda.max_memory_allocated = lambda device=None: machine.memory.most
    cuda.reset_peak_memory_stats = lambda device=None: machine.memory.reset()
    cuda.synchronize = lambda device=None: machine.waited("synchronize")
    from folovllm_lite import flash, paged

    flash.on_gpu = on_gpu
    for module in (flash, paged):  # it holds no numbers, but is made as a tensor
        module.causal_lower_right = _without_the_machine(module.causal_lower_right)
    return machine


def _without_the_machine(function: Callable) -> Callable:
    def call(*args: Any) -> Any:
        with _disable_current_modes():
            return function(*args)

    return call
