"""ImageNet files of the three backbones, in their authors' layouts and timm's, as starts of stage 1."""

from __future__ import annotations

import dataclasses
import re

import deterministic_weights
import numpy as np
import pytest
import tiny
from published_keys import read_keys
from safetensors.numpy import save_file

from convert.from_torch import main
from edgesam_jax.checkpoints.load import load_model, load_weights
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.published import imagenet, names
from edgesam_jax.checkpoints.published.guess import ENCODER, published_shapes
from edgesam_jax.checkpoints.published.read import load_published
from edgesam_jax.config import Config, DistillConfig, TrainConfig, UsageError
from edgesam_jax.models.sam import MODELS
from edgesam_jax.train import initialization

HEADS = {
    "RepViT": {"classifier.classifier.l.weight": (1000, 384), "classifier.classifier_dist.bn.weight": (384,)},
    "RepViT (timm)": {"head.head.l.weight": (1000, 384)},
    "TinyViT": {
        "norm_head.weight": (320,),
        "head.weight": (1000, 320),
        "layers.1.blocks.0.attn.attention_bias_idxs": (9,),
    },
    "TinyViT (timm)": {"head.fc.weight": (1000, 320), "head.norm.weight": (320,)},
    "EfficientViT": {"head.op_list.0.conv.weight": (1536, 256, 1, 1)},
    "EfficientViT (timm)": {"head.in_conv.conv.weight": (1536, 256, 1, 1)},
}
MODEL_OF = {"R": "edge_sam", "T": "edge_sam_tiny_vit", "E": "edge_sam_efficient_vit"}


def backbone_of(name):
    """Entries of a registered model's backbone without the prefix."""
    shapes = {
        n: s for n, s in published_shapes(MODELS[name]).items() if n.startswith(ENCODER) and not imagenet.END.match(n)
    }
    return {n.removeprefix(ENCODER): deterministic_weights.entry(n, s) for n, s in shapes.items()}


def to_timm_repvit(name):
    """Written from docs/published_code.md, from features to timm."""
    match = re.match(r"features\.(\d+)\.", name)
    at, rest = int(match[1]), name[match.end() :]
    if at == 0:
        return f"stem.conv{1 if rest.startswith('0.') else 2}.{rest[2:]}"
    places = {3: "stages.1.downsample.pre_block", 4: "stages.1.downsample", 7: "stages.2.downsample.pre_block",
              8: "stages.2.downsample", 23: "stages.3.downsample.pre_block", 24: "stages.3.downsample"}  # fmt: skip
    places |= {1: "stages.0.blocks.0", 2: "stages.0.blocks.1", 5: "stages.1.blocks.0", 6: "stages.1.blocks.1"}
    places |= {n: f"stages.2.blocks.{n - 9}" for n in range(9, 23)} | {25: "stages.3.blocks.0", 26: "stages.3.blocks.1"}
    down = at in (4, 8, 24)
    pairs = {"token_mixer.0.": "spatial_downsample.", "token_mixer.2.": "channel_downsample.",
             "channel_mixer.m.0.": "ffn.conv1.", "channel_mixer.m.2.": "ffn.conv2."} if down else {
             "token_mixer.0.": "token_mixer.", "token_mixer.1.": "se.",
             "channel_mixer.m.0.": "channel_mixer.conv1.", "channel_mixer.m.2.": "channel_mixer.conv2."}  # fmt: skip
    for ours, theirs in pairs.items():
        if rest.startswith(ours):
            return f"{places[at]}.{theirs}{rest.removeprefix(ours)}"
    raise AssertionError(name)


def to_timm_tiny_vit(name):
    name = name.replace(".c.", ".conv.")
    name = name.replace("patch_embed.seq.0.", "patch_embed.conv1.").replace("patch_embed.seq.2.", "patch_embed.conv2.")
    name = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", name)
    return re.sub(r"^layers\.", "stages.", name)


def to_timm_efficient_vit(name):
    name = name.replace("input_stem.op_list.0.", "stem.in_conv.").replace("input_stem.op_list.1.", "stem.res0.")
    return re.sub(r"^(stages\.\d)\.op_list", r"\1.blocks", name)


