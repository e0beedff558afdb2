"""Loading is strict: what doesn't fit is an error that names it, and nothing is
changed."""

import json
import shutil
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from folovllm_lite import ModelConfig, ModelLoader, get_model_and_tokenizer
from folovllm_lite.model_loader import (
    EMBEDDED_MODEL,
    check_layers,
    checkpoint_dtype,
    default_sampling_params,
    eos_token_ids,
    load_weights,
    quantization_config,
    read_config,
    resolve_checkpoint,
    weight_files,
)
from folovllm_lite.qwen3 import Qwen3, Qwen3Config
from tests.helpers import edit_json, make_checkpoint

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_checkpoint(
        tmp_path_factory.mktemp("loader") / "model", tie_word_embeddings=False
    )


@pytest.fixture
def path(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def load(path):
    model = Qwen3(
        Qwen3Config.from_hf(
            json.loads((path / "config.json").read_text(encoding="utf-8"))
        )
    )
    load_weights(model, path)
    return model


def change(path, **tensors):
    """Replace tensors of the file; None removes one."""
    found = load_file(path / WEIGHTS) | tensors
    save_file(
        {k: v.contiguous() for k, v in found.items() if v is not None}, path / WEIGHTS
    )


def test_every_tensor_arrives(path):
    model, file = load(path), load_file(path / WEIGHTS)
    assert model.state_dict().keys() == file.keys()
    assert all(torch.equal(model.state_dict()[name], file[name]) for name in file)


def test_one_message_lists_all_that_does_not_fit(path):
    change(
        path,
        **{
            "model.norm.weight": None,
            "model.extra.weight": torch.zeros(2),
            "model.layers.0.mlp.up_proj.weight": torch.zeros(3, 4),
            "model.layers.1.self_attn.q_norm.weight": torch.zeros(
                16, dtype=torch.int64
            ),
        },
    )
    with pytest.raises(ValueError) as raised:
        load(path)
    lines = str(raised.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "misshapen: model.layers.0.mlp.up_proj.weight is [3, 4], not [64, 48]",
        "missing: model.norm.weight",
        "unexpected: model.extra.weight",
        "wrong dtype: model.layers.1.self_attn.q_norm.weight is torch.int64, "
        "no plain float",
    ]


def split(path, **extra):
    """Cut the file into two shards with an index; `extra` goes into the second."""
    found = load_file(path / WEIGHTS)
    names = sorted(found)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    (path / WEIGHTS).unlink()
    index = {}
    for file, part in halves.items():
        tensors = {name: found[name] for name in part}
        save_file(tensors | (extra if file[0] == "b" else {}), path / file)
        index |= dict.fromkeys(part, file)
    target = path / "model.safetensors.index.json"
    target.write_text(json.dumps({"weight_map": index}), encoding="utf-8")


def test_shards_give_what_the_single_file_gives(path, original):
    split(path)
    one, two = load(original).state_dict(), load(path).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_missing_shard_is_named(path):
    split(path)
    (path / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="shards b.safetensors are missing"):
        load(path)


def test_a_tensor_that_stands_in_two_shards_is_refused(path):
    """Whichever were read last would win, and nobody would know."""
    split(path, **{"lm_head.weight": torch.zeros(320, 48)})
    with pytest.raises(ValueError, match="twice: lm_head.weight"):
        load(path)


def test_several_files_without_an_index(path):
    save_file({"adapter": torch.zeros(1)}, path / "adapter.safetensors")
    assert [file.name for file in weight_files(path)] == [WEIGHTS]
    (path / WEIGHTS).rename(path / "first.safetensors")
    with pytest.raises(
        ValueError, match="adapter.safetensors, first.safetensors, but no"
    ):
        weight_files(path)


def test_a_tied_head_may_be_left_out_or_repeated_but_not_differ(path):
    edit_json(path / "config.json", tie_word_embeddings=True)
    change(path, **{"lm_head.weight": None})
    tied = load(path)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    embedding = load_file(path / WEIGHTS)["model.embed_tokens.weight"]
    change(path, **{"lm_head.weight": embedding.clone()})
    load(path)
    change(path, **{"lm_head.weight": embedding + 1})
    with pytest.raises(
        ValueError, match="not tied: lm_head.weight differs from model.embed"
    ):
        load(path)


def test_an_untied_head_has_to_be_there(path):
    change(path, **{"lm_head.weight": None})
    with pytest.raises(ValueError, match="missing: lm_head.weight"):
        load(path)


def test_pickles_are_refused_by_our_loader_and_by_the_peers(path):
    torch.save(load_file(path / WEIGHTS), path / "pytorch_model.bin")
    (path / WEIGHTS).unlink()
    for call in (
        lambda: load(path),
        lambda: get_model_and_tokenizer(ModelConfig(str(path))),
    ):
        with pytest.raises(ValueError, match="pickles only .pytorch_model.bin"):
            call()


def test_weights_are_cast_to_the_models_dtype(path):
    model = Qwen3.from_pretrained(path, torch.bfloat16, torch.device("cpu"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_auto_means_the_dtype_that_the_config_names():
    assert checkpoint_dtype({}) == torch.float32
    assert checkpoint_dtype({"torch_dtype": "bfloat16"}) == torch.bfloat16
    assert checkpoint_dtype({"dtype": "torch.float16"}) == torch.float16
    with pytest.raises(ValueError, match="float8 of the checkpoint|'float8'"):
        checkpoint_dtype({"dtype": "float8"})


def test_ends_of_a_text_come_from_every_file_that_names_them(path):
    class Tokenizer:
        eos_token_id = 5

    edit_json(path / "generation_config.json", eos_token_id=[7, 1])
    assert eos_token_ids(path, Tokenizer) == (1, 5, 7)
    edit_json(path / "generation_config.json", eos_token_id=None)
    edit_json(path / "config.json", eos_token_id=3)
    assert eos_token_ids(path, Tokenizer) == (3, 5)
    Tokenizer.eos_token_id = None
    assert eos_token_ids(path, Tokenizer) == (3,)


def test_a_directory_is_resolved_to_itself(path):
    assert resolve_checkpoint(path) == path
    with pytest.raises(FileNotFoundError, match="no config.json"):
        resolve_checkpoint(path.parent)


# ----- checkpoints that users really had


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_old_tables_and_names_of_the_backbone_load(tmp_path, family):
    """Old Llama exports carry tables; a saved AutoModel has no "model."."""
    path = make_checkpoint(tmp_path / "model", family)
    whole = Qwen3.from_pretrained(path, device="cpu").state_dict()
    tensors = load_file(path / WEIGHTS)
    old = {
        f"model.layers.0.self_attn.rotary_emb.{name}": torch.ones(8)
        for name in ("inv_freq", "cos_cached", "sin_cached")
    }
    save_file(tensors | old, path / WEIGHTS, {"format": "pt"})
    config = ModelConfig(str(path))
    peer = ModelLoader(config).load_model("cpu").state_dict()
    for found in (Qwen3.from_pretrained(path, device="cpu").state_dict(), peer):
        assert all(torch.equal(found[name], whole[name]) for name in whole)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, path / WEIGHTS, {"format": "pt"})
    found = Qwen3.from_pretrained(path, device="cpu").state_dict()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "text, words",
    [
        ("version https://git-lfs.github.com/spec/v1\noid 5", "Git LFS pointer"),
        ("<!DOCTYPE html>", "web page"),
        ("", "empty"),
        ("\ufeff{}", "byte order mark"),
        ('{"a": 1', "cut off"),
        ("[" * 100_000, "nested"),
        ("[1]", "list"),
        ("{}", "empty object"),
    ],
)
def test_a_broken_file_is_named_with_what_it_looks_like(path, text, words):
    (path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"config.json .*{words}"):
        read_config(path)
    if words in ("Git LFS pointer", "web page", "empty", "cut off"):
        (path / "config.json").unlink()
        (path / WEIGHTS).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"{WEIGHTS} .*{words}"):
            load_weights(torch.nn.Linear(1, 1), path)


