"""The config by dotted names and as JSON, each value checked against the type of its field."""

import dataclasses
import difflib
import functools
import importlib
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from rmt_jax.config.schema import Config
from rmt_jax.config.setting import FrozenDict, Setting, describe
from rmt_jax.errors import ConfigError

Tree = TypeVar("Tree")
Options = TypeVar("Options")
IMPORTED: set[str] = set()  # modules of the user's own that `import_extensions` has imported
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def fields(config: Any) -> dict[str, object]:
    """Every setting by its dotted name, `{"model.layers": 12, "stages.0.steps": 500, ...}`, in the
    order of the tree."""
    return {name: value for name, value, _ in settings(config)}


def settings(node: Any, prefix: str = "") -> Iterator[tuple[str, object, Setting]]:
    """Dotted name, value and description of every setting of a dataclass."""
    for field, kind in hints(type(node)).items():
        name, value = prefix + field, getattr(node, field)
        if dataclasses.is_dataclass(kind):
            yield from settings(value, f"{name}.")
        elif get_origin(kind) is tuple and dataclasses.is_dataclass(get_args(kind)[0]):
            for number, item in enumerate(value):
                yield from settings(item, f"{name}.{number}.")
        elif value and get_origin(kind) is Mapping and dataclasses.is_dataclass(get_args(kind)[1]):
            for key, item in value.items():
                yield from settings(item, f"{name}.{key}.")
        else:
            yield name, value, describe(type(node), field)


def update(
    config: Tree,
    values: Mapping[str, object],
    read: Callable[[object, Any], object] = lambda value, kind: value,
) -> Tree:
    """A copy of `config`, or of another tree of settings, with dotted names set to `values`, in
    their order.

    Args:
      read: makes a value of what was given and the type of its field, before the type is checked
        (a command line gives texts).

    Raises:
      ConfigError: for a name that no field has, or a value of another type.
    """
    for name, value in values.items():
        config = _set(config, config, type(config), name, 0, value, read)
    return config


def to_dict(node: Any) -> Any:
    """The tree as nested dictionaries and lists, ready for JSON."""
    if dataclasses.is_dataclass(node):
        return {f.name: to_dict(getattr(node, f.name)) for f in dataclasses.fields(node)}
    if isinstance(node, Mapping):
        return {name: to_dict(value) for name, value in node.items()}
    if isinstance(node, (tuple, list)):
        return [to_dict(value) for value in node]
    return node


def from_dict(tree: Mapping[str, object]) -> Config:
    """The typed tree back from `to_dict`, or from JSON; what it lacks has its default.

    Raises:
      ConfigError: for unknown names and wrong types, as `update`.
    """
    return _convert("", tree, Config)


def build_options(cls: type[Options], values: Mapping[str, object], name: str) -> Options:
    """The frozen dataclass `cls` from a mapping such as `config.model.cell_options`.

    Args:
      name: of the mapping, for errors: 'model.cell_options'.

    Raises:
      ConfigError: for a field that `cls` does not have, one that it needs, a value of another type
        or outside the limits that its `setting` says.
    """
    options = _convert(name, values, cls)
    check_values(options, f"{name}.")
    return options


def check_values(node: Any, prefix: str = "") -> None:
    """Holds every field of a tree to its choices and limits.

    Raises:
      ConfigError: with what is allowed and what was found.
    """
    for name, value, about in settings(node, prefix):
        for item in _items(value):
            if about.choices and item not in about.choices:
                raise ConfigError(
                    f"config.{name} must be one of {', '.join(about.choices)}, but got '{item}'."
                )
            if isinstance(item, float) and not math.isfinite(item):
                raise ConfigError(f"config.{name} must be a finite number, but got {item}.")
            low = about.least is not None and item < about.least
            if low or about.most is not None and item > about.most:
                raise ConfigError(f"config.{name} must be {about.limits()}, but got {item}.")
            if dataclasses.is_dataclass(item):
                check_values(item, f"{name}.")


def import_extensions(config: Config) -> None:
    """Imports the modules that `config.imports` names, which register what is the user's own. They
    run as code: only for a config that the user trusts.

    Raises:
      ConfigError: a module that is not there, or does not import.
    """
    for module in config.imports:
        try:
            importlib.import_module(module)
            IMPORTED.add(module)
        except ImportError as error:
            raise ConfigError(
                f"config.imports names '{module}', which cannot be imported ({error}): put its"
                " folder on PYTHONPATH, or the file beside the config file."
            ) from error


