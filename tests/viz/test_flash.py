"""The pictures of notebook 12: what is moved, which tiles there are, who waits."""

import re

from folovllm_lite import viz

WAYS = {
    "copied": [
        ("read", "blocks", 2048),
        ("write", "a copy", 2048),
        ("read", "it", 2048),
    ],
    "in place": [("read", "blocks", 2048)],
}


def test_traffic_is_summed_and_drawn_to_scale():
    picture = viz.draw_traffic(WAYS, "a title")
    assert picture.text.splitlines() == [
        "a title",
        "copied: 6.00 KiB",
        "  read    2.00 KiB  blocks",
        "  write   2.00 KiB  a copy",
        "  read    2.00 KiB  it",
        "in place: 2.00 KiB",
        "  read    2.00 KiB  blocks",
    ]
    assert len(re.findall(f"fill: {viz.BLUE}", picture.svg)) == 3
    assert len(re.findall(f"fill: {viz.RED}", picture.svg)) == 1
    assert picture.svg == viz.draw_traffic(WAYS, "a title").svg


def test_a_tile_that_no_query_sees_is_skipped():
    assert viz.tile_kinds([1, 3], 6, 2) == [
        ["seen", "seen", "hidden", "hidden", "skipped", "skipped"],
        ["seen", "seen", "seen", "seen", "skipped", "skipped"],
    ]
    assert viz.tile_kinds([2], 3, 2) == [["seen", "seen", "seen"]]


def test_tiles_are_drawn_with_the_one_at_hand():
    picture = viz.draw_tiles([1, 3], 6, 2, now=1, title="a title")
    assert picture.text.splitlines() == [
        "a title",
        "query  1  |▒▒|··|  |",
        "query  3  |▒▒|■■|  |",
        "at hand: 4 scores, never 12; kept on the way: best, total, out of each query",
    ]
    assert ">tile 2<" in picture.svg and ">query at 3<" in picture.svg
    assert picture.svg == viz.draw_tiles([1, 3], 6, 2, now=1, title="a title").svg


def test_pieces_and_waiting_are_drawn_in_turn():
    turns = {"the caller": [(0, 2), (2, 1)], "a helper": [(-1, 1), (1, 2)]}
    picture = viz.draw_pieces(turns, "a title")
    assert picture.text.splitlines() == [
        "a title",
        "the caller                      002",
        "a helper                        .11",
    ]
    assert picture.svg.count(">waits<") == 1
