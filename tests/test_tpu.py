"""Programs as the TPU's own compiler makes them, for TPUs that aren't here (`tpu_compile.py`)."""

import dataclasses
import functools
import itertools
import json
import re

import jax
import jax.numpy as jnp
import pytest
import tpu_compile
from tpu_compile import CELLS, LENGTH, TEXTS, VOCAB, Case

from rmt_jax import config
from rmt_jax.config import ConfigError
from rmt_jax.runtime import mesh as sharding
from rmt_jax.runtime import program_text, topology

SLOW = pytest.mark.slow
FAST = {Case().name, Case("delta", "llama", "reading").name}


def compiler() -> None:
    if told := topology.missing():
        pytest.skip(told)


@functools.cache
def made(case: Case):
    """The compiled program and its text."""
    compiler()
    program = tpu_compile.compiled(case)
    return program, program_text.Program(program.as_text() or "")


def each(cases) -> list:
    """Parameters, those that are not FAST marked slow."""
    return [
        pytest.param(case, id=case.name, marks=[] if case.name in FAST else [SLOW])
        for case in cases
    ]


SLICES = [case for case in tpu_compile.cases() if case.slices > 1 and case.mesh[1] == 1]


def training(**changes) -> list[Case]:
    return [Case(cell, **changes) for cell in CELLS]


@pytest.mark.parametrize("case", each(tpu_compile.cases()))
def test_nothing_has_grown(case):
    compiler()
    record = json.loads(tpu_compile.RECORD.read_text()).get(tpu_compile.version())
    if record is None:
        pytest.skip(f"tests/tpu_counts.json has no record for {tpu_compile.version()}")
    now, old = tpu_compile.figures(made(case)[0]), record[case.name]
    told = [f"{n}: {old[n]:,.0f} to {now[n]:,.0f}" for n in now if now[n] > 1.05 * old[n]]
    again = f"python tests/tpu_compile.py --write '{case.name}'"
    assert not told, f"{'; '.join(told)}: if that is meant, record it with `{again}`"


def test_the_record_is_of_the_cases():
    for record in json.loads(tpu_compile.RECORD.read_text()).values():
        assert record.keys() == {case.name for case in tpu_compile.cases()}


@pytest.mark.parametrize(
    "case", each(c for c in training() if c.cell in ("rmt", "armt", "delta", "kv"))
)
def test_memory_is_flat_in_segments(case):
    """Of four times the segments a step holds the memory that is carried, and no activations."""
    few, many = (
        made(dataclasses.replace(case, segments=n * case.segments))[0].memory_analysis()
        for n in (1, 4)
    )
    assert many.temp_size_in_bytes < 1.15 * few.temp_size_in_bytes


@pytest.mark.parametrize("case", each([*training(), *training(mesh=(1, 4, 1))]))
def test_the_state_is_donated(case):
    memory = made(case)[0].memory_analysis()
    assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes


@pytest.mark.parametrize("case", each([*training(), *SLICES]))
def test_gradients_meet_once_a_step(case):
    """Along `data` chips wait for each other outside all loops: the weights of the losses, and the
    gradients with the sums. Of two slices each chip tells its share of the gradients, once."""
    program, text = made(case)
    counts = text.count()
    assert counts.looped == 0
    if case.slices == 1:
        assert counts.messages <= 2 and counts.across == 0
    else:
        weights = program.memory_analysis().output_size_in_bytes / 3  # beside two moments
        assert counts.across < 1.1 * weights / (case.mesh[0] / case.slices)


@pytest.mark.parametrize("case", each(c for c in tpu_compile.cases() if c.program == "reading"))
def test_readers_do_not_wait_for_each_other(case):
    if case.mesh[0] == 4 and case.texts == TEXTS:
        assert made(case)[1].count().messages == 0


@pytest.mark.parametrize("case", each(c for c in tpu_compile.cases() if c.texts == 1))
def test_sharers_of_layers_hand_on_once_a_segment(case):
    """Each chip hands a segment on to the next one, and says nothing else."""
    counts = made(case)[1].count()
    assert counts.looped == counts.messages == 1