def test_sizes_that_nobody_has_are_refused_before_they_are_built(path):
    """2**31 layers once were built for hours, a terabyte was asked for."""
    for name, value in (
        ("num_hidden_layers", 2**31 - 1),
        ("intermediate_size", 2**31 - 1),
        ("vocab_size", 2**31 - 1),
    ):
        old = read_config(path)[name]
        edit_json(path / "config.json", **{name: value})
        with pytest.raises(ValueError, match=str(value)):
            get_model_and_tokenizer(ModelConfig(str(path)), "cpu")
        edit_json(path / "config.json", **{name: old})
    check_layers(path, 2)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"pad_token_id": 9999}, "padding_idx"),
    ],
)
def test_what_transformers_cant_load_is_a_value_error(path, changes, words):
    """Errors of its own kinds, and asserts, once came through."""
    edit_json(path / "config.json", **changes)
    with pytest.raises(ValueError, match=f"(?i)can't load .*{words}"):
        get_model_and_tokenizer(ModelConfig(str(path)), "cpu")


def test_an_index_that_transformers_cant_read_is_a_value_error(path):
    named = {"weight_map": {"lm_head.weight": "model.safetensors"}}
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps(named), encoding="utf-8")  # without its metadata
    with pytest.raises(ValueError, match="can't load .*metadata"):
        get_model_and_tokenizer(ModelConfig(str(path)), "cpu")


