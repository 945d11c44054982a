"""The table of vLLM's serve options and speculative-config fields that `paceline plan` writes by.

Reads a published package's sources, which are not run, and writes names, types and bounds. The
package is not installed:

    python -m pip download --no-deps --only-binary=:all: vllm==0.33.0 -d FOLDER
    python benchmarks/vllm_options.py FOLDER/vllm-0.33.0-*.whl \
        --out src/paceline/lab/vllm_options.json
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

SPECULATIVE, ARGUMENTS = "vllm/config/speculative.py", "vllm/engine/arg_utils.py"
SERVE, MODEL, SCHEDULER = (
    "vllm/entrypoints/common/cli_args.py", "vllm/config/model.py", "vllm/config/scheduler.py",
)  # fmt: skip
FILES = (SPECULATIVE, ARGUMENTS, SERVE, MODEL, SCHEDULER)
# Sets of names whose members the table keeps, and where they are.
LITERALS = {SPECULATIVE: ("SpeculativeMethod", "RejectionSampleMethod", "DraftSampleMethod"),
            MODEL: ("ModelDType",)}  # fmt: skip


def members(tree: ast.Module) -> dict[str, list[str]]:
    """The strings of every `Name = Literal[...]`, other names of that kind inside it included."""
    found: dict[str, list[str]] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Subscript):
            continue
        if ast.unparse(node.value.value) != "Literal":
            continue
        inner = node.value.slice
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        every: list[str] = []
        for part in parts:
            if isinstance(part, ast.Constant):
                every.append(str(part.value))
            else:  # another set; those of other files are not needed here
                every += found.get(ast.unparse(part), [])
        found[ast.unparse(node.targets[0])] = every
    return found


def fields(tree: ast.Module, name: str) -> dict[str, dict[str, Any]]:
    """Annotation, default and bounds of every field of a configuration class."""
    cls = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    found: dict[str, dict[str, Any]] = {}
    for node in cls.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        about: dict[str, Any] = {"type": ast.unparse(node.annotation)}
        value = node.value
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
            for keyword in value.keywords:
                if keyword.arg in ("gt", "ge", "le", "lt"):
                    about[keyword.arg] = ast.literal_eval(keyword.value)
        if "SkipValidation" not in about["type"]:  # those the engine sets for itself
            found[node.target.id] = about
    return found


def options(tree: ast.Module) -> dict[str, str]:
    """Every option `--name` that is added to a parser: the field that it sets, where it says."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr != "add_argument":
            continue
        flags = [a.value for a in node.args if isinstance(a, ast.Constant)]
        words = [str(f) for f in flags if str(f).startswith("--")]
        source = next((ast.unparse(k.value) for k in node.keywords if k.arg is None), "")
        for word in words:
            found[word] = source
    return found


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with zipfile.ZipFile(given.wheel) as wheel:
        trees = {name: ast.parse(wheel.read(name)) for name in FILES}
        hashes = {name: hashlib.sha256(wheel.read(name)).hexdigest() for name in FILES}
    every = {name: members(trees[path])[name] for path, names in LITERALS.items() for name in names}
    table = {
        "package": "vllm",
        "version": given.wheel.name.split("-")[1],
        "file": given.wheel.name,
        "sha256": hashlib.sha256(given.wheel.read_bytes()).hexdigest(),
        "read": hashes,
        "options": sorted({**options(trees[ARGUMENTS]), **options(trees[SERVE])}),
        "speculative_config": fields(trees[SPECULATIVE], "SpeculativeConfig"),
        "names": every,
    }
    given.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"options": len(table["options"]), "version": table["version"]}))


if __name__ == "__main__":
    main()
