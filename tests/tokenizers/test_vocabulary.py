"""Image tokens in a language model's vocabulary: exact round trips, refusals, and a transformer that learns them."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.quantizers import EMAVectorQuantizer, ResidualQuantizer
from smalti.tokenizers import SimpleVQVAE, Tokens
from smalti.tokenizers.vocabulary import ImageVocabulary, resize_embeddings

SIZES = ((16, 16), (8, 24))


def pyramid() -> SimpleVQVAE:
    return SimpleVQVAE(32, 8, 8, num_stages=2, num_res_blocks=0, patch_nums=(1, 2, 4)).eval()


def residual() -> SimpleVQVAE:
    quantizer = ResidualQuantizer([EMAVectorQuantizer(32, 8) for _ in range(3)])
    return SimpleVQVAE(32, 8, 8, num_stages=2, num_res_blocks=0, quantizer=quantizer).eval()


@pytest.fixture(params=[pyramid, residual])
def tokenizer(request: pytest.FixtureRequest) -> SimpleVQVAE:
    return request.param()


def picture(count: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1]])
@pytest.mark.parametrize(("rows", "scales"), [(False, False), (True, False), (False, True), (True, True)])
def test_tokens_come_back_and_decode_to_the_same_image(tokenizer, sizes, rows, scales) -> None:
    vocabulary = ImageVocabulary.of(tokenizer, 100, sizes, rows, scales)
    assert ImageVocabulary.from_config(json.loads(json.dumps(vocabulary.config()))) == vocabulary
    assert len(set(vocabulary.special_ids.values())) == len(vocabulary.special_ids)
    for size in sizes:
        tokens = tokenizer.encode(picture(2, size))
        ids = vocabulary.encode(tokens)
        assert ids.shape == (2, vocabulary.length(size))
        assert ids.min() >= 100
        assert ids.max() < vocabulary.num_ids
        again = vocabulary.decode(ids)
        assert all(torch.equal(a, b) for a, b in zip(again.indices, tokens.indices, strict=True))
        assert torch.equal(tokenizer.decode(again), tokenizer.decode(tokens))


def test_the_order_of_ids_is_written_out() -> None:
    """By hand: offset 10, 4 codes, two scales of 1 x 1 and 2 x 2, all separators, two sizes."""
    vocabulary = ImageVocabulary(4, 10, ((8, 8), (16, 16)), (((1, 1), (2, 2)), ((4, 4),)), rows=True, scales=True)
    assert vocabulary.special_ids == {"begin": 14, "end": 15, "row": 16, "scale": 17, "8x8": 18, "16x16": 19}
    tokens = Tokens((torch.tensor([[[3]]]), torch.tensor([[[0, 1], [2, 3]]])), (8, 8), 4)
    expected = [14, 18, 13, 16, 17, 10, 11, 16, 12, 13, 16, 17, 15]
    assert vocabulary.encode(tokens).tolist() == [expected]


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1]])
def test_what_is_written_with_allowed_ids_can_be_decoded(tokenizer: SimpleVQVAE, sizes: tuple) -> None:
    """Random choices among the allowed ids give whole images; and every id of a real image was allowed."""
    vocabulary = ImageVocabulary.of(tokenizer, 5, sizes, rows=True, scales=True)
    begin = vocabulary.special_ids["begin"]
    assert vocabulary.allowed([]) == vocabulary.allowed([1, 2]) == [0, 1, 2, 3, 4, begin]
    generator = torch.Generator().manual_seed(0)
    ids = [3, begin]
    while ids[-1] != vocabulary.special_ids["end"]:
        allowed = vocabulary.allowed(ids)
        ids.append(allowed[int(torch.randint(len(allowed), (), generator=generator))])
    assert vocabulary.allowed(ids) == [0, 1, 2, 3, 4, begin]
    assert vocabulary.encode(vocabulary.decode(torch.tensor([ids[1:]]))).tolist() == [ids[1:]]
    for size in sizes:
        real = [2, *vocabulary.encode(tokenizer.encode(picture(1, size)))[0].tolist()]
        assert all(real[n] in vocabulary.allowed(real[:n]) for n in range(1, len(real)))
    if len(sizes) > 1:
        with pytest.raises(ValueError, match="position 1"):
            vocabulary.allowed([begin, 0])


@given(place=st.integers(0, 28), value=st.integers(0, 120))
def test_a_changed_id_is_another_token_or_refused(place: int, value: int) -> None:
    vocabulary = ImageVocabulary(16, 64, ((16, 16),), (((1, 1), (2, 2), (4, 4)),), rows=True)
    tokens = Tokens.unflatten(torch.arange(21)[None] % 16, vocabulary.grids[0], (16, 16), 16)
    ids = vocabulary.encode(tokens)
    ids[0, place] = value
    fits = (
        64 <= value < 80 if vocabulary.encode(tokens)[0, place] < 80 else value == vocabulary.encode(tokens)[0, place]
    )
    if fits:
        assert torch.equal(vocabulary.encode(vocabulary.decode(ids)), ids)
    else:
        with pytest.raises(ValueError, match=f"got {value} at position {place} of image 0"):
            vocabulary.decode(ids)


def test_what_does_not_belong_is_refused(tokenizer) -> None:
    vocabulary = ImageVocabulary.of(tokenizer, 0, SIZES)
    tokens = tokenizer.encode(picture(1, (16, 16)))
    ids = vocabulary.encode(tokens)
    with pytest.raises(ValueError, match="model"):
        vocabulary.encode(replace(tokens, fingerprint="0" * 64))
    with pytest.raises(ValueError, match="image size: got \\(12, 12\\)"):
        vocabulary.encode(tokenizer.encode(picture(1, (12, 12))))
    with pytest.raises(ValueError, match="per image"):
        vocabulary.decode(ids[:, :-1])
    with pytest.raises(ValueError, match="position 1"):
        vocabulary.decode(torch.full_like(ids, 3))
    with pytest.raises(ValueError, match="int64"):
        vocabulary.decode(ids.float())
    begin, end = vocabulary.special_ids["begin"], vocabulary.special_ids["end"]
    assert vocabulary.spans([1, begin, 2, 3, end, 4, begin, end]) == [slice(1, 5), slice(6, 8)]
    for wrong in ([begin, 1], [end], [begin, begin, end]):
        with pytest.raises(ValueError, match="ids: got"):
            vocabulary.spans(wrong)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_rows_keep_the_geometry_of_the_codebook(tied: bool, dtype: torch.dtype) -> None:
    """Both tables have the same rows, one tensor if tied. Codes that are near each other get embeddings that are."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    none = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.LlamaConfig(**sizes, intermediate_size=8, tie_word_embeddings=tied, **none)
    model = transformers.LlamaForCausalLM(config).to(dtype)
    tokenizer = residual()
    vocabulary = ImageVocabulary.of(tokenizer, 20, SIZES)
    text = [table.weight.detach().clone() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    resize_embeddings(model, tokenizer, vocabulary)
    tables = [table.weight.detach() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    assert (tables[0].data_ptr() == tables[1].data_ptr()) == tied
    assert model.config.vocab_size == vocabulary.num_ids
    for table, before in zip(tables, text, strict=True):
        assert table.dtype == dtype
        assert table.shape == (vocabulary.num_ids, 64)
        assert torch.equal(table[:20], before)
        assert torch.equal(table[20:52], tables[0][20:52])
    codebook = tokenizer.quantizer.get_codebook()[0].detach()
    far, near = torch.cdist(codebook, codebook).flatten(), torch.cdist(table[20:52].float(), table[20:52].float())
    assert torch.corrcoef(torch.stack([far, near.flatten()]))[0, 1] > 0.9
    ids = vocabulary.encode(tokenizer.encode(picture(1, SIZES[0])))
    assert model(input_ids=ids).logits.shape == (1, ids.shape[1], vocabulary.num_ids)


def test_a_transformer_learns_images_after_text(tokenizer) -> None:
    """A tiny GPT-2 with resized embeddings overfits two images, and what it writes decodes to them."""
    transformers = pytest.importorskip("transformers")
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    config = transformers.GPT2Config(vocab_size=20, n_positions=96, n_embd=32, n_layer=1, n_head=2, **off)
    model = transformers.GPT2LMHeadModel(config)
    text = model.get_input_embeddings().weight.detach().clone()
    vocabulary = ImageVocabulary.of(tokenizer, 20, SIZES[:1])
    resize_embeddings(model, tokenizer, vocabulary)
    table = model.get_input_embeddings().weight.detach()
    assert table.shape[0] == vocabulary.num_ids
    assert torch.equal(table[:20], text)
    codes = table[20 : 20 + tokenizer.vocab_size]
    assert codes.std().item() == pytest.approx(text.std().item(), rel=0.3)
    tokens = tokenizer.encode(picture(2, (16, 16)))
    random = torch.randint(0, tokenizer.vocab_size, (2, tokens.num_tokens))
    tokens = Tokens.unflatten(random, tokens.grids, (16, 16), tokenizer.vocab_size, torch.uint8)
    prompts = torch.tensor([[3], [4]])
    ids = torch.cat([prompts, vocabulary.encode(tokens)], dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    written = model.generate(prompts, max_new_tokens=vocabulary.length((16, 16)), do_sample=False, pad_token_id=0)
    again = vocabulary.decode(written[:, 1:])
    assert torch.equal(tokenizer.decode(again), tokenizer.decode(tokens))
