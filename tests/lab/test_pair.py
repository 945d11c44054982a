"""Calibrated pairs: what the card promises is what transformers and the engine measure."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paceline import ConfigError, Engine, SamplingParams
from paceline.lab import pair as making
from paceline.lab import pair_law, pair_weights
from paceline.lab.pair import PairOptions, PairReport, make_pair
from paceline.lab.pair_law import Law, geometric, greedy_rounds, greedy_walk, make_law
from paceline.lab.pair_shapes import SHAPES, find_shape
from paceline.lab.pair_tokenizer import LEAST, words

VOCAB = 1024
ACCEPTANCE = 0.8
# Neither width is a power of two, the target's q/k norms and the draft's biases are there.
TARGET = {
    "model_type": "qwen3", "hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": VOCAB,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
}  # fmt: skip
DRAFT = {
    "model_type": "llama", "hidden_size": 130, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 9999,
    "attention_bias": True, "mlp_bias": True, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("shapes")
    for name, config in (("target", TARGET), ("draft", DRAFT)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return SimpleNamespace(target=str(folder / "target"), draft=str(folder / "draft"))


@pytest.fixture(scope="module")
def options(shapes: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> PairOptions:
    out = tmp_path_factory.mktemp("made") / "pair"
    return PairOptions(shapes.target, shapes.draft, ACCEPTANCE, out, seed=3)


@pytest.fixture(scope="module")
def made(options: PairOptions) -> PairReport:
    return make_pair(options)


@pytest.fixture(scope="module")
def law(made: PairReport) -> Law:
    """The law as calibration.json states it."""
    stated = json.loads((made.target / "calibration.json").read_text())
    gaps = {
        role: np.subtract(*np.array(stated[f"{role}_logits"]).T) for role in ("target", "draft")
    }
    return Law(
        klass=np.array(stated["class_of_token"]),
        first=np.array(stated["first"]),
        second=np.array(stated["second"]),
        agree=np.array(stated["agree"]),
        p_gap=gaps["target"],
        q_gap=gaps["draft"],
    )


def load(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.fixture(scope="module")
def models(made: PairReport) -> SimpleNamespace:
    return SimpleNamespace(target=load(made.target), draft=load(made.draft))


def cycle_from(law: Law, token: int, length: int) -> list[int]:
    start = int(law.klass[token])
    return [int(law.first[(start + i) % law.classes]) for i in range(length)]


# --- shapes and law -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published", "tied"),
    [
        ("llama-3.2-1b", 1_235_814_400, True),
        ("llama-3.2-3b", 3_212_749_824, True),
        ("llama-3.1-8b", 8_030_261_248, False),
        ("qwen3-0.6b", 596_049_920, True),
        ("qwen3-14b", 14_768_307_200, False),
    ],
)
def test_published_shapes_have_the_published_parameters(
    name: str, published: int, tied: bool
) -> None:
    shape = find_shape(name)
    head = shape.vocab * shape.hidden if tied else 0
    assert shape.weight_bytes() == 2 * (published + head)


@pytest.mark.parametrize("name", ["mini-target", "mini-draft"])
def test_the_mini_shapes_are_the_bundled_ones(name: str) -> None:
    import paceline

    file = Path(paceline.__file__).parent / "assets" / name / "config.json"
    bundled = json.loads(file.read_text())
    ours = find_shape(name).config
    keys = [key for key in ours if key.startswith(("hidden", "num_", "inter", "head", "vocab"))]
    assert {key: ours[key] for key in keys} == {key: bundled[key] for key in keys}


def test_every_named_shape_has_a_law() -> None:
    for name in SHAPES:
        assert pair_weights.code_length(find_shape(name)) >= 128
        assert len(words(find_shape(name).vocab)) > 256


@pytest.mark.parametrize("acceptance", [1.0, 0.97, 0.8, 0.73, 0.5, 0.25, 0.05])
def test_the_law_has_the_acceptance_asked_for(acceptance: float) -> None:
    law = make_law(8192, words(8192), 512, acceptance, seed=1)
    assert law.agree.mean() == pytest.approx(acceptance, abs=0.5 / 512)
    assert law.acceptance().mean() == pytest.approx(acceptance, abs=1e-4)
    assert law.match_acceptance().mean() == pytest.approx(acceptance, abs=1e-4)
    assert ((law.q_gap > 0) == law.agree).all()
    assert len({*law.first.tolist(), *law.second.tolist()}) == 2 * law.classes
    sums = (law.probabilities("draft") * law.group_sizes()).sum(1)
    assert sums == pytest.approx(np.ones(512), abs=1e-12)
    assert (1 - law.probabilities("target")[:, :2].sum(1)).max() < 1e-7
    for k in (1, 5, 8):
        assert greedy_rounds(law.agree, k).tokens_per_round == pytest.approx(
            geometric(acceptance, k), rel=0.03
        )
        rounds = pair_law.sampled_rounds(law, k)
        assert rounds.tokens_per_round == pytest.approx(geometric(acceptance, k), rel=0.01)
        assert rounds.acceptance_rate == pytest.approx(acceptance, rel=0.01)


def test_greedy_rounds_is_a_walk() -> None:
    random = np.random.default_rng(0)
    for k in (1, 3, 8):
        agree = random.random(61) < 0.7
        means = []
        for start in range(61):
            counts = greedy_walk(agree, start, k, 4000)
            means.append(1 + np.mean(counts[400:]))
        assert greedy_rounds(agree, k).tokens_per_round == pytest.approx(np.mean(means), abs=2e-3)
    assert greedy_walk(np.array([1, 1, 0, 1], bool), 0, 5, 3) == [2, 3, 3]
    assert greedy_rounds(np.ones(7, np.bool_), 4) == pair_law.Rounds(5.0, 1.0)


def test_match_acceptance_is_what_shared_noise_gives() -> None:
    klass = np.arange(12) % 2
    law = Law(klass, np.array([1, 2]), np.array([3, 4]), np.array([True, False]),
              np.array([1.5, 0.5]), np.array([0.25, -2.0]))  # fmt: skip
    noise = np.random.default_rng(0).gumbel(size=(200_000, 2))
    for i in range(2):
        p, q = (law.probabilities(role)[i, :2] for role in ("target", "draft"))
        same = (np.log(p) + noise).argmax(1) == (np.log(q) + noise).argmax(1)
        assert law.match_acceptance()[i] == pytest.approx(same.mean(), abs=0.005)


# --- files ----------------------------------------------------------------------------------


def test_the_files_are_those_of_a_checkpoint(made: PairReport) -> None:
    for folder in (made.target, made.draft):
        assert {file.name for file in folder.iterdir()} == {
            "README.md", "calibration.json", "config.json", "generation_config.json",
            "model-00001-of-00001.safetensors", "model.safetensors.index.json", "tokenizer.json",
            "tokenizer_config.json",
        }  # fmt: skip
        config = json.loads((folder / "config.json").read_text())
        assert config["vocab_size"] == VOCAB
        assert config["paceline_calibrated"]["role"] == folder.name
        assert config["paceline_calibrated"]["greedy"] == made.stated["greedy"]
        card = (folder / "README.md").read_text()
        assert "not for text" in card
        assert f"{made.stated['greedy']['acceptance']:.6f}" in card
        assert str(made.target.parent) not in card
    assert "9,999 tokens; it was given the target's" in (made.draft / "README.md").read_text()
    for name in ("tokenizer.json", "tokenizer_config.json", "calibration.json"):
        assert (made.target / name).read_bytes() == (made.draft / name).read_bytes()


def test_the_same_seed_writes_the_same_bytes(
    made: PairReport, options: PairOptions, tmp_path: Path
) -> None:
    again = make_pair(replace(options, out=tmp_path))  # a folder that is there and empty
    other = make_pair(replace(options, out=tmp_path / "other", seed=4))
    name = "model-00001-of-00001.safetensors"
    assert (again.draft / name).read_bytes() == (made.draft / name).read_bytes()
    assert (other.draft / name).read_bytes() != (made.draft / name).read_bytes()


def test_shards(made: PairReport, options: PairOptions, tmp_path: Path,
                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(pair_weights.write_weights, "__defaults__", (300_000,))
    split = make_pair(replace(options, out=tmp_path / "split"))
    index = json.loads((split.target / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 4
    whole, parts = load(made.target).state_dict(), load(split.target).state_dict()
    assert whole.keys() == parts.keys() == index["weight_map"].keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_tokenizer(made: PairReport) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.target)
    assert len(tokenizer) == VOCAB
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (VOCAB - 3, VOCAB - 2)
    ids = np.random.default_rng(0).permutation(words(VOCAB)).tolist()
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    text = "Any text at all, 日本語 too."
    assert tokenizer.decode(tokenizer.encode(text)) == text


# --- transformers ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("role", ["target", "draft"])
def test_the_stream_stays_the_embedding(made: PairReport, role: str, dtype: torch.dtype) -> None:
    model = load(getattr(made, role), dtype)
    seen: dict[str, Any] = {}
    model.model.norm.register_forward_hook(
        lambda module, given, out: seen.update(before=given[0], after=out)
    )
    ids = torch.arange(VOCAB).view(4, -1)
    attention = model.model.layers[0].self_attn.v_proj.register_forward_hook(
        lambda module, given, out: seen.update(values=out)
    )
    with torch.inference_mode():
        model(ids)
    attention.remove()
    assert torch.equal(seen["before"], model.model.embed_tokens(ids))
    assert torch.equal(seen["after"].abs(), torch.ones_like(seen["after"]))
    assert 0.5 < seen["values"].float().std() < 2.0, "the layers compute with ordinary numbers"


@pytest.mark.parametrize("role", ["target", "draft"])
def test_logits_are_the_stated_law(models: SimpleNamespace, law: Law, role: str) -> None:
    tokens = torch.from_numpy(law.cycle)
    expected = torch.zeros(law.classes, VOCAB)
    classes = torch.arange(law.classes)
    fillers = np.setdiff1d(np.arange(VOCAB), [*law.first, *law.second])
    expected[law.klass[fillers], fillers] = pair_law.FILLER
    for chosen, logit in zip((law.first, law.second), law.logits(role), strict=True):
        expected[classes, torch.from_numpy(chosen)] = torch.from_numpy(logit).float()
    model = getattr(models, role)
    with torch.inference_mode():
        logits = model(tokens.unsqueeze(0)).logits[0]
    assert torch.equal(logits.float(), expected)
    # From the stored weights in float64, with the norm's eps.
    weights = model.state_dict()
    x = weights["model.embed_tokens.weight"][tokens].double()
    x = x / (x.square().mean(1, keepdim=True) + model.config.rms_norm_eps).sqrt()
    exact = torch.softmax(x @ weights["lm_head.weight"].double().T, dim=1).numpy()
    stated = law.probabilities(role)
    everyone = np.where(expected.numpy() == 0, stated[:, 2:3], stated[:, 3:4])
    for column, chosen in enumerate((law.first, law.second)):
        everyone[classes, chosen] = stated[:, column]
    assert np.abs(exact - everyone).max() < 1e-6


def test_greedy_text_walks_the_cycle(models: SimpleNamespace, law: Law) -> None:
    prompts = torch.tensor([[7, 300, 2], [5, 5, VOCAB - 3]])  # bytes, a bos
    length = law.classes + 10
    texts = models.target.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=length
    )
    for prompt, text in zip(prompts.tolist(), texts.tolist(), strict=True):
        assert text[3:] == cycle_from(law, prompt[-1], length)
    assert set(law.cycle) <= set(words(VOCAB))
    assert len(set(law.cycle.tolist())) == law.classes


def test_transformers_measures_the_acceptance(
    models: SimpleNamespace, made: PairReport, law: Law
) -> None:
    text = torch.from_numpy(law.cycle).unsqueeze(0)
    with torch.inference_mode():
        agreed = models.target(text).logits.argmax(-1) == models.draft(text).logits.argmax(-1)
    assert agreed[0].tolist() == law.agree.tolist()
    rate = agreed.float().mean().item()
    assert rate == pytest.approx(made.stated["greedy"]["acceptance"], abs=1e-6)
    assert abs(rate - ACCEPTANCE) < 1.96 * (0.16 / law.classes) ** 0.5


def test_transformers_assists(models: SimpleNamespace, law: Law) -> None:
    prompt = torch.tensor([[400]])
    text = models.target.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        assistant_model=models.draft,
        max_new_tokens=60,
    )
    assert text[0, 1:].tolist() == cycle_from(law, 400, 60)


# --- the engine -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_engine_counts_what_the_walk_counts(made: PairReport, law: Law, dtype: str) -> None:
    k, prompt = 5, [33, 500]
    with Engine(
        made.target, draft=made.draft, k=k, dtype=dtype, threads=1, adaptive=False
    ) as engine:
        events = list(engine.stream(prompt, SamplingParams(max_tokens=2 * law.classes)))
    rounds = [len(event.token_ids) for event in events if event.token_ids]
    tokens = [token for event in events for token in event.token_ids]
    assert tokens == cycle_from(law, 500, 2 * law.classes)
    walk = greedy_walk(law.agree, int(law.klass[500]), k, len(rounds) - 1)
    assert rounds[:-1] == [accepted + 1 for accepted in walk]  # the last is cut at the limit
    stated = made.stated["greedy"]["tokens_per_round"]["5"]
    assert np.mean(rounds[:-1]) == pytest.approx(stated, rel=0.05)


@pytest.mark.parametrize("rule", ["match", "reject", "block"])
def test_the_engine_samples_at_the_acceptance(made: PairReport, rule: str) -> None:
    k, texts = 4, 6
    params = SamplingParams(temperature=1.0, max_tokens=300, ignore_eos=True)
    with Engine(
        made.target, draft=made.draft, k=k, rule=rule, dtype="float32", threads=1, adaptive=False
    ) as engine:
        for i in range(texts):  # one after the other: rounds are then rounds of one text
            engine.generate([i, 470 + 7 * i], replace(params, seed=i))
        stats = engine.stats()
    stated = made.stated["temperature_1"]
    assert stats.acceptance_rate is not None
    assert stats.tokens_per_round is not None
    # Four and a half standard errors; the last round of each text is cut at the limit.
    error = 4.5 * (0.16 / stats.evaluated) ** 0.5
    rate = stats.acceptance_rate - stated["acceptance_in_rounds"][str(k)]
    bound = 4.5 * 1.6 / stats.rounds**0.5 + 4 * texts / stats.rounds
    tokens = stats.tokens_per_round - stated["tokens_per_round"][str(k)]
    assert -error < rate
    assert -bound < tokens
    if rule != "block":  # which accepts at least as much
        assert rate < error
        assert tokens < bound


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"acceptance": 0.0}, "above 0"),
        ({"acceptance": 1.5}, "at most 1"),
        ({"acceptance": float("nan")}, "above 0"),
        ({"acceptance": 0.001}, "below 1/128"),
        ({"target_shape": "lama-3.1-8b"}, "did you mean 'llama-3.1-8b'"),
        ({"draft_shape": "nowhere/config.json"}, "config.json"),
        ({"device": "tpu"}, "cpu or cuda"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_bad_option(options: PairOptions, tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_pair(replace(options, out=tmp_path / "pair", **change))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "not supported"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"num_key_value_heads": 3}, "cannot share"),
        ({"vocab_size": LEAST - 1}, "vocabulary"),
    ],
)
def test_a_bad_config(options: PairOptions, tmp_path: Path, change: Any, words: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TARGET | change))
    with pytest.raises(ConfigError, match=words):
        make_pair(replace(options, target_shape=str(file), out=tmp_path / "pair"))
    file.write_text("[]")
    with pytest.raises(ConfigError, match="no JSON object"):
        make_pair(replace(options, target_shape=str(file), out=tmp_path / "pair"))
    file.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        make_pair(replace(options, target_shape=str(file), out=tmp_path / "pair"))


def test_a_folder_in_use(options: PairOptions, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        make_pair(replace(options, out=tmp_path))
    with pytest.raises(ConfigError, match="is a file"):
        make_pair(replace(options, out=tmp_path / "note"))
    with pytest.raises(ConfigError, match="cannot be written"):
        make_pair(replace(options, out=tmp_path / "note" / "pair"))
    assert (tmp_path / "note").read_text() == "mine"
    assert os.listdir(tmp_path) == ["note"]


def test_a_full_disk(options: PairOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**6))
    with pytest.raises(ConfigError, match=r"needs 0\.1 GB and 0\.0 GB are free"):
        make_pair(replace(options, out=tmp_path / "pair"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_is_cut_short_leaves_nothing(options: PairOptions, tmp_path: Path, error: Any) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("draft"):
            raise error

    expected = KeyboardInterrupt if error is KeyboardInterrupt else ConfigError
    with pytest.raises(expected):
        make_pair(replace(options, out=tmp_path / "deep" / "pair"), stop)
    assert list((tmp_path / "deep").iterdir()) == []
