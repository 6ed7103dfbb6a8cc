"""Pretraining at toy size, through the real code: images, whitening, the loop, resuming, and the shipped file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from components.domain.canvas import ImgSize
from components.errors import BackboneError
from components.models import embedded
from components.models.backbones import hash_tensors, load_backbone
from components.models.pretrain import distil, train
from components.models.pretrain.evaluate import Bench, extract_features, read_defects, score_features, score_patches
from components.models.pretrain.images import Images
from components.models.pretrain.muon import orthogonalise
from components.models.pretrain.train import Settings, checkpoint_path, pretrain, snapshot
from components.synthetic.textures import TEXTURES

TOY = Settings(images=12, seed=3, batch_size=4, img_size=32, teacher_size=48, pool=8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timm's smallest plain ViT, of random numbers, as a file."""
    import timm

    path = tmp_path_factory.mktemp("teacher") / "test_vit.toy.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        save_file(timm.create_model("test_vit", pretrained=False, num_classes=0).state_dict(), path)
    return path


class TestImages:
    def test_a_batch_depends_on_seed_and_step_alone(self) -> None:
        images = Images(0, side=32, pool=8)
        first = images.create_batch(0, 6)
        later = images.create_batch(5, 6)
        assert (first.shape, first.dtype) == ((6, 32, 32, 3), np.uint8)
        assert np.array_equal(later, Images(0, side=32, pool=8).create_batch(5, 6))
        assert np.array_equal(first, images.create_batch(0, 6))
        assert not np.array_equal(first, later)
        assert not np.array_equal(first, Images(1, side=32, pool=8).create_batch(0, 6))

    def test_images_are_varied(self) -> None:
        batch = Images(0, side=64, pool=32).create_batch(0, 64).astype(float)
        contrast, brightness = batch.std((1, 2, 3)), batch.mean((1, 2, 3))
        assert np.median(contrast) > 20
        assert brightness.std() > 20
        colour = np.ptp(batch.mean((1, 2)), axis=1)
        assert colour.min() < 8
        assert colour.max() > 60
        assert len({image.tobytes() for image in batch}) == 64

    @pytest.mark.parametrize("name", TEXTURES)
    def test_every_texture_is_seeded_finite_and_different_from_its_sisters(self, name: str) -> None:
        fields = [TEXTURES[name](np.random.default_rng(seed), 64) for seed in (0, 0, 1, 2)]
        assert all(field.shape == (64, 64) and np.isfinite(field).all() for field in fields)
        assert np.array_equal(fields[0], fields[1])
        assert not np.array_equal(fields[2], fields[3])


