// Tables sort by a column when its head is pressed: upwards, then downwards.
"use strict";
(() => {
  const numeric = /^[−-]?\d/;

  /** What a cell sorts by: its first number, or its text; null for none. */
  function value(cell) {
    const text = cell.textContent.trim();
    if (numeric.test(text)) return Number.parseFloat(text.replace("−", "-").replaceAll(",", ""));
    return text === "" || text === "–" ? null : text;
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function sort(table, head, index) {
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row.cells[index]), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : direction * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  }

  for (const table of document.querySelectorAll("main .scroll > table")) {
    if (table.tBodies[0].rows.length < 2) continue;
    table.classList.add("sortable");
    [...table.tHead.rows].at(-1).querySelectorAll("th").forEach((head, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head, index));
      head.append(button);
    });
  }
})();
