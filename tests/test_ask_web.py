"""What the server of `ask --web` takes, and what it refuses."""

import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_run
from serving import serving

from rmt_jax import ask
from rmt_jax.evaluation import readings, server
from rmt_jax.evaluation.readings import ReadingError, Readings
from rmt_jax.evaluation.session import answers

TEXT = "It rained. Mary went to the garden. " + "The sun shone on the old house again. " * 30
OTHER = "It rained. John went to the kitchen. " + "Nobody came to the river. " * 30


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_run.model(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(model):
    with serving(model, "A test & more") as made:
        yield made


def call(
    page, method="POST", path="/", body=b"", **headers
) -> tuple[http.client.HTTPResponse, str]:
    """The answer to a request that bears what the page's own would, unless `headers` differ (a
    header that is None is left out)."""
    host = f"127.0.0.1:{page.server_address[1]}"
    usual = {"Host": host, "X-Rmt-Token": page.token, "Content-Length": str(len(body))}
    given = usual | {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    said = answer.read().decode()
    connection.close()
    return answer, said


def lines(page, path: str, body) -> list[dict]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer, said = call(page, path=path, body=raw)
    assert answer.status == 200, said
    return [json.loads(line) for line in said.splitlines()]


def give(page, text: str) -> str:
    events = lines(page, "/read", text.encode())
    assert events[-1]["done"] and events[-1]["tokens"] > 100
    return events[0]["id"]


def question(name: str, text="Where is Mary?", task="") -> dict:
    return {"id": name, "question": text, "task": task}


def test_a_text_is_read_in_sight_and_answered_as_ever(page, model, monkeypatch):
    monkeypatch.setattr(readings, "PIECE", 300)
    events = lines(page, "/read", TEXT.encode())
    name = events[0]["id"]
    counts = [event["read"] for event in events if "read" in event]
    assert len(counts) >= 3 and counts == sorted(counts) and counts[-1] == len(TEXT)
    segments = [event["segments"] for event in events if "segments" in event]
    assert segments == sorted(segments) and segments[-1] == -(
        -events[-1]["tokens"] // tiny_run.LENGTH
    )
    asked = lines(page, "/ask", question(name))
    assert asked[-1]["answer"] == answers(model, TEXT, ["Where is Mary?"])[0]
    assert "".join(event.get("piece", "") for event in asked) == asked[-1]["answer"]


def test_an_answers_origin_is_an_inspection_of_the_whole_text(page):
    name = give(page, TEXT)
    seen = lines(page, "/origin", question(name))
    view = seen[-1]["view"]
    assert "".join(text for part in view["tokens"] for text in part).startswith(" It rained. Mary")
    assert view["question"] == "Where is Mary?" and view["parts"]
    counts = [event["parts"] for event in seen[:-1]]
    assert counts == sorted(counts) and counts[-1] == len(view["parts"])


def test_one_reading_is_asked_often_and_by_two_at_once(page, model):
    """Each gets the answer to its own question about its own text."""
    names = {text: give(page, text) for text in (TEXT, OTHER)}
    asked = [(text, q) for text in names for q in ("Where is Mary?", "Where is John?")] * 2
    right = {(text, q): answers(model, text, [q])[0] for text, q in asked}
    with ThreadPoolExecutor(4) as pool:
        said = list(
            pool.map(lambda one: lines(page, "/ask", question(names[one[0]], one[1])), asked)
        )
    assert [events[-1]["answer"] for events in said] == [right[one] for one in asked]


def test_a_prompt_that_the_text_was_not_read_with(page, tmp_path):
    """A task in the user's words, and a model that needs the question first: it is read again."""
    name = give(page, TEXT)
    assert "answer" in lines(page, "/ask", question(name, task="Say who is where."))[-1]
    held = Readings(tiny_run.model(tmp_path, source="both"))
    events = list(held.read(TEXT.encode()))
    assert events[-1] == {"done": True, "tokens": 0, "segments": 0}
    said = list(held.ask(events[0]["id"], "Where is Mary?", ""))
    assert any("read" in event for event in said) and said[-1]["tokens"] > 100
    (expected,) = answers(held.model, TEXT, ["Where is Mary?"])
    assert said[-1]["answer"] == expected


def test_only_the_last_texts_are_kept(model, monkeypatch):
    monkeypatch.setattr(readings, "KEPT", 2)
    held = Readings(model)
    names = [next(held.read(TEXT.encode()))["id"] for _ in range(3)]
    assert len(set(names)) == 3 and list(held.held) == names[1:]
    with pytest.raises(ReadingError, match="not here any more"):
        list(held.ask(names[0], "Where is Mary?", ""))


def test_the_page_and_its_headers(page):
    answer, said = call(page, "GET")
    assert answer.status == 200 and page.token in said and "A test &amp; more" in said
    policy = answer.headers["Content-Security-Policy"]
    for rule in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"):
        assert rule in policy
    assert "unsafe" not in policy and answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Access-Control-Allow-Origin"] is None
    assert "http" not in said.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/index.html",
     "/web/style.css", "/?file=/etc/passwd", "file:///etc/passwd", "http://elsewhere/", "*"],
)  # fmt: skip
def test_no_path_leads_to_a_file(page, path):
    for method in ("GET", "POST"):
        answer, said = call(page, method, path)
        assert answer.status == 404 and json.loads(said)["error"].startswith(
            "There is nothing here"
        )
    name = give(page, TEXT)
    (event,) = lines(page, "/ask", question(path))
    assert "not here any more" in event["error"] and name not in event["error"]


