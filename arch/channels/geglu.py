"""y = (gelu(x W_gate) * (x W_up)) W_down, gelu in its form with a tanh.

Shazeer 2020, https://arxiv.org/abs/2002.05202, eq. 6; the tanh as in Gemma and
Griffin (De et al. 2024, https://arxiv.org/abs/2402.19427).
"""

import jax

from arch.channels import swiglu

Config = swiglu.Config


class Channel(swiglu.Channel):
  activation = staticmethod(jax.nn.gelu)
