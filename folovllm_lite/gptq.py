"""GPTQ: weights in four bits (Frantar et al. 2023): calibrate, quantize, pack, load.

A decoding step reads every weight once, so bytes are time. Plain rounding moves each
weight by itself to the nearest of 16 levels. GPTQ rounds column by column and lets the
columns that are still to come make up for the error, as far as the layer's inputs
allow. It writes the layout that the Hub knows as "gptq", and reads what others wrote.

The module knows the transformer's linear layers by name, and nothing of what an engine
does with the model.

Letters: N outputs of a layer, K inputs, G groups.
"""

import json
import math
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from folovllm_lite.attention import attention
from folovllm_lite.config import ModelConfig
from folovllm_lite.model_loader import (
    EMBEDDED_MODEL,
    ModelLoader,
    check_layers,
    checkpoint_dtype,
    misfits,
    quantization_config,
    read_config,
    resolve_checkpoint,
    stored_tensors,
    tied_names,
    weight_files,
)
from folovllm_lite.qwen3 import Qwen3, Qwen3Config
from folovllm_lite.utils import get_device

LEVELS = 16  # of four bits
_PER_INT32 = 8  # levels in an int32
_FORMATS = ("gptq", "gptq_v2")
# Columns whose corrections are collected before the columns behind them get them.
_LAZY = 128
# Layers of a transformer block that see the same input, in the order of the data.
_STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_SHARD_BYTES = 4 * 1024**3
# Tokens of a pass through a layer; a piece that is longer goes alone.
_PASS_TOKENS = 2048
# One calibration text in so many is kept back, to measure on.
_KEPT_BACK = 8


@dataclass(frozen=True)
class GPTQConfig:
    """How weights are quantized; the names are those of `quantization_config`.

    Args:
        group_size: inputs that share a scale and a zero point; -1 is all of a row.
        sym: the middle level is 0, so no zero point has to be chosen.
        desc_act: quantize the columns with the largest inputs first ("act order").
        damp_percent: share of the Hessian's mean diagonal that is added to it.
        checkpoint_format: "gptq" stores each zero point minus one, "gptq_v2" as it is.
            None is "gptq" where `sym`, which every reader knows, else "gptq_v2":
            "gptq" has no place for a zero point of 0.
        bits: 4.

    Raises:
        TypeError, ValueError, NotImplementedError: naming the field and its value.
    """

    group_size: int = 128
    sym: bool = True
    desc_act: bool = False
    damp_percent: float = 0.01
    checkpoint_format: str | None = None
    bits: int = 4

    def __post_init__(self) -> None:
        for name in ("bits", "group_size"):
            value = getattr(self, name)
            if type(value) is not int:
                raise TypeError(f"{name} must be an int, got {value!r}")
        if self.bits in (2, 3, 8):
            raise NotImplementedError(f"bits must be 4, {self.bits} are not supported")
        if self.bits != 4:
            raise ValueError(f"bits must be 4, got {self.bits}")
        if self.group_size != -1 and self.group_size < 1:
            raise ValueError(
                f"group_size must be positive, or -1 for whole rows, "
                f"got {self.group_size}"
            )
        for name in ("sym", "desc_act"):
            value = getattr(self, name)
            if type(value) is not bool:
                raise TypeError(f"{name} must be True or False, got {value!r}")
        damp = self.damp_percent
        if isinstance(damp, bool) or not isinstance(damp, int | float):
            raise TypeError(f"damp_percent must be a number, got {damp!r}")
        if not 0 <= damp < 1:
            raise ValueError(f"damp_percent must be in [0, 1), got {damp}")
        if self.checkpoint_format is None:
            object.__setattr__(
                self, "checkpoint_format", _FORMATS[0] if self.sym else _FORMATS[1]
            )
        if self.checkpoint_format not in _FORMATS:
            raise ValueError(
                f"checkpoint_format must be one of {', '.join(_FORMATS)}, "
                f"got {self.checkpoint_format!r}"
            )

    @property
    def zero_offset(self) -> int:
        """What the stored zero points lack."""
        return 1 if self.checkpoint_format == "gptq" else 0

    def size(self, K: int) -> int:
        """How many inputs of a layer with `K` share a scale."""
        return K if self.group_size == -1 else self.group_size

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> "GPTQConfig":
        """Read a `quantization_config`, whoever wrote it.

        Raises:
            NotImplementedError: another method, other bits or another layout, by name.
            TypeError, ValueError: as above.
        """
        method = hf.get("quant_method", "gptq")
        if method != "gptq":
            raise NotImplementedError(
                f"quantization method {method!r} is not supported, only 'gptq'"
            )
        layout = hf.get("checkpoint_format") or "gptq"
        if hf.get("is_marlin_format"):
            layout = "marlin"
        if layout not in _FORMATS:
            raise NotImplementedError(
                f"checkpoint_format {layout!r} is not supported, only "
                f"{', '.join(_FORMATS)}"
            )
        if hf.get("pack_dtype", "int32") != "int32":
            raise NotImplementedError(
                f"pack_dtype {hf['pack_dtype']!r} is not supported, only 'int32'"
            )
        # Patterns with "-:" name layers that are not quantized, which the file shows.
        dynamic = hf.get("dynamic") or {}
        if not isinstance(dynamic, dict):
            raise TypeError(f"dynamic must be an object, got {dynamic!r}")
        other = [key for key in dynamic if not key.startswith("-:")]
        if other:
            raise NotImplementedError(
                f"dynamic settings for {', '.join(other)} are not supported: all "
                "layers have to be quantized alike"
            )
        missing = [name for name in ("bits", "group_size") if name not in hf]
        if missing:
            raise ValueError(f"the quantization config lacks {', '.join(missing)}")
        known = ("bits", "group_size", "sym", "desc_act")
        return cls(
            **{name: hf[name] for name in known if name in hf},
            checkpoint_format=layout,
        )

    def to_hf(self) -> dict[str, Any]:
        """What goes into config.json as `quantization_config`."""
        return {"quant_method": "gptq", **asdict(self), "true_sequential": True}


