"""NanoChatForCausalLM."""

from transformers import NanoChatConfig, NanoChatForCausalLM

from convert import T, V


def model(**fields):
  return NanoChatForCausalLM(
    NanoChatConfig(
      hidden_size=24,
      intermediate_size=29,
      num_hidden_layers=3,
      num_attention_heads=6,
      max_position_embeddings=T,
      vocab_size=V,
      pad_token_id=None,  # torch gives the pad's row no gradient
      **fields,
    )
  )


CASES = {
  "plain": lambda: model(num_key_value_heads=2, final_logit_softcapping=0.5),
  "tied, biases, wider heads": lambda: model(
    head_dim=10,
    tie_word_embeddings=True,
    attention_bias=True,
    rms_norm_eps=1e-3,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    final_logit_softcapping=None,
  ),
}
