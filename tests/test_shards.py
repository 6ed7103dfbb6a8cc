"""Tar shards give what a folder gives, change only where images do, and are trusted no more than other archives."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest
from samples import make_domain, save_picture, write_folders

from components.data.annotations.tree import walk_files
from components.data.manifest import load_frame
from components.data.stages import run_manifest, run_split, run_validate
from components.data.store import shards
from components.data.store.importing import import_folder
from components.data.store.shards import open_images
from components.errors import DataError
from components.models.features import run_features
from components.workspace import Workspace


def read_shards(workspace: Workspace, name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in workspace.raw(name).iterdir()}


def test_a_domain_from_shards_has_the_manifest_of_one_from_folders(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", images=8)
    manifests = []
    for packed in (False, True):
        workspace = Workspace(tmp_path / f"workspace-{packed}")
        domain = import_folder(workspace, source, "parts", "folders", shards=packed).domain
        domain = make_domain(name="parts", classes=list(domain.classes), layout="folders")
        if packed:  # features are known by content: none is computed again
            shutil.copytree(Workspace(tmp_path / "workspace-False").derived("parts"), workspace.derived("parts"))
        for stage in (run_manifest, run_features, run_validate, run_split):
            stage(workspace, domain)
        manifests.append(load_frame(workspace.derived("parts") / "manifest.parquet"))
        memory = workspace.splits("parts").read_bytes()
    assert manifests[0].equals(manifests[1])
    assert memory == Workspace(tmp_path / "workspace-False").splits("parts").read_bytes()
    assert set(read_shards(workspace, "parts")) == {"shard-0000.tar"}
    (workspace.derived("parts") / "rows.parquet").unlink()
    shutil.rmtree(workspace.cache)  # unpacked again when it is needed
    run_manifest(workspace, domain)
    assert load_frame(workspace.derived("parts") / "rows.parquet")["path"].to_list() == walk_files(source)


def test_only_what_changed_changes_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SIZE", 4000)  # a few pictures each
    source, workspace = write_folders(tmp_path / "source", images=8), Workspace(tmp_path / "workspace")
    import_folder(workspace, source, "parts", "folders", shards=True)
    before = read_shards(workspace, "parts")
    assert len(before) > 2
    import_folder(workspace, source, "parts")  # stays packed
    assert read_shards(workspace, "parts") == before
    first, *_, last = walk_files(source)
    (source / last).unlink()
    save_picture(source / first, 999)
    new = Path(first).with_name("new.png").as_posix()
    save_picture(source / new, 1000)
    import_folder(workspace, source, "parts", replace=True, force=True)
    after = read_shards(workspace, "parts")
    assert {shard for shard in before if after.get(shard) == before[shard]} >= set(sorted(before)[1:-1])
    folder = open_images(workspace, "parts")
    assert walk_files(folder) == walk_files(source)
    assert all((folder / path).read_bytes() == (source / path).read_bytes() for path in walk_files(source))


@pytest.mark.parametrize("name", ["../outside.png", "link"])
def test_shards_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    workspace = Workspace(tmp_path / "workspace")
    workspace.raw("parts").mkdir(parents=True)
    with tarfile.open(workspace.raw("parts") / "shard-0000.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member, io.BytesIO(b""))
    with pytest.raises(DataError, match=r"shard-0000\.tar"):
        open_images(workspace, "parts")
    assert not (tmp_path / "outside.png").exists()


def test_a_file_in_two_shards_is_refused(tmp_path: Path) -> None:
    source, workspace = write_folders(tmp_path / "source", images=3), Workspace(tmp_path / "workspace")
    import_folder(workspace, source, "parts", "folders", shards=True)
    shutil.copyfile(workspace.raw("parts") / "shard-0000.tar", workspace.raw("parts") / "shard-0001.tar")
    with pytest.raises(DataError, match="in two"):
        open_images(workspace, "parts")
