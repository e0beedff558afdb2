"""A scheduler without a model: who computes what in which step, and its explorer.

`run_schedule` drives any scheduler that has the verbs of `folovllm_lite.scheduler`, a
learner's too, with jobs that know how many tokens they will have. Nothing is computed,
so hundreds of steps take a moment.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from folovllm_lite import viz
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.prefix_cache import PrefixCache
from folovllm_lite.request import Sequence as Seq
from folovllm_lite.request import SequenceData, SequenceStatus
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import (
    Scheduler,
    as_they_came,
    chunk,
    decodes_first,
    whole,
)
from folovllm_lite.widgets.dials import beside, framed, narrow, spoken
from folovllm_lite.widgets.schedule_picture import draw_schedule


@dataclass(frozen=True)
class Job:
    """A request as the scheduler sees it: counts of tokens.

    Args:
        name: one letter, as a rule.
        prompt: its tokens.
        output: tokens that it generates.
        arrival: the step before which it comes, counted from 1.
        priority: lower goes first.
        shared: so many tokens of its prompt are those of every other job's.
        n: completions of its prompt. It is computed once; then the others are forked,
            and are jobs of their own: A2 and A3 beside A.
    """

    name: str
    prompt: int
    output: int
    arrival: int = 1
    priority: int = 0
    shared: int = 0
    n: int = 1


@dataclass
class StepRecord:
    """One step: what each job did, and how much there was of it.

    `kinds` by job is "waiting", "prefill", "chunk" (a part of a prompt), "decode",
    "preempted", "idle" (it runs, and gets nothing), "fork" (it begins beside the job
    whose prompt was computed) or "done"; a job that hasn't come has none. `counts` are
    the tokens computed, `starts` the first of each.
    """

    number: int
    kinds: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, list[int]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(self.counts.values())


@dataclass
class Schedule:
    """A whole run: the jobs, and the steps until all were done."""

    jobs: list[Job]
    steps: list[StepRecord]
    budget: int | None = None

    def first_token(self, name: str) -> int:
        """The step that gives a job its first token; its decodes come after it."""
        begun = [s.number for s in self.steps if s.kinds.get(name) == "decode"]
        last = self._busy(name)
        at = begun[0] if begun else last[-1] + 1
        return max(number for number in last if number < at)

    def last_token(self, name: str) -> int:
        """The step that gives a job its last token."""
        return self._busy(name)[-1]

    def _busy(self, name: str) -> list[int]:
        """The steps that work for a job, the one that forks it among them."""
        return [
            s.number
            for s in self.steps
            if name in s.counts or s.kinds.get(name) == "fork"
        ]

    def preemptions(self) -> int:
        """How often a job lost its memory."""
        return sum("preempted" in step.kinds.values() for step in self.steps)


def run_schedule(
    jobs: Sequence[Job],
    scheduler: Any,
    each_step: Callable[[Any], None] | None = None,
    most: int = 1000,
) -> Schedule:
    """Serve jobs to the end.

    Args:
        jobs: in any order.
        scheduler: new; anything with `add`, `schedule`, `advance` and `remove`, and
            `fork` if a job has several completions.
        each_step: is called with the scheduler after every step, to check it.
        most: steps after which nothing good is expected any more.

    Raises:
        RuntimeError: after `most` steps, with who is still there.
    """
    live: dict[str, tuple[Seq, Job]] = {}
    done: set[str] = set()
    every = [one for job in jobs for one in (job, *_others(job))]
    made = Schedule(every, [], scheduler.config.max_num_batched_tokens)
    coming = sorted(enumerate(jobs), key=lambda each: each[1].arrival)
    number = 0
    while coming or live:
        number += 1
        if number > most:
            raise RuntimeError(f"after {most} steps there are still {sorted(live)}")
        while coming and coming[0][1].arrival <= number:
            index, job = coming.pop(0)
            live[job.name] = _sequence(job, index), job
            scheduler.add(live[job.name][0])
        step = scheduler.schedule()
        record = StepRecord(number)
        work = step.work.values() if isinstance(step.work, dict) else step.work
        lost = {seq.seq_id for seq in step.preempted}
        for job in every:
            if job.name in done:
                record.kinds[job.name] = "done"
            elif job.name in live:
                seq = live[job.name][0]
                running = seq.status is SequenceStatus.RUNNING
                kind = "idle" if running else "waiting"
                record.kinds[job.name] = "preempted" if job.name in lost else kind
        for each in work:
            seq, name = each.seq, each.seq.seq_id
            record.counts[name], record.starts[name] = each.end - each.start, each.start
            kind = "prefill" if each.end == seq.get_len() else "chunk"
            one = each.end - each.start == 1 and seq.get_output_len() > 0
            record.kinds[name] = "decode" if one and kind == "prefill" else kind
            record.blocks[name] = list(seq.block_ids)
        scheduler.advance(step)
        ready = [each.seq for each in work if not each.seq.num_missing]
        for seq in list(ready):
            if seq.width > 1:
                for child, one in _forked(seq, live[seq.seq_id][1]):
                    scheduler.fork(seq, child)
                    live[one.name], record.kinds[one.name] = (child, one), "fork"
                    ready.append(child)
        for seq in ready:
            job = live[seq.seq_id][1]
            seq.add_token_id(1)
            if seq.get_output_len() == job.output:
                seq.move_to(SequenceStatus.FINISHED_LENGTH_CAPPED)
                scheduler.remove(seq)
                del live[job.name]
                done.add(job.name)
        made.steps.append(record)
        if each_step is not None:
            each_step(scheduler)
    return made


def _sequence(job: Job, index: int) -> Seq:
    own = 1000 * (index + 1)
    ids = [*range(job.shared), *range(own + job.shared, own + job.prompt)]
    order = (job.priority, index, 0)
    data = SequenceData(ids)
    return Seq(job.name, job.name, data, SamplingParams(), order=order, width=job.n)


def _others(job: Job) -> list[Job]:
    """The jobs of a prompt's other completions."""
    return [replace(job, name=f"{job.name}{i + 1}", n=1) for i in range(1, job.n)]


