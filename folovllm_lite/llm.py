"""vLLM's `LLM`: options to parts, and an engine that is driven until all is said.

`make_engine` builds what an engine consists of, so that the parts fit each other. `LLM`
generates, chats and streams with it.
"""

import copy
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from tqdm.auto import tqdm

from folovllm_lite import fast, gptq, gpu
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.config import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
    check_vllm_options,
)
from folovllm_lite.engine import LLMEngine, Prompt, StepRunner
from folovllm_lite.flash import FlashContext
from folovllm_lite.generation import RequestState
from folovllm_lite.model_loader import (
    EMBEDDED_MODEL,
    ModelLoader,
    default_sampling_params,
    eos_token_ids,
    resolve_checkpoint,
)
from folovllm_lite.outputs import RequestOutput
from folovllm_lite.paged import PagedContext, PagedKVCache
from folovllm_lite.prefix_cache import PrefixCache
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.request import Request
from folovllm_lite.runner import Runner
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import (
    Scheduler,
    as_they_came,
    chunk,
    decodes_first,
    whole,
)
from folovllm_lite.utils import generate_request_id, get_device

_Watch = Callable[[RequestState], None]
_Config = TypeVar("_Config", ModelConfig, CacheConfig, SchedulerConfig)

_LOG = logging.getLogger(__name__)
_ALLOW_LONG = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
_GIB = 1024**3
# Keywords of vLLM's `generate` and `chat` that have no counterpart, as in `config`.
_CALL_OPTIONS = {
    "chat_template_content_format": ("auto", "string"),
    "lora_request": (None,),
    "mm_processor_kwargs": (None, {}),
    "priority": (None,),
    "tokenization_kwargs": (None, {}),
}
# Tokens of a step unless told otherwise: enough to keep the machine's arithmetic busy.
_STEP_TOKENS = 2048


def make_engine(
    config: EngineConfig,
    device: str | torch.device | None = None,
    quantization: str | None = None,
    enforce_eager: bool = False,
) -> LLMEngine:
    """Load a model, and build an engine whose parts fit each other and it.

    Args:
        config: what was asked for; None in it is decided here.
        device: "cpu", "cuda" or None, which picks CUDA when there is one.
        quantization: "gptq" insists on a checkpoint of that kind.
        enforce_eager: no CUDA graphs for decoding steps; see `gpu`.

    Raises:
        TypeError, ValueError, FileNotFoundError: as the loader raises, and for what the
            model or the machine can't do.
    """
    device, asked = get_device(device), config.model_config
    if device.type == "cuda":
        gpu.avoid_cudnn()
    path = resolve_checkpoint(asked.model)
    quantized = quantization is not None or gptq.read_quantization(path) is not None
    load = gptq.load if quantized else Qwen3.from_pretrained
    model = fast.prepare(load(path, asked.torch_dtype, device))
    tokenizer = ModelLoader(asked).load_tokenizer()
    longest = _longest(model, asked.max_model_len)
    config = EngineConfig(
        replace(asked, max_model_len=longest),
        config.cache_config,
        _with_budget(config.scheduler_config, longest),
    )
    scheduler, runner = _parts(model, config, device, enforce_eager)
    return LLMEngine(
        model,
        tokenizer,
        scheduler,
        runner,
        eos_token_ids=_checked_eos(path, tokenizer, model),
        max_model_len=longest,
        seed=asked.seed,
    )


def _checked_eos(path: Path, tokenizer: Any, model: Qwen3) -> tuple[int, ...]:
    """The tokens that end a text; all of them are the model's."""
    ids, vocabulary = eos_token_ids(path, tokenizer), model.config.vocab_size
    if any(not 0 <= i < vocabulary for i in ids):
        raise ValueError(
            f"eos_token_ids {ids} of {path} go beyond the vocabulary of {vocabulary} "
            "tokens"
        )
    return ids


def _longest(model: Qwen3, wanted: int | None) -> int:
    """Longest sequence: what the user wants, which the model has to support.

    As in vLLM, VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 in the environment lets them have more.
    """
    limit = model.config.max_model_len
    if wanted is not None and wanted > limit:
        beyond = (
            f"max_model_len is {wanted}, but the model was built for {limit} positions"
        )
        if os.environ.get(_ALLOW_LONG, "").strip().lower() not in ("1", "true"):
            raise ValueError(
                f"{beyond}; it never learned what lies beyond. To allow it all the "
                f"same, set the environment variable {_ALLOW_LONG}=1, as for vLLM"
            )
        _LOG.warning("%s; it never learned what lies beyond", beyond)
    return wanted or limit


