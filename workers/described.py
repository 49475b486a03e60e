"""An exception in words, for the owner of the model that raised it."""

from __future__ import annotations

import re

FOLDERS = re.compile(r"(?<![\w.:/\\-])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"<>|:,;()]+[/\\])+")
"""The folders of an absolute path, up to the name of its file."""


def described(error: BaseException) -> str:
    """`Kind: message`, in one printable line of at most 400 characters; of paths only the last name."""
    text = FOLDERS.sub("…/", "".join(each if each.isprintable() else " " for each in str(error)[:4000]))
    text = " ".join(text.split())
    return f"{type(error).__name__}: {text}"[:400] if text else type(error).__name__
