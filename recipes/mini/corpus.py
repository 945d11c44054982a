"""The training text: Python source of permissively licensed packages, at pinned versions.

Owns the download (through plain pip), the licence check, the filters, the removal of duplicates and
the split into training and held-out packages. Knows nothing about tokens or models.

    python recipes/mini/corpus.py download   # wheels of packages.json, into .data/wheels
    python recipes/mini/corpus.py build      # .data/train.jsonl.xz, .data/held_out.jsonl.xz, report
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent
PIP = [
    *("--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"),
    *("--abi", "cp312", "--abi", "abi3", "--abi", "none", "--platform", "manylinux_2_28_x86_64"),
    *("--platform", "manylinux_2_27_x86_64", "--platform", "manylinux_2_17_x86_64"),
    *("--platform", "manylinux2014_x86_64", "--platform", "any"),
]

PERMISSIVE = re.compile(
    r"^(0BSD|MIT(-0|-CMU)?|BSD(-[234]-clause)?|Apache(-2\.0)?|PSF(-2\.0)?|Python-2\.0(\.1)?|CNRI-Python|"
    r"ISC|HPND|Zlib|CC0-1\.0|Unlicense|BSL-1\.0|NCSA)$",
    re.IGNORECASE,
)
WORDINGS = (  # free-form licence fields and classifiers, in the order they are tried
    (
        re.compile(r"affero|\bA?L?GPL|general public|mozilla|\bMPL|EUPL|CC.BY|propriet", re.I),
        "refused",
    ),
    (re.compile(r"apache", re.I), "Apache-2.0"),
    (re.compile(r"\bMIT\b|Expat", re.I), "MIT"),
    (re.compile(r"\bBSD\b|redistribution and use in source", re.I), "BSD-3-Clause"),
    (re.compile(r"\bISC\b", re.I), "ISC"),
    (re.compile(r"\bPSF|Python Software Foundation", re.I), "PSF-2.0"),
    (re.compile(r"HPND|Historical Permission", re.I), "HPND"),
    (re.compile(r"permission is hereby granted, free of charge", re.I), "MIT"),
)
COPYLEFT = re.compile(r"General Public License|\bA?GPL|Mozilla Public|EUPL|Creative Commons", re.I)
VENDORED = re.compile(
    r"(^|/)(_?vendor(ed|s)?|_?extern(al|als)?|third_?party|bundled|_bundled|site-packages|locales?|"
    r"migrations|versions|_distutils|six|array_api_compat|array_api_extra|node_modules)(/|$)"
)
GENERATED = re.compile(
    r"(auto[- ]?|automatically )generated|do not edit|generated (by|from|with) |_pb2|@generated",
    re.I,
)
TESTS = re.compile(
    r"(^|/)(tests?|testing|_tests?|functional_tests)(/|$)|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py$"
)
NOTICE = re.compile(r"copyright|licen[sc]e|SPDX|all rights reserved", re.I)
TRIVIAL = re.compile(r"^(from|import|return|raise|except|else|try|@|#|class \w+:?$)\b")


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file of one package."""

    package: str
    path: str
    text: str

    @property
    def key(self) -> str:
        """A seeded shuffle: files sort by the hash of their name, whatever their text."""
        return hashlib.sha1(f"mini:{self.package}/{self.path}".encode()).hexdigest()

    @property
    def is_test(self) -> bool:
        return TESTS.search(self.path) is not None


def find_wheel(wheels: Path, name: str, version: str) -> Path | None:
    """The wheel of one pinned package, by its normalised file name."""
    stem = re.sub(r"[-_.]+", "_", name).lower()
    for wheel in wheels.glob("*.whl"):
        parts = wheel.name.split("-")
        if re.sub(r"[-_.]+", "_", parts[0]).lower() == stem and parts[1] == version:
            return wheel
    return None


def download(packages: Iterable[dict[str, str]], wheels: Path) -> None:
    """Fetch every pinned wheel that is not there yet; nothing is built or installed."""
    wheels.mkdir(parents=True, exist_ok=True)
    for entry in packages:
        if find_wheel(wheels, entry["name"], entry["version"]):
            continue
        pin = f"{entry['name']}=={entry['version']}"
        command = [sys.executable, "-m", "pip", "download", "-q", *PIP, "-d", str(wheels), pin]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(
                f"pip could not download {pin}: see its message above; "
                "if the version was withdrawn, choose another one in packages.json"
            )


