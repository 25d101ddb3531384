"use strict";
// The page asks the JSON API of the same listener and nobody else. Whatever comes from sessions is only ever put into text nodes.

const $ = (id) => document.getElementById(id);

// el makes an HTML element: properties, then children (nodes or text).
function el(tag, props, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (name in e) e[name] = value; else e.setAttribute(name, value);
  }
  e.append(...children.filter((c) => c != null));
  return e;
}

function svg(tag, attributes, ...children) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

// --- What is written, and how ---

const number = (n, digits = n < 10 ? 1 : 0) => n.toLocaleString("en", { maximumFractionDigits: digits });
const missing = "–";

function size(bytes) {
  const units = ["byte", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; bytes >= 1024 && i < units.length - 1; i++) bytes /= 1024;
  return i ? number(bytes) + " " + units[i] : plural(bytes, "byte");
}

// duration writes seconds with the two largest units that matter; below a minute as seconds or milliseconds.
function duration(s) {
  if (s < 0.001) return number(s * 1000, 2) + " ms";
  if (s < 1) return number(s * 1000) + " ms";
  if (s < 60) return number(s) + " s";
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([unit]) => s >= unit);
  return parts.slice(first, first + 2)
    .map(([unit, name]) => { const n = Math.floor(s / unit); s -= n * unit; return n ? n + " " + name : ""; })
    .filter(Boolean).join(" ");
}

const clock = (time) => new Date(time).toLocaleTimeString("en-GB");
const plural = (n, one, many = one + "s") => `${number(n, 0)} ${n === 1 ? one : many}`;

let serverAhead = 0; // ms by which the server's clock is ahead of this one
const age = (time) => Math.max(0, (Date.now() + serverAhead - Date.parse(time)) / 1000);

// breakable is a name that lines may break in, after what separates its parts.
function breakable(name) {
  const parts = name.split(/(?<=[/.<,+])/).flatMap((part) => [part, el("wbr")]);
  return el("span", {}, ...parts.slice(0, -1));
}

// --- The API ---

// ask returns the JSON answer, or throws an Error with what the server says. Without a valid token it goes to /login.
async function ask(path, options = {}) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(30000), ...options });
  if (answer.status === 401) {
    location.assign("/login");
    throw new Error("The token is missing or wrong.");
  }
  const body = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
  if (!answer.ok) throw Object.assign(new Error(body.error ?? String(answer.status)), { status: answer.status });
  return body;
}

// change is ask for what changes something: the content type is one that other sites cannot send.
const change = (method, path, body) => ask(path, {
  method, headers: { "Content-Type": "application/json" }, body: body && JSON.stringify(body),
});

// --- Charts ---

const windowSeconds = 15 * 60;

const linear = {
  // ticks are 0 and up to four multiples of 1, 2 or 5 times a power of ten.
  ticks(max) {
    const raw = Math.max(max, 1) / 3;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = Math.max(1, [1, 2, 5, 10].find((n) => n * power >= raw) * power);
    return Array.from({ length: Math.max(2, Math.ceil(max / step) + 1) }, (_, i) => i * step);
  },
  at: (value, [low, ...rest]) => (value - low) / (rest.at(-1) - low),
};

// Latencies span from microseconds to a lock wait of seconds: a line for each power of ten.
const logarithmic = {
  ticks(max, min) {
    if (min > max) [min, max] = [0.001, 0.1]; // nothing was measured
    const low = Math.floor(Math.log10(Math.max(min, 1e-5))), high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(max, 1e-5))));
    return Array.from({ length: high - low + 1 }, (_, i) => 10 ** (low + i));
  },
  at: (value, ticks) => Math.log10(Math.max(value, ticks[0]) / ticks[0]) / Math.log10(ticks.at(-1) / ticks[0]),
};

