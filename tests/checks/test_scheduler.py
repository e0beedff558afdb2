"""The suite for the scheduler passes on the package and rejects mistakes.

A mutant is the package's module with one mistake that somebody could make, or has made.
Each has to turn the line red that is about it, and not just any.
"""

import inspect

import pytest

from folovllm_lite import checks
from folovllm_lite import scheduler as module
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.checks.scheduler_suite import _SUITE
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.request import Sequence, SequenceData
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import Scheduler, Step, Work


def test_the_package_passes(capsys):
    checks.scheduler(module)
    out = capsys.readouterr().out
    assert "✗" not in out and "All 27 properties hold." in out


_ADMITTED = "            work = chosen[seq.seq_id] = Work(seq, start, count, copies)\n"

# name: (the line that turns red, what stands there, what stands instead)
MUTANTS = {
    "admitted_and_still_waiting": (
        "_admission",
        "            self.waiting.pop(0)\n            seq.move_to",
        "            self.waiting = self.waiting[1:] + [seq]\n"
        "            room = 0\n            seq.move_to",
    ),
    "admitted_without_a_status": (
        "_admission",
        "            seq.move_to(SequenceStatus.RUNNING)\n",
        "",
    ),
    "planned_counts_as_computed": (
        "_advance",
        _ADMITTED,
        _ADMITTED + "            seq.num_computed = start + count\n",
    ),
    "decodes_count_when_planned": (
        "_advance",
        "                budget -= count\n        return budget",
        "                seq.num_computed = end\n"
        "                budget -= count\n        return budget",
    ),
    "one_token_a_step": (
        "_advance",
        "work.seq.num_computed = work.end",
        "work.seq.num_computed += 1",
    ),
    "removed_and_still_waiting": (
        "_remove",
        "for queue in (self.running, self.waiting):",
        "for queue in (self.running,):",
    ),
    "removed_with_its_blocks": (
        "_remove",
        "                queue.remove(seq)\n        self.blocks.release(seq)\n",
        "                queue.remove(seq)\n",
    ),
    "removing_a_stranger_fails": (
        "_remove",
        "            if seq in queue:\n                queue.remove(seq)\n",
        "            if seq in self.running + self.waiting:\n"
        "                queue.remove(seq)\n",
    ),
    "prompts_are_free": (
        "_budget",
        "            budget -= count\n            room",
        "            room",
    ),
    "decodes_are_free": (
        "_budget",
        "                budget -= count\n        return budget",
        "        return budget",
    ),
    "the_budget_is_per_sequence": (
        "_budget",
        "self._count(seq.get_len() - start, budget)",
        "self._count(seq.get_len() - start, self.config.max_num_batched_tokens)",
    ),
    "chunks_without_being_asked": (
        "_whole_prompts",
        "if missing > budget and not self.config.enable_chunked_prefill:",
        "if False:",
    ),
    "never_chunks": (
        "_chunks",
        "if missing > budget and not self.config.enable_chunked_prefill:",
        "if missing > budget:",
    ),
    "only_the_first_chunk_is_one": (
        "_chunks",
        "count = self._count(needed, budget)",
        "count = needed",
    ),
    "room_for_the_whole_prompt_at_once": (
        "_chunks",
        "copies = self.blocks.grow(seq, start + count)",
        "copies = self.blocks.grow(seq, seq.get_len())",
    ),
    "in_order_of_arrival_only": (
        "_decodes_first",
        "sorted(missing, key=lambda pair: pair[0] > 1)",
        "missing",
    ),
    "prefills_first": (
        "_decodes_first",
        "sorted(missing, key=lambda pair: pair[0] > 1)",
        "sorted(missing, key=lambda pair: pair[0] <= 1)",
    ),
    "new_prompts_before_all": (
        "_decodes_first",
        "        budget = self._continue(step, chosen)\n",
        "        budget = self.config.max_num_batched_tokens\n"
        "        self._admit(step, chosen, budget)\n"
        "        return self._rest(step, chosen)\n\n"
        "    def _rest(self, step, chosen):\n"
        "        for seq in list(self.running):\n"
        "            left = self.config.max_num_batched_tokens - sum(\n"
        "                work.count for work in chosen.values())\n"
        "            count = min(seq.num_missing, left)\n"
        "            end = seq.num_computed + count\n"
        "            if count and seq.seq_id not in chosen:\n"
        "                copies = self.blocks.grow(seq, end)\n"
        "                chosen[seq.seq_id] = Work(seq, seq.num_computed, count,"
        " copies)\n"
        "        step.work = list(chosen.values())\n"
        "        return step\n",
    ),
    "only_new_ones_count": (
        "_max_seqs",
        "self.config.max_num_seqs - sum(seq.width for seq in self.running)",
        "self.config.max_num_seqs",
    ),
    "one_too_many": (
        "_max_seqs",
        "self.waiting[0].width <= room:",
        "self.waiting[0].width <= room + 1:",
    ),
    "width_of_the_running_is_forgotten": (
        "_width",
        "sum(seq.width for seq in self.running)",
        "len(self.running)",
    ),
    "width_of_the_admitted_is_forgotten": ("_width", "room -= seq.width", "room -= 1"),
    "width_of_the_waiting_is_forgotten": (
        "_width",
        "while self.waiting and self.waiting[0].width <= room:",
        "while self.waiting and 0 < room:",
    ),
    "a_fork_waits": (
        "_fork",
        "insort(self.running, child, key=_order)",
        "insort(self.waiting, child, key=_order)",
    ),
    "a_fork_shares_nothing": (
        "_fork",
        "        self.blocks.fork(parent, child)\n",
        "        child.block_ids = []\n"
        "        self.blocks.grow(child, child.num_computed)\n",
    ),
    "copies_are_lost": (
        "_fork",
        "Work(seq, seq.num_computed, count, copies)",
        "Work(seq, seq.num_computed, count)",
    ),
    "small_ones_overtake": (
        "_fcfs",
        ("            seq = self.waiting[0]\n",
         "            seq = min(self.waiting, key=lambda seq: seq.get_len())\n"),
        ("self.waiting.pop(0)", "self.waiting.remove(seq)"),
    ),
    "what_does_not_fit_is_skipped": (
        "_fcfs",
        "                if not self.blocks.can_grow(seq, start + count, hits):\n"
        "                    return\n",
        "                if not self.blocks.can_grow(seq, start + count, hits):\n"
        "                    self.waiting.pop(0)\n"
        "                    self._admit(step, chosen, budget)\n"
        "                    insort(self.waiting, seq, key=_order)\n"
        "                    return\n",
    ),
    "takes_blocks_that_are_not_there": (
        "_fcfs",
        "                if not self.blocks.can_grow(seq, start + count, hits):\n"
        "                    return\n",
        "",
    ),
    "priority_is_ignored": (
        "_priorities",
        "    return seq.order\n",
        "    return seq.order[1:]\n",
    ),
    "higher_goes_first": (
        "_priorities",
        "    return seq.order\n",
        "    return (-seq.order[0], *seq.order[1:])\n",
    ),
    "of_equals_the_last_goes_first": (
        "_priorities",
        "    return seq.order\n",
        "    return (seq.order[0], -seq.order[1])\n",
    ),
    "as_they_were_added": (
        "_priorities",
        "        insort(self.waiting, seq, key=_order)\n\n    def fork",
        "        self.waiting.append(seq)\n\n    def fork",
    ),
    "hits_are_computed_again": (
        "_prefix",
        "start = seq.num_computed or len(hits) * self.blocks.block_size",
        "start = seq.num_computed",
    ),
    "hits_take_tokens": (
        "_prefix",
        "            budget -= count\n            room",
        "            budget -= seq.get_len()\n            room",
    ),
    "scored_prompts_are_not_computed": (
        "_prefix",
        "if swapped or seq.scores_prompt else",
        "if swapped else",
    ),
    "scores_of_zero_are_none": (
        "_prefix",
        "if swapped or seq.scores_prompt else",
        "if swapped or seq.sampling_params.prompt_logprobs else",
    ),
    "offered_when_computed": (
        "_offered",
        ("self.blocks.commit(seq, 0 if swapped else start, work.end)", "pass"),
        (
            "            work.seq.num_computed = work.end\n",
            "            work.seq.num_computed = work.end\n"
            "            self.blocks.commit(work.seq, work.start, work.end)\n",
        ),
    ),
    "who_shares_goes_first": (
        "_offered",
        "step.work = list(chosen.values())",
        "step.work = sorted(chosen.values(), key=lambda work: work.count)",
    ),
    "only_new_prompts_offer": (
        "_offered_by_a_chunk",
        "            self.blocks.commit(work.seq, work.start, work.end)\n",
        "            pass\n",
    ),
    "an_offer_stands": (
        "_undone",
        "            self.blocks.withdraw(work.seq)\n",
        "            pass\n",
    ),
    "the_first_is_the_victim": ("_victim", "self.running[-1]", "self.running[0]"),
    "everybody_preempts_himself": (
        "_victim",
        "victim = self.running[-1]",
        "victim = seq",
    ),
    "one_victim_is_enough": (
        "_victim",
        "while not self.blocks.can_grow(seq, end):",
        "for _ in range(not self.blocks.can_grow(seq, end)):",
    ),
    "nobody_counts_the_victims": ("_victim", "step.preempted += 1", "pass"),
    "the_latest_arrival_is_the_victim": (
        "_victim_by_priority",
        "victim = self.running[-1]",
        "victim = max(self.running, key=lambda seq: seq.order[1:])",
    ),
    "running_in_order_of_admission": (
        "_victim_by_priority",
        "            insort(self.running, seq, key=_order)\n",
        "            self.running.append(seq)\n",
    ),
    "back_at_the_end": (
        "_recompute",
        "        insort(self.waiting, seq, key=_order)\n        return undone",
        "        self.waiting.append(seq)\n        return undone",
    ),
    "back_at_the_front": (
        "_no_admission",
        "        insort(self.waiting, seq, key=_order)\n        return undone",
        "        self.waiting.insert(0, seq)\n        return undone",
    ),
    "the_count_survives_its_blocks": (
        "_recompute",
        "            seq.num_computed = 0\n",
        "",
    ),
    "only_the_prompt_is_recomputed": (
        "_recompute",
        "            seq.num_computed = 0\n",
        "            seq.num_computed = 0\n"
        "            del seq.data.output_token_ids[:]\n",
    ),
    "outputs_are_not_recomputed": (
        "_recompute",
        "count = self._count(seq.get_len() - start, budget)",
        "count = self._count((seq.get_len() if swapped else seq.get_prompt_len())"
        " - start, budget)",
    ),
    "admits_after_preempting": (
        "_no_admission",
        "if not step.preempted:",
        "if True:",
    ),
    "a_victims_tokens_are_lost": (
        "_undone",
        "return undone.count if undone else 0",
        "return 0",
    ),
    "a_victim_keeps_its_work": (
        "_undone",
        "undone = chosen.pop(seq.seq_id, None)",
        "undone = chosen.get(seq.seq_id)",
    ),
    "a_victims_copies_are_made": (
        "_undone_copies",
        ("    preempted: int = 0\n", "    preempted: int = 0\n"
         "    more: Moves = field(default_factory=list)\n"),
        ("return [move for work in self.work for move in work.copies]",
         "return self.more"),
        ("                copies = self.blocks.grow(seq, end)\n",
         "                copies = self.blocks.grow(seq, end)\n"
         "                step.more += copies\n"),
    ),
    "swapping_forgets_the_count": (
        "_swap",
        "            seq.move_to(SequenceStatus.SWAPPED)\n",
        "            seq.move_to(SequenceStatus.SWAPPED)\n"
        "            seq.num_computed = 0\n",
    ),
    "swap_moves_are_lost": (
        "_swap",
        "step.swap_out += self.blocks.swap_out(seq)",
        "self.blocks.swap_out(seq)",
    ),
    "swap_in_moves_are_lost": (
        "_swap",
        "step.swap_in += self.blocks.swap_in(seq)",
        "self.blocks.swap_in(seq)",
    ),
    "back_from_memory_from_the_start": (
        "_swap",
        "start = seq.num_computed or len(hits) * self.blocks.block_size",
        "start = len(hits) * self.blocks.block_size",
    ),
    "comes_back_without_room": (
        "_swap",
        "                if not self.blocks.can_swap_in(seq, start + count):\n"
        "                    return\n",
        "",
    ),
    "swaps_without_being_asked": (
        "_no_swap",
        "if self.swap and not undone and",
        "if not undone and",
    ),
    "swaps_without_room": (
        "_no_swap",
        "if self.swap and not undone and self.blocks.can_swap_out(seq):",
        "if self.swap and not undone:",
    ),
    "never_swaps": ("_swap", "if self.swap and not undone and", "if False and"),
    "swaps_half_a_step": (
        "_undone_is_not_swapped",
        "if self.swap and not undone and",
        "if self.swap and",
    ),
    "offers_from_where_it_went_on": (
        "_swapped_prefix",
        "0 if swapped else start, work.end",
        "start, work.end",
    ),
    "waits_for_blocks_for_ever": (
        "_everybody_ends",
        "            while not self.blocks.can_grow(seq, end):\n",
        "            if not self.blocks.can_grow(seq, end):\n"
        "                continue\n"
        "            while False:\n",
    ),
}  # fmt: skip


