"""The exercises of notebook 09: the solutions pass, mistakes are rejected."""

from collections import deque
from unittest import mock

import pytest
import torch

from folovllm_lite import checks, generation
from folovllm_lite.checks import generation_exercises_suite as suite
from folovllm_lite.generation import Generation
from folovllm_lite.kv_cache import ContiguousKVCache
from folovllm_lite.request import Request
from folovllm_lite.sampler import SamplerOutput
from folovllm_lite.sampling_params import SamplingParams
from tests.checks.mutants import solutions

SOLVED = solutions("09_generation_loop.ipynb")
EXERCISES = ("predict_run", "serve", "speculate")


def test_the_solutions_pass(capsys):
    checks.generation_exercises({name: SOLVED[name] for name in EXERCISES})
    out = capsys.readouterr().out
    assert "✗" not in out and "All 16 properties hold." in out


# ----- the puzzle, played by the package

DRAWS = [
    [("a", -1.0), ("b", -0.5), ("E", -0.5), ("c", -0.1), ("d", -0.1), ("e", -0.1)],
    [("a", -1.0), ("c", -0.2), ("d", -0.2), ("e", -0.2), ("f", -0.2), ("g", -0.2)],
    [("h", -2.0), ("!", -0.1), ("b", -0.1), ("E", -0.1), ("c", -0.1), ("d", -0.1)],
]
LETTERS = "E!abcdefgh"


class _Tokenizer:
    all_special_ids, eos_token_id = [0], 0

    def convert_ids_to_tokens(self, token_id):
        return LETTERS[token_id]

    def decode(self, ids, skip_special_tokens=False, **others):
        ids = [ids] if isinstance(ids, int) else ids
        kept = [i for i in ids if not (skip_special_tokens and i == 0)]
        return "".join(LETTERS[i] for i in kept)


def test_the_puzzle_is_what_generation_does():
    params = SamplingParams(n=2, best_of=3, max_tokens=5, temperature=1.0, stop="!")
    request = Request("0", None, [2, 3, 4, 5, 6, 7], params)
    model, made = suite._tiny(), []

    def drawn(logits, rows, generator=None):
        """For each row the next token of its completion's script."""
        place = {id(s.data.output_token_ids): s for s in request.get_seqs()}
        found = []
        for row in rows:
            sequence = place[id(row.output_token_ids)]
            script = DRAWS[request.get_seqs().index(sequence)]
            found.append(script[len(row.output_token_ids)])
        ids = torch.tensor([LETTERS.index(token) for token, _ in found])
        logprobs = torch.tensor([logprob for _, logprob in found])
        return SamplerOutput(ids, logprobs, torch.ones_like(ids))

    class Cache(ContiguousKVCache):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

        def copy(self):
            made.append(twin := super().copy())
            return twin

    job = Generation(
        model, generation.TokenTexts(_Tokenizer()), request, eos_token_ids=(0,)
    )
    steps = 0
    with (
        mock.patch.object(generation, "sample", drawn),
        mock.patch.object(generation, "ContiguousKVCache", Cache),
        suite._Counted(model) as counted,
    ):
        while not job.finished:
            job.step()
            steps += 1
    texts = {"ab": 0, "acdef": 1, "h": 2}
    assert SOLVED["predict_run"]() == {
        "steps": steps,
        "passes": len(counted.passes),
        "tokens": sum(counted.passes),
        "slots": sum(cache.max_len for cache in made),
        "returned": [texts[each.text] for each in job.output().outputs],
    }


# ----- mutants


def _predicting(**changes):
    return lambda: {**SOLVED["predict_run"](), **changes}


predicts_a_pass_for_the_last = _predicting(passes=11, tokens=16)
predicts_a_prefill_for_each = _predicting(passes=10, tokens=25)
predicts_slots_that_are_used = _predicting(slots=25)
predicts_slots_of_n = _predicting(slots=20)
predicts_room_for_the_last = _predicting(slots=33)
predicts_the_sum_without_the_end = _predicting(returned=[0, 1])
predicts_all_of_best_of = _predicting(returned=[1, 0, 2])
predicts_six_steps = _predicting(steps=6)


def predicts_a_list():
    return [5, 8, 13, 30, [1, 0]]


def predicts_less():
    return {"steps": 5}


def serves_one_after_another(arrivals):
    for index, (_, job) in enumerate(arrivals):
        while not job.finished:
            job.step()
            yield index, job.output()


