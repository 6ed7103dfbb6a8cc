"""Cost grows with the change: what was read, decoded or copied before is not read, decoded or copied again."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import make_domain, save_picture, write_folders, write_instances, write_voc

from components.data.annotations.layouts import read_rows
from components.data.checks import findings
from components.data.checks.validation import check_rows
from components.data.stages import run_manifest, run_validate
from components.data.store import digests as digests_module
from components.data.store.digests import Digests
from components.data.store.importing import import_folder
from components.domain.domain import Domain
from components.files import hash_file, settle_folder
from components.models.features import run_features
from components.workspace import Workspace


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every file that is decoded from here on; the real decoding goes on below."""
    seen: list[str] = []
    real = findings.inspect_images

    def look(raw, crops, limits):
        seen.extend(crops)
        return real(raw, crops, limits)

    monkeypatch.setattr(findings, "inspect_images", look)
    return seen


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every file that is hashed from here on."""
    seen: list[str] = []
    monkeypatch.setattr(digests_module, "hash_file", lambda path: seen.append(path.name) or hash_file(path))
    return seen


def test_only_new_pictures_are_decoded_and_the_result_is_the_same(tmp_path: Path, looked_at: list[str]) -> None:
    raw, domain, cache = write_voc(tmp_path / "raw"), make_domain(layout="voc"), tmp_path / "cache"
    cold = check_rows(read_rows(domain, raw), raw, domain, cache=cache)
    assert len(looked_at) == 6
    looked_at.clear()
    warm = check_rows(read_rows(domain, raw), raw, domain, cache=cache)
    assert looked_at == []
    bare = check_rows(read_rows(domain, raw), raw, domain)
    for other in (cold, bare):
        assert warm.fit.equals(other.fit)
        assert (warm.outliers, warm.quarantined) == (other.outliers, ())
        assert warm.pictures == other.pictures
    save_picture(raw / "JPEGImages/p0.jpg", 99, width=96, height=80)
    check_rows(read_rows(domain, raw), raw, domain, cache=cache)
    assert looked_at == ["JPEGImages/p0.jpg"]


def test_other_crops_limits_or_a_lost_cache_mean_another_look(tmp_path: Path, looked_at: list[str]) -> None:
    raw, cache = write_folders(tmp_path / "raw", images=4), tmp_path / "cache"

    def count(domain: Domain) -> int:
        looked_at.clear()
        check_rows(read_rows(domain, raw), raw, domain, cache=cache)
        return len(looked_at)

    assert count(make_domain()) == 8
    assert count(make_domain(validation={"max_quarantined": 0.5, "near_duplicate_bits": 0})) == 0
    assert count(make_domain(validation={"min_side": 8})) == 8
    assert count(make_domain(validation={"min_side": 8})) == 0
    (found,) = cache.iterdir()
    found.write_bytes(b"PAR1 no more")
    assert count(make_domain(validation={"min_side": 8})) == 8
    found.unlink()
    assert count(make_domain(validation={"min_side": 8})) == 8


def test_what_is_unfit_is_looked_at_every_time(tmp_path: Path, looked_at: list[str]) -> None:
    raw, domain, cache = write_folders(tmp_path / "raw"), make_domain(), tmp_path / "cache"
    Image.new("L", (48, 40), 7).save(raw / "good/flat.png")
    for _ in range(2):
        looked_at.clear()
        validated = check_rows(read_rows(domain, raw), raw, domain, cache=cache)
        assert [item.path for item in validated.quarantined] == ["good/flat.png"]
    assert looked_at == ["good/flat.png"]


def test_only_changed_files_are_hashed(tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests_module, "YOUNG", 0)
    workspace, domain = Workspace(tmp_path), make_domain()
    raw = write_folders(workspace.raw("tiles"), images=4)
    run_manifest(workspace, domain)
    assert len(read) == 8
    rows = (workspace.derived("tiles") / "rows.parquet").read_bytes()
    read.clear()
    run_manifest(workspace, domain)
    assert read == []
    assert (workspace.derived("tiles") / "rows.parquet").read_bytes() == rows
    # Same size and the old modification time: only the time of change, which nobody sets, tells.
    path = raw / "good/good00.png"
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    run_manifest(workspace, domain)
    assert read == ["good00.png"]
    assert (workspace.derived("tiles") / "rows.parquet").read_bytes() != rows


def test_a_picture_cut_into_instances_is_hashed_once(tmp_path: Path, read: list[str]) -> None:
    raw = write_instances(tmp_path / "raw", pictures=2)
    domain = make_domain(layout="instances", classes=["background", "object"])
    rows = read_rows(domain, raw, Digests(raw, tmp_path / "cache"))
    assert sorted(read) == sorted(Path(path).name for path in rows["path"].unique())
    assert rows.equals(read_rows(domain, raw))


def test_a_stamp_too_young_to_be_trusted_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    known = Digests(tmp_path, tmp_path / "cache")
    assert known["a"] == hash_file(tmp_path / "a")
    assert known["b"] is None
    known.save()
    assert Digests(tmp_path, tmp_path / "cache").known == {}


def test_an_import_copies_what_is_new_and_links_the_rest(tmp_path: Path) -> None:
    source, workspace = write_folders(tmp_path / "source"), Workspace(tmp_path / "w")
    import_folder(workspace, source, "tiles")
    raw = workspace.raw("tiles")
    inodes = {path.name: path.stat().st_ino for path in raw.rglob("*.png")}
    save_picture(source / "good/new.png", 99)
    save_picture(source / "good/good00.png", 98)
    (source / "good/good01.png").unlink()
    import_folder(workspace, source, "tiles", replace=True, force=True)
    kept = {path.name for path in raw.rglob("*.png") if inodes.get(path.name) == path.stat().st_ino}
    assert {path.name for path in raw.rglob("*.png")} - kept == {"new.png", "good00.png"}
    assert "good01.png" not in kept
    same = [path.read_bytes() == (source / path.relative_to(raw)).read_bytes() for path in raw.rglob("*.png")]
    assert all(same)
    # The source's files stay the source's own: nothing done to them shows in the workspace.
    assert not {path.stat().st_ino for path in source.rglob("*.png")} & {path.stat().st_ino for path in raw.rglob("*")}


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    for number in (2**22 + 1, os.getpid()):
        (tmp_path / f".raw-{number}.partial").mkdir()
    settle_folder(tmp_path / "raw")
    assert [path.name for path in tmp_path.iterdir()] == [f".raw-{os.getpid()}.partial"]


@settings(max_examples=25)
@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, b"1", b"2", b"33"])), max_size=12))
def test_digests_are_right_whatever_happens_to_the_files(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bytes | None]]
) -> None:
    root = tmp_path_factory.mktemp("root")
    for name, content in steps:
        if content is None:
            (root / name).unlink(missing_ok=True)
        else:
            (root / name).write_bytes(content)
        known = Digests(root, root / "cache")
        assert {name: known[name] for name in "abc"} == {name: hash_file(root / name) for name in "abc"}
        known.save()


def test_validate_keeps_its_findings_in_the_workspace(tmp_path: Path, looked_at: list[str]) -> None:
    workspace, domain = Workspace(tmp_path), make_domain()
    write_folders(workspace.raw("tiles"), images=8)
    for _ in range(2):
        run_manifest(workspace, domain)
        run_features(workspace, domain)
        run_validate(workspace, domain)
    assert len(looked_at) == 16
    assert list((workspace.cache / "findings" / "tiles").iterdir())
