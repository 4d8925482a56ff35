"""Language modelling: the loss against an independent one, what it holds, what it is part of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_steps
import tiny

from rmt_jax import models
from rmt_jax.config import Config, ConfigError, Data, Model, Optimizer, Prompt, Stage, Texts
from rmt_jax.models import costs, language, recurrence, schedule
from rmt_jax.training import losses, metrics, step_costs
from rmt_jax.types import Batch, Segment, Sums

VOCAB, LENGTH = tiny.VOCAB, tiny.LENGTH


def passages(texts: int = 3, segments: int = 4, answered: int = 1, seed: int = 0) -> Batch:
    """Passages of ragged lengths; text 0 is a question."""
    batch = tiny.batch(segments, answered, seed, texts)
    flat = batch.tokens.reshape(texts, -1)
    rng = np.random.default_rng(seed + 5)
    following = np.concatenate([flat[:, 1:], rng.integers(0, VOCAB, (texts, 1))], axis=1)
    mask = batch.mask.copy()
    mask[1, 0] = False  # a short text stands behind an empty segment
    known = np.where(mask, following.reshape(mask.shape), -1)
    known[0] = -1
    weight = batch.weight.copy()
    weight[1:] = 0
    return batch._replace(
        mask=mask, next_token=known.astype(np.int32), weight=weight, metric_row=batch.metric_row
    )


def naive(graph, params, batch: Batch) -> jax.Array:
    """Cross-entropy f32[B, S, L] out of all logits at once."""
    model = models.merge(graph, params)
    memory = model.initial(len(batch.tokens))
    logits, _ = recurrence.all_logits(model, memory, batch.tokens, batch.mask)
    log = jax.nn.log_softmax(logits, axis=-1)
    right = jnp.take_along_axis(log, jnp.maximum(batch.next_token, 0)[..., None], axis=-1)
    return jnp.where(batch.next_token < 0, 0, -right[..., 0])


@pytest.mark.parametrize(
    ("cell", "remat", "changes"),
    [
        ("rmt", True, {}),
        pytest.param("delta", False, {"scan_layers": False}, marks=pytest.mark.slow),
    ],
)
def test_the_loss_is_that_of_all_logits(cell, remat, changes):
    """In value, against plain numpy; in gradient, against automatic differentiation of all logits.
    Answers of the same batch are what they are without passages."""
    graph, params = tiny.model(cell=cell, **changes)
    batch = passages(answered=2)

    def ours(params, batch):
        return recurrence.answers(models.merge(graph, params), batch, remat=remat)

    weights = np.arange(1.0, 13).reshape(3, 4)  # every segment of every text its own

    def scored(params):
        return (ours(params, batch).nats * weights).sum()

    def plain(params):
        return (naive(graph, params, batch).sum(axis=2) * weights).sum()

    model = models.merge(graph, params)
    logits, _ = recurrence.all_logits(model, model.initial(3), batch.tokens, batch.mask)
    each = np.asarray(logits, np.float64)
    each -= each.max(axis=-1, keepdims=True)
    log = each - np.log(np.exp(each).sum(axis=-1, keepdims=True))
    told = batch.next_token >= 0
    right = np.take_along_axis(log, np.maximum(batch.next_token, 0)[..., None], -1)[..., 0]
    found = jax.jit(ours)(params, batch)
    np.testing.assert_allclose(found.nats, -(right * told).sum(axis=2), rtol=2e-5, atol=1e-5)
    value, gradient = jax.jit(jax.value_and_grad(scored))(params)
    expected, true = jax.jit(jax.value_and_grad(plain))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4, rtol=2e-4), gradient, true
    )
    alone = ours(params, batch._replace(next_token=None))
    assert alone.nats is None
    np.testing.assert_allclose(found.hidden, alone.hidden, atol=1e-5)


@pytest.mark.parametrize("logits", [1, 2 * VOCAB * 3, 2 * VOCAB * 7, 1 << 20])
def test_chunks_change_nothing(logits):
    """One place at a time, some, with and without a rest, all."""
    graph, params = tiny.model()
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((2, LENGTH, 16)).astype(np.float32)
    following = rng.integers(-1, VOCAB, (2, LENGTH)).astype(np.int32)

    def scored(params, hidden, most):
        found = language.nats(models.merge(graph, params).backbone, hidden, following, most)
        assert found.shape == (2, LENGTH)
        return (found * np.arange(LENGTH)).sum(), found

    gradient = jax.value_and_grad(scored, argnums=(0, 1), has_aux=True)
    ours = jax.jit(gradient, static_argnums=2)(params, hidden, logits)
    whole = jax.jit(gradient, static_argnums=2)(params, hidden, 1 << 30)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), ours, whole)
    assert (np.asarray(ours[0][1])[following < 0] == 0).all()


def test_padding_changes_no_bit():
    """What stands in padding, and where a short text stands among empty segments."""
    graph, params = tiny.model(cell="delta")
    batch = passages()
    other = batch.tokens.copy()
    other[~batch.mask] = 11
    read = jax.jit(lambda batch: recurrence.answers(models.merge(graph, params), batch).nats)
    found = np.asarray(read(batch))
    assert np.array_equal(found, read(batch._replace(tokens=other)))
    assert (found[0] == 0).all() and found[1, 0] == 0 and (found[1, 1:] > 0).all()
    moved = jax.tree.map(lambda x: x, batch)
    for name in ("tokens", "mask", "next_token"):
        array = getattr(moved, name).copy()
        array[1] = np.roll(array[1], -1, axis=0)
        moved = moved._replace(**{name: array})
    assert np.array_equal(np.asarray(read(moved))[1], np.roll(found[1], -1))


@pytest.mark.parametrize("bptt", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_bptt_cuts_the_memory_between_stretches(bptt):
    """Every segment still has its targets; gradients stop where a stretch of `bptt` segments,
    counted from the end, begins. The first stretch learns the memory's own start."""
    graph, params = tiny.model(cell="rmt")
    batch = passages(texts=2)

    def ours(params):
        return recurrence.answers(models.merge(graph, params), batch, bptt=bptt).nats.sum()

    def by_hand(params):
        model = models.merge(graph, params)
        memory, total = model.initial(2), 0.0
        for s in range(4):
            if s in range(4 - bptt, 0, -bptt):
                memory = jax.lax.stop_gradient(memory)
            segment = recurrence.Segment(batch.tokens[:, s], batch.mask[:, s])
            prompt = recurrence.Prompt(batch.prompt, batch.prompt_mask, batch.task)
            hidden, memory = model.step(memory, segment, model.embed_prompt(prompt))
            logits = model.backbone.logits(hidden)
            following = batch.next_token[:, s]
            right = jnp.take_along_axis(logits, jnp.maximum(following, 0)[..., None], -1)[..., 0]
            entropy = jax.nn.logsumexp(logits, axis=-1) - right
            total += jnp.where(following < 0, 0, entropy).sum()
        return total

    (value, gradient), (expected, true) = (
        jax.jit(jax.value_and_grad(one))(params) for one in (ours, by_hand)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4, rtol=1e-4), gradient, true
    )
    whole = jax.grad(lambda p: recurrence.answers(models.merge(graph, p), batch).nats.sum())(params)
    apart = jax.tree.map(lambda x, y: np.abs(x - y).max(), gradient, whole)
    assert max(jax.tree.leaves(apart)) > 1e-3


