"""The contract of a task: a stranger's trains as ours do; nobody outside data/ names ours."""

import ast
import dataclasses
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from rmt_jax import scores
from rmt_jax.config import Config, ConfigError, Data, Model
from rmt_jax.data import compose, perturb, tasks, tokenizer
from rmt_jax.data.compose import Composer
from rmt_jax.data.errors import DataError
from rmt_jax.data.loader import Loader
from rmt_jax.data.tasks import Document, Story, Task, TaskError

ROOT = Path(__file__).parents[1]
TOKENS = tokenizer.load()


class Stranger(Task):
    """A document with two right answers and no labels."""

    name = "stranger"
    description = "Say what the text ends with."

    def sample(self, split, seed, index, options):
        words = " ".join(["rain"] * (5 + 40 * (index % 3 == 0)))
        return Document(self.name, f"{words} and sun.", "What is last?", ("sun", "the sun"))

    def answer_tokens(self, tokenizer, renamed=False):
        return len(tokenizer.sentence("the sun"))


@pytest.fixture
def registered(monkeypatch):
    """Registers tasks for one test."""
    tasks.REGISTRY["qa1"]  # the built-in ones are there
    monkeypatch.setattr(tasks.REGISTRY, "_entries", dict(tasks.REGISTRY._entries))

    def add(task):
        tasks.register(task.name)(task)

    return add


def config(*names: str, **changes) -> Config:
    data = Data(tasks=names, background="none", **changes)
    return Config(model=dataclasses.replace(Model(), segment_tokens=64), data=data)


def test_the_task_of_the_guide_trains(registered):
    guide = (ROOT / "docs" / "howto" / "write_task.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# copy_word\.py\n.*?)```", guide, re.DOTALL)
    monkey: dict = {"__name__": "copy_word"}
    exec(compile(code, "copy_word.py", "exec"), monkey)
    loader = Loader(config("qa1", "copy_word"), TOKENS)
    batch = loader.batch_at(0)
    ours = np.flatnonzero(batch.task == 1)
    assert 0 < len(ours) < len(batch.task) and (batch.metric_row[ours, -1, 0] == 1).all()
    for i in ours:
        text = TOKENS.decode(batch.tokens[i][batch.mask[i]])
        kept = re.search(r"No, keep the word (\w+)\.", text)
        assert kept and text.endswith(f" Which word is kept?<answer> {kept[1]}<end>")
        prompt = TOKENS.decode(batch.prompt[i][batch.prompt_mask[i]])
        assert prompt == " Say which word is to be kept."
    assert tasks.guess("Which word is kept?", Data(tasks=("qa1",))) == "copy_word"
    assert tasks.create("copy_word", Data()).rules == scores.OF_LABELS


def test_documents_pass_as_they_are(registered):
    registered(Stranger)
    composer = Composer(config("stranger").data, TOKENS, segment_tokens=32)
    short = composer.sample("stranger", "1s", 0, 1)
    assert TOKENS.decode(short.context) == " rain rain rain rain rain and sun."
    assert short.answers == ("sun", "the sun") and short.answer == "sun" and short.story is None
    long = composer.sample("stranger", "0k", 0, 0)  # no limit
    assert len(long.context) > 40
    # Index 0 is too long for a segment: another is taken, the same one each time.
    assert len(composer.sample("stranger", "1s", 0, 0).context) < 20
    changed = Composer(config("stranger").data, TOKENS, change="distractors")
    with pytest.raises(DataError, match="'stranger' has documents"):
        changed.sample("stranger", "1s", 0, 1)


def test_documents_make_batches_with_probes_and_drift(registered):
    registered(Stranger)
    from rmt_jax.data.collate import collate

    composer = Composer(config("stranger").data, TOKENS, segment_tokens=32)
    samples = [composer.sample("stranger", "0k", 0, index) for index in range(4)]
    batch = collate(
        samples, TOKENS, segments=3, segment_tokens=32, answer_room=composer.answer_room,
        tasks=composer.tasks, prompt=Config().prompt, answered_segments=3, probe_tokens=20,
        mark_background_only=True,
    )  # fmt: skip
    assert not batch.background_only.any() and not batch.probe.mask.any()
    assert (batch.weight.sum((1, 2, 3)) == len(samples[0].answer_ids) + 1).all()


