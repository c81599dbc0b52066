"""Models that launch.convert should read, a file for each type.

tests/convert/TYPE.py belongs to train/convert/types/TYPE.py. It has CASES: a
line -> a function that builds a small model of transformers'. Where
transformers has none, the file builds a torch.nn.Module of its own, with
`save_pretrained`, that answers tokens B T with something that has `logits`.
NO_CACHE names the cases that cannot read a token at a time; cache, called with
config, makes what they keep meanwhile where that is no DynamicCache.
"""

V = 37  # symbols
T = 21  # tokens