def _forked(parent: Seq, job: Job) -> list[tuple[Seq, Job]]:
    """The other completions of a prompt that has just been computed."""
    parent.width, found = 1, []
    for index, one in enumerate(_others(job), start=1):
        child = parent.fork(one.name)
        child.order = (*parent.order[:2], index)
        found.append((child, one))
    return found


def run_static(jobs: Sequence[Job], num_seqs: int) -> Schedule:
    """The same jobs in static batches: `num_seqs` at a time, in order of arrival.

    A batch begins when all of it is there and the one before it has ended. Its prompts
    are computed in one step; who is done keeps its place, idle, until all are.
    """
    order = sorted(jobs, key=lambda job: job.arrival)
    steps: list[StepRecord] = []

    def record() -> StepRecord:
        made = StepRecord(len(steps) + 1)
        for job in jobs:
            if job.name in done:
                made.kinds[job.name] = "done"
            elif job.arrival <= made.number:
                made.kinds[job.name] = "waiting"
        steps.append(made)
        return made

    done: set[str] = set()
    for at in range(0, len(order), num_seqs):
        batch = order[at : at + num_seqs]
        while len(steps) + 1 < max(job.arrival for job in batch):
            record()
        for turn in range(max(job.output for job in batch)):
            now = record()
            for job in batch:
                now.kinds[job.name] = "idle"
                if turn < job.output:
                    now.kinds[job.name] = "decode" if turn else "prefill"
                    now.counts[job.name] = 1 if turn else job.prompt
                    now.starts[job.name] = job.prompt + turn - 1 if turn else 0
        done |= {job.name for job in batch}
    return Schedule(list(jobs), steps)


DEMO = (
    Job("A", 6, 5),
    Job("B", 3, 9),
    Job("C", 10, 4, 2),
    Job("D", 2, 6, 3),
    Job("E", 5, 3, 4),
    Job("F", 8, 5, 5),
)