class TestDistillation:
    def test_whitening_makes_directions_equal_and_folds_away(self, teacher: Path) -> None:
        images = torch.from_numpy(Images(0, 32, 8).create_batch(0, 48)).permute(0, 3, 1, 2) / 127.5 - 1
        patches = distil.cut_patches(images, 16)
        mean, whitener = distil.measure_whitening([patches])
        white = (patches - mean) @ whitener
        assert white.mean(0).abs().max() < 1e-3
        assert white.var(0).max() < 1.01
        student = distil.Student(load_backbone(str(teacher), 32).vit, mean, whitener, seed=0).eval()
        vit = load_backbone(str(teacher), 32).vit
        vit.load_state_dict(student.fold())
        with torch.no_grad():
            assert torch.allclose(student(images)[-1], distil.hidden_states(vit, images)[-1], atol=1e-4)
            assert torch.allclose(student(images)[-1][:, 0], vit(images), atol=1e-4)

    def test_the_student_starts_from_other_numbers_than_the_teacher(self, teacher: Path) -> None:
        vit = load_backbone(str(teacher), 32).vit
        size = vit.patch_embed.proj.weight[0].numel()
        student = distil.Student(vit, torch.zeros(size), torch.eye(size), seed=0)
        for mine, its in zip(student.vit.blocks, vit.blocks, strict=True):
            cosine = torch.cosine_similarity(mine.mlp.fc1.weight.flatten(), its.mlp.fc1.weight.flatten(), dim=0)
            assert cosine.abs() < 0.05

    def test_a_forced_block_sees_the_teachers_state(self, teacher: Path) -> None:
        vit = load_backbone(str(teacher), 32).vit
        size = vit.patch_embed.proj.weight[0].numel()
        student = distil.Student(vit, torch.zeros(size), torch.eye(size), seed=0)
        student.vit.load_state_dict(vit.state_dict())  # the projection is its own and stays different
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        forced = torch.tensor([[True, False]] * len(vit.blocks))
        with torch.no_grad():
            wanted = distil.hidden_states(vit, images)
            states = student(images, wanted, forced)
        assert torch.allclose(states[-1][0], wanted[-1][0], atol=1e-5)
        assert not torch.allclose(states[-1][1], wanted[-1][1], atol=1e-2)

    def test_states_of_a_finer_grid_are_averaged_over_area(self) -> None:
        state = torch.arange(1.0, 18.0).reshape(1, 17, 1)  # class token 1, then 2..17 on a 4x4 grid
        coarse = distil.resample_patches(state, (4, 4), (2, 2))
        assert coarse.shape == (1, 5, 1)
        assert coarse[0, 0] == 1
        assert coarse[0, 1, 0] < state[0, 1:, 0].mean() < coarse[0, 4, 0]
        assert torch.allclose(coarse[0, 1:].mean(), state[0, 1:].mean())
        assert distil.resample_patches(state, (4, 4), (4, 4)) is state

    def test_the_loss_is_zero_for_the_teacher_and_weighs_the_class_token_as_eight_patches(self) -> None:
        states = [torch.randn(16, 5, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        targets = distil.measure_targets([states])
        assert distil.distillation_loss(states, states, targets)[0] == 0
        ones = distil.Targets(tuple(torch.ones(2, 6) for _ in states), targets.bias)
        shifted = [*states[:-1], states[-1].clone()]
        shifted[-1][:, 0] += 10.0  # smooth L1 of 10 is 9.5
        loss, final = distil.distillation_loss(shifted, states, ones)
        assert float(final) == pytest.approx(9.5 * 8 / (8 + 4), rel=1e-5)
        assert float(loss) == pytest.approx(3 * float(final), rel=1e-5)

    def test_muon_moves_along_all_directions_alike(self) -> None:
        matrices = torch.randn(2, 48, 16, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalise(matrices))
        assert values.min() > 0.5
        assert values.max() < 1.4


@pytest.mark.slow
class TestRun:
    def test_it_makes_a_backbone_that_loads(self, teacher: Path, tmp_path: Path) -> None:
        out = tmp_path / "student.safetensors"
        seen: list[int] = []
        pretrain(teacher, out, TOY, progress=lambda step, steps, loss, final: seen.append(step))
        assert seen == [1, 2, 3]
        assert [path.name for path in tmp_path.iterdir()] == [out.name]
        backbone = load_backbone(str(out))
        assert (backbone.img_size, backbone.trained, backbone.mean) == (ImgSize(32, 32), True, (0.5, 0.5, 0.5))
        assert {tensor.dtype for tensor in load_file(out).values()} == {torch.float16}
        with pytest.raises(BackboneError, match="no such file"):
            pretrain(teacher, out, TOY)

    def test_killed_and_resumed_it_gives_the_same_bits(self, teacher: Path, tmp_path: Path) -> None:
        def die(step: int, *_: float) -> None:
            if step == 2:
                raise KeyboardInterrupt

        whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
        pretrain(teacher, whole, TOY)
        with pytest.raises(KeyboardInterrupt):
            pretrain(teacher, broken, TOY, save_seconds=0, progress=die)
        assert not broken.exists()
        assert snapshot(teacher, tmp_path / "half.safetensors", checkpoint_path(broken), TOY) == 1
        pretrain(teacher, broken, TOY)
        assert hash_tensors(load_file(whole)) == hash_tensors(load_file(broken))

    def test_the_teacher_sees_enlarged_images_later_on(self, teacher: Path) -> None:
        run = train.Run(teacher, TOY)
        images = run.load_images(0)
        own, enlarged = run.teach(images, enlarged=False), run.teach(images, enlarged=True)
        assert [state.shape for state in own] == [state.shape for state in enlarged]
        assert not torch.allclose(own[-1], enlarged[-1], atol=1e-2)
        enlarged_at = [step >= train.OWN_SIZE_SHARE * TOY.steps for step in range(TOY.steps)]
        assert enlarged_at == [False, False, True]

    def test_a_checkpoint_of_another_run_is_refused(self, teacher: Path, tmp_path: Path) -> None:
        run = train.Run(teacher, TOY)
        run.train_step()
        path = tmp_path / "x.checkpoint.safetensors"
        train.save_checkpoint(path, run)
        other = train.Run(teacher, Settings(12, 4, 4, 32, 48, 8))
        with pytest.raises(BackboneError, match="options it was made with"):
            train.load_checkpoint(path, other)
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(BackboneError, match="whole file"):
            train.load_checkpoint(path, run)

    def test_the_student_comes_nearer_to_the_teacher(self, teacher: Path) -> None:
        settings = Settings(images=16 * 120, batch_size=16, img_size=32, teacher_size=48, pool=8)
        run = train.Run(teacher, settings)
        images = run.load_images(500)

        def measure() -> float:
            with torch.no_grad():
                wanted = run.teach(images, enlarged=False)
                return float(distil.distillation_loss(run.student(images), wanted, run.targets)[1])

        before = measure()
        for _ in range(40):
            run.train_step()
        assert measure() < 0.7 * before

    def test_the_rate_goes_up_and_then_down_to_zero(self) -> None:
        rates = [train.learning_rate(step, 1000) for step in range(1001)]
        assert (rates[0], rates[99], rates[1000]) == (0.01, 1.0, 0.0)
        assert rates[550] == pytest.approx(0.5)


class TestEvaluation:
    def test_it_reads_images_and_scores_features(self, teacher: Path, tmp_path: Path) -> None:
        from PIL import Image

        rng = np.random.default_rng(0)
        paths = []
        for index in range(40):
            paths.append(tmp_path / f"{index}.png")
            Image.fromarray(rng.integers(0, 90, (20, 30, 3), np.uint8) + np.uint8(150 * (index % 2))).save(paths[-1])
        bench = Bench("toy", tuple(paths), np.array(["dark", "light"] * 20), np.arange(40) // 2)
        backbone = load_backbone(str(teacher), 32)
        features = extract_features(backbone, bench.paths).images
        assert features.shape == (40, 64)
        enlarged = extract_features(load_backbone(str(teacher), 48), bench.paths, img_size=32)
        assert (enlarged.images.shape, enlarged.patches.shape) == ((40, 64), (40, 2, 2, 64))
        assert not np.allclose(enlarged.images, features, atol=1e-2)
        scores = score_features(features, bench.labels, bench.groups)
        assert scores.linear_probe == 100.0
        assert score_features(rng.normal(size=(40, 64)).astype(np.float32), bench.labels).knn < 80

    def test_defects_are_found_by_patches(self, tmp_path: Path) -> None:
        from PIL import Image

        rng = np.random.default_rng(0)
        patches, masks = rng.normal(size=(30, 2, 2, 8)).astype(np.float32), []
        for index in range(30):
            masks.append(tmp_path / f"{index}.png")
            if index % 3 == 0:  # a corner is defective, by a bit more than a quarter of its cell
                pixels = np.zeros((20, 40), np.uint8)
                pixels[4:10, 9:20] = 255
                Image.fromarray(pixels).save(masks[-1])
                patches[index, 0, 0, 3] += 8
        assert read_defects(masks[0], 2, 2).tolist() == [[True, False], [False, False]]
        assert not read_defects(masks[1], 2, 2).any()
        assert score_patches(patches, masks) > 95
        assert score_patches(patches, masks, np.arange(30) // 2) > 95
        assert score_patches(rng.normal(size=patches.shape).astype(np.float32), masks) < 40


class TestShipped:
    def test_the_file_has_the_sha256_on_its_card(self) -> None:
        path, card = embedded.require_embedded(), embedded.load_card()
        assert hash_tensors(load_file(path)) == card.tensors_sha256 == load_backbone("embedded").sha256
        assert path.stat().st_size < 12e6
        assert load_backbone("embedded").licence == card.licence == card.teacher.licence

    def test_the_card_claims_more_than_random_numbers(self) -> None:
        scores = embedded.load_card().scores.percent
        for bench, readers in scores["embedded"].items():
            assert all(value > scores["random"][bench][reader] for reader, value in readers.items())

    def test_a_damaged_file_or_card_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BackboneError, match="install Tessera again"):
            embedded.load_card(tmp_path)
        for name in ("embedded.safetensors", "embedded.json"):
            (tmp_path / name).write_bytes((embedded.FOLDER / name).read_bytes())
        assert embedded.require_embedded(tmp_path).parent == tmp_path
        with (tmp_path / "embedded.safetensors").open("r+b") as file:
            file.seek(5_000_000)
            file.write(b"damaged")
        with pytest.raises(BackboneError, match="expected sha256"):
            embedded.require_embedded(tmp_path)
        (tmp_path / "embedded.json").write_text("{}")
        with pytest.raises(BackboneError, match="the card"):
            embedded.load_card(tmp_path)
