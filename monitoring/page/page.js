// Three views, chosen by the address: all runs (#), one run (#run=NAME), and several beside each
// other (#compare=NAME&NAME).

import { showCompare } from "/compare.js";
import { showList } from "/list.js";
import { showRun } from "/run.js";

const EVERY = 2000;
const main = document.getElementById("main");
const offline = document.getElementById("offline");
let view = null;
let lastHeard = null;

export async function fetchJson(address) {
  const response = await fetch(address, { signal: AbortSignal.timeout(15000) });
  if (response.status === 401) throw new Error("the token is wrong or missing");
  if (response.status === 404) throw new Error("there is no such run any more");
  if (!response.ok) throw new Error(`the server answers ${response.status}`);
  return response.json();
}

function chosen() {
  const found = location.hash.match(/^#(run|compare)=(.+)$/);
  try {
    return found ? [found[1], found[2].split("&").slice(0, 4).map(decodeURIComponent)] : [null];
  } catch {
    return [null];
  }
}

function open() {
  const [kind, names] = chosen();
  main.replaceChildren();
  if (kind === "compare") view = showCompare(main, fetchJson, names);
  else view = kind === "run" ? showRun(main, fetchJson, names[0]) : showList(main, fetchJson);
  window.scrollTo(0, 0);
  return view;
}

async function update(of) {
  try {
    await of.update(() => of === view);
    lastHeard = Date.now();
    offline.hidden = true;
    main.classList.remove("stale");
  } catch (error) {
    if (of !== view) return;
    const when = lastHeard ? new Date(lastHeard).toLocaleTimeString() : "never";
    const why = error instanceof TypeError || error.name === "TimeoutError"
      ? "perennial serve does not answer" : error.message;
    offline.textContent = `${why}. What is shown is from: ${when}`;
    offline.hidden = false;
    main.classList.add("stale");
  }
}

async function forever() {
  for (;;) {
    const now = view;
    if (!document.hidden) await update(now);
    if (now === view) await new Promise((resolve) => { wake = resolve; setTimeout(resolve, EVERY); });
  }
}

let wake = () => {};
window.addEventListener("hashchange", () => { open(); wake(); });
document.addEventListener("visibilitychange", () => wake());
window.addEventListener("resize", () => view.resize());
open();
forever();
