"""Licences of backbone, data and code: how they travel with a version, and the gate that judges them."""

import io
import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fleets
import polars as pl
import pytest
import tiny
from rich.console import Console
from tiny import create_domain
from vits import create_backbone

from components.domain.licences import normalise
from components.errors import DomainError, PromotionError
from components.models.adapter import Origin, load_meta
from components.models.embedded import load_card
from components.promotion.gates.base import Context
from components.promotion.gates.decide import decide
from components.promotion.licences import (
    find_outside_now,
    judge_licences,
    recall_licences,
    trace_licences,
    trace_version,
)
from components.promotion.versions import Version, load_version
from components.records.licences import CODE, Chain, Link, describe_chain, find_outside, suggest
from components.records.operations import DomainRow, Status
from components.tracking.store import Store
from components.workspace import REPOSITORY, Workspace
from flows import plan, progress
from flows.commands import console
from flows.steps import history, judge

NOW, EARLIER = f"{'a' * 32}.dir", f"{'b' * 32}.dir"
CLEAN: Chain = (Link.of("backbone", "vit", "mit"), Link.of("data", "tiny", "CC0-1.0"), Link.of("code", "", CODE))
SHOWN = "backbone vit: mit; data tiny: cc0-1.0; code: apache-2.0"


def create_context(chain: Chain, **gates: Any) -> Context:
    """A good challenger under these licences."""
    truth = [tiny.CLASSES[k % 3] for k in range(60)]
    frame = tiny.predict(truth, truth, [f"lot{k // 3}" for k in range(60)])
    domain = create_domain(gates=gates, slices=[])
    known = [(pl.col("predicted") == name).cast(float).alias(f"p_{name}") for name in tiny.CLASSES]
    return replace(tiny.create_context(domain, frame.with_columns(known), None), licences=chain)


def state(role: Any, licence: str | None) -> Chain:
    """The clean chain with another licence in one place."""
    return tuple(Link.of(role, link.name, licence) if link.role == role else link for link in CLEAN)


@pytest.mark.parametrize(
    ("chain", "allowed", "outside", "advice"),
    [
        (CLEAN, ["mit", "cc0-1.0", "apache-2.0"], "", ""),
        (CLEAN, ["MIT", " CC0-1.0 ", "Apache-2.0"], "", ""),
        (state("backbone", "CC-BY-NC-ND-4.0"), ["cc-by-nc-nd-4.0", "cc0-1.0", "apache-2.0"], "", ""),
        (state("data", None), ["mit", "unknown", "apache-2.0"], "", ""),
        (
            state("backbone", "CC-BY-NC-ND-4.0"),
            ["mit", "cc0-1.0", "apache-2.0"],
            "backbone vit: cc-by-nc-nd-4.0",
            "Train on another backbone; or, if the terms allow your use, add `cc-by-nc-nd-4.0` to",
        ),
        (state("data", None), ["mit", "cc0-1.0", "apache-2.0"], "data tiny: unknown", "as `licence:` in domain.yaml"),
        (state("backbone", ""), ["mit", "cc0-1.0", "apache-2.0"], "backbone vit: unknown", "its config.json"),
        (CLEAN, ["mit", "cc0-1.0"], "code: apache-2.0", " If the terms allow your use, add `apache-2.0` to"),
        (CLEAN, ["isc"], SHOWN, "add `mit`, `cc0-1.0`, `apache-2.0` to"),
    ],
)
def test_the_gate_names_what_is_outside_the_chain_and_the_fix(
    chain: Chain, allowed: list[str], outside: str, advice: str
) -> None:
    decision = decide(create_context(chain, licences=allowed, use=["floor"]))  # it judges whatever `use` picks
    found = next(finding for finding in decision.findings if finding.gate == "licences")
    assert decision.verdict == found.verdict == ("REJECT" if outside else "PROMOTE")
    assert describe_chain(chain) in found.reason
    assert f"): {outside}." in found.reason or not outside
    assert advice in found.reason
    assert (found.reason in decision.reason) is bool(outside)  # taken for granted where it passes
    assert found.evidence["outside"] == len(find_outside(chain, [normalise(name) for name in allowed]))
    assert found.evidence["data tiny"] == chain[1].licence


def test_without_a_list_nothing_is_judged() -> None:
    decision = decide(create_context(state("backbone", None)))
    assert decision.verdict == "PROMOTE"
    assert "licences" not in {finding.gate for finding in decision.findings}


@pytest.mark.parametrize("licences", [[], ["mit", " "], "mit"])
def test_a_list_that_says_nothing_is_refused(licences: Any) -> None:
    with pytest.raises(DomainError, match="licences"):
        create_domain(gates={"licences": licences})


