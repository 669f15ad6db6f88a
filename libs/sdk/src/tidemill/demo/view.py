"""What a person watches while the year goes by."""

import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tidemill_contracts.instants import format_us

REFRESH_PER_S = 4
# Without a terminal, one line this often.
PLAIN_EVERY_S = 15.0
HEADLINES = 6


@dataclass
class Headline:
    """Something that the services decided, in one sentence."""

    time_us: int
    text: str

    def line(self) -> str:
        return f"{format_us(self.time_us)[:16]}  {self.text}"


@dataclass
class LiveView:
    """Progress, rate, remaining time, current version and the latest decisions; plain lines in a pipe."""

    console: Console
    total: int
    version: int = 0
    incidents: int = 0
    headlines: list[Headline] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>7,.0f} events/s"),
            TimeElapsedColumn(),
            TextColumn("remaining"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task("starting", total=self.total, rate=0.0)
        self._live = Live(console=self.console, refresh_per_second=REFRESH_PER_S, transient=True)
        self._began = time.monotonic()
        self._printed = self._began
        self._drawn = 0.0

    def __enter__(self) -> "LiveView":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, time_us: int, text: str) -> None:
        """Show a decision; every one of them stays in `headlines`."""
        headline = Headline(time_us, text)
        self.headlines.append(headline)
        if not self.console.is_terminal:
            self.console.print(headline.line())

    def advance(self, time_us: int, done: int) -> None:
        """Show that the simulated clock reached `time_us` with `done` events sent."""
        now = time.monotonic()
        rate = done / max(now - self._began, 1e-9)
        if self.console.is_terminal:
            if now - self._drawn < 1 / REFRESH_PER_S:
                return
            self._drawn = now
            self._progress.update(self._task, completed=done, description=format_us(time_us)[:10], rate=rate)
            self._live.update(self._screen())
        elif now - self._printed >= PLAIN_EVERY_S:
            self._printed = now
            remaining = (self.total - done) / max(rate, 1e-9)
            self.console.print(
                f"{format_us(time_us)[:10]}  {done:,} of {self.total:,} events, {rate:,.0f}/s, "
                f"about {remaining:.0f} s left, model v{self.version}, {self.incidents} incidents"
            )

    def _screen(self) -> Table:
        screen = Table.grid(padding=(0, 1))
        screen.add_row(self._progress)
        screen.add_row(f"champion v{self.version or '–'}   incidents {self.incidents}")
        for headline in self.headlines[-HEADLINES:]:
            screen.add_row(f"[dim]{headline.line()}[/dim]")
        return screen
