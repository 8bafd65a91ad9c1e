// The status page: jobs as the daemon's stream tells of them.
//
// - State is `jobs` (id → summary) and, for the one that is open, `details`. `draw` makes the page from it;
//   nothing else touches the document below #filters, #jobs and #details.
// - Text from the daemon becomes text nodes only, never markup.
// - The token is in sessionStorage and in the header of each request, never in an address.
// - One stream tells of all jobs. It is opened before the list is read, so that no change falls in between;
//   of two values of a job the one with the higher revision counts.

const API = "/api/v1/conversions";
const TOKEN = "nydus-service-token";
const SILENCE_MS = 40_000; // the daemon sends a sign of life every 15 seconds
const RETRY_MAX_S = 15;
const DRAW_EVERY_MS = 150;
const ID = /^[0-9a-f]{1,32}$/; // of a job, or its first digits; anything else would be another path of the API
const SHOWN = 150; // jobs of a group before "more"

const STATES = {
  queued: "Queued",
  running: "Running",
  verifying: "Verifying",
  done: "Done",
  failed: "Failed",
  cancelled: "Cancelled",
};
const UNDER_WAY = new Set(["running", "verifying"]);
const FINISHED = new Set(["done", "failed", "cancelled"]);
const STAGES = ["preparing", "packing", "merging", "verifying", "finishing"];

const $ = (id) => document.getElementById(id);

// ---------------------------------------------------------------- document

// A description of an element: tag, attributes ("class", "title", …; functions are listeners, `style` an
// object, `key` tells siblings apart when they move), children. `patch` makes the document like it and
// keeps what is right already: focus, selection and scroll positions stay.
const h = (tag, attributes, ...children) => ({
  tag,
  attributes: attributes ?? {},
  children: children.flat().filter((child) => child !== null && child !== undefined && child !== false && child !== ""),
});

// Names and errors have foreign text: control characters, and marks that reorder a line, are shown as escapes.
const visible = (text) =>
  text.replace(/[^\P{C}\n\t]|[\u2028\u2029]/gu, (each) => {
    const code = each.codePointAt(0).toString(16);
    return code.length < 3 ? `\\x${code.padStart(2, "0")}` : code.length < 5 ? `\\u${code.padStart(4, "0")}` : `\\U${code.padStart(8, "0")}`;
  });

function patch(parent, wanted) {
  const keyed = new Map();
  for (const node of parent.childNodes) if (node.made?.attributes.key) keyed.set(node.made.attributes.key, node);
  const kept = new Set(wanted.map((each) => each.attributes?.key && keyed.get(each.attributes.key)));
  for (const node of keyed.values()) if (!kept.has(node)) node.remove();
  let at = parent.firstChild;
  for (const each of wanted) {
    const key = each.attributes?.key;
    let node = key ? keyed.get(key) : fits(at, each) ? at : null;
    node ??= each.tag ? document.createElement(each.tag) : document.createTextNode("");
    if (node !== at) {
      if (at && node === at.nextSibling && !fits(at, each)) parent.append(at); // what was before it moves, not all after it
      else parent.insertBefore(node, at);
    }
    update(node, each);
    at = node.nextSibling;
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

const fits = (node, wanted) =>
  node && (wanted.tag ? node.made?.tag === wanted.tag && !node.made.attributes.key : node.nodeType === Node.TEXT_NODE);

function update(node, wanted) {
  if (!wanted.tag) {
    const text = visible(String(wanted));
    if (node.data !== text) node.data = text;
    return;
  }
  const before = node.made?.attributes ?? {};
  for (const name in before) if (!(name in wanted.attributes)) assign(node, name, null);
  for (const [name, value] of Object.entries(wanted.attributes)) {
    if (name === "style") for (const [property, text] of Object.entries(value)) node.style.setProperty(property, text);
    else if (before[name] !== value) assign(node, name, value);
  }
  node.made = wanted;
  patch(node, wanted.children);
}

function assign(node, name, value) {
  if (name === "key") return;
  if (typeof value === "function" || name.startsWith("on")) node[name] = value;
  else if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else node.setAttribute(name, value === true ? "" : visible(String(value)));
}

// ---------------------------------------------------------------- words

function size(bytes) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (bytes < 999.5) return `${bytes.toFixed(unit === "B" || bytes >= 99.95 ? 0 : 1)} ${unit}`;
    bytes /= 1000;
  }
  return `${bytes.toFixed(1)} TB`;
}

