"""Pictures of docs/gallery.md: run the code blocks of the page in order, and store the pictures that they draw.

    python tools/make_gallery.py DATA WORK

DATA has the folder `abdomen` that the page describes. WORK receives all files; a finished demo in it is not repeated.
The report is photographed by Chromium. Pictures get a palette of 256 colours, and are made smaller
until they have less than 200 kB.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gallery.md"
IMAGES = ROOT / "docs" / "images"
LIMIT = 200_000  # bytes
PICTURES = {  # name in docs/images: file in WORK
    "demo_overlay.png": "demo_run/overlay.png",
    "gallery/loss_curve.png": "demo_run/loss_curve.png",
    "gallery/session.png": "session.png",
    "gallery/preview_patient.png": "preview_patient.png",
    "gallery/click.png": "click.png",
    "gallery/planes.png": "planes.png",
    "gallery/report.png": "report.png",
}
LANGUAGES = {"sh": ["bash", "-e", "-c"], "python": [sys.executable, "-c"]}


def run_page(work: Path) -> None:
    """Run the code blocks of the page in a folder."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        print(block, flush=True)
        subprocess.run([*LANGUAGES[language], block], cwd=work, env=environment, check=True)


def photograph(page: Path, picture: Path) -> None:
    """Store the top of an HTML page, 1100 x 1400 pixels."""
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,1400"]
    subprocess.run(["chromium", *words, f"--screenshot={picture}", page.resolve().as_uri()], check=True)


def store(source: Path, target: Path) -> None:
    """Store a picture with a palette, and smaller if it exceeds the limit."""
    target.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(source).convert("RGB")
    while True:
        picture.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
        if target.stat().st_size < LIMIT:
            break
        picture = picture.resize((picture.width * 9 // 10, picture.height * 9 // 10), Image.Resampling.LANCZOS)
    print(f"{target.relative_to(ROOT)}: {picture.width} x {picture.height}, {target.stat().st_size} bytes")


def main(data: str, work: str) -> None:
    """Make all pictures."""
    folder = Path(work)
    shutil.copytree(Path(data, "abdomen"), folder / "abdomen", dirs_exist_ok=True)
    run_page(folder)
    photograph(folder / "scores" / "report.html", folder / "report.png")
    for name, source in PICTURES.items():
        store(folder / source, IMAGES / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
