"""Backbones from folders and from a hub: the config.json of the networks that the field uses, whose licence it is,
what a hub refuses, and which argument a tensor asks for."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hubs import TOKEN, Hub, go_down, serve_hub
from safetensors.torch import save, save_file
from vits import JOINED, create_backbone, create_images

from components.domain.canvas import ImgSize
from components.errors import BackboneError
from components.models.arguments import read_arguments
from components.models.backbones import load_backbone
from components.models.construction import create_skeleton
from components.models.descriptions import Description, read_licence
from components.models.heads import Shape
from components.models.network import create_network
from components.models.repositories import find_source, fingerprint, is_path, resolve_name
from components.models.tokens import POOLED, Needs, forward_plain
from components.models.tuners import TUNERS, create_tuners

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
OPTIMUS = {"mean": [0.707223, 0.578729, 0.703617], "std": [0.211883, 0.230117, 0.177517]}
SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2}


def write_config(architecture: str, size: int, args: dict[str, Any] | None = None, **cfg: Any) -> dict[str, Any]:
    """As timm writes config.json."""
    cfg = {"input_size": [3, size, size], "fixed_input_size": True, "num_classes": 0, **IMAGENET, **cfg}
    return {"architecture": architecture, "num_classes": 0, "model_args": args or {}, "pretrained_cfg": cfg}


#: repository -> its config.json, what its card says of its licence, and its parameters in millions.
FIELD: dict[str, tuple[dict[str, Any], str, float]] = {
    "MahmoodLab/UNI": (write_config("vit_large_patch16_224", 224), "cc-by-nc-nd-4.0", 303.4),
    "MahmoodLab/UNI2-h": (write_config("vit_giant_patch14_224", 224), "cc-by-nc-nd-4.0", 681.4),
    "paige-ai/Virchow2": (
        write_config(
            "vit_huge_patch14_224",
            224,
            {"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.3375, "global_pool": ""}
            | {"dynamic_img_size": True, "num_classes": 0},
        ),
        "cc-by-nc-nd-4.0",
        631.2,
    ),
    "bioptimus/H-optimus-0": (
        write_config("vit_giant_patch14_reg4_dinov2", 224, {"img_size": 224, "global_pool": "token"}, **OPTIMUS),
        "apache-2.0",
        1134.8,
    ),
    "prov-gigapath/prov-gigapath": (
        write_config(
            "vit_giant_patch14_dinov2",
            224,
            {"img_size": 224, "in_chans": 3, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24}
            | {"init_values": 1e-5, "mlp_ratio": 5.33334, "num_classes": 0},
        ),
        "apache-2.0",
        1134.9,
    ),
    "1aurent/vit_small_patch8_224.lunit_dino": (write_config("vit_small_patch8_224", 224), "other", 21.7),
    "1aurent/vit_base_patch16_224.kaiko_ai_towards_large_pathology_fms": (
        write_config("vit_base_patch16_224", 224, {"dynamic_img_size": True}, **HALF),
        "other",
        85.8,
    ),
    "timm/vit_small_patch14_reg4_dinov2.lvd142m": (
        write_config("vit_small_patch14_reg4_dinov2", 518),
        "apache-2.0",
        22.1,
    ),
    "timm/vit_base_patch14_reg1_tipsv2.webli": (
        write_config("vit_base_patch14_reg1_tipsv2", 448, mean=[0.0] * 3, std=[1.0] * 3),
        "apache-2.0",
        86.6,
    ),
    "timm/vit_base_patch16_siglip_224.v2_webli": (
        write_config("vit_base_patch16_siglip_224", 224, **HALF),
        "apache-2.0",
        92.9,
    ),
    "timm/vit_small_patch16_dinov3.lvd1689m": (
        write_config("vit_small_patch16_dinov3", 256, license="dinov3-license"),
        "other\nlicense_name: dinov3-license",
        21.6,
    ),
    "belfner/vit_small_patch16_lingbot.robbyant": (write_config("vit_small_patch16_lingbot", 512), "apache-2.0", 21.6),
    "timm/eva02_tiny_patch14_224.mim_in22k": (write_config("eva02_tiny_patch14_224", 224), "mit", 5.5),
    "timm/vit_pe_core_tiny_patch16_384.fb": (
        write_config("vit_pe_core_tiny_patch16_384", 384, **HALF),
        "apache-2.0",
        6.1,
    ),
}


def name_layers(config: dict[str, Any], repository: str) -> dict[str, Any]:
    """The arguments as the card of each repository has its users pass them to timm, small enough for a test."""
    from timm.layers import SwiGLUPacked

    swiglu = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
    passed: dict[str, dict[str, Any]] = {
        "MahmoodLab/UNI": {"init_values": 1e-5, "dynamic_img_size": True},
        "MahmoodLab/UNI2-h": {
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            **swiglu,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
        },
        "paige-ai/Virchow2": swiglu,
        "bioptimus/H-optimus-0": {"init_values": 1e-5},
    }
    return {**passed.get(repository, {}), **config["model_args"]}


def create_original(config: dict[str, Any], repository: str, args: dict[str, Any]) -> Any:
    """The network as its users make it with timm, away from its first values."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = config["pretrained_cfg"]["input_size"][1:]
        args = {"img_size": size, **name_layers(config, repository), **args, "num_classes": 0}
        vit = timm.create_model(config["architecture"], pretrained=False, **args)
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return vit.eval()


