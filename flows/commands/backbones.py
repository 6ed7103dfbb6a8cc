"""`tessera backbone add` and `list`: backbones in the workspace, in the hub's cache, and the embedded one."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from components.data.store.digests import read_stamp
from components.domain.reading import load_domain
from components.errors import BackboneError, TesseraError
from components.files import flush, whole_file, write_whole
from components.models import hub
from components.models.conversion.shapes import read_args
from components.models.descriptions import Description
from components.models.embedded import load_card, require_embedded
from components.models.repositories import PREFIX, find_source, is_path, resolve_name
from components.models.stored import Stored, read_stored
from components.promotion import versions
from components.records.backbones import Added, Addition, Backbones, Feature, KnownBackbone
from components.tracking import candidates
from components.tracking.store import Store
from components.workspace import Workspace
from flows.processes.converting import convert_backbone

#: Names of the patch projection, in timm's and in transformers' form.
ANCHORS = ("patch_embed.proj.weight", "patch_embeddings.projection.weight")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SUFFIX = ".safetensors"
_CACHED = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")


@dataclass(frozen=True)
class Uses:
    """Who uses which backbone.

    domains: by what domain.yaml names, paths in full. champions: by the sha256 of tensors that their adapters record.
    """

    domains: Mapping[str, list[str]] = field(default_factory=dict)
    champions: Mapping[str, list[str]] = field(default_factory=dict)


def add_backbone(workspace: Workspace, asked: Addition, name: str, *, replace: bool) -> Added:
    """Convert the source to `<workspace>/.tessera/backbones/NAME.safetensors`, which appears whole or not at all.

    asked: its target is set here. name: "" for one made from the source. Raises BackboneError where the source cannot
    be converted, or another content has this name and `replace` is False.
    """
    name = name or choose_name(asked.source)
    if not NAME.fullmatch(name):
        hint = "Choose another with --name."
        raise BackboneError(f"--name {name!r}", expected="letters, digits, . _ -", found="others", hint=hint)
    file = workspace.backbones / f"{name}{SUFFIX}"
    before = read_stored(file) if file.is_file() else None
    with whole_file(file) as partial:
        made = convert_backbone(asked.model_copy(update={"target": partial}))
        fresh = read_stored(partial)
        same = before is not None and (before.metadata, before.entries) == (fresh.metadata, fresh.entries)
        if before is not None and not same and not replace:
            raise _refuse_replacement(workspace, before, fresh)
        flush(partial)
    row = _with_uses(_describe_file(workspace, file), workspace)
    return Added(
        status="unchanged" if same else "replaced" if before else "added",
        file=file,
        backbone=row,
        compared=made.compared,
        left_out=made.left_out,
        notes=made.notes,
        replaced=before.metadata.get("tensors_sha256") if before and not same else None,
    )


def read_numbers(option: str, text: str) -> tuple[float, ...] | None:
    """Three shares, as `0.485,0.456,0.406`; None for "". Raises BackboneError."""
    if not text:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(0 <= number <= 1 for number in numbers):
        hint = f"Write it as `{option} 0.485,0.456,0.406`."
        raise BackboneError(f"{option} {text!r}", expected="three numbers in [0, 1]", found="others", hint=hint)
    return numbers


def read_feature(text: str | None) -> Feature | None:
    """Raises BackboneError for a word that is none."""
    if text is None or text in get_args(Feature):
        return cast(Feature | None, text)
    expected = " or ".join(get_args(Feature))
    raise BackboneError("--feature", expected=expected, found=repr(text), hint="Choose one of them.")


def choose_name(source: str) -> str:
    """The last word of a source: of its path without ending, of a folder of the hub's cache, or of a repository."""
    if source.startswith(PREFIX):
        return source.removeprefix(PREFIX).partition("@")[0].rpartition("/")[2]
    path = Path(source).expanduser().resolve()
    if path.parent.name == "snapshots":
        path = path.parent.parent
    if cached := _CACHED.fullmatch(path.name):
        return cached["name"]
    return path.name if path.is_dir() else path.stem if path.is_file() else source


def list_backbones(workspace: Workspace) -> Backbones:
    """All that can be used without a network: the workspace's files, the hub's cache, the embedded one."""
    uses = find_uses(workspace)
    rows = [*_list_workspace(workspace), *_list_cached(workspace), _describe_embedded()]
    return Backbones(backbones=tuple(_join(workspace, row, uses) for row in rows))


def find_uses(workspace: Workspace) -> Uses:
    """Every domain's backbone, and every champion's; domains that cannot be read are left to `tessera status`."""
    domains, champions = dict[str, list[str]](), dict[str, list[str]]()
    names = []
    for path in sorted((workspace.root / "data").glob("*/domain.yaml")):
        try:
            domain = load_domain(path)
        except TesseraError:
            continue
        names.append(domain.name)
        chosen, _ = hub.choose_backbone(domain.backbone)
        domains.setdefault(_locate(workspace, chosen), []).append(domain.name)
    if names and workspace.has_results():
        store = Store.open(workspace)
        for name in names:
            if (champion := find_champion(store, name)) is not None:
                version, sha256 = champion
                champions.setdefault(sha256, []).append(f"{name} version {version}")
    return Uses(domains, champions)


def find_champion(store: Store, name: str) -> tuple[int, str] | None:
    """The version of a domain's champion, and the hash of its backbone, as the run records it that trained it."""
    champion = versions.load_version(name, versions.CHAMPION)
    return None if champion is None else (champion.version, candidates.load_backbone_sha256(store, champion.run_id))


