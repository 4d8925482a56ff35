"""BABILong's published evaluation sets: records {input, question, target} of a task and length.

From a local folder (`[data/]qa1/4k.json`, a list or an object a line, or `[data/]4k/qa1-*.parquet`,
one file or several parts) or from the hub (RMT-team/babilong, RMT-team/babilong-1k-samples). Files
of 4 GB are read a record at a time.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rmt_jax.data import tasks
from rmt_jax.errors import RmtError
from rmt_jax.files import refuse_pointer

FIELDS = ("input", "question", "target")
_BLOCK = 1 << 20  # characters read at a time


class PublishedError(RmtError):
    """A set that is not there, or a file that is not one; names the file."""


def read(source: str | Path, task: str, length: str) -> Iterator[dict[str, str]]:
    """Records in file order. Raises PublishedError with the file and the record's number."""
    paths, empty = locate(source, task, length), True
    for path in paths:
        refuse_pointer(path)
        found = _parquet(path) if path.suffix == ".parquet" else json_records(path)
        for number, record in enumerate(found):
            missing = [f for f in FIELDS if not isinstance(record, dict) or f not in record]
            if missing:
                raise PublishedError(f"{path}, record {number}: no {', '.join(missing)}.")
            none = [f for f in FIELDS if record[f] is None or isinstance(record[f], (dict, list))]
            if none:
                raise PublishedError(
                    f"{path}, record {number}: {none[0]} is {json.dumps(record[none[0]])[:60]}, and"
                    " no text."
                )
            empty = False
            yield {field: str(record[field]) for field in FIELDS}
    if empty:
        raise PublishedError(f"{paths[0]} holds no record.")


def locate(source: str | Path, task: str, length: str) -> list[Path]:
    """The files of a task and length, in order, fetched from the hub if `source` is no folder."""
    tasks.REGISTRY[task]  # an unknown name is an error, and no path
    folder = Path(source)
    if folder.is_dir():
        places = [folder / base / part for base in ("", "data") for part in (task, length)]
        inside = (path for place in places for path in place.glob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in inside]
        if found := _choose(names, task, length, str(folder)):
            return [folder / name for name in found]
        raise PublishedError(
            f"{folder} holds neither {task}/{length}.json nor {length}/{task}-*.parquet."
        )
    if str(source).count("/") != 1:
        raise PublishedError(
            f"There is no folder {str(source)!r}; give one, or a dataset's name on the hub such as "
            "RMT-team/babilong."
        )
    return _from_hub(str(source), task, length)


def _from_hub(name: str, task: str, length: str) -> list[Path]:
    from huggingface_hub import HfApi, hf_hub_download

    name, _, pinned = name.partition("@")  # NAME@REVISION
    revision = pinned or None
    try:
        files = HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
        wanted = _choose(files, task, length, name)
        if not wanted:
            raise PublishedError(f"{name} has no {task} at {length} among {len(files)} files.")
        return [
            Path(hf_hub_download(name, one, repo_type="dataset", revision=revision))
            for one in wanted
        ]
    except PublishedError:
        raise
    except Exception as error:  # the hub raises many kinds
        raise PublishedError(
            f"The hub does not give {name} ({str(error)[:200]}). Download it elsewhere "
            f"('hf download --repo-type dataset {name} --local-dir DIR') and name DIR."
        ) from None


def _choose(names: Iterable[str], task: str, length: str, what: str) -> list[str]:
    """Of file names, with '/' between folders, those of a task and length in one of the layouts,
    all parts in order; empty where there are none. Raises PublishedError for a set with a part
    missing, or of two divisions into parts."""
    form = rf"((?:.*/)?)(?:{task}/{length}\.jsonl?|{length}/{task}-(?:(\d+)-of-(\d+)|.*)\.parquet)"
    found = [match for name in sorted(names) if (match := re.fullmatch(form, name))]
    if not found:
        return []
    first = min(found, key=lambda m: (m[1] not in ("", "data/"), m[1], m[0].endswith(".parquet")))
    if not first[0].endswith(".parquet"):
        return [first[0]]
    found = [m for m in found if m[1] == first[1] and m[0].endswith(".parquet")]
    counts = {m[3] for m in found}
    if len(counts) > 1:
        raise PublishedError(
            f"{what} holds {task} at {length} in more than one division into files"
            f" ({', '.join(m[0] for m in found)}): keep the files of one."
        )
    there = {int(m[2]) for m in found if m[2]}
    missing = [f"{n:05d}" for n in range(int(first[3] or 0)) if n not in there]
    if missing:
        raise PublishedError(
            f"{what} holds {len(found)} of the {int(first[3])} files of {task} at {length}: missing"
            f" {'is number' if len(missing) == 1 else 'are numbers'} {', '.join(missing[:8])}."
        )
    return [m[0] for m in found]


def _parquet(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise PublishedError(
            f"{path} needs pyarrow to be read: pip install pyarrow, or take the JSON files."
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise PublishedError(f"{path} is not a parquet file ({error}).") from None


def json_records(path: Path) -> Iterator[Any]:
    """Objects of a JSON list, or of a file with one object after another."""
    decoder, text, at = json.JSONDecoder(), "", 0
    with open(path, encoding="utf-8-sig") as file:
        number, ended, listed = 0, False, None
        while True:
            while at < len(text) and text[at] in " \t\r\n,":
                at += 1
            if listed is None and at < len(text):
                listed = text[at] == "["
                at += listed
                continue
            if at < len(text):
                if listed and text[at] == "]":
                    return
                try:
                    found, at = decoder.raw_decode(text, at)
                    yield found
                    number += 1
                    continue
                except json.JSONDecodeError as error:
                    if ended:
                        raise PublishedError(
                            f"{path}, record {number}: not JSON ({error.msg})."
                        ) from None
            elif ended:
                if listed:
                    raise PublishedError(f"{path}: the list does not end; is the file cut off?")
                return
            # An object may be longer than what was read: read as much again.
            try:
                more = file.read(max(_BLOCK, len(text) - at))
            except UnicodeDecodeError as error:
                raise PublishedError(f"{path} is not UTF-8 ({error.reason}).") from None
            text, at, ended = text[at:] + more, 0, not more
