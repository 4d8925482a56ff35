"""The state that a run starts from, born where it will live.

Weights are drawn, loaded or restored straight into the shards of the mesh, moments made there: what
the mesh splits is whole on no device, and on no host.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rmt_jax import models
from rmt_jax.config import Config
from rmt_jax.models.io import hub, lazy, weights
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training import step
from rmt_jax.training.step import TrainState


class Start:
    """All that is known of a run's state before any of it is made.

    Attributes:
      outline: the model without weights.
      like: the `TrainState`, of `jax.ShapeDtypeStruct`s with shardings: what a checkpoint is
        restored by.
      place: their shardings alone, the same tree.
    """

    def __init__(self, config: Config, vocab: int, tasks: int):
        """Raises ConfigError for sizes that don't fit together."""
        self.config, self._sizes = config, (vocab, tasks)
        self.outline = models.outline(config.model, config.prompt, vocab, tasks, config.adapters)

    def lay_out(self, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> None:
        """Where everything lives; sets `like` and `place`. Raises ConfigError where an axis of the
        mesh does not divide a weight's."""
        trains, shapes = self.config.optimizer.trains, self.outline.shapes
        state = jax.eval_shape(lambda own: step.init_state(own, optimizer, trains), shapes)
        self.place = sharding.place_state(state, shapes, self.outline.weights, mesh)
        self._optimizer = optimizer
        self.like: TrainState = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            state,
            self.place,
        )

    def first(self) -> TrainState:
        """The state before the first step: what `init` names where it names something, else drawn.
        Raises WeightsError for weights that can't be started from."""
        params = self.loaded() if self.config.init else self.drawn()
        trained = step.divide(params, self.config.optimizer.trains)[0]
        moments = self.moments()(trained)
        count = jax.device_put(jnp.zeros((), jnp.int32), self.place.step)
        return TrainState(count, params, moments)

    def moments(self) -> Any:
        """The program that makes the optimiser's state of the weights that are trained."""
        return jax.jit(self._optimizer.init, out_shardings=self.place.opt)

    def drawn(self) -> dict[str, Any]:
        """Fresh weights by the config's seed, nested."""
        places = weights.flatten(self.place.params)
        return weights.unflatten(self.drawing(tuple(places), places)())

    def loaded(self) -> dict[str, Any]:
        """Weights of `init`, nested, one tensor after the other; what it lacks is drawn."""
        fresh = {
            name: lazy.LazyArray(one.shape, one.dtype, functools.partial(self._part, name))
            for name, one in weights.flatten(self.outline.shapes).items()
        }
        found = hub.initialise(weights.unflatten(fresh), self.config, self.config.init)
        places, started = weights.flatten(self.place.params), weights.flatten(found)
        as_drawn = tuple(name for name, value in started.items() if value is fresh[name])
        made = dict(self.drawing(as_drawn, places)()) if as_drawn else {}
        for name in started.keys() - made.keys():
            made[name] = lazy.to_devices(started[name], places[name])
        return weights.unflatten(made)

    def drawing(self, names: Sequence[str], places: Mapping[str, Any] | None = None) -> Any:
        """A program without arguments that draws the weights `names` and no others, each where
        `places` says, or on this process's first device."""
        config, (vocab, tasks) = self.config, self._sizes

        def draw() -> dict[str, jax.Array]:
            rngs = nnx.Rngs(config.seed)
            model = models.build(config.model, config.prompt, vocab, tasks, rngs, config.adapters)
            flat = weights.flatten(models.split(model)[1])
            return {name: flat[name] for name in names}

        if places is None:
            return jax.jit(draw)
        return jax.jit(draw, out_shardings={name: places[name] for name in names})

    def _part(self, name: str, index: lazy.Index) -> np.ndarray:
        return np.asarray(self.drawing((name,))()[name])[index]
