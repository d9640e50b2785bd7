"""Make the screenshots of the documentation: python docs/images/screenshots.py

After `make demo`, in .venv, with the system's Chromium. Class activation maps are not needed.
"""

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from mmgcvit.app.checkpoint import CheckpointModel
from mmgcvit.app.commands import find_examples
from mmgcvit.app.page import serve

DEMO = Path("work_dirs/demo")
CONFIG = "configs/detection/mask-rcnn_gcvit-nano_fpn_digits.py"
OUT = Path(__file__).parent


def save(page: Page, name: str, **options: object) -> None:
    """Write a screenshot as JPEG."""
    image = Image.open(io.BytesIO(page.screenshot(**options))).convert("RGB")
    image.save(OUT / name, quality=75, optimize=True)


def main() -> None:
    """Open the report of the demo, and the page with its detector."""
    model = CheckpointModel(CONFIG, str(DEMO / "iter_600.pth"), "cpu")
    arguments = dict(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    with serve(model, find_examples(model, None)) as url, sync_playwright() as driver:
        page = driver.chromium.launch(**arguments).new_page(viewport=dict(width=1100, height=900))
        page.goto((DEMO / "report.html").resolve().as_uri())
        area = page.locator("#errors").bounding_box()
        save(page, "report.jpg", full_page=True, clip=dict(area, x=0, width=1100, height=1000))
        page.goto(url)
        page.set_input_files("#image input[type=file]", "data/digit_scenes/images/val/000003.jpg")
        drawing = page.locator("#result img")
        drawing.wait_for()
        page.wait_for_timeout(1000)  # until the page has its layout
        area = drawing.bounding_box()
        drawing.click(position=dict(x=area["width"] * 0.68, y=area["height"] * 0.55))
        page.locator("#figure img").wait_for()
        page.wait_for_timeout(1000)
        save(page, "app.jpg", full_page=True, clip=dict(x=0, y=0, width=1100, height=1190))


if __name__ == "__main__":
    main()
