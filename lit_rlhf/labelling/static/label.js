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
const STRENGTHS = ["slightly", "clearly", "much"];
const STRENGTH_KEYS = ["q", "w", "e"];
const QUESTIONS = {
  comparison: "Which response is better?",
  ranking: "Rank the responses, the best first",
  rating: `How good is the response, from 1 to ${SCALE}?`,
  edit: "Write the response as it should be",
};

let tasks = []; // the first one is shown
let shown = null; // {task, shownAt, clock, replaces}
let answer = null; // {outcome, ranks, strength, ratings, edit}, by place on the screen
let isTie = false; // the next ranked response shares the place of the last
const judged = new Set(); // tasks that the server may not know of yet
const past = []; // {task, body}: what can be undone

// ---- the browser's database ------------------------------------------------------------------

let memory = new Map(); // where the browser has no database: lost with the tab
const database = new Promise((resolve) => {
  try {
    const opening = indexedDB.open("lit_rlhf", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("judgments", { keyPath: "id" });
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => resolve(null);
  } catch {
    resolve(null);
  }
});

async function kept(mode, use) {
  const db = await database;
  if (!db) return use(null);
  return new Promise((resolve, reject) => {
    const transaction = db.transaction("judgments", mode, { durability: "strict" });
    const request = use(transaction.objectStore("judgments"));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

const keep = (record) =>
  kept("readwrite", (store) => (store ? store.put(record) : memory.set(record.id, record)));
const forget = (id) =>
  kept("readwrite", (store) => (store ? store.delete(id) : memory.delete(id)));
const waiting = async () =>
  (await kept("readonly", (store) => (store ? store.getAll() : [...memory.values()])))
    .filter((record) => record.labeler === me)
    .sort((a, b) => a.body.submitted_at - b.body.submitted_at);

// ---- sending ---------------------------------------------------------------------------------

const api = (path, options = {}) => fetch(path, { headers: { Accept: "application/json" }, ...options });

const post = (body) =>
  api("/v1/judgments", {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": main.dataset.csrf },
    body: JSON.stringify(body),
  });

async function detail(response) {
  try {
    return (await response.json()).detail;
  } catch {
    return `status ${response.status}`;
  }
}

let isSending = false;
let failures = 0;
let timer = 0;

async function send() {
  if (isSending) return;
  isSending = true;
  let problem = "";
  try {
    for (const record of await waiting()) {
      if (record.refused) continue;
      const response = await post(record.body);
      if (response.ok) {
        await forget(record.id);
      } else if (response.status === 401 || response.status === 403) {
        problem = `${await detail(response)}. Nothing is lost: it is sent when you are back.`;
        break;
      } else if (response.status >= 400 && response.status < 500 && response.status !== 429) {
        await keep({ ...record, refused: await detail(response) });
      } else throw new Error(String(response.status));
    }
    failures = problem ? failures + 1 : 0;
  } catch {
    failures += 1;
    problem = "No connection. What you do is kept in this browser and sent later.";
  }
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
  $("refused").replaceChildren(
    ...refused.map((record) => {
      const line = element("p", "", `Task ${record.body.task_id} was refused: ${record.refused}. `);
      const drop = element("button", "quiet", "Discard it");
      drop.addEventListener("click", async () => {
        await forget(record.id);
        showQueue("");
      });
      const again = element("button", "quiet", "Send again");
      again.addEventListener("click", async () => {
        await keep({ ...record, refused: undefined });
        send();
      });
      line.append(again, " ", drop);
      return line;
    }),
  );
}

async function fetchTasks() {
  const unsent = (await waiting()).map((record) => record.body.task_id);
  unsent.forEach((id) => judged.add(id));
  try {
    const response = await api(`/v1/tasks?count=${WANTED + unsent.length}`);
    if (!response.ok) throw new Error(await detail(response));
    const given = await response.json();
    const known = new Set([...tasks.map((task) => task.id), shown?.task.id]);
    const fresh = given.filter((task) => !judged.has(task.id) && !known.has(task.id));
    tasks.push(...fresh);
    const state = await (await api("/v1/me")).json();
    $("progress").textContent = `${state.today} today, ${state.judged} in all` +
      (state.gold ? `; ${state.gold}` : "");
    $("empty").textContent = state.is_paused
      ? "You are paused: whoever runs this project gives out no tasks to you for now."
      : "There is nothing to judge for you right now. Thank you! This page looks again by itself.";
  } catch (error) {
    if (!tasks.length) $("empty").textContent = `No tasks could be loaded: ${error.message}`;
  }
  if (!shown) next();
}

// ---- showing a task --------------------------------------------------------------------------

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

function textBlock(part, path) {
  const block = element("div", "text");
  block.dir = "auto";
  block.innerHTML = part.html; // the server's, cleaned there
  if (!part.num_hidden) return [block];
  const more = element("button", "quiet", `Show all as plain text (${part.num_hidden} characters more)`);
  more.type = "button";
  more.addEventListener("click", async () => {
    const response = await api(path);
    const whole = element("pre", "plain", response.ok ? (await response.json()).text : await detail(response));
    whole.dir = "auto";
    more.replaceWith(whole);
  });
  return [block, more];
}

function button(label, key, act) {
  const made = element("button", "", label + " ");
  made.type = "button";
  if (key) {
    made.dataset.key = key;
    made.append(element("kbd", "", key));
  }
  made.addEventListener("click", act);
  return made;
}

const draftKey = (task) => `draft ${me} ${task.id}`;

function next() {
  shown = null;
  while (tasks.length && judged.has(tasks[0].id)) tasks.shift();
  $("task").hidden = !tasks.length;
  $("empty").hidden = tasks.length > 0;
  if (tasks.length) show(tasks.shift(), null);
  if (tasks.length < WANTED / 2) fetchTasks();
}

function show(task, replaces) {
  shown = { task, replaces, shownAt: Date.now() / 1000, clock: performance.now() };
  const draft = JSON.parse(localStorage.getItem(draftKey(task)) || "null");
  const nothing = task.responses.map(() => null);
  answer = draft?.answer ?? {
    outcome: null, ranks: [...nothing], strength: null, ratings: [...nothing],
    edit: task.kind === "edit" ? task.responses[0].text : null,
  };
  isTie = false;
  $("task").hidden = false;
  $("empty").hidden = true;
  $("comment").value = draft?.comment ?? "";
  $("question").textContent = QUESTIONS[task.kind];
  $("prompt").replaceChildren(
    ...task.prompt.flatMap((turn, i) => [
      element("h2", "role", turn.role),
      ...textBlock(turn, `/v1/tasks/${task.id}/prompt/${i}`),
    ]),
  );
  $("prompt").scrollTop = 0;
  $("responses").className = `responses ${task.kind}`;
  $("responses").replaceChildren(...task.responses.map((response, place) => card(task, response, place)));
  $("choices").replaceChildren(...choices(task));
  $("strengths").replaceChildren(
    ...STRENGTHS.map((name, i) => button(`${name} better`, STRENGTH_KEYS[i], () => setStrength(i + 1))),
  );
  mark();
  scrollTo(0, 0);
  $("question").focus({ preventScroll: true });
}

function card(task, response, place) {
  const made = element("article", "response");
  made.setAttribute("aria-label", `Response ${place + 1}`);
  const head = element("h2", "role", task.responses.length > 1 ? `Response ${place + 1}` : "Response");
  made.append(head);
  if (task.kind === "edit") {
    const area = element("textarea", "edit");
    area.value = answer.edit;
    area.dir = "auto";
    area.setAttribute("aria-label", "The response as it should be");
    area.addEventListener("input", () => choose("judged", () => (answer.edit = area.value)));
    made.append(area);
    return made;
  }
  made.append(...textBlock(response, `/v1/tasks/${task.id}/responses/${task.side_order[place]}`));
  if (task.kind === "ranking") made.append(rankBox(made, place));
  if (task.kind === "rating") {
    const scale = element("div", "choices");
    scale.setAttribute("role", "group");
    scale.setAttribute("aria-label", `Rating of response ${place + 1}`);
    for (let value = 1; value <= SCALE; value++)
      scale.append(button(String(value), "", () => rate(place, value)));
    made.append(scale);
  }
  return made;
}

function rankBox(made, place) {
  const label = element("label", "rank", "place ");
  const box = element("select", "");
  ["not ranked", ...answer.ranks.map((_, i) => String(i + 1))].forEach((text, i) => box.add(new Option(text, i)));
  box.addEventListener("change", () =>
    choose("judged", () => (answer.ranks[place] = Number(box.value) || null)));
  label.append(box);
  made.draggable = true;
  made.addEventListener("dragstart", (event) => event.dataTransfer.setData("text/plain", String(place)));
  made.addEventListener("dragover", (event) => event.preventDefault());
  made.addEventListener("drop", (event) => {
    event.preventDefault();
    putBefore(Number(event.dataTransfer.getData("text/plain")), place);
  });
  return label;
}

function choices(task) {
  const many = task.kind === "ranking";
  if (task.kind === "rating" || task.kind === "edit") return [];
  const equal = [
    button(many ? "All equal" : "Tie", "t", () => choose("tie")),
    button(many ? "All bad" : "Both bad", "b", () => choose("both_bad")),
  ];
  if (many) return equal;
  const sides = [0, 1].map((place) =>
    button(`${place + 1} is better`, String(place + 1), () => prefer(place)));
  return [sides[0], ...equal, sides[1]];
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

const prefer = (place) => choose("judged", () => (answer.ranks = answer.ranks.map((_, i) => (i === place ? 1 : 2))));
const setStrength = (value) => choose("judged", () => (answer.strength = answer.strength === value ? null : value));

function rate(place, value) {
  choose("judged", () => (answer.ratings[place] = value));
}

function rankNext(place) {
  const last = Math.max(0, ...answer.ranks.map((rank) => rank ?? 0));
  choose("judged", () => (answer.ranks[place] = isTie && last ? last : last + 1));
  isTie = false;
}

function unrankLast() {
  const last = Math.max(0, ...answer.ranks.map((rank) => rank ?? 0));
  choose("judged", () => (answer.ranks = answer.ranks.map((rank) => (rank === last ? null : rank))));
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

function saveDraft() {
  localStorage.setItem(draftKey(shown.task), JSON.stringify({ answer, comment: $("comment").value }));
}

function isComplete() {
  if (!answer.outcome) return false;
  if (answer.outcome !== "judged") return true;
  if (shown.task.kind === "rating") return answer.ratings.every((rating) => rating !== null);
  if (shown.task.kind === "edit") return answer.edit.trim() !== "";
  return answer.ranks.filter((rank) => rank !== null).length > 1;
}

function mark() {
  const kind = shown.task.kind;
  const pressed = (made, isOn) => made.setAttribute("aria-pressed", String(isOn));
  const outcomes = { t: "tie", b: "both_bad" };
  for (const made of $("choices").children) {
    const place = Number(made.dataset.key) - 1;
    pressed(made, outcomes[made.dataset.key] === answer.outcome || answer.ranks[place] === 1);
  }
  [...$("strengths").children].forEach((made, i) => pressed(made, answer.strength === i + 1));
  $("strengths").hidden = kind !== "comparison" || answer.outcome !== "judged";
  [...$("responses").children].forEach((made, place) => {
    made.classList.toggle("best", answer.ranks[place] === 1);
    if (kind === "ranking") made.querySelector("select").value = String(answer.ranks[place] ?? 0);
    if (kind === "rating")
      made.querySelectorAll(".choices button").forEach((b, i) => pressed(b, answer.ratings[place] === i + 1));
  });
  $("submit").disabled = !isComplete();
  $("undo").disabled = !past.length;
}

/** Ranks and ratings are by place on the screen here, and in the store's order there. */
function inStoreOrder(values) {
  const ordered = [];
  shown.task.side_order.forEach((index, place) => (ordered[index] = values[place]));
  return ordered;
}

function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

async function submit(outcome) {
  const { task, shownAt, clock, replaces } = shown;
  const isJudged = outcome === "judged";
  const body = {
    task_id: task.id, id: uuid(), outcome, comment: $("comment").value,
    ranks: isJudged && ["comparison", "ranking"].includes(task.kind) ? inStoreOrder(answer.ranks) : null,
    ratings: isJudged && task.kind === "rating" ? inStoreOrder(answer.ratings) : null,
    edit: isJudged && task.kind === "edit" ? answer.edit : null,
    strength: isJudged ? answer.strength : null,
    side_order: task.side_order, shown_at: shownAt, submitted_at: Date.now() / 1000,
    duration_s: (performance.now() - clock) / 1000,
    guideline: main.dataset.guideline || null, replaces,
  };
  judged.add(task.id);
  past.push({ task, body, answer });
  localStorage.removeItem(draftKey(task));
  next(); // at once: a second press of a key is for the next task
  await keep({ id: body.id, labeler: me, body });
  send();
}

function undo() {
  if (!past.length) return;
  const { task, body, answer: given } = past.pop();
  if (shown) tasks.unshift(shown.task);
  localStorage.setItem(draftKey(task), JSON.stringify({ answer: given, comment: body.comment }));
  show(task, body.id);
}

// ---- keys ------------------------------------------------------------------------------------

function press(key) {
  const kind = shown.task.kind;
  const place = Number(key) - 1;
  if (key === "Enter") return isComplete() && submit(answer.outcome);
  if (key === "u") return undo();
  if (key === "s") return submit("skip");
  if (key === "x") return submit("cannot_judge");
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
  if (kind === "edit") return;
  document.querySelector(`.choices:not([hidden]) [data-key="${CSS.escape(key)}"]`)?.click();
}

document.addEventListener("keydown", (event) => {
  if (!shown || event.altKey || event.metaKey || event.isComposing || event.repeat) return;
  const writes = event.target.closest("textarea, select, input");
  if (event.key === "Enter" && event.ctrlKey && isComplete()) return submit(answer.outcome);
  if (event.ctrlKey || writes || !$("shortcuts").checked) return;
  if (event.key === "Enter" && event.target.closest("button, a")) return;
  if (event.key === "Backspace" || event.key === "Enter") event.preventDefault();
  press(event.key);
});

$("answer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (shown && isComplete()) submit(answer.outcome);
});
$("comment").addEventListener("input", saveDraft);
$("undo").addEventListener("click", undo);
$("skip").addEventListener("click", () => submit("skip"));
$("cannot").addEventListener("click", () => submit("cannot_judge"));
$("shortcuts").checked = localStorage.getItem("shortcuts") !== "off";
$("shortcuts").addEventListener("change", () => {
  localStorage.setItem("shortcuts", $("shortcuts").checked ? "on" : "off");
  document.body.classList.toggle("no-shortcuts", !$("shortcuts").checked);
});
document.body.classList.toggle("no-shortcuts", !$("shortcuts").checked);
addEventListener("online", send);
setInterval(() => shown || fetchTasks(), 15000);
send();
fetchTasks();
