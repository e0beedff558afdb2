"""The first ✗ is about the mistake, and so is its hint; what raises tells the input.

Every wrong answer here once had a first ✗ that spoke of something else.
"""

import pytest
import torch

from folovllm_lite import (
    block_manager,
    checks,
    generation,
    kv_cache,
    prefix_cache,
    processor,
    sampler,
    scheduler,
)
from folovllm_lite.attention import attention
from tests.checks.mutants import mutant, red, solutions

PIECES = {
    sampler: ("filter_logits",),
    processor: ("TokenTexts", "ByteDetokenizer", "OutputBuilder"),
    generation: ("generate", "Generation", "RequestState"),
    kv_cache: ("ContiguousKVCache",),
    scheduler: ("Scheduler",),
    prefix_cache: ("PrefixCache",),
}
_TABLE = (
    "(p.temperature, p.min_p, min(p.top_k, V), p.top_p) if p.temperature else off",
    "(p.temperature, p.min_p, min(p.top_k, V), p.top_p)",
)
_FINISHED = (
    "            if self.finished:\n"
    "                self.metrics.finished_time = time.time()"
)
_VICTIM = "        seq = self.running.pop()\n"

# the module, its edits, the first red property, and a word of its hint
WRONG = {
    "a_greedy_row_beside_a_drawn_one_is_divided": (
        sampler, [_TABLE], "_greedy_rows", "dividing by 0"),
    "the_last_allowed_token_ends_for_length": (
        processor,
        [("        if self.finish_reason is None and len(self.token_ids) >=",
          "        if len(self.token_ids) >=")],
        "_last_allowed", "which is looked at last"),
    "an_unfinished_character_is_dropped": (
        processor,
        [('return self._decoder.decode(b"", final=True)', 'return ""')],
        "_dropped", "finish()"),
    "min_tokens_are_for_tokens_only": (
        processor, [("if stop and may_stop:", "if stop:")],
        "_min_tokens", "min_tokens"),
    "old_characters_are_looked_at_again": (
        processor,
        [("        start = len(self._text)\n", "        start = self._shown\n")],
        "_min_tokens", "which characters are new"),
    "the_stop_string_is_shown_unasked": (
        processor,
        [("end if keeps else end - len(stop)", "end - len(stop) if keeps else end")],
        "_stops", "complete"),
    "finished_with_the_first_completion": (
        generation,
        [(_FINISHED, "            self.metrics.finished_time = time.time()")],
        "_state_times", "the end of the last"),
    "finished_with_every_token": (
        generation,
        [(_FINISHED,
          "            pass\n        self.metrics.finished_time = time.time()")],
        "_times", "the end of the last"),
    "an_abort_has_no_time": (
        generation,
        [("FINISHED_ABORTED)\n        self.metrics.finished_time = time.time()",
          "FINISHED_ABORTED)")],
        "_state_times", "whatever ends it"),
    "a_twin_as_long_as_its_tokens": (
        kv_cache,
        [("self.keys.clone(), self.values.clone()",
          "(t[:, :, : self.length].clone() for t in (self.keys, self.values))")],
        "_copies", "where do its next tokens go"),
    "the_oldest_goes": (
        scheduler, [(_VICTIM, "        seq = self.running.pop(0)\n")],
        "_victim", "whose loss"),
    "the_one_who_asks_goes": (
        scheduler,
        [("self._preempt(step)\n", "self._preempt(step, seq)\n"),
         ("_preempt(self, step: Step)", "_preempt(self, step: Step, seq)"),
         (_VICTIM, "        self.running.remove(seq)\n")],
        "_victim", "whose loss"),
    "every_piece_begins_a_chain": (
        prefix_cache,
        [("        if first:\n"
          "            parent = self.names[seq.block_ids[first - 1]].digest\n", "")],
        "_pieces", "the parent of the next block"),
}  # fmt: skip


