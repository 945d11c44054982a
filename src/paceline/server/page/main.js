// The page's one state: what is asked, whether something runs, what a person is told.

import { getJson, useKey } from "./api.js";
import { Load } from "./load.js";
import { Panel } from "./panel.js";
import { race, replay, verdict, write } from "./run.js";
import { number, seconds } from "./tally.js";

const by = (id) => document.getElementById(id);
const PROMPTS = {
  completion: `import os


def find_files(root, suffix):
    """Return the paths of all files under root that end with suffix."""
    found = []
    for folder, _, names in os.walk(root):
`,
  chat: "Write a Python function that returns the paths of all files under a folder.",
};
const ENDS = {
  stop: "it ended by itself",
  length: "it reached the most tokens",
  deadline: "the server’s time for a request was over",
};
const AGAIN = 3000; // milliseconds between attempts to reach the server

const panels = { plain: new Panel("Plain"), one: new Panel("Speculative") };
panels.plain.root.classList.add("plain");
const load = new Load(by("charts"), by("load-note"), (problem, anew) => {
  heard(problem);
  if (anew) connect(); // another server may be another model
});
let about = null;
let running = null; // an AbortController while something runs
let last = null; // the race that can be shown again

// --- what a person is told ---

function say(text, kind = "") {
  by("status").textContent = text;
  by("status").dataset.kind = kind;
}

function show(problem) {
  by("problem").hidden = !problem;
  by("problem").textContent = problem?.message ?? "";
}

/** A key is missing or wrong: there is where to enter it. */
function asks(problem) {
  show(problem);
  by("key-field").hidden = false;
  by("key").focus();
}

function state(text, kind) {
  by("state").textContent = text;
  by("state").dataset.state = kind;
}

/** The load's view of how things stand. */
function heard(problem) {
  if (!problem) return state("ready", "good");
  if (problem.kind === "key") return state("asks for a key", "bad");
  return state("not reached", "bad");
}

// --- what the server is ---

/** Ask what is served; whether there was an answer. */
async function connect() {
  try {
    about = await getJson("v1/paceline");
  } catch (problem) {
    if (problem.kind === "key") asks(problem);
    else show(problem);
    heard(problem);
    if (problem.kind === "away") setTimeout(connect, AGAIN);
    return false;
  }
  show(null);
  by("key-field").hidden = true;
  describe();
  load.start();
  return true;
}

function describe() {
  const drafts = about.k ? `drafts from ${about.draft ?? about.drafter}, rule ${about.rule}` : "no drafter";
  by("about").textContent = `${about.model} · ${about.device}, ${about.dtype} · ${drafts}`;
  by("kind-chat").disabled = !about.chat;
  by("max-tokens").max = about.max_length - 1;
  const first = about.adaptive ? "auto" : `${about.k}, as served`;
  const options = [new Option(first, "")];
  for (let k = 0; k <= about.k; k += 1) {
    options.push(new Option(k ? `${about.adaptive ? "at most " : ""}${k}` : "0, plain", k));
  }
  const chosen = by("k").value;
  by("k").replaceChildren(...options);
  if (options.some((option) => option.value === chosen)) by("k").value = chosen;
  by("race").disabled = !about.k;
  if (!about.k) by("race-note").textContent = "This server was opened without a drafter.";
  if (!running) lay();
}

// --- what is asked ---

const kind = () => document.querySelector("input[name=kind]:checked").value;

function ask() {
  const temperature = Number(by("temperature").value);
  const given = by("seed").value;
  const seed = given === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(given);
  const body = {
    model: about.model,
    max_tokens: Number(by("max-tokens").value),
    temperature,
    seed,
  };
  const text = by("prompt").value;
  if (kind() === "chat") body.messages = [{ role: "user", content: text }];
  else body.prompt = text;
  const expected = by("prediction").value;
  if (expected) body.prediction = { type: "content", content: expected };
  const k = by("k").value;
  return { kind: kind(), body, speculative: k === "" ? null : { k: Number(k) } };
}

/** Whether every field can be sent; the browser says what is wrong with one that cannot. */
function checked() {
  const raced = by("race").checked && by("k").value === "0";
  by("k").setCustomValidity(raced ? "With K = 0 both would be plain: choose a larger K." : "");
  return by("form").reportValidity();
}

