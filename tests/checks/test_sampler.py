"""The sampler suite judges notebook 03's exercises: right answers pass, slips don't.

The solutions are taken from the solutions notebook itself, so that what is printed
there is what is tested here.
"""

import ast
import dataclasses
import hashlib
import math
import random

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


def typical_by_exponentials(logits, typical_p):
    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return logits.masked_fill(_typical(probs.log(), typical_p).isinf(), REMOVED)


def typical_with_no_surprise_at_all(logits, typical_p):
    def distance(probs, logp, entropy):
        return (-logp.masked_fill(probs == 0, 0.0) - entropy).abs()

    return _typical(logits, typical_p, rank=distance)


def typical_removes_what_any_row_lacks(logits, typical_p):
    gone = logits.isinf().any(0, keepdim=True)
    return _typical(logits.masked_fill(gone, REMOVED), typical_p)


def typical_needs_two_tokens(logits, typical_p):
    alone = (logits > REMOVED).sum(-1, keepdim=True) == 1
    return _typical(logits, typical_p).masked_fill(alone, REMOVED)


def typical_writes_to_its_column(logits, typical_p):
    return _typical(logits, typical_p.masked_fill_(typical_p >= 1, 1.0 - 1e-7))


def typical_in_place_in_a_batch(logits, typical_p):
    left = _typical(logits, typical_p)
    return logits.copy_(left) if len(logits) > 1 else left


def typical_in_float64(logits, typical_p):
    return _typical(logits.double(), typical_p)


def at_a_texts_hash(logits, seeds, steps):
    return _at(logits, seeds, steps, lambda a, b: hash(f"{a} {b}") % 2**63)


def at_a_labelled_hash(logits, seeds, steps):
    return _at(logits, seeds, steps, lambda a, b: hash(("draw", a, b)) % 2**63)


def at_the_first_rows_logits(logits, seeds, steps):
    return _at(logits[:1].expand_as(logits), seeds, steps, _mix)


def at_a_batch_in_the_order_of_steps(logits, seeds, steps):
    order = sorted(range(len(steps)), key=lambda i: steps[i])
    return _at(logits, [seeds[i] for i in order], [steps[i] for i in order], _mix)


def at_one_step_for_each_seed(logits, seeds, steps):
    last = dict(zip(seeds, steps, strict=True))
    return _at(logits, seeds, [last[seed] for seed in seeds], _mix)


def at_seeds_below_the_largest(logits, seeds, steps):
    return _at(logits, [seed % (2**63 - 1) for seed in seeds], steps, _mix)


def at_exponentials(logits, seeds, steps):
    weights = logits.exp()
    return _at((weights / weights.sum(-1, True)).log(), seeds, steps, _mix)


def at_probabilities_in_place(logits, seeds, steps):
    drawn = _at(logits, seeds, steps, _mix)
    if logits.is_contiguous():
        logits.copy_(logits.softmax(-1))
    return drawn


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
        typical_by_exponentials, typical_with_no_surprise_at_all,
        typical_removes_what_any_row_lacks, typical_needs_two_tokens,
        typical_writes_to_its_column, typical_in_place_in_a_batch, typical_in_float64,
    ],
    "draw_at": [
        at_seed_plus_step, at_seed_xor_step, at_seed_times_100_plus_step,
        at_seed_times_1000_plus_step, at_playing_through_all_steps,
        at_the_seed_alone, at_the_step_alone, at_float_precision,
        at_seed_times_a_prime_overflows, at_with_the_place_in_the_batch,
        at_with_the_global_generator, at_noise_upside_down, at_uniformly,
        at_the_likeliest, at_a_texts_hash, at_a_labelled_hash,
        at_the_first_rows_logits, at_a_batch_in_the_order_of_steps,
        at_one_step_for_each_seed, at_seeds_below_the_largest, at_exponentials,
        at_probabilities_in_place,
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


# ----- other right ways


def filters_row_by_row(logits, rows):
    logits = sampler_module.mask_stop_tokens(logits, rows)
    logits = sampler_module.apply_penalties(logits, rows)
    left = []
    for row, params in zip(logits.split(1), [r.params for r in rows], strict=True):
        if params.temperature:
            row = row / params.temperature
            for name in ("min_p", "top_k", "top_p"):
                step = getattr(sampler_module, f"apply_{name}")
                row = step(row, torch.tensor([[getattr(params, name)]]))
        left.append(row)
    return torch.cat(left)


def draws_by_multinomial(logits, rows, generator=None):
    drawn = [
        torch.multinomial(x.softmax(-1), 1, generator=row.generator or generator)
        if row.params.temperature
        else x.argmax().view(1)
        for x, row in zip(logits, rows, strict=True)
    ]
    return torch.cat(drawn)


def top_k_by_python(logits, top_k):
    left = torch.full_like(logits, REMOVED)
    for row, out, k in zip(logits, left, top_k.flatten().tolist(), strict=True):
        ids = sorted(range(len(row)), key=lambda i, row=row: (-row[i].item(), i))
        ids = ids[: int(k)] if k > 0 else ids
        out[ids] = row[ids]
    return left


def min_p_by_probability(logits, min_p):
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < min_p * probs.amax(-1, True), REMOVED)


def typical_token_by_token(logits, typical_p):
    left = torch.full_like(logits, REMOVED)
    for row, out, most in zip(logits, left, typical_p.flatten().tolist(), strict=True):
        ids = (row > REMOVED).nonzero().flatten()
        logp = row.log_softmax(-1)[ids]
        distance = (-logp - torch.special.entr(logp.exp()).sum()).abs()
        total = 0.0
        for place in distance.argsort(stable=True).tolist():
            out[ids[place]] = row[ids[place]]
            total += logp[place].exp().item()
            if most < 1 and total >= most:
                break
    return left


def at_pythons_random(logits, seeds, steps):
    drawn = []
    for probs, seed, step in zip(logits.softmax(-1), seeds, steps, strict=True):
        dice = random.Random(f"{seed}, {step}")
        drawn += dice.choices(range(len(probs)), probs.tolist())
    return torch.tensor(drawn)


@pytest.mark.parametrize(
    "name, right",
    [
        ("filter_logits", filters_row_by_row),
        ("draw", draws_by_multinomial),
        ("apply_top_k", top_k_by_python),
        ("apply_min_p", min_p_by_probability),
        ("apply_typical_p", typical_token_by_token),
        ("draw_at", at_pythons_random),
    ],
)
def test_other_right_answers_pass(name, right, capsys):
    checks.sampler(**{name: right})
    assert "✗" not in capsys.readouterr().out


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
