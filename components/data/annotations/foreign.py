"""Formats of pictures and annotations that Tessera recognises but does not read yet, with a hint for each."""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.data.sources.names import SUFFIXES
from components.errors import DataError
from components.records.reasons import Reason

READ = "folders, csv, parquet, Pascal VOC, COCO, YOLO, LabelMe, CVAT or masks"
LOOK = 12  # files of one kind that are inspected
LARGE = 20_000_000  # bytes: a JSON file above this size cannot belong to one picture
START = 4096  # bytes of a text file that are inspected

Json = Any


class Foreign(NamedTuple):
    """A format of annotations that is not read: its name, one file as an example, and what to do."""

    name: str
    example: str
    hint: str


DICOM = "Export the images as 8-bit PNG or JPEG with the intensity window you need (with your viewer, or dcmtk)."
SLIDE = "Cut the regions of interest into tiles, PNG or JPEG (QuPath or OpenSlide do that)."
VIDEO = "Extract the frames you need as images, for instance with `ffmpeg -i FILE frames/%06d.png`."
CONTAINER = "Save the images as files, and their labels as a csv or their masks as PNG."
FURTHER = ".heic .heif .hif .avif .jxl .jp2 .j2k .jpx .jpf .psd .svg .tga .ico .exr .hdr .pbm .pgm .ppm .pnm"

_PICTURES = (
    ("a DICOM file", ".dcm .dicom .dic", DICOM),
    ("a whole-slide image", ".svs .ndpi .mrxs .scn .vms .vmu .bif .czi .vsi .isyntax", SLIDE),
    ("a format that is not read", FURTHER, "Convert it to PNG or JPEG."),
    ("a JPEG under a rare name", ".jfif .jpe .jif", "Rename it to .jpg."),
    (
        "a raw photograph",
        ".raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .pef .srw",
        "Develop it into PNG or JPEG.",
    ),
    ("a video", ".mp4 .avi .mov .mkv .webm .m4v .mpg .mpeg .wmv .flv .mts .m2ts", VIDEO),
    ("a volume", ".nii .nii.gz .nrrd .mha .mhd .lif .nd2 .oib .oif", "Export the slices you need as 8-bit PNG."),
)
#: Formats of pictures that are not read: suffix to (name, hint).
PICTURES = {suffix: (name, hint) for name, suffixes, hint in _PICTURES for suffix in suffixes.split()}
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".rar", ".7z")
CONTAINERS = (".npy", ".npz", ".h5", ".hdf5", ".tfrecord", ".tfrecords", ".mat", ".lmdb")
#: (offset, first bytes, name, hint) of files without a suffix, as hospital archives export them.
_MAGIC = (
    (0, b"\xff\xd8\xff", "a JPEG without a suffix", "Rename it to .jpg."),
    (0, b"\x89PNG", "a PNG without a suffix", "Rename it to .png."),
    (128, b"DICM", "a DICOM file without a suffix", DICOM),
)


def find_foreign_pictures(raw: Path, files: Iterable[str]) -> dict[str, Reason]:
    """Pictures (also slides, volumes, videos) in formats that are not read, each with its format and what to do."""
    found = {}
    for path in files:
        lower = path.lower()
        suffix = ".nii.gz" if lower.endswith(".nii.gz") else posixpath.splitext(lower)[1]
        if suffix in PICTURES:
            name, hint = PICTURES[suffix]
            found[path] = Reason(f"an image ({', '.join(SUFFIXES)})", f"{name} ({suffix})", hint)
        elif not suffix.strip(".0123456789") and (known := _read_magic(raw / path)):
            found[path] = Reason(f"an image ({', '.join(SUFFIXES)})", known[0], known[1])
    return found


def _read_magic(path: Path) -> tuple[str, str] | None:
    with path.open("rb") as file:
        start = file.read(132)
    return next(((name, hint) for place, magic, name, hint in _MAGIC if start[place:].startswith(magic)), None)


def refuse_foreign_pictures(raw: Path, files: Sequence[str], foreign: Mapping[str, Reason]) -> None:
    """Raise DataError if no picture is in a format that is read, and some are in other formats or in containers."""
    if any(path.lower().endswith(SUFFIXES) for path in files):
        return
    kinds = Counter(posixpath.splitext(path.lower())[1] or "no suffix" for path in foreign)
    listed = ", ".join(f"{count:,} with {suffix}" for suffix, count in kinds.most_common(4))
    if foreign:
        why = next(iter(foreign.values()))
        found, hint = why.found, why.hint
    elif inner := [path for path in files if path.lower().endswith(ARCHIVES)]:
        found, hint, listed = f"{inner[0]}, an archive", "Unpack it first.", f"{len(inner):,} such files"
    elif kept := [path for path in files if path.lower().endswith(CONTAINERS)]:
        found, hint, listed = f"{kept[0]}, a container", CONTAINER, f"{len(kept):,} such files"
    else:
        return
    raise DataError(
        f"images in {raw}", expected=f"images ({', '.join(SUFFIXES)})", found=f"{found}: {listed}", hint=hint
    )


