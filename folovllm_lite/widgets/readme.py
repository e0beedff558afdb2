"""The README's pictures of the explorers.

python -m folovllm_lite.widgets docs/images
"""

from pathlib import Path

from folovllm_lite import viz
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.viz.tree import draw_generation
from folovllm_lite.widgets.sampling import draw_exploration, explore, load_contexts
from folovllm_lite.widgets.tree import GenerationTree

# Tokens to take back, and the text that follows then.
README_BRANCHES = (
    (0, ", there was a little girl named Lily. She loved to play in the park."),
    (12, " boy named Tim. He had a red"),
    (6, " Max"),
    (1, ""),
)


def readme_pictures() -> dict[str, viz.Picture]:
    """A picture of each explorer, by the name of its file."""
    context = load_contexts()[0]
    params = SamplingParams(temperature=1.2, min_p=0.02, top_k=8, top_p=0.9)
    return {
        "sampling_explorer.svg": draw_exploration(explore(context, params)),
        "generation_explorer.svg": draw_generation(_readme_tree()),
    }


def _readme_tree() -> GenerationTree:
    """A story with two branches left behind; all tokens are given, none is drawn."""
    from folovllm_lite.llm import LLM

    llm = LLM(device="cpu")
    tokenizer = llm.get_tokenizer()
    tree = GenerationTree(
        llm.model,
        tokenizer,
        "Once upon a time",
        SamplingParams(temperature=0.8, min_p=0.02, top_k=8, top_p=0.9),
        llm.llm_engine.eos_token_ids,
    )
    for back, text in README_BRANCHES:
        tree.back(back)
        for token_id in tokenizer.encode(text):
            tree.step(token_id)
    return tree


def write_readme_pictures(folder: Path) -> list[Path]:
    """Write them to a folder; the files."""
    files = []
    for name, picture in readme_pictures().items():
        files.append(folder / name)
        files[-1].write_text(picture.svg, encoding="utf-8", newline="\n")
    return files
