"""The import rules of the package, held as data.

Imports go one way, from a later layer to an earlier one. Two packages of one layer do not import
each other unless the table says so. A file is read, not imported, so a rule cannot be escaped by
an import inside a function.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

# One row a layer, earliest first; the names in a row are unordered among themselves. "__init__"
# is the public names (`from paceline import Engine`).
LAYERS: tuple[tuple[str, ...], ...] = (
    ("types", "errors"),
    ("speculation", "text", "checks", "files"),
    ("ops",),
    ("kv",),  # before models: a decoder writes into a pool, a pool knows no decoder
    ("models",),
    ("drafters",),
    ("config",),
    ("engine",),
    ("__init__",),
    ("train",),
    ("server", "lab", "cluster"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}

# The rim sees the package as a user does: the public names, the types and the errors; and reads
# and writes files as the inside does.
RIM = ("server", "lab", "cluster", "cli", "__main__")
RIM_MAY = {"__init__", "types", "errors", "files"}
# What a rim file (by the start of its path) may import besides.
RIM_ALSO: dict[str, set[str]] = {
    "lab/audit": {"speculation"},
    "cli": {"config", "server", "lab", "cluster"},
    "__main__": {"cli"},
}
# Packages of the inside that may import only these, whatever their rank allows.
ONLY: dict[str, set[str]] = {
    "train": {"types", "errors", "speculation", "ops", "models", "__init__"},
}
# Third-party modules: who alone may import them, or (second table) who may not.
ONLY_IN = {"triton": ("ops/",)}
NOT_IN = {
    "torch": (
        "engine/acceptance",
        "engine/beside",
        "engine/cost",
        "engine/fixed",
        "engine/following",
        "engine/paces",
        "engine/paging",
        "engine/policy",
        "engine/scheduling",
        "engine/sequence",
        "engine/trial",
        "kv/pages",
        "kv/prefix",
    )
}

# Device values become host values in these files of the inside, and in no others: a read waits for
# the device, and inside a round it would break its recording.
READING = ("engine", "speculation", "kv", "models", "drafters", "ops")
READS = {"tolist", "item", "cpu"}
READ_IN = {
    "engine/constrain.py",  # the waiting draft of a row that a grammar binds
    "engine/loop.py",  # whether the device still answers, after a step that failed
    "engine/report.py",  # what a round committed
    "engine/scoring.py",  # a given text's log-probabilities
    "engine/settling.py",  # log-probabilities, which are on the host by then
}


def imported(tree: ast.Module, path: str) -> list[tuple[int, str]]:
    """Return (line, dotted module) of every import, relative ones made absolute."""
    package = ["paceline", *path.split("/")[:-1]]
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "paceline":  # `from paceline import x`: a submodule or a public name
                found += [
                    (node.lineno, f"paceline.{alias.name}" if alias.name in RANK else "paceline")
                    for alias in node.names
                ]
            else:
                found.append((node.lineno, module))
    return found


def type_checking_lines(tree: ast.Module) -> set[int]:
    """Return the lines under `if TYPE_CHECKING:`; a name used only in annotations loads nothing."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                lines |= set(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def violations(path: str, source: str) -> list[str]:
    """Return one line per import of `path` (relative to the package) that breaks a rule."""
    tree = ast.parse(source)
    layer = path.split("/")[0].removesuffix(".py")
    if layer not in RANK:
        return [f"{path}: {layer!r} has no place in LAYERS"]
    unloaded = type_checking_lines(tree)
    found = []
    for line, module in imported(tree, path):
        top, _, rest = module.partition(".")
        if top == "paceline":
            reason = inside(path, layer, rest.split(".")[0] or "__init__")
        elif line in unloaded:
            reason = None
        else:
            reason = outside(path, top)
        if reason:
            found.append(f"{path}:{line}: imports {module}: {reason}")
    return found


def inside(path: str, layer: str, other: str) -> str | None:
    """Return why `path` may not import the package's own `other`, or None."""
    if other == layer:
        return None
    if other not in RANK:
        return "no such layer"
    if layer in RIM:
        also = {x for start, names in RIM_ALSO.items() if path.startswith(start) for x in names}
        return None if other in RIM_MAY | also else f"{layer} uses the public names only"
    if layer in ONLY:
        return None if other in ONLY[layer] else f"{layer} may import {sorted(ONLY[layer])}"
    if RANK[other] >= RANK[layer]:
        return f"{layer} comes before {other} or stands beside it"
    return None


def outside(path: str, top: str) -> str | None:
    """Return why `path` may not import the third-party module `top`, or None."""
    if top in ONLY_IN and not path.startswith(ONLY_IN[top]):
        return f"only {', '.join(ONLY_IN[top])} may"
    if top in NOT_IN and path.startswith(NOT_IN[top]):
        return "this file decides with plain numbers and stays testable without tensors"
    return None


def test_imports_go_one_way() -> None:
    root = SOURCE / "paceline"
    found = [
        line
        for file in sorted(root.rglob("*.py"))
        for line in violations(file.relative_to(root).as_posix(), file.read_text())
    ]
    assert not found, "\n".join(found)


def reads(source: str) -> bool:
    """Whether a device value is read: a method of `READS` is called."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in READS
        for node in ast.walk(ast.parse(source))
    )


def test_device_values_are_read_in_few_places() -> None:
    root = SOURCE / "paceline"
    found = {
        file.relative_to(root).as_posix()
        for folder in READING
        for file in (root / folder).rglob("*.py")
        if reads(file.read_text())
    }
    assert found == READ_IN


def test_a_read_is_found() -> None:
    assert reads("def f(x):\n    return x[0].tolist()")
    assert reads("y = x.cpu()")
    assert not reads("y = tolist")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("types.py", "from paceline.errors import ConfigError"),
        ("speculation/verify.py", "from paceline.ops.linear import Linear"),
        ("speculation/verify.py", "def f():\n    import paceline.engine.round"),
        ("speculation/verify.py", "import triton"),
        ("models/decoder.py", "from ..engine import slots"),
        ("models/decoder.py", "from paceline import Engine"),
        ("kv/pools.py", "from paceline.models import decoder"),
        ("drafters/model.py", "from paceline.config import EngineConfig"),
        ("engine/scheduling.py", "import torch"),
        ("engine/policy.py", "from torch import Tensor"),
        ("kv/pages.py", "import torch.nn"),
        ("lab/bench.py", "from paceline.speculation import verify"),
        ("lab/audit.py", "from paceline.engine import round"),
        ("server/app.py", "from paceline.engine.engine import Engine"),
        ("cli.py", "from paceline.models import loading"),
        ("engine/engine.py", "from paceline.cli import app"),
        ("train/mini.py", "from paceline.engine import slots"),
        ("stray.py", "import os"),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/attention.py", "import triton.language as tl"),
        ("ops/linear.py", "from paceline.speculation.sampling import distribution"),
        ("models/decoder.py", "from ..ops import linear"),
        ("drafters/model.py", "from paceline.models.decoder import Decoder"),
        ("engine/round.py", "from . import slots\nfrom paceline.drafters.base import Drafter"),
        ("lab/audit_identity.py", "from paceline import Engine\nimport paceline.speculation.noise"),
        ("lab/bench.py", "from paceline.types import SamplingParams"),
        ("cli/demo.py", "from paceline.cli import common\nfrom paceline.lab import audit"),
        (
            "engine/scheduling.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor",
        ),
    ],
)
def test_a_kept_rule_is_quiet(path: str, source: str) -> None:
    assert violations(path, source) == []