@pytest.mark.parametrize("name", ["\x1b[2Jnorm.weight", "norm\u202e.weight", "a\nb"])
def test_a_tensors_name_never_reaches_the_terminal_as_it_is(path, name):
    """A traceback shows it, and transformers' report: an escape sequence is obeyed."""
    save_file({name: torch.zeros(3)}, path / "model.safetensors")
    for load in (
        lambda: get_model_and_tokenizer(ModelConfig(str(path)), "cpu"),
        lambda: Qwen3.from_pretrained(path, device="cpu"),
    ):
        with pytest.raises(ValueError) as raised:
            load()
        assert str(raised.value).endswith(f"names a tensor {name!r}")


def test_weights_that_no_memory_holds_are_refused_before_they_are_read(
    path, monkeypatch
):
    """Headers cost nothing, and a file may be a terabyte of nothing."""
    machine = SimpleNamespace(total=100_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr("folovllm_lite.qwen3.load_weights", None)
    with pytest.raises(
        ValueError, match="take 271,552 bytes in torch.float32.*100,000"
    ):
        Qwen3.from_pretrained(path, device="cpu")


@pytest.mark.parametrize("kind", [MemoryError, RuntimeError])
def test_a_file_that_cant_be_mapped_is_a_value_error(path, monkeypatch, kind):
    def fails(*args, **named):
        raise kind("Cannot allocate memory")

    monkeypatch.setattr("folovllm_lite.model_loader.safe_open", fails)
    with pytest.raises(ValueError, match="model.safetensors can't be mapped.*allocate"):
        Qwen3.from_pretrained(path, device="cpu")


def test_a_tokenizer_beside_a_config_of_layers_that_nobody_has(path):
    """transformers made a list of them, gigabytes long; of no use to a tokenizer."""
    edit_json(path / "config.json", num_hidden_layers=2**31 - 1, layer_types=None)
    with pytest.raises(ValueError, match="config.json is 2147483647, more than any"):
        ModelLoader(ModelConfig(str(path))).load_tokenizer()


def test_a_tokenizer_whose_config_is_to_blame_says_so(path):
    edit_json(path / "config.json", eos_token_id="2")
    with pytest.raises(ValueError, match="config.json, .*can't be loaded.*eos_token"):
        ModelLoader(ModelConfig(str(path))).load_tokenizer()


def test_quantized_weights_are_refused_by_the_methods_name(path):
    edit_json(path / "config.json", quantization={"bits": 4})  # as MLX says it
    assert "doesn't name" in quantization_config(path)["quant_method"]
    edit_json(path / "config.json", quantization=None)
    (path / "quantize_config.json").write_text('{"bits": 4}', encoding="utf-8")
    assert quantization_config(path) == {"bits": 4, "quant_method": "gptq"}
    for load_it in (
        lambda: load(path),
        lambda: get_model_and_tokenizer(ModelConfig(str(path)), "cpu"),
    ):
        with pytest.raises(ValueError, match="quantized .gptq."):
            load_it()


def test_float8_without_its_scales_is_refused(path):
    norm = "model.norm.weight"
    change(path, **{norm: load_file(path / WEIGHTS)[norm].to(torch.float8_e4m3fn)})
    for load_it in (
        lambda: load(path),
        lambda: get_model_and_tokenizer(ModelConfig(str(path)), "cpu"),
    ):
        with pytest.raises(ValueError, match="model.norm.weight is torch.float8"):
            load_it()


def test_both_loaders_take_the_index_and_not_the_file_beside_it(path, original):
    tensors = load_file(path / WEIGHTS)
    split(path)
    (path / "model.safetensors.index.json").write_text(
        json.dumps(
            {
                "metadata": {},
                **json.loads(
                    (path / "model.safetensors.index.json").read_text(encoding="utf-8")
                ),
            }
        ),
        encoding="utf-8",
    )
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    save_file(other, path / WEIGHTS, {"format": "pt"})
    peer = ModelLoader(ModelConfig(str(path))).load_model("cpu").state_dict()
    for found in (load(path).state_dict(), peer):
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_the_defaults_of_a_checkpoint_are_vllms(path):
    file = path / "generation_config.json"
    edit_json(file, temperature=0.6, top_k=20, top_p=0.95, max_new_tokens=7)
    found = default_sampling_params(path)
    assert (found.temperature, found.top_k, found.top_p) == (0.6, 20, 0.95)
    assert found.max_tokens == 7
    edit_json(file, temperature="warm")
    with pytest.raises(ValueError, match="generation_config.json: temperature.*warm"):
        default_sampling_params(path)


# ----- the peer: transformers behind ModelLoader


def test_the_loader_gives_a_model_ready_to_use(path):
    config = ModelConfig(str(path), dtype="bfloat16")
    loader = ModelLoader(config)
    model, tokenizer = loader.load_model_and_tokenizer("cpu")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert loader.max_model_len == 512 and config.max_model_len is None
    assert tokenizer.pad_token == tokenizer.eos_token
    assert ModelLoader(ModelConfig(str(path), max_model_len=9)).max_model_len == 9


@pytest.mark.parametrize("family, positions", [("qwen3", 32768), ("llama", 2048)])
def test_a_config_without_positions_has_its_familys(tmp_path, family, positions):
    made = make_checkpoint(tmp_path / "model", family)
    edit_json(made / "config.json", max_position_embeddings=None)
    loader = ModelLoader(ModelConfig(str(made)))
    loader.load_model("cpu")
    assert loader.max_model_len == positions


def test_a_tokenizer_without_any_end_gets_a_pad_token(path):
    edit_json(path / "tokenizer_config.json", eos_token=None, bos_token=None)
    tokenizer = ModelLoader(ModelConfig(str(path))).load_tokenizer()
    assert tokenizer.pad_token == "[PAD]"


def test_padding_stands_on_the_left(path):
    """A batch of two goes on from the last token of each, not from padding."""
    model, tokenizer = get_model_and_tokenizer(ModelConfig(str(path)), "cpu")
    batch = tokenizer(
        ["Once", "Once upon a time there"], padding=True, return_tensors="pt"
    )
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][:, -1].all()
    both = model.generate(**batch, max_new_tokens=8, do_sample=False, pad_token_id=1)
    alone = tokenizer("Once", return_tensors="pt")
    one = model.generate(**alone, max_new_tokens=8, do_sample=False, pad_token_id=1)
    assert both[0, -8:].tolist() == one[0, -8:].tolist()


