"""The command line: `python -m folovllm_lite generate | chat | doctor | bench`.

torch is imported only by the commands that need it, and only after their arguments have
been read: `--help` and a typo answer at once.
"""

import argparse
import os
import sys
from typing import Any

_EXAMPLES = """\
examples:
  python -m folovllm_lite generate "Once upon a time"
  python -m folovllm_lite generate "从前" --temperature 1.2 --seed 7
  python -m folovllm_lite chat
  python -m folovllm_lite doctor
  python -m folovllm_lite bench --peer transformers
"""

# Fields of SamplingParams that a flag sets: name -> (type, default here, help)
_SAMPLING: dict[str, tuple[type, Any, str]] = {
    "max_tokens": (int, 256, "most tokens to generate"),
    "min_tokens": (int, 0, "fewest tokens to generate"),
    "temperature": (float, 0.8, "0 takes the likeliest token, 1 is as trained"),
    "top_p": (float, 0.95, "keep the likeliest tokens up to this probability"),
    "top_k": (int, -1, "keep this many of the likeliest tokens; -1 keeps all"),
    "min_p": (float, 0.0, "keep tokens this times as likely as the likeliest"),
    "presence_penalty": (float, 0.0, "discourage tokens that were generated"),
    "frequency_penalty": (float, 0.0, "the same, for each time"),
    "repetition_penalty": (float, 1.0, "divides the logits of tokens that occurred"),
}


class CommandError(Exception):
    """Something the user can mend: shown as one line, without a traceback."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m folovllm_lite",
        description="A small vLLM. Without --model it runs the model in this package.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    generate = commands.add_parser("generate", help="continue a text")
    generate.add_argument(
        "prompt", help="the beginning; - reads it from standard input"
    )
    generate.add_argument("-n", type=int, default=1, help="completions (default: 1)")
    generate.add_argument(
        "--best-of", type=int, help="generate this many, show the n best"
    )
    generate.set_defaults(run=_generate)

    chat = commands.add_parser(
        "chat", help="talk; /reset forgets, /exit or Ctrl-D ends"
    )
    chat.add_argument("--system", help="what the model is told first")
    chat.set_defaults(run=_chat)

    for command in (generate, chat):
        _model_arguments(command)
        group = command.add_argument_group("sampling")
        for name, (kind, default, text) in _SAMPLING.items():
            flag = "--" + name.replace("_", "-")
            group.add_argument(
                flag, type=kind, default=default, help=f"{text} ({default})"
            )
        group.add_argument(
            "--stop", action="append", help="end at this text; may repeat"
        )
        group.add_argument(
            "--ignore-eos", action="store_true", help="go on after the end"
        )
        group.add_argument("--seed", type=int, help="the same seed gives the same text")

    doctor = commands.add_parser("doctor", help="what this machine can run")
    doctor.set_defaults(run=_doctor)

    bench = commands.add_parser("bench", help="measure speed, alone or beside a peer")
    _model_arguments(bench)
    bench.add_argument(
        "--peer", choices=["transformers"], help="do the same work there too"
    )
    bench.add_argument("--requests", type=int, default=1, help="prompts per run (1)")
    bench.add_argument(
        "--prompt-tokens", type=int, default=32, help="tokens a prompt (32)"
    )
    bench.add_argument(
        "--max-tokens", type=int, default=128, help="new tokens each (128)"
    )
    bench.add_argument(
        "--repeats", type=int, default=5, help="runs; medians are shown (5)"
    )
    bench.set_defaults(run=_bench)
    return parser


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


def _params(args: argparse.Namespace, **more: Any) -> Any:
    """SamplingParams from the flags; checked before the model is loaded."""
    from folovllm_lite.sampling_params import SamplingParams

    chosen = {name: getattr(args, name) for name in _SAMPLING}
    return SamplingParams(
        **chosen, stop=args.stop, ignore_eos=args.ignore_eos, seed=args.seed, **more
    )


def _load(args: argparse.Namespace) -> Any:
    from folovllm_lite.llm import LLM

    return LLM(
        args.model,
        device=args.device,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        # Without --seed every run of the program tells another story.
        seed=int.from_bytes(os.urandom(4), "big"),
    )


def _show(outputs: Any) -> str:
    """Print a streamed completion as it grows; returns the whole."""
    shown = ""
    for output in outputs:
        text = output.outputs[0].text
        print(text[len(shown) :], end="", flush=True)
        shown = text
    print()
    return shown


def _generate(args: argparse.Namespace) -> None:
    prompt = sys.stdin.read().rstrip("\n") if args.prompt == "-" else args.prompt
    params = _params(args, n=args.n, best_of=args.best_of)
    llm = _load(args)
    if params.best_of == 1:
        stream = llm.stream(prompt, params)
        print(prompt, end="", flush=True)
        _show(stream)
        return
    (output,) = llm.generate(prompt, params, use_tqdm=False)
    for completion in output.outputs:
        print(f"[{completion.index + 1}] {prompt}{completion.text}")


def _chat(args: argparse.Namespace) -> None:
    params = _params(args)
    llm = _load(args)
    start = [{"role": "system", "content": args.system}] if args.system else []
    history = list(start)
    if sys.stdin.isatty():
        print(
            "Say something. /reset forgets the conversation, /exit or Ctrl-D ends it."
        )
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if said in ("/exit", "/quit"):
            return
        if said == "/reset":
            history = list(start)
            print("(forgotten)")
            continue
        if not said:
            continue
        asked = [*history, {"role": "user", "content": said}]
        try:
            stream = llm.stream(asked, params)
        except (
            ValueError,
            TypeError,
        ) as error:  # the conversation has outgrown the model, mostly
            print(f"({error}; /reset begins a new conversation)")
            continue
        try:
            answer = _show(stream)
        except KeyboardInterrupt:
            print("\n(stopped)")
            continue
        history = [*asked, {"role": "assistant", "content": answer}]


def _doctor(args: argparse.Namespace) -> None:
    from folovllm_lite.doctor import checkup, table

    print(table(checkup()))


def _bench(args: argparse.Namespace) -> None:
    for name in ("requests", "prompt_tokens", "max_tokens", "repeats"):
        if getattr(args, name) < 1:
            raise CommandError(
                f"--{name.replace('_', '-')} must be at least 1, "
                f"got {getattr(args, name)}"
            )
    from folovllm_lite.bench import report, run

    print(report(run(_load(args), args)))


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for a mistake, 130 for Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(argv)
    # A progress bar of the Hub's client or a warning about it would stand in the story.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for file in (sys.stdout, sys.stderr):  # a "?" where a terminal has no Chinese
        if hasattr(file, "reconfigure"):
            file.reconfigure(errors="replace")
    try:
        args.run(args)
        sys.stdout.flush()  # here, where a reader that has gone is no error
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (
        CommandError,
        ValueError,
        TypeError,
        FileNotFoundError,
        NotImplementedError,
    ) as error:
        print(f"{parser.prog} {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
