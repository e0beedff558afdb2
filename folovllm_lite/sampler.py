"""From logits to tokens, for a batch of rows that each have their own parameters.

The order is a contract: raw logits; report logprobs; mask stop tokens (min_tokens);
penalties; temperature; min_p; top_k; top_p; draw. Every filter is a plain function of a
whole batch, [N, V] -> [N, V], that sets what it removes to -inf. The module knows
nothing of requests, text or models.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.utils import tensor_on


@dataclass(slots=True)
class SamplingRow:
    """What the sampler has to know of one row of the batch.

    Args:
        params: of the request.
        prompt_token_ids: counted by the repetition penalty only.
        output_token_ids: generated so far; counted by all penalties and by min_tokens.
        stop_token_ids: what can't be chosen before `min_tokens`: every token that would
            end the row, and the end token even if it is ignored, as in vLLM.
        generator: the row's own, if its request has a seed.
    """

    params: SamplingParams
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    stop_token_ids: tuple[int, ...] = ()
    generator: torch.Generator | None = None


@dataclass(slots=True)
class SamplerOutput:
    """N chosen tokens and what the model thought of them, before any parameter.

    Args:
        token_ids: [N] int64.
        logprobs: [N] float32, raw log-softmax of the chosen tokens.
        ranks: [N] int64, 1 for the likeliest; equally likely tokens share the better
            rank. None, like the next two, if no row asked for logprobs.
        top_token_ids: [N, K] int64, the K likeliest, where K is the largest
            `params.logprobs` of the batch.
        top_logprobs: [N, K] float32.
    """

    token_ids: Tensor
    logprobs: Tensor
    ranks: Tensor | None = None
    top_token_ids: Tensor | None = None
    top_logprobs: Tensor | None = None

    def cpu(self) -> "SamplerOutput":
        """The same on the CPU, in one copy: the host waits for each."""
        if self.token_ids.is_cpu:
            return self
        tensors = (self.token_ids, self.logprobs, self.ranks)
        tensors += self.top_token_ids, self.top_logprobs
        there = [x for x in tensors if x is not None]
        columns = [x if x.dim() == 2 else x.unsqueeze(1) for x in there]
        # float64 holds ids as well as float32 exactly.
        packed = torch.cat([x.double() for x in columns], 1).cpu()
        parts = packed.split([x.shape[1] for x in columns], 1)
        pairs = zip(parts, there, strict=True)
        return SamplerOutput(*(part.to(x.dtype).view(x.shape) for part, x in pairs))


def sample(
    logits: Tensor, rows: list[SamplingRow], generator: torch.Generator | None = None
) -> SamplerOutput:
    """Choose one token for each row; the output is on the CPU.

    Args:
        logits: [N, V], left as they are.
        rows: N of them.
        generator: for the rows without their own; None is PyTorch's global one.

    Raises:
        ValueError: if a row holds NaN, +inf or nothing above -inf, naming it. No row's
            generator has moved.
    """
    logits = logits.float()
    seeded = any(row.generator is not None for row in rows)
    if seeded:
        check_logits(logits)  # before a generator has moved on
    logprobs = logits.log_softmax(-1)  # [N, V]
    token_ids = draw(filter_logits(logits, rows), rows, generator)
    chosen = gather_logprobs(logprobs, token_ids, _largest_logprobs(rows)).cpu()
    if not seeded and chosen.logprobs.isnan().any():  # all of a bad row's are
        check_logits(logits)
    return chosen


def check_logits(logits: Tensor) -> None:
    """Raise ValueError for rows without a likeliest token: NaN, +inf or all -inf."""
    # A row's maximum is NaN if any logit is, and -inf only if all are. Then the sum of
    # the maxima isn't finite either: one number to look at. (Or it is just too large.)
    best = logits.amax(-1)  # [N]
    if math.isfinite(best.sum()):
        return
    bad = (~best.isfinite()).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"logits of row {row} can't be sampled: their maximum is {best[row]}"
        )


def filter_logits(logits: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Everything between the raw logits and the draw, in the order of the contract.

    Rows at temperature 0 keep their logits after the penalties. What no row asks for is
    skipped, so that a plain greedy step costs nothing here.
    """
    params = [row.params for row in rows]
    logits = mask_stop_tokens(logits, rows)
    logits = apply_penalties(logits, rows)
    if all(p.temperature == 0 for p in params):
        return logits
    V, off = logits.shape[-1], (1.0, 0.0, -1, 1.0)  # a larger k keeps all as well
    table = [
        (p.temperature, p.min_p, min(p.top_k, V), p.top_p) if p.temperature else off
        for p in params
    ]
    temperatures, min_ps, top_ks, top_ps = zip(*table, strict=True)
    temperature, min_p, top_k, top_p = tensor_on(table, logits.device).T.unsqueeze(-1)
    if any(t != 1 for t in temperatures):
        logits = logits / temperature  # [N, V] / [N, 1]
    if any(min_ps):
        logits = apply_min_p(logits, min_p)
    if any(k != -1 for k in top_ks):
        logits = apply_top_k(logits, top_k.long())
    if any(p < 1 for p in top_ps):
        logits = apply_top_p(logits, top_p)
    return logits