class Chart {
  // series: [label, value of a point] each; show writes a value, short one on the axis.
  constructor({ title, series, show, short = show, scale = linear, now, note, more = () => [] }) {
    Object.assign(this, { title, series, show, short, scale, now, note, more, points: [], at: null });
    this.output = el("output");
    this.side = el("span", { className: "dim" });
    this.drawing = svg("svg", { role: "img", tabindex: 0 });
    this.tip = el("div", { className: "tip", hidden: true });
    this.figure = el("figure", { className: "chart" },
      el("figcaption", {}, el("h2", {}, title),
        el("div", { className: "legend" }, ...(series.length > 1 ? series.map(([label], i) => el("span", { className: "s" + i }, label)) : [])),
        el("div", { className: "now" }, this.output, this.side)),
      this.drawing, this.tip);
    new ResizeObserver(() => this.draw()).observe(this.drawing);
    this.drawing.addEventListener("pointermove", (e) => this.point(this.nearest(e.offsetX)));
    this.drawing.addEventListener("pointerleave", () => this.point(null));
    this.drawing.addEventListener("blur", () => this.point(null));
    this.drawing.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (!step || !this.points.length) return;
      e.preventDefault();
      this.point(Math.min(this.points.length - 1, Math.max(0, (this.at ?? this.points.length) + step)));
    });
  }

  update(points) {
    this.points = points;
    const last = points.at(-1);
    this.output.textContent = last ? this.now(last) : missing;
    this.side.textContent = last ? this.note(last) : "";
    this.drawing.setAttribute("aria-label", `${this.title}: now ${this.output.textContent}, ${this.side.textContent}. Arrow keys show earlier values.`);
    if (this.at >= points.length) this.at = null;
    this.draw();
  }

  draw() {
    const width = this.drawing.clientWidth, height = this.drawing.clientHeight;
    if (!width) return;
    const left = 46, right = 6, top = 6, bottom = 20;
    const values = this.points.flatMap((p) => this.series.map(([, get]) => get(p))).filter((v) => v != null);
    const ticks = this.scale.ticks(Math.max(0, ...values), Math.min(...values));
    const end = this.points.length ? Date.parse(this.points.at(-1).time) : 0;
    this.x = (p) => left + (width - left - right) * (1 - (end - Date.parse(p.time)) / 1000 / windowSeconds);
    const y = (v) => top + (height - top - bottom) * (1 - this.scale.at(v, ticks));
    const floor = height - bottom;

    const grid = ticks.flatMap((v) => [
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }),
      svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, this.short(v)),
    ]);
    const times = [["15 min ago", left, "start"], ["10", 2, "middle"], ["5", 1, "middle"], ["now", width - right, "end"]].map(([label, at, anchor]) =>
      svg("text", { x: anchor === "middle" ? width - right - at * (width - left - right) / 3 : at, y: height - 4, "text-anchor": anchor }, label));

    const lines = this.series.flatMap(([, get], i) => {
      const parts = this.runs(get).map((run) => run.map((p) => `${this.x(p).toFixed(1)},${y(get(p)).toFixed(1)}`));
      const drawn = parts.map((xy) => svg("path", { class: "line s" + i, d: "M" + xy.join("L") + (xy.length === 1 ? "h.01" : "") }));
      if (i > 0 || this.scale !== linear) return drawn;
      const areas = parts.filter((xy) => xy.length > 1).map((xy) =>
        svg("path", { class: "area", d: `M${xy[0].split(",")[0]},${floor}L${xy.join("L")}L${xy.at(-1).split(",")[0]},${floor}Z` }));
      return [...areas, ...drawn];
    }).reverse(); // the first one on top

    const cross = [];
    const p = this.points[this.at];
    if (p) {
      cross.push(svg("line", { class: "cross", x1: this.x(p), x2: this.x(p), y1: top, y2: floor }));
      this.series.forEach(([, get], i) => get(p) != null && cross.push(svg("circle", { class: "s" + i, cx: this.x(p), cy: y(get(p)), r: 3 })));
    }
    this.drawing.replaceChildren(...grid, ...times, ...lines, ...cross);
    this.showTip(p, width);
  }

  // runs are the stretches of points that have a value and follow each other without a gap.
  runs(get) {
    const runs = [];
    let before = null;
    for (const p of this.points) {
      const gap = before && Date.parse(p.time) - Date.parse(before.time) > 2.5 * interval * 1000;
      if (get(p) == null) { before = null; continue; }
      if (!before || gap) runs.push([]);
      runs.at(-1).push(p);
      before = p;
    }
    return runs;
  }

  nearest(x) {
    let best = null;
    this.points.forEach((p, i) => { if (best === null || Math.abs(this.x(p) - x) < Math.abs(this.x(this.points[best]) - x)) best = i; });
    return best;
  }

  point(i) {
    this.at = i;
    this.draw();
  }

  showTip(p, width) {
    this.tip.hidden = !p;
    if (!p) return;
    const rows = [...this.series.map(([label, get]) => [label, get(p) == null ? missing : this.show(get(p))]), ...this.more(p)];
    this.tip.replaceChildren(el("div", {}, clock(p.time)),
      el("table", {}, el("tbody", {}, ...rows.map(([label, value]) => el("tr", {}, el("td", {}, label), el("td", { className: "n" }, value))))));
    const x = this.x(p) + 16; // the figure's padding
    this.tip.style.left = (x > width / 2 ? x - this.tip.offsetWidth - 12 : x + 12) + "px";
  }
}

