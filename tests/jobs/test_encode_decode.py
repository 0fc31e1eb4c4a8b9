"""Images to a token file and back, against the tokenizer called directly, and everything that must be refused."""

import os
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from smalti.codec import coding_tables
from smalti.data import UnreadableImageError, file_names, image_names, load_image, open_images, read_pixels, save_image
from smalti.formats import TokenFileError, read_token_file, write_token_file
from smalti.jobs.decode import DecodeConfig, decode
from smalti.jobs.encode import EncodeConfig, encode
from smalti.jobs.reconstruct import ReconstructConfig, reconstruct
from smalti.ops.pixels import to_float
from smalti.tokenizers import SimpleVQVAE, to_token_image, to_tokens
from smalti.zoo import load

SIZES = {"photo.png": (21, 30), "pixel.png": (1, 1), "line.bmp": (3, 1), "square.webp": (16, 16)}  # height, width


def save_tokenizer(folder, channels=3, patch_nums=None, seed=0):
    """Untrained, but with the codes spread as the latents of a photograph, so that many are used."""
    torch.manual_seed(seed)
    tokenizer = SimpleVQVAE(20, 8, 16, num_stages=2, patch_nums=patch_nums, image_channels=channels)
    photo = open_images("embedded:test", channels=channels).load(0)[::6, ::6]
    with torch.no_grad():
        latents = tokenizer.encoder(to_float(torch.tensor(photo).permute(2, 0, 1)[None])).flatten(2)[0].T
        center = 0 if patch_nums else latents.mean(0)
        for codebook in tokenizer.quantizer.quantizers if patch_nums else [tokenizer.quantizer]:
            codebook.embedding.weight.copy_(center + torch.randn(20, 8) * latents.std(0))
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("run"), patch_nums=(1, 2, 4))


