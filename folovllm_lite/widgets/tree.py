"""A prompt and all its continuations that were tried, with one KV cache for them.

Plain objects, without a widget: what the generation explorer computes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from folovllm_lite.kv_cache import ContiguousKVCache
from folovllm_lite.processor import (
    ByteDetokenizer,
    InputProcessor,
    TokenTexts,
    WindowDetokenizer,
)
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.sampler import (
    SamplingRow,
    apply_min_p,
    apply_penalties,
    apply_top_k,
    apply_top_p,
    mask_stop_tokens,
    sample,
)
from folovllm_lite.sampling_params import SamplingParams


@dataclass(frozen=True)
class Choice:
    r"""A token that could come next, and what becomes of it.

    Args:
        token_id: the token.
        text: how it reads; bytes that are no whole character as `\xe4`.
        logprob: natural log-probability, as the model gives it.
        probability: the same as a share of 1.
        rank: 1 for the model's likeliest.
        cut_by: what removed it: "min_tokens", "min_p", "top_k", "top_p", "greedy" at
            temperature 0, or None.
        chance: its probability in the draw; 0 if it was removed.
    """

    token_id: int
    text: str
    logprob: float
    probability: float
    rank: int
    cut_by: str | None
    chance: float


@dataclass(frozen=True, eq=False)
class Fate:
    """What the parameters do to one distribution.

    Args:
        seen: [V] logits that the filters see: after the penalties and the temperature.
        chance: [V] probabilities in the draw.
        removed: for each filter that is on, [V] bool: the tokens that it removed.
        left: how many tokens can be drawn.
    """

    seen: Tensor
    chance: Tensor
    removed: dict[str, Tensor]
    left: int

    def cut_by(self, token_id: int) -> str | None:
        """The filter that removed a token, if one did."""
        return next((name for name, cut in self.removed.items() if cut[token_id]), None)


def fate_of(logits: Tensor, row: SamplingRow) -> Fate:
    """Follow logits [V] through all that the sampler does before it draws."""
    params, raw = row.params, logits.float()[None]  # [1, V]
    masked = mask_stop_tokens(raw, [row])
    removed = {}
    if row.stop_token_ids and len(row.output_token_ids) < params.min_tokens:
        removed["min_tokens"] = (masked == -math.inf)[0]
    seen = apply_penalties(masked, [row])
    if params.temperature == 0:
        best = torch.zeros_like(seen[0], dtype=torch.bool)
        best[seen[0].argmax()] = True
        removed["greedy"] = ~best & (seen[0] > -math.inf)
        return Fate(seen[0], best.float(), removed, 1)
    seen = left = seen / params.temperature
    for name, apply, value, off in (
        ("min_p", apply_min_p, params.min_p, 0.0),
        ("top_k", apply_top_k, min(params.top_k, logits.shape[-1]), -1),
        ("top_p", apply_top_p, params.top_p, 1.0),
    ):
        if value != off:
            after = apply(left, torch.tensor([[value]], device=left.device))
            removed[name] = ((left > -math.inf) & (after == -math.inf))[0]
            left = after
    count = int((left > -math.inf).sum())
    return Fate(seen[0], left.softmax(-1)[0], removed, count)


@dataclass(eq=False, repr=False)
class Node:
    r"""A token in the tree, behind all tokens above it.

    Args:
        tree: that it stands in.
        token_id: the token; None for the root, which is the prompt.
        parent: the node before it; None for the root.
        text: how the token reads; bytes that are no whole character as `\xe4`.
        cached: tokens in the KV cache once it is reached: the prompt's, those above
            and its own. A token that ends the text is never run, so it isn't stored.
        ended: whether the text ends with it.
        logits: [V] of what follows, float32; None if nothing does.
        children: by token id, in the order in which they were made.
    """

    tree: "GenerationTree"
    token_id: int | None
    parent: "Node | None"
    text: str
    cached: int
    ended: bool = False
    logits: Tensor | None = None
    children: dict[int, "Node"] = field(default_factory=dict)

    @property
    def path(self) -> list["Node"]:
        """From the root to this node."""
        path = [self]
        while path[-1].parent is not None:
            path.append(path[-1].parent)
        return path[::-1]

    @property
    def depth(self) -> int:
        """Generated tokens up to this one; 0 for the root."""
        return len(self.path) - 1

    @property
    def candidates(self) -> list[Choice]:
        """What may follow, under the tree's params as they are now."""
        return self.tree.candidates(self)

    def __repr__(self) -> str:
        return f"Node({self.text!r}, depth {self.depth}, {self.cached} cached)"


