"""Texts that were given to `ask --web`, each read once, and what is asked of them.

Events are small dictionaries, made as the work goes on: a page shows them one by one.
"""

import io
import itertools
import queue
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from rmt_jax.data.text_stream import HEAD, TextError, pieces, refuse_other_kinds
from rmt_jax.errors import RmtError
from rmt_jax.evaluation import views
from rmt_jax.evaluation.chat import Chat
from rmt_jax.evaluation.session import RecallError, Session

TEXT_LIMIT = 4_000_000  # bytes of one text
KEPT = 4  # texts; of one more the oldest is forgotten
LOOKED_INTO = 50_000  # tokens of a text in which an answer's origin is looked for: a core's minutes
PIECE = 4096  # characters read between two events

Event = dict[str, Any]


class ReadingError(RmtError):
    """A request that cannot be served; the message is a sentence for the user."""


class Reading:
    """One text: its session, once it was read, and its tokens."""

    def __init__(self, text: str):
        self.text = text
        self.session: Session | None = None
        self.tokens = np.zeros(0, np.int32)


class Readings:
    """The texts of a page's visitors, by names that nobody can guess. One thread at a time
    computes; others wait."""

    def __init__(self, model: Any, chat: Chat | None = None):
        self.model, self.chat = model, chat
        self.lock = threading.Lock()
        self.held: OrderedDict[str, Reading] = OrderedDict()

    def add(self, body: bytes) -> tuple[str, Reading]:
        """Takes a text, UTF-8. Raises ReadingError, TextError for what is none."""
        refuse_other_kinds(body[:HEAD], "The file")
        try:
            text = body.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise TextError(
                f"The text is not UTF-8 (byte {body[error.start]:#x} at {error.start:,}):"
                " convert it first, e.g. with iconv -f LATIN1 -t UTF-8."
            ) from error
        if not text.strip():
            raise TextError("The text is empty: there is nothing to read.")
        name, reading = secrets.token_urlsafe(16), Reading(text)
        with self.lock:
            self.held[name] = reading
            while len(self.held) > KEPT:
                self.held.popitem(last=False)
        return name, reading

    def read(self, body: bytes) -> Iterator[Event]:
        """Reads a text for every task that the model may be asked about; where its prompt needs the
        question, with the first question."""
        name, reading = self.add(body)
        yield {"id": name}
        if self.model.config.prompt.source not in ("question", "both"):
            with self.lock:
                yield from self._read(reading, "", "")
        yield {"done": True, "tokens": len(reading.tokens), "segments": self._segments(reading)}

    def ask(self, name: str, question: str, task: str) -> Iterator[Event]:
        """The answer in pieces, after a sentence where it may mean nothing."""
        reading = self._named(name)
        with self.lock:
            yield from self._ready(reading, question, task)
            session = reading.session
            assert session is not None
            if doubt := session.doubt(question, task):
                yield {"doubt": doubt}
            if session.forgets:
                seen = f"{len(session.rest):,}"
                yield {"doubt": f"this model has no memory: it sees the last {seen} tokens"}
            answer = ""
            for piece in session.stream(question, task):
                answer += piece
                yield {"piece": piece}
            yield {
                "answer": answer,
                "tokens": len(reading.tokens),
                "short": len(reading.tokens) <= LOOKED_INTO // 10,
            }

    def origin(self, name: str, question: str, task: str) -> Iterator[Event]:
        """What memory did with the text, and what the answer rests on: a `View`."""
        reading = self._named(name)
        with self.lock:
            yield from self._ready(reading, question, task)
            if len(reading.tokens) > LOOKED_INTO:
                raise ReadingError(
                    f"The text has {len(reading.tokens):,} tokens. Where an answer comes from is"
                    f" looked for in texts of up to {LOOKED_INTO:,}: give a part of it."
                )
            session = reading.session
            assert session is not None
            asked = session.encoded(reading.tokens, question, task)

            def work(on_work: Callable[[int], None]) -> Event:
                made = views.view(
                    self.model, asked, session.room, title="", question=question, on_work=on_work
                )
                return {"view": asdict(made)}

            yield from _while(work, "parts")

    def _named(self, name: str) -> Reading:
        with self.lock:
            if name not in self.held:
                raise ReadingError(
                    f"This text is not here any more (the last {KEPT} are kept): give it again."
                )
            self.held.move_to_end(name)
            return self.held[name]

    def _ready(self, reading: Reading, question: str, task: str) -> Iterator[Event]:
        """Reads the text again where it was not read with this question's prompt."""
        if not question.strip():
            raise RecallError("An empty question cannot be answered.")
        session = reading.session
        if session is None or session.task_prompt(question, task) not in session.prompts:
            yield from self._read(reading, question, task)

    def _read(self, reading: Reading, question: str, task: str) -> Iterator[Event]:
        session = Session(self.model, chat=self.chat)
        asked = [question] if question else []
        prompts = session.prompts_for(asked, task)
        head = session.head(pieces(io.StringIO(reading.text)), asked) if session.ends_aligned else 0
        parts: list[np.ndarray] = []

        def work(on_work: Callable[[int], None]) -> Event:
            stream = pieces(io.StringIO(reading.text), PIECE)

            def told(tokens: np.ndarray) -> None:
                parts.append(tokens)
                on_work(session.characters)

            session.read(stream, prompts, head, told)
            return {"read": session.characters}

        size, length = len(reading.text), self.model.segment_tokens
        for event in _while(work, "read"):
            done = sum(map(len, parts))
            yield event | {"of": size, "segments": -(-done // length), "tokens": done}
        if session.empty:
            raise TextError("The text holds no word: there is nothing to read.")
        reading.tokens = np.concatenate(parts) if parts else reading.tokens
        reading.session = session

    def _segments(self, reading: Reading) -> int:
        return -(-len(reading.tokens) // self.model.segment_tokens)


def _while(work: Callable[[Callable[[int], None]], Event], name: str) -> Iterator[Event]:
    """What `work` returns, behind an event {name: count} for each count that it tells meanwhile. A
    consumer that goes away ends the work at its next count."""
    told: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
    gone = threading.Event()

    def on_work(count: int) -> None:
        if gone.is_set():
            raise ReadingError("Nobody waits for this any more.")
        told.put({name: count})

    def run() -> None:
        try:
            told.put(work(on_work))
        except BaseException as error:  # for the thread that waits
            told.put(error)
        told.put(None)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        for event in itertools.takewhile(lambda one: one is not None, iter(told.get, object())):
            if isinstance(event, BaseException):
                raise event
            assert event is not None
            yield event
    finally:
        gone.set()
        worker.join()
