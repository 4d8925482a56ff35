"""Tasks: what is asked about a text. A task is a class in a file, registered under a name.

A task yields samples, each a pure function of (split, seed, index, options): a `Story`, whose facts
are hidden in background text, a `Document`, which is read as it is, or a `Passage`, of which every
token is predicted. It says its description (the
task prompt), its labels if answers come from a closed set, and how answers are scored. Every file
of this folder registers tasks; one of yours registers from anywhere (docs/howto/write_task.md).

    from rmt_jax.data.tasks import Story, Task, register

    @register("mine")
    class Mine(Task):
        ...
"""

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import numpy as np

from rmt_jax import config as settings
from rmt_jax.data.story import (
    Document,
    IntermediateQuestion,
    Passage,
    Room,
    Story,
    StoryOptions,
)
from rmt_jax.data.tokenizer import Tokenizer
from rmt_jax.errors import RmtError
from rmt_jax.registry import Registry
from rmt_jax.scores import LABEL_RULES, OF_LABELS, OF_TEXTS, ScoreError
from rmt_jax.scores import check as check_rule

__all__ = [
    "Document",
    "IntermediateQuestion",
    "Passage",
    "REGISTRY",
    "Room",
    "Story",
    "StoryOptions",
    "Task",
    "TaskError",
    "check",
    "create",
    "create_all",
    "guess",
    "language_tasks",
    "question_tasks",
    "register",
    "usable",
]


class TaskError(RmtError):
    """A task that cannot do what is asked of it; the message is a sentence for the user."""


class Task:
    """One task. Subclass it, fill in the attributes, write `sample`; all else has a default.

    It is created with the config's Data section, so that it can read its settings, and must not
    read files before the first sample is asked for. Worker processes get pickled copies.

    An answer that is a list is one text, 'a, b, c': it is trained on as it stands. The sample names
    its parts as well, `parts=("a", "b", "c")`, and the score `match_all` looks for each of them.
    """

    Options: ClassVar[type] = settings.NoOptions  # a frozen dataclass of settings of its own
    # Tasks of one suite belong together: a model is asked the tasks that it was not trained on
    # where it was trained on others of their suite.
    suite: ClassVar[str] = ""

    name: str
    description: str  # the task prompt, a sentence
    paraphrases: tuple[str, ...] = ()  # the same in other words, never used in training
    # Descriptions of something else (the perturbation wrong_description).
    wrong_descriptions: tuple[str, ...] = ("Say which words of the text rhyme.",)
    # Has a question several meanings (`Story.other_meanings`; the perturbation other_description)?
    several_meanings: bool = False
    labels: tuple[str, ...] = ()  # the closed set of answers; empty: any text is an answer
    # Regular expressions that a question of this task matches whole; they tell the task of a
    # question where the user names none.
    question_forms: tuple[str, ...] = ()
    # Words that facts are told with: background sentences that hold one are hard negatives
    # (`data.hard_negative_rate`).
    fact_words: tuple[str, ...] = ()
    # What becomes of a document that is longer than the longest stage in training: 'cut_beginning',
    # 'cut_end' or 'leave_out'.
    longer: str = "leave_out"
    documents: bool = False  # of a task with `sizes`: are its samples documents, or stories?
    # Names of `rmt_jax.scores.NAMES`, or module:function of your own; the main one first. Empty:
    # `scores.OF_LABELS` where there are labels, otherwise `scores.OF_TEXTS`.
    scores: tuple[str, ...] = ()
    # Are samples passages? Then nothing is asked: there are no labels, answers and scores.
    models_language: bool = False

    def __init__(self, data: settings.Data):
        self.data = data

    @cached_property
    def options(self) -> Any:
        """`data.task_options` of this task as its `Options`. Raises ConfigError for others."""
        given = self.data.task_options.get(self.name, {})
        return settings.build_options(self.Options, given, f"data.task_options.{self.name}")

    def open(self, split: str, tokenizer: Tokenizer) -> None:
        """Opens what samples of a split are made of, so that what is wrong is said before training
        starts; called again it does nothing. For a task whose texts are tokenised once. It is
        called before the first passage is sampled. Raises RmtError."""

    def sample(
        self, split: str, seed: int, index: int, options: StoryOptions
    ) -> Story | Document | Passage:
        """Sample `index` of a split ('train', 'validation', 'test'): the same arguments give the
        same sample, anywhere, in any order. Splits should share none.

        Raises RmtError where there is none, with the way out.
        """
        raise NotImplementedError(f"{type(self).__name__}.sample")

    def sizes(self, split: str, tokenizer: Tokenizer) -> np.ndarray | None:
        """Of a task with finitely many samples, how long each is: i64[n, 2], tokens of the context
        (for a story: of all facts) and of the question; `sample` is then asked for 0 to n - 1.
        None for a task without end, whose samples have any length."""
        return None

    def describe(self, tokenizer: Tokenizer) -> Iterable[str]:
        """What a run says about the data of this task before it starts, in sentences."""
        return ()

    @property
    def seed(self) -> int:
        """What random draws of this task are seeded with, beside the sample's address."""
        return crc32(self.name.encode())

    @property
    def rules(self) -> tuple[str, ...]:
        """`scores`, or the default."""
        return self.scores or (OF_LABELS if self.labels else OF_TEXTS)

    def answer_tokens(self, tokenizer: Tokenizer, renamed: bool = False) -> int:
        """Tokens of the longest answer, END not included. `renamed`: persons, places and objects
        may bear other names (`StoryOptions.new_names`).

        Raises TaskError for a task without labels, which must override this.
        """
        if not self.labels:
            raise TaskError(
                f"The task '{self.name}' has no labels, so it must say how long its answers are:"
                f" give {type(self).__name__} a method answer_tokens(tokenizer, renamed) -> int."
            )
        return max(len(tokenizer.sentence(label)) for label in self.labels)

    def matches(self, question: str) -> bool:
        """Has the question, however spaced, one of the forms that this task asks?"""
        asked = " ".join(question.split())
        return any(re.fullmatch(form, asked) for form in self.question_forms)

    def problem(self) -> str:
        """Why there are no samples with these settings, in a sentence; '' if there are."""
        return ""

    def questions(self, split: str) -> int | None:
        """How many different ones a split has; None: without end. Beyond, they come again in other
        background."""
        return None

    def files(self) -> Iterable[Path]:
        """Files that samples are read from: evaluations are asked anew where they change."""
        return ()


