// How numbers and times are said, and how elements are made. Text is only ever set as text.

// what is drawn of training
export const CURVES = { loss: "Loss", images_per_second: "Images/s" };

export function make(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "class") made.className = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function duration(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "–";
  const s = Math.max(0, seconds);
  if (s < 1) return `${Math.round(1000 * s)} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

export function age(then, now) {
  if (then === null) return "–";
  const seconds = Math.max(0, now - then);
  return `${seconds < 10 ? `${Math.floor(seconds)} s` : duration(seconds)} ago`;
}

export function moment(time) {
  if (time === null) return "–";
  const date = new Date(1000 * time);
  return date.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

export function value(number, digits = 3) {
  if (number === null || number === undefined) return "–";
  if (typeof number === "string") return number;
  if (Math.abs(number) >= 999.5) return Math.round(number).toLocaleString("en");
  return String(Number(number.toPrecision(digits)));
}

export function percent(share) {
  return typeof share === "number" ? `${Math.round(100 * share)} %` : "–";
}

// how much of a run is done: its phases, or models tested where no attempt has counted phases
export function done(run) {
  if (run.phases) return `${run.phases_done} of ${run.phases} phases`;
  return run.of ? `${run.done} of ${run.of} models tested` : "–";
}

export function bytes(count) {
  if (typeof count !== "number") return "–";
  return count >= 1e9 ? `${(count / 1e9).toFixed(1)} GB` : `${Math.round(count / 1e6)} MB`;
}
