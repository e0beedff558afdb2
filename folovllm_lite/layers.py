"""Linear and RMSNorm, laid out for inference on the machine at hand.

Until `fuse` is called both are PyTorch's. After it they give the same numbers sooner:
weights that are read together stand together, in the order in which the machine reads
them. Nothing here knows of attention or of tokens; what a layer is for is the model's
business.
"""

import math
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Weights of at most so many elements keep their columns beside their packed form.
_SMALL_WEIGHT = 2**21


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN is in this PyTorch and has kernels for `dtype` on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    # In float32 it was measured on x86 alone; on other CPUs PyTorch's choice stands.
    return dtype == torch.float32 and platform.machine() in ("x86_64", "AMD64")


def padded(rows: int) -> int:
    """`rows` rounded up to a number with three significant bits: 1 to 8, 10, 12, 14 ...

    oneDNN builds, and keeps, a kernel for each shape: half a millisecond and up to 0.6
    MB. A step may have any number of rows, so only four between two powers of two are
    used, as vLLM does for the batches of its CUDA graphs.
    """
    step = 1 << max(0, rows.bit_length() - 3)
    return -(-rows // step) * step


class Linear(nn.Linear):
    """x W^T + b, with a weight that `fuse` lays out as the machine reads it best.

    On a CPU only. Packed into tiles, as oneDNN's kernels want it: without that the
    weight is rearranged in every call, or another library computes, which took 1.3 to 4
    times as long for 2 to 64 tokens in float32. And column after column, for one token
    times a small weight in float32: that is a sum of the weight's columns, read from
    the first byte to the last, and is over before oneDNN has begun.
    """

    _laid_out: Tensor | None = None  # the weight that these were made of:
    _packed: Tensor | None = None
    _columns: Tensor | None = None  # [in, out]
    _version = 0  # of the weight, when it was packed
    _is_packed = False  # unreadable, here or in a stack that this layer is part of

    @torch.inference_mode(False)  # tensors made in that mode count no writes
    def fuse(self, keep: bool = False) -> None:
        """Lay the weight out; for inference only.

        A small weight in float32 can be read and changed as before. Of any other that
        is packed, unless somebody else reads it (`keep`), what stays behind is a tensor
        of the same shape without memory.
        """
        weight = self.weight.detach()
        self._laid_out = self._packed = self._columns = None
        if weight.device.type != "cpu":
            return
        packs = _packs(weight.dtype)
        small = weight.numel() <= _SMALL_WEIGHT
        if weight.dtype == torch.float32 and (small or not packs):
            weight = weight.t().contiguous().t()
            self._columns = weight.t()
        if packs:
            self._pack(weight)
            if self._columns is None:
                self._is_packed = True
                weight = weight if keep else weight.to("meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.__dict__["_laid_out"] = self.weight  # past nn.Module: no second parameter

    def _pack(self, weight: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._version = weight._version

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        if self._laid_out is None:
            return F.linear(x, self.weight, self.bias)
        if self._laid_out is not self._parameters["weight"]:  # there is another now
            self.fuse()
        columns = self._columns
        if columns is not None and x.dim() == 2 and len(x) == 1:
            if self.bias is None:
                return torch.mm(x, columns)
            return torch.addmm(self.bias, x, columns)
        if self._packed is None:
            return F.linear(x, self.weight, self.bias)
        # PyTorch counts what is written to a tensor, its views included.
        if columns is not None and columns._version != self._version:
            self._pack(columns.t())
        T = len(x)
        more = padded(T) - T if x.dim() == 2 else 0
        if more:
            x = F.pad(x, (0, 0, 0, more))
        out = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self.bias, "none", [], ""
        )
        return out[:T] if more else out

    def _save_to_state_dict(self, *args: Any) -> None:
        self._refuse()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._refuse()
        super()._load_from_state_dict(*args)

    def _refuse(self) -> None:
        # Without this a saved checkpoint would hold no weights, and a loaded one would
        # change some layers and not the packed ones.
        if self._is_packed:
            raise RuntimeError(
                "weights that are packed can't be saved or replaced: make a Qwen3 and "
                "use load_weights, which packs nothing"
            )


def stack(*linears: Linear) -> Linear:
    """Several layers as one, fused; their weights become views of its weight.

    Layers that read the same x are then one matrix product instead of several, while
    each keeps its name and its weight, and memory holds the weights once. vLLM does the
    same by loading q, k and v into one `qkv_proj`.
    """
    rows = [linear.out_features for linear in linears]
    with torch.device("meta"):  # the weights come from those that are there
        whole = Linear(linears[0].in_features, sum(rows), linears[0].bias is not None)
    for name in ("weight", "bias"):
        parts = [getattr(linear, name) for linear in linears]
        if parts[0] is not None:
            joined = torch.cat(parts)
            setattr(whole, name, nn.Parameter(joined, requires_grad=False))
    whole.fuse()
    for name in ("weight", "bias"):
        if getattr(whole, name) is not None:
            parts = getattr(whole, name).split(rows)
            for linear, part in zip(linears, parts, strict=True):
                setattr(linear, name, nn.Parameter(part, requires_grad=False))
                linear._is_packed = whole._is_packed
    return whole


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019).

    rms is sqrt(mean of squares + eps), and that is hypot(|x|, sqrt(n eps)) / sqrt(n).
    On a CPU these are four operations, in float32, where PyTorch's own norm takes ten,
    which for one token are half of its time. On a GPU PyTorch's is one kernel.
    """

    _prepared: tuple[Tensor, Tensor] | None = None
    _sources: tuple[Tensor, ...] = ()
    _version = 0  # of the sources, when they were read

    def fuse(self, *heads: Tensor) -> None:
        """Compute what depends on the weight alone; for inference only.

        Args:
            heads: weights [n], one for each head, whose rows x has then. None: its own.
        """
        self._sources = tuple(weight.detach() for weight in heads or (self.weight,))
        self._prepare()

    def _prepare(self) -> None:
        self._version = sum(weight._version for weight in self._sources)
        if len(self._sources) > 1:
            self.weight = nn.Parameter(torch.stack(self._sources), False)
        weight, n = self.weight, self.weight.shape[-1]
        if weight.device.type == "cpu":
            floor = torch.tensor(math.sqrt(n * self.eps))
            self._prepared = floor, weight.float() * math.sqrt(n)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., n] to the same shape."""
        if self._version != sum(weight._version for weight in self._sources):
            self._prepare()
        if self._prepared is None:  # the weight apart: it may have a row for each head
            return F.rms_norm(x, x.shape[-1:], None, self.eps) * self.weight
        floor, scale = self._prepared
        dtype = x.dtype
        if dtype != torch.float32:
            x = x.float()
        length = torch.linalg.vector_norm(x, 2, -1, True)
        x = x / torch.hypot(length, floor) * scale
        return x if dtype == torch.float32 else x.to(dtype)
