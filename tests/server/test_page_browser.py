"""The page in a real browser: Debian's Chromium, driven by Playwright, on the bundled pair.

Skipped where one of them is missing; PACELINE_CHROMIUM names a browser elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.server.test_page import contrast
from tests.server.tools import Served, serve_in_thread, until

from paceline import Engine, SamplingParams
from paceline.server.settings import ServerSettings

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("PACELINE_CHROMIUM") or shutil.which("chromium") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDTHS = {390: 844, 1440: 900}
PATIENCE = 60e3  # milliseconds: a busy machine is slow, and no test is of speed


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # A module's own: while it is open, no other test of this thread could run an event loop.
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def locked(engine: Engine) -> Iterator[Served]:
    with serve_in_thread(engine, ServerSettings(name="mini", api_keys=("sk-right",))) as served:
        yield served


Look = Callable[..., Any]


@pytest.fixture
def look(browser: Any, served: Served) -> Iterator[Look]:
    """Open the page. At the end nothing was asked of another host and the console is empty, but
    for answers that the test brought about itself: `expected`."""
    opened: list[tuple[Any, str, list[str], str | None]] = []

    def open_page(
        width: int = 1440,
        scheme: str = "light",
        at: Served = served,
        expected: str | None = None,
        **options: Any,
    ) -> Any:
        size = {"width": width, "height": WIDTHS[width]}
        page = browser.new_page(color_scheme=scheme, viewport=size, **options)
        page.set_default_timeout(PATIENCE)
        wrong: list[str] = []
        page.on("console", lambda said: wrong.append(said.text) if said.type != "log" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(at.url) else wrong.append(r.url))
        opened.append((page, at.url, wrong, expected))
        page.goto(at.url)
        return page

    yield open_page
    for page, _, wrong, expected in opened:
        page.close()
        assert [text for text in wrong if not (expected and re.search(expected, text))] == []


def ready(page: Any) -> Any:
    page.wait_for_selector("#state[data-state=good]")
    return page


def ended(page: Any) -> str:
    """Wait until what runs has ended; what the page says of it."""
    page.wait_for_selector("#status:is([data-kind=good], [data-kind=bad])")
    return str(page.inner_text("#status"))


def again(page: Any, button: str = "#run") -> str:
    """Press a button and wait until what it began has ended: not for what ended before."""
    page.evaluate("() => delete document.querySelector('#status').dataset.kind")
    page.click(button)
    return ended(page)


def listen(page: Any) -> None:
    """From here on `said` in the page holds all that it says, however soon it says another."""
    page.evaluate(
        """() => {
          window.said = [];
          const status = document.querySelector("#status");
          new MutationObserver(() => said.push(status.textContent))
            .observe(status, { childList: true });
        }"""
    )


def panel(page: Any, name: str) -> dict[str, Any]:
    """What a panel shows."""
    told: dict[str, Any] = page.evaluate(
        """name => {
          const root = document.querySelector(`.panel[aria-label=${name}]`);
          const style = getComputedStyle;
          return {
            prompt: root.querySelector(".prompt")?.textContent ?? "",
            tokens: [...root.querySelectorAll(".text .token")].map(t => ({
              text: t.textContent, source: t.className.split(" ")[1],
              parting: t.classList.contains("parting"), title: t.title,
              colour: style(t).color, ground: style(t).backgroundColor,
              line: style(t).textDecorationLine + " " + style(t).textDecorationStyle })),
            figures: Object.fromEntries([...root.querySelectorAll("[data-figure]")]
              .map(f => [f.dataset.figure, f.textContent])),
            places: [...root.querySelectorAll(".places tbody tr")].map(r => r.innerText),
            legend: [...root.querySelectorAll(".legend li")].map(l => l.textContent),
          };
        }""",
        name,
    )
    return told


def text_of(shown: dict[str, Any]) -> str:
    return "".join(token["text"] for token in shown["tokens"])


# --- one stream, two streams ------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_prompt_is_typed_and_a_text_comes(
    width: int, scheme: str, look: Look, engine: Engine
) -> None:
    page = ready(look(width, scheme))
    prompt = "def add(a, b):\n    return"
    page.fill("#prompt", prompt)
    page.fill("#temperature", "0")
    page.fill("#max-tokens", "24")
    page.click("#run")
    assert "24 tokens in" in ended(page)
    (own,) = engine.generate(prompt, SamplingParams(max_tokens=24))
    shown = panel(page, "Speculative")
    assert shown["prompt"] == prompt
    assert text_of(shown) == own.text
    assert [token["source"] for token in shown["tokens"]] == list(own.sources)
    figures = shown["figures"]
    assert figures["tokens"] == "24"
    assert figures["k"] == str(engine.config.k)
    assert float(figures["speed"]) > 0
    assert re.fullmatch(r"[\d.]+ m?s", figures["first"])
    rate = own.stats.acceptance_rate
    assert rate is not None
    assert figures["accepted"] == f"{int(100 * rate + 0.5)} %"
    tested = [int(place.split("\t")[-1]) for place in shown["places"]]
    assert tested == own.stats.evaluated_by_position
    assert [line.split()[0] for line in shown["legend"]] == ["target", "draft"]
    # Colour is not all that tells them apart, and what is set can be read.
    drafted = next(token for token in shown["tokens"] if token["source"] == "model")
    plain = next(token for token in shown["tokens"] if token["source"] == "target")
    assert (drafted["line"], plain["line"].split()[0]) == ("underline solid", "none")
    assert contrast(hexed(drafted["colour"]), hexed(drafted["ground"])) >= 4.5
    assert re.match(r"draft model, round \d+, [\d.]+ m?s", drafted["title"])
    # Nothing sticks out, whatever the width.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # The load is drawn, and what is drawn is also said.
    page.wait_for_selector(".chart svg")
    labels = page.eval_on_selector_all(".chart svg", "all => all.map(s => s.ariaLabel)")
    assert len(labels) == 5
    assert all("now" in label for label in labels)


def hexed(colour: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_plain_and_speculative_side_by_side(
    width: int, scheme: str, look: Look, engine: Engine
) -> None:
    page = ready(look(width, scheme))
    page.fill("#max-tokens", "20")
    page.fill("#seed", "7")
    page.check("#race")
    listen(page)
    page.click("#run")
    assert re.match(r"Identical, all 20 tokens\. Speculative was [\d.]+ times as fast", ended(page))
    assert any(text.startswith("Both again") for text in page.evaluate("said"))
    plain, fast = panel(page, "Plain"), panel(page, "Speculative")
    assert text_of(plain) == text_of(fast) != ""
    assert {token["source"] for token in plain["tokens"]} == {"target"}
    assert "model" in {token["source"] for token in fast["tokens"]}
    assert (plain["figures"]["k"], fast["figures"]["k"]) == ("0", str(engine.config.k))
    assert plain["places"] == []
    boxes = [page.locator(f".panel[aria-label={name}]").bounding_box()
             for name in ("Plain", "Speculative")]  # fmt: skip
    beside = boxes[0]["y"] == boxes[1]["y"]
    assert beside == (width > 1000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "Identical" in again(page, "#replay")
    assert sum(text.startswith("Both again") for text in page.evaluate("said")) == 2
    assert text_of(panel(page, "Speculative")) == text_of(fast)


def test_a_server_that_pings(look: Look, engine: Engine) -> None:
    """What is a comment to a reader of events is none of the text."""
    with serve_in_thread(engine, ServerSettings(name="mini", ping=1e-4)) as served:
        page = ready(look(at=served))
        page.fill("#max-tokens", "20")
        page.click("#run")
        assert ended(page).startswith("20 tokens")
        page.close()  # before its server is gone


def test_a_chat_and_an_expected_text(look: Look) -> None:
    page = ready(look())
    page.check("#kind-chat")
    assert page.inner_text("#prompt-label") == "Message"
    assert page.input_value("#prompt").startswith("Write a Python function")
    page.fill("#max-tokens", "16")
    page.click("#run")
    ended(page)
    assert panel(page, "Speculative")["prompt"] == ""
    page.check("input[value=completion]")
    page.fill("#temperature", "0")
    again(page)
    page.click("#expect summary")
    page.fill("#prediction", text_of(panel(page, "Speculative")))
    again(page)
    shown = panel(page, "Speculative")
    assert "predicted" in {token["source"] for token in shown["tokens"]}
    assert any(line.startswith("predicted") for line in shown["legend"])


# --- what goes wrong ---------------------------------------------------------------------------


def test_a_key_is_asked_for(look: Look, locked: Served) -> None:
    page = look(390, at=locked, expected="status of 401")
    page.wait_for_selector("#problem:visible")
    assert "asks for an API key" in page.inner_text("#problem")
    assert page.inner_text("#state") == "asks for a key"
    assert page.evaluate("document.activeElement.id") == "key"
    page.fill("#key", "sk-wrong")
    page.click("#key-use")
    page.wait_for_selector("#problem:has-text('does not know')")
    page.fill("#key", "sk-right")
    page.press("#key", "Enter")
    ready(page)
    assert page.is_hidden("#problem")
    page.wait_for_selector("#prompt:focus")
    page.fill("#max-tokens", "8")
    page.fill("#temperature", "0")
    assert page.is_hidden("#key-field")
    page.press("#prompt", "Control+Enter")
    assert "8 tokens" in ended(page)
    page.reload()  # kept in this tab
    ready(page)
    assert "sk-" not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location")
    other = look(at=locked, expected="status of 401")  # and in no other
    other.wait_for_selector("#key-field:visible")


@pytest.mark.parametrize("way", ["key", "button"])
def test_a_run_is_stopped(way: str, look: Look, engine: Engine, served: Served) -> None:
    """The engine is held between two steps: the text cannot end by itself."""
    page = ready(look())
    page.fill("#temperature", "0")
    page.fill("#max-tokens", "400")
    page.fill("#prompt", "x = [1, ")
    page.select_option("#k", "0")
    with engine._driver.held() as step:
        page.press("#prompt", "Control+Enter")
        until(lambda: (step(), page.locator(".panel .text .token").count())[1] > 0)
        if way == "key":
            page.keyboard.press("Escape")
        else:
            page.click("#stop")
        page.wait_for_selector("#status:has-text('Stopped')")
        assert 0 < len(panel(page, "Plain")["tokens"]) < 400
    until(lambda: served.api.gate.inside == 0)


def frame(*parts: dict[str, Any], done: bool = True) -> str:
    """A stream as the server would send it."""
    lines = [f"data: {json.dumps(part)}\n\n" for part in parts]
    return "".join(lines) + ("data: [DONE]\n\n" if done else "")


def chunk(seconds: float, *tokens: tuple[str, str], finish: str | None = None) -> dict[str, Any]:
    drafted = sum(source != "target" for _, source in tokens)
    report = {"k": 4, "drafted": 4, "evaluated": 4, "accepted": drafted, "drafter": "ngram",
              "seconds": 0.1}  # fmt: skip
    pieces, sources = [piece for piece, _ in tokens], [source for _, source in tokens]
    return {
        "choices": [{"index": 0, "text": "".join(pieces), "finish_reason": finish}],
        "paceline": {"seconds": seconds, "tokens": len(tokens), "sources": sources,
                     "pieces": pieces, "round": report},
    }  # fmt: skip


def answers(page: Any, *bodies: tuple[int, str]) -> None:
    """Let the next completions be answered by these."""
    left = list(bodies)

    def answer(route: Any) -> None:
        status, body = left.pop(0)
        kind = "text/event-stream" if status == 200 else "application/json"
        route.fulfill(status=status, body=body, headers={"content-type": kind})

    page.route("**/v1/completions", answer)


ERRORS = (
    (429, json.dumps({"error": {"message": "9 texts wait; come again in 3 s"}}),
     "The server is full: 9 texts wait; come again in 3 s."),
    (400, json.dumps({"error": {"message": "shorten it"}}), "refuses this: shorten it."),
    (502, "<html>", "The server failed (502): its log says why."),
    (200, frame(chunk(0.1, ("a", "target")), {"error": {"message": "not finite"}}),
     "The server broke off: not finite."),
    (200, frame(chunk(0.1, ("a", "target")), done=False), "broke before the text was finished"),
)  # fmt: skip


def test_errors_are_told_in_words(look: Look) -> None:
    page = ready(look(expected="status of (4|5)"))
    answers(page, *((status, body) for status, body, _ in ERRORS))
    for status, _, said in ERRORS:
        page.click("#run")
        page.wait_for_selector(f"#status[data-kind=bad]:has-text('{said}')")
        assert len(panel(page, "Speculative")["tokens"]) == (status == 200)
        assert page.get_attribute("#run", "aria-disabled") == "false"
    page.unroute("**/v1/completions")
    page.fill("#max-tokens", "4")
    page.fill("#temperature", "0")
    assert "4 tokens" in again(page)


def test_a_server_that_was_started_again(look: Look, served: Served) -> None:
    """Its samples are its own, and it may be another model."""
    page = ready(look())
    page.wait_for_selector("#about:has-text('mini ·')")
    page.route("**/v1/paceline", lambda r: r.fulfill(json={**r.fetch().json(), "model": "newer"}))
    load = served.api.watch.load
    before, load.id = load.id, "another"
    page.wait_for_selector("#about:has-text('newer ·')")
    load.id = before


def test_the_switch_is_turned_while_a_race_is_shown(look: Look) -> None:
    page = ready(look())
    slow = [chunk(0.5 * n, (f"{n} ", "target")) for n in range(1, 30)]
    page.route("**/v1/warm", lambda route: route.fulfill(json={"object": "warm"}))
    answers(page, (200, frame(*slow)), (200, frame(*slow)))
    page.check("#race")
    page.click("#run")
    page.wait_for_selector("#status:has-text('Both again')")
    page.uncheck("#race")
    page.wait_for_selector("#run[aria-disabled=false]")
    assert page.locator(".panel").count() == 1
    assert page.is_hidden("#replay")


def test_a_server_that_is_gone(look: Look) -> None:
    page = ready(look(expected="ERR_"))
    page.route("**/v1/**", lambda route: route.abort())
    page.click("#run")
    assert "cannot be reached" in ended(page)
    page.wait_for_selector("#state[data-state=bad]")
    page.unroute("**/v1/**")
    ready(page)


def test_a_field_that_cannot_be_sent(look: Look) -> None:
    page = ready(look())
    page.fill("#temperature", "9")
    page.click("#run")
    assert not page.evaluate("document.querySelector('#temperature').checkValidity()")
    assert page.evaluate("document.activeElement.id") == "temperature"
    page.fill("#temperature", "0")
    page.check("#race")
    page.select_option("#k", "0")
    page.click("#run")
    assert "larger K" in page.evaluate("document.querySelector('#k').validationMessage")
    assert page.inner_text("#status") == "Nothing has run yet."


# --- texts that part, and how a race is told ----------------------------------------------------


def test_texts_that_part_and_every_source(look: Look) -> None:
    """Answers made up: where two texts part, how much sooner one was, and all kinds of tokens."""
    kinds = ("model", "ngram", "predicted", "forced", "of my own")
    plain = [chunk(0.2 * n, (f"{n} ", "target")) for n in range(1, 6)]
    fast = [chunk(0.1 * n, (f"{n} ", kinds[n - 1])) for n in range(1, 5)]
    fast.append(chunk(0.5, ("six", kinds[4]), finish="length"))
    page = ready(look(reduced_motion="reduce"))
    page.route("**/v1/warm", lambda route: route.fulfill(json={"object": "warm"}))
    answers(page, (200, frame(*plain)), (200, frame(*fast)))
    page.check("#race")
    page.click("#run")
    said = ended(page)
    assert 'part at token 5: plain wrote "5 ", speculative wrote "six".' in said
    assert "2.00 times as fast" in said
    shown = panel(page, "Speculative")
    assert [token["parting"] for token in shown["tokens"]] == [False] * 4 + [True]
    assert len({token["line"] for token in shown["tokens"]}) == 5  # told apart without colour
    assert len({token["colour"] for token in shown["tokens"]}) == 5
    for token in shown["tokens"]:
        assert contrast(hexed(token["colour"]), hexed(token["ground"])) >= 4.5
    names = ["draft model", "n-gram", "predicted", "forced by a grammar", "of my own"]
    assert shown["legend"] == [f"{name} 1 (20 %)" for name in names]
    assert (shown["figures"]["speed"], shown["figures"]["first"]) == ("10.0", "100 ms")
    page.click(".panel[aria-label=Speculative] summary")
    table = ".panel[aria-label=Speculative] .rounds tbody tr"
    page.wait_for_selector(f"{table} >> nth=4")  # written once the part is open
    rows = page.locator(table).all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["1", "2", "3", "4", "5"]


def test_what_the_parts_reckon(look: Look) -> None:
    """The page's modules alone: where texts part, speeds, and who else was served in a race."""
    page = ready(look())
    told = page.evaluate(
        """async () => {
          const { Tally, parting } = await import("/page/tally.js");
          const { ceiling } = await import("/page/plot.js");
          const { Load } = await import("/page/load.js");
          const tally = (...rounds) => {
            const made = new Tally();
            for (const [seconds, pieces] of rounds)
              made.add({ seconds, tokens: pieces.length, sources: pieces.map(() => "target"),
                         pieces, round: null });
            return made;
          };
          const one = tally([1, ["a", "b"]], [2, ["c"]], [4, ["d"]]);
          const load = new Load(document.createElement("div"), null, () => {});
          load.count = 3;
          load.columns.running = [1, 3, 1];
          return {
            same: parting(one, tally([9, ["a", "b", "c", "d"]])),
            other: parting(one, tally([1, ["a", "B"]])),
            shorter: parting(one, tally([1, ["a", "b"]])),
            speed: one.speed, pace: one.pace, none: tally([1, ["a"]]).speed, empty: tally().pace,
            tops: [0, 0.3, 1, 3, 7, 12, 501].map(ceiling),
            others: [1, 2, 3].map(count => load.busiest(count)),
          };
        }"""
    )
    assert told == {
        "same": -1, "other": 1, "shorter": 2,
        "speed": pytest.approx(2 / 3), "pace": 1, "none": None, "empty": None,
        "tops": [1, pytest.approx(0.5), 1, 5, 10, 20, 1000],
        "others": [3, 1, 0],
    }  # fmt: skip


