"""A real browser looks at a page: what it drew, where, in which colours."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Drawn", "Look", "look"]

TIMEOUT_S = 60
SCHEMES = {"dark": 0, "light": 1}  # as Chromium numbers them

# The page lies in a frame of another page, so that its own policy, which forbids scripts, stays as it is.
STAGE = """<!doctype html>
<body style="margin:0"><iframe src="PAGE" style="border:0;width:WIDTHpx;height:HEIGHTpx"></iframe>
<script>
const round = rect => [rect.left, rect.top, rect.right, rect.bottom].map(v => Math.round(v * 100) / 100);
document.querySelector("iframe").onload = ({target}) => {
  const inner = target.contentWindow, page = inner.document;
  const style = element => inner.getComputedStyle(element);
  const seen = element => {
    const rect = element.getBoundingClientRect();
    return page.elementFromPoint((rect.left + rect.right) / 2, (rect.top + rect.bottom) / 2) === element;
  };
  const paper = element => {
    for (let up = element; up; up = up.parentElement) {
      const colour = style(up).backgroundColor;
      if (!/, 0\\)$/.test(colour) && colour !== "transparent") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const drawn = [...page.querySelectorAll("svg.plot *:not(title):not(g)")].map(element => ({
    plot: element.closest("svg.plot").getAttribute("aria-label"),
    tag: element.tagName,
    classes: [...element.classList],
    title: [element, element.parentElement]
      .map(owner => owner.querySelector(":scope > title")).find(title => title)?.textContent,
    text: element.tagName === "text" ? element.textContent : "",
    box: round(element.getBoundingClientRect()),
    fill: style(element).fill,
    seen: seen(element),
  }));
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || parent.closest("title")) continue;
    const svg = parent.closest("svg");
    texts.push({
      text: walker.currentNode.data, classes: [...parent.classList],
      box: round(parent.getBoundingClientRect()),
      ink: svg ? style(parent).fill : style(parent).color, paper: paper(svg || parent),
      plot: svg ? svg.getAttribute("aria-label") : "",
    });
  }
  const found = {
    drawn, texts,
    plots: [...page.querySelectorAll("svg.plot")].map(plot => plot.getAttribute("aria-label")),
    scripts: page.querySelectorAll("script, img, link, iframe, object").length,
    fetched: inner.performance.getEntriesByType("resource").length,
    width: page.documentElement.scrollWidth,
    height: page.documentElement.scrollHeight,
  };
  const out = document.createElement("pre");
  out.textContent = JSON.stringify(found);
  document.body.append(out);
};
</script></body>"""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Something in a plot; box is left, top, right, bottom in pixels."""

    plot: str
    tag: str
    classes: tuple[str, ...]
    title: str
    text: str
    box: tuple[float, float, float, float]
    fill: str
    seen: bool  # whether it is what lies on top, at its centre

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, slots=True)
class Look:
    """A page as it was drawn."""

    drawn: tuple[Drawn, ...]
    texts: tuple[dict[str, Any], ...]  # text, classes, box, ink and paper (computed colours), plot
    plots: tuple[str, ...]
    scripts: int  # elements that could run or fetch something
    fetched: int  # what was fetched beside the page
    width: int
    height: int
    pixels: NDArray[np.uint8]  # [height, width, 3]

    def all(self, plot: str, *classes: str) -> list[Drawn]:
        return [each for each in self.drawn if each.plot == plot and set(classes) <= set(each.classes)]

    def pixel(self, x: float, y: float) -> tuple[int, int, int]:
        red, green, blue = self.pixels[int(y), int(x)].tolist()
        return red, green, blue


def look(page: Path, scheme: str = "light", width: int = 1100, height: int = 4000) -> Look:
    """Open a page in headless Chromium, in a window that shows all of it."""
    browser = shutil.which("chromium")
    assert browser is not None, "chromium is missing: .ci/system chromium"
    place = page.parent
    stage, picture = place / "stage.html", place / "stage.png"
    stage.write_text(
        STAGE.replace("PAGE", page.as_uri()).replace("WIDTH", str(width)).replace("HEIGHT", str(height)),
        "utf-8",
    )
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--hide-scrollbars", "--allow-file-access-from-files",
            f"--user-data-dir={place / 'profile'}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            f"--window-size={max(width, 500)},{height}", f"--screenshot={picture}", "--dump-dom",
            stage.as_uri(),
        ],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    answer = re.search(r"<pre>(.*)</pre>", done.stdout, re.DOTALL)
    assert answer is not None, done.stderr[-2000:]
    found = json.loads(unescape(answer[1]))
    drawn = tuple(
        Drawn(
            plot=each["plot"], tag=each["tag"], classes=tuple(each["classes"]), title=each.get("title", ""),
            text=each["text"], box=tuple(each["box"]), fill=each["fill"], seen=each["seen"],
        )
        for each in found.pop("drawn")
    )  # fmt: skip
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    texts, plots = tuple(found.pop("texts")), tuple(found.pop("plots"))
    result = Look(drawn=drawn, texts=texts, plots=plots, pixels=pixels, **found)
    assert result.height <= height, f"the page is {result.height} pixels high, the window only {height}"
    return result
