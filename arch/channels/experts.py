"""A few of many small SwiGLU networks a token, and one that all tokens share.

  y = shared(x) (sigmoid(x w)) + c sum_{e chosen} g_e expert_e(x)
  s = sigmoid(x R) or softmax(x R),  chosen = the `top` largest of s + b
  g_e = s_e (/ sum_{chosen} s, unless one of several is chosen: R's gradient)
  b_e <- b_e + u sign(mean load - load_e)        after every training step
  loss += a E sum_e f_e p_e + z mean (log sum_e exp(x R)_e)^2
  f_e: its share of the pairs,  p_e: mean of s_e / sum s,  of the batch

DeepSeek-V3, https://arxiv.org/abs/2412.19437, eq. 12 to 16, for the layer;
Wang et al. 2024, https://arxiv.org/abs/2408.15664, algorithm 1, for the bias,
which changes the choice and not the weights. The losses are Fedus et al.'s
(2021, https://arxiv.org/abs/2101.03961, eq. 4 to 6), which is 1 where the load
is even, and Zoph et al.'s (2022, https://arxiv.org/abs/2202.08906, eq. 5).

N tokens  E experts  K chosen a token
"""

import dataclasses

import jax
import jax.numpy as jnp

from arch import experts
from arch.law import Aux
from arch.roles import Buffer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(experts.Config):
  """Raises ValueError for sizes below 1, top > experts, an unknown score.

  Attributes:
    balance_rate: u above, a step of the bias; 0 for no balancing.
    balance_loss: a, Switch's and Mixtral's .01; 0 for none.
    z_loss: z, ST-MoE's .001; 0 for none.
    score: "sigmoid" (DeepSeek-V3) or "softmax" (before it).
    normalised: whether the weights of a token's experts sum to c.
    scale: c, which DeepSeek-V3 calls its routed scaling factor.
  """

  balance_rate: float = 1e-3
  balance_loss: float = 0.0
  z_loss: float = 0.0
  score: str = "sigmoid"
  normalised: bool = True
  scale: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    self.positive("scale")
    self.at_least(balance_rate=0, balance_loss=0, z_loss=0)
    self.among("score", ("sigmoid", "softmax"))


class Channel(experts.Channel):
  def __init__(self, cfg, *, layer, rngs):
    super().__init__(cfg, layer=layer, rngs=rngs)
    self.bias = Buffer(jnp.zeros(cfg.experts))

  def held(self):
    return self.bias[...]

  @staticmethod
  def choose(cfg, logits, bias):
    if cfg.score == "sigmoid":
      logs = jax.nn.log_sigmoid(logits)
    else:
      logs = jax.nn.log_softmax(logits, -1)
    scores = jax.lax.stop_gradient(jnp.exp(logs)) + bias[None]
    _, choice = jax.lax.top_k(scores, cfg.top)
    seen = {}
    if cfg.balance_loss:
      seen["p"] = jnp.mean(jax.nn.softmax(logs, -1), 0)
    if cfg.z_loss:
      seen["z"] = jnp.mean(jax.nn.logsumexp(logits, -1) ** 2)
    logs = jnp.take_along_axis(logs, choice, -1)
    alone = cfg.top == 1 < cfg.experts
    whole = cfg.normalised and not alone
    weights = jax.nn.softmax(logs, -1) if whole else jnp.exp(logs)
    return choice, cfg.scale * weights, seen

  def learn(self, load, seen):
    cfg, loss = self.cfg, jnp.float32(0)
    share = load * (cfg.experts / cfg.top)  # 1 where it is even
    bias = self.bias[...] + cfg.balance_rate * jnp.sign(1 - share)
    statistics = experts.statistics(load)
    if cfg.balance_loss:
      statistics["balance_loss"] = jnp.sum(share * seen["p"])
      loss += cfg.balance_loss * statistics["balance_loss"]
    if cfg.z_loss:
      statistics["z_loss"] = seen["z"]
      loss += cfg.z_loss * seen["z"]
    return Aux(loss, statistics, {"bias": bias})
