"use strict";
// The page: takes the events in and shows them. All text goes in as text, never as HTML.

let now = null;             // the last status
let journal = [];
let points = [];            // history, oldest first
let came = 0;               // when the last status came, ms
let server = "";            // which server process it was
let sorted = "";            // column the servers are sorted by; "": as configured
let open = null;            // address in the dialog
const wide = matchMedia("(min-width: 821px)");

// Text

function number(value, digits = 1) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 100000) return `${(value / 1000).toFixed(0)}k`;
  return size >= 1000 ? value.toFixed(0) : value.toFixed(size >= 100 ? Math.min(digits, 1) : digits);
}
function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds >= 10) return `${seconds.toFixed(1)} s`;
  return seconds >= 1 ? `${seconds.toFixed(2)} s` : `${number(1000 * seconds, seconds < 0.01 ? 1 : 0)} ms`;
}
function percent(ratio, digits = 1) {
  return ratio === null || ratio === undefined ? "–" : `${(100 * ratio).toFixed(digits)} %`;
}
function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]])
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit}`;
  return `${Math.max(0, seconds).toFixed(0)} s`;
}

// Elements

function make(name, properties, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}
function say(node, text) { if (node.textContent !== text) node.textContent = text; }
function part(ratio) { return `${Math.max(0, Math.min(100, 100 * (ratio || 0))).toFixed(1)}%`; }
function entries(of) { return Object.entries(of || {}); }

// As many children of `box` as there are items: `fill` writes one, `build` makes a new one.
function list(box, items, build, fill) {
  while (box.children.length > items.length) box.lastElementChild.remove();
  items.forEach((item, n) => {
    if (!box.children[n]) box.append(build(item, n));
    fill(box.children[n], item, n);
  });
}

// The top

function drawTop() {
  const { server: process = {}, state } = now;
  const trouble = process.trouble || "";
  $("trouble").hidden = !trouble;
  say($("trouble"), trouble);
  $("shadowed").hidden = !now.shadow;
  $("observing").hidden = now.phase !== "observing";
  const left = now.observe_seconds - now.observed_seconds;
  say($("observing").firstElementChild, left > 0
    ? `Observing: ${now.observed_seconds.toFixed(0)} of ${now.observe_seconds.toFixed(0)} s of traffic. Deadlines and states follow.`
    : "Observing: waiting for enough traffic.");
  $("observing").lastElementChild.value = now.observed_seconds / now.observe_seconds || 0;
  say($("phase"), now.phase);
  $("shadow").hidden = false;
  $("shadow").className = now.shadow ? "" : "quiet";
  say($("shadow"), now.shadow ? "Enforce" : "Shadow");
  $("shadow").title = now.control ? "" : "Control is off: no token is configured.";
  say($("version"), `Trimtab ${process.version || ""} · up ${span(process.uptime_seconds)} · pid ${process.pid || "?"}`);

  const classes = Object.values(now.upstreams);
  const sum = key => classes.reduce((total, c) => total + (c[key] || 0), 0);
  const rate = sum("requests_per_second");
  const mean = (key, of = classes) => {
    const weight = of.reduce((t, c) => t + (c.requests_per_second || 0), 0);
    return weight > 0 ? of.reduce((t, c) => t + (c[key] || 0) * (c.requests_per_second || 0), 0) / weight : null;
  };
  // Nothing is late, or on time, without a deadline.
  const due = classes.filter(c => c.deadline_seconds);
  // A generation or two behind is usual while weights change with every report.
  const behind = now.instances.filter(i => i.generation < now.generation - 2).length;
  const alone = now.instances.filter(i => !i.generation).length;
  const errors = mean("error_ratio");
  list($("tiles"), [
    ["ART per 1000 requests", number(mean("art_per_1000", due), 1), due.length ? `${percent(mean("tardy_ratio", due))} late` : "no deadline yet"],
    ["Requests per second", number(rate, 1), `${percent(errors)} errors`, errors > 0.05 && "alarm"],
    ["In flight", number(sum("in_flight"), 1), `${number(sum("waiting"), 1)} waiting`],
    ["Profile in force", now.profile, now.shadow ? `would be ${now.chosen}` : now.exploring ? "exploring" : now.decision],
    ["State", state ? `#${state.index}` : "–", state ? `${state.outside ? "outside, log-lik." : "log-likelihood"} ${number(state.log_likelihood, 1).replace("-", "−")}` : "none yet", state && state.outside && "warn"],
    ["Generation", String(now.generation), now.changed ? `changed ${span(now.time - now.changed)} ago` : now.reason],
    ["Balancers", String(now.instance_count), alone ? `${alone} on static weights` : behind ? `${behind} behind` : now.instance_count ? "up to date" : "none reports", (alone > 0 || !now.instance_count) && "alarm"],
  ], () => make("div", { className: "tile" }, make("span"), make("b"), make("span")), (tile, [name, value, note, alarm]) => {
    tile.className = `tile ${alarm || ""}`;
    say(tile.children[0], name);
    say(tile.children[1], value);
    say(tile.children[2], note);
    tile.children[2].title = note;
  });
}

