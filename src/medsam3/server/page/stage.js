// The middle of the page: one study on the surface that fits it, its slices, its grey window, and what is said at the corners.

import { byId, COLOURS, element, partOf, short } from "./dom.js";
import { decoded, Picture } from "./picture.js";
import { Viewer } from "./viewer.js";

const MOST_VOLUME_BYTES = 1.2e9;
const MOST_VALUE_BYTES = 2e8;
const KEPT_PICTURES = 64;
const AT_ONCE = 6;

export class Stage {
  // told: { draw(mark), say(error) }
  constructor(told) {
    this.told = told;
    this.study = null;
    this.planes = null;
    this.opacity = 0.35;
    this.isShown = true;
    this.pictures = new Map();
    this.picture = new Picture(byId("canvas"));
    this.viewer = new Viewer(byId("canvas"), {
      draw: (mark) => told.draw({ ...mark, frame: this.study.frame }),
      frame: (n) => this.goTo(n),
      scroll: (steps) => Boolean(this.study?.isStack) && (this.goTo(this.study.frame + steps), true),
      place: (at) => this.showPlace(at),
      window: (dx, dy) => this.dragWindow(dx, dy),
      zoomed: () => this.showScale(),
    });
    window.addEventListener("resize", () => { this.placeCorners(); this.showScale(); });
    byId("slice").oninput = () => this.goTo(Number(byId("slice").value));
    byId("window").onchange = () => this.setWindow(byId("window").value ? this.study.preset(byId("window").value) : this.study.automatic);
    byId("layout").onclick = () => this.setLayout(!this.planes.hasThree);
    byId("opacity").oninput = () => this.setOpacity(Number(byId("opacity").value), true);
  }

  get inPlanes() { return this.viewer.surface !== null && this.viewer.surface === this.planes; }

  // ---- a study

  async open(study) {
    this.study = study;
    this.pictures.clear();
    this.viewer.setSurface(null);
    this.showPlace(null);
    byId("slices").hidden = !study?.isStack;
    byId("window-part").hidden = byId("tool-window").hidden = !study?.seen;
    byId("gl").hidden = byId("layout").hidden = true;
    if (!study) { this.corner(""); return; }
    const { about } = study;
    this.viewer.size = [about.width, about.height];
    const part = partOf(about);
    byId("slices").querySelector("label").textContent = part[0].toUpperCase() + part.slice(1);
    byId("slice").max = about.frames - 1;
    byId("window").replaceChildren(element("option", { value: "", textContent: "automatic" }), ...Object.keys(about.windows).map((name) => element("option", { value: name, textContent: name })));
    this.picture.fitAll();
    if (!(await this.openPlanes())) {
      this.viewer.setSurface(this.picture);
      const bytes = about.frames * about.height * about.width * 4;
      if (study.seen && about.channels === 1 && bytes < MOST_VALUE_BYTES) study.loadValues().catch(() => {}); // told once they are there
    }
    this.setOpacity(this.opacity, this.isShown);
    this.placeCorners();
    await this.show(null, true);
  }

  // Whether the study is shown in three planes.
  async openPlanes() {
    const { study } = this;
    const { about } = study;
    const isFit = about.kind === "volume" && study.isStack && about.channels === 1 && study.seen && about.spacing_mm;
    if (!isFit || about.frames * about.height * about.width * 4 > MOST_VOLUME_BYTES) return false;
    try {
      const { Planes } = await import("./planes.js");
      if (!Planes.isAble()) throw new Error("this browser has no WebGL 2");
      const bytes = study.bytes ?? (await study.volume());
      if (bytes.byteLength < MOST_VALUE_BYTES) study.bytes = bytes;
      byId("gl").hidden = byId("layout").hidden = false;
      this.planes ??= new Planes(byId("gl"));
      await this.planes.show(bytes, study.seen, COLOURS);
      if (this.study !== study) return true;
      this.viewer.setSurface(this.planes);
      this.planes.goTo([(about.width - 1) / 2, (about.height - 1) / 2, study.frame]);
      return true;
    } catch (error) {
      byId("gl").hidden = byId("layout").hidden = true;
      byId("one-plane").textContent = `One plane is shown: ${error.message}.`;
      return false;
    }
  }

  setLayout(hasThree) {
    if (!this.inPlanes) return;
    this.planes.hasThree = hasThree;
    this.planes.layOut();
    byId("layout").setAttribute("aria-pressed", String(hasThree));
    this.placeCorners();
    this.showScale();
    this.viewer.draw();
  }

  // ---- frames and masks

  async goTo(frame) {
    const { study } = this;
    if (!study) return;
    study.frame = Math.min(Math.max(frame, 0), study.about.frames - 1);
    if (this.inPlanes) {
      const [x, y, n] = this.planes.cross();
      if (Math.round(n) !== study.frame) this.planes.goTo([x, y, study.frame]);
      this.showMarks();
      return;
    }
    await this.catchUp();
  }

