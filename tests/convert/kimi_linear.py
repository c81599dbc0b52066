"""KimiLinearForCausalLM, saved by transformers and as it was published."""

import json

from safetensors.torch import load_file, save_file
from transformers import KimiLinearConfig, KimiLinearForCausalLM

from convert import T, V

HEADS, HEAD, CONV = 3, 5, 3  # of Kimi delta attention


def model(made=KimiLinearForCausalLM, **fields):
  return made(
    KimiLinearConfig(
      hidden_size=12,
      intermediate_size=19,
      moe_intermediate_size=7,
      num_attention_heads=2,
      num_key_value_heads=2,
      kv_lora_rank=8,
      qk_nope_head_dim=3,
      qk_rope_head_dim=6,
      v_head_dim=4,
      linear_num_heads=HEADS,
      linear_head_dim=HEAD,
      linear_conv_kernel_dim=CONV,
      num_experts=5,
      num_experts_per_token=2,
      num_shared_experts=2,
      max_position_embeddings=T,
      vocab_size=V,
      bos_token_id=3,
      eos_token_id=4,
      experts_implementation="eager",  # the grouped one wants even widths
      pad_token_id=None,  # torch gives the pad's row no gradient
      **fields,
    )
  )


class Published(KimiLinearForCausalLM):
  """Saves the names of moonshotai/Kimi-Linear-48B-A3B, of two dense layers."""

  def save_pretrained(self, path):
    super().save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    kinds = config.pop("layer_types")
    for name in ("mlp_layer_types", "linear_num_heads", "linear_head_dim"):
      del config[name]
    del config["linear_conv_kernel_dim"]
    at = {
      kind: [i + 1 for i, k in enumerate(kinds) if k == kind] for kind in kinds
    }
    config |= dict(
      first_k_dense_replace=2,
      linear_attn_config=dict(
        full_attn_layers=at["full_attention"],
        kda_layers=at["linear_attention"],
        num_heads=HEADS,
        head_dim=HEAD,
        short_conv_kernel_size=CONV,
      ),
      mla_use_nope=True,
      moe_layer_freq=1,
      moe_router_activation_func="sigmoid",
      num_nextn_predict_layers=0,
      use_grouped_topk=True,
    )
    (path / "config.json").write_text(json.dumps(config))
    file = path / "model.safetensors"
    tensors = load_file(file)
    for i in range(2):
      for name in ("gate", "up", "down"):
        old = f"model.layers.{i}.block_sparse_moe.{name}_proj.weight"
        tensors[old.replace("block_sparse_moe", "mlp")] = tensors.pop(old)
    save_file(tensors, file)


CASES = {
  "plain": lambda: model(
    num_hidden_layers=5,
    layer_types=["linear_attention"] * 3 + ["full_attention"] * 2,
    rms_norm_eps=1e-3,
  ),
  "latent queries, weights not normalised": lambda: model(
    num_hidden_layers=4,
    layer_types=["full_attention", "linear_attention"] * 2,
    mlp_layer_types=["sparse", "dense"] * 2,
    q_lora_rank=9,
    moe_renormalize=False,
    routed_scaling_factor=0.7,
  ),
  "as published": lambda: model(
    made=Published,
    num_hidden_layers=4,
    layer_types=["linear_attention", "full_attention"] * 2,
    mlp_layer_types=["dense"] * 2 + ["sparse"] * 2,
  ),
}
