// All runs, those that need somebody first.

import { age, done, duration, make, percent, set, value } from "/words.js";

export const STATES = {
  damaged: ["!", "damaged", "bad"],
  lost: ["✕", "driver lost", "bad"],
  stalled: ["!", "stalled", "bad"],
  running: ["●", "running", "good"],
  unasked: ["?", "not asked", "warn"],
  stopped: ["◌", "stopped", "dim"],
  finished: ["✓", "finished", "dim"],
};
const GROUPS = [
  ["Needs attention", (run) => STATES[run.state][2] === "bad" || run.told.length > 0],
  ["Running", (run) => ["running", "unasked"].includes(run.state)],
  ["At rest", () => true],
];

export function pill(state) {
  const [sign, words, tone] = STATES[state];
  return make("span", { class: `pill ${tone}` }, make("i", { text: sign }), words);
}

function line(picked) {
  const cell = (name) => make("span", { class: name });
  const cells = Object.fromEntries(
    ["state", "name", "done", "phase", "accuracy", "loss", "when", "trouble"].map((n) => [n, cell(n)]),
  );
  const bar = make("i");
  const link = make("a", { class: "name" });
  const pick = make("input", { type: "checkbox", class: "pick" });
  pick.addEventListener("change", () => picked(pick.checked));
  const row = make("li", { class: "run" }, pick, cells.state, link,
    make("span", { class: "progress" }, make("span", { class: "bar" }, bar), cells.done),
    cells.phase, cells.accuracy, cells.loss, cells.when, cells.trouble);
  let state = "";
  return {
    row,
    update(run, now) {
      if (state !== run.state) cells.state.replaceChildren(pill((state = run.state)));
      set(link, run.name);
      if (run.link) link.setAttribute("href", `#run=${encodeURIComponent(run.name)}`);
      bar.style.width = percent(run.share).replace(" ", "");
      pick.setAttribute("aria-label", `compare ${run.name}`);
      pick.disabled = !run.link;
      const left = typeof run.left_seconds === "number" ? `, about ${duration(run.left_seconds)} left` : "";
      set(cells.done, `${done(run)}${left}`);
      const best = run.accuracy;
      set(cells.accuracy, best ? `${(100 * best.value).toFixed(1)} %` : "");
      cells.accuracy.title = best ? `${best.title}: ${best.method}, after step ${best.step}` : "";
      const busy = ["running", "stalled", "lost"].includes(run.state);
      set(cells.phase, busy && run.phase ? run.phase : "");
      set(cells.loss, run.loss === null ? "" : `loss ${value(run.loss)}`);
      set(cells.when, age(run.record_time ?? run.changed, now));
      set(cells.trouble, run.told.join("; "));
    },
  };
}

export function showList(main, fetchJson) {
  document.title = "perennial";
  const summary = make("p", { class: "summary", role: "status" });
  const filter = make("input", { type: "search", placeholder: "filter by name", "aria-label": "filter by name" });
  const alerts = make("div");
  const groups = GROUPS.map(([title]) => {
    const count = make("small");
    const list = make("ul", { class: "runs" });
    const box = make("section", { hidden: "" }, make("h2", { text: `${title} ` }, count), list);
    return { box, list, count };
  });
  const chosen = new Set();
  const compare = make("a", { class: "report", hidden: "" });
  const pickedNow = () => {
    compare.hidden = chosen.size < 2;
    set(compare, `Compare ${chosen.size} runs`);
    compare.setAttribute("href", `#compare=${[...chosen].map(encodeURIComponent).join("&")}`);
  };
  const picker = (name) => (on) => { chosen[on ? "add" : "delete"](name); pickedNow(); };
  const header = make("header", {}, make("h1", { text: "Runs" }), compare, filter);
  main.append(header, summary, alerts, ...groups.map((group) => group.box));
  const rows = new Map();
  let content = null;

  function draw() {
    const firing = content.alerts.list.filter((alert) => alert.state === "firing");
    for (const run of content.runs) {
      const own = firing.filter((alert) => alert.run === run.name);
      run.told = [...run.trouble, ...own.map((alert) => `${alert.name}: ${alert.summary}`)];
    }
    const wanted = filter.value.trim().toLowerCase();
    const shown = content.runs.filter((run) => run.name.toLowerCase().includes(wanted));
    const sorted = shown.sort((a, b) => (b.changed ?? 0) - (a.changed ?? 0));
    const parts = groups.map(() => []);
    for (const run of sorted) {
      parts[GROUPS.findIndex(([, belongs]) => belongs(run))].push(run);
      if (!rows.has(run.name)) rows.set(run.name, line(picker(run.name)));
      rows.get(run.name).update(run, content.now);
    }
    parts.forEach((runs, number) => {
      const { box, list, count } = groups[number];
      box.hidden = !runs.length;
      set(count, String(runs.length));
      runs.forEach((run, place) => {
        const { row } = rows.get(run.name);
        if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
      });
      while (list.children.length > runs.length) list.lastChild.remove();
    });
    const [bad, busy, rest] = parts.map((runs) => runs.length);
    document.title = bad ? `(${bad}) perennial` : "perennial";
    summary.classList.toggle("bad", bad > 0);
    const idle = `${busy} running, ${rest} at rest`;
    set(summary, bad ? `${bad} need${bad === 1 ? "s" : ""} attention, ${idle}` : `All well: ${idle}`);
    if (!content.runs.length) set(summary, "No runs in this folder yet.");
    const names = new Set(content.runs.map((run) => run.name));
    const others = content.alerts.list.filter((alert) => !names.has(alert.run));
    drawAlerts(alerts, { ...content.alerts, list: others }, firing.length > 0);
  }

  filter.addEventListener("input", () => content && draw());
  return {
    resize() {},
    async update(current) {
      const found = await fetchJson("/api/runs");
      if (!current()) return;
      content = found;
      for (const name of rows.keys()) {
        if (!content.runs.some((run) => run.name === name)) {
          rows.get(name).row.remove();
          rows.delete(name);
          if (chosen.delete(name)) pickedNow();
        }
      }
      draw();
    },
  };
}

// elsewhere: alerts that are shown at their runs are firing
export function drawAlerts(box, alerts, elsewhere = false) {
  const firing = alerts.list.filter((alert) => alert.state === "firing");
  const lines = alerts.list.map((alert) => {
    const labels = Object.entries(alert.labels).map(([name, given]) => `${name} ${given}`);
    const tone = alert.state !== "firing" ? "dim" : alert.severity === "critical" ? "bad" : "warn";
    return make("li", { class: `alert ${tone}` },
      make("b", { text: alert.name }), ` ${alert.state === "firing" ? "" : `(${alert.state}) `}`,
      make("span", { text: alert.summary }),
      make("small", { text: [labels.join(", "), alert.runbook].filter(Boolean).join(" · ") }));
  });
  let said = "";
  if (!alerts.asked) said = "No Prometheus was given, so alerts are not known here (--prometheus URL).";
  else if (alerts.error) said = `Prometheus cannot be asked, so alerts are not known: ${alerts.error}`;
  else if (!firing.length && !elsewhere) said = "No alert is firing.";
  const tone = alerts.error ? "bad" : "dim";
  const parts = said ? [make("p", { class: `note ${tone}`, text: said })] : [];
  if (lines.length) parts.push(make("ul", { class: "alerts" }, ...lines));
  box.replaceChildren(...parts);
}
