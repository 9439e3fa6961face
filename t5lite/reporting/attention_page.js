(() => {
"use strict";
const {tokens, maps, last, outputs, attribution} = JSON.parse(document.getElementById("drawn").textContent);
const root = document.documentElement, at = id => document.getElementById(id);
const made = (kind, name, text) => {
  const element = document.createElement(kind);
  if (name) element.className = name;
  if (text != null) element.textContent = text;
  return element;
};
const shown = piece => piece.replace(/^$/, "∅").replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥");
const percent = share => (100 * share).toFixed(share < 0.0995 ? 2 : 1) + " %";
const signed = value => (value < 0 ? "−" : value > 0 ? "+" : "") + Math.abs(value).toPrecision(2).replace(/e-(\d+)/, "e−$1");

// --- theme ---------------------------------------------------------------------------------------

const memory = {
  get() { try { return localStorage.getItem("t5lite-theme"); } catch { return null; } },
  set(value) { try { localStorage.setItem("t5lite-theme", value); } catch { /* then not */ } },
};
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => root.dataset.theme === "dark" || (!root.dataset.theme && system.matches);
const asked = new URLSearchParams(location.search).get("theme") || memory.get();
if (asked) root.dataset.theme = asked;
at("theme").onclick = () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  memory.set(root.dataset.theme);
  draw();
};
system.addEventListener("change", () => draw());

// --- colours: from the card's, over blue, to what stands out most ---------------------------------

const RAMPS = {light: [[255, 255, 255], [0, 114, 178], [4, 28, 48]], dark: [[17, 21, 26], [0, 114, 178], [214, 238, 255]]};
function ramp() {
  const stops = RAMPS[isDark() ? "dark" : "light"];
  return Array.from({length: 256}, (_, byte) => {
    const place = byte / 255 * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
    return stops[low].map((from, i) => Math.round(from + (stops[low + 1][i] - from) * (place - low)));
  });
}
function paint(canvas, bytes, width, height, colors) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  bytes.forEach((byte, i) => image.data.set([...colors[byte], 255], 4 * i));
  context.putImageData(image, 0, 0);
}

// --- tokens: what each costs, and what it is due to ------------------------------------------------

function tinted(element, share, color) {
  element.style.background = `color-mix(in srgb, ${color} ${(55 * share).toFixed(1)}%, var(--card))`;
}
for (const output of outputs) {  // what is not finite, JSON has no number for
  output.loss ??= NaN;
  output.alternatives = output.alternatives.map(([piece, chance]) => [piece, chance ?? NaN]);
}
const most = Math.max(...outputs.map(each => each.loss), 1e-9);
const chips = outputs.map((output, index) => {
  const chip = made("button", "token", shown(output.piece));
  chip.type = "button";
  chip.append(made("small", "", output.loss.toFixed(2)));
  chip.onclick = () => choose(index);
  tinted(chip, output.loss / most, "var(--c1)");
  at("outputs").append(chip);
  return chip;
});
function choose(index) {
  chips.forEach((chip, i) => chip.setAttribute("aria-pressed", i === index));
  const {piece, place, loss, alternatives} = outputs[index], detail = at("detail");
  detail.replaceChildren(made("h3", "", shown(piece)),
    made("p", "soft", `${loss.toFixed(3)} nats · probability ${percent(Math.exp(-loss))}`));
  const table = made("table"), body = table.appendChild(made("tbody"));
  const rows = alternatives.some(([each]) => each === piece) ? alternatives : [...alternatives, [piece, Math.exp(-loss)]];
  for (const [each, chance] of rows) {
    const row = body.appendChild(made("tr", each === piece ? "it" : ""));
    row.append(made("td", "", shown(each)), made("td"), made("td", "number", percent(chance)));
    row.children[1].appendChild(made("i")).style.width = `${Math.max(100 * chance, 1)}%`;
  }
  detail.append(table);
  const strips = [], row = attribution[index], largest = Math.max(...row.map(Math.abs), 1e-30);
  let first = 0;
  for (const [stack, pieces] of Object.entries(tokens)) {
    const strip = made("div", "strip");
    if (Object.keys(tokens).length > 1) strip.append(made("span", "side", stack));
    pieces.forEach((each, i) => {
      const value = row[first + i], chip = made("span", "token", shown(each));
      chip.append(made("small", "", value ? signed(value) : "0"));
      tinted(chip, Math.abs(value) / largest, value < 0 ? "var(--c1)" : "var(--c0)");
      if (stack === last && i === place) chip.classList.add("read");
      strip.append(chip);
    });
    first += pieces.length;
    strips.push(strip);
  }
  at("inputs").replaceChildren(...strips);
  at("sum").textContent = signed(row.reduce((sum, each) => sum + each, 0));
}

// --- attention -----------------------------------------------------------------------------------

for (const map of maps) {
  const bytes = Uint8Array.from(atob(map.data), letter => letter.charCodeAt(0));
  const size = tokens[map.queries].length * tokens[map.keys].length;
  let first = 0;
  map.layers = map.heads.map(count => Array.from({length: count}, () => bytes.subarray(first, first += size)));
}
const view = {map: maps[0], layer: 0, head: 0, cell: null};
const large = at("map"), [, keyLabels, queryLabels, cells] = large.children, [canvas, frame] = cells.children;
const kinds = maps.map(map => {
  const button = made("button", "", map.title);
  button.type = "button";
  button.onclick = () => show(map, Math.min(view.layer, map.layers.length - 1), 0);
  at("kinds").append(button);
  return button;
});

