"""The viewer at work, in a headless Chromium that may not load anything but the page."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import circuits_for_tests as by_hand
import pytest
import synthetic
from playwright.sync_api import Browser, FloatRect, Locator, Page, sync_playwright

from wiremap.circuits import Circuit, CircuitEdge
from wiremap.exporters import View, read_circuit, write_circuit
from wiremap.exporters.pages.viewer import Viewer

_PROGRAMS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
CHROMIUM = next(filter(None, map(shutil.which, _PROGRAMS)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium or Chrome (apt install chromium); none was found"
)
SVG = "{http://www.w3.org/2000/svg}"

Open = Callable[..., Page]
Roles = Mapping[str, Sequence[str]]
ROLES: Roles = {"early": ["a0.h0", "m0"], "not there": ["m1"], synthetic.HOSTILE: ["a1.h1"]}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens a circuit (or a page) and looks over its shoulder: no request, error or dialog."""
    wrong: list[str] = []
    contexts = []

    def open_page(
        circuit: Circuit | Path, address: str = "", roles: Roles | None = None, **options: object
    ) -> Page:
        path = circuit if isinstance(circuit, Path) else tmp_path / "circuit.html"
        if not isinstance(circuit, Path):
            write_circuit(circuit, path, view=View(groups=roles or {}))
        context = browser.new_context(viewport={"width": 1400, "height": 900}, **options)  # pyright: ignore[reportArgumentType]
        contexts.append(context)
        page = context.new_page()
        own = path.as_uri()
        page.on(
            "request",
            lambda request: (
                None
                if request.url.partition("#")[0] == own or request.url.startswith("blob:")
                else wrong.append(f"request {request.url}")
            ),
        )
        page.on("pageerror", lambda error: wrong.append(f"error {error}"))
        page.on("console", lambda message: wrong.append(f"console {message.text}"))
        page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
        page.goto(own + address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def status(page: Page) -> str:
    return page.inner_text("#status")


def table(page: Page) -> list[str]:
    """Names of the edges in the table, from its top."""
    return page.locator("#rows tr th").all_inner_texts()


def edge(page: Page, circuit: Circuit, name: str) -> Locator:
    places = [edge.name for edge in circuit.edges]
    return page.locator(f'path[data-edge="{places.index(name)}"]')


def node(page: Page, name: str) -> Locator:
    return page.locator(f'[data-node="{name}"]')


def names(page: Page, circuit: Circuit, selector: str) -> set[str]:
    """Names of the drawn edges that match a selector."""
    places: list[str] = page.locator(f"path[data-edge]{selector}").evaluate_all(
        "found => found.map(path => path.dataset.edge)"
    )
    return {circuit.edges[int(place)].name for place in places}


def slide(page: Page, slider: str, step: int) -> None:
    page.locator(slider).evaluate(
        "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input')) }", step
    )


# ---- filters


def test_sliders_change_what_is_shown_and_counted(show: Open) -> None:
    page, circuit = show(by_hand.circuit()), by_hand.circuit()
    assert status(page) == "6 of 6 edges, 5 of 5 nodes"
    assert names(page, circuit, ":not(.off)") == {edge.name for edge in circuit.edges}
    page.focus("#top")
    page.keyboard.press("ArrowLeft")
    assert status(page) == "5 of 6 edges, 5 of 5 nodes"
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert status(page) == "2 of 6 edges, 4 of 5 nodes"
    assert names(page, circuit, ":not(.off)") == {"m0->logits", "input->a0.h0<v>"}
    assert table(page) == ["m0->logits", "input->a0.h0<v>"]
    assert not node(page, "a1.h1").is_visible()
    page.click("#reset")
    assert status(page) == "6 of 6 edges, 5 of 5 nodes"


def test_the_threshold_keeps_edges_of_at_least_that_magnitude(show: Open) -> None:
    circuit = synthetic.circuit(40)
    page = show(circuit)
    sizes = [abs(edge.worth or 0.0) for edge in circuit.edges]
    seen: set[int] = set()
    steps = int(page.get_attribute("#min", "max") or 0)
    for share in (0.2, 0.5, 1):
        slide(page, "#min", round(share * steps))
        threshold = float(page.inner_text("#min-value").split()[0])
        kept = sum(size >= threshold for size in sizes)
        assert status(page).startswith(f"{kept} of 40 edges")
        assert page.locator("path[data-edge]:not(.off)").count() == kept
        seen.add(kept)
    assert len(seen) == 3
    assert min(seen) >= 1


def test_sign_slot_and_evidence_filter(show: Open) -> None:
    page, circuit = show(by_hand.circuit()), by_hand.circuit()
    left = {
        "positive": {"a0.h0->a1.h1<q>", "a1.h1->logits"},
        "negative": {"input->a0.h0<v>", "a0.h0->a1.h1<k>", "input->m0", "m0->logits"},
        "none": {"input->a0.h0<v>", "a0.h0->a1.h1<q>", "a0.h0->a1.h1<k>"},
        "q": {edge.name for edge in circuit.edges} - {"a0.h0->a1.h1<q>"},
        "verified": {"a0.h0->a1.h1<k>"},
        "scored": {edge.name for edge in circuit.edges} - {"a0.h0->a1.h1<k>"},
    }
    for kind, expected in left.items():
        page.uncheck(f'[value="{kind}"]')
        assert names(page, circuit, ":not(.off)") == expected, kind
        assert set(table(page)) == expected
        page.check(f'[value="{kind}"]')
    assert status(page).startswith("6 of 6")


def test_a_kind_that_does_not_occur_cannot_be_chosen(show: Open) -> None:
    page = show(by_hand.grouped())
    assert page.is_disabled('[value="verified"]')
    assert page.is_enabled('[value="scored"]')


def test_search_narrows_the_table_and_highlights(show: Open) -> None:
    page, circuit = show(by_hand.circuit()), by_hand.circuit()
    page.fill("#find", "A1.H1")
    found = {"a0.h0->a1.h1<q>", "a0.h0->a1.h1<k>", "a1.h1->logits"}
    assert set(table(page)) == found
    assert names(page, circuit, ".hot") == found
    assert status(page).startswith("6 of 6")
    page.fill("#find", "nothing like it")
    assert table(page) == []
    page.fill("#find", "")
    assert len(table(page)) == 6
    assert names(page, circuit, ".hot") == set()


# ---- hovering and pinning


def opacity(found: Locator) -> float:
    return float(found.evaluate("path => getComputedStyle(path).strokeOpacity"))


def test_hovering_a_node_shows_its_neighbours(show: Open) -> None:
    page, circuit = show(by_hand.circuit()), by_hand.circuit()
    node(page, "a0.h0").hover()
    assert names(page, circuit, ".hot") == {
        "input->a0.h0<v>", "a0.h0->a1.h1<q>", "a0.h0->a1.h1<k>",
    }  # fmt: skip
    assert page.locator(".node.hot").count() == 3
    assert opacity(edge(page, circuit, "a0.h0->a1.h1<q>")) == 1.0
    assert opacity(edge(page, circuit, "m0->logits")) < 0.1
    assert page.inner_text("#tip") == "a0.h0; 1 in, 2 out"
    page.mouse.move(5, 5)
    assert names(page, circuit, ".hot") == set()
    assert not page.is_visible("#tip")


def middle_of(path: Locator) -> tuple[float, float]:
    x, y = path.evaluate(
        "path => { const at = path.getPointAtLength(path.getTotalLength() / 2)"
        ".matrixTransform(path.getScreenCTM()); return [at.x, at.y] }"
    )
    return x, y


def test_hovering_near_an_edge_tells_its_figures(show: Open) -> None:
    page, circuit = show(by_hand.circuit()), by_hand.circuit()
    x, y = middle_of(edge(page, circuit, "input->a0.h0<v>"))
    page.mouse.move(x + 3, y)
    told = (
        "input->a0.h0<v>: effect +1.25 ± 0.12 logits, 95 % [+1, +1.5] (8 pairs), "
        "score +0.5, the circuit loses +0.875 without it, in 100% of resampled circuits"
    )
    assert page.inner_text("#tip") == told
    assert names(page, circuit, ".hot") == {"input->a0.h0<v>"}
    box: FloatRect | None = page.locator("#tip").bounding_box()
    assert box is not None
    assert 0 <= box["x"] < 1400 - box["width"]


def test_a_click_pins_until_it_is_undone(show: Open) -> None:
    page, circuit = show(by_hand.circuit()), by_hand.circuit()
    node(page, "m0").click()
    page.mouse.move(5, 5)
    assert names(page, circuit, ".hot") == {"input->m0", "m0->logits"}
    assert node(page, "m0").get_attribute("aria-pressed") == "true"
    page.mouse.click(*middle_of(edge(page, circuit, "input->a0.h0<v>")))
    page.mouse.move(5, 5)
    assert names(page, circuit, ".pinned") == {"input->a0.h0<v>"}
    assert len(names(page, circuit, ".hot")) == 3
    page.check("#only")
    assert set(table(page)) == names(page, circuit, ".hot")
    node(page, "m0").click()
    page.mouse.move(5, 5)
    assert names(page, circuit, ".hot") == {"input->a0.h0<v>"}
    page.keyboard.press("Escape")
    assert names(page, circuit, ".hot") == set()
    assert page.is_disabled("#unpin")


def test_selecting_a_row_highlights_the_edge(show: Open) -> None:
    page, circuit = show(by_hand.circuit()), by_hand.circuit()
    button = page.get_by_role("button", name="m0->logits")
    button.hover()
    assert names(page, circuit, ".hot") == {"m0->logits"}
    button.focus()
    page.keyboard.press("Enter")
    page.mouse.move(5, 5)
    page.focus("#find")
    assert names(page, circuit, ".hot.pinned") == {"m0->logits"}
    assert button.get_attribute("aria-pressed") == "true"
    page.click("#unpin")
    assert names(page, circuit, ".hot") == set()


def test_nodes_can_be_reached_and_pinned_by_keyboard(show: Open) -> None:
    page, circuit = show(by_hand.circuit()), by_hand.circuit()
    page.focus("#zoom-in")
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.dataset.node")
    assert focused == "input"
    assert page.inner_text("#tip").startswith("input: score -2 logits")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert names(page, circuit, ".hot") >= {"input->a0.h0<v>", "input->m0"}
    assert node(page, "input").get_attribute("aria-pressed") == "true"
    assert node(page, "input").get_attribute("role") == "button"


# ---- the table


def test_the_table_is_sorted_by_keyboard(show: Open) -> None:
    page = show(by_hand.circuit())
    heads = page.locator("thead th")
    sorts = "found => found.map(head => head.getAttribute('aria-sort'))"
    assert heads.evaluate_all(sorts) == ["ascending"] + ["none"] * 7
    by_size = [
        "m0->logits", "input->a0.h0<v>", "a0.h0->a1.h1<q>", "a0.h0->a1.h1<k>",
        "a1.h1->logits", "input->m0",
    ]  # fmt: skip
    assert table(page) == by_size
    page.focus("thead th[data-column=effect] button")
    page.keyboard.press("Enter")
    assert page.get_attribute("th[data-column=effect]", "aria-sort") == "descending"
    signed = [
        "m0->logits", "input->a0.h0<v>", "input->m0", "a1.h1->logits", "a0.h0->a1.h1<q>",
    ]  # fmt: skip
    assert table(page) == [*signed, "a0.h0->a1.h1<k>"]
    page.keyboard.press("Enter")
    assert page.get_attribute("th[data-column=effect]", "aria-sort") == "ascending"
    assert page.get_attribute("th[data-column=rank]", "aria-sort") == "none"
    assert table(page) == [*reversed(signed), "a0.h0->a1.h1<k>"]  # what is missing stays last
    page.focus("thead th[data-column=name] button")
    page.keyboard.press(" ")
    assert table(page)[:2] == ["a0.h0->a1.h1<k>", "a0.h0->a1.h1<q>"]


def test_the_table_tells_every_figure(show: Open) -> None:
    page = show(by_hand.circuit())
    rows = [row.split("\t") for row in page.locator("#rows tr").all_inner_texts()]
    assert rows[0] == ["1", "m0->logits", "+3.5", "± 0.5", "", "", "+2", "8"]
    assert rows[2] == [
        "3", "a0.h0->a1.h1<q>", "\u22120.75", "± 0.25", "[\u22121.25, +0.125]",
        "\u22120.125", "\u22120.5", "8",
    ]  # fmt: skip
    assert rows[3] == ["4", "a0.h0->a1.h1<k>", "", "", "", "", "+0.25", "\u2013"]


def test_edges_weighed_in_the_circuit_alone_are_a_kind_of_their_own(show: Open) -> None:
    edges = [
        CircuitEdge("input", "m0", score=1.0, effect=2.0, n_pairs=8),
        CircuitEdge("m0", "m1", score=-1.0, loss=-0.5),
        CircuitEdge("m1", "logits", score=0.5),
    ]
    page = show(Circuit.build(by_hand.SHAPE, edges))
    assert table(page) == ["input->m0", "m0->m1", "m1->logits"]
    page.uncheck('[value="weighed"]')
    assert table(page) == ["input->m0", "m1->logits"]
    page.uncheck('[value="verified"]')
    assert table(page) == ["m1->logits"]


def test_there_are_columns_of_intervals_and_losses_only_where_there_are_some(show: Open) -> None:
    page = show(synthetic.circuit(12))
    assert page.locator("th[data-column=interval], th[data-column=loss]").count() == 0
    assert page.locator("#rows tr").first.locator("td, th").count() == 6


def test_the_faithfulness_curve_unfolds(show: Open) -> None:
    page = show(by_hand.circuit(evidence={"curve": by_hand.CURVE}))
    assert not page.locator(".curve svg").is_visible()
    page.click("summary")
    assert page.locator(".curve svg").is_visible()
    assert page.locator(".curve .c0").evaluate("line => getComputedStyle(line).fill") == "none"
    assert edge(page, by_hand.circuit(), "m0->logits").is_visible()


def test_large_circuits_are_shown_in_part(show: Open, large_page: Path) -> None:
    page = show(large_page)
    assert status(page) == "2,100 of 2,100 edges, 158 of 158 nodes; 100 too small to be drawn"
    assert page.locator("path[data-edge]:not(.off)").count() == 2000
    assert len(table(page)) == 200
    page.click("#more")
    assert len(table(page)) == 400
    assert page.inner_text("#caption").startswith("2,100 edges, the first 400 shown")


# ---- layers


def test_grouping_by_layer_joins_nodes_and_edges(show: Open) -> None:
    circuit = synthetic.circuit(150)
    page = show(circuit)
    page.select_option("#by", "layer")
    assert not page.locator("path[data-edge]").first.is_visible()
    rows = {(node.layer, node.kind) for node in circuit.nodes}
    assert page.locator(".group").count() == len(rows)
    kinds = {node.name: (node.layer, node.kind) for node in circuit.nodes}
    flows = {
        (kinds[edge.source], kinds[edge.target], (edge.worth or 0.0) < 0) for edge in circuit.edges
    }
    assert page.locator("[data-flow]").count() == len(flows)
    heads = page.locator(".group.head").first
    heads.click()
    pinned = page.locator(".node.pinned:not(.group)").evaluate_all(
        "found => found.map(node => node.dataset.row)"
    )
    assert set(pinned) == {heads.get_attribute("data-key")}
    page.select_option("#by", "none")
    assert page.locator(".group").count() == 0
    assert page.locator("path[data-edge]").first.is_visible()


# ---- roles


def key(page: Page, number: int) -> Locator:
    """What the legend says of a role."""
    return page.locator(f'.key[data-key="{number}"]')


def test_the_legend_highlights_and_pins_a_role(show: Open) -> None:
    page, circuit = show(by_hand.circuit(), roles=ROLES), by_hand.circuit()
    of_early = {edge.name for edge in circuit.edges} - {"a1.h1->logits"}
    key(page, 0).locator("tspan").hover()
    assert names(page, circuit, ".hot") == of_early
    assert page.inner_text("#tip") == "early: a0.h0, m0"
    page.mouse.move(5, 5)
    assert names(page, circuit, ".hot") == set()
    key(page, 0).locator("circle").click()
    page.mouse.move(5, 5)
    assert names(page, circuit, ".hot") == of_early
    assert key(page, 0).get_attribute("aria-pressed") == "true"
    page.wait_for_url(re.compile("pin=a0.h0&pin=m0"))
    key(page, 0).focus()
    page.keyboard.press("Enter")
    assert page.is_disabled("#unpin")
    key(page, 1).locator("circle").click()
    assert key(page, 1).get_attribute("aria-pressed") == "false"
    assert page.is_disabled("#unpin")
    node(page, "a0.h0").hover()
    assert page.inner_text("#tip") == "a0.h0 (early); 1 in, 2 out"


def test_grouping_by_role_joins_nodes_and_edges(show: Open) -> None:
    circuit = by_hand.circuit()
    page = show(circuit, roles={"ends of it": ["input", "a1.h1"], "early": ["a0.h0"]})
    page.select_option("#by", "role")
    page.wait_for_url(re.compile("by=role"))
    page.reload()
    assert page.input_value("#by") == "role"
    boxes = page.locator(".group")
    assert boxes.evaluate_all("found => found.map(box => box.dataset.key)") == [
        "logits", "0", "none", "1",
    ]  # fmt: skip
    assert boxes.evaluate_all("found => found.map(box => box.ariaLabel)") == [
        "logits: 1 node", "ends of it: 2 nodes", "no role: 1 node", "early: 1 node",
    ]  # fmt: skip
    assert page.locator("[data-flow]").count() == 6
    told = page.locator("[data-flow]").evaluate_all("found => found.map(line => line.flow.length)")
    assert sum(told) == 6
    assert not page.locator("text.row").first.is_visible()
    boxes.nth(1).click()
    page.mouse.move(5, 5)
    assert names(page, circuit, ".hot") == {edge.name for edge in circuit.edges} - {"m0->logits"}
    assert key(page, 0).get_attribute("aria-pressed") == "true"
    page.uncheck('[value="positive"]')
    assert boxes.count() == 3
    page.click("#reset")
    assert page.input_value("#by") == "none"
    assert page.locator("text.row").first.is_visible()


def test_edges_inside_a_role_are_counted(show: Open, tmp_path: Path) -> None:
    page = show(by_hand.circuit(), "#by=role", roles={"heads": ["a0.h0", "a1.h1"]})
    assert page.locator(".count").all_text_contents() == ["2 edges inside"]
    page.locator(".group .count").hover()
    assert page.inner_text("#tip") == "heads: 2 nodes, 2 edges inside"
    root = ElementTree.fromstring(save(page, "#save-svg", tmp_path).read_bytes())
    texts = {"".join(text.itertext()) for text in root.iter(f"{SVG}text")}
    assert {"heads \u00d72", "2 edges inside"} <= texts
    assert [root.attrib["width"], root.attrib["height"]] == root.attrib["viewBox"].split()[2:]


def test_roles_in_the_address_of_a_page_without_are_ignored(show: Open) -> None:
    page = show(by_hand.circuit(), "#by=role")
    assert page.input_value("#by") == "none"
    assert page.locator(".group").count() == 0
    assert page.locator("#by option:disabled").all_inner_texts() == ["role"]


def test_names_of_roles_are_only_text(show: Open) -> None:
    page = show(synthetic.hostile(), "#by=role", roles=ROLES)
    page.locator('.group[data-key="2"]').hover()
    assert "<script>window.ran=1</script>" not in page.inner_text("#tip"), "cut short"
    key(page, 2).locator("circle").hover()
    assert "<script>window.ran=1</script>" in page.inner_text("#tip")
    assert page.evaluate("window.ran") is None
    assert (page.locator("img").count(), page.locator("script").count()) == (0, 2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_of_roles_are_readable(show: Open, scheme: str) -> None:
    circuit = synthetic.circuit(60)
    roles = {node.name + " role": [node.name] for node in circuit.nodes[:8]}
    page = show(circuit, roles=roles, color_scheme=scheme)
    ground = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    for number in range(8):
        fills = (
            key(page, number)
            .locator("circle, .number")
            .evaluate_all("found => found.map(part => getComputedStyle(part).fill)")
        )
        mark, text = map(luminance, fills)
        assert (text + 0.05) / (mark + 0.05) > 4.5
        assert (max(mark, ground) + 0.05) / (min(mark, ground) + 0.05) > 3.0


# ---- the address


def test_the_address_holds_the_state_and_gives_it_back(show: Open) -> None:
    circuit = by_hand.circuit()
    page = show(circuit)
    slide(page, "#top", 3)
    page.uncheck('[value="negative"]')
    page.fill("#find", "a")
    page.click("thead th[data-column=score] button")
    page.click("#zoom-in")
    node(page, "a0.h0").click()
    page.get_by_role("button", name="input->a0.h0<v>").click()
    page.mouse.move(5, 5)
    page.wait_for_url(re.compile("pin=input"))

    def state() -> list[object]:
        return [
            status(page), table(page), names(page, circuit, ".hot"), names(page, circuit, ".pinned"),
            page.input_value("#find"), page.input_value("#top"),
            page.is_checked('[value="negative"]'), page.locator("svg.wiremap").bounding_box(),
            page.get_attribute("th[data-column=score]", "aria-sort"),
        ]  # fmt: skip

    before = state()
    page.reload()
    assert state() == before
    page.click("#reset")
    assert state() != before
    page.wait_for_url(re.compile(r"circuit\.html#?$"))


def test_addresses_that_mean_nothing_are_ignored(show: Open) -> None:
    address = "#min=x&top=-7&sort=__proto__&pin=nobody&hide=nothing&zoom=NaN&find=%3Cb%3E&what=1"
    page = show(by_hand.circuit(), address)
    assert status(page) == "1 of 6 edges, 2 of 5 nodes"
    assert page.input_value("#find") == "<b>"
    assert page.get_attribute("th[data-column=rank]", "aria-sort") == "ascending"
    assert page.locator(".pinned").count() == 0


# ---- files


def save(page: Page, button: str, to: Path) -> Path:
    with page.expect_download() as download:
        page.click(button)
    path = to / download.value.suggested_filename
    download.value.save_as(path)
    return path


@pytest.mark.parametrize("hostile", [False, True], ids=["plain", "hostile"])
def test_the_saved_json_is_the_circuit(show: Open, tmp_path: Path, hostile: bool) -> None:
    circuit = synthetic.hostile() if hostile else by_hand.circuit()
    path = save(show(circuit), "#save-json", tmp_path)
    assert read_circuit(path) == circuit
    assert re.fullmatch(r"[\w-]+\.json", path.name)
    if not hostile:
        assert path.name == "tiny-on-ioi.json"


def test_the_saved_table_is_the_one_that_is_shown(show: Open, tmp_path: Path) -> None:
    page = show(by_hand.circuit())
    page.uncheck('[value="none"]')
    page.click("thead th[data-column=name] button")
    path = save(page, "#save-csv", tmp_path)
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["edge"] for row in rows] == table(page)
    assert rows[0] == {
        "edge": "a0.h0->a1.h1<k>", "source": "a0.h0", "target": "a1.h1", "slot": "k",
        "score": "0.25", "effect": "", "standard_error": "", "n_pairs": "",
        "effect_low": "", "effect_high": "", "inclusion": "0", "loss": "",
    }  # fmt: skip
    assert rows[2]["effect"] == "1.25"
    assert (rows[2]["effect_low"], rows[2]["effect_high"], rows[2]["inclusion"]) == (
        "1",
        "1.5",
        "1",
    )


@pytest.mark.parametrize("hostile", [False, True], ids=["plain", "hostile"])
def test_the_saved_drawing_stands_alone(show: Open, tmp_path: Path, hostile: bool) -> None:
    circuit = synthetic.hostile() if hostile else by_hand.circuit()
    page = show(circuit)
    page.uncheck('[value="none"]')
    node(page, "a0.h0").click()
    root = ElementTree.fromstring(save(page, "#save-svg", tmp_path).read_bytes())
    drawn = {
        circuit.edges[int(path.attrib["data-edge"])].name: path
        for path in root.iter(f"{SVG}path")
        if "data-edge" in path.attrib
    }
    assert set(drawn) == names(page, circuit, ":not(.off)")
    title = drawn["input->a0.h0<v>"].find(f"{SVG}title")
    assert title is not None
    assert (title.text or "").startswith("input->a0.h0<v>: effect +1.25")
    assert "focus" not in root.attrib["class"]
    style = root.find(f"{SVG}style")
    assert style is not None
    assert "stroke-dasharray" in (style.text or "")


# ---- what labels say, and how it looks


def test_what_labels_say_is_only_text(show: Open) -> None:
    page = show(synthetic.hostile())
    assert status(page) == "6 of 6 edges, 5 of 5 nodes"
    shown = page.inner_text("dl")
    assert "<script>window.ran=1</script><img src=x onerror=window.ran=2>" in shown
    assert "\u05d0\u05d1\u05d2 \U0001f600" in shown
    node(page, "m0").hover()
    assert "<img src=x onerror=window.ran=2>" in page.inner_text("#tip")
    page.select_option("#by", "layer")
    page.locator("[data-flow]").first.dispatch_event("pointermove")
    assert page.evaluate("window.ran") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Page, selector: str, what: str, ground: str) -> float:
    def color(of: str, name: str) -> float:
        found = page.locator(of).first
        return luminance(found.evaluate(f"found => getComputedStyle(found).{name}"))

    one, other = sorted([color(selector, what), color(ground, "backgroundColor")])
    return (other + 0.05) / (one + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_readable(show: Open, scheme: str) -> None:
    page = show(by_hand.circuit(), color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) > 0.9) == (scheme == "light")
    assert (luminance(ground) < 0.05) == (scheme == "dark")
    for selector in ("path[data-edge].positive", "path[data-edge].negative"):
        assert contrast(page, selector, "stroke", "body") > 4.5
    for selector in ("h1", "dt", "#caption", "td.opposes", "td.carries", "#status"):
        assert contrast(page, selector, "color", "body") > 4.5, selector
    assert contrast(page, "#controls legend", "color", "#controls") > 4.5
    assert contrast(page, "text.row", "fill", "body") > 4.4


