"""Writes datasets: BABILong's as JSON or for TensorFlow Datasets, and RULER's.

    python -m rmt_jax.prepare --out DIR --tasks qa1,qa2 --lengths 0k,4k --samples 1000
    python -m rmt_jax.prepare --config FILE[:PRESET]      reads and checks the tasks of your own
    python -m rmt_jax.prepare --out DIR --format json --babi_dir tasks_1-20_v1-2/en-10k \\
        --background BOOKS --tokenizer gpt2
    python -m rmt_jax.prepare --out DIR --format ruler --tasks niah_single_1,vt --lengths 4k,8k

Work is cut into parts that are kept: a stopped run goes on where it was, and parts can be made on
many machines (a SLURM array: --num_shards 32 --shard_index $SLURM_ARRAY_TASK_ID on a shared
folder). The same command without --shard_index, once they are done, makes what is missing and joins
all of them.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rmt_jax import cli
from rmt_jax.config import Data, import_extensions
from rmt_jax.data import tasks
from rmt_jax.data.corpus import documents
from rmt_jax.data.lengths import Length
from rmt_jax.data.records import (
    TASKS,
    Recipe,
    available,
    part_path,
    part_range,
    read_parts,
    records,
    write_json,
    write_part,
)
from rmt_jax.files import write_text
from rmt_jax.runtime import cluster
from rmt_jax.validation import validate

log = logging.getLogger("rmt_jax.prepare")  # not __name__, which may be __main__

LENGTHS = "0k,1k,2k,4k"


def main(arguments: Sequence[str] | None = None) -> int:
    args, rest = _parser().parse_known_args(arguments)
    if args.config:
        return _check_own(args.config, rest)
    if rest:
        raise cli.Usage(f"unrecognized arguments: {' '.join(rest)}.")
    if args.download:
        from rmt_jax.data.babi import files

        print(files.download(args.download, sha256=args.sha256))
        return 0
    if args.pg19:
        from rmt_jax.data.corpus import pg19

        print(pg19.fetch(args.pg19, args.books))
        return 0
    if not args.out:
        raise cli.Usage("--out DIR says where the data goes.")
    place = cluster.find(os.environ)
    undivided = args.num_shards == 1 and args.shard_index is None and not args.beam
    if undivided and place is not None and place.processes > 1:  # each makes its own part
        args.num_shards, args.shard_index = place.processes, place.process
    if args.format == "ruler":
        return _write_ruler(args)
    run(args)
    return 0


def _check_own(config: str, overrides: list[str]) -> int:
    """Reads the rows of a config's own tasks to their end, keeps their tokens where training looks
    for them, and prints what they hold. Raises RmtError with file and line for a bad row."""
    from rmt_jax.data import tokenizer
    from rmt_jax.data.loader import Loader

    known = cli.apply_overrides(cli.load_config(config), cli.parse_overrides(overrides))
    import_extensions(known)
    validate(known)
    for line in Loader(known, tokenizer.load(known.tokenizer)).describe():
        print(line)
    return 0


def _write_ruler(args: argparse.Namespace) -> int:
    """RULER's files (`data.ruler_files`): every `num_shards`-th task where machines share them."""
    from rmt_jax.data import ruler_files

    if args.background_split:
        raise cli.Usage("--background_split is not for --format ruler, whose texts have a split.")
    names = (
        ruler_files.TASKS if args.tasks == ",".join(TASKS) else tuple(cli.split_names(args.tasks))
    )
    paths = ruler_files.write(
        Path(args.out),
        names[args.shard_index or 0 :: args.num_shards if args.shard_index is not None else 1],
        cli.split_names(args.lengths) if args.lengths != LENGTHS else ["4k"],
        args.samples,
        data=Data(background=args.background, tokenizer=args.tokenizer),
        split=args.split,
        seed=args.seed,
    )
    print(*paths, sep="\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Makes this machine's parts, or all that are missing and joins them. Raises RmtError."""
    recipe = Recipe(
        tasks=tuple(cli.split_names(args.tasks)),
        samples=args.samples,
        seed=args.seed,
        facts="official" if args.babi_dir else "simulated",
        babi_dir=args.babi_dir,
        part=args.part,
        background=args.background,
        tokenizer=args.tokenizer,
        split=args.split,
        background_split=args.background_split,
    )
    lengths = cli.split_names(args.lengths)
    for length in lengths:
        Length.parse(length, 512)
    for task in recipe.tasks:
        tasks.REGISTRY[task]  # an unknown name is an error
    if not recipe.tasks or not lengths:
        raise cli.Usage(f"--{'lengths' if recipe.tasks else 'tasks'} names nothing to make.")
    if args.samples < 1:
        raise cli.Usage(f"--samples is {args.samples}: a set needs at least 1 question.")
    if args.num_shards < 1:
        raise cli.Usage(f"--num_shards is {args.num_shards}: the work is cut into 1 part or more.")
    if not 0 <= (args.shard_index or 0) < args.num_shards:
        raise cli.Usage(f"--shard_index {args.shard_index} is not below {args.num_shards}.")
    out = Path(args.out)
    cells = [(replace(recipe, length=length), task) for length in lengths for task in recipe.tasks]
    if args.format == "tfds" or args.beam:  # a length is one folder with all its tasks
        done = _done(out, [(recipe, f"babilong/{recipe.length}") for recipe, _ in cells])
        cells = [(r, task) for r, task in cells if f"babilong/{r.length}" not in done]
    else:
        done = _done(out, [(recipe, f"{task}/{recipe.length}") for recipe, task in cells])
        cells = [(r, task) for r, task in cells if f"{task}/{r.length}" not in done]
    for name in sorted(done):
        print(f"{out / name} is there already.")
    counts = {(r.length, task): available(r, task) for r, task in cells}
    fewer = [f"{task} {length} {n:,}" for (length, task), n in counts.items() if n < args.samples]
    if fewer:
        said = ", ".join(fewer)
        log.warning("fewer questions than the %s asked for: %s", f"{args.samples:,}", said)
    if args.beam:
        _check_beam()
        from rmt_jax.data import tfds_builder

        for one in dict.fromkeys(r for r, _ in cells):
            tfds_builder.build(one, out, beam=True)
            _note(out, f"babilong/{one.length}", one)
    elif cells:
        shards = range(args.num_shards) if args.shard_index is None else [args.shard_index]
        _make_parts(cells, out, shards, args.num_shards)
        if args.shard_index is not None:  # two that end together would join at the same time
            print(f"part {args.shard_index} of {args.num_shards} is made; to join all of them, the "
                  f"same command with --num_shards {args.num_shards} and without --shard_index, in "
                  "one process.")  # fmt: skip
        else:
            _join(cells, out, args)


def _check_beam() -> None:
    if importlib.util.find_spec("apache_beam") is None:
        raise cli.Usage(
            "--beam needs Apache Beam: pip install 'rmt_jax[beam]'. Without --beam the parts are"
            " made here, or on many machines with --num_shards."
        )


def _recipe_of(recipe: Recipe, name: str) -> dict:
    found = _said(recipe)
    if not name.startswith("babilong/"):
        del found["tasks"]  # a JSON file holds one task
    return json.loads(json.dumps(found))


def _said(recipe: Recipe) -> dict:
    """Without what an earlier version did not have, where that says nothing."""
    found = asdict(recipe)
    if not recipe.background_split:
        del found["background_split"]
    return found


def _done(out: Path, wanted: list[tuple[Recipe, str]]) -> set[str]:
    """Names that are finished. Usage where one was made from another recipe."""
    found = set()
    for recipe, name in wanted:
        note, (group, length) = _note_path(out, name), name.split("/")
        made = out / group / (length if group == "babilong" else f"{length}.json")
        if not note.is_file() or not made.exists():
            continue
        known, now = json.loads(note.read_text(encoding="utf-8")), _recipe_of(recipe, name)
        different = [f"{k} {known.get(k)!r}" for k in now if known.get(k) != now[k]]
        if different:
            raise cli.Usage(
                f"{out / name} was made with {', '.join(different)}: choose another --out, or "
                "remove it first."
            )
        found.add(name)
    return found


def _note_path(out: Path, name: str) -> Path:
    return out / ".done" / f"{name.replace('/', '-')}.json"


def _note(out: Path, name: str, recipe: Recipe) -> None:
    """Notes that `name` is finished, and from what."""
    write_text(_note_path(out, name), json.dumps(_recipe_of(recipe, name), indent=1))


def _folder(recipe: Recipe, out: Path) -> Path:
    """Parts of one recipe: another seed, tokenizer or number of samples is another folder."""
    text = json.dumps({**_said(recipe), "length": "", "tasks": ""}, sort_keys=True)
    return out / ".parts" / hashlib.sha256(text.encode()).hexdigest()[:12]


def _make_parts(cells, out: Path, shards, num_shards: int) -> None:
    total = sum(
        len(part_range(available(recipe, task), shard, num_shards))
        for recipe, task in cells
        for shard in shards
    )
    with cli.progress_bar(total, "sample") as bar:
        for recipe, task in cells:
            for shard in shards:
                which = part_range(available(recipe, task), shard, num_shards)
                folder = _folder(recipe, out)
                path = part_path(folder, task, recipe.length, shard, num_shards)
                bar.set_description(f"{task} {recipe.length}")
                if path.is_file():
                    bar.update(len(which))
                    continue
                write_part(path, _counted(records(recipe, task, which), bar))


def _counted(found, bar):
    for record in found:
        yield record
        bar.update(1)


def _join(cells, out: Path, args: argparse.Namespace) -> None:
    """All parts are there. Those of other lengths, tasks and numbers of parts stay as they are."""
    parts = args.num_shards
    if args.format == "json":
        for recipe, task in cells:
            path = out / task / f"{recipe.length}.json"
            write_json(path, read_parts(_folder(recipe, out), task, recipe.length, parts))
            _note(out, f"{task}/{recipe.length}", recipe)
            print(path)
    else:
        from rmt_jax.data import tfds_builder

        for recipe in dict.fromkeys(recipe for recipe, _ in cells):
            builder = tfds_builder.build(recipe, out, (_folder(recipe, out), parts))
            _note(out, f"babilong/{recipe.length}", recipe)
            print(builder.data_dir)
    for recipe, task in cells:
        for part in range(parts):
            part_path(_folder(recipe, out), task, recipe.length, part, parts).unlink()
    for folder in (*{_folder(recipe, out) for recipe, _ in cells}, out / ".parts"):
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m rmt_jax.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", default="", help="folder to write to")
    add("--config", default="", metavar="FILE[:PRESET]",
        help="read and check the own tasks of this config, and stop")  # fmt: skip
    add("--format", choices=("tfds", "json", "ruler"), default="tfds",
        help="default tfds (array_record)")  # fmt: skip
    add("--tasks", default=",".join(TASKS), help=f"default {','.join(TASKS)}; of RULER all")
    add("--lengths", default=LENGTHS, help=f"default {LENGTHS}; to 10M; of RULER 4k, 4,096 tokens")
    add("--samples", type=int, default=1000, help="a task and length; default 1000")
    add("--seed", type=cli.seed, default=0)
    add("--split", choices=("train", "validation", "test"), default="test",
        help="of the background and of simulated stories; default test")  # fmt: skip
    add("--background_split", default="", choices=("", *documents.SPLITS, "all"),
        help="of the background alone; all: of texts that nothing was trained on")  # fmt: skip
    add("--babi_dir", default="", help="official facts from here, in file order (BABILong's rows)")
    add("--part", choices=("train", "validation", "test"), default="test",
        help="which official files; default test")  # fmt: skip
    add("--background", default="builtin", help="builtin, none, or a folder of .txt files")
    add("--tokenizer", default="builtin", help="builtin, a folder, or a name on the hub")
    add("--num_shards", type=int, default=1, help="parts that the work is cut into")
    add("--shard_index", type=int, default=None, help="make this part only")
    add("--beam", action="store_true", help="build with Apache Beam, through TFDS")
    add("--download", default="", metavar="DIR", help="fetch the official bAbI files, and stop")
    add("--sha256", default="", help="insist on this digest of the download")
    add("--pg19", default="", metavar="DIR", help="fetch PG-19 as a background folder, and stop")
    add("--books", type=int, default=0, help="of PG-19, a split; default all (11 GB)")
    return parser


if __name__ == "__main__":
    cli.run(main)
