"""The GPTQ suite accepts what is right and rejects what others got wrong."""

from functools import partial
from itertools import product

import pytest
import torch

from folovllm_lite import checks, gptq
from folovllm_lite.checks import gptq_suite as suite
from tests.checks.mutants import mutant, refuse

# What was broken -> (the line that turns red, what stands there, what stands instead)
MUTANTS = {
    "v1 zeros stored as they are": (
        "_zeros_stored",
        "quantized.zeros.int() - config.zero_offset",
        "quantized.zeros.int()",
    ),
    "v1 zeros read as they are": (
        "_read_back",
        "(zeros + config.zero_offset)",
        "zeros",
    ),
    "v2 zeros read as v1": (
        "_read_back",
        "(zeros + config.zero_offset)",
        "(zeros + 1)",
    ),
    "a zero point of 0 wraps silently": (
        "_no_zero_in_v1",
        "int(zeros.min()) < 0",
        "False",
    ),
    "error fed to the columns before": (
        "_second_makes_up",
        "torch.outer(error, upper[k, k:end])",
        "torch.outer(error, upper[k:end, k])",
    ),
    "error fed with the wrong sign": (
        "_second_makes_up",
        "weight[:, k:end] -= ",
        "weight[:, k:end] += ",
    ),
    "error not divided by the diagonal": ("_columns", ") / upper[k, k]", ")"),
    "blocks never hand on their errors": (
        "_lazy",
        "errors @ upper[start:end, end:]",
        "0",
    ),
    "blocks hand on to the wrong columns": (
        "_lazy",
        "errors @ upper[start:end, end:]",
        "errors @ upper[end:, start:end].T",
    ),
    "blocks hand on to the next block alone": (
        "_lazy",
        "weight[:, end:] -= errors @ upper[start:end, end:]",
        "weight[:, end : end + block] -= errors @ upper[start:end, end : end + block]",
    ),
    "the first block alone hands on": (
        "_lazy",
        "errors @ upper[start:end, end:]",
        "errors @ upper[start:end, end:] * (start == 0)",
    ),
    "more than eight outputs aren't corrected": (
        "_columns",
        "weight[:, k:end] -= torch.outer(error, upper[k, k:end])",
        "weight[:8, k:end] -= torch.outer(error, upper[k, k:end])[:8]",
    ),
    "groups begin inside blocks": (
        "_lazy",
        "block = size if size >= _LAZY else size * (_LAZY // size)",
        "block = _LAZY",
    ),
    "grids from the weights as they were": (
        "_groups",
        "make_grid(weight[:, k : k + size]",
        "make_grid(first[:, k : k + size]",
        "    levels, scales, zeros = torch.empty_like(weight), [], []",
        "    first = weight.clone()\n"
        "    levels, scales, zeros = torch.empty_like(weight), [], []",
    ),
    "one grid for all groups": ("_groups", "if k % size == 0", "if k == 0"),
    "damping missing": ("_damped", "    diagonal += damping\n", ""),
    "damping of the largest": (
        "_factor",
        "diagonal.sum() / max(1, int((~dead).sum()))",
        "diagonal.max()",
    ),
    "damping with a constant": (
        "_factor",
        "diagonal += damping",
        "diagonal += damping + 1e-8",
    ),
    "small inputs taken for dead": ("_factor", "diagonal == 0", "diagonal < 1e-5"),
    "the factor in float64": (
        "_factor",
        "hessian.float().clone()",
        "hessian.double().clone()",
    ),
    "the message says 0.01": ("_damped", "damp_percent {damp_percent}", "0.01"),
    "a Hessian without an inverse ends otherwise": (
        "_damped",
        "    lower, failed = torch.linalg.cholesky_ex(hessian)\n",
        "    inverse, failed = torch.linalg.inv(hessian), False\n",
        "        inverse = torch.cholesky_inverse(lower)\n",
        "",
    ),
    "dead inputs count in the mean": (
        "_dead",
        "diagonal.sum() / max(1, int((~dead).sum()))",
        "diagonal.mean()",
    ),
    "dead inputs raise the mean": (
        "_dead",
        "    damping = damp",
        "    diagonal[dead] = 1\n    damping = damp",
    ),
    "a division by no inputs": (
        "_dead",
        "diagonal.sum() / max(1, int((~dead).sum()))",
        "float(diagonal.sum()) / int((~dead).sum())",
    ),
    "dead inputs make it fail": ("_dead", "    diagonal[dead] = 1\n", ""),
    "the factor of H, not of its inverse": (
        "_factor",
        "inverse = torch.cholesky_inverse(lower)",
        "inverse = hessian",
    ),
    "the lower factor": (
        "_factor",
        "cholesky_ex(inverse, upper=True)",
        "cholesky_ex(inverse)",
    ),
    "a bad Hessian goes through": (
        "_damped",
        "if failed or not bool(upper.isfinite().all())",
        "if False",
        "    if not failed:\n        inverse",
        "    if True:\n        inverse",
    ),
    "the Hessian is damped in place": (
        "_factor",
        "hessian = hessian.float().clone()",
        "hessian = hessian.float()",
    ),
    "the weight is changed": (
        "_leaves_its_arguments",
        "weight.float()[:, order], upper",
        "weight, upper",
    ),
    "groups across the file's order": ("_act_order", "groups[back]", "groups"),
    "groups sorted once more": ("_act_order", "groups[back]", "groups[order]"),
    "act order is symmetric": (
        "_act_order",
        "[:, order], upper, config)",
        "[:, order], upper, GPTQConfig(config.group_size) if config.desc_act else "
        "config)",
    ),
    "act order is damped as by default": (
        "_act_order",
        "[order][:, order], config.damp_percent)",
        "[order][:, order], 0.01 if config.desc_act else config.damp_percent)",
    ),
    "the weights of dead inputs are 0": (
        "_columns",
        "    levels, scales, zeros = _quantize_columns(weight.float()[:, order], upper",
        "    weight = torch.where(hessian.diagonal() == 0, 0, weight)\n"
        "    levels, scales, zeros = _quantize_columns(weight.float()[:, order], upper",
    ),
    "act order from the smallest": (
        "_act_order",
        "descending=True",
        "descending=False",
    ),
    "act order of the weight alone": (
        "_act_order",
        "hessian[order][:, order]",
        "hessian",
    ),
    "levels left in act order": ("_act_order", "levels[:, back].to", "levels.to"),
    "levels sorted once more": (
        "_act_order",
        "levels[:, back].to",
        "levels[:, order].to",
    ),
    "nibbles the other way round": ("_packed", "<< (4 * place)", "<< (28 - 4 * place)"),
    "nibbles read the other way round": (
        "_unpacked",
        "4 * torch.arange(_PER_INT32, ",
        "28 - 4 * torch.arange(_PER_INT32, ",
    ),
    "eight neighbours' places mixed up": (
        "_packed",
        "levels[place::_PER_INT32]",
        "levels.view(_PER_INT32, -1, levels.shape[1])[place]",
    ),
    "the sign is not masked": ("_unpacked", "places) & 15)", "places))"),
    "qweight packed along the outputs": (
        "_stored_as_others_read",
        "pack_levels(quantized.levels.T)",
        "pack_levels(quantized.levels).T",
    ),
    "qzeros packed along the groups": (
        "_zeros_stored",
        "pack_levels(zeros).T.contiguous()",
        "pack_levels(zeros)",
    ),
    "scales as they stand in memory": (
        "_stored_as_others_read",
        "quantized.scales.T.contiguous()",
        "quantized.scales",
    ),
    "the scale is not what is stored": (
        "_grid_is_stored",
        ".half().float()\n    scale =",
        "\n    scale =",
    ),
    "sixteen steps": (
        "_symmetric_grid",
        "(high - low) / (LEVELS - 1)",
        "(high - low) / LEVELS",
    ),
    "the grid forgets zero": (
        "_asymmetric_grid",
        "weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)",
        "weight.amin(1), weight.amax(1)",
    ),
    "a zero point between two levels": (
        "_asymmetric_grid",
        "(-low / scale).round().clamp(0, LEVELS - 1)",
        "(-low / scale).clamp(0, LEVELS - 1)",
    ),
    "a zero point beyond the last level": (
        "_asymmetric_grid",
        "(-low / scale).round().clamp(0, LEVELS - 1)",
        "(-low / scale).round()",
    ),
    "one grid for all rows": (
        "_symmetric_grid",
        "high = torch.maximum(-low, high)",
        "high = torch.maximum(-low, high).max().expand(len(low))",
    ),
    "rounding of whole layers alone": (
        "_rounding",
        "weight.float().reshape",
        "weight.float().view",
    ),
    "rounding changes the weight": (
        "_rounding",
        "    return Quantized(\n        levels.view",
        "    weight.copy_(levels.view(N, K))\n"
        "    return Quantized(\n        levels.view",
    ),
    "rounding in float16": (
        "_rounding_of_bfloat16",
        "rows = weight.float().reshape",
        "rows = (weight.float() if weight.dtype == torch.bfloat16 else weight).reshape",
    ),
    "rounding what can't be packed": (
        "_rounding_refuses",
        "    check_sizes(N, K, config)\n    rows",
        "    if K % config.size(K):\n        check_sizes(N, K, config)\n    rows",
    ),
    "rounding in bfloat16": (
        "_rounding_of_bfloat16",
        "rows = weight.float().reshape",
        "rows = weight.reshape",
    ),
    "rounding across rows": (
        "_rounding_refuses",
        "    check_sizes(N, K, config)\n    rows",
        "    rows",
    ),
    "columns in bfloat16": (
        "_gptq_of_bfloat16",
        "weight.float()[:, order], upper",
        "weight[:, order], upper",
    ),
    "the weight is changed without act order": (
        "_leaves_its_arguments",
        "_quantize_columns(weight.float()[:, order],",
        "_quantize_columns(\n"
        "        weight.float()[:, order] if config.desc_act else weight.float(),",
    ),
    "the damping is always the same": (
        "_columns",
        "[order][:, order], config.damp_percent)",
        "[order][:, order], 0.01)",
    ),
    "infinite weights go through": (
        "_refused",
        "if not bool(weight.isfinite().all()):",
        "if bool(weight.isnan().any()):",
    ),
    "levels stay floats": ("_columns", "[:, back].to(torch.uint8)", "[:, back]"),
    "half of the damping for one input": (
        "_factor",
        "max(1, int((~dead).sum()))",
        "max(2, int((~dead).sum()))",
    ),
    "symmetric about the greatest": (
        "_symmetric_grid",
        "high = torch.maximum(-low, high)",
        "high = high",
    ),
    "symmetric about the least": (
        "_symmetric_grid",
        "high = torch.maximum(-low, high)",
        "high = -low",
    ),
    "another scale for a row of zeros": (
        "_grid_is_stored",
        "torch.where(scale == 0, 1.0, scale)",
        "scale.clamp(min=6e-8)",
    ),
    "a row of zeros spoils the others": (
        "_grid_is_stored",
        "torch.where(scale == 0, 1.0, scale)",
        "torch.ones_like(scale) if bool((scale == 0).any()) else scale",
    ),
    "a scale of zero": (
        "_grid_is_stored",
        "torch.where(scale == 0, 1.0, scale)",
        "scale",
    ),
    "levels beyond the last": (
        "_levels",
        "((weight / scale).round() + zero).clamp(0, LEVELS - 1)",
        "(weight / scale).round() + zero",
    ),
    "levels cut off, not rounded": (
        "_levels",
        "(weight / scale).round()",
        "(weight / scale).floor()",
    ),
    "a mean of means": (
        "_mean",
        "self._sum += x.T @ x\n        self.tokens += len(x)",
        "self._sum += x.T @ x / len(x)\n        self.tokens += 1",
    ),
    "a Hessian in bfloat16": (
        "_mean",
        "        x = x.float()\n        self._sum",
        "        self._sum",
    ),
    "NaN goes through": ("_no_mean", "not bool(self._sum.isfinite().all())", "False"),
    "sizes aren't checked": ("_refused", "    if K % size:\n", "    if False:\n"),
    "the layer takes groups for neighbours": (
        "_layer",
        "group = self.g_idx.long()",
        "group = self.g_idx.long().sort().values",
    ),
    "the layer forgets its bias": (
        "_layer",
        ".to(x.dtype), self.bias)",
        ".to(x.dtype))",
    ),
}


