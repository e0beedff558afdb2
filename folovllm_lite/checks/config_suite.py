"""What has to be true of the configs (notebook 01)."""

import math
from types import SimpleNamespace
from typing import Any

import torch

from folovllm_lite import config as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail

_SUITE = Suite(package)


def config(pieces: Any = None, /, **named: Any) -> None:
    """Judge the four configs, or some of them.

    `checks.config(CacheConfig=Mine)` judges one class, `checks.config(module)` all of a
    module. Raises CheckFailed at the end if a property doesn't hold.
    """
    _SUITE.run(pieces, **named)


@_SUITE.property(
    "ModelConfig",
    hint="give every field its default in the class body; None can only be replaced in "
    "__post_init__",
)
def _model_defaults(p: SimpleNamespace) -> None:
    """A ModelConfig needs only a model, and takes the tokenizer from it."""
    made = p.ModelConfig("qwen")
    expect("ModelConfig('qwen').tokenizer", made.tokenizer, "qwen")
    expect("ModelConfig('qwen').max_model_len", made.max_model_len, None)
    expect("ModelConfig('qwen').trust_remote_code", made.trust_remote_code, False)
    other = p.ModelConfig("qwen", tokenizer="other")
    expect("ModelConfig('qwen', tokenizer='other').tokenizer", other.tokenizer, "other")


@_SUITE.property(
    "ModelConfig", hint="a dict from the name to the torch.dtype; 'auto' maps to None"
)
def _dtypes(p: SimpleNamespace) -> None:
    """torch_dtype resolves every name of a dtype, and is None for "auto"."""
    wanted = {
        "auto": None,
        "half": torch.float16,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "float": torch.float32,
        "float32": torch.float32,
    }
    for name, dtype in wanted.items():
        got = p.ModelConfig("qwen", dtype=name).torch_dtype
        expect(f"ModelConfig('qwen', dtype={name!r}).torch_dtype", got, dtype)


@_SUITE.property(
    "ModelConfig", hint="look the name up when the config is made, not when it is used"
)
def _bad_dtypes(p: SimpleNamespace) -> None:
    """An unknown dtype is a ValueError at once, and the message names it."""
    for name in ("float12", "", "Float32"):
        expect_error(
            f"ModelConfig('qwen', dtype={name!r})",
            lambda name=name: p.ModelConfig("qwen", dtype=name),
            ValueError,
            repr(name),
        )


@_SUITE.property(
    "ModelConfig", hint="0 is not None: test with `is not None`, then the range"
)
def _model_lengths(p: SimpleNamespace) -> None:
    """max_model_len is None or at least 1."""
    for value in (0, -1):
        expect_error(
            f"ModelConfig('qwen', max_model_len={value})",
            lambda value=value: p.ModelConfig("qwen", max_model_len=value),
            ValueError,
            str(value),
        )
    expect("max_model_len=1", p.ModelConfig("qwen", max_model_len=1).max_model_len, 1)


@_SUITE.property(
    "CacheConfig", hint="the smallest block that can hold anything holds one token"
)
def _block_sizes(p: SimpleNamespace) -> None:
    """block_size must be positive; 16 by default."""
    expect("CacheConfig().block_size", p.CacheConfig().block_size, 16)
    expect("CacheConfig(block_size=1)", p.CacheConfig(block_size=1).block_size, 1)
    for value in (0, -16):
        expect_error(
            f"CacheConfig(block_size={value})",
            lambda value=value: p.CacheConfig(block_size=value),
            ValueError,
            "block_size must be positive",
            str(value),
        )


@_SUITE.property(
    "CacheConfig", hint="(0, 1]: the round bracket leaves 0 out, the square one 1 in"
)
def _memory_shares(p: SimpleNamespace) -> None:
    """gpu_memory_utilization lies in (0, 1]."""
    for value in (1.0, 0.5, 1e-6):
        got = p.CacheConfig(gpu_memory_utilization=value).gpu_memory_utilization
        expect(f"CacheConfig(gpu_memory_utilization={value})", got, value)
    for value in (0.0, -0.1, 1.01, 90.0):
        expect_error(
            f"CacheConfig(gpu_memory_utilization={value})",
            lambda value=value: p.CacheConfig(gpu_memory_utilization=value),
            ValueError,
            "gpu_memory_utilization must be in (0, 1]",
            str(value),
        )


