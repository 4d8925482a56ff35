"""The tokenizer of a checkpoint, and the tokens that end its texts, without its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmt_jax.errors import RmtError
from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.inputs import InputError
from rmt_jax.models.io import hub
from rmt_jax.models.io.folder import ASSETS

GPT2_VOCAB = 50_257


def find(folder: Path | None, in_gguf: Mapping[str, Any] | None, vocab: int) -> Any:
    """The tokenizer in `folder` or its tokenizer/, or in the metadata of a GGUF file. vocab: tokens
    of the model. Raises InputError when there is none, and DataError for one that cannot be
    read."""
    from rmt_jax.data import gguf_tokenizer, tokenizer

    if in_gguf:
        return gguf_tokenizer.build(in_gguf, str(folder), vocab)
    for place in (folder and folder / "tokenizer", folder):
        if place and any((place / f).is_file() for f in ("tokenizer.json", "vocab.json")):
            return tokenizer.load(str(place))
    if vocab == GPT2_VOCAB and folder:  # the authors' checkpoints come without
        try:
            return tokenizer.load("gpt2")
        except RmtError as error:
            raise InputError(f"{folder} holds no tokenizer. {error}") from error
    if folder and folder.parent == ASSETS:  # the shipped ones share one
        return tokenizer.load("builtin")
    raise InputError(
        f"{folder or 'This model'} holds no tokenizer (tokenizer/tokenizer.json, or "
        "vocab.json and merges.txt), so that only token ids can be used with it."
    )


def ends_of(source: hub.Source) -> tuple[int, ...]:
    """Ids that end a text or a turn: as `api.Model.ends`."""
    if source.ends:
        return source.ends
    own = hub.part_of(source.flat, "backbone")
    vocab = BACKBONES[source.config.model.backbone].vocab_of(own)
    try:
        return (find(source.folder, source.tokenizer, vocab).end,)
    except ValueError:  # no tokenizer, and the hub gave none
        return ()