def serves_in_rounds(arrivals):
    """Newcomers wait until the round is over; nobody waits for an arrival."""
    clock, jobs = 0, list(enumerate(arrivals))
    while not all(job.finished for _, (_, job) in jobs):
        there = [(i, job) for i, (tick, job) in jobs if tick <= clock]
        waiting = [(i, job) for i, job in there if not job.finished]
        if not waiting:
            clock += 1
        for index, job in waiting:
            job.step()
            clock += 1
            yield index, job.output()
            job.finished or job.step()  # two turns for one


def serves_newcomers_in_the_next_round(arrivals):
    """As serves_in_rounds, with one turn for each and a jump to the next arrival."""
    clock, jobs = 0, list(enumerate(arrivals))
    while not all(job.finished for _, (_, job) in jobs):
        left = [(i, tick, job) for i, (tick, job) in jobs if not job.finished]
        clock = max(clock, min(tick for _, tick, _ in left))
        for index, job in [(i, job) for i, tick, job in left if tick <= clock]:
            job.step()
            clock += 1
            yield index, job.output()


def serves_all_at_once(arrivals):
    queue = deque((i, job) for i, (_, job) in enumerate(arrivals))
    while queue:
        index, job = queue.popleft()
        job.step()
        yield index, job.output()
        if not job.finished:
            queue.append((index, job))


def serves_newcomers_when_idle(arrivals):
    later = deque(sorted(enumerate(arrivals), key=lambda each: each[1][0]))
    queue, clock = deque(), 0
    while later or queue:
        if not queue:
            clock = max(clock, later[0][1][0])
            while later and later[0][1][0] <= clock:
                index, (_, job) = later.popleft()
                queue.append((index, job))
        index, job = queue.popleft()
        job.step()
        clock += 1
        yield index, job.output()
        if not job.finished:
            queue.append((index, job))


def serves_with_a_clock_that_adds(arrivals):
    later = deque(sorted(enumerate(arrivals), key=lambda each: each[1][0]))
    queue, clock = deque(), 0
    while later or queue:
        if not queue and later[0][1][0] > clock:
            clock += later[0][1][0]
        while later and later[0][1][0] <= clock:
            index, (_, job) = later.popleft()
            queue.append((index, job))
        index, job = queue.popleft()
        job.step()
        clock += 1
        while later and later[0][1][0] <= clock:
            new, (_, other) = later.popleft()
            queue.append((new, other))
        if not job.finished:
            queue.append((index, job))
        yield index, job.output()


def serves_and_leaves_when_idle(arrivals):
    for index, output in SOLVED["serve"](arrivals):
        yield index, output
        if all(job.finished or tick for tick, job in arrivals):
            return


def _serving(arrange=None, drop=None, queue=None, looks=True):
    """`serve` with one of its thoughts changed."""

    def serve(arrivals):
        order = arrange or (lambda many: sorted(enumerate(many), key=_tick))
        later = deque(order(arrivals))
        waiting, clock = deque() if queue is None else queue, 0
        while later or waiting:
            if not waiting:
                clock = max(clock, later[0][1][0])
            while later and later[0][1][0] <= clock:
                index, (_, job) = later.popleft()
                waiting.append((index, job))
            index, job = waiting.popleft()
            if looks and job.finished:
                ticks = drop(index, job) if drop else 0
                if isinstance(ticks, tuple):
                    yield ticks
                else:
                    clock += ticks
                continue
            job.step()
            clock += 1
            yield index, job.output()
            if looks or not job.finished:
                waiting.append((index, job))

    return serve


def _tick(each):
    return each[1][0]


def _sorts_in_place(arrivals):
    jobs = [job for _, job in arrivals]
    arrivals.sort(key=lambda each: each[0])
    return [(jobs.index(job), (tick, job)) for tick, job in arrivals]


sorts_the_callers_list = _serving(_sorts_in_place)
counts_in_the_sorted_list = _serving(
    lambda many: enumerate(sorted(many, key=lambda each: each[0]))
)
later_ones_begin_backwards = _serving(
    lambda many: sorted(enumerate(many), key=lambda e: (e[1][0], e[1][0] and -e[0]))
)
a_finished_job_costs_a_tick = _serving(drop=lambda index, job: 1)
a_finished_job_gives_an_output = _serving(drop=lambda i, job: (i, job.output()))
one_queue_for_all = _serving(queue=deque())
looks_only_after_its_own_steps = _serving(looks=False)


