// What a part of a page says of itself when it is pointed at.
"use strict";

// Shows an element's data-tip beside the pointer.
function showTip(event) {
  const target = event.target.closest("[data-tip]");
  if (!target) { hideTip(); return; }
  const tip = byId("tip");
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const { left, top, bottom, width } = target.getBoundingClientRect();
  const x = Math.min(Math.max(8, left + width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  const y = top > tip.offsetHeight + 10 ? top - tip.offsetHeight - 6 : bottom + 6;
  tip.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
}

function hideTip() {
  byId("tip").hidden = true;
}