function span(seconds) {
  seconds = Math.max(0, seconds);
  if (seconds < 99.95) return `${seconds.toFixed(seconds < 9.995 ? 2 : 1)} s`;
  return coarse(seconds);
}

function coarse(seconds) {
  seconds = Math.max(0, Math.round(seconds));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${String(seconds % 60).padStart(2, "0")} s`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(minutes / 1440)} days`;
}

function ago(time) {
  const seconds = (now() - Date.parse(time)) / 1000;
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} days ago`;
}

function clock(time) {
  const date = new Date(time);
  const day = date.toDateString() === new Date(now()).toDateString() ? "" : `${date.toLocaleDateString()} `;
  return day + date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
}

const when = (time) => time && h("time", { datetime: time, title: new Date(time).toLocaleString() }, clock(time));
const counted = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const percent = (part, whole) => (whole ? Math.min(100, Math.floor((100 * part) / whole)) : 0);
const short = (digest) => digest.replace(/^([a-z0-9]+:)?([0-9a-f]{12}).*$/, "$2");

let skew = 0; // the daemon's clock less ours, ms
const now = () => Date.now() + skew;
const seconds = (from, to) => ((to ? Date.parse(to) : now()) - Date.parse(from)) / 1000;

// ---------------------------------------------------------------- requests

class Refused extends Error {} // the token

async function request(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  if (!token) throw new Refused();
  const response = await fetch(path, {
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
    ...options,
    headers: { Authorization: `Bearer ${token}`, ...options.headers },
  });
  const date = Date.parse(response.headers.get("Date"));
  if (date && Math.abs(date + 500 - now()) > 1500) skew = date + 500 - Date.now(); // the header has whole seconds
  if (response.status === 401) throw new Refused();
  if (!response.ok) {
    const answer = await response.json().catch(() => ({ message: `the daemon answered ${response.status}` }));
    throw Object.assign(new Error(answer.message), { status: response.status });
  }
  return response;
}

// Server-sent events, by fetch: an EventSource cannot send the token. Returns when the stream says "end";
// throws when it breaks off or falls silent.
async function follow(path, signal, opened, onJob) {
  const ending = new AbortController();
  const silent = new Error("nothing was heard from the daemon");
  const end = () => ending.abort(signal.reason);
  let timer = setTimeout(() => ending.abort(silent), SILENCE_MS);
  signal.addEventListener("abort", end);
  try {
    const response = await request(path, { signal: ending.signal, headers: { Accept: "text/event-stream" } });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    opened();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the daemon closed the stream");
      clearTimeout(timer);
      timer = setTimeout(() => ending.abort(silent), SILENCE_MS);
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/s, 2)));
        if (fields.event === "job") onJob(JSON.parse(fields.data));
        if (fields.event === "end") return;
      }
    }
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", end);
    ending.abort();
  }
}

// ---------------------------------------------------------------- state

let jobs = new Map();
let older = ""; // address of the next page of the list
let filter = { state: "", text: "" };
let more = {}; // group: how many of it are shown
let open = null; // { id, job, error, stop, live, asking, told }
let link = { state: "connecting", tries: 0, at: 0, heard: 0, why: "" };
let session = null; // AbortController of all that a signed-in page does

function learn(job) {
  const known = jobs.get(job.id);
  if (!known || job.revision >= known.revision) jobs.set(job.id, job);
  if (open?.id === job.id && !open.live && open.job && job.revision > open.job.revision) watchOne(job.id);
  link.heard = Date.now();
  schedule();
}

async function readList() {
  const [active, latest] = await Promise.all([
    request(`${API}?state=running,verifying&limit=10000`),
    request(API),
  ]);
  const next = /<([^>]+)>; rel="next"/.exec(latest.headers.get("Link") ?? "");
  older = next ? next[1] : "";
  return [...(await active.json()), ...(await latest.json())];
}

async function readOlder() {
  const response = await request(older);
  const next = /<([^>]+)>; rel="next"/.exec(response.headers.get("Link") ?? "");
  older = next ? next[1] : "";
  for (const job of await response.json()) learn(job);
}

// Follows all jobs for as long as somebody is signed in.
async function stayConnected(signal) {
  while (!signal.aborted) {
    try {
      let changed = new Map(); // came by the stream while the list was read
      let listing = null;
      await follow(
        `${API}/events`,
        signal,
        () => {
          listing = readList().then((list) => {
            jobs = new Map(list.map((job) => [job.id, job]));
            for (const job of changed.values()) learn(job);
            changed = null;
            link = { state: "live", tries: 0, at: 0, heard: Date.now(), why: "" };
            if (open && !open.live && !FINISHED.has(open.job?.state)) watchOne(open.id);
            schedule();
          });
          listing.catch((error) => lose(error, signal));
        },
        (job) => (changed ? changed.set(job.id, job) : learn(job)),
      );
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused) return leave("The daemon refuses this token.");
      link = { ...link, state: "lost", tries: link.tries + 1, why: error.message };
      await pause(signal);
    }
  }
}

// The stream is there but the list cannot be read: begin anew, or ask for the token.
function lose(error, signal) {
  if (signal.aborted) return;
  if (error instanceof Refused) leave("The daemon refuses this token.");
  else begin(link.tries + 1, error.message);
}

function begin(tries = 0, why = "") {
  session?.abort();
  session = new AbortController();
  const { signal } = session;
  if (!tries) return void stayConnected(signal);
  link = { ...link, state: "lost", tries, why };
  void pause(signal).then(() => stayConnected(signal));
}

let hurry = () => {};

// Waits before the next try: longer each time, not all pages at once, and no longer when the network is back.
async function pause(signal) {
  const wait = Math.min(RETRY_MAX_S, 2 ** Math.min(link.tries - 1, 5)) * (0.75 + Math.random() / 2);
  link.at = Date.now() + wait * 1000;
  schedule();
  await new Promise((resolve) => {
    const timer = setTimeout(resolve, wait * 1000);
    hurry = () => (clearTimeout(timer), resolve());
    signal.addEventListener("abort", hurry, { once: true });
  });
  if (signal.aborted) return;
  link = { ...link, state: "connecting", at: 0 };
  schedule();
}

const UNKNOWN = "This job is not known, or no longer: it has gone with the history.";

// Follows the job that is open, to its end. Tries again when the connection is lost.
async function watchOne(id) {
  open?.stop?.();
  const stopping = new AbortController();
  const { signal } = stopping;
  const known = open?.id === id ? open.job : null;
  const mine = (open = { id, job: known, error: "", stop: () => stopping.abort(), live: true, asking: "", told: "" });
  schedule();
  if (!ID.test(id)) {
    Object.assign(mine, { error: UNKNOWN, live: false });
    return;
  }
  try {
    await follow(`${API}/${id}/events`, signal, () => {}, (job) => {
      mine.job = job;
      learn(job);
    });
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 404 || error.status === 400) mine.error = UNKNOWN;
    else if (link.state === "live") setTimeout(() => !signal.aborted && open === mine && watchOne(id), 1000);
    // else `stayConnected` begins it again when the daemon answers
  }
  mine.live = false;
  schedule();
}

async function ask(action) {
  const mine = open;
  mine.asking = action;
  mine.told = "";
  schedule();
  try {
    const job = await (await request(`${API}/${mine.id}/${action}`, { method: "POST" })).json();
    if (mine.job && job.revision >= mine.job.revision) mine.job = job;
    if (!mine.live && open === mine) void watchOne(mine.id);
    learn(job);
  } catch (error) {
    if (error instanceof Refused) return leave("The daemon refuses this token.");
    mine.told = error.message;
  }
  mine.asking = "";
  schedule();
}

// ---------------------------------------------------------------- what is shown

let due = 0;
let drawn = 0;

function schedule() {
  if (due) return;
  const wait = Math.max(0, drawn + DRAW_EVERY_MS - performance.now());
  due = setTimeout(() => requestAnimationFrame(draw), wait);
}

function draw() {
  due = 0;
  drawn = performance.now();
  if (!session) return;
  drawLink();
  const matching = [...jobs.values()].filter(matches);
  patch($("filters"), filters(matching));
  patch($("jobs"), list(matching.filter((job) => !filter.state || filter.state === job.state)));
  $("details").hidden = !open;
  document.body.classList.toggle("opened", Boolean(open));
  patch($("details"), open ? details() : []);
  document.title = open?.job ? `${visible(title(open.job))} – nydus-service` : "nydus-service";
}

const title = (job) => `${STATES[job.state]}: ${job.source.split("/").pop()}`;
const matches = (job) => !filter.text || `${job.source} ${job.target} ${job.id}`.toLowerCase().includes(filter.text);

function drawLink() {
  const word = { live: "Live", connecting: "Connecting…", lost: "Not connected" }[link.state];
  $("link").className = link.state;
  if ($("link").textContent !== word) $("link").textContent = word;
  const lost = $("lost");
  lost.hidden = link.state === "live" || !link.tries;
  const left = Math.max(0, Math.ceil((link.at - Date.now()) / 1000));
  patch(lost, lost.hidden ? [] : [
    h("span", {}, h("strong", {}, "Connection lost"), link.heard ? `; this was so at ${clock(link.heard + skew)}. ` : ". "),
    h("span", { "aria-live": "off" }, link.state === "connecting" ? "Trying again…" : `Trying again in ${left} s. `),
    link.state === "lost" && h("button", { type: "button", class: "quiet", onclick: () => hurry() }, "Try now"),
  ]);
}

function filters(matching) {
  const counts = {};
  for (const job of matching) counts[job.state] = (counts[job.state] ?? 0) + 1;
  const one = (state, label, count) =>
    h("button",
      {
        type: "button",
        class: `chip ${state || "all"}`,
        "aria-pressed": String(filter.state === state),
        onclick: () => choose(state),
      },
      state && h("i", { class: `dot ${state}`, "aria-hidden": "true" }),
      label,
      h("b", {}, (count ?? 0).toLocaleString("en")));
  return [
    one("", "All", matching.length),
    ...Object.entries(STATES)
      .filter(([state]) => counts[state] || filter.state === state || state !== "cancelled")
      .map(([state, label]) => one(state, label, counts[state])),
  ];
}

function choose(state) {
  filter.state = filter.state === state ? "" : state;
  more = {};
  draw();
}

const by = (key) => (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0);

function list(shown) {
  const groups = [
    ["Under way", shown.filter((job) => UNDER_WAY.has(job.state)).sort(by((job) => job.started ?? job.created))],
    ["Waiting", shown.filter((job) => job.state === "queued").sort((a, b) => b.priority - a.priority || by((job) => job.created)(a, b))],
    ["Finished", shown.filter((job) => FINISHED.has(job.state)).sort(by((job) => job.finished ?? job.created)).reverse()],
  ];
  const sections = groups.filter(([, members]) => members.length).map(([name, members]) => group(name, members));
  if (!sections.length) sections.push(nothing());
  if (older) sections.push(h("button", { key: "older", type: "button", class: "more", onclick: () => readOlder().catch(() => {}) }, "Load older jobs"));
  return sections;
}

function nothing() {
  if (link.state !== "live" && !jobs.size) return h("p", { key: "empty", class: "empty" }, "Waiting for the daemon…");
  if (jobs.size) return h("p", { key: "empty", class: "empty" }, "No job is like that.");
  return h("div", { key: "empty", class: "empty" },
    h("p", {}, "No jobs yet."),
    h("p", {}, "Ask for one, for instance with"),
    h("code", {}, "ctr images label IMAGE nydus-service/convert=IMAGE-nydus"));
}

function group(name, members) {
  const limit = more[name] ?? SHOWN;
  const hidden = members.length - limit;
  return h("section", { key: name, "aria-label": name },
    h("h2", {}, name, h("b", {}, members.length.toLocaleString("en"))),
    h("ol", {}, members.slice(0, limit).map(row)),
    hidden > 0 && h("button", { key: "more", type: "button", class: "more", onclick: () => ((more[name] = limit + 500), draw()) },
      `Show ${counted(Math.min(hidden, 500), "more job", "more jobs")}${hidden > 500 ? ` of ${hidden.toLocaleString("en")}` : ""}`));
}

function row(job) {
  return h("li", { key: job.id },
    h("a", { class: `row ${job.state}`, href: `#${job.id}`, "aria-current": open?.id === job.id ? "true" : null },
      state(job.state),
      h("span", { class: "images" }, image(job.source), h("span", { class: "target" }, h("i", { "aria-label": "to" }, "→ "), image(job.target))),
      h("span", { class: "how" }, progress(job)),
      h("span", { class: "times" }, lasted(job), h("span", { class: "when" }, !UNDER_WAY.has(job.state) && occasion(job)))));
}

