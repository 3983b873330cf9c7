"use strict";
// What the page works out stands first, in functions of their arguments alone, which tests call without a browser.
// What it draws stands behind, under start(). Texts reach the page as textContent only.

// An event is an object keyed by the names of recommend's inputs: {history_item_ids: "item_1", history_times: 17, ...}.
const MISSING_NUMBER = "\u0000missing";

function isOfEvents(name) {
  return name.startsWith("event_") || (name.startsWith("history_") && name !== "history_length");
}

// What an event or a user does not say: "" or NaN, as often as the input has values.
function missingValue(input, skippedSizes) {
  const one = input.dtype === "DT_STRING" ? "" : /FLOAT|DOUBLE/.test(input.dtype) ? MISSING_NUMBER : 0;
  const sizes = input.sizes.slice(skippedSizes);
  return sizes.length ? Array(Math.max(0, sizes[0])).fill(one) : one;
}

// The body of a :predict request for one user, with the inputs that this version's signature has, and no others.
function predictBody(inputs, events, ofUser) {
  const values = {};
  for (const [name, input] of Object.entries(inputs)) {
    if (name === "history_length") values[name] = [events.length];
    else if (name === "request_time") values[name] = [Math.max(0, ...events.map((event) => event.history_times || 0))];
    else if (isOfEvents(name)) values[name] = [events.map((event) => event[name] ?? missingOfEvent(name, input))];
    else values[name] = [ofUser[name] ?? missingValue(input, 1)];
  }
  const text = JSON.stringify({ signature_name: "recommend", inputs: values });
  return text.replaceAll(JSON.stringify(MISSING_NUMBER), "NaN");
}

function missingOfEvent(name, input) {
  return name === "history_sessions" ? "1" : missingValue(input, 2);
}

// A new event behind the others: a minute after the last one, of the type that the last one had.
function eventAfter(events, itemId, model) {
  const last = events[events.length - 1] || {};
  const time = last.history_times === undefined ? model.time_origin : last.history_times;
  const event = { history_item_ids: itemId, history_times: time + 60 };
  const type = last.history_event_types || model.event_types[0];
  if (type) event.history_event_types = type;
  if (last.history_sessions !== undefined) event.history_sessions = last.history_sessions;
  return event;
}

function predictPath(model) {
  return `v1/models/${encodeURIComponent(model.name)}/versions/${model.version}:predict`;
}

function itemsPath(model, fields) {
  const pairs = [["model", model.name], ["version", model.version], ...fields];
  return "ui/items?" + pairs.map((pair) => pair.map(encodeURIComponent).join("=")).join("&");
}

function modelName(model) {
  const labels = model.labels.length ? ` (${model.labels.join(", ")})` : "";
  return `${model.name} ${model.version}${labels}`;
}

// The rows of an answer: item ids with their scores; the fillers of a short answer are left out.
function answerRows(document) {
  const { item_ids: ids, scores } = document.outputs;
  return ids[0].map((itemId, place) => ({ itemId, score: scores[0][place] })).filter((row) => row.itemId !== "");
}

// Where each row stands in the other answer: {kind: "same" | "up" | "down" | "new", text}.
function compareRows(rows, others) {
  const places = new Map(others.map((row, place) => [row.itemId, place]));
  return rows.map((row, place) => {
    if (!places.has(row.itemId)) return { kind: "new", text: "not there" };
    const steps = places.get(row.itemId) - place;
    if (steps === 0) return { kind: "same", text: "same" };
    return { kind: steps > 0 ? "up" : "down", text: `${steps > 0 ? "up" : "down"} ${Math.abs(steps)}` };
  });
}

function inCommon(rows, others) {
  const known = new Set(others.map((row) => row.itemId));
  return `${rows.filter((row) => known.has(row.itemId)).length} of ${rows.length} in both`;
}

// The last latency in ms, and the median where there are several.
function latencyText(latencies) {
  if (!latencies.length) return "";
  const sorted = [...latencies].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const median = sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  const last = `${latencies[latencies.length - 1].toFixed(1)} ms`;
  return sorted.length > 1 ? `${last}, median of ${sorted.length}: ${median.toFixed(1)} ms` : last;
}

