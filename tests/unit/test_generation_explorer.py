"""The generation explorer: its tree, what it draws, and what its dials do."""

import re
import time
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from folovllm_lite import widgets
from folovllm_lite.attention import PlainContext
from folovllm_lite.generation import generate
from folovllm_lite.processor import TokenTexts
from folovllm_lite.sampler import SamplingRow, filter_logits
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.widgets import readme
from tests.notebooks.course import ROOT

PROMPT = "Once upon a time"
BALLOON = "🎈"  # four tokens, a byte each


@pytest.fixture(scope="module")
def parts(embedded_llm):
    tokenizer = embedded_llm.get_tokenizer()
    return embedded_llm.model, tokenizer, embedded_llm.llm_engine.eos_token_ids


@pytest.fixture
def grow(parts):
    """A function that makes a tree: prompt, steps, and fields of SamplingParams."""
    model, tokenizer, eos = parts

    def make(prompt=PROMPT, steps=0, *, seed=0, max_len=None, count=10, **params):
        made = widgets.GenerationTree(
            model,
            tokenizer,
            prompt,
            SamplingParams(max_tokens=None, **params),
            eos,
            seed,
            max_len,
            count,
        )
        for _ in range(steps):
            made.step()
        return made

    return make


def other(tree, nth=0):
    """A candidate that was not taken here yet."""
    gone = {*tree.node.children, *tree.eos_token_ids}
    return [c.token_id for c in tree.candidates() if c.token_id not in gone][nth]


def fresh_logits(tree, node):
    """[V]: the whole text of a node through the model at once, without a cache."""
    ids = [*tree.prompt_token_ids, *(each.token_id for each in node.path[1:])]
    ids = torch.tensor(ids)
    with torch.inference_mode():
        hidden = tree.model(ids, PlainContext(torch.arange(len(ids))))
        return tree.model.logits(hidden[-1]).float()


def wander(tree):
    """Branches, returns and a jump; the tree afterwards holds three branches."""
    for _ in range(6):
        tree.step()
    first = tree.node
    tree.back(4)
    tree.step(other(tree))
    for _ in range(3):
        tree.step()
    tree.back(2)
    tree.step(other(tree, 1))
    tree.step()
    tree.go(first)
    tree.step()


# ----- it computes what the engine computes


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.02},
        {"temperature": 1.5, "repetition_penalty": 1.3, "presence_penalty": 0.5},
        {"temperature": 1.3, "top_k": 2**62, "min_tokens": 20},
    ],
)
def test_the_steps_are_those_of_generate(grow, parts, params, seed):
    model, tokenizer, eos = parts
    wanted = SamplingParams(**params, seed=seed, max_tokens=25)
    ids = tokenizer.encode(PROMPT)
    expected = generate(model, tokenizer, ids, wanted, eos_token_ids=eos).outputs[0]
    tree = grow(seed=seed, **params)
    for _ in expected.token_ids:
        tree.step()
    assert tree.token_ids == expected.token_ids
    assert tree.text == PROMPT + expected.text or tree.waiting


def test_to_the_end_it_is_the_text_of_generate(grow, parts):
    model, tokenizer, eos = parts
    wanted = SamplingParams(temperature=0, max_tokens=120)
    ids = tokenizer.encode(PROMPT)
    expected = generate(model, tokenizer, ids, wanted, eos_token_ids=eos).outputs[0]
    assert expected.finish_reason == "stop"
    tree = grow(steps=len(expected.token_ids), temperature=0)
    assert tree.node.ended and tree.text == PROMPT + expected.text
    assert tree.node.cached == tree.cache.length == len(tree.path) - 2 + len(ids)
    with pytest.raises(ValueError, match="ended with <.endoftext.>: go back"):
        tree.step()
    assert tree.candidates() == []
    tree.back()
    assert not tree.node.ended and tree.candidates()


