"""TPUs that are not here, as their own compiler knows them: `v5e:2x4`.

`libtpu` compiles on a machine without a TPU for a description of one: memory, tiles, collectives
and refusals are the chip's. Nothing runs.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from rmt_jax.config import ConfigError
from rmt_jax.runtime import hardware

OLDEST = (0, 12)  # JAX whose libtpu reports temporaries; with 0.10 they come out as 0
INSTALL = "pip install 'rmt_jax[tpu]'"
# Chips of a Cloud TPU and the shape in which they are wired.
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}
SHAPES = {"v5e": FLAT, "v6e": FLAT, "v5p": CUBES, "tpu7x": CUBES}
# What libtpu asks the machine that it believes to be on, and Google's metadata server.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling takes no chip that another process may hold
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}


class Topology(NamedTuple):
    """A described TPU.

    Attributes:
      name: 'v5e:2x4', with '2x ' in front for two slices.
      devices: JAX's, which compile and do not run.
    """

    name: str
    chip: hardware.Chip
    devices: list[Any]


def missing() -> str:
    """Why nothing can be compiled for a TPU here, as a sentence; '' where it can."""
    if importlib.util.find_spec("libtpu") is None:
        return f"Compiling for a TPU takes its compiler, libtpu, which is missing: {INSTALL}."
    if jax.__version_info__[:2] < OLDEST:
        return (
            f"JAX {jax.__version__} does not say how much memory a TPU's programs need: take Python"
            f" 3.12 or later, which brings JAX {'.'.join(map(str, OLDEST))}."
        )
    return ""


def describe(name: str, slices: int = 1) -> Topology:
    """The TPU of a name: 'v5e:2x4', or as Google Cloud sells it, 'v6e-16', 'v5litepod-8', 'v5p-8'.

    slices: of that shape each, joined by the data centre's network.

    Raises ConfigError for a name that says no TPU, and where there is no compiler for it.
    """
    kind, shape = parse(name)
    if slices < 1:
        raise ConfigError(f"A TPU has one slice or more, but got {slices}.")
    if told := missing():
        raise ConfigError(told)
    from jax.experimental import topologies

    more = {"num_slices": slices} if slices > 1 else {}
    with _alone():
        try:
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{kind}:{shape}", **more
            )
        except Exception as error:  # whatever libtpu says
            raise ConfigError(
                f"libtpu knows no '{name}': {str(error).splitlines()[0]} Shapes of {kind} that are"
                f" sold: {', '.join(SHAPES[kind].values())}."
            ) from error
    text = f"{kind}:{shape}" if slices == 1 else f"{slices}x {kind}:{shape}"
    return Topology(text, hardware.CHIPS[kind], list(described.devices))


def parse(name: str) -> tuple[str, str]:
    """('v5e', '2x4') of a TPU's name. Raises ConfigError for anything else."""
    text = name.strip().lower().replace("v5litepod", "v5e")
    kind, mark, rest = text.partition(":") if ":" in text else text.partition("-")
    shapes, sold = SHAPES.get(kind), rest
    if shapes and mark == ":" and re.fullmatch(r"\d+(x\d+){1,2}", rest):
        return kind, rest
    if shapes and mark == "-" and rest.isdigit():
        # v5p is sold by its cores, of which a chip has two.
        sold = shapes.get(int(rest) // (2 if kind == "v5p" else 1), "")
        if sold:
            return kind, sold
    raise ConfigError(
        f"'{name}' is no TPU that programs are compiled for: give a kind and its shape in chips,"
        f" such as v5e:2x4 or v6e-16 (kinds: {', '.join(SHAPES)})."
    )


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """While libtpu starts it is told that there is no cluster around it."""
    before = {key: os.environ.get(key) for key in ALONE}
    os.environ.update({key: value for key, value in ALONE.items() if before[key] is None})
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
