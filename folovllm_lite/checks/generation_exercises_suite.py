"""What has to be true of the exercises of notebook 09: counting, serving, guessing."""

from collections.abc import Callable, Iterator
from operator import is_
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from folovllm_lite import generation as package
from folovllm_lite.checks.harness import Suite, expect, fail, on
from folovllm_lite.checks.tiny import tiny_config
from folovllm_lite.kv_cache import ContiguousKVCache
from folovllm_lite.qwen3 import Qwen3

_SUITE = generation_exercises = Suite(
    package,
    """Judge the exercises of notebook 09: `predict_run`, `serve` and `speculate`.
    """,
)


# ----- 1. Trace


def _predicted(p: SimpleNamespace, name: str) -> Any:
    found = p.predict_run()
    if not isinstance(found, dict) or name not in found:
        fail("predict_run()", found, f"a dict with the key {name!r}")
    return found[name]


def _expect_predicted(p: SimpleNamespace, right: dict[str, Any]) -> None:
    """Compare without saying what is right: that would be the answer."""
    for name, wanted in right.items():
        got = _predicted(p, name)
        if isinstance(got, tuple):
            got = list(got)
        if got != wanted or isinstance(got, bool):
            fail(f"the puzzle's {name}", got, "another answer")


@_SUITE.property(
    "predict_run",
    hint="cross out, in each row, what comes after the end; max_tokens and a stop "
    "string end a row too",
)
def _steps(p: SimpleNamespace) -> None:
    """The number of steps is that of the longest completion."""
    _expect_predicted(p, {"steps": 5})


@_SUITE.property(
    "predict_run",
    hint="an end token is drawn like any other; where does a completion's first token "
    "come from, and who reads its last?",
)
def _work(p: SimpleNamespace) -> None:
    """The model's passes, and the tokens that it runs, are counted exactly."""
    _expect_predicted(p, {"passes": 8, "tokens": 13})


@_SUITE.property(
    "predict_run",
    hint="memory is taken when the caches are made: how many are there, and how long "
    "could each completion have become?",
)
def _slots(p: SimpleNamespace) -> None:
    """The slots of all caches together are counted, used or not."""
    _expect_predicted(p, {"slots": 30})


@_SUITE.property(
    "predict_run",
    hint="every token of a completion counts in its sum, the one that ends it too",
)
def _order(p: SimpleNamespace) -> None:
    """What is returned is the best n of best_of, the best first."""
    _expect_predicted(p, {"returned": [1, 0]})


# ----- 2. Modify


class _Job:
    """Stands in for a Generation: ends after some steps, and counts them."""

    def __init__(self, length: int, clock: list[int]):
        self.length, self.done = length, 0
        self.began: list[int] = []
        self._clock = clock

    @property
    def finished(self) -> bool:
        return self.done == self.length

    def step(self) -> None:
        if self.finished:
            fail(f"a job of {self.length} steps", "one step more", "no step at its end")
        self.began.append(self._clock[0])
        self._clock[0] += 1
        self.done += 1

    def abort(self) -> None:
        """End it where it stands."""
        self.length = self.done

    def output(self) -> tuple[int, bool]:
        return self.done, self.finished


def _served(
    p: SimpleNamespace, *plan: tuple[int, int], most: int = 200
) -> tuple[list[tuple[int, Any]], list[_Job]]:
    """What `serve` yields for jobs given as (tick, steps), and the jobs."""
    clock = [0]
    jobs = [_Job(length, clock) for _, length in plan]
    arrivals = [(tick, job) for (tick, _), job in zip(plan, jobs, strict=True)]
    found, given = [], list(arrivals)
    with on(f"serve of jobs (tick, steps): {list(plan)}"):
        for each in p.serve(given):
            found.append(each)
            if len(found) > most:
                given = f"serve of jobs (tick, steps): {list(plan)}"
                fail(given, f"more than {most} outputs", "an end")
    same = len(given) == len(arrivals) and all(map(is_, given, arrivals))
    expect(f"jobs (tick, steps) {list(plan)}: arrivals is as it was", same, True)
    return found, jobs


