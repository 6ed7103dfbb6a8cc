"""Whatever is wrong with somebody's images, the answer is one paragraph or a row in quarantine, never a traceback."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import (
    make_domain,
    picture,
    save_coco,
    save_ids,
    save_mask,
    save_picture,
    write_annotation,
    write_coco,
    write_csv,
    write_folders,
    write_instances,
    write_masks,
    write_multilabel,
    write_parquet,
    write_table,
    write_voc,
)

from components.data.annotations.layouts import read_rows
from components.data.checks.pictures import inspect_image, read_fit_picture
from components.data.checks.validation import Validated, check_rows, require_valid
from components.data.sources.images import pixel_limit, read_picture
from components.domain.settings import Validation
from components.errors import CheckFailed, DataError, DomainError, TesseraError
from components.tasks import create_task

FOLDERS = {"layout": "folders"}
MASKED = {"layout": {"kind": "folders", "masks": "masks"}}
CSV = {"layout": {"kind": "csv", "mask": "mask", "boxes": "boxes"}}
VOC = {"layout": "voc"}
INSTANCES = {"layout": "instances", "classes": ["background", "object"]}
PARQUET = {"layout": "parquet"}
COCO = {"layout": "coco"}
MASKS = {"layout": {"kind": "masks", "ids": {"crack": 1}}, "classes": ["background", "crack"]}
MANY = {"layout": "csv", "task": "multilabel"}


def write_masked(raw: Path) -> Path:
    return write_folders(raw, masks=True)


WRITERS: dict[str, Callable[[Path], Path]] = {
    str(FOLDERS): write_folders,
    str(MASKED): write_masked,
    str(CSV): write_csv,
    str(VOC): write_voc,
    str(INSTANCES): write_instances,
    str(PARQUET): write_parquet,
    str(COCO): write_coco,
    str(MASKS): write_masks,
    str(MANY): write_multilabel,
}


@dataclass(frozen=True)
class Case:
    """How a good data set is spoilt, and words the user must be given for it."""

    name: str
    spoil: Callable[[Path], Any]
    words: tuple[str, ...]
    base: dict[str, Any] = field(default_factory=lambda: FOLDERS)
    changes: dict[str, Any] = field(default_factory=dict)


# Spoiling: each takes the raw folder


def save(name: str, image: Image.Image, **options: Any) -> Callable[[Path], None]:
    return lambda raw: image.save(raw / name, **options)


def write(name: str, data: bytes) -> Callable[[Path], Any]:
    return lambda raw: (raw / name).write_bytes(data)


def remove(name: str) -> Callable[[Path], None]:
    return lambda raw: (raw / name).unlink()


def truncate(name: str, share: float) -> Callable[[Path], None]:
    def spoil(raw: Path) -> None:
        picture(5, 200, 200).save(raw / name, quality=90)
        data = (raw / name).read_bytes()
        (raw / name).write_bytes(data[: int(len(data) * share)])

    return spoil


def table(*rows: tuple[str, ...]) -> Callable[[Path], Path]:
    head = ("image", "label", "mask", "boxes")
    return lambda raw: write_table(raw / "labels.csv", [head, *rows])


def append_line(line: str) -> Callable[[Path], Any]:
    def spoil(raw: Path) -> None:
        with (raw / "labels.csv").open("a") as file:
            file.write(f"{line}\n")

    return spoil


def copy(source: str, target: str) -> Callable[[Path], Any]:
    return lambda raw: shutil.copyfile(raw / source, raw / target)


def link_outside(raw: Path) -> None:
    secret = raw.parent / "secret.png"
    picture(9).save(secret)
    (raw / "good/link.png").symlink_to(secret)


def link_folder(raw: Path) -> None:
    (raw.parent / "elsewhere").mkdir()
    (raw / "good/folder").symlink_to(raw.parent / "elsewhere")


def bomb(raw: Path) -> None:
    """A PNG of a few hundred bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return len(data).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")

    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    (raw / "good/bomb.png").write_bytes(data)


def deep(raw: Path) -> None:
    Image.fromarray(np.arange(2500, dtype=np.uint16).reshape(50, 50)).save(raw / "good/deep.png")


