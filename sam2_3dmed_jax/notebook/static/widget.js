// Front end of VolumeWidget, one plain file: helpers, masks, the view of a slice, marks, pointer, controls, messages.
// Voxels are those of `server/page/display_grid.py`: x to the right, y to the front, z to the head. On the screen, all
// three axes run the other way: the patient's right, the front and the head are on the left or at the top.

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const HEADER_BYTES = 18; // of a slice of a mask, see server/page/messages.py
const KEPT_PICTURES = 100;
const RETRY_MS = 5000; // after which an unanswered request for a slice is repeated
const MAX_HEIGHT = 540; // of the slice, in pixels of the screen
const SMALLEST_NUMBERED = 40; // voxels of a mask that has a number in it
const MAX_OBJECTS = 255; // as in server/page/messages.py
const COLOURS = ["#ffb000", "#56b4e9", "#f07fc0", "#00c896", "#f0e442", "#ff6a3d"]; // as in pictures/colours.py
const ACTIVITIES = { idle: "Ready", answering: "Segmenting the slice…", propagating: "Segmenting other slices…",
  preparing: "Preparing the model…", encoding: "Preparing slices…", reading: "Working for the notebook…" };
const AXIAL = 0; // index of the plane along which slices are segmented
const PLANES = [ // axes of voxels
  { across: 2, columns: 0, rows: 1 }, // axial
  { across: 1, columns: 0, rows: 2 }, // coronal
  { across: 0, columns: 1, rows: 2 }, // sagittal
];
const HTML = `
  <div class="stage">
    <div class="row">
      <span class="group planes" role="radiogroup" aria-label="Plane"></span>
      <label>Window <select class="window"></select></label>
    </div>
    <label class="line">Slice <input class="slice" type="range" min="0" step="1"><output></output></label>
    <div class="frame">
      <canvas tabindex="0" aria-label="Slice of the image: click inside of an object, right click outside"></canvas>
      <p class="hint" role="status"></p>
    </div>
  </div>
  <div class="panel">
    <div class="row">
      <span class="group" role="radiogroup" aria-label="Tool">
        <button type="button" data-tool="inside" title="Left click">+ Inside</button>
        <button type="button" data-tool="outside" title="Right click, or Alt and click">− Outside</button>
        <button type="button" data-tool="box" title="Drag from corner to corner">▭ Box</button>
      </span>
    </div>
    <div class="row">
      <button type="button" class="undo" title="Ctrl+Z" disabled>Undo</button>
      <button type="button" class="redo" title="Ctrl+Y" disabled>Redo</button>
      <button type="button" class="clear" title="Remove the prompts of the selected object">Clear</button>
    </div>
    <ul class="objects" role="listbox" aria-label="Objects"></ul>
    <div class="row">
      <button type="button" class="new-object">New object</button>
      <input class="name" type="text" maxlength="64" aria-label="Name of the selected object">
    </div>
    <label class="line">Opacity <input class="opacity" type="range" min="0" max="100" value="40"><output></output></label>
    <p class="error" role="alert" hidden></p>
    <p class="status" role="status">Waiting for the kernel…</p>
    <progress max="1" value="0" hidden></progress>
    <p class="notice">For research use only. Not a medical device.</p>
  </div>`;

// ----------------------------------------------------------------------------------------------------------- the masks

/** Masks of all objects, as boxes of bits per axial slice: {x, y, width, height, bits, count}. */
class Masks {
  constructor() { this.slices = new Map(); } // object -> Map of z -> part

  /** Read the binary message with one slice of an object. */
  receive(view) {
    const [x, y, width, height] = [10, 12, 14, 16].map((offset) => view.getUint16(offset, true));
    const bits = new Uint8Array(view.buffer, view.byteOffset + HEADER_BYTES, view.byteLength - HEADER_BYTES);
    const [object, z, count] = [view.getUint16(2, true), view.getUint16(8, true), countBits(bits)];
    if (!this.slices.has(object)) this.slices.set(object, new Map());
    if (count) this.slices.get(object).set(z, { x, y, width, height, bits, count });
    else this.slices.get(object).delete(z);
  }

  keepOnly(objects) {
    for (const object of this.slices.keys()) if (!objects.has(object)) this.slices.delete(object);
  }

