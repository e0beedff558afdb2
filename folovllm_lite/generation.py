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
from folovllm_lite.processor import OutputBuilder, TokenTexts
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.request import Request, SequenceStatus
from folovllm_lite.sampler import SamplerOutput, SamplingRow, gather_logprobs, sample
from folovllm_lite.sampling_params import SamplingParams

_FINISHED = {
    "stop": SequenceStatus.FINISHED_STOPPED,
    "length": SequenceStatus.FINISHED_LENGTH_CAPPED,
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
            max_position_embeddings.
        eos_token_ids: tokens that end a text.
        generator: for requests without a seed; None is PyTorch's global one.
    """
    request = Request("0", None, prompt_token_ids, params)
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
        params, prompt = request.sampling_params, request.prompt_token_ids
        self.request = request
        self._model, self._texts, self._generator = model, texts, generator
        self._device = model.lm_head.weight.device
        limit = max_model_len or model.config.max_position_embeddings
        self._max_tokens = params.max_tokens or limit - len(prompt)
        self._metrics = RequestMetrics(arrival_time=request.arrival_time)
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._sequences = request.get_seqs()
        self._builders = [
            OutputBuilder(texts, prompt, params, eos_token_ids, self._max_tokens)
            for _ in self._sequences
        ]
        self._rows = [
            SamplingRow(
                params,
                prompt,
                sequence.data.output_token_ids,  # the same list: it grows by itself
                builder.stop_token_ids,
                self._seeded(i),
            )
            for i, (sequence, builder) in enumerate(
                zip(self._sequences, self._builders, strict=True)
            )
        ]
        self._caches: list[ContiguousKVCache] = []

    def _seeded(self, index: int) -> torch.Generator | None:
        """The own generator of the index-th completion, if the request has a seed."""
        seed = self.request.sampling_params.seed
        if seed is None:
            return None
        return torch.Generator(self._device).manual_seed((seed + index) % 2**63)

    @property
    def finished(self) -> bool:
        """Whether every completion has ended."""
        return self.request.is_finished()

    @torch.inference_mode()
    def step(self) -> None:
        """Generate one token for every completion that has not ended."""
        running = [i for i, seq in enumerate(self._sequences) if not seq.is_finished()]
        if not self._caches:
            logits = self._prefill()  # [1, V], the same for all completions
            logits = logits.expand(len(running), -1)
        else:
            logits = torch.cat([self._decode(i) for i in running])  # [N, V]
        chosen = sample(logits, [self._rows[i] for i in running], self._generator)
        self._metrics.first_token_time = self._metrics.first_token_time or time.time()
        token_ids, logprobs = chosen.token_ids.tolist(), chosen.logprobs.tolist()
        for row, i in enumerate(running):
            wanted = self.request.sampling_params.logprobs
            found = None if wanted is None else self._candidates(chosen, row, wanted)
            self._append(i, token_ids[row], logprobs[row], found)
        if self.finished:
            self._metrics.finished_time = time.time()

    def _prefill(self) -> Tensor:
        """Run the prompt once, give each completion a cache; logits [1, V]."""
        prompt = self.request.prompt_token_ids
        model = self._model
        cache = ContiguousKVCache(
            model.config,
            # The last token is never run: nothing follows it.
            len(prompt) + self._max_tokens - 1,
            model.lm_head.weight.dtype,
            self._device,
        )
        hidden = model(
            torch.tensor(prompt, device=self._device), cache.step(len(prompt))
        )
        cache.advance(len(prompt))
        if self.request.sampling_params.prompt_logprobs is not None:
            self._prompt_logprobs = self._score_prompt(hidden)
        self._caches = [cache, *(cache.copy() for _ in self._sequences[1:])]
        for sequence in self._sequences:
            sequence.status = SequenceStatus.RUNNING
        return model.logits(hidden[-1:])

    def _decode(self, index: int) -> Tensor:
        """Run the newest token of one completion; logits [1, V] of what follows."""
        cache = self._caches[index]
        token = torch.tensor(
            [self._sequences[index].get_last_token_id()], device=self._device
        )
        hidden = self._model(token, cache.step(1))
        cache.advance(1)
        return self._model.logits(hidden)

    def _append(
        self,
        index: int,
        token_id: int,
        logprob: float,
        found: dict[int, Logprob] | None,
    ) -> None:
        sequence, builder = self._sequences[index], self._builders[index]
        sequence.add_token_id(token_id)
        builder.append(token_id, logprob, found)
        if builder.finish_reason:
            sequence.status = _FINISHED[builder.finish_reason]

    def _candidates(
        self, chosen: SamplerOutput, row: int, count: int
    ) -> dict[int, Logprob]:
        """VLLM's shape: the chosen token first, then the `count` likeliest."""
        found = {
            int(chosen.token_ids[row]): (
                float(chosen.logprobs[row]),
                int(chosen.ranks[row]),
            )
        }
        top = zip(
            chosen.top_token_ids[row, :count].tolist(),
            chosen.top_logprobs[row, :count].tolist(),
            strict=True,
        )
        for rank, (token_id, logprob) in enumerate(top, start=1):
            found.setdefault(token_id, (logprob, rank))
        return {
            token_id: Logprob(logprob, rank, self._texts.text_of(token_id))
            for token_id, (logprob, rank) in found.items()
        }

    def _score_prompt(self, hidden: Tensor) -> list[dict[int, Logprob] | None]:
        """Candidates at every position of the prompt; nothing predicts the first."""
        prompt, count = self.request.prompt_token_ids, self.request.sampling_params
        logprobs = self._model.logits(hidden[:-1]).float().log_softmax(-1)  # [T - 1, V]
        targets = torch.tensor(prompt[1:], device=self._device)
        scored = gather_logprobs(logprobs, targets, count.prompt_logprobs)
        return [
            None,
            *(
                self._candidates(scored, row, count.prompt_logprobs)
                for row in range(len(prompt) - 1)
            ),
        ]

    def output(self) -> RequestOutput:
        """Everything so far.

        With best_of > n the n completions of the highest cumulative log-probability,
        the best first; before the end there are none to choose from, and it is the
        first n.
        """
        request = self.request
        builders = self._builders
        if self.finished and len(builders) > request.sampling_params.n:
            builders = sorted(
                builders, key=lambda b: b.cumulative_logprob, reverse=True
            )
        builders = builders[: request.sampling_params.n]
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=list(request.prompt_token_ids),
            outputs=[builder.output(i) for i, builder in enumerate(builders)],
            finished=self.finished,
            metrics=self._metrics,
            prompt_logprobs=self._prompt_logprobs,
        )

    def __iter__(self) -> Iterator[RequestOutput]:
        """Step to the end, giving the output after every step."""
        while not self.finished:
            self.step()
            yield self.output()
