"""The command line as a user types it: answers at once, streams, and says what is
wrong."""

import io
import json
import subprocess
import sys

import pytest

from folovllm_lite import __main__ as cli
from folovllm_lite import bench, doctor
from tests.helpers import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("cli") / "model"))


def run(capsys, *words):
    """(exit status, standard output, standard error)"""
    try:
        status = cli.main(list(words))
    except SystemExit as stop:  # argparse's own way out
        status = stop.code
    out = capsys.readouterr()
    return status, out.out, out.err


def test_generate_continues_the_prompt_and_a_seed_repeats_it(capsys, checkpoint):
    words = [
        "generate",
        "Once",
        "--model",
        checkpoint,
        "--max-tokens",
        "12",
        "--seed",
        "3",
    ]
    status, out, err = run(capsys, *words)
    assert status == 0 and out.startswith("Once") and len(out) > 8 and err == ""
    assert run(capsys, *words)[1] == out
    other = [run(capsys, *words[:-2])[1] for _ in range(3)]
    assert len(set(other)) > 1, "without --seed every run tells something else"


def test_generate_reads_standard_input(capsys, checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once upon"))
    status, out, _ = run(
        capsys, "generate", "-", "--model", checkpoint, "--max-tokens", "3"
    )
    assert status == 0 and out.startswith("Once upon")


def test_several_completions_are_numbered(capsys, checkpoint):
    words = ["--model", checkpoint, "--max-tokens", "4", "--seed", "0"]
    _, out, _ = run(capsys, "generate", "Once", "-n", "2", "--best-of", "3", *words)
    assert "[1] Once" in out and "[2] Once" in out and "[3]" not in out


def test_text_appears_as_it_is_generated(monkeypatch, checkpoint):
    """Not at the end: every token is written and flushed on its own."""
    written = []

    class Screen(io.StringIO):
        def write(self, text):
            written.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Screen())
    cli.main(
        ["generate", "Once", "--model", checkpoint, "--max-tokens", "10", "--seed", "1"]
    )
    assert len([text for text in written if text]) > 5


def talk(monkeypatch, capsys, checkpoint, *lines, **options):
    asked = []
    from folovllm_lite.engine import LLM

    stream = LLM.stream

    def spy(self, messages, params):
        asked.append(messages)
        return stream(self, messages, params)

    monkeypatch.setattr(LLM, "stream", spy)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    status, out, err = run(
        capsys,
        "chat",
        "--model",
        checkpoint,
        "--max-tokens",
        "4",
        "--seed",
        "1",
        *words,
    )
    return status, out, err, asked


def test_chat_keeps_its_history_and_forgets_on_request(monkeypatch, capsys, checkpoint):
    status, _, err, asked = talk(
        monkeypatch,
        capsys,
        checkpoint,
        "Hi",
        "",
        "And now?",
        "/reset",
        "Hi",
        "/exit",
        "no",
    )
    assert status == 0 and err == ""
    roles = [[message["role"] for message in messages] for messages in asked]
    assert roles == [["user"], ["user", "assistant", "user"], ["user"]]


def test_chat_starts_with_the_system_message(monkeypatch, capsys, checkpoint):
    *_, asked = talk(
        monkeypatch, capsys, checkpoint, "Hi", "/reset", "Hi", system="Be brief"
    )
    assert [messages[0]["content"] for messages in asked] == ["Be brief"] * 2


def test_a_conversation_that_grows_too_long_is_not_the_end(
    monkeypatch, capsys, checkpoint
):
    status, out, _, asked = talk(monkeypatch, capsys, checkpoint, "word " * 600, "Hi")
    assert status == 0 and "max_model_len is 512" in out and "/reset" in out
    assert len(asked[-1]) == 1, "the message that did not fit is not kept"


@pytest.mark.parametrize(
    "words, message",
    [
        (["generate"], "required: prompt"),
        (["tell", "x"], "invalid choice: 'tell'"),
        (["generate", "x", "--temperature", "hot"], "invalid float value: 'hot'"),
        (
            ["generate", "x", "--temperature", "-1"],
            "temperature must be non-negative, got -1",
        ),
        (["generate", "x", "--top-p", "2"], r"top_p must be in (0, 1], got 2.0"),
        (["generate", "x", "--model", "/nowhere"], "'/nowhere': no such directory"),
        (["generate", "x", "--device", "gpu9"], "'gpu9' is not a device"),
        (["generate", ""], "the prompt is empty"),
        (["bench", "--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["bench", "--peer", "llama"], "invalid choice: 'llama'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_says_what_is_wrong_and_exits_with_2(capsys, words, message):
    status, _, err = run(capsys, *words)
    assert status == 2 and message in err and "Traceback" not in err


def test_help_shows_examples_and_answers_at_once():
    code = (
        "import sys; from folovllm_lite.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "examples:" in out.stdout and out.stdout.endswith("False\n")


def test_ctrl_c_is_130(capsys, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", interrupt)
    assert run(capsys, "generate", "Once")[0] == 130


def test_doctor_covers_what_the_course_needs(capsys):
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    for what in ("Python", "PyTorch", "transformers", "Processor", "Memory", "GPU"):
        assert f"✓ {what}" in out or f"· {what}" in out
    widths = {
        line.index(found.means)
        for line, found in zip(out.splitlines(), doctor.checkup(), strict=True)
    }
    assert len(widths) == 1, "the columns line up"


def test_bench_does_the_same_work_on_both(capsys, checkpoint):
    words = [
        "--prompt-tokens",
        "4",
        "--max-tokens",
        "6",
        "--repeats",
        "2",
        "--requests",
        "2",
    ]
    status, out, _ = run(
        capsys, "bench", "--model", checkpoint, "--peer", "transformers", *words
    )
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith(
        "2 requests of 4 tokens, 6 new tokens each, greedy, float32"
    )
    assert [line.split()[0] for line in lines[-3:]] == [
        "folovllm_lite", "transformers", "ratio"
    ]  # fmt: skip


def test_ratios_are_of_medians():
    ours = bench.Measured("folovllm_lite", [0.1, 9.0, 0.1], [1.0, 1.0, 50.0])
    peer = bench.Measured("transformers", [0.2, 0.2, 0.0], [2.0, 4.0, 4.0])
    text = bench.report(bench.Result("work", "machine", 100, [ours, peer]))
    assert text.splitlines()[-1].split() == ["ratio", "2.00x", "4.00x"]
    assert "100.0 ms       100.0" in text


def test_json_of_the_checkpoint_is_left_alone(checkpoint):
    with open(f"{checkpoint}/config.json") as file:
        assert json.load(file)["model_type"] == "qwen3"
