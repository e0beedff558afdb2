"""What this machine is, what of the course runs here, what stands in for the rest."""

import os
import platform
import time
from dataclasses import dataclass
from importlib import metadata, util

import psutil
import torch
from packaging.requirements import Requirement

from folovllm_lite.fast import four_bit_kernel

BUSY = 0.3  # cores in others' hands from which on a measured speed says little


@dataclass(frozen=True)
class Finding:
    """One line of the checkup: what was looked at, what was found, what follows."""

    what: str
    found: str
    means: str
    ok: bool = True


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _tested(package: str) -> tuple[str, bool]:
    """Whether the installed version is one that the tests ran with, in words."""
    try:
        lines = metadata.requires("folovllm-lite") or []
    except metadata.PackageNotFoundError:
        lines = []
    bounds = [r.specifier for r in map(Requirement, lines) if r.name == package]
    lowest = [b.version for each in bounds for b in each if b.operator == ">="]
    if not lowest:  # not installed, or before it had bounds
        return "requirements.txt names the version that was tested", True
    if bounds[0].contains(_version(package) or "0", prereleases=True):
        return f"tested with {lowest[0]}", True
    return f"never tried: the tests ran with {lowest[0]}", False


class Neighbours:
    """What other processes take of this machine, from when it is made on."""

    def __init__(self) -> None:
        self._began, self._before = time.perf_counter(), self._taken()

    @staticmethod
    def _taken() -> float:
        """Core-seconds of all others since the machine started."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        return sum(times) - idle - twice - time.process_time()

    def cores(self) -> float:
        """How many cores they kept busy, on average."""
        spent = time.perf_counter() - self._began
        return max(0.0, (self._taken() - self._before) / spent)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def four_bits() -> Finding:
    """What computes layers with four bits a weight on the CPU."""
    there = four_bit_kernel(torch.bfloat16)
    return Finding(
        "Four-bit layers",
        "PyTorch's kernel, in half precision" if there else "no kernel on this CPU",
        "in float32 they are unpacked on loading"
        if there
        else "they are unpacked on loading, and take the memory of plain ones",
        there,
    )


def checkup() -> list[Finding]:
    """Look at this machine; nothing is changed and nothing is downloaded."""
    neighbours = Neighbours()
    torch_means, torch_ok = _tested("torch")
    peer_means, peer_ok = _tested("transformers")
    peer = _version("transformers")
    memory = psutil.virtual_memory().total / 1024**3
    findings = [
        Finding("Python", platform.python_version(), "3.11 or newer is needed"),
        Finding("PyTorch", torch.__version__, torch_means, torch_ok),
        Finding(
            "transformers",
            peer or "missing",
            f"tokenizers, and the peer; {peer_means}",
            peer is not None and peer_ok,
        ),
        Finding(
            "Processor",
            f"{_processor()}, {os.cpu_count()} cores, "
            f"{torch.get_num_threads()} threads",
            f"PyTorch uses {torch.backends.cpu.get_cpu_capability()}",
        ),
        Finding("Numba", _version("numba") or "missing", "attention on the CPU"),
        four_bits(),
        Finding("Memory", f"{memory:.1f} GiB", "Qwen3-0.6B needs 1.5 GiB in bfloat16"),
        _gpu(),
    ]
    if torch.cuda.is_available():
        findings += _cuda()
    time.sleep(0.5)  # to see what others do while this process does nothing
    return [*findings, _busy(neighbours.cores())]


def _busy(cores: float) -> Finding:
    return Finding(
        "Other programs",
        f"keep {cores:.1f} of {os.cpu_count()} cores busy",
        "too little to disturb"
        if cores < BUSY
        else "expect less speed, and don't measure now",
        cores < BUSY,
    )


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        return Finding("GPU", "none", "everything runs on the CPU", ok=False)
    index = torch.cuda.current_device()
    free, total = torch.cuda.mem_get_info(index)
    major, minor = torch.cuda.get_device_capability(index)
    return Finding(
        "GPU",
        f"{torch.cuda.get_device_name(index)}, {total / 1024**3:.0f} GiB "
        f"({free / 1024**3:.0f} free), compute {major}.{minor}",
        f"CUDA {torch.version.cuda}",
    )


def _cuda() -> list[Finding]:
    """What only matters beside a GPU."""
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    triton = util.find_spec("triton") is not None
    return [
        Finding(
            "bfloat16",
            "yes" if bf16 else "no",
            "as fast as float16" if bf16 else "use dtype='float16'",
            bf16,
        ),
        Finding(
            "Triton",
            _version("triton") or "installed" if triton else "missing",
            "attention of decoding steps, CUDA graphs of them"
            if triton
            else "attention is PyTorch's, sequence by sequence, and no CUDA graphs",
            triton,
        ),
    ]


def table(findings: list[Finding]) -> str:
    """The findings in three columns; a dot marks what something stands in for."""
    rows = [(("✓" if f.ok else "·") + " " + f.what, f.found, f.means) for f in findings]
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{a:<{first}}  {b:<{second}}  {c}" for a, b, c in rows)
