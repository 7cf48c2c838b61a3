// The console. Whatever comes from a node or a model is put into the page as text, never as markup.
"use strict";

const TOKEN = "modeld token";
const STATUS_MS = 1500;
const KEPT_SLIPS = 30;
const SAMPLES = 80;

const $ = (id) => document.getElementById(id);
const number = (value) => Math.round(value).toLocaleString("en");
const state = { token: "", node: null, sessions: [], slips: [], seen: new Map(), samples: [], before: null, open: new Set(), round: 0, types: {} };

/** An element with properties and children; text stays text. */
function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; value >= 1024 && at < units.length - 1; at++) value /= 1024;
  return `${at && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[at]}`;
}

function span(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

const ago = (at) => (Date.now() / 1000 - at < 2 ? "now" : `${span(Date.now() / 1000 - at)} ago`);
const words = (code) => code.replaceAll("_", " ");

// The node

class Refused extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
  }
}

async function call(method, path, body, more = {}) {
  const headers = { authorization: `Bearer ${state.token}`, ...more.headers };
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal: more.signal, cache: "no-store" });
  if (answer.ok) return more.raw ? answer : answer.json();
  const told = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, told.error || { code: "", message: `the node answered ${answer.status}` });
}

function trouble(text) {
  $("trouble").hidden = !text;
  if ($("trouble").textContent !== text) $("trouble").textContent = text;
}

/** Do it; a refused token asks for another one, all else is told. */
async function attempt(work, tell = trouble) {
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (error.status === 401) askForToken("The node does not take this token.");
    else if (error instanceof Refused) tell(error.message);
    else {
      tell("The node does not answer.");
      lost();
    }
    return undefined;
  }
}

/** What is on the board is old until the node answers again, for which `poll` asks. */
function lost() {
  $("light").className = "failed";
  $("headline").textContent = "no answer from the node";
  trouble("The node does not answer. Trying again; modeld serve starts it.");
}

// Coming in

function askForToken(why = "") {
  sessionStorage.removeItem(TOKEN);
  state.token = "";
  $("entry").hidden = false;
  $("board").hidden = $("leave").hidden = true;
  $("headline").textContent = "not connected";
  $("light").className = $("about").textContent = "";
  trouble(why);
  $("token").focus();
}

function comeIn(token) {
  state.token = token;
  sessionStorage.setItem(TOKEN, token);
  $("entry").hidden = true;
  $("board").hidden = $("leave").hidden = false;
  trouble("");
  attempt(fillModels);
  poll();
}

function begin() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  // What the address holds is seen by whoever looks over the shoulder, and kept by the browser's history.
  if (given !== null) history.replaceState(null, "", location.pathname);
  const token = given || sessionStorage.getItem(TOKEN);
  if (token) comeIn(token);
  else askForToken();
}

// What goes on

let timer = 0;
async function poll() {
  clearTimeout(timer);
  if (!state.token) return;
  if (!document.hidden) {
    await attempt(async () => {
      const node = await call("GET", "/modeld/v1/status");
      if (!state.token) return;
      const changed = !state.node || state.node.generation !== node.generation || state.node.model !== node.model;
      state.node = node;
      if (state.round++ % 2 === 0 || changed) state.sessions = await call("GET", "/modeld/v1/sessions?limit=40");
      trouble("");
      show();
    });
  }
  timer = setTimeout(poll, STATUS_MS);
}

function show() {
  const node = state.node;
  $("light").className = node.state;
  const doing = { empty: "no model is resident", loading: "loading a model", unloading: "unloading", failed: "the last load failed" };
  $("headline").textContent = node.state === "ready" ? node.model : doing[node.state];
  const context = node.model ? `${number(node.context)} tokens of context, ${node.kv_type}, ` : "";
  $("about").textContent = `${context}version ${node.version}`;
  $("unload").disabled = !node.model;
  // What was loaded here may have been replaced by whoever asked for another model.
  if (![undefined, node.model || ""].includes($("planned").dataset.model)) told([]);
  showMemory(node);
  showRates(node);
  showSessions();
  noteReceipts();
}

function bar(parts, whole, label, thin = false) {
  const made = make("div", { className: thin ? "bar thin" : "bar", role: "img", ariaLabel: label });
  for (const [kind, value] of parts) {
    if (!(value > 0)) continue;
    const piece = make("i", { className: kind });
    piece.style.width = `${(100 * value) / whole}%`;
    made.append(piece);
  }
  return made;
}

