"""The suites pass on the package and reject plausible mistakes, each by name.

A mutant is the package's function with one mistake that somebody has made before. The
suite has to notice it, and has to say what a learner needs: input, result, hint.
"""

import dataclasses
import math

import pytest
import torch

from folovllm_lite import checks
from folovllm_lite import config as config_module
from folovllm_lite import sampler as sampler_module
from folovllm_lite.checks.harness import Suite, expect, expect_error
from folovllm_lite.sampler import SamplerOutput
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import Scheduler

REMOVED = -math.inf


def test_the_package_passes(capsys):
    checks.config(config_module)
    checks.sampler(sampler_module)
    out = capsys.readouterr().out
    assert "✗" not in out and out.count("properties hold.") == 2


# ----- mutants of the sampler


def min_p_times_the_logit(logits, min_p):
    return logits.masked_fill(logits < logits.amax(-1, True) * min_p, REMOVED)


def min_p_of_one(logits, min_p):
    return logits.masked_fill(logits.softmax(-1) < min_p, REMOVED)


def min_p_of_the_first_row(logits, min_p):
    return sampler_module.apply_min_p(logits, min_p[:1])


def top_k_by_value(logits, top_k):
    V = logits.shape[-1]
    k = top_k.where(top_k > 0, V).clamp(max=V).long()
    least = logits.sort(-1, descending=True).values.gather(-1, k - 1)
    return logits.masked_fill(logits < least, REMOVED)


def top_k_unstable(logits, top_k):
    order = logits.flip(-1).argsort(dim=-1, descending=True, stable=True)
    order = logits.shape[-1] - 1 - order  # the higher id of two wins
    cut = torch.arange(logits.shape[-1]) >= top_k.where(top_k > 0, logits.shape[-1])
    return logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), REMOVED)


def top_k_one_more(logits, top_k):
    return sampler_module.apply_top_k(logits, top_k.where(top_k < 0, top_k + 1))


def top_k_without_minus_one(logits, top_k):
    order = logits.argsort(dim=-1, descending=True, stable=True)
    cut = torch.arange(logits.shape[-1]) >= top_k
    return logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), REMOVED)


def top_k_beyond_the_vocabulary(logits, top_k):
    if int(top_k.max()) > logits.shape[-1]:
        raise RuntimeError("selected index k out of range")
    return sampler_module.apply_top_k(logits, top_k)


def top_k_in_place(logits, top_k):
    return logits.copy_(sampler_module.apply_top_k(logits, top_k))


def _top_p(logits, top_p, cut_of, stable=True):
    probs = logits.softmax(-1)
    ranked, order = probs.sort(dim=-1, descending=True, stable=stable)
    cut = cut_of(ranked, top_p)
    return logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), REMOVED)


def top_p_drops_the_crossing_token(logits, top_p):
    def cut_of(ranked, top_p):
        cut = (ranked.cumsum(-1) > top_p) & (top_p < 1)
        cut[..., 0] = False
        return cut

    return _top_p(logits, top_p, cut_of)


def top_p_may_remove_all(logits, top_p):
    return _top_p(logits, top_p, lambda r, p: (r.cumsum(-1) > p) & (p < 1))


def top_p_keeps_one_more(logits, top_p):
    def cut_of(ranked, top_p):
        before = ranked.cumsum(-1) - ranked
        cut = (before >= top_p) & (top_p < 1)
        return torch.cat([torch.zeros_like(cut[:, :1]), cut[:, :-1]], -1)

    return _top_p(logits, top_p, cut_of)


def top_p_one_is_not_off(logits, top_p):
    return _top_p(logits, top_p, lambda r, p: r.cumsum(-1) - r >= p)


def top_p_not_scattered_back(logits, top_p):
    ranked = logits.softmax(-1).sort(dim=-1, descending=True, stable=True).values
    cut = (ranked.cumsum(-1) - ranked >= top_p) & (top_p < 1)
    return logits.masked_fill(cut, REMOVED)


