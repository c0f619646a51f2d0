// The data, helpers that make elements, numbers, and what the page shows at the moment.
"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
};
const SVG = "http://www.w3.org/2000/svg";
const drawn = (name, attributes = {}, text) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};
const percent = v => (100 * v).toFixed(1);
const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
const deviation = values => {
  const m = mean(values);
  return Math.sqrt(values.reduce((s, v) => s + (v - m) ** 2, 0) / (values.length - 1));
};
const MEASURES = [
  ["accuracy", "test accuracy (last tenth of the rounds)", true],
  ["success", "attack success rate (last round)", false],
  ["fpr", "benign clients rejected (all rounds)", false],
  ["fnr", "malicious clients missed (all rounds)", false],
  ["lost", "accuracy lost to the run without attack (per round)", false],
  ["worst_lost", "accuracy lost to the run without attack (worst round)", false],
  ["worst_success", "attack success rate (worst round)", false],
];
const measured = (run, measure) => run.summary[measure] ?? run.damage[measure] ?? null;
const some = texts => texts.slice(0, 3).join(", ") + (texts.length > 3 ? ` and ${texts.length - 3} more` : "");
const state = {measure: "accuracy", filters: {}, chosen: null};
