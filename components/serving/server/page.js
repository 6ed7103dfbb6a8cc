// The page at "/": asks the champion of a domain about images and shows its answers over them.
// CLASS_COLOURS stands before this text as it is served: the colours of classes in all pictures of the project.
"use strict";

const AT_ONCE = 3; // requests under way at the same time
const MOST_TRIES = 6; // of one request while the server is busy
const POLL = 5000; // milliseconds between two looks at the champions
const MOST_REGIONS = 200; // connected regions listed in a table
const MOST_ROWS = 12; // classes named before "all classes"
const LARGE = 500; // pixels, from which on an image may be shown smaller than it is
const RAMP = [[43, 11, 87], [160, 44, 96], [241, 113, 31], [252, 255, 164]]; // of saliency, dark to bright

const state = {
  champions: [], domain: "", items: [], chosen: null, under: 0, token: sessionStorage.getItem("tessera-token") || "",
  layers: { saliency: { on: true, strength: 0.6 }, mask: { on: true, strength: 0.8 }, boxes: { on: true } },
  full: false, // whether images are shown pixel by pixel
  hidden: new Set(), // names of classes whose boxes and pixels are not drawn
};

const find = (id) => document.getElementById(id);

function make(tag, facts = {}, ...inside) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...inside.filter((one) => one !== null && one !== undefined));
  return node;
}

const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
const champion = () => state.champions.find((one) => one.domain === state.domain);
const wantsBox = () => champion()?.input === "crop";
const mayBox = () => ["crop", "either"].includes(champion()?.input);

// ---- the server ----

class Refused extends Error {
  constructor(status, record, wait) {
    super(record.message);
    Object.assign(this, { status, record, wait });
  }
}

async function call(path, options = {}) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch {
    throw new Refused(0, { message: "The server does not answer.", hint: "Is it running? Try again when it is." }, 0);
  }
  const text = await response.text();
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    body = null;
  }
  if (response.ok && body !== null) return body;
  if (response.status === 401) askForToken();
  const told = body?.error ?? { message: body?.detail ? describeDetail(body.detail) : text.slice(0, 400) || response.statusText };
  throw new Refused(response.status, told, Number(response.headers.get("Retry-After")) || 2);
}

const describeDetail = (detail) => (typeof detail === "string" ? detail : JSON.stringify(detail));

function link(ask) {
  const query = new URLSearchParams();
  if (ask.box) query.set("box", ask.box.join(","));
  if (ask.whole) query.set("whole", "1");
  if (["label", "labels"].includes(champion()?.annotation)) query.set("saliency", "1");
  const text = query.toString().replaceAll("%2C", ",");
  return `predict/${encodeURIComponent(state.domain)}${text && `?${text}`}`;
}

async function loadChampions() {
  let told = "", bad = false;
  try {
    const found = await call("champions");
    const changed = JSON.stringify(found.domains) !== JSON.stringify(state.champions);
    state.champions = found.domains;
    bad = Boolean(found.stale);
    told = found.stale ? `The registry was not read the last time: ${found.stale}`
      : found.ready ? `${count(found.domains.filter((one) => one.version).length, "champion")} served` : "The server is starting.";
    if (changed) showDomains();
  } catch (error) {
    [told, bad] = [error.status === 401 ? "A token is needed." : error.message, true];
  }
  if (find("health").textContent !== told) find("health").textContent = told;
  find("health").classList.toggle("warning", bad);
}

function askForToken() {
  if (find("login").open) return;
  if (state.token) find("login-why").textContent = "The server refused the token. It may have been changed, or mistyped.";
  find("token").value = "";
  find("login").showModal();
}

function keepToken(token) {
  state.token = token;
  if (token) sessionStorage.setItem("tessera-token", token);
  else sessionStorage.removeItem("tessera-token");
  find("forget").hidden = !token;
  find("metrics").hidden = Boolean(token); // a link cannot bring the token
}

// ---- questions ----

