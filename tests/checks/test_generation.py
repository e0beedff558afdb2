"""The suite of the generation loop passes what is right and rejects mistakes.

Each mutant breaks one thing that somebody's loop has broken, and the property that is
about it has to say so, by its sentence. What is right is the package, and a second
loop, written here in one function without a line of the first.
"""

import copy
import time
from dataclasses import replace

import pytest
import torch

from folovllm_lite import checks
from folovllm_lite import generation as module
from folovllm_lite.checks import generation_suite as suite
from folovllm_lite.generation import Generation, RequestState
from folovllm_lite.kv_cache import ContiguousKVCache
from folovllm_lite.outputs import Logprob, RequestMetrics, RequestOutput
from folovllm_lite.processor import InputProcessor, OutputBuilder, TokenTexts
from folovllm_lite.request import Request, SequenceStatus
from folovllm_lite.sampler import SamplingRow, sample
from folovllm_lite.sampling_params import SamplingParams

# What PyTorch says of the mutant that records gradients.
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


def test_the_package_passes(capsys):
    checks.generation(module)
    said = capsys.readouterr()
    assert "✗" not in said.out and "All 40 properties hold." in said.out
    assert said.err == ""


def test_what_the_judge_compares_with_is_no_text_of_one_letter():
    free = suite._free()
    assert len(set(free)) >= 6
    assert suite._first(2) >= 2 and 1 not in free[:4] and 0 not in free[:4]
    top = torch.stack([suite._logits(5, 9, 3, *free[:i])[-1] for i in range(12)])
    best, second = top.topk(2).values.unbind(-1)
    assert (best - second).min() > 0.05  # no machine's rounding changes a token


# ----- another loop: completion after completion, all in one function


def plain_generate(
    model, tokenizer, prompt_token_ids, params, *, eos_token_ids=(), generator=None
):
    arrival, texts, ids = time.time(), TokenTexts(tokenizer), list(prompt_token_ids)
    limit = params.max_tokens or model.config.max_position_embeddings - len(ids)
    weight, first_time = model.lm_head.weight, None
    with torch.no_grad():
        cache = ContiguousKVCache(
            model.config, len(ids) + limit - 1, weight.dtype, weight.device
        )
        hidden = model(torch.tensor(ids), cache.step(len(ids)))
        cache.advance(len(ids))
        raw = model.logits(hidden)
        candidates = None
        if params.prompt_logprobs is not None:
            candidates = [None]
            for place, token_id in enumerate(ids[1:]):
                row = raw[place].float().log_softmax(-1)
                candidates.append(
                    _candidates(texts, row, token_id, params.prompt_logprobs)
                )
        made = []
        for i in range(params.best_of):
            builder = OutputBuilder(texts, ids, params, eos_token_ids, limit)
            own, past, logits = generator, cache.copy(), raw[-1:]
            if params.seed is not None:
                own = torch.Generator().manual_seed((params.seed + i) % 2**63)
            row = SamplingRow(
                params, ids, builder.token_ids, builder.stop_token_ids, None
            )
            while builder.finish_reason is None:
                token_id = int(sample(logits, [row], own).token_ids)
                scores = logits[0].float().log_softmax(-1)
                found = None
                if params.logprobs is not None:
                    found = _candidates(texts, scores, token_id, params.logprobs)
                builder.append(token_id, float(scores[token_id]), found)
                first_time = first_time or time.time()
                if builder.finish_reason is None:
                    hidden = model(torch.tensor([token_id]), past.step(1))
                    past.advance(1)
                    logits = model.logits(hidden)
            made.append(builder)
    if params.best_of > params.n:
        made.sort(key=lambda builder: -builder.cumulative_logprob)
    return RequestOutput(
        "plain",
        None,
        ids,
        [builder.output(i) for i, builder in enumerate(made[: params.n])],
        True,
        RequestMetrics(arrival, first_time, time.time()),
        candidates,
    )


def _candidates(texts, scores, token_id, count):
    best = scores.topk(count).indices.tolist() if count else []
    return {
        each: Logprob(
            float(scores[each]), int((scores > scores[each]).sum()) + 1,
            texts.text_of(each),
        )
        for each in dict.fromkeys([token_id, *best])
    }  # fmt: skip


def test_another_loop_passes(capsys):
    checks.generation(generate=plain_generate)
    assert "✗" not in capsys.readouterr().out


# ----- mutants of Generation; what they override is the package's, with one mistake


class SharedCache(Generation):
    def _prefill(self):
        logits = super()._prefill()
        self._caches = [self._caches[0]] * len(self._caches)
        return logits


class PrefillForEachCompletion(Generation):
    def _prefill(self):
        for _ in self._state.sequences[1:]:
            cache = ContiguousKVCache(self._model.config, 24)
            ids = self._state.request.prompt_token_ids
            self._model(torch.tensor(ids), cache.step(len(ids)))
        return super()._prefill()


