"""results.json as a page to read: tables, plots, how to repeat."""

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import LENGTHS, SIZES, cases
from rmt_jax.models import costs

# What is written by hand stands below this line of RESULTS.md and survives a new run.
HAND = "<!-- below this line: written by hand -->"
NAMES = {
    "ours": "rmt_jax",
    "best": "PyTorch, best form",
    "published": "PyTorch, as published",
    "preset": "rmt_jax, the preset itself",
    "remat": "rmt_jax, rematerialised",
}

HEAD = """# rmt_jax beside PyTorch

Written by `python -m benchmarks.run`; the figures are in `results.json`.

- **rmt_jax**: `rmt_jax.steps.make_train_step` and `rmt_jax.api`, as they are, on GPT-2's block or a
  Llama's (smollm2).
- **PyTorch, best form** (`benchmarks/peer.py`): Hugging Face's `GPT2LMHeadModel`, or
  `LlamaForCausalLM`, in a loop over segments with memory embeddings at both ends, SDPA attention
  without a mask array, each segment under `torch.compile`, logits at answer places only, fused
  AdamW. Answers are decoded with Hugging Face's cache, not compiled.
- **PyTorch, as published**: the same loop, but logits of all segments made, kept and joined before
  the answer's are picked; nothing compiled; an attention mask passed along; AdamW without fusion.

Both sides have the same shapes, random texts and AdamW settings; gradients flow through all
segments and are clipped at 1. Seconds are medians over rounds, least and most in brackets; a round
goes through the contenders in turn, each in a process of its own while the others wait on a pipe. A
turn begins with a call that is not timed, as in use, where one follows another; three or more are
timed (one, where it takes more than five seconds), and their median is the round's.
"""


def seconds(entry: dict[str, Any]) -> float:
    return median(entry["seconds"])


def line(name: str, case: dict[str, Any]) -> str:
    """One case on one line, for the terminal."""
    parts = [f"{side} {_cell(entry)}" for side, entry in case["contenders"].items()]
    return f"{name:22s} " + " · ".join(parts)


def write(results: dict[str, Any], out: Path) -> None:
    """RESULTS.md and images/ in `out`; what stands below `HAND` stays."""
    file = out / "RESULTS.md"
    old = file.read_text(encoding="utf-8") if file.is_file() else ""
    hand = old.partition(HAND)[2] if HAND in old else "\n"
    images = _plots(results["cases"], out / "images")
    parts = [HEAD, _machine(results["machine"])]
    for kind, title in (
        ("train", "Train step"),
        ("read", "Reading"),
        ("answer", "Latency of an answer of 4 tokens, after reading"),
    ):
        table = _table(results, kind)
        if table:
            parts += [f"## {title}\n", table, images.get(kind, "")]
    parts += [_sizes(), HAND]
    file.write_text("\n".join(part for part in parts if part) + hand, encoding="utf-8")


def _machine(m: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{k} {m[k]}" for k in ("python", "jax", "torch", "transformers") if k in m
    )
    where = "float32" if m["device"] == "cpu" else f"bfloat16 on {m.get('kind', m['device'])}"
    if m["clock"] == "cpu":
        where += "; **CPU seconds on one core**, not time on the clock: others used the machine"
    return (
        f"Machine: {m['cores']} cores of {m['cpu']}, {m['memory'] / 2**30:.0f} GiB; {where}; "
        f"{versions}; `GLIBC_TUNABLES={m['allocator']}` for all.\n\n"
        "Repeat with `pip install -e '.[bench]' && python -m benchmarks.run`, or a part of it with "
        "`--only 'train/base/*'`.\n"
    )


def _table(results: dict[str, Any], kind: str) -> str:
    rows = [(n, results["cases"][n]) for n in _order() if n in results["cases"]]
    rows = [(name, case) for name, case in rows if name.startswith(kind + "/")]
    if not rows:
        return ""
    sides = [s for s in NAMES if any(s in c["contenders"] or s in c["left_out"] for _, c in rows)]
    ratios = [s for s in ("best", "published") if s in sides and "ours" in sides]
    head = ["case", "texts", "rounds", *(f"{NAMES[s]}, s" for s in sides)]
    head += [f"{NAMES[s]} / ours" for s in ratios]
    head += ["tokens/s, ours", "peak GiB: " + " · ".join(NAMES[s] for s in sides)]
    peak = results["machine"].get("peak_flops")
    if kind == "train" and peak:
        head.append("FLOPs utilisation, ours · best")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, case in rows:
        sided, lost = case["contenders"], case["left_out"]
        ours, first = sided.get("ours"), next(iter(sided.values()))
        texts = sorted({str(e["batch"]) for e in sided.values()}, key=int)
        row = [name.partition("/")[2], ", ".join(texts), str(len(first["seconds"]))]
        row += [_cell(sided[s]) if s in sided else _absent(lost, s) for s in sides]
        row += [f"{_ratio(sided[s], ours):.2f}" if s in sided and ours else "" for s in ratios]
        row.append(f"{ours['tokens'] / seconds(ours):,.0f}" if ours else "")
        row.append(" · ".join(_gib(sided[s]["peak"]) if s in sided else "–" for s in sides))
        if kind == "train" and peak:
            used = [_flops(name, sided[s]) / peak for s in ("ours", "best") if s in sided]
            row.append(" · ".join(f"{100 * u:.0f} %" for u in used))
        lines.append("| " + " | ".join(row) + " |")
    notes = sorted({f"{NAMES[s]}: {w}" for _, c in rows for s, w in c["left_out"].items()})
    return "\n".join(lines) + "\n" + "".join(f"\nLeft out: {note}.\n" for note in notes)


