"""Our side of the comparison: the package as it is, on the same shapes as benchmarks/peer.py."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.cases import ANSWER, Size, texts
from rmt_jax import api, models
from rmt_jax import config as settings
from rmt_jax.runtime import hardware, startup
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training import optimizer
from rmt_jax.training import step as steps
from rmt_jax.types import Batch

RATE, DECAY, CLIP = 1e-4, 0.01, 1.0  # as in benchmarks/peer.py
MICRO = 4  # texts of a microbatch on a CPU


def config_of(size: Size, remat: bool = False) -> settings.Config:
    """A plain RMT on GPT-2's block or a Llama's, trained with AdamW at a constant rate."""
    llama: dict[str, Any] = {"kv_heads": size.kv_heads, "mlp_width": size.mlp}
    return settings.Config(
        model=settings.Model(
            backbone="llama" if size.kv_heads else "gpt2",
            positions="rotary" if size.kv_heads else "learned",
            backbone_options=llama if size.kv_heads else {},
            cell="rmt",
            layers=size.layers,
            width=size.width,
            heads=size.heads,
            max_positions=size.positions,
            segment_tokens=size.segment,
            memory_tokens=size.memory,
            remat=remat,
            scan_layers=False,
        ),
        prompt=settings.Prompt(source="none"),
        optimizer=settings.Optimizer(weight_decay=DECAY, clip=CLIP, warmup=0.0, decay="constant"),
        stages=(settings.Stage(1, 1, batch=64, learning_rate=RATE),),
    )


def preset() -> settings.Config:
    """configs/multitask.py's `rmt` as it is: ALiBi, convolution, task prompt, Muon."""
    from configs import multitask

    return multitask.cell("rmt")


def batch_of(size: Size, segments: int, batch: int, prompt: int = 0, seed: int = 0) -> Batch:
    """The same random texts as the peer's; one question a text, at its end."""
    made = texts(size, segments, batch, seed)
    one = (batch, 1, 1)
    return Batch(
        tokens=made.tokens,
        mask=np.ones(made.tokens.shape, bool),
        prompt=made.tokens[:, 0, :prompt],
        prompt_mask=np.ones((batch, prompt), bool),
        task=np.zeros(batch, np.int32),
        answer_start=np.full(one, size.segment - 1 - ANSWER, np.int32),
        answer=made.answer[:, None, None],
        weight=np.ones((*one, ANSWER), np.float32),
        metric_row=np.zeros(one, np.int32),
    )


class Ours:
    """What a child process runs: each method makes a function without arguments that does the work
    once and waits for it."""

    def __init__(self, remat: bool = False, as_preset: bool = False):
        self.remat, self.as_preset = remat, as_preset
        # As `rmt_jax.train` does it: a device a core, if the model is small.
        startup.one_device_a_core(preset())

    def _config(self, size: Size) -> settings.Config:
        return preset() if self.as_preset else config_of(size, self.remat)

    def _model(self, config: settings.Config, vocab: int) -> tuple[models.Outline, Any]:
        def built():
            tasks = len(config.data.tasks)
            return models.build(config.model, config.prompt, vocab, tasks, nnx.Rngs(0))

        # Drawn in one program; the rest is made by looking at shapes.
        outline = models.outline(config.model, config.prompt, vocab, len(config.data.tasks))
        return outline, jax.jit(lambda: models.split(built())[1])()

    def train(self, size: Size, segments: int, batch: int) -> Callable[[], Any]:
        config = self._config(size)
        # A process without a mesh of several devices works on the first, with all cores.
        devices = jax.devices() if batch % jax.device_count() == 0 else jax.devices()[:1]
        mesh = sharding.make_mesh(config.mesh, devices)
        rows = batch // len(devices)
        if rows > MICRO and jax.default_backend() == "cpu" and not self.as_preset:
            # The same step in microbatches that stay in the cache.
            config = settings.update(config, {"optimizer.accumulate": rows // MICRO})
        program, state, data = self.step(config, size, segments, batch, mesh)

        def once():
            nonlocal state
            state, sums = program(state, data)
            return jax.block_until_ready((state, sums))[1]

        return once

    def step(
        self, config: settings.Config, size: Size, segments: int, batch: int, mesh: Any
    ) -> tuple[Any, Any, Any]:
        """The jitted train step, not compiled yet, its state and its batch, on the devices."""
        outline, params = self._model(config, size.vocab)
        rule = optimizer.build(config, outline.weights)
        step = steps.make_train_step(
            outline.static,
            rule,
            len(config.data.tasks) + 1,
            bptt=0,
            remat=config.model.remat,
            accumulate=config.optimizer.accumulate,
            mesh=mesh,
        )
        prompt = 0 if config.prompt.source == "none" else config.prompt.tokens
        data = sharding.put_batch(batch_of(size, segments, batch, prompt), mesh)
        state = jax.jit(lambda params: steps.init_state(params, rule))(params)
        place = sharding.place_state(state, params, outline.weights, mesh)
        state = jax.device_put(state, place)
        everywhere = sharding.replicated(mesh)
        program = jax.jit(step, donate_argnums=0, out_shardings=(place, everywhere))
        return program, state, data

    def read(self, size: Size, segments: int, batch: int) -> Callable[[], Any]:
        config = self._config(size)
        model = api.Model(config, self._model(config, size.vocab)[1])
        tokens = texts(size, segments, batch).tokens
        start = model.initial_memory(batch)
        return lambda: jax.block_until_ready(model.read(start, tokens))

    def answer(self, size: Size, new: int) -> Callable[[], Any]:
        config = self._config(size)
        model = api.Model(config, self._model(config, size.vocab)[1])
        tokens = texts(size, 2, 1).tokens
        memory = model.read(model.initial_memory(1), tokens[:, :1])
        # An end that never comes, so that exactly `new` tokens are made, as by the peer.
        return lambda: model.generate_from(memory, tokens[:, 1], max_new_tokens=new, end=-2)

    def peak(self) -> int | None:
        """Bytes of the accelerator's memory at most; None on a CPU."""
        stats = jax.local_devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else None

    def describe(self) -> dict[str, Any]:
        device = jax.local_devices()[0]
        return {
            "jax": jax.__version__,
            "kind": device.device_kind if device.platform != "cpu" else None,
            "peak_flops": hardware.peak(device),
        }
