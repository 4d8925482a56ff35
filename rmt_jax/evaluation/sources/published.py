"""Questions of BABILong's published evaluation sets, or of files like them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rmt_jax.data import perturb, published, tasks
from rmt_jax.evaluation.chat import Chat
from rmt_jax.evaluation.sources.encoding import (
    answer_room,
    context_text,
    encode_question,
    nominal_tokens,
    parse_length,
    reads_descriptions,
)
from rmt_jax.evaluation.sources.fingerprint import digest, file_parts
from rmt_jax.evaluation.sources.question import Question, QuestionError, question_errors


class Published:
    """`place`: a folder, or a dataset's name on the hub (`data.published` reads it, a record at a
    time). chat: as for `Generated`."""

    counted = "whoever made the files"

    def __init__(self, model: Any, place: str, chat: Chat | None = None):
        self.model, self.place, self.chat = model, place, chat
        # By task and length: the number of the next record, and the records from there on.
        self._readers: dict[tuple[str, str], tuple[int, Iterator[dict[str, str]]]] = {}

    def describe(self) -> str:
        folder, asked = Path(self.place), repr(self.chat) if self.chat else ""
        if not folder.is_dir():
            return self.place + asked
        return digest(file_parts(sorted(folder.glob("**/*")), folder)) + asked

    def tasks(self) -> list[str]:
        folders = {path.name for path in Path(self.place).glob("**/*") if path.is_dir()}
        return [name for name in tasks.REGISTRY if name in folders]

    def perturbations(self) -> list[str]:
        return list(perturb.DESCRIPTIONS) if reads_descriptions(self.model, self.chat) else []

    def check(self, perturbation: str) -> None:
        with question_errors():
            perturb.check(perturbation)
        if perturbation and perturbation not in self.perturbations():
            raise QuestionError(
                f"'{perturbation}' needs generated texts, or a model that reads its task's"
                " description."
            )

    def tokens(self, length: str, task: str) -> int:
        return nominal_tokens(length, self.model)

    def room(self, task: str, perturbation: str = "") -> int:
        return answer_room(self.model, (task,), chat=self.chat)

    def records(self, task: str, length: str) -> Iterator[dict[str, str]]:
        """Raises QuestionError naming the file, and the record where one is wrong."""
        with question_errors():
            yield from published.read(self.place, task, length)

    def count(self, task: str, length: str, samples: int) -> int:
        return sum(1 for _ in zip(self.records(task, length), range(samples), strict=False))

    def ask(self, task: str, length: str, which: range, perturbation: str = "") -> list[Question]:
        number, records = self._readers.pop((task, length), (0, iter(())))
        if number != which.start or number == 0:
            number, records = 0, self.records(task, length)
        found = []
        for record in records:
            if number >= which.start:
                found.append(self._question(task, length, number, record, perturbation))
            number += 1
            if number == which.stop:
                break
        self._readers[task, length] = (number, records)
        return found

    def _question(
        self, task: str, length: str, k: int, record: dict[str, str], perturbation: str
    ) -> Question:
        text, question, target = record["input"], record["question"], record["target"]
        read = text if self.chat else context_text(text)
        encoded = encode_question(
            self.model, task, question, perturbation, k, text=read, chat=self.chat
        )
        nominal = parse_length(length, self.model)
        return Question(
            question=question,
            target=target,
            encoded=encoded,
            answer=np.asarray(self.model.tokenizer.sentence(target), np.int32),
            characters=len(text) + len(question),
            gpt2_tokens=float(nominal.tokens) if not nominal.whole else 0.0,
        )