def refuse_foreign(raw: Path, files: Sequence[str], where: str, hint: str = "", *, maps: bool = False) -> None:
    """Raise DataError if the annotations are in a known format that is not read.

    maps: whether outlines are read, so that four corners per line are one.
    """
    if (found := find_foreign(raw, files)) and not (maps and found.name == OBB):
        raise DataError(
            where,
            expected=f"annotations in a format that is read ({READ})",
            found=f"{found.name} (as in {found.example}), which is not read yet",
            hint=found.hint + hint,
        )


def find_foreign(raw: Path, files: Sequence[str]) -> Foreign | None:
    """The first known format of annotations that is not read; None if there is none."""
    stems = {_stem(path) for path in files if path.lower().endswith(SUFFIXES)}
    for suffix, name_of in ((".json", _name_json), (".geojson", _name_json), (".xml", _name_xml), (".csv", _name_csv)):
        for path in _sample(files, suffix):
            if name := name_of(raw / path):
                return Foreign(name, path, HINTS[name])
    texts = [path for path in files if path.lower().endswith(".txt") and _stem(path) in stems]
    names = [name for path in texts[:LOOK] if (name := _name_text(raw / path))]
    known = next((name for name in names if names.count(name) * 2 > len(names)), None)
    return Foreign(known, texts[0], HINTS[known]) if known and known != YOLO else None


def _sample(files: Sequence[str], suffix: str) -> list[str]:
    """The first file of every folder, then further ones, LOOK in all: formats often differ between folders."""
    named = [path for path in files if path.lower().endswith(suffix)]
    firsts = {posixpath.dirname(path): path for path in reversed(named)}
    return list(dict.fromkeys([*firsts.values(), *named]))[:LOOK]


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


# JSON

DARWIN, HASTY = "Darwin JSON (V7)", "Hasty JSON"
STUDIO, VIA, VOTT = "Label Studio JSON", "VGG Image Annotator (VIA)", "VoTT JSON"
SUPERVISELY, DATUMARO, GEOJSON, LABELBOX = "Supervisely JSON", "Datumaro JSON", "GeoJSON outlines", "Labelbox JSON"
KEYPOINTS, PANOPTIC, CAPTIONS = "COCO keypoints without boxes", "COCO panoptic segments", "COCO captions"
POINTS, CREATEML = "point labels", "CreateML JSON"


def _name_json(path: Path) -> str | None:
    if path.stat().st_size > LARGE:
        return None
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict):
        return _name_list(first)
    if isinstance(first, list) and _are_points(content):
        return POINTS
    return _name_object(content) if isinstance(content, dict) else None


def _name_list(first: dict[str, Json]) -> str | None:
    keys = set(first)
    if first.get("type") == "Feature":
        return GEOJSON
    if "data" in keys and keys & {"annotations", "completions", "predictions"}:
        return STUDIO
    if {"annotator", "annotation_id"} <= keys:
        return STUDIO
    if {"image", "annotations"} <= keys:
        return CREATEML
    if "data_row" in keys or {"External ID", "Label"} <= keys:
        return LABELBOX
    return POINTS if _is_point(first) else None


def _name_object(content: dict[str, Json]) -> str | None:
    keys, values = set(content), list(content.values())
    if keys & {"_via_img_metadata", "_via_settings"} or {"project", "config", "attribute", "view"} <= keys:
        return VIA
    if values and all(isinstance(value, dict) and {"filename", "regions"} <= set(value) for value in values[:LOOK]):
        return VIA
    if "item" in keys and isinstance(content.get("annotations"), list):
        return DARWIN
    if {"label_classes", "images"} <= keys:
        return HASTY
    if {"asset", "regions"} <= keys:
        return VOTT
    if {"objects", "size"} <= keys:
        return SUPERVISELY
    if {"items", "categories", "info"} <= keys:
        return DATUMARO
    if content.get("type") == "FeatureCollection":
        return GEOJSON
    if isinstance(content.get("annotations"), list) and isinstance(content.get("images"), list):
        return _name_coco([entry for entry in content["annotations"] if isinstance(entry, dict)])
    listed = next((content[key] for key in ("points", "keypoints", "landmarks") if key in keys), None)
    return POINTS if isinstance(listed, list) and listed and _are_points(listed) else None


def _name_coco(annotations: Sequence[dict[str, Json]]) -> str | None:
    if not annotations or any(entry.get("bbox") or entry.get("segmentation") for entry in annotations):
        return None
    kinds = {"keypoints": KEYPOINTS, "segments_info": PANOPTIC, "caption": CAPTIONS}
    return next((name for key, name in kinds.items() if all(key in entry for entry in annotations)), None)


def _are_points(entries: Sequence[Json]) -> bool:
    return all(_is_point(entry) for entry in entries[:LOOK])


