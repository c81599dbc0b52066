"""Symbols spell the text that they were made of, byte by byte."""

import copy
import functools
import json
import operator
import random
import re
import time

import numpy as np
import pytest
import tokenizers
from tokenizers import (
  Regex,
  normalizers,
  pre_tokenizers,
  processors,
)

from train import corpus, tokenizer, workdir
from train.corpus import Split


def test_bytes_tokenizer(tmp_path):
  every = bytes(range(256))
  tokenizer.Bytes().save(tmp_path / "tokenizer.json")
  again = tokenizer.load(tmp_path / "tokenizer.json")
  assert isinstance(again, tokenizer.Bytes)
  assert again.decode(again.encode(every)) == every


def test_bpe_takes_long_text_in_pieces(monkeypatch):
  """Pieces encode as the whole does, line feeds and indents included."""
  text = b"x = 1\n\n\n  a\n\n\tb\n \nc\n\nd\n" * 20
  bpe = tokenizer.BPE.train([text], 290)
  ids = bpe.encode(text)
  assert any(b"\n\n" in piece for piece in bpe.pieces)
  monkeypatch.setattr(tokenizer, "PIECE", 1)
  monkeypatch.setattr(tokenizer, "BATCH", 5)
  assert len(list(tokenizer._cut([text.decode()], bpe.seam))) > 30
  np.testing.assert_array_equal(bpe.encode(text), ids)
  split = corpus.Split.of([text, text[:50], b"\n\n"])
  ids, starts = bpe.encode_all(split)
  parts = np.split(ids, starts)[1:]
  assert [*map(bpe.decode, parts)] == [text, text[:50], b"\n\n"]


NASTY = ["a", "é", "b1", "☃", "'s", "'", ".", "!?", " ", " ", "  ", "\n", "\t"]
NASTY += ["\r\n", "\x1c", "\x85", "\u00a0", "\u2028", "\u3000", "😀", "1", "_"]


@pytest.mark.parametrize("window, piece", [(4, 1), (9, 3), (1 << 20, 1)])
def test_any_text_in_pieces_is_encoded_as_the_whole(monkeypatch, window, piece):
  """Whatever white space is where, and however little is decoded at once."""
  rng = random.Random(window)

  def draw():
    return "".join(rng.choices(NASTY, k=60))

  learnt = tokenizer.BPE.train([(draw() * 20).encode()], 400)
  spec = json.loads(learnt.text)
  spec["added_tokens"] = [TOKEN | {"id": learnt.vocab, "content": "a b"}]
  monkeypatch.setattr(tokenizer, "WINDOW", window)
  monkeypatch.setattr(tokenizer, "PIECE", piece)
  cuts = 0
  for bpe in (learnt, tokenizer.BPE(json.dumps(spec))):
    for text in [draw() for _ in range(200)] + ["a b a b", "a\n b", "x  \ny"]:
      pieces = [
        p for p, _, _ in tokenizer._pieces(Split.of([text.encode()]), bpe.seam)
      ]
      cuts += len(pieces) - 1
      assert "".join(pieces) == text
      ids = bpe.bpe.encode(text, add_special_tokens=False).ids
      assert bpe.encode(text.encode()).tolist() == ids, text
  assert cuts > 500


