"""FoloVLLM Lite: a small vLLM, built step by step in notebooks.

Names are imported when they are first used, so `import folovllm_lite` costs nothing and
`from folovllm_lite import SamplingParams` does not load a deep-learning framework.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "config": ["CacheConfig", "EngineConfig", "ModelConfig", "SchedulerConfig"],
    "engine": ["LLMEngine"],
    "generation": ["generate"],
    "llm": ["LLM"],
    "model_loader": ["ModelLoader", "get_model_and_tokenizer"],
    "outputs": ["CompletionOutput", "Logprob", "RequestMetrics", "RequestOutput"],
    "request": [
        "Request",
        "RequestStatus",
        "Sequence",
        "SequenceData",
        "SequenceStatus",
    ],
    "sampling_params": ["SamplingParams", "SamplingType"],
    "utils": [
        "generate_request_id",
        "get_device",
        "get_gpu_memory_info",
        "is_cuda_available",
        "move_to_device",
        "print_gpu_memory_info",
        "set_random_seed",
    ],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605  built from the table above


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
