"""Reads long texts into memory and lets the model answer: for `evaluate`, `ask` and the harness.

A context of any length is read in blocks of segments, batched over samples; the memory is all that
stays. Texts are cut into segments as in training (`data.segmentation`).
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmt_jax.data import segmentation
from rmt_jax.errors import RmtError
from rmt_jax.evaluation.kept_reading import KeptReading
from rmt_jax.runtime import mesh, switches
from rmt_jax.runtime.preemption import Stopped
from rmt_jax.types import Prompt, Segment

LONG_SEGMENT = 256  # tokens from which it pays to leave out padding of the last one
BLOCK = 64  # segments handed to the model at once: bounds the host's copies, not the result


class AnsweringError(RmtError):
    """A question that cannot be asked; the message is a sentence for the user."""


@dataclass(frozen=True)
class EncodedQuestion:
    """A text and its question, as tokens."""

    context: np.ndarray  # i32[n] or narrower; n = 0 is fine: facts may stand in memory already
    question: np.ndarray  # i32[m]  the question, the ANSWER token
    prompt: np.ndarray  # i32[<= P]  the task prompt
    task_index: int = 0  # of the learned prompts


@dataclass(frozen=True)
class Layout:
    """Where the tokens of one context go: segment k holds those from bounds[k] to bounds[k + 1];
    the question stands behind the last ones. bounds i64[S + 1]."""

    bounds: np.ndarray

    @property
    def segments(self) -> int:
        """Segments read before the last one."""
        return len(self.bounds) - 2

    @property
    def remainder(self) -> int:
        """Tokens of the context that stand before the question, in the last segment."""
        return int(self.bounds[-1] - self.bounds[-2])


def layout(
    context: int,
    question: int,
    max_new_tokens: int,
    segment: int,
    align: str = "left",
    stops: np.ndarray | None = None,
) -> Layout:
    """The layout of a context and a question of these numbers of tokens, with `max_new_tokens` kept
    free for the answer. Raises AnsweringError if question and answer do not fit in one segment."""
    if question + max_new_tokens > segment:
        raise AnsweringError(
            f"The question with its answer takes {question:,} + {max_new_tokens} tokens, but a"
            f" segment of this model holds {segment:,}: ask a shorter question."
        )
    return Layout(
        segmentation.segment_bounds(context, question + max_new_tokens, segment, align, stops)
    )


def full_batch(texts: int, ways: int) -> int:
    """`texts` side by side, or the next number that divides evenly over `ways` devices."""
    return -(-texts // ways) * ways


def model_fingerprint(model: Any) -> str:
    """Sixteen letters for the weights (a thousand numbers of each) and the model's settings."""
    import jax

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        flat = mesh.on_this_host(leaf).ravel()
        sample = flat[:: max(1, flat.size // 1000)].astype(np.float32)
        digest.update(str((jax.tree_util.keystr(path), flat.size)).encode() + sample.tobytes())
    for part in (model.config.model, model.config.prompt):
        digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


def prompts(model: Any, questions: Sequence[EncodedQuestion]) -> Prompt:
    """The batch's task prompts, padded to P tokens; to more, in steps of 8, where a description is
    longer than any in training. Raises AnsweringError for one that the model cannot hold."""
    longest = max(len(q.prompt) for q in questions)
    padded = model.config.prompt.tokens
    if longest > padded:
        most = model.prompt_room
        if longest > most:
            raise AnsweringError(
                f"The task prompt takes {longest} tokens, but this model has room for {most}: "
                "shorten the description."
            )
        padded = min(-(-longest // 8) * 8, most)
    tokens = np.zeros((len(questions), padded), np.int32)
    mask = np.zeros((len(questions), padded), bool)
    for b, q in enumerate(questions):
        tokens[b, : len(q.prompt)] = q.prompt
        mask[b, : len(q.prompt)] = True
        if model.config.prompt.source == "learned":
            mask[b] = True
    return Prompt(tokens, mask, np.array([q.task_index for q in questions], np.int32))


def segment_layouts(
    model: Any, questions: Sequence[EncodedQuestion], max_new_tokens: Sequence[int]
) -> list[Layout]:
    """The layout of each context, as in training; so many tokens are kept free for its answer."""
    size, align, tokenizer = model.segment_tokens, model.config.data.align, model.tokenizer
    return [
        layout(
            len(q.context),
            len(q.question),
            room,
            size,
            align,
            segmentation.sentence_ends(q.context, tokenizer, align),
        )
        for q, room in zip(questions, max_new_tokens, strict=True)
    ]


def read_contexts(
    model: Any,
    questions: Sequence[EncodedQuestion],
    layouts: Sequence[Layout],
    prompt: Prompt,
    memory: Any,
    on_tokens_read: Callable[[int], None] | None = None,
    kept: KeptReading | None = None,
) -> Any:
    """The memory after the contexts, without the tokens that stand before the question. Peak host
    memory does not depend on the contexts' lengths. `on_tokens_read` is called with the number of
    tokens in each block that was read. With `kept`, whole blocks that were read before are not read
    again."""
    size = model.segment_tokens
    total = max(x.segments for x in layouts)
    done = 0
    if kept is not None:
        done, memory = kept.load(memory)
        kept.on_found(int(sum(x.bounds[min(done, x.segments)] for x in layouts)))
    try:
        for start in range(done, total, BLOCK):
            count = min(BLOCK, total - start)
            tokens = np.zeros((len(questions), count, size), np.int32)
            mask = np.zeros(tokens.shape, bool)
            for b, (q, x) in enumerate(zip(questions, layouts, strict=True)):
                fill_segments(q.context, x, start, tokens[b], mask[b])
            done, memory = start + count, model.read(memory, tokens, mask, prompt)
            if on_tokens_read is not None:
                on_tokens_read(int(mask.sum()))
            if kept is not None:
                kept.keep_if_due(done, memory)
    except (Stopped, KeyboardInterrupt):
        if kept is not None:
            kept.keep(done, memory)
        raise
    return memory


def memory_rows(model: Any, memory: Any, rows: Sequence[int]) -> Any:
    """The memory of these texts of a batch, in this order; one may stand more than once."""
    import jax
    import jax.numpy as jnp

    from rmt_jax import models

    axis, which = models.merge(model.graph, model.params).batch_axis, np.asarray(rows)
    state = jax.tree.map(lambda x: jnp.take(x, which, axis=axis), memory.state)
    return memory._replace(state=state, started=jnp.take(memory.started, which))


def fill_segments(
    context: np.ndarray, layout: Layout, start: int, tokens: np.ndarray, mask: np.ndarray
) -> None:
    """Writes segments start, start + 1, … of one context into tokens, mask [count, L]."""
    stop = min(start + len(tokens), layout.segments)
    for k, (begin, end) in enumerate(itertools.pairwise(layout.bounds[start : stop + 1])):
        tokens[k, : end - begin] = context[begin:end]
        mask[k, : end - begin] = True


def last_segments(
    model: Any, questions: Sequence[EncodedQuestion], layouts: Sequence[Layout]
) -> tuple[np.ndarray, np.ndarray]:
    """The last segments, (tokens i32[B, L], mask bool[B, L]): the remainder of the context, the
    question, ANSWER; padded on the right."""
    tokens = np.zeros((len(questions), model.segment_tokens), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for b, (q, x) in enumerate(zip(questions, layouts, strict=True)):
        ids = np.concatenate([q.context[len(q.context) - x.remainder :], q.question])
        tokens[b, : len(ids)] = ids
        mask[b, : len(ids)] = True
    return tokens, mask


def tail_width(mask: np.ndarray) -> int:
    """Places that last segments need which are padded on the right, mask bool[B, L]: of a long
    segment a quarter, half or all of it, so that short texts cost less and few programs compile."""
    longest, size = int(mask.sum(axis=1).max()), mask.shape[1]
    parts = (4, 2, 1) if size >= LONG_SEGMENT else (1,)
    return next(size // part for part in parts if longest <= size // part)


def generate_answers(
    model: Any,
    memory: Any,
    tokens: np.ndarray,
    mask: np.ndarray,
    prompt: Prompt,
    max_new_tokens: Sequence[int],
    sampling: Any = None,
) -> list[str]:
    """Free-running answers, greedy or drawn, of at most so many tokens with END; the texts before
    END, without spaces around."""
    ends, most = answer_ends(model), max(max_new_tokens)
    width = tail_width(mask)
    tokens, mask = tokens[:, :width], mask[:, :width]
    ids = np.asarray(model.generate_from(memory, tokens, mask, prompt, most, ends, sampling))
    each = zip(ids, max_new_tokens, strict=True)
    return [decode_answer(model.tokenizer, answer[:room], ends) for answer, room in each]


def answer_ends(model: Any) -> tuple[int, ...]:
    """Tokens that end an answer: END, and what the checkpoint says."""
    return tuple(dict.fromkeys((model.tokenizer.end, *model.ends)))


def decode_answer(tokenizer: Any, ids: np.ndarray, ends: Sequence[int] = ()) -> str:
    """The text of i32[T] before the first END token, or the first of `ends`."""
    found = np.flatnonzero(np.isin(ids, [tokenizer.end, *ends]))
    before = ids[: found[0]] if len(found) else ids
    return tokenizer.decode([int(i) for i in before]).strip()


@switches.neutral()
def greedy_answers(
    model: Any,
    questions: Sequence[EncodedQuestion],
    *,
    max_new_tokens: int | Sequence[int],
    batch: int,
    reset: bool = False,
    on_tokens_read: Callable[[int], None] | None = None,
    kept: KeptReading | None = None,
) -> tuple[list[str], list[str]]:
    """Free-running greedy answers: (with memory, with the memory reset before each segment; the
    latter empty unless `reset`).

    `batch` texts are read together; a last, smaller batch is filled up, so that each batch size is
    compiled once whatever the lengths. With the memory reset before each segment only the last one
    can matter: that control costs next to nothing.

    Args:
      max_new_tokens: of each answer, END included; one number for all, or one for each.
      kept: of the one batch that `questions` are.
    """

    def answer_batch(
        memory: Any,
        group: Sequence[EncodedQuestion],
        layouts: Sequence[Layout],
        rooms: Sequence[int],
        prompt: Prompt,
    ) -> list[str]:
        tokens, mask = last_segments(model, group, layouts)
        return generate_answers(model, memory, tokens, mask, prompt, rooms)

    return _in_batches(
        model, questions, max_new_tokens, batch, reset, on_tokens_read, kept, answer_batch
    )


def teacher_forced_answers(
    model: Any,
    questions: Sequence[EncodedQuestion],
    targets: Sequence[np.ndarray],
    *,
    max_new_tokens: int | Sequence[int],
    batch: int,
    reset: bool = False,
    on_tokens_read: Callable[[int], None] | None = None,
    kept: KeptReading | None = None,
) -> tuple[list[str], list[str]]:
    """Teacher-forced answers, returned as `greedy_answers` does: each token is the likeliest after
    the true tokens before it. One pass and no loop, but it scores higher than a free-running
    answer. `targets` hold the true ids i32[t] without END."""
    each = zip(questions, targets, _rooms(questions, max_new_tokens), strict=True)
    true = {id(q): np.asarray(t, np.int32)[: room - 1] for q, t, room in each}

    def answer_batch(
        memory: Any,
        group: Sequence[EncodedQuestion],
        layouts: Sequence[Layout],
        rooms: Sequence[int],
        prompt: Prompt,
    ) -> list[str]:
        tokens, mask = last_segments(model, group, layouts)
        start = mask.sum(axis=1) - 1  # the ANSWER token
        # A text that only fills the batch up has no target.
        forced = [true.get(id(q), np.zeros(0, np.int32)) for q in group]
        for b, ids in enumerate(forced):
            tokens[b, start[b] + 1 :][: len(ids)] = ids
            mask[b, start[b] + 1 :][: len(ids)] = True
        likeliest = np.asarray(
            _likeliest_tokens(model)(
                model.params,
                memory,
                Segment(tokens, mask),
                prompt,
                start,
                max_new_tokens=max(rooms),
            )
        )
        # Past the true answer nothing was forced: what END would cut is cut there at the latest.
        return [
            decode_answer(model.tokenizer, likeliest[b, : len(ids) + 1])
            for b, ids in enumerate(forced)
        ]

    return _in_batches(
        model, questions, max_new_tokens, batch, reset, on_tokens_read, kept, answer_batch
    )


@functools.lru_cache(maxsize=1)
def _likeliest_tokens(model: Any) -> Any:
    """Compiled: the likeliest tokens i32[B, max_new_tokens] after places start, start + 1, … of one
    segment."""
    import jax.numpy as jnp

    def run(module, memory, segment, prompt, start, max_new_tokens):
        visible_prompt = None if model.config.prompt.source == "none" else prompt
        hidden, _ = module.step(memory, segment, visible_prompt)
        places = jnp.minimum(start[:, None] + jnp.arange(max_new_tokens), hidden.shape[1] - 1)
        answers = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
        return jnp.argmax(module.backbone.logits(answers), axis=-1)

    return model.compiled(run, static_argnames="max_new_tokens")


def _in_batches(
    model: Any,
    questions: Sequence[EncodedQuestion],
    max_new_tokens: int | Sequence[int],
    batch: int,
    reset: bool,
    on_tokens_read: Callable[[int], None] | None,
    kept: KeptReading | None,
    answer_batch: Callable[..., list[str]],
) -> tuple[list[str], list[str]]:
    outputs: list[str] = []
    reset_outputs: list[str] = []
    every_room = _rooms(questions, max_new_tokens)
    for start in range(0, len(questions), batch):
        group = list(questions[start : start + batch])
        count = len(group)
        first = group[0]
        empty = EncodedQuestion(
            np.zeros(0, np.int32), first.question, first.prompt, first.task_index
        )
        rooms = every_room[start : start + batch] + [every_room[start]] * (batch - count)
        group += [empty] * (batch - count)
        layouts = segment_layouts(model, group, rooms)
        prompt = prompts(model, group)
        initial = model.initial_memory(batch)
        memory = read_contexts(model, group, layouts, prompt, initial, on_tokens_read, kept)
        outputs += answer_batch(memory, group, layouts, rooms, prompt)[:count]
        if reset:
            # Reset the state alone: whether the text has started also decides where a prompt at
            # the start is seen, which is not what this control is about.
            cleared = memory._replace(state=initial.state)
            reset_outputs += answer_batch(cleared, group, layouts, rooms, prompt)[:count]
        if on_tokens_read is not None:
            pairs = zip(group[:count], layouts[:count], strict=True)
            on_tokens_read(sum(x.remainder + len(q.question) for q, x in pairs))
    return outputs, reset_outputs


def _rooms(questions: Sequence[EncodedQuestion], given: int | Sequence[int]) -> list[int]:
    return [given] * len(questions) if isinstance(given, int) else list(given)