def _penalties(logits, rows, change):
    logits = logits.clone()
    for i, row in enumerate(rows):
        change(logits[i], row)
    return logits


def repetition_always_divides(logits, rows):
    def change(logits, row):
        seen = sorted({*row.prompt_token_ids, *row.output_token_ids})
        logits[seen] /= row.params.repetition_penalty
        for i in row.output_token_ids:
            logits[i] -= row.params.frequency_penalty
        logits[sorted(set(row.output_token_ids))] -= row.params.presence_penalty

    return _penalties(logits, rows, change)


def repetition_once_per_occurrence(logits, rows):
    def change(logits, row):
        scale = row.params.repetition_penalty
        for i in [*row.prompt_token_ids, *row.output_token_ids]:
            logits[i] = logits[i] / scale if logits[i] > 0 else logits[i] * scale
        for i in row.output_token_ids:
            logits[i] -= row.params.frequency_penalty
        logits[sorted(set(row.output_token_ids))] -= row.params.presence_penalty

    return _penalties(logits, rows, change)


def penalties_look_at_the_prompt(logits, rows):
    rows = [
        dataclasses.replace(
            row, output_token_ids=[*row.prompt_token_ids, *row.output_token_ids]
        )
        for row in rows
    ]
    return sampler_module.apply_penalties(logits, rows)


def repetition_forgets_the_prompt(logits, rows):
    rows = [dataclasses.replace(row, prompt_token_ids=[]) for row in rows]
    return sampler_module.apply_penalties(logits, rows)


def presence_counts(logits, rows):
    def change(logits, row):
        for i in row.output_token_ids:
            logits[i] -= row.params.frequency_penalty + row.params.presence_penalty

    return _penalties(logits, rows, change)


def penalties_of_the_last_row(logits, rows):
    return sampler_module.apply_penalties(logits, [rows[-1]] * len(rows))


def min_tokens_off_by_one(logits, rows):
    rows = [
        dataclasses.replace(row, output_token_ids=row.output_token_ids[1:])
        for row in rows
    ]
    return sampler_module.mask_stop_tokens(logits, rows)


def min_tokens_masks_the_first_stop_token(logits, rows):
    rows = [
        dataclasses.replace(row, stop_token_ids=row.stop_token_ids[:1]) for row in rows
    ]
    return sampler_module.mask_stop_tokens(logits, rows)


def _filters(logits, rows, order):
    """The filters in another order; rows at temperature 0 as in the package."""
    out = []
    for logit, row in zip(logits, rows, strict=True):
        logit, p = logit[None], row.params
        greedy = p.temperature == 0
        steps = {
            "penalties": lambda x, row=row: sampler_module.apply_penalties(x, [row]),
            "temperature": lambda x, p=p: (
                x if p.temperature == 0 else x / p.temperature
            ),
            "min_p": lambda x, p=p: sampler_module.apply_min_p(
                x, torch.tensor([[p.min_p]])
            ),
            "top_k": lambda x, p=p: sampler_module.apply_top_k(
                x, torch.tensor([[p.top_k]])
            ),
            "top_p": lambda x, p=p: sampler_module.apply_top_p(
                x, torch.tensor([[p.top_p]])
            ),
        }
        for step in order.split():
            if not greedy or step == "penalties":
                logit = steps[step](logit)
        out.append(logit)
    return torch.cat(out)


def temperature_before_penalties(logits, rows):
    return _filters(logits, rows, "temperature penalties min_p top_k top_p")


def temperature_last(logits, rows):
    return _filters(logits, rows, "penalties min_p top_k top_p temperature")


def top_p_before_top_k(logits, rows):
    return _filters(logits, rows, "penalties temperature min_p top_p top_k")


def min_p_last(logits, rows):
    return _filters(logits, rows, "penalties temperature top_k top_p min_p")


