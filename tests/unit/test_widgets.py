"""The sampling explorer: what it computes, what it draws, and what its dials do."""

import itertools
import json
import re
import time
from collections import Counter
from xml.etree import ElementTree

import pytest
import torch

from folovllm_lite import widgets
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.tiny import next_tokens

WEIGHTS = [9.0, 1.0, 64.0, 9.0, 16.0, 1.0]  # of 100
WORDS = (" farm", " moon", " park", " shop", " lake", " soup")
SIX = widgets.Context("English", "Lily went to the", torch.tensor(WEIGHTS).log(), WORDS)


def explored(count=10, **params):
    return widgets.explore(SIX, SamplingParams(**params), count)


def left(**params):
    return [(step.name, step.left) for step in explored(**params).steps]


# ----- the saved distributions


def test_the_file_is_what_the_model_computes_now():
    """It was written by another model once, and the notebook showed what no model
    thinks."""
    saved = json.loads(widgets.NEXT_TOKENS.read_text(encoding="utf-8"))
    now = next_tokens.compute()
    again = f"the model has changed: run `{next_tokens.COMMAND}`"
    assert saved["vocabulary"] == now["vocabulary"], again
    for old, new in zip(saved["contexts"], now["contexts"], strict=True):
        assert (old["language"], old["prompt"]) == (new["language"], new["prompt"])
        distance = torch.tensor(old["logits"]) - torch.tensor(new["logits"])
        assert distance.abs().max() <= 0.01, again


def test_the_saved_contexts_load_without_a_model():
    contexts = widgets.load_contexts()
    assert [c.language for c in contexts] == ["English", "English", "Chinese"]
    for context in contexts:
        assert context.logits.shape == (len(context.vocabulary),)
        assert context.logits.isfinite().all()


def test_what_is_written_is_what_is_loaded(tmp_path, monkeypatch):
    made = {
        "vocabulary": ["a", "从"],
        "contexts": [{"language": "English", "prompt": "x", "logits": [0.5, -1.25]}],
    }
    monkeypatch.setattr(next_tokens, "compute", lambda: made)
    next_tokens.write(tmp_path / "file.json")
    (context,) = widgets.load_contexts(tmp_path / "file.json")
    assert context.logits.tolist() == [0.5, -1.25]
    assert context.decode([1, 0]) == "从a"


# ----- what is computed


def test_only_the_filters_that_are_on_are_steps():
    assert left() == [("temperature", 6)]
    assert left(min_p=0.1, top_k=3, top_p=0.7) == [
        ("temperature", 6),
        ("min_p", 4),
        ("top_k", 3),
        ("top_p", 1),
    ]


def test_a_step_says_what_the_kept_tokens_held():
    warm, cut = explored(temperature=2.0, top_k=2).steps  # 8, 4, 3, 3, 1, 1 of 20
    assert warm.best == pytest.approx(0.4) and warm.share == pytest.approx(1)
    assert (cut.left, cut.value) == (2, 2)
    assert cut.share == pytest.approx(0.6) and cut.best == pytest.approx(2 / 3)


def test_temperature_zero_is_one_step():
    found = explored(temperature=0, top_k=3, min_p=0.5)
    assert [(s.name, s.left, s.best) for s in found.steps] == [("temperature", 1, 1.0)]
    assert found.others_left == 0 and "no say" in widgets.sentence(found.steps[0], 6)


def test_tokens_that_are_not_listed_are_counted():
    found = explored(count=2, top_k=5)
    assert [c.text for c in found.candidates] == [" park", " lake"]
    assert (found.others, found.others_left) == (4, 3)
    assert found.others_warmed == pytest.approx(0.20)
    assert found.others_chance == pytest.approx(19 / 99)


def test_a_step_in_words():
    step = widgets.Step("top_k", 1, 1, 0.64, 1.0)
    assert widgets.sentence(step, 1536) == (
        "top_k 1 leaves 1 token of 1,536, which held 64%; now the likeliest has 100%"
    )