class RunsTheLastToken(Generation):
    def step(self):
        super().step()
        if self.finished:
            self._caches[0].max_len += 1
            self._caches[0].keys = torch.cat([self._caches[0].keys] * 2, 2)
            self._caches[0].values = torch.cat([self._caches[0].values] * 2, 2)
            with torch.inference_mode():
                self._decode(0)


class RunsTheWholeTextAgain(Generation):
    @torch.inference_mode()
    def _decode(self, index):
        ids = self._state.sequences[index].get_token_ids()
        cache = ContiguousKVCache(self._model.config, len(ids))
        hidden = self._model(torch.tensor(ids), cache.step(len(ids)))
        return self._model.logits(hidden[-1:])


class RunsWhatHasEnded(Generation):
    def step(self):
        if self._caches:
            for i, seq in enumerate(self._state.sequences):
                if seq.is_finished():
                    with torch.inference_mode():
                        self._decode(i)
                        self._caches[i].length -= 1
        super().step()


class RecordsGradients(Generation):
    def step(self):
        return Generation.step.__wrapped__(self)


class CacheInFloat32(Generation):
    def _prefill(self):
        logits = super()._prefill()
        for cache in self._caches:
            cache.keys, cache.values = cache.keys.float(), cache.values.float()
        return logits


class NoGenerator(Generation):
    def __init__(self, *args, generator=None, **options):
        super().__init__(*args, **options)


class PositionsBeginAgain(Generation):
    def _decode(self, index):
        cache, step = self._caches[index], self._caches[index].step

        def moved(tokens):
            ctx = step(tokens)
            ctx.positions = ctx.positions - len(self._state.request.prompt_token_ids)
            return ctx

        cache.step = moved
        try:
            return super()._decode(index)
        finally:
            del cache.step


class ForgetsToAdvance(Generation):
    def _decode(self, index):
        logits = super()._decode(index)
        self._caches[index].length -= 1
        return logits


class RunsTheFirstTokenAlways(Generation):
    def _decode(self, index):
        data = self._state.sequences[index].data
        newest = data.output_token_ids[-1]
        data.output_token_ids[-1] = data.output_token_ids[0]
        try:
            return super()._decode(index)
        finally:
            data.output_token_ids[-1] = newest


class LogitsOfTheFirstPosition(Generation):
    def _prefill(self):
        logits = super()._prefill()
        ids = self._state.request.prompt_token_ids[:1]
        cache = ContiguousKVCache(self._model.config, 1)
        self._model(torch.tensor(ids), cache.step(1))
        hidden = self._model(torch.tensor(ids), cache.step(1))
        return self._model.logits(hidden).expand_as(logits)


def _with_sample(change):
    """A Generation whose logits go through `change` first."""

    class Changed(Generation):
        @torch.inference_mode()
        def step(self):
            right = module.sample
            module.sample = lambda logits, rows, generator=None: right(
                *change(logits, rows), generator
            )
            try:
                super().step()
            finally:
                module.sample = right

    Changed.__name__ = change.__name__
    return Changed


def logits_after_temperature(logits, rows):
    scale = [row.params.temperature or 1.0 for row in rows]
    rows = [replace(row, params=replace(row.params)) for row in rows]
    for row in rows:
        row.params.temperature = min(row.params.temperature, 1.0)
    return logits / torch.tensor(scale)[:, None], rows


def logits_after_penalties(logits, rows):
    from folovllm_lite.sampler import apply_penalties

    return apply_penalties(logits, rows), rows


def rows_in_the_wrong_order(logits, rows):
    return logits.flip(0), rows


def a_new_generator_each_step(logits, rows):
    for i, row in enumerate(rows):
        if row.params.seed is not None:
            row.generator.manual_seed(row.params.seed + i)
    return logits, rows


class RowsOfTheFirstOnes(Generation):
    """Rows by their place in the batch, not by whose they are."""

    @torch.inference_mode()
    def step(self):
        state = self._state
        running = [i for i, s in enumerate(state.sequences) if not s.is_finished()]
        if not self._caches:
            logits = self._prefill().expand(len(running), -1)
        else:
            logits = torch.cat([self._decode(i) for i in running])
        chosen = sample(logits, state.rows[: len(running)], self._generator)
        for row, i in enumerate(running):
            token_id, logprob = int(chosen.token_ids[row]), chosen.logprobs[row].item()
            state.take(i, token_id, logprob, chosen, row)