const rate = (n) => number(n) + "/s";
const perSecond = (n) => n >= 10000 ? number(n / 1000, 0) + "k" : number(n);
const maybe = (value, write) => value == null ? missing : write(value);
const operationNames = { get: "Get", get_exclusive: "GetExclusive", release: "ReleaseExclusive", set: "Set", set_uninitialized: "SetUninitialized", remove: "Remove", reset_timeout: "ResetTimeout" };

const charts = [
  new Chart({
    title: "Requests", show: rate, short: perSecond, series: [["all", (p) => p.requests], ["answered Locked", (p) => p.locked]],
    now: (p) => rate(p.requests),
    note: (p) => p.unanswered > 0 ? `${rate(p.unanswered)} not answered` : p.bad > 0 ? `${rate(p.bad)} bad requests` : "",
    more: (p) => Object.entries(p.operations ?? {}).filter(([, n]) => n > 0).map(([name, n]) => [operationNames[name] ?? name, rate(n)]),
  }),
  new Chart({
    title: "Latency", show: duration, scale: logarithmic, series: [["median", (p) => p.p50_seconds], ["95 %", (p) => p.p95_seconds], ["99 %", (p) => p.p99_seconds]],
    now: (p) => maybe(p.p50_seconds, duration),
    note: (p) => p.p99_seconds == null ? "" : `99 % within ${duration(p.p99_seconds)}, lock waits included`,
    more: (p) => [["store, 95 %", maybe(p.store_p95_seconds, duration)]],
  }),
  new Chart({
    title: "Lock waits", show: rate, short: perSecond, series: [["ended", (p) => p.lock_waits], ["with the lock", (p) => p.lock_handovers]],
    now: (p) => rate(p.lock_waits),
    note: (p) => `${number(p.waiters, 0)} waiting now` + (p.lock_wait_p95_seconds == null ? "" : `, 95 % within ${duration(p.lock_wait_p95_seconds)}`),
    more: (p) => [["waiting", number(p.waiters, 0)]],
  }),
  new Chart({
    title: "Sessions", show: (n) => number(n, 0), short: perSecond, series: [["sessions", (p) => p.sessions]],
    now: (p) => maybe(p.sessions, (n) => number(n, 0)),
    note: (p) => p.sessions == null ? "" : `${number(p.locked_sessions ?? 0, 0)} locked, ${size(p.bytes ?? 0)}`,
    more: (p) => [["locked", maybe(p.locked_sessions, (n) => number(n, 0))], ["size", maybe(p.bytes, size)]],
  }),
];

let points = [], interval = 5;

async function history() {
  const last = points.at(-1);
  const answer = await ask("/api/history" + (last ? "?after=" + encodeURIComponent(last.time) : ""));
  interval = answer.interval_seconds;
  points.push(...answer.points);
  points = points.slice(-Math.ceil(windowSeconds / interval) - 1);
  charts.forEach((c) => c.update(points));
}

// --- Status ---