function start() {
  const byId = (id) => document.getElementById(id);
  const state = { models: [], users: [], events: [], ofUser: {}, titles: new Map(), token: "", asked: 0, searched: 0 };
  const sides = ["a", "b"].map((letter) => ({ letter, element: byId(`side-${letter}`), latencies: [], rows: [] }));

  // An element with attributes, and with texts or elements in it.
  function make(name, attributes, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function tell(text) {
    byId("message").textContent = text;
  }

  async function ask(path, body) {
    const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
    const response = await fetch(path, body === undefined ? { headers } : { method: "POST", headers, body });
    const text = await response.text();
    if (response.status === 401) byId("token-form").hidden = false;
    if (response.ok) return JSON.parse(text);
    let reason = `${path}: ${response.status}`;
    try {
      reason = JSON.parse(text).error || reason;
    } catch {
      // not one of the server's own errors: the status has to do
    }
    throw new Error(reason);
  }

  // Runs what a click asks for; what goes wrong stands in the header.
  async function attempt(work) {
    try {
      await work();
      tell("");
    } catch (error) {
      tell(error.message);
    }
  }

  function option(value, text) {
    return make("option", { value }, text);
  }

  function drawSides() {
    for (const side of sides) {
      const choice = make("select", { id: `model-${side.letter}` });
      if (side.letter === "b") choice.append(option("", "nothing to compare with"));
      state.models.forEach((model, place) => choice.append(option(String(place), modelName(model))));
      choice.value = side.letter === "a" ? "0" : state.models.length > 1 ? "1" : "";
      choice.addEventListener("change", () => {
        side.latencies = [];
        attempt(recommend);
      });
      const label = make("label", {}, side.letter === "a" ? "Model" : "Compared with", choice);
      side.element.replaceChildren(label, make("p", { class: "latency" }), make("table", {}));
    }
  }

  function modelOf(side) {
    return state.models[byId(`model-${side.letter}`).value];
  }

  async function learnTitles(model, itemIds) {
    const unknown = [...new Set(itemIds)].filter((itemId) => !state.titles.has(itemId));
    for (let place = 0; place < unknown.length; place += 100) {
      const some = unknown.slice(place, place + 100).map((itemId) => ["id", itemId]);
      for (const item of await ask(itemsPath(model, some))) state.titles.set(item.item_id, item.title);
    }
  }

  function titleCell(itemId) {
    const title = state.titles.get(itemId);
    const id = make("span", { class: "id" }, title ? ` ${itemId}` : itemId);
    return make("span", { class: "title" }, title || "", id);
  }

  async function recommend() {
    const asked = ++state.asked;
    for (const side of sides) {
      const model = modelOf(side);
      let rows = [];
      if (model) {
        const body = predictBody(model.inputs, state.events, state.ofUser);
        const began = performance.now();
        const answer = await ask(predictPath(model), body);
        const milliseconds = performance.now() - began;
        if (asked !== state.asked) return; // a newer question is on its way
        rows = answerRows(answer);
        side.latencies.push(milliseconds);
        await learnTitles(model, rows.map((row) => row.itemId));
      }
      if (asked !== state.asked) return;
      side.rows = rows;
    }
    drawAnswers();
  }

  function drawAnswers() {
    sides.forEach((side, number) => {
      const others = sides[1 - number].rows;
      const both = side.rows.length > 0 && others.length > 0;
      const latency = latencyText(side.latencies);
      const common = both && number === 1 ? `; ${inCommon(side.rows, others)}` : "";
      side.element.querySelector(".latency").textContent = side.rows.length ? `Answered in ${latency}${common}` : "";
      const changes = both && number === 1 ? compareRows(side.rows, others) : null;
      const head = ["#", "item", "score", ...(changes ? ["against the left"] : [])];
      const rows = side.rows.map((row, place) => {
        const line = make("tr", {}, make("td", { class: "number" }, String(place + 1)));
        line.append(make("td", {}, titleCell(row.itemId)), make("td", { class: "number" }, row.score.toFixed(4)));
        if (changes) line.append(make("td", { class: changes[place].kind }, changes[place].text));
        return line;
      });
      const heads = make("tr", {}, ...head.map((text) => make("th", {}, text)));
      side.element.querySelector("table").replaceChildren(...(rows.length ? [heads, ...rows] : []));
    });
  }

  async function changeHistory(events) {
    state.events = events;
    await drawHistory();
    await recommend();
  }

  async function drawHistory() {
    await learnTitles(modelOf(sides[0]), state.events.map((event) => event.history_item_ids));
    byId("history").replaceChildren(...state.events.map((event, place) => historyLine(event, place)));
  }

  function historyLine(event, place) {
    const line = make("li", {}, titleCell(event.history_item_ids));
    const types = modelOf(sides[0]).event_types;
    if (types.length) {
      const choice = make("select", { "aria-label": "event type" }, ...types.map((type) => option(type, type)));
      choice.value = event.history_event_types || types[0];
      choice.addEventListener("change", () => {
        event.history_event_types = choice.value;
        attempt(recommend);
      });
      line.append(choice);
    }
    const remove = make("button", { type: "button", "aria-label": "remove" }, "\u00d7");
    remove.addEventListener("click", () => attempt(() => changeHistory(state.events.filter((_, at) => at !== place))));
    line.append(remove);
    return line;
  }

  function search() {
    return attempt(async () => {
      const searched = ++state.searched;
      const text = byId("search").value.trim();
      const found = text ? await ask(itemsPath(modelOf(sides[0]), [["query", text]])) : [];
      if (searched !== state.searched) return;
      for (const item of found) state.titles.set(item.item_id, item.title);
      byId("found").replaceChildren(...found.map(foundLine));
    });
  }

  function foundLine(item) {
    const add = make("button", { type: "button" }, titleCell(item.item_id));
    add.addEventListener("click", () =>
      attempt(() => changeHistory([...state.events, eventAfter(state.events, item.item_id, modelOf(sides[0]))])),
    );
    return make("li", {}, add);
  }

  function drawUsers() {
    byId("user-label").hidden = state.users.length === 0;
    const options = state.users.map((user, place) => option(String(place), `${user.user_id} (${user.events.length})`));
    byId("user").replaceChildren(option("", "nobody: a history of your own"), ...options);
  }

  function chooseUser() {
    const user = state.users[byId("user").value] || { inputs: {}, events: [] };
    state.ofUser = user.inputs;
    return attempt(() => changeHistory(user.events.map((event) => ({ ...event }))));
  }

  function load() {
    return attempt(async () => {
      state.models = await ask("ui/models");
      state.users = await ask("ui/users");
      byId("token-form").hidden = true;
      if (!state.models.length) throw new Error("No model that recommends answers yet.");
      drawSides();
      drawUsers();
      await changeHistory([]);
    });
  }

  byId("search").addEventListener("input", search);
  byId("user").addEventListener("change", chooseUser);
  byId("clear").addEventListener("click", () => attempt(() => changeHistory([])));
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    state.token = byId("token").value;
    load();
  });
  load();
}

if (typeof document !== "undefined") start();
