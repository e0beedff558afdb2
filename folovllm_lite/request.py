"""A request and the sequences that answer it. Knows counters and states, no tensors."""

import copy
import hashlib
import time
from dataclasses import dataclass, field
from enum import Enum

from folovllm_lite.sampling_params import SamplingParams


class RequestStatus(Enum):
    """Where a request is between arriving and its last token."""

    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"  # its blocks are in CPU memory
    FINISHED_STOPPED = "finished_stopped"
    FINISHED_LENGTH_CAPPED = "finished_length_capped"
    FINISHED_ABORTED = "finished_aborted"

    def is_finished(self) -> bool:
        """Whether nothing more will be generated."""
        return self.value.startswith("finished")


class SequenceStatus(Enum):
    """The same for one sequence; IGNORED is one that was never begun."""

    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"
    FINISHED_STOPPED = "finished_stopped"
    FINISHED_LENGTH_CAPPED = "finished_length_capped"
    FINISHED_ABORTED = "finished_aborted"
    FINISHED_IGNORED = "finished_ignored"

    def is_finished(self) -> bool:
        """Whether nothing more will be generated."""
        return self.value.startswith("finished")


# What may come after each status: the arrows along which `Sequence.move_to` goes.
TRANSITIONS: dict[SequenceStatus, tuple[SequenceStatus, ...]] = {
    SequenceStatus.WAITING: (
        SequenceStatus.RUNNING,  # its turn has come
        SequenceStatus.FINISHED_ABORTED,
        SequenceStatus.FINISHED_IGNORED,  # it can never fit
    ),
    SequenceStatus.RUNNING: (
        SequenceStatus.WAITING,  # preempted: computed again when its turn comes
        SequenceStatus.SWAPPED,  # preempted: its blocks wait in CPU memory
        SequenceStatus.FINISHED_STOPPED,
        SequenceStatus.FINISHED_LENGTH_CAPPED,
        SequenceStatus.FINISHED_ABORTED,
    ),
    SequenceStatus.SWAPPED: (SequenceStatus.RUNNING, SequenceStatus.FINISHED_ABORTED),
    SequenceStatus.FINISHED_STOPPED: (),
    SequenceStatus.FINISHED_LENGTH_CAPPED: (),
    SequenceStatus.FINISHED_ABORTED: (),
    SequenceStatus.FINISHED_IGNORED: (),
}


