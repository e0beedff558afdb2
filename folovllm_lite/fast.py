"""What replaces a plain model's layers for inference on this machine: `prepare`.

The layers that it makes give the same numbers, up to rounding, sooner: weights that are
read together stand together, in the order in which the machine reads them. They hold no
parameters, so they can't be trained, and refuse to be copied, edited, moved or saved.
Nothing here knows where keys and values live.

For a few tokens of a small model even starting an operation takes longer than its work,
and waiting for a second thread longer still: there all layers are one call of compiled
code (`run_layers`). Many rows are shared among threads that take whole rows through all
layers and never wait for each other on the way. oneDNN, which PyTorch also calls
mkldnn, is Intel's library of kernels for CPUs.
"""

from __future__ import annotations

import math
import platform
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from folovllm_lite.attention import AttentionContext
from folovllm_lite.flash import (
    FlashContext,
    NumbaKernels,
    attend_tiles_cpu,
    compiled,
    exp,
    merge_tiles_cpu,
    on_gpu,
    one_thread,
    share,
    store_tokens,
)
from folovllm_lite.gptq import QuantizedLinear, pack_levels, unpack_levels
from folovllm_lite.qwen3 import MLP, Attention, Layer, Qwen3, RMSNorm, rotate

# Weights of at most so many elements stay as they are beside their packed form,
_SMALL_WEIGHT = 2**21
# and with at most so many tokens compiled code reads them once for all: with one token
# in a quarter of oneDNN's time, with eight in as much.
_FEW = 8
# Less than so many multiplications in a row of operations stay on one thread. A second
# one buys a quarter at most, and waits at the end of each operation for the first:
# where another program takes its core away, nine tenths are lost.
_WORTH_SHARING = 10**8
# Fewest rows that a thread takes through all layers, and those that it takes through a
# part of one, which has to be worth a meeting afterwards.
_ROWS_OF_STEP, _ROWS_OF_LAYER = 8, 64
# One call for all layers attends on one thread: up to so many bytes a layer.
_ATTENDS_ALONE = 2**22


@torch.no_grad()
def prepare(model: Qwen3) -> Qwen3:
    """Replace the layers of `model` by faster ones; for inference only.

    The model is changed, and returned; memory holds its weights once.
    """
    _replace(model)
    if all(type(each) is FastLayer and each.arrays for each in model.model.layers):
        model.model.layers = nn.ModuleList([FastStack(model.model.layers)])
    if isinstance(model.lm_head, PackedLinear):
        model.lm_head.alone = True
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
    if kind is Layer:
        return FastLayer(layer)
    if kind is Attention and _alike(layer.q_proj, layer.k_proj, layer.v_proj):
        return FastAttention(layer)
    if kind is MLP and _alike(layer.gate_proj, layer.up_proj):
        return FastMLP(layer)
    if kind in (nn.Linear, QuantizedLinear):
        return linear(layer)
    if kind is RMSNorm:
        return FastNorm(layer.weight, layer.eps)
    return Table(layer.weight) if kind is nn.Embedding else None


def _alike(first: nn.Module, *others: nn.Module) -> bool:
    """Whether the layers can be one: all plain, or quantized in the same groups."""
    kind = type(first)
    if any(type(layer) is not kind for layer in others):
        return False
    if kind is QuantizedLinear:
        return all(
            layer.config == first.config and torch.equal(layer.g_idx, first.g_idx)
            for layer in others
        )
    return kind is nn.Linear


