// What can be measured, the head, the choice of a setting, flags, and the table of attacks and defenses.
const MEASURES = [ // name, heading, whether more is better, explanation
  ["accuracy", "test accuracy, last tenth", true, "Share of all test samples that the global model classifies correctly, mean over the last tenth of the rounds."],
  ["lost", "accuracy lost per round", false, "How far test accuracy lay below that of the same seed without attack, mean over the rounds."],
  ["worst_lost", "accuracy lost in the worst round", false, "The largest such loss in any round."],
  ["success", "attack success, last evaluation", false, "Share of the test samples with the attacker's trigger, those of the attacker's own class left out, that the global model takes for the attacker's class: a backdoor that works."],
  ["worst_success", "attack success, worst round", false, "The largest attack success of any round. The untrained model of the first rounds may reach 100 % by chance."],
  ["fpr", "benign clients rejected", false, "Share of the benign clients that the defense rejected (false positive rate), mean over all rounds with a decision."],
  ["fnr", "malicious clients missed", false, "Share of the malicious clients that the defense accepted (false negative rate), mean over all rounds with a decision."],
  ["until", "rounds until detection", false, "Rounds from the first one with a malicious client until one was first rejected; 0 is at once."],
  ["rejected", "clients rejected", null, "Share of all clients that the defense rejected, over all rounds. Which of them are malicious is another question."],
];
const measured = (run, measure) => run.summary[measure] ?? run.damage[measure] ?? null;
const state = {measure: "accuracy", setting: 0, attack: null, defense: null};
const cell = (defense, attack) => JSON.stringify([defense, attack]);
// Runs of the chosen setting by cell; of two of one seed the finished one, since a mean over seeds counts each once.
function cells() {
  const found = new Map();
  for (const run of D.runs) {
    if (run.in !== state.setting) continue;
    const key = cell(run.defense, run.attack), seeds = found.get(key) ?? new Map();
    if (!seeds.get(run.seed)?.done) seeds.set(run.seed, run);
    found.set(key, seeds);
  }
  return new Map([...found].map(([key, seeds]) => [key, [...seeds.values()]]));
}
const valuesOf = (runs, measure) => (runs ?? []).filter(r => r.done).map(r => measured(r, measure)).filter(v => v !== null);
const attacksFirst = names => [...new Set(names)].sort((a, b) => (b === "none") - (a === "none") || natural(a, b));
// The numbers of a cell as text; rounds until detection are no mean where a seed never had one.
function told(runs, measure) {
  const values = valuesOf(runs, measure);
  if (measure !== "until") return values.length ? spread(values) : null;
  const never = runs.filter(r => r.done && r.undetected).length;
  if (never) return values.length ? `never in ${never} of ${never + values.length}` : "never";
  return values.length ? String(Math.round(10 * mean(values)) / 10) : null;
}

$("counts").textContent = `${counted(D.runs.length, "run")}, ${D.runs.filter(r => r.done).length} finished, ${counted(D.settings.length, "setting")} · made with fedsieve ${D.version}`;
if (D.problems.length) {
  $("problems").hidden = false;
  $("problem-count").textContent = counted(D.problems.length, "problem");
  $("problem-list").append(...D.problems.map(text => element("li", {class: "alert"}, text)));
}
const control = (label, id, options, change) => {
  const select = element("select", {id, onchange: event => change(event.target.value)});
  for (const [value, text] of options) select.append(element("option", {value}, text));
  $("filter-fields").append(element("label", {for: id}, label, " ", select));
  return select;
};
const known = MEASURES.filter(([name]) => name === "accuracy" || D.runs.some(r => measured(r, name) !== null || name === "until" && r.undetected))
  .filter(([name]) => name !== "rejected" || D.runs.some(r => !r.truth)); // where the truth is known, the rates say more
$("glossary").append(...known.flatMap(([, heading, , text]) => [element("dt", {}, heading), element("dd", {}, text)]));
control("setting", "setting", D.settings.map((s, k) => [k, `${s.title} (${counted(s.runs, "run")})`]), value => { state.setting = +value; overview(); });
control("measure", "measure", known.map(m => [m[0], m[1]]), value => { state.measure = value; matrix(); });

