"""The sampler against the plainest code that could be right, and by counting.

The contract's lines stand in `checks.sampler`; here any combination of parameters in
any batch is compared with a reference in pure Python, and 20,000 draws are counted.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from folovllm_lite import checks
from folovllm_lite import sampler as sampler_module
from folovllm_lite.sampler import SamplingRow, filter_logits, sample
from folovllm_lite.sampling_params import SamplingParams

VOCABULARY = 12


def test_the_contract_holds(capsys):
    checks.sampler(sampler_module)


def reference(logits: list[float], row: SamplingRow) -> dict[int, float]:
    """What may be drawn and with which probability, by loops over one row."""
    p, logits = row.params, list(logits)
    if len(row.output_token_ids) < p.min_tokens:
        for token in row.stop_token_ids:
            logits[token] = -math.inf
    for token in {*row.prompt_token_ids, *row.output_token_ids}:
        old = logits[token]
        logits[token] = (
            old / p.repetition_penalty if old > 0 else old * p.repetition_penalty
        )
    for token in row.output_token_ids:
        logits[token] -= p.frequency_penalty
    for token in set(row.output_token_ids):
        logits[token] -= p.presence_penalty
    ids = range(len(logits))
    if p.temperature == 0:
        return {max(ids, key=lambda i: (logits[i], -i)): 1.0}
    left = {i: logits[i] / p.temperature for i in ids if logits[i] > -math.inf}

    def normalized(left):
        best = max(left.values())
        total = sum(math.exp(x - best) for x in left.values())
        return {i: math.exp(x - best) / total for i, x in left.items()}

    probs = normalized(left)
    best = max(probs.values())
    left = {i: left[i] for i in left if probs[i] >= p.min_p * best}
    ranked = sorted(left, key=lambda i: (-left[i], i))
    if p.top_k != -1:
        ranked = ranked[: p.top_k]
    probs = normalized({i: left[i] for i in ranked})
    kept, reached = {}, 0.0
    for i in ranked:
        if kept and reached >= p.top_p and p.top_p < 1:
            break
        kept[i] = left[i]
        reached += probs[i]
    return normalized(kept)


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("seed", [None, 3])
def test_a_row_that_may_choose_nothing_is_an_error(temperature, seed):
    """All -inf is NaN after softmax: token 0 was drawn, although it was held back."""
    params = SamplingParams(min_tokens=2, temperature=temperature)
    own = None if seed is None else torch.Generator().manual_seed(seed)
    rows = [
        SamplingRow(SamplingParams(), [1], []),
        SamplingRow(params, [1], [2], tuple(range(VOCABULARY)), own),
    ]
    with pytest.raises(ValueError, match="row 1 has no token left.* min_tokens 2"):
        sample(torch.zeros(2, VOCABULARY), rows)
    rows[1].output_token_ids.append(3)  # that was the last that is held back
    assert sample(torch.zeros(2, VOCABULARY), rows).token_ids.shape == (2,)


# Multiples of 1/8: sums and differences are exact, and equal logits are frequent.
exact = st.integers(-40, 40).map(lambda n: n / 8)
token_ids = st.lists(st.integers(0, VOCABULARY - 1), max_size=6)


@st.composite
def rows(draw):
    params = SamplingParams(
        temperature=draw(st.sampled_from([0, 0.25, 0.5, 1.0, 2.0])),
        top_k=draw(st.sampled_from([-1, 1, 2, 3, 7, VOCABULARY, 50])),
        top_p=draw(st.sampled_from([1.0, 0.999, 0.83, 0.51, 0.13, 1e-6])),
        min_p=draw(st.sampled_from([0.0, 0.033, 0.27, 0.77])),
        presence_penalty=draw(st.sampled_from([0.0, 0.5, -1.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.25, -0.5])),
        repetition_penalty=draw(st.sampled_from([1.0, 2.0, 0.5])),
        min_tokens=draw(st.integers(0, 3)),
        logprobs=draw(st.sampled_from([None, 2])),
    )
    stop = tuple(draw(st.sets(st.integers(0, VOCABULARY - 1), max_size=3)))
    logits = draw(st.lists(exact, min_size=VOCABULARY, max_size=VOCABULARY))
    return logits, SamplingRow(params, draw(token_ids), draw(token_ids), stop)


@settings(max_examples=600)
@given(st.lists(rows(), min_size=1, max_size=4))
def test_any_batch_gives_what_the_reference_gives(batch):
    logits = torch.tensor([logits for logits, _ in batch])
    got = filter_logits(logits, [row for _, row in batch]).softmax(-1).tolist()
    drawn = sample(logits, [row for _, row in batch], torch.Generator().manual_seed(0))
    for at, (raw, row) in enumerate(batch):
        wanted = reference(raw, row)
        token = drawn.token_ids[at].item()
        assert token in wanted
        if row.params.temperature:
            kept = {i: p for i, p in enumerate(got[at]) if p > 0}
            assert kept == pytest.approx(wanted, abs=1e-5)
        # What is reported is the model's own, whatever the parameters.
        own = torch.tensor(raw).log_softmax(-1)
        assert drawn.logprobs[at].item() == pytest.approx(own[token].item(), abs=1e-5)
        if all(row.params.logprobs is None for _, row in batch):
            assert drawn.ranks is None
        else:
            assert drawn.ranks[at].item() == 1 + sum(x > raw[token] for x in raw)


CHI_SQUARED = {
    2: 13.8,
    3: 16.3,
    4: 18.5,
    5: 20.5,
}  # degrees of freedom -> once in a thousand


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=2.0),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.9),
        SamplingParams(temperature=0.7, top_k=4, min_p=0.05),
    ],
    ids=str,
)
@pytest.mark.parametrize("seeded", [False, True])
def test_20000_draws_follow_the_distribution(params, seeded):
    """A batch of unseeded rows draws from one generator, a seeded row from its own."""
    weights, draws = [40, 20, 15, 12, 8, 5], 20_000
    logits = torch.tensor([weights]).log()
    generator = torch.Generator().manual_seed(11)
    if seeded:
        row = SamplingRow(params, [], [], generator=generator)
        drawn = [sample(logits, [row]).token_ids.item() for _ in range(draws)]
    else:
        many = [SamplingRow(params, [], [])] * draws
        drawn = sample(logits.expand(draws, -1), many, generator).token_ids.tolist()
    wanted = reference(logits[0].tolist(), SamplingRow(params, [], []))
    assert set(drawn) == set(wanted)
    distance = sum(
        (drawn.count(i) - draws * p) ** 2 / (draws * p) for i, p in wanted.items()
    )
    assert distance < CHI_SQUARED[len(wanted) - 1]


def test_a_plain_greedy_step_is_left_alone():
    """What no row asks for is skipped: not even a copy is made."""
    logits = torch.rand(3, 5)
    assert (
        filter_logits(logits, [SamplingRow(SamplingParams(temperature=0), [], [])] * 3)
        is logits
    )


@settings(max_examples=200)
@given(st.lists(st.lists(st.sampled_from([0.0, 3e38, -3e38, math.inf, -math.inf,
                                          math.nan]), min_size=3, max_size=3),
                min_size=1, max_size=3))  # fmt: skip
def test_a_row_without_a_log_softmax_is_one_that_cant_be_sampled(batch):
    """`sample` looks at its own answer alone; the check reads all the logits."""
    logits, row = torch.tensor(batch), SamplingRow(SamplingParams(), [], [])
    refused = None
    try:
        sampler_module.check_logits(logits)
    except ValueError as error:
        refused = str(error)
    if refused is None:
        assert sample(logits, [row] * len(batch)).logprobs.isfinite().all()
    else:
        with pytest.raises(ValueError, match="can't be sampled") as error:
            sample(logits, [row] * len(batch))
        assert str(error.value) == refused


def test_the_global_generator_is_used_when_there_is_no_other():
    row, logits = SamplingRow(SamplingParams(), [], []), torch.zeros(1, 1000)
    torch.manual_seed(3)
    first = sample(logits, [row]).token_ids.item()
    torch.manual_seed(3)
    assert sample(logits, [row]).token_ids.item() == first