  voxels(object) {
    let sum = 0;
    this.slices.get(object)?.forEach(({ count }) => { sum += count; });
    return sum;
  }

  /** Call `visit(x, y, z)` for each voxel of an object in a slice of a plane. */
  visit(object, plane, index, visit) {
    const { across } = PLANES[plane];
    this.slices.get(object)?.forEach((part, z) => {
      if (across === 2 && z !== index) return;
      const [top, bottom] = across === 1 ? [index, index + 1] : [part.y, part.y + part.height];
      const [left, right] = across === 0 ? [index, index + 1] : [part.x, part.x + part.width];
      if (top < part.y || bottom > part.y + part.height || left < part.x || right > part.x + part.width) return;
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) {
          const bit = (y - part.y) * part.width + x - part.x;
          if (part.bits[bit >> 3] & (128 >> (bit & 7))) visit(x, y, z);
        }
      }
    });
  }
}

const BITS = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll("0", "").length);
function countBits(bytes) {
  let count = 0;
  for (const byte of bytes) count += BITS[byte];
  return count;
}

// ------------------------------------------------------------------------------------------------------------ the view

/** One view of the widget; a widget that is shown twice has two, with the same masks. */
class View {
  constructor(model, el) {
    this.model = model;
    this.root = document.createElement("div");
    this.root.className = "sam2-3dmed";
    this.root.dataset.lmSuppressShortcuts = "true"; // keys are for the widget, not for JupyterLab
    this.root.innerHTML = HTML;
    el.append(this.root);
    this.canvas = this.find("canvas");
    this.image = null; // description of the image
    this.session = { objects: [], prompts: [], volumes: {} }; // the state that the kernel has reported last
    this.masks = new Masks();
    this.pictures = new Map(); // pixels of slices, by request
    this.requested = null; // {key, time} of the request that is not answered yet
    this.place = [0, 0, 0]; // voxel that the three planes pass through
    this.plane = AXIAL;
    this.shown = null; // {plane, index, pixels} on the canvas
    this.selected = 1; // object that prompts are for
    this.tool = "inside";
    this.gesture = null; // what the pressed pointer is doing
    this.listenToPointer();
    this.listenToControls();
    this.setTool("inside");
    this.setOpacity();
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(this.find(".frame"));
    this.receiver = (message, buffers) => this.receive(message, buffers);
    model.on("msg:custom", this.receiver);
    model.send({ type: "ready" });
  }

  remove() {
    this.model.off("msg:custom", this.receiver);
    this.sizes.disconnect();
    this.root.remove();
  }

  find(selector) { return this.root.querySelector(selector); }

  /** Number of columns or rows of a plane, and millimetres between them. */
  size(axis) { return [this.image.shape[axis], this.image.spacing[axis]]; }

  colourOf(object) {
    return this.session.objects.find(({ id }) => id === object)?.color ?? COLOURS[(object - 1) % COLOURS.length];
  }

  // The kernel sends the slices that are shown, one at a time.

  goTo(plane, index) {
    const { across } = PLANES[plane];
    this.plane = plane;
    this.place[across] = clamp(index, 0, this.image.shape[across] - 1);
    this.find(".slice").max = this.image.shape[across] - 1;
    this.find(".slice").value = this.place[across];
    this.find(".slice + output").textContent = `${this.place[across]} of ${this.image.shape[across] - 1}`;
    for (const [at, button] of [...this.find(".planes").children].entries()) check(button, at === plane);
    this.hint("");
    this.showPicture();
  }

  /** Show the wanted slice if its pixels are here; otherwise ask for it, unless another answer is awaited. */
  showPicture() {
    const request = { type: "picture", plane: this.plane, index: this.place[PLANES[this.plane].across],
      window: this.find(".window").selectedIndex };
    const key = JSON.stringify(request);
    if (this.pictures.has(key)) {
      this.shown = { plane: request.plane, index: request.index, pixels: this.pictures.get(key) };
      this.draw();
    } else if (!this.requested || performance.now() - this.requested.time > RETRY_MS) {
      this.requested = { key, time: performance.now() };
      this.model.send(request);
    }
  }

