"""What has to be true of text that goes in and text that comes out (notebook 08)."""

import codecs
import json
import random
from collections.abc import Callable, Iterator
from itertools import product
from time import thread_time
from types import SimpleNamespace
from typing import Any

from folovllm_lite import processor as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail
from folovllm_lite.checks.tiny import Letters
from folovllm_lite.outputs import Logprob
from folovllm_lite.sampling_params import SamplingParams

_SUITE = processor = Suite(
    package,
    """Judge InputProcessor, TokenTexts, ByteDetokenizer, WindowDetokenizer,
    StopStrings and OutputBuilder, or some of them.

    `checks.processor(StopStrings=Mine)` judges one class, `checks.processor(module)`
    all of a module. `write` is judged as the method `_write` of the package's
    OutputBuilder, and the exercises of notebook 08 as `predict_news`, `ready` and
    `hide`.
    """,
    methods={"write": "OutputBuilder._write"},
)


# ----- tokenizers that are small enough to see through


class _Pieces:
    """Byte-level: token i is the i-th of the given byte strings."""

    def __init__(
        self,
        pieces: list[bytes],
        special: tuple[int, ...] = (),
        eos_token_id: int | None = None,
    ):
        self.pieces, self.all_special_ids = pieces, list(special)
        self.eos_token_id = eos_token_id
        self.added_tokens_decoder: dict[int, Any] = {}
        self.backend_tokenizer = SimpleNamespace(decoder=type("ByteLevel", (), {})())
        alphabet = package._byte_alphabet()  # noqa: SLF001
        self._letter = {byte: char for char, byte in alphabet.items()}

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return "".join(self._letter[byte] for byte in self.pieces[token_id])

    def decode(self, ids: Any, skip_special_tokens: bool = False, **_: Any) -> str:
        skip = self.all_special_ids if skip_special_tokens else ()
        kept = [self.pieces[i] for i in ids if i not in skip]
        return b"".join(kept).decode("utf-8", "replace")


class _Spaced:
    """Words; a space stands before each, but not at the start of a text."""

    all_special_ids, eos_token_id = (), None
    backend_tokenizer = SimpleNamespace(decoder=type("Metaspace", (), {})())
    words = ("once", "upon", "a", "time", "�", "�")  # the last two are halves of 从

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(self.words[i] for i in ids).replace("� �", "从")


def _show(pieces: list[bytes]) -> str:
    """Pieces as a line: text where it is text, else hex."""
    shown = []
    for piece in pieces:
        try:
            shown.append(repr(piece.decode()))
        except UnicodeDecodeError:
            shown.append(piece.hex(" "))
    return " | ".join(shown)


def _expect_text(given: str, got: Any, wanted: str) -> None:
    """Like `expect`, with quotes, so that nothing and a space can be seen."""
    expect(given, repr(got), repr(wanted))


def _run(p: SimpleNamespace, pieces: list[bytes], prompt: int = 0, **more: Any) -> Any:
    """An OutputBuilder fed with the pieces behind the prompt's, and what it showed.

    Of the end tokens `eos`, `own` is the tokenizer's, mostly the first.
    """
    special, eos = more.pop("special", ()), more.pop("eos", ())
    own = more.pop("own", eos[0] if eos else None)
    params = SamplingParams(**{"max_tokens": None, **more})
    texts = p.TokenTexts(_Pieces(pieces, special, own))
    ids = list(range(len(pieces)))
    limit = params.max_tokens or len(ids) - prompt
    builder = p.OutputBuilder(texts, ids[:prompt], params, eos, limit)
    shown = []
    for token_id in ids[prompt:]:
        builder.append(token_id, -0.5)
        shown.append(builder.text)
        if builder.finish_reason:
            break
    return builder, shown