@pytest.fixture(scope="module")
def grey_run(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("grey"), channels=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    photo = Image.fromarray(open_images("embedded:test").load(0))
    for name, (height, width) in SIZES.items():
        photo.resize((width, height)).save(folder / name, lossless=True)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def expected_image(run, path, channels=3):
    """What encoding and decoding should give, by the forward pass: uint8 (H, W, C)."""
    with torch.no_grad():
        image = to_float(read_pixels(path, channels))
        reconstruction = load(run)(image).reconstruction
    return ((reconstruction[0].permute(1, 2, 0).double() + 1) * 127.5).numpy()


@pytest.mark.parametrize("channels", [3, 1])
def test_images_of_any_size_come_back_as_the_forward_pass_gives_them(run, grey_run, photos, tmp_path, channels):
    run = run if channels == 3 else grey_run
    paths = tuple(str(photos / name) for name in SIZES)
    result = encode(EncodeConfig(run, paths, tmp_path / "t"))
    assert result.file_bytes == (tmp_path / "t").stat().st_size
    decoded = decode(DecodeConfig(run, tmp_path / "t", tmp_path / "out"))
    for image, encoded, (name, size) in zip(decoded, result.images, SIZES.items(), strict=True):
        assert image.name == encoded.name == name
        assert image.image_size == encoded.image_size == size
        assert image.path == (tmp_path / "out" / name).with_suffix(".png")
        with Image.open(image.path) as picture:
            assert picture.mode == ("RGB" if channels == 3 else "L")
        pixels = load_image(image.path, channels)
        assert pixels.shape == (*size, channels)
        assert np.abs(pixels - expected_image(run, photos / name, channels)).max() <= 0.5 + 1e-3
    assert len(list((tmp_path / "out").iterdir())) == len(SIZES)
    assert load_image(decoded[0].path).std() > 1  # not one flat colour


def test_the_file_holds_what_the_tokenizer_says(run, photos, tmp_path):
    tokenizer = load(run)
    told = []
    result = encode(EncodeConfig(run, (str(photos / "photo.png"),), tmp_path / "t"), told.append)
    token_file = read_token_file(tmp_path / "t", tokenizer.fingerprint)
    tokens = tokenizer.encode(read_pixels(photos / "photo.png", 3))
    (image,) = token_file.images
    assert token_file.vocab_size == 20
    assert image.grids == tokens.grids
    assert image.indices.tolist() == tokens.flatten()[0].tolist()
    assert len(set(image.indices.tolist())) > 5  # so that equal lists mean something
    again = to_tokens(image, 20)
    assert again.image_size == (21, 30)
    assert all(torch.equal(a, b) for a, b in zip(again.indices, tokens.indices, strict=True))
    assert tuple(told) == result.images
    assert result.images[0].num_tokens == tokens.num_tokens
    assert result.images[0].num_bytes == -(-tokens.num_tokens * 5 // 8)  # 20 codes: 5 bits
    assert result.images[0].bits_per_pixel == 8 * result.images[0].num_bytes / (21 * 30)


def test_tokens_of_several_images_are_not_one_image(run, photos):
    tokens = load(run).encode(read_pixels(photos / "photo.png", 3).expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match="2 images"):
        to_token_image("a", tokens, 3)


def test_reconstruct_equals_encode_and_decode_and_says_the_psnr(run, photos, tmp_path):
    source = str(photos / "photo.png")
    result = reconstruct(ReconstructConfig(run, source, tmp_path / "one.png"))
    encode(EncodeConfig(run, (source,), tmp_path / "t"))
    decode(DecodeConfig(run, tmp_path / "t", tmp_path / "two.png"))
    image, written = load_image(source), load_image(tmp_path / "one.png")
    assert written.shape == image.shape
    np.testing.assert_array_equal(written, load_image(tmp_path / "two.png"))
    assert result.psnr == pytest.approx(peak_signal_noise_ratio(image, written, data_range=255), abs=1e-4)
    assert result.encoded.image_size == (21, 30)


def test_one_image_goes_to_a_file_or_into_a_folder(run, photos, tmp_path):
    encode(EncodeConfig(run, (str(photos / "photo.png"),), tmp_path / "t"))
    (tmp_path / "folder").mkdir()
    (image,) = decode(DecodeConfig(run, tmp_path / "t", tmp_path / "folder"))
    assert image.path == tmp_path / "folder" / "photo.png"
    (image,) = decode(DecodeConfig(run, tmp_path / "t", tmp_path / "a.jpg"))
    with Image.open(tmp_path / "a.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (30, 21))


def test_two_images_of_one_name_keep_their_folders(run, photos, tmp_path):
    for i in range(2):
        (tmp_path / f"in/{i}").mkdir(parents=True)
        (tmp_path / f"in/{i}/a.png").write_bytes((photos / list(SIZES)[i]).read_bytes())
    encode(EncodeConfig(run, (f"{tmp_path}/in/0/a.png", f"{tmp_path}/in/1/a.png"), tmp_path / "t"))
    decode(DecodeConfig(run, tmp_path / "t", tmp_path / "out"))
    assert load_image(tmp_path / "out/0/a.png").shape == (21, 30, 3)
    assert load_image(tmp_path / "out/1/a.png").shape == (1, 1, 3)


def test_names_are_relative_to_the_common_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert image_names(("a.png",)) == ("a.png",)
    assert image_names(("x/a.png", "./x/b.png")) == ("a.png", "b.png")
    assert image_names(("x/a.png", f"{tmp_path}/y/z/b.png", "../c.png")) == (
        f"{tmp_path.name}/x/a.png",
        f"{tmp_path.name}/y/z/b.png",
        "c.png",
    )
    assert image_names((os.fsdecode(b"\xff\n.png"),)) == (r"\xff\n.png",)


def test_file_names_differ_even_where_case_does_not_count():
    names = ("a.jpg", "a.png", "A.webp", "a-2", "v1.2", "b/a.png")
    assert file_names(names) == ("a.png", "a-2.png", "A-3.png", "a-2-2.png", "v1.2.png", "b/a.png")
    many = file_names(("a.png",) * 20_000)
    assert len(set(many)) == 20_000


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(run, photos, tmp_path):
    encode(EncodeConfig(run, (str(photos / "photo.png"), str(photos / "line.bmp")), tmp_path / "t"))
    return tmp_path / "t"


def test_no_token_file_is_written_when_an_image_is_none(run, photos, tmp_path):
    broken = str(photos / "broken.png")
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        encode(EncodeConfig(run, (str(photos / "photo.png"), broken), tmp_path / "t"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        encode(EncodeConfig(run, (str(photos / "photo.png"), "/nowhere/a.png"), tmp_path / "t"))
    with pytest.raises(ValueError, match=r"photo\.png.*max_pixels = 629"):
        encode(EncodeConfig(run, (str(photos / "photo.png"),), tmp_path / "t", max_pixels=629))
    with pytest.raises(ValueError, match="images: got none"):
        EncodeConfig(run, (), tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_tokens_of_another_model_are_refused(run, grey_run, tokens, tmp_path):
    with pytest.raises(TokenFileError, match="made with another model"):
        decode(DecodeConfig(grey_run, tokens, tmp_path / "out"))
    retrained = save_tokenizer(tmp_path / "retrained", patch_nums=(1, 2, 4), seed=1)
    with pytest.raises(TokenFileError, match="made with another model"):
        decode(DecodeConfig(retrained, tokens, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_damaged_tokens_write_nothing(run, tokens, tmp_path):
    whole = tokens.read_bytes()
    damages = {
        "truncated": whole[:-3],
        "altered": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "not a smalti token file": b"GIF89a" + whole,
    }
    for reason, data in damages.items():
        tokens.write_bytes(data)
        with pytest.raises(TokenFileError, match=reason):
            decode(DecodeConfig(run, tokens, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == [tokens]


def test_forged_tokens_with_the_right_fingerprint_are_refused(run, tokens, tmp_path):
    token_file = read_token_file(tokens)
    image = token_file.images[0]
    forgeries = [
        replace(token_file, vocab_size=32),
        replace(token_file, images=(replace(image, image_size=(10**6, 10**6)),)),
        replace(token_file, images=(replace(image, channels=1),)),
        replace(token_file, images=(replace(image, grids=((image.num_tokens,),)),)),
        replace(token_file, images=(replace(image, grids=(*image.grids[:-1], (*image.grids[-1], 1))),)),
        replace(token_file, images=(replace(image, grids=image.grids[::-1]),)),
        replace(token_file, images=(replace(image, grids=image.grids[1:], indices=image.indices[-60:]),)),
        replace(token_file, images=()),
    ]
    for forgery in forgeries:
        write_token_file(tokens, forgery, force=True)
        with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the messages are many)
            decode(DecodeConfig(run, tokens, tmp_path / "out.png"))
        assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == [tokens]


def test_a_file_with_several_images_needs_a_folder(run, tokens, tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder for the 2 images"):
        decode(DecodeConfig(run, tokens, tmp_path / "out.png"))
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(FileExistsError, match="taken already exists"):
        decode(DecodeConfig(run, tokens, taken))
    with pytest.raises(ValueError, match="expected a folder"):
        decode(DecodeConfig(run, tokens, taken, force=True))
    assert sorted(tmp_path.iterdir()) == [tokens, taken]


def test_nothing_is_overwritten_unless_forced(run, photos, tokens, tmp_path):
    before = tokens.read_bytes()
    one = str(photos / "photo.png")
    with pytest.raises(FileExistsError, match="t already exists"):
        encode(EncodeConfig(run, (one,), tokens))
    with pytest.raises(FileExistsError, match="t already exists"):
        reconstruct(ReconstructConfig(run, one, tokens))
    assert tokens.read_bytes() == before

    out = tmp_path / "out"
    out.mkdir()
    (out / "line.png").write_text("mine")
    (out / "other").write_text("mine too")
    with pytest.raises(FileExistsError, match=r"line\.png already exists"):
        decode(DecodeConfig(run, tokens, out))
    assert sorted(path.name for path in out.iterdir()) == ["line.png", "other"]
    decode(DecodeConfig(run, tokens, out, force=True))
    assert load_image(out / "line.png").shape == (3, 1, 3)
    assert (out / "other").read_text() == "mine too"


def test_an_input_is_never_the_output(run, photos, tokens, tmp_path):
    """Not even by force, nor through a link."""
    picture, link = tmp_path / "picture.png", tmp_path / "link.png"
    picture.write_bytes((photos / "photo.png").read_bytes())
    link.symlink_to(picture)
    before = picture.read_bytes()
    for out in (picture, link):
        with pytest.raises(ValueError, match="which is an input"):
            encode(EncodeConfig(run, (str(photos / "square.webp"), str(picture)), out, force=True))
        with pytest.raises(ValueError, match="which is an input"):
            reconstruct(ReconstructConfig(run, str(picture), out, force=True))
    assert picture.read_bytes() == before
    with pytest.raises(ValueError, match="which is an input"):
        decode(DecodeConfig(run, tokens, tokens, force=True))


def test_a_link_does_not_lead_out_of_the_folder(run, photos, tokens, tmp_path):
    token_file = read_token_file(tokens)
    inside = replace(token_file.images[0], name="link/a.png")
    write_token_file(tokens, replace(token_file, images=(inside,)), force=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is not inside"):
        decode(DecodeConfig(run, tokens, tmp_path / "out", force=True))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_altered_byte_and_a_new_checksum_are_still_one_line_or_a_picture(run, tokens, tmp_path):
    """Whatever a forger does to the images of a real file, decoding ends in pictures or in a ValueError."""
    whole = tokens.read_bytes()
    generator = np.random.default_rng(0)
    for trial in range(60):
        data = bytearray(whole)
        data[int(generator.integers(62, len(whole) - 4))] = int(generator.integers(256))
        tokens.write_bytes(bytes(data[:-4]) + zlib.crc32(bytes(data[:-4])).to_bytes(4, "little"))
        try:
            decode(DecodeConfig(run, tokens, tmp_path / f"out{trial}"))
        except ValueError:
            assert not (tmp_path / f"out{trial}").exists()
        else:
            assert len(list((tmp_path / f"out{trial}").rglob("*.png"))) == 2


# ---- entropy coding -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """A tokenizer that has seen the photographs it shall code, so that it knows how often each token occurs."""
    torch.manual_seed(0)
    model = SimpleVQVAE(20, 8, 16, num_stages=2, patch_nums=(1, 2, 4)).train()
    photo = torch.tensor(open_images("embedded").load(0)).permute(2, 0, 1)[None, :, ::4, ::4]
    for _ in range(5):
        model(to_float(photo))
    folder = tmp_path_factory.mktemp("trained")
    model.eval().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("coding", ["adaptive", "learned"])
def test_coded_tokens_come_back_and_cost_less(trained_run, photos, tmp_path, coding):
    pytest.importorskip("constriction", reason="needs the extra smalti[codec]")
    photo = torch.tensor(open_images("embedded").load(0)).permute(2, 0, 1)
    save_image(tmp_path / "large.png", photo[:, ::2, ::2])  # beside so many tokens the tables are small
    paths = (str(photos / "photo.png"), str(photos / "square.webp"), str(tmp_path / "large.png"))
    encode(EncodeConfig(trained_run, paths, tmp_path / "packed"))
    result = encode(EncodeConfig(trained_run, paths, tmp_path / "coded", coding))
    tokenizer = load(trained_run)
    packed = read_token_file(tmp_path / "packed")
    coded = read_token_file(tmp_path / "coded", tokenizer.fingerprint, coding_tables(tokenizer))
    assert coded.images == packed.images
    assert result.file_bytes == (tmp_path / "coded").stat().st_size
    assert result.log2_bytes == pytest.approx(sum(i.num_tokens for i in packed.images) * np.log2(20) / 8)
    for kind in ("packed", "coded"):
        decode(DecodeConfig(trained_run, tmp_path / kind, tmp_path / f"{kind}-out"))
    for path in (tmp_path / "packed-out").rglob("*.png"):
        other = tmp_path / "coded-out" / path.relative_to(tmp_path / "packed-out")
        np.testing.assert_array_equal(load_image(path), load_image(other))
    if coding == "learned":
        data = (tmp_path / "coded").read_bytes()
        assert len(data) < (tmp_path / "packed").stat().st_size
        (tmp_path / "coded").write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
        with pytest.raises(TokenFileError, match="checksum differs"):
            decode(DecodeConfig(trained_run, tmp_path / "coded", tmp_path / "never"))


def test_learned_coding_needs_counts(run, photos, tmp_path):
    with pytest.raises(ValueError, match="no code frequencies of training"):
        encode(EncodeConfig(run, (str(photos / "photo.png"),), tmp_path / "t", "learned"))
    assert not (tmp_path / "t").exists()
