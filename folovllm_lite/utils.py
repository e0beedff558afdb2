"""Small helpers that everything may use: seeds, ids, devices, GPU memory."""

import random
import uuid

import torch
from torch import Tensor

_GIB = 1024**3


def set_random_seed(seed: int) -> None:
    """Seed Python, NumPy (where it is installed) and PyTorch on every device."""
    if not -(2**63) <= seed < 2**64:  # before any of them is seeded
        raise ValueError(f"seed must fit 64 bits, got {seed}")
    random.seed(seed)
    try:
        import numpy
    except ImportError:  # torch runs without it
        pass
    else:
        numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # seeds CUDA as well


def generate_request_id() -> str:
    """A new id that no other request has."""
    return str(uuid.uuid4())


def is_cuda_available() -> bool:
    """Whether this PyTorch can run on an NVIDIA GPU of this machine."""
    return torch.cuda.is_available()


def get_device(device: str | torch.device | None = None) -> torch.device:
    """The device to run on; None picks CUDA when there is one.

    Raises:
        ValueError: for a device that doesn't exist or isn't a device's name.
    """
    if device is None:
        return torch.device("cuda" if is_cuda_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{device!r} is not a device: try 'cpu' or 'cuda'") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device {str(chosen)!r} is not supported: try 'cpu' or 'cuda'"
        )
    if chosen.type == "cuda" and not is_cuda_available():
        raise ValueError(
            f"device {str(chosen)!r} was asked for, but PyTorch {torch.__version__} "
            "sees no GPU here: use device='cpu', or install a CUDA build of PyTorch"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(chosen)!r} was asked for, but there are "
            f"{torch.cuda.device_count()} GPUs, counted from 0"
        )
    return chosen


def move_to_device(tensors: list[Tensor], device: str | torch.device) -> list[Tensor]:
    """The tensors on `device`; those that are there already are not copied."""
    return [tensor.to(device) for tensor in tensors]


def tensor_on(
    values: list | tuple, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """`torch.tensor(values, dtype=dtype)` on `device`, without waiting for a GPU.

    A GPU copies by itself from memory that is *pinned*: that stays where it is. From
    any other the host copies, when the GPU has done all that it was given before.
    """
    on_gpu = device.type == "cuda"
    made = torch.tensor(values, dtype=dtype, device="cpu", pin_memory=on_gpu)
    return made.to(device, non_blocking=True)


def get_gpu_memory_info(device: int = 0) -> dict[str, float]:
    """GPU memory in GiB: allocated_gb, reserved_gb, free_gb, total_gb; {} without CUDA.

    Free is what the driver would still hand out, so other processes count too.
    """
    if not is_cuda_available():
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated_gb": round(torch.cuda.memory_allocated(device) / _GIB, 2),
        "reserved_gb": round(torch.cuda.memory_reserved(device) / _GIB, 2),
        "free_gb": round(free / _GIB, 2),
        "total_gb": round(total / _GIB, 2),
    }


def print_gpu_memory_info(device: int = 0) -> None:
    """Print `get_gpu_memory_info`, one line a figure."""
    info = get_gpu_memory_info(device)
    if not info:
        print("CUDA is not available")
        return
    print(f"GPU {device} memory:")
    for name, value in info.items():
        print(f"  {name.removesuffix('_gb'):<10}{value:8.2f} GiB")
