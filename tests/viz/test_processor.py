"""The picture of tokens, bytes and characters says which token completes what."""

import random
from xml.etree import ElementTree

from folovllm_lite import viz

DRAGON = [
    (0, b"A"),
    (7, b"\xe9"),
    (8, b"\xbe"),
    (9, b"\x99"),
    (10, b"\xe3\x80\x82\xe2"),
]


def test_every_character_has_its_bytes():
    assert viz.token_bytes(DRAGON[:4]) == [("A", 0, 1), ("龙", 1, 4)]
    assert viz.token_bytes([]) == []
    # Broken: a lead byte before another, a lone continuation, an unfinished end.
    assert viz.token_bytes([(0, b"\xe9\xe9\xbe"), (1, b"\x99")]) == [
        ("�", 0, 1),
        ("龙", 1, 4),
    ]
    assert viz.token_bytes([(0, b"\x99a\xe9\xbe")]) == [
        ("�", 0, 1),
        ("a", 1, 2),
        ("�", 2, 4),
    ]


def test_the_characters_are_those_that_python_reads():
    rng = random.Random(0)
    alphabet = b"a\x80\xbf\xc3\xe0\xe9\xed\xf0\x9f\xff"
    for _ in range(500):
        data = bytes(rng.choices(alphabet, k=rng.randrange(1, 9)))
        found = viz.token_bytes([(0, data[:2]), (1, data[2:])])
        assert "".join(text for text, _, _ in found) == data.decode("utf-8", "replace")
        assert [first for _, first, _ in found] == [0, *(end for *_, end in found[:-1])]
        assert found[-1][2] == len(data)
        for text, first, end in found:
            assert data[first:end].decode("utf-8", "replace") == text


def test_the_text_says_which_token_completes_a_character():
    assert viz.draw_token_bytes(DRAGON, "a title").text.splitlines() == [
        "a title",
        "token    0: 41           completes A",
        "token    7: e9           completes nothing yet",
        "token    8: be           completes nothing yet",
        "token    9: 99           completes 龙",
        "token   10: e3 80 82 e2  completes 。, �",
    ]


def test_the_figure_shows_the_same_on_every_run():
    first, second = viz.draw_token_bytes(DRAGON), viz.draw_token_bytes(DRAGON)
    assert first.svg == second.svg
    ElementTree.fromstring(first.svg)
    for words in ("e9", "龙", ">10<", "characters"):
        assert words in first.svg
    leads = first.svg.count(f"fill: {viz.BLUE}")
    assert leads == 4  # A, 龙, 。 and the one that is cut off
