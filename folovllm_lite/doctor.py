"""What this machine is, what of the course runs here, what stands in for the rest."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util

import torch


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


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    except (AttributeError, ValueError):  # Windows has no sysconf
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _works(probe: Callable[[], None]) -> str:
    """Run a probe: "" if it works, else why not."""
    try:
        probe()
    except Exception as error:  # noqa: BLE001  a probe may fail in any way
        first = next(iter(str(error).splitlines()), "")
        return f"{type(error).__name__}: {first}"
    return ""


def _probe_varlen() -> None:
    """Paged attention in PyTorch itself: run it once on one page."""
    from torch.nn.attention.varlen import varlen_attn

    device, half = "cuda", torch.bfloat16
    q = torch.randn(1, 1, 64, device=device, dtype=half)
    pages = torch.randn(1, 256, 1, 64, device=device, dtype=half)
    ends = torch.tensor([0, 1], device=device, dtype=torch.int32)
    varlen_attn(
        q,
        pages,
        pages,
        ends,
        None,
        1,
        1,
        window_size=(-1, 0),
        seqused_k=torch.tensor([1], device=device, dtype=torch.int32),
        block_table=torch.zeros(1, 1, device=device, dtype=torch.int32),
    )


def checkup() -> list[Finding]:
    """Look at this machine; nothing is changed and nothing is downloaded."""
    memory = _memory_gib()
    findings = [
        Finding("Python", platform.python_version(), "3.11 or newer is needed"),
        Finding("PyTorch", torch.__version__, "2.11 to 2.13 are supported"),
        Finding(
            "transformers",
            _version("transformers") or "missing",
            "tokenizers, and the peer to measure against",
            _version("transformers") is not None,
        ),
        Finding(
            "Processor",
            f"{_processor()}, {os.cpu_count()} cores, "
            f"{torch.get_num_threads()} threads",
            f"PyTorch uses {torch.backends.cpu.get_cpu_capability()}",
        ),
        Finding(
            "Memory",
            f"{memory:.1f} GiB" if memory else "unknown",
            "Qwen3-0.6B needs 1.5 GiB in bfloat16",
        ),
    ]
    if not torch.cuda.is_available():
        return [
            *findings,
            Finding("GPU", "none", "everything runs on the CPU, in float32", ok=False),
            Finding(
                "Paged attention kernel",
                "none without a GPU",
                "gathered blocks and plain attention stand in",
                ok=False,
            ),
            Finding(
                "CUDA graphs", "none without a GPU", "an eager step stands in", ok=False
            ),
        ]
    index = torch.cuda.current_device()
    free, total = torch.cuda.mem_get_info(index)
    major, minor = torch.cuda.get_device_capability(index)
    bf16 = torch.cuda.is_bf16_supported()
    varlen = _works(_probe_varlen)
    triton = util.find_spec("triton") is not None
    return [
        *findings,
        Finding(
            "GPU",
            f"{torch.cuda.get_device_name(index)}, {total / 1024**3:.0f} GiB "
            f"({free / 1024**3:.0f} free), compute {major}.{minor}",
            f"CUDA {torch.version.cuda}",
        ),
        Finding(
            "bfloat16",
            "yes" if bf16 else "no",
            "as fast as float16" if bf16 else "use dtype='float16'",
            bf16,
        ),
        Finding(
            "Paged attention kernel",
            varlen or "torch varlen_attn with a block table",
            "gathered blocks stand in" if varlen else "used by the paged KV cache",
            not varlen,
        ),
        Finding(
            "Triton",
            _version("triton") or "installed" if triton else "missing",
            "our own kernels" if triton else "PyTorch's kernels stand in",
            triton,
        ),
    ]


def table(findings: list[Finding]) -> str:
    """The findings in three columns; a dot marks what something stands in for."""
    rows = [(("✓" if f.ok else "·") + " " + f.what, f.found, f.means) for f in findings]
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{a:<{first}}  {b:<{second}}  {c}" for a, b, c in rows)
