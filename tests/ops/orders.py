"""Run as a script, where kernels are compiled and not interpreted: in which orders the sums of
`few_rows` run on a GPU. Reads a JSON list of [tiles, n, k, form]; writes for each a list of layouts
along the columns: elements of a thread, then threads, then warps."""

from __future__ import annotations

import json
import re
import sys
from typing import Any


def compiled(tiles: dict[str, int], n: int, k: int, form: dict[str, Any]) -> str:
    """The kernel for an H100 or H200, as the compiler has it when layouts are chosen. None is
    needed."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from paceline.ops.triton_linear import few_rows

    constants = {
        "BM": tiles["rows"], "BN": tiles["columns"], "BK": tiles["inner"],
        "STAGES": tiles["depth"], "TILES": 0, "GATED": False, "BIAS": False, "ADD": False,
        "NEXT": False, "EVEN": n % tiles["columns"] == 0 and k % 128 == 0, "PDL": True,
        "AHEAD": 256, "EVICT": "evict_first",
    } | form  # fmt: skip
    kinds = {"squares": "*fp32", "parts": "*fp32", "eps": "fp32", "rows": "i32", "n": "i32"}
    kinds["k"] = "i32"
    names = few_rows.arg_names
    signature = {x: "constexpr" if x in constants else kinds.get(x, "*bf16") for x in names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if signature[name].startswith("*") or name in ("n", "k")
    }
    source = ASTSource(few_rows, signature, constants, aligned)
    options = {"num_warps": tiles["warps"], "num_stages": tiles["depth"]}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return str(made.asm["ttgir"])


def orders(code: str) -> list[str]:
    """Of every sum over columns in it."""
    layouts = dict(re.findall(r"^(#\S+) = (.*)$", code, re.MULTILINE))
    reduced = re.findall(r'"tt\.reduce".*?\}\) : \(tensor<[^#]*(#\w+)>', code, re.DOTALL)
    return sorted({re.sub(r"\[\d+, ", "[", layouts[name]) for name in reduced})


if __name__ == "__main__":
    print(json.dumps([orders(compiled(*each)) for each in json.load(sys.stdin)]))
