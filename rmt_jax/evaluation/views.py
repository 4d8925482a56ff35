"""What memory did with one text and its question, for a page: `evaluate --inspect`, `ask --web`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rmt_jax.evaluation import answering, attribution, tracing
from rmt_jax.evaluation.answering import EncodedQuestion
from rmt_jax.evaluation.streaming import UNFINISHED
from rmt_jax.report import inspect_page
from rmt_jax.report.inspect_page import View
from rmt_jax.runtime import switches


@switches.neutral()
def view(
    model: Any,
    asked: EncodedQuestion,
    room: int,
    *,
    title: str,
    question: str,
    target: str | None = None,
    facts: Sequence[tuple[int, int]] = (),
    supporting: Sequence[int] = (),
    on_work: Callable[[int], None] | None = None,
) -> View:
    """Reads a text, answers (greedily, with `room` tokens), and looks at what the answer rests on.
    `on_work` is called now and then, with a count that grows."""
    seen = tracing.trace(model, asked, room)
    answer = greedy_ids(model, asked, room)
    rests = attribution.attribute(model, asked, answer, room, on_work)
    # [R, n], the text's tokens one after another and the question behind them.
    values = np.moveaxis(seen.token_values, 1, 0)[:, seen.mask]
    names, numbers, scales = inspect_page.quantized(values, seen.row_label)
    return View(
        title=title,
        question=question,
        answer=answering.decode_answer(model.tokenizer, answer, answering.answer_ends(model)),
        target=target,
        tokens=[
            token_texts(model.tokenizer, tokens[mask].tolist())
            for tokens, mask in zip(seen.tokens, seen.mask, strict=True)
        ],
        question_at=len(asked.context),
        change=[round(float(x), 5) for x in seen.change.mean(axis=1)],
        change_label=seen.state_row_label,
        rows=names,
        values=numbers,
        scales=scales,
        value_label=seen.value_label,
        facts=[(start, stop, k in supporting) for k, (start, stop) in enumerate(facts)],
        logprob=round(rests.logprob, 5),
        parts=[(p.start, p.stop, p.kind, round(p.logprob, 5)) for p in rests.parts],
    )


def greedy_ids(model: Any, asked: EncodedQuestion, room: int) -> np.ndarray:
    """The greedy answer, i32[t]: what comes before END, or that alone where nothing does."""
    layout = answering.segment_layouts(model, [asked], [room])
    prompt = answering.prompts(model, [asked])
    memory = model.initial_memory(1)
    memory = answering.read_contexts(model, [asked], layout, prompt, memory)
    tail = answering.last_segments(model, [asked], layout)
    ends = answering.answer_ends(model)
    ids = np.asarray(model.generate_from(memory, *tail, prompt, room, ends))[0]
    found = np.flatnonzero(np.isin(ids, ends))
    return ids[: max(int(found[0]), 1)] if len(found) else ids


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; joined, they are the text of all. Of a letter in several tokens the
    last one has it."""
    texts, start, shown = [], 0, ""
    for k in range(len(ids)):
        text = tokenizer.decode(list(ids[start : k + 1]))
        if text.endswith(UNFINISHED):
            texts.append("")
            continue
        texts.append(text[len(shown) :])
        # A token alone may lose the space before it: the next is decoded behind this one.
        start, shown = k, tokenizer.decode([ids[k]])
        if shown.startswith(UNFINISHED):  # the end of a letter that began before it
            start, shown = k + 1, ""
    return texts
