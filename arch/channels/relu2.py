"""y = relu(x W_up)^2 W_down.

So et al. 2021, Primer, https://arxiv.org/abs/2109.08668, section 4; nanochat's.
"""

import jax

from arch.channels import gelu

Config = gelu.Config


def squared_relu(x):
  return jax.nn.relu(x) ** 2


class Channel(gelu.Channel):
  activation = staticmethod(squared_relu)
