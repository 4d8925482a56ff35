"""Counts that do not jitter: what the compiler says of our programs, and how many it makes.

    python tests/counts.py            prints them as JSON
    python tests/counts.py --write    records them in tests/counts.json, for this version of JAX

Each supported Python brings its own JAX (pyproject.toml): record with `python3.11` for JAX 0.10 and
with `python3.13` for 0.12.

`test_counts.py` fails where one has grown by more than 5 % over its record. XLA counts the body of
a loop once, whatever its turns: FLOPs and bytes are of one segment, and of one layer where layers
are a loop. They do not depend on the number of cores; they do on JAX's version and the processor.
"""

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

RECORD = Path(__file__).with_name("counts.json")
ROOT = Path(__file__).parents[1]
ALLOWED = 0.05


# What must have a record: the versions of JAX that the supported Pythons bring.
SUPPORTED = ("jax 0.10, x86_64", "jax 0.12, x86_64")


def version() -> str:
    import jax

    return f"jax {'.'.join(jax.__version__.split('.')[:2])}, {platform.machine()}"


def grown(record: dict[str, float], now: dict[str, float]) -> list[str]:
    """A sentence for each figure above its record by more than 5 %, or without one."""
    told = []
    for name, value in now.items():
        old = record.get(name)
        if old is None:
            told.append(f"{name} is {value:,.0f} and has no record")
        elif value > old * (1 + ALLOWED):
            told.append(f"{name} grew from {old:,.0f} to {value:,.0f}, by {value / old - 1:.1%}")
    return told


def program(name: str, compiled) -> dict[str, float]:
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        f"{name}: FLOPs": cost["flops"],
        f"{name}: bytes accessed": cost["bytes accessed"],
        f"{name}: temporary bytes": memory.temp_size_in_bytes,
    }


def preset(name: str, **values):
    """A preset of configs/multitask.py with some fields set, `model__layers=2`."""
    from rmt_jax import cli, config, validation

    changed = {field.replace("__", "."): value for field, value in values.items()}
    found = config.update(cli.load_config(f"{ROOT}/configs/multitask.py:{name}"), changed)
    validation.validate(found)
    return found


def training(config, segments: int):
    """The compiled train step, for batches as the loader makes them."""
    import jax
    import numpy as np

    from rmt_jax.data import tokenizer
    from rmt_jax.data.loader import Loader
    from rmt_jax.models import costs
    from rmt_jax.training import optimizer
    from rmt_jax.training import step as steps

    words = tokenizer.load("builtin")
    loader = Loader(config, words)
    first = next(s for s in range(100) if loader.segments_at(s) == segments)
    batch = loader.batch_at(first)
    made = costs.outline(config, words.vocab_size)
    graph, params = made.static, made.shapes
    opt = optimizer.build(config, made.weights)
    m = config.model
    step = steps.make_train_step(graph, opt, 6, bptt=m.bptt, remat=m.remat)
    state = jax.eval_shape(lambda: steps.init_state(params, opt))
    return jax.jit(step, donate_argnums=0).lower(state, jax.tree.map(np.asarray, batch)).compile()


def reading(config, texts: int):
    """The compiled programs that read a block of segments, and that decode an answer."""
    import jax
    import numpy as np

    from rmt_jax import models
    from rmt_jax.models import costs, generate, schedule
    from rmt_jax.types import Prompt, Segment

    made = costs.outline(config, 512)
    graph, params = made.static, made.shapes
    length, told = config.model.segment_tokens, config.prompt.tokens
    prompt = Prompt(
        np.zeros((texts, told), np.int32), np.ones((texts, told), bool), np.zeros(texts, np.int32)
    )
    tokens = np.zeros((texts, 64, length), np.int32)
    memory = jax.eval_shape(lambda params: models.merge(graph, params).initial(texts), params)

    def read(params, memory, tokens, mask, count):
        model = models.merge(graph, params)
        return schedule.read_some(model, memory, tokens, mask, prompt, count)

    def answer(params, memory, tail):
        model = models.merge(graph, params)
        return generate.continue_text(model, memory, tail, prompt, max_new_tokens=4, ends=(1,))

    tail = Segment(tokens[:, 0], tokens[:, 0] == 0)
    return (
        jax.jit(read).lower(params, memory, tokens, tokens == 0, np.int32(64)).compile(),
        jax.jit(answer).lower(params, memory, tail).compile(),
    )


def compilations() -> dict[str, float]:
    """Programs that one curriculum of two stages compiles, everything around its steps included:
    the real loop on the smoke preset, with nothing saved."""
    import jax
    from flax import nnx

    from rmt_jax import models
    from rmt_jax.data import tokenizer
    from rmt_jax.data.loader import Loader
    from rmt_jax.runtime import mesh as sharding
    from rmt_jax.training import optimizer
    from rmt_jax.training import step as steps
    from rmt_jax.training.loop import Loop, Programs

    count = 0

    def heard(event: str, _: float, **__) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    config = preset(
        "smoke", optimizer__name="adamw", stages__0__steps=4, stages__1__steps=12,
        stages__0__batch=4, stages__1__batch=4,
        evaluation__samples=1, evaluation__batch=5,
    )  # fmt: skip
    words = tokenizer.load("builtin")
    rngs = nnx.Rngs(0)
    model = models.build(config.model, config.prompt, words.vocab_size, 5, rngs)
    (graph, params), infos = models.split(model), model.weights()
    opt, mesh = optimizer.build(config, infos), sharding.make_mesh(config.mesh)
    state = jax.jit(lambda params: steps.init_state(params, opt))(params)
    state = jax.device_put(state, sharding.place_state(state, params, infos, mesh))
    step = steps.make_train_step(graph, opt, 6, bptt=0, remat=False)
    train = Programs(step, donate_argnums=0)
    check = Programs(steps.make_eval_step(graph, 6), out_shardings=sharding.replicated(mesh))
    nothing = SimpleNamespace(save=lambda *_: None, wait=lambda: None, best=lambda: None)
    signals = SimpleNamespace(stop_at=lambda _: False, noted=False)
    jax.monitoring.register_event_duration_secs_listener(heard)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(config, mesh, train, check, nothing, Path(folder), signals)  # pyright: ignore
        loop.run(state, Loader(config, words), Loader(config, words, "validation"))
    return {
        "compilations of one curriculum": count,
        "train and validation programs": len(train._programs) + len(check._programs),
    }


def measured() -> dict[str, float]:
    small = preset("five", model__layers=2)
    loops = preset(
        "armt", model__layers=2, model__scan_layers=True, model__remat=True, optimizer__name="adamw"
    )
    read, answer = reading(small, 8)
    return {
        **program("train step", training(small, 2)),
        **program("train step, ARMT in loops", training(loops, 2)),
        **program("reading", read),
        **program("decoding", answer),
        **compilations(),
    }


def main() -> None:
    # Before JAX is imported: one device, no cache, and nothing for LLVM to do: these are XLA's.
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    found = measured()
    if "--write" in sys.argv[1:]:
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record[version()] = found
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
