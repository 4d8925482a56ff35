"""A run of six steps that compiles in seconds, for tests of what can go wrong; as a script it is
the process that such a test kills.

python tests/faulty_run.py WORKDIR [sigterm|kill_in_save]
"""

import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    import conftest  # noqa: F401  (quick compiling, as in the suite)

import jax

from rmt_jax.config import (
    Checkpoint,
    Config,
    Data,
    Evaluation,
    Facts,
    Model,
    Optimizer,
    Prompt,
    Stage,
)
from rmt_jax.runtime import mesh as sharding
from rmt_jax.training import loop
from rmt_jax.training import run as training
from rmt_jax.training.checkpoint import Checkpoints

STEPS = 6


def config(**sections) -> Config:
    return Config(
        model=Model(
            cell="rmt",
            layers=1,
            width=16,
            heads=2,
            positions="alibi",
            segment_tokens=32,
            memory_tokens=2,
            remat=False,
        ),
        prompt=Prompt(source="none"),
        data=Data(tasks=("qa1",)),
        stages=(Stage(1, STEPS, 8, 1e-2, facts=(Facts(2, 3),), background=0.0),),
        optimizer=Optimizer(clip=0.0),
        evaluation=Evaluation(lengths=("1s",), samples=5, batch=5),
        checkpoint=Checkpoint(every=1, keep=3),
        log_every=1,
    ).replace(**sections)


def quick(patch) -> None:
    """One device, one batch of validation, no final table (other tests make it), and compiled
    programs shared in the folder TINY_CACHE."""
    cache = os.environ.get("TINY_CACHE")
    if cache:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    make = sharding.make_mesh
    patch(sharding, "make_mesh", lambda mesh: make(mesh, jax.local_devices()[:1]))
    patch(loop, "VALIDATION_QUESTIONS", 1)
    patch(training, "finish", lambda path: None)


def at_call(number: int, function, action):
    """`function`, with `action()` before it is called for the `number`-th time."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            action()
        return function(*args, **kwargs)

    return wrapped


def kill(number: int):
    return lambda: os.kill(os.getpid(), number)


def main(workdir: str, fault: str = "") -> int:
    quick(setattr)
    if fault == "sigterm":  # in the third step (each asks twice)
        loop.Loop.validates = at_call(5, loop.Loop.validates, kill(signal.SIGTERM))
    if fault == "kill_in_save":
        save = Checkpoints.save

        def save_and_die(self, state, metrics=None):
            save(self, state, metrics)
            if int(state.step) == 5:  # its files are being written by another thread
                os.kill(os.getpid(), signal.SIGKILL)

        Checkpoints.save = save_and_die
    return training.run(config(), Path(workdir))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
