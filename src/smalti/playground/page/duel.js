// Panel 6: two tokenizers on one picture, under the divider and side by side, with numbers.

panels.duel = {
  reply: null, // the answer to `duel.show`

  opened() {
    this.reply = null;
  },

  show() {
    if (this.reply === null) {
      stage.show();
      this.compare();
      return;
    }
    const [left, right] = this.reply.sides;
    const shown = this.errors() ? "error" : "picture";
    stage.show({
      before: left[shown],
      after: right[shown],
      captions: ["duel_caption", "duel_caption"],
      alts: this.errors() ? ["duel_error_alt", "duel_error_alt"] : ["duel_alt", "duel_alt"],
      values: [left, right],
    });
  },

  async compare() {
    const asked = state;
    this.reply = null;
    const reply = await ask("duel.show", { left: find(".duel-left").value, right: find(".duel-right").value });
    if (reply === null || asked !== state) return;
    this.reply = reply;
    if (current === "duel") this.show();
    this.render();
  },

  errors() {
    return find(".duel-error").checked;
  },

  render() {
    const sides = this.reply?.sides ?? [];
    find(".duel-single").hidden = SETTINGS.models.length > 1;
    find(".duel-numbers").hidden = sides.length === 0;
    find(".duel-pictures").replaceChildren(...sides.map((side) => this.figure(side)));
    if (sides.length === 0) return;
    const heading = find(".duel-numbers thead tr");
    heading.replaceChildren(document.createElement("td"), ...sides.map((side) => headingCell(side.name, "col")));
    find(".duel-numbers tbody").replaceChildren(
      this.row("psnr", "psnr", 1, (side) => `${decibels(side.psnr)} dB`),
      this.row("ssim", "ssim", 1, (side) => fixed(side.ssim, 4)),
      this.row("duel_bytes", "bytes", -1, (side) => String(side.bytes)),
      this.row("bits", "bitsPerPixel", -1, (side) => side.bitsPerPixel.toFixed(4)),
      this.row("tokens", "tokens", -1, (side) => String(side.tokens)),
      this.row("codes_used", "codes", 0, (side) => `${side.codes} / ${side.vocabulary}`),
      this.row("duel_time", "milliseconds", -1, (side) => `${side.milliseconds.toFixed(0)} ms`),
    );
  },

  // A line of the table; the better value is marked, `sign` tells whether larger (1) or smaller (-1) values are better.
  row(key, field, sign, text) {
    const line = document.createElement("tr");
    const [left, right] = this.reply.sides.map((side) => (side[field] === null ? Infinity : side[field]) * sign);
    line.append(headingCell(word(key), "row"));
    this.reply.sides.forEach((side, place) => {
      const better = place === 0 ? left > right : right > left;
      const cell = line.insertCell();
      cell.classList.toggle("better", better);
      cell.textContent = better ? `★ ${text(side)}` : text(side);
    });
    return line;
  },

  figure(side) {
    const figure = document.createElement("figure");
    const picture = document.createElement("img");
    const caption = document.createElement("figcaption");
    picture.src = this.errors() ? side.error : side.picture;
    picture.alt = word(this.errors() ? "duel_error_alt" : "duel_alt", side);
    caption.textContent = side.name;
    figure.append(picture, caption);
    return figure;
  },

  start() {
    const names = SETTINGS.models;
    [".duel-left", ".duel-right"].forEach((selector, place) => {
      const select = find(selector);
      select.replaceChildren(...names.map((name) => new Option(name)));
      select.selectedIndex = Math.min(place, names.length - 1);
      select.addEventListener("change", () => state !== null && this.compare());
    });
    find(".duel-error").addEventListener("change", () => {
      this.show();
      this.render();
    });
  },
};

function headingCell(text, scope) {
  const cell = document.createElement("th");
  [cell.textContent, cell.scope] = [text, scope];
  return cell;
}
