"use strict";
// The page is whole without this: it adds sorting, a filter and the opacity of maps.
for (const control of document.querySelectorAll(".controls")) control.hidden = false;

const valueOf = (cell) => {
  const text = cell.dataset.v ?? cell.textContent.trim();
  const number = Number(text);
  return text === "" ? null : Number.isNaN(number) ? text : number;
};
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row.cells[column]), row]);
      // What has no value stays last, whichever way.
      rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : (ascending ? 1 : -1) * compare(a, b)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0, all = 0;
  for (const row of document.querySelectorAll("table.filtered tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
    all += 1;
  }
  document.getElementById("shown").textContent = words.length ? `${shown} of ${all} rows` : "";
});

for (const slider of document.querySelectorAll(".opacity")) {
  const set = () => slider.closest(".gallery").style.setProperty("--opacity", slider.value / 100);
  slider.addEventListener("input", set);
  set();
}