class GenerationTree:
    """A prompt and every continuation that was tried, with one KV cache for all.

    A step runs one token. Going back sets the cache's `length` lower and computes
    nothing. Going to another branch runs what the cache doesn't hold any more, from the
    fork on.

    The n-th token behind the prompt uses the n-th draw of the seed, on every branch. So
    a step taken again takes the same token, and with no step chosen by hand the tokens
    are those of `generation.generate` with the same params and seed.

    Args:
        model: on any device, in any dtype.
        tokenizer: of `transformers`.
        prompt: whatever `InputProcessor` takes.
        params: how to sample; what belongs to a whole request (n, max_tokens, stop
            strings, logprobs) is ignored.
        eos_token_ids: tokens that end a text.
        seed: of the draws, unless params have their own.
        max_len: slots of the KV cache, so most tokens of a text; None is 128, or the
            model's limit if that is less.
        count: candidates to list.

    Raises:
        TypeError, ValueError: a prompt that can't be served, a seed out of range.
    """

    def __init__(
        self,
        model: Qwen3,
        tokenizer: Any,
        prompt: str | dict | list[int],
        params: SamplingParams | None = None,
        eos_token_ids: Sequence[int] = (),
        seed: int = 0,
        max_len: int | None = None,
        count: int = 10,
    ):
        limit, weight = model.config.max_model_len, model.lm_head.weight
        max_len = min(128, limit) if max_len is None else max_len
        if not 1 < max_len <= limit:
            raise ValueError(f"max_len must be from 2 to {limit}, got {max_len}")
        self.model, self.count = model, count
        self.texts = TokenTexts(tokenizer)
        self.eos_token_ids = tuple(eos_token_ids)
        self._device, self._draws = weight.device, []
        self._params = SamplingParams(seed=seed)
        self.params = params or SamplingParams()
        processor = InputProcessor(tokenizer, model.config.vocab_size, max_len)
        asked = replace(self.params, max_tokens=None)
        text, self.prompt_token_ids = processor.process(prompt, asked)
        self.prompt = "".join(self._prompt_pieces()) if text is None else text
        self.cache = ContiguousKVCache(
            model.config, max_len, weight.dtype, weight.device
        )
        self.ran = 0  # tokens that went through the model
        self.root = Node(self, None, None, "prompt", len(self.prompt_token_ids))
        self._stored: list[Node | None] = []  # whose keys and values the slots hold
        self.node, self.nodes = self.root, [self.root]
        self.root.logits = self._run(self.prompt_token_ids)
        self._stored = [self.root]  # in one entry all slots of the prompt

    # --- parameters

    @property
    def params(self) -> SamplingParams:
        """How to sample; set others at any time. Without a seed the last one stays."""
        return self._params

    @params.setter
    def params(self, params: SamplingParams) -> None:
        if params.seed is None:
            params = replace(params, seed=self._params.seed)
        if params.seed != self._params.seed:
            self._draws = []
        self._params = params

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """All tokens that end the text."""
        eos = () if self.params.ignore_eos else self.eos_token_ids
        return (*eos, *self.params.stop_token_ids)

    # --- what may follow

    def fate(self, node: Node | None = None) -> Fate:
        """What the params do to the distribution at a node (None: where the tree is).

        Raises:
            ValueError: if the text has ended there.
        """
        node = node or self.node
        if node.logits is None:
            raise ValueError("the text has ended here: nothing follows")
        return fate_of(node.logits, self._row(node))

    def candidates(
        self, node: Node | None = None, count: int | None = None
    ) -> list[Choice]:
        """The likeliest next tokens at a node, then the others that were taken there.

        Likeliest means as the filters see it. If the text has ended there are none.
        """
        node = node or self.node
        if node.logits is None:
            return []
        fate, logprobs = self.fate(node), node.logits.log_softmax(-1)
        order = fate.seen.argsort(descending=True, stable=True)
        listed = order[: self.count if count is None else count].tolist()
        return [
            Choice(
                i,
                self.text_of(i),
                logprobs[i].item(),
                logprobs[i].exp().item(),
                int((logprobs > logprobs[i]).sum()) + 1,
                fate.cut_by(i),
                fate.chance[i].item(),
            )
            for i in dict.fromkeys([*listed, *node.children])
        ]

    def draw(self) -> int:
        """The token that the seed draws here; the same one if it is asked again."""
        node = self.node
        if node.logits is None:
            raise ValueError(
                f"the text has ended with {node.text}: go back or take another branch"
            )
        row = self._row(node, self._generator(node.depth))
        return int(sample(node.logits[None], [row]).token_ids)

    def _row(self, node: Node, generator: torch.Generator | None = None) -> SamplingRow:
        output = [each.token_id for each in node.path[1:]]
        return SamplingRow(
            self.params, self.prompt_token_ids, output, self.stop_token_ids, generator
        )

    def _generator(self, draws: int) -> torch.Generator:
        """The seed's generator after so many draws."""
        generator = torch.Generator(self._device)
        if not self._draws:
            self._draws = [generator.manual_seed(self.params.seed).get_state()]
        while len(self._draws) <= draws:
            generator.set_state(self._draws[-1])
            noise = torch.empty(self.model.config.vocab_size, device=self._device)
            noise.exponential_(generator=generator)  # as `sampler.draw` does
            self._draws.append(generator.get_state())
        return generator.set_state(self._draws[draws])

    # --- moving

    def step(self, token_id: int | None = None) -> Node:
        """Take the token that the seed draws, or the given one; the node reached.

        Raises:
            ValueError: the text has ended, the cache is full, or there is no such
                token; nothing has changed then.
        """
        node, V = self.node, self.model.config.vocab_size
        token_id = self.draw() if token_id is None else token_id
        if node.logits is None:
            self.draw()  # which says so
        if type(token_id) is not int or not 0 <= token_id < V:
            raise ValueError(f"token_id must be an int from 0 to {V - 1}: {token_id!r}")
        if token_id in node.children:
            return self._move(node.children[token_id])
        ends = token_id in self.stop_token_ids and node.depth >= self.params.min_tokens
        if not ends and node.cached == self.cache.max_len:
            raise ValueError(
                f"the KV cache is full: all {self.cache.max_len} slots hold a token"
            )
        text = self.text_of(token_id)
        child = Node(self, token_id, node, text, node.cached + (not ends), ends)
        self._move(child)
        node.children[token_id] = child
        self.nodes.append(child)
        return child

    def back(self, n: int = 1) -> Node:
        """Take the last n tokens back, as far as the prompt; the node reached."""
        if type(n) is not int or n < 0:
            raise ValueError(f"n must be an int of at least 0, got {n!r}")
        return self._move(self.path[max(0, len(self.path) - 1 - n)])

    def go(self, node: Node) -> Node:
        """Go to any node of the tree."""
        if node not in self.nodes:
            raise ValueError(f"{node!r} is no node of this tree")
        return self._move(node)

    def _move(self, node: Node) -> Node:
        """Make the cache hold the node's path, running only what it doesn't hold."""
        wanted = [each for each in node.path if not each.ended]
        same = 0
        for here, stored in zip(wanted, self._stored, strict=False):
            if here is not stored:
                break
            same += 1
        fork, missing = wanted[same - 1], wanted[same:]
        self.cache.length = fork.cached
        if missing:
            # If the model fails, the tree stands at the fork and these slots are lost.
            self.node = fork
            self._stored[same : same + len(missing)] = [None] * len(missing)
            logits = self._run([each.token_id for each in missing])
            self._stored[same : same + len(missing)] = missing
            if missing[-1].logits is None:
                missing[-1].logits = logits
        self.node = node
        return node

    @torch.inference_mode()
    def _run(self, token_ids: list[int]) -> Tensor:
        """Run tokens behind those that are stored; logits [V] of what follows."""
        ids = torch.tensor(token_ids, device=self._device)
        hidden = self.model(ids, self.cache.step(len(ids)))
        self.cache.advance(len(ids))
        self.ran += len(ids)
        return self.model.logits(hidden[-1:]).float()[0]

    # --- where the tree is

    @property
    def path(self) -> list[Node]:
        """The nodes from the root to where the tree is."""
        return self.node.path

    @property
    def token_ids(self) -> list[int]:
        """The generated tokens."""
        return [node.token_id for node in self.path[1:]]

    @property
    def text(self) -> str:
        """Prompt and generated text; a character that isn't whole isn't shown."""
        return self.prompt + "".join(self.pieces[len(self.prompt_token_ids) :])

    @property
    def pieces(self) -> list[str]:
        """What every token of prompt and text completes; "" if it is only a part."""
        decoder = self._detokenizer(self.prompt_token_ids)
        stops = self.node.ended and not self.params.include_stop_str_in_output
        ids = self.token_ids
        found = [decoder.append(i) for i in (ids[:-1] if stops else ids)]
        found += [""] * stops
        if self.node.ended:
            found[-1] += decoder.finish()
        return [*self._prompt_pieces(), *found]

    @property
    def waiting(self) -> list[Node]:
        """The tokens at the end that together are no whole character yet."""
        shown = self.pieces[len(self.prompt_token_ids) :]
        count = 0
        for node, piece in zip(reversed(self.path[1:]), reversed(shown), strict=True):
            if piece or node.ended or node.token_id in self.texts.special_ids:
                break
            count += 1
        return self.path[len(self.path) - count :]

    @property
    def stored(self) -> list[str]:
        """What each slot of the KV cache holds.

        "prompt", "generated", "free", or "left behind": a token that isn't on the path,
        until another is written over it.
        """
        prompt, length = len(self.prompt_token_ids), self.cache.length
        used = prompt + len(self._stored) - 1
        free = self.cache.max_len - used
        return [
            *["prompt"] * prompt,
            *["generated"] * (length - prompt),
            *["left behind"] * (used - length),
            *["free"] * free,
        ]

    def text_of(self, token_id: int) -> str:
        r"""A token alone; bytes that are no whole character as `\xe4`."""
        if self.texts.spelling:
            return self.texts.bytes_of(token_id).decode("utf-8", "backslashreplace")
        return self.texts.text_of(token_id)

    def _prompt_pieces(self) -> list[str]:
        decoder = self._detokenizer([])
        return [decoder.append(i) for i in self.prompt_token_ids]

    def _detokenizer(self, before: list[int]) -> ByteDetokenizer | WindowDetokenizer:
        params = self.params
        skip, spaces = params.skip_special_tokens, params.spaces_between_special_tokens
        if self.texts.spelling:
            return ByteDetokenizer(self.texts, before, skip)
        return WindowDetokenizer(self.texts, before, skip, spaces)
