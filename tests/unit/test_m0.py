"""M0 as its users meet it: configs, parameters, requests and sequences, the small
helpers.

The story is the seed project's own introduction: settings, a request for five sequences
of which three are wanted, tokens that arrive, a fork. What the suites in `checks` say
of the configs is not said again here.
"""

import subprocess
import sys

import pytest
import torch

import folovllm_lite
from folovllm_lite import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    Request,
    RequestStatus,
    SamplingParams,
    SamplingType,
    SchedulerConfig,
    Sequence,
    SequenceData,
    SequenceStatus,
    generate_request_id,
    get_device,
    get_gpu_memory_info,
    is_cuda_available,
    move_to_device,
    print_gpu_memory_info,
    set_random_seed,
)


def test_the_introduction_runs():
    config = EngineConfig(
        model_config=ModelConfig(model="some/model", dtype="half", max_model_len=2048),
        cache_config=CacheConfig(block_size=16, gpu_memory_utilization=0.9),
        scheduler_config=SchedulerConfig(max_num_seqs=256),
    )
    assert config.model_config.torch_dtype == torch.float16
    assert config.scheduler_config.max_model_len == 2048

    params = SamplingParams(n=3, best_of=5, temperature=0.7, max_tokens=80)
    request = Request(generate_request_id(), "你好", [1, 2, 3], params)
    assert request.status == RequestStatus.WAITING
    assert request.get_num_seqs() == 5
    first = request.get_seqs()[0]
    assert first.seq_id == f"{request.request_id}-0"

    first.add_token_id(100)
    first.add_token_id(101)
    assert (first.get_len(), first.get_prompt_len(), first.get_output_len()) == (
        5,
        3,
        2,
    )
    assert first.get_last_token_id() == 101
    assert first.get_token_ids() == [1, 2, 3, 100, 101]

    fork = first.fork(f"{first.seq_id}-fork")
    fork.add_token_id(102)
    fork.block_ids.append(7)
    assert first.get_len() == 5 and first.block_ids == []
    assert fork.seq_id.endswith("-fork") and fork.get_token_ids()[-2:] == [101, 102]


def test_sequences_of_a_request_share_no_list():
    prompt = [1, 2]
    request = Request("r", None, prompt, SamplingParams(n=2))
    one, two = request.get_seqs()
    one.add_token_id(3)
    one.data.prompt_token_ids.append(9)
    assert two.get_token_ids() == [1, 2] and prompt == [1, 2]


def test_a_request_is_finished_when_all_its_sequences_are():
    request = Request("r", "a", [1], SamplingParams(n=2))
    one, two = request.get_seqs()
    one.status = SequenceStatus.FINISHED_STOPPED
    assert one.is_finished() and not request.is_finished()
    assert request.get_seqs(SequenceStatus.WAITING) == [two]
    assert request.get_num_seqs(SequenceStatus.FINISHED_STOPPED) == 1
    two.status = SequenceStatus.FINISHED_LENGTH_CAPPED
    assert request.is_finished()


@pytest.mark.parametrize("statuses", [SequenceStatus, RequestStatus])
def test_every_status_that_is_called_finished_is(statuses):
    for status in statuses:
        assert status.is_finished() == status.name.startswith("FINISHED")
    ways = {"STOPPED", "LENGTH_CAPPED", "ABORTED"}
    if statuses is SequenceStatus:
        ways.add("IGNORED")
    names = {status.name.removeprefix("FINISHED_") for status in statuses}
    assert names == ways | {"WAITING", "RUNNING", "SWAPPED"}


def test_an_empty_output_ends_with_the_prompt():
    data = SequenceData([4, 5])
    sequence = Sequence("r-0", "r", data, SamplingParams())
    assert sequence.get_last_token_id() == 5 and sequence.get_output_len() == 0


