// The page: puts studies, viewer and server together, and says what was found in plain words.

import { Api, LostError } from "./api.js";
import { Study } from "./study.js";
import { Viewer } from "./viewer.js";

// Okabe and Ito's colours, distinct to colour-blind readers; the same order as in the overlays that are written.
const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2", "#ffffff"];
const FORMATS = {
  png: "PNG, label map", overlay: "PNG, overlay", nifti: "NIfTI", nrrd: "NRRD", mha: "MetaImage", seg: "DICOM SEG",
  rtstruct: "DICOM RTSTRUCT", coco: "COCO JSON", csv: "CSV, measures", json: "JSON, measures", mp4: "MP4, overlay",
  montage: "PNG, montage", planes: "PNG, three planes",
};
const KEYS = [
  ["/", "name what you are looking for"], ["p  n", "click on, click off the object"], ["b  s  h", "box, scribble, move the picture"],
  ["Ctrl+Z", "undo"], ["Ctrl+Shift+Z", "redo"], ["PageUp PageDown", "slice before, slice after"], ["wheel", "slices; with Ctrl, or in a picture: zoom"],
  ["+  −  0", "larger, smaller, whole picture"], ["m", "hide or show masks"], ["g", "follow the object through slices"],
  ["Delete", "remove the chosen object"], ["x", "begin a new object with the next click"],
  ["arrows, Enter", "on the image: move the cross (Shift: by 10), use the tool there"], ["t", "light or dark"], ["?", "these keys"],
];
const byId = (name) => document.getElementById(name);
const state = { studies: [], study: null, isBusy: false, job: null, bitmaps: new Map(), samples: [] };
const api = new Api(askToken, lost);
const viewer = new Viewer(byId("canvas"), {
  click: (u, v) => draw({ do: "click", positive: viewer.tool !== "minus" }, [[u, v]]),
  scribble: (points) => draw({ do: "scribble", positive: true }, points),
  box: (u0, v0, u1, v1) => draw({ do: "box" }, [[u0, v0], [u1, v1]]),
  wheel: (steps) => Boolean(state.study?.isStack) && (toFrame(state.study.frame + steps), true),
  place: showPlace,
});

function element(tag, about = {}, ...children) {
  const made = Object.assign(document.createElement(tag), about);
  made.append(...children);
  return made;
}

function say(error) {
  byId("error").hidden = !error;
  byId("error").textContent = error instanceof LostError ? "The server does not answer." : error?.message ?? "";
}

// Runs one piece of work at a time, with a word on what is being done; an error becomes a line.
async function during(text, work) {
  if (state.isBusy) return false;
  state.isBusy = true;
  showButtons();
  say(null);
  byId("busy-text").textContent = text;
  byId("busy-bar").removeAttribute("value");
  const shown = setTimeout(() => { byId("busy").hidden = false; }, 250);
  try {
    await work();
    return true;
  } catch (error) {
    say(error);
    return false;
  } finally {
    clearTimeout(shown);
    Object.assign(state, { isBusy: false, job: null });
    byId("busy").hidden = byId("cancel").hidden = true;
    showButtons();
  }
}

function jobTold(told) {
  state.job = told.id;
  byId("cancel").hidden = false;
  if (told.count) byId("busy-bar").value = told.done / told.count;
}

// ---- images

async function open(source, phrase) {
  let study = null;
  await during("opening", async () => {
    byId("uploading").hidden = !source.form;
    try {
      study = await Study.open(api, source, (share) => { byId("uploading").value = share; });
    } finally {
      byId("uploading").hidden = true;
    }
    study.colours = new Map();
    state.studies.unshift(study);
    study.thumbnail = URL.createObjectURL(await (await api.request("GET", `${study.path}/thumbnail.png`)).blob());
    await choose(study);
  });
  if (study && phrase) {
    byId("phrase").value = phrase;
    await find(phrase);
  }
}

