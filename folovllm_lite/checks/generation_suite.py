"""What has to be true of the generation loop and of the first LLM (notebook 09)."""

import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import islice, product
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from folovllm_lite import generation as package
from folovllm_lite.attention import PlainContext
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail, plain
from folovllm_lite.checks.tiny import Letters, tiny_config
from folovllm_lite.kv_cache import ContiguousKVCache
from folovllm_lite.processor import OutputBuilder, TokenTexts
from folovllm_lite.qwen3 import Qwen3, Qwen3Config
from folovllm_lite.request import Request, SequenceStatus
from folovllm_lite.sampler import SamplerOutput, SamplingRow, gather_logprobs, sample
from folovllm_lite.sampling_params import SamplingParams

_SUITE = generation = Suite(
    package,
    """Judge generate, RequestState and Generation, or some of them.

    `checks.generation(generate=mine)` judges one function, `checks.generation(module)`
    all of a module. The engine of notebook 09 is judged as `LLM`, against the
    package's, and its first loop as `one_completion`.
    """,
)
_PROMPT = [5, 9, 3]
_LIMIT = 24  # tokens that the judge's model was built for
_V = 28
_NEAR = 1e-3
_TOO_MANY = 200  # forward passes: no property needs half of them


# ----- a model that costs nothing, and what it should generate


class _Halves(Letters):
    """Letters, but for 2 and 3, the bytes of é, and 11, 12 and 13, those of 从."""

    def decode(self, ids: Any, **others: Any) -> str:
        """The text of the bytes of all tokens."""
        ids = [ids] if isinstance(ids, int) else ids
        parts = {2: b"\xc3", 3: b"\xa9", 11: b"\xe4", 12: b"\xbb", 13: b"\x8e"}
        tokens = (parts.get(i) or self.convert_ids_to_tokens(i).encode() for i in ids)
        return b"".join(tokens).decode("utf-8", "replace")


class _Words(Letters):
    """Letters with a space in front, but for the first of a text."""

    def decode(self, ids: Any, skip_special_tokens: bool = False, **others: Any) -> str:
        """The letters, a space between each two."""
        ids = [ids] if isinstance(ids, int) else ids
        special = self.all_special_ids if skip_special_tokens else []
        return " ".join(self.tokens[i] for i in ids if i not in special)


class _Model(Qwen3):
    """A Qwen3 that notes which positions it has run."""

    def __init__(self, config: Qwen3Config):
        super().__init__(config)
        self.passes: list[list[int]] = []
        self.recorded = False  # for training

    def forward(self, token_ids: Tensor, ctx: Any) -> Tensor:
        """Run a pass and note it."""
        self.passes.append(ctx.positions.tolist())
        self.recorded |= torch.is_grad_enabled()
        if len(self.passes) > _TOO_MANY:
            raise RuntimeError(f"{_TOO_MANY} forward passes, and no end")
        return super().forward(token_ids, ctx)

    def since(self) -> list[list[int]]:
        """The positions of every pass since this was asked last."""
        passes, self.passes = self.passes, []
        return passes


@cache
def _model(dtype: torch.dtype = torch.float32) -> _Model:
    """Two layers with random weights, large enough to make a choice."""
    model = _Model(
        tiny_config(
            vocab_size=_V,
            hidden_size=16,
            intermediate_size=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            max_position_embeddings=_LIMIT,
        )
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1)
            else:
                weight.normal_(0, 0.5, generator=generator)
    return model.to(dtype)


@cache
def _logits(*ids: int) -> Tensor:
    """Raw logits [T, V] of one pass over all of `ids`, without a cache."""
    model = _model()
    with torch.no_grad():
        hidden = model(torch.tensor(ids), PlainContext(torch.arange(len(ids))))
        model.passes.pop()
        return model.logits(hidden)


def _plain(
    prompt: list[int], index: int = 0, eos: tuple[int, ...] = (), **params: Any
) -> list[int]:
    """Tokens of the index-th completion: the whole text runs anew for each of them."""
    asked, output = SamplingParams(**params), []
    generator = None
    if asked.seed is not None:
        generator = torch.Generator().manual_seed(asked.seed + index)
    stops = (*(() if asked.ignore_eos else eos), *asked.stop_token_ids)
    banned = (*eos, *asked.stop_token_ids)
    row = SamplingRow(asked, prompt, output, banned, generator)
    while len(output) < asked.max_tokens:
        chosen = sample(_logits(*prompt, *output)[-1:], [row])
        output.append(int(chosen.token_ids[0]))
        if output[-1] in stops and len(output) > asked.min_tokens:
            break
    return output


def _scores(prompt: list[int], output: list[int]) -> Tensor:
    """Raw log-probabilities [N, V] at the places of `output`, by one pass over all."""
    logprobs = _logits(*prompt, *output).log_softmax(-1)
    return logprobs[len(prompt) - 1 : -1]


def _sum(prompt: list[int], output: list[int]) -> float:
    """What cumulative_logprob should be."""
    scores = _scores(prompt, output)
    return float(scores.gather(1, torch.tensor(output)[:, None]).sum())


def _close(given: str, got: list[float], wanted: list[float]) -> None:
    """Log-probabilities that are alike: a cache sums in another order."""
    if len(got) != len(wanted) or any(
        abs(one - two) > _NEAR for one, two in zip(got, wanted, strict=True)
    ):
        fail(given, plain(got), plain(wanted))


@cache
def _free() -> tuple[int, ...]:
    """What greedy choice generates when nothing stops it."""
    return tuple(_plain(_PROMPT, temperature=0, max_tokens=12))


def _first(skip: int) -> int:
    """Where a token stands in `_free` that has not been there before, from `skip`."""
    free = _free()
    return next(i for i in range(skip, len(free)) if free[i] not in free[:i])


def _shown(params: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in params.items())


def _letters(eos: tuple[int, ...]) -> Letters:
    """A tokenizer whose own end token is the first of these."""
    return _kind.of(eos_token_id=eos[0] if eos else None)


_kind = SimpleNamespace(of=Letters)  # of tokenizer, for `_both`


def _job(
    p: SimpleNamespace,
    prompt: list[int],
    params: SamplingParams,
    arrival_time: float = 5.0,
    **options: Any,
) -> Any:
    request = Request("r", "text", prompt, params, arrival_time)
    texts = TokenTexts(_letters(options.get("eos_token_ids", ())))
    return p.Generation(_model(), texts, request, **options)


def _steps(job: Any) -> Iterator[Any]:
    """The job after each of its steps, to the end."""
    for _ in range(_TOO_MANY):
        if job.finished:
            return
        job.step()
        yield job
    fail(f"step() {_TOO_MANY} times: finished", False, True)


def _both(
    p: SimpleNamespace,
    prompt: list[int],
    *,
    eos: tuple[int, ...] = (),
    noise: torch.Generator | None = None,
    **params: Any,
) -> Iterator[tuple[str, Any]]:
    """What was called, and what came out: of generate, then of Generation.

    A piece that is the package's own is left out where the other is judged, or
    one_completion, which the package doesn't have.
    """
    shown = f"{prompt}, {_shown(params)}"
    options: dict[str, Any] = {}
    if eos:
        options["eos_token_ids"] = eos
        shown += f", eos_token_ids={eos}"
    if noise is not None:
        options["generator"], state = noise, noise.get_state()
    both, own = ("generate", "Generation"), vars(package)
    given = [name for name in both if getattr(p, name) is not own[name]]
    given += ["one_completion"] if hasattr(p, "one_completion") else []
    for name in given or both:
        asked = SamplingParams(**params)
        _model().since()
        _model().recorded = False
        if name == "generate":
            made = p.generate(_model(), _letters(eos), list(prompt), asked, **options)
        elif name == "one_completion":
            made = _one_completion(p, list(prompt), asked, eos)
        else:
            job = _job(p, list(prompt), asked, **options)
            list(_steps(job))
            made = job.output()
        yield f"{name}({shown})", made
        if noise is not None:
            noise.set_state(state)


