"""The picture of a request's passes counts as the loop does."""

from folovllm_lite import viz

PROMPT = ["Lily", " went"]
COMPLETIONS = [([" home", ".", "<end>"], "stop"), ([" out", " and"], "length")]


def test_a_last_token_is_never_run_and_the_prompt_takes_one_pass():
    runs, count = viz.loop_passes([tokens for tokens, _ in COMPLETIONS])
    assert runs == [[2, 4, None], [3, None]]
    assert count == 4
    assert viz.loop_passes([["a"]]) == ([[None]], 1)


def test_the_text_says_which_pass_runs_what():
    assert str(viz.draw_loop(PROMPT, COMPLETIONS).text).splitlines() == [
        "prompt: Lily| went  all in pass 1",
        "completion 0:  home|.|<end>  in pass 2, 4, never; stop",
        "completion 1:  out| and  in pass 3, never; length",
        "4 passes",
    ]


def test_the_figure_says_the_same_on_every_run():
    first = viz.draw_loop(PROMPT, COMPLETIONS)
    assert first.svg == viz.draw_loop(PROMPT, COMPLETIONS).svg
    assert first.svg.count("never run") == 2
    assert first.svg.count("pass 1") == len(PROMPT)
    for words in ("pass 4", "stop", "length", "&lt;end&gt;"):
        assert words in first.svg
