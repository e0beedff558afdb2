"""What has to be true of the configs (notebook 01)."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch

from folovllm_lite import config as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail

_SUITE = config = Suite(
    package,
    """Judge the four configs, or some of them, or notebook 01's exercises.

    `checks.config(CacheConfig=Mine)` judges one class, `checks.config(module)` all of a
    module.
    """,
)


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
    got = [made.tokenizer_mode, made.dtype, made.seed]
    expect("ModelConfig('qwen'): tokenizer_mode, dtype, seed", got, ["auto", "auto", 0])
    other = p.ModelConfig("qwen", tokenizer="other")
    expect("ModelConfig('qwen', tokenizer='other').tokenizer", other.tokenizer, "other")


@_SUITE.property(
    "ModelConfig", hint="a dict from the name to the torch.dtype; 'auto' maps to None"
)
def _dtypes(p: SimpleNamespace) -> None:
    """torch_dtype resolves every name of a dtype, is None for "auto", and a torch.dtype
    is its own.
    """
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
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        got = p.ModelConfig("qwen", dtype=dtype).torch_dtype
        expect(f"ModelConfig('qwen', dtype={dtype}).torch_dtype", got, dtype)
    made = p.ModelConfig("qwen", dtype="half")
    for name in ("half", "bfloat16", "auto"):
        made.dtype = name
        given = f"dtype='half', read once, then {name!r} assigned: torch_dtype"
        expect(given, made.torch_dtype, wanted[name])


@_SUITE.property(
    "ModelConfig", hint="look the name up when the config is made, not when it is used"
)
def _bad_dtypes(p: SimpleNamespace) -> None:
    """An unknown dtype is a ValueError at once, and the message names it."""
    for name in ("float12", "", "Float32", " half", None):
        expect_error(
            f"ModelConfig('qwen', dtype={name!r})",
            lambda name=name: p.ModelConfig("qwen", dtype=name),
            ValueError,
            repr(name),
        )
    for dtype in (torch.int8, torch.float64):
        expect_error(
            f"ModelConfig('qwen', dtype={dtype})",
            lambda dtype=dtype: p.ModelConfig("qwen", dtype=dtype),
            ValueError,
            str(dtype),
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
            "max_model_len",
            str(value),
        )
    expect("max_model_len=1", p.ModelConfig("qwen", max_model_len=1).max_model_len, 1)


@_SUITE.property(
    "ModelConfig", hint="a seed has no sign and 63 bits; both ends count as seeds"
)
def _model_seeds(p: SimpleNamespace) -> None:
    """A seed lies in [0, 2**63): what every generator takes."""
    for value in (0, 42, 2**63 - 1):
        got = p.ModelConfig("qwen", seed=value).seed
        expect(f"ModelConfig('qwen', seed={value}).seed", got, value)
    for value in (-1, 2**63, 2**64):
        expect_error(
            f"ModelConfig('qwen', seed={value})",
            lambda value=value: p.ModelConfig("qwen", seed=value),
            ValueError,
            "seed",
            str(value),
        )


@_SUITE.property(
    "ModelConfig",
    hint="an annotation checks nothing; and only None means \"not given\", not '' or 0",
)
def _model_types(p: SimpleNamespace) -> None:
    """A field with a wrong type, or a mode that there isn't, is refused by its name."""
    p.ModelConfig("qwen", tokenizer_mode="slow", trust_remote_code=True)
    for name, value, error in (
        ("model", 7, TypeError),
        ("model", "", TypeError),
        ("model", None, TypeError),
        ("tokenizer", "", TypeError),
        ("tokenizer", 7, TypeError),
        ("tokenizer_mode", "fast", ValueError),
        ("tokenizer_mode", None, ValueError),
        ("trust_remote_code", "no", TypeError),
        ("trust_remote_code", 1, TypeError),
        ("max_model_len", "16", TypeError),
        ("max_model_len", True, TypeError),
        ("seed", 1.0, TypeError),
        ("seed", True, TypeError),
        ("seed", None, TypeError),
    ):
        expect_error(
            f"ModelConfig('qwen', {name}={value!r})",
            lambda name=name, value=value: p.ModelConfig(
                **{"model": "qwen", name: value}
            ),
            error,
            name,
            repr(value),
        )