function addFiles(files) {
  const added = [...files].map((file) => {
    const item = { file, name: file.name || "pasted image", url: URL.createObjectURL(file), size: null, unseen: false, asks: [], at: 0 };
    const probe = new Image();
    probe.onload = () => { item.size = [probe.naturalWidth, probe.naturalHeight]; if (item === state.chosen) showDetail(); };
    probe.onerror = () => { item.unseen = true; if (item === state.chosen) showDetail(); };
    probe.src = item.url;
    return item;
  });
  if (!added.length) return;
  state.items = [...added, ...state.items];
  state.chosen = added[0];
  added.forEach(begin);
  showAll();
  pump();
}

/** The questions about an image, anew: those of its boxes, or the one about the whole. */
function begin(item) {
  const kept = mayBox() ? item.asks.filter((ask) => ask.box || ask.whole) : [];
  const asks = kept.length || wantsBox() ? kept : [{ box: null, whole: false }];
  item.asks = asks.map((ask) => ({ box: ask.box, whole: ask.whole, item, status: "waiting" }));
  item.at = Math.max(0, Math.min(item.at, item.asks.length - 1));
}

function addAsk(item, box, whole = false) {
  item.asks = item.asks.filter((ask) => ask.box || ask.whole);
  item.asks.push({ box, whole, item, status: "waiting" });
  item.at = item.asks.length - 1;
  showAll();
  pump();
}

function pump() {
  if (!champion()?.version || find("login").open) return;
  const waiting = state.items.flatMap((item) => item.asks).filter((ask) => ask.status === "waiting");
  for (const ask of waiting.slice(0, AT_ONCE - state.under)) {
    ask.status = "asking";
    state.under += 1;
    send(ask).finally(() => { state.under -= 1; showAnswered(ask); pump(); });
  }
}

async function send(ask) {
  const path = link(ask);
  Object.assign(ask, { path, error: null, answer: null });
  for (let tries = 1; ; tries += 1) {
    const begun = performance.now();
    try {
      const found = await call(path, { method: "POST", body: ask.item.file });
      Object.assign(ask, { status: "done", answer: Array.isArray(found) ? found[0] : found, seconds: (performance.now() - begun) / 1000 });
      return;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status === 401) { ask.status = "waiting"; return; }
      if (![429, 503].includes(error.status) || tries >= MOST_TRIES) { Object.assign(ask, { status: "failed", error }); return; }
      await new Promise((resume) => setTimeout(resume, 1000 * error.wait));
    }
  }
}

const isCurrent = (ask) => ask.item.asks.includes(ask);

function showAnswered(ask) {
  if (!isCurrent(ask)) return;
  showList();
  if (ask.item === state.chosen && ask.item.asks[ask.item.at] === ask) showDetail();
}

// ---- domains ----

function showDomains() {
  const select = find("domain"), names = state.champions.map((one) => one.domain);
  const wanted = decodeURIComponent(location.hash.slice(1));
  const before = state.domain;
  if (!names.includes(state.domain)) state.domain = names.includes(wanted) ? wanted : state.champions.find((one) => one.version)?.domain ?? names[0] ?? "";
  const options = state.champions.map((one) => make("option", { value: one.domain, selected: one.domain === state.domain },
    `${one.domain}${one.version ? ` · version ${one.version}` : " · nothing served"}${one.trouble ? " · trouble" : ""}`));
  select.replaceChildren(...(options.length ? options : [make("option", {}, "none served yet")]));
  select.disabled = !options.length;
  showAbout();
  if (state.domain !== before) state.items.forEach(begin);
  showAll();
  pump();
}

function chooseDomain(name) {
  state.domain = name;
  state.hidden.clear();
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  state.items.forEach(begin);
  showAbout();
  showAll();
  pump();
}

function showAbout() {
  const one = champion();
  if (!one) {
    find("about").replaceChildren(make("p", { class: "quiet" }, "No domain has a champion yet. The first retrain that passes its gates is served here by itself."));
    return;
  }
  const inputs = { crop: "Draw a box around each object: this champion was trained on crops.", either: "Asks about whole images, or about a box that you draw.", picture: "" };
  find("about").replaceChildren(...[
    one.trouble ? make("p", { class: "warning" }, one.version ? `Not the newest champion is served: ${one.trouble}` : one.trouble) : null,
    one.version ? make("p", { class: "version" }, `Version ${one.version} · ${one.tuner} · ${one.task}`) : make("p", {}, "No version is served."),
    one.classes.length ? make("ul", { class: "tags", "aria-label": "Classes" }, ...one.classes.slice(0, MOST_ROWS).map((name) => make("li", {}, name)),
      one.classes.length > MOST_ROWS ? make("li", {}, `and ${one.classes.length - MOST_ROWS} more`) : null) : null,
    inputs[one.input] ? make("p", { class: "quiet" }, inputs[one.input]) : null,
  ].filter(Boolean));
}