def _one_completion(
    p: SimpleNamespace, prompt: list[int], asked: SamplingParams, eos: tuple[int, ...]
) -> Any:
    """What came out of one_completion, in the form of the others."""
    texts = TokenTexts(_letters(eos))
    builder = p.one_completion(_model(), texts, prompt, asked, eos)
    if not isinstance(builder, OutputBuilder):
        fail("what one_completion returns", type(builder).__name__, "the OutputBuilder")
    ended = builder.finish_reason is not None
    return SimpleNamespace(outputs=[builder.output(0)], finished=ended)


# ----- which tokens


@_SUITE.property(
    "generate",
    "Generation",
    "one_completion",
    hint="logits of the newest position, and the cache's past",
)
def _greedy(p: SimpleNamespace) -> None:
    """At temperature 0 every token is the likeliest after all tokens before it."""
    for prompt, count in (([5], 1), (_PROMPT, 1), ([5], 6), (_PROMPT, 12)):
        wanted = _plain(prompt, temperature=0, max_tokens=count)
        for given, got in _both(p, prompt, temperature=0, max_tokens=count):
            expect(f"{given}: token_ids", got.outputs[0].token_ids, wanted)


@_SUITE.property(
    "one_completion", hint="the row keeps a list of tokens: who makes that one longer?"
)
def _row_grows(p: SimpleNamespace) -> None:
    """Penalties see the prompt and every token that was generated, and the
    log-probabilities add up, as Python numbers.
    """
    params = {"max_tokens": 8, "frequency_penalty": 2.0, "presence_penalty": 2.0}
    params["repetition_penalty"] = 3.0  # for tokens of the prompt, too
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        wanted = _plain(_PROMPT, **params)
        torch.manual_seed(1)
        for given, got in _both(p, _PROMPT, **params):
            output = got.outputs[0]
            given = f"torch.manual_seed(1), {given}"
            expect(f"{given}: token_ids", output.token_ids, wanted)
            total = output.cumulative_logprob
            expect(f"{given}: type of the sum", type(total).__name__, "float")
            _close(f"{given}: cumulative_logprob", [total], [_sum(_PROMPT, wanted)])


@_SUITE.property(
    "generate", "Generation", hint="one generator for the request, made once"
)
def _seeded(p: SimpleNamespace) -> None:
    """With a seed the tokens are what the sampler draws with a generator of that
    seed.
    """
    for seed, count in ((0, 1), (5, 8)):
        wanted = _plain(_PROMPT, seed=seed, max_tokens=count)
        for given, got in _both(p, _PROMPT, seed=seed, max_tokens=count):
            expect(f"{given}: token_ids", got.outputs[0].token_ids, wanted)
    params = {"seed": 5, "max_tokens": 8, "top_k": 5, "repetition_penalty": 1.5}
    wanted = _plain(_PROMPT, **params)
    for given, got in _both(p, _PROMPT, **params):
        expect(f"{given}: token_ids", got.outputs[0].token_ids, wanted)


@_SUITE.property(
    "generate", "Generation", hint="which generator does the i-th completion draw from?"
)
def _children(p: SimpleNamespace) -> None:
    """The i-th of n completions is what seed + i gives alone."""
    for n, count in ((2, 1), (3, 6)):
        wanted = [_plain(_PROMPT, i, seed=5, max_tokens=count) for i in range(n)]
        for given, got in _both(p, _PROMPT, n=n, seed=5, max_tokens=count):
            expect(f"{given}: token_ids", [o.token_ids for o in got.outputs], wanted)
            expect(f"{given}: index", [o.index for o in got.outputs], list(range(n)))


@_SUITE.property(
    "generate", "Generation", hint="a generator argument is there to be handed on"
)
def _unseeded(p: SimpleNamespace) -> None:
    """Without a seed the draws come from `generator`; with one, nobody else's
    generator moves.
    """
    runs: list[dict[str, list[int]]] = []
    for seed in (1, 1, 2):
        noise = torch.Generator().manual_seed(seed)
        made = _both(p, _PROMPT, noise=noise, max_tokens=8)
        runs.append({given: got.outputs[0].token_ids for given, got in made})
    one, two, other = runs
    for given in one:
        expect(f"{given}, generator=... again: token_ids", two[given], one[given])
        if one[given] == other[given]:
            wanted = "others than those of another generator"
            fail(f"{given}, generator=...: token_ids", other[given], wanted)
    for more in ({}, {"seed": 3}):
        noise = torch.Generator().manual_seed(1)
        own, shared = noise.get_state(), torch.get_rng_state()
        for given, _ in _both(p, _PROMPT, noise=noise, max_tokens=2, **more):
            moved = not torch.equal(torch.get_rng_state(), shared)
            expect(f"{given}, generator=...: the global one moved", moved, False)
            if more:
                moved = not torch.equal(noise.get_state(), own)
                expect(f"{given}, generator=...: it moved", moved, False)


@_SUITE.property("Generation", hint="what do the two requests have in common?")
def _company(p: SimpleNamespace) -> None:
    """Two requests that take turns, step by step, get what each gets alone."""
    jobs = [
        _job(p, _PROMPT, SamplingParams(seed=5, max_tokens=6)),
        _job(p, [7], SamplingParams(seed=5, n=2, max_tokens=6)),
    ]
    for _ in range(6):
        for job in jobs:
            job.step()
    given = f"{_PROMPT} and [7] with n=2, both with seed=5, step by step in turn"
    got = [[o.token_ids for o in job.output().outputs] for job in jobs]
    wanted = [
        [_plain(_PROMPT, seed=5, max_tokens=6)],
        [_plain([7], i, seed=5, max_tokens=6) for i in range(2)],
    ]
    expect(f"{given}: token_ids", got, wanted)


# ----- where it ends


@_SUITE.property(
    "generate",
    "Generation",
    "one_completion",
    hint="the stop token belongs to the tokens, not the text",
)
def _stop_token(p: SimpleNamespace) -> None:
    """A stop token ends a completion: it is the last of the tokens, its text is left
    out, and it is the stop_reason.
    """
    for at in (0, _first(2)):
        tokens = list(_free()[: at + 1])
        params = {"temperature": 0, "max_tokens": 12, "stop_token_ids": [tokens[-1]]}
        for given, output in _both(p, _PROMPT, **params):
            got = output.outputs[0]
            expect(f"{given}: token_ids", got.token_ids, tokens)
            text = Letters().decode(tokens[:-1], skip_special_tokens=True)
            expect(f"{given}: text", got.text, text)
            reasons = [got.finish_reason, got.stop_reason]
            wanted = ["stop", tokens[-1]]
            expect(f"{given}: finish_reason, stop_reason", reasons, wanted)
            expect(f"{given}: finished", output.finished, True)


@_SUITE.property(
    "generate",
    "Generation",
    "one_completion",
    hint="who looks at the text knows; ask after every token",
)
def _stop_string(p: SimpleNamespace) -> None:
    """A stop string ends a completion as soon as it is complete, and the text ends
    before it.
    """
    tokens = list(_free()[:4])
    text = Letters().decode(tokens, skip_special_tokens=True)
    stop = text[-2:]
    for given, output in _both(p, _PROMPT, temperature=0, max_tokens=12, stop=[stop]):
        got = output.outputs[0]
        expect(f"{given}: token_ids", got.token_ids, tokens)
        expect(f"{given}: text", got.text, text[:-2])
        reasons = [got.finish_reason, got.stop_reason]
        expect(f"{given}: finish_reason, stop_reason", reasons, ["stop", stop])