@_SUITE.property(
    "CacheConfig", hint="the smallest block that can hold anything holds one token"
)
def _block_sizes(p: SimpleNamespace) -> None:
    """block_size must be positive; 16 by default."""
    expect("CacheConfig().block_size", p.CacheConfig().block_size, 16)
    for value in (1, 3):
        given = f"CacheConfig(block_size={value})"
        expect(given, p.CacheConfig(block_size=value).block_size, value)
    for value in (0, -16, 2**63):
        expect_error(
            f"CacheConfig(block_size={value})",
            lambda value=value: p.CacheConfig(block_size=value),
            ValueError,
            "block_size",
            str(value),
        )


@_SUITE.property(
    "CacheConfig", hint="(0, 1]: the round bracket leaves 0 out, the square one 1 in"
)
def _memory_shares(p: SimpleNamespace) -> None:
    """gpu_memory_utilization lies in (0, 1]."""
    for value in (1.0, 1, 0.5, 1e-6):
        got = p.CacheConfig(gpu_memory_utilization=value).gpu_memory_utilization
        expect(f"CacheConfig(gpu_memory_utilization={value})", got, value)
    for value in (0.0, -0.1, 1.01, 90.0, math.inf):
        expect_error(
            f"CacheConfig(gpu_memory_utilization={value})",
            lambda value=value: p.CacheConfig(gpu_memory_utilization=value),
            ValueError,
            "gpu_memory_utilization",
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


@_SUITE.property(
    "CacheConfig",
    hint="infinity is below no limit; and Python's ints end nowhere: math.isfinite "
    "makes a float of one first, and fails",
)
def _endless(p: SimpleNamespace) -> None:
    """Infinity and 10**400 are no amount of swap space: a ValueError with its name."""
    for value, shown in ((math.inf, "inf"), (10**400, "10**400")):
        expect_error(
            f"CacheConfig(swap_space={shown})",
            lambda value=value: p.CacheConfig(swap_space=value),
            ValueError,
            "swap_space",
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
        "swap_space",
        "-1",
    )


@_SUITE.property("CacheConfig", hint="no blocks at all can hold nothing")
def _blocks_by_hand(p: SimpleNamespace) -> None:
    """num_gpu_blocks_override is None or at least 1."""
    expect("CacheConfig()", p.CacheConfig().num_gpu_blocks_override, None)
    expect("... prefix caching", p.CacheConfig().enable_prefix_caching, False)
    made = p.CacheConfig(num_gpu_blocks_override=1).num_gpu_blocks_override
    expect("CacheConfig(num_gpu_blocks_override=1)", made, 1)
    for value in (0, -1):
        expect_error(
            f"CacheConfig(num_gpu_blocks_override={value})",
            lambda value=value: p.CacheConfig(num_gpu_blocks_override=value),
            ValueError,
            "num_gpu_blocks_override",
            str(value),
        )


@_SUITE.property(
    "CacheConfig",
    hint="an annotation checks nothing, and isinstance(True, int) is True",
)
def _cache_types(p: SimpleNamespace) -> None:
    """A value of the wrong type is a TypeError that names the field and the value."""
    for name, value in (
        ("block_size", "16"),
        ("block_size", 16.0),
        ("block_size", True),
        ("block_size", None),
        ("gpu_memory_utilization", "0.9"),
        ("gpu_memory_utilization", True),
        ("gpu_memory_utilization", None),
        ("swap_space", "4"),
        ("swap_space", True),
        ("swap_space", None),
        ("num_gpu_blocks_override", 1.0),
        ("num_gpu_blocks_override", True),
        ("enable_prefix_caching", "no"),
        ("enable_prefix_caching", 1),
    ):
        expect_error(
            f"CacheConfig({name}={value!r})",
            lambda name=name, value=value: p.CacheConfig(**{name: value}),
            TypeError,
            name,
            repr(value),
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
    got = [made.max_model_len, made.enable_chunked_prefill]
    given = "SchedulerConfig(): max_model_len, enable_chunked_prefill"
    expect(given, got, [None, False])
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        given = f"SchedulerConfig({name}=1).{name}"
        expect(given, getattr(p.SchedulerConfig(**{name: 1}), name), 1)
        for value in (0, -1):
            expect_error(
                f"SchedulerConfig({name}={value})",
                lambda name=name, value=value: p.SchedulerConfig(**{name: value}),
                ValueError,
                name,
                str(value),
            )


@_SUITE.property(
    "SchedulerConfig",
    hint="every field needs a check of its own; isinstance(True, int) is True",
)
def _scheduler_types(p: SimpleNamespace) -> None:
    """Its other fields are checked too: the length, the flag, and True is no int."""
    made = p.SchedulerConfig(max_model_len=1, enable_chunked_prefill=True)
    expect("SchedulerConfig(max_model_len=1).max_model_len", made.max_model_len, 1)
    for name, value, error in (
        ("max_model_len", 0, ValueError),
        ("max_model_len", "16", TypeError),
        ("max_model_len", True, TypeError),
        ("max_num_seqs", True, TypeError),
        ("max_num_batched_tokens", 16.0, TypeError),
        ("max_num_batched_tokens", True, TypeError),
        ("enable_chunked_prefill", 1, TypeError),
        ("enable_chunked_prefill", None, TypeError),
    ):
        expect_error(
            f"SchedulerConfig({name}={value!r})",
            lambda name=name, value=value: p.SchedulerConfig(**{name: value}),
            error,
            name,
            repr(value),
        )


@_SUITE.property("SchedulerConfig", hint="list the names that are allowed, and None")
def _preemption(p: SimpleNamespace) -> None:
    """preemption_mode is "recompute", "swap" or None, and nothing else."""
    for mode in ("recompute", "swap", None):
        made = p.SchedulerConfig(preemption_mode=mode).preemption_mode
        expect(f"SchedulerConfig(preemption_mode={mode!r})", made, mode)
    for mode in ("", "Swap", False):
        expect_error(
            f"SchedulerConfig(preemption_mode={mode!r})",
            lambda mode=mode: p.SchedulerConfig(preemption_mode=mode),
            ValueError,
            repr(mode),
        )


def _tried(given: str, call: Callable[[], Any], wanted: Any) -> Any:
    """What `call` returns; whatever it raises is a failure that names the input."""
    try:
        return call()
    except NotImplementedError:
        raise  # a stub that isn't written yet, and no wrong answer
    except Exception as error:  # noqa: BLE001  whatever a learner's code may raise
        fail(given, f"{type(error).__name__}: {error}", wanted)


def _parts(p: SimpleNamespace, engine: Any) -> SimpleNamespace:
    """The classes of an engine's parts: those that its fields are annotated with.

    A notebook's ModelConfig is another class than the package's, and an engine takes
    only the one that it was written for.
    """
    annotated = fields(engine) if is_dataclass(engine) else ()
    types = {each.name: each.type for each in annotated}
    kinds = {
        "ModelConfig": types.get("model_config"),
        "CacheConfig": types.get("cache_config"),
        "SchedulerConfig": types.get("scheduler_config"),
    }
    return SimpleNamespace(
        **{
            name: kind if isinstance(kind, type) else getattr(p, name)
            for name, kind in kinds.items()
        }
    )


def _engine(
    p: SimpleNamespace,
    engine: Any,
    length: int | None = None,
    block_size: int = 16,
    **scheduler: Any,
) -> Any:
    """An `engine` for a model of `length`."""
    parts = _parts(p, engine)
    return engine(
        parts.ModelConfig("folo", max_model_len=length),
        parts.CacheConfig(block_size=block_size),
        parts.SchedulerConfig(**scheduler),
    )


@_SUITE.property(
    "EngineConfig", hint="an annotation checks nothing: ask isinstance for each part"
)
def _engine_types(p: SimpleNamespace) -> None:
    """A part that is no such config is a TypeError that names the part and the kind."""
    parts = _parts(p, p.EngineConfig)
    kinds = {
        "model_config": parts.ModelConfig,
        "cache_config": parts.CacheConfig,
        "scheduler_config": parts.SchedulerConfig,
    }
    model, scheduler = parts.ModelConfig("folo"), parts.SchedulerConfig()
    for name, kind, other in (  # the other one has a max_model_len too
        ("model_config", "ModelConfig", scheduler),
        ("cache_config", "CacheConfig", scheduler),
        ("scheduler_config", "SchedulerConfig", model),
    ):
        for value, named in (
            ("qwen", "qwen"),
            (None, "None"),
            ({}, "{}"),
            (other, f"{type(other).__name__}("),
        ):
            made = {"model_config": model, name: value}
            expect_error(
                f"EngineConfig with {name}={value!r}",
                lambda made=made: p.EngineConfig(**made),
                TypeError,
                *(name, kind, named),
            )
        mine = type("Mine", (kinds[name],), {})
        value = mine("folo") if name == "model_config" else mine()
        made = {"model_config": model, name: value}
        given = f"EngineConfig with a {name} of a subclass of {kind}"
        _tried(given, lambda made=made: p.EngineConfig(**made), "no error")


@_SUITE.property(
    "EngineConfig",
    hint="only a scheduler without a length of its own takes one, and nothing goes up",
)
def _sync(p: SimpleNamespace) -> None:
    """EngineConfig hands the model's max_model_len down to the scheduler."""
    engine = _engine(p, p.EngineConfig, 512)
    given = "model max_model_len=512, scheduler None"
    expect(given, engine.scheduler_config.max_model_len, 512)
    engine = _engine(p, p.EngineConfig, 512, max_model_len=100)
    given = "model max_model_len=512, scheduler 100"
    expect(given, engine.scheduler_config.max_model_len, 100)
    expect(f"{given}: the model's", engine.model_config.max_model_len, 512)
    engine = _engine(p, p.EngineConfig, 512, max_model_len=512)
    given = "model max_model_len=512, scheduler 512"
    expect(given, engine.scheduler_config.max_model_len, 512)
    engine = _engine(p, p.EngineConfig, None, max_model_len=64)
    given = "model max_model_len=None, scheduler 64: the model's, afterwards"
    expect(given, engine.model_config.max_model_len, None)
    engine = _engine(p, p.EngineConfig, None)
    given = "model max_model_len=None, scheduler None"
    expect(given, engine.scheduler_config.max_model_len, None)


@_SUITE.property("EngineConfig", hint="replace changes one field and keeps the others")
def _sync_keeps(p: SimpleNamespace) -> None:
    """All else that the parts were told stays as it was."""
    parts = _parts(p, p.EngineConfig)
    told = {
        "model_config": {"model": "folo", "dtype": "half", "seed": 7},
        "cache_config": {"block_size": 4, "enable_prefix_caching": True},
        "scheduler_config": {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "enable_chunked_prefill": True,
            "preemption_mode": "swap",
        },
    }
    for length in (None, 100):
        engine = p.EngineConfig(
            parts.ModelConfig(**told["model_config"], max_model_len=512),
            parts.CacheConfig(**told["cache_config"]),
            parts.SchedulerConfig(**told["scheduler_config"], max_model_len=length),
        )
        for part, values in told.items():
            for name, value in values.items():
                given = (
                    f"model max_model_len=512, scheduler {length}, and {part} with "
                    f"{name}={value!r}: {name}"
                )
                expect(given, getattr(getattr(engine, part), name), value)


@_SUITE.property("EngineConfig", hint="compare the two lengths before handing one down")
def _contradiction(p: SimpleNamespace) -> None:
    """A scheduler that allows more than the model is refused, with both numbers."""
    for length in (513, 1024):
        expect_error(
            f"model max_model_len=512, scheduler {length}",
            lambda length=length: _engine(p, p.EngineConfig, 512, max_model_len=length),
            ValueError,
            "512",
            str(length),
        )


@_SUITE.property(
    "EngineConfig", hint="a default in the class body is made once: use default_factory"
)
def _own_defaults(p: SimpleNamespace) -> None:
    """Two engines share no config that nobody gave them."""
    model = _parts(p, p.EngineConfig).ModelConfig("folo")
    one, two = p.EngineConfig(model), p.EngineConfig(model)
    one.cache_config.block_size = 32
    given = "two engines by default, block_size of the first set to 32: the second's"
    expect(given, two.cache_config.block_size, 16)
    one.scheduler_config.max_num_seqs = 1
    given = "two engines by default, max_num_seqs of the first set to 1: the second's"
    expect(given, two.scheduler_config.max_num_seqs, 256)


@_SUITE.property(
    "EngineConfig",
    hint="change a copy (dataclasses.replace): the caller may use the config again",
)
def _caller(p: SimpleNamespace) -> None:
    """The caller's SchedulerConfig stays as it was, so two engines can share one."""
    parts = _parts(p, p.EngineConfig)
    shared = parts.SchedulerConfig()
    for length in (512, 64):
        model = parts.ModelConfig("qwen", max_model_len=length)
        engine = p.EngineConfig(model, parts.CacheConfig(), shared)
        given = f"one SchedulerConfig for a second engine, with max_model_len={length}"
        expect(given, engine.scheduler_config.max_model_len, length)
    if shared.max_model_len is not None:
        fail(
            "the shared SchedulerConfig",
            f"max_model_len={shared.max_model_len}",
            "None",
        )


# ----- notebook 01's exercises


@_SUITE.property(
    "check_vllm_options", hint="a table from the option's name to the values that pass"
)
def _options_off(p: SimpleNamespace) -> None:
    """Options of vLLM's pass where they say "off" or "one"."""
    for options in (
        {},
        {"enforce_eager": True},
        {"tensor_parallel_size": 1, "pipeline_parallel_size": 1},
        {"enable_lora": False, "kv_cache_dtype": "auto", "revision": None},
        {"load_format": "safetensors", "cpu_offload_gb": 0.0, "hf_overrides": {}},
    ):
        given, before = f"check_vllm_options({options})", dict(options)
        try:
            p.check_vllm_options(options)
        except (NotImplementedError, TypeError) as error:
            if not options:  # a stub raises for nothing at all
                raise
            fail(given, f"{type(error).__name__}: {error}", "no error")
        expect(f"{given}: the options, afterwards", options, before)


@_SUITE.property(
    "check_vllm_options",
    hint="look at every option, and not only at the first; and True == 1: compare the "
    "types as well as the values",
)
def _options_on(p: SimpleNamespace) -> None:
    """One that asks for more is a NotImplementedError with its name and its value."""
    for name, value in (
        ("tensor_parallel_size", 2),
        ("tensor_parallel_size", True),
        ("enforce_eager", False),
        ("enable_lora", True),
        ("enable_lora", 0),
        ("kv_cache_dtype", "fp8"),
        ("hf_overrides", {"rope_theta": 1}),
    ):
        off = {"pipeline_parallel_size": 1}
        for options in ({**off, name: value}, {name: value, **off}):
            expect_error(
                f"{options}",
                lambda options=options: p.check_vllm_options(options),
                NotImplementedError,
                name,
                repr(value),
            )


@_SUITE.property("check_vllm_options", hint="a typo is no option of vLLM's either")
def _options_unknown(p: SimpleNamespace) -> None:
    """A name that vLLM hasn't either is a TypeError with the name."""
    for options in ({"enforce_eagr": True}, {"enforce_eagr": None}):
        expect_error(
            f"{options}",
            lambda options=options: p.check_vllm_options(options),
            TypeError,
            "enforce_eagr",
        )


def _six_engines(p: SimpleNamespace, letters: str) -> None:
    """Compare the predictions for `letters` with what becomes of the six engines."""
    parts = _parts(p, p.EngineConfig)
    shared, short = parts.SchedulerConfig(), parts.SchedulerConfig(max_model_len=64)

    def limit(length: int | None) -> Any:
        return parts.ModelConfig("folo", max_model_len=length)

    makers = {
        "a": lambda: p.EngineConfig(limit(256), scheduler_config=shared),
        "b": lambda: p.EngineConfig(limit(None), scheduler_config=shared),
        "c": lambda: p.EngineConfig(limit(256), scheduler_config=short),
        "d": lambda: p.EngineConfig(limit(32), scheduler_config=short),
        "e": lambda: p.EngineConfig(limit(32), scheduler_config=shared),
        "f": lambda: replace(made["a"], model_config=limit(128)),
    }
    made: dict[str, Any] = {}
    predicted = p.predicted_lengths()
    if not isinstance(predicted, dict):
        fail("predicted_lengths()", repr(predicted), "a dict with the keys a to f")
    for letter, make in makers.items():
        try:
            made[letter] = make()
            happens = made[letter].scheduler_config.max_model_len
        except ValueError:
            happens = "refused"
        if letter not in letters:
            continue
        if letter not in predicted:
            fail(f"engine {letter}", "no prediction", "a number, None or 'refused'")
        got = predicted[letter]
        if got not in (None, "refused") and type(got) is not int:
            fail(f"engine {letter}", repr(got), "a number, None or 'refused'")
        if got != happens:
            fail(f"engine {letter}", repr(got), "something else")


@_SUITE.property(
    "predicted_lengths",
    hint="which object does each engine write to, and what does `shared` hold then?",
)
def _predicted_shared(p: SimpleNamespace) -> None:
    """Engines a, b and e, which are given one scheduler config, are predicted."""
    _six_engines(p, "abe")


@_SUITE.property(
    "predicted_lengths",
    hint="which of the two lengths may be the smaller one, and which may not?",
)
def _predicted_short(p: SimpleNamespace) -> None:
    """Engines c and d, whose scheduler has a length of its own, are predicted."""
    _six_engines(p, "cd")


@_SUITE.property(
    "predicted_lengths",
    hint="replace passes on what `a` holds now, and then __post_init__ runs again",
)
def _predicted_replace(p: SimpleNamespace) -> None:
    """Engine f, made from a by replace, is predicted."""
    _six_engines(p, "f")


def _strict(p: SimpleNamespace, length: int | None, **scheduler: Any) -> Any:
    """The scheduler config of a StrictEngineConfig of a model of `length`."""
    return _engine(p, p.StrictEngineConfig, length, **scheduler).scheduler_config


def _allowed(
    p: SimpleNamespace, given: str, length: int | None, **scheduler: Any
) -> None:
    """Such an engine is made, and its scheduler is told what was asked for."""
    made = _tried(given, lambda: _strict(p, length, **scheduler), "no error")
    asked = {"max_num_batched_tokens": None, "max_model_len": length, **scheduler}
    for name, value in asked.items():
        expect(f"{given}: {name}", getattr(made, name), value)


@_SUITE.property(
    "StrictEngineConfig", hint="call the __post_init__ of EngineConfig; when?"
)
def _strict_is_an_engine(p: SimpleNamespace) -> None:
    """A StrictEngineConfig does all that an EngineConfig does."""
    given = "model max_model_len=512, scheduler None, no budget"
    made = _tried(given, lambda: _strict(p, 512), "no error")
    expect(given, made.max_model_len, 512)
    strict = SimpleNamespace(**{**vars(p), "EngineConfig": p.StrictEngineConfig})
    for each in _SUITE.properties:
        if each.needs == ("EngineConfig",):
            each.holds(strict)


@_SUITE.property(
    "StrictEngineConfig",
    hint="None is no number: what can be compared if one of the two is None?",
)
def _strict_without_numbers(p: SimpleNamespace) -> None:
    """Where no budget is given, or no length is known, there is nothing to compare."""
    _allowed(p, "no budget, length 512", 512, max_num_seqs=1024)
    no_budget = "no budget, length 512, chunked prefill"
    _allowed(p, no_budget, 512, enable_chunked_prefill=True)
    for budget in (8, 256):
        given = f"budget {budget} for as many sequences, no length anywhere"
        same = {"max_num_batched_tokens": budget, "max_num_seqs": budget}
        _allowed(p, given, None, **same)


@_SUITE.property(
    "StrictEngineConfig", hint="every running text takes one token of each step"
)
def _strict_seqs(p: SimpleNamespace) -> None:
    """A budget below max_num_seqs is refused with both numbers, chunked or not."""
    for chunked in (False, True):
        given = {"max_num_seqs": 8, "enable_chunked_prefill": chunked}
        _allowed(
            p, f"budget 8, length 4, {given}", 4, max_num_batched_tokens=8, **given
        )
        for length in (4, None):
            expect_error(
                f"budget 7, length {length}, {given}",
                lambda length=length, given=given: _strict(
                    p, length, max_num_batched_tokens=7, **given
                ),
                ValueError,
                "7",
                "8",
            )


@_SUITE.property(
    "StrictEngineConfig",
    hint="look at the scheduler's length after the two were brought together",
)
def _strict_prompts(p: SimpleNamespace) -> None:
    """Without chunked prefill a budget below the longest text is refused likewise."""
    asked = {"max_num_seqs": 8, "max_num_batched_tokens": 64}
    _allowed(p, "budget 64, length 64", 64, **asked)
    short = "budget 64, scheduler's length 64, model's 512"
    _allowed(p, short, 512, max_model_len=64, **asked)
    for budget, length, model in ((511, 512, 512), (64, 65, 512), (64, 65, None)):
        given = {"max_num_batched_tokens": budget, "max_num_seqs": 8}
        if length != model:
            given["max_model_len"] = length
        expect_error(
            f"budget {budget}, scheduler's length {length}, model's {model}",
            lambda model=model, given=given: _strict(p, model, **given),
            ValueError,
            str(budget),
            str(length),
        )
    chunked = {**asked, "enable_chunked_prefill": True}
    _allowed(p, "budget 64, length 512, chunked prefill", 512, **chunked)


def _longest(
    p: SimpleNamespace,
    wanted: int,
    blocks: int,
    block_size: int,
    seqs: int,
    length: int | None = None,
    positions: int = 4096,
) -> None:
    """Expect `wanted` of `longest_length`; `length` is the model's max_model_len."""
    config = _engine(p, p.EngineConfig, length, block_size, max_num_seqs=seqs)
    before = deepcopy(config)
    given = (
        f"{blocks} block{'s' * (blocks != 1)} of {block_size} tokens, "
        f"{seqs} text{'s' * (seqs != 1)}, max_model_len {length}, {positions} positions"
    )
    got = _tried(given, lambda: p.longest_length(blocks, config, positions), wanted)
    if got != wanted or type(got) is not int:  # 8.0 is no max_model_len
        fail(given, repr(got), wanted)
    expect(f"{given}: the config, afterwards", config, before)


@_SUITE.property(
    "longest_length", hint="how many tokens fit into all blocks, with one text alone?"
)
def _length_alone(p: SimpleNamespace) -> None:
    """One text may fill the whole pool, and no more."""
    for blocks, block_size, wanted in ((1, 4, 4), (3, 4, 12), (3, 1, 3)):
        _longest(p, wanted, blocks, block_size, 1)


@_SUITE.property(
    "longest_length", hint="can two texts share a block? Then what has to be divided?"
)
def _length_shared(p: SimpleNamespace) -> None:
    """max_num_seqs texts can reach the length at once, each in blocks of its own."""
    for blocks, seqs, wanted in ((6, 3, 8), (7, 3, 8), (8, 3, 8), (9, 3, 12)):
        _longest(p, wanted, blocks, 4, seqs)


@_SUITE.property(
    "longest_length", hint="memory is one limit of several: which others are there?"
)
def _length_capped(p: SimpleNamespace) -> None:
    """However large the pool, no other limit is exceeded."""
    for length, positions, wanted in ((None, 30, 30), (20, 30, 20), (50, 30, 30)):
        _longest(p, wanted, 100, 4, 2, length, positions)
    _longest(p, 8, 5, 4, 2, 20, 30)  # and where the pool is small, it is the limit
    config = _engine(
        p,
        p.EngineConfig,
        20,
        4,
        max_num_seqs=2,
        max_model_len=10,
        max_num_batched_tokens=5,
        enable_chunked_prefill=True,
    )
    given = "100 blocks, max_model_len 20, the scheduler's 10, 30 positions, budget 5"
    expect(given, _tried(given, lambda: p.longest_length(100, config, 30), 10), 10)


@_SUITE.property("longest_length", hint="what would an answer of 0 be good for?")
def _length_refused(p: SimpleNamespace) -> None:
    """A pool with less than a block for each text is refused with both numbers."""
    _longest(p, 4, 3, 4, 3)
    for blocks, seqs in ((5, 7), (0, 1)):
        config = _engine(p, p.EngineConfig, None, 4, max_num_seqs=seqs)
        expect_error(
            f"{blocks} blocks of 4 tokens, {seqs} text{'s' * (seqs != 1)}",
            lambda blocks=blocks, config=config: p.longest_length(blocks, config, 4096),
            ValueError,
            str(blocks),
            str(seqs),
        )
