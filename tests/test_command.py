"""What a person types, and what they are told when it is wrong."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_data_loader import FACT

from rmt_jax import cli, config, models, validation
from rmt_jax.config import OFFICIAL, Config, ConfigError, Data, Facts, Questions, Texts
from rmt_jax.data import tasks, tokenizer
from rmt_jax.data.loader import Loader
from rmt_jax.errors import RmtError

ROOT = Path(__file__).parents[1]
MULTITASK = str(ROOT / "configs" / "multitask.py")
SHARED = os.environ.get("RMT_JAX_SHARED")


def parse(*overrides: str, preset: str = "") -> Config:
    """The config as a training checks it: what backbone and cell ask of theirs included."""
    found = cli.parse(["--config", MULTITASK + preset, *overrides], "")[0]
    tasks.check(found)
    models.check(found.model, found.prompt)
    return found


def test_presets_are_valid():
    for preset in ("", ":small", ":long", ":smoke", ":gpt2", ":rmt", ":armt", ":prmt", ":none"):
        validation.validate(parse(preset=preset))


@pytest.mark.skipif(not SHARED, reason="RMT_JAX_SHARED names no folder with bAbI and books")
def test_the_long_preset_hides_stories_in_novels():
    files = f"--config.data.babi_dir={SHARED}/data/babi/en-10k"
    long = parse(files, f"--config.data.background={SHARED}/data/books", preset=":long")
    tokens = tokenizer.load()
    loader = Loader(long, tokens, "train")
    for first, most in ((0, 8), (900, 32)):  # its two stages
        batches = [loader.batch_at(first + step) for step in range(6)]
        assert {batch.tokens.shape[::2] for batch in batches} == {(32, 64)}
        longest = max(batches, key=lambda batch: batch.tokens.shape[1])
        assert 2 <= longest.tokens.shape[1] <= most
        texts = [tokens.decode(row[row != tokens.pad]) for row in longest.tokens]
        told = [
            len(FACT.findall(text)) for text in texts
        ]  # none of QA4's; a fact has 40 characters
        assert any(2 < n < len(text) / 160 for n, text in zip(told, texts, strict=True))


def presets(name: str) -> list[str]:
    """Of `configs/NAME.py`, each as a value of --config."""
    file = ROOT / "configs" / f"{name}.py"
    with pytest.raises(ConfigError) as refused:
        cli.load_config(f"{file}:no-such")
    return [
        f"{file}:{preset}" for preset in str(refused.value).split("choose ")[1][:-1].split(", ")
    ]


@pytest.mark.parametrize("name", ("multitask", "pretrain"))
def test_every_preset_is_valid(name):
    found = presets(name)
    assert len(found) > 10
    for spec in found:
        validation.validate(cli.parse(["--config", spec], "")[0])


def test_overrides_are_typed():
    c = parse(
        "--config.model.layers=3",
        "--config.data.tasks=qa1,qa2",
        "--config.stages.0.tasks=",
        "--config.stages.0.tasks.qa2=2",
        "--config.stages.0.question_rates=1,.5",
        "--config.stages.0.facts.1.most=9",
        "--config.stages.0.facts.2=null",
        "--config.stages.0.learning_rate=1",
        "--config.model.remat=false",
        "--config.data.babi_dir",
        "/tmp/x",
        "--config.seed=7",
        "--config.evaluation.lengths=300,'4s'",
    )
    assert c.evaluation.lengths == ("300", "4s")
    assert c.stages[0].tasks == {"qa2": 2.0} and c.stages[0].question_rates == (1.0, 0.5)
    assert c.stages[0].facts == (Facts(3, 12), Facts(8, 9), OFFICIAL, OFFICIAL)
    assert (c.model.layers, c.data.tasks, c.seed) == (3, ("qa1", "qa2"), 7)
    rate = c.stages[0].learning_rate
    assert rate == 1.0 and isinstance(rate, float)
    assert c.model.remat is False and c.data.babi_dir == "/tmp/x"


def test_the_users_own_folder_may_be_written_as_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    c, known = cli.parse(
        [
            "--config",
            MULTITASK,
            "--workdir=~/run",
            "--config.data.background=~/books",
            "--config.data.babi_dir",
            "~",
            "--config.data.questions.tickets.train=tfds:~/tickets:train",
            "--config.data.questions.tickets.description=~/ is a folder",
        ],
        "",
    )
    assert known.workdir == "/home/me/run"
    assert (c.data.background, c.data.babi_dir) == ("/home/me/books", "/home/me")
    tickets = c.data.questions["tickets"]
    assert tickets.train == "tfds:/home/me/tickets:train"
    assert config.Texts(test="~/a").test == "/home/me/a" and Config(init="~").init == "/home/me"
    others = cli.Parser()
    others.add_argument("--out", type=Path)
    others.add_argument("--of", nargs="+")
    args = others.parse_args(["--out=~/x", "--of", "~/a:0.5", "b~/c", "~nobody.of.that.name/d"])
    assert args.out == Path("/home/me/x")
    assert args.of == ["/home/me/a:0.5", "b~/c", "~nobody.of.that.name/d"]


def test_every_text_of_the_config_is_a_path_or_is_none():
    """A new field is marked `path=True`, or stands here."""
    tree = Config(data=Data(questions={"q": Questions()}, texts={"t": Texts()}))
    texts = {
        name.split(".")[-1]
        for name, value, about in config.settings(tree)
        if isinstance(value, str) and not about.choices and not about.path
    }
    assert texts == {"backbone", "cell", "description", "field", "question", "score"}
    paths = {name.split(".")[-1] for name, _, about in config.settings(tree) if about.path}
    assert paths == {
        "init", "babi_dir", "background", "tokenizer", "train", "validation", "test"
    }  # fmt: skip


def test_config_survives_json():
    for preset in ("small", "gpt2"):
        c = parse(preset=":" + preset)
        assert config.from_dict(json.loads(json.dumps(config.to_dict(c)))) == c


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["--config.model.layer=3"], "no field 'model.layer'. Did you mean model.layers"),
        (["--config.model.layers=three"], "model.layers takes a whole number, but got 'three'"),
        (["--config.model.layers=2.5"], "model.layers takes a whole number, but got 2.5"),
        (["--config.model.remat=maybe"], "model.remat takes true or false, but got 'maybe'"),
        (["--config.optimizer.clip=big"], "optimizer.clip takes a number, but got 'big'"),
        (["--config.stages.0.segments=x"], "stages.0.segments takes a whole number, but got 'x'"),
        (["--config.stages.3.steps=1"], "stages has 1 entry, number 0, so there is no stages.3"),
        (["--config.stages.first.steps=1"], "so there is no stages.first"),
        (["--config.stages.0.step=1"], "no field 'stages.0.step'. Did you mean stages.0.steps"),
        (["--config.stages=8"], "stages.0 takes an object with segments, steps, batch"),
        (["--config.stages.0.tasks=qa1"], "stages.0.tasks takes an object, such as {}"),
        (["--config.stages.0.tasks.qa1=much"], "stages.0.tasks.qa1 takes a number, but got 'much'"),
        (["--config.stages.0.tasks.qa1.x=1"], "has no field 'stages.0.tasks.qa1.x'"),
        (["--config.stages.0.facts.0.least=x"], "facts.0.least takes a whole number, but got 'x'"),
        (["--config.model.cell_options.rate=0.9"], "has no field 'model.cell_options.rate'"),
        (
            ["--config.model.backbone=bert"],
            "model.backbone is 'bert', but there is no such backbone: choose",
        ),
        (["--config.imports=no_such_module"], "names 'no_such_module', which cannot be imported"),
        (["--config.model.heads=3"], "model.width 64 does not divide into model.heads 3"),
        (["--config.model.cell=rmt", "--config.model.memory_tokens=0"], "needs memory tokens"),
        (
            ["--config.model.cell=rmt", "--config.model.schedule=diagonal"],
            "does not go with model.cell=rmt: its last layer's output",
        ),
        (
            ["--config.model.cell=lstm"],
            "model.cell is 'lstm', but there is no such memory cell: choose rmt, armt, delta",
        ),
        (
            ["--config.data.tasks=qa21", "--config.stages.0.tasks="],
            "'qa21', but there is no such task: choose qa1, qa2",
        ),
        (["--config.data.tasks=qa1,qa1"], "names a task twice"),
        (["--config.data.tasks="], "data.tasks is empty"),
        (["--config.data.weights=1,2"], "has 2 numbers for 10 tasks"),
        (["--config.data.facts=official"], "needs data.babi_dir"),
        (["--config.stages.0.batch=0"], "stages.0.batch must be 1 or more, but got 0"),
        (["--config.stages.0.steps=1,2,3"], "stages.0.steps takes a whole number, but got '1,2,3'"),
        (["--config.stages.0.background=2"], "background must be between 0 and 1, but got 2"),
        (["--config.optimizer.accumulate=5"], "does not divide the batches"),
        (
            ["--config.optimizer.memory_drift_penalty=0.1", "--config.stages.0.question_rates=0"],
            "memory_drift_penalty 0.1 needs texts that are asked in every segment",
        ),
        (["--config.checkpoint.keep=0"], "checkpoint.keep must be 1 or more"),
        (["--confg.model.layers=3"], "Unknown argument '--confg.model.layers=3'"),
        (["--config.model.layers"], "needs a value"),
    ],
)
def test_wrong_settings_get_a_sentence(overrides, sentence):
    with pytest.raises(RmtError) as caught:
        parse(*overrides)
    assert sentence in str(caught.value)


def test_positions_that_do_not_fit_are_counted():
    with pytest.raises(ConfigError) as caught:
        parse("--config.model.segment_tokens=1000", preset=":gpt2")
    assert "2·16 memory + 48 prompt + 1,000 segment tokens = 1,080 positions" in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "--config is missing"),
        (["--config", "nothere.py"], "There is no config file 'nothere.py'"),
        (["--config", str(ROOT / "rmt_jax" / "types.py")], "has no function get_config()"),
        (["--config", MULTITASK + ":huge"], "no preset 'huge': choose small, five, rmt, long"),
    ],
)
def test_a_wrong_command_line_ends_in_a_sentence(argv, sentence):
    done = subprocess.run(
        [sys.executable, "-m", "rmt_jax.train", *argv], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["2>&-", "<&-", "0<&- 2>&-", ">&- 2>&- <&-"])
def test_closed_streams_lead_nowhere(tmp_path, closed):
    """And no file that is opened later takes their place."""
    program = (
        "import os, sys; from rmt_jax import cli\n"
        "def main(argv):\n"
        "    file = open(argv[0], 'w'); number = file.fileno()\n"
        "    print('out'); print('err', file=sys.stderr); os.write(2, b'C')\n"
        "    file.write(f'{number > 2} {sys.stdin.read()!r}')\n"
        "cli.run(main)"
    )
    words = shlex.join([sys.executable, "-c", program, str(tmp_path / "file")])
    done = subprocess.run(f"{words} {closed}", shell=True, cwd=ROOT, stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "True ''"


def test_a_terminal_that_has_ascii_alone_shows_the_rest_by_numbers():
    words = [sys.executable, "-m", "rmt_jax.train", "--help", "--config", MULTITASK]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0 and "\\u2026" in done.stdout and done.stdout.isascii()


def test_help_loads_no_jax_and_lists_every_field():
    """Which is what makes it quick."""
    done = subprocess.run(
        [sys.executable, *f"-X importtime -m rmt_jax.train --help --config {MULTITASK}".split()],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "rmt_jax.config" in loaded
    assert not loaded & {"jax", "flax", "optax", "orbax", "transformers", "grain", "matplotlib"}
    assert all(f"  {name}=" in done.stdout for name in config.fields(parse()))