class NeverBeyondTheFirst(Generation):
    """All completions take the first row."""

    @torch.inference_mode()
    def step(self):
        state = self._state
        running = [i for i, s in enumerate(state.sequences) if not s.is_finished()]
        if not self._caches:
            logits = self._prefill().expand(len(running), -1)
        else:
            logits = torch.cat([self._decode(i) for i in running])
        chosen = sample(logits, [state.rows[i] for i in running], self._generator)
        for i in running:
            token_id, logprob = int(chosen.token_ids[0]), chosen.logprobs[0].item()
            state.take(i, token_id, logprob, chosen, 0)


class PromptScoresMovedByOne(Generation):
    def _prefill(self):
        right = self._state.score_prompt
        last = self._state.request.prompt_token_ids[-1:]

        def moved(logits):
            hidden = self._model.logits(self._model.model.embed_tokens.weight[last])
            right(torch.cat([logits[1:], hidden]) if len(logits) else logits)

        self._state.score_prompt = moved
        return super()._prefill()


class OneTokenTooMany(Generation):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._state.max_tokens += 1
        for builder in self._state.builders:
            builder._max_tokens += 1


class PromptLeftOutOfTheLimit(Generation):
    def __init__(self, model, texts, request, **options):
        limit = options.pop("max_model_len", None)
        limit = limit or model.config.max_position_embeddings
        extra = len(request.prompt_token_ids)
        super().__init__(model, texts, request, max_model_len=limit + extra, **options)


class NoMaxModelLen(Generation):
    def __init__(self, *args, max_model_len=None, **options):
        super().__init__(*args, **options)


class IgnoresTheEnd(Generation):
    def __init__(self, *args, eos_token_ids=(), **options):
        super().__init__(*args, **options)


class GivesOnlyTheLast(Generation):
    def __iter__(self):
        while not self.finished:
            self.step()
        yield self.output()


class GivesTheFirstTwice(Generation):
    def __iter__(self):
        while not self.finished:
            yield self.output()
            self.step()
        yield self.output()


class OutputSteps(Generation):
    def output(self):
        if not self.finished:
            self.step()
        return super().output()


class OutputIsTheLiveOne(Generation):
    def output(self):
        new = super().output()
        if not hasattr(self, "_kept"):
            self._kept = new
        for name in RequestOutput.__slots__:
            setattr(self._kept, name, getattr(new, name))
        return self._kept


class SamplesWhatHasEnded(Generation):
    """All completions step on until the last of them has ended."""

    def step(self):
        before = [seq.status for seq in self._state.sequences]
        super().step()
        for seq, status in zip(self._state.sequences, before, strict=True):
            if status.is_finished() and self._state.max_tokens > seq.get_output_len():
                seq.add_token_id(2)
                self._state.builders[self._state.sequences.index(seq)].append(2, -1.0)


class ASlotForTheLastToken(Generation):
    def _prefill(self):
        self._state.max_tokens += 1
        logits = super()._prefill()
        self._state.max_tokens -= 1
        return logits


class PromptTokenByToken(Generation):
    def _prefill(self):
        state, model = self._state, self._model
        prompt = state.request.prompt_token_ids
        slots = len(prompt) + state.max_tokens - 1
        cache = ContiguousKVCache(model.config, slots, model.lm_head.weight.dtype)
        for token_id in prompt:
            hidden = model(torch.tensor([token_id]), cache.step(1))
            cache.advance(1)
        self._caches = [cache, *(cache.copy() for _ in state.sequences[1:])]
        for sequence in state.sequences:
            sequence.move_to(SequenceStatus.RUNNING)
        return model.logits(hidden)


class NoPromptForTheText(Generation):
    def __init__(self, model, texts, request, **options):
        super().__init__(model, texts, request, **options)
        state = self._state
        ends = options.get("eos_token_ids", ())
        state.builders = [
            OutputBuilder(texts, [], request.sampling_params, ends, state.max_tokens)
            for _ in state.builders
        ]


GENERATION = {
    ASlotForTheLastToken: "has no slot for the last token",
    PromptTokenByToken: "the prompt in one pass",
    NoPromptForTheText: "goes on from the prompt's",
    SharedCache: "its own tokens: their log-probabilities",
    PrefillForEachCompletion: "For n completions the prompt is run once",
    RunsTheLastToken: "and the last one never",
    RunsTheWholeTextAgain: "Every token is run once",
    RunsWhatHasEnded: "that has ended is run no more",
    RecordsGradients: "Nothing is recorded for training",
    CacheInFloat32: "A model in bfloat16",
    NoGenerator: "draws come from `generator`",
    PositionsBeginAgain: "at its own position",
    ForgetsToAdvance: "the likeliest after all tokens before it",
    RunsTheFirstTokenAlways: "the likeliest after all tokens before it",
    LogitsOfTheFirstPosition: "the likeliest after all tokens before it",
    _with_sample(logits_after_temperature): "before temperature, filters",
    _with_sample(logits_after_penalties): "before temperature, filters",
    _with_sample(rows_in_the_wrong_order): "what seed + i gives alone",
    _with_sample(a_new_generator_each_step): "a generator of that seed",
    RowsOfTheFirstOnes: "the others go on undisturbed",
    NeverBeyondTheFirst: "what seed + i gives alone",
    PromptScoresMovedByOne: "does the same for the prompt",
    OneTokenTooMany: 'ends it with finish_reason "length"',
    PromptLeftOutOfTheLimit: "fill the model's limit",
    NoMaxModelLen: "fill the model's limit",
    IgnoresTheEnd: "The end-of-sequence token ends it",
    GivesOnlyTheLast: "gives an output for every step",
    GivesTheFirstTwice: "gives an output for every step",
    OutputSteps: "may be read at any time",
    OutputIsTheLiveOne: "An output that was read stays",
    SamplesWhatHasEnded: "the others go on undisturbed",
}


