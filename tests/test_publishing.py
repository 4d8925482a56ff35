"""Model cards, and folders put on the hub, whose API is a stub here."""

import dataclasses
import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import tiny_run
import yaml
from commands import exit_code

from rmt_jax import convert, report
from rmt_jax.config import Lora, Optimizer
from rmt_jax.conversion import card, publishing
from rmt_jax.results import EvalResult

pytestmark = pytest.mark.portable


class Stub:
    """`HfApi`, which notes what is asked of it; `trouble` is raised by one of its functions."""

    calls: list = []
    trouble: tuple[str, Exception] | None = None

    def _note(self, name, given):
        Stub.calls.append((name, given))
        if Stub.trouble and Stub.trouble[0] == name:
            raise Stub.trouble[1]

    def create_repo(self, repo_id, **options):
        self._note("create", {"repo_id": repo_id} | options)
        return SimpleNamespace(repo_id=f"me/{repo_id.split('/')[-1]}")

    def upload_folder(self, **options):
        self._note("upload", options)


@pytest.fixture
def hub(monkeypatch):
    Stub.calls, Stub.trouble = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", Stub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    return Stub


@pytest.fixture
def run(tmp_path):
    """A run's folder, with what its evaluation found."""
    folder = tiny_run.save(tmp_path / "run", tiny_run.config())
    found = [
        EvalResult("qa1", length, 100, {"official": right, "strict": right - 1}, majority=0.2)
        for length, right in (("1s", 97), ("4k", 64))
    ]
    report.write(found, folder / "results", title="run")
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def front(folder):
    """The metadata and the text of a card."""
    text = (folder / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_card_has_results_and_how_to_load(run, tmp_path):
    convert.main(["export", "--workdir", str(run), "--out", str(tmp_path / "out")])
    head, body = front(tmp_path / "out")
    assert head["library_name"] == "rmt_jax" and head["pipeline_tag"] == "text-generation"
    assert "base_model" not in head
    assert "| QA1 | 97.0 ± " in body and "| | 1s | 4k |" in body and "Trained on qa1, qa5." in body
    assert 'rmt_jax.load("FOLDER")' in body and "AutoModelForCausalLM" in body
    # What was asked later is shown in place of what training asked.
    report.write([EvalResult("qa5", "2s", 10, {"official": 3})], run / "evaluation", title="run")
    convert.main(["export", "--workdir", str(run), "--out", str(tmp_path / "later")])
    assert "| QA5 | 30.0 ± " in front(tmp_path / "later")[1]
    plain = tiny_run.save(tmp_path / "plain", tiny_run.config("none", "none"))
    convert.main(["export", "--workdir", str(plain), "--out", str(tmp_path / "bare")])
    head, body = front(tmp_path / "bare")
    assert head["library_name"] == "transformers"
    assert "Results" not in body and "Trained" not in body


def test_a_broken_summary_is_a_sentence_and_writes_nothing(run, tmp_path, capsys):
    (run / "results" / "summary.json").write_text("{")
    words = ["export", "--workdir", str(run), "--out", str(tmp_path / "out")]
    assert exit_code(convert.main, words) == 2
    assert "is not one of our summaries" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_exported_folder_is_pushed(run, tmp_path, hub, capsys):
    out = tmp_path / "out"
    words = ["export", "--workdir", str(run), "--out", str(out)]
    assert exit_code(convert.main, [*words, "--push_to_hub", "my-model", "--private"]) == 0
    (_, made), (_, sent) = hub.calls
    assert made == {"repo_id": "my-model", "private": True, "exist_ok": True}
    assert sent["repo_id"] == "me/my-model" and sent["folder_path"] == str(out)
    assert "on the hub: " in capsys.readouterr().out
    assert 'rmt_jax.load("my-model")' in front(out)[1]
    assert {file.name for file in out.iterdir()} >= {"model.safetensors", "config.json"}


def test_adapters_have_a_card_too(tmp_path):
    config = dataclasses.replace(
        tiny_run.config(), init="us/base@v1", optimizer=Optimizer(train="lora"), lora=Lora(rank=2)
    )
    text = card.adapter_card(config, 77, card.RunFacts(True, "| table |"), "me/mine")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "peft" and head["base_model"] == "us/base"
    for words in ("77 weights of rank 2, alpha 16", "PeftModel", "| table |", '"me/mine"'):
        assert words in text


def refused(status):
    error = RuntimeError("Forbidden\nand more")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    (
        (("create", refused(401)), "The token is not known there. Make one"),
        (("create", refused(403)), "may not write there: is the name yours?"),
        (("upload", OSError("no route")), "(OSError: no route). Check the network."),
    ),
)
def test_what_goes_wrong_on_the_way_is_a_sentence(run, tmp_path, hub, capsys, trouble, sentence):
    hub.trouble, out = trouble, tmp_path / "out"
    words = ["export", "--workdir", str(run), "--out", str(out), "--push_to_hub", "us/it"]
    assert exit_code(convert.main, words) == 2
    told = capsys.readouterr().err
    assert sentence in told and f"hf upload us/it {out}" in told and "secret" not in told
    assert (out / "README.md").is_file()  # and what was written stays


def test_names_and_tokens_are_looked_at_before_anything_is_written(
    run, tmp_path, hub, capsys, monkeypatch
):
    out = tmp_path / "out"
    words = ["export", "--workdir", str(run), "--out", str(out)]
    for more, sentence in (
        (["--push_to_hub", "a/b/c"], "is no name on the hub, such as you/my-model"),
        (["--private"], "name it with --push_to_hub"),
    ):
        assert exit_code(convert.main, [*words, *more]) == 2
        assert sentence in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert exit_code(convert.main, [*words, "--push_to_hub", "us/it"]) == 2
    assert "needs a token of the hub. Make one" in capsys.readouterr().err
    assert not out.exists() and not hub.calls
    with pytest.raises(publishing.PublishingError):
        publishing.check("us/it")


def test_the_adapter_command_pushes_too(run, tmp_path, hub, capsys):
    words = ["adapter", "--workdir", str(run), "--out", str(tmp_path / "a"), "--push_to_hub", "x/y"]
    assert exit_code(convert.main, words) == 2
    assert "is no run with adapters" in capsys.readouterr().err and not hub.calls
    assert json.loads((run / "config.json").read_text())["optimizer"]["train"] == "all"