def test_print_is_readable_in_grey(show: Open) -> None:
    page = show(by_hand.circuit(), color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) == 1.0
    assert not page.is_visible("#controls")
    assert page.is_visible("#status")
    assert page.is_visible("#rows")
    dashes = "path => getComputedStyle(path).strokeDasharray"
    assert page.locator("path[data-edge].negative").first.evaluate(dashes) != "none"
    assert page.locator("path[data-edge].positive").first.evaluate(dashes) == "none"
    for selector in ("path[data-edge].positive", "path[data-edge].negative"):
        assert contrast(page, selector, "stroke", "body") > 4.5
    assert contrast(page, ".node text", "fill", "body") > 7


def test_empty_and_grouped_circuits_are_shown(show: Open) -> None:
    page = show(Circuit.build(by_hand.SHAPE, []))
    assert status(page) == "0 of 0 edges, 0 of 0 nodes"
    assert page.is_disabled("#top")
    page.select_option("#by", "layer")
    page = show(by_hand.grouped())
    assert status(page) == "3 of 3 edges, 5 of 5 nodes"
    assert page.locator(".serves:not(.off)").count() == 2
    slide(page, "#top", 0)
    assert page.locator(".serves:not(.off)").count() == 0


def test_the_viewer_works_in_the_frame_of_a_notebook(browser: Browser) -> None:
    page = browser.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.set_content(Viewer(by_hand.circuit())._repr_html_())  # pyright: ignore[reportPrivateUsage]
    frame = page.frame_locator("iframe")
    frame.locator("#top").focus()
    page.keyboard.press("ArrowLeft")
    frame.locator('[data-node="m0"]').click()
    page.wait_for_timeout(300)  # the address would be written by now
    assert frame.locator("#status").inner_text() == "5 of 6 edges, 5 of 5 nodes"
    assert frame.locator('[data-node="m0"]').get_attribute("aria-pressed") == "true"
    assert not wrong
    page.close()
