// Shows one frame with its masks on a canvas, and tells what is drawn on it. It knows no server and no session.

const EDGE_SLACK_PX = 4;

export class Viewer {
  // told: { click(u, v), box(u0, v0, u1, v1), scribble([[u, v]...]), wheel(steps), place(u, v) }, in pixels of the display.
  constructor(canvas, told) {
    this.canvas = canvas;
    this.told = told;
    this.tool = "plus";
    this.opacity = 0.35;
    this.isMaskShown = true;
    this.bitmap = null;
    this.masks = [];
    this.marks = [];
    this.draft = null;
    this.cross = null;
    this.zoom = 1;
    this.shift = [0, 0];
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", () => { this.draft = null; this.draw(); });
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.cross = null; this.draw(); });
  }

  show(bitmap, isSameImage) {
    this.bitmap = bitmap;
    if (!isSameImage) { this.zoom = 1; this.shift = [0, 0]; this.cross = null; }
    this.draw();
  }

  // masks: [{ width, height, runs, colour: "#rrggbb", isCurrent }]
  setMasks(masks) {
    this.masks = masks.map((mask) => ({ ...mask, ...painted(mask) }));
    this.draw();
  }

  // marks: [{ kind: "plus" | "minus" | "box", points: [[u, v]...] }]
  setMarks(marks) {
    this.marks = marks;
    this.draw();
  }

  // Scale and offset from display pixels to those of the canvas.
  fit() {
    const { width, height } = this.canvas;
    const scale = Math.min(width / this.bitmap.width, height / this.bitmap.height) * this.zoom;
    const left = (width - this.bitmap.width * scale) / 2 + this.shift[0];
    const top = (height - this.bitmap.height * scale) / 2 + this.shift[1];
    return { scale, left, top };
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(this.canvas.clientWidth * ratio);
    const height = Math.round(this.canvas.clientHeight * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const pen = this.canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!this.bitmap || !width || !height) return;
    const { scale, left, top } = this.fit();
    pen.setTransform(scale, 0, 0, scale, left, top);
    pen.imageSmoothingEnabled = scale < 3;
    pen.drawImage(this.bitmap, 0, 0);
    pen.imageSmoothingEnabled = false;
    if (this.isMaskShown) {
      for (const mask of this.masks) {
        pen.globalAlpha = this.opacity;
        pen.drawImage(mask.fill, 0, 0);
        pen.globalAlpha = 1;
        for (const [colour, thick] of [["#000", mask.isCurrent ? 5 : 3], [mask.colour, mask.isCurrent ? 3 : 1.5]]) {
          pen.strokeStyle = colour;
          pen.lineWidth = (thick * ratio) / scale;
          pen.stroke(mask.outline);
        }
      }
    }
    pen.setTransform(1, 0, 0, 1, 0, 0);
    for (const mark of this.draft ? [...this.marks, this.draft] : this.marks) this.drawMark(pen, mark, ratio);
    if (this.cross) this.drawCross(pen, ratio);
  }

  drawMark(pen, mark, ratio) {
    const points = mark.points.map(([u, v]) => this.toCanvas(u, v));
    for (const [colour, thick] of [["#000", 4], [mark.kind === "minus" ? "#ff6b57" : "#ffffff", 2]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = thick * ratio;
      pen.beginPath();
      if (mark.kind === "box") {
        const [[x0, y0], [x1, y1]] = points;
        pen.strokeRect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
      } else if (points.length > 1) {
        points.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
        pen.stroke();
      } else {
        const [[x, y]] = points;
        const arm = 6 * ratio;
        pen.moveTo(x - arm, y);
        pen.lineTo(x + arm, y);
        if (mark.kind === "plus") { pen.moveTo(x, y - arm); pen.lineTo(x, y + arm); }
        pen.stroke();
      }
    }
  }

  drawCross(pen, ratio) {
    const [x, y] = this.toCanvas(...this.cross);
    for (const [colour, thick] of [["#000", 3], ["#7cc0ff", 1]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = thick * ratio;
      pen.beginPath();
      pen.moveTo(x, 0); pen.lineTo(x, this.canvas.height);
      pen.moveTo(0, y); pen.lineTo(this.canvas.width, y);
      pen.stroke();
    }
  }

  toCanvas(u, v) {
    const { scale, left, top } = this.fit();
    return [(u + 0.5) * scale + left, (v + 0.5) * scale + top];
  }

  toDisplay(event) {
    const ratio = window.devicePixelRatio || 1;
    const { scale, left, top } = this.fit();
    return [(event.offsetX * ratio - left) / scale - 0.5, (event.offsetY * ratio - top) / scale - 0.5];
  }

  isInside([u, v]) {
    return u >= -0.5 && v >= -0.5 && u <= this.bitmap.width - 0.5 && v <= this.bitmap.height - 0.5;
  }

  clamped([u, v]) {
    return [Math.min(Math.max(u, -0.5), this.bitmap.width - 0.5), Math.min(Math.max(v, -0.5), this.bitmap.height - 0.5)];
  }

  down(event) {
    if (!this.bitmap || event.button > 1) return;
    this.canvas.setPointerCapture(event.pointerId);
    const at = this.toDisplay(event);
    if (this.tool === "hand" || event.button === 1) this.drag = { x: event.clientX, y: event.clientY, shift: [...this.shift] };
    else if (this.isInside(at)) this.draft = { kind: this.tool === "scribble" ? "plus" : this.tool, points: this.tool === "box" ? [at, at] : [at] };
    this.draw();
  }

  move(event) {
    if (!this.bitmap) return;
    const at = this.toDisplay(event);
    this.told.place(this.isInside(at) ? at : null);
    const ratio = window.devicePixelRatio || 1;
    if (this.drag) {
      this.shift = [this.drag.shift[0] + (event.clientX - this.drag.x) * ratio, this.drag.shift[1] + (event.clientY - this.drag.y) * ratio];
    } else if (this.draft && this.tool === "box") this.draft.points[1] = this.clamped(at);
    else if (this.draft && this.tool === "scribble") this.draft.points.push(this.clamped(at));
    else return;
    this.draw();
  }

  up() {
    const draft = this.draft;
    this.draft = null;
    this.drag = null;
    if (draft && this.tool === "box") {
      const [[u0, v0], [u1, v1]] = draft.points;
      const { scale } = this.fit();
      if (Math.min(Math.abs(u1 - u0), Math.abs(v1 - v0)) * scale >= EDGE_SLACK_PX) this.told.box(u0, v0, u1, v1);
    } else if (draft && this.tool === "scribble") this.told.scribble(draft.points);
    else if (draft) this.told.click(...draft.points[0]);
    this.draw();
  }

  wheel(event) {
    if (!this.bitmap) return;
    event.preventDefault();
    if (!event.ctrlKey && this.told.wheel(Math.sign(event.deltaY))) return;
    this.magnify(event.deltaY < 0 ? 1.15 : 1 / 1.15, event);
  }

  magnify(factor, event) {
    const at = event ? this.toDisplay(event) : [this.bitmap.width / 2, this.bitmap.height / 2];
    const before = this.toCanvas(...at);
    this.zoom = Math.min(Math.max(this.zoom * factor, 0.5), 40);
    const after = this.toCanvas(...at);
    this.shift = [this.shift[0] + before[0] - after[0], this.shift[1] + before[1] - after[1]];
    if (this.zoom <= 1.001 && factor < 1) this.shift = [0, 0];
    this.draw();
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!this.bitmap || event.ctrlKey || event.metaKey) return;
    if (steps) {
      const far = event.shiftKey ? 10 : 1;
      const [u, v] = this.cross ?? [(this.bitmap.width - 1) / 2, (this.bitmap.height - 1) / 2];
      this.cross = this.clamped([Math.round(u) + steps[0] * far, Math.round(v) + steps[1] * far]);
      this.told.place(this.cross);
      if (this.draft) this.draft.points = this.tool === "box" ? [this.draft.points[0], this.cross] : [...this.draft.points, this.cross];
    } else if (event.key === "Enter" && this.cross) this.useCross();
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.draw();
  }

  // Enter clicks at the cross; of a box and a scribble the first Enter begins and the second ends.
  useCross() {
    const isDrawn = this.tool === "box" || this.tool === "scribble";
    if (isDrawn && !this.draft) this.draft = { kind: this.tool === "box" ? "box" : "plus", points: this.tool === "box" ? [this.cross, this.cross] : [this.cross] };
    else if (isDrawn) this.up();
    else if (this.tool !== "hand") this.told.click(...this.cross);
  }
}

