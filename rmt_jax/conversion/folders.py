"""Folders that are written: free ones, with a tokenizer and JSON files."""

import json
import shutil
from pathlib import Path
from typing import Any

from rmt_jax.cli import Usage
from rmt_jax.config import Config
from rmt_jax.errors import RmtError
from rmt_jax.files import refuse_pointer, write_text

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


def free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Usage(f"--out {out} exists and is not an empty folder: choose another name.")
    out.mkdir(parents=True, exist_ok=True)


def write_json(file: Path, tree: dict[str, Any]) -> None:
    write_text(file, json.dumps(tree, indent=1) + "\n")


def generation(ends: tuple[int, ...]) -> dict[str, Any]:
    return {"do_sample": False, "eos_token_id": one_or_all(ends), "max_new_tokens": 8}


def one_or_all(ends: tuple[int, ...]) -> int | list[int] | None:
    """As Hugging Face writes them."""
    return list(ends) if len(ends) > 1 else next(iter(ends), None)


def sizes(config: Config, flat: dict[str, Any]) -> str:
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


def tokenizer_folder(folder: Path) -> Path:
    """Where a checkpoint's tokenizer lies: inside it, or, of those that ship, beside it."""
    from rmt_jax.models.io.folder import ASSETS

    inside = (ASSETS if folder.parent == ASSETS else folder) / "tokenizer"
    return inside if inside.is_dir() else folder


def write_tokenizer(opened: Any, target: Path) -> bool:
    """Writes the tokenizer of a `hub.Source` to the folder `target`; False where it has none that
    can be used."""
    from rmt_jax.data import gguf_tokenizer
    from rmt_jax.models.backbones import BACKBONES

    if not opened.tokenizer:
        return _copy_tokenizer(opened.folder, target)
    try:
        vocab = BACKBONES[opened.config.model.backbone].vocab_of(opened.params["backbone"])
        tokenizer = gguf_tokenizer.build(opened.tokenizer, str(opened.folder), vocab)
    except RmtError as error:
        print(error)
        return False
    tokenizer.save(target)
    write_json(target / "tokenizer_config.json", gguf_tokenizer.hub_config(opened.tokenizer))
    return True


def say_if_unusable(folder: Path) -> None:
    """Texts cannot be read with such a tokenizer, token ids can."""
    from rmt_jax.data import tokenizer

    try:
        tokenizer.load(folder)
    except RmtError as error:
        print(error)


def tokenizer_files(source: Path) -> list[Path]:
    """Those of a checkpoint's folder. Raises PointerError."""
    source = tokenizer_folder(source)
    found = [source / n for n in TOKENIZER_FILES if (source / n).is_file()]
    found = found or [p for p in (source / "tokenizer").glob("*") if p.name in TOKENIZER_FILES]
    for file in found:
        refuse_pointer(file)
    return found


def _copy_tokenizer(source: Path, target: Path) -> bool:
    found = tokenizer_files(source)
    if found:
        target.mkdir(parents=True, exist_ok=True)
    for file in found:
        shutil.copyfile(file, target / file.name)
    return bool(found)
