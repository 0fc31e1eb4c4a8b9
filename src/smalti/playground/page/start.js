// Connect the controls, then show the page.

find(".model").replaceChildren(...SETTINGS.models.map((name) => new Option(name, name)));
find(".model").addEventListener("change", async (event) => {
  const reply = await ask("look.model", { model: event.target.value });
  if (reply === null) event.target.value = state?.model ?? SETTINGS.models[0];
  else if ("original" in reply) accept(reply);
});
find(".language").addEventListener("click", () => speak(language === "en" ? "zh" : "en"));
find(".file").addEventListener("change", (event) => {
  openFirst(event.target.files);
  event.target.value = "";
});
find(".example").addEventListener("click", async () => {
  tell(null);
  const reply = await ask("look.example");
  if (reply !== null) accept(reply);
});
find(".another").addEventListener("click", () => find(".file").click());

const whole = find(".playground");
whole.addEventListener("dragover", (event) => {
  event.preventDefault();
  whole.classList.add("dropping");
});
whole.addEventListener("dragleave", () => whole.classList.remove("dropping"));
whole.addEventListener("drop", (event) => {
  event.preventDefault();
  whole.classList.remove("dropping");
  openFirst(event.dataTransfer.files);
});

for (const button of findAll("[role=tab]")) button.addEventListener("click", () => choosePanel(button.dataset.tab));
find("[role=tablist]").addEventListener("keydown", (event) => {
  const buttons = findAll("[role=tab]");
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const now = buttons.findIndex((button) => button.dataset.tab === current);
  const next = buttons[(now + step + buttons.length) % buttons.length];
  choosePanel(next.dataset.tab);
  next.focus();
});

startStage();
for (const panel of Object.values(panels)) panel.start?.();
choosePanel(current);
speak(language);