def test_an_unusual_licence_is_a_note_with_those_close_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    with progress.listening(lambda event: told.append(event["text"])):
        plan._note_mistyped(["apache2", "cc0", "bsd-3", "mit", "acme-terms"])
    assert [text.partition("close to it: ")[2] for text in told] == [
        "apache-2.0.",
        "cc0-1.0.",
        "bsd-3-clause, bsd-3-clause-clear, 0bsd.",
    ]
    assert suggest("acme-terms") == ()


def test_the_code_stands_under_the_licence_of_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert normalise(project["license"]) == CODE


def create_origin(recorded: str = "unknown", trained_on: str = NOW, **facts: str) -> Origin:
    own = {"backbone": "vit", "backbone_sha256": "0" * 64, "backbone_licence": "mit"}
    return Origin(**{**own, "data_licence": recorded, "data_version": trained_on, **facts})


@pytest.mark.parametrize(
    ("recorded", "trained_on", "stated", "data"),
    [
        ("unknown", NOW, "", ["tiny: unknown"]),
        ("unknown", NOW, "CC0-1.0", ["tiny: cc0-1.0"]),  # the line was added: it speaks of the same images
        ("cc-by-nc-4.0", NOW, "cc0-1.0", ["tiny: cc0-1.0"]),  # the line was corrected
        ("cc0-1.0", NOW, "", ["tiny: unknown"]),
        ("cc0-1.0", EARLIER, "CC0-1.0", ["tiny: cc0-1.0"]),
        ("cc-by-nc-4.0", EARLIER, "cc0-1.0", ["tiny (when trained): cc-by-nc-4.0", "tiny (domain.yaml): cc0-1.0"]),
        ("unknown", EARLIER, "cc0-1.0", ["tiny (when trained): unknown", "tiny (domain.yaml): cc0-1.0"]),
        ("cc0-1.0", EARLIER, "", ["tiny (when trained): cc0-1.0", "tiny (domain.yaml): unknown"]),
    ],
)
def test_the_line_of_now_speaks_of_the_images_of_now(
    recorded: str, trained_on: str, stated: str, data: list[str]
) -> None:
    chain = trace_licences(create_origin(recorded, trained_on), create_domain(licence=stated), NOW)
    assert [str(link) for link in chain] == [
        "backbone vit: mit",
        *(f"data {text}" for text in data),
        "code: apache-2.0",
    ]


def test_a_domain_that_is_not_here_has_what_was_recorded() -> None:
    assert str(trace_licences(create_origin("cc0-1.0"), None, None, "gone")[1]) == "data gone: cc0-1.0"


def test_the_embedded_backbone_names_its_teacher_and_a_file_its_name() -> None:
    card = load_card()
    origin = create_origin(backbone="embedded", backbone_sha256=card.tensors_sha256, backbone_licence="Apache-2.0")
    chain = trace_licences(origin, create_domain(), NOW)
    teacher = "teacher vit_tiny_patch16_224.augreg_in21k_ft_in1k: apache-2.0"
    assert [str(link) for link in chain[:2]] == ["backbone embedded: apache-2.0", teacher]
    chain = trace_licences(create_origin(backbone="/place/.tessera/backbones/uni.safetensors"), create_domain(), NOW)
    assert str(chain[0]) == "backbone uni.safetensors: mit"


def test_training_records_the_licence_and_without_one_the_record_has_no_such_key(tmp_path: Path) -> None:
    result = tiny.train(tmp_path, create_domain(licence=" CC0-1.0"), {"kind": "linear"})
    meta = load_meta(result.folder / "adapter")
    assert json.loads((result.folder / "adapter" / "adapter.json").read_text())["data_licence"] == "cc0-1.0"
    bare = meta.model_copy(update={"data_licence": ""})
    assert "data_licence" not in bare.model_dump(mode="json")
    assert (meta.origin.data_licence, bare.origin.data_licence) == ("cc0-1.0", "unknown")


@pytest.fixture(scope="module")
def registered(store: Store, mlflow_workspace: Workspace) -> tuple[Workspace, Version, Version]:
    """Two versions, each of which was champion: the first of a backbone that not everybody may use."""
    made = list[Version]()
    for number, (licence, data) in enumerate((("CC-BY-NC-4.0", "cc0-1.0"), ("MIT", ""))):
        backbone, folder = replace(create_backbone(), licence=licence), mlflow_workspace.root / f"adapter{number}"
        fleets.write_adapter(folder, backbone, {"kind": "vpt"}, seed=number, data_version=NOW, data_licence=data)
        made.append(fleets.promote_adapter(mlflow_workspace, store, "tiny", folder))
    pointer = mlflow_workspace.raw("tiny").with_suffix(".dvc")
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.write_text(json.dumps({"outs": [{"md5": NOW, "size": 1, "nfiles": 1, "path": "raw"}]}))
    return mlflow_workspace, made[0], made[1]


