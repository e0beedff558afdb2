"""Exercises that an engine can use: found in the notebooks, judged, shown at work.

    python -m folovllm_lite mine --with 09#serve

Each becomes a part of `my_engine` (`from my_engine.exercises import serve`), and a line
says what it is worth, counted in passes of the model.
"""

import ast
import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from folovllm_lite.mine.assembly import below_imports, from_notebook, unknown_names
from folovllm_lite.mine.notebooks import Found, MineError, is_blank, python
from folovllm_lite.mine.pieces import adds_to, lines_of, names_of

_PROMPT = "Lily went to the park. Lily went to the"
_ASKED = "Tim is in the park. Mia is by the lake. Where is Mia?"  # it repeats itself


@dataclass(frozen=True)
class Exercise:
    """One that can be plugged in: where it stands, who judges it, what it is worth."""

    lesson: int
    name: str
    suite: str
    show: Callable[[ModuleType, Any], str]


def written(exercise: Exercise, found: Found) -> str:
    """The learner's source of it, with what it uses of the notebook's other cells.

    Raises:
        MineError: the notebook isn't there, or the exercise isn't written yet.
    """
    names = [n for n in found.notebooks if n.startswith(f"{exercise.lesson:02}_")]
    if not names:
        raise MineError(f"there is no notebook {exercise.lesson:02} in {found.folder}")
    text = ""
    for source in found.cells[names[0]]:
        try:
            tree, lines = ast.parse(python(source)), python(source).splitlines()
        except MineError:
            continue
        for node in tree.body:
            if exercise.name in names_of(node) and not adds_to(node):
                first, end = lines_of(node)
                text = "" if is_blank(node) else "\n".join(lines[first:end])
    if not text:
        raise MineError(f"{exercise.name} isn't written yet in {names[0]}")
    for _ in range(20):
        missing = sorted(unknown_names(text))
        if not missing:
            return text + "\n"
        for name in missing:
            more = from_notebook(name, found.cells[names[0]])
            if more is None:
                raise MineError(
                    f"{names[0]}: {exercise.name} uses {name}, which no cell "
                    "imports or defines as a function, a class or a constant"
                )
            text = below_imports(text, [more])
    raise MineError(f"{names[0]}: {exercise.name} uses names that define each other")


def judged(exercise: Exercise, piece: Any) -> list[str]:
    """The first red block of its suite; [] when it is green."""
    from folovllm_lite import checks

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(checks.CheckFailed):
        getattr(checks, exercise.suite)(**{exercise.name: piece})
    lines = out.getvalue().splitlines()
    at = next((i for i, line in enumerate(lines) if line.startswith("✗")), None)
    if at is None:
        return []
    end = next((i for i in range(at + 1, len(lines)) if lines[i][:1] in "✓✗A"), None)
    return lines[at:end]


# ----- what each is worth


class _Passes:
    """A model and its tokenizer, and how often it has run."""

    def __init__(self, engine: ModuleType):
        from importlib import import_module

        self.part = lambda name: import_module(f"{engine.__name__}.{name}")
        loader = self.part("model_loader")
        path = loader.EMBEDDED_MODEL
        self.model = self.part("qwen3").Qwen3.from_pretrained(path, device="cpu")
        config = self.part("config").ModelConfig(str(path))
        self.tokenizer = loader.ModelLoader(config).load_tokenizer()
        self.count = 0
        self.model.register_forward_hook(self._ran)

    def _ran(self, *_: Any) -> None:
        self.count += 1

    def job(self, ids: list[int], tokens: int) -> Any:
        """A greedy Generation of exactly so many tokens."""
        params = self.part("sampling_params").SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True
        )
        request = self.part("request").Request("0", None, ids, params)
        texts = self.part("processor").TokenTexts(self.tokenizer)
        return self.part("generation").Generation(self.model, texts, request)


def _show_serve(engine: ModuleType, serve: Any) -> str:
    """Passes before the first token of each of four requests that come at once."""
    passes = _Passes(engine)
    ids = passes.tokenizer.encode(_PROMPT)

    def firsts(outputs: Any) -> list[int]:
        found: dict[int, int] = {}
        for index, _ in outputs:
            found.setdefault(index, passes.count - 1)
        return [found[index] for index in sorted(found)]

    def one_after_another() -> Any:
        for index, job in enumerate([passes.job(ids, 24) for _ in range(4)]):
            for output in job:
                yield index, output

    alone = firsts(one_after_another())
    passes.count = 0
    turns = firsts(serve([(0, passes.job(ids, 24)) for _ in range(4)]))
    return (
        "four requests at once, passes before the first token of each: "
        f"{', '.join(map(str, alone))}; with yours {', '.join(map(str, turns))}"
    )


