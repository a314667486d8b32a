// The address holds the whole state: #<source>/<feature>?q=...&sort=...&show=...&site=...&target=..., such as
// #resid_post.1/266, so that a feature or a search can be linked to and the browser's back button works.
"use strict";

const DEFAULTS = { query: "", sort: "number", show: "all", site: null, target: null };
const ABOUT = "#/about"; // the overview, which a narrow screen shows only when asked
const state = { ...DEFAULTS, row: null, about: false };

function readAddress() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  const asked = new URLSearchParams(query);
  const number = (key, end) => (/^\d+$/.test(asked.get(key)) && Number(asked.get(key)) < end ? Number(asked.get(key)) : null);
  Object.assign(state, {
    query: asked.get("q") ?? "",
    sort: asked.get("sort") in SORTS ? asked.get("sort") : DEFAULTS.sort,
    show: asked.get("show") in SHOWN ? asked.get("show") : DEFAULTS.show,
    site: number("site", data.info.code_sources),
    target: number("target", data.info.targets.length),
    row: rowNamed(decoded(path).replace(/^\//, "")),
    about: `#${path}` === ABOUT,
  });
}

function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; } // a lone % is no escape
}

function address(row) {
  const asked = new URLSearchParams();
  if (state.query) asked.set("q", state.query);
  for (const key of ["sort", "show", "site", "target"]) {
    if (state[key] !== DEFAULTS[key]) asked.set(key, state[key]);
  }
  const query = asked.toString();
  const path = row === null ? "#" : `#${encodeURIComponent(nameOf(row)).replace(/%(2F|3A)/g, decodeURIComponent)}`;
  return query ? `${path}?${query}` : path;
}

const wanted = { list: null, row: undefined }; // what is on the screen

// Shows `state` on the screen.
async function show() {
  const { query, sort, show, site, target, row } = state;
  const asked = JSON.stringify([query, sort, show, site, target]);
  if (asked !== wanted.list) {
    wanted.list = asked;
    fillControls();
    fillList(search(state));
  }
  document.body.dataset.open = row === null && !state.about ? "list" : "view";
  markOpen(row);
  if (row === wanted.row) keepSearch(row); else await showView(row);
}

// A new search leaves the open feature and its scroll position; links keep the search.
function keepSearch(row) {
  const view = byId("view");
  for (const link of view.querySelectorAll("a[data-row]")) link.href = address(Number(link.dataset.row));
  if (row !== null) view.querySelector("nav")?.replaceWith(featureNav(row, address));
}

async function showView(row) {
  const view = byId("view");
  wanted.row = row;
  let content;
  try {
    content = row === null ? overviewView() : featureView(await loadFeature(row), address);
  } catch (error) {
    content = [el("p", { class: "warning" }, `${error.message}.`)];
  }
  if (wanted.row !== row) return; // another feature was opened while this one was loading
  hideTip();
  view.replaceChildren(...content);
  view.scrollTop = 0;
  document.title = row === null ? `Features of ${data.info.title}` : `${nameOf(row)} of ${data.info.title}`;
  view.dataset.row = row ?? "";
}

function fillControls() {
  for (const key of ["sort", "show", "site", "target"]) byId(key).value = state[key] ?? "";
  if (byId("query").value !== state.query) byId("query").value = state.query;
}

function makeControls() {
  byId("title").textContent = data.info.title;
  const options = (id, entries) => byId(id).append(...entries.map(([value, label]) => el("option", { value }, label)));
  const { targets } = data.info;
  const has = ({ several, scored }) => (!several || targets.length > 1) && (!scored || data.info.output_scores);
  const offered = (choices) => Object.entries(choices).filter(([, one]) => has(one)).map(([key, { label }]) => [key, label]);
  options("sort", offered(SORTS));
  options("show", offered(SHOWN));
  if (data.info.code_sources > 1) {
    options("site", [["", "all"], ...data.info.sites.map((site, i) => [String(i), site])]);
    byId("of-site").hidden = false;
  }
  if (targets.length > 1) {
    options("target", [["", "all"], ...targets.map((target, i) => [String(i), target])]);
    byId("of-target").hidden = false;
  }
  byId("controls").addEventListener("input", () => {
    Object.assign(state, { query: byId("query").value, sort: byId("sort").value, show: byId("show").value });
    for (const key of ["site", "target"]) state[key] = byId(key).value === "" ? null : Number(byId(key).value);
    history.replaceState(null, "", address(state.row));
    show();
  });
  byId("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    if (list.rows.length) go(list.rows[0]);
  });
}

function go(row) {
  location.hash = address(row);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input, select");
  if (event.key === "Escape") {
    if (state.query && typing) {
      byId("query").value = "";
      byId("controls").dispatchEvent(new Event("input"));
    } else if (typing) typing.blur();
    else if (state.row !== null || state.about) go(null);
  } else if (event.key === "ArrowDown" && event.target.id === "query") {
    byId("rows").querySelector("a")?.focus();
  } else if (typing) {
    return;
  } else if (event.key === "/") {
    byId("query").focus();
    byId("query").select();
  } else if (event.key === "j" || event.key === "k") {
    const next = beside(state.row, event.key === "j" ? 1 : -1);
    if (next !== null) go(next);
  } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && event.target.closest("#rows")) {
    walk(event.target.closest(".row"), event.key === "ArrowDown" ? 1 : -1);
  } else return;
  event.preventDefault();
}

// Moves the focus along the list, of which only the rows in sight are in the document.
function walk(item, step) {
  const place = Number(item.getAttribute("aria-posinset")) - 1 + step;
  if (place < 0) { byId("query").focus(); return; }
  const box = byId("list");
  const top = place * ROW_HEIGHT;
  box.scrollTop = Math.min(Math.max(box.scrollTop, top + ROW_HEIGHT - box.clientHeight), top);
  drawList();
  byId("rows").querySelector(`[aria-posinset="${place + 1}"] a`)?.focus({ preventScroll: true });
}

async function start() {
  try {
    await loadInfo();
    await loadIndex();
  } catch (error) {
    byId("view").replaceChildren(el("p", { class: "warning" }, `${error.message}: write the pages again with dictlearn pages run=<the run's folder>.`));
    return;
  }
  makeList(address);
  makeControls();
  readAddress();
  addEventListener("hashchange", () => { readAddress(); show(); });
  addEventListener("keydown", onKey);
  addEventListener("pointerover", showTip);
  byId("view").addEventListener("scroll", hideTip, { passive: true });
  await show();
  document.documentElement.dataset.ready = "true";
}

start();
