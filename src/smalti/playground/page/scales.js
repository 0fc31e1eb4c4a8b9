// Panel 3: the picture after each scale or residual level, and image codecs at the same size.

const CODECS = ["avif", "webp", "jpeg"];

panels.scales = {
  reply: null, // the answer to `scales.show`
  codecs: {}, // codec -> the answer to `scales.codec`
  wanted: null, // step that the slider asks for; null: the last
  busy: false,

  opened() {
    [this.reply, this.codecs, this.wanted] = [null, {}, null];
  },

  stepped() {
    this.opened();
  },

  show() {
    stage.show({ after: this.reply?.picture ?? state.reconstruction });
    if (this.reply === null) this.go(null);
  },

  // Ask for a step; those that the slider passes meanwhile are left out.
  async go(step) {
    this.wanted = step;
    if (this.busy) return;
    this.busy = true;
    let asked;
    do {
      asked = this.wanted;
      const reply = await ask("scales.show", { step: asked });
      if (reply === null) break;
      [this.reply, this.codecs] = [reply, {}];
      if (current === "scales") stage.show({ after: reply.picture });
      this.render();
    } while (asked !== this.wanted);
    this.busy = false;
    this.render();
    await this.compare();
  },

  async compare() {
    const { reply } = this;
    if (reply === null || state.error === null) return;
    for (const codec of CODECS) {
      const coded = await ask("scales.codec", { codec, step: reply.step });
      if (coded === null || this.reply !== reply) return;
      this.codecs[codec] = coded;
      this.render();
    }
  },

  render() {
    const { reply } = this;
    if (reply === null || current !== "scales") return;
    const slider = find(".scales-slider");
    [slider.max, slider.disabled] = [reply.steps - 1, reply.steps === 1];
    if (!this.busy) slider.value = reply.step;
    slider.setAttribute("aria-valuetext", `${reply.step + 1} / ${reply.steps}`);
    const hint = word("scales_hint", { step: reply.step + 1, steps: reply.steps });
    find(".scales-hint").textContent = reply.steps === 1 ? word("scales_single") : hint;
    fillNumbers(find(".scales-numbers"), [
      ["scales_tokens", String(reply.tokens)],
      ["bytes", String(reply.bytes)],
      ["psnr", `${decibels(reply.psnr)} dB`],
    ]);
    const figures = CODECS.map((codec) => (codec in this.codecs ? this.figure(this.codecs[codec]) : this.empty()));
    find(".scales-codecs").replaceChildren(...(state.error === null ? [] : figures));
  },

  // In place of a codec that is being computed.
  empty() {
    const figure = document.createElement("figure");
    figure.className = "empty";
    figure.style.aspectRatio = `${state.width} / ${state.height}`;
    figure.append(word("busy"));
    return figure;
  },

  figure(coded) {
    const figure = document.createElement("figure");
    const picture = document.createElement("img");
    const caption = document.createElement("figcaption");
    [picture.src, picture.alt] = [coded.picture, word("scales_codec_alt", coded)];
    const key = coded.bytes > 1.1 * this.reply.bytes ? "scales_larger" : "scales_codec";
    caption.textContent = word(key, { ...coded, psnr: decibels(coded.psnr) });
    figure.append(picture, caption);
    return figure;
  },

  start() {
    find(".scales-slider").addEventListener("input", (event) => this.go(Number(event.target.value)));
  },
};