def mask_stop_tokens(logits: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Rows below their `min_tokens` can't choose one of their `stop_token_ids`."""
    early = {
        i: row.stop_token_ids
        for i, row in enumerate(rows)
        if len(row.output_token_ids) < row.params.min_tokens and row.stop_token_ids
    }
    if not early:
        return logits
    for i, token_ids in early.items():
        if len(set(token_ids)) >= logits.shape[-1]:  # NaN, from which anything is drawn
            raise ValueError(
                f"row {i} has no token left: below its min_tokens "
                f"{rows[i].params.min_tokens} all of them are held back"
            )
    places = _places(early, logits)
    never = torch.full_like(places, -math.inf, dtype=logits.dtype)
    return logits.put(places, never)


def apply_penalties(logits: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Repetition, frequency and presence penalties of the rows that set them.

    Repetition looks at prompt and output; the two OpenAI penalties at the output alone,
    so a preempted row, whose output is computed again like a prompt, keeps its
    penalties.
    """
    params, V = [row.params for row in rows], logits.shape[-1]
    seen = {
        i: row.prompt_token_ids + row.output_token_ids
        for i, row in enumerate(rows)
        if row.params.repetition_penalty != 1
    }
    made = {
        i: Counter(row.output_token_ids)
        for i, row in enumerate(rows)
        if row.output_token_ids
        and (row.params.frequency_penalty or row.params.presence_penalty)
    }
    if seen:
        places = _places(seen, logits)  # [P]; at the same one, all write the same
        scales = tensor_on([p.repetition_penalty for p in params], logits.device)
        old, scale = logits.take(places), scales[places // V]
        logits = logits.put(places, torch.where(old > 0, old / scale, old * scale))
    if made:
        amounts = [
            -params[i].frequency_penalty * count - params[i].presence_penalty
            for i, counts in made.items()
            for count in counts.values()
        ]
        places, amounts = _places(made, logits), tensor_on(amounts, logits.device)
        logits = logits.put(places, amounts, accumulate=True)
    return logits


def _places(token_ids: dict[int, Iterable[int]], logits: Tensor) -> Tensor:
    """Where ids, by row, are among all N * V logits: [P], for `take` and `put`.

    So all rows are read or written at once: on a GPU, operations cost more than data.
    """
    V = logits.shape[-1]
    places = [i * V + token for i, ids in token_ids.items() for token in ids]
    return tensor_on(places, logits.device, torch.long)


def apply_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    """Remove tokens less than min_p [N, 1] times as likely as the row's likeliest."""
    # p_i < min_p * p_max, in logits: no softmax, and 0 gives -inf, which removes
    # nothing.
    return logits.masked_fill(logits < logits.amax(-1, True) + min_p.log(), -math.inf)


def apply_top_k(logits: Tensor, top_k: Tensor) -> Tensor:
    """Keep the top_k [N, 1] likeliest tokens; -1, or more than V, keeps all.

    Exactly k survive: of equally likely tokens those with the lower ids, hence a stable
    sort and no comparison with the k-th value.
    """
    V = logits.shape[-1]
    order = logits.argsort(dim=-1, descending=True, stable=True)  # [N, V] ids by rank
    cut = torch.arange(V, device=logits.device) >= top_k.where(top_k > 0, V)  # by rank
    return logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -math.inf)


def apply_top_p(logits: Tensor, top_p: Tensor) -> Tensor:
    """Keep the smallest set of tokens whose probabilities reach top_p [N, 1].

    A token goes when those before it reach top_p already. The one that crosses the line
    therefore stays, and so does at least one. Holtzman et al. 2020.
    """
    probs = logits.softmax(-1)
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)  # [N, V] by rank
    before = ranked.cumsum(-1) - ranked
    # top_p = 1 keeps all: a rounded sum may reach 1 before the last token.
    cut = (before >= top_p) & (top_p < 1)
    cut[..., 0] = False
    return logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -math.inf)


def draw(
    logits: Tensor, rows: list[SamplingRow], generator: torch.Generator | None = None
) -> Tensor:
    """Token ids [N]: the first maximum of greedy rows, a draw from the others.

    The draw is exponential noise: with e_i ~ Exp(1), argmax p_i / e_i is i with
    probability p_i. It is the Gumbel trick without logarithms, and what
    `torch.multinomial` does inside, but with a generator for each row and without the
    check that makes the host wait for the device.

    A row with a generator of its own takes its V numbers from that alone. So its token
    depends on nothing but its logits and its seed, whoever its neighbours are. The
    logits stay as they are.
    """
    random = [i for i, row in enumerate(rows) if row.params.temperature != 0]
    if not random:
        return logits.argmax(-1)
    probs = logits.softmax(-1)
    shared = [i for i in random if rows[i].generator is None]
    noise = torch.ones_like(probs)  # greedy rows: argmax of p itself
    if shared:
        apart = len(shared) < len(rows)
        fresh = torch.empty_like(probs[: len(shared)]) if apart else noise
        fresh.exponential_(generator=generator)
        if apart:
            noise[tensor_on(shared, logits.device)] = fresh
    for i in random:
        if rows[i].generator is not None:
            noise[i].exponential_(generator=rows[i].generator)
    token_ids = probs.div_(noise).argmax(-1)
    if len(random) < len(rows):
        # Softmax rounds: two close logits can become one probability.
        greedy = [row.params.temperature == 0 for row in rows]
        mask = tensor_on(greedy, logits.device)
        token_ids = logits.argmax(-1).where(mask, token_ids)
    return token_ids


def gather_logprobs(
    logprobs: Tensor, token_ids: Tensor, count: int | None
) -> SamplerOutput:
    """Look up the chosen tokens and the `count` likeliest ones in logprobs [N, V]."""
    chosen = logprobs.gather(-1, token_ids.unsqueeze(-1))  # [N, 1]
    output = SamplerOutput(token_ids, chosen.squeeze(-1))
    if count is not None:
        output.ranks = (logprobs > chosen).sum(-1) + 1
        top = logprobs.topk(min(count, logprobs.shape[-1]), dim=-1)
        output.top_token_ids, output.top_logprobs = top.indices, top.values
    return output


def _largest_logprobs(rows: list[SamplingRow]) -> int | None:
    counts = [row.params.logprobs for row in rows if row.params.logprobs is not None]
    return max(counts, default=None)
