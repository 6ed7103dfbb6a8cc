"""Which version of a domain's adapter is live: three aliases on one MLflow registered model named as the domain.

    champion    serves
    challenger  was registered last and awaits the gates
    previous    served before the champion; `rollback` goes back to it

MLflow has no compare-and-set for aliases, and two promoters that check first and set then let the worse one win. So the
record in the ledger decides, which can be written by one only (`ledger.append_record`), after the ledger and then the
champion were read; the aliases follow it (`_follow`), and the tag `tessera.settled` says how far they do. Whoever comes
next ends what was left half done; whoever wakes up late finds his record's number taken, or puts right behind himself
what he has overwritten. `contest` judges again when somebody else was faster.

The file lock of the workspace, and the turn that `flows.server.turns` takes from a Prefect server for machines that
share one, spare promoters work that would be in vain: nothing rests on them. An alias that was moved by hand is never
touched, and `ledger.verify_records` reports it. All functions speak to the store that `store.connect` chose.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from components.domain.strict import Strict
from components.errors import AdapterError, ChampionMoved, PromotionError
from components.models.adapter import require_intact
from components.promotion.ledger import (
    LEDGER,
    META_TAG,
    MOST_CHARACTERS,
    MOVES,
    SETTLED,
    WEIGHTS_TAG,
    Action,
    Ledger,
    Record,
    append_record,
    create_ledger,
    find_binding,
    find_last_move,
    find_last_record,
    find_lost_ledger,
    hash_text,
    is_sha256,
    load_ledger,
    load_model,
    load_records,
    parse_record,
    shorten,
)
from components.tracking.pages import link_candidates
from components.workspace import Workspace

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
LOCK_SECONDS = 60
TAG = "tessera."
LOGGED = "models:/m-"  # how the URI of a model begins that was logged to a run
PATIENCE = 1.0  # seconds in which whoever overwrote an alias has put it right
SHOWN, MOST_WHY = 10, 300  # records on the model's page, and characters of their reasons


class Version(Strict):
    """One registered version of a domain's adapter.

    adapter_sha256: of the weights. adapter_json_sha256: of adapter.json, which stands for the whole adapter; empty in
    versions from before it was kept, which are *not bound*: only their weights can be proven.
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
    aliases: tuple[str, ...] = ()


class Judgement(Strict):
    """A verdict on one version, as the ledger keeps it; the fields are those of `ledger.Record`."""

    verdict: str = "PROMOTE"
    reason: str
    evidence_sha256: str = ""
    data_version: str = ""
    git_commit: str = ""
    test_groups: int = 0
    who: str | None = None


def register_challenger(
    domain: str,
    run_id: str,
    model_uri: str,
    *,
    adapter_sha256: str,
    tuner: str,
    data_version: str,
    git_commit: str = "",
    description: str = "",
) -> int:
    """Register a logged model as a new version and point `challenger` at it; returns the version.

    An adapter that its run has registered already, by a process that was killed before it set the alias, keeps its
    version.
    """
    import mlflow

    client = mlflow.MlflowClient()
    known = find_versions(domain, adapter_sha256) if run_id else []
    version = next((there.version for there in known if there.run_id == run_id), None)
    if version is None:
        tags = {"tuner": tuner, "data_version": data_version, "git_commit": git_commit}
        tags |= {"adapter_sha256": adapter_sha256, "adapter_json_sha256": _read_binding(model_uri)}
        _create_model(client, domain)
        created = client.create_model_version(
            domain,
            source=model_uri,
            run_id=run_id,
            tags={f"{TAG}{key}": value for key, value in tags.items() if value},
            description=description or f"{tuner} · data {data_version[:8]}",
            model_id=model_uri.removeprefix("models:/") if model_uri.startswith(LOGGED) else None,
        )
        version = int(created.version)  # MLflow types it str here and int elsewhere
    point_challenger(domain, version)
    return version


def point_challenger(domain: str, version: int) -> None:
    """Make a registered version the one that is judged next."""
    import mlflow

    _set_alias(mlflow.MlflowClient(), domain, CHALLENGER, version)


