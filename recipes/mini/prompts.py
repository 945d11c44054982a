"""The committed held-out prompts: code up to a function's signature and docstring, or first lines.

Owns the rule by which prompts are drawn: every function of the held-out files that fits is a
candidate, a seeded draw picks among them package by package, and nothing looks at a model's output.
Writes prompts.jsonl and the packages' licence notices beside it.

    python recipes/mini/prompts.py
"""

from __future__ import annotations

import argparse
import ast
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from corpus import HERE, Source, find_wheel, licence_of, notices_of, read

ASSETS = HERE.parents[1] / "src" / "paceline" / "assets"
LEAST, MOST = 48, 320  # tokens of a prompt
SHORTEST = 3  # statements a body must have, docstring not counted


def cuts(source: Source) -> Iterator[tuple[int, int]]:
    """(first line, cut line) of every candidate: a function in column 0 or a method of a class.

    The prompt of a function with a docstring ends after it; of one without, after its first
    statement. The body must go on for at least two more statements.
    """
    tree = ast.parse(source.text)
    for owner in ast.walk(tree):
        if not isinstance(owner, ast.Module | ast.ClassDef):
            continue
        for node in owner.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            body = node.body
            documented = ast.get_docstring(node, clean=False) is not None
            if len(body) - documented < SHORTEST:
                continue
            cut = body[0].end_lineno
            assert cut is not None
            yield node.lineno, cut


def prompt_of(source: Source, first: int, cut: int, tokenizer: Tokenizer) -> str | None:
    """The longest run of whole lines ending at `cut` that fits, or None if the head does not."""
    lines = source.text.split("\n")

    def text(start: int) -> str:
        return "\n".join(lines[start:cut]) + "\n"

    def size(start: int) -> int:
        return len(tokenizer.encode(text(start)).ids)

    low, high = 0, first - 1
    if size(high) > MOST:
        return None
    while low < high:  # the earliest line from which the prompt fits
        middle = (low + high) // 2
        low, high = (low, middle) if size(middle) <= MOST else (middle + 1, high)
    while low < first - 1 and not lines[low].strip():
        low += 1
    return text(low) if size(low) >= LEAST else None


def draw(data: Path, count: int) -> list[dict[str, str]]:
    """A seeded draw of `count` prompts, package by package in turn, at most one per function."""
    tokenizer = Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json"))
    packages = {e["name"]: e for e in json.loads((HERE / "packages.json").read_text())["held_out"]}
    random_ = random.Random(0)
    pools: dict[str, list[tuple[Source, int, int]]] = {}
    for source in read(data / "held_out.jsonl.xz"):
        pools.setdefault(source.package, []).extend((source, *c) for c in cuts(source))
    for pool in pools.values():
        random_.shuffle(pool)
    rows: list[dict[str, str]] = []
    while len(rows) < count and any(pools.values()):
        for name in sorted(pools):
            if not pools[name] or len(rows) == count:
                continue
            source, first, cut = pools[name].pop()
            prompt = prompt_of(source, first, cut, tokenizer)
            if prompt is None:
                continue
            version = packages[name]["version"]
            wheel = find_wheel(data / "wheels", name, version)
            if wheel is None:
                raise SystemExit(
                    f"the wheel of {name} {version} is missing: run `corpus.py download`"
                )
            rows.append(
                {
                    "id": f"{name}/{Path(source.path).stem}:{first}",
                    "package": name,
                    "version": version,
                    "licence": licence_of(wheel),
                    "file": source.path,
                    "prompt": prompt,
                }
            )
    return rows


def notice(rows: list[dict[str, str]], data: Path) -> str:
    """The licence texts of the packages the prompts come from."""
    parts = ["prompts.jsonl quotes the packages below under their own licences.\n"]
    for name, version in sorted({(row["package"], row["version"]) for row in rows}):
        wheel = find_wheel(data / "wheels", name, version)
        assert wheel is not None
        parts.append(f"{'=' * 78}\n{name} {version}\n{'=' * 78}\n\n{notices_of(wheel)}\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--count", type=int, default=64)
    args = parser.parse_args()
    rows = draw(args.data, args.count)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (args.out / "NOTICE").write_text(notice(rows, args.data))
    print(json.dumps({"prompts": len(rows), "packages": len({row["package"] for row in rows})}))


if __name__ == "__main__":
    main()
