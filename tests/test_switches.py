"""JAX's switches that a user's process has set for all of it: the same answers, and nothing changed
there."""

import io

import jax
import numpy as np
import pytest
import tiny_run

from rmt_jax import cli, doctor, evaluation
from rmt_jax.data import text_stream
from rmt_jax.evaluation import session as recall
from rmt_jax.runtime import switches

TEXT = "Mary went to the garden. " + "The sun shone on the old house again. " * 20
SWITCHES = [
    ("jax_enable_x64", True),
    ("jax_numpy_dtype_promotion", "strict"),
    ("jax_numpy_rank_promotion", "raise"),
    ("jax_transfer_guard", "disallow"),
    ("jax_disable_jit", True),
    ("jax_debug_nans", True),
    ("jax_default_matmul_precision", "highest"),
]


@pytest.fixture
def switch():
    """Sets a switch until the test ends."""
    before = {}

    def set_to(name, value):
        before[name] = jax.config.values[name]
        jax.config.update(name, value)

    yield set_to
    for name, value in before.items():
        jax.config.update(name, "allow" if name == "jax_transfer_guard" else value)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run.save(tmp_path_factory.mktemp("run"), tiny_run.config("delta"))


def use(run, folder):
    """A model read, asked, kept, taken up and evaluated, as from a program of the user's."""
    model = tiny_run.api.load(run)
    held = recall.Session(model)
    held.read(text_stream.pieces(io.StringIO(TEXT)), held.prompts_for(["Where is Mary?"]))
    held.save(folder / "memory.npz")
    again = recall.Session(model)
    again.load(folder / "memory.npz")
    said = [one.answer("Where is Mary?") for one in (held, again)]
    logits, memory = model.forward([[5, 6, 7] * 40])
    moved = model.memory_cell.state_change(model.initial_memory().state, memory.state)
    result = evaluation.evaluate(model, samples=1, lengths=("1s",), progress=False)[0]
    leaves = [np.asarray(leaf) for leaf in (logits, moved, *jax.tree.leaves(memory))]
    return said, [leaf.dtype for leaf in leaves], leaves, result.accuracy("exact")


def test_a_program_with_switches_of_its_own(run, switch, tmp_path):
    """All at once: each means compiling anew."""
    wanted = use(run, tmp_path)
    needless = {name: value for name, value in SWITCHES if name in switches.NEEDED}
    for name, value in needless.items():
        switch(name, value)
    with jax.transfer_guard_device_to_host("allow"):  # the test looks at arrays, too
        said, kinds, leaves, accuracy = use(run, tmp_path)
    assert (said, kinds, accuracy) == (wanted[0], wanted[1], wanted[3])
    assert all(np.array_equal(a, b) for a, b in zip(leaves, wanted[2], strict=True))
    assert {name: jax.config.values[name] for name in needless} == needless


@pytest.mark.parametrize(("name", "value"), SWITCHES)
def test_a_command_switches_off_what_it_does_not_work_with(switch, capfd, name, value):
    cli.log_to_stderr()
    switch(name, value)
    assert doctor.devices(doctor.Report())
    told, said = capfd.readouterr()
    assert f"{name.upper()}={value}" in told  # in doctor's own lines, whichever it is
    if name in switches.NEEDED:
        assert jax.config.values[name] in switches.NEEDED[name]
        assert f"{name.upper()}={value}" in said and "switched off" in said
    else:
        assert jax.config.values[name] == value and said == ""
