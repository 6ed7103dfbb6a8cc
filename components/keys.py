"""Three keys. Each is one hash of exactly what its result depends on, so that cost follows the change.

    manifest_key    images, splits.csv, the settings that the data stages read; code of the data stages
    candidate_key   the manifest's sha256, the backbone, one tuner, one seed, the settings that change bits; code of
                    the training process
    verdict_key     the candidates, the search, the gates, the licence of the data where a gate asks for it; code of
                    the gates

A result is looked up by its key: one more tuner or seed trains alone, a gate's limit only judges again, and a change in
reports or serving changes no key.

Code is named by the files that an entry module imports, directly or not, also inside functions. Of each file its syntax
counts: comments, layout and docstrings do not.

Not in any key is what a machine adds: library versions, device, threads. They are recorded with each result
(`Result.environment`). `training.dtype` counts as it is written. `auto` therefore names one candidate on all machines,
whatever number format each of them computes in, and `float32` another one, even where `auto` would mean the same.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from components.sealed import load_known, save_known

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "components"

#: Where each kind of code begins: the data stages, the training process, the search, the gates.
DATA = ("components.data.stages", "components.models.features")
TRAINING = ("components.training.__main__",)
SEARCH = ("components.training.search",)
GATES = ("components.promotion.gates.decide",)

#: The fields of domain.yaml by the key they belong to. A test holds that each field is in one of these.
OF_MANIFEST = frozenset(
    {"name", "task", "classes", "layout", "rename", "group", "groups", "slices", "split", "validation"}
)
OF_CANDIDATE = frozenset({"augmentation", "backbone", "img_size", "fit", "candidates", "training", "decision"})
OF_VERDICT = frozenset({"gates", "search", "licence"})
OF_NONE = frozenset({"title", "description", "intended_use", "source", "citation", "schedule", "work_pool"})
#: What training reads of the fields that decide the manifest, in which it leaves no trace.
READ_AGAIN = frozenset({"task", "classes", "layout", "slices", "validation"})
#: Settings of a training that change how it is computed, but not what comes out. `seeds` is a key's own argument.
SAME_BITS = frozenset({"seeds", "workers", "checkpoint_seconds", "devices"})

_SYNTAX = "1"  # to be raised with `_Syntax`, so that nothing cached by an earlier form is used


@dataclass(frozen=True)
class Code:
    """Hashes of the code that results depend on."""

    data: str
    training: str
    search: str
    gates: str


def manifest_key(images: str, memory: Sequence[Sequence[str | None]], settings: Mapping[str, Any], code: Code) -> str:
    """Key of what the data stages make. images: DVC's md5. memory: the lines of splits.csv, in any order.

    settings: a Domain as JSON.
    """
    read = {field: settings[field] for field in OF_MANIFEST}
    return _hash("manifest", images, sorted(map(list, memory), key=repr), read, code.data)


def candidate_key(
    manifest: str, backbone: str, settings: Mapping[str, Any], code: Code, tuner: Mapping[str, Any], seed: int
) -> str:
    """Key of one training. manifest, backbone: their sha256. settings: a Domain as JSON; tuner: its options."""
    return _hash("candidate", _learning(manifest, settings, code), backbone, tuner, seed)


def trial_key(candidate: str, own: Mapping[str, Any], rungs: Sequence[int]) -> str:
    """Key of a trial of a search: a training by its `candidate_key`, compared at these epochs.

    own: the options that the search began with. Two searches do not share a trial, for each records it as its own.
    """
    return _hash("trial", candidate, own, list(rungs))


def score_key(manifest: str, settings: Mapping[str, Any], code: Code) -> str:
    """Key of scoring registered versions: the images and settings, the same for all versions."""
    return _hash("score", _learning(manifest, settings, code))


def verdict_key(candidates: Iterable[str], settings: Mapping[str, Any], code: Code) -> str:
    """Key of a retrain's outcome. candidates: keys as the domain asks for them, before any search.

    The champion is not part of it: a promotion would otherwise change the key of the very retrain that made it.
    `tessera promote` judges a version against the champion of today.
    """
    search, gates = settings.get("search"), settings["gates"]
    stated = [settings["licence"]] if gates["licences"] else []
    return _hash("verdict", list(candidates), gates, search, code.search if search else "", code.gates, *stated)


def _learning(manifest: str, settings: Mapping[str, Any], code: Code) -> list[Any]:
    """What all trainings of a domain on one manifest share."""
    own = {field: settings[field] for field in (OF_CANDIDATE | READ_AGAIN) - {"backbone", "candidates", "training"}}
    training = {name: value for name, value in settings["training"].items() if name not in SAME_BITS}
    return [manifest, own, training, code.training]


def _hash(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_code(cache: Path, root: Path = ROOT) -> Code:
    """Hashes of the code below `root`. cache: a folder that keeps what is known of each file's content.

    Raises LookupError where an entry module is missing.
    """
    sources = _Sources(root, cache / "syntax.json")
    code = Code(*(sources.hash_closure(entries) for entries in (DATA, TRAINING, SEARCH, GATES)))
    sources.save()
    return code


class _Sources:
    """Syntax and imports of source files: parsed once, afterwards known by the sha256 of their bytes."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache
        stored = load_known(cache)
        self.known: dict[str, Any] = stored if isinstance(stored, dict) else {}
        self.used: dict[str, Any] = {}
        self.modules: dict[str, tuple[str, list[str]] | None] = {}

    def hash_closure(self, entries: Sequence[str]) -> str:
        """Hash of the entry modules and of all that they import of this package."""
        missing = [entry for entry in entries if self.read(entry) is None]
        if missing:
            raise LookupError(f"no module {', '.join(missing)} below {self.root}")
        found: dict[str, str] = {}
        waiting = list(entries)
        while waiting:
            name = waiting.pop()
            if name in found or (module := self.read(name)) is None:
                continue
            found[name] = module[0]
            waiting += module[1]
            waiting += [name.rpartition(".")[0]] if "." in name else []
        return _hash(sorted(found.items()))

    def read(self, name: str) -> tuple[str, list[str]] | None:
        """Hash of a module's syntax and the names that it imports; None for what is no module of ours."""
        if name not in self.modules:
            self.modules[name] = self._read(name)
        return self.modules[name]

    def _read(self, name: str) -> tuple[str, list[str]] | None:
        folder = self.root / name.replace(".", "/")
        path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        if not path.is_file():
            return None
        content = path.read_bytes()
        package = name if folder.is_dir() else name.rpartition(".")[0]
        key = hashlib.sha256(f"{_SYNTAX} {package} ".encode() + content).hexdigest()
        if key not in self.known:
            syntax = _Syntax(ast.parse(content, path), package)
            self.known[key] = [_hash(syntax.words), sorted(syntax.imports)]
        self.used[key] = self.known[key]
        return self.used[key][0], self.used[key][1]

    def save(self) -> None:
        """Keep what this code consists of, and nothing of earlier code."""
        if self.used.keys() != (load_known(self.cache) or {}).keys():
            save_known(self.cache, self.used)


class _Syntax:
    """A module's syntax as words without positions, and the names of our modules that it imports.

    Left out is what never runs: bare texts, docstrings among them, and what only type checkers import. So are empty
    fields, since each later Python adds some.
    """

    def __init__(self, tree: ast.Module, package: str) -> None:
        self.package = package
        self.words: list[str] = []
        self.imports: set[str] = set()
        self._add(tree)

    def _add(self, node: ast.AST) -> None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            self._add_all(node.orelse)
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.imports.update(name for name in self._list_names(node) if name.split(".")[0] == PACKAGE)
        self.words.append(type(node).__name__)
        for field in node._fields:
            value = getattr(node, field, None)
            if value is None or value == []:
                continue
            self.words.append(field)
            self._add_all(value if isinstance(value, list) else [value])
            self.words.append(".")

    def _add_all(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, ast.AST):
                self._add(value)
            else:
                self.words.append(repr(value))

    def _list_names(self, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        """What may be a module: `from a import b` names a, and perhaps a.b."""
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        named = node.module or ""
        base = resolve_name("." * node.level + named, self.package) if node.level else named
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)
