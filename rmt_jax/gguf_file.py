"""A GGUF file opened: tensors as they lie in it, and the metadata.

Weights are read from it in `models.io.gguf`, a tokenizer in `data.gguf_tokenizer`.
"""

from pathlib import Path
from typing import Any

from rmt_jax.errors import RmtError
from rmt_jax.files import refuse_pointer

SUFFIX = ".gguf"
TOKENIZER = "tokenizer."  # begins the keys of what the file says of its tokenizer


class GGUFError(RmtError):
    """A file that cannot be read as GGUF; the message is a sentence with the way out."""


def open_file(file: Path) -> tuple[Any, dict[str, Any]]:
    """The package's GGUFReader and the metadata by key. Tensors stay on the disk until they are
    used. Raises GGUFError for a file that is not there, cut off or no GGUF."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise GGUFError(
            f"{file} is a GGUF file, which the package gguf reads: pip install 'rmt_jax[gguf]'."
        ) from error
    if not file.is_file():
        raise GGUFError(f"There is no file {file}; check the spelling.")
    refuse_pointer(file)
    try:
        reader = GGUFReader(file)
        return reader, {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
        raise GGUFError(
            f"{file} ({file.stat().st_size:,} bytes) can't be read as GGUF ({error}). It is cut"
            " off, no GGUF, or holds a quantisation that the installed package gguf does not know:"
            " copy or download it again, or pip install -U gguf."
        ) from error


def tokenizer_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """What the metadata say of a tokenizer, by the keys as they are."""
    return {name: value for name, value in metadata.items() if name.startswith(TOKENIZER)}