const state = (word) => h("span", { class: "state" }, h("i", { class: `dot ${word}`, "aria-hidden": "true" }), STATES[word]);

// The last part of a name tells images apart: it is what stays when there is no room.
function image(name, whole = false) {
  const [bare, digest] = name.split(/@(?=sha\d+:)/);
  const cut = bare.lastIndexOf("/") + 1;
  return h("bdi", { class: "image", title: name },
    cut > 0 && h("span", { class: "path" }, bare.slice(0, cut)),
    h("span", { class: "name" }, bare.slice(cut)),
    digest && h("span", { class: "path pin" }, whole ? `@${digest}` : `@${digest.slice(0, 14)}…`));
}

function progress(job) {
  const { stage, bytes_in, bytes_total, eta_s, layers_packed, layers_total } = job.progress;
  if (UNDER_WAY.has(job.state)) {
    const done = percent(bytes_in, bytes_total);
    const packing = stage === "packing";
    return [
      bar(packing ? done : null, job.cancel_requested ? "Cancelling" : `${stage}, ${done} %`),
      h("span", { class: "figures" },
        job.cancel_requested ? "cancelling" : packing ? `${done} %` : stage || "starting",
        packing && layers_total > 0 && h("span", {}, `${layers_packed}/${layers_total} layers`),
        packing && eta_s !== null && h("span", {}, `${coarse(eta_s)} left`)),
    ];
  }
  if (job.state === "done") {
    if (job.outcome === "unchanged") return h("span", { class: "quietly" }, "was there already");
    return h("span", { class: "sizes" }, size(job.source_size), " → ", size(job.target_size));
  }
  if (job.error && job.state === "queued") return h("span", { class: "fault", title: job.error.message }, `${again(job)}: ${job.error.code}`);
  if (job.state === "failed" && job.error) return h("span", { class: "fault", title: job.error.message }, job.error.message.split("\n")[0]);
  if (job.state === "queued" && stage) return h("span", { class: "fault" }, stage); // waits for space or memory
  if (job.state === "queued" && job.priority) return h("span", { class: "quietly" }, `priority ${job.priority}`);
  return null;
}

