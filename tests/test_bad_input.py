"""Wrong settings, command lines and files: each ends in the sentence that it must print, never in a
traceback. `test_command.py` has the first twenty settings; rooms test more of their own files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rmt_jax import ask, cli, config, convert, doctor, evaluate, gating, models, prepare, train
from rmt_jax.config import Config, ConfigError
from rmt_jax.data import tasks
from rmt_jax.errors import RmtError
from rmt_jax.report import __main__ as comparison
from rmt_jax.runtime import workdir

ROOT = Path(__file__).parents[1]
SMOKE = str(ROOT / "configs" / "multitask.py") + ":smoke"

SETTINGS = [
    ("model.layers=0", "model.layers must be 1 or more, but got 0"),
    ("model.width=-8", "model.width must be 1 or more, but got -8"),
    ("model.heads=0", "model.heads must be 1 or more, but got 0"),
    ("model.segment_tokens=0", "model.segment_tokens must be 1 or more"),
    ("model.memory_tokens=-1", "model.memory_tokens must be 0 or more, but got -1"),
    ("model.conv_width=-1", "model.conv_width must be 0 or more"),
    ("model.bptt=-2", "model.bptt must be 0 or more"),
    ("model.positions=sine", "must be one of learned, alibi, rotary, but got 'sine'"),
    ("model.position_layout=odd", "must be one of plain, wrap_pos"),
    ("model.dtype=float16", "must be one of auto, float32, bfloat16, but got 'float16'"),
    ("model.attention=flash", "must be one of auto, xla, but got 'flash'"),
    ("model.schedule=fast", "must be one of auto, sequential, diagonal, but got 'fast'"),
    ("model.scan_layers=2", "model.scan_layers takes true or false, but got '2'"),
    ("model=rmt", "The config has no field 'model'"),
    ("model.", "The config has no field 'model.'"),
    ("prompt.source=task", "must be one of none, question, description, both, learned"),
    ("prompt.place=end", "must be one of start, every, but got 'end'"),
    ("prompt.tokens=0", "prompt.tokens must be 1 or more, but got 0"),
    ("data.tasks=qa0", "'qa0', but there is no such task: choose qa1, qa2"),
    ("data.tasks=QA1", "'QA1', but there is no such task: choose qa1, qa2"),
    ("data.weights=1,1,1,1,-1", "give one weight of 0 or more for each task"),
    ("data.weights=0,0,0,0,0", "(not all 0)"),
    ("data.new_names=1.5", "data.new_names must be between 0 and 1, but got 1.5"),
    ("data.new_names=nan", "data.new_names takes a number, but got 'nan'"),
    ("data.workers=-1", "data.workers must be between 0 and 512, but got -1"),
    ("data.seed=-1", "data.seed must be between 0"),
    ("data.align=middle", "must be one of left, right, sentence"),
    ("data.facts=babi", "must be one of simulated, official"),
    ("stages.0.probes=2", "stages.0.probes takes true or false, but got '2'"),
    ("stages=[]", "stages is empty: a curriculum needs at least one stage"),
    ("stages=[{}]", "stages.0 lacks segments and steps and batch and learning_rate"),
    ("stages.1.segments=0", "stages.1.segments must be 1 or more, but got 0"),
    ("stages.0.steps=0;stages.1.steps=0", "steps is 0 in every stage"),
    ("stages.0.steps=-5", "stages.0.steps must be 0 or more"),
    ("stages.2.batch=16", "stages has entries 0 to 1, so there is no stages.2. A config file adds"),
    ("stages.0.learning_rate=-1", "stages.0.learning_rate must be 0 or more, but got -1"),
    ("stages.0.learning_rate=1e999", "stages.0.learning_rate must be a finite number, but got inf"),
    ("stages.0.background=-0.1", "stages.0.background must be between 0 and 1, but got -0.1"),
    ("stages.0.question_rates=often", "question_rates takes a number, but got 'often'"),
    ("stages.0.question_rates=2", "question_rates must be between 0 and 1, but got 2"),
    ("stages.0.question_rates=", "stages.0.question_rates is empty: one of its entries is drawn"),
    ("stages.0.facts=[]", "stages.0.facts is empty: one of its entries is drawn"),
    ("stages.1.facts=few", "stages.1.facts.0 takes an object with least, most, but got 'few'"),
    ('stages.1.facts={"least": 9, "most": 2}', "stages.1.facts goes from 9 to 2"),
    ('stages.1.facts={"least": 1, "most": 2}', "stages.1.facts.least must be 2 or more, but got 1"),
    ("optimizer.name=sgd", "must be one of adamw, muon, but got 'sgd'"),
    ("optimizer.decay=step", "must be one of linear, cosine, constant"),
    ("optimizer.warmup=100", "optimizer.warmup must be between 0 and 1, but got 100"),
    ("optimizer.b2=1", "optimizer.b2 must be between 0 and 0.999999, but got 1"),
    ("optimizer.clip=-1", "optimizer.clip must be 0 or more"),
    ("optimizer.weight_decay=-0.1", "optimizer.weight_decay must be 0 or more"),
    ("optimizer.accumulate=0", "optimizer.accumulate must be 1 or more, but got 0"),
    ("optimizer.memory_drift_penalty=-0.1", "memory_drift_penalty must be 0 or more, but got -0.1"),
    ("optimizer.conv_lr_multiplier=-5", "optimizer.conv_lr_multiplier must be 0 or more"),
    ("evaluation.lengths=", "evaluation.lengths is empty"),
    ("model.position_layout=wrap_pos;model.cell=rmt", "which model.positions=alibi does not have"),
    ("stages.0.learning_rate=0", "stages.0.learning_rate is 0, but with optimizer.name=muon"),
    ('stages.0.tasks={"qa1": 0, "qa2": 0}', "stages.0.tasks must have weights of 0 or more, not"),
    ("stages.0.tasks.qa1=-1", "stages.0.tasks must be 0 or more, but got -1"),
    ("stages.0.tasks.qa1=NaN", "stages.0.tasks must be a finite number, but got nan"),
    ("stages.0.tasks.qa7=1", "stages.0.tasks names 'qa7', which data.tasks does not: qa1, qa2"),
    ("stages.0.probes=true;model.schedule=diagonal", "the diagonal schedule never holds whole"),
    (
        "model.schedule=diagonal;optimizer.memory_drift_penalty=0.1",
        "the diagonal schedule never holds whole",
    ),
    ("checkpoint.every=0", "checkpoint.every must be 1 or more"),
    ("evaluation.lengths=4x", "'4x' is no length: write 4s (segments)"),
    ("evaluation.lengths=0s", "'0s' is no length"),
    ("evaluation.score=exactly", "evaluation.score: No score is called 'exactly': there are off"),
    ("evaluation.samples=0", "evaluation.samples must be 1 or more"),
    ("evaluation.every=-1", "evaluation.every must be 0 or more"),
    ("log_every=0", "log_every must be 1 or more, but got 0"),
    ("seed=1.5", "config.seed takes a whole number, but got 1.5"),
    ("seed=-1", "seed must be between 0 and 2147483647, but got -1"),
]


@pytest.mark.parametrize(("setting", "sentence"), SETTINGS)
def test_settings(setting, sentence):
    tokens = [
        f"--config.{one}" if "=" in one else f"--config.{one}=1" for one in setting.split(";")
    ]
    with pytest.raises(RmtError) as caught:
        found = cli.parse(["--config", SMOKE, *tokens], "")[0]
        tasks.check(found)
        models.check(found.model, found.prompt)
    assert sentence in str(caught.value)


def told(main: Callable, argv: list[str], capfd) -> str:
    """What a command prints before it ends with an error code; an exception fails the test."""
    with pytest.raises(SystemExit) as stop:
        cli.run(main, argv)
    assert stop.value.code == 2, capfd.readouterr().err
    return capfd.readouterr().err


COMMANDS = [
    (train.main, ["--config"], "Argument --config: expected one argument"),
    (train.main, ["--config", SMOKE, "extra"], "Unknown argument 'extra'"),
    (train.main, ["--config", SMOKE, "--work_dir", "x"], "Unknown argument '--work_dir'"),
    (train.main, ["--config", SMOKE, "--config.seed"], "needs a value: --config.seed=VALUE"),
    (train.main, ["--config", ".py:x"], "There is no config file"),
    (train.main, ["--config", str(ROOT)], "There is no config file"),
    (train.main, ["--config", SMOKE, "--profile_steps", "20"], "such as 20-25, but got '20'"),
    (train.main, ["--config", SMOKE, "--log_to", "csv"], "takes tensorboard and wandb, but got"),
    (doctor.main, ["--fast"], "Unrecognized arguments: --fast"),
    (doctor.main, ["--seconds", "ten"], "Argument --seconds: invalid float value: 'ten'"),
    (convert.main, ["export"], "--workdir"),
    (convert.main, ["turn"], "invalid choice: 'turn'"),
    (gating.main, ["--workdir", "multitask", "--out", str(ROOT)], "is no empty folder: choose"),
    (gating.main, ["--workdir", "multitask", "--out", "x", "--gates.steps=0"], "gates.steps must"),
    (gating.main, ["--workdir", "backbone-rmt", "--out", "x"], "'rmt' has no gates to teach"),
    (ask.main, ["--workdir", "nowhere", "--tokens", "0", "--file", "x"], "at least 1"),
    (ask.main, ["--workdir", "nowhere", "--question", " ", "--file", "x"], "An empty --question"),
    (evaluate.main, ["--workdir", "nowhere-at-all"], "nowhere-at-all"),
    (evaluate.main, [], "--workdir"),
    (prepare.main, [], "--out DIR says where the data goes"),
    (prepare.main, ["--out", "x", "--lengths", "4q"], "Unknown length '4q'"),
    (prepare.main, ["--out", "x", "--tasks", "qa99"], "'qa99', but there is no such task"),
    (prepare.main, ["--out", "x", "--samples", "-1"], "--samples is -1: a set needs at least 1"),
    (comparison.main, ["nowhere-at-all"], "nowhere-at-all holds no summary.json"),
    (comparison.main, ["x", "--score", "f9"], "invalid choice: 'f9'"),
    (comparison.main, [], "Name one folder or more that have a summary.json"),
]


@pytest.mark.parametrize(("main", "argv", "sentence"), COMMANDS)
def test_command_lines(main, argv, sentence, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = told(main, argv, capfd)
    assert sentence in text and "Traceback" not in text


def test_several_processes_need_a_workdir(capfd, monkeypatch):
    monkeypatch.setenv("SKYPILOT_NODE_IPS", "10.0.0.1\n10.0.0.2")
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "0")
    assert "needs --workdir DIR: the same folder" in told(train.main, ["--config", SMOKE], capfd)


def make(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


BABI = ["--config.data.facts=official", "--config.data.tasks=qa1", "--config.data.babi_dir=babi"]
QA1 = "babi/qa1_single-supporting-fact_train.txt"

OWN = ["--config.data.tasks=own", "--config.data.questions.own.train=rows.jsonl"]
OWN += ["--config.prompt.source=question", "--config.stages.0.tasks=", "--config.stages.1.tasks="]
ROWS = "".join(
    json.dumps({"context": f"It is number {n}.", "question": "Which?", "answer": str(n)}) + "\n"
    for n in range(60)
) + json.dumps({"context": "Oh.", "question": "What has happened to the grey and rusty bicycle of "
                "the neighbour in the green coat?", "answer": "1"})  # fmt: skip

# Files by name, the arguments of a training, what it must say.
FILES = [
    ({}, ["--config.data.background=books"], "there is no folder 'books'"),
    ({"books/a.md": "x"}, ["--config.data.background=books"], "holds no .txt file"),
    ({"books/a.txt": b"a\0b"}, ["--config.data.background=books"], "is a binary file"),
    ({"books/a.txt": b"\xff\xfe x"}, ["--config.data.background=books"], "is not UTF-8 (byte 0)"),
    ({"books/a.txt": ""}, ["--config.data.background=books"], "Background"),
    (
        {"books/a.txt": "x", "books/manifest.json": "{"},
        ["--config.data.background=books"],
        "is not a list of objects with 'file' and 'author'",
    ),
    (
        {
            "books/a.txt": "x",
            "books/manifest.json": '[{"file": "a.txt", "author": "A", "split": "valid"}]',
        },
        ["--config.data.background=books"],
        "has a.txt in the split 'valid': there are train, validation, test",
    ),
    ({"tok/x": ""}, ["--config.data.tokenizer=tok"], "tok holds no tokenizer"),
    ({"tok/tokenizer.json": "{}"}, ["--config.data.tokenizer=tok"], "is no tokenizer file"),
    ({}, BABI, "There is no folder 'babi' with bAbI files"),
    ({}, [*BABI, "--config.stages.0.probes=1"], "needs the answer after every fact"),
    (
        {},
        [*BABI, "--config.data.facts=both", "--config.stages.0.probes=1"],
        "the answer after every",
    ),
    ({"babi/readme.txt": ""}, BABI, "babi has no train file of qa1"),
    ({QA1: ""}, BABI, "holds no question"),
    ({QA1: "Mary moved.\n"}, BABI, "line 1: expected 'ID text'"),
    ({QA1: "2 Mary moved.\n"}, BABI, "the file starts with ID 2"),
    ({QA1: "1 Mary moved.\n3 Where?\ta\t1\n"}, BABI, "line 2: ID 3 follows ID 1"),
    ({QA1: b"1 \xff\n"}, BABI, "is not text in UTF-8"),
    ({"run": "a file"}, [], "--workdir run is not a folder"),
    ({"run/config.json": "{"}, [], "is not JSON"),
    ({"run/config.json": "[]"}, [], "should hold an object with settings, not []"),
    ({"run/config.json": '{"modle": 1}'}, [], "The config has no field 'modle'"),
    ({"run/config.json": '{"seed": "x"}'}, [], "config.seed takes a whole number, but got 'x'"),
    ({"run/rescues.json": "{"}, [], "is not JSON"),
    ({}, ["--config.init=nothing-there"], "nothing-there"),
    ({"w/config.json": "{}"}, ["--config.init=w"], "w"),
    ({"w/weights.safetensors": "half"}, ["--config.init=w"], "no config.json of the run beside it"),
    (
        {"w/model.safetensors": "half", "w/config.json": "{}"},
        ["--config.init=w"],
        "can't be read as safetensors",
    ),
    ({}, ["--config.prompt.tokens=3"], "config.prompt.tokens leaves room for 3: raise it to"),
    (
        {},
        ["--config.prompt.tokens=14", "--config.prompt.source=both", "--config.data.tasks=qa1,qa3"]
        + ["--config.stages.0.tasks=", "--config.stages.1.tasks="],
        "before the",  # the question of a sample, not the description
    ),
    ({"rows.jsonl": ROWS}, [*OWN, "--config.prompt.tokens=9"], "'What has happened to the grey"),
    (
        {},
        ["--config.mesh.fsdp=3"],
        "does not cover the 1 visible device: the sizes that are not -1",
    ),
    ({}, ["--config.mesh.data=-1", "--config.mesh.fsdp=-1"], "one of them may be -1"),
    ({}, ["--config.mesh.tensor=0"], "each must be 1 or more"),
]


@pytest.mark.parametrize(("files", "settings", "sentence"), FILES)
def test_files(files, settings, sentence, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, content in files.items():
        make(tmp_path / name, content)
    text = told(train.main, ["--config", SMOKE, "--workdir", "run", *settings], capfd)
    assert sentence in text and "Traceback" not in text


def test_a_config_file_that_is_wrong(tmp_path, capfd):
    cases = {
        "get_config = 3": "TypeError",
        "def get_config(): return {}": "returned dict, not a Config",
        "import nothing_of_that_name": "ModuleNotFoundError",
        "def get_config(:": "SyntaxError",
    }
    for number, (content, sentence) in enumerate(cases.items()):
        file = make(tmp_path / f"{number}.py", content)
        text = told(train.main, ["--config", str(file)], capfd)
        assert sentence in text and "Traceback" not in text


def test_a_config_of_another_version(tmp_path):
    tree = config.to_dict(Config()) | {"model": {"layers": 2, "kernel": "flash"}}
    file = make(tmp_path / "config.json", json.dumps(tree))
    with pytest.raises(ConfigError, match="no field 'model.kernel'"):
        workdir.read_config(file)


def test_there_are_enough():
    assert len(SETTINGS) + len(COMMANDS) + len(FILES) >= 60