def deep_colour(raw: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(raw / "good/deep.png"), np.random.default_rng(0).integers(0, 65535, (40, 40, 3), dtype=np.uint16))


def animate(raw: Path) -> None:
    frames = [picture(number) for number in (501, 502)]
    frames[0].save(raw / "good/moving.png", format="GIF", save_all=True, append_images=frames[1:])


def transparent(raw: Path) -> None:
    image = picture(8).convert("RGBA")
    image.putalpha(128)
    image.save(raw / "good/glass.png")


def two_of_one_name(raw: Path) -> None:
    save_picture(raw / "more/a.png", 1)
    save_picture(raw / "images/a.png", 2)
    table(("a.png", "good", "", ""))(raw)


def one_image_class(raw: Path) -> None:
    for index in range(1, 6):
        (raw / f"cracked/cracked{index:02d}.png").unlink()


def empty_raw(raw: Path) -> None:
    shutil.rmtree(raw)
    raw.mkdir()


def semicolons(raw: Path) -> None:
    path = raw / "labels.csv"
    path.write_text(path.read_text().replace(",", ";"))


def annotate(*box: int, label: str = "good") -> Callable[[Path], Path]:
    x0, y0, x1, y1 = box
    return lambda raw: write_annotation(raw / "Annotations/p0.xml", "p0.jpg", [(label, (x0, y0, x1, y1))])


