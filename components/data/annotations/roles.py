"""Decides by name, stem and content which image files of a raw folder are pictures and which are masks of them."""

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from components.data.annotations.tree import bare_stem, find_masks_beside, stem_of
from components.data.sources.images import FORMATS, UNDECODABLE
from components.data.sources.names import SUFFIXES

_MASKS = """
    mask masks msk msks ground_truth groundtruth gt gts seg segs segm segmentation segmentations segmentationclass
    segmentationclassraw segmentationobject label labels labelids annotation annotations annotated instances instance
    instance_masks mask_images masks_png png_masks outlines ann_dir label_dir mask_dir ann anns gtfine gtcoarse
"""
MASK_FOLDERS = frozenset(_MASKS.split())
INSTANCE_FOLDERS = frozenset(("instances", "instance", "instance_masks", "instance_ids", "segmentationobject"))
ALIKE = 0.8  # share of masks that must have a picture with the same stem
SAMPLES = 3  # files per folder that are decoded
VALUES = 24  # a mask's VALUES most frequent values make up MOST of its pixels
MOST = 0.99
APART = 0.05  # share of objects that may have several parts
OBJECTS, MOST_OBJECTS = 5, 2000  # objects in the fullest of some masks, if they number objects; more are not counted


@dataclass(frozen=True)
class Roles:
    """Paths of pictures and of their masks. beside: whether the masks lie in the same folders as their pictures."""

    pictures: tuple[str, ...]
    masks: tuple[str, ...] = ()
    beside: bool = False


def find_roles(raw: Path, files: Iterable[str]) -> Roles:
    """Find the masks among the image files.

    A mask has the stem of a picture, and either lies in a folder with a mask's name or has only few values.
    """
    images = [path for path in files if path.lower().endswith(SUFFIXES)]
    if beside := find_masks_beside(images):
        return Roles(tuple(path for path in images if path not in beside), tuple(sorted(beside)), beside=True)
    by_folder = defaultdict[str, list[str]](list)
    for path in images:
        by_folder[posixpath.dirname(path)].append(path)
    named = [folder for folder in by_folder if MASK_FOLDERS & set(folder.casefold().split("/"))]
    others = [folder for folder in by_folder if folder not in named]
    stems = {stem_of(path) for folder in others for path in by_folder[folder]}
    masks = [f for f in named if _share(by_folder[f], stems) >= ALIKE and _look_like_masks(raw, by_folder[f], f)]
    masks = masks or _find_by_content(raw, {folder: by_folder[folder] for folder in others})
    chosen = {path for folder in masks for path in by_folder[folder]}
    return Roles(tuple(path for path in images if path not in chosen), tuple(sorted(chosen)))


def is_instances(folder: str) -> bool:
    """Whether the folder's name says that its masks hold instance ids."""
    return bool(INSTANCE_FOLDERS & set(folder.casefold().split("/")))


def number_objects(raw: Path, masks: Sequence[str], most: int = 20) -> bool:
    """Whether masks number objects instead of classes: 1, 2, ... k, nearly all of them connected, with varying k."""
    import cv2

    counts, apart = list[int](), 0
    for path in masks[:: max(1, len(masks) // most)][:most]:
        try:
            with Image.open(raw / path, formats=FORMATS) as opened:
                ids = np.asarray(opened)
        except (Image.DecompressionBombError, *UNDECODABLE):
            continue
        numbers = np.unique(ids[ids != 0]) if ids.ndim == 2 and ids.dtype.kind in "ui" else np.zeros(0)
        if numbers.tolist() != list(range(1, len(numbers) + 1)) or len(numbers) > MOST_OBJECTS:
            return False
        apart += sum(cv2.connectedComponents((ids == number).astype(np.uint8))[0] != 2 for number in numbers)
        counts.append(len(numbers))
    return max(counts, default=0) >= OBJECTS and len(set(counts)) >= 3 and apart <= APART * sum(counts)


def find_values(raw: Path, masks: Sequence[str], most: int = 20) -> set[int]:
    """The values that occur in the first `most` masks, of those with one channel."""
    found = set[int]()
    for path in masks[:most]:
        try:
            with Image.open(raw / path, formats=FORMATS) as opened:
                if opened.mode in ("L", "P", "1"):
                    found |= set(np.unique(np.asarray(opened)).astype(int).tolist())
        except (Image.DecompressionBombError, *UNDECODABLE):  # reading quarantines this mask later
            continue
    return found


def _share(paths: Sequence[str], stems: set[str]) -> float:
    return sum(bool({stem_of(path), bare_stem(path)} & stems) for path in paths) / len(paths)


def _find_by_content(raw: Path, by_folder: dict[str, list[str]]) -> list[str]:
    """Folders of masks under any name: they hold the stems of a sibling folder and look like masks, unlike it."""
    masks = []
    stems = {folder: {stem_of(path) for path in paths} for folder, paths in by_folder.items()}
    for folder, paths in by_folder.items():
        twins = [
            other
            for other in by_folder
            if other != folder
            and posixpath.dirname(other) == posixpath.dirname(folder)
            and _share(paths, stems[other]) >= ALIKE
        ]
        if twins and _look_like_masks(raw, paths) and not any(_look_like_masks(raw, by_folder[t]) for t in twins):
            masks.append(folder)
    return masks


def _look_like_masks(raw: Path, paths: Sequence[str], folder: str = "") -> bool:
    """Whether the first files consist of few values, or their folder's name says that they hold instance ids."""
    return is_instances(folder) or all(has_few_values(raw / path) for path in paths[:SAMPLES])


def has_few_values(path: Path, most: int | None = None) -> bool:
    """Whether few values make up nearly all pixels, as in a mask; False for a file that cannot be decoded.

    most: about how many pixels, evenly spread, are looked at; all when left out.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > 50_000_000:
                return False
            pixels = np.asarray(opened.convert("RGB") if opened.mode not in ("L", "P", "1") else opened)
    except (Image.DecompressionBombError, *UNDECODABLE):
        return False
    if most is not None:
        step = max(1, round((pixels.shape[0] * pixels.shape[1] / most) ** 0.5))
        pixels = pixels[::step, ::step]
    if pixels.ndim == 3:
        pixels = pixels.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    counts = np.sort(np.unique(pixels, return_counts=True)[1])[::-1]
    return bool(counts[:VALUES].sum() >= MOST * pixels.size)
