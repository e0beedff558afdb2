"""CUDA graphs and the room for a step, on a GPU.

The bodies are functions of nothing but the device: tests/pretended_gpu runs them too,
so that they can be executed where there is no GPU. Without CUDA, tests/conftest.py
skips this file and says so.
"""

import torch

from folovllm_lite import LLM, SamplingParams
from folovllm_lite.gpu import GraphRunner, step_bytes
from tests.gpu.test_generation_cuda import prompt_ids, same_or_near_tie

LENGTHS = (30, 4, 9, 17)  # they leave one after the other, so steps are padded


def llm_on(device: str, **options) -> LLM:
    return LLM(
        device=device, dtype=torch.float32, block_size=4, max_model_len=96,
        max_num_seqs=8, num_gpu_blocks_override=96, swap_space=0.01, **options,
    )  # fmt: skip


def serve(llm: LLM) -> list[list[int]]:
    params = [
        SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        for count in LENGTHS
    ]
    prompts = [{"prompt_token_ids": ids} for ids in prompt_ids()]
    found = llm.generate(prompts, params, use_tqdm=False)
    return [each.outputs[0].token_ids for each in found]


def graphs_give_the_tokens_of_eager_steps(device: str) -> None:
    """Twice in one engine: the second time tables and rows are others."""
    wanted = serve(llm_on(device, enforce_eager=True))
    torch.backends.cuda.enable_cudnn_sdp(True)
    llm = llm_on(device)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert isinstance(llm.llm_engine.runner, GraphRunner)
    for _ in range(2):
        for ids, one, two in zip(prompt_ids(), serve(llm), wanted, strict=True):
            same_or_near_tie(ids, one, two)


def a_replay_does_not_wait(device: str) -> None:
    """Its inputs come from pinned memory, and nothing in it needs the host."""
    llm = llm_on(device)
    runner = llm.llm_engine.runner
    run, replayed = runner.run, []

    def watched(step):
        if any(work.count > 1 for work in step.work.values()):
            return run(step)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            replayed.append(len(step.work))
            return run(step)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    runner.run = watched
    serve(llm)
    assert set(replayed) == {1, 2, 3, 4}


def a_step_needs_no_more_than_was_reserved(device: str) -> None:
    """Prompts that fill a step, then sampling with every filter."""
    llm = llm_on(device, max_num_batched_tokens=192, enforce_eager=True)
    reserved = step_bytes(llm.model, 192, 8, 96)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    params = SamplingParams(
        max_tokens=6, logprobs=5, top_k=9, top_p=0.9, min_p=0.01, repetition_penalty=1.3
    )
    prompts = [{"prompt_token_ids": [5] * 90}] * 2 + ["Lily"] * 6
    llm.generate(prompts, params, use_tqdm=False)
    assert torch.cuda.max_memory_allocated() - before <= reserved


BODIES = (
    graphs_give_the_tokens_of_eager_steps,
    a_replay_does_not_wait,
    a_step_needs_no_more_than_was_reserved,
)


def test_graphs_give_the_tokens_of_eager_steps():
    graphs_give_the_tokens_of_eager_steps("cuda")


def test_a_replay_does_not_wait():
    a_replay_does_not_wait("cuda")


def test_a_step_needs_no_more_than_was_reserved():
    a_step_needs_no_more_than_was_reserved("cuda")
