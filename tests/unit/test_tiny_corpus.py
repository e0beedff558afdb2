"""The grammar that wrote the corpus: it must know exactly what it can write."""

import itertools
import math
import random

import pytest

from folovllm_lite.tiny import corpus
from folovllm_lite.tiny.grammar import Coin, Entry, Grammar, Lexicon, Plot

LANGUAGES = list(corpus.LANGUAGES)
KINDS = ["story", "chat_story", "chat", "plain", "drill"]


def small_grammar() -> Grammar:
    """Two plots, a coined name and words that are drawn without replacement."""
    kinds = ({"he": "she"}, {"he": "he"})
    coin = Coin(shapes=((("b", "z"), ("o", "")), (("a",), ("b", "z"))), kinds=kinds)
    people = [Entry("Al", kinds[1]), Entry("Bo", kinds[0]), Entry("Cy", kinds[1])]
    lexicons = {
        "who": Lexicon(people, coin=coin, coined=0.25),
        "toy": Lexicon([Entry("kite"), Entry("ball")]),
    }
    plots = [
        Plot(
            "play",
            {"a": "who", "b": "who", "toy": "toy"},
            [["{a} has a {toy}.", "The {toy} is {a}'s."], ["{a.he} shows {b}."]],
            weight=2.0,
        ),
        Plot("ask", {"toy": "toy"}, [["A {toy}."]], opening=["What?", "And?"]),
    ]
    return Grammar(lexicons, plots)


def everything(grammar: Grammar) -> set[str]:
    """Every text the small grammar writes, found by brute force."""
    names = ["Al", "Bo", "Cy", "bo", "b", "zo", "z", "ab", "az"]
    he = {"Al": ["he"], "Bo": ["she"], "Cy": ["he"]}
    texts = set()
    for toy in ("kite", "ball"):
        for first, second in itertools.permutations(names, 2):
            for pronoun in he.get(first, ["he", "she"]):
                for start in (f"{first} has a {toy}.", f"The {toy} is {first}'s."):
                    texts.add(f"{start} {pronoun} shows {second}.")
        texts |= {f"What?A {toy}.", f"And?A {toy}."}
    return texts


def test_probabilities_of_all_texts_add_up_to_one():
    """If a derivation were missed or counted twice, the entropy bound would be wrong.

    The names "b" and "ab" also hide inside longer texts, so that the parser must find
    the right border, and "a", "b" of one text are drawn without replacement.
    """
    grammar = small_grammar()
    total = math.fsum(math.exp(grammar.logprob(text)) for text in everything(grammar))
    # Two invented names are drawn as if the first left all other mass in place: the
    # renormalisation counts listed words only. The error is below 1%.
    assert total == pytest.approx(1.0, abs=0.01)


def test_logprob_is_the_frequency_with_which_a_text_is_drawn():
    grammar, rng, count = small_grammar(), random.Random(3), 20_000
    drawn: dict[str, int] = {}
    for _ in range(count):
        text = grammar.sample(rng).text
        drawn[text] = drawn.get(text, 0) + 1
    for text, seen in sorted(drawn.items(), key=lambda item: -item[1])[:8]:
        expected = count * math.exp(grammar.logprob(text))
        assert abs(seen - expected) < 5 * math.sqrt(expected), text


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_grammar_accepts_what_it_writes(language, kind):
    """ "a boy named Zorbo" once had no parse: the form came before the invented
    name."""
    grammar, rng = corpus.GRAMMARS[language][kind], random.Random(0)
    for _ in range(150):
        sample = grammar.sample(rng)
        assert grammar.logprob(sample.text) >= sample.logprob - 1e-9, sample.text
        assert sample.text.startswith(sample.prompt)


STORY = (
    "Zorbo went to the park on a sunny day. He had a red kite. "
    "A strong wind blew the kite into a tall tree. "
    "Zorbo could not reach it and felt sad. "
    "A bird saw this and flew to the top. "
    "It brought the red kite back to Zorbo. "
    '"Thank you, bird!" said Zorbo.<|endoftext|>'
)


@pytest.mark.parametrize(
    "old, new",
    [
        ("felt sad", "felt bad"),
        ("Zorbo could", "Zorba could"),
        ("said Zorbo", "said Lily"),
        ("He had", "They had"),
        ("the kite into", "the ball into"),
        ("the red kite", "the blue kite"),
        ("flew to the top", "shook the tree"),
        ("you, bird", "you, bear"),
        ("It brought the red kite back to Zorbo. ", ""),
        ("<|endoftext|>", ""),
        ("park", "moon"),
    ],
)
def test_a_story_that_forgets_is_rejected(old, new):
    """Each change forgets one thing: hero, object, colour, cause, effect, ending."""
    grammar = corpus.GRAMMARS["en"]["story"]
    assert grammar.accepts(STORY)
    assert old in STORY
    assert not grammar.accepts(STORY.replace(old, new, 1))


