"""One candidate's search: one training process and one MLflow run per trial; known trials are looked up."""

import shutil
import time

from components.domain.settings import Search, Training
from components.models.tuners import Tuner
from components.records.jobs import Rung, load_rung, write_rung
from components.records.outcomes import SearchedTuner
from components.reports.words import render_options
from components.tracking import candidates, runs
from components.tracking.store import Store
from components.training.search import Found, Trial, count_epochs, read_options, search_tuner
from flows.plan import Plan
from flows.processes.training import run_trial
from flows.progress import Event, Pace, format_left, listening, report
from flows.steps.follow import logging_epochs, progress_bar


class Climber:
    """Trains the trials of one candidate up to their rungs, or finds what earlier trainings of them scored.

    fresh: only what this retrain has trained itself. runs: the MLflow run of each trial of this search, by its number.
    """

    def __init__(self, store: Store, plan: Plan, parent: str, tuner: Tuner, fresh: bool) -> None:
        self.store, self.plan, self.parent, self.tuner, self.fresh = store, plan, parent, tuner, fresh
        self.runs: dict[int, str] = {}
        self.stored: dict[int, tuple[Rung, ...]] = {}

    def climb(self, trial: Trial, epochs: int) -> Rung:
        job = self.plan.create_trial_job(self.tuner, trial, epochs)
        stored = next((rung for rung in self._find_stored(trial) if rung.epochs == epochs), None)
        if stored is not None:
            write_rung(job.folder, stored)
            return stored
        if self.fresh and not trial.rungs:
            shutil.rmtree(job.folder, ignore_errors=True)
        known = load_rung(job.folder, epochs)
        name = name_trial(self.tuner, trial)
        with logging_epochs(self.store, name, lambda: self._open_run(trial)) as reporter:
            rung = known or run_trial(job, name)
        run_id = reporter.run_id or self._open_run(trial)[0]
        own = read_options(trial.tuner, self.tuner)
        candidates.log_trial(self.store, run_id, trial.number, (*trial.rungs, rung), own, reporter.missing)
        return rung

    def forget(self, trial: Trial) -> None:
        """The checkpoint of a whole network is gigabytes."""
        job = self.plan.create_trial_job(self.tuner, trial, 0)
        (job.folder / "checkpoint.safetensors").unlink(missing_ok=True)

    def _find_stored(self, trial: Trial) -> tuple[Rung, ...]:
        """The trial's rungs in MLflow, asked for once. The run they are in is the one that goes on."""
        if trial.number not in self.stored:
            key, own = self.plan.trial_key(self.tuner, trial.tuner), self.parent if self.fresh else None
            known = candidates.find_trial(self.store, self.plan.domain.name, key, own)
            run_id, self.stored[trial.number] = known or ("", ())
            if run_id:
                runs.adopt_child(self.store, self.parent, run_id)
                self.runs[trial.number] = run_id
        return self.stored[trial.number]

    def _open_run(self, trial: Trial) -> tuple[str, tuple[int, ...]]:
        """A promoted trial goes on in its run."""
        if trial.number in self.runs:
            run_id = self.runs[trial.number]
            return run_id, runs.continue_child(self.store, run_id)
        key = self.plan.trial_key(self.tuner, trial.tuner)
        facts = {"tuner": self.tuner.label, "trial": str(trial.number), "candidate_key": key}
        run_id = runs.start_child(self.store, self.parent, name_trial(self.tuner, trial), role="trial", **facts)
        self.runs[trial.number] = run_id
        return run_id, ()


def search_options(store: Store, plan: Plan, parent: str, tuner: Tuner, fresh: bool) -> SearchedTuner:
    """Search one candidate's options. fresh: trials of earlier retrains do not count."""
    search, training, label = plan.domain.search, plan.domain.training, tuner.label
    if search is None:
        raise ValueError("the domain asks for no search")
    climber, meter = Climber(store, plan, parent, tuner, fresh), Meter(search, training)
    report("search", name=label)
    with progress_bar(f"{plan.domain.name}-{label}-search", f"search of {label}") as show:

        def climb(trial: Trial, epochs: int) -> Rung:
            name = name_trial(tuner, trial)
            trained = False

            def hear(event: Event) -> None:
                nonlocal trained
                if event["event"] == "training-epoch" and event["name"] == name:
                    trained = True
                    share, left = meter.see(event)
                    text = f"trial {trial.number} to epoch {epochs}, {left}"
                    report("search-progress", name=label, share=share, text=text)
                    show(share, text)

            meter.begin(trial)
            with listening(hear):
                rung = climber.climb(trial, epochs)
            meter.finish(rung, known=not trained)
            return rung

        found = search_tuner(tuner, search, training, climb, climber.forget)
    record = describe_search(found, tuner)
    summary = f"{record.trials} trials in {record.seconds:.0f} s: {render_options(record.options)}"
    report("search-done", name=label, note=f"{summary}, val {record.score:.3f}")
    return record


class Meter:
    """How much of a search's budget is used: of its epochs where they are known, of its seconds otherwise."""

    def __init__(self, search: Search, training: Training) -> None:
        epochs = count_epochs(search, training)
        self.counts_epochs = epochs is not None
        self.total = float(epochs or search.seconds or 1)
        self.used = 0.0  # by trials that stand on their rung
        self.pace = Pace(self.total)
        self.came_from = 0  # the rung below that of the trial that climbs
        self.began = 0.0

    def begin(self, trial: Trial) -> None:
        self.came_from = trial.rungs[-1].epochs if trial.rungs else 0
        self.began = time.monotonic()

    def see(self, event: Event) -> tuple[float, str]:
        """Share done, and the time left as text, at an epoch of the trial that climbs."""
        now = max(0.0, event["epoch"] - self.came_from) if self.counts_epochs else time.monotonic() - self.began
        done = min(self.total, self.used + now)
        return done / self.total, format_left(self.pace.left(done))

    def finish(self, rung: Rung, known: bool) -> None:
        """known: it was trained by an earlier process, which says nothing of the pace."""
        self.used += rung.epochs - self.came_from if self.counts_epochs else rung.seconds
        if known:
            self.pace.left(self.used, resumed=True)


def describe_search(found: Found, own: Tuner) -> SearchedTuner:
    """What a search took, and what it chose."""
    furthest = max(rung.epochs for trial in found.trials for rung in trial.rungs)
    return SearchedTuner(
        trials=len(found.trials),
        to_the_end=sum(trial.rungs[-1].epochs == furthest for trial in found.trials),
        rungs=tuple(sorted({rung.epochs for trial in found.trials for rung in trial.rungs})),
        seconds=round(found.seconds, 1),
        seed=found.best.seed,
        score=found.best.score,
        options=read_options(found.tuner, own),
        tuner=found.tuner.model_dump(mode="json"),
    )


def name_trial(tuner: Tuner, trial: Trial) -> str:
    return f"{tuner.label} · trial {trial.number}"
