"""The command line as a user types it: answers at once, streams, and says what is
wrong."""

import inspect
import io
import json
import shutil
import subprocess
import sys
import time
from collections import namedtuple

import pytest

from folovllm_lite import __main__ as cli
from folovllm_lite import bench, doctor
from tests.helpers import edit_json, make_checkpoint


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
    from folovllm_lite.llm import LLM

    stream = LLM.stream

    def spy(self, messages, params, **more):
        asked.append(messages)
        return stream(self, messages, params, **more)

    monkeypatch.setattr(LLM, "stream", spy)
    typed = [line for line in lines if not line.startswith("--")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(typed) + "\n"))
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    words += [line for line in lines if line.startswith("--")]
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


THINKS = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is not defined or enable_thinking %}"
    "{{ raise_exception('this\\nmodel thinks') }}{% endif %}"
)


def test_no_thinking_reaches_the_template_and_a_refusal_is_one_line(
    monkeypatch, capsys, checkpoint, tmp_path
):
    from folovllm_lite.llm import LLM

    if "chat_options" not in inspect.signature(LLM.stream).parameters:
        pytest.skip("LLM.stream takes no options of chat yet")
    shutil.copytree(checkpoint, tmp_path / "model")
    edit_json(tmp_path / "model/tokenizer_config.json", chat_template=THINKS)
    (tmp_path / "model/chat_template.jinja").unlink(missing_ok=True)
    model = str(tmp_path / "model")
    _, out, err, _ = talk(monkeypatch, capsys, model, "Hi")
    (line,) = [line for line in out.splitlines() if "model thinks" in line]
    assert line.startswith("(") and "Traceback" not in out + err
    status, out, err, _ = talk(monkeypatch, capsys, model, "--no-thinking", "Hi")
    assert status == 0 and "thinks" not in out and err == ""


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
        (["generate", "x", "--model", "~nosuchuser/x"], "no user of this machine"),
        (["generate", "x", "--model", "a" * 5000], "aaa"),
        (["lab", "99"], "no notebook '99'; there are 00_tour"),
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
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8"
    )
    assert "examples:" in out.stdout and out.stdout.endswith("False\n")


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A checkpoint whose logits are NaN: every request is aborted."""
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path_factory.mktemp("cli") / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("count", ["1", "2"])
def test_an_aborted_request_says_why_and_exits_with_1(capsys, broken, count):
    status, out, err = run(capsys, "generate", "Once", "-n", count, "--model", broken)
    assert status == 1 and "Once" in out
    assert "aborted: " in err and "can't be sampled" in err


def test_an_aborted_request_is_told_once(broken):
    """The engine's warning once stood above it, with a name that nobody gave."""
    words = [sys.executable, "-m", "folovllm_lite", "generate", "Once"]
    done = subprocess.run(
        [*words, "--model", broken], capture_output=True, encoding="utf-8", check=False
    )
    (line,) = [each for each in done.stderr.splitlines() if "aborted" in each]
    assert done.returncode == 1 and "generate: aborted: " in line


def test_bench_has_no_figures_for_what_was_aborted(capsys, broken):
    """Nothing is generated soonest: it once was 900 times as fast as the peer."""
    sizes = "--prompt-tokens 4 --max-tokens 6 --repeats 1".split()
    status, out, err = run(capsys, "bench", "--model", broken, *sizes)
    assert status == 2 and out == ""
    assert "generated 0 of 4 tokens: abort, " in err and "can't be sampled" in err


def test_an_aborted_answer_is_not_kept_and_exits_with_1(monkeypatch, capsys, broken):
    status, _, err, asked = talk(monkeypatch, capsys, broken, "Hi", "And now?")
    assert status == 1 and err.count("can't be sampled") == 2
    assert [len(messages) for messages in asked] == [1, 1]