function shade(value, more) {
  if (more === null) return "var(--paper)";
  const good = Math.min(1, Math.max(0, more ? value : 1 - value)); // a run may also gain accuracy
  return `color-mix(in srgb, var(--blue) ${Math.round(45 * good)}%, var(--paper))`;
}
const best = (values, more) => {
  const known = values.filter(v => v !== undefined).map(v => Math.round(1000 * v));
  return known.length < 2 || more === null ? null : more ? Math.max(...known) : Math.min(...known);
};
function matrix() {
  const found = cells(), names = [...found.keys()].map(key => JSON.parse(key));
  const [, heading, more, text] = MEASURES.find(m => m[0] === state.measure), rounds = state.measure === "until";
  const attacks = attacksFirst(names.map(n => n[1])), defenses = [...new Set(names.map(n => n[0]))].sort(natural);
  const number = (d, a) => {
    const runs = found.get(cell(d, a)), values = valuesOf(runs, state.measure);
    return rounds && runs?.some(r => r.done && r.undetected) ? Infinity : values.length ? mean(values) : undefined;
  };
  const worst = new Map();
  for (const d of defenses) {
    const row = attacks.map(a => number(d, a)).filter(v => v !== undefined);
    if (row.length > 1 && more !== null && (rounds || row.length === attacks.length)) worst.set(d, more ? Math.min(...row) : Math.max(...row));
  }
  const tops = new Map(attacks.map(a => [a, best(defenses.map(d => number(d, a)), more)]));
  const top = best(defenses.map(d => worst.get(d)), more), longest = Math.max(...D.runs.map(r => r.rounds), 1);
  const table = element("table", {id: "matrix"}, element("caption", {}, heading[0].toUpperCase() + heading.slice(1) + (rounds ? "" : ", %")));
  const head = element("tr", {}, element("th", {scope: "col"}, "defense \\ attack"), ...attacks.map(a => element("th", {scope: "col", title: a, class: a.length > 30 ? "long" : ""}, a)));
  if (worst.size) head.append(element("th", {scope: "col"}, "worst"));
  const body = element("tbody");
  for (const d of defenses) {
    const row = element("tr", {}, element("th", {scope: "row", title: d}, d));
    for (const a of attacks) {
      const here = found.get(cell(d, a)), value = number(d, a);
      if (!here) { row.append(element("td", {}, element("span", {}, "not run"))); continue; }
      let said = told(here, state.measure);
      const done = here.filter(r => r.done).length;
      if (said === null) said = here.find(r => !r.done)?.state ?? "–";
      else if (done < here.length) said += ` [${done} of ${here.length}]`;
      const button = element("button", {type: "button", "aria-label": `${d} against ${a}: ${said}`, onclick: () => choose(d, a, true)}, said);
      button.dataset.cell = cell(d, a);
      if (value !== undefined) {
        button.style.background = shade(rounds ? Math.min(1, value / longest) : value, more);
        if (tops.get(a) === Math.round(1000 * value)) button.classList.add("best");
      }
      row.append(element("td", {}, button));
    }
    if (worst.size) {
      const value = worst.get(d), shown = element("span", {}, value === undefined ? "–" : !rounds ? percent(value) : value === Infinity ? "never" : String(Math.round(10 * value) / 10));
      if (value !== undefined && Math.round(1000 * value) === top) shown.style.fontWeight = "700";
      row.append(element("td", {}, shown));
    }
    body.append(row);
  }
  table.append(element("thead", {}, head), body);
  $("matrix").replaceWith(table);
  $("measure-text").textContent = text;
  press();
}
const press = () => document.querySelectorAll("#matrix button").forEach(b => b.setAttribute("aria-pressed", String(b.dataset.cell === cell(state.defense, state.attack))));
// Flags by name, each name with its explanation.
function flagged(indices) {
  const before = `${D.settings[state.setting].whole}: `; // which is the same for all of them
  const names = new Map();
  for (const k of indices) names.set(D.flags[k].name, [...(names.get(D.flags[k].name) ?? []), D.flags[k]]);
  return [...names].map(([name, found]) => element("details", indices.length > 4 ? {} : {open: ""}, element("summary", {}, element("b", {}, name), ` (${found.length})`),
    element("p", {class: "faint"}, `${D.explained[name] ?? ""} More: ${found[0].page}`),
    element("ul", {}, ...found.map(f => element("li", {title: f.runs.slice(0, 20).join("\n")}, f.text.startsWith(before) ? f.text.slice(before.length) : f.text)))));
}
function overview() {
  const runs = D.runs.filter(r => r.in === state.setting), chosen = D.settings[state.setting];
  if (!chosen) return;
  const raised = [...new Set(runs.flatMap(r => r.flags))].sort((a, b) => a - b);
  $("flags").hidden = !raised.length;
  $("flag-list").replaceChildren(...flagged(raised));
  const seeds = new Set(runs.map(r => r.seed)).size;
  $("shown").textContent = `${counted(runs.length, "run")} shown, ${counted(seeds, "seed")}: ${chosen.text}`;
  const keys = cells(), attacks = attacksFirst(runs.map(r => r.attack)), defenses = [...new Set(runs.map(r => r.defense))].sort(natural);
  // the same cell as in the setting before, or the first attack with a finished run of a defense that takes decisions
  const usable = (d, a) => keys.get(cell(d, a))?.some(r => r.done);
  const order = [...attacks.filter(a => a !== "none"), "none"].flatMap(a => defenses.map(d => [d, a])).filter(([d, a]) => keys.has(cell(d, a)));
  const [d, a] = keys.has(cell(state.defense, state.attack)) ? [state.defense, state.attack]
    : order.find(([d, a]) => usable(d, a) && keys.get(cell(d, a)).some(r => r.map)) ?? order.find(([d, a]) => usable(d, a)) ?? order[0];
  matrix();
  choose(d, a, false);
}