// ---- results ----

function showAll() {
  showList();
  showDetail();
}

function summarise(ask) {
  if (!ask) return ["draw a box", "quiet"];
  if (ask.status === "waiting") return [champion()?.version ? "waiting" : "nothing is served", "quiet"];
  if (ask.status === "asking") return ["asking", "busy"];
  if (ask.status === "failed") return [ask.error.record.found ? `found ${ask.error.record.found}` : ask.error.message, "bad"];
  if (ask.answer.abstained) return ["no answer: a person has to look", "unsure"];
  return [describeAnswer(ask.answer), "good"];
}

function describeAnswer(answer) {
  if (answer.objects) {
    const counts = Object.entries(answer.counts ?? {}).filter(([, number]) => number);
    return counts.length ? counts.map(([name, number]) => `${number} ${name}`).join(", ") : "nothing found";
  }
  if (answer.labels) return answer.labels.length ? answer.labels.join(", ") : "none of the classes";
  const chance = answer.probabilities?.[answer.label];
  return chance === undefined ? String(answer.label) : `${answer.label}, ${percent(chance)}`;
}

function showList() {
  const several = state.items.length > 1, asks = state.items.flatMap((item) => item.asks);
  find("results").hidden = !state.items.length;
  find("list").hidden = !several;
  find("counts").textContent = describeCounts(asks);
  find("again").hidden = !asks.length;
  state.items.forEach(showRow);
  const rows = several ? state.items.map((item) => item.row) : [], shown = find("list").children;
  if (rows.length !== shown.length || rows.some((row, k) => row !== shown[k])) find("list").replaceChildren(...rows);
}

function describeCounts(asks) {
  const done = asks.filter((ask) => ask.status === "done"), failed = asks.filter((ask) => ask.status === "failed").length;
  const unsure = done.filter((ask) => ask.answer.abstained).length, open = asks.length - done.length - failed;
  const labels = new Map();
  for (const ask of done.filter((one) => one.answer.probabilities && one.answer.label && !one.answer.labels)) labels.set(ask.answer.label, (labels.get(ask.answer.label) ?? 0) + 1);
  const told = [...labels].sort((a, b) => b[1] - a[1]).slice(0, 6).map(([name, number]) => `${number} ${name}`);
  if (unsure) told.push(`${unsure} without an answer`);
  if (failed) told.push(count(failed, "error"));
  if (open) told.push(`${open} to come`);
  const old = done.filter((ask) => ask.answer.domain === state.domain && ask.answer.version !== champion()?.version).length;
  const renewed = old && champion()?.version ? ` Version ${champion().version} is served now; ${count(old, "answer is", "answers are")} of another version.` : "";
  return `${count(state.items.length, "image")}${told.length && asks.length > 1 ? `: ${told.join(", ")}` : ""}.${renewed}`;
}

/** The row of an image is made once, since there may be hundreds, and brought up to date. */
function showRow(item) {
  item.row ??= make("li", {}, make("button", { type: "button", onclick: () => { state.chosen = item; showAll(); } },
    make("img", { class: "thumb", src: item.url, alt: "", loading: "lazy", decoding: "async", onerror: (event) => { event.target.replaceWith(make("span", { class: "thumb" })); } }),
    make("b"), make("small", {}, item.name)));
  const [text, kind] = summarise(item.asks[item.at]), button = item.row.firstChild;
  button.className = kind;
  button.setAttribute("aria-current", String(item === state.chosen));
  button.querySelector("b").textContent = text + (item.asks.length > 1 ? ` (${item.asks.length} boxes)` : "");
}

