"""What a retrain comes to: candidates, tuners, verdict. `tessera retrain --json` prints it and MLflow keeps it.

Fields with a default are those that outcomes of older versions lack.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from components.domain.strict import Strict
from components.records.decisions import PassRule
from components.records.fields import Count, Md5, Number, Seconds, Sha256, Share
from components.records.images import ImageCounts
from components.records.licences import Chain
from components.records.memory import Memory
from components.records.predictions import AnyAnswer

OLD_KEYS = {"recalls": "class_scores"}  # of a tuner's row

Verdict = Literal["PROMOTE", "HOLD", "REJECT"]
Status = Literal["done", "unchanged", "held", "rejected"]


class Score(Strict):
    """A score with its confidence interval; both ends are None where it is not known.

    groups: how many groups it is over; None where that was not recorded.
    """

    value: Share
    low: float | None = None
    high: float | None = None
    groups: Count | None = None


class SeedScores(Score):
    """The mean over the seeds of a tuner, with its interval, and each seed's own score."""

    seeds: tuple[Share, ...]


class Gain(Strict):
    """The paired difference to a baseline on the test images, with its interval, and as a sentence."""

    value: float
    low: float | None
    high: float | None
    groups: Count | None = None
    baseline: str
    text: str


class Searched(Strict):
    """What a search over a candidate's options took and chose.

    to_the_end: trials that were trained to the last rung. rungs: epochs at which trials are compared. score: the best
    trial's on validation, trained with `seed`. options: what it chose.
    """

    trials: Count
    to_the_end: Count
    rungs: tuple[Count, ...]
    seconds: Seconds
    seed: int
    score: Share
    options: dict[str, Any]


class SearchedTuner(Searched):
    """A search as the flow passes it on. tuner: the candidate with the options that were chosen."""

    tuner: dict[str, Any]

    def to_row(self) -> Searched:
        """Without the candidate, which is a row of its own."""
        return Searched(**self.model_dump(exclude={"tuner"}))


class BackboneRow(Strict):
    """trained: False for random weights, which try the machinery and not the method."""

    name: str
    sha256: Sha256
    trained: bool


class CandidateRow(Strict):
    """One candidate with one seed.

    val: its score on validation. trainable_params: without the head's. share: of those to the backbone's. calibration:
    a sentence on how probabilities were calibrated. memory: what its training takes, as computed before it; None where
    that is little, and for scored adapters. run_id: its run in MLflow; empty until it is logged.
    """

    tuner: str
    seed: int
    val: Share
    test: Score
    trainable_params: Count
    head_params: Count
    share: float
    seconds: Seconds
    adapter_bytes: Count
    adapter_sha256: Sha256
    calibration: str = ""
    memory: Memory | None = None
    selected: bool
    run_id: str = ""


class TrainedCandidate(CandidateRow):
    """A candidate as the flow passes it on. folder: holds its adapter and predictions."""

    backbone: BackboneRow
    folder: Path

    def to_row(self) -> CandidateRow:
        """Without what is of this machine, or the same for all."""
        return CandidateRow(**self.model_dump(exclude={"backbone", "folder"}))


class TunerRow(Strict):
    """One tuner over its seeds: val, seconds and scores are means.

    class_scores: on test, per class. over_linear: None for the linear probe itself, and where no candidate is one.
    over_control: likewise for the task's control, of which most tasks have none.
    """

    tuner: str
    kind: str
    selected: bool
    seeds: tuple[int, ...]
    val: Share
    test: SeedScores
    class_scores: dict[str, Share]
    seconds: Seconds
    trainable_params: Count
    head_params: Count
    share: float
    adapter_bytes: Count
    options: dict[str, Any]
    search: Searched | None
    over_linear: Gain | None = None
    over_control: Gain | None = None

    @property
    def gains(self) -> tuple[Gain, ...]:
        """Over what it is compared with."""
        return tuple(gain for gain in (self.over_linear, self.over_control) if gain)


class Finding(Strict):
    """What one gate found: a sentence for the auditor and the numbers behind it."""

    gate: str
    verdict: Verdict
    reason: str
    evidence: dict[str, float | str]


class Suspicion(Strict):
    """Annotated boxes that all candidates but the control speak against, on images that none has learned from.

    models, images: how many were asked, of how many. missing: objects that all find where none is annotated.
    other_class: objects for which all find the same other class. unconfirmed: objects where none finds anything. text:
    all of it as a sentence.
    """

    models: Count
    images: Count
    missing: Count
    other_class: Count
    unconfirmed: Count
    text: str


class PassRates(Strict):
    """What happens to the images of one split, as shares averaged over the images of a group and then over the groups.

    passing, others: how many images are of the class that lets an image pass, and of other classes. escapes: share of
    the others that is answered this class. false_alarms: share of its own images that is not. abstained: share of all
    images that is left to a person. plain: both shares as they are where the most probable class is answered. A share
    of no image is None.
    """

    passing: Count
    others: Count
    escapes: Score | None
    false_alarms: Score | None
    abstained: Score | None
    plain_escapes: Score | None
    plain_false_alarms: Score | None


class PassReport(Strict):
    """A decision, what it does on validation, on which it was chosen, and on test. notes: what limits these figures."""

    rule: PassRule
    val: PassRates
    test: PassRates
    notes: tuple[str, ...]


class New(Strict):
    """What a retrain had to make. candidates: by name, as `vpt-deep-s0`, or `search of vpt-deep`."""

    data: bool
    candidates: tuple[str, ...]
    verdict: bool


class Outcome(Strict):
    """What `tessera retrain --json` prints.

    manifest_key, verdict_key: of what it depends on. metric: name of the score that selects, gates and is shown.
    suspicion: of labels that are boxes. decision: of the challenger, where it has one. licences: of all that the
    challenger was made from; none in outcomes of earlier releases. new, estimate_seconds: what had
    to be made, and how long that was expected to take; None where it was not known. seconds: of the whole retrain.
    """

    domain: str
    status: Status
    data_version: Md5
    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...] = ()
    champion_version: Number | None
    challenger_version: Number
    manifest_key: str = ""
    verdict_key: str = ""
    metric: str
    backbone: BackboneRow
    licences: Chain = ()
    tuners: tuple[TunerRow, ...] = ()
    candidates: tuple[CandidateRow, ...]
    validation: ImageCounts
    suspicion: Suspicion | None = None
    decision: PassReport | None = None
    new: New | None = None
    estimate_seconds: Seconds | None = None
    report: Path
    seconds: Seconds

    @property
    def best(self) -> CandidateRow:
        """The candidate that was selected on validation."""
        return next(row for row in self.candidates if row.selected)


def read_outcome(record: Mapping[str, Any], metric: str) -> Outcome:
    """A stored outcome, also of an older version. metric: of the task that older versions knew alone.

    These had one `fingerprint` instead of the keys, by which nothing is looked up any more, and called the scores of
    classes `recalls`. Raises ValidationError for what is no outcome.
    """
    facts = {"metric": metric} | {key: record[key] for key in record if key != "fingerprint"}
    rows = [{OLD_KEYS.get(key, key): row[key] for key in row} for row in record.get("tuners", ())]
    return Outcome.model_validate(facts | {"tuners": rows})


class Comparison(Outcome):
    """What `tessera compare --json` prints: the last outcome, and the path of its picture."""

    picture: Path


class Demonstrated(Outcome):
    """What `tessera demo --json` prints once there is a champion: its answers for a few test images.

    picture: a drawing of them beside the truth, where they are masks.
    """

    predictions: tuple[AnyAnswer, ...]
    picture: Path | None = None
