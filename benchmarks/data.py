"""How fast samples are made: `python benchmarks/data.py [--background DIR] [--tokenizer DIR]`.

Three tables: composing at each length, against tokenising each time, in the same run; memory; and
batches for training. Goals on one core: 5 million tokens a second at 32k, a 10M-token sample in
10 seconds, memory that does not grow with the corpus.
"""

import argparse
import json
import resource
import time

from rmt_jax.config import OFFICIAL, Config, Data, Facts, Model, Stage
from rmt_jax.data import simulator, tokenizer
from rmt_jax.data.compose import Composer
from rmt_jax.data.corpus import background, documents
from rmt_jax.data.lengths import Length
from rmt_jax.data.loader import Loader
from rmt_jax.data.rng import AddressedRng

TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")


def naive(texts: list[list[str]], tokens, story, budget: int, rng: AddressedRng) -> list[int]:
    """The straightforward way: split sentences are at hand as text; tokenise until it is full."""
    facts = [tokens.encode(" " + fact) for fact in story.facts]
    room = budget - sum(map(len, facts))
    book = rng.pick(texts)
    at, hay = rng.below(len(book)), []
    while room > 0:
        ids = tokens.encode(" " + book[at % len(book)])
        at += 1
        if len(ids) >= background.MIN_TOKENS:
            hay.append(ids[:room])
            room -= len(hay[-1])
    places = sorted(rng.below(len(hay) + 1) for _ in facts)
    out, done = [], 0
    for place, ids in zip(places, facts, strict=True):
        for sentence in hay[done:place]:
            out += sentence
        out += ids
        done = place
    for sentence in hay[done:]:
        out += sentence
    return out


def composing(data: Data, tokens, seconds: float) -> list[dict]:
    composer = Composer(data, tokens, "train")
    texts = [
        documents.sentences(text if data.background == "builtin" else documents.read(text))
        for _, _, text in documents.documents(data.background)[:5]
    ]
    rows = []
    for name in ("0k", "1k", "4k", "32k", "128k", "1M", "10M"):
        budget = Length.parse(name, 512).tokens
        made, count, start = 0, 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            made += len(composer.sample("qa1", name, 0, count).context)
            count += 1
        ours = time.perf_counter() - start
        row = {"length": name, "tokens/s": made / ours, "ms/sample": 1000 * ours / count}
        if 0 < budget <= 128_000:
            made, start = 0, time.perf_counter()
            index = 0
            while time.perf_counter() - start < seconds:
                story = simulator.simulate_story("qa1", (0, index))
                made += len(naive(texts, tokens, story, budget, AddressedRng(0, index)))
                index += 1
            row["tokens/s, tokenising each time"] = made / (time.perf_counter() - start)
            row["times faster"] = row["tokens/s"] / row["tokens/s, tokenising each time"]
        rows.append(row)
    return rows


def batches(data: Data, tokens, seconds: float) -> list[dict]:
    rows = []
    for segments, length, facts, questions, hidden in (
        (1, 64, Facts(2, 6), (1.0, 0.5, 0.2), 0.0),
        (1, 128, Facts(2, 6), (1.0, 0.5, 0.2), 0.5),
        (4, 256, OFFICIAL, (0.0,), 1.0),
        (4, 512, OFFICIAL, (0.0,), 1.0),
        (32, 512, OFFICIAL, (0.0,), 1.0),
    ):
        config = Config(
            model=Model(cell="rmt", segment_tokens=length),
            data=data,
            stages=(
                Stage(
                    segments=segments,
                    steps=10**6,
                    batch=32,
                    learning_rate=1e-3,
                    facts=(facts,),
                    question_rates=questions,
                    background=hidden,
                ),
            ),
        )
        loader = Loader(config, tokens, "train")
        made, count, start = 0, 0, time.perf_counter()
        while time.perf_counter() - start < seconds or count < 2:
            made += loader.batch_at(count).tokens.size
            count += 1
        spent = time.perf_counter() - start
        rows.append(
            {
                "batch": f"32 x up to {segments} x {length}",
                "facts": facts or "official",
                "questions": questions,
                "batches/s": count / spent,
                "tokens/s": made / spent,
            }
        )
    return rows


def stories(seconds: float) -> list[dict]:
    rows = []
    for task in ("qa1", "qa2", "qa3", "qa4", "qa5"):
        count, facts, start = 0, 0, time.perf_counter()
        while time.perf_counter() - start < seconds / 4:
            facts += len(simulator.simulate_story(task, (0, count)).facts)
            count += 1
        spent = time.perf_counter() - start
        rows.append({"task": task, "stories/s": count / spent, "facts/s": facts / spent})
    return rows


def table(title: str, rows: list[dict]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    print(f"\n{title}\n\n| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in rows:
        cells = [
            f"{v:,.0f}" if isinstance(v, float) and v >= 100 else f"{v:.2f}"
            if isinstance(v, float) else str(v) for v in (row.get(name, "") for name in names)
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")


def peak() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast samples are made.")
    parser.add_argument("--background", default="builtin")
    parser.add_argument("--tokenizer", default="builtin")
    parser.add_argument("--seconds", type=float, default=2.0, help="a measurement")
    parser.add_argument("--json", default="", help="also write the figures here")
    args = parser.parse_args()
    tokens = tokenizer.load(args.tokenizer)
    data = Data(TASKS, background=args.background, tokenizer=args.tokenizer)

    start = time.perf_counter()
    hay = background.load(args.background, tokens, "train")
    print(
        f"background {args.background}, {tokens}: {len(hay.tokens):,} tokens in "
        f"{hay.sentences:,} sentences (train), ready in {time.perf_counter() - start:.1f} s"
    )
    found = {
        "stories": stories(args.seconds),
        "composing": composing(data, tokens, args.seconds),
        "batches": batches(data, tokens, args.seconds),
    }
    table("Stories", found["stories"])
    table("Composing", found["composing"])
    table("Batches", found["batches"])
    print(f"\npeak memory {peak():,.0f} MB")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({**found, "peak_mb": peak()}, file, indent=1)


if __name__ == "__main__":
    main()
