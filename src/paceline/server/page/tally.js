// What the rounds of one text add up to. Knows numbers, and neither the server nor the page.

/** One round as the server tells it: seconds since the request came, tokens, sources, pieces, and
 * `round` with k, drafted, evaluated, accepted, drafter and its own seconds. */
export class Tally {
  constructor() {
    this.rounds = [];
    this.tokens = 0;
    this.evaluated = 0;
    this.accepted = 0;
    this.sources = new Map();
    this.places = []; // per position in the draft: { evaluated, accepted }
    this.ks = [];
    this.first = null; // { seconds, tokens } of the first round with tokens
    this.last = 0;
  }

  add(part) {
    this.rounds.push(part);
    if (part.tokens) {
      this.first ??= { seconds: part.seconds, tokens: part.tokens };
      this.last = part.seconds;
    }
    this.tokens += part.tokens;
    for (const source of part.sources) {
      this.sources.set(source, (this.sources.get(source) ?? 0) + 1);
    }
    const { round } = part;
    if (!round) return;
    this.ks.push(round.k);
    this.evaluated += round.evaluated;
    this.accepted += round.accepted;
    for (let at = 0; at < round.evaluated; at += 1) {
      this.places[at] ??= { evaluated: 0, accepted: 0 };
      this.places[at].evaluated += 1;
      this.places[at].accepted += at < round.accepted;
    }
  }

  /** Tokens a second after those of the first round, or null. */
  get speed() {
    const seconds = this.last - (this.first?.seconds ?? 0);
    return this.first && seconds > 0 ? (this.tokens - this.first.tokens) / seconds : null;
  }

  /** Tokens a second from the request to the last token, or null. */
  get pace() {
    return this.last > 0 ? this.tokens / this.last : null;
  }

  get perRound() {
    return this.ks.length ? this.tokens / this.ks.length : null;
  }

  get acceptance() {
    return this.evaluated ? this.accepted / this.evaluated : null;
  }

  get pieces() {
    return this.rounds.flatMap((part) => part.pieces);
  }
}

/** Where two texts part: the number of the first token that differs, or -1 where none does. */
export function parting(one, other) {
  const a = one.pieces;
  const b = other.pieces;
  const length = Math.max(a.length, b.length);
  for (let at = 0; at < length; at += 1) {
    if (a[at] !== b[at]) return at;
  }
  return -1;
}

export function seconds(value) {
  return value < 1 ? `${(value * 1e3).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(2)} s`;
}

export function share(value) {
  return value === null ? "–" : `${Math.round(value * 100)} %`;
}

export function number(value, digits = 0) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}
