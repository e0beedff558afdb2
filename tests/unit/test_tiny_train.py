"""Training the embedded model: the same seed gives the same model, stopped or not."""

import math
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from folovllm_lite.attention import PlainContext
from folovllm_lite.qwen3 import Qwen3, Qwen3Config
from folovllm_lite.tiny import corpus, train

TINY = {
    **train.model_config(),
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


@pytest.fixture(scope="module", autouse=True)
def small_corpus():
    """A tokenizer of a few documents and small chunks: seconds instead of minutes."""
    patch = pytest.MonkeyPatch()
    learn = train.train_tokenizer
    patch.setattr(train, "train_tokenizer", lambda seed: learn(seed, documents=300))
    patch.setattr(train, "_CHUNK", 64)
    yield
    patch.undo()


def weights(directory):
    return load_file(directory / "model.safetensors")


def run(directory, steps=6, stage="practice", **options):
    train.train(
        directory,
        train.Stage(stage, steps, 4e-3),
        batch_tokens=256,
        config=TINY,
        **options,
    )


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    """The optimizer's moments, the step of the schedule and the place in the corpus all
    have to come back; forgetting any one of them changes the weights."""
    run(tmp_path / "whole")
    real, calls = train.loss, []

    def stop_in_step_four(*batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*batch)

    monkeypatch.setattr(train, "loss", stop_in_step_four)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    monkeypatch.setattr(train, "loss", real)
    run(tmp_path / "parts", resume=True)

    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not (tmp_path / "parts" / "train_state.pt").exists()


def test_a_later_stage_goes_on_from_the_checkpoint(tmp_path):
    """Its own corpus, the same tokenizer, the weights of the stage before."""
    with pytest.raises(FileNotFoundError, match="no weights"):
        run(tmp_path, stage="polish")
    run(tmp_path, steps=2)
    before, spelling = (
        weights(tmp_path),
        (tmp_path / "tokenizer.json").read_text(encoding="utf-8"),
    )
    run(tmp_path, steps=1, stage="polish")
    after = weights(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == spelling
    moved = [(after[name] - before[name]).abs().max().item() for name in before]
    assert 0 < max(moved) < 0.1, "one small step from where the stage before ended"


def test_every_stage_reads_its_own_corpus():
    names = [stage.name for stage in train.STAGES]
    assert names[0] == "practice" and set(names) == set(corpus.MIXES)
    tokenizer = train.train_tokenizer(0)
    first = [next(train.batches(tokenizer, 0, 256, name))[0].tolist() for name in names]
    assert all(a != b for a, b in zip(first, first[1:], strict=False))


def test_another_seed_gives_another_model(tmp_path):
    run(tmp_path / "a", steps=1)
    run(tmp_path / "b", steps=1, seed=1)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights(tmp_path / "a")[name], weights(tmp_path / "b")[name])


def test_resume_refuses_another_run(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        run(tmp_path, resume=True)
    monkeypatch.setattr(train, "loss", lambda *batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)
    with pytest.raises(ValueError, match="the saved run is"):
        run(tmp_path, steps=7, resume=True)


def test_the_padded_batch_costs_what_its_rows_cost_alone():
    """Attention that leaks between rows, or padding that is trained on, shows here."""
    torch.manual_seed(0)
    model = Qwen3(Qwen3Config.from_hf(TINY)).eval()
    rows = [torch.randint(0, train.VOCAB_SIZE, (length,)) for length in (9, 5, 3)]
    ids = torch.full((3, 9), -1)
    for row, doc in zip(ids, rows, strict=True):
        row[: len(doc)] = doc
    nats = 0.0
    for doc in rows:
        positions = torch.arange(len(doc) - 1)
        logits = model.logits(model(doc[:-1], PlainContext(positions)))
        nats += F.cross_entropy(logits, doc[1:], reduction="sum").item()
    tokens = sum(len(doc) - 1 for doc in rows)
    assert train.loss(model, ids).item() == pytest.approx(nats / tokens, rel=1e-5)
    # A token that counts three times is one that stands there three times.
    counts = (ids != -1).float()
    counts[2, 2] = 3.0
    logits = model.logits(model(rows[2][:-1], PlainContext(torch.arange(2))))
    extra = 2 * F.cross_entropy(logits[-1], rows[2][-1]).item()
    got = train.loss(model, ids, counts).item()
    assert got == pytest.approx((nats + extra) / (tokens + 2), rel=1e-5)


def test_batches_waste_little_and_depend_on_the_seed_alone():
    tokenizer = train.train_tokenizer(0)
    first = [ids for ids, _ in islice(train.batches(tokenizer, 0, 512), 8)]
    again = [ids for ids, _ in islice(train.batches(tokenizer, 0, 512), 8)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(ids.numel() <= 512 or len(ids) == 1 for ids in first)
    padding = sum((ids == -1).sum().item() for ids in first)
    assert padding / sum(ids.numel() for ids in first) < 0.35


def test_echoes_count_more_in_the_later_stages_only():
    """Tokens that repeat a choice weigh `echo`, and padding nothing."""
    tokenizer = train.train_tokenizer(0)
    for mix in corpus.MIXES:
        ids, counts = next(train.batches(tokenizer, 0, 512, mix))
        assert torch.equal(counts == 0, ids == -1)
        assert set(counts[ids != -1].tolist()) <= {1.0, corpus.MIXES[mix].echo}
    assert corpus.MIXES["finish"].echo > 1 and 0.05 < (counts > 1).float().mean() < 0.6
    assert train._counts([(0, 3), (3, 7), (7, 8)], [(4, 7)], 8.0) == [1.0, 8.0, 1.0]


def test_learning_rate_warms_up_and_decays():
    rates = [train.learning_rate(step, 1000, 1.0) for step in range(1000)]
    peak = rates.index(max(rates))
    assert 15 <= peak <= 25 and rates[0] < 0.1
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    assert math.isclose(rates[-1], 0.02, abs_tol=1e-3)


@pytest.mark.parametrize(
    "text",
    ["🐉 dragon 🧵", "ñandú — Ωμέγα", "𠮷野家で食べる", "한국어", "\x00\t\r\n", "�"],
)
def test_any_text_survives_the_tokenizer(text):
    """Byte-level BPE: characters the corpus never held are spelled in bytes."""
    tokenizer = train.train_tokenizer(0)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_command_line_says_what_would_be_right(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--out", str(tmp_path), "--resume"])
    assert stop.value.code == 2
    assert "nothing to resume" in capsys.readouterr().err
