"""The sampler suite judges notebook 03's exercises: right answers pass, slips don't.

The solutions are taken from the solutions notebook itself, so that what is printed
there is what is tested here.
"""

import ast
import dataclasses
import hashlib
import math

import pytest
import torch

from folovllm_lite import checks
from folovllm_lite import sampler as sampler_module
from tests.notebooks.course import NOTEBOOKS, read

REMOVED = -math.inf
EXERCISES = ("survivors", "apply_typical_p", "draw_at")


def solutions() -> dict:
    """The functions that the solutions notebook defines."""
    found = {}
    for cell in read(NOTEBOOKS / "solutions/03_sampler.ipynb")["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse(cell["source"])
            kept = (ast.Import, ast.ImportFrom, ast.FunctionDef)
            tree.body = [node for node in tree.body if isinstance(node, kept)]
            exec(compile(tree, "solutions", "exec"), found)
    return found


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solutions_pass(name, capsys):
    checks.sampler(**{name: solutions()[name]})
    assert "✗" not in capsys.readouterr().out


# ----- another order, another row


def filters_of_the_first_row(logits, rows):
    changed = [
        dataclasses.replace(
            row,
            params=dataclasses.replace(
                row.params,
                top_k=rows[0].params.top_k,
                top_p=rows[0].params.top_p,
                min_p=rows[0].params.min_p,
            ),
        )
        for row in rows
    ]
    return sampler_module.filter_logits(logits, changed)


def one_greedy_row_switches_all_filters_off(logits, rows):
    if any(row.params.temperature == 0 for row in rows):
        return sampler_module.apply_penalties(logits, rows)
    return sampler_module.filter_logits(logits, rows)


def temperature_of_the_hottest_row(logits, rows):
    most = max(row.params.temperature for row in rows)
    changed = [
        dataclasses.replace(
            row, params=dataclasses.replace(row.params, temperature=most)
        )
        if row.params.temperature
        else row
        for row in rows
    ]
    return sampler_module.filter_logits(logits, changed)


# ----- the trace: each answer of somebody who forgot one line of the contract

RIGHT = {"min_p": [1, 2, 4, 5], "top_k": [1, 2, 5], "top_p": [1, 5], "chance": 5 / 9}


def forgot_the_temperature():
    return {**RIGHT, "min_p": [1, 5], "top_k": [1, 5]}


def let_the_tie_through():
    return {**RIGHT, "top_k": [1, 2, 4, 5]}


def took_the_higher_id():
    return {**RIGHT, "top_k": [1, 4, 5]}


def forgot_to_renormalise():
    return {**RIGHT, "top_p": [1, 2, 5]}


def dropped_the_crossing_token():
    return {**RIGHT, "top_p": [1]}


def share_of_the_raw_weights():
    return {**RIGHT, "chance": 25 / 41}


def share_of_all():
    return {**RIGHT, "chance": 5 / 18}


def answered_with_a_list():
    return [[1, 2, 4, 5], [1, 2, 5], [1, 5]]


# ----- typical_p


def _typical(logits, typical_p, entropy_of=None, rank=None, cut_of=None):
    logp = logits.log_softmax(-1)
    probs = logp.exp()
    if entropy_of is None:
        entropy = -torch.where(probs > 0, probs * logp, 0.0).sum(-1, keepdim=True)
    else:
        entropy = entropy_of(probs, logp)
    distance = (-logp - entropy).abs() if rank is None else rank(probs, logp, entropy)
    order = distance.argsort(dim=-1, stable=True)
    ranked = probs.gather(-1, order)
    if cut_of is None:
        cut = (ranked.cumsum(-1) - ranked >= typical_p) & (typical_p < 1)
        cut[..., 0] = False
    else:
        cut = cut_of(ranked, typical_p)
    return logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), REMOVED)


def typical_is_top_p(logits, typical_p):
    return sampler_module.apply_top_p(logits, typical_p)


def typical_with_nan_entropy(logits, typical_p):
    def entropy(probs, logp):
        return -(probs * logp).sum(-1, keepdim=True)

    return _typical(logits, typical_p, entropy)