def test_sampling_params_know_their_kind_and_keep_the_callers_lists():
    assert SamplingParams(temperature=0).sampling_type is SamplingType.GREEDY
    assert SamplingParams(temperature=0.1).sampling_type is SamplingType.RANDOM
    stop, ids = ["a"], [3]
    params = SamplingParams(stop=stop, stop_token_ids=ids, n=2)
    stop.append("b")
    ids.append(4)
    assert params.stop == ["a"] and params.stop_token_ids == [3] and params.best_of == 2
    assert SamplingParams(stop="end").stop == ["end"]
    assert SamplingParams().stop == [] and SamplingParams().max_tokens == 16


@pytest.mark.parametrize(
    "field, value, error, message",
    [
        ("model", "", TypeError, "model must be a path or a name, got ''"),
        ("model", None, TypeError, "got None"),
        ("tokenizer", 5, TypeError, "tokenizer must be a path or a name, got 5"),
        ("tokenizer_mode", "quick", ValueError, "'auto' or 'slow', got 'quick'"),
        (
            "trust_remote_code",
            1,
            TypeError,
            "trust_remote_code must be True or False, got 1",
        ),
        ("max_model_len", True, TypeError, "max_model_len must be an int, got True"),
        ("max_model_len", 2.5, TypeError, "got 2.5"),
        ("seed", -1, ValueError, "seed must be non-negative, got -1"),
        ("dtype", torch.int8, ValueError, "torch.int8"),
        ("dtype", 16, ValueError, "got 16"),
    ],
)
def test_a_model_config_names_the_field_and_the_value(field, value, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        ModelConfig(**{"model": "some/model", field: value})


def test_configs_refuse_wrong_types():
    with pytest.raises(TypeError, match="block_size must be an int, got 16.0"):
        CacheConfig(block_size=16.0)
    with pytest.raises(TypeError, match="swap_space must be a number, got '4'"):
        CacheConfig(swap_space="4")
    with pytest.raises(TypeError, match="enable_prefix_caching must be True or False"):
        CacheConfig(enable_prefix_caching=1)
    with pytest.raises(TypeError, match="blok_size"):
        CacheConfig(blok_size=16)


def test_seeds_repeat_every_generator():
    import random

    import numpy

    def draw():
        set_random_seed(7)
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    assert draw() == draw()


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_beyond_64_bits_seeds_nothing(seed):
    """PyTorch spoke of a long long, when the other two had been seeded."""
    import random

    before = random.getstate()
    with pytest.raises(ValueError, match=f"seed must fit 64 bits, got {seed}"):
        set_random_seed(seed)
    assert random.getstate() == before
    set_random_seed(2**64 - 1)


def test_request_ids_are_unique():
    assert len({generate_request_id() for _ in range(1000)}) == 1000


def test_devices_and_memory(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not is_cuda_available() and get_device() == torch.device("cpu")
    assert get_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="'gpu9' is not a device"):
        get_device("gpu9")
    assert get_gpu_memory_info() == {}
    print_gpu_memory_info()
    assert capsys.readouterr().out == "CUDA is not available\n"
    tensor = torch.zeros(2)
    assert move_to_device([tensor], "cpu")[0] is tensor


def test_memory_is_reported_in_gib(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 8 * 2**30)
    )
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * 2**30)
    wanted = {"allocated_gb": 1.0, "reserved_gb": 2.0, "free_gb": 3.0, "total_gb": 8.0}
    assert get_gpu_memory_info() == wanted
    print_gpu_memory_info()
    assert "free          3.00 GiB" in capsys.readouterr().out


def test_importing_the_package_loads_no_framework():
    """`--help` and a SamplingParams have to answer at once."""
    code = (
        "import sys, folovllm_lite; from folovllm_lite import SamplingParams, Request; "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert out.stdout.split() == ["False", "False"]


def test_every_exported_name_can_be_imported():
    for name in folovllm_lite.__all__:
        assert getattr(folovllm_lite, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        folovllm_lite.LMM  # noqa: B018
    assert set(folovllm_lite.__all__) <= set(dir(folovllm_lite))
