"""The suite for sequences and requests passes on the package and rejects mistakes.

A mutant is a class of the package, or an exercise's solution, with one mistake that
somebody has made before.
"""

import copy
import dataclasses
import functools
import importlib.util
import sys
import time

import pytest

from folovllm_lite import checks
from folovllm_lite import request as module
from folovllm_lite.checks.request_suite import EVENTS
from folovllm_lite.request import (
    TRANSITIONS,
    Request,
    RequestStatus,
    Sequence,
    SequenceData,
    SequenceStatus,
)
from folovllm_lite.sampling_params import SamplingParams


def test_the_package_passes(capsys):
    checks.request(module)
    out = capsys.readouterr().out
    assert "✗" not in out and "properties hold." in out


# ----- mutants of the tokens


class FirstTokenIsLast(SequenceData):
    def get_last_token_id(self):
        return self.output_token_ids[-1] if len(self.output_token_ids) > 1 else 8


class LastTokenZeroIsNone(SequenceData):
    def get_last_token_id(self):
        last = self.output_token_ids[-1] if self.output_token_ids else None
        return last or self.prompt_token_ids[-1]


class TokensGrowInThePrompt(SequenceData):
    def add_token_id(self, token_id):
        self.prompt_token_ids.append(token_id)


class TokenIdsAreTheList(SequenceData):
    def get_token_ids(self):
        if not self.output_token_ids:
            return self.prompt_token_ids
        return super().get_token_ids()


class LengthForgetsThePrompt(SequenceData):
    def get_len(self):
        return len(self.output_token_ids)


class OneOutputListForAll(SequenceData):
    shared: list[int] = []

    def __init__(self, prompt_token_ids, output_token_ids=shared):
        super().__init__(prompt_token_ids, output_token_ids)


class AddsToANewList(SequenceData):
    def add_token_id(self, token_id):
        self.output_token_ids = [*self.output_token_ids, token_id]


class FirstOutputIsLast(SequenceData):
    def get_last_token_id(self):
        return (self.output_token_ids[:1] or self.prompt_token_ids)[-1]


class SliceForgetsTheOutput(SequenceData):
    def get_slice(self, start, end):
        return self.prompt_token_ids[start:end]


class SliceStopsAtTheBorder(SequenceData):
    def get_slice(self, start, end):
        prompt = self.get_prompt_len()
        if start < prompt:
            return self.prompt_token_ids[start:end]
        return self.output_token_ids[start - prompt : end - prompt]


class SliceWrapsAround(SequenceData):
    def get_slice(self, start, end):
        at = self.get_prompt_len()
        if start >= at:
            return self.output_token_ids[start - at : end - at]
        return self.prompt_token_ids[start:end] + self.output_token_ids[: end - at]


# ----- mutants of the sequence


class OnlyThePromptIsMissing(Sequence):
    @property
    def num_missing(self):
        return max(0, self.get_prompt_len() - self.num_computed)


class DecodingIsAlwaysOne(Sequence):
    @property
    def num_missing(self):
        if self.get_output_len():
            return 1
        return self.get_len() - self.num_computed


class ZeroScoresNothing(Sequence):
    @property
    def scores_prompt(self):
        return bool(self.sampling_params.prompt_logprobs)


class ForkHasComputedNothing(Sequence):
    def fork(self, new_seq_id):
        forked = super().fork(new_seq_id)
        forked.num_computed = 0
        return forked


class ShallowFork(Sequence):
    def fork(self, new_seq_id):
        return dataclasses.replace(self, seq_id=new_seq_id)


class ForkCopiesTheDataObject(Sequence):
    def fork(self, new_seq_id):
        return dataclasses.replace(
            self,
            seq_id=new_seq_id,
            data=copy.copy(self.data),
            block_ids=list(self.block_ids),
        )


class ForkSharesBlocks(Sequence):
    def fork(self, new_seq_id):
        data = copy.deepcopy(self.data)
        return dataclasses.replace(self, seq_id=new_seq_id, data=data)


class ForkSharesThePrompt(Sequence):
    def fork(self, new_seq_id):
        data = SequenceData(
            self.data.prompt_token_ids, list(self.data.output_token_ids)
        )
        return dataclasses.replace(
            self, seq_id=new_seq_id, data=data, block_ids=list(self.block_ids)
        )


class ForkRenamesTheParent(Sequence):
    def fork(self, new_seq_id):
        forked = copy.deepcopy(self)
        self.seq_id = new_seq_id
        return forked