function measure(name, parts, whole, text) {
  return make("div", { className: "measure" }, make("p", {}, make("b", {}, name), make("span", {}, text)), bar(parts, whole, `${name}: ${text}`));
}

function showMemory(node) {
  const { ledger, plan } = node;
  const rows = [];
  if (plan) {
    const hot = Math.min(ledger.hot || 0, plan.kv);
    const parts = [["weights", plan.weights], ["hot", hot], ["room", plan.kv - hot], ["overhead", plan.overhead]];
    // Against a large machine a small model would not be seen.
    const whole = plan.required * 20 > plan.usable ? Math.max(plan.usable, plan.required) : plan.required;
    const of = plan.usable ? ` of ${bytes(plan.usable)} usable on ${plan.device}` : "";
    rows.push(measure("Resident model", parts, whole, `${bytes(plan.required)}${of}`));
    rows.push(measure("KV in the engine", [["hot", ledger.hot]], ledger.hot_budget || 1, `${bytes(ledger.hot || 0)} of ${bytes(ledger.hot_budget || 0)}, ${number(ledger.cells_used || 0)} of ${number(ledger.cells || 0)} tokens`));
    for (const [tier, name] of [["ram", "KV in RAM"], ["disk", "KV on disk"]]) {
      const budget = ledger[`${tier}_budget`] || 0;
      if (budget) rows.push(measure(name, [[tier, ledger[tier]]], budget, `${bytes(ledger[tier] || 0)} of ${bytes(budget)}`));
    }
  } else {
    rows.push(make("p", { className: "note" }, node.state === "loading" ? "A model is being loaded." : "Nothing is resident. Load a model, or just ask one in the chat."));
  }
  if (node.last_error) rows.push(make("p", { className: "wrong" }, `Last error: ${node.last_error}`));
  $("bars").replaceChildren(...rows);
  const key = plan ? [["weights", `weights ${bytes(plan.weights)}`], ["hot", `KV in use ${bytes(ledger.hot || 0)}`], ["room", `KV room ${bytes(plan.kv)}`], ["overhead", `overhead ${bytes(plan.overhead)}`]] : [];
  $("memory-key").replaceChildren(...key.map(([kind, text]) => make("li", {}, make("i", { className: kind }), text)));
}

