// The runs of one cell: curves, rejected clients, masks, command.
function choose(key, defense, attack, runs) {
  state.chosen = key;
  for (const button of document.querySelectorAll("#matrix button")) button.setAttribute("aria-pressed", String(button.dataset.cell === key));
  $("detail").hidden = false;
  $("h-detail").textContent = `${defense} against ${attack}`;
  const select = $("run");
  select.replaceChildren(...runs.map((r, k) => element("option", {value: k}, label(r))));
  select.onchange = () => detail(runs, runs[select.value]);
  detail(runs, runs[0]);
  $("detail").focus({preventScroll: true});
  $("detail").scrollIntoView({block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth"});
}
const label = run => {
  const several = D.filters.filter(f => !state.filters[f]).map(f => run.setting[f] ?? "default");
  return [`seed ${run.seed}`, ...several].join(", ");
};
const CURVES = [["accuracy", "Test accuracy"], ["fpr", "Benign clients rejected"], ["fnr", "Malicious clients missed"], ["success", "Attack success rate"]];
// The look of a run's curves, by its place among the names of all runs: one for a name, in every panel and cell. The
// numbers of colours and of dashes have no common divisor, so that 70 names differ in one of the two.
const COLOURS = ["var(--benign)", "var(--malicious)", "var(--root)", "#cc79a7", "#b8860b", "#8f63d2", "var(--ink)"];
const DASHES = ["none", "6 3", "2 3", "8 3 2 3", "12 4", "4 6", "12 3 2 3 2 3", "1 5", "14 2", "5 2 5 6"];
const look = run => ({fill: "none", stroke: COLOURS[run.style % COLOURS.length], "stroke-dasharray": DASHES[run.style % DASHES.length]});
const DRAWN = 20;
function curves(runs, chosen) {
  const box = $("curves");
  box.replaceChildren();
  const shown = runs.filter((run, k) => k < DRAWN || run === chosen);
  for (const [name, title] of CURVES) {
    if (!runs.some(r => r.curves[name])) continue;
    const W = 420, H = 210, L = 38, B = 26;
    const last = Math.max(...runs.map(r => r.rounds)), x = r => L + (W - L - 8) * (r + 1) / last, y = v => 8 + (H - B - 8) * (1 - v);
    const ends = runs.filter(r => r.curves[name]).slice(0, 8).map(r => `${label(r)}: ${percent(r.curves[name][1].at(-1))} % at the end`);
    const svg = drawn("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title} over rounds; ${ends.join("; ")}`});
    for (const v of [0, 0.25, 0.5, 0.75, 1]) {
      svg.append(drawn("line", {x1: L, x2: W - 8, y1: y(v), y2: y(v), class: "axis"}), drawn("text", {x: L - 6, y: y(v) + 4, "text-anchor": "end"}, 100 * v));
    }
    svg.append(drawn("text", {x: L, y: H - 8}, "1"), drawn("text", {x: W - 8, y: H - 8, "text-anchor": "end"}, `round ${last}`));
    for (const run of shown) {
      const line = run.curves[name];
      if (!line) continue;
      const points = line[0].map((r, i) => `${x(r).toFixed(1)},${y(line[1][i]).toFixed(1)}`).join(" ");
      svg.append(drawn("polyline", {...look(run), points, "stroke-width": run === chosen ? 2.6 : 1.3, opacity: run === chosen ? 1 : 0.65}));
    }
    box.append(element("figure", {}, element("figcaption", {}, `${title}, %`), svg));
  }
  const key = $("curves-key"), said = [];
  key.replaceChildren();
  if (runs.length > 1) {
    for (const run of shown) {
      const mark = drawn("svg", {viewBox: "0 0 34 4", "aria-hidden": "true"});
      mark.append(drawn("line", {...look(run), x1: 0, x2: 34, y1: 2, y2: 2, "stroke-width": 2}));
      key.append(element("span", {class: "key"}, mark, label(run)));
    }
    const few = COLOURS.length * DASHES.length;
    if (shown.length < runs.length) said.push(`${shown.length} of ${runs.length} runs are drawn.`);
    if (D.styles > few) said.push(`${D.styles} names share ${few} styles.`);
  }
  $("curves-text").textContent = said.join(" ");
}
function map(run) {
  const shown = run.map;
  $("map-box").hidden = !shown;
  if (!shown) return;
  const canvas = $("map"), n = shown.clients.length, rounds = shown.rejected.length;
  const fitting = (room, cells) => Math.max(2, Math.min(12, Math.floor(room / cells)));
  const wide = fitting(900, rounds), high = fitting(480, n);
  canvas.width = rounds * wide; canvas.height = n * high;
  canvas.style.maxWidth = `${14 * rounds}px`; // keeps squares small when there are few rounds
  const style = getComputedStyle(document.documentElement), colour = name => style.getPropertyValue(name).trim();
  const [benign, malicious, paper] = [colour("--benign"), colour("--malicious"), colour("--paper")];
  const context = canvas.getContext("2d");
  context.fillStyle = paper; context.fillRect(0, 0, canvas.width, canvas.height);
  const bad = new Set(shown.malicious);
  let wrong = 0, missed = 0, seen = 0, seenBad = 0, undecided = 0;
  shown.rejected.forEach((row, r) => {
    if (!row) { undecided++; return; } // the defense could not decide yet
    const out = new Set(row), here = shown.present ? new Set(shown.present[r]) : null;
    shown.clients.forEach((client, k) => {
      if (here && !here.has(client)) return;
      if (bad.has(client)) { seenBad++; if (!out.has(client)) missed++; } else { seen++; if (out.has(client)) wrong++; }
      context.fillStyle = bad.has(client) ? malicious : benign;
      const cell = [r * wide, k * high, wide - (wide > 3), high - (high > 3)];
      if (out.has(client)) context.fillRect(...cell);
      else if (bad.has(client)) { context.globalAlpha = 0.28; context.fillRect(...cell); context.globalAlpha = 1; }
    });
  });
  const told = `${n} clients (down), ${rounds} rounds (across). Benign clients were rejected ${wrong} of ${seen} times, malicious clients missed ${missed} of ${seenBad} times.`
    + (undecided ? ` No decision in ${undecided} of these rounds.` : "");
  canvas.setAttribute("aria-label", told);
  $("map-text").textContent = told;
  const swatch = (colour, opacity, text) => { const s = element("span", {class: "swatch"}); s.style.background = colour; s.style.opacity = opacity; return element("span", {class: "key"}, s, text); };
  $("map-key").replaceChildren(swatch("var(--malicious)", 1, "malicious, rejected"), swatch("var(--malicious)", 0.28, "malicious, missed"), swatch("var(--benign)", 1, "benign, rejected"));
}
function scatter(run) {
  const all = run.scatter;
  $("scatter-box").hidden = !all || !all.length;
  if (!all || !all.length) return;
  const slider = $("round");
  slider.max = all.length - 1;
  const show = () => {
    const one = all[slider.value], W = 420, H = 320, pad = 26;
    $("round-text").textContent = one.round + 1;
    slider.setAttribute("aria-valuetext", `round ${one.round + 1}`);
    const bad = new Set(one.malicious), out = new Set(one.rejected);
    const cloud = (where, root, caption) => {
      const points = [...where.filter(Boolean), ...(root ? [root] : [])];
      const span = k => { const v = points.map(p => p[k]), a = Math.min(...v), b = Math.max(...v); return [a, b > a ? b : a + 1]; };
      const [[x0, x1], [y0, y1]] = [span(0), span(1)];
      const x = v => pad + (W - 2 * pad) * (v - x0) / (x1 - x0), y = v => H - pad - (H - 2 * pad) * (v - y0) / (y1 - y0);
      const svg = drawn("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": caption});
      one.clients.forEach((client, k) => {
        const p = where[k];
        if (!p) return;
        const colour = bad.has(client) ? "var(--malicious)" : "var(--benign)";
        const mark = out.has(client)
          ? drawn("path", {d: `M${x(p[0]) - 4},${y(p[1]) - 4}l8,8m0,-8l-8,8`, stroke: colour, "stroke-width": 2.4})
          : drawn("circle", {cx: x(p[0]), cy: y(p[1]), r: 4, fill: "none", stroke: colour, "stroke-width": 1.8});
        mark.append(drawn("title", {}, `client ${client}, ${bad.has(client) ? "malicious" : "benign"}${out.has(client) ? ", rejected" : ""}${one.reasons[k] ? ": " + one.reasons[k] : ""}`));
        svg.append(mark);
      });
      if (root) svg.append(drawn("path", {d: `M${x(root[0])},${y(root[1]) - 8}l3,5 5,1 -4,4 1,6 -5,-3 -5,3 1,-6 -4,-4 5,-1z`, fill: "var(--root)"}));
      return svg;
    };
    const seen = one.clients.filter((_, k) => one.points[k]);
    const told = `Round ${one.round + 1}: ${seen.filter(client => out.has(client)).length} of ${one.clients.length} clients rejected (crosses); circles are accepted, the star is the root model.`;
    $("scatter-text").textContent = told + (run.sampled ? " The page holds only some of the rounds, to keep it small." : "");
    $("scatter").replaceChildren(element("p", {class: "faint"}, "Masks"), cloud(one.points, one.root, "Masks. " + told));
    $("scatter-updates").replaceChildren(...(one.updates.length
      ? [element("p", {class: "faint"}, "Updates"), cloud(one.updates, null, `Updates of round ${one.round + 1}, with the same marks.`)] : []));
  };
  slider.oninput = show;
  slider.value = all.length - 1;
  show();
}
function detail(runs, run) {
  $("run-state").textContent = [`${run.rounds} rounds`, run.state, run.note].filter(Boolean).join(" · ");
  $("damage-text").textContent = run.damage.text;
  curves(runs, run); map(run); scatter(run);
  $("command").textContent = run.command;
  $("copied").textContent = "";
}
$("copy").onclick = async () => {
  try { await navigator.clipboard.writeText($("command").textContent); $("copied").textContent = "copied"; }
  catch { getSelection().selectAllChildren($("command")); $("copied").textContent = "selected: copy it with the keyboard"; }
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (state.chosen) $("run").onchange(); });
$("filters").addEventListener("submit", event => event.preventDefault());
overview();
