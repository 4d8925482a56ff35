"""Questions as tokens, in the layout of training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmt_jax.data import compose, perturb, prompts, tasks, text_stream
from rmt_jax.data.lengths import Length
from rmt_jax.evaluation.answering import EncodedQuestion
from rmt_jax.evaluation.chat import SENTENCE, Chat
from rmt_jax.evaluation.sources.question import QuestionError, question_errors


def prompt_ids(prompt: Any, tokenizer: Any, description: str, question: str) -> np.ndarray:
    """i32[n] of the task prompt, without padding. `prompt` is the config's section."""
    words = prompts.text(prompt.source, description, " ".join(question.split()))
    return np.asarray(tokenizer.sentence(words) if words else (), np.int32)


def question_ids(tokenizer: Any, question: str) -> np.ndarray:
    """i32[m]: the question and the ANSWER token."""
    return np.asarray([*tokenizer.sentence(" ".join(question.split())), tokenizer.answer], np.int32)


def context_text(text: str) -> str:
    """A text as contexts are written in training: single spaces, one in front."""
    return " " + " ".join(text.split())


def encode_question(
    model: Any,
    task: str,
    question: str,
    perturbation: str = "",
    number: int = 0,
    description: str = "",
    text: str = "",
    chat: Chat | None = None,
) -> EncodedQuestion:
    """A question and the text that it is asked of. `number`: of the sample, which a perturbation of
    the description is drawn by. `description`: of this sample alone, in place of its task's. chat:
    text, description and question are one message, and there is no task prompt. Raises
    QuestionError."""
    config, learned = model.config, 0
    with question_errors():
        described = tasks.create(task, config.data)
        if not description or perturbation in perturb.DESCRIPTIONS:
            description = perturb.description(perturbation, described, number)
    if chat is not None:
        context, after = chat.encoded(model.tokenizer, text, f"{description} {question}")
        return EncodedQuestion(context, after, np.zeros(0, np.int32))
    if config.prompt.source == "learned":
        if task not in config.data.tasks:
            raise QuestionError(
                f"This model has learned prompts for {', '.join(config.data.tasks)}, not {task}."
            )
        learned = config.data.tasks.index(task)
    ids = prompt_ids(config.prompt, model.tokenizer, description, question)
    context = text_stream.encode(model.tokenizer, text)
    return EncodedQuestion(context, question_ids(model.tokenizer, question), ids, learned)


def answer_room(
    model: Any, asked: Sequence[str] = (), renamed: bool = False, chat: Chat | None = None
) -> int:
    """Tokens for an answer, END included: those of training, or more where the tasks `asked` need
    it. More than that would cut texts otherwise than training did. In a chat a sentence's."""
    if chat is not None:
        return min(SENTENCE, model.segment_tokens // 4)
    data = model.config.data
    names = dict.fromkeys((*data.tasks, *asked))
    with question_errors():
        found = [tasks.create(name, data) for name in names]
        renamed = renamed or data.new_names > 0
        return compose.longest_answer(found, model.tokenizer, renamed, data.unknown_rate > 0)


def check_tasks(names: Sequence[str], data: Any) -> tuple[str, ...]:
    """Task names. Raises QuestionError for one that neither the registry nor `data`, the config's
    section, knows."""
    with question_errors():
        for name in names:
            tasks.create(name, data)
    return tuple(names)


def parse_length(length: str, model: Any) -> Length:
    with question_errors():
        return Length.parse(length, model.segment_tokens)


def nominal_tokens(length: str, model: Any) -> int:
    """About how many tokens a text of this length has; 100 where it is facts alone."""
    return parse_length(length, model).tokens or 100


def reads_descriptions(model: Any, chat: Chat | None = None) -> bool:
    """Does the model read its task's description?"""
    return chat is not None or model.config.prompt.source in ("description", "both")