function again(job) {
  const left = job.not_before ? (Date.parse(job.not_before) - now()) / 1000 : 0;
  return left > 0 ? `again in ${coarse(left)}` : "again soon";
}

function bar(part, label) {
  const attributes = { class: part === null ? "bar busy" : "bar", role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" };
  if (part !== null) attributes["aria-valuenow"] = String(part);
  return h("span", attributes, h("span", { style: { width: part === null ? "" : `${part}%` } }));
}

const lasted = (job) => job.started && h("span", { class: "lasted" }, job.finished ? span(seconds(job.started, job.finished)) : coarse(seconds(job.started)));

function occasion(job) {
  const time = job.finished ?? job.created;
  return h("time", { datetime: time, title: new Date(time).toLocaleString() }, ago(time));
}

// ---------------------------------------------------------------- one job

function details() {
  const { job, error } = open;
  const close = h("a", { key: "close", class: "close", href: "#", onclick: shut, "aria-label": "Close", "aria-keyshortcuts": "Escape" },
    h("span", { class: "narrow" }, "← All jobs"), h("span", { class: "wide", "aria-hidden": "true" }, "✕"));
  if (!job) return [close, h("p", { key: "none", class: "empty" }, error || "Reading…")];
  return [
    close,
    h("h2", { key: "name", id: "opened", tabindex: "-1" }, image(job.source, true)),
    h("p", { key: "target", class: "target" }, "→ ", image(job.target, true)),
    h("div", { key: "bar", class: "actions" }, state(job.state), job.outcome === "unchanged" && h("span", { class: "quietly" }, "unchanged"), buttons(job)),
    error && h("p", { key: "gone", class: "fault" }, error),
    fault(job),
    steps(job),
    under(job),
    facts(job),
    layers(job),
    platforms(job),
    result(job),
    options(job),
  ].filter(Boolean);
}

function buttons(job) {
  const button = (action, label, busy) =>
    h("button", { key: action, type: "button", disabled: Boolean(open.asking), onclick: () => press(action) },
      open.asking === action ? busy : open.sure === action ? `Really ${label.toLowerCase()}?` : label);
  return h("span", { class: "buttons" },
    open.told && h("span", { class: "fault", role: "alert" }, open.told),
    !FINISHED.has(job.state) && !job.cancel_requested && button("cancel", "Cancel", "Cancelling…"),
    job.cancel_requested && !FINISHED.has(job.state) && h("span", { class: "quietly" }, "cancelling…"),
    (job.state === "failed" || job.state === "cancelled") && button("retry", "Retry", "Retrying…"));
}

// Cancelling loses work: the first press asks, the second within a few seconds does it.
function press(action) {
  const mine = open;
  if (action !== "cancel" || mine.sure === action) {
    mine.sure = "";
    return ask(action);
  }
  mine.sure = action;
  setTimeout(() => ((mine.sure = ""), schedule()), 4000);
  draw();
}

function fault(job) {
  if (!job.error || job.state === "done") return null;
  return h("section", { key: "fault", class: job.state === "queued" ? "error passing" : "error", "aria-label": "Error" },
    h("p", {}, h("code", {}, job.error.code), job.state === "queued" ? ` – tried ${again(job)}` : job.error.retryable ? " – another try may do better" : ""),
    h("pre", {}, job.error.message));
}

function steps(job) {
  if (job.state === "queued" || job.outcome === "unchanged" || !job.progress.stage) return null;
  const at = job.state === "done" ? STAGES.length : STAGES.indexOf(job.progress.stage);
  const names = job.options?.verify === "none" ? STAGES.filter((name) => name !== "verifying") : STAGES;
  return h("ol", { key: "steps", class: `steps ${job.state}`, "aria-label": "Stages" },
    names.map((name) => {
      const place = STAGES.indexOf(name);
      const how = place < at ? "past" : place === at ? "present" : "future";
      return h("li", { class: how, "aria-current": how === "present" ? "step" : null }, name);
    }));
}

function under(job) {
  if (!UNDER_WAY.has(job.state)) return null;
  const { stage, bytes_in, bytes_total, bytes_out, eta_s } = job.progress;
  const packing = stage === "packing";
  return h("div", { key: "under", class: "under" },
    bar(packing ? percent(bytes_in, bytes_total) : null, stage),
    h("p", { class: "figures" },
      h("span", {}, bytes_total ? `${size(bytes_in)} of ${size(bytes_total)} read` : "looking at the image"),
      bytes_out > 0 && h("span", {}, `${size(bytes_out)} written`),
      packing && eta_s !== null && h("span", {}, `${coarse(eta_s)} left`)));
}

function facts(job) {
  const built = job.result?.builder;
  const rows = [
    ["Asked for", [when(job.created), ` by ${job.origin}`]],
    ["Began", job.started && [when(job.started), h("span", { class: "quietly" }, ` after ${span(seconds(job.created, job.started))}`)]],
    ["Ended", job.finished && [when(job.finished), job.started && h("span", { class: "quietly" }, ` after ${span(seconds(job.started, job.finished))}`)]],
    ["Sizes", job.state === "done" && job.target_size > 0 && `${size(job.source_size)} → ${size(job.target_size)}, ${ratio(job.target_size, job.source_size)}`],
    ["Namespace", job.namespace],
    ["Tries", job.attempts > 1 && `${job.attempts}${job.interruptions ? `, ${counted(job.interruptions, "interruption")}` : ""}`],
    ["Priority", job.priority !== 0 && String(job.priority)],
    ["Builder", built && `${built.name} ${built.version}`],
    ["Job", h("code", { class: "id" }, job.id)],
  ];
  return h("dl", { key: "facts", class: "facts" }, pairs(rows));
}

const pairs = (rows) => rows.filter(([, value]) => value).map(([name, value]) => h("div", { key: name }, h("dt", {}, name), h("dd", {}, value)));
const ratio = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "");

