"""The page of `evaluate --inspect --html`: a text, coloured by what memory did with each token."""

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rmt_jax.files import write_text
from rmt_jax.report import document

CELLS = 400_000  # numbers that a page holds of one text; above, only the mean over rows is kept


@dataclass(frozen=True)
class View:
    """One text with its question, as `web/inspect.js` takes it. Tokens are counted from the text's
    first one on; the question stands behind the text, in the last segment."""

    title: str
    question: str
    answer: str
    target: str | None  # the right answer, where it is known
    tokens: list[list[str]]  # texts of the tokens of each segment
    question_at: int  # the question's first token
    change: list[float]  # relative change of the memory at each segment
    change_label: str  # what of the memory: "layer's associations"
    rows: list[str]  # names of the rows of `values`
    values: list[list[int]]  # [row][token], 0 to 255, where 255 is the row's `scales`
    scales: list[float]
    value_label: str  # "write gate"
    facts: list[tuple[int, int, bool]]  # (first token, behind the last, supports the answer)
    logprob: float  # nats of the answer, after the whole text
    parts: list[tuple[int, int, str, float]]  # (first token, behind the last, kind, nats without)


def quantized(values: np.ndarray, row_label: str) -> tuple[list[str], list[list[int]], list[float]]:
    """Names, numbers and scales of f32[R, n] for a `View`: the mean over rows first."""
    if not values.size:
        return [], [], []
    rows = [values.mean(axis=0)]
    names = ["mean"]
    if len(values) > 1 and values.size <= CELLS:
        rows += list(values)
        names += [f"{row_label} {k + 1}" for k in range(len(values))]
    scales = [max(float(row.max()), 1e-9) for row in rows]
    numbers = [
        np.round(255 * np.clip(row / scale, 0, 1)).astype(int).tolist()
        for row, scale in zip(rows, scales, strict=True)
    ]
    return names, numbers, scales


def write(path: Path, views: Sequence[View], about: str) -> Path:
    """One self-contained page of all views. about: which model, in a sentence."""
    body = (
        f'<h1>Inside the memory</h1><p class="note">{html.escape(about)}</p>'
        '<p hidden><label>Question <select id="question"></select></label></p>'
        '<div id="view"></div>'
    )
    data = [asdict(view) for view in views]
    write_text(path, document.page("Inside the memory", body, ("inspect.js", "pages.js"), data))
    return path
