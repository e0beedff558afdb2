"""The engine that serves many requests at once, step by step.

A step asks the scheduler what to compute, lets the runner compute it, samples a token
for every sequence that has caught up, and hands the tokens to their requests. Requests
come and go between any two steps. Scheduler and runner come by argument: this module
knows neither blocks nor how keys and values are kept.
"""

import itertools
import logging
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from folovllm_lite.generation import RequestState
from folovllm_lite.outputs import RequestOutput
from folovllm_lite.processor import InputProcessor, TokenTexts
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.request import Request, SequenceStatus
from folovllm_lite.sampler import sample
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import Scheduler, Step
from folovllm_lite.utils import tensor_on

Prompt = str | dict | list[int]

_LOG = logging.getLogger(__name__)
_SCORED_ROWS = 128


def _room(scheduler: Scheduler) -> tuple[int, str]:
    """Tokens that a sequence can keep, and what has no room for more."""
    room, budget = scheduler.memory.capacity, scheduler.config.max_num_batched_tokens
    # Uncut, a preempted sequence needs one step for all its tokens: with more of them
    # than the budget it would wait for ever, and so would everybody behind it.
    if budget < room and not scheduler.share(budget + 1, budget):
        return budget, "a step"
    return room, "the KV cache"


class StepRunner(Protocol):
    """What the engine asks of whoever computes a step."""

    def run(self, step: Step) -> Tensor:
        """Hidden states [T, E] of the step's tokens, packed in the order of its work.

        Blocks are moved first. An error leaves open what of the step was computed.
        """
        ...


