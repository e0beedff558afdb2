"""A generation as a table: what each step took, and instead of what."""

from collections.abc import Sequence
from typing import Any

from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.viz.tree import removals
from folovllm_lite.viz.words import columns, cut, label, padded, plain, share_words
from folovllm_lite.widgets.tree import GenerationTree


def transcript(
    model: Qwen3,
    tokenizer: Any,
    prompt: str | dict | list[int],
    params: SamplingParams | None = None,
    steps: int = 10,
    *,
    eos_token_ids: Sequence[int] = (),
    seed: int = 0,
    max_len: int | None = None,
    alternatives: int = 3,
) -> str:
    """Generate, and tell each step in a line: what was taken, and instead of what.

    Percentages are whole. A token taken at a step isn't in the KV cache yet: the next
    step stores it.

    Args:
        model: it and the others are as for `GenerationTree`.
        tokenizer: its own.
        prompt: text or ids.
        params: how to sample.
        steps: how many; fewer if the text ends or the cache is full.
        eos_token_ids: tokens that end a text.
        seed: of the draws, unless params have their own.
        max_len: slots of the KV cache.
        alternatives: of the likeliest other tokens, how many to name.
    """
    tree = GenerationTree(
        model, tokenizer, prompt, params, eos_token_ids, seed, max_len
    )
    start, slots = len(tree.prompt_token_ids), tree.cache.max_len
    tokens = "1 token" if start == 1 else f"{start} tokens"
    head = ("step", "token", "model", "draw", "instead of", "left", "removed", "cached")
    widths = (4, 14, 5, 4, 20 * alternatives - 2, 6, 44, 6)
    rows: list[tuple[str, ...]] = []
    end = ""
    for step in range(1, steps + 1):
        node, fate = tree.node, tree.fate()
        try:
            taken = tree.step()
        except ValueError as error:
            end = f"\n{error}"
            break
        found = {c.token_id: c for c in tree.candidates(node, alternatives + 1)}
        mine = found.pop(taken.token_id)
        others = [
            f"{label(c.text)} {share_words(c.probability)}" for c in found.values()
        ]
        rows.append(
            (
                str(step),
                label(taken.text),
                share_words(mine.probability),
                share_words(mine.chance),
                "  ".join(cut(each, 18) for each in others[:alternatives]),
                f"{fate.left:,}",
                removals(fate),
                str(node.cached),
            )
        )
        if taken.ended:
            end = f"\n{label(taken.text)} ends the text"
            break
    table = [head, *rows]
    widths = [
        min(width, max(columns(row[i]) for row in table))
        for i, width in enumerate(widths)
    ]
    right = (0, 2, 3, 5, 7)
    lines = [
        "  ".join(padded(row[i], widths[i], i in right) for i in range(8)).rstrip()
        for row in table
    ]
    return (
        "\n".join(
            [
                f"prompt: {plain(tree.prompt)} ({tokens}; KV cache of {slots} slots)",
                *lines,
            ]
        )
        + f"{end}\ntext: {plain(tree.text)}"
    )
