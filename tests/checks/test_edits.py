"""The suites reject what once passed them: one edit of the package each.

Written as answers that a reader might give, without a look at the properties; every
one of them passed its suite before the suite was mended. `RIGHT` are other right ways.
"""

import dataclasses
import hashlib
import sys
import types

import pytest
import torch

from folovllm_lite import (
    block_manager,
    checks,
    config,
    engine,
    flash,
    generation,
    gptq,
    model_loader,
    outputs,
    processor,
    request,
    sampler,
    sampling_params,
    scheduler,
    utils,
)

SUITES = {
    config: ("ModelConfig", "CacheConfig", "SchedulerConfig", "EngineConfig",
             "check_vllm_options"),
    utils: ("set_random_seed", "get_device", "get_gpu_memory_info", "tensor_on"),
    sampling_params: ("SamplingParams", "SamplingType", "_fits"),
    sampler: ("apply_min_p", "apply_top_k", "apply_top_p", "mask_stop_tokens",
              "apply_penalties", "filter_logits", "draw", "gather_logprobs",
              "check_logits", "sample"),
    request: ("SequenceStatus", "RequestStatus", "SequenceData", "Sequence", "Request"),
    outputs: ("RequestOutput",),
    model_loader: ("weight_files", "load_weights", "check_layers"),
    processor: ("InputProcessor", "TokenTexts", "OutputBuilder"),
    generation: ("generate", "Generation", "RequestState"),
    scheduler: ("decodes_first", "Scheduler"),
    engine: ("LLMEngine",),
    block_manager: ("BlockManager",),
    flash: ("flash_attention", "merge"),
    gptq: ("GPTQConfig", "make_grid", "unpack", "output_error"),
}  # fmt: skip

