// Panel 5: the wall of the codebook, most used first; a click finds the code in the picture.

panels.codes = {
  shown: "", // model and layer of the wall
  codes: [], // codes on the wall so far
  total: null,
  dead: null,
  chosen: null,
  loading: false,

  opened() {
    this.shown = "";
  },

  show() {
    stage.show({ divided: false });
    const wanted = `${state.model} ${layerNow().number}`;
    if (wanted !== this.shown) {
      [this.shown, this.codes, this.total, this.chosen] = [wanted, [], null, null];
      find(".wall").replaceChildren();
      this.more();
    }
    this.find(this.chosen);
  },

  layerChosen() {
    this.show();
  },

  // Fetch the next page of the wall.
  async more() {
    if (this.loading || this.codes.length === this.total) return;
    this.loading = true;
    const [layer, shown] = [layerNow(), this.shown];
    const reply = await ask("codes.wall", { layer: layer.number, start: this.codes.length });
    this.loading = false;
    if (shown !== this.shown) {
      this.more();
      return;
    }
    if (reply === null) return;
    keepTiles(
      reply.codes.map((code) => [layer, code]),
      reply,
    );
    [this.total, this.dead] = [reply.total, reply.dead];
    this.codes.push(...reply.codes);
    find(".wall").append(...reply.codes.map((code) => this.button(layer, code)));
    this.render();
  },

  button(layer, code) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.code = code;
    button.className = "tile";
    showTile(button, layer, code);
    button.classList.toggle("dead", tiles.get(tileKey(layer, code)).trained === 0);
    button.addEventListener("click", () => this.find(code));
    return button;
  },

  // Mark the places of a code in the picture; null: none.
  find(code) {
    this.chosen = code;
    stage.lit = code === null ? [] : placesOf(code, layerNow().codebook);
    this.render();
    stage.draw();
  },

  // Point at the picture: choose the code that is there.
  press(layer, cell) {
    this.find(codeAt(layer, cell));
  },

  render() {
    const layer = layerNow();
    const counts = new Map();
    for (const other of state.layers) {
      if (other.codebook !== layer.codebook) continue;
      for (let cell = 0; cell < other.count; cell += 1) {
        const code = codeAt(other, cell);
        counts.set(code, (counts.get(code) ?? 0) + 1);
      }
    }
    for (const button of find(".wall").children) {
      const code = Number(button.dataset.code);
      const key = button.classList.contains("dead") ? "codes_label_dead" : "codes_label";
      const label = word(key, { code, count: counts.get(code) ?? 0 });
      button.setAttribute("aria-label", label);
      button.title = label;
      button.setAttribute("aria-pressed", code === this.chosen);
      button.classList.toggle("here", counts.has(code));
    }
    const lines = [];
    if (this.chosen !== null) {
      lines.push(word("codes_found", { code: this.chosen, count: counts.get(this.chosen) ?? 0 }));
    }
    if (this.total !== null) {
      lines.push(word("codes_loading", { count: this.codes.length, total: this.total }));
      lines.push(this.dead === null ? word("codes_uncounted") : word("codes_dead", { count: this.dead }));
    }
    find(".codes-report").textContent = lines.join(" · ");
    find(".codes-progress").value = this.total ? this.codes.length / this.total : 0;
    find(".codes-more").hidden = this.codes.length === this.total;
    find(".codes-brush").hidden = this.chosen === null;
  },

  start() {
    const wall = find(".wall");
    wall.addEventListener("scroll", () => wall.scrollTop + wall.clientHeight > wall.scrollHeight - 80 && this.more());
    find(".codes-more").addEventListener("click", () => this.more());
    find(".codes-brush").addEventListener("click", () => {
      panels.paint.code = this.chosen;
      choosePanel("paint");
    });
  },
};