def test_a_short_context_is_enough_unless_max_tokens_asks_for_more(capsys, checkpoint):
    """Once the default of 256 tokens refused every request here."""
    words = ["generate", "Once", "--model", checkpoint, "--max-model-len", "100"]
    status, out, _ = run(capsys, *words, "--ignore-eos", "--seed", "1")
    assert status == 0 and len(out) > 50
    status, _, err = run(capsys, *words, "--max-tokens", "256")
    assert status == 2 and "256" in err


def test_version(capsys):
    from folovllm_lite import __version__

    assert run(capsys, "--version")[:2] == (0, f"folovllm-lite {__version__}\n")


def test_chat_has_help(monkeypatch, capsys, checkpoint):
    _, out, _, asked = talk(monkeypatch, capsys, checkpoint, "/help")
    assert "/reset" in out and asked == []


class Pipe:
    """Standard input as bytes, as a pipe has it."""

    def __init__(self, data):
        self.buffer = io.BytesIO(data)

    def isatty(self):
        return False


@pytest.mark.parametrize("word", ["从前", "\ufeffOnce"])
def test_standard_input_is_utf8_on_every_system(capsys, checkpoint, monkeypatch, word):
    monkeypatch.setattr(sys, "stdin", Pipe(word.encode()))
    words = ["generate", "-", "--model", checkpoint, "--max-tokens", "1"]
    status, out, _ = run(capsys, *words)
    assert status == 0 and out.startswith(word.strip("\ufeff"))


def test_windows_line_ends_are_line_ends(capsys, checkpoint, monkeypatch):
    """The model once read every carriage return of a file from there."""
    shown = []
    for ends in (b"\n", b"\r\n"):
        monkeypatch.setattr(sys, "stdin", Pipe(b"Once" + ends + b"upon" + ends))
        words = ["generate", "-", "--model", checkpoint, "--max-tokens", "3"]
        shown.append(run(capsys, *words, "--seed", "1")[1])
    assert shown[0] == shown[1] and shown[0].startswith("Once\nupon")


@pytest.mark.parametrize("command", [["generate", "Once"], ["generate", "-"], ["chat"]])
def test_streams_that_the_caller_has_closed(command, checkpoint, monkeypatch):
    """`<&- >&-` once was a traceback."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    words = [*command, "--model", checkpoint, "--max-tokens", "1"]
    assert cli.main(words) == (2 if "-" in command else 0)


@pytest.mark.parametrize("command", [["generate", "-"], ["chat"]])
def test_standard_input_that_is_no_text(capsys, checkpoint, monkeypatch, command):
    monkeypatch.setattr(sys, "stdin", Pipe(b"Once\nup\xffon"))
    status, _, err = run(capsys, *command, "--model", checkpoint, "--max-tokens", "1")
    assert status == 2
    assert "line 2 of standard input isn't UTF-8: byte 3 is 0xff" in err


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "a\udcff"],
        ["generate", "a", "--stop", "\ud83c"],
        ["generate", "a", "--model", "\udcff"],
        ["chat", "--system", "\ud83c"],
    ],
)
def test_arguments_that_are_no_text(capsys, words):
    status, _, err = run(capsys, *words)
    assert status == 2 and "isn't UTF-8" in err and "Traceback" not in err


def test_half_a_character_in_a_chat_is_not_the_end(monkeypatch, capsys, checkpoint):
    status, out, _, asked = talk(monkeypatch, capsys, checkpoint, "\ud83c", "Hi")
    assert status == 2 or (len(asked) == 1 and "isn't UTF-8" in out)


def test_signs_that_the_output_lacks_are_told(monkeypatch, capsys, checkpoint):
    """A file in cp1252, as a redirection makes on Windows, has no Chinese."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    words = ["--model", checkpoint, "--max-tokens", "1", "--top-k", "1"]
    assert cli.main(["generate", "从前 Once", *words]) == 0
    sys.stdout.flush()
    assert raw.getvalue().startswith(b"?? Once")
    said = capsys.readouterr().err
    assert "this output is cp1252" in said and "PYTHONUTF8=1" in said


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_model_cannot_steer_the_terminal(monkeypatch, terminal):
    r"""What it writes reaches a file as it is, and a terminal as \x1b."""
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    cli._write("a\x1b]0;title\x07\x9b31m\tb\n从🎈")
    shown = r"a\x1b]0;title\x07\x9b31m" if terminal else "a\x1b]0;title\x07\x9b31m"
    assert screen.getvalue() == shown + "\tb\n从🎈"


