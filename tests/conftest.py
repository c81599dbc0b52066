import os

# before JAX is imported: tests run on the CPU, whatever the machine has
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from arch import lm

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
# what tests wait for is the compiler
jax.config.update("jax_disable_most_optimizations", True)
lm.UNROLL = 0