def looks_when_it_comes(arrivals):
    """Nobody looks again at a job that waits for its next turn."""
    kept = [(tick, job) for tick, job in arrivals if not job.finished]
    places = [i for i, (_, job) in enumerate(arrivals) if not job.finished]
    for index, output in looks_only_after_its_own_steps(kept):
        yield places[index], output


def serves_a_list(arrivals):
    return list(SOLVED["serve"](arrivals))


def serves_ahead(arrivals):
    outputs = SOLVED["serve"](arrivals)
    held = next(outputs, None)
    for each in outputs:
        yield held
        held = each
    if held is not None:
        yield held


def serves_the_newest_first(arrivals):
    later = deque(sorted(enumerate(arrivals), key=lambda each: each[1][0]))
    stack, clock = [], 0
    while later or stack:
        if not stack:
            clock = max(clock, later[0][1][0])
        while later and later[0][1][0] <= clock:
            index, (_, job) = later.popleft()
            stack.append((index, job))
        index, job = stack[-1]
        job.step()
        clock += 1
        yield index, job.output()
        if job.finished:
            stack.pop()


def _speculating(
    advance=lambda new, guesses, right: len(new) - len(guesses) + right,
    accept=lambda guesses, chosen, right: guesses[right] == chosen[right],
    bonus=1,
    room=1,
    ends_in_guesses=True,
    copies=True,
    most=None,
):
    """`speculate` with one of its thoughts changed."""

    @torch.inference_mode()
    def speculate(model, prompt_token_ids, draft, max_tokens, ends):
        prompt = list(prompt_token_ids)
        cache = ContiguousKVCache(model.config, len(prompt) + max_tokens + 20)
        output, new, guesses = [], prompt, []
        while True:
            hidden = model(torch.tensor(new), cache.step(len(new)))
            rows = hidden[-1 - len(guesses) :]
            chosen = model.logits(rows).argmax(-1).tolist()
            right = 0
            while right < len(guesses) and accept(guesses, chosen, right):
                right += 1
            cache.advance(advance(new, guesses, right))
            found = chosen[: max(1, right + bonus)]
            for i, token in enumerate(found):
                output.append(token)
                last = ends_in_guesses or i == len(found) - 1
                if len(output) == max_tokens or (last and token in ends):
                    return output
            so_far = prompt + output if copies else prompt_token_ids
            if not copies:
                so_far.append(output[-1])
            guesses = list(draft(so_far))[:most]
            if room is not None:
                guesses = guesses[: max(0, max_tokens - len(output) - room)]
            new = [output[-1], *guesses]

    return speculate


keeps_wrong_guesses_in_the_cache = _speculating(
    advance=lambda new, guesses, right: len(new)
)
takes_every_guess = _speculating(accept=lambda guesses, chosen, right: True)
gives_away_the_token_for_nothing = _speculating(
    bonus=0,
    advance=lambda new, guesses, right: len(new) - len(guesses) + max(0, right - 1),
)
runs_guesses_without_room = _speculating(room=None)
looks_for_an_end_after_a_pass = _speculating(ends_in_guesses=False)
hands_out_its_own_list = _speculating(copies=False)
never_guesses = _speculating(most=0)
takes_one_guess = _speculating(most=1)
takes_nine_guesses = _speculating(most=9)


def guesses_anew_after_a_wrong_one(model, prompt_token_ids, draft, max_tokens, ends):
    """A wrong guess costs a pass of its own."""
    prompt, output = list(prompt_token_ids), []
    while True:
        guesses = list(draft(prompt + output))[: max_tokens - len(output) - 1]
        truth = suite._greedy(model, prompt + output, len(guesses) + 1)
        for token in truth[: len(guesses) + 1]:
            output.append(token)
            if token in ends or len(output) == max_tokens:
                return output


def _cut_at_an_end(output, ends):
    first = next((i for i, token in enumerate(output) if token in ends), len(output))
    return output[: first + 1]


def goes_on_behind_the_end(model, prompt_token_ids, draft, max_tokens, ends):
    output = _speculating()(model, prompt_token_ids, draft, max_tokens, ())
    return _cut_at_an_end(output, ends)


