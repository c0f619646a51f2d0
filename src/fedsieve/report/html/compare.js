// All defenses against one attack: curves over the rounds, and the numbers of damage and detection.
const CURVES = [["accuracy", "Test accuracy, %"], ["success", "Attack success, %"], ["fpr", "Benign clients rejected, %"], ["fnr", "Malicious clients missed, %"]];
// A run's curve. Rates jump from round to round, so that of many rounds each point is a mean over some.
const BINS = 60, RATES = ["fpr", "fnr"];
const size = run => run.rounds > 2 * BINS ? Math.ceil(run.rounds / BINS) : 1;
function binned(run, name) {
  const line = run.curves[name], n = size(run);
  if (!line || !RATES.includes(name) || n === 1) return line;
  const bins = new Map();
  line[0].forEach((r, i) => { const k = Math.floor(r / n); bins.set(k, [...(bins.get(k) ?? []), line[1][i]]); });
  return [[...bins.keys()].map(k => Math.min(run.rounds, (k + 1) * n) - 1), [...bins.values()].map(mean)];
}
// A defense's curve: mean and deviation in the rounds in which all its seeds have a value, and each seed by itself. The
// mean is left out where the seeds have few such rounds, since it would jump with the seeds that it is of.
function curve(defense, runs, name) {
  const lines = runs.map(r => binned(r, name)).filter(Boolean), at = new Map();
  for (const [rounds, values] of lines) rounds.forEach((r, i) => at.set(r, [...(at.get(r) ?? []), 100 * values[i]]));
  const common = [...at].filter(([, values]) => values.length === lines.length).sort((a, b) => a[0] - b[0]);
  const whole = lines.length > 0 && 2 * common.length >= Math.min(...lines.map(line => line[0].length));
  const means = whole ? common.map(([r, values]) => {
    const m = mean(values), s = values.length > 1 ? deviation(values) : 0;
    const text = `${m.toFixed(1)}${values.length > 1 ? ` ± ${s.toFixed(1)}` : ""}`;
    return {defense, round: r + 1, value: m, low: Math.max(0, m - s), high: Math.min(100, m + s), text};
  }) : [];
  const seeds = lines.flatMap(([rounds, values], k) => rounds.map((r, i) => ({defense, seed: k, round: r + 1, value: 100 * values[i]})));
  return {means, seeds: whole && lines.length === 1 ? [] : seeds, whole: whole || !lines.length};
}
function comparison(attack, chosen) {
  const found = cells(), defenses = D.defenses.filter(d => found.has(cell(d, attack)));
  const panels = CURVES.map(([name, title]) => {
    const each = defenses.map(d => ({defense: d, ...curve(d, found.get(cell(d, attack)), name)}));
    const rows = new Map();
    each.forEach(({means}, k) => means.forEach(p => rows.set(p.round, {...rows.get(p.round), round: p.round, [`v${k}`]: p.text})));
    return {
      name, title, apart: each.filter(e => !e.whole).map(e => e.defense),
      means: each.flatMap(e => e.means.map(p => ({...p, chosen: p.defense === chosen}))),
      seeds: each.flatMap(e => e.defense === chosen || !e.whole ? e.seeds : []),
      rows: [...rows.values()].sort((a, b) => a.round - b.round)
        .map((row, k, all) => ({...row, from: k ? (all[k - 1].round + row.round) / 2 : row.round - 0.5, to: all[k + 1] ? (row.round + all[k + 1].round) / 2 : row.round + 0.5})),
    };
  }).filter(p => p.means.length || p.seeds.length);
  const apart = [...new Set(panels.flatMap(p => p.apart))];
  const bin = Math.max(...defenses.flatMap(d => found.get(cell(d, attack)).map(size)));
  const said = bin > 1 && panels.some(p => RATES.includes(p.name)) ? `Each point of the rates is a mean over ${bin} rounds. ` : "";
  $("compare-text").textContent = said + (apart.length ? `No means of ${apart.join(", ")} where the seeds have values in different rounds: their lines are the seeds.` : "");
  const last = Math.max(1, ...panels.flatMap(p => [...p.means, ...p.seeds].map(v => v.round)));
  const striped = last > 2, part = striped ? {domainRaw: {expr: "part.round"}} : {}; // what was dragged over
  chart("compare", width => {
    const columns = width > 720 && panels.length > 1 ? 2 : 1, w = Math.floor(width / columns) - 58;
    const palette = colours(), domain = D.defenses;
    const scale = range => ({domain, range: domain.map((_, k) => range[k % range.length])});
    const legend = {title: null, values: defenses, orient: "top", columns: Math.max(1, Math.floor(width / 160)), labelLimit: 130, symbolType: "stroke", symbolSize: 300, symbolStrokeWidth: 2.5, symbolOpacity: 1};
    const look = {color: {field: "defense", type: "nominal", scale: scale(palette), legend}};
    const dash = {strokeDash: {field: "defense", type: "nominal", scale: scale(DASHES), legend}};
    const y = (field, title) => ({field, type: "quantitative", title: null, scale: {domain: [0, 100]}, axis: {tickCount: 5}});
    const shown = {condition: {param: "brought", value: 1}, value: 0.12};
    const x = more => ({field: "round", type: "quantitative", title: "round", scale: {domain: [1, Math.max(2, last)], nice: false, zero: false, ...more}, axis: {format: "d", tickMinStep: 1, tickCount: Math.max(2, Math.floor(w / 60)), grid: false}});
    const drawn = panels.map(p => ({
      title: p.title, width: w, height: 190, encoding: {x: x(part)},
      layer: [
        {data: {values: p.means}, mark: {type: "area", clip: true, opacity: 0.14}, encoding: {y: y("low"), y2: {field: "high"}, color: look.color, opacity: {condition: {param: "brought", value: 0.14}, value: 0.03}}},
        {data: {values: p.seeds}, mark: {type: "line", clip: true, strokeWidth: 0.8}, encoding: {y: y("value"), detail: {field: "seed"}, ...look, ...dash, opacity: {condition: {param: "brought", value: 0.7}, value: 0.1}}},
        {name: `${p.name}-lines`, data: {values: p.means}, mark: {type: "line", clip: true, point: p.rows.length < 3 ? {size: 40} : false}, encoding: {y: y("value"), ...look, ...dash, opacity: shown, strokeWidth: {condition: {test: "datum.chosen", value: 3.2}, value: 1.6}}},
        {data: {values: p.rows}, mark: {type: "rule", clip: true, strokeWidth: 1}, encoding: {opacity: {condition: {param: "at", empty: false, value: 0.8}, value: 0}}},
        {name: `${p.name}-rounds`, data: {values: p.rows}, mark: {type: "rect", clip: true, color: "transparent"}, encoding: { // where a round is pointed at
          x: {...x(part), field: "from"}, x2: {field: "to"},
          tooltip: [{field: "round", title: "round"}, ...defenses.map((d, k) => ({field: `v${k}`, title: titled(`${d}, %`)}))],
        }},
      ],
    }));
    const strip = {name: "strip", title: {text: "Drag here to see a part of the rounds", fontWeight: "normal", fontSize: 12}, width: width - 58, height: 26,
      data: {values: (panels[0] ?? {means: []}).means}, mark: {type: "line", strokeWidth: 1},
      encoding: {x: x({}), y: {...y("value"), axis: null}, ...look}};
    return {
      description: `${panels.map(p => p.title).join("; ")}: all defenses against ${attack} over the rounds. The tables have the numbers.`,
      spacing: 14, params: [
        {name: "brought", select: {type: "point", fields: ["defense"]}, bind: "legend", views: drawn.map((_, k) => `${panels[k].name}-lines`)},
        {name: "at", select: {type: "point", fields: ["round"], on: "pointerover", clear: "pointerout"}, views: panels.map(p => `${p.name}-rounds`)},
        ...(striped ? [{name: "part", select: {type: "interval", encodings: ["x"]}, views: ["strip"]}] : []),
      ],
      vconcat: [{concat: drawn, columns, spacing: 14}, ...(striped ? [strip] : [])],
    };
  });
}
const COLUMNS = [
  ["accuracy", "Accuracy is that of the last tenth of the rounds."],
  ["lost per round", "What was lost is counted against the run of the same seed without attack, by the undefended mean or else by the same defense: the column “against” says which. Below 0 it is a gain."],
  ["rounds", "Of runs of different lengths the common rounds are compared, so many."],
  ["area, rounds", "Area adds the losses up over the rounds, in rounds at a loss of 100 %."],
  ["first detection", "First detection: rounds from the first one with a malicious client until one was rejected, in the slowest seed; 0 is at once."],
];
// One line for each defense: the damage as in the report's other files, with the rates beside it.
function numbers(attack) {
  const found = cells(), defenses = D.defenses.filter(d => found.has(cell(d, attack)));
  const damage = new Map(D.damage.filter(r => r.in === state.setting && r.fields.attack === attack).map(r => [r.fields.defense, r.fields]));
  const lines = defenses.map(d => {
    const runs = found.get(cell(d, attack)), {defense, attack: _, against, rounds, ...more} = damage.get(d) ?? {};
    delete more["benign lost"]; // the rate says it
    const seen = {defense: d, seeds: String(runs.filter(r => r.done).length), accuracy: told(runs, "accuracy")};
    for (const name of ["fpr", "fnr", ...(runs.some(r => !r.truth) ? ["rejected"] : [])]) seen[MEASURES.find(m => m[0] === name)[1]] = told(runs, name);
    return {...seen, ...more, against, rounds};
  });
  if (!lines.some(line => line.rounds?.includes("of"))) lines.forEach(line => delete line.rounds); // all of them
  const keys = [...new Set(lines.flatMap(Object.keys))].filter(key => lines.some(line => (line[key] ?? "–") !== "–"));
  $("damage-help").textContent = COLUMNS.filter(([key]) => keys.includes(key)).map(c => c[1]).join(" ");
  $("damage-table").replaceWith(tabled("damage-table", [keys, ...lines.map(line => keys.map(key => line[key] ?? "–"))]));
}