def test_the_logits_of_every_node_are_a_fresh_pass(grow):
    tree = grow(temperature=1.2)
    wander(tree)
    assert len(widgets.branches(tree)) == 3
    for node in tree.nodes:
        assert torch.allclose(node.logits, fresh_logits(tree, node), atol=2e-4)


def test_after_any_journey_the_cache_holds_the_path(grow):
    """Once a branch read the keys of another one, and only some logits showed it."""
    tree = grow(temperature=1.2)
    wander(tree)
    for node in [*tree.nodes, *reversed(tree.nodes)]:
        tree.go(node)
        assert tree.cache.length == node.cached
        straight = grow()
        for token_id in tree.token_ids:
            straight.step(token_id)
        length = tree.cache.length
        for mine, right in (
            (tree.cache.keys, straight.cache.keys),
            (tree.cache.values, straight.cache.values),
        ):
            assert torch.allclose(mine[:, :, :length], right[:, :, :length], atol=1e-4)


def test_the_same_step_again_takes_the_same_token(grow):
    tree = grow(steps=5)
    taken = tree.node
    tree.back(3)
    for _ in range(3):
        tree.step()
    assert tree.node is taken and len(tree.nodes) == 6


def test_another_seed_is_another_branch(grow):
    tree = grow(steps=12)
    tree.back(12)
    tree.params = replace(tree.params, seed=5)
    for _ in range(12):
        tree.step()
    assert tree.token_ids == grow(steps=12, seed=5).token_ids
    assert len(widgets.branches(tree)) == 2


def test_params_without_a_seed_keep_the_last_one(grow):
    tree = grow(seed=3)
    tree.params = SamplingParams(temperature=0.5)
    assert tree.params.seed == 3 and tree.params.temperature == 0.5
    with pytest.raises(ValueError, match="seed must be in"):
        grow(seed=-1)


# ----- what the cache is spared


def test_going_back_computes_nothing(grow):
    tree = grow(steps=6)
    assert tree.ran == 4 + 6 == tree.cache.length
    tree.back(4)
    assert tree.ran == 10 and tree.cache.length == 6
    assert tree.stored.count("left behind") == 4
    tree.go(tree.nodes[-1])  # nothing was written over it yet
    assert tree.ran == 10 and tree.cache.length == 10


def test_another_branch_is_computed_from_the_fork_on(grow):
    tree = grow(steps=6)
    end = tree.node
    tree.back(4)
    tree.step(other(tree))
    assert tree.ran == 11 and tree.cache.length == 7
    assert tree.stored[6:11] == ["generated", *["left behind"] * 3, "free"]
    tree.go(end)
    assert tree.ran == 11 + 4 and tree.cache.length == 10


def test_back_stops_at_the_prompt(grow):
    tree = grow(steps=2)
    assert tree.back(99) is tree.root and tree.text == PROMPT
    assert tree.back() is tree.root and tree.cache.length == 4


def test_the_cache_can_be_full(grow):
    tree = grow(max_len=6, steps=2)
    with pytest.raises(ValueError, match="full: all 6 slots hold a token"):
        tree.step()
    assert len(tree.nodes) == 3 and tree.stored.count("free") == 0


# ----- what is refused changes nothing


@pytest.mark.parametrize("token_id", [-1, 1536, True, 1.0, "a"])
def test_a_token_that_is_none(grow, token_id):
    tree = grow(steps=1)
    with pytest.raises(ValueError, match="an int from 0 to 1535"):
        tree.step(token_id)
    assert len(tree.nodes) == 2 and not tree.node.children


def test_prompts_that_cannot_be_served(grow):
    with pytest.raises(ValueError, match="the prompt is empty"):
        grow("")
    with pytest.raises(ValueError, match="leaves no room"):
        grow("word " * 200)
    with pytest.raises(TypeError):
        grow(3)


def test_nodes_of_another_tree(grow):
    with pytest.raises(ValueError, match="no node of this tree"):
        grow().go(grow().root)
    with pytest.raises(ValueError, match="at least 0"):
        grow().back(-1)


