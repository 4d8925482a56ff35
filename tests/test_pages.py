"""Inspections, reports and the page of `ask --web`: what they say, and how a browser shows it."""

import json
import re

import numpy as np
import pytest
import tiny_run
from browser import Browser, browser
from serving import serving
from test_report import results

from rmt_jax import api, evaluate, report
from rmt_jax.cli import Usage
from rmt_jax.data import tokenizer
from rmt_jax.evaluation import answering, attribution, inspection, sources, views
from rmt_jax.report import document, page

TEXT = (
    "It rained. Mary went to the garden. " + "The sun shone on the old house again. " * 12
    + "Mary travelled to the kitchen. " + "Nobody came to the river in the morning. " * 12
)  # fmt: skip


@pytest.fixture(scope="module")
def shown():
    """One Chromium for all tests; without one they skip."""
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def shipped():
    return api.load("multitask")


def fits(shown: Browser, address: str) -> None:
    """Dark, on a phone, printed: no word to the console, nothing wider than the window."""
    for width, night in ((1000, True), (375, False), (320, True)):
        shown.open(address, width, 800, night)
        assert shown.overflow() <= 0, f"{shown.overflow()} pixels too wide at {width}"
    dark = {"name": "prefers-color-scheme", "value": "dark"}  # paper is white all the same
    emulated = {"media": "print", "features": [dark]}
    shown.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
    paper = shown.run("return getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    shown.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    printed = shown.pdf()
    assert printed.startswith(b"%PDF") and printed.count(b"/Page\n") + printed.count(b"/Page ") >= 1
    assert shown.errors() == []


# What an answer rests on


@pytest.mark.parametrize(("cell", "align"), [("rmt", "right"), ("delta", "sentence")])
def test_parts_are_scored_as_the_whole_text_is_without_them(tmp_path, cell, align):
    """Against the logits of the whole text at once, with the same tokens masked."""
    config = tiny_run.config(cell)
    config = config.replace(data=config.data.__class__(tasks=("qa1", "qa5"), align=align))
    model = api.load(tiny_run.save(tmp_path, config))
    one = sources.Generated(model).ask("qa1", "3s", range(1))[0].encoded
    answer, room = np.array([7, 11], np.int32), 4
    found = attribution.attribute(model, one, answer, room)
    layout = answering.segment_layouts(model, [one], [room])[0]
    size = model.segment_tokens
    rows = np.zeros((layout.segments + 1, size), np.int32)
    places = np.full(rows.shape, -2)  # of the context; -1: question and answer
    for k in range(layout.segments + 1):
        ids = np.arange(layout.bounds[k], layout.bounds[k + 1])
        rows[k, : len(ids)], places[k, : len(ids)] = one.context[ids], ids
    tail = np.concatenate([one.question, answer])
    start = layout.remainder
    rows[-1, start : start + len(tail)], places[-1, start : start + len(tail)] = tail, -1
    last = layout.segments * size + start + len(one.question)

    def logprob(first: int, stop: int) -> float:
        mask = (places > -2) & ~((places >= first) & (places < stop))
        prompt = answering.prompts(model, [one])
        logits, _ = model.forward(rows.reshape(1, -1), mask.reshape(1, -1), prompt)
        logits = np.asarray(logits, np.float64)[0]
        total = 0.0
        for n, token in enumerate(answer):
            row = logits[last + n - 1]
            total += row[token] - np.log(np.exp(row - row.max()).sum()) - row.max()
        return total

    assert found.logprob == pytest.approx(logprob(0, 0), abs=1e-3)
    assert {part.kind for part in found.parts} >= {"segment"}
    for part in found.parts[:: max(1, len(found.parts) // 12)]:
        assert part.logprob == pytest.approx(logprob(part.start, part.stop), abs=1e-3), part
    # One level's segments are the whole text.
    spans = sorted((p.start, p.stop) for p in found.parts if p.kind == "segment")
    assert spans[0][0] == 0 and spans[-1][1] == len(one.context)
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_the_shipped_model_rests_on_the_fact_that_tells(shipped):
    """Of sixteen segments, more than one level has parts, and the last journey alone counts."""
    model, source = shipped, sources.Generated(shipped)
    one = source.ask("qa1", "16s", range(1))[0]
    seen = views.view(
        model, one.encoded, source.room("qa1"), title="", question=one.question,
        target=one.target, facts=one.facts, supporting=one.supporting,
    )  # fmt: skip
    assert seen.answer == one.target
    lost = {part[:2]: seen.logprob - part[3] for part in seen.parts if part[2] == "sentence"}
    (start, stop), effect = max(lost.items(), key=lambda item: item[1])
    first, last = one.facts[one.supporting[0]]
    assert effect > 3 and start <= first and last <= stop
    assert {part[2] for part in seen.parts} == set(attribution.KINDS)
    held = [text for part in seen.tokens for text in part]
    assert "".join(held[: seen.question_at]) == model.tokenizer.decode(one.encoded.context.tolist())


@pytest.mark.parametrize("cell", ["none", "armt"])
def test_other_cells_have_a_page(tmp_path, cell):
    model = tiny_run.model(tmp_path, cell)
    (file,) = inspection.inspect_memory(
        model, sources.Generated(model), ["qa1"], ["2s"], tmp_path, html=True
    )
    held = re.search(r'id="data">(.*?)</script>', file.read_text(), re.S)
    assert held
    (seen,) = json.loads(held[1])
    assert len(seen["tokens"]) == len(seen["change"]) and np.isfinite(seen["logprob"])
    assert all(len(row) == sum(map(len, seen["tokens"])) for row in seen["values"])


def test_html_is_of_inspect():
    with pytest.raises(Usage, match="--html is the page of --inspect"):
        evaluate.main(["--workdir", "multitask", "--html"])


def test_tokens_texts_are_the_text():
    words = tokenizer.load()
    for text in (" Mary went to the gärden — 100 € 😀😀 日本.", "a\n\nb", " é"):
        ids = list(words.encode(text))
        parts = views.token_texts(words, ids)
        assert len(parts) == len(ids) and "".join(parts) == words.decode(ids)


def test_a_page_is_alone_and_no_text_ends_it():
    made = document.page("<T>", "<p>x</p>", ("inspect.js",), {"a": "</script><script>alert(1)"})
    assert (
        "alert(1)" in made and "</script><script>alert" not in made and "<title>&lt;T&gt;<" in made
    )
    assert made.count("connect-src 'none'") == 1 and "unsafe" not in made
    assert not re.search(r"(src|href)=[\"'](?!data:)", made) and "@import" not in made
    for name in ("inspect.js", "ask.js", "pages.js", "tables.js", "theme.js"):
        code = document.part(name)
        assert "innerHTML" not in code and "eval(" not in code and "</script" not in code


# In a browser


def test_an_inspection(shown, shipped, tmp_path):
    model, source = shipped, sources.Generated(shipped)
    (file,) = inspection.inspect_memory(model, source, ["qa1", "qa2"], ["8s"], tmp_path, html=True)
    shown.open(file.as_uri())
    colours = """return [...document.querySelectorAll('.token')].map(
        (token) => getComputedStyle(token).backgroundColor)"""
    dark = shown.run(colours)
    assert len(set(dark)) > 5 and len(dark) > 300
    # The slider: what is not read yet has no colour.
    shown.run(
        "const s = document.getElementById('segment'); s.value = 1;"
        "s.dispatchEvent(new Event('input'))"
    )
    first = shown.run(colours)
    assert len(set(first[64:])) == 1 and first != dark
    assert shown.find(".slider output").text == "1 of 8"
    assert len(shown.find_all(".segment.unread")) == 7
    # Keys
    body = shown.find("body")
    for key, place in (
        ("\ue014", "2 of 8"),
        ("\ue012", "1 of 8"),
        ("\ue010", "8 of 8"),
        ("f", None),
    ):
        body.send_keys(key)
        if place:
            assert shown.find(".slider output").text == place
    assert shown.find(".segment.now .fact")
    # Other colours: one row of the gates, the change of memory, what the answer rests on.
    body.send_keys("\ue010")
    seen = {tuple(shown.run(colours))}
    for label, value in (("which", "2"), ("colour by", "change"), ("colour by", "answer")):
        shown.run(
            "const s = document.querySelector(`select[aria-label='${arguments[0]}']`);"
            "s.value = arguments[1]; s.dispatchEvent(new Event('change'))", label, value,
        )  # fmt: skip
        seen.add(tuple(shown.run(colours)))
    assert len(seen) == 4
    assert shown.find_all(".fact.supporting") and shown.find_all(".overview .change")
    # A tap on a word says its figures; a sentence of the table leads to its segment.
    shown.find_all(".token")[3].click()
    assert "write gate mean" in shown.find(".detail").text
    shown.find(".found button").click()
    quote = shown.find(".found button").text
    assert quote.split()[-1] in shown.find(".segment.now").text
    # The other question
    title = shown.find(".asked").text
    shown.run("const q = document.getElementById('question'); q.value = 1;"
              "q.dispatchEvent(new Event('change'))")  # fmt: skip
    assert shown.find(".asked").text != title
    # Light and dark
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = shown.run(paper)
    shown.find("#theme").click()
    assert shown.run(paper) != light
    shown.find("#theme").click()
    assert shown.run(paper) == light
    fits(shown, file.as_uri())


def test_a_long_text_shows_what_is_around_the_slider(shown, tmp_path):
    """Ten thousand tokens: the page holds some of them, and stays quick."""
    rng = np.random.default_rng(0)
    tokens = [[f" w{k}" for k in range(50)] for _ in range(200)]
    seen = views.View(
        title="x", question="Where?", answer="there", target="here", tokens=tokens,
        question_at=9_990, change=rng.random(200).tolist(), change_label="memory token", rows=[],
        values=[], scales=[], value_label="", facts=[(5000, 5006, True)], logprob=-0.1,
        parts=[(5000, 5050, "segment", -3.0), (5000, 5006, "sentence", -3.0)],
    )  # fmt: skip
    file = views.inspect_page.write(tmp_path / "long.html", [seen], "A long one.")
    shown.open(file.as_uri())
    assert 2000 < len(shown.find_all(".token")) < 3000
    assert "(right would be: here)" in shown.find(".asked").text
    shown.find("body").send_keys("f")
    assert shown.find(".slider output").text == "101 of 200"
    assert shown.find(".fact.supporting").text.split() == [f"w{k}" for k in range(6)]
    fits(shown, file.as_uri())


def test_a_report_sorts(shown, tmp_path):
    report.write(results(), tmp_path / "lengths")
    sections = [page.Section("Lengths", "x", results())]
    page.write(
        tmp_path, [*sections, page.Section("Perturbed typos", "x", results(2, "typos"))], "M"
    )
    shown.open((tmp_path / "report.html").as_uri())

    def column(k: int) -> list[str]:
        return shown.run(
            "return [...document.querySelectorAll('table')[1].tBodies[0].rows]"
            ".map((row) => row.cells[arguments[0]].textContent)", k,
        )  # fmt: skip

    button = shown.find_all("table")[1].find_elements("css selector", "th button")[3]
    before = column(3)
    button.click()
    up = [float(x.split()[0]) for x in column(3)]
    assert up == sorted(up) and sorted(column(3)) == sorted(before)
    button.click()
    down = [float(x.split()[0]) for x in column(3)]
    assert down == sorted(up, reverse=True)
    assert shown.find("th[aria-sort='descending']")
    foot = shown.run(
        "return [...document.querySelectorAll('tfoot td:first-child')].map(x => x.textContent)"
    )
    assert foot[:2] == ["tokens", "characters"]
    fits(shown, (tmp_path / "report.html").as_uri())


@pytest.fixture(scope="module")
def served(shipped):
    with serving(shipped, "A model") as made:
        yield made


def test_a_text_is_given_and_asked(shown, served):
    shown.open(served.address)
    assert not shown.find("#ask").is_displayed()
    shown.run("document.getElementById('text').value = arguments[0]", TEXT)
    shown.find("#give button").click()
    shown.wait(lambda: shown.find("#ask").is_displayed())
    assert re.fullmatch(r"Read: \d+ tokens in \d+ segments\.", shown.find("#read").text)
    shown.find("#question").send_keys("Where is Mary?\n")
    shown.wait(lambda: shown.find_all("#view .found"))
    assert shown.find("#answers b").text == "kitchen"
    assert shown.find(".found td").text == "Mary travelled to the kitchen."
    assert shown.overflow() <= 0 and shown.errors() == []
    # A question that cannot be answered says why, and leaves the page as it was.
    shown.find("#question").clear()
    shown.find("#question").send_keys("Who is the king?\n")
    shown.wait(lambda: shown.find("#error").is_displayed())
    assert (
        "Of which task is" in shown.find("#error").text and len(shown.find_all("#answers li")) == 1
    )
    # A file that is dropped is another text.
    shown.run(
        "const held = new DataTransfer(); held.items.add(new File([arguments[0]], 'b.txt'));"
        "document.dispatchEvent(new DragEvent('drop', {dataTransfer: held, bubbles: true}))",
        TEXT.replace("kitchen", "office"),
    )
    shown.wait(lambda: not shown.find_all("#answers li") and shown.find("#ask").is_displayed())
    shown.find("#question").clear()
    shown.find("#question").send_keys("Where is Mary?\n")
    shown.wait(lambda: shown.find_all("#answers b") and shown.find("#answers b").text == "office")
    # One that is too large, or none.
    shown.wait(lambda: shown.find_all("#view .found"))
    shown.run(
        "const held = new DataTransfer(); held.items.add(new File([new Uint8Array(5e6)], 'b.bin'));"
        "document.dispatchEvent(new DragEvent('drop', {dataTransfer: held, bubbles: true}))"
    )
    shown.wait(lambda: "5,000,000 bytes" in shown.find("#error").text)
    assert shown.errors() == []
    fits(shown, served.address)


def test_another_page_gets_nothing_from_it(shown, served, tmp_path):
    (tmp_path / "evil.html").write_text("<p>x</p>")
    shown.open((tmp_path / "evil.html").as_uri())
    said = shown.run(
        "return fetch(arguments[0] + 'read', {method: 'POST', body: 'x',"
        "headers: {'X-Rmt-Token': 'x'}}).then(() => 'read', () => 'refused')", served.address,
    )  # fmt: skip
    assert said == "refused"
    said = shown.run(
        "return fetch(arguments[0]).then(a => a.text()).catch(() => 'refused')", served.address
    )
    assert said == "refused"
    shown.errors()
