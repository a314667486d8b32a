// The list of features. Only visible rows are in the document, so 50,000 features cost no more than 20.
"use strict";

const ROW_HEIGHT = 58; // px, as in style.css
const SPARE = 6; // rows kept above and below

// By row: `places` is its index in the list, `drawn` its element if it is in the document.
const list = { rows: [], places: new Map(), drawn: new Map(), open: null, href: null };

// `href(row)` is where a row leads.
function makeList(href) {
  list.href = href;
  byId("list").addEventListener("scroll", () => requestAnimationFrame(drawList), { passive: true });
  new ResizeObserver(drawList).observe(byId("list"));
}

// Sets the rows of the list and scrolls to its beginning; drawList shows them.
function fillList(rows) {
  list.rows = rows;
  list.places = new Map(rows.map((row, place) => [row, place]));
  byId("rows").style.height = `${rows.length * ROW_HEIGHT}px`;
  byId("count").textContent = `${whole(rows.length)} of ${whole(data.rows)} features`;
  byId("list").scrollTop = 0;
}

// Marks `row` as open, and scrolls to it if it is out of sight.
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

// A row that stays in sight stays in the document: a click that began on it ends on it, and the
// keyboard's focus is not lost.
function drawList() {
  const box = byId("list");
  const first = Math.max(0, Math.floor(box.scrollTop / ROW_HEIGHT) - SPARE);
  const end = Math.ceil((box.scrollTop + box.clientHeight) / ROW_HEIGHT) + SPARE;
  const inSight = list.rows.slice(first, end);
  const drawn = new Map(inSight.map((row) => [row, list.drawn.get(row) ?? listRow(row)]));
  for (const [row, item] of list.drawn) if (!drawn.has(row)) item.remove();
  list.drawn = drawn;
  let next = byId("rows").firstChild;
  inSight.forEach((row, i) => {
    const item = drawn.get(row);
    mark(item, row, first + i);
    if (item === next) next = next.nextSibling;
    else byId("rows").insertBefore(item, next);
  });
}

function listRow(row) {
  const link = el("a", {},
    el("span", { class: "what" }, summaryOf(row)),
    el("span", { class: "facts" },
      el("span", { class: "name" }, nameOf(row)),
      el("span", {}, live(row) ? share(data.density[row]) : "dead"),
      isNaN(data.part[row]) ? null : el("span", { class: "to" }, `→ ${data.info.targets[data.target[row]]} ${Math.round(100 * data.part[row])}%`),
      scoreOf(row)));
  return el("div", { class: "row", role: "listitem" }, link);
}

// Sets the attributes that depend on the search and on the open feature.
function mark(item, row, place) {
  item.style.top = `${place * ROW_HEIGHT}px`;
  item.setAttribute("aria-setsize", list.rows.length);
  item.setAttribute("aria-posinset", place + 1);
  const link = item.firstChild;
  link.setAttribute("href", list.href(row));
  if (row === list.open) link.setAttribute("aria-current", "true");
  else link.removeAttribute("aria-current");
}

// A description, marked if it is unreliable; without one, the tokens with the strongest firings.
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
