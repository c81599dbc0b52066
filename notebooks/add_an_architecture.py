# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Add an architecture of your own
#
# One file of `arch/mixers` and one config, whose names are its name everywhere: nothing
# else changes. Then the lab tests its properties, counts what it costs, and compares it
# with others at equal size. A CPU is enough for all of this.

# %% tags=["parameters"]
ARCHS = "leaky,lru,attention"
PARAMS = "100K"
TOKENS = "500K"
ADDRESS = (
  ""  # of the lab's git repository, if this notebook was opened by itself
)
NAME = "leaky"  # of the folder that results go to
MORE = "--platform=cpu"  # other flags of launch.compare

# %% [markdown]
# ## The lab

# %%
import os
import subprocess
import sys
from pathlib import Path

if Path("../arch").is_dir():  # of the clone that this notebook lies in
  os.chdir("..")
elif Path("lab/arch").is_dir():
  os.chdir("lab")
elif not Path("arch").is_dir():
  if not ADDRESS:
    raise ValueError("there is no lab here: set ADDRESS, to clone it")
  subprocess.run(
    ["git", "clone", "-q", "--depth=1", ADDRESS, "lab"], check=True
  )
  os.chdir("lab")
sys.path.insert(0, os.getcwd())
from train import sites

if sites.missing():
  pip = [sys.executable, "-m", "pip", "install", "-q", "-e", "."]
  subprocess.run(pip, check=True)

# %%
# !python -m launch.doctor --platform=cpu

# %% [markdown]
# ## The mixer
#
# It maps x, B T D, to as much. `reset` says where a document begins, and the state is all
# that is kept from what came before. See `arch/law.py` for what holds for all.

# %%
with open("arch/mixers/leaky.py", "w") as file:
  file.write('''\
"""A leaky sum: one decay a channel, the same for every token.

  v, z = x W_in
  h_t = a h_{t-1} + (1 - a) v_t,  a = sigmoid(decay)       h_0 = 0
  y = (h silu(z)) W_out

Author 2025, https://arxiv.org/abs/..., eq. 3; initialisation as in file F.

B batch  T time  D width  E inner width
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, roles
from arch.law import Aux
from arch.recurrence import diagonal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):  # brings dim, depth, length, dtype
  expand: int = 1  # E over dim

  def __post_init__(self):
    self.positive("expand")


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, E = cfg.dim, cfg.expand * cfg.dim
    self.in_proj = cfg.linear(D, (E, E), rngs=rngs)
    self.decay = roles.Gate(jnp.linspace(-2, 4, E))
    self.out_proj = cfg.linear(E, D, rngs=rngs)

  def init_state(self, batch, length=None):
    return {"h": jnp.zeros((batch, self.decay.shape[0]))}

  def __call__(self, x, reset, state):
    state = state or self.init_state(x.shape[0])
    v, z = (t.astype(jnp.float32) for t in self.in_proj(x))
    a = jax.nn.sigmoid(self.decay[...])[None, None]
    h, last = diagonal.scan(a, (1 - a) * v, reset, state["h"])
    return self.out_proj(h * jax.nn.silu(z)), {"h": last}, Aux()
''')

# %% [markdown]
# ## Its config

# %%
with open("configs/leaky.py", "w") as file:
  file.write('''\
"""A leaky sum with SwiGLU."""

from configs import base_config


def get_config(size="small"):
  c = base_config(size)  # dim, depth, length, training; see configs/__init__.py
  c.model.pattern = ("leaky",)
  c.model.mixers.leaky = dict(expand=2)
  c.model.channels.swiglu = dict(
    width={"tiny": 29, "small": 344, "full": 2048}[size]
  )
  return c.lock()
''')

# %% [markdown]
# ## Is it one?
#
# Causal, the same in parts as in one, nothing before a reset matters, every parameter
# learns, and more: the same tests for every architecture.

# %%
# !python -m pip install -q pytest pytest-xdist
# !python -m pytest -q tests/test_properties.py -k leaky

# %% [markdown]
# ## What is it worth?
#
# A first look: at least 10 tokens a parameter say more.

# %%
# !python -m launch.compare --archs={ARCHS} --params={PARAMS} --tokens={TOKENS} \
#   --lrs=3e-3,1e-2 --seeds=2 --workdir=runs/{NAME} {MORE}

# %%
import html

from IPython.display import HTML, Markdown, display

WORKDIR = Path("runs", NAME)
page = WORKDIR / "report.html"
if page.exists():
  display(Markdown((WORKDIR / "leaderboard.md").read_text()))
  source = html.escape(page.read_text())
  frame = f'<iframe srcdoc="{source}" width="100%" height="1200"></iframe>'
  display(HTML(f"<div>{frame}</div>"))
else:
  print("not done yet: run the comparison again, now or in the next session")

# %% [markdown]
# What follows, as values against the authors' code, is in CONTRIBUTING.md.
