"""``wiremap view``: the page it writes, where, and what it does not overwrite."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import circuits_for_tests as by_hand
import pytest
from click.testing import Result
from command import wiremap

from wiremap.edges import InputError, files
from wiremap.exporters import View, write_circuit
from wiremap.exporters.pages.viewer import to_html


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that the browser was asked for."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: addresses.append(address) or True)
    return addresses


@pytest.fixture
def circuit(tmp_path: Path) -> Path:
    path = tmp_path / "circuit.json"
    write_circuit(by_hand.circuit(), path)
    return path


def view(*arguments: str | Path) -> Result:
    return wiremap("view", *arguments)


def test_the_page_is_written_beside_the_circuit_and_opened(
    circuit: Path, opened: list[str]
) -> None:
    result = view(circuit.parent)
    page = circuit.with_suffix(".html")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{page}\n", "")
    assert page.read_text(encoding="utf-8") == to_html(by_hand.circuit())
    assert opened == [page.as_uri()]


def test_no_open_only_writes(circuit: Path, opened: list[str]) -> None:
    page = circuit.with_name("my page.html")
    result = view(circuit, "--no-open", "-o", page)
    assert (result.exit_code, result.stdout) == (0, f"{page}\n")
    assert page.is_file()
    assert not circuit.with_suffix(".html").exists()
    assert not opened


def test_nodes_are_marked_by_the_roles_of_a_file(circuit: Path) -> None:
    roles = circuit.with_name("roles.yaml")
    roles.write_text("early: [a0.h0, m0]\n")
    assert view(circuit, "--no-open", "--group", roles).exit_code == 0
    page = circuit.with_suffix(".html")
    assert page.read_text(encoding="utf-8") == to_html(
        by_hand.circuit(), View(groups={"early": ["a0.h0", "m0"]})
    )
    page.unlink()
    roles.write_text("early: [a0.h7]\n")
    refused = view(circuit, "--no-open", "--group", roles)
    assert (refused.exit_code, page.exists()) == (2, False)
    assert "groups: 'a0.h7' is no node of this model" in refused.stderr


def test_an_older_page_is_replaced_and_nothing_else(circuit: Path, opened: list[str]) -> None:
    page = circuit.with_suffix(".html")
    page.write_text(to_html(by_hand.grouped()), encoding="utf-8")
    assert view(circuit, "--no-open").exit_code == 0
    assert page.read_text(encoding="utf-8") == to_html(by_hand.circuit())
    page.write_text("<!doctype html><title>my own</title>")
    result = view(circuit)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{page} exists and is not a page of wiremap; choose another file (-o)" in result.stderr
    assert page.read_text() == "<!doctype html><title>my own</title>"
    assert not opened


def test_where_nothing_can_be_written_the_page_is_temporary(
    circuit: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = files.write_atomically

    def refuse(path: Path, content: str | bytes) -> None:
        if path.parent == circuit.parent:
            raise InputError(f"cannot write {path}: Permission denied")
        write(path, content)

    monkeypatch.setattr(files, "write_atomically", refuse)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = view(circuit)
    page = Path(result.stdout.strip())
    assert page.parent != circuit.parent
    assert page.read_text(encoding="utf-8") == to_html(by_hand.circuit())
    assert opened == [page.as_uri()]
    refused = view(circuit, "-o", circuit.with_name("asked.html"))
    assert refused.exit_code == 2
    assert "Permission denied" in refused.stderr


def test_without_a_browser_it_says_so(circuit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    result = view(circuit)
    assert result.exit_code == 0
    assert "no browser was found; open the file in one" in result.stderr


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "circuit.json").write_text("{}")
    result = view(tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected a document with format 'wiremap-circuit'" in result.stderr
