"use strict";
// The labeling page. What a person decides goes to the browser's own database first and is deleted
// there when the server has acknowledged it, so that neither a lost connection nor a closed tab
// loses a judgment. It works over plain http: no service worker, no crypto.randomUUID.

const $ = (id) => document.getElementById(id);
const main = $("label");
const me = main.dataset.labeler;
const SCALE = Number(main.dataset.scale);
const WANTED = 8; // tasks in the page
const RETRY_MS = [1000, 2000, 5000, 15000];
const STRENGTHS = { q: "slightly", w: "clearly", e: "much" };
const QUESTIONS = {
  comparison: "Which response is better?",
  ranking: "Rank the responses, the best first",
  rating: `How good is the response, from 1 to ${SCALE}?`,
  edit: "Write the response as it should be",
};

let tasks = []; // the first one is next
let shown = null; // {task, shownAt, clock, replaces}
let answer = null; // {outcome, ranks, strength, ratings, edit}, by place on the screen
let isTie = false; // the next ranked response shares the place of the last
const judged = new Set(); // tasks that the server may not know of yet
const past = []; // {task, body, answer}: what can be undone

// ---- the browser's database ------------------------------------------------------------------

const memory = new Map(); // where the browser has no database: lost with the tab
const inMemory = {
  put: (record) => memory.set(record.id, record),
  delete: (id) => memory.delete(id),
  getAll: () => [...memory.values()],
};
const database = new Promise((resolve, reject) => {
  const opening = indexedDB.open("lit_rlhf", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("judgments", { keyPath: "id" });
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = reject;
}).catch(() => null);

async function kept(mode, act, value) {
  const db = await database;
  if (!db) return inMemory[act](value);
  return new Promise((resolve, reject) => {
    const transaction = db.transaction("judgments", mode, { durability: "strict" });
    const request = transaction.objectStore("judgments")[act](value);
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

const keep = (record) => kept("readwrite", "put", record);
const forget = (id) => kept("readwrite", "delete", id);
const waiting = async () =>
  (await kept("readonly", "getAll"))
    .filter((record) => record.labeler === me)
    .sort((a, b) => a.body.submitted_at - b.body.submitted_at);

// ---- sending ---------------------------------------------------------------------------------

/** Ask the server, or send it a body; `detail` says why it refused. */
async function api(path, body) {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": main.dataset.csrf };
  const sent = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const response = await fetch(path, { headers, ...sent });
  const value = await response.json().catch(() => ({}));
  const detail = value.detail ?? `status ${response.status}`;
  return { ok: response.ok, status: response.status, value, detail };
}

let isSending = false;
let failures = 0;
let timer = 0;

async function send() {
  if (isSending) return;
  isSending = true;
  let problem = "";
  try {
    for (const record of (await waiting()).filter((one) => !one.refused)) {
      const { ok, status, value, detail } = await api("/v1/judgments", record.body);
      $("told").textContent = value.told ?? "";
      if (ok) await forget(record.id);
      else if (status === 401 || status === 403) {
        problem = `${detail}. Nothing is lost: it is sent when you are back.`;
        break;
      } else if (status >= 400 && status < 500 && status !== 429)
        await keep({ ...record, refused: detail });
      else throw new Error(detail);
    }
  } catch (error) {
    const reason = error instanceof TypeError ? "No connection" : error.message; // reached nobody
    problem = `${reason}. What you do is kept in this browser and sent later.`;
  }
  failures = problem ? failures + 1 : 0;
  isSending = false;
  await showQueue(problem);
  clearTimeout(timer);
  if ((await waiting()).some((record) => !record.refused))
    timer = setTimeout(send, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]);
}

async function showQueue(problem) {
  const records = await waiting();
  const refused = records.filter((record) => record.refused);
  const count = records.length - refused.length;
  const unsafe = (await database) ? "" : " This browser keeps nothing: leave the tab open.";
  $("queue").textContent = count ? `${count} to send. ${problem}${unsafe}` : problem;
  $("refused").hidden = !refused.length;
  const lines = refused.map((record) => element(
    "p", {}, `Task ${record.body.task_id} was refused: ${record.refused}. `,
    quietButton("Send again", () => keep({ ...record, refused: undefined }).then(send)),
    quietButton("Discard it", () => forget(record.id).then(() => showQueue(""))),
  ));
  $("refused").replaceChildren(...lines);
}

async function fetchTasks() {
  const unsent = (await waiting()).map((record) => record.body.task_id);
  unsent.forEach((id) => judged.add(id));
  try {
    const given = await api(`/v1/tasks?count=${Math.min(WANTED + unsent.length, 100)}`);
    if (!given.ok) throw new Error(given.detail);
    const known = new Set([...judged, ...tasks.map((task) => task.id), shown?.task.id]);
    tasks.push(...given.value.filter((task) => !known.has(task.id)));
    const state = (await api("/v1/me")).value;
    const gold = state.gold ? `; ${state.gold}` : "";
    $("progress").textContent = `${state.today ?? "?"} today, ${state.judged ?? "?"} in all${gold}`;
    $("empty").textContent = state.is_paused
      ? "You are paused: whoever runs this project gives out no tasks to you for now."
      : "There is nothing to judge for you right now. Thank you! This page looks again by itself.";
  } catch (error) {
    if (!tasks.length) $("empty").textContent = `No tasks could be loaded: ${error.message}`;
  }
  if (!shown) next();
}

// ---- showing a task --------------------------------------------------------------------------

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** `isOn` says whether the answer has what the button stands for; see `mark`. */
function button(label, key, onclick, isOn = null, className = "") {
  const shortcut = key ? [element("kbd", {}, key)] : [];
  const made = element("button", { type: "button", className, onclick, isOn }, `${label} `, ...shortcut);
  made.dataset.key = key;
  return made;
}
const quietButton = (label, onclick) => button(label, "", onclick, null, "quiet");

function textBlock(part, path) {
  const block = element("div", { className: "text", dir: "auto", innerHTML: part.html }); // cleaned there
  if (!part.num_hidden) return [block];
  const more = quietButton(`Show all as plain text (${part.num_hidden} characters more)`, async () => {
    const whole = await api(path);
    const text = whole.ok ? whole.value.text : whole.detail;
    more.replaceWith(element("pre", { className: "plain", dir: "auto" }, text));
  });
  return [block, more];
}

const draftKey = (task) => `draft ${me} ${task.id}`;

function next() {
  shown = null;
  tasks = tasks.filter((task) => !judged.has(task.id));
  $("task").hidden = !tasks.length;
  $("empty").hidden = tasks.length > 0;
  if (tasks.length) show(tasks.shift(), null);
}

function show(task, replaces, given, after = 0) {
  shown = { task, replaces, after, shownAt: Date.now() / 1000, clock: performance.now() };
  const draft = given ?? JSON.parse(localStorage.getItem(draftKey(task)));
  const nothing = () => task.responses.map(() => null);
  answer = draft?.answer ?? {
    outcome: null, ranks: nothing(), strength: null, ratings: nothing(),
    edit: task.kind === "edit" ? task.responses[0].text : null,
  };
  isTie = false;
  $("task").hidden = false;
  $("empty").hidden = true;
  $("comment").value = draft?.comment ?? "";
  $("question").textContent = QUESTIONS[task.kind] + (task.question ? ` (${task.question})` : "");
  const turns = task.prompt.flatMap((turn, i) => [
    element("h2", { className: "role" }, turn.role), ...textBlock(turn, `/v1/tasks/${task.id}/prompt/${i}`),
  ]);
  $("prompt").replaceChildren(...turns);
  $("prompt").scrollTop = 0;
  $("responses").className = `responses ${task.kind}`;
  $("responses").replaceChildren(...task.responses.map((response, place) => card(task, response, place)));
  $("choices").replaceChildren(...choices(task));
  const strengths = Object.entries(STRENGTHS).map(([key, name], i) =>
    button(`${name} better`, key, () => setStrength(i + 1), () => answer.strength === i + 1));
  $("strengths").replaceChildren(...strengths);
  mark();
  scrollTo(0, 0);
  $("question").focus({ preventScroll: true });
}

function card(task, response, place) {
  const name = task.responses.length > 1 ? `Response ${place + 1}` : "Response";
  const path = `/v1/tasks/${task.id}/responses/${task.side_order[place]}`;
  const made = element(
    "article", { className: "response", ariaLabel: name }, element("h2", { className: "role" }, name),
    ...(task.kind === "edit" ? [editBox()] : textBlock(response, path)),
  );
  if (task.kind === "rating") made.append(ratingBox(name, place));
  if (task.kind === "ranking") Object.assign(made, dragging(place)).append(rankBox(place));
  return made;
}

const editBox = () =>
  element("textarea", {
    className: "edit", value: answer.edit, dir: "auto", ariaLabel: "The response as it should be",
    oninput: (event) => choose("judged", () => (answer.edit = event.target.value)),
  });

function ratingBox(name, place) {
  const values = Array.from({ length: SCALE }, (_, i) => i + 1);
  return element(
    "div", { className: "choices", role: "group", ariaLabel: `Rating of ${name}` },
    ...values.map((value) =>
      button(String(value), "", () => rate(place, value), () => answer.ratings[place] === value)),
  );
}

function rankBox(place) {
  const names = ["not ranked", ...answer.ranks.map((_, i) => i + 1)];
  const onchange = () => choose("judged", () => (answer.ranks[place] = Number(box.value) || null));
  const box = element("select", { onchange }, ...names.map((name, i) => new Option(name, i)));
  return element("label", { className: "rank" }, "place ", box);
}

const dragging = (place) => ({
  draggable: true,
  ondragstart: (event) => event.dataTransfer.setData("text/plain", String(place)),
  ondragover: (event) => event.preventDefault(),
  ondrop: (event) => {
    event.preventDefault();
    putBefore(Number(event.dataTransfer.getData("text/plain")), place);
  },
});

function choices({ kind }) {
  if (kind === "rating" || kind === "edit") return [];
  const fact = (label, key, outcome) =>
    button(label, key, () => choose(outcome), () => answer.outcome === outcome);
  if (kind === "ranking") return [fact("All equal", "t", "tie"), fact("All bad", "b", "both_bad")];
  const [first, second] = [0, 1].map((place) =>
    button(`${place + 1} is better`, String(place + 1), () => prefer(place), () => answer.ranks[place] === 1));
  return [first, fact("Tie", "t", "tie"), fact("Both bad", "b", "both_bad"), second];
}

// ---- answering -------------------------------------------------------------------------------

function choose(outcome, change = () => {}) {
  if (outcome !== answer.outcome && outcome !== "judged") {
    answer.ranks.fill(null);
    answer.strength = null;
  }
  answer.outcome = outcome;
  change();
  saveDraft();
  mark();
}

const prefer = (place) => choose("judged", () => (answer.ranks = place ? [2, 1] : [1, 2]));
const setStrength = (value) =>
  choose("judged", () => (answer.strength = answer.strength === value ? null : value));
const rate = (place, value) => choose("judged", () => (answer.ratings[place] = value));
const lastRank = () => Math.max(0, ...answer.ranks); // null counts as 0

function rankNext(place) {
  choose("judged", () => (answer.ranks[place] = isTie ? lastRank() || 1 : lastRank() + 1));
  isTie = false;
}

function unrankLast() {
  const without = answer.ranks.map((rank) => (rank === lastRank() ? null : rank));
  choose("judged", () => (answer.ranks = without));
}

function putBefore(moved, target) {
  if (moved === target || !(moved in answer.ranks)) return;
  answer.ranks[moved] = null;
  const rank = answer.ranks[target];
  if (rank === null) return rankNext(moved);
  choose("judged", () => {
    answer.ranks = answer.ranks.map((other) => (other !== null && other >= rank ? other + 1 : other));
    answer.ranks[moved] = rank;
  });
}

const saveDraft = () =>
  localStorage.setItem(draftKey(shown.task), JSON.stringify({ answer, comment: $("comment").value }));

function isComplete() {
  if (!answer.outcome) return false;
  if (answer.outcome !== "judged") return true;
  if (shown.task.kind === "rating") return !answer.ratings.includes(null);
  if (shown.task.kind === "edit") return answer.edit.trim() !== "";
  return answer.ranks.filter((rank) => rank !== null).length > 1;
}

function mark() {
  for (const made of $("task").querySelectorAll("button"))
    if (made.isOn) made.ariaPressed = String(made.isOn());
  $("strengths").hidden = shown.task.kind !== "comparison" || answer.outcome !== "judged";
  [...$("responses").children].forEach((made, place) => {
    made.classList.toggle("best", answer.ranks[place] === 1);
    made.querySelectorAll("select").forEach((box) => (box.value = String(answer.ranks[place] ?? 0)));
  });
  $("submit").disabled = !isComplete();
  $("undo").disabled = !past.length;
}

/** Ranks and ratings are by place on the screen here, and in the store's order there. */
const inStoreOrder = (values) => values.map((_, index) => values[shown.task.side_order.indexOf(index)]);

function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

async function submit(outcome) {
  const { task, shownAt, clock, replaces, after } = shown;
  const has = (...kinds) => outcome === "judged" && kinds.includes(task.kind);
  const body = {
    task_id: task.id, id: uuid(), outcome, comment: $("comment").value,
    ranks: has("comparison", "ranking") ? inStoreOrder(answer.ranks) : null,
    ratings: has("rating") ? inStoreOrder(answer.ratings) : null,
    edit: has("edit") ? answer.edit : null,
    strength: has("comparison") ? answer.strength : null,
    side_order: task.side_order, shown_at: shownAt,
    submitted_at: Math.max(Date.now() / 1000, after), // a clock may be put back: a correction is later
    duration_s: (performance.now() - clock) / 1000, guideline: main.dataset.guideline || null, replaces,
  };
  judged.add(task.id);
  past.push({ task, body, answer });
  localStorage.removeItem(draftKey(task));
  next(); // at once: a second press of a key is for the next task
  if (tasks.length < WANTED / 2) fetchTasks();
  await keep({ id: body.id, labeler: me, body });
  send();
}

function undo() {
  const { task, body, answer: given } = past.pop();
  if (shown) tasks.unshift(shown.task);
  show(task, body.id, { answer: given, comment: body.comment }, body.submitted_at + 0.001);
}

// ---- keys ------------------------------------------------------------------------------------

function press(key) {
  const { kind } = shown.task;
  const place = Number(key) - 1;
  if (kind === "ranking") {
    if (key === "=") return (isTie = true);
    if (key === "Backspace") return unrankLast();
    if (place in answer.ranks) return rankNext(place);
  }
  if (kind === "rating" && place >= 0 && place < SCALE) {
    const focused = [...$("responses").children].indexOf(document.activeElement.closest(".response"));
    const unrated = answer.ratings.indexOf(null);
    return rate(focused >= 0 ? focused : Math.max(0, unrated), place + 1);
  }
  $("answer").querySelector(`.choices:not([hidden]) [data-key="${CSS.escape(key)}"]`)?.click();
}

document.addEventListener("keydown", (event) => {
  if (!shown || event.altKey || event.metaKey || event.isComposing || event.repeat) return;
  if (event.key === "Enter" && event.ctrlKey) return $("submit").click();
  const isWriting = event.target.closest("textarea, select, input");
  if (event.ctrlKey || isWriting || !$("shortcuts").checked) return;
  if (event.key === "Enter" && event.target.closest("button, a")) return;
  if (event.key === "Backspace" || event.key === "Enter") event.preventDefault();
  press(event.key);
});

$("submit").onclick = () => submit(answer.outcome);
$("comment").oninput = saveDraft;
$("undo").onclick = undo;
$("skip").onclick = () => submit("skip");
$("cannot").onclick = () => submit("cannot_judge");
$("shortcuts").checked = localStorage.getItem("shortcuts") !== "off";
$("shortcuts").onchange = () => localStorage.setItem("shortcuts", $("shortcuts").checked ? "on" : "off");
addEventListener("online", send);
setInterval(() => shown || fetchTasks(), 15000);
send();
fetchTasks();
