"""What a run would take, before it is paid for: `python -m rmt_jax.doctor --plan CONFIG`.

FLOPs, bytes and memory are `training.step_costs`', of the stages and of reading long texts.
Time is the longest of three: products at a share of the chip's peak, bytes at a share of its
bandwidth, and the least that a layer takes whatever its size. The first and the last were measured
on one H200 (benchmarks/H200.md); the share of the bandwidth is an assumption.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rmt_jax.config import Config, Stage
from rmt_jax.data.lengths import Length
from rmt_jax.data.loader import TOKENS_PER_QUESTION
from rmt_jax.models import costs
from rmt_jax.models.costs import Shape
from rmt_jax.runtime import hardware
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training import step_costs
from rmt_jax.training.step_costs import Held

UTILISATION = 0.3
BASIS = (
    "30 % of the dense bfloat16 peak, for all that is executed (recomputing included): an H200 made"
    " 35 % of a train step of GPT-2 124M over four segments, 30 to 44 % over one. Elsewhere: a"
    " published reproduction of GPT-2 124M on eight A100s makes 38 %, PaLM 57.8 % (Chowdhery et al."
    " 2022)"
)
STREAMED = 0.7  # of the bandwidth: assumed
LAYER_SECONDS = 54e-6  # the least for one layer's forward pass (H200, GPT-2 base, one text)
HEADS = ("tokens", "FLOPs", "bytes moved", "GB/GPU", "GB/TPU")
READING = ("32k", "1M", "10M")
ANSWER = 4  # tokens of an answer, END included: assumed, for the few logits that it makes


class Row(NamedTuple):
    """One line of the plan; FLOPs and bytes of all devices together."""

    name: str
    count: int  # steps, or texts
    tokens: float
    flops: float
    moved: float
    held: Held  # on each GPU
    least: float  # seconds that the layers take at least
    on_tpu: Held  # on each chip of a TPU, whose arrays fill tiles and which keeps less of a layer

    def on(self, chip: hardware.Chip) -> Held:
        return self.on_tpu if chip.kind.startswith("TPU") else self.held

    def seconds(self, chip: hardware.Chip, devices: int, utilisation: float) -> float:
        products = self.flops / (devices * utilisation * chip.flops)
        bytes_ = self.moved / (devices * STREAMED * chip.bandwidth)
        return max(products, bytes_, self.least)


def stages(config: Config, vocab: int, devices: int) -> list[Row]:
    """Training, a row a stage; lengths are drawn evenly from a stage's buckets, as the loader does.
    Raises ConfigError where the mesh or the batches do not fit the devices."""
    sizes = sharding.mesh_sizes(config.mesh, devices)
    sharding.check_batches(config, sharding.planned(sizes))
    trained = costs.count_trained(config, vocab)
    rows = []
    for number, stage in enumerate(config.stages):
        tokens = flops = moved = least = 0.0
        for segments in stage.buckets:
            shape = shape_of(config, stage, segments)
            share = stage.steps / len(stage.buckets)
            tokens += share * shape.batch * segments * config.model.segment_tokens
            flops += share * step_costs.step_flops(config, shape, vocab)
            # Every device reads its own copy of the weights.
            moved += share * step_costs.step_bytes(config, shape, vocab)
            moved += share * (devices // sizes[2] - 1) * _weights_read(config, shape, trained)
            least += share * _least(config, shape)
        largest = shape_of(config, stage, stage.segments)
        held, on_tpu = (
            step_costs.step_memory(config, largest, vocab, sizes, tpu) for tpu in (False, True)
        )
        name = f"stage {number + 1}: 1-{stage.segments} segments of {config.model.segment_tokens}"
        rows.append(Row(name, stage.steps, tokens, flops, moved, held, least, on_tpu))
    return rows


def reading(config: Config, vocab: int, length: str, batch: int) -> Row:
    """`batch` texts of a length, read side by side on one device (how `evaluate` works)."""
    m = config.model
    tokens = Length.parse(length, m.segment_tokens).tokens
    segments = -(-tokens // m.segment_tokens)
    filled = segments
    if m.schedule == "diagonal":  # a pipeline is filled and drained for each block of 64 segments
        filled += -(-segments // 64) * (m.layers - 1)
    least = LAYER_SECONDS * (filled if m.schedule == "diagonal" else segments * m.layers)
    return Row(
        f"reading {length}",
        batch,
        float(batch * tokens),
        batch * filled * costs.segment_flops(config),
        filled * costs.segment_bytes(config, batch),
        step_costs.reading_memory(config, batch, vocab),
        least,
        step_costs.reading_memory(config, batch, vocab, tpu=True),
    )


def show(
    config: Config, vocab: int, devices: int, names: Sequence[str], utilisation: float
) -> None:
    """Prints the plan for the chips `names` of `hardware.CHIPS`."""
    chips = {name: hardware.CHIPS[name] for name in names}
    trained = stages(config, vocab, devices)
    weights = costs.count_weights(config, vocab)
    mesh = " · ".join(
        f"{a}={n}"
        for a, n in zip(sharding.AXES, sharding.mesh_sizes(config.mesh, devices), strict=True)
    )
    m = config.model
    print(
        f"{m.cell}, {weights:,} weights, {m.layers} layers of {m.width}, vocabulary {vocab:,};"
        f" {devices} device{'s' if devices > 1 else ''} ({mesh})\n"
    )
    print(_header(["training", "steps", *HEADS], chips, "h"))
    hours = [[r.seconds(c, devices, utilisation) / 3600 for c in chips.values()] for r in trained]
    for row, spent in zip(trained, hours, strict=True):
        print(_line(row, spent, "{:,.2f}"))
    steps, tokens, flops, moved = (sum(column) for column in list(zip(*trained, strict=True))[1:5])
    held, on_tpu = (
        max(kind, key=lambda held: held.total)
        for kind in ([row.held for row in trained], [row.on_tpu for row in trained])
    )
    every = Row("all stages", int(steps), tokens, flops, moved, held, 0.0, on_tpu)
    print(_line(every, [sum(column) for column in zip(*hours, strict=True)], "{:,.2f}"))
    print()
    print(_header(["reading, one device", "texts", *HEADS], chips, "s/text"))
    seen = []
    for length in READING:
        for batch in sorted({1, config.evaluation.batch}):
            row = reading(config, vocab, length, batch)
            seen.append(row)
            spent = [row.seconds(c, 1, utilisation) / batch for c in chips.values()]
            print(_line(row, spent, "{:,.2f}"))
    print()
    for name, chip in chips.items():
        rates = (r.tokens / r.seconds(chip, devices, utilisation) for r in trained if r.count)
        print(f"data: the loader must make {max(rates):,.0f} tokens/s on {devices} {name}")
    _notes(config, trained, seen, chips, utilisation)


def tiles(config: Config) -> str:
    """What a segment's places waste of a TPU's tiles, in a sentence; '' for nothing."""
    places, width = costs.places(config), costs.TILE[1]
    padded = -(-places // width) * width
    if places == padded:
        return ""
    fills = padded - width or padded
    tokens = config.model.segment_tokens + fills - places
    return (
        f"{places} places of a segment are padded to {padded} on a TPU:"
        f" model.segment_tokens={tokens} fills {fills}"
    )


def _notes(
    config: Config,
    trained: list[Row],
    seen: list[Row],
    chips: Mapping[str, hardware.Chip],
    utilisation: float,
) -> None:
    for kind in dict.fromkeys(chip.kind.startswith("TPU") for chip in chips.values()):
        one = next(c for c in chips.values() if c.kind.startswith("TPU") == kind)
        row = max(trained, key=lambda row: row.on(one).total)
        parts = dataclasses.asdict(row.on(one)).items()
        print(
            f"memory at the fullest on a {'TPU' if kind else 'GPU'} ({row.name}): "
            + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts if size)
        )
    if any(chip.kind.startswith("TPU") for chip in chips.values()) and (told := tiles(config)):
        print(told)
    texts = config.evaluation.samples * len(config.data.tasks)
    print(f"a full evaluation asks {texts:,} questions a length (evaluation.samples · tasks)")
    advice = ["raise mesh.fsdp or optimizer.accumulate", "lower evaluation.batch"]
    if not config.model.remat:
        advice[0] += ", or set model.remat=true"
    for name, chip in chips.items():
        fullest = [max(r, key=lambda row: row.on(chip).total) for r in (trained, seen)]
        for row, way in zip(fullest, advice, strict=True):
            if (needed := row.on(chip).total) > chip.room:
                print(
                    f"does not fit on {name}: {row.name} needs {needed / 1e9:.1f} GB, JAX"
                    f" takes {chip.room / 1e9:.1f} of {chip.memory / 1e9:.0f} GB: {way}"
                )
    basis = BASIS if utilisation == UTILISATION else f"{100 * utilisation:g} % of the peak, as told"
    print(
        f"time: products at {basis}; bytes at {100 * STREAMED:.0f} % of the bandwidth; a layer's"
        f" pass takes {1e6 * LAYER_SECONDS:.0f} µs at least (as on an H200; the share of the"
        " bandwidth is assumed); no time for data, compiling, validation or the network between"
        " devices"
    )
    if config.model.dtype == "float32":
        print("model.dtype=float32: peaks are bfloat16's, a chip's float32 is 2 to 16 times slower")


def shape_of(config: Config, stage: Stage, segments: int) -> Shape:
    """Sizes of the loader's batches of one bucket."""
    if not stage.dense:
        return Shape(stage.batch, segments, 1, 1, ANSWER)
    questions = max(2, config.model.segment_tokens // TOKENS_PER_QUESTION)
    return Shape(stage.batch, segments, segments, questions, ANSWER)


def _weights_read(config: Config, shape: Shape, weights: int) -> float:
    """Bytes of weights and their update that a further copy of the model moves in a step."""
    read, trained = costs.passes(config, shape)
    times = costs.runs(config, shape)
    layers = float(costs.layer_weights(config))
    return (read + times * trained) * layers * costs.item_bytes(config) + 28.0 * weights


def _least(config: Config, shape: Shape) -> float:
    read, trained = costs.passes(config, shape)
    layers = 1 if config.model.schedule == "diagonal" else config.model.layers
    times = costs.runs(config, shape)
    return LAYER_SECONDS * layers * (read + times * trained) * config.optimizer.accumulate


def _header(cells: list[str], names: Iterable[str], unit: str) -> str:
    return f"{cells[0]:34}" + "".join(
        f"{c:>13}" for c in (*cells[1:], *(f"{n}, {unit}" for n in names))
    )


def _line(row: Row, times: list[float], pattern: str) -> str:
    numbers = [f"{x:.3g}" for x in (row.tokens, row.flops, row.moved)]
    cells = [
        f"{row.count:,}",
        *numbers,
        *(f"{one.total / 1e9:.1f}" for one in (row.held, row.on_tpu)),
    ]
    return f"{row.name:34}" + "".join(f"{c:>13}" for c in (*cells, *map(pattern.format, times)))
