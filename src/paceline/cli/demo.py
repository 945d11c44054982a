"""`paceline demo`: the same texts written twice, plain and speculative, shown and then timed."""

from __future__ import annotations

import json
import random
import statistics
import time
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from paceline import Completion, ConfigError, Engine, SamplingParams, sampling_params
from paceline.cli import common
from paceline.cli.common import engine_options, open_engine, ratio, write_json
from paceline.cli.panels import Panels, Writing

# The next thing at the left margin: what was being written is finished.
STOPS = ("\ndef ", "\nclass ", "\n@", "\nif __name__")


@dataclass(slots=True)
class Way:
    """All prompts written once, one way. Seconds are wall clock: of the whole, and without the
    reading of the prompts, which speculation neither shortens nor lengthens."""

    tokens: int = 0
    whole: float = 0.0
    writing: float = 0.0

    def add(self, done: Completion, seconds: float) -> None:
        self.tokens += len(done.token_ids)
        self.whole += seconds
        self.writing += seconds - done.stats.prefill_seconds


@dataclass(slots=True)
class Repeat:
    """One time round: every prompt plain and speculative, in turn."""

    plain: Way = field(default_factory=Way)
    fast: Way = field(default_factory=Way)


@dataclass(slots=True)
class Measurement:
    """Timed completions of the drawn prompts, a `Repeat` each time round."""

    repeats: list[Repeat] = field(default_factory=list)
    fast: list[Completion] = field(default_factory=list)  # of the first repeat
    identical: bool = True

    def by_position(self) -> list[float]:
        """Return the acceptance at each draft position, given that all before were accepted."""
        stats = [done.stats for done in self.fast]
        width = max((len(s.evaluated_by_position) for s in stats), default=0)
        accepted, evaluated = [0] * width, [0] * width
        for s in stats:
            for i, count in enumerate(s.evaluated_by_position):
                evaluated[i] += count
            for i, count in enumerate(s.accepted_by_position):
                accepted[i] += count
        return [a / e for a, e in zip(accepted, evaluated, strict=True) if e]


def demo(
    seed: Annotated[int, typer.Option("--seed", help="Draws the prompts.", min=0)] = 0,
    prompts: Annotated[int, typer.Option("--prompts", help="How many.", min=1, max=64)] = 4,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed repeats.", min=1)] = 5,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="A text's most.", min=1)] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.0,
    json_: common.Json = False,
    target: common.Target = None,
    drafter: common.Drafter = None,
    draft: common.Draft = None,
    k: common.K = None,
    dtype: common.Dtype = None,
    device: common.Device = None,
    threads: common.Threads = None,
) -> None:
    """Complete held-out code twice, with and without speculation, and compare.

    Shows both live on a terminal, then times them again without drawing, turn by turn, and ends
    with a table. Exit status 1 if a text differs.
    """
    params = sampling_params(temperature=temperature, max_tokens=max_tokens, stop=STOPS)
    options = engine_options(
        None, target=target, drafter=drafter, draft=draft, k=k, dtype=dtype,
        device=device, threads=threads, slots=1, seed=seed,
    )  # fmt: skip
    rows = draw(seed, prompts)
    # With --json standard output is for machines, so what people read goes beside it.
    console = common.stderr if json_ else common.stdout
    with open_engine(options) as engine:
        if engine.config.k == 0:
            raise ConfigError("the demo compares with K = 0; give a --k of 1 or more")
        show(engine, rows, params, console)
        measured = measure(engine, rows, params, repeats)
        result = summary(engine, measured, seed, prompts, repeats)
    console.print(table(result))
    if json_:
        write_json(result)
    if not result["identical"]:
        raise typer.Exit(1)


def draw(seed: int, count: int) -> list[dict[str, str]]:
    """Return `count` of the bundled held-out prompts, the same for the same seed."""
    file = files("paceline") / "assets" / "prompts.jsonl"
    if not file.is_file():
        raise ConfigError("this installation has no held-out prompts; install paceline again")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if count > len(rows):
        raise ConfigError(f"there are {len(rows)} prompts; ask for fewer than {count}")
    return random.Random(seed).sample(rows, count)


def show(
    engine: Engine, rows: list[dict[str, str]], params: SamplingParams, console: Console
) -> None:
    """Write every text once in two panels, plain first; piped, print each text once."""
    panels = Panels(console, engine.tokenizer.decode)
    for row in rows:
        writings = [Writing("plain"), Writing(f"speculative, K = {engine.config.k}")]
        with panels.show(row["prompt"], writings):
            for writing, k in zip(writings, (0, engine.config.k), strict=True):
                for _ in writing.read(engine.stream(row["prompt"], params, k=k)):
                    panels.update()
        if not console.is_terminal:
            console.rule(f"{row['package']} {row['file']}", characters="-")
            last = row["prompt"].rstrip("\n").splitlines()[-1]
            console.print(f"{last}\n{writings[1].text}", markup=False, soft_wrap=True)


