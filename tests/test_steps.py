"""The train step: pure, whole batch or microbatches; `devices/training.py` has it on a mesh."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax import models
from rmt_jax.config import Config, ConfigError, Mesh, Model, Optimizer, Prompt, Stage
from rmt_jax.models import language, recurrence
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training import metrics, optimizer
from rmt_jax.training import step as steps
from rmt_jax.training.losses import answer_sums
from rmt_jax.types import Batch, WeightInfo

VOCAB, TASKS = 32, 2


def config(**sections) -> Config:
    base = Config(
        model=Model(
            cell="rmt",
            layers=1,
            width=16,
            heads=4,
            segment_tokens=8,
            memory_tokens=4,
            positions="alibi",
            conv_width=3,
            scan_layers=True,
        ),
        prompt=Prompt(tokens=4),
        stages=(Stage(2, 20, 8, 1e-2),),
        optimizer=Optimizer(name="adamw", clip=0.0, warmup=0.0),
    )
    return base.replace(**sections)


def batch(rows: int = 8, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, VOCAB, (rows, 2, 8)).astype(np.int32)
    at = rng.integers(0, 5, (rows, 2, 1)).astype(np.int32)
    weight = (rng.random((rows, 2, 1, 2)) < 0.8).astype(np.float32)
    return Batch(
        tokens=ids,
        mask=np.ones(ids.shape, bool),
        prompt=rng.integers(3, VOCAB, (rows, 4)).astype(np.int32),
        prompt_mask=np.ones((rows, 4), bool),
        task=(np.arange(rows) % TASKS).astype(np.int32),
        answer_start=at,
        answer=rng.integers(3, VOCAB, (rows, 2, 1, 2)).astype(np.int32),
        weight=weight,
        metric_row=rng.integers(0, TASKS + 1, (rows, 2, 1)).astype(np.int32),
    )


def infos(c: Config):
    return models.outline(c.model, c.prompt, VOCAB, TASKS, c.adapters).weights


def make(c: Config, mesh: jax.sharding.Mesh | None = None):
    model = models.build(c.model, c.prompt, VOCAB, TASKS, nnx.Rngs(0), c.adapters)
    static, params = models.split(model)
    tx = optimizer.build(c, model.weights())
    step = steps.make_train_step(
        static,
        tx,
        TASKS + 1,
        bptt=0,
        remat=True,
        accumulate=c.optimizer.accumulate,
        memory_drift_penalty=c.optimizer.memory_drift_penalty,
        trains=c.optimizer.trains,
        mesh=mesh,
    )
    return step, steps.init_state(params, tx, c.optimizer.trains)


@functools.cache
def curve(
    c: Config, mesh: Mesh | None, count: int = 20, batches: int = 4, devices: int = 8
) -> list[float]:
    """The loss of every step, on one device (None) or on a mesh of `devices`."""
    devices = jax.devices()[: devices if mesh else 1]
    grid = sharding.make_mesh(mesh or Mesh(), devices)
    step, state = make(c, grid)
    place = sharding.place_state(state, state.params, infos(c), grid)
    state = jax.device_put(state, place)
    program = jax.jit(step, out_shardings=(place, None))
    losses = []
    for i in range(count):
        state, sums = program(state, sharding.put_batch(batch(seed=i % batches), grid))
        losses.append(metrics.means(sums, ("qa1", "qa2"))["loss"])
    return losses


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_learns(name):
    o = Optimizer(name=name, adam_learning_rate=3e-2, decay="constant", warmup=0.0)
    stages = (Stage(2, 20, 8, 3e-2),)
    losses = curve(config(optimizer=o, stages=stages), None, batches=1)
    assert losses[-1] < 0.5 * losses[0]


def test_microbatches_equal_the_whole_batch():
    whole, state = make(config())
    four = dataclasses.replace(config().optimizer, accumulate=4)
    parts, _ = make(config(optimizer=four))
    a, sums_a = jax.jit(whole)(state, batch())
    b, sums_b = jax.jit(parts)(state, batch())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a.params, b.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), sums_a, sums_b)


@pytest.mark.parametrize("cell", ["rmt", pytest.param("armt", marks=pytest.mark.slow)])
def test_the_drift_penalty_calms_idle_segments(cell):
    """Twenty steps with the penalty: the idle segment moves the memory less, the other does not."""
    c = config(model=dataclasses.replace(config().model, cell=cell, d_mem=4))
    idle = np.zeros((8, 2), bool)
    idle[:4, 1] = True
    told = batch()._replace(background_only=idle)
    after = {}
    for penalty in (0.0, 3.0):
        o = dataclasses.replace(c.optimizer, accumulate=2, memory_drift_penalty=penalty)
        step, state = make(c.replace(optimizer=o))
        step = jax.jit(step)
        for _ in range(20):
            state, _ = step(state, told)
        static, _ = models.split(models.build(c.model, c.prompt, VOCAB, TASKS, nnx.Rngs(0)))
        drift = recurrence.answers(models.merge(static, state.params), told).drift
        after[penalty] = float(drift[idle].mean()), float(drift[:, 0].mean())
    assert after[3.0][0] < 0.7 * after[0.0][0]
    assert after[3.0][1] > 0.2 * after[0.0][1]


def test_microbatches_of_batches_without_a_prompt():
    """Prompt arrays of width 0 are shared out too."""
    bare = batch()
    bare = bare._replace(prompt=bare.prompt[:, :0], prompt_mask=bare.prompt_mask[:, :0])
    found = []
    for parts in (1, 2):
        optimizer = dataclasses.replace(config().optimizer, accumulate=parts)
        step, state = make(config(prompt=Prompt(source="none"), optimizer=optimizer))
        found.append(jax.jit(step)(state, bare)[1])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), *found)


def test_every_weight_says_its_axes_and_every_rule_has_a_weight():
    used = set()
    for cell in ("rmt", "prmt", "armt", "none"):
        for prompt in (Prompt(tokens=4), Prompt(source="learned", tokens=4)):
            c = config().model
            m = Model(
                **{**vars(c), "cell": cell, "positions": "learned", "tied_head": False, "d_mem": 4}
            )
            made = models.outline(m, prompt, VOCAB, TASKS)
            shapes = sharding.named(made.shapes)
            assert shapes.keys() == made.weights.keys()
            for name, leaf in shapes.items():
                assert len(made.weights[name].axes) == leaf.ndim, name
                used |= set(made.weights[name].axes)
    assert used >= sharding.AXES_OF.keys()


def test_moments_live_where_their_weight_lives():
    _, state = make(config())
    mesh = sharding.planned((1, 8, 1))
    place = sharding.place_state(state, state.params, infos(config()), mesh)
    kernel = place.params["backbone"]["blocks"]["up"]["kernel"].spec
    moments = [
        s.spec for name, s in sharding.named(place.opt).items() if name.endswith("up/kernel")
    ]
    assert "fsdp" in str(kernel) and moments == [kernel, kernel]


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (0, 1, 1), (4, 1, 1), (-1, 3, 1)])
def test_a_mesh_that_does_not_fit_is_a_sentence(sizes):
    with pytest.raises(ConfigError, match="mesh"):
        sharding.mesh_sizes(Mesh(*sizes), 8)


def test_an_axis_that_does_not_divide_names_the_weight():
    with pytest.raises(ConfigError, match="'backbone/wte'"):
        info = WeightInfo(("vocab", "table_features"), "embedding")
        sharding.weight_spec("backbone/wte", (32, 12), info, sharding.planned((1, 1, 8)))


def test_sums_count_whole_answers():
    """Two answers of two tokens: one wholly right, one with one wrong token; one empty place."""
    logits = np.full((1, 1, 3, 2, 5), -10.0, np.float32)
    for q, tokens in enumerate([(1, 2), (3, 4), (0, 0)]):
        for t, token in enumerate(tokens):
            logits[0, 0, q, t, token] = 10.0
    b = batch(1)._replace(
        answer=np.array([[[[1, 2], [3, 3], [0, 0]]]], np.int32),
        weight=np.array([[[[1, 1], [1, 1], [0, 0]]]], np.float32),
        metric_row=np.array([[[0, 1, 0]]], np.int32),
    )
    as_they_are = types.SimpleNamespace(logits=lambda hidden: hidden)
    loss, sums = answer_sums(as_they_are, jnp.asarray(logits), b, 3)  # pyright: ignore
    assert sums.right.tolist() == [1, 0, 0] and sums.count.tolist() == [1, 1, 0]
    assert sums.weight.tolist() == [2, 2, 0]
    assert float(loss) == pytest.approx(20.0, abs=1e-3)  # the one wrong token costs 20 nats


@pytest.mark.parametrize("places", [1, 2])
def test_answers_in_chunks_of_logits(places, monkeypatch):
    """Logits of so many places of every text at a time: sums and gradient as of all at once."""
    model = models.build(config().model, config().prompt, VOCAB, TASKS, nnx.Rngs(0))
    static, params = models.split(model)
    asked = batch()

    def both(params, asked):
        model = models.merge(static, params)
        found = recurrence.answers(model, asked)
        return answer_sums(model.backbone, found.hidden, asked, TASKS + 1)

    whole = jax.jit(jax.value_and_grad(both, has_aux=True))(params, asked)
    few = places * len(asked.answer) * VOCAB
    monkeypatch.setattr(language, "answer_logits", lambda vocab, width: few)
    parts = jax.jit(jax.value_and_grad(lambda *x: both(*x), has_aux=True))(params, asked)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), whole, parts)
    text = jax.jit(jax.grad(lambda *x: both(*x)[0])).lower(params, asked).as_text()
    assert f"{len(asked.answer)}x{places}x{VOCAB}xf32" in text
    assert f"4x{VOCAB}xf32" not in text and f"2x1x2x{VOCAB}xf32" not in text  # all of them


@pytest.mark.parametrize(("name", "tables"), [("adamw", True), ("muon", False)])
def test_what_weight_decay_reaches(name, tables):
    params = {
        "backbone": {
            "wte": jnp.ones((8, 4)),
            "ln_f": {"scale": jnp.ones(4)},
            "blocks": {"up": {"kernel": jnp.ones((1, 4, 4)), "bias": jnp.ones((1, 4))}},
        }
    }
    settings = Config(optimizer=Optimizer(name=name, weight_decay=0.5, warmup=0.0))
    known = {
        "backbone/wte": WeightInfo(("vocab", "table_features"), "embedding"),
        "backbone/ln_f/scale": WeightInfo((None,)),
        "backbone/blocks/up/kernel": WeightInfo(("layers", "embed", "mlp"), "matrix"),
        "backbone/blocks/up/bias": WeightInfo(("layers", "mlp")),
    }
    rule = optimizer.build(settings, known)
    still = jax.tree.map(jnp.zeros_like, params)
    change, _ = rule.update(still, rule.init(params), params)
    moved = {jax.tree_util.keystr(path, simple=True, separator="/"): bool((leaf != 0).any())
             for path, leaf in jax.tree_util.tree_leaves_with_path(change)}  # fmt: skip
    assert moved == {
        "backbone/wte": tables,
        "backbone/ln_f/scale": False,
        "backbone/blocks/up/kernel": True,
        "backbone/blocks/up/bias": False,
    }


def test_learning_rate_over_stages():
    stages = (Stage(1, 10, 4, 1.0), Stage(2, 20, 4, 0.5))
    rate = optimizer.schedule(stages, Optimizer(warmup=0.2, decay="linear"))
    assert float(rate(0)) == pytest.approx(0.5)
    assert float(rate(2)) == pytest.approx(1.0)
    assert float(rate(9)) == pytest.approx(1 / 8)
    assert float(rate(10)) == pytest.approx(0.125) and float(rate(14)) == pytest.approx(0.5)