FROM_OURS = {
    "RepViT": str, "RepViT (timm)": to_timm_repvit, "TinyViT": str, "TinyViT (timm)": to_timm_tiny_vit,
    "EfficientViT": "backbone.{}".format, "EfficientViT (timm)": to_timm_efficient_vit,
}  # fmt: skip


def classifier(title):
    """A whole ImageNet file of a layout, and the backbone that it was made of."""
    entries = backbone_of(MODEL_OF[title[0]])
    head = {name: np.zeros(shape, np.float32) for name, shape in HEADS[title].items()}
    return {FROM_OURS[title](name): value for name, value in entries.items()} | head, entries


@pytest.mark.parametrize("title", FROM_OURS)
def test_every_layout_gives_its_backbone(title, tmp_path):
    content, entries = classifier(title)
    save_file(content, tmp_path / "file.safetensors")
    model = load_published(tmp_path / "file.safetensors")
    assert imagenet.layout_of(content).title == title
    assert model.config == MODELS[MODEL_OF[title[0]]] and model.metadata["model"] == MODEL_OF[title[0]]
    found = names.to_published(model.variables, model.metadata["num_batches_tracked"])
    assert set(found) == {ENCODER + name for name in entries}
    assert all(found[ENCODER + name].tobytes() == value.tobytes() for name, value in entries.items())


def test_the_published_key_list_of_efficient_vit_is_known(tmp_path):
    keys = {name: shape for name, (shape, _) in read_keys("efficientvit_b1").items()}
    content = {n: np.zeros(s, np.int64 if n.endswith(names.COUNT) else np.float32) for n, s in keys.items()}
    save_file(content, tmp_path / "b1.safetensors")
    assert load_published(tmp_path / "b1.safetensors").metadata["model"] == "edge_sam_efficient_vit"


def second_generation(entries):
    """Entries of RepViT's second generation, with random norms after the units, and the function of one unit."""
    rng, out = np.random.default_rng(0), dict(entries)
    for name in entries:
        if name.endswith("token_mixer.0.conv1.c.weight"):
            unit = name.removesuffix(".conv1.c.weight")
            channels = entries[name].shape[0]
            for old in [n for n in out if n.startswith(f"{unit}.conv1.")]:
                del out[old]
            new = {
                "conv1.weight": rng.normal(size=(channels, 1, 1, 1)), "conv1.bias": rng.normal(size=channels),
                "bn.weight": rng.uniform(0.5, 2, channels), "bn.bias": rng.normal(size=channels),
                "bn.running_mean": rng.normal(size=channels), "bn.running_var": rng.uniform(0.5, 2, channels),
            }  # fmt: skip
            out |= {f"{unit}.{key}": value.astype(np.float32) for key, value in new.items()}
            out[f"{unit}.bn.{names.COUNT}"] = np.asarray(7, np.int64)
    return out


@pytest.mark.parametrize("timm", [False, True])
def test_the_second_generation_of_repvit_is_converted_exactly(timm, tmp_path):
    torch = pytest.importorskip("torch")
    from convert.torch_twin.encoders import DepthwiseUnit

    source = second_generation(backbone_of("edge_sam"))
    written = {to_timm_repvit(name): value for name, value in source.items()} if timm else source
    save_file(written, tmp_path / "m0_9.safetensors")
    found = names.to_published(load_published(tmp_path / "m0_9.safetensors").variables)
    for at in (1, 12, 26):
        unit = f"features.{at}.token_mixer.0"
        old = {
            n.removeprefix(unit + "."): torch.from_numpy(np.array(v)) for n, v in source.items() if n.startswith(unit)
        }
        new = {
            n.removeprefix(f"{ENCODER}{unit}."): torch.from_numpy(np.array(v)) for n, v in found.items() if unit in n
        }
        x = torch.randn(2, old["conv1.bias"].shape[0], 6, 6)
        ours = DepthwiseUnit(x.shape[1]).eval()
        ours.load_state_dict(new)
        want = torch.nn.functional.conv2d(x, old["conv.c.weight"], padding=1, groups=x.shape[1])
        norm = torch.nn.functional.batch_norm
        bn = [f"conv.bn.{leaf}" for leaf in ("running_mean", "running_var", "weight", "bias")]
        want = norm(want, *(old[leaf] for leaf in bn))
        want = want + torch.nn.functional.conv2d(x, old["conv1.weight"], old["conv1.bias"], groups=x.shape[1]) + x
        want = norm(want, *(old[leaf.removeprefix("conv.")] for leaf in bn))
        np.testing.assert_allclose(ours(x).detach(), want.detach(), atol=1e-4)