def create_files(vit: Any, config: dict[str, Any] | None, licence: str = "") -> dict[str, bytes]:
    """A repository of timm's form."""
    files = {"model.safetensors": save(vit.state_dict())}
    if config is not None:
        files["config.json"] = json.dumps(config).encode()
    if licence:
        files["README.md"] = f"---\nlicense: {licence}\ntags:\n- timm\n---\n# A model".encode()
    return files


def create_tiny(**args: Any) -> tuple[Any, dict[str, Any]]:
    config = write_config("vit_tiny_patch16_224", 32, {**SMALL, "img_size": 32, **args})
    return create_original(config, "", {}), config


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with serve_hub(tmp_path / "hub", monkeypatch) as hub:
        yield hub


class TestTheField:
    @pytest.mark.parametrize("repository", FIELD)
    def test_its_config_makes_the_published_network(self, repository: str) -> None:
        config, _, millions = FIELD[repository]
        described = Description.of_config(config, repository, repository=repository)
        network = create_skeleton(repository, described)
        assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.6)

    @pytest.mark.parametrize("repository", FIELD)
    def test_it_is_loaded_from_a_hub_and_from_its_cache_as_its_users_load_it(
        self, repository: str, served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config, licence, _ = FIELD[repository]
        original = create_original(config, repository, SMALL)
        config = {**config, "model_args": {**config["model_args"], **SMALL}}
        commit = served.publish(repository, create_files(original, config, licence))
        loaded = load_backbone(f"hf-hub:{repository}")
        go_down(monkeypatch)
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        assert find_source(str(folder / "snapshots" / commit)).config == config
        for again in (f"hf-hub:{repository}", str(folder)):
            assert load_backbone(again).sha256 == loaded.sha256
        assert (loaded.licence, loaded.source) == (licence.rpartition(" ")[2], f"hf-hub:{repository}")
        assert (list(loaded.mean), loaded.img_size.height) == (
            config["pretrained_cfg"]["mean"],
            config["pretrained_cfg"]["input_size"][1],
        )
        images = torch.randn(1, 3, *loaded.img_size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            states = original.forward_features(images)
            features = forward_plain(loaded.vit, images, POOLED).pooled
            if "Virchow2" in repository:  # as its card joins them
                expected = torch.cat([states[:, 0], states[:, 5:].mean(1)], dim=-1)
            else:
                expected = original.forward_head(states, pre_logits=True)
        assert torch.equal(features, expected)
        assert Shape.of(loaded.vit).pooled == features.shape[1]


class TestHub:
    def test_a_revision_is_another_repository(self, served: Hub) -> None:
        (one, config), (two, deeper) = create_tiny(), create_tiny(depth=3)
        served.publish("owner/net", create_files(one, config))
        served.publish("owner/net", create_files(two, deeper), "v2")
        assert len(load_backbone("hf-hub:owner/net").vit.blocks) == 2
        assert len(load_backbone("hf-hub:owner/net@v2").vit.blocks) == 3
        with pytest.raises(BackboneError, match="a branch, tag or commit"):
            load_backbone("hf-hub:owner/net@v3")

    @pytest.mark.parametrize("token", ["", "hf_another"])
    def test_a_gated_repository_says_whose_licence_to_accept(
        self, token: str, served: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vit, config = create_tiny()
        served.publish("owner/net", create_files(vit, config), gated=True)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(BackboneError, match=rf"Accept its licence at {served.address}/owner/net.*HF_TOKEN"):
            load_backbone("hf-hub:owner/net")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert load_backbone("hf-hub:owner/net").img_size == ImgSize(32, 32)

    def test_a_repository_of_pickles_alone_is_converted_first(self, served: Hub) -> None:
        vit, config = create_tiny()
        files = create_files(vit, config)
        served.publish("owner/net", {"config.json": files["config.json"], "pytorch_model.bin": b"\x80"})
        with pytest.raises(BackboneError, match=r"pytorch_model.bin.*Run `tessera backbone add hf-hub:owner/net`"):
            load_backbone("hf-hub:owner/net")
        assert not [line for line in served.asked if line.startswith("GET") and line.endswith(".bin")]
        assert find_source("hf-hub:owner/net").fetch(pickles=True).read_bytes() == b"\x80"

    def test_what_is_not_there(self, served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        served.publish("owner/net", {"config.json": b"{}", "notes.txt": b""})
        served.publish("owner/data", {"train.csv": b""})
        with pytest.raises(BackboneError, match=r"no owner/other there, or a private one"):
            load_backbone("hf-hub:owner/other")
        with pytest.raises(BackboneError, match="no `architecture` in it"):
            load_backbone("hf-hub:owner/net")
        with pytest.raises(BackboneError, match=r"model.safetensors in the repository; found train.csv"):
            load_backbone("hf-hub:owner/data")
        with pytest.raises(BackboneError, match="expected hf-hub:owner/name"):
            load_backbone("hf-hub:net")
        go_down(monkeypatch)
        with pytest.raises(BackboneError, match=r"no answer from .*copy the folder models--owner--other"):
            load_backbone("hf-hub:owner/other")

    def test_a_network_that_is_refused_is_not_downloaded(self, served: Hub) -> None:
        files = {"config.json": json.dumps(write_config("swin_tiny_patch4_window7_224", 224)).encode()}
        served.publish("owner/swin", {**files, "model.safetensors": b"large"})
        with pytest.raises(BackboneError, match="SwinTransformer"):
            load_backbone("hf-hub:owner/swin")
        assert not [line for line in served.asked if "safetensors" in line]

    def test_the_fingerprint_is_the_commit_and_downloads_nothing(
        self, served: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vit, config = create_tiny()
        commit = served.publish("owner/net", create_files(vit, config))
        assert fingerprint("hf-hub:owner/net") == f"hf-hub:owner/net@{commit}"
        assert not [line for line in served.asked if line.startswith("GET /owner")]
        load_backbone("hf-hub:owner/net")
        served.publish("owner/net", create_files(vit, config, "mit"))
        assert fingerprint("hf-hub:owner/net") == f"hf-hub:owner/net@{commit}"  # what is in the cache is what is used
        go_down(monkeypatch)
        assert fingerprint("hf-hub:owner/net") == f"hf-hub:owner/net@{commit}"
        assert fingerprint("hf-hub:owner/other") == "hf-hub:owner/other"


class TestFolders:
    def write(self, folder: Path, files: dict[str, bytes]) -> Path:
        folder.mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return folder

    def test_a_folder_is_fingerprinted_by_weights_and_config(self, tmp_path: Path) -> None:
        vit, config = create_tiny(init_values=0.1)
        folder = self.write(tmp_path / "net", create_files(vit, config))
        assert load_backbone(str(folder)).vit.blocks[0].ls1.gamma.shape == (24,)
        seen = {fingerprint(str(folder)), fingerprint(str(folder / "model.safetensors"))}
        assert len(seen) == 1
        (folder / "config.json").write_text(
            json.dumps({**config, "model_args": {**config["model_args"], "num_heads": 4}})
        )
        seen.add(fingerprint(str(folder)))
        vit.norm.bias.data += 1
        save_file(vit.state_dict(), folder / "model.safetensors")
        seen.add(fingerprint(str(folder)))
        assert len(seen) == 3
        assert load_backbone(str(folder)).vit.blocks[0].attn.num_heads == 4

    def test_a_cache_folder_needs_to_say_which_snapshot(self, tmp_path: Path) -> None:
        vit, config = create_tiny()
        folder = tmp_path / "models--owner--net"
        for commit in ("aa", "bb"):
            self.write(folder / "snapshots" / commit, create_files(vit, config))
        with pytest.raises(BackboneError, match=r"2 snapshots: aa, bb.*Name one"):
            load_backbone(str(folder))
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("bb")
        assert find_source(str(folder)).commit == "bb"
        assert load_backbone(str(folder)).source == "hf-hub:owner/net"

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"config.json": b'{"model_type": "dinov2"}', "model.safetensors": b""}, "model_type dinov2.*backbone add"),
            ({"config.json": b"[1]"}, "config.json to be a JSON object; found a list"),
            ({"config.json": b"{"}, "config.json to be a JSON object"),
            ({"config.json": b'{"architecture": "vit_tinny_patch16_224"}'}, "vit_tiny_patch16_224"),
            ({"config.json": b'{"architecture": "vit_tiny_patch16_224"}'}, "found no weights"),
            ({"config.json": b'{"architecture": "vit_tiny_patch16_224"}', "pytorch_model.bin": b""}, "backbone add"),
            ({"config.json": b'{"architecture": "vit_tiny_patch16_224", "mean": "grey"}'}, "'mean' to be legal"),
            ({"config.json": b'{"architecture": "vit_tiny_patch16_224", "model_args": 3}'}, "to be objects"),
            ({}, "no weights"),
        ],
    )
    def test_what_is_no_backbone_is_refused(self, tmp_path: Path, files: dict[str, bytes], message: str) -> None:
        folder = self.write(tmp_path / "net", files)
        with pytest.raises(BackboneError, match=message):
            load_backbone(str(folder))

    def test_weights_without_config(self, tmp_path: Path) -> None:
        vit, _ = create_tiny()
        folder = self.write(tmp_path / "net", create_files(vit, None))
        with pytest.raises(BackboneError, match=r"config.json beside the weights.*embed_dim 24, depth 2"):
            load_backbone(str(folder))

    def test_a_relative_path_is_one_in_the_workspace(self, tmp_path: Path) -> None:
        names = ["embedded", "auto", "vit_tiny_patch16_224.mine", "hf-hub:owner/net@v2"]
        assert [resolve_name(name, tmp_path) for name in names] == names
        paths = ["./net", "weights/net", "mine.safetensors", "/elsewhere/net"]
        assert [is_path(name) for name in paths] == [True] * 4
        assert [resolve_name(name, tmp_path) for name in paths] == [
            *(str(tmp_path / name) for name in ("net", "weights/net", "mine.safetensors")),
            "/elsewhere/net",
        ]


class TestLicences:
    @pytest.mark.parametrize(
        ("card", "licence"),
        [
            ("---\nlicense: mit\n---\n", "mit"),
            ("---\nlicense: other\nlicense_name: dinov3-license\n---\n", "dinov3-license"),
            ("---\nlicense: other\n---\n", "other"),
            ("---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit, apache-2.0"),
            ("---\ntags: [timm]\n---\n", "unknown"),
            ("---\nlicense: [\n---\n", "unknown"),
            ("# A model\nlicense: mit\n", "unknown"),
            ("", "unknown"),
        ],
    )
    def test_the_front_matter_of_a_card(self, card: str, licence: str) -> None:
        assert read_licence(card) == licence

    def test_the_card_outranks_what_timm_exports_and_both_outrank_nothing(self, served: Hub) -> None:
        vit, config = create_tiny()
        noted = {**config, "pretrained_cfg": {**config["pretrained_cfg"], "license": "apache-2.0"}}
        cases = {"card": (noted, "cc-by-nc-4.0"), "config": (noted, ""), "none": (config, "")}
        for name, (said, licence) in cases.items():
            served.publish(f"owner/{name}", create_files(vit, said, licence))
        found = {name: load_backbone(f"hf-hub:owner/{name}").licence for name in cases}
        assert found == {"card": "cc-by-nc-4.0", "config": "apache-2.0", "none": "unknown"}

    @pytest.mark.parametrize(
        ("name", "metadata", "licence"),
        [
            ("test_vit.r160_in1k", {}, "apache-2.0"),
            ("test_vit.uni", {}, "unknown"),
            ("test_vit", {}, "unknown"),
            ("mine", {"architecture": "test_vit"}, "unknown"),
            ("mine", {"architecture": "test_vit.r160_in1k"}, "unknown"),
            ("vit_tiny_patch16_224.augreg_in21k", {"architecture": "test_vit"}, "unknown"),
            ("test_vit.r160_in1k", {"licence": "cc-by-nc-nd-4.0"}, "cc-by-nc-nd-4.0"),
        ],
    )
    def test_a_file_has_timms_licence_only_if_it_is_that_file(
        self, name: str, metadata: dict[str, str], licence: str, tmp_path: Path
    ) -> None:
        import timm

        path = tmp_path / f"{name}.safetensors"
        save_file(timm.create_model("test_vit", pretrained=False, num_classes=0).state_dict(), path, metadata)
        assert load_backbone(str(path)).licence == licence


#: What a file's network has, what is said of it -> the tensor and the argument that the message names.
MISFITS: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"init_values": 0.1}, {}, "blocks.0.ls1.gamma", "init_values"),
    ({}, {"init_values": 0.1}, "no blocks.0.ls1.gamma", "init_values"),
    ({"reg_tokens": 4, "no_embed_class": True}, {"no_embed_class": True}, "reg_token of 4 tokens", "reg_tokens"),
    ({}, {"reg_tokens": 4}, "no reg_token", "reg_tokens"),
    ({"no_embed_class": True}, {}, "pos_embed of 4 positions, 2 x 2 patches", "no_embed_class"),
    ({}, {"no_embed_class": True}, "pos_embed of 5 positions, 2 x 2 patches and 1 for", "no_embed_class"),
    ({"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}, {}, "blocks.0.mlp.fc1.weight of 96 outputs", "mlp_layer"),
    ({}, {"mlp_layer": "SwiGLUPacked"}, "no SwiGLU", "mlp_layer"),
    ({"mlp_ratio": 5.33334}, {}, "blocks.0.mlp.fc1.weight of 128 outputs", "mlp_ratio"),
    ({"depth": 3}, {}, "3 blocks, where depth is 2", "depth"),
    ({"depth": 1}, {}, "1 blocks, where depth is 2", "depth"),
    ({"embed_dim": 32}, {}, "patch_embed.proj.weight of 32 channels", "embed_dim"),
    ({"patch_size": 8}, {}, "patch_embed.proj.weight of 8 x 8 pixels", "patch_size"),
    ({"qkv_bias": False}, {}, "no blocks.0.attn.qkv.bias", "qkv_bias"),
    ({"qk_norm": True}, {}, "blocks.0.attn.q_norm.weight", "qk_norm"),
    ({"pre_norm": True}, {}, "norm_pre.weight", "pre_norm"),
    ({"global_pool": "map"}, {}, "attn_pool.latent", "global_pool"),
    ({"global_pool": "avg"}, {}, "fc_norm.weight", "global_pool"),
    ({"pos_embed": "none"}, {}, "no pos_embed", "pos_embed"),
    ({"class_token": False, "global_pool": "avg"}, {"global_pool": "avg"}, "no cls_token", "class_token"),
]

#: The same of timm's `Eva`: DINOv3 of 32 pixels.
EVA_MISFITS: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"num_reg_tokens": 2}, {}, "reg_token of 2 tokens, where num_reg_tokens is 4", "num_reg_tokens"),
    ({"swiglu_mlp": True}, {}, "blocks.0.mlp.fc1.weight of 192 outputs", "swiglu_mlp"),
    ({"mlp_ratio": 3.0}, {}, "blocks.0.mlp.fc1.weight of 72 outputs", "mlp_ratio"),
    ({"qkv_bias": True}, {}, "blocks.0.attn.q_bias", "qkv_bias"),
    ({"use_abs_pos_emb": True}, {}, "pos_embed, which use_abs_pos_emb makes", "use_abs_pos_emb"),
    ({"depth": 3}, {}, "3 blocks, where depth is 2", "depth"),
]
CASES = [("vit_tiny_patch16_224", *row) for row in MISFITS] + [
    ("vit_small_patch16_dinov3", *row) for row in EVA_MISFITS
]