async function choose(study) {
  state.study = study;
  state.bitmaps.clear();
  showPlace(null);
  showImages();
  const { about } = study;
  byId("slices").hidden = byId("only-here-part").hidden = !study.isStack;
  byId("propagate").hidden = !study.isStack;
  const what = about.kind === "video" ? "frame" : "slice";
  byId("slices").querySelector("label").textContent = what[0].toUpperCase() + what.slice(1);
  byId("only-here").nextSibling.textContent = ` on this ${what} only`;
  byId("propagate").textContent = `Follow through ${what}s`;
  byId("slice").max = about.frames - 1;
  byId("window-part").hidden = !about.windows.length;
  byId("window").replaceChildren(element("option", { value: "", textContent: "automatic" }), ...about.windows.map((name) => element("option", { value: name, textContent: name })));
  byId("window").value = study.window;
  const letters = about.display.letters ?? ["", "", "", ""];
  ["left", "right", "top", "bottom"].forEach((edge, k) => { byId(`edge-${edge}`).textContent = letters[k]; });
  const fitting = Object.entries(FORMATS).filter(([name]) => about.frames > 1 || !["mp4", "montage", "planes"].includes(name));
  byId("format").replaceChildren(...fitting.map(([name, title]) => element("option", { value: name, textContent: title })));
  byId("format").value = about.kind === "volume" ? "nifti" : about.kind === "video" ? "coco" : "overlay";
  await showFrame(false);
  showFound();
}

async function removeStudy(study) {
  await api.request("DELETE", study.path).catch(() => {});
  state.studies = state.studies.filter((one) => one !== study);
  URL.revokeObjectURL(study.thumbnail);
  if (state.study !== study) { showImages(); return; }
  state.study = null;
  viewer.show(null);
  viewer.setMasks([]);
  showImages();
  showFound();
  if (state.studies.length) await during("opening", () => choose(state.studies[0]));
}

function showImages() {
  byId("images").replaceChildren(...state.studies.map((study) => {
    const { about } = study;
    const detail = about.frames > 1 ? `${about.frames} ${about.kind === "video" ? "frames" : "slices"}` : `${about.width} × ${about.height}`;
    const button = element("button", { type: "button", className: "open", title: about.name, onclick: () => during("opening", () => choose(study)) },
      element("img", { src: study.thumbnail ?? "", alt: "" }),
      element("span", { className: "text" }, element("span", { className: "name", textContent: about.name }), element("small", { textContent: detail })));
    if (study === state.study) button.setAttribute("aria-current", "true");
    const away = element("button", { type: "button", className: "quiet", textContent: "×", title: `Remove ${about.name}`, onclick: () => removeStudy(study) });
    away.setAttribute("aria-label", `Remove ${about.name}`);
    return element("li", {}, button, away);
  }));
}

function openFiles(files) {
  if (!files.length) return;
  const form = new FormData();
  for (const file of files) form.append("files", file, file.webkitRelativePath || file.relative || file.name);
  open({ form });
}

// All files of what was dropped, folders among it.
async function droppedFiles(items) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      file.relative = entry.fullPath.slice(1);
      if (!file.name.startsWith(".")) files.push(file);
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return;
      for (const one of some) await walk(one);
    }
  };
  for (const entry of entries) await walk(entry);
  return files;
}

async function showData(path = "") {
  const entries = await api.json("GET", `/v1/data?path=${encodeURIComponent(path)}`);
  byId("data-part").hidden = !entries.length && !path;
  const lines = entries.map((entry) => element("li", {}, element("button", {
    type: "button", textContent: entry.is_folder ? `${entry.name}/` : entry.name, title: entry.is_folder ? "Look into the folder; with Shift open it as one series" : "Open",
    onclick: (event) => (entry.is_folder && !event.shiftKey ? showData(entry.path) : open({ data: entry.path })),
  })));
  if (path) {
    const above = path.split("/").slice(0, -1).join("/");
    lines.unshift(
      element("li", {}, element("button", { type: "button", textContent: "↑ back", onclick: () => showData(above) })),
      element("li", {}, element("button", { type: "button", textContent: "Open this folder as a series", onclick: () => open({ data: path }) })),
    );
  }
  byId("data").replaceChildren(...lines);
}

