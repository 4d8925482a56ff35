"""Background text: what every CPython carries, or a folder of .txt files; cut into sentences.

The splitter is our own: Punkt's trained parameters are a separate download that a fresh machine
cannot count on. It knows the abbreviations of novels and splits where Punkt does nearly always
(full stop, question or exclamation mark, closing quotes, then white space and a capital).
"""

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from zlib import crc32

from rmt_jax.data.errors import DataError
from rmt_jax.files import refuse_pointer

SPLITS: tuple[str, ...] = ("train", "validation", "test")
BLOCK = 3000  # characters of built-in text that go to validation or test together
_ABBREVIATIONS = (
    "Mr|Mrs|Ms|Dr|St|Messrs|Prof|Rev|Hon|Capt|Col|Gen|Lt|Sgt|Sr|Jr|Esq|No|Nos|Vol|vol|Ch|ch|"
    "pp|p|vs|cf|etc|viz|i\\.e|e\\.g|Mme|Mlle|M|Jan|Feb|Mar|Apr|Aug|Sept|Oct|Nov|Dec"
)
_END = re.compile(r"(?<=[.!?])([\"'”’)\]]*)\s+(?=[\"'“‘(\[_]*[A-Z0-9])")
_NOT_END = re.compile(rf"(?:^|[\s(\"'“‘])(?:{_ABBREVIATIONS}|[A-Z])\.$")


def sentences(text: str) -> list[str]:
    """Sentences of a text, each with white space made single. Paragraphs end sentences."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = " ".join(paragraph.split())
        start = 0
        for match in _END.finditer(paragraph):
            piece = paragraph[start : match.end(1)]
            if not match.group(1) and _NOT_END.search(piece):
                continue
            found.append(piece)
            start = match.end()
        if paragraph[start:]:
            found.append(paragraph[start:])
    return found


def builtin() -> Iterator[tuple[str, str]]:
    """(topic, text) of the language reference that comes with every CPython, code and markup
    removed: paragraphs that read as English stay. A paragraph that stands in several topics stays
    in the first, so that splits by topic share none."""
    from pydoc_data.topics import topics

    seen = set()
    for name, text in sorted(topics.items()):
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", text):
            lines = paragraph.splitlines()
            if (
                "::=" in paragraph
                or ">>>" in paragraph
                or re.search(r"^\s*[*=\-~+|^]{3,}", paragraph, re.M)
            ):
                continue
            # Prose is indented by 0, 2 or 3 blanks and has a full stop; code has 3 and symbols.
            flat = " ".join(line.strip() for line in lines)
            flat = re.sub(r"^(?:\*|\d+\.|-)\s+", "", flat).replace("*", "").replace("`", '"')
            letters = sum(c.isalpha() or c == " " for c in flat)
            if len(flat) < 40 or letters < 0.86 * len(flat) or not re.search(r"[.:!?]\)?$", flat):
                continue
            flat = re.sub(r":$", ".", flat)
            if flat not in seen:
                seen.add(flat)
                paragraphs.append(flat)
        if paragraphs:
            yield name, "\n\n".join(paragraphs)


def split_of(key: str) -> str:
    """train (8 in 10), validation or test, by a hash of what must not be torn apart: an author, a
    topic. A corpus with splits of its own says 'split:train'."""
    own = key.removeprefix("split:")
    if own != key and own in SPLITS:
        return own
    return SPLITS[max(0, sha256(key.encode()).digest()[0] % 10 - 7)]


def split_of_story(facts: tuple[str, ...]) -> str:
    """train, validation or test (8:1:1), by a hash of the facts: of simulated stories and official
    ones alike, so that what one holds back the other never trains on."""
    return SPLITS[max(0, crc32("\n".join(facts).encode()) % 10 - 7)]


def documents(source: str) -> list[tuple[str, str, str]]:
    """(name, key, text or path) of every document of 'builtin' or a folder; `key` decides its
    split: the author where a manifest.json names one, else the file.

    Raises DataError when a folder is missing or empty.
    """
    if source == "builtin":
        return list(builtin_blocks())
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"Background: there is no folder {source!r}. Give 'builtin' or a folder.")
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise DataError(f"Background: the folder {source!r} holds no .txt file.")
    keys = owners(folder)
    return [(path.name, keys.get(path.name, path.name), str(path)) for path in files]


def builtin_blocks() -> Iterator[tuple[str, str, str]]:
    """(name, key, text) of the built-in text. Train has whole topics. The others are few and of
    very different sizes, so validation and test take blocks of their paragraphs in turn."""
    blocks = 0
    for name, text in builtin():
        if split_of(name) == "train":
            yield name, "split:train", text
            continue
        block: list[str] = []
        for paragraph in text.split("\n\n"):
            block.append(paragraph)
            if sum(map(len, block)) > BLOCK:
                yield f"{name} {blocks}", f"split:{SPLITS[1 + blocks % 2]}", "\n\n".join(block)
                block, blocks = [], blocks + 1
        if block:
            yield f"{name} {blocks}", f"split:{SPLITS[1 + blocks % 2]}", "\n\n".join(block)
            blocks += 1


def owners(folder: Path) -> dict[str, str]:
    """What the manifest.json of a folder says of its files, by name: the author, or 'split:train'
    where it says the split itself. Raises DataError for another kind of manifest."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return {}
    try:
        rows = json.loads(manifest.read_text(encoding="utf-8-sig"))
        for row in rows:
            if "split" in row and row["split"] not in SPLITS:
                raise DataError(
                    f"{manifest} has {row['file']} in the split {row['split']!r}: "
                    f"there are {', '.join(SPLITS)}."
                )
        return {
            row["file"]: f"split:{row['split']}"
            if "split" in row
            else row.get("author") or row["file"]
            for row in rows
        }
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(
            f"{manifest} is not a list of objects with 'file' and 'author' ({error})."
        ) from None


def read(path: str | Path) -> str:
    """A text file as UTF-8. DataError with the file and the byte for anything else."""
    refuse_pointer(path)
    data = Path(path).read_bytes()
    if b"\0" in data[:4096]:
        raise DataError(f"Background: {path} is a binary file (a zero byte near its start).")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"Background: {path} is not UTF-8 (byte {error.start:,}); convert it, for example "
            f"with 'iconv -f latin1 -t utf-8'."
        ) from None