def _locate(workspace: Workspace, name: str) -> str:
    """A name as it is; a path in full, however it is written."""
    return str(Path(resolve_name(name, workspace.root)).resolve()) if is_path(name) else name


def _refuse_replacement(workspace: Workspace, before: Stored, fresh: Stored) -> BackboneError:
    """Which part differs, and who uses the old one."""
    row = _with_uses(_describe_file(workspace, before.path), workspace)
    users = [f"the domain {name}" for name in row.domains] + [f"the champion of {name}" for name in row.champions]
    keys = sorted(before.metadata.keys() | fresh.metadata.keys())
    other = [key for key in keys if before.metadata.get(key) != fresh.metadata.get(key)]
    lost = ": the champions named do not load from it then." if row.champions and "tensors_sha256" in other else "."
    return BackboneError(
        f"backbone {before.path}",
        expected="a new name, or the same content",
        found=f"another {', '.join(other) or 'content'} under this name, used by {', '.join(users) or 'no domain'}",
        hint=f"Choose another with --name, or write over it with --replace{lost}",
    )


def _list_workspace(workspace: Workspace) -> Iterator[KnownBackbone]:
    for path in sorted(workspace.backbones.glob(f"*{SUFFIX}")):
        if not path.name.startswith("."):
            yield _describe_file(workspace, path)


def _list_cached(workspace: Workspace) -> Iterator[KnownBackbone]:
    """Vision transformers among the safetensors files in the hub's cache."""
    from huggingface_hub import constants

    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        found, main = _CACHED.fullmatch(folder.name), folder / "refs" / "main"
        if found is None or not main.is_file():
            continue
        snapshot = folder / "snapshots" / main.read_text(encoding="utf-8").strip()
        if not (file := snapshot / f"model{SUFFIX}").is_file():
            continue
        stored = read_stored(file)
        if any(
            key.endswith(("patch_embed.proj.weight", "patch_embeddings.projection.weight")) for key in stored.entries
        ):
            name = found["name"] if found["owner"] == "timm" else f"{PREFIX}{found['owner']}/{found['name']}"
            yield _describe(name, "hub", stored, _read_description(stored, snapshot), _hash(workspace, stored))


def _describe_embedded() -> KnownBackbone:
    card, stored = load_card(), read_stored(require_embedded())
    said = Description(architecture=card.architecture, licence=card.licence, source="Tessera")
    return _describe(hub.EMBEDDED, "embedded", stored, said, card.tensors_sha256)


def _describe_file(workspace: Workspace, file: Path) -> KnownBackbone:
    stored = read_stored(file)
    sha256 = stored.metadata.get("tensors_sha256") or _hash(workspace, stored)
    name = str(file.relative_to(workspace.root))
    return _describe(name, "workspace", stored, _read_description(stored, None), sha256)


def _read_description(stored: Stored, snapshot: Path | None) -> Description | None:
    """What metadata or config.json say; None where neither says an architecture of timm."""
    if "architecture" in stored.metadata:
        return Description.of_metadata(stored.metadata, str(stored.path))
    with suppress(BackboneError):  # a config.json of another library: its weights must be added first
        if snapshot is not None and (source := find_source(str(snapshot))).config is not None:
            return Description.of_config(
                source.config, source.name, repository=source.repository, licence=source.licence
            )
    return None


def _describe(
    name: str, where: Literal["workspace", "hub", "embedded"], stored: Stored, said: Description | None, sha256: str
) -> KnownBackbone:
    """said: None where nothing says an architecture of timm."""
    patches = [entry.shape for key, entry in stored.entries.items() if "patch_embed" in key and len(entry.shape) == 4]
    size = None
    with suppress(BackboneError):  # other forms than the plain one do not show it in their shapes
        size = read_args(stored.shapes, name)["img_size"]
    size = (said.model_args.get("img_size") if said else None) or size
    joined = said is not None and said.feature == "token+mean"
    return KnownBackbone(
        name=name,
        place=where,
        architecture=said.architecture if said else "",
        parameters=stored.parameters,
        size=stored.path.stat().st_size,
        img_size=None if size is None else (size, size) if isinstance(size, int) else tuple(size),
        licence=said.licence if said else "unknown",
        width=patches[0][0] * (2 if joined else 1) if patches else 0,
        sha256=sha256,
        source=said.source if said else "",
    )


def _hash(workspace: Workspace, stored: Stored) -> str:
    """The hash of a file's tensors, computed again only where the file may have changed."""
    cache, known = workspace.cache / "backbones.json", dict[str, list[object]]()
    with suppress(OSError, ValueError):  # lost or damaged: computed again
        known = json.loads(cache.read_text(encoding="utf-8"))
    key, stamp = str(stored.path.resolve()), list(read_stamp(str(stored.path)) or ())
    if key in known and known[key][:-1] == stamp:
        return str(known[key][-1])
    digest = stored.hash_tensors()
    write_whole(cache, json.dumps({**known, key: [*stamp, digest]}).encode())
    return digest


def _with_uses(row: KnownBackbone, workspace: Workspace) -> KnownBackbone:
    return _join(workspace, row, find_uses(workspace))


def _join(workspace: Workspace, row: KnownBackbone, uses: Uses) -> KnownBackbone:
    domains = uses.domains.get(_locate(workspace, row.name), [])
    champions = uses.champions.get(row.sha256, [])
    return row.model_copy(update={"domains": tuple(domains), "champions": tuple(champions)})
