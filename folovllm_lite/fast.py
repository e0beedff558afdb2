"""What replaces a plain model's layers for inference on this machine: `prepare`.

The layers that it makes give the same numbers, up to rounding, sooner: weights that are
read together stand together, in the order in which the machine reads them. They hold no
parameters, so they can't be trained, and refuse to be copied, edited, moved or saved.
Nothing here knows where keys and values live.

oneDNN, which PyTorch also calls mkldnn, is Intel's library of kernels for CPUs.
"""

import math
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from folovllm_lite.attention import AttentionContext
from folovllm_lite.qwen3 import MLP, Attention, Qwen3, RMSNorm, rotate

# Weights of at most so many elements stay as they are beside their packed form.
_SMALL_WEIGHT = 2**21


@torch.no_grad()
def prepare(model: Qwen3) -> Qwen3:
    """Replace the layers of `model` by faster ones; for inference only.

    The model is changed, and returned; memory holds its weights once. Linear layers
    that aren't PyTorch's own (quantized ones) stay as they are.
    """
    _replace(model)
    return model.eval()


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        new = _faster(child)
        if new is None:
            _replace(child)
        else:
            setattr(module, name, new)


def _faster(layer: nn.Module) -> nn.Module | None:
    """What stands for `layer`, or None for one that is only looked into."""
    kind = type(layer)
    if kind is Attention and _plain(layer.q_proj, layer.k_proj, layer.v_proj):
        return FastAttention(layer)
    if kind is MLP and _plain(layer.gate_proj, layer.up_proj):
        return FastMLP(layer)
    if kind is nn.Linear:
        return linear(layer)
    if kind is RMSNorm:
        return FastNorm(layer.weight, layer.eps)
    return Table(layer.weight) if kind is nn.Embedding else None


def _plain(*layers: nn.Module) -> bool:
    return all(type(layer) is nn.Linear for layer in layers)


class Prepared(nn.Module):
    """A layer for inference on this machine; what else a module can do, it refuses."""

    def _refuse(self, *args: Any, **named: Any) -> Any:
        raise TypeError(
            f"{type(self).__name__} is for inference alone: it can't be trained, "
            "copied, edited, moved or saved. Load the plain model once more with "
            "Qwen3.from_pretrained, and prepare that when you have changed it"
        )

    __reduce_ex__ = state_dict = _load_from_state_dict = _apply = _refuse

    def train(self, mode: bool = True) -> "Prepared":
        """Refused; `eval()` is not."""
        return self._refuse() if mode else super().train(False)


class Table(Prepared):
    """Rows of a weight [V, E] by number: the embedding."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.rows = weight.detach()

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [T] to [T, E]."""
        return F.embedding(ids, self.rows)


class FastNorm(Prepared):
    """RMSNorm, with a weight [n] or one for each head of x, [H, n].

    rms is sqrt(mean of squares + eps), and that is hypot(length of x, sqrt(n eps)) /
    sqrt(n). On a CPU these are four operations in float32 instead of six, and in lower
    precision twice as exact. On a GPU PyTorch's norm is one kernel.
    """

    def __init__(self, weight: Tensor, eps: float):
        super().__init__()
        n = weight.shape[-1]
        self.eps, self.on_cpu = eps, weight.device.type == "cpu"
        self.scale = weight.detach()
        if self.on_cpu:
            self.scale = self.scale.float() * math.sqrt(n)
            self.floor = torch.tensor(math.sqrt(n * eps))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., n] to the same shape and dtype."""
        if not self.on_cpu:
            if self.scale.dim() == 1:
                return F.rms_norm(x, self.scale.shape, self.scale, self.eps)
            return F.rms_norm(x, x.shape[-1:], None, self.eps) * self.scale
        wide = x.float()  # the same tensor if it is float32 already
        length = torch.linalg.vector_norm(wide, 2, -1, True)
        return (wide / torch.hypot(length, self.floor) * self.scale).to(x.dtype)


class FastLinear(Prepared):
    """x W^T + b with a weight as it stands; on a GPU that is the fastest."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.matrix, self.bias = weight, bias
        # Tells dtype and device, as a layer's weight does, and holds no numbers.
        self.weight = weight.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return F.linear(x, self.matrix, self.bias)


