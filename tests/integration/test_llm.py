"""The public API: every field of SamplingParams does what it says, streamed or not."""

import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from tqdm import tqdm

from folovllm_lite import LLM, SamplingParams
from folovllm_lite.generation import generate
from folovllm_lite.model_loader import EMBEDDED_MODEL
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.tiny import corpus
from tests.helpers import edit_json, make_checkpoint


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A random model: its texts make no sense, so nothing passes because it is
    likely."""
    return LLM(str(make_checkpoint(tmp_path_factory.mktemp("random"))), device="cpu")


def one(llm, prompt="Once", **params):
    return llm.generate(prompt, SamplingParams(**params), use_tqdm=False)[0]


def tokens(llm, prompt="Once", **params):
    return one(llm, prompt, **params).outputs[0].token_ids


def same(ours, theirs):
    """Equal completions; logprobs may differ in the last digits, which other rows of
    the batch decide."""
    return [
        replace(each, cumulative_logprob=pytest.approx(each.cumulative_logprob, 1e-4))
        for each in ours
    ] == theirs


# --- against transformers -------------------------------------------------------------


@pytest.fixture(scope="module")
def peer():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


def prompts_in_both_languages():
    rng = random.Random(11)
    prompts = []
    for i in range(50):
        grammars = corpus.GRAMMARS["en" if i % 2 else "zh"]
        kind = ("story", "chat", "chat_story", "plain")[i // 2 % 4]
        sample = grammars[kind].sample(rng)
        prompts.append(sample.prompt or sample.text[: 4 + i])
    return prompts


def test_greedy_tokens_equal_transformers(embedded_llm, peer):
    """50 prompts in English and Chinese, float32: token by token the same."""
    theirs, tokenizer = peer
    prompts = prompts_in_both_languages()
    outputs = embedded_llm.generate(
        prompts, SamplingParams(temperature=0, max_tokens=60), use_tqdm=False
    )
    assert len({output.outputs[0].text for output in outputs}) > 30
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            want = theirs.generate(**ids, do_sample=False, max_new_tokens=60)[0]
        assert output.prompt_token_ids + output.outputs[0].token_ids == want.tolist()


def test_weights_that_transformers_saves_load_here(peer, tmp_path):
    """A round trip: our checkpoint, their loader, their writer, our loader."""
    theirs, tokenizer = peer
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    first, again = (
        Qwen3.from_pretrained(path, device="cpu").state_dict()
        for path in (EMBEDDED_MODEL, tmp_path)
    )
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name


# --- one field after another ----------------------------------------------------------


def test_max_tokens_and_finish_reason_length(llm):
    output = one(llm, max_tokens=7, temperature=0, ignore_eos=True).outputs[0]
    assert (len(output.token_ids), output.finish_reason) == (7, "length")
    assert output.finished()


def test_max_tokens_none_goes_on_to_max_model_len(tmp_path):
    short = LLM(str(make_checkpoint(tmp_path)), max_model_len=24, device="cpu")
    output = one(short, max_tokens=None, ignore_eos=True)
    assert len(output.prompt_token_ids) + len(output.outputs[0].token_ids) == 24


def test_stop_token_ends_the_text_and_is_kept_in_the_tokens(llm):
    free = tokens(llm, temperature=0, max_tokens=12, ignore_eos=True)
    stop = free[5]
    output = one(llm, temperature=0, max_tokens=12, stop_token_ids=[stop]).outputs[0]
    cut = free.index(stop) + 1
    assert output.token_ids == free[:cut]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    shown = llm.get_tokenizer().decode(free[: cut - 1])
    assert output.text == shown


def test_min_tokens_keeps_the_end_away(llm):
    free = tokens(llm, temperature=0, max_tokens=12, ignore_eos=True)
    late = one(
        llm, temperature=0, max_tokens=12, min_tokens=9, stop_token_ids=[free[2]]
    )
    assert len(late.outputs[0].token_ids) >= 9
    assert free[2] not in late.outputs[0].token_ids[:9]


def test_the_end_of_sequence_token_ends_unless_ignored(embedded_llm):
    prompt = "What is 2 + 3?"
    ended = one(embedded_llm, prompt, temperature=0, max_tokens=40).outputs[0]
    on = one(
        embedded_llm, prompt, temperature=0, max_tokens=40, ignore_eos=True
    ).outputs[0]
    assert (ended.finish_reason, ended.token_ids[-1]) == ("stop", 0)
    assert (on.finish_reason, len(on.token_ids)) == ("length", 40)
    assert on.token_ids[: len(ended.token_ids)] == ended.token_ids


def test_the_end_of_the_turn_gives_no_reason_and_the_end_of_the_text_its_id(
    embedded_llm,
):
    """The tokenizer's own end is <|im_end|>; generation_config.json also names
    <|endoftext|>, with which stories end. vLLM 0.32 gives the same six.
    """
    params = {"temperature": 0, "max_tokens": 150}
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    (turn,) = embedded_llm.chat(chat, SamplingParams(**params), use_tqdm=False)
    assert turn.outputs[0].stop_reason is None
    assert turn.outputs[0].token_ids[-1] == 2
    story = "Once upon a time"
    for more, wanted in (
        ({}, ("stop", 0)),
        ({"stop_token_ids": [0]}, ("stop", 0)),
        ({"ignore_eos": True, "min_tokens": 60, "max_tokens": 80}, ("length", None)),
        ({"ignore_eos": True, "stop_token_ids": [0]}, ("stop", 0)),
    ):
        found = one(embedded_llm, story, **{**params, **more}).outputs[0]
        assert (found.finish_reason, found.stop_reason) == wanted
    listed = SamplingParams(**params, ignore_eos=True, stop_token_ids=[2])
    (turn,) = embedded_llm.chat(chat, listed, use_tqdm=False)
    assert turn.outputs[0].stop_reason == 2


@pytest.mark.parametrize("include", [False, True])
def test_stop_string_across_tokens(embedded_llm, include):
    """ " wen" begins inside one token and ends inside another, or is cut somewhere
    else."""
    free = one(embedded_llm, "Lily", temperature=0, max_tokens=40).outputs[0].text
    stop = free[9:15]
    output = one(
        embedded_llm,
        "Lily",
        temperature=0,
        max_tokens=40,
        stop=stop,
        include_stop_str_in_output=include,
    ).outputs[0]
    end = free.index(stop) + (len(stop) if include else 0)
    assert output.text == free[:end]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)


def test_n_completions_use_seed_plus_i(llm):
    several = one(llm, n=3, seed=5, max_tokens=10).outputs
    for i, output in enumerate(several):
        assert output.index == i
        assert output.token_ids == tokens(llm, seed=5 + i, max_tokens=10)
    assert len({tuple(output.token_ids) for output in several}) == 3


def test_best_of_returns_the_likeliest(llm):
    all_of_them = one(llm, n=5, seed=1, max_tokens=8).outputs
    best = one(llm, n=2, best_of=5, seed=1, max_tokens=8).outputs
    ranked = sorted(all_of_them, key=lambda o: o.cumulative_logprob, reverse=True)
    assert [o.token_ids for o in best] == [o.token_ids for o in ranked[:2]]
    assert [o.index for o in best] == [0, 1]


def test_a_seed_repeats_and_neighbours_do_not_matter(llm):
    want = tokens(llm, seed=9, max_tokens=12)
    batch = llm.generate(
        ["other", "Once", "third"],
        [SamplingParams(), SamplingParams(seed=9, max_tokens=12), SamplingParams(n=2)],
        use_tqdm=False,
    )
    assert batch[1].outputs[0].token_ids == want
    assert tokens(llm, seed=10, max_tokens=12) != want


def test_unseeded_requests_differ_but_a_new_llm_repeats_them(tmp_path):
    path = str(make_checkpoint(tmp_path))
    runs = []
    for _ in range(2):
        fresh = LLM(path, seed=3, device="cpu")
        torch.manual_seed(len(runs))  # the global generator has no say
        runs.append([tokens(fresh, max_tokens=8) for _ in range(2)])
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


def test_temperature_top_k_top_p_min_p_narrow_the_choice(llm):
    greedy = tokens(llm, temperature=0, max_tokens=8)
    for narrow in (
        {"top_k": 1},
        {"top_p": 1e-6},
        {"min_p": 1.0},
        {"temperature": 1e-4},
    ):
        assert tokens(llm, max_tokens=8, seed=2, **narrow) == greedy, narrow
    assert tokens(llm, max_tokens=8, seed=2) != greedy


def test_penalties_change_the_course(llm):
    prompt = "Once"
    plain = tokens(llm, prompt, temperature=0, max_tokens=30, ignore_eos=True)
    assert len(set(plain)) < len(plain)
    never_twice = tokens(
        llm,
        prompt,
        temperature=0,
        max_tokens=30,
        ignore_eos=True,
        repetition_penalty=1e5,
    )
    ids = llm.get_tokenizer().encode(prompt)
    assert len(set(never_twice)) == 30 and not set(never_twice) & set(ids)
    for name in ("presence_penalty", "frequency_penalty"):
        assert (
            tokens(
                llm,
                prompt,
                temperature=0,
                max_tokens=30,
                ignore_eos=True,
                **{name: 2.0},
            )
            != plain
        )


def test_logprobs_have_vllms_shape(llm):
    output = one(llm, temperature=0, max_tokens=5, logprobs=3).outputs[0]
    assert len(output.logprobs) == 5
    for token_id, found in zip(output.token_ids, output.logprobs, strict=True):
        assert list(found)[0] == token_id and len(found) == 3
        assert [item.rank for item in found.values()] == [1, 2, 3]
    pairs = zip(output.token_ids, output.logprobs, strict=True)
    shown = "".join(found[token_id].decoded_token for token_id, found in pairs)
    assert output.text.startswith(shown)  # the end adds what was half a character
    total = sum(
        f[t].logprob for t, f in zip(output.token_ids, output.logprobs, strict=True)
    )
    assert total == pytest.approx(output.cumulative_logprob, abs=1e-4)


def test_logprobs_are_raw_and_name_the_chosen_token(llm):
    """Temperature and filters change the choice, not what the model thought of it."""
    hot = one(llm, temperature=5.0, seed=1, max_tokens=1, logprobs=0).outputs[0]
    raw = one(llm, temperature=0, max_tokens=1, logprobs=320).outputs[0].logprobs[0]
    (token_id,) = hot.token_ids
    assert list(hot.logprobs[0]) == [token_id]
    assert hot.logprobs[0][token_id].logprob == pytest.approx(raw[token_id].logprob)
    assert hot.logprobs[0][token_id].rank == raw[token_id].rank > 1
    assert sum(torch.tensor(i.logprob).exp() for i in raw.values()) == pytest.approx(
        1.0
    )


def test_prompt_logprobs_agree_with_generated_ones(llm):
    """Generate, then score the same text as a prompt: the same numbers at each
    place."""
    first = one(llm, temperature=0, max_tokens=6, logprobs=2, ignore_eos=True)
    ids = first.prompt_token_ids + first.outputs[0].token_ids
    scored = one(llm, {"prompt_token_ids": ids}, max_tokens=1, prompt_logprobs=2)
    assert scored.prompt_logprobs[0] is None and len(scored.prompt_logprobs) == len(ids)
    for want, got in zip(
        first.outputs[0].logprobs, scored.prompt_logprobs[-6:], strict=True
    ):
        assert want.keys() == got.keys()
        for key in want:
            assert want[key].logprob == pytest.approx(got[key].logprob, abs=1e-4)


def test_special_tokens_are_skipped_or_shown(embedded_llm):
    chat = [{"role": "user", "content": "Hello!"}]
    shown = embedded_llm.chat(
        chat,
        SamplingParams(
            temperature=0,
            max_tokens=30,
            skip_special_tokens=False,
            include_stop_str_in_output=True,
        ),
    )[0]
    hidden = embedded_llm.chat(chat, SamplingParams(temperature=0, max_tokens=30))[0]
    assert shown.outputs[0].text == hidden.outputs[0].text + "<|im_end|>"


# --- streaming
# --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, params",
    [
        ("Once upon a time", {"seed": 4}),
        ("从前", {"seed": 1, "temperature": 1.5}),
        ("🐉", {"seed": 2, "temperature": 3.0, "skip_special_tokens": False}),
        ("Lily went", {"seed": 3, "n": 2, "stop": [". ", "He"]}),
    ],
)
def test_streamed_equals_whole(embedded_llm, prompt, params):
    """What was shown is never taken back, and at the end nothing is missing."""
    params = SamplingParams(max_tokens=60, **params)
    whole = embedded_llm.generate(prompt, params, use_tqdm=False)[0]
    seen = [""] * params.n
    for output in embedded_llm.stream(prompt, params):
        for i, completion in enumerate(output.outputs):
            assert completion.text.startswith(seen[i])
            seen[i] = completion.text
    assert output.finished
    assert output.outputs == whole.outputs
    assert seen == [completion.text for completion in whole.outputs]


def test_a_dropped_stream_leaves_nothing_behind(llm):
    want = tokens(llm, seed=1, max_tokens=9)
    stream = llm.stream("Once", SamplingParams(seed=1, max_tokens=9))
    next(stream)
    other = tokens(llm, seed=1, max_tokens=9)  # in the middle of the first
    assert next(stream).outputs[0].token_ids == want  # it went on meanwhile
    del stream
    assert tokens(llm, seed=1, max_tokens=9) == want == other


# --- the rest of the API
# ------------------------------------------------------------------


def test_prompts_in_every_form(llm):
    ids = llm.get_tokenizer().encode("Once")
    forms = ["Once", {"prompt": "Once"}, {"prompt_token_ids": ids}, ids]
    outputs = llm.generate(forms, SamplingParams(temperature=0), use_tqdm=False)
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1
    assert [output.prompt for output in outputs] == ["Once", "Once", None, None]
    assert llm.generate([], use_tqdm=False) == []


def test_llm_and_the_oracle_give_the_same(llm):
    ids = llm.get_tokenizer().encode("从前 there was")
    params = SamplingParams(seed=8, max_tokens=10, n=2)
    alone = generate(llm.model, llm.get_tokenizer(), ids, params, eos_token_ids=(1,))
    assert same(alone.outputs, one(llm, ids, seed=8, max_tokens=10, n=2).outputs)


def test_chat_answers_one_or_many_conversations(embedded_llm):
    talk = [{"role": "user", "content": "Hello!"}]
    params = SamplingParams(temperature=0, max_tokens=40)
    alone = embedded_llm.chat(talk, params)
    both = embedded_llm.chat(
        [
            talk,
            [
                *talk,
                {"role": "assistant", "content": "Hi!"},
                {"role": "user", "content": "Who are you?"},
            ],
        ],
        params,
    )
    assert [len(alone), len(both)] == [1, 2]
    assert same(alone[0].outputs, both[0].outputs)
    assert both[1].prompt.endswith("<|im_start|>assistant\n")


def test_metrics_are_in_order(llm):
    metrics = one(llm, max_tokens=3).metrics
    assert metrics.arrival_time <= metrics.first_token_time <= metrics.finished_time


def test_caller_objects_are_left_alone(llm):
    params = SamplingParams(max_tokens=None, stop=["x"])
    ids = [5, 6, 7]
    one_request = {"prompt_token_ids": ids}
    before = repr(vars(params))
    llm.generate(one_request, params, use_tqdm=False)
    assert repr(vars(params)) == before and ids == [5, 6, 7]
    assert one_request == {"prompt_token_ids": ids}


# --- options of vLLM's that we don't have ---------------------------------------------


def test_a_script_may_say_off_and_one(tmp_path):
    checkpoint = str(make_checkpoint(tmp_path))
    llm = LLM(
        checkpoint, enforce_eager=True, tensor_parallel_size=1, device="cpu",
        hf_token=None, limit_mm_per_prompt={}, generation_config="auto", convert="auto",
    )  # fmt: skip
    assert tokens(llm, max_tokens=2, ignore_eos=True)


def test_none_is_as_usual(tmp_path):
    names = ("dtype", "seed", "block_size", "max_num_seqs", "enable_prefix_caching",
             "enable_chunked_prefill", "gpu_memory_utilization")  # fmt: skip
    checkpoint = str(make_checkpoint(tmp_path))
    none = LLM(checkpoint, device="cpu", **dict.fromkeys(names))
    assert none.model_config == LLM(checkpoint, device="cpu").model_config
    assert none.llm_engine.scheduler.config.max_num_seqs == 256
    assert none.llm_engine.scheduler.memory.block_size == 16


def test_a_callers_bar_is_used(embedded_llm):
    seen = []

    def bar(**options):
        seen.append(tqdm(disable=True, total=options["total"]))
        return seen[-1]

    embedded_llm.generate(["Once", "Lily"], SamplingParams(max_tokens=1), use_tqdm=bar)
    assert [each.total for each in seen] == [2]


def test_a_call_may_say_off_too(embedded_llm):
    off = {"lora_request": None, "priority": None, "tokenization_kwargs": None}
    asked = SamplingParams(temperature=0, max_tokens=2)
    plain = tokens(embedded_llm, "Once", temperature=0, max_tokens=2)
    made = embedded_llm.generate("Once", asked, use_tqdm=False, **off)
    assert made[0].outputs[0].token_ids == plain
    chat = partial(embedded_llm.chat, HELLO, asked)
    off["chat_template_content_format"] = "auto"
    assert chat(**off)[0].prompt == chat()[0].prompt
    for call in (partial(embedded_llm.generate, "Once", asked), chat):
        with pytest.raises(NotImplementedError, match="lora_request='mine'"):
            call(lora_request="mine")
        with pytest.raises(TypeError, match="lora_requests"):
            call(lora_requests=None)


@pytest.mark.parametrize(
    "option, error",
    [
        ({"tensor_parallel_size": 2}, NotImplementedError),
        ({"enforce_eager": "no"}, TypeError),
        ({"enforce_eagr": True}, TypeError),
    ],
)
def test_what_is_not_here_is_refused_by_name_before_anything_is_loaded(option, error):
    with pytest.raises(error, match=next(iter(option))):
        LLM("no/such/model", **option)


# ----- what vLLM's users bring along


HELLO = [{"role": "user", "content": "What is 2 + 3?"}]


def test_the_checkpoint_says_how_to_sample_where_nobody_else_does(tmp_path):
    path = make_checkpoint(tmp_path / "model")
    edit_json(path / "generation_config.json", temperature=0.0, max_new_tokens=5)
    llm = LLM(str(path), device="cpu")
    defaults = llm.get_default_sampling_params()
    assert (defaults.temperature, defaults.max_tokens) == (0, 5)
    asked = SamplingParams(temperature=0, max_tokens=5)
    wanted = llm.generate("Once", asked)[0].outputs[0].token_ids
    assert llm.generate("Once")[0].outputs[0].token_ids == wanted
    assert [*llm.stream("Once")][-1].outputs[0].token_ids == wanted
    defaults.max_tokens = 1  # a copy
    assert llm.get_default_sampling_params().max_tokens == 5
    assert llm.generate("Once", SamplingParams(temperature=0))[0].outputs[0].token_ids[
        :5
    ] == (wanted)


def test_max_tokens_that_nobody_chose_are_what_fits(tmp_path):
    """A checkpoint that recommends 2,048 tokens refused every prompt of a short LLM."""
    path = make_checkpoint(tmp_path / "model")
    edit_json(path / "generation_config.json", temperature=0.0, max_new_tokens=2048)
    llm = LLM(str(path), device="cpu", max_model_len=12)
    for made in (llm.generate([5] * 4)[0], [*llm.stream([5] * 4)][-1]):
        output = made.outputs[0]
        assert (len(output.token_ids), output.finish_reason) == (8, "length")
    with pytest.raises(ValueError, match="max_tokens is 2048"):
        llm.generate([5] * 4, llm.get_default_sampling_params())
    with pytest.raises(ValueError, match="12, but the prompt has 12 tokens"):
        llm.generate([5] * 12)


def test_chat_takes_vllms_keywords(embedded_llm):
    greedy = SamplingParams(temperature=0, max_tokens=12)
    plain = embedded_llm.chat(HELLO, greedy)[0]
    assert plain.outputs[0].text == "2 + 3 = 5."
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is 2 + 3?"}]}]
    assert embedded_llm.chat(parts, greedy, use_tqdm=False)[0].prompt == plain.prompt
    opened = [*HELLO, {"role": "assistant", "content": "2 + 3 ="}]
    goes_on = {"add_generation_prompt": False, "continue_final_message": True}
    made = embedded_llm.chat(opened, greedy, **goes_on)[0]
    assert made.outputs[0].text == " 5."
    last = [*embedded_llm.stream(opened, greedy, **goes_on)][-1]
    assert last.outputs[0].text == " 5."
    template = "{{ messages[0].content }}{{ mark }}"
    more = {"chat_template": template, "chat_template_kwargs": {"mark": "!"}}
    assert embedded_llm.chat(HELLO, greedy, **more)[0].prompt == "What is 2 + 3?!"
    with pytest.raises(TypeError, match="tools.*conversation"):
        embedded_llm.stream("Once", greedy, tools=[])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_default_dtype_of_the_users_changes_nothing(embedded_llm, dtype):
    """A penalty once aborted its request: its numbers were of that dtype."""
    params = SamplingParams(seed=1, repetition_penalty=1.2, presence_penalty=1.0)
    wanted = embedded_llm.generate("Once", params)[0].outputs[0].token_ids
    torch.set_default_dtype(dtype)
    try:
        for llm in (embedded_llm, LLM(device="cpu")):
            made = llm.generate("Once", params)[0]
            assert made.outputs[0].token_ids == wanted
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_default_device_of_the_users_changes_nothing(embedded_llm):
    params = SamplingParams(seed=1, repetition_penalty=1.2, min_tokens=3, logprobs=2)
    wanted = embedded_llm.generate("Once", params)[0].outputs[0].token_ids
    torch.set_default_device("meta")
    try:
        made = LLM(device="cpu").generate("Once", params)[0]
    finally:
        torch.set_default_device(None)
    assert made.outputs[0].token_ids == wanted
