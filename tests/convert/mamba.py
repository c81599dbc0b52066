"""MambaForCausalLM."""

from transformers import MambaConfig, MambaForCausalLM

from convert import V


def model(**fields):
  return MambaForCausalLM(
    MambaConfig(
      hidden_size=12,
      num_hidden_layers=3,
      state_size=5,
      time_step_rank=3,
      conv_kernel=3,
      vocab_size=V,
      use_mambapy=False,
      **fields,
    )
  )


CASES = {
  "plain": model,
}
