"""The embedded backbone: a small pretrained network inside the package, so that everything works with no download.

`embedded.safetensors` is a ViT-Tiny for 128 px, made by `python -m components.models.pretrain` from a teacher's
hidden states on images made from nothing; `embedded.json`, its card, says from what, how, under which licence, and
what its features are worth. The file is used only while it has the sha256 on the card. No torch here: `tessera
doctor` asks, too.
"""

import hashlib
from pathlib import Path

from pydantic import ValidationError

from components.domain.strict import Strict
from components.errors import BackboneError

FOLDER = Path(__file__).resolve().parent


class Teacher(Strict):
    """The published network that was imitated."""

    name: str
    licence: str
    source: str
    file_sha256: str


class Scores(Strict):
    """What the features are worth: network -> bench -> reader -> percent, for this one and for those beside it."""

    command: str
    protocol: str
    percent: dict[str, dict[str, dict[str, float]]]


class Card(Strict):
    """What embedded.json says. file_sha256: of the file; tensors_sha256: as `Backbone.sha256`."""

    architecture: str
    img_size: int
    licence: str
    made: str
    teacher: Teacher
    command: str
    images: int
    seed: int
    file_sha256: str
    tensors_sha256: str
    scores: Scores
    notes: tuple[str, ...] = ()


def load_card(folder: Path = FOLDER) -> Card:
    """Raises BackboneError when the card is missing or says something else than a card does."""
    path = folder / "embedded.json"
    try:
        return Card.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _damaged(path, "the card of the embedded backbone", str(error).splitlines()[0]) from None


def require_embedded(folder: Path = FOLDER) -> Path:
    """The weight file, whole. Raises BackboneError unless it has the sha256 on its card."""
    path, expected = folder / "embedded.safetensors", load_card(folder).file_sha256
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise _damaged(path, f"a file of sha256 {expected}", error.strerror or str(error)) from None
    if found != expected:
        raise _damaged(path, f"sha256 {expected}", found)
    return path


def _damaged(path: Path, expected: str, found: str) -> BackboneError:
    hint = "The installation is damaged: install Tessera again, or check the file out again."
    return BackboneError(f"embedded backbone {path}", expected=expected, found=found, hint=hint)