def test_chinese_story_that_forgets_is_rejected():
    story = (
        "阿竹去公园玩，天气很好。他带了一个苹果当午饭。这时，他看见一只很饿的小鸟。"
        "“我分给你一点吧。”阿竹说。他把一半苹果给了小鸟。小鸟吃完，就不饿了。"
        "阿竹和小鸟成了好朋友，常常在公园见面。<|endoftext|>"
    )
    grammar = corpus.GRAMMARS["zh"]["story"]
    assert grammar.accepts(story)
    for old, new in [
        ("阿竹和", "小明和"),
        ("在公园", "在河边"),
        ("一半苹果", "一半梨"),
    ]:
        assert not grammar.accepts(story.replace(old, new)), (old, new)


@pytest.mark.parametrize("language", LANGUAGES)
def test_questions_have_one_right_answer(language):
    """The evaluation counts an answer as right when the grammar accepts it."""
    grammar, rng = corpus.GRAMMARS[language]["chat"], random.Random(1)
    for _ in range(60):
        sample = grammar.sample(rng)
        wrong = sample.text.replace("assistant\n", "assistant\nNo. ")
        assert grammar.accepts(sample.text) and not grammar.accepts(wrong)


def test_sums_are_right():
    for language in LANGUAGES:
        lexicons = corpus.LANGUAGES[language].LEXICONS
        for name, sign in (("sum", 1), ("minus", -1)):
            for entry in lexicons[name].entries:
                a, b, c = (int(entry.form(form)) for form in "abc")
                assert a + sign * b == c


def test_training_never_draws_what_is_held_out():
    rng = random.Random(2)
    parts = [part for _ in range(400) for part in corpus.document(rng).parts]
    assert not any(corpus.held_out(part) for part in parts)
    grammar = corpus.GRAMMARS["en"]["story"]
    assert all(corpus.held_out(corpus.draw(grammar, rng, held=True)) for _ in range(5))


@pytest.mark.parametrize("mix", corpus.MIXES)
def test_echoes_are_what_was_said_before(mix):
    """A first mention is a choice and never an echo; a name's second mention is one."""
    rng = random.Random(9)
    for _ in range(200):
        document = corpus.document(rng, mix)
        spans = document.echoes
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
        assert all(0 <= start < end <= len(document.text) for start, end in spans)
    grammar = Grammar(
        {"who": Lexicon([Entry("Tom", {"he": "he"})])},
        [Plot("p", {"x": "who"}, [["{x} ran."], ["Then {x.he} saw {x}."]])],
    )
    sample = grammar.sample(rng)
    said = [sample.text[start:end] for start, end in sample.echoes]
    assert (sample.text, said) == ("Tom ran. Then he saw Tom.", ["he", "Tom"])


def test_the_focus_is_on_one_thing_and_the_finish_on_everything():
    """Colours come last: the focus is English, where the model never found them."""
    rng = random.Random(3)
    focus = [corpus.document(rng, "focus") for _ in range(200)]
    assert {each.language for each in focus} == {"en"}
    assert {each.kind for each in focus} == {"story", "drill"}
    plots = [corpus.document(rng, "finish") for _ in range(600)]
    assert {each.language for each in plots} == {"en", "zh"}
    assert {each.kind for each in plots} == {"story", "plain", "chat"}
    stories = [each.parts[0].plot for each in plots if each.kind == "story"]
    asked = [each.parts[0].plot for each in plots if each.kind == "plain"]
    colored = sum(plot in ("broken", "gift", "lost", "stuck") for plot in stories)
    assert colored / len(stories) > 0.3
    assert sum(plot.startswith("color") for plot in asked) / len(asked) > 0.2


def test_documents_are_a_function_of_the_seed():
    first, again = (
        [corpus.document(rng).text for _ in range(50)]
        for rng in (random.Random("7 x"), random.Random("7 x"))
    )
    assert first == again


def test_entropy_is_below_the_cost_of_the_derivations():
    """Several derivations of one text make it likelier than any one of them."""
    grammar, rng = corpus.GRAMMARS["en"]["story"], random.Random(4)
    samples = [grammar.sample(rng) for _ in range(200)]
    derivations = -sum(sample.logprob for sample in samples) / len(samples)
    assert 0.9 * derivations < corpus.entropy(samples, grammar) <= derivations