@pytest.mark.parametrize("case", each(tpu_compile.cases()))
def test_no_place_has_all_logits(case):
    """Logits stand where answers do: no array is as large as texts · places · vocabulary of a
    chip, nor of all texts."""
    rows = TEXTS // (case.mesh[0] * case.mesh[1])
    state = 3 * 256 * 2048  # the largest weight, which is as large
    for array in made(case)[1].stored():
        if VOCAB in array.shape:
            assert array.size <= max(state, rows * LENGTH * VOCAB // 4), array


@pytest.mark.parametrize("case", each(c for c in tpu_compile.cases() if c.changes))
def test_no_scores_are_stored(case):
    """From 384 places on attention is a kernel, on every mesh, and no array is of places²."""
    if ("model.segment_tokens", 384) in case.changes:
        places = 384 + 8 + 8 * (case.cell == "rmt") + 4 * (case.cell == "armt")
        program, text = made(case)
        assert "splash_mha_fwd" in (program.as_text() or "")
        for array in text.stored():
            sides = [array.shape.count(size) for size in (places, -(-places // 128) * 128)]
            assert max(sides) < 2, array


@pytest.mark.parametrize("case", each(tpu_compile.cases()))
def test_products_are_of_bfloat16(case):
    """But for those that a cell makes in float32: of delta's and ARMT's matrices of memory."""
    text = made(case)[1]
    most = {"delta": 0.5, "armt": 0.3}.get(case.cell, 0.01)
    counts = text.count()
    assert counts.wide_flops <= most * counts.flops
    # Without a memory reading leaves nothing behind, and so nothing is computed.
    assert (counts.flops > 0) == (case.cell != "none" or case.program != "reading")


@pytest.mark.parametrize("case", each([Case(), Case("delta", "llama", "reading")]))
def test_our_count_is_the_compilers(case):
    """Where loops count once, whatever stays on the chip counts as moved, tiles are not padded, and
    a slice that is fetched ahead reads all that it is cut from: XLA's cost analysis."""
    program, _ = made(case)
    plain = program_text.Program(re.sub(r":(T\(|S\()[^}]*\}", "}", program.as_text() or ""))
    ours, theirs, whole = plain.count(loops=False), program.cost_analysis(), 0.0
    for computation in plain.computations.values():
        cut = [one for one in computation.values() if one.opcode == "slice-start"]
        whole += sum(computation[o.operands[0]].out.held - o.arrays[1].held for o in cut)
    assert ours.moved + whole == pytest.approx(theirs["bytes accessed"], rel=0.2)
    # XLA's has elementwise work too.
    assert 0.7 * theirs["flops"] < ours.flops < theirs["flops"]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_loop_counts_as_often_as_it_turns(step):
    """Products of 128 · 256 · 256 in a loop in a loop of three, of arrays in bfloat16. The compiler
    counts in twos where it makes one turn of two, as it does for products of split weights."""
    compiler()
    device = topology.describe("v5e:2x2").devices[0]
    place = jax.sharding.SingleDeviceSharding(device)

    def repeated(x, kernel):
        def turn(state):
            return state[0] + step, jnp.tanh(state[1] @ kernel)

        def inner(x):
            return jax.lax.while_loop(lambda state: state[0] < 5, turn, (0, x))[1]

        return jax.lax.scan(lambda x, _: (inner(x), None), x, length=3)

    shapes = [
        jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=place) for s in ((128, 256), (256,) * 2)
    ]
    program = jax.jit(repeated).trace(*shapes).lower(lowering_platforms=("tpu",)).compile()
    text = program_text.Program(program.as_text() or "")
    assert text.count().flops == 3 * len(range(0, 5, step)) * 2 * 128 * 256 * 256
    assert text.count(loops=False).flops == 2 * 128 * 256 * 256
    assert text.count().wide_flops == text.count().open_loops == 0


@pytest.mark.portable
@pytest.mark.parametrize("stride, holes, gaps", [(1, 1, 1), (2, 1, 3), (1, 3, 2), (2, 3, 1)])
def test_a_convolution_counts_what_meets_an_input(stride, holes, gaps):
    """Not what falls on padding, or on the holes of a dilated input: pairs counted one by one."""
    for inputs, outputs, size, low in itertools.product((1, 4, 7), (1, 5, 6), (1, 3), (-2, 0, 4)):
        window = f"size={size} stride={stride} pad={low}_0 lhs_dilate={holes} rhs_dilate={gaps}"
        how = f"window={{{window}}}, dim_labels=b0f_0io->b0f"
        text = f"""
HloModule one

ENTRY %main (x: f32[1,{inputs},1], k: f32[{size},1,1]) -> f32[1,{outputs},1] {{
  %x = f32[1,{inputs},1]{{2,1,0}} parameter(0)
  %k = f32[{size},1,1]{{2,1,0}} parameter(1)
  ROOT %y = f32[1,{outputs},1]{{2,1,0}} convolution(%x, %k), {how}
}}
"""
        places = (o * stride + k * gaps - low for o in range(outputs) for k in range(size))
        meetings = sum(p % holes == 0 and 0 <= p // holes < inputs for p in places)
        assert program_text.Program(text).count().flops == 2 * meetings


SHARE = 3 / 4 * 4 * 512 * 1024  # bytes of f32[512, 1024] that are others', of four chips


@pytest.mark.parametrize(
    ("said", "received"),
    [
        (lambda x: jax.lax.psum(x, "data"), 2 * SHARE),
        (lambda x: jax.lax.psum_scatter(x, "data", tiled=True), SHARE),
        (lambda x: jax.lax.all_gather(x[:128], "data", tiled=True), SHARE),
        (lambda x: jax.lax.all_to_all(x, "data", 0, 1, tiled=True), SHARE),
        (lambda x: jax.lax.ppermute(x, "data", [(i, (i + 1) % 4) for i in range(4)]), SHARE / 0.75),
    ],
    ids=["sum", "sum of shares", "gather", "exchange", "neighbour"],
)
def test_bytes_that_other_chips_tell(said, received):
    compiler()
    mesh = sharding.make_mesh(config.Mesh(4, 1, 1), topology.describe("v5e:2x2").devices)
    place = jax.sharding.PartitionSpec("data")
    spread = jax.shard_map(said, mesh=mesh, in_specs=place, out_specs=place, check_vma=False)
    shape = jax.ShapeDtypeStruct(
        (4 * 512, 1024), jnp.float32, sharding=jax.sharding.NamedSharding(mesh, place)
    )
    program = jax.jit(spread).trace(shape).lower(lowering_platforms=("tpu",)).compile()
    counts = program_text.Program(program.as_text() or "").count()
    assert counts.messages == 1 and counts.received == received


@pytest.mark.portable
def test_text_of_any_compiler():
    """XLA writes the same language for a CPU, so that reading it is tested without a TPU: batched
    products, a loop, and an array that is sliced in each turn."""
    rows, turns = 64, 7

    def sliced(table, x):
        def body(i, x):
            part = jax.lax.dynamic_slice_in_dim(table, 0, rows) * i
            return jnp.einsum("bij,bjk->bik", x, part.reshape(4, 16, 16))

        return jax.lax.fori_loop(0, turns, body, x)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64 * rows, 16), (4, 8, 16))]
    text = program_text.Program(jax.jit(sliced).lower(*shapes).compile().as_text() or "")
    counts = text.count()
    assert counts.flops == turns * 2 * 4 * 8 * 16 * 16 == counts.wide_flops
    assert counts.moved < 64 * rows * 16 * 4  # not all of the table, though it is there each time
    assert counts.messages == counts.open_loops == 0


@pytest.mark.portable
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("v5e:2x4", ("v5e", "2x4")),
        ("v6e-16", ("v6e", "4x4")),
        ("v5litepod-8", ("v5e", "2x4")),
        ("v5p-8", ("v5p", "2x2x1")),
        ("tpu7x:2x2x1", ("tpu7x", "2x2x1")),
    ],
)
def test_names_of_tpus(name, found):
    assert topology.parse(name) == found


@pytest.mark.portable
@pytest.mark.parametrize("name", ("v5e", "h100:8", "v5e:", "v6e-7", "v5e-2x4", "tpu"))
def test_what_is_no_tpu_gets_a_sentence(name):
    with pytest.raises(ConfigError, match="give a kind and its shape in chips"):
        topology.describe(name)


@pytest.mark.portable
def test_without_the_compiler_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rmt_jax\[tpu\]'"):
        topology.describe("v5e:2x4")