def _cuts(data: bytes, rng: random.Random) -> list[bytes]:
    """Some bytes in pieces, most of them one to three bytes long."""
    pieces = []
    while data:
        size = rng.choice((1, 1, 2, 3, 5))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def _streams(count: int, letters: str = "aé从🙂�\n") -> Iterator[list[bytes]]:
    """Texts of one to four bytes a character, cut anywhere, the shortest first."""
    rng = random.Random(8)
    for number in range(count):
        text = "".join(rng.choices(letters, k=1 + number // 8))
        yield _cuts(text.encode(), rng)


# ----- InputProcessor


def _letters() -> Letters:
    """<s> is 0, and a to e are 1 to 5."""
    return Letters("abcde", special=("<s>",))


def _input(p: SimpleNamespace, tokenizer: Any = None, limit: int = 8) -> Any:
    return p.InputProcessor(tokenizer or _letters(), 6, limit)


@_SUITE.property(
    "InputProcessor", hint="a prompt of ids has no text; its list belongs to the caller"
)
def _forms(p: SimpleNamespace) -> None:
    """A prompt is a string, ids, or a dict with either; ids have no text and are
    copied.
    """
    given, params = _input(p), SamplingParams(max_tokens=1)
    for prompt, wanted in (
        ("ab", ("ab", [0, 1, 2])),
        ([1, 2], (None, [1, 2])),
        ({"prompt": "ab"}, ("ab", [0, 1, 2])),
        ({"prompt_token_ids": [1, 2]}, (None, [1, 2])),
        ({"prompt": "ab", "prompt_token_ids": [5]}, ("ab", [5])),
        ({"prompt": "ab", "cache_salt": "mine"}, ("ab", [0, 1, 2])),
        ({"prompt": "a", "prompt_token_ids": [5], "cache_salt": "x"}, ("a", [5])),
    ):
        expect(f"process({prompt!r})", tuple(given.process(prompt, params)), wanted)
    mine = [1, 2]
    given.process(mine, params)[1].append(3)
    expect("the caller's list after the answer's was changed", mine, [1, 2])


@_SUITE.property(
    "InputProcessor", hint="True is an int to isinstance; which type is it really?"
)
def _strange(p: SimpleNamespace) -> None:
    """What is no prompt is a TypeError; an empty one, or half a surrogate pair, a
    ValueError.
    """
    given, params = _input(p), SamplingParams(max_tokens=1)
    for prompt in (
        None, 5, {"text": "ab"}, ["a"], [1.0], [True], {"prompt": 5},
        {"prompt": "ab", "text": "ab"}, {"prompt_token_ids": "ab"},
        {"prompt": 5, "prompt_token_ids": [1]}, {"prompt": "ab", "cache_salt": 5},
        {"prompt": "ab", "cache_salt": ""},
    ):  # fmt: skip
        call = lambda prompt=prompt: given.process(prompt, params)  # noqa: E731
        expect_error(f"process({prompt!r})", call, TypeError)
    half = {"prompt": "ab", "cache_salt": "a\ud83d"}
    for prompt in ([], {"prompt_token_ids": []}, "a\ud83d", half):
        call = lambda prompt=prompt: given.process(prompt, params)  # noqa: E731
        expect_error(f"process({prompt!r})", call, ValueError)
    for wrong in (None, {"max_tokens": 1}):
        call = lambda wrong=wrong: given.process("ab", wrong)  # noqa: E731
        expect_error(f"process('ab', {wrong!r})", call, TypeError)


@_SUITE.property(
    "InputProcessor",
    hint="the last id is V - 1, and a negative index is one that Python accepts",
)
def _vocabulary(p: SimpleNamespace) -> None:
    """Ids outside the vocabulary, in the prompt or as stop tokens, are refused with
    both numbers.
    """
    given, params = _input(p), SamplingParams(max_tokens=1)
    expect("V = 6: process([0, 5])", given.process([0, 5], params)[1], [0, 5])
    for wrong in (6, -1, 99):
        call = lambda wrong=wrong: given.process([1, wrong], params)  # noqa: E731
        expect_error(f"V = 6: process([1, {wrong}])", call, ValueError, str(wrong), "6")
    for stops in ([7], [6], [5, 6]):
        wish = SamplingParams(max_tokens=1, stop_token_ids=stops)
        call = lambda wish=wish: given.process([1], wish)  # noqa: E731
        last = str(stops[-1])
        expect_error(f"V = 6: stop_token_ids={stops}", call, ValueError, last, "6")
    all_of_them = {"stop_token_ids": [5], "logprobs": 6, "prompt_logprobs": 6}
    wish = SamplingParams(max_tokens=1, **all_of_them)
    shown = ", ".join(f"{name}={value}" for name, value in all_of_them.items())
    expect(f"V = 6: process([1]), {shown}", given.process([1], wish)[1], [1])
    for name in ("logprobs", "prompt_logprobs"):
        wish = SamplingParams(max_tokens=1, **{name: 7})
        call = lambda wish=wish: given.process([1], wish)  # noqa: E731
        expect_error(f"V = 6: {name}=7", call, ValueError, name, "7")


@_SUITE.property(
    "InputProcessor", hint="prompt and output share the limit; equal is not beyond"
)
def _length(p: SimpleNamespace) -> None:
    """Prompt and max_tokens together fill at most max_model_len; refused with the
    numbers.
    """
    given = _input(p, limit=5)
    ask = lambda n, wanted: given.process([1] * n, SamplingParams(max_tokens=wanted))  # noqa: E731
    for n, wanted in ((3, 2), (4, 1), (4, None)):
        name = f"max_model_len 5, prompt {n}, max_tokens {wanted}: length of the ids"
        expect(name, len(ask(n, wanted)[1]), n)
    for n, wanted in ((3, 3), (5, None), (5, 1), (9, None)):
        name = f"max_model_len 5, prompt {n}, max_tokens {wanted}"
        call = lambda n=n, wanted=wanted: ask(n, wanted)  # noqa: E731
        expect_error(name, call, ValueError, "5", str(n))
    for least, fits in ((2, True), (3, False)):
        params = SamplingParams(max_tokens=None, min_tokens=least)
        call = lambda params=params: given.process([1] * 3, params)  # noqa: E731
        name = f"max_model_len 5, prompt 3, max_tokens None, min_tokens {least}"
        if fits:
            expect(f"{name}: length of the ids", len(call()[1]), 3)
        else:
            expect_error(name, call, ValueError, "5", "3")


@_SUITE.property(
    "InputProcessor", hint="whose turn is it at the end of the text, and who wrote <s>?"
)
def _chat(p: SimpleNamespace) -> None:
    """A chat becomes the template's text, ready for the answer, and no special token
    is added twice.
    """
    made = _input(p).chat([{"role": "user", "content": "ab"}])
    given = "chat([user: 'ab']) with a template that writes <s> itself:"
    expect(f"{given} prompt", made["prompt"], "<s>user:ab;assistant:")
    # The letters a to e: e of user, ab, and a, a of assistant.
    expect(f"{given} prompt_token_ids", made["prompt_token_ids"], [0, 5, 1, 2, 1, 1])


@_SUITE.property(
    "InputProcessor", hint="look at every message before the template sees the first"
)
def _no_chat(p: SimpleNamespace) -> None:
    """No messages, a message without role and content, or no template: refused."""
    given = _input(p)
    good = {"role": "user", "content": "a"}
    for messages, error in (
        ([], ValueError),
        ((), ValueError),
        (good, ValueError),
        ([good, {"role": "user"}], TypeError),
        ([{"content": "a"}], TypeError),
        (["a"], TypeError),
        ([{"role": "user", "content": None}], TypeError),
        ([{"role": "user", "content": 5}], TypeError),
        ([{"role": "user", "content": [{"type": "image_url"}]}], TypeError),
        ([{"role": "user", "content": [{"type": "image", "text": "a"}]}], TypeError),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], TypeError),
        ([{"role": 5, "content": "a"}], TypeError),
        ([{"role": "user", "content": None, "tool_calls": []}], TypeError),
        ([{"role": "user", "content": None, "tool_calls": ["f"]}], TypeError),
        ([{"role": "assistant", "content": "a", "tool_calls": {"f": 1}}], TypeError),
    ):
        call = lambda messages=messages: given.chat(messages)  # noqa: E731
        expect_error(f"chat({messages!r})", call, error)
    bare = _letters()
    bare.chat_template = None
    call = lambda: _input(p, bare).chat([good])  # noqa: E731
    expect_error("a tokenizer without chat template", call, ValueError)
    call = lambda: given.chat([{**good, "content": "a\ud83d"}])  # noqa: E731
    expect_error("chat([user: 'a\\ud83d'])", call, ValueError)


@_SUITE.property(
    "InputProcessor", hint="what does the template know of a part, or of None?"
)
def _contents(p: SimpleNamespace) -> None:
    """A content may be a list of text parts, a line each, or None beside tool calls."""
    given, text = _input(p), {"type": "text", "text": "a"}
    call = {"function": {"name": "f", "arguments": '{"x": 1}'}}
    for message, wanted in (
        ({"role": "user", "content": [text]}, "user:a;"),
        ({"role": "user", "content": [text, {"type": "text", "text": "b"}]},
         "user:a\nb;"),
        ({"role": "user", "content": ["a", text]}, "user:a\na;"),
        ({"role": "assistant", "content": None, "tool_calls": [call]}, "assistant:;"),
    ):  # fmt: skip
        made = given.chat([message])["prompt"]
        _expect_text(f"chat([{message}]): prompt", made[3 : 3 + len(wanted)], wanted)
    expect("the caller's call, afterwards", call["function"]["arguments"], '{"x": 1}')
    expect("the caller's message, afterwards", message["tool_calls"], [call])
    got = given.chat([message])["prompt"].partition(" call ")[2]
    _expect_text("arguments '{\"x\": 1}' as the template sees them", got, "{'x': 1}")
    for arguments, wanted in (({"x": 1}, "{'x': 1}"), ("", "{}")):
        message["tool_calls"] = [{"function": {"name": "f", "arguments": arguments}}]
        got = given.chat([message])["prompt"].partition(" call ")[2]
        what = f"arguments {arguments!r} as the template sees them"
        _expect_text(what, got, wanted)
    message["tool_calls"] = [{"function": {"name": "f", "arguments": "{x"}}]
    call = lambda: given.chat([message])  # noqa: E731
    expect_error("arguments '{x' of a tool call", call, ValueError, "{x")


