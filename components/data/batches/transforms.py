"""Augmentation by albumentations, with randomness that depends only on (seed, epoch, index).

The same picture therefore results for any number of data workers and after a resume. albumentations' own
seeding repeats one stream in every worker, and `Compose(seed=)` gives every transform the same stream
(2.0.8), so fresh generators are set for each sample.

An augmentation is the name of a preset, or a user's pipeline as `A.save(..., data_format="yaml")` writes it. Such a
file is data, never code: only albumentations' own transforms are created from it, with plain arguments.
"""

import difflib
import inspect
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.domain.canvas import ImgSize
from components.domain.domain import PRESETS, Domain
from components.domain.reading import parse_yaml
from components.errors import DomainError
from components.records.boxes import NONE
from components.records.maps import IGNORE, ClassMap
from components.tasks.base import Annotation

Image = NDArray[np.uint8]
Record = Mapping[str, Any]
Box = tuple[float, ...]  # x0, y0, x1, y1 in pixels

CLASS = "__class_fullname__"
VISIBLE = 0.1  # least share of a box's area that must remain in the image for the box to remain
TRIALS = 24  # trial runs of a user's pipeline before anything is trained on it
DRAWS = 12  # of one transform, in search of the one that changes the shape
#: They would grow and shrink classes by their numbers.
NUMBERS_ARE_BRIGHTNESS = ("Morphological",)
MAP_ON_TRIAL = np.array([0, 0, 0, 40, 40, 80, 200, 200, 0, 80, 80], np.uint8)  # repeated in rows of any length
#: Parameters of a saved pipeline that are ignored: they describe boxes and points, which are added here.
ASIDE = ("bbox_params", "keypoint_params", "additional_targets")


class Augmentation:
    """`augment(image, epoch, index)`: (H, W, 3) uint8 in, the same shape out. square: whether H equals W."""

    def __init__(self, recipe: str | Record, seed: int, *, square: bool = True) -> None:
        self.recipe, self.seed, self.square = recipe, seed, square
        self.pipeline = create_pipeline(recipe, square=square)

    def __call__(self, image: Image, epoch: int, index: int) -> Image:
        if self.pipeline is None:
            return image
        augmented: Image = self._draw(self.pipeline, epoch, index)(image=image)["image"]
        if augmented.shape != image.shape or augmented.dtype != image.dtype:
            raise _misshapen("augmentation", self.pipeline, image, augmented)
        return augmented

    def with_map(self, image: Image, classes: ClassMap, epoch: int, index: int) -> tuple[Image, ClassMap]:
        """Augment an image together with its class map (H, W); the image is the same as without one.

        Where the image is mirrored at its border, the map is; where it is filled, the map says IGNORE.
        """
        if self.pipeline is None:
            return image, classes
        found = self._draw(self._mapping, epoch, index)(image=image, mask=classes)
        augmented, moved = found["image"], found["mask"]
        if augmented.shape != image.shape or augmented.dtype != image.dtype or moved.shape != classes.shape:
            raise _misshapen("augmentation", self.pipeline, image, augmented)
        return augmented, moved

    @cached_property
    def _mapping(self) -> Any:
        """The same transforms, for maps of class numbers, which must not be blended or invented."""
        pipeline = create_pipeline(self.recipe, square=self.square)
        for one in _leaves(pipeline):
            if hasattr(one, "mask_interpolation"):
                one.mask_interpolation = 0  # cv2.INTER_NEAREST
            for name in ("fill_mask", "mask_drop_value"):  # None: the transform leaves masks alone
                if getattr(one, name, None) is not None:
                    setattr(one, name, IGNORE)
        return pipeline

    def with_boxes(
        self, image: Image, targets: NDArray[np.float32], epoch: int, index: int
    ) -> tuple[Image, NDArray[np.float32]]:
        """Augment an image together with its boxes (M, 6), as `components.records.boxes` has them; the image is the
        same as without them.

        Boxes are clipped to the image, and those of which less than VISIBLE remains are left out. An image that is
        mirrored at its border shows objects once more, which then have boxes, too. Rows of class NONE are left out.
        """
        targets = targets[targets[:, 4] != NONE]
        if self.pipeline is None:
            return image, targets
        found = self._draw(self._boxed, epoch, index)(image=image, bboxes=targets.astype(np.float64))
        augmented, moved = found["image"], np.asarray(found["bboxes"], np.float32).reshape(-1, 6)
        if augmented.shape != image.shape or augmented.dtype != image.dtype:
            raise _misshapen("augmentation", self.pipeline, image, augmented)
        return augmented, moved

    @cached_property
    def _boxed(self) -> Any:
        """The same transforms, with boxes. A turned box is taken as that of an ellipse: the box around its corners
        would grow with the angle, and the network would learn boxes that are too large."""
        A = load_albumentations()  # noqa: N806  its usual name
        pipeline = create_pipeline(self.recipe, square=self.square)
        for one in _leaves(pipeline):
            if hasattr(one, "rotate_method"):
                one.rotate_method = "ellipse"
        return A.Compose(pipeline.transforms, bbox_params=A.BboxParams("pascal_voc", clip=True, min_visibility=VISIBLE))

    def with_labels(
        self, image: Image, mask: NDArray[np.uint8], boxes: Sequence[Box], epoch: int, index: int
    ) -> tuple[Image, NDArray[np.uint8], list[Box]]:
        """Augment an image together with a mask (H, W) and boxes (x0, y0, x1, y1 in pixels)."""
        if self.pipeline is None:
            return image, mask, list(boxes)
        corners = np.array(boxes, dtype=float).reshape(-1, 4)
        found = self._draw(self._labelled, epoch, index)(image=image, mask=mask, bboxes=corners)
        return found["image"], found["mask"], [tuple(map(float, box)) for box in found["bboxes"]]

    @cached_property
    def _labelled(self) -> Any:
        """The same transforms at the same depth: a Compose around a Compose would draw one more random number."""
        A = load_albumentations()  # noqa: N806  its usual name
        transforms = create_pipeline(self.recipe, square=self.square).transforms
        return A.Compose(transforms, bbox_params=A.BboxParams("pascal_voc", clip=True))

    def _draw(self, pipeline: Any, epoch: int, index: int) -> Any:
        state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(2)
        pipeline.set_random_state(np.random.default_rng(int(state[0])), random.Random(int(state[1])))
        return pipeline


