"""Finds pictures and their masks by structure: which files belong together, whatever words their names hold.

The mask of a picture has its name, perhaps with another ending (`a_leftImg8bit.png` and `a_gtFine_labelIds.png`), and
lies beside it or in another folder. Files of one ending in one folder are a strand; strands of masks with one relation
to their pictures are a family. Some sets have several families, of which one is chosen by name.
"""

import posixpath
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.data.annotations.roles import (
    MASK_FOLDERS,
    SAMPLES,
    find_values,
    has_few_values,
    is_instances,
    number_objects,
)
from components.data.annotations.tree import (
    SPLIT_WORDS,
    are_groups,
    are_named_groups,
    bare_stem,
    cut_words,
    find_split,
    stem_of,
)
from components.data.sources.names import SUFFIXES
from components.domain.layouts import Instances, Masks
from components.domain.reading import render_layout
from components.errors import DomainError

MOST_MATCHES = 50  # files of one name in a set of which each may be the picture of a mask; further ones must be near
OF_AN_ITEM = 20  # most pictures of one item, patient or lot in a numbered folder
STRANDS = 12  # strands of one kind that are decoded
PIXELS = 200_000  # of a file that are looked at
FEW, SHARE = 2, 0.1  # an ending is that of at least FEW files, and of this share of the largest strand in its folder
SPLIT = re.compile(rf"(?<![a-z])(?:{'|'.join(sorted(SPLIT_WORDS, key=len, reverse=True))})", re.IGNORECASE)
#: What a family's folder or ending is called, the best first. The worst kind that a name has counts.
KINDS = (
    re.compile(r"label|class|semantic|gt|ground.?truth|manual|anno|1st", re.IGNORECASE),
    re.compile(r""),
    re.compile(r"instance|object|(?:^|[^a-z])inst(?:$|[^a-z])|2nd|second", re.IGNORECASE),
    re.compile(r"colou?r|vis(?:ual|$)|overlay|outline|(?:^|[^a-z])rgb|preview|edges?$|boundar", re.IGNORECASE),
)


@dataclass(frozen=True, order=True)
class Strand:
    """Masks of one ending in one folder, and the folder of their pictures. ending: of the file's stem or its name."""

    pictures: str
    masks: str
    ending: str


@dataclass(frozen=True)
class Family:
    """Strands of one ending, as paths with parts in angle brackets. covered: (mask, picture) pairs of files."""

    images: str
    masks: str
    ending: str
    covered: tuple[tuple[str, str], ...]

    @property
    def kind(self) -> int:
        """The place in KINDS."""
        name = f"{self.masks}/{self.ending}"
        return max((place for place in (2, 3) if KINDS[place].search(name)), default=0 if KINDS[0].search(name) else 1)


def suggest_masks(raw: Path, files: Iterable[str]) -> Masks | Instances | None:
    """The layout of pictures with masks that a folder looks like, with its paths and its ending; None without any.

    Raises DomainError with the layouts to choose from, if several masks of a picture may be meant.
    """
    images = [path for path in files if path.lower().endswith(SUFFIXES)]
    families = _find_families(raw, images)
    if not families:
        return _suggest_objects(images)
    best = min(family.kind for family in families)
    able = sorted(
        (family for family in families if family.kind == best), key=lambda family: (-len(family.covered), family.masks)
    )
    shown = {picture for _, picture in able[0].covered}
    rivals = [other for other in able[1:] if 2 * len(shown & {picture for _, picture in other.covered}) > len(shown)]
    if rivals:
        _refuse_several(raw, images, [able[0], *rivals])
    return _layout_of(raw, images, able[0])


def _refuse_several(raw: Path, images: Sequence[str], families: Sequence[Family]) -> None:
    lines = [
        f"\n    --layout {shlex.quote(render_layout(_layout_of(raw, images, family)))}    "
        f"{len(family.covered):,} masks, such as {family.covered[0][0]}"
        for family in families
    ]
    raise DomainError(
        f"masks of {raw}",
        expected="one mask per picture",
        found=f"{len(families)} that may be meant",
        hint=f"Name the right ones:{''.join(lines)}",
    )


def _layout_of(raw: Path, images: Sequence[str], family: Family) -> Masks | Instances:
    masks = [mask for mask, _ in family.covered]
    ending = (family.ending or posixpath.splitext(masks[0])[1]) if _needs_ending(images, family) else None
    if is_instances(family.masks) or (ending is None and number_objects(raw, masks)):
        return Instances(images=family.images, instances=family.masks)
    values = find_values(raw, masks)
    ignore = (255,) if 255 in values and values & set(range(1, 255)) else ()
    return Masks(images=family.images, masks=family.masks, suffix=ending, ignore=ignore)