function decoded({ width, height, runs }) {
  const mask = new Uint8Array(width * height);
  let at = 0;
  runs.forEach((length, k) => {
    if (k % 2) mask.fill(1, at, at + length);
    at += length;
  });
  return mask;
}

// The mask in its colour, to be laid over the picture, and its outline as a path along the edges of its pixels.
function painted(mask) {
  const { width, height, colour } = mask;
  const inside = decoded(mask);
  const fill = new OffscreenCanvas(width, height);
  const pen = fill.getContext("2d");
  const pixels = pen.createImageData(width, height);
  const [red, green, blue] = [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16));
  for (let at = 0; at < width * height; at++) if (inside[at]) pixels.data.set([red, green, blue, 255], 4 * at);
  pen.putImageData(pixels, 0, 0);
  return { fill, outline: outlined(inside, width, height) };
}

function outlined(inside, width, height) {
  const path = new Path2D();
  const at = (x, y) => (x >= 0 && y >= 0 && x < width && y < height ? inside[y * width + x] : 0);
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x < width; x++) {
      if (at(x, y) === at(x, y - 1)) continue;
      const start = x;
      while (x < width && at(x, y) !== at(x, y - 1)) x++;
      path.moveTo(start, y);
      path.lineTo(x, y);
    }
  }
  for (let x = 0; x <= width; x++) {
    for (let y = 0; y < height; y++) {
      if (at(x, y) === at(x - 1, y)) continue;
      const start = y;
      while (y < height && at(x, y) !== at(x - 1, y)) y++;
      path.moveTo(x, start);
      path.lineTo(x, y);
    }
  }
  return path;
}
