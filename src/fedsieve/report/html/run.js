// One run: who was rejected in which round, where masks and updates lie, its damage in words, its command.
const KINDS = [["malicious, rejected", "orange"], ["malicious, missed", "pale"], ["benign, rejected", "blue"], ["benign, accepted", "tile"]];
const UNKNOWN = [["rejected", "orange"], ["accepted", "tile"]]; // nobody knows who is malicious
const CELLS = 24000; // rectangles of a map; more are slow
const ROOT = "root model", CROSS = "M-.75,-.75L.75,.75M.75,-.75L-.75,.75";
const STAR = "M0,-1L0.225,-0.309L0.951,-0.309L0.363,0.118L0.588,0.809L0,0.382L-0.588,0.809L-0.363,0.118L-0.951,-0.309L-0.225,-0.309Z";
// A client's name; a malicious one may take part under an id that is not its first.
function nameOf(run, id) {
  const client = id % run.clients, name = (run.names === null ? "" : D.names[run.names][client]) || `client ${client}`;
  return id === client ? name : `${name} (as ${id})`;
}
// Names as they fit: what all of them begin with is left out where one is too long.
function labels(names, most) {
  const words = names.map(name => name.split(/(?<=[\s_/-])/));
  let same = 0;
  while (names.length > 1 && words.every(w => w.length > same + 1 && w[same] === words[0][same])) same++;
  return names.some(name => name.length > most) ? words.map(w => (same ? "…" : "") + w.slice(same).join("")) : names;
}
function choose(defense, attack, scroll) {
  Object.assign(state, {defense, attack});
  press();
  const runs = cells().get(cell(defense, attack));
  $("compare-section").hidden = $("detail").hidden = false;
  $("h-compare").textContent = attack === "none" ? "Without attack" : `Against ${attack}`;
  $("h-detail").textContent = `${defense} against ${attack}`;
  comparison(attack, defense);
  numbers(attack);
  const select = $("run");
  select.replaceChildren(...runs.map((r, k) => element("option", {value: k}, `seed ${r.seed}`)));
  select.value = Math.max(0, runs.findIndex(r => r.done));
  select.onchange = () => detail(runs[select.value]);
  detail(runs[select.value]);
  if (!scroll) return;
  $("compare-section").scrollIntoView({block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth"});
}
function map(run) {
  const shown = run.map;
  $("map-box").hidden = !shown;
  if (!shown) return;
  const bad = new Set(shown.malicious), kinds = run.truth ? KINDS : UNKNOWN, often = new Map();
  let wrong = 0, missed = 0, seen = 0, seenBad = 0, undecided = 0;
  const rounds = shown.rounds.map((round, k) => {
    if (!shown.rejected[k]) { undecided++; return []; } // the defense could not decide yet
    const out = new Set(shown.rejected[k]);
    return (shown.present?.[k] ?? shown.clients).map(client => {
      const gone = out.has(client), evil = bad.has(client), [n, m] = often.get(client) ?? [0, 0];
      often.set(client, [n + gone, m + 1]);
      if (evil) { seenBad++; missed += !gone; } else { seen++; wrong += gone; }
      return {client, kind: !run.truth ? UNKNOWN[+!gone][0] : KINDS[evil ? +!gone : 3 - gone][0]};
    });
  });
  const told = run.truth
    ? `Benign clients were rejected ${wrong} of ${seen} times, malicious clients missed ${missed} of ${seenBad} times.`
    : `Clients were rejected ${wrong} of ${seen} times; who is malicious is not known.`;
  const order = [...shown.clients].sort((a, b) => bad.has(b) - bad.has(a) || a - b);
  // those rejected most often and the malicious ones, where there are more lines than a screen has
  const lines = order.length <= 400 ? order : order.filter(c => often.has(c)).sort((a, b) => bad.has(b) - bad.has(a) || often.get(b)[0] - often.get(a)[0]).slice(0, 400);
  const every = Math.ceil(rounds.length * Math.min(lines.length, Math.max(...rounds.map(r => r.length), 1)) / CELLS), kept = new Set(lines);
  const at = shown.rounds.map((_, k) => k).filter(k => (shown.rounds.length - 1 - k) % every === 0);
  const data = at.flatMap((k, i) => rounds[k].filter(c => kept.has(c.client)).map(c => ({
    client: c.client, kind: c.kind, name: nameOf(run, c.client), round: shown.rounds[k] + 1,
    from: i ? (shown.rounds[at[i - 1]] + shown.rounds[k]) / 2 + 1 : shown.rounds[k] + 0.5,
    to: i + 1 < at.length ? (shown.rounds[k] + shown.rounds[at[i + 1]]) / 2 + 1 : shown.rounds[k] + 1.5,
  })));
  const said = [`${counted(shown.clients.length, "client")} (down), ${counted(rounds.length, "round")} (across). ${told}`];
  if (undecided) said.push(`No decision in ${undecided} of these rounds.`);
  if (rounds.length < run.rounds) said.push(`The page holds ${rounds.length} of ${run.rounds} rounds, to keep it small.`);
  if (every > 1) said.push(`One in ${every} of them is drawn.`);
  if (lines.length < order.length) said.push(`${lines.length} clients are drawn${run.truth ? ", the malicious ones and" : ":"} those rejected most often.`);
  if (run.truth && bad.size) said.push("Malicious clients come first.");
  $("map-text").textContent = said.join(" ");
  const rows = lines.map(c => { const [n, m] = often.get(c) ?? [0, 0]; return [n, m, [nameOf(run, c), ...(run.truth ? [bad.has(c) ? "malicious" : "benign"] : []), `${n} of ${m}`, m ? percent(n / m) : "–"]]; });
  rows.sort((a, b) => b[0] / (b[1] || 1) - a[0] / (a[1] || 1));
  $("often").replaceWith(tabled("often", [["client", ...(run.truth ? ["truth"] : []), "rejected", "%"], ...rows.map(r => r[2])]));
  const first = shown.rounds[at[0]] + 0.5, last = shown.rounds[at.at(-1)] + 1.5;
  chart("map", width => {
    const step = Math.max(2, Math.min(14, Math.floor(560 / lines.length))), room = width < 500 ? 104 : 180;
    const short = labels(lines.map(c => nameOf(run, c)), Math.floor(room / 7) - 2);
    const present = kinds.filter(([kind]) => data.some(c => c.kind === kind));
    return {
      description: `Rejected clients by round. ${said.join(" ")}`, width: Math.max(80, Math.min(width - room - 24, 16 * at.length)), height: {step},
      data: {values: data}, params: [{name: "names", value: Object.fromEntries(lines.map((c, k) => [c, short[k]]))}, {name: "picked", select: {type: "point", fields: ["client"]}}],
      mark: {type: "rect", stroke: step > 5 && (width - room) / at.length > 5 ? colour("panel") : null, strokeWidth: 1},
      encoding: {
        x: {field: "from", type: "quantitative", title: "round", scale: {domain: [first, last], nice: false, zero: false}, axis: {format: "d", grid: false, tickMinStep: 1, tickCount: Math.max(2, Math.floor((width - room) / 60))}},
        x2: {field: "to"},
        y: {field: "client", type: "ordinal", title: null, sort: lines, scale: {domain: lines}, axis: {labelExpr: "names[datum.value]", labelLimit: room - 14, labelOverlap: true, ticks: false, domain: false}},
        color: {field: "kind", type: "nominal", scale: {domain: kinds.map(k => k[0]), range: kinds.map(k => colour(k[1]))}, legend: {title: null, orient: "top", values: present.map(k => k[0]), columns: width < 500 ? 2 : 4, symbolType: "square", labelLimit: 200}},
        opacity: {condition: {param: "picked", value: 1}, value: 0.25},
        tooltip: [{field: "name", title: "client"}, {field: "round", title: "round"}, {field: "kind", title: "decision"}],
      },
    };
  }).then(() => linked("map", "scatter"));
}
function scatter(run) {
  const all = run.scatter;
  $("scatter-box").hidden = !all?.length;
  if (!all?.length) return;
  const slider = $("round"), both = all.some(one => one.updates.length), masks = all.some(one => one.points.some(Boolean));
  $("scatter-help").textContent = "Each mark is a client: a circle was accepted, a cross rejected. Clients that look alike to the defense lie close together"
    + (all.some(one => one.root) ? "; the star is the server's own root model" : "")
    + `. Axes are the two directions in which the ${masks ? "defense's features (for SkyMask: the masks)" : "updates"} differ most, without a unit. Point at a mark to read its name and why it was rejected; select it, here or in the map, to find it in both.`;
  const middle = where => { const v = where.filter(Boolean).map(p => p[0]); return (Math.min(...v) + Math.max(...v)) / 2; };
  const role = (one, client) => !run.truth ? "client" : one.malicious.includes(client) ? "malicious" : "benign";
  const at = (what, one, [x, y], from = -Infinity) => ({what, shown: one.round, x, y, side: x > from ? "right" : "left"});
  const data = all.flatMap(one => [
    ...[["features", one.points], ["updates", one.updates]].flatMap(([what, where]) => one.clients.flatMap((client, k) => where[k] ? [{
      ...at(what, one, where[k], middle(where)), client: client % run.clients, name: nameOf(run, client), truth: role(one, client),
      decision: one.rejected.includes(client) ? "rejected" : "accepted", reason: one.reasons[k] || "–",
    }] : [])),
    ...(one.root ? [{...at("features", one, one.root), client: -1, name: ROOT, truth: ROOT, decision: ROOT, reason: "–"}] : []),
  ]);
  slider.max = all.length - 1;
  slider.value = all.length - 1;
  const show = () => {
    const one = all[slider.value], seen = one.clients.filter((_, k) => one.points[k] || one.updates[k]);
    $("round-text").textContent = one.round + 1;
    slider.setAttribute("aria-valuetext", `round ${one.round + 1}`);
    $("scatter-text").textContent = `Round ${one.round + 1}: ${one.rejected.length} of ${one.clients.length} clients rejected`
      + (run.truth ? `, ${one.rejected.filter(c => one.malicious.includes(c)).length} of ${one.malicious.length} malicious ones` : "") + "."
      + (run.sampled ? " The page holds only some of the rounds, to keep it small." : "");
    views.scatter?.signal("shown", one.round).runAsync();
  };
  slider.oninput = show;
  show();
  chart("scatter", width => {
    const sides = [...(masks ? [["features", "Features"]] : []), ...(both ? [["updates", "Updates"]] : [])];
    const columns = width > 640 ? sides.length : 1, w = Math.max(120, Math.min(460, Math.floor(width / columns) - 40));
    const axis = {title: null, labels: false, ticks: false, tickCount: 4}, rooted = data.some(p => p.client < 0);
    const truths = [...(run.truth ? [["malicious", "orange"], ["benign", "blue"]] : [["client", "blue"]]), ...(rooted ? [[ROOT, "green"]] : [])];
    const shapes = [["accepted", "circle"], ["rejected", CROSS], ...(rooted ? [[ROOT, STAR]] : [])];
    const scale = pairs => ({domain: pairs.map(p => p[0]), range: pairs.map(p => p[1])});
    const x = {field: "x", type: "quantitative", scale: {zero: false, padding: 14}, axis}, y = {...x, field: "y"};
    const legend = {title: null, orient: "top", direction: width < 500 ? "vertical" : "horizontal", symbolOpacity: 1};
    const panel = ([what, title]) => ({
      title, width: w, height: Math.round(0.75 * w), data: {values: data}, transform: [{filter: `datum.shown === shown && datum.what === "${what}"`}], encoding: {x, y},
      layer: [
        {name: what, mark: {type: "point", strokeWidth: 2, filled: false}, encoding: {
          color: {field: "truth", type: "nominal", scale: scale(truths.map(([t, c]) => [t, colour(c)])), legend: run.truth ? {...legend, values: ["malicious", "benign"]} : null},
          shape: {field: "decision", type: "nominal", scale: scale(shapes), legend},
          size: {condition: {test: "datum.client < 0", value: 240}, value: 70},
          opacity: {condition: {param: "picked", value: 0.9}, value: 0.15},
          tooltip: [{field: "name", title: "client"}, ...(run.truth ? [{field: "truth", title: "truth"}] : []), {field: "decision", title: "decision"}, {field: "reason", title: "reason"}],
        }},
        {mark: {type: "text", dy: -12, limit: 200, clip: true, align: {expr: "datum.side"}}, encoding: {text: {field: "name"}, opacity: {condition: {param: "picked", empty: false, value: 1}, value: 0}}},
      ],
    });
    return {
      description: `What the defense saw of each client, one round at a time. ${$("scatter-text").textContent}`, spacing: 20,
      params: [{name: "shown", value: all[slider.value].round}, {name: "picked", select: {type: "point", fields: ["client"]}, views: sides.map(s => s[0])}],
      concat: sides.map(panel), columns: Math.max(1, columns),
    };
  }).then(() => linked("scatter", "map"));
}
function detail(run) {
  $("run-state").textContent = [counted(run.rounds, "round"), run.state, run.note].filter(Boolean).join(" · ");
  $("damage-text").textContent = run.damage.text;
  $("run-flags").replaceChildren(...run.flags.map(k => element("li", {}, element("b", {}, D.flags[k].name), ` ${D.flags[k].text}`)));
  $("decisions").hidden = !run.map && !run.scatter.length;
  map(run);
  scatter(run);
  $("command").textContent = run.command;
  $("copied").textContent = "";
}
// A client that is selected in one chart is selected in the other.
function linked(from, to) {
  views[from]?.addDataListener("picked_store", (_, picked) => {
    const clients = found => JSON.stringify(found.map(t => t.values));
    if (!views[to] || clients(views[to].data("picked_store")) === clients(picked)) return;
    const fields = [{type: "E", field: "client"}]; // how Vega-Lite stores a selection
    views[to].data("picked_store", picked.map(t => ({unit: "", fields, values: [...t.values]}))).runAsync();
  });
}
$("copy").onclick = async () => {
  try { await navigator.clipboard.writeText($("command").textContent); $("copied").textContent = "copied"; }
  catch { getSelection().selectAllChildren($("command")); $("copied").textContent = "selected: copy it with the keyboard"; }
};
$("filters").addEventListener("submit", event => event.preventDefault());
$("setting").value = state.setting = D.start;
overview();