// ---- frames and masks

async function showFrame(isSameImage = true) {
  const study = state.study;
  const { frame, window } = study;
  byId("slice").value = frame;
  byId("slice-number").textContent = `${frame + 1} of ${study.about.frames}`;
  const key = `${frame} ${window}`;
  const bitmap = state.bitmaps.get(key) ?? await study.picture();
  if (state.study !== study) return;
  state.bitmaps.set(key, bitmap);
  if (state.bitmaps.size > 64) state.bitmaps.delete(state.bitmaps.keys().next().value);
  if (study.frame !== frame) return;
  viewer.show(bitmap, isSameImage);
  viewer.setMarks(study.marks());
  showScale();
  await showMasks();
}

async function showMasks() {
  const study = state.study;
  const { frame } = study;
  const answer = state.job ? null : await study.masks(); // the model is at work, and would answer only afterwards
  if (state.study !== study || study.frame !== frame) return;
  viewer.setMasks((answer?.masks ?? []).map((mask) => ({
    ...mask, width: answer.width, height: answer.height, colour: colourOf(mask.concept), isCurrent: mask.number === study.found.current,
  })));
  viewer.setMarks(study.marks());
}

let wanted = null;
async function toFrame(frame) {
  const study = state.study;
  if (!study) return;
  study.frame = Math.min(Math.max(frame, 0), study.about.frames - 1);
  if (wanted) { wanted = study.frame; return; }
  for (wanted = study.frame; ;) {
    const now = study.frame;
    await showFrame().catch(say);
    if (state.study !== study || study.frame === now) break;
  }
  wanted = null;
}

function colourOf(concept) {
  const { colours } = state.study;
  if (!colours.has(concept)) colours.set(concept, COLOURS[colours.size % COLOURS.length]);
  return colours.get(concept);
}

function showPlace(at) {
  const study = state.study;
  byId("place").textContent = at && study ? `x ${study.toFile(at)[0].toFixed(0)}  y ${study.toFile(at)[1].toFixed(0)}` : "";
}

function showScale() {
  const millimetres = state.study?.about.display.pixel_mm;
  byId("scale").hidden = !millimetres;
  if (!millimetres) return;
  const perMm = viewer.fit().scale / (window.devicePixelRatio || 1) / millimetres;
  const length = [1, 2, 5, 10, 20, 50, 100, 200].findLast((one) => one * perMm <= 140) ?? 1;
  byId("scale").querySelector("i").style.width = `${length * perMm}px`;
  byId("scale").querySelector("b").textContent = length >= 10 ? `${length / 10} cm` : `${length} mm`;
}

// ---- steps

async function act(text, step) {
  const study = state.study;
  if (!study) return false;
  return during(text, async () => {
    await study.step(step, jobTold);
    state.job = null;
    const fullest = study.found.concepts.findLast((one) => Number.isInteger(one.fullest_frame))?.fullest_frame;
    if (step.do === "segment" && study.isStack && step.frame === undefined && Number.isInteger(fullest)) study.frame = fullest;
    await showFrame();
    showFound();
  });
}

async function find(phrase) {
  const study = state.study;
  if (!study || !phrase.trim()) return;
  const isHere = study.isStack && byId("only-here").checked;
  const step = { do: "segment", phrase: phrase.trim() };
  if (isHere) step.frame = study.frame;
  if (await act(`looking for ${step.phrase}`, step)) byId("phrase").select();
}

function draw(step, points) {
  const study = state.study;
  if (!study) return;
  const inFile = points.map((point) => study.toFile(point));
  const [[x0, y0]] = inFile;
  if (step.do === "click") Object.assign(step, { x: x0, y: y0 });
  else if (step.do === "scribble") step.points = inFile;
  else {
    const [x1, y1] = inFile[1];
    step.box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
  }
  if (study.isStack) step.frame = study.frame;
  const mark = { kind: step.do === "box" ? "box" : step.positive ? "plus" : "minus", points, frame: study.frame };
  Object.defineProperty(step, "mark", { value: mark }); // not sent
  act("drawing", step);
}

