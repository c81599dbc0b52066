"""OlmoeForCausalLM."""

from transformers import OlmoeConfig, OlmoeForCausalLM

from convert import T, V


def model(**fields):
  return OlmoeForCausalLM(
    OlmoeConfig(
      hidden_size=24,
      intermediate_size=7,
      num_hidden_layers=3,
      num_attention_heads=4,
      num_key_value_heads=2,
      num_experts=5,
      num_experts_per_tok=2,
      max_position_embeddings=T,
      vocab_size=V,
      experts_implementation="eager",  # the grouped one wants even widths
      pad_token_id=None,  # torch gives the pad's row no gradient
      eos_token_id=None,
      **fields,
    )
  )


CASES = {
  "plain": model,
  "tied, biases, normalised": lambda: model(
    tie_word_embeddings=True,
    attention_bias=True,
    norm_topk_prob=True,
    rms_norm_eps=1e-3,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
  ),
}