def find_versions(domain: str, adapter_sha256: str) -> list[Version]:
    """All versions with these weights, the newest first, without their aliases, which MLflow's search leaves out."""
    import mlflow

    if not is_sha256(adapter_sha256):
        return []
    wanted = f"name = '{domain}' AND tags.`{WEIGHTS_TAG}` = '{adapter_sha256}'"
    found = mlflow.MlflowClient().search_model_versions(wanted, order_by=["version_number DESC"])
    return [_to_version(domain, version) for version in found]


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


def fetch_adapter(version: Version, folder: Path) -> Path:
    """The version's adapter as a folder on disk, downloaded once into `folder`, named by its hash and hashed each time.

    Raises PromotionError when it is not the adapter that was registered and, where it was ever judged, recorded.
    """
    bound = require_bound(load_ledger(version.domain), version)
    target = folder / (bound or version.adapter_sha256 or f"{version.domain}-{version.version}")
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            found = _download(version, Path(partial))
            try:
                os.replace(found, target)
            except OSError:  # another process put it there first
                if not target.is_dir():
                    raise
    _require_registered(version, target, f"Remove {target}: it is a copy, and the next command fetches it again.")
    return target


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
        copy = folder / (bound or version.adapter_sha256 or f"{version.domain}-{version.version}")
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


