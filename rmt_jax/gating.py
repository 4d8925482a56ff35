"""Teaches the gates of a trained memory (delta, kv) to stay shut over background.

    python -m rmt_jax.gating --workdir RUN --out FOLDER --background BOOKS [--babi FOLDER]
                             [--gates.FIELD=VALUE ...]

Training tells gates by the answers alone, many segments later, or by how much background moves the
memory as a whole. But where the facts stand is known: the composer put them there. So each gate is
taught its own token: over background to be shut, over a fact to do what it did before.
"""

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

from rmt_jax import cli
from rmt_jax.config import GateTraining, check_values


def main(argv: list[str]) -> int:
    parser = cli.Parser(
        prog="python -m rmt_jax.gating",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Fields, --gates.NAME=VALUE:\n"
        + cli.describe_fields(GateTraining(), shutil.get_terminal_size().columns, "gates:"),
    )
    add = parser.add_argument
    add(
        "--workdir", required=True, help="any checkpoint rmt_jax.load takes, of a memory with gates"
    )
    add("--out", required=True, type=Path, metavar="FOLDER", help="a new folder")
    add("--background", default="", help="builtin | a folder of books (default: the config's)")
    add("--babi", default="", help="folder of bAbI files: half of the stories are official ones")
    add("--threshold", type=float, help="written as model.gate_threshold when all is taught")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    args, rest = parser.parse_known_args(argv)
    gates = cli.apply_overrides(GateTraining(), cli.parse_overrides(rest, "gates"))
    check_values(gates, "gates.")
    if args.threshold is not None and not 0 <= args.threshold < 1:
        raise cli.Usage(f"--threshold is {args.threshold}: gates open from 0 to 1.")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise cli.Usage(f"--out {args.out} is no empty folder: choose another name.")
    # JAX loads only now: --help and wrong arguments answer at once.
    from rmt_jax.models.io.folder import argument
    from rmt_jax.runtime import peers, startup, switches

    switches.make_neutral()
    startup.join()
    startup.cache()
    with peers.noticed():
        _teach(args, gates)
    command = f"python -m rmt_jax.evaluate --workdir {argument(args.out)} --lengths 1k,32k"
    if startup.owner():
        print(f"written: {args.out}\nnext:    {command}")
    return 0


def _teach(args: argparse.Namespace, gates: GateTraining) -> None:
    from rmt_jax import api, placement
    from rmt_jax.models.io import hub
    from rmt_jax.training.gates import teach

    source = hub.open_source(args.workdir)
    model = api.from_source(source, mesh=placement.mesh_of_all(source.config))
    background = args.background or model.config.data.background
    if background == "none":
        raise cli.Usage("Gates are taught over background: --background FOLDER gives it one.")
    data = dataclasses.replace(
        model.config.data,
        background=background,
        # The built-in text holds no sentences that look like facts.
        hard_negative_rate=0.0 if background == "builtin" else 0.8,
        facts="both" if args.babi else "simulated",
        babi_dir=args.babi,
        seed=gates.seed,
    )
    teach(model, data, gates, args.out, dtype=args.dtype, threshold=args.threshold)


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