function drawCharts() {
  const names = Object.keys(now.upstreams);
  const values = pick => points.map(p => ({ time: p.time, values: names.map(n => p.classes[n] ? pick(p.classes[n], n) : null) }));
  const seconds = Math.min(600, Math.max(120, points.length ? points[points.length - 1].time - points[0].time : 0));
  drawChart($("chart-art"), values((c, n) => now.upstreams[n].deadline_seconds ? c.art_per_1000 : null), { seconds, label: "ART per 1000 requests by class", none: "no deadline yet" });
  drawChart($("chart-time"), values((c, n) => {
    const deadline = now.upstreams[n].deadline_seconds;
    return deadline && c.response_time_seconds !== null ? c.response_time_seconds / deadline : null;
  }), { seconds, limit: 1, label: "Mean response time over deadline by class", none: "no deadline yet" });
  list($("legend"), names, () => make("span", {}, make("i"), make("span")), (item, name, n) => {
    item.children[0].className = `dot b${n % 8}`;
    say(item.children[1], name);
  });
}

// Classes

const FACTS = [
  ["mean", c => time(c.response_time_seconds)], ["p50", c => time(c.p50_seconds)],
  ["p99", c => time(c.p99_seconds)], ["deadline", c => time(c.deadline_seconds)],
  ["requests/s", c => number(c.requests_per_second)], ["ART / 1000", c => number(c.deadline_seconds ? c.art_per_1000 : null)],
  ["late", c => percent(c.deadline_seconds ? c.tardy_ratio : null)], ["errors", c => percent(c.error_ratio)],
  ["in flight", c => number(c.in_flight)], ["waiting", c => number(c.waiting)],
  ["service", c => time(c.service_time_seconds)], ["servers", c => String(Object.keys(c.peers).length)],
];

function buildClass() {
  const facts = make("dl", { className: "pairs" }, ...FACTS.map(([name]) => make("div", {}, make("dt", { textContent: name }), make("dd"))));
  return make("div", { className: "card class" },
    make("h3", {}, make("i"), make("span"), make("span", { className: "pill" })),
    make("div", { className: "bullet" }, make("i", { className: "p99" }), make("i"), make("i", { className: "due" })), facts);
}