@dataclass
class SequenceData:
    """The tokens of a sequence: the prompt's, then the generated ones."""

    prompt_token_ids: list[int]
    output_token_ids: list[int] = field(default_factory=list)

    def get_len(self) -> int:
        """Tokens in all."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def get_prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)

    def get_output_len(self) -> int:
        """Tokens generated so far."""
        return len(self.output_token_ids)

    def get_token_ids(self) -> list[int]:
        """A new list of all tokens."""
        return self.prompt_token_ids + self.output_token_ids

    def get_last_token_id(self) -> int:
        """The newest token, of the prompt if none was generated."""
        return (self.output_token_ids or self.prompt_token_ids)[-1]

    def get_slice(self, start: int, end: int) -> list[int]:
        """Tokens [start, end), without building the list of all."""
        prompt, at = self.prompt_token_ids, len(self.prompt_token_ids)
        if start >= at:
            return self.output_token_ids[start - at : end - at]
        return prompt[start:end] + self.output_token_ids[: max(0, end - at)]

    def add_token_id(self, token_id: int) -> None:
        """Append a generated token."""
        self.output_token_ids.append(token_id)


@dataclass
class Sequence:
    """One continuation of a prompt.

    Args:
        seq_id: `{request_id}-{i}` for the i-th of a request.
        request_id: the request it belongs to.
        data: its tokens.
        sampling_params: how to answer; never changed.
        status: where it is; `move_to` keeps to the rules, a plain assignment doesn't.
        block_ids: its blocks of the paged KV cache, in order of position.
        num_computed: tokens whose keys and values are stored there.
        order: (priority, arrival, index): who comes first, and where it goes back to.
        width: sequences that it will be once its prompt is computed and it is forked.
        cache_salt: only sequences with the same may share blocks by prefix caching.
    """

    seq_id: str
    request_id: str
    data: SequenceData
    sampling_params: SamplingParams
    status: SequenceStatus = SequenceStatus.WAITING
    block_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    order: tuple[int, int, int] = (0, 0, 0)
    width: int = 1
    cache_salt: bytes = b""

    @property
    def num_missing(self) -> int:
        """Tokens that are still to be computed; 1 while it is decoding."""
        return self.get_len() - self.num_computed

    @property
    def scores_prompt(self) -> bool:
        """Whether every token of its prompt has to be computed, to report logprobs."""
        return self.sampling_params.prompt_logprobs is not None

    def get_len(self) -> int:
        """Tokens in all."""
        return self.data.get_len()

    def get_prompt_len(self) -> int:
        """Tokens of the prompt."""
        return self.data.get_prompt_len()

    def get_output_len(self) -> int:
        """Tokens generated so far."""
        return self.data.get_output_len()

    def get_token_ids(self) -> list[int]:
        """A new list of all tokens."""
        return self.data.get_token_ids()

    def get_last_token_id(self) -> int:
        """The newest token."""
        return self.data.get_last_token_id()

    def add_token_id(self, token_id: int) -> None:
        """Append a generated token."""
        self.data.add_token_id(token_id)

    def is_finished(self) -> bool:
        """Whether nothing more will be generated."""
        return self.status.is_finished()

    def move_to(self, status: SequenceStatus) -> None:
        """Change the status along an arrow of TRANSITIONS.

        Raises:
            ValueError: where there is no arrow, with both statuses; nothing changes.
        """
        if status not in TRANSITIONS[self.status]:
            raise ValueError(
                f"sequence {self.seq_id} can't go from {self.status.name} to "
                f"{status.name}"
            )
        self.status = status

    def fork(self, new_seq_id: str) -> "Sequence":
        """A sequence with the same past and its own future: nothing is shared."""
        forked = copy.deepcopy(self)
        forked.seq_id = new_seq_id
        return forked


# A request is in the first of these that any of its sequences is in. While one goes on,
# so does the request; then one that was cut short counts more than one that stopped.
_REQUEST_STATUS = {
    SequenceStatus.RUNNING: RequestStatus.RUNNING,
    SequenceStatus.SWAPPED: RequestStatus.SWAPPED,
    SequenceStatus.WAITING: RequestStatus.WAITING,
    SequenceStatus.FINISHED_ABORTED: RequestStatus.FINISHED_ABORTED,
    SequenceStatus.FINISHED_IGNORED: RequestStatus.FINISHED_LENGTH_CAPPED,
    SequenceStatus.FINISHED_LENGTH_CAPPED: RequestStatus.FINISHED_LENGTH_CAPPED,
    SequenceStatus.FINISHED_STOPPED: RequestStatus.FINISHED_STOPPED,
}


@dataclass
class Request:
    """What a user asked for.

    Args:
        request_id: names it.
        prompt: its text; None when it came as token ids.
        prompt_token_ids: its tokens, copied; every sequence gets a copy of its own.
        sampling_params: how to answer; `best_of` sequences are made.
        arrival_time: seconds of `time.time()`.
        sequences: by seq_id.
        cache_salt: prompts with another salt never share its blocks; None is a salt
            too.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    arrival_time: float = field(default_factory=time.time)
    sequences: dict[str, Sequence] = field(default_factory=dict)
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        self.prompt_token_ids = list(self.prompt_token_ids)
        if self.sequences:
            return
        # Another hash than the blocks', so that no salt can be made to equal a block.
        salt = b""
        if self.cache_salt is not None:
            told = self.cache_salt.encode("utf-8", "surrogatepass")
            salt = hashlib.blake2b(told).digest()
        for i in range(self.sampling_params.best_of):
            seq_id = f"{self.request_id}-{i}"
            data = SequenceData(list(self.prompt_token_ids))
            self.sequences[seq_id] = Sequence(
                seq_id, self.request_id, data, self.sampling_params, cache_salt=salt
            )

    @property
    def status(self) -> RequestStatus:
        """Where the request as a whole is; it follows from its sequences."""
        found = {seq.status for seq in self.sequences.values()}
        return next(whole for part, whole in _REQUEST_STATUS.items() if part in found)

    def get_seqs(self, status: SequenceStatus | None = None) -> list[Sequence]:
        """The sequences, or those in one status."""
        return [
            seq
            for seq in self.sequences.values()
            if status is None or seq.status == status
        ]

    def get_num_seqs(self, status: SequenceStatus | None = None) -> int:
        """How many `get_seqs` returns."""
        return len(self.get_seqs(status))

    def is_finished(self) -> bool:
        """Whether all sequences are."""
        return all(seq.is_finished() for seq in self.sequences.values())
