"""Text in, text out: prompts to token ids, and token ids to text that may be shown.

`InputProcessor` turns what users write into ids, or says what is wrong with it.
`OutputBuilder` goes the other way one token at a time. It never shows half a character
and never shows what a stop string takes back later. Neither knows of models or tensors.
"""

import codecs
import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from os.path import commonprefix
from typing import Any

from folovllm_lite.outputs import CompletionOutput, Logprob
from folovllm_lite.sampling_params import SamplingParams

_PROMPT_KEYS = {"prompt", "prompt_token_ids", "cache_salt"}
# What `InputProcessor.chat` hands to a template itself.
_CHAT_KEYS = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "tokenize",
    "tools",
}


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
        if len(ids) + params.min_tokens > limit:  # max_tokens is None
            raise ValueError(
                f"max_model_len is {limit}, but the prompt has {len(ids)} tokens and "
                f"min_tokens is {params.min_tokens}"
            )
        return text, ids

    def _read(self, prompt: str | dict | list[int]) -> tuple[str | None, list[int]]:
        if isinstance(prompt, dict) and prompt.keys() <= _PROMPT_KEYS:
            salt = prompt.get("cache_salt")
            if salt is not None and (not isinstance(salt, str) or not salt):
                raise TypeError(
                    f"cache_salt must be a string that is not empty, got {salt!r}"
                )
            _refuse_half_characters("cache_salt", salt or "")
            if "prompt_token_ids" in prompt:
                text = prompt.get("prompt")
                if isinstance(text, str):
                    _refuse_half_characters("the prompt", text)
                return text, self._ids(prompt["prompt_token_ids"])
            prompt = prompt.get("prompt")
        if isinstance(prompt, str):
            return prompt, self._encode("the prompt", prompt)
        if isinstance(prompt, list | tuple):
            return None, self._ids(prompt)
        raise TypeError(
            "a prompt is a string, {'prompt': string} or {'prompt_token_ids': ids}, "
            f"got {prompt!r}"
        )

    def _encode(self, what: str, text: str, **options: bool) -> list[int]:
        _refuse_half_characters(what, text)
        try:
            return list(self.tokenizer.encode(text, **options))
        except Exception as error:  # from Rust, and no more than that
            raise ValueError(f"the tokenizer can't encode {what}: {error}") from error

    @staticmethod
    def _ids(ids: Any) -> list[int]:
        if not isinstance(ids, list | tuple) or any(type(i) is not int for i in ids):
            raise TypeError(f"prompt_token_ids must be a list of ints, got {ids!r}")
        return list(ids)

    def chat(
        self,
        messages: list[dict[str, Any]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> dict:
        """A conversation as a prompt for `process`, ready for the assistant's answer.

        Args:
            messages: each with a role and a content, which is a string, a list of
                strings or {"type": "text", "text": string}, or None beside tool_calls.
            chat_template: in Jinja; None is the tokenizer's.
            add_generation_prompt: open the assistant's turn.
            continue_final_message: leave the last message open instead.
            tools: descriptions of functions, for templates that know of them.
            chat_template_kwargs: what else the template asks for, such as
                {"enable_thinking": False}.

        Raises:
            TypeError: no such messages, tools or arguments.
            ValueError: no messages, no template, or a template that refuses them, with
                its words.
        """
        if not isinstance(messages, list) or not messages:
            raise ValueError(f"a conversation is a list of messages, got {messages!r}")
        template = chat_template or getattr(self.tokenizer, "chat_template", None)
        if not template:
            raise ValueError("the tokenizer of this model has no chat template")
        if add_generation_prompt and continue_final_message:
            raise ValueError(
                "continue_final_message goes on with the last message, and "
                "add_generation_prompt opens a new one: set one of them to False"
            )
        options = _template_options(chat_template, tools, chat_template_kwargs)
        messages = [_message(message) for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **options,
            )
        except Exception as error:  # whatever a template of somebody's runs into
            raise ValueError(
                "the chat template refuses this conversation: "
                f"{str(error) or type(error).__name__}"
            ) from error
        # The template writes all special tokens itself: adding one more would be wrong.
        ids = self._encode("the conversation", text, add_special_tokens=False)
        return {"prompt": text, "prompt_token_ids": ids}


def _template_options(template: Any, tools: Any, more: Any) -> dict[str, Any]:
    """What a template is given beside the messages; a TypeError for what is none."""
    if tools is not None and (
        not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools)
    ):
        raise TypeError(f"tools must be a list of objects, got {tools!r}")
    more = more or {}
    if not isinstance(more, dict) or more.keys() & _CHAT_KEYS:
        raise TypeError(
            "chat_template_kwargs must be a dict, without any of "
            f"{', '.join(sorted(_CHAT_KEYS))}, got {more!r}"
        )
    options = {"tools": tools, "chat_template": template, **more}
    return {name: value for name, value in options.items() if value is not None}


def _message(message: Any) -> dict[str, Any]:
    """A message as templates expect it; raises a TypeError for what is none.

    The parts of a content become one text, a line each. The arguments of a tool call,
    which are JSON in a string, become the object that they describe. Both as in vLLM.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise TypeError(
            f"a message is {{'role': 'user', 'content': 'text'}}, got {message!r}"
        )
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and calls:
        content = ""
    elif isinstance(content, list):
        content = "\n".join(map(_part, content))
    if not isinstance(content, str):
        raise TypeError(
            f"content must be a string or a list of text parts, got {content!r}"
        )
    made = {**message, "content": content}
    if calls:
        if not isinstance(calls, list):
            raise TypeError(f"tool_calls must be a list, got {calls!r}")
        made["tool_calls"] = [_tool_call(call) for call in calls]
    return made


def _part(part: Any) -> str:
    """The text of one part of a content."""
    text = part.get("text") if isinstance(part, dict) else part
    if isinstance(part, dict) and part.get("type", "text") != "text":
        raise TypeError(f"this model reads text, no part of type {part['type']!r}")
    if not isinstance(text, str):
        raise TypeError(
            f"a part of a content is {{'type': 'text', 'text': 'text'}}, got {part!r}"
        )
    return text


def _tool_call(call: Any) -> dict[str, Any]:
    """A tool call whose arguments are an object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise TypeError(f"a tool call is {{'function': {{...}}}}, got {call!r}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"the arguments of a tool call must be JSON, got {arguments!r}: {error}"
            ) from None
    return {**call, "function": {**function, "arguments": arguments}}


def _refuse_half_characters(what: str, text: str) -> None:
    """Raise a ValueError if half of a surrogate pair stands in `text`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} is no valid text: character {error.start} is "
            f"{text[error.start]!r}, half of a surrogate pair"
        ) from None


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
        # Some are special and have no part of their own, like bos and eos: Llama 3
        # has 250 of them.
        added = getattr(tokenizer, "added_tokens_decoder", {})
        others = (i for i, token in added.items() if token.special)
        self.special_ids = frozenset((*tokenizer.all_special_ids, *others))
        self._bytes: dict[int, bytes] = {}

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

    def unfinished(self, token_ids: Sequence[int]) -> bytes:
        """The bytes at the end of tokens that only begin a character; see `bytes_of`.

        A character has at most four bytes, so eight tokens are more than enough.
        """
        last = self.bytes_of(token_ids[-1]) if token_ids else b""
        if last and last[-1] < 0x80:  # nearly always, in English
            return b""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in token_ids[-8:]:
            decoder.decode(self.bytes_of(token_id))
        return decoder.getstate()[0]

    def text_of(self, token_id: int, before: Sequence[int] = ()) -> str:
        """What a token adds to the text of those before it, as logprobs show it.

        "" if it is a part of a character; the one that completes the character has all
        of it. Put side by side, the tokens of a text are the text.
        """
        if not self.spelling:
            return self._difference(token_id, list(before[-5:]))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return decoder.decode(self.unfinished(before) + self.bytes_of(token_id))

    def _difference(self, token_id: int, before: list[int]) -> str:
        """The same for a tokenizer that can only decode."""
        now = self.tokenizer.decode([*before, token_id])
        if now.endswith("\ufffd"):
            return ""
        while before and self.tokenizer.decode(before).endswith("\ufffd"):
            before = before[:-1]
        return now[len(self.tokenizer.decode(before)) if before else 0 :]


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
        kept = [i for i in prompt_token_ids[-16:] if i not in self._skip]
        self._decoder.decode(texts.unfinished(kept))

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


class StopStrings:
    """The stop strings of a request, sorted: thousands cost about what one does.

    In a sorted list all strings that begin alike stand together, and bisection finds
    the place: a dozen comparisons for five thousand. Sorted by their ends they answer
    the other question.
    """

    def __init__(self, strings: list[str]):
        self._sorted = sorted(strings)
        self._turned = sorted(string[::-1] for string in strings)
        # For each the place of the longest other that it begins with, or -1.
        self._shorter: list[int] = []
        open_: list[int] = []
        for place, string in enumerate(self._turned):
            while open_ and not string.startswith(self._turned[open_[-1]]):
                open_.pop()
            self._shorter.append(open_[-1] if open_ else -1)
            open_.append(place)

    def goes_on(self, text: str) -> bool:
        """Whether `text` is the beginning of a stop string, and not all of it."""
        place = bisect_right(self._sorted, text)  # the first that is greater
        return place < len(self._sorted) and self._sorted[place].startswith(text)

    def ending(self, text: str) -> str | None:
        """The longest stop string that `text` ends with, or None."""
        turned = text[::-1]
        place = bisect_right(self._turned, turned) - 1
        # The one that `turned` begins with need not be its neighbour, but the neighbour
        # begins with it too.
        alike = len(commonprefix([turned, self._turned[place]])) if place >= 0 else 0
        while alike and place >= 0 and len(self._turned[place]) > alike:
            place = self._shorter[place]
        return self._turned[place][::-1] if alike and place >= 0 else None


class OutputBuilder:
    """One completion as it grows: tokens, text, logprobs, and why it ended.

    Args:
        texts: of the tokenizer.
        prompt_token_ids: the text may continue a character of theirs.
        params: of the request.
        eos_token_ids: tokens that end the text; ignored with `ignore_eos`. As in vLLM,
            the tokenizer's own gives no `stop_reason`, and any other its id.
        max_tokens: after how many tokens it ends at the latest.

    `stop_token_ids` are all tokens that `min_tokens` holds back: as in vLLM also the
    end of a text that `ignore_eos` ignores. `token_ids` is one list that grows, so that
    a row of the sampler can read it.
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
        ends = frozenset(() if params.ignore_eos else eos_token_ids)
        self._eos = ends & {texts.tokenizer.eos_token_id}  # one, or none
        self._stop_ids = (ends - self._eos).union(params.stop_token_ids)
        self.stop_token_ids = tuple(
            dict.fromkeys((*eos_token_ids, *params.stop_token_ids))
        )
        self._stops = StopStrings(params.stop) if params.stop else None
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
        ends = token_id in self._eos
        if may_stop and (ends or token_id in self._stop_ids):
            self.finish_reason = "stop"
            self.stop_reason = None if ends else token_id
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
        """Add decoded text, stop at a stop string, and settle how much may be shown.

        One character after the other, so that it doesn't matter how the text was cut
        into tokens: the stop string that is complete first counts, and of several that
        end together the longest. Not shown is the longest end that goes on in a stop
        string; so whatever is complete began there.
        """
        start = len(self._text)
        self._text += new
        for end in range(start + 1, len(self._text) + 1) if self._stops else ():
            stop = self._stops.ending(self._text[self._shown : end])
            if stop and may_stop:
                self.finish_reason, self.stop_reason = "stop", stop
                keeps = self._params.include_stop_str_in_output
                self._text = self._text[: end if keeps else end - len(stop)]
                break
            while self._shown < end and not self._stops.goes_on(
                self._text[self._shown : end]
            ):
                self._shown += 1
        if self.finish_reason or not self._stops:
            self._shown = len(self._text)

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