async function status() {
  const s = await ask("/api/status");
  serverAhead = Date.parse(s.now) - Date.now();
  document.title = `aspstate on ${s.host}`;
  $("host").textContent = s.host;
  $("ready").hidden = false;
  $("ready").textContent = s.ready ? "Ready" : "Not ready";
  $("ready").classList.toggle("bad", !s.ready);
  const store = { sqlite: "SQLite", postgres: "PostgreSQL", sqlserver: "SQL Server", memory: "memory" }[s.store] ?? s.store;
  $("server").textContent = [
    `mode ${s.mode}` + (s.mode === "SQLServer" ? `, ${store}` : ""), `listens on ${(s.listen ?? []).join(", ")}`,
    plural(s.connections, "connection"), `up ${duration(age(s.started))}`, `version ${s.version}`,
  ].join(" · ");

  const alerts = [];
  if (s.store_failing_seconds > 0) alerts.push(`The store has been failing for ${duration(s.store_failing_seconds)}: ${s.store_error}`);
  else if (!s.ready) alerts.push(`Not ready: ${s.not_ready}.`);
  if (s.sweeper?.error) alerts.push(`Expired sessions are not deleted: ${s.sweeper.error}`);
  const nodes = alerts.map((text) => el("p", { className: "alert" }, text));
  if (s.switch && s.switch.stage !== "moved") {
    const { moved = 0, total = 0 } = s.switch;
    nodes.push(el("div", { className: "alert progress" },
      `Sessions move from ${s.switch.from} to ${s.switch.to}: ` + (s.switch.stage === "announced" ? "the servers are getting ready" : `${number(moved, 0)} of ${number(total, 0)}`),
      total > 0 ? el("progress", { max: total, value: moved, ariaLabel: "Sessions moved" }) : null,
      s.switch.error ? el("p", {}, s.switch.error) : null));
  }
  // Said again only when it changes: screen readers read alerts aloud.
  const text = nodes.map((n) => n.textContent).join("\n");
  if ($("alerts").dataset.text !== text) $("alerts").replaceChildren(...nodes);
  $("alerts").dataset.text = text;
}

async function applications() {
  const answer = await ask("/api/applications");
  const list = answer.applications.toSorted((a, b) => b.sessions - a.sessions);
  $("counted").textContent = answer.counted ? `counted at ${clock(answer.counted)}` : "";
  note("applications", answer.error ? `They could not be counted: ${answer.error}` : list.length ? "" : answer.counted ? "No application has sessions here." : "They are being counted.");
  fill($("applications"), list, (a) => a.app_id, (a) => [
    el("td", { className: "name" }, el("button", { type: "button", className: "link", title: "Show its sessions" }, breakable(a.name || a.app_id))),
    el("td", { className: "n" }, number(a.sessions, 0)), el("td", { className: "n" }, number(a.locked, 0)), el("td", { className: "n" }, size(a.bytes)),
  ]);
  const select = $("search").elements.app, chosen = select.value;
  select.replaceChildren(select.options[0], ...list.map((a) => el("option", { value: a.app_id }, a.name || a.app_id)));
  select.value = chosen;
  if (select.selectedIndex < 0) select.value = "";
}

function note(id, text) {
  $(id + "-note").textContent = text;
  $(id + "-note").hidden = !text;
}

// fill puts rows into a table; the focus stays on the row that has it, or on the one that takes its place.
function fill(table, list, key, cells) {
  const body = table.tBodies[0];
  const focused = body.contains(document.activeElement) ? document.activeElement.closest("tr") : null;
  const index = focused?.sectionRowIndex;
  body.replaceChildren(...list.map((item) => {
    const row = el("tr", {}, ...cells(item));
    row.dataset.key = key(item);
    row.item = item;
    return row;
  }));
  if (focused) focusRow(table, focused.dataset.key, index);
}

// focusRow puts the focus on the row of a key, or on the one that took its place.
function focusRow(table, key, index) {
  const rows = [...table.tBodies[0].rows];
  const row = rows.find((r) => r.dataset.key === key) ?? rows[Math.min(index, rows.length - 1)];
  row?.querySelector("button").focus({ preventScroll: true });
}

$("applications").addEventListener("click", (e) => {
  const button = e.target.closest("button");
  if (!button) return;
  const form = $("search").elements;
  form.app.value = button.closest("tr").item.app_id;
  form.id.value = "";
  if (form.order.value === "lock" && !button.closest("tr").item.locked) form.order.value = "size";
  list();
  $("search").scrollIntoView({ block: "nearest" });
});

// --- Sessions ---

let sessions = [], next, listing = 0;

const place = (s) => new URLSearchParams({ app: s.app_id, id: s.id });

// list asks for the sessions that the form describes; with more, for those behind the ones that are shown.
async function list(more) {
  const form = new FormData($("search")), mine = ++listing, began = performance.now();
  const query = new URLSearchParams({ order: form.get("order"), limit: 50 });
  if (form.get("app")) query.set("app", form.get("app"));
  if (form.get("id").trim()) query.set("id", form.get("id").trim());
  if (more) query.set("after", next);
  try {
    const answer = await ask("/api/sessions?" + query);
    if (mine !== listing) return; // a later one is under way
    sessions = more ? sessions.concat(answer.sessions) : answer.sessions;
    next = answer.next;
    fill($("sessions"), sessions, (s) => s.app_id + s.id, row);
    const locks = form.get("order") === "lock";
    $("listed").textContent = sessions.length ? `${plural(sessions.length, "session")}${next ? " and more" : sessions.length === 50 ? " at most" : ""}, as of ${clock(Date.now() + serverAhead)}` : "";
    note("sessions", sessions.length ? "" : query.has("id") || query.has("app") ? "No session fits." : locks ? "No session is locked." : "There are no sessions.");
    $("more").hidden = !next;
  } catch (err) {
    if (mine !== listing) return;
    note("sessions", err.message);
  }
  return performance.now() - began;
}

