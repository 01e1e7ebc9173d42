"use strict";
// Every text that comes from a model, a file or a user reaches the page through textContent alone.

const ROWS_ON_A_PAGE = 20;
const FIRST_CHARACTERS = 2000;
const MORE_CHARACTERS = 100000;
// As in lit_rlhf/markdown.py: what would be obeyed, reorder other text or hide is shown as its escape.
const INVISIBLE = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u200b-\\u200f\\u2028-\\u202e" +
    "\\u2060-\\u206f\\ufeff\\u{d800}-\\u{dfff}\\u{e0000}-\\u{e007f}]",
  "gu",
);
const SORTS = {
  prompts: "order of the prompts",
  gap: "largest reward gap",
  left: "left better by most",
  right: "right better by most",
  disagreement: "judges disagree most",
};

const data = JSON.parse(document.getElementById("data").textContent);
const state = { page: 0 };

function visible(text) {
  return text.replace(INVISIBLE, (character) => {
    const code = character.codePointAt(0);
    const digits = code.toString(16);
    if (code > 0xffff) return "\\U" + digits.padStart(8, "0");
    return code > 0xff ? "\\u" + digits.padStart(4, "0") : "\\x" + digits.padStart(2, "0");
  });
}

function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = visible(text);
  return made;
}

// A text of any length: its beginning, and a button for more.
function longText(text) {
  const box = element("div");
  const body = element("div", "text");
  body.dir = "auto";
  const button = element("button", "more");
  button.type = "button";
  let shown = FIRST_CHARACTERS;
  function update() {
    body.textContent = visible(text.slice(0, shown));
    button.hidden = shown >= text.length;
    button.textContent =
      "show more (" + shown.toLocaleString("en") + " of " + text.length.toLocaleString("en") +
      " characters are shown)";
  }
  button.addEventListener("click", () => {
    shown = Math.min(text.length, shown + MORE_CHARACTERS);
    update();
  });
  shown = Math.min(shown, text.length);
  update();
  box.append(body, button);
  return box;
}

// By how much the left one is better: a difference of scores, or a verdict from -1 to 1.
function gap(row, judge) {
  const { first, second } = state;
  if (data.judges[judge].compares) {
    const [low, high] = first < second ? [first, second] : [second, first];
    const verdict = row.verdicts[judge]?.[low + "-" + high];
    if (verdict === undefined || verdict === null) return null;
    return (first < second ? 1 : -1) * (2 * verdict - 1);
  }
  return row.scores[first][judge] - row.scores[second][judge];
}

function deviation(values) {
  const known = values.filter((value) => value !== null);
  const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
  const square = known.reduce((sum, value) => sum + (value - mean) ** 2, 0) / known.length;
  return Math.sqrt(square) || 1;
}

// How far the judges' gaps are apart, each in its own deviations.
function disagreement(row, scales) {
  const gaps = data.judges.map((_, judge) => gap(row, judge));
  const scaled = gaps.map((value, judge) => (value === null ? null : value / scales[judge]));
  const known = scaled.filter((value) => value !== null);
  return known.length < 2 ? null : Math.max(...known) - Math.min(...known);
}

function sortedRows() {
  const words = document.getElementById("search").value.toLowerCase();
  const found = data.rows.filter((row) =>
    [row.prompt, row.texts[state.first], row.texts[state.second]].some((text) =>
      text.toLowerCase().includes(words),
    ),
  );
  if (state.sort === "prompts" || !data.judges.length) return found;
  const scales = data.judges.map((_, judge) => deviation(data.rows.map((row) => gap(row, judge))));
  const keys = {
    gap: (row) => Math.abs(gap(row, state.judge) ?? NaN),
    left: (row) => gap(row, state.judge) ?? NaN,
    right: (row) => -(gap(row, state.judge) ?? NaN),
    disagreement: (row) => disagreement(row, scales) ?? NaN,
  };
  const key = keys[state.sort];
  // Rows without a verdict come last; equal ones stay in the order of the prompts.
  const keyed = found.map((row) => [Number.isNaN(key(row)) ? -Infinity : key(row), row]);
  return keyed.sort((one, other) => (one[0] === other[0] ? 0 : other[0] - one[0]))
    .map((pair) => pair[1]);
}

