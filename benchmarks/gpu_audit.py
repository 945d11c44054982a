"""The audit's texts on a GPU: with speculation, at every K, in any batch, the text of the request
written alone without it. See README.md.

Ordinary random weights (normal, standard deviation 0.02) have next tokens that nearly tie, so a
logit that changes in its last bit soon changes a text; as their draft they have themselves, so that
windows are accepted whole. Rounds run eagerly there, which makes windows exactly as wide as K says;
the mini pair's are recorded.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu_common import Bench, say
from gpu_speed import mini_prompts
from gpu_weights import STD
from harness import Job, Parts, add_options, choose_parts, measure, numbers, shrink
from safetensors.torch import load_file, save_file

from paceline.lab.audit_identity import IdentityOptions, audit_identity
from paceline.lab.audit_pair import Pair
from paceline.lab.audit_traffic import TrafficOptions, audit_traffic
from paceline.lab.pair import PairOptions, make_pair
from paceline.lab.pair_shapes import find_shape
from paceline.models.loading import resolve
from paceline.text import Tokenizer

_LISTED = 20
_PROMPT = 48  # tokens
SMALL = {"prompts": 2, "tokens": 6, "ks": [1, 3], "slots": 3, "requests": 12, "longest": 12}


def mini(bench: Bench) -> dict[str, Any]:
    """The bundled pair, rounds recorded; in float32 too."""
    pair = Pair("mini-target", "mini-draft", 512, _threads(bench), bench.options.device)
    return _identity(bench, pair, _mini_ids(bench), ("float32", "bfloat16"))


def llama(bench: Bench) -> dict[str, Any]:
    """A Llama of one billion parameters."""
    return _random(bench, "mini-draft" if bench.options.small else "llama-3.2-1b")


def qwen3(bench: Bench) -> dict[str, Any]:
    """A Qwen3 of 0.6 billion, whose attention has norms of its own."""
    return _random(bench, "mini-draft" if bench.options.small else "qwen3-0.6b")


def traffic(bench: Bench) -> dict[str, Any]:
    """Many streams at once on the bundled pair, cancelled at random and short of memory."""
    o = bench.options
    pair = Pair("mini-target", "mini-draft", 512, _threads(bench), o.device)
    options = TrafficOptions(
        requests=o.requests, longest=o.longest, slots=o.slots, dtypes=("float32", "bfloat16")
    )
    report = audit_traffic(pair, _mini_ids(bench), options)
    told: dict[str, Any] = {"passed": report.passed}
    for result in report.results:
        stats = result.stats
        told[result.dtype] = {
            "finished": result.finished, "cancelled": result.cancelled,
            "preemptions": stats.preemptions, "prefix_hits": stats.prefix_hits,
            "differ": len(result.divergences), "wrong": list(result.wrong[:_LISTED]),
            "divergences": [dataclasses.asdict(d) for d in result.divergences[:_LISTED]],
        }  # fmt: skip
        say(f"  {result.dtype}: {told[result.dtype]}")
    return told


def _mini_ids(bench: Bench) -> list[tuple[int, ...]]:
    tokenizer = Tokenizer.load(resolve("mini-target"))
    texts = (mini_prompts() * bench.options.prompts)[: bench.options.prompts]
    return [tuple(tokenizer.encode(text)[-_PROMPT:]) for text in texts]


def _random(bench: Bench, shape: str) -> dict[str, Any]:
    """Identity on a checkpoint of `shape` with ordinary random weights."""
    o = bench.options
    with tempfile.TemporaryDirectory() as folder:
        # A calibrated pair has all the files that a checkpoint needs; then its weights are drawn
        # anew.
        where = Path(folder) / "pair"
        make_pair(PairOptions(shape, shape, 0.5, where, device=o.device))
        target = where / "target"
        count = _redraw(target, bench.device)
        say(f"  {count / 1e9:.2f} billion parameters drawn")
        vocab = find_shape(shape).vocab
        draw = torch.Generator().manual_seed(5)
        ids = torch.randint(vocab // 8, vocab * 7 // 8, (o.prompts, _PROMPT), generator=draw)
        pair = Pair(str(target), str(target), 512, _threads(bench), o.device, capture=False)
        prompts = [tuple(row) for row in ids.tolist()]
        told = _identity(bench, pair, prompts, ("bfloat16",))
    return told | {"shape": shape, "parameters_drawn": count}


def _redraw(folder: Path, device: torch.device) -> int:
    """Ordinary random values in every matrix of a checkpoint; how many."""
    generator = torch.Generator(device).manual_seed(3)
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file, device=str(device))
        for tensor in tensors.values():
            if tensor.dim() == 2:
                tensor.normal_(0.0, STD, generator=generator)
                count += tensor.numel()
        save_file(tensors, file, {"format": "pt"})
    return count


def _identity(
    bench: Bench, pair: Pair, prompts: list[tuple[int, ...]], dtypes: tuple[str, ...]
) -> dict[str, Any]:
    o = bench.options
    options = IdentityOptions(dtypes=dtypes, ks=tuple(o.ks), tokens=o.tokens, slots=o.slots)

    def progress(what: str, done: int, total: int) -> None:
        if done % 6 == 0:
            say(f"  {what}: {done} of {total}")

    report = audit_identity(pair, prompts, options, progress)
    told: dict[str, Any] = {"slots": o.slots, "ks": o.ks, "recorded": pair.capture}
    for result in report.results:
        told[result.dtype] = {
            "texts": result.texts, "positions": result.tokens, "drafters": list(result.drafters),
            "differ": len(result.divergences),
            "divergences": [dataclasses.asdict(d) for d in result.divergences[:_LISTED]],
        }  # fmt: skip
        say(f"  {result.dtype}: {len(result.divergences)} of {result.texts} texts differ, "
            f"{result.tokens} positions")  # fmt: skip
    return told


def _threads(bench: Bench) -> int | None:
    return None if bench.cuda else 1


PARTS: Parts = {"mini": mini, "llama": llama, "qwen3": qwen3, "traffic": traffic}


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    parts = results["parts"]
    short: dict[str, Any] = {"benchmark": "gpu_audit", "machine": results["machine"]}
    for name, part in parts.items():
        short[name] = {"error": part["error"][:300]} if "error" in part else {
            dtype: {k: v for k, v in told.items() if not isinstance(v, list)}
            for dtype, told in part.items() if isinstance(told, dict)
        }  # fmt: skip
    return short


def main() -> None:
    """Run the parts and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add_options(parser, PARTS, 500.0)
    add("--prompts", type=int, default=16)
    add("--tokens", type=int, default=56, help="of each text")
    add("--ks", type=numbers, default=[1, 2, 3, 4, 5, 8])
    add("--slots", type=int, default=32, help="texts at once")
    add("--requests", type=int, default=400, help="part traffic")
    add("--longest", type=int, default=120, help="part traffic: tokens of a text at most")
    options = parser.parse_args()
    shrink(options, SMALL)
    choose_parts(parser, options, PARTS)
    measure(Job("gpu_audit", __file__, PARTS, summary), options)


if __name__ == "__main__":
    main()