// ---- what was found, in words

function sentence(one) {
  if (!one.phrase) return `${counted(one.objects)}.`;
  const percent = one.presence === null ? "" : ` (presence ${Math.round(one.presence * 100)}\u00a0%)`;
  if (one.objects && one.is_present === false) return `Not sure: the model says that it is not there${percent}, but ${counted(one.objects)} found.`;
  if (!one.objects && one.is_present) return `Not sure: it seems to be there${percent}, but no outline was found.`;
  if (!one.objects) return `The image does not show it${percent}.`;
  if (one.verdict === "not sure") return `Not sure whether the image shows it${percent}: ${counted(one.objects)}.`;
  return `The image shows it${percent}: ${counted(one.objects)}.`;
}

function counted(count) {
  return count === 1 ? "1 object" : `${count} objects`;
}

function sizeOf(one) {
  const short = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });
  if (Number.isFinite(one.volume_ml)) return `${short(one.volume_ml)} mL`;
  if (Number.isFinite(one.area_mm2)) return `${short(one.area_mm2)} mm²`;
  return `${one.pixels.toLocaleString("en")} px`;
}

// Of a picture, how much of it is covered.
function shareOf(one) {
  const { frames, width, height } = state.study.about;
  return frames > 1 ? "" : `, ${((100 * one.pixels) / (width * height)).toPrecision(2)}\u00a0% of the image`;
}

function showFound() {
  const study = state.study;
  const concepts = study?.found.concepts ?? [];
  const scrolled = [...document.querySelectorAll(".objects")].map((list) => list.scrollTop);
  byId("found").replaceChildren(...(concepts.length ? concepts.map(conceptLine) : [element("li", { className: "empty", textContent: "Nothing yet. Name what you look for, or draw a box around it." })]));
  document.querySelectorAll(".objects").forEach((list, k) => { list.scrollTop = scrolled[k] ?? 0; });
  showButtons();
}

function conceptLine(one) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = colourOf(one.phrase);
  const line = element("li", {}, element("h3", {}, swatch, one.phrase || "Drawn by hand"), element("p", { className: "said", textContent: sentence(one) }));
  if (one.presence !== null) {
    const fill = element("i");
    fill.style.width = `${Math.round(one.presence * 100)}%`;
    const bar = element("div", { className: one.verdict === "yes" ? "bar yes" : "bar" }, fill);
    bar.setAttribute("role", "meter");
    bar.setAttribute("aria-valuenow", String(Math.round(one.presence * 100)));
    bar.setAttribute("aria-label", "Presence in percent");
    line.append(bar);
  }
  if (one.read_as) line.append(element("p", { className: "note", textContent: `Read as “${one.read_as}”.` }));
  if (one.is_taught === false) line.append(element("p", { className: "note", textContent: "Not taught to this model: the answer is a guess." }));
  if (one.objects) line.append(element("p", { className: "size", textContent: `Together ${sizeOf(one)}${shareOf(one)}` }));
  line.append(element("ul", { className: "objects" }, ...state.study.found.objects.filter((object) => object.concept === one.phrase).map(objectLine)));
  return line;
}

function objectLine(object, k) {
  const { about, found, isStack } = state.study;
  const what = about.kind === "video" ? "frame" : "slice";
  const [first, last] = [object.first_frame + 1, object.last_frame + 1];
  const range = !isStack || object.first_frame === null ? "" : first === last ? `, ${what} ${first}` : `, ${what}s ${first} to ${last}`;
  const pick = element("button", {
    type: "button", className: "pick", textContent: `${k + 1}: ${sizeOf(object)}, score ${object.score.toFixed(2)}${range}`, title: "Choose: the next click corrects it",
    onclick: async () => {
      if (isStack && object.first_frame !== null && (state.study.frame < object.first_frame || state.study.frame > object.last_frame)) state.study.frame = object.first_frame;
      await act("choosing", { do: "select", object: found.current === object.number ? null : object.number });
    },
  });
  pick.setAttribute("aria-pressed", String(found.current === object.number));
  const away = element("button", { type: "button", className: "quiet", textContent: "×", onclick: () => act("removing", { do: "remove", object: object.number }) });
  away.setAttribute("aria-label", `Remove object ${k + 1}`);
  return element("li", {}, pick, away);
}

