"""Checkpoints in and out: Hugging Face's and the authors' layout to a workdir of ours, and back;
the mean of several; more layers for one, or another memory.

  python -m rmt_jax.convert import --from FOLDER_OR_HUB_NAME_OR_GGUF --out WORKDIR
  python -m rmt_jax.convert export --workdir WORKDIR --out FOLDER [--push_to_hub NAME]
  python -m rmt_jax.convert adapter --workdir WORKDIR --out FOLDER
  python -m rmt_jax.convert mean --of RUN:0.7 RUN:0.3 --out WORKDIR
  python -m rmt_jax.convert deepen --workdir WORKDIR --layers N --out WORKDIR
  python -m rmt_jax.convert memory --from MODEL --cell kv --out WORKDIR [--config.model.NAME=VALUE]

`import` takes GPT-2, a model of the Llama family, Gemma 3 or GPT-NeoX, or RMT or ARMT around one
(model.safetensors or pytorch_model.bin), without torch; of the Llama family also a GGUF file, with
its tokenizer (extra `gguf`); adapters in PEFT's layout with the model that they belong to. `export`
writes model.safetensors under the authors' names with config.json, generation_config.json,
tokenizer files and a model card; importing that gives the same bits again. Adapters of a run
(optimizer.train=lora) are put into its weights; `adapter` writes them apart, in PEFT's layout.
`mean` takes runs that went on from the same weights and writes the mean of theirs, each with its
share; it is often better than any of them (Wortsman et al. 2022, "Model soups"). `deepen` puts new
layers between a model's own, which change no answer until they are trained (Chen et al. 2016,
"Net2Net"). `memory` gives a model a new memory cell, as training does that starts from it.
"""

import argparse
from pathlib import Path

from rmt_jax import cli
from rmt_jax.conversion import (
    deepen,
    export_adapter,
    export_weights,
    import_weights,
    mean_weights,
    new_memory,
    publishing,
    shares,
)


def main(argv: list[str]) -> int:
    parser = cli.Parser(
        prog="python -m rmt_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    way = parser.add_subparsers(dest="way", required=True, parser_class=cli.Parser)
    bring = way.add_parser("import", help="others' weights -> a workdir")
    bring.add_argument("--from", dest="source", required=True, metavar="FOLDER_OR_HUB_NAME_OR_GGUF")
    bring.add_argument("--revision", help="branch, tag or commit of a hub name")
    bring.add_argument("--out", required=True, metavar="WORKDIR")
    send = way.add_parser("export", help="a workdir -> the authors' layout")
    send.add_argument("--workdir", required=True)
    send.add_argument("--out", required=True, metavar="FOLDER")
    apart = way.add_parser("adapter", help="a run's LoRA adapters -> PEFT's layout")
    apart.add_argument("--workdir", required=True)
    apart.add_argument("--out", required=True, metavar="FOLDER")
    mean = way.add_parser("mean", help="several workdirs of one model -> their mean")
    mean.add_argument("--of", required=True, nargs="+", metavar="RUN[:SHARE]")
    mean.add_argument("--out", required=True, metavar="WORKDIR")
    deeper = way.add_parser("deepen", help="a workdir -> the same with more layers, to train on")
    deeper.add_argument("--workdir", required=True)
    deeper.add_argument("--layers", required=True, type=int, help="of the new model")
    deeper.add_argument("--out", required=True, metavar="WORKDIR")
    other = way.add_parser("memory", help="any model -> the same with a new memory cell")
    other.add_argument("--from", dest="source", required=True, metavar="MODEL")
    other.add_argument("--cell", required=True, help="kv, delta, rmt, ...")
    other.add_argument("--out", required=True, metavar="WORKDIR")
    for one in (send, apart):
        one.add_argument("--push_to_hub", default="", metavar="NAME", help="put it there as well")
        one.add_argument("--private", action="store_true", help="a new repository is private")
    for one in (bring, send, mean, deeper, other):
        one.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args, rest = parser.parse_known_args(argv)
    changes = cli.parse_overrides(rest)
    if changes and args.way != "memory":
        raise cli.Usage(f"Unknown argument '{rest[0]}'. --help shows what there is.")
    from rmt_jax.runtime import switches

    switches.make_neutral()
    out = Path(args.out)
    if args.way == "import":
        import_weights(args.source, out, args.dtype, args.revision)
    elif args.way == "mean":
        mean_weights(shares(args.of), out, args.dtype)
    elif args.way == "deepen":
        deepen(args.workdir, args.layers, out, args.dtype)
    elif args.way == "memory":
        new_memory(args.source, {"model.cell": args.cell, **changes}, out, args.dtype)
    else:
        if args.push_to_hub:
            publishing.check(args.push_to_hub)
        elif args.private:
            raise cli.Usage("--private is of a repository on the hub: name it with --push_to_hub.")
        name = args.push_to_hub or "FOLDER"
        if args.way == "adapter":
            export_adapter(Path(args.workdir), out, name)
        else:
            export_weights(args.workdir, out, args.dtype, name)
        if args.push_to_hub:
            print(f"on the hub: {publishing.push(out, args.push_to_hub, args.private)}")
    return 0


if __name__ == "__main__":
    cli.run(main)
