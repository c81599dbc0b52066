"""y = (gelu(x W_gate) * (x W_up)) W_down, gelu in its form with a tanh.

Shazeer 2020, https://arxiv.org/abs/2002.05202, eq. 6; the tanh as in Gemma and
Griffin (De et al. 2024, https://arxiv.org/abs/2402.19427).
"""

import dataclasses

import jax

from arch.channels import swiglu

Own = swiglu.Own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(swiglu.Config):
  """
  Attributes:
    exact: whether gelu is that of the error function, as in Zamba2.
  """

  exact: bool = False


class Channel(swiglu.Channel):
  def activation(self, x):
    return jax.nn.gelu(x, approximate=not self.cfg.exact)
