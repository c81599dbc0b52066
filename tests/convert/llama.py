"""LlamaForCausalLM."""

from transformers import LlamaConfig, LlamaForCausalLM

from convert import T, V


def model(**fields):
  return LlamaForCausalLM(
    LlamaConfig(
      hidden_size=24,
      intermediate_size=29,
      num_hidden_layers=3,
      num_attention_heads=4,
      num_key_value_heads=2,
      max_position_embeddings=T,
      vocab_size=V,
      **fields,
    )
  )


CASES = {
  "plain": model,
  "tied, biases, wider heads": lambda: model(
    tie_word_embeddings=True,
    attention_bias=True,
    head_dim=8,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
  ),
}
