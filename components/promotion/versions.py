"""Registered versions of a domain's adapter: found, fetched, and proven against what was registered."""

import errno
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.domain.strict import Strict
from components.errors import AdapterError, PromotionError
from components.files import remove_whole
from components.models.adapter import Origin, require_intact
from components.promotion.ledger import META_TAG, WEIGHTS_TAG, Ledger, find_binding, is_sha256, load_ledger

log = logging.getLogger("tessera")

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
TAG = "tessera."
FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk
LOGGED = "models:/m-"  # how the URI of a model begins that was logged to a run


class Version(Strict):
    """One registered version of a domain's adapter.

    adapter_sha256: of the weights. adapter_json_sha256: of adapter.json, which stands for the whole adapter; empty in
    versions from before it was kept, which are *not bound*: only their weights can be proven. origin: what its licences
    hold for, by its tags; None in versions of earlier releases.
    """

    domain: str
    version: int
    run_id: str
    source: str
    adapter_sha256: str = ""
    adapter_json_sha256: str = ""
    tuner: str = ""
    data_version: str = ""
    git_commit: str = ""
    origin: Origin | None = None
    aliases: tuple[str, ...] = ()


def find_versions(domain: str, adapter_sha256: str) -> list[Version]:
    """All versions with these weights, the newest first, without their aliases, which MLflow's search leaves out."""
    import mlflow

    if not is_sha256(adapter_sha256):
        return []
    wanted = f"name = '{domain}' AND tags.`{WEIGHTS_TAG}` = '{adapter_sha256}'"
    found = mlflow.MlflowClient().search_model_versions(wanted, order_by=["version_number DESC"])
    return [_to_version(domain, version) for version in found]


def list_versions(domain: str, most: int) -> list[Version]:
    """The newest versions, the oldest of them first, without their aliases, which MLflow's search leaves out."""
    import mlflow

    newest = ["version_number DESC"]
    found = mlflow.MlflowClient().search_model_versions(f"name = '{domain}'", max_results=most, order_by=newest)
    return [_to_version(domain, version) for version in reversed(found)]


def load_version(domain: str, alias_or_version: str | int) -> Version | None:
    """The version an alias names or a number, None where there is none.

    `champion, challenger, previous` or 3. The model version is read by `get_…` throughout, since
    `search_model_versions` never fills `aliases`.
    """
    import mlflow

    client = mlflow.MlflowClient()
    if isinstance(alias_or_version, int):
        found = _or_none(lambda: client.get_model_version(domain, str(alias_or_version)))
    else:
        found = _or_none(lambda: client.get_model_version_by_alias(domain, alias_or_version))
    return None if found is None else _to_version(domain, found)


def fetch_adapter(
    version: Version, folder: Path, ledger: Ledger | None = None, *, replace_damaged: bool = False
) -> Path:
    """The version's adapter as a folder on disk, downloaded once into `folder`, named by its hash and hashed each time.

    ledger: the domain's, where it was just read. replace_damaged: download a copy that was edited, or damaged by a
    power cut, again, instead of refusing it.

    Raises PromotionError when it is not the adapter that was registered and, where it was ever judged, recorded.
    """
    bound = require_bound(ledger or load_ledger(version.domain), version)
    target = name_copy(version, folder, bound)
    hint = f"Remove {target}: it is a copy, and the next command fetches it again."
    if target.is_dir():
        try:
            _require_registered(version, target, hint)
            return target
        except PromotionError as error:
            if not replace_damaged:
                raise
            log.warning("Fetching a damaged copy again: %s", error)
            remove_whole(target)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        found = _download(version, Path(partial))
        try:
            os.replace(found, target)
        except OSError:  # another process put it there first
            if not target.is_dir():
                raise
            _require_registered(version, target, hint)
    return target


def name_copy(version: Version, folder: Path, bound: str) -> Path:
    """Where `fetch_adapter` keeps a copy in `folder`. bound: the version's `require_bound`."""
    return folder / (bound or version.adapter_sha256 or f"{version.domain}-{version.version}")


def find_damage(version: Version, folder: Path) -> tuple[str, ...]:
    """What is wrong with the version's adapter, a sentence each: in the artifact store, and in its copy in `folder`."""
    problems = []
    try:
        bound = require_bound(load_ledger(version.domain), version)
        with tempfile.TemporaryDirectory() as partial:
            _download(version, Path(partial))
    except PromotionError as error:
        problems.append(str(error))
    else:
        copy = name_copy(version, folder, bound)
        if copy.is_dir():
            try:
                _require_registered(version, copy, f"Remove {copy}: it is fetched again.")
            except PromotionError as error:
                problems.append(str(error))
    return tuple(problems)