def _with_budget(config: SchedulerConfig, longest: int) -> SchedulerConfig:
    """The same with `max_num_batched_tokens` set, so that every prompt can begin."""
    budget = config.max_num_batched_tokens
    if budget is None:
        budget = _STEP_TOKENS
        if not config.enable_chunked_prefill:
            budget = max(budget, longest)
    elif budget < longest and not config.enable_chunked_prefill:
        raise ValueError(
            f"max_num_batched_tokens is {budget}, but a prompt may have up to "
            f"max_model_len {longest} tokens: allow more, or cut prompts into pieces "
            "with enable_chunked_prefill"
        )
    return replace(config, max_num_batched_tokens=budget)


def _parts(
    model: Qwen3, config: EngineConfig, device: torch.device, enforce_eager: bool
) -> tuple[Scheduler, StepRunner]:
    """Scheduler and runner over one pool, and the features that were asked for."""
    cache, plan = config.cache_config, config.scheduler_config
    dtype, size = model.lm_head.weight.dtype, cache.block_size
    block_bytes = PagedKVCache.block_bytes(model.config, size, dtype)
    num_swap_blocks = _num_swap_blocks(config, block_bytes, device)
    num_blocks = cache.num_gpu_blocks_override
    if num_blocks is None:
        longest = -(-plan.max_model_len // size) * block_bytes
        needed = 0
        if device.type == "cuda":
            budget, rows = plan.max_num_batched_tokens, plan.max_num_seqs
            needed = gpu.step_bytes(model, budget, rows, plan.max_model_len)
        num_blocks = _pool_bytes(cache, longest, device, needed) // block_bytes
        if num_blocks < 1:
            raise ValueError(
                f"there is no memory for a KV cache: one block of {size} tokens takes "
                f"{block_bytes} bytes"
            )
    graphs = device.type == "cuda" and not enforce_eager and gpu.can_record()
    try:
        pool = PagedKVCache(
            model.config, num_blocks + graphs, size, dtype, device, num_swap_blocks
        )
        free = PrefixCache(num_blocks, size) if cache.enable_prefix_caching else None
        memory = BlockManager(num_blocks, size, free, num_swap_blocks)
    except (MemoryError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"there is no memory for {num_blocks} blocks of the KV cache on {device} "
            f"and {num_swap_blocks} to swap to, of {block_bytes} bytes each: set "
            "num_gpu_blocks_override or swap_space lower"
        ) from error
    chunked = plan.enable_chunked_prefill
    scheduler = Scheduler(
        plan,
        memory,
        share=chunk if chunked else whole,
        turns=decodes_first if chunked else as_they_came,
    )
    kernels = device.type == "cpu" or gpu.can_record()
    runner = Runner(model, pool, FlashContext if kernels else PagedContext)
    if graphs:  # the last block is spare: it belongs to no sequence
        most, longest = plan.max_num_seqs, plan.max_model_len
        runner = gpu.GraphRunner(runner, most, longest, spare=num_blocks)
    return scheduler, runner


def _num_swap_blocks(
    config: EngineConfig, block_bytes: int, device: torch.device
) -> int:
    """Blocks of CPU memory, if sequences are swapped out at all."""
    mode, space = config.scheduler_config.preemption_mode, config.cache_config
    swap = device.type == "cuda" if mode is None else mode == "swap"
    count = int(space.swap_space * _GIB) // block_bytes if swap else 0
    if mode == "swap" and not count:
        raise ValueError(
            f"preemption_mode is 'swap', but swap_space {space.swap_space} GiB hold no "
            f"block of {block_bytes} bytes"
        )
    return count


def _pool_bytes(
    config: CacheConfig, longest: int, device: torch.device, needed: int = 0
) -> int:
    """Bytes for the pool.

    On a GPU what `gpu_memory_utilization` leaves beside the weights and what a step
    needs, `needed`. On a CPU 1 GiB, or `longest`, one sequence of the full length, if
    that is more, but at most half of what is free: a CPU's memory is shared with
    everything else.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        room = int(total * config.gpu_memory_utilization) - (total - free) - needed
        if room <= 0:
            raise ValueError(
                f"gpu_memory_utilization {config.gpu_memory_utilization} of "
                f"{total / _GIB:.1f} GiB leaves nothing for the KV cache: "
                f"{(total - free) / _GIB:.1f} GiB are in use, and a step needs "
                f"{needed / _GIB:.1f} GiB"
            )
        return room
    return min(max(_GIB, longest), psutil.virtual_memory().available // 2)


class _Watchers:
    """Who is told of a request when a step has changed it, whichever thread stepped.

    Args:
        engine: that several threads share.
    """

    def __init__(self, engine: LLMEngine):
        self.engine = engine
        self.lock = threading.RLock()  # held by whoever queues requests, or steps
        # By request_id; with a lock that whoever waits for the request holds, because
        # Ctrl-C may keep them from saying goodbye.
        self.known: dict[str, tuple[_Watch, threading.Lock]] = {}

    def __len__(self) -> int:
        return len(self.known)

    def enqueue(
        self, requests: list[Request], watch: _Watch, here: threading.Lock
    ) -> list[RequestState]:
        """Queue requests, and let `watch` know when a step has changed one.

        Requests for which nobody waits any more go first: `here` is held by who does.
        """
        with self.lock:
            known = self.known.copy()  # a stream that is dropped changes it
            self.forget([name for name in known if not known[name][1].locked()])
            for request in requests:
                self.known[request.request_id] = watch, here
            return [self.engine.enqueue(request) for request in requests]

    def step(self) -> bool:
        """Compute a step, and let them know; whether it has changed anything."""
        with _usual_defaults(), fast.for_a_step(self.engine.model):
            changed = self.engine.compute()
        for state in changed:
            if state.request.request_id in self.known:
                watch, _ = self.known[state.request.request_id]
                watch(state)
        return bool(changed)

    def forget(self, request_ids: list[str]) -> None:
        """Whatever ends early leaves an empty engine behind."""
        with self.lock:  # or another thread's step would find the engine busy
            self.engine.abort_request(request_ids)
            for request_id in request_ids:
                self.known.pop(request_id, None)


class LLM:
    """Offline inference: load a model once, then generate, chat or stream.

    Several threads may use one LLM: their requests are served together.

    Args:
        model: directory of a checkpoint or a Hub name; None is the embedded model.
        tokenizer, tokenizer_mode, trust_remote_code, dtype, max_model_len, seed: see
            `ModelConfig`. A checkpoint's model code is never run, the model is our own;
            `trust_remote_code=True` lets its tokenizer's code run.
        quantization: None finds out by itself; "gptq" insists on a GPTQ checkpoint.
        device: "cpu", "cuda" or None, which picks CUDA when there is one.
        block_size, gpu_memory_utilization, swap_space, enable_prefix_caching,
            num_gpu_blocks_override: see `CacheConfig`.
        max_num_batched_tokens, max_num_seqs, enable_chunked_prefill, preemption_mode:
            see `SchedulerConfig`.
        enforce_eager: on a GPU, no CUDA graphs for decoding steps.
        vllm_options: others of vLLM's that say "off", as `tensor_parallel_size=1` does.

    None for any of them leaves it as usual, as vLLM does.

    Raises:
        NotImplementedError: an option that we don't have, by its name.
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
        num_gpu_blocks_override: int | None = CacheConfig.num_gpu_blocks_override,
        max_num_batched_tokens: int | None = SchedulerConfig.max_num_batched_tokens,
        max_num_seqs: int = SchedulerConfig.max_num_seqs,
        enable_chunked_prefill: bool = SchedulerConfig.enable_chunked_prefill,
        preemption_mode: str | None = SchedulerConfig.preemption_mode,
        enforce_eager: bool = False,
        **vllm_options: Any,
    ):
        check_vllm_options(vllm_options)
        _check_options(quantization, enforce_eager)
        self.model_config = _made(
            ModelConfig,
            model=str(EMBEDDED_MODEL if model is None else model),
            tokenizer=tokenizer,
            tokenizer_mode=tokenizer_mode,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            max_model_len=max_model_len,
            seed=seed,
        )
        cache_config = _made(
            CacheConfig,
            block_size=block_size,
            gpu_memory_utilization=gpu_memory_utilization,
            swap_space=swap_space,
            enable_prefix_caching=enable_prefix_caching,
            num_gpu_blocks_override=num_gpu_blocks_override,
        )
        scheduler_config = _made(
            SchedulerConfig,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            enable_chunked_prefill=enable_chunked_prefill,
            preemption_mode=preemption_mode,
        )
        config = EngineConfig(self.model_config, cache_config, scheduler_config)
        path = resolve_checkpoint(self.model_config.model)
        self._default_params = default_sampling_params(path)
        with _usual_defaults():
            self.llm_engine = make_engine(config, device, quantization, enforce_eager)
        self._watchers = _Watchers(self.llm_engine)

    def __reduce__(self) -> Any:
        """Refuse to be pickled: gigabytes of weights would go where nobody expects."""
        raise TypeError("an LLM can't be pickled or copied: make one in each process")

    @property
    def model(self) -> Qwen3:
        """The transformer."""
        return self.llm_engine.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.llm_engine.device

    def get_tokenizer(self) -> Any:
        """The tokenizer, of `transformers`."""
        return self.llm_engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What counts where none are given: the checkpoint's generation_config.json."""
        return copy.deepcopy(self._default_params)

    def generate(
        self,
        prompts: Prompt | list[Prompt],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., tqdm] = True,
        **vllm_options: Any,
    ) -> list[RequestOutput]:
        """Complete prompts; the outputs come in the order of the prompts.

        Args:
            prompts: one or a list of: a string, {"prompt": string},
                {"prompt_token_ids": ids}.
            sampling_params: one for all, or one for each; None is
                `get_default_sampling_params()`, with as many tokens of its max_tokens
                as fit.
            use_tqdm: show a progress bar if there are several prompts; or what makes
                one.
            vllm_options: others of vLLM's that say "off", as `lora_request=None` does.

        Raises:
            TypeError, ValueError: before anything is generated, for the first prompt
                that can't be served.
            NotImplementedError: an option that we don't have, by its name.
        """
        check_vllm_options(vllm_options, _CALL_OPTIONS)
        return self._run(self._requests(_as_list(prompts), sampling_params), use_tqdm)

    def chat(
        self,
        messages: list[dict[str, Any]] | list[list[dict[str, Any]]],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., tqdm] = True,
        **chat_options: Any,
    ) -> list[RequestOutput]:
        """Answer conversations, each a list of {"role": ..., "content": ...}.

        Args:
            messages: one conversation, or a list of several.
            sampling_params: as for `generate`.
            use_tqdm: likewise.
            chat_options: vLLM's chat_template, add_generation_prompt,
                continue_final_message, tools and chat_template_kwargs, see
                `InputProcessor.chat`; or others that say "off", as for `generate`.

        Raises:
            TypeError, ValueError, NotImplementedError: as `generate` and
                `InputProcessor.chat` raise.
        """
        others = chat_options.keys() & _CALL_OPTIONS
        off = {name: chat_options.pop(name) for name in sorted(others)}
        check_vllm_options(off, _CALL_OPTIONS)
        several = (
            isinstance(messages, list) and messages and isinstance(messages[0], list)
        )
        conversations = messages if several else [messages]
        prompts = [
            self.llm_engine.processor.chat(conversation, **chat_options)
            for conversation in conversations
        ]
        return self._run(self._requests(prompts, sampling_params), use_tqdm)

    def stream(
        self,
        prompt: Prompt | list[dict[str, Any]],
        params: SamplingParams | None = None,
        **chat_options: Any,
    ) -> Iterator[RequestOutput]:
        """Generate one prompt, or the answer to one conversation, token by token.

        Returns an iterator of growing outputs: one for each token, or for what several
        steps added if somebody else drove the engine meanwhile. Errors come from
        this call, before the first of them. The iterator may be dropped at any time.

        Args:
            prompt: see `generate`, or one conversation.
            params: how to answer; None is `get_default_sampling_params()`.
            chat_options: for a conversation, see `InputProcessor.chat`.

        Raises:
            TypeError: also for an option of a conversation beside another prompt.
            ValueError: also for best_of > n: which completions are the best is known
                only at the end, and what was shown can't be taken back.
        """
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            prompt = self.llm_engine.processor.chat(prompt, **chat_options)
        elif chat_options:
            names = ", ".join(chat_options)
            raise TypeError(f"{names}: only for a conversation, got {prompt!r}")
        (request,) = self._requests([prompt], params)
        asked = request.sampling_params
        if asked.best_of > asked.n:
            raise ValueError(f"can't stream best_of ({asked.best_of}) > n ({asked.n})")
        return self._stream(request)

    def _stream(self, request: Request) -> Iterator[RequestOutput]:
        """The outputs of a request, one for each step that changed it.

        If another stream or `generate` drives the engine, the next has all said since.
        """
        watchers, unread = self._watchers, None

        def watch(state: RequestState) -> None:
            nonlocal unread
            unread = state

        here = threading.Lock()
        with here:
            (state,) = watchers.enqueue([request], watch, here)
            finished = False
            try:
                while not finished:
                    with watchers.lock:
                        if unread is None and not state.finished:
                            watchers.step()
                        if unread is None and not state.finished:
                            continue
                        unread, output = None, state.output()
                    finished = output.finished
                    yield output
            finally:  # also when the iterator is dropped, or Ctrl-C comes
                watchers.forget([request.request_id])

    def _requests(
        self,
        prompts: list[Prompt],
        sampling_params: SamplingParams | list[SamplingParams] | None,
    ) -> list[Request]:
        """Check all first: a bad last prompt must not cost the work on the others."""
        check = self.llm_engine.check
        if isinstance(sampling_params, list | tuple):
            if len(sampling_params) != len(prompts):
                raise ValueError(
                    f"there are {len(prompts)} prompts, but {len(sampling_params)} "
                    "sampling_params"
                )
            params = list(sampling_params)
        elif sampling_params is not None:
            params = [sampling_params] * len(prompts)
        else:
            params = [self.get_default_sampling_params()] * len(prompts)
            check = self._check_default
        return [
            check(generate_request_id(), prompt, each)
            for prompt, each in zip(prompts, params, strict=True)
        ]

    def _check_default(
        self, request_id: str, prompt: Prompt, params: SamplingParams
    ) -> Request:
        """A request whose max_tokens nobody chose: if they don't fit, what does."""
        try:
            return self.llm_engine.check(request_id, prompt, params)
        except ValueError:  # for another reason, perhaps: then again
            params = replace(params, max_tokens=None)
        return self.llm_engine.check(request_id, prompt, params)

    def _run(
        self, requests: list[Request], use_tqdm: bool | Callable[..., tqdm]
    ) -> list[RequestOutput]:
        """Serve requests to the end, all at once; outputs in their order."""
        watchers, ended = self._watchers, []

        def watch(state: RequestState) -> None:
            if state.finished:
                ended.append(state)

        ids = [request.request_id for request in requests]
        tokens, began = 0, time.perf_counter()
        # Left out unless it is True: any value given here would overrule TQDM_DISABLE.
        quiet = {} if use_tqdm and len(requests) > 1 else {"disable": True}
        make, here = use_tqdm if callable(use_tqdm) else tqdm, threading.Lock()
        bar = make(total=len(requests), desc="prompts", **quiet)
        with here, bar:
            try:
                states = watchers.enqueue(requests, watch, here)
                left = dict(zip(ids, states, strict=True))
                while left:
                    with watchers.lock:  # another thread's step may have ended some
                        if not ended and not watchers.step():
                            # Nothing changed: some were perhaps aborted from elsewhere.
                            ended += [each for each in left.values() if each.finished]
                        ready, ended[:] = list(ended), []
                    for state in ready:
                        del left[state.request.request_id]
                        tokens += sum(len(each.token_ids) for each in state.builders)
                        speed = tokens / (time.perf_counter() - began)
                        bar.set_postfix_str(f"{speed:.0f} tokens/s", refresh=False)
                        bar.update()
            finally:
                watchers.forget(ids)
        return [state.output() for state in states]


def _made(config: type[_Config], **given: Any) -> _Config:
    """A config of what is given; for None it has its own default."""
    return config(**{name: each for name, each in given.items() if each is not None})


def _check_options(quantization: str | None, enforce_eager: bool) -> None:
    """Refuse what no config knows of."""
    if quantization not in (None, "gptq"):
        raise NotImplementedError(
            f"quantization={quantization!r} is not supported, only 'gptq'"
        )
    if type(enforce_eager) is not bool:
        raise TypeError(f"enforce_eager must be True or False, got {enforce_eager!r}")


@contextmanager
def _usual_defaults() -> Iterator[None]:
    """Undo `torch.set_default_device` and `set_default_dtype` for a while.

    The parts name their devices and the model's dtype; other numbers are float32.
    """
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    usual = torch.device("cpu")
    with nullcontext() if device == usual else usual:
        if dtype == torch.float32:
            yield
            return
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def _as_list(prompts: Prompt | list[Prompt]) -> list[Prompt]:
    """A lone prompt counts as a list of one; a list of ints is one prompt of ids."""
    if isinstance(prompts, list | tuple):
        if prompts and all(type(item) is int for item in prompts):
            return [list(prompts)]
        return list(prompts)
    return [prompts]
