"""The picture of a memory (notebook 01): sizes are readable, bars are to scale."""

import re
from xml.etree import ElementTree

import pytest

from folovllm_lite import viz

PARTS = {"weights": 1 << 30, "KV cache": 3 << 30}


@pytest.mark.parametrize(
    "count, wanted",
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (114_688, "112.00 KiB"),
        (1_835_008, "1.75 MiB"),
        (1 << 30, "1.00 GiB"),
        (5 << 40, "5120.00 GiB"),
    ],
)
def test_sizes_are_in_binary_units(count, wanted):
    assert viz.size(count) == wanted


def test_the_text_says_what_the_bars_say():
    picture = viz.draw_memory({"one": PARTS, "two": {"KV cache": 2 << 30}}, "A GPU")
    lines = repr(picture).splitlines()
    assert lines[:2] == ["A GPU", "one"] and lines[4] == "two"
    assert lines[2].split()[:3] == ["weights", "1.00", "GiB"]
    assert [line.count("█") for line in lines] == [0, 0, 10, 30, 0, 20]


def test_the_bars_are_to_scale_and_the_same_every_time():
    bars = {"one": PARTS, "two": {"KV cache": 2 << 30}}
    svg = viz.draw_memory(bars, "A GPU")._repr_svg_()
    assert svg == viz.draw_memory(bars, "A GPU").svg
    ElementTree.fromstring(svg)
    for words in ("A GPU", "one", "two", "weights", "KV cache", "3.00 GiB"):
        assert words in svg
    path = (
        r'<path d="M (\S+) \S+ \nL (\S+) [^"]*" [^>]*style="fill: #(?:1f2933|9aa5b1);'
    )
    widths = [float(b) - float(a) for a, b in re.findall(path, svg)]
    bars = [width for width in widths if width > 50]  # not the legend's patches
    assert [round(width / bars[0], 2) for width in bars] == [1.0, 3.0, 2.0]


def test_a_narrow_part_has_no_label():
    svg = viz.draw_memory({"one": {"weights": 1 << 20, "KV cache": 1 << 30}}).svg
    assert "1.00 GiB" in svg and "1.00 MiB" not in svg