def require_bound(ledger: Ledger, version: Version) -> str:
    """The hash of the version's adapter.json, by its tag and by the ledger; empty where neither has one.

    Raises PromotionError where they disagree, or a tag is no sha256: such a text never becomes a file name.
    """
    what, hint = f"{version.domain} version {version.version}", f"See `tessera ledger verify {version.domain}`."
    for tag, text in ((WEIGHTS_TAG, version.adapter_sha256), (META_TAG, version.adapter_json_sha256)):
        if text and not is_sha256(text):
            expected, found = f"64 hexadecimal digits in the tag {tag}", f"{text[:80]!r}: it was edited"
            raise PromotionError(what, expected=expected, found=found, hint=hint)
    recorded = find_binding(ledger, version.version)
    if recorded and recorded != version.adapter_json_sha256:
        raise PromotionError(
            what,
            expected=f"the adapter that the ledger recorded, whose adapter.json has sha256 {recorded[:12]}",
            found=f"{version.adapter_json_sha256[:12] or 'none'} in the tag {META_TAG}: it was edited",
            hint=f"Set the tag to {recorded}. {hint}",
        )
    return version.adapter_json_sha256


def _or_none(read: Callable[[], Any]) -> Any:
    """MLflow says "no such model, version or alias" with exceptions of two codes."""
    from mlflow.exceptions import MlflowException

    try:
        return read()
    except MlflowException as error:
        missing_alias = error.error_code == "INVALID_PARAMETER_VALUE" and "alias" in str(error)
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" or missing_alias:
            return None
        raise


def _to_version(domain: str, found: Any) -> Version:
    tags = {key.removeprefix(TAG): value for key, value in found.tags.items()}
    known = {
        key: tags.get(key, "")
        for key in ("adapter_sha256", "adapter_json_sha256", "tuner", "data_version", "git_commit")
    }
    return Version(
        domain=domain,
        version=int(found.version),
        run_id=found.run_id or "",
        source=found.source or "",
        origin=_read_origin(tags),
        aliases=tuple(sorted(found.aliases)),
        **known,
    )


def _read_origin(tags: Mapping[str, str]) -> Origin | None:
    if not Origin.model_fields.keys() <= tags.keys():
        return None
    return Origin(**{key: tags[key] for key in Origin.model_fields})


def require_version(domain: str, version: int) -> Version:
    """The version of that number. Raises PromotionError when there is none."""
    found = load_version(domain, version)
    if found is None:
        raise PromotionError(
            f"{domain} version {version}",
            expected="a registered version",
            found="none of this number",
            hint=f"Train one with `tessera retrain {domain}`, or look at the versions in MLflow.",
        )
    return found


def _download(version: Version, folder: Path) -> Path:
    """The adapter out of the artifact store, below `folder`.

    Raises PromotionError unless it is the registered one, OSError where the disk of `folder` is full.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    hint = "The artifact store was changed or lost files: restore it, or retrain and promote anew."
    uri = f"models:/{version.domain}/{version.version}"
    try:
        model = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        what, said = f"{version.domain} version {version.version}", " ".join(str(error).split())
        if full := next((code for code in FULL if os.strerror(code) in said), None):  # MLflow keeps only the text
            raise OSError(full, os.strerror(full), str(folder)) from None
        raise PromotionError(what, expected="its artifacts in the store", found=said[:300], hint=hint) from None
    found = next((path.parent for path in model.glob("artifacts/*/adapter.json")), model / "artifacts" / "adapter")
    _require_registered(version, found, hint)
    return found


def _require_registered(version: Version, folder: Path, hint: str) -> None:
    """Raise PromotionError unless this folder holds the adapter that was registered, and nothing else."""
    what = f"{version.domain} version {version.version}"
    try:
        meta = require_intact(folder, version.adapter_json_sha256)
    except AdapterError as error:
        expected, found = error.expected, f"{error.found} ({error.what})"
        raise PromotionError(what, expected=expected, found=found, hint=hint) from None
    if version.adapter_sha256 not in ("", meta.adapter_sha256):
        expected = f"an adapter with sha256 {version.adapter_sha256} in its artifacts"
        raise PromotionError(what, expected=expected, found=meta.adapter_sha256, hint=hint)


def read_binding(model_uri: str) -> str:
    """The hash of adapter.json that `artifacts.log_model` left in the model's metadata."""
    from mlflow.models import get_model_info

    if not model_uri.startswith(LOGGED):
        return ""
    return str((get_model_info(model_uri).metadata or {}).get("adapter_json_sha256", ""))


def name_version(version: Version | None) -> str:
    return "none" if version is None else f"version {version.version}"