@_SUITE.property(
    "generate",
    "Generation",
    "one_completion",
    hint="eos_token_ids end a text unless ignore_eos is set",
)
def _eos(p: SimpleNamespace) -> None:
    """The end-of-sequence token ends it with stop_reason None; ignore_eos goes on past
    it.
    """
    tokens = list(_free()[: _first(2) + 1])
    eos = (tokens[-1],)
    for given, output in _both(p, _PROMPT, eos=eos, temperature=0, max_tokens=8):
        got = output.outputs[0]
        expect(f"{given}: token_ids", got.token_ids, tokens)
        reasons = [got.finish_reason, got.stop_reason]
        expect(f"{given}: finish_reason, stop_reason", reasons, ["stop", None])
    params = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    for given, output in _both(p, _PROMPT, eos=eos, **params):
        got = output.outputs[0]
        expect(f"{given}: token_ids", got.token_ids, list(_free()[:8]))
        expect(f"{given}: finish_reason", got.finish_reason, "length")


@_SUITE.property(
    "generate",
    "Generation",
    "one_completion",
    hint="the sampler needs to know every token that would end",
)
def _min_tokens(p: SimpleNamespace) -> None:
    """Before min_tokens neither the end-of-sequence token nor a stop token is
    chosen.
    """
    at = _first(2)
    end = _free()[at]
    for eos, more in (((end,), {}), ((), {"stop_token_ids": [end]})):
        params = {"temperature": 0, "max_tokens": 10, "min_tokens": at + 2, **more}
        wanted = _plain(_PROMPT, eos=eos, **params)
        for given, output in _both(p, _PROMPT, eos=eos, **params):
            expect(f"{given}: token_ids", output.outputs[0].token_ids, wanted)


@_SUITE.property(
    "generate",
    "Generation",
    "one_completion",
    hint="max_tokens counts what is generated, not the prompt",
)
def _max_tokens(p: SimpleNamespace) -> None:
    """max_tokens ends it with finish_reason "length"; at the last place a stop token
    still counts as "stop".
    """
    for count in (1, 2, 7):
        for given, output in _both(p, _PROMPT, temperature=0, max_tokens=count):
            got = output.outputs[0]
            expect(f"{given}: how many tokens", len(got.token_ids), count)
            reasons = [got.finish_reason, got.stop_reason]
            expect(f"{given}: finish_reason, stop_reason", reasons, ["length", None])
    at = _first(1)
    params = {"temperature": 0, "max_tokens": at + 1, "stop_token_ids": [_free()[at]]}
    for given, output in _both(p, _PROMPT, **params):
        expect(f"{given}: finish_reason", output.outputs[0].finish_reason, "stop")


@_SUITE.property(
    "generate",
    "Generation",
    hint="the prompt's tokens count as well: how many are left?",
)
def _no_limit(p: SimpleNamespace) -> None:
    """max_tokens=None goes on until prompt and output fill the model's limit."""
    prompt = [*range(2, _LIMIT)]
    for start in (0, 2):
        asked = prompt[start:]
        for given, output in _both(p, asked, temperature=0, max_tokens=None):
            got, left = output.outputs[0], _LIMIT - len(asked)
            given = f"{len(asked)} of {_LIMIT} positions taken, {given}"
            expect(f"{given}: how many tokens", len(got.token_ids), left)
            expect(f"{given}: finish_reason", got.finish_reason, "length")
    job = _job(p, _PROMPT, SamplingParams(max_tokens=None, seed=1), max_model_len=8)
    list(_steps(job))
    got = len(job.output().outputs[0].token_ids)
    expect(f"Generation, {_PROMPT}, max_model_len=8: how many tokens", got, 5)


@_SUITE.property(
    "generate",
    "Generation",
    "one_completion",
    hint="who makes text of the tokens is told which tokens came before",
)
def _text_goes_on(p: SimpleNamespace) -> None:
    """The text goes on from the prompt's: the space in front of its first word is
    there.
    """
    asked = {"temperature": 0, "max_tokens": 3}
    wanted = "".join(f" {_Words().tokens[i]}" for i in _free()[:3])
    with mock.patch.object(_kind, "of", _Words):
        for given, output in _both(p, _PROMPT, **asked):
            given = f"a tokenizer with a space before each letter, {given}: text"
            expect(given, repr(output.outputs[0].text), repr(wanted))


# ----- what is computed


@_SUITE.property(
    "generate",
    "Generation",
    "one_completion",
    hint="what has been run is in the cache; what follows the last token, nobody asks",
)
def _each_once(p: SimpleNamespace) -> None:
    """Every token is run once, at its own position, and the last one never; the prompt
    in one pass.
    """
    for count in (1, 2, 5):
        for given, _ in _both(p, _PROMPT, temperature=0, max_tokens=count):
            first, last = len(_PROMPT), len(_PROMPT) + count - 1
            wanted = [list(range(first)), *([at] for at in range(first, last))]
            expect(f"{given}: positions of each pass", _model().since(), wanted)
    at = _first(2)
    params = {"temperature": 0, "max_tokens": 12, "stop_token_ids": [_free()[at]]}
    for given, _ in _both(p, _PROMPT, **params):
        run = sum(map(len, _model().since()))
        expect(f"{given}: how many tokens were run", run, len(_PROMPT) + at)


