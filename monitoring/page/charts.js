// Line charts as SVG, drawn at the width they are shown at.

import { make, set, value } from "/words.js";

const HEIGHT = 240, LEFT = 46, RIGHT = 12, TOP = 8, BOTTOM = 30;

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

function label(x, y, anchor, text) {
  const made = svg("text", { class: "tick", x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

// lines: [{name, colour, points: [[x, y]], lost: [x]}]; whole: x are whole numbers, shown as dots;
// wholeStart: x begins at a whole number
export function chart(box, lines, { xName, whole = false, wholeStart = false }) {
  const drawn = lines.filter((line) => line.points.length || (line.lost || []).length);
  const width = Math.max(260, Math.floor(box.clientWidth));
  const picture = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` });
  const xs = drawn.flatMap((line) => [...line.points.map((p) => p[0]), ...(line.lost || [])]);
  const ys = drawn.flatMap((line) => line.points.map((p) => p[1]));
  if (!xs.length) {
    box.replaceChildren(make("p", { class: "dim", text: "nothing yet" }));
    return;
  }
  const yTicks = ys.length ? ticks(Math.min(...ys), Math.max(...ys), 4) : [0, 1];
  const [yLow, yHigh] = [yTicks[0], yTicks[yTicks.length - 1]];
  let [xLow, xHigh] = [Math.min(...xs), Math.max(...xs)];
  if (wholeStart) xLow = Math.ceil(xLow) - 1;
  if (xHigh - xLow < 1e-9) [xLow, xHigh] = [xLow - 0.5, xHigh + 0.5];
  const across = (x) => LEFT + ((x - xLow) / (xHigh - xLow)) * (width - LEFT - RIGHT);
  const upward = (y) => HEIGHT - BOTTOM - ((y - yLow) / (yHigh - yLow)) * (HEIGHT - TOP - BOTTOM);
  for (const y of yTicks) {
    const v = upward(y).toFixed(1);
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: v, y2: v }));
    picture.append(label(LEFT - 7, Number(v) + 4, "end", value(y)));
  }
  const xTicks = whole ? [...new Set(xs)] : ticks(xLow, xHigh, Math.min(6, width / 90));
  for (const x of xTicks.filter((x) => x >= xLow - 1e-9 && x <= xHigh + 1e-9)) {
    picture.append(label(across(x), HEIGHT - 15, "middle", value(x)));
  }
  picture.append(label((LEFT + width - RIGHT) / 2, HEIGHT - 2, "middle", xName));
  for (const line of drawn) {
    const colour = `c${line.colour}`;
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
      return `${line.name} ${value(y, 4)} (at ${value(at, 4)})`;
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
  box.replaceChildren(picture, said);
}
