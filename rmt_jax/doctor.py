"""Says what this machine has, how fast it is, and what is missing, with the commands that add it.

    python -m rmt_jax.doctor [--seconds 10] [--offline]
    python -m rmt_jax.doctor --plan configs/multitask.py:gpt2 --devices 8 [--device h100]
                             [--config.section.field=VALUE …]

The second looks at no machine: it says what training that config, and reading long texts with it,
would take on such devices: FLOPs, bytes, memory, hours. With `--compile v5e:2x4` the TPU's compiler
says it of each program, on a machine without a TPU (extra `tpu`).

Exit code 0: training can start; 1: something needs repair (the lines that begin with 'problem'), or
a program does not fit.
Optional parts that are missing, and a hub that cannot be reached, are no problems.
"""

import argparse
import http.client
import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
import urllib.error
import urllib.request

from rmt_jax import cli
from rmt_jax.config import ConfigError, import_extensions
from rmt_jax.validation import validate

REQUIRED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "safetensors", "grain")
SLOWER = ("transformers", "tokenizers", "tensorflow-datasets", "array-record", "matplotlib")
# Module, what it is for, how to get it.
OPTIONAL = (
    ("tensorboardX", "TensorBoard files while training", "pip install tensorboardX"),
    ("wandb", "Weights & Biases while training", "pip install wandb"),
    ("torch", "parity tests and benchmarks against PyTorch", "pip install -e '.[test]'"),
    ("lm_eval", "lm-evaluation-harness on our checkpoints", "pip install lm-eval"),
    ("jinja2", "chat templates of instruct models", "pip install 'rmt_jax[chat]'"),
    ("pytest", "the tests", "pip install -e '.[test]'"),
)
GPT2_VOCAB = 50_257
MATMUL_FLOPS = 2.0  # a multiply and an add, for each of n³


class Report:
    """Lines for the reader, and what needs repair."""

    def __init__(self):
        self.problems: list[str] = []

    def line(self, name: str, text: str) -> None:
        print(f"{name:10} {text}", flush=True)

    def problem(self, text: str) -> None:
        self.problems.append(text)
        self.line("problem", text)


def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="python -m rmt_jax.doctor", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=10.0, help="time for the speed tests")
    parser.add_argument("--offline", action="store_true", help="do not look for the hub")
    parser.add_argument("--plan", metavar="FILE[:PRESET]", help="what this config would take")
    parser.add_argument("--compile", metavar="TPU", help="v5e:2x4, v6e-16: by its own compiler")
    parser.add_argument("--slices", type=int, default=1, help="of such TPUs, joined by a network")
    parser.add_argument("--devices", type=int, default=1, help="how many to plan with")
    parser.add_argument("--device", default="", help="v5e, v6e, a100, h100, h200 (default: all)")
    parser.add_argument("--utilisation", type=float, default=0.0, help="share of the peak, 0 to 1")
    args, rest = parser.parse_known_args(argv)
    if args.plan:
        return plan_run(args, cli.parse_overrides(rest))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")

    report = Report()
    versions(report)
    if devices(report):
        memory(report)
        matmul(report, args.seconds / 2)
        attend(report)
        train_step(report, args.seconds / 2)
    optional(report)
    hub(report, args.offline)
    good = not report.problems
    report.line("verdict", "ready to train" if good else f"{len(report.problems)} problem(s)")
    return 0 if good else 1


def plan_run(args: argparse.Namespace, overrides: dict[str, object]) -> int:
    """Prints what a config would take; no device of this machine is touched."""
    config = cli.apply_overrides(cli.load_config(args.plan), overrides)
    import_extensions(config)
    validate(config)
    os.environ["JAX_PLATFORMS"] = "cpu"
    from rmt_jax import models
    from rmt_jax.data import tasks, tokenizer
    from rmt_jax.models.io import shapes
    from rmt_jax.runtime import hardware, topology
    from rmt_jax.training import compiled_plan, plan

    tasks.check(config)
    tpu = topology.describe(args.compile, args.slices) if args.compile else None
    names = cli.split_names(args.device) or list(hardware.USUAL)
    for name in names:
        if name not in hardware.CHIPS:
            raise ConfigError(f"There are no figures for '{name}': {', '.join(hardware.CHIPS)}.")
    if args.devices < 1:
        raise ConfigError(f"--devices must be 1 or more, but got {args.devices}.")
    if not 0 <= args.utilisation <= 1:
        raise ConfigError(f"--utilisation is between 0 and 1, but got {args.utilisation}.")
    vocab = None
    if config.model.backbone == shapes.INIT:
        vocab = shapes.of_source(config.init).vocab if config.data.tokenizer == "init" else None
        config = shapes.settle(config)
    models.check(config.model, config.prompt)
    if config.tokenizer == "gpt2":
        vocab = vocab or GPT2_VOCAB  # known without fetching anything
    vocab = vocab or tokenizer.load(config.tokenizer).vocab_size
    if tpu is not None:
        return compiled_plan.show(config, vocab, tpu)
    plan.show(config, vocab, args.devices, names, args.utilisation or plan.UTILISATION)
    return 0


