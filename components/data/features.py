"""What the features stage leaves: features.parquet and matches.parquet, as the later data stages read them.

They are made by `components.models.features`, because a network is no business of this room; numbers are kept as bytes.
"""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.duplicates import Found, Known, Pair
from components.data.images import Box
from components.data.manifest import load_frame, save_frame
from components.data.matching import METHOD, Match

FEATURES = {"key": pl.String, "feature": pl.Binary, "grey": pl.Binary, "backbone": pl.String}
MATCHES = {
    "first": pl.String,
    "second": pl.String,
    "inliers": pl.Int64,
    "agreement": pl.Float64,
    "near": pl.Boolean,
    "method": pl.Int64,
    "bits": pl.Int64,  # of the search that came to its end among pictures of which these are two
}


def content_of(identity: str) -> str:
    """The sha256 of the file in a row's id."""
    return identity.partition("#")[0]


def sample_key(content: str, crop: Box | None) -> str:
    """Name of a picture, or of a crop of it, wherever it lies in the tree and whatever else is cut from it."""
    return content if crop is None else f"{content}:{','.join(map(str, crop))}"


def load_features(file: Path) -> pl.DataFrame:
    """Empty where there is no such file yet."""
    return load_frame(file) if file.exists() else pl.DataFrame(schema=FEATURES)


def decode_features(frame: pl.DataFrame) -> NDArray[np.float32]:
    """(N, D)"""
    if frame.is_empty():
        return np.zeros((0, 1), np.float32)
    return np.stack([np.frombuffer(feature, np.float16) for feature in frame["feature"]]).astype(np.float32)


def load_known(file: Path, bits: int) -> Known:
    """What is known by the present method, and searched with so many bits; nothing where there is no such file yet."""
    kept = [load_frame(file)] if file.exists() else []  # an earlier release's has fewer columns
    frame = pl.concat([pl.DataFrame(schema=MATCHES), *kept], how="diagonal").filter(pl.col("method") == METHOD)
    rows = frame.select("first", "second", "inliers", "agreement").iter_rows()
    searched = frame.filter(pl.col("bits") == bits)
    return Known(
        {(first, second): Match(inliers, agreement) for first, second, inliers, agreement in rows},
        {*searched["first"], *searched["second"]},
    )


def load_near_duplicates(file: Path) -> list[Pair]:
    """Pairs of contents that show one thing."""
    near = load_frame(file).filter(pl.col("near"))
    return [(first, second) for first, second in near.select("first", "second").iter_rows()]


def save_matches(found: Found, bits: int, file: Path) -> None:
    near = set(found.near)
    rows = [
        (*pair, match.inliers, match.agreement, pair in near, METHOD, bits if found.searched >= set(pair) else None)
        for pair, match in sorted(found.matches.items())
    ]
    save_frame(pl.DataFrame(rows, schema=MATCHES, orient="row"), file)
