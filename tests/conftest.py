import os

# before JAX is imported: tests run on the CPU, whatever the machine has
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# what tests wait for is the compiler, which takes a quarter of the time so
os.environ["XLA_FLAGS"] = " ".join(
  [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false"]
)

import jax

from arch import lm

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
lm.UNROLL = 0
