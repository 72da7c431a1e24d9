// The page for segmentation by clicking. One plain file, no build step: helpers, server, masks, viewer, marks, tools,
// controls, opening and saving. Voxels are those of `display_grid.py`: x to the right, y to the front, z to the head.
"use strict";

const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const AXIAL = 0, CORONAL = 1, SAGITTAL = 2, RENDER = 4; // slice types of NiiVue
const DRAW_TEXTURE_UNIT = 7; // where NiiVue 0.69 keeps the texture of drawings
const HEADER_BYTES = 18; // of a slice of a mask, see messages.py
const SLOW_FRAME_MS = 100;

// ---------------------------------------------------------------------------------------------------------- the server

/** The state that the server has reported last. */
const session = { id: "", source: null, image: null, revision: 0, complete: false, objects: [], prompts: [], canUndo: false, canRedo: false };

let socket = null;
let retrySeconds = 1;
let isFirstState = true; // of the image
let sentAt = 0; // time of the last prompt, until its slice arrives
let sentRevision = 0; // revision at that time

async function request(path, options = {}) {
  const response = await fetch(path, { credentials: "same-origin", ...options });
  if (!response.ok) {
    const text = await response.text();
    let detail = text;
    try { detail = JSON.parse(text).detail; } catch { /* not JSON: shown as it is */ }
    throw new Error(detail || `${response.status} ${response.statusText}`);
  }
  return response;
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/page/socket`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    retrySeconds = 1;
    $("connection").textContent = "Connected";
    if (session.source) open(session.source); // also after the server was started again: prompts are on its disk
  };
  socket.onclose = () => {
    $("connection").textContent = "Connection lost, trying again…";
    setTimeout(connect, 1000 * retrySeconds);
    retrySeconds = Math.min(2 * retrySeconds, 15);
  };
  socket.onmessage = ({ data }) => {
    if (typeof data !== "string") receiveSlice(data);
    else {
      const message = JSON.parse(data);
      RECEIVERS[message.type]?.(message);
    }
  };
}

function send(message) {
  if (socket?.readyState !== WebSocket.OPEN) showError("The server cannot be reached; try again in a moment.");
  else socket.send(JSON.stringify(message));
}

function sendPrompt(message) {
  if (!session.image) return;
  sentAt = performance.now();
  sentRevision = session.revision;
  send({ object: selected, ...message });
}

const RECEIVERS = {
  opened: (message) => imageOpened(message).catch((error) => showError(error.message)),
  state: (message) => {
    Object.assign(session, message);
    $("activity").textContent = ACTIVITIES[message.activity] ?? "";
    $("undo").disabled = !message.canUndo;
    $("redo").disabled = !message.canRedo;
    if (message.activity === "idle") $("progress").hidden = true;
    if (isFirstState) selected = message.objects[0]?.id ?? 1;
    isFirstState = false;
    masks.keepOnly(new Set(message.objects.filter(({ prompted }) => prompted).map(({ id }) => id)));
    setColours();
    showObjects();
    showTiming();
    if (message.revision > sentRevision && message.activity !== "answering") clickAnswered();
    drawMarks();
  },
  progress: ({ what, done, total }) => {
    $("progress").hidden = done >= total;
    $("progress").max = total;
    $("progress").value = done;
    $("activity").textContent = `${what[0].toUpperCase()}${what.slice(1)}: ${done} of ${total}`;
  },
  error: ({ message, about }) => {
    if (about === "open") {
      forgetSource();
      showOpenDialog();
      $("open-message").textContent = message;
    } else showError(message);
    masks.endPainting();
  },
  gone: ({ message }) => { showOpenDialog(); $("open-message").textContent = message; },
};
const ACTIVITIES = { idle: "Ready", answering: "Segmenting the slice…", propagating: "Segmenting other slices…",
  preparing: "Preparing the model…", encoding: "Preparing slices…", reading: "Saving…" };

function receiveSlice(buffer) {
  const view = new DataView(buffer);
  const [x, y, width, height] = [10, 12, 14, 16].map((offset) => view.getUint16(offset, true));
  const part = { x, y, width, height, bits: new Uint8Array(buffer, HEADER_BYTES) };
  masks.set(view.getUint16(2, true), view.getUint16(8, true), part);
  if (view.getUint32(4, true) > sentRevision) clickAnswered();
}

/** Note the time of the last click, once its slice or, if no mask has changed, the state after it has arrived. */
function clickAnswered() {
  if (!sentAt) return;
  lastClickMs = performance.now() - sentAt;
  sentAt = 0;
  masks.endPainting();
  showTiming();
}

let lastClickMs = null;
function showTiming() {
  const server = session.clickSeconds === null || session.clickSeconds === undefined ? "" :
    `${Math.round(1000 * session.clickSeconds)} ms on the server`;
  const here = lastClickMs === null ? "" : `${Math.round(lastClickMs)} ms here`;
  $("timing").textContent = here || server ? `Last click: ${[here, server].filter(Boolean).join(", ")}` : "";
}

// ----------------------------------------------------------------------------------------------------------- the masks

/** Masks of all objects, as boxes of bits per slice; the viewer's label map is made of them slice by slice. */
const masks = {
  slices: new Map(), // object -> Map of z -> {x, y, width, height, bits, count}
  changed: new Set(), // z of slices that the viewer does not show yet
  painted: null, // {object, z, mask} of a slice that the user paints, until the server has answered

  clear() { this.slices.clear(); this.changed.clear(); this.painted = null; },

  set(object, z, part) {
    if (!session.image || z >= session.image.shape[2]) return;
    if (!this.slices.has(object)) this.slices.set(object, new Map());
    part.count = countBits(part.bits);
    if (part.count) this.slices.get(object).set(z, part);
    else this.slices.get(object).delete(z);
    this.changed.add(z);
    requestFrame();
  },

  keepOnly(objects) {
    for (const [object, slices] of this.slices) {
      if (objects.has(object)) continue;
      slices.forEach((_, z) => this.changed.add(z));
      this.slices.delete(object);
    }
    requestFrame();
  },

  /** Show a mask, one byte per voxel, in place of the server's mask of an object on a slice. */
  paint(object, z, mask) {
    this.changed.add(this.painted?.z ?? z).add(z);
    this.painted = { object, z, mask };
    requestFrame();
  },

  /** Show the server's mask again, unless the user is painting. */
  endPainting() {
    if (!this.painted || gesture?.kind === "paint") return;
    this.changed.add(this.painted.z);
    this.painted = null;
    requestFrame();
  },

  /** A copy of the shown mask of an object on a slice, one byte per voxel. */
  slice(object, z) {
    if (this.painted?.object === object && this.painted.z === z) return this.painted.mask.slice();
    const [nx, ny] = session.image.shape;
    const mask = new Uint8Array(nx * ny);
    paintBits(mask, nx, this.slices.get(object)?.get(z), 1);
    return mask;
  },

  /** Write the label map of a slice; the selected object is on top. */
  compose(z, target) {
    target.fill(0);
    const painted = this.painted?.z === z ? this.painted : null, objects = new Set(this.slices.keys());
    if (painted) objects.add(painted.object);
    for (const object of [...objects].sort((a, b) => (a === selected) - (b === selected) || a - b)) {
      if (object !== painted?.object) paintBits(target, session.image.shape[0], this.slices.get(object).get(z), object);
      else painted.mask.forEach((value, at) => { if (value) target[at] = object; });
    }
  },

  voxels(object) {
    let sum = 0;
    this.slices.get(object)?.forEach(({ count }) => { sum += count; });
    return sum;
  },

  /** The middle of the largest slice of an object, or null. */
  centre(object) {
    let best = null, bestZ = 0;
    this.slices.get(object)?.forEach((part, z) => { if (!best || part.count > best.count) [best, bestZ] = [part, z]; });
    return best && [...centroid(best), bestZ];
  },
};

const BITS = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll("0", "").length);
function countBits(bytes) {
  let count = 0;
  for (const byte of bytes) count += BITS[byte];
  return count;
}

function paintBits(target, nx, part, value) {
  if (!part) return;
  let bit = 0;
  for (let row = part.y; row < part.y + part.height; row++) {
    for (let at = row * nx + part.x, end = at + part.width; at < end; at++, bit++) {
      if (part.bits[bit >> 3] & (128 >> (bit & 7))) target[at] = value;
    }
  }
}

/** The voxel of a part that is nearest to the mean of its voxels, so that it is inside of a ring, too. */
function centroid({ x, y, width, height, bits }) {
  const isSet = (bit) => bits[bit >> 3] & (128 >> (bit & 7));
  let sumX = 0, sumY = 0, count = 0;
  for (let bit = 0; bit < width * height; bit++) {
    if (isSet(bit)) { sumX += bit % width; sumY += Math.floor(bit / width); count++; }
  }
  let best = [0, 0], nearest = Infinity;
  for (let bit = 0; bit < width * height; bit++) {
    const u = bit % width, v = Math.floor(bit / width), distance = (u - sumX / count) ** 2 + (v - sumY / count) ** 2;
    if (distance < nearest && isSet(bit)) [nearest, best] = [distance, [u, v]];
  }
  return [x + best[0], y + best[1]];
}

/** A slice with one byte per voxel as the bounding box of its voxels, for the server; null if it is empty. */
function packSlice(mask, nx) {
  let left = nx, right = -1, top = -1, bottom = -1;
  mask.forEach((value, at) => {
    if (!value) return;
    const x = at % nx, y = (at - x) / nx;
    left = Math.min(left, x); right = Math.max(right, x); bottom = y;
    if (top < 0) top = y;
  });
  if (right < 0) return null;
  const width = right - left + 1, height = bottom - top + 1;
  const bits = new Uint8Array(Math.ceil(width * height / 8));
  for (let bit = 0; bit < width * height; bit++) {
    if (mask[(top + Math.floor(bit / width)) * nx + left + bit % width]) bits[bit >> 3] |= 128 >> (bit & 7);
  }
  return { x: left, y: top, width, height, bits };
}

function toMessage({ x, y, width, height, bits }) {
  let text = "";
  for (const byte of bits) text += String.fromCharCode(byte);
  return { box: [x, y, width, height], bits: btoa(text) };
}

// ---------------------------------------------------------------------------------------------------------- the viewer

const nv = new niivue.Niivue({
  isRadiologicalConvention: true, dragAndDropEnabled: false, logLevel: "error", loadingText: "", backColor: [0, 0, 0, 1],
  crosshairColor: [1, 0.82, 0.4, 0.7], crosshairWidth: 0.25, crosshairWidthUnit: "percent", crosshairGap: 12, isAntiAlias: false, show3Dcrosshair: true,
  clipPlaneHotKey: "", viewModeHotKey: "", cycleClipPlaneHotKey: "", fontMinPx: 16, multiplanarForceRender: true,
  dragMode: niivue.DRAG_MODE.none, isNearestInterpolation: false,
});

// The rendering shows masks in the chosen opacity, also where planes show contours alone.
const drawImage3D = nv.drawImage3D;
nv.drawImage3D = (...view) => {
  const opacity = nv.drawOpacity;
  nv.drawOpacity = opacity && Number($("opacity").value) / 100;
  drawImage3D.apply(nv, view);
  nv.drawOpacity = opacity;
};

let crosshair = [0, 0, 0];
let framePlanned = false;
let drawnAt = 0, drawMs = 0;

function requestFrame() {
  if (!framePlanned) { framePlanned = true; requestAnimationFrame(showChanges); }
}

/** Bring changed slices to the graphics card, a few milliseconds of them per frame, and draw. */
function showChanges() {
  framePlanned = false;
  if (!session.image || !nv.drawBitmap || !nv.drawTexture) return;
  const [nx, ny] = session.image.shape, gl = nv.gl, begin = performance.now();
  if (masks.changed.size) {
    gl.activeTexture(gl.TEXTURE0 + DRAW_TEXTURE_UNIT);
    gl.bindTexture(gl.TEXTURE_3D, nv.drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    for (const z of [...masks.changed].sort((a, b) => Math.abs(a - crosshair[2]) - Math.abs(b - crosshair[2]))) {
      const slice = nv.drawBitmap.subarray(z * nx * ny, (z + 1) * nx * ny);
      masks.compose(z, slice);
      gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, z, nx, ny, 1, gl.RED, gl.UNSIGNED_BYTE, slice);
      masks.changed.delete(z);
      if (performance.now() - begin > 8) break;
    }
    showVolumes();
  }
  // A slow graphics card is given time between pictures, so that clicks are handled at once.
  const wait = drawMs > SLOW_FRAME_MS / 2 ? 4 * drawMs : 0;
  if (masks.changed.size === 0 || performance.now() - drawnAt > wait) {
    const start = performance.now();
    nv.drawScene();
    drawnAt = performance.now();
    drawMs = drawnAt - start;
    drawMarks();
  }
  if (masks.changed.size) requestFrame();
}

function layOut() {
  const { clientWidth: width, clientHeight: height } = $("view");
  const tiles = width > height ?
    { [AXIAL]: [0, 0, 0.62, 1], [CORONAL]: [0.62, 0, 0.38, 1 / 3], [SAGITTAL]: [0.62, 1 / 3, 0.38, 1 / 3],
      [RENDER]: [0.62, 2 / 3, 0.38, 1 / 3] } :
    { [AXIAL]: [0, 0, 1, 0.65], [CORONAL]: [0, 0.65, 1 / 3, 0.35], [SAGITTAL]: [1 / 3, 0.65, 1 / 3, 0.35],
      [RENDER]: [2 / 3, 0.65, 1 / 3, 0.35] };
  nv.setCustomLayout(Object.entries(tiles).map(([type, position]) => ({ sliceType: Number(type), position })));
  drawMarks();
}

/** The tile and the voxel under a pointer, or null. */
function placeAt(event) {
  if (!session.image) return null;
  const box = nv.canvas.getBoundingClientRect(), dpr = nv.uiData.dpr ?? 1;
  const position = [(event.clientX - box.left) * dpr, (event.clientY - box.top) * dpr];
  const tile = nv.screenSlices[nv.tileIndex(...position)];
  if (!tile || tile.axCorSag > SAGITTAL) return null;
  const fraction = nv.canvasPos2frac(position);
  if (fraction[0] < 0) return null;
  const voxel = [...nv.frac2vox(fraction)].map((value, axis) => clamp(value, 0, session.image.shape[axis] - 1));
  return { plane: tile.axCorSag, voxel };
}

/** Where a voxel is on the marks' canvas, in the tile of a plane. */
function positionOf(voxel, plane) {
  const found = nv.frac2canvasPosWithTile(nv.vox2frac(voxel), plane);
  return found && found.pos.map((value) => value / (nv.uiData.dpr ?? 1));
}

const ACROSS = { [AXIAL]: 2, [CORONAL]: 1, [SAGITTAL]: 0 }; // the axis that a plane is perpendicular to

function goTo(voxel) {
  nv.scene.crosshairPos = nv.vox2frac(voxel);
  crosshairMoved(voxel);
  requestFrame();
}

let lookTimer = 0;
function crosshairMoved(voxel) {
  const z = crosshair[2];
  crosshair = [...voxel].map(Math.round);
  $("place").textContent = `x ${crosshair[0]}, y ${crosshair[1]}, slice ${crosshair[2]}`;
  $("slice").value = crosshair[2];
  $("slice-value").textContent = `${crosshair[2]} of ${session.image.shape[2] - 1}`;
  drawMarks();
  if (z !== crosshair[2]) {
    clearTimeout(lookTimer);
    lookTimer = setTimeout(() => send({ type: "look", z: crosshair[2] }), 150);
  }
}
nv.onLocationChange = (location) => { if (session.image) crosshairMoved(location.vox); };

let shownColours = null; // by the viewer
function setColours() {
  const lut = nv.drawLut.lut, colours = session.objects.map(({ id, color }) => `${id} ${color}`).join();
  if (session.image && colours === shownColours) return;
  shownColours = session.image ? colours : null;
  for (let object = 1; object < 256; object++) lut.set([...rgb(colourOf(object)), 255], 4 * object);
  lut[3] = 0;
  if (nv._gl && session.image) nv.refreshColormaps();
}

const COLOURS = ["#ffb000", "#56b4e9", "#f07fc0", "#00c896", "#f0e442", "#ff6a3d"]; // as in pictures/colours.py
const colourOf = (object) => session.objects.find(({ id }) => id === object)?.color ?? COLOURS[(object - 1) % COLOURS.length];
const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

function setStyle() {
  const opacity = $("hide").checked ? 0 : Number($("opacity").value) / 100;
  const contour = $("contour").checked;
  $("opacity-value").textContent = `${$("opacity").value} %`;
  nv.drawRimOpacity = opacity ? Math.min(1, opacity + (contour ? 0.5 : 0.3)) : -1;
  nv.drawOpacity = contour && opacity ? 0.02 : opacity;
  requestFrame();
}

// ----------------------------------------------------------------------------------------------------------- the marks

/** Draw prompts, numbers of objects, and what is being drawn, so that colours are not needed. */
function drawMarks() {
  const canvas = $("marks"), dpr = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== width * dpr || canvas.height !== height * dpr) {
    canvas.width = width * dpr;
    canvas.height = height * dpr;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(dpr, 0, 0, dpr, 0, 0);
  pen.clearRect(0, 0, width, height);
  if (!session.image || !nv.screenSlices?.length) return;
  if (!$("hide").checked) drawNumbers(pen);
  for (const prompt of session.prompts) drawPrompt(pen, prompt);
  if (gesture?.kind === "box") drawBox(pen, gesture.first, gesture.last, selected, gesture.plane);
  if (gesture?.kind === "scribble") drawStroke(pen, gesture);
  if (pointer && (tool === "brush" || tool === "eraser") && pointer.plane === AXIAL) drawBrush(pen, pointer.voxel);
}

function drawPrompt(pen, prompt) {
  if (prompt.kind === "point") {
    for (const plane of [AXIAL, CORONAL, SAGITTAL]) {
      if (Math.abs(prompt.voxel[ACROSS[plane]] - crosshair[ACROSS[plane]]) < 0.75) drawPoint(pen, prompt, plane);
    }
  } else if (prompt.first[2] === crosshair[2]) drawBox(pen, prompt.first, prompt.last, prompt.object, AXIAL);
}

function drawPoint(pen, { voxel, inside, object }, plane) {
  const at = positionOf(voxel, plane);
  if (!at) return;
  const [x, y] = at, radius = 8;
  pen.beginPath();
  if (inside) pen.arc(x, y, radius, 0, 2 * Math.PI);
  else pen.rect(x - radius, y - radius, 2 * radius, 2 * radius);
  pen.fillStyle = inside ? colourOf(object) : "#000000";
  pen.fill();
  pen.lineWidth = 2;
  pen.strokeStyle = inside ? "#000000" : colourOf(object);
  pen.stroke();
  pen.beginPath();
  pen.moveTo(x - 5, y); pen.lineTo(x + 5, y);
  if (inside) { pen.moveTo(x, y - 5); pen.lineTo(x, y + 5); }
  pen.strokeStyle = inside ? "#000000" : "#ffffff";
  pen.stroke();
  drawText(pen, String(object), x + radius + 3, y - radius);
}

function drawBox(pen, first, last, object, plane) {
  const across = ACROSS[plane];
  const low = first.map((value, axis) => Math.min(value, last[axis]) - (axis === across ? 0 : 0.5));
  const high = first.map((value, axis) => Math.max(value, last[axis]) + (axis === across ? 0 : 0.5));
  const [a, b] = [positionOf(low, plane), positionOf(high, plane)];
  if (!a || !b) return;
  for (const [colour, width, dash] of [["#000000", 4, []], [colourOf(object), 2, [7, 4]]]) {
    pen.setLineDash(dash);
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.strokeRect(Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1]));
  }
  pen.setLineDash([]);
  drawText(pen, String(object), Math.max(a[0], b[0]) + 3, Math.min(a[1], b[1]));
}

function drawNumbers(pen) {
  for (const [object, slices] of masks.slices) {
    const part = slices.get(crosshair[2]);
    if (!part || part.count < 40) continue;
    part.centre ??= centroid(part);
    const at = positionOf([...part.centre, crosshair[2]], AXIAL);
    if (at) drawText(pen, String(object), at[0] - 4, at[1] + 5);
  }
}

function drawText(pen, text, x, y) {
  pen.font = "bold 13px sans-serif";
  pen.lineWidth = 3;
  pen.strokeStyle = "#000000";
  pen.strokeText(text, x, y);
  pen.fillStyle = "#ffffff";
  pen.fillText(text, x, y);
}

function drawStroke(pen, { voxels, inside }) {
  for (const [colour, width] of [["#000000", 5], [inside ? colourOf(selected) : "#ffffff", 3]]) {
    pen.beginPath();
    voxels.forEach((voxel, index) => {
      const at = positionOf(voxel, AXIAL);
      if (at) pen[index ? "lineTo" : "moveTo"](...at);
    });
    pen.setLineDash(inside ? [] : [4, 4]);
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.stroke();
  }
  pen.setLineDash([]);
}

function drawBrush(pen, voxel) {
  const radius = Number($("brush-size").value) + 0.5;
  const [centre, side] = [positionOf(voxel, AXIAL), positionOf([voxel[0] + radius, voxel[1], voxel[2]], AXIAL)];
  const top = positionOf([voxel[0], voxel[1] + radius, voxel[2]], AXIAL);
  if (!centre || !side || !top) return;
  for (const [colour, width] of [["#000000", 3], ["#ffffff", 1]]) {
    pen.beginPath();
    pen.ellipse(...centre, Math.abs(side[0] - centre[0]), Math.abs(top[1] - centre[1]), 0, 0, 2 * Math.PI);
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.stroke();
  }
}

// ----------------------------------------------------------------------------------------------------------- the tools

let tool = "inside";
let selected = 1; // object that prompts are for
let gesture = null; // what the pressed pointer is doing
let pointer = null; // place under the pointer
const AXIAL_ONLY = { box: "Boxes", scribble: "Scribbles", brush: "The brush", eraser: "The eraser" };

function setTool(name) {
  tool = name;
  document.querySelectorAll("[data-tool]").forEach((button) => {
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", String(button.dataset.tool === name));
  });
  showHint("");
  drawMarks();
}

function showHint(text) { $("hint").textContent = text; }

/** Begin a gesture; true if the press belongs to the tool and not to the viewer. */
function press(event) {
  const place = placeAt(event);
  if (!place || event.button === 1 || gesture) return Boolean(gesture);
  const outside = event.button === 2 || event.altKey;
  if (tool === "look" && !outside) return false;
  if (AXIAL_ONLY[tool] && place.plane !== AXIAL) {
    showHint(`${AXIAL_ONLY[tool]} work on the axial plane`);
    return true;
  }
  showHint("");
  const { plane, voxel } = place;
  if (tool === "box") gesture = { kind: "box", plane, first: voxel, last: voxel };
  else if (tool === "scribble") gesture = { kind: "scribble", plane, voxels: [voxel], inside: !outside };
  else if (tool === "brush" || tool === "eraser") {
    const value = Number((tool === "brush") !== outside);
    gesture = { kind: "paint", plane, last: voxel, value, mask: masks.slice(selected, voxel[2]) };
    paint(voxel, voxel);
  } else gesture = { kind: "click", plane, voxel, inside: tool !== "outside" && !outside };
  $("view").setPointerCapture?.(event.pointerId);
  return true;
}

function move(event) {
  pointer = placeAt(event);
  if (gesture && pointer && pointer.plane === gesture.plane) {
    const { voxel } = pointer;
    if (gesture.kind === "box") gesture.last = voxel;
    if (gesture.kind === "scribble") gesture.voxels.push(voxel);
    if (gesture.kind === "paint") { paint(gesture.last, voxel); gesture.last = voxel; }
  }
  if (gesture || tool === "brush" || tool === "eraser") drawMarks();
}

function release() {
  const done = gesture;
  gesture = null;
  if (!done) return;
  if (done.kind === "click") {
    goTo(done.voxel);
    sendPrompt({ type: "click", voxel: done.voxel, inside: done.inside });
  } else if (done.kind === "box") {
    if (done.first.some((value, axis) => value !== done.last[axis])) {
      sendPrompt({ type: "box", first: done.first, second: done.last });
    } else showHint("Drag from one corner of the box to the other");
  } else if (done.kind === "scribble") sendScribble(done);
  else if (done.kind === "paint") sendPainted(done);
  drawMarks();
}

function sendScribble({ voxels, inside }) {
  const [nx, ny] = session.image.shape, mask = new Uint8Array(nx * ny), z = voxels[0][2];
  voxels.forEach((voxel, index) => {
    alongLine(voxels[Math.max(index - 1, 0)], voxel, (x, y) => { mask[y * nx + x] = 1; });
  });
  sendPrompt({ type: "scribble", z, [inside ? "inside" : "outside"]: toMessage(packSlice(mask, nx)) });
}

function sendPainted({ mask, last }) {
  const z = last[2], part = packSlice(mask, session.image.shape[0]);
  if (part) sendPrompt({ type: "draw", z, mask: toMessage(part) });
  else {
    showHint("Nothing would be left on this slice: click outside instead");
    masks.endPainting();
  }
}

/** Paint a line with the brush, and show it at once. */
function paint(from, to) {
  const [nx, ny] = session.image.shape, radius = Number($("brush-size").value), z = to[2];
  const [dx, dy] = session.image.spacing, mm = (radius + 0.25) * Math.min(dx, dy);
  const [reachX, reachY] = [Math.floor(mm / dx), Math.floor(mm / dy)];
  alongLine(from, to, (x, y) => {
    for (let v = Math.max(y - reachY, 0); v <= Math.min(y + reachY, ny - 1); v++) {
      for (let u = Math.max(x - reachX, 0); u <= Math.min(x + reachX, nx - 1); u++) {
        if (((u - x) * dx) ** 2 + ((v - y) * dy) ** 2 <= mm * mm) gesture.mask[v * nx + u] = gesture.value;
      }
    }
  });
  masks.paint(selected, z, gesture.mask);
}

function alongLine(from, to, visit) {
  const steps = Math.max(Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]), 1);
  for (let step = 0; step <= steps; step++) {
    visit(...[0, 1].map((axis) => Math.round(from[axis] + (to[axis] - from[axis]) * step / steps)));
  }
}

/** Handle the pointer before the viewer does: presses of tools are kept from it, and the rest is left to it. */
function listenToPointer() {
  const view = $("view");
  let isOurs = false;
  view.addEventListener("pointerdown", (event) => { isOurs = press(event); }, true);
  view.addEventListener("pointermove", move, true);
  view.addEventListener("pointerup", release, true);
  view.addEventListener("pointercancel", () => { gesture = null; masks.endPainting(); drawMarks(); }, true);
  view.addEventListener("pointerleave", () => { pointer = null; drawMarks(); });
  for (const type of ["mousedown", "mousemove", "mouseup", "touchstart", "touchmove", "touchend", "dblclick"]) {
    view.addEventListener(type, (event) => {
      if (isOurs || type === "dblclick") { event.stopPropagation(); if (event.cancelable) event.preventDefault(); }
      if (type === "mouseup" || type === "touchend") isOurs = false;
    }, { capture: true, passive: false });
  }
  view.addEventListener("contextmenu", (event) => event.preventDefault(), true);
}

// -------------------------------------------------------------------------------------------------------- the controls

function showObjects() {
  const known = new Map(session.objects.map((object) => [object.id, object]));
  if (!known.has(selected)) known.set(selected, { id: selected, name: `object ${selected}` });
  const items = [...known.values()].sort((a, b) => a.id - b.id).map((object) => {
    const item = document.createElement("li");
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", String(object.id === selected));
    item.dataset.object = object.id;
    item.tabIndex = 0;
    const number = document.createElement("span"), name = document.createElement("span"), volume = document.createElement("span");
    number.className = "number";
    number.textContent = object.id;
    number.style.background = colourOf(object.id);
    name.textContent = object.name;
    volume.className = "volume";
    item.append(number, name, volume);
    item.onclick = () => select(object.id);
    item.onkeydown = (event) => { if (event.key === "Enter") select(object.id); };
    return item;
  });
  $("object-list").replaceChildren(...items);
  showVolumes();
}

function showVolumes() {
  if (!session.image) return;
  for (const item of $("object-list").children) {
    const object = Number(item.dataset.object), exact = session.complete ? session.volumes?.[object] : undefined;
    const ml = exact ?? masks.voxels(object) * session.image.voxelMl;
    const text = `${ml < 10 ? ml.toFixed(2) : ml.toFixed(1)} ml`;
    item.querySelector(".volume").textContent = ml ? (session.complete ? text : `${text} so far`) : "no mask";
  }
}

function select(object) {
  const before = selected;
  selected = object;
  for (const id of [before, object]) masks.slices.get(id)?.forEach((_, z) => masks.changed.add(z)); // new one on top
  showObjects();
  requestFrame();
}

function newObject() {
  const ids = [selected, ...session.objects.map(({ id }) => id)];
  const free = Math.max(...ids) + 1;
  if (free > 255) return showError("A session has at most 255 objects.");
  select(free);
  send({ type: "name", object: free, name: `object ${free}` });
}

function jump() {
  const centre = masks.centre(selected);
  if (centre) goTo(centre);
  else showHint("This object has no mask yet");
}

function setWindow(level, width) {
  const volume = nv.volumes[0];
  if (!volume || !(width > 0) || !Number.isFinite(level)) return;
  volume.cal_min = level - width / 2;
  volume.cal_max = level + width / 2;
  $("level").value = Number(level.toPrecision(6));
  $("width").value = Number(width.toPrecision(6));
  nv.updateGLVolume();
  drawMarks();
}

function presetChosen() {
  const preset = session.image.windows[$("window").selectedIndex];
  if (preset) setWindow(preset.level, preset.width);
}

let errorTimer = 0;
function showError(text) {
  $("error").textContent = text;
  $("error").hidden = false;
  clearTimeout(errorTimer);
  errorTimer = setTimeout(() => { $("error").hidden = true; }, 8000);
}

function stepSlice(by) {
  if (session.image) goTo([crosshair[0], crosshair[1], clamp(crosshair[2] + by, 0, session.image.shape[2] - 1)]);
}

function resizeBrush(by) {
  $("brush-size").value = Number($("brush-size").value) + by;
  $("brush-size-value").textContent = $("brush-size").value;
  drawMarks();
}

const rename = () => {
  $("object-name").value = session.objects.find(({ id }) => id === selected)?.name ?? `object ${selected}`;
  $("name-dialog").showModal();
  $("object-name").select();
};

const SHORTCUTS = {
  i: () => setTool("inside"), o: () => setTool("outside"), b: () => setTool("box"), s: () => setTool("scribble"),
  p: () => setTool("brush"), e: () => setTool("eraser"), l: () => setTool("look"),
  z: () => send({ type: "undo" }), y: () => send({ type: "redo" }), n: newObject, r: rename, j: jump,
  "[": () => resizeBrush(-1), "]": () => resizeBrush(1), arrowup: () => stepSlice(1), arrowdown: () => stepSlice(-1),
  f: () => { $($("fill").checked ? "contour" : "fill").checked = true; setStyle(); },
  h: () => { $("hide").checked = !$("hide").checked; setStyle(); },
  w: () => { $("window").selectedIndex = ($("window").selectedIndex + 1) % session.image.windows.length; presetChosen(); },
  "?": () => $("help-dialog").showModal(),
};

function listenToKeys() {
  window.addEventListener("keydown", (event) => {
    const isText = event.target.matches?.("input:not([type=range]):not([type=radio]):not([type=checkbox]), select, textarea");
    if (isText || document.querySelector("dialog[open]")) return;
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      const action = key === "y" || (key === "z" && event.shiftKey) ? "redo" : key === "z" ? "undo" : "";
      if (action && session.image) { event.preventDefault(); send({ type: action }); }
      return;
    }
    if (event.altKey) return;
    if (key === "?" || (session.image && (SHORTCUTS[key] || /^[1-9]$/.test(key)))) {
      if (event.target.type === "range" && key.startsWith("arrow")) return;
      event.preventDefault();
      event.stopPropagation();
      if (/^[1-9]$/.test(key)) select(Number(key));
      else SHORTCUTS[key]();
    }
  }, true);
}

function listenToControls() {
  document.querySelectorAll("[data-tool]").forEach((button) => { button.onclick = () => setTool(button.dataset.tool); });
  $("undo").onclick = SHORTCUTS.z;
  $("redo").onclick = SHORTCUTS.y;
  $("clear").onclick = () => {
    if (session.objects.some(({ id }) => id === selected)) send({ type: "clear", object: selected });
  };
  $("new-object").onclick = newObject;
  $("rename-object").onclick = rename;
  $("jump").onclick = jump;
  $("brush-size").oninput = () => resizeBrush(0);
  $("slice").oninput = () => goTo([crosshair[0], crosshair[1], Number($("slice").value)]);
  $("window").onchange = presetChosen;
  for (const id of ["level", "width"]) {
    $(id).onchange = () => { $("window").value = ""; setWindow(Number($("level").value), Number($("width").value)); };
  }
  for (const id of ["opacity", "fill", "contour", "hide"]) $(id).oninput = setStyle;
  $("open-button").onclick = showOpenDialog;
  $("help-button").onclick = SHORTCUTS["?"];
  $("error").onclick = () => { $("error").hidden = true; };
  $("name-cancel").onclick = () => $("name-dialog").close();
  $("name-form").onsubmit = (event) => {
    event.preventDefault();
    send({ type: "name", object: selected, name: $("object-name").value.trim() });
    $("name-dialog").close();
  };
  $("filter").oninput = showImages;
  for (const input of [$("pick-file"), $("pick-folder")]) {
    input.onchange = () => {
      upload([...input.files].map((file) => [file.name, file]));
      input.value = ""; // the same file may be chosen again
    };
  }
}

// --------------------------------------------------------------------------------------------------- opening and saving

let images = [];
let uploadBytes = 0;

async function showOpenDialog() {
  if (!$("open-dialog").open) $("open-dialog").showModal();
  try {
    ({ images } = await (await request("page/images")).json());
    showImages();
  } catch (error) { $("open-message").textContent = error.message; }
}

function showImages() {
  const wanted = $("filter").value.toLowerCase();
  $("from-server").hidden = !images.length;
  $("image-list").replaceChildren(...images.filter((name) => name.toLowerCase().includes(wanted)).map((name) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.onclick = () => open({ image: name });
    item.append(button);
    return item;
  }));
}

function open(source) {
  $("open-message").textContent = "Opening…";
  send({ type: "open", ...source });
}

/** Send files to the server and open them. Each entry is a name and a File. */
async function upload(files) {
  if (!files.length) return;
  const total = files.reduce((sum, [, file]) => sum + file.size, 0);
  if (!$("open-dialog").open) $("open-dialog").showModal();
  if (total > uploadBytes) {
    $("open-message").textContent = `These files have ${mib(total)}, and the server accepts ${mib(uploadBytes)}.`;
    return;
  }
  try {
    const { upload: token } = await (await request("page/uploads", { method: "POST" })).json();
    let done = 0;
    for (const [index, [name, file]] of files.entries()) {
      $("open-message").textContent = `Sending file ${index + 1} of ${files.length}, ${mib(done)} of ${mib(total)}…`;
      const headers = { "X-File-Name": encodeURIComponent(name) };
      await request(`page/uploads/${token}/${index}`, { method: "PUT", body: file, headers });
      done += file.size;
    }
    open({ upload: token });
  } catch (error) { $("open-message").textContent = error.message; }
}
const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

function listenToDrops() {
  let depth = 0;
  window.addEventListener("dragenter", () => { depth++; $("view").classList.add("dragging"); });
  window.addEventListener("dragleave", () => { if (--depth <= 0) $("view").classList.remove("dragging"); });
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("drop", async (event) => {
    event.preventDefault();
    depth = 0;
    $("view").classList.remove("dragging");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const files = [];
    for (const entry of entries) await collect(entry, files);
    upload(files);
  });
}

/** Add the files of a dropped file or folder to a list. */
async function collect(entry, files) {
  if (entry.isFile) files.push([entry.name, await new Promise((resolve, reject) => entry.file(resolve, reject))]);
  if (!entry.isDirectory) return;
  const reader = entry.createReader();
  for (;;) { // a reader returns a hundred entries at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const inner of some) await collect(inner, files);
  }
}

async function imageOpened(message) {
  const isSame = session.image && JSON.stringify(session.source) === JSON.stringify(message.source);
  session.id = message.session;
  session.source = message.source;
  Object.assign(session, { revision: 0, complete: false, prompts: [] }); // until its state arrives
  sentAt = 0; // no answer follows for a prompt that was sent before
  const [[kind, name]] = Object.entries(message.source);
  history.replaceState(null, "", `#${kind}=${encodeURIComponent(name)}`);
  $("open-message").textContent = "";
  if ($("open-dialog").open) $("open-dialog").close();
  if (isSame) { // the connection was lost for a moment
    masks.endPainting();
    masks.keepOnly(new Set());
    send({ type: "ready" });
    return;
  }
  masks.clear();
  session.image = null;
  isFirstState = true;
  $("image-name").textContent = `${message.image.name} (loading…)`;
  const first = message.image.windows[0];
  await nv.loadVolumes([{ url: message.image.url, name: "image.nii", cal_min: first.level - first.width / 2,
    cal_max: first.level + first.width / 2 }]);
  nv.createEmptyDrawing();
  nv.clickToSegmentGrowingBitmap = null; // as large as the image, and not used here
  session.image = message.image;
  selected = 1;
  session.objects = [];
  $("image-name").textContent = `${message.image.name}, ${message.image.shape.join(" × ")}, ${message.image.modality}`;
  $("window").replaceChildren(...message.image.windows.map(({ name }) => new Option(name)));
  $("slice").max = message.image.shape[2] - 1;
  for (const id of ["tools", "objects", "display", "save"]) $(id).disabled = false;
  $("save-buttons").replaceChildren(...message.image.formats.map(({ id, label }) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.dataset.format = id;
    button.onclick = () => save(id);
    return button;
  }));
  setColours();
  layOut();
  presetChosen();
  setStyle();
  goTo(message.image.shape.map((length) => Math.floor(length / 2)));
  showObjects();
  send({ type: "ready" }); // masks may follow now
}

async function save(format) {
  try {
    $("activity").textContent = "Saving…";
    const response = await request(`page/sessions/${encodeURIComponent(session.id)}/save?format=${format}`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? "segmentation";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    $("activity").textContent = `Saved ${link.download}`;
  } catch (error) { showError(error.message); }
}

function forgetSource() {
  session.source = null;
  history.replaceState(null, "", location.pathname);
}

async function start() {
  listenToControls();
  listenToPointer();
  listenToKeys();
  listenToDrops();
  setTool("inside");
  const info = await (await request("page/info")).json();
  uploadBytes = info.uploadBytes;
  $("upload-limit").textContent = uploadBytes ? `Up to ${mib(uploadBytes)}.` : "This server accepts no uploads.";
  await nv.attachToCanvas($("image"), false);
  layOut();
  new ResizeObserver(() => { layOut(); requestFrame(); }).observe($("view"));
  const [, kind, name] = /^#(image|upload)=(.+)$/.exec(location.hash) ?? (info.image ? ["", "image", info.image] : []);
  if (kind) session.source = { [kind]: location.hash ? decodeURIComponent(name) : name };
  else showOpenDialog();
  connect();
}

start().catch((error) => showError(error.message));
