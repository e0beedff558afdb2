"""The suite for the scheduler passes on the package and rejects mistakes.

A mutant is the package's module with one mistake that somebody could make, or has made.
Each has to turn the line red that is about it, and not just any.
"""

import pytest

from folovllm_lite import checks
from folovllm_lite import scheduler as module
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.request import Sequence, SequenceData, SequenceStatus
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import Scheduler, Step, Work
from tests.checks.mutants import mutant, names_of, refuse


def test_the_package_passes(capsys):
    checks.scheduler(module)
    out = capsys.readouterr().out
    assert "✗" not in out and "All 34 properties hold." in out


_ADMITTED = "            step.work[seq.seq_id] = Work(seq, start, start + count)\n"

# name: (the line that turns red, what stands there, what stands instead)
MUTANTS = {
    "admitted_and_still_waiting": (
        "_admission",
        "            insort(self.running, self.waiting.pop(0), key=_order)\n",
        "            insort(self.running, seq, key=_order)\n"
        "            self.waiting = self.waiting[1:] + [seq]\n"
        "            room = 0\n",
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
        "                    budget -= count\n",
        "                    budget -= count\n"
        "                    seq.num_computed = end\n",
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
        "each is not seq]\n        self.memory.release(seq)\n",
        "each is not seq]\n",
    ),
    "removing_a_stranger_fails": (
        "_remove",
        "            queue[first:last] = [each for each in queue[first:last] if each "
        "is not seq]\n",
        "            del queue[first]\n",
    ),
    "prompts_are_free": (
        "_budget",
        "budget, room = budget - count, room - seq.width",
        "room = room - seq.width",
    ),
    "decodes_are_free": (
        "_budget",
        "                    budget -= count\n",
        "",
    ),
    "the_budget_is_per_sequence": (
        "_budget",
        "self.share(seq.get_len() - start, budget)",
        "self.share(seq.get_len() - start, self.config.max_num_batched_tokens)",
    ),
    "whole_takes_a_part": (
        "_whole",
        "    return missing if missing <= budget else 0\n",
        "    return min(missing, budget)\n",
    ),
    "whole_needs_one_more": (
        "_whole",
        "    return missing if missing <= budget else 0\n",
        "    return missing if missing < budget else 0\n",
    ),
    "chunks_of_what_is_there": (
        "_chunk",
        "    return min(missing, budget)\n",
        "    return budget\n",
    ),
    "chunk_is_whole": (
        "_chunk",
        "    return min(missing, budget)\n",
        "    return missing if missing <= budget else 0\n",
    ),
    "chunks_of_even_numbers": (
        "_chunk",
        "    return min(missing, budget)\n",
        "    return missing if missing <= budget else budget // 2 * 2\n",
    ),
    "turns_in_the_schedulers_own_list": (
        "_as_they_came",
        "    return list(running)\n",
        "    return running\n",
    ),
    "turns_turned_around": (
        "_as_they_came",
        "    return list(running)\n",
        "    return running[::-1]\n",
    ),
    "the_shortest_first": (
        "_decodes_lead",
        "key=lambda seq: seq.num_missing > 1)",
        "key=lambda seq: seq.num_missing)",
    ),
    "sorts_in_place": (
        "_decodes_lead",
        "    return sorted(running, key=lambda seq: seq.num_missing > 1)",
        "    running.sort(key=lambda seq: seq.num_missing > 1)\n"
        "    return list(running)",
    ),
    "a_prompt_of_one_token_decodes": (
        "_decodes_lead",
        "key=lambda seq: seq.num_missing > 1)",
        "key=lambda seq: seq.get_len() > 1)",
    ),
    "turns_one_by_one": (
        "_decodes_lead",
        "    return sorted(running, key=lambda seq: seq.num_missing > 1)",
        "    return iter(sorted(running, key=lambda seq: seq.num_missing > 1))",
    ),
    "chunks_without_being_asked": (
        "_whole_prompts",
        "count = self.share(seq.get_len() - start, budget)",
        "count = min(seq.get_len() - start, budget)",
    ),
    "alone_it_need_not_fit": (
        "_whole_prompts",
        "            if not count or not",
        "            if not count and not step.work:\n"
        "                count = min(seq.get_len() - start, budget)\n"
        "            if not count or not",
    ),
    "never_chunks": (
        "_chunks",
        "count = self.share(seq.get_len() - start, budget)",
        "count = whole(seq.get_len() - start, budget)",
    ),
    "knows_two_shares": (
        "_chunks",
        "count = self.share(seq.get_len() - start, budget)",
        "missing = seq.get_len() - start\n"
        "            count = whole(missing, budget)\n"
        "            if self.share is not whole:\n"
        "                count = min(missing, budget)",
    ),
    "only_the_first_chunk_is_one": (
        "_chunks",
        "count = self.share(seq.num_missing, budget)",
        "count = seq.num_missing",
    ),
    "room_for_the_whole_prompt_at_once": (
        "_chunks",
        "not self.memory.place(seq, start + count)",
        "not self.memory.place(seq, seq.get_len())",
    ),
    "in_order_of_arrival_only": (
        "_decodes_first",
        "in self.turns(self.running):",
        "in list(self.running):",
    ),
    "prefills_first": (
        "_decodes_first",
        "key=lambda seq: seq.num_missing > 1)",
        "key=lambda seq: seq.num_missing <= 1)",
    ),
    "new_prompts_before_all": (
        "_decodes_first",
        (
            "        budget = self._continue(step)\n",
            "        budget = self.config.max_num_batched_tokens\n"
            "        self._admit(step, budget)\n"
            "        self._continue(step)\n",
        ),
        (
            "        budget = self.config.max_num_batched_tokens\n        for seq",
            "        budget = self.config.max_num_batched_tokens - step.num_tokens\n"
            "        for seq",
        ),
        ("while count and seq.status", "while count and seq.seq_id not in step.work"
         " and seq.status"),
        (
            "        if not step.preempted:  # what has just lost its memory must not"
            " take it back\n            self._admit(step, budget)\n",
            "",
        ),
    ),
    "only_new_ones_count": (
        "_max_seqs",
        "self.config.max_num_seqs - sum(seq.width for seq in self.running)",
        "self.config.max_num_seqs",
    ),
    "who_has_no_work_does_not_count": (
        "_max_seqs",
        "sum(seq.width for seq in self.running)",
        "sum(work.seq.width for work in step.work.values())",
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
    "width_of_the_admitted_is_forgotten": (
        "_width",
        "room - seq.width\n",
        "room - 1\n",
    ),
    "width_of_the_waiting_is_forgotten": (
        "_width",
        "while self.waiting and self.waiting[0].width <= room:",
        "while self.waiting and 0 < room:",
    ),
    "alone_it_need_not_have_room": (
        "_width",
        "while self.waiting and self.waiting[0].width <= room:",
        "while self.waiting and (\n"
        "            self.waiting[0].width <= room or not self.running\n"
        "        ):",
    ),
    "width_of_the_newest_is_enough": (
        "_width",
        "budget, room = budget - count, room - seq.width\n",
        "budget -= count\n"
        "            room = self.config.max_num_seqs - len(self.running) - seq.width\n",
    ),
    "a_fork_waits": (
        "_fork",
        "insort(self.running, child, key=_order)",
        "insort(self.waiting, child, key=_order)",
    ),
    "a_fork_shares_nothing": (
        "_fork",
        "        self.memory.fork(parent, child)\n",
        "        child.block_ids, count = [], child.num_computed\n"
        "        self.memory.place(child, count)\n"
        "        child.num_computed = count\n",
    ),
    "copies_are_lost": (
        "_fork",
        "step.moves, self.memory.moves = self.memory.moves, []",
        "step.moves = [move for move in self.memory.moves if move[0] != 'copy']\n"
        "        self.memory.moves = []",
    ),
    "small_ones_overtake": (
        "_fcfs",
        ("            seq = self.waiting[0]\n",
         "            seq = min(self.waiting, key=lambda seq: seq.get_len())\n"),
        ("            insort(self.running, self.waiting.pop(0), key=_order)\n",
         "            self.waiting.remove(seq)\n"
         "            insort(self.running, seq, key=_order)\n"),
    ),
    "what_does_not_fit_is_skipped": (
        "_fcfs",
        "            if not count or not self.memory.place(seq, start + count):\n"
        "                return\n",
        "            if not count or not self.memory.place(seq, start + count):\n"
        "                self.waiting.pop(0)\n"
        "                self._admit(step, budget)\n"
        "                insort(self.waiting, seq, key=_order)\n"
        "                return\n",
    ),
    "takes_blocks_that_are_not_there": (
        "_fcfs",
        "            if not count or not self.memory.place(seq, start + count):\n"
        "                return\n",
        "            if not count:\n"
        "                return\n"
        "            self.memory.place(seq, start + count)\n",
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
        "start = self.memory.found(seq)",
        "start = seq.num_computed",
    ),
    "hits_take_tokens": (
        "_prefix",
        "budget, room = budget - count, room",
        "budget, room = budget - seq.get_len(), room",
    ),
    "offered_when_computed": (
        "_offered",
        ("            self.memory.offer(seq, start + count)", "            pass"),
        (
            "            work.seq.num_computed = work.end\n",
            "            work.seq.num_computed = work.end\n"
            "            self.memory.offer(work.seq, work.end)\n",
        ),
    ),
    "who_shares_goes_first": (
        "_offered",
        "        step.moves, self",
        "        order = sorted(step.work.values(), key=lambda work: work.count)\n"
        "        step.work = {work.seq.seq_id: work for work in order}\n"
        "        step.moves, self",
    ),
    "offers_more_than_it_computes": (
        "_offered",
        "self.memory.offer(seq, start + count)",
        "self.memory.offer(seq, seq.get_len())",
    ),
    "offers_its_prompt_only": (
        "_offered",
        "self.memory.offer(seq, start + count)",
        "self.memory.offer(seq, min(start + count, seq.get_prompt_len()))",
    ),
    "half_a_prompt_is_not_offered": (
        "_offered",
        "            self.memory.offer(seq, start + count)",
        "            if start + count == seq.get_len():\n"
        "                self.memory.offer(seq, start + count)",
    ),
    "only_new_prompts_offer": (
        "_offered_by_a_chunk",
        "            self.memory.offer(work.seq, work.end)\n",
        "            pass\n",
    ),
    "cleared_and_the_memory_is_full": (
        "_clear",
        "        self.memory.clear()\n",
        "",
    ),
    "cleared_and_some_wait": ("_clear", "        self.waiting.clear()\n", ""),
    "the_first_is_the_victim": (
        "_victim", "self.running.pop()", "self.running.pop(0)"
    ),
    "everybody_preempts_himself": (
        "_victim",
        ("+= self._preempt(step)", "+= self._preempt(step, seq)"),
        ("def _preempt(self, step: Step)", "def _preempt(self, step: Step, seq)"),
        ("        seq = self.running.pop()\n", "        self.running.remove(seq)\n"),
    ),
    "one_victim_is_enough": (
        "_victim",
        "                budget += self._preempt(step)\n",
        "                budget += self._preempt(step)\n"
        "                if len(step.preempted) > 1:\n"
        "                    break\n",
    ),
    "nobody_counts_the_victims": ("_victim", "step.preempted.append(seq)", "pass"),
    "the_latest_arrival_is_the_victim": (
        "_victim_by_priority",
        "        seq = self.running.pop()\n",
        "        seq = max(self.running, key=lambda seq: seq.order[1:])\n"
        "        self.running.remove(seq)\n",
    ),
    "running_in_order_of_admission": (
        "_victim_by_priority",
        "insort(self.running, self.waiting.pop(0), key=_order)",
        "self.running.append(self.waiting.pop(0))",
    ),
    "back_at_the_end": (
        "_recompute",
        "        insort(self.waiting, seq, key=_order)\n        return undone",
        "        self.waiting.append(seq)\n        return undone",
    ),
    "back_among_its_siblings_at_the_end": (
        "_recompute",
        "        insort(self.waiting, seq, key=_order)\n        return undone",
        "        insort(self.waiting, seq, key=lambda seq: seq.order[:2])\n"
        "        return undone",
    ),
    "siblings_are_taken_for_one": (
        "_recompute",
        "            insort(self.running, self.waiting.pop(0), key=_order)\n",
        "            insort(self.running, seq, key=_order)\n"
        "            self.waiting = [\n"
        "                each for each in self.waiting\n"
        "                if each.request_id != seq.request_id\n"
        "            ]\n",
    ),
    "back_at_the_front": (
        "_no_admission",
        "        insort(self.waiting, seq, key=_order)\n        return undone",
        "        self.waiting.insert(0, seq)\n        return undone",
    ),
    "the_count_survives_its_blocks": (
        "_lost",
        "            seq.num_computed = 0\n",
        "",
    ),
    "only_the_prompt_is_recomputed": (
        "_lost",
        "            seq.num_computed = 0\n",
        "            seq.num_computed = 0\n"
        "            del seq.data.output_token_ids[:]\n",
    ),
    "outputs_are_not_recomputed": (
        "_recompute",
        "count = self.share(seq.get_len() - start, budget)",
        "count = self.share((seq.get_len() if start else seq.get_prompt_len())"
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
    "a_victim_had_one_token": (
        "_undone",
        "return undone.count if undone else 0",
        "return 1 if undone else 0",
    ),
    "a_victim_keeps_its_work": (
        "_undone",
        "undone = step.work.pop(seq.seq_id, None)",
        "undone = step.work.get(seq.seq_id)",
    ),
    "work_by_request": (
        "_admission",
        "            step.work[seq.seq_id] = Work(seq, start, start + count)\n",
        "            step.work[seq.request_id] = Work(seq, start, start + count)\n",
    ),
    "a_victim_without_work_gives_a_token_back": (
        "_undone",
        "return undone.count if undone else 0",
        "return undone.count if undone else 1",
    ),
    "offers_that_may_be_undone": (
        "_offered_late",
        (
            "                    budget -= count\n",
            "                    budget -= count\n"
            "                    self.memory.offer(seq, end)\n",
        ),
        ("            self.memory.offer(work.seq, work.end)\n", "            pass\n"),
    ),
    "a_victims_copies_are_made": (
        "_undone_copies",
        "        saved = not undone",
        "        kept = list(self.memory.moves)\n"
        "        saved = not undone",
        ("            self.memory.release(seq)\n            seq.num",
         "            self.memory.release(seq)\n"
         "            self.memory.moves = kept\n            seq.num"),
    ),
    "removed_and_its_cpu_blocks_are_lost": (
        "_remove_preempted",
        "each is not seq]\n        self.memory.release(seq)\n",
        "each is not seq]\n"
        "        if seq.block_ids:\n"
        "            self.memory.release(seq)\n",
    ),
    "the_running_alone_are_released": (
        "_remove_preempted",
        "        self.memory.release(seq)\n\n    def clear",
        "            if queue is self.running and first < last:\n"
        "                self.memory.release(seq)\n\n    def clear",
    ),
    "swapping_forgets_the_count": (
        "_swap",
        "        if not saved:\n            self.memory.release(seq)\n"
        "            seq.num_computed = 0\n",
        "        if not saved:\n            self.memory.release(seq)\n"
        "        seq.num_computed = 0\n",
    ),
    "who_is_swapped_out_is_not_named": (
        "_swap",
        ("        step.preempted.append(seq)\n", ""),
        (
            "            seq.num_computed = 0\n",
            "            seq.num_computed = 0\n"
            "            step.preempted.append(seq)\n",
        ),
    ),
    "comes_back_before_all_others": (
        "_swap",
        (
            "            seq = self.waiting[0]\n",
            "            out = SequenceStatus.SWAPPED\n"
            "            seq = min(self.waiting, key=lambda x: x.status is not out)\n",
        ),
        (
            "            insort(self.running, self.waiting.pop(0), key=_order)\n",
            "            self.waiting.remove(seq)\n"
            "            insort(self.running, seq, key=_order)\n",
        ),
    ),
    "comes_back_when_it_is_alone": (
        "_swap",
        "            start = self.memory.found(seq)\n",
        "            if seq.status is SequenceStatus.SWAPPED and self.running:\n"
        "                return\n"
        "            start = self.memory.found(seq)\n",
    ),
    "moves_in_order_of_their_kind": (
        "_swap",
        "step.moves, self.memory.moves = self.memory.moves, []",
        "step.moves, self.memory.moves = sorted(self.memory.moves), []",
    ),
    "swap_moves_are_lost": (
        "_swap",
        "step.moves, self.memory.moves = self.memory.moves, []",
        "step.moves = [move for move in self.memory.moves if move[0] != 'out']\n"
        "        self.memory.moves = []",
    ),
    "swap_in_moves_are_lost": (
        "_swap",
        "step.moves, self.memory.moves = self.memory.moves, []",
        "step.moves = [move for move in self.memory.moves if move[0] != 'in']\n"
        "        self.memory.moves = []",
    ),
    "moves_are_made_again": (
        "_swap",
        "step.moves, self.memory.moves = self.memory.moves, []",
        "step.moves = list(self.memory.moves)",
    ),
    "back_from_memory_from_the_start": (
        "_swap",
        "start = self.memory.found(seq)",
        "start = 0 if seq.status is SequenceStatus.SWAPPED else"
        " self.memory.found(seq)",
    ),
    "comes_back_without_room": (
        "_swap",
        "            if not count or not self.memory.place(seq, start + count):\n"
        "                return\n",
        "            placed = count and self.memory.place(seq, start + count)\n"
        "            if not placed and seq.status is not SequenceStatus.SWAPPED:\n"
        "                return\n",
    ),
    "swaps_without_room": (
        "_no_swap",
        "        if not saved:\n",
        "        saved = not undone\n        if not saved:\n",
    ),
    "never_swaps": (
        "_swap", "saved = not undone and self.memory.swap_out(seq)", "saved = False"
    ),
    "swaps_half_a_step": (
        "_undone_is_not_swapped",
        "saved = not undone and self.memory.swap_out(seq)",
        "saved = self.memory.swap_out(seq)",
    ),
    "what_came_back_is_offered_to_nobody": (
        "_swapped_prefix",
        "            self.memory.offer(seq, start + count)",
        "            if seq.status is not SequenceStatus.SWAPPED:\n"
        "                self.memory.offer(seq, start + count)",
    ),
    "waits_for_blocks_for_ever": (
        "_everybody_ends",
        "                budget += self._preempt(step)\n",
        "                if not step.work:\n"
        "                    break\n"
        "                budget += self._preempt(step)\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_rejects(name, capsys):
    wanted, *edits = MUTANTS[name]
    if isinstance(edits[0], str):
        edits = [tuple(edits[:2]), *edits[2:]]
    refuse(checks.scheduler, mutant(module, *edits), wanted, capsys)


def test_every_property_has_a_mutant_of_its_own():
    """Without one nobody knows if the line can turn red."""
    named = {wanted for wanted, *_ in MUTANTS.values()}
    assert names_of(checks.scheduler) == named


# ----- other right answers


class Sorts(Scheduler):
    """Two lists that are sorted when they are read, and work that is planned first."""

    def add(self, seq):
        self.waiting.append(seq)
        self.waiting.sort(key=lambda seq: seq.order)

    def remove(self, seq):
        self.running = [each for each in self.running if each is not seq]
        self.waiting = [each for each in self.waiting if each is not seq]
        self.memory.release(seq)

    def fork(self, parent, child):
        self.running = sorted([*self.running, child], key=lambda seq: seq.order)
        self.memory.fork(parent, child)


class OffersAtTheEnd(Scheduler):
    """One loop over all that wait, and offers of a running one just before it."""

    def schedule(self):
        step = Step()
        budget = self._continue(step)
        if not step.preempted:
            for work in list(step.work.values()):
                self.memory.offer(work.seq, work.end)
            self._admit(step, budget)
        step.moves = [*self.memory.moves]
        self.memory.moves.clear()
        return step


class CountsAnew(Scheduler):
    """Goes through a copy of the queue, and counts the room for each that waits."""

    def _admit(self, step, budget):
        for seq in list(self.waiting):
            start = self.memory.found(seq)
            count = self.share(seq.get_len() - start, budget)
            taken = sum(each.width for each in self.running)
            if not count or taken + seq.width > self.config.max_num_seqs:
                break
            if not self.memory.place(seq, start + count):
                break
            budget -= count
            seq.status = SequenceStatus.RUNNING
            self.waiting = self.waiting[1:]
            self.running = sorted([*self.running, seq], key=lambda seq: seq.order)
            step.work[seq.seq_id] = Work(seq, start, start + count)
            self.memory.offer(seq, start + count)


@pytest.mark.parametrize("other", [Sorts, OffersAtTheEnd, CountsAnew])
def test_another_right_answer_passes(other, capsys):
    checks.scheduler(Scheduler=other)
    assert "✗" not in capsys.readouterr().out


# ----- what a property can't say: things of this implementation alone


def sequence(name, length, arrival=0):
    data = SequenceData(list(range(100 * arrival, 100 * arrival + length)))
    order = (0, arrival, 0)
    return Sequence(name, name, data, SamplingParams(), order=order)


def test_a_step_adds_up():
    one, two = sequence("a", 3), sequence("b", 2)
    work = [Work(one, 2, 3), Work(two, 0, 2)]
    assert [each.count for each in work] == [1, 2]
    assert Step({each.seq.seq_id: each for each in work}).num_tokens == 3


def test_a_step_names_those_that_it_swaps_out():
    """When such a step fails, nobody knows if their blocks arrived in CPU memory."""
    pool = BlockManager(4, 2, num_swap_blocks=4)
    scheduler = Scheduler(SchedulerConfig(16, 8), pool)
    seqs = [sequence("a", 4), sequence("b", 4, 1)]
    for seq in seqs:
        scheduler.add(seq)
    scheduler.advance(scheduler.schedule())
    for seq in seqs:
        seq.add_token_id(7)
    step = scheduler.schedule()
    assert [seq.seq_id for seq in step.preempted] == ["b"]
    assert [seq.status for seq in step.preempted] == [SequenceStatus.SWAPPED]
    assert list(step.work) == ["a"]


def test_an_equal_sequence_is_another_one():
    """Sequences compare by value: remove() must not hit a namesake's twin."""
    scheduler = Scheduler(SchedulerConfig(16, 8), BlockManager(4, 2))
    one, two = sequence("a", 2), sequence("b", 2, 1)
    scheduler.add(one)
    scheduler.add(two)
    scheduler.remove(two)
    assert [seq.seq_id for seq in scheduler.waiting] == ["a"]
