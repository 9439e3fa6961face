(() => {
"use strict";
const {runs, charts} = JSON.parse(document.getElementById("drawn").textContent);
const root = document.documentElement;
const view = {x: "step", smooth: 0, range: null, at: null, hidden: new Set()};
const drawn = [];
let extent = [Infinity, -Infinity];  // of all charts, so that they stand under each other

// --- numbers as people write them ----------------------------------------------------------------

const trim = text => text.includes(".") ? text.replace(/\.?0+$/, "") : text;
function number(value, unit = "", digits = 4) {
  if (value == null || !isFinite(value)) return "–";
  if (unit === "%") return trim((100 * value).toPrecision(3)) + " %";
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  for (const [scale, letter] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (size >= (letter === "k" ? scale : 0.9995 * scale)) return trim((value / (letter === "k" ? 1e3 : scale)).toPrecision(3)) + letter;
  return trim(value.toPrecision(digits));
}
const whole = value => Math.round(value).toLocaleString("en");
function duration(seconds) {
  const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const from = parts.findIndex(([, each]) => seconds >= each);
  if (from < 0) return seconds.toFixed(1) + " s";
  return parts.slice(from, from + 2).map(([name, each], i) => {
    const count = i ? Math.floor(seconds % parts[from][1] / each) : Math.floor(seconds / each);
    return count || !i ? `${count} ${name}` : "";
  }).join(" ").trim();
}
const shownX = value =>
  view.x === "step" ? "step " + whole(value) : view.x === "time" ? duration(value) : number(value) + " tokens";

// --- axes ----------------------------------------------------------------------------------------

function niceStep(span, count, steps = [1, 2, 2.5, 5, 10]) {
  const rough = span / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(rough));
  return power * (steps.find(each => each * power >= rough * 0.999) || 10);
}
function linearTicks(low, high, count, least = 0) {
  const step = Math.max(niceStep(high - low, count), least), ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}
function logTicks(low, high) {
  const ticks = [], decades = Math.log10(high / low), stride = Math.max(1, Math.ceil(decades / 6));
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const each of decades < 1.2 ? [1, 2, 3, 5, 7] : decades < 3 ? [1, 3] : [1]) {
      const tick = each * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001 && (each > 1 || power % stride === 0)) ticks.push(tick);
    }
  return ticks.length > 1 ? ticks : linearTicks(low, high, 4).filter(tick => tick > 0);
}
function xTicks(low, high, count) {
  if (view.x !== "time") return linearTicks(low, high, count, view.x === "step" ? 1 : 0).map(t => [t, number(t)]);
  const [name, each] = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]].find(([, s]) => high >= 2 * s) || ["s", 1];
  return linearTicks(low / each, high / each, count).map(t => [t * each, `${number(t)} ${name}`]);
}

// --- series --------------------------------------------------------------------------------------

