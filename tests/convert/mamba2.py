"""Mamba2ForCausalLM."""

from transformers import Mamba2Config, Mamba2ForCausalLM

from convert import V


def model(**fields):
  return Mamba2ForCausalLM(
    Mamba2Config(
      hidden_size=12,
      num_heads=6,
      head_dim=4,
      n_groups=2,
      num_hidden_layers=3,
      state_size=5,
      conv_kernel=3,
      chunk_size=8,
      vocab_size=V,
      bos_token_id=0,
      **fields,
    )
  )


CASES = {
  "plain": model,
  "tied": lambda: model(tie_word_embeddings=True),
}
