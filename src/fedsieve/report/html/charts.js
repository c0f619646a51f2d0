// Charts: Vega-Lite specifications in the page's colours, drawn anew when the width or the colours change.
const views = {}; // what is drawn, by name
const makers = new Map(), widths = new Map(), queues = new Map();
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
// Okabe and Ito's colours, which colour-blind readers can tell apart, and dashes for those who see no colour. Their
// numbers have no common divisor, so that 70 lines differ in one of the two.
const colours = () => ["blue", "orange", "green", "pink", "gold", "sky", "ink"].map(colour);
const DASHES = [[1, 0], [6, 3], [2, 3], [8, 3, 2, 3], [12, 4], [4, 6], [12, 3, 2, 3, 2, 3], [1, 5], [14, 2], [5, 2, 5, 6]];
function config() {
  const [ink, faint, line] = ["ink", "faint", "line"].map(colour), axis = {labelColor: ink, titleColor: ink};
  const text = {labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal"};
  return {
    background: colour("panel"), font: "system-ui, sans-serif", range: {category: colours()},
    view: {stroke: line}, title: {color: ink, fontSize: 13, anchor: "start", fontWeight: 600},
    axis: {...axis, ...text, gridColor: line, domainColor: line, tickColor: line},
    legend: {...axis, ...text}, text: {color: ink}, header: axis, rule: {color: faint},
  };
}
// A name as a tooltip's title, which Vega-Lite puts into an expression and escapes quotes of, no more.
const titled = name => name.replace(/[\\\p{Cc}\u2028\u2029]/gu, c => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
// Draw a chart in the element of this name. `make` gives its specification for a width in pixels.
function chart(name, make) {
  if (!makers.has(name)) {
    const save = kind => element("button", {type: "button", onclick: () => download(name, kind)}, `Save ${kind.toUpperCase()}`);
    $(name).after(element("p", {class: "save"}, save("png"), " ", save("svg")));
    new ResizeObserver(() => {
      const width = $(name).clientWidth;
      if (width && Math.abs(width - (widths.get(name) ?? width)) > 8) draw(name);
    }).observe($(name));
  }
  makers.set(name, make);
  return draw(name);
}
function draw(name) { // one after the other; of those that wait only the last is drawn
  const make = makers.get(name), box = $(name);
  const next = (queues.get(name) ?? Promise.resolve()).then(async () => {
    if (make !== makers.get(name) || queues.get(name) !== next || !box.clientWidth) return;
    widths.set(name, box.clientWidth);
    views[name]?.finalize();
    const tooltip = {theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"};
    const made = await vegaEmbed(box, make(box.clientWidth), {mode: "vega-lite", ast: true, actions: false, renderer: "canvas", config: config(), tooltip});
    views[name] = made.view;
  }).catch(error => { box.textContent = `This chart can't be drawn: ${error.message}`; console.error(error); });
  queues.set(name, next);
  return next;
}
async function download(name, kind) {
  const link = element("a", {download: `${name}.${kind}`});
  link.href = await views[name].toImageURL(kind, kind === "png" ? 2 : 1);
  link.click();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => makers.forEach((_, name) => draw(name)));