@_SUITE.property("serve", hint="yield (index, job.output()) after each step of a job")
def _every_output(p: SimpleNamespace) -> None:
    """Every step of every job gives its output once, in the job's own order."""
    for plan in (
        [(0, 1)],
        [(0, 2), (0, 3)],
        [(0, 3), (1, 1), (2, 2)],
        [],
        [(4, 2), (0, 3), (2, 1)],
    ):
        found, _ = _served(p, *plan)
        given = f"jobs (tick, steps) {plan}: the outputs"
        for index, (_, length) in enumerate(plan):
            wanted = [(done, done == length) for done in range(1, length + 1)]
            got = [output for i, output in found if i == index]
            expect(f"{given} of job {index} as (steps, finished)", got, wanted)
        total = sum(length for _, length in plan)
        expect(f"{given}, how many", len(found), total)


@_SUITE.property(
    "serve", hint="look at a job when its turn comes, not only after its own steps"
)
def _ended(p: SimpleNamespace) -> None:
    """A job that is finished when its turn comes leaves without a step or an output,
    and the clock stands.
    """
    for plan, wanted in (
        ([(0, 0)], []),
        ([(0, 0), (0, 2)], [1, 1]),
        ([(0, 1), (1, 0), (5, 1)], [0, 2]),
    ):
        found, _ = _served(p, *plan)
        given = f"jobs (tick, steps) {plan}: whose turn it is"
        expect(given, [index for index, _ in found], wanted)
    # Were a tick spent on each of the first three, job 4 would be stepped too early.
    plan = [(0, 0), (0, 0), (0, 0), (0, 3), (2, 1)]
    _, jobs = _served(p, *plan)
    given = f"jobs (tick, steps) {plan}: job 4 is stepped before its tick"
    expect(given, jobs[4].began[0] < 2, False)
    clock = [0]
    jobs = [_Job(4, clock), _Job(4, clock)]
    turns = []
    for index, _ in p.serve([(0, jobs[0]), (0, jobs[1])]):
        turns.append(index)
        if len(turns) == 3:  # job 1 waits for its second turn
            jobs[1].abort()
    given = "two jobs of 4 steps, job 1 is aborted after the third: whose turn it is"
    expect(given, turns, [0, 1, 0, 0, 0])


@_SUITE.property(
    "serve",
    hint="who was just served goes to the end of a queue; who is done leaves it",
)
def _turns(p: SimpleNamespace) -> None:
    """Of jobs that come together, none gets a second step before all had one."""
    for lengths, wanted in (
        ((2, 2), [0, 1, 0, 1]),
        ((3, 1, 2), [0, 1, 2, 0, 2, 0]),
        ((1, 4, 1), [0, 1, 2, 1, 1, 1]),
    ):
        found, _ = _served(p, *((0, length) for length in lengths))
        given = f"jobs of {', '.join(map(str, lengths))} steps: whose turn it is"
        expect(given, [index for index, _ in found], wanted)
    for plan in ([(0, 6), (2, 2), (2, 2)], [(3, 1), (0, 5), (3, 2), (3, 1)]):
        found, _ = _served(p, *plan)
        turns = [index for index, _ in found]
        late = [i for i, (tick, _) in enumerate(plan) if tick]
        given = f"jobs (tick, steps) {plan}: who comes together begins in the order"
        expect(given, sorted(late, key=turns.index), late)


@_SUITE.property(
    "serve",
    hint="ask before each step who is there by now; the list needn't be in the order "
    "of the ticks",
)
def _not_early(p: SimpleNamespace) -> None:
    """No job is stepped before the tick at which it comes."""
    for plan in ([(0, 5), (3, 2)], [(2, 1), (0, 4)], [(0, 2), (1, 2), (3, 1)]):
        _, jobs = _served(p, *plan)
        for index, ((tick, _), job) in enumerate(zip(plan, jobs, strict=True)):
            if job.began[0] < tick:
                given = f"jobs (tick, steps) {plan}: the first step of job {index}"
                fail(given, f"at tick {job.began[0]}", f"not before tick {tick}")