class Prepared(nn.Module):
    """A layer for inference on this machine; what else a module can do, it refuses."""

    def _refuse(self, *args: Any, **named: Any) -> Any:
        raise TypeError(
            f"{type(self).__name__} is for inference alone: it can't be trained, "
            "copied, edited, moved or saved. Load the plain model once more with "
            "Qwen3.from_pretrained, and prepare that when you have changed it"
        )

    __reduce_ex__ = state_dict = _load_from_state_dict = _apply = _refuse

    def train(self, mode: bool = True) -> Prepared:
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
        # The same for compiled code.
        self.plain: tuple[np.ndarray, np.float32] | None = None
        if not self.on_cpu:
            return
        if weight.dtype == torch.float32 and weight.dim() == 1:
            self.plain = self.scale.contiguous().numpy(), np.float32(eps)
        self.scale = self.scale.float() * math.sqrt(n)
        self.floor = torch.tensor(math.sqrt(n * eps))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., n] to the same shape and dtype."""
        if not self.on_cpu:
            if self.scale.dim() == 1:
                return F.rms_norm(x, self.scale.shape, self.scale, self.eps)
            return F.rms_norm(x, x.shape[-1:], None, self.eps) * self.scale
        if self.plain and x.dtype == torch.float32:
            rows = x.reshape(-1, x.shape[-1]).contiguous()
            out = torch.empty_like(rows)
            norm_rows(rows.numpy(), *self.plain, out.numpy())
            return out.view(x.shape)
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
        # The same memory for compiled code, where that is the fastest for few tokens.
        self.few: tuple[np.ndarray, np.ndarray] | None = None
        small = weight.dtype == torch.float32 and weight.numel() <= _SMALL_WEIGHT
        if weight.device.type == "cpu" and small:
            there = weight.new_empty(0) if bias is None else bias.detach()
            self.few = weight.contiguous().numpy(), there.numpy()

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        if self.few is None or len(x) > _FEW:
            return self.multiply(x)
        out = x.new_empty(len(x), len(self.few[0]))
        multiply_few(x.contiguous().numpy(), *self.few, out.numpy())
        return out

    def multiply(self, x: Tensor) -> Tensor:
        """The same for many tokens."""
        return F.linear(x, self.matrix, self.bias)


class PackedLinear(FastLinear):
    """x W^T + b on a CPU, with a weight that is laid out as the machine reads it best.

    Several tokens are multiplied with tiles, which is what oneDNN's kernels want:
    without them it rearranges the weight in every call, or PyTorch calls another
    library, which took 1.3 to 4 times as long for 2 to 64 tokens in float32.
    """

    alone = False  # not one of a layer's products, which decides for all of them

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__(weight, bias)
        self.size = weight.numel()
        weight = weight.contiguous()
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(weight)  # tiles: a copy

    def multiply(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        T = len(x)
        more = padded(T) - T
        if more:
            x = F.pad(x, (0, 0, 0, more))
        with threads_for(self.size, T) if self.alone else nullcontext():
            out = torch.ops.mkldnn._linear_pointwise(
                x, self.matrix, self.bias, "none", [], ""
            )
        return out[:T] if more else out


def threads_for(weights: int, tokens: int) -> AbstractContextManager:
    """One thread inside, if that is enough for so many weights and tokens.

    Reading a weight from memory takes as long as multiplying it a few times.
    """
    return one_thread(weights * max(tokens, 8) < _WORTH_SHARING)


def for_a_step(model: Qwen3) -> AbstractContextManager:
    """What to compute a whole step in, sampling and all.

    Where compiled code shares the work, OpenMP's threads would only be in its way: they
    spin for a while after each operation.
    """
    return one_thread(isinstance(model.model.layers[0], FastStack))


def linear(*layers: nn.Linear | QuantizedLinear) -> Prepared:
    """Layers that read the same x, as one: their results stand side by side.

    vLLM does the same by loading q, k and v into one `qkv_proj`.
    """
    if isinstance(layers[0], QuantizedLinear):
        return _four_bits(_joined(layers))
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


def _joined(layers: tuple[QuantizedLinear, ...]) -> QuantizedLinear:
    """Quantized layers with the same groups, as one."""
    first, sizes = layers[0], [layer.out_features for layer in layers]
    if len(layers) == 1:
        return first
    bias = any(layer.bias is not None for layer in layers)
    with torch.device("meta"):
        whole = QuantizedLinear(
            first.in_features, sum(sizes), bias, first.config, first.dtype
        )
    for name in ("qweight", "qzeros", "scales"):
        parts = [getattr(layer, name) for layer in layers]
        setattr(whole, name, torch.cat(parts, 1))
    whole.g_idx = first.g_idx
    if bias:
        parts = [
            first.scales.new_zeros(N, dtype=first.dtype) if x.bias is None else x.bias
            for x, N in zip(layers, sizes, strict=True)
        ]
        whole.bias = nn.Parameter(torch.cat(parts), False)
    return whole


def _four_bits(layer: QuantizedLinear) -> Prepared:
    """The form in which this machine computes a quantized layer soonest.

    On a CPU PyTorch's kernel in half precision. In float32 that kernel takes longer
    than the plain product, and it has no form for every group: there the weight is made
    once, and takes the memory that it took before. On a GPU the kernel below.
    """
    group = kernel_group(layer.g_idx, layer.config.size(layer.in_features))
    if layer.qweight.device.type == "cpu" and four_bit_kernel(layer.dtype) and group:
        return CPUInt4Linear(layer, group)
    if layer.qweight.is_cuda and group and find_spec("triton"):
        return TritonInt4Linear(layer)
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    weight = layer.quantized.dequantize().to(layer.dtype)
    plain.weight, plain.bias = nn.Parameter(weight, False), layer.bias
    return linear(plain)


def kernel_group(g_idx: Tensor, size: int) -> int | None:
    """The group size with which the kernels can compute; None if with none.

    A larger group is as many of the kernel's with the same scale. Groups that aren't
    all of one size have no kernel.
    """
    count = len(g_idx) // size
    if not bool((g_idx.bincount(minlength=count) == size).all()):
        return None
    return next((n for n in (256, 128, 64, 32) if size % n == 0), None)


@cache
def four_bit_kernel(dtype: torch.dtype) -> bool:
    """Whether PyTorch computes four-bit layers on this CPU, rightly, with `dtype`."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    levels = torch.arange(_ROWS * 32).view(_ROWS, 32).int() % 16
    scales = torch.tensor([0.5, 1.0], dtype=dtype).expand(1, _ROWS, 2).contiguous()
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1)
        got = torch.ops.aten._weight_int4pack_mm_for_cpu(
            torch.ones(2, 32, dtype=dtype), packed, 32, scales
        )
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    wanted = ((levels.float() - 8) * 0.5 + 1).sum(1)
    return torch.allclose(got.float(), wanted.expand(2, -1), rtol=0.02)