def edit_coco(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def spoil(raw: Path) -> None:
        content = json.loads((raw / "annotations.json").read_text())
        change(content)
        save_coco(raw / "annotations.json", *(content[key] for key in ("images", "annotations", "categories")))

    return spoil


def annotate_coco(**facts: Any) -> Callable[[Path], Any]:
    return edit_coco(lambda content: content["annotations"][0].update(facts))


ERRORS = [
    Case("missing raw folder", shutil.rmtree, ("no such folder", "tessera import", "dvc pull")),
    Case("empty raw folder", empty_raw, ("an empty folder", "tessera import")),
    Case(
        "unknown class folder",
        lambda raw: save_picture(raw / "craked/a.png", 1),
        ("'craked'", "good, cracked", "Did you mean 'cracked'?"),
    ),
    Case(
        "folders where there are none",
        lambda raw: (empty_raw(raw), save_picture(raw / "a.png", 1)),
        ("one folder per class", "no such folders"),
    ),
    Case(
        "a missing images folder",
        write("x.txt", b""),
        ("a folder 'pictures'", "no such folder"),
        changes={"layout": {"kind": "folders", "images": "pictures"}},
    ),
    Case(
        "layout path outside",
        write("x.txt", b""),
        ("inside the raw folder", "'../..'"),
        changes={"layout": {"kind": "folders", "images": "../.."}},
    ),
    Case("link outside", link_outside, ("inside the raw folder", "a link to", "cache.type")),
    Case("link to a folder", link_folder, ("inside the raw folder", "a link to")),
    Case(
        "group without a table",
        write("x.txt", b""),
        ("which only the layouts csv", "lot"),
        changes={"group": "lot"},
    ),
    Case("no table", remove("labels.csv"), ("the table labels.csv", "no such file"), CSV),
    Case("empty csv", write("labels.csv", b""), ("an empty file", "header line"), CSV),
    Case("csv with only a header", table(), ("at least one row", "only a header"), CSV),
    Case(
        "csv that is an image",
        lambda raw: picture(1).save(raw / "labels.csv", format="PNG"),
        ("a csv table", "UTF-8"),
        CSV,
    ),
    Case("csv with ragged lines", append_line("a,b,c,d,e,f,g,h"), ("a csv table",), CSV),
    Case(
        "csv missing a column",
        table(("images/lot0_good0.png", "good", "", "")),
        ("the columns lot", "'image', 'label', 'mask', 'boxes'"),
        CSV,
        {"group": "lot"},
    ),
    Case("csv with semicolons", semicolons, ("the columns image", "separator must be a comma"), CSV),
    Case(
        "csv with an empty label",
        append_line("images/lot0_good0.png,,,,lot0,north"),
        ("line 26", "'label'", "an empty cell"),
        CSV,
    ),
    Case(
        "csv with an unknown label",
        append_line("images/lot0_good0.png,god,,,lot0,north"),
        ("'god'", "Did you mean 'good'?"),
        CSV,
    ),
    Case(
        "csv path upwards",
        append_line("../../etc/passwd,good,,,lot0,north"),
        ("line 26", "inside the raw folder", "'../../etc/passwd'"),
        CSV,
    ),
    Case(
        "csv absolute path",
        append_line("/etc/passwd,good,,,lot0,north"),
        ("inside the raw folder", "'/etc/passwd'"),
        CSV,
    ),
    Case("csv Windows path", append_line("C:\\a.png,good,,,lot0,north"), ("inside the raw folder",), CSV),
    Case(
        "csv mask upwards",
        append_line("images/lot0_good0.png,good,../x.png,,lot0,north"),
        ("inside the raw folder", "'../x.png'"),
        CSV,
    ),
    Case(
        "two images with one name in two folders",
        two_of_one_name,
        ("one file 'a.png'", "images/a.png, more/a.png", "instead of the bare name"),
        CSV,
    ),
    Case(
        "voc without annotations",
        lambda raw: shutil.rmtree(raw / "Annotations"),
        ("a folder 'Annotations'", "no such folder"),
        VOC,
    ),
    Case("voc with an unknown class", annotate(5, 5, 40, 40, label="Good"), ("'Good'", "Did you mean 'good'?"), VOC),
    Case(
        "instances without masks",
        lambda raw: shutil.rmtree(raw / "instances"),
        ("a folder 'instances'", "no such folder"),
        INSTANCES,
    ),
    Case("no parquet", remove("labels.parquet"), ("the table labels.parquet", "no such file"), PARQUET),
    Case("damaged parquet", write("labels.parquet", b"PAR1 no PAR1"), ("a parquet table",), PARQUET),
    Case(
        "a flag that is none",
        append_line("images/p00.png,2,1,lot0"),
        ("labels.csv, line 26", "0 or 1 in column 'good'", "'2'", "separator"),
        MANY,
    ),
    Case("a class without a column", write("x.txt", b""), ("the columns pit",), MANY, {"classes": ["good", "pit"]}),
    Case(
        "broken JSON",
        write("annotations.json", b'{"images": [\n}'),
        ("invalid JSON", "line 2 column 1"),
        COCO,
    ),
    Case("JSON of another kind", write("annotations.json", b"[]"), ("the lists images", "no list 'images'"), COCO),
    Case(
        "coco path upwards",
        edit_coco(lambda content: content["images"][1].update(file_name="../../x.png")),
        ("annotations.json, images[1]", "inside the raw folder"),
        COCO,
    ),
    Case(
        "coco id that is a list",
        annotate_coco(image_id=[1]),
        ("annotations.json, annotations[0]", "image_id and category_id"),
        COCO,
    ),
    Case(
        "coco with an unknown category",
        edit_coco(lambda content: content["categories"][0].update(name="Good")),
        ("'Good'", "Did you mean 'good'?"),
        COCO,
    ),
    Case(
        "voc declared as folders",
        lambda raw: (empty_raw(raw), write_voc(raw)),
        ("This looks like voc: write `layout: voc`",),
    ),
]

QUARANTINED = [
    Case("good/text.jpg", write("good/text.jpg", b"not a picture"), ("in another format",)),
    Case("good/empty.png", write("good/empty.png", b""), ("an empty file",)),
    Case("good/cut.jpg", truncate("good/cut.jpg", 0.6), ("decoded to its end", "truncated")),
    Case("good/cut.png", truncate("good/cut.png", 0.4), ("decoded to its end",)),
    Case("good/deep.png", deep, ("8 bits per channel", "16-bit", "intensity window")),
    Case("good/deep.png", deep_colour, ("8 bits per channel", "16-bit")),
    Case("good/inks.jpg", save("good/inks.jpg", picture(3).convert("CMYK")), ("colour mode CMYK", "Convert it to RGB")),
    Case("good/moving.png", animate, ("one picture per file", "2 frames")),
    Case("good/glass.png", transparent, ("transparent pixels", "Flatten")),
    Case("good/bomb.png", bomb, ("at most 100 megapixels", "validation.max_megapixels")),
    Case(
        "good/large.png",
        save("good/large.png", picture(4, 150, 150)),
        ("at most 0.02 megapixels", "150 x 150"),
        changes={"validation": {"max_megapixels": 0.02}},
    ),
    Case("good/tiny.png", save("good/tiny.png", picture(4, 15, 40)), ("at least 16 pixels", "15 x 40")),
    Case("good/flat.png", save("good/flat.png", Image.new("RGB", (40, 40), (9, 8, 7))), ("one value in every pixel",)),
    Case("good/notes.txt", write("good/notes.txt", b"hello"), ("an image", "a .txt file")),
    Case("good/vector.eps", write("good/vector.eps", b"%!PS-Adobe-3.0 EPSF-3.0"), ("an image", "a .eps file")),
    Case(
        "good/vector.png",
        write("good/vector.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("in another format",),
    ),
    Case("loose.png", save("loose.png", picture(6)), ("inside a class folder",)),
    Case(
        "good/copy.png",
        copy("good/good00.png", "good/good00b.png"),
        ("each picture once", "good/good00.png, which is kept"),
    ),
    Case(
        "good/good00.png",
        copy("good/good00.png", "cracked/good00.png"),
        ("label conflict", "cracked/good00.png (cracked)"),
    ),
    Case(
        "cracked/good00.png",
        copy("good/good00.png", "cracked/good00.png"),
        ("label conflict", "good/good00.png (good)"),
    ),
    Case("good/good00.png", remove("masks/good/good00.png"), ("its mask good00.png", "no such file"), MASKED),
    Case(
        "good/good00.png",
        lambda raw: save_mask(raw / "masks/good/good00.png", width=30),
        ("48 x 40 pixels", "30 x 40"),
        MASKED,
    ),
    Case("good/good00.png", write("masks/good/good00.png", b"text"), ("mask good00.png", "in another format"), MASKED),
    Case(
        "good/good00.png",
        truncate("masks/good/good00.png", 0.6),
        ("mask good00.png", "damaged or truncated data"),
        MASKED,
    ),
    Case(
        "good/good00.jpg",
        save("good/good00.jpg", picture(7)),
        ("its own mask", "shared by good/good00.jpg, good/good00.png"),
        MASKED,
    ),
    Case(
        "images/none.png",
        append_line("images/none.png,good,,,lot0,north"),
        ("listed image images/none.png", "no such file"),
        CSV,
    ),
    Case("images/lot0_good0.png", append_line("images/lot0_good0.png,cracked,,,lot0,north"), ("label conflict",), CSV),
    Case(
        "images/x.png",
        lambda raw: (save_picture(raw / "images/x.png", 3), append_line("images/x.png,good,,1 2 3,lot0,north")(raw)),
        ("boxes as `x0 y0 x1 y1`", "1 2 3"),
        CSV,
    ),
    Case(
        "images/x.png",
        lambda raw: (save_picture(raw / "images/x.png", 3), append_line("images/x.png,good,,1 2 90 9,lot0,north")(raw)),
        ("inside the 48 x 40 picture", "1 2 90 9"),
        CSV,
    ),
    Case(
        "JPEGImages/p0.jpg",
        write("Annotations/p0.xml", b"<annotation><object>"),
        ("Pascal VOC annotation", "Export"),
        VOC,
    ),
    Case(
        "JPEGImages/p0.jpg",
        write("Annotations/p0.xml", b"<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>"),
        ("entity declaration",),
        VOC,
    ),
    Case(
        "JPEGImages/p0.jpg",
        write("Annotations/p0.xml", b"<annotation><object><name>good</name></object></annotation>"),
        ("without a name or a bndbox",),
        VOC,
    ),
    Case("JPEGImages/p0.jpg", remove("Annotations/p0.xml"), ("an annotation file of the same name",), VOC),
    Case("Annotations/p0.xml", remove("JPEGImages/p0.jpg"), ("one picture 'p0.jpg'", "no such file"), VOC),
    Case("JPEGImages/p0.jpg", annotate(5, 5, 200, 40), ("inside the 96 x 80 picture", "4 4 200 40"), VOC),
    Case("JPEGImages/p0.jpg", annotate(40, 5, 20, 40), ("x0 < x1", "39 4 20 40"), VOC),
    Case("JPEGImages/p0.jpg", annotate(5, 5, 9, 40), ("at least 16 x 16 pixels", "5 x 36"), VOC),
    Case(
        "images/p0.png", save("instances/p0.png", Image.new("RGB", (160, 120))), ("an id mask", "mode RGB"), INSTANCES
    ),
    Case("images/p0.png", remove("instances/p0.png"), ("one id mask of the same name", "none"), INSTANCES),
    Case(
        "images/p0.png",
        lambda raw: save_mask(raw / "instances/p0.png", width=100),
        ("160 x 120 pixels", "100 x 40"),
        INSTANCES,
    ),
    Case("images/p0.jpg", annotate_coco(bbox=[5, 5, 200, 40]), ("inside the 96 x 80 picture", "5 5 205 45"), COCO),
    Case("images/p0.jpg", annotate_coco(bbox=[5, float("nan"), 20, 40]), ("a bbox [x, y, width, height]", "nan"), COCO),
    Case("images/p0.jpg", annotate_coco(category_id=9), ("an id that the file declares", "category_id 9"), COCO),
    Case("annotations.json", annotate_coco(image_id=99), ("an id that the file declares", "image_id 99"), COCO),
    Case("images/p1.jpg", remove("images/p1.jpg"), ("listed image p1.jpg", "no such file"), COCO),
    Case("images/new.png", save("images/new.png", picture(8)), ("an entry in `images`",), COCO),
    Case(
        "images/p0.jpg",
        edit_coco(lambda content: content["images"][0].update(width=80, height=96)),
        ("a picture of 80 x 96 pixels, as its annotation says", "96 x 80"),
        COCO,
    ),
    Case("images/new.png", save("images/new.png", picture(8)), ("a line in labels.csv",), CSV),
    Case("images/p00.png", remove("masks/p00.png"), ("one mask of the same name", "none"), MASKS),
    Case("masks/p00.png", remove("images/p00.png"), ("a picture of the same name as the mask",), MASKS),
    Case(
        "images/p00.png",
        lambda raw: save_ids(raw / "masks/p00.png", [1, 7]),
        ("the values of `ids`", "found 7 (96 pixels)"),
        MASKS,
    ),
    Case("images/p01.png", lambda raw: save_ids(raw / "masks/p01.png", [1], 30), ("48 x 40 pixels", "30 x 40"), MASKS),
    Case(
        "images/p00.png",
        write("masks/p00.png", b"text"),
        ("a mask masks/p00.png", "a file that is not an image"),
        MASKS,
    ),
    Case(
        "good/dark.jpg",
        save("good/dark.jpg", Image.fromarray(np.random.default_rng(0).integers(0, 3, (40, 48), dtype=np.uint8))),
        ("a picture of something", "all black"),
    ),
]

PROBLEMS = [
    Case(
        "a class folder with one image",
        one_image_class,
        ("at least 4 images of class 'cracked'", "found 1", "min_images_per_class"),
    ),
    Case("a class without a folder", lambda raw: shutil.rmtree(raw / "cracked"), ("class 'cracked'", "found 0")),
    Case(
        "too few groups",
        write("x.txt", b""),
        ("at least 7 groups of class 'good'", "found 6", "min_groups_per_class"),
        changes={"validation": {"min_groups_per_class": 7}},
    ),
    Case(
        "too much in quarantine",
        write("good/text.jpg", b"text"),
        ("at most 5.0% of the images", "1 of 13 (7.7%)", "max_quarantined"),
    ),
    Case(
        "a group is missing",
        append_line("images/x.png,good,,,,north"),
        ("a value in column 'lot'", "1 empty", "images/x.png"),
        CSV,
        {"group": "lot"},
    ),
    Case(
        "a slice is missing",
        append_line("images/x.png,good,,,lot0,"),
        ("a value in column 'site'", "1 empty"),
        CSV,
        {"group": "lot", "slices": ["site"]},
    ),
]


def validate(case: Case, raw: Path, **further: Any) -> Validated:
    WRITERS[str(case.base)](raw)
    if "is missing" in case.name:
        save_picture(raw / "images/x.png", 3)
    case.spoil(raw)
    domain = make_domain(**(case.base | case.changes | further))
    return check_rows(read_rows(domain, raw), raw, domain)


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case.name)
def test_a_doubtful_tree_is_one_paragraph(tmp_path, case):
    with pytest.raises(DataError) as caught:
        validate(case, tmp_path / "raw")
    assert all(word in str(caught.value) for word in case.words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", QUARANTINED, ids=lambda case: f"{case.name}: {case.words[0]}")
def test_an_unfit_file_is_quarantined_with_its_reason(tmp_path, case):
    validated = validate(case, tmp_path / "raw")
    reasons = [item.reason for item in validated.quarantined if item.path == case.name]
    if "each picture once" in case.words:
        reasons = [item.reason for item in validated.quarantined]
    assert reasons, [(item.path, item.reason) for item in validated.quarantined]
    assert all(word in str(reasons[0]) for word in case.words), reasons
    assert validated.fit.height + len(validated.quarantined) == validated.images
    assert len(validated.quarantined) <= 6


@pytest.mark.parametrize("case", PROBLEMS, ids=lambda case: case.name)
def test_a_problem_of_the_whole_stops_the_run(tmp_path, case):
    validated = validate(case, tmp_path / "raw")
    with pytest.raises(CheckFailed) as caught:
        require_valid(validated, Path("validation.html"))
    assert all(word in str(caught.value) for word in case.words), str(caught.value)
    assert caught.value.exit_code == 1
    assert not validated.to_record().ok


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ({"layuot": "folders"}, ("'layuot'", "Did you mean 'layout'?")),
        ({"layout": "folder"}, ("'folders'", "'csv'", "'voc'", "'instances'", "'coco'", "'masks'")),
        ({"layout": {"kind": "csv", "tabel": "x"}}, ("tabel", "Did you mean 'table'?")),
        ({"classes": ["good"]}, ("classes", "at least 2")),
        ({"validation": {"min_side": 0}}, ("validation.min_side",)),
    ],
)
def test_a_wrong_domain_file_names_what_is_allowed(yaml, words):
    with pytest.raises(DomainError) as caught:
        create_task(make_domain(**yaml))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_pixels_are_refused_wherever_they_are_decoded(tmp_path, mode):
    """Pillow clips 16 bits to white on its way to RGB."""
    values = np.linspace(0, 60_000, 48 * 40).reshape(40, 48)
    Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])).save(tmp_path / "a.tif")
    assert "8 bits per channel" in str(inspect_image(tmp_path / "a.tif", (), Validation()).problem)
    with pytest.raises(ValueError, match="8 bits per channel"):
        read_picture(tmp_path / "a.tif")


