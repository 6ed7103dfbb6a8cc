"""What a person sees in the terminal while a run goes on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.commands.console import ERR, OUT
from flows.progress import Event, Pace, format_left, listening


class Screen:
    """Draws the events of a run: a line a finished stage, one bar over all epochs of all candidates."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.stage: TaskID = progress.add_task("starting", total=None, note="", count="")
        self.hunt: TaskID = progress.add_task("search", total=1.0, note="", count="", visible=False)
        self.bar: TaskID | None = None
        self.pace = Pace(1)
        self.largest = 0  # bytes of the trainings so far
        self.started = time.monotonic()
        self.total = 0
        self.before = 0  # epochs of candidates that are done

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "stage":
            self.progress.update(self.stage, description=event["title"], visible=True)
        elif kind == "stage-done":
            self.progress.console.print(f"[green]✓[/] {escape(event['title'])} [dim]{escape(event.get('note', ''))}[/]")
        elif kind == "new":
            self.progress.console.print(event["text"], markup=False, soft_wrap=True)
        elif kind == "note":
            self.progress.console.print(event["text"], markup=False, style="dim", soft_wrap=True)
        elif kind == "candidates":
            self.total = event["count"] * event["epochs"]
            self.progress.update(self.stage, visible=False)
            self.bar = self.progress.add_task("candidates", total=self.total, note="", count="")
        elif kind == "search":
            self._search(event["name"], 0.0, "")
        elif kind == "search-progress":
            self._search(event["name"], event["share"], event["text"])
        elif kind == "search-done":
            self.progress.update(self.hunt, visible=False)
            self.progress.console.print(f"[green]✓[/] searched {escape(event['name'])} [dim]{escape(event['note'])}[/]")
        elif kind == "training-start":
            self.pace = Pace(event["epochs"])
            self._candidate(event["name"], f"{event['images']} images on {event['device']}")
        elif kind == "training-memory":
            self._memory(event)
        elif kind == "training-epoch":
            self._epoch(event)
        elif kind == "candidate":
            self._finish(event)

    def _search(self, name: str, share: float, text: str) -> None:
        """A bar of its own: how many epochs a search takes is not known beforehand."""
        self.progress.update(self.stage, visible=False)
        self.progress.update(
            self.hunt, visible=True, description=f"search {name}", completed=share, note=text, count=f"{share:.0%}"
        )

    def _candidate(self, name: str, note: str) -> None:
        if self.bar is not None:
            self.progress.update(self.bar, description=name, note=note)

    def _memory(self, event: Event) -> None:
        """A line for the largest training so far."""
        if event["text"] and event["bytes"] > self.largest:
            self.largest = event["bytes"]
            self.progress.console.print(event["text"], markup=False, style="dim", soft_wrap=True)

    def _epoch(self, event: Event) -> None:
        if self.bar is not None:
            left = format_left(self.pace.left(event["epoch"], "resumed" in event))
            name = "solved" if "strength" in event else f"epoch {event['epoch']:.0f}"
            note = f"{name}  val {event['score']:.3f}  {left}"
            done = self.before + int(event["epoch"])
            count = f"{done} of {self.total} epochs"
            self.progress.update(self.bar, completed=done, description=event["name"], note=note, count=count)

    def _finish(self, event: Event) -> None:
        if self.bar is not None:
            self.before += event["epochs"]
            self.progress.update(self.bar, completed=self.before)
        self.progress.console.print(f"[green]✓[/] trained {escape(event['name'])} [dim]{escape(event['note'])}[/]")


@contextmanager
def live() -> Iterator[None]:
    """Draw every event of this process while the block runs; plain lines where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]ETA[/]"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}[/]"),
    )
    with (
        Progress(*columns, console=OUT, transient=True, redirect_stderr=False) as progress,
        listening(Screen(progress)),
    ):
        yield


def tell(event: Event) -> None:
    """Without a live display only what a person should know, and not on stdout, which is for the answer."""
    if event["event"] == "note":
        ERR.print(event["text"], markup=False, soft_wrap=True)
