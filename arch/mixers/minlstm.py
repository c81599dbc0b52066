"""minLSTM: an LSTM whose gates see the input alone and share one unit.

  f = sigmoid(x W_f),  i = sigmoid(x W_i),  v = g(x W_v)
  h_t = f_t / (f_t + i_t) h_{t-1} + i_t / (f_t + i_t) v_t      h_0 = 0
  y = h W_out, or h itself where expand is 1

Feng et al. 2024, https://arxiv.org/abs/2410.01201, section 3.2, with the g of
its appendix B; everything else, and the implementation that was followed, as
in arch/mixers/mingru.py (there minLSTM.py).

i / (f + i) is sigmoid(log i - log f), which no gate can make 0 / 0.
"""

import dataclasses

import jax

from arch.mixers import mingru


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(mingru.Config):
  """The fields of minGRU."""


class Mixer(mingru.Mixer):
  gates = ("f_proj", "i_proj")

  @staticmethod
  def balance(f, i):
    return jax.nn.log_sigmoid(i) - jax.nn.log_sigmoid(f)
