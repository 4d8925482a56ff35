"""A record as rows: which of its fields is the context, the question, the answer."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rmt_jax.config import Questions
from rmt_jax.data.errors import DataError

LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "plain": {"context": "context", "question": "question", "answer": "answer"},
    "babilong": {"context": "input", "question": "question", "answer": "target"},
    "squad": {"context": "context", "question": "question", "answer": "answers.text"},
    "longbench": {"context": "context", "question": "input", "answer": "answers"},
}
PARTS = ("context", "question", "answer")


class Row(NamedTuple):
    """Texts with white space made single, as contexts are written everywhere."""

    place: str  # 'tickets.jsonl, line 12'
    context: str
    question: str
    answers: tuple[str, ...]  # right ones, the first is trained on; none: cannot be answered
    id: str = ""  # '' for a record without


def rows(record: Any, place: str, source: Questions) -> Iterator[Row]:
    """The rows of a record: one, or of SQuAD's nested files one per question.

    Raises DataError with the place, what is wrong, and the fields that there are.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{place}: a row is an object with fields, but this is {_kind(record)}.")
    if source.layout == "squad" and "paragraphs" in record:
        try:
            flat = [
                {
                    **asked,
                    "context": paragraph["context"],
                    "answers": {"text": [answer["text"] for answer in asked["answers"]]},
                }
                for paragraph in record["paragraphs"]
                for asked in paragraph["qas"]
            ]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{place}: not laid out as SQuAD's files are: paragraphs with context and qas,"
                f" these with question and answers ({type(error).__name__}: {error})."
            ) from None
        yield from (_row(one, place, source) for one in flat)
        return
    yield _row(record, place, source)


def _row(record: Mapping[str, Any], place: str, source: Questions) -> Row:
    names = {**LAYOUTS[source.layout], **source.fields}
    context = _text(_field(record, names["context"], place), place, names["context"])
    if source.question and not _has(record, names["question"]):
        question = " ".join(source.question.split())
    else:
        question = _text(_field(record, names["question"], place), place, names["question"])
    answers = _answers(_field(record, names["answer"], place), place, names["answer"])
    if source.labels:
        for answer in answers:
            _check_label(answer, source, place)
    known = record.get("id")
    return Row(place, context, question, answers, "" if known is None else str(known))


def _answers(value: Any, place: str, name: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        return (_text(value, place, name),)
    return tuple(dict.fromkeys(_text(one, place, name) for one in value))


def _field(record: Mapping[str, Any], name: str, place: str) -> Any:
    value: Any = record
    for key in [name] if name in record else name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise DataError(
                f"{place}: no field '{name}'; there are {', '.join(map(str, record)) or 'none'}."
                " Say which is meant with config.data.questions.NAME.fields."
            )
        value = value[key]
    return value


def _has(record: Mapping[str, Any], name: str) -> bool:
    value: Any = record
    for key in [name] if name in record else name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def _text(value: Any, place: str, name: str) -> str:
    """A text; numbers and truth values are written as JSON writes them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{place}: the field '{name}' holds {_kind(value)} and no text.")
    text = " ".join(value.split())
    if not text:
        raise DataError(f"{place}: the field '{name}' is empty.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: the field '{name}' holds half a character ({text[error.start]!a}), which is"
            " no text."
        ) from None
    return text


def _check_label(answer: str, source: Questions, place: str) -> None:
    if answer not in source.labels:
        raise DataError(
            f"{place}: the answer {answer!r} is none of the labels {', '.join(source.labels)}: mend"
            " the row, or add it to config.data.questions.NAME.labels."
        )


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    if value is None:
        return "null"
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else "a value")