# module, what stands there, what stands instead, words of the property that notices
MUTANTS = {
    "an_empty_tokenizer_is_the_models": (
        config, "if self.tokenizer is None:", "if not self.tokenizer:", "wrong type"),
    "any_tokenizer_mode": (
        config, 'self.tokenizer_mode not in ("auto", "slow")',
        "not self.tokenizer_mode", "wrong type"),
    "a_dtype_is_always_a_name": (
        config, "_DTYPES[self.dtype] if isinstance(self.dtype, str) else self.dtype",
        "_DTYPES.get(self.dtype)", "is its own"),
    "prefixes_are_kept_unasked": (
        config, "enable_prefix_caching: bool = False",
        "enable_prefix_caching: bool = True", "num_gpu_blocks_override is None"),
    "prompts_are_cut_unasked": (
        config, "enable_chunked_prefill: bool = False",
        "enable_chunked_prefill: bool = True", "max_num_seqs is at least 1"),
    "true_is_all_of_the_memory": (
        config, '_number("gpu_memory_utilization", self.gpu_memory_utilization)',
        "pass", "names the field and the value"),
    "trusting_is_truthy": (
        config, '_flag("trust_remote_code", self.trust_remote_code)', "pass",
        "wrong type"),
    "seeds_have_a_sign": (
        config, '_integer("seed", self.seed, 0)', "pass", "A seed lies in"),
    "seeds_have_64_bits": (
        config, "if value >= 2**63:", "if value >= 2**64:", "A seed lies in"),
    "isfinite_is_asked": (
        config, "not abs(value) <= sys.float_info.max",
        "not __import__('math').isfinite(value)", "10**400"),
    "equal_lengths_are_refused": (
        config, "scheduler_len > model_len", "scheduler_len >= model_len",
        "hands the model's"),
    "the_schedulers_length_is_free": (
        config,
        '        _integer("max_model_len", self.max_model_len, 1, optional=True)\n'
        '        _flag("enable_chunked', '        _flag("enable_chunked',
        "Its other fields"),
    "a_new_scheduler_config_for_the_length": (
        config,
        "replace(\n                self.scheduler_config, max_model_len=model_len"
        "\n            )", "SchedulerConfig(max_model_len=model_len)",
        "All else that the parts"),
    "some_of_the_scheduler_is_copied": (
        config,
        "replace(\n                self.scheduler_config, max_model_len=model_len"
        "\n            )",
        "SchedulerConfig(self.scheduler_config.max_num_batched_tokens, "
        "self.scheduler_config.max_num_seqs, model_len, preemption_mode="
        "self.scheduler_config.preemption_mode)", "All else that the parts"),
    "the_cache_config_is_made_anew": (
        config, "        model_len = self.model_config.max_model_len\n",
        "        model_len = self.model_config.max_model_len\n"
        "        self.cache_config = CacheConfig()\n", "All else that the parts"),
    "a_length_nobody_gave": (
        config, "self.scheduler_config, max_model_len=model_len",
        "self.scheduler_config, max_model_len=model_len or 2048", "hands the model's"),
    "the_model_is_shortened": (
        config, "        elif model_len is not None and scheduler_len > model_len:",
        "        elif model_len and scheduler_len < model_len:\n"
        "            self.model_config.max_model_len = scheduler_len\n"
        "        elif model_len is not None and scheduler_len > model_len:",
        "hands the model's"),
    "one_token_more_than_the_model": (
        config, "scheduler_len > model_len", "scheduler_len > model_len + 1",
        "allows more than the model"),
    "an_empty_cache_config_is_the_default": (
        config, "        for name, kind in (\n            (\"model_config\"",
        "        self.cache_config = self.cache_config or CacheConfig()\n"
        "        for name, kind in (\n            (\"model_config\"",
        "no such config"),
    "any_part_with_a_length": (
        config, "if not isinstance(getattr(self, name), kind):",
        "if not hasattr(getattr(self, name), 'max_model_len' if name != "
        "'cache_config' else 'block_size'):", "no such config"),
    "parts_of_exactly_that_class": (
        config, "if not isinstance(getattr(self, name), kind):",
        "if type(getattr(self, name)) is not kind and name != 'model_config':",
        "no such config"),
    "torch_dtype_is_remembered": (
        config, "    @property\n    def torch_dtype",
        "    @__import__('functools').cached_property\n    def torch_dtype",
        "torch_dtype resolves"),
    "no_dtype_is_auto": (
        config, "*filter(None, _DTYPES.values())", "*_DTYPES.values()",
        "An unknown dtype"),
    "no_count_is_the_default": (
        config, "optional: bool = False", "optional: bool = True", "wrong type"),
    "options_that_are_empty_are_off": (
        config, "        off = known[name]\n",
        "        off = known[name]\n"
        "        if not value and name != 'enforce_eager':\n            continue\n",
        "One that asks for more"),
    "options_go_into_a_set": (
        config, "not in [(type(x), x) for x in off]",
        "not in {(type(x), x) for x in off}", 'where they say "off"'),
    "only_the_last_option_counts": (
        config, "for name, value in options.items():",
        "for name, value in list(options.items())[-1:]:", "One that asks for more"),
    "seeds_end_at_62_bits": (
        utils, "    random.seed(seed)\n",
        "    seed = min(seed, 2**62)\n    random.seed(seed)\n", "large neighbours"),
    "seed_0_is_any": (
        utils, "    random.seed(seed)\n",
        "    if not seed:\n        random.seed()\n        return\n"
        "    random.seed(seed)\n", "The same seed gives"),
    "a_made_device_is_trusted": (
        utils, "    if device is None:\n",
        "    if isinstance(device, torch.device):\n        return device\n"
        "    if device is None:\n", "doesn't exist"),
    "an_empty_device_is_none": (
        utils, "    if device is None:\n", "    if not device:\n", "doesn't exist"),
    "a_gpu_needs_a_number": (
        utils, "(chosen.index or 0) >=", "(chosen.index or 1) >=", "None picks CUDA"),
    "one_cache_config_for_all": (
        config, "field(default_factory=CacheConfig)",
        "field(default_factory=lambda at=CacheConfig(): at)", "share no config"),
    "true_is_one_gpu": (
        config, "(type(value), value) not in [(type(x), x) for x in off]",
        "value not in off", "One that asks for more"),
    "unknown_options_vanish": (
        config, "raise TypeError(f\"there is no option {name!r}\")", "continue",
        "A name that vLLM"),
    "options_are_not_looked_at": (
        config, "for name, value in options.items():", "for name, value in ():",
        "One that asks for more"),
    "the_second_gpu_is_the_usual_one": (
        utils, "get_gpu_memory_info(device: int = 0)",
        "get_gpu_memory_info(device: int = 1)", "Memory comes in GiB"),
    "everything_is_a_float": (
        utils, "torch.tensor(values, dtype=dtype,",
        "torch.tensor(values, dtype=dtype or torch.float32,", "tensor_on gives"),
    "numpys_seed_is_clamped": (
        utils, "seed % 2**32", "min(seed, 2**32 - 1)", "large neighbours"),
    "any_device_that_torch_knows": (
        utils, 'chosen.type not in ("cpu", "cuda")', "False", "doesn't exist"),
    "top_k_1_is_greedy": (
        sampling_params, "if self.temperature == 0 else",
        "if self.temperature == 0 or self.top_k == 1 else", "Nothing but the temp"),
    "a_seed_is_greedy": (
        sampling_params, "if self.temperature == 0 else",
        "if self.temperature == 0 or self.seed is not None else",
        "Nothing but the temp"),
    "ids_are_kept_twice": (
        sampling_params, "list(dict.fromkeys(self.stop_token_ids or []))",
        "list(self.stop_token_ids or [])", "stop_token_ids are lists"),
    "half_a_surrogate_pair_passes": (
        sampling_params, "for text in self.stop:", "for text in ():", "surrogate"),
    "floats_end_at_infinity": (
        sampling_params, "abs(value) <= _LARGEST", "abs(value) < float('inf')",
        "float32 can't hold"),
    "ints_have_no_end": (
        sampling_params, "isinstance(value, int) and not", "False and not", "64 bits"),
    "repetition_has_no_upper_end": (
        sampling_params, "not 1e-5 <= self.repetition_penalty <= 1e5",
        "self.repetition_penalty < 1e-5", "repetition_penalty in"),
    "the_likeliest_is_below_itself": (
        sampler, "logits < logits.amax(-1, True) + min_p.log()",
        "logits <= logits.amax(-1, True) + min_p.log()", "at min_p 1 too"),
    "reaching_top_p_is_not_enough": (
        sampler, "before >= top_p", "before > top_p", "reaches top_p exactly"),
    "the_cut_of_top_p_stays_by_rank": (
        sampler, "    cut[..., 0] = False\n    return logits.masked_fill("
        "torch.zeros_like(cut).scatter(-1, order, cut)",
        "    cut[..., 0] = False\n    return logits.masked_fill(cut",
        "less likely than everything"),
    "min_tokens_counts_the_prompt": (
        sampler, "len(row.output_token_ids) < row.params.min_tokens",
        "len(row.prompt_token_ids + row.output_token_ids) < row.params.min_tokens",
        "prompt don't count"),
    "the_generator_is_not_passed_on": (
        sampler, "fresh.exponential_(generator=generator)", "fresh.exponential_()",
        "generator that is handed in"),
    "greedy_rows_take_the_likeliest_of_rounded": (
        sampler, "if len(random) < len(rows):", "if False:",
        "though their probabilities round"),
    "every_row_is_drawn_if_one_is": (
        sampler, "    if len(random) < len(rows):",
        "    token_ids = (probs / torch.empty_like(probs).exponential_()).argmax(-1)\n"
        "    if False:", "beside a row that is"),
    "the_first_row_counts_logprobs": (
        sampler, "return max(counts, default=None)",
        "return counts[0] if counts else None", "whichever row asks"),
    "zero_logprobs_are_none": (
        sampler, "if count is not None:", "if count:", "A count of 0"),
    "an_infinite_sum_is_a_bad_row": (
        sampler, "    if len(bad):\n        row = int(bad[0])",
        "    if True:\n        row = int(bad[0]) if len(bad) else 0", "large finite"),
    "logprobs_in_half_precision": (
        sampler, "    logits = logits.float()\n"
        "    seeded = any(row.generator is not None for row in rows)\n"
        "    if seeded:\n"
        "        check_logits(logits)  # before a generator has moved on\n"
        "    logprobs = logits.log_softmax(-1)",
        "    seeded = False\n    logprobs = logits.log_softmax(-1).float()\n"
        "    logits = logits.float()", "computed with in float32"),
    "the_answer_is_not_looked_at": (
        sampler, "chosen.logprobs.isnan().any()", "False", "naming the row"),
    "seeded_rows_draw_before_the_check": (
        sampler, "    if seeded:\n", "    if False:\n", "moves nobody's generator"),
    "the_check_comes_after_all_draws": (
        sampler, "seeded = any(row.generator is not None for row in rows)",
        "seeded = False", "moves nobody's generator"),
    "each_row_has_the_first_rows_top_p": (
        sampler, "before >= top_p", "before >= top_p[0]", "own top_p"),
    "a_penalty_below_1_is_none": (
        sampler, "row.params.repetition_penalty != 1",
        "row.params.repetition_penalty > 1", "divides positive logits"),
    "only_positive_penalties_count": (
        sampler, "row.params.frequency_penalty or row.params.presence_penalty",
        "row.params.frequency_penalty > 0 or row.params.presence_penalty > 0",
        "Frequency subtracts"),
    "the_prompt_takes_in_the_output": (
        sampler, "i: row.prompt_token_ids + row.output_token_ids",
        "i: row.prompt_token_ids.extend(row.output_token_ids) or row.prompt_token_ids",
        "nothing that was passed in"),
    "greedy_rows_may_stop_early": (
        sampler, "row.params.min_tokens and row.stop_token_ids",
        "row.params.min_tokens and row.stop_token_ids and row.params.temperature",
        "before min_tokens other"),
    "stop_tokens_are_not_masked": (
        sampler, "    logits = mask_stop_tokens(logits, rows)\n", "",
        "masked and penalties taken"),
    "a_greedy_batch_has_no_penalties": (
        sampler, "    logits = apply_penalties(logits, rows)\n"
        "    if all(p.temperature == 0 for p in params):\n        return logits\n",
        "    if all(p.temperature == 0 for p in params):\n        return logits\n"
        "    logits = apply_penalties(logits, rows)\n", "masked and penalties taken"),
    "temperatures_end_at_a_tenth": (
        sampler, "(p.temperature, p.min_p", "(max(p.temperature, 0.1), p.min_p",
        "divides the logits"),
    "greedy_rows_lose_their_dials": (
        sampler,
        "    if all(p.temperature == 0 for p in params):\n        return logits\n",
        "    for p in params:\n        p.top_k = p.top_k if p.temperature else -1\n"
        "    if all(p.temperature == 0 for p in params):\n        return logits\n",
        "read, and never written to"),
    "stop_tokens_are_masked_at_the_end": (
        sampler, "    logits = mask_stop_tokens(logits, rows)\n    logits = apply_pen",
        "    if any(row.stop_token_ids for row in rows):\n"
        "        ours = [SamplingRow(r.params, r.prompt_token_ids, r.output_token_ids)"
        " for r in rows]\n"
        "        return mask_stop_tokens(filter_logits(logits, ours), rows)\n"
        "    logits = apply_pen", "come before temperature and filters"),
    "a_large_k_is_not_clamped": (
        sampler, "min(p.top_k, V), p.top_p)",
        "torch.tensor(p.top_k, dtype=torch.int32).item(), p.top_p)",
        "left with alone"),
    "greedy_rows_are_divided_too": (
        sampler, "if p.temperature else off",
        "if p.temperature else (max(q.temperature for q in params), *off[1:])",
        "no temperature and no filter"),
    "only_flat_batches": (
        sampler, "    params = [row.params for row in rows]\n    logits = mask",
        "    params = [row.params for row in rows]\n    logits.view(-1)\n"
        "    logits = mask", "left with alone"),
    "min_p_by_exponentials": (
        sampler, "logits < logits.amax(-1, True) + min_p.log()",
        "logits.exp() < logits.exp().amax(-1, True) * min_p", "A filter sets"),
    "top_k_writes_to_its_column": (
        sampler, "top_k.where(top_k > 0, V)  # by rank",
        "top_k.masked_fill_(top_k < 0, V)", "or a k of the vocabulary"),
    "top_p_writes_to_its_column": (
        sampler, "    cut = (before >= top_p) & (top_p < 1)",
        "    cut = before >= top_p.masked_fill_(top_p >= 1, 2)", "top_p 1 keeps"),
    "filters_are_float64": (
        sampler, "    V = logits.shape[-1]\n    order = logits.argsort",
        "    V, logits = logits.shape[-1], logits.double()\n    order = logits.argsort",
        "A filter sets"),
    "the_draw_divides_again": (
        sampler, "    probs = logits.softmax(-1)\n    shared",
        "    heat = [[row.params.temperature or 1.0] for row in rows]\n"
        "    probs = (logits / torch.tensor(heat)).softmax(-1)\n    shared",
        "probabilities of the softmax"),
    "the_draw_filters_again": (
        sampler, "    probs = logits.softmax(-1)\n    shared",
        "    probs = filter_logits(logits, rows).softmax(-1)\n    shared",
        "probabilities of the softmax"),
    "the_draw_by_exponentials": (
        sampler, "    probs = logits.softmax(-1)\n    shared",
        "    probs = logits.exp() / logits.exp().sum(-1, True)\n    shared",
        "probabilities of the softmax"),
    "the_draw_writes_to_the_logits": (
        sampler, "    probs = logits.softmax(-1)\n    shared",
        "    probs = logits.softmax(-1)\n    if logits.is_contiguous():\n"
        "        logits.sub_(logits.logsumexp(-1, True))\n    shared",
        "probabilities of the softmax"),
    "noise_for_the_whole_batch_from_each": (
        sampler, "noise[i].exponential_(generator=rows[i].generator)",
        "noise[i] = torch.empty_like(noise).exponential_("
        "generator=rows[i].generator)[0]", "draws the same alone"),
    "the_first_generator_for_all_seeded": (
        sampler, "noise[i].exponential_(generator=rows[i].generator)",
        "noise[i].exponential_("
        "generator=[r.generator for r in rows if r.generator][0])",
        "draws the same alone"),
    "free_rows_in_company_use_the_global": (
        sampler, "fresh.exponential_(generator=generator)",
        "fresh.exponential_(generator=None if apart else generator)",
        "generator that is handed in"),
    "the_first_rows_likeliest_for_all": (
        sampler, "output.top_token_ids, output.top_logprobs = top.indices, top.values",
        "output.top_token_ids = top.indices[:1].expand_as(top.indices)\n"
        "        output.top_logprobs = top.values", "come in order"),
    "ranks_by_the_first_row": (
        sampler, "(logprobs > chosen).sum(-1) + 1",
        "(logprobs[:1] > logprobs[0, token_ids].unsqueeze(-1)).sum(-1) + 1",
        "A rank of 1"),
    "one_free_row_puts_the_check_off": (
        sampler, "seeded = any(row.generator is not None for row in rows)",
        "seeded = all(row.generator is not None for row in rows)",
        "moves nobody's generator"),
    "filters_in_half_precision": (
        sampler, "    logits = logits.float()\n"
        "    seeded = any(row.generator is not None for row in rows)\n"
        "    if seeded:\n"
        "        check_logits(logits)  # before a generator has moved on\n"
        "    logprobs = logits.log_softmax(-1)",
        "    seeded = any(row.generator is not None for row in rows)\n"
        "    if seeded:\n        check_logits(logits.float())\n"
        "    logprobs = logits.float().log_softmax(-1)", "computed with in float32"),
    "seeded_noise_is_uniform": (
        sampler, "noise[i].exponential_(generator=rows[i].generator)",
        "noise[i].uniform_(generator=rows[i].generator)", "So they are in seeded"),
    "the_noise_of_others_rows": (
        sampler, "noise[tensor_on(shared, logits.device)] = fresh",
        "noise[: len(shared)] = fresh", "free rows that stand among"),
    "a_generator_that_is_always_new": (
        sampler, "fresh.exponential_(generator=generator)",
        "fresh.exponential_(generator=generator or torch.Generator())",
        "handed in"),
    "the_chosen_ones_probability": (
        sampler, "SamplerOutput(token_ids, chosen.squeeze(-1))",
        "SamplerOutput(token_ids, chosen.squeeze(-1).exp())", "tokens come back"),
    "the_likeliest_ones_probabilities": (
        sampler, "top.indices, top.values", "top.indices, top.values.exp()",
        "likeliest come in order"),
    "ranks_that_nobody_asked_for": (
        sampler, "    if count is not None:\n"
        "        output.ranks = (logprobs > chosen).sum(-1) + 1\n",
        "    output.ranks = (logprobs > chosen).sum(-1) + 1\n"
        "    if count is not None:\n", "A rank of 1"),
    "the_filters_are_for_nothing": (
        sampler, "draw(filter_logits(logits, rows), rows, generator)",
        "draw(logits, rows, generator)",
        "before penalties"),
    "sample_keeps_the_generator": (
        sampler, "draw(filter_logits(logits, rows), rows, generator)",
        "draw(filter_logits(logits, rows), rows)", "what the filters leave"),
    "logprobs_after_the_mask": (
        sampler, "logprobs = logits.log_softmax(-1)",
        "logprobs = mask_stop_tokens(logits, rows).log_softmax(-1)",
        "before penalties"),
    "fork_forgets_the_salt": (
        request, "forked.seq_id = new_seq_id",
        "forked.seq_id, forked.cache_salt = new_seq_id, b''", "A fork has a new id"),
    "fork_forgets_the_order": (
        request, "forked.seq_id = new_seq_id",
        "forked.seq_id, forked.order = new_seq_id, (0, 0, 0)", "A fork has a new id"),
    "fork_forgets_the_width": (
        request, "forked.seq_id = new_seq_id",
        "forked.seq_id, forked.width = new_seq_id, 1", "A fork has a new id"),
    "a_sequence_is_born_two_wide": (
        request, "width: int = 1", "width: int = 2", "begins waiting"),
    "a_capped_sequence_goes_on": (
        request, "        return self.status.is_finished()\n\n    def move_to",
        "        return self.status is SequenceStatus.FINISHED_STOPPED\n\n"
        "    def move_to", "finished exactly if its status"),
    "a_fork_belongs_to_whom_its_name_says": (
        request, "forked.seq_id = new_seq_id",
        "forked.seq_id, forked.request_id = new_seq_id, new_seq_id.split('-')[0]",
        "A fork has a new id"),
    "a_fork_asks_for_nothing": (
        request, "forked.seq_id = new_seq_id",
        "forked.seq_id, forked.sampling_params = new_seq_id, SamplingParams()",
        "A fork has a new id"),
    "sequences_ask_for_nothing": (
        request, "data, self.sampling_params, cache",
        "data, SamplingParams(n=self.sampling_params.n), cache", "makes best_of"),
    "a_prompt_is_ids_alone": (
        request, "self.prompt_token_ids = list(self.prompt_token_ids)\n        if",
        "self.prompt_token_ids, self.prompt = list(self.prompt_token_ids), None\n"
        "        if", "makes best_of"),
    "one_that_was_ignored_has_stopped": (
        request,
        "    SequenceStatus.FINISHED_IGNORED: RequestStatus.FINISHED_LENGTH_CAPPED,\n"
        "    SequenceStatus.FINISHED_LENGTH_CAPPED: "
        "RequestStatus.FINISHED_LENGTH_CAPPED,\n"
        "    SequenceStatus.FINISHED_STOPPED: RequestStatus.FINISHED_STOPPED,\n",
        "    SequenceStatus.FINISHED_LENGTH_CAPPED: "
        "RequestStatus.FINISHED_LENGTH_CAPPED,\n"
        "    SequenceStatus.FINISHED_STOPPED: RequestStatus.FINISHED_STOPPED,\n"
        "    SequenceStatus.FINISHED_IGNORED: RequestStatus.FINISHED_LENGTH_CAPPED,\n",
        "When all have ended"),
    "a_slice_may_be_the_prompt_itself": (
        request, "        return prompt[start:end] + self.output",
        "        if (start, end) == (0, at):\n            return prompt\n"
        "        return prompt[start:end] + self.output", "slice is a new list"),
    "a_salt_is_cut_off": (
        request, "self.cache_salt.encode(", "self.cache_salt[:8].encode(", "salt"),
    "given_sequences_are_made_anew": (
        request, "        if self.sequences:\n            return\n", "",
        "handed in stay"),
    "finished_follows_the_completions": (
        outputs, "        if self.metrics is not None:\n            self.metrics",
        "        self.finished = all(each.finished() for each in self.outputs)\n"
        "        if self.metrics is not None:\n            self.metrics",
        "isn't there stays None"),
    "sorted_by_logprob": (
        outputs, "for output in self.outputs\n        ]",
        "for output in sorted(self.outputs, key=lambda x: x.index)\n        ]",
        "isn't there stays None"),
    "the_model_gets_the_schedulers_length": (
        config, "        elif model_len is not None and scheduler_len > model_len:",
        "        elif model_len is None:\n"
        "            self.model_config.max_model_len = scheduler_len\n"
        "        elif scheduler_len > model_len:", "hands the model's"),
    "the_options_are_used_up": (
        config, "    for name, value in options.items():\n        if name not",
        "    while options:\n        name, value = options.popitem()\n"
        "        if name not", "Options of vLLM's pass"),
    "the_first_item_speaks_for_all": (
        sampling_params, "all(_fits(item, kinds[0]) for item in value)",
        "all(_fits(item, kinds[0]) for item in value[:1])", "each of its items"),
    "a_union_is_its_first_part": (
        sampling_params, "any(_fits(value, kind) for kind in kinds)",
        "_fits(value, kinds[0])", "one part has to fit"),
    "a_set_is_a_list": (
        sampling_params, "isinstance(value, list | tuple)",
        "isinstance(value, list | tuple | set)", "each of its items"),
    "one_is_true": (
        sampling_params, "    return isinstance(value, int | float if",
        "    if annotation is bool:\n        return value in (0, 1)\n"
        "    return isinstance(value, int | float if", "by its type"),
    "a_tiny_top_p_removes_all": (
        sampler, "    cut[..., 0] = False\n", "", "However small top_p"),
    "the_likeliest_of_the_batch": (
        sampler, "logits.amax(-1, True)", "logits.amax()", "own min_p"),
    "a_file_beats_its_index": (
        model_loader, "    if os.path.lexists(path / _INDEX):\n        return _indexed",
        "    one = path / 'model.safetensors'\n"
        "    if os.path.lexists(path / _INDEX) and not one.exists():\n"
        "        return _indexed", "With an index the files"),
    "inside_by_the_letters_of_the_path": (
        model_loader,
        "if not Path(os.path.abspath(path / name)).is_relative_to(inside):",
        "if not os.path.abspath(path / name).startswith(str(inside)):",
        "outside the folder"),
    "float64_is_no_plain_float": (
        model_loader, "_FLOATS = (torch.float64, *_DTYPES.values())",
        "_FLOATS = tuple(_DTYPES.values())", "Floats are cast"),
    "layers_are_counted": (
        model_loader, "there = max(numbers, default=-1) + 1",
        "there = len(set(numbers))", "number of layers"),
    "the_first_row_of_a_tied_head": (
        model_loader, "torch.equal(copy, original)",
        "torch.equal(copy[:1], original[:1])", "tied head may be in"),
    "a_message_is_written_to": (
        processor, 'made["tool_calls"] = [_tool',
        'message["tool_calls"] = made["tool_calls"] = [_tool', "list of text parts"),
    "the_end_has_no_logprob": (
        processor, "        self.cumulative_logprob += logprob\n",
        "        if token_id not in self._eos:\n"
        "            self.cumulative_logprob += logprob\n", "Logprobs add up"),
    "every_id_has_a_token": (
        processor, 'convert_ids_to_tokens(token_id) or ""',
        "convert_ids_to_tokens(token_id)", "A token's bytes"),
    "the_best_mean": (
        generation, "key=lambda b: b.cumulative_logprob,",
        "key=lambda b: b.cumulative_logprob / max(1, len(b.token_ids)),",
        "best_of > n"),
    "a_row_is_an_index_while_it_can_be": (
        generation, "            state.take(i, token_ids[row], logprobs[row]",
        "            row = min(i, len(running) - 1)\n"
        "            state.take(i, token_ids[row], logprobs[row]", "has ended is run"),
    "a_rank_is_a_place": (
        generation, "found.setdefault(token_id, (logprob, rank))",
        "found[token_id] = (logprob, rank)", "its own row of the batch"),
    "a_prompt_begins_no_character": (
        generation, "(self.request.prompt_token_ids[-8:] + builder.token_ids[-8:])",
        "builder.token_ids", "its own row of the batch"),
    "a_fork_stands_last": (
        scheduler, "insort(self.running, child, key=_order)",
        "self.running.append(child)", "A fork runs beside"),
    "decodes_by_name": (
        scheduler, "key=lambda seq: seq.num_missing > 1)",
        "key=lambda seq: (seq.num_missing > 1, seq.seq_id))", "decodes_first lets"),
    "n_is_what_has_to_fit": (
        engine, "if params.best_of > most:", "if params.n > most:",
        "can't be served"),
    "an_id_is_a_list_of_letters": (
        engine, "for each in several]", "for each in request_id]", "Who is aborted"),
    "hits_take_room_all_the_same": (
        block_manager,
        "if self.blocks_for(end) - len(hits) > len(self.free) - len(idle):",
        "if self.blocks_for(end) - len(idle) > len(self.free) - len(idle):",
        "Blocks that are hit"),
    "sums_in_the_dtype_of_the_values": (
        flash, "(x.float().transpose(0, 1).unsqueeze(1) for x in (k, v))",
        "(x.transpose(0, 1).unsqueeze(1) for x in (k, v))\n"
        "    heads = heads.to(q.dtype)", "Sums are taken in float32"),
    "fifteen_and_one_is_sixteen": (
        gptq, "(zeros + config.zero_offset) % LEVELS", "zeros + config.zero_offset",
        "What others wrote"),
    "no_format_is_the_newest": (
        gptq, 'hf.get("checkpoint_format") or "gptq"',
        'hf.get("checkpoint_format") or "gptq_v2"', "What others wrote"),
    "some_damping_has_to_be": (
        gptq, "if not 0 <= damp < 1:", "if not 0 < damp < 1:", "upper triangular"),
    "a_share_of_the_weights": (
        gptq, "whole = ((weight @ hessian) * weight).sum()",
        "whole = (weight * weight).sum()", "Its outputs are nearer"),
    "a_subclass_is_no_config": (
        config, "if not isinstance(getattr(self, name), kind):",
        "if type(getattr(self, name)) is not kind:", "no such config"),
    "a_kind_is_remembered": (
        sampling_params, "        return SamplingType.GREEDY if self.temperature == 0",
        "        kinds = self.__dict__\n"
        "        if 'kind' not in kinds:\n"
        "            kinds['kind'] = self.temperature\n"
        "        return SamplingType.GREEDY if kinds['kind'] == 0", "sampling_type is"),
    "who_waits_has_no_blocks": (
        request, "        self.status = status\n",
        "        self.status = status\n"
        "        if status is SequenceStatus.WAITING:\n"
        "            self.block_ids, self.num_computed = [], 0\n", "every arrow"),
    "every_runtime_error_is_lack_of_memory": (
        engine, "if not isinstance(error, torch.OutOfMemoryError):",
        "if not isinstance(error, RuntimeError):", "A step that fails is raised"),
    "an_extent_that_float16_loses": (
        gptq, "    scale = ((high - low) / (LEVELS - 1)).half().float()\n"
        "    scale = torch.where(scale == 0, 1.0, scale)",
        "    scale = (high - low) / (LEVELS - 1)\n"
        "    scale = torch.where(scale == 0, 1.0, scale).half().float()",
        "float16 can hold"),
    "whatever_no_decoder_takes_is_unfinished": (
        processor, "        return decoder.getstate()[0]\n",
        "        data = b''.join(map(self.bytes_of, token_ids[-8:]))\n"
        "        try:\n"
        "            data.decode()\n"
        "        except UnicodeDecodeError as error:\n"
        "            return data[error.start :]\n"
        "        return b''\n", "A token's text"),
    "only_whole_parts_are_empty": (
        flash, "    best = torch.maximum(a.best, b.best)\n"
        "    # -inf - -inf is NaN: who has seen nothing yet keeps its zeros.\n"
        "    down = [torch.where(x.best == best, 1, (x.best - best).exp()) "
        "for x in (a, b)]\n",
        "    if (a.best == -math.inf).all():\n"
        "        return b\n"
        "    if (b.best == -math.inf).all():\n"
        "        return a\n"
        "    best = torch.maximum(a.best, b.best)\n"
        "    down = [(x.best - best).exp() for x in (a, b)]\n", "seen nothing"),
}  # fmt: skip


