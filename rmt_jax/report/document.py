"""HTML pages that stand alone: styles, scripts, data and pictures are inside, nothing is fetched.

A Content-Security-Policy in the page lets a browser run these scripts and no others, and reach no
network, whatever texts stand in the page. Files are in `report/web/`.
"""

import base64
import hashlib
import html
import json
from importlib import resources
from typing import Any


def part(name: str) -> str:
    """A style or script of the package."""
    return (resources.files("rmt_jax.report") / "web" / name).read_text(encoding="utf-8")


def page(
    title: str,
    body: str,
    scripts: tuple[str, ...] = (),
    data: Any = None,
    connect: str = "'none'",
    **meta: str,
) -> str:
    """A whole document.

    Args:
      body: HTML, without scripts and without `style` attributes, which the policy refuses.
      scripts: names of scripts of the package, run in this order after `theme.js`.
      data: anything that JSON can say; scripts find it by the id `data`.
      connect: what scripts may reach, as the policy says it.
      meta: named values for scripts.
    """
    code = [part(name) for name in ("theme.js", *scripts)]
    held = ""
    if data is not None:
        # '<' is written as \u003c, so that no text can end the element.
        text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
        held = f'<script type="application/json" id="data">{text}</script>'
    named = "".join(f'<meta name="{k}" content="{html.escape(v)}">' for k, v in meta.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(code, connect)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"{named}<title>{html.escape(title)}</title><style>{part('style.css')}</style></head>"
        f'<body><button id="theme" type="button" title="light, dark, or as the system has it">◐'
        f"</button><main>{body}</main>{held}"
        + "".join(f"<script>{text}</script>" for text in code)
        + "</body></html>\n"
    )


def policy(scripts: list[str], connect: str = "'none'") -> str:
    """The Content-Security-Policy of a page with these scripts and our style."""
    return "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_hash(part('style.css'))}'",
            "script-src " + " ".join(f"'{_hash(text)}'" for text in scripts),
            f"connect-src {connect}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
