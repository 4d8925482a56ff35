"""Read long texts into memory and let the model answer: `evaluate`, `ask`, the harness do it here.

A context of any length is read in blocks of segments, batched over samples; the memory is all that
stays. The layout is that of training, `data.cuts`.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmt_jax.data import segmentation
from rmt_jax.types import Prompt, Segment

BLOCK = 64  # segments handed to the model at once: bounds the host's copies, not the result


class AnsweringError(ValueError):
    """A question that cannot be asked; the message is a sentence for the user."""


@dataclass(frozen=True)
class Asked:
    """A text and its question, as tokens."""

    context: np.ndarray  # i32[n] or narrower; n = 0 is fine: facts may stand in memory already
    tail: np.ndarray  # i32[m]  the question, the ANSWER token
    prompt: np.ndarray  # i32[<= P]
    task: int = 0  # row of the learned prompts


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
    def kept(self) -> int:
        """Tokens that stand before the question in the last segment."""
        return int(self.bounds[-1] - self.bounds[-2])


def layout(
    context: int,
    tail: int,
    room: int,
    segment: int,
    align: str = "left",
    stops: np.ndarray | None = None,
) -> Layout:
    """`data.cuts.layout` with `room` for the answer. Raises AnsweringError if the question and its
    answer do not fit in one segment."""
    if tail + room > segment:
        raise AnsweringError(
            f"The question with its answer takes {tail:,} + {room} tokens, but a segment of this "
            f"model holds {segment:,}: ask a shorter question."
        )
    return Layout(segmentation.layout(context, tail + room, segment, align, stops))


def mark(model: Any) -> str:
    """Sixteen letters that tell these weights and this config from others."""
    import jax

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        flat = np.asarray(leaf).ravel()
        some = flat[:: max(1, flat.size // 1000)].astype(np.float32)
        digest.update(str((jax.tree_util.keystr(path), flat.size)).encode() + some.tobytes())
    for part in (model.config.model, model.config.prompt):
        digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


def prompts(model: Any, asked: Sequence[Asked]) -> Prompt:
    """The batch's task prompts, padded to P tokens; to more, in steps of 8, where a description is
    longer than any in training. Raises AnsweringError for one that the model cannot hold."""
    config = model.config
    longest = max(len(a.prompt) for a in asked)
    room = config.prompt.tokens
    if longest > room:
        room, m = -(-longest // 8) * 8, config.model
        most = m.segment_tokens
        if m.positions == "learned":
            most = min(most, m.max_positions - 2 * m.memory_tokens - m.segment_tokens)
        if longest > max(most, config.prompt.tokens):
            raise AnsweringError(
                f"The task prompt takes {longest} tokens, but this model has room for {most}: "
                "shorten the description."
            )
        room = min(room, most)
    tokens = np.zeros((len(asked), room), np.int32)
    mask = np.zeros((len(asked), room), bool)
    for b, a in enumerate(asked):
        tokens[b, : len(a.prompt)] = a.prompt
        mask[b, : len(a.prompt)] = True
        if model.config.prompt.source == "learned":
            mask[b] = True
    return Prompt(tokens, mask, np.array([a.task for a in asked], np.int32))


def aligned(model: Any, asked: Sequence[Asked], room: int) -> list[Layout]:
    size, align, tokenizer = model.segment_tokens, model.config.data.align, model.tokenizer
    return [
        layout(
            len(a.context),
            len(a.tail),
            room,
            size,
            align,
            segmentation.ends(a.context, tokenizer, align),
        )
        for a in asked
    ]


def read(
    model: Any,
    asked: Sequence[Asked],
    layouts: Sequence[Layout],
    prompt: Prompt,
    memory: Any,
    tick: Callable[[int], None] | None = None,
) -> Any:
    """The memory after the contexts, without the tokens that stand before the question. Peak host
    memory does not depend on the contexts' lengths. `tick` hears how many tokens were read."""
    size = model.segment_tokens
    total = max(x.segments for x in layouts)
    for start in range(0, total, BLOCK):
        count = min(BLOCK, total - start)
        tokens = np.zeros((len(asked), count, size), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for b, (a, x) in enumerate(zip(asked, layouts, strict=True)):
            cut(a.context, x, start, tokens[b], mask[b])
        memory = model.read(memory, tokens, mask, prompt)
        if tick is not None:
            tick(int(mask.sum()))
    return memory


def cut(context: np.ndarray, x: Layout, start: int, tokens: np.ndarray, mask: np.ndarray) -> None:
    """Fills segments start, start + 1, … of one context into tokens, mask [count, L]."""
    stop = min(start + len(tokens), x.segments)
    for row, (begin, end) in enumerate(itertools.pairwise(x.bounds[start : stop + 1])):
        tokens[row, : end - begin] = context[begin:end]
        mask[row, : end - begin] = True


def tails(
    model: Any, asked: Sequence[Asked], layouts: Sequence[Layout]
) -> tuple[np.ndarray, np.ndarray]:
    """The last segments, (tokens i32[B, L], mask bool[B, L]): what is left of the context, the
    question, ANSWER; padded on the right."""
    tokens = np.zeros((len(asked), model.segment_tokens), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for b, (a, x) in enumerate(zip(asked, layouts, strict=True)):
        kept = a.context[len(a.context) - x.kept :] if x.kept else a.context[:0]
        row = np.concatenate([kept, a.tail])
        tokens[b, : len(row)] = row
        mask[b, : len(row)] = True
    return tokens, mask


def generate(
    model: Any, memory: Any, tokens: np.ndarray, mask: np.ndarray, prompt: Prompt, room: int
) -> list[str]:
    """Greedy, free-running answers, cut at the END token; without spaces around."""
    ids = np.asarray(
        model.generate_from(
            memory, tokens, mask, prompt, max_new_tokens=room, end=model.tokenizer.end
        )
    )
    return [text(model.tokenizer, row) for row in ids]


def text(tokenizer: Any, ids: np.ndarray) -> str:
    """The words before the first END token."""
    ends = np.flatnonzero(ids == tokenizer.end)
    kept = ids[: ends[0]] if len(ends) else ids
    return tokenizer.decode([int(i) for i in kept]).strip()


def answer(
    model: Any,
    asked: Sequence[Asked],
    *,
    room: int,
    batch: int,
    reset: bool = False,
    tick: Callable[[int], None] | None = None,
) -> tuple[list[str], list[str]]:
    """Free-running greedy answers: (with memory, with the memory reset at each segment; the latter
    empty unless `reset`).

    `batch` texts are read together; a last, smaller batch is filled up, so that each batch size is
    compiled once whatever the lengths. With the memory reset at every segment, only the last one
    can matter: that control costs next to nothing.
    """

    def ask(memory: Any, group: Sequence[Asked], layouts: Sequence[Layout], prompt: Prompt):
        return generate(model, memory, *tails(model, group, layouts), prompt, room)

    return _in_batches(model, asked, room, batch, reset, tick, ask)


def forced(
    model: Any,
    asked: Sequence[Asked],
    answers: Sequence[np.ndarray],
    *,
    room: int,
    batch: int,
    reset: bool = False,
    tick: Callable[[int], None] | None = None,
) -> tuple[list[str], list[str]]:
    """Teacher-forced answers, as `answer` gives them: each token is the likeliest after the true
    tokens before it. One pass and no loop, but kinder than a free-running answer. `answers` hold
    the true ids i32[t] without END."""
    true = {id(a): np.asarray(t, np.int32)[: room - 1] for a, t in zip(asked, answers, strict=True)}

    def ask(memory: Any, group: Sequence[Asked], layouts: Sequence[Layout], prompt: Prompt):
        tokens, mask = tails(model, group, layouts)
        at = mask.sum(axis=1) - 1  # the ANSWER token
        for b, a in enumerate(group):
            told = true.get(id(a), np.zeros(0, np.int32))
            tokens[b, at[b] + 1 :][: len(told)] = told
            mask[b, at[b] + 1 :][: len(told)] = True
        ids = _predicted(model)(model.params, memory, Segment(tokens, mask), prompt, at, room)
        # Past the true answer nothing was forced: what END would cut is cut there at the latest.
        rows = []
        for b, a in enumerate(group):
            rows.append(text(model.tokenizer, np.asarray(ids[b])[: len(true.get(id(a), [])) + 1]))
        return rows

    return _in_batches(model, asked, room, batch, reset, tick, ask)


@functools.lru_cache(maxsize=1)
def _predicted(model: Any) -> Any:
    """Compiled: the likeliest tokens i32[B, room] after places at, at + 1, … of one segment."""
    import jax
    import jax.numpy as jnp

    from rmt_jax import models

    def run(params, memory, segment, prompt, at, room):
        module = models.merge(model.graph, params)
        told = None if model.config.prompt.source == "none" else prompt
        hidden, _ = module.step(memory, segment, told)
        places = jnp.minimum(at[:, None] + jnp.arange(room), hidden.shape[1] - 1)
        some = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
        return jnp.argmax(module.backbone.logits(some), axis=-1)

    return jax.jit(run, static_argnums=5)


def _in_batches(
    model: Any,
    asked: Sequence[Asked],
    room: int,
    batch: int,
    reset: bool,
    tick: Callable[[int], None] | None,
    ask: Callable[..., list[str]],
) -> tuple[list[str], list[str]]:
    outputs: list[str] = []
    controls: list[str] = []
    for start in range(0, len(asked), batch):
        real = list(asked[start : start + batch])
        empty = Asked(np.zeros(0, np.int32), real[0].tail, real[0].prompt, real[0].task)
        group = real + [empty] * (batch - len(real))
        layouts = aligned(model, group, room)
        prompt = prompts(model, group)
        fresh = model.initial_memory(batch)
        memory = read(model, group, layouts, prompt, fresh, tick)
        outputs += ask(memory, group, layouts, prompt)[: len(real)]
        if reset:
            # Reset the state alone: whether the text has started also decides where a prompt at
            # the start is seen, which is not what this control is about.
            blank = memory._replace(state=fresh.state)
            controls += ask(blank, group, layouts, prompt)[: len(real)]
        if tick is not None:
            tick(sum(x.kept + len(a.tail) for a, x in zip(real, layouts, strict=False)))
    return outputs, controls
