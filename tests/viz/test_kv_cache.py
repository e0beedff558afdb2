"""The pictures of notebook 07: what each pass computes, and where work is bound."""

import re

from folovllm_lite import viz

PASSES = {
    "without": [(0, 2), (0, 3), (0, 4)],
    "with": [(0, 2), (2, 1), (3, 1)],
}
POINTS = {"far left": (1.0, None), "right": (50.0, None), "measured": (2.0, 30.0)}


def test_passes_are_counted_and_drawn_token_by_token():
    text = viz.draw_passes(PASSES, title="a title").text
    assert text.splitlines() == [
        "a title",
        "without: 9 tokens computed",
        "  pass 1  ■■",
        "  pass 2  ■■■",
        "  pass 3  ■■■■",
        "with: 4 tokens computed",
        "  pass 1  ■■",
        "  pass 2  □□■",
        "  pass 3  □□□■",
    ]


def test_the_figure_of_passes_has_a_box_for_each_token():
    picture = viz.draw_passes(PASSES)
    legend = 1
    # Computed: 9 and 4; read: 2 and 3.
    assert len(re.findall(rf"fill: {viz.BLUE}; stroke: #fff", picture.svg)) == 13
    assert len(re.findall(rf"fill: {viz.PALE}; stroke: #fff", picture.svg)) == 5
    assert picture.svg.count(f'style="fill: {viz.PALE}"') == legend
    assert picture.svg == viz.draw_passes(PASSES).svg


def test_the_roofline_says_what_binds_each_piece_of_work():
    lines = viz.draw_roofline(POINTS, 100.0, 20.0, title="a machine").text.splitlines()
    assert lines[:2] == ["a machine", "ridge at 5 FLOPs per byte"]
    assert "1.0 FLOPs per byte, bound by memory; at most 20.0%" in lines[2]
    assert "50.0 FLOPs per byte, bound by compute; at most 100.0%" in lines[3]
    assert "2.0 FLOPs per byte, bound by memory; measured 30.0%" in lines[4]


def test_the_roofline_is_drawn_the_same_on_every_run():
    first, second = (viz.draw_roofline(POINTS, 100.0, 20.0) for _ in range(2))
    assert first.svg == second.svg
    for words in ("far left", "right", "measured", "ridge: 5", "10²", "10⁰"):
        assert f">{words}<" in first.svg
    assert "mathdefault" not in first.svg