def greedy_rows_are_filtered(logits, rows):
    tiny = [
        dataclasses.replace(
            row,
            params=dataclasses.replace(
                row.params, temperature=row.params.temperature or 1.0
            ),
        )
        for row in rows
    ]
    return sampler_module.filter_logits(logits, tiny)


def draw_by_exponential_upside_down(logits, rows, generator=None):
    noise = torch.empty_like(logits).exponential_(generator=generator)
    drawn = (logits.softmax(-1) * noise).argmax(-1)
    return _with_own(logits, rows, drawn)


def _with_own(logits, rows, drawn):
    own = sampler_module.draw(logits, rows)
    keep = [row.generator is not None or row.params.temperature == 0 for row in rows]
    return own.where(torch.tensor(keep), drawn)


def draw_the_likeliest(logits, rows, generator=None):
    return logits.argmax(-1)


def draw_uniform_over_the_kept(logits, rows, generator=None):
    flat = torch.where(logits > REMOVED, 0.0, REMOVED)
    return _with_own(logits, rows, sampler_module.draw(flat, rows, generator))


def draw_from_one_generator_for_all(logits, rows, generator=None):
    own = next((row.generator for row in rows if row.generator), generator)
    greedy = torch.tensor([row.params.temperature == 0 for row in rows])
    noise = torch.empty_like(logits).exponential_(generator=own)
    return logits.argmax(-1).where(greedy, (logits.softmax(-1) / noise).argmax(-1))


def draw_seeds_anew_each_time(logits, rows, generator=None):
    for row in rows:
        if row.generator:
            row.generator.manual_seed(row.generator.initial_seed())
    return sampler_module.draw(logits, rows, generator)


def draw_greedy_by_probability(logits, rows, generator=None):
    drawn = sampler_module.draw(logits, rows, generator)
    greedy = torch.tensor([row.params.temperature == 0 for row in rows])
    return logits.softmax(-1).argmax(-1).where(greedy, drawn)


def ranks_from_zero(logprobs, token_ids, count):
    got = sampler_module.gather_logprobs(logprobs, token_ids, count)
    return got if count is None else dataclasses.replace(got, ranks=got.ranks - 1)


def ranks_count_equals(logprobs, token_ids, count):
    got = sampler_module.gather_logprobs(logprobs, token_ids, count)
    chosen = logprobs.gather(-1, token_ids.unsqueeze(-1))
    return dataclasses.replace(got, ranks=(logprobs >= chosen).sum(-1))


def top_logprobs_uncapped(logprobs, token_ids, count):
    chosen = sampler_module.gather_logprobs(logprobs, token_ids, count and 1)
    top = logprobs.topk(count, -1) if count is not None else None
    ids, values = (top.indices, top.values) if top else (None, None)
    return SamplerOutput(token_ids, chosen.logprobs, chosen.ranks, ids, values)


def logprobs_after_the_filters(logits, rows, generator=None):
    got = sampler_module.sample(logits, rows, generator)
    cut = sampler_module.filter_logits(logits.float(), rows).log_softmax(-1)
    return sampler_module.gather_logprobs(cut, got.token_ids, 2)


def nan_is_drawn(logits):
    return None