def typical_with_the_batchs_entropy(logits, typical_p):
    def entropy(probs, logp):
        each = torch.where(probs > 0, probs * logp, 0.0).sum(-1, keepdim=True)
        return -each.mean(0, keepdim=True)

    return _typical(logits, typical_p, entropy)


def typical_in_bits_and_nats(logits, typical_p):
    def rank(probs, logp, entropy):
        return (-logp / math.log(2) - entropy).abs()

    return _typical(logits, typical_p, rank=rank)


def typical_by_probability(logits, typical_p):
    def rank(probs, logp, entropy):
        return (probs - entropy).abs()

    return _typical(logits, typical_p, rank=rank)


def typical_without_abs(logits, typical_p):
    return _typical(logits, typical_p, rank=lambda probs, logp, e: -logp - e)


def typical_farthest_first(logits, typical_p):
    return _typical(logits, typical_p, rank=lambda p, logp, e: -(-logp - e).abs())


def typical_drops_the_crossing_token(logits, typical_p):
    def cut_of(ranked, typical_p):
        cut = (ranked.cumsum(-1) > typical_p) & (typical_p < 1)
        cut[..., 0] = False
        return cut

    return _typical(logits, typical_p, cut_of=cut_of)


def typical_may_remove_all(logits, typical_p):
    return _typical(logits, typical_p, cut_of=lambda r, t: r.cumsum(-1) > t)


def typical_one_is_not_off(logits, typical_p):
    return _typical(logits, typical_p, cut_of=lambda r, t: r.cumsum(-1) - r >= t)


def typical_with_one_parameter_for_all(logits, typical_p):
    return _typical(logits, typical_p[:1])


def typical_returns_probabilities(logits, typical_p):
    return _typical(logits, typical_p).log_softmax(-1).exp().log()


def typical_in_place(logits, typical_p):
    return logits.copy_(_typical(logits, typical_p))


# ----- draw_at


def _at(logits, seeds, steps, mix):
    probs = logits.softmax(-1)
    noise = torch.empty_like(probs)
    for i, (seed, step) in enumerate(zip(seeds, steps, strict=True)):
        generator = torch.Generator().manual_seed(mix(seed, step))
        noise[i].exponential_(generator=generator)
    return (probs / noise).argmax(-1)


def at_seed_plus_step(logits, seeds, steps):
    return _at(logits, seeds, steps, lambda seed, step: (seed + step) % 2**63)


def at_seed_xor_step(logits, seeds, steps):
    return _at(logits, seeds, steps, lambda seed, step: seed ^ step)


def at_seed_times_100_plus_step(logits, seeds, steps):
    return _at(logits, seeds, steps, lambda seed, step: (seed * 100 + step) % 2**63)


def typical_goes_on_when_it_is_reached(logits, typical_p):
    logprobs = logits.log_softmax(-1)
    probs = logprobs.exp()
    entropy = -(probs * logprobs).nan_to_num().sum(-1, True)
    order = (-logprobs - entropy).abs().argsort(dim=-1, stable=True)
    ranked = probs.gather(-1, order)
    cut = (ranked.cumsum(-1) - ranked > typical_p) & (typical_p < 1)
    cut[..., 0] = False
    by_id = torch.zeros_like(cut).scatter(-1, order, cut)
    return logits.masked_fill(by_id, REMOVED)


def at_seed_times_1000_plus_step(logits, seeds, steps):
    return _at(logits, seeds, steps, lambda seed, step: (seed * 1000 + step) % 2**63)


def at_playing_through_all_steps(logits, seeds, steps):
    probs, tokens = logits.softmax(-1), []
    for row, seed, step in zip(probs, seeds, steps, strict=True):
        own = torch.Generator().manual_seed(seed)
        noise = [torch.empty_like(row).exponential_(generator=own)
                 for _ in range(step + 1)]  # fmt: skip
        tokens.append((row / noise[-1]).argmax())
    return torch.stack(tokens)


def at_the_seed_alone(logits, seeds, steps):
    return _at(logits, seeds, steps, lambda seed, step: seed)