class TestArguments:
    def write(self, path: Path, vit: Any, args: dict[str, Any], architecture: str = "vit_tiny_patch16_224") -> str:
        metadata = Description(architecture=architecture, model_args=args).to_metadata()
        save_file(vit.state_dict(), path, metadata)
        return str(path)

    @pytest.mark.parametrize(("architecture", "true", "said", "tensor", "argument"), CASES)
    def test_a_tensor_that_does_not_fit_names_the_argument_and_the_hint_is_right(
        self, architecture: str, true: dict[str, Any], said: dict[str, Any], tensor: str, argument: str, tmp_path: Path
    ) -> None:
        import timm

        network = type(create_skeleton("", Description(architecture=architecture)))
        own = read_arguments("", network, {**SMALL, "img_size": 32, **true})
        vit = timm.create_model(architecture, pretrained=False, num_classes=0, **own)
        args, path = {**SMALL, **said}, tmp_path / "mine.safetensors"
        with pytest.raises(BackboneError, match=re.escape(tensor)) as raised:
            load_backbone(self.write(path, vit, args, architecture))
        hint = json.loads(re.search(r"\{.*\}", raised.value.hint)[0])
        assert argument in hint
        loaded = load_backbone(self.write(path, vit, {**args, **hint}, architecture))
        state = loaded.vit.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in vit.state_dict().items())

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ({"init_value": 1e-5}, "'init_value'; close ones are init_values"),
            ({"checkpoint_path": "x.pth"}, "arguments of timm's VisionTransformer; found 'checkpoint_path'"),
            ({"block_fn": "Block"}, "found 'block_fn'"),
            ({"mlp_layer": "os.system"}, "mlp_layer to be one of GluMlp, Mlp, SwiGLU, SwiGLUPacked; found 'os.system'"),
            ({"act_layer": ["silu"]}, "act_layer to be one of"),
            ({"norm_layer": "builtins.exec"}, "norm_layer to be one of"),
            ({"depth": {"a": 1}}, "depth to be a number"),
            ({"depth": 10**9}, "depth to be a number"),
            ({"img_size": [[32]]}, "img_size to be a number"),
            ({"in_chans": 4}, "pictures have three channels"),
            ({"num_heads": 7}, "arguments that make timm's vit_tiny_patch16_224"),
            ({"num_heads": 0}, "arguments that make timm's vit_tiny_patch16_224"),
            ({"class_token": False}, "Token pooling needs the class token"),
        ],
    )
    def test_illegal_ones_are_refused(self, args: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(BackboneError, match=re.escape(message)):
            load_backbone(self.write(tmp_path / "mine.safetensors", create_tiny()[0], args))

    def test_what_no_argument_can_take_back_is_another_architecture(self, tmp_path: Path) -> None:
        import timm

        vit = timm.create_model("vit_small_patch16_dinov3", pretrained=False, num_classes=0, img_size=32, **SMALL)
        state = {name: tensor for name, tensor in vit.state_dict().items() if "gamma" not in name}
        said = Description(architecture="vit_small_patch16_dinov3", model_args=SMALL).to_metadata()
        save_file(state, tmp_path / "mine.safetensors", said)
        with pytest.raises(BackboneError, match=r"no blocks.0.gamma_1\. Correct the architecture in the metadata"):
            load_backbone(str(tmp_path / "mine.safetensors"))

    def test_a_tensor_that_timm_would_leave_random_is_missed(self, tmp_path: Path) -> None:
        import timm

        name = "vit_base_patch16_siglip_gap_224"  # timm is not strict with these alone
        args = {**SMALL, "img_size": 32}
        state = timm.create_model(name, pretrained=False, num_classes=0, **args).state_dict()
        del state["blocks.1.norm1.bias"]
        said = Description(architecture=name, model_args=args).to_metadata()
        save_file(state, tmp_path / "mine.safetensors", said)
        with pytest.raises(BackboneError, match=r"found no blocks.1.norm1.bias"):
            load_backbone(str(tmp_path / "mine.safetensors"))

    def test_metadata_that_is_no_json(self, tmp_path: Path) -> None:
        save_file(create_tiny()[0].state_dict(), tmp_path / "test_vit.safetensors", {"model_args": "depth=2"})
        with pytest.raises(BackboneError, match="metadata 'model_args' to be JSON, for example"):
            load_backbone(str(tmp_path / "test_vit.safetensors"))

    def test_how_the_network_was_trained_changes_nothing(self, tmp_path: Path) -> None:
        vit, _ = create_tiny()
        args = {**SMALL, "drop_path_rate": 0.4, "drop_rate": 0.5, "num_classes": 1000, "pos_embed": None}
        loaded = load_backbone(self.write(tmp_path / "mine.safetensors", vit, args)).vit.train()
        assert torch.equal(loaded(torch.ones(1, 3, 32, 32)), vit(torch.ones(1, 3, 32, 32)))

    def test_pooling_left_open_is_the_class_token(self, tmp_path: Path) -> None:
        vit, _ = create_tiny()
        loaded = load_backbone(self.write(tmp_path / "mine.safetensors", vit, {**SMALL, "global_pool": ""}))
        assert torch.equal(loaded.vit(torch.ones(1, 3, 32, 32)), vit(torch.ones(1, 3, 32, 32)))

    def test_positions_of_a_wide_network_keep_their_shape(self, tmp_path: Path) -> None:
        vit, _ = create_tiny(img_size=[16, 64])  # four patches, as 32 x 32 has
        args = {**SMALL, "img_size": [16, 64]}
        loaded = load_backbone(self.write(tmp_path / "mine.safetensors", vit, args))
        assert loaded.img_size == ImgSize(16, 64)
        assert torch.equal(loaded.vit.pos_embed, vit.pos_embed)

    def test_another_librarys_names_are_recognised(self, tmp_path: Path) -> None:
        path = tmp_path / "vit_tiny_patch16_224.mine.safetensors"
        save_file({"encoder.layer.0.attention.output.dense.weight": torch.zeros(2, 2)}, path)
        with pytest.raises(BackboneError, match=r"transformers.*Run `tessera backbone add"):
            load_backbone(str(path))
        save_file({f"teacher.{name}": tensor for name, tensor in create_tiny()[0].state_dict().items()}, path)
        with pytest.raises(BackboneError, match=r"begin with 'teacher.'"):
            load_backbone(str(path))


class TestJoinedMean:
    """The feature of Virchow2, through every tuner; the rack, exports and both forms run on such a network, too."""

    @pytest.mark.parametrize("kind", TUNERS)
    def test_it_is_the_class_token_beside_the_mean_of_the_patches(self, kind: str) -> None:
        (options,), (tuner,) = JOINED.values(), create_tuners([{"kind": kind}])
        backbone = create_backbone(options)
        network = create_network(backbone, tuner, 3, seed=0).eval()
        images = create_images(backbone.vit)
        both = network.encoder(images, Needs(pooled=True, patches=True))
        alone = network.encoder(images, POOLED).pooled
        width = backbone.vit.embed_dim
        assert (alone.shape, network(images).shape) == ((2, 2 * width), (2, 3))
        torch.testing.assert_close(alone, both.pooled)
        torch.testing.assert_close(alone[:, width:], both.patches.mean(dim=1))

    def test_a_network_without_class_token_has_none_to_join(self, tmp_path: Path) -> None:
        args = {**SMALL, "class_token": False, "global_pool": "avg", "img_size": 32}
        vit = create_original(write_config("vit_tiny_patch16_224", 32, args), "", {})
        said = Description(architecture="vit_tiny_patch16_224", model_args=args, feature="token+mean").to_metadata()
        save_file(vit.state_dict(), tmp_path / "mine.safetensors", said)
        with pytest.raises(BackboneError, match="a network with a class token"):
            load_backbone(str(tmp_path / "mine.safetensors"))
