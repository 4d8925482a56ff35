"use strict";
// Shows what memory does while one text is read: see report/inspect_page.py for the data.
const rmt = (function () {
  const WINDOW = 2500; // tokens on the page at once; a longer text shows those around the slider
  const BARS = 240;

  function element(name, options = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(options)) {
      if (key === "text") made.textContent = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }
  function shape(name, options) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(options)) made.setAttribute(key, value);
    return made;
  }
  const percent = (x) => (x >= 0.9995 || x === 0 ? (100 * x).toFixed(0)
    : 100 * x < 0.01 ? "under 0.01" : (100 * x).toPrecision(2).replace(/^(\d+)\.$/, "$1")) + " %";

  function show(view, root) {
    const last = view.tokens.length;
    const starts = [0];
    for (const segment of view.tokens) starts.push(starts[starts.length - 1] + segment.length);
    const words = view.tokens.flat();
    const segmentOf = (token) => {
      let low = 0, high = last - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (starts[middle] <= token) low = middle; else high = middle - 1;
      }
      return low;
    };
    // By how much of its probability the answer falls, from 0 to 1.
    const lost = (part) => Math.max(0, 1 - Math.exp(part[3] - view.logprob));
    const fine = new Map(), whole = new Array(last).fill(null);
    for (const part of view.parts) {
      if (part[2] === "segment") whole[segmentOf(part[0])] = part;
      if (part[2] === "sentence" || part[2] === "token") {
        const share = part[2] === "token" ? 1 : 0.3;
        for (let n = part[0]; n < part[1]; n++) {
          const before = fine.get(n) || { v: 0 };
          fine.set(n, { v: Math.max(before.v, share * lost(part)), part });
        }
      }
    }
    const top = Math.max(1e-9, ...view.change.slice(last > 1 ? 1 : 0));
    const ways = [];
    if (view.values.length) ways.push(["gate", view.value_label]);
    ways.push(["change", "change of memory"]);
    if (view.parts.length) ways.push(["answer", "what the answer rests on"]);
    const state = { at: last - 1, by: ways[0][0], row: 0, picked: null };

    const slider = element("input", { type: "range", min: 1, max: last, value: last, id: "segment" });
    const place = element("output", { for: "segment" });
    const by = element("select", { "aria-label": "colour by" },
      ...ways.map(([key, name]) => element("option", { value: key, text: name })));
    const row = element("select", { "aria-label": "which" },
      ...view.rows.map((name, k) => element("option", { value: k, text: name })));
    const low = element("span", { text: "0" }), high = element("span", { text: "" });
    const legend = element("span", { class: "legend" }, low, element("i"), high);
    const button = (text, title, act) => {
      const made = element("button", { type: "button", title, "aria-label": title, text });
      made.addEventListener("click", act);
      return made;
    };
    const controls = element("div", { class: "controls" },
      element("span", { class: "slider" }, button("‹", "segment before", () => go(state.at - 1)), slider,
        button("›", "next segment", () => go(state.at + 1)), place), by, row, legend);
    const overview = shape("svg", { class: "overview", viewBox: `0 0 ${last} 76`,
      preserveAspectRatio: "none", role: "img", "aria-label": "memory and facts over the whole text" });
    const detail = element("p", { class: "detail", "aria-live": "polite" });
    const text = element("div", { class: "text" });
    const asked = element("p", { class: "asked" }, view.question + " ",
      element("b", { text: view.answer || "(no answer)" }));
    if (view.target !== null && view.target !== view.answer) {
      asked.append(` (right would be: ${view.target})`);
    }
    root.replaceChildren(asked, overview, element("p", { class: "note",
      text: "Bars: how far each segment moved the memory" + (view.parts.length
        ? "; from above: how much of the answer's probability is lost without it" : "")
        + (view.facts.length ? "; ticks: facts." : ".") }), controls, detail, text);
    if (view.parts.length) root.append(...found());
    root.append(element("p", { class: "note", text:
      "Keys: ← → segment, Home and End, f next fact. A tap on a word says its figures." }));

    // Of many segments, the highest of each stretch is drawn.
    const step = Math.ceil(last / BARS);
    for (let k = 0; k < last; k += step) {
      const stretch = view.change.slice(k, k + step);
      const height = 40 * Math.min(1, Math.max(...stretch) / top);
      overview.append(shape("rect", { class: "change", x: k + 0.08 * step, width: 0.84 * step,
        y: 76 - height, height }));
    }
    for (const part of view.parts) {
      if (!part[2].startsWith("segment")) continue;
      const first = segmentOf(part[0]), after = segmentOf(part[1] - 1) + 1;
      const height = 24 * lost(part);
      overview.append(shape("rect", { class: "answer", x: first, width: after - first, y: 0, height,
        opacity: part[2] === "segment" ? 1 : 0.3 }));
    }
    for (const [start, stop, supporting] of view.facts) {
      const at = (n) => { const s = segmentOf(n); return s + (n - starts[s]) / (starts[s + 1] - starts[s]); };
      overview.append(shape("rect", { class: supporting ? "supporting" : "fact", x: at(start),
        width: Math.max(at(stop - 1) - at(start), last / 400), y: 27, height: 6 }));
    }
    const now = shape("rect", { class: "now", y: 1, height: 74, width: 1 });
    overview.append(now);
    overview.addEventListener("click", (event) => {
      const box = overview.getBoundingClientRect();
      go(Math.floor(((event.clientX - box.left) / box.width) * last));
    });

    function value(n, segment) {
      if (state.by === "gate") return view.values[state.row][n] / 255;
      if (state.by === "change") return Math.min(1, view.change[segment] / top);
      return (fine.get(n) || { v: 0 }).v;
    }
    let shown = [-1, -1];
    function range() {
      if (words.length <= WINDOW) return [0, last];
      let first = state.at, after = state.at + 1, count = view.tokens[state.at].length;
      while (count < WINDOW && (first > 0 || after < last)) {
        if (first > 0) count += view.tokens[--first].length;
        if (after < last) count += view.tokens[after++].length;
      }
      return [first, after];
    }
    function build() {
      const [first, after] = range();
      if (first === shown[0] && after === shown[1]) return;
      shown = [first, after];
      text.replaceChildren();
      if (first > 0 || after < last) text.append(element("p", { class: "note",
        text: `Segments ${first + 1} to ${after} of ${last} are shown.` }));
      for (let s = first; s < after; s++) {
        const section = element("div", { class: "segment", "data-segment": s },
          element("span", { class: "number", text: s + 1 }));
        let holder = section, fact = null;
        for (let n = starts[s]; n < starts[s + 1]; n++) {
          const inside = view.facts.find(([start, stop]) => start <= n && n < stop) || null;
          if (inside !== fact) {
            fact = inside;
            holder = inside ? element("span", { class: inside[2] ? "fact supporting" : "fact" }) : section;
            if (inside) section.append(holder);
          }
          const kind = n < view.question_at ? "token" : "token question";
          holder.append(element("span", { class: kind, "data-n": n, text: words[n] }));
        }
        text.append(section);
      }
    }
    function paint(scroll) {
      build();
      place.textContent = `${state.at + 1} of ${last}`;
      slider.value = state.at + 1;
      slider.setAttribute("aria-valuetext", `segment ${state.at + 1} of ${last}`);
      now.setAttribute("x", state.at);
      row.hidden = state.by !== "gate" || view.rows.length < 2;
      for (const part of [text, legend]) {
        for (const [key] of ways) part.classList.toggle(`by-${key}`, key === state.by);
      }
      high.textContent = state.by === "gate" ? percent(view.scales[state.row]) : state.by === "change"
        ? percent(top) : "all of it";
      for (const section of text.querySelectorAll(".segment")) {
        const s = Number(section.dataset.segment);
        section.classList.toggle("now", s === state.at);
        section.classList.toggle("unread", s > state.at);
        for (const token of section.querySelectorAll(".token")) {
          token.style.setProperty("--v", s > state.at ? 0 : value(Number(token.dataset.n), s).toFixed(3));
        }
      }
      detail.textContent = about();
      if (scroll) {
        const current = text.querySelector(".segment.now");
        if (current) current.scrollIntoView({ block: "nearest" });
      }
    }
    function about() {
      const s = state.at;
      let told = `Segment ${s + 1}: ${view.tokens[s].length} tokens; memory (${view.change_label}) `
        + `moved by ${percent(view.change[s])}.`;
      if (whole[s]) told += lost(whole[s]) < 0.005 ? " Without it the answer stays as likely."
        : ` Without it the answer has ${percent(Math.exp(whole[s][3]))} instead of `
          + `${percent(Math.exp(view.logprob))}.`;
      if (state.picked !== null) {
        const n = state.picked;
        told += ` “${words[n].trim()}”`;
        if (view.values.length) told += `: ${view.value_label} `
          + view.rows.map((name, k) => `${name} ${percent(view.scales[k] * view.values[k][n] / 255)}`).join(", ");
        const effect = fine.get(n);
        if (effect) told += `; without ${effect.part[2] === "token" ? "it" : "its sentence"} the answer has `
          + percent(Math.exp(effect.part[3]));
        told += ".";
      }
      return told;
    }
    function go(segment, scroll = true) {
      state.at = Math.max(0, Math.min(last - 1, segment));
      paint(scroll);
    }
    function found() {
      const best = view.parts.filter((part) => part[2] === "sentence" && lost(part) > 0.02)
        .sort((a, b) => a[3] - b[3]).slice(0, 12);
      const body = element("tbody");
      for (const part of best) {
        const quote = words.slice(part[0], part[1]).join("").trim();
        const jump = button(quote, "show it in the text", () => go(segmentOf(part[0])));
        jump.removeAttribute("aria-label");
        body.append(element("tr", {}, element("td", { class: "words" }, jump),
          element("td", { text: segmentOf(part[0]) + 1 }),
          element("td", { text: percent(Math.exp(part[3])) })));
      }
      const title = element("h2", { text: "What the answer rests on" });
      const note = element("p", { class: "note", text: `With the whole text the answer has a probability of `
        + `${percent(Math.exp(view.logprob))}. ` + (best.length
        ? "Each of these sentences was left unread, and the answer looked at again."
        : "No single sentence matters: it stays as likely without any of them.") });
      if (!best.length) return [title, note];
      const head = element("tr", {}, element("th", { class: "words", text: "left unread" }),
        element("th", { text: "segment" }), element("th", { text: "the answer then" }));
      return [title, note, element("div", { class: "wide found" },
        element("table", {}, element("thead", {}, head), body))];
    }
    slider.addEventListener("input", () => go(Number(slider.value) - 1));
    by.addEventListener("change", () => { state.by = by.value; paint(false); });
    row.addEventListener("change", () => { state.row = Number(row.value); paint(false); });
    text.addEventListener("click", (event) => {
      const token = event.target.closest(".token");
      if (!token) return;
      for (const old of text.querySelectorAll(".picked")) old.classList.remove("picked");
      token.classList.add("picked");
      state.picked = Number(token.dataset.n);
      detail.textContent = about();
    });
    const key = (event) => {
      if (!root.isConnected || event.ctrlKey || event.metaKey || event.altKey) return;
      if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
      const facts = view.facts.map(([start]) => segmentOf(start));
      const moves = { ArrowLeft: () => state.at - 1, ArrowRight: () => state.at + 1, Home: () => 0,
        End: () => last - 1, f: () => facts.find((s) => s > state.at) ?? facts[0] ?? state.at };
      if (!(event.key in moves)) return;
      event.preventDefault();
      go(moves[event.key]());
    };
    if (rmt.key) document.removeEventListener("keydown", rmt.key);
    rmt.key = key;
    document.addEventListener("keydown", key);
    paint(false);
  }
  return { show, element };
})();
