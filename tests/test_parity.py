"""Mixers and channel mixers against the torch code of transformers with equal
weights: the output, the gradients of the input and of every parameter."""

import jax
import numpy as np
import pytest
from flax import nnx
from models import close

from arch.channels import experts, geglu, gelu, relu2
from arch.layers import Buffer
from arch.mixers import attention, gated_deltanet, mamba, mamba2, rglru

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

B, T, D = 2, 19, 12


def as_attention():
  from transformers import Qwen3Config
  from transformers.models.qwen3 import modeling_qwen3

  cfg = attention.Config(dim=D, depth=1, length=T, head=4, kv_heads=1)
  own = Qwen3Config(
    hidden_size=D,
    head_dim=4,
    num_attention_heads=3,
    num_key_value_heads=1,
    num_hidden_layers=1,
    attn_implementation="eager",
  )
  angles = modeling_qwen3.Qwen3RotaryEmbedding(own)
  later = torch.ones(T, T, dtype=torch.bool).triu(1)
  extra = dict(
    position_embeddings=angles(torch.zeros(1), torch.arange(T)[None]),
    attention_mask=torch.zeros(T, T).masked_fill(later, -torch.inf),
  )

  def weights(t):
    qkv = [t[f"{n}_proj.weight"] for n in "qkv"]
    return {
      "qkv": {"weight": np.concatenate(qkv, 0).T},
      "q_norm": {"weight": t["q_norm.weight"]},
      "k_norm": {"weight": t["k_norm.weight"]},
      "out_proj": {"weight": t["o_proj.weight"].T},
    }

  theirs = modeling_qwen3.Qwen3Attention(own, layer_idx=0)
  return attention.Mixer, cfg, theirs, extra, weights


def as_experts():
  from transformers import DeepseekV3Config
  from transformers.models.deepseek_v3 import modeling_deepseek_v3

  E, K, W = 5, 2, 7
  cfg = experts.Config(
    dim=D, depth=1, length=T, experts=E, top=K, width=W, shared=2 * W
  )
  own = DeepseekV3Config(
    hidden_size=D,
    moe_intermediate_size=W,
    n_routed_experts=E,
    num_local_experts=E,
    num_experts_per_tok=K,
    n_shared_experts=2,
    n_group=1,
    topk_group=1,
    norm_topk_prob=True,
    routed_scaling_factor=1.0,
  )

  def weights(t):
    gate, up = np.split(t["experts.gate_up_proj"], 2, 1)
    shared = {
      n: t[f"shared_experts.{n}_proj.weight"].T for n in ("gate", "up", "down")
    }
    return {
      "gate": gate.swapaxes(1, 2),
      "up": up.swapaxes(1, 2),
      "down": t["experts.down_proj"].swapaxes(1, 2),
      "router": t["gate.weight"].T,
      "shared": shared,
    }

  theirs = modeling_deepseek_v3.DeepseekV3MoE(own)
  bias = torch.linspace(-0.3, 0.3, E)
  theirs.gate.e_score_correction_bias = bias

  def channel(cfg, *, layer, rngs):
    made = experts.Channel(cfg, layer=layer, rngs=rngs)
    made.bias = Buffer(bias.numpy())
    return made

  return channel, cfg, theirs, {}, weights


def as_gelu():
  from transformers import GPT2Config
  from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

  cfg = gelu.Config(dim=D, depth=1, length=T, width=19, bias=True)

  def weights(t):
    return {
      ours: {"weight": t[f"{name}.weight"], "bias": t[f"{name}.bias"]}
      for ours, name in (("up", "c_fc"), ("down", "c_proj"))
    }

  theirs = GPT2MLP(19, GPT2Config(n_embd=D, resid_pdrop=0.0))
  return gelu.Channel, cfg, theirs, {}, weights


def as_geglu():
  from transformers import GemmaConfig
  from transformers.models.gemma.modeling_gemma import GemmaMLP

  cfg = geglu.Config(dim=D, depth=1, length=T, width=19)

  def weights(t):
    return {n: t[f"{n}_proj.weight"].T for n in ("gate", "up", "down")}

  theirs = GemmaMLP(GemmaConfig(hidden_size=D, intermediate_size=19))
  return geglu.Channel, cfg, theirs, {}, weights


def as_relu2():
  from transformers import NanoChatConfig
  from transformers.models.nanochat.modeling_nanochat import NanoChatMLP

  cfg = relu2.Config(dim=D, depth=1, length=T, width=19)

  def weights(t):
    return {
      "up": {"weight": t["fc1.weight"].T},
      "down": {"weight": t["fc2.weight"].T},
    }

  theirs = NanoChatMLP(NanoChatConfig(hidden_size=D, intermediate_size=19))
  return relu2.Channel, cfg, theirs, {}, weights


def as_mamba():
  from transformers import MambaConfig
  from transformers.models.mamba.modeling_mamba import MambaMixer

  cfg = mamba.Config(dim=D, depth=1, length=T, state=5, rank=3, conv=3)
  own = MambaConfig(
    hidden_size=D,
    state_size=5,
    time_step_rank=3,
    conv_kernel=3,
    num_hidden_layers=1,
    use_mambapy=False,
  )

  def weights(t):
    return {
      "in_proj": {"weight": t["in_proj.weight"].T},
      "conv": {"weight": t["conv1d.weight"][:, 0].T, "bias": t["conv1d.bias"]},
      "x_proj": {"weight": t["x_proj.weight"].T},
      "dt_proj": {"weight": t["dt_proj.weight"].T},
      "dt_bias": t["dt_proj.bias"],
      "A_log": t["A_log"],
      "D": t["D"],
      "out_proj": {"weight": t["out_proj.weight"].T},
    }

  return mamba.Mixer, cfg, MambaMixer(own, layer_idx=0), {}, weights


