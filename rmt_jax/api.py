"""`rmt_jax.load`: a trained model to read texts of any length with, and to ask.

    import rmt_jax
    model = rmt_jax.load("FOLDER_OR_HUB_NAME")
    memory = model.initial_memory(batch_size=2)
    memory = model.read(memory, tokens)
    logits, memory = model.forward(tokens)
    model.answer("Mary went to the garden.", "Where is Mary?")

Arrays are numpy or JAX alike; what comes back is on the device, except generated tokens.
"""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rmt_jax import checkpoint_tokenizer, models, placement
from rmt_jax import config as settings
from rmt_jax.models import generate, pipeline, recurrence, schedule
from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.cells import Memory
from rmt_jax.models.inputs import (
    check_memory,
    checked_prompt,
    checked_tail,
    checked_tokens,
    head_and_tail,
    prompt_room,
    whole_segments,
)
from rmt_jax.models.io import hub, weights
from rmt_jax.models.recurrent import RecurrentModel
from rmt_jax.models.sampling import Draw, Sampling
from rmt_jax.runtime import startup, switches
from rmt_jax.types import Array, Prompt, Segment

BLOCK = 64  # segments that one call of the compiled reader takes at most
log = logging.getLogger(__name__)


def load(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    segment_tokens: int = 0,
    everywhere: bool | None = None,
) -> "Model":
    """A model from a run's workdir, an exported folder, a Hugging Face model of a registered
    backbone (GPT-2, the Llama family, Gemma 3, GPT-NeoX), a GGUF file or an authors' checkpoint.
    What is compiled for it is kept on disk (`runtime.startup.cache`), unless the process does so.

    Args:
      name: a local folder or GGUF file, or a name on the hub.
      revision: of a hub name: a branch, tag or commit to pin.
      dtype: compute dtype, instead of the config's: auto, float32 or bfloat16.
      segment_tokens: tokens of a segment, instead of the config's.
      everywhere: on all devices of this process, not on its first one alone: texts side by side
        are spread over them, a text alone goes through some of the layers on each, and weights are
        split as the config's mesh says where that fits; on those of all processes, which then call
        everything together, where it splits weights over more than one process has. On a CPU every
        core is a device, unless JAX has begun already. None: only where that mesh splits weights.

    Raises:
      WeightsError: with what was found, what was expected and what to do.
    """
    startup.cache()
    source = hub.open_source(name, revision)
    if source.guessed:
        log.warning("%s: not said there, so taken as %s", name, "; ".join(source.guessed))
    return from_source(source, dtype, segment_tokens, everywhere)


