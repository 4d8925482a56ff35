"""The pages of the documentation, and what stands in them."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def all_pages() -> list[str]:
    """README.md and every page and notebook of docs/, by their paths."""
    found = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    names = (path.relative_to(ROOT).as_posix() for path in found if "_build" not in path.parts)
    return ["README.md", *sorted(names)]


def read(page: str) -> str:
    """The page as Markdown; of a notebook its text and its code, without outputs."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if not page.endswith(".ipynb"):
        return text
    cells = json.loads(text)["cells"]
    parts = ["".join(cell["source"]) for cell in cells]
    kinds = ["{}" if cell["cell_type"] == "markdown" else "```ipython\n{}\n```" for cell in cells]
    return "\n\n".join(kind.format(part) for kind, part in zip(kinds, parts, strict=True))


def code(text: str) -> list[str]:
    """Fenced blocks, indented lines and spans of code, as they stand."""
    return re.findall(r"```.*?```|^ {4}[^\n]*|`[^`]+`", text, re.S | re.M)


def prose(text: str) -> str:
    """Without code, tables, pictures and directives; a link is its text."""
    text = re.sub(r"```.*?```|^(?: {4}|\t)(?![-*\d]).*?$", "", text, flags=re.S | re.M)
    text = re.sub(r"^\|.*$", "", text, flags=re.M)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)


def sentences(text: str) -> list[str]:
    """Of `prose`: a paragraph, a heading and an item of a list end a sentence too."""
    found = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*#]|\d+\.) )", prose(text)):
        words = " ".join(block.split())
        # A code span is one word, and what stands in it ends nothing.
        words = re.sub(r"`[^`]*`", "Code", words)
        found += re.split(r"(?<=[.!?:;])\)?\*{0,2} +(?=[\"'(*]*[A-Z0-9])", words)
    return [one for one in found if one]


def links(text: str) -> list[str]:
    """Targets of Markdown links and pictures that name no other site."""
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [one for one in found if not re.match(r"[a-z]+:", one)]


def anchors(text: str) -> set[str]:
    """What `#name` may name, as GitHub and MyST make it of headings."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
