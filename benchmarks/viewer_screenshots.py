"""Pictures of the viewer, and how soon it is there.

    python benchmarks/viewer_screenshots.py [-o DIR]

Writes docs/viewer/: the bundled model's 40 best edges, and synthetic circuits of GPT-2's shape with
400 and 2,000 edges, in light and dark; and the 40 grouped by role, their heads sorted by what they
do to the logits. Prints for each the size of the page, the browser's first
paint, and when the page with its script, drawing and table had been painted. Needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from wiremap.circuits import Circuit, discover, load_task
from wiremap.edges import Model
from wiremap.exporters import View, write_circuit

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import synthetic  # pyright: ignore[reportMissingImports]

REPEATS = 5
_WATCH = """addEventListener('load', () => requestAnimationFrame(() =>
    setTimeout(() => { window.painted = performance.now(); })))"""
_FIRST = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def circuits() -> dict[str, Circuit]:
    model = Model.load("ioi-mini")
    return {
        "40": discover(model, load_task("ioi", model, n_pairs=64), size=40),
        "400": synthetic.circuit(400),
        "2000": synthetic.circuit(2000),
    }


def roles(circuit: Circuit) -> dict[str, list[str]]:
    """The heads of a circuit by the sign of their edge to the logits."""
    to_logits = {
        edge.source: edge.worth or 0.0 for edge in circuit.edges if edge.target == "logits"
    }
    found: dict[str, list[str]] = {"for the answer": [], "against it": [], "through others": []}
    for node in circuit.nodes:
        if node.kind == "head":
            worth = to_logits.get(node.name, 0.0)
            role = (
                "for the answer" if worth > 0 else "against it" if worth < 0 else "through others"
            )
            found[role].append(node.name)
    return found


def timed(browser: Browser, page: Path) -> tuple[float, float]:
    """Medians in milliseconds: first paint, everything painted."""
    first: list[float] = []
    painted: list[float] = []
    for _ in range(REPEATS):
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.add_init_script(_WATCH)
        tab.goto(page.as_uri())
        while None in (times := [tab.evaluate(_FIRST), tab.evaluate("window.painted")]):
            tab.wait_for_timeout(20)
        first.append(times[0])
        painted.append(max(times))
        tab.close()
    return statistics.median(first), statistics.median(painted)


def photograph(browser: Browser, page: Path, scheme: str, to: Path, address: str = "") -> None:
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    tab.goto(page.as_uri() + address)
    image = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    image.quantize(160, dither=Image.Dither.NONE).save(to, optimize=True)
    tab.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "viewer")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, circuit in circuits().items():
            page = Path(directory) / f"{name}.html"
            write_circuit(circuit, page)
            first, painted = timed(browser, page)
            click.echo(
                f"{len(circuit.edges)} edges: {page.stat().st_size / 1e3:.0f} kB, "
                f"first paint {first:.0f} ms, all painted {painted:.0f} ms (medians of {REPEATS})"
            )
            for scheme in ("light", "dark"):
                photograph(browser, page, scheme, out / f"{name}-edges-{scheme}.png")
            if name == "40":
                write_circuit(circuit, page, view=View(groups=roles(circuit)))
                photograph(browser, page, "light", out / "40-edges-roles.png", "#by=role")
        browser.close()


if __name__ == "__main__":
    main()
