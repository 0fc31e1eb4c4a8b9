// What all panels share: texts in two languages, calls of the server, the picture's state, tabs.

const find = (selector) => element.querySelector(selector);
const findAll = (selector) => [...element.querySelectorAll(selector)];

// ---- texts ----------------------------------------------------------------------------------------------------------

let language = navigator.language.startsWith("zh") ? "zh" : "en";

// The text of a key in the chosen language, with {name} replaced by values.name.
function word(key, values = {}) {
  return SETTINGS.words[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

const fixed = (value, digits) => (value === null ? word("no_number") : value.toFixed(digits));
const decibels = (value) => (value === null ? word("exact") : value.toFixed(2));

function speak(chosen) {
  language = chosen;
  find(".playground").lang = chosen === "zh" ? "zh-CN" : "en";
  document.title = word("title");
  for (const node of findAll("[data-word]")) node.textContent = word(node.dataset.word);
  for (const node of findAll("[data-label]")) node.setAttribute("aria-label", word(node.dataset.label));
  renderAll();
}

// ---- the server -----------------------------------------------------------------------------------------------------

// Each tab draws its own name, so that two tabs do not mix.
const tab = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const timings = (window.smaltiTimings = []); // [action, milliseconds until the answer was here]
let running = 0;

let turn = Promise.resolve(); // ends with the last action that may change something

// The answer to an action, or null after a problem, which is shown. Actions that may change something are sent one
// after the other: two in flight could arrive, or be answered, in the reverse order.
function ask(action, args = {}) {
  if (SETTINGS.unlocked.includes(action)) return send(action, args);
  turn = turn.then(() => send(action, args));
  return turn;
}

async function send(action, args) {
  running += 1;
  const slow = setTimeout(() => (find(".busy").hidden = false), 200);
  const start = performance.now();
  try {
    const reply = await server.ask({ tab, action, arguments: args });
    timings.push([action, performance.now() - start]);
    if (reply.problem === undefined) return reply;
    tell(reply.word, reply.values);
  } catch {
    tell("lost");
  } finally {
    clearTimeout(slow);
    running -= 1;
    if (running === 0) find(".busy").hidden = true;
  }
  return null;
}

let told = null; // the message on the page: [key, values], or null

function tell(key, values = {}) {
  told = key === null ? null : [key, values];
  find(".message").hidden = told === null;
  find(".message").textContent = told === null ? "" : word(...told);
}

// ---- the picture ----------------------------------------------------------------------------------------------------

let state = null; // what `look.py` tells of the picture; null: none is open

// Take over a reply that changes the picture or its tokens.
function accept(reply) {
  const opened = "original" in reply;
  state = opened ? reply : Object.assign(state, reply);
  if (opened) {
    find(".model").value = state.model; // a token file chooses its tokenizer
    fillLayers();
  }
  find(".drop").hidden = true;
  find("main").hidden = false;
  for (const panel of Object.values(panels)) panel[opened ? "opened" : "stepped"]?.();
  panels[current].show?.();
  renderAll();
}

async function openFile(file) {
  tell(null);
  if (file.size > SETTINGS.mostBytes) {
    tell("too_large", { name: file.name, limit: SETTINGS.mostBytes / 2 ** 20 });
    return;
  }
  const reply = await ask("look.open", { name: file.name, data: await base64(file) });
  if (reply !== null) accept(reply);
}

async function base64(file) {
  const reader = new FileReader();
  const done = new Promise((resolve) => (reader.onload = resolve));
  reader.readAsDataURL(file);
  await done;
  return reader.result.slice(reader.result.indexOf(",") + 1);
}

function openFirst(files) {
  if (files.length === 0) return;
  openFile(files[0]).then(() => files.length > 1 && tell("several", { count: files.length }));
}

// ---- layers: the token maps -----------------------------------------------------------------------------------------

const layerTitle = (layer) => word(`layer_${layer.kind}`, { ...layer, number: layer.number + 1 });
const layerNow = () => state.layers[Number(find(".layer").value)];
const codeAt = (layer, cell) => state.tokens[layer.first + cell * layer.step];

function fillLayers() {
  const select = find(".layer");
  const known = select.options.length === state.layers.length ? select.value : String(state.layers.length - 1);
  select.replaceChildren(...state.layers.map((layer) => new Option(layerTitle(layer), layer.number)));
  select.value = known;
}

// Cells of the layers with the same codebook that hold a code: [[layer, cell], …].
function placesOf(code, codebook) {
  const places = [];
  for (const layer of state.layers) {
    if (layer.codebook !== codebook) continue;
    for (let cell = 0; cell < layer.count; cell += 1) if (codeAt(layer, cell) === code) places.push([layer, cell]);
  }
  return places;
}

// ---- pictures of codes ----------------------------------------------------------------------------------------------

const tiles = new Map(); // "model layer code" -> {strip, place, count, trained}

const tileKey = (layer, code) => `${state.model} ${layer.number} ${code}`;

// Keep the pictures of a reply for the pairs [layer, code] that they were asked for.
function keepTiles(pairs, reply) {
  pairs.forEach(([layer, code], place) => {
    const { strip, trained } = reply;
    tiles.set(tileKey(layer, code), { strip, place, count: pairs.length, trained: trained[place] });
  });
}

// Show the picture of a code as the background of an element, if it is here.
function showTile(node, layer, code) {
  const tile = tiles.get(tileKey(layer, code));
  node.style.backgroundImage = tile ? `url(${tile.strip})` : "";
  if (!tile) return;
  node.style.backgroundSize = `${tile.count * 100}% 100%`;
  node.style.backgroundPosition = tile.count === 1 ? "0 0" : `${(100 * tile.place) / (tile.count - 1)}% 0`;
}

// Fetch the pictures of codes that are not here yet: [[layer, code], …].
async function fetchTiles(pairs) {
  const missing = pairs.filter(([layer, code]) => !tiles.has(tileKey(layer, code)));
  if (missing.length === 0) return;
  const wanted = missing.map(([layer, code]) => [layer.number, code]);
  const reply = await ask("codes.pictures", { wanted });
  if (reply !== null) keepTiles(missing, reply);
}

// ---- tabs -----------------------------------------------------------------------------------------------------------

// A panel may have: opened() a new picture, stepped() other tokens, show() its tab was chosen, render() its texts,
// pointed(layer, cell) the pointer moved (null, null: away), press/drag/release(layer, cell) on the picture,
// enter(layer, cell) by keyboard (none: press), key(event) other keys, layerChosen(), start() once.
const panels = {};
let current = "look";

function choosePanel(name) {
  current = name;
  for (const button of findAll("[role=tab]")) {
    const chosen = button.dataset.tab === name;
    button.setAttribute("aria-selected", chosen);
    button.tabIndex = chosen ? 0 : -1;
    find(`#panel-${button.dataset.tab}`).hidden = !chosen;
  }
  stage.lit = [];
  stage.region = null;
  if (state !== null) panels[name].show?.();
  renderAll();
}

function renderAll() {
  if (told !== null) tell(...told);
  if (state === null) return;
  const [fullWidth, fullHeight] = state.originalSize;
  const key = fullWidth === state.width && fullHeight === state.height ? "full_size" : "reduced";
  find(".about").textContent = word(key, { ...state, fullWidth, fullHeight });
  for (const option of find(".layer").options) option.textContent = layerTitle(state.layers[option.value]);
  find(".placeless").hidden = state.layers.every((layer) => layer.spatial);
  panels[current].render?.();
  stage.render();
}

// A list of terms and values: rows of [key of the term, text].
function fillNumbers(list, rows) {
  list.replaceChildren(
    ...rows.flatMap(([key, text]) => {
      const term = document.createElement("dt");
      const value = document.createElement("dd");
      [term.textContent, value.textContent] = [word(key), text];
      return [term, value];
    }),
  );
}
