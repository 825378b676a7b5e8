// The page: puts studies, stage, phrases and findings together, does one step at a time, and listens to the keys.

import { Agent } from "./agent.js";
import { Api, LostError } from "./api.js";
import { byId, element, partOf } from "./dom.js";
import { showFound } from "./found.js";
import { PhraseField } from "./phrase.js";
import { commandLine, python } from "./recipe.js";
import { Sources } from "./sources.js";
import { Stage } from "./stage.js";
import { round, Study } from "./study.js";

const FORMATS = {
  png: "PNG, label map", overlay: "PNG, overlay", nifti: "NIfTI", nrrd: "NRRD", mha: "MetaImage", seg: "DICOM SEG",
  rtstruct: "DICOM RTSTRUCT", coco: "COCO JSON", geojson: "GeoJSON", csv: "CSV, measures", json: "JSON, measures", mp4: "MP4, overlay",
  montage: "PNG, montage", planes: "PNG, three planes",
};
const OF_STACKS = ["mp4", "montage", "planes"];
const KEYS = [
  ["Asking", [["/", "name what you look for; several with commas"], ["Enter", "find it"], ["↑ ↓", "choose a known concept"]]],
  ["Correcting", [
    ["p n", "click on, click off the object"], ["b", "box around an object"], ["l", "box around an example: find all like it"], ["s", "scribble along the object"],
    ["e r", "brush, eraser"], ["[ ]", "smaller, larger brush"], ["x", "begin a new object with the next click"], ["Delete", "remove the chosen object"],
    ["g", "follow the object through slices"], ["Ctrl+Z", "undo; with Shift redo"],
  ]],
  ["Looking", [
    ["wheel PageUp PageDown", "slices; with Ctrl, or in a picture: zoom"], ["h", "move the picture; or with the middle button"],
    ["w", "drag the grey window; or with the right button"], ["v", "three planes or one"], ["+ − 0", "larger, smaller, whole"], ["m", "hide or show masks"], ["t", "light or dark"],
  ]],
  ["Without a mouse", [["arrows", "on the image: move the cross; with Shift by ten"], ["Enter", "use the tool there; of a box or line the first begins, the second ends"], ["Esc", "leave a box or line"]]],
];
const state = { studies: [], study: null, isBusy: false, isStopped: false, isLost: false, job: null, model: "mini" };
const api = new Api(askToken, lost);
const stage = new Stage({ draw, say });
const sources = new Sources(api, { open, choose: (study) => during("opening", () => choose(study)), remove: removeStudy });
const agent = new Agent(api, { study: () => state.study, during, job: jobTold, save, done: async () => { showSession(); await stage.show(null); } });
new PhraseField(api, find, findAll);

function say(error) {
  byId("error").hidden = !error;
  byId("error").textContent = error instanceof LostError ? "The server does not answer. What you drew is kept." : error?.message ?? "";
}

// Runs one piece of work at a time, with a word on what is being done; an error becomes a line.
async function during(text, work) {
  if (state.isBusy) return false;
  state.isBusy = true;
  showButtons();
  say(null);
  byId("one-plane").textContent = "";
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
    Object.assign(state, { isBusy: false, job: null, isStopped: false });
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
    state.studies.unshift(study);
    study.thumbnail = URL.createObjectURL(await (await api.request("GET", `${study.path}/thumbnail.png`)).blob());
    await choose(study);
  });
  if (study && phrase) {
    byId("phrase").value = phrase;
    await find([phrase]);
  }
}

async function choose(study) {
  state.study = study;
  sources.show(state.studies, study);
  byId("only-here-part").hidden = byId("propagate").hidden = !study?.isStack;
  if (study) {
    const { about } = study;
    byId("only-here").nextSibling.textContent = ` on this ${partOf(about)} only`;
    byId("propagate").title = `Follow the chosen object through the ${partOf(about)}s (g)`;
    const fitting = Object.entries(FORMATS).filter(([name]) => about.frames > 1 || !OF_STACKS.includes(name));
    byId("format").replaceChildren(...fitting.map(([name, title]) => element("option", { value: name, textContent: title })));
    byId("format").value = about.kind === "volume" ? "nifti" : about.kind === "video" ? "coco" : "overlay";
  }
  await stage.open(study);
  showSession();
}