function drawClasses() {
  list($("classes"), entries(now.upstreams), buildClass, (card, [name, c], n) => {
    const [dot, title, pill] = card.children[0].children;
    dot.className = `dot b${n % 8}`;
    say(title, name);
    const late = c.deadline_seconds && c.response_time_seconds > c.deadline_seconds;
    const tail = c.deadline_seconds && c.p99_seconds > c.deadline_seconds;
    say(pill, !c.requests_per_second ? "no traffic" : !c.deadline_seconds ? "no deadline yet" : late ? "late" : tail ? "p99 late" : "on time");
    pill.dataset.state = !c.requests_per_second || !c.deadline_seconds ? "" : late ? "lost" : tail ? "wait" : "live";
    const [p99, mean, due] = card.children[1].children;
    const full = Math.max(2 * (c.deadline_seconds || 0), 1.05 * (c.p99_seconds || 0)) || 1;
    p99.className = `p99 b${n % 8}`;
    mean.className = `b${n % 8}`;
    p99.style.width = part(c.p99_seconds / full);
    mean.style.width = part(c.response_time_seconds / full);
    due.style.left = part(c.deadline_seconds / full);
    due.hidden = !c.deadline_seconds;
    card.children[1].title = "filled: mean; pale: p99; line: deadline";
    FACTS.forEach(([, read], f) => say(card.children[2].children[f].children[1], read(c)));
  });
}

// Servers

function shownClasses() {
  const names = Object.keys(now.upstreams);
  const all = wide.matches && names.length <= 3;
  $("class-label").hidden = all || names.length < 2;
  const select = $("class");
  if (select.children.length !== names.length || names.some((n, i) => select.children[i].value !== n))
    select.replaceChildren(...names.map(name => make("option", { value: name, textContent: name })));
  return all ? names : [select.value || names[0]];
}

// One row a server: what it is, and what each shown class does there.
function servers() {
  const rows = new Map();
  for (const [name, c] of entries(now.upstreams))
    for (const [address, pair] of entries(c.peers)) {
      if (!rows.has(address)) {
        const report = now.servers?.[address] || {};
        rows.set(address, { address, rate: pair.r, slots: pair.k, drained: pair.d, down: report.down || 0, ejection: report.ejection || "",
          errors: report.error_ratio ?? null, in_flight: null, pairs: {} });
      }
      const row = rows.get(address);
      row.pairs[name] = { ...pair, deadline: c.deadline_seconds };
      if (pair.n !== null) row.in_flight = (row.in_flight || 0) + pair.n;
    }
  return [...rows.values()];
}

const COLUMNS = [
  ["address", "server", "first"], ["rate", "rate", "extra"], ["in_flight", "in flight", ""], ["errors", "errors", "extra"],
];
// More rows than this scroll in a box of their own.
const LONG = 20;
const PAIR = [["s", "share"], ["w", "W"], ["t", "time"]];

function key(row, column) {
  const [name, field] = column.split("\n");
  const value = field ? row.pairs[name]?.[field] : row[column];
  return value ?? -1;
}

function drawHead(classes) {
  const head = $("servers").tHead;
  const wanted = `${classes.join("\n")}|${sorted}`;
  if (head.dataset.is === wanted) return;
  head.dataset.is = wanted;
  const names = Object.keys(now.upstreams);
  const top = make("tr", {}, ...COLUMNS.map(([, , css]) => make("th", { className: css })), ...classes.map(name =>
    make("th", { className: "group start", colSpan: PAIR.length }, make("i", { className: `dot b${names.indexOf(name) % 8}` }), name)));
  const cell = (id, text, css) => {
    const th = make("th", { textContent: text, className: `${css}${sorted === id ? " sorted" : ""}` });
    th.dataset.sort = id;
    th.tabIndex = 0;
    return th;
  };
  const line = make("tr", {}, ...COLUMNS.map(([id, text, css]) => cell(id, text, css)),
    ...classes.flatMap(name => PAIR.map(([field, text], n) => cell(`${name}\n${field}`, text, n ? "" : "start"))));
  head.replaceChildren(top, line);
}

function buildRow(classes) {
  const row = make("tr", {}, make("td", { className: "first" }, make("i", { className: "lamp" }), make("button", { className: "name", type: "button" }), make("span")),
    make("td", { className: "extra" }), make("td"), make("td", { className: "extra" }));
  for (let n = 0; n < classes; n += 1)
    row.append(make("td", { className: "start" }, make("span", { className: "share" }, make("span", { className: "track" }, make("i")), make("em"))),
      make("td", {}, make("span"), make("s"), make("span")), make("td"));
  return row;
}