def test_encoding_goes_on_where_it_was(monkeypatch):
  """At the end of any part, and in any document."""
  monkeypatch.setattr(tokenizer, "PIECE", 2)
  monkeypatch.setattr(tokenizer, "BATCH", 2)
  monkeypatch.setattr(tokenizer, "WINDOW", 5)
  split = Split.of([b"a bc\nd", b"e", "é ☃ ab\n\nc".encode(), b"\n"])
  bpe = tokenizer.BPE.train([b"ab bc"], 260)
  parts = list(bpe.encoded(split))
  assert len(parts) > 3 and parts[-1][2] == len(split.bytes)
  for i, (_, _, end) in enumerate(parts):
    rest = list(bpe.encoded(split, end))
    assert len(rest) == len(parts) - i - 1
    for part, expected in zip(rest, parts[i + 1 :], strict=True):
      for one, other in zip(part, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_text_without_a_place_to_cut_is_refused_where_it_is_long(monkeypatch):
  monkeypatch.setattr(tokenizer, "WINDOW", 10)
  monkeypatch.setattr(tokenizer, "PIECE", 4)
  bpe = tokenizer.BPE.train([b"ab"], 260)
  assert len(bpe.encode(b"ab" * 50)) < 100
  monkeypatch.setattr(tokenizer, "MOST", 25)
  assert len(bpe.encode(b"ab\n" * 50)) == 100
  with pytest.raises(ValueError, match="30 characters without a place to cut"):
    bpe.encode(b"ab" * 50)


def test_a_long_word_is_learnt_from_in_parts(monkeypatch):
  """As the same parts between spaces; short words as they stand."""
  learn = functools.partial(tokenizer.BPE.train, vocab=280)
  words = "x1 = 'naïve'; café++\n  don't\n\n" * 9
  short = learn([words.encode()])
  long = "ab" * 4 + "é" * 10
  both = learn([(words + long).encode()])
  monkeypatch.setattr(tokenizer, "LONGEST", 8)
  monkeypatch.setattr(tokenizer, "LONG", re.compile(r"\S{8}|\s{8}"))
  assert learn([words.encode()]).text == short.text
  assert learn([(words + long).encode()]).text != both.text
  parts = [long[:8], long[8:16], long[16:]]
  assert (
    learn([words.encode(), long.encode()]).text
    == learn([words.encode(), *map(str.encode, parts)]).text
  )


def test_a_long_word_takes_no_square_of_its_length():
  start = time.process_time()
  bpe = tokenizer.BPE.train([b"a" * 60_000], 280)
  assert time.process_time() - start < 2  # 6 s if it were
  assert bpe.decode(bpe.encode(b"a" * 60_000)) == b"a" * 60_000


@pytest.fixture(scope="module")
def published():
  """A BPE as they are published: a start symbol that a template adds, symbols
  of white space, NFC, and words that take line feeds after punctuation."""
  learnt = tokenizer.BPE.train([b"aab ab hello.\nworld;\nabc\n" * 50], 290)
  made = tokenizers.Tokenizer.from_str(learnt.text)
  made.add_special_tokens(["<|start|>"])
  made.add_tokens(["   "])
  made.normalizer = normalizers.NFC()
  made.post_processor = processors.TemplateProcessing(
    single="<|start|> $A",
    special_tokens=[("<|start|>", made.token_to_id("<|start|>"))],
  )
  words = Regex(r"\s*[\r\n]+|\w+|[^\s\w]+[\r\n]*|\s+")
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(words, "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  return made


def test_a_published_bpe_is_exact(published):
  bpe = tokenizer.BPE(published.to_str(), size=70_000)
  text = "aab cafe\u0301 hello.\n   x<|start|>\n".encode()
  ids = bpe.encode(text)
  assert bpe.decode(ids) == text and bpe.vocab == 70_000
  start = published.token_to_id("<|start|>")
  assert ids[0] != start and np.sum(ids == start) == 1
  assert np.iinfo(ids.dtype).max >= 69_999


def test_a_published_bpe_is_cut_where_no_symbol_changes(published, monkeypatch):
  bpe = tokenizer.BPE(published.to_str())
  text = "hello.\nworld;\nabc\nab\n\naab x\nab"
  whole = published.encode(text, add_special_tokens=False).ids
  monkeypatch.setattr(tokenizer, "PIECE", 1)
  assert len(list(tokenizer._cut([text], bpe.seam))) == 3
  assert bpe.encode(text.encode()).tolist() == whole


@pytest.fixture(scope="module")
def plain():
  """A BPE of 290 symbols, as the library writes it."""
  return json.loads(
    tokenizer.BPE.train([b"aab ab hello.\nworld;\nabc\n" * 50], 290).text
  )


def edited(spec, changes):
  """A copy with model.vocab=... and the like changed; ... drops a field."""
  spec = copy.deepcopy(spec)
  for path, value in changes.items():
    *outer, name = path.split(".")
    inner = functools.reduce(operator.getitem, outer, spec)
    inner[name] = value
    if value is ...:
      del inner[name]
  return json.dumps(spec)


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
TOKEN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
TOKEN |= {"id": 270, "content": "<|user|>", "special": True}


def sequence(*steps):
  return {"type": "Sequence", "pretokenizers": [*steps, LEVEL]}


def split(behavior):
  pattern = {"Regex": " "}
  return dict(type="Split", pattern=pattern, behavior=behavior, invert=False)


@pytest.mark.parametrize(
  "changes",
  [
    {
      "truncation": {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
      }
    },
    {
      "padding": {
        "strategy": {"Fixed": 900},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
      }
    },
    {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}},
    {"post_processor": {"type": "FromTheFuture"}, "decoder": ...},
    {"model.dropout": 0.5},
    {"model.unk_token": "gone", "model.byte_fallback": True},
    {"model.continuing_subword_prefix": "", "model.end_of_word_suffix": ""},
    {"model.type": ..., "added_tokens": ...},
    {"pre_tokenizer": LEVEL},
  ],
  ids=lambda changes: next(iter(changes)),
)
def test_what_would_change_a_text_is_left_out(plain, changes):
  text = "aab cafe\u0301 hello.\n\r\n  world".encode()
  ids = tokenizer.BPE(json.dumps(plain)).encode(text).tolist()
  assert tokenizer.BPE(edited(plain, changes)).encode(text).tolist() == ids


@pytest.mark.parametrize(
  "steps",
  [
    [split("Isolated"), {"type": "Digits", "individual_digits": True}],
    [{"type": "Punctuation", "behavior": "Contiguous"}, split("Contiguous")],
  ],
)
def test_steps_that_keep_every_byte(plain, steps):
  bpe = tokenizer.BPE(edited(plain, {"pre_tokenizer": sequence(*steps)}))
  text = b"ab 123, (aab)  x\n"
  assert bpe.decode(bpe.encode(text)) == text


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"normalizer": {"type": "Lowercase"}}, "'Lowercase' changes the text"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "'Whitespace' is not known"),
    ({"pre_tokenizer": sequence({"type": "Metaspace"})}, "'Metaspace' is not"),
    ({"pre_tokenizer": sequence({"type": "Future"})}, "'Future' is not known"),
    ({"pre_tokenizer": sequence(split("Removed"))}, "step Split removes text"),
    ({"pre_tokenizer": None}, "it has 0 steps ByteLevel, expected one"),
    ({"pre_tokenizer": sequence(LEVEL)}, "it has 2 steps ByteLevel"),
    ({"pre_tokenizer": LEVEL | {"add_prefix_space": True}}, "adds a space"),
    ({"pre_tokenizer": {"type": "ByteLevel"}}, "adds a space"),
    ({"model.type": "Unigram"}, "of type 'Unigram', expected BPE"),
    ({"model": None}, "its model is None, expected an object"),
    ({"model.end_of_word_suffix": "</w>"}, "end_of_word_suffix '</w>'"),
    ({"model.continuing_subword_prefix": "##"}, "prefix '##' is in no text"),
    ({"added_tokens": [TOKEN | {"rstrip": True}]}, "takes the white space"),
    ({"added_tokens": [TOKEN | {"lstrip": True}]}, "'<|user|>' takes the"),
    ({"added_tokens": [TOKEN | {"id": 300}]}, "300 among the added tokens"),
    ({"added_tokens": [3]}, "an added token is 3"),
    ({"model.vocab": {}, "model.merges": []}, "its vocabulary is empty"),
    ({"model.vocab": {"a": 0, "b": 0}, "model.merges": []}, "both its symbol"),
    ({"model.vocab": {"a": 2**32 - 1}, "model.merges": []}, "is beyond the"),
    ({"model.vocab": {"a": -1}, "model.merges": []}, "refuses it: invalid"),
    ({"model.vocab": {"▁a": 0}, "model.merges": []}, "'▁a' is not spelt in"),
    ({"model.merges": ["a b", "b q"]}, "refuses it: Token `"),
    ({"version": "2.0"}, "refuses it: Unknown tokenizer version"),
  ],
)
def test_what_is_not_exact_is_refused(plain, tmp_path, changes, said):
  file = tmp_path / "tokenizer.json"
  file.write_text(edited(plain, changes))
  with pytest.raises(ValueError, match=re.escape(said)):
    tokenizer.load(file)