def test_the_diagonal_gives_the_same():
    graph, params = tiny.model(cell="armt")
    batch = passages(answered=2)
    found = []
    for way in ("sequential", "diagonal"):

        def nats(params, way=way):
            model = models.merge(graph, params)
            model.schedule = way
            outputs = schedule.answers(model, batch, bptt=0, remat=False)
            return outputs.nats.sum(), (outputs.nats, outputs.hidden)

        found.append(jax.jit(jax.grad(nats, has_aux=True))(params))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4), *found)
    model = models.merge(graph, params)
    model.schedule = "diagonal"
    with pytest.raises(ConfigError, match="model.bptt 2 can't cut .* set model.bptt to 0"):
        schedule.answers(model, batch, bptt=2, remat=False)


def test_probes_and_drift_are_what_they_are_without_passages():
    """Of the last two segments of four; the others have no place for answers."""
    graph, params = tiny.model()
    batch = passages(answered=2)
    rng = np.random.default_rng(3)
    probe = Segment(rng.integers(0, VOCAB, (3, 2, 5)).astype(np.int32), np.ones((3, 2, 5), bool))
    twice = {
        name: np.repeat(getattr(batch, name), 2, axis=2)
        for name in ("answer_start", "answer", "weight", "metric_row")
    }
    idle = rng.random((3, 2)) < 0.5
    asked = batch._replace(probe=probe, background_only=idle, **twice)
    read = jax.jit(lambda batch: recurrence.answers(models.merge(graph, params), batch))
    told, alone = read(asked), read(asked._replace(next_token=None))
    np.testing.assert_allclose(told.hidden, alone.hidden, atol=1e-5)
    np.testing.assert_allclose(told.drift, alone.drift, rtol=1e-5)
    assert told.hidden.shape == (3, 2, 2, 2, 16) and told.nats.shape == (3, 4)