REGISTRY: Registry[Callable[[settings.Data], Task]] = Registry(
    "task", "config.data.tasks", "rmt_jax.data.tasks"
)
register = REGISTRY.register


def create(name: str, data: settings.Data) -> Task:
    """The task of a name: an entry of `data.questions` or `data.texts`, or a registered one. Raises
    RegistryError for an unknown one."""
    if name in data.questions:
        from rmt_jax.data.tasks.questions import QuestionsTask

        return QuestionsTask(name, data)
    if name in data.texts:
        from rmt_jax.data.tasks.texts import LanguageTask

        return LanguageTask(name, data)
    return REGISTRY[name](data)


def resolve(config: settings.Config, tokenizer: Tokenizer) -> settings.Config:
    """The config with what its own tasks leave to their data: the room for answers, so that a
    checkpoint can be asked where the files are not; and whole paths, so that it can be evaluated
    from any folder. Raises DataError for files that cannot be read."""
    data, own = config.data, {}
    for kind in ("questions", "texts"):
        own[kind] = dict(getattr(data, kind))
        for name, one in own[kind].items():
            if name not in data.tasks:
                continue
            changes: dict[str, Any] = {
                split: str(Path(given).resolve())
                for split in ("train", "validation", "test")
                if (given := getattr(one, split)) and Path(given).exists()
            }
            if kind == "questions":
                changes["answer_tokens"] = create(name, data).answer_tokens(tokenizer)
            own[kind][name] = dataclasses.replace(one, **changes)
    return config.replace(data=dataclasses.replace(data, **own))


def exists(name: str, data: settings.Data) -> bool:
    return name in data.questions or name in data.texts or name in REGISTRY


def names(data: settings.Data) -> tuple[str, ...]:
    """All names that `create` knows, the user's own first."""
    return (*data.questions, *data.texts, *REGISTRY)


def create_all(data: settings.Data) -> dict[str, Task]:
    """The tasks of `data.tasks`, in order."""
    return {name: create(name, data) for name in data.tasks}


def language_tasks(data: settings.Data) -> tuple[str, ...]:
    """Those of `data.tasks` that model a language."""
    return tuple(name for name, task in create_all(data).items() if task.models_language)


def question_tasks(data: settings.Data) -> tuple[str, ...]:
    """Those of `data.tasks` that ask something."""
    return tuple(name for name, task in create_all(data).items() if not task.models_language)


def usable(data: settings.Data) -> list[str]:
    """Names of the registered tasks, of the suites of `data.tasks`, that have samples with these
    settings."""
    return [task.name for task in _of_suites(data) if not task.problem()]


def guess(question: str, data: settings.Data) -> str:
    """The task whose questions have this form: of `data.tasks` first, then of their suites; '' if
    none."""
    for task in (*create_all(data).values(), *_of_suites(data)):
        if task.matches(question):
            return task.name
    return ""


def _of_suites(data: settings.Data) -> Iterator[Task]:
    """All tasks of the suites of `data.tasks`."""
    suites = {task.suite for task in _created(data.tasks, data)} or {Task.suite}
    return (task for task in _created(names(data), data) if task.suite in suites)


def _created(names: Iterable[str], data: settings.Data) -> Iterator[Task]:
    """Tasks of these names; what cannot be created with these settings is left out."""
    for name in names:
        with contextlib.suppress(RmtError):
            yield create(name, data)


def check(config: settings.Config) -> None:
    """Looks up the tasks of `config.data.tasks` (`validation` has checked that there are some).

    Raises:
      ConfigError: for an unknown name, a task without samples, or options or scores that it cannot
        have.
    """
    own = {name: f"config.data.questions.{name}" for name in config.data.questions}
    for name in (*own, *config.data.texts):
        if name in REGISTRY or (name in own and name in config.data.texts):
            field = own.get(name, f"config.data.texts.{name}")
            raise settings.ConfigError(f"{field} has the name of another task: choose another.")
    for name in config.data.task_options:
        if name not in REGISTRY:
            near = difflib.get_close_matches(name, list(REGISTRY), n=1) or config.data.tasks[:1]
            raise settings.ConfigError(
                f"config.data.task_options has options of '{name}', but there is no such task: name"
                f" one, as {near[0]}."
            )
    for name in config.data.tasks:
        try:
            task = create(name, config.data)
            task.options  # noqa: B018 (an option that the task does not have is an error)
        except RmtError as error:
            raise settings.ConfigError(str(error)) from None
        try:
            needless = [rule for rule in map(check_rule, task.rules) if rule in LABEL_RULES]
        except ScoreError as error:
            raise settings.ConfigError(f"The task '{name}': {error}") from None
        if needless and not task.labels:
            raise settings.ConfigError(
                f"The task '{name}' is scored by '{needless[0]}', which looks for labels, and it"
                " has none: give it labels, or rules as 'exact' and 'f1'."
            )
        if problem := task.problem():
            raise settings.ConfigError(problem)