def test_a_composer_travels_to_worker_processes(registered):
    registered(Stranger)
    composer = Composer(config("stranger", "qa2").data, TOKENS)
    again = pickle.loads(pickle.dumps(composer))
    for task in ("stranger", "qa2"):
        first, second = (c.sample(task, "300", 3, 5) for c in (composer, again))
        assert np.array_equal(first.context, second.context)


def test_answers_that_are_right_as_well():
    from rmt_jax.evaluation import answer_log, scoring

    row = answer_log.AnswerRecord("Q?", "sun", "the sun", None, None, 1, 1, 0.0, 0.0, ("the sun",))
    assert scoring.score_of("exact", (), row, "the sun") and scoring.score_of(
        "exact", (), row, "sun"
    )
    assert not scoring.score_of("exact", (), row, "a sun")


def test_defaults_follow_from_labels():
    stranger = Stranger(Data())
    assert stranger.rules == ("exact", "lm_eval")
    assert stranger.seed == 2374147442 and tasks.create("qa7", Data()).seed == 7
    assert perturb.description("wrong_description", stranger, 0) != stranger.description
    with pytest.raises(DataError, match="no texts for the perturbation 'paraphrase'"):
        perturb.description("paraphrase", stranger, 0)

    class Silent(Task):
        name, description = "silent", "Say nothing."

    with pytest.raises(TaskError, match="must say how long its answers are"):
        compose.longest_answer([Silent(Data())], TOKENS)


def test_labels_are_those_of_the_official_score():
    created = {name: tasks.create(name, Data()) for name in tasks.REGISTRY}
    assert list(created)[:20] == [f"qa{i}" for i in range(1, 21)]
    pairs = created["qa19"].labels
    assert len(pairs) == 12 and not {"n,s", "s,n", "e,w", "w,e"} & set(pairs)
    lists = created["qa8"].answer_tokens(TOKENS)
    assert lists == 3 * max(len(TOKENS.sentence(label)) for label in created["qa8"].labels) + 2
    assert created["qa1"].answer_tokens(TOKENS, renamed=True) > created["qa1"].answer_tokens(TOKENS)


@pytest.mark.parametrize(
    ("names", "changes", "sentence"),
    [
        (("qa1", "qa33"), {}, "'qa33', but there is no such task.*Did you mean 'qa3'"),
        (("qa15",), {}, "qa15 has no simulator.*data.facts=official"),
        (("qa1",), {"facts": "official"}, "needs config.data.babi_dir"),
        (("bad_rule",), {}, "No score is called 'best': there are official"),
        (("no_labels",), {}, "scored by 'official', which looks for labels, and it has none"),
    ],
)
def test_what_is_wrong_with_tasks_is_a_sentence(registered, names, changes, sentence):
    class BadRule(Stranger):
        name, scores = "bad_rule", ("best",)

    class NoLabels(Stranger):
        name, scores = "no_labels", ("official",)

    registered(BadRule)
    registered(NoLabels)
    with pytest.raises(ConfigError, match=sentence):
        tasks.check(config(*names, **changes))
    tasks.check(config("qa1", "qa2"))


def test_a_name_is_taken_once(registered):
    registered(Stranger)
    with pytest.raises(ValueError, match="There is a task 'qa1' already"):
        tasks.register("qa1")(Stranger)


def test_stories_of_ours_name_their_task():
    for name in ("qa1", "qa4", "qa10"):
        made = tasks.create(name, Data()).sample("test", 0, 3, compose.OFFICIAL)
        assert isinstance(made, Story) and made.task == name


def test_nobody_outside_data_names_a_task_of_babi():
    """In code: no string is the name of one, or a list of names. (Help and prose may say 'such as
    qa1'.)"""
    name = re.compile(r"[\s,]*qa\d+([:.\d]*[\s,]+qa\d+)*[:.\d\s,]*")
    found = []
    for file in (ROOT / "rmt_jax").rglob("*.py"):
        place = file.relative_to(ROOT / "rmt_jax")
        if place.parts[0] == "data":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if name.fullmatch(node.value):
                    found.append(f"{place}:{node.lineno} {node.value!r}")
    assert not found, found
