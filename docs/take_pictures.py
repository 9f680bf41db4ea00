"""The explorer's pictures in docs/images, from a report: `python docs/take_pictures.py REPORT [FILE]`.

Shows the image FILE, or the first one, with its worst object chosen, at alpha 0, in both themes.
Needs Debian's chromium and the package playwright.
"""

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1240, "height": 1600}
STYLE = "details, .keys, .left-out { display: none } #explorer { padding: 1rem 2rem }"  # no tables below; a margin


def main() -> None:
    """Write explorer-light.png and explorer-dark.png."""
    report, file = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        for theme in ("light", "dark"):
            page = browser.new_page(viewport=SIZE, color_scheme=theme)
            page.goto(report.absolute().as_uri())
            page.evaluate("explorer.set({ alpha: 0, nmsIou: 0.5, scoreThreshold: 0.2 })")
            images = page.locator(".filmstrip [role=option]")
            (images if file is None else images.filter(has_text=file)).first.click()
            page.locator(".objects button").first.click()  # worst first
            page.add_style_tag(content=STYLE)
            page.mouse.move(0, 0)
            path = IMAGES / f"explorer-{theme}.png"
            page.locator("#explorer").screenshot(path=path)
            # 256 colours: a third of the size, and no difference to be seen.
            Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