@pytest.mark.parametrize(
  "text",
  ["", "[]", '{"model": ', "[" * 10**5, "\x00"],
  ids=["empty", "list", "torn", "deep", "nul"],
)
def test_a_torn_file_is_refused(tmp_path, text):
  file = tmp_path / "tokenizer.json"
  file.write_text(text)
  with pytest.raises(ValueError, match="it is not JSON|expected an object"):
    tokenizer.load(file)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_are_exact_or_refused(published, plain, tmp_path, seed):
  rng = random.Random(seed)
  file = tmp_path / "tokenizer.json"
  text = "aab 12 hello.\n\r\n  world<|start|>   é".encode()
  values = [None, True, 0, -1, 2**32, 1.5, "x", "Removed", [], {}, [None]]
  exact = 0
  for spec in [json.loads(published.to_str()), plain] * 20:
    spec = copy.deepcopy(spec)
    inner = spec
    for _ in range(rng.randrange(5)):
      inside = [v for v in inner.values() if isinstance(v, dict) and v]
      lists = [v[0] for v in inner.values() if isinstance(v, list) and v]
      inside += [v for v in lists if isinstance(v, dict)]
      inner = rng.choice(inside or [inner])
    name = rng.choice(list(inner))
    inner[name] = rng.choice(values)
    file.write_text(json.dumps(spec))
    try:
      bpe = tokenizer.load(file)
      assert bpe.decode(bpe.encode(text)) == text
      exact += 1
    except ValueError as error:
      assert "\n" not in str(error) and len(str(error)) < 400
  assert exact