def _set(
    config: Any, node: Any, kind: Any, name: str, depth: int, value: object, read: Callable
) -> Any:
    """`node`, of type `kind`, with what `name` says below its first `depth` words changed."""
    keys = name.split(".")
    if depth == len(keys):
        if dataclasses.is_dataclass(kind):
            first = dataclasses.fields(kind)[0].name
            raise ConfigError(
                f"The config has no field '{name}' to set: it is a section. Set one of its fields,"
                f" such as {name}.{first}."
            )
        return _convert(name, read(value, kind), kind)
    key = keys[depth]

    def below(node: Any, kind: Any) -> Any:
        return _set(config, node, kind, name, depth + 1, value, read)

    if dataclasses.is_dataclass(node) and key in hints(type(node)):
        changed = below(getattr(node, key), hints(type(node))[key])
        return dataclasses.replace(node, **{key: changed})  # type: ignore[type-var]
    if isinstance(node, tuple) and get_origin(kind) is tuple:
        here = ".".join(keys[:depth])
        if not (key.isdecimal() and int(key) < len(node)):
            there = f"entries 0 to {len(node) - 1}" if len(node) > 1 else f"{len(node)} entry"
            there = there if node else "no entries"
            raise ConfigError(
                f"config.{here} has {there}{', number 0' if len(node) == 1 else ''}, so there is"
                f" no {here}.{key}. A config file adds entries."
            )
        items = list(node)
        items[int(key)] = below(items[int(key)], get_args(kind)[0])
        return tuple(items)
    if isinstance(node, Mapping) and key and get_origin(kind) is Mapping:
        item = get_args(kind)[1]
        new: Any = FrozenDict() if get_origin(item) is Mapping else None
        if dataclasses.is_dataclass(item):  # a name adds an entry
            new = _build(".".join(keys[: depth + 1]), {}, item)
        return FrozenDict({**node, key: below(node.get(key, new), item)})
    raise _unknown(name, fields(config))


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value` as the type `kind` of the field `name`; ConfigError where it is of another."""
    wrong = ConfigError(f"config.{name} takes {_words(kind)}, but got {value!r}.")
    if dataclasses.is_dataclass(kind):
        if isinstance(value, kind):  # type: ignore[arg-type]
            return value
        if not isinstance(value, Mapping):
            raise wrong
        return _build(name, value, kind)
    if get_origin(kind) is types.UnionType:
        return None if value is None else _convert(name, value, get_args(kind)[0])
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        items = value if isinstance(value, (tuple, list)) else (value,)
        if item in WORDS:
            return tuple(_convert(name, v, item) for v in items)
        return tuple(_convert(f"{name}.{i}", v, item) for i, v in enumerate(items))
    if get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise wrong
        item = get_args(kind)[1]
        return FrozenDict({k: _convert(f"{name}.{k}", v, item) for k, v in value.items()})
    if kind is float and type(value) is int:
        return float(value)
    if kind in (bool, int, float, str) and type(value) is not kind:
        raise wrong
    return value


def _build(name: str, values: Mapping[str, Any], cls: Any) -> Any:
    prefix = f"{name}." if name else ""
    kinds = hints(cls)
    for key in values:
        if key not in kinds:
            raise _unknown(prefix + key, [prefix + known for known in kinds])
    required = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in values]
    if required:
        raise ConfigError(f"config.{name} lacks {' and '.join(required)}.")
    return cls(**{key: _convert(prefix + key, v, kinds[key]) for key, v in values.items()})


def _required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _unknown(name: str, known: Iterable[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(f"The config has no field '{name}'.{hint} --help lists all fields.")


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(cls)


def _items(value: object) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, tuple) else (value,)


def _words(kind: Any) -> str:
    """A type in words, for errors."""
    if get_origin(kind) is types.UnionType:
        return f"{_words(get_args(kind)[0])}, or null"
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return f"a list of {WORDS[item][2:]}s" if item in WORDS else "a list of objects"
    if get_origin(kind) is Mapping:
        return "an object, such as {}"
    if dataclasses.is_dataclass(kind):
        return f"an object with {', '.join(f.name for f in dataclasses.fields(kind))}"
    return WORDS.get(kind, "a value")
