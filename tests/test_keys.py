"""The three keys: each changes with what its result depends on, and with nothing else."""

import ast
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import DOMAIN, TINY, create_workspace, run_tessera
from samples import make_domain

from components import keys
from components.data.store.versioning import DataVersion
from components.domain.domain import Domain
from components.domain.settings import Training
from components.errors import WorkspaceError
from components.keys import Code, candidate_key, manifest_key, read_code, score_key, trial_key, verdict_key
from components.models.tuners import create_tuners
from components.workspace import REPOSITORY, Workspace
from flows.plan import Plan
from flows.steps.dispatch import Order, require_code

CODE = Code("data", "training", "search", "gates")
SETTINGS = make_domain().model_dump(mode="json")
MEMORY = [("0" * 16, "lot1", "train"), ("1" * 16, "lot2", "test")]
#: What describes or schedules, and what changes how a training is computed, but not what comes out.
NO_RESULT = ("title", "description", "intended_use", "source", "citation", "schedule", "work_pool")
SAME_BITS = {"seeds", "workers", "checkpoint_seconds", "devices"}
VPT, LINEAR = ({"kind": "vpt", "lr": 0.1}, {"kind": "linear"})
MORE = json.dumps([*TINY["candidates"], "lora"])


def compute_keys(
    settings: dict[str, Any] = SETTINGS, code: Code = CODE, images: str = "md5", memory: Any = MEMORY
) -> dict[str, str]:
    """All keys of a domain whose data stages leave the same manifest."""
    candidates = [candidate_key("manifest", "backbone", settings, code, VPT, seed) for seed in (0, 1)]
    return {
        "manifest": manifest_key(images, memory, settings, code),
        "candidate": candidates[0],
        "score": score_key("manifest", settings, code),
        "verdict": verdict_key(candidates, settings, code),
    }


def find_changed(**changes: Any) -> set[str]:
    before, after = compute_keys(), compute_keys(**changes)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"gates": {**SETTINGS["gates"], "max_ece": 0.1}}, {"verdict"}),
        ({"gates": {**SETTINGS["gates"], "confidence": 0.9}}, {"verdict"}),
        ({"search": {"trials": 4, "seconds": None, "halving": 3}}, {"verdict"}),
        ({"augmentation": "none"}, {"candidate", "score", "verdict"}),
        ({"img_size": 64}, {"candidate", "score", "verdict"}),
        ({"group": "lot"}, {"manifest"}),
        ({"split": {**SETTINGS["split"], "seed": 7}}, {"manifest"}),
        ({"rename": {"Good": "good"}}, {"manifest"}),
        ({"classes": ["a", "b"]}, {"manifest", "candidate", "score", "verdict"}),
        ({"validation": {**SETTINGS["validation"], "min_side": 99}}, {"manifest", "candidate", "score", "verdict"}),
        ({"licence": "cc0-1.0"}, set()),
        *(({field: "another"}, set()) for field in NO_RESULT),
    ],
)
def test_a_field_of_the_domain_changes_its_own_keys(change: dict[str, Any], changed: set[str]) -> None:
    assert find_changed(settings=SETTINGS | change) == changed


def test_the_licence_of_the_data_judges_again_where_a_gate_asks_for_it_and_trains_nothing() -> None:
    gated = SETTINGS | {"gates": {**SETTINGS["gates"], "licences": ["mit"]}}
    before, after = compute_keys(gated), compute_keys(gated | {"licence": "cc0-1.0"})
    assert {name for name in before if before[name] != after[name]} == {"verdict"}


def test_each_field_of_the_domain_belongs_to_one_key() -> None:
    """A new field has to be placed: left out of all keys, a change of it would be answered by an old result."""
    parts = (keys.OF_MANIFEST, keys.OF_CANDIDATE, keys.OF_VERDICT, keys.OF_NONE)
    assert sorted(field for part in parts for field in part) == sorted(Domain.model_fields)
    assert set(SETTINGS) >= keys.READ_AGAIN


@pytest.mark.parametrize("name", sorted(Training.model_fields))
def test_a_setting_of_training_retrains_unless_it_keeps_the_bits(name: str) -> None:
    other = {**SETTINGS["training"], name: "another"}
    found = find_changed(settings=SETTINGS | {"training": other})
    assert found == (set() if name in SAME_BITS else {"candidate", "score", "verdict"})


