"""Qwen3NextForCausalLM."""

from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from convert import T, V


def model(**fields):
  return Qwen3NextForCausalLM(
    Qwen3NextConfig(
      hidden_size=24,
      intermediate_size=29,
      moe_intermediate_size=7,
      shared_expert_intermediate_size=11,
      num_hidden_layers=4,
      num_attention_heads=6,
      num_key_value_heads=2,
      head_dim=8,
      linear_conv_kernel_dim=3,
      linear_num_key_heads=2,
      linear_num_value_heads=6,
      linear_key_head_dim=7,
      linear_value_head_dim=14,
      num_experts=5,
      num_experts_per_tok=2,
      max_position_embeddings=T,
      vocab_size=V,
      experts_implementation="eager",  # the grouped one wants even widths
      **fields,
    )
  )


CASES = {
  "plain": lambda: model(
    full_attention_interval=2,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
  ),
  "tied, biases, some dense": lambda: model(
    layer_types=[
      f"{n}_attention" for n in ("full", "linear", "linear", "full")
    ],
    mlp_only_layers=[3],
    decoder_sparse_step=2,
    norm_topk_prob=False,
    tie_word_embeddings=True,
    attention_bias=True,
    rms_norm_eps=1e-3,
    rope_parameters={
      "rope_type": "default",
      "rope_theta": 500.0,
      "partial_rotary_factor": 0.5,
    },
  ),
}