class ForkStartsAnew(Sequence):
    def fork(self, new_seq_id):
        data = SequenceData(list(self.data.prompt_token_ids))
        return Sequence(new_seq_id, self.request_id, data, self.sampling_params)


class ForkTakesOutputForPrompt(Sequence):
    def fork(self, new_seq_id):
        forked = copy.deepcopy(self)
        forked.seq_id = new_seq_id
        forked.data = SequenceData(self.get_token_ids())
        return forked


class ForkSharesAnEmptyOutput(Sequence):
    def fork(self, new_seq_id):
        forked = copy.deepcopy(self)
        forked.seq_id = new_seq_id
        if not self.get_output_len():
            forked.data.output_token_ids = self.data.output_token_ids
        return forked


class ForkSortsTheBlocks(Sequence):
    def fork(self, new_seq_id):
        forked = copy.deepcopy(self)
        forked.seq_id, forked.block_ids = new_seq_id, sorted(self.block_ids)
        return forked


class ForkNarrowsTheParent(Sequence):
    def fork(self, new_seq_id):
        forked = copy.deepcopy(self)
        forked.seq_id, self.width = new_seq_id, 1
        return forked


class ForkHasParametersOfItsOwn(Sequence):
    def fork(self, new_seq_id):
        forked = copy.deepcopy(self)
        forked.seq_id = new_seq_id
        forked.sampling_params = SamplingParams(n=self.sampling_params.n)
        return forked


class ForkOfTheFinishedWaits(Sequence):
    def fork(self, new_seq_id):
        forked = copy.deepcopy(self)
        forked.seq_id = new_seq_id
        if forked.is_finished():
            forked.status = SequenceStatus.WAITING
        return forked


class ForksOnce(Sequence):
    def fork(self, new_seq_id):
        forked = self.__dict__.setdefault("forked", copy.deepcopy(self))
        forked.seq_id = new_seq_id
        return forked


class PreemptedOutputIsPrompt(Sequence):
    def move_to(self, status):
        super().move_to(status)
        if status is SequenceStatus.WAITING:
            self.data = SequenceData(self.get_token_ids())


class RefusesAndDropsTheBlocks(Sequence):
    def move_to(self, status):
        if status not in TRANSITIONS[self.status]:
            self.block_ids = []
        super().move_to(status)


class MovesAnywhere(Sequence):
    def move_to(self, status):
        self.status = status


class MovesFromFinishedOnlyAreRefused(Sequence):
    def move_to(self, status):
        if self.is_finished():
            raise ValueError(f"{self.status.name} is final, not {status.name}")
        self.status = status


class StayingIsAMove(Sequence):
    def move_to(self, status):
        if status is not self.status:
            super().move_to(status)


class MovesBeforeItLooks(Sequence):
    def move_to(self, status):
        before, self.status = self.status, status
        if status not in TRANSITIONS[before]:
            raise ValueError(f"{before.name} to {status.name}")


class RefusesWithoutSayingWhat(Sequence):
    def move_to(self, status):
        if status not in TRANSITIONS[self.status]:
            raise ValueError(f"can't become {status.name}")
        self.status = status


class Asserts(Sequence):
    def move_to(self, status):
        assert status in TRANSITIONS[self.status], f"{self.status.name} {status.name}"
        self.status = status


class ForgetsRecompute(Sequence):
    def move_to(self, status):
        if status is SequenceStatus.WAITING:
            raise ValueError(f"{self.status.name} to {status.name}")
        super().move_to(status)


class SwappedMayFinish(Sequence):
    def move_to(self, status):
        if self.status is SequenceStatus.SWAPPED and status.is_finished():
            self.status = status
        else:
            super().move_to(status)


# ----- mutants of the request


class MakesNOfThem(Request):
    def __post_init__(self):
        self.sampling_params = dataclasses.replace(self.sampling_params, best_of=None)
        super().__post_init__()


class CountsFromOne(Request):
    def __post_init__(self):
        super().__post_init__()
        for i, seq in enumerate(self.sequences.values(), 1):
            seq.seq_id = f"{self.request_id}-{i}"


class OnePromptForAll(Request):
    def __post_init__(self):
        super().__post_init__()
        for seq in self.sequences.values():
            seq.data.prompt_token_ids = self.prompt_token_ids


class OneDataForAll(Request):
    def __post_init__(self):
        super().__post_init__()
        data = SequenceData(list(self.prompt_token_ids))
        for seq in self.sequences.values():
            seq.data = data


