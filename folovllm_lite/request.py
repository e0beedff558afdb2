"""A request and the sequences that answer it. Knows counters and states, no tensors."""

import copy
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
        sampling_params: shared with the other sequences of the request, never changed.
        status: where it is.
        block_ids: its blocks of the paged KV cache, in order of position.
    """

    seq_id: str
    request_id: str
    data: SequenceData
    sampling_params: SamplingParams
    status: SequenceStatus = SequenceStatus.WAITING
    block_ids: list[int] = field(default_factory=list)

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

    def fork(self, new_seq_id: str) -> "Sequence":
        """A sequence with the same past and its own future: nothing is shared."""
        forked = copy.deepcopy(self)
        forked.seq_id = new_seq_id
        return forked


@dataclass
class Request:
    """What a user asked for.

    Args:
        request_id: names it.
        prompt: its text; None when it came as token ids.
        prompt_token_ids: its tokens; every sequence gets a copy.
        sampling_params: how to answer; `best_of` sequences are made.
        arrival_time: seconds of `time.time()`.
        sequences: by seq_id.
        status: where the request as a whole is.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    arrival_time: float = field(default_factory=time.time)
    sequences: dict[str, Sequence] = field(default_factory=dict)
    status: RequestStatus = RequestStatus.WAITING

    def __post_init__(self) -> None:
        if self.sequences:
            return
        for i in range(self.sampling_params.best_of):
            seq_id = f"{self.request_id}-{i}"
            data = SequenceData(list(self.prompt_token_ids))
            self.sequences[seq_id] = Sequence(
                seq_id, self.request_id, data, self.sampling_params
            )

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
