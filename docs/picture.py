"""Draw docs/demo.svg: one held-out completion of the bundled pair, as `paceline demo` shows it.

python docs/picture.py
"""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from paceline import Engine, sampling_params
from paceline.cli.demo import STOPS, draw
from paceline.cli.panels import Writing, render

# Rich's own template fetches a font from the network; a picture should not.
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" \
xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; \
line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" \
height="{terminal_height}" /></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


SEED = 16  # a function that ends within a screen


def main() -> None:
    """Write the picture beside this file."""
    console = Console(record=True, file=io.StringIO(), width=112, height=40)
    prompt = draw(SEED, 1)[0]["prompt"]
    params = sampling_params(max_tokens=96, stop=STOPS)
    with Engine("mini-target", draft="mini-draft") as engine:
        ways = {"plain": 0, f"speculative, K = {engine.config.k}": engine.config.k}
        for _ in range(2):  # the first time warms up
            writings = [Writing(title) for title in ways]
            for writing in writings:
                for _ in writing.read(engine.stream(prompt, params, k=ways[writing.title])):
                    pass
        console.print(render(console, prompt, writings, engine.tokenizer.decode))
    svg = console.export_svg(title="paceline demo", code_format=FORMAT, unique_id="demo")
    Path(__file__).with_name("demo.svg").write_text(svg)


if __name__ == "__main__":
    main()
