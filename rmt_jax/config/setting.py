"""What a field of the config says about itself, and the mapping that a config may hold."""

import dataclasses
import os
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rmt_jax.errors import ConfigError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Setting:
    """A field's description: `--help` prints it and `check_values` holds the field to it.

    `choices` are all the values of a text, `least` and `most` the limits of a number, or of each
    number in a list or mapping; both limits count as allowed, None is no limit. `path`: the text
    may name a file or a folder, with `~` for the user's own.
    """

    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    path: bool = False

    def limits(self) -> str:
        """'1 or more', 'between 0 and 1', or nothing."""
        if self.least is not None and self.most is not None:
            return f"between {_plain(self.least)} and {_plain(self.most)}"
        return "" if self.least is None else f"{_plain(self.least)} or more"


@dataclass(frozen=True)
class NoOptions:
    """The `Options` of a backbone, memory cell or task without settings of its own."""


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    unit: str = "",
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    path: bool = False,
) -> Any:
    """A dataclass field with its description; without a default it must be given."""
    about = Setting(help, unit, choices, least, most, path)
    return dataclasses.field(default=default, metadata={"setting": about})


def section(kind: type[Value], help: str) -> Value:
    """A dataclass field that holds a section of the tree."""
    return dataclasses.field(default_factory=kind, metadata={"setting": Setting(help)})


def describe(owner: type, name: str) -> Setting:
    """The description of the field `name` of a dataclass; empty for a field without one."""
    metadata = {f.name: f.metadata for f in dataclasses.fields(owner)}[name]
    return metadata.get("setting", Setting(""))


class FrozenDict(Mapping[str, Value], Hashable):
    """A mapping that cannot change, so that a config is hashable. Lists in it become tuples.

    Two are equal only with the same order: tasks are drawn in the order in which they stand.
    """

    def __init__(self, values: Mapping[str, Value] | None = None):
        items = (values or {}).items()
        self._values: dict[str, Value] = {name: frozen(value) for name, value in items}

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and tuple(self.items()) == tuple(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)


def frozen(value: Any) -> Any:
    """Mappings as `FrozenDict`, lists as tuples, to any depth; all else as it is."""
    if isinstance(value, Mapping):
        return value if isinstance(value, FrozenDict) else FrozenDict(value)
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item) for item in value)
    return value


def freeze(node: Any) -> None:
    """For a frozen dataclass's `__post_init__`: its lists and dictionaries made immutable, and `~`
    in its paths written out. Raises ConfigError for a path that no file can have."""
    for field in dataclasses.fields(node):
        value = frozen(getattr(node, field.name))
        if describe(type(node), field.name).path and isinstance(value, str):
            if "\0" in value:
                raise ConfigError(f"{field.name} is {value!r}, but a path holds no zero byte.")
            scheme = "tfds:" if value.startswith("tfds:~") else ""
            value = scheme + os.path.expanduser(value.removeprefix(scheme))
        object.__setattr__(node, field.name, value)


def _plain(number: float) -> str:
    """Not 2.14748e+09."""
    return str(int(number)) if number == int(number) else str(number)