def read_quantization(path: Path) -> GPTQConfig | None:
    """How the checkpoint in `path` is quantized; None if it isn't.

    Raises:
        NotImplementedError: by a method, or in a way, that isn't supported.
    """
    found = quantization_config(path)
    if found is None:
        return None
    try:
        return GPTQConfig.from_hf(found)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from None


# ----- levels


@dataclass
class Quantized:
    """A weight [N, K] in levels: w = (level - zero) * scale, zero and scale per group.

    levels [N, K] uint8; scales [N, G] float16; zeros [N, G] uint8; g_idx [K] int32, the
    group of each input.
    """

    levels: Tensor
    scales: Tensor
    zeros: Tensor
    g_idx: Tensor

    def dequantize(self) -> Tensor:
        """The weight [N, K] that the levels stand for, in float32."""
        group = self.g_idx.long()
        zeros, scales = self.zeros.float(), self.scales.float()  # [N, G]
        return (self.levels.float() - zeros[:, group]) * scales[:, group]


def make_grid(weight: Tensor, sym: bool) -> tuple[Tensor, Tensor]:
    """The levels for the rows of `weight` [N, n]: scale [N] and zero point [N].

    Asymmetric, the 16 levels go from a row's least weight to its greatest (and 0 is one
    of them); symmetric, they lie around 0. The scale is one that float16 can hold: with
    any other the errors that GPTQ makes up for would not be those of the stored weight.
    """
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    if sym:
        high = torch.maximum(-low, high)
        low = -high
    scale = ((high - low) / (LEVELS - 1)).half().float()
    scale = torch.where(scale == 0, 1.0, scale)  # all weights are 0, or as good as
    if sym:
        return scale, torch.full_like(scale, LEVELS // 2)
    return scale, (-low / scale).round().clamp(0, LEVELS - 1)


def to_levels(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The nearest level of each weight, as floats 0 to 15."""
    return ((weight / scale).round() + zero).clamp(0, LEVELS - 1)


def check_sizes(N: int, K: int, config: GPTQConfig) -> None:
    """Raise ValueError if a layer [N, K] can't be cut into groups and packed."""
    size = config.size(K)
    if K % size:
        fits = [str(n) for n in (32, 64, 128) if K % n == 0] + ["-1"]
        raise ValueError(
            f"group_size {size} does not divide the layer's {K} inputs; "
            f"{', '.join(fits)} would"
        )
    if K % _PER_INT32 or N % _PER_INT32:
        raise ValueError(
            f"a layer of {K} inputs and {N} outputs can't be packed: both must be "
            f"multiples of {_PER_INT32}"
        )


def round_to_nearest(weight: Tensor, config: GPTQConfig) -> Quantized:
    """Plain rounding of a weight [N, K]: each to the nearest level of its group.

    The weight, of any float dtype and strides, stays. ValueError: sizes that don't fit.
    """
    N, K = weight.shape
    check_sizes(N, K, config)
    rows = weight.float().reshape(-1, config.size(K))  # [N * G, size]
    scale, zero = make_grid(rows, config.sym)
    levels = to_levels(rows, scale[:, None], zero[:, None])
    return Quantized(
        levels.view(N, K).to(torch.uint8),
        scale.view(N, -1).half(),
        zero.view(N, -1).to(torch.uint8),
        torch.arange(K, device=weight.device).int() // config.size(K),
    )


# ----- the algorithm


class Hessian:
    """Which inputs of a layer matter: the mean of x x^T over all tokens, [K, K].

    A change of the weights by D changes the outputs, squared, by trace(D H D^T): H is
    the Hessian of that error, but for a factor of 2 which changes nothing here.
    """

    def __init__(self, K: int, device: str | torch.device = "cpu"):
        self._sum = torch.zeros(K, K, device=device)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Count the inputs x [T, K]."""
        x = x.float()
        self._sum += x.T @ x
        self.tokens += len(x)

    @property
    def mean(self) -> Tensor:
        """[K, K] float32.

        Raises:
            ValueError: nothing was counted, or inputs that aren't finite.
        """
        if not self.tokens:
            raise ValueError("there is no Hessian without calibration tokens")
        if not bool(self._sum.isfinite().all()):
            raise ValueError("inputs of the calibration are infinite or NaN")
        return self._sum / self.tokens


def inverse_factor(hessian: Tensor, damp_percent: float) -> Tensor:
    """U, upper triangular, with U^T U = (H + damping)^-1, [K, K] float32.

    Row k of U says how much the columns behind k have to change for an error in column
    k, when those before it are fixed already. An input that was always 0 says nothing:
    it counts in no mean, and its column is cut off from the others: plain rounding.

    Raises:
        ValueError: if the damped Hessian is not positive definite; says damp_percent.
    """
    hessian = hessian.float().clone()
    diagonal = hessian.diagonal()  # a view
    dead = diagonal == 0
    damping = damp_percent * diagonal.sum() / max(1, int((~dead).sum()))
    diagonal += damping
    diagonal[dead] = 1
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if not failed:
        inverse = torch.cholesky_inverse(lower)
        upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    if failed or not bool(upper.isfinite().all()):
        raise ValueError(
            f"the Hessian of {len(hessian)} inputs is not positive definite with "
            f"damp_percent {damp_percent}: calibrate with more text, or raise "
            "damp_percent"
        )
    return upper


def gptq(weight: Tensor, hessian: Tensor, config: GPTQConfig) -> Quantized:
    """Quantize a weight [N, K] so that its outputs change least (algorithm 1).

    Args:
        weight: of a linear layer, in any float dtype.
        hessian: [K, K], see `Hessian.mean`.
        config: the groups, the grid, the order and the damping.

    Raises:
        ValueError: sizes that don't fit, a Hessian that isn't positive definite, or
            weights that aren't finite.
    """
    N, K = weight.shape
    check_sizes(N, K, config)
    if not bool(weight.isfinite().all()):
        raise ValueError(f"weights [{N}, {K}] are infinite or NaN")
    order = torch.arange(K, device=weight.device)
    if config.desc_act:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    upper = inverse_factor(hessian[order][:, order], config.damp_percent)
    levels, scales, zeros = _quantize_columns(weight.float()[:, order], upper, config)
    groups = torch.arange(K, device=weight.device).int() // config.size(K)
    back = order.argsort()
    return Quantized(
        levels[:, back].to(torch.uint8),
        scales.half(),
        zeros.to(torch.uint8),
        groups[back],
    )


def _quantize_columns(
    weight: Tensor, upper: Tensor, config: GPTQConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Levels [N, K], scales [N, G] and zeros [N, G] of a weight, which is changed."""
    N, K = weight.shape
    size = config.size(K)
    # A group's grid is read from its columns, so they must be up to date: it begins
    # where a block begins, or lies within one.
    block = size if size >= _LAZY else size * (_LAZY // size)
    levels, scales, zeros = torch.empty_like(weight), [], []
    for start in range(0, K, block):
        end = min(start + block, K)
        errors = weight.new_empty(N, end - start)
        for k in range(start, end):
            if k % size == 0:
                scale, zero = make_grid(weight[:, k : k + size], config.sym)
                scales.append(scale)
                zeros.append(zero)
            column = weight[:, k]
            levels[:, k] = to_levels(column, scale, zero)
            error = (column - (levels[:, k] - zero) * scale) / upper[k, k]
            weight[:, k:end] -= torch.outer(error, upper[k, k:end])
            errors[:, k - start] = error
        weight[:, end:] -= errors @ upper[start:end, end:]
    return levels, torch.stack(scales, 1), torch.stack(zeros, 1)


def output_error(weight: Tensor, quantized: Quantized, hessian: Tensor) -> float:
    """Share of the outputs' squares that is wrong: |x (W - Q)^T|^2 / |x W^T|^2."""
    weight = weight.float()
    wrong = weight - quantized.dequantize()
    whole = ((weight @ hessian) * weight).sum()
    return (((wrong @ hessian) * wrong).sum() / whole.clamp(min=1e-30)).item()


# ----- the layout of the Hub


def pack_levels(levels: Tensor) -> Tensor:
    """Eight rows of levels [8 r, n] to one of int32 [r, n], the first lowest."""
    packed = torch.zeros(
        len(levels) // _PER_INT32,
        levels.shape[1],
        dtype=torch.int32,
        device=levels.device,
    )
    for place in range(_PER_INT32):
        packed |= levels[place::_PER_INT32].int() << (4 * place)
    return packed


def unpack_levels(packed: Tensor) -> Tensor:
    """The inverse: int32 [r, n] to levels [8 r, n] uint8."""
    places = 4 * torch.arange(_PER_INT32, device=packed.device)[:, None]
    # The shift drags the sign along; the mask takes it away.
    return ((packed[:, None] >> places) & 15).flatten(0, 1).to(torch.uint8)


def pack(quantized: Quantized, config: GPTQConfig) -> dict[str, Tensor]:
    """The four tensors that a checkpoint stores of a layer.

    qweight int32 [K / 8, N], qzeros int32 [G, N / 8], scales float16 [G, N], g_idx
    int32 [K].

    Raises:
        ValueError: a zero point that the format can't store.
    """
    zeros = quantized.zeros.int() - config.zero_offset
    if zeros.numel() and int(zeros.min()) < 0:
        raise ValueError(
            "checkpoint_format 'gptq' can't store a zero point of 0; 'gptq_v2' can"
        )
    return {
        "qweight": pack_levels(quantized.levels.T),
        "qzeros": pack_levels(zeros).T.contiguous(),
        "scales": quantized.scales.T.contiguous(),
        "g_idx": quantized.g_idx.clone(),
    }


def unpack(tensors: dict[str, Tensor], config: GPTQConfig) -> Quantized:
    """The inverse of `pack`."""
    zeros = unpack_levels(tensors["qzeros"].T.contiguous())  # [N, G]
    return Quantized(
        unpack_levels(tensors["qweight"]).T.contiguous(),
        tensors["scales"].T.contiguous(),
        # In "gptq" a stored 15 can only be a zero point of 0: adding 1 goes round.
        (zeros + config.zero_offset) % LEVELS,
        tensors["g_idx"],
    )


class QuantizedLinear(nn.Module):
    """x W^T + b with W in four bits, as a checkpoint stores it.

    The plain form: it makes W anew for every call. `fast.prepare` puts a machine's own
    in its place.

    Args:
        K, N: inputs and outputs.
        bias: whether there is one.
        config: of the checkpoint.
        dtype: of the activations that will come, and of the bias.
    """

    def __init__(
        self,
        K: int,
        N: int,
        bias: bool,
        config: GPTQConfig,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        check_sizes(N, K, config)
        self.in_features, self.out_features = K, N
        self.config, self.dtype = config, dtype
        G = K // config.size(K)
        shapes = {
            "qweight": ((K // _PER_INT32, N), torch.int32),
            "qzeros": ((G, N // _PER_INT32), torch.int32),
            "scales": ((G, N), torch.float16),
            "g_idx": ((K,), torch.int32),
        }
        for name, (shape, kind) in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=kind))
        zeros = torch.zeros(N, dtype=dtype)
        self.bias = nn.Parameter(zeros, False) if bias else None

    @property
    def quantized(self) -> Quantized:
        """The levels, unpacked."""
        return unpack(dict(self.named_buffers()), self.config)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, K] to [T, N]."""
        return F.linear(x, self.quantized.dequantize().to(x.dtype), self.bias)


# ----- whole models


def load(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Qwen3:
    """Load a GPTQ checkpoint, without gradients; its layers are `QuantizedLinear`.

    Args:
        path: see `model_loader.resolve_checkpoint`.
        dtype: of activations, and of the weights that aren't quantized; None is the
            checkpoint's own.
        device: None picks CUDA when there is one.

    Raises:
        ValueError: it isn't quantized, or as `load_weights` raises.
        NotImplementedError: see `read_quantization`.
    """
    path = resolve_checkpoint(path)
    config = read_quantization(path)
    if config is None:
        raise ValueError(f"{path} is not quantized: its config.json names no method")
    hf_config = read_config(path)
    dtype, device = dtype or checkpoint_dtype(hf_config), get_device(device)
    checkpoint, shape = _Checkpoint(path), Qwen3Config.from_hf(hf_config)
    check_layers(path, shape.num_layers)
    with torch.device("meta"):
        model = Qwen3(shape).to(dtype)
        names = _quantize_layers(model, checkpoint, config)
    checkpoint.check(model)
    model.to_empty(device=device)
    if model.config.tie_word_embeddings:  # to_empty gave each its own storage
        model.lm_head.weight = model.model.embed_tokens.weight
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in checkpoint.home:
                tensor.copy_(checkpoint.read(name))
    for name in names:
        layer = model.get_submodule(name)
        G = len(layer.scales)
        if not bool(((layer.g_idx >= 0) & (layer.g_idx < G)).all()):
            raise ValueError(f"{path}: {name}.g_idx names groups beyond 0 to {G - 1}")
    return model.requires_grad_(False).eval()


def _quantize_layers(
    model: Qwen3, checkpoint: "_Checkpoint", config: GPTQConfig
) -> list[str]:
    """Put quantized layers where the checkpoint has them, and return their names."""
    names, home = [], checkpoint.home
    for name, linear in list(model.named_modules()):
        if not isinstance(linear, nn.Linear) or f"{name}.qweight" not in home:
            continue
        K, N = linear.in_features, linear.out_features
        # Some files have a bias of zeros where the architecture has none.
        bias = linear.bias is not None or f"{name}.bias" in home
        try:
            layer = QuantizedLinear(K, N, bias, config, linear.weight.dtype)
        except ValueError as error:
            raise ValueError(f"{checkpoint.path}: {name}: {error}") from None
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
        names.append(name)
    return names


class _Checkpoint:
    """The tensors of a checkpoint, read one at a time."""

    def __init__(self, path: Path):
        self.path, self.stored = path, stored_tensors(weight_files(path))
        self.home = {name: file for name, _, file in self.stored}

    def read(self, name: str) -> Tensor:
        with safe_open(self.home[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    def check(self, model: nn.Module) -> None:
        """Raise one ValueError with all tensors that don't fit `model`, or lack."""
        wanted = model.state_dict(keep_vars=True)
        packed = {n for n, tensor in wanted.items() if not tensor.is_floating_point()}
        floats = {n: tensor for n, tensor in wanted.items() if n not in packed}
        rest = [each for each in self.stored if each[0] not in packed]
        problems = [p for p in misfits(floats, rest) if not p.startswith("no memory")]
        found = {name: tensor for name, tensor, _ in self.stored}
        for name in sorted(packed):
            there, want = found.get(name), wanted[name]
            if there is None:
                problems.append(f"missing: {name}")
            elif (there.shape, there.dtype) != (want.shape, want.dtype):
                problems.append(
                    f"misshapen: {name} is {list(there.shape)} {there.dtype}, not "
                    f"{list(want.shape)} {want.dtype}"
                )
        for name, owner in tied_names(wanted).items():
            if name in found and owner in found:
                if not torch.equal(self.read(name), self.read(owner)):
                    problems.append(
                        f"not tied: {name} differs from {owner}, but the config ties "
                        "them"
                    )
        if problems:
            raise ValueError(
                f"the weights in {self.path} don't fit the model:\n  "
                + "\n  ".join(sorted(problems))
            )


@dataclass
class Report:
    """What quantizing has measured.

    layers: name to `output_error` of GPTQ and of rounding, on the calibration. bytes:
    of the linear layers' weights, as they were and as they are. perplexity: on texts
    that were kept back, of the model as it was ("full"), by "gptq" and by "rounding".
    divergence: on the same, how far the next token's probabilities are from those of
    the full model (Kullback-Leibler, in nats a token). It is the steadier figure: a
    text's own chances cancel.
    """

    tokens: int
    layers: dict[str, tuple[float, float]] = field(default_factory=dict)
    bytes: tuple[int, int] = (0, 0)
    perplexity: dict[str, float] = field(default_factory=dict)
    divergence: dict[str, float] = field(default_factory=dict)

    def table(self) -> str:
        """The figures in Markdown."""
        before, after = self.bytes
        ours, plain = (
            sum(errors[i] for errors in self.layers.values()) / len(self.layers)
            for i in (0, 1)
        )
        rows = [
            ("calibration", f"{self.tokens:,} tokens"),
            ("linear layers", f"{before:,} bytes before, {after:,} after"),
            ("share of the outputs' squares that is wrong, mean of the layers",
             f"{ours:.2%}; {plain:.2%} by plain rounding"),
        ]  # fmt: skip
        for name, value in self.perplexity.items():
            kl = f", divergence {self.divergence[name]:.5f}" * (name != "full")
            rows.append((f"perplexity on texts kept back, {name}", f"{value:.4f}{kl}"))
        return "\n".join(["| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def quantize(
    model: str | Path | None,
    out: str | Path,
    texts: list[str],
    config: GPTQConfig | None = None,
    *,
    max_tokens: int = 512,
    device: str | torch.device | None = None,
) -> Report:
    """Quantize a checkpoint's linear layers and write a whole checkpoint to `out`.

    One layer at a time is in memory, beside the embedding and the calibration's hidden
    states. Embedding, head and norms stay as they are. Each layer sees the inputs that
    the quantized layers before it make. The same arguments give the same files.

    Args:
        model: directory or Hub name; None is the embedded model.
        out: directory to make. It must not exist, or be empty.
        texts: to calibrate on; one in eight is kept back, to measure on.
        config: see `GPTQConfig`.
        max_tokens: longer texts are cut into pieces of so many.
        device: to compute on; None picks CUDA when there is one.

    Raises:
        FileExistsError: there is something in `out`.
        ValueError: a checkpoint that is quantized already, too little text, a layer
            that can't be quantized, by its name. Nothing is left in `out`.
    """
    config = GPTQConfig() if config is None else config
    path = resolve_checkpoint(EMBEDDED_MODEL if model is None else model)
    if read_quantization(path) is not None:
        raise ValueError(f"{path} is quantized already")
    try:
        out = Path(out).expanduser()
    except RuntimeError as error:  # ~ of a user that this machine doesn't have
        raise ValueError(f"out {str(out)!r}: {error}") from error
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already; give a new directory")
    tokenizer = ModelLoader(ModelConfig(str(path))).load_tokenizer()
    pieces = _pieces(tokenizer, texts, max_tokens)
    walk = _Walk(path, config, get_device(device))
    out.parent.mkdir(parents=True, exist_ok=True)
    # In a directory beside it, renamed when all is there: half a checkpoint is none.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
        made = Path(made) / "made"
        made.mkdir()
        writer = _Writer(made)
        report = walk.run(pieces, writer)
        writer.close()
        _copy_rest(path, made, config, report)
        if out.exists():
            out.rmdir()
        made.rename(out)
    return report


def _pieces(tokenizer: Any, texts: list[str], max_tokens: int) -> list[Tensor]:
    """Token ids [T] of the texts, cut after `max_tokens`."""
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings, got one string")
    pieces = []
    for text in texts:
        ids = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
        pieces += [piece for piece in ids.split(max_tokens) if len(piece) > 1]
    if len(pieces) < _KEPT_BACK:
        raise ValueError(
            f"the calibration texts make {len(pieces)} pieces of 2 to {max_tokens} "
            f"tokens, at least {_KEPT_BACK} are needed"
        )
    return pieces


def _packed(pieces: list[Tensor]) -> list[list[Tensor]]:
    """The pieces in turn, as many together as a pass takes."""
    packs, room = [], 0
    for piece in pieces:
        if len(piece) > room:
            packs.append([])
            room = _PASS_TOKENS
        packs[-1].append(piece)
        room -= len(piece)
    return packs


class _Texts:
    """The attention context of whole texts, packed along T."""

    def __init__(self, lengths: list[int], device: torch.device):
        self.lengths = lengths
        parts = [torch.arange(length, device=device) for length in lengths]
        self.positions = torch.cat(parts)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = (x.split(self.lengths) for x in (q, k, v, self.positions))
        return torch.cat([attention(*each) for each in zip(*parts, strict=True)])


class _Writer:
    """Tensors to safetensors files, a new one where the last is full."""

    def __init__(self, folder: Path):
        self.folder, self.tensors, self.size = folder, {}, 0
        self.shards: list[list[str]] = []
        self.total = 0

    def add(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if self.size and self.size + tensor.nbytes > _SHARD_BYTES:
                self._flush()
            self.tensors[name] = tensor.cpu().contiguous()
            self.size += tensor.nbytes
            self.total += tensor.nbytes

    def _flush(self) -> None:
        file = self.folder / f"shard-{len(self.shards)}"
        save_file(self.tensors, file, metadata={"format": "pt"})
        self.shards.append(list(self.tensors))
        self.tensors, self.size = {}, 0

    def close(self) -> None:
        """Write what is left, and the index if there are several files."""
        self._flush()
        count, index = len(self.shards), {}
        for i, names in enumerate(self.shards):
            name = f"model-{i + 1:05}-of-{count:05}.safetensors"
            name = name if count > 1 else "model.safetensors"
            (self.folder / f"shard-{i}").rename(self.folder / name)
            index |= dict.fromkeys(names, name)
        if count > 1:
            whole = {"metadata": {"total_size": self.total}, "weight_map": index}
            (self.folder / "model.safetensors.index.json").write_text(
                json.dumps(whole, indent=2), encoding="utf-8"
            )


def _copy_rest(path: Path, made: Path, config: GPTQConfig, report: Report) -> None:
    """Tokenizer, template and configs of the checkpoint, and a card."""
    for file in sorted(path.iterdir()):
        weights = file.suffix == ".safetensors" or file.name.endswith(".index.json")
        if file.is_file() and not weights and file.name != "README.md":
            if file.suffix in (".json", ".jinja", ".txt", ".model"):
                shutil.copyfile(file, made / file.name)
    hf_config = read_config(path) | {"quantization_config": config.to_hf()}
    (made / "config.json").write_text(
        json.dumps(hf_config, indent=2) + "\n", encoding="utf-8"
    )
    older = json.dumps(config.to_hf(), indent=2) + "\n"
    (made / "quantize_config.json").write_text(older, encoding="utf-8")
    group = (
        "whole rows" if config.group_size == -1 else f"groups of {config.group_size}"
    )
    kind = "symmetric" if config.sym else "asymmetric"
    order = ", act order" if config.desc_act else ""
    (made / "README.md").write_text(
        f"# {path.name}, GPTQ in {config.bits} bits\n\nLinear layers by GPTQ, {group}, "
        f"{kind}{order}; embedding, head and norms as they were. Made by "
        f"`python -m folovllm_lite quantize`.\n\n{report.table()}\n",
        encoding="utf-8",
    )


class _Walk:
    """A pass through a checkpoint, one layer at a time in memory."""

    def __init__(self, path: Path, config: GPTQConfig, device: torch.device):
        self.config, self.device = config, device
        shape = Qwen3Config.from_hf(read_config(path))
        check_layers(path, shape.num_layers)
        with torch.device("meta"):
            self.model = Qwen3(shape).float().eval()
        self.model.requires_grad_(False)
        self.checkpoint = _Checkpoint(path)
        self.checkpoint.check(self.model)
        for name, layer in self.model.model.layers[0].named_modules():
            if isinstance(layer, nn.Linear):
                try:
                    check_sizes(layer.out_features, layer.in_features, config)
                except ValueError as error:
                    raise ValueError(f"{path}: {name}: {error}") from None

    def _fill(self, module: nn.Module, prefix: str) -> None:
        """Give a module of the model memory, and its weights from the checkpoint."""
        module.to_empty(device=self.device)
        for name, parameter in module.named_parameters():
            parameter.copy_(self.checkpoint.read(prefix + name))

    @torch.no_grad()
    def run(self, pieces: list[Tensor], writer: _Writer) -> Report:
        """Quantize layer by layer; the last pieces are measured on."""
        kept = len(pieces) // _KEPT_BACK
        report = Report(sum(len(piece) for piece in pieces[kept:]))
        backbone = self.model.model
        self.layers, backbone.layers = list(backbone.layers), nn.ModuleList()
        self._fill(backbone.embed_tokens, "model.embed_tokens.")
        self._fill(backbone.norm, "model.norm.")
        rest = {f"model.{n}": None for n, _ in backbone.named_parameters()}
        if "lm_head.weight" in self.checkpoint.home:
            self._fill(self.model.lm_head, "lm_head.")
            rest["lm_head.weight"] = None
        else:
            self.model.lm_head.weight = backbone.embed_tokens.weight
        writer.add({name: self.checkpoint.read(name) for name in rest})

        # What enters the first layer: a layer that only takes note sees it.
        packs = [_packed(pieces[:kept]), _packed(pieces[kept:])]
        note = _Note()
        backbone.layers = nn.ModuleList([note])
        for pack_ in packs[0] + packs[1]:
            ctx = _Texts([len(piece) for piece in pack_], self.device)
            self.model(torch.cat(pack_).to(self.device), ctx)
        first = len(packs[0])
        held = {
            name: [list(args) for args in note.calls[:first]]
            for name in ("full", "gptq", "rounding")
        }
        calls = [list(args) for args in note.calls[first:]]
        total = len(self.layers) * sum(len(stage) for stage in _STAGES)
        with tqdm(total=total, desc="quantizing", unit="layer") as bar:
            for index, layer in enumerate(self.layers):
                prefix = f"model.layers.{index}."
                self._fill(layer, prefix)
                self._quantize_layer(layer, prefix, calls, held, writer, report, bar)
                layer.to("meta")
        self._measure(held, packs[0], report)
        return report

    def _quantize_layer(
        self,
        layer: nn.Module,
        prefix: str,
        calls: list[list],
        held: dict[str, list[list]],
        writer: _Writer,
        report: Report,
        bar: Any,
    ) -> None:
        """Quantize one transformer block and send all inputs through it."""
        _advance(layer, held["full"])
        rounded = {}
        for stage in _STAGES:
            linears = [layer.get_submodule(name) for name in stage]
            hessian = _observe(layer, linears[0], calls)
            for name, linear in zip(stage, linears, strict=True):
                try:
                    done = gptq(linear.weight, hessian, self.config)
                except ValueError as error:
                    raise ValueError(f"{prefix}{name}: {error}") from None
                plain = round_to_nearest(linear.weight, self.config)
                rounded[name] = plain.dequantize()
                report.layers[prefix + name] = (
                    output_error(linear.weight, done, hessian),
                    output_error(linear.weight, plain, hessian),
                )
                tensors = pack(done, self.config)
                size = sum(tensor.nbytes for tensor in tensors.values())
                stored = self.checkpoint.read(f"{prefix}{name}.weight").nbytes
                before, after = report.bytes
                report.bytes = before + stored, after + size
                writer.add({f"{prefix}{name}.{k}": v for k, v in tensors.items()})
                linear.weight.copy_(done.dequantize())
                bar.update()
        _advance(layer, calls)
        _advance(layer, held["gptq"])
        for name, weight in rounded.items():
            layer.get_submodule(name).weight.copy_(weight)
        _advance(layer, held["rounding"])
        others = {name for name, _ in layer.named_parameters()}
        others -= {f"{name}.weight" for stage in _STAGES for name in stage}
        writer.add(
            {prefix + n: self.checkpoint.read(prefix + n) for n in sorted(others)}
        )

    def _measure(
        self, held: dict[str, list[list]], packs: list[list[Tensor]], report: Report
    ) -> None:
        """From the last layer's outputs: loss, and divergence from the full model."""
        nats, apart, tokens = dict.fromkeys(held, 0.0), dict.fromkeys(held, 0.0), 0
        for index, pieces in enumerate(packs):
            lengths = [len(piece) for piece in pieces]
            hidden = [self.model.model.norm(rows[index][0]) for rows in held.values()]
            parts = [x.split(lengths) for x in hidden]
            for ids, *each in zip(pieces, *parts, strict=True):
                target, full = ids[1:, None].to(self.device), None
                for name, x in zip(held, each, strict=True):
                    found = self.model.logits(x[:-1]).log_softmax(-1)
                    full = found if full is None else full
                    nats[name] -= found.gather(1, target).sum().item()
                    apart[name] += (full.exp() * (full - found)).sum().item()
                tokens += len(target)
        for name in held:
            report.perplexity[name] = math.exp(nats[name] / tokens)
            report.divergence[name] = apart[name] / tokens


class _Note(nn.Module):
    """A layer that keeps what it is called with and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        self.calls.append((x, *args))
        return x


def _advance(layer: nn.Module, calls: list[list]) -> None:
    """Send hidden states through a layer; what comes out replaces them."""
    for args in calls:
        args[0] = layer(*args)


def _observe(layer: nn.Module, linear: nn.Linear, calls: list[list]) -> Tensor:
    """The Hessian of what reaches `linear` while `layer` is called."""
    hessian = Hessian(linear.in_features, linear.weight.device)
    hook = linear.register_forward_pre_hook(lambda _, args: hessian.add(args[0]))
    try:
        for args in calls:
            layer(*args)
    finally:
        hook.remove()
    return hessian.mean
