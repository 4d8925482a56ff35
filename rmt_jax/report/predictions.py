"""Every answer in the files that BABILong's leaderboard takes.

`{org}/{model}/{task}_{length}_{settings}.csv` with columns (index), target, output, question, and
a .json of the same name with `prompt` and `generate_kwargs`. The settings' words are the
leaderboard's: instruction (our task description), examples and post-prompt (we use none).
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rmt_jax.files import write_text


def write(folder: Path, name: str, job: Any, records: Sequence[Any], model: Any) -> list[Path]:
    """The two files of one task and length, below `folder`; returns the files written.

    With the memory-reset control, its outputs go to `reset/` in the same form. Perturbed and
    teacher-forced answers have folders of their own, apart from the plain ones.

    Args:
      name: 'ORG/MODEL'.
      job: an `evaluation.runner.EvalJob`.
      records: its answers, each an `evaluation.answer_log.AnswerRecord`.
    """
    described = model.config.prompt.source in ("description", "both")
    settings = f"instruction_{'yes' if described else 'no'}_examples_no_post_prompt_no"
    stem = f"{job.task}_{job.length}_{settings}"
    kind = "_".join(p for p in (job.perturb, job.decoding.replace("greedy", "")) if p)
    base = folder / kind / name if kind else folder / name
    paths = [base / f"{stem}.csv", base / f"{stem}.json"]
    base.mkdir(parents=True, exist_ok=True)
    write_text(paths[0], csv_text((r.target, r.output, r.question) for r in records))
    write_text(paths[1], json.dumps(settings_of(job, model), indent=4) + "\n")
    if any(r.reset_output for r in records):
        reset = folder / "_".join(p for p in ("reset", kind) if p) / name
        reset.mkdir(parents=True, exist_ok=True)
        paths.append(reset / f"{stem}.csv")
        write_text(paths[-1], csv_text((r.target, r.reset_output, r.question) for r in records))
    return paths


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """A numbered row per question: target, output, question."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["", "target", "output", "question"])
    writer.writerows([i, *row] for i, row in enumerate(rows))
    return out.getvalue()


def settings_of(job: Any, model: Any) -> dict[str, Any]:
    config = model.config
    return {
        "prompt": {
            "instruction": f"task prompt: {config.prompt.source}, seen at: {config.prompt.place}",
            "examples": "",
            "post_prompt": "",
            "template": "{context} {question} ANSWER",
        },
        "generate_kwargs": {"num_beams": 1, "do_sample": False, "temperature": None},
        "decoding": job.decoding,
        "cell": config.model.cell,
        "memory_tokens": config.model.memory_tokens,
        "segment_tokens": config.model.segment_tokens,
    }
