// Line charts as SVG, drawn at the width they are shown at.

import { make, set, value } from "/words.js";

const HEIGHT = 250, RIGHT = 18, TOP = 8, BOTTOM = 36, COLOURS = 10;

export function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, given] of Object.entries(attributes)) made.setAttribute(name, given);
  return made;
}

export function ticks(low, high, count) {
  if (high - low < 1e-9 * Math.max(1, Math.abs(low))) {
    const room = Math.max(0.5, 0.05 * Math.abs(low));
    [low, high] = [low - room, high + room];
  }
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= 0.999 * rough);
  const found = [];
  for (let n = Math.floor(low / step); n <= Math.ceil(high / step); n++) found.push(n * step);
  return found;
}

// how a method looks: a colour, and a way of drawing the line where colours come again
export function look(number, dash = Math.floor(number / COLOURS)) {
  return `c${number % COLOURS} d${dash % 4}`;
}

export function mark(looks) {
  const picture = svg("svg", { class: "look", width: 26, height: 10, viewBox: "0 0 26 10" });
  picture.append(svg("line", { class: `line ${looks}`, x1: 0, x2: 26, y1: 5, y2: 5 }));
  return picture;
}

// a link to what is drawn; a word that a spreadsheet takes for a formula has an apostrophe before it
function dataLink(drawn, xName, title) {
  const safe = (word) => `"${(/^[=+\-@\t\r]/.test(word) ? `'${word}` : word).replaceAll('"', '""')}"`;
  const rows = drawn.flatMap((line) => line.points.map(([x, y]) => `${safe(line.name)},${x},${y}`));
  const text = [`line,${safe(xName)},${safe(title)}`, ...rows, ""].join("\n");
  const file = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "chart";
  return make("a", { class: "data", download: `${file}.csv`, text: "CSV",
    href: `data:text/csv;charset=utf-8,${encodeURIComponent(text)}` });
}

function label(x, y, anchor, text) {
  const made = svg("text", { class: "tick", x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

// lines: [{name, look, points: [[x, y]], lost: [x]}]; whole: x are whole numbers, shown as dots;
// spans: x from n to n + 1 is what happens during n, which is written in its middle; most: y ends there
export function chart(box, lines, { xName, title = "y", whole = false, spans = false, most = Infinity }) {
  const drawn = lines.filter((line) => line.points.length || (line.lost || []).length);
  const width = Math.max(260, Math.floor(box.clientWidth));
  const picture = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` });
  const xs = drawn.flatMap((line) => [...line.points.map((p) => p[0]), ...(line.lost || [])]);
  const ys = drawn.flatMap((line) => line.points.map((p) => p[1]));
  if (!xs.length) {
    box.replaceChildren(make("p", { class: "dim", text: "nothing yet" }));
    return;
  }
  const every = ys.length ? ticks(Math.min(...ys), Math.max(...ys), 4) : [0, 1];
  const yLow = every[0], yHigh = Math.min(every[every.length - 1], Math.max(most, ...ys));
  const yTicks = every.filter((y) => y <= yHigh);
  const LEFT = 14 + 7 * Math.max(...yTicks.map((y) => value(y).length));
  let [xLow, xHigh] = [Math.min(...xs), Math.max(...xs)];
  if (spans) [xLow, xHigh] = [Math.ceil(xLow) - 1, Math.max(Math.ceil(xHigh), Math.ceil(xLow))];
  if (xHigh - xLow < 1e-9) [xLow, xHigh] = [xLow - 0.5, xHigh + 0.5];
  const across = (x) => LEFT + ((x - xLow) / (xHigh - xLow)) * (width - LEFT - RIGHT);
  const upward = (y) => HEIGHT - BOTTOM - ((y - yLow) / (yHigh - yLow)) * (HEIGHT - TOP - BOTTOM);
  for (const y of yTicks) {
    const v = upward(y).toFixed(1);
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: v, y2: v }));
    picture.append(label(LEFT - 7, Number(v) + 4, "end", value(y)));
  }
  let xTicks = whole ? [...new Set(xs)].sort((a, b) => a - b) : ticks(xLow, xHigh, Math.min(6, width / 90));
  if (spans) xTicks = Array.from({ length: Math.min(1000, xHigh - xLow) }, (_, n) => xLow + n);
  let end = -Infinity;
  for (const x of xTicks.filter((x) => x >= xLow - 1e-9 && x <= xHigh + 1e-9)) {
    const u = across(spans ? x + 0.5 : x), half = 3.5 * value(x).length;
    if (spans && x > xLow && xTicks.length <= 30) {
      picture.append(svg("line", { class: "grid", x1: across(x), x2: across(x), y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    if (u - half < end) continue; // it would overlap the one before
    end = u + half + 4;
    picture.append(label(u, HEIGHT - 20, "middle", value(x)));
  }
  picture.append(label((LEFT + width - RIGHT) / 2, HEIGHT - 4, "middle", xName));
  for (const line of drawn) {
    const colour = line.look;
    const path = line.points.map(([x, y]) => `${across(x).toFixed(1)},${upward(y).toFixed(1)}`);
    picture.append(svg("polyline", { class: `line ${colour}`, points: path.join(" ") }));
    const dots = whole || line.points.length === 1 ? line.points : line.points.slice(-1);
    for (const [x, y] of dots) {
      picture.append(svg("circle", { class: `dot ${colour}`, cx: across(x), cy: upward(y), r: 3 }));
    }
    for (const x of line.lost || []) {
      const mark = label(across(x), TOP + 8, "middle", "✕");
      mark.classList.add("lost");
      const why = svg("title", {});
      why.textContent = `${line.name}: not finite`;
      mark.append(why);
      picture.append(mark);
    }
  }
  const rule = svg("line", { class: "rule", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const said = make("p", { class: "said" });
  picture.append(rule);
  picture.addEventListener("pointermove", (event) => {
    const u = event.clientX - picture.getBoundingClientRect().left;
    const x = xLow + ((u - LEFT) / (width - LEFT - RIGHT)) * (xHigh - xLow);
    const near = (p, q) => (Math.abs(q[0] - x) < Math.abs(p[0] - x) ? q : p);
    const parts = drawn.filter((l) => l.points.length).map((line) => {
      const [at, y] = line.points.reduce(near);
      const where = spans ? `step ${Math.max(xLow, Math.ceil(at) - 1)}` : `step ${value(at, 4)}`;
      return `${line.name} ${value(y, 4)} (${where})`;
    });
    rule.setAttribute("x1", u);
    rule.setAttribute("x2", u);
    rule.setAttribute("visibility", u < LEFT ? "hidden" : "visible");
    set(said, parts.join(" · "));
  });
  picture.addEventListener("pointerleave", () => {
    rule.setAttribute("visibility", "hidden");
    set(said, "");
  });
  box.replaceChildren(picture, dataLink(drawn, xName, title), said);
}