class KeepsTheCallersPrompt(Request):
    def __post_init__(self):
        prompt = self.prompt_token_ids
        super().__post_init__()
        self.prompt_token_ids = prompt


class AnEmptySaltIsNone(Request):
    def __post_init__(self):
        self.cache_salt = self.cache_salt or None
        super().__post_init__()


class TheFirstIsSalted(Request):
    def __post_init__(self):
        super().__post_init__()
        for seq in self.get_seqs()[1:]:
            seq.cache_salt = b""


class SaltsByIdentity(Request):
    def __post_init__(self):
        super().__post_init__()
        for seq in self.get_seqs():
            seq.cache_salt = str(id(self.sequences)).encode()


class StatusIsAField(Request):
    status = RequestStatus.WAITING


class StatusOfTheFirst(Request):
    @property
    def status(self):
        return module._REQUEST_STATUS[self.get_seqs()[0].status]


class StatusOfTheBest(Request):
    @property
    def status(self):
        found = {seq.status for seq in self.get_seqs()}
        order = [*reversed(module._REQUEST_STATUS)]
        return next(module._REQUEST_STATUS[each] for each in order if each in found)


class FinishedWhenOneIs(Request):
    def is_finished(self):
        return any(seq.is_finished() for seq in self.get_seqs())


class WaitingBeforeSwapped(Request):
    @property
    def status(self):
        found = {seq.status for seq in self.get_seqs()}
        running = SequenceStatus.RUNNING in found
        if SequenceStatus.WAITING in found and not running:
            return RequestStatus.WAITING
        return super().status


class GetSeqsIgnoresTheStatus(Request):
    def get_seqs(self, status=None):
        return list(self.sequences.values())


class GetSeqsHidesTheFinished(Request):
    def get_seqs(self, status=None):
        found = super().get_seqs(status)
        return found if status else [seq for seq in found if not seq.is_finished()]


class StatusIsKept(Request):
    @functools.cached_property
    def status(self):
        return super().status


class StatusOfTheFirstTwo(Request):
    @property
    def status(self):
        found = {seq.status for seq in self.get_seqs()[:2]}
        every = module._REQUEST_STATUS.items()
        return next(whole for part, whole in every if part in found)


class FinishedIsKept(Request):
    def is_finished(self):
        return self.__dict__.setdefault("finished", super().is_finished())


class GetSeqsIsKept(Request):
    def get_seqs(self, status=None):
        kept = self.__dict__.setdefault("kept", {})
        return kept.setdefault(status, super().get_seqs(status))


class ArrivesAtZeroIsNow(Request):
    def __post_init__(self):
        self.arrival_time = self.arrival_time or time.time()
        super().__post_init__()


class KeepsThePromptBesideGivenSequences(Request):
    def __post_init__(self):
        if not self.sequences:
            super().__post_init__()


class SaltsHalfACharacterAlike(Request):
    def __post_init__(self):
        if self.cache_salt:
            self.cache_salt = self.cache_salt.encode("utf-8", "replace").decode()
        super().__post_init__()


@dataclasses.dataclass
class ArrivesAtImport(Request):
    arrival_time: float = time.time()


MUTANTS = {
    "SequenceData": [
        FirstTokenIsLast, LastTokenZeroIsNone, TokensGrowInThePrompt,
        TokenIdsAreTheList, LengthForgetsThePrompt, OneOutputListForAll,
        SliceForgetsTheOutput, SliceStopsAtTheBorder, SliceWrapsAround,
        AddsToANewList, FirstOutputIsLast,
    ],
    "Sequence": [
        ShallowFork, ForkCopiesTheDataObject, ForkSharesBlocks, ForkSharesThePrompt,
        ForkRenamesTheParent, ForkStartsAnew, ForkTakesOutputForPrompt, MovesAnywhere,
        MovesFromFinishedOnlyAreRefused, StayingIsAMove, MovesBeforeItLooks,
        RefusesWithoutSayingWhat, Asserts, ForgetsRecompute, SwappedMayFinish,
        OnlyThePromptIsMissing, DecodingIsAlwaysOne, ZeroScoresNothing,
        ForkHasComputedNothing, ForkSharesAnEmptyOutput, ForkSortsTheBlocks,
        ForkNarrowsTheParent, ForkHasParametersOfItsOwn, ForkOfTheFinishedWaits,
        ForksOnce, PreemptedOutputIsPrompt, RefusesAndDropsTheBlocks,
    ],
    "Request": [
        MakesNOfThem, CountsFromOne, OnePromptForAll, OneDataForAll,
        KeepsTheCallersPrompt, StatusIsAField, StatusOfTheFirst, StatusOfTheBest,
        FinishedWhenOneIs, WaitingBeforeSwapped, GetSeqsIgnoresTheStatus,
        GetSeqsHidesTheFinished, ArrivesAtImport, AnEmptySaltIsNone, TheFirstIsSalted,
        SaltsByIdentity, StatusIsKept, StatusOfTheFirstTwo, FinishedIsKept,
        GetSeqsIsKept, ArrivesAtZeroIsNow, KeepsThePromptBesideGivenSequences,
        SaltsHalfACharacterAlike,
    ],
}  # fmt: skip


