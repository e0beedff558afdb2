"""The command line: `folovllm-lite COMMAND`, or `python -m folovllm_lite COMMAND`.

torch is imported only by the commands that need it, and only after their arguments have
been read: `--help` and a typo answer at once. A command is a function that adds its
parser to the others' (`_COMMANDS`, at the end), and one that runs it and returns the
exit status, None for 0.
"""

import argparse
import codecs
import logging
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from folovllm_lite import __version__

_EXAMPLES = """\
examples:
  {prog} lab
  {prog} generate "Once upon a time"
  {prog} generate "从前" --temperature 1.2 --seed 7
  {prog} chat
  {prog} mine --with 09#serve
  {prog} doctor
  {prog} bench --peer transformers
  {prog} quantize Qwen/Qwen3-0.6B qwen3-gptq
"""

_MAX_TOKENS = 256  # unless --max-tokens says otherwise, or less fits

# Fields of SamplingParams that a flag sets: name -> (type, default here, help)
_SAMPLING: dict[str, tuple[type, Any, str]] = {
    "min_tokens": (int, 0, "fewest tokens to generate"),
    "temperature": (float, 0.8, "0 takes the likeliest token, 1 is as trained"),
    "top_p": (float, 0.95, "keep the likeliest tokens up to this probability"),
    "top_k": (int, -1, "keep this many of the likeliest tokens; -1 keeps all"),
    "min_p": (float, 0.0, "keep tokens this times as likely as the likeliest"),
    "presence_penalty": (float, 0.0, "discourage tokens that were generated"),
    "frequency_penalty": (float, 0.0, "the same, for each time"),
    "repetition_penalty": (float, 1.0, "divides the logits of tokens that occurred"),
}

_CHAT_HELP = """\
/reset  forget the conversation
/help   this list
/exit   the end, like Ctrl-D; Ctrl-C stops an answer"""


class CommandError(Exception):
    """Something the user can mend: shown as one line, without a traceback."""


def _prog() -> str:
    """How the user called this program."""
    script = Path(sys.argv[0]).stem
    return script if script == "folovllm-lite" else "python -m folovllm_lite"


def _parser() -> argparse.ArgumentParser:
    prog = _prog()
    parser = argparse.ArgumentParser(
        prog=prog,
        description="A small vLLM. Without --model it runs the model in this package.",
        epilog=_EXAMPLES.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"folovllm-lite {__version__}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for add in _COMMANDS:
        add(commands)
    return parser


# ----- text that comes in and goes out


def _checked(text: str, what: str) -> str:
    """The text, if it is text: what isn't UTF-8 reaches Python as half characters."""
    for place, c in enumerate(text):
        if "\ud800" <= c <= "\udfff":
            byte = ord(c) - 0xDC00
            found = f"the byte 0x{byte:02x}" if 0x80 <= byte <= 0xFF else "half a one"
            raise CommandError(
                f"{what} isn't UTF-8: where character {place + 1} should be stands "
                f"{found}"
            )
    return text


def _decoded(data: bytes, what: str) -> str:
    """Bytes from a pipe as text: UTF-8, and no carriage returns, on every system."""
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{what} isn't UTF-8: byte {error.start + 1} is 0x{data[error.start]:02x}"
        ) from error


def _stdin_lines() -> Iterator[str]:
    """What is piped in, line by line."""
    raw = getattr(sys.stdin, "buffer", None)
    for number, line in enumerate(sys.stdin if raw is None else raw, start=1):
        what = f"line {number} of standard input"
        yield _decoded(line, what) if isinstance(line, bytes) else _checked(line, what)


def _typed_lines() -> Iterator[str]:
    """What somebody types, with line editing and a history, until Ctrl-D."""
    from prompt_toolkit import PromptSession

    session: Any = PromptSession()
    while True:
        try:
            yield session.prompt("> ")
        except EOFError:
            return


def _visible(text: str) -> str:
    r"""A text without what would steer a terminal: an escape character is "\x1b"."""
    return "".join(
        f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c
        for c in text
    )


def _write(text: str) -> None:
    """Print a model's text: as it is into a file, harmless on a terminal."""
    print(_visible(text) if sys.stdout.isatty() else text, end="", flush=True)


def _message(error: BaseException) -> str:
    """What an error says, which may hold anything that a file or a name held."""
    words = str(error)
    if isinstance(error, OSError) and error.strerror:
        words = f"{error.strerror}: {error.filename}" if error.filename else words
    words = _visible(words) or type(error).__name__
    return words if len(words) <= 1000 else f"{words[:600]} … {words[-200:]}"


