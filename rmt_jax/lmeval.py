"""An adapter for lm-evaluation-harness (extra `lmeval`): its BABILong tasks on our checkpoints.

    pip install 'rmt_jax[lmeval]'
    python -m rmt_jax.lmeval run --model rmt_jax --model_args workdir=RUN --tasks babilong_qa1 …

The second line is the harness's own command line, with this model known to it. The harness's
prompts are for chat models: an instruction, two examples, the text, the question. Ours reads the
document's text and question in the layout that it was trained with, and sees its task prompt as in
training; with `model_args whole=true` it reads the harness's whole prompt as its text instead, the
last line being the question. Scores (target in output) are the harness's.
"""

import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmt_jax import api, cli
from rmt_jax.config import Data
from rmt_jax.data import tasks, text_stream
from rmt_jax.errors import RmtError
from rmt_jax.evaluation import answering, sources


class HarnessError(RmtError):
    """A request of the harness that this model cannot serve; the message is a sentence."""


def texts_of(request: Any, whole: bool) -> tuple[str, str]:
    """(text, question) of a request: the document's, or the prompt cut before its last line."""
    doc = request.doc if isinstance(request.doc, dict) else {}
    if not whole and "input" in doc and "question" in doc:
        return doc["input"], doc["question"]
    before, _, last = request.args[0].strip().rpartition("\n")
    return before, last


def task_of(request: Any, question: str, data: Data) -> str:
    """Our task that the harness's task is named after ('babilong_qa1'); for other tasks what the
    question's form says, else the first of `data.tasks`."""
    words = re.split(r"[^A-Za-z0-9]+", str(getattr(request, "task_name", "") or ""))
    named = [word for word in words if tasks.exists(word, data)]
    if named:
        return named[-1]
    return tasks.guess(question, data) or (tasks.question_tasks(data) or data.tasks)[0]


def answers(model: Any, requests: Sequence[Any], *, batch: int, whole: bool) -> list[str]:
    """Greedy answers, cut at the harness's stop texts. Texts of like lengths are read together."""
    asked, names = [], []
    for request in requests:
        text, question = texts_of(request, whole)
        task = task_of(request, question, model.config.data)
        names.append(task)
        one = sources.encode_question(model, task, question)
        context = text_stream.encode(model.tokenizer, sources.context_text(text))
        asked.append(answering.EncodedQuestion(context, one.question, one.prompt, one.task_index))
    order = np.argsort([len(a.context) for a in asked], kind="stable")
    # Not `max_gen_toks`: a longer room would cut the texts otherwise than training did.
    room = sources.answer_room(model, names)
    said, _ = answering.greedy_answers(
        model, [asked[i] for i in order], max_new_tokens=room, batch=batch
    )
    found = [""] * len(asked)
    for place, output in zip(order, said, strict=True):
        found[place] = cut(output, requests[place].args[1].get("until", []))
    return found


def cut(output: str, until: Any) -> str:
    for stop in [until] if isinstance(until, str) else until or []:
        if stop and stop in output:
            output = output[: output.index(stop)]
    return output


def register() -> Any:
    """Makes the harness know the model `rmt_jax`; returns its class. Raises HarnessError where the
    harness is not installed."""
    try:
        from lm_eval.api.model import LM  # pyright: ignore
        from lm_eval.api.registry import register_model  # pyright: ignore
    except ImportError as error:
        raise HarnessError(
            "lm-evaluation-harness is not installed: pip install 'rmt_jax[lmeval]'."
        ) from error

    class RmtJax(LM):
        """`workdir`: any checkpoint that rmt_jax.load takes."""

        def __init__(self, workdir: str, batch_size: int = 8, whole: bool = False, **_: Any):
            super().__init__()
            self.model = api.load(workdir)
            if not str(batch_size).isdecimal() or not int(batch_size):
                raise HarnessError(f"--batch_size is {batch_size}: give a number of texts, as 8.")
            self.batch, self.whole = int(batch_size), str(whole).lower() == "true"

        @property
        def tokenizer_name(self) -> str:
            return self.model.tokenizer.name

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return answers(self.model, requests, batch=self.batch, whole=self.whole)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False):
            raise HarnessError(
                "This model answers questions; it does not rank given texts: use tasks of the kind "
                "generate_until, such as babilong_qa1 to babilong_qa20."
            )

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False):
            return self.loglikelihood(requests, disable_tqdm)

    return register_model("rmt_jax")(RmtJax)


def main(argv: list[str]) -> int:
    register()
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore

    sys.argv[1:] = argv  # the harness reads its command line there
    cli_evaluate()
    return 0


if __name__ == "__main__":
    cli.run(main)