def mutant(*edits: tuple[str, str]) -> type:
    """The package's class after edits of its module's source."""
    source = inspect.getsource(module)
    for old, new in edits:
        assert source.count(old) == 1, f"{old!r} stands there {source.count(old)} times"
        source = source.replace(old, new)
    names = {"__name__": "mutant"}
    exec(compile(source, "mutant.py", "exec"), names)
    return names["Scheduler"]


def red(out: str) -> list[str]:
    """The properties' names of the red lines."""
    sentences = {each.sentence: each.holds.__name__ for each in _SUITE.properties}
    return [sentences[x[2:]] for x in out.splitlines() if x.startswith("✗ ")]


@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_rejects(name, capsys):
    wanted, *edits = MUTANTS[name]
    if isinstance(edits[0], str):
        edits = [tuple(edits)]
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.scheduler(Scheduler=mutant(*edits))
    out = capsys.readouterr().out
    assert wanted in red(out)
    assert "hint:" in out and "Traceback" not in out
    assert "AttributeError" not in out, "rejected by accident, not for its mistake"


def test_every_property_has_a_mutant_of_its_own():
    """Without one nobody knows if the line can turn red."""
    named = {wanted for wanted, *_ in MUTANTS.values()}
    assert {each.holds.__name__ for each in _SUITE.properties} == named