function drawServers() {
  const classes = shownClasses(), names = Object.keys(now.upstreams);
  drawHead(classes);
  const all = servers();
  const filter = $("filter").value.trim().toLowerCase();
  const rows = all.filter(r => r.address.toLowerCase().includes(filter));
  if (sorted) rows.sort((a, b) => {
    const [x, y] = [key(a, sorted), key(b, sorted)];
    return typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : y - x;
  });
  const count = (n, what) => n ? `, ${n} ${what}` : "";
  say($("servers-note"), `${all.length}${count(all.filter(r => r.down && !r.drained).length, "down")}${count(all.filter(r => r.drained).length, "drained")}`);
  $("servers-none").hidden = rows.length > 0;
  const body = $("servers").tBodies[0];
  $("servers").parentElement.classList.toggle("long", all.length > LONG);
  if (body.dataset.classes !== String(classes.length)) body.replaceChildren();
  body.dataset.classes = classes.length;
  const most = Math.max(0.01, ...classes.flatMap(name => rows.map(r => r.pairs[name]?.s || 0)));
  list(body, rows, () => buildRow(classes.length), (line, row) => {
    line.dataset.peer = row.address;
    line.className = row.down && !row.drained ? "down" : row.drained ? "drained" : row.in_flight === null ? "silent" : "";
    const [first, rate, flight, errors] = line.children;
    say(first.children[1], row.address);
    const tag = row.drained ? "drained" : row.ejection ? `ejected: ${row.ejection}` : row.down ? "down" : "";
    say(first.children[2], tag);
    first.children[2].className = tag && !row.drained ? "tag bad" : tag ? "tag" : "";
    say(rate, number(row.rate, 2));
    say(flight, `${number(row.in_flight, 1)}${row.slots ? ` / ${number(row.slots, 0)}` : ""}`);
    flight.className = row.slots && row.in_flight > row.slots ? "warn-text" : "";
    say(errors, percent(row.errors));
    errors.className = row.errors > 0.05 ? "extra bad-text" : "extra";
    classes.forEach((name, n) => {
      const pair = row.pairs[name];
      const [share, weight, response] = [0, 1, 2].map(c => line.children[COLUMNS.length + PAIR.length * n + c]);
      const [track, text] = share.firstElementChild.children;
      track.firstElementChild.className = `b${names.indexOf(name) % 8}`;
      track.firstElementChild.style.width = part(pair?.s / most);
      say(text, pair ? percent(pair.s, pair.s < 0.0995 && pair.s > 0 ? 1 : 0) : "");
      text.className = pair?.s ? "" : "idle";
      const struck = now.shadow && pair?.h && !pair.p && Math.abs(pair.h / pair.w - 1) > 0.005;
      say(weight.children[0], pair?.p ? "pin" : "");
      weight.children[0].className = pair?.p ? "tag pin" : "";
      say(weight.children[1], struck ? number(pair.h, 2) : "");
      say(weight.children[2], pair ? number(pair.w, 2) : "");
      say(response, pair ? time(pair.t) : "");
      response.className = pair?.deadline && pair.t > pair.deadline ? "bad-text" : "";
    });
  });
}

// The journal and the balancers

