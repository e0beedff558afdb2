"""What every test shares: the environment, Hypothesis's profile, the embedded model."""

import os
from pathlib import Path

# Set before torch and tokenizers are imported, because they read it only then.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest

GPU_TESTS = Path(__file__).parent / "gpu"

# The same examples on every run, and no deadline: a busy machine isn't a failure.
hypothesis.settings.register_profile(
    "course", derandomize=True, deadline=None, database=None
)
hypothesis.settings.load_profile("course")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what stands in tests/gpu where there is no GPU, and say so."""
    gpu_items = [item for item in items if GPU_TESTS in item.path.parents]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))


@pytest.fixture(scope="session")
def embedded_llm():
    """The embedded model behind the public API, loaded once for a whole run."""
    from folovllm_lite import LLM

    return LLM(device="cpu")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """A tiny random checkpoint in Hugging Face's layout, to read and not to change."""
    from tests.helpers import make_checkpoint

    return str(make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model"))