def test_a_model_that_fails_leaves_a_tree_that_works(grow, monkeypatch):
    """A learner interrupts the kernel in the middle of a step."""
    tree = grow(steps=4)
    end = tree.node
    tree.back(3)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tree.model.model.norm, "forward", fail)
        with pytest.raises(KeyboardInterrupt):
            tree.step(other(tree))
        assert len(tree.nodes) == 5 and tree.cache.length == tree.node.cached
        fork = tree.node
        patch.undo()
        tree.step(other(tree))
        patch.setattr(tree.model.model.norm, "forward", fail)
        with pytest.raises(KeyboardInterrupt):
            tree.go(end)  # it left one branch and didn't reach the other
        assert tree.node is fork and tree.cache.length == fork.cached
    tree.go(end)
    tree.step()
    assert torch.allclose(tree.node.logits, fresh_logits(tree, tree.node), atol=2e-4)


# ----- candidates


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 1.5},
        {"temperature": 2.0, "min_p": 0.05, "top_k": 6, "top_p": 0.8},
        {"temperature": 2.0, "top_k": 2**62, "min_tokens": 99},
        {"temperature": 1.5, "repetition_penalty": 1.5, "top_k": 4},
    ],
)
def test_the_chances_are_the_samplers(grow, params):
    tree = grow(steps=7, **params)
    fate = tree.fate()
    row = SamplingRow(
        tree.params, tree.prompt_token_ids, tree.token_ids, tree.stop_token_ids
    )
    left = filter_logits(tree.node.logits[None], [row])[0]
    if params["temperature"]:
        assert torch.equal(fate.chance, left.softmax(-1))
        assert fate.left == int((left > -torch.inf).sum())
    else:
        assert fate.left == 1 and fate.chance.argmax() == left.argmax()
    for c in tree.candidates():
        assert c.logprob == pytest.approx(
            tree.node.logits.log_softmax(-1)[c.token_id].item()
        )
        assert c.rank == 1 + int(
            (tree.node.logits > tree.node.logits[c.token_id]).sum()
        )
        assert (c.cut_by is None) == bool(fate.chance[c.token_id] > 0)


def test_each_candidate_says_which_filter_removed_it(grow):
    """9, 16, 64, ... of 100 as in the notebook about sampling."""
    tree = grow()
    weights = torch.full((1536,), 1e-9)
    weights[:6] = torch.tensor([9.0, 1.0, 64.0, 9.0, 16.0, 1.0])
    tree.node.logits = weights.log()
    tree.params = SamplingParams(min_p=0.1, top_k=3, top_p=0.7)
    found = {c.token_id: c.cut_by for c in tree.candidates(count=6)}
    assert found == {
        2: None,
        4: "top_p",
        0: "top_p",
        3: "top_k",
        1: "min_p",
        5: "min_p",
    }
    assert widgets.removals(tree.fate()) == "min_p 1,532, top_k 1, top_p 2"
    assert tree.fate().left == 1


def test_min_tokens_removes_the_ends(grow, parts):
    tree = grow(min_tokens=3, steps=1)
    eos = parts[2][-1]
    assert tree.fate().cut_by(eos) == "min_tokens"
    assert not tree.step(eos).ended  # by hand it may be taken, and ends nothing yet
    tree.step()
    assert tree.fate().cut_by(eos) is None
    assert tree.step(eos).ended


def test_what_was_taken_is_listed_however_unlikely(grow):
    tree = grow()
    last = int(tree.node.logits.argmin())
    tree.step(last)
    tree.back()
    *listed, taken = tree.candidates(count=3)
    assert len(listed) == 3 and taken.token_id == last and taken.rank == 1536
    assert [c.token_id for c in tree.root.candidates][-1] == last


# ----- characters


