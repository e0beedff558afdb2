"""What the engine gives back. Shapes and names are vLLM's (vllm/outputs.py)."""

from dataclasses import dataclass, replace


@dataclass(slots=True)
class Logprob:
    """One candidate at one position.

    Args:
        logprob: natural log of its probability, before any sampling parameter.
        rank: 1 for the likeliest token of the vocabulary.
        decoded_token: what it adds to the text; "" for half a character.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class RequestMetrics:
    """When things happened, in seconds of `time.time()`; None until they have."""

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a request.

    Args:
        index: its place among the request's n outputs.
        text: the text so far; grows while streaming, and never shrinks.
        token_ids: the tokens so far, a stop token included.
        cumulative_logprob: sum of the tokens' log-probabilities.
        logprobs: per token the candidates by id, if `SamplingParams.logprobs` asked.
        finish_reason: "stop", "length", "abort", or None while it runs.
        stop_reason: the stop string or token id that ended it, or why it was aborted;
            None for the tokenizer's own end token and for "length".
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def finished(self) -> bool:
        """Whether this completion has ended."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A request with everything generated for it so far.

    It copies the lists, the completions and the metrics that it is made from. So the
    engine may go on writing in its own, and what was handed out stays as it was.

    Args:
        request_id: names the request.
        prompt: its text; None when it came as token ids.
        prompt_token_ids: its tokens.
        outputs: n completions, the best first once the request is finished.
        finished: whether all of them have ended.
        metrics: when the request arrived, spoke first and ended.
        prompt_logprobs: per prompt token the candidates by id, None for the first,
            which nothing predicts; only if `SamplingParams.prompt_logprobs` asked.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = None
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None

    def __post_init__(self) -> None:
        self.prompt_token_ids = list(self.prompt_token_ids)
        self.outputs = [
            replace(
                output,
                token_ids=list(output.token_ids),
                logprobs=None if output.logprobs is None else list(output.logprobs),
            )
            for output in self.outputs
        ]
        if self.metrics is not None:
            self.metrics = replace(self.metrics)
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = list(self.prompt_logprobs)

    def __repr__(self) -> str:
        prompt = self.prompt
        if prompt is not None and len(prompt) > 50:
            prompt = prompt[:50] + "…"
        return (
            f"RequestOutput(request_id={self.request_id}, prompt={prompt!r}, "
            f"outputs={self.outputs}, finished={self.finished})"
        )
