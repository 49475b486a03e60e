"""What a reply must be to be believed: the same check for a child process and for the broker."""

from workers.conformity import Conformity, check_times

__all__ = ["Conformity", "check_times"]