def versions(report: Report) -> None:
    found = {name: _version(name) for name in (*REQUIRED, *SLOWER)}
    present = [f"{name} {version}" for name, version in found.items() if version]
    report.line("versions", f"Python {platform.python_version()}, {', '.join(present)}")
    missing = [name for name, version in found.items() if not version]
    if missing:
        report.problem(f"{', '.join(missing)} missing: pip install -e .")


def devices(report: Report) -> bool:
    """Whether JAX has a device at all."""
    from rmt_jax.runtime import hardware, startup, switches

    if line := hardware.driver():
        report.line("driver", line)
    if needless := switches.unusual(switches.NEEDED):
        report.line("switches", f"{switches.words(needless)}: {switches.OFF}")
    try:
        startup.prepare()
    except ConfigError as error:
        report.problem(str(error))
        return False
    import jax

    if felt := switches.unusual(switches.FELT):
        report.line("switches", f"{switches.words(felt)}: slower, or other figures than without")
    report.line("devices", startup.describe())
    compute = "float32" if jax.devices()[0].platform == "cpu" else "bfloat16"
    report.line("precision", f"compute in {compute} (config.model.dtype=auto), weights in float32")
    kept = jax.config.values["jax_compilation_cache_dir"]
    report.line("cache", f"compiled programs in {kept}" if kept else "compiled programs not kept")
    return True


def memory(report: Report) -> None:
    import jax

    from rmt_jax.runtime import hardware

    host = hardware.host_memory()
    text = f"host {host[1] / 2**30:.1f} of {host[0] / 2**30:.1f} GiB free" if host else "host: ?"
    device = jax.local_devices()[0]
    limit = hardware.device_memory(device)
    if limit and device.platform != "cpu":
        text += f"; {limit / 2**30:.1f} GiB on each device"
    report.line("memory", text)


def matmul(report: Report, seconds: float) -> None:
    """Speed of one large product, and whether it is right."""
    import jax
    import jax.numpy as jnp

    from rmt_jax.runtime import hardware

    device = jax.local_devices()[0]
    cpu = device.platform == "cpu"
    size, kind = (1024, jnp.float32) if cpu else (8192, jnp.bfloat16)
    a = jax.device_put(jnp.ones((size, size), kind), device)
    times = jax.jit(lambda a: a @ a / size)
    if float(times(a)[0, 0]) != 1.0:
        report.problem(f"a product of ones is wrong on {device.device_kind}: faulty device?")
        return
    count, start = 0, time.monotonic()
    while (spent := time.monotonic() - start) < seconds / 2 or not count:
        for _ in range(4):
            a = times(a)
        a.block_until_ready()
        count += 4
    rate = MATMUL_FLOPS * size**3 * count / spent if spent else 0.0
    text = f"{size}² {kind.__name__}: {rate / 1e12:,.2f} TFLOP/s on one device"
    if best := hardware.peak(device):
        text += f", {100 * rate / best:.0f} % of its peak"
    report.line("matmul", text)


