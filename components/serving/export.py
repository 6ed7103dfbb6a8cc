"""`python -m components.serving.export`: write an adapter as an ONNX graph that proves itself, in a process with torch.

It reads an `ExportJob` as JSON from stdin and fills its folder:

    model.onnx          uint8 pixels to probabilities (components/serving/graph.py)
    model.int8.onnx     where it was asked for and passed its gate (components/serving/int8.py)
    prepare.py          pictures to pixels and outputs to answers, without Tessera and torch
    card.json           what it is, from where, with which limits, and what was verified
    proofs/             eight pictures, and expected.json with the answers of Tessera in float32

The last step answers the proofs by prepare.py in a clean process. It writes `{"card": {...}}` or `{"error": {...}}` to
stdout; the exit code is that of the error.
"""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from components.data.sources import tails
from components.domain.settings import Validation
from components.errors import AdapterError, TesseraError
from components.files import hash_file
from components.models.adapter import AdapterMeta, InputMeta, hash_meta, load_meta
from components.models.backbones import Backbone, load_backbone
from components.records.exports import (
    Card,
    CardBackbone,
    CardCalibration,
    CardGraph,
    CardInput,
    ExportJob,
    Verified,
)
from components.serving import prepare
from components.serving.describing import Prediction, describe
from components.serving.graph import OPSET, Graph, load_graph, write_graph
from components.serving.int8 import judge_int8, write_int8
from components.serving.looks import Look
from components.serving.map_files import encode_mask
from components.serving.prepare import GRAPH, INT8
from components.serving.proofs import draw_proofs
from components.serving.questions import Question
from components.serving.rack import Rack
from components.tasks.base import DenseTask