async function removeStudy(study) {
  await api.request("DELETE", study.path).catch(() => {});
  state.studies = state.studies.filter((one) => one !== study);
  URL.revokeObjectURL(study.thumbnail);
  if (state.study !== study) showSession();
  else await during("opening", () => choose(state.studies[0] ?? null));
}

// ---- steps

// Does steps one after the other. What the server was lost at waits, and is done once it is back.
async function act(text, ...steps) {
  const { study } = state;
  if (!study) return false;
  return during(text, async () => {
    for (const [k, step] of steps.entries()) {
      try {
        study.isAtWork = true;
        await study.step(step, jobTold);
      } catch (error) {
        if (error instanceof LostError) study.waiting.push(...steps.slice(k));
        stage.showMarks();
        throw error;
      } finally {
        study.isAtWork = false;
      }
      state.job = null;
      await showStep(study, step);
    }
  });
}

async function showStep(study, step) {
  const fullest = study.found.concepts.findLast((one) => Number.isInteger(one.fullest_frame))?.fullest_frame;
  if (step.do === "segment" && study.isStack && step.frame === undefined && Number.isInteger(fullest)) study.frame = fullest;
  const isOnOne = ["click", "scribble", "box", "paint", "exemplar"].includes(step.do);
  showSession();
  await stage.show(isOnOne ? study.found.touched : null);
}

async function find(phrases) {
  const { study } = state;
  if (!study) return;
  const where = study.isStack && byId("only-here").checked ? { frame: study.frame } : {};
  const steps = phrases.map((phrase) => ({ do: "segment", phrase, ...where }));
  if (await act(`looking for ${phrases.join(", ")}`, ...steps)) byId("phrase").select();
}

// Asks all open images, one after the other; one that fails says so in the list, and the others go on.
async function findAll(phrases) {
  const { studies } = state;
  await during(`looking for ${phrases.join(", ")} in ${studies.length} images`, async () => {
    byId("cancel").hidden = false;
    for (const [k, study] of studies.entries()) {
      byId("busy-bar").value = k / studies.length;
      study.failed = null;
      try {
        for (const phrase of phrases) {
          if (state.isStopped) return;
          await study.step({ do: "segment", phrase }, (told) => { state.job = told.id; });
        }
      } catch (error) {
        if (error instanceof LostError) throw error;
        study.failed = error.message;
      } finally {
        state.job = null;
      }
      sources.show(state.studies, state.study);
    }
  });
  showSession();
  await stage.show(null);
}

function boxOf([[x0, y0], [x1, y1]]) {
  return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
}

// mark: { kind, points, frame, radius }, in pixels of the file.
function draw(mark) {
  const { study } = state;
  const points = mark.points.map((place) => place.map(round));
  const [[x, y]] = points;
  const step = {
    plus: () => ({ do: "click", x, y, positive: true }),
    minus: () => ({ do: "click", x, y, positive: false }),
    scribble: () => ({ do: "scribble", points, positive: true }),
    box: () => ({ do: "box", box: boxOf(points) }),
    example: () => ({ do: "exemplar", box: boxOf(points), positive: true, ...exemplified(study) }),
    brush: () => ({ do: "paint", points, radius: mark.radius, adding: true }),
    eraser: () => ({ do: "paint", points, radius: mark.radius, adding: false }),
  }[mark.kind]();
  step.frame = study.frame;
  if (step.do !== "paint") Object.defineProperty(step, "mark", { value: mark }); // not sent
  act(mark.kind === "example" ? "looking for all like it" : "drawing", step);
}

