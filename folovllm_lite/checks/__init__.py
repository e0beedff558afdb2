"""Suites that judge a piece by its contract, whoever wrote it.

The package's tests, the notebooks and the exercises all call the same ones:
`checks.sampler(apply_top_k=mine)` judges one function, `checks.sampler(module)` all of
a module. Each property is printed with ✓ or ✗; `CheckFailed` comes at the end.
"""

from folovllm_lite.checks.config_suite import config
from folovllm_lite.checks.harness import CheckFailed
from folovllm_lite.checks.sampler_suite import sampler

__all__ = ["CheckFailed", "config", "sampler"]
