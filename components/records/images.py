"""What the data stages find in a domain's images, and what the commands on images print."""

from pathlib import Path
from typing import Any, Literal

from components.domain.canvas import Size
from components.domain.strict import Strict
from components.records.fields import Box, Count, Md5, Share


class LeftOut(Strict):
    """A file that is not used, and why. path: relative to the raw folder, or as it was given on the command line."""

    path: str
    reason: str


class QuarantinedFile(Strict):
    """A file with rows that are unfit: the reason in one sentence, and its three parts."""

    path: str
    reason: str
    expected: str
    found: str
    hint: str


class Suspect(Strict):
    """A label that may be wrong. score: the chance that the given label is right, the lower the worse."""

    path: str
    crop: Box | None
    given: str
    suggested: str
    score: Share
    why: str


class LabelReview(Strict):
    """What frozen features are worth as a witness against labels.

    accuracy: balanced accuracy on groups the features have not seen; None where there are too few groups to learn
    from. expected_wrong: the share of the suspicions by features that should be right; None where there are none.
    """

    accuracy: Share | None
    expected_wrong: Share | None
    note: str


class ImageCounts(Strict):
    """Rows of the data that were read, and what became of them."""

    images: Count
    fit: Count
    groups: Count
    quarantined: Count


class ClassCount(Strict):
    images: Count
    groups: Count


class OutlierRow(Strict):
    """A fit picture that looks unlike the rest: `blurred`, `too dark` or `too bright`."""

    kind: str
    path: str
    found: str


class ObjectCounts(Strict):
    """The labelled boxes of a domain, difficult ones and crowds included.

    counts: objects that count, by class. difficult, crowd: objects that training and scoring ignore. pictures, empty:
    pictures whose objects are annotated, and those of them without any.
    """

    counts: dict[str, Count]
    difficult: Count
    crowd: Count
    pictures: Count
    empty: Count


class ValidationSummary(Strict):
    """The content of validation.json.

    images: rows read. fit: rows that may be trained on. near_duplicate_pairs: paths of two files that show one thing;
    those in pairs_that_share_a_picture may be different parts of it. objects: None where no boxes are annotated.
    """

    domain: str
    ok: bool
    images: Count
    fit: Count
    quarantined: tuple[QuarantinedFile, ...]
    groups: Count
    near_duplicate_pairs: tuple[tuple[str, str], ...]
    pairs_that_share_a_picture: tuple[tuple[str, str], ...] = ()
    suspicious_labels: tuple[Suspect, ...]
    labels: LabelReview | None
    classes: dict[str, ClassCount]
    objects: ObjectCounts | None = None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    outliers: tuple[OutlierRow, ...]

    def count(self) -> ImageCounts:
        return ImageCounts(images=self.images, fit=self.fit, groups=self.groups, quarantined=len(self.quarantined))


class Pictures(Strict):
    """What became of every picture of a raw folder: found = used + quarantined + the number of ignored.

    masks: how many of the used ones are masks of others.
    """

    found: Count
    used: Count
    masks: Count
    quarantined: Count
    ignored: tuple[LeftOut, ...]


class Example(Strict):
    path: str
    label: str


class Summary(Strict):
    """How a raw folder was read: its layout, and what follows from it.

    classes: samples per class. unlabelled: pictures without any label, which a multilabel domain may have. cut: whether
    samples are crops of pictures. objects: of the boxes, where they are annotated. group: the column that names the
    groups; None where each picture is its own.
    """

    layout: str
    task: str
    classes: dict[str, Count]
    unlabelled: Count
    samples: Count
    cut: bool
    objects: ObjectCounts | None = None
    group: str | None
    groups: Count
    examples: tuple[Example, ...]


class Imported(Strict):
    """What `tessera import --json` prints.

    files: in the raw folder. added, removed, changed, kept: of these, against the version before. notes: annotations
    that were passed over or corrected, counted. given_split: pictures per split that the tree or table names.
    masks_unread: the task that would learn from the pixels of the masks; None without masks, or where it does.
    boxes_unread: the task that would find the objects, where each is a crop of its own.
    """

    domain: str
    layout: str
    classes: tuple[str, ...]
    data_version: Md5
    files: Count
    raw: Path
    added: Count
    removed: Count
    changed: Count
    kept: Count
    pictures: Pictures
    notes: dict[str, int]
    given_split: dict[str, int]
    masks_unread: str | None = None
    boxes_unread: str | None = None
    understood: Summary
    hints: tuple[str, ...]
    warnings: tuple[str, ...]


class SplitCounts(Strict):
    """Images and groups of each class in one split."""

    images: dict[str, Count]
    groups: dict[str, Count]


class Checked(Strict):
    """What `tessera check --json` prints.

    aside: images that are excluded from all splits. splits: by the name of the split; empty, and manifest None, where a
    problem stopped the stages before the split.
    """

    domain: str
    ok: bool
    data_version: Md5
    images: Count
    fit: Count
    quarantined: tuple[QuarantinedFile, ...]
    groups: Count
    near_duplicate_pairs: Count
    suspicious_labels: tuple[Suspect, ...]
    labels: LabelReview | None
    aside: tuple[LeftOut, ...]
    warnings: tuple[str, ...]
    classes: tuple[str, ...]
    pictures: Pictures
    notes: dict[str, int]
    given_split: dict[str, int]
    understood: Summary
    hints: tuple[str, ...]
    splits: dict[str, SplitCounts]
    problems: tuple[str, ...]
    manifest: Path | None
    report: Path


class Previewed(Strict):
    """What `tessera preview --json` prints.

    images: on the sheet, per class. img_size: side in pixels, or height and width.
    """

    domain: str
    data_version: Md5
    augmentation: str | dict[str, Any]
    img_size: Size
    images: dict[str, Count]
    path: Path


class Exported(Strict):
    """What `tessera export --json` prints. rows: samples. files: pictures and masks copied. notes: what the format
    cannot hold, counted."""

    domain: str
    format: Literal["coco", "csv", "masks", "voc", "yolo"]
    folder: Path
    rows: Count
    files: Count
    notes: dict[str, Count]


class Removed(Strict):
    """What `tessera remove --json` prints. back: the command that brings the domain back."""

    domain: str
    files: Count
    data_version: Md5 | None
    removed: tuple[Path, ...]
    kept: tuple[Path, ...]
    back: str


class Created(Strict):
    """What `tessera demo --data-only --json` prints."""

    domain: str
    raw: Path
    data_version: Md5
    files: Count
