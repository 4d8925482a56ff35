"""The programs of a run and of its evaluation, traced from shapes: for a compiler, not to be run.

They are those that `training.run`, `api` and `evaluation` compile, for any mesh, also one of
devices that are not here. Trace and lower them inside `models.platform.compiling_for`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rmt_jax import api, models
from rmt_jax.config import Config
from rmt_jax.data import tasks
from rmt_jax.data.loader import PROBE
from rmt_jax.models import generate, pipeline, schedule
from rmt_jax.models.costs import Shape
from rmt_jax.models.recurrent import RecurrentModel
from rmt_jax.models.sampling import Draw, Sampling
from rmt_jax.placement import LAYERS, Placement
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training import optimizer, step
from rmt_jax.training.start import Start
from rmt_jax.types import Batch, Prompt, Segment

ENDS = (1,)  # any token: what ends an answer changes no shape


def train_step(
    config: Config,
    static: Any,
    rule: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> Callable[..., Any]:
    """The step that a run of this config takes."""
    return step.make_train_step(
        static,
        rule,
        metric_rows(config),
        bptt=config.model.bptt,
        remat=config.model.remat,
        accumulate=config.optimizer.accumulate,
        memory_drift_penalty=config.optimizer.memory_drift_penalty,
        trains=config.optimizer.trains,
        mesh=mesh,
    )


def metric_rows(config: Config) -> int:
    return len(config.data.tasks) + 1


def training(
    config: Config, vocab: int, mesh: jax.sharding.Mesh, shape: Shape, probes: bool = False
) -> jax.stages.Traced:
    """A train step. shape: of the whole batch. probes: whether its stage has them."""
    start = Start(config, vocab, len(config.data.tasks))
    rule = optimizer.build(config, start.outline.weights)
    start.lay_out(rule, mesh)
    run = train_step(config, start.outline.static, rule, mesh)
    places = (start.place, sharding.replicated(mesh))
    batch = batch_shapes(config, shape, sharding.batch_sharding(mesh), probes)
    return jax.jit(run, donate_argnums=0, out_shardings=places).trace(start.like, batch)


def validation(
    config: Config, vocab: int, mesh: jax.sharding.Mesh, shape: Shape, probes: bool = False
) -> jax.stages.Traced:
    """The step that scores a batch of validation texts."""
    start = Start(config, vocab, len(config.data.tasks))
    start.lay_out(optimizer.build(config, start.outline.weights), mesh)
    check = step.make_eval_step(start.outline.static, metric_rows(config), mesh)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    whole = sharding.replicated(mesh)
    place = whole if shape.batch % ways else sharding.batch_sharding(mesh)
    batch = batch_shapes(config, shape, place, probes)
    return jax.jit(check, out_shardings=whole).trace(start.like.params, batch)


def reading(config: Config, vocab: int, mesh: jax.sharding.Mesh, texts: int) -> jax.stages.Traced:
    """Reads up to `api.BLOCK` segments of each of `texts` texts. Where they are no multiple of the
    devices, these share the layers."""
    placement, shapes, memory, prompt = _loaded(config, vocab, mesh, texts)
    sizes = (texts, api.BLOCK, config.model.segment_tokens)
    inputs = (memory, _ids(*sizes), _ids(*sizes, dtype=jnp.bool_), prompt, _ids())
    together = placement.bound(partial(pipeline.read_some, axis=LAYERS))
    read = placement.bound(schedule.read_some)
    return placement.trace(read, shapes, *inputs, in_layers=together)


def answering(
    config: Config, vocab: int, mesh: jax.sharding.Mesh, texts: int, tokens: int
) -> jax.stages.Traced:
    """Continues `texts` texts by the likeliest tokens, up to `tokens` of them."""
    return _continuing(config, vocab, mesh, texts, tokens, None)


def generation(
    config: Config, vocab: int, mesh: jax.sharding.Mesh, texts: int, tokens: int
) -> jax.stages.Traced:
    """Continues them by tokens that are drawn."""
    draw = jax.eval_shape(lambda: Sampling().arrays())
    return _continuing(config, vocab, mesh, texts, tokens, draw)


def _continuing(
    config: Config, vocab: int, mesh: jax.sharding.Mesh, texts: int, tokens: int, draw: Draw | None
) -> jax.stages.Traced:
    placement, shapes, memory, prompt = _loaded(config, vocab, mesh, texts)
    length = (texts, config.model.segment_tokens)
    tail = Segment(_ids(*length), _ids(*length, dtype=jnp.bool_))
    function = partial(generate.continue_text, max_new_tokens=tokens, ends=ENDS)
    return placement.trace(placement.bound(function), shapes, memory, tail, prompt, draw)


def batch_shapes(
    config: Config, shape: Shape, place: jax.sharding.Sharding, probes: bool = False
) -> Batch:
    """A batch as the loader makes it, of shapes alone."""
    b, s, r, q, t = shape
    array = partial(_ids, place=place)
    length, room = config.model.segment_tokens, config.prompt.tokens
    probe = None
    if probes and s > 1:
        sizes, q = (b, r, PROBE + t), q + 1
        probe = Segment(array(*sizes), array(*sizes, dtype=jnp.bool_))
    drifts = config.optimizer.memory_drift_penalty > 0
    return Batch(
        tokens=array(b, s, length),
        mask=array(b, s, length, dtype=jnp.bool_),
        prompt=array(b, room),
        prompt_mask=array(b, room, dtype=jnp.bool_),
        task=array(b),
        answer_start=array(b, r, q),
        answer=array(b, r, q, t),
        weight=array(b, r, q, t, dtype=jnp.float32),
        metric_row=array(b, r, q),
        probe=probe,
        background_only=array(b, r, dtype=jnp.bool_) if drifts else None,
        next_token=array(b, s, length) if tasks.language_tasks(config.data) else None,
    )


def _loaded(
    config: Config, vocab: int, mesh: jax.sharding.Mesh, texts: int
) -> tuple[Placement, Any, Any, Prompt | None]:
    """Where a loaded model lives, the shapes of its weights, and a memory and prompt of texts."""
    made = models.outline(
        config.model, config.prompt, vocab, len(config.data.tasks), config.adapters
    )
    placement = Placement(made, mesh)
    memory = jax.eval_shape(
        lambda params: RecurrentModel.initial(models.merge(made.static, params), texts), made.shapes
    )
    prompt = None
    if config.prompt.source != "none":
        room = (texts, config.prompt.tokens)
        prompt = Prompt(_ids(*room), _ids(*room, dtype=jnp.bool_), _ids(texts))
    return placement, made.shapes, memory, prompt


def _ids(*sizes: int, dtype: Any = jnp.int32, place: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)
