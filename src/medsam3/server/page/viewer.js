// The tools: what is clicked, drawn and dragged over a surface (`picture.js` or `planes.js`), told in pixels of the file.
// It knows no server and no session.

const EDGE_SLACK_PX = 4;
const LINES = { scribble: true, brush: true, eraser: true };
const BOXES = { box: true, example: true };
const MINUS = "#ff8a75";

export class Viewer {
  // told: { draw(kind, points), frame(n), scroll(steps) -> whether it did, place(at), window(dx, dy) }
  constructor(canvas, told) {
    this.canvas = canvas;
    this.told = told;
    this.surface = null;
    this.tool = "plus";
    this.radius = 6;
    this.marks = [];
    this.draft = null;
    this.drag = null;
    this.pointer = null;
    this.cross = null;
    new ResizeObserver(() => { this.surface?.layOut?.(); this.draw(); }).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", () => this.up());
    canvas.addEventListener("pointercancel", () => { this.draft = this.drag = null; this.draw(); });
    canvas.addEventListener("pointerleave", () => { this.pointer = null; told.place(this.cross); this.draw(); });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.cross = null; this.draw(); });
  }

  setSurface(surface) {
    this.surface = surface;
    this.draft = this.cross = null;
    this.marks = [];
    this.draw();
  }

  // marks: [{ kind, points: [[x, y]...], isPending }], those of the slice that is shown.
  setMarks(marks) {
    this.marks = marks;
    this.draw();
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(this.canvas.clientWidth * ratio);
    const height = Math.round(this.canvas.clientHeight * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const pen = this.canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!this.surface?.isReady || !width || !height) return;
    this.surface.draw(pen);
    const tiles = this.surface.tiles();
    for (const tile of tiles) if (tile.cross) drawTile(pen, tile, ratio);
    pen.save();
    this.clip(pen);
    for (const mark of this.draft ? [...this.marks, this.draft] : this.marks) this.drawMark(pen, mark, ratio);
    if (this.cross && !this.surface.cross) this.drawCross(pen, ratio);
    this.drawBrush(pen, ratio);
    pen.restore();
    for (const tile of tiles) drawLetters(pen, tile, ratio);
  }

  // Marks stay in the plane of the slices.
  clip(pen) {
    const cell = this.surface.cells?.[0];
    if (!cell) return;
    pen.beginPath();
    pen.rect(0, 0, cell.wide * this.canvas.width, cell.high * this.canvas.height);
    pen.clip();
  }

  toCanvas([x, y]) {
    return this.surface.toCanvas([x, y, this.surface.cross?.()[2] ?? 0]);
  }

  drawMark(pen, mark, ratio) {
    const points = mark.points.map((place) => this.toCanvas(place));
    const isBox = BOXES[mark.kind];
    pen.setLineDash(mark.kind === "example" || mark.isPending ? [6 * ratio, 4 * ratio] : []);
    for (const [colour, thick] of [["#000", 4], [mark.kind === "minus" ? MINUS : "#fff", 2]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = thick * ratio;
      pen.beginPath();
      if (isBox) {
        const [[x0, y0], [x1, y1]] = points;
        pen.strokeRect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
      } else if (points.length > 1 || LINES[mark.kind]) {
        if (mark.radius) Object.assign(pen, { lineWidth: 2 * this.radiusOnCanvas(mark.radius), lineCap: "round", lineJoin: "round", globalAlpha: 0.4 });
        points.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
        if (points.length === 1) pen.lineTo(points[0][0] + 0.1, points[0][1]);
        pen.stroke();
        pen.globalAlpha = 1;
      } else {
        const [[x, y]] = points;
        const arm = 6 * ratio;
        pen.moveTo(x - arm, y);
        pen.lineTo(x + arm, y);
        if (mark.kind !== "minus") { pen.moveTo(x, y - arm); pen.lineTo(x, y + arm); }
        pen.stroke();
      }
    }
    pen.setLineDash([]);
  }

  drawCross(pen, ratio) {
    const [x, y] = this.toCanvas(this.cross.voxel);
    stroke(pen, ratio, () => {
      pen.moveTo(x, 0); pen.lineTo(x, this.canvas.height);
      pen.moveTo(0, y); pen.lineTo(this.canvas.width, y);
    });
  }

  drawBrush(pen, ratio) {
    const at = this.pointer ?? this.cross;
    if (!at?.isSlice || (this.tool !== "brush" && this.tool !== "eraser")) return;
    const [x, y] = this.toCanvas(at.voxel);
    stroke(pen, ratio, () => pen.arc(x, y, this.radiusOnCanvas(this.radius), 0, 2 * Math.PI));
  }

  radiusOnCanvas(radius) {
    const [x0, y0] = this.toCanvas([0, 0]);
    const [x1, y1] = this.toCanvas([1, 0]);
    return Math.max(radius, 0.5) * Math.hypot(x1 - x0, y1 - y0);
  }

  atEvent(event) {
    const ratio = window.devicePixelRatio || 1;
    return this.surface.at(event.offsetX * ratio, event.offsetY * ratio);
  }

  clamped([x, y]) {
    const [width, height] = this.size;
    return [Math.min(Math.max(x, -0.5), width - 0.5), Math.min(Math.max(y, -0.5), height - 0.5)];
  }

  down(event) {
    if (!this.surface?.isReady) return;
    const at = this.atEvent(event);
    if (!at) return;
    this.canvas.setPointerCapture(event.pointerId);
    const drag = { x: event.clientX, y: event.clientY, plane: at.plane };
    if (event.button === 2 || this.tool === "window") this.drag = { ...drag, kind: "window" };
    else if (event.button === 1 || this.tool === "hand") this.drag = { ...drag, kind: "pan" };
    else if (!at.isSlice) { this.drag = { ...drag, kind: "cross" }; this.crossTo(at); }
    else if (at.isInside || BOXES[this.tool]) this.begin({ ...at, voxel: [...this.clamped(at.voxel), ...at.voxel.slice(2)] });
    this.draw();
  }

  begin(at) {
    const place = at.voxel.slice(0, 2);
    if (!BOXES[this.tool]) this.crossTo(at);
    this.draft = { kind: this.tool, points: BOXES[this.tool] ? [place, place] : [place] };
    if (this.tool === "brush" || this.tool === "eraser") this.draft.radius = this.radius;
  }

  // In a volume, the other planes follow.
  crossTo(at) {
    if (!this.surface.goTo) return;
    const before = Math.round(this.surface.cross()[2]);
    this.surface.goTo(at.voxel.map(Math.round));
    const now = Math.round(this.surface.cross()[2]);
    if (now !== before) this.told.frame(now);
  }

  move(event) {
    if (!this.surface?.isReady) return;
    const at = this.atEvent(event);
    this.pointer = at;
    this.told.place(at?.isInside ? at : null);
    if (this.drag) this.dragged(event, at);
    else if (this.draft && at?.isSlice) this.extend(this.clamped(at.voxel));
    else if (this.tool !== "brush" && this.tool !== "eraser") return;
    this.draw();
  }

  extend(place) {
    if (BOXES[this.draft.kind]) this.draft.points[1] = place;
    else if (LINES[this.draft.kind]) this.draft.points.push(place);
  }

  dragged(event, at) {
    const ratio = window.devicePixelRatio || 1;
    const [dx, dy] = [(event.clientX - this.drag.x) * ratio, (event.clientY - this.drag.y) * ratio];
    Object.assign(this.drag, { x: event.clientX, y: event.clientY });
    if (this.drag.kind === "window") this.told.window(dx / ratio, dy / ratio);
    else if (this.drag.kind === "pan") this.surface.pan(dx, dy, this.drag.plane);
    else if (at && at.plane === this.drag.plane) this.crossTo(at);
  }

  up() {
    const { draft } = this;
    this.draft = this.drag = null;
    if (draft && (!BOXES[draft.kind] || this.isLarge(draft))) {
      if (BOXES[draft.kind]) this.crossTo({ voxel: [...middle(draft.points), ...(this.surface.cross?.().slice(2) ?? [])] });
      this.told.draw(draft);
    }
    this.draw();
  }

  isLarge(draft) {
    const [[x0, y0], [x1, y1]] = draft.points.map((place) => this.toCanvas(place));
    return Math.min(Math.abs(x1 - x0), Math.abs(y1 - y0)) >= EDGE_SLACK_PX;
  }

  wheel(event) {
    if (!this.surface?.isReady) return;
    event.preventDefault();
    if (!event.ctrlKey && this.told.scroll(Math.sign(event.deltaY))) return;
    const ratio = window.devicePixelRatio || 1;
    this.magnify(event.deltaY < 0 ? 1.15 : 1 / 1.15, [event.offsetX * ratio, event.offsetY * ratio]);
  }

  magnify(factor, at) {
    if (!this.surface?.isReady) return;
    const cell = this.surface.cells?.[0] ?? { wide: 1, high: 1 };
    this.surface.magnify(factor, ...(at ?? [(cell.wide * this.canvas.width) / 2, (cell.high * this.canvas.height) / 2]));
    this.told.zoomed?.();
    this.draw();
  }

  fitAll() {
    this.surface?.fitAll();
    this.told.zoomed?.();
    this.draw();
  }

  // Arrow keys move the cross as the picture is seen; Enter uses the tool there.
  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!this.surface?.isReady || event.ctrlKey || event.metaKey) return;
    if (steps) this.moveCross(steps, event.shiftKey ? 10 : 1);
    else if (event.key === "Enter") this.useCross();
    else if (event.key === "Escape" && this.draft) this.draft = null;
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.draw();
  }

  moveCross([right, down], far) {
    const place = this.cross?.voxel ?? this.surface.cross?.().map(Math.round) ?? this.size.map((one) => Math.round((one - 1) / 2));
    const [x0, y0] = this.toCanvas(place);
    const along = [[1, 0], [0, 1], [-1, 0], [0, -1]].find(([x, y]) => {
      const [x1, y1] = this.toCanvas([place[0] + x, place[1] + y]);
      return (x1 - x0) * right + (y1 - y0) * down > 0.5 * Math.hypot(x1 - x0, y1 - y0);
    }) ?? [0, 0];
    const [x, y] = [0, 1].map((k) => Math.min(Math.max(Math.round(place[k]) + along[k] * far, 0), this.size[k] - 1));
    this.cross = { isSlice: true, isInside: true, voxel: [x, y, ...place.slice(2)] };
    if (this.surface.goTo) this.crossTo(this.cross);
    if (this.draft) this.extend([x, y]);
    this.told.place(this.cross);
  }

  // Enter clicks at the cross; of a box and a line the first Enter begins and the second ends.
  useCross() {
    if (!this.cross) return;
    const isDrawn = BOXES[this.tool] || LINES[this.tool];
    if (this.draft) this.up();
    else if (isDrawn) this.begin(this.cross);
    else if (this.tool === "plus" || this.tool === "minus") this.told.draw({ kind: this.tool, points: [this.cross.voxel.slice(0, 2)] });
  }
}

