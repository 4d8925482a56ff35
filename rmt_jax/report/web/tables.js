"use strict";
// A click on a column's name sorts the table by it; a second one the other way round.
(function () {
  const number = (text) => {
    const found = text.replace(/[,\u2009\u00a0]/g, "").match(/^[<>≥≤~]?\s*(-?\d+(?:\.\d+)?)\s*([kM]?)/);
    return found ? Number(found[1]) * ({ k: 1e3, M: 1e6 }[found[2]] || 1) : null;
  };
  const compare = (a, b) => {
    const x = number(a), y = number(b);
    if (x !== null && y !== null) return x - y;
    if (x !== null || y !== null) return x === null ? 1 : -1; // what is no number comes last
    return a.localeCompare(b);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const head = table.tHead.rows[0];
    [...head.cells].forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const up = cell.getAttribute("aria-sort") !== "ascending";
        for (const other of head.cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", up ? "ascending" : "descending");
        const text = (row) => row.cells[column] ? row.cells[column].textContent.trim() : "";
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => (up ? 1 : -1) * compare(text(a), text(b)));
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
