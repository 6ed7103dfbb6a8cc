"""What `tessera predict` answers."""

from components.domain.strict import Strict
from components.records.decisions import PassRule
from components.records.fields import Box, Corners, Count, ErrorRecord, Number, Share
from components.records.images import LeftOut

UNDECIDED = "(undecided)"  # what a picture is called where people read that a model leaves to a person


class Answer(Strict):
    """The answer for one image, or for one box in it; label and probabilities are None where `error` says why.

    path: as it was given. box: as it was asked for. crop: what was cut for it; both None for a whole image. abstained:
    the model's decision leaves the image to a person; the label is then None, too.
    """

    path: str
    box: Box | None
    crop: Box | None
    label: str | None
    probabilities: dict[str, Share] | None
    model_version: Number
    error: ErrorRecord | None
    abstained: bool = False


class LabelsAnswer(Answer):
    """The answer of a model that may give an image several labels, or none."""

    labels: tuple[str, ...]


class Component(Strict):
    """Connected pixels of one class. area: in pixels. confidence: the mean probability of the class in them."""

    label: str
    box: Box
    area: Count
    confidence: Share


class MapAnswer(Answer):
    """The answer of a model that answers the class of every pixel; its `probabilities` are None.

    areas: pixels by class. components: of every class but the background. mask, overlay: files that were written.
    """

    areas: dict[str, Count]
    components: tuple[Component, ...]
    mask: str | None = None
    overlay: str | None = None


class FoundObject(Strict):
    """An object that reaches the threshold of its class. box: in pixels of the upright picture, ends exclusive."""

    label: str
    box: Corners
    confidence: Share


class BoxesAnswer(Answer):
    """The answer of a model that answers labelled boxes; its `probabilities` are None.

    objects: the most confident first. counts: their number by class. drawn: a drawing that was written.
    """

    objects: tuple[FoundObject, ...]
    counts: dict[str, Count]
    drawn: str | None = None


AnyAnswer = MapAnswer | BoxesAnswer | LabelsAnswer | Answer


class Predictions(Strict):
    """What `tessera predict --json` prints.

    thresholds: from which probability on each label or box is answered; None where one class is the answer. decision:
    from which probability on that class is the one that lets an image pass; None where it is the most probable one.
    input: what one input of the adapter is, as its adapter.json says; None where that is unknown. ignored: files that
    are no pictures. notes: what was passed over in a file of boxes, and what was written, counted. table: a file with
    one row per question; `predictions` is empty then, and `shown` says in how many rows each class is answered; None
    where there is no such file.
    """

    domain: str
    version: Number
    tuner: str
    thresholds: dict[str, Share] | None
    decision: PassRule | None = None
    input: dict[str, str | int | float] | None
    predictions: tuple[AnyAnswer, ...]
    answered: Count
    failed: Count
    ignored: tuple[LeftOut, ...]
    notes: dict[str, int]
    warnings: tuple[str, ...]
    table: str | None = None
    shown: dict[str, Count] | None = None


class Unanswered(Predictions):
    """What `tessera predict --json` prints where nothing could be answered. error: that of the first image."""

    error: ErrorRecord
