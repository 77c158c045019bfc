
"use strict";

// The page works on what Python wrote into it: the drawing, and the circuit's own JSON document.
// Labels enter the page as textContent only.

const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const svg = document.querySelector("svg.wiremap");
const unit = document.body.dataset.unit;
const PAGE_OF_ROWS = 200;

// ---- the circuit

function knownBy(edge) {
  if (edge.verified) return "verified";
  if ((edge.loss ?? null) !== null) return "weighed";
  return edge.score === null ? "unscored" : "scored";
}

const edges = JSON.parse(byId("circuit").textContent).edges.map((edge, place) => {
  const measured = edge.verified;
  const worth = measured ? measured.effect : edge.score; // null: not known
  return {
    place,
    name: edge.id,
    source: edge.source,
    target: edge.target,
    worth,
    size: Math.abs(worth ?? 0),
    effect: measured ? measured.effect : null,
    error: measured ? measured.standard_error : null,
    interval: measured?.interval ?? null,
    inclusion: edge.inclusion ?? null,
    loss: edge.loss ?? null,
    pairs: measured ? measured.n_pairs : null,
    score: edge.score,
    kinds: [worth === null ? "unscored" : worth < 0 ? "negative" : "positive", edge.slot ?? "none", knownBy(edge)],
  };
});
const ranked = [...edges].sort((a, b) => b.size - a.size);
ranked.forEach((edge, index) => { edge.rank = index + 1; });

const nodes = new Map(all("[data-node]").map((element) => [element.dataset.node, element]));
const paths = new Map(all("[data-edge]").map((element) => [Number(element.dataset.edge), element]));
const keys = all(".key"); // of the roles, in the legend
const serves = all("[data-from]");
const hasLosses = edges.some((edge) => edge.loss !== null);
const hasIntervals = edges.some((edge) => edge.interval !== null);

// Native tooltips would come late and beside ours, so their text moves into a map.
const texts = new WeakMap();
for (const element of [...nodes.values(), ...paths.values(), ...keys]) {
  const title = element.querySelector("title");
  texts.set(element, title.textContent);
  title.remove();
}

// ---- what sliders step through: each step changes something, small numbers finely

function counts(most) {
  const steps = [];
  for (let count = 1; count < most; count = Math.max(count + 1, Math.round(count * 1.04))) {
    steps.push(count);
  }
  return [...steps, most];
}

function thresholds() {
  const sizes = ranked.map((edge) => edge.size).filter((size) => size > 0);
  const steps = new Set([0]);
  if (sizes.length) {
    const largest = sizes[0];
    const smallest = Math.max(sizes[sizes.length - 1], largest / 1e6);
    for (let step = 0; step <= 100; step += 1) {
      const value = smallest * (largest / smallest) ** (step / 100);
      steps.add(Math.min(Number(value.toPrecision(3)), largest));
    }
  }
  return [...steps].sort((a, b) => a - b);
}

const STEPS = { min: thresholds(), top: counts(edges.length) };

// ---- the state, and the address that holds it

const FRESH = { min: 0, top: edges.length, hide: [], find: "", by: "none", only: false, sort: "rank", zoom: 0, pins: [] };
let state = { ...FRESH };
let hovered = null; // name of a node or edge, or an array of nodes
let shownRows = PAGE_OF_ROWS;
const COLUMNS = {
  rank: (edge) => edge.rank,
  name: (edge) => edge.name,
  effect: (edge) => edge.effect,
  error: (edge) => edge.error,
  interval: (edge) => edge.interval?.[0] ?? null,
  loss: (edge) => edge.loss,
  score: (edge) => edge.score,
  pairs: (edge) => edge.pairs,
};

function readAddress() {
  const read = new URLSearchParams(location.hash.slice(1));
  const number = (key) => (Number.isFinite(parseFloat(read.get(key))) ? parseFloat(read.get(key)) : FRESH[key]);
  const names = new Set([...nodes.keys(), ...edges.map((edge) => edge.name)]);
  const sort = read.get("sort") ?? FRESH.sort;
  const by = all("option:enabled", byId("by")).find((option) => option.value === read.get("by"));
  state = {
    min: number("min"),
    top: Math.min(Math.max(number("top"), 1), edges.length),
    hide: (read.get("hide") ?? "").split(",").filter(Boolean),
    find: read.get("find") ?? "",
    by: by?.value ?? FRESH.by,
    only: read.get("only") === "1",
    sort: Object.hasOwn(COLUMNS, sort.replace(/^-/, "")) ? sort : FRESH.sort,
    zoom: Math.min(Math.max(number("zoom"), 0), 8),
    pins: read.getAll("pin").filter((name) => names.has(name)),
  };
}

