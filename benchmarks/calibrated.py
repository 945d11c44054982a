"""Calibrated pairs for the benchmarks: made where there is none, and given another law while an
engine holds them.

Pairs of one seed and one pair of shapes differ in their heads alone, so an engine that is open
goes from one acceptance to another by having two matrices overwritten: the same tensors, so that
recorded rounds read the new values. Elsewhere than on a GPU that needs float64, because other
weights are packed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from gpu_common import Bench, digits, say, settle
from gpu_weights import STD, matrices

from paceline import Engine
from paceline.lab.pair_law import Law, make_law
from paceline.lab.pair_shapes import Shape, find_shape
from paceline.lab.pair_tokenizer import words
from paceline.lab.pair_weights import Values, code_length
from paceline.models.decoder import Decoder

ACCEPTANCE = 0.8  # of the pair on disk
# Shapes of the small pair, to find mistakes without a GPU.
_TINY: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 1024, "max_position_embeddings": 8192, "head_dim": 16,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
_TINIES = {
    "target": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
               "num_attention_heads": 8, "num_key_value_heads": 2},
    "draft": {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1,
              "num_attention_heads": 4, "num_key_value_heads": 1},
}  # fmt: skip


def add_pair_options(add: Any) -> None:
    """The options that say which pair."""
    add("--pair", type=Path, required=True, help="folder of the calibrated pair; made if not there")
    add("--target-shape", default="llama-3.1-8b", help="of a pair that is made")
    add("--draft-shape", default="llama-3.2-1b")


def make_ready(options: Any) -> None:
    """Make the pair in a process of its own, unless it is there; set target and draft."""
    folder: Path = options.pair
    if not (folder / "target").is_dir():
        shapes = [options.target_shape, options.draft_shape]
        if options.small:
            shapes = [_write_shape(folder.parent, role) for role in _TINIES]
        command = [sys.executable, "-m", "paceline", "pair", "make", "--out", str(folder)]
        command += ["--target-shape", shapes[0], "--draft-shape", shapes[1]]
        command += ["--acceptance", str(ACCEPTANCE), "--device", options.device.split(":")[0]]
        say(f"making the pair {folder}")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        say("made")
    options.target, options.draft = str(folder / "target"), str(folder / "draft")


def _write_shape(place: Path, role: str) -> str:
    folder = place / f"tiny-{role}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_TINY | _TINIES[role]), encoding="utf-8")
    return str(folder)


class Heads:
    """The laws of one pair, and the engine's heads that follow them."""

    def __init__(self, bench: Bench) -> None:
        folders = {"target": bench.options.target, "draft": bench.options.draft}
        told = json.loads((Path(folders["target"]) / "config.json").read_text(encoding="utf-8"))
        self._seed = int(told["paceline_calibrated"]["seed"])
        self._shapes: dict[str, Shape] = {r: find_shape(f) for r, f in folders.items()}
        self._device = bench.device
        self._bench = bench
        saved = json.loads((Path(folders["target"]) / "calibration.json").read_text("utf-8"))
        self._classes_on_disk = saved["class_of_token"]

    def law(self, acceptance: float) -> Law:
        """The law of the pair that `paceline pair make` would write for this acceptance."""
        vocab = self._shapes["target"].vocab
        ordinary = words(vocab)
        most = min(code_length(shape) for shape in self._shapes.values())
        law = make_law(vocab, ordinary, min(most, len(ordinary) // 2), acceptance, self._seed)
        assert law.klass.tolist() == self._classes_on_disk, "the embeddings would differ too"
        return law

    def check(self, engine: Engine) -> None:
        """Assert that what would be written for the acceptance on disk is what the engine holds."""
        law = self.law(ACCEPTANCE)
        for role, decoder in decoders(engine).items():
            assert torch.equal(matrices(decoder)["head"], self._head(role, law, decoder)), role

    def put(self, engine: Engine, acceptance: float) -> Law:
        """Give the engine's models that law. No request may be running."""
        law = self.law(acceptance)
        with torch.inference_mode():
            for role, decoder in decoders(engine).items():
                matrices(decoder)["head"].copy_(self._head(role, law, decoder))
        settle(self._bench)
        return law

    def _head(self, role: str, law: Law, decoder: Decoder) -> torch.Tensor:
        table = self._shapes[role].tensors()
        number = next(i for i, spec in enumerate(table) if spec.kind == "head")
        values = Values(self._shapes[role], law, role, self._seed, self._device)
        return values.make(table[number], number).to(decoder.embedding.dtype)


def decoders(engine: Engine) -> dict[str, Decoder]:
    """The engine's two models."""
    machine = engine._loop.machine
    draft: Decoder = machine.drafter._model  # type: ignore[attr-defined]
    return {"target": machine.target, "draft": draft}


def follows(law: Law, root: int, ids: list[int]) -> bool:
    """Whether greedy text behind the token `root` is what the target's law says."""
    for token in ids:
        if token != law.first[law.klass[root]]:
            return False
        root = token
    return True


@torch.inference_mode()
def roughen(engine: Engine, seed: int) -> dict[str, Any]:
    """Make the right text depend on every layer, and keep the draft worth drafting with.

    A calibrated target's layers add nothing to the stream, so its text is right whatever attention
    does. Here they are drawn anew at ordinary scale, embeddings are made as large as what all
    layers add, and the head is given ordinary noise: the law's two successors still lie far above
    the rest, and which of them is likelier depends on the layers, of which the draft knows nothing.
    """
    target = decoders(engine)["target"]
    c = target.config
    std = STD * (4096 / c.hidden_size) ** 0.5  # the same size of a product's result at every width
    generator = torch.Generator(target.embedding.device).manual_seed(seed)
    count = 0
    for name, matrix in matrices(target).items():
        if name == "embedding":
            matrix.mul_(std * (c.layers * c.intermediate_size) ** 0.5 / matrix.abs().max())
        elif name == "head":
            noise = torch.empty_like(matrix).normal_(0.0, std, generator=generator)
            matrix.add_(noise)
        else:
            matrix.normal_(0.0, std, generator=generator)
            count += matrix.numel()
    return {"parameters_drawn": count, "std": digits(std)}
