"""The suite for text in and text out passes on the package and rejects mistakes."""

import codecs
import dataclasses
from bisect import bisect_left, bisect_right
from unittest import mock

import pytest

from folovllm_lite import checks
from folovllm_lite import processor as module
from folovllm_lite.processor import (
    ByteDetokenizer,
    InputProcessor,
    OutputBuilder,
    StopStrings,
    TokenTexts,
    WindowDetokenizer,
)


def test_the_package_passes(capsys):
    checks.processor(module)
    out = capsys.readouterr().out
    assert "✗" not in out and "All 39 properties hold." in out


# ----- mutants: InputProcessor


class TakesBools(InputProcessor):
    @staticmethod
    def _ids(ids):
        if not isinstance(ids, list | tuple) or any(
            not isinstance(i, int) for i in ids
        ):
            raise TypeError("ids")
        return list(ids)


class SharesTheList(InputProcessor):
    @staticmethod
    def _ids(ids):
        InputProcessor._ids(ids)
        return ids


class OneIdTooMany(InputProcessor):
    def process(self, prompt, params):
        self.vocab_size += 1
        try:
            return super().process(prompt, params)
        finally:
            self.vocab_size -= 1


class NegativeIdsPass(InputProcessor):
    def process(self, prompt, params):
        text, ids = self._read(prompt)
        super().process([max(i, 0) for i in ids], params)
        return text, ids


class OneTokenTooLong(InputProcessor):
    def process(self, prompt, params):
        self.max_model_len += 1
        try:
            return super().process(prompt, params)
        finally:
            self.max_model_len -= 1


class NoRoomIsEnough(InputProcessor):
    """A prompt as long as the limit passes if nothing is asked for by number."""

    def process(self, prompt, params):
        if params.max_tokens is None:
            self.max_model_len += 1
        try:
            return super().process(prompt, params)
        finally:
            if params.max_tokens is None:
                self.max_model_len -= 1


class BosTwice(InputProcessor):
    def chat(self, messages, **options):
        made = super().chat(messages, **options)
        made["prompt_token_ids"] = self.tokenizer.encode(made["prompt"])
        return made


class NoGenerationPrompt(InputProcessor):
    def chat(self, messages, *, add_generation_prompt=False, **options):
        return super().chat(
            messages, add_generation_prompt=add_generation_prompt, **options
        )


class LooksAtTheFirstMessage(InputProcessor):
    def chat(self, messages, **options):
        super().chat(messages[:1], **options)
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return {"prompt": text, "prompt_token_ids": ids}


def _chat_with(change):
    """InputProcessor.chat, after `change` has had the messages and the options."""

    class Mutant(InputProcessor):
        def chat(self, messages, **options):
            return super().chat(*change(messages, options)[:1], **options)

    Mutant.__name__ = change.__name__
    return Mutant


def _each(messages, change):
    return [
        {**m, "content": change(m["content"])}
        if isinstance(m, dict) and isinstance(m.get("content"), list)
        else m
        for m in (messages if isinstance(messages, list) else [])
    ]


@_chat_with
def parts_without_a_line_between(messages, options):
    return (_each(messages, lambda c: "".join(part["text"] for part in c)),)


@_chat_with
def the_first_part_only(messages, options):
    return (_each(messages, lambda c: c[:1]),)


@_chat_with
def images_are_left_out(messages, options):
    return (_each(messages, lambda c: [p for p in c if p.get("type") == "text"]),)


@_chat_with
def none_becomes_a_word(messages, options):
    return (
        [
            {**m, "content": "None"}
            if isinstance(m, dict) and m.get("tool_calls")
            else m
            for m in messages
        ],
    )


def _drops(name):
    @_chat_with
    def mutant(messages, options):
        options.pop(name, None)
        return (messages,)

    mutant.__name__ = f"drops_{name}"
    return mutant


@_chat_with
def strings_are_no_parts(messages, options):
    return (_each(messages, lambda c: [p for p in c if isinstance(p, dict)] or c),)


class ArgumentsStayJson(InputProcessor):
    def chat(self, messages, **options):
        with mock.patch.object(module, "_tool_call", lambda call: call):
            return super().chat(messages, **options)


class ArgumentsAreParsedInPlace(InputProcessor):
    def chat(self, messages, **options):
        def parse(call):
            call["function"]["arguments"] = {"x": 1}
            return call

        with mock.patch.object(module, "_tool_call", parse):
            return super().chat(messages, **options)


class HandsOnWhatIsNoOption(InputProcessor):
    def chat(self, messages, **options):
        def unchecked(template, tools, more):
            options = {"tools": tools, "chat_template": template, **dict(more or {})}
            return {name: value for name, value in options.items() if value is not None}

        with mock.patch.object(module, "_template_options", unchecked):
            return super().chat(messages, **options)


class AnyKeyIsAPrompts(InputProcessor):
    """A misspelt key is dropped, and with it what the caller meant."""

    def _read(self, prompt):
        if isinstance(prompt, dict):
            prompt = {k: v for k, v in prompt.items() if k in module._PROMPT_KEYS}
        return super()._read(prompt)


