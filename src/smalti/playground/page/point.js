// Panel 2: the tokens at the pointed place at every scale, and all places with the same code.

panels.point = {
  place: null, // [layer, cell] that the table shows
  fetching: false,

  opened() {
    this.place = null;
  },

  show() {
    stage.show();
  },

  pointed(layer, cell) {
    stage.lit = layer === null ? [] : placesOf(codeAt(layer, cell), layer.codebook);
    if (layer === null) return;
    this.place = [layer, cell];
    this.render();
    this.fetch();
  },

  // Fetch the pictures of the codes at the place; places that the pointer passes meanwhile are left out.
  async fetch() {
    if (this.fetching) return;
    this.fetching = true;
    let place;
    while (place !== this.place && this.place !== null) {
      place = this.place;
      await fetchTiles(tokensAt(...place).map(([layer, cell]) => [layer, codeAt(layer, cell)]));
    }
    this.fetching = false;
    this.render();
  },

  layerChosen() {
    this.place = null;
    this.render();
  },

  render() {
    const rows = this.place === null ? [] : tokensAt(...this.place);
    find(".point-table tbody").replaceChildren(...rows.map(([layer, cell]) => this.row(layer, codeAt(layer, cell))));
    find(".point-table").hidden = rows.length === 0;
  },

  row(layer, code) {
    const line = document.createElement("tr");
    line.classList.toggle("chosen", layer === this.place[0]);
    const picture = document.createElement("span");
    picture.className = "tile";
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", word("code", { code }));
    showTile(picture, layer, code);
    const here = word("point_times", { count: placesOf(code, layer.codebook).length });
    for (const content of [layerTitle(layer), String(code), picture, here, share(layer, code)]) {
      line.insertCell().append(content);
    }
    return line;
  },
};

// How often training used a code: "1 of 5000".
function share(layer, code) {
  const tile = tiles.get(tileKey(layer, code));
  if (!tile) return "";
  if (tile.trained === null) return word("point_unknown");
  return tile.trained === 0 ? word("point_never") : word("point_share", { count: Math.round(1 / tile.trained) });
}