def licence_of(wheel: Path) -> str:
    """The licence in a wheel's metadata as an SPDX-like expression, or 'refused: ...'."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        meta = HeaderParser().parsestr(archive.read(name).decode("utf-8", "replace"))
        texts = [
            archive.read(n)[:3000].decode("utf-8", "replace")
            for n in archive.namelist()
            if re.search(r"dist-info/(licenses/)?(LICEN[CS]E|COPYING)[^/]*$", n, re.I)
        ]
    expression = meta.get("License-Expression")
    if expression:
        terms = re.split(r"\s+AND\s+|[()]", expression)
        for term in filter(None, (t.strip() for t in terms)):
            if not any(PERMISSIVE.match(choice.strip()) for choice in term.split(" OR ")):
                return f"refused: {expression}"
        return str(expression)
    classifiers = [c for c in meta.get_all("Classifier") or [] if c.startswith("License ::")]
    for field in (*classifiers, (meta.get("License") or "")[:2000], *texts):
        for pattern, licence in WORDINGS:
            if field != "License :: OSI Approved" and pattern.search(field):
                return licence if licence != "refused" else f"refused: {field[:80]}"
    return "refused: the metadata names no licence"


def notices_of(wheel: Path) -> str:
    """The licence and notice files a wheel carries, joined."""
    with zipfile.ZipFile(wheel) as archive:
        names = [
            n
            for n in archive.namelist()
            if re.search(r"dist-info/(licenses/)?(LICEN[CS]E|COPYING|NOTICE)[^/]*$", n, re.I)
        ]
        return "\n\n".join(
            archive.read(n).decode("utf-8", "replace").strip() for n in sorted(names)
        )


def clean(text: str) -> str:
    """Unix line ends, no trailing blanks, no leading licence comment, one newline at the end."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    head = 0
    while head < len(lines) and (lines[head].startswith("#") or not lines[head]):
        head += 1
    if head and (lines[0].startswith("#!") or NOTICE.search("\n".join(lines[:head]))):
        lines = lines[head:]
    return "\n".join(lines).strip("\n") + "\n"


def refusal(path: str, text: str) -> str | None:
    """Why a file is left out, or None if it is kept."""
    if VENDORED.search(str(PurePosixPath(path).parent)):
        return "vendored or locale"
    if not 200 <= len(text) <= 200_000:
        return "too short or too long"
    if GENERATED.search(text[:1500]) or GENERATED.search(path):
        return "generated"
    if COPYLEFT.search(text[:3000]):
        return "copyleft notice"
    lines = text.split("\n")
    if max(map(len, lines)) > 400 or len(text) / len(lines) > 70:
        return "very long lines"
    if "\n\t" in text or "\0" in text:
        return "tabs"
    if "<|" in text and "|>" in text:
        return "special tokens spelled out"
    letters = sum(map(str.isalpha, text[:20_000]))
    if letters / min(len(text), 20_000) < 0.45 or not text[:20_000].isascii():
        return "data or not ASCII"
    table = sum(1 for line in lines if line.lstrip()[:1] in set("0123456789'\"([{-+"))
    if table > 0.5 * len(lines):
        return "data table"
    if not re.search(r"^\s*(def|class|async def) ", text, re.M):
        return "no function and no class"
    return None


