"""What the beginning of a training needs, beside what it should: memory of the host and of each of
eight devices, of a Llama shape born or loaded sharded.

    python -m benchmarks.start [--layers 16] [--width 2048] [--vocab 128256]     (Llama 3.2 1B)

Eight CPU devices, mesh.fsdp=8. A CPU device's memory is the host's, so the shards are subtracted:
what remains should be one tensor. A safetensors folder in two files with an index is written to
--folder first, in bfloat16, and read from there.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

FLAGS = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402  (after the flags that it reads)
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402

from rmt_jax import config as cfg  # noqa: E402
from rmt_jax.models.backbones import BACKBONES  # noqa: E402
from rmt_jax.models.io import names, shapes, weights  # noqa: E402
from rmt_jax.runtime import mesh as sharding  # noqa: E402
from rmt_jax.training import optimizer, step_costs  # noqa: E402
from rmt_jax.training.start import Start  # noqa: E402

HEAD = 64  # columns of a head, eight of queries for one of keys in 1B


class Peak:
    """The largest anonymous memory of this process while the block runs, above that before it:
    what lies in a mapped file can be dropped at any time and does not count."""

    def __enter__(self) -> "Peak":
        self.before = self.most = anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self.after = anonymous()
        self.most = max(self.most, self.after) - self.before


def anonymous() -> int:
    """Bytes of this process that are in no file."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def config(layers: int, width: int, folder: str = "") -> cfg.Config:
    heads = width // HEAD
    options = {"kv_heads": max(1, heads // 4), "mlp_width": 4 * width, "rope_base": 5e5}
    model = cfg.Model(
        "llama", "none", layers, width, heads, "rotary", 131_072, segment_tokens=512,
        backbone_options=options,
    )  # fmt: skip
    return cfg.Config(
        model, cfg.Prompt("none"), cfg.Data(tasks=("qa1",)), (cfg.Stage(4, 100, 8, 1e-4),),
        mesh=cfg.Mesh(data=1, fsdp=8), init=folder,
    )  # fmt: skip


def write(folder: Path, start: Start) -> None:
    """The weights, random, as Hugging Face's folder in two files."""
    rng = np.random.default_rng(0)
    backbone, model = BACKBONES["llama"], start.config.model
    files, index = (("model-1.safetensors", True), ("model-2.safetensors", False)), {}
    shapes = weights.flatten(start.outline.shapes)
    for file, lower in files:
        tensors = {}
        for name, one in shapes.items():
            if ("gate" in name or "up" in name or "down" in name) == lower:
                made = rng.integers(-128, 128, one.shape, np.int8)
                flat = {name: (made * np.float32(2**-10)).astype(ml_dtypes.bfloat16)}
                if name == f"backbone/{backbone.embedding}":
                    tensors["model.embed_tokens.weight"] = flat[name]
                    continue
                flat[f"backbone/{backbone.embedding}"] = np.zeros((1, 1), np.float32)
                theirs = names.to_theirs(flat, backbone, _none())
                kept = {n: np.ascontiguousarray(v) for n, v in theirs.items() if v.size > 1}
                tensors |= kept
        index |= dict.fromkeys(tensors, file)
        weights.write(folder / file, tensors, {"format": "pt"})
    table = {"weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    own = {n.removeprefix("backbone/"): one for n, one in shapes.items()}
    (folder / "config.json").write_text(json.dumps(backbone.to_hf_config(model, own)))


def _none() -> Any:
    from rmt_jax.models.cells import CELLS

    return CELLS["none"]


def shards(tree: Any) -> int:
    """Bytes on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def row(name: str, *bytes_: float) -> str:
    return f"{name:44}" + "".join(f"{size / 1e6:14,.1f}" for size in bytes_)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--folder", default="", help="for the weights that are written and loaded")
    args = parser.parse_args()
    grid = sharding.make_mesh(cfg.Mesh(data=1, fsdp=8))

    def begin(tree: cfg.Config) -> Start:
        start = Start(tree, args.vocab, 1)
        start.lay_out(optimizer.build(tree, start.outline.weights), grid)
        return start

    tree = config(args.layers, args.width)
    start = begin(tree)
    whole = {n: 4 * x.size for n, x in weights.flatten(start.outline.shapes).items()}
    planned, _, moments, _ = step_costs.state_bytes(tree, args.vocab, (1, 8, 1))
    largest = max(whole.values())
    print(f"{sum(whole.values()) // 4:,} weights, float32, mesh.fsdp=8\n")
    print(f"{'MB':44}{'one device':>14}{'plan':>14}{'whole':>14}")
    places = weights.flatten(start.place.params)
    analysis = start.drawing(tuple(places), places).lower().compile().memory_analysis()
    out, temp = analysis.output_size_in_bytes, analysis.temp_size_in_bytes
    print(row("weights that the init program gives", out, planned, sum(whole.values())))
    print(row("beside them, while it runs", temp, 0, 0))
    with tempfile.TemporaryDirectory(dir=args.folder or None) as name:
        write(Path(name), start)
        shapes.of_source(
            name
        )  # as `model.backbone=init` does; what it imports is no weights' memory
        start = begin(config(args.layers, args.width, name))
        begun = time.monotonic()
        with Peak() as peak:
            params = start.loaded()
            jax.block_until_ready(params)
        spent = time.monotonic() - begun
        held = sum(shard.data.nbytes for leaf in jax.tree.leaves(params)
                   for shard in leaf.addressable_shards)  # fmt: skip
        print(row("weights that loading gives", shards(params), planned, sum(whole.values())))
        program = start.moments().lower(params).compile()
        size = program.memory_analysis().output_size_in_bytes
        print(row("moments that the program gives", size, moments, 2 * sum(whole.values())))
    print(f"\n{'host, MB':44}{'peak':>14}{'of it shards':>14}{'remains':>14}{'one tensor':>14}")
    print(row("loading, all eight devices' shards", peak.most, held, peak.most - held, largest))
    print(f"\nread in {spent:.1f} s")


if __name__ == "__main__":
    main()
