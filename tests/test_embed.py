"""`tessera embed`: a row per sample with its feature, computed once, continued after a stop; errors name a cause."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from conftest import DOMAIN, run_tessera

from components.domain.canvas import ImgSize
from components.errors import BackboneError, DataError
from components.models.embedded import load_card
from components.models.embedding import Abandoned, embed
from components.records.embedding import Embedded, EmbedJob
from components.workspace import Workspace


def _create_job(folder: Path, **changes: Any) -> EmbedJob:
    """On the images of a toy domain."""
    domain = tiny.create_domain(**{"backbone": "embedded", "img_size": 32, **changes})
    job = tiny.create_job(folder, domain, {}, 0, folder)
    out = folder / "new" / "features.parquet"
    facts = {"data_licence": "cc0-1.0"}
    return EmbedJob(domain=domain, manifest=job.manifest, raw=job.raw, cache=job.cache, out=out, facts=facts)


def _embed(job: EmbedJob, stop_after: int | None = None) -> tuple[int, list[dict[str, Any]]]:
    """How many features were known, and what was reported."""
    said: list[dict[str, Any]] = []

    def pause() -> None:
        if stop_after is not None and sum(facts.get("done", 0) for facts in said) >= stop_after:
            raise Abandoned

    return embed(job, said.append, pause).known, said


def test_a_row_per_sample_with_its_feature_and_where_it_is_from(tmp_path: Path) -> None:
    job = _create_job(tmp_path)
    known, said = _embed(job)
    manifest, frame = pl.read_parquet(job.manifest), pl.read_parquet(job.out)
    assert frame.columns == ["id", "path", "crop", "label", "group", "site", "split", "feature"]
    assert frame.drop("feature").equals(manifest.select(frame.columns[:-1]))
    assert frame["feature"].dtype == pl.Array(pl.Float32, 192)
    features = frame["feature"].to_numpy()
    assert np.isfinite(features).all()
    assert len(np.unique(features.round(3), axis=0)) > len(frame) / 2
    assert (known, said[0]) == (0, {"total": len(frame), "known": 0})
    assert sum(facts["done"] for facts in said[1:]) == len(frame)
    facts = pl.read_parquet_metadata(job.out)
    assert facts["tessera.backbone_sha256"] == load_card().tensors_sha256
    assert facts["tessera.backbone_licence"] == load_card().licence
    assert facts["tessera.data_licence"] == "cc0-1.0"
    assert (facts["tessera.img_size"], facts["tessera.fit"]) == ("32", "squash")
    whole = job.out.read_bytes()
    known, said = _embed(job)
    assert (known, len(said)) == (len(frame), 1)
    assert job.out.read_bytes() == whole
    assert _embed(_create_job(tmp_path, img_size=48))[0] == 0


def test_embed_and_linear_candidates_share_features(tmp_path: Path) -> None:
    job = _create_job(tmp_path)
    tiny.train(tmp_path, job.domain, {"kind": "linear"})
    assert _embed(job)[0] == pl.read_parquet(job.manifest).height > 0


@pytest.mark.parametrize(
    ("task", "layout", "column"),
    [
        ("multilabel", "csv", "labels"),
        ({"kind": "segmentation", "background": "dark"}, {"kind": "csv", "mask": "mask"}, "label"),
        ("detection", "voc", "label"),
    ],
)
def test_every_task_has_features_of_whole_pictures(tmp_path: Path, task: Any, layout: Any, column: str) -> None:
    job = _create_job(tmp_path, task=task, layout=layout)
    _embed(job)
    frame = pl.read_parquet(job.out)
    assert frame.height == pl.read_parquet(job.manifest).height
    assert column in frame.columns
    assert not {"class_map", "objects"} & set(frame.columns)


def test_a_stopped_run_writes_no_file_and_is_continued(tmp_path: Path) -> None:
    job = _create_job(tmp_path)
    with pytest.raises(Abandoned):
        _embed(job, stop_after=8)
    assert not job.out.exists()
    known, said = _embed(job)
    assert known >= 8
    assert said[0]["known"] == known
    alone = _create_job(tmp_path / "alone")
    _embed(alone)
    assert alone.out.read_bytes() == job.out.read_bytes()


def test_an_image_that_changed_a_backbone_that_is_unknown_and_a_folder_are_named(tmp_path: Path) -> None:
    job = _create_job(tmp_path)
    path = pl.read_parquet(job.manifest)["path"][3]
    content = (job.raw / path).read_bytes()
    (job.raw / path).write_bytes(content + b" ")
    with pytest.raises(DataError, match=f"{path}: expected the file that the manifest was made from"):
        _embed(job)
    assert not job.out.exists()
    (job.raw / path).write_bytes(content)
    job.out.mkdir(parents=True)
    with pytest.raises(DataError, match=r"features\.parquet: expected a file; found Is a directory"):
        _embed(job)
    with pytest.raises(BackboneError, match="vit_nothing"):
        _embed(_create_job(tmp_path, backbone="vit_nothing"))


@pytest.mark.slow
def test_the_command_runs_the_data_stages_and_names_images_without_a_row(workspace: Path, tmp_path: Path) -> None:
    refused = run_tessera(workspace, "embed", DOMAIN, "--out", str(tmp_path / "features.csv"))
    assert (refused.code, refused.outcome["error"]["found"]) == (2, "a name that ends in .csv")
    raw = Workspace(workspace).raw(DOMAIN)
    broken = sorted((raw / "images").iterdir())[5]
    broken.write_bytes(b"no picture")
    out = tmp_path / "features.parquet"
    answer = run_tessera(workspace, "embed", DOMAIN, "--out", str(out), "--size", "32x48")
    assert answer.code == 0, answer.stderr
    made = answer.read(Embedded)
    assert broken.relative_to(raw).as_posix() in [row.path for row in made.left_out]
    assert all(row.reason for row in made.left_out)
    frame = pl.read_parquet(out)
    assert made.features.rows == frame.height == pl.read_parquet(_manifest(workspace)).height
    assert made.features.img_size == ImgSize(32, 48)
    assert broken.relative_to(raw).as_posix() not in frame["path"].to_list()
    facts = pl.read_parquet_metadata(out)
    assert (facts["tessera.domain"], facts["tessera.data_version"]) == (DOMAIN, made.data_version)


def _manifest(workspace: Path) -> Path:
    return Workspace(workspace).derived(DOMAIN) / "manifest.parquet"