def _ratio(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    """Time for the same tokens, theirs over ours: above 1 we are faster."""
    return seconds(theirs) / theirs["tokens"] / (seconds(ours) / ours["tokens"])


def _flops(name: str, entry: dict[str, Any]) -> float:
    """Model FLOP/s of a train step."""
    from benchmarks.ours import config_of

    config = config_of(SIZES[name.split("/")[1]])
    return costs.train_flops(config) * entry["tokens"] / seconds(entry)


def _cell(entry: dict[str, Any]) -> str:
    middle, times = seconds(entry), entry["seconds"]
    digits = 1 if middle >= 10 else 2 if middle >= 1 else 4
    return f"{middle:.{digits}f} ({min(times):.{digits}f}–{max(times):.{digits}f})"


def _absent(left_out: dict[str, str], side: str) -> str:
    return "left out" if side in left_out else ""


def _gib(peak: int | None) -> str:
    return f"{peak / 2**30:.2f}" if peak else "–"


def _order() -> list[str]:
    names = [case.name for device in (False, True) for case in cases(device)]
    return list(dict.fromkeys(sorted(names, key=lambda n: list(SIZES).index(n.split("/")[1]))))


def _sizes() -> str:
    lines = ["## Sizes\n", "| size | layers | width | heads | vocabulary | segment | memory |"]
    lines.append("|" + "---|" * 7)
    for name, s in SIZES.items():
        row = (name, s.layers, s.width, s.heads, f"{s.vocab:,}", s.segment, s.memory)
        lines.append("| " + " | ".join(str(cell) for cell in row) + " |")
    return "\n".join(lines) + "\n"


def _plots(found: dict[str, Any], folder: Path) -> dict[str, str]:
    """Markdown of the images that could be made, by kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    images = {}
    train = [n for n in _order() if n.startswith("train/") and n in found]
    if train:
        figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
        for place, side in enumerate(("best", "published")):
            bars = [
                (i + 0.38 * place, _ratio(c["contenders"][side], c["contenders"]["ours"]))
                for i, c in enumerate(found[n] for n in train)
                if side in c["contenders"] and "ours" in c["contenders"]
            ]
            if bars:
                axes.bar(*zip(*bars, strict=True), width=0.36, label=NAMES[side])
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks([i + 0.19 for i in range(len(train))])
        axes.set_xticklabels([n.partition("/")[2] for n in train])
        axes.set(ylabel="time, theirs / ours", xlabel="size / segments", title="Train step")
        axes.legend(frameon=False)
        images["train"] = _save(figure, folder, "train.png", "Train step: time relative to ours")
    read = {label: found.get(f"read/small/{label}") for label in LENGTHS}
    read = {label: case for label, case in read.items() if case}
    if len(read) > 1:
        figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        for side in ("ours", "best", "published"):
            points = [
                (LENGTHS[label], case["contenders"][side])
                for label, case in read.items()
                if side in case["contenders"]
            ]
            if not points:
                continue
            lengths = [n for n, _ in points]
            rates = [e["tokens"] / seconds(e) for _, e in points]
            speed.plot(lengths, rates, "o-", label=NAMES[side])
            peaks = [(n, e["peak"] / 2**30) for n, e in points if e["peak"]]
            if peaks:
                memory.plot(*zip(*peaks, strict=True), "o-", label=NAMES[side])
        for axes, label in ((speed, "tokens/s, one text"), (memory, "peak memory, GiB")):
            axes.set(xscale="log", xlabel="tokens of the text", ylabel=label)
            axes.set_ylim(bottom=0)
        figure.legend(
            *speed.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
        )
        images["read"] = _save(figure, folder, "reading.png", "Reading: speed and memory")
    return images


def _save(figure: Any, folder: Path, name: str, words: str) -> str:
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return f"![{words}](images/{name})\n"
