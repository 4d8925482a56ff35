"""Where questions come from: generated texts, bAbI's files, or BABILong's published sets.

A source hands out `Question`s in a fixed order: number k of a task at a length is always the same.
"""

import dataclasses
from pathlib import Path
from typing import Any

from rmt_jax.config import Data
from rmt_jax.data import tokenizer as tokenizers
from rmt_jax.data.babi import files as babi_files
from rmt_jax.data.rows import readers
from rmt_jax.evaluation.chat import Chat
from rmt_jax.evaluation.sources.encoding import (
    answer_room,
    check_tasks,
    context_text,
    encode_question,
    prompt_ids,
    question_ids,
)
from rmt_jax.evaluation.sources.generated import Generated
from rmt_jax.evaluation.sources.published import Published
from rmt_jax.evaluation.sources.question import (
    Question,
    QuestionError,
    QuestionSource,
    question_errors,
)

__all__ = [
    "Generated",
    "Published",
    "Question",
    "QuestionError",
    "QuestionSource",
    "answer_room",
    "check_tasks",
    "context_text",
    "encode_question",
    "open_source",
    "prompt_ids",
    "question_errors",
    "question_ids",
]


def open_source(
    data: str,
    model: Any,
    *,
    split: str = "",
    seed: int | None = None,
    babi: str = "",
    background: str = "",
    background_split: str = "",
    lengths_by: str = "",
    chat: Chat | None = None,
) -> QuestionSource:
    """The source that `--data` names: 'generated', 'official', a folder of bAbI's files, rows of a
    task of the user's own (TASK=FILE), or a published set (a folder, or a name on the hub). chat:
    as for `Generated`. Raises QuestionError."""
    settings = model.config.data
    if own := _own_task(data, settings):
        task, rows = own
        question_file = dataclasses.replace(
            settings.questions[task], train="", validation="", test=rows
        )
        settings = dataclasses.replace(settings, questions={task: question_file})
        data, split = "generated", "test"
    if background:
        settings = dataclasses.replace(settings, background=background)
    if data == "official" or (data != "generated" and babi_files.is_folder_of_files(data)):
        folder = babi if data == "official" else data
        if not (folder or settings.babi_dir):
            raise QuestionError(
                "--data official needs bAbI's text files: name their folder with --babi, or give "
                "a folder of BABILong's own files as --data FOLDER."
            )
        folder = folder or settings.babi_dir
        settings = dataclasses.replace(settings, facts="official", babi_dir=folder)
        split = split or ("test" if babi_files.has_part(folder, "test") else "")
    elif data != "generated":
        if not Path(data).is_dir() and (data.count("/") != 1 or data.startswith((".", "/"))):
            raise QuestionError(
                "--data is 'generated', 'official', a folder, or a dataset on the hub such as "
                f"RMT-team/babilong; there is no folder {data}."
            )
        given = {"--split": split, "--babi": babi, "--background": background}
        given |= {"--background_split": background_split, "--lengths_by": lengths_by}
        unused = [name for name, value in given.items() if value]
        if unused:
            raise QuestionError(
                f"{data} holds finished texts, which {' and '.join(unused)} cannot change: leave "
                "that out."
            )
        return Published(model, data, chat)
    counter = None
    if lengths_by:
        with question_errors():
            counter = tokenizers.load(lengths_by)
    return Generated(
        model,
        split=split or "validation",
        seed=seed,
        data=settings,
        lengths_by=counter,
        background_split=background_split,
        chat=chat,
    )


def _own_task(data: str, settings: Data) -> tuple[str, str] | None:
    """(task, rows) of TASK=FILE, or of rows alone where the model has one task of the user's own;
    None where `data` names no rows. Raises QuestionError."""
    name, _, rows = data.rpartition("=")
    if name in settings.questions:
        return name, rows
    if not (rows.startswith(("hub:", "tfds:")) or Path(rows).suffix in readers.ENDINGS):
        return None
    if not name and len(settings.questions) == 1:
        return next(iter(settings.questions)), rows
    known = ", ".join(settings.questions) or "none"
    raise QuestionError(
        f"--data {data} holds rows of a task, but of which? Write --data TASK={rows}; this model's"
        f" own tasks (config.data.questions) are: {known}."
    )
