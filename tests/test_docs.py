"""What is documented is run: every sh, console and python block of README.md and docs/ against a live server.

A document is run from top to bottom in a folder that holds nothing but `.venv` and `.penstock`; its python
blocks share one interpreter's names. Comments in the Markdown, invisible to readers, say what else there is to do:

    <!-- not run: reason -->      before a block that cannot be run here
    <!-- file: models.py -->      before a block that is a file's content: written, not run
    <!-- python … -->, <!-- sh … -->   preparations of a reader that the text takes for granted

In a console block lines after `$ ` are commands, the rest is what they print, where `...` stands for anything.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.running import RunningServer

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"sh": "sh", "bash": "sh", "shell": "sh", "console": "console", "python": "python", "py": "python"}
BLOCK = re.compile(
    r"^(?:<!--\s*(?P<marker>[a-z ]+):\s*(?P<told>[^\n]*?)\s*-->\n+)?"
    r"^(?P<indent>[ ]*)(?P<fence>`{3,})(?P<language>[a-z]*)[^\n]*\n(?P<code>.*?)^(?P=indent)(?P=fence)[ ]*$"
    r"|^<!--[ ]*(?P<hidden>python|sh)\n(?P<preparation>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
COMMAND_TIMEOUT_S = 180


class Block(NamedTuple):
    """`file`: where the content goes if it is no program. `skipped`: why it is not run, '' where it is."""

    line: int
    language: str
    code: str
    file: str = ""
    skipped: str = ""


def blocks(text: str) -> Iterator[Block]:
    for match in BLOCK.finditer(text):
        if match["hidden"]:
            line = text[: match.start("preparation")].count("\n") + 1
            yield Block(line, match["hidden"], match["preparation"])
            continue
        line = text[: match.start("code")].count("\n") + 1
        language = LANGUAGES.get(match["language"], "")
        code = textwrap.dedent(match["code"])
        if match["marker"] == "file":
            yield Block(line, language, code, file=match["told"])
        elif language:
            yield Block(line, language, code, skipped=match["told"] if match["marker"] == "not run" else "")


class Reader:
    """Someone who follows a document literally. `where` is their folder, `server` their server on the usual ports."""

    def __init__(self, where: Path, environment: dict[str, str], addresses: dict[str, str]) -> None:
        self.where = where
        self.environment = environment
        self.addresses = addresses
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def follow(self, document: str, block: Block) -> None:
        code = block.code
        for documented, real in self.addresses.items():
            code = code.replace(documented, real)
        if block.file:
            (self.where / block.file).write_text(code)
        elif block.language == "python":
            # newlines in front, so that a traceback shows the document's own line
            exec(compile("\n" * (block.line - 1) + code, document, "exec", dont_inherit=True), self.names)
        elif block.language == "console":
            for command, expected in commands(code):
                matches(self.run(command), expected, f"{document}:{block.line} $ {command}")
        else:
            self.run(code)

    def run(self, script: str) -> str:
        done = subprocess.run(
            ["sh", "-eu", "-c", script],
            cwd=self.where,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        assert done.returncode == 0, f"{script}\nended with {done.returncode}:\n{done.stdout}"
        return done.stdout


def commands(code: str) -> Iterator[tuple[str, str]]:
    """A console block's commands, each with what it is said to print."""
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        command, _, expected = re.sub(r"\\\n> ?", "\\\n", part).partition("\n")
        while command.endswith("\\"):
            more, _, expected = expected.partition("\n")
            command += "\n" + more
        yield command, expected


def matches(printed: str, expected: str, what: str) -> None:
    """Words must agree, spaces between them need not: tables are as wide as their content."""
    if not expected.strip():
        return
    words = [re.escape(word).replace(re.escape("..."), ".*") for word in expected.split()]
    assert re.fullmatch(r"\s*" + r"\s+".join(words) + r"\s*", printed, re.DOTALL), f"{what}\nprinted:\n{printed}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.filterwarnings("default")
def test_every_command_of_a_document_works(
    document: Path, running_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever types a document's commands in order gets what it says."""
    reader = Reader(tmp_path, running_server.environment, _documented_addresses(running_server))
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".penstock").symlink_to(running_server.home)
    monkeypatch.chdir(tmp_path)
    for name, value in running_server.environment.items():
        monkeypatch.setitem(os.environ, name, value)
    for block in blocks(document.read_text()):
        if not block.skipped:
            reader.follow(document.name, block)


def _documented_addresses(server: RunningServer) -> dict[str, str]:
    http = server.url.removeprefix("http://")
    return {
        "127.0.0.1:8080": http,
        "localhost:8080": http,
        "127.0.0.1:8081": server.grpc,
        "localhost:8081": server.grpc,
    }


SAMPLE = """\
# A page

<!-- not run: it would start a server -->
```sh
make up
```
<!-- python
answer = 41
-->
<!-- file: data.txt -->
```text
at 127.0.0.1:8080
```
- in a list
  ```python
  answer += 1
  ```

```console
$ cat data.txt
at localhost:9
$ echo one   two \\
> three
one ... three
```
```json
{}
```
"""


def test_the_reader_follows_a_page_literally(tmp_path: Path) -> None:
    """Blocks run in order, hidden preparations with them; a marked one is left out, a file is written."""
    reader = Reader(tmp_path, dict(os.environ), {"127.0.0.1:8080": "localhost:9"})
    found = list(blocks(SAMPLE))
    assert [(b.line, b.language, b.skipped) for b in found] == [
        (5, "sh", "it would start a server"),
        (8, "python", ""),
        (12, "", ""),
        (16, "python", ""),
        (20, "console", ""),
    ]
    for block in found[1:]:
        reader.follow("page.md", block)
    assert reader.names["answer"] == 42


@pytest.mark.parametrize(
    "block",
    [
        Block(1, "sh", "echo fine; false"),
        Block(1, "console", "$ echo one\ntwo\n"),
        Block(1, "console", "$ true\nsomething\n"),
        Block(1, "python", "assert 1 == 2"),
    ],
)
def test_the_reader_notices_what_does_not_hold(block: Block, tmp_path: Path) -> None:
    """A command that fails, or prints something else than the page says, is a failure of the page."""
    with pytest.raises(AssertionError):
        Reader(tmp_path, dict(os.environ), {}).follow("page.md", block)


def test_a_marker_gives_a_reason() -> None:
    """`not run` without a reason does not count: the block is run."""
    assert next(blocks("<!-- not run: -->\n```sh\nfalse\n```\n")).skipped == ""
