"""FalconMambaForCausalLM."""

from transformers import FalconMambaConfig, FalconMambaForCausalLM

from convert import V


def model():
  return FalconMambaForCausalLM(
    FalconMambaConfig(
      hidden_size=12,
      num_hidden_layers=2,
      state_size=5,
      time_step_rank=3,
      conv_kernel=3,
      vocab_size=V,
      bos_token_id=0,
      use_mambapy=False,
    )
  )


CASES = {
  "plain": model,
}