let writing = 0;
function writeAddress() {
  const written = new URLSearchParams();
  for (const key of ["min", "top", "find", "by", "sort", "zoom"]) {
    if (state[key] !== FRESH[key]) written.set(key, state[key]);
  }
  if (state.hide.length) written.set("hide", state.hide.join(","));
  if (state.only) written.set("only", "1");
  for (const name of state.pins) written.append("pin", name);
  clearTimeout(writing); // browsers limit how often the address may change
  writing = setTimeout(() => {
    try {
      history.replaceState(null, "", written.size ? `#${written}` : "#");
    } catch (error) {
      if (error.name !== "SecurityError") throw error; // a sandboxed frame has no address
    }
  }, 150);
}

// ---- what is visible, and what is highlighted

let visible = [];

function choose() {
  const hide = new Set(state.hide);
  const size = (edge) => edge.size >= state.min && !edge.kinds.some((kind) => hide.has(kind));
  visible = ranked.filter(size).slice(0, state.top);
}

function isFound(edge) {
  return edge.name.toLowerCase().includes(state.find.trim().toLowerCase());
}

function highlighted() {
  const names = new Set([...state.pins, ...[hovered ?? []].flat()]);
  const searching = state.find.trim() !== "";
  const hot = visible.filter(
    (edge) =>
      names.has(edge.name) || names.has(edge.source) || names.has(edge.target) || (searching && isFound(edge)),
  );
  return { names, active: names.size > 0 || searching, edges: new Set(hot) };
}

// ---- drawing on the page

function number(value) {
  return value === null ? "" : (value > 0 ? "+" : "") + String(Number(value.toPrecision(3))).replace("-", "\u2212");
}

function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

function show() {
  choose();
  const seen = new Set(visible);
  const used = new Set(visible.flatMap((edge) => [edge.source, edge.target]));
  for (const [place, path] of paths) path.classList.toggle("off", !seen.has(edges[place]));
  for (const [name, element] of nodes) element.classList.toggle("off", !used.has(name));
  for (const line of serves) {
    line.classList.toggle("off", !(used.has(line.dataset.from) && used.has(line.dataset.to)));
  }
  showGroups();
  const undrawn = visible.filter((edge) => !paths.has(edge.place)).length;
  byId("status").textContent =
    `${visible.length.toLocaleString("en")} of ${plural(edges.length, "edge")}, ` +
    `${used.size.toLocaleString("en")} of ${plural(nodes.size, "node")}` +
    (undrawn ? `; ${undrawn.toLocaleString("en")} too small to be drawn` : "");
  for (const key of ["min", "top"]) {
    const steps = STEPS[key];
    const step = steps.findLastIndex((value) => value <= state[key]);
    byId(key).max = steps.length - 1;
    byId(key).value = Math.max(step, 0);
    byId(key).disabled = steps.length < 2;
  }
  byId("min-value").textContent = state.min ? `${state.min} ${unit}` : "0";
  byId("top-value").textContent = state.top.toLocaleString("en");
  byId("min").setAttribute("aria-valuetext", byId("min-value").textContent);
  byId("top").setAttribute("aria-valuetext", `${byId("top-value").textContent} edges`);
  for (const box of all("[name=kind]")) box.checked = !state.hide.includes(box.value);
  byId("by").value = state.by;
  byId("only").checked = state.only;
  if (byId("find").value !== state.find) byId("find").value = state.find;
  byId("unpin").disabled = state.pins.length === 0;
  highlight();
  showTable();
  showZoom();
}

function highlight() {
  const { names, active, edges: hot } = highlighted();
  const ends = new Set([...hot].flatMap((edge) => [edge.source, edge.target]));
  svg.classList.toggle("focus", active);
  for (const [place, path] of paths) {
    path.classList.toggle("hot", hot.has(edges[place]));
    path.classList.toggle("pinned", state.pins.includes(edges[place].name));
  }
  for (const [name, element] of nodes) {
    element.classList.toggle("hot", names.has(name) || ends.has(name));
    element.classList.toggle("pinned", state.pins.includes(name));
    element.setAttribute("aria-pressed", state.pins.includes(name));
  }
  for (const box of all("[data-key]", svg)) {
    const members = membersOf(box);
    const pinned = members.length > 0 && members.every((name) => state.pins.includes(name));
    box.classList.toggle("hot", members.some((name) => names.has(name) || ends.has(name)));
    box.classList.toggle("pinned", pinned);
    box.setAttribute("aria-pressed", pinned);
  }
  for (const line of all("[data-flow]", svg)) line.classList.toggle("hot", line.flow.some((edge) => hot.has(edge)));
  for (const row of all("tr", byId("rows"))) markRow(row, names, hot);
}

