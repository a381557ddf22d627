"""Pictures of `velo dashboard` for the documentation: light and dark, desktop and phone.

python tests/python/support/dashboard_pictures.py docs/dashboard
"""

import contextlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from browsing import how
from helpers import environment
from pictured import shop, start

SIZES = {"desktop": (1360, 1112), "phone": (390, 844)}
# The seconds of history in the pictures.
LONG = 75


def main(folder):
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        program, port = shop(stack, place)
        words = ["-m", "velo", "dashboard", "--port", "0", "--pid", program.pid]
        server = start(
            stack,
            [*words, "--metrics", f"http://127.0.0.1:{port}/metrics"],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        address = re.search(r"http\S+", server.stderr.readline())[0]
        engine = stack.enter_context(sync_playwright())
        browser = engine.chromium.launch_persistent_context(**how(place / "profile"))
        stack.callback(browser.close)
        page = browser.new_page()
        page.goto(address)
        page.wait_for_timeout(LONG * 1000)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for name, (width, height) in SIZES.items():
                page.set_viewport_size({"width": width, "height": height})
                page.mouse.move(0, 0)
                page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
                page.wait_for_timeout(1500)
                page.screenshot(path=folder / f"{name}-{scheme}.png")
                page.locator("#streams tbody button", has_text="(cart").first.click()
                page.wait_for_selector("#panel .locals")
                page.wait_for_timeout(1200)
                page.screenshot(path=folder / f"panel-{name}-{scheme}.png")
                page.keyboard.press("Escape")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    main(folder)