function showRates(node) {
  const now = { at: node.uptime, generated: 0, prefilled: 0, reused: 0, restored: 0, calls: 0, ...node.totals };
  const last = state.before && state.before.at < now.at ? state.before : null;
  const rate = (kind) => (last ? Math.max(0, now[kind] - last[kind]) / (now.at - last.at) : 0);
  state.before = now;
  state.samples = [...state.samples, { generated: rate("generated"), computed: rate("prefilled") }].slice(-SAMPLES);
  const input = now.reused + now.restored + now.prefilled;
  const warm = input ? `${Math.round((100 * (now.reused + now.restored)) / input)}%` : "-";
  const tiles = [["generated/s", number(rate("generated"))], ["computed/s", number(rate("prefilled"))], ["kept warm", warm], ["running", node.active], ["waiting", node.waiting || 0], ["calls", number(now.calls)]];
  $("tiles").replaceChildren(...tiles.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
  const top = Math.max(1, ...state.samples.flatMap((sample) => [sample.generated, sample.computed]));
  for (const kind of ["generated", "computed"]) {
    const points = state.samples.map((sample, at) => `${((at * 120) / (SAMPLES - 1)).toFixed(1)},${(23 - (22 * sample[kind]) / top).toFixed(1)}`);
    $(`spark-${kind}`).setAttribute("points", points.join(" "));
  }
}

// Sessions and their tapes

const keyOf = (session) => JSON.stringify([session.workspace, session.name, session.digest]);
const query = (session) => new URLSearchParams({ name: session.name, workspace: session.workspace, model: session.digest });
const nameOf = (session) => (session.name === chat.session ? "this chat" : session.workspace === "default" ? session.name : `${session.workspace} / ${session.name.slice(0, 12)}`);
/** With the model where that is another one than the resident. */
const titleOf = (session) => nameOf(session) + (state.node && state.node.model && session.digest !== state.node.digest ? ` (${session.model})` : "");

function tape(session, longest) {
  const { tape: all, shared, ram, disk, kept } = session;
  if (kept === null) return bar([["unknown", all]], longest, `${all} tokens, where they are is not known`, true);
  const hot = kept - ram - disk - shared;
  const parts = [["shared", shared], ["hot", hot], ["ram", ram], ["disk", disk], ["cold", all - kept]];
  return bar(parts, longest, `${all} tokens: ${shared} shared, ${hot} hot, ${ram} in RAM, ${disk} on disk, ${all - kept} to compute`, true);
}

function showSessions() {
  const { sessions = [], total = 0 } = state.sessions;
  $("sessions-count").textContent = total > sessions.length ? `${sessions.length} of ${total}` : total || "";
  const longest = Math.max(1, ...sessions.map((session) => session.tape));
  const list = $("tapes");
  const old = new Map([...list.children].map((item) => [item.dataset.key, item]));
  const items = sessions.map((session) => {
    const key = keyOf(session);
    const item = old.get(key) || newItem(session, key);
    const used = session.active ? "now" : ago(session.last_used);
    item.querySelector(".drawn").replaceChildren(
      make("div", { className: "row" }, make("b", {}, titleOf(session)), make("span", {}, `${number(session.tape)} of ${number(session.window)} tokens, ${used}`)),
      tape(session, longest),
    );
    return item;
  });
  if (!items.length) items.push(make("li", { className: "note" }, "No session yet. Each conversation, of whatever program, gets one."));
  // Not all anew: who has a session open, or the focus in it, keeps that.
  if (items.length !== list.children.length || items.some((item, at) => list.children[at] !== item)) {
    const held = document.activeElement;
    list.replaceChildren(...items);
    if (held && list.contains(held)) held.focus({ preventScroll: true });
  }
}

function newItem(session, key) {
  const more = make("div", { className: "more" });
  const details = make("details", {}, make("summary", {}, "Details"), more);
  details.addEventListener("toggle", () => details.open && attempt(() => explain(session, more), (text) => more.replaceChildren(make("p", { className: "wrong" }, text))));
  const item = make("li", {}, make("div", { className: "drawn" }), details);
  item.dataset.key = key;
  return item;
}

async function explain(session, more) {
  const { session: info, report } = await call("GET", `/modeld/v1/session?${query(session)}`);
  const segments = report.segments.map((segment) => `${segment.stable ? "stable " : ""}${segment.kind} ${number(segment.characters || 0)}`);
  const lost = report.break_totals.map((total) => `${words(total.reason)}: ${total.count} times, ${number(total.tokens)} tokens, ${span(total.seconds)}`);
  const remove = make("button", { type: "button", className: "plain" }, "Forget this session");
  remove.addEventListener("click", async () => {
    if (remove.dataset.sure) {
      await attempt(() => call("DELETE", `/modeld/v1/session?${query(session)}`));
      poll();
    } else {
      remove.dataset.sure = "yes";
      remove.textContent = "Its tape is lost then. Forget it?";
    }
  });
  more.replaceChildren(
    make("p", {}, `Model ${info.model}, workspace ${info.workspace}, name ${info.name}`),
    make("p", {}, `Computed so far ${number(report.prefill_tokens)} tokens in ${report.prefill_calls} calls, generated ${number(report.decode_tokens)}`),
    make("p", {}, segments.length ? `Messages, by characters: ${segments.join(", ")}` : "Its messages are not in the engine now."),
    ...report.breaks.map((found) => cause(found.stop, ago(found.at))),
    lost.length ? make("p", {}, `Lost to breaks: ${lost.join("; ")}`) : make("p", {}, "Its cache never broke."),
    make("div", { className: "line" }, remove),
  );
}

// Receipts

function cause(stop, when = "") {
  const place = stop.message_index === null ? `at token ${stop.token}` : `in message ${stop.message_index}${stop.character === null ? "" : ` at character ${stop.character}`}`;
  const cost = stop.tokens ? `, ${number(stop.tokens)} tokens computed again in ${span(stop.seconds)}` : "";
  return make("p", { className: "cause" }, make("b", {}, words(stop.reason)), ` ${place}${cost}${when ? `, ${when}` : ""}: ${stop.detail}${stop.tokens && stop.advice ? `; ${stop.advice}` : ""}`);
}

const inputOf = (receipt) => receipt.reused + receipt.restored + receipt.prefilled - receipt.recomputed;

function costOf(receipt) {
  const parts = [`${number(inputOf(receipt))} in: ${number(receipt.reused)} reused`, receipt.restored ? `${number(receipt.restored)} restored` : "", `${number(receipt.prefilled)} computed in ${span(receipt.prefill_seconds)}`, receipt.dropped ? `${number(receipt.dropped)} dropped` : ""];
  return parts.filter(Boolean).join(", ");
}

function noteReceipts() {
  let fresh = false;
  for (const session of [...(state.sessions.sessions || [])].reverse()) {
    const text = JSON.stringify(session.last_receipt);
    if (session.last_receipt === null || session.active || state.seen.get(keyOf(session)) === text) continue;
    state.seen.set(keyOf(session), text);
    state.slips.unshift({ at: session.last_used, session, receipt: session.last_receipt });
    fresh = true;
  }
  state.slips.length = Math.min(state.slips.length, KEPT_SLIPS);
  if (fresh || !$("slips").children.length || state.round % 8 === 0) {
    const items = state.slips.map(({ at, session, receipt }) => make("li", {},
      make("div", { className: "row" }, make("b", {}, titleOf(session)), make("span", {}, ago(at))),
      bar([["hot", receipt.reused], ["ram", receipt.restored], ["weights", receipt.prefilled]], receipt.reused + receipt.restored + receipt.prefilled || 1, costOf(receipt), true),
      make("p", { className: "slip" }, costOf(receipt)),
      receipt.stop ? cause(receipt.stop) : make("p", { className: "slip" }, "All that the session held was reused."),
    ));
    $("slips").replaceChildren(...(items.length ? items : [make("li", { className: "note" }, "Every answer leaves one here: what was reused, what was computed, and why.")]));
  }
}

// Models

/** What was chosen stays chosen. */
function offer(list, names, resident) {
  const chosen = names.includes(list.value) ? list.value : resident && resident.name;
  list.replaceChildren(...names.map((name) => make("option", {}, name)));
  if (chosen) list.value = chosen;
}

/** Of KV by type of model; the first is what is taken where nothing is chosen. */
const KV_TYPES = { llama: ["f16", "q8_0", "q4_0"], openvino: ["f16", "f32"] };

function fillKv() {
  offer($("kv"), KV_TYPES[state.types[$("model").value]] || KV_TYPES.llama);
}

async function fillModels() {
  const { models } = await call("GET", "/modeld/v1/models");
  state.types = Object.fromEntries(models.map((model) => [model.name, model.type]));
  const usable = models.filter((model) => !model.error).map((model) => model.name);
  const listed = await call("GET", "/v1/models");
  const resident = models.find((model) => model.resident);
  offer($("model"), usable, resident);
  fillKv();
  offer($("chat-model"), listed.data.map((model) => model.id), resident);
}

const wanted = () => ({ model: $("model").value, context: Number($("context").value) || 0, kv_type: $("kv").value });

function arithmetic(plan, said) {
  const rows = [["weights", plan.weights], [`KV, ${number(plan.cells)} cells of ${bytes(plan.kv_bytes_per_token)}`, plan.kv], ["overhead", plan.overhead], ["needed", plan.required, "sum"], [`free on ${plan.device}`, plan.free], ["less reserve", plan.reserve], ["usable", plan.usable, "sum"]];
  const body = make("tbody", {}, ...rows.map(([name, value, sum]) => make("tr", { className: sum || "" }, make("th", { scope: "row" }, name), make("td", {}, bytes(value)))));
  const most = `${number(plan.context)} tokens a session; up to ${number(plan.max_context)} would fit now.`;
  const fits = plan.fits ? make("p", {}, `It fits: ${most}`) : make("p", { className: "wrong", role: "alert" }, said || plan.reason);
  const table = plan.usable ? make("table", {}, make("caption", { className: "unseen" }, "The plan's arithmetic"), body) : "";
  const others = plan.fits ? [] : plan.alternatives.map((text) => {
    const choose = make("button", { type: "button", className: "plain" }, text.replace("context=", "context ").replace("kv_type=", "KV "));
    choose.addEventListener("click", () => {
      $("context").value = (/context=(\d+)/.exec(text) || [0, 0])[1];
      $("kv").value = (/kv_type=(\w+)/.exec(text) || [0, "f16"])[1];
      $("load").focus();
    });
    return choose;
  });
  return [fits, table, others.length ? make("div", { className: "line wrap" }, make("span", { className: "note" }, "These would fit:"), ...others) : ""].filter(Boolean);
}

async function planned(said = "") {
  const model = await call("POST", "/modeld/v1/describe", wanted());
  told(arithmetic(model.plan, said));
}

/** Show it below the form of models, in place of what was there. `model`: for as long as that one is resident. */
function told(children, model) {
  $("planned").replaceChildren(...children);
  if (model === undefined) delete $("planned").dataset.model;
  else $("planned").dataset.model = model;
}

async function change(path, body, doing) {
  for (const id of ["load", "unload"]) $(id).disabled = true;
  told([make("p", { className: "note" }, doing)]);
  try {
    state.node = await call("POST", path, body);
    const { model } = state.node;
    told([make("p", {}, model ? `${model} is resident.` : "Nothing is resident now.")], model || "");
  } catch (error) {
    if (error.code === "does_not_fit") await planned(error.message);
    else {
      told([]);
      throw error;
    }
  } finally {
    $("load").disabled = false;
    poll();
  }
}

const refusedLoad = (text) => told([make("p", { className: "wrong", role: "alert" }, text)]);

// Chat

const EXAMPLE = [{ name: "get_weather", description: "The weather in a city", parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] } }];
const chat = { messages: [], session: "", running: null };