def _is_point(entry: Json) -> bool:
    """Whether an entry is `[x, y]`, `[x, y, seen]` or `{"x": ..., "y": ...}`, and cannot be a box."""
    if isinstance(entry, dict):
        return {"x", "y"} <= set(entry) and not set(entry) & {"width", "height", "w", "h", "x2", "xmax"}
    return isinstance(entry, list) and len(entry) in (2, 3) and all(isinstance(v, int | float) for v in entry)


# XML, csv, txt

MIT, ROTATED, ASAP, APERIO = (
    "LabelMe XML",
    "rotated boxes in Pascal VOC",
    "ASAP XML",
    "ImageScope XML",
)
OBB, DOTA, YOLO, CORNERS = (
    "YOLO oriented boxes (OBB)",
    "DOTA oriented boxes",
    "YOLO",
    "boxes as lines `x1 y1 x2 y2 type`",
)


def _name_xml(path: Path) -> str | None:
    start = _read_start(path)
    root = re.search(r"<([A-Za-z_]\w*)[\s>/]", re.sub(r"<\?.*?\?>|<!--.*?-->", "", start, flags=re.DOTALL))
    tag = root[1] if root else ""
    if tag == "ASAP_Annotations":
        return ASAP
    if tag == "Annotations":
        return APERIO
    if tag == "annotation" and "<bndbox" not in start:
        return ROTATED if "<robndbox" in start else MIT if "<polygon" in start and "<pt>" in start else None
    return None


def _name_csv(path: Path) -> str | None:
    return VIA if "region_shape_attributes" in _read_start(path).partition("\n")[0] else None


def _name_text(path: Path) -> str | None:
    """The format of a text file of numbers beside a picture; None if its lines are in no known format."""
    lines = [re.split(r"[\s,;]+", line.strip()) for line in _read_start(path).splitlines()[:LOOK] if line.strip()]
    names = {_name_line(cells) for cells in lines}
    return names.pop() if len(names) == 1 else None


def _name_line(cells: Sequence[str]) -> str | None:
    if len(cells) == 10 and all(map(_is_number, cells[:8])) and not _is_number(cells[8]):
        return DOTA
    if not all(map(_is_number, cells)):
        label = next((place for place in (0, len(cells) - 1) if not _is_number(cells[place])), 0)
        rest = [cell for place, cell in enumerate(cells) if place != label]
        return CORNERS if len(rest) == 4 and all(map(_is_number, rest)) else None
    numbers = [float(cell) for cell in cells]
    inside = all(0 <= value <= 1 for value in numbers[1:])
    if len(numbers) == 9 and inside:
        return OBB
    if len(numbers) == 5 and inside:
        return YOLO
    if len(numbers) in (4, 5):
        return CORNERS
    return POINTS if len(numbers) == 2 or (len(numbers) == 3 and numbers[0] == int(numbers[0])) else None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) is not None


def _read_start(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(START)
    text = data.decode("utf-8-sig", errors="replace")
    return text if len(data) < START else text.rpartition("\n")[0] or text


HINTS = {
    STUDIO: "In Label Studio choose Export, then `COCO` or `Pascal VOC XML` (or `CSV` for one label per picture).",
    VIA: "In VIA choose Annotation, then `Export Annotations (COCO format)`.",
    VOTT: "In VoTT choose the export format `Pascal VOC`.",
    SUPERVISELY: "Export the project with the app `Export to COCO` or `Export to Pascal VOC`.",
    DATUMARO: "Convert it: `datum convert -f coco_instances` or `-f voc_detection`.",
    DARWIN: "In V7 choose the export format `COCO` (or `Semantic mask`).",
    HASTY: "In Hasty choose the export format `COCO` (or `Semantic segmentation`).",
    GEOJSON: "Cut tiles of the outlined regions into one folder per class, or convert it to COCO. For a class per "
    "pixel, export masks from QuPath (`LabeledImageServer`) and name them like their pictures (layout masks).",
    CREATEML: "Convert it to COCO or Pascal VOC.",
    LABELBOX: "Convert it to COCO, or write a csv with the columns image and label.",
    KEYPOINTS: "Export instances (boxes or outlines) as COCO.",
    PANOPTIC: "Export instances (boxes or outlines) as COCO, or one mask per picture (layout masks).",
    CAPTIONS: "Take the file of instances (boxes or outlines) instead.",
    POINTS: "Write boxes around the points (COCO, Pascal VOC or a csv with `crop`), or one label per picture.",
    MIT: "Convert it to COCO or Pascal VOC.",
    ROTATED: "Export upright boxes (`bndbox`) as Pascal VOC, or COCO.",
    ASAP: "Cut tiles of the outlined regions into one folder per class.",
    APERIO: "Cut tiles of the outlined regions into one folder per class.",
    OBB: "Export upright boxes: YOLO detection, COCO or Pascal VOC.",
    DOTA: "Export upright boxes: YOLO detection, COCO or Pascal VOC.",
    CORNERS: "Write them as a csv (layout csv) with one line per box and the columns image, label and crop, where crop "
    "holds `x1 y1 x2 y2`; or as COCO or Pascal VOC.",
}
