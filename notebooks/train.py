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
# # Train one small model
#
# One architecture on one text: training, its curve, its score in bits per byte, and what
# it writes. It is the same on Colab, on Kaggle and on a machine of your own, and goes on
# where the last session ended.
#
# **A free TPU.** Colab: *Runtime → Change runtime type → v5e-1 TPU*. Kaggle: *Settings →
# Accelerator → TPU v5e-8*, with *Internet* on. Then run all cells.
#
# Every command runs in a process of its own: a notebook that imports JAX itself holds
# the TPU against all of them. Where one says that a chip is in use, restart the session.

# %% tags=["parameters"]
CONFIG = "mamba2"  # a file of configs/
DATA = "stdlib"  # or text:FILE, text:FOLDER, tfds:NAME
STEPS = 20_000
DTYPE = "bfloat16"  # float32 on a CPU and on a T4
PROMPT = "def "
HOURS = 8.5  # it stops then and saves; Kaggle ends a session after 9
SMALL = False  # go on without a TPU or GPU, at a size for a CPU
ADDRESS = (
  ""  # of the lab's git repository, if this notebook was opened by itself
)
NAME = "train"  # of the folder that results go to
MORE = ""  # other flags of launch.train

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
from train import platform, sites

if sites.missing():
  pip = [sys.executable, "-m", "pip", "install", "-q", "-e", "."]
  subprocess.run(pip, check=True)

# %%
# !python -m launch.doctor

# %% [markdown]
# ## Training
#
# What is saved lies where the site keeps it: on Kaggle in the output of this notebook's
# version, which you give to the next one (*Add input → Your work*), on Colab in your
# Drive. Stopped by you, by the time or by the site, the same cell goes on.

# %%
if not platform.sure() and not SMALL:
  raise ValueError(
    "this runtime has no TPU or GPU: choose one as above, or set SMALL = True"
  )
if SMALL:
  CONFIG, STEPS, DTYPE = f"{CONFIG}:tiny", 300, "float32"
if sites.COLAB in os.environ:
  from google.colab import drive

  drive.mount("/content/drive")
for line in sites.bring_back():
  print(line)
WORKDIR = sites.results() / NAME

# %%
# !python -m launch.train --config={CONFIG} --config.data.name={DATA} \
#   --config.train.steps={STEPS} --config.model.dtype={DTYPE} \
#   --until={HOURS}h --workdir={WORKDIR} {MORE}

# %%
import json

import matplotlib.pyplot as plt

lines = [json.loads(line) for line in open(WORKDIR / "metrics.jsonl")]
lines = [line for line in lines if "loss" in line]
plt.figure(figsize=(8, 4))
plt.plot([line["step"] for line in lines], [line["loss"] for line in lines])
plt.xlabel("step")
plt.ylabel("training loss, nats a token")
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## What it is worth, and what it writes

# %%
# !python -m launch.evaluate --workdir={WORKDIR}

# %%
# !python -m launch.generate --workdir={WORKDIR} --prompt="{PROMPT}"
