// Panel 1: original and reconstruction under the divider, heat map of the error, numbers.

panels.look = {
  measured: null, // tokens that `ssim` belongs to
  ssim: undefined, // undefined: not here yet; null: the picture has none

  // SSIM takes longer than the other numbers, so it follows them.
  async measure() {
    const measured = state.tokens;
    if (this.measured === measured) return;
    [this.measured, this.ssim] = [measured, undefined];
    const reply = await ask("look.ssim");
    if (reply === null || state.tokens !== measured) return;
    this.ssim = reply.ssim;
    this.render();
  },

  show() {
    this.measure();
    const error = find(".look-error").checked ? state.error : null;
    stage.show({ overlay: error, opacity: 0.85 });
  },

  render() {
    const numbers = state.numbers;
    const bar = find(".scale-bar");
    find(".look-hint").textContent = word("look_hint", { count: numbers.tokens });
    find(".look-error").disabled = state.error === null;
    bar.hidden = !find(".look-error").checked;
    bar.querySelector("span").textContent = word("look_error_scale", { top: state.topError });
    fillNumbers(find("#panel-look .numbers"), [
      ["psnr", `${decibels(numbers.psnr)} dB`],
      ["ssim", this.ssim === undefined ? "…" : fixed(this.ssim, 4)],
      ["tokens", String(numbers.tokens)],
      ["bytes", String(numbers.bytes)],
      ["bits", fixed(numbers.bitsPerPixel, 4)],
      ["codes_used", `${numbers.codes} / ${state.vocabulary}`],
    ]);
  },

  start() {
    drawScale(find(".scale-bar canvas"));
    find(".look-error").addEventListener("change", () => {
      this.show();
      this.render();
    });
  },
};

// The colours of all heat maps, from 0 to the largest value.
function drawScale(canvas) {
  const context = canvas.getContext("2d");
  SETTINGS.colours.forEach(([red, green, blue], place) => {
    context.fillStyle = `rgb(${red}, ${green}, ${blue})`;
    context.fillRect(place, 0, 1, 1);
  });
}
