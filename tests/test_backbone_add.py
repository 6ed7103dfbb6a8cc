"""`tessera backbone add` and `list`: names of other projects, hostile files, what is kept and who uses it."""

import json
import os
import pickle
import resource
import zipfile
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import DOMAIN, TINY, run_tessera
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.errors import BackboneError
from components.models.backbones import hash_tensors, load_backbone
from components.models.conversion import comparing, convert
from components.models.conversion.comparing import compare, draw_pictures
from components.models.conversion.keys import Found, translate
from components.models.conversion.reading import read_tensors, with_limits
from components.models.conversion.recognising import Told, recognise
from components.models.descriptions import Description
from components.models.stored import read_stored
from components.records.backbones import Added, Addition, Backbones, Converted
from components.workspace import Workspace
from flows.commands import backbones as commands
from flows.processes import converting

GOLDEN = Path(__file__).parent / "golden" / "transformers"
CASES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))
ARCHITECTURE = "test_vit"  # timm's smallest: patch 16, 160 px, embed_dim 64, depth 6
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}


def create_network(architecture: str = ARCHITECTURE, **options: Any) -> Any:
    """A tiny network with random weights, all of them away from zero."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        vit = timm.create_model(architecture, pretrained=False, num_classes=0, **{**VIT, **options}).eval()
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return vit


def load_case(name: str, names: str = "weights") -> tuple[dict[str, Tensor], Tensor, Tensor, dict[str, Any]]:
    """Weights, images, last hidden states and config.json of a golden network."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    own = {key.removeprefix(f"{names}."): tensor for key, tensor in tensors.items() if key.startswith(f"{names}.")}
    return own, tensors["input"], tensors["output"], config


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert in this process, which must not be limited for good."""
    monkeypatch.setattr(convert, "with_limits", lambda size: None)
    monkeypatch.setattr(commands, "convert_backbone", convert.convert)


def convert_file(source: Path, target: Path, **options: Any) -> Converted:
    return convert.convert(Addition(source=str(source), target=target, **options))


def add(place: Workspace, source: Path, name: str = "", *, replace: bool = False, **options: Any) -> Added:
    return commands.add_backbone(place, Addition(source=str(source), target=Path(), **options), name, replace=replace)


def save_folder(folder: Path, name: str, **config: Any) -> Path:
    """A golden network as its authors publish it: pickled weights, config.json, pixels, card."""
    weights, _, _, own = load_case(name)
    folder.mkdir(parents=True)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(own | config))
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A network\n")
    return folder


class TestKeys:
    @pytest.mark.parametrize(
        ("name", "prefix"), [*zip(CASES, cycle(["", "dinov2.", "state_dict.module.encoder."]), strict=False)]
    )
    def test_networks_of_transformers_answer_as_there(self, name: str, prefix: str, tmp_path: Path) -> None:
        weights, images, expected, config = load_case(name)
        translated = translate({prefix + key: tensor for key, tensor in weights.items()}, name)
        shapes = {key: tuple(tensor.shape) for key, tensor in translated.tensors.items()}
        act = "gelu_tanh" if config["hidden_act"] == "gelu_new" else ""
        network = recognise(shapes, Told("", config["num_attention_heads"], act), name)
        said = Description(architecture=network.architecture, model_args=network.model_args)
        convert.write(tmp_path / "a.safetensors", translated.tensors, said)
        vit = load_backbone(str(tmp_path / "a.safetensors")).vit
        with torch.no_grad():
            assert (vit.forward_features(images) - expected).abs().max() < 1e-5
            assert (vit(images) - expected[:, 0]).abs().max() < 1e-5  # the pooled feature is the class token
        beside = {"vit": "pooler", "vit_no_bias": "pooler"}.get(name, "embeddings.mask_token")
        assert translated.left_out == {prefix + beside: 2 if beside == "pooler" else 1}

    @pytest.mark.parametrize("name", ["vit", "registers_swiglu"])
    def test_the_names_of_its_modules_are_read_like_those_of_its_files(self, name: str) -> None:
        files, modules = (translate(load_case(name, names)[0], name) for names in ("weights", "modules"))
        assert hash_tensors(files.tensors) == hash_tensors(modules.tensors)

    def test_what_no_rule_explains_is_an_error(self) -> None:
        weights, *_ = load_case("dinov2")
        with pytest.raises(BackboneError, match=r"encoder\.layer\.0\.lora_A\.weight, which none of them has"):
            translate(weights | {"encoder.layer.0.lora_A.weight": torch.zeros(2, 2)}, "x")
        del weights["encoder.layer.1.attention.attention.key.bias"]
        with pytest.raises(BackboneError, match=r"2 of the 3 parts of blocks\.1\.attn\.qkv\.bias"):
            translate(weights, "x")

    def test_one_network_is_chosen_or_none(self) -> None:
        vit = create_network().state_dict()
        both = {f"{model}.{key}": tensor for model in ("student", "teacher") for key, tensor in vit.items()}
        chosen = translate(both, "x")
        assert (chosen.found, chosen.left_out) == (Found("teacher.", "timm"), {"student": len(vit)})
        twins = {f"{model}.{key}": tensor for model in ("one", "two") for key, tensor in vit.items()}
        with pytest.raises(BackboneError, match=r"2 of them, below the prefixes one\., two\."):
            translate(twins, "x")
        with pytest.raises(BackboneError, match="1 tensors, such as conv1"):
            translate({"conv1": torch.zeros(1)}, "x")


class TestRecognising:
    @pytest.mark.parametrize(
        ("architecture", "options", "expected"),
        [
            ("vit_small_patch14_dinov2", {}, "vit_small_patch14_dinov2"),
            ("vit_base_patch14_reg4_dinov2", {"img_size": 224}, "vit_base_patch14_reg4_dinov2"),
            ("vit_tiny_patch16_224", {"img_size": 128}, "vit_tiny_patch16_224"),
            # As UNI, UNI2-h, Virchow2 and Midnight-12k, with fewer blocks.
            ("vit_large_patch16_224", {"init_values": 1e-5, "depth": 2}, "vit_base_patch16_224"),
            ("vit_giant_patch14_reg4_dinov2", {"depth": 2, "reg_tokens": 8}, "vit_giant_patch14_reg4_dinov2"),
            ("vit_giant_patch14_dinov2", {"embed_dim": 1280, "num_heads": 16, "depth": 2}, "vit_giant_patch14_dinov2"),
            ("vit_giant_patch14_dinov2", {"img_size": 224, "depth": 2}, "vit_giant_patch14_dinov2"),
            ("deit3_small_patch16_224", {}, "vit_small_patch16_224"),
            ("vit_huge_patch14_224", {"depth": 2}, "vit_base_patch16_224"),
        ],
    )
    def test_shapes_say_the_network(self, architecture: str, options: dict[str, Any], expected: str) -> None:
        import timm

        with torch.device("meta"):
            vit = timm.create_model(architecture, pretrained=False, num_classes=0, **options)
        network = recognise({key: tuple(each.shape) for key, each in vit.state_dict().items()}, Told(), "x")
        with torch.device("meta"):
            made = timm.create_model(network.architecture, pretrained=False, num_classes=0, **network.model_args)
        assert str(made) == str(vit)
        assert made.blocks[0].attn.num_heads == vit.blocks[0].attn.num_heads
        assert (made.num_prefix_tokens, made.no_embed_class) == (vit.num_prefix_tokens, vit.no_embed_class)
        assert network.architecture == expected

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pre_norm": True}, r"a norm before the blocks \(CLIP\).*--architecture"),
            ({"class_token": False, "global_pool": "avg"}, "no class token.*--architecture"),
            ({"embed_dim": 48, "num_heads": 2}, "none said, and a width of 48"),
            ({"img_size": (32, 40)}, "pos_embed of 21 positions.*config.json"),
        ],
    )
    def test_what_shapes_leave_open_is_asked_for(self, options: dict[str, Any], message: str) -> None:
        shapes = {key: tuple(each.shape) for key, each in create_network(**options).state_dict().items()}
        with pytest.raises(BackboneError, match=message):
            recognise(shapes, Told(), "x")

    def test_a_named_architecture_that_does_not_fit_names_the_tensor(self) -> None:
        vit = create_network("vit_giant_patch14_dinov2", mlp_ratio=4).state_dict()
        shapes = {key: tuple(each.shape) for key, each in vit.items()}
        with pytest.raises(BackboneError, match=r"blocks\.0\.mlp\.fc2\.weight \[64, 128\] instead of \[64, 256\]"):
            recognise(shapes, Told("vit_base_patch16_224"), "x")


def wrap_dino(vit: Mapping[str, Tensor]) -> Any:
    teacher = {f"backbone.{key}": tensor for key, tensor in vit.items()} | {"head.mlp.0.weight": torch.zeros(3, 3)}
    return {"teacher": teacher, "student": {f"module.backbone.{key}": each for key, each in vit.items()}, "epoch": 9}


def wrap_dinov2(vit: Mapping[str, Tensor]) -> Any:
    """Names of the DINOv2 repository, the blocks in chunks."""
    names = {key: key.replace(".fc1.", ".w12.").replace(".fc2.", ".w3.").replace("blocks.", "blocks.0.") for key in vit}
    state = {names[key]: tensor for key, tensor in vit.items()} | {"mask_token": torch.zeros(1, 64)}
    registers, positions = state.pop("reg_token"), state["pos_embed"]
    first = torch.full((1, 1, 64), 0.25)
    state |= {"register_tokens": registers, "cls_token": state["cls_token"] - first}
    return state | {"pos_embed": torch.cat([first, positions], 1)}


SWIGLU = {"architecture": "vit_giant_patch14_reg4_dinov2", "mlp_ratio": 4}


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("wrap", "network", "left_out"),
        [
            (lambda vit: vit, {}, {}),
            (lambda vit: {"state_dict": {f"module.{k}": v for k, v in vit.items()}}, {}, {}),
            (lambda vit: vit | {"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}, {}, {"head": 2}),
            (
                lambda vit: {"model": vit, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
                {},
                {"optimizer": 1},
            ),
            (wrap_dino, {}, {"student": 30, "teacher.head": 1}),
            (wrap_dinov2, SWIGLU, {"mask_token": 1}),
        ],
        ids=["plain", "distributed", "classifier", "training", "dino", "dinov2"],
    )
    def test_each_form_gives_the_same_features(
        self, wrap: Callable[[Any], Any], network: dict[str, Any], left_out: Any, tmp_path: Path, unlimited: None
    ) -> None:
        vit = create_network(**network)
        torch.save(wrap(dict(vit.state_dict())), tmp_path / "weights.pth")
        made = convert_file(tmp_path / "weights.pth", tmp_path / "made", mean=(0.5,) * 3, std=(0.5,) * 3)
        assert made.left_out == left_out
        pictures = draw_pictures((32, 32))
        with torch.no_grad():
            found = load_backbone(str(tmp_path / "made")).vit(pictures)
            assert (found - vit(pictures)).abs().max() < 1e-5
        chunks = wrap is wrap_dinov2
        assert (made.compared.difference is None) == chunks
        assert ("does not load it" in made.compared.reason) == chunks  # timm does not know blocks in chunks

    def test_half_precision_is_kept_and_registers_are_not_rounded(self, tmp_path: Path, unlimited: None) -> None:
        state = wrap_dinov2(dict(create_network(**SWIGLU).state_dict()))
        torch.save({key: tensor.half() for key, tensor in state.items()}, tmp_path / "a.pt")
        convert_file(tmp_path / "a.pt", tmp_path / "made")
        made = load_file(tmp_path / "made")
        assert made["blocks.0.mlp.fc1.weight"].dtype == torch.float16
        assert made["cls_token"].dtype == torch.float32

    def test_timms_form_keeps_the_hash_that_adapters_record(self, tmp_path: Path, unlimited: None) -> None:
        import timm

        state = timm.create_model(ARCHITECTURE, num_classes=3).state_dict()
        save_file(state, tmp_path / "model.safetensors")
        config = {"architecture": ARCHITECTURE, "num_classes": 3, "model_args": {}}
        config["pretrained_cfg"] = {"mean": [0.1] * 3, "std": [0.2] * 3, "license": "bsd-3-clause"}
        (tmp_path / "config.json").write_text(json.dumps(config))
        made = convert_file(tmp_path, tmp_path / "made")
        before, after = load_backbone(str(tmp_path)), load_backbone(str(tmp_path / "made"))
        assert (made.sha256, made.left_out) == (before.sha256, {"head": 2})
        assert (after.sha256, after.mean, after.licence) == (before.sha256, (0.1,) * 3, "bsd-3-clause")

    def test_a_difference_from_the_original_is_refused(self, tmp_path: Path) -> None:
        vit = create_network()
        said = Description(architecture=ARCHITECTURE, model_args=VIT)
        other = {key: tensor * 1.01 if key == "norm.weight" else tensor for key, tensor in vit.state_dict().items()}
        with pytest.raises(BackboneError, match=r"a difference of 0\.0.*Nothing was written"):
            compare(vit, other, Found("", "timm"), None, said, "x")

    def test_it_says_why_nothing_was_compared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        weights, _, _, config = load_case("vit")
        monkeypatch.setattr(comparing, "find_spec", lambda name: None)
        compared = compare(
            create_network(), weights, Found("", "transformers"), config, Description(architecture="x"), "x"
        )
        assert (compared.difference, compared.reason) == (None, "transformers is not installed")


def write_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)


def write_views(path: Path) -> None:
    torch.save({"patch_embed.proj.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def write_code(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2)}, "hook": Harmful()}, path)


def write_old_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(Harmful(), protocol=2))


def write_cut(path: Path) -> None:
    torch.save({"a": torch.zeros(4000)}, path)
    path.write_bytes(path.read_bytes()[:5000])


def write_sparse(path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, path)


def write_nested(path: Path) -> None:
    tree: Any = torch.zeros(1)
    for _ in range(30):
        tree = {"a": tree}
    torch.save(tree, path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4546\n"
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "lfs": (lambda path: path.write_bytes(LFS), "a Git LFS pointer.*git lfs pull"),
    "page": (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>Log in"), "a web page.*login"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "text": (lambda path: path.write_bytes(b"weights"), "bytes that begin with b'weights'"),
    "bomb": (write_bomb, "unpacks to 10,000,000"),
    "views": (write_views, r"tensors of 4,398,046,511,104 bytes in a file of"),
    "code": (write_code, r"runs code when it is opened: it asks for \w+\.system.*save_file"),
    "old code": (write_old_code, "runs code when it is opened"),
    "cut off": (write_cut, "cut off or damaged"),
    "sparse": (write_sparse, "a, a tensor that is sparse"),
    "nested": (write_nested, "nested more than 20 deep"),
}


class TestHostile:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_it_is_refused_by_name_and_does_nothing(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write, message = HOSTILE[name]
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "weights.bin")
        with pytest.raises(BackboneError, match=message):
            read_tensors(tmp_path / "weights.bin")
        assert not (tmp_path / "harmed").exists()

    def test_the_process_that_opens_it_has_limits(self) -> None:
        if not (child := os.fork()):
            with_limits(1000)
            most = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_CORE, resource.RLIMIT_CPU)]
            try:
                bytearray(6 << 30)
            except MemoryError:
                os._exit(7 if most == [0, 3600] else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

    @pytest.mark.parametrize(("end", "message"), [("kill -9 $$", "was killed"), ("exit 7", "exit code 7")])
    def test_its_death_is_an_error_of_the_parent(
        self, end: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stub = tmp_path / "python"
        stub.write_text(f"#!/bin/sh\nread asked\n{end}\n")
        stub.chmod(0o755)
        monkeypatch.setattr(converting.sys, "executable", str(stub))
        with pytest.raises(BackboneError, match=message):
            converting.convert_backbone(Addition(source="a.pth", target=tmp_path / "b"))


class TestWorkspace:
    def test_a_folder_of_transformers_becomes_one_file(self, tmp_path: Path, unlimited: None) -> None:
        place = Workspace(tmp_path / "ws")
        source = save_folder(tmp_path / "models--someone--tiny" / "snapshots" / ("0" * 40), "dinov2_swiglu")
        added = add(place, source)
        assert (added.status, added.file.name, added.left_out) == (
            "added",
            "tiny.safetensors",
            {"embeddings.mask_token": 1},
        )
        backbone = load_backbone(str(added.file))
        assert (backbone.licence, backbone.mean, backbone.std) == ("mit", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
        assert backbone.source == f"hf-hub:someone/tiny@{'0' * 40}"
        assert (added.backbone.sha256, added.backbone.licence) == (backbone.sha256, "mit")
        assert add(place, source).status == "unchanged"
        assert sorted(path.name for path in place.backbones.iterdir()) == ["tiny.safetensors"]

    def test_a_repository_comes_from_the_hubs_cache(
        self, tmp_path: Path, unlimited: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        cached = tmp_path / "models--someone--tiny"
        folder = save_folder(cached / "snapshots" / ("0" * 40), "vit", layer_norm_eps=1e-12)
        (folder / "preprocessor_config.json").unlink()
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("0" * 40)
        added = commands.add_backbone(
            Workspace(tmp_path / "ws"), Addition(source="hf-hub:someone/tiny", target=Path()), "", replace=False
        )
        assert (added.backbone.source, added.backbone.licence) == (f"hf-hub:someone/tiny@{'0' * 40}", "mit")
        notes = " ".join(added.notes)
        assert "add 1e-12 to variances" in notes
        assert "preprocessor_config.json, which may name mean and std, is not there" in notes

    def test_another_content_needs_a_word_and_names_who_uses_the_old(
        self, tmp_path: Path, unlimited: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = Workspace(tmp_path / "ws")
        place.domain_file(DOMAIN).parent.mkdir(parents=True)
        domain = TINY | {"backbone": "./.tessera/backbones/tiny.safetensors"}
        place.domain_file(DOMAIN).write_text(yaml.safe_dump(domain))
        first, second = (save_folder(tmp_path / name, name) for name in ("dinov2", "registers"))
        before = add(place, first, "tiny").backbone.sha256
        monkeypatch.setattr(Workspace, "has_results", lambda self: True)
        monkeypatch.setattr(commands.Store, "open", lambda workspace: None)
        monkeypatch.setattr(commands, "find_champion", lambda store, name: (3, before))
        with pytest.raises(BackboneError, match=rf"used by the domain {DOMAIN}, the champion of {DOMAIN} version 3"):
            add(place, second, "tiny")
        assert load_backbone(str(place.backbones / "tiny.safetensors")).sha256 == before
        replaced = add(place, second, "tiny", replace=True)
        assert (replaced.status, replaced.replaced, replaced.backbone.domains) == ("replaced", before, (DOMAIN,))
        assert [path.name for path in place.backbones.iterdir()] == ["tiny.safetensors"]

    def test_a_refused_source_leaves_nothing(self, tmp_path: Path, unlimited: None) -> None:
        (tmp_path / "weights.pth").write_bytes(LFS)
        place = Workspace(tmp_path / "ws")
        with pytest.raises(BackboneError, match="LFS"):
            add(place, tmp_path / "weights.pth")
        assert list(place.backbones.iterdir()) == []
        with pytest.raises(BackboneError, match="letters, digits"):
            add(place, tmp_path / "weights.pth", "../out")

    def test_what_is_said_outranks_what_is_guessed(self, tmp_path: Path, unlimited: None) -> None:
        torch.save(create_network().state_dict(), tmp_path / "mine.pth")
        said = {"licence": "bsd-3-clause", "mean": (0.1,) * 3, "std": (0.3,) * 3, "feature": "token+mean"}
        added = add(Workspace(tmp_path), tmp_path / "mine.pth", **said)
        backbone = load_backbone(str(added.file))
        assert (backbone.licence, backbone.mean, backbone.source) == ("bsd-3-clause", (0.1,) * 3, "mine.pth")
        assert added.backbone.width == 128
        assert not any("mean and std" in note for note in added.notes)
        silent = add(Workspace(tmp_path), tmp_path / "mine.pth", "silent")
        assert silent.backbone.licence == "unknown"
        assert any("mean and std: those of timm's record" in note for note in silent.notes)

    def test_weights_that_timm_publishes_are_known_by_their_name(self, tmp_path: Path, unlimited: None) -> None:
        import timm

        torch.save(timm.create_model(ARCHITECTURE).state_dict(), tmp_path / f"{ARCHITECTURE}.r160_in1k.pth")
        added = add(Workspace(tmp_path), tmp_path / f"{ARCHITECTURE}.r160_in1k.pth")
        backbone = load_backbone(str(added.file))
        assert (added.backbone.licence, added.left_out, added.notes) == ("apache-2.0", {"head": 2}, ())
        assert backbone.mean == tuple(timm.get_pretrained_cfg(f"{ARCHITECTURE}.r160_in1k").mean)

    def test_the_list_has_the_hubs_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        state = create_network().state_dict()
        for name, config in (
            ("timm--test_vit.r160_in1k", {"architecture": ARCHITECTURE, "license": "apache-2.0"}),
            ("someone--tiny", {"model_type": "dinov2"}),
            ("someone--resnet", {}),
        ):
            snapshot = tmp_path / "cache" / f"models--{name}" / "snapshots" / "abc"
            snapshot.mkdir(parents=True)
            (snapshot.parent.parent / "refs").mkdir()
            (snapshot.parent.parent / "refs" / "main").write_text("abc")
            save_file(
                state if "resnet" not in name else {"conv1.weight": torch.zeros(2)}, snapshot / "model.safetensors"
            )
            (snapshot / "config.json").write_text(json.dumps(config))
        rows = {row.name: row for row in commands.list_backbones(Workspace(tmp_path)).backbones}
        assert set(rows) == {"test_vit.r160_in1k", "hf-hub:someone/tiny", "embedded"}
        assert (rows["test_vit.r160_in1k"].licence, rows["hf-hub:someone/tiny"].architecture) == ("apache-2.0", "")
        assert rows["test_vit.r160_in1k"].sha256 == hash_tensors(state)
        assert rows["embedded"].sha256 == load_backbone("embedded").sha256
        assert (rows["embedded"].img_size, rows["embedded"].width) == ((128, 128), 192)


def test_a_files_hash_needs_no_torch(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6).reshape(2, 3),
        "a": torch.ones(3, dtype=torch.bfloat16),
        "head.weight": torch.ones(2),
    }
    save_file(tensors, tmp_path / "a.safetensors", {"licence": "mit"})
    stored = read_stored(tmp_path / "a.safetensors")
    assert stored.hash_tensors() == hash_tensors({key: tensors[key] for key in ("a", "b")})
    assert (stored.parameters, stored.metadata) == (9, {"licence": "mit"})


def test_the_commands_print_what_they_did(tmp_path: Path) -> None:
    torch.save(create_network().state_dict(), tmp_path / "mine.pth")
    added = run_tessera(tmp_path / "ws", "backbone", "add", str(tmp_path / "mine.pth"), "--licence", "MIT")
    assert added.code == 0, added.stderr
    assert added.read(Added).backbone.licence == "mit"
    listed = run_tessera(tmp_path / "ws", "backbone", "list").read(Backbones)
    assert listed.backbones[0].name == ".tessera/backbones/mine.safetensors"


@pytest.mark.parametrize("text", ["0.5", "0.5,0.5,2", "a,b,c"])
def test_three_shares_are_three_numbers(text: str) -> None:
    assert commands.read_numbers("--mean", "0.5,0,1") == (0.5, 0, 1)
    with pytest.raises(BackboneError, match=r"--mean 0\.485,0\.456,0\.406"):
        commands.read_numbers("--mean", text)
    with pytest.raises(BackboneError, match=r"own or token\+mean"):
        commands.read_feature(text)
