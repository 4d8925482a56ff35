"""Tasks that a config declares itself: question-and-answer files, and texts for language modelling.

    Data(
        tasks=("tickets", "novels"),
        questions={"tickets": Questions(train="tickets.jsonl", description="Say who has to act.")},
        texts={"novels": Texts(train="novels/")},
    )

The name of an entry is the name of its task.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rmt_jax.config.setting import FrozenDict, freeze, setting

SOURCE = (
    "a .jsonl, .json, .csv or .parquet file, hub:NAME[:CONFIG]:SPLIT (a dataset on the Hugging Face"
    " hub), or tfds:NAME:SPLIT (TensorFlow Datasets: a name, or the folder of a built one)"
)


@dataclass(frozen=True)
class Questions:
    """A task made of rows: a context, a question about it, and its answer or right answers."""

    train: str = setting("", f"Rows to train on: {SOURCE}.", path=True)
    validation: str = setting(
        "", "Rows to validate on; empty: a tenth of the contexts of `train`, by a hash.", path=True
    )
    test: str = setting(
        "", "Rows to test on; empty: a tenth of the contexts of `train`.", path=True
    )
    description: str = setting("", "The task prompt: a sentence that says what is asked.")
    paraphrases: tuple[str, ...] = setting(
        (), "The description in other words, for the perturbation `paraphrase`."
    )
    layout: str = setting(
        "plain",
        "How a row is laid out. plain: context, question, answer; babilong: input, question,"
        " target; squad: context, question, answers.text; longbench: context, input, answers.",
        choices=("plain", "babilong", "squad", "longbench"),
    )
    fields: Mapping[str, str] = setting(
        FrozenDict(),
        "Other names of a row's fields: {context: ticket, answer: team}. A dot goes"
        " into an object.",
    )
    question: str = setting("", "The question of every row, where rows have none.")
    labels: tuple[str, ...] = setting((), "All answers that there are; empty: any text.")
    scores: tuple[str, ...] = setting(
        (), "Scores by name, the main one first; one of your own as module:function."
    )
    longer: str = setting(
        "cut_end",
        "What becomes of a context longer than the longest stage in training: its beginning or its"
        " end is cut off, or its row is left out.",
        choices=("cut_beginning", "cut_end", "leave_out"),
    )
    hide: bool = setting(
        False,
        "Hide the sentences of the context in background text, so that texts have any length.",
    )
    answer_tokens: int = setting(
        0,
        "Longest answer; rows with a longer one are left out. 0: the longest in the data.",
        unit="tokens",
        least=0,
    )

    def __post_init__(self):
        freeze(self)


@dataclass(frozen=True)
class Texts:
    """A task that models a language: every token of a text is predicted from those before it."""

    train: str = setting(
        "",
        "Texts to train on: a folder of .txt files (each a text) and .jsonl files (each row a"
        " text), one such file, or builtin.",
        path=True,
    )
    validation: str = setting(
        "",
        "The same, to validate on; empty: a tenth of the texts of `train`, by a hash.",
        path=True,
    )
    test: str = setting(
        "", "The same, to test on; empty: a tenth of the texts of `train`.", path=True
    )
    description: str = setting("Continue the text.", "The task prompt.")
    field: str = setting("text", "Field of a row of a .jsonl file that holds the text.")

    def __post_init__(self):
        freeze(self)