# What is held -------------------------------------------------------------------------------------


def held(function, *inputs) -> int:
    """Temporary bytes of a compiled function of arrays of these shapes; nothing runs."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def test_memory_holds_a_chunk_of_logits():
    """Not L·V: logits of 2 texts of 64 places and a vocabulary of 40,000 take 20 MB."""
    graph, params = tiny.model()
    params["backbone"]["wte"] = np.zeros((40_000, 16), np.float32)
    hidden, following = np.zeros((2, 64, 16), np.float32), np.zeros((2, 64), np.int32)
    sizes = {}
    for most in (1 << 18, 1 << 30):

        def total(params, hidden, following, most=most):
            return language.nats(
                models.merge(graph, params).backbone, hidden, following, most
            ).sum()

        sizes[most] = held(jax.grad(total, argnums=(0, 1)), params, hidden, following)
    assert sizes[1 << 30] > 20e6
    table = 40_000 * 16 * 4
    assert sizes[1 << 18] < 6 * 4 * (1 << 18) + 3 * table, sizes


@pytest.mark.parametrize("remat", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_memory_does_not_grow_by_logits_with_segments(remat):
    """Six further segments add what their layers keep, and not the 1.9 MB of logits of each."""
    graph, params = tiny.model(scan_layers=False)
    params["backbone"]["wte"] = np.zeros((20_000, 16), np.float32)

    def total(params, batch):
        return recurrence.answers(models.merge(graph, params), batch, remat=remat).nats.sum()

    few, many = (held(jax.grad(total), params, passages(segments=s)) for s in (2, 8))
    assert many - few < 0.1 * 6 * (3 * LENGTH * 20_000 * 4), (few, many)


# What it is part of -------------------------------------------------------------------------------


def settings(**sections) -> Config:
    optimizer = Optimizer(name="adamw", clip=0.0, warmup=0.0)
    return test_steps.config(optimizer=optimizer, **sections)


def mixed(rows: int = 8, share: int = 2, seed: int = 0) -> Batch:
    """A batch of `test_steps`, of whose texts one in `share` is a passage."""
    batch = test_steps.batch(rows, seed)
    rng = np.random.default_rng(seed)
    following = rng.integers(-1, test_steps.VOCAB, batch.tokens.shape).astype(np.int32)
    told = np.arange(rows) % share == 0
    following[~told] = -1
    weight = batch.weight.copy()
    weight[told] = 0
    task = np.where(told, 1, 0).astype(np.int32)
    return batch._replace(
        next_token=following, weight=weight, task=task, metric_row=batch.metric_row * 0
    )


def test_each_kind_counts_by_its_texts():
    """Mean over answers' tokens and mean over passages' tokens, times their shares of the texts:
    of the gradient, and of what is logged."""
    batch = mixed(share=4)
    c = settings()
    step, state = test_steps.make(c)
    model = models.build(c.model, c.prompt, test_steps.VOCAB, 2, test_steps.nnx.Rngs(0))
    graph, params = models.split(model)

    def expected(params):
        model = models.merge(graph, params)
        found = recurrence.answers(model, batch)
        log = jax.nn.log_softmax(model.backbone.logits(found.hidden))
        answers = -jnp.take_along_axis(log, batch.answer[..., None], -1)[..., 0]
        mean = (answers * batch.weight).sum() / batch.weight.sum()
        nats = recurrence.answers(model, batch).nats.sum() / (batch.next_token >= 0).sum()
        return 0.75 * mean + 0.25 * nats

    value, gradient = jax.jit(jax.value_and_grad(expected))(params)
    scales = losses.scales(batch)

    def ours(params):
        model = models.merge(graph, params)
        found = recurrence.answers(model, batch)
        total, told, sums = losses.batch_sums(model.backbone, found, batch, 3)
        return total * scales.answers + told * scales.passages, sums

    (total, sums), true = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    np.testing.assert_allclose(total, value, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-4), gradient, true
    )
    means = metrics.means(jax.jit(step)(state, batch)[1], ("qa1", "novels"))
    np.testing.assert_allclose(means["loss"], value, rtol=1e-5)
    assert list(means["accuracy"]) == ["qa1"] and list(means["nats_per_token"]) == ["novels"]
    assert sums.texts.tolist() == [6, 2, 0] and sums.count[1] == 0
    only = metrics.means(jax.tree.map(lambda x: x * np.array([0, 1, 0]), sums), ("qa1", "novels"))
    np.testing.assert_allclose(only["loss"], only["nats_per_token"]["novels"])


def test_a_batch_of_one_kind():
    """The scale of the kind that is not there is never a not-a-number."""
    passage, question = mixed(share=1), mixed(share=1)._replace(weight=test_steps.batch().weight)
    question = question._replace(next_token=np.full_like(question.next_token, -1))
    scale = losses.scales(passage)
    assert float(scale.answers) == 0
    assert float(scale.passages) == pytest.approx(1 / (passage.next_token >= 0).sum())
    scale = losses.scales(question)
    assert float(scale.answers) == pytest.approx(1 / question.weight.sum())
    assert float(scale.passages) == 0
    assert losses.scales(test_steps.batch()).passages is None


def test_microbatches_and_the_drift_penalty():
    batch = mixed()
    idle = np.zeros((8, 2), bool)
    idle[1::2, 1] = True
    batch = batch._replace(background_only=idle)
    found = []
    for parts in (1, 4):
        o = Optimizer(
            name="adamw", clip=0.0, warmup=0.0, accumulate=parts, memory_drift_penalty=0.5
        )
        step, state = test_steps.make(test_steps.config(optimizer=o))
        found.append(jax.jit(step)(state, batch))
    (a, sums_a), (b, sums_b) = found
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a.params, b.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), sums_a, sums_b)


def test_sums_add_up_and_means_without_passages_are_as_before():
    plain = Sums(*(np.array([2.0, 4.0, 1.0]) for _ in range(4)))
    assert metrics.means(plain, ("qa1", "qa2")) == {
        "loss": 1.0,
        "accuracy": {"qa1": 1.0, "qa2": 1.0},
        "auxiliary": 1.0,
    }
    assert metrics.zeros(3).texts is None
    added = metrics.add(metrics.zeros(3, True), metrics.zeros(3, True))
    assert added.texts.shape == (3,) and metrics.means(added, ("a", "b"))["loss"] == 0


def test_the_plan_counts_logits_of_a_language():
    model = Model(layers=2, width=64, heads=4, segment_tokens=32)
    plain = Config(model=model, prompt=Prompt(source="none"), stages=(Stage(4, 1, 8, 1e-3),))
    plain = plain.replace(data=Data(tasks=("qa1",)))
    told = plain.replace(data=Data(tasks=("novels",), texts={"novels": Texts(train="x")}))
    shape = costs.Shape(8, 4)
    more = step_costs.step_flops(told, shape, 5000) - step_costs.step_flops(plain, shape, 5000)
    assert more == 8 * (8 * 4 * 32) * 5000 * 64
    held = [step_costs.step_memory(one, shape, 5000, (1, 1, 1)).logits for one in (plain, told)]
    assert held[1] - held[0] == 3 * 4 * 8 * 32 * 5000
    assert dataclasses.replace(told, seed=1).data.texts["novels"].train == "x"