def _needs_ending(images: Sequence[str], family: Family) -> bool:
    """Whether the masks are not found by their pictures' names and the words that mark a mask."""
    if any(stem_of(mask) == stem_of(picture) for mask, picture in family.covered):
        return bool(family.ending)
    masks, folders = {mask for mask, _ in family.covered}, {posixpath.dirname(mask) for mask, _ in family.covered}
    pictures = {picture for _, picture in family.covered}
    others = {path for path in images if posixpath.dirname(path) in folders} - masks - pictures
    stems = {stem_of(picture) for picture in pictures}
    strange = any(bare_stem(path) != stem_of(path) and bare_stem(path) in stems for path in others)
    return strange or any(bare_stem(mask) != stem_of(picture) for mask, picture in family.covered)


# Strands


def _find_families(raw: Path, images: Sequence[str]) -> list[Family]:
    """The families of masks; each strand has the folder of pictures that fits it best."""
    found = defaultdict[Strand, dict[str, str]](dict)
    for mask, picture, ending in _match(images):
        found[Strand(posixpath.dirname(picture), posixpath.dirname(mask), ending)].setdefault(mask, picture)
    look = _Look(raw)
    by_masks = defaultdict[tuple[str, str], list[Strand]](list)
    for strand, pairs in found.items():
        if look.are_masks(strand, pairs):
            by_masks[strand.masks, strand.ending].append(strand)
    chosen = [max(strands, key=lambda s: (len(found[s]), *_likeness(s), s)) for strands in by_masks.values()]
    largest = Counter[str]()
    for strand in chosen:
        largest[strand.masks] = max(largest[strand.masks], len(found[strand]))
    chosen = [s for s in chosen if len(found[s]) >= max(min(FEW, largest[s.masks]), SHARE * largest[s.masks])]
    by_ending = defaultdict[str, list[Strand]](list)
    for strand in sorted(chosen):
        by_ending[strand.ending].append(strand)
    return [
        family
        for ending, strands in by_ending.items()
        for family in _generalise(ending, {strand: found[strand] for strand in strands})
    ]