function table(key, name, note, heads, rows) {
  if (!rows.length) return null;
  return h("section", { key, "aria-label": name },
    h("h3", {}, name, note && h("b", {}, note)),
    h("table", { class: key },
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, rows)));
}

function layers(job) {
  const found = [...(job.progress.layers ?? [])];
  const known = new Set(found.map((layer) => layer.digest));
  const results = (job.result?.images ?? []).flatMap((each) => each.layers);
  for (const layer of results) {
    if (known.has(layer.source.digest)) continue; // a job of before the daemon was restarted
    known.add(layer.source.digest);
    found.push({ digest: layer.source.digest, size: layer.source.size, state: "packed", bytes_out: layer.blob.size, duration_s: layer.duration_s, blob: layer.blob.digest });
  }
  const stopped = FINISHED.has(job.state) && job.state !== "done";
  const packed = found.filter((layer) => layer.state === "packed").length;
  return table("layers", "Layers", packed < found.length ? `${packed} of ${found.length}` : String(found.length),
    ["Layer", "Size", "Blob", "Ratio", "Time"],
    found.map((layer) => layerRow(layer, stopped)));
}

function layerRow(layer, stopped) {
  const packed = layer.state === "packed";
  const packing = layer.state === "packing" && !stopped;
  return h("tr", { key: layer.digest, class: layer.state },
    h("th", { scope: "row", title: layer.blob ? `${layer.digest}\nblob ${layer.blob}` : layer.digest }, h("code", {}, short(layer.digest))),
    h("td", {}, size(layer.size)),
    h("td", {}, layer.bytes_out > 0 ? size(layer.bytes_out) : ""),
    h("td", { class: "part" },
      packed ? ratio(layer.bytes_out, layer.size)
        : packing ? bar(percent(layer.bytes_in, layer.size), `layer ${short(layer.digest)}`)
          : h("span", { class: "quietly" }, layer.state === "packing" ? "stopped" : stopped ? "–" : "waiting")),
    h("td", {}, packed ? (layer.duration_s ? span(layer.duration_s) : "reused") : ""));
}

