// What was found, in words and numbers: each phrase with its presence, each object with its size.

import { byId, COLOURS, counted, element, partOf, short } from "./dom.js";

// told: { act(text, step), goTo(frame), toggle(concept) }
export function showFound(study, told) {
  const concepts = study?.found.concepts ?? [];
  const scrolled = [...document.querySelectorAll(".objects")].map((list) => list.scrollTop);
  const empty = element("li", { className: "empty", textContent: study ? "Nothing yet. Name what you look for, or draw a box around it." : "Open an image to begin." });
  const lines = [...concepts.map((one) => conceptLine(study, one, told)), ...(study?.layers ?? []).map((layer) => layerLine(study, layer, told))];
  byId("found").replaceChildren(...(lines.length ? lines : [empty]));
  document.querySelectorAll(".objects").forEach((list, k) => { list.scrollTop = scrolled[k] ?? 0; });
}

export function sentence(one) {
  const objects = counted(one.objects, "object");
  if (!one.phrase) return `${objects}.`;
  if (one.objects && one.is_present === false) return `Not sure. The model says it is not there, but ${objects} found.`;
  if (!one.objects && one.is_present) return "Not sure. It seems to be there, but no outline was found.";
  if (!one.objects) return "The image does not show it.";
  return one.verdict === "not sure" ? `Not sure, it may be there: ${objects}.` : `The image shows it: ${objects}.`;
}

function conceptLine(study, one, told) {
  const name = one.phrase || "Drawn by hand";
  const swatch = swatchOf(study, one.phrase, name, told);
  const line = element("li", {}, element("h3", {}, swatch, name), element("p", { className: "said", textContent: sentence(one) }));
  if (one.presence !== null) line.append(presenceBar(one));
  const notes = [];
  if (one.read_as) notes.push(`Read as “${one.read_as}”.`);
  if (one.is_taught === false) notes.push("Not taught to this model: the answer is a guess.");
  if (notes.length) line.append(element("p", { className: "note", textContent: notes.join(" ") }));
  if (one.objects > 1) line.append(element("p", { className: "size", textContent: `Together ${sizeOf(one)}${shareOf(study, one)}` }));
  const objects = study.found.objects.filter((object) => object.concept === one.phrase);
  line.append(element("ul", { className: "objects" }, ...objects.map((object, k) => objectLine(study, object, k, told))));
  return line;
}

function swatchOf(study, key, name, told) {
  const isHidden = study.hidden.has(key);
  const swatch = element("button", {
    type: "button", className: isHidden ? "swatch off" : "swatch", title: isHidden ? "Show its outline" : "Hide its outline",
    aria: { label: `${isHidden ? "Show" : "Hide"} ${name}`, pressed: String(!isHidden) }, onclick: () => told.toggle(key),
  });
  swatch.style.setProperty("--colour", COLOURS[study.colour(key)]);
  return swatch;
}

// What the assistant answered, beside the session.
function layerLine(study, { name, result, found }, told) {
  const sizes = found.objects.map((object) => [sizeOf(object), acrossOf(object)].filter(Boolean).join(" · ")).join("; ");
  const save = element("button", { type: "button", textContent: "Save", title: "Save the assistant's masks in the format chosen below", onclick: () => told.save(result) });
  return element("li", {}, element("h3", {}, swatchOf(study, name, name, told), name), element("p", { className: "note", textContent: `The assistant's answer. ${sizes || "Nothing is outlined."}` }), save);
}

function presenceBar(one) {
  const percent = Math.round(one.presence * 100);
  const isUnsure = sentence(one).startsWith("Not sure");
  const dot = element("i");
  dot.style.left = `${percent}%`;
  const bar = element("div", { className: isUnsure ? "presence unsure" : "presence", aria: { role: "meter", valuenow: String(percent), valuemin: "0", valuemax: "100", label: `Presence, ${percent} percent` } }, dot);
  const words = element("p", { className: "scale-words", aria: { hidden: "true" } }, ...["no", isUnsure ? "not sure" : `${percent}\u00a0%`, "yes"].map((word) => element("span", { textContent: word })));
  return element("div", { title: `Presence ${percent} %` }, bar, words);
}

function objectLine(study, object, k, told) {
  const { about, found, isStack } = study;
  const [first, last] = [object.first_frame + 1, object.last_frame + 1];
  const range = !isStack || object.first_frame === null ? "" : first === last ? `${partOf(about)} ${first}` : `${partOf(about)}s ${first} to ${last}`;
  const details = [sizeOf(object), acrossOf(object), range].filter(Boolean).join(" · ");
  const isCurrent = found.current === object.number;
  const pick = element("button", {
    type: "button", className: "pick", title: isCurrent ? "The next click corrects this one; choose again to leave it" : "Choose: the next click corrects it",
    aria: { pressed: String(isCurrent) },
    onclick: () => {
      if (isStack && object.first_frame !== null && (study.frame < object.first_frame || study.frame > object.last_frame)) told.goTo(object.first_frame);
      told.act("choosing", { do: "select", object: isCurrent ? null : object.number });
    },
  }, element("b", { textContent: String(k + 1) }), element("span", { textContent: details }), element("small", { textContent: object.score.toFixed(2), title: "Score: how sure the model is of this outline" }));
  const away = element("button", { type: "button", className: "quiet", textContent: "×", title: `Remove object ${k + 1}`, aria: { label: `Remove object ${k + 1}` }, onclick: () => told.act("removing", { do: "remove", object: object.number }) });
  return element("li", {}, pick, away);
}

function sizeOf(one) {
  if (Number.isFinite(one.volume_ml)) return `${short(one.volume_ml)} mL`;
  if (Number.isFinite(one.area_mm2)) return one.area_mm2 >= 1000 ? `${short(one.area_mm2 / 100)} cm²` : `${short(one.area_mm2)} mm²`;
  return `${one.pixels.toLocaleString("en")} px`;
}

function acrossOf(one) {
  if (Number.isFinite(one.diameter_mm)) return `⌀ ${short(one.diameter_mm)} mm`;
  return Number.isFinite(one.diameter_px) ? `⌀ ${short(one.diameter_px)} px` : "";
}

// Of a picture, how much of it is covered.
function shareOf(study, one) {
  const { frames, width, height } = study.about;
  return frames > 1 ? "" : `, ${((100 * one.pixels) / (width * height)).toPrecision(2)}\u00a0% of the image`;
}
