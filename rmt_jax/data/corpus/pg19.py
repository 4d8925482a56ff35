"""PG-19 as a background folder: books fetched once from its public bucket, over plain HTTP.

`python -m rmt_jax.prepare --pg19 DIR [--books N]` writes DIR/*.txt and a manifest that keeps the
corpus's own train, validation and test split; DIR is then a background folder like any other.
"""

import base64
import hashlib
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from rmt_jax.cli import progress_bar
from rmt_jax.data import web
from rmt_jax.errors import RmtError
from rmt_jax.files import atomic_open, write_text

BUCKET = "https://storage.googleapis.com/storage/v1/b/deepmind-gutenberg/o"
SPLITS = ("train", "validation", "test")
BY_HAND = (
    " By hand: copy books as .txt files into a folder, for example with 'gsutil -m cp "
    "gs://deepmind-gutenberg/test/*.txt DIR' where the network allows, and give the folder as "
    "background."
)


class FetchError(RmtError):
    """PG-19 cannot be fetched; says what to do by hand."""


def fetch(folder: str | Path, books: int = 0, bucket: str = BUCKET) -> Path:
    """Fetches `books` books a split (0: all, 11 GB), each checked against the bucket's MD5. What is
    there already is kept, so a stopped run goes on. Raises FetchError."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for split in SPLITS:
        wanted = []
        for item in _listed(bucket, split):
            if books and len(wanted) == books:
                break
            wanted.append(item)
        with progress_bar(len(wanted), "book", desc=f"PG-19 {split}") as bar:
            for item in wanted:
                name = f"{split}-{Path(item['name']).name}"
                _book(bucket, item, folder / name)
                rows.append({"file": name, "split": split})
                bar.update()
    if not rows:
        raise FetchError(f"{bucket} lists no book.{BY_HAND}")
    write_text(folder / "manifest.json", json.dumps(rows, indent=0))
    return folder


def _listed(bucket: str, split: str) -> Iterator[dict]:
    """Name and MD5 of each book of a split, page by page."""
    page = ""
    while True:
        query = {"prefix": f"{split}/", "fields": "items(name,md5Hash),nextPageToken"}
        if page:
            query["pageToken"] = page
        address = f"{bucket}?{urllib.parse.urlencode(query)}"
        found = _get(address)
        try:
            answer = dict(json.loads(found))
        except (ValueError, TypeError):  # a page that asks to log in, say
            raise FetchError(f"{address} answers with no list of books.{BY_HAND}") from None
        yield from (item for item in answer.get("items", ()) if item["name"].endswith(".txt"))
        page = answer.get("nextPageToken", "")
        if not page:
            return


def _book(bucket: str, item: dict, path: Path) -> None:
    if path.is_file():
        return
    data = _get(f"{bucket}/{urllib.parse.quote(item['name'], safe='')}?alt=media")
    digest = base64.b64encode(hashlib.md5(data).digest()).decode()
    if digest != item.get("md5Hash", digest):
        raise FetchError(f"{item['name']} arrived damaged (MD5 {digest}): run again.")
    with atomic_open(path, binary=True) as file:
        file.write(data)


def _get(address: str) -> bytes:
    try:
        return web.get(address)
    except OSError as error:
        raise FetchError(f"{address} does not answer ({error}).{BY_HAND}") from None
