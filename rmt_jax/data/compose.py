"""Samples: a task's story in background text, or its document; a pure function of an address.

BABILong's rules (Kuratov et al. 2024): the context has an exact budget of tokens; a story with more
than budget // 8 facts is left out; facts stand in order at gaps between background sentences drawn
uniformly with replacement; the background is consecutive sentences from a random place, the last
one cut to fit. A document is a context as it is; one longer than the budget is left out.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from rmt_jax import config
from rmt_jax.data import perturb, segmentation
from rmt_jax.data import tasks as registry
from rmt_jax.data.corpus import background, hard_negatives
from rmt_jax.data.corpus.background import Slice
from rmt_jax.data.errors import DataError
from rmt_jax.data.finite import FiniteTasks
from rmt_jax.data.haystack import NO_WINDOW, ContextQuestion, choose_questions, hide
from rmt_jax.data.lengths import Length
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import OFFICIAL, Document, Passage, Room, Story, StoryOptions
from rmt_jax.data.tasks import Task
from rmt_jax.data.tokenizer import Tokenizer

TOKENS_PER_FACT = 8  # a story may have budget // 8 facts
ATTEMPTS = 100  # samples of the task tried for one address before giving up
HARD_NEGATIVES = ("", "found", "made")


class Sample(NamedTuple):
    task: str
    context: np.ndarray  # i32[n]
    question: str
    answers: tuple[str, ...]  # right ones; the first is trained on
    question_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]  # of the first answer, END not included
    facts: tuple[tuple[int, int], ...] = ()  # place of each fact in the context: first token, end
    supporting: tuple[int, ...] = ()  # numbers of the facts that the answer rests on
    context_questions: tuple[ContextQuestion, ...] = ()
    story: Story | None = None  # None: a document
    parts: tuple[str, ...] = ()  # of an answer that is a list

    @property
    def answer(self) -> str:
        return self.answers[0]

    @property
    def depths(self) -> tuple[float, ...]:
        """Where the supporting facts stand: 0 the start of the context, 1 its end."""
        return tuple(self.facts[i][0] / max(1, len(self.context)) for i in self.supporting)


def longest_answer(
    tasks: Iterable[Task], tokenizer: Tokenizer, renamed: bool = False, unknown: bool = False
) -> int:
    """T: tokens of the longest answer of these tasks, END included. `renamed`: persons, places and
    objects may bear any name of the word lists. (Of invented names longer ones are drawn again.)
    `unknown`: an answer may be that the text does not tell."""
    asking = (task for task in tasks if not task.models_language)
    longest = max((task.answer_tokens(tokenizer, renamed) for task in asking), default=1)
    return 1 + max(longest, len(tokenizer.sentence(perturb.UNKNOWN)) if unknown else 0)


class Composer:
    """Samples of one split. `.sample(task, length, seed, index)` is a pure function.

    Args:
      tasks: instead of those of `data.tasks`.
      window: the part of the background in which facts may stand.
      background_split: of the background alone, or 'all' of it; '': `split`.
      change: a perturbation of `data.perturb` (those of the description concern the prompt, not
        the sample).
    """

    def __init__(
        self,
        data: config.Data,
        tokenizer: Tokenizer,
        split: str = "train",
        *,
        segment_tokens: int = 512,
        tasks: Mapping[str, Task] | None = None,
        window: tuple[float, float] = NO_WINDOW,
        change: str = "",
        background_split: str = "",
    ):
        self.tokenizer, self.split, self.segment_tokens = tokenizer, split, segment_tokens
        self.align = data.align
        self.tasks = dict(registry.create_all(data) if tasks is None else tasks)
        self.change = perturb.check(change)
        self.window = perturb.WINDOWS.get(change, window)
        renamed = data.new_names > 0 or change.startswith("new_")
        self.answer_room = longest_answer(
            self.tasks.values(), tokenizer, renamed, data.unknown_rate > 0
        )
        source = data.background
        if change == "other_background":
            source = perturb.other_background(source)
        self.background = None
        if source != "none":
            self.background = background.load(source, tokenizer, background_split or split)
        self._data, self._others = data, dict[str, Task]()
        self.finite = FiniteTasks(
            self.task, tokenizer, split, segment_tokens, data.align, self.answer_room
        )

    def task(self, name: str) -> Task:
        """One of `tasks`, or another registered one. Raises RegistryError for an unknown name."""
        if name in self.tasks:
            return self.tasks[name]
        if name not in self._others:
            self._others[name] = registry.create(name, self._data)
        return self._others[name]

    def open(self) -> None:
        """Opens what the samples of `tasks` are made of (`Task.open`). Raises RmtError."""
        for task in self.tasks.values():
            task.open(self.split, self.tokenizer)

    def passage(self, task: str, length: Length | str, seed: int, index: int) -> Passage:
        """The passage at (task, length, seed, index) of a task that models a language: as many
        tokens to read as the length has, or fewer where its text is shorter. Raises RmtError."""
        found, size = self.task(task), self.segment_tokens
        if isinstance(length, str):
            length = Length.parse(length, size)
        if not found.models_language:
            raise DataError(f"The task '{task}' models no language: it has questions, no passages.")
        found.open(self.split, self.tokenizer)
        options = OFFICIAL._replace(max_tokens=length.tokens)
        made = found.sample(self.split, seed, index, options)
        if not isinstance(made, Passage) or len(made.tokens) < 2:
            raise DataError(f"The task '{task}' models a language, but sample {index} is {made!r}.")
        return made

    def sample(
        self,
        task: str,
        length: Length | str,
        seed: int,
        index: int,
        options: StoryOptions = OFFICIAL,
        *,
        hidden: bool = True,
        question_share: float = 1.0,
        hard_negatives: str = "",
    ) -> Sample:
        """The sample at (task, length, seed, index); of a finite task, number `index` of
        `finite.rows`,
        from the first again after the last.

        Args:
          hidden: False leaves the background out.
          question_share: the chance of each intermediate question to stand in the text.
          hard_negatives: background of sentences that look like facts alone: 'found', those with
            a word of the tasks; 'made', those in which such a word was put.

        Raises RmtError for an unknown task or length and where facts or window leave no room.
        """
        length = Length.parse(length, self.segment_tokens) if isinstance(length, str) else length
        made = self.task(task)
        perturb.check_task(self.change, made)
        more = dict(hidden=hidden, question_share=question_share, hard_negatives=hard_negatives)
        if not length.whole:
            return self._sample(made, length, seed, index, options, length, **more)
        # Segments that end with a sentence hold less: a text that takes more of them is made again,
        # an eighth of a segment a time shorter.
        size = self.segment_tokens
        for tokens in range(length.tokens, 0, -max(1, size // 8)):
            shorter = length._replace(tokens=tokens)
            sample = self._sample(made, shorter, seed, index, options, length, **more)
            if (len(self._bounds(sample)) - 1) * size <= length.tokens:
                return sample
        raise DataError(f"{task}: no text fits in {length.name} of {size} tokens a segment.")

    def _bounds(self, sample: Sample) -> np.ndarray:
        return segmentation.sample_bounds(
            sample.context,
            len(sample.question_ids),
            self.answer_room,
            self.segment_tokens,
            self.align,
            self.tokenizer,
        )

    def _sample(
        self,
        task: Task,
        length: Length,
        seed: int,
        index: int,
        options: StoryOptions,
        asked: Length,
        **more,
    ) -> Sample:
        """`asked`: the length that rows of a finite task are chosen by, `length` what must be
        filled."""
        if task.models_language:
            raise DataError(
                f"The task '{task.name}' asks nothing, it models a language: measure it with"
                " evaluate --perplexity."
            )
        rows = self.finite.rows(task.name, asked)
        if rows is not None and not len(rows):
            raise DataError(
                f"{task.name}: none of its {self.split} rows is about as long as {asked.name}."
            )
        # A whole length holds question and answer too: about 20 tokens that facts cannot take.
        most = 10**6 if not length.tokens else max(0, length.tokens) // TOKENS_PER_FACT
        room = None
        if length.tokens:
            room = Room(
                self.tokenizer, length.tokens, 1 + self.answer_room if length.whole else None
            )
        for attempt in range(ATTEMPTS):
            address = index if not attempt else index + (attempt << 40)
            # Made-up names are long: as many facts as usual may never fit.
            limited = options._replace(
                max_facts=max(0, most - attempt // 20),
                max_tokens=max(0, length.tokens),
                tokenizer=self.tokenizer,
                room=room,
            )
            if rows is not None:
                number = int(rows[(index + attempt) % len(rows)])
                found = task.sample(self.split, seed, number, limited)
            else:
                found = task.sample(self.split, seed, address, limited)
            assert not isinstance(found, Passage)
            if isinstance(found, Document):
                sample = self._read_document(task, found, length)
            else:
                # An invented name may be longer than T; answers of tasks never trained on may be
                # too, and are asked all the same.
                answer = self.tokenizer.sentence(found.answer)
                if options.new_names and len(answer) >= self.answer_room:
                    continue
                rng = AddressedRng(seed, address, task.seed, length.tokens, 1)
                if self.change:
                    found = perturb.story(self.change, found, AddressedRng(seed, address, 7))
                    if found is None:
                        continue
                elif options.unknown:
                    found = perturb.ask_absent(found, AddressedRng(seed, address, 8), False)
                sample = self._hide_story(found, length, rng, **more)
            if sample is not None:
                return sample
        raise DataError(
            f"{task.name}: no sample fits a length of {length.name} ({length.tokens} tokens)."
        )

    def _read_document(self, task: Task, document: Document, length: Length) -> Sample | None:
        """None where the document is longer than the length."""
        if self.change and self.change not in perturb.DESCRIPTIONS:
            raise DataError(
                f"The perturbation '{self.change}' changes facts or background, but the task"
                f" '{task.name}' has documents, which are read as they are."
            )
        encode = self.tokenizer.sentence
        context = document.tokens
        if context is None:
            context = np.array(self.tokenizer.encode(f" {document.context}"), np.int32)
        question, answer = encode(document.question), encode(document.answers[0])
        budget = length.tokens
        if length.whole:
            budget -= len(question) + 1 + self.answer_room
        if length.tokens and len(context) > budget:
            if not length.cut or budget <= 0:
                return None
            context = context[:budget] if task.longer == "cut_end" else context[-budget:]
        return Sample(
            task.name, context, document.question, document.answers, question, answer,
            parts=document.parts,
        )  # fmt: skip

    def _hide_story(
        self,
        story: Story,
        length: Length,
        rng: AddressedRng,
        *,
        hidden: bool,
        question_share: float,
        hard_negatives: str,
    ) -> Sample | None:
        """None where the facts do not fit."""
        encode = self.tokenizer.sentence
        question = encode(story.question)
        facts = [encode(fact) for fact in story.facts]
        size, budget = sum(map(len, facts)), length.tokens
        if length.whole:
            budget -= len(question) + 1 + self.answer_room
        if length.tokens and size > budget:
            return None
        room = (budget - size) if length.tokens else 10**6
        questions = choose_questions(
            story.intermediate_questions, self.tokenizer, rng, room=room, share=question_share
        )
        size += sum(len(one.tokens) for one in questions)
        found = self.background
        if story.haystack is not None:
            found = background.of_sentences(story.haystack, self.tokenizer)
        fill = hidden and found is not None and length.tokens > 0
        made = hide(
            facts,
            questions,
            rng,
            lambda tokens: self._background(found, tokens, rng, hard_negatives),
            background_tokens=max(0, budget - size) if fill else 0,
            window=self.window,
        )
        return Sample(
            story.task, made.context, story.question, (story.answer, *story.other_answers),
            question, encode(story.answer), made.facts, story.supporting, made.questions, story,
            story.parts,
        )  # fmt: skip

    def _background(
        self, found: background.Background | None, tokens: int, rng: AddressedRng, kind: str
    ) -> Slice:
        """So many tokens of a background from a random sentence on. `kind`: see `sample`."""
        assert found is not None
        if kind and found is self.background:
            some = self._hard_negatives(kind)
            return some.take(rng.below(some.sentences), tokens)
        text = perturb.PerturbedBackground(self.change, found, self.tokenizer)
        return text.take(rng.below(found.sentences), tokens, rng)

    def _hard_negatives(self, kind: str) -> background.Background:
        assert self.background is not None
        if kind not in HARD_NEGATIVES:
            raise DataError(f"There are no hard negatives {kind!r}: they are 'found' or 'made'.")
        if kind == "made":
            return hard_negatives.background(
                self.background.name, self.tokenizer, self.background.split
            )
        words = {word for task in self.tasks.values() for word in task.fact_words}
        if not words:
            raise DataError(
                f"The tasks {', '.join(self.tasks)} have no fact_words, without which there are no"
                " hard negatives: give them some, or set the rate of hard negatives to 0."
            )
        first = sorted({self.tokenizer.sentence(word)[0] for word in words})
        return self.background.sentences_with(tuple(first))