function middle([[x0, y0], [x1, y1]]) {
  return [(x0 + x1) / 2, (y0 + y1) / 2];
}

function stroke(pen, ratio, path) {
  for (const [colour, thick] of [["#000", 3], ["#7cc0ff", 1.25]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = thick * ratio;
    pen.beginPath();
    path();
    pen.stroke();
  }
}

// The edge of a plane, and thin lines through the point that all planes show, open in the middle.
function drawTile(pen, { cross: [x, y], left, top, width, height }, ratio) {
  const gap = 14 * ratio;
  pen.strokeStyle = "#3a434b";
  pen.lineWidth = ratio;
  pen.strokeRect(left, top, width, height);
  pen.strokeStyle = "rgb(124 192 255 / 0.55)";
  pen.save();
  pen.beginPath();
  pen.rect(left, top, width, height);
  pen.clip();
  pen.beginPath();
  for (const [from, to] of [[left, x - gap], [x + gap, left + width]]) if (to > from) { pen.moveTo(from, y); pen.lineTo(to, y); }
  for (const [from, to] of [[top, y - gap], [y + gap, top + height]]) if (to > from) { pen.moveTo(x, from); pen.lineTo(x, to); }
  pen.stroke();
  pen.restore();
}

function drawLetters(pen, { name, letters, left, top, width, height }, ratio) {
  const edge = 14 * ratio;
  const places = [[left + edge, top + height / 2], [left + width - edge, top + height / 2], [left + width / 2, top + edge], [left + width / 2, top + height - edge]];
  pen.font = `600 ${13 * ratio}px system-ui, "DejaVu Sans", sans-serif`;
  Object.assign(pen, { textAlign: "center", textBaseline: "middle", lineJoin: "round", lineWidth: 3 * ratio, strokeStyle: "#000", fillStyle: "#fff" });
  letters.forEach((letter, k) => {
    pen.strokeText(letter, ...places[k]);
    pen.fillText(letter, ...places[k]);
  });
  if (!name || (!left && !top)) return; // the large plane has its facts there
  pen.font = `${12 * ratio}px system-ui, "DejaVu Sans", sans-serif`;
  Object.assign(pen, { textAlign: "left", fillStyle: "#dfe6ec" });
  pen.strokeText(name, left + 10 * ratio, top + edge + ratio);
  pen.fillText(name, left + 10 * ratio, top + edge + ratio);
}
