"""Structured logs: JSON lines, or readable ones on a terminal; floods of a library are thinned and counted."""

import logging
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

import structlog

# aiokafka writes about 80 error lines a second while a broker is away.
_THINNED = ("aiokafka", "kafka", "faust", "mode")
_WINDOW_S = 10.0
_PER_WINDOW = 5
_MAX_KEYS = 512


class Thinning(logging.Filter):
    """Lets a few lines of each kind through per window, and says how many it held back."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, str(record.msg))
        now = self._clock()
        start, count = self._seen.get(key, (now, 0))
        if now - start >= _WINDOW_S:
            if count > _PER_WINDOW:
                record.msg = f"{record.msg} [and {count - _PER_WINDOW} more like it]"
            start, count = now, 0
        if len(self._seen) >= _MAX_KEYS:
            self._seen.clear()
        self._seen[key] = (start, count + 1)
        return count < _PER_WINDOW


def configure_logs(level: str = "info", style: str = "auto") -> None:
    """Send structlog and the standard library's loggers to stderr in one format."""
    pretty = style == "pretty" or (style == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    # With rich installed the default prints the variables of every frame, passwords among them.
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer: Any = console if pretty else structlog.processors.JSONRenderer()
    tail: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if not pretty:
        tail.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_only_thinned(Thinning()))
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[*tail, renderer], foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Group membership is logged by the stream runner; the library's own account of it is noise at info.
    for name in _THINNED:
        logging.getLogger(name).setLevel(logging.WARNING)


def _only_thinned(thinning: Thinning) -> Callable[[logging.LogRecord], bool]:
    return lambda record: record.name.partition(".")[0] not in _THINNED or thinning.filter(record)
