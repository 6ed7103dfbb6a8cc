"""Damaged files of every kind: nothing crashes, hangs, eats memory, or passes as good without its pixels."""

import io
import json
import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from samples import make_domain, picture, write_coco, write_csv, write_voc

from components.data.annotations.layouts import read_rows
from components.data.checks.pictures import inspect_image
from components.data.checks.validation import check_rows
from components.data.sources.images import UNDECODABLE, pixel_limit, read_picture
from components.domain.reading import load_domain
from components.domain.settings import Validation
from components.errors import DataError, DomainError, TesseraError

IMAGES, ANNOTATIONS = 1000, 200
SECONDS = 10.0  # for one file, on a machine as busy as it likes; a hang is longer
MEGABYTES = 400  # more than before, at most
LIMITS = Validation(max_megapixels=4.0)
FORMATS = {"JPEG": {"quality": 80}, "PNG": {}, "TIFF": {"compression": "tiff_lzw"}, "BMP": {}, "WEBP": {}, "GIF": {}}

Mutate = Callable[[bytearray, random.Random], bytes]


def flip_bits(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 3, 20])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncate(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data))])


def edit_header(data: bytearray, rng: random.Random) -> bytes:
    """Extreme numbers where sizes, offsets and counts stand."""
    for _ in range(rng.choice([1, 2, 4])):
        place = rng.randrange(min(len(data), 120))
        value = rng.choice([b"\0\0", b"\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\1"])
        data[place : place + len(value)] = value
    return bytes(data)


def cut_out(data: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 60)]
    return bytes(data)


def repeat(data: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.randrange(1, 200)]
    return bytes(data)


MUTATIONS: list[Mutate] = [flip_bits, truncate, edit_header, cut_out, repeat]


