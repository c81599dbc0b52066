"""JambaForCausalLM."""

from transformers import JambaConfig, JambaForCausalLM

from convert import T, V


def model(**fields):
  return JambaForCausalLM(
    JambaConfig(
      hidden_size=24,
      intermediate_size=7,
      num_hidden_layers=6,
      num_attention_heads=4,
      num_key_value_heads=2,
      attn_layer_period=3,
      attn_layer_offset=2,
      num_experts_per_tok=2,
      mamba_d_state=5,
      mamba_d_conv=3,
      max_position_embeddings=T,
      vocab_size=V,
      experts_implementation="eager",  # the grouped one wants even widths
      pad_token_id=None,  # torch gives the pad's row no gradient
      **fields,
    )
  )


CASES = {
  "plain": lambda: model(num_experts=5, mamba_dt_rank=3),
  "tied, dense": lambda: model(
    num_experts=1, mamba_expand=3, rms_norm_eps=1e-3, tie_word_embeddings=True
  ),
}