function platforms(job) {
  const images = job.progress.images ?? [];
  return table("platforms", "Platforms", images.length > 1 ? String(images.length) : "",
    ["Platform", "Merged", "Verified", "Names"],
    images.map((each) => h("tr", { key: each.image, class: each.stage },
      h("th", { scope: "row", title: each.image }, each.image.startsWith("sha256:") ? h("code", {}, short(each.image)) : each.image),
      h("td", {}, each.merge_duration_s ? span(each.merge_duration_s) : each.stage === "merging" ? "merging…" : "–"),
      h("td", {}, each.verify_duration_s ? span(each.verify_duration_s) : each.stage === "verifying" ? "verifying…" : "–"),
      h("td", {}, each.entries ? each.entries.toLocaleString("en") : "–"))));
}

function result(job) {
  const { result } = job;
  if (!result) return null;
  const checks = result.images.filter((each) => each.verification).map((each) => [each.platform ?? "image", each.verification]);
  return h("section", { key: "result", "aria-label": "Result" },
    h("h3", {}, "Result"),
    result.reason && h("p", {}, `Nothing was to be done: ${result.reason}.`),
    h("dl", { class: "facts" }, pairs([
      ["Digest", h("code", { class: "digest" }, result.target.descriptor.digest)],
      ["Source", h("code", { class: "digest" }, result.source.descriptor.digest)],
      ...checks.map(([name, check]) => [`Verified${checks.length > 1 ? ` ${name}` : ""}`, verified(check)]),
      ["Verified", !checks.length && (result.verified === "none" ? "not at all, as was asked for" : result.verified)],
      ["Kept", result.kept.length > 0 && passed(result.kept)],
      ["Left out", result.dropped.length > 0 && passed(result.dropped)],
    ])));
}