function freshChat() {
  if (chat.running) chat.running.abort();
  chat.messages = [];
  chat.session = `console-${Date.now().toString(36)}`;
  $("log").replaceChildren();
  $("chat-state").textContent = "";
}

function toolsOf() {
  const text = $("tools").value.trim();
  $("tools-wrong").textContent = "";
  $("tools-count").textContent = "";
  if (!text) return [];
  try {
    const found = JSON.parse(text);
    if (!Array.isArray(found)) throw new Error("it is no list");
    $("tools-count").textContent = found.length;
    return found.map((tool) => ({ type: "function", function: tool.function || tool }));
  } catch (error) {
    $("tooling").open = true;
    $("tools-wrong").textContent = `This is no list of tools: ${error.message}`;
    $("tools").focus();
    return null;
  }
}

/** The pieces of an answer in the log, filled as they come. */
function answerView() {
  const thought = make("div", { className: "said thought" });
  const thinking = make("details", { hidden: true, open: true }, make("summary", {}, "Thinking"), thought);
  const text = make("div", { className: "said" });
  const calls = make("div", {});
  const slip = make("p", { className: "slip" });
  $("log").append(make("article", { className: "assistant", ariaLabel: "Answer" }, thinking, text, calls, slip));
  return { thinking, thought, text, calls, slip };
}

