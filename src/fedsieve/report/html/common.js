// The data, helpers that make elements, numbers.
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
const percent = v => (Math.round(1000 * v) / 10 + 0).toFixed(1); // never "-0.0"
const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
const deviation = values => {
  const m = mean(values);
  return Math.sqrt(values.reduce((s, v) => s + (v - m) ** 2, 0) / (values.length - 1));
};
const spread = values => percent(mean(values)) + (values.length > 1 ? ` ± ${percent(deviation(values))}` : "");
const natural = (a, b) => a.localeCompare(b, "en", {numeric: true});
const counted = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
// A table whose first line is the head and whose first column names the lines.
const tabled = (id, lines) => element("table", {id},
  element("thead", {}, element("tr", {}, ...lines[0].map(text => element("th", {scope: "col"}, text)))),
  element("tbody", {}, ...lines.slice(1).map(line => element("tr", {}, ...line.map((text, k) => k
    ? element("td", {}, element("span", {}, text))
    : element("th", {scope: "row", title: text}, text))))));
