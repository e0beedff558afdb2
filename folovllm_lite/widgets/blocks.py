"""A pool of blocks without a model: who holds which block after each step.

The jobs are served by the real scheduler over a real `BlockManager`, a learner's too;
`watch_blocks` looks at the pool when a step is planned and counted, before whoever is
done gives its blocks back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from folovllm_lite import viz
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.scheduler import Scheduler
from folovllm_lite.widgets.dials import beside, framed, narrow, spoken
from folovllm_lite.widgets.pool_picture import PoolView, draw_pool, view_pool
from folovllm_lite.widgets.schedule import Job, Schedule, run_schedule


@dataclass(frozen=True)
class PoolStep:
    """A step as the pool sees it: what is held, what is moved, who does what."""

    number: int
    view: PoolView
    moves: tuple[tuple[str, int, int], ...]
    computed: dict[str, int]
    preempted: tuple[str, ...]
    waiting: tuple[str, ...]

    @property
    def said(self) -> str:
        """The step in a line."""
        parts = [f"{name} {count}" for name, count in self.computed.items()]
        words = [f"tokens computed: {', '.join(parts) or 'none'}"]
        signs = {"copy": "copied {} → {}", "out": "{} → CPU {}", "in": "CPU {} → {}"}
        if self.moves:
            moves = [signs[kind].format(a, b) for kind, a, b in self.moves]
            words.append(f"blocks moved: {', '.join(moves)}")
        if self.preempted:
            words.append(f"preempted: {', '.join(self.preempted)}")
        if self.waiting:
            words.append(f"waiting: {', '.join(self.waiting)}")
        return "; ".join(words)


class _Watched:
    """A scheduler that is looked at whenever its step has been counted."""

    def __init__(self, scheduler: Any, look: Callable[[Any], None]):
        self._scheduler, self._look = scheduler, look

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def advance(self, step: Any) -> None:
        self._scheduler.advance(step)
        self._look(step)


def watch_blocks(
    jobs: Sequence[Job], scheduler: Any, most: int = 1000
) -> tuple[Schedule, list[PoolStep]]:
    """Serve jobs to the end, and look at the pool after each step.

    Args:
        jobs: in any order; a job with n > 1 is forked.
        scheduler: new, over a pool of blocks.
        most: steps after which RuntimeError is raised.
    """
    found: list[PoolStep] = []
    every = [f"{job.name}{i + 1 if i else ''}" for job in jobs for i in range(job.n)]

    def look(step: Any) -> None:
        work = {name: each.end - each.start for name, each in step.work.items()}
        found.append(
            PoolStep(
                len(found) + 1,
                view_pool(scheduler.memory, every),
                tuple(step.moves),
                work,
                tuple(seq.seq_id for seq in step.preempted),
                tuple(seq.seq_id for seq in scheduler.waiting),
            )
        )

    return run_schedule(jobs, _Watched(scheduler, look), most=most), found


def draw_blocks(step: PoolStep, steps: int) -> viz.Picture:
    """The pool after a step."""
    return draw_pool(step.view, f"after step {step.number} of {steps}", step.said)


DEMO = (
    Job("A", 6, 6),
    Job("B", 5, 9),
    Job("C", 9, 4, arrival=2),
    Job("D", 3, 7, arrival=4),
)


class BlockExplorer:
    """Turn the dials of a pool of blocks, and go through its steps.

    Args:
        jobs: who comes when; the first is the one that may have several completions.
        blocks, block_size, swap: where the dials stand at first.
        n: completions of the first job.
        step: that is shown at first.
        memory: the class to look at; a learner's, for instance.

    Everything can be reached with Tab and turned with the arrow keys.
    """

    def __init__(
        self,
        jobs: Sequence[Job] = DEMO,
        blocks: int = 12,
        block_size: int = 4,
        swap: int = 0,
        n: int = 2,
        step: int = 1,
        memory: type = BlockManager,
    ):
        import ipywidgets as w

        self.jobs, self.memory = list(jobs), memory
        sizes = sorted({1, 2, 4, 8, 16, block_size})
        self.blocks = w.IntSlider(
            value=blocks, min=1, max=max(24, blocks), description="Blocks of the pool",
            **narrow(),
        )  # fmt: skip
        self.block_size = w.SelectionSlider(
            options=sizes, value=block_size, description="Tokens a block holds",
            **narrow(),
        )  # fmt: skip
        self.n = w.IntSlider(
            value=n, min=1, max=max(4, n),
            description=f"Completions of {self.jobs[0].name}", **narrow(),
        )  # fmt: skip
        self.swap = w.IntSlider(
            value=swap, min=0, max=max(8, swap), description="Blocks of CPU memory",
            **narrow(),
        )  # fmt: skip
        self.step = w.IntSlider(value=1, min=1, max=1, description="Step", **narrow())
        self.figure, self.status = w.HTML(), w.HTML()
        self.steps: list[PoolStep] = []
        self.schedule: Schedule | None = None
        for dial in (self.blocks, self.block_size, self.n, self.swap):
            dial.observe(lambda _: self._serve(), "value")
        self.step.observe(lambda _: self._show(), "value")
        # The order of the Tab key is the order in this list.
        dials = [self.step, self.blocks, self.block_size, self.n, self.swap]
        self.box = beside([*dials, self.status], self.figure)
        self._serve()
        self.step.value = step

    def run(self) -> tuple[Schedule, list[PoolStep]]:
        """Serve the jobs as the dials say.

        Raises:
            ValueError: a job that is larger than the pool.
        """
        count, size = self.blocks.value, self.block_size.value
        pool = self.memory(count, size, num_swap_blocks=self.swap.value)
        longest = max(self.jobs, key=lambda job: job.prompt + job.output)
        need = longest.prompt + longest.output - 1  # a last token is never stored
        if need > pool.capacity:
            raise ValueError(
                f"{longest.name} has to keep {need} tokens, and {count} blocks of "
                f"{size} have room for {pool.capacity}: allow more"
            )
        config = SchedulerConfig(64, len(self.jobs) + 3)
        first = replace(self.jobs[0], n=self.n.value)
        return watch_blocks([first, *self.jobs[1:]], Scheduler(config, pool))

    def _serve(self) -> None:
        try:
            self.schedule, self.steps = self.run()
        except ValueError as error:
            self.status.value = spoken(f"{error}.")
            return
        self.step.max = len(self.steps)  # moves the dial back if it has to
        self._show()

    def _show(self) -> None:
        if not self.steps:
            return
        lost = sum(len(step.preempted) for step in self.steps)
        moved = [move[0] for step in self.steps for move in step.moves]
        said = [
            f"{len(self.steps)} steps in all",
            f"sequences preempted: {lost}",
            f"blocks copied: {moved.count('copy')}",
            f"swapped out: {moved.count('out')}",
        ]
        self.status.value = spoken(f"{'; '.join(said)}.")
        self.figure.value = framed(self.picture)

    @property
    def picture(self) -> viz.Picture:
        """The pool after the step that the dial shows, as a picture and as text."""
        return draw_blocks(self.steps[self.step.value - 1], len(self.steps))

    def _repr_mimebundle_(self, **kwargs: Any) -> dict:
        """The widget, and for pages without a kernel its picture and its text."""
        picture = self.picture
        still = {"image/svg+xml": picture.svg, "text/plain": picture.text}
        return {**self.box._repr_mimebundle_(**kwargs), **still}

    def __repr__(self) -> str:
        return self.picture.text