# ----- mutants of generate


def _plain_with(**mistake):
    """plain_generate with other arguments than it was given."""

    def generate(model, tokenizer, ids, params, **options):
        changes = {k: v for k, v in mistake.items() if hasattr(params, k)}
        others = {k: v for k, v in mistake.items() if k not in changes}
        params = replace(params, **changes)
        return plain_generate(model, tokenizer, ids, params, **(options | others))

    generate.__name__ = "no_" + "_".join(mistake)
    return generate


def clamps_the_callers_params(model, tokenizer, ids, params, **options):
    if params.max_tokens is None:
        params.max_tokens = model.config.max_position_embeddings - len(ids)
    return plain_generate(model, tokenizer, ids, params, **options)


def grows_the_callers_prompt(model, tokenizer, ids, params, **options):
    output = plain_generate(model, tokenizer, ids, params, **options)
    ids += output.outputs[0].token_ids
    return output


def seeds_the_global_generator(model, tokenizer, ids, params, **options):
    if params.seed is not None:
        torch.manual_seed(params.seed)
    return plain_generate(model, tokenizer, ids, params, **options)


def keeps_all_of_best_of(model, tokenizer, ids, params, **options):
    params = replace(params, n=params.best_of)
    return plain_generate(model, tokenizer, ids, params, **options)


def the_worst_first(model, tokenizer, ids, params, **options):
    output = plain_generate(
        model, tokenizer, ids, replace(params, n=params.best_of), **options
    )
    output.outputs.sort(key=lambda o: o.cumulative_logprob)
    del output.outputs[params.n :]
    return output


def always_sorted(model, tokenizer, ids, params, **options):
    output = plain_generate(model, tokenizer, ids, params, **options)
    output.outputs.sort(key=lambda o: -o.cumulative_logprob)
    return output


def stop_token_is_dropped(model, tokenizer, ids, params, **options):
    output = plain_generate(model, tokenizer, ids, params, **options)
    for each in output.outputs:
        if each.finish_reason == "stop" and each.stop_reason != params.stop:
            each.token_ids = [i for i in each.token_ids if i != each.stop_reason]
    return output


def the_time_of_the_end_is_the_arrival(model, tokenizer, ids, params, **options):
    output = plain_generate(model, tokenizer, ids, params, **options)
    output.metrics.arrival_time = time.time() + 1
    return output


GENERATE = {
    _plain_with(eos_token_ids=()): "The end-of-sequence token ends it",
    _plain_with(generator=None): "draws come from `generator`",
    _plain_with(seed=None): "a generator of that seed",
    _plain_with(min_tokens=0): "Before min_tokens",
    _plain_with(stop=None): "as soon as it is complete",
    _plain_with(stop_token_ids=None): "A stop token ends",
    _plain_with(ignore_eos=False): "ignore_eos goes on past it",
    _plain_with(logprobs=None): "logprobs=k gives for each token",
    _plain_with(prompt_logprobs=None): "does the same for the prompt",
    _plain_with(max_tokens=16): "max_tokens ends it",
    clamps_the_callers_params: "prompt and parameters stay",
    grows_the_callers_prompt: "prompt and parameters stay",
    seeds_the_global_generator: "nobody else's generator moves",
    keeps_all_of_best_of: "the best first",
    the_worst_first: "the best first",
    always_sorted: "the best first",
    stop_token_is_dropped: "A stop token ends",
    the_time_of_the_end_is_the_arrival: "The metrics come in order",
}


# ----- the first loop of the notebook


@torch.inference_mode()
def _run(model, token_ids, cache):
    hidden = model(torch.tensor(token_ids), cache.step(len(token_ids)))
    cache.advance(len(token_ids))
    return model.logits(hidden[-1:])


