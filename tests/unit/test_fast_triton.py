"""The four-bit kernel for a GPU, as far as a CPU can prove it."""

import importlib.util

import pytest
import torch

from folovllm_lite import fast
from folovllm_lite.gptq import GPTQConfig
from tests.helpers import INTERPRETED, interpreted, run_interpreted
from tests.unit.test_gptq import layer_of

if importlib.util.find_spec("triton") is None:
    pytest.skip(
        "Triton isn't installed: python -m pip install triton==3.7.1",
        allow_module_level=True,
    )


def test_in_a_process_of_its_own():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("T", [1, 16, 17, 33])
@pytest.mark.parametrize("size, N, shuffled", [(32, 40, True), (64, 72, False)])
def test_interpreted_it_computes_what_the_layer_does(dtype, T, size, N, shuffled):
    config = GPTQConfig(size)
    layer, q = layer_of(128, N, config, dtype, bias=shuffled, shuffled=shuffled)
    x = torch.randn(T, 128, generator=torch.Generator().manual_seed(T)).to(dtype)
    wanted = x.double() @ q.dequantize().double().T
    if shuffled:
        wanted = wanted + layer.bias.double()
    got = fast.TritonInt4Linear(layer)(x)
    assert got.dtype == dtype and got.shape == (T, N)
    exact = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}[dtype]
    room = exact * (x.double().abs() @ q.dequantize().double().abs().T + 3)
    assert ((got.double() - wanted).abs() <= room).all()


@pytest.mark.skipif(INTERPRETED, reason="Triton interprets here")
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("tokens", [16, 32])
def test_it_compiles_for_hopper(name, tokens):
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"TOKENS": tokens, "WIDTH": 32, "GROUP": 128, "WIDE": False}
    types = {
        "x_at": f"*{name}", "words_at": "*i32", "scales_at": "*fp16",
        "zeros_at": "*i32", "out_at": f"*{name}", "T": "i32", "N": "i32", "K": "i32",
    }  # fmt: skip
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fast.on_gpu(fast.four_bit_product), signature, constants)
    compiled = triton_compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]
