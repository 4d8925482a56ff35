"""The cost model against what the compiler says of the compiled step."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from rmt_jax.config import Config, Data, Lora, Model, Optimizer, Prompt, Stage
from rmt_jax.models import costs
from rmt_jax.models.costs import Shape
from rmt_jax.training import optimizer, step_costs
from rmt_jax.training import step as steps
from rmt_jax.types import Batch

VOCAB = 512


def settings(**changes) -> Config:
    values = dict(
        cell="rmt", layers=2, width=256, heads=4, segment_tokens=128, memory_tokens=8,
        dtype="float32", scan_layers=False, remat=False,
    )  # fmt: skip
    return Config(
        model=Model(**(values | changes)),
        prompt=Prompt(source="none"),
        data=Data(tasks=("qa1",)),
        stages=(Stage(1, 10, 4, 1e-3),),
    )


def compiled(config: Config, shape: Shape):
    """The train step for a batch of this shape; nothing is drawn and nothing runs."""
    made = costs.outline(config, VOCAB)
    graph, params = made.static, made.shapes
    opt = optimizer.build(config, made.weights)
    m = config.model
    trains = config.optimizer.trains
    step = steps.make_train_step(graph, opt, 2, bptt=m.bptt, remat=m.remat, trains=trains)

    def array(*sizes, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    b, s, r, q, t = shape
    batch = Batch(
        tokens=array(b, s, m.segment_tokens),
        mask=array(b, s, m.segment_tokens, dtype=jnp.bool_),
        prompt=array(b, 0),
        prompt_mask=array(b, 0, dtype=jnp.bool_),
        task=array(b),
        answer_start=array(b, r, q),
        answer=array(b, r, q, t),
        weight=array(b, r, q, t, dtype=jnp.float32),
        metric_row=array(b, r, q),
    )
    state = jax.eval_shape(lambda: steps.init_state(params, opt, trains))
    return jax.jit(step, donate_argnums=0).lower(state, batch).compile()


def tuned(config: Config, train: str) -> Config:
    """The same where the backbone is frozen."""
    lora = Lora(rank=8, targets=("qkv", "up"))
    return config.replace(optimizer=Optimizer(train=train), lora=lora, init="somewhere")


SLOW = pytest.mark.slow  # what the other case shows too, a compilation later


@pytest.mark.parametrize(
    "changes",
    # One chunk of a delta memory a segment: XLA counts a loop's body once.
    (
        {"bptt": 1},
        {"cell": "delta", "segment_tokens": 32},
        {"cell": "kv", "positions": "rotary", "cell_options": {"slots": 48}},
        pytest.param({"cell": "armt"}, marks=SLOW),
    ),
    ids=str,
)
def test_an_unrolled_step(changes):
    """Two segments, each in a loop of one turn, which XLA unrolls: all that is executed is counted.
    With `bptt` the first of them is read without gradient."""
    config, shape = settings(**changes), Shape(4, 2)
    program = compiled(config, shape)
    counted = program.cost_analysis()
    # Elementwise work is left out of ours; XLA leaves out what the first, empty memory makes zero,
    # and the last write, which nobody reads: of two segments' delta products, a good part.
    near = {"delta": 0.1, "kv": 0.14}.get(config.model.cell, 0.03)
    assert step_costs.step_flops(config, shape, VOCAB) == pytest.approx(counted["flops"], rel=near)
    # float32 and the CPU's fusion, less than an accelerator's: 1.3 to 3 times ours.
    assert 1.3 < counted["bytes accessed"] / step_costs.step_bytes(config, shape, VOCAB) < 3.2
    held = step_costs.step_memory(config, shape, VOCAB, (1, 1, 1))
    memory = program.memory_analysis()
    # State to the byte, but for the step's number and the sums.
    assert 0 <= memory.output_size_in_bytes - held.weights - held.moments < 1024
    # Unrolled layers share buffers that the plan does not: it may be more than twice as much.
    assert 1 < held.total / (memory.temp_size_in_bytes + held.weights + held.moments) < 2.4


@pytest.mark.parametrize("train", ("lora", pytest.param("memory", marks=SLOW)))
def test_a_step_with_a_frozen_backbone(train):
    """A third of the products is never made, nor is an optimiser's state of frozen weights; layers
    in a loop hold no gradient of their matrices."""
    config, shape = tuned(settings(), train), Shape(4, 2)
    program = compiled(config, shape)
    flops = program.cost_analysis()["flops"]
    assert step_costs.step_flops(config, shape, VOCAB) == pytest.approx(flops, rel=0.03)
    assert flops < 0.75 * step_costs.step_flops(settings(), shape, VOCAB)
    held = step_costs.step_memory(config, shape, VOCAB, (1, 1, 1))
    trained = costs.count_trained(config, VOCAB)
    assert 0 <= held.moments - 8 * trained < 64 and held.gradients == 8 * trained
    memory = program.memory_analysis()
    assert 0 <= memory.output_size_in_bytes - held.weights - held.moments < 1024
    looped = tuned(settings(layers=6, scan_layers=True, remat=True), train)
    used = compiled(looped, shape._replace(segments=6)).memory_analysis().temp_size_in_bytes
    whole = compiled(settings(layers=6, scan_layers=True, remat=True), shape._replace(segments=6))
    spared = whole.memory_analysis().temp_size_in_bytes - used
    assert spared > 0.9 * 4 * costs.layer_weights(looped)


@pytest.mark.parametrize("cell", (pytest.param("rmt", marks=SLOW), "armt"))
def test_a_step_of_loops(cell):
    """As large models are trained: layers in a loop, segments in a loop and rematerialised."""
    config, shape = settings(cell=cell, layers=3, scan_layers=True, remat=True), Shape(4, 6)
    program = compiled(config, shape)
    held = step_costs.step_memory(config, shape, VOCAB, (1, 1, 1))
    used = program.memory_analysis().temp_size_in_bytes + held.weights + held.moments
    assert held.total == pytest.approx(used, rel=0.16)
    # XLA counts a loop's body once: one layer, one of the segments before the last, and the last.
    once = config.replace(model=dataclasses.replace(config.model, layers=1))
    update = step_costs.update_flops(config, VOCAB) - step_costs.update_flops(once, VOCAB)
    expected = step_costs.step_flops(once, shape._replace(segments=2), VOCAB) + update
    assert program.cost_analysis()["flops"] == pytest.approx(expected, rel=0.05)


def test_muon_costs_what_its_products_do():
    """Five iterations on each matrix of GPT-2's block: for D = 1, n²m and n³ by hand."""
    config = settings(width=4, heads=1, layers=1)
    muon = config.replace(optimizer=dataclasses.replace(config.optimizer, name="muon"))
    more = step_costs.update_flops(muon, VOCAB) - step_costs.update_flops(config, VOCAB)
    by_hand = 5 * sum(4 * 16 * large + 2 * 64 for large in (12, 4, 16, 16))
    assert more == by_hand


def test_the_diagonal_schedule_fills_its_pipeline():
    plain = settings(cell="armt", layers=3, scan_layers=True)
    diagonal = settings(cell="armt", layers=3, scan_layers=True, schedule="diagonal")
    for shape in (Shape(1, 4), Shape(1, 64)):
        asked = step_costs.step_flops(diagonal, shape, VOCAB) / step_costs.step_flops(
            plain, shape, VOCAB
        )
        assert asked == pytest.approx((shape.segments + 2) / shape.segments, rel=0.02)
