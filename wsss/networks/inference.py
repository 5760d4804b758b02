"""Prepares trained networks for inference: the same results up to rounding, with fewer operations."""

from collections import Counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from wsss.networks.body import Body
from wsss.networks.deeplab import DeepLabV2
from wsss.networks.winograd import Winograd

N = TypeVar("N", bound=nn.Module)

# large enough for every backbone, and quick
_SIDE = 64
# operations that read a tensor's properties, not its values
_PROPERTIES = {"__get__", "dim", "size", "numel"}


def for_inference(network: N) -> N:
    """Fold batch norms into the convolutions that precede them, store weights channels-last, and multiply less; changes the network, and returns it.

    A batch norm of a body or of DeepLab v2 is folded if nothing else uses the output of its convolution, which is found by running the body once.
    oneDNN's convolutions are faster channels-last. Large 3x3 convolutions are computed in squares (`wsss.networks.winograd`) on CPUs.
    The results change by rounding (docs/performance.md).

    Args:
        network: in evaluation mode, on its device; it should not be trained or saved any more.
    """
    for body in [module for module in network.modules() if isinstance(module, Body | DeepLabV2)]:
        for conv, norm in _pairs(body):
            before: Any = body.get_submodule(conv)
            after: Any = body.get_submodule(norm)
            _replace(body, conv, fuse_conv_bn_eval(before, after))
            _replace(body, norm, nn.Identity())
    network.to(memory_format=torch.channels_last)
    _multiply_less(network)
    return network


def _multiply_less(network: nn.Module) -> None:
    """Let each convolution take the fastest way on a CPU, with the same results up to rounding."""
    squares: dict[nn.Conv2d, Winograd] = {}
    for name, conv in list(network.named_modules(remove_duplicate=False)):
        if type(conv) is not nn.Conv2d or conv.weight.device.type != "cpu":
            continue
        if Winograd.suits(conv):
            if conv not in squares:
                squares[conv] = Winograd.of(conv)
            _replace(network, name, squares[conv])
        elif conv.kernel_size == (1, 1):
            # dilation does not change kernels of one pixel, but with it torch (2.15) calls oneDNN with one thread too, not its own slower code
            conv.dilation = (2, 2)


class _Uses(TorchFunctionMode):
    """Counts in how many operations each tensor is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self.alive: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") not in _PROPERTIES:
            tensors = [value for value in _flat([args, kwargs]) if isinstance(value, Tensor)]
            self.alive += tensors  # so that no other tensor gets the same id
            self.count.update({id(tensor) for tensor in tensors})
        return result


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [inner for item in value for inner in _flat(item)] if isinstance(value, list | tuple) else [value]


@torch.inference_mode()
def _pairs(body: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that are the only users of their outputs."""
    made: dict[int, str] = {}
    found: list[tuple[int, str, str]] = []
    calls: Counter[str] = Counter()
    alive = []

    def after_conv(name: str, output: Tensor) -> None:
        made[id(output)] = name
        calls[name] += 1
        alive.append(output)

    def before_norm(name: str, given: Tensor) -> None:
        calls[name] += 1
        if id(given) in made:
            found.append((id(given), made[id(given)], name))

    hooks = []
    for name, module in body.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda _, __, output, name=name: after_conv(name, output)))
        # subclasses, such as timm's, may apply an activation too
        elif type(module) is nn.BatchNorm2d and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: before_norm(name, inputs[0])))
    some = next(body.parameters())
    try:
        with _Uses() as uses:
            body(torch.zeros(1, 3, _SIDE, _SIDE, device=some.device, dtype=some.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return [(conv, norm) for key, conv, norm in found if uses.count[key] == 1 and calls[conv] == calls[norm] == 1]


def _replace(body: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(body.get_submodule(parent), last, module)
