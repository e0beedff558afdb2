"""The pictures of notebook 06 say in words what they draw, the same on every run."""

import math
import re

import torch

from folovllm_lite import viz

SIZES = {"E": 8, "Hq": 4, "Hkv": 2, "D": 3, "M": 16, "V": 1000, "L": 2}


def test_the_transformer_is_drawn_with_its_own_sizes():
    picture = viz.draw_transformer(SIZES, title="a model")
    lines = str(picture.text).splitlines()
    assert lines[0] == "a model"
    assert "embedding: [T] → [T, 8]" in lines and "2 layers: [T, 8] → [T, 8]" in lines
    assert "    q, k, v: [T, 4, 3], 2 × [T, 2, 3]" in lines
    assert "    o: [T, 12] → [T, 8]" in lines
    assert "    down: [T, 16] → [T, 8]" in lines
    assert "head: [T, 8] → [T, 1,000]" in lines
    for words in ("embedding", "2 layers", "[T, 12] → [T, 8]", "MLP(x)"):
        assert words in picture.svg
    # The stream runs through the layer, and two branches add to it.
    assert picture.svg.count(">x [T, 8]: the residual stream<") == 1
    assert picture.svg.count(">+<") == 2
    assert picture.svg == viz.draw_transformer(SIZES, title="a model").svg


def test_every_pair_of_a_rotation_is_an_arrow():
    panels = {"turned": [(1.0, 0.0), (0.0, 1.0)], "stretched": [(1.0, 0.0), (1.0, 1.0)]}
    picture = viz.draw_rotations(panels, title="two panels")
    assert str(picture.text).splitlines() == [
        "two panels",
        "turned: (1, 0)  (0, 1)",
        "stretched: (1, 0)  (1, 1)",
    ]
    assert picture.svg == viz.draw_rotations(panels, title="two panels").svg
    assert len(re.findall(f"fill: {viz.BLUE}", picture.svg)) == 4  # the arrows' heads


def test_a_rotation_has_no_minus_zero():
    assert viz.draw_rotations({"p": [(-0.001, 1.0)]}).text == "p: (0, 1)"


def test_the_mask_hides_the_future_and_the_rest_sums_to_one():
    scores = torch.tensor([[0.0, 2.0], [math.log(1), math.log(3)]])
    picture = viz.draw_masking(scores, "two tokens")
    assert str(picture.text).splitlines() == [
        "two tokens",
        "scores:",
        "  query 0: 0.00  2.00",
        "  query 1: 0.00  1.10",
        "mask the future:",
        "  query 0: 0.00  −∞",
        "  query 1: 0.00  1.10",
        "softmax:",
        "  query 0: 1.00  0.00",
        "  query 1: 0.25  0.75",
    ]
    assert picture.svg.count(">−∞<") == 1
    assert picture.svg == viz.draw_masking(scores, "two tokens").svg


def test_neighbours_share_a_head():
    picture = viz.draw_groups(6, 2, "six and two")
    assert str(picture.text).splitlines() == [
        "six and two",
        *(f"query head {h} reads key/value head {h // 3}" for h in range(6)),
    ]
    assert picture.svg == viz.draw_groups(6, 2, "six and two").svg


WEIGHTS = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.05, 0.05, 0.9]])


def test_links_are_what_a_head_reads():
    assert viz.attention_links(WEIGHTS) == [
        (0, 0, 100),
        (1, 0, 25),
        (1, 1, 75),
        (2, 2, 90),
    ]
    assert viz.attention_links(WEIGHTS, least=0.8) == [(0, 0, 100), (2, 2, 90)]


def test_the_map_draws_the_links_and_names_both_sides():
    picture = viz.draw_attention(WEIGHTS, ["a", " b", "c"], ["a", " b", "c"], "map")
    assert str(picture.text).splitlines() == [
        "map",
        "a (0) reads a (0) 100%",
        "␣b (1) reads a (0) 25%, ␣b (1) 75%",
        "c (2) reads c (2) 90%",
    ]
    assert "opacity: 0.75" in picture.svg and "opacity: 0.05" not in picture.svg
    again = viz.draw_attention(WEIGHTS, ["a", " b", "c"], ["a", " b", "c"], "map")
    assert picture.svg == again.svg


def test_a_row_without_a_strong_link_says_so():
    picture = viz.draw_attention(WEIGHTS[2:], ["c"], ["a", "b", "c"], least=0.95)
    assert picture.text == "c (0) reads a little of all"
