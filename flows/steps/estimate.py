"""How long a retrain will take, from what earlier trainings took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from components.models.tuners import Tuner
from components.models.tuners.linear import LinearTuner
from components.tracking import candidates, outcomes
from components.tracking.store import Store
from components.training.search import count_epochs
from flows.plan import Plan
from flows.progress import format_span


class Part(NamedTuple):
    """One training of a retrain, or the search of a candidate's options, which has no seed."""

    tuner: Tuner
    seed: int | None = None

    @property
    def name(self) -> str:
        return f"search of {self.tuner.label}" if self.seed is None else f"{self.tuner.label}-s{self.seed}"


@dataclass(frozen=True)
class Estimate:
    """seconds: None where some part is unknown. text: a sentence for people."""

    seconds: float | None
    text: str


def estimate(store: Store, plan: Plan, parts: Sequence[Part]) -> Estimate:
    """Time for these trainings, one after the other, and for the rest of a retrain as it was last time.

    A training is estimated from the latest one of its tuner: of this domain, else of another one on the same backbone.
    It is taken to grow with the epochs and the training images.
    """
    images = count_images(plan)
    times = [(part.tuner.label, estimate_part(store, plan, part, images)) for part in parts]
    rest = measure_rest(store, plan)
    known = sum(time for _, time in times if time is not None) + (rest or 0.0)
    where = ", if one worker does all" if plan.domain.work_pool else ""
    if missing := sorted({label for label, time in times if time is None}):
        about = f"; the rest takes about {format_span(known)}{where}" if known else ""
        return Estimate(None, f"No earlier training shows how long {' and '.join(missing)} will take{about}.")
    if rest is None:
        return Estimate(None, f"Training takes about {format_span(known)}{where}; the time for the rest is not known.")
    return Estimate(round(known, 1), f"About {format_span(known)}{where}, as earlier runs took.")


def estimate_part(store: Store, plan: Plan, part: Part, images: int) -> float | None:
    """Seconds of one training or search; None where no earlier training is like it."""
    training, search = plan.domain.training, plan.domain.search
    if part.seed is None and search is not None and search.seconds is not None:
        return search.seconds
    cost = candidates.find_cost(store, part.tuner.label, plan.domain.name, plan.domain.backbone)
    if cost is None:
        return None
    epochs = training.epochs if part.seed is not None or search is None else count_epochs(search, training) or 0
    solved = isinstance(part.tuner, LinearTuner)
    seconds = cost.seconds if solved else cost.seconds * epochs / cost.epochs
    return seconds * images / cost.images


def count_images(plan: Plan) -> int:
    """Training images: those of the last manifest, or about as many as the split will give."""
    if plan.manifest.exists():
        train = pl.scan_parquet(plan.manifest).filter(pl.col("split") == "train")
        return int(train.select(pl.len()).collect().item())
    return round(plan.version.files * (1 - plan.domain.split.val - plan.domain.split.test))


def measure_rest(store: Store, plan: Plan) -> float | None:
    """Seconds of the last retrain in which it trained nothing; None where there was none that recorded it."""
    last = outcomes.load_last_result(store, plan.domain.name)
    if last is None or last.new is None:
        return None
    trained = set(last.new.candidates)
    seconds = sum(row.seconds for row in last.candidates if f"{row.tuner}-s{row.seed}" in trained)
    searched = sum(row.search.seconds for row in last.tuners if row.search and f"search of {row.tuner}" in trained)
    return max(0.0, last.seconds - seconds - searched)
