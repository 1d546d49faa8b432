"""Every example in README and docs/ is run, and every link between its pages leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs_runner import Block, blocks, commands, run_page, same

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.joinpath("docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_do_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:|#", link):
            assert (page.parent / link.partition("#")[0]).exists(), link


PAGE = """# A page

<!-- file: a/rules.yaml -->
```yaml
x: 1
```

```python
import pathlib
text = pathlib.Path("a/rules.yaml").read_text()
```

```python
assert text == "x: 1\\n"
```

<!-- not run: it would not end -->
```console
$ sleep 1000000
```

```console
$ cat a/rules.yaml
x: ...
$ echo one; \\
>   echo two
one
two
$ echo err >&2; exit 3
err
$ echo $?
3
```

```text
nothing
```
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run(text: str) -> int:
        page = tmp_path / "page.md"
        page.write_text(text)
        return run_page(page, tmp_path)

    return run


def test_a_page_runs_from_top_to_bottom(run) -> None:
    assert run(PAGE) == 4


@pytest.mark.parametrize(
    "text",
    [
        "```console\n$ echo one\ntwo\n```\n",
        "```console\n$ exit 3\n```\n",
        "```console\n$ exit 3\n$ echo later\n```\n",
        "```console\n$ cat nothing\n```\n",
        "```console\necho\n```\n",
        "```python\nassert False\n```\n",
    ],
)
def test_an_example_that_does_not_hold_fails(run, text: str) -> None:
    with pytest.raises(AssertionError):
        run(text)


def test_blocks_know_their_line_and_comment() -> None:
    assert next(blocks(PAGE)) == Block(5, "yaml", "x: 1\n", file="a/rules.yaml")
    assert [block.left_out for block in blocks(PAGE)][3] == "it would not end"


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a", "b"], ["a"], False),
        (["a"], ["a", "b"], False),
        (["..."], ["a", "b"], True),
        (["a", "...", "d"], ["a", "b", "c", "d"], True),
        (["a", "...", "d"], ["a", "d"], True),
        (["a", "...", "d"], ["a", "b"], False),
        (["pid ... up"], ["pid 12 up"], True),
        (["pid ... up"], ["pid 12", "up"], False),
        (["a.c"], ["abc"], False),
    ],
)
def test_wildcards(shown: list[str], printed: list[str], expected: bool) -> None:
    assert same(shown, printed) is expected


def test_output_is_compared_only_when_shown() -> None:
    assert [entry.shown for entry in commands("$ a\n$ b\nx\n\n$ c\n")] == [[], ["x", ""], []]