def test_a_token_is_text_and_never_markup(look: Look) -> None:
    page = ready(look())
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    answers(page, (200, frame(chunk(0.1, (evil, evil), finish="stop"))))
    page.click("#run")
    ended(page)
    assert text_of(panel(page, "Speculative")) == evil
    assert page.locator(".panel img, .panel script").count() == 0


# --- keyboard and screen reader -----------------------------------------------------------------


def test_by_keyboard_alone(look: Look) -> None:
    page = ready(look(390))
    order = []
    for _ in range(30):
        page.keyboard.press("Tab")
        order.append(page.evaluate(
            "document.activeElement.id || document.activeElement.name || "
            "document.activeElement.className || document.activeElement.tagName"))  # fmt: skip
        if order[-1] == "prompt":
            page.keyboard.press("Control+A")
            page.keyboard.type("x = 1\ny = ")
            assert page.input_value("#prompt") == "x = 1\ny = "
        if order[-1] == "temperature":
            page.keyboard.type("0")
        if order[-1] == "max-tokens":
            page.keyboard.type("6")  # a tab selects what is there
        if order[-1] == "race":
            page.keyboard.press("Space")
        if order[-1] == "run":
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid"
            page.keyboard.press("Enter")
            break
    wanted = ["skip", "kind", "prompt", "temperature", "max-tokens", "seed", "k", "SUMMARY",
              "race", "run"]  # fmt: skip
    assert order == wanted
    assert "Identical, all 6 tokens" in ended(page)
    assert page.evaluate("document.activeElement.id") == "run"  # focus stays where it was
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "stop"