# Outputs that the kernel packs together, on the machines where it was looked at.
_ROWS = 64
# From so many tokens on the weights are made for one step, and multiplied plainly.
_MANY = 192


class CPUInt4Linear(Prepared):
    """x W^T + b with PyTorch's own four-bit kernel for CPUs.

    The kernel wants neighbours in a group, so inputs stand in the order of their
    groups, and x is brought into that order. For many tokens it takes longer than a
    plain product: there the levels are read back, if their layout is one that we know.
    """

    def __init__(self, layer: QuantizedLinear, group: int):
        super().__init__()
        q, K, N = layer.quantized, layer.in_features, layer.out_features
        self.out_features, self.group, self.bias = N, group, layer.bias
        self.order = _order(q.g_idx)
        more = -N % _ROWS
        levels = q.levels if self.order is None else q.levels[:, self.order]
        levels = F.pad(levels.int(), (0, 0, 0, more))
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1)
        # The kernel computes (level - 8) * scale + shift.
        scales = q.scales.float()
        both = torch.stack((scales, scales * (8 - q.zeros.float())), -1)  # [N, G, 2]
        repeat = layer.config.size(K) // group
        both = both.repeat_interleave(repeat, 1).transpose(0, 1)
        self.scales = F.pad(both, (0, 0, 0, more)).to(layer.dtype).contiguous()
        self.readable = torch.equal(self._levels(), levels.view(-1, _ROWS, K).mT)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        if self.order is not None:
            x = x[:, self.order]
        if len(x) >= _MANY and self.readable:
            out = self._multiply(x)
        else:
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(
                x.contiguous(), self.packed, self.group, self.scales
            )
        out = out[:, : self.out_features]
        return out if self.bias is None else out + self.bias

    def _levels(self) -> Tensor:
        """The levels [N / 64, K, 64], read back."""
        bytes_ = self.packed.view(-1, self.packed.shape[1] * 2, _ROWS // 2)
        return torch.cat((bytes_ & 15, bytes_ >> 4), -1)

    def _multiply(self, x: Tensor) -> Tensor:
        """Make the weight, [N / 64, K, 64], and multiply with it."""
        G = len(self.scales)
        scale, shift = self.scales.view(G, -1, 1, _ROWS, 2).transpose(0, 1).unbind(-1)
        levels = self._levels().to(x.dtype).unflatten(1, (G, -1))  # [N/64, G, n, 64]
        weight = torch.addcmul(shift - 8 * scale, levels, scale).flatten(1, 2)
        out = x @ weight  # [N / 64, T, 64]
        return out.transpose(0, 1).flatten(1)

    @property
    def nbytes(self) -> int:
        """Bytes that a step of few tokens reads of it."""
        return self.packed.nbytes + self.scales.nbytes


tl = None  # triton.language, as soon as the kernel is wanted
# Up to so many tokens a step reads the levels; more are multiplied with the weight.
_FEW_ON_GPU = 32


def four_bit_product(
    x_at, words_at, scales_at, zeros_at, out_at, T, N, K,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """One program: all T tokens times WIDTH outputs, 32 inputs at a time.

    x [T, K]; words [K / 8, N]; scales, zeros [K / GROUP, N]; out [T, N].
    """
    n, t = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH), tl.arange(0, TOKENS)
    k = tl.arange(0, 32)
    total = tl.zeros((TOKENS, WIDTH), tl.float32)
    for start in range(0, K, 32):
        x = tl.load(x_at + t[:, None] * K + (start + k)[None, :], (t < T)[:, None], 0.0)
        place = ((start + k) // 8)[:, None] * N + n[None, :]
        words = tl.load(words_at + place, (n < N)[None, :], 0)
        group = start // GROUP * N
        scale = tl.load(scales_at + group + n, n < N, 0.0).to(tl.float32)
        zero = tl.load(zeros_at + group + n, n < N, 0)
        levels = (words >> ((k % 8) * 4)[:, None]) & 15
        w = (levels - zero[None, :]).to(tl.float32) * scale[None, :]
        if WIDE:  # the interpreter takes bfloat16 for integers
            total += tl.dot(x.to(tl.float32), w, input_precision="ieee")
        else:
            total += tl.dot(x, w.to(x.dtype), input_precision="ieee")
    out, real = (
        out_at + t[:, None] * N + n[None, :],
        (t < T)[:, None] & (n < N)[None, :],
    )
    tl.store(out, total.to(out_at.dtype.element_ty), real)


class TritonInt4Linear(Prepared):
    """x W^T + b on a GPU: few tokens read the levels, many a weight made for the step.

    No GPU has timed it yet.
    """

    def __init__(self, layer: QuantizedLinear):
        super().__init__()
        q, self.out_features, self.bias = (
            layer.quantized,
            layer.out_features,
            layer.bias,
        )
        self.order, self.group = _order(q.g_idx), layer.config.size(layer.in_features)
        levels = q.levels if self.order is None else q.levels[:, self.order]
        self.words = pack_levels(levels.T)
        self.scales, self.zeros = q.scales.T.contiguous(), q.zeros.T.int().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, in] to [T, out]."""
        x = x.contiguous() if self.order is None else x[:, self.order]
        (T, K), N = x.shape, self.out_features
        if T > _FEW_ON_GPU:
            steps = unpack_levels(self.words).unflatten(0, (-1, self.group))
            steps = steps.float() - self.zeros[:, None]  # [G, group, N]
            weight = (steps * self.scales[:, None].float()).flatten(0, 1)
            out = x @ weight.to(x.dtype)
        else:
            out = x.new_empty(T, N)
            on_gpu(four_bit_product)[(-(-N // 32),)](
                x, self.words, self.scales, self.zeros, out, T, N, K,
                TOKENS=16 if T <= 16 else 32, WIDTH=32, GROUP=self.group,
                WIDE=not x.is_cuda,
            )  # fmt: skip
        return out if self.bias is None else out + self.bias


def _order(g_idx: Tensor) -> Tensor | None:
    """The inputs by their groups; None if they stand so."""
    order = g_idx.argsort(stable=True)
    return None if bool((order.diff() == 1).all()) else order


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
        self.norm_of_heads = np.empty((0, self.D), np.float32), np.float32(0)
        if plain.q_norm is not None:
            weights = [plain.q_norm.weight] * Hq + [plain.k_norm.weight] * Hkv
            both, eps = torch.stack(weights), plain.q_norm.eps
            self.qk_norm = FastNorm(both, eps)
            self.norm_of_heads = both.float().cpu().numpy(), np.float32(eps)
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


class FastLayer(Prepared):
    """`qwen3.Layer`; a small one in float32 is compiled, but for many tokens' products.

    Those are oneDNN's.
    """

    def __init__(self, plain: Layer):
        super().__init__()
        self.size = sum(_weights(module) for module in plain.modules())
        self.on_cpu = plain.input_layernorm.weight.device.type == "cpu"
        self.self_attn, self.mlp = plain.self_attn, plain.mlp
        self.input_layernorm = plain.input_layernorm
        self.post_attention_layernorm = plain.post_attention_layernorm
        _replace(self)
        # What `before_attention` and `after_attention` are given.
        self.arrays: tuple[tuple, tuple] | None = None
        attention, mlp = self.self_attn, self.mlp
        if not (type(attention) is FastAttention and type(mlp) is FastMLP):
            return
        products = (
            attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj
        )  # fmt: skip
        if all(isinstance(each, FastLinear) and each.few for each in products):
            qkv, o, gate_up, down = (each.few for each in products)
            first, second = self.input_layernorm, self.post_attention_layernorm
            self.arrays = (
                (*first.plain, *qkv, *attention.norm_of_heads),
                (*o, *second.plain, *gate_up, *down),
            )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, ctx: AttentionContext
    ) -> Tensor:
        """Map x [T, E] to [T, E]."""
        if self.arrays:
            return self._compiled(x.contiguous(), cos, sin, ctx)
        with threads_for(self.size, len(x)) if self.on_cpu else nullcontext():
            x = x + self.self_attn(self.input_layernorm(x), cos, sin, ctx)
            return x + self.mlp(self.post_attention_layernorm(x))

    def _compiled(
        self, x: Tensor, cos: Tensor, sin: Tensor, ctx: AttentionContext
    ) -> Tensor:
        q, k, v = self.queries(len(x))
        given, sizes = (x, cos, sin, q, k, v), (len(x), _ROWS_OF_LAYER)
        share(lambda rows: self.before(*(each[rows] for each in given)), *sizes)
        attended = ctx.attend(self.self_attn.layer, q, k, v).contiguous()
        out = torch.empty_like(x)
        share(lambda rows: self.after(attended[rows], x[rows], out[rows]), *sizes)
        return out

    def queries(self, T: int) -> list[Tensor]:
        """Room for q [T, Hq, D] and k, v [T, Hkv, D]."""
        Hq, both = self.self_attn.cuts
        heads = Hq, both - Hq, both - Hq
        D = self.self_attn.D
        return [torch.empty(T, H, D, device="cpu") for H in heads]

    def before(self, x: Tensor, *given: Tensor) -> None:
        """Fill q, k and v of some rows; given is cos, sin, q, k, v."""
        arrays, given = self.arrays[0], [each.numpy() for each in given]
        if len(x) <= _FEW:
            before_attention(x.numpy(), *arrays, *given)
            return
        norm, eps, _, _, *heads = arrays
        normed = torch.empty_like(x)
        norm_rows(x.numpy(), norm, eps, normed.numpy())
        made = self.self_attn.qkv_proj.multiply(normed)
        turn_heads(made.numpy(), *heads, *given)

    def after(self, attended: Tensor, x: Tensor, out: Tensor) -> None:
        """Fill out [T, E] of some rows, which may be x; attended [T, Hq, D]."""
        arrays, attended = self.arrays[1], attended.flatten(1)
        if len(x) <= _FEW:
            after_attention(attended.numpy(), x.numpy(), *arrays, out.numpy())
            return
        _, _, norm, eps, *_ = arrays
        stream = self.self_attn.o_proj.multiply(attended)
        normed = torch.empty_like(x)
        add_rows(stream.numpy(), x.numpy(), stream.numpy())
        norm_rows(stream.numpy(), norm, eps, normed.numpy())
        both = self.mlp.gate_up_proj.multiply(normed)
        inner = x.new_empty(len(x), both.shape[1] // 2)
        gate_rows(both.numpy(), inner.numpy())
        more = self.mlp.down_proj.multiply(inner)
        add_rows(stream.numpy(), more.numpy(), out.numpy())


class FastStack(Prepared):
    """All layers as one, for steps in which every sequence decodes.

    For few tokens they are one call of compiled code: Python begins some 20 operations
    a layer, one after the other, and for one token of a small model that takes longer
    than the work. A GPU has CUDA graphs against it. Many tokens are shared among
    threads, each of which takes its rows through all layers.
    """

    def __init__(self, layers: nn.ModuleList):
        super().__init__()
        self.layers = layers
        every = [(*layer.arrays[0], *layer.arrays[1]) for layer in layers]
        self.arrays = [
            np.stack(each) if isinstance(each[0], np.ndarray) else each[0]
            for each in zip(*every, strict=True)
        ]

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, ctx: AttentionContext
    ) -> Tensor:
        """Map x [T, E] to [T, E]: the residual stream after all layers."""
        T = len(x)
        # A context of another kind attends as it likes.
        kernels = ctx.rows_alone if isinstance(ctx, FlashContext) else None
        if kernels and T <= _FEW and kernels.size <= _ATTENDS_ALONE:
            x = x.clone()
            turn = cos.numpy(), sin.numpy()
            run_layers(x.numpy(), *self.arrays, *turn, *kernels.plan)
        elif kernels and T >= 2 * _ROWS_OF_STEP and kernels.independent:
            x = x.clone()

            def work(rows: slice) -> None:
                self._run(x[rows], cos[rows], sin[rows], kernels.only(rows))

            share(work, T, _ROWS_OF_STEP)
        else:
            for layer in self.layers:
                x = layer(x, cos, sin, ctx)
        return x

    def _run(self, x: Tensor, cos: Tensor, sin: Tensor, kernels: NumbaKernels) -> None:
        """All layers on some rows x, which are changed."""
        q, k, v = self.layers[0].queries(len(x))
        out = torch.empty_like(q)
        for i, layer in enumerate(self.layers):
            layer.before(x, cos, sin, q, k, v)
            kernels.store(i, k, v)
            kernels.attend(i, q, out)
            layer.after(out, x, x)


def _weights(module: nn.Module) -> int:
    """How many weights a module multiplies with, its parts apart."""
    if isinstance(module, nn.Linear | QuantizedLinear):
        return module.in_features * module.out_features
    return 0


@compiled
def multiply_few(x, weight, bias, out):
    """The product x [T, n] W^T + b into out [T, m]; bias [m], or empty for none."""
    T, n = x.shape
    for m in range(len(weight)):
        row = weight[m]  # read from memory for the first token
        start = bias[m] if len(bias) else np.float32(0)
        for t in range(T):
            dot = np.float32(0)
            for i in range(n):
                dot += x[t, i] * row[i]
            out[t, m] = start + dot


@compiled
def norm_rows(x, weight, eps, out):
    """RMSNorm of rows x [T, n] into out [T, n]; weight [n]."""
    T, n = x.shape
    for t in range(T):
        squares = np.float32(0)
        for i in range(n):
            squares += x[t, i] * x[t, i]
        down = np.float32(1) / np.sqrt(squares / np.float32(n) + eps)
        for i in range(n):
            out[t, i] = x[t, i] * down * weight[i]


@compiled
def add_rows(a, b, out):
    """Write a + b into out, all [T, n]."""
    T, n = a.shape
    for t in range(T):
        for i in range(n):
            out[t, i] = a[t, i] + b[t, i]


@compiled
def gate_rows(both, out):
    """silu(gate) * up into out [T, M]; both [T, 2 M] holds gate and up."""
    T, M = out.shape
    for t in range(T):
        for i in range(M):
            gate = both[t, i]
            out[t, i] = gate / (np.float32(1) + exp(-gate)) * both[t, M + i]


@compiled
def turn_heads(made, heads, eps, cos, sin, q, k, v):
    """The norms of the heads, and the rotation: made [T, (Hq + 2 Hkv) D] to q, k, v.

    heads [Hq + Hkv, D], weights of the norms, or empty; cos, sin [T, 1, D]; q [T, Hq,
    D] and k, v [T, Hkv, D] are written; made is changed.
    """
    T, Hq, D = q.shape
    Hkv, half = k.shape[1], D // 2
    for t in range(T):  # views of a row would take seconds to compile
        for h in range(Hq + Hkv):
            first = h * D
            if len(heads):
                squares = np.float32(0)
                for i in range(first, first + D):
                    squares += made[t, i] * made[t, i]
                down = np.float32(1) / np.sqrt(squares / np.float32(D) + eps)
                for i in range(D):
                    made[t, first + i] *= down * heads[h, i]
            to, place = (q, h) if h < Hq else (k, h - Hq)
            for i in range(half):
                j = half + i
                a, b = made[t, first + i], made[t, first + j]
                to[t, place, i] = a * cos[t, 0, i] + b * sin[t, 0, i]
                to[t, place, j] = b * cos[t, 0, j] + a * sin[t, 0, j]
        for h in range(Hkv):
            for i in range(D):
                v[t, h, i] = made[t, (Hq + Hkv + h) * D + i]


@compiled
def before_attention(x, norm, eps, qkv, bias, heads, head_eps, cos, sin, q, k, v):
    """A layer until attention: norm, the product for q, k and v, and `turn_heads`."""
    normed = np.empty_like(x)
    norm_rows(x, norm, eps, normed)
    made = np.empty((len(x), len(qkv)), np.float32)
    multiply_few(normed, qkv, bias, made)
    turn_heads(made, heads, head_eps, cos, sin, q, k, v)


@compiled
def after_attention(
    attended, x, o, o_bias, norm, eps, gate_up, gate_up_bias, down, down_bias, out
):
    """The rest of a layer: o and the MLP, each added to the stream x [T, E]."""
    T = len(x)
    stream, normed = np.empty_like(x), np.empty_like(x)
    multiply_few(attended, o, o_bias, stream)
    add_rows(stream, x, stream)
    norm_rows(stream, norm, eps, normed)
    both = np.empty((T, len(gate_up)), np.float32)
    multiply_few(normed, gate_up, gate_up_bias, both)
    inner = np.empty((T, down.shape[1]), np.float32)
    gate_rows(both, inner)
    multiply_few(inner, down, down_bias, out)
    add_rows(stream, out, out)


@compiled
def run_layers(
    x, first, eps, qkv, qkv_bias, heads, head_eps,
    o, o_bias, second, eps_2, gate_up, gate_up_bias, down, down_bias,
    cos, sin, pool, slots, rows, tables, tiles,
):  # fmt: skip
    """All layers, one after the other, on the stream x [T, E], which is changed.

    Weights are those of a layer with one dimension more, the layers; pool to tiles are
    the plan of `flash.NumbaKernels`.
    """
    Hkv, D = pool.shape[2], pool.shape[5]
    T, M, Hq = len(x), len(tiles), qkv.shape[1] // D - 2 * Hkv
    q, out = np.empty((T, Hq, D), np.float32), np.empty((T, Hq, D), np.float32)
    k, v = np.empty((T, Hkv, D), np.float32), np.empty((T, Hkv, D), np.float32)
    best, total = np.empty((M, Hq), np.float32), np.empty((M, Hq), np.float32)
    parts = np.empty((M, Hq, D), np.float32)
    for i in range(len(qkv)):
        before_attention(
            x, first[i], eps, qkv[i], qkv_bias[i], heads[i], head_eps, cos, sin, q, k, v
        )
        store_tokens(pool, i, slots, k, v)
        attend_tiles_cpu(
            q, pool, i, rows, tables, tiles, 0, M * Hkv, best, total, parts
        )
        merge_tiles_cpu(rows, tiles, best, total, parts, out)
        after_attention(
            out.reshape(T, Hq * D), x, o[i], o_bias[i], second[i], eps_2,
            gate_up[i], gate_up_bias[i], down[i], down_bias[i], x,
        )  # fmt: skip