// The concept that an example is of: that of the chosen object, or what was asked for last.
function exemplified(study) {
  const current = study.found.objects.find((one) => one.number === study.found.current)?.concept;
  const phrase = current || study.found.concepts.findLast((one) => one.phrase)?.phrase;
  return phrase ? { phrase } : {};
}

// ---- what is shown

function showSession() {
  sources.show(state.studies, state.study);
  showFound(state.study, {
    act,
    goTo: (frame) => stage.goTo(frame),
    save: takeAway,
    toggle: (concept) => {
      const { hidden } = state.study;
      if (!hidden.delete(concept)) hidden.add(concept);
      showSession();
      stage.show(null).catch(say);
    },
  });
  showButtons();
}

function showButtons() {
  const { study, isBusy } = state;
  byId("undo").disabled = isBusy || !study?.canUndo;
  byId("redo").disabled = isBusy || !study?.canRedo;
  byId("reset").disabled = isBusy || !study?.found.concepts.length;
  byId("propagate").disabled = isBusy || !study?.found.objects.length;
  byId("find").disabled = byId("agent-begin").disabled = byId("window-model").disabled = isBusy || !study;
  for (const name of ["take", "copy-shell", "copy-python"]) byId(name).disabled = isBusy || !study?.done.length;
  const { studies } = state;
  byId("find-all").hidden = studies.length < 2;
  byId("find-all").textContent = `Find in all ${studies.length}`;
  byId("find-all").disabled = isBusy;
  const asked = studies.filter((one) => one.done.length);
  byId("take-all").hidden = asked.length < 2;
  byId("take-all").textContent = `Save all ${asked.length}`;
  byId("take-all").disabled = isBusy;
}