def _open_streams() -> None:
    """Open those for which Python has None, as the caller has closed them (`>&-`)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


class _Losses:
    """Characters that the output's encoding doesn't have: shown as ?, and counted."""

    def __init__(self) -> None:
        self.count = 0
        codecs.register_error("folovllm", self)
        for file in (sys.stdout, sys.stderr):
            if hasattr(file, "reconfigure"):
                file.reconfigure(errors="folovllm")

    def __call__(self, error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        self.count += error.end - error.start
        return "?" * (error.end - error.start), error.end

    def report(self, prog: str) -> None:
        """Say so, if there were any."""
        if self.count:
            print(
                f"{prog}: this output is {sys.stdout.encoding}, which has no sign for "
                f"{self.count} characters; they stand there as ?. With PYTHONUTF8=1 "
                "set, it is UTF-8.",
                file=sys.stderr,
            )


# ----- lab


def _lab_command(commands: Any) -> None:
    parser = commands.add_parser(
        "lab", help="your own copies of the notebooks, in JupyterLab"
    )
    parser.add_argument(
        "notebook", nargs="?", default="00", help="like 03 or 03_sampler (default: 00)"
    )
    parser.add_argument("jupyter", nargs="*", help="after --: arguments for JupyterLab")
    parser.add_argument("--folder", help="where your copies are (default: my)")
    parser.add_argument(
        "--again",
        action="store_true",
        help="put your copy aside, make a fresh one, and don't start JupyterLab",
    )
    parser.set_defaults(run=_lab)


def _lab(args: argparse.Namespace) -> None:
    from folovllm_lite import lab

    try:
        copies = lab.folder(args.folder)
        if not args.again:
            lab.start(args.notebook, copies, args.jupyter)
            return
        aside = lab.begin_again(args.notebook, copies=copies)
    except lab.LabError as error:
        raise CommandError(str(error)) from error
    name = lab.find(args.notebook, lab.COURSE)
    kept = f"; yours is now {aside.name}, beside it" if aside else ""
    print(f"{name} is as in the course again{kept}.")
    if name in lab.read_record(copies, lab.WORKBOOK):
        print(f"With its blanks again: {lab.typed('workbook', copies)}")


# ----- generate and chat


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", help="directory of a checkpoint, or a Hub name")
    group.add_argument(
        "--device", help="cpu or cuda (default: cuda where there is one)"
    )
    group.add_argument(
        "--dtype", default="auto", help="auto, float32, bfloat16 or float16"
    )
    group.add_argument("--max-model-len", type=int, help="longest sequence in tokens")


def _sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--max-tokens",
        type=int,
        help=f"most tokens to generate ({_MAX_TOKENS}, or as many as fit)",
    )
    for name, (kind, default, text) in _SAMPLING.items():
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, type=kind, default=default, help=f"{text} ({default})")
    group.add_argument("--stop", action="append", help="end at this text; may repeat")
    group.add_argument("--ignore-eos", action="store_true", help="go on after the end")
    group.add_argument("--seed", type=int, help="the same seed gives the same text")


def _params(args: argparse.Namespace, **more: Any) -> Any:
    """SamplingParams from the flags; checked before the model is loaded."""
    from folovllm_lite.sampling_params import SamplingParams

    chosen = {name: getattr(args, name) for name in _SAMPLING}
    most = _MAX_TOKENS if args.max_tokens is None else args.max_tokens
    if args.max_tokens is None:  # at least as many as --min-tokens asks for
        most = max(most, args.min_tokens)
    for text in args.stop or ():
        _checked(text, "--stop")
    return SamplingParams(
        max_tokens=most,
        **chosen,
        stop=args.stop,
        ignore_eos=args.ignore_eos,
        seed=args.seed,
        **more,
    )


def _load(args: argparse.Namespace) -> Any:
    from folovllm_lite import LLM

    if args.model is not None:
        args.model = os.path.expanduser(_checked(args.model, "--model"))
        if args.model.startswith("~"):
            raise CommandError(
                f"--model {args.model!r}: no user of this machine is so called"
            )
    return LLM(
        args.model,
        device=args.device,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        # Without --seed every run of the program tells another story.
        seed=int.from_bytes(os.urandom(4), "big"),
    )


def _asked(
    args: argparse.Namespace, ask: Callable[..., Any], prompt: Any, params: Any
) -> Any:
    """`ask(prompt, params)`; where nobody chose max_tokens, what fits is enough."""
    try:
        return ask(prompt, params)
    except ValueError:
        if args.max_tokens is not None:
            raise
        return ask(prompt, replace(params, max_tokens=None))


def _show(outputs: Any) -> Any:
    """Print a streamed completion as it grows; returns the last output."""
    shown, output = "", None
    for output in outputs:
        text = output.outputs[0].text
        _write(text[len(shown) :])
        shown = text
    print()
    return output


def _aborted(output: Any) -> str:
    """Why a request was aborted; "" if it wasn't."""
    for completion in output.outputs:
        if completion.finish_reason == "abort":
            return str(completion.stop_reason or "no reason was given")
    return ""


