"""Checkpoints in and out: Hugging Face's and the authors' layout to a workdir of ours, and back;
and the mean of several.

  python -m rmt_jax.convert import --from FOLDER_OR_HUB_NAME_OR_GGUF --out WORKDIR
  python -m rmt_jax.convert export --workdir WORKDIR --out FOLDER
  python -m rmt_jax.convert adapter --workdir WORKDIR --out FOLDER
  python -m rmt_jax.convert mean --of RUN:0.7 RUN:0.3 --out WORKDIR

`import` takes GPT-2, a model of the Llama family, Gemma 3 or GPT-NeoX, or RMT or ARMT around one
(model.safetensors or pytorch_model.bin), without torch; of the Llama family also a GGUF file, with
its tokenizer (extra `gguf`); adapters in PEFT's layout with the model that they belong to. `export`
writes model.safetensors under the authors' names with config.json, generation_config.json,
tokenizer files and a model card; importing that gives the same bits again. Adapters of a run
(optimizer.train=lora) are put into its weights; `adapter` writes them apart, in PEFT's layout.
`mean` takes runs that went on from the same weights and writes the mean of theirs, each with its
share; it is often better than any of them (Wortsman et al. 2022, "Model soups").
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from rmt_jax import cli
from rmt_jax.cli import Usage
from rmt_jax.config import Config, to_dict
from rmt_jax.errors import RmtError
from rmt_jax.files import refuse_pointer

SPECIAL = "rmt_tokens.json"  # which tokens pad, end and precede an answer (data.tokenizer)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    SPECIAL,
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
    for one in (bring, send, mean):
        one.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args(argv)
    from rmt_jax.runtime import switches

    switches.make_neutral()
    if args.way == "import":
        import_weights(args.source, Path(args.out), args.dtype, args.revision)
    elif args.way == "adapter":
        export_adapter(Path(args.workdir), Path(args.out))
    elif args.way == "mean":
        mean_weights(shares(args.of), Path(args.out), args.dtype)
    else:
        export_weights(args.workdir, Path(args.out), args.dtype)
    return 0


def import_weights(
    source: str | Path, out: Path, dtype: str = "float32", revision: str | None = None
) -> None:
    """Writes config.json, weights.safetensors and tokenizer/ to the workdir `out`.

    Raises WeightsError for weights that can't be used, Usage when `out` holds something already.
    """
    from rmt_jax.models.io import hub as pretrained
    from rmt_jax.models.io import weights
    from rmt_jax.models.io.folder import argument

    opened = pretrained.open_source(source, revision)
    pretrained.fit(opened.config, opened.params, str(source))
    _tokenizer_files(_tokenizer(opened.folder))  # a pointer in place of one is said now
    _free(out)
    weights.save(out, opened.params, dtype)
    _write_json(out / "config.json", to_dict(opened.config))
    _write_json(out / "generation_config.json", _generation(opened.ends))
    copied = _write_tokenizer(opened, out / "tokenizer")
    print(_sizes(opened.config, weights.flatten(opened.params)))
    for guess in opened.guessed:
        print(f"not said by the checkpoint, so taken as: {guess}")
    if copied:
        _say_if_unusable(out / "tokenizer")
    else:
        print(f"no tokenizer in {opened.folder}: put its files into {out / 'tokenizer'}")
    print(f"written: {out}\nnext:    python -m rmt_jax.ask --workdir {argument(out)}")


def export_weights(workdir: str | Path, out: Path, dtype: str = "float32") -> None:
    """Writes the weights of `workdir` (or of anything that can be loaded) in the authors' layout.

    Raises WeightsError for weights that can't be used, Usage when `out` holds something already.
    """
    import ml_dtypes
    import numpy as np

    from rmt_jax import api
    from rmt_jax.models.backbones import BACKBONES
    from rmt_jax.models.cells import CELLS
    from rmt_jax.models.io import hub as pretrained
    from rmt_jax.models.io import names, weights
    from rmt_jax.models.io.card import model_card

    opened = pretrained.open_source(workdir)
    pretrained.fit(opened.config, opened.params, str(workdir))
    _free(out)
    flat = weights.flatten(opened.params)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    model = opened.config.model
    theirs = names.to_theirs(flat, BACKBONES[model.backbone], CELLS[model.cell])
    tensors = {n: np.ascontiguousarray(np.asarray(v).astype(kind)) for n, v in theirs.items()}
    weights.write(out / "model.safetensors", tensors, {"format": "pt"})  # so that PyTorch takes it
    ends = api.from_source(opened).ends
    _write_json(out / "config.json", _their_config(opened.config, flat, ends))
    _write_json(out / "generation_config.json", _generation(ends))
    _write_tokenizer(opened, out)
    if (out / SPECIAL).is_file() and not (out / "tokenizer_config.json").exists():
        special = json.loads((out / SPECIAL).read_text(encoding="utf-8"))
        hub = {"eos_token": special["end"], "pad_token": special["pad"]}
        hub["tokenizer_class"] = "PreTrainedTokenizerFast"  # so that transformers can load it
        _write_json(out / "tokenizer_config.json", hub)
    trained = (Path(workdir) / "metrics.jsonl").is_file()
    card = model_card(opened.config, sum(v.size for v in flat.values()), trained)
    (out / "README.md").write_text(card, encoding="utf-8")
    print(f"{_sizes(opened.config, flat)}\nwritten: {out}")


def export_adapter(workdir: Path, out: Path) -> None:
    """Writes the adapters of the run `workdir`, its memory and its tokenizer to the folder `out`.

    Raises WeightsError for a run without adapters, or whose base model can't be opened; Usage when
    `out` holds something already.
    """
    from rmt_jax.models import lora
    from rmt_jax.models.backbones import BACKBONES
    from rmt_jax.models.io import adapters, weights
    from rmt_jax.models.io import hub as pretrained

    opened = pretrained.open_source(workdir)
    flat = weights.flatten(weights.load(workdir)) if (workdir / weights.FILE).is_file() else {}
    if not any(name.startswith(f"{lora.TREE}/") for name in flat):
        raise weights.WeightsError(
            f"{workdir} is no run with adapters: train one with optimizer.train=lora, or export the"
            " whole model (convert export)."
        )
    config = opened.config
    base = weights.flatten(pretrained.open_source(config.init).params)
    _free(out)
    adapters.write(out, flat, BACKBONES[config.model.backbone], config, base)
    _write_tokenizer(opened, out)
    count = sum(v.size for n, v in flat.items() if n.startswith(f"{lora.TREE}/"))
    print(f"{count:,} weights of adapters, for {config.init}\nwritten: {out}")


def shares(words: list[str]) -> dict[str, float]:
    """['a:0.7', 'b:0.3'] -> {'a': 0.7, 'b': 0.3}; without numbers, equal shares. Raises Usage."""
    found = {}
    for word in words:
        name, colon, share = word.rpartition(":")
        if Path(word).is_dir():  # a folder's name may hold a time: runs/2026-01-01T10:30
            name, colon = word, ""
        try:
            found[name if colon else word] = float(share) if colon else 1 / len(words)
        except ValueError:
            raise Usage(f"--of {word}: {share!r} is no share, as in runs/a:0.7.") from None
    if len(found) < max(2, len(words)):
        raise Usage("--of wants two or more runs, each once: --of runs/a:0.7 runs/b:0.3.")
    total = sum(found.values())
    if not abs(total - 1) < 1e-6:  # "not": a share may be nan
        raise Usage(f"--of: the shares add up to {total:g}, not to 1.")
    return found


def mean_weights(of: dict[str, float], out: Path, dtype: str = "float32") -> None:
    """Writes the mean of the weights of `of` (anything that can be loaded, and its share) to the
    workdir `out`, with the first one's config and tokenizer.

    Raises WeightsError for weights that can't be used, Usage when models differ in anything that
    shapes what weights mean, or `out` holds something already.
    """
    import numpy as np

    from rmt_jax.models.io import hub as pretrained
    from rmt_jax.models.io import weights
    from rmt_jax.models.io.folder import argument

    first, total = None, {}
    for name, share in of.items():
        opened = pretrained.open_source(name)
        pretrained.fit(opened.config, opened.params, name)
        first = first or (name, opened)
        if other := _differs(first[1].config, opened.config):
            raise Usage(f"{first[0]} and {name} are different models: {other}.")
        params = weights.adopt(first[1].params, opened.params, name)
        for key, value in weights.flatten(params).items():
            total[key] = total.get(key, 0.0) + share * np.asarray(value, np.float64)
    assert first is not None
    _free(out)
    config = first[1].config
    params = weights.unflatten({k: v.astype(np.float32) for k, v in total.items()})
    weights.save(out, params, dtype)
    _write_json(out / "config.json", to_dict(config))
    _write_tokenizer(first[1], out / "tokenizer")
    said = " + ".join(f"{share:g} {name}" for name, share in of.items())
    folder = argument(out)
    print(f"{said}\nwritten: {out}\nnext:    python -m rmt_jax.evaluate --workdir {folder}")


# Of a model's settings, those that say how it runs and not what its weights are.
RUNNING = ("dtype", "remat", "scan_layers", "attention", "schedule", "bptt", "gate_threshold")


def _differs(one: Config, other: Config) -> str:
    """A difference that makes the weights of two configs incomparable, or ''."""
    from rmt_jax.models.cells import CELLS

    # A memory without memory tokens has the same weights whatever their number says.
    idle = RUNNING + ("memory_tokens",) * (not CELLS[one.model.cell].token_copies())
    for part in ("model", "prompt"):
        a, b = to_dict(one)[part], to_dict(other)[part]
        for name in a:
            if a[name] != b[name] and not (part == "model" and name in idle):
                return f"{part}.{name} is {a[name]!r} and {b[name]!r}"
    names = ["tokenizer"] + ["tasks"] * (one.prompt.source == "learned")
    for name in names:
        a, b = getattr(one.data, name), getattr(other.data, name)
        if a != b:
            return f"data.{name} is {a!r} and {b!r}"
    return ""


def _their_config(config: Config, flat: dict[str, Any], ends: tuple[int, ...]) -> dict[str, Any]:
    """HF's fields of the backbone, the authors' of the memory, and our whole tree for an exact way
    back."""
    from rmt_jax.models.backbones import BACKBONES
    from rmt_jax.models.cells import CELLS
    from rmt_jax.models.io import hub

    m = config.model
    cell = CELLS[m.cell]
    backbone = BACKBONES[m.backbone].to_hf_config(m, hub.part_of(flat, "backbone"))
    return backbone | {
        "bos_token_id": next(iter(ends), None),
        "eos_token_id": _one_or_all(ends),
        "kind": m.cell,
        "num_mem_tokens": m.memory_tokens if cell.token_copies() else 0,
        "segment_size": m.segment_tokens,
        "d_mem": m.d_mem if hub.part_of(flat, "memory/layers") else None,
        "wrap_pos": m.position_layout == "wrap_pos",
        "rmt_jax": to_dict(config),
    }


def _generation(ends: tuple[int, ...]) -> dict[str, Any]:
    return {"do_sample": False, "eos_token_id": _one_or_all(ends), "max_new_tokens": 8}


def _one_or_all(ends: tuple[int, ...]) -> int | list[int] | None:
    """As Hugging Face writes them."""
    return list(ends) if len(ends) > 1 else next(iter(ends), None)


def _sizes(config: Config, flat: dict[str, Any]) -> str:
    from rmt_jax.models.backbones import BACKBONES
    from rmt_jax.models.cells import CELLS
    from rmt_jax.models.io import hub

    m = config.model
    backbone = BACKBONES[m.backbone]
    vocab, most = backbone.vocab_of(hub.part_of(flat, "backbone")), backbone.max_places(m)
    positions = f"{most:,} positions ({m.position_layout}), " if most else ""
    return (
        f"{m.backbone} with {m.cell}: {m.layers} layers, width {m.width}, vocabulary {vocab:,}, "
        f"{positions}{CELLS[m.cell].describe(m)}, segments of {m.segment_tokens:,}, "
        f"{'tied' if m.tied_head else 'separate'} head; "
        f"{sum(v.size for v in flat.values()):,} weights"
    )


def _tokenizer(folder: Path) -> Path:
    """Where a checkpoint's tokenizer lies: inside it, or, of those that ship, beside it."""
    from rmt_jax.models.io.folder import ASSETS

    inside = (ASSETS if folder.parent == ASSETS else folder) / "tokenizer"
    return inside if inside.is_dir() else folder


