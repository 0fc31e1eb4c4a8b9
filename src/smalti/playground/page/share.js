// Panel 8: the tokens as a link or a file, and opening either.

const FRAGMENT = "#t=";

panels.share = {
  reply: null, // the answer to `share.link`
  copied: false, // whether the link was copied

  opened() {
    this.reply = null;
  },

  stepped() {
    this.reply = null;
  },

  show() {
    stage.show({ divided: false });
    if (this.reply === null) this.make();
  },

  async make() {
    const tokens = state.tokens;
    const reply = await ask("share.link", { page: location.href });
    if (reply === null || tokens !== state.tokens) return;
    this.reply = reply;
    this.copied = false;
    this.render();
  },

  render() {
    const { reply } = this;
    const link = reply?.link ?? null;
    find(".share-link").value = link ?? "";
    find(".share-copy").disabled = link === null;
    find(".share-hint").textContent = word("share_hint", state);
    find(".share-report").textContent = this.report();
    if (reply === null) return;
    fillNumbers(find(".share-numbers"), [
      ["share_bytes", String(reply.bytes)],
      ["share_letters", String(reply.letters)],
      ["share_fingerprint", `${reply.fingerprint.slice(0, 12)}… (${state.model})`],
    ]);
  },

  report() {
    if (this.reply === null) return "";
    if (this.reply.link === null) return word("share_long", this.reply);
    return this.copied ? word("share_copied") : "";
  },

  async copy() {
    find(".share-link").select();
    try {
      await navigator.clipboard.writeText(this.reply.link);
      this.copied = true;
    } catch {
      this.copied = document.execCommand("copy"); // pages over plain HTTP from another machine have no clipboard
    }
    this.render();
  },

  // Open the tokens in a link, or in the fragment of this page's address.
  async open(link) {
    tell(null);
    const reply = await ask("share.open", { link });
    if (reply === null) return;
    accept(reply);
    choosePanel("look");
  },

  start() {
    find(".share-link").addEventListener("focus", (event) => event.target.select());
    find(".share-copy").addEventListener("click", () => this.copy());
    find(".share-file").addEventListener("click", () => panels.paint.download("paint.tokens"));
    find(".share-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.open(find(".share-given").value);
    });
    find(".share-chosen").addEventListener("change", (event) => openFirst(event.target.files));
    const follow = () => location.hash.startsWith(FRAGMENT) && this.open(location.hash);
    window.addEventListener("hashchange", follow);
    follow();
  },
};
