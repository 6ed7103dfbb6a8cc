"""Where a backbone's files are: a file, a folder as the hub keeps it, or a repository of the hub. Imports no torch.

    backbones/mine.safetensors                  a file
    backbones/uni2                              a folder: config.json beside model.safetensors
    models--owner--name                         a folder of the hub's cache, as copied from another machine
    hf-hub:owner/name, hf-hub:owner/name@v2     a repository: from the hub's cache on this disk, or from the hub

`find_source` looks up the small files (config.json, README.md), `Source.fetch` the weights.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.errors import BackboneError
from components.files import hash_file
from components.models import hub
from components.models.descriptions import UNKNOWN, read_licence
from components.models.downloads import ask_commit, download, list_files

PREFIX = "hf-hub:"
CONFIG, CARD, SAFE = "config.json", "README.md", "model.safetensors"
#: Pickles, most usual name first: code runs when they are opened without care.
PICKLED = ("pytorch_model.bin", "pytorch_model.pth", "model.pth", "model.pt")
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npz", ".tar")
_CACHED = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Source:
    """What is known of a backbone before its weights are read.

    name: as it was asked for. file: the weights, where they are on this disk. folder: where they lie, or None for a
    repository of the hub. repository, revision, commit: `owner/name`, what was asked for and what it is; empty where
    that is not known. config: config.json, None where there is none. licence: of the model card.
    """

    name: str
    file: Path | None = None
    folder: Path | None = None
    repository: str = ""
    revision: str | None = None
    commit: str = ""
    config: dict[str, Any] | None = None
    licence: str = UNKNOWN

    def fetch(self, pickles: bool = False) -> Path:
        """The file of the weights, from the hub where it is not on this disk.

        pickles: whether a pickle is an answer; it is looked for only where there is no safetensors file. Raises
        BackboneError.
        """
        path = self.file or (_find_in_folder(self) if self.folder else _fetch_weights(self, pickles))
        if path.suffix in PICKLES and not pickles:
            raise refuse_pickle(self.name, path.name)
        return path


def is_path(name: str) -> bool:
    """Whether a domain's `backbone:` means a file or a folder: it has a slash, or the ending of a file of weights."""
    if name.startswith(PREFIX):
        return False
    return Path(name).name != name or name.endswith((".safetensors", *PICKLES))


def resolve_name(name: str, root: Path) -> str:
    """The same with a relative path made one below `root`, the workspace; names are left alone."""
    return str(root / Path(name).expanduser()) if is_path(name) else name


