"""Reads the outputs of the features stage, features.parquet and matches.parquet, for the later data stages.

`components.models.features` writes them, because `components.data` imports no torch. Vectors are stored as bytes.
"""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.checks.duplicates import Found, Look, Pair, Question, is_certain
from components.data.checks.matching import METHOD, Match
from components.data.manifest import load_cache, load_frame, save_frame

FEATURES = {"key": pl.String, "feature": pl.Binary, "grey": pl.Binary, "backbone": pl.String}
MATCHES: dict[str, pl.DataType | type[pl.DataType]] = {
    "first": pl.String,
    "second": pl.String,
    "turn": pl.Int64,  # orientation of the second picture, POINTS if matched points determined it; null in an answer
    "inliers": pl.Int64,
    "agreement": pl.Float64,
    "fit": pl.List(pl.Float64),
    "near": pl.Boolean,
    "remaining": pl.Float64,  # agreement of near duplicates and answers beyond a shared design; null without one
    "strangers": pl.String,  # in an answer the name of what predicted the design; null in a comparison
    "method": pl.Int64,
    "among": pl.String,  # the name of the completed search
}


def load_features(file: Path) -> pl.DataFrame:
    """The features of earlier runs; empty if the file is missing or damaged."""
    return load_cache(file, FEATURES)


def decode_features(frame: pl.DataFrame) -> NDArray[np.float32]:
    """(N, D)"""
    if frame.is_empty():
        return np.zeros((0, 1), np.float32)
    return np.stack([np.frombuffer(feature, np.float16) for feature in frame["feature"]]).astype(np.float32)


def load_known(file: Path) -> Found:
    """The results of earlier searches with the present method; empty if the file is missing, damaged or of an earlier
    release."""
    frame = load_cache(file, MATCHES).filter(pl.col("method") == METHOD)
    is_look = pl.col("strangers").is_null()
    rows = frame.filter(is_look).select("first", "second", "turn", "inliers", "agreement", "fit").iter_rows()
    answered = frame.filter(~is_look).select("first", "second", "strangers", "remaining").iter_rows()
    answers = {Question(*row[:3]): row[3] for row in answered}
    looks = {Look(*row[:3]): Match(row[3], row[4], tuple(row[5]) if row[5] else None) for row in rows}
    among = frame["among"].unique().to_list()
    return Found(looks, _near_of(frame), among[0] if len(among) == 1 else None, answers)


def load_near_duplicates(file: Path) -> list[Pair]:
    """Pairs of contents that show one thing, or parts of one piece."""
    return list(_near_of(load_frame(file)))


def load_sisters(file: Path) -> set[Pair]:
    """Near duplicates that may be different things, such as two parts cut from one piece."""
    return {pair for pair, remaining in _near_of(load_frame(file)).items() if not is_certain(remaining)}


def _near_of(frame: pl.DataFrame) -> dict[Pair, float | None]:
    rows = frame.filter(pl.col("near")).select("first", "second", "remaining").iter_rows()
    return {(first, second): remaining for first, second, remaining in rows}


def save_matches(found: Found, file: Path) -> None:
    looks = [
        (*look, match.inliers, match.agreement, match.fit, pair in found.near, found.near.get(pair), None)
        for look, match in sorted(found.looks.items())
        for pair in [(look.first, look.second)]
    ]
    answers = [
        (here, there, None, None, None, None, False, remaining, strangers)
        for (here, there, strangers), remaining in sorted(found.answers.items(), key=lambda item: item[0])
    ]
    columns = {name: kind for name, kind in MATCHES.items() if name not in ("method", "among")}
    frame = pl.DataFrame([*looks, *answers], schema=columns, orient="row")
    save_frame(frame.with_columns(method=pl.lit(METHOD), among=pl.lit(found.among)).cast(pl.Schema(MATCHES)), file)