def hint_of_the_first(out: str) -> str:
    lines = out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("✗"))
    return next(line for line in lines[first:] if line.lstrip().startswith("hint:"))


def first_red(suite, pieces, capsys) -> tuple[str, str]:
    with pytest.raises(checks.CheckFailed):
        suite(pieces)
    out = capsys.readouterr().out
    return red(suite, out)[0], hint_of_the_first(out)


@pytest.mark.parametrize("name", WRONG)
def test_the_first_red_line_and_its_hint_are_about_the_mistake(name, capsys):
    module, edits, wanted, word = WRONG[name]
    made = mutant(module, *edits)
    suite = getattr(checks, module.__name__.rpartition(".")[2])
    first, hint = first_red(suite, {k: made[k] for k in PIECES[module]}, capsys)
    assert first == wanted and word in hint


# ----- the exercises of 06 and 07 that pack sequences


class SplitsQueriesOnly:
    def __init__(self, positions):
        starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(positions)]
        self.lengths = [b - a for a, b in zip(starts, starts[1:], strict=False)]
        self.positions = positions

    def attend(self, layer, q, k, v):
        parts = zip(
            q.split(self.lengths), self.positions.split(self.lengths), strict=True
        )
        return torch.cat([attention(part, k, v, at) for part, at in parts])


class SplitsQueriesOfCaches:
    def __init__(self, caches, counts):
        self.counts = counts
        self.steps = [c.step(n) for c, n in zip(caches, counts, strict=True)]
        self.positions = torch.cat([step.positions for step in self.steps])

    def attend(self, layer, q, k, v):
        parts = zip(self.steps, q.split(self.counts), strict=True)
        return torch.cat([step.attend(layer, part, k, v) for step, part in parts])


class StepsInAttend:
    def __init__(self, caches, counts):
        self.caches, self.counts = caches, counts
        at = [torch.arange(n) + c.length for c, n in zip(caches, counts, strict=True)]
        self.positions = torch.cat(at)

    def attend(self, layer, q, k, v):
        parts = zip(*(x.split(self.counts) for x in (q, k, v)), strict=True)
        each = zip(self.caches, self.counts, parts, strict=True)
        return torch.cat([c.step(n).attend(layer, *part) for c, n, part in each])


@pytest.mark.parametrize(
    ("suite", "piece", "wanted", "word"),
    [
        (checks.transformer_exercises, SplitsQueriesOnly, "_two_sequences", "q, k and"),
        (checks.kv_cache, SplitsQueriesOfCaches, "_packed_attends", "q, k and v"),
        (checks.kv_cache, StepsInAttend, "_packed_does_not_advance", "no room"),
    ],
)
def test_packing(suite, piece, wanted, word, capsys):
    first, hint = first_red(suite, {"PackedContext": piece}, capsys)
    assert first == wanted and word in hint


# ----- other exercises: the solution with one edit


@pytest.mark.parametrize(
    ("suite", "notebook", "piece", "edit", "wanted", "word"),
    [
        (checks.processor, "08_text_in_text_out", "hide",
         ("    if not inside:\n        yield text", ""), "_hide_open", "at the end"),
        (checks.kv_cache, "07_kv_cache", "DoublingKVCache",
         ("self._moved(self.values, slots)", "self.values.new_ones(self.keys.shape)"),
         "_doubling_keeps", "copy the past"),
        (checks.scheduling_exercises, "10_continuous_batching", "fair_turns",
         ("seq.get_output_len()", "-seq.get_output_len()"),
         "_turns_order", "the fewest turns"),
        (checks.paged_exercises, "11_paged_kv_cache", "CarefulManager",
         ("if self.holders and left", "if left"), "_alone", "if nobody runs"),
        (checks.paged_exercises, "11_paged_kv_cache", "CarefulManager",
         ("left < self.reserve", "left <= self.reserve"),
         "_keeps_reserve", "left after it"),
    ],
)  # fmt: skip
def test_an_exercise(suite, notebook, piece, edit, wanted, word, capsys):
    made = solutions(f"{notebook}.ipynb", edit)[piece]
    first, hint = first_red(suite, {piece: made}, capsys)
    assert first == wanted and word in hint


