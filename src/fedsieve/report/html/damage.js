// The table of damage: the lines of the chosen settings, without columns that are empty.
function damages() {
  const rows = visible(D.damage);
  $("damage").hidden = !rows.length;
  if (!rows.length) return;
  const apart = D.filters.filter(key => new Set(rows.map(r => r.setting[key] ?? "default")).size > 1);
  const lines = rows.map(r => ({...r.fields, ...Object.fromEntries(apart.map(key => [key, r.setting[key] ?? "default"]))}));
  const shown = Object.keys(lines[0]).filter(key => lines.some(line => line[key] !== "–"));
  const head = element("tr", {}, ...shown.map(key => element("th", {scope: "col"}, key)));
  const body = lines.map(line => element("tr", {}, ...shown.map((key, k) => k
    ? element("td", {}, element("span", {}, line[key]))
    : element("th", {scope: "row", title: line[key]}, line[key]))));
  const table = element("table", {id: "damage-table"}, element("thead", {}, head), element("tbody", {}, ...body));
  $("damage-table").replaceWith(table);
}