def _show_speculate(engine: ModuleType, speculate: Any) -> str:
    """Passes of one greedy text; a guess is what its last two tokens led to before."""
    passes = _Passes(engine)
    ids = passes.tokenizer.encode(_ASKED)
    job = passes.job(ids, 48)
    while not job.finished:
        job.step()
    wanted, alone = job.output().outputs[0].token_ids, passes.count

    def draft(tokens: list[int]) -> list[int]:
        for at in range(len(tokens) - 3, -1, -1):
            if tokens[at : at + 2] == tokens[-2:]:
                return tokens[at + 2 : at + 6]
        return []

    import torch

    passes.count = 0
    with torch.inference_mode():
        found = speculate(passes.model, list(ids), draft, 48, ())
    same = "the same tokens" if found == wanted else "OTHER TOKENS"
    return f"48 tokens in {alone} passes; with yours in {passes.count}, {same}"


def _show_packed(engine: ModuleType, packed: Any) -> str:
    """Passes of four texts, each alone and all together."""
    import torch

    passes = _Passes(engine)
    cache_of = passes.part("kv_cache").ContiguousKVCache
    texts = [passes.tokenizer.encode(t) for t in ("Once", "Lily", "Tom has", "从前")]
    counts, tokens = [], []
    for together in (False, True):
        caches = [cache_of(passes.model.config, len(t) + 24) for t in texts]
        rows, passes.count = [list(t) for t in texts], 0
        groups = [[0, 1, 2, 3]] if together else [[0], [1], [2], [3]]
        for group in groups:
            new = [texts[i] for i in group]
            for _ in range(24):
                with torch.inference_mode():
                    sizes = [len(each) for each in new]
                    used = [caches[i] for i in group]
                    context = packed(used, sizes) if together else used[0].step(*sizes)
                    flat = torch.tensor([i for each in new for i in each])
                    hidden = passes.model(flat, context)
                    ends = torch.tensor(sizes).cumsum(0) - 1
                    chosen = passes.model.logits(hidden[ends]).argmax(-1).tolist()
                for i, size, token in zip(group, sizes, chosen, strict=True):
                    caches[i].advance(size)
                    rows[i].append(token)
                new = [[token] for token in chosen]
        counts.append(passes.count)
        tokens.append(rows)
    same = "the same tokens" if tokens[0] == tokens[1] else "OTHER TOKENS"
    return f"four texts in {counts[0]} passes; with yours in {counts[1]}, {same}"


def _show_priority(engine: ModuleType, priority_of: Any) -> str:
    """Steps until the first token, on average, of a crowd that two may run of."""
    from importlib import import_module

    part = lambda name: import_module(f"{engine.__name__}.{name}")  # noqa: E731
    config = part("config")
    made = part("llm").make_engine(
        config.EngineConfig(
            config.ModelConfig(str(part("model_loader").EMBEDDED_MODEL)),
            config.CacheConfig(num_gpu_blocks_override=64),
            config.SchedulerConfig(max_num_seqs=2),
        ),
        device="cpu",
    )
    sizes = [(40, 24), (40, 24), *[(4 + i % 3, 4) for i in range(10)]]  # prompt, output
    means = []
    for rule in (lambda tokens, arrival: 0, priority_of):
        for i, (prompt, new) in enumerate(sizes):
            params = part("sampling_params").SamplingParams(
                temperature=0, max_tokens=new, ignore_eos=True
            )
            ids = [2 + (7 * i + j) % 1500 for j in range(prompt)]
            made.add_request(
                str(i), {"prompt_token_ids": ids}, params, rule(prompt + new, 0)
            )
        first, steps = {}, 0
        while made.has_unfinished_requests():
            steps += 1
            for output in made.step():
                if output.outputs[0].token_ids:
                    first.setdefault(output.request_id, steps)
        means.append(sum(first.values()) / len(sizes))
    return (
        f"12 requests, two at a time: the first token after {means[0]:.1f} steps on "
        f"average; with yours {means[1]:.1f}"
    )


EXERCISES = {
    each.name: each
    for each in (
        Exercise(7, "PackedContext", "kv_cache", _show_packed),
        Exercise(9, "serve", "generation_exercises", _show_serve),
        Exercise(9, "speculate", "generation_exercises", _show_speculate),
        Exercise(10, "priority_of", "scheduling_exercises", _show_priority),
    )
}


def named(text: str) -> Exercise:
    """The exercise that is meant by `serve`, `09#serve`, `notebooks/09_….ipynb#serve`.

    Raises:
        MineError: none is.
    """
    name = text.rpartition("#")[2]
    if name not in EXERCISES:
        there = ", ".join(f"{e.lesson:02}#{e.name}" for e in EXERCISES.values())
        raise MineError(f"no exercise {text!r} to plug in; there are {there}")
    return EXERCISES[name]
