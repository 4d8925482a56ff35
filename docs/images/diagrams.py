"""Draws the pictures of concepts.md: `python docs/images/diagrams.py` writes three SVG files."""

from pathlib import Path
from xml.sax.saxutils import escape

TEXT, MEMORY, PROMPT, LAYER, INK = "#dbe9f6", "#fbe3c0", "#dcefd8", "#f2f2f2", "#333333"


class Picture:
    def __init__(self, width: int, height: int):
        self.size, self.parts = (width, height), []

    def box(self, x, y, width, height, colour, label="", size=13):
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{colour}"'
            f' stroke="{INK}" stroke-width="1"/>'
        )
        if label:
            self.say(x + width / 2, y + height / 2 + size / 3, label, size)

    def say(self, x, y, label, size=13, anchor="middle", weight="normal"):
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{INK}"'
            f' font-weight="{weight}">{escape(label)}</text>'
        )

    def arrow(self, *points):
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.4"'
            ' marker-end="url(#head)"/>'
        )

    def save(self, name: str, title: str) -> None:
        width, height = self.size
        text = "\n".join(self.parts)
        Path(__file__).with_name(name).write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" font-family="Helvetica, Arial, sans-serif" role="img">\n'
            f"<title>{escape(title)}</title>\n"
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
            f' markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker>'
            f'</defs>\n<rect width="{width}" height="{height}" fill="white"/>\n{text}\n</svg>\n',
            encoding="utf-8",
        )


def recurrence() -> None:
    p = Picture(760, 190)
    for k in range(3):
        x = 110 + 220 * k
        p.box(x, 30, 150, 60, LAYER, "all layers")
        label = f"segment {k + 1}" if k < 2 else "last segment, question"
        p.box(x, 120, 150, 30, TEXT, label, 13 if k < 2 else 12)
        p.arrow((x + 75, 120), (x + 75, 92))
        p.box(x - 60, 45, 42, 30, MEMORY, f"m{k}")
        p.arrow((x - 18, 60), (x - 2, 60))
        if k < 2:
            p.arrow((x + 150, 60), (x + 158, 60))
    p.arrow((625, 30), (625, 12), (705, 12))
    p.say(710, 16, "answer", anchor="start", size=12)
    p.say(20, 178, "Attention sees one segment. Everything else must pass through m.", 12, "start")
    p.save(
        "recurrence.svg", "A text is read segment by segment; a memory goes from one to the next"
    )


def memories() -> None:
    p = Picture(760, 595)
    for k, (name, about) in enumerate(
        (
            ("rmt", "memory tokens through all layers"),
            ("prmt", "memory tokens of each layer"),
            ("armt", "a matrix per layer, written at the end"),
            ("delta", "a matrix per layer, written by every token"),
            ("kv", "keys and values of kept tokens, per layer"),
        )
    ):
        left, top = 10 + 380 * (k % 2), 10 + 195 * (k // 2)
        p.say(left + 5, top + 16, name, 15, "start", "bold")
        p.say(left + 60, top + 16, about, 12, "start")
        rows = [top + 124, top + 86, top + 48]
        for n, y in enumerate(rows[1:]):
            p.box(left + 80, y, 200, 26, LAYER, f"layer {n + 1}", 12)
        tokens = rows[0]
        if name in ("rmt", "prmt"):
            p.box(left + 80, tokens, 34, 26, MEMORY, "m", 12)
            p.box(left + 114, tokens, 132, 26, TEXT, "segment", 12)
            p.box(left + 246, tokens, 34, 26, MEMORY, "m", 12)
        elif name == "armt":
            p.box(left + 80, tokens, 166, 26, TEXT, "segment", 12)
            p.box(left + 246, tokens, 34, 26, MEMORY, "m", 12)
        else:
            p.box(left + 80, tokens, 200, 26, TEXT, "segment", 12)
        p.arrow((left + 180, tokens), (left + 180, tokens - 11))
        p.arrow((left + 180, tokens - 38), (left + 180, tokens - 49))
        if name == "rmt":
            p.arrow((left + 15, tokens + 13), (left + 78, tokens + 13))
            p.say(left + 12, tokens + 44, "from the last segment", 10, "start")
            p.arrow((left + 263, rows[2]), (left + 263, rows[2] - 12), (left + 355, rows[2] - 12))
            p.say(left + 357, rows[2] + 6, "to the next", 10, "end")
            continue
        for y in rows[1:]:
            inner = {"prmt": "m", "kv": "k, v"}.get(name, "A")
            p.box(left + 10, y, 34, 26, MEMORY, inner, 12)
            p.arrow((left + 44, y + 13), (left + 78, y + 13))
            p.box(left + 320, y, 34, 26, MEMORY, inner, 12)
            p.arrow((left + 280, y + 13), (left + 318, y + 13))
        p.say(
            left + 80, tokens + 44, "left: from the last segment; right: to the next", 10, "start"
        )
    p.save("memories.svg", "What five memory cells carry from segment to segment")


def prompts() -> None:
    p = Picture(760, 130)
    rows = (
        ("description", ("Say in which place a person is now.", "segment", "Where is Mary?")),
        ("question", ("Where is Mary?", "segment", "Where is Mary?")),
    )
    for k, (name, (prompt, text, question)) in enumerate(rows):
        y = 20 + 50 * k
        p.say(10, y + 20, f"source={name}", 12, "start")
        p.box(140, y, 240, 30, PROMPT, prompt, 12)
        p.box(380, y, 180, 30, TEXT, text, 12)
        p.box(560, y, 130, 30, TEXT, question, 12)
    p.say(140, 124, "seen with every segment", 10, "start")
    p.say(560, 124, "in the last segment only", 10, "start")
    p.save("prompts.svg", "A task prompt stands before every segment")


if __name__ == "__main__":
    recurrence()
    memories()
    prompts()
