"""Zamba2ForCausalLM."""

from transformers import Zamba2Config, Zamba2ForCausalLM

from convert import V

KINDS = "mhmhhmh"  # the last two hybrids come back to the first two


def model(kinds=KINDS, **fields):
  names = {"m": "linear_attention", "h": "hybrid"}
  return Zamba2ForCausalLM(
    Zamba2Config(
      vocab_size=V,
      hidden_size=12,
      num_hidden_layers=len(kinds),
      layers_block_type=[names[kind] for kind in kinds],
      mamba_d_state=5,
      mamba_d_conv=3,
      mamba_ngroups=2,
      n_mamba_heads=6,
      intermediate_size=29,
      num_attention_heads=3,
      adapter_rank=3,
      chunk_size=8,
      pad_token_id=None,  # torch gives the pad's row no gradient
      **fields,
    )
  )


CASES = {
  "plain": lambda: model(num_mem_blocks=2),
  "adapters of attention, rotary": lambda: model(
    num_mem_blocks=2,
    use_shared_attention_adapter=True,
    use_mem_rope=True,
  ),
  "one block, least step": lambda: model("hmmh", time_step_min=0.7),
}
# theirs has no least step where it reads a token at a time
NO_CACHE = ("one block, least step",)