def test_half_a_character_is_shown_by_its_bytes_and_not_in_the_text(grow, parts):
    tree = grow("从前，有一只")
    ids = parts[1].encode(BALLOON)
    assert len(ids) == 4
    for i, token_id in enumerate(ids[:3], start=1):
        tree.step(token_id)
        assert tree.text == "从前，有一只" and len(tree.waiting) == i
        assert "is no whole character yet" in widgets.draw_generation(tree).text
    assert [node.text for node in tree.path[1:]] == [r"\xf0", r"\x9f", r"\x8e"]
    tree.step(ids[3])
    assert tree.text == "从前，有一只" + BALLOON and not tree.waiting
    assert tree.pieces[-4:] == ["", "", "", BALLOON]
    picture = widgets.draw_generation(tree)
    assert r"\x8e" in picture.svg and BALLOON in picture.svg
    assert "\ufffd" not in picture.svg + picture.text


def test_a_prompt_of_ids_may_end_in_half_a_character(grow, parts):
    ids = parts[1].encode("从" + BALLOON)
    tree = grow(ids[:-1])
    assert tree.prompt == tree.text == "从"
    tree.step(ids[-1])
    assert tree.text == "从" + BALLOON


def test_a_tokenizer_that_cannot_be_read_token_by_token(grow, parts, monkeypatch):
    monkeypatch.setattr(TokenTexts, "spelling", None)
    tree = grow("从前")
    for token_id in parts[1].encode("🎈 and a cat"):
        tree.step(token_id)
        assert "\ufffd" not in tree.text
    assert tree.text == "从前🎈 and a cat"


# ----- the picture


def test_the_picture_says_what_the_tree_holds(grow):
    tree = grow(temperature=1.2, top_k=5, top_p=0.9, ignore_eos=True)
    wander(tree)
    tree.back(2)
    picture = widgets.draw_generation(tree)
    ElementTree.fromstring(picture.svg)
    numbers = (
        f"4 tokens of the prompt, {len(tree.path) - 1} generated",
        "3 branches, 13 tokens",
        f"{tree.cache.length} of 128 slots hold a token",
        f"the model has run {tree.ran} tokens",
        f"removed: {widgets.removals(tree.fate())}",
        "cut by top_k",
    )
    for words in numbers:
        assert words in picture.svg and words in picture.text
    lines = picture.text.splitlines()
    assert lines[0] == tree.text
    assert sum(line.startswith("→") for line in lines) == 1
    slots = "".join(line.strip() for line in lines if set(line) <= set(" ■▣▨·"))
    assert slots.count("■") == 4 and slots.count("▣") == len(tree.path) - 1
    assert slots.count("▨") == tree.stored.count("left behind") > 0
    assert len(slots) == 128


def test_the_picture_is_the_same_every_time(grow):
    tree = grow(steps=4)
    first, second = (widgets.draw_generation(tree) for _ in range(2))
    assert first.svg == second.svg and first.text == second.text


def test_bars_are_as_long_as_the_numbers(grow):
    tree = grow()
    tree.node.logits = torch.full((1536,), -torch.inf)
    tree.node.logits[:3] = torch.tensor([0.5, 0.3, 0.2]).log()
    tree.params = SamplingParams(top_k=2)
    assert tree.fate().left == 2  # what is impossible can't be drawn, filters or not
    svg = ElementTree.fromstring(widgets.draw_generation(tree).svg)
    bars = [
        r for r in svg.iter("{http://www.w3.org/2000/svg}rect") if r.get("rx") == "0"
    ]
    widths = [(float(bar.get("x")), float(bar.get("width"))) for bar in bars]
    left = [width for x, width in widths if x == 192]
    right = [width for x, width in widths if x == 474]
    assert left == pytest.approx([220 * share for share in (0.5, 0.3, 0.2)])
    assert right == pytest.approx([220 * round(5 / 8, 2), 220 * round(3 / 8, 2)])
    assert [bar.get("fill").startswith("url(#hatch") for bar in bars[-1:]] == [True]


def boxes(svg, fills=None):
    """x, y, right and bottom of the boxes with round corners of 3: chips."""
    found = []
    for r in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect"):
        if r.get("rx") == "3":
            x, y, w, h = (float(r.get(k)) for k in ("x", "y", "width", "height"))
            found.append((x, y, x + w, y + h))
    return found