def _generate_command(commands: Any) -> None:
    parser = commands.add_parser("generate", help="continue a text")
    parser.add_argument("prompt", help="the beginning; - reads it from standard input")
    parser.add_argument("-n", type=int, default=1, help="completions (default: 1)")
    parser.add_argument(
        "--best-of", type=int, help="generate this many, show the n best"
    )
    _model_arguments(parser)
    _sampling_arguments(parser)
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    if args.prompt == "-":
        prompt = "".join(_stdin_lines()).rstrip("\n")
    else:
        prompt = _checked(args.prompt, "the prompt")
    params = _params(args, n=args.n, best_of=args.best_of)
    llm = _load(args)
    if params.best_of == 1:
        stream = _asked(args, llm.stream, prompt, params)
        _write(prompt)
        output = _show(stream)
    else:
        output = _several(args, llm, prompt, params)
        for completion in output.outputs:
            _write(f"[{completion.index + 1}] {prompt}{completion.text}\n")
    reason = _aborted(output)
    if reason:
        print(f"{_prog()} generate: aborted: {_visible(reason)}", file=sys.stderr)
    return 1 if reason else 0


def _several(args: argparse.Namespace, llm: Any, prompt: str, params: Any) -> Any:
    """Several completions; a terminal shows how far they are."""
    from tqdm import tqdm

    if params.best_of > params.n:  # which are the best is known only at the end
        (output,) = _asked(
            args, lambda *a: llm.generate(*a, use_tqdm=False), prompt, params
        )
        return output
    stream = _asked(args, llm.stream, prompt, params)
    with tqdm(unit=" tokens", leave=False, disable=None) as bar:
        for output in stream:
            bar.update(sum(len(c.token_ids) for c in output.outputs) - bar.n)
    return output


def _chat_command(commands: Any) -> None:
    parser = commands.add_parser("chat", help="talk; /help says what else there is")
    parser.add_argument("--system", help="what the model is told first")
    parser.add_argument(
        "--no-thinking",
        action="store_true",
        help="ask a model that thinks aloud to answer at once (enable_thinking=False)",
    )
    _model_arguments(parser)
    _sampling_arguments(parser)
    parser.set_defaults(run=_chat)


def _chat(args: argparse.Namespace) -> int:
    params = _params(args)
    system = args.system and _checked(args.system, "--system")
    llm = _load(args)
    start = [{"role": "system", "content": system}] if system else []
    history, status = list(start), 0
    # What a template doesn't know it ignores.
    quick = {"chat_template_kwargs": {"enable_thinking": False}}
    ask = partial(llm.stream, **(quick if args.no_thinking else {}))
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    if typed:
        print(f"Say something.\n{_CHAT_HELP}")
    for line in _typed_lines() if typed else _stdin_lines():
        said = line.strip()
        if said in ("/exit", "/quit"):
            break
        if said == "/reset":
            history = list(start)
            print("(forgotten)")
            continue
        if said == "/help":
            print(_CHAT_HELP)
            continue
        if not said:
            continue
        try:
            asked = [*history, {"role": "user", "content": _checked(said, "this")}]
            stream = _asked(args, ask, asked, params)
        # The conversation has outgrown the model, mostly.
        except (CommandError, ValueError, TypeError) as error:
            words = " ".join(_message(error).split())
            print(f"({words}; /reset begins a new conversation)")
            continue
        try:
            output = _show(stream)
        except KeyboardInterrupt:
            print("\n(stopped)")
            continue
        reason = _aborted(output)
        if reason:
            status = 1
            print(f"{_prog()} chat: aborted: {_visible(reason)}", file=sys.stderr)
            continue
        answer = output.outputs[0].text
        history = [*asked, {"role": "assistant", "content": answer}]
    return status


# ----- the learner's own engine


def _mine_command(commands: Any) -> None:
    parser = commands.add_parser(
        "mine", help="an engine of what you wrote: assembled, judged and run"
    )
    parser.add_argument("folder", nargs="?", help="of your notebooks (default: my)")
    parser.add_argument(
        "--out", help="where my_engine is written (default: that folder)"
    )
    parser.add_argument(
        "--with",
        dest="plugged",
        action="append",
        default=[],
        metavar="EXERCISE",
        help="plug in an exercise, like 09#serve; may repeat",
    )
    parser.set_defaults(run=_mine)


def _mine(args: argparse.Namespace) -> int:
    from folovllm_lite import lab, mine

    try:
        folder = lab.folder(args.folder)
        out = folder if args.out is None else lab.folder(args.out)
        return mine.run(folder, out, args.plugged)
    except (lab.LabError, mine.MineError) as error:
        raise CommandError(str(error)) from error


