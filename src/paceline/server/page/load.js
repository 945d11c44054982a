// The server's load over the last minutes: asked once a second while somebody can see it.

import { getJson } from "./api.js";
import { ceiling, chart } from "./plot.js";
import { number, share } from "./tally.js";

const CHARTS = [
  { title: "Texts", series: [["running", "being written", "one filled"], ["waiting", "waiting", "two"]] },
  { title: "Tokens a second", series: [["tokens_per_second", "handed out", "one filled"]], digits: 1 },
  { title: "Drafts accepted", series: [["acceptance", "of those tested", "one filled"]], top: 1 },
  { title: "Chosen K", series: [["k", "on average", "one filled"]], digits: 1 },
  { title: "Pages", series: [["pages_used", "held by texts", "one filled"], ["pages_cached", "kept for later", "two"]], whole: "pages" },
];

export class Load {
  /** told(problem, anew): what went wrong, or null once an answer is there again; anew: it comes
   * from a server that was started since. */
  constructor(root, note, told) {
    this.note = note;
    this.told = told;
    this.columns = {};
    this.count = 0;
    this.id = null;
    this.figures = CHARTS.map((kind) => new Figure(kind));
    root.replaceChildren(...this.figures.map((figure) => figure.root));
    document.addEventListener("visibilitychange", () => this.#wake());
  }

  #timer = 0;
  #turn = 0; // of the question whose answer is awaited: an older one's is late

  #wake() {
    clearTimeout(this.#timer);
    if (!document.hidden) this.#ask();
  }

  start() {
    this.#wake();
  }

  /** The most texts that were being written at once since sample number `count`. */
  busiest(count) {
    const running = this.columns.running ?? [];
    return Math.max(0, ...running.slice(running.length - Math.max(0, this.count - count)));
  }

  async #ask() {
    const turn = (this.#turn += 1);
    let wait = 1000;
    try {
      const load = await getJson(`v1/paceline/load?after=${this.count}`);
      if (turn !== this.#turn) return;
      const anew = this.id !== null && this.id !== load.id;
      this.#take(load, anew);
      this.told(null, anew);
    } catch (problem) {
      if (turn !== this.#turn) return;
      this.told(problem, false);
      wait = problem.kind === "key" ? Infinity : 3000; // a key is entered, not waited for
    }
    clearTimeout(this.#timer);
    if (!document.hidden && wait < Infinity) this.#timer = setTimeout(() => this.#ask(), wait);
  }

  #take(load, anew) {
    this.id = load.id;
    if (anew) {
      [this.columns, this.count] = [{}, 0];
      return; // this was asked for from the middle: next time for all
    }
    for (const [name, values] of Object.entries(load.samples)) {
      this.columns[name] = [...(this.columns[name] ?? []), ...values].slice(-load.kept);
    }
    this.count = load.count;
    const { speculation } = load;
    this.note.textContent = `The last ${Math.round((load.kept * load.interval) / 60)} minutes, ` +
      `a sample a second. ${speculation.charAt(0).toUpperCase()}${speculation.slice(1)}.`;
    for (const figure of this.figures) figure.draw(this.columns, load);
  }
}

class Figure {
  constructor(kind) {
    this.kind = kind;
    this.root = document.createElement("figure");
    this.root.className = "chart";
    const caption = document.createElement("figcaption");
    const title = document.createElement("strong");
    title.textContent = kind.title;
    this.scale = document.createElement("span");
    this.scale.className = "scale";
    caption.append(title, this.scale);
    this.plot = document.createElement("div");
    this.plot.className = "plot";
    this.now = document.createElement("ul");
    this.root.append(caption, this.plot, this.now);
  }

  draw(columns, load) {
    const { title, series, digits = 0 } = this.kind;
    const whole = this.kind.whole ? load[this.kind.whole] : null;
    const show = (value) => (this.kind.top === 1 ? share(value ?? null) : number(value, value ? digits : 0));
    const lines = series.map(([name, , kind]) => ({ values: columns[name] ?? [], kind }));
    const most = Math.max(0, ...lines.flatMap((line) => line.values.map((v) => v ?? 0)));
    const top = this.kind.top ?? ceiling(most);
    const said = series.map(([name, words]) => `${show(columns[name]?.at(-1))} ${words}`);
    const label = `${title}, last ${load.kept} seconds: now ${said.join(", ")}; highest ${show(most)}`;
    this.plot.replaceChildren(chart(lines, { room: load.kept, top, label }));
    const end = this.kind.top === 1 ? share(top) : number(top, top < 1 ? 1 : 0);
    this.scale.textContent = `to ${end}${whole ? `, of ${whole}` : ""}`;
    this.now.replaceChildren(
      ...series.map(([, , kind], at) => {
        const item = document.createElement("li");
        item.className = kind;
        item.textContent = said[at];
        return item;
      }),
    );
  }
}