def _match(images: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(mask, picture, ending) of files that may be a mask and its picture, by their names alone."""
    cuts = {path: _cut(path) for path in images}
    names = _Names()
    for path in images:
        for key in {stem_of(path), *(key for key, _ in cuts[path])}:
            names.add(key, path)
    for path in images:
        for key, ending in [(stem_of(path), ""), *cuts[path]]:
            for other in names.find(key, path):
                if posixpath.dirname(other) != posixpath.dirname(path) or (ending and stem_of(other) != stem_of(path)):
                    yield path, other, ending
                elif stem_of(other) == stem_of(path) and not ending:
                    yield path, other, posixpath.splitext(path)[1]


class _Names:
    """Files by a name. Of many files of one name (`Part0` in each folder) only those of near folders are found."""

    def __init__(self) -> None:
        self.all, self.near = defaultdict[str, list[str]](list), defaultdict[tuple[str, str, str], list[str]](list)

    def add(self, key: str, path: str) -> None:
        self.all[key].append(path)
        for relation, place in _places(path):
            self.near[key, relation, place].append(path)

    def find(self, key: str, path: str) -> list[str]:
        """Files but `path` itself."""
        if len(self.all[key]) <= MOST_MATCHES:
            return [other for other in self.all[key] if other != path]
        found = list[str]()
        for relation, place in _places(path):
            same = [other for other in self.near[key, relation, place] if other != path]
            if relation == "folder" and same:
                return same
            found += same if len(same) <= MOST_MATCHES else []
        return found


def _places(path: str) -> tuple[tuple[str, str], ...]:
    folder = posixpath.dirname(path)
    return ("folder", folder), ("parent", posixpath.dirname(folder)), ("name", posixpath.basename(folder))


def _cut(path: str) -> list[tuple[str, str]]:
    """The stem cut before each word: `a_b_c` is `a` + `_b_c` and `a_b` + `_c`."""
    stem = stem_of(path)
    return [(key, stem[len(key) :]) for key in cut_words(stem)]


def _likeness(strand: Strand) -> tuple[bool, int]:
    """How near the folders of pictures and masks are: of the same split, and with many equal names on their paths."""
    pictures, masks = strand.pictures.split("/"), strand.masks.split("/")
    splits = [{find_split(name) for name in names} - {None} for names in (pictures, masks)]
    return splits[0] == splits[1], len(set(pictures) & set(masks))


class _Look:
    """Which strands look like masks, and their pictures unlike them: a few strands of each kind are decoded."""

    def __init__(self, raw: Path) -> None:
        self.raw, self.known, self.verdicts = raw, dict[str, bool](), defaultdict[tuple[str, ...], list[bool]](list)

    def are_masks(self, strand: Strand, pairs: Mapping[str, str]) -> bool:
        verdicts = self.verdicts[_kind_of(strand)]
        if len(verdicts) < STRANDS:
            verdicts.append(self._are_masks(strand, pairs))
            return verdicts[-1]
        return 2 * sum(verdicts) > len(verdicts)

    def _are_masks(self, strand: Strand, pairs: Mapping[str, str]) -> bool:
        first = list(pairs.items())[:: max(1, len(pairs) // SAMPLES)][:SAMPLES]
        named = is_instances(strand.masks) or bool(KINDS[2].search(strand.ending))
        few = named or all(self.has_few_values(mask) for mask, _ in first)
        return few and not any(self.has_few_values(picture) for _, picture in first)

    def has_few_values(self, path: str) -> bool:
        if path not in self.known:
            self.known[path] = has_few_values(self.raw / path, PIXELS)
        return self.known[path]


def _kind_of(strand: Strand) -> tuple[str, ...]:
    """What strands have in common of which some are decoded for all: the ending, and how their folders differ."""
    if strand.pictures == strand.masks:
        return (strand.ending,)
    pairs = zip(strand.pictures.split("/"), strand.masks.split("/"), strict=False)
    return (strand.ending, *next((pair for pair in pairs if pair[0] != pair[1]), (strand.pictures, strand.masks)))


# Paths with parts


def _generalise(ending: str, strands: Mapping[Strand, Mapping[str, str]]) -> list[Family]:
    """Families of strands whose paths differ by parts only; one family per strand where they do not fit together."""
    by_depth = defaultdict[tuple[int, int], list[Strand]](list)
    for strand in strands:
        by_depth[strand.pictures.count("/"), strand.masks.count("/")].append(strand)
    families = []
    for together in by_depth.values():
        small = sorted(len(strands[s]) for s in together)[len(together) // 2] <= OF_AN_ITEM
        paths = _name_parts([(s.pictures.split("/"), s.masks.split("/")) for s in together], items=small)
        for group, (images, masks) in (
            [(together, paths)] if paths else [([s], (s.pictures, s.masks)) for s in together]
        ):
            pairs = tuple(pair for strand in group for pair in strands[strand].items())
            families.append(Family(images or ".", masks or ".", ending, pairs))
    return families


def _name_parts(paths: Sequence[tuple[list[str], list[str]]], *, items: bool) -> tuple[str, str] | None:
    """The paths of pictures and masks, with a part for each name that differs; None if the names do not correspond.

    items: whether numbered folders are items or patients, which are groups, instead of kinds (`Class1`, `Class2`).
    """
    named, known = list[str](), dict[str, tuple[str, ...]]()
    for column in zip(*(pictures for pictures, _ in paths), strict=True):
        if len(set(column)) == 1:
            named.append(column[0])
        elif "split" not in known and (part := _as_split(column)):
            known["split"] = column
            named.append(part)
        else:
            grouped = are_named_groups(column) or (items and are_groups(column))
            name = "group" if len(set(column)) > 2 and grouped else "folder"
            if name in known:
                return None
            known[name] = column
            named.append(f"<{name}>")
    masks = [_refer(column, known) for column in zip(*(masks for _, masks in paths), strict=True)]
    if any(name is None for name in masks):
        return None
    joined = "/".join(name for name in masks if name is not None)
    return "/".join(named), joined


def _as_split(column: Sequence[str]) -> str | None:
    """`a<split>b` for names that differ by the word of a split alone."""
    found = [SPLIT.search(name) for name in column]
    around = {(name[: word.start()], name[word.end() :]) for name, word in zip(column, found, strict=True) if word}
    if None in found or len(around) != 1 or len({find_split(word[0]) for word in found if word}) < 2:
        return None
    before, after = around.pop()
    return f"{before}<split>{after}"


def _refer(column: Sequence[str], known: Mapping[str, Sequence[str]]) -> str | None:
    """A name on the path of masks by the parts of the pictures' path; None if none explains it."""
    if len(set(column)) == 1:
        return column[0]
    for name, others in known.items():
        around = {
            mask.partition(other)[::2] if other in mask else None for mask, other in zip(column, others, strict=True)
        }
        if len(around) == 1 and (found := around.pop()) is not None:
            return f"{found[0]}<{name}>{found[1]}"
    return _as_split(column) if "split" in known else None


# One file per object


def _suggest_objects(images: Sequence[str]) -> Instances | None:
    """`<group>/images` with one picture each, beside `<group>/masks` with one file per object."""
    by_folder = Counter(map(posixpath.dirname, images))
    found = Counter[tuple[str, str, str]]()
    for folder, count in by_folder.items():
        above, name = posixpath.split(folder)
        if count > 1 or name.casefold() in MASK_FOLDERS or not above:
            continue
        top = posixpath.dirname(above)
        inner = [n for n in ("masks", "mask", "instances", "labels") if posixpath.join(above, n) in by_folder]
        found.update((top, name, n) for n in inner[:1])
    if not found:
        return None
    (top, name, masks), count = found.most_common(1)[0]
    if count < FEW:
        return None
    return Instances(images=posixpath.join(top, "<group>", name), instances=posixpath.join(top, "<group>", masks))
