// One run: what is wrong, how far it is, its phases, curves, processes and events.

import { chart, look, mark } from "/charts.js";
import { showClasses } from "/classes.js";
import { showConfiguration, showLogs } from "/logs.js";
import { drawAlerts, pill } from "/list.js";
import { CURVES, age, bytes, done, duration, make, moment, percent, set, value } from "/words.js";

function section(title, ...children) {
  return make("section", {}, make("h2", { text: title }), ...children);
}

function tile(title) {
  const said = make("b", { text: "–" });
  const more = make("small");
  const box = make("div", { class: "tile" }, make("span", { text: title }), said, more);
  return {
    box,
    show(text, detail = "", tone = "") {
      set(said, text);
      set(more, detail);
      said.className = tone;
    },
  };
}

export function showRun(main, fetchJson, name) {
  const address = `/api/runs/${encodeURIComponent(name)}`;
  const state = make("span");
  const report = make("a", { class: "report", text: "Final report", target: "_blank", rel: "noopener" });
  const title = make("h1", { class: "name", text: name });
  const back = make("a", { href: "#", text: "← all runs" });
  const header = make("header", { class: "one" }, back, title, state, report);
  const trouble = make("ul", { class: "alerts" });
  const alerts = make("div");
  const note = make("p", { class: "note dim" });
  const tiles = {
    progress: tile("Phases done"), phase: tile("Phase"), loss: tile("Loss"),
    speed: tile("Images/s"), wait: tile("Data wait"), ranks: tile("Ranks heard"),
    record: tile("Newest record"),
  };
  const bar = make("i");
  tiles.progress.box.append(make("span", { class: "bar" }, bar));
  const timeline = make("div", { class: "timeline" });
  const kinds = make("ul", { class: "legend" });
  const seeds = make("nav", { class: "seeds", "aria-label": "seed" });
  const legend = make("ul", { class: "legend" });
  const training = make("div", { class: "charts" });
  const accuracy = make("div", { class: "charts" });
  const classes = showClasses();
  const ranks = make("div", { class: "scroll" });
  const events = make("ul", { class: "events" });
  const logs = showLogs(fetchJson, address);
  const configuration = showConfiguration(fetchJson, address);
  main.append(header, trouble, alerts,
    make("div", { class: "tiles" }, ...Object.values(tiles).map((one) => one.box)), note,
    section("Phases", kinds, make("div", { class: "card" }, timeline)),
    section("Training and accuracy", seeds, legend, training, accuracy),
    classes.box,
    section("Processes", make("div", { class: "card" }, ranks)),
    section("Events", make("div", { class: "card" }, events)),
    logs.box, configuration.box);
  let seed = null, picked = false, drawn = null, mapped = null, curves = null, run = null;

  function drawHead() {
    state.replaceChildren(pill(run.state));
    document.title = `${run.trouble.length ? "(!) " : ""}${run.name} · perennial`;
    report.hidden = !run.report;
    report.setAttribute("href", `/report/${encodeURIComponent(name)}`);
    const bad = ["damaged", "lost", "stalled"].includes(run.state) ? "bad" : "warn";
    trouble.replaceChildren(...run.trouble.map((text) => make("li", { class: `alert ${bad}`, text })));
    drawAlerts(alerts, run.alerts);
    const left = typeof run.left_seconds === "number" ? `, about ${duration(run.left_seconds)} left` : "";
    tiles.progress.show(done(run), `${percent(run.share)} of the run${left}`);
    bar.style.width = percent(run.share).replace(" ", "");
    const [where, label] = run.phase ? [run.phase.replace(/\/[^/]*$/, ""), run.phase.split("/").pop()] : ["", "–"];
    const busy = ["running", "stalled", "lost", "unasked"].includes(run.state);
    tiles.phase.show(busy ? label : "–", busy ? where : "", "small");
    const odd = typeof run.loss === "string";
    const of = run.iterations ? `iteration ${value(run.iteration, 9)} of ${value(run.iterations, 9)}` : "";
    tiles.loss.show(value(run.loss, 4), of, odd ? "bad" : "");
    const counts = ["skipped", "rewinds", "restarts"].filter((n) => run[n]).map((n) => `${n} ${run[n]}`);
    tiles.speed.show(value(run.images_per_second), counts.join(", "));
    tiles.wait.show(percent(run.data_wait), "of rank 0's time", run.data_wait > 0.3 ? "warn" : "");
    const few = run.ranks_heard < run.ranks_expected;
    const training = run.ranks_expected ? `of ${run.ranks_expected}` : "outside training";
    const known = typeof run.ranks_heard === "number";
    tiles.ranks.show(known ? String(run.ranks_heard) : "–", known ? training : "", few ? "warn" : "");
    tiles.record.show(age(run.record_time, run.now), moment(run.record_time), "small");
    const said = [];
    if (run.behind) said.push(`${bytes(run.behind)} of records are still being read`);
    for (const [file, count] of Object.entries(run.damaged_lines)) {
      said.push(`${count} damaged line${count === 1 ? "" : "s"} of ${file} passed over`);
    }
    set(note, said.join("; "));
  }

  function drawTimeline() {
    const { rows, pauses, start, end } = run.timeline;
    // a colour each in the order of their first phases; those past the last have one together
    const coloured = (element, kind) => {
      const number = run.kinds.indexOf(kind);
      element.style.setProperty("--kind", `var(--c${number < 0 ? 20 : number})`);
      return element;
    };
    kinds.replaceChildren(...run.kinds.map((kind) =>
      make("li", {}, coloured(make("i", { class: "kind" }), kind), kind)));
    if (!rows.length) {
      timeline.replaceChildren(make("p", { class: "dim", text: "no phase is finished yet" }));
      return;
    }
    const place = (element, from, to) => {
      element.style.left = `${100 * from}%`;
      element.style.width = `${100 * (to - from)}%`;
      return element;
    };
    const lines = rows.map(({ chain, spans }) => {
      const track = make("div", { class: "track" });
      for (const pause of pauses) {
        const why = `nothing ran for ${duration(pause.seconds)}`;
        track.append(place(make("i", { class: "pause", title: why }), pause.from, pause.to));
      }
      for (const span of spans) {
        const took = duration(span.end - span.start);
        const why = `step ${span.step}, ${span.label}: ${took}${span.state === "done" ? "" : `, ${span.state}`}`;
        const tone = span.state === "done" ? "" : ["running", "stalled"].includes(span.state) ? "open" : "broken";
        const bar = coloured(make("i", { class: `span kind ${tone}`, title: why }), span.kind);
        track.append(place(bar, span.from, span.to));
      }
      return make("div", { class: "row" }, make("span", { class: "name", text: chain }), track);
    });
    const paused = pauses.length ? ` · ${pauses.length} pause${pauses.length === 1 ? "" : "s"} drawn short` : "";
    const foot = make("p", { class: "foot" }, make("span", { text: moment(start) }),
      make("span", { text: `${duration(end - start)}${paused}` }), make("span", { text: moment(end) }));
    timeline.replaceChildren(...lines, foot);
  }

  function drawCurves() {
    const looks = new Map(run.methods.map((method, number) => [method, look(number)]));
    const lookOf = (method) => looks.get(method) ?? look(8);
    const shown = new Set([...curves.training, ...curves.accuracy].flatMap((c) => c.lines.map((l) => l.method)));
    legend.replaceChildren(...run.methods.filter((method) => shown.has(method)).map((method) =>
      make("li", {}, mark(lookOf(method)), make("span", { class: "name", text: method }))));
    const boxes = (all, options, titleOf) => all.map((one) => {
      const box = make("div", { class: "plot" });
      const lines = one.lines.map((l) => ({ name: l.method, look: lookOf(l.method), points: l.points, lost: l.lost }));
      return { card: make("div", { class: "card" }, make("h3", { text: titleOf(one) }), box),
        draw: () => chart(box, lines, { ...options, title: titleOf(one) }) };
    });
    const first = boxes(curves.training, { xName: "during learning step", spans: true }, (one) => CURVES[one.key]);
    const second = boxes(curves.accuracy, { xName: "after learning step", whole: true, most: 100 }, (one) => `${one.title}, %`);
    training.replaceChildren(...first.map((one) => one.card));
    accuracy.replaceChildren(...second.map((one) => one.card));
    if (!first.length && !second.length) training.replaceChildren(make("p", { class: "dim", text: "no record yet" }));
    for (const one of [...first, ...second]) one.draw();
  }

  function drawSeeds() {
    const buttons = run.seeds.map((number) => {
      const button = make("button", { text: `seed ${number}`, "aria-pressed": String(number === seed) });
      button.addEventListener("click", () => {
        [seed, picked, drawn] = [number, true, null];
        drawSeeds();
        loadCurves(() => true).catch(() => {});
        loadClasses(() => true).catch(() => {});
      });
      return button;
    });
    seeds.replaceChildren(...(run.seeds.length > 1 ? buttons : []));
  }

  async function loadCurves(current) {
    const version = `${seed} ${run.drawn}`;
    if (seed === null || version === drawn) return;
    const found = await fetchJson(`${address}/curves?seed=${seed}`);
    if (!current()) return;
    [curves, drawn] = [found, version];
    drawCurves();
  }

  async function loadClasses(current) {
    const version = `${seed} ${run.classes}`;
    if (seed === null || version === mapped) return;
    const found = await fetchJson(`${address}/classes?seed=${seed}`);
    if (!current()) return;
    mapped = version;
    classes.draw(found, run.seeds.length > 1 ? `seed ${seed}` : "");
  }

  function drawRanks() {
    if (!run.processes.length) {
      const why = "No process is listed: nothing is running, or the run ended well.";
      ranks.replaceChildren(make("p", { class: "dim", text: why }));
      return;
    }
    const heads = ["process", "iteration", "data wait", "own work", "loss", "memory", "endpoint"];
    const share = (of, tone) => {
      const part = make("i", { class: tone });
      if (typeof of === "number") part.style.width = `${Math.min(100, 100 * of)}%`;
      return make("td", {}, make("span", { class: "bar" }, part), percent(of));
    };
    const rows = run.processes.map((one) => {
      const label = one.job === "trainer" ? `rank ${one.number}` : `${one.job} ${one.number}`.trim();
      if (one.missing !== false) {
        const words = one.missing ? `missing: ${one.why}` : one.why;
        return make("tr", { class: one.missing ? "bad" : "dim" }, make("td", { text: label }),
          make("td", { colspan: "5", text: words }), make("td", { text: one.address }));
      }
      const cell = (text) => make("td", { text });
      if (one.job !== "trainer") {
        const images = one.job === "actor" && one.embedded ? `${value(one.embedded)} images embedded` : "";
        return make("tr", {}, cell(label), make("td", { colspan: "4", class: "dim", text: images }),
          cell(bytes(one.memory)), cell(one.address));
      }
      return make("tr", {}, cell(label), cell(duration(one.iteration_seconds)),
        share(one.data_wait, one.data_wait > 0.3 ? "warn" : ""), share(one.own_work, ""),
        cell(value(one.loss, 4)), cell(bytes(one.memory)), cell(one.address));
    });
    const head = make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { text }))));
    const place = ranks.scrollTop;
    ranks.replaceChildren(make("table", {}, head, make("tbody", {}, ...rows)));
    ranks.scrollTop = place;
  }

  function drawEvents() {
    const lines = run.events.map((event) => make("li", { class: event.event },
      make("time", { text: age(event.time, run.now), title: moment(event.time) }),
      make("b", { text: event.event }), make("span", { text: event.message })));
    const none = make("li", { class: "dim", text: "none" });
    const place = events.scrollTop;
    events.replaceChildren(...(lines.length ? lines : [none]));
    events.scrollTop = place;
  }

  return {
    resize() { if (curves) drawCurves(); },
    async update(current) {
      const found = await fetchJson(address);
      if (!current()) return;
      run = found;
      const at = (run.phase || "").match(/\/seed-(\d+)\//);
      const wanted = at ? Number(at[1]) : run.seeds[0] ?? null;
      if (!picked && wanted !== seed) [seed, drawn] = [wanted, null];
      drawHead();
      drawTimeline();
      drawSeeds();
      drawRanks();
      drawEvents();
      await loadCurves(current);
      await loadClasses(current);
      await logs.update(current, run.now);
    },
  };
}
