// Loads data. A page opened from a disk may not fetch, so data are scripts that call a function.
"use strict";

function load(file) {
  return new Promise((resolve, reject) => {
    const script = el("script", { src: `pages/${file}` });
    script.onload = () => { script.remove(); resolve(); };
    script.onerror = () => { script.remove(); reject(new Error(`pages/${file} cannot be read`)); };
    document.head.append(script);
  });
}

function numbered(name, number) {
  return `${name}-${String(number).padStart(5, "0")}.js`;
}

// Which of several files holds a row; `firsts` are the first rows of each.
function chunkOf(row, firsts) {
  let low = 0, high = firsts.length - 1; // the last chunk that starts at or before row
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (firsts[middle] <= row) low = middle; else high = middle - 1;
  }
  return low;
}
