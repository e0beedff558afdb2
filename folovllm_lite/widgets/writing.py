"""What the embedded model writes, for lessons that come before the engine is built."""

from functools import cache
from typing import Any

from folovllm_lite.llm import LLM
from folovllm_lite.sampling_params import SamplingParams


@cache
def _engine() -> LLM:
    return LLM()


def write(prompt: str, **params: Any) -> list[str]:
    """The texts that the finished engine writes after `prompt`, by these dials.

    Raises:
        TypeError, ValueError, NotImplementedError: as SamplingParams does.
    """
    (output,) = _engine().generate(prompt, SamplingParams(**params), use_tqdm=False)
    return [each.text for each in output.outputs]