SAMPLER_MUTANTS = {
    "apply_min_p": [min_p_times_the_logit, min_p_of_one, min_p_of_the_first_row],
    "apply_top_k": [
        top_k_by_value, top_k_unstable, top_k_one_more, top_k_without_minus_one,
        top_k_beyond_the_vocabulary, top_k_in_place,
    ],
    "apply_top_p": [
        top_p_drops_the_crossing_token, top_p_may_remove_all, top_p_keeps_one_more,
        top_p_one_is_not_off, top_p_not_scattered_back,
    ],
    "apply_penalties": [
        repetition_always_divides, repetition_once_per_occurrence,
        penalties_look_at_the_prompt, repetition_forgets_the_prompt, presence_counts,
        penalties_of_the_last_row,
    ],
    "mask_stop_tokens": [min_tokens_off_by_one, min_tokens_masks_the_first_stop_token],
    "filter_logits": [
        temperature_before_penalties, temperature_last, top_p_before_top_k, min_p_last,
        greedy_rows_are_filtered,
    ],
    "draw": [
        draw_by_exponential_upside_down, draw_the_likeliest, draw_uniform_over_the_kept,
        draw_from_one_generator_for_all, draw_seeds_anew_each_time,
        draw_greedy_by_probability,
    ],
    "gather_logprobs": [ranks_from_zero, ranks_count_equals, top_logprobs_uncapped],
    "sample": [logprobs_after_the_filters],
    "check_logits": [nan_is_drawn],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, mutant",
    [(name, mutant) for name, mutants in SAMPLER_MUTANTS.items() for mutant in mutants],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_sampler_suite_rejects(name, mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.sampler(**{name: mutant})
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out


# ----- mutants of the configs


def _changed(base, check):
    """The package's class with a `__post_init__` of another mind."""

    @dataclasses.dataclass
    class Changed(base):
        __post_init__ = check

    Changed.__name__ = base.__name__
    return Changed


def memory_share_may_be_zero(self):
    if not 0 <= self.gpu_memory_utilization <= 1:
        raise ValueError(
            "gpu_memory_utilization must be in (0, 1], "
            f"got {self.gpu_memory_utilization}"
        )


def memory_share_must_be_below_one(self):
    if not 0 < self.gpu_memory_utilization < 1:
        raise ValueError(
            "gpu_memory_utilization must be in (0, 1], "
            f"got {self.gpu_memory_utilization}"
        )


def memory_share_lets_nan_pass(self):
    if self.gpu_memory_utilization <= 0 or self.gpu_memory_utilization > 1:
        raise ValueError(
            "gpu_memory_utilization must be in (0, 1], "
            f"got {self.gpu_memory_utilization}"
        )


def block_size_is_clamped(self):
    self.block_size = max(1, self.block_size)


def error_hides_the_value(self):
    if self.block_size < 1:
        raise ValueError("block_size must be positive")


def block_size_is_asserted(self):
    assert self.block_size > 0, f"block_size must be positive, got {self.block_size}"


def zero_seqs_are_fine(self):
    if self.max_num_seqs < 0:
        raise ValueError(f"max_num_seqs must be positive, got {self.max_num_seqs}")


def zero_tokens_count_as_none(self):
    if self.max_num_batched_tokens and self.max_num_batched_tokens < 1:
        raise ValueError(f"max_num_batched_tokens is {self.max_num_batched_tokens}")
    if self.max_num_seqs < 1:
        raise ValueError(f"max_num_seqs must be positive, got {self.max_num_seqs}")


def sync_overwrites(self):
    length = self.model_config.max_model_len
    self.scheduler_config = dataclasses.replace(
        self.scheduler_config, max_model_len=length
    )


def sync_changes_the_callers(self):
    if self.scheduler_config.max_model_len is None:
        self.scheduler_config.max_model_len = self.model_config.max_model_len
    elif self.scheduler_config.max_model_len > self.model_config.max_model_len:
        raise ValueError("scheduler 1024, model 512")


def sync_is_forgotten(self):
    pass


def contradiction_is_accepted(self):
    if self.scheduler_config.max_model_len is None:
        sync_overwrites(self)


def dtype_fails_late(self):
    self.tokenizer = self.tokenizer or self.model


def tokenizer_stays_none(self):
    if self.dtype not in ("auto", "half", "float16", "bfloat16", "float", "float32"):
        raise ValueError(f"dtype {self.dtype!r}")
    if self.max_model_len is not None and self.max_model_len < 1:
        raise ValueError(f"max_model_len {self.max_model_len}")


def length_zero_counts_as_none(self):
    self.tokenizer = self.tokenizer or self.model
    if self.dtype not in ("auto", "half", "float16", "bfloat16", "float", "float32"):
        raise ValueError(f"dtype {self.dtype!r}")
    if self.max_model_len and self.max_model_len < 1:
        raise ValueError(f"max_model_len {self.max_model_len}")


CONFIG_MUTANTS = {
    "ModelConfig": [dtype_fails_late, tokenizer_stays_none, length_zero_counts_as_none],
    "CacheConfig": [
        memory_share_may_be_zero, memory_share_must_be_below_one,
        memory_share_lets_nan_pass,
        block_size_is_clamped, error_hides_the_value, block_size_is_asserted,
    ],
    "SchedulerConfig": [zero_seqs_are_fine, zero_tokens_count_as_none],
    "EngineConfig": [
        sync_overwrites, sync_changes_the_callers, sync_is_forgotten,
        contradiction_is_accepted,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, check",
    [(name, check) for name, mutants in CONFIG_MUTANTS.items() for check in mutants],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_config_suite_rejects(name, check, capsys):
    mutant = _changed(getattr(config_module, name), check)
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.config(**{name: mutant})
    assert "hint:" in capsys.readouterr().out


# ----- how it speaks


def test_a_failure_shows_the_smallest_input_and_no_traceback(capsys):
    with pytest.raises(checks.CheckFailed) as failed:
        checks.sampler(apply_top_k=top_k_by_value)
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("✗"))
    assert lines[at + 1] == "    input:    weights [1, 1], top_k 1: kept ids"
    assert lines[at + 2] == "    got:      [[0, 1]]"
    assert lines[at + 3] == "    expected: [[0]]"
    assert failed.value._render_traceback_() == [f"CheckFailed: {failed.value}"]


def test_an_exception_is_shown_with_the_line_that_raised_it(capsys):
    def mine(logits, top_k):
        return logits[99]

    with pytest.raises(checks.CheckFailed):
        checks.sampler(apply_top_k=mine)
    out = capsys.readouterr().out
    assert "IndexError: index 99 is out of bounds" in out
    assert "return logits[99]" in out and "harness" not in out
    assert "in mine(logits=[[0.0, 0.6931]], top_k=[[1]]), line" in out


def test_the_calls_that_led_to_an_exception_are_shown_in_order(capsys):
    class Deep:
        def __init__(self, numbers):
            self.numbers = numbers

        def third(self, *rest, key):
            return self.numbers[key]

    def second(deep, text):
        return deep.third(1, 2, key="gone")

    def mine(logits, top_k):
        return second(Deep({}), "long " * 50)

    with pytest.raises(checks.CheckFailed):
        checks.sampler(apply_top_k=mine)
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if "KeyError" in line)
    first, then, last = lines[at + 1 : at + 4]
    assert first.strip().startswith(
        "in mine(logits=[[0.0, 0.6931]], top_k=[[1]]), line"
    )
    assert then.strip().startswith("in second(deep=<Deep>, text='long long")
    assert len(then) < 160 and '..." * 50' not in then
    assert last.strip().startswith("in third(key='gone', 1, 2), line")
    assert last.endswith("return self.numbers[key]")


def test_of_the_packages_calls_the_file_is_named(capsys):
    def mine(logits, top_k):
        return sampler_module.apply_top_k(logits[:, :, None], None)

    with pytest.raises(checks.CheckFailed):
        checks.sampler(apply_top_k=mine)
    assert "of folovllm_lite/sampler.py: " in capsys.readouterr().out


def test_a_stub_is_not_written_yet_and_gets_no_hint(capsys):
    """Hints to code that nobody has tried to write were most of what a reader saw."""

    def mine(logits, top_k):
        raise NotImplementedError("write apply_top_k")

    with pytest.raises(checks.CheckFailed):
        checks.sampler(apply_top_k=mine)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert line.startswith("✗ ") and line.endswith(" (not written yet)")


def test_what_the_package_does_not_implement_is_an_error_with_a_hint(capsys):
    def mine(logits, top_k):
        SamplingParams(use_beam_search=True)

    with pytest.raises(checks.CheckFailed):
        checks.sampler(apply_top_k=mine)
    out = capsys.readouterr().out
    assert "NotImplementedError: " in out and "hint:" in out
    assert "not written yet" not in out and "in mine(" in out


SMALL = Suite(sampler_module)


@SMALL.property("draw", hint="look")
def _refused(p):
    """Bad is refused."""
    expect_error("draw(7, 1.5)", p.draw, ValueError, "top_k", "7", "1.5")


@pytest.mark.parametrize(
    ("said", "good"),
    [
        ("top_k must be below 7, got 1.5", True),
        ("1.5 and 7: which of them is top_k?", True),
        ("no top_k of 7 or 1.5.", True),
        ("top_k is 1.5, not in 0..7", True),
        ("top_k is 1.5, not 0.7", False),
        ("top_k is 17, got 1.5", False),
        ("top_k is 7.5, got 1.5", False),
        ("top_k is 7, got 21.5", False),
        ("k is 7, got 1.5", False),
    ],
)
def test_of_an_error_the_field_and_the_values_are_judged(said, good, capsys):
    def draw():
        raise ValueError(said)

    if good:
        SMALL(draw=draw)
    else:
        with pytest.raises(checks.CheckFailed):
            SMALL(draw=draw)
        out = capsys.readouterr().out
        assert "expected: ValueError that names top_k and 7 and 1.5" in out


def test_a_lone_piece_needs_a_name_only_where_there_are_several(capsys):
    def draw():
        raise ValueError("top_k must be below 7, got 1.5")

    SMALL(draw)
    assert "All 1 properties hold." in capsys.readouterr().out
    with pytest.raises(TypeError, match="nothing given"):
        checks.sampler(draw)


def test_two_properties_of_one_name_are_refused():
    """Two of one name once hid each other's mutants."""
    with pytest.raises(ValueError, match="two properties are named _refused"):
        SMALL.property("draw", hint="look")(_refused)


def test_every_suite_says_what_it_judges():
    for name in set(checks.__all__) - {"CheckFailed"}:
        suite = getattr(checks, name)
        assert isinstance(suite, Suite) and suite.__doc__.startswith("Judge "), name


def test_what_can_not_be_judged_is_a_type_error():
    with pytest.raises(TypeError, match="no property is about apply_topk"):
        checks.sampler(apply_topk=top_k_by_value)
    with pytest.raises(TypeError, match="nothing given"):
        checks.sampler()
    with pytest.raises(
        TypeError, match="apply_top_k must be something to call, got None"
    ):
        checks.sampler(apply_top_k=None)


def test_a_method_alone_is_judged_in_its_class(capsys):
    checks.scheduler(admit=Scheduler._admit)
    assert "properties hold." in capsys.readouterr().out

    def admit(self, step, budget):
        raise NotImplementedError("begin with the first")

    with pytest.raises(checks.CheckFailed):
        checks.scheduler(admit=admit)
    assert "(not written yet)" in capsys.readouterr().out
    with pytest.raises(TypeError, match="admit must be something to call, got None"):
        checks.scheduler(admit=None)


def test_a_notebooks_names_can_be_handed_over_whole(capsys):
    checks.sampler({"apply_top_k": sampler_module.apply_top_k, "x": 3})
    assert "All 5 properties hold." in capsys.readouterr().out


def test_two_ways_to_round_one_number_are_equal():
    """0.12345 and 0.12344999 were 0.1235 and 0.1234: a right answer was refused."""
    expect("a sum", torch.tensor([0.12345, 1.0]), torch.tensor([0.12344999, 1.0]))
    for got in ([0.1237, 1.0], [0.1235, math.nan], [0.1235], [True, 1.0], 0.1235):
        with pytest.raises(Exception) as caught:
            expect("a sum", got, [0.1235, 1.0])
        assert caught.value.args == ("a sum", got, [0.1235, 1.0]) or got[1] != got[1]