class PackedLinear(FastLinear):
    """x W^T + b on a CPU, with a weight that is laid out as the machine reads it best.

    There are two ways. Several tokens are multiplied with tiles, which is what oneDNN's
    kernels want: without them it rearranges the weight in every call, or PyTorch calls
    another library, which took 1.3 to 4 times as long for 2 to 64 tokens in float32.
    One token and a small weight are over before oneDNN has begun. There each thread
    takes a share of the weight's rows, as a batch of products: PyTorch's own product of
    a row and a small matrix keeps to one thread.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(weight, bias)
        weight = weight.contiguous()
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(weight)  # tiles: a copy
        self.shares: Tensor | None = None  # [threads, in, out / threads]
        if weight.dtype == torch.float32 and weight.numel() <= _SMALL_WEIGHT:
            threads = torch.get_num_threads()
            count = next(n for n in range(threads, 0, -1) if len(weight) % n == 0)
            self.shares = weight.unflatten(0, (count, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        T, shares = len(x), self.shares
        if T == 1 and shares is not None:
            out = torch.bmm(x.expand(len(shares), 1, -1), shares).view(1, -1)
            return out if self.bias is None else out + self.bias
        more = padded(T) - T
        if more:
            x = F.pad(x, (0, 0, 0, more))
        out = torch.ops.mkldnn._linear_pointwise(
            x, self.matrix, self.bias, "none", [], ""
        )
        return out[:T] if more else out


def linear(*layers: nn.Linear) -> FastLinear:
    """Layers that read the same x, as one: their results stand side by side.

    vLLM does the same by loading q, k and v into one `qkv_proj`.
    """
    weight, bias = layers[0].weight.detach(), layers[0].bias
    if len(layers) > 1:
        weight = torch.cat([layer.weight for layer in layers])
    if bias is not None:
        bias = torch.cat([layer.bias for layer in layers])
    packs = weight.device.type == "cpu" and _packs(weight.dtype)
    return (PackedLinear if packs else FastLinear)(weight, bias)


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


class FastAttention(Prepared):
    """`qwen3.Attention` with one product for q, k and v, and one norm for q and k."""

    def __init__(self, plain: Attention):
        super().__init__()
        self.layer, self.D = plain.layer, plain.D
        Hq, Hkv = (x.out_features // self.D for x in (plain.q_proj, plain.k_proj))
        self.cuts = [Hq, Hq + Hkv]
        self.qkv_proj = linear(plain.q_proj, plain.k_proj, plain.v_proj)
        self.o_proj = plain.o_proj
        self.qk_norm: nn.Module = nn.Identity()
        if plain.q_norm is not None:
            weights = [plain.q_norm.weight] * Hq + [plain.k_norm.weight] * Hkv
            self.qk_norm = FastNorm(torch.stack(weights), plain.q_norm.eps)
        _replace(self)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, ctx: AttentionContext
    ) -> Tensor:
        """Map x [T, E] to [T, E]."""
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.D))  # [T, Hq + 2 Hkv, D]
        qk, v = qkv.tensor_split(self.cuts[1:], 1)
        qk = rotate(self.qk_norm(qk), cos, sin)
        q, k = qk.tensor_split(self.cuts[:1], 1)
        out = ctx.attend(self.layer, q, k, v)  # [T, Hq, D]
        return self.o_proj(out.flatten(1))


class FastMLP(Prepared):
    """`qwen3.MLP` with one product for gate and up."""

    def __init__(self, plain: MLP):
        super().__init__()
        self.gate_up_proj = linear(plain.gate_proj, plain.up_proj)
        self.down_proj = plain.down_proj
        _replace(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, E] to [T, E]."""
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)
