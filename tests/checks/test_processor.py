"""The suite for text in and text out passes on the package and rejects mistakes."""

import codecs

import pytest

from folovllm_lite import checks
from folovllm_lite import processor as module
from folovllm_lite.processor import (
    ByteDetokenizer,
    InputProcessor,
    OutputBuilder,
    TokenTexts,
    WindowDetokenizer,
    find_stop,
    held_back,
)


def test_the_package_passes(capsys):
    checks.processor(module)
    out = capsys.readouterr().out
    assert "✗" not in out and "All 22 properties hold." in out


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
    def chat(self, messages):
        made = super().chat(messages)
        made["prompt_token_ids"] = self.tokenizer.encode(made["prompt"])
        return made


class NoGenerationPrompt(InputProcessor):
    def chat(self, messages):
        super().chat(messages)
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return {"prompt": text, "prompt_token_ids": ids}


class LooksAtTheFirstMessage(InputProcessor):
    def chat(self, messages):
        super().chat(messages[:1])
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return {"prompt": text, "prompt_token_ids": ids}


# ----- mutants: TokenTexts


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


# ----- mutants: stop strings


def the_first_to_begin(text, stops, start):
    found = [(text.find(s, max(0, start - len(s) + 1)), s) for s in stops]
    found = [(begin, begin + len(s), s) for begin, s in found if begin != -1]
    return min(found, default=None)


def the_first_of_the_list(text, stops, start):
    for stop in stops:
        begin = text.find(stop, max(0, start - len(stop) + 1))
        if begin != -1:
            return begin, begin + len(stop), stop
    return None


def only_in_the_new_text(text, stops, start):
    found = find_stop(text[start:], stops, 0)
    return found and (found[0] + start, found[1] + start, found[2])


def anywhere_in_the_text(text, stops, start):
    return find_stop(text, stops, 0)


def always_the_longest(text, stops):
    return min(len(text), max((len(stop) - 1 for stop in stops), default=0))


def the_shortest_overlap(text, stops):
    longest = max((len(stop) for stop in stops), default=0)
    for count in range(1, min(len(text), longest - 1) + 1):
        if any(stop.startswith(text[-count:]) for stop in stops):
            return count
    return 0


def the_first_stop_only(text, stops):
    return held_back(text, stops[:1])


def one_too_few(text, stops):
    longest = max((len(stop) for stop in stops), default=0)
    for count in range(min(len(text), longest - 2), 0, -1):
        if any(stop.startswith(text[-count:]) for stop in stops):
            return count
    return 0


# ----- mutants: OutputBuilder


class ShowsEverything(OutputBuilder):
    @property
    def text(self):
        return self._text


class HoldsToTheEnd(OutputBuilder):
    """What was held back isn't released by the last token."""

    def _write(self, new, may_stop):
        super()._write(new, may_stop)
        if self.finish_reason == "length":
            self._shown = len(self._text) - held_back(self._text, self._params.stop)


class LooksAtOneToken(OutputBuilder):
    def _write(self, new, may_stop):
        whole, self._text = self._text, ""
        super()._write(new, may_stop)
        self._text = whole + self._text
        self._shown += len(whole)


class StopsBeforeMinTokens(OutputBuilder):
    def _write(self, new, may_stop):
        super()._write(new, True)


class MinTokensIsOneMore(OutputBuilder):
    def append(self, token_id, logprob, logprobs=None):
        minimum, params = self._params.min_tokens, self._params
        params.min_tokens = minimum + 1 if minimum else 0
        super().append(token_id, logprob, logprobs)
        params.min_tokens = minimum


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


def strict(data):
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


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
    ],
    "TokenTexts": [DecodesAlone, ForgetsTheSoftHyphen, EverythingIsByteLevel],
    "ByteDetokenizer": [
        TokenByToken, DropsBrokenBytes, WaitsForReplacements, ForgetsThePrompt,
        LastPromptTokenOnly, ShowsThePromptAgain, SpecialTokensInThePrompt,
        NeverFinishes,
    ],
    "WindowDetokenizer": [WaitsForEver, NeverWaits, NoWindow],
    "find_stop": [
        the_first_to_begin, the_first_of_the_list, only_in_the_new_text,
        anywhere_in_the_text,
    ],
    "held_back": [
        always_the_longest, the_shortest_overlap, the_first_stop_only, one_too_few,
    ],
    "OutputBuilder": [
        ShowsEverything, HoldsToTheEnd, LooksAtOneToken, StopsBeforeMinTokens,
        MinTokensIsOneMore, EosNamesItself, EosIsShown, AlwaysIncludes, OneListForAll,
        LogprobsAlways, HalfACharacterIsLost,
    ],
    "predict_news": [
        _but(2, "�"), _but(3, "�!"), _but(4, " E"), _but(6, "O"), _but(7, ""),
        _but(8, ""), _but(10, "�E"), _but(11, "!"), lambda: NEWS[:-1], lambda: None,
    ],
    "ready": [
        everything_is_ready, waits_for_replacements, all_or_nothing,
        any_high_byte_waits, counts_from_the_lead_alone, only_the_last_byte, strict,
    ],
    "hide": [
        one_span_a_piece, marks_are_whole, waits_for_the_end, holds_the_longest,
        forgets_to_let_go, lets_go_of_the_hidden, one_state_for_both_marks,
        waits_for_both_marks,
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
