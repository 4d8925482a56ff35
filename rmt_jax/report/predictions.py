"""Per-sample answers in the files that BABILong's leaderboard takes.

`{org}/{model}/{task}_{length}_{settings}.csv` with columns (index), target, output, question, and
a .json of the same name with `prompt` and `generate_kwargs`. The settings' words are the
leaderboard's: instruction (our task description), examples and post-prompt (we use none).
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmt_jax.report.tables import replace


def write(folder: Path, name: str, job: Any, rows: Sequence[Any], model: Any) -> list[Path]:
    """The two files of one cell, below `folder`; `name` is 'ORG/MODEL'. With the memory-reset
    control, its outputs go to `reset/` in the same form. A perturbed or teacher-forced cell never
    stands among the plain ones."""
    source = model.config.prompt.source
    told = "yes" if source in ("description", "both") else "no"
    settings = f"instruction_{told}_examples_no_post_prompt_no"
    stem = f"{job.task}_{job.length}_{settings}"
    kind = "_".join(p for p in (job.perturb, job.decoding.replace("greedy", "")) if p)
    base = folder / kind / name if kind else folder / name
    paths = [base / f"{stem}.csv", base / f"{stem}.json"]
    base.mkdir(parents=True, exist_ok=True)
    replace(paths[0], table((r.target, r.output, r.question) for r in rows))
    replace(paths[1], json.dumps(settings_of(job, model), indent=4) + "\n")
    if any(r.control for r in rows):
        control = folder / "_".join(p for p in ("reset", kind) if p) / name
        control.mkdir(parents=True, exist_ok=True)
        paths.append(control / f"{stem}.csv")
        replace(paths[-1], table((r.target, r.control, r.question) for r in rows))
    return paths


def table(rows: Any) -> str:
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
