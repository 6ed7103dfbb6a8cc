"""Cache of what decoding found, by the file's content: a picture that was fit once is not decoded again.

Only fit pictures are cached, so a quarantined file is decoded in every run. The cache file's name depends on everything
that a finding depends on besides the content: the code of the checks and of this module, Pillow's version, and the
limits for a single file. A lost or damaged cache is rebuilt.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import PIL
import polars as pl

from components.data.checks import pictures as inspection
from components.data.checks.pictures import Picture, inspect_images
from components.data.manifest import load_cache, save_frame
from components.data.sources.images import Box
from components.domain.settings import Validation

#: Settings about the set as a whole; every other setting may change the finding of a single file.
OF_THE_WHOLE = {"min_images_per_class", "min_groups_per_class", "max_quarantined", "near_duplicate_bits"}
SCHEMA = {"key": pl.String, "facts": pl.String}


def inspect_changed(
    raw: Path, crops: Mapping[str, Iterable[Box]], digests: Mapping[str, str], limits: Validation, cache: Path
) -> dict[str, Picture]:
    """As `inspect_images`, but files whose content was fit before are not decoded. digests: sha256 by path."""
    file = cache / f"findings-{name_rules(limits)}.parquet"
    keys = {path: _key(digests[path], boxes) for path, boxes in crops.items() if path in digests}
    known = _load(file)
    pictures = {path: _restore(known[key]) for path, key in keys.items() if key in known}
    looked = inspect_images(raw, {path: boxes for path, boxes in crops.items() if path not in pictures}, limits)
    fresh = {keys[path]: _keep(picture) for path, picture in looked.items() if path in keys and not picture.problem}
    if fresh:
        for other in cache.glob("findings-*.parquet"):
            if other != file:
                other.unlink(missing_ok=True)  # a cache for other code or limits
        whole = known | fresh
        save_frame(pl.DataFrame({"key": list(whole), "facts": list(whole.values())}, schema=SCHEMA), file)
    return {path: pictures.get(path) or looked[path] for path in crops}


def name_rules(limits: Validation) -> str:
    """A short name for all that a finding depends on besides the file."""
    rules = (
        *(Path(file).read_text(encoding="utf-8") for file in (inspection.__file__, __file__)),
        PIL.__version__,
        limits.model_dump(exclude=OF_THE_WHOLE),
    )
    return hashlib.sha256(repr(rules).encode()).hexdigest()[:16]


def _key(digest: str, boxes: Iterable[Box]) -> str:
    wanted = sorted(boxes)
    return f"{digest}#{hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]}" if wanted else digest


def _keep(picture: Picture) -> str:
    return json.dumps(vars(picture), default=sorted)


def _restore(facts: str) -> Picture:
    said: dict[str, Any] = json.loads(facts)
    said["flat_crops"] = frozenset((box[0], box[1], box[2], box[3]) for box in said["flat_crops"])
    return Picture(**said)


def _load(file: Path) -> dict[str, str]:
    return dict(load_cache(file, SCHEMA).iter_rows())