def test_stage_1_starts_from_a_backbone_with_fusion_or_without(tmp_path):
    content, _ = classifier("TinyViT")
    save_file(content, tmp_path / "tiny_vit.safetensors")
    assert main([str(tmp_path / "tiny_vit.safetensors"), "--output", str(tmp_path / "out")]) == 0
    with pytest.raises(UsageError, match=r"backbone, not a complete model; train one with train\.init_from"):
        load_model(tmp_path / "out")
    model = load_weights(tmp_path / "out")
    for fuse in (True, False):
        student = dataclasses.replace(MODELS["edge_sam_tiny_vit"])
        student = dataclasses.replace(student, encoder=dataclasses.replace(student.encoder, fuse=fuse))
        config = Config(model=student, distill=DistillConfig(targets="ground_truth"), train=TrainConfig(init_from="x"))
        notes: list[str] = []
        fresh, got = (
            initialization.initial_variables(config, None, None),
            initialization.initial_variables(config, None, model, notes),
        )
        ours, theirs, blank = (v["params"]["image_encoder"] for v in (got, model.variables, fresh))
        assert set(ours) - set(theirs) == {"neck_0", "neck_1", "neck_2", "neck_3"} | (
            {"fuse_stage2", "fuse_stage3"} if fuse else set()
        )
        np.testing.assert_array_equal(
            ours["patch_embed"]["seq_0"]["c"]["kernel"], theirs["patch_embed"]["seq_0"]["c"]["kernel"]
        )
        np.testing.assert_array_equal(ours["neck_0"]["kernel"], blank["neck_0"]["kernel"])
        assert "arrays of the backbone" in notes[0]


def test_a_whole_part_is_still_needed_elsewhere():
    """Only what is marked as a backbone may leave fusion and neck out."""
    content, _ = classifier("TinyViT")
    _, config, found = imagenet.backbone(content, imagenet.layout_of(content), None, "file")
    variables = {n: tree for n, tree in names.to_tree(found)[0].items() if tree}
    run = Config(model=config, distill=DistillConfig(targets="ground_truth"), train=TrainConfig(init_from="x"))
    with pytest.raises(UsageError, match="missing: params/image_encoder/"):
        initialization.initial_variables(run, None, Model(config, variables, {}))


def test_faults_are_reported(tmp_path, capsys):
    content, _ = classifier("EfficientViT")
    partial = {name: value for name, value in content.items() if "stages.3" not in name}
    save_file(partial, tmp_path / "partial.safetensors")
    with pytest.raises(UsageError, match=r"missing: image_encoder\.stages\.3\."):
        load_published(tmp_path / "partial.safetensors")
    odd = second_generation(backbone_of("edge_sam"))
    del odd["features.5.token_mixer.0.bn.weight"]
    save_file(odd, tmp_path / "odd.safetensors")
    with pytest.raises(UsageError, match=r"odd\.safetensors: missing: features\.5\.token_mixer\.0\.bn\.weight"):
        load_published(tmp_path / "odd.safetensors")
    save_file(content, tmp_path / "whole.safetensors")
    arguments = [str(tmp_path / "whole.safetensors"), "--output", str(tmp_path / "out"), "--decoder-from", "sam.pth"]
    assert main(arguments) == 2 and "contains only a backbone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_students_own_file_is_no_classifier():
    for config in (MODELS["edge_sam"], MODELS["mobile_sam"], tiny.CONV):
        shapes = published_shapes(config)
        assert imagenet.layout_of(shapes) is None
        assert (
            imagenet.layout_of({n.removeprefix(ENCODER): s for n, s in shapes.items() if n.startswith(ENCODER)}) is None
        )
