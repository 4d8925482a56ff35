"""Trains one recurrent memory transformer on several tasks at once, from a config to a result.

    python -m rmt_jax.train --config configs/multitask.py[:PRESET] [--workdir DIR]
                            [--config.section.field=VALUE …]

A second start with the same --workdir continues where the first one stopped.
"""

import os
import sys
from pathlib import Path

from rmt_jax import cli
from rmt_jax.runtime import cluster


def main(argv: list[str]) -> int:
    config, args = cli.parse(argv, __doc__ or "")
    if not args.workdir and cluster.find(os.environ) is not None:
        raise cli.Usage(
            "A run of several processes needs --workdir DIR: the same folder, seen by all of them."
        )
    # NumPy loads only now, JAX and Grain after it: --help and wrong settings answer at once.
    from rmt_jax.data import tasks

    tasks.check(config)
    from rmt_jax.training import run as training
    from rmt_jax.training import trackers

    path = Path(args.workdir) if args.workdir else None
    return training.run(config, path, trackers.Looks(args.log_to, args.profile_steps))


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