def load_albumentations() -> Any:
    """Import albumentations, which takes a second, without its bridge to torch, which takes two more and is unused."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault("albumentations.pytorch", None)  # None stops the import
    import albumentations

    return albumentations


def create_pipeline(recipe: str | Record, *, square: bool = True) -> Any:
    """An albumentations Compose, or None for `none`. A preset contains what cannot change a label in its field.

    square: whether images are. Quarter turns would change the shape of any other image, so that presets leave them out
    there: the two flips alone already give all four symmetries of a rectangle.
    """
    if recipe == "none":
        return None
    A = load_albumentations()  # noqa: N806
    if not isinstance(recipe, str):
        return A.Compose([_create_transform(A, recipe["transform"], "augmentation")])
    flips = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]
    turns = [*flips, A.RandomRotate90(p=0.5)] if square else flips
    shift = A.Affine(scale=(0.9, 1.1), translate_percent=(-0.06, 0.06), rotate=(-10, 10), border_mode=4, p=0.7)
    light = A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.7)
    noise = A.GaussNoise(std_range=(0.005, 0.03), p=0.3)
    table = {
        # A part can lie in any orientation, the lamp ages, and the camera adds noise.
        "industrial": [*turns, shift, light, noise],
        # A tissue section has no orientation; the strength of the stain differs between laboratories.
        "pathology": [*turns, shift, A.HEStain(method="random_preset", p=0.5), light],
        # A body has an orientation, so there are no flips.
        "xray": [shift, light, noise],
    }
    return A.Compose(table[recipe])


def embed_augmentation(domain: Domain, folder: Path) -> Domain:
    """The domain with the content of the user's pipeline instead of its file name, which is relative to `folder`.

    Keys, jobs and MLflow therefore see the content, and a later edit of the file does not change a run in progress.
    Raises DomainError for a file that is missing or contains anything except albumentations' own transforms.
    """
    if domain.augmentation in PRESETS:
        return domain
    where, record = "augmentation", domain.augmentation
    if isinstance(record, str):
        where, record = f"augmentation {record}", _read_pipeline(folder / Path(record).expanduser())
    _create_transform(load_albumentations(), record["transform"], where)
    return domain.model_copy(update={"augmentation": {"transform": record["transform"]}})


def require_fit(recipe: str | Record, img_size: ImgSize, annotation: Annotation = "label") -> None:
    """Try a user's pipeline on a picture of the training size. Raises DomainError unless it keeps shape and type.

    Each trial runs twice: a transform with other sources of randomness would differ between workers. annotation: what
    it must move together with the images, class maps or boxes.
    """
    if isinstance(recipe, str):
        return
    image = np.random.default_rng(0).integers(0, 256, (*img_size, 3), dtype=np.uint8)
    first, again = (Augmentation(recipe, 0, square=img_size.is_square) for _ in range(2))
    for index in range(TRIALS):
        try:
            if not np.array_equal(first(image, 0, index), again(image, 0, index)):
                found = "another picture for the same seed, epoch and index"
                hint = "Remove the transform that draws its own random numbers."
                raise DomainError("augmentation", expected="a repeatable pipeline", found=found, hint=hint)
            if annotation == "mask":
                _require_map(first, image, index)
            elif annotation == "boxes":
                _require_boxes(first, image, index)
        except DomainError:
            raise
        except Exception as error:  # noqa: BLE001  any error of a transform is about the user's choice of it
            name = _find_culprit(first.pipeline, image)
            found = f"{name}: {_brief(error)}"
            hint = "Correct or remove it; a transform gets only the image."
            raise DomainError("augmentation", expected="transforms that work", found=found, hint=hint) from None


def _require_map(augment: Augmentation, image: Image, index: int) -> None:
    """Raise DomainError unless an image brings its class map along, and the map keeps to the numbers it had."""
    classes = np.resize(MAP_ON_TRIAL, image.shape[:2])
    seen, moved = augment.with_map(image, classes, 0, index)
    names = [type(one).__name__ for one in _leaves(augment.pipeline)]
    wrong = [name for name in names if name in NUMBERS_ARE_BRIGHTNESS]
    if not _has_invented(classes, moved) and np.array_equal(seen, augment(image, 0, index)) and not wrong:
        return
    for one in _leaves(augment._mapping):
        one.set_random_state(np.random.default_rng(0), random.Random(0))
        if _has_invented(classes, one(image=image, mask=classes, force_apply=True)["mask"]):
            wrong.append(type(one).__name__)
    raise DomainError(
        "augmentation",
        expected="transforms that move a class map with its image",
        found=f"{', '.join(dict.fromkeys(wrong)) or ', '.join(names)}, which changes classes",
        hint="Remove it, or replace it by one that moves pixels or changes the image alone.",
    )


def _require_boxes(augment: Augmentation, image: Image, index: int) -> None:
    """Raise DomainError unless an image is the same with its boxes, and its boxes keep their classes."""
    height, width = image.shape[:2]
    boxes = np.array([[0, 0, width / 2, height / 2, 3, 0], [width / 4, height / 4, width, height, 5, 2]], np.float32)
    seen, moved = augment.with_boxes(image, boxes, 0, index)
    known = {tuple(row) for row in boxes[:, 4:].tolist()}
    if np.array_equal(seen, augment(image, 0, index)) and {tuple(row) for row in moved[:, 4:].tolist()} <= known:
        return
    raise DomainError(
        "augmentation",
        expected="transforms that move boxes with their image",
        found=", ".join(type(one).__name__ for one in _leaves(augment.pipeline)),
        hint="Remove the transform that changes the image otherwise when it has boxes.",
    )


def _has_invented(before: ClassMap, after: NDArray[Any]) -> bool:
    """Whether a map has lost its type, or has classes that it did not have."""
    return after.dtype != np.uint8 or not np.isin(after, [*np.unique(before), IGNORE]).all()


def _read_pipeline(path: Path) -> dict[str, Any]:
    expected = 'a pipeline as `albumentations.save(pipeline, path, data_format="yaml")` writes it'
    hint = "Save it like this, or name a preset: none, industrial, pathology, xray."
    try:
        record = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DomainError(f"augmentation {path}", expected=expected, found="no such file", hint=hint) from None
    except (OSError, ValueError) as error:
        raise DomainError(f"augmentation {path}", expected=expected, found=_brief(error), hint=hint) from None
    if not isinstance(record, dict) or not isinstance(record.get("transform"), dict):
        raise DomainError(f"augmentation {path}", expected=expected, found="no key `transform`", hint=hint)
    return record


def _create_transform(A: Any, node: Any, where: str) -> Any:  # noqa: N803
    """Create one node of a saved pipeline and all nodes below it. Raises DomainError that names the node.

    albumentations' own reader would accept any registered class, and would only warn of unknown arguments.
    """
    kind = _find_class(A, node, where)
    what = f"{where}, {kind.__name__}"
    legal = [key for key in inspect.signature(kind.__init__).parameters if key != "self"]
    arguments = {key: value for key, value in node.items() if key in legal and key not in ASIDE}
    if "transforms" in legal:
        inner = arguments.get("transforms")
        if not isinstance(inner, list):
            hint = "List them below the key `transforms`."
            raise DomainError(what, expected="a list of transforms", found=repr(inner)[:80], hint=hint)
        arguments["transforms"] = [_create_transform(A, child, where) for child in inner]
    try:
        made = kind(**arguments)
    except (ValueError, TypeError) as error:
        expected, hint = "arguments as albumentations documents them", "Correct them."
        raise DomainError(what, expected=expected, found=_brief(error), hint=hint) from None
    written = {*legal, *ASIDE, *made.to_dict_private()}  # some classes save more than they take: PadIfNeeded's padding
    for key in node:
        if key not in written:
            close = difflib.get_close_matches(str(key), legal, 1)
            hint = f"Did you mean {close[0]!r}? Rename or remove it." if close else "Rename or remove it."
            found = f"the unknown argument {key!r}"
            raise DomainError(what, expected=f"one of {', '.join(legal)}", found=found, hint=hint)
    return made


def _find_class(A: Any, node: Any, where: str) -> Any:  # noqa: N803
    """The public albumentations class that a node names. Raises DomainError if it needs more than the image."""
    full = node.get(CLASS) if isinstance(node, dict) else None
    name = str(full).removeprefix("albumentations.").rpartition(".")[2] if full else None
    kinds = {
        key: kind
        for key, kind in vars(A).items()
        if inspect.isclass(kind)
        and issubclass(kind, A.ImageOnlyTransform | A.DualTransform | A.BaseCompose)
        and kind not in (A.ImageOnlyTransform, A.DualTransform, A.BaseCompose, A.Lambda)
    }
    own = str(full).startswith("albumentations.") or "." not in str(full)
    if name not in kinds or not own:
        close = difflib.get_close_matches(name or "", kinds, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        found = f"{CLASS}: {full}" if full else f"no {CLASS}"
        hint = f"Only these are created from a file.{hint}"
        raise DomainError(where, expected="transforms of albumentations itself", found=found, hint=hint)
    if "metadata_key" in inspect.signature(kinds[name].__init__).parameters:
        expected = "transforms that need only the image"
        hint = "Remove it: other files that it reads would be part of no key."
        raise DomainError(where, expected=expected, found=f"{name}, which needs other pictures or fonts", hint=hint)
    return kinds[name]


def _misshapen(what: str, pipeline: Any, before: Image, after: NDArray[Any]) -> DomainError:
    changes = (one for one in _leaves(pipeline) if _changes_shape(one, before))
    names = ", ".join(dict.fromkeys(type(one).__name__ for one in changes)) or "some draws"
    return DomainError(
        what,
        expected=f"an image of the same shape and type, {_describe(before)}",
        found=f"{_describe(after)} (by {names})",
        hint="Remove it, or restore the image's size; resizing and scaling to floats happen elsewhere.",
    )


def _changes_shape(transform: Any, image: Image) -> bool:
    draws = (_apply_alone(transform, image, seed) for seed in range(DRAWS))
    return any(after.shape != image.shape or after.dtype != image.dtype for after in draws)


def _find_culprit(pipeline: Any, image: Image) -> str:
    """The name of the first transform that fails by itself."""
    for one in _leaves(pipeline):
        try:
            _apply_alone(one, image)
        except Exception:  # noqa: BLE001  an error is what this function searches for
            return type(one).__name__
    return "the pipeline"


def _apply_alone(transform: Any, image: Image, seed: int = 0) -> Any:
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return transform(image=image, force_apply=True)["image"]


def _leaves(pipeline: Any) -> Iterator[Any]:
    for one in getattr(pipeline, "transforms", ()):
        if hasattr(one, "transforms"):
            yield from _leaves(one)
        else:
            yield one


def _describe(image: NDArray[Any]) -> str:
    return f"{' x '.join(map(str, image.shape))} {image.dtype}"


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
