"""The pictures of notebook 11: slots by owner, and what blocks waste."""

import re

from folovllm_lite import viz

MEMORY = {"before": "AAaB..", "after": "AAAB.C"}


def test_slots_are_counted_and_named():
    assert viz.draw_slots(MEMORY, title="a title").text.splitlines() == [
        "a title",
        "before AAaB..  3 hold a token, 2 free, 1 empty",
        "after  AAAB.C  5 hold a token, 1 free",
    ]


def test_the_figure_of_slots_has_a_box_for_each():
    svg = viz.draw_slots(MEMORY).svg
    first, second, third = viz.paged_kv_cache.OWNERS[:3]
    count = lambda colour: len(re.findall(rf"fill: {colour}; stroke: #fff", svg))  # noqa: E731
    assert (count(first), count(second), count(third)) == (5, 2, 1)
    assert svg == viz.draw_slots(MEMORY).svg


def test_waste_stands_beside_what_was_expected():
    picture = viz.draw_waste({4: 1.4, 1: 0.0, 16: 8.0}, "waste")
    assert picture.text.splitlines() == [
        "waste",
        "S =   1:   0.0 empty slots a sequence, expected 0.0",
        "S =   4:   1.4 empty slots a sequence, expected 1.5",
        "S =  16:   8.0 empty slots a sequence, expected 7.5",
    ]
    assert ">16<" in picture.svg and "measured" in picture.svg
    assert picture.svg == viz.draw_waste({4: 1.4, 1: 0.0, 16: 8.0}, "waste").svg