/** One panel or two, empty. */
function lay() {
  const both = by("race").checked;
  panels.one.name(about?.k === 0 || (!both && by("k").value === "0") ? "Plain" : "Speculative");
  const shown = both ? [panels.plain, panels.one] : [panels.one];
  by("panels").replaceChildren(...shown.map((panel) => panel.root));
  by("panels").classList.toggle("both", both);
  last = null;
  buttons();
}

function buttons() {
  by("run").setAttribute("aria-disabled", running !== null || !about);
  by("stop").setAttribute("aria-disabled", running === null);
  by("replay").hidden = last === null;
  by("replay").setAttribute("aria-disabled", running !== null);
}

// --- what runs ---

/** Do something that can be stopped; errors are told in words. */
async function run(work) {
  if (running) return;
  running = new AbortController();
  buttons();
  show(null);
  const { top, bottom } = by("status").getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) by("status").scrollIntoView({ block: "start" });
  try {
    await work(running.signal);
  } catch (problem) {
    if (problem.name === "AbortError") say("Stopped; what came is kept.");
    else {
      say(problem.kind ? problem.message : "This page failed; its console says why.", "bad");
      if (problem.kind === "key") asks(problem);
      if (!problem.kind) throw problem;
    }
  } finally {
    running = null;
    buttons();
  }
}

async function single(signal) {
  const asked = ask();
  const panel = panels.one;
  say("Writing.", "busy");
  const { finish, first } = await write(asked, asked.speculative, panel, signal);
  const { tally } = panel;
  const drawn = asked.body.temperature > 0 ? ` Seed ${asked.body.seed}.` : "";
  say(
    `${tally.tokens} tokens in ${seconds(tally.last)}: ${ENDS[finish] ?? finish}. The first was ` +
      `here after ${seconds(first ?? 0)}.${drawn}`,
    "good",
  );
}

async function both(signal) {
  const asked = ask();
  const since = load.count;
  panels.one.clear("");
  const told = (text) => say(text, "busy");
  const result = await race(asked, asked.speculative, panels.plain, panels.one, told, signal);
  const exact = about.rule === "match" || asked.body.temperature === 0;
  let words = verdict(result, panels.plain, panels.one, exact);
  if (load.busiest(since) > 1) words += " Others were served meanwhile: run again for a fair race.";
  last = { prompt: asked.kind === "completion" ? asked.body.prompt : "", words, at: result.at };
  buttons();
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return finished();
  return again(signal);
}

async function again(signal) {
  say("Both again, side by side, at the speed they had.", "busy");
  await replay([panels.plain, panels.one], last.prompt, signal);
  finished();
}

function finished() {
  if (!last) return; // the switch was turned meanwhile
  for (const panel of [panels.plain, panels.one]) {
    panel.clock(panel.tally.last);
    if (last.at >= 0) panel.mark(last.at);
  }
  say(last.words, last.at < 0 ? "good" : "bad");
}

// --- wiring ---

function start() {
  if (!about || running || !checked()) return;
  if (by("race").checked) {
    last = null;
    run(both);
  } else {
    panels.one.clock(null);
    run(single);
  }
}

by("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
by("stop").addEventListener("click", () => running?.abort());
by("replay").addEventListener("click", () => last && run(again));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    start();
  } else if (event.key === "Escape") running?.abort();
});
by("race").addEventListener("change", () => (running?.abort(), lay()));
by("k").addEventListener("change", () => {
  by("k").setCustomValidity("");
  if (!running && !by("race").checked) lay();
});
by("key-use").addEventListener("click", enter);
by("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    event.stopPropagation();
    enter();
  }
});

async function enter() {
  useKey(by("key").value);
  if (await connect()) by("prompt").focus();
}

let shown = "completion"; // whose prompt the box holds
for (const radio of document.querySelectorAll("input[name=kind]")) {
  radio.addEventListener("change", () => {
    if (by("prompt").value === PROMPTS[shown]) by("prompt").value = PROMPTS[kind()];
    shown = kind();
    by("prompt-label").textContent = shown === "chat" ? "Message" : "Prompt";
  });
}

by("prompt").value ||= PROMPTS.completion;
lay();
connect();