def test_statistics_count_tied_parameters_once():
    model, _ = get_model_and_tokenizer(ModelConfig(str(EMBEDDED_MODEL)), "cpu")
    numbers = ModelLoader.parameter_statistics(model)
    file = load_file(EMBEDDED_MODEL / WEIGHTS)
    assert numbers["parameters"] == sum(tensor.numel() for tensor in file.values())
    assert numbers["trainable"] == numbers["parameters"]
    assert numbers["bytes"] == 4 * numbers["parameters"]
    assert numbers["bytes_by_dtype"] == {"float32": numbers["bytes"]}


def test_the_peer_is_loaded_as_strictly(path):
    """A renamed tensor once came back random, with a report that nobody reads."""
    file = path / WEIGHTS
    tensors = load_file(file)
    tensors["model.norm.scale"] = tensors.pop("model.norm.weight")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError) as raised:
        get_model_and_tokenizer(ModelConfig(str(path)), "cpu")
    assert "missing: model.norm.weight" in str(raised.value)
    assert "unexpected: model.norm.scale" in str(raised.value)


@pytest.mark.parametrize(
    "file, text, words",
    [
        ("chat_template.jinja", "<!DOCTYPE html>", "no chat template, .* web page"),
        ("chat_template.jinja", "version https://git-lfs.x", "no chat template, .*LFS"),
        ("tokenizer.json", "{}", r"tokenizer.json.*KeyError"),
        ("tokenizer.json", "\ufeff{}", "tokenizer.json .*byte order mark"),
    ],
)
def test_what_a_tokenizer_cannot_be_made_of_is_named(path, file, text, words):
    """A page from the web was once the template, and what the model was told."""
    (path / file).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        ModelLoader(ModelConfig(str(path))).load_tokenizer()


@pytest.mark.parametrize("text", ["[]", "[" * 100_000])
def test_the_peers_loader_names_a_broken_generation_config(path, text):
    """transformers answered with a TypeError, or a RecursionError."""
    (path / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="generation_config.json"):
        ModelLoader(ModelConfig(str(path))).load_model("cpu")
