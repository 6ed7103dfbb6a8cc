"""Backbones: the embedded one, local files, timm names through a hub that may be out of reach, and what is refused."""

import json
import os
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vits import create_vit

from components.domain.canvas import ImgSize
from components.errors import BackboneError
from components.models import hub
from components.models.backbones import Backbone, hash_tensors, load_backbone
from components.models.construction import create_skeleton
from components.models.descriptions import Description
from components.models.embedded import load_card
from components.models.plain import require_plain_vit

EMBEDDED_SHA256 = load_card().tensors_sha256
SMALL = "test_vit"  # timm's smallest plain ViT: patch 16, 160 px, embed_dim 64, depth 6
real_data = pytest.mark.skipif("TESSERA_REAL_DATA" not in os.environ, reason="TESSERA_REAL_DATA names no folder")


def create_state(architecture: str = SMALL, **options: Any) -> dict[str, torch.Tensor]:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state: dict[str, torch.Tensor] = timm.create_model(architecture, pretrained=False, **options).state_dict()
    return state


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A local file as timm publishes them, classifier and all."""
    path = tmp_path / f"{SMALL}.r160_in1k.safetensors"
    save_file(create_state(), path)
    return path


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that does not answer, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.ask_in_time.cache_clear()
    return tmp_path / "cache"


def require_frozen(backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone.vit.parameters())
    assert not any(module.training for module in backbone.vit.modules())
    assert isinstance(backbone.vit.head, torch.nn.Identity)
    assert not any(tensor.is_meta for tensor in backbone.vit.state_dict().values())


class TestEmbedded:
    def test_it_is_the_network_on_its_card(self) -> None:
        backbone = load_backbone("embedded")
        assert backbone.sha256 == EMBEDDED_SHA256
        assert (backbone.img_size, backbone.vit.patch_embed.grid_size) == (ImgSize(128, 128), (8, 8))
        assert (backbone.vit.embed_dim, len(backbone.vit.blocks), backbone.trained) == (192, 12, True)
        require_frozen(backbone)

    def test_it_leaves_the_random_state_alone(self) -> None:
        before = torch.random.get_rng_state()
        load_backbone("embedded")
        assert torch.equal(before, torch.random.get_rng_state())

    def test_its_features_distinguish_images(self) -> None:
        vit = load_backbone("embedded").vit
        across, down = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
        kinds = (across, (across * 40).sin(), (down * 40).sin(), (across**2 + down**2 < 0.3).float())
        features = torch.nn.functional.normalize(vit(torch.stack(kinds)[:, None].repeat(1, 3, 1, 1)), dim=1)
        assert torch.isfinite(features).all()
        assert (features @ features.T - torch.eye(4)).max() < 0.95

    def test_another_size_resamples_positions_and_keeps_the_hash(self) -> None:
        backbone = load_backbone("embedded", 64)
        assert (backbone.img_size, backbone.vit.patch_embed.grid_size) == (ImgSize(64, 64), (4, 4))
        assert backbone.sha256 == EMBEDDED_SHA256
        assert backbone.vit(torch.zeros(1, 3, 64, 64)).shape == (1, 192)


class TestFiles:
    def test_a_file_is_loaded_strictly_without_its_head(self, weights: Path) -> None:
        backbone = load_backbone(str(weights))
        require_frozen(backbone)
        state = {name: tensor for name, tensor in create_state().items() if not name.startswith("head.")}
        assert all(torch.equal(state[name], tensor) for name, tensor in backbone.vit.state_dict().items())
        assert backbone.sha256 == hash_tensors(state)
        assert (backbone.img_size, backbone.trained, backbone.licence) == (ImgSize(160, 160), True, "apache-2.0")
        assert (backbone.name, backbone.mean) == (str(weights), (0.5, 0.5, 0.5))

    def test_the_hash_is_of_the_weights_not_of_size_head_or_order(self, weights: Path, tmp_path: Path) -> None:
        state = {name: tensor for name, tensor in create_state().items() if not name.startswith("head.")}
        other = tmp_path / f"{SMALL}.mine.safetensors"
        save_file(dict(reversed(state.items())), other)
        sha256 = load_backbone(str(weights)).sha256
        assert load_backbone(str(other), 64).sha256 == sha256
        state["norm.bias"] = state["norm.bias"] + 1e-6
        save_file(state, other)
        assert load_backbone(str(other)).sha256 != sha256

    def test_the_files_own_word_outranks_its_name(self, tmp_path: Path) -> None:
        path = tmp_path / "whatever.safetensors"
        said = {"architecture": SMALL, "mean": "[0.1, 0.2, 0.3]", "std": "[1, 1, 1]", "licence": "CC-BY-4.0"}
        save_file(create_state(img_size=96), path, metadata={**said, "trained": "false"})
        backbone = load_backbone(str(path))
        assert (backbone.img_size, backbone.mean, backbone.std) == (ImgSize(96, 96), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
        assert (backbone.licence, backbone.trained) == ("CC-BY-4.0", False)

    def test_half_precision_is_widened_exactly(self, tmp_path: Path) -> None:
        path = tmp_path / f"{SMALL}.half.safetensors"
        state = {name: tensor.half() for name, tensor in create_state(num_classes=0).items()}
        save_file(state, path)
        loaded = load_backbone(str(path)).vit.state_dict()
        assert all(torch.equal(state[name].float(), tensor) for name, tensor in loaded.items())

    def test_a_missing_or_extra_or_misshapen_tensor_is_refused(self, weights: Path) -> None:
        for change in ("missing", "extra", "shape"):
            state = create_state()
            if change == "missing":
                del state["blocks.3.norm1.bias"]
            elif change == "extra":
                state["blocks.9.norm1.bias"] = torch.zeros(64)
            else:
                state["norm.weight"] = torch.ones(65)
            save_file(state, weights)
            with pytest.raises(BackboneError, match="the tensors of timm's test_vit"):
                load_backbone(str(weights))

    def test_a_truncated_file_is_refused(self, weights: Path) -> None:
        weights.write_bytes(weights.read_bytes()[:-1000])
        with pytest.raises(BackboneError, match="whole safetensors file"):
            load_backbone(str(weights))

    def test_a_file_that_does_not_say_what_it_is(self, weights: Path) -> None:
        other = weights.rename(weights.with_name("mystery.safetensors"))
        with pytest.raises(BackboneError, match=r"patch 16, embed_dim 64, depth 6.*Rename it"):
            load_backbone(str(other))

    def test_metadata_that_is_no_list_of_numbers(self, weights: Path) -> None:
        save_file(create_state(), weights, metadata={"mean": "grey"})
        with pytest.raises(BackboneError, match="JSON list"):
            load_backbone(str(weights))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nowhere/vit_tiny_patch16_224.safetensors", "no such file"),
            ("weights/vit.pth", "no such file"),
            ("vit.bin", "no such file"),
            ("some/folder", "write hf-hub:some/folder"),
        ],
    )
    def test_other_paths_are_refused(self, name: str, message: str) -> None:
        with pytest.raises(BackboneError, match=message):
            load_backbone(name)

    @pytest.mark.parametrize("size", [100, 8])
    def test_a_size_that_cuts_patches_is_refused(self, size: int) -> None:
        with pytest.raises(BackboneError, match="multiple of its patch size, 16"):
            load_backbone("embedded", size)


class TestHub:
    def test_out_of_reach_is_said_at_once_and_nothing_random_comes_back(self, no_hub: Path) -> None:
        begin = time.monotonic()
        with pytest.raises(BackboneError, match=r"no answer from http://127\.0\.0\.1:9.*called test_vit\.safetensors"):
            load_backbone(SMALL)
        assert time.monotonic() - begin < 10

    def test_none_named_and_no_hub_means_the_embedded_one_and_says_so(self, no_hub: Path) -> None:
        name, told = hub.choose_backbone(hub.UNNAMED)
        assert name == "embedded"
        assert "out of reach (no answer from http://127.0.0.1:9" in told
        assert load_backbone(hub.UNNAMED).name == "embedded"
        assert hub.choose_backbone("vit_tiny_patch16_224") == ("vit_tiny_patch16_224", "")

    def test_the_answer_is_asked_for_once_and_within_two_seconds(
        self, no_hub: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def hang(address: str) -> str:
            asked.append(address)
            time.sleep(5)
            return ""

        monkeypatch.setattr(hub, "_ask", hang)  # a name server that does not answer
        begin = time.monotonic()
        reasons = {hub.why_unreachable() for _ in range(3)}
        assert time.monotonic() - begin < 2
        assert reasons == {"no answer from http://127.0.0.1:9 in 1.5 s"}
        assert len(asked) == 1

    def test_a_hub_that_answers_is_the_default_and_so_is_what_it_left_on_this_disk(
        self, no_hub: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from huggingface_hub import constants

        class Refuse(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_error(403)

            def log_message(self, *_: object) -> None: ...

        with HTTPServer(("127.0.0.1", 0), Refuse) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
            assert hub.choose_backbone(hub.UNNAMED)[0] == hub.DEFAULT
            server.shutdown()
        monkeypatch.setattr(hub, "ask_in_time", lambda address: f"no answer from {address}")
        assert hub.choose_backbone(hub.UNNAMED)[0] == "embedded"
        repository = no_hub / f"models--timm--{hub.DEFAULT}"
        for part in (repository / "refs", repository / "snapshots" / "abc"):
            part.mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc")
        (repository / "snapshots" / "abc" / "model.safetensors").write_bytes(b"")
        assert hub.choose_backbone(hub.UNNAMED)[0] == hub.DEFAULT

    def test_offline_by_wish(self, no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(BackboneError, match="HF_HUB_OFFLINE"):
            load_backbone(SMALL)

    def test_the_cache_serves_without_a_network_and_gives_what_the_file_gives(
        self, no_hub: Path, weights: Path
    ) -> None:
        commit = "0" * 40
        repository = no_hub / f"models--timm--{SMALL}.r160_in1k"
        for part in (repository / "refs", repository / "snapshots" / commit):
            part.mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        (repository / "snapshots" / commit / "model.safetensors").write_bytes(weights.read_bytes())
        hub, file = load_backbone(SMALL), load_backbone(str(weights))
        assert (hub.name, hub.sha256, hub.mean, hub.img_size) == (SMALL, file.sha256, file.mean, file.img_size)

    @pytest.mark.parametrize(
        ("name", "close"),
        [("vit_tinny_patch16_224", "vit_tiny_patch16_224"), ("vit_tiny_patch16_224.augreg_in22k", "augreg_in21k")],
    )
    def test_an_unknown_name_gets_close_ones(self, name: str, close: str) -> None:
        with pytest.raises(BackboneError, match=close):
            load_backbone(name)

    def test_an_architecture_without_weights_is_refused(self) -> None:
        with pytest.raises(BackboneError, match="no such weights"):
            load_backbone("vit_small_patch16_18x2_224")


class TestPlain:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("swin_tiny_patch4_window7_224", "SwinTransformer"),
            ("resnet18", "ResNet"),
            ("vit_base_r50_s16_224.orig_in21k", "a hybrid, whose patches come from a HybridEmbed"),
            ("deit_tiny_distilled_patch16_224", "VisionTransformerDistilled"),
            ("beit_base_patch16_224", "Beit: its attention adds a learned bias for every pair of places"),
            ("eva02_enormous_patch14_clip_224", "blocks of EvaBlockPostNorm: its blocks normalise what attention"),
            ("vit_relpos_small_patch16_224", "VisionTransformerRelPos"),
            ("naflexvit_base_patch16_gap", "NaFlexVit: it reads images of any shape"),
            ("samvit_base_patch16", "VisionTransformerSAM"),
        ],
    )
    def test_others_are_refused_by_name_before_any_download(self, name: str, reason: str, no_hub: Path) -> None:
        with pytest.raises(BackboneError, match=rf"backbone {name}: .*found an? {reason}|found {reason}"):
            load_backbone(name)

    def test_blocks_of_another_form_are_refused(self) -> None:
        import timm

        with torch.device("meta"):
            model = timm.create_model("vit_small_patch16_18x2_224", pretrained=False)
        with pytest.raises(BackboneError, match="blocks of ParallelThingsBlock"):
            require_plain_vit(model, "parallel")
        with pytest.raises(BackboneError, match="blocks of DiffAttention"):
            create_vit({"attn_layer": "diff"})

    @pytest.mark.parametrize(
        "name",
        [
            "vit_base_patch16_siglip_224",
            "vit_small_patch14_reg4_dinov2",
            "deit3_small_patch16_224",
            "vit_small_patch16_dinov3",
            "vit_base_patch16_lingbot",
            "eva02_tiny_patch14_224",
            "vit_pe_core_base_patch16_224",
            "vit_base_patch16_sapiens2",
        ],
    )
    def test_the_families_of_the_field_are_plain(self, name: str) -> None:
        require_plain_vit(create_skeleton(name, Description(architecture=name)), name)


@real_data
@pytest.mark.real_data
class TestRealWeights:
    CASES = (("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 0.5), ("deit_tiny_patch16_224.fb_in1k", 0.485))

    @pytest.mark.parametrize(("name", "mean"), CASES)
    def test_they_give_timms_own_features(self, name: str, mean: float) -> None:
        import timm
        from safetensors.torch import load_file

        path = Path(os.environ["TESSERA_REAL_DATA"]) / "backbones" / f"{name}.safetensors"
        backbone = load_backbone(str(path))
        assert (backbone.img_size, backbone.mean[0], backbone.licence) == (ImgSize(224, 224), mean, "apache-2.0")
        reference = timm.create_model(name.partition(".")[0], pretrained=False)
        reference.load_state_dict(load_file(path), strict=True)
        images = torch.randn(2, 3, 224, 224)
        with torch.no_grad():
            expected = reference.eval().forward_head(reference.forward_features(images), pre_logits=True)
            assert torch.equal(backbone.vit(images), expected)

    def test_positions_are_resampled(self) -> None:
        path = Path(os.environ["TESSERA_REAL_DATA"]) / "backbones" / f"{self.CASES[0][0]}.safetensors"
        own, small = load_backbone(str(path)), load_backbone(str(path), 128)
        assert (small.img_size, small.vit.pos_embed.shape[1], small.sha256) == (ImgSize(128, 128), 65, own.sha256)

    def test_a_file_at_its_own_size_and_half_precision(self, tmp_path: Path) -> None:
        source = Path(os.environ["TESSERA_REAL_DATA"]) / "backbones" / "trial_vit_tiny_patch16_128.safetensors"
        path = tmp_path / "vit_tiny_patch16_224.trial.safetensors"
        path.symlink_to(source)
        backbone = load_backbone(str(path))
        assert (backbone.img_size, backbone.vit.norm.weight.dtype) == (ImgSize(128, 128), torch.float32)


def test_a_backbones_facts_are_plain_json() -> None:
    backbone = load_backbone("embedded")
    json.dumps({key: getattr(backbone, key) for key in ("name", "sha256", "img_size", "mean", "std", "trained")})