function row(s) {
  const cell = (label, text, className = "n") => { const td = el("td", { className }, text); td.dataset.label = label; return td; };
  return [
    el("td", { className: "mono" }, el("button", { type: "button", className: "link", ariaHasPopup: "dialog" }, s.id)),
    el("td", { className: "name" }, breakable(s.application || s.app_id)),
    cell("Size", size(s.bytes)), cell("Created", duration(age(s.created)) + " ago"), cell("Expires in", expiry(s)),
    cell("Locked for", s.locked ? duration(s.lock_age_seconds) : missing, s.locked ? "n locked" : "n"),
  ];
}

const expiry = (s) => s.left_seconds == null ? "never" : duration(s.left_seconds);

$("search").addEventListener("submit", (e) => { e.preventDefault(); list(); });
$("search").addEventListener("change", () => list());
let typing;
$("search").elements.id.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(list, 300); });
$("more").addEventListener("click", () => list(true));
$("sessions").addEventListener("click", (e) => {
  const tr = e.target.closest("tbody tr");
  if (!tr || getSelection().toString()) return;
  opened = [tr.dataset.key, tr.sectionRowIndex];
  open(tr.item);
});

// --- One session ---

const dialog = $("session");
let opened; // key and index of the row that it was opened from

async function open(s, values) {
  try {
    const answer = await ask(`/api/session?${place(s)}${values ? "&values=true" : ""}`);
    draw(answer, values);
    if (!dialog.open) dialog.showModal();
    refocus();
  } catch (err) {
    if (err.status !== 404) return toast(err.message);
    toast("This session is gone: it was removed or has expired.");
    dialog.close();
    list();
  }
}

// refocus puts the focus back into the session after what had it was drawn anew.
function refocus() {
  if (dialog.open && !dialog.contains(document.activeElement)) dialog.querySelector(".actions button")?.focus({ preventScroll: true });
}