def edited(module: types.ModuleType, *pairs: tuple[str, str]) -> types.ModuleType:
    """The module after edits of its source."""
    with open(module.__file__, encoding="utf-8") as file:
        source = file.read()
    for old, new in pairs:
        assert source.count(old) == 1, f"{old!r} stands there {source.count(old)} times"
        source = source.replace(old, new)
    made = types.ModuleType(f"{module.__name__}.edited")
    sys.modules[made.__name__] = made  # dataclasses look their module up
    exec(compile(source, "mutant.py", "exec"), made.__dict__)
    return made


def judge(module, mutant):
    suite = getattr(checks, module.__name__.rpartition(".")[2])
    suite(**{name: getattr(mutant, name) for name in SUITES[module]})


@pytest.mark.parametrize("name", MUTANTS)
def test_the_suites_reject(name, capsys):
    module, old, new, words = MUTANTS[name]
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        judge(module, edited(module, (old, new)))
    failed = [x for x in capsys.readouterr().out.split("\n") if x.startswith("✗")]
    assert words in failed[0], "another property notices first"


RIGHT = {
    "messages_in_other_words": (
        sampling_params,
        ("must be non-negative, got", "can't lie below zero, but is"),
        ("must be in (0, 1], got", "has to be a share; it is"),
        ("must be -1 (disabled) or >= 1, got", "counts tokens, or is -1:"),
        ("n must be at least 1, got", "n counts completions:"),
        ("best_of ({self.best_of}) must be >= n ({self.n})",
         "n is {self.n} and best_of {self.best_of}"),
        ("max_tokens must be at least 1, got", "max_tokens: one or more, not"),
        ("Beam search is not supported; use n or best_of", "not here"),
    ),
    "configs_in_other_words": (
        config,
        ("must be {wanted}, got", "isn't {wanted}:"),
        ("gpu_memory_utilization must be in (0, 1], ",
         "gpu_memory_utilization is a share, "),
    ),
    "ids_by_their_size": (
        sampling_params,
        ("list(dict.fromkeys(self.stop_token_ids or []))",
         "sorted(set(self.stop_token_ids or []))"),
    ),
    "top_k_then_min_p": (
        sampler,
        ("    if any(min_ps):\n        logits = apply_min_p(logits, min_p)\n", ""),
        ("        logits = apply_top_k(logits, top_k.long())\n",
         "        logits = apply_top_k(logits, top_k.long())\n"
         "    if any(min_ps):\n        logits = apply_min_p(logits, min_p)\n"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_the_suites_accept(name, capsys):
    module, *pairs = RIGHT[name]
    judge(module, edited(module, *pairs))
    assert "✗" not in capsys.readouterr().out


# ----- exercise 3 of notebook 03: mixes of seed and step


def draw_at(mix):
    def draw(logits, seeds, steps):
        noise = torch.empty_like(logits)
        for row, seed, step in zip(noise, seeds, steps, strict=True):
            generator = torch.Generator().manual_seed(mix(seed, step) % 2**63)
            row.exponential_(generator=generator)
        return (logits.softmax(-1) / noise).argmax(-1)

    return draw


def digest(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


MIXES = {
    "times_a_prime": lambda seed, step: seed * 1_000_003 + step,
    "times_a_million": lambda seed, step: seed * 10**6 + step,
    "times_2_to_the_20": lambda seed, step: (seed << 20) | step,
    "times_an_odd_number": lambda seed, step: seed * 777_777 + step,
    "times_a_large_prime": lambda seed, step: seed * 1_000_000_007 + step,
    "pythons_hash": lambda seed, step: hash((seed, step)),
    "digits_side_by_side": lambda seed, step: digest(f"{seed}{step}"),
    "32_bits_of_the_seed": lambda seed, step: digest(f"{seed % 2**32} {step}"),
}


@pytest.mark.parametrize("name", MIXES)
def test_seeds_that_meet_are_found(name, capsys):
    with pytest.raises(checks.CheckFailed):
        checks.sampler(draw_at=draw_at(MIXES[name]))
    assert "the tokens of seed" in capsys.readouterr().out


def test_a_digest_of_both_is_right(capsys):
    checks.sampler(draw_at=draw_at(lambda seed, step: digest(f"{seed},{step}")))
    assert "✗" not in capsys.readouterr().out


# ----- exercise 3 of notebook 04


def deltas_by_place(stream):
    seen = {}
    for output in stream:
        new = []
        for at, each in enumerate(output.outputs):
            text, count = seen.get(at, (0, 0))
            seen[at] = len(each.text), len(each.token_ids)
            logprobs = each.logprobs and each.logprobs[count:]
            more = {"text": each.text[text:], "token_ids": each.token_ids[count:]}
            new.append(dataclasses.replace(each, **more, logprobs=logprobs))
        yield dataclasses.replace(output, outputs=new)


def test_a_completion_is_known_by_its_index(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.outputs(deltas=deltas_by_place)
    assert "another order, the best first" in capsys.readouterr().out
