"""The recurrence: scan equals a loop, the cut is real, memory stays flat."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rmt_jax import config, models
from rmt_jax.models import platform, recurrence
from rmt_jax.models.io import weights
from rmt_jax.models.ops import attention
from rmt_jax.types import Prompt, Segment

ASKED = config.Prompt("question", "start", tiny.WORDS)


def loss_of(logits, batch):
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.answer[..., None], axis=-1)
    return -(picked[..., 0] * batch.weight).sum()


def by_loop(model, batch):
    """What the recurrence should compute, as a Python loop without rematerialisation."""
    prompt = Prompt(batch.prompt, batch.prompt_mask, batch.task)
    memory, out = model.initial(len(batch.tokens)), []
    answered = batch.answer_start.shape[1]
    for s in range(batch.tokens.shape[1]):
        segment = Segment(jnp.asarray(batch.tokens[:, s]), jnp.asarray(batch.mask[:, s]))
        hidden, memory = model.step(memory, segment, prompt)
        r = s - (batch.tokens.shape[1] - answered)
        if r >= 0:
            rows = [
                [[hidden[b, at + t] for t in range(2)] for at in batch.answer_start[b, r]]
                for b in range(len(hidden))
            ]
            out.append(model.backbone.logits(jnp.asarray(rows)))
    return jnp.stack(out, axis=1)


@pytest.mark.parametrize("cell", tiny.cells("rmt", "delta"))
def test_scan_equals_loop_in_values_and_gradients(cell):
    graph, params = tiny.model(ASKED, cell=cell, positions="alibi", conv_width=2, layers=1)
    batch = tiny.batch(segments=3, answered=2)

    def value(function):
        def loss(params):
            return loss_of(function(models.merge(graph, params), batch), batch)

        return jax.jit(jax.value_and_grad(loss))(params)

    looped = value(by_loop)
    scanned = value(recurrence.answer_logits)
    for a, b in zip(jax.tree.leaves(looped), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", tiny.cells("delta", of=("none", "rmt", "delta")))
def test_more_places_may_be_wanted_than_a_segment_has(cell):
    """Several answers of many tokens: places that stand more than once."""
    graph, params = tiny.model(cell=cell)
    model, (tokens, mask) = models.merge(graph, params), tiny.text(segments=1)
    segment, memory = Segment(tokens[:, 0], mask[:, 0]), model.initial(len(tokens))
    places = np.random.default_rng(0).integers(0, tiny.LENGTH, (len(tokens), 3 * tiny.LENGTH))
    whole, after = model.step(memory, segment)
    some, also = model.step(memory, segment, places=jnp.asarray(places, jnp.int32))
    expected = np.take_along_axis(np.asarray(whole), places[:, :, None], axis=1)
    np.testing.assert_allclose(some, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(also), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", ("rmt", pytest.param("delta", marks=pytest.mark.slow)))
def test_what_is_kept_for_the_backward_pass_changes_no_gradient(cell):
    """Nothing, or what products made (on a CPU), with layers sliced before the loop."""
    graph, params = tiny.model(ASKED, cell=cell, layers=2, scan_layers=False)
    batch = tiny.batch(segments=4, answered=2)

    def gradient(function, **named):
        def loss(params):
            return loss_of(function(models.merge(graph, params), batch, **named), batch)

        return jax.jit(jax.grad(loss))(params)

    looped = jax.tree.leaves(gradient(by_loop))
    for remat in (False, True):
        scanned = jax.tree.leaves(gradient(recurrence.answer_logits, remat=remat))
        for a, b in zip(looped, scanned, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "cell, remat",
    (
        ("rmt", False),
        pytest.param("rmt", True, marks=pytest.mark.slow),
        pytest.param("prmt", False, marks=pytest.mark.slow),
        pytest.param("armt", False, marks=pytest.mark.slow),
        ("delta", False),
    ),
)
def test_the_way_of_a_gpu_gives_the_same(cell, remat, monkeypatch):
    """Segments one after another outside a loop, padding behind everything else while the layers
    run, the fused kernel (in XLA's form, which needs no GPU): values and gradients of a loop."""
    graph, params = tiny.model(ASKED, cell=cell, layers=2, scan_layers=cell != "rmt")
    batch = tiny.batch(segments=3, answered=1)
    mask = batch.mask.copy()
    mask[0, 0, 3:], mask[1, 2, 5:] = False, False
    mask[1, 1] = False
    batch = batch._replace(mask=mask)

    def value(function, **named):
        def loss(params):
            return loss_of(function(models.merge(graph, params), batch, **named), batch)

        return jax.jit(jax.value_and_grad(loss))(params)

    looped = value(by_loop)
    packed, causal = [], attention.causal

    def fused(queries, keys, values, known, _):
        packed.append(known is None)
        return causal(queries, keys, values, known, "xla")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "available", lambda *_: "cudnn")
    monkeypatch.setattr(attention, "causal", fused)
    ours = value(recurrence.answer_logits, remat=remat)
    for a, b in zip(jax.tree.leaves(looped), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert packed and all(packed) == any(packed) == (cell != "delta")

    def loops(function):
        text = str(jax.make_jaxpr(lambda p: function(models.merge(graph, p), batch))(params))
        return text.count("scan[") + text.count("while[")

    if cell == "rmt":  # layers of the others are a loop here, and delta's chunks are one
        assert loops(recurrence.answer_logits) == 0
        monkeypatch.setattr(recurrence, "UNROLLED", 1)
        assert loops(recurrence.answer_logits) > 0


@pytest.mark.parametrize("cell", tiny.cells("rmt", of=("rmt", "delta")))
def test_one_loop_over_all_segments_as_on_a_tpu_gives_the_same(cell):
    """Elsewhere the answered segments have a loop of their own."""
    graph, params = tiny.model(ASKED, cell=cell, layers=2, dtype="float32", attention="xla")
    batch = tiny.batch(segments=4, answered=2)

    def measured():
        def loss(params):
            model = models.merge(graph, params)
            out = recurrence.answers(model, batch)
            return loss_of(model.backbone.logits(out.hidden), batch) + out.drift.sum()

        whole = str(jax.make_jaxpr(loss)(params)).count("length=4")
        return whole, jax.jit(jax.value_and_grad(loss))(params)

    none, two = measured()
    with platform.compiling_for("tpu"):
        some, one = measured()
    assert none == 0 < some
    for a, b in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def inside_loops(jaxpr, inside=False):
    """All equations that stand in a loop, however deep."""
    for equation in jaxpr.eqns:
        if inside:
            yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from inside_loops(inner, inside or equation.primitive.name == "scan")


@pytest.mark.parametrize("remat", (False, True))
def test_how_often_the_embedding_table_gets_its_gradient(remat):
    """Once, outside the loops, where what a segment needs is kept. Rematerialised, in each segment,
    for its text: of which nothing but a memory may be kept. Never for the prompt."""
    graph, params = tiny.model(ASKED, layers=1, scan_layers=False)
    batch = tiny.batch(segments=4, answered=2)

    def loss(params):
        model = models.merge(graph, params)
        return loss_of(recurrence.answer_logits(model, batch, remat=remat), batch)

    found = inside_loops(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    table = (tiny.VOCAB, params["backbone"]["wte"].shape[1])
    made = [
        e for e in found if e.primitive.name == "scatter-add" and e.outvars[0].aval.shape == table
    ]
    assert len(made) == (2 if remat else 0)  # one for the silent segments' loop, one for the rest


@pytest.mark.parametrize("cell", tiny.cells("rmt", "delta", "kv"))
def test_a_probe_reads_the_memory_and_leaves_no_trace(cell):
    graph, params = tiny.model(ASKED, cell=cell, positions="alibi", conv_width=2, layers=1)
    model = models.merge(graph, params)
    bare = tiny.batch(segments=3, answered=2)
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, tiny.VOCAB, (2, 2, 5)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    mask[0, 0, 4:] = False
    at, answer = np.full((2, 2, 1), 1, np.int32), bare.answer[:, :, :1]
    batch = bare._replace(
        answer_start=np.concatenate([bare.answer_start, at], axis=2),
        answer=np.concatenate([bare.answer, answer], axis=2),
        probe=Segment(tokens, mask),
    )
    without = jax.jit(recurrence.answer_logits)(model, bare)
    probed = jax.jit(recurrence.answer_logits)(model, batch)
    np.testing.assert_allclose(probed[:, :, :-1], without, rtol=1e-5, atol=1e-5)
    kept = recurrence.answer_logits(model, batch, remat=False)
    np.testing.assert_allclose(kept, probed, rtol=1e-5, atol=1e-5)

    prompt = Prompt(batch.prompt, batch.prompt_mask, batch.task)
    memory = model.initial(2)
    for s in range(3):
        memory = model.step(memory, Segment(batch.tokens[:, s], batch.mask[:, s]), prompt)[1]
        if s:  # a step that reads the probe as if it were the next segment
            hidden = model.step(memory, Segment(tokens[:, s - 1], mask[:, s - 1]), prompt)[0]
            expected = model.backbone.logits(hidden[:, 1:3])
            np.testing.assert_allclose(probed[:, s - 1, -1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", tiny.CELLS)
def test_drift_is_how_far_a_segment_moves_the_memory(cell):
    graph, params = tiny.model(ASKED, cell=cell, positions="alibi", layers=2)
    model = models.merge(graph, params)
    batch = tiny.batch(segments=3, answered=3)
    mask = batch.mask.copy()
    mask[1, 1] = False  # an empty segment
    idle = np.ones((2, 3), bool)
    drift = recurrence.answers(model, batch._replace(mask=mask, background_only=idle)).drift
    prompt = Prompt(batch.prompt, batch.prompt_mask, batch.task)
    memory = model.initial(2)
    for s in range(3):
        new = model.step(memory, Segment(batch.tokens[:, s], mask[:, s]), prompt)[1]
        for b in range(2):
            ratios = []
            leaves = (map(np.asarray, jax.tree.leaves(x.state)) for x in (memory, new))
            for pair in zip(*leaves, strict=True):
                old, now = (np.take(x, b, model.batch_axis) for x in pair)
                if not model.batch_axis:  # the whole state counts as one layer
                    old, now = old[None], now[None]
                layers = range(len(now))
                moved = [np.square(now[i] - old[i]).sum() + 1e-8 for i in layers]
                size = [np.square(now[i]).sum() + 1e-6 for i in layers]
                ratios.append(np.mean(np.sqrt(np.divide(moved, size))))
            np.testing.assert_allclose(drift[b, s], np.mean(ratios or [0]), atol=2e-4)
        memory = new
    assert float(drift[1, 1]) < 0.02  # not zero: what keeps the root's slope finite


@pytest.mark.parametrize("cell", ("rmt", "armt"))
def test_no_gradient_crosses_the_cut(cell):
    """Words that stand in one segment only get a gradient just if it lies behind the cut."""
    graph, params = tiny.model(ASKED, cell=cell, tied_head=False)
    batch = tiny.batch(segments=4)
    tokens = np.arange(4)[None, :, None] * 4 + batch.tokens % 4  # segment s: words 4s to 4s + 3
    prompt = np.full_like(batch.prompt, 30)
    batch = batch._replace(tokens=tokens.astype(np.int32), prompt=prompt)

    def gradient(bptt):
        def loss(params):
            model = models.merge(graph, params)
            return loss_of(recurrence.answer_logits(model, batch, bptt=bptt), batch)

        return weights.flatten(jax.jit(jax.grad(loss))(params))

    cut = gradient(2)
    seen = np.abs(cut["backbone/wte"][:16].reshape(4, 4, -1)).sum(axis=(1, 2))
    assert not seen[:2].any() and seen[2:].all()
    if cell == "rmt":  # the learned memory stands before the first segment only
        assert not cut["memory/tokens"].any()
        full = gradient(0)
        assert full["memory/tokens"].any() and np.abs(full["backbone/wte"][:8]).sum() > 0


def test_a_cut_before_the_first_segment_is_no_cut():
    """The very same program, so the same numbers."""
    graph, params = tiny.model(ASKED)
    batch = tiny.batch(segments=4)

    def program(bptt):
        def loss(params):
            model = models.merge(graph, params)
            return loss_of(recurrence.answer_logits(model, batch, bptt=bptt), batch)

        return str(jax.make_jaxpr(jax.grad(loss))(params))

    assert program(0) == program(4) == program(9) != program(3)


def test_values_do_not_depend_on_the_cut():
    graph, params = tiny.model(ASKED)
    batch = tiny.batch(segments=4, answered=2)
    model = models.merge(graph, params)
    full, cut = (recurrence.answer_logits(model, batch, bptt=k) for k in (0, 1))
    np.testing.assert_allclose(full, cut, atol=1e-5)


def test_memory_of_the_compiled_step_is_flat_in_segments():
    """Beyond the ids and one carry a segment; and not even that before a cut."""
    graph, params = tiny.model(width=32, memory_tokens=2, layers=1)

    def temporaries(segments, bptt):
        batch = tiny.batch(segments=segments, texts=4)

        def loss(params, batch):
            model = models.merge(graph, params)
            return loss_of(recurrence.answer_logits(model, batch, bptt=bptt), batch)

        compiled = jax.jit(jax.grad(loss)).lower(params, batch).compile()
        ids = batch.tokens.nbytes + batch.mask.nbytes
        carry = 4 * 2 * 32 * 4 + 4
        return compiled.memory_analysis().temp_size_in_bytes, ids, carry

    for bptt, carries in ((0, 56), (2, 0)):  # carries that the backward pass needs more
        (few, ids_few, _), (many, ids_many, carry) = temporaries(8, bptt), temporaries(64, bptt)
        # The scan reads its ids segment first: one transposed copy.
        allowed = 1.1 * few + (ids_many - ids_few) + carries * carry
        assert many <= allowed, f"{few:,} -> {many:,} bytes with bptt {bptt}"