function drawJournal() {
  say($("journal-note"), journal.length ? "newest first" : "none yet");
  list($("journal"), journal, () => make("li", {}, make("time"), make("span"), make("p")), (item, entry) => {
    const [when, kind, text] = item.children;
    const date = new Date(1000 * entry.time);
    say(when, date.toLocaleTimeString([], { hour12: false }));
    when.dateTime = date.toISOString();
    when.title = date.toLocaleString();
    kind.className = `kind ${/^[a-z]+$/.test(entry.kind) ? entry.kind : ""}`;
    say(kind, entry.kind || "");
    const facts = [`generation ${entry.generation}`];
    if (entry.changes > 1) facts.push(`${entry.changes} changes`);
    if (entry.who) facts.push(`by ${entry.who}`);
    if (entry.art_per_1000 !== null && entry.art_per_1000 !== undefined) facts.push(`ART ${number(entry.art_per_1000)} per 1000`);
    text.replaceChildren(`${entry.reason} `, make("small", { textContent: `· ${facts.join(" · ")}` }));
  });
}

function drawBalancers() {
  const more = now.instance_count - now.instances.length;
  say($("balancers-note"), more > 0 ? `${now.instances.length} of ${now.instance_count}` : String(now.instance_count));
  list($("balancers"), now.instances, () => make("li", {}, make("b"), make("span")), (item, i) => {
    say(item.children[0], i.name);
    say(item.children[1], i.generation ? `generation ${i.generation} · ${span(i.age_seconds)} ago` : "static weights");
    item.children[1].className = i.generation ? "muted" : "bad-text";
  });
}

// One server: what the rule sees, and orders

const WHY = [["class"], ["W", p => number(p.weight, 2)], ["a", p => number(p.affinity, 2)], ["rate", p => number(p.rate, 2)],
  ["in flight", p => `${number(p.in_flight, 0)}${p.slots ? ` / ${p.slots}` : ""}`], ["own", p => time(p.own_seconds)],
  ["wait", p => time(p.wait_seconds)], ["score", p => number(1000 * p.score, 2)], ["rank", p => p.rank ? String(p.rank) : "–"]];

async function drawPeer(address) {
  const names = entries(now.upstreams).filter(([, c]) => c.peers[address]).map(([name]) => name);
  const told = await Promise.all(names.map(name =>
    fetch(`explain.json?upstream=${encodeURIComponent(name)}&peer=${encodeURIComponent(address)}`).then(a => a.json()).catch(() => ({ error: 1 }))));
  if (open !== address) return;
  $("peer-table").tHead.replaceChildren(make("tr", {}, ...WHY.map(([text], n) => make("th", { textContent: text, className: n ? "" : "first" }))));
  $("peer-table").tBodies[0].replaceChildren(...names.map((name, n) => {
    const peer = told[n].peers?.[address];
    return make("tr", {}, make("td", { className: "first", textContent: name }), ...WHY.slice(1).map(([, read]) => make("td", { textContent: peer ? read(peer) : "–" })));
  }));
  const first = told.find(t => !t.error);
  const change = first?.last_change;
  say($("peer-why"), !first ? "" : `${first.instance ? `As ${first.instance} sees it. ` : "No balancer reports. "}Score = (own · (1 + 20 · errors + …) + wait) / W in ms; the least is picked.${change ? ` Last change: generation ${change.from} to ${change.to}, ${change.reason}.` : ""}`);
}

function drawDialog() {
  if (!open) return;
  const row = servers().find(r => r.address === open);
  if (!row) return;
  say($("peer-facts"), `${row.drained ? "drained" : row.ejection ? `ejected for ${row.ejection}` : row.down ? "down" : "in use"} · rate ${number(row.rate, 2)} · ${number(row.in_flight)} in flight${row.slots ? ` of ${row.slots} slots` : ", slots unknown"}`);
  say($("drain"), row.drained ? "Undrain" : "Drain");
  $("drain").className = row.drained ? "" : "quiet";
  const pair = row.pairs[$("pin-class").value];
  $("unpin").disabled = !pair?.p;
}

