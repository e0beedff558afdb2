"""The suite for the engine passes on the package and rejects mistakes.

A mutant is the package's module with one mistake that somebody could make, or has made.
Each has to turn the line red that is about it, and not just any.
"""

import pytest
import torch

from folovllm_lite import checks
from folovllm_lite import engine as module
from folovllm_lite.engine import LLMEngine
from tests.checks.mutants import mutant, names_of, refuse


@pytest.fixture(autouse=True)
def one_thread():
    """The model is too small for two: they would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_package_passes(capsys):
    checks.engine(module)
    out = capsys.readouterr().out
    assert "✗" not in out and "All 33 properties hold." in out


_IMPORT = "from folovllm_lite.generation import RequestState\n"
_BY_MEAN = """
class RequestState(RequestState):
    def output(self):
        told = super().output()
        if self.finished and len(self.builders) > len(told.outputs):
            best = max(
                self.builders,
                key=lambda b: b.cumulative_logprob / max(1, len(b.token_ids)),
            )
            told.outputs = [best.output(0)]
        return told


"""

# name: (the line that turns red, what stands there, what stands instead)
MUTANTS = {
    "samples_the_first_row": (
        "_one",
        "places += [first - 1] * len(completions)",
        "places += [first - work.count] * len(completions)",
    ),
    "rows_of_others": (
        "_together",
        "hidden = hidden[tensor_on(places, hidden.device)]",
        "hidden = hidden[tensor_on(places[::-1], hidden.device)]",
    ),
    "tokens_are_counted_as_sequences": (
        "_one_step_for_all",
        'self._counts["tokens"] += done.num_tokens',
        'self._counts["tokens"] += len(done.work)',
    ),
    "a_newcomer_begins_alone": (
        "_come_and_go",
        "        self.scheduler.add(first)\n",
        "        self.scheduler.clear()\n        self.scheduler.add(first)\n",
    ),
    "params_of_the_first": (
        "_own_params",
        "rows = [state.rows[index] for state, index in targets]",
        "rows = [targets[0][0].rows[0] for _ in targets]",
    ),
    "nothing_ends_a_text": (
        "_ends",
        "self.eos_token_ids = eos_token_ids",
        "self.eos_token_ids = ()",
    ),
    "the_others_never_begin": (
        "_several",
        "                self._fork(state)\n",
        "                seq.width = 1\n",
    ),
    "each_computes_the_prompt": (
        "_several",
        "        self.scheduler.add(first)\n",
        "        for seq in state.sequences:\n"
        "            seq.width = 1\n            self.scheduler.add(seq)\n",
    ),
    "as_many_rows_are_the_same_rows": (
        "_several_wait",
        "if places != list(range(len(hidden))):",
        "if len(places) != len(hidden):",
    ),
    "wide_ones_count_as_one": (
        "_several_wait",
        "first.width = len(state.sequences)",
        "first.width = min(2, len(state.sequences))",
    ),
    "best_by_the_mean": ("_best_of", _IMPORT, _IMPORT + _BY_MEAN),
    "a_chunk_is_sampled": (
        "_any_memory",
        "if work.end < seq.get_len():",
        "if False:",
    ),
    "every_chunk_begins_the_prompt": (
        "_prompt_logprobs",
        "self._score(state, work.start, hidden",
        "self._score(state, 0, hidden",
    ),
    "scores_the_output_too": (
        "_prompt_logprobs",
        "last = len(state.request.prompt_token_ids) - 1",
        "last = len(state.request.prompt_token_ids)",
    ),
    "nothing_to_do_is_computed": ("_stats", "if step.work:", "if True:"),
    "an_abort_waits_for_ever": (
        "_aborted_in_a_step",
        "                self._drop_noted()  # aborted ones; everybody, if a step was"
        " torn\n",
        "",
    ),
    "the_plan_is_always_known": (
        "_cut_short",
        "                if step is None:  # bookkeeping was cut short, by Ctrl-C for"
        " example\n",
        "                step = step or Step()\n"
        "                if step is None:\n",
    ),
    "whoever_was_preempted_is_lost_too": (
        "_failed_preempting",
        "        seqs += [seq for seq in step.preempted if seq.status is"
        " SequenceStatus.SWAPPED]\n",
        "        seqs += step.preempted\n",
    ),
    "an_aborted_ones_other_row_is_sampled": (
        "_bad_row",
        "                if not target[0].finished  # by another of its completions\n",
        "",
    ),
    "no_priority_is_a_low_one": (
        "_priorities",
        "        priority: int = 0,\n",
        "        priority: int = 1,\n",
    ),
    "none_are_no_params": (
        "_defaults",
        "params = SamplingParams() if params is None else params",
        "params = params",
    ),
    "the_memorys_end_is_forgotten": (
        "_no_limit",
        "longest = min(self.max_model_len, _room(self.scheduler)[0] + 1)",
        "longest = self.max_model_len",
    ),
    "the_last_token_is_stored_too": (
        "_no_limit",
        "_room(self.scheduler)[0] + 1)",
        "_room(self.scheduler)[0])",
    ),
    "a_full_memory_is_refused": (
        "_no_limit", "(params.max_tokens or 1) - 1", "(params.max_tokens or 2) - 1"
    ),
    "no_salt": ("_salted", "cache_salt=salt", "cache_salt=None"),
    "any_id": (
        "_refused", "if not isinstance(request_id, str) or not request_id:", "if False:"
    ),
    "any_priority": (
        "_refused",
        "if isinstance(priority, bool) or not isinstance(priority, int):",
        "if False:",
    ),
    "true_is_a_priority": (
        "_refused",
        "if isinstance(priority, bool) or not isinstance(priority, int):",
        "if not isinstance(priority, int):",
    ),
    "gone_with_the_next_step": (
        "_aborted",
        "        self._to_abort += [(each, reason) for each in several]\n"
        "        self._settle()\n",
        "        self._to_abort += [(each, reason) for each in several]\n",
    ),
    "priority_is_ignored": (
        "_priorities",
        "seq.order = (priority, arrival, index)",
        "seq.order = (0, arrival, index)",
    ),
    "the_last_come_first": (
        "_priorities",
        "seq.order = (priority, arrival, index)",
        "seq.order = (priority, -arrival, index)",
    ),
    "what_can_never_fit_is_queued": ("_refused", "if length > room:", "if False:"),
    "the_budget_is_forgotten_at_the_door": (
        "_refused",
        "if budget < room and not",
        "if False and not",
    ),
    "without_max_tokens_it_grows_past_the_budget": (
        "_no_limit",
        "_room(self.scheduler)[0] + 1",
        "self.scheduler.memory.capacity + 1",
    ),
    "the_last_token_needs_room": (
        "_refused",
        "(params.max_tokens or 1) - 1",
        "(params.max_tokens or 1)",
    ),
    "too_many_completions_are_queued": (
        "_refused",
        "if params.best_of > most:",
        "if False:",
    ),
    "the_second_of_a_name_replaces_the_first": (
        "_refused",
        "if request_id in self._states:",
        "if False:",
    ),
    "the_callers_params_are_used": (
        "_own_copy",
        "            params = replace(params)\n",
        "            pass\n",
    ),
    "draws_from_the_global_generator": (
        "_unseeded",
        "sample(logits, rows, self._generator)",
        "sample(logits, rows, None)",
    ),
    "the_seed_is_forgotten": (
        "_unseeded",
        ".manual_seed(seed)",
        ".manual_seed(0)",
    ),
    "aborted_and_still_scheduled": (
        "_aborted",
        "            for seq in state.sequences:\n"
        "                self.scheduler.remove(seq)\n            del",
        "            del",
    ),
    "only_the_first_completion_is_aborted": (
        "_aborted",
        "            for seq in state.sequences:\n"
        "                self.scheduler.remove(seq)\n            del",
        "            self.scheduler.remove(state.sequences[0])\n            del",
    ),
    "aborts_in_the_middle_of_a_step": (
        "_aborted_in_a_step",
        "        if (self._to_abort or self._torn) and not self._running.locked():\n"
        "            with self._running:\n                self._drop_noted()\n",
        "        self._drop_noted()\n",
    ),
    "aborts_in_a_step_are_lost": (
        "_aborted_in_a_step",
        "        self._to_abort += [(each, reason) for each in several]\n",
        "        if not self._running.locked():\n"
        "            self._to_abort += [(each, reason) for each in several]\n",
    ),
    "a_step_within_a_step": (
        "_one_at_a_time",
        "        if self._running.locked():\n            raise",
        "        self._running = threading.Lock()\n"
        "        if self._running.locked():\n            raise",
    ),
    "failed_and_still_there": (
        "_failing_step",
        "            self._give_up(state, error)\n",
        "            pass\n",
    ),
    "the_others_are_torn_too": (
        "_failing_step",
        "                self._torn = False  # that is dealt with: all others go on\n",
        "",
    ),
    "one_failure_is_everybodys": (
        "_failing_step",
        "        for state in lost.values():\n            self._give_up",
        "        lost = dict(self._states)\n"
        "        for state in lost.values():\n            self._give_up",
    ),
    "an_offer_stands": (
        "_failed_offers",
        "            self.scheduler.memory.withdraw(seq)\n",
        "            pass\n",
    ),
    "bad_numbers_are_found": (
        "_bad_blocks",
        "            self.scheduler.memory.withdraw(seq)\n",
        "            pass\n",
    ),
    "what_went_out_comes_back": (
        "_failed_swap",
        "        seqs += [seq for seq in step.preempted if seq.status is "
        "SequenceStatus.SWAPPED]\n",
        "",
    ),
    "no_memory_is_raised": (
        "_out_of_memory",
        "if not isinstance(error, torch.OutOfMemoryError):",
        "if True:",
    ),
    "a_bad_row_is_the_first_one": (
        "_bad_row",
        "            if len(targets) == 1:\n",
        "            if targets:\n",
    ),
    "a_bad_row_fails_the_step": (
        "_bad_row",
        "            if len(targets) == 1:\n",
        "            if targets:\n                raise\n            if True:\n",
    ),
    "ctrl_c_is_everybodys": (
        "_interrupted",
        "except BaseException as error:",
        "except Exception as error:",
    ),
    "known_until_all_are_sampled": (
        "_cut_short",
        (
            "                    done, step = step, None\n",
            "                    done = step\n",
        ),
        (
            "                    changed = self._sample(done, hidden)\n",
            "                    changed = self._sample(done, hidden)\n"
            "                    step = None\n",
        ),
    ),
    "nobody_notes_that_a_step_began": (
        "_cut_short_twice",
        "                self._torn = True  # until the end, or until an error is dealt"
        " with\n",
        "",
    ),
    "dealt_with_before_it_is": (
        "_cut_short_twice",
        "            except BaseException as error:\n",
        "            except BaseException as error:\n"
        "                self._torn = False\n",
    ),
    "cleared_before_it_is": (
        "_cut_short_twice",
        "            state.abort(reason)\n        self._states, self",
        "            state.abort(reason)\n        self._torn = False\n"
        "        self._states, self",
    ),
    "only_a_step_looks": (
        "_cut_short_twice",
        "if (self._to_abort or self._torn) and",
        "if self._to_abort and",
    ),
    "a_newcomer_is_cleared_too": (
        "_cut_short_twice",
        "        self._settle()\n        if request_id in self._states:\n",
        "        if request_id in self._states:\n",
    ),
    "an_abort_is_begun_unnoted": (
        "_abort_cut_short",
        "            self._torn = True  # half of a release, done again, counts a block"
        " twice\n",
        "",
    ),
    "an_abort_is_done_again": (
        "_abort_cut_short",
        "            self._torn = True  # half of a release, done again, counts a block"
        " twice\n            self._drop(*self._to_abort.pop())\n"
        "            self._torn = False\n",
        "            self._drop(*self._to_abort[-1])\n"
        "            self._to_abort.pop()\n",
    ),
    "an_abort_is_forgotten_before_it_is_done": (
        "_abort_cut_short",
        "            self._torn = True  # half of a release, done again, counts a block"
        " twice\n            self._drop(*self._to_abort.pop())\n"
        "            self._torn = False\n",
        "            abort = self._to_abort.pop()\n            self._drop(*abort)\n",
    ),
    "arrival_by_who_is_there": (
        "_priorities",
        "arrival = next(self._arrivals)",
        "arrival = len(self._states)",
    ),
    "what_comes_back_is_sampled_by_its_prompt": (
        "_any_memory",
        "if work.end < seq.get_len():",
        "if work.end < seq.get_prompt_len():",
    ),
    "rows_of_whoever_is_behind_are_scored": (
        "_prompt_logprobs",
        "hidden[first : first + work.count])",
        "hidden[first:])",
    ),
    "why_it_was_aborted_is_lost": (
        "_out_of_memory",
        "reason = str(error) or type(error).__name__",
        'reason = "aborted"',
    ),
    "steps_that_preempt_are_counted": (
        "_stats",
        'self._counts["preemptions"] += len(step.preempted)',
        'self._counts["preemptions"] += bool(step.preempted)',
    ),
    "ctrl_c_leaves_the_step_open": (
        "_interrupted",
        "            except BaseException as error:\n",
        "            except KeyboardInterrupt:\n"
        "                self._torn = False\n                raise\n"
        "            except BaseException as error:\n",
    ),
    "who_runs_waits": (
        "_stats",
        '"running": len(self.scheduler.running)',
        '"running": len(self.scheduler.waiting)',
    ),
    "preemptions_are_not_counted": (
        "_stats",
        'self._counts["preemptions"] += len(step.preempted)',
        "pass",
    ),
    "the_memory_is_not_asked": (
        "_stats",
        "            **self.scheduler.memory.stats(),\n",
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_rejects(name, capsys):
    wanted, *edits = MUTANTS[name]
    if isinstance(edits[0], str):
        edits = [tuple(edits)]
    refuse(checks.engine, mutant(module, *edits), wanted, capsys)


def test_every_property_has_a_mutant_of_its_own():
    """Without one nobody knows if the line can turn red."""
    assert names_of(checks.engine) == {wanted for wanted, *_ in MUTANTS.values()}


# ----- other right answers


class RowByRow(LLMEngine):
    """Samples each row on its own, and not all at once."""

    def _take(self, logits, targets):
        changed = {}
        for row, target in enumerate(targets):
            if not target[0].finished:
                changed |= super()._take(logits[row : row + 1], [target])
        return changed


class Around:
    """Has an engine, and is none."""

    def __init__(self, model, tokenizer, scheduler, runner, **options):
        self.scheduler, self.runner = scheduler, runner
        self.own = LLMEngine(model, tokenizer, scheduler, runner, **options)

    def add_request(self, request_id, prompt, params=None, priority=0):
        self.own.add_request(request_id, prompt, params, priority)

    def abort_request(self, request_id, reason=None):
        self.own.abort_request(request_id, reason)

    def has_unfinished_requests(self):
        return self.own.has_unfinished_requests()

    def step(self):
        return self.own.step()

    def stats(self):
        return self.own.stats()


class Lazy(LLMEngine):
    """Three parts; what is cut short is cleared by the next call, and no sooner."""

    def compute(self):
        if self._running.locked():
            raise RuntimeError("one step at a time")
        with self._running, torch.inference_mode():
            self._drop_noted()
            self._torn = True
            step = self.scheduler.schedule()
            self._counts["preemptions"] += len(step.preempted)
            changed = self._computed(step) if step.work else []
            self._torn = False
            return changed

    def _computed(self, step):
        try:
            hidden = self.runner.run(step)
        except BaseException as error:
            lost = self._lose(step, error)
            self._torn = False
            if isinstance(error, torch.OutOfMemoryError):
                return lost
            raise
        self.scheduler.advance(step)
        self._counts["steps"] += 1
        self._counts["tokens"] += step.num_tokens
        return self._sample(step, hidden)


@pytest.mark.parametrize("other", [RowByRow, Around, Lazy])
def test_another_right_answer_passes(other, capsys):
    checks.engine(LLMEngine=other)
    assert "✗" not in capsys.readouterr().out