function showButtons() {
  const study = state.study;
  byId("undo").disabled = state.isBusy || !study?.canUndo;
  byId("redo").disabled = state.isBusy || !study?.canRedo;
  byId("reset").disabled = byId("propagate").disabled = state.isBusy || !study?.found.objects.length;
  for (const name of ["take", "copy-shell", "copy-python"]) byId(name).disabled = state.isBusy || !study?.done.length;
}

// ---- concepts, server, settings

let asking = 0;
async function complete() {
  const text = byId("phrase").value;
  const mine = ++asking;
  await new Promise((resolve) => setTimeout(resolve, 150));
  if (mine !== asking) return;
  const concepts = await api.json("GET", `/v1/concepts?q=${encodeURIComponent(text)}`).catch(() => null);
  if (!concepts || mine !== asking) return;
  byId("concepts").replaceChildren(...concepts.filter((one) => one.is_taught !== false).map((one) => element("option", { value: one.name })));
  const wantedName = text.trim().toLowerCase();
  const exact = concepts.find((one) => [one.name, ...one.synonyms].some((name) => name.toLowerCase() === wantedName));
  byId("known").textContent = !wantedName ? "" : exact?.is_taught === false ? "Known, but not taught to this model."
    : !exact ? (concepts.length ? "" : "Not in the list: it may be asked for, the answer is then a guess.")
    : exact.name.toLowerCase() === wantedName ? "Taught to this model." : `Another word for ${exact.name}.`;
}

async function showModel() {
  for (;;) {
    const [model] = await api.json("GET", "/v1/models").catch(() => [null]);
    byId("model").textContent = model ? `${model.is_ready ? "model" : "loading model"} ${model.name}` : "no server";
    if (model?.is_ready) { complete(); return; }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function lost(isLost) {
  byId("lost").hidden = !isLost;
  if (isLost) return;
  await during("taking up the work", async () => {
    for (const study of state.studies) await study.restore();
    if (state.study) { state.bitmaps.clear(); await showFrame(); showFound(); }
  });
  showModel();
}

// All requests that wait for a token wait for the same answer.
let tokenAsked = null;
function askToken() {
  tokenAsked ??= new Promise((resolve) => {
    const dialog = byId("token-dialog");
    dialog.oncancel = (event) => event.preventDefault();
    byId("token-form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close();
      tokenAsked = null;
      resolve(byId("token").value);
      byId("token").value = "";
    };
    dialog.showModal();
  });
  return tokenAsked;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  localStorage.setItem("theme", theme);
}

function setTool(tool) {
  viewer.tool = tool;
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-checked", String(button.dataset.tool === tool));
    button.tabIndex = button.dataset.tool === tool ? 0 : -1;
  }
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    byId("copied").textContent = "Copied.";
  } catch {
    byId("copied").textContent = text;
  }
}

function copyShell() {
  const corrected = state.study.standing().some((step) => ["click", "scribble", "remove", "propagate"].includes(step.do));
  copy(state.study.commandLine(byId("format").value)).then(() => {
    if (corrected) byId("copied").textContent += " Clicks and scribbles are not in it: copy as Python for all steps.";
  });
}

