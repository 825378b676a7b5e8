// Shows a volume in three planes. This is the only module that knows NiiVue; `picture.js` is the surface without it.
// Positions are voxels (x, y, n) of the file, centres at integers; on the canvas, device pixels.

import { NVImage, Niivue } from "./vendor/niivue.js";

const AXIAL = 0;
const CORONAL = 1;
const SAGITTAL = 2;
const NORMALS = [2, 1, 0]; // of axial, coronal, sagittal tiles: the axis of the body that goes into the screen
const NAMES = ["Axial", "Coronal", "Sagittal"];
const LETTERS = [["R", "L", "A", "P"], ["R", "L", "S", "I"], ["A", "P", "S", "I"]]; // left, right, top, bottom edge
const HERO = 0.64;

export class Planes {
  // canvas: one that nothing else draws on.
  constructor(canvas) {
    this.canvas = canvas;
    this.niivue = new Niivue({
      isRadiologicalConvention: true, sagittalNoseLeft: true, isSliceMM: false, interactive: false, dragAndDropEnabled: false,
      isOrientationTextVisible: false, backColor: [0, 0, 0, 1], crosshairWidth: 0, logLevel: "error", loadingText: "", isAntiAlias: false,
    });
    this.hasThree = true;
    this.isReady = false;
  }

  static isAble() {
    try {
      return Boolean(document.createElement("canvas").getContext("webgl2"));
    } catch {
      return false;
    }
  }

  // bytes: of a NIfTI file whose first axes are x, y, n. window: { low, high } to begin with.
  async show(bytes, window, colours) {
    this.attached ??= this.niivue.attachToCanvas(this.canvas);
    await this.attached;
    this.clear();
    const image = await NVImage.new(bytes, "volume.nii", "gray", 1, null, window.low, window.high);
    if (Math.max(...image.dimsRAS.slice(1)) > this.niivue.uiData.max3D) throw new Error("the volume is larger than this computer's graphics can take");
    this.image = image;
    this.dims = image.dimsRAS.slice(1, 4);
    const strides = [1, this.dims[0], this.dims[0] * this.dims[1]];
    // For each axis of the file: the axis of the body that it runs along, and whether it runs to the right, front and top.
    this.axes = [0, 1, 2].map((own) => {
      const body = image.permRAS.findIndex((one) => Math.abs(one) === own + 1);
      return { body, isFlipped: image.permRAS[body] < 0, count: this.dims[body], stride: strides[body] };
    });
    this.slices = NORMALS.indexOf(this.axes[2].body);
    this.niivue.addVolume(image);
    this.niivue.createEmptyDrawing();
    const parts = [1, 3, 5].map((k) => [0, ...colours.map((colour) => parseInt(colour.slice(k, k + 2), 16))]);
    this.niivue.setDrawColormap({ R: parts[0], G: parts[1], B: parts[2], A: [0, ...colours.map(() => 255)], labels: ["", ...colours] });
    this.niivue.drawRimOpacity = 1;
    this.zoom = 1;
    this.niivue.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.isReady = true;
    this.layOut();
  }

  clear() {
    this.isReady = false;
    this.niivue.closeDrawing?.();
    for (const image of [...this.niivue.volumes]) this.niivue.removeVolume(image);
  }

  // The slices of the file large, the other planes beside or below them.
  layOut() {
    if (!this.isReady) return;
    const others = [AXIAL, CORONAL, SAGITTAL].filter((plane) => plane !== this.slices);
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const rest = 1 - HERO;
    let tiles = [[this.slices, [0, 0, 1, 1]]];
    if (this.hasThree && width >= height) tiles = [[this.slices, [0, 0, HERO, 1]], [others[0], [HERO, 0, rest, 0.5]], [others[1], [HERO, 0.5, rest, 0.5]]];
    else if (this.hasThree) tiles = [[this.slices, [0, 0, 1, HERO]], [others[0], [0, HERO, 0.5, rest]], [others[1], [0.5, HERO, 0.5, rest]]];
    this.cells = tiles.map(([plane, [left, top, wide, high]]) => ({ plane, left, top, wide, high }));
    this.niivue.setCustomLayout(tiles.map(([sliceType, position]) => ({ sliceType, position })));
  }

  draw() {
    if (this.isReady) this.niivue.drawScene();
  }

  // ---- where things are

  toFrac(voxel) {
    const frac = [0, 0, 0];
    this.axes.forEach(({ body, isFlipped, count }, own) => {
      const at = (voxel[own] + 0.5) / count;
      frac[body] = isFlipped ? 1 - at : at;
    });
    return frac;
  }

  toVoxel(frac) {
    return this.axes.map(({ body, isFlipped, count }) => (isFlipped ? 1 - frac[body] : frac[body]) * count - 0.5);
  }

  tile(plane) {
    return this.niivue.screenSlices.find((one) => one.axCorSag === plane);
  }

  // The canvas's pixel of a voxel in a plane, that of the slices if none is named.
  toCanvas(voxel, plane = this.slices) {
    const tile = this.tile(plane);
    const place = this.niivue.frac2mm(this.toFrac(voxel));
    const [across, up] = plane === AXIAL ? [place[0], place[1]] : plane === CORONAL ? [place[0], place[2]] : [place[1], place[2]];
    const [left, top, width, height] = tile.leftTopWidthHeight;
    const share = (across - tile.leftTopMM[0]) / tile.fovMM[0];
    return [left + share * width, top + (1 - (up - tile.leftTopMM[1]) / tile.fovMM[1]) * height];
  }

