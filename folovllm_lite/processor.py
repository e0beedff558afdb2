"""Text in, text out: prompts to token ids, and token ids to text that may be shown.

`InputProcessor` turns what users write into ids, or says what is wrong with it.
`OutputBuilder` goes the other way one token at a time. It never shows half a character
and never shows what a stop string takes back later. Neither knows of models or tensors.
"""

import codecs
import json
import re
from functools import cached_property
from typing import Any

from folovllm_lite.outputs import CompletionOutput, Logprob
from folovllm_lite.sampling_params import SamplingParams

_PROMPT_KEYS = {"prompt", "prompt_token_ids", "cache_salt"}


class InputProcessor:
    """Turns prompts into token ids.

    Args:
        tokenizer: of `transformers`.
        vocab_size: of the model; ids must be below it.
        max_model_len: most tokens of prompt and output together.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, max_model_len: int):
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len

    def process(
        self, prompt: str | dict | list[int], params: SamplingParams
    ) -> tuple[str | None, list[int]]:
        """The prompt's text (None if it came as ids) and its token ids.

        Args:
            prompt: a string, {"prompt": string}, {"prompt_token_ids": ids}, or ids.
            params: of the request, for the length it asks for.

        Raises:
            TypeError: none of these, an id that is no int, or no SamplingParams.
            ValueError: empty, ids outside the vocabulary, or too long, with the
                numbers.
        """
        if not isinstance(params, SamplingParams):
            raise TypeError(f"sampling_params must be SamplingParams, got {params!r}")
        text, ids = self._read(prompt)
        if text is not None and not isinstance(text, str):
            raise TypeError(f"prompt must be a string, got {text!r}")
        if not ids:
            raise ValueError("the prompt is empty: it needs at least one token")
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise ValueError(
                f"token id {wrong} is outside the vocabulary of {self.vocab_size} "
                "tokens"
            )
        if any(i >= self.vocab_size for i in params.stop_token_ids):
            raise ValueError(
                f"stop_token_ids {params.stop_token_ids} go beyond the vocabulary of "
                f"{self.vocab_size} tokens"
            )
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(params, name)
            if count is not None and count > self.vocab_size:
                raise ValueError(
                    f"{name} is {count}, but the vocabulary has {self.vocab_size} "
                    "tokens"
                )
        limit, wanted = self.max_model_len, params.max_tokens
        if len(ids) >= limit:
            raise ValueError(
                f"max_model_len is {limit}, but the prompt has {len(ids)} tokens, "
                "which leaves no room for output"
            )
        if wanted is not None and len(ids) + wanted > limit:
            raise ValueError(
                f"max_model_len is {limit}, but the prompt has {len(ids)} tokens and "
                f"max_tokens is {wanted}: {len(ids) + wanted} in all"
            )
        return text, ids

    def _read(self, prompt: str | dict | list[int]) -> tuple[str | None, list[int]]:
        if isinstance(prompt, dict) and prompt.keys() <= _PROMPT_KEYS:
            salt = prompt.get("cache_salt")
            if salt is not None and (not isinstance(salt, str) or not salt):
                raise TypeError(
                    f"cache_salt must be a string that is not empty, got {salt!r}"
                )
            if "prompt_token_ids" in prompt:
                return prompt.get("prompt"), self._ids(prompt["prompt_token_ids"])
            prompt = prompt.get("prompt")
        if isinstance(prompt, str):
            try:
                prompt.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"the prompt is no valid text: character {error.start} is "
                    f"{prompt[error.start]!r}, half of a surrogate pair"
                ) from None
            return prompt, list(self.tokenizer.encode(prompt))
        if isinstance(prompt, list | tuple):
            return None, self._ids(prompt)
        raise TypeError(
            "a prompt is a string, {'prompt': string} or {'prompt_token_ids': ids}, "
            f"got {prompt!r}"
        )

    @staticmethod
    def _ids(ids: Any) -> list[int]:
        if not isinstance(ids, list | tuple) or any(type(i) is not int for i in ids):
            raise TypeError(f"prompt_token_ids must be a list of ints, got {ids!r}")
        return list(ids)

    def chat(self, messages: list[dict[str, str]]) -> dict:
        """A conversation as a prompt for `process`, ready for the assistant's answer.

        Raises:
            TypeError, ValueError: messages without role and content, or no chat
                template.
        """
        if not isinstance(messages, list) or not messages:
            raise ValueError(f"a conversation is a list of messages, got {messages!r}")
        for message in messages:
            if (
                not isinstance(message, dict)
                or not {"role", "content"} <= message.keys()
            ):
                raise TypeError(
                    "a message is {'role': 'user', 'content': 'text'}, "
                    f"got {message!r}"
                )
            for name in ("role", "content"):
                if not isinstance(message[name], str):
                    raise TypeError(f"{name} must be a string, got {message[name]!r}")
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError("the tokenizer of this model has no chat template")
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        # The template writes all special tokens itself: adding one more would be wrong.
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return {"prompt": text, "prompt_token_ids": list(ids)}


def _byte_alphabet() -> dict[str, int]:
    """Which byte each character of a byte-level BPE token stands for (GPT-2).

    Printable bytes stand for themselves, the other 68 for characters from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenTexts:
    """What every token of a tokenizer is made of; one for all requests."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self._bytes: dict[int, bytes] = {}
        self._decoded: dict[int, str] = {}

    @cached_property
    def spelling(self) -> str | None:
        """How tokens spell bytes, or None if they can't be read one by one.

        "ByteLevel" is Qwen's, Llama 3's and the embedded model's, "ByteFallback" that
        of Llama 2: a token like <0xE4> for a byte, and for everything else its text.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        kind = type(getattr(backend, "decoder", None)).__name__
        if kind != "Sequence":
            return "ByteLevel" if kind == "ByteLevel" else None
        decoder = json.loads(backend.to_str())["decoder"]
        parts = {part["type"] for part in decoder["decoders"]}
        known = {"Replace", "ByteFallback", "Fuse", "Strip"}
        return "ByteFallback" if "ByteFallback" in parts <= known else None

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of a token; only for tokenizers with a `spelling`."""
        found = self._bytes.get(token_id)
        if found is None:
            token = self.tokenizer.convert_ids_to_tokens(token_id) or ""
            byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
            if self.spelling == "ByteFallback" and byte:
                found = bytes([int(byte[1], 16)])
            elif self.spelling == "ByteFallback":
                found = token.replace("\u2581", " ").encode()
            elif all(char in _ALPHABET for char in token):
                found = bytes(_ALPHABET[char] for char in token)
            else:  # an added token is plain text
                found = token.encode()
            self._bytes[token_id] = found
        return found

    def text_of(self, token_id: int) -> str:
        """A token decoded alone, as logprobs show it."""
        found = self._decoded.get(token_id)
        if found is None:
            found = self._decoded[token_id] = self.tokenizer.decode([token_id])
        return found


_ALPHABET = _byte_alphabet()


class ByteDetokenizer:
    """Text of a growing list of tokens that spell bytes, exact at every step.

    A token may hold half a character. UTF-8 says itself how many bytes a character
    still needs, so an incremental decoder knows when to wait. Waiting "while the text
    ends in U+FFFD" does not: a model may mean U+FFFD.

    If the prompt ends inside a character, that character belongs to the output: its
    first bytes are fed before the first token.
    """

    def __init__(
        self, texts: TokenTexts, prompt_token_ids: list[int], skip_special: bool
    ):
        self._texts = texts
        self._skip = texts.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # Eight tokens are at least as many bytes, unless skipped: enough for a
        # character.
        for token_id in [i for i in prompt_token_ids[-16:] if i not in self._skip][-8:]:
            self._decoder.decode(texts.bytes_of(token_id))

    def append(self, token_id: int) -> str:
        """The text that this token completes."""
        if token_id in self._skip:
            return ""
        return self._decoder.decode(self._texts.bytes_of(token_id))

    def finish(self) -> str:
        """What is left when no more tokens come: U+FFFD for an unfinished character."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """The same for any other tokenizer, by decoding a window of tokens twice.

    The window begins a few tokens back, because some tokenizers write a token
    differently at the start of a text. A text that ends in U+FFFD may end inside a
    character, so it waits; but not if four tokens have added nothing else to it, as no
    character has more bytes. It can't tell U+FFFD that is meant from half a character:
    where both follow each other in small pieces, the half may be shown.
    """

    _BACK = 5

    def __init__(
        self,
        texts: TokenTexts,
        prompt_token_ids: list[int],
        skip_special: bool,
        spaces_between_special: bool,
    ):
        self._decode = lambda ids: texts.tokenizer.decode(
            ids,
            skip_special_tokens=skip_special,
            spaces_between_special_tokens=spaces_between_special,
        )
        self._ids = list(prompt_token_ids[-self._BACK :])  # the window
        self._read = len(self._ids)  # how many of it are written already
        # Length of the text that is complete; tokens since it grew.
        self._waiting = (0, 0)

    def append(self, token_id: int) -> str:
        """The text that this token completes."""
        self._ids.append(token_id)
        return self._take(most=4)

    def finish(self) -> str:
        """What is left when no more tokens come."""
        return self._take(most=0)

    def _take(self, most: int) -> str:
        """The new text, if it is complete or `most` tokens have not completed it."""
        before, now = self._decode(self._ids[: self._read]), self._decode(self._ids)
        if now.endswith("�"):
            complete, tokens = len(now.rstrip("�")), self._waiting[1]
            self._waiting = (
                complete,
                tokens + 1 if complete == self._waiting[0] else 1,
            )
        if len(now) <= len(before) or (now.endswith("�") and self._waiting[1] < most):
            return ""
        self._waiting = (0, 0)
        self._ids = self._ids[max(0, len(self._ids) - self._BACK) :]
        self._read = len(self._ids)
        return now[len(before) :]


class OutputBuilder:
    """One completion as it grows: tokens, text, logprobs, and why it ended.

    Args:
        texts: of the tokenizer.
        prompt_token_ids: the text may continue a character of theirs.
        params: of the request.
        eos_token_ids: tokens that end the text; ignored with `ignore_eos`.
        max_tokens: after how many tokens it ends at the latest.
    """

    def __init__(
        self,
        texts: TokenTexts,
        prompt_token_ids: list[int],
        params: SamplingParams,
        eos_token_ids: tuple[int, ...],
        max_tokens: int,
    ):
        self.token_ids: list[int] = []
        self.cumulative_logprob = 0.0
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self._logprobs: list[dict[int, Logprob]] | None = (
            None if params.logprobs is None else []
        )
        self._params, self._max_tokens = params, max_tokens
        self._eos = () if params.ignore_eos else eos_token_ids
        self._text = ""  # everything decoded
        self._shown = 0  # how much of it no stop string can take back
        skip = params.skip_special_tokens
        self._detokenizer = (
            ByteDetokenizer(texts, prompt_token_ids, skip)
            if texts.spelling
            else WindowDetokenizer(
                texts, prompt_token_ids, skip, params.spaces_between_special_tokens
            )
        )

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """All tokens that end this completion."""
        return (*self._eos, *self._params.stop_token_ids)

    @property
    def text(self) -> str:
        """The text that may be shown: it only ever grows."""
        return self._text[: self._shown]

    def append(
        self, token_id: int, logprob: float, logprobs: dict[int, Logprob] | None = None
    ) -> None:
        """Take the next token; sets `finish_reason` if it is the last.

        Args:
            token_id: the token.
            logprob: its natural log-probability.
            logprobs: the candidates at its position, if the request wants them.
        """
        params = self._params
        self.token_ids.append(token_id)
        self.cumulative_logprob += logprob
        if self._logprobs is not None:
            self._logprobs.append(logprobs)
        may_stop = len(self.token_ids) > params.min_tokens
        stops = token_id in params.stop_token_ids
        if may_stop and (stops or token_id in self._eos):
            self.finish_reason = "stop"
            self.stop_reason = token_id if stops else None
            shows = params.include_stop_str_in_output
            new = self._detokenizer.append(token_id) if shows else ""
        else:
            new = self._detokenizer.append(token_id)
        if self.finish_reason is None and len(self.token_ids) >= self._max_tokens:
            self.finish_reason = "length"
        if self.finish_reason:
            new += self._detokenizer.finish()
        if new or self.finish_reason:
            self._write(new, may_stop)

    def _write(self, new: str, may_stop: bool) -> None:
        """Add decoded text, stop at a stop string, and settle how much may be shown."""
        start = len(self._text)
        self._text += new
        stops = self._params.stop
        if stops and may_stop:
            match = find_stop(self._text, stops, start)
            if match:
                begin, end, self.stop_reason = match
                self.finish_reason = "stop"
                keep = end if self._params.include_stop_str_in_output else begin
                self._text = self._text[:keep]
        self._shown = len(self._text)
        if stops and not self.finish_reason:
            self._shown -= held_back(self._text, stops)

    def output(self, index: int) -> CompletionOutput:
        """The completion so far, with lists of its own."""
        return CompletionOutput(
            index=index,
            text=self.text,
            token_ids=list(self.token_ids),
            cumulative_logprob=self.cumulative_logprob,
            logprobs=None if self._logprobs is None else list(self._logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


def find_stop(text: str, stops: list[str], start: int) -> tuple[int, int, str] | None:
    """The stop string that is complete first: (begin, end, string), or None.

    Only matches that end after `start` count: what stands before was looked at already.
    First means first to end, and of two that end together the one that begins earlier.
    So the answer doesn't depend on how the text was cut into tokens.
    """
    best = None
    for stop in stops:
        begin = text.find(stop, max(0, start - len(stop) + 1))
        if begin != -1:
            candidate = (begin + len(stop), begin, stop)
            best = candidate if best is None else min(best, candidate)
    return best and (best[1], best[0], best[2])


def held_back(text: str, stops: list[str]) -> int:
    """How many characters at the end of `text` could begin a stop string."""
    longest = max((len(stop) for stop in stops), default=0)
    for count in range(min(len(text), longest - 1), 0, -1):
        if any(stop.startswith(text[-count:]) for stop in stops):
            return count
    return 0
