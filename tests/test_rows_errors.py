"""Rows that cannot be read: each fault is a sentence, and nothing half made is left."""

import pytest
from row_files import TOKENS, config, row, write

from rmt_jax.config import ConfigError, Prompt, Questions
from rmt_jax.data.loader import Loader
from rmt_jax.errors import RmtError

pytestmark = pytest.mark.portable


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "cache"))


# What is wrong is a sentence: contents of a file, its name, and what is said.

BAD = [
    ("a.jsonl", b'{"context": "c"\n', r"a\.jsonl, line 1: not JSON .* '\{\"context\": \"c\"'"),
    ("a.jsonl", b'{"context": "c", "question": "q", "answer": "a"}\n\nnope\n', "line 3: not JSON"),
    ("a.jsonl", b'{"text": "c", "label": "a"}', "no field 'context'; there are text, label"),
    ("a.jsonl", b"{}", "no field 'context'; there are none"),
    ("a.jsonl", b'{"context": " \\n ", "question": "q", "answer": "a"}', "'context' is empty"),
    ("a.jsonl", b'{"context": "c", "question": "q", "answer": ""}', "'answer' is empty"),
    ("a.jsonl", b'{"context": "c", "question": "", "answer": "a"}', "'question' is empty"),
    ("a.jsonl", b'{"context": "c", "question": "q", "answer": null}', "holds null and no text"),
    ("a.jsonl", b'{"context": "c", "question": "q", "answer": {"a": 1}}', "holds an object"),
    ("a.jsonl", b'{"context": ["c"], "question": "q", "answer": "a"}', "holds a list and no text"),
    ("a.jsonl", b'["c", "q", "a"]', "a row is an object with fields, but this is a list"),
    ("a.jsonl", b'"c"', "but this is a text"),
    ("a.jsonl", b"7", "but this is a number"),
    ("a.jsonl", '{"context": "c"}'.encode("utf-16"), r"a\.jsonl is UTF-16: convert it"),
    ("a.jsonl", b'{"context": "caf\xe9"}', r"line 1: byte 17 \(0xe9\) is not UTF-8"),
    ("a.jsonl", b'{"context": "\\ud800", "question": "q", "answer": "a"}', "half a character"),
    ("a.jsonl", b"[" * 100_000, "line 1: "),
    ("a.jsonl", b"", r"a\.jsonl holds no rows"),
    ("a.jsonl", b" \n\r\n", r"a\.jsonl holds no rows"),
    ("a.jsonl", b'{"context": "c", "question": "q", "answer": "a"}\n', "of 1 rows none is left"),
    ("a.json", b'[{"context": "c"}, {"con', r"a\.json"),
    ("a.json", b'{"a": [], "b": []}', "holds an object with a, b"),
    ("a.json", b'{"a": 1}', "rows are a list of objects"),
    ("a.json", b'{"context": "caf\xe9"}', "byte 17"),
    ("a.json", b"[]", "holds no rows"),
    ("a.csv", b"context,question,answer\na,b\n", r"line 2: 2 fields, but the header names 3"),
    ("a.csv", b"context,question,answer\na,b,c,d\n", r"line 2: 4 fields, but the header names 3"),
    ("a.csv", b'context,question,answer\n"a,b,c\n', "not a CSV file that can be read"),
    ("a.csv", b"text;answer\na;b\n", "no field 'context'; there are text;answer"),
    ("a.csv", b"context,question,answer\ncaf\xe9,b,c\n", "is not UTF-8"),
    ("a.txt", b"hello", "ends with '.txt': rows are read from .jsonl"),
]


@pytest.mark.parametrize("name, content, sentence", BAD)
def test_a_bad_file_is_a_sentence_and_leaves_nothing(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RmtError, match=sentence) as caught:
        Loader(config(Questions(train=str(tmp_path / name))), TOKENS)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    made = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not made or "none is left" in sentence


def test_other_bad_input_is_a_sentence(tmp_path, monkeypatch):
    good = write(tmp_path / "good.jsonl", [row(i) for i in range(40)])

    def check(sentence: str, kind=RmtError, **fields):
        changes = {name: fields.pop(name) for name in ("segments", "size") if name in fields}
        with pytest.raises(kind, match=sentence):
            Loader(config(Questions(**({"train": good} | fields)), **changes), TOKENS).batch_at(0)

    check("names no rows: set config.data.questions.own.train", ConfigError, train="")
    check("There is no file .*none.jsonl", train=str(tmp_path / "none.jsonl"))
    check("is a folder: name a file in it", train=str(tmp_path))
    check("write hub:NAME:SPLIT", train="hub:squad")
    check("write tfds:NAME:SPLIT", train="tfds:squad")
    check("cannot be had", train="tfds:no_such_set:train")
    check("the answer 'north' is none of the labels up, down", labels=("up", "down"))
    check("No score is called 'best'", ConfigError, scores=("best",))
    check("'official', which looks for labels", ConfigError, scores=("official",))
    check("no field 'body.text'; there are context", fields={"context": "body.text"})
    check("no field 'context.text'", fields={"context": "context.text"})
    check("do not fit in a segment of 7: raise config.model.segment_tokens", size=7)
    long = write(tmp_path / "long.jsonl", [row(i, 40) for i in range(40)])
    check("the shortest of the train rows of 'own' takes 1.: raise", ConfigError, train=long,
          longer="leave_out")  # fmt: skip
    with pytest.raises(ConfigError, match="qa1 has the name of another task"):
        Loader(
            config(Questions(train=good), tasks=("qa1",), questions={"qa1": Questions()}), TOKENS
        )
    with pytest.raises(RmtError, match="has .* tokens, but config.prompt.tokens leaves room for 4"):
        wordy = Questions(train=good, description="Say in which of the four directions it goes.")
        tight = config(wordy).replace(prompt=Prompt(tokens=4))
        Loader(tight, TOKENS).batch_at(0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RMT_JAX_CACHE", str(tmp_path / "file"))
    check("set the environment variable RMT_JAX_CACHE")