def _with_hole() -> Image.Image:
    image = picture(1).convert("RGBA")
    image.putpixel((3, 3), (9, 9, 9, 0))
    return image


UNSERVED = {
    "transparent": (_with_hole, "transparent pixels"),
    "deep": (lambda: Image.fromarray(np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30), "8 bits per channel"),
    "large": (lambda: picture(1, 120, 100), "at most 0.01 megapixels"),
    "narrow": (lambda: picture(1, 48, 9), "sides of at least 16"),
    "one value": (lambda: Image.new("RGB", (48, 40), (7, 7, 7)), "one value in every pixel"),
}


@pytest.mark.parametrize(("make", "words"), UNSERVED.values(), ids=UNSERVED)
def test_serving_refuses_what_check_refuses(tmp_path, make, words):
    limits = Validation(max_megapixels=0.01)
    make().save(path := tmp_path / "a.png")
    problem = inspect_image(path, (), limits).problem
    assert words in str(problem)
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(ValueError, match=f"^{re.escape(str(problem))}$"):
            read_fit_picture(source, limits)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_serving_names_what_cannot_be_decoded_as_check_does(tmp_path, content):
    (path := tmp_path / "a.png").write_bytes(content)
    problem = inspect_image(path, (), Validation()).problem
    with pytest.raises(ValueError, match=f"^{re.escape(str(problem))}$"):
        read_fit_picture(io.BytesIO(content), Validation())


