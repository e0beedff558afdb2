"""The user's door: vLLM's `LLM`, for now on top of one request after another."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from folovllm_lite.config import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
)
from folovllm_lite.generation import Generation
from folovllm_lite.model_loader import (
    EMBEDDED_MODEL,
    ModelLoader,
    eos_token_ids,
    resolve_checkpoint,
)
from folovllm_lite.outputs import RequestOutput
from folovllm_lite.processor import InputProcessor, TokenTexts
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.request import Request
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.utils import generate_request_id, get_device

Prompt = str | dict | list[int]

# What an option needs before it can do anything; until then any value but the default
# is refused when the engine is built.
_MILESTONES = {
    "max_num_seqs": "M2 (continuous batching)",
    "max_num_batched_tokens": "M2 (continuous batching)",
    "block_size": "M3 (paged KV cache)",
    "gpu_memory_utilization": "M3 (paged KV cache)",
    "swap_space": "M3 (paged KV cache)",
    "enable_chunked_prefill": "M5 (chunked prefill)",
    "enable_prefix_caching": "M6 (prefix caching)",
}


class LLM:
    """Offline inference: load a model once, then generate, chat or stream.

    Args:
        model: directory of a checkpoint or a Hub name; None is the embedded model.
        tokenizer, tokenizer_mode, trust_remote_code, dtype, max_model_len, seed: see
            `ModelConfig`. Code of a checkpoint is never run: the model is our own.
        quantization: not before M7.
        device: "cpu", "cuda" or None, which picks CUDA when there is one.
        block_size, gpu_memory_utilization, swap_space, enable_prefix_caching: see
            `CacheConfig`.
        max_num_batched_tokens, max_num_seqs, enable_chunked_prefill: see
            `SchedulerConfig`.

    Raises:
        NotImplementedError: an option whose milestone has not landed, by its name.
        TypeError, ValueError, FileNotFoundError: as the configs and the loader raise.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        tokenizer: str | None = None,
        tokenizer_mode: str = "auto",
        trust_remote_code: bool = False,
        dtype: str | torch.dtype = "auto",
        max_model_len: int | None = None,
        seed: int = 0,
        quantization: str | None = None,
        device: str | torch.device | None = None,
        block_size: int = CacheConfig.block_size,
        gpu_memory_utilization: float = CacheConfig.gpu_memory_utilization,
        swap_space: float = CacheConfig.swap_space,
        enable_prefix_caching: bool = CacheConfig.enable_prefix_caching,
        max_num_batched_tokens: int | None = SchedulerConfig.max_num_batched_tokens,
        max_num_seqs: int = SchedulerConfig.max_num_seqs,
        enable_chunked_prefill: bool = SchedulerConfig.enable_chunked_prefill,
    ):
        name = str(EMBEDDED_MODEL if model is None else model)
        model_config = ModelConfig(
            name,
            tokenizer,
            tokenizer_mode,
            trust_remote_code,
            dtype,
            max_model_len,
            seed,
        )
        config = EngineConfig(
            model_config,
            CacheConfig(
                block_size, gpu_memory_utilization, swap_space, enable_prefix_caching
            ),
            SchedulerConfig(
                max_num_batched_tokens,
                max_num_seqs,
                enable_chunked_prefill=enable_chunked_prefill,
            ),
        )
        _refuse_what_is_to_come(config, quantization)
        self.model_config = model_config
        self.device = get_device(device)
        path = resolve_checkpoint(name)
        self.model = Qwen3.from_pretrained(path, model_config.torch_dtype, self.device)
        self._tokenizer = ModelLoader(model_config).load_tokenizer()
        self._eos = eos_token_ids(path, self._tokenizer)
        self.max_model_len = self._limit(max_model_len)
        self._input = InputProcessor(
            self._tokenizer, self.model.config.vocab_size, self.max_model_len
        )
        self._texts = TokenTexts(self._tokenizer)
        # Requests without a seed draw from here, so that a new LLM repeats itself and
        # nobody's global generator is touched.
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def _limit(self, wanted: int | None) -> int:
        """Longest sequence: what the user wants, which the model has to support."""
        limit = self.model.config.max_position_embeddings
        if wanted is not None and wanted > limit:
            raise ValueError(
                f"max_model_len is {wanted}, but the model was built for {limit} "
                "positions"
            )
        return wanted or limit

    def get_tokenizer(self) -> Any:
        """The tokenizer, of `transformers`."""
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | list[Prompt],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete prompts; the outputs come in the order of the prompts.

        Args:
            prompts: one or a list of: a string, {"prompt": string},
                {"prompt_token_ids": ids}.
            sampling_params: one for all, or one for each; None is `SamplingParams()`.
            use_tqdm: show a progress bar if there are several prompts.

        Raises:
            TypeError, ValueError: before anything is generated, for the first prompt
                that can't be served.
        """
        return self._run(self._requests(_as_list(prompts), sampling_params), use_tqdm)

    def chat(
        self,
        messages: list[dict[str, str]] | list[list[dict[str, str]]],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer conversations, each a list of {"role": ..., "content": ...}.

        Args and errors are those of `generate`; one conversation counts as a list of
        one.
        """
        several = (
            isinstance(messages, list) and messages and isinstance(messages[0], list)
        )
        conversations = messages if several else [messages]
        prompts = [self._input.chat(conversation) for conversation in conversations]
        return self._run(self._requests(prompts, sampling_params), use_tqdm)

    def stream(
        self,
        prompt: Prompt | list[dict[str, str]],
        params: SamplingParams | None = None,
    ) -> Iterator[RequestOutput]:
        """Generate one prompt, or the answer to one conversation, token by token.

        Returns an iterator of growing outputs, one for each token. Errors come from
        this call, before the first of them. The iterator may be dropped at any time.

        Raises:
            ValueError: also for best_of > n: which completions are the best is known
                only at the end, and what was shown can't be taken back.
        """
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            prompt = self._input.chat(prompt)
        (request,) = self._requests([prompt], params)
        asked = request.sampling_params
        if asked.best_of > asked.n:
            raise ValueError(f"can't stream best_of ({asked.best_of}) > n ({asked.n})")
        return iter(self._generation(request))

    def _requests(
        self,
        prompts: list[Prompt],
        sampling_params: SamplingParams | list[SamplingParams] | None,
    ) -> list[Request]:
        """Check all first: a bad last prompt must not cost the work on the others."""
        if isinstance(sampling_params, list | tuple):
            if len(sampling_params) != len(prompts):
                raise ValueError(
                    f"there are {len(prompts)} prompts, but {len(sampling_params)} "
                    "sampling_params"
                )
            params = list(sampling_params)
        else:
            shared = SamplingParams() if sampling_params is None else sampling_params
            params = [shared] * len(prompts)
        requests = []
        for prompt, each in zip(prompts, params, strict=True):
            if not isinstance(each, SamplingParams):
                raise TypeError(f"sampling_params must be SamplingParams, got {each!r}")
            text, ids = self._input.process(prompt, each)
            requests.append(Request(generate_request_id(), text, ids, each))
        return requests

    def _generation(self, request: Request) -> Generation:
        return Generation(
            self.model,
            self._texts,
            request,
            eos_token_ids=self._eos,
            max_model_len=self.max_model_len,
            generator=self._generator,
        )

    def _run(self, requests: list[Request], use_tqdm: bool) -> list[RequestOutput]:
        outputs, tokens, began = [], 0, time.perf_counter()
        # Left out unless it is True: any value given here would overrule TQDM_DISABLE.
        quiet = {} if use_tqdm and len(requests) > 1 else {"disable": True}
        bar = tqdm(requests, desc="prompts", **quiet)
        for request in bar:
            job = self._generation(request)
            while not job.finished:
                job.step()
            outputs.append(job.output())
            tokens += sum(len(output.token_ids) for output in outputs[-1].outputs)
            speed = tokens / (time.perf_counter() - began)
            bar.set_postfix_str(f"{speed:.0f} tokens/s", refresh=False)
        return outputs


def _refuse_what_is_to_come(config: EngineConfig, quantization: str | None) -> None:
    """Raise for options that nothing reads yet; a silent no-op would be a lie."""
    if quantization is not None:
        raise NotImplementedError(f"quantization={quantization!r} comes with M7 (GPTQ)")
    for part in (config.cache_config, config.scheduler_config):
        for name, milestone in _MILESTONES.items():
            value, default = getattr(part, name, None), getattr(type(part), name, None)
            if value != default:
                raise NotImplementedError(f"{name}={value!r} comes with {milestone}")


def _as_list(prompts: Prompt | list[Prompt]) -> list[Prompt]:
    """A lone prompt counts as a list of one; a list of ints is one prompt of ids."""
    if isinstance(prompts, list | tuple):
        if prompts and all(type(item) is int for item in prompts):
            return [list(prompts)]
        return list(prompts)
    return [prompts]
