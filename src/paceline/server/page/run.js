// One request to the server, its rounds handed to a panel; and two of them as a race.

import { postJson, stream } from "./api.js";
import { parting, number } from "./tally.js";

const PATHS = { completion: "v1/completions", chat: "v1/chat/completions" };

/** Write one text into `panel`. Returns why it ended, and the seconds that its first token took on
 * this page's clock: the figures shown are the server's. */
export async function write(ask, speculative, panel, signal) {
  panel.clear(ask.kind === "completion" ? ask.body.prompt : "");
  const body = { ...ask.body, stream_options: { include_timing: true } };
  if (speculative) body.speculative = speculative;
  const sent = performance.now();
  let finish = null;
  let first = null;
  try {
    for await (const chunk of stream(PATHS[ask.kind], body, signal)) {
      if (chunk.paceline) {
        panel.add(chunk.paceline);
        first ??= (chunk.here - sent) / 1e3;
      }
      const choice = chunk.choices[0];
      if (choice?.finish_reason) finish = choice.finish_reason;
      if (choice?.stop_reason === "deadline") finish = "deadline";
    }
  } finally {
    panel.settle();
  }
  return { finish, first };
}

/** Both ways, one after the other, under like conditions: each alone, the prompt read ahead.
 * Returns how long each took and where they part. */
export async function race(ask, speculative, plain, fast, told, signal) {
  told("Reading the prompt ahead, so that both find it read.");
  const { model, prompt, messages } = ask.body;
  await postJson("v1/warm", { model, prompt, messages }, signal);
  told("Plain, alone.");
  await write(ask, { enabled: false }, plain, signal);
  told("Speculative, alone.");
  await write(ask, speculative, fast, signal);
  const at = parting(plain.tally, fast.tally);
  for (const panel of [plain, fast]) if (at >= 0) panel.mark(at);
  return { at, gain: ratio(fast.tally.pace, plain.tally.pace) };
}

const ratio = (a, b) => (a && b ? a / b : null);

/** What came of a race, in words. */
export function verdict({ at, gain }, plain, fast, exact) {
  const speed = gain === null ? "" : `${number(gain, 2)} times as fast`;
  if (at < 0) {
    const count = plain.tally.tokens;
    return `Identical, all ${count} tokens. Speculative was ${speed}.`;
  }
  const [one, other] = [plain, fast].map((panel) => quoted(panel.tally.pieces[at]));
  const why = exact
    ? "The rule is exact, so two logits lay closer than rounding."
    : "This server’s rule keeps the distribution, not the text.";
  return `They part at token ${at + 1}: plain ${one}, speculative ${other}. ${why}` +
    (speed ? ` Speculative wrote ${speed}.` : "");
}

function quoted(piece) {
  return piece === undefined ? "had ended" : `wrote ${JSON.stringify(piece)}`;
}

/** Show both again, each round when it came, the requests sent at the same moment. */
export async function replay(panels, prompt, signal) {
  const runs = panels.map((panel) => {
    const parts = panel.tally.rounds;
    panel.clear(prompt);
    return { panel, parts, at: 0, end: parts.at(-1)?.seconds ?? 0 };
  });
  const began = performance.now();
  const show = (now) => {
    for (const run of runs) {
      while (run.at < run.parts.length && run.parts[run.at].seconds <= now) {
        run.panel.add(run.parts[run.at]);
        run.at += 1;
      }
      run.panel.clock(Math.min(now, run.end));
    }
    return runs.every((run) => run.at === run.parts.length);
  };
  try {
    while (!signal.aborted && !show((performance.now() - began) / 1e3)) {
      await new Promise((done) => setTimeout(done, 16));
    }
  } finally {
    show(Infinity);
    for (const run of runs) run.panel.settle();
  }
}
