// The data: info.js, then index-*.js (a few columns of every feature), and one of features-*.js when one of its
// features is opened.
//
// A feature's row is source * n_features + index: its index in every column.
"use strict";

const data = { info: null, rows: 0, chunks: new Map() };

const KEPT_CHUNKS = 12; // of a few hundred kB each

const dictlearn = {
  info(info) {
    const rows = info.code_sources * info.n_features;
    data.info = info;
    data.rows = rows;
    data.density = new Float64Array(rows);
    data.maximum = new Float64Array(rows);
    data.score = new Float64Array(rows).fill(NaN);
    data.output = new Float64Array(rows).fill(NaN); // how much it raises its own tokens
    data.status = new Uint8Array(rows); // NONE, RELIABLE or UNRELIABLE
    data.target = new Uint16Array(rows); // of several targets, the one it writes most to
    data.part = new Float64Array(rows).fill(NaN); // its share of the norms
    data.centre = new Float64Array(rows).fill(NaN); // mean number of its targets, weighted by their norms
    data.text = new Array(rows).fill("");
    data.tokens = new Array(rows).fill("");
    data.searched = new Array(rows).fill("");
  },

  // Columns of rows first, first + 1, ...
  index(first, columns) {
    for (let i = 0; i < columns.text.length; i++) {
      const row = first + i;
      data.density[row] = columns.density[i];
      data.maximum[row] = columns.maximum[i];
      data.score[row] = columns.score[i] ?? NaN;
      data.output[row] = columns.output[i] ?? NaN;
      data.status[row] = columns.status[i];
      if (columns.target) {
        data.target[row] = columns.target[i] ?? 0;
        data.part[row] = columns.part[i] ?? NaN;
        data.centre[row] = columns.centre[i] ?? NaN;
      }
      data.text[row] = columns.text[i];
      data.tokens[row] = columns.tokens[i];
      data.searched[row] = `${columns.text[i]}\n${columns.tokens[i]}`.toLowerCase();
    }
  },

  features(number, features) {
    data.chunks.set(number, new Map(features.map((feature) => [feature.row, feature])));
    if (data.chunks.size > KEPT_CHUNKS) data.chunks.delete(data.chunks.keys().next().value);
  },
};

const NONE = 0, RELIABLE = 1, UNRELIABLE = 2;

async function loadInfo() {
  await load("info.js");
}

async function loadIndex() {
  const parts = Array.from({ length: data.info.index_files }, (_, i) => load(numbered("index", i)));
  await Promise.all(parts);
}

// The whole record of one feature. Throws if the files don't belong together.
async function loadFeature(row) {
  const chunk = chunkOf(row, data.info.chunk_rows);
  if (!data.chunks.has(chunk)) await load(numbered("features", chunk));
  const feature = data.chunks.get(chunk)?.get(row);
  if (!feature) throw new Error("these pages were written anew while they were open: load them again");
  return feature;
}

function sourceOf(row) {
  return Math.floor(row / data.info.n_features);
}

function indexOf(row) {
  return row % data.info.n_features;
}

function rowOf(source, index) {
  return source * data.info.n_features + index;
}

// A feature's name, as dictlearn prints it: resid_post.1/266.
function nameOf(row) {
  return `${data.info.sites[sourceOf(row)]}/${indexOf(row)}`;
}

// The row of a name, of source number and index (0/266), or of an index if there is one source; else null.
function rowNamed(name) {
  const slash = name.lastIndexOf("/");
  const [site, number] = [name.slice(0, slash), name.slice(slash + 1)];
  const { sites, n_features } = data.info;
  const alone = slash < 0 && sites.length === 1;
  const source = alone ? 0 : slash < 0 ? -1 : sites.findIndex((one, i) => one === site || String(i) === site);
  return source >= 0 && /^\d+$/.test(number) && Number(number) < n_features ? rowOf(source, Number(number)) : null;
}
