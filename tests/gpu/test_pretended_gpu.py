"""What the pretended GPU of tests/pretended_gpu notes, a real one does."""

import pytest
import torch

from tests.pretended_gpu.snippets import FREE, MISMATCHES, UNSEEN, WAITS


def run(snippet) -> None:
    x = torch.zeros(3, device="cuda")
    snippet(x, "cuda")  # whatever is set up at the first call
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        snippet(x, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", [name for name in WAITS if name not in UNSEEN])
def test_it_waits(name):
    with pytest.raises(RuntimeError, match="synchroniz"):
        run(WAITS[name])


@pytest.mark.parametrize("name", FREE)
def test_it_goes_on(name):
    run(FREE[name])


@pytest.mark.parametrize("name", MISMATCHES)
def test_it_is_an_error(name):
    x = torch.zeros(3, device="cuda")
    with pytest.raises(RuntimeError):
        MISMATCHES[name](x, "cuda")
