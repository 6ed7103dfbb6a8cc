"""What became of every picture of a raw folder: used, quarantined, or ignored with the reason.

A picture counts once, however many samples are cut from it. It is *used* if a fit sample shows it or has it as its
mask, *quarantined* if samples name it and none of them is fit, and *ignored* if no sample names it. Pictures in formats
that are not read are counted as found, too. Hence always found = used + quarantined + ignored.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from components.data.manifest import SPLITS
from components.data.sources.names import SUFFIXES
from components.domain.domain import Domain
from components.domain.reading import render_layout
from components.errors import DataError
from components.files import write_whole
from components.records.images import Example, LeftOut, ObjectCounts, Pictures, Summary
from components.tasks.base import UNLABELLED, by_class

FEW = 3  # most ignored pictures that give no warning
EXAMPLES = 3


@dataclass(frozen=True)
class Account:
    """What reading a raw folder found besides its rows.

    found: the number of pictures. ignored: pictures that no row names, with the reason. notes: counts of annotations
    that were skipped or corrected. given: number of pictures per split that the tree or table names. further:
    pictures of masks that have one file per object, by each file but the first.
    """

    found: int
    ignored: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    given: Mapping[str, int] = field(default_factory=dict)
    further: Mapping[str, str] = field(default_factory=dict)

    def count_pictures(self, fit: pl.DataFrame) -> Pictures:
        """The counts of found, used (of these: masks), quarantined and ignored pictures. fit: the rows in use."""
        masks = {path for path in fit["mask"].drop_nulls().unique() if path.lower().endswith(SUFFIXES)}
        shown = set(fit["path"].unique())
        masks |= {mask for mask, picture in self.further.items() if picture in shown}
        used = len(shown | masks)
        return Pictures(
            found=self.found,
            used=used,
            masks=len(masks - shown),
            quarantined=self.found - used - len(self.ignored),
            ignored=tuple(LeftOut(path=path, reason=why) for path, why in self.ignored.items()),
        )

    def save(self, path: Path) -> None:
        """Write the account as JSON."""
        content = {name: getattr(self, name) for name in ("found", "ignored", "notes", "given", "further")}
        write_whole(path, f"{json.dumps(content, indent=1, ensure_ascii=False)}\n".encode())


def load_account(path: Path) -> Account:
    """Read what `Account.save` wrote. Raises DataError if it is missing or damaged."""
    try:
        return Account(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        found = " ".join(str(error).split())[:200]
        hint = "Run `tessera check`, which writes it again."
        raise DataError(str(path), expected="the account of the manifest stage", found=found, hint=hint) from None


def summarise(domain: Domain, rows: pl.DataFrame) -> Summary:
    """How the images were read: layout, task, samples per class, groups, and a few labelled samples."""
    counts = dict(by_class(rows).group_by("label").len().iter_rows())
    named = rows["group"].drop_nulls().n_unique() if domain.group else rows["path"].n_unique()
    return Summary(
        layout=render_layout(domain.layout),
        task=domain.task_kind,
        classes={label: counts.get(label, 0) for label in domain.classes},
        unlabelled=rows.filter(pl.col("label") == UNLABELLED).height,
        samples=rows.height,
        cut=rows["crop"].null_count() < rows.height,
        objects=count_objects(rows, domain),
        group=domain.group,
        groups=named,
        examples=_pick(rows, domain),
    )


def count_objects(rows: pl.DataFrame, domain: Domain) -> ObjectCounts | None:
    """The boxes of all rows by class and kind; None where no boxes are annotated."""
    if "objects" not in rows.columns:
        return None
    known = rows.drop_nulls("objects")
    objects = known.select("objects").explode("objects").drop_nulls().unnest("objects")
    counting = dict(objects.filter(pl.col("kind") == "object").group_by("label").len().iter_rows())
    kinds = dict(objects.group_by("kind").len().iter_rows())
    return ObjectCounts(
        counts={label: counting.get(label, 0) for label in domain.classes},
        difficult=kinds.get("difficult", 0),
        crowd=kinds.get("crowd", 0),
        pictures=known.height,
        empty=known.filter(pl.col("objects").list.len() == 0).height,
    )


def _pick(rows: pl.DataFrame, domain: Domain) -> tuple[Example, ...]:
    """A few samples as examples: the first one of each class, then further ones."""
    order = {label: place for place, label in enumerate(domain.classes)}
    numbered = rows.with_row_index().select("index", "path", "label").drop_nulls("label")  # null: a row with a problem
    firsts = numbered.unique("label", keep="first", maintain_order=True).rows()
    firsts.sort(key=lambda row: order.get(row[2], len(order)))
    further = [row for row in numbered.head(EXAMPLES).rows() if row not in firsts]
    return tuple(Example(path=path, label=label) for _, path, label in [*firsts, *further][:EXAMPLES])


def explain_given(account: Account, domain: Domain) -> list[str]:
    """A line that says whether the split that the tree or table names is kept; empty if it names none."""
    if not account.given:
        return []
    counts = ", ".join(f"{split} {account.given[split]:,}" for split in SPLITS if split in account.given)
    if domain.split.given:
        return [f"The given split is kept (pictures: {counts})."]
    needs = "" if {"train", "test"} <= set(account.given) else ", which needs pictures for train and for test"
    return [f"The given split is not used (pictures: {counts}). Write `split: given` in domain.yaml to keep it{needs}."]


def warn_of_ignored(pictures: Pictures) -> list[str]:
    """A line with the number of ignored pictures and the most frequent reason, if there are more than FEW."""
    ignored = pictures.ignored
    if len(ignored) <= FEW:
        return []
    (why, count), *others = group_reasons(item.reason for item in ignored)
    first = next(item.path for item in ignored if item.reason == why)
    more = f"; {len(ignored) - count:,} for other reasons" if others else ""
    return [f"{len(ignored):,} of {pictures.found:,} pictures are not used: {count:,} such as {first}{more}. {why}"]


def group_reasons(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """Each reason and its count, the most frequent first."""
    return Counter(reasons).most_common()
