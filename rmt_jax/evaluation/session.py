"""One text in memory, to be asked: read in a stream, kept in a small file, asked again at once."""

import difflib
import io
import json
import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmt_jax.data import segmentation, tasks
from rmt_jax.data.text_stream import encode_pieces, pieces
from rmt_jax.errors import RmtError
from rmt_jax.evaluation import answering, sources, streaming
from rmt_jax.evaluation.answering import EncodedQuestion
from rmt_jax.evaluation.chat import ROOM, Chat
from rmt_jax.files import atomic_open
from rmt_jax.runtime import switches

log = logging.getLogger(__name__)
TYPICAL = 12  # tokens of a question and ANSWER, where none is known when the text is read


class RecallError(RmtError):
    """A memory or question that does not fit; the message is a sentence for the user."""


@dataclass(frozen=True)
class TaskPrompt:
    """A task prompt that a text is read with; all of it that decides what memory becomes."""

    name: str  # of the task, or the user's description
    learned: int  # which of the learned prompts
    ids: tuple[int, ...]  # its tokens


class Session:
    """A text's memory, once for each task prompt that it was read with.

    tokens, characters: read so far. rest: the tokens of the last, unfinished segment: they are read
    together with a question, as in training. last_words: in a chat, what is not a token yet.
    """

    def __init__(self, model: Any, room: int = 0, chat: Chat | None = None):
        """room: tokens for an answer; 0: as in training, in a chat `chat.ROOM`. chat: what stands
        around text and question; None: they are read as in training."""
        usual = sources.answer_room(model) if chat is None else min(ROOM, model.segment_tokens // 4)
        self.model, self.room, self.chat, self.last_words = model, room or usual, chat, ""
        self.tokens = self.characters = 0
        self.rest = np.zeros(0, np.int32)
        self.prompts: list[TaskPrompt] = []
        self.memory: Any = None

    def task_prompt(self, question: str, task: str = "") -> TaskPrompt:
        """The prompt that goes with this question. Raises RecallError where the task is needed and
        neither given nor to be guessed."""
        config = self.model.config
        source = config.prompt.source
        if source == "none":
            return TaskPrompt("", 0, ())
        if source in ("question", "both") and not question:
            raise RecallError(
                "This model was trained with the question before the text: give --question, then "
                "the text is read with it."
            )
        name = task or (tasks.guess(question, config.data) if source != "question" else "")
        if len(config.data.tasks) == 1:
            name = name or config.data.tasks[0]
        if not name and source != "question":
            raise RecallError(
                f"Of which task is '{question}'? This model reads a prompt of its task, and the"
                " question has none of the forms that it knows. Give --task, one of "
                f"{', '.join(config.data.tasks)}, or describe it: --task 'Say who carries what.'"
            )
        if not tasks.exists(name, config.data) and (near := _mistyped(name, config.data)):
            raise RecallError(f"There is no task {name}. Did you mean {near}?")
        if source == "learned":
            if name not in config.data.tasks:
                raise RecallError(
                    f"This model has learned prompts for {', '.join(config.data.tasks)} only, not "
                    f"for '{name}'."
                )
            return TaskPrompt(name, config.data.tasks.index(name), ())
        known = tasks.exists(name, config.data)
        description = tasks.create(name, config.data).description if known else name
        ids = sources.prompt_ids(config.prompt, self.model.tokenizer, description, question)
        shown = name if source == "description" else f"{name} {question}".strip()
        return TaskPrompt(shown, 0, tuple(ids.tolist()))

    def doubt(self, question: str, task: str = "") -> str:
        """Why an answer may mean nothing, in a sentence: no task that the model was trained on asks
        such questions. '' where one does, or may (a task whose questions have no set form)."""
        data = self.model.config.data
        trained = [tasks.create(name, data) for name in tasks.question_tasks(data)]
        asked = [one.matches(question) or not one.question_forms for one in trained]
        if self.chat is not None or not trained or any(asked):
            return ""
        named = task if tasks.exists(task, data) and task not in data.tasks else ""
        other = tasks.guess(question, data) or named
        kind = f"of {other}" if other else "of no form that it knows"
        return (
            f"'{question}' is {kind}, and this model was trained on"
            f" {', '.join(one.name for one in trained)}: its answer may mean nothing"
        )

    def prompts_for(self, asked: Sequence[str], task: str = "") -> list[TaskPrompt]:
        """The distinct prompts that these questions need; for no question yet, those of `task` or
        of each task of the model."""
        config = self.model.config
        if asked:
            found = [self.task_prompt(q, task) for q in asked]
        elif config.prompt.source in ("description", "learned") and not task:
            asking = tasks.question_tasks(config.data) or config.data.tasks
            found = [self.task_prompt("", name) for name in asking]
        else:
            found = [self.task_prompt("", task)]
        return list(dict.fromkeys(found))

    @property
    def empty(self) -> bool:
        """Was there no word in the text?"""
        return self.tokens == 0 and not self.last_words

    @property
    def forgets(self) -> bool:
        """Was the text longer than a segment, of a model without memory?"""
        return self.tokens > len(self.rest) and not jax.tree.leaves(self.memory.state)

    @property
    def ends_aligned(self) -> bool:
        """Was the model trained on texts that end where their last segment ends (`align=right`)?
        Then where the first segment ends depends on the length of the text: `head` needs it."""
        return self.model.config.data.align == "right"

    def head(self, pieces: Iterable[str], asked: Sequence[str]) -> int:
        """Tokens of the first, ragged segment of a text that is read through to its end for this.
        Exact for the longest of the questions `asked`, or one of TYPICAL tokens."""
        total = sum(len(some) for some in self._encoded(pieces))
        tails = [len(self._question_ids(q)) for q in asked] or [TYPICAL]
        size = self.model.segment_tokens
        place = answering.layout(total, max(tails), self.room, size, "right")
        return int(place.bounds[1]) % size if place.segments else 0

    @switches.neutral()
    def read(
        self,
        pieces: Iterable[str],
        prompts: Sequence[TaskPrompt],
        head: int = 0,
        on_tokens: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        """Reads a text, given in pieces, once for all prompts side by side; its first `head` tokens
        as a segment of their own. `on_tokens` is given the tokens of each piece that was read."""
        self.prompts = list(prompts)
        size, many = self.model.segment_tokens, len(self.prompts)
        batch = answering.prompts(self.model, [self._asked(self.rest, t) for t in prompts])
        self.memory = self.model.initial_memory(many)

        def counted() -> Iterable[str]:
            for piece in pieces:
                self.characters += len(piece)
                yield piece

        for some in self._encoded(counted()):
            self.tokens += len(some)
            held = np.concatenate([self.rest, some])
            if head and len(held) >= head:
                ragged = np.zeros((many, size), np.int32)
                ragged[:, :head] = held[:head]
                known = np.broadcast_to(np.arange(size) < head, ragged.shape)
                self.memory = self.model.read(self.memory, ragged, known, batch)
                held, head = held[head:], 0
            bounds = np.zeros(1, int) if head else self._whole(held)
            place = answering.Layout(np.append(bounds, len(held)))
            asked = [self._asked(held, one) for one in prompts]
            self.memory = answering.read_contexts(
                self.model, asked, [place] * many, batch, self.memory
            )
            self.rest = held[bounds[-1] :].copy()
            if on_tokens is not None:
                on_tokens(some)

    def answer(
        self, question: str, task: str = "", sampling: Any = None, stops: Sequence[str] = ()
    ) -> str:
        """The answer, greedy or drawn, up to the first of the texts `stops`. Raises RecallError for
        a question whose prompt the text was not read with."""
        if stops:
            return "".join(self.stream(question, task, sampling, stops))
        with switches.neutral():
            inputs = self._last_inputs(question, task)
            return answering.generate_answers(self.model, *inputs, [self.room], sampling)[0]

    def stream(
        self, question: str, task: str = "", sampling: Any = None, stops: Sequence[str] = ()
    ) -> Iterator[str]:
        """`answer` in pieces, as they are made."""
        with switches.neutral():
            inputs = self._last_inputs(question, task)
        ends = answering.answer_ends(self.model)
        tokens = self.model.stream(*inputs, self.room, ends, sampling)
        each = (int(made[0]) for made in tokens)
        return streaming.text_pieces(self.model.tokenizer, each, ends, stops)

    def _last_inputs(self, question: str, task: str) -> tuple[Any, np.ndarray, np.ndarray, Any]:
        """Memory, the last segment's tokens and mask, and the task prompt, to answer from."""
        if not question.strip():
            raise RecallError("An empty question cannot be answered.")
        wanted = self.task_prompt(question, task)
        if doubt := self.doubt(question, task):
            log.warning("%s", doubt)
        if wanted not in self.prompts:
            known = ", ".join(repr(t.name) for t in self.prompts)
            raise RecallError(
                f"The text was read with the prompt {known}, and this question needs "
                f"'{wanted.name}': read the text again with it (--file … --question or --task)."
            )
        k, model = self.prompts.index(wanted), self.model
        asked = self._asked(self.rest, wanted, self._question_ids(question))
        size = model.segment_tokens  # of the whole text only the last, ragged segment is left
        place = answering.layout(len(self.rest), len(asked.question), self.room, size)
        prompt = answering.prompts(model, [asked])
        memory = answering.memory_rows(model, self.memory, [k])
        memory = answering.read_contexts(model, [asked], [place], prompt, memory)
        return memory, *answering.last_segments(model, [asked], [place]), prompt

    def encoded(self, context: np.ndarray, question: str, task: str = "") -> EncodedQuestion:
        """A question as it is asked of a text of these tokens, i32[n]. Raises RecallError."""
        return self._asked(context, self.task_prompt(question, task), self._question_ids(question))

    def _question_ids(self, question: str) -> np.ndarray:
        """i32[m] of what follows the text."""
        if self.chat is None:
            return sources.question_ids(self.model.tokenizer, question)
        text = self.last_words + self.chat.question(question)
        return np.asarray(self.model.tokenizer.encode(text), np.int32)

    def _whole(self, held: np.ndarray) -> np.ndarray:
        """Bounds of the segments that are sure to end here, whatever text follows."""
        align = self.model.config.data.align
        stops = segmentation.sentence_ends(held, self.model.tokenizer, align)
        return segmentation.settled_bounds(len(held), self.model.segment_tokens, stops)

    def _encoded(self, pieces: Iterable[str]) -> Iterable[np.ndarray]:
        """i32[n] of each piece. Later pieces begin with a space anyway."""
        if self.chat is not None:
            return encode_pieces(self.model.tokenizer, self._all_but_last_words(pieces))
        spaced = (sources.context_text(piece) for piece in pieces if not piece.isspace())
        return encode_pieces(self.model.tokenizer, spaced)

    def _all_but_last_words(self, pieces: Iterable[str]) -> Iterator[str]:
        assert self.chat is not None
        self.last_words = ""
        for part in self.chat.split(iter(pieces)):
            if self.last_words:
                yield self.last_words
            self.last_words = part

    def _asked(self, context: np.ndarray, prompt: TaskPrompt, tail: Any = ()) -> EncodedQuestion:
        ids = np.asarray(prompt.ids, np.int32)
        return EncodedQuestion(context, np.asarray(tail, np.int32), ids, prompt.learned)

    @switches.neutral()
    def save(self, path: Path) -> int:
        """Bytes written to `path` (.npz): memory, unfinished segment, prompts, whose weights."""
        leaves = jax.tree.leaves(self.memory)
        about = {
            "weights": answering.model_fingerprint(self.model),
            "tokens": self.tokens,
            "characters": self.characters,
            "prompts": [[p.name, p.learned, list(p.ids)] for p in self.prompts],
            "chat": self.chat and self.last_words,
        }
        arrays = {f"memory{i}": np.asarray(x) for i, x in enumerate(leaves)}
        arrays |= {"about": np.array(json.dumps(about)), "rest": self.rest}
        with atomic_open(path, binary=True) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        return path.stat().st_size

    @switches.neutral()
    def load(self, path: Path) -> None:
        """Takes up what `save` kept. Raises RecallError for another file or other weights."""
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
                about = json.loads(str(kept["about"]))
                rest, leaves = kept["rest"], []
                while f"memory{len(leaves)}" in kept:
                    leaves.append(kept[f"memory{len(leaves)}"])
        except FileNotFoundError as error:
            raise RecallError(f"There is no file {path}.") from error
        # TypeError: an .npy file is one array and no folder of them.
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise RecallError(f"{path} is no memory that --save_memory wrote ({error}).") from error
        if about["weights"] != answering.model_fingerprint(self.model):
            raise RecallError(
                f"{path} was read by another model: a memory means something only to the weights "
                "that made it. Read the text again with this one."
            )
        if (about.get("chat") is None) != (self.chat is None):
            ways = ("with --chat=no", "with --chat=yes")
            raise RecallError(
                f"{path} was read {ways[about.get('chat') is not None]}: ask it so as well."
            )
        self.tokens, self.characters = about["tokens"], about["characters"]
        self.last_words = about.get("chat") or ""
        self.prompts = [TaskPrompt(name, n, tuple(ids)) for name, n, ids in about["prompts"]]
        self.rest = rest.astype(np.int32)
        empty = self.model.initial_memory(len(self.prompts))
        self.memory = jax.tree.unflatten(jax.tree.structure(empty), leaves)


def answers(model: Any, text: str, questions: Sequence[str], task: str = "") -> list[str]:
    """`Model.answers`: one text read once, side by side for each task prompt that is needed."""
    if not text.strip():
        raise RecallError("The text is empty: there is nothing to read.")
    session = Session(model)
    prompts = session.prompts_for(questions, task)
    head = session.head(pieces(io.StringIO(text)), questions) if session.ends_aligned else 0
    session.read(pieces(io.StringIO(text)), prompts, head)
    return [session.answer(question, task) for question in questions]


def _mistyped(name: str, data: Any) -> str:
    """The task that a single word is nearly the name of; '' for a description."""
    near = difflib.get_close_matches(name, tasks.names(data), n=1) if name.split() else []
    return near[0] if near and " " not in name else ""
