"""Bad input says what is wrong, with the values, and costs nothing: the LLM goes on."""

import json
import math

import pytest
import torch

from folovllm_lite import LLM, SamplingParams
from folovllm_lite.generation import Generation, generate
from folovllm_lite.processor import TokenTexts
from folovllm_lite.request import Request
from tests.helpers import VOCAB_SIZE, edit_json, make_checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("bad") / "model")


@pytest.fixture(scope="module")
def shared_llm(path):
    return LLM(str(path), max_model_len=40, device="cpu")


@pytest.fixture
def llm(shared_llm):
    """After every test the LLM answers as it did before, unseeded draws included."""
    engine = shared_llm.llm_engine
    state = engine._generator.get_state()
    before = shared_llm.generate("Once", GREEDY, use_tqdm=False)[0].outputs
    yield shared_llm
    assert torch.equal(state, engine._generator.get_state())
    assert not engine.has_unfinished_requests()
    engine.scheduler.memory.check_integrity()
    assert not engine.scheduler.memory.holders
    assert shared_llm.generate("Once", GREEDY, use_tqdm=False)[0].outputs == before


@pytest.mark.parametrize(
    "prompt, error, message",
    [
        ("", ValueError, "the prompt is empty"),
        ([], ValueError, None),
        ({"prompt_token_ids": []}, ValueError, "the prompt is empty"),
        ({"prompt_token_ids": list(range(2, 45))}, ValueError, "40.*43 tokens"),
        (
            {"prompt_token_ids": [5] * 35},
            ValueError,
            "35 tokens and max_tokens is 6: 41",
        ),
        ({"prompt_token_ids": [5, 320]}, ValueError, "320 is outside.*320"),
        ({"prompt_token_ids": [-1]}, ValueError, "-1 is outside"),
        ({"prompt_token_ids": [1.5]}, TypeError, "1.5"),
        ({"prompt_token_ids": "abc"}, TypeError, "abc"),
        ({"prompt_token_ids": [True]}, TypeError, "True"),
        ({"text": "abc"}, TypeError, "text"),
        (5, TypeError, "got 5"),
        (None, TypeError, "got None"),
        (b"bytes", TypeError, "bytes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_prompts(llm, prompt, error, message):
    if prompt == []:  # no prompts at all is not an error
        assert llm.generate(prompt, GREEDY, use_tqdm=False) == []
        return
    with pytest.raises(error, match=message):
        llm.generate(["Once", prompt], GREEDY, use_tqdm=False)
    with pytest.raises(error, match=message):
        llm.stream(prompt, GREEDY)


@pytest.mark.parametrize(
    "ids, max_tokens, message",
    [
        ([], 1, "empty"),
        ([2, VOCAB_SIZE], 1, str(VOCAB_SIZE)),
        ([2] * 512, 1, "max_model_len is 512, but the prompt has 512 tokens"),
        ([2] * 500, 13, "500 tokens and max_tokens is 13: 513 in all"),
    ],
)
def test_the_plain_loop_has_the_same_door(llm, ids, max_tokens, message):
    params = SamplingParams(max_tokens=max_tokens)
    with pytest.raises(ValueError, match=message):
        generate(llm.model, llm.get_tokenizer(), ids, params)


@pytest.mark.parametrize("params", [None, {}, "greedy"])
def test_params_of_another_kind(llm, params):
    with pytest.raises(TypeError, match="must be SamplingParams, got"):
        generate(llm.model, llm.get_tokenizer(), [2], params)
    if params is not None:  # there it stands for the defaults
        with pytest.raises(TypeError, match="must be SamplingParams, got"):
            llm.generate("Once", params)


def test_nothing_is_generated_before_the_last_prompt_is_checked(llm, monkeypatch):
    monkeypatch.setattr(llm.model, "forward", None)  # would fail if it were called
    with pytest.raises(ValueError, match="empty"):
        llm.generate(["Once"] * 5 + [""], GREEDY)


def test_params_that_do_not_match_the_prompts(llm):
    with pytest.raises(ValueError, match="3 prompts, but 2 sampling_params"):
        llm.generate(["a", "b", "c"], [GREEDY, GREEDY])
    with pytest.raises(TypeError, match="SamplingParams, got {'temperature': 0}"):
        llm.generate("a", {"temperature": 0})
    with pytest.raises(TypeError, match="got None"):
        llm.generate(["a"], [None])
    with pytest.raises(ValueError, match="stop_token_ids.*999.*320"):
        llm.generate("a", SamplingParams(stop_token_ids=[999]))
    with pytest.raises(ValueError, match="logprobs is 321.*320"):
        llm.generate("a", SamplingParams(logprobs=321))
    with pytest.raises(ValueError, match=r"best_of \(3\) > n \(1\)"):
        llm.stream("a", SamplingParams(best_of=3))


@pytest.mark.parametrize(
    "messages, error",
    [
        ([], ValueError),
        ("Hello", ValueError),
        ([{"role": "user"}], TypeError),
        ([{"content": "Hello"}], TypeError),
        (["Hello"], TypeError),
        ([{"role": "user", "content": None}], TypeError),
        ([[]], ValueError),
    ],
)
def test_bad_conversations(llm, messages, error):
    with pytest.raises(error):
        llm.chat(messages, GREEDY)


def test_unknown_keywords_are_a_type_error(path):
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)
    with pytest.raises(TypeError, match="max_num_seq"):
        LLM(str(path), max_num_seq=3)


INTS = [
    "n",
    "best_of",
    "top_k",
    "max_tokens",
    "min_tokens",
    "logprobs",
    "prompt_logprobs",
]
FLOATS = ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty",
          "repetition_penalty", "length_penalty"]  # fmt: skip
FLAGS = ["include_stop_str_in_output", "ignore_eos", "skip_special_tokens",
         "spaces_between_special_tokens", "use_beam_search",
         "early_stopping"]  # fmt: skip


@pytest.mark.parametrize(
    "field, value",
    [
        (name, value)
        for name in [*INTS, "seed"]
        for value in (1.0, "1", True, [1], math.nan)
    ]
    + [(name, value) for name in FLOATS for value in ("1", True, None, [1.0])]
    + [(name, value) for name in FLAGS for value in (1, "yes", None)]
    + [("stop", value) for value in (1, [1], {"a": 1}, [None])]
    + [("stop_token_ids", value) for value in (1, "12", ["1"], [1.0], [True])],
)
def test_wrong_types_name_the_field_and_the_value(field, value):
    with pytest.raises((TypeError, ValueError)) as caught:
        SamplingParams(**{field: value})
    assert field in str(caught.value) and repr(value) in str(caught.value)


@pytest.mark.parametrize("field", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(field, value):
    """NaN slips through `if value < 0`: every comparison with it is False."""
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    "values, message",
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"n": 3, "best_of": 2}, r"best_of \(2\) must be >= n \(3\)"),
        ({"temperature": -0.1}, "temperature must be non-negative, got -0.1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"top_k": 0}, r"top_k must be -1 \(disabled\) or >= 1, got 0"),
        ({"top_k": -2}, r"top_k must be -1 \(disabled\) or >= 1, got -2"),
        ({"min_p": 1.5}, "min_p"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 17}, r"min_tokens \(17\) must be <= max_tokens \(16\)"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"stop": ""}, "empty"),
        ({"stop": ["a", ""]}, "empty"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**values)


