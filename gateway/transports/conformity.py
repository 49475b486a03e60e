"""What a reply must be to be believed: the same check for a child process and for the broker."""

from workers.conformity import Conformity

__all__ = ["Conformity"]
