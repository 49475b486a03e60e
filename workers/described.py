"""An exception in words, for the owner of the model that raised it."""

from __future__ import annotations


def described(error: BaseException) -> str:
    """`Kind: message`, in one line of at most 400 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400] if text else type(error).__name__