# ----- what is right in other words


def test_how_many_there_is_room_for_says_as_much_as_how_many_were_asked(capsys):
    full = (
        'f"the cache holds {self.length} of {self.max_len} tokens, "\n'
        '                f"{tokens} more don\'t fit"'
    )
    left = 'f"only {self.max_len - self.length} more fit"'
    made = mutant(kv_cache, (full, left))
    checks.kv_cache(ContiguousKVCache=made["ContiguousKVCache"])
    assert "✗" not in capsys.readouterr().out


def test_a_row_may_be_named_by_its_number_alone(capsys):
    words = 'f"logits of row {row} can\'t be sampled: their maximum is {best[row]}"'
    made = mutant(sampler, (words, 'f"no draw from logits[{row}]"'))
    checks.sampler({name: made[name] for name in ("check_logits", "sample")})
    assert "✗" not in capsys.readouterr().out


# ----- scores in half precision


def test_a_context_whose_scores_are_half_precise_is_refused(capsys):
    class Half:
        def __init__(self, cache, positions, slots, segments):
            self.positions, self.cache = positions, cache
            self.slots, self.segments = slots, segments

        def attend(self, layer, q, k, v):
            self.cache.store(layer, self.slots, k, v)
            parts = []
            for each in self.segments:
                blocks = torch.tensor(each.blocks)
                keys, values = self.cache.gather(layer, blocks, each.end)
                keys, values = (
                    x.repeat_interleave(q.shape[1] // k.shape[1], 0)
                    for x in (keys, values)
                )
                part = q[each.first : each.last].transpose(0, 1)
                at = self.positions[each.first : each.last, None]
                scores = part @ keys.mT / q.shape[-1] ** 0.5
                hidden = torch.arange(each.end) > at
                weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
                parts.append((weights @ values).transpose(0, 1))
            return torch.cat(parts)

    with pytest.raises(checks.CheckFailed):
        checks.contexts(Half)
    out = capsys.readouterr().out
    assert red(checks.contexts, out) == ["_dtypes"] and "beyond 65504" in out


# ----- code that raises


def test_the_players_print_the_calls_before_an_exception(capsys):
    made = mutant(
        block_manager,
        ('            self.moves.append(("copy", old, new))\n',
         '            self.moves.append(("copy", old, new))\n'
         "            if len(self.holders) > 3:\n"
         "                raise KeyError(old)\n"),
    )  # fmt: skip
    with pytest.raises(checks.CheckFailed):
        checks.block_manager(BlockManager=made["BlockManager"])
    last = capsys.readouterr().out.rpartition("✗ Whatever happens")[2].splitlines()
    assert last[1].startswith("    input:    6 blocks of 2, 3 on the CPU, caching")
    assert "; fork(" in last[1] and last[2].strip().startswith("KeyError: ")


def test_speculating_code_that_raises_gets_its_input_printed(capsys):
    right = solutions("09_generation_loop.ipynb")["speculate"]

    def raises(model, prompt_token_ids, draft, max_tokens, ends):
        def checked(so_far):
            guesses = draft(so_far)
            return [{}[guess] for guess in guesses]

        return right(model, prompt_token_ids, checked, max_tokens, ends)

    with pytest.raises(checks.CheckFailed):
        checks.generation_exercises(speculate=raises)
    out = capsys.readouterr().out
    assert (
        "    input:    prompt [3], max_tokens 2, 3 wrong guesses\n    KeyError" in out
    )


def test_a_sequence_in_a_call_has_its_name(capsys):
    def grow(self, seq, end):
        return {}[end]

    with pytest.raises(checks.CheckFailed):
        checks.block_manager(grow=grow)
    assert "in grow(seq=Sequence('a-0', …), end=2), line" in capsys.readouterr().out