def attend(report: Report) -> None:
    """Whether the fused kernel, where this device has one, gives the einsum's numbers."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rmt_jax.models.ops import attention

    shape = (2, 592, 12, 64)  # GPT-2 small's heads, places of the paper's model
    if attention.available(jnp.bfloat16, shape, causal=True, biased=False) == "xla":
        report.line("attention", "XLA's einsum (cuDNN's kernel takes an NVIDIA GPU)")
        return
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.standard_normal((3, *shape)), jnp.bfloat16)
    known = jnp.asarray(rng.random(shape[:2]) < 0.9).at[:, 0].set(True)
    visible = jnp.tril(jnp.ones((shape[1], shape[1]), bool)) & known[:, None]

    def results(way):
        def loss(inputs):
            out = jnp.where(known[:, :, None, None], way(*inputs).astype(jnp.float32), 0)
            return jnp.sin(out).sum(), out

        gradient, out = jax.jit(jax.grad(loss, has_aux=True))(inputs)
        return np.asarray(out), np.asarray(gradient, np.float32)

    advice = "train with --config.model.attention=xla until cuDNN is updated"
    try:
        fused = results(lambda q, k, v: attention.causal(q, k, v, known, "cudnn"))
    except Exception as error:  # whatever cuDNN's libraries raise
        report.problem(f"cuDNN's attention does not run ({str(error).splitlines()[0]}): {advice}")
        return
    plain = results(lambda q, k, v: attention.attend(q, k, v, visible))
    apart = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(fused, plain, strict=True))
    if not apart < 0.03:  # a few steps of bfloat16; also not-a-number
        report.problem(f"cuDNN's attention differs from XLA's by {100 * apart:.1f} %: {advice}")
    else:
        report.line("attention", f"cuDNN's kernel, within {100 * apart:.1f} % of XLA's einsum")


def train_step(report: Report, seconds: float) -> None:
    """Tokens a second of a small model's train step, compiling apart."""
    import jax
    import numpy as np
    from flax import nnx

    from rmt_jax import models
    from rmt_jax.config import Config, Model, Prompt, Stage
    from rmt_jax.training import optimizer
    from rmt_jax.training import step as steps
    from rmt_jax.types import Batch

    rows, segments, length, vocab = 8, 2, 128, 1024
    config = Config(
        model=Model(layers=2, width=128, heads=4, segment_tokens=length, memory_tokens=8),
        prompt=Prompt(source="none"),
        stages=(Stage(segments, 100, rows, 1e-3),),
    )
    rng = np.random.default_rng(0)
    batch = Batch(
        tokens=rng.integers(0, vocab, (rows, segments, length)).astype(np.int32),
        mask=np.ones((rows, segments, length), bool),
        prompt=np.zeros((rows, 0), np.int32),
        prompt_mask=np.zeros((rows, 0), bool),
        task=np.zeros(rows, np.int32),
        answer_start=np.full((rows, 1, 1), length - 3, np.int32),
        answer=np.ones((rows, 1, 1, 2), np.int32),
        weight=np.ones((rows, 1, 1, 2), np.float32),
        metric_row=np.zeros((rows, 1, 1), np.int32),
    )
    model = models.build(config.model, config.prompt, vocab, 1, nnx.Rngs(0))
    static, params = models.split(model)
    opt = optimizer.build(config, model.weights())
    step = jax.jit(steps.make_train_step(static, opt, 2, bptt=0, remat=True), donate_argnums=0)
    start = time.monotonic()
    state, sums = step(steps.init_state(params, opt), batch)
    jax.block_until_ready(sums)
    compiled = time.monotonic() - start
    count, start = 0, time.monotonic()
    while (spent := time.monotonic() - start) < seconds / 2 or not count:
        state, sums = step(state, batch)
        jax.block_until_ready(sums)
        count += 1
    if not np.isfinite(np.asarray(sums.loss)).all():
        report.problem("a train step of a random model gives a loss that is not a number")
    speed = rows * segments * length * count / spent
    report.line(
        "train step",
        f"{speed:,.0f} tokens/s (2 layers of 128, {rows} texts of {segments}·{length} tokens, one"
        f" device), compiled or loaded in {compiled:.1f} s",
    )


def optional(report: Report) -> None:
    for module, purpose, install in OPTIONAL:
        there = importlib.util.find_spec(module) is not None
        report.line(
            "optional", f"{module}: {'there' if there else f'missing: {install}'} ({purpose})"
        )


def hub(report: Report, offline: bool) -> None:
    """Whether pretrained weights and data can be fetched; training needs no network."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if offline or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        report.line("hub", "not asked (offline); training needs no network")
        return
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5):
            report.line("hub", f"{endpoint} answers")
    except urllib.error.HTTPError as error:
        report.line("hub", f"{endpoint} answers (status {error.code})")
    except (OSError, ValueError, http.client.HTTPException) as error:
        report.line(
            "hub",
            f"{endpoint} cannot be reached ({error}): give folders instead of names for weights,"
            " tokenizers and data",
        )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