function moveInList(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const place = Math.max(0, Math.min(state.items.length - 1, state.items.indexOf(state.chosen) + step));
  state.chosen = state.items[place];
  showAll();
  state.chosen.row.firstChild.focus();
}

// ---- one image ----

function showDetail() {
  const item = state.chosen, detail = find("detail");
  detail.hidden = !item;
  if (!item) { detail.replaceChildren(); return; }
  const ask = item.asks[item.at], stage = showStage(item, ask);
  const left = make("div", {}, make("div", { class: state.full ? "window" : "" }, stage), showTools(item, ask), mayBox() ? showCorners(item) : null);
  const right = make("div", { "aria-live": "polite" }, mayBox() ? showTabs(item) : null, ...showAnswer(item, ask));
  detail.replaceChildren(make("div", { class: "sheet" }, left, right));
}

function showStage(item, ask) {
  const [wide, high] = item.size ?? [640, 480];
  const stage = make("div", { class: "stage" });
  const natural = Math.max(wide, Math.min(480, 8 * wide));
  stage.style.setProperty("--natural", `${natural}px`);
  stage.style.setProperty("--shape", String(wide / high));
  stage.classList.toggle("small", natural > wide * 1.5);
  stage.classList.toggle("full", state.full);
  stage.append(item.unseen
    ? make("p", { class: "unseen" }, "This browser cannot show this file. The server may still read it.")
    : make("img", { src: item.url, alt: `${item.name}, the image asked about`, draggable: false }));
  if (item.size && ask?.answer) {
    if (ask.answer.mask) stage.append(showMask(ask.answer));
    if (ask.answer.saliency) stage.append(showSaliency(ask.answer, item.size));
  }
  if (item.size) stage.append(showBoxes(item, ask));
  if (mayBox() && item.size) drawOn(stage, item);
  return stage;
}

const place = (node, [x0, y0, x1, y1], [wide, high]) => Object.assign(node.style, {
  left: `${(100 * x0) / wide}%`, top: `${(100 * y0) / high}%`, width: `${(100 * (x1 - x0)) / wide}%`, height: `${(100 * (y1 - y0)) / high}%`,
});

function paint(name, base64, draw) {
  const canvas = make("canvas", { class: name, "aria-hidden": "true" }), layer = state.layers[name];
  canvas.style.opacity = layer.strength;
  canvas.hidden = !layer.on;
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  createImageBitmap(new Blob([bytes], { type: "image/png" }), options).then((bitmap) => {
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height);
    draw(pixels, bytes);
    context.putImageData(pixels, 0, 0);
    canvas.dataset.painted = "true";
  });
  return canvas;
}

function showSaliency(answer, size) {
  const canvas = paint("saliency", answer.saliency, ({ data }) => {
    for (let at = 0; at < data.length; at += 4) {
      const value = data[at] / 255, step = Math.min(RAMP.length - 2, Math.floor(value * (RAMP.length - 1)));
      const part = value * (RAMP.length - 1) - step;
      for (let channel = 0; channel < 3; channel += 1) data[at + channel] = RAMP[step][channel] + part * (RAMP[step + 1][channel] - RAMP[step][channel]);
      data[at + 3] = 255 * Math.min(1, 1.15 * value);
    }
  });
  if (answer.crop) place(canvas, answer.crop, size);
  return canvas;
}

/** The colours of classes by their number, as the mask's own palette (a PNG's chunk PLTE) has them. */
function readPalette(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 8; at + 8 <= bytes.length; at += 12 + view.getUint32(at)) {
    if (String.fromCharCode(...bytes.subarray(at + 4, at + 8)) !== "PLTE") continue;
    const parts = bytes.subarray(at + 8, at + 8 + view.getUint32(at));
    return Array.from({ length: parts.length / 3 }, (_, k) => [...parts.subarray(3 * k, 3 * k + 3)]);
  }
  return [];
}

const key = (red, green, blue) => (red << 16) | (green << 8) | blue;

