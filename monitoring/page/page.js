// Two views, chosen by the address: all runs (#), and one run (#run=NAME).

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
  const found = location.hash.match(/^#run=(.+)$/);
  try {
    return found ? decodeURIComponent(found[1]) : null;
  } catch {
    return null;
  }
}

function open() {
  const name = chosen();
  main.replaceChildren();
  view = name === null ? showList(main, fetchJson) : showRun(main, fetchJson, name);
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
