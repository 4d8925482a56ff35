"""Compiles train steps for NVIDIA GPUs that aren't there: `python tests/gpu_compile.py [CELL ...]`.

Needs `pip install 'jax[cuda13]' jax-triton` on Linux, and no GPU: XLA compiles for a description of
an H200. Several cards, by every kind of mesh: whether JAX and XLA can compile the step at all, how
often a step waits for the other cards, and whether cuDNN's attention and our kernels stand in it
where they should. Ends with 1 if something is not as it should be. It runs nothing.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import optax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from rmt_jax import config
from rmt_jax.models.ops import kernels
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training import step as steps
from tests import tiny
from tests.gpu_check import LENGTH, batch

# What XLA wants to know of the card; the vendor's figures for an H200.
CARD = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 device_memory_size: 151397597184
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200 141GB HBM3e"
"""
# Trying which matrix kernel is fastest needs the card.
OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
MESHES = (
    config.Mesh(data=1),
    config.Mesh(data=4),
    config.Mesh(data=1, fsdp=2),
    config.Mesh(data=1, tensor=2),
    config.Mesh(data=2, fsdp=2),
)
MOST = 16  # times that a step may wait, where texts alone are split


@contextlib.contextmanager
def pretended(count: int) -> Iterator[None]:
    """Has our code and JAX's believe that there are `count` such cards."""
    import jaxlib.gpu_triton
    from jax._src.cudnn import fused_attention_stablehlo as attention

    card = SimpleNamespace(platform="gpu", compute_capability="9.0")
    kernels._compiler.cache_clear()
    with contextlib.ExitStack() as stack:
        for where, name, what in (
            (jax, "default_backend", lambda: "gpu"),
            (jax, "devices", lambda *_: [card] * count),
            (jax, "device_count", lambda: count),
            (attention, "check_compute_capability", lambda *_: True),
            (attention, "check_cudnn_version", lambda *_: 91000),
            (jaxlib.gpu_triton, "get_compute_capability", lambda _: 90),
            (kernels, "LEAST", 0),
        ):
            stack.enter_context(mock.patch.object(where, name, what, create=True))
        yield


def compiled(cell: str, sizes: config.Mesh, remat: bool) -> str:
    """The text of the compiled train step."""
    count = sizes.data * sizes.fsdp * sizes.tensor
    cards = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=CARD, topology=f"1x1x{count}"
    ).devices
    mesh = sharding.make_mesh(sizes, list(cards))
    changes: dict[str, Any] = {"width": 128, "heads": 2, "max_positions": 128, "d_mem": 16}
    told = config.Prompt(
        "question", "every", tiny.WORDS
    )  # an even number of places, as cuDNN wants
    graph, params = tiny.model(
        told, cell=cell, segment_tokens=LENGTH, memory_tokens=4, dtype="bfloat16", **changes
    )
    rule = optax.sgd(1.0)
    state = jax.eval_shape(lambda: steps.init_state(params, rule))
    texts = batch(0)
    place = sharding.place_state(state, params, mesh)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def shapes(tree: Any, where: Any) -> Any:
        return jax.tree.map(
            lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree, where
        )

    with pretended(count):
        step = steps.make_train_step(graph, rule, 3, bptt=0, remat=remat, mesh=mesh)
        program = jax.jit(step, out_shardings=(place, sharding.replicated(mesh)))
        traced = program.trace(
            shapes(state, place), shapes(texts, jax.tree.map(lambda _: rows, texts))
        )
        return traced.lower(lowering_platforms=("cuda",)).compile(OPTIONS).as_text() or ""


def main() -> None:
    failed = False
    for cell in sys.argv[1:] or tiny.CELLS:
        for sizes in MESHES:
            name = f"{cell}, data {sizes.data} fsdp {sizes.fsdp} tensor {sizes.tensor}"
            text = compiled(cell, sizes, remat=cell == "rmt")
            waits = text.count(" all-reduce(") + text.count(" all-reduce-start(")
            ours, cudnn = "triton_kernel_call" in text, "cudnn$fmha" in text
            alone = sizes.fsdp == sizes.tensor == 1
            bad = cudnn != (alone or sizes.data == 1) or ours != alone
            bad |= alone and waits > MOST
            failed |= bad
            print(
                f"{name}: waits {waits} times, cuDNN {'yes' if cudnn else 'no'}, our kernels"
                f" {'yes' if ours else 'no'}{': NOT AS IT SHOULD BE' if bad else ''}",
                flush=True,
            )
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