def test_other_methods_are_refused(page):
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "CONNECT"):
        assert call(page, method)[0].status == 501


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1.evil.example:{port}",
        "127.0.0.1:1",
        "127.0.0.1@evil.example",
        "localhost:1",
        "localhost:port",
        "localhost:{port}/x",
        "[::1",
    ],
)
def test_another_name_is_refused(page, host):
    """As after DNS rebinding: the connection is ours, the name is theirs."""
    host = host and host.format(port=page.server_address[1])
    for method in ("GET", "POST"):
        answer, said = call(page, method, "/" if method == "GET" else "/read", b"x", Host=host)
        assert answer.status == 403 and page.token not in said
        assert "answers to no other name" in json.loads(said)["error"]


@pytest.mark.parametrize(
    "host", ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}", "LOCALHOST"]
)
def test_its_own_names_are_taken(page, host):
    assert call(page, "GET", Host=host.format(port=page.server_address[1]))[0].status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Rmt_Token": None},
        {"X_Rmt_Token": "guess"},
        {"X_Rmt_Token": "gu\u00e9ss"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_another_page_can_ask_nothing(page, headers):
    answer, said = call(page, path="/read", body=TEXT.encode(), **headers)
    assert answer.status == 403 and "error" in json.loads(said)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "sentence"),
    [
        ("/read", b"", {"Content_Length": None}, 411, "must say its length"),
        ("/read", b"", {"Content_Length": "-1"}, 411, "must say its length"),
        ("/read", b"", {"Content_Length": "1e3"}, 411, "must say its length"),
        ("/read", b"", {"Content_Length": "9" * 400}, 411, "must say its length"),
        ("/read", b"", {"Content_Length": None, "Transfer_Encoding": "chunked"}, 411, "its length"),
        ("/read", b"x" * 4_000_001, {}, 413, "has 4,000,001 bytes, and the page takes 4,000,000"),
        ("/ask", b"x" * 16_001, {}, 413, "The question has 16,001 bytes"),
        ("/ask", b"{", {}, 400, "A question is JSON"),
        ("/ask", b"[" * 15_000, {}, 400, "A question is JSON"),
        ("/ask", b"\xff\xfe", {}, 400, "A question is JSON"),
        ("/ask", b"[1, 2]", {}, 400, "A question is JSON"),
        ("/ask", b'{"id": "x"}', {}, 400, "A question is JSON"),
        ("/ask", b'{"id": 1, "question": "x", "task": ""}', {}, 400, "each part is a text"),
        ("/ask", b'{"id": "", "question": "\\ud800", "task": ""}', {}, 400, "each part is a text"),
    ],
)  # fmt: skip
def test_what_is_malformed_gets_a_sentence(page, path, body, headers, status, sentence):
    answer, said = call(page, path=path, body=body, **headers)
    assert answer.status == status and sentence in json.loads(said)["error"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "The text is empty"),
        (b" \n ", "The text is empty"),
        (b"%PDF-1.7 x", "a PDF"),
        (b"PK\x03\x04x", "a zip"),
        (b"caf\xe9 au lait", "not UTF-8"),
        (b"a\0b", "binary"),
    ],
)
def test_what_is_no_text_gets_a_sentence(page, body, sentence):
    events = lines(page, "/read", body)
    assert len(events) == 1 and sentence in events[0]["error"]


def test_questions_that_cannot_be_answered_get_a_sentence(page):
    name = give(page, TEXT)
    for asked, sentence in (
        (question(name, "  "), "empty question"),
        (question(name, "Who is the king?"), "Of which task is"),
        (question(name, "Where is Mary? " * 60, "qa1"), "ask a shorter question"),
    ):
        assert sentence in lines(page, "/ask", asked)[-1]["error"]


def test_a_long_texts_origin_is_not_looked_for(page, monkeypatch):
    monkeypatch.setattr(readings, "LOOKED_INTO", 100)
    name = give(page, TEXT)
    assert "of up to 100" in lines(page, "/origin", question(name))[-1]["error"]


def test_a_request_that_stops_in_the_middle_holds_nobody_up(page, monkeypatch):
    monkeypatch.setattr(server.Handler, "timeout", 0.5)
    with socket.create_connection(page.server_address[:2]) as slow:
        host = f"127.0.0.1:{page.server_address[1]}"
        head = f"POST /read HTTP/1.0\r\nHost: {host}\r\nX-Rmt-Token: {page.token}\r\n"
        slow.sendall(f"{head}Content-Length: 500\r\n\r\nIt rained.".encode())
        assert call(page, "GET")[0].status == 200
        said = b"".join(iter(lambda: slow.recv(4096), b""))
    assert b"408" in said.split(b"\r\n")[0] and b"The rest did not come." in said


def test_a_browser_that_goes_away_ends_the_work(page, monkeypatch):
    monkeypatch.setattr(readings, "PIECE", 20)
    events = page.readings.read((TEXT * 20).encode())
    assert [next(events), next(events)][1]["read"] < 2000
    events.close()
    assert not page.readings.lock.locked()
    assert give(page, TEXT)


def test_the_command(tmp_path, monkeypatch, capsys):
    run = tiny_run.save(tmp_path, tiny_run.config())

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(server.Server, "serve_forever", interrupted)
    assert ask.main(["--workdir", str(run), "--web", "--port", "0"]) == 0
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")
    for words, sentence in (
        (["--file", "x.txt", "--question", "Where?"], "leave out --file, --question"),
        (["--temperature", "1"], "leave out --temperature"),
        (["--port", "99999"], "port 99999"),
        (["--host", "256.1.1.1"], "Nothing can be served at 256.1.1.1"),
    ):
        with pytest.raises(ask.RmtError, match=sentence):
            ask.main(["--workdir", str(run), "--web", *words])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(server.ServerError, match=f"port {port} .* give another --port"):
            ask.main(["--workdir", str(run), "--web", "--port", str(port)])
