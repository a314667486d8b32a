// Sorts the table by a column when its head is pressed, and highlights a row's point.
"use strict";

const table = document.querySelector("table.runs");
const heads = [...table.querySelectorAll("thead th")];

function sortBy(column) {
  const head = heads[column];
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
  const order = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // missing values come last
    const sign = down ? -1 : 1;
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(order));
}

heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sortBy(column)));

function mark(event) {
  const run = event.target.closest("[data-run]")?.dataset.run;
  for (const one of document.querySelectorAll("[data-run]")) {
    one.classList.toggle("marked", event.type !== "pointerout" && one.dataset.run === run);
  }
}

for (const type of ["pointerover", "pointerout", "focusin"]) document.addEventListener(type, mark);
document.documentElement.dataset.ready = "true";