ACCESS = """() => {
  const faults = [];
  const named = e => (e.ariaLabel || [...(e.labels ?? [])].map(l => l.innerText).join("") ||
    (e.getAttribute("aria-labelledby") && document.getElementById(
      e.getAttribute("aria-labelledby"))?.innerText) || e.innerText || "").trim();
  for (const e of document.querySelectorAll("input, select, textarea, button, summary, a, [role]"))
    if (!named(e) && !["status", "alert"].includes(e.getAttribute("role")))
      faults.push("no name: " + e.outerHTML.slice(0, 80));
  for (const e of document.querySelectorAll("img")) if (!e.hasAttribute("alt")) faults.push("alt");
  const ids = [...document.querySelectorAll("[id]")].map(e => e.id);
  if (new Set(ids).size !== ids.length) faults.push("an id twice");
  for (const e of document.querySelectorAll("[aria-describedby], [aria-labelledby]"))
    for (const name of ["aria-describedby", "aria-labelledby"])
      for (const id of (e.getAttribute(name) ?? "").split(" ").filter(Boolean))
        if (!document.getElementById(id)) faults.push(`no element ${id}`);
  const levels = [...document.querySelectorAll("h1, h2, h3")].map(h => +h.tagName[1]);
  if (levels[0] !== 1 || levels.some((l, i) => i && l > levels[i - 1] + 1)) faults.push("headings");
  for (const e of document.querySelectorAll("*"))
    if (["auto", "scroll"].includes(getComputedStyle(e).overflowY) && e.tabIndex < 0 &&
        e.scrollHeight > e.clientHeight + 1) faults.push("scrolls without a focus: " + e.className);
  for (const e of document.querySelectorAll("button, select, input:not([type=radio], [role])")) {
    const box = e.getBoundingClientRect();
    if (box.height && Math.min(box.width, box.height) < 24) faults.push("small: " + e.id);
  }
  if (!document.documentElement.lang || !document.title) faults.push("language or title");
  if (document.querySelectorAll("main, header, h1").length < 3) faults.push("landmarks");
  return faults;
}"""


@pytest.mark.parametrize("width", WIDTHS)
def test_a_screen_reader_finds_its_way(width: int, look: Look) -> None:
    page = ready(look(width))
    page.check("#race")
    page.fill("#max-tokens", "6")
    page.click("#run")
    assert "Identical" in ended(page)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate(ACCESS) == []
    # What changes with every token is not read out; how it went is.
    live = page.eval_on_selector_all("[role=status], [role=alert], [aria-live]",
                                     "all => all.map(e => e.id)")  # fmt: skip
    assert sorted(live) == ["problem", "status"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