function showMask(answer) {
  const names = Object.keys(answer.areas);
  return paint("mask", answer.mask, ({ data, width, height }, bytes) => {
    const drawn = new Set(readPalette(bytes).filter((colour, k) => key(...colour) && names[k] && !state.hidden.has(names[k])).map((colour) => key(...colour)));
    const colours = new Int32Array(width * height);
    for (let k = 0; k < colours.length; k += 1) colours[k] = key(data[4 * k], data[4 * k + 1], data[4 * k + 2]);
    for (let k = 0; k < colours.length; k += 1) {
      const column = k % width;
      const edge = (column && colours[k - 1] !== colours[k]) || (column < width - 1 && colours[k + 1] !== colours[k])
        || (k >= width && colours[k - width] !== colours[k]) || (k < colours.length - width && colours[k + width] !== colours[k]);
      data[4 * k + 3] = drawn.has(colours[k]) ? (edge ? 255 : 140) : 0;
    }
  });
}

function colourOf(name) {
  const place = champion()?.classes.indexOf(name) ?? 0;
  return CLASS_COLOURS[Math.max(0, place) % CLASS_COLOURS.length];
}

const isBright = (colour) => [1, 3, 5].reduce((sum, at, k) => sum + [0.299, 0.587, 0.114][k] * parseInt(colour.slice(at, at + 2), 16), 0) > 128;

function showBoxes(item, ask) {
  const holder = make("div", { class: "boxes", "aria-hidden": "true" });
  item.asks.filter((one) => one.box).forEach((one) => {
    const node = make("div", { class: one === ask ? "now" : "asked" });
    place(node, one.box, item.size);
    holder.append(node);
  });
  const objects = state.layers.boxes.on ? ask?.answer?.objects ?? [] : [];
  objects.forEach((one, number) => {
    if (state.hidden.has(one.label)) return;
    const colour = colourOf(one.label), name = make("span", {}, `${one.label} ${percent(one.confidence)}`);
    const node = make("div", { "data-object": String(number) }, name);
    Object.assign(name.style, { background: colour, color: isBright(colour) ? "#000" : "#fff" });
    node.style.borderColor = colour;
    node.classList.toggle("under", one.box[1] < 0.05 * item.size[1]);
    node.classList.toggle("left", one.box[0] > 0.8 * item.size[0]);
    place(node, one.box, item.size);
    holder.append(node);
  });
  return holder;
}

function drawOn(stage, item) {
  let start = null, node = null;
  const at = (event) => {
    const frame = stage.getBoundingClientRect();
    const share = (value, from, length) => Math.max(0, Math.min(1, (value - from) / length));
    return [Math.round(share(event.clientX, frame.left, frame.width) * item.size[0]), Math.round(share(event.clientY, frame.top, frame.height) * item.size[1])];
  };
  const box = (event) => {
    const [x, y] = at(event);
    return [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
  };
  stage.classList.add("draw");
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    start = at(event);
    node = make("div", { class: "now" });
    stage.querySelector(".boxes").append(node);
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => { if (start) place(node, box(event), item.size); });
  stage.addEventListener("pointercancel", () => { node?.remove(); start = null; });
  stage.addEventListener("pointerup", (event) => {
    if (!start) return;
    const drawn = box(event);
    start = null;
    node.remove();
    if (drawn[2] - drawn[0] >= 2 && drawn[3] - drawn[1] >= 2) addAsk(item, drawn);
  });
}

function showCorners(item) {
  const [wide, high] = item.size ?? [1, 1], half = [wide / 4, high / 4, (3 * wide) / 4, (3 * high) / 4].map(Math.round);
  const names = ["left", "top", "right", "bottom"], last = item.asks[item.at]?.box ?? half;
  const fields = names.map((name, k) => make("input", { type: "number", id: `corner-${name}`, min: "0", max: String(k % 2 ? high : wide), required: true, value: String(last[k]) }));
  const send = (event) => { event.preventDefault(); addAsk(item, fields.map((field) => Number(field.value))); };
  return make("form", { onsubmit: send, "aria-label": "A box in numbers" },
    make("p", { class: "quiet" }, "Draw a box on the image with mouse or finger, or give its corners in pixels:"),
    make("div", { class: "corners" }, ...names.map((name, k) => make("label", {}, name, fields[k])), make("button", { class: "button", type: "submit" }, "Ask about the box")),
    make("button", { type: "button", class: "plain", onclick: () => addAsk(item, null, true) }, "The whole image is one crop: ask about all of it"));
}