def contest(
    workspace: Workspace,
    domain: str,
    version: int,
    judge: Callable[[Version | None], Judgement],
    turn: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[Judgement | None, Version | None]:
    """Judge `version` against the champion, and again whenever the champion moved before the verdict took effect.

    Returns the judgement that did (None where the version is the champion already) and the champion there is now. Only
    a move by somebody else makes it judge again, so of all who contest at once one always comes through. turn: held
    around the verdict's writes, beside the workspace's lock.
    """
    while True:
        champion = load_version(domain, CHAMPION)
        if champion is not None and champion.version == version:
            return None, champion
        judgement = judge(champion)
        expected = None if champion is None else champion.version
        settle = set_champion if judgement.verdict == "PROMOTE" else record_judgement
        try:
            with turn():
                return judgement, settle(workspace, domain, version, expected=expected, **judgement.model_dump())
        except ChampionMoved:
            continue


def set_champion(workspace: Workspace, domain: str, version: int, *, expected: int | None, **judgement: Any) -> Version:
    """Make `version` the champion if the champion still is `expected` (None: there is none), and record why.

    judgement: the fields of `Judgement`. Saying it twice is no error: a retry after an interruption finds its work
    done. Raises ChampionMoved when the champion is another than expected, PromotionError when there is no such version.
    """
    told = Judgement(**judgement)
    with lock_domain(workspace, domain) as ledger:
        champion = _read_champion(ledger)
        target = require_version(domain, version)
        if champion is not None and champion.version == version:
            return champion
        _require_expected(domain, champion, expected)
        facts = told.model_dump() | {
            "data_version": told.data_version or target.data_version,
            "git_commit": told.git_commit or target.git_commit,
        }
        _record(ledger, "promote", expected, version, facts)
        return require_version(domain, version)


def record_judgement(
    workspace: Workspace, domain: str, version: int, *, expected: int | None, **judgement: Any
) -> Version | None:
    """Leave a record of a verdict that moved nothing; the same one twice, as after an interruption, is one record.

    Returns the champion, which is the one that was expected. Raises ChampionMoved when it is not.
    """
    told = Judgement(**judgement)
    with lock_domain(workspace, domain) as ledger:
        last = parse_record(domain, ledger.last, ledger.texts[ledger.last]) if ledger.texts else None
        champion = _read_champion(ledger)
        if last is not None and (last.to_version, last.evidence_sha256) == (version, told.evidence_sha256):
            return champion
        _require_expected(domain, champion, expected)
        _record(ledger, "judge", expected, version, told.model_dump())
        return champion


def rollback(workspace: Workspace, domain: str, reason: str, who: str | None = None) -> Version:
    """Champion and previous change places, with one record; returns the new champion.

    Raises PromotionError when there is nothing to go back to.
    """
    with lock_domain(workspace, domain) as ledger:
        champion, previous = _read_champion(ledger), load_version(domain, PREVIOUS)
        if champion is None or previous is None or champion.version == previous.version:
            raise PromotionError(
                f"rollback of {domain}",
                expected="a champion and, under the alias `previous`, the version that served before it",
                found=f"champion {_name(champion)}, previous {_name(previous)}",
                hint=f"Only a domain whose champion replaced another can go back: see `tessera history {domain}`.",
            )
        lineage = {"data_version": previous.data_version, "git_commit": previous.git_commit}
        _record(ledger, "rollback", champion.version, previous.version, {"reason": reason, "who": who, **lineage})
        return require_version(domain, previous.version)


def is_moving(domain: str) -> bool:
    """Whether a move is under way, or was when its process died."""
    ledger = load_ledger(domain)
    return ledger.settled < ledger.last


def complete_move(workspace: Workspace, domain: str) -> None:
    """End a move that was interrupted; one under way is waited for. Every move begins with this by itself."""
    with lock_domain(workspace, domain):
        pass


def require_champion(domain: str) -> Version:
    """The version that serves. Raises PromotionError where there is none, or it is not the one that the ledger ends at.

    A version that no record explains must not answer, so nothing is served in place of a champion moved by hand.
    """
    if (trouble := find_trouble(domain)) is not None:
        raise trouble
    champion = load_version(domain, CHAMPION)
    if champion is None:
        raise PromotionError(
            f"prediction with {domain}",
            expected="a champion",
            found="none",
            hint=f"Train and promote one with `tessera retrain {domain}`.",
        )
    return champion


def require_challenger(domain: str, number: int | None) -> Version:
    """The version of that number, or the challenger where there is none. Raises PromotionError."""
    if number is not None:
        return require_version(domain, number)
    challenger = load_version(domain, CHALLENGER)
    if challenger is None:
        raise PromotionError(
            f"promotion in {domain}",
            expected="a registered challenger",
            found="none",
            hint=f"Train one with `tessera retrain {domain}`.",
        )
    return challenger


def find_trouble(domain: str) -> PromotionError | None:
    """Why the alias `champion` is not where the ledger's last record left it, and the command that restores it.

    None where all is well, or a move is under way. Where a process that woke up late may be about to correct the alias,
    it gets the time.
    """
    ledger = load_ledger(domain)
    if not ledger.run_id and (lost := find_lost_ledger(domain)):
        return PromotionError(
            f"champion of {domain}",
            expected="the registered model whose moves a ledger records",
            found=f"none: it was deleted in MLflow, which cannot be undone; the records are parameters of run {lost}",
            hint=f"Train and promote one with `tessera retrain {domain}`, which begins a new ledger.",
        )
    if ledger.champion != find_last_move(ledger):
        time.sleep(PATIENCE)
        ledger = load_ledger(domain)
    there, recorded = ledger.champion, find_last_move(ledger)
    if there == recorded or ledger.settled < ledger.last:
        return None
    found = f"at version {there}: it was moved by hand" if there else "no such alias: it was deleted by hand"
    hint = f"`tessera ledger restore {domain}` puts it back"
    hint += f"; then `tessera promote {domain} {there}` judges version {there}." if there else "."
    if recorded is not None and load_version(domain, recorded) is None:
        found += f", and version {recorded} was deleted, which MLflow cannot undo"
        hint = f"Promote another with `tessera promote {domain} VERSION`, or train one: `tessera retrain {domain}`."
    return PromotionError(
        f"champion of {domain}",
        expected=f"the alias `champion` at version {recorded}, where the last record of the ledger left it"
        if recorded
        else "no alias `champion`, because no record of the ledger made one",
        found=found,
        hint=hint,
    )


def restore_champion(workspace: Workspace, domain: str) -> Version | None:
    """Put the aliases back to where the ledger's last move left them; returns the champion, None where there was none.

    No record is written, because the last one says it already. Raises PromotionError where its version was deleted.
    """
    import mlflow

    with lock_domain(workspace, domain) as ledger:
        client, last = mlflow.MlflowClient(), find_last_record(ledger)
        if last is None:
            if ledger.champion is not None:
                client.delete_registered_model_alias(domain, CHAMPION)
            return None
        champion = require_version(domain, last.to_version)
        before = last.from_version
        _set_aliases(client, domain, before if before and load_version(domain, before) else None, champion.version)
        return require_version(domain, champion.version)


def describe_model(domain: str) -> None:
    """MLflow's pages tell who serves, what happened last, and what was said of a version; the ledger is what counts."""
    import mlflow

    client, champion, trouble = mlflow.MlflowClient(), load_version(domain, CHAMPION), ""
    try:
        records = load_records(domain)
    except PromotionError as error:  # a rollback must not fail on what the page cannot show
        records, trouble = (), f" {error}"
    told = f"**Champion: {_name(champion)}.** The last records of [the ledger]({load_ledger(domain).page}):{trouble}"
    lines = [_note(domain)]
    experiment = client.get_experiment_by_name(domain)
    if experiment is not None:
        lines += ["", f"[All candidates side by side]({link_candidates(experiment.experiment_id)})"]
        client.set_experiment_tag(experiment.experiment_id, CHAMPION, _name(champion))
    lines += ["", told, "", *map(_tell, reversed(records[-SHOWN:]))]
    client.update_registered_model(domain, "\n".join(lines)[:MOST_CHARACTERS])
    if records and records[-1].verdict:
        client.set_model_version_tag(domain, str(records[-1].to_version), "verdict", records[-1].verdict)


def _tell(record: Record) -> str:
    """A line of a list: MLflow's tables have no space between columns."""
    before = f"version {record.from_version}" if record.from_version else "no champion"
    done = {
        "promote": f"promoted version {record.to_version} in place of {before}",
        "rollback": f"went back to version {record.to_version} from {before}",
        "judge": f"{record.verdict} for version {record.to_version} against {before}",
    }[record.action]
    why = shorten(" ".join(record.reason.split()), MOST_WHY)
    return f"- {record.when[:16].replace('T', ' ')} UTC, {record.who}: **{done}**. {why}"


@contextmanager
def lock_domain(workspace: Workspace, domain: str) -> Iterator[Ledger]:
    """Hold the domain's promotion lock, for threads and processes alike; the system frees it if the holder dies.

    Yields the ledger, after what others left half done was ended.
    """
    from filelock import FileLock, Timeout

    path = workspace.state / "locks" / f"{domain}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise PromotionError(
            f"promotion of {domain}",
            expected="no other promotion of this domain at work",
            found=f"one that has held {path} for more than {LOCK_SECONDS} s",
            hint="Try again once it is done.",
        ) from None
    try:
        yield _follow(domain)
    finally:
        lock.release()


