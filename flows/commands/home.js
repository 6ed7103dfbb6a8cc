// Times as the reader's clock has them; and the file again, while it is looked at and nothing in it is in use.
"use strict";

function describe(seconds) {
  const minutes = Math.abs(seconds) / 60;
  const text = minutes < 1 ? "a moment" : minutes < 60 ? `${Math.round(minutes)} min`
    : minutes < 2 * 24 * 60 ? `${Math.round(minutes / 60)} h` : `${Math.round(minutes / 24 / 60)} days`;
  return seconds < 0 ? `in ${text}` : `${text} ago`;
}

function showTimes() {
  for (const node of document.querySelectorAll("time")) {
    const when = new Date(node.dateTime);
    node.title = when.toLocaleString();
    node.textContent = node.className === "at" ? when.toLocaleString([], { dateStyle: "medium", timeStyle: "short" })
      : describe((Date.now() - when) / 1000);
  }
}

function loadAgain() {
  const used = document.hidden || String(getSelection()) || document.activeElement !== document.body;
  if (!used) location.reload();
}

document.getElementById("read").textContent = `Read at ${new Date(document.lastModified).toLocaleTimeString()}. `;
showTimes();
setInterval(showTimes, 20000);
setInterval(loadAgain, document.body.dataset.reading ? 3000 : 30000);
