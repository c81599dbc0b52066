"""RecurrentGemmaForCausalLM."""

from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from convert import V


def model(**fields):
  return RecurrentGemmaForCausalLM(
    RecurrentGemmaConfig(
      hidden_size=24,
      intermediate_size=58,
      num_hidden_layers=5,
      num_attention_heads=3,
      num_key_value_heads=1,
      attention_window_size=5,
      conv1d_width=3,
      vocab_size=V,
      attn_implementation="eager",
      pad_token_id=None,  # torch gives the pad's row no gradient
      **fields,
    )
  )


CASES = {
  "plain": model,
  "biases": lambda: model(attention_bias=True, lru_width=36),
}
# its convolution's cache is hidden_size wide, whatever lru_width is
NO_CACHE = ("biases",)