const passed = (plans) => h("ul", {}, plans.map((plan) => h("li", {}, h("code", { title: plan.descriptor.digest }, short(plan.descriptor.digest)), ` ${plan.reason}`)));

function verified(check) {
  const rest = check.legitimate.map((each) => `${each.reason} (${each.count.toLocaleString("en")})`).join(", ");
  return [
    h("strong", { class: check.verdict === "equal" ? "good" : "fault" }, check.verdict),
    ` to the source: ${counted(check.entries, "name")}, ${size(check.bytes)} (${check.mode}`,
    check.bytes_read > 0 && `, ${size(check.bytes_read)} read back`,
    ")",
    rest && h("span", { class: "quietly" }, `; set aside: ${rest}`),
  ];
}

function options(job) {
  if (!job.options) return null;
  const words = { chunk_size: (value) => `0x${value.toString(16)}` };
  const rows = Object.entries(job.options)
    .filter(([, value]) => value !== false && !(Array.isArray(value) && !value.length))
    .map(([name, value]) => [name.replaceAll("_", " "), words[name]?.(value) ?? (value === true ? "yes" : Array.isArray(value) ? value.join(", ") : String(value))]);
  return h("details", { key: "options" }, h("summary", {}, "Options"), h("dl", { class: "facts" }, pairs(rows)));
}

