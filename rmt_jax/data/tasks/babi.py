"""bAbI's twenty tasks (Weston et al. 2015), qa1 to qa20: simulated or from the official files.

`config.data.facts` and `babi_dir` say where stories come from; `data.babi` has the table of tasks,
the files and the sources, `data.simulator` the simulator.
"""

import functools
import re
from collections.abc import Iterable
from pathlib import Path

from rmt_jax import config
from rmt_jax.data import words
from rmt_jax.data.babi import stories, table
from rmt_jax.data.babi.official import Official
from rmt_jax.data.story import Story, StoryOptions
from rmt_jax.data.tasks import Task, register
from rmt_jax.data.tokenizer import Tokenizer


class Babi(Task):
    """One of the twenty. `source` replaces the stories that the settings name."""

    def __init__(self, row: table.Row, data: config.Data, source: stories.Stories | None = None):
        super().__init__(data)
        self.row, self.name, self.description = row, row.name, row.description
        self.paraphrases, self.labels = row.paraphrases, row.labels
        self.question_forms = tuple(_pattern(form) for form in row.questions)
        self.wrong_descriptions = tuple(
            other.description for other in table.ROWS.values() if other.labels != row.labels
        )
        self.fact_words = words.every_official()
        self.source = source or stories.stories(data)

    @property
    def seed(self) -> int:
        return self.row.number

    def sample(self, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        return self.source.story(self.name, split, seed, index, options)

    def answer_tokens(self, tokenizer: Tokenizer, renamed: bool = False) -> int:
        found = [super().answer_tokens(tokenizer)]
        if self._lists:
            found = [_three(found[0])]
        for kind in words.Names._fields if renamed else ():
            named = (*words.words(kind), *words.words(kind, held_out=True))
            most = max(len(tokenizer.sentence(word)) for word in named)
            found.append(_three(most) if self._lists and kind == "objects" else most)
        return max(found)

    @property
    def _lists(self) -> bool:
        """Are answers lists of objects?"""
        return self.name == "qa8"

    def problem(self) -> str:
        if self.data.facts == "simulated" and not self.row.simulated:
            return (
                f"{self.name} has no simulator: {', '.join(table.SIMULATED)} have. Take its facts"
                " from the official files: config.data.facts=official, or in evaluation"
                " --data official --babi FOLDER."
            )
        return ""

    def questions(self, split: str) -> int | None:
        source = self.source
        return len(source.items(self.name, split)) if isinstance(source, Official) else None

    def files(self) -> Iterable[Path]:
        if self.data.facts == "simulated":
            return ()
        return sorted(Path(self.data.babi_dir).glob("qa*.txt"))


def _three(tokens: int) -> int:
    """Tokens of a list of three and its commas."""
    return 3 * tokens + 2


@functools.cache
def _pattern(form: str) -> str:
    """'Where is P?' as a regular expression: P a name, L and O a word or a few, D a direction."""
    parts = {
        "P": r"(?!(?:the|The)\b)\w+",
        "L": r"\w+(?: \w+)?",
        "O": r"\w+(?: \w+){0,2}",
        "D": r"(?:north|south|east|west)",
    }
    pattern = "".join(parts.get(w, re.escape(w)) for w in re.split(r"\b([PLOD])\b", form))
    return pattern.replace(r"\?", r" ?\?")


for _row in table.ROWS.values():
    register(_row.name)(functools.partial(Babi, _row))
