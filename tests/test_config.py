"""The config tree: JSON and back, dotted names, limits, mappings, options of the user's own."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmt_jax import cli, config
from rmt_jax.config import (
    OFFICIAL,
    Config,
    ConfigError,
    Data,
    Facts,
    FrozenDict,
    Model,
    Optimizer,
    Stage,
    setting,
)

pytestmark = pytest.mark.portable

NAMES = st.text("abcdefghij_", min_size=1, max_size=8)
NUMBERS = st.floats(0, 1e6, allow_nan=False)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False), st.text(max_size=5)
)
OPTIONS = st.dictionaries(
    NAMES, st.recursive(SCALARS, lambda kids: st.lists(kids) | st.dictionaries(NAMES, kids))
)
FACTS = st.none() | st.builds(Facts, st.integers(2, 9), st.integers(9, 99))
STAGES = st.builds(
    Stage,
    segments=st.integers(1, 64),
    steps=st.integers(0, 10**6),
    batch=st.integers(1, 512),
    learning_rate=NUMBERS,
    tasks=st.dictionaries(NAMES, NUMBERS),
    facts=st.lists(FACTS, min_size=1, max_size=4).map(tuple),
    background=st.floats(0, 1),
    question_rates=st.lists(st.floats(0, 1), min_size=1, max_size=4).map(tuple),
    last_questions=st.integers(0, 9),
    probes=st.booleans(),
)
PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
CONFIGS = st.builds(
    Config,
    model=st.builds(
        Model,
        layers=st.integers(1, 99),
        gate_threshold=st.lists(st.floats(0, 0.99)).map(tuple),
        remat=st.booleans(),
        cell_options=OPTIONS,
        backbone_options=OPTIONS,
    ),
    data=st.builds(Data, tasks=st.lists(NAMES).map(tuple), babi_dir=PATHS),
    stages=st.lists(STAGES, max_size=4).map(tuple),
    optimizer=st.builds(Optimizer, weight_decay=NUMBERS),
    imports=st.lists(NAMES).map(tuple),
    seed=st.integers(0, 2**31 - 1),
)


def test_a_path_holds_no_zero_byte():
    """The operating system refuses it in the middle of a sentence of its own."""
    with pytest.raises(ConfigError, match=r"babi_dir is '~\\x00', but a path holds no zero byte"):
        Data(babi_dir="~\0")


@settings(max_examples=100, deadline=None)
@given(CONFIGS)
def test_json_and_back(tree):
    text = json.dumps(config.to_dict(tree))
    again = config.from_dict(json.loads(text))
    assert again == tree and hash(again) == hash(tree)
    assert json.dumps(config.to_dict(again)) == text  # in order, and every digit


@settings(max_examples=100, deadline=None)
@given(CONFIGS, st.data())
def test_every_setting_can_be_given_on_the_command_line(tree, data):
    """What --help shows for a value sets that value. (Texts with a comma in a list cannot.)"""
    base = dataclasses.replace(tree, stages=tuple(Stage(1, 1, 1, 0.5) for _ in tree.stages))
    name = data.draw(st.sampled_from(list(config.fields(tree))))
    text = cli._show(config.fields(tree)[name])
    changed = cli.apply_overrides(base, {name: text})
    assert config.fields(changed)[name] == config.fields(tree)[name]
    others = {n: v for n, v in config.fields(changed).items() if n != name}
    assert others == {n: v for n, v in config.fields(base).items() if n != name}


@given(CONFIGS)
def test_an_update_changes_what_it_names_and_nothing_else(tree):
    changed = config.update(tree, {"model.layers": 7, "data.tasks": ["a", "b"], "seed": 3})
    before, after = config.fields(tree), config.fields(changed)
    assert after == before | {"model.layers": 7, "data.tasks": ("a", "b"), "seed": 3}


def test_updates_are_made_in_order():
    tree = Config(stages=(Stage(1, 2, 3, 0.1, tasks={"a": 1.0, "b": 2.0}),))
    tree = config.update(tree, {"stages.0.tasks": {}, "stages.0.tasks.c": 2, "stages.0.tasks.a": 1})
    assert list(tree.stages[0].tasks.items()) == [("c", 2.0), ("a", 1.0)]
    assert tree.stages[0].steps == 2


def test_mappings_are_frozen_hashable_and_in_order():
    one, other = FrozenDict({"a": 1, "b": [1, {"c": 2}]}), FrozenDict({"b": [1, {"c": 2}], "a": 1})
    assert one["b"] == (1, {"c": 2}) and hash(one) == hash(FrozenDict(dict(one)))
    assert one != other and one == dict(one) and len({one, other}) == 2
    with pytest.raises(TypeError):
        one["a"] = 2  # type: ignore[index]
    a, b = (Stage(1, 1, 1, 1.0, tasks={n: 1.0 for n in names}) for names in ("xy", "yx"))
    assert a != b and hash(a) != hash(b)  # tasks are drawn in their order
    assert hash(Config(stages=[a])) == hash(Config(stages=(a,)))  # type: ignore[arg-type]


def test_stages_know_their_batches():
    stage = Stage(6, 1, 1, 1.0, question_rates=(0.0, 0.5))
    assert stage.buckets == (1, 2, 4, 6) and stage.dense
    assert not Stage(1, 1, 1, 1.0).dense
    assert Config(stages=(stage, Stage(4, 1, 1, 1.0))).longest_segments == 6
    assert Stage(1, 1, 1, 1.0).facts == (OFFICIAL,)


def test_every_field_is_described():
    """Help of a sentence; limits that the default keeps; choices that have the default."""
    tree = dataclasses.replace(Config(), stages=(Stage(1, 1, 1, 0.1, facts=(Facts(2, 3),)),))
    found = list(config.settings(tree))
    assert len(found) == len(config.fields(tree)) > 60
    for owner in (Config, Facts, Stage):
        for field in dataclasses.fields(owner):
            assert config.describe(owner, field.name).help.endswith("."), field.name
    for name, _, about in found:
        assert about.help.endswith(".") and len(about.help) > 10, name
        assert about.least is None or about.most is None or about.least < about.most
    config.check_values(tree)


def test_help_shows_help_unit_and_choices_within_the_columns():
    tree = config.update(Config(), {"data.tasks": ["one", "two"], "model.cell_options": {"x": 1}})
    for columns in (70, 120):
        text = cli.describe_fields(tree, columns)
        flat = " ".join(text.split())
        for name, value, about in config.settings(tree):
            assert f"{name}={cli._show(value)}" in flat
            if not name.startswith("stages.") or name.startswith("stages.0."):
                assert about.help in flat
                for part in (about.unit, " | ".join(about.choices), about.limits()):
                    assert part in flat
        long = [line for line in text.splitlines() if len(line) > columns]
        assert all(line.strip().split("=")[0] in config.fields(tree) for line in long)
    assert "\noptimizer: How weights are updated." in text and '={"x": 1}' in text


@dataclasses.dataclass(frozen=True)
class Average:
    """What a cell of somebody's own may declare."""

    size: int
    rate: float = setting(0.9, "Share of the old memory.", least=0, most=1)
    kinds: tuple[str, ...] = ()
    kind: str = setting("mean", "How.", choices=("mean", "sum"))


