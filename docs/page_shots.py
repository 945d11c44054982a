"""Draw the pictures of the page in docs/: a server of the bundled pair, a browser, two looks at it.

    pip install -e '.[server]' playwright, and Debian's chromium
    python docs/page_shots.py [--out docs] [--chromium /usr/bin/chromium] [--seconds 20]

The figures in them are what this machine wrote while the pictures were taken.
"""

from __future__ import annotations

import argparse
import base64
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from paceline import Engine
from paceline.server.serving import Server, ServerSettings, address, bind

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PREDICTION = """        if os.path.isdir(folder):
            for file in names:
                if os.path.exists(file):
                    found.append(file)
    return found
"""


@contextmanager
def served() -> Iterator[str]:
    """The bundled pair with drafts in every round, and its address."""
    pair = {"draft": "mini-draft", "drafter": "predicted+ngram+model", "adaptive": False}
    with Engine("mini-target", k=4, max_length=1024, **pair) as engine, bind("127.0.0.1", 0) as at:
        server = Server(engine, ServerSettings(name="mini-target"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield address(at)
        finally:
            server.should_exit = True
            thread.join()


def run(page: Page, seconds: float) -> None:
    """Run what is asked and wait until it is told how it went."""
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#status[data-kind=busy]")
    page.wait_for_selector("#status:not([data-kind=busy])", timeout=1e3 * seconds)
    assert page.is_hidden("#problem"), page.inner_text("#problem")


def side_by_side(page: Page, url: str, seconds: float) -> None:
    page.goto(url)
    page.wait_for_selector("#state[data-state=good]")
    page.check("#race")
    for _ in range(3):
        run(page, 30 + seconds)
    time.sleep(seconds)
    run(page, 30 + seconds)
    page.wait_for_timeout(1500)


def one_stream(page: Page, url: str, seconds: float) -> None:
    page.goto(url)
    page.wait_for_selector("#state[data-state=good]")
    page.click("#expect summary")
    page.fill("#prediction", PREDICTION)
    run(page, 30 + seconds)
    page.wait_for_timeout(1500)


PIXELS = """async png => {
  const image = new Image();
  image.src = "data:image/png;base64," + png;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
  canvas.drawImage(image, 0, 0);
  const { data } = canvas.getImageData(0, 0, image.width, image.height);
  let text = "";
  for (let at = 0; at < data.length; at += 8192)
    text += String.fromCharCode(...data.subarray(at, at + 8192));
  return [image.width, image.height, btoa(text)];
}"""


def smaller(page: Page, png: bytes) -> bytes:
    """The picture with its 256 commonest colours, others as the nearest: a third of the bytes."""
    width, height, data = page.evaluate(PIXELS, base64.b64encode(png).decode())
    pixels = np.frombuffer(base64.b64decode(data), np.uint8).reshape(-1, 4)[:, :3]
    colours, place, count = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    kept = colours[np.argsort(-count)[:256]].astype(int)
    nearest = [np.square(kept - colour).sum(1).argmin() for colour in colours.astype(int)]
    rows = np.array(nearest, np.uint8)[place].reshape(height, width)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)  # no filter: best for few colours

    def chunk(kind: bytes, body: bytes) -> bytes:
        size, check = len(body), zlib.crc32(kind + body)
        return struct.pack(">I", size) + kind + body + struct.pack(">I", check)

    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", kept.astype(np.uint8).tobytes()),
            chunk(b"IDAT", zlib.compress(lines, 9)),
            chunk(b"IEND", b""),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--seconds", type=float, default=20.0, help="of load to be seen")
    given = parser.parse_args()
    looks = (
        ("page_light.png", side_by_side, "light", {"width": 1440, "height": 900}),
        ("page_dark.png", one_stream, "dark", {"width": 390, "height": 1020}),
    )
    with served() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=list(FLAGS))
        for name, look, scheme, view in looks:
            page = browser.new_page(color_scheme=scheme, viewport=view)  # type: ignore[arg-type]
            look(page, url, given.seconds)
            picture = page.screenshot(full_page=scheme == "light")
            page.goto("about:blank")
            size = (given.out / name).write_bytes(smaller(page, picture))
            page.close()
            print(given.out / name, size, "bytes")
        browser.close()


if __name__ == "__main__":
    main()