def believes_a_guessed_end(model, prompt_token_ids, draft, max_tokens, ends):
    def cut(so_far):
        guesses = draft(so_far)
        if guesses and guesses[0] in ends:
            told.append(so_far + guesses[:1])
        return guesses

    told = []
    output = _speculating()(model, prompt_token_ids, cut, max_tokens, ends)
    return told[0][len(prompt_token_ids) :] if told else output


@torch.inference_mode()
def runs_all_again_after_a_wrong_one(model, prompt, draft, max_tokens, ends):
    """No pass more, since the guesses go with it."""
    output, new, guesses = [], list(prompt), []
    cache = ContiguousKVCache(model.config, len(prompt) + max_tokens + 20)
    while True:
        hidden = model(torch.tensor(new), cache.step(len(new)))
        cache.advance(len(new))
        chosen = model.logits(hidden[-1 - len(guesses) :]).argmax(-1).tolist()
        right = 0
        while right < len(guesses) and guesses[right] == chosen[right]:
            right += 1
        for token in chosen[: right + 1]:
            output.append(token)
            if token in ends or len(output) == max_tokens:
                return output
        wrong = right < len(guesses)
        guesses = draft([*prompt, *output])[: max_tokens - len(output) - 1]
        new = [output[-1], *guesses]
        if wrong:
            cache = ContiguousKVCache(model.config, len(prompt) + max_tokens + 20)
            new = [*prompt, *output, *guesses]


def knows_one_end(model, prompt_token_ids, draft, max_tokens, ends):
    return _speculating()(model, prompt_token_ids, draft, max_tokens, ends[:1])


MUTANTS = {
    "predict_run": [
        predicts_a_pass_for_the_last, predicts_a_prefill_for_each,
        predicts_slots_that_are_used, predicts_slots_of_n, predicts_room_for_the_last,
        predicts_the_sum_without_the_end, predicts_all_of_best_of, predicts_six_steps,
        predicts_a_list, predicts_less,
    ],
    "serve": [
        serves_one_after_another, serves_in_rounds, serves_all_at_once,
        serves_newcomers_in_the_next_round, serves_newcomers_when_idle,
        serves_and_leaves_when_idle, serves_a_list,
        serves_ahead, serves_the_newest_first, serves_with_a_clock_that_adds,
        sorts_the_callers_list, counts_in_the_sorted_list, later_ones_begin_backwards,
        a_finished_job_costs_a_tick, a_finished_job_gives_an_output, one_queue_for_all,
        looks_only_after_its_own_steps, looks_when_it_comes,
    ],
    "speculate": [
        keeps_wrong_guesses_in_the_cache, takes_every_guess,
        gives_away_the_token_for_nothing, runs_guesses_without_room,
        looks_for_an_end_after_a_pass, hands_out_its_own_list, never_guesses,
        takes_one_guess, guesses_anew_after_a_wrong_one, knows_one_end,
        takes_nine_guesses, goes_on_behind_the_end, believes_a_guessed_end,
        runs_all_again_after_a_wrong_one,
    ],
}  # fmt: skip


def name_of(value):
    return next(
        (n for n, v in globals().items() if v is value),
        getattr(value, "__name__", value),
    )


@pytest.mark.parametrize(
    "name, mutant",
    [(name, mutant) for name, many in MUTANTS.items() for mutant in many],
    ids=name_of,
)
def test_the_suite_rejects(name, mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.generation_exercises(**{name: mutant})
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out


def serves_who_waits_longest(arrivals):
    """Right, without a queue."""
    last, clock = {i: tick for i, (tick, _) in enumerate(arrivals)}, 0
    while last:
        index = min(last, key=lambda i: (max(last[i], 0), i))
        there = [i for i in last if last[i] <= clock]
        if not there:
            clock = last[index]
        job = arrivals[index][1]
        if job.finished:
            del last[index]
            continue
        job.step()
        clock += 1
        last[index] = clock
        yield index, job.output()


def test_what_nothing_is_changed_in_passes(capsys):
    checks.generation_exercises(speculate=_speculating(), serve=_serving())
    checks.generation_exercises(serve=serves_who_waits_longest)
    assert "✗" not in capsys.readouterr().out


def test_a_prediction_is_judged_without_giving_it_away(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.generation_exercises(predict_run=_predicting(passes=0, slots=0))
    out = capsys.readouterr().out
    assert "another answer" in out and "30" not in out and "8" not in out