  // Shows the picture that is wanted until it is the one that is shown; one call at a time does so for all.
  async catchUp() {
    const { study } = this;
    if (this.isCatchingUp) return;
    this.isCatchingUp = true;
    try {
      for (let shown = null; this.study === study && shown !== study.pictureName;) {
        shown = study.pictureName;
        await this.show(null);
      }
    } catch (error) {
      this.told.say(error);
    } finally {
      this.isCatchingUp = false;
    }
  }

  // Shows the study as it stands; touched: frames whose masks changed, null if any may have.
  async show(touched = null) {
    const { study } = this;
    if (!study) return;
    if (this.inPlanes) {
      if (Math.round(this.planes.cross()[2]) !== study.frame) await this.goTo(study.frame);
      await this.labelPlanes(touched);
    } else await this.showPicture();
    if (this.study === study) this.showMarks();
  }

  async showPicture() {
    const { study } = this;
    const { frame, pictureName: key } = study;
    const bitmap = this.pictures.get(key) ?? (await study.picture(frame));
    if (this.study !== study) return;
    this.pictures.set(key, bitmap);
    if (this.pictures.size > KEPT_PICTURES) this.pictures.delete(this.pictures.keys().next().value);
    if (study.frame !== frame) return;
    const isNew = this.picture.frame !== frame || this.picture.study !== study;
    Object.assign(this.picture, { frame, study });
    this.picture.show(bitmap, study.about.display);
    if (isNew) this.picture.setMasks([]);
    this.showMarks();
    if (study.isAtWork) return; // the model would answer only afterwards
    const answer = await study.masks(frame);
    if (this.study !== study || study.frame !== frame) return;
    const shown = (answer?.masks ?? []).filter((mask) => !study.hidden.has(mask.concept));
    this.picture.setMasks([
      ...shown.map((mask) => ({ inside: decoded({ ...mask, ...answer }), width: answer.width, height: answer.height, colour: COLOURS[study.colour(mask.concept)], isCurrent: mask.number === study.found.current })),
      ...this.layers(frame).map((layer) => ({ inside: study.layerSlice(layer, frame), width: study.about.width, height: study.about.height, colour: COLOURS[study.colour(layer.name)], isOfFile: true })),
    ]);
  }

  layers(frame) {
    const { study } = this;
    return study.layers.filter((layer) => !study.hidden.has(layer.name) && study.layerSlice(layer, frame).some(Boolean));
  }

  // In planes, the masks of all slices are there at once.
  async labelPlanes(touched) {
    const { study } = this;
    if (study.isAtWork) return;
    const all = touched?.length || study.hidden.size ? null : await study.labels();
    const slices = new Map(all ? ofLabels(study, all) : await this.ofFrames(study, touched));
    if (this.study !== study) return;
    if (!touched?.length) this.planes.clearLabels();
    for (let n = 0; n < study.about.frames; n++) {
      const colours = slices.get(n) ?? (touched?.length ? null : new Uint8Array(study.about.width * study.about.height));
      if (!colours) continue;
      for (const layer of this.layers(n)) study.layerSlice(layer, n).forEach((label, k) => { if (label) colours[k] = study.colour(layer.name) + 1; });
      this.planes.setSlice(n, colours);
    }
    this.planes.refresh();
  }

  // Frame by frame, smaller objects over larger ones.
  async ofFrames(study, touched) {
    const { objects } = study.found;
    const frames = touched?.length ? [...touched] : [...new Set(objects.flatMap((one) => (one.first_frame === null ? [] : Array.from({ length: one.last_frame - one.first_frame + 1 }, (_, k) => one.first_frame + k))))];
    const voxels = new Map(objects.map((one) => [one.number, one.pixels]));
    const slices = [];
    const ask = async () => {
      for (let n = frames.pop(); n !== undefined; n = frames.pop()) {
        const answer = await study.masks(n, "file");
        const colours = new Uint8Array(study.about.width * study.about.height);
        const masks = (answer?.masks ?? []).filter((mask) => !study.hidden.has(mask.concept));
        masks.sort((one, other) => voxels.get(other.number) - voxels.get(one.number));
        for (const mask of masks) {
          const inside = decoded({ ...mask, ...answer });
          for (let k = 0; k < inside.length; k++) if (inside[k]) colours[k] = study.colour(mask.concept) + 1;
        }
        slices.push([n, colours]);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, ask));
    return slices;
  }

  showMarks() {
    const { study } = this;
    if (!study) return;
    byId("slice").value = study.frame;
    byId("slice-number").textContent = `${study.frame + 1} of ${study.about.frames}`;
    this.viewer.setMarks(study.marks(study.frame));
    this.showScale();
    this.showWindow();
  }