async function showModel() {
  for (;;) {
    const [model] = await api.json("GET", "/v1/models").catch(() => [null]);
    byId("model").textContent = model ? `${model.is_ready ? "Model" : "Loading model"} ${model.name}` : "";
    if (model) state.model = model.name;
    if (model?.is_ready) return;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function lost(isLost) {
  state.isLost = isLost;
  byId("lost").hidden = !isLost;
  if (isLost) return;
  while (state.isBusy) await new Promise((resolve) => setTimeout(resolve, 200)); // what was under way ends first
  await during("taking up the work", async () => {
    for (const study of state.studies) await study.restore(jobTold);
    stage.pictures.clear();
    state.job = null;
    showSession();
    await stage.show(null);
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

// ---- taking away

async function copy(text, more = "") {
  try {
    await navigator.clipboard.writeText(text);
    byId("copied").textContent = `Copied. ${more}`;
  } catch {
    byId("copied").textContent = text; // to be copied by hand
  }
}

function takeAway(result = null) {
  return during("writing", async () => {
    const { name, blob } = await state.study.takeAway(byId("format").value, result);
    save(name, blob);
  });
}

// The masks of all images that were asked, and a table, as one zip.
function takeAll() {
  return during("writing all", async () => {
    const kept = [];
    for (const study of state.studies) if (study.done.length) kept.push(await study.keep());
    const query = new URLSearchParams([...kept.map((one) => ["result", one]), ["format", byId("format").value]]);
    save("medsam3.zip", await (await api.request("GET", `/v1/results.zip?${query}`)).blob());
  });
}

function save(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- settings and keys

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  localStorage.setItem("theme", theme);
}

function setTool(tool) {
  stage.viewer.tool = tool;
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-checked", String(button.dataset.tool === tool));
    button.tabIndex = button.dataset.tool === tool ? 0 : -1;
  }
  byId("brush-part").hidden = tool !== "brush" && tool !== "eraser";
  byId("canvas").dataset.tool = tool;
  stage.viewer.draw();
}

function setRadius(radius) {
  stage.viewer.radius = Math.min(Math.max(radius, 1), 200);
  byId("radius").value = stage.viewer.radius;
  byId("radius-number").textContent = `${stage.viewer.radius} px`;
  stage.viewer.draw();
}

const onKey = {
  "/": () => byId("phrase").focus(), "?": () => byId("keys").showModal(), p: () => setTool("plus"), n: () => setTool("minus"), b: () => setTool("box"),
  l: () => setTool("example"), s: () => setTool("scribble"), e: () => setTool("brush"), r: () => setTool("eraser"), h: () => setTool("hand"),
  w: () => state.study?.seen && setTool("window"), v: () => stage.setLayout(!stage.planes?.hasThree), m: () => stage.setOpacity(stage.opacity, !stage.isShown),
  g: () => byId("propagate").click(), t: () => byId("theme").click(), "+": () => stage.viewer.magnify(1.25), "-": () => stage.viewer.magnify(0.8),
  0: () => stage.viewer.fitAll(), x: () => act("choosing", { do: "select", object: null }),
  "[": () => setRadius(Math.floor(stage.viewer.radius / 1.25)), "]": () => setRadius(Math.ceil(stage.viewer.radius * 1.25 + 0.1)),
  Delete: () => Number.isInteger(state.study?.found.current) && act("removing", { do: "remove" }),
  PageUp: () => state.study && stage.goTo(state.study.frame - 1), PageDown: () => state.study && stage.goTo(state.study.frame + 1),
  Home: () => state.study && stage.goTo(0), End: () => state.study && stage.goTo(state.study.about.frames - 1),
};

function keyed(event) {
  const isTyped = event.target.closest("input:not([type=range]):not([type=checkbox]):not([type=radio]), select, textarea, dialog");
  if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !isTyped) {
    event.preventDefault();
    byId(event.shiftKey ? "redo" : "undo").click();
  } else if (!isTyped && !event.ctrlKey && !event.metaKey && !event.altKey && onKey[event.key]) {
    event.preventDefault();
    onKey[event.key]();
  }
}

function listen() {
  byId("undo").onclick = () => act("undoing", { do: "undo" });
  byId("redo").onclick = () => act("doing again", { do: "redo" });
  byId("reset").onclick = () => act("beginning again", { do: "reset" });
  byId("propagate").onclick = () => act("following", { do: "propagate" });
  byId("cancel").onclick = () => {
    state.isStopped = true;
    if (state.job) api.request("DELETE", `/v1/jobs/${state.job}`).catch(say);
  };
  byId("radius").oninput = () => setRadius(Number(byId("radius").value));
  byId("window-model").onclick = () => during("asking again in this window", async () => {
    await state.study.setWindow(state.study.seenName, jobTold);
    state.job = null;
    showSession();
    await stage.show(null);
  });
  byId("take").onclick = () => takeAway();
  byId("take-all").onclick = takeAll;
  byId("copy-shell").onclick = () => {
    const { line, isWhole } = commandLine(state.study, state.model, byId("format").value);
    copy(line, isWhole ? "" : "Not all that was drawn can be said so; the Python has it.");
  };
  byId("copy-python").onclick = () => copy(python(state.study, state.model));
  byId("theme").onclick = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  byId("help").onclick = () => byId("keys").showModal();
  for (const button of document.querySelectorAll("[data-tool]")) button.onclick = () => setTool(button.dataset.tool);
  document.addEventListener("keydown", keyed);
  byId("tools").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const buttons = [...document.querySelectorAll("[data-tool]:not([hidden])")];
    const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
    setTool(next.dataset.tool);
    next.focus();
  });
}

function showKeys() {
  byId("key-list").replaceChildren(...KEYS.map(([title, keys]) => element("section", {}, element("h3", { textContent: title }), element("dl", {}, ...keys.flatMap(([key, what]) => [
    element("dt", {}, ...key.split(" ").map((one) => element("kbd", { textContent: one }))), element("dd", { textContent: what }),
  ])))));
}

async function begin() {
  setTheme(localStorage.getItem("theme") ?? "dark");
  showKeys();
  listen();
  setTool("plus");
  setRadius(6);
  showSession();
  showModel();
  sources.showData();
  agent.show();
  const samples = await sources.showSamples();
  if (samples.length && !state.studies.length) await open({ sample: samples[0].name }, samples[0].phrase);
}

begin();