  async receivePicture(request, buffer) {
    const [columns, rows] = [this.size(PLANES[request.plane].columns)[0], this.size(PLANES[request.plane].rows)[0]];
    const grey = await inflate(buffer), pixels = document.createElement("canvas");
    [pixels.width, pixels.height] = [columns, rows];
    const data = new ImageData(columns, rows), words = new Uint32Array(data.data.buffer);
    for (let at = 0; at < grey.length; at++) words[at] = 0xff000000 | grey[at] * 0x010101; // opaque grey
    pixels.getContext("2d").putImageData(data, 0, 0);
    const { type, plane, index, window } = request, key = JSON.stringify({ type, plane, index, window });
    this.pictures.set(key, pixels);
    if (this.pictures.size > KEPT_PICTURES) this.pictures.delete(this.pictures.keys().next().value);
    if (this.requested?.key === key) { // and not by another view
      this.requested = null;
      if (plane === this.plane) this.shown = { plane, index, pixels }; // while the slider moves, the latest that is here
      this.draw();
    }
    this.showPicture(); // which may be another one by now
  }

  /** Draw the slice, masks, prompts, and letters of directions. */
  draw() {
    if (!this.shown) return;
    const { plane, pixels } = this.shown, { columns, rows } = PLANES[plane];
    const [[nx, dx], [ny, dy]] = [this.size(columns), this.size(rows)];
    const width = Math.max(Math.min(this.find(".frame").clientWidth, MAX_HEIGHT * nx * dx / (ny * dy)), 1);
    const height = width * ny * dy / (nx * dx), dpr = devicePixelRatio || 1;
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    [this.canvas.width, this.canvas.height] = [Math.round(width * dpr), Math.round(height * dpr)];
    const pen = this.canvas.getContext("2d");
    pen.scale(dpr, dpr);
    this.scale = [width / nx, height / ny];
    pen.drawImage(pixels, 0, 0, width, height);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(this.maskPixels(), 0, 0, width, height);
    this.drawNumbers(pen);
    this.drawPrompts(pen);
    const [top, bottom, left, right] = this.letters[plane];
    for (const [letter, x, y] of [[top, width / 2, 14], [bottom, width / 2, height - 6], [left, 6, height / 2],
      [right, width - 18, height / 2]]) drawText(pen, letter, x, y);
  }

  /** The masks of the shown slice as coloured pixels with a darker inside and a bright rim; the selected one on top. */
  maskPixels() {
    const { plane, index } = this.shown, { columns, rows } = PLANES[plane];
    const [nx, ny] = [this.size(columns)[0], this.size(rows)[0]], labels = new Uint8Array(nx * ny);
    const objects = [...this.masks.slices.keys()].sort((a, b) => (a === this.selected) - (b === this.selected) || a - b);
    for (const object of objects) {
      this.masks.visit(object, plane, index, (...voxel) => {
        labels[(ny - 1 - voxel[rows]) * nx + nx - 1 - voxel[columns]] = object;
      });
    }
    const data = new ImageData(nx, ny), opacity = Number(this.find(".opacity").value) / 100;
    const [inside, rim] = [255 * opacity, opacity && 255 * Math.min(1, opacity + 0.4)];
    const colours = new Map(objects.map((object) => [object, rgb(this.colourOf(object))]));
    labels.forEach((object, at) => {
      if (!object) return;
      const isRim = [at - 1, at + 1, at - nx, at + nx].some((other) => labels[other] !== object);
      data.data.set([...colours.get(object), isRim ? rim : inside], 4 * at);
    });
    const pixels = document.createElement("canvas");
    [pixels.width, pixels.height] = [nx, ny];
    pixels.getContext("2d").putImageData(data, 0, 0);
    return pixels;
  }

  // ---------------------------------------------------------------------------------------------------------- the marks

  /** Where the middle of a voxel is on the canvas. */
  positionOf(voxel) {
    const { columns, rows } = PLANES[this.shown.plane];
    return [columns, rows].map((axis, at) => (this.image.shape[axis] - 0.5 - voxel[axis]) * this.scale[at]);
  }

