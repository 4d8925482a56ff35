"""The page that `ask --web` serves."""

import html

from rmt_jax.report import document

SCRIPTS = ("inspect.js", "ask.js")


def page(token: str, about: str, limit: int) -> str:
    """The document. token: what its requests must bear. limit: bytes of a text."""
    body = f"""
<h1>Ask a text</h1>
<p class="note">{html.escape(about)}. The text stays on this machine.</p>
<form id="give" class="drop">
<label for="text">Paste a text, or drop a file here</label>
<textarea id="text" spellcheck="false"></textarea>
<div class="row"><button class="main" type="submit">Read it</button>
<label>or a file <input type="file" id="file" accept=".txt,.md,text/plain"></label></div>
</form>
<div id="reading" hidden><p><progress id="progress" max="1" value="0"></progress></p>
<p class="note" id="read" aria-live="polite"></p></div>
<form id="ask" hidden><div class="row">
<input type="text" id="question" maxlength="2000" autocomplete="off" aria-label="question"
 placeholder="Where is Mary?">
<button class="main" type="submit">Ask</button></div>
<details><summary class="note">Task</summary><div class="row"><input type="text" id="task"
 maxlength="1000" aria-label="task" placeholder="qa1, or what is asked, in your words"></div>
</details></form>
<p id="error" class="error" role="alert" hidden></p>
<ul id="answers" class="answers"></ul>
<p id="looking" class="note" aria-live="polite" hidden></p>
<div id="view"></div>
"""
    return document.page(
        "Ask a text", body, SCRIPTS, connect="'self'", token=token, limit=str(limit)
    )


def policy() -> str:
    """The page's Content-Security-Policy, for its header."""
    return document.policy([document.part(name) for name in ("theme.js", *SCRIPTS)], "'self'")