def _record(ledger: Ledger, action: Action, before: int | None, after: int, facts: dict[str, Any]) -> None:
    """The record, which decides and names the adapter by its hash, and then what follows from it."""
    bound = require_bound(ledger, require_version(ledger.domain, after))
    append_record(ledger, action=action, from_version=before, to_version=after, adapter_json_sha256=bound, **facts)
    _follow(ledger.domain)


def _follow(domain: str) -> Ledger:
    """Make the aliases what the newest records say, whoever wrote them; returns the ledger they agree with.

    It is read again after the aliases were set: who slept in between, for however long, puts right what he overwrote.
    """
    import mlflow

    client, ledger = mlflow.MlflowClient(), load_ledger(domain)
    done = ledger.settled
    while done < ledger.last:
        new = [parse_record(domain, number, text) for number, text in sorted(ledger.texts.items()) if number > done]
        moves = [record for record in new if record.action in MOVES]
        if moves:
            _set_aliases(client, domain, moves[-1].from_version, moves[-1].to_version)
        done = ledger.last
        settled = f"{done} {hash_text(ledger.texts[done])}"
        _write(partial(client.set_registered_model_tag, domain, SETTLED, settled))
        ledger = load_ledger(domain)
    return ledger


def _read_champion(ledger: Ledger) -> Version | None:
    """The champion now, to be read after the ledger: a move since then has taken the next record's number.

    Where the alias is not what the ledger ends at, somebody who woke up late may be about to put it right; what was
    moved by hand stays.
    """
    champion = load_version(ledger.domain, CHAMPION)
    if (champion and champion.version) != find_last_move(ledger):
        time.sleep(PATIENCE)
        champion = load_version(ledger.domain, CHAMPION)
    return champion