class NoSaltIsLookedAt(InputProcessor):
    def _read(self, prompt):
        if isinstance(prompt, dict):
            prompt = {k: v for k, v in prompt.items() if k != "cache_salt"}
        return super()._read(prompt)


class TheVocabularyHasOneStopMore(InputProcessor):
    def process(self, prompt, params):
        stops = [i for i in params.stop_token_ids if i != self.vocab_size]
        return super().process(
            prompt, dataclasses.replace(params, stop_token_ids=stops)
        )


class NotAllOfTheVocabulary(InputProcessor):
    def process(self, prompt, params):
        if params.logprobs == self.vocab_size:
            raise ValueError(f"logprobs {params.logprobs}")
        return super().process(prompt, params)


class TheTemplatesErrorPasses(InputProcessor):
    def chat(self, messages, **options):
        try:
            return super().chat(messages, **options)
        except ValueError as error:
            raise error.__cause__ or error from None


class TheTemplatesWordsAreLost(InputProcessor):
    def chat(self, messages, **options):
        try:
            return super().chat(messages, **options)
        except ValueError as error:
            raise ValueError("bad conversation") from error


class HalfAPairReachesTheTokenizer(InputProcessor):
    def chat(self, messages, **options):
        with mock.patch.object(module, "_refuse_half_characters", lambda *_: None):
            return super().chat(messages, **options)


# ----- mutants: TokenTexts


class EverySequenceFallsBack(TokenTexts):
    @property
    def spelling(self):
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        kind = type(getattr(backend, "decoder", None)).__name__
        return {"ByteLevel": "ByteLevel", "Sequence": "ByteFallback"}.get(kind)


class BosAndEosAreSpecial(TokenTexts):
    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.special_ids = frozenset(tokenizer.all_special_ids)


class EveryAddedTokenIsSpecial(TokenTexts):
    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special_ids = frozenset((*tokenizer.all_special_ids, *added))


class DecodedAlone(TokenTexts):
    """As it was once: \ufffd for a part of a character, and no space in front."""

    def text_of(self, token_id, before=()):
        return self.tokenizer.decode([token_id])


class NothingForEveryPart(TokenTexts):
    """The part that completes a character is "" too."""

    def text_of(self, token_id, before=()):
        text = self.tokenizer.decode([token_id])
        return "" if "\ufffd" in text else text


class RemembersAcrossPlaces(TokenTexts):
    """A cache by the token alone, though what stands before it matters."""

    def text_of(self, token_id, before=()):
        kept = self.__dict__.setdefault("kept", {})
        if token_id not in kept:
            kept[token_id] = super().text_of(token_id, before)
        return kept[token_id]

    def bytes_of(self, token_id):
        return super().bytes_of(token_id)


class ShowsHalvesOfWords(TokenTexts):
    """Of a tokenizer that can only decode."""

    def _difference(self, token_id, before):
        return self.tokenizer.decode([*before, token_id])[
            len(self.tokenizer.decode(before)) if before else 0 :
        ]


class OneTokenBefore(TokenTexts):
    def text_of(self, token_id, before=()):
        return super().text_of(token_id, before[-1:])


class TwoTokensBefore(TokenTexts):
    def unfinished(self, token_ids):
        return super().unfinished(token_ids[-2:])


class DecodesAlone(TokenTexts):
    def bytes_of(self, token_id):
        return self.tokenizer.decode([token_id]).encode()