function follow() {
  const log = $("log");
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 120) log.scrollTop = log.scrollHeight;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

function take(chunk, message, view) {
  if (chunk.error) throw new Refused(500, chunk.error);
  const choice = chunk.choices[0];
  const progress = chunk.modeld && chunk.modeld.progress;
  if (progress) $("chat-state").textContent = progress.position ? `Waiting: number ${progress.position} in the queue` : `Reading the prompt: ${number(progress.done)} of ${number(progress.total)} tokens`;
  if (choice) {
    const { content, reasoning_content: thought, tool_calls: calls } = choice.delta;
    if (content || thought || calls) $("chat-state").textContent = "Answering";
    if (thought) {
      view.thinking.hidden = false;
      view.thought.append(thought);
      message.reasoning_content = (message.reasoning_content || "") + thought;
    }
    if (content) {
      view.thinking.open = false;
      view.text.append(content);
      message.content += content;
    }
    for (const part of calls || []) {
      message.tool_calls ||= [];
      const known = (message.tool_calls[part.index] ||= { id: part.id, type: "function", function: { name: part.function.name, arguments: "" } });
      known.function.arguments += part.function.arguments || "";
    }
  }
  return chunk.modeld && chunk.modeld.finish_reason ? chunk.modeld : null;
}

async function answer() {
  const tools = toolsOf();
  if (tools === null || chat.running) return;
  const running = (chat.running = new AbortController());
  const body = { model: $("chat-model").value, messages: chat.messages, stream: true };
  if (tools.length) body.tools = tools;
  if ($("think").value) body.think = $("think").value;
  const message = { role: "assistant", content: "" };
  const view = answerView();
  $("stop").hidden = false;
  $("send").disabled = true;
  $("chat-state").textContent = "Waiting for the model";
  const headers = { "x-modeld-session": chat.session, "x-modeld-progress": "1" };
  let end = null;
  const said = (text) => view.slip.replaceChildren(make("span", { className: "wrong", role: "alert" }, text));
  await attempt(async () => {
    const stream = await call("POST", "/v1/chat/completions", body, { headers, signal: running.signal, raw: true });
    for await (const chunk of events(stream)) {
      end = take(chunk, message, view) || end;
      follow();
    }
  }, said);
  chat.running = null;
  $("stop").hidden = true;
  $("send").disabled = false;
  $("chat-state").textContent = running.signal.aborted ? "Stopped" : "";
  // Half a call can be neither answered nor sent back.
  if (!end) delete message.tool_calls;
  if (message.content || message.tool_calls) chat.messages.push(message);
  else if (chat.messages.at(-1)?.role === "user") {
    const { content } = chat.messages.pop();
    // It was not answered and is not part of the conversation: nobody has to type it again.
    if (!end && !$("question").value) $("question").value = content;
  }
  if (end && end.receipt) view.slip.textContent = `${costOf(end.receipt)}. ${words(end.finish_reason)}.`;
  for (const wrong of (end && end.errors) || []) view.calls.append(make("p", { className: "wrong" }, wrong.message));
  if (message.tool_calls && end) offerResults(message.tool_calls, view);
  else $("question").focus({ preventScroll: true });
  follow();
  poll();
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 1);
  } catch {
    return json;
  }
}

