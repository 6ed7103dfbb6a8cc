"""The validation report of class maps: shares of pixels, and pictures with their classes drawn over them."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tiny
from PIL import Image

from components.data.checks import class_maps
from components.data.checks.pictures import Picture
from components.data.checks.report import render_report
from components.data.checks.validation import Validated
from components.domain.domain import Domain
from components.records.maps import IGNORE, decode_map, encode_map


@pytest.fixture
def domain() -> Domain:
    return tiny.create_domain(
        task={"kind": "segmentation", "background": "dark"}, layout={"kind": "csv", "mask": "mask"}
    )


@pytest.fixture
def fit(tmp_path: Path) -> pl.DataFrame:
    return tiny.write_masked_images(tmp_path)


def test_coverage_counts_pixels_empty_pictures_and_what_is_not_labelled(fit: pl.DataFrame, domain: Domain) -> None:
    first = decode_map(fit["class_map"][0]).copy()
    first[:12] = IGNORE
    counts = [int((first == k).sum()) for k in range(3)]
    maps, pixels = [encode_map(first), *fit["class_map"][1:]], [counts, *fit["pixels"][1:].to_list()]
    frame = fit.with_columns(class_map=pl.Series(maps), pixels=pl.Series(pixels))
    coverage = class_maps.measure_coverage(frame, domain)
    assert coverage is not None
    every = np.concatenate([decode_map(data).reshape(-1) for data in maps])
    known = every[every != IGNORE]
    assert list(coverage.shares.values()) == pytest.approx([(known == k).mean() for k in range(3)])
    assert coverage.unlabelled == pytest.approx((every == IGNORE).mean())
    alone = sum(labels == ["dark"] for labels in frame["labels"].to_list())
    assert 0 < alone == coverage.empty
    assert f"{alone} images show nothing but dark. 1.39 % of the pixels are not labelled" in coverage.describe()
    assert class_maps.measure_coverage(fit.drop("class_map"), domain) is None


def test_classes_are_drawn_in_their_colours_over_pictures(fit: pl.DataFrame, domain: Domain, tmp_path: Path) -> None:
    row = next(row for row in fit.iter_rows(named=True) if row["labels"] == ["dark", "red"])
    data = class_maps.create_overlay(tmp_path / row["path"], row["class_map"], 224, domain)
    assert data is not None
    drawn = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert drawn.shape == (24, 32, 3)
    plain = np.asarray(Image.open(tmp_path / row["path"])).astype(int)
    colour = np.array(class_maps.choose_colour("red", domain))
    there = decode_map(row["class_map"]) == domain.classes.index("red")
    inside, expected = drawn[there].mean(axis=0), plain[there].mean(axis=0)
    assert np.abs(inside - colour).sum() < 0.6 * np.abs(expected - colour).sum()
    assert drawn[~there].mean(axis=0) == pytest.approx(plain[~there].mean(axis=0), abs=8)
    assert class_maps.create_overlay(tmp_path / "missing.png", row["class_map"], 224, domain) is None


def test_the_report_shows_both_and_is_the_same_twice(fit: pl.DataFrame, domain: Domain, tmp_path: Path) -> None:
    counts = {name: {"images": 5, "groups": 5} for name in domain.classes}
    pictures = dict.fromkeys(fit["path"], Picture(width=32, height=24, brightness=100, sharpness=10))
    validated = Validated(domain, 36, fit, (), (), counts, (), (), pictures, ())
    page = render_report(validated, tmp_path, fit)
    assert page == render_report(validated, tmp_path, fit)
    assert page.count('<th class="n">pixels</th>') == 1
    assert "dark and nothing else" in page
    assert "An image counts for every class that it shows" in page
    shares = class_maps.measure_coverage(fit, domain)
    assert shares is not None
    assert all(f'<td class="n">{class_maps.format_share(share)}</td>' in page for share in shares.shares.values())
