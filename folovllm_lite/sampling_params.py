"""What a request asks for, checked when it is made. The fields are vLLM's."""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, get_args, get_origin

_LARGEST = 2.0**128 - 2.0**104  # of a float32: the logits are computed in it


class SamplingType(IntEnum):
    """How the next token is chosen."""

    GREEDY = 0  # the likeliest token
    RANDOM = 1  # a draw


def _fits(value: Any, annotation: Any) -> bool:
    """Whether `value` is what a field's annotation says; an int passes as a float."""
    kinds = get_args(annotation)
    if get_origin(annotation) is list:
        listed = isinstance(value, list | tuple)
        return listed and all(_fits(item, kinds[0]) for item in value)
    if kinds:  # a union, such as int | None
        return any(_fits(value, kind) for kind in kinds)
    if isinstance(value, bool):  # to Python a bool is an int
        return annotation is bool
    return isinstance(value, int | float if annotation is float else annotation)


@dataclass
class SamplingParams:
    """How to sample one request.

    Args:
        n: completions to return.
        best_of: completions to generate, of which the `n` with the highest cumulative
            log-probability are returned; None is `n`.
        temperature: divides the logits: below 1 favours likely tokens, above 1
            flattens; 0 takes the likeliest token and ignores top_p, top_k and min_p.
            Values between 0 and 1e-5 are refused.
        top_p: keep the smallest set of tokens whose probabilities reach this; above 0,
            at most 1.
        top_k: keep this many of the likeliest tokens; -1 keeps all.
        min_p: keep tokens at least this times as likely as the likeliest, in [0, 1].
        presence_penalty: subtracted from the logit of every generated token, [-2, 2].
        frequency_penalty: subtracted once per occurrence in the output, [-2, 2].
        repetition_penalty: divides positive and multiplies negative logits of tokens in
            prompt or output; above 1 discourages (Keskar et al. 2019); [1e-5, 1e5].
        stop: strings that end the completion; a lone string counts as a list of one.
        stop_token_ids: tokens that end it; one that is named twice is kept once.
        include_stop_str_in_output: keep the stop string at the end of the text.
        ignore_eos: go on after the end-of-sequence token.
        max_tokens: most tokens to generate; None is up to the engine's max_model_len.
        min_tokens: fewest, during which no token can end the completion.
        logprobs: how many of the likeliest tokens to report at each position, besides
            the one chosen; None reports nothing.
        prompt_logprobs: the same for the prompt's tokens.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: put spaces between special tokens in the text.
        seed: of this request's own random generator; the i-th completion uses seed + i.
        use_beam_search, length_penalty, early_stopping: beam search is not supported.

    Raises:
        TypeError: a field of the wrong type.
        ValueError: a field out of range, NaN included, or two that contradict each
            other.
        NotImplementedError: beam search.
    """

    n: int = 1
    best_of: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    seed: int | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        # Copies, so that a list the caller changes later changes nothing here.
        self.stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        self.stop_token_ids = list(dict.fromkeys(self.stop_token_ids or []))
        self.best_of = self.n if self.best_of is None else self.best_of
        self._check_values()

    @property
    def sampling_type(self) -> SamplingType:
        """GREEDY at temperature 0, else RANDOM."""
        return SamplingType.GREEDY if self.temperature == 0 else SamplingType.RANDOM

    def _check_types(self) -> None:
        """Raise unless values fit their annotations, and numbers fit a tensor."""
        for field in fields(self):
            value, wanted = getattr(self, field.name), field.type
            if not _fits(value, wanted):
                wanted = wanted.__name__ if isinstance(wanted, type) else wanted
                raise TypeError(f"{field.name} must be {wanted}, got {value!r}")
            # Says no to NaN as well. Not math.isfinite: it takes no int like 10**400.
            if wanted is float and not abs(value) <= _LARGEST:
                raise ValueError(f"{field.name} must be finite in float32, got {value}")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{field.name} must fit 64 bits, got {value}")

    def _check_values(self) -> None:
        """Raise for values out of range; a chain of plain ifs, one rule each."""
        if self.use_beam_search:
            raise NotImplementedError("Beam search is not supported; use n or best_of")
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if self.best_of < self.n:
            raise ValueError(f"best_of ({self.best_of}) must be >= n ({self.n})")
        if self.temperature < 0:
            raise ValueError(
                f"temperature must be non-negative, got {self.temperature}"
            )
        if 0 < self.temperature < 1e-5:  # divided by 1e-40, every logit is infinite
            raise ValueError(
                "temperature must be 0 (greedy) or at least 1e-05, "
                f"got {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < -1 or self.top_k == 0:
            raise ValueError(f"top_k must be -1 (disabled) or >= 1, got {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ValueError(
                    f"{name} must be in [-2, 2], got {getattr(self, name)}"
                )
        if not 1e-5 <= self.repetition_penalty <= 1e5:  # it multiplies: the same
            raise ValueError(
                "repetition_penalty must be in [1e-05, 1e+05], "
                f"got {self.repetition_penalty}"
            )
        self._check_stops()
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.min_tokens < 0:
            raise ValueError(f"min_tokens must be at least 0, got {self.min_tokens}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens ({self.min_tokens}) must be <= "
                f"max_tokens ({self.max_tokens})"
            )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")
        if self.length_penalty != 1.0 or self.early_stopping:
            raise NotImplementedError(
                "length_penalty and early_stopping belong to beam search, "
                "and Beam search is not supported"
            )

    def _check_stops(self) -> None:
        """The same for the lists of what ends a text."""
        if "" in self.stop:
            raise ValueError(
                "stop must not hold an empty string: it would stop at once"
            )
        for text in self.stop:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"stop must hold text, got {text!r} with half a surrogate pair"
                ) from error
        for token_id in self.stop_token_ids:
            if not 0 <= token_id < 2**63:
                raise ValueError(
                    f"stop_token_ids must be in [0, 2**63), got {token_id}"
                )