def test_options_become_the_class_that_declares_them():
    found = config.build_options(Average, {"size": 3, "rate": 1, "kinds": ["a"]}, "model.x")
    assert found == Average(3, 1.0, ("a",)) and isinstance(found.rate, float)
    texts = {"model.cell_options.size": "4", "model.cell_options.rate": ".5"}
    options = cli.apply_overrides(Config(), texts).model.cell_options
    assert config.build_options(Average, options, "model.cell_options") == Average(4, 0.5)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"size": 1, "rat": 0.1}, "no field 'model.cell_options.rat'. Did you mean model.cell_opt"),
        ({}, "config.model.cell_options lacks size."),
        ({"size": 1.5}, "config.model.cell_options.size takes a whole number, but got 1.5."),
        ({"size": True}, "config.model.cell_options.size takes a whole number, but got True."),
        ({"size": 1, "rate": 2}, "cell_options.rate must be between 0 and 1, but got 2.0."),
        ({"size": 1, "rate": math.nan}, "cell_options.rate must be a finite number, but got nan."),
        ({"size": 1, "kind": "max"}, "cell_options.kind must be one of mean, sum, but got 'max'."),
        ({"size": 1, "kinds": [1]}, "cell_options.kinds takes a text, but got 1."),
    ],
)
def test_wrong_options_are_sentences(values, sentence):
    with pytest.raises(ConfigError) as caught:
        config.build_options(Average, values, "model.cell_options")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"stages": [{"segments": 1}]}, "config.stages.0 lacks steps and batch and learning_rate."),
        ({"stages": [3]}, "config.stages.0 takes an object with segments, steps, batch"),
        ({"model": 3}, "config.model takes an object with backbone, cell, layers"),
        ({"model": {"layer": 3}}, "no field 'model.layer'. Did you mean model.layers"),
        ({"data": {"tasks": [1]}}, "config.data.tasks takes a text, but got 1."),
        ({"model": {"cell_options": []}}, "cell_options takes an object, such as {}, but got []."),
        ({"curriculum": {}}, "The config has no field 'curriculum'."),
    ],
)
def test_wrong_json_is_a_sentence(tree, sentence):
    with pytest.raises(ConfigError) as caught:
        config.from_dict(tree)
    assert sentence in str(caught.value)


def test_a_config_file_of_the_wrong_types_is_a_sentence(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rmt_jax.config import Config, Model\n"
        "def get_config():\n    return Config(model=Model(layers='three'))\n"
    )
    with pytest.raises(ConfigError, match="config.model.layers takes a whole number, but got 'th"):
        cli.load_config(str(file))


def test_a_config_file_imports_and_names_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "my_rmt_sizes.py").write_text("LAYERS = 3\n")
    (tmp_path / "my_rmt_extension.py").write_text("import json\njson.RMT_SEEN = True\n")
    (tmp_path / "mine.py").write_text(
        "from my_rmt_sizes import LAYERS\n"
        "from rmt_jax.config import Config, Model\n"
        "def get_config():\n"
        "    return Config(model=Model(layers=LAYERS), imports=('my_rmt_extension',))\n"
    )
    tree = cli.load_config(str(tmp_path / "mine.py"))
    assert tree.model.layers == 3
    config.import_extensions(tree)
    assert json.RMT_SEEN  # type: ignore[attr-defined]
    del json.RMT_SEEN  # type: ignore[attr-defined]