@pytest.mark.parametrize("prompt", [PROMPT, "从前，有一个小女孩叫小红。她", "x " * 55])
def test_nothing_leaves_the_picture_or_covers_another(grow, prompt):
    """Thirty tokens and a dozen branches, most of them folded away."""
    tree = grow(prompt, temperature=1.8, seed=2)
    for i in range(12):
        for _ in range(30):
            if tree.node.logits is None or tree.node.cached == 128:
                break
            tree.step()
        svg = widgets.draw_generation(tree).svg
        chips = boxes(svg)
        assert all(0 <= x and right <= 760 for x, _, right, _ in chips)
        for n, (x, y, right, bottom) in enumerate(chips):
            for x2, y2, right2, bottom2 in chips[n + 1 :]:
                apart = x2 >= right or right2 <= x or y2 >= bottom or bottom2 <= y
                assert apart
        tree.back(3 + 5 * (i % 4))
        tree.step(other(tree))
    assert "not drawn" in widgets.draw_generation(tree).text


def test_the_branch_where_the_tree_is_is_always_drawn(grow):
    tree = grow(temperature=1.5)
    for _ in range(10):
        tree.step(other(tree))
        tree.step()
        tree.back(2)
    for node in tree.root.children.values():
        tree.go(node)
        svg = widgets.draw_generation(tree).svg
        assert "5 not drawn" not in svg and "4 not drawn" in svg
        # In the text and in the tree, the newest token is in full colour.
        assert svg.count('height="20" rx="3" fill="#2f6f9f"') == 1


def test_branches_hang_in_the_order_of_a_tree(grow):
    tree = grow()
    wander(tree)
    runs = widgets.branches(tree)
    assert sorted(n.depth for run in runs for n in run) == sorted(
        n.depth for n in tree.nodes
    )
    assert runs[0][0] is tree.root
    for run in runs:
        assert not run[-1].children
        for before, after in zip(run, run[1:], strict=False):
            assert after.parent is before


def test_a_long_text_shows_its_end(grow):
    tree = grow("Once upon a time, there was a dog. " * 20, max_len=300, steps=3)
    picture = widgets.draw_generation(tree)
    assert re.search(r"… \d+ lines above", picture.svg)
    assert "tokens of the prompt, 3 generated" in picture.svg


def test_markup_and_control_characters_stay_text(grow):
    tree = grow('<script>alert("&")</script>\x00\x1b\t{hatch}$a_b$\n end')
    picture = widgets.draw_generation(tree)
    ElementTree.fromstring(picture.svg)
    assert "<script" not in picture.svg and r"\x1b" in picture.text


def test_a_step_and_its_picture_are_quick(grow):
    tree = grow(steps=30)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        tree.step()
        widgets.draw_generation(tree)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3


# ----- the transcript


def told(parts, steps, prompt=PROMPT, **params):
    model, tokenizer, eos = parts
    return widgets.transcript(
        model,
        tokenizer,
        prompt,
        SamplingParams(**params),
        steps,
        eos_token_ids=eos,
        seed=3,
    )


def test_the_transcript_tells_each_step(parts, grow):
    params = {"temperature": 1.2, "top_k": 5}
    tree = grow(seed=3, **params)
    head, names, *rows, text = told(parts, 6, **params).splitlines()
    assert head == f"prompt: {PROMPT} (4 tokens; KV cache of 128 slots)"
    assert names.split("  ")[0] == "step" and len(rows) == 6
    for i, row in enumerate(rows):
        stored, node = tree.cache.length, tree.node
        taken = tree.step()
        (mine,) = [c for c in tree.candidates(node) if c.token_id == taken.token_id]
        first, *_, last = row.split()
        assert (first, last) == (str(i + 1), str(stored))
        assert row.split()[1] == widgets.label(taken.text)
        assert mine.cut_by is None and "top_k 1,531" in row
    assert text == f"text: {tree.text}"


