// The picture: two images under a divider, an overlay, marked tokens, a loupe; pointer and keyboard.

const LIT = "#E69F00"; // Okabe and Ito's orange: places with the same code

const stage = {
  split: 50, // place of the divider in percent
  point: null, // [layer, cell] that is pointed at
  pixel: null, // place of the pointer as fractions of width and height
  lit: [], // [[layer, cell], …] that are marked
  region: null, // [top, left, bottom, right] as fractions, while a region is drawn
  pressed: false,
  images: {}, // before, after, overlay: URLs
  captions: ["original", "reconstruction"], // keys of the captions left and right
  alts: ["original_alt", "reconstruction_alt"], // keys of the text alternatives
  values: [{}, {}], // values in the captions and text alternatives
  divided: true, // whether the divider is there; without it only `after` is shown

  // Show pictures: before, after, overlay (it covers both), its opacity, divided; their texts: captions, alts, values.
  show({ before = state.original, after = state.reconstruction, overlay = null, ...rest } = {}) {
    const { opacity = 1, divided = true } = rest;
    this.captions = rest.captions ?? ["original", "reconstruction"];
    this.alts = rest.alts ?? ["original_alt", "reconstruction_alt"];
    this.values = rest.values ?? [state, state];
    this.divided = divided;
    this.images = { before, after, overlay };
    for (const side of ["before", "after"]) find(`.stage .${side}`).src = this.images[side];
    find(".stage").style.aspectRatio = `${state.width} / ${state.height}`;
    find(".stage").style.maxWidth = `calc(76vh * ${state.width / state.height})`;
    find(".overlay").hidden = overlay === null;
    find(".overlay").style.opacity = opacity;
    if (overlay !== null) find(".overlay").src = overlay;
    this.render();
  },

  render() {
    if (state === null) return;
    find(".stage .after").style.clipPath = this.divided ? `inset(0 0 0 ${this.split}%)` : "";
    const divider = find(".divider");
    divider.hidden = !this.divided;
    find(".stage").style.touchAction = this.divided ? "pan-y" : "none"; // a brush must not scroll the page
    find(".caption-before").hidden = !this.divided;
    divider.style.left = `${this.split}%`;
    divider.setAttribute("aria-valuenow", Math.round(this.split));
    ["before", "after"].forEach((side, place) => {
      find(`.stage .${side}`).alt = word(this.alts[place], this.values[place]);
      find(`.caption-${side}`).textContent = word(this.captions[place], this.values[place]);
    });
    this.draw();
  },

  // ---- tokens over the picture --------------------------------------------------------------------------------------

  draw() {
    const canvas = find(".marks");
    const box = find(".stage").getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    find(".stage").classList.toggle("enlarged", box.width * ratio >= 2 * state.width);
    [canvas.width, canvas.height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const size = [box.width, box.height];
    if (find(".grid").checked) this.drawGrid(context, size);
    for (const [layer, cell] of this.lit) this.fillCell(context, size, layer, cell);
    if (this.point !== null) {
      const others = current === "point" ? tokensAt(...this.point) : [];
      for (const [layer, cell] of others) this.outline(context, size, layer, cell, 1);
      this.outline(context, size, ...this.point, 3);
    }
    if (this.region !== null) {
      const [top, left, bottom, right] = this.region;
      context.setLineDash([6, 4]);
      strokeTwice(context, [left * size[0], top * size[1], (right - left) * size[0], (bottom - top) * size[1]], 2);
      context.setLineDash([]);
    }
  },

  drawGrid(context, size) {
    const layer = layerNow();
    for (let cell = 0; cell < layer.count; cell += 1) {
      const box = cellBox(layer, cell, size);
      context.fillStyle = colourOf(codeAt(layer, cell));
      context.globalAlpha = 0.55;
      context.fillRect(...box);
      context.globalAlpha = 1;
      if (box[2] < 5) continue;
      context.strokeStyle = "rgba(255, 255, 255, 0.35)";
      context.lineWidth = 0.5;
      context.strokeRect(...box);
    }
  },

  fillCell(context, size, layer, cell) {
    const box = cellBox(layer, cell, size);
    context.fillStyle = LIT;
    context.globalAlpha = 0.4;
    context.fillRect(...box);
    context.globalAlpha = 1;
    strokeTwice(context, box, 1, LIT);
  },

  outline(context, size, layer, cell, width) {
    strokeTwice(context, cellBox(layer, cell, size), width);
  },

  // ---- pointer and keyboard -----------------------------------------------------------------------------------------

  // Point at a cell of the chosen layer; null: at nothing.
  pointAt(layer, cell) {
    const same = this.point !== null && layer === this.point[0] && cell === this.point[1];
    if (same) return;
    this.point = layer === null ? null : [layer, cell];
    panels[current].pointed?.(layer, cell);
    this.draw();
  },

  moved(event) {
    const box = find(".stage").getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    const y = (event.clientY - box.top) / box.height;
    this.pixel = [Math.min(0.9999, Math.max(0, x)), Math.min(0.9999, Math.max(0, y))];
    const layer = layerNow();
    const cell = cellUnder(layer, ...this.pixel);
    if (cell === null) return;
    this.pointAt(layer, cell);
    if (this.pressed) panels[current].drag?.(layer, cell);
    drawLoupe(event.clientX - box.left, event.clientY - box.top);
  },

  key(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const layer = layerNow();
    if (step) {
      event.preventDefault();
      const from = this.point !== null && this.point[0] === layer ? this.point[1] : null;
      const row = from === null ? 0 : Math.floor(from / layer.columns) + step[0];
      const column = from === null ? 0 : (from % layer.columns) + step[1];
      const cell = row * layer.columns + column;
      if (row < 0 || column < 0 || row >= layer.rows || column >= layer.columns || cell >= layer.count) return;
      this.pixel = centreOf(layer, cell);
      this.pointAt(layer, cell);
      const place = { row: row + 1, column: column + 1, code: codeAt(layer, cell) };
      find(".spoken").textContent = word("pointed", place);
    } else if ((event.key === "Enter" || event.key === " ") && this.point !== null) {
      event.preventDefault();
      const panel = panels[current];
      if (panel.enter) panel.enter(...this.point);
      else panel.press?.(...this.point);
    } else {
      panels[current].key?.(event);
    }
  },
};

// ---- geometry -------------------------------------------------------------------------------------------------------

// Cells of a layer are equal parts of the area that the tokens cover; that may be larger than the picture.
function reach(layer) {
  return layer.spatial ? [state.covered[0] / state.width, state.covered[1] / state.height] : [1, 1];
}

function cellBox(layer, cell, [width, height]) {
  const [across, down] = reach(layer);
  const [w, h] = [(width * across) / layer.columns, (height * down) / layer.rows];
  return [(cell % layer.columns) * w, Math.floor(cell / layer.columns) * h, w, h];
}

// The cell under a place given as fractions of width and height; null: none.
function cellUnder(layer, x, y) {
  const [across, down] = reach(layer);
  const cell = Math.floor((y / down) * layer.rows) * layer.columns + Math.floor((x / across) * layer.columns);
  return cell < layer.count ? cell : null;
}

function centreOf(layer, cell) {
  const [x, y, w, h] = cellBox(layer, cell, [1, 1]);
  return [Math.min(0.9999, x + w / 2), Math.min(0.9999, y + h / 2)];
}

// The tokens of all layers at the centre of a cell: [[layer, cell], …].
function tokensAt(layer, cell) {
  const [x, y] = centreOf(layer, cell);
  return state.layers
    .filter((other) => other.spatial || other === layer)
    .map((other) => [other, other === layer ? cell : cellUnder(other, x, y)])
    .filter(([, found]) => found !== null);
}

// A colour for a code: neighbouring numbers get distant colours.
function colourOf(code) {
  const [red, green, blue] = SETTINGS.colours[Math.floor(((code * 0.618034) % 1) * 256)];
  return `rgb(${red}, ${green}, ${blue})`;
}

// A line that is visible on dark and on bright pixels.
function strokeTwice(context, [x, y, w, h], width, colour = "#fff") {
  context.lineWidth = width + 2;
  context.strokeStyle = "#000";
  context.strokeRect(x, y, w, h);
  context.lineWidth = width;
  context.strokeStyle = colour;
  context.strokeRect(x, y, w, h);
}

// ---- loupe ----------------------------------------------------------------------------------------------------------

const LOUPE = 120; // side of each of its two halves

// Original and reconstruction around the pointer, one pixel of the picture on `zoom` pixels of the screen.
function drawLoupe(left, top) {
  const canvas = find(".loupe");
  const zoom = Number(find(".zoom").value);
  canvas.hidden = zoom === 0 || stage.pixel === null;
  if (canvas.hidden) return;
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [2 * LOUPE * ratio, LOUPE * ratio];
  [canvas.style.width, canvas.style.height] = [`${2 * LOUPE}px`, `${LOUPE}px`];
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const side = (LOUPE * ratio) / zoom; // pixels of the picture
  const place = [stage.pixel[0] * state.width - side / 2, stage.pixel[1] * state.height - side / 2];
  ["before", "after"].forEach((which, half) => {
    const image = find(`.stage .${which}`);
    context.drawImage(image, ...place, side, side, half * LOUPE * ratio, 0, LOUPE * ratio, LOUPE * ratio);
  });
  context.fillStyle = "#fff";
  context.fillRect(LOUPE * ratio - 1, 0, 2, LOUPE * ratio);
  const width = find(".stage").clientWidth;
  canvas.style.left = `${Math.max(0, Math.min(width - 2 * LOUPE, left - LOUPE))}px`;
  canvas.style.top = `${top > LOUPE + 30 ? top - LOUPE - 20 : top + 20}px`;
}

// ---- events ---------------------------------------------------------------------------------------------------------

function moveDivider(percent) {
  stage.split = Math.min(100, Math.max(0, percent));
  stage.render();
}

function startStage() {
  const area = find(".stage");
  const divider = find(".divider");
  area.addEventListener("pointermove", (event) => state !== null && stage.moved(event));
  area.addEventListener("pointerleave", () => {
    find(".loupe").hidden = true;
    if (!stage.pressed) stage.pointAt(null, null);
  });
  area.addEventListener("pointerdown", (event) => {
    if (event.target === divider || state === null) return;
    stage.moved(event);
    if (stage.point === null) return;
    stage.pressed = true;
    area.setPointerCapture(event.pointerId);
    panels[current].press?.(...stage.point);
  });
  area.addEventListener("pointerup", () => {
    if (!stage.pressed) return;
    stage.pressed = false;
    if (stage.point !== null) panels[current].release?.(...stage.point);
  });
  area.addEventListener("keydown", (event) => event.target === area && stage.key(event));
  divider.addEventListener("pointerdown", (event) => divider.setPointerCapture(event.pointerId));
  divider.addEventListener("pointermove", (event) => {
    if (!divider.hasPointerCapture(event.pointerId)) return;
    const box = area.getBoundingClientRect();
    moveDivider((100 * (event.clientX - box.left)) / box.width);
  });
  divider.addEventListener("keydown", (event) => {
    const places = { ArrowLeft: stage.split - 2, ArrowRight: stage.split + 2, Home: 0, End: 100 };
    if (!(event.key in places)) return;
    event.preventDefault();
    moveDivider(places[event.key]);
  });
  for (const control of [".layer", ".grid"]) find(control).addEventListener("change", () => layerChosen());
  new ResizeObserver(() => stage.render()).observe(area);
}

function layerChosen() {
  stage.point = null;
  stage.lit = [];
  panels[current].layerChosen?.();
  stage.draw();
}
