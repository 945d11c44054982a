"""Distil the draft candidates from the target, on corpus text and on the target's own text.

All candidates train in one command and share every batch and the target's logits. First the target
continues corpus prefixes (half greedy, half sampled); then each step mixes such text with corpus
windows. Loss: KL(p || q) at temperature 1 plus the total variation at a lower temperature, which is
what the `match` rule's acceptance depends on. Writes one checkpoint a candidate and distill.json.

    python recipes/mini/distill_draft.py --target out --minutes 8 --out drafts
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from agreement import coupled_agreement, summarise
from data import Stream, Vocabulary, load_ids
from model import DRAFTS, GROWN, TARGET, TINY, Llama, generate, grow, load, save, to_hf
from optim import Optimizer, Pace

COOL = (0.8, 0.4)  # temperatures of the total variation: sampling, and nearly greedy
LONG = 2048  # every fifth step is corpus text of this length, so that the draft knows far positions


def distance(draft: Tensor, target: Tensor, variation: Tensor) -> Tensor:
    """KL(p || q) + variation * TV(p, q), the latter at COOL temperatures; logits [N, V]."""
    draft, target = draft.float(), target.float()
    log_p, log_q = F.log_softmax(target, -1), F.log_softmax(draft, -1)
    total = (log_p.exp() * (log_p - log_q)).sum(-1)
    for heat in COOL:
        apart = F.softmax(target / heat, -1) - F.softmax(draft / heat, -1)
        total = total + variation / len(COOL) * apart.abs().sum(-1) / 2
    return total.mean()


def loss_of(draft: Llama, ids: Tensor, target_logits: Tensor, variation: Tensor) -> Tensor:
    """Distillation loss of one candidate over ids [B, T]."""
    logits = draft.logits(draft(ids))
    return distance(logits.flatten(0, 1), target_logits.flatten(0, 1), variation)


@torch.no_grad()
def logits_of(target: Llama, ids: Tensor) -> Tensor:
    return target.logits(target(ids))


def start(name: str, init: Path | None) -> Llama:
    """A candidate: new, from `init`, or grown from a shallower one there without changing it."""
    shape = DRAFTS[name]
    if init is None or (not (init / name).exists() and name not in GROWN):
        return Llama(shape)
    if (init / name).exists():
        return load(init / name, shape)
    return grow(load(init / GROWN[name], DRAFTS[GROWN[name]]), shape)


class OwnText:
    """The target's continuations of corpus prefixes, [N, prompt + new] int16 on the device."""

    def __init__(self, rows: int, lengths: tuple[int, ...], window: int) -> None:
        self.rows, self.lengths, self.window = rows, lengths, window
        self.parts: list[Tensor] = []
        self.made = 0  # tokens

    def add(self, target: Llama, stream: Stream) -> None:
        """One more batch; the prompt length alternates."""
        number = len(self.parts)
        prompt = self.lengths[number % len(self.lengths)]
        draw = torch.randint(
            len(stream.lines), (self.rows,), generator=stream.generator, device=stream.lines.device
        )
        ends = stream.lines[draw].clamp(min=prompt)  # prompts end at a line end
        offsets = torch.arange(-prompt, 0, device=ends.device)
        prompts = stream.ids[ends[:, None] + offsets]
        choices = torch.tensor([0.0, 0.8, 0.8, 1.0], device=ends.device)
        temperature = choices[torch.arange(self.rows, device=ends.device) % 4]
        new = self.window - prompt
        self.parts.append(generate(target, prompts, new, temperature, seed=number).to(torch.int16))
        self.made += self.rows * new

    def ready(self) -> None:
        self.text = torch.cat(self.parts)

    def batch(self, rows: int, generator: torch.Generator) -> Tensor:
        draw = torch.randint(len(self.text), (rows,), generator=generator, device=self.text.device)
        return self.text[draw].long()


def held_out_prompts(ids: Tensor, words: Vocabulary, count: int, length: int = 192) -> Tensor:
    """Seeded prompts [count, length] of held-out text that end where a block's body begins."""
    generator = torch.Generator(ids.device).manual_seed(1)
    starts = words.line_starts(ids)
    opened = starts & words.opens_body[ids.roll(1)]
    opened[:length] = False
    at = opened.nonzero()[:, 0]
    at = at[torch.randperm(len(at), generator=generator, device=ids.device)[:count]]
    return ids[at[:, None] + torch.arange(-length, 0, device=ids.device)]


