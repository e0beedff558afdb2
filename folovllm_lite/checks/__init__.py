"""Suites that judge a piece by its contract, whoever wrote it.

The package's tests, the notebooks and the exercises all call the same ones:
`checks.sampler(apply_top_k=mine)` judges one function, `checks.sampler(module)` all of
a module. Each property is printed with ✓ or ✗; `CheckFailed` comes at the end.
"""

from folovllm_lite.checks.attention_suite import attention
from folovllm_lite.checks.block_manager_suite import block_manager
from folovllm_lite.checks.caching_exercises_suite import caching_exercises
from folovllm_lite.checks.chunking_exercises_suite import chunking_exercises
from folovllm_lite.checks.config_suite import config
from folovllm_lite.checks.contexts_suite import contexts
from folovllm_lite.checks.engine_suite import engine
from folovllm_lite.checks.flash_exercises_suite import flash_exercises
from folovllm_lite.checks.flash_suite import flash
from folovllm_lite.checks.generation_exercises_suite import generation_exercises
from folovllm_lite.checks.generation_suite import generation
from folovllm_lite.checks.gptq_suite import gptq
from folovllm_lite.checks.harness import CheckFailed
from folovllm_lite.checks.kv_cache_suite import kv_cache
from folovllm_lite.checks.memory_suite import memory
from folovllm_lite.checks.model_loader_suite import model_loader
from folovllm_lite.checks.outputs_suite import outputs
from folovllm_lite.checks.paged_exercises_suite import paged_exercises
from folovllm_lite.checks.paged_suite import paged
from folovllm_lite.checks.prefix_cache_suite import prefix_cache
from folovllm_lite.checks.processor_suite import processor
from folovllm_lite.checks.qwen3_suite import qwen3
from folovllm_lite.checks.request_suite import request
from folovllm_lite.checks.runner_suite import runner
from folovllm_lite.checks.sampler_suite import sampler
from folovllm_lite.checks.sampling_params_suite import sampling_params
from folovllm_lite.checks.scheduler_suite import scheduler
from folovllm_lite.checks.scheduling_exercises_suite import scheduling_exercises
from folovllm_lite.checks.transformer_exercises_suite import (
    transformer_exercises,
)
from folovllm_lite.checks.utils_suite import utils

__all__ = [
    "CheckFailed",
    "attention",
    "block_manager",
    "caching_exercises",
    "chunking_exercises",
    "config",
    "contexts",
    "engine",
    "flash",
    "flash_exercises",
    "generation",
    "generation_exercises",
    "gptq",
    "kv_cache",
    "memory",
    "model_loader",
    "outputs",
    "paged",
    "paged_exercises",
    "prefix_cache",
    "processor",
    "qwen3",
    "request",
    "runner",
    "sampler",
    "sampling_params",
    "scheduler",
    "scheduling_exercises",
    "transformer_exercises",
    "utils",
]
