"""Tokenizers: the small one in the package, and any Hugging Face one by name or folder.

All are byte-level, so every text survives a round trip. Besides words a model needs three ids: PAD,
ANSWER (after it an answer begins) and END (after it an answer has ended).
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rmt_jax.data.errors import DataError
from rmt_jax.files import refuse_pointer
from rmt_jax.gguf_file import SUFFIX

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUILTIN = ASSETS / "tokenizer"
# What `transformers` needs to build a tokenizer; config.json names its class.
PATTERNS = ["*token*.json", "config.json", "vocab.json", "merges.txt", "*.model"]
SIDE_FILE = "rmt_tokens.json"  # names of the three special tokens, beside tokenizer.json


class Tokenizer:
    """`encode` and `decode` over a `tokenizers.Tokenizer`, and the ids that training needs."""

    def __init__(self, inner, name: str, *, pad: str, answer: str, end: str):
        self.inner = inner
        self.name = name
        self._special = {"pad": pad, "answer": answer, "end": end}
        ids = {role: inner.token_to_id(token) for role, token in self._special.items()}
        missing = [f"{self._special[role]!r} ({role})" for role, n in ids.items() if n is None]
        if missing:
            raise DataError(f"Tokenizer {name!r} lacks the tokens {', '.join(missing)}.")
        self.pad, self.answer, self.end = ids["pad"], ids["answer"], ids["end"]
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        self._memo: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, in parallel and in Rust."""
        found = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in found]

    def sentence(self, text: str) -> tuple[int, ...]:
        """Ids of ' ' + text, remembered: facts and questions come from a closed set."""
        ids = self._memo.get(text)
        if ids is None:
            if len(self._memo) > 200_000:
                self._memo.clear()
            ids = self._memo[text] = tuple(self.encode(" " + text))
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=False)

    @cached_property
    def stops(self) -> np.ndarray:
        """bool[vocabulary]: does a sentence end with this token? END is one too."""
        found = np.zeros(self.vocab_size, bool)
        for i in range(self.vocab_size):
            found[i] = self.decode([i]).rstrip(" \n\"'\u201d\u2019)").endswith((".", "?", "!"))
        found[self.end] = True
        return found

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """i64[vocabulary]: bytes of text that each token stands for, of a byte-level tokenizer: a
        character of such a token is a byte."""
        found = np.zeros(self.vocab_size, np.int64)
        for i in range(self.vocab_size):
            found[i] = len(self.inner.id_to_token(i) or "")
        for i, token in self.inner.get_added_tokens_decoder().items():
            if i < len(found):
                found[i] = len(token.content.encode())
        return found

    def fingerprint(self) -> str:
        """A short hash of everything that decides the ids; caches are keyed by it."""
        import hashlib

        return hashlib.sha256(self.inner.to_str().encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> Path:
        """Writes tokenizer.json and the names of the special tokens; `load(folder)` reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.inner.save(str(folder / "tokenizer.json"))
        side = {"name": self.name, **self._special}
        (folder / SIDE_FILE).write_text(json.dumps(side, indent=1), encoding="utf-8")
        return folder

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, {self.vocab_size:,} entries)"

    # Worker processes get a copy of the tokenizer: by its text.
    def __getstate__(self):
        return {"text": self.inner.to_str(), "name": self.name, "special": self._special}

    def __setstate__(self, state):
        from tokenizers import Tokenizer as Inner

        self.__init__(Inner.from_str(state["text"]), state["name"], **state["special"])


def load(name: str | Path = "builtin") -> Tokenizer:
    """'builtin', a folder (tokenizer.json, or GPT-2's vocab.json and merges.txt), a run with such a
    folder tokenizer/ in it, a GGUF file, or a name on the hub, which `transformers` opens.
    DataError with the way out when there is none."""
    if str(name) == "builtin":
        return _from_folder(BUILTIN, "builtin")
    folder = Path(name)
    if folder.suffix == SUFFIX:
        from rmt_jax.data import gguf_tokenizer

        return gguf_tokenizer.load(folder)
    if folder.is_dir():
        inside = folder / "tokenizer"
        return _from_folder(inside if inside.is_dir() else folder, folder.name)
    from huggingface_hub import snapshot_download

    try:
        repository, _, revision = str(name).partition("@")  # NAME@REVISION pins it
        files = snapshot_download(repository, revision=revision or None, allow_patterns=PATTERNS)
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(files, local_files_only=True)
        inner = found.backend_tokenizer  # AttributeError where it is none of `tokenizers`
    except Exception as error:  # the libraries' errors have no common parent below Exception
        raise DataError(
            f"There is no tokenizer {str(name)!r}: it is no folder here, and the hub says "
            f"{str(error)[:200]!r}. Give 'builtin', a folder with tokenizer.json (or vocab.json "
            "and merges.txt), or a name on the Hugging Face hub."
        ) from None
    return foreign(inner, str(name), found.eos_token, found.pad_token)


def _from_folder(folder: Path, name: str) -> Tokenizer:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    whole, vocab, merges = (folder / f for f in ("tokenizer.json", "vocab.json", "merges.txt"))
    for file in (whole, vocab, merges):
        refuse_pointer(file)
    if whole.is_file():
        try:
            inner = Inner.from_file(str(whole))
        except Exception as error:  # the library raises a bare Exception
            raise DataError(f"{whole} is no tokenizer file ({str(error)[:200]}).") from None
    elif vocab.is_file() and merges.is_file():
        try:
            inner = Inner(models.BPE.from_file(str(vocab), str(merges)))
        except Exception as error:  # as above
            raise DataError(f"{vocab}, {merges.name}: no tokenizer ({str(error)[:200]}).") from None
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
        inner.decoder = decoders.ByteLevel()  # type: ignore
        _add_tokens(inner, folder)
    else:
        raise DataError(
            f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.json and merges.txt."
        )
    side = folder / SIDE_FILE
    if side.is_file():
        try:
            return Tokenizer(inner, **_read_json(side))
        except TypeError:
            raise DataError(f"{side} should hold name, pad, answer and end.") from None
    said = _read_json(folder / "tokenizer_config.json")
    end, pad = (_known(inner, said.get(f"{role}_token")) for role in ("eos", "pad"))
    return foreign(inner, name, end, pad)


def _known(inner, token: str | dict[str, Any] | None) -> str | None:
    """The text of a token of tokenizer_config.json; None for one that the vocabulary lacks."""
    text = token["content"] if isinstance(token, dict) else token
    return text if text and inner.token_to_id(text) is not None else None


def _add_tokens(inner, folder: Path) -> None:
    """The tokens that were added to a vocab.json and merges.txt: of added_tokens.json, or of a
    tokenizer_config.json, which also says which are special. DataError for ids with gaps."""
    from tokenizers import AddedToken

    added = _read_json(folder / "added_tokens.json")
    config = _read_json(folder / "tokenizer_config.json")
    said = config.get("added_tokens_decoder", {})
    special = {one["content"] for one in said.values() if one.get("special")}
    added |= {one["content"]: int(number) for number, one in said.items()}
    for key, value in (config | _read_json(folder / "special_tokens_map.json")).items():
        if key.endswith("_token") and isinstance(value, (str, dict)):
            special.add(value if isinstance(value, str) else value["content"])
    for token, number in sorted(added.items(), key=lambda item: item[1]):
        inner.add_tokens([AddedToken(token, special=token in special, normalized=False)])
        if inner.token_to_id(token) != number:
            raise DataError(
                f"{folder}: the added token {token!r} has the id {number:,}, but comes out as"
                f" {inner.token_to_id(token):,} behind vocab.json: one of them is another model's."
            )


def _read_json(file: Path) -> dict[str, Any]:
    """An object from a file; {} where there is none. DataError for anything else."""
    if not file.is_file():
        return {}
    refuse_pointer(file)
    try:
        return dict(json.loads(file.read_text(encoding="utf-8-sig")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} is not a JSON object ({error}).") from None


def foreign(inner, name: str, end: str | None = None, pad: str | None = None) -> Tokenizer:
    """A tokenizer not made by us: the authors of RMT use its end-of-text token to end and to pad,
    and the token 'GEN' before an answer. end, pad: its tokens, where they are known."""
    ends = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]")
    end = end or next((t for t in ends if inner.token_to_id(t) is not None), None)
    if end is None:
        raise DataError(f"Tokenizer {name!r} has no end-of-text token (none of {', '.join(ends)}).")
    pads = ("<pad>", "<|pad|>", "[PAD]")
    pad = pad or next((t for t in pads if inner.token_to_id(t) is not None), end)
    ids = inner.encode("GEN", add_special_tokens=False).ids
    answer = inner.id_to_token(ids[0]) if len(ids) == 1 else end
    return Tokenizer(inner, name, pad=pad, answer=answer, end=end)