def test_images_and_remembered_splits_change_the_manifest_alone() -> None:
    """What they change further on shows in the manifest's own hash."""
    assert find_changed(images="other") == {"manifest"}
    assert find_changed(memory=[MEMORY[0], (*MEMORY[1][:2], "train")]) == {"manifest"}
    assert find_changed(memory=MEMORY[:1]) == {"manifest"}
    assert find_changed(memory=MEMORY[::-1]) == set()


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("data", {"manifest"}),
        ("training", {"candidate", "score", "verdict"}),
        ("search", set()),
        ("gates", {"verdict"}),
    ],
)
def test_code_changes_the_keys_of_what_it_makes(part: str, changed: set[str]) -> None:
    assert find_changed(code=Code(**{**vars(CODE), part: "other"})) == changed


def test_the_code_of_the_search_counts_where_there_is_one() -> None:
    searched = SETTINGS | {"search": {"trials": 4, "seconds": None, "halving": 3}}
    other = Code(**{**vars(CODE), "search": "other"})
    assert verdict_key(["a"], searched, CODE) != verdict_key(["a"], searched, other)


def test_a_candidate_is_its_tuner_seed_manifest_and_backbone() -> None:
    facts = [
        ("m", "b", VPT, 0),
        ("other", "b", VPT, 0),
        ("m", "other", VPT, 0),
        ("m", "b", LINEAR, 0),
        ("m", "b", VPT, 1),
    ]
    found = {
        candidate_key(manifest, backbone, SETTINGS, CODE, tuner, seed) for manifest, backbone, tuner, seed in facts
    }
    assert len(found) == len(facts)
    assert len({trial_key("c", VPT, [1, 3]), trial_key("d", VPT, [1, 3]), trial_key("c", LINEAR, [1, 3])}) == 3
    assert trial_key("c", VPT, [1, 3]) != trial_key("c", VPT, [3])


def make_plan(root: Path, **changes: Any) -> Plan:
    domain = make_domain(**changes)
    version: Any = SimpleNamespace(md5="0" * 32 + ".dir")
    tuners = create_tuners(domain.candidates)
    return Plan(Workspace(root), domain, tuners, version, "commit", CODE, "backbone").with_manifest("1" * 64)


def list_folders(plan: Plan) -> dict[str, str]:
    return {name: str(job.folder) for name, job in plan.create_jobs().items()}


def test_a_tuner_or_a_seed_more_trains_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "data" / "tiles" / "raw").mkdir(parents=True)
    before = make_plan(tmp_path, candidates=["linear", "vpt"])
    more = make_plan(tmp_path, candidates=["linear", "vpt", "lora"], training={"seeds": [0, 1]})
    known, wanted = list_folders(before), list_folders(more)
    assert {name for name in wanted if wanted[name] not in known.values()} == {
        "linear-s1",
        "vpt-deep-s1",
        "lora-s0",
        "lora-s1",
    }
    assert wanted.items() >= known.items()
    assert len(set(wanted.values())) == len(wanted)
    assert before.verdict_key != more.verdict_key
    assert before.scores == more.scores


@pytest.mark.parametrize(
    ("action", "differs", "refused"),
    [
        ("train", "training", True),
        ("train", "data", False),
        ("train", "gates", False),
        ("train", "search", False),
        ("search", "search", True),
        ("score", "training", True),
        ("score", "search", False),
    ],
)
def test_a_worker_is_refused_for_code_of_its_work_alone(action: Any, differs: str, refused: bool) -> None:
    version = DataVersion(md5="0" * 32 + ".dir", files=1, size=1)
    facts = {"name": "vpt-s0", "tuner": VPT, "parent": "run", "fresh": False, "code": "commit", "place": "host:/here"}
    order = Order(
        action=action, domain=make_domain(), version=version, sources=CODE, work="key", manifest="sha256", **facts
    )
    with pytest.raises(WorkspaceError, match=f"other code of {differs}") if refused else nullcontext():
        require_code(order, Code(**{**vars(CODE), differs: "other"}))


@pytest.mark.slow
def test_cost_follows_the_change(tmp_path: Path, images: Path) -> None:
    """A gate's limit judges the same candidates again; one more tuner trains alone; each says so before it starts."""
    place = create_workspace(tmp_path / "workspace", images, gates={"floor": 0.999})
    first = run_tessera(place, "retrain", DOMAIN)
    assert first.outcome["status"] == "rejected", first.stderr
    everything = {"data": True, "candidates": ["linear-s0", "vpt-deep-s0"], "verdict": True}
    assert (first.outcome["new"], first.outcome["estimate_seconds"]) == (everything, None)
    trained = list_trained(place)
    judged = run_tessera(place, "retrain", DOMAIN, "--set", "gates.floor=0", "--set", "training.workers=1")
    assert judged.outcome["status"] == "done", judged.stderr
    assert judged.outcome["new"] == {"data": False, "candidates": [], "verdict": True}
    assert 0 < judged.outcome["estimate_seconds"] < first.outcome["seconds"]
    assert [row["run_id"] for row in judged.outcome["candidates"]] == [
        row["run_id"] for row in first.outcome["candidates"]
    ]
    assert list_trained(place) == trained
    more = run_tessera(place, "retrain", DOMAIN, "--set", "gates.floor=0", "--set", f"candidates={MORE}")
    assert "error" not in more.outcome, more.stderr
    assert more.outcome["new"] == {"data": False, "candidates": ["lora-s0"], "verdict": True}
    assert more.outcome["estimate_seconds"] is None
    assert [Path(path).parent.name for path in set(list_trained(place)) - set(trained)] == ["lora-s0"]
    again = run_tessera(place, "retrain", DOMAIN, "--set", "gates.floor=0", "--set", "training.checkpoint_seconds=1")
    assert again.outcome["status"] == "unchanged", again.stderr
    assert again.outcome["new"] == {"data": False, "candidates": [], "verdict": False}
    assert again.outcome["estimate_seconds"] == 0


