// One opened image with its session: the steps that were done, taken back and done again, and what was found.
// After the server was lost it opens the image again and does the steps again. It knows no page.

import { COLOURS } from "./dom.js";

const NOTHING = { concepts: [], objects: [], current: null, touched: [] };

export class Study {
  // source: { form: FormData } | { sample: name } | { data: path }, kept to open the image again.
  constructor(api, source, about) {
    this.api = api;
    this.source = source;
    this.take(about);
    this.window = "";
    this.asked = null;
    this.seen = this.automatic;
    this.frame = Math.floor(about.frames / 2);
    this.colours = new Map();
    this.hidden = new Set();
    this.layers = [];
    this.done = [];
    this.undone = [];
    this.waiting = [];
    this.session = null;
    this.failed = null;
    this.found = NOTHING;
  }

  static async open(api, source, onProgress = () => {}) {
    return new Study(api, source, await opened(api, source, onProgress));
  }

  take(about) {
    this.about = about;
    this.path = `/v1/images/${about.id}`;
  }

  get canUndo() { return this.done.length > 0; }
  get canRedo() { return this.undone.length > 0; }
  get isStack() { return this.about.frames > 1; }

  // The grey window in which the image is looked at: { name, low, high }; null if its values are shown as they are.
  get automatic() {
    const { kind, channels, display } = this.about;
    const window = display.window ?? (kind === "volume" && channels === 1 ? [0, 255] : null);
    return window ? { name: "", low: window[0], high: window[1] } : null;
  }

  preset(name) {
    const [low, high] = this.about.windows[name];
    return { name, low, high };
  }

  // The seen window as the server and the command line name it.
  get seenName() {
    if (!this.seen) return "";
    const { name, low, high } = this.seen;
    return name === "custom" ? `${round((low + high) / 2)},${round(high - low)}` : name;
  }

  // A frame in a window, of which the server makes a picture.
  get pictureName() { return `${this.frame} ${this.seenName}`; }

  colour(concept) {
    if (!this.colours.has(concept)) this.colours.set(concept, this.colours.size % COLOURS.length);
    return this.colours.get(concept);
  }

  async begin() {
    const asked = this.window ? { window: this.window } : {};
    const answer = await this.api.json("POST", `${this.path}/sessions`, asked);
    this.session = `${this.path}/sessions/${answer.id}`;
  }

  // Does one step; what goes through all slices or frames is a job that tells its progress. False if it was stopped.
  async step(step, onJob = () => {}) {
    if (!this.session) await this.begin();
    const answer = await this.send(step, onJob);
    if (!answer) return false;
    this.found = answer.found;
    if (step.do === "undo") this.undone.push(this.done.pop());
    else if (step.do === "redo") this.done.push(this.undone.pop());
    else {
      this.done.push(step);
      this.undone = [];
    }
    return true;
  }

  async send(step, onJob) {
    const isLong = this.isStack && (step.do === "propagate" || (step.do === "segment" && step.frame === undefined));
    if (!isLong) return this.api.json("POST", `${this.session}/steps`, step);
    const job = await this.api.json("POST", `${this.session}/steps/job`, step);
    const ended = await this.api.follow(job.id, (told) => onJob({ ...told, id: job.id }));
    return ended.state === "done" ? ended.session : null;
  }

  // Opens the image again if the server does not know it any more, does again what stands, then what was drawn meanwhile.
  async restore(onJob) {
    if (!(await this.isKnown())) {
      this.take(await opened(this.api, this.source, () => {}));
      const steps = this.done;
      Object.assign(this, { done: [], undone: [], session: null, found: NOTHING });
      for (const step of steps) await this.step(step, onJob);
    }
    while (this.waiting.length) {
      const [step] = this.waiting;
      await this.step(step, onJob);
      this.waiting.shift();
    }
  }

  async isKnown() {
    try {
      await this.api.request("GET", this.session ?? this.path);
      return true;
    } catch (error) {
      if (error.status !== 404) throw error;
      return false;
    }
  }

  // Another window is another session with the same steps, as the model sees another picture.
  async setWindow(window, onJob) {
    const before = { window: this.window, asked: this.asked, session: this.session, done: this.done, undone: this.undone, found: this.found };
    Object.assign(this, { window, asked: window ? this.seen : null, session: null, done: [], undone: [], found: NOTHING });
    try {
      for (const step of before.done) await this.step(step, onJob);
    } catch (error) {
      Object.assign(this, before);
      throw error;
    }
  }