def memory() -> float:
    """Megabytes this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def create_originals() -> dict[str, bytes]:
    originals = {}
    image = Image.merge("RGB", [picture(seed, 64, 56) for seed in (1, 2, 3)])
    for form, options in FORMATS.items():
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        originals[form] = buffer.getvalue()
    return originals


def test_mutated_images_are_fit_with_all_their_pixels_or_refused_with_a_reason(tmp_path):
    rng, before, fit = random.Random(0), memory(), Counter[str]()
    originals = create_originals()
    path = tmp_path / "image"
    for number in range(IMAGES):
        form = list(FORMATS)[number % len(FORMATS)]
        path.write_bytes(rng.choice(MUTATIONS)(bytearray(originals[form]), rng))
        started = time.monotonic()
        with pixel_limit(LIMITS.max_megapixels):
            looked_at = inspect_image(path, [(0, 0, 20, 20)], LIMITS)
            if looked_at.problem is None:
                fit[form] += 1
                pixels = np.asarray(read_picture(path))  # as training decodes it
                assert pixels.shape == (looked_at.height, looked_at.width, 3)
                assert np.ptp(pixels) > 0
            else:
                assert all(word in str(looked_at.problem) for word in ("expected ", "; found ", ". "))
                refuse_or_decode(path)
        assert time.monotonic() - started < SECONDS, (number, form)
    assert memory() - before < MEGABYTES
    assert fit["PNG"] < 10 < fit["BMP"] < IMAGES // len(FORMATS), fit  # checksums tell; plain pixels cannot
    assert 100 < sum(fit.values()) < 700, fit


def refuse_or_decode(path: Path) -> None:
    """What validation refuses may still decode (too small, flat), but must not raise anything unforeseen."""
    try:
        read_picture(path)
    except (Image.DecompressionBombError, *UNDECODABLE):
        return


def test_a_png_with_a_spoilt_pixel_never_passes(tmp_path):
    """Whatever bit is flipped in compressed data under a checksum is noticed."""
    data = create_originals()["PNG"]
    start = data.index(b"IDAT") + 4
    rng, path = random.Random(1), tmp_path / "a.png"
    for _ in range(60):
        spoilt = bytearray(data)
        spoilt[rng.randrange(start, len(data) - 16)] ^= 1 << rng.randrange(8)
        path.write_bytes(spoilt)
        assert inspect_image(path, (), LIMITS).problem is not None


# Annotations


def check_paragraph(error: TesseraError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 5000


def spoil_text(text: str, rng: random.Random) -> bytes:
    """One edit a careless hand, a bad exporter or somebody hostile may make."""
    place = rng.randrange(len(text))
    odd = [
        *("", '"', "'", "<", ">", "{", "}", "[", "]", ",", ";", ":", "\n", "\0", "&", "*a", "&a ", "!!python/name:os "),
        *("-1", "1e999", "NaN", "9" * 40, "../../etc/passwd", "/etc/passwd", "null", "\ufeff", "\ud7ff", "é" * 9),
        *("<!DOCTYPE a [<!ENTITY b 'c'>]>", "[" * 3000, "<a>" * 3000, "2001-99-99"),
    ]
    length = rng.choice([0, 0, 1, 4, 40])
    edited = (text[:place] + rng.choice(odd) + text[place + length :]).encode()
    return truncate(bytearray(edited), rng) if rng.random() < 0.15 else edited


TARGETS = [
    ("labels.csv", {"layout": {"kind": "csv", "mask": "mask", "boxes": "boxes"}, "group": "lot"}, write_csv),
    ("Annotations/p0.xml", {"layout": "voc"}, write_voc),
    ("annotations.json", {"layout": "coco", "slices": ["site"]}, write_coco),
]


@pytest.mark.parametrize(("name", "changes", "write"), TARGETS, ids=["csv", "voc", "coco"])
def test_mutated_annotations_are_rows_or_one_paragraph(tmp_path, name, changes, write):
    raw = write(tmp_path / "raw", **({"lots": 2, "per_lot": 1} if name.endswith("csv") else {"pictures": 2}))
    rng, domain, text = random.Random(2), make_domain(**changes), (raw / name).read_text()
    before, outcomes = memory(), Counter[str]()
    for number in range(ANNOTATIONS // 4):
        (raw / name).write_bytes(spoil_text(text, rng))
        started = time.monotonic()
        try:
            validated = check_rows(read_rows(domain, raw), raw, domain)
        except DataError as error:
            outcomes["refused"] += 1
            check_paragraph(error)
        else:
            outcomes["read"] += 1
            assert validated.fit.height + len(validated.quarantined) == validated.images
            assert set(validated.fit["label"]) <= set(domain.classes)
            assert all(path.startswith(("images/", "JPEGImages/")) for path in validated.fit["path"])
        assert time.monotonic() - started < SECONDS, number
    assert memory() - before < MEGABYTES
    assert min(outcomes["read"], outcomes["refused"]) > 1, outcomes


def test_mutated_domain_files_are_domains_or_one_paragraph(tmp_path):
    path = tmp_path / "tiles/domain.yaml"
    path.parent.mkdir()
    prose = " ".join(["Parts of a line, photographed under a lamp."] * 30)  # most of a real file is free text
    options = {"layout": {"kind": "csv", "mask": "mask"}, "group": "lot", "schedule": {"cron": "0 3 * * 1"}}
    facts = make_domain(**options, description=prose)
    text = yaml.safe_dump(json.loads(facts.model_dump_json()), sort_keys=False)
    rng, outcomes = random.Random(3), Counter[str]()
    for number in range(ANNOTATIONS // 4):
        path.write_bytes(spoil_text(text, rng))
        started = time.monotonic()
        try:
            load_domain(path)
            outcomes["read"] += 1
        except DomainError as error:
            outcomes["refused"] += 1
            check_paragraph(error)
        assert time.monotonic() - started < SECONDS, number
    assert min(outcomes.values()) > 2, outcomes


def test_yaml_that_multiplies_itself_is_refused(tmp_path):
    path = tmp_path / "tiles/domain.yaml"
    path.parent.mkdir()
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 30)]
    path.write_text("\n".join([*lines, "classes: *a29"]))
    with pytest.raises(DomainError, match="an alias"):
        load_domain(path)


def test_deep_and_encoded_annotations_are_refused(tmp_path):
    raw = write_voc(tmp_path / "voc", pictures=2)
    hidden = "<?xml version='1.0' encoding='UTF-16'?><!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>"
    (raw / "Annotations/p0.xml").write_bytes(hidden.encode("utf-16"))
    rows = read_rows(make_domain(layout="voc"), raw)
    assert "UTF-16" in rows.filter(path="JPEGImages/p0.jpg")["problem"][0]["found"]
    raw = write_coco(tmp_path / "coco", pictures=2)
    text = (raw / "annotations.json").read_text()
    for spoilt in ("[" * 200_000, text.replace("cracked", "\\ud800"), text.replace("p0.jpg", "\\ud800.jpg")):
        (raw / "annotations.json").write_text(spoilt)
        with pytest.raises(DataError, match="invalid JSON"):
            read_rows(make_domain(layout="coco"), raw)