function markRow(row, names, hot) {
  const edge = edges[Number(row.dataset.place)];
  row.classList.toggle("hot", hot.has(edge) && (names.size > 0 || state.find.trim() !== ""));
  row.querySelector("button").setAttribute("aria-pressed", state.pins.includes(edge.name));
}

// ---- groups: the nodes of a row or a role as one box, their edges as one line for each sign

const whole = svg.getAttribute("viewBox");

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Which row or role a node belongs to; without a role, input and logits stay by themselves. */
function keyOf(name, by) {
  return nodes.get(name).dataset[by] ?? (["input", "logits"].includes(name) ? name : "none");
}

function membersOf(box) {
  return [...nodes.keys()].filter((name) => keyOf(name, box.dataset.by) === box.dataset.key);
}

/** The rows, where they are in the drawing. */
function rowGroups() {
  return all("text.row", svg).map((label) => {
    const key = label.dataset.row;
    const kind = [...nodes.values()].find((node) => node.dataset.row === key).classList[1];
    return { key, label: label.textContent, y: label.y.baseVal[0].value - 4, kind };
  });
}

/** The roles, one below the other, the later in the model (by the median of its nodes) the higher. */
function roleGroups() {
  const rows = new Map();
  for (const [name, node] of nodes) {
    const key = keyOf(name, "role");
    rows.set(key, [...(rows.get(key) ?? []), Number(node.dataset.row)]);
  }
  const height = (key) => rows.get(key).sort((a, b) => a - b)[Math.floor(rows.get(key).length / 2)];
  const top = Math.min(...all("text.row", svg).map((label) => label.y.baseVal[0].value - 4));
  return [...rows.keys()].sort((a, b) => height(b) - height(a)).map((key, index) => {
    const role = keys.find((each) => each.dataset.key === key);
    const label = role?.dataset.name ?? (key === "none" ? "no role" : key);
    return { key, label, y: top + 84 * index, kind: role ? role.getAttribute("class").replace("key ", "") : "" };
  });
}

