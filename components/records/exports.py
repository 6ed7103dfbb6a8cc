"""An exported adapter: what its card.json says, and what `tessera export-model --json` prints."""

from pathlib import Path
from typing import Any, Literal

from pydantic import FiniteFloat

from components.domain.strict import Strict
from components.records.decisions import PassRule
from components.records.fields import Box, Count, Number, Sha256, Share
from components.records.licences import Chain

Annotation = Literal["label", "labels", "mask", "boxes"]


class Proof(Strict):
    """A picture whose answer is known. box: the part of it that is asked about."""

    image: Path
    box: Box | None = None


class CardInput(Strict):
    """What one input is, as in adapter.json. known: False for adapters that do not say it. img_size: height, width."""

    kind: Literal["picture", "crop", "either"]
    cut: Literal["box", "square"]
    fit: Literal["squash", "letterbox"]
    max_megapixels: FiniteFloat
    min_side: Count
    img_size: tuple[Count, Count]
    known: bool


class CardGraph(Strict):
    """Names and meaning of the graph's input and output. merged: whether the tuner was folded into the backbone."""

    input: str
    output: str
    opset: Count
    merged: bool


class CardCalibration(Strict):
    """How outputs become answers, as in adapter.json. inside: whether the graph's probabilities are calibrated."""

    inside: bool
    temperature: FiniteFloat
    offset: FiniteFloat
    thresholds: dict[str, FiniteFloat]
    decision: PassRule | None
    reason: str


class CardBackbone(Strict):
    """The backbone, whose weights are in model.onnx and whose licence therefore holds for it."""

    name: str
    sha256: str
    licence: str


class Verified(Strict):
    """What a clean process without Tessera and torch found when it answered the proofs.

    synthetic: the proofs are drawn, because images of the test split are not here. equal: answers that are those of
    Tessera in float32. pixels: of the same bits. largest_difference: of a probability. batches: sizes of the batches
    that were compared with torch in float32, and graph_difference: the largest of a probability there.
    """

    images: Count
    synthetic: bool
    equal: Count
    pixels: Count
    largest_difference: FiniteFloat
    batches: tuple[Count, ...]
    graph_difference: FiniteFloat


class ClassChange(Strict):
    """A class's own score on the test images after quantisation minus before, with its interval over groups."""

    value: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None


class Int8(Strict):
    """The quantised graph before its gate. score: what `classes` are changes of. images: of the test split, of `of`.

    equal: the share of answers that are those of the graph in float32; of masks, of their pixels. bytes: of the file,
    and before. reason: a sentence on why it is kept or refused.
    """

    kept: bool
    reason: str
    equal: Share
    images: Count
    of: Count
    score: str
    classes: dict[str, ClassChange]
    bytes: Count
    bytes_before: Count


class Card(Strict):
    """card.json. files: the sha256 of each graph. adapter: the sha256 of adapter.json, which stands for all of it.

    background: the class of pixels that no annotation covers. licences: of all that the version was made from. made:
    versions of what wrote the export.
    """

    format_version: Literal[1] = 1
    domain: str
    version: Number
    adapter: Sha256
    weights: Sha256
    tuner: str
    data_version: str
    git_commit: str
    files: dict[str, Sha256]
    task: dict[str, Any]
    annotation: Annotation
    classes: tuple[str, ...]
    background: str | None
    input: CardInput
    graph: CardGraph
    calibration: CardCalibration
    backbone: CardBackbone
    licences: Chain = ()
    metrics: dict[str, FiniteFloat]
    made: dict[str, str]
    verified: Verified | None = None
    int8: Int8 | None = None


class ExportJob(Strict):
    """What the process that exports receives.

    folder: an empty one, which is filled. proofs: pictures of the test split; none: they are drawn. tests: a frame of
    the version's test predictions with the column `file`, on which int8 is judged; None where it is not asked for. of:
    the number of test images, of which the frame has those that are here. licences: for the card.
    """

    adapter: Path
    folder: Path
    domain: str
    version: Number
    licences: Chain = ()
    proofs: tuple[Proof, ...] = ()
    tests: Path | None = None
    of: Count = 0


class ModelExport(Strict):
    """What `tessera export-model --json` prints. files: bytes by name. logged: the MLflow run that holds it, as well;
    None for `--verify`. problems: what `--verify` found, a sentence each."""

    domain: str
    version: Number
    folder: Path
    files: dict[str, Count]
    card: Card
    logged: str | None
    problems: tuple[str, ...] = ()
