"use strict";
// Gives a text to the server that this page came from, and asks it.
(function () {
  const $ = (id) => document.getElementById(id);
  const meta = (name) => document.querySelector(`meta[name="${name}"]`).content;
  const token = meta("token"), limit = Number(meta("limit"));
  let reading = null, busy = false;

  function fail(sentence) {
    $("error").textContent = sentence;
    $("error").hidden = !sentence;
  }
  // Sends a request; `on` is given each line of the answer as it comes.
  async function send(path, body, on) {
    let answer;
    try {
      answer = await fetch(path, { method: "POST", body, headers: { "X-Rmt-Token": token } });
    } catch {
      throw new Error("The server does not answer: is it still running in its terminal?");
    }
    if (!answer.ok) throw new Error((await answer.json()).error);
    const reader = answer.body.getReader(), decoder = new TextDecoder();
    let held = "";
    for (;;) {
      const { done, value } = await reader.read();
      held += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = held.split("\n");
      held = lines.pop();
      for (const line of lines) {
        const event = JSON.parse(line);
        if (event.error) throw new Error(event.error);
        on(event);
      }
      if (done) return;
    }
  }
  async function alone(work) {
    if (busy) return;
    busy = true;
    fail("");
    for (const button of document.querySelectorAll("form button, #answers button")) button.disabled = true;
    try {
      await work();
    } catch (error) {
      fail(error.message);
    } finally {
      busy = false;
      for (const button of document.querySelectorAll("form button, #answers button")) button.disabled = false;
    }
  }
  const count = (n) => n.toLocaleString("en");
  function progress(event) {
    if (event.of) {
      $("progress").max = event.of;
      $("progress").value = event.read;
      $("read").textContent = `Reading: segment ${count(event.segments)}, ${count(event.tokens)} tokens`;
    }
  }

  async function give(blob) {
    if (blob.size > limit) {
      throw new Error(`The text has ${count(blob.size)} bytes, and the page takes ${count(limit)} at most: `
        + "for larger texts there is python -m rmt_jax.ask --file.");
    }
    reading = null;
    $("answers").replaceChildren();
    $("view").replaceChildren();
    $("ask").hidden = true;
    $("reading").hidden = false;
    $("progress").value = 0;
    $("read").textContent = "Reading …";
    await send("/read", blob, (event) => {
      if (event.id) reading = event.id;
      progress(event);
      if (event.done) {
        $("progress").value = $("progress").max;
        $("read").textContent = event.tokens
          ? `Read: ${count(event.tokens)} tokens in ${count(event.segments)} segments.`
          : "This model reads the text together with a question.";
      }
    });
    $("ask").hidden = false;
    $("question").focus();
  }
  async function ask(question, task) {
    const answer = rmt.element("b"), note = rmt.element("span", { class: "note" });
    const item = rmt.element("li", {}, question + " ", answer, " ", note);
    const body = JSON.stringify({ id: reading, question, task });
    $("answers").prepend(item);
    let short = false;
    try {
      await send("/ask", body, (event) => {
        progress(event);
        if (event.doubt) note.textContent += ` ${event.doubt}.`;
        if (event.piece) answer.textContent += event.piece;
        if (event.answer !== undefined) {
          answer.textContent = event.answer || "(no answer)";
          short = event.short;
        }
      });
    } catch (error) {
      item.remove();
      throw error;
    }
    const look = rmt.element("button", { type: "button", text: "Where does it come from?" });
    look.addEventListener("click", () => alone(() => origin(body)));
    item.append(" ", look);
    if (short) await origin(body);
  }
  async function origin(body) {
    $("view").replaceChildren();
    $("looking").hidden = false;
    $("looking").textContent = "Looking where the answer comes from …";
    try {
      await send("/origin", body, (event) => {
        progress(event);
        if (event.parts) $("looking").textContent = `Looking where the answer comes from: ${event.parts} parts left unread …`;
        if (event.view) rmt.show(event.view, $("view"));
      });
    } finally {
      $("looking").hidden = true;
    }
  }

  $("give").addEventListener("submit", (event) => {
    event.preventDefault();
    alone(() => give(new Blob([$("text").value])));
  });
  $("file").addEventListener("change", () => {
    const file = $("file").files[0];
    if (file) alone(() => give(file));
    $("file").value = "";
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    alone(() => ask($("question").value, $("task").value));
  });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); $("give").classList.add("over"); });
  }
  for (const kind of ["dragleave", "drop"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); $("give").classList.remove("over"); });
  }
  document.addEventListener("drop", (event) => {
    const file = event.dataTransfer.files[0], text = event.dataTransfer.getData("text/plain");
    if (file) alone(() => give(file));
    else if (text) { $("text").value = text; alone(() => give(new Blob([text]))); }
  });
})();