function showGroups() {
  svg.querySelector(".grouped")?.remove();
  svg.setAttribute("viewBox", whole);
  for (const part of all(":scope > .edges, :scope > .nodes", svg)) part.classList.toggle("off", state.by !== "none");
  svg.querySelector(":scope > .rows").classList.toggle("off", state.by === "role");
  if (state.by === "none" || nodes.size === 0) return;
  const byRole = state.by === "role";
  const by = byRole ? "role" : "row";
  const groups = byRole ? roleGroups() : rowGroups();
  const at = new Map(groups.map((group, index) => [group.key, { ...group, index, members: new Set(), inside: 0 }]));
  const flows = new Map();
  for (const edge of visible) {
    const [from, to] = [edge.source, edge.target].map((name) => at.get(keyOf(name, by)));
    from.members.add(edge.source);
    to.members.add(edge.target);
    if (from === to) {
      from.inside += 1;
      continue;
    }
    const key = `${from.key} ${to.key} ${edge.kinds[0]}`;
    if (!flows.has(key)) flows.set(key, { from, to, edges: [] });
    flows.get(key).edges.push(edge); // the largest comes first
  }
  if (byRole) { // only as wide as it has to be, with the zoom buttons beside the legend
    const width = Math.max(700, svg.querySelector(":scope > .legend").getBBox().width + 150);
    svg.setAttribute("viewBox", `0 0 ${Math.min(natural.width, width)} ${groups.at(-1).y + 50}`);
  }
  const times = (group) => (group.members.size > 1 ? ` \u00d7${group.members.size}` : "");
  const middle = byRole ? natural.width / 2 : Number(svg.querySelector("text.row").dataset.x);
  const half = Math.max(62, ...[...at.values()].map((group) => 14 + 3.6 * (group.label + times(group)).length));
  const room = natural.width - middle - half - 40;
  const group = element("g", { class: "grouped" });
  const lines = element("g", { class: "edges" });
  for (const { from, to, edges: flow } of [...flows.values()].reverse()) {
    const side = flow[0].worth < 0 ? -1 : 1;
    const up = from.y > to.y ? 1 : -1;
    const off = up > 0 ? 7 : -2; // so that no line ends where another begins
    const share = flow[0].size / (ranked[0].size || 1);
    const start = middle + side * half;
    const apart = Math.abs(to.index - from.index) - 1;
    // A curve gets three quarters as far as its control points. Lines that go down keep outside.
    const bow = start + side * (32 + (up < 0 ? 14 : 0) + 1.3 * room * apart / groups.length);
    const width = 0.6 + 4.4 * share;
    const [size, arrow] = width > 2.5 ? ["wide", 8] : ["thin", 5];
    const line = element("path", {
      class: flow[0].kinds[0], "data-flow": "", "stroke-width": width.toFixed(2),
      "stroke-opacity": (0.35 + 0.65 * share ** 0.5).toFixed(2),
      "marker-end": `url(#${flow[0].kinds[0]}-${flow[0].kinds[2]}-${size})`,
      d: `M${start} ${from.y - off}C${bow} ${from.y - off} ${bow} ${to.y + off} ${start + side * arrow} ${to.y + off}`,
    });
    line.flow = flow;
    texts.set(line, `${from.label} \u2192 ${to.label}: ${plural(flow.length, "edge")}` + (flow[0].worth === null
      ? ", not scored"
      : ` that ${side < 0 ? "oppose" : "carry"}, the largest ${number(flow[0].worth)} ${unit} (${flow[0].name})`));
    lines.append(line);
  }
  group.append(lines);
  for (const one of at.values()) {
    if (!one.members.size) continue;
    const inside = one.inside ? `, ${plural(one.inside, "edge")} inside` : "";
    const told = `${one.label}: ${plural(one.members.size, "node")}${inside}`;
    const box = element("g", {
      class: `group node ${one.kind}`, "data-by": by, "data-key": one.key, transform: `translate(${middle} ${one.y})`,
      tabindex: 0, role: "button", "aria-label": told,
    });
    const text = element("text", { y: 4 });
    text.append(element("tspan", {}, one.label), times(one));
    box.append(element("rect", { x: -half, y: -12, width: 2 * half, height: inside ? 36 : 24, rx: 5 }), text);
    if (inside) box.append(element("text", { y: 18, class: "count" }, inside.slice(2)));
    const mark = keys.find((each) => byRole && each.dataset.key === one.key);
    if (mark) {
      box.append(
        element("circle", { class: "mark", cx: -half, cy: -12, r: 8 }),
        element("text", { class: "number", x: -half, y: -8.5 }, mark.querySelector(".number").textContent),
      );
    }
    texts.set(box, told);
    group.append(box);
  }
  svg.querySelector(":scope > .legend").before(group);
}

// ---- the table

