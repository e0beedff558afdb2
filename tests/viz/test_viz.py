"""Pictures: the numbers behind them are right, and the drawing is the same every
time."""

import math
from xml.etree import ElementTree

import pytest
import torch

from folovllm_lite import viz
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.viz import course
from tests.notebooks.course import COURSE, NOTEBOOKS, ROOT

WEIGHTS = [8.0, 4.0, 2.0, 1.0, 1.0]


class Letters:
    def decode(self, ids):
        return "".join([" a", "b", "从", "\n", ""][i] for i in ids)


def candidates(**params):
    logits = torch.tensor(WEIGHTS).log()
    return viz.next_tokens(logits, Letters(), SamplingParams(**params))


def test_without_filters_the_draw_is_the_model():
    for found, weight in zip(candidates(), WEIGHTS, strict=True):
        assert found.probability == pytest.approx(weight / 16)
        assert found.chance == pytest.approx(found.probability) and found.cut_by is None


def test_each_candidate_says_which_filter_removed_it_first():
    found = candidates(min_p=0.2, top_k=2, top_p=0.5)
    assert [c.cut_by for c in found] == [None, "top_p", "top_k", "min_p", "min_p"]
    assert [c.chance for c in found] == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_top_k_beyond_all_numbers_removes_nothing():
    assert [c.cut_by for c in candidates(top_k=2**62)] == [None] * len(WEIGHTS)


def test_temperature_warms_before_it_cuts():
    found = candidates(temperature=0.5)
    assert found[0].warmed == pytest.approx(64 / 86)
    assert found[0].probability == pytest.approx(0.5)
    cold = candidates(temperature=0)
    assert [c.chance for c in cold] == [1.0, 0, 0, 0, 0] and cold[1].cut_by == "greedy"


def test_the_survivors_share_the_whole():
    assert math.isclose(sum(c.chance for c in candidates(top_k=3)), 1, rel_tol=1e-6)


def test_bars_are_as_long_as_the_numbers():
    picture = viz.draw_next_tokens(candidates(top_k=2), "After “Once”")
    svg = picture._repr_svg_()
    ElementTree.fromstring(svg)
    assert (
        "从" in svg and "cut by top_k" in svg and "␣a" in svg and "After “Once”" in svg
    )
    lines = repr(picture).splitlines()
    assert lines[0] == "After “Once”"
    assert lines[1].split()[:5] == ["␣a", "model", "50%", "draw", "67%"]
    assert lines[1].count("█") == 20 and lines[2].count("█") == 10
    assert "cut by top_k" in lines[3]


def test_pictures_are_the_same_every_time():
    found = candidates(top_p=0.9)
    assert viz.draw_next_tokens(found).svg == viz.draw_next_tokens(found).svg
    assert viz.course_map().svg == viz.course_map().svg


def test_the_map_tells_the_truth():
    """Every notebook stands on it, can be read, and builds what is in the package."""
    shown = {number for part in viz.PARTS for number in part.notebooks}
    assert shown == {lesson.number for lesson in COURSE if lesson.number}
    for number in shown:
        assert (NOTEBOOKS / COURSE[number].file).exists(), number
        assert f"{number:02}" in viz.course_map().svg
    for part in viz.PARTS:
        taught = {name for number in part.notebooks for name in COURSE[number].teaches}
        assert set(part.modules) <= taught, part
    names = {part.name for part in viz.PARTS}
    assert all(start in names and end in names for start, end, _ in course._ARROWS)


STRANGE = (
    "$\\frac$",
    "$a_b$ and $",
    "\x00\x1b[2J",
    "\ufffe\uffff",  # not in XML
    "\ud83c",
    "a\x0bb\tc",
    "<&>",
    "\u2028",
)


@pytest.mark.parametrize("text", STRANGE)
def test_any_text_can_be_drawn(text):
    """A formula that matplotlib can't read, what XML can't hold, half a character."""

    class Strange:
        def decode(self, ids):
            return text

    found = viz.next_tokens(torch.zeros(3), Strange(), SamplingParams(), 3)
    pictures = [
        viz.draw_next_tokens(found, text),
        viz.draw_memory({text: {text: 3, "b": 1}}, text),
    ]
    for picture in pictures:
        root = ElementTree.fromstring(picture.svg)
        words = "".join(root.itertext())
        shown = viz.picture.visible(text)
        assert shown in words and shown in picture.text
        assert not any(c < " " and c not in "\n\t" for c in picture.text)


def test_my_map_is_coloured_by_whose_piece_it_is():
    nothing, some = viz.my_map({}), viz.my_map({"sampler": 2, "outputs": 1, "fast": 9})
    assert "■" not in nothing.text and nothing.text.count("the package's") == 14
    blue = [line for line in some.text.splitlines() if "■" in line]
    assert [line.split()[1] for line in blue] == ["request", "sampler"]
    assert blue[0].endswith("1 yours") and blue[1].endswith("2 yours")
    face = f"fill: {viz.BLUE}"
    assert some.svg.count(face) - nothing.svg.count(face) == 2
    assert some.svg == viz.my_map({"sampler": 2, "request": 1}).svg


def test_every_taught_module_has_its_part_on_the_map():
    shown = {module for part in viz.PARTS for module in part.modules}
    assert shown == {module for lesson in COURSE for module in lesson.teaches}


def test_the_readmes_picture_is_the_map():
    """`python -m folovllm_lite.viz docs/images/course_map.svg` draws it again."""
    file = ROOT / "docs/images/course_map.svg"
    assert file.read_text(encoding="utf-8") == viz.course_map().svg
