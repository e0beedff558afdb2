"""The picture of notebook 14: what prompts share stands once."""

import re

import pytest

from folovllm_lite import viz

PROMPTS = {"a": "k l m n o".split(), "b": "k l m x".split(), "c": "z l m n".split()}


def test_blocks_that_begin_alike_are_one():
    tree = viz.prefix_tree(PROMPTS, 2)
    assert [(block.words, block.owners) for block in tree] == [
        (("k", "l"), ["a", "b"]),
        (("z", "l"), ["c"]),
    ]
    assert [block.words for block in tree[0].after] == [("m", "n"), ("m", "x")]
    # The same words after another past are another block.
    assert [block.words for block in tree[1].after] == [("m", "n")]
    last = tree[0].after[0].after
    assert [(block.words, block.full) for block in last] == [(("o",), False)]


def test_what_is_not_full_is_not_shared():
    tree = viz.prefix_tree({"a": ["k"], "b": ["k"], "c": ["k", "l"]}, 2)
    assert [block.owners for block in tree] == [["a"], ["b"], ["c"]]


def test_a_block_has_a_word():
    with pytest.raises(ValueError, match="not 0"):
        viz.prefix_tree(PROMPTS, 0)


def test_prefixes_are_drawn_as_rows():
    picture = viz.draw_prefixes(PROMPTS, 2, "a title")
    assert picture.text.splitlines() == [
        "a title",
        "[k l][m n](o) a",
        "     [m x] b",
        "[z l][m n] c",
        "13 words, 11 to store; [full], (not full)",
    ]
    assert len(re.findall(f"fill: {viz.BLUE}", picture.svg)) == 1
    assert picture.svg == viz.draw_prefixes(PROMPTS, 2, "a title").svg