class ForgetsTheSoftHyphen(TokenTexts):
    """Byte ad is the one hole in the printable bytes from a1 on."""

    def bytes_of(self, token_id):
        printable = [*range(33, 127), *range(161, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        alphabet = {chr(byte): byte for byte in printable}
        alphabet |= {chr(256 + i): byte for i, byte in enumerate(others)}
        token = self.tokenizer.convert_ids_to_tokens(token_id)
        if all(char in alphabet for char in token):
            return bytes(alphabet[char] for char in token)
        return token.encode()


class EverythingIsByteLevel(TokenTexts):
    spelling = "ByteLevel"


# ----- mutants: ByteDetokenizer


class TokenByToken(ByteDetokenizer):
    def append(self, token_id):
        if token_id in self._skip:
            return ""
        return self._texts.bytes_of(token_id).decode("utf-8", "replace")


class DropsBrokenBytes(ByteDetokenizer):
    def __init__(self, texts, prompt_token_ids, skip_special):
        super().__init__(texts, prompt_token_ids, skip_special)
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")


class WaitsForReplacements(ByteDetokenizer):
    """Nothing is shown while the text ends in U+FFFD."""

    def __init__(self, texts, prompt_token_ids, skip_special):
        super().__init__(texts, prompt_token_ids, skip_special)
        self._data = b""

    def append(self, token_id):
        if token_id in self._skip:
            return ""
        self._data += self._texts.bytes_of(token_id)
        text = self._data.decode("utf-8", "replace")
        if text.endswith("�"):
            return ""
        self._data = b""
        return text

    def finish(self):
        return self._data.decode("utf-8", "replace")


class ForgetsThePrompt(ByteDetokenizer):
    def __init__(self, texts, prompt_token_ids, skip_special):
        super().__init__(texts, [], skip_special)


class LastPromptTokenOnly(ByteDetokenizer):
    def __init__(self, texts, prompt_token_ids, skip_special):
        super().__init__(texts, prompt_token_ids[-1:], skip_special)


class ShowsThePromptAgain(ByteDetokenizer):
    def __init__(self, texts, prompt_token_ids, skip_special):
        super().__init__(texts, [], skip_special)
        data = b"".join(map(texts.bytes_of, prompt_token_ids[-8:]))
        self._again = self._decoder.decode(data)

    def append(self, token_id):
        again, self._again = self._again, ""
        return again + super().append(token_id)


class SpecialTokensInThePrompt(ByteDetokenizer):
    def __init__(self, texts, prompt_token_ids, skip_special):
        super().__init__(texts, [], skip_special)
        for token_id in prompt_token_ids[-8:]:
            self._decoder.decode(texts.bytes_of(token_id))


class NoSpecialTokenOfAPromptCounts(ByteDetokenizer):
    def __init__(self, texts, prompt_token_ids, skip_special):
        kept = [i for i in prompt_token_ids if i not in texts.special_ids]
        super().__init__(texts, kept, skip_special)


class NeverFinishes(ByteDetokenizer):
    def finish(self):
        return ""


# ----- mutants: WindowDetokenizer


class WaitsForEver(WindowDetokenizer):
    def append(self, token_id):
        self._ids.append(token_id)
        return self._take(most=10**9)


class NeverWaits(WindowDetokenizer):
    def append(self, token_id):
        self._ids.append(token_id)
        return self._take(most=0)


class NoWindow(WindowDetokenizer):
    _BACK = 0

    def __init__(self, *args):
        super().__init__(*args)
        self._ids, self._read = [], 0

    def append(self, token_id):
        new = super().append(token_id)
        if new:
            self._ids, self._read = [], 0
        return new


class WaitsOnWithTheOldCount(WindowDetokenizer):
    """What one character waited is taken for the next one's."""

    def _take(self, most):
        waited = self._waiting
        new = super()._take(most)
        self._waiting = waited if new else self._waiting
        return new


class BeginsAtOne(WindowDetokenizer):
    def __init__(self, *args):
        super().__init__(*args)
        self._waiting = (0, 1)


class KeepsTheWholeWindow(WindowDetokenizer):
    """Right, and slower with every token."""

    def _take(self, most):
        whole = self._ids
        new = super()._take(most)
        if new:
            self._ids, self._read = whole, len(whole)
        return new


# ----- mutants: StopStrings


class SortsTheCallersList(StopStrings):
    def __init__(self, strings):
        strings.sort()
        super().__init__(strings)


class WholeOnesGoOn(StopStrings):
    def goes_on(self, text):
        return text in self._sorted or super().goes_on(text)


class NeighboursAreEnough(StopStrings):
    """bisect_left finds the string itself, which goes on no more."""

    def goes_on(self, text):
        place = bisect_left(self._sorted, text)
        return (
            place < len(self._sorted)
            and self._sorted[place].startswith(text)
            and self._sorted[place] != text
        )


class UnsortedList(StopStrings):
    def __init__(self, strings):
        super().__init__(strings)
        self._sorted = list(strings)


class NothingGoesOn(StopStrings):
    """An empty text is the beginning of everything, and this one denies it."""

    def goes_on(self, text):
        return bool(text) and super().goes_on(text)


class TheNeighbourOrNothing(StopStrings):
    """What `turned` begins with need not stand right before it."""

    def ending(self, text):
        turned = text[::-1]
        place = bisect_right(self._turned, turned) - 1
        found = self._turned[place] if place >= 0 else None
        return found[::-1] if found and turned.startswith(found) else None


class TheShortestEnding(StopStrings):
    def ending(self, text):
        ends = [turned[::-1] for turned in self._turned]
        return min((e for e in ends if text.endswith(e)), key=len, default=None)


class AnyStopInside(StopStrings):
    def ending(self, text):
        ends = [turned[::-1] for turned in self._turned]
        return max((e for e in ends if e in text), key=len, default=None)


class TheFirstOfTheList(StopStrings):
    def __init__(self, strings):
        super().__init__(strings)
        self._given = strings

    def ending(self, text):
        return next((stop for stop in self._given if text.endswith(stop)), None)


class TheFirstOnly(StopStrings):
    def __init__(self, strings):
        super().__init__(strings[:1])


class OneAfterAnother(StopStrings):
    """Right, and as slow as the number of strings."""

    def goes_on(self, text):
        return any(s.startswith(text) and s != text for s in self._sorted)

    def ending(self, text):
        ends = (turned[::-1] for turned in self._turned)
        return max((e for e in ends if text.endswith(e)), key=len, default=None)


# ----- mutants: OutputBuilder


def _cut(builder, begin, end, stop):
    builder.finish_reason, builder.stop_reason = "stop", stop
    keeps = builder._params.include_stop_str_in_output
    builder._text = builder._text[: end if keeps else begin]


def _hold(builder, count):
    builder._shown = len(builder._text)
    if not builder.finish_reason:
        builder._shown -= count


def _overlaps(builder):
    """How many characters at the end could begin a stop string: all such counts."""
    text, stops = builder._text, builder._params.stop
    return [
        count
        for count in range(1, len(text) + 1)
        if any(s.startswith(text[-count:]) and len(s) > count for s in stops)
    ]


def _found(builder, start):
    """Each stop string's first place that ends behind `start`."""
    stops = builder._params.stop
    at = [(builder._text.find(s, max(0, start - len(s) + 1)), s) for s in stops]
    return [(begin, begin + len(s), s) for begin, s in at if begin != -1]


def _writes(choose, hold=lambda builder: max(_overlaps(builder), default=0)):
    """A `_write` that takes the match that `choose` takes, and holds back `hold`."""

    def write(self, new, may_stop):
        start = len(self._text)
        self._text += new
        match = choose(self, start) if may_stop else None
        if match:
            _cut(self, *match)
        _hold(self, hold(self))

    return write


def first_to_end(builder, start):
    found = [(end, begin, s) for begin, end, s in _found(builder, start)]
    best = min(found, default=None)
    return best and (best[1], best[0], best[2])


def first_to_begin(builder, start):
    return min(_found(builder, start), default=None)


def first_of_the_list(builder, start):
    return next(iter(_found(builder, start)), None)


def anywhere_in_the_text(builder, start):
    return first_to_end(builder, 0)


def only_in_the_new_text(builder, start):
    whole, builder._text = builder._text, builder._text[start:]
    found = first_to_end(builder, 0)
    builder._text = whole
    return found and (found[0] + start, found[1] + start, found[2])


def shortest_of_those_that_end_together(builder, start):
    found = [(end, -begin, s) for begin, end, s in _found(builder, start)]
    best = min(found, default=None)
    return best and (-best[1], best[0], best[2])


another_write = _writes(first_to_end)


def test_another_way_to_write_passes(capsys):
    """Right, though slow: the method is judged with a list of a few stop strings."""
    with pytest.raises(checks.CheckFailed, match="1 of"):
        checks.processor(write=another_write)
    assert "✗ Thousands of stop strings hardly hold up" in capsys.readouterr().out


the_first_to_begin = _writes(first_to_begin)
the_first_of_the_list = _writes(first_of_the_list)
an_old_match_counts = _writes(anywhere_in_the_text)
the_new_text_alone = _writes(only_in_the_new_text)
the_shortest_of_two = _writes(shortest_of_those_that_end_together)
holds_the_longest_always = _writes(
    first_to_end,
    lambda b: min(len(b._text), max(map(len, b._params.stop), default=1) - 1),
)
holds_the_shortest_overlap = _writes(
    first_to_end, lambda b: min(_overlaps(b), default=0)
)
holds_one_too_few = _writes(
    first_to_end, lambda b: max(max(_overlaps(b), default=0) - 1, 0)
)
holds_nothing = _writes(first_to_end, lambda b: 0)


def holds_to_the_end(self, new, may_stop):
    """What was held back isn't released by the last token."""
    another_write(self, new, may_stop)
    if self.finish_reason and self.stop_reason is None:
        self._shown = len(self._text) - max(_overlaps(self), default=0)


def stops_before_min_tokens(self, new, may_stop):
    OutputBuilder._write(self, new, True)


def forgets_what_passed(self, new, may_stop):
    """Within min_tokens nothing is looked at, so nothing is held back either."""
    if may_stop:
        OutputBuilder._write(self, new, True)
    else:
        self._text += new
        self._shown = len(self._text)


def goes_on_behind_the_stop(self, new, may_stop):
    """The text is cut, but the rest of the token is written behind it."""
    OutputBuilder._write(self, new, may_stop)
    if isinstance(self.stop_reason, str):
        self._text += new[-1:]
        self._shown = len(self._text)


def what_passed_counts_later(self, new, may_stop):
    """Goes over all of the text again, so over what min_tokens let pass."""
    new, self._text = self._text + new, ""
    OutputBuilder._write(self, new, may_stop)


def gives_no_reason(self, new, may_stop):
    OutputBuilder._write(self, new, may_stop)
    self.stop_reason = None


def a_stop_is_no_end(self, new, may_stop):
    before = self.finish_reason
    OutputBuilder._write(self, new, may_stop)
    self.finish_reason = before or self.finish_reason


def shows_one_more_at_most(self, new, may_stop):
    """An `if` where a `while` is needed."""
    for char in new:
        self._text += char
        waits = self._text[self._shown :]
        stop = self._stops.ending(waits) if self._stops and may_stop else None
        if stop:
            _cut(self, len(self._text) - len(stop), len(self._text), stop)
            break
        if self._stops and not self._stops.goes_on(waits):
            self._shown += 1
    if self.finish_reason or not self._stops:
        self._shown = len(self._text)


def what_passed_waits(self, new, may_stop):
    """A stop string that min_tokens let pass is held back, whole."""
    shown = self._shown
    OutputBuilder._write(self, new, may_stop)
    stops = self._params.stop
    if not self.finish_reason and any(self._text.endswith(s) for s in stops):
        self._shown = shown


def the_token_ended_it(self, new, may_stop):
    """A stop token that is shown is not looked through for stop strings."""
    if self.finish_reason == "stop":
        self._text += new
        self._shown = len(self._text)
    else:
        OutputBuilder._write(self, new, may_stop)


def the_reason_is_all_that_waits(self, new, may_stop):
    for char in new:
        waits = self._text[self._shown :] + char
        OutputBuilder._write(self, char, may_stop)
        if isinstance(self.stop_reason, str):
            self.stop_reason = waits
            return
    OutputBuilder._write(self, "", may_stop)


def no_reason_where_it_is_kept(self, new, may_stop):
    OutputBuilder._write(self, new, may_stop)
    if self._params.include_stop_str_in_output and isinstance(self.stop_reason, str):
        self.stop_reason = None


def nothing_ends_within_min_tokens(self, new, may_stop):
    """Keeps what waits although max_tokens has ended the text."""
    OutputBuilder._write(self, new, may_stop)
    if not may_stop and self._stops:
        self._shown = len(self._text) - max(_overlaps(self), default=0)


class ShowsEverything(OutputBuilder):
    @property
    def text(self):
        return self._text


class LooksAtOneToken(OutputBuilder):
    def _write(self, new, may_stop):
        whole, self._text, self._shown = self._text, "", 0
        super()._write(new, may_stop)
        self._text = whole + self._text
        self._shown += len(whole)


class MinTokensIsOneMore(OutputBuilder):
    def append(self, token_id, logprob, logprobs=None):
        minimum, params = self._params.min_tokens, self._params
        params.min_tokens = minimum + 1 if minimum else 0
        super().append(token_id, logprob, logprobs)
        params.min_tokens = minimum


class TheStopTokenComesFirst(OutputBuilder):
    """An end among stop_token_ids once named itself."""

    def append(self, token_id, logprob, logprobs=None):
        super().append(token_id, logprob, logprobs)
        if self.finish_reason == "stop" and token_id in self._params.stop_token_ids:
            self.stop_reason = token_id


class EveryEndIsSilent(OutputBuilder):
    """So it was: two ends in generation_config.json, and no reason for either."""

    def __init__(self, texts, prompt, params, eos, max_tokens):
        super().__init__(texts, prompt, params, eos, max_tokens)
        self._eos = frozenset(() if params.ignore_eos else eos)


class TheFirstEndIsItsOwn(OutputBuilder):
    def __init__(self, texts, prompt, params, eos, max_tokens):
        super().__init__(texts, prompt, params, eos, max_tokens)
        ends = () if params.ignore_eos else eos
        self._eos = frozenset(ends[:1])
        self._stop_ids = frozenset((*ends[1:], *params.stop_token_ids))


class OtherEndsAreNeverIgnored(OutputBuilder):
    def __init__(self, texts, prompt, params, eos, max_tokens):
        super().__init__(texts, prompt, params, eos, max_tokens)
        own = {texts.tokenizer.eos_token_id}
        self._stop_ids |= frozenset(eos) - own


class IgnoresTheEndAmongStops(OutputBuilder):
    def __init__(self, texts, prompt, params, eos, max_tokens):
        super().__init__(texts, prompt, params, eos, max_tokens)
        if params.ignore_eos:
            self._stop_ids -= set(eos)


class LengthWins(OutputBuilder):
    def append(self, token_id, logprob, logprobs=None):
        super().append(token_id, logprob, logprobs)
        if self.finish_reason and len(self.token_ids) >= self._max_tokens:
            self.finish_reason = "length"


class OneTokenTooMany(OutputBuilder):
    def __init__(self, texts, prompt, params, eos, max_tokens):
        super().__init__(texts, prompt, params, eos, max_tokens + 1)


class BansOnlyWhatEndsIt(OutputBuilder):
    def __init__(self, texts, prompt, params, eos, max_tokens):
        super().__init__(texts, prompt, params, eos, max_tokens)
        self.stop_token_ids = (*self._eos, *self._stop_ids)


class BansStopsOnly(OutputBuilder):
    def __init__(self, texts, prompt, params, eos, max_tokens):
        super().__init__(texts, prompt, params, eos, max_tokens)
        self.stop_token_ids = tuple(params.stop_token_ids)


class FinishesAtTheLimitOnly(OutputBuilder):
    """An end token drops the character that was begun before it."""

    def append(self, token_id, logprob, logprobs=None):
        ends = token_id in self._eos or token_id in self._stop_ids
        finish = self._detokenizer.finish
        self._detokenizer.finish = (lambda: "") if ends else finish
        super().append(token_id, logprob, logprobs)
        self._detokenizer.finish = finish


class EosNamesItself(OutputBuilder):
    def append(self, token_id, logprob, logprobs=None):
        super().append(token_id, logprob, logprobs)
        if self.finish_reason == "stop" and self.stop_reason is None:
            self.stop_reason = token_id


class EosIsShown(OutputBuilder):
    def append(self, token_id, logprob, logprobs=None):
        ended = token_id in self._eos
        super().append(token_id, logprob, logprobs)
        if ended and self.finish_reason == "stop":
            self._write(self._detokenizer.append(token_id), True)


class AlwaysIncludes(OutputBuilder):
    def _write(self, new, may_stop):
        start = len(self._text)
        super()._write(new, may_stop)
        if isinstance(self.stop_reason, str) and not self._text.endswith(
            self.stop_reason
        ):
            self._text = self._text[:start] + new
            self._shown = len(self._text)


class OneListForAll(OutputBuilder):
    def output(self, index):
        made = super().output(index)
        made.token_ids = self.token_ids
        return made


class LogprobsAlways(OutputBuilder):
    def output(self, index):
        made = super().output(index)
        made.logprobs = made.logprobs or []
        return made


class NoPrompt(OutputBuilder):
    def __init__(self, texts, prompt_token_ids, *others):
        super().__init__(texts, [], *others)


class SkipsAllSpecial(OutputBuilder):
    def __init__(self, texts, prompt_token_ids, *others):
        super().__init__(texts, prompt_token_ids, *others)
        if texts.spelling:
            self._detokenizer = ByteDetokenizer(texts, prompt_token_ids, True)


class AlwaysAWindow(OutputBuilder):
    def __init__(self, texts, prompt_token_ids, params, *others):
        super().__init__(texts, prompt_token_ids, params, *others)
        skip = params.skip_special_tokens
        self._detokenizer = WindowDetokenizer(texts, prompt_token_ids, skip, True)


class AlwaysBytes(OutputBuilder):
    def __init__(self, texts, prompt_token_ids, params, *others):
        super().__init__(texts, prompt_token_ids, params, *others)
        skip = params.skip_special_tokens
        self._detokenizer = ByteDetokenizer(texts, prompt_token_ids, skip)


class AnEndIsNeverShown(OutputBuilder):
    def append(self, token_id, logprob, logprobs=None):
        if token_id in self._eos:
            self._params = dataclasses.replace(
                self._params, include_stop_str_in_output=False
            )
        super().append(token_id, logprob, logprobs)


class OwnEndAtOnce(OutputBuilder):
    def append(self, token_id, logprob, logprobs=None):
        if token_id in self._eos:
            self._params = dataclasses.replace(self._params, min_tokens=0)
        super().append(token_id, logprob, logprobs)


class NoLengthWithinMinTokens(OutputBuilder):
    def append(self, token_id, logprob, logprobs=None):
        super().append(token_id, logprob, logprobs)
        if len(self.token_ids) <= self._params.min_tokens:
            self.finish_reason = None


class AnotherListEachTime(OutputBuilder):
    def append(self, token_id, logprob, logprobs=None):
        self.token_ids = list(self.token_ids)
        super().append(token_id, logprob, logprobs)


class OutputShowsAll(OutputBuilder):
    def output(self, index):
        made = super().output(index)
        made.text = self._text
        return made


class HalfACharacterIsLost(OutputBuilder):
    def append(self, token_id, logprob, logprobs=None):
        self._detokenizer.finish = lambda: ""
        super().append(token_id, logprob, logprobs)


# ----- the exercises: solutions, and plausible mistakes

NEWS = ["Go ", "", "快!", " ", "", "ENO", "�", "�", "", "�", ""]


def predict_news():
    return NEWS


def _but(number, text):
    def changed():
        return [text if i == number else each for i, each in enumerate(NEWS, start=1)]

    changed.__name__ = f"token_{number}_shows_{text!r}"
    return changed


def ready(data):
    for back in range(1, min(3, len(data)) + 1):
        lead = data[-back]
        if lead < 0x80 or lead >= 0xC0:
            break
    else:
        return len(data)
    need = 1 + sum(lead >= first for first in (0xC2, 0xE0, 0xF0))
    if lead >= 0xF5 or back >= need:
        return len(data)
    least, most = {
        0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)
    }.get(lead, (0x80, 0xBF))  # fmt: skip
    if back > 1 and not least <= data[1 - back] <= most:
        return len(data)
    return len(data) - back


def everything_is_ready(data):
    return len(data)


def waits_for_replacements(data):
    text = data.decode("utf-8", "replace")
    return 0 if text.endswith("�") else len(data)


def all_or_nothing(data):
    return len(data) if ready(data) == len(data) else 0


def any_high_byte_waits(data):
    return len(data.rstrip(bytes(range(0x80, 0x100))))


def counts_from_the_lead_alone(data):
    for back in range(1, min(3, len(data)) + 1):
        lead = data[-back]
        if lead >= 0xC0:
            need = 2 + (lead >= 0xE0) + (lead >= 0xF0)
            return len(data) - back if back < need else len(data)
        if lead < 0x80:
            break
    return len(data)


def only_the_last_byte(data):
    return len(data) - (1 if data and data[-1] >= 0xC0 else 0)


def _ready_but(**wrong):
    """`ready` with other answers for an unfinished character of some leads."""

    def changed(data):
        for lead, seconds in wrong.items():
            lead, tail = int(lead[1:], 16), data[-2:]
            if len(tail) == 2 and tail[0] == lead and tail[1] in seconds:
                return len(data) - 2 * (ready(data) == len(data))
            if not seconds and tail[-1:] == bytes([lead]):
                return len(data) - (ready(data) == len(data))
        return ready(data)

    changed.__name__ = "_".join(["wrong_at", *wrong])
    return changed


def looks_at_short_data_only(data):
    return ready(data) if len(data) < 5 else len(data)


def strict(data):
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def held_back(text, stops):
    """How many characters at the end of a text could begin one of some strings."""
    counts = range(1, len(text) + 1)
    return max((n for n in counts if StopStrings(stops).goes_on(text[-n:])), default=0)


def hide(pieces, begin, end):
    text, inside = "", False
    for piece in pieces:
        text += piece
        shown = ""
        while True:
            mark = end if inside else begin
            before, found, after = text.partition(mark)
            if not found:
                break
            shown += "" if inside else before
            text, inside = after, not inside
        keep = held_back(text, [mark])
        if not inside:
            shown += text[: len(text) - keep]
        text = text[len(text) - keep :]
        yield shown
    if not inside:
        yield text


def one_span_a_piece(pieces, begin, end):
    text, inside = "", False
    for piece in pieces:
        text += piece
        mark = end if inside else begin
        before, found, after = text.partition(mark)
        shown = "" if inside else before
        if found:
            text, inside = after, not inside
        else:
            text = ""
        yield shown
    if not inside:
        yield text


def marks_are_whole(pieces, begin, end):
    inside = False
    for piece in pieces:
        shown = ""
        while True:
            mark = end if inside else begin
            before, found, after = piece.partition(mark)
            shown += "" if inside else before
            if not found:
                break
            piece, inside = after, not inside
        yield shown


def waits_for_the_end(pieces, begin, end):
    yield "".join(list(hide(list(pieces), begin, end)))


def holds_the_longest(pieces, begin, end):
    text, inside = "", False
    for piece in pieces:
        text += piece
        shown = ""
        while True:
            mark = end if inside else begin
            before, found, after = text.partition(mark)
            if not found:
                break
            shown += "" if inside else before
            text, inside = after, not inside
        cut = max(0, len(text) - len(mark) + 1)
        shown += "" if inside else text[:cut]
        text = text[cut:]
        yield shown
    if not inside:
        yield text


def forgets_to_let_go(pieces, begin, end):
    before = None
    for each in hide(pieces, begin, end):
        if before is not None:
            yield before
        before = each


def lets_go_of_the_hidden(pieces, begin, end):
    whole = []

    def kept():
        for piece in pieces:
            whole.append(piece)
            yield piece

    yield from hide(kept(), begin, end)
    text = "".join(whole)
    if text.rfind(begin) > text.rfind(end):
        yield text[text.rfind(begin) :]


def one_state_for_both_marks(pieces, begin, end):
    """Looks for the nearest of both marks, whichever side it is on."""
    text, inside = "", False
    for piece in pieces:
        text += piece
        shown = ""
        while True:
            found = [(text.find(m), m) for m in (begin, end) if m in text]
            if not found:
                break
            at, mark = min(found)
            shown += "" if inside else text[:at]
            text, inside = text[at + len(mark) :], mark == begin
        keep = held_back(text, [begin, end])
        shown += "" if inside else text[: len(text) - keep]
        text = text[len(text) - keep :]
        yield shown
    if not inside:
        yield text


def strips_its_pieces(pieces, begin, end):
    yield from hide((piece.strip() or piece.strip(" ") for piece in pieces), begin, end)


def one_state_for_all_streams(pieces, begin, end, state=["", False]):  # noqa: B006
    for piece in pieces:
        state[0] += piece
        while (mark := end if state[1] else begin) in state[0]:
            before, _, state[0] = state[0].partition(mark)
            yield "" if state[1] else before
            state[1] = not state[1]
        keep = len(state[0]) - held_back(state[0], [mark])
        yield "" if state[1] else state[0][:keep]
        state[0] = state[0][keep:]
    if not state[1]:
        yield state[0]
    state[:] = ["", False]


def waits_for_both_marks(pieces, begin, end):
    """Finds the right mark, but holds back what could begin either."""
    text, inside = "", False
    for piece in pieces:
        text += piece
        while (mark := end if inside else begin) in text:
            before, _, text = text.partition(mark)
            yield "" if inside else before
            inside = not inside
        keep = len(text) - held_back(text, [begin, end])
        yield "" if inside else text[:keep]
        text = text[keep:]
    if not inside:
        yield text


MUTANTS = {
    "InputProcessor": [
        TakesBools, SharesTheList, OneIdTooMany, NegativeIdsPass, OneTokenTooLong,
        NoRoomIsEnough, BosTwice, NoGenerationPrompt, LooksAtTheFirstMessage,
        parts_without_a_line_between, the_first_part_only, images_are_left_out,
        none_becomes_a_word, _drops("tools"), _drops("chat_template"),
        _drops("chat_template_kwargs"), _drops("continue_final_message"),
        ArgumentsStayJson, ArgumentsAreParsedInPlace, TheTemplatesErrorPasses,
        TheTemplatesWordsAreLost, HalfAPairReachesTheTokenizer, HandsOnWhatIsNoOption,
        AnyKeyIsAPrompts, NoSaltIsLookedAt, TheVocabularyHasOneStopMore,
        NotAllOfTheVocabulary, strings_are_no_parts,
    ],
    "TokenTexts": [
        DecodesAlone, ForgetsTheSoftHyphen, EverythingIsByteLevel, BosAndEosAreSpecial,
        EveryAddedTokenIsSpecial, DecodedAlone, NothingForEveryPart,
        RemembersAcrossPlaces, OneTokenBefore, EverySequenceFallsBack,
        ShowsHalvesOfWords, TwoTokensBefore,
    ],
    "ByteDetokenizer": [
        TokenByToken, DropsBrokenBytes, WaitsForReplacements, ForgetsThePrompt,
        LastPromptTokenOnly, ShowsThePromptAgain, SpecialTokensInThePrompt,
        NeverFinishes, NoSpecialTokenOfAPromptCounts,
    ],
    "WindowDetokenizer": [
        WaitsForEver, NeverWaits, NoWindow, KeepsTheWholeWindow, WaitsOnWithTheOldCount,
        BeginsAtOne,
    ],
    "StopStrings": [
        WholeOnesGoOn, NeighboursAreEnough, UnsortedList, NothingGoesOn,
        TheNeighbourOrNothing, TheShortestEnding, AnyStopInside, TheFirstOfTheList,
        TheFirstOnly, OneAfterAnother, SortsTheCallersList,
    ],
    "write": [
        the_first_to_begin, the_first_of_the_list, an_old_match_counts,
        the_new_text_alone, the_shortest_of_two, holds_the_longest_always,
        holds_the_shortest_overlap, holds_one_too_few, holds_nothing, holds_to_the_end,
        stops_before_min_tokens, forgets_what_passed, goes_on_behind_the_stop,
        gives_no_reason, a_stop_is_no_end, what_passed_counts_later,
        shows_one_more_at_most, what_passed_waits, the_token_ended_it,
        the_reason_is_all_that_waits, no_reason_where_it_is_kept,
        nothing_ends_within_min_tokens,
    ],
    "OutputBuilder": [
        ShowsEverything, LooksAtOneToken, MinTokensIsOneMore, TheStopTokenComesFirst,
        IgnoresTheEndAmongStops, EveryEndIsSilent, TheFirstEndIsItsOwn,
        OtherEndsAreNeverIgnored, LengthWins, OneTokenTooMany, BansOnlyWhatEndsIt,
        BansStopsOnly, FinishesAtTheLimitOnly, EosNamesItself, EosIsShown,
        AlwaysIncludes, OneListForAll, LogprobsAlways, HalfACharacterIsLost, NoPrompt,
        SkipsAllSpecial, AlwaysAWindow, AlwaysBytes, AnEndIsNeverShown, OwnEndAtOnce,
        NoLengthWithinMinTokens, AnotherListEachTime, OutputShowsAll,
    ],
    "predict_news": [
        _but(2, "�"), _but(3, "�!"), _but(4, " E"), _but(6, "O"), _but(7, ""),
        _but(8, ""), _but(10, "�E"), _but(11, "!"), lambda: NEWS[:-1], lambda: None,
    ],
    "ready": [
        everything_is_ready, waits_for_replacements, all_or_nothing,
        any_high_byte_waits, counts_from_the_lead_alone, only_the_last_byte, strict,
        _ready_but(xc2=()), _ready_but(xc1=()), _ready_but(xe1=()), _ready_but(xf2=()),
        _ready_but(xe0=b"\xa0"), _ready_but(xe0=b"\x9f"), _ready_but(xf0=b"\x8f"),
        _ready_but(xf0=b"\x90"), _ready_but(xf4=b"\x8f"), looks_at_short_data_only,
    ],
    "hide": [
        one_span_a_piece, marks_are_whole, waits_for_the_end, holds_the_longest,
        forgets_to_let_go, lets_go_of_the_hidden, one_state_for_both_marks,
        waits_for_both_marks, strips_its_pieces, one_state_for_all_streams,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, mutant",
    [(name, mutant) for name, mutants in MUTANTS.items() for mutant in mutants],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_suite_rejects(name, mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.processor(**{name: mutant})
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out


def test_the_solutions_pass(capsys):
    checks.processor(predict_news=predict_news, ready=ready, hide=hide)
    assert "All 13 properties hold." in capsys.readouterr().out


def test_a_wrong_prediction_is_not_corrected(capsys):
    """The red lines say which token, never what it shows."""
    with pytest.raises(checks.CheckFailed):
        checks.processor(predict_news=lambda: ["?"] * 11)
    out = capsys.readouterr().out
    assert "token 1" in out and "ENO" not in out and "快" not in out
