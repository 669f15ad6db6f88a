"""What docs/ shows and points to exists: links lead somewhere, code is that of the examples and compiles."""

import re
from pathlib import Path

import pytest
from tidemill.definition import compile_file

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted({ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("services/*/README.md")})
LINK = re.compile(r"(?<!`)\]\(([^)#\s]+)(?:#[^)]*)?\)")
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLES = sorted(path for path in ROOT.glob("docs/examples/*/*.py") if "tm.Pipeline(" in path.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_compiles(example: Path) -> None:
    assert compile_file(example).pipelines


def test_the_start_guide_shows_the_example_that_it_copies() -> None:
    (shown,) = PYTHON.findall((ROOT / "docs/start.md").read_text())
    assert shown == (ROOT / "docs/examples/orders/orders.py").read_text()
