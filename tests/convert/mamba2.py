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
  "limits of the step": lambda: model(time_step_limit=(0.6, 0.9)),
  "tied": lambda: model(tie_word_embeddings=True),
}
# theirs has no limits where it reads a token at a time
NO_CACHE = ("limits of the step",)