def find_source(name: str) -> Source:
    """The source that `hf-hub:owner/name[@revision]` or a path means.

    Raises BackboneError where nothing is there, the hub refuses, or config.json is no JSON.
    """
    if name.startswith(PREFIX):
        return _find_on_hub(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _find_folder(name, path)
    if not path.is_file():
        raise _refuse_missing(name)
    if path.name in (SAFE, *PICKLED) and (path.parent / CONFIG).is_file():
        return replace(_find_folder(name, path.parent), file=path)
    return Source(name, file=path)


def fingerprint(name: str) -> str:
    """What tells one state of a source from another: sha256 of a file, or of the files of a folder; `hf-hub:` names
    get the commit in the hub's cache, or the hub's own. The name itself where nothing is there or answers.

    Downloads nothing.
    """
    if name.startswith(PREFIX):
        repository, revision = _split(name)
        commit = _find_commit(repository, revision) or ask_commit(repository, revision)
        return f"{PREFIX}{repository}@{commit}" if commit else name
    if not is_path(name):
        return name
    path = Path(name).expanduser()
    if path.is_file() and not (path.name == SAFE and (path.parent / CONFIG).is_file()):
        return hash_file(path) or name
    try:
        source = find_source(name)
        parts = [hash_file(source.fetch()), json.dumps(source.config, sort_keys=True), source.licence]
    except BackboneError:
        return name
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def refuse_pickle(name: str, found: str) -> BackboneError:
    return BackboneError(
        f"backbone {name}",
        expected="weights as safetensors",
        found=f"{found}, a pickle; pickles run code when they are opened, and are never read here",
        hint=f"Run `tessera backbone add {name}`, which converts it once, in a process of its own.",
    )


def _find_folder(name: str, folder: Path) -> Source:
    if (folder / "snapshots").is_dir():
        folder = _choose_snapshot(name, folder)
    cached = _CACHED.fullmatch(folder.parent.parent.name) if folder.parent.name == "snapshots" else None
    return Source(
        name,
        folder=folder,
        repository=f"{cached['owner']}/{cached['name']}" if cached else "",
        commit=folder.name if cached else "",
        config=_read_config(name, folder / CONFIG),
        licence=_read_card(folder / CARD),
    )


def _choose_snapshot(name: str, folder: Path) -> Path:
    """The snapshot that `main` is, or the only one."""
    main = folder / "refs" / "main"
    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    if main.is_file() and (named := folder / "snapshots" / main.read_text(encoding="utf-8").strip()) in snapshots:
        return named
    if len(snapshots) == 1:
        return snapshots[0]
    raise BackboneError(
        f"backbone {name}",
        expected="a folder of the hub's cache with one snapshot, or with `refs/main`",
        found=f"{len(snapshots)} snapshots: {', '.join(path.name for path in snapshots) or 'none'}",
        hint=f"Name one of them, for example {folder}/snapshots/{snapshots[0].name if snapshots else 'COMMIT'}.",
    )


def _find_in_folder(source: Source) -> Path:
    folder = source.folder
    assert folder is not None
    safe = sorted(folder.glob("*.safetensors"))
    if (folder / SAFE) in safe:
        return folder / SAFE
    if len(safe) == 1:
        return safe[0]
    pickled = [folder / name for name in PICKLED if (folder / name).is_file()]
    pickled = pickled or sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if not safe and pickled:
        return pickled[0]
    raise BackboneError(
        f"backbone {source.name}",
        expected=f"{SAFE} in the folder",
        found=", ".join(path.name for path in safe) or "no weights",
        hint="Copy the whole repository, or name the file itself.",
    )


def _find_on_hub(name: str) -> Source:
    repository, asked = _split(name)
    try:
        path = download(name, repository, CONFIG, asked, _copy_hint(repository))
    except FileNotFoundError:
        # Weights may say in their metadata what they are; what is there decides, and is named where it does not.
        commit = _find_commit(repository, asked) or ask_commit(repository, asked)
        return Source(name, repository=repository, revision=asked, commit=commit)
    commit = path.parent.name
    source = Source(name, repository=repository, revision=asked, commit=commit, config=_read_config(name, path))
    return replace(source, licence=_read_card(_find_card(source)))


def _find_card(source: Source) -> Path | None:
    """README.md of the repository; None where it has none. A hub that does not answer is asked for it only where
    config.json names no licence."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.repository, CARD, revision=source.commit)
    if isinstance(found, str):
        return Path(found)
    if found is not None or hub.why_unreachable():  # known not to exist, or not to be had
        return None
    try:
        return download(source.name, source.repository, CARD, source.commit)
    except FileNotFoundError:
        return None


def _fetch_weights(source: Source, pickles: bool) -> Path:
    """From the commit that config.json is of, so that both belong together."""
    from huggingface_hub import try_to_load_from_cache

    revision, hint = source.commit or source.revision, _copy_hint(source.repository)
    files = (SAFE, *PICKLED) if pickles else (SAFE,)
    for file in files:  # without a network it is not known that a file before the cached one does not exist
        if isinstance(found := try_to_load_from_cache(source.repository, file, revision=revision), str):
            return Path(found)
    for file in files:
        try:
            return download(source.name, source.repository, file, revision, hint)
        except FileNotFoundError:
            continue
    there = list_files(source.repository, revision)
    if pickled := [file for file in there if file.endswith(PICKLES)]:
        raise refuse_pickle(source.name, pickled[0])
    raise BackboneError(
        f"backbone {source.name}",
        expected=f"{SAFE} in the repository",
        found=", ".join(there[:8]) or "no files",
        hint="Choose a repository of timm's form: config.json and model.safetensors.",
    )


def _split(name: str) -> tuple[str, str | None]:
    """`owner/name` and the revision. Raises BackboneError for what is no name of a repository."""
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if not _REPOSITORY.fullmatch(name.removeprefix(PREFIX)) or "--" in repository or ".." in name:
        raise BackboneError(
            f"backbone {name}",
            expected="hf-hub:owner/name, or hf-hub:owner/name@revision",
            found=repository or "no name",
            hint="Write it as on the page of the repository, for example hf-hub:MahmoodLab/UNI2-h.",
        )
    return repository, revision or None


def _find_commit(repository: str, revision: str | None) -> str:
    """The commit of which the hub's cache holds config.json."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, CONFIG, revision=revision)
    return Path(found).parent.name if isinstance(found, str) else ""


def _read_config(name: str, path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        config, found = None, str(error)
    else:
        found = f"a {type(config).__name__}"
    if not isinstance(config, dict):
        expected, hint = f"{CONFIG} to be a JSON object", "Copy or download it again."
        raise BackboneError(f"backbone {name}", expected=expected, found=found, hint=hint)
    return config


def _read_card(path: Path | None) -> str:
    if path is None or not path.is_file():
        return UNKNOWN
    return read_licence(path.read_text(encoding="utf-8", errors="replace"))


def _copy_hint(repository: str) -> str:
    folder = f"models--{repository.replace('/', '--')}"
    return (
        f"Connect to the network, or copy the folder {folder} of the hub's cache from a machine that has it, and give "
        f"`backbone` its path."
    )


def _refuse_missing(name: str) -> BackboneError:
    like_repository = _REPOSITORY.fullmatch(name) is not None and Path(name).suffix not in (".safetensors", *PICKLES)
    hint = f"Correct the path; for a repository of the hub write {PREFIX}{name}." if like_repository else ""
    return BackboneError(
        f"backbone {name}",
        expected="a file or a folder",
        found="no such file on this machine",
        hint=hint or "Correct the path; where an adapter of another machine names it, copy it to that path from there.",
    )