def _set_aliases(client: Any, domain: str, before: int | None, after: int) -> None:
    """`previous` first: should it stop there, what serves is still the old champion, which works."""
    if before is not None:
        _set_alias(client, domain, PREVIOUS, before)
    _set_alias(client, domain, CHAMPION, after)


def _set_alias(client: Any, domain: str, alias: str, version: int) -> None:
    _write(lambda: client.set_registered_model_alias(domain, alias, str(version)))


def _write(change: Callable[[], object]) -> None:
    """An alias or a tag: several writers that make it for the first time meet a unique constraint on a database, and
    the losers write again.
    """
    from mlflow.exceptions import MlflowException

    for pause in (0.05, 0.2, 0.5):
        try:
            change()
            return
        except MlflowException as error:
            if "UNIQUE" not in str(error).upper():
                raise
            time.sleep(pause)
    change()


def _create_model(client: Any, domain: str) -> None:
    """The registered model and, by the same write, its ledger: of several that create it the first one's is the one."""
    from mlflow.exceptions import MlflowException

    if (model := load_model(domain)) is not None:
        if LEDGER not in model.tags and not model.aliases:  # made by hand, and never used
            client.set_registered_model_tag(domain, LEDGER, create_ledger(domain))
        return
    run_id = create_ledger(domain)
    try:
        client.create_registered_model(domain, tags={LEDGER: run_id}, description=_note(domain))
    except MlflowException as error:
        client.delete_run(run_id)
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _note(domain: str) -> str:
    return (
        f"Adapters of the domain `{domain}`. The alias `champion` serves, `challenger` was trained last, `previous` "
        f"served before. Every move is in the ledger: `tessera history {domain}` reads it, `tessera ledger verify "
        f"{domain}` proves it."
    )


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
        aliases=tuple(sorted(found.aliases)),
        **known,
    )


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


def _require_expected(domain: str, champion: Version | None, expected: int | None) -> None:
    found = None if champion is None else champion.version
    if found != expected:
        raise ChampionMoved(
            f"promotion in {domain}",
            expected=f"champion {'none' if expected is None else f'version {expected}'}, against which this was judged",
            found=f"champion {_name(champion)}: somebody else moved it meanwhile",
            hint="Judge the challenger against the present champion: run the retrain again.",
        )


def _download(version: Version, folder: Path) -> Path:
    """The adapter out of the artifact store, below `folder`. Raises PromotionError unless it is the registered one."""
    import mlflow
    from mlflow.exceptions import MlflowException

    hint = "The artifact store was changed or lost files: restore it, or retrain and promote anew."
    uri = f"models:/{version.domain}/{version.version}"
    try:
        model = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        what, said = f"{version.domain} version {version.version}", " ".join(str(error).split())[:300]
        raise PromotionError(what, expected="its artifacts in the store", found=said, hint=hint) from None
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


def _read_binding(model_uri: str) -> str:
    """The hash of adapter.json that `artifacts.log_model` left in the model's metadata."""
    from mlflow.models import get_model_info

    if not model_uri.startswith(LOGGED):
        return ""
    return str((get_model_info(model_uri).metadata or {}).get("adapter_json_sha256", ""))


def _name(version: Version | None) -> str:
    return "none" if version is None else f"version {version.version}"