@_SUITE.property(
    "InputProcessor", hint="hand it on: apply_chat_template takes them all"
)
def _chat_options(p: SimpleNamespace) -> None:
    """The options of vLLM reach the template; what is none doesn't, nor do two that
    contradict each other.
    """
    user = [{"role": "user", "content": "a"}]
    given, tools = _input(p), [{"name": "f"}]
    for options, wanted in (
        ({"add_generation_prompt": False}, "<s>user:a;"),
        ({"add_generation_prompt": False, "continue_final_message": True},
         "<s>user:a"),
        ({"chat_template": "x"}, "<s>user:a;assistant: chat_template=x"),
        ({"tools": tools}, f"<s>user:a;assistant: tools={tools}"),
        ({"chat_template_kwargs": {"enable_thinking": False}},
         "<s>user:a;assistant: enable_thinking=False"),
    ):  # fmt: skip
        shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
        got = given.chat(user, **options)["prompt"]
        _expect_text(f"chat([user: 'a'], {shown}): prompt", got, wanted)
    for options in (
        {"tools": "f"}, {"tools": {"name": "f"}}, {"tools": [{"name": "f"}, "g"]},
        {"chat_template_kwargs": ["enable_thinking"]},
        {"chat_template_kwargs": {"tokenize": True}},
    ):  # fmt: skip
        call = lambda options=options: given.chat(user, **options)  # noqa: E731
        expect_error(f"chat([user: 'a'], {options!r})", call, TypeError)
    call = lambda: given.chat(user, continue_final_message=True)  # noqa: E731
    expect_error("chat([user: 'a'], continue_final_message=True)", call, ValueError)


@_SUITE.property(
    "InputProcessor", hint="a template is somebody's program: it may raise"
)
def _refusing_template(p: SimpleNamespace) -> None:
    """What the template refuses is a ValueError with its words."""
    call = lambda: _input(p).chat([{"role": "nobody", "content": "a"}])  # noqa: E731
    given = "a template that raises 'no such role'"
    expect_error(given, call, ValueError, "no such role")


# ----- TokenTexts


@_SUITE.property(
    "TokenTexts", hint="printable bytes are their own letter; which 68 aren't?"
)
def _bytes(p: SimpleNamespace) -> None:
    """A token's bytes are its own, all 256 of them; an added token is plain text."""
    texts = p.TokenTexts(_Pieces([bytes([byte]) for byte in range(256)]))
    expect("spelling of a byte-level tokenizer", texts.spelling, "ByteLevel")
    for byte in (0x41, 0x20, 0xE9, 0xAD, *range(256)):
        expect(
            f"bytes_of the token of byte {byte:02x}",
            texts.bytes_of(byte).hex(),
            f"{byte:02x}",
        )
    tokenizer = _Pieces([b"a", b"b"], special=(1,))
    tokenizer.convert_ids_to_tokens = lambda _: "<龙>"
    texts = p.TokenTexts(tokenizer)
    expect("bytes_of the added token <龙>", texts.bytes_of(0), "<龙>".encode())
    tokenizer.convert_ids_to_tokens = lambda _: None  # a model may have ids to spare
    given = "bytes_of an id for which the tokenizer has no token"
    expect(given, p.TokenTexts(tokenizer).bytes_of(1), b"")


@_SUITE.property(
    "TokenTexts", hint="bos and eos are named; added_tokens_decoder holds the others"
)
def _special_ids(p: SimpleNamespace) -> None:
    """Special is what the tokenizer names so, and every added token that says so."""
    tokenizer = _Pieces([b"a", b"b", b"c", b"d"], special=(1,))
    expect("all_special_ids [1]", sorted(p.TokenTexts(tokenizer).special_ids), [1])
    tokenizer.added_tokens_decoder = {
        1: SimpleNamespace(special=True),
        2: SimpleNamespace(special=True),
        3: SimpleNamespace(special=False),
    }
    given = "all_special_ids [1]; added: 1 and 2 special, 3 not"
    expect(given, sorted(p.TokenTexts(tokenizer).special_ids), [1, 2])


@_SUITE.property(
    "TokenTexts", hint="which bytes did the tokens before it leave unfinished?"
)
def _text_of(p: SimpleNamespace) -> None:
    """A token's text is what it adds to those before it: "" for a part of a character,
    all of it for the last part.
    """
    ends_in_80 = [b"\xe6\x80", b"\x80"]
    three = [b"\xe9", b"\xbe", b"\x99"]
    for pieces in ([b"a", b"b"], three, ends_in_80, *_streams(40)):
        texts = p.TokenTexts(_Pieces(pieces))
        before = ""
        for i in range(len(pieces)):
            data = b"".join(pieces[: i + 1])
            now = data.decode("utf-8", "ignore")
            given = f"{_show(pieces)}: text_of({i}, {list(range(i))})"
            _expect_text(given, texts.text_of(i, list(range(i))), now[len(before) :])
            before = now
    texts = p.TokenTexts(_Pieces([b"\xe9\xbe", b"\x99", b"a"]))
    for pieces, wanted in (
        ([b"\xe9", b"\xbe"], b"\xe9\xbe"), ([b"a", b"\xe9"], b"\xe9"),
        ([b"\x99", b"!"], b""), ([b"\xe9", b"a"], b""), ([b"\xff"], b""),
        ([b"a", b"\xf0", b"\x9f", b"\x99"], b"\xf0\x9f\x99"),
    ):  # fmt: skip
        got = p.TokenTexts(_Pieces(pieces)).unfinished(range(len(pieces)))
        expect(f"{_show(pieces)}: unfinished", got, wanted)
    for _ in range(2):  # in either order, if something is remembered
        _expect_text("e9 be | 99 | 'a': text_of(1, [0])", texts.text_of(1, [0]), "龙")
        _expect_text("e9 be | 99 | 'a': text_of(1), alone", texts.text_of(1), "�")
    texts = p.TokenTexts(_Spaced())
    for token_id, before, wanted in (
        (3, [0, 1], " time"), (0, [], "once"), (5, [4], "从"), (5, [0, 4], " 从"),
        (4, [0], ""), (0, [0, 1, 2, 3, 0, 1], " once"),
    ):  # fmt: skip
        given = (
            f"once upon a time | the two halves of 从: text_of({token_id}, {before})"
        )
        _expect_text(given, texts.text_of(token_id, before), wanted)


@_SUITE.property(
    "TokenTexts", hint="this kind has a token for a byte, and text for everything else"
)
def _fallback(p: SimpleNamespace) -> None:
    """Llama 2's tokens are read too: <0xE4> is a byte, ▁ a space; other kinds have no
    spelling.
    """
    steps = [{"type": kind} for kind in ("Replace", "ByteFallback", "Fuse", "Strip")]
    backend = SimpleNamespace(
        decoder=type("Sequence", (), {})(),
        to_str=lambda: json.dumps({"decoder": {"decoders": steps}}),
    )
    tokens = ["<0xE4>", "\u2581once", "龙", "<0xZZ>"]
    tokenizer = SimpleNamespace(
        all_special_ids=[],
        backend_tokenizer=backend,
        convert_ids_to_tokens=lambda i: tokens[i],
    )
    texts = p.TokenTexts(tokenizer)
    expect("spelling of Llama 2's tokenizer", texts.spelling, "ByteFallback")
    wanted = [b"\xe4", b" once", "龙".encode(), b"<0xZZ>"]
    for i, token in enumerate(tokens):
        expect(f"bytes_of {token}", texts.bytes_of(i), wanted[i])
    expect("spelling of another kind", p.TokenTexts(_Spaced()).spelling, None)
    for kinds in (["Replace", "Fuse"], ["Replace", "ByteFallback", "Metaspace"]):
        steps[:] = [{"type": kind} for kind in kinds]
        given = f"spelling of a decoder of the parts {', '.join(kinds)}"
        expect(given, p.TokenTexts(tokenizer).spelling, None)


# ----- ByteDetokenizer


