"""How the tokenizer in the package was made: `python -m rmt_jax.data.tokenizer_recipe OUT [BOOKS]`.

A byte-level BPE of 4,096 entries, trained on simulated stories of all tasks (so that every bAbI
word with its leading space is one token), on the questions and task descriptions, on the word
lists, and on English text: what every CPython carries, and a folder of public-domain books.
The shipped file was made before the built-in text lost its repeated paragraphs, on 50 novels: made
again today, 4,045 of its 4,096 entries come out the same. Models need the very file they were
trained with, so it stays as it is.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rmt_jax.data import simulator, words
from rmt_jax.data.babi import table
from rmt_jax.data.tokenizer import Tokenizer

ENTRIES = 4096
SPECIAL = {"pad": "<pad>", "answer": "<answer>", "end": "<end>"}
STORIES = 300  # a task
# Words of the tasks that have no simulator, as the official files write them.
OTHERS = """
After that Afterwards Following Then they he she and yesterday this morning afternoon evening
Yesterday before afraid of mouse mice cat cats wolf wolves sheep Gertrude Winona Emily Jessica
gertrude winona emily jessica Mice Cats Wolves Sheep What color is frog lion rhino swan green gray
white yellow Lily Bernhard Brian Julius Greg triangle rectangle square sphere red blue pink above
below to the left right Does fit fits inside in bigger than box of chocolates chest suitcase
container chocolate How do you go from Why did will tired bored hungry thirsty sumit yann jason
antoine Sumit Yann Jason Antoine pajamas garden get cinema park school Julie Bill maybe yes no none
one two three nothing nobody Who has Where was north south east west
"""


def stories() -> Iterator[str]:
    for task in table.SIMULATED:
        for index in range(STORIES):
            story = simulator.simulate_story(task, (7, index))
            yield from (" " + text for text in story.facts)
            yield f" {story.question} {story.answer}"
    for row in table.ROWS.values():
        yield from (" " + text for text in (row.description, *row.paraphrases, *row.questions))
        yield from (" " + label for label in row.labels)


def corpus(books: Path | None, characters: int = 6_000_000) -> Iterator[str]:
    """Lines to train on. Stories are few kinds of sentences; repeating the words that must be one
    token is what makes them so."""
    for _ in range(20):
        yield from stories()
    must = Counter(re.findall(r"\w+", " ".join(stories()))) | Counter(OTHERS.split())
    for _ in range(400):
        yield " " + " ".join(must)
    for kind in ("people", "places", "objects"):
        for _ in range(15):
            yield " " + " ".join(words.words(kind))
    from rmt_jax.data.corpus.documents import builtin

    for _, text in builtin():
        yield text
    files = sorted(books.glob("*.txt")) if books else []
    for path in files:
        yield path.read_text(encoding="utf-8", errors="replace")[: characters // len(files)]


def make(out: Path, books: Path | None = None) -> Tokenizer:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    inner.decoder = decoders.ByteLevel()  # type: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(corpus(books), trainer)
    tokenizer = Tokenizer(inner, "builtin", **SPECIAL)
    tokenizer.save(out)
    return tokenizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes the package's tokenizer.")
    parser.add_argument("out", type=Path)
    parser.add_argument("books", type=Path, nargs="?")
    arguments = parser.parse_args()
    print(make(arguments.out, arguments.books))
