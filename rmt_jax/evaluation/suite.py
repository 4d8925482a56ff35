"""All that a paper's table needs, in one report: `evaluate --suite paper`.

Trained lengths, longer ones, tasks never trained on (described by their prompt), and the
perturbations.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmt_jax import report
from rmt_jax.api import Model
from rmt_jax.data import perturb
from rmt_jax.data.tasks import question_tasks
from rmt_jax.evaluation import runner
from rmt_jax.evaluation.sources import QuestionError
from rmt_jax.models.cells import CELLS
from rmt_jax.report import page
from rmt_jax.runtime import startup


def paper_suite(
    model: Model,
    source: Any,
    *,
    tasks: Sequence[str] = (),
    lengths: Sequence[str] = (),
    perturbations: Sequence[str] = (),
    rule: str = "",
    references: bool = False,
    out: Path,
    **options: Any,
) -> list[Path]:
    """Runs the suite and returns the files of its report; parts are written and printed as they are
    finished, in a cluster by its first process.

    Args:
      tasks, lengths, perturbations: instead of those trained on, those up to sixteen times the
        longest of training, and all that `source` has.
      rule: the score to show first.
      references: published curves behind ours.
      options: passed on to `runner.evaluate`.

    Raises what `runner.evaluate` raises; but a part whose questions cannot be had is left out, and
    the report says why.
    """
    config = model.config
    tasks = list(tasks or question_tasks(config.data))
    longest = config.longest_segments
    doubled = {1 << k for k in range(longest.bit_length())}
    trained = [f"{s}s" for s in sorted({*(stage.segments for stage in config.stages), *doubled})]
    longer = [f"{longest * k}s" for k in (2, 4, 8, 16)]
    perturbations = perturbations or source.perturbations()
    for perturbation in perturbations:  # a wrong name is an error now, not after hours of work
        source.check(perturbation)
    sections: list[page.Section] = []

    def evaluate(title: str, text: str, references: bool = False, **questions: Any) -> None:
        try:
            results = runner.evaluate(model, source=source, out=out, **(options | questions))
        except QuestionError as error:
            print(f"\n{title}: left out. {error}")
            sections.append(page.Section(title, f"{text} Left out: {error}", []))
            return
        if not startup.owner():
            return
        section = page.Section(title, text, results)
        report.write(
            results,
            out / section.folder_name,
            rule=rule,
            title="" if title == "Lengths" else title,
            references=references,
        )
        print(f"\n{title}\n{report.table(results, rule)}")
        sections.append(section)

    evaluate(
        "Lengths",
        "Trained lengths, and longer ones than any in training.",
        references,
        tasks=tasks,
        lengths=lengths or [*trained, *longer],
    )
    unseen = [t for t in source.tasks() if t not in config.data.tasks]
    if unseen and config.prompt.source in ("description", "both", "question"):
        evaluate(
            "Unseen tasks",
            "Tasks never trained on; the model knows of them what their prompt says.",
            tasks=unseen,
            lengths=trained[:1],
        )
    for perturbation in perturbations:
        evaluate(
            f"Perturbed {perturbation}",
            perturb.PERTURBATIONS[perturbation],
            tasks=tasks,
            lengths=trained[:1] + trained[-1:] if len(trained) > 1 else trained,
            perturb=[perturbation],
        )
    if not startup.owner():
        return []
    return page.write(out, sections, describe_model(model), rule=rule)


def describe_model(model: Model) -> str:
    """What is evaluated, in a sentence."""
    m, p, d = model.config.model, model.config.prompt, model.config.data
    longest = model.config.longest_segments
    return (
        f"Memory cell {m.cell}, {m.layers} layers of width {m.width}, {CELLS[m.cell].describe(m)},"
        f" segments of {m.segment_tokens} tokens; trained on {', '.join(d.tasks)} up to {longest}"
        f" segments ({longest * m.segment_tokens:,} tokens); task prompt: {p.source}, seen at:"
        f" {p.place}; tokenizer: {model.tokenizer.name}."
    )