@_SUITE.property(
    "ByteDetokenizer",
    hint="the lead byte says how long a character is; who remembers what came before?",
)
def _whole(p: SimpleNamespace) -> None:
    """Every token shows the characters that are complete, none half, none late."""
    for pieces in ([b"a"], [b"\xe9", b"\xbe", b"\x99"], *_streams(80)):
        made = p.ByteDetokenizer(p.TokenTexts(_Pieces(pieces)), [], True)
        text = ""
        for count in range(len(pieces)):
            text += made.append(count)
            wanted = b"".join(pieces[: count + 1]).decode("utf-8", "ignore")
            _expect_text(
                f"{_show(pieces)}: shown after {count + 1} tokens", text, wanted
            )
        expect(f"{_show(pieces)}: finish()", made.finish(), "")


@_SUITE.property(
    "ByteDetokenizer", hint="ef bf bd is a character like others; a stray 99 never is"
)
def _meant(p: SimpleNamespace) -> None:
    """U+FFFD that is meant comes at once; broken bytes become U+FFFD and hold nobody
    up.
    """
    for pieces, wanted in (
        (["�".encode()], ["�"]),
        (["�".encode()] * 6, ["�"] * 6),
        ([b"\x99", b"a"], ["�", "a"]),
        ([b"\xe9", b"a"], ["", "�a"]),
    ):
        made = p.ByteDetokenizer(p.TokenTexts(_Pieces(pieces)), [], True)
        got = [made.append(i) for i in range(len(pieces))]
        expect(f"{_show(pieces)}: new text of each token", got, wanted)


@_SUITE.property(
    "ByteDetokenizer", hint="its first bytes are in the prompt; its end is the output's"
)
def _prompt(p: SimpleNamespace) -> None:
    """A prompt that ends inside a character: the whole character is output, once."""
    for text in ("é", "从", "🙂", "�"):
        data = text.encode()
        for cut in range(1, len(data)):
            single = [bytes([byte]) for byte in data]
            for pieces, prompt in (
                ([b"ab" + data[:cut], data[cut:], b"!"], 1),
                ([b"ab", *single, b"!"], 1 + cut),
            ):
                texts = p.TokenTexts(_Pieces(pieces))
                ids = list(range(len(pieces)))
                made = p.ByteDetokenizer(texts, ids[:prompt], True)
                got = "".join(made.append(i) for i in ids[prompt:])
                given = (
                    f"prompt {_show(pieces[:prompt])}, then {_show(pieces[prompt:])}"
                )
                _expect_text(given, got, text + "!")


@_SUITE.property(
    "ByteDetokenizer", hint="a token that is skipped adds no bytes, wherever it stands"
)
def _special(p: SimpleNamespace) -> None:
    """Special tokens are left out or kept, and never break a character open."""
    for skip, pieces, prompt, wanted in (
        (True, [b"a", b"<s>", b"b"], 0, "ab"),
        (False, [b"a", b"<s>", b"b"], 0, "a<s>b"),
        (True, [b"\xe9", b"<s>", b"\xbe\x99"], 0, "龙"),
        (True, [b"\xe9\xbe", b"<s>", b"\x99"], 2, "龙"),
        (False, [b"\xe9\xbe", b"<s>", b"\x99"], 2, "�"),
    ):
        texts = p.TokenTexts(_Pieces(pieces, special=(1,)))
        ids = list(range(len(pieces)))
        made = p.ByteDetokenizer(texts, ids[:prompt], skip)
        got = "".join(map(made.append, ids[prompt:])) + made.finish()
        given = f"{_show(pieces)}, {prompt} of them prompt, skip_special={skip}"
        _expect_text(given, got, wanted)


# ----- WindowDetokenizer


@_SUITE.property(
    "WindowDetokenizer", hint="the new text is what a window gained; the rest was shown"
)
def _window(p: SimpleNamespace) -> None:
    """Through a window of decoded tokens the text comes whole, and no half character
    in between.
    """
    for pieces in (
        [b"a"],
        [b"\xe9", b"\xbe", b"\x99", b"a"],
        [bytes([byte]) for byte in "🙂a".encode()],
        [bytes([byte]) for byte in "ab🙂🙂c".encode()],
        *_streams(80, "aé从🙂\n"),
    ):
        text = b"".join(pieces).decode()
        made = p.WindowDetokenizer(p.TokenTexts(_Pieces(pieces)), [], True, True)
        shown = ""
        for i in range(len(pieces)):
            shown += made.append(i)
            if not text.startswith(shown):
                given = f"{_show(pieces)}: shown after {i + 1} tokens"
                fail(given, repr(shown), f"a beginning of {text!r}")
        given = f"{_show(pieces)}: all of it"
        _expect_text(given, shown + made.finish(), text)


@_SUITE.property(
    "WindowDetokenizer", hint="no character has more than four bytes: when is it long?"
)
def _window_meant(p: SimpleNamespace) -> None:
    """It waits for at most four tokens when a text ends in U+FFFD."""
    made = p.WindowDetokenizer(
        p.TokenTexts(_Pieces(["�".encode()] * 6)), [], True, True
    )
    text = ""
    for count in range(1, 7):
        text += made.append(count - 1)
        if len(text) <= count - 4:
            given = f"{count} times the token 'ef bf bd': characters shown"
            fail(given, len(text), f"at least {count - 3}")
    expect("6 times the token 'ef bf bd'", text + made.finish(), "�" * 6)


@_SUITE.property(
    "WindowDetokenizer",
    hint="decode a token together with those before it, never alone",
)
def _window_spaces(p: SimpleNamespace) -> None:
    """A tokenizer that writes the first token of a text differently loses no space."""
    ids = [0, 1, 2, 3] * 3
    for prompt in (0, 1, 8):
        made = p.WindowDetokenizer(p.TokenTexts(_Spaced()), ids[:prompt], True, True)
        got = "".join(map(made.append, ids[prompt:])) + made.finish()
        before = _Spaced().decode(ids[:prompt])
        wanted = _Spaced().decode(ids)[len(before) :]
        expect(f"12 words, {prompt} of them prompt: the output's text", got, wanted)


@_SUITE.property(
    "WindowDetokenizer",
    hint="which tokens does the window still need once their text is shown?",
)
def _window_small(p: SimpleNamespace) -> None:
    """It decodes a few tokens each time, however long the text has become."""
    tokenizer, counts = _Spaced(), []
    decode = tokenizer.decode
    tokenizer.decode = lambda ids, **more: counts.append(len(ids)) or decode(ids)
    made = p.WindowDetokenizer(p.TokenTexts(tokenizer), [0, 1] * 50, True, True)
    for token_id in [0, 1, 2, 3] * 25:
        made.append(token_id)
    if sum(counts) > 100 * 20:
        given = "100 words behind a prompt of 100: ids that were decoded"
        fail(given, sum(counts), "not more than 20 a token")


# ----- stop strings


@_SUITE.property(
    "StopStrings",
    hint="a stop string that is all there goes on no more: how long is it?",
)
def _goes_on(p: SimpleNamespace) -> None:
    """Method goes_on tells the beginning of a stop string, and all of one is none."""
    for stops, text, wanted in (
        (["ab"], "a", True), (["ab"], "ab", False), (["ab"], "b", False),
        (["ab"], "", True), (["ab", "abc"], "ab", True), (["b", "ab"], "a", True),
        (["b", "d"], "c", False), (["b", "a"], "z", False), (["aa", "ac"], "ab", False),
        (["a" * 40], "a" * 39, True), (["a" * 40], "a" * 40, False),
    ):  # fmt: skip
        given = f"StopStrings({stops}).goes_on({text!r})"
        mine = list(stops)
        expect(given, p.StopStrings(mine).goes_on(text), wanted)
        expect(f"{given}: the caller's list afterwards", mine, stops)


