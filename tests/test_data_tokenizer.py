"""Tokenizers: every bAbI word is one token, and every text survives."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from rmt_jax.config import Prompt
from rmt_jax.data import prompts, simulator, tokenizer, words
from rmt_jax.data.babi import table
from rmt_jax.data.errors import DataError

pytestmark = pytest.mark.portable

TOKENS = tokenizer.load()
SHARED = os.environ.get("RMT_JAX_SHARED")
needs_files = pytest.mark.skipif(not SHARED, reason="RMT_JAX_SHARED is not set")


def test_the_builtin_one_is_small_and_has_its_three():
    assert TOKENS.vocab_size == 4096
    assert (TOKENS.pad, TOKENS.answer, TOKENS.end) == (0, 1, 2)


def test_every_word_of_the_tasks_is_one_token():
    told = set()
    for task in table.SIMULATED:
        for index in range(60):
            story = simulator.simulate_story(task, (0, index))
            told |= set(re.findall(r"\w+", " ".join((*story.facts, story.question))))
    for row in table.ROWS.values():
        told |= {part for label in row.labels for part in label.split(",")}
    assert [word for word in told if len(TOKENS.encode(" " + word)) != 1] == []
    assert len(TOKENS.sentence("Mary moved to the garden.")) == 6
    assert len(TOKENS.sentence("Where is Mary?")) == 4


@needs_files
def test_every_word_of_the_official_files_is_one_token():
    found = set()
    for path in Path(SHARED, "data/babi/en-10k").glob("*.txt"):
        found |= set(re.findall(r"[A-Za-z]+", path.read_text()))
    assert [word for word in found if len(TOKENS.encode(" " + word)) != 1] == []


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_survives(text):
    assert TOKENS.decode(TOKENS.encode(text)) == text


def test_many_is_as_one_by_one():
    texts = [" Mary moved to the garden.", "", " Ünïcode ☃ text\n", " GEN"]
    assert TOKENS.encode_many(texts) == [TOKENS.encode(text) for text in texts]


def test_a_saved_one_is_the_same(tmp_path):
    again = tokenizer.load(TOKENS.save(tmp_path / "t"))
    copied = pickle.loads(pickle.dumps(TOKENS))
    for other in (again, copied):
        assert other.name == "builtin" and other.fingerprint() == TOKENS.fingerprint()
        assert (other.pad, other.answer, other.end) == (0, 1, 2)
        assert other.encode(" the garden") == TOKENS.encode(" the garden")


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(ValueError, match="neither tokenizer.json nor vocab.json"):
        tokenizer.load(tmp_path)


def bpe(folder, **files):
    """A folder of GPT-2's older form: 256 bytes and <|endoftext|>, and other files."""
    alphabet = sorted(ByteLevel.alphabet())
    files |= {"vocab": {token: i for i, token in enumerate([*alphabet, "<|endoftext|>"])}}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"GEN": 257, "<mem>": 258}},
        {
            "tokenizer_config": {
                "added_tokens_decoder": {
                    "258": {"content": "<mem>", "special": True},
                    "257": {"content": "GEN", "special": False},
                }
            }
        },
    ],
)
def test_tokens_added_to_an_older_form_count_and_stay_whole(tmp_path, files):
    plain = tokenizer.load(bpe(tmp_path))
    found = tokenizer.load(bpe(tmp_path, **files))
    assert (plain.vocab_size, found.vocab_size) == (257, 259)
    assert found.encode("a<mem>b") == [*plain.encode("a"), 258, *plain.encode("b")]
    assert found.answer == 257 and plain.answer == plain.end  # GEN is one token now
    assert found.encode("Mary went.") == plain.encode("Mary went.")


def test_added_tokens_of_another_model(tmp_path):
    with pytest.raises(ValueError, match="'xyz' has the id 300, but comes out as 257 behind vocab"):
        tokenizer.load(bpe(tmp_path, added_tokens={"xyz": 300}))
    with pytest.raises(ValueError, match="added_tokens.json is not a JSON object"):
        tokenizer.load(bpe(tmp_path, added_tokens=[1]))
    (tmp_path / "vocab.json").write_text("[")
    with pytest.raises(ValueError, match="vocab.json, merges.txt: no tokenizer"):
        tokenizer.load(tmp_path)


def test_a_name_on_the_hub_ends_and_pads_as_its_config_says(tmp_path, monkeypatch):
    shutil.copy(tokenizer.BUILTIN / "tokenizer.json", tmp_path)
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<end>",
        "pad_token": "<pad>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    found = tokenizer.load("somebody/model")
    text = "Mary moved to the garden. Where is Mary?"
    assert (found.end, found.pad) == (TOKENS.end, TOKENS.pad)
    assert found.encode(text) == TOKENS.encode(text) and found.name == "somebody/model"
    local = tokenizer.load(tmp_path)  # the same in a folder
    assert (local.end, local.pad, local.answer) == (found.end, found.pad, found.answer)
    del said["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match="'somebody/model' has no end-of-text token"):
        tokenizer.load("somebody/model")


@needs_files
def test_gpt2_is_used_as_the_authors_do():
    gpt2 = tokenizer.load(Path(SHARED, "data/gpt2_tokenizer"))
    assert gpt2.vocab_size == 50_257
    assert gpt2.pad == gpt2.end == 50_256
    assert gpt2.answer == gpt2.encode("GEN")[0] == 35_353
    assert gpt2.encode(" Hello world") == [18435, 995]


def test_prompts():
    told, description = {}, table.row("qa1").description
    for source in ("none", "question", "description", "both", "learned"):
        ids, mask = prompts.ids(
            Prompt(source=source, tokens=24), TOKENS, description, "Where is Mary?"
        )
        assert ids.shape == mask.shape == (24,)
        told[source] = TOKENS.decode(ids[mask]) if source != "learned" else mask.all()
    assert told["none"] == "" and told["learned"]
    assert told["question"] == " Where is Mary?"
    assert told["both"] == told["description"] + told["question"]
    for row in table.ROWS.values():
        for words_ in (row.description, *row.paraphrases):
            prompts.ids(Prompt(source="both", tokens=48), TOKENS, words_, "Where is Mary?")
    with pytest.raises(ValueError, match="has 9 tokens.*raise it to 9"):
        prompts.ids(Prompt(source="description", tokens=3), TOKENS, description, "")


def test_official_names_are_in_no_list():
    for kind in ("people", "places", "objects"):
        assert not set(words.words(kind)) & {"Mary", "garden", "milk"}