function xOf(run, step) {  // steps are what is known; time and tokens lie between known ones
  if (view.x === "step") return step;
  const steps = runs[run].steps, values = runs[run][view.x];
  if (!values || !values.length) return NaN;
  let low = 0, high = steps.length - 1;
  if (step <= steps[0]) return values[0];
  if (step >= steps[high]) return values[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  return values[low] + (values[high] - values[low]) * (step - steps[low]) / (steps[high] - steps[low]);
}
function averaged(values, weight) {  // an exponential average, without its pull towards 0
  let sum = 0, total = 0;
  return values.map(value => {
    if (value == null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}
const smoothed = (values, weight) =>  // there and back again, so that it does not lag behind
  averaged(averaged(values, weight).reverse(), weight).reverse();
function quantile(values, share) {
  return values.length ? values[Math.round(share * (values.length - 1))] : NaN;
}
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle; else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
}

// --- a chart -------------------------------------------------------------------------------------

const node = (name, attributes = {}, parent = null, text = "") => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};
const DASHES = ["", "6 4", "1.5 4", "9 3 2 3"];

class Chart {
  constructor(figure, spec) {
    this.spec = spec; this.log = spec.log;
    this.tall = figure.parentElement.querySelector(".wide") !== null;
    this.plot = figure.querySelector(".plot");
    this.legend = figure.querySelector(".legend");
    this.lines = spec.lines.map((line, index) => ({...line, ...this.style(line), index}));
    const key = runs.length > 1 ? "run" : "kind";
    this.entries = [...new Set(this.lines.map(line => line[key]))]
      .map(each => this.entry(this.lines.filter(line => line[key] === each)));
    const kinds = new Map(this.lines.filter(line => line.label).map(line => [line.kind, line.label]));
    if (runs.length > 1 && kinds.size) this.explain([...kinds].sort((a, b) => a[0] - b[0]));
    const toggle = figure.querySelector("figcaption button");
    if (this.lines.some(line => line.values.some(value => value > 0))) {
      toggle.hidden = false;
      toggle.setAttribute("aria-pressed", this.log);
      toggle.onclick = () => { this.log = !this.log; toggle.setAttribute("aria-pressed", this.log); this.draw(); };
    }
    this.svg = node("svg", {role: "img", tabindex: 0, "aria-label": spec.title + ": " + spec.summary});
    this.plot.append(this.svg);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  style(line) {  // several runs: a colour each; one run: a colour for each of a chart's metrics
    const many = runs.length > 1, key = many ? line.run : line.kind;
    return {
      color: `var(--c${key % 8})`,
      dash: DASHES[(many ? line.kind : 0) % 4 || (key >= 8 ? Math.floor(key / 8) % 4 : 0)],
    };
  }

  entry(lines) {  // what is hidden and shown together: a run, or the only run's line
    const button = document.createElement("button"), readout = document.createElement("span");
    const label = runs.length > 1 ? runs[lines[0].run].name : lines[0].label;
    readout.className = "readout";
    button.type = "button";
    button.append(this.key(lines[0].color, lines[0].dash), label, readout);
    button.setAttribute("aria-pressed", true);
    button.title = "hide or show";
    button.onclick = () => {
      const off = !lines[0].off;
      for (const line of lines) line.off = off;
      button.setAttribute("aria-pressed", !off);
      this.draw();
    };
    this.legend.append(button);
    return {lines, readout};
  }

  explain(kinds) {
    const note = document.createElement("span");
    note.className = "note";
    const names = ["solid", "dashed", "dotted", "dash-dotted"];
    note.textContent = kinds.map(([kind, label]) => `${names[kind % 4]}: ${label}`).join(", ");
    this.legend.append(note);
  }

  key(color, dash) {
    const svg = node("svg", {"aria-hidden": true});
    node("line", {x1: 0, x2: 20, y1: 5, y2: 5, style: `stroke:${color};stroke-width:2.5`, "stroke-dasharray": dash}, svg);
    return svg;
  }

  listen() {
    const at = event => this.invert(event.clientX - this.svg.getBoundingClientRect().left);
    this.svg.onpointermove = event => {
      if (this.from != null) this.to = at(event);
      point(at(event));
    };
    this.svg.onpointerleave = () => { if (this.from == null) point(null); };
    this.svg.onpointerdown = event => {
      if (event.pointerType === "touch" || event.button) return;
      this.from = at(event);
      this.svg.setPointerCapture(event.pointerId);
    };
    this.svg.onpointerup = event => {
      if (this.from == null) return;
      const ends = [this.from, at(event)].sort((a, b) => a - b);
      this.from = this.to = null;
      if (this.scaleX && (ends[1] - ends[0]) * this.scaleX > 8) zoom(ends); else this.hover();
    };
    this.svg.ondblclick = () => zoom(null);
    this.svg.onkeydown = event => {
      const line = this.lines.find(each => !each.off && each.xs.length);
      const move = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity}[event.key];
      if (!line || !move) { if (event.key === "Escape") { point(null); zoom(null); } return; }
      event.preventDefault();
      const last = line.xs.length - 1, now = view.at == null ? last + 1 : nearest(line.xs, view.at);
      point(line.xs[Math.min(Math.max(now + move, 0), last)]);
    };
    this.svg.onblur = () => point(null);
  }

  invert(pixel) {
    return Math.min(Math.max(this.low + (pixel - this.left) / this.scaleX, this.low), this.high);
  }

  prepare() {
    for (const line of this.lines) {
      line.smooth = view.smooth && this.spec.noisy && line.values.length > 30 ? smoothed(line.values, view.smooth) : null;
      line.main = line.smooth || line.values;
    }
  }

  domain() {
    let bottom = Infinity, top = -Infinity;
    const faint = [], [low, high] = view.range || extent;
    for (const line of this.lines) if (!line.off) line.xs.forEach((x, i) => {
      if (!isFinite(x) || x < low || x > high) return;
      const value = line.main[i];
      if (value == null || (this.log && value <= 0)) return;
      bottom = Math.min(bottom, value); top = Math.max(top, value);
      if (line.smooth) faint.push(line.values[i]);
    });
    faint.sort((a, b) => a - b);  // most of what is faint is to be seen, but not each spike
    const least = quantile(faint, .02), most = quantile(faint, .98);
    if (least < bottom && (!this.log || least > 0)) bottom = least;
    if (most > top) top = most;
    return isFinite(bottom) ? {low, high, bottom, top} : null;
  }

  locate() { for (const line of this.lines) line.xs = line.steps.map(step => xOf(line.run, step)); }

  draw() {
    const width = this.plot.clientWidth, height = this.tall ? 300 : 200;
    if (!width) return;
    this.prepare();
    const svg = this.svg, range = this.domain();
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.height = height + "px";
    this.scaleX = 0;
    if (!range) {
      node("text", {x: width / 2, y: height / 2, "text-anchor": "middle"}, svg, "no finite value here");
      for (const {readout} of this.entries) readout.textContent = "–";
      return;
    }
    let {low, high, bottom, top} = range;
    const count = this.spec.unit === "#";
    if (count) bottom = Math.min(bottom, 0);
    if (low === high) { const pad = Math.max(Math.abs(low) * .05, 1); low -= pad; high += pad; }
    const to = this.log ? Math.log10 : value => value;
    let [b, t] = [to(bottom), to(top)];
    if (t - b < Math.max(Math.abs(t), 1e-12) * 1e-9) { const pad = Math.abs(t) * .05 || (this.log ? .1 : 1); b -= pad; t += pad; }
    const pad = (t - b) * .06, positive = bottom >= 0 && !this.log;
    b = positive && b - pad < 0 ? (b < (t - b) * .3 ? 0 : b) : b - pad;
    t += pad;
    const back = value => this.log ? 10 ** value : value;
    const ticks = (this.log ? logTicks(back(b), back(t)) : linearTicks(b, t, height / 44, count ? 1 : 0))
      .map(tick => [tick, number(Math.abs(tick) < (t - b) * 1e-9 && !this.log ? 0 : tick, this.spec.unit)]);
    const left = Math.max(...ticks.map(([, label]) => label.length), 2) * 6.9 + 12;
    const right = width - 6, floor = height - 24, ceiling = 8;
    const scaleX = (right - left) / (high - low);
    const X = x => left + (x - low) * scaleX;
    const Y = value => floor - (to(value) - b) / (t - b) * (floor - ceiling);
    Object.assign(this, {left, right, floor, ceiling, low, high, scaleX, X, Y, width});

    for (const [tick, label] of ticks) {
      node("line", {x1: left, x2: right, y1: Y(tick), y2: Y(tick), class: "grid"}, svg);
      node("text", {x: left - 8, y: Y(tick) + 4, "text-anchor": "end"}, svg, label);
    }
    node("line", {x1: left, x2: right, y1: floor, y2: floor, class: "axis"}, svg);
    for (const [tick, label] of xTicks(low, high, (right - left) / 90))
      node("text", {x: Math.min(X(tick), right - label.length * 3), y: floor + 17, "text-anchor": "middle"}, svg, label);
    const clip = `clip${drawn.indexOf(this)}`;
    node("rect", {x: left - 3, y: 0, width: right - left + 6, height: floor + 2}, node("clipPath", {id: clip}, svg));
    const inside = node("g", {"clip-path": `url(#${clip})`}, svg);
    for (const line of this.lines) if (!line.off) {
      const style = `stroke:${line.color}`;
      if (line.smooth) node("path", {d: this.path(line.xs, line.values), class: "raw", style}, inside);
      node("path", {d: this.path(line.xs, line.main), style, "stroke-dasharray": line.dash}, inside);
      const few = line.xs.filter(x => x >= low && x <= high).length <= Math.max((right - left) / 24, 2);
      line.xs.forEach((x, i) => {
        const value = line.main[i];
        if (line.values[i] == null) this.lost(inside, X(x));
        else if (few && (!this.log || value > 0))
          node("circle", {cx: X(x), cy: Y(value), r: 2.75, style: `fill:${line.color}`}, inside);
      });
    }
    this.over = node("g", {"pointer-events": "none"}, svg);
    this.hover();
  }

  lost(parent, x) {  // a value that was NaN or infinite
    node("path", {d: `M${x - 3} ${this.floor - 7}l6 6m0 -6l-6 6`, class: "lost"}, parent);
  }

  path(xs, values) {
    let path = "", pen = "M";
    xs.forEach((x, i) => {
      const value = values[i];
      if (value == null || !isFinite(x) || (this.log && value <= 0)) { pen = "M"; return; }
      path += `${pen}${this.X(x).toFixed(1)} ${this.Y(value).toFixed(1)}`;
      pen = "L";
    });
    return path;
  }

  hover() {
    if (!this.over || !this.scaleX) return;
    this.over.replaceChildren();
    const inside = view.at != null && view.at >= this.low && view.at <= this.high;
    let place = null;
    for (const line of this.lines) {
      const last = line.main.findLastIndex(each => each != null);
      const index = inside && line.xs.length ? nearest(line.xs, view.at) : last;
      const value = line.off ? null : line.main[index];
      line.shown = line.off || !line.values.length ? "" : number(value, this.spec.unit);
      if (!inside || line.off || value == null || (this.log && value <= 0)) continue;
      place ??= line.xs[index];
      node("circle", {cx: this.X(line.xs[index]), cy: this.Y(value), r: 4,
        style: `fill:${line.color};stroke:var(--card);stroke-width:2`}, this.over);
    }
    for (const {lines, readout} of this.entries)
      readout.textContent = lines.map(line => line.shown).filter(Boolean).join(" / ");
    if (this.from != null && this.to != null) {
      const ends = [this.X(this.from), this.X(this.to)].sort((a, b) => a - b);
      node("rect", {x: ends[0], width: ends[1] - ends[0], y: this.ceiling, height: this.floor - this.ceiling, class: "brush"}, this.over);
    }
    if (!inside) return;
    const x = this.X(place ?? view.at), text = shownX(place ?? view.at), half = text.length * 3.4;
    this.over.prepend(node("line", {x1: x, x2: x, y1: this.ceiling, y2: this.floor, class: "hair"}));
    node("text", {x: Math.min(Math.max(x, this.left + half), this.right - half), y: this.floor + 17,
      "text-anchor": "middle", class: "flag"}, this.over, text);
  }
}

// --- all of them ---------------------------------------------------------------------------------

function point(x) { view.at = x; for (const chart of drawn) chart.hover(); }
function zoom(range) { view.range = range; view.at = null; reset.hidden = !range; redraw(); }
function locate() {
  let [low, high] = [Infinity, -Infinity];
  for (const chart of drawn) {
    chart.locate();
    for (const line of chart.lines) for (const x of line.xs) if (isFinite(x)) {
      low = Math.min(low, x);
      high = Math.max(high, x);
    }
  }
  extent = [low > 0 && low < high * .1 ? 0 : low, high];
}
function redraw() { for (const chart of drawn) chart.draw(); }

const reset = document.getElementById("reset");
reset.onclick = () => zoom(null);
for (const button of document.querySelectorAll("[data-x]")) {
  const axis = button.dataset.x;
  if (axis !== "step" && !runs.some(run => (run[axis] || []).length)) { button.hidden = true; continue; }
  button.onclick = () => {
    view.x = axis;
    locate();
    for (const each of document.querySelectorAll("[data-x]")) each.setAttribute("aria-pressed", each === button);
    zoom(null);
  };
}
const smoothing = document.getElementById("smoothing");
smoothing.oninput = () => {
  const level = Number(smoothing.value);
  view.smooth = level ? 1 - 0.5 ** (level + 0.5) : 0;
  smoothing.setAttribute("aria-valuetext", level ? `weight ${view.smooth.toFixed(3)}` : "off");
  redraw();
};
const longest = Math.max(0, ...charts.flatMap(chart => chart.lines.map(line => line.values.length)));
if (longest > 60) { smoothing.value = 3; }

// --- light and dark ------------------------------------------------------------------------------

const asked = new URLSearchParams(location.search).get("theme");
const memory = {  // a page inside a frame may have none
  get() { try { return localStorage.getItem("t5lite-theme"); } catch { return null; } },
  set(value) { try { localStorage.setItem("t5lite-theme", value); } catch { /* then not */ } },
};
const theme = document.getElementById("theme");
const isDark = () => getComputedStyle(root).colorScheme === "dark"
  || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
const say = () => { theme.textContent = isDark() ? "☀ Light" : "☾ Dark"; };
if (asked || memory.get()) root.dataset.theme = asked || memory.get();
theme.onclick = () => { root.dataset.theme = isDark() ? "light" : "dark"; memory.set(root.dataset.theme); say(); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", say);
say();

// --- texts by step -------------------------------------------------------------------------------

for (const card of document.querySelectorAll(".texts")) {
  const pages = [...card.querySelectorAll(".pages > section")].reverse();  // oldest first
  const slider = card.querySelector("input"), shown = card.querySelector("output");
  const [back, on] = card.querySelectorAll(".steps button");
  if (pages.length < 2) continue;
  card.classList.add("live");
  card.querySelector(".steps").hidden = false;
  const turn = to => {
    slider.value = to;
    pages.forEach((page, index) => { page.hidden = index !== to; });
    shown.textContent = "step " + whole(pages[to].dataset.step);
    slider.setAttribute("aria-valuetext", shown.textContent);
    back.disabled = to === 0;
    on.disabled = to === pages.length - 1;
  };
  slider.max = pages.length - 1;
  slider.oninput = () => turn(Number(slider.value));
  back.onclick = () => turn(Number(slider.value) - 1);
  on.onclick = () => turn(Number(slider.value) + 1);
  turn(pages.length - 1);
}

charts.forEach((spec, index) => {
  drawn.push(new Chart(document.getElementById("chart" + index), spec));
});
locate();
smoothing.oninput();
addEventListener("beforeprint", redraw);
})();