def _first_loop(
    run=_run, row_tokens=lambda tokens: tokens, row_stops=lambda stops: stops,
    ends=lambda ends: ends, newest=lambda new, builder: new[-1:],
    over=lambda builder: builder.finish_reason, text=lambda prompt: prompt,
    row_prompt=lambda prompt: prompt, slots=-1, number=lambda logprob: logprob.item(),
    given=list,
):  # fmt: skip
    """The notebook's one_completion, with one of its parts changed."""

    def one_completion(model, texts, ids, params, eos):
        builder = OutputBuilder(texts, text(ids), params, ends(eos), params.max_tokens)
        tokens, stops = builder.token_ids, builder.stop_token_ids
        row = SamplingRow(params, row_prompt(ids), row_tokens(tokens), row_stops(stops))
        cache = ContiguousKVCache(model.config, len(ids) + params.max_tokens + slots)
        new = given(ids)
        while not over(builder):
            chosen = sample(run(model, new, cache), [row])
            builder.append(chosen.token_ids.item(), number(chosen.logprobs[0]))
            new[:] = newest(builder.token_ids, builder)
        return builder

    return one_completion


def _without_a_cache(model, token_ids, cache):
    return _run(model, token_ids, ContiguousKVCache(model.config, 99))


def _once_more(model, token_ids, cache):
    logits = _run(model, token_ids, cache)
    model(torch.tensor(token_ids[:1]), cache.step(1))
    return logits


def _with_gradients(model, token_ids, cache):
    hidden = model(torch.tensor(token_ids), cache.step(len(token_ids)))
    cache.advance(len(token_ids))
    return model.logits(hidden[-1:])


def _never_advanced(model, token_ids, cache):
    return model.logits(model(torch.tensor(token_ids), cache.step(len(token_ids)))[-1:])


def gives_the_text(*args):
    return _first_loop()(*args).text


def runs_the_last_token(model, texts, ids, params, eos):
    builder = _first_loop()(model, texts, ids, params, eos)
    cache = ContiguousKVCache(model.config, 99)
    model(torch.tensor(builder.token_ids[-1:]), cache.step(1))
    return builder


def _token_by_token(model, token_ids, cache):
    for token_id in token_ids:
        logits = _run(model, [token_id], cache)
    return logits


FIRST_LOOP = {
    "the_row_has_no_prompt": (
        _first_loop(row_prompt=lambda _: []), "Penalties see the prompt"),
    "the_builder_has_no_prompt": (
        _first_loop(text=lambda _: []), "goes on from the prompt's"),
    "a_slot_for_the_last": (_first_loop(slots=0), "has no slot for the last token"),
    "the_prompt_token_by_token": (
        _first_loop(run=_token_by_token), "the prompt in one pass"),
    "a_tensor_for_a_number": (
        _first_loop(number=lambda logprob: logprob), "as Python numbers"),
    "the_callers_list_is_used": (
        _first_loop(given=lambda ids: ids), "The caller's prompt"),
    "the_row_has_a_copy": (_first_loop(row_tokens=list), "Penalties see the prompt"),
    "the_row_knows_no_end": (_first_loop(row_stops=lambda _: ()), "Before min_tokens"),
    "no_end_token": (_first_loop(ends=lambda _: ()), "The end-of-sequence token"),
    "the_prompt_again": (
        _first_loop(newest=lambda new, b: b.token_ids), "At temperature 0"),
    "without_a_cache": (_first_loop(run=_without_a_cache), "At temperature 0"),
    "never_advanced": (_first_loop(run=_never_advanced), "At temperature 0"),
    "a_pass_too_many": (_first_loop(run=_once_more), "Every token is run once"),
    "runs_the_last_token": (runs_the_last_token, "Every token is run once"),
    "with_gradients": (_first_loop(run=_with_gradients), "Nothing is recorded"),
    "max_tokens_alone_ends_it": (
        _first_loop(over=lambda b: len(b.token_ids) >= b._max_tokens), "A stop token"),
    "gives_the_text": (gives_the_text, "At temperature 0"),
}  # fmt: skip


def test_the_first_loop_passes(capsys):
    checks.generation(one_completion=_first_loop())
    assert "All 12 properties hold." in capsys.readouterr().out


def test_a_loop_is_not_judged_by_what_an_earlier_one_did(capsys):
    """Gradients that one loop recorded were once held against the next."""
    with pytest.raises(checks.CheckFailed):
        checks.generation(one_completion=_first_loop(run=_with_gradients))
    capsys.readouterr()
    checks.generation(one_completion=_first_loop())


@pytest.mark.parametrize("name", FIRST_LOOP)
def test_a_wrong_first_loop_is_rejected(name, capsys):
    mutant, words = FIRST_LOOP[name]
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.generation(one_completion=mutant)
    out = capsys.readouterr().out
    wrong = [line for line in out.splitlines() if line.startswith("✗")]
    assert any(words in line for line in wrong), out