def test_the_package_passes(capsys):
    checks.gptq(gptq)
    out = capsys.readouterr().out
    assert "✗" not in out and "All 28 properties hold." in out


@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_rejects(name, capsys):
    wanted, *texts = MUTANTS[name]
    edits = zip(texts[::2], texts[1::2], strict=True)
    refuse(checks.gptq, mutant(gptq, *edits), wanted, capsys)


# ----- other right answers


def column_by_column(weight, hessian, config):
    """No blocks, no Cholesky: a new inverse for every column."""
    gptq.check_sizes(*weight.shape, config)
    if not bool(weight.isfinite().all()):
        raise ValueError("weights are NaN")
    gptq.inverse_factor(hessian, config.damp_percent)  # raises
    found = suite._oracle(weight, hessian, config)
    return gptq.Quantized(
        found["levels"].to(torch.uint8), found["scales"].half(),
        found["zeros"].to(torch.uint8), found["g_idx"].int(),
    )  # fmt: skip


def packs_by_arithmetic(levels):
    rows = levels.long().view(-1, 8, levels.shape[1])
    words = (rows * (16 ** torch.arange(8))[:, None]).sum(1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpacks_one_by_one(packed):
    rows = []
    for row in packed.tolist():
        for place in range(8):
            rows.append([(word % 2**32) // 16**place % 16 for word in row])
    return torch.tensor(rows, dtype=torch.uint8)


@pytest.mark.parametrize(
    "pieces",
    [
        {"gptq": column_by_column},
        {"pack_levels": packs_by_arithmetic, "unpack_levels": unpacks_one_by_one},
    ],
)
def test_the_suite_accepts_other_ways(pieces, capsys):
    checks.gptq(pieces)
    assert "✗" not in capsys.readouterr().out


# ----- the columns alone


def all_columns_at_once(weight, upper, config, when="turn", divide=True, row=True):
    """No blocks: each error goes to all columns behind it."""
    size, before = config.size(weight.shape[1]), weight.clone()
    levels, scales, zeros = [], [], []
    for k in range(weight.shape[1]):
        if k % size == 0:
            source = weight if when == "turn" else before
            scale, zero = gptq.make_grid(source[:, k : k + size], config.sym)
            scales.append(scale)
            zeros.append(zero)
        level = gptq.to_levels(weight[:, k], scale, zero)
        error = weight[:, k] - (level - zero) * scale
        if divide:
            error = error / upper[k, k]
        weight = weight - torch.outer(error, upper[k] if row else upper[:, k])
        levels.append(level)
    return tuple(torch.stack(each, 1) for each in (levels, scales, zeros))


def test_the_columns_are_judged_alone(capsys):
    checks.gptq(quantize_columns=all_columns_at_once)
    assert "✗" not in capsys.readouterr().out
    for wrong in ({"when": "first"}, {"divide": False}, {"row": False}):
        with pytest.raises(checks.CheckFailed):
            checks.gptq(quantize_columns=partial(all_columns_at_once, **wrong))
        assert "hint:" in capsys.readouterr().out


# ----- the exercises


def trace_columns(first=0.6, divide=True, feed=True, last=True):
    w, U = list(suite.TRACE["weights"]), suite.TRACE["U"]
    corrected, levels = [], []
    for k in range(3):
        corrected.append(w[k])
        levels.append(round(w[k]) + 8)
        error = (w[k] - round(w[k])) / (U[k][k] if divide else 1)
        for j in range(k + 1, 3):
            w[j] -= error * U[k][j] if feed and (last or k == 0) else 0
    return {"levels": levels, "corrected": corrected}


def regroup(tensors, sort=True, repack=True, back=False, copies=True):
    K = len(tensors["g_idx"])
    order = tensors["g_idx"].argsort(stable=True) if sort else torch.arange(K)
    levels = gptq.unpack_levels(tensors["qweight"])
    levels = levels[order.argsort() if back else order]
    new = dict(tensors) if copies else tensors
    if repack:
        new["qweight"] = gptq.pack_levels(levels)
    new["g_idx"] = tensors["g_idx"][order]
    return new, order


def relabelled(tensors):
    """Groups in the order of their first inputs, under new numbers."""
    g_idx, G = tensors["g_idx"].tolist(), len(tensors["scales"])
    seen = list(dict.fromkeys([*g_idx, *range(G)]))
    groups = torch.tensor([seen.index(g) for g in g_idx], dtype=torch.int32)
    order = groups.argsort(stable=True)
    zeros = gptq.unpack_levels(tensors["qzeros"].T.contiguous())[:, seen]
    return {
        "qweight": gptq.pack_levels(gptq.unpack_levels(tensors["qweight"])[order]),
        "qzeros": gptq.pack_levels(zeros).T.contiguous(),
        "scales": tensors["scales"][seen],
        "g_idx": groups[order],
    }, order


def choose_bits(layers, budget, per_byte=True, groups=True, refuse=True):
    """The best of all choices that a table of used bytes can hold (a knapsack)."""

    def cost(x, b):
        return suite._bytes_of(x, b) if groups else x["N"] * x["K"] * b // 8

    if refuse and sum(cost(x, 2) for x in layers) > budget:
        raise ValueError(f"{budget} bytes are not enough")
    best = {0: (0.0, [])}
    for x in layers:
        new = {}
        for used, (error, bits) in best.items():
            for b in (2, 3, 4, 8):
                total = used + cost(x, b)
                found = (error + (x["error"][b] if per_byte else -b), [*bits, b])
                if total <= budget and (total not in new or found < new[total]):
                    new[total] = found
        best = new
    return min(best.values())[1]


def greedy_bits(layers, budget):
    """Give the next bits where a byte saves most, until none fit."""
    bits = [2] * len(layers)
    used = sum(suite._bytes_of(x, 2) for x in layers)
    if used > budget:
        raise ValueError(f"{used} bytes are needed, there are {budget}")
    while True:
        moves = []
        for i, x in enumerate(layers):
            for b in (3, 4, 8):
                more = suite._bytes_of(x, b) - suite._bytes_of(x, bits[i])
                if b > bits[i] and used + more <= budget:
                    gain = x["error"][bits[i]] - x["error"][b]
                    moves.append((gain / more, i, b, more))
        if not moves:
            return bits
        _, i, b, more = max(moves)
        bits[i], used = b, used + more


@pytest.mark.parametrize(
    "name, answer",
    [("trace_columns", trace_columns), ("regroup", regroup),
     ("regroup", relabelled), ("choose_bits", choose_bits)],
)  # fmt: skip
def test_a_solution_is_accepted(name, answer, capsys):
    checks.gptq(**{name: answer})
    assert "✗" not in capsys.readouterr().out


def two_groups_of_eight(tensors):
    new, order = regroup(tensors)
    new["g_idx"] = (torch.arange(len(order)) // 8).int()
    return new, order


def changed(name, change):
    """`regroup` with another tensor of that name."""

    def wrong(tensors):
        new, order = regroup(tensors)
        return {**new, name: change(new[name])}, order

    return wrong


def adds_the_order(tensors):
    tensors["order"] = tensors["g_idx"].argsort()
    return regroup({name: x for name, x in tensors.items() if name != "order"})


def exchanged(layers, budget):
    """Greedy, then the bits of any two layers in any way that is better."""
    bits = greedy_bits(layers, budget)

    def error(choice):
        return sum(x["error"][b] for x, b in zip(layers, choice, strict=True))

    while True:
        found = [bits]
        for i, j in product(range(len(layers)), repeat=2):
            for a, b in product((2, 3, 4, 8), repeat=2):
                new = list(bits)
                new[i], new[j] = a, b
                if sum(map(suite._bytes_of, layers, new)) <= budget:
                    found.append(new)
        if error(best := min(found, key=error)) >= error(bits):
            return bits
        bits = best


def squares(layers, budget):
    squared = [
        {**x, "error": {b: error**2 for b, error in x["error"].items()}} for x in layers
    ]
    return choose_bits(squared, budget)


def all_eight_if_they_fit(layers, budget):
    if sum(suite._bytes_of(x, 8) for x in layers) <= budget:
        return [8] * len(layers)
    return choose_bits(layers, budget)


def by_gain(layers, budget, stop=True):
    """Step after step up, where a step saves most; it may end at the first too dear."""
    bits, steps = [2] * len(layers), {2: 3, 3: 4, 4: 8}
    used = sum(suite._bytes_of(x, 2) for x in layers)
    if used > budget:
        raise ValueError(f"{used} bytes are needed, there are {budget}")
    closed = set()
    while True:
        moves = []
        for i, x in enumerate(layers):
            if bits[i] in steps and i not in closed:
                b = steps[bits[i]]
                more = suite._bytes_of(x, b) - suite._bytes_of(x, bits[i])
                gain = x["error"][bits[i]] - x["error"][b]
                moves.append((gain, i, b, more))
        if not moves:
            return bits
        _, i, b, more = max(moves)
        if used + more > budget:
            if stop:
                return bits
            closed.add(i)
            continue
        bits[i], used = b, used + more


EXERCISE_MUTANTS = {
    "trace_columns": [
        lambda: trace_columns(divide=False), lambda: trace_columns(feed=False),
        lambda: trace_columns(last=False),
        lambda: None, lambda: {"levels": [9, 9, 8]},
        lambda: {**trace_columns(), "levels": "none"},
        lambda: {**trace_columns(), "levels": [9, 9, 8, 8]},
        lambda: {**trace_columns(), "levels": [1, 1, 0]},
    ],
    "regroup": [
        lambda t: regroup(t, sort=False), lambda t: regroup(t, repack=False),
        lambda t: regroup(t, back=True), lambda t: regroup(t, copies=False),
        lambda t: regroup(t)[0], two_groups_of_eight,
        lambda t: (regroup(t)[0], regroup(t)[1].argsort()),
        changed("g_idx", lambda g: g.long()),
        changed("g_idx", lambda g: g.unique(return_inverse=True)[1].int()),
        changed("scales", lambda scales: scales.float()),
        changed("scales", lambda scales: scales.flip(0)), adds_the_order,
    ],
    "choose_bits": [
        lambda x, b: [4] * len(x), lambda x, b: [2] * len(x),
        lambda x, b: choose_bits(x, b, per_byte=False),
        lambda x, b: choose_bits(x, b, groups=False),
        lambda x, b: choose_bits(x, b, refuse=False) if b > 0 else None,
        lambda x, b: tuple(choose_bits(x, b)),
        lambda x, b: [16] * len(x),
        by_gain, partial(by_gain, stop=False), greedy_bits, exchanged, squares,
        all_eight_if_they_fit,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, mutant", [(n, m) for n, many in EXERCISE_MUTANTS.items() for m in many]
)
def test_a_wrong_answer_is_rejected(name, mutant, capsys):
    with pytest.raises(checks.CheckFailed):
        checks.gptq(**{name: mutant})
    assert "hint:" in capsys.readouterr().out


def test_a_traced_answer_isnt_given_away(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.gptq(trace_columns=lambda: {"levels": [0] * 3, "corrected": [0] * 3})
    assert "another answer" in capsys.readouterr().out
