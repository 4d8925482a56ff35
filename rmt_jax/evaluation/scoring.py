"""From answers to an `EvalResult`: scores, baselines, and what the numbers are about."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax

from rmt_jax import scores
from rmt_jax.data import tasks
from rmt_jax.evaluation.answer_log import AnswerRecord
from rmt_jax.results import EvalResult


def score_answers(
    model: Any,
    records: Sequence[AnswerRecord],
    *,
    task: str,
    length: str,
    perturb: str,
    decoding: str,
    counted_by: str,
    chat: bool = False,
) -> EvalResult:
    """The result of all answers to one task at one length. `counted_by`: whose tokens the length
    names. `chat`: were they asked in the chat template?"""
    asked = tasks.create(task, model.config.data)
    labels, known = asked.labels, known_answers(asked.labels, records)
    # A rule that looks for labels means nothing for other words.
    rules = [rule for rule in asked.rules if known or rule not in scores.LABEL_RULES]
    rules = rules or list(scores.OF_TEXTS)
    rules.sort(key=lambda rule: rule != model.config.evaluation.score)  # that one first
    main = [score_of(rules[0], labels, r, r.output) for r in records]
    targets, tokens = [r.target for r in records], _mean(r.tokens for r in records)
    reset_outputs = [r.reset_output for r in records if r.reset_output is not None]
    return EvalResult(
        task=task,
        length=length,
        samples=len(records),
        right=count_right(rules, labels, records, [r.output for r in records]),
        majority=scores.majority(targets),
        chance=scores.chance(labels, targets),
        tokens=tokens,
        characters=_mean(r.characters for r in records),
        gpt2_tokens=_mean(r.gpt2_tokens for r in records),
        tokenizer=model.tokenizer.name,
        counted_by=counted_by,
        decoding=decoding,
        chat=chat,
        reset=count_right(rules, labels, records, reset_outputs) if reset_outputs else None,
        perturb=perturb,
        trained=covered_by_training(model.config, task, tokens) and not perturb,
        seconds=round(sum(r.seconds for r in records), 2),
        facts=_mean(r.facts for r in records),
        cell=model.config.model.cell,
        memory=memory_numbers(model),
        depths=tuple(
            (round(r.depth, 4), right == 1)
            for r, right in zip(records, main, strict=True)
            if r.depth is not None
        ),
    )


def memory_numbers(model: Any) -> int:
    """How many numbers a text's memory is."""
    return sum(x.size for x in jax.tree.leaves(model.initial_memory().state))


def known_answers(labels: Sequence[str], records: Sequence[AnswerRecord]) -> bool:
    """Are the targets among the labels?"""
    known = set(labels)
    return all(r.target in known or known.issuperset(r.target.split(",")) for r in records)


def score_of(rule: str, labels: Sequence[str], record: AnswerRecord, output: str) -> float:
    """How right an output is by a rule, from 0 to 1, against all right answers of the record; by
    `match_all` against the parts of an answer that is a list."""
    targets = (record.target, *record.other_targets)
    if rule == "match_all" and record.parts:
        targets = record.parts
    return scores.score(rule, labels, record.question, targets, output)


def count_right(
    rules: Iterable[str],
    labels: Sequence[str],
    records: Sequence[AnswerRecord],
    outputs: Sequence[str],
) -> dict[str, float]:
    """The sum of the scores by each rule; `outputs` are the answers to the records' questions."""
    return {
        rule: sum(
            score_of(rule, labels, r, output) for r, output in zip(records, outputs, strict=True)
        )
        for rule in rules
    }


def covered_by_training(config: Any, task: str, tokens: float) -> bool:
    """Was the task trained, at a length of `tokens` or more?"""
    longest = config.longest_segments * config.model.segment_tokens
    return task in config.data.tasks and tokens <= longest


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