def test_an_error_cannot_steer_the_terminal(capsys, monkeypatch):
    """It may quote a tensor's name, which comes with the checkpoint."""

    def fail(args):
        raise ValueError("unexpected tensor \x1b[2Jx" + "y" * 5000)

    monkeypatch.setattr(cli, "_load", fail)
    status, _, err = run(capsys, "generate", "Once")
    assert status == 2 and r"tensor \x1b[2Jxyy" in err and len(err) < 1000


def test_what_is_typed_can_be_edited_and_called_back(monkeypatch, checkpoint):
    """On a terminal of its own: the arrow keys work, and Ctrl-D ends the line."""
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    import os
    import select

    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 80))
    code = "import sys; from folovllm_lite.__main__ import main; sys.exit(main())"
    words = ["chat", "--model", checkpoint, "--max-tokens", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=side, stdout=side, stderr=side, close_fds=True,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(side)
    seen = ""

    def until(words):
        nonlocal seen
        while words not in seen:
            assert select.select([main], [], [], 60)[0], seen
            try:
                seen += os.read(main, 4096).decode("utf-8", "replace")
            except OSError:  # the other side is closed
                return
            if "\x1b[6n" in seen:  # where is the cursor?
                seen = seen.replace("\x1b[6n", "")
                os.write(main, b"\x1b[1;1R")

    ready = "\x1b[?2004h"  # a prompt is there
    # A letter forgotten and put in; the same line again; the end.
    for keys, words in (
        (b"/hlp\x1b[D\x1b[De\r", "/reset  forget"),
        (b"\x1b[A\r", "/reset  forget"),
        (b"\x04", ""),
    ):
        until(ready)
        seen = ""
        os.write(main, keys)
        until(words)
    assert process.wait(30) == 0
    os.close(main)


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
    assert "Other programs" in out


def test_doctor_says_what_a_gpu_runs(monkeypatch):
    """It once promised a kernel that nothing called, and half precision that is slow.

    What attends without Triton is shown in tests/integration/test_pretended_gpu.py.
    """
    emulated = []
    monkeypatch.setattr(
        doctor.torch.cuda, "is_bf16_supported",
        lambda including_emulation=True: bool(emulated.append(including_emulation)),
    )  # fmt: skip
    for found, words in ((None, "no CUDA graphs"), (object(), "CUDA graphs of them")):
        monkeypatch.setattr(doctor.util, "find_spec", lambda name, it=found: it)
        half, triton = doctor._cuda()
        assert (half.ok, half.means) == (False, "use dtype='float16'")
        assert words in triton.means and triton.ok is (found is not None)
    assert emulated == [False, False]


def test_the_columns_of_doctor_line_up():
    found = [doctor.Finding("a", "bb", "x"), doctor.Finding("aaa", "b", "x", ok=False)]
    assert doctor.table(found).splitlines() == ["✓ a    bb  x", "· aaa  b   x"]


@pytest.mark.parametrize(
    "version, ok, words",
    [
        ("2.13.0", True, "tested with 2.13"),
        ("2.13.0+cu130", True, "tested with 2.13"),
        ("2.14.1", False, "never tried: the tests ran with 2.13"),
        ("2.12.0", False, "never tried"),
    ],
)
def test_doctor_says_what_was_tested(monkeypatch, version, ok, words):
    """Once it ticked PyTorch 2.14.1 under "2.11 to 2.13 are supported"."""
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda _: ["tqdm>=4", "torch>=2.13,<2.14"]
    )
    monkeypatch.setattr(doctor.metadata, "version", lambda _: version)
    means, fine = doctor._tested("torch")
    assert fine == ok and words in means