def list_trained(place: Path) -> dict[str, int]:
    """When each candidate's training ended."""
    folder = place / ".tessera" / "runs" / DOMAIN
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("*/*-s*/result.json")}


# What counts as code


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code, which tests change and restore."""
    root = tmp_path_factory.mktemp("code")
    shutil.copytree(REPOSITORY / "components", root / "components", ignore=shutil.ignore_patterns("*.safetensors"))
    return root


def read_changed(tree: Path, file: str, change: Callable[[str], str]) -> set[str]:
    """Which hashes a change of one file changes; the file is restored."""
    path, cache = tree / file, tree / "cache"
    before, text = read_code(cache, tree), path.read_text()
    try:
        path.write_text(change(text))
        after = read_code(cache, tree)
    finally:
        path.write_text(text)
    assert read_code(cache, tree) == before
    return {part for part in vars(before) if getattr(before, part) != getattr(after, part)}


def add_line(text: str) -> str:
    return f"{text}\nADDED = 1\n"


def rewrite_words(text: str) -> str:
    """Other docstrings, comments and layout; the same syntax otherwise."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0] = ast.Expr(ast.Constant("Something else."))
    return f"# A comment.\n{ast.unparse(ast.fix_missing_locations(tree))}\n\n\n# Another one.\n"


FILES = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "components").rglob("*.py"))


def test_words_change_no_key(tree: Path, tmp_path: Path) -> None:
    for file in FILES:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rewrite_words((tree / file).read_text()))
    assert read_code(tmp_path / "cache", tmp_path) == read_code(tree / "cache", tree)


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("reports/pictures.py", set()),
        ("serving/predictor.py", set()),
        ("tracking/runs.py", set()),
        ("monitoring/drift.py", set()),
        ("models/pretrain/train.py", set()),
        ("data/store/versioning.py", set()),
        ("keys.py", set()),
        ("data/splits.py", {"data"}),
        ("data/checks/duplicates.py", {"data"}),
        ("models/features.py", {"data"}),
        ("training/fit.py", {"training"}),
        ("data/batches/loading.py", {"training"}),
        ("training/search.py", {"search"}),
        ("promotion/statistics.py", {"gates"}),
        ("data/sources/images.py", {"data", "training"}),
        ("models/tuners/lora.py", {"training", "search"}),
        ("domain/settings.py", {"data", "training", "search", "gates"}),
    ],
)
def test_a_line_of_code_changes_the_hash_of_what_imports_it(tree: Path, file: str, changed: set[str]) -> None:
    assert read_changed(tree, f"components/{file}", add_line) == changed


def test_an_import_inside_a_function_counts_and_one_for_type_checkers_does_not(tree: Path) -> None:
    def call(text: str) -> str:
        return f"{text}\ndef later():\n    from components.reports import pictures\n    return pictures\n"

    def name(text: str) -> str:
        return f"{text}\nif TYPE_CHECKING:\n    from components.reports import pictures\n"

    assert read_changed(tree, "components/training/usage.py", call) == {"training"}
    assert read_changed(tree, "components/training/usage.py", name) == set()


def test_no_module_is_imported_by_a_text() -> None:
    """What the hash of the code could not see."""
    for file in FILES:
        names = {
            node.attr
            for node in ast.walk(ast.parse((REPOSITORY / file).read_text()))
            if isinstance(node, ast.Attribute)
        }
        assert not names & {"import_module", "spec_from_file_location"}, file


def test_known_syntax_is_not_parsed_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = read_code(tree / "cache", tree)
    monkeypatch.setattr(ast, "parse", lambda *_: pytest.fail("parsed again"))
    assert read_code(tree / "cache", tree) == known


def test_a_missing_entry_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "components").mkdir()
    with pytest.raises(LookupError, match=r"no module components\.data\.stages"):
        read_code(tmp_path / "cache", tmp_path)
