// Panel 4: a brush that writes one code, eraser, copy and paste, undo and redo, the influence map, downloads.

panels.paint = {
  code: 0, // the brush's code
  stroke: new Set(), // cells of the stroke that is being drawn
  corner: null, // [layer, cell] where a region begins
  copied: null, // [top, left, bottom, right] of the copied tokens
  report: null, // [key, values] of the line below the buttons

  opened() {
    this.report = null;
    this.code = Math.min(this.code, state.vocabulary - 1);
    find(".paint-code").max = state.vocabulary - 1;
  },

  show() {
    const shown = find(".paint-influence").checked && state.influence;
    stage.show({ divided: false, overlay: shown ? state.influence : null, opacity: 0.75 });
    this.useCode(this.code);
  },

  tool: () => find(".paint-tools input:checked").value,

  useTool(name) {
    find(`.paint-tools [value=${name}]`).checked = true;
    [stage.region, stage.lit, this.corner] = [null, [], null];
    stage.draw();
  },

  useCode(code) {
    this.code = Math.min(state.vocabulary - 1, Math.max(0, Math.round(code) || 0));
    find(".paint-code").value = this.code;
    const layer = layerNow();
    const draw = () => showTile(find(".paint-tile"), layer, this.code);
    find(".paint-tile").setAttribute("aria-label", word("code", { code: this.code }));
    draw();
    fetchTiles([[layer, this.code]]).then(draw);
  },

  layerChosen() {
    this.useCode(this.code);
  },

  // ---- on the picture ---------------------------------------------------------------------------------------------

  press(layer, cell) {
    const tool = this.tool();
    this.stroke = new Set();
    if (tool === "pick") this.useCode(codeAt(layer, cell));
    if (tool === "paste") this.paste(layer, cell);
    if (tool === "copy") this.corner = [layer, cell];
    this.drag(layer, cell);
  },

  drag(layer, cell) {
    const tool = this.tool();
    if (tool === "copy" && this.corner !== null) stage.region = regionOf(layer, this.corner[1], cell);
    if (tool === "brush" || tool === "eraser") {
      for (const near of cellsAround(layer, cell, Number(find(".paint-size").value))) this.stroke.add(near);
      stage.lit = [...this.stroke].map((each) => [layer, each]);
    }
    stage.draw();
  },

  async release(layer) {
    const tool = this.tool();
    if (tool === "copy" && this.corner !== null) {
      this.corner = null;
      await this.copy(stage.region);
    }
    if ((tool !== "brush" && tool !== "eraser") || this.stroke.size === 0) return;
    const cells = [...this.stroke];
    this.stroke = new Set();
    const args = { layer: layer.number, cells, code: this.code };
    await this.take(ask(tool === "brush" ? "paint.write" : "paint.erase", args));
    stage.lit = [];
    stage.draw();
  },

  // By keyboard a region takes two keys: one at each corner.
  enter(layer, cell) {
    if (this.tool() === "copy" && this.corner === null) {
      this.press(layer, cell);
      return;
    }
    if (this.tool() === "copy") this.drag(layer, cell);
    else this.press(layer, cell);
    this.release(layer);
  },

  pointed(layer, cell) {
    if (layer === null || this.tool() !== "paste" || this.copied === null) return;
    const [top, left, bottom, right] = this.copied;
    const [x, y] = cellBox(layer, cell, [1, 1]);
    stage.region = [y, x, y + bottom - top, x + right - left];
  },

  key(event) {
    const tools = { b: "brush", e: "eraser", p: "pick", c: "copy", v: "paste" };
    if (event.key in tools) this.useTool(tools[event.key]);
    if (event.key === "z") this.take(ask("paint.undo"));
    if (event.key === "y") this.take(ask("paint.redo"));
  },

  // ---- actions ----------------------------------------------------------------------------------------------------

  async copy(region) {
    const reply = await ask("paint.copy", { region });
    if (reply === null) return;
    this.copied = reply.region;
    this.report = ["paint_copied", { count: reply.copied }];
    this.useTool("paste");
    this.render();
  },

  paste(layer, cell) {
    const [x, y] = cellBox(layer, cell, [1, 1]);
    this.take(ask("paint.paste", { corner: [y, x] }));
  },

  async take(asked) {
    const reply = await asked;
    if (reply === null) return;
    this.report = null;
    accept(reply);
  },

  async download(action) {
    const reply = await ask(action);
    if (reply === null) return;
    const link = document.createElement("a");
    [link.href, link.download] = [reply.url, reply.file];
    link.click();
  },

  render() {
    find(".paint-undo").disabled = state.undo === 0;
    find(".paint-redo").disabled = state.redo === 0;
    find(".paint-reset").disabled = state.edited.length === 0;
    const { changedPixels: changed = 0, pixels = state.width * state.height } = state;
    const values = { edited: state.edited.length, changed, pixels };
    find(".paint-report").textContent = this.report === null ? word("paint_changed", values) : word(...this.report);
  },

  start() {
    find(".paint-code").addEventListener("change", (event) => this.useCode(Number(event.target.value)));
    find(".paint-influence").addEventListener("change", () => this.show());
    find(".paint-undo").addEventListener("click", () => this.take(ask("paint.undo")));
    find(".paint-redo").addEventListener("click", () => this.take(ask("paint.redo")));
    find(".paint-reset").addEventListener("click", () => this.take(ask("paint.erase")));
    find(".paint-tokens").addEventListener("click", () => this.download("paint.tokens"));
    find(".paint-picture").addEventListener("click", () => this.download("paint.picture"));
    for (const input of findAll(".paint-tools input")) {
      input.addEventListener("change", () => this.useTool(input.value));
    }
  },
};

// The cells of a square of `size` around a cell.
function cellsAround(layer, cell, size) {
  const [row, column] = [Math.floor(cell / layer.columns), cell % layer.columns];
  const cells = [];
  for (let r = row - (size - 1) / 2; r <= row + (size - 1) / 2; r += 1) {
    for (let c = column - (size - 1) / 2; c <= column + (size - 1) / 2; c += 1) {
      const near = r * layer.columns + c;
      if (r >= 0 && c >= 0 && r < layer.rows && c < layer.columns && near < layer.count) cells.push(near);
    }
  }
  return cells;
}

// The region from one cell to another, as fractions: top, left, bottom, right.
function regionOf(layer, from, to) {
  const boxes = [cellBox(layer, from, [1, 1]), cellBox(layer, to, [1, 1])];
  const [left, top] = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])));
  const [right, bottom] = [0, 1].map((axis) => Math.max(...boxes.map((box) => box[axis] + box[axis + 2])));
  return [top, left, bottom, right];
}
