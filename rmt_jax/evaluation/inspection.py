"""Pictures and numbers of what memory does while one text is read: `evaluate --inspect`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmt_jax.data.tasks import question_tasks
from rmt_jax.evaluation import answering, tracing, views
from rmt_jax.report import inspect_page, inspection
from rmt_jax.runtime import switches


@switches.neutral()
def inspect_memory(
    model: Any,
    source: Any,
    tasks: Sequence[str],
    lengths: Sequence[str],
    out: Path,
    html: bool = False,
) -> list[Path]:
    """A picture and a .json of the first question of each task at the last of `lengths`, into
    `out`, or, as `html`, one page of all of them; returns the files written. What is left out comes
    from the model's config."""
    if html:
        return [write_page(model, source, tasks, lengths, out)]
    length = (list(lengths) or list(model.config.evaluation.lengths))[-1]
    paths = []
    for task in tasks or question_tasks(model.config.data):
        question = source.ask(task, length, range(1))[0]
        trace = tracing.trace(model, question.encoded)
        answers, _ = answering.greedy_answers(
            model, [question.encoded], max_new_tokens=source.room(task), batch=1
        )
        stem = out / f"{task}_{length}"
        asked = f"{question.question} {question.target}"
        paths += inspection.draw_trace(
            trace,
            stem.with_suffix(".png"),
            title=f"{task.upper()} at {length}: {asked} (answered: {answers[0] or 'nothing'})",
            facts=tracing.read_spans(trace, question.facts),
            supporting=question.supporting,
            decode=lambda token: model.tokenizer.decode([token]),
        )
        numbers = {
            "question": question.question,
            "target": question.target,
            "answer": answers[0],
            "facts": question.facts,
            "supporting": question.supporting,
            "change": trace.change.round(5).tolist(),
        }
        stem.with_suffix(".json").write_text(json.dumps(numbers), encoding="utf-8")
        paths.append(stem.with_suffix(".json"))
    return paths


def write_page(
    model: Any, source: Any, tasks: Sequence[str], lengths: Sequence[str], out: Path
) -> Path:
    """`inspect.html` in `out`: texts coloured token by token, and what the answers rest on."""
    length = (list(lengths) or list(model.config.evaluation.lengths))[-1]
    found = []
    for task in tasks or question_tasks(model.config.data):
        question = source.ask(task, length, range(1))[0]
        found.append(
            views.view(
                model,
                question.encoded,
                source.room(task),
                title=f"{task.upper()} at {length}",
                question=question.question,
                target=question.target,
                facts=question.facts,
                supporting=question.supporting,
            )
        )
    about = (
        f"{model.config.model.cell} memory, {model.config.model.backbone} backbone,"
        f" segments of {model.segment_tokens} tokens."
    )
    out.mkdir(parents=True, exist_ok=True)
    return inspect_page.write(out / "inspect.html", found, about)
