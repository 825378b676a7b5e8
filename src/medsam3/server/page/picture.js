// Shows one frame with its masks on a canvas. Positions are pixels (x, y) of the file; on the canvas, device pixels.

export class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.bitmap = null;
    this.masks = [];
    this.opacity = 0.35;
    this.isShown = true;
    this.fitAll();
  }

  get isReady() { return Boolean(this.bitmap); }

  // display: how the server shows frames; to_file leads from the bitmap's pixels to those of the file.
  show(bitmap, display) {
    this.bitmap = bitmap;
    if (!display) return;
    const [[a, b, c], [d, e, f]] = display.to_file;
    const size = a * e - b * d;
    this.display = display;
    this.forth = ([u, v]) => [a * u + b * v + c, d * u + e * v + f];
    this.back = ([x, y]) => [(e * (x - c) - b * (y - f)) / size, (a * (y - f) - d * (x - c)) / size];
  }

  // masks: [{ inside, width, height, colour: "#rrggbb", isCurrent, isOfFile }]; inside row by row over the pixels of the
  // bitmap, or of the file.
  setMasks(masks) {
    this.masks = masks.map((mask) => ({ ...mask, ...painted(mask) }));
  }

  setOpacity(opacity, isShown) {
    Object.assign(this, { opacity, isShown });
  }

  fitAll() {
    this.zoom = 1;
    this.shift = [0, 0];
  }

  // Scale and offset from the bitmap's pixels to those of the canvas.
  fit() {
    const { width, height } = this.canvas;
    const scale = Math.min(width / this.bitmap.width, height / this.bitmap.height) * this.zoom;
    return { scale, left: (width - this.bitmap.width * scale) / 2 + this.shift[0], top: (height - this.bitmap.height * scale) / 2 + this.shift[1] };
  }

  draw(pen) {
    const { scale, left, top } = this.fit();
    const ratio = window.devicePixelRatio || 1;
    pen.setTransform(scale, 0, 0, scale, left, top);
    pen.imageSmoothingEnabled = scale < 3;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.bitmap, 0, 0);
    pen.imageSmoothingEnabled = false;
    for (const mask of this.isShown ? this.masks : []) {
      pen.setTransform(scale, 0, 0, scale, left, top);
      if (mask.isOfFile) pen.transform(...this.ofFile());
      pen.globalAlpha = this.opacity;
      pen.drawImage(mask.fill, 0, 0);
      pen.globalAlpha = 1;
      for (const [colour, thick] of [["#000", mask.isCurrent ? 4 : 2.5], [mask.colour, mask.isCurrent ? 2.5 : 1.25]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = (thick * ratio) / scale;
        pen.stroke(mask.outline);
      }
    }
    pen.setTransform(1, 0, 0, 1, 0, 0);
  }

  // From edges of the file's pixels to edges of the bitmap's.
  ofFile() {
    const [[u0, v0], [u1, v1], [u2, v2]] = [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5]].map(this.back);
    return [u1 - u0, v1 - v0, u2 - u0, v2 - v0, u0 + 0.5, v0 + 0.5];
  }

  toCanvas(place) {
    const { scale, left, top } = this.fit();
    const [u, v] = this.back(place);
    return [(u + 0.5) * scale + left, (v + 0.5) * scale + top];
  }

  at(px, py) {
    const { scale, left, top } = this.fit();
    const [u, v] = [(px - left) / scale - 0.5, (py - top) / scale - 0.5];
    const isInside = u >= -0.5 && v >= -0.5 && u <= this.bitmap.width - 0.5 && v <= this.bitmap.height - 0.5;
    return { isSlice: true, voxel: this.forth([u, v]), isInside };
  }

  // The colours that are shown at a place of the file, [red, green, blue].
  colour(place) {
    const [u, v] = this.back(place).map(Math.round);
    if (this.read !== this.bitmap) {
      this.pixels = new OffscreenCanvas(this.bitmap.width, this.bitmap.height).getContext("2d", { willReadFrequently: true });
      this.pixels.drawImage(this.bitmap, 0, 0);
      this.read = this.bitmap;
    }
    return [...this.pixels.getImageData(u, v, 1, 1).data.slice(0, 3)];
  }

  tiles() {
    return [{ name: "", letters: this.display.letters ?? [], left: 0, top: 0, width: this.canvas.width, height: this.canvas.height }];
  }

  get pixelsPerMm() {
    return this.display.pixel_mm ? this.fit().scale / this.display.pixel_mm : null;
  }

  magnify(factor, px, py) {
    const { voxel } = this.at(px, py);
    this.zoom = Math.min(Math.max(this.zoom * factor, 0.5), 40);
    if (this.zoom <= 1.001 && factor < 1) { this.shift = [0, 0]; return; }
    const [x, y] = this.toCanvas(voxel);
    this.pan(px - x, py - y);
  }

  pan(dx, dy) {
    this.shift = [this.shift[0] + dx, this.shift[1] + dy];
  }
}

export function decoded({ width, height, runs }) {
  const mask = new Uint8Array(width * height);
  let at = 0;
  runs.forEach((length, k) => {
    if (k % 2) mask.fill(1, at, at + length);
    at += length;
  });
  return mask;
}

// The mask in its colour, to be laid over the picture, and its outline as a path along the edges of its pixels.
function painted({ inside, width, height, colour }) {
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