def test_the_transcript_ends_with_the_text(parts):
    lines = told(parts, 200, temperature=0).splitlines()
    assert lines[-2] == "<|endoftext|> ends the text"
    assert "temperature 0: the likeliest token is taken" in lines[2]


def test_the_transcript_ends_with_the_cache(parts):
    text = told(parts, 500, temperature=1.0, ignore_eos=True)
    assert "the KV cache is full: all 128 slots hold a token" in text


def test_the_columns_stand_below_each_other_in_chinese(parts):
    _, names, *rows, _ = told(parts, 5, "从前，有一个小女孩叫小红").splitlines()
    ends = {len(names)}
    from folovllm_lite.viz.words import columns

    assert {columns(row) for row in rows} == ends


# ----- the dials


@pytest.fixture
def explorer(parts):
    model, tokenizer, eos = parts
    return widgets.GenerationExplorer(model, tokenizer, eos_token_ids=eos)


def test_the_embedded_model_is_there_by_itself():
    made = widgets.GenerationExplorer(steps=2)
    assert len(made.tree.path) == 3 and made.tree.eos_token_ids == (0, 2)
    with pytest.raises(ValueError, match="belong together"):
        widgets.GenerationExplorer(made.tree.model)


def test_buttons_step_and_go_back(explorer):
    explorer.ten.click()
    explorer.one.click()
    assert len(explorer.tree.path) == 12
    assert "Drew" in explorer.status.value and "11 generated" in explorer.figure.value
    explorer.undo.click()
    assert "nothing was computed" in explorer.status.value
    assert "10 generated" in explorer.figure.value
    explorer.restart.click()
    assert explorer.tree.node is explorer.tree.root
    explorer.undo.click()
    assert "no token to take back" in explorer.status.value


def test_a_candidate_is_another_branch(explorer):
    explorer.one.click()
    explorer.undo.click()
    names = [button.description for button in explorer.choices]
    bold = [button.style.font_weight == "bold" for button in explorer.choices]
    assert bold.count(True) == 1 and len(names) == 10
    explorer.choices[bold.index(False)].click()
    assert "Took “" in explorer.status.value
    assert "2 branches, 2 tokens" in explorer.figure.value
    assert explorer.branch.layout.display == "" and len(explorer.branch.options) == 2
    here = explorer.branch.value
    (there,) = {value for _, value in explorer.branch.options} - {here}
    explorer.branch.value = there
    assert "the model ran 1 token" in explorer.status.value
    assert explorer.tree.node is explorer.tree.nodes[there]


def test_dials_change_the_draw_and_not_the_text(explorer):
    explorer.ten.click()
    text, ran = explorer.tree.text, explorer.tree.ran
    explorer.temperature.value, explorer.top_k.value = 0.7, 3
    explorer.top_p.value, explorer.min_p.value = 0.9, 0.05
    explorer.seed.value = 12
    assert explorer.tree.params == SamplingParams(
        temperature=0.7, top_k=3, top_p=0.9, min_p=0.05, seed=12
    )
    assert (explorer.tree.text, explorer.tree.ran) == (text, ran)
    assert "can be drawn; removed: min_p" in explorer.figure.value


def test_a_dial_that_nobody_moved_is_not_spoken_of(explorer):
    """The page sets a slider when it is shown, and once that was the first line."""
    first = explorer.status.value
    assert "Nothing is generated" in first
    explorer._turned(None)
    assert explorer.status.value == first


def test_another_prompt(explorer):
    explorer.ten.click()
    explorer.top_k.value = 3
    explorer.prompt.value = "从前，有一个小女孩叫小红"
    assert explorer.tree.text == "从前，有一个小女孩叫小红"
    assert explorer.tree.params.top_k == 3
    assert "12 tokens of the prompt" in explorer.figure.value


