"""Compiles train steps for NVIDIA GPUs that aren't there:

    python tests/gpu_compile.py [CASE ...] [--cards 1,2,4,8]

CASE: a memory cell around GPT-2, `llama` (with the delta memory) or `lora` (its adapters).

Needs `pip install 'jax[cuda13]' jax-triton` on Linux, and no GPU: XLA compiles for a description of
an H200. Several cards, by every kind of mesh: whether JAX and XLA can compile the step at all, how
often a step waits for the other cards, and whether cuDNN's attention and our kernels stand in it
where they should. Ends with 1 if something is not as it should be. It runs nothing. With --tiny it
compiles for CPUs: that the script works, nothing more.
"""

import argparse
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
os.environ["JAX_NUM_CPU_DEVICES"] = "8"  # for --tiny

import jax
import optax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from rmt_jax import config, models
from rmt_jax.models.ops import kernels
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training import step as steps
from tests import tiny
from tests.gpu_check import GPU, TINY, Sizes, batch, model

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
    config.Mesh(data=2),
    config.Mesh(data=4),
    config.Mesh(data=8),
    config.Mesh(data=1, fsdp=2),
    config.Mesh(data=1, tensor=2),
    config.Mesh(data=2, fsdp=2),
    config.Mesh(data=1, fsdp=8),
    config.Mesh(data=2, fsdp=2, tensor=2),
)
CASES = (*tiny.CELLS[:-1], "llama", "lora")  # not kv, whose attention no kernel serves
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


def compiled(case: str, sizes: config.Mesh, small: bool) -> str:
    """The text of the compiled train step. small: for CPUs."""
    count = sizes.data * sizes.fsdp * sizes.tensor
    devices = jax.devices()[:count]
    if not small:
        devices = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=CARD, topology=f"1x1x{count}"
        ).devices
    mesh = sharding.make_mesh(sizes, list(devices))
    cell, train = (
        "delta" if case in ("llama", "lora") else case,
        "lora" if case == "lora" else "all",
    )
    own: dict[str, Any] = {"heads": 4, "dtype": "bfloat16"}
    if case in ("llama", "lora"):
        own |= {"backbone": "llama"}
    shape: Sizes = TINY if small else GPU._replace(width=256, texts=8)
    graph, params = model(cell, shape, train, **own)
    rule, trains = optax.sgd(1.0), config.Optimizer(train=train).trains
    infos = models.merge(graph, params).weights()
    state = jax.eval_shape(lambda: steps.init_state(params, rule, trains))
    texts = batch(0, shape._replace(texts=8))
    place = sharding.place_state(state, params, infos, mesh)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def shapes(tree: Any, where: Any) -> Any:
        return jax.tree.map(
            lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree, where
        )

    with contextlib.nullcontext() if small else pretended(count):
        step = steps.make_train_step(
            graph, rule, 3, bptt=0, remat=case == "rmt", trains=trains, mesh=mesh
        )
        program = jax.jit(step, out_shardings=(place, sharding.replicated(mesh)))
        traced = program.trace(
            shapes(state, place), shapes(texts, jax.tree.map(lambda _: rows, texts))
        )
        if small:
            return traced.lower().compile().as_text() or ""
        return traced.lower(lowering_platforms=("cuda",)).compile(OPTIONS).as_text() or ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--cards", default="1,2,4,8", help="numbers of cards")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for CPUs")
    args = parser.parse_args()
    counts, failed = {int(count) for count in args.cards.split(",")}, False
    # What two and eight cards have not compiled before comes first: the time may be short.
    cases = args.cases or (("rmt", "llama", "lora") if args.tiny else CASES[::-1])
    for case in cases:
        for sizes in MESHES:
            if sizes.data * sizes.fsdp * sizes.tensor not in counts:
                continue
            name = f"{case}, data {sizes.data} fsdp {sizes.fsdp} tensor {sizes.tensor}"
            text = compiled(case, sizes, args.tiny)
            waits = text.count(" all-reduce(") + text.count(" all-reduce-start(")
            ours, cudnn = "triton_kernel_call" in text, "cudnn$fmha" in text
            alone = sizes.fsdp == sizes.tensor == 1
            bad = alone and waits > MOST
            if not args.tiny:
                # Ours are of LayerNorm and gelu, which a Llama has not.
                bad |= cudnn != (alone or sizes.data == 1) or ours != (alone and case in tiny.CELLS)
            failed |= bad
            print(
                f"{name}: waits {waits} times, cuDNN {'yes' if cudnn else 'no'}, our kernels"
                f" {'yes' if ours else 'no'}{': NOT AS IT SHOULD BE' if bad else ''}",
                flush=True,
            )
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
