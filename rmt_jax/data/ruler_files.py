"""RULER's files (arXiv 2404.06654): a JSON object a line, as its scripts write and read them.

    OUT/4096/data/niah_single_1/test.jsonl

| field                 | holds                                                                  |
|-----------------------|------------------------------------------------------------------------|
| index                 | the number of the sample                                               |
| input                 | instruction, text and question; for vt and cwe a worked example first  |
| outputs               | all that the answer must hold                                          |
| length                | tokens of input, answer_prefix and the room for the answer             |
| length_w_model_temp   | the same with a chat template, of which there is none                  |
| answer_prefix         | the beginning of the answer, which a model goes on from                |
| token_position_answer | needles: tokens of input before the first answer                       |

A file's length is RULER's: 4k is 4,096 tokens, of which a sample fills as many as it can. White
space in a text is single, as RULER's `--remove_newline_tab` has it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rmt_jax import config
from rmt_jax.data import tasks, tokenizer
from rmt_jax.data.compose import Composer, Sample
from rmt_jax.data.errors import DataError
from rmt_jax.data.lengths import Length
from rmt_jax.data.tasks.ruler import Niah, Ruler
from rmt_jax.data.tokenizer import Tokenizer
from rmt_jax.files import atomic_open, write_text

TASKS = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe",
)  # fmt: skip
K = 1024  # tokens
EXAMPLES = 1 << 30  # from this number on samples are worked examples


class Writer:
    """Samples of one split as RULER's records, of any length."""

    def __init__(self, data: config.Data, words: Tokenizer, split: str, seed: int = 0):
        self.data, self.words, self.split, self.seed = data, words, split, seed
        self.composer = Composer(data, words, split)

    def records(self, task: str, tokens: int, which: range) -> Iterator[dict[str, Any]]:
        """Records of `tokens` tokens at most. Raises DataError where none fits."""
        made = ruler_task(self.composer.tasks[task])
        for index in which:
            yield self.record(made, tokens, index)

    def record(self, task: Ruler, tokens: int, index: int) -> dict[str, Any]:
        example = self.example(task, tokens, index)
        budget = tokens - task.tokens_to_generate - len(self.words.encode(example))
        budget -= 40 + len(self.words.encode(task.instruction))  # about what the question takes
        fitting: dict[str, Any] = {}
        while budget > 0:  # each time by what was left over, until nothing more fits
            length = Length(str(budget), budget)
            sample = self.composer.sample(task.name, length, self.seed, index)
            found = record(task, sample, index, self.words, example)
            left = tokens - found["length"]
            if left < 0 and fitting or fitting.get("length") == found["length"]:
                break
            fitting = found if left >= 0 else {}
            budget += left
            if left == 0:
                break
        if not fitting:
            raise DataError(f"{task.name}: no sample fits in {tokens} tokens: take a longer one.")
        return fitting

    def example(self, task: Ruler, tokens: int, index: int) -> str:
        """The worked example in front of a text of `tokens` tokens; '' for a task without."""
        options = task.example_options(tokens)
        if not options:
            return ""
        data = replace(self.data, tasks=(task.name,), task_options={task.name: options})
        composer = Composer(data, self.words, self.split)
        shown, budget = ruler_task(composer.tasks[task.name]), task.example_tokens
        while True:
            length = Length(str(budget), budget)
            sample = composer.sample(task.name, length, self.seed, EXAMPLES + index)
            found = record(shown, sample, index, self.words)
            over = found["length"] - shown.tokens_to_generate - task.example_tokens
            if not task.example_tokens or over <= 0:
                answer = shown.example_answer(sample.parts)
                return f"{found['input']}{found['answer_prefix']} {answer}"
            budget -= over
            if budget < 1:
                raise DataError(f"{task.name}: no example fits in {task.example_tokens} tokens.")


def record(
    task: Ruler, sample: Sample, index: int, words: Tokenizer, example: str = ""
) -> dict[str, Any]:
    """A sample as RULER writes it."""
    text = " ".join(words.decode(sample.context).split())
    asked = f"{example}{task.instruction}{text}\n{task.lead}{sample.question}"
    prefix = task.answer_prefix(sample.question)
    length = len(words.encode(asked + prefix)) + task.tokens_to_generate
    found = {
        "index": index,
        "input": asked,
        "outputs": list(sample.parts),
        "length": length,
        "length_w_model_temp": length,
        "answer_prefix": prefix,
    }
    if isinstance(task, Niah):
        before = asked[: asked.index(sample.parts[0])]
        found["token_position_answer"] = len(words.encode(before))
    return found


def ruler_task(task: tasks.Task) -> Ruler:
    """Raises DataError for a task that RULER does not have."""
    if not isinstance(task, Ruler):
        raise DataError(f"RULER has no task '{task.name}': its tasks are {', '.join(TASKS)}.")
    return task


def parse_length(text: str) -> int:
    """'4096' or '4k', RULER's 4,096 tokens. Raises DataError for anything else."""
    match = re.fullmatch(r"([1-9]\d*)(k?)", text)
    if not match:
        raise DataError(f"A length of RULER's is a number of tokens, 4096 or 4k, not {text!r}.")
    return int(match[1]) * (K if match[2] else 1)


def write(
    out: Path,
    names: Sequence[str],
    lengths: Sequence[str],
    samples: int,
    *,
    data: config.Data,
    split: str,
    seed: int,
) -> list[Path]:
    """A file per task and length; returns their paths. One that is there already, of the same
    settings, is kept; each appears whole or not at all.

    Raises DataError for an unknown task or length, or a file of other settings.
    """
    sizes = [parse_length(length) for length in lengths]
    data = replace(data, tasks=tuple(names))
    for task in tasks.create_all(data).values():
        ruler_task(task)
    writer = Writer(data, tokenizer.load(data.tokenizer), split, seed)
    about = {"samples": samples, "seed": seed, "split": split, "background": data.background}
    about |= {"tokenizer": data.tokenizer, "options": config.to_dict(data.task_options)}
    paths = []
    for size in sizes:
        for name in names:
            path = out / str(size) / "data" / name / f"{split}.jsonl"
            note = out / ".done" / f"ruler-{size}-{name}-{split}.json"
            paths.append(path)
            if path.is_file() and note.is_file():
                if json.loads(note.read_text(encoding="utf-8")) != about:
                    raise DataError(
                        f"{path} was made with other settings ({note}): choose another --out, or"
                        " remove it first."
                    )
                continue
            with atomic_open(path) as file:
                for found in writer.records(name, size, range(samples)):
                    file.write(json.dumps(found) + "\n")
            write_text(note, json.dumps(about, indent=1))
    return paths