  // The plane below a pixel of the canvas, the voxel there, and whether it is inside the volume; null between the planes.
  at(px, py) {
    const found = this.cells.find(({ left, top, wide, high }) => {
      const [x, y] = [px / this.canvas.width - left, py / this.canvas.height - top];
      return x >= 0 && y >= 0 && x < wide && y < high;
    });
    if (!found || !this.tile(found.plane)) return null;
    const here = this.cross();
    const [x0, y0] = this.toCanvas(here, found.plane);
    const voxel = [...here];
    for (const [own, { body }] of this.axes.entries()) {
      if (body === NORMALS[found.plane]) continue;
      const next = [...here];
      next[own] += 1;
      const [x1, y1] = this.toCanvas(next, found.plane);
      const [dx, dy] = [x1 - x0, y1 - y0]; // one of them is 0: planes lie along the axes
      voxel[own] += Math.abs(dx) > Math.abs(dy) ? (px - x0) / dx : (py - y0) / dy;
    }
    const isInside = voxel.every((one, own) => one >= -0.5 && one <= this.axes[own].count - 0.5);
    return { plane: found.plane, isSlice: found.plane === this.slices, voxel, isInside };
  }

  cross() {
    return this.toVoxel(this.niivue.scene.crosshairPos);
  }

  goTo(voxel) {
    const inside = voxel.map((one, own) => Math.min(Math.max(one, 0), this.axes[own].count - 1));
    this.niivue.scene.crosshairPos = this.toFrac(inside);
    this.draw();
  }

  // What is written and drawn over each plane, in pixels of the canvas.
  tiles() {
    return this.cells.map(({ plane, left, top, wide, high }) => ({
      name: NAMES[plane], letters: LETTERS[plane], cross: this.toCanvas(this.cross(), plane), left: left * this.canvas.width,
      top: top * this.canvas.height, width: wide * this.canvas.width, height: high * this.canvas.height,
    }));
  }

  // Pixels of the canvas for a millimetre, in the plane of the slices.
  get pixelsPerMm() {
    const tile = this.tile(this.slices);
    return tile ? Math.abs(tile.leftTopWidthHeight[2] / tile.fovMM[0]) : 1;
  }

  magnify(factor, px, py) {
    const before = this.at(px, py);
    this.zoom = Math.min(Math.max(this.zoom * factor, 0.5), 30);
    this.niivue.scene.pan2Dxyzmm = this.zoom <= 1.001 && factor < 1 ? [0, 0, 0, this.zoom] : [...this.niivue.scene.pan2Dxyzmm.slice(0, 3), this.zoom];
    this.draw();
    if (!before || this.zoom <= 1.001) return;
    const [x, y] = this.toCanvas(before.voxel, before.plane);
    this.pan(px - x, py - y, before.plane);
  }

  pan(dx, dy, plane = this.slices) {
    const tile = this.tile(plane);
    const [, , width, height] = tile.leftTopWidthHeight;
    const pan = [...this.niivue.scene.pan2Dxyzmm];
    const [across, up] = plane === AXIAL ? [0, 1] : plane === CORONAL ? [0, 2] : [1, 2];
    pan[across] += ((dx * tile.fovMM[0]) / width) * this.zoom;
    pan[up] -= ((dy * tile.fovMM[1]) / height) * this.zoom;
    this.niivue.scene.pan2Dxyzmm = pan;
    this.draw();
  }

  fitAll() {
    this.zoom = 1;
    this.niivue.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.draw();
  }

  // ---- values and masks

  value([x, y, n]) {
    const [width, height] = [this.axes[0].count, this.axes[1].count];
    const { scl_slope: slope, scl_inter: intercept } = this.image.hdr;
    return this.image.img[Math.round(x) + width * (Math.round(y) + height * Math.round(n))] * slope + intercept;
  }

  setWindow({ low, high }) {
    Object.assign(this.image, { cal_min: low, cal_max: high });
    this.niivue.updateGLVolume();
  }

  // labels: of one slice, row by row, 0 for none, k for the k-th colour.
  setSlice(n, labels) {
    const [across, down, through] = this.axes.map(({ isFlipped, count, stride }) => ({ start: isFlipped ? (count - 1) * stride : 0, step: isFlipped ? -stride : stride }));
    const bitmap = this.niivue.drawBitmap;
    const [width, height] = [this.axes[0].count, this.axes[1].count];
    for (let y = 0, from = 0; y < height; y++) {
      let to = across.start + down.start + y * down.step + through.start + n * through.step;
      for (let x = 0; x < width; x++, from++, to += across.step) bitmap[to] = labels[from];
    }
  }

  clearLabels() {
    this.niivue.drawBitmap.fill(0);
  }

  refresh() {
    this.niivue.refreshDrawing(true);
  }

  setOpacity(opacity, isShown) {
    this.niivue.drawRimOpacity = isShown ? 1 : 0;
    this.niivue.setDrawOpacity(isShown ? opacity : 0);
  }
}