@_SUITE.property(
    "generate",
    "Generation",
    "one_completion",
    hint="how many tokens of a completion are run?",
)
def _slots(p: SimpleNamespace) -> None:
    """A cache has no slot for the last token, which is never run."""
    made, init = [], ContiguousKVCache.__init__

    def note(self: ContiguousKVCache, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        made.append(self.max_len)

    with mock.patch.object(ContiguousKVCache, "__init__", note):
        for count in (1, 6):
            for given, _ in _both(p, _PROMPT, temperature=0, max_tokens=count):
                most, made[:] = max(made, default=0), []
                if most > len(_PROMPT) + count - 1:
                    wanted = f"{len(_PROMPT)} + {count} - 1"
                    fail(f"{given}: slots of its cache", most, wanted)


@_SUITE.property(
    "generate", "Generation", hint="the prompt is the same for all n: so is its past"
)
def _one_prefill(p: SimpleNamespace) -> None:
    """For n completions the prompt is run once."""
    for n, count in ((2, 1), (3, 4)):
        for given, _ in _both(p, _PROMPT, n=n, seed=5, max_tokens=count):
            run = Counter(position for each in _model().since() for position in each)
            got = [run[position] for position in range(len(_PROMPT))]
            expect(f"{given}: how often each prompt position was run", got, [1] * 3)
            wanted = n * (count - 1)
            got = sum(run.values()) - sum(got)
            expect(f"{given}: how many other tokens were run", got, wanted)


@_SUITE.property(
    "generate", "Generation", hint="two completions that write to one cache mix"
)
def _own_past(p: SimpleNamespace) -> None:
    """Each of n completions sees the prompt and its own tokens: their log-probabilities
    are those of its text alone.
    """
    for n in (1, 2, 3):
        for given, output in _both(p, _PROMPT, n=n, seed=5, max_tokens=6):
            got = [o.cumulative_logprob for o in output.outputs]
            wanted = [_sum(_PROMPT, o.token_ids) for o in output.outputs]
            _close(f"{given}: cumulative_logprob", got, wanted)


def _uneven() -> tuple[int, int, list[int]]:
    """A seed, a stop token, and the lengths of three completions that it makes
    differ.
    """
    for seed in range(100):
        one, two, three = (
            _plain(_PROMPT, i, seed=seed, max_tokens=6) for i in range(3)
        )
        if one[1] not in (one[0], *two, *three) and two != three:
            return seed, one[1], [2, 6, 6]
    raise AssertionError("no seed of a hundred will do")


@_SUITE.property(
    "generate",
    "Generation",
    hint="who has ended is left out; the others keep their rows",
)
def _uneven_ends(p: SimpleNamespace) -> None:
    """A completion that has ended is run no more, and the others go on undisturbed."""
    seed, stop, lengths = _uneven()
    params = {"n": 3, "seed": seed, "max_tokens": 6, "stop_token_ids": [stop]}
    wanted = [_plain(_PROMPT, i, **params) for i in range(3)]
    for given, output in _both(p, _PROMPT, **params):
        run = sum(map(len, _model().since()))
        expect(f"{given}: token_ids", [o.token_ids for o in output.outputs], wanted)
        reasons = [o.finish_reason for o in output.outputs]
        expect(f"{given}: finish_reason", reasons, ["stop", "length", "length"])
        tokens = len(_PROMPT) + sum(length - 1 for length in lengths)
        expect(f"{given}: how many tokens were run", run, tokens)


@_SUITE.property(
    "generate",
    "Generation",
    "one_completion",
    hint="@torch.inference_mode() over what runs the model",
)
def _inference(p: SimpleNamespace) -> None:
    """Nothing is recorded for training, though the weights would allow it."""
    with torch.enable_grad():
        for given, _ in _both(p, _PROMPT, temperature=0, max_tokens=2):
            recorded, _model().recorded = _model().recorded, False
            expect(f"{given}: gradients were recorded", recorded, False)


@_SUITE.property(
    "generate", "Generation", hint="which dtype do the model's keys and values have?"
)
def _half(p: SimpleNamespace) -> None:
    """A model in bfloat16 generates, too: its cache is in bfloat16."""
    model = _model(torch.bfloat16)
    model.since()
    asked = SamplingParams(temperature=0, max_tokens=3)
    made = p.generate(model, Letters(), list(_PROMPT), asked)
    given = f"a model in bfloat16, {_PROMPT}, max_tokens=3: how many tokens"
    expect(given, len(made.outputs[0].token_ids), 3)
    request = Request("r", None, _PROMPT, asked)
    job = p.Generation(model, TokenTexts(Letters()), request)
    list(_steps(job))
    expect(f"Generation, {given}", len(job.output().outputs[0].token_ids), 3)


# ----- what is said of the tokens


@_SUITE.property(
    "generate",
    "Generation",
    hint="the parameters change the choice, not the model's view",
)
def _raw(p: SimpleNamespace) -> None:
    """Log-probabilities are the model's own, before temperature, filters and
    penalties.
    """
    for more in (
        {"temperature": 3.0},
        {"top_k": 2},
        {"repetition_penalty": 2.0, "temperature": 0},
    ):
        params = {"seed": 1, "max_tokens": 4, "logprobs": 0, **more}
        for given, output in _both(p, _PROMPT, **params):
            got = output.outputs[0]
            places = zip(got.token_ids, got.logprobs, strict=True)
            said = [found[token_id].logprob for token_id, found in places]
            wanted = _scores(_PROMPT, got.token_ids)
            wanted = wanted.gather(1, torch.tensor(got.token_ids)[:, None])[:, 0]
            _close(f"{given}: logprob of each token", said, wanted.tolist())
            total, said = _sum(_PROMPT, got.token_ids), got.cumulative_logprob
            _close(f"{given}: cumulative_logprob", [said], [total])


@_SUITE.property(
    "generate",
    "Generation",
    hint="a dict per token: the chosen one, then the likeliest",
)
def _logprobs(p: SimpleNamespace) -> None:
    """logprobs=k gives for each token a dict: the chosen first, then the k likeliest,
    each with rank and text.
    """
    for count in (0, 3):
        params = {"temperature": 3.0, "seed": 1, "max_tokens": 5, "logprobs": count}
        for given, output in _both(p, _PROMPT, **params):
            got = output.outputs[0]
            scores = _scores(_PROMPT, got.token_ids)
            for place, token_id in enumerate(got.token_ids):
                _expect_found(
                    f"{given}: logprobs[{place}]",
                    got.logprobs[place],
                    token_id,
                    scores[place],
                    count,
                )
            expect(f"{given}: len(logprobs)", len(got.logprobs), 5)
    for given, output in _both(p, _PROMPT, temperature=0, max_tokens=2):
        expect(f"{given}: logprobs", output.outputs[0].logprobs, None)


def _expect_found(
    given: str, found: dict, token_id: int, scores: Tensor, count: int
) -> None:
    """What vLLM says at a place with raw log-probabilities `scores` [V]."""
    order = scores.argsort(descending=True, stable=True).tolist()
    ids = list(dict.fromkeys([token_id, *order[:count]]))
    expect(f"{given}: token ids", list(found), ids)
    for each in ids:
        said = found[each]
        _close(f"{given}[{each}].logprob", [said.logprob], [float(scores[each])])
        got = [said.rank, said.decoded_token]
        wanted = [order.index(each) + 1, Letters().decode(each)]
        expect(f"{given}[{each}]: rank, decoded_token", got, wanted)


@_SUITE.property(
    "generate", "Generation", hint="row t of the logits speaks of token t + 1"
)
def _prompt_logprobs(p: SimpleNamespace) -> None:
    """prompt_logprobs=k does the same for the prompt; its first entry is None."""
    for prompt in ([5], _PROMPT):
        params = {"temperature": 0, "max_tokens": 2, "prompt_logprobs": 2}
        logprobs = _logits(*prompt).log_softmax(-1)
        for given, output in _both(p, prompt, **params):
            got = output.prompt_logprobs
            expect(f"{given}: len(prompt_logprobs)", len(got), len(prompt))
            expect(f"{given}: prompt_logprobs[0]", got[0], None)
            for place, token_id in enumerate(prompt[1:], start=1):
                where = f"{given}: prompt_logprobs[{place}]"
                _expect_found(where, got[place], token_id, logprobs[place - 1], 2)
            expect(f"{given}: logprobs", output.outputs[0].logprobs, None)
    for given, output in _both(p, _PROMPT, temperature=0, max_tokens=1):
        expect(f"{given}: prompt_logprobs", output.prompt_logprobs, None)


@_SUITE.property(
    "generate", "Generation", hint="generate best_of, rank them at the end, return n"
)
def _best_of(p: SimpleNamespace) -> None:
    """Of best_of completions the n with the highest cumulative_logprob are returned,
    the best first.
    """
    for n, best_of in ((1, 2), (2, 4)):
        params = {"n": n, "best_of": best_of, "seed": 1, "max_tokens": 5}
        tokens = [_plain(_PROMPT, i, seed=1, max_tokens=5) for i in range(best_of)]
        tokens.sort(key=lambda each: _sum(_PROMPT, each), reverse=True)
        for given, output in _both(p, _PROMPT, **params):
            got = [o.token_ids for o in output.outputs]
            expect(f"{given}: token_ids", got, tokens[:n])
            got = [o.index for o in output.outputs]
            expect(f"{given}: index", got, list(range(n)))
    wanted = [_plain(_PROMPT, i, seed=1, max_tokens=5) for i in range(4)]
    for given, output in _both(p, _PROMPT, n=4, best_of=4, seed=1, max_tokens=5):
        got = [o.token_ids for o in output.outputs]
        expect(f"{given}: token_ids, in the order of the seeds", got, wanted)


# ----- outputs


@_SUITE.property("Generation", hint="output() reads; only step() changes anything")
def _any_time(p: SimpleNamespace) -> None:
    """output() may be read at any time: before the first step it holds no tokens, then
    one more with every step.
    """
    for n in (1, 2):
        job = _job(p, _PROMPT, SamplingParams(n=n, seed=5, max_tokens=4))
        given = f"{_PROMPT}, n={n}, seed=5, max_tokens=4"
        counts = [[len(o.token_ids) for o in job.output().outputs]]
        ended = [job.output().finished]
        for _ in _steps(job):
            job.output()
            counts.append([len(o.token_ids) for o in job.output().outputs])
            ended.append(job.output().finished)
        wanted = [[count] * n for count in range(5)]
        expect(
            f"{given}: how many tokens, at first and after each step", counts, wanted
        )
        expect(f"{given}: finished", ended, [False] * 4 + [True])
        output = job.output()
        got = [output.request_id, output.prompt, output.prompt_token_ids]
        wanted = ["r", "text", _PROMPT]
        expect(f"{given}: request_id, prompt, prompt_token_ids", got, wanted)


@_SUITE.property("Generation", hint="an output holds lists of its own")
def _outputs_stay(p: SimpleNamespace) -> None:
    """An output that was read stays as it was when the next tokens come."""
    params = SamplingParams(seed=5, max_tokens=4, logprobs=1, prompt_logprobs=1)
    job = _job(p, _PROMPT, params)
    kept = [job.output(), *(each.output() for each in _steps(job))]
    given = (
        f"{_PROMPT}, max_tokens=4, the outputs after 0, 1, 2, 3, 4 steps, at the end"
    )
    got = [len(each.outputs[0].token_ids) for each in kept]
    expect(f"{given}: how many tokens", got, [0, 1, 2, 3, 4])
    got = [len(each.outputs[0].logprobs) for each in kept]
    expect(f"{given}: how many logprobs", got, [0, 1, 2, 3, 4])
    got = [each.outputs[0].finish_reason for each in kept]
    expect(f"{given}: finish_reason", got, [None] * 4 + ["length"])
    known = [each.metrics.first_token_time for each in kept]
    expect(f"{given}: first_token_time of the first", known[0], None)


@_SUITE.property("generate", "Generation", hint="step, then yield what is there so far")
def _iterates(p: SimpleNamespace) -> None:
    """`for output in job` gives an output for every step, the last of them what
    generate returns.
    """
    params = SamplingParams(seed=5, n=2, max_tokens=4)
    job = _job(p, _PROMPT, params)
    seen = []
    for output in islice(job, _TOO_MANY):
        seen.append([len(o.token_ids) for o in output.outputs])
    given = f"for output in Generation of {_PROMPT}, n=2, seed=5, max_tokens=4"
    expect(f"{given}: how many tokens", seen, [[k, k] for k in range(1, 5)])
    whole = p.generate(_model(), Letters(), list(_PROMPT), params)
    for name in ("token_ids", "text", "finish_reason"):
        got = [getattr(o, name) for o in output.outputs]
        wanted = [getattr(o, name) for o in whole.outputs]
        expect(f"{given}, the last: {name}", got, wanted)


@_SUITE.property(
    "generate",
    "Generation",
    hint="the first token of all, and the end of the last completion: each is noted "
    "when it happens, and once",
)
def _times(p: SimpleNamespace) -> None:
    """The metrics come in order: arrival of the request, first token, end."""
    job = _job(p, _PROMPT, SamplingParams(seed=5, max_tokens=3), arrival_time=5.0)
    times = [job.output().metrics, *(each.output().metrics for each in _steps(job))]
    given = "a request that arrived at 5.0, after 0, 1, 2, 3 steps"
    expect(f"{given}: arrival_time", [t.arrival_time for t in times], [5.0] * 4)
    there = [t.first_token_time is not None for t in times]
    expect(f"{given}: first_token_time is there", there, [False, True, True, True])
    first, later = times[1].first_token_time, times[3].first_token_time
    expect(f"{given}: first_token_time has changed", later != first, False)
    there = [t.finished_time is not None for t in times]
    expect(f"{given}: finished_time is there", there, [False, False, False, True])
    asked = SamplingParams(seed=5, max_tokens=3)
    t = p.generate(_model(), Letters(), list(_PROMPT), asked).metrics
    if not t.arrival_time <= t.first_token_time <= t.finished_time:
        given = f"generate({_PROMPT}, max_tokens=3).metrics"
        fail(given, t, "arrival_time <= first_token_time <= finished_time")


@_SUITE.property(
    "generate",
    "Generation",
    "one_completion",
    hint="work on copies of what you were given",
)
def _left_alone(p: SimpleNamespace) -> None:
    """The caller's prompt and parameters stay as they were."""
    if hasattr(p, "one_completion"):
        prompt, asked = list(_PROMPT), SamplingParams(temperature=0, max_tokens=3)
        p.one_completion(_model(), TokenTexts(Letters()), prompt, asked, ())
        expect(f"{_PROMPT}, max_tokens=3: the prompt afterwards", prompt, _PROMPT)
        expect("max_tokens=3: afterwards", asked.max_tokens, 3)
    prompt, asked = list(_PROMPT), SamplingParams(max_tokens=None, n=2, seed=1)
    p.generate(_model(), Letters(), prompt, asked)
    list(_steps(_job(p, prompt, asked)))
    expect(f"{_PROMPT}, max_tokens=None: the prompt afterwards", prompt, _PROMPT)
    expect("max_tokens=None: afterwards", asked.max_tokens, None)
    expect("seed=1: afterwards", asked.seed, 1)


# ----- what every engine keeps of a request


def _state(
    p: SimpleNamespace, eos: tuple[int, ...] = (), limit: int = 9, **params: Any
) -> Any:
    """The state of a request with the prompt [5, 9] that arrived at 5.0 and runs."""
    request = Request("r", "dh", [5, 9], SamplingParams(**params), 5.0)
    texts, cpu = TokenTexts(Letters()), torch.device("cpu")
    state = p.RequestState(request, texts, eos, limit, cpu)
    for sequence in request.get_seqs():
        sequence.move_to(SequenceStatus.RUNNING)
    return state


def _batch(*token_ids: int, count: int | None = None) -> SamplerOutput:
    """What a sampler says; in row r the likeliest are 10 r + 2, 10 r + 3, ..."""
    falling = torch.arange(_V, dtype=torch.float32).neg()
    logits = torch.stack([falling.roll(10 * r + 2) for r in range(len(token_ids))])
    return gather_logprobs(logits.log_softmax(-1), torch.tensor(token_ids), count)


def _take(state: Any, index: int, token_id: int, logprob: float = -0.5) -> None:
    """Hand over a token that is alone in its batch."""
    state.take(index, token_id, logprob, _batch(token_id, count=0), 0)


@_SUITE.property(
    "RequestState", hint="max_tokens, or what the prompt leaves of the limit"
)
def _state_limit(p: SimpleNamespace) -> None:
    """A request without max_tokens gets what its prompt leaves of max_model_len."""
    expect("max_tokens=4: max_tokens", _state(p, max_tokens=4).max_tokens, 4)
    state = _state(p, max_tokens=None, limit=9)
    given = "prompt [5, 9], max_tokens=None, max_model_len=9"
    expect(f"{given}: max_tokens", state.max_tokens, 7)
    for _ in range(7):
        _take(state, 0, 4)
    got = state.output().outputs[0].finish_reason
    expect(f"{given}: finish_reason after 7 tokens", got, "length")


@_SUITE.property("RequestState", hint="the sampler reads the same list that take fills")
def _state_rows(p: SimpleNamespace) -> None:
    """Each completion has a row for the sampler: prompt, its own tokens as they come,
    and all tokens that end it.
    """
    state = _state(p, eos=(1,), n=2, stop_token_ids=[7], max_tokens=4)
    given = "n=2, stop_token_ids=[7], eos_token_ids=(1,)"
    expect(f"{given}: how many rows", len(state.rows), 2)
    _take(state, 1, 4)
    for name, wanted in (
        ("prompt_token_ids", [[5, 9], [5, 9]]),
        ("output_token_ids", [[], [4]]),
    ):
        got = [getattr(row, name) for row in state.rows]
        expect(f"{given}, after token 4 of completion 1: {name}", got, wanted)
    expect(f"{given}: stop_token_ids", sorted(state.rows[0].stop_token_ids), [1, 7])
    row = _state(p, eos=(1,), stop_token_ids=[7], ignore_eos=True).rows[0]
    given += ", ignore_eos=True"
    expect(f"{given}: stop_token_ids", sorted(row.stop_token_ids), [1, 7])


@_SUITE.property(
    "RequestState", hint="a seed must stay below 2**63; what comes after the largest?"
)
def _state_seeds(p: SimpleNamespace) -> None:
    """Row i draws from its own generator of seed + i, which begins at 0 again after the
    largest; without a seed there is none.
    """
    for seed, wanted in ((5, [5, 6, 7]), (2**63 - 1, [2**63 - 1, 0, 1])):
        rows = _state(p, n=3, seed=seed).rows
        got = [row.generator.initial_seed() for row in rows]
        expect(f"n=3, seed={seed}: seeds of the rows' generators", got, wanted)
    rows = _state(p, n=2).rows
    expect("n=2, no seed: generators", [row.generator for row in rows], [None, None])


@_SUITE.property("RequestState", hint="the sequence, and the builder of the same index")
def _state_takes(p: SimpleNamespace) -> None:
    """The method take gives the token to its completion alone: tokens, text and sum of
    log-probabilities grow.
    """
    state = _state(p, n=2, max_tokens=9)
    for index, token_id, logprob in ((1, 2, -0.5), (1, 4, -1.5), (0, 3, -0.25)):
        _take(state, index, token_id, logprob)
    given = "tokens 2 and 4 for completion 1, token 3 for completion 0"
    outputs = state.output().outputs
    expect(f"{given}: token_ids", [o.token_ids for o in outputs], [[3], [2, 4]])
    expect(f"{given}: text", [o.text for o in outputs], ["b", "ac"])
    got = [o.cumulative_logprob for o in outputs]
    expect(f"{given}: cumulative_logprob", got, [-0.25, -2.0])
    got = [seq.get_token_ids() for seq in state.request.get_seqs()]
    expect(f"{given}: the sequences", got, [[5, 9, 3], [5, 9, 2, 4]])


@_SUITE.property(
    "RequestState",
    hint="the batch's row is not the completion's index, nor its k yours; the chosen "
    "token's rank is the sampler's; a token may end a character of the prompt",
)
def _state_row(p: SimpleNamespace) -> None:
    """The method take reads its own row of the batch, and no more candidates than its
    request asked for.
    """
    state = _state(p, n=2, logprobs=2, max_tokens=9)
    state.take(0, 14, -2.5, _batch(2, 14, count=4), 1)
    state.take(1, 4, -2.5, _batch(4, 12, count=4), 0)
    given = "logprobs=2 in a batch that reports 4, token"
    for index, (token_id, ids, ranks) in enumerate(
        ((14, [14, 12, 13], [3, 1, 2]), (4, [4, 2, 3], [3, 1, 2]))
    ):
        found = state.output().outputs[index].logprobs[0]
        where = f"{given} {token_id} from row {1 - index}"
        expect(f"{where}: candidates", list(found), ids)
        expect(f"{where}: ranks", [each.rank for each in found.values()], ranks)
    state.take(0, 3, -1.5, _batch(3, count=2), 0)
    found = state.output().outputs[0].logprobs[1]
    given = "logprobs=2, token 3, which is among the two likeliest, 2 and 3"
    expect(f"{given}: candidates", list(found), [3, 2])
    texts = [each.decoded_token for each in found.values()]
    expect(f"{given}: decoded_token", texts, ["b", "a"])
    state = _state(p, logprobs=_V, max_tokens=9)
    alike = torch.zeros(1, _V).log_softmax(-1)
    state.take(0, 7, -3.0, gather_logprobs(alike, torch.tensor([7]), _V), 0)
    got = state.output().outputs[0].logprobs[0][7].rank
    expect(f"logprobs={_V}, token 7 of {_V} that are equally likely: its rank", got, 1)
    request = Request("r", None, [5, 2], SamplingParams(logprobs=0), 5.0)
    texts, cpu = TokenTexts(_Halves()), torch.device("cpu")
    state = p.RequestState(request, texts, (), 9, cpu)
    request.get_seqs()[0].move_to(SequenceStatus.RUNNING)
    _take(state, 0, 3)
    got = state.output().outputs[0].logprobs[0][3].decoded_token
    given = "a prompt that ends with the first half of é, then its second half"
    expect(f"{given}: decoded_token", got, "é")
    ids = [11, 12, 13]
    for begun in range(3):
        prompt = [5, *ids[:begun]]
        request = Request("r", None, prompt, SamplingParams(logprobs=0), 5.0)
        state = p.RequestState(request, texts, (), 9, cpu)
        request.get_seqs()[0].move_to(SequenceStatus.RUNNING)
        for token_id in ids[begun:]:
            _take(state, 0, token_id)
        said = state.output().outputs[0].logprobs
        got = [each[i].decoded_token for i, each in zip(ids[begun:], said, strict=True)]
        given = f"the thirds of 从, {begun} of them in the prompt: decoded_token"
        expect(given, got, ["", "", "从"][begun:])


@_SUITE.property(
    "RequestState", hint="the builder knows why; the sequence has to be told"
)
def _state_ends(p: SimpleNamespace) -> None:
    """A completion's end moves its sequence to stopped or length-capped; the request is
    finished with the last of them.
    """
    state = _state(p, n=2, stop_token_ids=[7], max_tokens=2)
    _take(state, 0, 7)
    given = "n=2, stop_token_ids=[7], max_tokens=2; completion 0 takes 7"
    status = [seq.status.name for seq in state.request.get_seqs()]
    expect(f"{given}: status", status, ["FINISHED_STOPPED", "RUNNING"])
    expect(f"{given}: finished", [state.finished, state.output().finished], [False] * 2)
    _take(state, 1, 4)
    _take(state, 1, 4)
    given += ", completion 1 takes 4, 4"
    status = [seq.status.name for seq in state.request.get_seqs()]
    expect(f"{given}: status", status, ["FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED"])
    expect(f"{given}: finished", [state.finished, state.output().finished], [True] * 2)


@_SUITE.property(
    "RequestState",
    hint="the first token of all, and the end of the last completion, whatever ends it",
)
def _state_times(p: SimpleNamespace) -> None:
    """arrival_time is the request's; first_token_time is set once, by the first token
    of any completion.
    """
    state = _state(p, n=2, max_tokens=2)
    before = state.output().metrics
    got = [before.arrival_time, before.first_token_time, before.finished_time]
    given = "arrived at 5.0: arrival_time, first_token_time, finished_time"
    expect(given, got, [5.0, None, None])
    began = time.time()
    _take(state, 1, 4)
    first = state.output().metrics.first_token_time
    expect("one token: first_token_time is there", first is not None, True)
    expect("... and not before the token was", first >= began, True)
    for index in (0, 0, 1):
        _take(state, index, 4)
    after = state.output().metrics
    same = after.first_token_time == first
    expect("four tokens: first_token_time is as it was", same, True)
    expect("... finished_time is there", after.finished_time is not None, True)
    expect("... and is not earlier", after.finished_time >= first, True)
    state = _state(p, n=2, max_tokens=2)
    for index in (0, 0, 1):
        _take(state, index, 4)
    early = state.output().metrics.finished_time
    expect("n=2, one completion has ended: finished_time", early, None)
    state.abort()
    there = state.output().metrics.finished_time is not None
    expect("... and the other is aborted: finished_time is there", there, True)


@_SUITE.property("RequestState", hint="only those that have not ended are cut short")
def _state_abort(p: SimpleNamespace) -> None:
    """The method abort ends what runs, with finish_reason "abort" and the reason given;
    what had ended stays as it was.
    """
    state = _state(p, n=2, max_tokens=2, stop_token_ids=[7])
    _take(state, 0, 7)
    _take(state, 1, 4)
    state.abort("no memory")
    given = "completion 0 stopped at 7, then abort('no memory')"
    output = state.output()
    got = [[o.finish_reason, o.stop_reason] for o in output.outputs]
    wanted = [["stop", 7], ["abort", "no memory"]]
    expect(f"{given}: finish_reason, stop_reason", got, wanted)
    expect(f"{given}: token_ids", [o.token_ids for o in output.outputs], [[7], [4]])
    status = [seq.status.name for seq in state.request.get_seqs()]
    expect(f"{given}: status", status, ["FINISHED_STOPPED", "FINISHED_ABORTED"])
    expect(f"{given}: finished", [state.finished, output.finished], [True, True])
    state = _state(p)
    state.abort()
    expect("abort(): stop_reason", state.output().outputs[0].stop_reason, None)


@_SUITE.property(
    "RequestState", hint="how many entries are there already? go on from there"
)
def _state_scores(p: SimpleNamespace) -> None:
    """score_prompt takes the logits in one piece or in several: the result is the
    same.
    """
    prompt = [5, 9, 3, 7]
    logits = _logits(*prompt)[:-1]
    for pieces in ((3,), (1, 2), (1, 1, 1)):
        request = Request("r", None, prompt, SamplingParams(prompt_logprobs=1))
        texts, cpu = TokenTexts(Letters()), torch.device("cpu")
        state = p.RequestState(request, texts, (), _LIMIT, cpu)
        for part in logits.split(pieces):
            state.score_prompt(part)
        got = state.output().prompt_logprobs
        given = f"prompt {prompt}, score_prompt of {', '.join(map(str, pieces))} rows"
        expect(f"{given}: how many entries", len(got), 4)
        expect(f"{given}: the first", got[0], None)
        for place in (1, 2, 3):
            scores = logits[place - 1].log_softmax(-1)
            where = f"{given}: entry {place}"
            _expect_found(where, got[place], prompt[place], scores, 1)


@_SUITE.property(
    "RequestState",
    hint="a token's text needs those before it, its score all of float32",
)
def _state_prompt_texts(p: SimpleNamespace) -> None:
    """For the prompt too, the token that completes a character has all of it, and
    logits in half precision are scored in float32.
    """
    for prompt, pieces in product(([5, 2, 3, 7], [2, 3, 7, 7]), ((3,), (1, 1, 1))):
        logits = _logits(*prompt)[:-1].bfloat16()
        request = Request("r", None, prompt, SamplingParams(prompt_logprobs=0))
        cpu = torch.device("cpu")
        state = p.RequestState(request, TokenTexts(_Halves()), (), _LIMIT, cpu)
        for part in logits.split(pieces):
            state.score_prompt(part)
        found = state.output().prompt_logprobs
        said = [found[place][prompt[place]] for place in (1, 2, 3)]
        given = (
            f"prompt {prompt} of which 2 and 3 are the halves of é, score_prompt of "
            f"{', '.join(map(str, pieces))} rows in bfloat16"
        )
        got = [each.decoded_token for each in said]
        texts = {2: "", 3: "é", 7: _Halves().decode(7)}
        expect(f"{given}: decoded_token", got, [texts[i] for i in prompt[1:]])
        scores = logits.float().log_softmax(-1)
        wanted = [float(scores[i, prompt[i + 1]]) for i in range(3)]
        _close(f"{given}: logprob", [each.logprob for each in said], wanted)


@_SUITE.property(
    "RequestState", hint="before the end there is nothing to rank; then the sum counts"
)
def _state_best(p: SimpleNamespace) -> None:
    """best_of > n: the first n while it runs, the best n at the end, of equal ones the
    earlier.
    """
    state = _state(p, n=2, best_of=4, max_tokens=1)
    sums = [-3.0, -1.0, -2.0, -1.0]
    for index, logprob in enumerate(sums):
        got = [o.token_ids for o in state.output().outputs]
        wanted = [[index_ + 2] if index_ < index else [] for index_ in range(2)]
        given = f"n=2, best_of=4, {index} of them have ended"
        expect(f"{given}: token_ids", got, wanted)
        expect(f"{given}: finished", state.output().finished, False)
        _take(state, index, index + 2, logprob)
    outputs = state.output().outputs
    given = f"n=2, best_of=4, tokens 2, 3, 4, 5 with log-probabilities {sums}"
    expect(f"{given}: token_ids", [o.token_ids for o in outputs], [[3], [5]])
    expect(f"{given}: index", [o.index for o in outputs], [0, 1])
    state = _state(p, n=2, max_tokens=1)
    _take(state, 0, 2, -3.0)
    _take(state, 1, 3, -1.0)
    got = [o.token_ids for o in state.output().outputs]
    expect("n=2, best_of=2, log-probabilities -3.0, -1.0: token_ids", got, [[2], [3]])
    state = _state(p, eos=(1,), n=1, best_of=2, max_tokens=3)
    for index, token_id, logprob in ((0, 2, -1.0), (0, 3, -1.0), (0, 4, -1.0)):
        _take(state, index, token_id, logprob)
    _take(state, 1, 1, -2.0)
    got = [o.token_ids for o in state.output().outputs]
    given = "n=1, best_of=2, three times -1.0 against -2.0 once: token_ids"
    expect(given, got, [[1]])


@_SUITE.property(
    "RequestState", hint="lists that are handed out must not be the live ones"
)
def _state_stays(p: SimpleNamespace) -> None:
    """An output that was handed out stays as it was, and changing it changes
    nothing.
    """
    state = _state(p, max_tokens=4, logprobs=0)
    _take(state, 0, 4)
    kept = state.output()
    _take(state, 0, 6)
    expect("token 6 after output() was [4]: it", kept.outputs[0].token_ids, [4])
    kept.outputs[0].token_ids.clear()
    kept.prompt_token_ids.clear()
    later = state.output()
    expect("the user clears its lists: token_ids", later.outputs[0].token_ids, [4, 6])
    expect(
        "the user clears its lists: prompt_token_ids", later.prompt_token_ids, [5, 9]
    )


# ----- the engine of notebook 09


@cache
def _package_llm() -> Any:
    from folovllm_lite import LLM

    return LLM(device="cpu")


def _llm(p: SimpleNamespace) -> Any:
    """The judged engine, made once for all properties."""
    if not hasattr(p, "made_llm"):
        p.made_llm = p.LLM()
    return p.made_llm


def _expect_same(given: str, ours: Any, theirs: Any) -> None:
    """The same completions, whoever made them."""
    for name in ("token_ids", "text", "finish_reason", "stop_reason", "index"):
        got = [getattr(o, name) for o in ours.outputs]
        expect(f"{given}: {name}", got, [getattr(o, name) for o in theirs.outputs])
    got, wanted = (
        [o.cumulative_logprob for o in each.outputs] for each in (ours, theirs)
    )
    _close(f"{given}: cumulative_logprob", got, wanted)
    expect(f"{given}: prompt_token_ids", ours.prompt_token_ids, theirs.prompt_token_ids)
    expect(f"{given}: finished", ours.finished, True)


def _compare(p: SimpleNamespace, prompts: list, **params: Any) -> None:
    """Judged and package's engine on the same prompts."""
    asked = SamplingParams(**params)
    ours = _llm(p).generate(list(prompts), asked)
    expect(f"{len(prompts)} prompts: how many outputs", len(ours), len(prompts))
    for prompt, one, two in zip(prompts, ours, _wanted(prompts, asked), strict=True):
        _expect_same(f"generate({prompt!r}, {_shown(params)})", one, two)


def _wanted(prompts: list, asked: SamplingParams) -> list[Any]:
    """What the package's engine says; it is asked once."""
    key = repr((prompts, asked))
    if key not in _known:
        llm = _package_llm()
        _known[key] = llm.generate(list(prompts), asked, use_tqdm=False)
    return _known[key]


_known: dict[str, list[Any]] = {}


@_SUITE.property("LLM", hint="tokenizer, model, loop: which of the three differs?")
def _llm_greedy(p: SimpleNamespace) -> None:
    """LLM() serves the embedded model: a greedy answer is the package's, to the end of
    the text.
    """
    _compare(p, ["Once"], temperature=0, max_tokens=1)
    _compare(p, ["Once upon a time"], temperature=0, max_tokens=12)
    _compare(p, ["从前"], temperature=0, max_tokens=12)
    _compare(p, ["What is 2 + 3?"], temperature=0, max_tokens=40)


@_SUITE.property("LLM", hint="one output for each prompt, where its prompt stands")
def _llm_order(p: SimpleNamespace) -> None:
    """Outputs come in the order of the prompts, whoever ends first; a prompt is a
    string or {"prompt_token_ids": ids}.
    """
    prompts = ["What is 2 + 3?", {"prompt_token_ids": [5, 9, 3]}, "Lily", "What is"]
    _compare(p, prompts, temperature=0, max_tokens=16)
    asked = SamplingParams(temperature=0, max_tokens=2)
    outputs = _llm(p).generate(list(prompts), asked)
    got = [output.prompt for output in outputs]
    expect("... prompt", got, ["What is 2 + 3?", None, "Lily", "What is"])
    expect("generate([])", _llm(p).generate([], asked), [])


@_SUITE.property("LLM", hint="nothing of a request may depend on the one before it")
def _llm_company(p: SimpleNamespace) -> None:
    """With a seed a prompt gets the same tokens alone, in company, and again."""
    asked = SamplingParams(seed=5, n=2, max_tokens=8)
    alone = _llm(p).generate(["Lily"], asked)[0]
    given = "'Lily', seed=5, n=2"
    many = _llm(p).generate(["Once", "Lily", "Tom"], asked)
    _expect_same(f"{given}, between 'Once' and 'Tom'", many[1], alone)
    _compare(p, ["Lily"], seed=5, n=2, max_tokens=8)


@_SUITE.property("LLM", hint="hand the parameters on, all of them")
def _llm_params(p: SimpleNamespace) -> None:
    """Every parameter arrives: stop strings, ignore_eos, min_tokens, penalties,
    best_of; None is SamplingParams().
    """
    prompt = "What is 2 + 3?"
    _compare(p, [prompt], temperature=0, max_tokens=16, ignore_eos=True)
    _compare(p, [prompt], temperature=0, max_tokens=16, min_tokens=14)
    _compare(p, ["Lily"], temperature=0, max_tokens=24, stop=[" the", "."])
    _compare(p, ["Lily"], n=1, best_of=3, seed=1, max_tokens=6, top_p=0.9)
    _compare(p, ["Lily"], temperature=0, max_tokens=12, repetition_penalty=1.5)
    got = len(_llm(p).generate(["Once upon"])[0].outputs[0].token_ids)
    if not 1 <= got <= 16:
        fail("generate(['Once upon']): how many tokens", got, "at most 16")


@_SUITE.property("LLM", hint="yield what is there after every step")
def _llm_stream(p: SimpleNamespace) -> None:
    """A stream gives an output for each token, each with one more, and text that only
    grows; the last equals generate's.
    """
    greedy = {"temperature": 0, "max_tokens": 10}
    (free,) = _wanted(["Lily"], SamplingParams(**greedy))
    for prompt, params in (
        ("Lily", {"temperature": 0, "max_tokens": 1}),
        ("Lily", {**greedy, "stop": [free.outputs[0].text[8:12]]}),
        ({"prompt_token_ids": [5, 9]}, {"seed": 5, "max_tokens": 6}),
        ("从前", {"seed": 5, "n": 2, "max_tokens": 8, "temperature": 3.0}),
    ):
        asked, given = SamplingParams(**params), f"stream({prompt!r}, {_shown(params)})"
        whole = _llm(p).generate([prompt], asked)[0]
        outputs = list(islice(_llm(p).stream(prompt, asked), _TOO_MANY))
        got = [[len(o.token_ids) for o in output.outputs] for output in outputs]
        lengths = [len(o.token_ids) for o in whole.outputs]
        wanted = [
            [min(k, length) for length in lengths] for k in range(1, max(lengths) + 1)
        ]
        expect(f"{given}: how many tokens", got, wanted)
        expect(
            f"{given}: finished",
            [o.finished for o in outputs[:-1]],
            [False] * (len(outputs) - 1),
        )
        for index in range(len(lengths)):
            texts = [output.outputs[index].text for output in outputs]
            for before, after in zip(texts, texts[1:], strict=False):
                if not after.startswith(before):
                    fail(
                        f"{given}: text after {before!r}", after, "what begins with it"
                    )
        _expect_same(f"{given}, the last", outputs[-1], whole)


@_SUITE.property("LLM", hint="a generator function does nothing until it is asked")
def _llm_lazy(p: SimpleNamespace) -> None:
    """A stream that is left, or goes on while others are served, disturbs nobody."""
    asked = SamplingParams(seed=5, max_tokens=6)
    wanted = _llm(p).generate(["Lily"], asked)[0]
    stream = iter(_llm(p).stream("Lily", asked))
    expect("stream('Lily'): tokens at first", len(next(stream).outputs[0].token_ids), 1)
    between = _llm(p).generate(["Lily"], asked)[0]
    _expect_same("generate('Lily') while a stream is open", between, wanted)
    *_, last = islice(stream, _TOO_MANY)
    _expect_same("... and the stream's last output", last, wanted)
    next(iter(_llm(p).stream("Tom", asked)))
    again = _llm(p).generate(["Lily"], asked)[0]
    _expect_same("generate('Lily') after a stream that was left", again, wanted)


@_SUITE.property(
    "LLM",
    hint="the processor of notebook 08 says what is wrong with it: ask it about all "
    "prompts before you run one, and when a stream is called",
)
def _llm_refuses(p: SimpleNamespace) -> None:
    """A prompt that can't be served is a ValueError, and the engine goes on."""
    asked = SamplingParams(temperature=0, max_tokens=2)
    vocabulary = _package_llm().model.config.vocab_size
    for prompt, *words in (
        ("",),
        ({"prompt_token_ids": [vocabulary]}, str(vocabulary)),
    ):
        given = f"generate([{prompt!r}])"
        expect_error(
            given, lambda w=prompt: _llm(p).generate([w], asked), ValueError, *words
        )
        given = f"stream({prompt!r}), nothing is asked of it yet"
        expect_error(
            given, lambda w=prompt: _llm(p).stream(w, asked), ValueError, *words
        )
    best = SamplingParams(n=1, best_of=2, max_tokens=2)
    given = "stream('Once', n=1, best_of=2), which can't be shown before its end"
    expect_error(given, lambda: _llm(p).stream("Once", best), ValueError)
    run, forward = [], Qwen3.forward
    with mock.patch.object(
        Qwen3, "forward", lambda *given: run.append(1) or forward(*given)
    ):
        call = lambda: _llm(p).generate(["Once", ""], asked)  # noqa: E731
        expect_error("generate(['Once', ''])", call, ValueError)
    expect("generate(['Once', '']), refused: passes for 'Once'", len(run), 0)
    _compare(p, ["Once"], temperature=0, max_tokens=2)


@_SUITE.property(
    "LLM",
    hint="work on copies of what you were given, and draw from a generator of your own",
)
def _llm_left_alone(p: SimpleNamespace) -> None:
    """The caller's prompts and parameters stay as they were."""
    ids, asked = [5, 9, 3], SamplingParams(temperature=0, max_tokens=2, stop=["x"])
    prompts = [{"prompt_token_ids": ids}, "Once"]
    _llm(p).generate(prompts, asked)
    expect("the ids afterwards", ids, [5, 9, 3])
    expect("the prompts afterwards", len(prompts), 2)
    expect("the keys of the first", list(prompts[0]), ["prompt_token_ids"])
    expect(
        "max_tokens=2, stop=['x']: afterwards",
        [asked.max_tokens, asked.stop],
        [2, ["x"]],
    )
    asked = SamplingParams(seed=5, max_tokens=6)
    wanted = _llm(p).generate(["Lily"], asked)[0]
    stream = iter(_llm(p).stream("Lily", asked))
    next(stream)
    asked.temperature = 0
    *_, last = islice(stream, _TOO_MANY)
    given = "seed=5, and temperature 0 from the caller's hand once a stream has begun"
    _expect_same(given, last, wanted)
    state = torch.get_rng_state()
    _llm(p).generate(["Lily"], SamplingParams(max_tokens=2))
    same = torch.equal(torch.get_rng_state(), state)
    expect("no seed: PyTorch's own generator, afterwards, is as it was", same, True)
