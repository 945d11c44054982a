// One text on the page: its tokens in their colours, its figures, its drafts. Draws what a Tally
// knows, a round at a time.

import { Tally, number, seconds, share } from "./tally.js";
import { chart } from "./plot.js";

const SOURCES = new Map([
  ["target", "target"],
  ["model", "draft model"],
  ["ngram", "n-gram"],
  ["predicted", "predicted"],
  ["forced", "forced by a grammar"],
]);
const SHOWN_ROUNDS = 60; // of the plot of K

const kind = (source) => (SOURCES.has(source) ? source : "other");

function element(name, { text, ...attributes } = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export class Panel {
  constructor(title) {
    const copy = document.getElementById("panel").content.cloneNode(true);
    this.root = copy.firstElementChild;
    this.part = (selector) => this.root.querySelector(selector);
    this.name(title);
    this.part("details").addEventListener("toggle", () => this.#rounds());
    const text = this.part(".text");
    text.addEventListener("scroll", () => {
      this.#follows = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
    });
    this.clear("");
  }

  name(title) {
    this.part("h3").textContent = title;
    this.root.setAttribute("aria-label", title);
    this.part(".text").setAttribute("aria-label", `The text, ${title}`);
  }

  /** Empty, but for the prompt that the text goes on from. */
  clear(prompt) {
    this.tally = new Tally();
    this.settled = false;
    this.#waiting = [];
    const text = this.part(".text");
    text.replaceChildren();
    if (prompt) text.append(element("span", { class: "prompt", text: prompt }));
    this.part(".clock").textContent = "";
    this.#follows = true;
    this.#draw();
  }

  #waiting = [];
  #frame = 0;
  #follows = true; // the end of the text, until somebody scrolls away from it

  /** Add a round; it is on the screen with the next frame. */
  add(part) {
    this.tally.add(part);
    this.#waiting.push(part);
    this.#frame ||= requestAnimationFrame(() => this.flush());
  }

  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const text = this.part(".text");
    const parts = this.#waiting.splice(0);
    const round = this.tally.rounds.length - parts.length;
    parts.forEach((part, at) => text.append(...tokens(part, round + at + 1)));
    if (this.#follows) text.scrollTop = text.scrollHeight;
    this.#draw();
  }

  /** The clock of a race; null takes it away. */
  clock(value) {
    this.part(".clock").textContent = value === null ? "" : `${value.toFixed(2)} s`;
  }

  /** Nothing more comes: lists and tables are brought up to date. */
  settle() {
    this.settled = true;
    this.flush();
  }

  /** Mark token number `at`, where two texts part. */
  mark(at) {
    this.root.querySelectorAll(".token")[at]?.classList.add("parting");
  }

  #draw() {
    const { tally } = this;
    const figures = {
      speed: number(tally.speed, 1),
      first: tally.first ? seconds(tally.first.seconds) : "–",
      tokens: number(tally.tokens || null),
      round: number(tally.perRound, 2),
      accepted: share(tally.acceptance),
      k: number(tally.ks.at(-1) ?? null),
    };
    for (const [name, value] of Object.entries(figures)) {
      this.part(`[data-figure=${name}]`).textContent = value;
    }
    this.#legend();
    this.#drafts();
    this.part("details").hidden = !tally.rounds.length;
    if (this.settled) this.#rounds();
  }

  #legend() {
    const { sources, tokens: total } = this.tally;
    const names = total ? [...sources.keys()] : [...SOURCES.keys()];
    const order = [...SOURCES.keys()];
    const place = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
    names.sort((a, b) => place(a) - place(b));
    const items = names.map((name) => {
      const item = element("li");
      item.append(element("span", { class: `token ${kind(name)}`, text: SOURCES.get(name) ?? name }));
      if (total) {
        const count = sources.get(name);
        item.append(" ", element("span", { class: "count", text: `${count} (${share(count / total)})` }));
      }
      return item;
    });
    this.part(".legend").replaceChildren(...items);
  }

  #drafts() {
    const { places, ks } = this.tally;
    const drafts = this.part(".drafts");
    drafts.hidden = !places.length && !ks.some(Boolean);
    if (drafts.hidden) return;
    const rows = places.map(({ evaluated, accepted }, at) => {
      const row = element("tr");
      const bar = element("td", { class: "bar" });
      const fill = element("span");
      fill.style.width = `${(100 * accepted) / evaluated}%`;
      bar.append(fill);
      row.append(
        element("th", { scope: "row", text: at + 1 }),
        element("td", { text: share(accepted / evaluated) }),
        bar,
        element("td", { text: evaluated }),
      );
      return row;
    });
    this.part(".places tbody").replaceChildren(...rows);
    const last = ks.slice(-SHOWN_ROUNDS);
    const mean = ks.reduce((a, b) => a + b, 0) / ks.length;
    const top = Math.max(1, ...last);
    const label = `K of the last ${last.length} rounds: now ${last.at(-1)}, on average ${number(mean, 1)}`;
    const lines = [{ values: last, kind: "one filled" }];
    this.part(".plot").replaceChildren(chart(lines, { room: Math.max(20, last.length), top, label }));
    this.part(".ks .note").textContent =
      `now ${last.at(-1)}, mean ${number(mean, 1)}; the scale ends at ${top}`;
  }

  /** The table of rounds, once somebody looks at it. */
  #rounds() {
    const details = this.part("details");
    if (!details.open) return;
    const rows = this.tally.rounds.map((part, at) => {
      const { round } = part;
      const row = element("tr");
      const cells = [
        seconds(part.seconds),
        round ? seconds(round.seconds) : "–",
        round?.k ?? "–",
        round?.drafted ?? "–",
        round?.accepted ?? "–",
        round?.drafter ? (SOURCES.get(round.drafter) ?? round.drafter) : "–",
      ];
      row.append(element("th", { scope: "row", text: at + 1 }));
      row.append(...cells.map((text) => element("td", { text })));
      const shown = element("td", { class: "shown" });
      shown.append(...tokens(part, at + 1));
      row.append(shown);
      return row;
    });
    this.part(".rounds tbody").replaceChildren(...rows);
  }
}

/** A round's tokens, an element each. */
function tokens(part, round) {
  return part.pieces.map((piece, at) => {
    const source = part.sources[at];
    const title = `${SOURCES.get(source) ?? source}, round ${round}, ${seconds(part.seconds)}`;
    return element("span", { class: `token ${kind(source)}`, title, text: piece });
  });
}
