"""GPT2LMHeadModel."""

from transformers import GPT2Config, GPT2LMHeadModel

from convert import T, V


def model(vocab_size=V):
  return GPT2LMHeadModel(
    GPT2Config(
      n_embd=24,
      n_layer=3,
      n_head=4,
      n_positions=T,
      vocab_size=vocab_size,
      bos_token_id=5,
      eos_token_id=5,
    )
  )


CASES = {
  "plain": model,
}