  /** Write the number of each object into its mask, so that colours are not needed. */
  drawNumbers(pen) {
    const { plane, index } = this.shown;
    for (const object of this.masks.slices.keys()) {
      const voxels = [];
      this.masks.visit(object, plane, index, (...voxel) => voxels.push(voxel));
      if (voxels.length < SMALLEST_NUMBERED) continue;
      const mean = [0, 1, 2].map((axis) => voxels.reduce((sum, voxel) => sum + voxel[axis], 0) / voxels.length);
      const distance = (voxel) => voxel.reduce((sum, value, axis) => sum + (value - mean[axis]) ** 2, 0);
      const nearest = voxels.reduce((best, voxel) => distance(voxel) < distance(best) ? voxel : best);
      const [x, y] = this.positionOf(nearest);
      drawText(pen, String(object), x - 4, y + 5);
    }
  }

  drawPrompts(pen) {
    const { plane, index } = this.shown, { across } = PLANES[plane];
    for (const prompt of this.session.prompts) {
      if (prompt.kind === "point" && Math.abs(prompt.voxel[across] - index) < 0.75) this.drawPoint(pen, prompt);
      if (prompt.kind === "box" && plane === AXIAL && prompt.first[2] === index) this.drawBox(pen, prompt);
    }
    if (this.gesture?.isBox) this.drawBox(pen, { ...this.gesture, object: this.selected });
  }

  /** Draw a click: a circle with a plus inside of the object, a square with a minus outside of it. */
  drawPoint(pen, { voxel, inside, object }) {
    const [x, y] = this.positionOf(voxel), colour = this.colourOf(object);
    pen.beginPath();
    if (inside) pen.arc(x, y, 8, 0, 2 * Math.PI);
    else pen.rect(x - 8, y - 8, 16, 16);
    pen.fillStyle = inside ? colour : "#000000";
    pen.fill();
    pen.lineWidth = 2;
    pen.strokeStyle = inside ? "#000000" : colour;
    pen.stroke();
    pen.beginPath();
    pen.moveTo(x - 5, y); pen.lineTo(x + 5, y);
    if (inside) { pen.moveTo(x, y - 5); pen.lineTo(x, y + 5); }
    pen.strokeStyle = inside ? "#000000" : "#ffffff";
    pen.stroke();
    drawText(pen, String(object), x + 11, y - 8);
  }

  drawBox(pen, { first, last, object }) {
    const [a, b] = [this.positionOf(first), this.positionOf(last)];
    const [left, top] = [0, 1].map((at) => Math.min(a[at], b[at]) - this.scale[at] / 2);
    const [width, height] = [0, 1].map((at) => Math.abs(a[at] - b[at]) + this.scale[at]);
    for (const [colour, line, dash] of [["#000000", 4, []], [this.colourOf(object), 2, [7, 4]]]) {
      pen.setLineDash(dash);
      pen.lineWidth = line;
      pen.strokeStyle = colour;
      pen.strokeRect(left, top, width, height);
    }
    pen.setLineDash([]);
    drawText(pen, String(object), left + width + 3, top);
  }

  // -------------------------------------------------------------------------------------------------------- the pointer

  /** The voxel under a pointer, in the shown slice. */
  voxelAt(event) {
    const { plane, index } = this.shown, box = this.canvas.getBoundingClientRect(), voxel = [];
    voxel[PLANES[plane].across] = index;
    for (const [axis, at] of [[PLANES[plane].columns, event.clientX - box.left], [PLANES[plane].rows, event.clientY - box.top]]) {
      const length = this.image.shape[axis], step = this.scale[axis === PLANES[plane].columns ? 0 : 1];
      voxel[axis] = clamp(length - 1 - Math.floor(at / step), 0, length - 1);
    }
    return voxel;
  }