def _write_tokenizer(opened: Any, target: Path) -> bool:
    """Writes the tokenizer of a `hub.Source` to the folder `target`; False where it has none that
    can be used."""
    from rmt_jax.data import gguf_tokenizer
    from rmt_jax.models.backbones import BACKBONES

    if not opened.tokenizer:
        return _copy_tokenizer(_tokenizer(opened.folder), target)
    try:
        vocab = BACKBONES[opened.config.model.backbone].vocab_of(opened.params["backbone"])
        tokenizer = gguf_tokenizer.build(opened.tokenizer, str(opened.folder), vocab)
    except RmtError as error:
        print(error)
        return False
    tokenizer.save(target)
    _write_json(target / "tokenizer_config.json", gguf_tokenizer.hub_config(opened.tokenizer))
    return True


def _say_if_unusable(folder: Path) -> None:
    """Texts cannot be read with such a tokenizer, token ids can."""
    from rmt_jax.data import tokenizer

    try:
        tokenizer.load(folder)
    except RmtError as error:
        print(error)


def _tokenizer_files(source: Path) -> list[Path]:
    """Raises PointerError."""
    found = [source / n for n in TOKENIZER_FILES if (source / n).is_file()]
    found = found or [p for p in (source / "tokenizer").glob("*") if p.name in TOKENIZER_FILES]
    for file in found:
        refuse_pointer(file)
    return found


def _copy_tokenizer(source: Path, target: Path) -> bool:
    found = _tokenizer_files(source)
    if found:
        target.mkdir(parents=True, exist_ok=True)
    for file in found:
        shutil.copyfile(file, target / file.name)
    return bool(found)


def _free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Usage(f"--out {out} exists and is not an empty folder: choose another name.")
    out.mkdir(parents=True, exist_ok=True)


def _write_json(file: Path, tree: dict[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
