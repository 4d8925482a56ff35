"""Read a text of any size once, answer questions about it.

    python -m rmt_jax.ask --workdir RUN --file book.txt --question 'Where is Mary?'
    cat book.txt | python -m rmt_jax.ask --workdir RUN --question 'Where is Mary?'
    python -m rmt_jax.ask --workdir RUN --file book.txt --save_memory book.npz
    python -m rmt_jax.ask --workdir RUN --load_memory book.npz        (asks interactively)
    python -m rmt_jax.ask --workdir RUN --web                         (a page for a browser)

The memory is all that is kept of the text: the same kilobytes, whatever its size. A model that was
trained with a task prompt reads the text once for each task asked about: the task is taken from
`--task` (a task's name, or a description in your words), else guessed from the question.

An instruct model (a hub name, a folder, a GGUF file) is asked in its tokenizer's chat template: one
message with the text, an empty line and the question. Answers are greedy, or drawn with
`--temperature`; on a terminal they appear word by word.
"""

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from rmt_jax import cli
from rmt_jax.data.text_stream import HEAD, open_text, pieces, refuse_other_kinds, rewindable
from rmt_jax.errors import RmtError

log = logging.getLogger("rmt_jax.ask")  # not __name__, which may be __main__


class AskError(RmtError):
    """Something that cannot be asked; the message is a sentence for the user."""


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m rmt_jax.ask",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Without --question, questions are read from the terminal, one a line.",
    )
    add = parser.add_argument
    add(
        "--workdir",
        default="multitask-wide",
        help="a run's folder, or what rmt_jax.load takes (default: multitask-wide, which ships)",
    )
    add("--file", type=Path, help="a UTF-8 text of any size (default: standard input)")
    add("--question", action="append", default=[], help="may be given several times")
    add("--task", default="", help="a task's name, such as qa1, or its description in your words")
    add("--save_memory", type=Path, help="keep what was read in this .npz file")
    add("--load_memory", type=Path, help="start from what an earlier --save_memory kept")
    add("--tokens", type=int, help="longest answer, in tokens (default: as in training)")
    add("--temperature", type=float, default=0.0, help="draw tokens with it (default: greedy)")
    add("--top_k", type=int, help="draw from the k likeliest tokens only")
    add("--top_p", type=float, help="draw from the likeliest tokens of this probability only")
    add("--seed", type=int, help="of the draws (default: 0)")
    add("--stop", action="append", default=[], metavar="TEXT", help="ends an answer; repeatable")
    add("--stream", action="store_true", help="answers word by word, also into a pipe")
    add(
        "--chat",
        choices=("auto", "yes", "no"),
        default="auto",
        help="ask in the tokenizer's chat template (auto: where no task was trained here)",
    )
    add("--quiet", action="store_true", help="answers only")
    add("--web", action="store_true", help="serve a page that takes a text and questions")
    add("--host", default="127.0.0.1", help="with --web: where it listens (default: here alone)")
    add("--port", type=int, default=8765, help="with --web (default: 8765; 0: any that is free)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    if args.web:
        return serve(args)
    with contextlib.ExitStack() as opened:
        stream, source = open_source(args)
        if stream is not None and stream is not sys.stdin:
            opened.enter_context(stream)
        # JAX loads only now: --help and wrong arguments answer at once.
        from rmt_jax import api
        from rmt_jax.evaluation import chat
        from rmt_jax.evaluation import session as recall
        from rmt_jax.runtime import switches

        switches.make_neutral()
        sampling, model = sampling_of(args), api.load(args.workdir)
        session = recall.Session(model, args.tokens or 0, chat.chat_for(model, args.chat))
        return talk(args, session, stream, source, sampling)


def serve(args: argparse.Namespace) -> int:
    """`--web`: a page, until Ctrl-C. Raises AskError, ServerError."""
    usual = vars(arguments().parse_args([]))
    taken = ("web", "host", "port", "workdir", "chat", "quiet")
    if other := [f"--{n}" for n, x in vars(args).items() if n not in taken and x != usual[n]]:
        raise AskError(f"--web takes text and questions on its page: leave out {', '.join(other)}.")
    from rmt_jax import api
    from rmt_jax.evaluation import chat, server
    from rmt_jax.runtime import switches

    switches.make_neutral()
    model = api.load(args.workdir)
    return server.serve(model, chat.chat_for(model, args.chat), args.host, args.port)


def sampling_of(args: argparse.Namespace) -> Any:
    """How tokens are drawn; None: greedy. Raises AskError, SamplingError."""
    from rmt_jax.models.sampling import Sampling

    names = ("top_k", "top_p", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.temperature:
        return Sampling(args.temperature, **given)
    if given:
        raise AskError(
            f"--{' and --'.join(given)} change nothing in greedy answers: give --temperature, such"
            " as 0.7, to draw them."
        )
    return None


def open_source(args: argparse.Namespace) -> tuple[IO[str] | None, str]:
    """The text to read, if no memory is loaded, and its name. Raises AskError, TextError."""
    if args.load_memory and args.file:
        raise AskError("Give --file or --load_memory, not both: a memory is of one text.")
    if args.tokens is not None and args.tokens < 1:
        raise AskError(f"--tokens is {args.tokens}: an answer needs at least 1.")
    if not all(args.stop):
        raise AskError("An empty --stop would end every answer at once: leave it out.")
    if any(not q.strip() for q in args.question):
        raise AskError("An empty --question cannot be answered.")
    for q in args.question:
        try:
            q.encode()
        except UnicodeEncodeError as error:
            raise AskError(f"The question {q!r} is not UTF-8 text.") from error
    if args.load_memory:
        return None, str(args.load_memory)
    if args.file:
        if args.file.is_file() and args.file.stat().st_size == 0:
            raise AskError(f"{args.file} is empty: there is nothing to read.")
        return open_text(args.file), str(args.file)
    if sys.stdin.isatty():
        raise AskError("Name a text with --file, or pipe one in: cat book.txt | python -m …")
    if not args.question and not args.save_memory:
        raise AskError(
            "A text on standard input leaves no way to type questions: give --question, or keep "
            "the memory with --save_memory and ask it later."
        )
    if peek := getattr(sys.stdin.buffer, "peek", None):
        refuse_other_kinds(peek(HEAD)[:HEAD], "standard input")
    sys.stdin.reconfigure(encoding="utf-8-sig")  # type: ignore[union-attr]
    return sys.stdin, "standard input"


def talk(
    args: argparse.Namespace, session: Any, stream: IO[str] | None, source: str, sampling: Any
) -> int:
    if stream is None:
        session.load(args.load_memory)
        say(args, f"memory of {session.tokens:,} tokens from {source}")
    else:
        prompts = session.prompts_for(args.question, args.task)
        size = args.file.stat().st_size if args.file else None
        start, head = time.monotonic(), 0
        if session.ends_aligned:
            stream = rewindable(stream)
            head = session.head(pieces(stream), args.question)
            stream.seek(0)
        session.read(shown(pieces(stream), size, args.quiet), prompts, head)
        seconds = time.monotonic() - start
        if session.empty:
            raise AskError(f"{source} holds no text: there is nothing to read.")
        say(
            args,
            f"read {session.tokens:,} tokens ({session.characters:,} characters) in {seconds:.1f} s"
            f" ({session.tokens / seconds:,.0f} tokens/s, compiling included)",
        )
        if session.forgets:
            say(
                args,
                "this model has no memory: of a text longer than a segment it sees the last"
                f" {len(session.rest):,} tokens",
            )
    if args.save_memory:
        written = session.save(args.save_memory)
        say(args, f"kept the memory in {args.save_memory} ({written / 1024:.1f} kB)")
    questions = args.question or (() if args.save_memory else typed())
    for question in questions:
        try:
            asked = (question, args.task, sampling, args.stop)
            if args.stream or sys.stdout.isatty():
                for piece in session.stream(*asked):
                    print(piece, end="", flush=True)
                print(flush=True)
            else:
                print(session.answer(*asked), flush=True)
        except RmtError as error:
            if args.question:
                raise
            log.error("%s", error)  # a typed question: the next one may be better
    return 0


def typed() -> Iterator[str]:
    """Questions from the terminal, until an empty line or the end of the input."""
    while True:
        try:  # piped questions want answers alone on standard output
            question = input("? " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not question:
            return
        yield question


def shown(parts: Iterator[str], size: int | None, quiet: bool) -> Iterator[str]:
    """The pieces, with a bar over the file's bytes."""
    with cli.progress_bar(size, "B", shown=not quiet, unit_scale=True, desc="reading") as bar:
        for part in parts:
            yield part
            bar.update(len(part.encode()))


def say(args: argparse.Namespace, text: str) -> None:
    if not args.quiet:
        log.info("%s", text)


if __name__ == "__main__":
    cli.run(main)