def test_tags_say_what_the_adapter_says(registered: tuple[Workspace, Version, Version]) -> None:
    import mlflow

    workspace, first, _ = registered
    tags = mlflow.MlflowClient().get_model_version("tiny", str(first.version)).tags
    assert (tags["tessera.backbone_licence"], tags["tessera.data_licence"]) == ("cc-by-nc-4.0", "cc0-1.0")
    domain = create_domain(licence="MIT")
    chain = trace_version(workspace, first, domain)
    assert describe_chain(chain) == "backbone tiny: cc-by-nc-4.0; data tiny: mit; code: apache-2.0"
    bare = first.model_copy(update={"origin": None})  # of an earlier release: its copy is here since it was proven
    assert recall_licences(workspace, first, domain) == recall_licences(workspace, bare, domain) == chain
    elsewhere = replace(workspace, root=workspace.root / "elsewhere")
    shutil.copytree(workspace.root / "data", elsewhere.root / "data")
    unknown = "backbone: unknown; data tiny (when trained): unknown; data tiny (domain.yaml): mit; code: apache-2.0"
    assert describe_chain(recall_licences(elsewhere, bare, domain)) == unknown


ALLOWED = ["mit", "apache-2.0", "cc0-1.0"]


def test_no_rollback_leads_outside(registered: tuple[Workspace, Version, Version]) -> None:
    workspace, first, second = registered

    def go_back(**changes: Any) -> int | None:
        return history.rollback(workspace, create_domain(**changes), "worse in use").champion_version

    with pytest.raises(PromotionError) as error:
        go_back(gates={"licences": ALLOWED}, licence="CC0-1.0")
    assert error.value.found == "backbone tiny: cc-by-nc-4.0"
    assert "add `cc-by-nc-4.0` to `gates.licences`" in error.value.hint
    assert load_version("tiny", "champion") == second
    allowed = [*ALLOWED, "cc-by-nc-4.0"]
    assert go_back(gates={"licences": allowed}, licence="CC0-1.0") == first.version
    assert go_back() == second.version  # no gate


def test_a_champion_outside_is_reported(
    registered: tuple[Workspace, Version, Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, first, second = registered
    domain = create_domain(gates={"licences": ALLOWED}, licence="CC0-1.0")
    assert find_outside_now(workspace, second, domain) == ()
    (outside,) = find_outside_now(workspace, first, domain)
    assert str(outside) == "backbone tiny: cc-by-nc-4.0"
    warned = judge.describe_champion(1, judge_licences(workspace, domain, first))
    assert warned.verdict == "PROMOTE"
    assert "would not be promoted today. Outside the licences allowed" in warned.warnings[0]
    assert judge.describe_champion(2, judge_licences(workspace, domain, second)).warnings == ()
    rows = [
        DomainRow(domain="tiny", files=3, champion_version=number, licences=CLEAN, licences_outside=out)
        for number, out in ((1, ()), (2, (outside,)))
    ]
    screen = Console(width=200, record=True, file=io.StringIO())
    status = Status(workspace=Path("w"), mlflow="m", prefect=None, pools=(), domains=tuple(rows))
    screen.print(console.draw_status(status))
    text = screen.export_text()
    assert "licences of tiny: backbone mit · data cc0-1.0 · code apache-2.0" in text
    assert "licences of tiny outside `gates.licences`: backbone tiny: cc-by-nc-4.0" in text


def test_a_challenger_is_judged_by_the_adapter_that_was_trained(
    registered: tuple[Workspace, Version, Version], tmp_path: Path
) -> None:
    """In a retrain that lies beside its result; a version that is judged again is fetched."""
    workspace, first, _ = registered
    plan: Any = SimpleNamespace(workspace=workspace, domain=create_domain(), version=SimpleNamespace(md5=NOW))
    fleets.write_adapter(tmp_path / "adapter", replace(create_backbone(), licence="isc"), {"kind": "vpt"})
    for folder, licence in ((tmp_path, "isc"), (tmp_path / "scores", "cc-by-nc-4.0")):
        scored: Any = SimpleNamespace(folder=folder)
        assert judge.trace_challenger(plan, scored, first)[0].licence == licence
