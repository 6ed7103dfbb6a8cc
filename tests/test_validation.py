"""Validation and the stages around it: groups, duplicates, schema, report, and bytes that never change."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageFilter
from samples import (
    make_domain,
    picture,
    write_coco,
    write_csv,
    write_folders,
    write_instances,
    write_masks,
    write_parquet,
    write_voc,
    write_yolo,
)

from components.data.annotations.layouts import read_rows
from components.data.catalogue import render_table
from components.data.checks.duplicates import Found
from components.data.checks.features import load_known, load_near_duplicates, save_matches
from components.data.checks.outliers import find_outliers
from components.data.checks.pictures import Picture, create_thumbnail, inspect_image
from components.data.checks.report import render_report
from components.data.checks.validation import check_rows, warn_of_huge_groups
from components.data.manifest import create_schema, load_frame, load_manifest, require_manifest
from components.data.sources.images import ORIENTATION
from components.data.splits import assign_splits
from components.data.stages import STAGES, run_manifest, run_split, run_validate
from components.domain.domain import Domain
from components.domain.settings import Validation
from components.errors import CheckFailed, DataError
from components.models.features import run_features
from components.tasks import create_task
from components.workspace import REPOSITORY, Workspace


def check(domain, raw):
    return check_rows(read_rows(domain, raw), raw, domain)


def run_stages(workspace, domain):
    for stage in (STAGES["manifest"], run_features, STAGES["validate"], STAGES["split"]):
        stage(workspace, domain)
    return load_manifest(workspace.derived(domain.name) / "manifest.parquet", domain)


CASES = [
    ("folders", {"split": {"seed": 1}}, write_folders, {"images": 24}),
    ("csv", {"group": "lot", "slices": ["site"]}, write_csv, {"lots": 14}),
    ("voc", {}, write_voc, {"pictures": 14}),
    ("instances", {"classes": ["background", "object"]}, write_instances, {"pictures": 14}),
    ("parquet", {"group": "lot", "slices": ["site"]}, write_parquet, {"lots": 14}),
    ("yolo", {}, write_yolo, {"pictures": 14}),
    ("coco", {"slices": ["site"]}, write_coco, {"pictures": 14}),
    ("voc", {"task": "detection"}, write_voc, {"pictures": 14}),
    ("masks", {"classes": ["background", "class_1"], "split": {"seed": 1}}, write_masks, {"pictures": 48}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "changes", "write", "sizes"), CASES, ids=lambda value: str(value)[:9])
def test_every_layout_goes_through_all_stages_with_the_same_bytes(tmp_path, layout, changes, write, sizes):
    domain = make_domain(layout=layout, **changes)
    written = []
    for name in ("first", "second"):
        workspace = Workspace(tmp_path / name)
        write(workspace.raw(domain.name), **sizes)
        manifest = run_stages(workspace, domain)
        files = sorted(workspace.derived(domain.name).iterdir())
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert sorted(written[0]) == [
        "account.json",
        "aside.json",
        "features.parquet",
        "manifest.parquet",
        "matches.parquet",
        "rows.parquet",
        "valid.parquet",
        "validation.html",
        "validation.json",
    ]
    said = create_task(domain).columns()
    assert manifest.columns == [
        "id", "path", *said, "width", "height", "group", "mask", "boxes", "crop", *domain.slices, "split",
    ]  # fmt: skip
    assert set(manifest["split"]) == {"train", "val", "test"}
    record = json.loads(written[0]["validation.json"])
    assert record["ok"]
    assert record["images"] == record["fit"] == manifest.height
    assert str(tmp_path) not in written[0]["validation.html"].decode()


def test_a_group_is_the_picture_or_the_column(tmp_path):
    crops = check(make_domain(layout="voc"), write_voc(tmp_path / "voc"))
    assert crops.fit["group"].n_unique() == 6
    assert crops.fit["group"].to_list() == [name.split("#")[0] for name in crops.fit["id"]]
    lots = check(make_domain(layout="csv", group="lot"), write_csv(tmp_path / "csv"))
    assert sorted(set(lots.fit["group"])) == [f"lot{number}" for number in range(6)]
    assert lots.classes == {"good": {"images": 12, "groups": 6}, "cracked": {"images": 12, "groups": 6}}


# Near duplicates


def check_near(domain, workspace):
    """Checked with the near duplicates that the features stage finds."""
    run_manifest(workspace, domain)
    run_features(workspace, domain)
    folder, raw = workspace.derived(domain.name), workspace.raw(domain.name)
    return check_rows(
        load_frame(folder / "rows.parquet"), raw, domain, load_near_duplicates(folder / "matches.parquet")
    )


def test_a_picture_saved_again_brighter_smaller_and_as_jpeg_is_found(tmp_path):
    domain, workspace = make_domain(), Workspace(tmp_path)
    raw = write_folders(workspace.raw(domain.name))
    image = picture(900, 120, 100)
    image.save(raw / "good/a.png")
    Image.fromarray((np.asarray(image) * 0.8 + 30).astype(np.uint8)).save(raw / "good/b.png")
    image.resize((90, 75)).save(raw / "cracked/c.jpg", quality=70)
    validated = check_near(domain, workspace)
    names = ["cracked/c.jpg", "good/a.png", "good/b.png"]
    assert {path for pair in validated.near_duplicates for path in pair} == set(names)
    groups = validated.fit.filter(pl.col("path").is_in(names))
    assert groups["group"].n_unique() == 1
    assert groups["group"][0] == min(groups["id"])
    assert "different labels" in validated.warnings[0]


def test_near_duplicates_join_lots(tmp_path):
    domain, workspace = make_domain(layout="csv", group="lot"), Workspace(tmp_path)
    raw = write_csv(workspace.raw(domain.name))
    picture(0).save(raw / "images/lot0_good0.png")
    Image.fromarray(np.asarray(picture(0)) + np.uint8(3)).save(raw / "images/lot4_good0.png")
    groups = check_near(domain, workspace).fit["group"]
    assert sorted(set(groups)) == ["lot0", "lot1", "lot2", "lot3", "lot5"]


def test_a_split_is_remembered_and_growth_moves_nothing(tmp_path):
    domain, workspace = make_domain(), Workspace(tmp_path)
    write_folders(workspace.raw(domain.name), images=12)
    before = dict(run_stages(workspace, domain).select("id", "split").rows())
    write_folders(workspace.raw(domain.name), images=20)
    after = dict(run_stages(workspace, domain).select("id", "split").rows())
    assert len(after) == 40
    assert {identity: after[identity] for identity in before} == before
    again = Workspace(tmp_path / "clone")  # what is committed, and the images: no features, no frames
    shutil.copytree(tmp_path / "data", again.root / "data")
    assert dict(run_stages(again, domain).select("id", "split").rows()) == after


# Looks


def test_blurred_dark_and_bright_pictures_are_warned_of_but_kept(tmp_path):
    raw = write_folders(tmp_path, images=20)
    soft = picture(0, 200, 160).filter(ImageFilter.GaussianBlur(5))
    pixels = np.asarray(picture(1, 200, 160)).astype(int)
    soft.save(raw / "good/soft.png")
    Image.fromarray(np.clip(pixels - 120, 0, 255).astype(np.uint8)).save(raw / "good/night.png")
    Image.fromarray(np.clip(pixels + 120, 0, 255).astype(np.uint8)).save(raw / "good/flash.png")
    validated = check(make_domain(), raw)
    found = {(item.kind, item.path) for item in validated.outliers}
    assert found == {("blurred", "good/soft.png"), ("too dark", "good/night.png"), ("too bright", "good/flash.png")}
    assert validated.fit.height == 43
    assert any(line.startswith("Pictures blurred") for line in validated.to_record().warnings)
    page = render_report(
        validated,
        raw,
        assign_splits(validated.fit, [None] * validated.fit.height, [], {}, validated.domain.split).frame,
    )
    assert all(words in page for words in ("What to do", "Unlike the rest", "good/soft.png", '<th class="n">test</th>'))
    assert "http" not in page.replace("http://www.w3.org", "")


def test_few_pictures_or_equal_ones_have_no_outliers():
    assert find_outliers({f"{k}.png": Picture(sharpness=10.0**k) for k in range(5)}) == ()
    assert find_outliers({f"{k:02d}.png": Picture(sharpness=100.0 + k, dark=0.01 * (k % 3)) for k in range(40)}) == ()


def test_thumbnails_carry_no_metadata(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "SecretMaker"
    exif.get_ifd(0x8825)[1] = "N"
    options = {"exif": exif, "comment": b"SecretComment", "icc_profile": b"SecretProfile" * 20}
    picture(1, 300, 200).save(tmp_path / "a.jpg", **options)
    assert b"SecretComment" in (tmp_path / "a.jpg").read_bytes()
    for crop in (None, (0, 0, 60, 60)):
        data = create_thumbnail(tmp_path / "a.jpg", crop, 112, 1.0)
        assert b"Secret" not in data
        assert b"Exif" not in data


# Exact duplicates among crops


def test_a_copied_picture_is_kept_once_with_all_its_crops(tmp_path):
    raw = write_voc(tmp_path)
    (raw / "JPEGImages/p9.jpg").write_bytes((raw / "JPEGImages/p0.jpg").read_bytes())
    text = (raw / "Annotations/p0.xml").read_text().replace("p0.jpg", "p9.jpg")
    (raw / "Annotations/p9.xml").write_text(text)
    validated = check(make_domain(layout="voc"), raw)
    assert validated.fit.height == 12
    assert {item.path for item in validated.quarantined} == {"JPEGImages/p9.jpg"}
    (raw / "Annotations/p9.xml").write_text(text.replace("cracked", "good"))
    validated = check(make_domain(layout="voc"), raw)
    assert {item.path for item in validated.quarantined} == {"JPEGImages/p0.jpg", "JPEGImages/p9.jpg"}
    assert all("label conflict" in item.reason.found for item in validated.quarantined)


# Masks of crops, and the ceiling


@pytest.mark.parametrize("size", [(160, 121), (161, 120), (120, 160)])
def test_a_mask_of_a_crop_has_the_size_of_the_whole_picture(tmp_path, size):
    raw = write_instances(tmp_path, pictures=4)
    mask = raw / "instances/p2.png"
    Image.open(mask).resize(size, Image.Resampling.NEAREST).save(mask)
    validated = check(make_domain(layout="instances", classes=["background", "object"]), raw)
    assert {item.path for item in validated.quarantined} == {"images/p2.png"}
    (why,) = {str(item.reason) for item in validated.quarantined}
    assert "mask of 160 x 120 pixels" in why
    assert f"{size[0]} x {size[1]}" in why


@pytest.mark.parametrize(("damaged", "ok"), [(6, True), (7, False)])
def test_the_ceiling_of_the_quarantine_may_be_reached(tmp_path, damaged, ok):
    raw = write_folders(tmp_path, images=12)
    for number in range(damaged):
        (raw / f"good/good{number:02d}.png").write_bytes(b"no picture")
    validated = check(make_domain(validation={"max_quarantined": 0.25}), raw)
    assert len(validated.quarantined) == damaged
    assert validated.ok == ok


# The schema


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    domain = make_domain(split={"seed": 1})
    workspace = Workspace(tmp_path_factory.mktemp("manifest"))
    write_folders(workspace.raw(domain.name), images=24)
    return run_stages(workspace, domain)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pl.lit("cracks").alias("label"), "label"),
        (pl.lit(8).alias("width"), "width"),
        (pl.lit("x").alias("id"), "id"),
        (pl.lit(None, dtype=pl.String).alias("group"), "group"),
        (pl.lit("dev").alias("split"), "split"),
        (pl.lit("g").alias("group"), "every group in one split"),
        (pl.lit(1).alias("more"), "more"),
        (pl.col("path").reverse().alias("path"), "sorted by path and id"),
    ],
)
def test_a_manifest_that_breaks_its_schema_is_refused(manifest, change, words):
    with pytest.raises(DataError, match=words):
        require_manifest(manifest.with_columns(change), make_domain(), "manifest.parquet", split=True)


def test_a_good_manifest_keeps_its_schema(manifest):
    assert create_schema(make_domain(), split=True).validate(manifest, lazy=True).equals(manifest)


def test_missing_and_damaged_frames_name_the_stage_to_run(tmp_path):
    with pytest.raises(DataError, match=r"no such file.*dvc repro"):
        load_frame(tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="a parquet file"):
        load_frame(tmp_path / "rows.parquet")


def test_files_are_written_even_when_a_check_says_no(tmp_path):
    domain, workspace = make_domain(), Workspace(tmp_path)
    write_folders(workspace.raw(domain.name), images=2)
    run_manifest(workspace, domain)
    run_features(workspace, domain)
    with pytest.raises(CheckFailed, match=r"class 'good'.*found 2 \(1 more after this one\)"):
        run_validate(workspace, domain)
    folder = workspace.derived(domain.name)
    assert {file.name for file in folder.iterdir()} >= {"valid.parquet", "validation.json", "validation.html"}
    with pytest.raises(CheckFailed):
        run_split(workspace, domain)
    assert not (folder / "manifest.parquet").exists()


# Doors


def test_stages_start_without_heavy_libraries():
    heavy = ("torch", "scipy", "mlflow", "timm", "albumentations", "matplotlib", "pandera", "dvc", "prefect", "cv2")
    code = f"import sys, components.data.__main__; sys.exit([m for m in {heavy} if m in sys.modules] or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_table_of_domains_is_up_to_date():
    message = "run `python -m components.data table`"
    assert (REPOSITORY / "data/README.md").read_text() == render_table(Workspace(REPOSITORY)), message


def test_a_jpeg_is_judged_alike_without_its_colours_and_finest_detail(tmp_path: Path) -> None:
    """The short way (grey, shrunk by the decoder) and the long one (all pixels, as crops need them)."""
    rng = np.random.default_rng(0)
    for number, side in enumerate((64, 700, 1100)):
        path = tmp_path / f"{number}.jpg"
        shapes = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).resize((side, side - 7))
        exif = Image.Exif()
        exif[ORIENTATION] = number + 4
        shapes.save(path, quality=90, exif=exif)
        short, long = (inspect_image(path, crops, Validation()) for crops in ((), [(0, 0, 9, 9)]))
        assert short.problem is None
        assert (short.width, short.height, short.turned) == (long.width, long.height, long.turned)
        assert (short.width, short.height) == ((side, side - 7) if number == 0 else (side - 7, side))
        assert short.brightness == pytest.approx(long.brightness, abs=1)
        assert short.sharpness == pytest.approx(long.sharpness, rel=0.35)
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], whole[: len(whole) // 2] + whole[len(whole) // 2 + 40 :]):
            path.write_bytes(damaged)
            verdicts = [inspect_image(path, crops, Validation()).problem for crops in ((), [(0, 0, 9, 9)])]
            assert verdicts[0] == verdicts[1]
    Image.new("RGB", (80, 80), (200, 30, 30)).save(tmp_path / "red.jpg")
    assert "one value in every pixel" in str(inspect_image(tmp_path / "red.jpg", (), Validation()).problem)
    two = Image.new("RGB", (80, 80), (76, 76, 76))
    two.paste((255, 0, 0), (0, 0, 40, 80))  # the same grey
    two.save(tmp_path / "two.png")
    assert inspect_image(tmp_path / "two.png", (), Validation()).problem is None


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ("abcdefghijklmnopqrst", ""),
        ("aabcdefghijklmnopqrs", ""),  # a pair of twenty is no large group
        ("aaabcdefghijklmnopqr", "more than 10% of the 20 images: 'a' 3 (15%)"),
        ("aaaabcdefghhhijklmno", "'a' 4 (20%), 'h' 3 (15%)"),
        ("aaaaaaaaaaaaaabcdefg", "more than 10% of the 20 images: 'a' 14 (70%)"),
        ("a" * 20, ""),  # which the floors of groups speak of
    ],
)
def test_a_group_that_holds_much_is_warned_of(groups: str, told: str) -> None:
    frame = pl.DataFrame({"id": list(map(str, range(20))), "label": list("xy" * 10), "group": list(groups)})
    assert told in "".join(warn_of_huge_groups(frame))
    assert bool(told) == bool(warn_of_huge_groups(frame))


def test_a_group_that_holds_most_of_a_class_is_warned_of() -> None:
    frame = pl.DataFrame({"id": list("123456"), "label": list("xxxyyy"), "group": list("aabcde")})
    assert "2 of 3 of 'x'" in "".join(warn_of_huge_groups(frame))


# Groups: what is joined, reported, or not looked for


@pytest.fixture
def copies(tmp_path: Path) -> Workspace:
    """Forty pictures, of which six show one thing under two labels, and a pair that shows another one."""
    workspace = Workspace(tmp_path)
    raw = write_folders(workspace.raw("tiles"), images=16)
    image = np.asarray(picture(900, 120, 100)).astype(int)
    for number in range(6):
        pixels = np.clip(image * (1 - number / 20) + number, 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(raw / f"{'good' if number < 5 else 'cracked'}/copy{number}.png")
    return workspace


def run_all(workspace: Workspace, domain: Domain) -> dict[str, Any]:
    run_manifest(workspace, domain)
    run_features(workspace, domain)
    run_validate(workspace, domain)
    run_split(workspace, domain)
    return json.loads((workspace.derived(domain.name) / "validation.json").read_text())


def test_near_duplicates_are_joined_reported_or_not_looked_for(copies: Workspace) -> None:
    file, found = copies.derived("tiles") / "matches.parquet", {}
    for mode in ("join", "off", "report", "join"):
        copies.splits("tiles").unlink(missing_ok=True)
        domain = make_domain(name="tiles", groups={"near_duplicates": mode})
        record = run_all(copies, domain)
        manifest = load_frame(copies.derived("tiles") / "manifest.parquet")
        assert record["groups"] == manifest["group"].n_unique() == (33 if mode == "join" else 38)
        assert bool(record["near_duplicate_pairs"]) == (mode != "off")
        assert any("Groups of more than 10%" in text for text in record["warnings"]) == (mode == "join")
        assert bool(record["suspicious_labels"]) == (mode != "off")
        page = (copies.derived("tiles") / "validation.html").read_text()
        assert ("Large groups" in page) == (mode == "join")
        assert ("are only shown" in page) == (mode == "report")
        assert "Few groups in test" in page
        assert any("Few groups in test" in text for text in record["warnings"])
        assert found.setdefault(mode, (record, file.read_bytes())) == (record, file.read_bytes())


@pytest.mark.slow
def test_a_check_repeated_or_after_a_new_title_gives_the_same_bits(copies: Workspace) -> None:
    names = ("matches.parquet", "features.parquet", "valid.parquet", "validation.json", "manifest.parquet")
    seen = []
    for title in ("", "", "Tiles", "Tiles of plant 2"):
        run_all(copies, make_domain(name="tiles", title=title))
        seen.append([(copies.derived("tiles") / name).read_bytes() for name in names])
    assert seen == [seen[0]] * 4


def test_pairs_that_share_a_picture_are_not_called_wrong(copies: Workspace) -> None:
    domain = make_domain(name="tiles")
    run_all(copies, domain)
    file = copies.derived("tiles") / "matches.parquet"
    known = load_known(file)
    save_matches(Found(known.looks, dict.fromkeys(known.near, 0.85), known.among), file)
    run_validate(copies, domain)
    record = json.loads((copies.derived("tiles") / "validation.json").read_text())
    assert record["pairs_that_share_a_picture"] == record["near_duplicate_pairs"] != []
    assert record["suspicious_labels"] == []
    assert not any("different labels" in text for text in record["warnings"])
    assert record["groups"] == 33
    page = (copies.derived("tiles") / "validation.html").read_text()
    assert "Pairs that share a picture" in page
    assert "Near duplicates" not in page
