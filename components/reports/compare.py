"""The picture that compares the tuners of a retrain, as a file."""

from pathlib import Path

from components.files import whole_file
from components.records.outcomes import Outcome
from components.reports.pictures import draw_comparison
from components.tasks import Task

PICTURE = "comparison.png"


def draw_picture(outcome: Outcome, task: Task, path: Path) -> Path:
    """Draw an outcome's tuners into a PNG; returns its path."""
    with whole_file(path) as partial:
        figure = draw_comparison(outcome.tuners, task, describe_outcome(outcome, task))
        figure.savefig(partial, format="png", dpi=120)
    return path


def describe_outcome(outcome: Outcome, task: Task) -> str:
    """The picture's title: what was compared, on what, and what the intervals are of."""
    seeds = outcome.tuners[0].seeds
    number = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds"
    return (
        f"{outcome.domain} on {outcome.backbone.name}: {task.metric_words} on the test groups, {number}\n"
        f"bars: intervals by bootstrap over groups; dots: seeds; data version {outcome.data_version[:12]}"
    )
