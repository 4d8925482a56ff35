"""Sphinx builds the documentation from this folder: `sphinx-build -W -n docs build/docs`."""

import dataclasses
import importlib
import re
from importlib import metadata

from sphinx.ext import napoleon
from sphinx.pycode import parser
from sphinx.util.docutils import SphinxDirective

from rmt_jax.config import describe, to_dict

project = "rmt_jax"
author = "the rmt_jax authors"
copyright = "the rmt_jax authors, Apache-2.0"
version = release = metadata.version("rmt_jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]

exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"rmt_jax {release}"
html_static_path = ["_static"]
html_css_files = ["wide_tables.css"]
copybutton_prompt_text = "$ "

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3  # [link](page.md#a-heading), as on GitHub
suppress_warnings = ["myst.header"]  # docstrings of scores and others begin at any level

# tests/test_notebooks.py runs the notebooks; what they print is kept in them.
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"undoc-members": True, "show-inheritance": True}
default_role = "code"  # docstrings write `name`, as Markdown does
# What is said of an attribute is a comment, behind it or above it, without Sphinx's own mark `#:`.
parser.comment_re = re.compile(r"^\s*#:? ?(.*)\r?\n?$")
GOOGLE = napoleon.Config(napoleon_use_ivar=True)  # Args:, Returns:, Raises:

# Types of other packages and names that have no page here: builds need no network, so that no
# inventory of another project is read.
nitpick_ignore_regex = [
    ("py:.*", r"(jax|jaxlib|jnp|numpy|np|flax|nnx|optax|pathlib|collections|dataclasses)\..*"),
    ("py:.*", r"(Array|ArrayLike|Path|Any|Sequence|Mapping|Iterator|Iterable|Callable|Module)"),
    ("py:exc", r"\w+Error"),  # named without their module
    ("py:.*", r"rmt_jax\..*"),  # internal types in signatures: their names link where they can
]


def setup(app):
    app.add_directive("config-fields", ConfigFields)
    app.connect("autodoc-process-docstring", to_rst)


class ConfigFields(SphinxDirective):
    """A dataclass of the config as a table: every field with default, help, unit and limits."""

    required_arguments = 1

    def run(self):
        module, _, name = self.arguments[0].rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        rows = [["field", "default", "meaning"]]
        for field in dataclasses.fields(cls):
            about = describe(cls, field.name)
            more = "; ".join(
                x for x in (about.unit, " | ".join(about.choices), about.limits()) if x
            )
            help = f"{about.help} [{more}]" if more else about.help
            rows.append([f"``{field.name}``", default_of(field), help.replace("*", r"\*")])
        own = cls.__doc__ if not (cls.__doc__ or "").startswith(f"{name}(") else ""
        head = [f".. py:class:: {self.arguments[0]}", "", *f"{own or ''}".strip().splitlines(), ""]
        return self.parse_text_to_nodes("\n".join([*head, *list_table(rows)]))


def default_of(field):
    if field.default_factory is not dataclasses.MISSING:
        return "a section"
    if field.default is dataclasses.MISSING:
        return "must be given"
    shown = str(to_dict(field.default) if isinstance(field.default, tuple) else field.default)
    return f"``{shown}``" if 0 < len(shown) < 30 else "empty" if not shown else "the paper's"


def to_rst(app, what, name, obj, options, lines):
    # Of an attribute Napoleon takes what stands before a colon for its type: ours are sentences.
    what = "function" if what in ("attribute", "data", "property") else what
    google = napoleon.GoogleDocstring(markdown_to_rst(lines), GOOGLE, app, what, name, obj, options)
    lines[:] = google.lines()


def markdown_to_rst(lines):
    """Docstrings hold Markdown's tables and indented code: reStructuredText has other forms."""
    done, table, code = [], [], False
    for line in [*lines, ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip()[1:-1].split("|")])
            continue
        if table:
            done += ["", *list_table(table), ""]
            table = []
        after_text = not done or not done[-1].strip()
        if line.startswith("    ") and after_text and not code and starts_code(done):
            done += ["::", ""]
            code = True
        elif line.strip() and not line.startswith("    "):
            code = False
        done.append(line)
    return done


def starts_code(before):
    """Whether an indented paragraph stands by itself, not under `Args:` and the like."""
    last = next((line for line in reversed(before) if line.strip()), "")
    return not last.startswith(" ") and not re.fullmatch(r"[A-Z][a-z]+:", last)


def list_table(rows):
    head, *body = [row for row in rows if not re.fullmatch(r"-*", "".join(row))]
    merged = []  # a row whose first cell is empty goes on with the one above
    for row in body:
        if row[0]:
            merged.append(row)
        else:
            merged[-1] = [f"{a} {b}".strip() for a, b in zip(merged[-1], row, strict=True)]
    yield from (".. list-table::", "   :header-rows: 1", "")
    for row in [head, *merged]:
        for k, cell in enumerate(row):
            yield ("   * - " if k == 0 else "     - ") + cell
