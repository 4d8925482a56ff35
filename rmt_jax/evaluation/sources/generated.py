"""Questions of the model's own tasks, made as in training, of a split that training never saw."""

import dataclasses
import logging
from typing import Any

import numpy as np

from rmt_jax.data import compose, perturb, tasks, text_stream
from rmt_jax.data.corpus import background
from rmt_jax.evaluation.chat import Chat
from rmt_jax.evaluation.sources.encoding import (
    answer_room,
    encode_question,
    nominal_tokens,
    parse_length,
    reads_descriptions,
)
from rmt_jax.evaluation.sources.fingerprint import digest, file_parts
from rmt_jax.evaluation.sources.question import Question, QuestionError, question_errors

log = logging.getLogger(__name__)


class Generated:
    """Stories hidden in background, and documents, of the tasks that `data` settings give.

    lengths_by: a tokenizer (GPT-2's, to stand beside published figures) that counts lengths; the
    model then reads the same text in its own tokens. background_split: of the background alone, or
    'all' of it. chat: the template in which a model is asked that was trained on no task. Raises
    QuestionError.
    """

    def __init__(
        self,
        model: Any,
        *,
        split: str = "validation",
        seed: int | None = None,
        data: Any = None,
        lengths_by: Any = None,
        background_split: str = "",
        chat: Chat | None = None,
    ):
        self.model, self.split, self.chat = model, split, chat
        self.background_split = background_split or split
        self.seed = model.config.evaluation.seed if seed is None else seed
        self.data = data or model.config.data
        self.counter = lengths_by or model.tokenizer
        self.counted = self.counter.name
        self.told: set[str] = set()  # tasks that fewer questions are said of
        self.composers: dict[tuple[str, bool], compose.Composer] = {}
        self.composer("")  # what is wrong with facts or background is said now

    def composer(self, perturbation: str, whole: bool = False) -> compose.Composer:
        """Of unchanged texts, or of perturbed ones. `whole`: of lengths in segments, which are of
        the model's own tokens whoever counts the others."""
        key = ("" if perturbation in perturb.DESCRIPTIONS else perturbation, whole)
        if key not in self.composers:
            with question_errors():
                self.composers[key] = compose.Composer(
                    self.data,
                    self.model.tokenizer if whole else self.counter,
                    self.split,
                    segment_tokens=self.model.segment_tokens,
                    change=key[0],
                    background_split=self.background_split,
                )
        return self.composers[key]

    def describe(self) -> str:
        source, read = self.data.background, []
        with question_errors():
            if source != "none":
                text = background.load(source, self.counter, self.background_split)
                read += [text.tokens, text.starts]
            found = tasks.create_all(self.data).values()
            files = dict.fromkeys(path for task in found for path in task.files())
            read += file_parts(files)
        # What was read decides, wherever it lay.
        named = source if source in ("builtin", "none") else "files"
        own = {
            name: dataclasses.replace(one, train="", validation="", test="")
            for name, one in self.data.questions.items()
        }
        data = dataclasses.replace(
            self.data, background=named, babi_dir="", tokenizer="", questions=own
        )
        counter = self.counter.fingerprint()
        parts = (data, self.split, self.seed, counter, digest(read))
        return repr((*parts, self.chat) if self.chat else parts)

    def tasks(self) -> list[str]:
        return tasks.usable(self.data)

    def perturbations(self) -> list[str]:
        described = reads_descriptions(self.model, self.chat)
        found = [n for n in perturb.PERTURBATIONS if described or n not in perturb.NEED_DESCRIPTION]
        if self.data.background in ("builtin", "none"):
            found.remove("other_background")
        if not self.data.unknown_rate:
            found.remove("absent")
        asked = [tasks.create(name, self.data) for name in tasks.question_tasks(self.data)]
        if described and not all(task.several_meanings for task in asked):
            found.remove("other_description")
        return found

    def check(self, perturbation: str) -> None:
        with question_errors():
            perturb.check(perturbation)
        described = reads_descriptions(self.model, self.chat)
        if perturbation in perturb.NEED_DESCRIPTION and not described:
            raise QuestionError(
                f"'{perturbation}' does not apply: this model reads no description of its task "
                f"(config.prompt.source is {self.model.config.prompt.source})."
            )
        self.composer(perturbation)

    def tokens(self, length: str, task: str) -> int:
        composer = self.composer("")
        with question_errors():
            if composer.finite.own_lengths(task):
                return composer.finite.longest(task, parse_length(length, self.model))
        return nominal_tokens(length, self.model)

    def room(self, task: str, perturbation: str = "") -> int:
        renamed = perturbation.startswith("new_") or self.data.new_names > 0
        return answer_room(self.model, (task,), renamed, self.chat)

    def count(self, task: str, length: str, samples: int) -> int:
        parsed = parse_length(length, self.model)
        with question_errors():
            rows = self.composer("", parsed.whole).finite.rows(task, parsed)
            known = self.composer("").task(task).questions(self.split)
        if known is not None and known < samples and task not in self.told:
            self.told.add(task)
            said = "%s has %s questions (%s): of %s asked, some are the same in other background"
            log.warning(said, task, f"{known:,}", self.split, f"{samples:,}")
        return samples if rows is None else min(samples, len(rows))

    def ask(self, task: str, length: str, which: range, perturbation: str = "") -> list[Question]:
        return [self._question(task, length, k, perturbation) for k in which]

    def _question(self, task: str, length: str, k: int, perturbation: str) -> Question:
        composer = self.composer(perturbation, parse_length(length, self.model).whole)
        with question_errors():
            s = composer.sample(task, length, self.seed, k)
        own = s.story.description if s.story else ""
        asked = (task, s.question, perturbation, k, own)
        pieces = text_stream.decode_pieces(composer.tokenizer, s.context)
        if self.chat is None and composer.tokenizer is self.model.tokenizer:
            characters, facts = sum(map(len, pieces)), s.facts
            encoded = encode_question(self.model, *asked)
            encoded = dataclasses.replace(encoded, context=s.context)
        else:
            text = "".join(pieces)
            characters, facts = len(text), ()
            encoded = encode_question(self.model, *asked, text, self.chat)
        by_gpt2 = "gpt2" in composer.tokenizer.name
        return Question(
            question=s.question,
            target=s.answer,
            encoded=encoded,
            answer=np.asarray(self.model.tokenizer.sentence(s.answer), np.int32),
            characters=characters + len(s.question) + 1,
            gpt2_tokens=len(s.context) + len(s.question_ids) if by_gpt2 else 0,
            depth=max(s.depths) if s.depths else None,
            facts=facts,
            supporting=s.supporting if facts else (),
            other_targets=s.answers[1:],
            parts=s.parts,
        )
