"""Train the target on the encoded corpus and write its bfloat16 checkpoint.

One command, one GPU, a fixed number of minutes: after a short speed probe the number of steps is
fixed so that the learning rate reaches zero just before the time is up. Writes the checkpoint and
target.json (loss, accuracy, speed, versions) under --out, early as well as at the end.

    python recipes/mini/train_target.py --minutes 8.6 --out out
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from data import Stream, Vocabulary, load_ids
from model import TARGET, TINY, Llama, generate, load, save, to_hf
from optim import Optimizer, Pace


def loss_of(model: Llama, windows: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats; windows [B, T + 1]."""
    logits = model.logits(model(windows[:, :-1]))
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: Llama, ids: Tensor, length: int, rows: int = 8) -> dict[str, float]:
    """Loss (nats) and next-token accuracy over consecutive windows of held-out ids."""
    count = (len(ids) - 1) // length
    offsets = torch.arange(length + 1, device=ids.device)
    windows = ids[torch.arange(count, device=ids.device)[:, None] * length + offsets]
    loss = hits = 0.0
    for part in windows.split(rows):
        logits = model.logits(model(part[:, :-1])).float()
        loss += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
        hits += float((logits.argmax(-1) == part[:, 1:]).sum())
    return {"loss": loss / (count * length), "accuracy": hits / (count * length)}


def samples(model: Llama, tokenizer: Tokenizer, device: torch.device) -> list[str]:
    """A few greedy completions, to be read by a person."""
    prompts = (
        'def read_json(path):\n    """Read a JSON file and return its content."""\n',
        "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def add(self, x):\n",
        "import os\n\n\ndef list_files(folder, suffix):\n",
        "def fibonacci(n):\n",
    )
    texts = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt).ids], device=device)
        out = generate(model, ids, 96, torch.zeros(1, device=device), seed=0)
        texts.append(tokenizer.decode(out[0].tolist(), skip_special_tokens=False))
    return texts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.6, help="for the whole command")
    parser.add_argument("--steps", type=int, help="instead of the number the speed probe finds")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--matrix-lr", type=float, default=0.02)
    parser.add_argument("--other-lr", type=float, default=0.003)
    parser.add_argument("--decay", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="a checkpoint folder to start from")
    parser.add_argument(
        "--tiny", action="store_true", help="a very small model, to try the command"
    )
    parser.add_argument("--eager", action="store_true", help="do not compile")
    return parser.parse_args()


def main() -> None:
    began = time.monotonic()
    args = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    shape = TINY if args.tiny else TARGET
    model = (load(args.init, shape) if args.init else Llama(shape)).to(device)
    words = Vocabulary.read(args.data / "tokenizer", device)
    tokenizer = Tokenizer.from_file(str(args.data / "tokenizer" / "tokenizer.json"))
    stream = Stream(load_ids(args.data / "train.u16.xz"), words, device, args.seed)
    held = torch.from_numpy(load_ids(args.data / "held_out.u16.xz")).to(device)
    optimizer = Optimizer(model.named_parameters(), args.matrix_lr, args.other_lr, args.decay)
    compiled = loss_of if args.eager else torch.compile(loss_of)
    pace = Pace(began + 60 * args.minutes - 12, args.steps)
    history: list[dict[str, float]] = []
    print(f"ready after {time.monotonic() - began:.0f} s: {stream.ids.numel()} tokens", flush=True)

    def report(step: int) -> dict[str, object]:
        result = {
            "shape": {k: getattr(shape, k) for k in shape.__slots__},
            "parameters": sum(p.numel() for p in model.parameters()),
            "step": step,
            "steps": pace.steps,
            "tokens": step * args.rows * args.length,
            "epochs_of_running_text": stream.epoch,
            "arguments": {k: str(v) for k, v in vars(args).items()},
            "seconds": time.monotonic() - began,
            "held_out": evaluate(model, held, args.length),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "history": history,
            "samples": samples(model, tokenizer, device),
        }
        save(to_hf(model), args.out)
        (args.out / "target.json").write_text(json.dumps(result, indent=1) + "\n")
        print(step, result["held_out"], f"{time.monotonic() - began:.0f} s", flush=True)
        return result

    step, more = 0, True
    while more:
        loss = compiled(model, stream.batch(args.rows, args.length))
        loss.backward()
        optimizer.step(pace.share(step))
        step += 1
        more = pace.more(step, loss.detach())
        if step % 100 == 0:
            history.append({"step": step, "loss": loss.item(), "seconds": time.monotonic() - began})
        if step % 2000 == 0:
            report(step)
    print(json.dumps({"steps": step, "held_out": report(step)["held_out"]}))


if __name__ == "__main__":
    main()
