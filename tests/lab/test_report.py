"""The page: whole, self-contained, the same each time, and shown by a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from lab.bench_tools import contestant, measurement, write_large_run, write_run

from paceline import ConfigError
from paceline.lab import report_plots
from paceline.lab.bench_figures import summarize
from paceline.lab.report import bench_page, write_report

VOID = {"meta", "br", "img", "hr", "input", "link"}


class Reader(HTMLParser):
    """Notes text, tags and what they point to, and checks that they close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.refers: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.refers += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data.strip())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large_run(tmp_path_factory.mktemp("run") / "large")


@pytest.fixture(scope="module")
def text(large: Path) -> str:
    return bench_page(summarize(large), "A <title>")


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


def test_the_page_closes_its_tags_and_needs_nothing_else(text: str) -> None:
    reader = read(text)
    assert "script" not in reader.tags
    assert "link" not in reader.tags
    assert all(target.startswith("#") for target in reader.refers)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_verdict_comes_first_and_every_section_is_there(text: str) -> None:
    reader = read(text)
    words = [w for w in reader.words if w]
    assert words[:2] == ["A <title>", "A <title>"]  # of the window and of the page
    assert words[3].startswith("Speculation pays")
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Problems", "Speed", "Latency", "By category", "Acceptance", "Where the time goes",
        "Memory and energy", "Texts", "Contestants", "Conditions", "Words",
    ]  # fmt: skip
    assert reader.tags.count("svg") == 6
    for figure in (
        "TTFT p50", "p99", "joint", "waste", "memory, peak", "draft efficiency", "tokens a round",
        "same texts", "abacus", "InternalServerError: 500",
    ):  # fmt: skip
        assert figure in text


def test_pictures_are_whole_and_have_the_pages_colours(text: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", text, re.S)
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.attrib["aria-label"]
        assert "var(--ink)" in picture or "var(--quiet)" in picture
        assert "#0101" not in picture
        assert "#0505" not in picture
        assert root.attrib["viewBox"]


def test_the_same_run_gives_the_same_page(large: Path, text: str) -> None:
    assert bench_page(summarize(large), "A <title>") == text


def test_what_users_write_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    evil = contestant("<script>alert(1)</script>")
    plain = contestant("plain & simple")
    measured = [
        measurement(evil, "<b>x</b>", text="<i>one"),
        measurement(plain, "<b>x</b>", text="two</td>"),
    ]
    text = bench_page(summarize(write_run(tmp_path, [evil, plain], measured)), "t")
    reader = read(text)
    assert "script" not in reader.tags
    assert "i" not in reader.tags
    assert "<script>alert(1)</script>" in reader.words


def test_a_run_of_nothing_has_a_page(tmp_path: Path) -> None:
    text = bench_page(summarize(write_run(tmp_path, [contestant("plain")], [])), "t")
    assert "cannot be said" in " ".join(read(text).words)


def test_without_matplotlib_it_says_what_to_install(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[report\]'"):
        write_report(summarize(large), tmp_path / "r.html", "t")
    assert not (tmp_path / "r.html").exists()
    assert report_plots  # imported without it


def test_a_real_browser_shows_it(large: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here: the page is not opened in a browser")
    file = tmp_path / "r.html"
    write_report(summarize(large), file, "Shown")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'u'}"]
    dumped = subprocess.run(
        [browser, *flags, "--dump-dom", file.as_uri()], capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    assert "<h1>Shown</h1>" in dumped.stdout
    assert dumped.stdout.count("<svg") == 6
    paper = tmp_path / "r.pdf"
    subprocess.run(
        [browser, *flags, f"--print-to-pdf={paper}", file.as_uri()], capture_output=True,
        timeout=120, check=True,
    )  # fmt: skip
    assert paper.read_bytes().startswith(b"%PDF")
