"""A YAML file with the line of each of its fields, so that whoever reads it can say where something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Where = tuple[str | int, ...]
"""A field's keys and list positions from the top: ("models", "digits", "budgets", 0, "p50")."""


class Misread(Exception):
    """`FILE:LINE: FIELD: what is wrong`."""


class _Plain(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Without aliases: a few lines of them stand for more than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem="aliases are not taken", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


class Outline:
    """`values`: the file as plain dicts, lists and text (numbers too are text: a quantity has its unit beside it)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Where, int] = {}
        try:
            node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Plain)
        except OSError as error:
            raise Misread(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise Misread(f"{path}: it is not UTF-8") from None
        except yaml.YAMLError as error:
            raise Misread(f"{path}: no YAML: {' '.join(str(error).split())}") from None
        except RecursionError:
            raise Misread(f"{path}: it is nested too deeply") from None
        self.values: Any = None if node is None else self._read(node, ())

    def misread(self, where: Where, why: object) -> Misread:
        line = next((self._lines[where[:end]] for end in range(len(where), -1, -1) if where[:end] in self._lines), 1)
        return Misread(f"{self.path}:{line}: {spelt(where)}: {why}")

    def _read(self, node: yaml.Node, where: Where) -> Any:
        self._lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self._read(each, (*where, at)) for at, each in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return str(node.value)
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.misread(where, "a name must be a word")
            name = str(key.value)
            self._lines[*where, name] = key.start_mark.line + 1
            if name in found:
                raise self.misread((*where, name), "it stands here twice")
            found[name] = self._read(value, (*where, name))
        return found


def spelt(where: Where) -> str:
    """`models.digits.budgets[0].p50`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.removeprefix(".") or "the file"
