"""Small networks and images that several tests share."""

import torch
from torch import nn

from fashionlib import images


class Small(nn.Module):
    """A residual network: BatchNorm, an in-place ReLU used three times, a skip."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        last = nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), self.relu
        self.layer4 = nn.Sequential(*last)
        self.fc = nn.Linear(16, 6)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(self.layer4(x).mean((2, 3)))


def small():
    torch.manual_seed(0)
    return trained(Small())


def trained(model):
    """BatchNorm statistics and scales not 0 and 1, as a trained network has them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
    return model


def random_images(count=3, size=64, dtype=torch.float32):
    """Normalized noise (count, 3, size, size), always the same."""
    generator = torch.Generator().manual_seed(1)
    shape = (count, size, size, 3)
    values = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images.normalize(values).to(dtype)


def exact_guided(model, pixels, targets):
    """The rule by other means: hooks that clamp the gradient behind each module."""
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, y: y.register_hook(lambda g: g.clamp(min=0)) and y
        )
        for module in model.eval().modules()
        if isinstance(module, (nn.ReLU, nn.ReLU6))
    ]
    leaf = pixels.clone().requires_grad_()
    score = model(leaf).gather(1, targets[:, None]).sum()
    for hook in hooks:
        hook.remove()
    return torch.autograd.grad(score, leaf)[0]


def snapshot(model):
    """Weights, modes and flags, for `assert_untouched`."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    return state, modes, [p.requires_grad for p in model.parameters()]


def assert_untouched(model, before):
    state, modes, flags = snapshot(model)
    assert all(torch.equal(state[name], value) for name, value in before[0].items())
    assert (modes, flags) == before[1:]
    assert all(parameter.grad is None for parameter in model.parameters())