function showTabs(item) {
  if (item.asks.length < 2) return null;
  const name = (ask, k) => `${k + 1}: ${summarise(ask)[0]}`;
  return make("div", { class: "tabs" }, ...item.asks.map((ask, k) => make("button", {
    type: "button", "aria-current": String(k === item.at), onclick: () => { item.at = k; showAll(); },
  }, name(ask, k))));
}

function showTools(item, ask) {
  const answer = ask?.answer;
  if (!answer || !item.size) return null;
  const parts = [];
  const enlarge = (event) => { state.full = event.target.checked; showDetail(); find("full").focus(); };
  if (item.size[0] > LARGE || item.size[1] > LARGE) parts.push(make("label", {}, make("input", { type: "checkbox", id: "full", checked: state.full, onchange: enlarge }), " Every pixel"));
  if (answer.saliency) parts.push(...showLayer("saliency", "Saliency"), make("span", { class: "quiet" }, make("span", { class: "ramp", "aria-hidden": "true" }), " brighter parts speak for the answer"));
  if (answer.mask) parts.push(...showLayer("mask", "Masks"));
  if (answer.objects?.length) parts.push(...showLayer("boxes", "Boxes"));
  return make("div", {}, make("div", { class: "tools" }, ...parts), showLegend(answer));
}

function showLayer(name, title) {
  const layer = state.layers[name];
  const redraw = () => document.querySelectorAll(`.stage .${name}`).forEach((node) => { node.hidden = !layer.on; if (layer.strength) node.style.opacity = layer.strength; });
  const box = make("input", { type: "checkbox", id: `layer-${name}`, checked: layer.on, onchange: (event) => { layer.on = event.target.checked; if (name === "boxes") redrawStage(); else redraw(); } });
  const parts = [make("label", {}, box, ` ${title}`)];
  if (layer.strength !== undefined) {
    const slider = make("input", { type: "range", min: "0.1", max: "1", step: "0.05", value: String(layer.strength), "aria-label": `Opacity of ${title.toLowerCase()}`,
      oninput: (event) => { layer.strength = Number(event.target.value); redraw(); } });
    parts.push(slider);
  }
  return parts;
}

function redrawStage() {
  const item = state.chosen;
  document.querySelector("#detail .stage").replaceWith(showStage(item, item.asks[item.at]));
}

function listClasses(answer) {
  if (answer.areas) {
    const palette = answer.mask ? readPalette(Uint8Array.from(atob(answer.mask), (letter) => letter.charCodeAt(0))) : [];
    return Object.keys(answer.areas).map((name, k) => [name, palette[k] ?? [0, 0, 0]]).filter(([name, colour]) => key(...colour) && answer.areas[name])
      .map(([name, colour]) => [name, `rgb(${colour.join(",")})`]);
  }
  return [...new Set((answer.objects ?? []).map((one) => one.label))].map((name) => [name, colourOf(name)]);
}

function swatch(colour) {
  const node = make("i", { "aria-hidden": "true" });
  node.style.background = colour;
  return node;
}

function showLegend(answer) {
  const classes = listClasses(answer);
  if (!classes.length) return null;
  const toggle = (name) => (event) => {
    if (!state.hidden.delete(name)) state.hidden.add(name);
    event.currentTarget.setAttribute("aria-pressed", String(!state.hidden.has(name)));
    redrawStage();
  };
  return make("ul", { class: "legend", "aria-label": "Classes drawn" }, ...classes.map(([name, colour]) =>
    make("li", {}, make("button", { type: "button", "aria-pressed": String(!state.hidden.has(name)), onclick: toggle(name) }, swatch(colour), name))));
}

// ---- answers in words ----

function showAnswer(item, ask) {
  if (!ask) return [make("h2", {}, "Draw a box"), make("p", {}, "This champion answers for what is inside a box.")];
  if (ask.status === "failed") return [showError(ask.error), showRequest(item, ask)];
  if (ask.status !== "done") return [make("p", { class: ask.status === "asking" ? "busy" : "quiet" }, ask.status === "asking" ? "Asking" : "Waiting")];
  const answer = ask.answer;
  return [...showHead(answer), ...(answer.warnings ?? []).map((text) => make("p", { class: "warning" }, text)), showChances(answer), showAreas(answer), showObjects(answer),
    showFacts(item, ask), showRequest(item, ask)].filter(Boolean);
}