// ---------------------------------------------------------------- coming and going

function route() {
  const id = location.hash.slice(1);
  if (!session || id === "jobs") return;
  if (!id) {
    open?.stop();
    open = null;
    draw();
    return;
  }
  if (open?.id === id) return;
  void watchOne(id);
  draw();
  $("details").scrollTop = 0;
  if (getComputedStyle($("jobs")).display === "none") {
    scrollTo(0, 0);
    (document.getElementById("opened") ?? $("details").querySelector("a"))?.focus();
  }
}

function shut(event) {
  event?.preventDefault();
  const id = open?.id;
  if (!id) return;
  history.pushState(null, "", location.pathname);
  route();
  [...document.querySelectorAll("a.row")].find((each) => each.hash === `#${id}`)?.focus();
}

function enter() {
  $("door").hidden = true;
  for (const id of ["top", "main"]) $(id).hidden = false;
  begin();
  draw();
  route();
}

function leave(why = "") {
  sessionStorage.removeItem(TOKEN);
  session?.abort();
  session = null;
  open?.stop();
  open = null;
  jobs = new Map();
  link = { state: "connecting", tries: 0, at: 0, heard: 0, why: "" };
  for (const id of ["filters", "jobs", "details", "lost"]) patch($(id), []);
  for (const id of ["top", "main", "lost"]) $(id).hidden = true;
  document.body.classList.remove("opened");
  document.title = "nydus-service";
  $("refused").textContent = why;
  $("door").hidden = false;
  $("token").value = "";
  $("token").focus();
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = $("token").value.trim();
  if (!/^[!-~]+$/.test(token)) return void ($("refused").textContent = "A token has letters, digits and signs, no spaces.");
  sessionStorage.setItem(TOKEN, token);
  $("token").value = "";
  $("refused").textContent = "";
  enter();
});

$("leave").addEventListener("click", () => leave());
$("search").addEventListener("input", (event) => {
  filter.text = event.target.value.trim().toLowerCase();
  more = {};
  schedule();
});

document.addEventListener("keydown", (event) => {
  if (!session || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, textarea");
  if (event.key === "Escape") return typing ? event.target.blur() : shut();
  if (typing) return;
  if (event.key === "/") {
    event.preventDefault();
    $("search").focus();
  }
  const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
  if (!step || (event.key.startsWith("Arrow") && !event.target.matches("a.row"))) return;
  const rows = [...document.querySelectorAll("a.row")];
  const at = rows.indexOf(document.activeElement);
  event.preventDefault();
  rows[at < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, at + step))]?.focus();
});

addEventListener("hashchange", route);
addEventListener("popstate", route);
addEventListener("online", () => hurry());
document.addEventListener("visibilitychange", () => document.hidden || (hurry(), schedule()));
setInterval(() => session && !document.hidden && schedule(), 1000); // ages and durations

if (sessionStorage.getItem(TOKEN)) enter();
else leave();