function draw({ session: s, item, item_error: damage }, values) {
  const rows = [
    ["Session ID", el("span", { className: "mono" }, s.id)], ["Application", breakable(s.application || s.app_id)],
    ["Size", size(s.bytes) + (item?.compressed ? `, compressed (${size(item.inflated_bytes)} without)` : "")],
    ["Created", `${duration(age(s.created))} ago`], ["Timeout", s.timeout_seconds ? `${duration(s.timeout_seconds)}, expires in ${expiry(s)}` : "never expires"],
    ["Lock", s.locked ? `locked for ${duration(s.lock_age_seconds)}, lock cookie ${s.lock_cookie}` : "not locked"],
  ];
  if (s.uninitialized) rows.push(["Uninitialized", "yes: no page has used it yet"]);
  const action = (text, className, run, shown = true) => shown ? el("button", { type: "button", className, onclick: run }, text) : null;
  const hidden = item && !values && [...item.items, ...item.static_objects].some((e) => !e.graph && e.type !== "null");
  $("session-body").replaceChildren(...[
    el("dl", {}, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    damage ? el("p", { className: "alert" }, `The item could not be read whole: ${damage}`) : null,
    item ? entries("Items", item.items, values) : null,
    item?.items.length === 0 ? el("p", { className: "note" }, "No items.") : null,
    item?.static_objects.length ? entries("Static objects", item.static_objects, values) : null,
    hidden ? el("p", { className: "note" }, "Values are hidden. Showing them leaves a line in the server’s log.") : null,
    el("div", { className: "actions" },
      action("Show values", "", () => open(s, true), hidden),
      action("Unlock…", "", () => unlock(s), s.locked),
      action("Remove…", "remove", () => remove(s))),
  ].filter(Boolean));
}

function entries(title, list, values) {
  if (!list.length) return null;
  const most = 1000, longest = 20000; // more would only keep the browser busy
  const shown = (e) => e.value == null ? el("span", { className: "dim" }, e.graph ? "object graph" : missing) :
    el("span", { className: "long" }, e.value.length > longest ? e.value.slice(0, longest) + "…" : e.value);
  return el("div", {}, el("h3", {}, `${title} (${list.length})`), el("table", { className: "keys" },
    el("thead", {}, el("tr", {}, ...["Key", "Type", ...(values ? ["Value"] : [])].map((h) => el("th", { scope: "col" }, h)), el("th", { scope: "col", className: "n" }, "Size"))),
    el("tbody", {}, ...list.slice(0, most).map((e) => el("tr", {},
      el("td", {}, e.null_name ? el("span", { className: "dim" }, "(null)") : e.name), el("td", { className: "type" }, breakable(e.type || "unreadable")),
      values ? el("td", { className: "value" }, shown(e)) : null, el("td", { className: "n" }, size(e.bytes)))))),
    list.length > most ? el("p", { className: "note" }, `The first ${number(most)} are shown. “aspstate sessions show” shows all.`) : null);
}

function unlock(s) {
  confirm(s, "Unlock this session?", `The lock of ${s.id} was taken ${duration(s.lock_age_seconds)} ago (lock cookie ${s.lock_cookie}). If its page is still running, what it writes to the session may be lost.`, "Unlock", async () => {
    await change("POST", "/api/session/unlock", { app: s.app_id, id: s.id, lock_cookie: s.lock_cookie });
    toast("Unlocked.");
    await open(s);
  });
}

function remove(s) {
  confirm(s, "Remove this session?", `${s.id} of ${s.application || s.app_id} and all that it holds are deleted, and its user is logged out. This cannot be undone.`, "Remove", async () => {
    await change("DELETE", `/api/session?${place(s)}`);
    toast("Removed.");
    dialog.close();
  });
}

// confirm asks before run changes the session. Cancel has the focus; a failure is told, and the session shown as it is now.
function confirm(s, title, text, verb, run) {
  const ask = $("confirm"), button = $("confirm-do");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  button.textContent = verb;
  button.disabled = false;
  button.onclick = async () => {
    button.disabled = true;
    try {
      await run();
    } catch (err) {
      toast(err.message);
      await open(s);
    }
    ask.close();
    refocus();
    list();
  };
  ask.showModal();
}

for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
// Values do not stay in the page after the dialog is closed, and a click beside a dialog closes it.
dialog.addEventListener("close", () => {
  $("session-body").replaceChildren();
  if (document.activeElement === document.body) focusRow($("sessions"), ...opened); // its row was drawn anew
});
for (const d of [dialog, $("confirm")]) d.addEventListener("click", (e) => {
  const box = d.getBoundingClientRect();
  if (e.target === d && (e.clientX < box.left || e.clientX > box.right || e.clientY < box.top || e.clientY > box.bottom)) d.close();
});

let toasting;
function toast(text) {
  const t = $("toast");
  (document.querySelector("#confirm[open]") ?? document.querySelector("dialog[open]") ?? document.body).append(t); // above what is open
  t.textContent = text;
  t.hidden = false;
  clearTimeout(toasting);
  toasting = setTimeout(() => { t.hidden = true; document.body.append(t); }, 6000);
}

// --- Running ---

// every runs a job now and again each time after so many seconds, when the page is seen. While the server does not answer, the page says so and goes on.
const failing = new Set();
async function every(seconds, job) {
  let rest = seconds;
  if (!document.hidden) {
    try {
      rest = (await job()) ?? seconds;
      failing.delete(job);
    } catch (err) {
      failing.add(job);
      $("ready").hidden = false;
      $("ready").classList.add("bad");
      $("ready").textContent = "No answer";
      $("ready").title = err.message;
    }
  }
  setTimeout(every, rest * 1000, seconds, job);
}

$("charts").append(...charts.map((c) => c.figure));
every(5, history);
every(5, status);
every(30, applications);
// The oldest locks follow by themselves, at most a twentieth of the time; the other lists stay as they are while they are read.
every(10, async () => {
  if ($("search").elements.order.value !== "lock" && sessions.length) return 10;
  return Math.max(10, 20 * ((await list()) ?? 0) / 1000);
});

// Only where a token is asked for can one sign out: elsewhere /login leads back here.
fetch("/login", { redirect: "manual" }).then((answer) => { $("logout").hidden = !answer.ok; }, () => {});
$("logout").addEventListener("click", async () => {
  await change("POST", "/logout").catch(() => {});
  location.assign("/login");
});
