"""Records, one at a time, with the place where each stands: 'tickets.jsonl, line 12'.

Bounded memory: no reader holds more than one record, but for a .json file that holds one object.
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rmt_jax.data.errors import DataError
from rmt_jax.data.published import json_records
from rmt_jax.errors import RmtError
from rmt_jax.files import refuse_pointer

Located = tuple[str, Any]  # place, record
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SHOWN = 60  # characters of a broken line in an error


def read(source: str) -> Iterator[Located]:
    """Records of a file, of hub:NAME[:CONFIG]:SPLIT or of tfds:NAME:SPLIT.

    Raises DataError with file and line for what cannot be read.
    """
    kind, _, rest = source.partition(":")
    if kind == "hub" and rest:
        yield from _hub(source, rest)
    elif kind == "tfds" and rest:
        yield from _tfds(source, rest)
    else:
        path = Path(source)
        check_file(path)
        readers = {".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
        yield from readers.get(path.suffix.lower(), _lines)(path)


def check_file(path: Path) -> None:
    """Raises DataError for what is no file of a known kind."""
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file in it ({', '.join(ENDINGS)}).")
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    refuse_pointer(path)
    if path.suffix.lower() not in ENDINGS:
        raise DataError(
            f"{path} ends with '{path.suffix}': rows are read from {', '.join(ENDINGS)}, from"
            " hub:NAME:SPLIT and from tfds:NAME:SPLIT."
        )


def local_file(source: str) -> Path | None:
    """The file that a source names; None for a dataset of the hub or of TensorFlow Datasets."""
    return None if source.startswith(("hub:", "tfds:")) or not source else Path(source)


def _lines(path: Path) -> Iterator[Located]:
    """One JSON object a line; blank lines are skipped."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number:,}"
            if number == 1:
                line = _without_mark(line, path)
            try:
                text = line.decode().strip()
            except UnicodeDecodeError as error:
                raise DataError(_not_utf8(place, line, error)) from None
            if not text:
                continue
            try:
                yield place, json.loads(text)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{place}: not JSON ({error.msg} at character {error.pos + 1:,}):"
                    f" {_shown(text)}"
                ) from None
            except RecursionError:
                raise DataError(f"{place}: JSON nested too deeply: {_shown(text)}") from None


def _json(path: Path) -> Iterator[Located]:
    """A list of objects, read one at a time, or an object with one list in it ('data')."""
    with open(path, "rb") as file:
        start = _without_mark(file.read(4096), path).lstrip()
    if not start.startswith(b"{"):
        yield from _numbered(path, json_records(path))
        return
    try:
        found = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise DataError(_not_utf8(str(path), error.object, error)) from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object after another
            yield from _lines(path)
            return
        raise DataError(f"{path}: not JSON ({error.msg}, line {error.lineno:,}).") from None
    lists = [name for name, value in found.items() if isinstance(value, list)]
    if len(lists) != 1:
        raise DataError(
            f"{path} holds an object with {', '.join(found) or 'nothing'}: rows are a list of"
            " objects, or an object in which one field is such a list."
        )
    yield from _numbered(path, found[lists[0]])


def _numbered(path: Path | str, records: Iterable[Any]) -> Iterator[Located]:
    try:
        for number, record in enumerate(records, start=1):
            yield f"{path}, row {number:,}", record
    except DataError:
        raise
    except RmtError as error:
        raise DataError(str(error)) from None


def _csv(path: Path) -> Iterator[Located]:
    """A header with the names of the fields, then a row a record."""
    with open(path, "rb") as file:
        _without_mark(file.read(4), path)
    limit = csv.field_size_limit(sys.maxsize)  # of the process, so it is put back
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            rows = csv.DictReader(file, delimiter=delimiter, strict=True)
            for record in rows:
                place = f"{path}, line {rows.line_num:,}"
                if None in record or None in record.values():
                    wanted, more = len(rows.fieldnames or ()), record.pop(None, [])
                    found = sum(value is not None for value in record.values()) + len(more)
                    raise DataError(
                        f"{place}: {found} fields, but the header names {wanted}"
                        f" ({', '.join(rows.fieldnames or ())}): a text with a comma or a line"
                        " break needs quotes around it."
                    )
                yield place, record
    except UnicodeDecodeError as error:
        raise DataError(_not_utf8(str(path), error.object, error)) from None
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file that can be read ({error}).") from None
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> Iterator[Located]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(
            f"{path} needs pyarrow to be read: pip install 'rmt_jax[datasets]'."
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=256))
            yield from _numbered(path, (record for batch in batches for record in batch))
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} is not a parquet file ({str(error)[:200]}).") from None


def _hub(source: str, rest: str) -> Iterator[Located]:
    """hub:NAME[@REVISION][:CONFIG]:SPLIT, streamed by the package `datasets`."""
    name, *parts = rest.split(":")
    if not 1 <= len(parts) <= 2:
        raise DataError(f"{source}: write hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT.")
    try:
        from datasets import load_dataset  # pyright: ignore
    except ImportError:
        raise DataError(
            f"{source} needs the package datasets: pip install 'rmt_jax[datasets]'."
        ) from None
    name, _, revision = name.partition("@")
    config = parts[0] if len(parts) == 2 else None
    try:
        found = load_dataset(
            name, config, split=parts[-1], streaming=True, revision=revision or None
        )
        yield from _numbered(source, found)
    except DataError:
        raise
    except Exception as error:  # the library and the hub raise many kinds
        raise DataError(f"{source} cannot be had: {str(error)[:300]}") from None


def _tfds(source: str, rest: str) -> Iterator[Located]:
    """tfds:NAME[/CONFIG]:SPLIT, or the folder of a built dataset in place of the name; read without
    TensorFlow."""
    name, _, split = rest.rpartition(":")
    if not name or not split:
        raise DataError(f"{source}: write tfds:NAME:SPLIT, or tfds:FOLDER:SPLIT.")
    import tensorflow_datasets as tfds

    found: Any
    try:
        if Path(name).is_dir():
            versions = sorted(Path(name).glob("**/dataset_info.json"))
            if not versions:
                raise DataError(f"{source}: {name} holds no dataset_info.json.")
            builder: Any = tfds.builder_from_directory(versions[-1].parent)
            found = builder.as_data_source(split)
        else:
            found = tfds.data_source(name, split=split)
        yield from _numbered(source, (_texts(found[i]) for i in range(len(found))))
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds
        raise DataError(f"{source} cannot be had: {str(error)[:300]}") from None


def _texts(record: Any) -> Any:
    """Bytes of a TFDS record as text, to any depth."""
    if isinstance(record, bytes):
        return record.decode()
    if isinstance(record, dict):
        return {name: _texts(value) for name, value in record.items()}
    if hasattr(record, "tolist"):
        return _texts(record.tolist())
    return [_texts(value) for value in record] if isinstance(record, list) else record


def _without_mark(data: bytes, path: Path) -> bytes:
    """The bytes behind a UTF-8 byte-order mark. DataError for UTF-16."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(
            f"{path} is UTF-16: convert it, for example with 'iconv -f UTF-16 -t UTF-8'."
        )
    return data.removeprefix(b"\xef\xbb\xbf")


def _not_utf8(place: str, data: bytes, error: UnicodeDecodeError) -> str:
    return (
        f"{place}: byte {error.start + 1:,} ({data[error.start]:#04x}) is not UTF-8. Convert the"
        " file, for example with 'iconv -f LATIN1 -t UTF-8'."
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