def test_a_busy_machine_is_noticed():
    """A process that spins on a core is a neighbour, and this one is not."""
    spin = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(spin, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        neighbours, end = doctor.Neighbours(), time.perf_counter() + 0.6
        while time.perf_counter() < end:  # this process is busy as well
            pass
        cores = neighbours.cores()
        process.kill()
    assert cores > 0.15, "its share, if all cores are busy anyway"
    assert not doctor._busy(1.0).ok and doctor._busy(0.1).ok
    assert "don't measure now" in doctor._busy(1.0).means


def test_own_work_is_no_neighbour(monkeypatch):
    """While this process takes 10 core-seconds of 12, others keep 0.5 cores busy."""
    times = iter([(100.0, 0.0), (112.0, 10.0)])
    taken = iter([0.0, 4.0])

    def cpu_times():
        busy, own = next(times)
        monkeypatch.setattr(doctor.time, "process_time", lambda: own)
        return Times(busy, 7.0)

    Times = namedtuple("Times", "user idle")
    monkeypatch.setattr(doctor.psutil, "cpu_times", cpu_times)
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(taken))
    assert doctor.Neighbours().cores() == pytest.approx(0.5)


def test_bench_says_that_others_were_busy():
    one = bench.Measured("folovllm_lite", [0.1], [1.0])
    quiet = bench.report(bench.Result("work", "machine", 100, [one], others=0.1))
    busy = bench.report(bench.Result("work", "machine", 100, [one], others=1.04))
    assert "busy" not in quiet and "kept 1.0 cores busy meanwhile" in busy


@pytest.mark.parametrize("peer", ["transformers", "ctranslate2"])
def test_bench_does_the_same_work_on_both(peer, capsys, checkpoint):
    if peer == "ctranslate2":
        pytest.importorskip(peer)
    sizes = "--prompt-tokens 4 --max-tokens 6 --repeats 2 --requests 2".split()
    words = ["bench", "--model", checkpoint, "--peer", peer, *sizes]
    status, out, err = run(capsys, *words)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith(
        "2 requests of 4 tokens, 6 new tokens each, greedy, float32"
    )
    names = [line.split()[0] for line in lines[4:7]]
    assert names == ["folovllm_lite", peer, "ratio"]
    assert "Loading" not in err, "the peer's own bar"


@pytest.mark.parametrize(
    "sizes, message",
    [
        ("--prompt-tokens 500 --max-tokens 13", "512, but 500 prompt tokens and 13"),
        (f"--prompt-tokens {2**62}", f"but {2**62} prompt tokens"),
        (f"--requests {10**30} --max-tokens 1", f"{10**30} prompts of 32 tokens"),
    ],
)
def test_bench_refuses_what_is_too_large_at_once(capsys, checkpoint, sizes, message):
    """It once gave the library's words, or began its progress bar first."""
    status, _, err = run(capsys, "bench", "--model", checkpoint, *sizes.split())
    assert status == 2 and message in err and len(err.splitlines()) == 1


def test_a_peer_that_is_not_there_is_asked_for(capsys, checkpoint, monkeypatch):
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    words = "bench", "--model", checkpoint, "--peer", "ctranslate2"
    status, _, err = run(capsys, *words)
    assert status == 2 and "python -m pip install ctranslate2" in err


def test_ratios_are_of_medians():
    ours = bench.Measured("folovllm_lite", [0.1, 9.0, 0.1], [1.0, 1.0, 50.0])
    peer = bench.Measured("transformers", [0.2, 0.2, 0.0], [2.0, 4.0, 4.0])
    text = bench.report(bench.Result("work", "machine", 100, [ours, peer]))
    assert text.splitlines()[-1].split() == ["ratio", "2.00x", "4.00x"]
    assert "100.0 ms       100.0" in text


def test_json_of_the_checkpoint_is_left_alone(checkpoint):
    with open(f"{checkpoint}/config.json", encoding="utf-8") as file:
        assert json.load(file)["model_type"] == "qwen3"