@_SUITE.property(
    "CacheConfig",
    hint="every comparison with NaN is False: write the test so that False refuses",
)
def _nan(p: SimpleNamespace) -> None:
    """NaN is no share of the memory and no amount of swap space."""
    for name in ("gpu_memory_utilization", "swap_space"):
        expect_error(
            f"CacheConfig({name}=nan)",
            lambda name=name: p.CacheConfig(**{name: math.nan}),
            ValueError,
            name,
        )


@_SUITE.property("CacheConfig", hint="no swap space at all is a fine choice")
def _swap(p: SimpleNamespace) -> None:
    """swap_space is 0 GiB or more; 4 by default."""
    expect("CacheConfig().swap_space", p.CacheConfig().swap_space, 4.0)
    expect("CacheConfig(swap_space=0)", p.CacheConfig(swap_space=0).swap_space, 0)
    expect_error(
        "CacheConfig(swap_space=-1)",
        lambda: p.CacheConfig(swap_space=-1),
        ValueError,
        "-1",
    )


@_SUITE.property(
    "SchedulerConfig", hint="None means that the engine decides; 0 means nothing"
)
def _scheduler(p: SimpleNamespace) -> None:
    """max_num_seqs is at least 1, and so is max_num_batched_tokens if not None."""
    made = p.SchedulerConfig()
    expect("SchedulerConfig().max_num_seqs", made.max_num_seqs, 256)
    expect(
        "SchedulerConfig().max_num_batched_tokens", made.max_num_batched_tokens, None
    )
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        expect(f"{name}=1", getattr(p.SchedulerConfig(**{name: 1}), name), 1)
        expect_error(
            f"SchedulerConfig({name}=0)",
            lambda name=name: p.SchedulerConfig(**{name: 0}),
            ValueError,
            name,
            "0",
        )


@_SUITE.property(
    "EngineConfig", hint="only a scheduler without a length of its own takes one"
)
def _sync(p: SimpleNamespace) -> None:
    """EngineConfig hands the model's max_model_len down to the scheduler."""
    engine = p.EngineConfig(
        p.ModelConfig("qwen", max_model_len=512), p.CacheConfig(), p.SchedulerConfig()
    )
    given = "model max_model_len=512, scheduler None"
    expect(given, engine.scheduler_config.max_model_len, 512)
    engine = p.EngineConfig(
        p.ModelConfig("qwen", max_model_len=512),
        p.CacheConfig(),
        p.SchedulerConfig(max_model_len=100),
    )
    given = "model max_model_len=512, scheduler 100"
    expect(given, engine.scheduler_config.max_model_len, 100)


@_SUITE.property("EngineConfig", hint="compare the two lengths before handing one down")
def _contradiction(p: SimpleNamespace) -> None:
    """A scheduler that allows more than the model is refused, with both numbers."""
    expect_error(
        "model max_model_len=512, scheduler 1024",
        lambda: p.EngineConfig(
            p.ModelConfig("qwen", max_model_len=512),
            p.CacheConfig(),
            p.SchedulerConfig(max_model_len=1024),
        ),
        ValueError,
        "512",
        "1024",
    )


@_SUITE.property(
    "EngineConfig",
    hint="change a copy (dataclasses.replace): the caller may use the config again",
)
def _caller(p: SimpleNamespace) -> None:
    """The caller's SchedulerConfig stays as it was, so two engines can share one."""
    shared = p.SchedulerConfig()
    for length in (512, 64):
        model = p.ModelConfig("qwen", max_model_len=length)
        engine = p.EngineConfig(model, p.CacheConfig(), shared)
        given = f"one SchedulerConfig for a second engine, with max_model_len={length}"
        expect(given, engine.scheduler_config.max_model_len, length)
    if shared.max_model_len is not None:
        fail(
            "the shared SchedulerConfig",
            f"max_model_len={shared.max_model_len}",
            "None",
        )
