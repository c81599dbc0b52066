"""Is the number of ones odd? The word problem of Z2, its answer at the end.

Trained on 3 to 40 bits, scored on 40 to 256, as in Grazzi et al. 2024,
https://arxiv.org/abs/2411.12537, section 5.1, after Beck et al. 2024,
https://arxiv.org/abs/2405.04517, where an accuracy is rescaled so that chance,
which is .5, is 0.
"""

import dataclasses

from train.tasks import words

batch = words.batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(words.Config):
  group: str = "Z2"
  low: int = 3
  high: int = 40
  far: int = 256
  answer: str = "last"