class SchedulerExplorer:
    """Turn the dials of a scheduler and see who computes what in which step.

    Args:
        jobs: who comes when.
        budget, seqs, blocks, block_size: where the dials stand at first: tokens a step,
            sequences at once, and the memory.
        chunked, caching: prompts may be cut; what begins alike is found.
        scheduler: the class to look at; a learner's, for instance.

    Everything can be reached with Tab and turned with the arrow keys or the space bar.
    """

    def __init__(
        self,
        jobs: Sequence[Job] = DEMO,
        budget: int = 16,
        seqs: int = 4,
        blocks: int = 16,
        block_size: int = 4,
        chunked: bool = False,
        caching: bool = False,
        scheduler: type = Scheduler,
    ):
        import ipywidgets as w

        self.jobs, self.block_size, self.scheduler = list(jobs), block_size, scheduler
        need = max(-(-(job.prompt + job.output) // block_size) for job in jobs)
        self.budget = w.IntSlider(
            value=budget, min=1, max=32, description="Tokens a step", **narrow()
        )
        self.seqs = w.IntSlider(
            value=seqs, min=1, max=len(self.jobs), description="Sequences at once",
            **narrow(),
        )  # fmt: skip
        self.blocks = w.IntSlider(
            value=blocks, min=need, max=max(32, blocks),
            description=f"Memory, in blocks of {block_size} tokens", **narrow(),
        )  # fmt: skip
        self.gap = w.IntSlider(
            value=1,
            min=0,
            max=4,
            description="Steps between arrivals, times",
            **narrow(),
        )
        self.chunked = w.Checkbox(
            value=chunked, indent=False, description="Prompts may be cut"
        )
        self.caching = w.Checkbox(
            value=caching, indent=False, description="Prefixes are cached"
        )
        self.figure, self.status = w.HTML(), w.HTML()
        dials = [self.budget, self.seqs, self.blocks, self.gap]
        ticks = [self.chunked, self.caching]
        for dial in (*dials, *ticks):
            dial.observe(lambda _: self._show(), "value")
        controls = [*dials, *ticks, self.status]
        self.box = beside(controls, self.figure)
        self.schedule: Schedule | None = None
        self._show()

    def run(self) -> Schedule:
        """Serve the jobs as the dials say.

        Raises:
            ValueError: a prompt that is never computed: it may not be cut, and is
                longer than a step.
        """
        budget, chunked = self.budget.value, self.chunked.value
        longest = max(self.jobs, key=lambda job: job.prompt + job.output)
        # A preempted one comes back with what it has generated.
        most = longest.prompt + longest.output - 1
        if budget < most and not chunked:
            raise ValueError(
                f"{longest.name} may have to compute {most} tokens at once, if it is "
                f"preempted; a step has {budget}: allow more, or let prompts be cut"
            )
        count, size = self.blocks.value, self.block_size
        free = PrefixCache(count, size) if self.caching.value else None
        made = self.scheduler(
            SchedulerConfig(budget, self.seqs.value, enable_chunked_prefill=chunked),
            BlockManager(count, size, free),
            chunk if chunked else whole,
            decodes_first if chunked else as_they_came,
        )
        jobs = [
            replace(job, arrival=1 + (job.arrival - 1) * self.gap.value)
            for job in self.jobs
        ]
        return run_schedule(jobs, made)

    def _show(self) -> None:
        try:
            self.schedule = self.run()
        except ValueError as error:
            self.status.value = spoken(f"{error}.")
            return
        steps, lost = len(self.schedule.steps), self.schedule.preemptions()
        self.status.value = spoken(f"{steps} steps, {lost} preemptions.")
        self.figure.value = framed(self.picture)

    @property
    def picture(self) -> viz.Picture:
        """The timeline, as a picture and as text."""
        return draw_schedule(self.schedule)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict:
        """The widget, and for pages without a kernel its picture and its text."""
        picture = self.picture
        still = {"image/svg+xml": picture.svg, "text/plain": picture.text}
        return {**self.box._repr_mimebundle_(**kwargs), **still}

    def __repr__(self) -> str:
        return self.picture.text