@_SUITE.property(
    "serve",
    hint="look for newcomers before every step, not only when the queue is empty or a "
    "round is over",
)
def _not_late(p: SimpleNamespace) -> None:
    """A newcomer waits only for jobs that were there when it came, for one step of each
    at most.
    """
    for plan in (
        [(0, 9), (1, 2)],
        [(0, 9), (0, 9), (4, 1)],
        [(0, 6), (0, 6), (0, 6), (2, 2), (3, 2)],
    ):
        _, jobs = _served(p, *plan)
        for index, ((tick, _), job) in enumerate(zip(plan, jobs, strict=True)):
            waited = job.began[0] - tick
            others = sum(other <= tick for other, _ in plan) - 1
            if waited > others:
                given = f"jobs (tick, steps) {plan}: job {index} waits"
                fail(given, f"{waited} steps", f"at most {others}")


@_SUITE.property(
    "serve", hint="with an empty queue, set the clock to the tick of the next arrival"
)
def _idle(p: SimpleNamespace) -> None:
    """When nobody is there, the clock jumps to the next arrival."""
    for plan in ([(7, 1)], [(0, 1), (50, 2)], [(9, 2), (3, 1), (9, 1)]):
        found, _ = _served(p, *plan)
        given = f"jobs (tick, steps) {plan}: how many outputs"
        expect(given, len(found), sum(length for _, length in plan))
    plan = [(5, 3), (30, 4), (32, 1)]
    found, _ = _served(p, *plan)
    turns = [index for index, _ in found]
    if turns.index(2) not in (5, 6):  # job 1 has had two or three steps
        given = f"jobs (tick, steps) {plan}: whose turn it is"
        fail(given, turns, "2 at tick 32 or 33, which are the 6th and the 7th turn")


@_SUITE.property("serve", hint="a generator: yield inside the loop, collect nothing")
def _lazy(p: SimpleNamespace) -> None:
    """Nothing is computed before it is asked for."""
    clock = [0]
    jobs = [_Job(3, clock), _Job(3, clock)]
    outputs = iter(p.serve([(0, jobs[0]), (0, jobs[1])]))
    expect("two jobs, no output taken: steps made", clock[0], 0)
    for taken in (1, 2, 3):
        next(outputs)
        expect(f"two jobs, {taken} outputs taken: steps made", clock[0], taken)
    left, turns = [job.done for job in jobs], []
    for index, _ in p.serve([(0, _Job(1, [0]))]):  # the first is never taken to its end
        turns.append(index)
    given = "a job of 1 step, while another serve waits: whose turn it is"
    expect(given, turns, [0])
    expect("... and the jobs of the other: steps", [job.done for job in jobs], left)


# ----- 3. Design