const onKey = {
  "/": () => byId("phrase").focus(), "?": () => byId("keys").showModal(), p: () => setTool("plus"), n: () => setTool("minus"), b: () => setTool("box"),
  s: () => setTool("scribble"), h: () => setTool("hand"), m: () => { viewer.isMaskShown = !viewer.isMaskShown; viewer.draw(); },
  g: () => byId("propagate").click(), t: () => byId("theme").click(), "+": () => viewer.magnify(1.25), "-": () => viewer.magnify(0.8),
  0: () => { viewer.zoom = 1; viewer.shift = [0, 0]; viewer.draw(); }, x: () => act("choosing", { do: "select", object: null }),
  Delete: () => Number.isInteger(state.study?.found.current) && act("removing", { do: "remove" }),
  PageUp: () => state.study && toFrame(state.study.frame - 1), PageDown: () => state.study && toFrame(state.study.frame + 1),
};

function keyed(event) {
  const isTyped = event.target.closest("input[type=text], input:not([type]), input[type=password], select, dialog");
  if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !isTyped) {
    event.preventDefault();
    byId(event.shiftKey ? "redo" : "undo").click();
  } else if (!isTyped && !event.ctrlKey && !event.metaKey && !event.altKey && onKey[event.key]) {
    event.preventDefault();
    onKey[event.key]();
  }
}

function listen() {
  byId("ask").onsubmit = (event) => { event.preventDefault(); find(byId("phrase").value); };
  byId("phrase").oninput = complete;
  byId("undo").onclick = () => act("undoing", { do: "undo" });
  byId("redo").onclick = () => act("doing again", { do: "redo" });
  byId("reset").onclick = () => act("beginning again", { do: "reset" });
  byId("propagate").onclick = () => act("following", { do: "propagate" });
  byId("cancel").onclick = () => state.job && api.request("DELETE", `/v1/jobs/${state.job}`).catch(say);
  byId("slice").oninput = () => toFrame(Number(byId("slice").value));
  byId("opacity").oninput = () => { viewer.opacity = Number(byId("opacity").value); viewer.draw(); };
  byId("window").onchange = () => during("showing another window", async () => {
    await state.study.setWindow(byId("window").value).finally(() => { byId("window").value = state.study.window; });
    await showFrame();
    showFound();
  });
  byId("take").onclick = () => during("writing", async () => {
    const { name, blob } = await state.study.takeAway(byId("format").value);
    const link = element("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  byId("copy-shell").onclick = copyShell;
  byId("copy-python").onclick = () => copy(state.study.python());
  byId("theme").onclick = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  byId("help").onclick = () => byId("keys").showModal();
  byId("pick-files").onclick = () => byId("files").click();
  byId("pick-folder").onclick = () => byId("folder").click();
  for (const name of ["files", "folder"]) byId(name).onchange = (event) => { openFiles([...event.target.files]); event.target.value = ""; };
  for (const button of document.querySelectorAll("[data-tool]")) button.onclick = () => setTool(button.dataset.tool);
  document.addEventListener("keydown", keyed);
  document.addEventListener("dragover", (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
  document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    openFiles(await droppedFiles(event.dataTransfer.items));
  });
  window.addEventListener("resize", () => viewer.bitmap && showScale());
  document.querySelector("[aria-label='What a click does']").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const buttons = [...document.querySelectorAll("[data-tool]")];
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    setTool(next.dataset.tool);
    next.focus();
  });
}

async function begin() {
  setTheme(localStorage.getItem("theme") ?? "dark");
  byId("key-list").replaceChildren(...KEYS.flatMap(([key, what]) => [element("dt", {}, element("kbd", { textContent: key })), element("dd", { textContent: what })]));
  listen();
  setTool("plus");
  showFound();
  showModel();
  complete();
  state.samples = await api.json("GET", "/v1/samples").catch(() => []);
  byId("samples-part").hidden = !state.samples.length;
  byId("samples").replaceChildren(...state.samples.map((one) => element("li", {}, element("button", {
    type: "button", textContent: one.title, title: `Open, and look for ${one.phrase}`, onclick: () => open({ sample: one.name }, one.phrase),
  }))));
  showData().catch(() => {});
  if (state.samples.length) await open({ sample: state.samples[0].name }, state.samples[0].phrase);
}

begin();
