"""The runs that this project's findings rest on: one compressed file of configs and logs.

`docs/experiments.json.xz` holds, per run, `config` (as a run's `config.json`; None where there was
none) and `metrics` (the lines of its `metrics.jsonl`); docs/experiments.csv has a row per run, and
docs/findings.md what they showed. A checkout has them, an installed package does not.
"""

import csv
import difflib
import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmt_jax.files import atomic_path, write_text
from rmt_jax.report.curves import learning_curves
from rmt_jax.report.tables import ReportError

FILE = Path(__file__).resolve().parents[2] / "docs" / "experiments.json.xz"
SHOWN = ("id", "parent", "steps", "million_tokens", "minutes", "what_differs")


def load(file: Path = FILE) -> dict[str, dict[str, Any]]:
    """Run id -> {"config", "metrics"}. Raises ReportError where the file is missing or damaged."""
    try:
        return json.loads(lzma.decompress(file.read_bytes()))
    except FileNotFoundError:
        raise ReportError(
            f"There is no {file}: the runs come with a checkout of the sources, not with the"
            " installed package."
        ) from None
    except (lzma.LZMAError, ValueError) as error:
        raise ReportError(
            f"{file} ({file.stat().st_size:,} bytes) can't be read ({error}): check it out again."
        ) from error


def pick(runs: Mapping[str, Any], name: str) -> Any:
    """A run by its id; ReportError with the nearest ids for one that is not there."""
    if name not in runs:
        near = difflib.get_close_matches(name, runs, n=3, cutoff=0.3)
        hint = f" Near it: {', '.join(near)}." if near else ""
        raise ReportError(
            f"There is no run '{name}' among the {len(runs)}.{hint} Without a name,"
            " `python -m rmt_jax.report --history` lists them."
        )
    return runs[name]


def table(file: Path = FILE) -> str:
    """The columns `SHOWN` of the table of experiments beside `file`, as plain text."""
    with open(file.parent / "experiments.csv", encoding="utf-8", newline="") as lines:
        rows = [[row[name] for name in SHOWN] for row in csv.DictReader(lines)]
    rows.insert(0, list(SHOWN))
    widths = [max(len(row[i]) for row in rows) for i in range(len(SHOWN) - 1)]
    widths[1] = min(widths[1], 24)
    return "\n".join(
        "  ".join([*(_cut(v, w).ljust(w) for v, w in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def draw(names: Sequence[str], out: Path, file: Path = FILE) -> list[Path]:
    """Writes `out/ID/` per run: `config.json`, `metrics.jsonl` and the learning curves."""
    runs = load(file)
    chosen = {name: pick(runs, name) for name in names}
    paths = []
    for name, run in chosen.items():
        metrics, config = out / name / "metrics.jsonl", out / name / "config.json"
        write_text(metrics, "".join(f"{json.dumps(line)}\n" for line in run["metrics"]))
        paths.append(metrics)
        if run["config"] is not None:
            write_text(config, f"{json.dumps(run['config'], indent=1)}\n")
            paths.append(config)
        if any("loss" in line for line in run["metrics"]):  # one that taught gates has none
            paths += learning_curves(metrics, out / name / "curves.png", title=name)
    return paths


def add(name: str, folder: Path, file: Path = FILE) -> None:
    """Puts the run in `folder` into `file` under the id `name`, or in that run's place."""
    found = {part: folder / part for part in ("config.json", "metrics.jsonl")}
    missing = [part for part, path in found.items() if not path.is_file()]
    if missing:
        raise ReportError(f"{folder} has no {' and no '.join(missing)}: name the folder of a run.")
    lines = found["metrics.jsonl"].read_text(encoding="utf-8").splitlines()
    run = {
        "config": json.loads(found["config.json"].read_text(encoding="utf-8")),
        "metrics": [json.loads(line) for line in lines if line.strip()],
    }
    runs = load(file) | {name: run}
    packed = lzma.compress(json.dumps(runs, separators=(",", ":")).encode(), preset=9)
    with atomic_path(file) as hidden:
        hidden.write_bytes(packed)