# ----- what a property can't say: things of this implementation alone


def sequence(name, length, arrival=0):
    data = SequenceData(list(range(100 * arrival, 100 * arrival + length)))
    order = (0, arrival, 0)
    return Sequence(name, name, data, SamplingParams(), order=order)


def test_a_step_adds_up():
    one, two = sequence("a", 3), sequence("b", 2)
    work = [Work(one, 2, 1, [(0, 4)]), Work(two, 0, 2, [(1, 5)])]
    step = Step(work)
    assert [each.end for each in work] == [3, 2]
    assert step.num_tokens == 3 and step.copies == [(0, 4), (1, 5)]


def test_a_step_names_those_that_it_swaps_out():
    """When such a step fails, nobody knows if their blocks arrived in CPU memory."""
    pool = BlockManager(4, 2, num_swap_blocks=4)
    scheduler = Scheduler(SchedulerConfig(16, 8), pool, swap=True)
    seqs = [sequence("a", 4), sequence("b", 4, 1)]
    for seq in seqs:
        scheduler.add(seq)
    scheduler.advance(scheduler.schedule())
    for seq in seqs:
        seq.add_token_id(7)
    step = scheduler.schedule()
    assert [seq.seq_id for seq in step.swapped] == ["b"]
    assert [work.seq.seq_id for work in step.work] == ["a"]


def test_an_equal_sequence_is_another_one():
    """Sequences compare by value: remove() must not hit a namesake's twin."""
    scheduler = Scheduler(SchedulerConfig(16, 8), BlockManager(4, 2))
    one, two = sequence("a", 2), sequence("b", 2)
    scheduler.add(one)
    scheduler.add(two)
    scheduler.remove(two)
    assert [seq.seq_id for seq in scheduler.waiting] == ["a"]