def at_the_step_alone(logits, seeds, steps):
    return _at(logits, seeds, steps, lambda seed, step: step)


def at_float_precision(logits, seeds, steps):
    def mix(seed, step):
        words = f"{float(seed)} {step}".encode()
        return int.from_bytes(hashlib.sha256(words).digest()[:7], "big")

    return _at(logits, seeds, steps, mix)


def at_seed_times_a_prime_overflows(logits, seeds, steps):
    return _at(logits, seeds, steps, lambda seed, step: seed * 1_000_003 + step)


def _mix(seed, step):
    words = f"{seed} {step}".encode()
    return int.from_bytes(hashlib.sha256(words).digest()[:7], "big")


def at_with_the_place_in_the_batch(logits, seeds, steps):
    places = [step + 1000 * i for i, step in enumerate(steps)]
    return _at(logits, seeds, places, _mix)


def at_with_the_global_generator(logits, seeds, steps):
    drawn = []
    for row, seed, step in zip(logits, seeds, steps, strict=True):
        torch.manual_seed(_mix(seed, step))
        drawn.append(torch.multinomial(row.softmax(-1), 1))
    return torch.cat(drawn)


def at_noise_upside_down(logits, seeds, steps):
    inverse = logits.softmax(-1)
    inverse = torch.where(inverse > 0, 1 / inverse, 0.0)
    return _at(inverse.log(), seeds, steps, _mix)


def at_uniformly(logits, seeds, steps):
    flat = torch.where(logits > REMOVED, 0.0, REMOVED)
    return _at(flat, seeds, steps, _mix)


def at_the_likeliest(logits, seeds, steps):
    return logits.argmax(-1)


MUTANTS = {
    "filter_logits": [
        filters_of_the_first_row, one_greedy_row_switches_all_filters_off,
        temperature_of_the_hottest_row,
    ],
    "survivors": [
        forgot_the_temperature, let_the_tie_through, took_the_higher_id,
        forgot_to_renormalise, dropped_the_crossing_token, share_of_the_raw_weights,
        share_of_all, answered_with_a_list,
    ],
    "apply_typical_p": [
        typical_is_top_p, typical_with_nan_entropy, typical_with_the_batchs_entropy,
        typical_in_bits_and_nats, typical_by_probability, typical_without_abs,
        typical_farthest_first, typical_drops_the_crossing_token,
        typical_may_remove_all, typical_one_is_not_off,
        typical_with_one_parameter_for_all, typical_returns_probabilities,
        typical_in_place, typical_goes_on_when_it_is_reached,
    ],
    "draw_at": [
        at_seed_plus_step, at_seed_xor_step, at_seed_times_100_plus_step,
        at_seed_times_1000_plus_step, at_playing_through_all_steps,
        at_the_seed_alone, at_the_step_alone, at_float_precision,
        at_seed_times_a_prime_overflows, at_with_the_place_in_the_batch,
        at_with_the_global_generator, at_noise_upside_down, at_uniformly,
        at_the_likeliest,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, mutant",
    [(name, mutant) for name, mutants in MUTANTS.items() for mutant in mutants],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_sampler_suite_rejects(name, mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.sampler(**{name: mutant})
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out


def test_a_wrong_trace_is_not_told_the_right_one(capsys):
    """An answer that can be read off the red lines teaches nothing."""
    for mutant in (*MUTANTS["survivors"], dict):
        with pytest.raises(checks.CheckFailed):
            checks.sampler(survivors=mutant)
    # Answers that were not given back to their author as "got".
    expected = [
        line for line in capsys.readouterr().out.splitlines() if "expected:" in line
    ]
    assert expected and not any("[" in line or "0.5556" in line for line in expected)


def test_a_trace_that_forgot_the_temperature_is_told_so(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.sampler(survivors=forgot_the_temperature)
    assert (
        "min_p sees the distribution after the temperature" in capsys.readouterr().out
    )


def test_exercises_are_judged_only_when_they_are_given(capsys):
    checks.sampler(sampler_module)
    out = capsys.readouterr().out
    assert "typical" not in out and "another seed's" not in out
