"""Named entries that others can add to: backbones, memory cells, tasks.

A registry is a dictionary that a decorator fills. The built-in entries are the modules of one
package; they are imported at the first look-up, so that registering costs nothing at start-up. A
module of yours registers the same way, from anywhere: name it in `config.imports`, or import it
before the name is looked up.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from rmt_jax.errors import RmtError

Entry = TypeVar("Entry")


class RegistryError(RmtError):
    """A name that is taken already, or that nothing is registered under."""


class Registry(Generic[Entry]):
    """Entries by name, in the order of their registration.

    Args:
      kind: what an entry is, in words: 'memory cell'.
      field: the setting that names one: 'config.model.cell'.
      package: whose modules register the built-in entries when they are imported.
    """

    def __init__(self, kind: str, field: str, package: str):
        self.kind, self.field, self._package = kind, field, package
        self._entries: dict[str, Entry] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator: the entry under this name. Raises RegistryError for a name that is taken by
        something else (the same module may be imported twice)."""

        def add(entry: Entry) -> Entry:
            held = self._entries.get(name)
            same = held is None or _address(held) == _address(entry)
            if not same:
                raise RegistryError(
                    f"There is a {self.kind} '{name}' already ({'.'.join(_address(held))}): choose"
                    " another name."
                )
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> Entry:
        """Raises RegistryError for an unknown name, with those that there are."""
        self._load()
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise RegistryError(
                f"{self.field} is '{name}', but there is no such {self.kind}: choose"
                f" {', '.join(self._entries)}.{hint} One of your own is found when its module is"
                " named in config.imports."
            )
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._entries)

    def _load(self) -> None:
        if self._complete:
            return
        self._complete = True  # an entry may look others up while it is imported
        path = importlib.import_module(self._package).__path__
        for module in sorted(pkgutil.iter_modules(path), key=lambda module: module.name):
            importlib.import_module(f"{self._package}.{module.name}")


def _address(entry: object) -> tuple[str, str]:
    return getattr(entry, "__module__", ""), getattr(entry, "__qualname__", repr(entry))