function show(map, layer, head) {
  if (map !== view.map) view.cell = null;
  Object.assign(view, {map, layer, head: Math.min(head, map.layers[layer].length - 1)});
  draw();
}
function draw() {
  at("theme").textContent = isDark() ? "☀ Light" : "☾ Dark";
  const {map, layer, head} = view, colors = ramp();
  kinds.forEach((button, i) => button.setAttribute("aria-pressed", maps[i] === map));
  const width = tokens[map.keys].length, height = tokens[map.queries].length;
  at("whose").textContent = `rows: tokens of the ${map.queries}, which look · columns: tokens of the ${map.keys}, which are looked at`;
  overview(map, width, height, colors);
  // The large one, whose cells have room for their labels.
  const room = at("map").parentElement.clientWidth - 130;
  const size = Math.max(14, Math.min(36, Math.floor(room / width)));
  large.setAttribute("aria-label", `${map.title}, layer ${layer + 1}, head ${head + 1}`);
  paint(canvas, map.layers[layer][head], width, height, colors);
  canvas.style.cssText = `width:${size * width}px;height:${size * height}px`;
  label(keyLabels, tokens[map.keys], `width:${size}px;line-height:${size}px`);
  label(queryLabels, tokens[map.queries], `height:${size}px;line-height:${size}px`);
  paint(at("scale"), Uint8Array.from({length: 128}, (_, i) => 255 * Math.sqrt(i / 127)), 128, 1, colors);
  point(view.cell);
}
function overview(map, width, height, colors) {
  const grid = at("heads"), most = Math.max(...map.heads), scrolled = grid.scrollTop;
  const size = Math.max(22, Math.min(64, Math.floor((grid.clientWidth - 34) / most) - 3));
  grid.style.gridTemplateColumns = `26px repeat(${most}, ${size}px)`;
  grid.replaceChildren(made("span", "", ""), ...Array.from({length: most}, (_, head) => made("span", "", head + 1)));
  map.layers.forEach((heads, layer) => {
    grid.append(made("span", "", layer + 1));
    heads.forEach((bytes, head) => {
      const button = made("button"), small = button.appendChild(made("canvas"));
      button.type = "button";
      button.style.cssText = `width:${size}px;height:${size}px;grid-column:${head + 2}`;
      button.title = `layer ${layer + 1}, head ${head + 1}`;
      button.setAttribute("aria-label", button.title);
      button.setAttribute("aria-pressed", layer === view.layer && head === view.head);
      button.onclick = () => {
        show(map, layer, head);
        at("heads").querySelector('[aria-pressed="true"]').focus({preventScroll: true});
      };
      if (Math.max(width, height) <= size) small.style.imageRendering = "pixelated";
      paint(small, bytes, width, height, colors);
      grid.append(button);
    });
  });
  grid.scrollTop = scrolled;
}
function label(element, pieces, style) {
  element.replaceChildren(...pieces.map(piece => {
    const each = made("span", "", shown(piece));
    each.style.cssText = style;
    each.title = shown(piece);
    return each;
  }));
}
function point(cell) {  // [query, key], or null for none
  const {map, layer, head} = view, queries = tokens[map.queries], keys = tokens[map.keys];
  view.cell = cell;
  for (const [labels, index] of [[queryLabels, cell && cell[0]], [keyLabels, cell && cell[1]]])
    [...labels.children].forEach((each, i) => each.classList.toggle("on", i === index));
  frame.hidden = !cell;
  const readout = at("readout"), where = `Layer ${layer + 1}, head ${head + 1}`;
  readout.replaceChildren(made("span", "soft", `${where}: `));
  if (!cell) return void readout.append("point at a cell");
  const [query, key] = cell, width = canvas.clientWidth / keys.length, height = canvas.clientHeight / queries.length;
  frame.style.cssText = `left:${width * key}px;top:${height * query}px;width:${width}px;height:${height}px`;
  const weight = (map.layers[layer][head][query * keys.length + key] / 255) ** 2;
  readout.append(made("b", "", shown(queries[query])), " takes ", made("b", "", percent(weight)), " from ", made("b", "", shown(keys[key])));
}
cells.onpointermove = event => {
  const box = canvas.getBoundingClientRect(), {map} = view;
  const place = (from, size, count) => Math.max(0, Math.min(count - 1, Math.floor(from / size * count)));
  point([place(event.clientY - box.top, box.height, tokens[map.queries].length),
    place(event.clientX - box.left, box.width, tokens[map.keys].length)]);
};
large.onkeydown = event => {
  const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (!step) return;
  event.preventDefault();
  const limits = [tokens[view.map.queries].length - 1, tokens[view.map.keys].length - 1];
  point(view.cell ? view.cell.map((each, i) => Math.max(0, Math.min(limits[i], each + step[i]))) : [0, 0]);
  frame.scrollIntoView({block: "nearest", inline: "nearest"});
};
let waiting;
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(draw, 100); });
draw();
if (outputs.length) choose(outputs.reduce((best, each, i) => each.loss > outputs[best].loss ? i : best, 0));
})();