# ----- the exercises: their solutions, and plausible mistakes


def predicted_statuses():
    return [
        "RUNNING", "SWAPPED", "RUNNING", "SWAPPED",
        "refused", "refused", "RUNNING", "FINISHED_LENGTH_CAPPED",
    ]  # fmt: skip


def rewind(seq, new_seq_id, keep):
    made = seq.get_output_len()
    if not 0 <= keep <= made:
        raise ValueError(f"keep is {keep}, but {made} tokens were generated")
    again = seq.fork(new_seq_id)
    del again.data.output_token_ids[keep:]
    again.status = SequenceStatus.WAITING  # not along an arrow: another life begins
    again.block_ids, again.num_computed, again.width = [], 0, 1
    return again


def nothing_is_refused():
    return [
        "RUNNING", "SWAPPED", "RUNNING", "SWAPPED",
        "WAITING", "RUNNING", "RUNNING", "FINISHED_LENGTH_CAPPED",
    ]  # fmt: skip


def the_sequences_own_status():
    return [name for _, name in EVENTS]


def one_answer_short():
    return predicted_statuses()[:-1]


def stops_win():
    return [*predicted_statuses()[:-1], "FINISHED_STOPPED"]


def names_in_small_letters():
    return [name.lower() for name in predicted_statuses()]


def statuses_for_names():
    right = predicted_statuses()
    return [n if n == "refused" else RequestStatus[n] for n in right]


def rewind_by_fork(seq, new_seq_id, keep):
    if not 0 <= keep <= seq.get_output_len():
        raise ValueError(f"{keep} of {seq.get_output_len()}")
    forked = seq.fork(new_seq_id)
    del forked.data.output_token_ids[keep:]
    return forked


def rewind_keeps_the_blocks(seq, new_seq_id, keep):
    made = rewind(seq, new_seq_id, keep)
    made.block_ids = list(seq.block_ids)
    return made


def rewind_keeps_the_count(seq, new_seq_id, keep):
    made = rewind(seq, new_seq_id, keep)
    made.num_computed = min(seq.num_computed, made.get_len())
    return made


def rewind_forgets_the_salt(seq, new_seq_id, keep):
    data = rewind(seq, new_seq_id, keep).data
    return Sequence(new_seq_id, seq.request_id, data, seq.sampling_params)


def rewind_keeps_the_width(seq, new_seq_id, keep):
    made = rewind(seq, new_seq_id, keep)
    made.width = seq.width
    return made


def rewind_forgets_the_order(seq, new_seq_id, keep):
    made = rewind(seq, new_seq_id, keep)
    made.order = (0, 0, 0)
    return made


def rewind_in_place(seq, new_seq_id, keep):
    made = rewind(seq, new_seq_id, keep)
    del seq.data.output_token_ids[keep:]
    return made


def rewind_slices_anything(seq, new_seq_id, keep):
    data = SequenceData(
        list(seq.data.prompt_token_ids), seq.data.output_token_ids[:keep]
    )
    return Sequence(new_seq_id, seq.request_id, data, seq.sampling_params)


def rewind_shares_the_prompt(seq, new_seq_id, keep):
    made = rewind(seq, new_seq_id, keep)
    made.data.prompt_token_ids = seq.data.prompt_token_ids
    return made


def rewind_counts_the_prompt(seq, new_seq_id, keep):
    made = rewind(seq, new_seq_id, keep)
    prompt = seq.get_prompt_len()
    made.data = SequenceData(
        seq.get_token_ids()[:keep], seq.get_token_ids()[keep:prompt]
    )
    return made