def from_source(
    source: hub.Source,
    dtype: str | None = None,
    segment_tokens: int = 0,
    everywhere: bool | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> "Model":
    """The same from what `hub.open_source` found. mesh: in place of the one that `everywhere`
    means."""
    config = source.config
    if dtype:
        config = settings.update(config, {"model.dtype": dtype})
    if segment_tokens:
        config = settings.update(config, {"model.segment_tokens": segment_tokens})
    mesh = mesh or placement.mesh_of(config, everywhere)
    params = weights.unflatten(source.flat) if mesh else source.params
    return Model(config, params, source.folder, source.ends, source.tokenizer, mesh)


class SegmentView(NamedTuple):
    """What a memory cell lets people see of one segment."""

    memory: Memory  # after it
    values: np.ndarray  # f32[R, L]  R rows over the segment's places; R = 0: nothing to see
    row_label: str  # what a row is: 'write token', 'layer'
    value_label: str  # what a value is: 'attention', 'gate'


class Model:
    """Weights with their compiled functions. Thread-safe: nothing in it changes.

    Attributes:
      config: the typed tree that the model was made with.
      params: nested dicts of float32 arrays on the device, or split over those of the mesh.
      segment_tokens: L. vocab: V. prompt_tokens: P, room for the task prompt (0: none).
      ways: texts side by side are spread over devices where they are a multiple of it.
    """

    def __init__(
        self,
        config: settings.Config,
        params: Any,
        folder: Path | None = None,
        ends: Sequence[int] = (),
        gguf_tokenizer: Mapping[str, Any] | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """`params` as from `models.split`, numpy, or lazy; checked against what `config` makes.
        gguf_tokenizer: `hub.Source.tokenizer`, in place of files in `folder`. mesh: of devices of
        this process, or of all, with the axes of `runtime.mesh.AXES`."""
        self.config, self.folder = config, folder
        self.gguf_tokenizer = gguf_tokenizer
        with switches.neutral():
            outline, params = hub.fit(config, params, str(folder or "These params"))
            self.placement = placement.Placement(outline, mesh)
            self.params = self.placement.weights(params)
        self.graph, self.ways = outline.static, self.placement.ways
        backbone = BACKBONES[config.model.backbone]
        self.vocab: int = backbone.vocab_of(weights.flatten(self.params["backbone"]))
        self.segment_tokens = config.model.segment_tokens
        self.prompt_tokens = 0 if config.prompt.source == "none" else config.prompt.tokens
        self._ends = tuple(ends)
        together = functools.partial(pipeline.read_some, axis=placement.LAYERS)
        self._read = self.compiled(schedule.read_some, in_layers=together)
        self._logits = self.compiled(recurrence.all_logits)
        self._initial = self.compiled(RecurrentModel.initial, static_argnames="batch")
        names = ("max_new_tokens", "ends")
        self._continue = self.compiled(generate.continue_text, static_argnames=names)
        self._first = self.compiled(generate.first_token, apart=False, static_argnames="room")
        self._following = self.compiled(
            generate.following_token, apart=False, static_argnames="max_new_tokens",
            donate_argnums=3,
        )  # fmt: skip
        self._inspect = self.compiled(_inspect)

    def compiled(
        self, function: Any, apart: bool = True, in_layers: Any = None, **options: Any
    ) -> Any:
        """`function(model, ...)` compiled, as a function of `params` and the rest, whatever JAX's
        switches in the user's process. What goes in and, with `apart`, comes out, `in_layers`, and
        the options: `placement.Placement.compiled`."""

        shared = None if in_layers is None else self.placement.bound(in_layers)
        run = self.placement.compiled(self.placement.bound(function), apart, shared, **options)
        return switches.Neutral(run)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer beside the weights. Raises InputError when there is none, and
        DataError for one that cannot be read."""
        return checkpoint_tokenizer.find(self.folder, self.gguf_tokenizer, self.vocab)

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text or a turn: a config.json's `eos_token_id`, else the tokenizer's;
        the first ends a text."""
        if self._ends:
            return self._ends
        try:
            return (self.tokenizer.end,)
        except ValueError:  # no tokenizer, and the hub gave none
            return ()

    @property
    def end(self) -> int | None:
        """The id that ends an answer: the first of `ends`."""
        return next(iter(self.ends), None)

    def initial_memory(self, batch_size: int = 1) -> Memory:
        """The memory before any text, for `batch_size` texts side by side."""
        return self._initial(self.params, batch=batch_size)

    def read(
        self,
        memory: Memory,
        tokens: Array,
        mask: Array | None = None,
        prompt: Prompt | None = None,
    ) -> Memory:
        """The memory after reading whole segments; compiled once a batch size, whatever the length.

        Args:
          memory: where earlier text left it, for B texts.
          tokens: i32[B, n] with n a multiple of the segment length L, or i32[B, S, L].
          mask: bool of the same shape; a segment without tokens leaves its text's memory as it is.
          prompt: task prompt, the same shapes at every call.
        """
        ids, known = checked_tokens(tokens, mask, self.vocab)
        ids, known = whole_segments(ids, known, self.segment_tokens)
        check_memory(memory, len(ids))
        prompt = self._prompt(prompt, len(ids))
        for start in range(0, ids.shape[1], BLOCK):
            part = ids[:, start : start + BLOCK]
            rest = ((0, 0), (0, BLOCK - part.shape[1]), (0, 0))
            memory = self._read(
                self.params,
                memory,
                np.pad(part, rest),
                np.pad(known[:, start : start + BLOCK], rest),
                prompt,
                np.int32(part.shape[1]),
            )
        return memory

    @switches.neutral()
    def forward(
        self, tokens: Array, mask: Array | None = None, prompt: Prompt | None = None
    ) -> tuple[jax.Array, Memory]:
        """Logits f32[B, n, V] of a whole text of any n, and the memory after it.

        For small inputs (tests, inspection): compiled for each number of segments, and all logits
        are kept.
        """
        tokens, mask = checked_tokens(tokens, mask, self.vocab)
        batch, places = tokens.shape
        rest = ((0, 0), (0, -places % self.segment_tokens))
        ids, known = np.pad(tokens, rest), np.pad(mask, rest)
        tokens, mask = whole_segments(ids, known, self.segment_tokens)
        memory, prompt = self.initial_memory(batch), self._prompt(prompt, batch)
        logits, memory = self._logits(self.params, memory, tokens, mask, prompt)
        return logits.reshape(batch, -1, self.vocab)[:, :places], memory

    def generate(
        self,
        tokens: Array,
        max_new_tokens: int = 8,
        mask: Array | None = None,
        prompt: Prompt | None = None,
        memory: Memory | None = None,
        end: int | Sequence[int] | None = None,
        sampling: Sampling | None = None,
    ) -> np.ndarray:
        """A continuation: all segments but the last are read, the last one is decoded from.

        Args:
          tokens: i32[B, n], any n; at least one token a row.
          max_new_tokens: how many to make.
          mask: bool[B, n]; rows may have different lengths, padded at either side.
          prompt: task prompt. memory: where to start, instead of `initial_memory`.
          end: id or ids that end a row (default: `self.ends`).
          sampling: tokens are drawn so; None: the likeliest are taken.

        Returns:
          i32[B, max_new_tokens], the new tokens only; a row that has ended repeats what ended it.
        """
        tokens, mask = checked_tokens(tokens, mask, self.vocab)
        head, tail = head_and_tail(tokens, mask, self.segment_tokens)
        memory = memory or self.initial_memory(len(tokens))
        if head.tokens.size:
            memory = self.read(memory, *head[:2], prompt)
        return self.generate_from(memory, *tail[:2], prompt, max_new_tokens, end, sampling)

    def generate_from(
        self,
        memory: Memory,
        tail_tokens: Array,
        tail_mask: Array | None = None,
        prompt: Prompt | None = None,
        max_new_tokens: int = 8,
        end: int | Sequence[int] | None = None,
        sampling: Sampling | None = None,
    ) -> np.ndarray:
        """A continuation of a tail, i32[B, n] with n at most L, after what `memory` has read.

        One compilation for each batch size, n and `max_new_tokens`: keep n fixed and use the mask.
        Returns i32[B, max_new_tokens] as `generate` does.
        """
        tail = self._tail(memory, tail_tokens, tail_mask, max_new_tokens)
        made = self._continue(
            self.params,
            memory,
            tail,
            self._prompt(prompt, len(tail.tokens)),
            _draw(sampling),
            max_new_tokens=max_new_tokens,
            ends=self._end_ids(end),
        )
        with switches.neutral():
            return np.asarray(made)

    def stream(
        self,
        memory: Memory,
        tail_tokens: Array,
        tail_mask: Array | None = None,
        prompt: Prompt | None = None,
        max_new_tokens: int = 8,
        end: int | Sequence[int] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[np.ndarray]:
        """The tokens of `generate_from` as they are made, i32[B] each, until every row has ended
        once; behind its end a row goes on."""
        tail = self._tail(memory, tail_tokens, tail_mask, max_new_tokens)
        prompt, draw = self._prompt(prompt, len(tail.tokens)), _draw(sampling)
        ends, ended = self._end_ids(end), np.zeros(len(tail.tokens), bool)
        token, cache = self._first(self.params, memory, tail, prompt, draw, room=max_new_tokens - 1)
        for step in range(1, max_new_tokens + 1):
            with switches.neutral():
                made = np.asarray(token)
            yield made
            ended |= np.isin(made, ends)
            if step == max_new_tokens or ended.all():
                return
            token, cache = self._following(
                self.params, memory, token, cache, draw, np.int32(step),
                max_new_tokens=max_new_tokens,
            )  # fmt: skip

    def _tail(
        self, memory: Memory, tokens: Array, mask: Array | None, max_new_tokens: int
    ) -> Segment:
        check_memory(memory, len(tokens))
        return checked_tail(self.config, tokens, mask, self.vocab, max_new_tokens)

    def _end_ids(self, end: int | Sequence[int] | None) -> tuple[int, ...]:
        if end is None:
            return self.ends
        return (end,) if isinstance(end, int) else tuple(end)

    def answer(self, text: str, question: str, task: str = "") -> str:
        """The answer to a question about a text of any length: see `answers`."""
        return self.answers(text, [question], task)[0]

    def answers(self, text: str, questions: Sequence[str], task: str = "") -> list[str]:
        """The answers to questions about a text, which is read once for all of them. `task`: its
        name, or a description in your words; empty: the model's only task, or the one whose
        questions have this form. Raises `session.RecallError` where it is needed and not known."""
        from rmt_jax.evaluation.session import answers

        return answers(self, text, questions, task)

    @property
    def prompt_room(self) -> int:
        """The longest task prompt that the model can hold, in tokens."""
        return prompt_room(self.config)

    def inspect_segment(
        self, memory: Memory, segment: Segment, prompt: Prompt | None = None
    ) -> SegmentView:
        """Reads one segment of one text (B = 1), and shows what its memory cell does there."""
        new, values = self._inspect(self.params, memory, segment, self._prompt(prompt, 1))
        return SegmentView(new, np.asarray(values), *self.memory_cell.view_labels)

    @functools.cached_property
    def memory_cell(self) -> models.MemoryCell:
        """The memory cell with its weights."""
        return models.merge(self.graph, self.params).memory

    def _prompt(self, prompt: Prompt | None, batch: int) -> Prompt | None:
        if prompt is None or self.config.prompt.source == "none":
            return None
        return checked_prompt(prompt, batch, self.vocab)


def _inspect(
    model: models.RecurrentModel, memory: Memory, segment: Segment, prompt: Prompt | None
) -> tuple[Memory, jax.Array]:
    seen = model.memory.inspect_segment(model, memory, segment, prompt)
    return model.step(memory, segment, prompt)[1], seen


@switches.neutral()
def _draw(sampling: Sampling | None) -> Draw | None:
    return None if sampling is None else sampling.arrays()