def _tiny() -> Qwen3:
    """A random model of two layers and 24 tokens, the same every time."""
    config = tiny_config(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=2,
        head_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = Qwen3(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(0, 0.5)
    return model.requires_grad_(False).eval()


@torch.inference_mode()
def _greedy(model: Qwen3, prompt: list[int], count: int) -> list[int]:
    """The oracle: one pass for each token, and no ends."""
    cache = ContiguousKVCache(model.config, len(prompt) + count)
    new, found = list(prompt), []
    while len(found) < count:
        hidden = model(torch.tensor(new), cache.step(len(new)))
        cache.advance(len(new))
        new = [int(model.logits(hidden[-1]).argmax())]
        found += new
    return found


class _Counted:
    """How many tokens each pass of the model had."""

    def __init__(self, model: Qwen3):
        self.passes: list[int] = []
        self._hook = model.register_forward_hook(self._note)

    def _note(self, module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.passes.append(len(args[0]))

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


_PROMPTS = ([3], [5, 1, 7, 2], [9, 9, 4])
_NOTHING: Callable[[list[int]], list[int]] = lambda so_far: []  # noqa: E731


def _oracle_draft(
    prompt: list[int], truth: list[int], width: int, wrong_at: int | None = None
) -> Callable[[list[int]], list[int]]:
    """Guess the next `width` tokens right, but for every wrong_at-th guess."""

    def draft(so_far: list[int]) -> list[int]:
        done = len(so_far) - len(prompt)
        guesses = truth[done : done + width]
        if wrong_at is None:
            return list(guesses)
        return [
            (token + 1) % 24 if i % wrong_at == wrong_at - 1 else token
            for i, token in enumerate(guesses)
        ]

    return draft


def _drafts(
    prompt: list[int], truth: list[int]
) -> Iterator[tuple[str, Callable[[list[int]], list[int]]]]:
    yield "no guess at all", _NOTHING
    yield "3 wrong guesses", _oracle_draft(prompt, truth, 3, wrong_at=1)
    yield "3 right guesses", _oracle_draft(prompt, truth, 3)
    yield "1 right, then 1 wrong", _oracle_draft(prompt, truth, 2, wrong_at=2)
    yield "2 right, then 1 wrong, and so on", _oracle_draft(prompt, truth, 5, 3)
    yield "always token 0, six times", lambda so_far: [0] * 6


@_SUITE.property(
    "speculate",
    hint="a guess counts only if the model chose it; after the first wrong one nothing "
    "of the guesses may stay, neither in the output nor in the cache",
)
def _same_tokens(p: SimpleNamespace) -> None:
    """The tokens are those of the plain greedy loop, whatever is guessed."""
    model = _tiny()
    for prompt in _PROMPTS:
        truth = _greedy(model, prompt, 40)
        for name, draft in _drafts(prompt, truth):
            for count in (1, 2, 12):
                given = f"prompt {prompt}, max_tokens {count}, {name}"
                with torch.inference_mode(), on(given):
                    got = p.speculate(model, list(prompt), draft, count, ())
                expect(given, got, truth[:count])


@_SUITE.property(
    "speculate",
    hint="one pass over the last token and k guesses gives k + 1 rows of logits: the "
    "row after the last right guess is a token for nothing",
)
def _fewer_passes(p: SimpleNamespace) -> None:
    """Right guesses and a token come out of one pass; wrong ones cost no pass."""
    model = _tiny()
    prompt, count = _PROMPTS[1], 13
    truth = _greedy(model, prompt, 40)
    for name, draft, wanted in (
        ("no guess at all", _NOTHING, 13),
        ("3 wrong guesses", _oracle_draft(prompt, truth, 3, 1), 13),
        ("1 right guess", _oracle_draft(prompt, truth, 1), 7),
        ("3 right guesses", _oracle_draft(prompt, truth, 3), 4),
        ("1 right, then 1 wrong", _oracle_draft(prompt, truth, 2, 2), 7),
        ("12 right guesses", _oracle_draft(prompt, truth, 12), 2),
    ):
        given = f"13 tokens, each time {name}"
        with _Counted(model) as counted, torch.inference_mode(), on(given):
            p.speculate(model, list(prompt), draft, count, ())
        got = len(counted.passes)
        if got > wanted:
            fail(given, f"{got} passes", f"{wanted} passes, the prefill among them")


@_SUITE.property(
    "speculate",
    hint="an end may stand in the middle of right guesses: nothing comes after it",
)
def _ends(p: SimpleNamespace) -> None:
    """The first end token is the last of the output, also inside a run of guesses."""
    model = _tiny()
    prompt = _PROMPTS[1]
    truth = _greedy(model, prompt, 40)
    for end in dict.fromkeys(truth[:8]):
        wanted = truth[: truth.index(end) + 1]
        for name, draft in (
            ("no guess", _NOTHING),
            ("5 right guesses", _oracle_draft(prompt, truth, 5)),
            (f"always guesses {end}", lambda so_far, end=end: [end] * 3),
        ):
            given = f"prompt {prompt}, ends ({end},), {name}"
            with torch.inference_mode(), on(given):
                got = p.speculate(model, list(prompt), draft, 30, (end,))
            expect(given, got, wanted)
    ends = (truth[4], truth[2])
    at = min(truth.index(end) for end in ends)
    given = f"prompt {prompt}, ends {ends}, 5 right guesses"
    with torch.inference_mode(), on(given):
        draft = _oracle_draft(prompt, truth, 5)
        got = p.speculate(model, list(prompt), draft, 30, ends)
    expect(given, got, truth[: at + 1])


@_SUITE.property(
    "speculate",
    hint="the draft wants to know everything so far, prompt and output, in a list that "
    "may be spoilt",
)
def _draft_sees_all(p: SimpleNamespace) -> None:
    """The draft gets all tokens so far; what it does to its list harms nobody."""
    model, seen = _tiny(), []
    prompt = _PROMPTS[1]
    truth = _greedy(model, prompt, 6)

    def draft(so_far: list[int]) -> list[int]:
        seen.append(list(so_far))
        so_far.append(0)
        return []

    mine = list(prompt)
    with torch.inference_mode(), on("a draft that appends to its list, and guesses []"):
        got = p.speculate(model, mine, draft, 6, ())
    expect("a draft that appends to its list: the tokens", got, truth)
    expect("a draft that appends to its list: the caller's prompt", mine, prompt)
    for tokens in seen:
        wanted = (prompt + truth)[: max(len(tokens), len(prompt))]
        expect("what the draft was given", tokens, wanted)


def _expect_no_waste(
    p: SimpleNamespace,
    given: str,
    guess: Callable[[list[int]], list[int]],
    truth: list[int],
    count: int,
    ends: tuple[int, ...],
) -> None:
    """A pass for the prompt and one after each draft, over what nobody has run yet.

    Wrong guesses are run, once; what is known already isn't run again.
    """
    model, prompt, guessed = _tiny(), _PROMPTS[1], []

    def draft(so_far: list[int]) -> list[int]:
        room = max(0, count - (len(so_far) - len(prompt)) - 1)
        guessed.append(min(len(guesses := guess(so_far)), room))
        return guesses

    with _Counted(model) as counted, torch.inference_mode(), on(given):
        output = p.speculate(model, list(prompt), draft, count, ends)
    passes, done = 1, 1
    while done < len(output):
        guesses, right = guess(prompt + output[:done]), 0
        while right < len(guesses) and guesses[right] == truth[done + right]:
            right += 1
        passes, done = passes + 1, done + right + 1
    if len(counted.passes) > passes:
        fail(given, f"{len(counted.passes)} passes", f"at most {passes}")
    most = len(prompt) + len(counted.passes) - 1 + sum(guessed)
    if sum(counted.passes) > most:
        fail(given, f"{sum(counted.passes)} tokens run", f"at most {most}")


@_SUITE.property(
    "speculate",
    hint="every token is run once; and a pass over k guesses can give k + 1 tokens: "
    "how many are still wanted?",
)
def _no_waste(p: SimpleNamespace) -> None:
    """Nothing is run twice, nor a pass after the end, nor guesses that max_tokens
    leaves no room for.
    """
    model = _tiny()
    prompt = _PROMPTS[1]
    truth = _greedy(model, prompt, 40)
    for count, width in ((2, 9), (5, 9), (7, 3)):
        given = f"prompt of 4, max_tokens {count}, {width} right guesses each time"
        with _Counted(model) as counted, torch.inference_mode(), on(given):
            draft = _oracle_draft(prompt, truth, width)
            p.speculate(model, list(prompt), draft, count, ())
        most = len(prompt) + count - 1
        if sum(counted.passes) > most:
            fail(given, f"{sum(counted.passes)} tokens run", f"at most {most}")
    for name, guess in _drafts(prompt, truth):
        for count, ends in ((9, ()), (30, (truth[7],))):
            given = f"prompt of 4, max_tokens {count}, ends {ends}, {name}"
            _expect_no_waste(p, given, guess, truth, count, ends)