class LLMEngine:
    """Serves requests step by step.

    Args:
        model: for the logits; the runner's.
        tokenizer: of `transformers`.
        scheduler: with its memory.
        runner: computes a step.
        eos_token_ids: tokens that end a text.
        max_model_len: most tokens of a sequence; None is the model's own limit.
        seed: of the engine's own generator, for requests that have no seed.
    """

    def __init__(
        self,
        model: Qwen3,
        tokenizer: Any,
        scheduler: Scheduler,
        runner: StepRunner,
        *,
        eos_token_ids: tuple[int, ...] = (),
        max_model_len: int | None = None,
        seed: int = 0,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.scheduler, self.runner = scheduler, runner
        self.eos_token_ids = eos_token_ids
        self.max_model_len = max_model_len or model.config.max_model_len
        self.device = model.lm_head.weight.device
        self.processor = InputProcessor(
            tokenizer, model.config.vocab_size, self.max_model_len
        )
        self._texts = TokenTexts(tokenizer)
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._states: dict[str, RequestState] = {}
        self._running = threading.Lock()  # held by a step
        self._torn = False  # something was cut short that can't be done again
        self._to_abort: list[tuple[str, str | None]] = []
        self._arrivals = itertools.count()
        self._counts = {"steps": 0, "tokens": 0, "preemptions": 0}

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
                dict may hold a "cache_salt": only equal ones share cached prefixes.
            params: how to answer; None is `SamplingParams()`.
            priority: lower goes first; equal ones in the order of arrival.

        Raises:
            TypeError, ValueError: for what can't be served; nothing has changed then.
        """
        if not isinstance(request_id, str) or not request_id:
            raise TypeError(f"request_id must be a string, got {request_id!r}")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"priority must be an int, got {priority!r}")
        self._settle()
        if request_id in self._states:
            raise ValueError(f"request {request_id!r} is running already")
        params = SamplingParams() if params is None else params
        self.enqueue(self.check(request_id, prompt, params), priority)

    def check(self, request_id: str, prompt: Prompt, params: SamplingParams) -> Request:
        """Make a request, or raise what `add_request` raises; nothing is queued."""
        if isinstance(params, SamplingParams):
            # A copy, checked anew: its owner may have changed it, or may do so later.
            params = replace(params)
        text, ids = self.processor.process(prompt, params)
        salt = prompt.get("cache_salt") if isinstance(prompt, dict) else None
        most = self.scheduler.config.max_num_seqs
        if params.best_of > most:
            raise ValueError(f"best_of is {params.best_of}, but max_num_seqs is {most}")
        # The last token is never run, so nothing of it is stored.
        length = len(ids) + (params.max_tokens or 1) - 1
        room, whose = _room(self.scheduler)
        if length > room:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and max_tokens is "
                f"{params.max_tokens}: {length} tokens to keep, but {whose} has "
                f"room for {room}"
            )
        return Request(request_id, text, ids, params, cache_salt=salt)

    def enqueue(self, request: Request, priority: int = 0) -> RequestState:
        """Queue a request of `check`; what is returned changes as it goes on."""
        longest = min(self.max_model_len, _room(self.scheduler)[0] + 1)
        state = RequestState(
            request, self._texts, self.eos_token_ids, longest, self.device
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

    def abort_request(
        self, request_id: str | Iterable[str], reason: str | None = None
    ) -> None:
        """Drop requests and free what they hold; an unknown one is fine.

        During a step (from a signal, or when Python drops a stream) it only takes note,
        and the next step begins with it. `reason` is their outputs' `stop_reason`.
        """
        several = [request_id] if isinstance(request_id, str) else request_id
        # Noted first: if Ctrl-C comes in between, the next step goes on with it.
        self._to_abort += [(each, reason) for each in several]
        self._settle()

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything to do."""
        self._settle()
        return bool(self._states)

    def _settle(self) -> None:
        """Drop what is to be aborted, or was torn, unless a step is running."""
        if (self._to_abort or self._torn) and not self._running.locked():
            with self._running:
                self._drop_noted()

    def _drop_noted(self) -> None:
        if self._torn:
            self.clear("something was interrupted, and what followed from it too")
        while self._to_abort:
            self._torn = True  # half of a release, done again, counts a block twice
            self._drop(*self._to_abort.pop())
            self._torn = False

    def _drop(self, request_id: str, reason: str | None) -> None:
        state = self._states.get(request_id)
        if state is not None:
            state.abort(reason)
            for seq in state.sequences:
                self.scheduler.remove(seq)
            del self._states[request_id]

    def _give_up(
        self, state: RequestState, error: BaseException
    ) -> dict[str, RequestState]:
        """Drop a request for an error, and say so; nobody may hit its blocks."""
        request_id = state.request.request_id
        reason = str(error) or type(error).__name__
        _LOG.warning("request %s was aborted: %s", request_id, reason)
        for seq in state.sequences:
            self.scheduler.memory.withdraw(seq)
        self._drop(request_id, reason)
        return {request_id: state}

    def step(self) -> list[RequestOutput]:
        """Compute one step; the outputs, so far, of the requests that it changed.

        A request that can't be sampled, or for which memory runs out, ends with
        finish_reason "abort" and the cause as stop_reason; the others go on. Any other
        error of the model aborts the requests of the step, and is raised.
        """
        return [state.output() for state in self.compute()]

    def compute(self) -> list[RequestState]:
        """Compute one step: the requests that changed. `step()` makes their outputs."""
        if self._running.locked():
            raise RuntimeError("a step can't begin while another one is running")
        # Not `torch.inference_mode()`: that is Python, and Ctrl-C in its last line
        # would leave the mode on for good. These two are C: they always end.
        with self._running, torch._C._InferenceMode(True):
            step = None  # known, while the books say what the memory holds
            changed: list[RequestState] = []
            try:
                self._drop_noted()  # aborted ones; everybody, if a step was torn
                self._torn = True  # until the end, or until an error is dealt with
                step = self.scheduler.schedule()
                self._counts["preemptions"] += len(step.preempted)
                if step.work:
                    hidden = self.runner.run(step)
                    done, step = step, None
                    self.scheduler.advance(done)
                    self._counts["steps"] += 1
                    self._counts["tokens"] += done.num_tokens
                    changed = self._sample(done, hidden)
            except BaseException as error:
                if step is None:  # bookkeeping was cut short, by Ctrl-C for example
                    self.clear(f"a step was interrupted: {type(error).__name__}")
                    raise  # nothing is torn now: `clear` ends with `_torn = False`
                changed = self._lose(step, error)
                self._torn = False  # that is dealt with: all others go on
                if not isinstance(error, torch.OutOfMemoryError):
                    raise
            self._torn = False
            return changed

    def _lose(self, step: Step, error: BaseException) -> list[RequestState]:
        """Drop the requests of a step that failed in the model."""
        seqs = [work.seq for work in step.work.values()]
        # What was to be moved to CPU memory may not have arrived there.
        seqs += [seq for seq in step.preempted if seq.status is SequenceStatus.SWAPPED]
        lost = {seq.request_id: self._states[seq.request_id] for seq in seqs}
        for state in lost.values():
            self._give_up(state, error)
        return list(lost.values())

    def clear(self, reason: str) -> None:
        """Abort everything, and begin with an empty memory."""
        self._torn = True  # until all of it is done
        for state in self._states.values():
            state.abort(reason)
        self._states, self._to_abort = {}, []
        self.scheduler.clear()
        self._torn = False

    def _sample(self, step: Step, hidden: Tensor) -> list[RequestState]:
        """Choose a token for every sequence whose tokens are all computed."""
        places: list[int] = []  # rows of `hidden`
        targets: list[tuple[RequestState, int]] = []  # and whose they are
        first = 0
        for work in step.work.values():
            seq, state = work.seq, self._states[work.seq.request_id]
            if state.prompt_logprobs is not None:
                self._score(state, work.start, hidden[first : first + work.count])
            first += work.count
            if work.end < seq.get_len():
                continue  # a chunk that is not the last
            completions = [state.sequences.index(seq)]
            if seq.width > 1:
                self._fork(state)
                completions = range(len(state.sequences))
            targets += [(state, i) for i in completions]
            places += [first - 1] * len(completions)
        if not targets:
            return []
        if places != list(range(len(hidden))):  # if all rows are sampled, no copy
            hidden = hidden[tensor_on(places, hidden.device)]
        return list(self._take(self.model.logits(hidden), targets).values())

    def _take(
        self, logits: Tensor, targets: list[tuple[RequestState, int]]
    ) -> dict[str, RequestState]:
        """Sample logits [N, V] and hand row i to the i-th (request, completion).

        A row that can't be sampled ends its own request: after an error one row at a
        time is tried.
        """
        try:
            rows = [state.rows[index] for state, index in targets]
            chosen = sample(logits, rows, self._generator)
        except Exception as error:
            if len(targets) == 1:
                return self._give_up(targets[0][0], error)
            alone = [
                self._take(logits[row : row + 1], [target])
                for row, target in enumerate(targets)
                if not target[0].finished  # by another of its completions
            ]
            return {name: state for part in alone for name, state in part.items()}
        token_ids, logprobs = chosen.token_ids.tolist(), chosen.logprobs.tolist()
        changed: dict[str, RequestState] = {}
        for row, (state, index) in enumerate(targets):
            state.take(index, token_ids[row], logprobs[row], chosen, row)
            changed[state.request.request_id] = state
            if state.builders[index].finish_reason:
                self.scheduler.remove(state.sequences[index])
                if state.finished:
                    del self._states[state.request.request_id]
        return changed

    def _fork(self, state: RequestState) -> None:
        """The prompt is computed: the other completions begin, from the same past."""
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
        if len(rows):  # of nothing, split makes a part
            for part in rows.split(_SCORED_ROWS):  # logits of all would fill the memory
                state.score_prompt(self.model.logits(part))

    def stats(self) -> dict[str, float]:
        """Counters since the start, the queues, and what the memory says of itself."""
        return {
            **self._counts,
            "running": len(self.scheduler.running),
            "waiting": len(self.scheduler.waiting),
            **self.scheduler.memory.stats(),
        }