function openPeer(address) {
  open = address;
  say($("peer-name"), address);
  say($("answer"), now.control ? "" : "Control is off: set token_file in [policy] of the policy server.");
  $("peer-orders").disabled = $("drain").disabled = !now.control;
  const names = entries(now.upstreams).filter(([, c]) => c.peers[address]).map(([name]) => name);
  $("pin-class").replaceChildren(...names.map(name => make("option", { value: name, textContent: name })));
  $("pin-weight").value = number(now.upstreams[names[0]].peers[address].w, 2);
  $("peer-table").tBodies[0].replaceChildren();
  $("why").value = "";
  drawDialog();
  $("peer").showModal();
  drawPeer(address);
}

async function orderPeer(action, body) {
  const why = $("why").value.trim();
  const { ok, text } = await order(action, why ? { ...body, why } : body);
  say($("answer"), text || "");
  $("answer").className = ok ? "" : "bad-text";
}

// Events

function draw() {
  if (!now) return;
  drawTop();
  drawCharts();
  drawClasses();
  drawServers();
  drawBalancers();
  drawDialog();
}

function link(state, text) {
  $("link").dataset.state = state;
  say($("link"), text);
}

async function loadHistory() {
  try {
    points = (await (await fetch("history.json")).json()).points;
    draw();
  } catch { /* the next event brings a point */ }
}

function took(status) {
  const process = `${status.server?.pid} ${status.epoch}`;
  // Another process: its history, not ours, is what its numbers belong to.
  if (process !== server) loadHistory();
  server = process;
  now = status;
  came = Date.now();
  const point = status.point;
  if (point && (!points.length || point.time > points[points.length - 1].time)) points = [...points.slice(-299), point];
  draw();
}

function listen() {
  const events = new EventSource("events");
  events.addEventListener("status", event => took(JSON.parse(event.data)));
  events.addEventListener("journal", event => { journal = JSON.parse(event.data); drawJournal(); });
  events.onopen = () => { server = ""; };
  events.onerror = () => {
    link("lost", "reconnecting");
    // The browser tries again by itself, unless it was answered by an error.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  };
}

setInterval(() => {
  if (!came) return;
  const age = (Date.now() - came) / 1000;
  document.body.classList.toggle("stale", age > 5);
  const silent = now.statistics_age_seconds === null || now.statistics_age_seconds > 10;
  if (age > 5) link("lost", `no data for ${span(age)}`);
  else if (now.server?.trouble) link("lost", "trouble");
  else if (silent) link("wait", now.statistics_age_seconds === null ? "no reports yet" : `reports ${span(now.statistics_age_seconds)} old`);
  else link("live", "live");
}, 500);

$("servers").tHead.addEventListener("click", event => {
  const id = event.target.closest("th")?.dataset.sort;
  if (id === undefined) return;
  sorted = sorted === id ? "" : id;
  drawServers();
});
$("servers").tHead.addEventListener("keydown", event => { if (event.key === "Enter") event.target.click(); });
$("servers").tBodies[0].addEventListener("click", event => {
  const address = event.target.closest("tr")?.dataset.peer;
  if (address) openPeer(address);
});
$("filter").addEventListener("input", () => now && drawServers());
$("class").addEventListener("change", () => now && drawServers());
$("peer").addEventListener("close", () => { open = null; });
$("pin-class").addEventListener("change", () => {
  $("pin-weight").value = number(now.upstreams[$("pin-class").value].peers[open].w, 2);
  drawDialog();
});
$("pin").addEventListener("click", () => orderPeer("pin", { upstream: $("pin-class").value, peer: open, weight: $("pin-weight").valueAsNumber }));
$("unpin").addEventListener("click", () => orderPeer("unpin", { upstream: $("pin-class").value, peer: open }));
$("drain").addEventListener("click", () => orderPeer($("drain").textContent.toLowerCase(), { peer: open }));
$("shadow").addEventListener("click", async () => {
  if (!now.control) { alert("Control is off: set token_file in [policy] of the policy server's configuration."); return; }
  const { ok, text } = await order("shadow", { on: !now.shadow });
  if (!ok && text) alert(text);
});
addEventListener("resize", draw);
wide.addEventListener("change", draw);
listen();