  picture(frame) {
    const query = this.seenName ? `?window=${encodeURIComponent(this.seenName)}` : "";
    return this.api.bitmap(`${this.path}/frames/${frame}.png${query}`);
  }

  // The whole image as NIfTI; packed only if it comes from afar.
  async volume() {
    if (["localhost", "127.0.0.1", "[::1]"].includes(location.hostname)) return (await this.api.request("GET", `${this.path}/volume.nii`)).arrayBuffer();
    return unpacked(await this.api.request("GET", `${this.path}/volume.nii.gz`));
  }

  // Fetches the values of the file, of which `value` tells one; null until then.
  async loadValues() {
    this.values ??= niftiOf(await this.volume());
  }

  value([x, y, n = 0]) {
    if (!this.values) return null;
    const { voxels, slope, intercept } = this.values;
    return voxels[Math.round(x) + this.about.width * (Math.round(y) + this.about.height * Math.round(n))] * slope + intercept;
  }

  // The labels of all voxels, slice by slice and row by row: object k is k + 1. Null if an object is partly covered by another.
  async labels() {
    if (!this.session || !this.found.objects.length) return new Uint8Array(0);
    const bytes = await unpacked(await this.api.request("GET", `${this.session}/masks.nii.gz`));
    const { voxels: labels } = niftiOf(bytes);
    const counts = new Map();
    for (const label of labels) if (label) counts.set(label, (counts.get(label) ?? 0) + 1);
    return this.found.objects.every((one) => (counts.get(one.number + 1) ?? 0) === one.pixels) ? labels : null;
  }

  async masks(frame, grid = "display") {
    if (!this.session || !this.found.objects.length) return null;
    return this.api.json("GET", `${this.session}/masks?frame=${frame}&grid=${grid}`);
  }

  // Keeps the masks as they stand, and names the result.
  async keep() {
    if (!this.session) await this.begin();
    return (await this.api.json("POST", `${this.session}/results`)).id;
  }

  // The session's masks as a file, or those of a result.
  async takeAway(format, result = null) {
    const kept = result ?? (await this.keep());
    const answer = await this.api.request("GET", `/v1/results/${kept}?format=${encodeURIComponent(format)}`);
    const name = /filename="?([^";]+)"?/.exec(answer.headers.get("Content-Disposition") ?? "")?.[1] ?? `masks.${format}`;
    return { name, blob: await answer.blob() };
  }

  // Masks of another origin than the session, such as the assistant's, beside those of the session.
  async addLayer(name, result) {
    const [about, file] = await Promise.all([
      this.api.json("GET", `/v1/results/${result}`),
      this.api.request("GET", `/v1/results/${result}?format=nifti`),
    ]);
    const { voxels: labels } = niftiOf(await unpacked(file));
    this.layers = [...this.layers.filter((one) => one.name !== name), { name, result, labels, found: about.found }];
  }

  layerSlice(layer, frame) {
    const size = this.about.width * this.about.height;
    return layer.labels.subarray(frame * size, (frame + 1) * size);
  }

  // What was drawn on a frame, in pixels of the file; what waits for the server is marked so.
  marks(frame) {
    const isHere = (step) => step.mark?.frame === frame;
    return [...this.standing().filter(isHere).map((step) => step.mark), ...this.waiting.filter(isHere).map((step) => ({ ...step.mark, isPending: true }))];
  }

  // The steps since everything was begun again.
  standing() {
    return this.done.slice(this.done.map((step) => step.do).lastIndexOf("reset") + 1);
  }
}

async function opened(api, source, onProgress) {
  if (source.form) return api.upload(source.form, onProgress);
  if (source.sample) return api.json("POST", `/v1/samples/${encodeURIComponent(source.sample)}`);
  return api.json("POST", "/v1/data", { path: source.data });
}

// The voxels of a NIfTI-1 file and how they are scaled, from the fields of its header.
function niftiOf(bytes) {
  const header = new DataView(bytes);
  const types = { 2: Uint8Array, 4: Int16Array, 8: Int32Array, 16: Float32Array, 64: Float64Array, 256: Int8Array, 512: Uint16Array, 768: Uint32Array };
  const voxels = new types[header.getInt16(70, true)](bytes.slice(header.getFloat32(108, true)));
  return { voxels, slope: header.getFloat32(112, true) || 1, intercept: header.getFloat32(116, true) || 0 };
}

function unpacked(answer) {
  return new Response(answer.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

export function round(value) {
  return Math.round(value * 100) / 100;
}