@_SUITE.property(
    "StopStrings", hint="turned around, an end is a beginning: who stands just before?"
)
def _ending(p: SimpleNamespace) -> None:
    """Method ending gives the longest stop string that a text ends with, or None."""
    for stops, text, wanted in (
        (["b"], "ab", "b"), (["b"], "ba", None), (["b"], "", None),
        (["b", "ab"], "ab", "ab"), (["ab", "b"], "cb", "b"), (["ab"], "b", None),
        (["a", "bba"], "ba", "a"), (["a", "cba", "dcba"], "xba", "a"),
        (["x", "xx"], "axx", "xx"), (["cd", "bcd"], "abcd", "bcd"),
    ):  # fmt: skip
        got = p.StopStrings(stops).ending(text)
        expect(f"StopStrings({stops}).ending({text!r})", got, wanted)
    rng = random.Random(4)
    for number in range(300):
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(5)]
        text = "".join(rng.choices("ab", k=number // 50))
        ends = [stop for stop in stops if text.endswith(stop)]
        begun = any(stop.startswith(text) and stop != text for stop in stops)
        made = p.StopStrings(stops)
        wanted = [max(ends, key=len, default=None), begun]
        given = f"StopStrings({stops}), {text!r}: ending, goes_on"
        expect(given, [made.ending(text), made.goes_on(text)], wanted)


def _naive(text: str, stops: list[str], include: bool) -> str:
    """Where a text ends if it is looked at after each of its characters."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            return text[: end if include else end - len(max(hits, key=len))]
    return text


@_SUITE.property("OutputBuilder", hint="nothing waits if there are no stop strings")
def _plain_text(p: SimpleNamespace) -> None:
    """Without stop strings all characters that are complete are shown at once."""
    for pieces, wanted in (
        ([b"a"], ["a"]),
        ([b"a", b"b"], ["a", "ab"]),
        ([b"\xe9\xbe", b"\x99E", b"."], ["", "龙E", "龙E."]),
    ):
        shown = _run(p, pieces)[1]
        expect(f"{_show(pieces)}: shown after each token", shown, wanted)


class _Wordy(_Spaced):
    """The words, with an end token of its own kind: they can only be decoded."""

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return self.words[token_id]


@_SUITE.property(
    "OutputBuilder",
    hint="which detokenizer, with which prompt, and what is done with special tokens?",
)
def _read_right(p: SimpleNamespace) -> None:
    """Bytes are read where tokens spell them, else a window of tokens is decoded; the
    prompt and skip_special_tokens count.
    """
    for pieces, prompt, more, wanted in (
        ([b"a\xe9\xbe", b"\x99", b"!"], 1, {}, ["龙", "龙!"]),
        ([b"a", "�🙂".encode()[:-1], b"\x82"], 0, {}, ["a", "a�", "a�🙂"]),
        ([b"a", b"<s>", b"b"], 0, {"special": (1,)}, ["a", "a", "ab"]),
        ([b"a", b"<s>", b"b"], 0, {"special": (1,), "skip_special_tokens": False},
         ["a", "a<s>", "a<s>b"]),
    ):  # fmt: skip
        shown = _run(p, pieces, prompt, **more)[1]
        given = f"prompt {_show(pieces[:prompt]) or 'empty'}, {_show(pieces[prompt:])}"
        given += "".join(f", {name}={value}" for name, value in more.items())
        expect(f"{given}: shown after each token", shown, wanted)
    params, texts = SamplingParams(max_tokens=9), p.TokenTexts(_Wordy())
    builder, shown = p.OutputBuilder(texts, [0], params, (), 9), []
    for token_id in (1, 2):
        builder.append(token_id, -0.5)
        shown.append(builder.text)
    given = "a tokenizer that spells no bytes, prompt 'once', then upon | a: shown"
    expect(given, shown, [" upon", " upon a"])


def _expect_end(p: SimpleNamespace, pieces: list[bytes], wanted: Any, **more: Any):
    """Compare text, number of tokens, finish_reason and stop_reason."""
    made = _run(p, pieces, **more)[0].output(0)
    got = (made.text, len(made.token_ids), made.finish_reason, made.stop_reason)
    names = {"eos": "eos_token_ids", "own": "the tokenizer's eos_token_id"}
    shown = [f"{names.get(k, k)}={v!r}" for k, v in more.items()]
    given = ", ".join([_show(pieces), *shown])
    expect(f"{given}: text, tokens, finish_reason, stop_reason", got, wanted)


_END = [b"a", b"<end>", b"b"]


@_SUITE.property("OutputBuilder", hint="the end token is silent, and it counts")
def _end_token(p: SimpleNamespace) -> None:
    """An end token leaves no text, unless it is asked for, and no stop_reason;
    ignore_eos goes on past it.
    """
    _expect_end(p, _END, ("a", 2, "stop", None), eos=(1,))
    _expect_end(p, _END, ("a<end>b", 3, "length", None), eos=(1,), ignore_eos=True)
    more = {"eos": (1,), "include_stop_str_in_output": True}
    _expect_end(p, _END, ("a<end>", 2, "stop", None), **more)


@_SUITE.property(
    "OutputBuilder", hint="one end is the tokenizer's own, and texts.tokenizer knows it"
)
def _other_end(p: SimpleNamespace) -> None:
    """An end token that isn't the tokenizer's own is the stop_reason, as in vLLM."""
    more = {"eos": (1, 2), "own": 2}
    _expect_end(p, _END, ("a", 2, "stop", 1), **more)
    more = {"eos": (0, 1), "own": 1, "min_tokens": 1, "max_tokens": 9}
    _expect_end(p, _END[::2], ("a", 2, "stop", None), **more)
    more = {"eos": (1, 2), "own": 2}
    _expect_end(p, _END, ("a<end>b", 3, "length", None), **more, ignore_eos=True)
    _expect_end(p, _END, ("a", 2, "stop", 1), eos=(1,), own=None)


@_SUITE.property("OutputBuilder", hint="which token was it? and may its text be seen?")
def _stop_token(p: SimpleNamespace) -> None:
    """A stop token is the stop_reason; its text is left out unless it is asked for."""
    _expect_end(p, _END, ("a", 2, "stop", 1), stop_token_ids=[1])
    more = {"stop_token_ids": [1], "include_stop_str_in_output": True}
    _expect_end(p, _END, ("a<end>", 2, "stop", 1), **more)


@_SUITE.property(
    "OutputBuilder", hint="the token is both: in vLLM the end of the text comes first"
)
def _both_ends(p: SimpleNamespace) -> None:
    """An end token among stop_token_ids is an end; under ignore_eos a stop token."""
    more = {"eos": (1,), "stop_token_ids": [1]}
    _expect_end(p, _END, ("a", 2, "stop", None), **more)
    _expect_end(p, _END, ("a", 2, "stop", 1), **more, ignore_eos=True)


@_SUITE.property(
    "OutputBuilder", hint="two reasons for one token: which is looked at last?"
)
def _last_allowed(p: SimpleNamespace) -> None:
    """max_tokens ends it for length, unless its last token is an end or a stop."""
    _expect_end(p, _END, ("a", 1, "length", None), max_tokens=1)
    _expect_end(p, _END, ("a", 2, "stop", None), max_tokens=2, eos=(1,))
    _expect_end(p, _END, ("a", 2, "stop", 1), max_tokens=2, stop_token_ids=[1])
    made = _run(p, _END, max_tokens=3, stop="b")[0].output(0)
    given = f"{_show(_END)}, max_tokens=3, stop='b': finish_reason, stop_reason"
    expect(given, [made.finish_reason, made.stop_reason], ["stop", "b"])
    more = {"max_tokens": 2, "min_tokens": 2, "eos": (1,)}
    _expect_end(p, _END, ("a<end>", 2, "length", None), **more)


@_SUITE.property(
    "OutputBuilder",
    "ByteDetokenizer",
    hint="the detokenizer may hold some bytes: ask it at every end; what does its "
    "finish() give?",
)
def _dropped(p: SimpleNamespace) -> None:
    """A character that nobody finishes is shown as U+FFFD, whatever ends the text."""
    made = p.ByteDetokenizer(p.TokenTexts(_Pieces([b"a\xe9\xbe"])), [], True)
    got = [made.append(0), made.finish()]
    expect("61 e9 be, and then the end: append, finish", got, ["a", "�"])
    pieces = [b"a", b"\xe9\xbe", b"<end>"]
    _expect_end(p, pieces, ("a�", 2, "length", None), max_tokens=2)
    _expect_end(p, pieces, ("a�", 3, "stop", None), eos=(2,))
    _expect_end(p, pieces, ("a�", 3, "stop", 2), stop_token_ids=[2])
    more = {"stop_token_ids": [1], "include_stop_str_in_output": True}
    _expect_end(p, pieces, ("a�", 2, "stop", 1), **more)


@_SUITE.property(
    "OutputBuilder",
    hint="after each character: is a stop string complete? if not, what can still go "
    "on? and once the text has ended, what waits?",
)
def _stops(p: SimpleNamespace) -> None:
    """A stop string ends the text at the same place wherever the tokens are cut."""
    _expect_end(p, [b"a", b"b"], ("a", 2, "stop", "b"), stop="b")
    _expect_end(p, [b"abcd"], ("a", 1, "stop", "bc"), stop=["bcd", "bc"])
    _expect_end(p, [b"abcd"], ("a", 1, "stop", "bcd"), stop=["cd", "bcd"])
    _expect_end(p, [b"ab", b"c"], ("a", 2, "stop", "bc"), stop=["abcd", "bc"])
    more = {"stop": "b", "include_stop_str_in_output": True}
    _expect_end(p, [b"abc"], ("ab", 1, "stop", "b"), **more)
    # A stop token that is shown may hold a stop string: then the string ended it.
    more = {"stop": "<e", "stop_token_ids": [1], "include_stop_str_in_output": True}
    _expect_end(p, _END, ("a<e", 2, "stop", "<e"), **more)
    rng = random.Random(3)
    for number in range(240):
        text = "".join(rng.choices("ab从", k=1 + number // 12))
        stops = ["".join(rng.choices("ab从", k=k)) for k in (2, 3)]
        pieces, include = _cuts(text.encode(), rng), bool(number % 2)
        builder, _ = _run(p, pieces, stop=stops, include_stop_str_in_output=include)
        wanted = _naive(text, stops, include)
        given = f"{_show(pieces)}, stop={stops}, include={include}"
        _expect_text(f"{given}: text", builder.text, wanted)


@_SUITE.property(
    "OutputBuilder", hint="what could begin a stop string waits; what can't doesn't"
)
def _grows(p: SimpleNamespace) -> None:
    """The text only grows, and hides no more than what a stop string may take back."""
    for pieces, wanted in (
        ([b"a", b"b"], ["a", "ab"]),
        ([b"a E", b"N", b"X"], ["a ", "a ", "a ENX"]),
        ([b"a E", b"N", b"D!"], ["a ", "a ", "a "]),
        ([b"EE", b"ND"], ["E", "E"]),
        ([b"\xe9\xbe", b"\x99E", b"."], ["", "龙", "龙E."]),
        ([b"a E", b"N", b"X", b"b"], ["a ", "a ", "a ENX", "a ENXb"]),
        ([b"EN", b"EN", b"b"], ["", "EN", "ENENb"]),
    ):
        shown = _run(p, pieces, stop="END")[1]
        expect(f"{_show(pieces)}, stop='END': shown after each token", shown, wanted)
    shown = _run(p, [b"aab", b"c", b"d"], stop=["abx", "bcy"])[1]
    given = "'aab' | 'c' | 'd', stop=['abx', 'bcy']: shown after each token"
    expect(given, shown, ["a", "aa", "aabcd"])


@_SUITE.property("OutputBuilder", hint="nothing can be taken back any more: who waits?")
def _lets_go(p: SimpleNamespace) -> None:
    """At the end, whatever ends it, all that waited is shown."""
    _expect_end(p, [b"a E", b"N"], ("a EN", 2, "length", None), stop="END")
    _expect_end(p, [b"a E", b"!"], ("a E", 2, "stop", None), stop="END", eos=(1,))
    more = {"stop": "END", "stop_token_ids": [1]}
    _expect_end(p, [b"a E", b"!"], ("a E", 2, "stop", 1), **more)
    more = {"stop": "END", "min_tokens": 2, "max_tokens": 2}
    _expect_end(p, [b"a E", b"N"], ("a EN", 2, "length", None), **more)


@_SUITE.property(
    "OutputBuilder",
    hint="min_tokens have to be there before anything ends; what was complete earlier "
    "has passed: which characters are new?",
)
def _min_tokens(p: SimpleNamespace) -> None:
    """Neither a token nor a string ends a text within its first min_tokens."""
    pieces = [b"x", b"y", b"x", b"y"]
    _expect_end(p, pieces, ("xyx", 4, "stop", "y"), stop=["y"], min_tokens=2)
    shown = _run(p, [b"ab", b"x", b"y"], stop="ab", min_tokens=2)[1]
    given = "'ab' | 'x' | 'y', stop='ab', min_tokens=2: shown after each token"
    expect(given, shown, ["ab", "abx", "abxy"])
    pieces = [b"x", b"e", b"e"]
    _expect_end(p, pieces, ("xe", 3, "stop", None), eos=(2, 1), min_tokens=2)
    _expect_end(p, pieces, ("xe", 3, "stop", 2), eos=(1, 2), min_tokens=2)
    pieces = [b"a", b"b", b"c", b"d"]
    more = {"stop": ["ab", "bcd"], "min_tokens": 2}
    _expect_end(p, pieces, ("a", 4, "stop", "bcd"), **more)
    # What has passed stays passed, though it still waits.
    more = {"stop": ["ab", "abcd"], "min_tokens": 2}
    _expect_end(p, pieces, ("", 4, "stop", "abcd"), **more)


@_SUITE.property(
    "OutputBuilder", hint="min_tokens promises text: under ignore_eos too, as in vLLM"
)
def _banned(p: SimpleNamespace) -> None:
    """stop_token_ids are all that min_tokens holds back, each once, ends among them."""
    for ignore in (False, True):
        params = SamplingParams(stop_token_ids=[7, 1], ignore_eos=ignore)
        texts = p.TokenTexts(_Pieces([b"a"]))
        made = p.OutputBuilder(texts, [], params, (1, 2), 9)
        given = f"eos_token_ids (1, 2), stop_token_ids [7, 1], ignore_eos={ignore}"
        expect(f"{given}: stop_token_ids", sorted(made.stop_token_ids), [1, 2, 7])


_MANY = (
    ("5,000 strings", [f"no. {i}!" for i in range(5000)]),
    ("200 of 5,000 characters", [chr(200 + i) + "t" * 5000 for i in range(200)]),
)


def _hold_nobody_up(what: str, calls: Callable[[list[str]], Iterator[Any]]) -> None:
    """Fail unless many stop strings take less than 40 times as long as one.

    Args:
        what: is called.
        calls: does it bit by bit with some stop strings, as a generator, so that what
            takes too long ends early.
    """

    def seconds(stops: list[str], most: float = 10) -> float:
        doing = calls(stops)
        next(doing)  # what is done once for a request may take longer
        began, took = thread_time(), 0.0
        for _ in doing:
            took = thread_time() - began
            if took > most:
                break
        return took

    most = 40 * max(min(seconds(["END"]) for _ in range(3)), 1e-4)
    for given, stops in _MANY:
        if all(seconds(stops, most) > most for _ in range(3)):
            fail(f"{what}, {given}", "over 40 times the time of one", "less")


@_SUITE.property("StopStrings", hint="a sorted list needn't be read from its start")
def _many_strings(p: SimpleNamespace) -> None:
    """Thousands of strings, or very long ones, take it hardly longer than one."""

    def calls(stops: list[str]) -> Iterator[None]:
        made = p.StopStrings(stops)
        yield
        for text in ("i", "no", "no. 4", "tt", "it is") * 20:
            yield made.goes_on(text), made.ending(text)

    _hold_nobody_up("100 times goes_on and ending", calls)


@_SUITE.property("OutputBuilder", hint="how much of the text does a new token look at?")
def _many_stops(p: SimpleNamespace) -> None:
    """Thousands of stop strings hardly hold up the text."""
    pieces = [b"it is, "] * 100

    def calls(stops: list[str]) -> Iterator[None]:
        texts, params = p.TokenTexts(_Pieces(pieces)), SamplingParams(stop=stops)
        builder = p.OutputBuilder(texts, [], params, (), 100)
        yield
        for i in range(100):
            yield builder.append(i, -0.5)

    _hold_nobody_up("100 tokens", calls)


@_SUITE.property(
    "OutputBuilder", hint="the caller may keep an output while the builder goes on"
)
def _outputs(p: SimpleNamespace) -> None:
    """Logprobs add up and are kept if asked for; token_ids is one list that grows, and
    an output has lists of its own.
    """
    texts = p.TokenTexts(_Pieces([b"a", b"b"]))
    params = SamplingParams(logprobs=1, max_tokens=9)
    builder = p.OutputBuilder(texts, [], params, (), 9)
    live = builder.token_ids
    first, second = {0: Logprob(-0.5, 1)}, {1: Logprob(-0.25, 1)}
    builder.append(0, -0.5, first)
    kept = builder.output(3)
    builder.append(1, -0.25, second)
    expect("output(3) after 'a': index", kept.index, 3)
    expect("... text, after 'b' came too", kept.text, "a")
    expect("... token_ids, after 'b' came too", kept.token_ids, [0])
    expect("... how many logprobs", len(kept.logprobs), 1)
    expect("token_ids that a row of the sampler reads, after both", live, [0, 1])
    now = builder.output(0)
    expect("'a' -0.5, 'b' -0.25: cumulative_logprob", now.cumulative_logprob, -0.75)
    expect("... logprobs", now.logprobs, [first, second])
    for own in (1, None):  # the tokenizer's own end, or one that only the model has
        ends = p.TokenTexts(_Pieces([b"a", b"b"], eos_token_id=own))
        ended = p.OutputBuilder(ends, [], params, (1,), 9)
        ended.append(0, -0.5, first)
        ended.append(1, -0.25, second)
        given = f"'a' -0.5, and end token 1 -0.25, the tokenizer's end is {own}"
        got = ended.output(0)
        expect(f"{given}: cumulative_logprob", got.cumulative_logprob, -0.75)
        expect(f"{given}: logprobs", got.logprobs, [first, second])
    plain = _run(p, [b"a"])[0].output(0)
    expect("logprobs not asked for: logprobs", plain.logprobs, None)
    waits = p.OutputBuilder(texts, [], SamplingParams(stop="ab"), (), 9)
    waits.append(0, -0.5)
    _expect_text("'a', stop='ab': output(0).text", waits.output(0).text, "")


# ----- the exercises

_TRACE = [b"Go ", b"\xe5\xbf", b"\xab!", b" E", b"N", b"O", b"\xef\xbf\xbd", b"\x99",
          b"\xf0\x9f", b"E", b"ND!"]  # fmt: skip


def _judge_news(p: SimpleNamespace, first: int, last: int) -> None:
    """Compare the predictions for tokens `first` to `last` with what is shown."""
    said = p.predict_news()
    if not isinstance(said, list | tuple) or len(said) != len(_TRACE):
        fail("predict_news()", repr(said), f"a list of {len(_TRACE)} strings")
    shown = _run(SimpleNamespace(**vars(package)), _TRACE, stop="END")[1]
    news = [b[len(a) :] for a, b in zip(["", *shown], shown, strict=False)]
    for number in range(first, last + 1):
        if said[number - 1] != news[number - 1]:
            fail(f"token {number}", repr(said[number - 1]), "another text, or none")


@_SUITE.property(
    "predict_news", hint="e5 is 1110 0101: how many bytes does its character have?"
)
def _news_characters(p: SimpleNamespace) -> None:
    """Tokens 1 to 3: whole characters, and one in two parts."""
    _judge_news(p, 1, 3)


@_SUITE.property(
    "predict_news", hint="what can still become END waits; what does O do to it?"
)
def _news_stop(p: SimpleNamespace) -> None:
    """Tokens 4 to 6: the beginning of a stop string, and then not."""
    _judge_news(p, 4, 6)


@_SUITE.property(
    "predict_news",
    hint="whole, unfinished or broken? E is the byte 45: what can become of it?",
)
def _news_broken(p: SimpleNamespace) -> None:
    """Tokens 7 to 10: U+FFFD that is meant, and U+FFFD for what is broken."""
    _judge_news(p, 7, 10)


@_SUITE.property(
    "predict_news", hint="END is complete now: where does the final text end?"
)
def _news_end(p: SimpleNamespace) -> None:
    """Token 11: the end."""
    _judge_news(p, 11, 11)


def _expect_ready(p: SimpleNamespace, data: bytes, wanted: int) -> None:
    expect(f"ready({data.hex(' ') or 'no bytes'})", p.ready(data), wanted)


def _pairs() -> Iterator[tuple[bytes, int]]:
    """A byte that may lead, any second, and how many of the two are ready.

    Without ed: whether ed a0 may wait is a matter of taste, and of the library.
    """
    for lead, second in product(range(0xC0, 0x100), range(0x100)):
        if lead != 0xED and second != 0xED:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            decoder.decode(data := bytes((lead, second)))
            yield data, 2 - len(decoder.getstate()[0])


@_SUITE.property("ready", hint="if all is complete, all of it is ready")
def _ready_whole(p: SimpleNamespace) -> None:
    """Whole characters are ready, U+FFFD among them."""
    for text in ("", "a", "é", "龙", "🙂", "�", "a龙🙂b"):
        _expect_ready(p, text.encode(), len(text.encode()))


@_SUITE.property(
    "ready", hint="walk back to the lead byte: how many bytes does it announce?"
)
def _ready_waits(p: SimpleNamespace) -> None:
    """The bytes of an unfinished character at the end wait, and only those."""
    for text in "é龙🙂�" + "\x80\u07ff\u0800\u1000\ue000\U00010000\U0010ffff":
        data = text.encode()
        for cut in range(1, len(data)):
            for before in (b"", b"a", "龙".encode()):
                _expect_ready(p, before + data[:cut], len(before))
    for data, count in _pairs():
        if count < 2:
            _expect_ready(p, data, count)


@_SUITE.property(
    "ready",
    hint="which bytes can never lead, and after e0, f0 and f4 which can't come second?",
)
def _ready_broken(p: SimpleNamespace) -> None:
    """Bytes that can't become a character wait for nothing."""
    for data in (b"\x99", b"\xff", b"\xc0", b"\xf5", b"a\x99\x99", b"\xe9a",
                 b"\xe9\xbea", b"\xc1\x80", b"\xe0\x80", b"\xf0\x80", b"\xf4\x90",
                 b"\xf8\x80\x80"):  # fmt: skip
        _expect_ready(p, data, len(data))
    _expect_ready(p, b"\xe9\xe9", 1)
    _expect_ready(p, b"\x99a\xe9\xbe", 2)
    for data, count in _pairs():
        if count == 2:
            _expect_ready(p, data, count)


@_SUITE.property("ready", hint="compare with bytes.decode on the whole, byte for byte")
def _ready_stream(p: SimpleNamespace) -> None:
    """Decoded as it gets ready, any stream of bytes gives the text of the whole."""
    some = b"a\x80\x9f\xa0\xbf\xc1\xc3\xe0\xe9\xf0\xf4\xf5"
    for size in (1, 2, 3, 4):
        for values in product(some, repeat=size):
            text, waiting = "", b""
            for byte in values:
                waiting += bytes([byte])
                count = p.ready(waiting)
                text += waiting[:count].decode("utf-8", "replace")
                waiting = waiting[count:]
            text += waiting.decode("utf-8", "replace")
            data = bytes(values)
            wanted = data.decode("utf-8", "replace")
            if text != wanted:
                fail(f"{data.hex(' ')}, byte by byte", repr(text), repr(wanted))
    rng = random.Random(6)
    for size in range(5, 60):
        data, text, waiting = bytes(rng.choices(some, k=size)), "", b""
        pieces = _cuts(data, rng)
        for piece in pieces:
            waiting += piece
            count = p.ready(waiting)
            text += waiting[:count].decode("utf-8", "replace")
            waiting = waiting[count:]
        text += waiting.decode("utf-8", "replace")
        given = " | ".join(piece.hex(" ") for piece in pieces)
        _expect_text(f"{given}, piece by piece", text, data.decode("utf-8", "replace"))


def _certain(text: str, begin: str, end: str, over: bool) -> str:
    """What may be shown of a text so far, worked out from its start."""
    shown = ""
    while True:
        outside, mark, rest = text.partition(begin)
        if not mark:
            ends = range(0 if over else min(len(begin), len(outside) + 1))
            held = max((n for n in ends if outside.endswith(begin[:n])), default=0)
            return shown + outside[: len(outside) - held]
        shown += outside
        _, mark, text = rest.partition(end)
        if not mark:
            return shown


def _hidden(p: SimpleNamespace, pieces: list[str], begin: str, end: str) -> list[str]:
    """What `hide` has given each time it asked for a piece, and at the end."""
    out: list[str] = []
    shown = []

    def source() -> Iterator[str]:
        for piece in pieces:
            yield piece
            shown.append("".join(out))

    for each in p.hide(source(), begin, end):
        out.append(each)
    return [*shown, "".join(out)]


def _judge_hide(p: SimpleNamespace, cases: list, begin: str, end: str) -> None:
    for pieces in cases:
        shown = _hidden(p, pieces, begin, end)
        given = f"{' | '.join(map(repr, pieces))}, hide {begin} to {end}"
        if len(shown) != len(pieces) + 1:
            fail(given, f"{len(shown) - 1} pieces taken", f"{len(pieces)}, all of them")
        for count in range(1, len(pieces) + 1):
            wanted = _certain("".join(pieces[:count]), begin, end, over=False)
            _expect_text(f"{given}: shown after {count}", shown[count - 1], wanted)
        wanted = _certain("".join(pieces), begin, end, over=True)
        _expect_text(f"{given}: all that was shown", shown[-1], wanted)


@_SUITE.property("hide", hint="two states: outside a span and inside it")
def _hide_whole(p: SimpleNamespace) -> None:
    """Spans whose marks come whole are left out, several too, and all else is shown."""
    _judge_hide(
        p,
        [
            ["ab"], [], ["a", "b"], ["a", "(", "x", ")", "b"], ["a(x)b"],
            ["a(x)b(y)(z)c"], ["a", "", "(x", "", ")", "", "b"], ["a (x) b"],
            ["a\n", " ", "(x\ny)", " \n", "b"],
        ],
        "(",
        ")",
    )  # fmt: skip


@_SUITE.property("hide", hint="the end of what you have may be the beginning of a mark")
def _hide_cut(p: SimpleNamespace) -> None:
    """Marks that are cut anywhere are found, and no part of one is shown."""
    text = "a<t>x</t>b"
    cases = [list(text)]
    cases += [[text[:i], text[i:j], text[j:]] for i in range(4) for j in range(5, 10)]
    _judge_hide(p, cases, "<t>", "</t>")


@_SUITE.property("hide", hint="what can no longer become a mark has waited long enough")
def _hide_false(p: SimpleNamespace) -> None:
    """What only looked like the beginning of a mark is shown, as soon as that is
    clear.
    """
    cases = [["a<", "b"], ["<", "<t>x</t>", "<", "b"], ["a<t", ".", "<t", "b"]]
    _judge_hide(p, cases, "<t>", "</t>")


@_SUITE.property(
    "hide", hint="which mark is looked for on which side, and what is left at the end?"
)
def _hide_open(p: SimpleNamespace) -> None:
    """A span that is never closed stays hidden, and a mark means nothing on the wrong
    side.
    """
    cases = [["a<"], ["a</"], ["a<t>x"], ["a", "<t>x<"], ["a<t>x</", "t"], ["a</t>b"],
             ["<t><t></t>b"]]  # fmt: skip
    _judge_hide(p, cases, "<t>", "</t>")


@_SUITE.property(
    "hide", hint="by hand: which side is it on, and how may that side's mark begin?"
)
def _hide_streams(p: SimpleNamespace) -> None:
    """So it is for any text cut anywhere, also when both marks are the same."""
    rng = random.Random(5)
    for begin, end in (("aab", "b"), ("ab", "ba"), ("aa", "aa"), ("aba", "bb")):
        cases = []
        for number in range(100):
            left, pieces = "".join(rng.choices("ab", k=2 + number // 6)), []
            while left:
                size = rng.choice((1, 1, 2, 4))
                pieces.append(left[:size])
                left = left[size:]
            cases.append(pieces)
        _judge_hide(p, cases, begin, end)
    # Two streams of one service: what one keeps is nothing to the other.
    seen: list[str] = []

    def source() -> Iterator[str]:
        yield "a<t>x<"
        seen.extend(p.hide(iter(["c<", "b<t>y</t>d"]), "<t>", "</t>"))
        yield "/t>b"

    got = "".join(p.hide(source(), "<t>", "</t>"))
    given = "'a<t>x<' | '/t>b', and all of another stream between the two"
    _expect_text(f"{given}: all that was shown", got, "ab")
    _expect_text(f"{given}: the other, 'c<' | 'b<t>y</t>d'", "".join(seen), "c<bd")
