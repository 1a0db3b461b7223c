"""The pages for operators: every command, route, target and link that they name is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from cluster.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [
    page for page in PAGES if page.name not in ("log.md", "model-report.md")
]  # what was, and what was made


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_of(page: Path) -> list[str]:
    """What stands as code: lines of blocks, joined where they go on, and pieces of lines."""
    text = text_of(page)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def commands_of(page: Path, program: str) -> list[str]:
    """Each with its arguments, up to a comment or another program."""
    prompt = r"(?:^|\$ |&& )"
    found = [re.search(rf"{prompt}({program} [a-z][^#|;&<>]*)", line.strip()) for line in code_of(page)]
    return [match[1].strip() for match in found if match]


def is_known(words: list[str]) -> str | None:
    """None, or what is wrong. A page may stop after a flag, or leave an argument out."""
    group: Any = typer.main.get_command(app)
    while hasattr(group, "commands") and words:
        if words[0] not in group.commands:
            return f"no command {words[0]}"
        group, words = group.commands[words[0]], words[1:]
    options = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)}
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    missing = [flag for flag in flags if flag not in {*options, "--help"}]
    return f"no flag {', '.join(missing)}" if missing else None


SAID = [(page, line) for page in PAGES for line in commands_of(page, "shoal")]


def test_the_pages_name_many_commands() -> None:
    assert len(SAID) > 60, "else the pages are read wrongly"
    assert is_known(["scrale", "experts=4"]) and is_known(["serve", "--atention", "1"])
    assert is_known(shlex.split("keys add keys.json me")) is None


@pytest.mark.parametrize(("page", "line"), SAID, ids=[f"{page.name}-{line[:40]}" for page, line in SAID])
def test_every_command_of_ours_that_a_page_names_is_there(page: Path, line: str) -> None:
    assert is_known(line.replace("...", "").replace("`", "").split()[1:]) is None, line


def test_every_make_target_that_a_page_names_is_there() -> None:
    makefile = text_of(ROOT / "Makefile")
    for page in PAGES:
        for line in commands_of(page, "make"):
            target = next(word for word in line.split()[1:] if "=" not in word)
            assert re.search(rf"^{re.escape(target)}:", makefile, re.M), (page.name, line)


def test_every_module_and_file_that_a_page_names_is_there() -> None:
    for page in PAGES:
        for line in code_of(page):
            for module in re.findall(r"python -m ((?:bench|demo|cluster)[\w.]*)", line):
                assert (ROOT / (module.replace(".", "/") + ".py")).exists(), (page.name, module)
            for file in re.findall(
                r"(?<![\w/.-])((?:k8s|tests|actors|cluster|ingress|bench|router)/[\w./-]+)", line
            ):
                assert (ROOT / file.rstrip("./:")).exists(), (page.name, file)


def test_every_link_leads_somewhere() -> None:
    anchors = {
        page.resolve(): {
            re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
            for line in text_of(page).splitlines()
            if line.startswith("#")
        }
        for page in (ROOT / "docs").rglob("*.md")
    }
    for page in PAGES:
        for file, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text_of(page)):
            target = (page.parent / file).resolve() if file else page.resolve()
            assert target.exists(), (page.name, file)
            assert not anchor or anchor in anchors.get(target, {anchor}), (page.name, file, anchor)


def test_every_admin_route_is_in_the_pages() -> None:
    from cluster.admin import create_admin
    from tests.unit.test_admin import Still

    routes = {getattr(route, "path", "") for route in create_admin(Still(), "k").routes}
    page = text_of(ROOT / "docs" / "observability.md")
    for route in routes:
        assert f"{route.partition('{')[0]}" in page, route
