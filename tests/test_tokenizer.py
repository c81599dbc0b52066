"""Symbols spell the text that they were made of, byte by byte."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import (
  Regex,
  normalizers,
  pre_tokenizers,
  processors,
)

from train import corpus, tokenizer


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
  assert len(list(tokenizer._cut(text.decode(), bpe.seam))) > 30
  np.testing.assert_array_equal(bpe.encode(text), ids)
  split = corpus.Split.of([text, text[:50], b"\n\n"])
  ids, first = bpe.encode_all(split)
  parts = np.split(ids, np.flatnonzero(first))[1:]
  assert [*map(bpe.decode, parts)] == [text, text[:50], b"\n\n"]


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
  assert len(list(tokenizer._cut(text, bpe.seam))) == 3
  assert bpe.encode(text.encode()).tolist() == whole


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"normalizer": {"type": "Lowercase"}}, "Lowercase changes the text"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "without the step ByteLevel"),
    ({"model": {"type": "Unigram"}}, "it is a Unigram, no BPE"),
  ],
)
def test_what_is_not_exact_is_refused(published, changes, said):
  spec = json.loads(published.to_str()) | changes
  with pytest.raises(ValueError, match=said):
    tokenizer.BPE(json.dumps(spec))


def test_a_prefix_space_and_other_letters_are_refused(published):
  spec = json.loads(published.to_str())
  spec["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
  with pytest.raises(ValueError, match="adds a space"):
    tokenizer.BPE(json.dumps(spec))
  spec = json.loads(published.to_str())
  spec["model"]["vocab"]["▁a"] = 400
  with pytest.raises(ValueError, match="'▁a' is not spelt in bytes"):
    tokenizer.BPE(json.dumps(spec))
