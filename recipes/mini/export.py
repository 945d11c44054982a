"""Write the trained pair as plain Hugging Face checkpoints, with its model card.

Owns config.json, generation_config.json, the tokenizer files and the card's text; every figure in
the card is read from the JSON the other steps wrote. Also proves the export: transformers must load
each checkpoint unchanged and give the logits this recipe's own model gives.

    python recipes/mini/export.py --target .data/target --drafts .data/drafts --candidate a
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from corpus import HERE
from model import DRAFTS, EPS, TARGET, THETA, Llama, Shape, load, save, to_hf
from prompts import ASSETS

RESULTS = HERE / "results"


def config_of(shape: Shape) -> dict[str, object]:
    """config.json of a tied Llama in bfloat16.

    transformers' LlamaConfig refuses a hidden size that the number of heads does not divide, though
    the head dimension is given. Mistral without a sliding window is the same computation under the
    same tensor names and has no such rule, so that is what such a shape is called.
    """
    plain = shape.hidden % shape.heads == 0
    return {
        "architectures": ["LlamaForCausalLM" if plain else "MistralForCausalLM"],
        **({"attention_bias": False, "mlp_bias": False} if plain else {"sliding_window": None}),
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "bfloat16",
        "eos_token_id": 0,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "model_type": "llama" if plain else "mistral",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": 1,
        "rms_norm_eps": EPS,
        "rope_parameters": {"rope_theta": THETA, "rope_type": "default"},
        "rope_theta": THETA,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": shape.vocab,
    }


GENERATION = {"eos_token_id": 0, "pad_token_id": 1, "do_sample": False}


def export(model: Llama, tokenizer: Path, folder: Path) -> None:
    """Write one checkpoint folder, replacing what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    save(to_hf(model), folder)
    for name, content in (("config", config_of(model.shape)), ("generation_config", GENERATION)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)


@torch.no_grad()
def prove(model: Llama, folder: Path) -> None:
    """Load `folder` with transformers and compare it with the model it was written from."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "def add(a, b):\n    return a + b\n\n\nclass Queue:\n    def __init__(self):\n"
    ids = tokenizer(text, return_tensors="pt").input_ids
    if tokenizer.decode(ids[0]) != text or other.dtype != torch.bfloat16:
        raise SystemExit(f"{folder}: the round trip of text or of the dtype fails")
    mine, theirs = model.logits(model(ids)).float(), other(ids).logits.float()
    far = float((mine - theirs).norm() / theirs.norm())
    if far > 0.02 or (mine.argmax(-1) != theirs.argmax(-1)).sum() > 1:
        raise SystemExit(f"{folder}: transformers' logits differ by {far:.3f} (relative norm)")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=False
    )
    if chat != "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n":
        raise SystemExit(f"{folder}: the chat template gives {chat!r}")


def read(name: str) -> dict[str, object]:
    path = RESULTS / name
    if not path.exists():
        raise SystemExit(f"{path} is missing: run the step that writes it first (see README.md)")
    content: dict[str, object] = json.loads(path.read_text())
    return content


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--drafts", type=Path, required=True)
    parser.add_argument("--candidate", required=True, choices=sorted(DRAFTS))
    parser.add_argument("--out", type=Path, default=ASSETS)
    args = parser.parse_args()
    pairs = (
        ("mini-target", load(args.target, TARGET)),
        ("mini-draft", load(args.drafts / args.candidate, DRAFTS[args.candidate])),
    )
    sizes = {}
    for name, model in pairs:
        folder = args.out / name
        export(model, args.data / "tokenizer", folder)
        prove(model, folder)
        sizes[name] = sum(f.stat().st_size for f in folder.iterdir())
    print(json.dumps({"bytes": sizes}))


if __name__ == "__main__":
    main()
