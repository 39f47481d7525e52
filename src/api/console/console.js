// Keeps the page live, and sends what an operator asks for. Without it the page is whole, and reloads by itself.
"use strict";

const at = (id) => document.getElementById(id);

// --- What is new ---------------------------------------------------------------------------------------------------------

// Makes `now` like `next` and keeps what the reader did to it: focus, opened details, where tables are scrolled.
function morph(now, next) {
  const children = [...next.childNodes];
  children.forEach((child, i) => {
    const old = now.childNodes[i];
    if (!old) return now.append(child);
    if (old.nodeType !== child.nodeType || old.nodeName !== child.nodeName) return old.replaceWith(child);
    if (child.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== child.data) old.data = child.data;
      return;
    }
    for (const { name } of [...old.attributes])
      if (!child.hasAttribute(name) && !(old.nodeName === "DETAILS" && name === "open")) old.removeAttribute(name);
    for (const { name, value } of child.attributes)
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    morph(old, child);
  });
  while (now.childNodes.length > children.length) now.lastChild.remove();
}

function show(sections) {
  const parser = new DOMParser();
  for (const [id, html] of Object.entries(sections)) {
    const place = at(id);
    if (place) morph(place, parser.parseFromString(html, "text/html").body);
  }
  const title = document.querySelector("[data-title]");
  if (title) document.title = title.dataset.title;
  offerNodes();
}

// --- The stream ----------------------------------------------------------------------------------------------------------

const SILENT_MS = 5000;
let source = null;
let heardAt = Date.now();

function link(state, text) {
  at("link").dataset.live = state;
  if (at("link").textContent !== text) at("link").textContent = text;
}

function listen() {
  source = new EventSource("/console/stream");
  source.onmessage = (event) => {
    heardAt = Date.now();
    link("on", "live");
    at("lost").hidden = true;
    document.body.classList.remove("stale");
    show(JSON.parse(event.data));
  };
}

// The browser connects again by itself, but not after a refusal, nor when the other end is silent.
setInterval(() => {
  const seconds = Math.round((Date.now() - heardAt) / 1000);
  if (Date.now() - heardAt > SILENT_MS) {
    link("lost", `no news for ${seconds} s`);
    const text = "This page is not live: the daemon does not answer. What follows is old; the other nodes' own pages may tell more.";
    if (at("lost").hidden) at("lost").textContent = text;
    at("lost").hidden = false;
    document.body.classList.add("stale");
    if (seconds % 5 === 0) {
      source.close();
      listen();
    }
  }
}, 1000);

link("off", "connecting");
listen();

// --- Actions -------------------------------------------------------------------------------------------------------------

const KEPT = "evenkeel-token";

function offerNodes() {
  const list = at("node-names");
  if (!list) return;
  const names = [...new Set([...document.querySelectorAll("[data-node]")].map((row) => row.dataset.node))];
  if (list.dataset.names === names.join()) return;
  list.dataset.names = names.join();
  list.replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), { value: name })));
}

function say(text, good) {
  at("said").textContent = text;
  at("said").className = good ? "good" : "bad";
}

// One call of the API; its refusal is thrown in its own words.
async function call(method, path, body) {
  const headers = { "content-type": "application/json" };
  const token = at("token").value.trim();
  if (token) headers.authorization = `Bearer ${token}`;
  let reply;
  try {
    reply = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store", credentials: "same-origin" });
  } catch {
    throw new Error("the coordinator does not answer");
  }
  const answer = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(answer.error || `the coordinator answered ${reply.status}`);
  return answer;
}

async function setResync(change) {
  const now = await call("PATCH", "/v1/resync", change);
  const cap = now.cap_bytes_per_sec === null ? "no cap" : `a cap of ${Math.round(now.cap_bytes_per_sec / 1024)} KiB/s`;
  return `Resync is ${now.paused ? "paused" : "running"}, profile ${now.profile}, ${cap}.`;
}

async function setJob(change) {
  const jobs = await call("GET", "/v1/jobs");
  const job = jobs.find((j) => j.state === "running" || j.state === "paused");
  if (!job) throw new Error("no job runs");
  return (await call("POST", `/v1/jobs/${job.id}/${change}`)).message;
}

function nodeName() {
  const name = at("node").value.trim();
  if (!name) throw new Error("name the node first");
  return name;
}

// Asks before data moves, with the planner's word of what it costs.
async function drain() {
  const name = nodeName();
  const plan = await call("POST", "/v1/plan", { remove_node: [name] });
  const gib = (plan.totals.bytes / 2 ** 30).toFixed(1);
  const missing = plan.missing_capacity_bytes > 0 ? ` There is no room for ${(plan.missing_capacity_bytes / 2 ** 30).toFixed(1)} GiB of them.` : "";
  at("ask-text").textContent = `Drain ${name}? About ${plan.totals.moves} copies, ${gib} GiB, move to other nodes while guests go on.${missing} Undrain stops it.`;
  at("ask").returnValue = "no";
  at("ask").showModal();
  await new Promise((closed) => at("ask").addEventListener("close", closed, { once: true }));
  if (at("ask").returnValue !== "yes") return "Nothing was changed.";
  return setNode(name, "draining");
}

async function setNode(name, state) {
  const node = await call("POST", `/v1/nodes/${encodeURIComponent(name)}/state`, { state });
  return `Node ${node.name} is ${node.state}.`;
}

const ACTS = {
  pause: () => setResync({ paused: true }),
  resume: () => setResync({ paused: false }),
  profile: () => setResync({ profile: at("profile").value }),
  cap: () => setResync({ cap: at("cap").value.trim() }),
  "job-pause": () => setJob("pause"),
  "job-resume": () => setJob("resume"),
  drain,
  undrain: () => setNode(nodeName(), "active"),
};

if (at("actions")) {
  at("actions").hidden = false;
  at("token").value = sessionStorage.getItem(KEPT) || "";
  at("token").addEventListener("change", () => sessionStorage.setItem(KEPT, at("token").value));
  at("token-form").addEventListener("submit", (event) => event.preventDefault());
  at("forget").addEventListener("click", () => {
    sessionStorage.removeItem(KEPT);
    at("token").value = "";
    say("The token is forgotten.", true);
  });
  at("actions").addEventListener("click", async (event) => {
    const button = event.target.closest("[data-act]");
    if (!button) return;
    button.disabled = true;
    say("…", true);
    try {
      say(await ACTS[button.dataset.act](), true);
    } catch (error) {
      say(`Refused: ${error.message}.`.replace(/\.\.$/, "."), false);
    }
    button.disabled = false;
    button.focus();
  });
  offerNodes();
}
