"""The engine that serves many requests at once, and vLLM's `LLM` on top of it.

A step asks the scheduler what to compute, lets the runner compute it, samples a token
for every sequence that has caught up, and hands the tokens to their requests. Requests
come and go between any two steps.
"""

import copy
import itertools
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from tqdm.auto import tqdm

from folovllm_lite.block_manager import BlockManager
from folovllm_lite.config import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
)
from folovllm_lite.generation import RequestState
from folovllm_lite.model_loader import (
    EMBEDDED_MODEL,
    ModelLoader,
    eos_token_ids,
    resolve_checkpoint,
)
from folovllm_lite.outputs import RequestOutput
from folovllm_lite.paged import PagedKVCache
from folovllm_lite.processor import InputProcessor, TokenTexts
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.request import Request, SequenceStatus
from folovllm_lite.runner import Runner
from folovllm_lite.sampler import sample
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import Scheduler, Step
from folovllm_lite.utils import generate_request_id, get_device

Prompt = str | dict | list[int]

_GIB = 1024**3
# Tokens of a step unless told otherwise: enough to keep the machine's arithmetic busy.
_STEP_TOKENS = 2048
_SCORED_ROWS = 128


class LLMEngine:
    """Serves requests step by step.

    Args:
        model: directory of a checkpoint or a Hub name; None is the embedded model.
        tokenizer, tokenizer_mode, trust_remote_code, dtype, max_model_len, seed: see
            `ModelConfig`. Code of a checkpoint is never run: the model is our own.
        quantization: not before M7.
        device: "cpu", "cuda" or None, which picks CUDA when there is one.
        block_size, gpu_memory_utilization, swap_space, enable_prefix_caching,
            num_gpu_blocks_override: see `CacheConfig`.
        max_num_batched_tokens, max_num_seqs, enable_chunked_prefill, preemption_mode:
            see `SchedulerConfig`.

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
        num_gpu_blocks_override: int | None = CacheConfig.num_gpu_blocks_override,
        max_num_batched_tokens: int | None = SchedulerConfig.max_num_batched_tokens,
        max_num_seqs: int = SchedulerConfig.max_num_seqs,
        enable_chunked_prefill: bool = SchedulerConfig.enable_chunked_prefill,
        preemption_mode: str | None = SchedulerConfig.preemption_mode,
    ):
        if quantization is not None:
            raise NotImplementedError(
                f"quantization={quantization!r} comes with M7 (GPTQ)"
            )
        name = str(EMBEDDED_MODEL if model is None else model)
        self.model_config = ModelConfig(
            name,
            tokenizer,
            tokenizer_mode,
            trust_remote_code,
            dtype,
            max_model_len,
            seed,
        )
        cache_config = CacheConfig(
            block_size,
            gpu_memory_utilization,
            swap_space,
            enable_prefix_caching,
            num_gpu_blocks_override,
        )
        scheduler_config = SchedulerConfig(
            max_num_batched_tokens,
            max_num_seqs,
            enable_chunked_prefill=enable_chunked_prefill,
            preemption_mode=preemption_mode,
        )
        EngineConfig(self.model_config, cache_config, scheduler_config)
        self.device = get_device(device)
        path = resolve_checkpoint(name)
        self.model = Qwen3.from_pretrained(
            path, self.model_config.torch_dtype, self.device
        )
        self.tokenizer = ModelLoader(self.model_config).load_tokenizer()
        self.eos_token_ids = eos_token_ids(path, self.tokenizer)
        vocabulary = self.model.config.vocab_size
        if any(not 0 <= i < vocabulary for i in self.eos_token_ids):
            raise ValueError(
                f"eos_token_ids {self.eos_token_ids} of {path} go beyond the "
                f"vocabulary of {vocabulary} tokens"
            )
        self.max_model_len = self._limit(max_model_len)
        self.processor = InputProcessor(
            self.tokenizer, self.model.config.vocab_size, self.max_model_len
        )
        self._texts = TokenTexts(self.tokenizer)
        # Requests without a seed draw from here, so that a new engine repeats itself
        # and nobody's global generator is touched.
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._build(cache_config, scheduler_config)
        self._states: dict[str, RequestState] = {}
        self._stepping = False
        self._to_abort: list[tuple[str, str | None]] = []
        self._arrivals = itertools.count()
        self._counts = {"steps": 0, "tokens": 0, "preemptions": 0}

    def _limit(self, wanted: int | None) -> int:
        """Longest sequence: what the user wants, which the model has to support."""
        limit = self.model.config.max_position_embeddings
        if wanted is not None and wanted > limit:
            raise ValueError(
                f"max_model_len is {wanted}, but the model was built for {limit} "
                "positions"
            )
        return wanted or limit

    def _build(
        self, cache_config: CacheConfig, scheduler_config: SchedulerConfig
    ) -> None:
        """Make pool, block manager, scheduler and runner fit each other."""
        dtype = self.model.lm_head.weight.dtype
        size = cache_config.block_size
        bytes_each = PagedKVCache.block_bytes(self.model.config, size, dtype)
        mode = scheduler_config.preemption_mode
        swap = self.device.type == "cuda" if mode is None else mode == "swap"
        room = int(cache_config.swap_space * _GIB) if swap else 0
        num_swap_blocks = room // bytes_each
        if mode == "swap" and not num_swap_blocks:
            raise ValueError(
                f"preemption_mode is 'swap', but swap_space {cache_config.swap_space} "
                f"GiB hold no block of {bytes_each} bytes"
            )
        num_blocks = cache_config.num_gpu_blocks_override
        if num_blocks is None:
            longest = -(-self.max_model_len // size) * bytes_each
            num_blocks = self._memory(cache_config, longest) // bytes_each
            if num_blocks < 1:
                raise ValueError(
                    f"there is no memory for a KV cache: one block of {size} tokens "
                    f"takes {bytes_each} bytes"
                )
        budget = scheduler_config.max_num_batched_tokens
        if budget is None:
            budget = _STEP_TOKENS
            if not scheduler_config.enable_chunked_prefill:
                budget = max(budget, self.max_model_len)
        elif (
            budget < self.max_model_len and not scheduler_config.enable_chunked_prefill
        ):
            raise ValueError(
                f"max_num_batched_tokens is {budget}, but a prompt may have up to "
                f"max_model_len {self.max_model_len} tokens: allow more, or cut "
                "prompts into pieces with enable_chunked_prefill"
            )
        self.cache_config = cache_config
        self.scheduler_config = replace(
            scheduler_config,
            max_num_batched_tokens=budget,
            max_model_len=self.max_model_len,
        )
        self.blocks = BlockManager(
            num_blocks, size, cache_config.enable_prefix_caching, num_swap_blocks
        )
        self.scheduler = Scheduler(
            self.scheduler_config, self.blocks, swap=num_swap_blocks > 0
        )
        cache = PagedKVCache(
            self.model.config, num_blocks, size, dtype, self.device, num_swap_blocks
        )
        self.runner = Runner(self.model, cache)

    def _memory(self, cache_config: CacheConfig, longest: int) -> int:
        """Bytes for the pool.

        On a GPU what `gpu_memory_utilization` leaves beside the weights. On a CPU 1
        GiB, or `longest`, one sequence of the full length, if that is more, but at
        most half of what is free: a CPU's memory is shared with everything else.
        """
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            room = int(total * cache_config.gpu_memory_utilization) - (total - free)
            if room <= 0:
                raise ValueError(
                    f"gpu_memory_utilization {cache_config.gpu_memory_utilization} of "
                    f"{total / _GIB:.1f} GiB leaves nothing for the KV cache: "
                    f"{(total - free) / _GIB:.1f} GiB are in use"
                )
            return room
        return min(max(_GIB, longest), psutil.virtual_memory().available // 2)

    # ----- requests

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        priority: int = 0,
    ) -> None:
        """Queue a request; it may be added while others run.

        Args:
            request_id: names it until it is finished.
            prompt: a string, {"prompt": string}, {"prompt_token_ids": ids}, or ids. A
                dict may hold a "cache_salt": only prompts with the same salt share
                blocks by prefix caching.
            params: how to answer; None is `SamplingParams()`.
            priority: lower goes first; equal ones in the order of arrival.

        Raises:
            TypeError, ValueError: with the values, for what can't be served; also if
                it could never fit. The engine is as it was before.
        """
        if not isinstance(request_id, str) or not request_id:
            raise TypeError(f"request_id must be a string, got {request_id!r}")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"priority must be an int, got {priority!r}")
        if request_id in self._states:
            raise ValueError(f"request {request_id!r} is running already")
        params = SamplingParams() if params is None else params
        self.enqueue(self.check(request_id, prompt, params), priority)

    def check(self, request_id: str, prompt: Prompt, params: SamplingParams) -> Request:
        """Make a request, or raise what `add_request` raises; nothing is queued."""
        text, ids = self.processor.process(prompt, params)
        salt = prompt.get("cache_salt") if isinstance(prompt, dict) else None
        if params.best_of > self.scheduler_config.max_num_seqs:
            raise ValueError(
                f"best_of is {params.best_of}, but max_num_seqs is "
                f"{self.scheduler_config.max_num_seqs}"
            )
        # The last token is never run, so nothing of it is stored.
        length = len(ids) + (params.max_tokens or 1) - 1
        needed, there = self.blocks.blocks_for(length), self.blocks.num_blocks
        if needed > there:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and max_tokens is "
                f"{params.max_tokens}: {needed} blocks of {self.blocks.block_size} "
                f"tokens, but the KV cache has {there}"
            )
        # A copy: what the caller does with theirs later changes nothing here.
        return Request(request_id, text, ids, copy.deepcopy(params), cache_salt=salt)

    def enqueue(self, request: Request, priority: int = 0) -> RequestState:
        """Queue a request of `check`; what is returned changes as it goes on."""
        longest = self.blocks.num_blocks * self.blocks.block_size + 1
        state = RequestState(
            request,
            self._texts,
            self.eos_token_ids,
            min(self.max_model_len, longest),
            self.device,
        )
        arrival = next(self._arrivals)
        for index, seq in enumerate(state.sequences):
            seq.order = (priority, arrival, index)
        # The prompt is computed once: the others join when it is.
        first = state.sequences[0]
        first.width = len(state.sequences)
        self._states[request.request_id] = state
        self.scheduler.add(first)
        return state

    def abort_request(self, request_id: str, reason: str | None = None) -> None:
        """Drop a request and free what it holds; an unknown one is fine.

        During a step (from a signal, or when Python drops a stream) it only takes note,
        and the next step begins with it: a step counts on what it has begun with.

        Args:
            request_id: of the request.
            reason: what its outputs say as `stop_reason`.
        """
        if self._stepping:
            self._to_abort.append((request_id, reason))
            return
        self._abort_now(request_id, reason)

    def _abort_now(self, request_id: str, reason: str | None) -> None:
        state = self._states.pop(request_id, None)
        if state is not None:
            state.abort(reason)
            for seq in state.sequences:
                self.scheduler.remove(seq)

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._states)

    # ----- steps

    def step(self) -> list[RequestOutput]:
        """Compute one step; the outputs, so far, of the requests that it changed.

        A request whose logits can't be sampled, or for which memory runs out, ends with
        finish_reason "abort" and the cause as stop_reason; the others go on. Any other
        error aborts the requests of the step, frees their blocks, and is raised. Those
        that the step was swapping out are aborted too: nobody knows if they arrived.
        """
        return [state.output() for state in self.advance()]

    def advance(self) -> list[RequestState]:
        """`step` without the outputs, which cost time as a request grows long."""
        while self._to_abort:
            self.abort_request(*self._to_abort.pop())
        if self._stepping:
            raise RuntimeError("a step can't begin inside a step")
        self._stepping = True
        try:
            step = self.scheduler.schedule()
            changed = self._compute(step)
        except BaseException as error:
            # Bookkeeping was cut short, by Ctrl-C for example: no count is sure now.
            self._stepping = False
            self._reset(f"a step was interrupted: {type(error).__name__}")
            raise
        self._stepping = False
        self._counts["preemptions"] += step.preempted
        if isinstance(changed, BaseException):
            raise changed
        return changed

    @torch.inference_mode()
    def _compute(self, step: Step) -> list[RequestState] | BaseException:
        """Run a step and sample; an error of the model is returned, not raised."""
        if not step.work:
            return []
        # If the step fails, what it was to move to CPU memory may not be there either.
        seqs = [*(work.seq for work in step.work), *step.swapped]
        concerned = {seq.request_id: self._states[seq.request_id] for seq in seqs}
        try:
            hidden = self.runner.run(step)
        except BaseException as error:
            self.scheduler.undo(step)
            for request_id in concerned:
                self._abort_now(request_id, str(error) or type(error).__name__)
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
            return list(concerned.values()) if out_of_memory else error
        self.scheduler.advance(step)
        self._counts["steps"] += 1
        self._counts["tokens"] += step.num_tokens
        return self._sample(step, hidden)

    def _reset(self, reason: str) -> None:
        """Abort everything and begin with an empty pool."""
        for state in self._states.values():
            state.abort(reason)
        self._states.clear()
        self._to_abort.clear()
        old = self.blocks
        self.blocks = BlockManager(
            old.num_blocks,
            old.block_size,
            old.enable_prefix_caching,
            old.num_swap_blocks,
        )
        swap = self.scheduler.swap
        self.scheduler = Scheduler(self.scheduler_config, self.blocks, swap)

    def _sample(self, step: Step, hidden: Tensor) -> list[RequestState]:
        """Choose a token for every sequence whose tokens are all computed."""
        places: list[int] = []  # rows of `hidden`
        targets: list[tuple[RequestState, int]] = []  # and whose they are
        first = 0
        for work in step.work:
            state = self._states[work.seq.request_id]
            if state.prompt_logprobs is not None:
                self._score(state, work.start, hidden[first : first + work.count])
            first += work.count
            if work.end < work.seq.get_len():
                continue  # a chunk that is not the last
            if work.seq.width > 1:
                self._fork(state)
                targets += [(state, i) for i in range(len(state.sequences))]
                places += [first - 1] * len(state.sequences)
            else:
                targets.append((state, work.seq.order[-1]))
                places.append(first - 1)
        if not targets:
            return []
        if places != list(range(len(hidden))):
            hidden = hidden[torch.tensor(places, device=hidden.device)]
        return self._take(self.model.logits(hidden), targets)

    def _take(
        self, logits: Tensor, targets: list[tuple[RequestState, int]]
    ) -> list[RequestState]:
        """Sample logits [N, V] and hand row i to the i-th (request, completion)."""
        rows = [state.rows[index] for state, index in targets]
        try:
            chosen = sample(logits, rows, self._generator)
        except ValueError as error:
            return self._drop_bad_rows(logits, targets, error)
        token_ids, logprobs = chosen.token_ids.tolist(), chosen.logprobs.tolist()
        changed: dict[str, RequestState] = {}
        for row, (state, index) in enumerate(targets):
            state.take(index, token_ids[row], logprobs[row], chosen, row)
            changed[state.request.request_id] = state
            if state.builders[index].finish_reason:
                self.scheduler.remove(state.sequences[index])
                if state.finished:
                    del self._states[state.request.request_id]
        return list(changed.values())

    def _drop_bad_rows(
        self,
        logits: Tensor,
        targets: list[tuple[RequestState, int]],
        error: ValueError,
    ) -> list[RequestState]:
        """Abort the requests whose logits hold NaN or nothing; sample the others."""
        bad: dict[str, RequestState] = {}
        largest = logits.amax(-1).tolist()
        for (state, _), best in zip(targets, largest, strict=True):
            if not math.isfinite(best):
                bad[state.request.request_id] = state
                reason = f"the logits can't be sampled: their maximum is {best}"
                for seq in state.sequences:  # nobody may hit the blocks of such a row
                    self.blocks.withdraw(seq)
                self._abort_now(state.request.request_id, reason)
        if not bad:
            raise error
        good = [
            row
            for row, (state, _) in enumerate(targets)
            if state.request.request_id not in bad
        ]
        left = [targets[row] for row in good]
        taken = self._take(logits[good], left) if left else []
        return [*bad.values(), *taken]

    def _fork(self, state: RequestState) -> None:
        """The prompt is computed: the other completions begin, on the same blocks."""
        parent, *children = state.sequences
        parent.width = 1
        for child in children:
            child.num_computed = parent.num_computed
            child.move_to(SequenceStatus.RUNNING)
            self.scheduler.fork(parent, child)

    def _score(self, state: RequestState, start: int, hidden: Tensor) -> None:
        """Report logprobs of the prompt tokens that rows from `start` on predict."""
        done = len(state.prompt_logprobs) - 1  # rows that were scored before
        last = len(state.request.prompt_token_ids) - 1  # the output's, no longer ours
        rows = hidden[max(0, done - start) : max(0, last - start)]
        for part in rows.split(_SCORED_ROWS):  # logits of all would fill the memory
            state.score_prompt(self.model.logits(part))

    def stats(self) -> dict[str, float]:
        """Counters since the start, and the state of the queues and of the pool."""
        running = self.scheduler.running
        held = self.blocks.num_blocks - self.blocks.num_free
        asked, found = self.blocks.tokens_asked, self.blocks.tokens_found
        return {
            **self._counts,
            "running": len(running),
            "waiting": len(self.scheduler.waiting),
            "blocks": self.blocks.num_blocks,
            "blocks_held": held,
            "tokens_held": self.blocks.tokens_held(),
            "prefix_hit_rate": found / asked if asked else 0.0,
        }


class LLM:
    """Offline inference: load a model once, then generate, chat or stream.

    Args:
        model: directory of a checkpoint or a Hub name; None is the embedded model.
        options: see `LLMEngine`, which also says what is raised.
    """

    def __init__(self, model: str | Path | None = None, **options: Any):
        self.llm_engine = LLMEngine(model, **options)
        self._streams: dict[str, deque[RequestOutput]] = {}

    @property
    def model(self) -> Qwen3:
        """The transformer."""
        return self.llm_engine.model

    @property
    def model_config(self) -> ModelConfig:
        """What was asked for."""
        return self.llm_engine.model_config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.llm_engine.device

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and output together."""
        return self.llm_engine.max_model_len

    def get_tokenizer(self) -> Any:
        """The tokenizer, of `transformers`."""
        return self.llm_engine.tokenizer

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
        prompts = [
            self.llm_engine.processor.chat(conversation)
            for conversation in conversations
        ]
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
            prompt = self.llm_engine.processor.chat(prompt)
        (request,) = self._requests([prompt], params)
        asked = request.sampling_params
        if asked.best_of > asked.n:
            raise ValueError(f"can't stream best_of ({asked.best_of}) > n ({asked.n})")
        return self._stream(request)

    def _stream(self, request: Request) -> Iterator[RequestOutput]:
        """The outputs of a request, one for each step that changed it.

        While nobody asks, another stream or `generate` may drive the engine, and this
        request goes on with it: what it says meanwhile waits in a queue.
        """
        engine, request_id = self.llm_engine, request.request_id
        queue = self._streams[request_id] = deque()
        state, last = engine.enqueue(request), None
        try:
            while queue or not state.finished:
                while queue:
                    last = queue.popleft()
                    yield last
                if not state.finished:
                    self._advance()
            if last is None or not last.finished:  # aborted from elsewhere
                yield state.output()
        finally:  # also when the iterator is dropped, or Ctrl-C comes
            engine.abort_request(request_id)
            del self._streams[request_id]

    def _advance(self) -> list[RequestState]:
        """One step; what streams wait for is put into their queues."""
        changed = self.llm_engine.advance()
        for state in changed:
            if state.request.request_id in self._streams:
                self._streams[state.request.request_id].append(state.output())
        return changed

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
        return [
            self.llm_engine.check(generate_request_id(), prompt, each)
            for prompt, each in zip(prompts, params, strict=True)
        ]

    def _run(self, requests: list[Request], use_tqdm: bool) -> list[RequestOutput]:
        """Serve requests to the end, all at once; outputs in their order."""
        engine = self.llm_engine
        states: list[RequestState] = []
        open_ids: set[str] = set()
        tokens, began = 0, time.perf_counter()
        # Left out unless it is True: any value given here would overrule TQDM_DISABLE.
        quiet = {} if use_tqdm and len(requests) > 1 else {"disable": True}
        try:
            with tqdm(total=len(requests), desc="prompts", **quiet) as bar:
                for request in requests:
                    states.append(engine.enqueue(request))
                    open_ids.add(request.request_id)
                while open_ids:
                    # Nothing changed: what is left was aborted from elsewhere.
                    for state in self._advance() or states:
                        if (
                            not state.finished
                            or state.request.request_id not in open_ids
                        ):
                            continue
                        open_ids.remove(state.request.request_id)
                        tokens += sum(
                            len(builder.token_ids) for builder in state.builders
                        )
                        speed = tokens / (time.perf_counter() - began)
                        bar.set_postfix_str(f"{speed:.0f} tokens/s", refresh=False)
                        bar.update()
        finally:  # whatever ends this early leaves an empty engine behind
            for request_id in open_ids:
                engine.abort_request(request_id)
        return [state.output() for state in states]


def _as_list(prompts: Prompt | list[Prompt]) -> list[Prompt]:
    """A lone prompt counts as a list of one; a list of ints is one prompt of ids."""
    if isinstance(prompts, list | tuple):
        if prompts and all(type(item) is int for item in prompts):
            return [list(prompts)]
        return list(prompts)
    return [prompts]
