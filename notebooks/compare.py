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
# # Which small architecture is better, by how much, and is that noise?
#
# This notebook trains architectures of equal size on the same text, with the same
# learning rates and over several seeds, and ends with a leaderboard and a page. It is
# the same on Colab, on Kaggle and on a machine of your own, and goes on where the last
# session ended.
#
# **A free TPU.** Colab: *Runtime → Change runtime type → v5e-1 TPU*. Kaggle: *Settings →
# Accelerator → TPU v5e-8*, with *Internet* on. Then run all cells.
#
# Every command runs in a process of its own: a notebook that imports JAX itself holds
# the TPU against all of them. Where one says that a chip is in use, restart the session.

# %% tags=["parameters"]
ARCHS = "attention,mamba2,gated_deltanet,griffin,experts"
PARAMS = "2M"
TOKENS = "20M"  # of one run; at least 10 a parameter
DATA = "stdlib"  # or text:FILE, text:FOLDER, tfds:NAME
DTYPE = "bfloat16"  # float32 on a CPU and on a T4
HOURS = 8.5  # it stops then and saves; Kaggle ends a session after 9
SMALL = False  # go on without a TPU or GPU, at a size for a CPU
ADDRESS = (
  ""  # of the lab's git repository, if this notebook was opened by itself
)
NAME = "compare"  # of the folder that results go to
MORE = ""  # other flags of launch.compare

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
# ## Results
#
# They lie where the site keeps them: on Kaggle in the output of this notebook's version,
# which you give to the next one (*Add input → Your work*), on Colab in your Drive.

# %%
if not platform.sure() and not SMALL:
  raise ValueError(
    "this runtime has no TPU or GPU: choose one as above, or set SMALL = True"
  )
if SMALL:
  ARCHS, PARAMS, TOKENS, DTYPE = "attention,mamba2", "60K", "300K", "float32"
if sites.COLAB in os.environ:
  from google.colab import drive

  drive.mount("/content/drive")
for line in sites.bring_back():
  print(line)
WORKDIR = sites.results() / NAME
CHIPS = len(platform.tpu_chips())
if CHIPS > 1:  # as on Kaggle: as many runs at the same time
  MORE += f" --chips={CHIPS}"

# %% [markdown]
# ## The comparison
#
# What it will take, `python -m launch.estimate` tells on a laptop. Stopped by you, by
# the time or by the site, the same cell goes on.

# %%
# !python -m launch.compare --archs={ARCHS} --params={PARAMS} --tokens={TOKENS} \
#   --data={DATA} --dtype={DTYPE} --until={HOURS}h --workdir={WORKDIR} {MORE}

# %%
import html

from IPython.display import HTML, Markdown, display

page = WORKDIR / "report.html"
if page.exists():
  display(Markdown((WORKDIR / "leaderboard.md").read_text()))
  source = html.escape(page.read_text())
  frame = f'<iframe srcdoc="{source}" width="100%" height="1200"></iframe>'
  display(HTML(f"<div>{frame}</div>"))
else:
  print("not done yet: run the comparison again, now or in the next session")

# %% [markdown]
# `leaderboard.csv`, `.md` and `.tex`, `results.json` and the page are in the folder of the
# results. More arms, rates or seeds: change the cell above, and what was trained stays.
