// One opened image with its session: the steps that were done, taken back and done again, and what was found.
// After the server was lost it opens the image again and does the steps again. It knows no page.

export class Study {
  // source: { form: FormData } | { sample: name } | { data: path }, kept to open the image again.
  constructor(api, source, about) {
    this.api = api;
    this.source = source;
    this.take(about);
    this.window = "";
    this.frame = Math.floor(about.frames / 2);
    this.session = null;
    this.done = [];
    this.undone = [];
    this.found = { concepts: [], objects: [], current: null, touched: [] };
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

  async begin() {
    const asked = this.window ? { window: this.window } : {};
    const answer = await this.api.json("POST", `${this.path}/sessions`, asked);
    this.session = `${this.path}/sessions/${answer.id}`;
  }

  // Does one step; what goes through all slices or frames is a job that tells its progress.
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

  // Opens the image again and does again what stands.
  async restore() {
    try {
      await this.api.request("GET", this.session ?? this.path);
      return;
    } catch (error) {
      if (error.status !== 404) throw error;
    }
    this.take(await opened(this.api, this.source, () => {}));
    const steps = this.done;
    this.done = [];
    this.undone = [];
    this.session = null;
    for (const step of steps) await this.step(step);
  }

  // Another window is another session with the same steps, as the model sees another picture.
  async setWindow(window) {
    const before = { window: this.window, session: this.session, done: this.done, undone: this.undone, found: this.found };
    Object.assign(this, { window, session: null, done: [], undone: [] });
    try {
      for (const step of before.done) await this.step(step);
    } catch (error) {
      Object.assign(this, before);
      throw error;
    }
  }

  picture() {
    const query = this.window ? `?window=${encodeURIComponent(this.window)}` : "";
    return this.api.bitmap(`${this.path}/frames/${this.frame}.png${query}`);
  }

  async masks() {
    if (!this.session || !this.found.objects.length) return null;
    return this.api.json("GET", `${this.session}/masks?frame=${this.frame}`);
  }

  async takeAway(format) {
    if (!this.session) await this.begin();
    const kept = await this.api.json("POST", `${this.session}/results`);
    const answer = await this.api.request("GET", `/v1/results/${kept.id}?format=${encodeURIComponent(format)}`);
    const name = /filename="?([^";]+)"?/.exec(answer.headers.get("Content-Disposition") ?? "")?.[1] ?? `masks.${format}`;
    return { name, blob: await answer.blob() };
  }

  toFile([u, v]) {
    const [[a, b, c], [d, e, f]] = this.about.display.to_file;
    return [round(a * u + b * v + c), round(d * u + e * v + f)];
  }

  // Marks of what was drawn on the frame that is shown, in pixels of the display.
  marks() {
    const drawn = this.done.slice(this.done.map((step) => step.do).lastIndexOf("reset") + 1);
    return drawn.filter((step) => step.mark && step.mark.frame === this.frame).map((step) => step.mark);
  }

  commandLine(format) {
    const words = ["medsam3", "segment", quoted(this.about.name)];
    const drawn = this.standing();
    for (const step of drawn.filter((step) => step.do === "segment")) words.push("--text", quoted(step.phrase));
    for (const step of drawn.filter((step) => step.do === "box")) words.push("--box", step.box.join(","));
    const frames = [...new Set(drawn.filter((step) => step.frame !== undefined && step.frame !== null).map((step) => step.frame))];
    if (this.isStack && frames.length === 1) words.push(drawn.some((step) => step.do === "box") ? "--at" : "--frame", frames[0]);
    if (this.window) words.push("--window", quoted(this.window));
    if (format) words.push("--format", format);
    return words.join(" ");
  }

  python() {
    const lines = ["import medsam3", "", `image = medsam3.read(${JSON.stringify(this.about.name)})`, 'session = medsam3.Session(image, medsam3.load("mini"))'];
    for (const step of this.standing()) lines.push(pythonLine(step));
    lines.push('medsam3.write(session.masks_by_concept, "masks.nii.gz", image)');
    return lines.join("\n");
  }

  standing() {
    return this.done.slice(this.done.map((step) => step.do).lastIndexOf("reset") + 1);
  }
}

async function opened(api, source, onProgress) {
  if (source.form) return api.upload(source.form, onProgress);
  if (source.sample) return api.json("POST", `/v1/samples/${encodeURIComponent(source.sample)}`);
  return api.json("POST", "/v1/data", { path: source.data });
}

function pythonLine(step) {
  const more = [];
  if (step.positive === false) more.push("positive=False");
  if (step.frame !== undefined && step.frame !== null) more.push(`frame=${step.frame}`);
  if (step.object !== undefined && step.object !== null && step.do !== "select") more.push(`object=${step.object}`);
  const first = {
    segment: () => [JSON.stringify(step.phrase)],
    click: () => [step.x, step.y],
    scribble: () => [JSON.stringify(step.points)],
    box: () => step.box,
    select: () => [step.object ?? "None"],
  }[step.do]?.() ?? [];
  return `session.${step.do}(${[...first, ...more].join(", ")})`;
}

function round(value) {
  return Math.round(value * 100) / 100;
}

function quoted(text) {
  return /^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