/** A box for the result of each call; all go back together. */
function offerResults(calls, view) {
  const form = make("form", {});
  const boxes = calls.map((one) => {
    const box = make("textarea", { rows: 2, ariaLabel: `Result of ${one.function.name}`, spellcheck: false });
    form.append(make("div", { className: "call" }, make("b", {}, one.function.name), make("pre", {}, pretty(one.function.arguments)), box));
    return box;
  });
  const send = make("button", { type: "submit" }, calls.length > 1 ? "Send the results" : "Send the result");
  form.append(make("div", { className: "line end" }, send));
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && event.target.tagName === "TEXTAREA") {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (chat.running || send.disabled) return;
    send.disabled = true;
    send.parentElement.hidden = true;
    calls.forEach((one, at) => {
      boxes[at].readOnly = true;
      chat.messages.push({ role: "tool", tool_call_id: one.id, content: boxes[at].value });
    });
    answer();
  });
  view.calls.append(form);
  boxes[0].focus({ preventScroll: true });
}

function ask() {
  const text = $("question").value.trim();
  if (!text || chat.running || toolsOf() === null) return;
  chat.messages.push({ role: "user", content: text });
  $("question").value = "";
  const log = $("log");
  log.append(make("div", { className: "said user" }, text));
  log.scrollTop = log.scrollHeight;
  answer();
}

// What the page does

function on(id, event, work) {
  $(id).addEventListener(event, (happened) => {
    if (event === "submit") happened.preventDefault();
    work(happened);
  });
}

on("entry", "submit", () => {
  const token = $("token").value.trim();
  $("token").value = "";
  if (token) comeIn(token);
});
on("leave", "click", () => askForToken());
on("model", "change", fillKv);
on("loading", "submit", () => attempt(() => change("/modeld/v1/load", wanted(), "Loading."), refusedLoad));
on("unload", "click", () => attempt(() => change("/modeld/v1/unload", {}, "Unloading, once its calls have ended."), refusedLoad));
on("plan", "click", () => attempt(() => planned(), refusedLoad));
on("fresh", "click", () => {
  freshChat();
  $("question").focus();
});
on("example", "click", () => {
  $("tools").value = JSON.stringify(EXAMPLE, null, 1);
  toolsOf();
});
on("ask", "submit", ask);
on("question", "keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
on("stop", "click", () => chat.running && chat.running.abort());
document.addEventListener("keydown", (event) => event.key === "Escape" && chat.running && chat.running.abort());
document.addEventListener("visibilitychange", () => {
  if (document.hidden || !state.token) return;
  poll();
  // A model may have been installed meanwhile.
  attempt(fillModels);
});
// A link that is opened in a tab where the page is already.
window.addEventListener("hashchange", () => location.hash.startsWith("#token=") && begin());
freshChat();
begin();
