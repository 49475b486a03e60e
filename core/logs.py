"""structlog for a server process: one escaped line an event, to standard error."""

from __future__ import annotations

import logging
import sys

import structlog

from core.settings import Settings


def configure(settings: Settings) -> None:
    """Text for people or, with `log_json`, one JSON object a line; control characters never reach the terminal raw."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    if settings.log_json:
        form: list[structlog.types.Processor] = [structlog.processors.JSONRenderer()]
    else:
        form = [_escaped, structlog.processors.LogfmtRenderer(bool_as_flag=False)]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *form,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        stream=sys.stderr, level=max(level, logging.WARNING), format="%(name)s: %(message)s", force=True
    )


def _escaped(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Values, tracebacks among them, may be a stranger's: no line break or escape sequence leaves unescaped."""
    return {
        key: value.encode("unicode_escape").decode() if isinstance(value, str) and not value.isprintable() else value
        for key, value in event.items()
    }