# ----- mutants of RequestState


class LimitForgetsThePrompt(RequestState):
    def __init__(self, request, texts, eos, limit, device):
        super().__init__(request, texts, eos, limit, device)
        if request.sampling_params.max_tokens is None:
            self.max_tokens = limit
            for builder in self.builders:
                builder._max_tokens = limit


class RowsHaveACopy(RequestState):
    def __init__(self, *args):
        super().__init__(*args)
        for row in self.rows:
            row.output_token_ids = list(row.output_token_ids)


class RowsKnowNoEnd(RequestState):
    def __init__(self, *args):
        super().__init__(*args)
        for row in self.rows:
            row.stop_token_ids = tuple(row.params.stop_token_ids)


class EveryChildHasTheSameSeed(RequestState):
    def _seeded(self, index, device):
        return super()._seeded(0, device)


class SeedsDoNotWrap(RequestState):
    def _seeded(self, index, device):
        seed = self.request.sampling_params.seed
        return None if seed is None else torch.Generator().manual_seed(seed + index)


class RowIsTheIndex(RequestState):
    def take(self, index, token_id, logprob, chosen, row):
        super().take(
            index, token_id, logprob, chosen, min(index, len(chosen.ranks) - 1)
        )


class AllOfTheBatchsCandidates(RequestState):
    def _candidates(self, chosen, row, count, before):
        count = chosen.top_token_ids.shape[1]
        return super()._candidates(chosen, row, count, before)


class ChosenComesLast(RequestState):
    def _candidates(self, chosen, row, count, before):
        found = super()._candidates(chosen, row, count, before)
        return dict(sorted(found.items(), key=lambda item: item[1].rank))


class ChosenIsMissing(RequestState):
    def _candidates(self, chosen, row, count, before):
        found = super()._candidates(chosen, row, count, before)
        return dict(list(found.items())[-count:]) if count else found


class SequenceIsNotTold(RequestState):
    def take(self, index, token_id, logprob, chosen, row):
        reason = self.builders[index]
        super().take(index, token_id, logprob, chosen, row)
        if reason.finish_reason == "length":
            self.sequences[index].status = SequenceStatus.FINISHED_STOPPED


class BuilderGetsEverything(RequestState):
    def take(self, index, token_id, logprob, chosen, row):
        super().take(index, token_id, logprob, chosen, row)
        self.builders[1 - index if len(self.builders) > 1 else 0].token_ids.append(0)


class FinishedWithTheFirst(RequestState):
    @property
    def finished(self):
        return any(seq.is_finished() for seq in self.sequences)


class FirstTokenAtTheArrival(RequestState):
    def take(self, *args):
        super().take(*args)
        self.metrics.first_token_time = self.metrics.arrival_time


class FinishedWithTheFirstN(RequestState):
    def output(self):
        made = super().output()
        made.finished = all(o.finish_reason for o in made.outputs)
        return made


def _before(choose):
    """Candidates whose text is read behind other tokens than those before."""

    class Mutant(RequestState):
        def _candidates(self, chosen, row, count, before):
            return super()._candidates(chosen, row, count, choose(self, before))

    return Mutant


class FirstTokenTimeMoves(RequestState):
    def take(self, *args):
        self.metrics.first_token_time = None
        time.sleep(0.001)
        super().take(*args)


class ArrivalIsNow(RequestState):
    def __init__(self, *args):
        super().__init__(*args)
        self.metrics.arrival_time = time.time()


class NoTimeOfTheEnd(RequestState):
    def take(self, *args):
        super().take(*args)
        self.metrics.finished_time = None


class AbortTakesAll(RequestState):
    def abort(self, reason=None):
        super().abort(reason)
        for builder in self.builders:
            builder.finish_reason, builder.stop_reason = "abort", reason


class AbortGivesNoReason(RequestState):
    def abort(self, reason=None):
        super().abort()


class AbortSaysStop(RequestState):
    def abort(self, reason=None):
        super().abort(reason)
        for builder in self.builders:
            if builder.finish_reason == "abort":
                builder.finish_reason = "stop"


class ScoresBeginAgain(RequestState):
    def score_prompt(self, logits):
        kept, self.prompt_logprobs = self.prompt_logprobs, [None]
        super().score_prompt(logits)
        self.prompt_logprobs = kept + self.prompt_logprobs[1:]


class ScoresTokensAlone(RequestState):
    def score_prompt(self, logits):
        candidates = self._candidates
        self._candidates = lambda chosen, row, count, before: candidates(
            chosen, row, count, []
        )
        super().score_prompt(logits)


class ScoresInHalf(RequestState):
    def score_prompt(self, logits):
        super().score_prompt(logits.log_softmax(-1))


