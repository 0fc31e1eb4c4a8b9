// Panel 7: how much each token surprises a prior, and tokens that the prior draws again.

// Kind of a prior -> what it predicts a token from.
const PREDICTS = { "next-scale": "dream_scales", "next-token": "dream_tokens", masked: "dream_half" };

panels.dream = {
  reply: null, // the answer to `dream.look`; null: not asked for this picture
  stale: false, // whether the tokens have changed since
  before: null, // [tokens drawn, bits before] of the last drawing
  cells: new Set(), // painted cells of the finest layer
  erasing: false, // whether the pressed pointer erases
  seed: 0,

  opened() {
    [this.reply, this.before] = [null, null];
    this.cells.clear();
  },

  stepped() {
    this.stale = true;
  },

  show() {
    this.mark();
    if (this.reply === null || this.stale) this.look();
  },

  // Show the map of the chosen layer and the painted cells.
  mark() {
    const finest = state.layers.at(-1);
    stage.lit = [...this.cells].map((cell) => [finest, cell]);
    const map = this.reply?.maps?.[layerNow().number] ?? null;
    stage.show({ overlay: find(".dream-map").checked ? map : null, opacity: 0.7, divided: false });
  },

  async look() {
    const tokens = state.tokens;
    const reply = await ask("dream.look", { label: this.label() });
    if (reply === null || tokens !== state.tokens) return;
    if (this.reply === null && reply.fits) this.propose(reply.bits);
    [this.reply, this.stale] = [reply, false];
    if (current === "dream") this.mark();
    this.render();
  },

  // Begin with the threshold below which a quarter of the tokens lies.
  propose(bits) {
    const quarter = [...bits].sort((a, b) => a - b)[Math.floor(bits.length / 4)];
    find(".dream-threshold").value = Math.ceil(2 * quarter) / 2;
  },

  label() {
    const value = find(".dream-class").value;
    return value === "" ? null : Number(value);
  },

  async draw(cells, threshold) {
    this.seed += 1;
    const bits = this.reply.total;
    const temperature = Number(find(".dream-temperature").value);
    const reply = await ask("dream.draw", { label: this.label(), cells, threshold, temperature, seed: this.seed });
    if (reply === null) return;
    this.before = [reply.drawn, bits];
    accept(reply);
  },

  async undo() {
    this.before = null;
    const reply = await ask("paint.undo");
    if (reply !== null) accept(reply);
  },

  // ---- the region -----------------------------------------------------------------------------------------------

  press() {
    if (!this.reply?.paintable) return;
    this.erasing = this.cells.has(cellUnder(state.layers.at(-1), ...stage.pixel));
    this.drag();
  },

  // Paint the finest layer under the pointer, whatever layer is chosen.
  drag() {
    if (!this.reply?.paintable) return;
    const finest = state.layers.at(-1);
    const size = Number(find(".dream-size").value);
    for (const near of cellsAround(finest, cellUnder(finest, ...stage.pixel), size)) {
      if (this.erasing) this.cells.delete(near);
      else this.cells.add(near);
    }
    stage.lit = [...this.cells].map((painted) => [finest, painted]);
    stage.draw();
    this.renderTools();
  },

  key(event) {
    if (event.key === "d" && !find(".dream-draw").disabled) this.draw([...this.cells], null);
    if (event.key === "z") this.undo();
  },

  pointed(layer, cell) {
    if (layer === null || !this.reply?.fits) return;
    const place = { row: Math.floor(cell / layer.columns) + 1, column: (cell % layer.columns) + 1 };
    const bits = this.reply.bits[layer.first + cell * layer.step].toFixed(2);
    find(".dream-point").textContent = word("dream_point", { ...place, code: codeAt(layer, cell), bits });
  },

  layerChosen() {
    this.mark();
  },

  // ---- texts ----------------------------------------------------------------------------------------------------

  render() {
    const { reply } = this;
    const fits = reply?.fits ?? false;
    find(".dream-tools").hidden = !fits;
    find(".dream-fit").hidden = fits || !reply?.kind;
    find(".dream-hint").textContent = reply === null ? word("busy") : this.hint();
    if (!fits) return;
    this.renderClasses();
    find(".dream-scale span").textContent = word("dream_scale", { top: reply.top });
    fillNumbers(find(".dream-numbers"), [
      ["dream_total", reply.total.toFixed(1)],
      ["dream_mean", (reply.total / reply.bits.length).toFixed(2)],
      ["dream_packed", reply.packed.toFixed(0)],
    ]);
    this.renderTools();
  },

  hint() {
    const { kind, size } = this.reply;
    if (kind === null) return word("dream_none", state);
    if (!this.reply.fits) return word("dream_other_size", { width: size[0], height: size[1] });
    return `${word("dream_hint")} ${word(PREDICTS[kind])}`;
  },

  renderClasses() {
    const select = find(".dream-class");
    const chosen = select.value;
    const names = this.reply.classes;
    const options = names.map((name, number) => new Option(name, number));
    select.replaceChildren(new Option(word("dream_no_class"), ""), ...options);
    select.value = names[chosen] === undefined ? "" : chosen;
    find(".dream-classes").hidden = names.length === 0;
  },

  renderTools() {
    const { reply } = this;
    if (!reply?.fits) return;
    const threshold = Number(find(".dream-threshold").value);
    const count = reply.bits.filter((bits) => bits < threshold).length;
    find(".dream-threshold-text").textContent = word("dream_threshold", { bits: threshold, count, all: reply.bits.length });
    find(".dream-redraw").disabled = count === 0 || this.stale;
    find(".dream-temperature-text").textContent = word("dream_temperature", {
      value: Number(find(".dream-temperature").value).toFixed(1),
    });
    find(".dream-region").disabled = !reply.paintable;
    find(".dream-draw").disabled = this.cells.size === 0 || this.stale;
    find(".dream-clear").disabled = this.cells.size === 0;
    find(".dream-undo").disabled = state.undo === 0;
    if (this.before === null || this.stale) {
      find(".dream-report").textContent = reply.paintable ? "" : word("dream_placeless");
      return;
    }
    const [drawn, bits] = this.before;
    const told = { count: drawn, before: bits.toFixed(1), after: reply.total.toFixed(1) };
    find(".dream-report").textContent = word("dream_report", told);
  },

  start() {
    drawScale(find(".dream-scale canvas"));
    find(".dream-map").addEventListener("change", () => this.mark());
    find(".dream-class").addEventListener("change", () => this.look());
    for (const slider of [".dream-temperature", ".dream-threshold"]) {
      find(slider).addEventListener("input", () => this.renderTools());
    }
    find(".dream-cut").addEventListener("click", async () => {
      const reply = await ask("dream.fit");
      if (reply !== null) accept(reply);
    });
    find(".dream-clear").addEventListener("click", () => {
      this.cells.clear();
      this.mark();
      this.renderTools();
    });
    find(".dream-draw").addEventListener("click", () => this.draw([...this.cells], null));
    find(".dream-redraw").addEventListener("click", () => this.draw(null, Number(find(".dream-threshold").value)));
    find(".dream-undo").addEventListener("click", () => this.undo());
  },
};
