// The list of features: only the rows in sight are in the document, so 50,000 cost what 20 do.
"use strict";

const ROW_HEIGHT = 58; // px, as in style.css
const SPARE = 6; // rows kept above and below

const list = { rows: [], places: new Map(), open: null, href: null };

// `href(row)` is where a row leads.
function makeList(href) {
  list.href = href;
  byId("list").addEventListener("scroll", () => requestAnimationFrame(drawList), { passive: true });
  new ResizeObserver(drawList).observe(byId("list"));
}

function fillList(rows) {
  list.rows = rows;
  list.places = new Map(rows.map((row, place) => [row, place]));
  byId("rows").style.height = `${rows.length * ROW_HEIGHT}px`;
  byId("count").textContent = `${whole(rows.length)} of ${whole(data.rows)} features`;
  drawList();
}

// Marks `row` as the one that is open, and scrolls to it where it is out of sight.
function markOpen(row) {
  list.open = row;
  const place = list.places.get(row);
  const box = byId("list");
  if (place !== undefined) {
    const top = place * ROW_HEIGHT;
    if (top < box.scrollTop || top + ROW_HEIGHT > box.scrollTop + box.clientHeight) {
      box.scrollTop = top - (box.clientHeight - ROW_HEIGHT) / 2;
    }
  }
  drawList();
}

// The row `step` places after `row` in the list, or the list's first; null at its ends.
function beside(row, step) {
  const place = list.places.get(row);
  return list.rows[place === undefined ? 0 : place + step] ?? null;
}

function drawList() {
  const box = byId("list");
  const first = Math.max(0, Math.floor(box.scrollTop / ROW_HEIGHT) - SPARE);
  const end = Math.ceil((box.scrollTop + box.clientHeight) / ROW_HEIGHT) + SPARE;
  byId("rows").replaceChildren(
    ...list.rows.slice(first, end).map((row, i) => listRow(row, first + i)),
  );
}

function listRow(row, place) {
  const link = el("a", { href: list.href(row), "aria-current": row === list.open && "true" },
    el("span", { class: "what" }, summaryOf(row)),
    el("span", { class: "facts" },
      el("span", { class: "name" }, nameOf(row)),
      el("span", {}, data.density[row] > 0 ? share(data.density[row]) : "dead"),
      scoreOf(row)));
  const item = el("div", { class: "row", role: "listitem", "aria-setsize": list.rows.length, "aria-posinset": place + 1 }, link);
  item.style.top = `${place * ROW_HEIGHT}px`;
  return item;
}

// A description, struck as unreliable where it is; else the tokens that the feature fires on.
function summaryOf(row) {
  if (data.text[row]) {
    return el("span", { class: data.status[row] === UNRELIABLE && "doubtful" }, prose(data.text[row]));
  }
  if (data.density[row] === 0) return el("span", { class: "silent" }, "never fired");
  return el("span", { class: "fired" }, data.tokens[row]);
}

function scoreOf(row) {
  if (isNaN(data.score[row])) return null;
  const doubtful = data.status[row] === UNRELIABLE;
  return el("span", { class: doubtful ? "score doubtful" : "score" },
    doubtful ? `unreliable ${data.score[row].toFixed(2)}` : data.score[row].toFixed(2));
}
