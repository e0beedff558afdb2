"""One request, one loop: the plainest correct way to generate, and every other's judge.

Every later engine (batched, paged, chunked, cached) has to give exactly the tokens that
this module gives. So it has no scheduler and no tricks: prefill the prompt, then one
token at a time, each completion with a contiguous cache of its own.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from folovllm_lite.kv_cache import ContiguousKVCache
from folovllm_lite.outputs import Logprob, RequestMetrics, RequestOutput
from folovllm_lite.processor import InputProcessor, OutputBuilder, TokenTexts
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.request import Request, SequenceStatus
from folovllm_lite.sampler import SamplerOutput, SamplingRow, gather_logprobs, sample
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.utils import tensor_on

_FINISHED = {
    "stop": SequenceStatus.FINISHED_STOPPED,
    "length": SequenceStatus.FINISHED_LENGTH_CAPPED,
    "abort": SequenceStatus.FINISHED_ABORTED,
}


def generate(
    model: Qwen3,
    tokenizer: Any,
    prompt_token_ids: list[int],
    params: SamplingParams,
    *,
    eos_token_ids: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
) -> RequestOutput:
    """Generate all completions of one prompt.

    Args:
        model: on any device, in any dtype.
        tokenizer: of `transformers`, for the text.
        prompt_token_ids: at least one.
        params: what to generate; `max_tokens=None` is up to the model's
            max_model_len.
        eos_token_ids: tokens that end a text.
        generator: for requests without a seed; None is PyTorch's global one.

    Raises:
        TypeError, ValueError: for what the model can't serve, see `InputProcessor`.
    """
    config = model.config
    door = InputProcessor(tokenizer, config.vocab_size, config.max_model_len)
    _, ids = door.process({"prompt_token_ids": prompt_token_ids}, params)
    request = Request("0", None, ids, params)
    job = Generation(
        model,
        TokenTexts(tokenizer),
        request,
        eos_token_ids=eos_token_ids,
        generator=generator,
    )
    while not job.finished:
        job.step()
    return job.output()


class RequestState:
    """A request and everything generated for it; what all engines have in common.

    An engine decides which logits belong to which completion and calls `take`; the rest
    (text, stop conditions, logprobs, the output) is the same for a plain loop and for a
    batch of hundreds. vLLM has the same in vllm/v1/engine/output_processor.py.

    Args:
        request: with checked token ids; its sequences are filled.
        texts: of the tokenizer.
        eos_token_ids: tokens that end a text.
        max_model_len: most tokens of a sequence.
        device: of the logits; seeded generators live there.
    """

    def __init__(
        self,
        request: Request,
        texts: TokenTexts,
        eos_token_ids: tuple[int, ...],
        max_model_len: int,
        device: torch.device,
    ):
        params, prompt = request.sampling_params, request.prompt_token_ids
        self.request = request
        self.sequences = request.get_seqs()
        self.max_tokens = params.max_tokens
        if self.max_tokens is None:
            self.max_tokens = max_model_len - len(prompt)
        self.metrics = RequestMetrics(arrival_time=request.arrival_time)
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )
        self._texts = texts
        self.builders = [
            OutputBuilder(texts, prompt, params, eos_token_ids, self.max_tokens)
            for _ in self.sequences
        ]
        self.rows = [
            SamplingRow(
                params,
                prompt,
                sequence.data.output_token_ids,  # the same list: it grows by itself
                builder.stop_token_ids,
                self._seeded(i, device),
            )
            for i, (sequence, builder) in enumerate(
                zip(self.sequences, self.builders, strict=True)
            )
        ]

    def _seeded(self, index: int, device: torch.device) -> torch.Generator | None:
        """The own generator of the index-th completion, if the request has a seed."""
        seed = self.request.sampling_params.seed
        if seed is None:
            return None
        return torch.Generator(device).manual_seed((seed + index) % 2**63)

    @property
    def finished(self) -> bool:
        """Whether every completion has ended."""
        return self.request.is_finished()

    def take(
        self,
        index: int,
        token_id: int,
        logprob: float,
        chosen: SamplerOutput,
        row: int,
    ) -> None:
        """Append a token to the index-th completion, and end it where it ends.

        Args:
            index: of the completion.
            token_id: the token, as a Python number.
            logprob: likewise.
            chosen: what the sampler said of the whole batch.
            row: this completion's row of it.
        """
        sequence, builder = self.sequences[index], self.builders[index]
        wanted = self.request.sampling_params.logprobs
        before = (self.request.prompt_token_ids[-8:] + builder.token_ids[-8:])[-8:]
        found = (
            None if wanted is None else self._candidates(chosen, row, wanted, before)
        )
        sequence.add_token_id(token_id)
        builder.append(token_id, logprob, found)
        if self.metrics.first_token_time is None:
            self.metrics.first_token_time = time.time()
        if builder.finish_reason:
            sequence.move_to(_FINISHED[builder.finish_reason])
            if self.finished:
                self.metrics.finished_time = time.time()

    def abort(self, reason: str | None = None) -> None:
        """End every completion that has not ended, for a reason that it will state."""
        for sequence, builder in zip(self.sequences, self.builders, strict=True):
            if not sequence.is_finished():
                builder.finish_reason, builder.stop_reason = "abort", reason
                sequence.move_to(SequenceStatus.FINISHED_ABORTED)
        self.metrics.finished_time = time.time()

    def score_prompt(self, logits: Tensor) -> None:
        """Note the candidates at the prompt's next positions (nothing predicts the
        first).

        Args:
            logits: [T, V], after the prompt's tokens in order, the last one left out.
        """
        prompt = self.request.prompt_token_ids
        count = self.request.sampling_params.prompt_logprobs
        start = len(self.prompt_logprobs)
        targets = prompt[start : start + len(logits)]
        scored = gather_logprobs(
            logits.float().log_softmax(-1),
            tensor_on(targets, logits.device),
            count,
        ).cpu()
        for row in range(len(targets)):
            before = prompt[max(0, start + row - 8) : start + row]
            found = self._candidates(scored, row, count, before)
            self.prompt_logprobs.append(found)

    def _candidates(
        self, chosen: SamplerOutput, row: int, count: int, before: list[int]
    ) -> dict[int, Logprob]:
        """In vLLM's shape: the chosen token first, then the `count` likeliest.

        The last tokens `before` them may have begun a character that they end.
        """
        token_id = int(chosen.token_ids[row])
        found = {token_id: (float(chosen.logprobs[row]), int(chosen.ranks[row]))}
        top = zip(
            chosen.top_token_ids[row, :count].tolist(),
            chosen.top_logprobs[row, :count].tolist(),
            strict=True,
        )
        for rank, (token_id, logprob) in enumerate(top, start=1):
            found.setdefault(token_id, (logprob, rank))
        return {
            token_id: Logprob(logprob, rank, self._texts.text_of(token_id, before))
            for token_id, (logprob, rank) in found.items()
        }

    def output(self) -> RequestOutput:
        """Everything so far.

        With best_of > n the n completions of the highest cumulative log-probability,
        the best first; before the end there are none to choose from, and it is the
        first n.
        """
        request = self.request
        builders = self.builders
        if self.finished and len(builders) > request.sampling_params.n:
            builders = sorted(
                builders, key=lambda b: b.cumulative_logprob, reverse=True
            )
        builders = builders[: request.sampling_params.n]
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=[builder.output(i) for i, builder in enumerate(builders)],
            finished=self.finished,
            metrics=self.metrics,
            prompt_logprobs=self.prompt_logprobs,
        )


class Generation:
    """A request on its way: call `step` until `finished`, read `output` at any time.

    Args:
        model, eos_token_ids, generator: as for `generate`.
        texts: of the tokenizer.
        request: with checked token ids; its sequences are filled.
        max_model_len: most tokens of a sequence; None is the model's own limit.
    """

    def __init__(
        self,
        model: Qwen3,
        texts: TokenTexts,
        request: Request,
        *,
        eos_token_ids: tuple[int, ...] = (),
        max_model_len: int | None = None,
        generator: torch.Generator | None = None,
    ):
        self._model, self._generator = model, generator
        self._device = model.lm_head.weight.device
        limit = max_model_len or model.config.max_model_len
        self._state = RequestState(request, texts, eos_token_ids, limit, self._device)
        self._caches: list[ContiguousKVCache] = []

    @property
    def finished(self) -> bool:
        """Whether every completion has ended."""
        return self._state.finished

    @torch.inference_mode()
    def step(self) -> None:
        """Generate one token for every completion that has not ended."""
        state = self._state
        running = [i for i, seq in enumerate(state.sequences) if not seq.is_finished()]
        if not self._caches:
            logits = self._prefill()  # [1, V], the same for all completions
            logits = logits.expand(len(running), -1)
        else:
            logits = torch.cat([self._decode(i) for i in running])  # [N, V]
        chosen = sample(logits, [state.rows[i] for i in running], self._generator)
        token_ids, logprobs = chosen.token_ids.tolist(), chosen.logprobs.tolist()
        for row, i in enumerate(running):
            state.take(i, token_ids[row], logprobs[row], chosen, row)

    def _prefill(self) -> Tensor:
        """Run the prompt once, give each completion a cache; logits [1, V]."""
        state, model = self._state, self._model
        prompt = state.request.prompt_token_ids
        cache = ContiguousKVCache(
            model.config,
            # The last token is never run: nothing follows it.
            len(prompt) + state.max_tokens - 1,
            model.lm_head.weight.dtype,
            self._device,
        )
        hidden = model(tensor_on(prompt, self._device), cache.step(len(prompt)))
        cache.advance(len(prompt))
        if state.prompt_logprobs is not None:
            state.score_prompt(model.logits(hidden[:-1]))
        self._caches = [cache, *(cache.copy() for _ in state.sequences[1:])]
        for sequence in state.sequences:
            sequence.move_to(SequenceStatus.RUNNING)
        return model.logits(hidden[-1:])

    def _decode(self, index: int) -> Tensor:
        """Run the newest token of one completion; logits [1, V] of what follows."""
        cache = self._caches[index]
        newest = self._state.sequences[index].get_last_token_id()
        hidden = self._model(tensor_on([newest], self._device), cache.step(1))
        cache.advance(1)
        return self._model.logits(hidden)

    def output(self) -> RequestOutput:
        """Everything so far; see `RequestState.output`."""
        return self._state.output()

    def __iter__(self) -> Iterator[RequestOutput]:
        """Step to the end, giving the output after every step."""
        while not self.finished:
            self.step()
            yield self.output()