BATCHES = (1, 3, 16)  # sizes at which the graph is compared with torch
LIBRARIES = ("tessera", "torch", "onnx", "onnxruntime", "onnxscript", "numpy", "pillow")
#: What the clean process cannot import, so that the proof is one of an export that stands alone.
BLOCKED = ("torch", "torchvision", "timm", "components", "flows", "cv2", "scipy", "polars", "pydantic", "onnx")
CLEAN = """
import json, runpy, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv.pop(1))))
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
#: How prepare.py begins to be independent: the text of the module takes the place of its import.
TAILS = "from components.data.sources.tails import JPEG, Jpeg, find_bad_checksum\n"


def export(job: ExportJob, backbone: Backbone | None = None) -> Card:
    """Fill the folder of the job. Raises AdapterError where the export does not answer as Tessera does."""
    meta = load_meta(job.adapter)
    backbone = backbone or load_backbone(meta.backbone.name, meta.backbone.img_size)
    pixels = _write_proofs(job, meta, backbone)
    graph = load_graph(job.adapter, backbone)
    facts = {"domain": job.domain, "version": str(job.version), "adapter_json_sha256": hash_meta(job.adapter)}
    write_graph(graph, meta, job.folder / GRAPH, {f"tessera.{key}": value for key, value in facts.items()})
    (job.folder / "prepare.py").write_text(compose_prepare(), encoding="utf-8")
    card = _create_card(job, meta, graph)
    write_card(job.folder, card)
    apart = _compare_graph(job.folder, graph, pixels, meta)
    if job.tests is not None:
        write_int8(job.folder)
        int8 = judge_int8(job.folder, meta, pl.read_parquet(job.tests), job.of)
        if not int8.kept:
            (job.folder / INT8).unlink()
        card = card.model_copy(update={"int8": int8, "files": _hash_graphs(job.folder)})
        write_card(job.folder, card)
    card = card.model_copy(update={"verified": _verify(job, apart)})
    write_card(job.folder, card)
    return card


def write_card(folder: Path, card: Card) -> None:
    text = json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")


def compose_prepare() -> str:
    """prepare.py with the one module of Tessera that it needs in the place of its import."""
    own, other = (Path(str(module.__file__)).read_text(encoding="utf-8") for module in (prepare, tails))
    return own.replace(TAILS, f"\n# components/data/sources/tails.py of Tessera\n\n{other}\n")


def _hash_graphs(folder: Path) -> dict[str, str]:
    return {name: digest for name in (GRAPH, INT8) if (digest := hash_file(folder / name))}


def _create_card(job: ExportJob, meta: AdapterMeta, graph: Graph) -> Card:
    given = meta.input
    limits = Validation()
    known = given or InputMeta(
        kind="either", fit=meta.fit, max_megapixels=limits.max_megapixels, min_side=limits.min_side
    )
    dense = isinstance(meta.task, DenseTask)
    return Card(
        domain=job.domain,
        version=job.version,
        adapter=hash_meta(job.adapter),
        weights=meta.adapter_sha256,
        tuner=meta.label,
        data_version=meta.data_version,
        git_commit=meta.git_commit,
        files=_hash_graphs(job.folder),
        task=meta.task.model_dump(mode="json"),
        annotation=meta.task.annotation,
        classes=meta.classes,
        background=meta.task.background_class,
        input=CardInput(
            **known.model_dump(),
            img_size=(meta.backbone.img_size.height, meta.backbone.img_size.width),
            known=given is not None,
        ),
        graph=CardGraph(
            input="pixels: (B, height, width, 3) uint8",
            output=f"answers: {OUTPUTS[meta.task.annotation]}",
            opset=OPSET,
            merged=graph.merged,
        ),
        calibration=CardCalibration(
            inside=not dense,
            temperature=meta.temperature,
            offset=meta.offset,
            thresholds=dict(meta.thresholds),
            decision=meta.decision,
            reason=meta.calibration,
        ),
        backbone=CardBackbone(name=meta.backbone.name, sha256=meta.backbone.sha256, licence=meta.backbone.licence),
        licences=job.licences,
        metrics=dict(meta.metrics),
        made={name: installed_version(name) for name in LIBRARIES},
    )


OUTPUTS = {
    "label": "calibrated probabilities (B, C), which add up to one",
    "labels": "calibrated probabilities (B, C), each by itself",
    "mask": "probabilities of the canvas (B, C, h, w), calibrated by prepare.py where the picture has its own size",
    "boxes": "x0, y0, x1, y1, class and confidence (B, K, 6), the most confident first; prepare.py suppresses doubles",
}


def _write_proofs(job: ExportJob, meta: AdapterMeta, backbone: Backbone) -> NDArray[np.uint8]:
    """Copy or draw the pictures and write what Tessera answers in float32; returns their pixels (N, H, W, 3)."""
    folder = job.folder / "proofs"
    folder.mkdir()
    proofs = job.proofs or draw_proofs(folder, meta)
    rack = Rack(backbone, "float32")
    resident = rack.add("", job.adapter)
    copies = {proof.image: folder / f"{number}{proof.image.suffix}" for number, proof in enumerate(proofs, 1)}
    for image, copy in copies.items():
        (shutil.copyfile if job.proofs else os.replace)(image, copy)
    looks = list(resident.eye.look([Question(copies[proof.image], proof.box) for proof in proofs]))
    pixels = np.stack([_require_pixels(look) for look in looks])
    rows = rack.answer(pixels, [resident] * len(looks))
    records = [
        {
            "image": copies[proof.image].name,
            "box": proof.box,
            "pixels_sha256": hashlib.sha256(seen.tobytes()).hexdigest(),
            "answer": _flatten(meta, describe(meta, look, row)),
        }
        for proof, look, seen, row in zip(proofs, looks, pixels, rows, strict=True)
    ]
    text = json.dumps({"synthetic": not job.proofs, "proofs": records}, indent=1, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")
    return pixels


def _require_pixels(look: Look) -> NDArray[np.uint8]:
    if look.trouble is not None:
        raise look.trouble
    if look.pixels is None:
        raise ValueError("a look has pixels or trouble")
    return look.pixels


def _flatten(meta: AdapterMeta, found: Prediction) -> dict[str, Any]:
    """An answer as prepare.py gives it, with its mask as base64 of a PNG."""
    answer = {"label": found.label, **found.answer}
    if found.probabilities is not None:
        answer["probabilities"] = found.probabilities
    if found.class_map is not None:
        png = io.BytesIO()
        encode_mask(found.class_map, meta.classes, meta.task.background_class).save(png, format="PNG")
        answer["mask"] = base64.b64encode(png.getvalue()).decode()
    return answer


def _compare_graph(folder: Path, graph: Graph, pixels: NDArray[np.uint8], meta: AdapterMeta) -> float:
    """The largest difference of a probability between onnxruntime and torch in float32, over several batch sizes."""
    model, largest = prepare.Model(folder), 0.0
    for size in BATCHES:
        batch = np.resize(pixels, (size, *pixels.shape[1:]))
        with torch.inference_mode():
            expected = graph(torch.from_numpy(batch)).numpy()
        found = model.run(batch)
        if found.shape != expected.shape:
            _refuse(folder, f"answers {expected.shape} for {size} images", f"{found.shape}")
        if meta.task.annotation == "boxes":  # corners are pixels, and equal confidences have no order
            found, expected = found[..., 5], expected[..., 5]
        largest = max(largest, float(np.abs(found - expected).max()))
    if not largest <= prepare.CLOSE:
        _refuse(folder, f"probabilities within {prepare.CLOSE:g} of those of torch", f"{largest:.2g}")
    return largest


def _verify(job: ExportJob, apart: float) -> Verified:
    """Answer the proofs in a clean process. Raises AdapterError unless all answers are Tessera's."""
    report = verify_folder(job.folder)
    if report["problems"]:
        _refuse(job.folder, "the answers of Tessera for all proofs", "; ".join(report["problems"]))
    if report["pixels"] != report["images"]:
        found = f"{report['pixels']} of {report['images']}"
        _refuse(job.folder, "the pixels that training prepares, of all proofs", found)
    facts = {key: report[key] for key in ("images", "equal", "pixels", "largest_difference")}
    return Verified(**facts, synthetic=not job.proofs, batches=BATCHES, graph_difference=apart)


def verify_folder(folder: Path) -> dict[str, Any]:
    """What `python prepare.py --verify` reports, in a process that can import neither Tessera nor torch."""
    command = [sys.executable, "-I", "-c", CLEAN, json.dumps(BLOCKED), str(folder / "prepare.py"), "--verify"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip().splitlines() or ["nothing"]
        _refuse(folder, "a report of prepare.py on the proofs", said[-1])
    return report


def _refuse(folder: Path, expected: str, found: str) -> Any:
    raise AdapterError(
        f"export to {folder}",
        expected=expected,
        found=found,
        hint="Nothing was left behind. Serve the adapter with `tessera serve`, and report this as a defect.",
    )


def main() -> int:
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    code = 0
    try:
        answer: dict[str, Any] = {
            "card": export(ExportJob.model_validate_json(sys.stdin.read())).model_dump(mode="json")
        }
    except TesseraError as error:
        answer, code = {"error": error.to_dict()}, error.exit_code
    reply.write(json.dumps(answer) + "\n")
    reply.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