  setOpacity(opacity, isShown) {
    Object.assign(this, { opacity, isShown });
    for (const surface of [this.picture, this.planes]) if (surface?.isReady || surface === this.picture) surface?.setOpacity(opacity, isShown);
    this.viewer.draw();
  }

  // ---- the grey window

  async setWindow(seen) {
    const { study } = this;
    if (!study?.seen) return;
    study.seen = seen;
    this.showWindow();
    if (this.inPlanes) {
      this.planes.setWindow(seen);
      this.viewer.draw();
      return;
    }
    await this.catchUp();
  }

  // To the right is wider, upwards brighter.
  dragWindow(dx, dy) {
    const { study } = this;
    if (!study?.seen) return;
    const { low, high } = study.seen;
    const gain = Math.max(high - low, 1e-6) / 250;
    const width = Math.max(high - low + dx * gain, gain);
    const centre = (low + high) / 2 + dy * gain;
    const next = { name: "custom", low: centre - width / 2, high: centre + width / 2 };
    study.seen = next;
    this.showWindow();
    cancelAnimationFrame(this.windowing);
    this.windowing = requestAnimationFrame(() => this.setWindow(next));
  }

  showWindow() {
    const { seen, window: asked, seenName } = this.study;
    if (!seen) return;
    byId("window").querySelector("[value=custom]")?.remove();
    if (seen.name === "custom") byId("window").append(element("option", { value: "custom", textContent: "by hand" }));
    byId("window").value = seen.name;
    byId("window-model").hidden = seenName === asked;
    const centre = (seen.low + seen.high) / 2;
    this.corner(`C ${short(centre)}  W ${short(seen.high - seen.low)}`);
  }

  // ---- corners

  corner(window) {
    const { about } = this.study ?? {};
    const size = about ? [about.width, about.height, ...(about.frames > 1 ? [about.frames] : [])].join(" × ") : "";
    const spacing = about ? spacingOf(about).map((one) => one.toFixed(2)).join(" × ") : "";
    byId("facts").textContent = [[about?.modality, size].filter(Boolean).join("  "), spacing && `${spacing} mm`].filter(Boolean).join("\n");
    byId("level").textContent = window;
  }

  // The corners' words stay in the plane of the slices.
  placeCorners() {
    const cell = this.inPlanes ? this.planes.cells[0] : { wide: 1, high: 1 };
    byId("corners").style.width = `${cell.wide * 100}%`;
    byId("corners").style.height = `${cell.high * 100}%`;
    if (this.study && !this.study.seen) this.corner("");
  }

  showPlace(at) {
    const { study } = this;
    if (!at || !study) { byId("place").textContent = ""; return; }
    const [x, y, n] = at.voxel.map(Math.round);
    const parts = [`x ${x}  y ${y}`];
    if (this.inPlanes) parts[0] += `  ${partOf(study.about)} ${n + 1}`;
    const value = this.value(at.voxel);
    if (value !== null) parts.push(value);
    byId("place").textContent = parts.join(" · ");
  }

  value(voxel) {
    const { about } = this.study;
    if (this.study.seen) {
      const value = this.inPlanes ? this.planes.value(voxel) : this.study.value([voxel[0], voxel[1], this.study.frame]);
      return value === null ? null : `${Number(value.toPrecision(6))}${about.modality === "CT" ? " HU" : ""}`;
    }
    const [red, green, blue] = this.picture.colour(voxel);
    return about.channels === 1 ? String(red) : `R ${red} G ${green} B ${blue}`;
  }

  showScale() {
    const perMm = this.viewer.surface?.isReady ? this.viewer.surface.pixelsPerMm : null;
    byId("scale").hidden = !perMm;
    if (!perMm) return;
    const onPage = perMm / (window.devicePixelRatio || 1);
    const length = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200].findLast((one) => one * onPage <= 140) ?? 0.1;
    byId("scale").querySelector("i").style.width = `${length * onPage}px`;
    byId("scale").querySelector("b").textContent = length >= 10 ? `${length / 10} cm` : `${length} mm`;
  }
}

// Millimetres from pixel to pixel across and down, and in a stack from slice to slice, as far as they are known.
function spacingOf({ spacing_mm: known, frames, display }) {
  if (known) return frames > 1 ? [known[2], known[1], known[0]] : [known[2], known[1]];
  return display.pixel_mm ? [display.pixel_mm, display.pixel_mm] : [];
}

// Slices [n, colours] of the labels of a whole volume.
function ofLabels(study, labels) {
  const { width, height, frames } = study.about;
  const colours = new Map(study.found.objects.map((one) => [one.number + 1, study.colour(one.concept) + 1]));
  const size = width * height;
  const painted = Uint8Array.from(labels, (label) => (label ? colours.get(label) ?? 0 : 0));
  return Array.from({ length: labels.length ? frames : 0 }, (_, n) => [n, painted.subarray(n * size, (n + 1) * size)]);
}
