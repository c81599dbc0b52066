"""The fields of a stranger's config.json.

A type's FIELDS has each field that its logits depend on, with the default of
transformers' config class. A default stands for values of its own kind; where
others are allowed, or fewer, it is a Field.
"""

from collections.abc import Mapping

from train import schema
from train.schema import flag, positive, text, whole

MOST = 2**31 - 1  # of a size
# Fields that no logit depends on: of training, of what is drawn from a model,
# and of the library that wrote the file.
INERT = frozenset(
  """
  _attn_implementation _attn_implementation_autoset _experts_implementation
  _name_or_path architectures attention_dropout attention_probs_dropout_prob
  auto_map chunk_size_feed_forward do_sample dtype embd_pdrop attn_pdrop
  resid_pdrop eos_token_id hidden_dropout id2label initializer_range
  keys_to_ignore_at_inference label2id max_length model_type num_labels
  output_attentions output_hidden_states output_router_logits pad_token_id
  pretraining_tp problem_type return_dict router_aux_loss_coef
  task_specific_params tokenizer_class torch_dtype transformers_version
  unk_token_id use_cache
  """.split()
)
ROPE = ("rope_scaling", "rope_parameters")


class Field:
  """A default, and of which other kinds the field may be; without any, of none
  but its default.

  Attributes:
    tensors: whether each of so many has tensors of its own.
  """

  def __init__(self, default, *kinds, tensors=False):
    self.default, self.kinds, self.tensors = default, kinds, tensors

  def wrong(self, name: str, value, tensors: int) -> str | None:
    """Why it cannot be this value in a folder of so many tensors."""
    alike = type(value) is type(self.default) and value == self.default
    if not alike and not self.kinds:
      given = schema.shown(value)
      return f"{name}={given} is not supported, only {self.default!r}"
    if not alike and (why := schema.wrong(value, self.kinds, name)):
      return why
    if type(value) is int and value > MOST:
      return f"{name}={value} is above {MOST}"
    if self.tensors and value > tensors:
      return f"{name}={value} is more than the {tensors} tensors"
    return None


# what a field can be that has this default
KINDS = {bool: flag, int: whole, float: positive, str: text}
# of every type, for what no type has
COMMON = dict(
  is_encoder_decoder=Field(False),
  per_layer_config=Field(None),
  quantization_config=Field(None),
)


def several(default: int) -> Field:
  """How many there are of what has tensors of its own."""
  return Field(default, whole, tensors=True)


def read(raw, module, tensors, where) -> tuple[dict, list[str]]:
  """Every field of a type, checked, and what is to be said about them.

  Args:
    raw: the object in config.json.
    module: the type.
    tensors: names of the folder's tensors.
    where: the file, for errors.
  """

  def refuse(why):
    raise ValueError(f"{where}: {why}")

  given = rope(raw, refuse)
  for outer, names in getattr(module, "WITHIN", {}).items():
    part = given.get(outer)
    for other, name in names.items() if isinstance(part, dict) else ():
      if part.get(other) is not None:
        given[name] = part[other]
  for other, name in getattr(module, "NAMES", {}).items():
    value = given.pop(other, None)
    if value is not None and given.setdefault(name, value) != value:
      refuse(f"{other}={value!r} and {name}={given[name]!r} are one field")
  known = {
    name: field
    if isinstance(field, Field)
    else Field(field, KINDS[type(field)])
    for name, field in (COMMON | module.FIELDS).items()
  }
  for name, field in known.items():
    if name in given and (why := field.wrong(name, given[name], len(tensors))):
      refuse(why)
  found = {
    name: given.get(name, field.default) for name, field in known.items()
  }
  start, size = found["bos_token_id"], found["vocab_size"]
  if start is not None and start >= size:
    if "bos_token_id" in given:
      refuse(f"bos_token_id={start} is outside of vocab_size={size}")
    found["bos_token_id"] = None
  inert = INERT | known.keys() | getattr(module, "UNREAD", set())
  unread = sorted(n for n in given.keys() - inert if given[n] is not None)
  absent = [
    f"{name}={found[name]}"
    for name, field in known.items()
    if name not in given and field.kinds and found[name] is not None
  ]
  notes = [
    f"{what}: {', '.join(names)}"
    for what, names in (
      ("fields that are not read", unread),
      ("fields left out, hence at transformers' default", absent),
    )
    if names
  ]
  if found["bos_token_id"] is None:
    notes.append("no bos_token_id: what precedes a document is all zeros")
  return {"model_type": raw["model_type"]} | found, notes


def rope(raw: Mapping, refuse) -> dict:
  """The config with the fields of its rotary positions beside the others."""
  given = dict(raw)
  parts = {name: given.pop(name, None) for name in ROPE}
  parts = {name: part for name, part in parts.items() if part not in (None, {})}
  if len(parts) > 1 and parts[ROPE[0]] != parts[ROPE[1]]:
    refuse(f"{ROPE[0]} and {ROPE[1]} differ")
  for name, part in parts.items():
    if not isinstance(part, dict):
      refuse(f"{name} is {schema.shown(part)}, not an object or None")
    for key, value in part.items():
      if key in ("rope_theta", "partial_rotary_factor"):
        given[key] = value
      elif key not in ("rope_type", "type") or value != "default":
        refuse(f"{name}: {key}={schema.shown(value)} is not supported")
  return given
