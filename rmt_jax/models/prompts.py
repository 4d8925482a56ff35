"""The task prompt: what says which task it is, as embeddings.

Where the words come from (question, description, both) is settled by the data, which puts their
tokens in the batch; here they go through the model's own embedding table, so that a task never
trained on can be described too. The source `learned` is a table of free vectors instead.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.models.backbones import Backbone
from rmt_jax.models.ops.draw import normal
from rmt_jax.types import Prompt, WeightInfo

STD = 0.02  # of a learned prompt at the start, as of any embedding


class TaskPrompt(nnx.Module):
    """Embeddings and mask of the prompt for one segment."""

    def __init__(self, config: settings.Prompt, tasks: int, width: int, rngs: nnx.Rngs):
        self.source, self.place = config.source, config.place
        if config.source == "learned":
            shape = (tasks, config.tokens, width)
            self.table = nnx.Param(normal(rngs, shape, STD))

    def __call__(self, backbone: Backbone, prompt: Prompt | None, started: jax.Array):
        """Returns [B, P, D] and bool[B, P]; None where there is no prompt at all.

        started bool[B]: a segment was read before; the place `start` hides the prompt from then on.
        """
        prompt = self.embed(backbone, prompt)
        if prompt is None or prompt.embedded is None:
            return None
        learned = self.source == "learned"
        mask = jnp.ones(prompt.embedded.shape[:2], bool) if learned else jnp.asarray(prompt.mask)
        if self.place == "start":
            mask = mask & ~started[:, None]
        return prompt.embedded, mask

    def embed(self, backbone: Backbone, prompt: Prompt | None) -> Prompt | None:
        """The prompt with its embeddings, for a loop over segments: inside, every segment would
        add a gradient as large as the embedding table."""
        if prompt is None or prompt.embedded is not None or self.source == "none":
            return prompt
        if self.source == "learned":
            return prompt._replace(embedded=self.table[...].astype(backbone.dtype)[prompt.task])
        return prompt._replace(embedded=backbone.embed(prompt.tokens))

    def weights(self) -> dict[str, WeightInfo]:
        """Of a learned prompt's table [tasks, P, D]."""
        table = WeightInfo((None, None, None), exact=True)
        return {"table": table} if self.source == "learned" else {}
