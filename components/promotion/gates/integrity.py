"""Gates on where a version comes from: data, split, lineage, approval by a person."""

import polars as pl

from components.promotion.gates.base import Context
from components.promotion.gates.sentences import count
from components.records.outcomes import Finding


def check_data(context: Context) -> Finding:
    """Did the images pass their own checks?"""
    found = context.validation
    passed, aside = found.ok and not found.problems, len(found.quarantined)
    reason = f"Validation passed {found.fit} of {found.images} images and excluded {aside}."
    if not passed:
        reason = f"Validation said no: {'; '.join(found.problems) or 'it did not end well'}."
    numbers: dict[str, float | str] = {"images": float(found.images), "fit": float(found.fit)}
    numbers |= {"quarantined": float(aside), "problems": float(len(found.problems))}
    return Finding(gate="data", verdict="PROMOTE" if passed else "REJECT", reason=reason, evidence=numbers)


def check_split(context: Context) -> Finding:
    """Is what was tested surely not what was learned? Near duplicates have been made one group before."""
    leaks = {column: _find_straddlers(context.manifest, column) for column in ("group", "id")}
    evidence: dict[str, float | str] = {f"{column}s_on_two_sides": float(len(found)) for column, found in leaks.items()}
    evidence |= {"groups": float(context.manifest["group"].n_unique())}
    guilty = [f"{column} {name}" for column, found in leaks.items() for name in found]
    if guilty:
        reason = f"In two splits: {', '.join(guilty[:3])}{' and more' if len(guilty) > 3 else ''}."
        return Finding(gate="split", verdict="REJECT", reason=reason, evidence=evidence)
    reason = f"None of {count(context.manifest['group'].n_unique(), 'group')} and no image is in two splits."
    return Finding(gate="split", verdict="PROMOTE", reason=reason, evidence=evidence)


def _find_straddlers(manifest: pl.DataFrame, column: str) -> list[str]:
    sides = manifest.group_by(column).agg(pl.col("split").n_unique())
    return sorted(sides.filter(pl.col("split") > 1)[column])


def check_lineage(context: Context) -> Finding:
    """Can an auditor go from the version back to everything it was made from?"""
    missing = sorted(name for name, value in context.lineage.items() if value in ("", "unknown"))
    known: dict[str, float | str] = {name: value for name, value in context.lineage.items() if name not in missing}
    evidence = known | {"missing": float(len(missing))}
    if missing:
        reason = f"It cannot be traced: {', '.join(missing)} unknown."
        return Finding(gate="lineage", verdict="REJECT", reason=reason, evidence=evidence)
    return Finding(gate="lineage", verdict="PROMOTE", reason=f"Known: {', '.join(context.lineage)}.", evidence=evidence)


def check_approval(context: Context) -> Finding | None:
    """Does a person agree, where the domain asks for one?"""
    if not context.domain.gates.approval:
        return None
    if context.approved:
        return Finding(
            gate="approval", verdict="PROMOTE", reason=f"Approved by {context.approved}.", evidence={"asked": 1.0}
        )
    command = f"tessera approve {context.domain.name} {context.version} --by NAME --reason WHY"
    reason = f"A person must approve it: `{command}`."
    return Finding(gate="approval", verdict="HOLD", reason=reason, evidence={"asked": 1.0})