def test_a_byte_without_a_symbol_is_refused_in_the_text_that_holds_it(plain):
  vocab = {k: i for i, k in enumerate(plain["model"]["vocab"]) if k != "č"}
  bpe = tokenizer.BPE(edited(plain, {"model.vocab": vocab}))
  assert bpe.decode(bpe.encode(b"aab\n")) == b"aab\n"
  said = "no symbol for 0x0d, which is byte 8 of the text; .*'bytes' takes any"
  with pytest.raises(ValueError, match=said):
    bpe.encode_all(corpus.Split.of([b"aab\n", b"aab \r\n"]))


def test_symbols_are_compared_with_the_text(plain):
  bpe = tokenizer.BPE(json.dumps(plain))
  bpe.pieces[bpe.encode(b"aab")[0]] = b"aaB"
  said = "not exact: at byte 4 of .* spell b'B' for b'b'"
  with pytest.raises(ValueError, match=said):
    bpe.encode(b"a aab")


def test_words_that_hold_line_feeds_are_not_cut(plain, monkeypatch):
  """Without a split into words a symbol may hold any line feed."""
  spec = copy.deepcopy(plain)
  spec["pre_tokenizer"]["use_regex"] = False
  size = len(spec["model"]["vocab"])
  spec["model"]["vocab"] |= {"bĊ": size, "bĊa": size + 1}
  spec["model"]["merges"][:0] = [["b", "Ċ"], ["bĊ", "a"]]
  across = [TOKEN | {"id": size, "content": "b\na"}]
  monkeypatch.setattr(tokenizer, "PIECE", 1)
  for text in (json.dumps(spec), edited(plain, {"added_tokens": across})):
    bpe = tokenizer.BPE(text)
    assert b"b\na" in [bpe.decode([i]) for i in bpe.encode(b"b\nab\nab\na")]


def test_symbols_are_numbered_by_frequency():
  text = b"aab ab hello.\nworld;\nabc\n" * 50
  split = Split.of([text, b"aab"])
  learnt = tokenizer.BPE.train(split.documents(), 290)
  found = learnt.by_frequency(split)
  ids, starts = found.encode_all(split)
  counts = np.bincount(ids, minlength=found.vocab)
  assert np.all(np.diff(counts) <= 0) and counts[0] > counts[4] > 0
  assert sorted(found.pieces) == sorted(learnt.pieces)
  before, same_starts = learnt.encode_all(split)
  assert np.any(before != ids) and np.array_equal(starts, same_starts)
  assert [found.pieces[i] for i in ids] == [learnt.pieces[i] for i in before]
  assert found.by_frequency(split).text == found.text


def test_a_trained_run_keeps_its_tokeniser(tmp_path):
  one, other = (
    tokenizer.BPE.train([text * 50], 270) for text in (b"abcab", b"cdecd")
  )
  file = tmp_path / tokenizer.FILE
  one.save(file)
  other.save(file)  # nothing is trained yet
  (tmp_path / "checkpoints" / "10").mkdir(parents=True)
  assert workdir.holds(tmp_path)
  other.save(file)
  with pytest.raises(
    ValueError, match="another tokeniser.*nothing was changed"
  ):
    one.save(file)
  assert tokenizer.load(file).text == other.text
