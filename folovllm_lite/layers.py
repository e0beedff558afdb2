"""Linear and RMSNorm, laid out for inference on the machine at hand.

Until `fuse` is called both are PyTorch's. After it they give the same numbers, up to
rounding, sooner: weights that are read together stand together, in the order in which
the machine reads them. Nothing here knows what attention is.

oneDNN, which PyTorch also calls mkldnn, is Intel's library of kernels for CPUs.
"""

import math
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Weights of at most so many elements stay as they are beside their packed form.
_SMALL_WEIGHT = 2**21


def _packs(dtype: torch.dtype) -> bool:
    """Whether to pack weights of `dtype` for oneDNN on this CPU."""
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
    used, as vLLM pads a batch to the next size that it has a CUDA graph for.
    """
    step = 1 << max(0, rows.bit_length() - 3)
    return -(-rows // step) * step


def _writes(weights: tuple[Tensor, ...]) -> int:
    """How often they were written to; PyTorch counts for a tensor and its views."""
    return sum(weight._version for weight in weights)


class Linear(nn.Linear):
    """x W^T + b, with a weight that `fuse` lays out as the machine reads it best.

    On a CPU there are two ways. Several tokens are multiplied with tiles, which is what
    oneDNN's kernels want: without them it rearranges the weight in every call, or
    PyTorch calls another library, which took 1.3 to 4 times as long for 2 to 64 tokens
    in float32. One token and a small weight are over before oneDNN has begun. There
    each thread takes a share of the weight's rows, as a batch of products: PyTorch's
    own product of a row and a small matrix keeps to one thread.
    """

    _parts: tuple["Linear", ...] = ()  # of a stack, see `stack`
    _at: int | None = None  # where the weight stood when it was laid out
    _shares: Tensor | None = None  # [threads, in, out / threads]: the weight's memory
    _packed: Tensor | None = None  # tiles: a copy, made when these had been written to
    _sources: tuple[Tensor, ...] = ()
    _seen = 0  # so often
    _is_packed = False  # tiles may be all that is left, here or in the layer's stack

    @torch.inference_mode(False)  # inference tensors count no writes
    def fuse(self, keep: bool = False) -> None:
        """Lay the weight out; for inference only.

        A small weight in float32 can be read and written to as before. Any other that
        is packed is replaced by a tensor of its shape without memory, unless `keep`.
        Writes that PyTorch doesn't count, through `.data` or NumPy, go unnoticed.
        """
        for name in ("weight", "bias") if self._parts else ():
            joined = [getattr(part, name) for part in self._parts]
            if joined[0] is not None:
                setattr(self, name, nn.Parameter(torch.cat(joined), False))
        weight = self.weight.detach()
        self._at = self._shares = self._packed = None
        if weight.is_inference():
            weight = weight.clone()
        if weight.device.type == "cpu":
            weight = self._lay_out(weight, keep)
            self._at = weight.data_ptr()
        self.weight = nn.Parameter(weight, requires_grad=False)
        for name in ("weight", "bias") if self._parts else ():
            if getattr(self, name) is not None:
                rows = [part.out_features for part in self._parts]
                views = getattr(self, name).split(rows)
                for part, view in zip(self._parts, views, strict=True):
                    setattr(part, name, nn.Parameter(view, requires_grad=False))
                    part._is_packed = self._is_packed
        self._sources = tuple(part.weight for part in self._parts) or (self.weight,)
        self._seen = _writes(self._sources)

    def _lay_out(self, weight: Tensor, keep: bool) -> Tensor:
        """Make shares and tiles of a weight; what stays to be read of it."""
        if not _packs(weight.dtype):
            return weight
        weight = weight.contiguous()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        if weight.dtype == torch.float32 and weight.numel() <= _SMALL_WEIGHT:
            threads = torch.get_num_threads()
            count = next(n for n in range(threads, 0, -1) if len(weight) % n == 0)
            self._shares = weight.unflatten(0, (count, -1)).transpose(1, 2)
            return weight
        self._is_packed = True
        return weight if keep else weight.to("meta")

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        if self._at is None:
            return F.linear(x, self.weight, self.bias)
        if self._parameters["weight"].data_ptr() != self._at:  # it is another one
            self.fuse()
        shares = self._shares
        if shares is not None and x.dim() == 2 and len(x) == 1:
            out = torch.bmm(x.expand(len(shares), 1, -1), shares).view(1, -1)
            return out if self.bias is None else out + self.bias
        if self._packed is None:
            return F.linear(x, self.weight, self.bias)
        if self._seen != _writes(self._sources):
            self._repack()
        T = len(x)
        more = padded(T) - T if x.dim() == 2 else 0
        if more:
            x = F.pad(x, (0, 0, 0, more))
        out = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self.bias, "none", [], ""
        )
        return out[:T] if more else out

    def _repack(self) -> None:
        if self.weight.is_meta:
            self._refuse()
        weight = self.weight.contiguous()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._seen = _writes(self._sources)

    def __getstate__(self) -> dict:
        """For copies: they lay their weight out anew, as tiles can't be copied."""
        self._refuse()
        layout = {"_shares": None, "_packed": None}
        if self._at is not None:
            layout["_at"] = -1
        return self.__dict__ | layout

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
                "weights that are packed can't be copied, saved or changed: make a "
                "Qwen3 and use load_weights, which packs nothing"
            )


def stack(*linears: Linear) -> Linear:
    """Several layers as one, fused; their weights become views of its weight.

    Layers that read the same x are then one matrix product instead of several, while
    each keeps its name and its weight (or its shape alone, see `Linear.fuse`), and
    memory holds the weights once. vLLM does the same by loading q, k and v into one
    `qkv_proj`.
    """
    rows = sum(linear.out_features for linear in linears)
    with torch.device("meta"):  # the weights come from those that are there
        whole = Linear(linears[0].in_features, rows, linears[0].bias is not None)
    whole._parts = linears
    whole.fuse()
    return whole


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019).

    rms is sqrt(mean of squares + eps), and that is hypot(length of x, sqrt(n eps)) /
    sqrt(n). On a CPU these are four operations in float32 instead of PyTorch's six, and
    in lower precision twice as exact. On a GPU PyTorch's norm is one kernel.
    """

    _prepared: tuple[Tensor, Tensor] | None = None
    _sources: tuple[Tensor, ...] = ()  # the weights that it was prepared from,
    _seen = 0  # when they had been written to so often

    def fuse(self, *heads: Tensor) -> None:
        """Compute what depends on the weight alone; for inference only.

        Args:
            heads: weights [n], one for each head of x [..., H, n]. Without them it is
                the norm's own weight.
        """
        self._sources = heads or (self.weight,)
        self._prepare()

    def _prepare(self) -> None:
        self._seen = _writes(self._sources)
        if len(self._sources) > 1:
            self.weight = nn.Parameter(torch.stack(self._sources).detach(), False)
        weight, n = self.weight.detach(), self.weight.shape[-1]
        if weight.device.type == "cpu":
            floor = torch.tensor(math.sqrt(n * self.eps))
            self._prepared = floor, weight.float() * math.sqrt(n)

    def __getstate__(self) -> dict:
        """For copies: their weights begin to count their writes anew."""
        return self.__dict__ | {"_seen": -1}

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., n] to the same shape."""
        if self._seen != _writes(self._sources):
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