class RanksBeforeTheEnd(RequestState):
    def output(self):
        builders = sorted(self.builders, key=lambda b: -b.cumulative_logprob)
        n = self.request.sampling_params.n
        outputs = [builder.output(i) for i, builder in enumerate(builders[:n])]
        return replace(super().output(), outputs=outputs)


class NeverRanks(RequestState):
    def output(self):
        n = self.request.sampling_params.n
        outputs = [builder.output(i) for i, builder in enumerate(self.builders[:n])]
        return replace(super().output(), outputs=outputs)


class KeepsTheOldIndex(RequestState):
    def output(self):
        output = super().output()
        for each in output.outputs:
            tokens = [builder.token_ids for builder in self.builders]
            each.index = tokens.index(each.token_ids)
        return output


class HandsOutItsLists(RequestState):
    def output(self):
        output = super().output()
        for each, builder in zip(output.outputs, self.builders, strict=False):
            each.token_ids = builder.token_ids
        return output


STATE = {
    LimitForgetsThePrompt: "what its prompt leaves of max_model_len",
    RowsHaveACopy: "has a row for the sampler",
    RowsKnowNoEnd: "has a row for the sampler",
    EveryChildHasTheSameSeed: "its own generator of seed + i",
    SeedsDoNotWrap: "begins at 0 again",
    RowIsTheIndex: "reads its own row of the batch",
    AllOfTheBatchsCandidates: "no more candidates than its request asked for",
    ChosenComesLast: "reads its own row of the batch",
    ChosenIsMissing: "reads its own row of the batch",
    SequenceIsNotTold: "stopped or length-capped",
    BuilderGetsEverything: "to its completion alone",
    FinishedWithTheFirst: "finished with the last of them",
    FirstTokenTimeMoves: "first_token_time is set once",
    FirstTokenAtTheArrival: "first_token_time is set once",
    FinishedWithTheFirstN: "the first n while it runs",
    _before(lambda state, before: before[-1:]): "reads its own row of the batch",
    _before(
        lambda state, _: state.request.prompt_token_ids
    ): "its own row of the batch",
    ArrivalIsNow: "arrival_time is the request's",
    NoTimeOfTheEnd: "arrival_time is the request's",
    AbortTakesAll: "what had ended stays as it was",
    AbortGivesNoReason: "and the reason given",
    AbortSaysStop: "ends what runs",
    ScoresBeginAgain: "in one piece or in several",
    ScoresTokensAlone: "For the prompt too",
    ScoresInHalf: "For the prompt too",
    RanksBeforeTheEnd: "the first n while it runs",
    NeverRanks: "the best n at the end",
    KeepsTheOldIndex: "the best n at the end",
    HandsOutItsLists: "An output that was handed out stays",
}


# ----- the engine of notebook 09, as somebody might write it, and its mutants


class FirstLLM:
    """One request after another, on the embedded model that the package has loaded."""

    def __init__(self):
        engine = suite._package_llm().llm_engine
        self.model, self.tokenizer = engine.model, engine.tokenizer
        self.eos = engine.eos_token_ids
        self.texts = TokenTexts(self.tokenizer)
        config = self.model.config
        self.processor = InputProcessor(
            self.tokenizer, config.vocab_size, config.max_position_embeddings
        )
        self.noise = torch.Generator().manual_seed(0)
        self.count = 0

    def job(self, prompt, params):
        params = copy.deepcopy(params) or SamplingParams()
        text, ids = self.processor.process(prompt, params)
        self.count += 1
        return Generation(
            self.model,
            self.texts,
            Request(str(self.count), text, ids, params),
            eos_token_ids=self.eos,
            generator=self.noise,
        )

    def generate(self, prompts, sampling_params=None):
        outputs = []
        for job in [self.job(prompt, sampling_params) for prompt in prompts]:
            *_, last = job
            outputs.append(last)
        return outputs

    def stream(self, prompt, params=None):
        if params is not None and params.best_of > params.n:
            raise ValueError(f"can't stream best_of {params.best_of} > n {params.n}")
        return iter(self.job(prompt, params))


class InTheOrderTheyEnd(FirstLLM):
    def generate(self, prompts, sampling_params=None):
        outputs = super().generate(prompts, sampling_params)
        return sorted(outputs, key=lambda o: len(o.outputs[0].token_ids))


class NeverEnds(FirstLLM):
    def __init__(self):
        super().__init__()
        self.eos = ()


class OneGeneratorForAll(FirstLLM):
    def job(self, prompt, params):
        job = super().job(prompt, params)
        for row in job._state.rows:
            row.generator = None
        return job


class ForgetsTheParams(FirstLLM):
    def job(self, prompt, params):
        params = params or SamplingParams()
        return super().job(prompt, replace(params, stop=None, best_of=params.n))