function showError(error) {
  const record = error.record, status = error.status ? ` (status ${error.status})` : "";
  const facts = ["expected", "found", "hint"].filter((name) => record[name]);
  const told = facts.length > 1 ? [make("p", {}, record.what ?? ""), make("dl", {}, ...facts.flatMap((name) => [make("dt", {}, name), make("dd", {}, record[name])]))]
    : [make("p", {}, [record.message, record.hint].filter(Boolean).join(" "))];
  return make("div", { class: "failed", role: "alert" }, make("h3", {}, `No answer${status}`), ...told);
}

function showHead(answer) {
  if (!answer.abstained) return [make("h2", {}, answer.objects ? (answer.objects.length ? count(answer.objects.length, "object") : "Nothing found") : answer.areas ? answer.label : describeAnswer(answer))];
  const chances = Object.entries(answer.probabilities ?? {}).sort((a, b) => b[1] - a[1]);
  const best = chances.length ? ` Most probable: ${chances[0][0]}, ${percent(chances[0][1])}.` : "";
  return [make("h2", {}, "No answer"), make("p", { class: "warning" }, `The champion abstains: it is not sure enough of this image, so a person has to look.${best}`)];
}

function bar(share) {
  const inner = make("span");
  inner.style.width = `${100 * share}%`;
  return make("span", { class: "bar", "aria-hidden": "true" }, inner);
}

function showChances(answer) {
  if (!answer.probabilities) return null;
  const rows = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  const said = new Set(answer.labels ?? [answer.label]);
  const row = ([name, share]) => make("tr", { class: said.has(name) ? "said" : "" }, make("td", {}, name), make("td", {}, bar(share)), make("td", {}, percent(share)));
  const table = (some) => make("table", { class: "chance" }, make("tbody", {}, ...some.map(row)));
  const more = rows.length > MOST_ROWS ? make("details", {}, make("summary", {}, `All ${rows.length} classes`), table(rows.slice(MOST_ROWS))) : null;
  return make("div", {}, make("h3", {}, "Probabilities"), table(rows.slice(0, MOST_ROWS)), more);
}

function tabulate(title, heads, rows) {
  return make("div", {}, make("h3", {}, title), make("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": title },
    make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, ...rows))));
}

function showAreas(answer) {
  if (!answer.areas) return null;
  const whole = Object.values(answer.areas).reduce((sum, area) => sum + area, 0), colours = new Map(listClasses(answer));
  const rows = Object.entries(answer.areas).filter(([, area]) => area).sort((a, b) => b[1] - a[1]).map(([name, area]) =>
    make("tr", {}, make("td", {}, colours.has(name) ? swatch(colours.get(name)) : null, name), make("td", {}, percent(area / whole)), make("td", {}, area.toLocaleString("en"))));
  const regions = answer.components ?? [];
  const parts = regions.slice(0, MOST_REGIONS).map((one) => make("tr", {}, make("td", {}, one.label), make("td", {}, percent(one.confidence)), make("td", {}, one.area.toLocaleString("en")), make("td", {}, one.box.join(" "))));
  return make("div", {}, tabulate("Areas", ["class", "share", "pixels"], rows), parts.length ? tabulate(parts.length < regions.length ? `The first ${parts.length} of ${regions.length} regions` : count(parts.length, "region"), ["class", "confidence", "pixels", "box"], parts) : null);
}

function showObjects(answer) {
  if (!answer.objects?.length) return null;
  const light = (number, on) => document.querySelector(`.boxes [data-object="${number}"]`)?.classList.toggle("lit", on);
  const rows = answer.objects.map((one, number) => make("tr", {
    tabIndex: 0, onmouseenter: () => light(number, true), onmouseleave: () => light(number, false), onfocus: () => light(number, true), onblur: () => light(number, false),
  }, make("td", {}, swatch(colourOf(one.label)), one.label), make("td", {}, percent(one.confidence)), make("td", {}, one.box.map((value) => Math.round(value)).join(" "))));
  const counts = Object.entries(answer.counts ?? {}).filter(([, number]) => number).map(([name, number]) => `${number} ${name}`).join(", ");
  return make("div", {}, make("p", {}, counts), tabulate("Objects", ["class", "confidence", "box"], rows));
}

