"""An adapter for lm-evaluation-harness (extra `lmeval`): its tasks on our checkpoints.

    pip install 'rmt_jax[lmeval]'
    python -m rmt_jax.lmeval run --model rmt_jax --model_args workdir=RUN --tasks babilong_qa1 …

The second line is the harness's own command line, with this model known to it. Texts of any length
are read in segments, through memory. Scores are the harness's.

- Ranking and perplexity (`loglikelihood`, `loglikelihood_rolling`): the texts as the harness has
  them, on any checkpoint.
- Answers (`generate_until`): the harness's prompts are for chat models: an instruction, two
  examples, the text, the question. A model that was trained on tasks reads the document's text and
  question in the layout that it was trained with, and sees its task prompt as in training; with
  `model_args whole=true` it reads the harness's whole prompt as its text instead, the last line
  being the question. Another one (a hub name) continues the prompt.
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
from rmt_jax.evaluation import answering, likelihood, sources
from rmt_jax.evaluation.answering import EncodedQuestion
from rmt_jax.evaluation.chat import template_of
from rmt_jax.runtime import switches

NEW_TOKENS = 256  # of a continuation, where the harness does not say how many


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
    trained = bool(model.config.data.tasks)
    asked = [_asked(model, r, whole) if trained else _continued(model, r) for r in requests]
    if trained:
        # Not `max_gen_toks`: a longer room would cut the texts otherwise than training did.
        names = [task_of(r, texts_of(r, whole)[1], model.config.data) for r in requests]
        room = sources.answer_room(model, names)
    else:
        rooms = [int(r.args[1].get("max_gen_toks") or NEW_TOKENS) for r in requests]
        room = min(max(rooms, default=1), model.segment_tokens // 2)
    order = np.argsort([len(a.context) for a in asked], kind="stable")
    said, _ = answering.greedy_answers(
        model, [asked[i] for i in order], max_new_tokens=room, batch=batch
    )
    found = [""] * len(asked)
    for place, output in zip(order, said, strict=True):
        found[place] = cut(output, requests[place].args[1].get("until", []))
    return found


def _asked(model: Any, request: Any, whole: bool) -> EncodedQuestion:
    """A request in the layout of training."""
    text, question = texts_of(request, whole)
    task = task_of(request, question, model.config.data)
    return sources.encode_question(model, task, question, text=sources.context_text(text))


def _continued(model: Any, request: Any) -> EncodedQuestion:
    """A request whose prompt is continued as it is."""
    ids = _encoded(model, request.args[0])
    return EncodedQuestion(ids[:-1], ids[-1:], np.zeros(0, np.int32))


def rank(model: Any, requests: Sequence[Any], *, batch: int) -> list[tuple[float, bool]]:
    """(log-probability of the continuation given the context, is it what greedy decoding says) of
    requests with args (context, continuation)."""
    pairs = [_pair(model, *request.args[:2]) for request in requests]
    scores = _scores(model, requests, [np.concatenate(pair) for pair in pairs], batch)
    found = []
    for (context, _), score in zip(pairs, scores, strict=True):
        own = slice(len(context), None)
        found.append((float(score.logprob[own].sum()), bool(score.likeliest[own].all())))
    return found


def roll(model: Any, requests: Sequence[Any], *, batch: int) -> list[float]:
    """Log-probability of whole texts, requests with args (text,)."""
    texts = [np.append(first_token(model), _ids(model, r.args[0])) for r in requests]
    scores = _scores(model, requests, texts, batch)
    return [float(score.logprob.sum(dtype=np.float64)) for score in scores]


def _scores(
    model: Any, requests: Sequence[Any], texts: list[np.ndarray], batch: int
) -> list[likelihood.TextScores]:
    prompts = None
    if model.config.prompt.source != "none":
        prompts = [_asked(model, request, False) for request in requests]
    return likelihood.score_texts(model, texts, batch=batch, prompts=prompts)


def _pair(model: Any, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
    """Their tokens, cut as the harness does: the two together, less what the context has alone;
    spaces at its end belong to the continuation."""
    bare = context.rstrip()
    continuation, context = context[len(bare) :] + continuation, bare
    if not context:
        return np.array([first_token(model)]), _ids(model, continuation)
    before = _ids(model, context)
    return before, _ids(model, context + continuation)[len(before) :]


def _encoded(model: Any, text: str) -> np.ndarray:
    """i32[n], at least one token."""
    ids = _ids(model, text)
    return ids if len(ids) else np.array([first_token(model)], np.int32)


def _ids(model: Any, text: str) -> np.ndarray:
    return text_stream.encode(model.tokenizer, text)


def first_token(model: Any) -> int:
    """What a text begins after, where nothing else stands: the tokenizer's token for that, else the
    one that ends a text."""
    begin = template_of(model)[1].get("bos_token")
    found = None if begin is None else model.tokenizer.inner.token_to_id(begin)
    return model.ends[0] if found is None else found


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
            self.model = api.load(workdir, everywhere=True)
            if not str(batch_size).isdecimal() or not int(batch_size):
                raise HarnessError(f"--batch_size is {batch_size}: give a number of texts, as 8.")
            self.batch = answering.full_batch(int(batch_size), self.model.ways)
            self.whole = str(whole).lower() == "true"

        @property
        def tokenizer_name(self) -> str:
            return self.model.tokenizer.name

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return answers(self.model, requests, batch=self.batch, whole=self.whole)

        def loglikelihood(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            return rank(self.model, requests, batch=self.batch)

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[float]:
            return roll(self.model, requests, batch=self.batch)

    return register_model("rmt_jax")(RmtJax)


def main(argv: list[str]) -> int:
    switches.make_neutral()
    register()
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore

    sys.argv[1:] = argv  # the harness reads its command line there
    cli_evaluate()
    return 0


if __name__ == "__main__":
    cli.run(main)
