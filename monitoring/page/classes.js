// Class by class: a method's accuracy and confusion over learning steps, and its exemplars.

import { svg } from "/charts.js";
import { make, set } from "/words.js";

const MARGIN = 56, WRITTEN = 13, SMALL = 16;

function text(name, attributes, said) {
  const made = svg("text", { class: name, "text-anchor": "middle", ...attributes });
  made.textContent = said;
  return made;
}

// cells: [[row, column, share]], two learning steps each; as monitoring/heat_maps.py draws them
function heat(cells, row, column) {
  const size = 1 + Math.max(...cells.map(([r, c]) => Math.max(r, c)));
  const pitch = size <= 6 ? 64 : size <= WRITTEN ? 44 : SMALL;
  const side = MARGIN + size * pitch + 8;
  const picture = svg("svg", { class: "heat", viewBox: `0 0 ${side} ${side}`, role: "img", "aria-label": "matrix" });
  for (let step = 0; step < size; step += size <= WRITTEN ? 1 : 5) {
    const at = MARGIN + (step + 0.5) * pitch;
    picture.append(text("tick", { x: at, y: MARGIN - 8 }, step),
      text("tick", { x: MARGIN - 8, y: at + 4, "text-anchor": "end" }, step));
  }
  const middle = MARGIN + (size * pitch) / 2;
  picture.append(text("tick", { x: middle, y: 18 }, column),
    text("tick", { transform: `translate(14 ${middle}) rotate(-90)` }, row));
  const gap = pitch > SMALL ? 3 : 1;
  for (const [r, c, share] of cells) {
    const [x, y] = [MARGIN + c * pitch, MARGIN + r * pitch];
    const inner = pitch - 2 * gap;
    const cell = svg("rect", { class: "cell", x: x + gap, y: y + gap, width: inner, height: inner,
      rx: gap + 2, "fill-opacity": (0.08 + 0.62 * share).toFixed(3) });
    const told = svg("title", {});
    told.textContent = `${row} ${r}, ${column} ${c}: ${(100 * share).toFixed(2)} %`;
    cell.append(told);
    picture.append(cell);
    if (size <= WRITTEN) {
      picture.append(text("value", { x: x + pitch / 2, y: y + pitch / 2 + 5 },
        (100 * share).toFixed(pitch === 64 ? 1 : 0)));
    }
  }
  return picture;
}

function sheet({ method, step, images, identities, shown }) {
  const count = (number) => number.toLocaleString("en");
  const title = make("h3", { class: "name", text: `${method}, step ${step}: ${count(images)} images of ${count(identities)} classes` });
  const rows = shown.map(({ identity, jpegs }) => make("div", { class: "exemplars" },
    make("b", { class: "name", text: identity, title: identity }), make("span", {}, ...jpegs.map((jpeg) =>
      make("img", { alt: identity, title: identity, src: `data:image/jpeg;base64,${jpeg}` })))));
  return make("div", { class: "card" }, title, ...rows);
}

export function showClasses() {
  const part = (title, words, grid = "maps") => {
    const cards = make("div", { class: grid });
    const box = make("div", {}, make("h3", { class: "apart", text: title }), make("p", { class: "note dim", text: words }), cards);
    return { box, fill(found) { box.hidden = !found.length; cards.replaceChildren(...found); } };
  };
  const tasks = part("Accuracy on each step's classes, %",
    "A column shows what becomes of a step's classes as later ones are learned.");
  const confusion = part("Which step's classes images are taken for, %",
    "After the newest step; a row adds up to 100. Below the diagonal new images are taken for old classes, above it old ones for new.");
  const exemplars = part("Exemplars",
    "Of some classes, from those learned first to the newest, the exemplars that stay longest. Newest step.", "charts");
  const seed = make("small");
  const note = make("p", { class: "note dim" });
  const heading = make("h2", { text: "Class by class " }, seed);
  const box = make("section", { hidden: "" }, heading, note, tasks.box, confusion.box, exemplars.box);
  const maps = ({ row, column, maps: all }) => all.map(({ name, cells }) =>
    make("div", { class: "card" }, make("h3", { class: "name", text: name }), heat(cells, row, column)));
  return {
    box,
    draw(found, said) {
      set(seed, said);
      set(note, found.left_out.length ? `Left out: ${found.left_out.join("; ")}` : "");
      tasks.fill(maps(found.tasks));
      confusion.fill(maps(found.confusion));
      exemplars.fill(found.sheets.map(sheet));
      box.hidden = !found.tasks.maps.length && !found.left_out.length;
    },
  };
}