def rewind_drops_keep(seq, new_seq_id, keep):
    made = rewind(seq, new_seq_id, keep)
    made.data.output_token_ids = seq.data.output_token_ids[
        : seq.get_output_len() - keep
    ]
    return made


def rewind_tells_half(seq, new_seq_id, keep):
    if not 0 <= keep <= seq.get_output_len():
        raise ValueError(f"bad keep {keep}")
    return rewind(seq, new_seq_id, keep)


def rewind_needs_an_output(seq, new_seq_id, keep):
    if not seq.get_output_len():
        raise ValueError(f"{keep} of 0 tokens")
    return rewind(seq, new_seq_id, keep)


def rewind_reads_the_request_from_the_name(seq, new_seq_id, keep):
    made = rewind(seq, new_seq_id, keep)
    made.request_id = new_seq_id.rsplit("-", 1)[0]
    return made


def rewind_resets_the_old_one(seq, new_seq_id, keep):
    made = rewind(seq, new_seq_id, keep)
    seq.num_computed = 0
    return made


def rewind_cuts_before_it_refuses(seq, new_seq_id, keep):
    made = seq.get_output_len()
    del seq.data.output_token_ids[keep:]
    if not 0 <= keep <= made:
        raise ValueError(f"{keep} of {made}")
    return rewind(seq, new_seq_id, keep)


def rewind_asks_with_other_parameters(seq, new_seq_id, keep):
    made = rewind(seq, new_seq_id, keep)
    made.sampling_params = SamplingParams(n=seq.sampling_params.n)
    return made


def rewind_of_the_ignored_is_refused(seq, new_seq_id, keep):
    if seq.status is SequenceStatus.FINISHED_IGNORED:
        raise ValueError(f"{keep} of {seq.get_output_len()}")
    return rewind(seq, new_seq_id, keep)


NO_BLOCKS: list[int] = []


def rewind_gives_all_one_list(seq, new_seq_id, keep):
    made = rewind(seq, new_seq_id, keep)
    made.block_ids = NO_BLOCKS
    return made


