"""The generation explorer: dials and buttons over a `GenerationTree`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from folovllm_lite import viz
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.viz.tree import branches, draw_generation
from folovllm_lite.viz.words import label, share_words
from folovllm_lite.widgets.dials import (
    beside,
    framed,
    grid,
    narrow,
    read_dials,
    sliders_of,
    spoken,
)
from folovllm_lite.widgets.tree import GenerationTree, Node


class GenerationExplorer:
    """Step through a generation, go back, take another branch, and watch the KV cache.

    Everything can be reached with Tab and turned with the arrow keys or the space bar.
    What can't be done is said below the buttons, and then nothing changes.

    Args:
        model, tokenizer: None is the embedded model with its own tokenizer and ends.
        prompt: to begin with.
        params: where the dials stand at first; penalties and what else has no dial stay
            as they are.
        eos_token_ids: tokens that end a text; None is the tokenizer's own.
        seed: of the draws, unless params have their own.
        max_len, count: as for `GenerationTree`.
        steps: to take before it is shown.
    """

    def __init__(
        self,
        model: Qwen3 | None = None,
        tokenizer: Any = None,
        prompt: str = "Once upon a time",
        params: SamplingParams | None = None,
        eos_token_ids: Sequence[int] | None = None,
        seed: int = 0,
        max_len: int | None = None,
        count: int = 10,
        steps: int = 0,
    ):
        import ipywidgets as w

        if (model is None) != (tokenizer is None):
            raise ValueError("model and tokenizer belong together: give both or none")
        if model is None:
            from folovllm_lite.llm import LLM

            llm = LLM(device="cpu")
            model, tokenizer = llm.model, llm.get_tokenizer()
            if eos_token_ids is None:
                eos_token_ids = llm.llm_engine.eos_token_ids
        if eos_token_ids is None:
            own = tokenizer.eos_token_id
            eos_token_ids = () if own is None else (own,)
        self._new = lambda text, params: GenerationTree(
            model, tokenizer, text, params, eos_token_ids, seed, max_len, count
        )
        self.tree = self._new(prompt, params)
        if steps:
            self._draw(steps)
        start = self.tree.params
        self.prompt = w.Text(
            value=prompt, continuous_update=False,
            description="Continue this text (Enter)", **narrow(),
        )  # fmt: skip
        sliders = sliders_of(start)
        self.temperature, self.min_p, self.top_k, self.top_p = sliders
        self.seed = w.IntText(
            value=start.seed, description="Begin the draws from this (seed)", **narrow()
        )
        self.one = w.Button(description="Step")
        self.ten = w.Button(description="10 steps")
        self.undo = w.Button(description="Back")
        self.restart = w.Button(description="To the prompt")
        self.branch = w.Dropdown(description="Go to the end of", **narrow())
        self.choices = [w.Button() for _ in range(count)]
        self._ids: list[int] = []  # of the tokens on these buttons
        self.figure, self.status = w.HTML(), w.HTML()
        self._busy = False  # while dials are set from here
        self._said, self._again = "", 1  # what was refused last, and how often
        self.prompt.observe(self._prompted, "value")
        for dial in (*sliders, self.seed):
            dial.observe(self._turned, "value")
        self.branch.observe(self._branched, "value")
        self.one.on_click(lambda _: self.step(1))
        self.ten.on_click(lambda _: self.step(10))
        self.undo.on_click(lambda _: self.back(1))
        self.restart.on_click(lambda _: self.back(len(self.tree.path)))
        for i, button in enumerate(self.choices):
            button.on_click(lambda _, i=i: self.take(self._ids[i]))
        moves = grid([self.one, self.ten, self.undo, self.restart])
        name = w.HTML("Or take a token yourself:")
        self.row = grid(self.choices, rows=-(-count // 2))
        # The order of the Tab key is the order in this list.
        self.controls = [
            self.prompt, *sliders, self.seed, moves, name, self.row, self.status,
            self.branch,
        ]  # fmt: skip
        self.box = beside(self.controls, self.figure)
        made = len(self.tree.path) - 1
        self._show(f"{made} tokens are generated." if made else "Nothing is generated.")

    @property
    def params(self) -> SamplingParams:
        """What the dials say.

        Raises:
            ValueError: a seed out of range.
        """
        return replace(self.tree.params, seed=self.seed.value, **read_dials(self))

    @property
    def picture(self) -> viz.Picture:
        """The tree, as a picture and as text."""
        return draw_generation(self.tree)

    def step(self, count: int) -> None:
        """Draw tokens; fewer if the text ends."""
        try:
            self._show(self._reached(self._draw(count)))
        except ValueError as error:
            self._refuse(_sentence(error))

    def _draw(self, count: int) -> list[Node]:
        """Take so many steps; that the text ends is an error only for the first one."""
        taken: list[Node] = []
        for _ in range(count):
            try:
                taken.append(self.tree.step())
            except ValueError:
                if not taken:
                    raise
                break
        return taken

    def take(self, token_id: int) -> None:
        """Take a token by hand."""
        try:
            self._show(self._reached([self.tree.step(token_id)], "Took"))
        except ValueError as error:
            self._refuse(_sentence(error))

    def back(self, count: int) -> None:
        """Take tokens back; what was generated behind them stays in the tree."""
        if self.tree.node is self.tree.root:
            self._refuse("This is the prompt: there is no token to take back.")
            return
        self.tree.back(count)
        self._show(
            f"Back: the KV cache's length is {self.tree.cache.length} now, and nothing "
            "was computed."
        )

    def _refuse(self, words: str) -> None:
        """Say why nothing happened, and that it was asked again: each click shows."""
        self._again = self._again + 1 if words == self._said else 1
        again = f" (asked {self._again} times)" if self._again > 1 else ""
        self._show(words + again)
        self._said = words

    def _reached(self, taken: list[Node], verb: str = "Drew") -> str:
        names = " ".join(f"“{label(node.text)}”" for node in taken)
        ends = ", which ends the text" if self.tree.node.ended else ""
        return f"{verb} {names}{ends}."

    def _prompted(self, _: Any) -> None:
        if self.prompt.value == self.tree.prompt:  # again, after one that was refused
            self._show("The prompt is the old one: its tree is still here.")
            return
        try:
            self.tree = self._new(self.prompt.value, self.params)
        except (TypeError, ValueError) as error:
            self._show(f"{_sentence(error)} Nothing has changed.")
        else:
            self._show("A new prompt: its tokens went through the model at once.")

    def _turned(self, _: Any) -> None:
        """A dial moved: another distribution, the same text."""
        try:
            if self.params == self.tree.params:
                return  # the page set the dial to where it stood
            self.tree.params = self.params
        except (TypeError, ValueError) as error:
            self._show(f"{_sentence(error)} Nothing has changed.")
        else:
            self._show("The next step will follow the dials; nothing was computed.")

    def _branched(self, change: Any) -> None:
        if self._busy or change["new"] is None:
            return
        ran = self.tree.ran
        self.tree.go(self.tree.nodes[change["new"]])
        ran = self.tree.ran - ran
        tokens = "1 token" if ran == 1 else f"{ran} tokens"
        self._show(f"Another branch: the model ran {tokens}, those behind the fork.")

    def _show(self, status: str) -> None:
        tree, self._said = self.tree, ""
        found = tree.candidates()[: len(self.choices)]
        self._ids = [c.token_id for c in found]
        for i, button in enumerate(self.choices):
            # Hidden, not gone: what stands below stays where it is.
            button.layout.visibility = "visible" if i < len(found) else "hidden"
            if i < len(found):
                c = found[i]
                button.description = f"{label(c.text)} {share_words(c.probability)}"
                button.tooltip = f"cut by {c.cut_by}" if c.cut_by else "can be drawn"
                taken = c.token_id in tree.node.children
                button.style.font_weight = "bold" if taken else "normal"
                button.style.text_decoration = "line-through" if c.cut_by else None
        self._busy = True
        ends = [run[-1] for run in branches(tree)]
        places = {node: i for i, node in enumerate(tree.nodes)}
        options = [
            (f"branch {i}: … {_ending(end)}", places[end])
            for i, end in enumerate(ends, start=1)
        ]
        if tree.node not in ends:
            options.insert(0, ("(choose a branch)", None))
        self.branch.options = options
        self.branch.value = places[tree.node] if tree.node in ends else None
        self.branch.layout.display = "" if len(ends) > 1 else "none"
        self._busy = False
        self.figure.value, self.status.value = framed(self.picture), spoken(status)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict:
        """The widget, and for pages without a kernel its picture and its text."""
        picture = self.picture
        still = {"image/svg+xml": picture.svg, "text/plain": picture.text}
        return {**self.box._repr_mimebundle_(**kwargs), **still}

    def __repr__(self) -> str:
        return self.picture.text


def _ending(node: Node) -> str:
    """The last tokens of a branch."""
    return "".join(label(each.text) for each in node.path[1:][-8:]) or "prompt"


def _sentence(error: Exception) -> str:
    """An error's message as a sentence; a name at its beginning stays as it is."""
    words = str(error)
    if "_" not in words.partition(" ")[0]:
        words = words[:1].upper() + words[1:]
    return f"{words}."
