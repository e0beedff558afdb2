"""The pictures of 15 say in words what they show."""

import pytest

from folovllm_lite import viz

WEIGHTS = [-0.75, -0.1, 0.0, 0.2, 0.3]


def test_levels_are_counted_and_the_picture_repeats_itself():
    grids = {"symmetric": (0.1, 8), "coarse": (0.5, 8)}
    first, again = (viz.draw_levels(WEIGHTS, grids, "a row") for _ in range(2))
    assert repr(first).splitlines() == [
        "a row",
        "symmetric: 5 of 16 levels used, off by 0.22 steps on average",
        "coarse: 3 of 16 levels used, off by 0.35 steps on average",
    ]
    assert first._repr_svg_() == again._repr_svg_()


def test_a_group_of_equal_weights_is_drawn():
    assert "1 of 16" in repr(viz.draw_levels([0.5, 0.5], {"g": (0.5, 8)}))


@pytest.mark.parametrize("size", [1, 8, 16])
def test_a_hessian_says_which_inputs_matter(size):
    matrix = [[0.0] * size for _ in range(size)]
    for i in range(size):
        matrix[i][i] = 1.0
    matrix[0][0], matrix[0][-1] = 9.0, -0.5 if size > 1 else 9.0
    text = repr(viz.draw_hessian(matrix, "H"))
    assert text.startswith("H\n") and f"of {size} inputs hold" in text
    assert viz.draw_hessian(matrix)._repr_svg_().count("<path") >= size


def test_a_hessian_of_nothing_is_drawn():
    assert "0%" in repr(viz.draw_hessian([[0.0, 0.0], [0.0, 0.0]]))