@pytest.mark.parametrize(
    "prompt, words",
    [
        ("", "The prompt is empty: it needs at least one token. Nothing has changed."),
        ("word " * 200, "leaves no room for output. Nothing has changed."),
        ("\ud83c", "half of a surrogate pair. Nothing has changed."),
    ],
)
def test_a_bad_prompt_keeps_the_tree(explorer, prompt, words):
    explorer.ten.click()
    tree, figure = explorer.tree, explorer.figure.value
    explorer.prompt.value = prompt
    assert words in explorer.status.value
    assert explorer.tree is tree and explorer.figure.value == figure
    explorer.prompt.value = PROMPT
    assert explorer.tree is tree and "still here" in explorer.status.value
    explorer.one.click()
    assert len(tree.path) == 12


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_bad_seed_keeps_the_tree(explorer, seed):
    explorer.ten.click()
    tree, figure = explorer.tree, explorer.figure.value
    explorer.seed.value = seed
    assert "Seed must" in explorer.status.value
    assert tree.params.seed == 0 and explorer.figure.value == figure
    explorer.prompt.value = "Another one"
    assert "Seed must" in explorer.status.value and explorer.tree is tree
    explorer.seed.value = 4
    assert tree.params.seed == 4 and "follow the dials" in explorer.status.value


def test_the_end_and_a_full_cache_are_said(explorer, parts):
    explorer.tree.step(2)
    explorer.one.click()
    assert "The text has ended" in explorer.status.value
    explorer.one.click()
    assert "(asked 2 times)" in explorer.status.value, "each click shows"
    assert {button.layout.visibility for button in explorer.choices} == {"hidden"}
    small = widgets.GenerationExplorer(*parts[:2], max_len=6, steps=10)
    assert len(small.tree.path) == 3
    small.one.click()
    assert "The KV cache is full" in small.status.value
    small.choices[0].click()
    assert "The KV cache is full" in small.status.value


def test_every_setting_can_be_drawn(explorer):
    for dial in (explorer.temperature, explorer.min_p, explorer.top_p):
        for end in (dial.min, dial.max):
            dial.value = end
            explorer.one.click()
    assert "Drew" in explorer.status.value


def test_tab_goes_from_the_prompt_over_the_dials_to_the_buttons(explorer):
    from ipywidgets import Button, Dropdown, FloatSlider, IntText, SelectionSlider, Text

    *dials, moves, _, row, status, branch = explorer.controls
    assert [type(dial) for dial in dials] == [
        Text, FloatSlider, FloatSlider, SelectionSlider, FloatSlider, IntText,
    ]  # fmt: skip
    names = ("Continue", "(temperature)", "(min_p)", "(top_k)", "(top_p)", "(seed)")
    for dial, name in zip(dials, names, strict=True):
        assert name in dial.description and not dial.disabled
    assert all(isinstance(b, Button) for b in (*moves.children, *row.children))
    assert isinstance(branch, Dropdown)
    assert 'role="img" aria-label=' in explorer.figure.value
    assert 'aria-live="polite"' in status.value


def test_a_page_without_a_kernel_shows_the_picture(explorer):
    explorer.ten.click()
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["image/svg+xml"] == explorer.picture.svg
    assert bundle["text/plain"] == explorer.picture.text == repr(explorer)


def test_a_click_is_answered_quickly(explorer):
    explorer.ten.click()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        explorer.one.click()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3


# ----- the README's pictures


def test_the_readmes_pictures_are_what_the_command_writes(tmp_path):
    """`python -m folovllm_lite.widgets docs/images` draws them again."""
    files = readme.write_readme_pictures(tmp_path)
    assert len(files) == 2
    for file in files:
        saved = ROOT / "docs/images" / file.name
        assert saved.read_text(encoding="utf-8") == file.read_text(encoding="utf-8")


def test_no_percentage_of_the_readmes_picture_is_nearly_another():
    """On another processor the last digits differ, and the file must not."""
    tree = readme._readme_tree()
    found = tree.candidates()
    others = (sum(c.probability for c in found), sum(c.chance for c in found))
    shares = [x for c in found for x in (c.probability, c.chance)]
    for share in (*shares, *others):
        assert abs(share * 100 % 1 - 0.5) > 0.01