# What is fine


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_plain_mode_is_fit(tmp_path, mode):
    image = picture(1).convert("RGB").convert(mode)
    image.save(tmp_path / "a.png")
    looked_at = inspect_image(tmp_path / "a.png", (), Validation())
    assert (looked_at.problem, looked_at.width, looked_at.height) == (None, 48, 40)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp", ".gif"])
def test_every_format_is_fit_in_a_fresh_process(tmp_path, suffix):
    """Pillow registers decoders as it goes, so that what was opened before must not matter."""
    path = tmp_path / f"a{suffix}"
    picture(1).save(path)
    code = (
        "import sys; from pathlib import Path; from components.data.checks.pictures import inspect_image;"
        "from components.domain.domain import Validation;"
        "problem = inspect_image(Path(sys.argv[1]), (), Validation()).problem; sys.exit(problem and str(problem))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_exif_rotation_is_undone_before_sizes_are_compared(tmp_path):
    raw = write_folders(tmp_path, masks=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(50, 48, 40).save(raw / "good/turned.jpg", exif=exif)
    save_mask(raw / "masks/good/turned.png", width=40, height=48)
    domain = make_domain(**MASKED)
    validated = check_rows(read_rows(domain, raw), raw, domain)
    assert not validated.quarantined
    assert validated.fit.filter(path="good/turned.jpg").select("width", "height").row(0) == (40, 48)
    assert "Turned upright by their EXIF orientation: 1 (first: good/turned.jpg)" in validated.warnings[0]


def test_one_name_in_two_folders_with_other_bytes_is_a_warning(tmp_path):
    raw = write_folders(tmp_path)
    picture(51).save(raw / "good/same.png")
    picture(52).save(raw / "cracked/same.png")
    validated = check_rows(read_rows(make_domain(), raw), raw, make_domain())
    assert validated.ok
    assert "more than one folder, with different pictures: 1 (such as 'same')" in validated.warnings[0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tif", "webp"])
def test_damaged_bytes_never_raise(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    picture(1, 32, 32).convert("RGB").save(whole)
    data = whole.read_bytes()
    rng = np.random.default_rng(7)
    damaged, limits = tmp_path / f"damaged.{suffix}", Validation(max_megapixels=1.0)
    for _ in range(int(os.environ.get("TESSERA_FUZZ", "40"))):
        spoilt = bytearray(data[: rng.integers(1, len(data) + 1)])
        for place in rng.integers(0, min(len(spoilt), 400), rng.integers(1, 9)):
            spoilt[place] = rng.integers(256)
        damaged.write_bytes(spoilt)
        with pixel_limit(limits.max_megapixels):
            inspect_image(damaged, [(0, 0, 8, 8)], limits)


# Through the real door


def run_stage(workspace: Path, *arguments: str, error_file: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = (
        os.environ
        | {"TESSERA_WORKSPACE": str(workspace)}
        | ({"TESSERA_ERROR_FILE": str(error_file)} if error_file else {})
    )
    room = "models" if arguments[0] == "features" else "data"
    command = [sys.executable, "-m", f"components.{room}", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_stage_says_one_paragraph_and_leaves_it_as_json(tmp_path):
    (tmp_path / "data/tiles").mkdir(parents=True)
    yaml = "{name: tiles, task: classification, classes: [good, cracked], layout: folders}"
    (tmp_path / "data/tiles/domain.yaml").write_text(yaml)
    missing = run_stage(tmp_path, "manifest", "tiles", error_file=tmp_path / "error.json")
    assert missing.returncode == 2
    error = TesseraError.from_dict(json.loads((tmp_path / "error.json").read_text()))
    assert isinstance(error, DataError)
    assert missing.stderr == f"{error}\n"
    assert "tessera import" in missing.stderr

    raw = write_folders(tmp_path / "data/tiles/raw", images=8)
    (raw / "good/text.jpg").write_bytes(b"text")
    (raw / "good/<b>more.jpg").write_bytes(b"text")
    assert run_stage(tmp_path, "manifest", "tiles").returncode == 0
    assert run_stage(tmp_path, "features", "tiles").returncode == 0
    failed = run_stage(tmp_path, "validate", "tiles")
    assert failed.returncode == 1
    assert "2 of 18 (11.1%)" in failed.stderr
    assert "Traceback" not in failed.stderr
    report = tmp_path / ".tessera/data/tiles/validation.html"
    assert "Not fit." in report.read_text()
    assert "&lt;b&gt;more.jpg" in report.read_text()
    assert json.loads(report.with_suffix(".json").read_text())["fit"] == 16