def test_beam_search_is_refused_when_it_is_asked_for():
    with pytest.raises(NotImplementedError, match="Beam search is not supported"):
        SamplingParams(use_beam_search=True)


def test_a_quantization_that_we_dont_have_is_named(path):
    with pytest.raises(NotImplementedError, match="quantization='awq'.*only 'gptq'"):
        LLM(str(path), device="cpu", quantization="awq")


def test_gptq_is_insisted_on(path):
    with pytest.raises(ValueError, match="is not quantized"):
        LLM(str(path), device="cpu", quantization="gptq")


# --- models ---------------------------------------------------------------------------


def test_a_path_that_does_not_exist():
    with pytest.raises(FileNotFoundError, match="'./nowhere': no such directory"):
        LLM("./nowhere")


def test_a_hub_name_without_a_network_says_how_to_get_the_model():
    with pytest.raises(FileNotFoundError) as caught:
        LLM("Qwen/Qwen3-0.6B", device="cpu")
    assert "hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B" in str(caught.value)


def test_a_directory_without_config_or_weights(tmp_path, path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        LLM(str(tmp_path))
    (tmp_path / "config.json").write_text(
        (path / "config.json").read_text("utf-8"), "utf-8"
    )
    with pytest.raises(FileNotFoundError, match="no weights"):
        LLM(str(tmp_path), device="cpu")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ValueError, match="pickles.*pytorch_model.bin"):
        LLM(str(tmp_path), device="cpu")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not valid JSON"):
        LLM(str(tmp_path), device="cpu")


