"""Runs the notebooks beside this file, each in an empty folder of its own.

    python docs/notebooks/run.py            fails where one prints something else than it has kept
    python docs/notebooks/run.py --write    keeps what they print and draw

A cell tagged `varies` may print other figures. Standard error (progress) is not kept.
"""

import argparse
import difflib
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="without .ipynb; none: all")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args(argv)
    paths = [HERE / f"{name}.ipynb" for name in args.names] or sorted(HERE.glob("*.ipynb"))
    different = [path.name for path in paths if not run(path, args.write)]
    if different:
        print(f"Other output than kept: {', '.join(different)}; --write keeps the new one.")
    return bool(different)


def run(path: Path, write: bool) -> bool:
    """Whether the notebook prints what it has kept; with `write` it is kept."""
    kept = nbformat.read(path, as_version=4)
    new = nbformat.from_dict(kept)
    # The kernel must import this checkout, wherever it starts.
    sources = [str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sources))
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(new, timeout=600, kernel_name="python3", resources=resources).execute()
    for cell in new.cells:
        clean(cell)
    same = True
    for old, now in zip(kept.cells, new.cells, strict=True):
        if "varies" in now.metadata.get("tags", ()) or printed(old) == printed(now):
            continue
        same = False
        lines = difflib.unified_diff(printed(old), printed(now), "kept", "printed", lineterm="")
        print(path.name, *lines, sep="\n")
    if write:
        new.metadata = METADATA
        nbformat.write(new, path)
    return same or write


def clean(cell: nbformat.NotebookNode) -> None:
    """Leaves out what differs from run to run."""
    cell.metadata.pop("execution", None)
    if cell.cell_type != "code":
        return
    kept: list[nbformat.NotebookNode] = []
    for one in cell.outputs:
        if one.get("name") == "stderr":
            continue
        if kept and one.get("name") == "stdout" == kept[-1].get("name"):
            kept[-1].text += one.text  # a stream comes in pieces
        else:
            kept.append(one)
    cell.outputs = kept


def printed(cell: nbformat.NotebookNode) -> list[str]:
    """The lines of text of a cell's outputs; a picture counts as one line."""
    lines: list[str] = []
    for one in cell.get("outputs", ()):
        data = one.get("data", {})
        if "image/png" in data:
            lines.append("(a picture)")
        else:
            lines += (one.get("text") or data.get("text/plain", "")).splitlines()
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
