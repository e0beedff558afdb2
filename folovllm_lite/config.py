"""What an engine is told once, before it starts. Bad values fail here, by name."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

_DTYPES = {
    "auto": None,
    "half": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "float32": torch.float32,
}


def _integer(name: str, value: Any, least: int, optional: bool = False) -> None:
    """Raise unless `value` is an int in [least, 2**63) (or None, where optional)."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        wanted = {0: "non-negative", 1: "positive"}[least]
        raise ValueError(f"{name} must be {wanted}, got {value}")
    if value >= 2**63:  # a tensor's ints have 64 bits, one for the sign
        raise ValueError(f"{name} must be below 2**63, got {value}")


def _number(name: str, value: Any) -> None:
    """Raise unless `value` is a finite int or float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    # Not math.isfinite, which raises OverflowError for an int such as 10**400.
    if not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} must be finite, got {value}")


def _flag(name: str, value: Any) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


@dataclass
class ModelConfig:
    """Which model, and how to hold it.

    Args:
        model: a checkpoint's directory, or its name on the Hugging Face Hub.
        tokenizer: the same for the tokenizer; None is the model's own.
        tokenizer_mode: "auto" (the fast one where there is one) or "slow".
        trust_remote_code: run Python code that comes with a checkpoint. Off by default.
        dtype: "auto" (the checkpoint's own), "half"/"float16", "bfloat16",
            "float"/"float32", or a torch.dtype.
        max_model_len: longest sequence in tokens; None is the checkpoint's own limit.
        seed: of everything random that has no seed of its own.

    Raises:
        TypeError, ValueError: naming the field and its value.
    """

    model: str
    tokenizer: str | None = None
    tokenizer_mode: str = "auto"
    trust_remote_code: bool = False
    dtype: str | torch.dtype = "auto"
    max_model_len: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise TypeError(f"model must be a path or a name, got {self.model!r}")
        if self.tokenizer is None:
            self.tokenizer = self.model
        if not isinstance(self.tokenizer, str) or not self.tokenizer:
            raise TypeError(
                f"tokenizer must be a path or a name, got {self.tokenizer!r}"
            )
        if self.tokenizer_mode not in ("auto", "slow"):
            raise ValueError(
                f"tokenizer_mode must be 'auto' or 'slow', got {self.tokenizer_mode!r}"
            )
        _flag("trust_remote_code", self.trust_remote_code)
        _integer("max_model_len", self.max_model_len, 1, optional=True)
        _integer("seed", self.seed, 0)
        known = [*_DTYPES, *filter(None, _DTYPES.values())]
        if self.dtype not in known:
            raise ValueError(
                f"dtype must be one of {', '.join(_DTYPES)} or the torch.dtype of "
                f"that name, got {self.dtype!r}"
            )

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """`dtype` as PyTorch has it; None for "auto"."""
        return _DTYPES[self.dtype] if isinstance(self.dtype, str) else self.dtype


@dataclass
class CacheConfig:
    """How keys and values are kept.

    Args:
        block_size: tokens a block of the paged KV cache holds.
        gpu_memory_utilization: share of the GPU's memory that the engine may fill, in
            (0, 1].
        swap_space: CPU memory for the blocks of preempted sequences, in GiB.
        enable_prefix_caching: keep blocks of finished prompts for prompts that begin
            alike.
        num_gpu_blocks_override: blocks of the KV cache, on a CPU too; None sizes it by
            the memory there is.

    Raises:
        TypeError, ValueError: naming the field and its value.
    """

    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    swap_space: float = 4.0
    enable_prefix_caching: bool = False
    num_gpu_blocks_override: int | None = None

    def __post_init__(self) -> None:
        _integer("block_size", self.block_size, 1)
        _number("gpu_memory_utilization", self.gpu_memory_utilization)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                "gpu_memory_utilization must be in (0, 1], "
                f"got {self.gpu_memory_utilization}"
            )
        _number("swap_space", self.swap_space)
        if not 0 <= self.swap_space < 2**33:  # in bytes, below 2**63
            raise ValueError(
                "swap_space must be non-negative and below 2**33 GiB, "
                f"got {self.swap_space}"
            )
        _flag("enable_prefix_caching", self.enable_prefix_caching)
        _integer(
            "num_gpu_blocks_override", self.num_gpu_blocks_override, 1, optional=True
        )


@dataclass
class SchedulerConfig:
    """How much work one step may hold.

    Args:
        max_num_batched_tokens: tokens of one step; None lets the engine decide.
        max_num_seqs: sequences of one step.
        max_model_len: longest sequence in tokens; None is the model's.
        enable_chunked_prefill: cut long prompts into pieces that fit a step.
        preemption_mode: what happens to a sequence when memory runs out: "recompute"
            it later, or "swap" it to CPU memory; None swaps where the KV cache is on a
            GPU, and recomputes elsewhere.

    Raises:
        TypeError, ValueError: naming the field and its value.
    """

    max_num_batched_tokens: int | None = None
    max_num_seqs: int = 256
    max_model_len: int | None = None
    enable_chunked_prefill: bool = False
    preemption_mode: str | None = None

    def __post_init__(self) -> None:
        _integer(
            "max_num_batched_tokens", self.max_num_batched_tokens, 1, optional=True
        )
        _integer("max_num_seqs", self.max_num_seqs, 1)
        _integer("max_model_len", self.max_model_len, 1, optional=True)
        _flag("enable_chunked_prefill", self.enable_chunked_prefill)
        if self.preemption_mode not in (None, "recompute", "swap"):
            raise ValueError(
                "preemption_mode must be 'recompute', 'swap' or None, "
                f"got {self.preemption_mode!r}"
            )


@dataclass
class EngineConfig:
    """All of it. The scheduler gets the model's `max_model_len` unless it has its own.

    The caller's `scheduler_config` is left as it was: the length goes into a copy.

    Raises:
        TypeError: a part that is no such config.
        ValueError: if the scheduler allows sequences longer than the model does.
    """

    model_config: ModelConfig
    cache_config: CacheConfig = field(default_factory=CacheConfig)
    scheduler_config: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        for name, kind in (
            ("model_config", ModelConfig),
            ("cache_config", CacheConfig),
            ("scheduler_config", SchedulerConfig),
        ):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"{name} must be a {kind.__name__}, got {getattr(self, name)!r}"
                )
        model_len = self.model_config.max_model_len
        scheduler_len = self.scheduler_config.max_model_len
        if scheduler_len is None:
            self.scheduler_config = replace(
                self.scheduler_config, max_model_len=model_len
            )
        elif model_len is not None and scheduler_len > model_len:
            raise ValueError(
                f"scheduler_config.max_model_len is {scheduler_len}, but the model's "
                f"max_model_len is {model_len}"
            )


# Options of vLLM's `LLM` that have no counterpart here, and the values by which they
# say "off", "one" or "as usual": a script may spell these out, and nothing changes.
_VLLM_OPTIONS: dict[str, tuple] = {
    "additional_config": (None, {}),
    "allowed_local_media_path": ("",),
    "allowed_media_domains": (None,),
    "async_scheduling": (False, None),
    "attention_backend": (None,),
    "attention_config": (None,),
    "calculate_kv_scales": (False,),
    "chat_template": (None,),
    "code_revision": (None,),
    "compilation_config": (None, 0),
    "config_format": ("auto", "hf"),
    "convert": ("auto", "none"),
    "cpu_offload_gb": (0, 0.0),
    "data_parallel_size": (1,),
    "disable_cascade_attn": (True, None),
    "disable_custom_all_reduce": (True, False),  # between GPUs, and there is one
    "disable_log_stats": (True,),
    "disable_sliding_window": (False,),  # there is none
    "distributed_executor_backend": (None, "uni"),
    "download_dir": (None,),
    "enable_expert_parallel": (False,),
    "enable_lora": (False, None),
    "enable_prompt_embeds": (False,),
    "enable_return_routed_experts": (False,),
    "enable_sleep_mode": (False,),
    "enforce_eager": (True,),
    "generation_config": ("auto",),
    "hf_config_path": (None,),
    "hf_overrides": (None, {}),
    "hf_token": (None,),
    "ignore_patterns": (None,),
    "kv_cache_dtype": ("auto",),
    "kv_cache_memory_bytes": (None,),
    "kv_transfer_config": (None,),
    "limit_mm_per_prompt": (None, {}),
    "load_format": ("auto", "safetensors"),
    "logits_processors": (None,),
    "logprobs_mode": ("raw_logprobs",),
    "max_logprobs": (-1,),
    "mm_processor_kwargs": (None,),
    "model_impl": ("auto",),
    "model_loader_extra_config": (None, {}),
    "override_generation_config": (None, {}),
    "pipeline_parallel_size": (1,),
    "pooler_config": (None,),
    "profiler_config": (None,),
    "quantization_config": (None,),
    "revision": (None,),
    "runner": ("auto", "generate"),
    "scheduling_policy": ("fcfs", "priority"),
    "served_model_name": (None,),
    "skip_tokenizer_init": (False,),
    "speculative_config": (None,),
    "structured_outputs_config": (None,),
    "tensor_parallel_size": (1,),
    "tokenizer_revision": (None,),
}


def check_vllm_options(
    options: Mapping[str, Any], known: Mapping[str, tuple] = _VLLM_OPTIONS
) -> None:
    """Let options pass that ask vLLM for nothing which isn't here; refuse the others.

    Args:
        options: those that an engine was given and doesn't know, by name.
        known: the values that pass, by name; those of `LLM`, unless told otherwise.

    Raises:
        NotImplementedError: an option of vLLM's that asks for something.
        TypeError: a name that isn't known at all.
    """
    for name, value in options.items():
        if name not in known:
            raise TypeError(f"there is no option {name!r}")
        off = known[name]
        # With their types: True == 1, but tensor_parallel_size=True is a slip.
        if (type(value), value) not in [(type(x), x) for x in off]:
            raise NotImplementedError(
                f"{name}={value!r} is not supported: leave it out, or say "
                f"{' or '.join(map(repr, off))}"
            )