def measure(
    engine: Engine, rows: list[dict[str, str]], params: SamplingParams, repeats: int
) -> Measurement:
    """Time every prompt plain and speculative in turn, so that a busy spell meets both."""
    result = Measurement()
    first: dict[int, Completion] = {}

    def run(number: int, k: int, way: Way) -> Completion:
        began = time.perf_counter()
        done = engine.generate(rows[number]["prompt"], params, k=k)[0]
        way.add(done, time.perf_counter() - began)
        same = first.setdefault(number, done).token_ids == done.token_ids
        result.identical = result.identical and same
        return done

    console = common.stderr
    with Progress(
        console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("timing", total=repeats * len(rows))
        for _ in range(repeats):
            result.repeats.append(Repeat())
            for number in range(len(rows)):
                run(number, 0, result.repeats[-1].plain)
                done = run(number, engine.config.k, result.repeats[-1].fast)
                if len(result.repeats) == 1:
                    result.fast.append(done)
                progress.advance(task)
                progress.refresh()
    return result


def summary(
    engine: Engine, measured: Measurement, seed: int, prompts: int, repeats: int
) -> dict[str, Any]:
    """Return the figures as one JSON object."""
    config = engine.config
    plain = [r.plain.tokens / r.plain.writing for r in measured.repeats]
    fast = [r.fast.tokens / r.fast.writing for r in measured.repeats]
    gains = [f / p for f, p in zip(fast, plain, strict=True)]
    whole = [r.plain.whole / r.fast.whole for r in measured.repeats]
    stats = [done.stats for done in measured.fast]
    drafted, evaluated = sum(s.drafted for s in stats), sum(s.evaluated for s in stats)
    accepted, emitted = sum(s.accepted for s in stats), sum(s.emitted for s in stats)
    rounds = sum(s.rounds for s in stats)
    return {
        "identical": measured.identical,
        "speedup": ratio(statistics.median(gains)),
        "speedup_min": ratio(min(gains)),
        "speedup_max": ratio(max(gains)),
        "speedup_with_prompt": ratio(statistics.median(whole)),
        "acceptance_rate": ratio(accepted / evaluated if evaluated else None, 4),
        "acceptance_by_position": [ratio(share, 4) for share in measured.by_position()],
        "draft_efficiency": ratio(accepted / drafted if drafted else None, 4),
        "tokens_per_round": ratio(emitted / rounds, 4),
        "k": config.k,
        "tok_s_plain": ratio(statistics.median(plain), 1),
        "tok_s_speculative": ratio(statistics.median(fast), 1),
        "tokens": emitted,
        "natural_stops": sum(done.finish == "stop" for done in measured.fast),
        "dtype": config.dtype,
        "device": config.device,
        "target": config.target,
        "drafter": config.drafter,
        "draft": config.draft,
        "threads": engine.threads,
        "seed": seed,
        "prompts": prompts,
        "repeats": repeats,
        "versions": common.versions(),
    }


def table(result: dict[str, Any]) -> Table:
    """Return the closing table."""
    title = (
        f"{result['prompts']} prompts (seed {result['seed']}), {result['tokens']} tokens, "
        f"{result['repeats']} repeats, {result['dtype']}"
    )
    shown = Table(title=title, title_justify="left", show_header=False)
    shown.add_column(style="bold")
    shown.add_column()
    positions = " ".join(f"{share:.2f}" for share in result["acceptance_by_position"])
    rate = result["acceptance_rate"]
    shown.add_row("device", result["device"])
    shown.add_row("plain", f"{result['tok_s_plain']:.0f} tok/s")
    shown.add_row(f"speculative, K = {result['k']}", f"{result['tok_s_speculative']:.0f} tok/s")
    spread = f"{result['speedup_min']:.2f} to {result['speedup_max']:.2f}"
    shown.add_row("speed-up", f"{result['speedup']:.2f} ({spread} over repeats)")
    shown.add_row("with the prompt", f"{result['speedup_with_prompt']:.2f}")
    shown.add_row("acceptance rate", "nothing was drafted" if rate is None else f"{rate:.3f}")
    shown.add_row("by position", positions or "-")
    shown.add_row("tokens per round", f"{result['tokens_per_round']:.2f}")
    same = result["identical"]
    shown.add_row("identical", "[green]yes[/]" if same else "[bold red]no[/]")
    return shown
