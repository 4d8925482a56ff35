"""The diagonal schedule gives the sequential one's numbers, values and gradients."""

import jax
import numpy as np
import optax
import pytest
import tiny
from test_recurrence import ASKED, loss_of

from rmt_jax import api, config, models
from rmt_jax.models import diagonal, recurrence, schedule
from rmt_jax.models.ops import attention
from rmt_jax.training import step as steps


@pytest.mark.parametrize("cell", tiny.cells("prmt", "delta", of=("prmt", "armt", "delta")))
def test_equal_to_the_sequential_schedule(cell):
    graph, params = tiny.model(ASKED, cell=cell, layers=3, conv_width=2)
    batch = tiny.batch(segments=4, answered=2)
    batch.mask[1, 1] = False  # one text pauses for a segment

    def results(schedule):
        def run(params):
            model = models.merge(graph, params)
            told = tiny.prompt()
            memory = schedule.read(model, model.initial(2), batch.tokens, batch.mask, told)
            return loss_of(schedule.answer_logits(model, batch), batch), memory

        # One cell's gradients are enough: the schedule is the same for both.
        return jax.jit(jax.value_and_grad(run, has_aux=True) if cell == "armt" else run)(params)

    pairs = (jax.tree.leaves(results(schedule)) for schedule in (recurrence, diagonal))
    for a, b in zip(*pairs, strict=True):
        scale = max(1.0, np.abs(a).max())
        np.testing.assert_allclose(a / scale, b / scale, atol=2e-5)


@pytest.mark.parametrize("cell", tiny.cells("prmt", of=("prmt", "armt")))
def test_padding_goes_to_the_end_where_a_fused_kernel_serves(cell, monkeypatch):
    """As on a GPU (the kernel in XLA's form): write memory stands in another place in each text,
    and layers find it; loss and gradients of the sequential schedule that packs nothing."""
    graph, params = tiny.model(ASKED, cell=cell, layers=3)
    batch = tiny.batch(segments=4, answered=2)
    mask = batch.mask.copy()
    mask[0, 0, 3:], mask[0, 3, 6:], mask[1, 2, 5:], mask[1, 1] = False, False, False, False
    batch = batch._replace(mask=mask)

    def value(schedule):
        def loss(params):
            return loss_of(schedule.answer_logits(models.merge(graph, params), batch), batch)

        return jax.jit(jax.value_and_grad(loss))(params)

    plain, causal, packed = value(recurrence), attention.causal, []

    def fused(queries, keys, values, known, _):
        packed.append(known is None)
        return causal(queries, keys, values, known, "xla")

    monkeypatch.setattr(attention, "available", lambda *_: "cudnn")
    monkeypatch.setattr(attention, "causal", fused)
    ours = value(diagonal)
    assert packed and all(packed)
    # One unit in the last place of armt's weights moves its gradients by up to 2e-4: its reads are
    # divided by sums that may be small.
    error = {"prmt": 2e-5, "armt": 3e-4}[cell]
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(ours), strict=True):
        scale = max(1.0, np.abs(a).max())
        np.testing.assert_allclose(a / scale, b / scale, atol=error)


def test_a_train_step_is_the_same():
    """Through the config, as training does it: loss, gradients, and no gradient before the cut
    (that the sequential schedule's cut is one, `test_recurrence` says)."""
    batch = tiny.batch(segments=4)

    def step(order):
        graph, params = tiny.model(ASKED, cell="armt", layers=2, schedule=order)
        opt = optax.sgd(1.0)  # the update is the gradient
        train = steps.make_train_step(graph, opt, 3, bptt=2, remat=True)
        state, sums = jax.jit(train)(steps.init_state(params, opt), batch)
        return jax.tree.leaves((params, state.params)), sums.loss

    (old, loss), (new, other) = step("sequential"), step("diagonal")
    np.testing.assert_allclose(loss, other, rtol=1e-5)
    moved = 0.0
    for a, b in zip(old, new, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
        moved += float(np.abs(a).sum())
    assert moved > 0


def test_reading_is_the_same():
    """`api.Model.read`, whole blocks and parts of one, on a text that has begun before."""
    rng, memories = np.random.default_rng(0), []
    settings = config.Config(
        model=tiny.settings(cell="armt", layers=3), prompt=config.Prompt("none", "every", 1)
    )
    _, params = tiny.model(settings.prompt, cell="armt", layers=3)
    tokens = rng.integers(0, tiny.VOCAB, (2, 67 * tiny.LENGTH)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    mask[1, 50 * tiny.LENGTH :] = False
    for order in ("sequential", "diagonal"):
        model = api.Model(config.update(settings, {"model.schedule": order}), params)
        memory = model.read(model.initial_memory(2), tokens[:, : 2 * tiny.LENGTH])
        memories.append(model.read(memory, tokens, mask))
    for a, b in zip(*map(jax.tree.leaves, memories), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_auto_is_what_was_measured(monkeypatch):
    assert [name for name in models.CELLS if models.CELLS[name].prefers_diagonal] == ["armt"]
    for case in ((False, 1, "gpu"), (True, 8, "gpu"), (True, 1, "cpu"), (True, 1, "tpu")):
        assert schedule.chosen("auto", *case) == "sequential"
    assert schedule.chosen("auto", True, 1, "gpu") == "diagonal"
    assert schedule.chosen("sequential", True, 1, "gpu") == "sequential"

    # On a GPU a step on one text takes the diagonal, unless the memory is looked at in between.
    built = models.merge(*tiny.model(ASKED, cell="armt"))
    batch = tiny.batch(segments=3, answered=2)
    one = jax.tree.map(lambda x: x[:1], batch)
    way = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for name in ("recurrence.answers", "diagonal.answers"):
        module, function = name.split(".")
        made = getattr(getattr(schedule, module), function)
        monkeypatch.setattr(
            getattr(schedule, module),
            function,
            lambda *args, made=made, module=module, **named: (
                way.append(module), made(*args, **named))[1],
        )  # fmt: skip
    hidden, drift, _ = schedule.answers(built, one, bptt=0, remat=False)
    idle = one._replace(background_only=np.ones(one.answer_start.shape[:2], np.float32))
    watched, moved, _ = schedule.answers(built, idle, bptt=0, remat=False)
    assert way == ["diagonal", "recurrence"] and not drift.any() and moved.any()
    np.testing.assert_allclose(hidden, watched, atol=1e-5)


def test_auto_reads_one_text_on_the_diagonal_once_it_fills_the_pipeline(monkeypatch):
    built = models.merge(*tiny.model(cell="armt", layers=3))
    tokens, mask = tiny.text(batch=1, segments=6)
    start = built.initial(1)

    def read(count):
        run = jax.jit(lambda count: schedule.read_some(built, start, tokens, mask, None, count))
        return jax.tree.leaves(run(count))

    sequential = [read(count) for count in (2, 6)]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for found, expected in zip(map(read, (2, 6)), sequential, strict=True):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    seven = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), start)
    monkeypatch.setattr(diagonal, "read_some", lambda *_: seven)
    short, long = ([(x == 7).all() for x in read(count)] for count in (2, 6))
    assert not any(short[:2]) and all(long[:2])


def test_refused_for_rmt():
    model = models.merge(*tiny.model(cell="rmt"))
    tokens, mask = tiny.text()
    with pytest.raises(config.ConfigError, match="Take model.cell=armt, delta or prmt"):
        diagonal.read(model, model.initial(2), tokens, mask)