def measure(
    target: Llama, drafts: dict[str, Llama], prompts: Tensor, words: Vocabulary, new: int
) -> dict[str, dict[str, object]]:
    """Acceptance of every candidate on the target's completions, per temperature."""
    results: dict[str, dict[str, object]] = {name: {} for name in drafts}
    for heat in (0.0, 0.8, 1.0):
        temperature = torch.full((len(prompts),), heat, device=prompts.device)
        ids = generate(target, prompts, new, temperature, seed=77)
        for name, draft in drafts.items():
            agree = coupled_agreement(draft, ids, prompts.shape[1], temperature, seed=77)
            results[name][str(heat)] = summarise(agree, ids, prompts.shape[1], words)
    return results


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--split", default="train", help="train, or part where little can travel")
    parser.add_argument("--target", type=Path, required=True, help="the target's checkpoint folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="a folder of candidates to start from")
    parser.add_argument("--candidates", default=",".join(DRAFTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="for the whole command")
    parser.add_argument("--own-seconds", type=float, default=100, help="of generating")
    parser.add_argument("--own-rows", type=int, default=4096)
    parser.add_argument("--own-share", type=float, default=0.8, help="of each batch, at the end")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--matrix-lr", type=float, default=0.02)
    parser.add_argument("--other-lr", type=float, default=0.004)
    parser.add_argument("--variation", type=float, default=1.0)
    parser.add_argument("--prompts", type=int, default=768)
    parser.add_argument("--new", type=int, default=192)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--tiny", action="store_true", help="a very small target, to try the command"
    )
    parser.add_argument("--eager", action="store_true", help="do not compile")
    return parser.parse_args()


def own_text(target: Llama, stream: Stream, args: argparse.Namespace) -> OwnText:
    """As much of the target's own text as `own_seconds` allow."""
    own = OwnText(args.own_rows, tuple(args.window * i // 8 for i in (2, 3, 5)), args.window)
    stop = time.monotonic() + args.own_seconds
    while time.monotonic() < stop:
        own.add(target, stream)
        if target.embed.is_cuda:
            torch.cuda.synchronize()
    own.ready()
    return own


def distill(
    target: Llama, drafts: dict[str, Llama], stream: Stream, own: OwnText, args: argparse.Namespace
) -> list[dict[str, float]]:
    """Train every candidate until the time is up; returns the losses, every hundred steps."""
    wrap = (lambda f: f) if args.eager else partial(torch.compile, dynamic=False)
    teach, losses = wrap(logits_of), {name: wrap(loss_of) for name in drafts}
    optimizers = {
        name: Optimizer(d.named_parameters(), args.matrix_lr, args.other_lr, 0.01)
        for name, d in drafts.items()
    }
    pace = Pace(args.deadline - 30)
    history: list[dict[str, float]] = []
    step, more = 0, True
    while more:
        done = step / pace.steps
        if step % 5 == 4:
            ids = stream.batch(max(8, args.rows * args.window // LONG), LONG)[:, :-1]
        else:
            mine = round(args.rows * args.own_share * min(1.0, max(0.25, 2.5 * done)))
            text = stream.batch(args.rows - mine, args.window)[:, :-1]
            ids = torch.cat((own.batch(mine, stream.generator), text))
        answers = teach(target, ids)
        variation = torch.tensor(args.variation * min(1.0, 4 * done), device=ids.device)
        values = {}
        for name, draft in drafts.items():
            loss = losses[name](draft, ids, answers, variation)
            loss.backward()
            optimizers[name].step(pace.share(step))
            values[name] = loss.detach()
        step += 1
        more = pace.more(step, sum(values.values(), start=torch.zeros_like(variation)))
        if step % 100 == 0:
            history.append({"step": step, **{n: v.item() for n, v in values.items()}})
            if step % 500 == 0:
                print(history[-1], flush=True)
    history.append({"step": step, **{n: v.item() for n, v in values.items()}})
    return history


def main() -> None:
    began = time.monotonic()
    args = arguments()
    args.deadline = began + 60 * args.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    target = load(args.target, TINY if args.tiny else TARGET).to(device).requires_grad_(False)
    drafts = {name: start(name, args.init).to(device) for name in args.candidates.split(",")}
    words = Vocabulary.read(args.data / "tokenizer", device)
    stream = Stream(load_ids(args.data / f"{args.split}.u16.xz"), words, device, args.seed)
    held = torch.from_numpy(load_ids(args.data / "held_out.u16.xz")).to(device)
    print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
    own = own_text(target, stream, args)
    print(f"{own.made} own tokens after {time.monotonic() - began:.0f} s", flush=True)
    history = distill(target, drafts, stream, own, args)
    for name, draft in drafts.items():
        save(to_hf(draft), args.out / name)
    result = {
        "arguments": {k: str(v) for k, v in vars(args).items()},
        "steps": history[-1]["step"],
        "own_tokens": own.made,
        "parameters": {n: sum(p.numel() for p in d.parameters()) for n, d in drafts.items()},
        "shapes": {
            n: {k: getattr(d.shape, k) for k in d.shape.__slots__} for n, d in drafts.items()
        },
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "history": history,
        "held_out": measure(
            target, drafts, held_out_prompts(held, words, args.prompts), words, args.new
        ),
        "seconds": time.monotonic() - began,
    }
    (args.out / "distill.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"steps": result["steps"], "held_out": result["held_out"]}))


if __name__ == "__main__":
    main()
