"use strict";
// As the system has it, then the other one, then the first again; kept where the browser lets us.
(function () {
  const root = document.documentElement;
  const kept = () => { try { return localStorage.getItem("theme") || ""; } catch { return ""; } };
  const keep = (value) => { try { localStorage.setItem("theme", value); } catch { /* a file: page */ } };
  const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  const set = (value) => { root.dataset.theme = value; };
  set(kept());
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark() ? "dark" : "light");
    const next = now === "dark" ? "light" : "dark";
    set(next);
    keep(next);
  });
})();