def as_mamba2():
  from transformers import Mamba2Config
  from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

  cfg = mamba2.Config(
    dim=D, depth=1, length=T, state=5, head=4, groups=2, conv=3
  )
  own = Mamba2Config(
    hidden_size=D,
    num_heads=6,
    head_dim=4,
    state_size=5,
    n_groups=2,
    conv_kernel=3,
    chunk_size=8,
    num_hidden_layers=1,
  )

  def weights(t):
    return {
      "in_proj": {"weight": t["in_proj.weight"].T},
      "conv": {"weight": t["conv1d.weight"][:, 0].T, "bias": t["conv1d.bias"]},
      "dt_bias": t["dt_bias"],
      "A_log": t["A_log"],
      "D": t["D"],
      "norm": t["norm.weight"],
      "out_proj": {"weight": t["out_proj.weight"].T},
    }

  return mamba2.Mixer, cfg, Mamba2Mixer(own, layer_idx=0), {}, weights


def as_rglru():
  from transformers import RecurrentGemmaConfig
  from transformers.models.recurrent_gemma import modeling_recurrent_gemma

  cfg = rglru.Config(dim=D, depth=1, length=T, width=20, blocks=5, conv=3)
  own = RecurrentGemmaConfig(
    hidden_size=D, lru_width=20, num_attention_heads=5, conv1d_width=3
  )
  theirs = modeling_recurrent_gemma.RecurrentGemmaRecurrentBlock(own, 0)
  extra = dict(
    position_ids=torch.arange(T).expand(B, T),
    attention_mask=None,
    use_cache=False,
  )

  def weights(t):
    def both(y, x):
      return np.concatenate([t[y], t[x]], 0)

    gates = ("rg_lru.recurrent_gate", "rg_lru.input_gate")
    return {
      "in_proj": {
        "weight": both("linear_y.weight", "linear_x.weight").T,
        "bias": both("linear_y.bias", "linear_x.bias"),
      },
      "conv": {
        "weight": t["conv_1d.weight"][:, 0].T,
        "bias": t["conv_1d.bias"],
      },
      "gates": np.concatenate([t[f"{g}_weight"] for g in gates], -1),
      "gates_bias": np.concatenate([t[f"{g}_bias"] for g in gates], -1),
      "decay": t["rg_lru.recurrent_param"],
      "out_proj": {
        "weight": t["linear_out.weight"].T,
        "bias": t["linear_out.bias"],
      },
    }

  return rglru.Mixer, cfg, theirs, extra, weights


def as_gated_deltanet():
  from transformers import Qwen3NextConfig
  from transformers.models.qwen3_next import modeling_qwen3_next

  H, K, V = 3, 4, 8
  cfg = gated_deltanet.Config(
    dim=D, depth=1, length=T, heads=H, head=K, expand=2, conv=3
  )
  own = Qwen3NextConfig(
    hidden_size=D,
    linear_num_key_heads=H,
    linear_num_value_heads=H,
    linear_key_head_dim=K,
    linear_value_head_dim=V,
    linear_conv_kernel_dim=3,
    num_hidden_layers=1,
    rms_norm_eps=1e-5,
  )

  def weights(t):
    def by_part(w, *widths):  # heads of parts -> parts of heads
      w = w.reshape(H, sum(widths), D)
      parts = np.split(w, np.cumsum(widths)[:-1], 1)
      return np.concatenate([p.reshape(-1, D) for p in parts], 0).T

    return {
      "in_proj": {"weight": by_part(t["in_proj_qkvz.weight"], K, K, V, V)},
      "gates": {"weight": by_part(t["in_proj_ba.weight"], 1, 1)},
      "conv": {"weight": t["conv1d.weight"][:, 0].T},
      "dt_bias": t["dt_bias"],
      "A_log": t["A_log"],
      "norm": {"weight": t["norm.weight"]},
      "out_proj": {"weight": t["out_proj.weight"].T},
    }

  theirs = modeling_qwen3_next.Qwen3NextGatedDeltaNet(own, layer_idx=0)
  return gated_deltanet.Mixer, cfg, theirs, {}, weights


@pytest.mark.parametrize(
  "case",
  [
    as_attention,
    as_experts,
    as_gelu,
    as_geglu,
    as_relu2,
    as_mamba,
    as_mamba2,
    as_rglru,
    as_gated_deltanet,
  ],
)
def test_parity(case):
  torch.manual_seed(0)
  make, cfg, theirs, extra, weights = case()
  with torch.no_grad():
    for p in theirs.parameters():
      p.normal_(0, 0.5)
  x = torch.randn(B, T, D, requires_grad=True)
  ct = torch.randn(B, T, D)
  y = theirs(x, **extra)
  y = y[0] if isinstance(y, tuple) else y
  (y * ct).sum().backward()

  params = dict(theirs.named_parameters())
  ours = make(cfg, layer=np.int32(0), rngs=nnx.Rngs(0))
  graph, state, rest = nnx.split(ours, nnx.Param, ...)
  nnx.replace_by_pure_dict(
    state, weights({k: p.detach().numpy() for k, p in params.items()})
  )

  @jax.jit
  def call(state, x, ct):
    y, back = jax.vjp(
      lambda s, x: nnx.merge(graph, s, rest)(x, None, None)[0], state, x
    )
    return y, *back(ct)

  own, dstate, dx = call(state, x.detach().numpy(), ct.numpy())
  close(own, y.detach().numpy(), 1e-4)
  close(dx, x.grad.numpy(), 1e-4)
  close(
    nnx.to_pure_dict(dstate),
    weights({k: p.grad.numpy() for k, p in params.items()}),
    1e-4,
  )