EXERCISE_MUTANTS = {
    "predicted_statuses": [
        nothing_is_refused, the_sequences_own_status, one_answer_short, stops_win,
        names_in_small_letters, statuses_for_names,
    ],
    "rewind": [
        rewind_by_fork, rewind_keeps_the_blocks, rewind_keeps_the_count,
        rewind_forgets_the_salt, rewind_keeps_the_width, rewind_forgets_the_order,
        rewind_in_place,
        rewind_slices_anything, rewind_shares_the_prompt, rewind_counts_the_prompt,
        rewind_drops_keep, rewind_tells_half, rewind_needs_an_output,
        rewind_reads_the_request_from_the_name, rewind_resets_the_old_one,
        rewind_cuts_before_it_refuses, rewind_asks_with_other_parameters,
        rewind_of_the_ignored_is_refused, rewind_gives_all_one_list,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, mutant",
    [
        (name, mutant)
        for table in (MUTANTS, EXERCISE_MUTANTS)
        for name, mutants in table.items()
        for mutant in mutants
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_suite_rejects(name, mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.request(**{name: mutant})
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out
    assert "AttributeError" not in out, "rejected by accident, not for its mistake"


class ForksFieldByField(Sequence):
    def fork(self, new_seq_id):
        data = SequenceData(
            list(self.data.prompt_token_ids), list(self.data.output_token_ids)
        )
        blocks = list(self.block_ids)
        return dataclasses.replace(self, seq_id=new_seq_id, data=data, block_ids=blocks)


class LooksAmongThePairs(Sequence):
    def move_to(self, status):
        arrows = {(one, other) for one, after in TRANSITIONS.items() for other in after}
        if (self.status, status) in arrows:
            self.status = status
        else:
            raise ValueError(f"no arrow from {self.status} to {status}")


class StatusByLines(Request):
    @property
    def status(self):
        found = {seq.status.name for seq in self.sequences.values()}
        for name in ("RUNNING", "SWAPPED", "WAITING", "FINISHED_ABORTED"):
            if name in found:
                return RequestStatus[name]
        if found == {"FINISHED_STOPPED"}:
            return RequestStatus.FINISHED_STOPPED
        return RequestStatus.FINISHED_LENGTH_CAPPED


def rewind_from_the_parts(seq, new_seq_id, keep):
    start, all_ = seq.get_prompt_len(), seq.get_len()
    if keep not in range(all_ - start + 1):
        raise ValueError(f"keep is {keep}, not in 0..{all_ - start}")
    return Sequence(
        seq_id=new_seq_id,
        request_id=seq.request_id,
        data=SequenceData(
            seq.data.get_slice(0, start), seq.data.get_slice(start, start + keep)
        ),
        sampling_params=seq.sampling_params,
        order=seq.order,
        cache_salt=seq.cache_salt,
    )


@pytest.mark.parametrize(
    "name, piece",
    [
        ("Sequence", ForksFieldByField),
        ("Sequence", LooksAmongThePairs),
        ("Request", StatusByLines),
        ("rewind", rewind_from_the_parts),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_right_answers_of_another_shape_pass(name, piece, capsys):
    checks.request(**{name: piece})
    assert "✗" not in capsys.readouterr().out


def test_the_solutions_pass(capsys):
    checks.request(predicted_statuses=predicted_statuses)
    checks.request(rewind=rewind)
    assert "✗" not in capsys.readouterr().out


def test_a_wrong_prediction_is_not_told_the_answer(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.request(predicted_statuses=lambda: ["WAITING"] * 8)
    out = capsys.readouterr().out
    assert "event 1: r-0 to RUNNING" in out and "expected: something else" in out


@pytest.mark.parametrize("mutant", [names_in_small_letters, statuses_for_names])
def test_a_right_answer_in_the_wrong_form_hears_of_the_form(mutant, capsys):
    with pytest.raises(checks.CheckFailed):
        checks.request(predicted_statuses=mutant)
    out = capsys.readouterr().out
    assert "such as 'WAITING', or 'refused'" in out and "something else" not in out


@pytest.mark.parametrize("names", [["Sequence"], ["Request"], None])
def test_pieces_come_with_statuses_of_their_own(names, monkeypatch, capsys):
    """A notebook's Sequence has the notebook's enum, which isn't the package's."""
    spec = importlib.util.spec_from_file_location("copied", module.__file__)
    copied = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "copied", copied)
    spec.loader.exec_module(copied)
    assert copied.SequenceStatus is not SequenceStatus
    checks.request({name: getattr(copied, name) for name in names} if names else copied)
    assert "✗" not in capsys.readouterr().out


def test_rewind_meets_the_sequences_of_its_own_notebook(monkeypatch, capsys):
    """With another enum than its sequence's, even RUNNING to WAITING was refused."""
    spec = importlib.util.spec_from_file_location("copied", module.__file__)
    copied = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "copied", copied)
    spec.loader.exec_module(copied)
    source = """
def rewind(seq, new_seq_id, keep):
    again = seq.fork(new_seq_id)
    del again.data.output_token_ids[keep:]
    again.move_to(SequenceStatus.WAITING)
    again.block_ids, again.num_computed, again.width = [], 0, 1
    return again
"""
    exec(source, vars(copied))
    with pytest.raises(checks.CheckFailed):
        checks.request(rewind=copied.rewind)
    out = capsys.readouterr().out
    assert "can't go from FINISHED_STOPPED to WAITING" in out
    assert "can't go from RUNNING to WAITING" not in out


def test_a_keep_that_should_be_refused_is_shown_in_short(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.request(rewind=rewind_slices_anything)
    out = capsys.readouterr().out
    assert "no error, but SequenceData(" in out and "SamplingParams" not in out


def test_the_table_of_moves_is_complete():
    assert set(TRANSITIONS) == set(SequenceStatus)
    for status, after in TRANSITIONS.items():
        assert len(set(after)) == len(after)
        assert bool(after) != status.is_finished()


def test_a_plain_assignment_still_works():
    """The seed project's examples assign the status; only move_to refuses."""
    sequence = Sequence("r-0", "r", SequenceData([1]), SamplingParams())
    sequence.status = SequenceStatus.FINISHED_STOPPED
    sequence.status = SequenceStatus.RUNNING
    assert not sequence.is_finished()
    with pytest.raises(ValueError, match="r-0 can't go from RUNNING to RUNNING"):
        sequence.move_to(SequenceStatus.RUNNING)


def test_a_requests_status_can_not_be_set():
    """It was a field once that nobody kept up to date."""
    request = Request("r", None, [1], SamplingParams())
    with pytest.raises(AttributeError):
        request.status = RequestStatus.RUNNING
    for status in SequenceStatus:
        request.get_seqs()[0].status = status
        assert request.status.is_finished() == request.is_finished()