@pytest.mark.parametrize("keep", [0, 5, 100, 20_000])
def test_a_truncated_weights_file(tmp_path, keep):
    broken = make_checkpoint(tmp_path)
    file = broken / "model.safetensors"
    assert file.stat().st_size > 20_000
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        ValueError,
        match="model.safetensors is not valid safetensors, (it is empty|is it cut)",
    ):
        LLM(str(broken), device="cpu")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not"),
        ({"architectures": []}, "architecture none"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"num_key_value_heads": 3}, "4 query heads can't share 3"),
        ({"hidden_size": None}, "hidden_size"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a positive number, got nan"),
        ({"rope_parameters": {"rope_theta": -1e4}}, "rope_theta must be .*-10000"),
        ({"rope_parameters": "yarn"}, "rope_parameters must be an object, got 'yarn'"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},  # beside the others
            "rope_parameters .* and rope_scaling .*'linear'.* differ",
        ),
        ({"max_position_embeddings": "lots"}, "max_position_embeddings .*'lots'"),
        ({"num_hidden_layers": 20_000}, "20000 layers.*at least [0-9]+ parameters"),
        ({"num_hidden_layers": 2**31 - 1}, "2147483647 layers"),
        ({"vocab_size": 2**31 - 1, "hidden_size": 2**20}, "vocab_size 2147483647"),
    ],
)
def test_unknown_kinds_of_model_are_refused_by_name(tmp_path, changes, message):
    broken = make_checkpoint(tmp_path)
    edit_json(broken / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        LLM(str(broken), device="cpu")


def test_a_config_that_does_not_fit_the_weights_lists_every_tensor(tmp_path):
    broken = make_checkpoint(tmp_path)
    edit_json(broken / "config.json", intermediate_size=32, num_hidden_layers=3)
    with pytest.raises(ValueError) as caught:
        LLM(str(broken), device="cpu")
    message = str(caught.value)
    assert (
        "misshapen: model.layers.0.mlp.up_proj.weight is [64, 48], not [32, 48]"
        in message
    )
    assert "missing: model.layers.2.self_attn.q_norm.weight" in message


def test_a_device_that_is_not_there(path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda' was asked for.*device='cpu'"):
        LLM(str(path), device="cuda")
    with pytest.raises(ValueError, match="'tpu9' is not a device"):
        LLM(str(path), device="tpu9")


@pytest.mark.parametrize(
    "options",
    [
        {"num_gpu_blocks_override": 10**12},
        {"num_gpu_blocks_override": 2**62},
        {"swap_space": 2**32, "preemption_mode": "swap"},
    ],
)
def test_a_pool_that_no_machine_holds(path, options):
    """It once was a MemoryError without a word."""
    with pytest.raises(ValueError, match="no memory for [0-9]+ blocks.*swap_space"):
        LLM(str(path), device="cpu", **options)


@pytest.mark.parametrize("said", [None, "0", ""])
def test_a_max_model_len_beyond_the_model(path, monkeypatch, said):
    name = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
    if said is not None:
        monkeypatch.setenv(name, said)
    with pytest.raises(
        ValueError, match=f"max_model_len is 513.*512 positions.*{name}"
    ):
        LLM(str(path), max_model_len=513, device="cpu")


@pytest.mark.parametrize("said", ["1", "True"])
def test_a_max_model_len_that_is_raised_knowingly(path, monkeypatch, caplog, said):
    """vLLM's variable; what comes out beyond is what the loop of 09 gives too."""
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", said)
    llm = LLM(str(path), max_model_len=600, device="cpu")
    assert "600" in caplog.text and "512" in caplog.text
    ids, params = (
        [2] * 505,
        SamplingParams(temperature=0, ignore_eos=True, max_tokens=20),
    )
    (output,) = llm.generate([ids], params, use_tqdm=False)
    texts, request = TokenTexts(llm.get_tokenizer()), Request("0", None, ids, params)
    oracle = Generation(llm.model, texts, request, max_model_len=600)
    while not oracle.finished:
        oracle.step()
    (wanted,) = oracle.output().outputs
    assert output.outputs[0].token_ids == wanted.token_ids
    assert len(wanted.token_ids) == 20


def test_no_chat_template(tmp_path):
    bare = make_checkpoint(tmp_path)
    settings = json.loads((bare / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["chat_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ValueError, match="no chat template"):
        LLM(str(bare), device="cpu").chat([{"role": "user", "content": "Hello"}])


def test_ctrl_c_in_the_middle_of_a_batch(llm, monkeypatch):
    real, calls = llm.model.forward, []

    def forward(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(llm.model, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["Once"] * 4, GREEDY, use_tqdm=False)
    monkeypatch.setattr(llm.model, "forward", real)


def test_a_model_that_computes_nan_is_reported(llm, monkeypatch):
    nan = llm.model.logits
    monkeypatch.setattr(llm.model, "logits", lambda hidden: nan(hidden) * math.nan)
    (output,) = llm.generate("Once", GREEDY, use_tqdm=False)
    assert output.finished and output.outputs[0].finish_reason == "abort"
    assert "can't be sampled: their maximum is nan" in output.outputs[0].stop_reason
    monkeypatch.setattr(llm.model, "logits", nan)


def test_nan_for_one_request_leaves_its_neighbours_alone(llm, monkeypatch):
    """The blocks that hold its NaN are used again, and nobody may notice."""
    want = llm.generate(["Once", "second"], GREEDY, use_tqdm=False)
    real, cache = llm.model.forward, llm.llm_engine.runner.cache
    memory = llm.llm_engine.scheduler.memory

    def forward(token_ids, ctx):
        hidden = real(token_ids, ctx)
        bad = ctx.positions == 20  # only the long one gets there
        hidden[bad] = math.nan
        for seq in memory.holders.values():
            if seq.num_computed == 20:
                block, size = seq.block_ids[20 // memory.block_size], memory.block_size
                cache.pool[1, 0, :, block, 20 % size] = math.nan
        return hidden

    monkeypatch.setattr(llm.model, "forward", forward)
    longer = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    got = llm.generate(["Once", "second", "Once"], [GREEDY, GREEDY, longer], False)
    monkeypatch.setattr(llm.model, "forward", real)
    assert got[2].outputs[0].finish_reason == "abort"
    for ours, alone in zip(got, want, strict=False):
        assert ours.outputs[0].token_ids == alone.outputs[0].token_ids
    again = llm.generate(["Once", "second"], GREEDY, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in again] == [
        o.outputs[0].token_ids for o in want
    ]
