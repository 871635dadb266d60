// What a run's processes logged last, and its configuration: asked for when they are opened.

import { age, make, moment, set } from "/words.js";

export function showLogs(fetchJson, address) {
  const which = make("select", { "aria-label": "process" }, make("option", { value: "", text: "all processes" }));
  const list = make("ul", { class: "events logs" });
  const fold = make("details", { class: "card" }, make("summary", { text: "Newest lines" }), which, list);
  let known = "";

  function draw(found, now) {
    const names = JSON.stringify(found.processes);
    if (names !== known) {
      const chosen = which.value;
      which.replaceChildren(which.firstChild, ...found.processes.map((name) => make("option", { value: name, text: name })));
      which.value = found.processes.includes(chosen) ? chosen : "";
      known = names;
    }
    const atEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 4;
    list.replaceChildren(...found.lines.map((line) => make("li", { class: line.level },
      make("time", { text: age(line.time, now), title: moment(line.time) }),
      make("b", { text: `${line.process} ${line.level}` }),
      make("span", {}, make("small", { text: line.where }), make("code", { text: line.message })))));
    if (!found.lines.length) list.replaceChildren(make("li", { class: "dim", text: "none" }));
    if (atEnd) list.scrollTop = list.scrollHeight;
  }

  const load = async (current, now) => {
    if (!fold.open) return;
    const asked = which.value;
    const found = await fetchJson(`${address}/logs${asked ? `?process=${encodeURIComponent(asked)}` : ""}`);
    if (current() && asked === which.value) draw(found, now);
  };
  const again = () => load(() => true, Date.now() / 1000).catch(() => {});
  which.addEventListener("change", again);
  fold.addEventListener("toggle", again);
  return { box: make("section", {}, make("h2", { text: "Logs" }), fold), update: load };
}

export function showConfiguration(fetchJson, address) {
  const text = make("pre");
  const fold = make("details", { class: "card" }, make("summary", { text: "run.yaml" }), text);
  fold.addEventListener("toggle", async () => {
    if (!fold.open) return;
    set(text, (await fetchJson(`${address}/configuration`).catch((error) => ({ text: error.message }))).text);
  });
  return { box: make("section", {}, make("h2", { text: "Configuration" }), fold) };
}