function sorted(list) {
  const column = COLUMNS[state.sort.replace(/^-/, "")];
  const down = state.sort.startsWith("-");
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  return [...list].sort((a, b) => {
    const [x, y] = [column(a), column(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a.rank - b.rank; // missing last
    const order = typeof x === "string" ? compare(x, y) : x - y;
    return (down ? -order : order) || a.rank - b.rank;
  });
}

function tabled() {
  const { active, edges: hot } = highlighted();
  const searching = state.find.trim() !== "";
  const list = visible.filter((edge) => (!searching || isFound(edge)) && (!state.only || !active || hot.has(edge)));
  return sorted(list);
}

function showTable() {
  const list = tabled();
  const rows = list.slice(0, shownRows).map((edge) => {
    const row = document.createElement("tr");
    row.dataset.place = edge.place;
    const cell = (kind, text, name) => {
      const made = document.createElement(kind);
      made.textContent = text;
      if (name) made.className = name;
      row.append(made);
      return made;
    };
    cell("td", edge.rank);
    const head = cell("th", "", "words");
    head.scope = "row";
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = edge.name;
    head.append(button);
    const color = { positive: "carries", negative: "opposes", unscored: "" }[edge.kinds[0]];
    cell("td", number(edge.effect), color);
    cell("td", edge.error === null ? "" : `\u00b1 ${Number(edge.error.toPrecision(2))}`);
    if (hasIntervals) cell("td", edge.interval ? `[${edge.interval.map(number).join(", ")}]` : "");
    if (hasLosses) cell("td", number(edge.loss));
    cell("td", number(edge.score), edge.effect === null ? color : "");
    cell("td", edge.pairs ?? "\u2013");
    return row;
  });
  const focused = document.activeElement?.closest("tr")?.dataset.place;
  byId("rows").replaceChildren(...rows);
  if (focused) byId("rows").querySelector(`[data-place="${focused}"] button`)?.focus();
  const { names, edges: hot } = highlighted();
  for (const row of rows) markRow(row, names, hot);
  byId("caption").textContent = plural(list.length, "edge") +
    (list.length > rows.length ? `, the first ${rows.length} shown` : "") +
    (edges.length && edges.every((edge) => edge.worth === null) ? "; not scored" : `; figures in ${unit}`);
  byId("more").hidden = list.length <= rows.length;
  for (const head of all("thead th")) {
    const name = head.dataset.column;
    head.setAttribute("aria-sort",
      state.sort === name ? "ascending" : state.sort === `-${name}` ? "descending" : "none");
  }
}

// ---- zoom

const natural = svg.viewBox.baseVal;

function fit() {
  return Math.min(1.15, (byId("drawing").clientWidth - 4) / natural.width);
}

function showZoom() {
  const zoom = state.zoom || fit();
  svg.style.width = `${natural.width * zoom}px`;
  svg.style.height = `${natural.height * zoom}px`;
}

function zoomBy(factor) {
  change({ zoom: Number(Math.min(Math.max((state.zoom || fit()) * factor, 0.1), 8).toFixed(3)) });
}

// ---- what people do

function change(changes) {
  state = { ...state, ...changes };
  shownRows = PAGE_OF_ROWS;
  writeAddress();
  show();
}

function pin(names) {
  const list = [names].flat();
  const without = state.pins.filter((name) => !list.includes(name));
  state.pins = list.every((name) => state.pins.includes(name)) ? without : [...without, ...list];
  byId("unpin").disabled = state.pins.length === 0;
  writeAddress();
  highlight();
  if (state.only) showTable();
}

/** What a part of the drawing stands for: the name of a node or edge, or names of nodes. */
function nameOf(part) {
  if (!part) return null;
  if (part.dataset.node) return part.dataset.node;
  if (part.dataset.key) return membersOf(part);
  if (part.flow) return part.flow.map((edge) => edge.name);
  return edges[Number(part.dataset.edge)].name;
}

const PARTS = "[data-node], [data-edge], [data-key], [data-flow]";
const AROUND = [[0, 0], [0, -3], [3, 0], [0, 3], [-3, 0]]; // thin lines are hard to hit

function partAt(x, y) {
  for (const [dx, dy] of AROUND) {
    const part = document.elementFromPoint(x + dx, y + dy)?.closest(PARTS);
    if (part) return part;
  }
  return null;
}

function hover(part, x, y) {
  const tip = byId("tip");
  tip.hidden = !part;
  if (part) {
    tip.textContent = texts.get(part);
    if (part.dataset.node) {
      const count = (end) => visible.filter((edge) => edge[end] === part.dataset.node).length;
      tip.textContent += `; ${count("target")} in, ${count("source")} out`;
    }
    const right = Math.min(x + 14, innerWidth - tip.offsetWidth - 8);
    const below = y + 18 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 12 : y + 18;
    tip.style.left = `${Math.max(right, 4)}px`;
    tip.style.top = `${below}px`;
  }
  setHovered(nameOf(part));
}

function setHovered(name) {
  if (String(name) === String(hovered)) return;
  hovered = name;
  highlight();
}

svg.addEventListener("pointermove", (event) => hover(partAt(event.clientX, event.clientY), event.clientX, event.clientY));
svg.addEventListener("pointerleave", () => hover(null));
svg.addEventListener("click", (event) => {
  const part = partAt(event.clientX, event.clientY);
  if (part) pin(nameOf(part));
  else if (state.pins.length) pin(state.pins);
});
// Not on the drawing itself: one that listens for focus takes it.
byId("paper").addEventListener("focusin", (event) => {
  const part = event.target.closest(PARTS);
  if (!part || !event.target.matches(":focus-visible")) return;
  const box = part.getBoundingClientRect();
  hover(part, box.right, box.top);
});
byId("paper").addEventListener("focusout", () => hover(null));
svg.addEventListener("keydown", (event) => {
  const part = event.target.closest(PARTS);
  if (!part || (event.key !== "Enter" && event.key !== " ")) return;
  event.preventDefault();
  pin(nameOf(part));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.pins.length) pin(state.pins);
});

const rowEdge = (event) => {
  const row = event.target.closest("tr");
  return row ? edges[Number(row.dataset.place)].name : null;
};
byId("rows").addEventListener("click", (event) => pin(rowEdge(event)));
byId("rows").addEventListener("pointerover", (event) => setHovered(rowEdge(event)));
byId("rows").addEventListener("pointerleave", () => setHovered(null));
byId("rows").addEventListener("focusin", (event) => setHovered(rowEdge(event)));
byId("rows").addEventListener("focusout", () => setHovered(null));
for (const head of all("thead th")) {
  head.querySelector("button").addEventListener("click", () => {
    const name = head.dataset.column;
    const first = ["rank", "name"].includes(name) ? name : `-${name}`;
    const other = first === name ? `-${name}` : name;
    change({ sort: state.sort === first ? other : first });
  });
}
byId("more").addEventListener("click", () => {
  shownRows += PAGE_OF_ROWS;
  showTable();
});

for (const key of ["min", "top"]) {
  byId(key).addEventListener("input", () => change({ [key]: STEPS[key][Number(byId(key).value)] }));
}
for (const box of all("[name=kind]")) {
  box.addEventListener("change", () => {
    const others = state.hide.filter((kind) => kind !== box.value);
    change({ hide: box.checked ? others : [...others, box.value] });
  });
}
byId("by").addEventListener("change", () => change({ by: byId("by").value }));
byId("only").addEventListener("change", () => change({ only: byId("only").checked }));
byId("find").addEventListener("input", () => change({ find: byId("find").value }));
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("unpin").addEventListener("click", () => pin(state.pins));
byId("reset").addEventListener("click", () => change({ ...FRESH }));
byId("zoom-in").addEventListener("click", () => zoomBy(1.25));
byId("zoom-out").addEventListener("click", () => zoomBy(0.8));
byId("zoom-fit").addEventListener("click", () => change({ zoom: 0 }));
addEventListener("resize", showZoom);
addEventListener("hashchange", () => {
  if (location.hash === "#table") return; // the skip link
  readAddress();
  show();
});

// ---- files

function save(content, kind, extension) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: kind }));
  link.download = `${document.body.dataset.file}.${extension}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

byId("save-json").addEventListener("click", () => save(byId("circuit").textContent, "application/json", "json"));

byId("save-csv").addEventListener("click", () => {
  const cell = (value) => (/[",\r\n]/.test(value ?? "") ? `"${value.replaceAll('"', '""')}"` : value ?? "");
  const lines = tabled().map((edge) => [
    edge.name, edge.source, edge.target, edge.kinds[1] === "none" ? "" : edge.kinds[1],
    edge.score, edge.effect, edge.error, edge.pairs, ...(edge.interval ?? ["", ""]), edge.inclusion,
    edge.loss,
  ]);
  const header = ["edge", "source", "target", "slot", "score", "effect", "standard_error", "n_pairs",
    "effect_low", "effect_high", "inclusion", "loss"];
  save([header, ...lines].map((line) => `${line.map(cell).join(",")}\r\n`).join(""), "text/csv", "csv");
});

byId("save-svg").addEventListener("click", () => {
  const copy = svg.cloneNode(true);
  const originals = all(PARTS, svg);
  all(PARTS, copy).forEach((part, index) => {
    part.prepend(element("title", {}, texts.get(originals[index])));
    for (const name of ["tabindex", "role", "aria-pressed", "aria-label"]) part.removeAttribute(name);
  });
  for (const part of all(".off", copy)) part.remove();
  for (const part of [copy, ...all(".hot, .pinned", copy)]) part.classList.remove("hot", "pinned", "focus");
  copy.removeAttribute("style");
  for (const size of ["width", "height"]) copy.setAttribute(size, natural[size]);
  copy.querySelector("style").after(element("rect", { class: "paper", width: "100%", height: "100%" }));
  save(new XMLSerializer().serializeToString(copy), "image/svg+xml", "svg");
});

// ---- begin

for (const part of [...nodes.values(), ...keys]) {
  part.setAttribute("tabindex", "0");
  part.setAttribute("role", "button");
  part.setAttribute("aria-label", texts.get(part));
}
readAddress();
show();