function number(value) {
  return value === null || value === undefined ? "-" : value.toFixed(3);
}

function side(row, index) {
  const box = element("div", "side");
  box.append(element("div", "name", data.sides[index]));
  const scores = data.judges.flatMap((judge, place) =>
    judge.compares ? [] : [judge.name + " " + number(row.scores[index][place])],
  );
  box.append(element("div", "facts", [...scores, ...row.facts[index]].join(" \u00b7 ")));
  box.append(longText(row.texts[index]));
  return box;
}

function sample(row) {
  const box = element("article", "sample");
  box.dataset.row = row.number;
  const prompt = element("div", "prompt");
  prompt.append(element("div", "facts", "prompt " + row.number));
  prompt.append(longText(row.prompt));
  const gaps = data.judges.map((judge, place) => judge.name + " " + number(gap(row, place)));
  const sides = element("div", "sides");
  sides.append(side(row, state.first), side(row, state.second));
  box.append(prompt, sides);
  if (gaps.length) box.append(element("div", "facts gaps", "left - right: " + gaps.join(" \u00b7 ")));
  return box;
}

function render() {
  for (const name of ["first", "second", "judge"]) {
    state[name] = Number(document.getElementById(name).value);
  }
  state.sort = document.getElementById("sort").value;
  const rows = sortedRows();
  const pages = Math.max(1, Math.ceil(rows.length / ROWS_ON_A_PAGE));
  state.page = Math.max(0, Math.min(state.page, pages - 1));
  const start = state.page * ROWS_ON_A_PAGE;
  const shown = rows.slice(start, start + ROWS_ON_A_PAGE);
  document.getElementById("samples").replaceChildren(...shown.map(sample));
  document.getElementById("place").textContent =
    state.page + 1 + " of " + pages + " (" + rows.length + " prompts)";
  document.getElementById("previous").disabled = state.page === 0;
  document.getElementById("next").disabled = state.page === pages - 1;
}

function options(name, entries, chosen) {
  const select = document.getElementById(name);
  for (const [value, text] of entries) {
    const option = element("option", "", text);
    option.value = value;
    select.append(option);
  }
  if (entries.length) select.value = chosen;
  select.addEventListener("change", () => {
    state.page = 0;
    render();
  });
}

function figures() {
  const place = document.getElementById("figures");
  for (const { name, head, rows } of data.tables) {
    const box = element("details");
    box.open = true;
    box.append(element("summary", "", name));
    const table = element("table");
    for (const [kind, cells] of [["th", head], ...rows.map((row) => ["td", row])]) {
      const line = element("tr");
      line.append(...cells.map((cell) => element(kind, "", cell)));
      table.append(line);
    }
    box.append(table);
    place.append(box);
  }
  for (const { caption, source } of data.pictures) {
    const box = element("details");
    box.append(element("summary", "", caption));
    const image = element("img");
    image.alt = caption;
    image.src = source;
    box.append(image);
    place.append(box);
  }
  const origin = element("details");
  origin.append(element("summary", "", "Where the models come from"));
  for (const { name, lines } of data.lineage) {
    origin.append(element("div", "name", name));
    origin.append(element("div", "text", lines.join("\n")));
  }
  place.append(origin);
}

for (const note of data.notes) document.getElementById("notes").append(element("p", "", note));
figures();
const sides = data.sides.map((name, index) => [index, name]);
options("first", sides, 0);
options("second", sides, Math.min(1, sides.length - 1));
options("judge", data.judges.map((judge, index) => [index, judge.name]), 0);
options("sort", Object.entries(SORTS), data.judges.length ? "gap" : "prompts");
document.getElementById("search").addEventListener("input", () => {
  state.page = 0;
  render();
});
for (const [name, step] of [["previous", -1], ["next", 1]]) {
  document.getElementById(name).addEventListener("click", () => {
    state.page += step;
    render();
  });
}
render();