def _workbook_command(commands: Any) -> None:
    parser = commands.add_parser(
        "workbook", help="the course to write: what is yours in it is blank"
    )
    parser.add_argument("--out", help="where it is written (default: my)")
    parser.set_defaults(run=_workbook)


def _workbook(args: argparse.Namespace) -> None:
    from folovllm_lite import lab, mine

    try:
        out = lab.folder(args.out)
        written, kept = mine.write(out)
    except lab.LabError as error:
        raise CommandError(str(error)) from error
    print(f"{len(written)} notebooks to write are in {out}.")
    for name in kept:
        print(f"{out / name} holds work of yours: it stays as it is.")


# ----- doctor and bench


def _doctor_command(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="what this machine can run")
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> None:
    from folovllm_lite.doctor import checkup, table

    print(table(checkup()))


def _bench_command(commands: Any) -> None:
    parser = commands.add_parser("bench", help="measure speed, alone or beside a peer")
    _model_arguments(parser)
    parser.add_argument(
        "--peer",
        choices=["transformers", "ctranslate2"],
        help="do the same work there too",
    )
    parser.add_argument("--requests", type=int, default=1, help="prompts per run (1)")
    parser.add_argument(
        "--prompt-tokens", type=int, default=32, help="tokens a prompt (32)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=128, help="new tokens each (128)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="runs; medians are shown (5)"
    )
    parser.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> None:
    for name in ("requests", "prompt_tokens", "max_tokens", "repeats"):
        if getattr(args, name) < 1:
            raise CommandError(
                f"--{name.replace('_', '-')} must be at least 1, "
                f"got {getattr(args, name)}"
            )
    from folovllm_lite.bench import report, run

    print(report(run(_load(args), args)))


def _quantize_command(commands: Any) -> None:
    parser = commands.add_parser(
        "quantize",
        help="write a model with four bits a weight (GPTQ)",
        description="Write a copy of a checkpoint whose linear layers have four bits a "
        "weight. A step then reads a quarter of the bytes. What the copy loses is "
        "measured, and stands in its README.md.",
    )
    parser.add_argument("model", help="directory of a checkpoint, or a Hub name; "
                        "'embedded' is the model in this package")  # fmt: skip
    parser.add_argument("out", help="directory to make")
    parser.add_argument("--bits", type=int, default=4, help="bits a weight (4)")
    parser.add_argument(
        "--group-size", type=int, default=128,
        help="inputs that share a scale; -1 is a whole row (128)",
    )  # fmt: skip
    parser.add_argument(
        "--asym", action="store_true", help="choose a zero point for each group"
    )
    parser.add_argument(
        "--act-order", action="store_true", help="begin with the largest inputs"
    )
    parser.add_argument(
        "--damp", type=float, default=0.01,
        help="share of the mean that is added to the Hessian's diagonal (0.01)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", metavar="FILE",
        help="text like what the model will be used for; without it, what the embedded "
        "model was trained on",
    )  # fmt: skip
    parser.add_argument(
        "--device", help="cpu or cuda (default: cuda where there is one)"
    )
    parser.set_defaults(run=_quantize)


def _quantize(args: argparse.Namespace) -> None:
    from folovllm_lite import gptq
    from folovllm_lite.tiny import corpus

    config = gptq.GPTQConfig(
        args.group_size, not args.asym, args.act_order, args.damp, bits=args.bits
    )
    texts = corpus.calibration()
    if args.calibration is not None:
        data = Path(args.calibration).read_bytes()
        texts = [_decoded(data, args.calibration)]
    model = None if args.model == "embedded" else args.model
    report = gptq.quantize(model, args.out, texts, config, device=args.device)
    print(report.table())


_COMMANDS = (
    _lab_command,
    _generate_command,
    _chat_command,
    _workbook_command,
    _mine_command,
    _doctor_command,
    _bench_command,
    _quantize_command,
)


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, 1 for a request that was aborted or a piece of a learner's
        that fails, 2 for a mistake, 130 for Ctrl-C.
    """
    _open_streams()
    parser = _parser()
    args = parser.parse_args(argv)
    # A progress bar of the Hub's client or a warning about it would stand in the story.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Nor does the engine's warning belong there: the command says what was aborted.
    logging.getLogger("folovllm_lite.engine").addHandler(logging.NullHandler())
    losses = _Losses()
    try:
        status = args.run(args) or 0
        sys.stdout.flush()  # here, where a reader that has gone is no error
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CommandError, ValueError, TypeError, OSError, NotImplementedError) as error:
        print(f"{parser.prog} {args.command}: {_message(error)}", file=sys.stderr)
        return 2
    losses.report(parser.prog)
    return status


if __name__ == "__main__":
    sys.exit(main())