  listenToPointer() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.shown || event.button === 1) return;
      canvas.focus({ preventScroll: true });
      const outside = event.button === 2 || event.altKey, voxel = this.voxelAt(event);
      const isBox = this.tool === "box" && !outside;
      if (isBox && this.shown.plane !== AXIAL) { this.hint("Boxes are drawn on the axial plane"); return; }
      this.gesture = { isBox, first: voxel, last: voxel, inside: this.tool !== "outside" && !outside };
      canvas.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.gesture?.isBox) return;
      this.gesture.last = this.voxelAt(event);
      this.draw();
    });
    canvas.addEventListener("pointerup", () => {
      const { isBox, first, last, inside } = this.gesture ?? {};
      if (!this.gesture) return;
      this.gesture = null;
      if (!isBox) this.prompt({ type: "click", voxel: first, inside });
      else if (first.some((value, axis) => value !== last[axis])) this.prompt({ type: "box", first, second: last });
      else this.hint("Drag from one corner of the box to the other");
      this.draw();
    });
    canvas.addEventListener("pointercancel", () => { this.gesture = null; this.draw(); });
    canvas.addEventListener("contextmenu", (event) => { event.preventDefault(); event.stopPropagation(); });
    canvas.addEventListener("wheel", (event) => { // after a click on the slice, so that the notebook can be scrolled
      if (!this.shown || this.root.getRootNode().activeElement !== canvas) return;
      event.preventDefault();
      this.step(-Math.sign(event.deltaY));
    }, { passive: false });
  }

  // ------------------------------------------------------------------------------------------------------- the controls

  listenToControls() {
    const act = (selector, action) => { this.find(selector).onclick = action; };
    act(".undo", () => this.send({ type: "undo" }));
    act(".redo", () => this.send({ type: "redo" }));
    act(".clear", () => {
      if (this.session.objects.some(({ id }) => id === this.selected)) this.send({ type: "clear", object: this.selected });
    });
    act(".new-object", () => this.newObject());
    act(".error", () => { this.find(".error").hidden = true; });
    for (const button of this.root.querySelectorAll("[data-tool]")) {
      button.onclick = () => this.setTool(button.dataset.tool);
    }
    this.find(".slice").oninput = () => this.image && this.goTo(this.plane, Number(this.find(".slice").value));
    this.find(".window").onchange = () => this.showPicture();
    this.find(".opacity").oninput = () => this.setOpacity();
    this.find(".name").onchange = () => {
      const name = this.find(".name").value.trim();
      if (name) this.send({ type: "name", object: this.selected, name });
    };
    this.root.addEventListener("keydown", (event) => {
      if (event.target.matches("input:not([type=range]), select") || !this.image) return;
      const key = event.ctrlKey || event.metaKey ? `ctrl+${event.key.toLowerCase()}` : event.key;
      const isSlice = event.target === this.canvas;
      const action = { "ctrl+z": () => this.send({ type: event.shiftKey ? "redo" : "undo" }),
        "ctrl+y": () => this.send({ type: "redo" }), ArrowUp: isSlice && (() => this.step(1)),
        ArrowDown: isSlice && (() => this.step(-1)) }[key];
      if (!action) return;
      event.preventDefault();
      event.stopPropagation();
      action();
    });
  }

  step(by) { this.goTo(this.plane, this.place[PLANES[this.plane].across] + by); }

  hint(text) { this.find(".hint").textContent = text; }

  setTool(tool) {
    this.tool = tool;
    for (const button of this.root.querySelectorAll("[data-tool]")) check(button, button.dataset.tool === tool);
    this.canvas.style.touchAction = tool === "box" ? "none" : "manipulation";
  }

  setOpacity() {
    this.find(".opacity + output").textContent = `${this.find(".opacity").value} %`;
    this.draw();
  }

  newObject() {
    const free = Math.max(this.selected, ...this.session.objects.map(({ id }) => id)) + 1;
    if (free > MAX_OBJECTS) return this.showError(`A widget has at most ${MAX_OBJECTS} objects.`);
    this.select(free);
    this.send({ type: "name", object: free, name: `object ${free}` });
  }

  select(object) {
    this.selected = object;
    this.showObjects();
    this.draw();
  }

  showObjects() {
    const known = new Map(this.session.objects.map((object) => [object.id, object]));
    if (!known.has(this.selected)) known.set(this.selected, { id: this.selected, name: `object ${this.selected}` });
    const items = [...known.values()].sort((a, b) => a.id - b.id).map(({ id, name }) => {
      const item = element("li", ""), number = element("span", id, "number");
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", String(id === this.selected));
      item.tabIndex = 0;
      item.dataset.object = id;
      number.style.background = this.colourOf(id);
      item.append(number, element("span", name, "label"), element("span", this.volumeText(id), "volume"));
      item.onclick = () => this.select(id);
      item.onkeydown = (event) => { if (event.key === "Enter") this.select(id); };
      return item;
    });
    this.find(".objects").replaceChildren(...items);
    if (this.root.getRootNode().activeElement !== this.find(".name")) {
      this.find(".name").value = known.get(this.selected).name;
    }
  }

  volumeText(object) {
    const exact = this.session.complete ? this.session.volumes[object] : undefined;
    const ml = exact ?? this.masks.voxels(object) * (this.image?.voxelMl ?? 0);
    if (!ml) return "no mask";
    return `${ml < 10 ? ml.toFixed(2) : ml.toFixed(1)} ml${this.session.complete ? "" : " so far"}`;
  }

  // ------------------------------------------------------------------------------------------------------- the messages

  send(message) {
    this.find(".error").hidden = true;
    if (this.image) this.model.send(message);
  }

  prompt(message) { this.send({ object: this.selected, ...message }); }

  /** Collect what has changed, and draw once per frame. */
  changed() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.showObjects();
      this.draw();
    });
  }

  receive(message, buffers) {
    const receivers = {
      opened: () => this.opened(message),
      picture: () => this.receivePicture(message, buffers[0]),
      slice: () => this.masks.receive(buffers[0]),
      state: () => this.stateChanged(message),
      progress: () => this.showProgress(message),
      error: () => this.showError(message.message),
      gone: () => { this.find(".status").textContent = message.message; },
    };
    receivers[message.type]?.();
    if (["slice", "state"].includes(message.type)) this.changed();
  }

  opened({ image, planes }) {
    const isNew = !this.image;
    this.image = image;
    this.letters = planes.map(({ letters }) => letters);
    this.masks = new Masks(); // all of them follow
    if (!isNew) return; // another view was opened
    this.find(".planes").replaceChildren(...planes.map(({ name }, plane) => {
      const button = element("button", name[0].toUpperCase() + name.slice(1));
      button.type = "button";
      button.onclick = () => this.goTo(plane, this.place[PLANES[plane].across]);
      return button;
    }));
    this.find(".window").replaceChildren(...image.windows.map(({ name }) => new Option(name)));
    this.place = image.shape.map((length) => Math.floor(length / 2));
    this.goTo(AXIAL, this.place[2]);
  }

  stateChanged(state) {
    const isFirst = this.session.revision === undefined;
    Object.assign(this.session, state);
    if (isFirst) this.selected = state.objects[0]?.id ?? 1;
    this.masks.keepOnly(new Set(state.objects.filter(({ prompted }) => prompted).map(({ id }) => id)));
    this.find(".undo").disabled = !state.canUndo;
    this.find(".redo").disabled = !state.canRedo;
    const seconds = state.clickSeconds === null ? "" : ` Last click: ${state.clickSeconds.toFixed(2)} s.`;
    this.find(".status").textContent = `${ACTIVITIES[state.activity]}${state.activity === "idle" ? "." : ""}${seconds}`;
    if (state.activity === "idle") this.find("progress").hidden = true;
  }

  showProgress({ what, done, total }) {
    this.find(".status").textContent = `${what[0].toUpperCase()}${what.slice(1)}: ${done} of ${total}`;
    this.find("progress").hidden = done >= total;
    this.find("progress").max = total;
    this.find("progress").value = done;
  }

  showError(text) {
    this.find(".error").textContent = text;
    this.find(".error").hidden = false;
  }
}

// --------------------------------------------------------------------------------------------------------- the helpers

const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

function check(button, isChecked) {
  button.setAttribute("role", "radio");
  button.setAttribute("aria-checked", String(isChecked));
}

function drawText(pen, text, x, y) {
  pen.font = "bold 13px sans-serif";
  pen.lineWidth = 3;
  pen.strokeStyle = "#000000";
  pen.strokeText(text, x, y);
  pen.fillStyle = "#ffffff";
  pen.fillText(text, x, y);
}

/** The bytes of a zlib stream. */
async function inflate(buffer) {
  const stream = new Blob([buffer]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function render({ model, el }) {
  const view = new View(model, el);
  return () => view.remove();
}

export default { render };