function showFacts(item, ask) {
  const answer = ask.answer;
  const facts = {
    image: `${item.name}${item.size ? `, ${item.size.join(" × ")} px` : ""}`, domain: `${answer.domain}, version ${answer.version}`, adapter: answer.adapter_sha256,
    box: answer.box && answer.box.join(" "), "cut out": answer.crop && answer.crop.join(" "), time: `${(1000 * ask.seconds).toFixed(0)} ms, there and back`, request: answer.id,
  };
  return make("div", {}, make("h3", {}, "Where it comes from"), make("dl", {}, ...Object.entries(facts).filter(([, text]) => text).flatMap(([name, text]) =>
    [make("dt", {}, name), make("dd", {}, name === "adapter" ? make("code", { title: text }, text.slice(0, 16)) : text)])));
}

function showRequest(item, ask) {
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const token = state.token ? ' -H "Authorization: Bearer $TOKEN"' : "";
  const line = `curl${token} --data-binary @${quote(item.name)} ${quote(new URL(ask.path, document.baseURI).href)}`;
  const short = (_, value) => (typeof value === "string" && value.length > 200 ? `${value.slice(0, 24)}… (${value.length} characters)` : value);
  const body = ask.answer ?? { error: ask.error.record };
  return make("div", {}, showText("As a command", line, line), showText("As JSON", JSON.stringify(body, short, 1), JSON.stringify(body, null, 1)));
}

function showText(title, shown, whole) {
  const copy = (event) => navigator.clipboard?.writeText(whole).then(() => { event.target.textContent = "Copied"; });
  const button = navigator.clipboard ? make("button", { type: "button", class: "plain", onclick: copy }, "Copy") : null;
  const holder = make("details", { open: opened.has(title), ontoggle: () => { if (holder.open) opened.add(title); else opened.delete(title); } },
    make("summary", {}, title), make("pre", {}, shown), button);
  return holder;
}

const opened = new Set(); // titles of what the reader has unfolded

// ---- the page ----

function listen() {
  find("domain").addEventListener("change", (event) => chooseDomain(event.target.value));
  find("files").addEventListener("change", (event) => { addFiles(event.target.files); event.target.value = ""; });
  find("again").addEventListener("click", () => { state.items.forEach(begin); showAll(); pump(); });
  find("clear").addEventListener("click", () => {
    state.items.forEach((item) => { URL.revokeObjectURL(item.url); item.asks = []; });
    Object.assign(state, { items: [], chosen: null });
    showAll();
    find("files").focus();
  });
  find("list").addEventListener("keydown", moveInList);
  find("login").addEventListener("close", () => { if (find("token").value) { keepToken(find("token").value.trim()); loadChampions().then(pump); } });
  find("forget").addEventListener("click", () => { keepToken(""); loadChampions(); });
  document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) { event.preventDefault(); addFiles(event.clipboardData.files); } });
  listenToDrops();
  window.addEventListener("hashchange", () => { const name = decodeURIComponent(location.hash.slice(1)); if (state.champions.some((one) => one.domain === name)) { find("domain").value = name; chooseDomain(name); } });
}

function listenToDrops() {
  let depth = 0;
  const over = (on) => { find("over").hidden = !on; };
  const hasFiles = (event) => [...event.dataTransfer.types].includes("Files");
  document.addEventListener("dragenter", (event) => { if (hasFiles(event)) { depth += 1; over(true); } });
  document.addEventListener("dragleave", (event) => { if (hasFiles(event)) { depth -= 1; over(depth > 0); } });
  document.addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => { if (!hasFiles(event)) return; event.preventDefault(); depth = 0; over(false); addFiles(event.dataTransfer.files); });
}

keepToken(state.token);
listen();
showAbout();
loadChampions();
setInterval(() => { if (!document.hidden && !find("login").open) loadChampions(); }, POLL);
