// Several runs beside each other: a table and a chart for each accuracy, and how they train. Colour
// says which method, the way a line is drawn says which run.

import { chart, look, mark } from "/charts.js";
import { pill } from "/list.js";
import { CURVES, done, make } from "/words.js";

export function showCompare(main, fetchJson, names) {
  document.title = `${names.join(" · ")} · perennial`;
  const heads = make("ul", { class: "legend" });
  const legend = make("ul", { class: "legend" });
  const tables = make("div", { class: "charts" });
  const charts = make("div", { class: "charts" });
  const training = make("div", { class: "charts" });
  const again = make("ul", { class: "legend" });
  const trained = make("section", {}, make("h2", { text: "Training" }), again, training);
  const note = make("p", { class: "note dim" });
  main.append(make("header", { class: "one" }, make("a", { href: "#", text: "← all runs" }), make("h1", { text: "Side by side" })),
    heads, note, make("section", {}, make("h2", { text: "After the newest learning step, %" }), tables),
    make("section", {}, make("h2", { text: "Accuracy over learning steps" }), legend, charts), trained);
  let shown = [], version = "";

  function draw() {
    const methods = [...new Set(shown.flatMap(({ run }) => run.methods))];
    const numbers = new Map(methods.map((method, number) => [method, number]));
    const titles = new Map(shown.flatMap(({ curves }) => curves.accuracy.map((one) => [one.key, `${one.title}, %`])));
    const curved = new Map(shown.flatMap(({ curves }) => curves.training.map((one) => [one.key, CURVES[one.key]])));
    heads.replaceChildren(...shown.map(({ run }, number) => make("li", {}, mark(look(8, number)),
      make("a", { class: "name", href: `#run=${encodeURIComponent(run.name)}`, text: run.name }), " ",
      pill(run.state), ` ${done(run)}`)));
    legend.replaceChildren(...methods.map((method) => make("li", {}, mark(look(numbers.get(method), 0)),
      make("span", { class: "name", text: method }))));
    again.replaceChildren(...legend.cloneNode(true).children);
    const lineOf = ({ curves }, key, method) =>
      [...curves.accuracy, ...curves.training].find((one) => one.key === key)?.lines.find((line) => line.method === method);
    const row = (key, method) => make("tr", {}, make("td", { class: "name", text: method }), ...shown.map((one) => {
      const last = lineOf(one, key, method)?.points.at(-1);
      return make("td", { text: last ? `${last[1].toFixed(1)} (step ${last[0]})` : "–" });
    }));
    tables.replaceChildren(...[...titles].map(([key, title]) => make("div", { class: "card scroll" },
      make("h3", { text: title.replace(/, %$/, "") }), make("table", { class: "sides" },
        make("thead", {}, make("tr", {}, ...["method", ...shown.map(({ run }) => run.name)].map((text) => make("th", { class: "name", text })))),
        make("tbody", {}, ...methods.filter((method) => shown.some((one) => lineOf(one, key, method))).map((method) => row(key, method)))))));
    const drawn = (all, options) => [...all].map(([key, title]) => {
      const box = make("div", { class: "plot" });
      const lines = shown.flatMap((one, number) => methods.filter((method) => lineOf(one, key, method)).map((method) => {
        const { points, lost } = lineOf(one, key, method);
        return { name: `${one.run.name}: ${method}`, look: look(numbers.get(method), number), points, lost };
      }));
      return { card: make("div", { class: "card" }, make("h3", { text: title }), box), draw: () => chart(box, lines, { ...options, title }) };
    });
    const first = drawn(titles, { xName: "after learning step", whole: true, most: 100 });
    const second = drawn(curved, { xName: "during learning step", spans: true });
    charts.replaceChildren(...first.map((one) => one.card));
    training.replaceChildren(...second.map((one) => one.card));
    trained.hidden = !second.length;
    for (const one of [...first, ...second]) one.draw();
  }

  return {
    resize() { if (shown.length) draw(); },
    async update(current) {
      const found = await Promise.all(names.map(async (name) => {
        const address = `/api/runs/${encodeURIComponent(name)}`;
        const run = await fetchJson(address);
        const seed = Math.min(...run.seeds);
        const curves = run.seeds.length ? await fetchJson(`${address}/curves?seed=${seed}`) : { accuracy: [], training: [] };
        return { run, curves, seed };
      }));
      if (!current()) return;
      const now = found.map(({ run }) => `${run.name} ${run.drawn} ${run.state} ${done(run)}`).join("\n");
      shown = found;
      if (now === version) return;
      version = now;
      note.textContent = `The first seed of each: ${found.map(({ run, seed }) => `${run.name} ${seed}`).join(", ")}. Runs that differ in data or benchmark measure different things.`;
      draw();
    },
  };
}
