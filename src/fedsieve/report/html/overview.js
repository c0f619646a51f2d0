// The head, the filters and the table of all runs.
const finished = D.runs.filter(r => r.done).length;
$("counts").textContent = `${D.runs.length} runs, ${finished} finished · made with fedsieve ${D.version}`;
if (D.flags.length) {
  $("flags").hidden = false;
  $("flag-count").textContent = `${D.flags.length} flags`;
  $("flag-list").append(...D.flags.map(f => element("li", {}, element("b", {}, f.name), ` ${f.text} [${some(f.runs)}]; see ${f.page}`)));
}
if (D.problems.length) {
  $("problems").hidden = false;
  $("problem-count").textContent = `${D.problems.length} problems`;
  $("problem-list").append(...D.problems.map(text => element("li", {class: "alert"}, text)));
}
const control = (label, id, options, change) => {
  const select = element("select", {id, onchange: event => change(event.target.value)});
  for (const [value, text] of options) select.append(element("option", {value}, text));
  $("filter-fields").append(element("label", {for: id}, label, select));
  return select;
};
control("measure", "measure", MEASURES.map(m => [m[0], m[1]]), value => { state.measure = value; overview(); });
for (const key of D.filters) {
  const values = [...new Set(D.runs.filter(r => r.setting).map(r => r.setting[key] ?? "default"))];
  values.sort((a, b) => a.localeCompare(b, "en", {numeric: true}));
  // start with the most frequent value, so that each cell is a mean over seeds only
  const count = value => D.runs.filter(r => r.setting && (r.setting[key] ?? "default") === value).length;
  state.filters[key] = values.toSorted((a, b) => count(b) - count(a))[0] ?? "";
  control(key, `filter-${key.replaceAll(" ", "-")}`, [["", "all"], ...values.map(v => [v, v])], value => {
    state.filters[key] = value;
    overview();
  }).value = state.filters[key];
}

// --- The table of attacks and defenses
const visible = found => found.filter(r => r.setting && Object.entries(state.filters)
  .every(([key, value]) => !value || (r.setting[key] ?? "default") === value));
const sorted = names => [...new Set(names)].sort((a, b) => (b === "none") - (a === "none") || a.localeCompare(b));
function shade(value, more) {
  const good = Math.min(1, Math.max(0, more ? value : 1 - value)); // a run may also gain accuracy
  return `color-mix(in srgb, var(--benign) ${Math.round(45 * good)}%, var(--paper))`;
}
function overview() {
  const runs = visible(D.runs), [, heading, more] = MEASURES.find(m => m[0] === state.measure);
  const attacks = sorted(runs.map(r => r.attack)), defenses = sorted(runs.map(r => r.defense));
  const cells = new Map();
  for (const run of runs) {
    const key = JSON.stringify([run.defense, run.attack]);
    cells.set(key, [...(cells.get(key) ?? []), run]);
  }
  const numbers = new Map();
  for (const [key, here] of cells) {
    const values = here.filter(r => r.done).map(r => measured(r, state.measure)).filter(v => v !== null);
    if (values.length) numbers.set(key, values);
  }
  const at = (d, a) => numbers.get(JSON.stringify([d, a]));
  const worst = new Map();
  for (const d of defenses) {
    const row = attacks.map(a => at(d, a)).filter(Boolean).map(mean);
    if (row.length && row.length === attacks.length && attacks.length > 1) worst.set(d, more ? Math.min(...row) : Math.max(...row));
  }
  const best = (values) => {
    const known = values.filter(v => v !== undefined).map(v => Math.round(1000 * v));
    return known.length < 2 ? null : more ? Math.max(...known) : Math.min(...known);
  };
  const tops = new Map(attacks.map(a => [a, best(defenses.map(d => at(d, a)).map(v => v && mean(v)))]));
  const top = best(defenses.map(d => worst.get(d)));
  const table = element("table", {id: "matrix"}, element("caption", {}, heading[0].toUpperCase() + heading.slice(1) + ", %"));
  const head = element("tr", {}, element("th", {scope: "col"}, "defense \\ attack"));
  for (const a of attacks) head.append(element("th", {scope: "col", title: a}, a));
  if (worst.size) head.append(element("th", {scope: "col"}, "worst"));
  table.append(element("thead", {}, head));
  const body = element("tbody");
  for (const d of defenses) {
    const row = element("tr", {}, element("th", {scope: "row", title: d}, d));
    for (const a of attacks) {
      const key = JSON.stringify([d, a]), here = cells.get(key), values = numbers.get(key);
      if (!here) { row.append(element("td", {}, element("span", {}, "not run"))); continue; }
      let text = "–";
      if (values) {
        text = percent(mean(values)) + (values.length > 1 ? ` ± ${percent(deviation(values))}` : "");
        const done = here.filter(r => r.done).length;
        if (done < here.length) text += ` [${done} of ${here.length}]`;
      } else if (here.some(r => !r.done)) text = here.find(r => !r.done).state;
      const button = element("button", {type: "button", "aria-pressed": String(state.chosen === key),
        "aria-label": `${d} against ${a}: ${text}`, onclick: () => choose(key, d, a, here)}, text);
      button.dataset.cell = key;
      if (values) {
        button.style.background = shade(mean(values), more);
        if (tops.get(a) === Math.round(1000 * mean(values))) button.classList.add("best");
      }
      row.append(element("td", {}, button));
    }
    if (worst.size) {
      const value = worst.get(d), cell = element("span", {}, value === undefined ? "–" : percent(value));
      if (value !== undefined && Math.round(1000 * value) === top) cell.style.fontWeight = "700";
      row.append(element("td", {}, cell));
    }
    body.append(row);
  }
  table.append(body);
  $("matrix").replaceWith(table);
  damages();
  const several = new Set(runs.map(r => JSON.stringify(r.setting))).size;
  $("shown").textContent = `${runs.length} runs shown` + (several > 1 ? `, of ${several} settings together; use the filters to separate them` : "");
}
