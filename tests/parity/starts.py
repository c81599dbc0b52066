"""What layers of torch start from, as numpy arrays of our shapes."""

import math

import torch


def linear(d_in, d_out):
  """torch.nn.Linear's weight, d_in x d_out."""
  return torch.nn.Linear(d_in, d_out).weight.detach().numpy().T


def normal(*shape, std=0.02):
  """fla's models start every Linear and Conv1d so: `initializer_range`."""
  return std * torch.randn(shape).numpy()


def conv(dim, width, bias=False):
  """A depthwise torch.nn.Conv1d, as `ShortConv` holds it."""
  made = torch.nn.Conv1d(dim, dim, width, groups=dim)
  start = {"weight": made.weight.detach().numpy()[:, 0].T}
  if bias:
    start["bias"] = made.bias.detach().numpy()
  return start


def uniform(low, high, *shape):
  return torch.empty(shape).uniform_(low, high)


def dt_bias(*shape):
  """Mamba's: softplus of it is log-uniform in [1e-3, 1e-1]."""
  dt = uniform(math.log(1e-3), math.log(1e-1), *shape).exp().clamp(min=1e-4)
  return (dt + torch.log(-torch.expm1(-dt))).numpy()


def residual(d_in, d_out, depth):
  """mamba_ssm's of W_out: kaiming_uniform_ over sqrt(depth), d_in x d_out."""
  w = torch.empty(d_out, d_in)
  torch.nn.init.kaiming_uniform_(w, a=math.sqrt(5))
  return (w / math.sqrt(depth)).numpy().T


def orthogonal(d_in, d_out, gain=1.0):
  """torch.nn.init.orthogonal_, d_in x d_out."""
  return torch.nn.init.orthogonal_(torch.empty(d_in, d_out), gain).numpy()
