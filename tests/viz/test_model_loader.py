"""The picture of a file says where each part begins, in the figure and as text."""

from folovllm_lite import viz

PARTS = [("length", 8), ("header", 40), ("w", 16), ("b", 4)]


def test_the_text_gives_every_offset():
    lines = str(viz.draw_file(PARTS, title="a file").text).splitlines()
    assert lines == [
        "a file",
        "byte     0: length, 8 bytes",
        "byte     8: header, 40 bytes",
        "byte    48: w, 16 bytes",
        "byte    64: b, 4 bytes",
        "byte    68: the end",
    ]


def test_the_figure_says_the_same_on_every_run():
    first, second = viz.draw_file(PARTS), viz.draw_file(PARTS)
    assert first.svg == second.svg
    for words in ("length", "header", "40 bytes", ">48<", ">64<", ">68<"):
        assert words in first.svg
    assert first.svg.count(f"fill: {viz.BLUE}") == 2