def test_draws_follow_the_dials_and_the_seed():
    params = SamplingParams(top_k=2)
    drawn = [
        widgets.draw_tokens(SIX.logits, params, 500, torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1] and set(drawn[0]) == {2, 4}
    assert 0.7 < drawn[0].count(2) / 500 < 0.9  # 80% is right


# ----- what is drawn


def test_the_picture_says_who_is_cut_by_what():
    picture = widgets.draw_exploration(explored(min_p=0.1, top_k=3, top_p=0.7))
    ElementTree.fromstring(picture.svg)
    lines = picture.text.splitlines()
    assert lines[0] == "Lily went to the …"
    assert lines[1].split() == ["␣park", "64%", "100%"]
    assert [line.split()[-1] for line in lines[2:7]] == [
        "top_p", "top_p", "top_k", "min_p", "min_p",
    ]  # fmt: skip
    for words in ("␣lake", "cut by top_p", "2. min_p 0.1 leaves 4 tokens of 6"):
        assert words in picture.svg


def test_the_picture_counts_draws():
    picture = widgets.draw_exploration(explored(count=2), Counter({2: 6, 4: 3, 0: 1}))
    assert "drawn 6 of 10" in picture.svg
    assert "4 others       20%          20%, drawn 1 of 10" in picture.text
    assert picture.text.endswith("10 drawn")


def test_the_picture_shows_what_the_temperature_did():
    text = widgets.draw_exploration(explored(temperature=2.0)).text
    assert "64% → 40%" in text and "no filter is on: all 6 tokens" in text


def test_a_token_that_can_be_drawn_never_has_nought_per_cent():
    rare = widgets.Context("English", "x", torch.tensor([0.0, -9.0]), ("a", "b"))
    text = widgets.draw_exploration(widgets.explore(rare, SamplingParams(), 2)).text
    assert text.splitlines()[2].split() == ["b", "<1%", "<1%"]


def test_temperature_zero_is_not_called_a_filter():
    picture = widgets.draw_exploration(explored(temperature=0))
    assert "not the likeliest" in picture.text and "cut by" not in picture.text
    assert "cut by" not in picture.svg


def test_the_picture_is_the_same_every_time():
    found = explored(top_p=0.9)
    assert widgets.draw_exploration(found).svg == widgets.draw_exploration(found).svg


# ----- the dials


@pytest.fixture
def explorer():
    return widgets.SamplingExplorer([SIX, *widgets.load_contexts()])


def test_the_dials_are_the_params(explorer):
    assert explorer.params == SamplingParams()
    explorer.temperature.value, explorer.min_p.value = 0.7, 0.05
    explorer.top_k.value, explorer.top_p.value = 20, 0.95
    assert explorer.params == SamplingParams(
        temperature=0.7, min_p=0.05, top_k=20, top_p=0.95
    )


def test_a_dial_redraws(explorer):
    explorer.top_k.value = 2
    assert "cut by top_k" in explorer.figure.value
    explorer.context.value = 3
    assert "常常去" in explorer.figure.value


def test_buttons_draw_and_a_turned_dial_starts_the_tally_again(explorer):
    explorer.draw_many.click()
    explorer.draw_one.click()
    assert sum(explorer.tally.values()) == 101
    assert "101 drawn, the last one was" in explorer.status.value
    assert "of 101" in explorer.figure.value
    explorer.temperature.value = 0
    assert not explorer.tally and "Nothing drawn yet" in explorer.status.value
    explorer.draw_many.click()
    assert explorer.tally == {2: 100}
    explorer.clear.click()
    assert not explorer.tally


def test_the_same_clicks_draw_the_same_tokens(explorer):
    explorer.draw_many.click()
    first = dict(explorer.tally)
    explorer.clear.click()
    explorer.draw_many.click()
    assert explorer.tally == first


def test_every_setting_can_be_drawn(explorer):
    """No dial has an end at which the picture or the draw fails."""
    explorer.context.value = 1
    for dial in (explorer.temperature, explorer.min_p, explorer.top_p):
        for end in (dial.min, dial.max):
            dial.value = end
            explorer.draw(1)
    for k in (*explorer.TOP_K, -1):
        explorer.top_k.value = k
    explorer.draw(1)


def test_tab_goes_from_the_text_over_the_dials_to_the_buttons(explorer):
    from ipywidgets import Button, Dropdown, FloatSlider, SelectionSlider

    *dials, buttons, status = explorer.controls
    assert [type(dial) for dial in dials] == [
        Dropdown, FloatSlider, FloatSlider, SelectionSlider, FloatSlider,
    ]  # fmt: skip
    names = ("Continue", "(temperature)", "(min_p)", "(top_k)", "(top_p)")
    for dial, name in zip(dials, names, strict=True):
        assert name in dial.description and not dial.disabled
    assert all(isinstance(button, Button) for button in buttons.children)
    assert 'role="img" aria-label=' in explorer.figure.value
    assert 'aria-live="polite"' in status.value


def test_a_page_without_a_kernel_shows_the_picture(explorer):
    """The text is not the box's repr, which changes and is cut at 110 characters."""
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["image/svg+xml"] == explorer.picture.svg
    assert bundle["text/plain"] == explorer.picture.text == repr(explorer)


def test_markup_in_a_token_stays_text():
    sly = widgets.Context(
        "English", '<b>"', torch.zeros(2), ("<script>", '"><img src=x>')
    )
    explorer = widgets.SamplingExplorer([sly])
    explorer.draw(1)
    assert "<script" not in explorer.figure.value + explorer.status.value
    assert "<img" not in explorer.figure.value + explorer.status.value


def test_strange_tokens_can_be_drawn():
    """A control character is no XML, and two dollar signs are no formula."""
    texts = ("\x00\x1b", "$a_b$", "\t\n ", "\ufffd", "")
    context = widgets.Context("English", "x", torch.zeros(5), texts)
    picture = widgets.draw_exploration(widgets.explore(context, SamplingParams()))
    ElementTree.fromstring(picture.svg)
    for label in (r"\x00\x1b", "$a_b$", r"\x09⏎␣", "\ufffd", "∅"):
        assert label in picture.svg


def test_the_dials_start_where_they_are_told(explorer):
    start = SamplingParams(temperature=5.0, min_p=0.015, top_k=25, top_p=0.005)
    assert widgets.SamplingExplorer([SIX], start).params == start


def test_a_redraw_is_quick(explorer):
    explorer.context.value = 1
    times = []
    for step in range(5):
        start = time.perf_counter()
        explorer.temperature.value = 0.5 + step / 10
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1  # a figure of matplotlib took 0.2


def test_on_a_dark_page_the_picture_is_dark():
    """What stands on the page's ground changes with it, and labels on boxes don't."""
    svg = widgets.draw_exploration(explored(top_k=2)).svg
    assert '[data-jp-theme-light="false"]' in svg
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        assert text.get("class") in ("i", "m", "b", "r")
    ground = svg[svg.index("</defs>") :]
    assert re.match(r'</defs><rect [^>]*fill="white" class="p"/>', ground)


def test_no_two_labels_of_the_picture_overlap():
    """Once "8% → 7%" stood on the mark of the model's share."""
    for params in ({"temperature": 1.1}, {"temperature": 3.0}, {"top_k": 1}):
        svg = widgets.draw_exploration(explored(**params), Counter({2: 101})).svg
        for row in rows_of(svg):
            for (_, end), (start, _) in itertools.pairwise(row):
                assert end <= start, row
            assert row[-1][1] <= 760


def rows_of(svg):
    """Of each line of the picture, where its words begin and about where they end."""
    rows = {}
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        x, size = float(text.get("x")), float(text.get("font-size"))
        width = size * (0.61 if text.get("font-family") else 0.56) * len(text.text)
        rows.setdefault(round(float(text.get("y"))) // 6, []).append((x, x + width))
    return [sorted(row) for row in rows.values()]