def read_package(wheel: Path, name: str, refused: Counter[str]) -> Iterator[Source]:
    """Every Python file of a wheel that passes the filters."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".py") or info.file_size > 400_000:
                continue
            try:
                text = clean(archive.read(info).decode("utf-8"))
            except UnicodeDecodeError:
                refused["not UTF-8"] += 1
                continue
            reason = refusal(info.filename, text)
            if reason:
                refused[reason] += 1
            else:
                yield Source(name, info.filename, text)


def content_lines(text: str) -> list[str]:
    """Stripped lines that carry content: 16 characters or more, no import, no bare statement."""
    stripped = (line.strip() for line in text.split("\n"))
    return [line for line in stripped if len(line) >= 16 and not TRIVIAL.match(line)]


def shingles(text: str, width: int = 4) -> set[int]:
    """Hashes of every run of `width` content lines."""
    lines = [hash(line) for line in content_lines(text)]
    return {hash(tuple(lines[i : i + width])) for i in range(max(1, len(lines) - width + 1))}


def unique(sources: Iterable[Source], refused: Counter[str], share: float = 0.4) -> list[Source]:
    """Drop a file when `share` of its line shingles were already kept (exact and near copies)."""
    seen: set[int] = set()
    kept: list[Source] = []
    for source in sources:
        marks = shingles(source.text)
        if len(marks & seen) > share * len(marks):
            refused["duplicate or near-duplicate"] += 1
            continue
        seen |= marks
        kept.append(source)
    return kept


def cap(sources: list[Source], limit: int, package_share: float, test_share: float) -> list[Source]:
    """At most `limit` characters; one package, and all tests, get no more than their share."""
    per_package: Counter[str] = Counter()
    total = tests = 0
    kept: list[Source] = []
    for source in sorted(sources, key=lambda s: s.key):
        size = len(source.text)
        if total + size > limit or per_package[source.package] + size > package_share * limit:
            continue
        if source.is_test:
            if tests + size > test_share * limit:
                continue
            tests += size
        total += size
        per_package[source.package] += size
        kept.append(source)
    return sorted(kept, key=lambda s: (s.package, s.path))


def hold_out(held: list[Source], train: list[Source], shared: int) -> tuple[list[Source], int]:
    """Held-out files that share fewer than `shared` different content lines with `train`."""
    known = {hash(line) for source in train for line in content_lines(source.text)}
    kept = []
    for source in held:
        overlap = sum(hash(line) in known for line in set(content_lines(source.text)))
        if overlap < shared:
            kept.append(source)
    return kept, len(held) - len(kept)


def write(path: Path, sources: list[Source]) -> None:
    with lzma.open(path, "wt", encoding="utf-8", preset=1) as out:
        for source in sources:
            row = {"package": source.package, "path": source.path, "text": source.text}
            out.write(json.dumps(row) + "\n")


def read(path: Path) -> Iterator[Source]:
    """The files `write` stored, in order."""
    with lzma.open(path, "rt", encoding="utf-8") as rows:
        for row in rows:
            yield Source(**json.loads(row))


def build(packages: dict[str, list[dict[str, str]]], data: Path, limit: int) -> dict[str, object]:
    """Filter, deduplicate, cap and split; returns the report."""
    refused: Counter[str] = Counter()
    groups: dict[str, list[Source]] = {}
    table = []
    for group in ("train", "held_out"):
        groups[group] = []
        for entry in packages[group]:
            wheel = find_wheel(data / "wheels", entry["name"], entry["version"])
            if wheel is None:
                raise SystemExit(
                    f"{entry['name']}=={entry['version']} is not in {data / 'wheels'}: "
                    "run the download step first"
                )
            licence = licence_of(wheel)
            files: list[Source] = []
            if not licence.startswith("refused"):
                files = list(read_package(wheel, entry["name"], refused))
            groups[group] += files
            table.append({**entry, "licence": licence, "group": group, "files_read": len(files)})
    train = cap(unique(sorted(groups["train"], key=lambda s: s.key), refused), limit, 0.08, 0.20)
    held = unique([s for s in groups["held_out"] if not s.is_test], refused)
    held, dropped = hold_out(held, train, shared=10)
    used = Counter(s.package for s in [*train, *held])
    for row in table:
        row["files"] = used[str(row["name"])]
    write(data / "train.jsonl.xz", train)
    write(data / "held_out.jsonl.xz", held)
    characters = sum(len(s.text) for s in train)
    return {
        "train": {
            "files": len(train),
            "characters": characters,
            "test_share": sum(len(s.text) for s in train if s.is_test) / characters,
        },
        "held_out": {
            "files": len(held),
            "characters": sum(len(s.text) for s in held),
            "dropped_for_ten_shared_lines": dropped,
        },
        "refused_files": dict(refused.most_common()),
        "packages": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("step", choices=("download", "build"))
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument(
        "--limit", type=int, default=350_000_000, help="characters of training text"
    )
    args = parser.parse_args()
    packages = json.loads((HERE / "packages.json").read_text())
    if args.step == "download":
        download([*packages["train"], *packages["held_out"]], args.data / "wheels")
        return
    report = build(packages, args.data, args.limit)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "corpus.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "packages"}))


if __name__ == "__main__":
    main()