class NoneIsGreedyAndLong(FirstLLM):
    def job(self, prompt, params):
        return super().job(prompt, params or SamplingParams(max_tokens=40))


class StreamsDeltas(FirstLLM):
    def stream(self, prompt, params=None):
        seen = 0
        for output in super().stream(prompt, params):
            for each in output.outputs:
                tokens, each.token_ids = each.token_ids, each.token_ids[seen:]
            seen = len(tokens)
            yield output


class StreamsOnlyTheEnd(FirstLLM):
    def stream(self, prompt, params=None):
        yield self.generate([prompt], params)[0]


class StreamsWithoutTheLast(FirstLLM):
    def stream(self, prompt, params=None):
        outputs = list(super().stream(prompt, params))
        yield from outputs[:-1] or outputs


class StreamsOnlyIds(FirstLLM):
    def stream(self, prompt, params=None):
        for output in super().stream(prompt, params):
            for each in output.outputs:
                each.text = self.tokenizer.decode(each.token_ids)
            yield output


class ServesAnything(FirstLLM):
    def job(self, prompt, params):
        if not prompt:
            prompt = " "
        return super().job(prompt, params)


class WrongPromptKept(FirstLLM):
    def generate(self, prompts, sampling_params=None):
        outputs = super().generate(prompts, sampling_params)
        for output in outputs:
            output.prompt = None
        return outputs


class EmptiesThePrompts(FirstLLM):
    def generate(self, prompts, sampling_params=None):
        outputs = super().generate(prompts, sampling_params)
        prompts.clear()
        return outputs


class PopsTheIds(FirstLLM):
    def generate(self, prompts, sampling_params=None):
        prompts = [p.pop("prompt_token_ids") if type(p) is dict else p for p in prompts]
        return super().generate(prompts, sampling_params)


class SharesAStream(FirstLLM):
    """A stream ends as soon as another request comes."""

    def stream(self, prompt, params=None):
        mine = self.count + 1
        for output in super().stream(prompt, params):
            if self.count != mine:
                return
            yield output


class KeepsTheParams(FirstLLM):
    def job(self, prompt, params):
        job = super().job(prompt, params)
        if params is not None:
            job._state.request.sampling_params = params
            for row in job._state.rows:
                row.params = params
        return job


class ChecksWhenItRuns(FirstLLM):
    def generate(self, prompts, sampling_params=None):
        outputs = []
        for prompt in prompts:
            *_, last = self.job(prompt, sampling_params)
            outputs.append(last)
        return outputs


class ChecksAStreamWhenItIsRead(FirstLLM):
    def stream(self, prompt, params=None):
        yield from self.job(prompt, params)


class StreamsTheBestOf(FirstLLM):
    def stream(self, prompt, params=None):
        return iter(self.job(prompt, params))


class DrawsFromEverybodysGenerator(FirstLLM):
    def __init__(self):
        super().__init__()
        self.noise = None


ENGINES = {
    KeepsTheParams: "prompts and parameters stay",
    ChecksWhenItRuns: "can't be served",
    ChecksAStreamWhenItIsRead: "can't be served",
    StreamsTheBestOf: "can't be served",
    DrawsFromEverybodysGenerator: "prompts and parameters stay",
    InTheOrderTheyEnd: "in the order of the prompts",
    NeverEnds: "LLM() serves the embedded model",
    OneGeneratorForAll: "alone, in company, and again",
    ForgetsTheParams: "Every parameter arrives",
    NoneIsGreedyAndLong: "Every parameter arrives",
    StreamsDeltas: "an output for each token",
    StreamsOnlyTheEnd: "an output for each token",
    StreamsWithoutTheLast: "an output for each token",
    StreamsOnlyIds: "text that only grows",
    ServesAnything: "can't be served",
    WrongPromptKept: "in the order of the prompts",
    EmptiesThePrompts: "prompts and parameters stay",
    PopsTheIds: "prompts and parameters stay",
    SharesAStream: "disturbs nobody",
}


def _package_engine():
    return suite._package_llm()


@pytest.mark.parametrize("engine", [_package_engine, FirstLLM])
def test_the_packages_engine_passes_and_a_plain_one(engine, capsys):
    checks.generation(LLM=engine)
    assert "All 8 properties hold." in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, mutant, sentence",
    [
        (name, mutant, sentence)
        for name, mutants in (
            ("Generation", GENERATION),
            ("generate", GENERATE),
            ("RequestState", STATE),
            ("LLM", ENGINES),
        )
        for mutant, sentence in mutants.items()
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_suite_rejects(name, mutant, sentence, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.generation(**{name: mutant})
    out = capsys.readouterr().out
    failed = [line for line in out.splitlines() if line.startswith("✗")]
    assert any(sentence in line for line in failed), "\n".join(failed)
    assert "hint:" in out and "Traceback" not in out
