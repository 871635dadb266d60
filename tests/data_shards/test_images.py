"""Whatever images come as, what is stored is a JPEG that DALI decodes to the same picture."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from PIL import Image

from data_shards.images import Checked, ImageSettings, Unfit, as_jpeg, normalise, png_of
from data_shards.sheet import contact_sheet
from data_shards.storage.dataset import SampleError
from tests.conftest import jpeg
from untrusted.pictures import BadPicture, stored_size

PLAIN = ImageSettings()


def gradient(height=24, width=40):
    """Red grows to the right, green downwards: turned or mirrored pictures are told apart."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], axis=-1)
    return Image.fromarray(picture.astype(np.uint8))


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def stored(image, settings=PLAIN):
    """What is stored of `image`, as pixels [H, W, 3]."""
    found = normalise(image, settings)
    assert isinstance(found, Checked), found
    content = image if found.jpeg is None else found.jpeg
    assert found.crc32 == zlib.crc32(content)
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.format == "JPEG" and opened.getexif().get(0x0112, 1) == 1
        assert (opened.height, opened.width) == (found.height, found.width)
        return np.asarray(opened.convert("RGB")).astype(int)


def looks_like(pixels, image, within=6):
    wanted = np.asarray(image.convert("RGB")).astype(int)
    return pixels.shape == wanted.shape and np.abs(pixels - wanted).mean() < within


def sixteen_bit(image):
    """A 16-bit grey PNG, chunk by chunk."""
    grey = np.asarray(image.convert("L")).astype(int)
    grey = (grey * 256 + 255 - grey).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in grey)

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", image.width, image.height, 16, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def transparent(image):
    image = image.convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    return image


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpegs_that_need_nothing_stay_byte_for_byte(mode, options):
    image = encoded(gradient().convert(mode), "JPEG", **options)
    found = normalise(image, PLAIN)
    assert found == Checked(None, 24, 40, zlib.crc32(image))
    assert normalise(image, ImageSettings(size=(24, 40))) == found


CONVERTED = {
    "PNG": lambda g: encoded(g, "PNG"),
    "WebP": lambda g: encoded(g, "WEBP", lossless=True),
    "BMP": lambda g: encoded(g, "BMP"),
    "TIFF": lambda g: encoded(g, "TIFF"),
    "opaque PNG with alpha": lambda g: encoded(g.convert("RGBA"), "PNG"),
    "CMYK JPEG": lambda g: encoded(g.convert("CMYK"), "JPEG", quality=95),
    "AVIF": lambda g: encoded(g, "AVIF", quality=95),
    "JPEG2000": lambda g: encoded(g, "JPEG2000"),
    "PPM": lambda g: encoded(g, "PPM"),
    "CMYK TIFF": lambda g: encoded(g.convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_other_kinds_become_rgb_jpegs_of_the_same_picture(kind):
    assert looks_like(stored(CONVERTED[kind](gradient())), gradient())


def test_palettes_greys_and_bits_become_what_they_show():
    few = gradient().quantize(16)
    assert looks_like(stored(encoded(few, "PNG")), few)
    assert looks_like(stored(encoded(few, "GIF")), few)
    bits = gradient().convert("1")
    assert looks_like(stored(encoded(bits, "PNG")), bits, within=12)
    assert looks_like(stored(sixteen_bit(gradient())), gradient().convert("L"))
    assert looks_like(stored(encoded(gradient().convert("LA"), "PNG")), gradient().convert("L"))


def test_transparency_lies_over_white():
    clear = transparent(gradient())
    assert (stored(encoded(clear, "PNG")) == 255).all()
    assert (stored(encoded(clear, "WEBP", lossless=True)) == 255).all()
    palette = gradient().quantize(16)
    index = palette.getpixel((0, 0))
    assert (stored(encoded(palette, "PNG", transparency=index))[0, 0] > 245).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_is_carried_out(orientation, kind):
    """The stored pixels of each EXIF orientation, written out by hand."""
    upright = np.asarray(gradient()).astype(int)
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = encoded(Image.fromarray(turned.astype(np.uint8)), kind, exif=exif)
    assert looks_like(stored(image), gradient())


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_are_scaled_to_the_asked_size(kind):
    half = ImageSettings(size=(12, 20))
    pixels = stored(encoded(gradient(), kind), half)
    assert looks_like(pixels, gradient().resize((20, 12)))


def animation(kind):
    frames = [gradient(), gradient().rotate(180)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def floats():
    return encoded(Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)), "TIFF")


REFUSED = {
    "empty": (b"", "empty", "no bytes"),
    "text": (b"not an image", "not an image", "begins b'not an i'"),
    "zeros": (bytes(4000), "not an image", ""),
    "HTML": (b"<!DOCTYPE html><html>404</html>", "not an image", ""),
    "JPEG cut in the header": (jpeg(0, 0)[:200], "damaged", ""),
    "JPEG cut in the picture": (jpeg(0, 0)[:-12], "damaged", ""),
    "PNG cut": (CONVERTED["PNG"](gradient())[:-40], "damaged", ""),
    "animated GIF": (animation("GIF"), "several pictures", "several frames"),
    "animated WebP": (animation("WEBP"), "several pictures", "several frames"),
    "animated PNG": (animation("PNG"), "several pictures", "several frames"),
    "two-page TIFF": (animation("TIFF"), "several pictures", "several frames"),
    "floating point": (floats(), "damaged", "no agreed range"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image", ""),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_refused_with_a_reason(kind):
    image, reason, why = REFUSED[kind]
    found = normalise(image, PLAIN)
    assert isinstance(found, Unfit) and found.reason == reason and why in found.why


def bomb(width, height):
    """A JPEG that says it is huge: 16,000² from three kilobytes."""
    image = bytearray(jpeg(0, 0))
    at = image.index(b"\xff\xc0")
    struct.pack_into(">HH", image, at + 5, height, width)
    return bytes(image)


@pytest.mark.parametrize("side", [8001, 10_000, 16_000, 65_000])
def test_huge_dimensions_are_refused_before_decoding(side, recwarn):
    found = normalise(bomb(side, side), PLAIN)
    assert isinstance(found, Unfit) and found.reason == "too large"
    assert "max_pixels = 64,000,000" in found.why and not recwarn.list
    small = normalise(jpeg(0, 0), ImageSettings(max_pixels=255))
    assert small == Unfit("too large", "16 × 16 pixels, more than max_pixels = 255")


@pytest.mark.reliability(9, "One function opens pictures, of allowed formats: no EPS, no program")
def test_a_contact_sheet_starts_no_program(small, tmp_path, monkeypatch):
    """Pillow hands PostScript to whatever is called gs."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    monkeypatch.setattr(type(small), "image", lambda self, sample: eps)
    with pytest.raises(SampleError, match="cannot be shown: no JPEG"):
        contact_sheet(small, 1, 1, 0)
    assert not (tmp_path / "started").exists()


def of_scans(count, side=16):
    """A progressive JPEG whose last scan, which refines a little, comes again and again."""
    image = encoded(gradient(side, side), "JPEG", progressive=True)
    start = image.rindex(b"\xff\xda")
    return image[:start] + image[start:-2] * count + image[-2:]


@pytest.mark.reliability(10, "JPEGs of many scans are refused by their number before decoding")
def test_jpegs_of_many_scans_are_refused_before_they_are_decoded():
    found = normalise(of_scans(150), PLAIN)
    assert isinstance(found, Unfit) and found.reason == "too large" and "scans" in found.why
    assert isinstance(normalise(of_scans(40), PLAIN), Checked)
    work = normalise(of_scans(40, 160), ImageSettings(max_pixels=160 * 160))
    assert isinstance(work, Unfit), "forty scans of the largest picture"


def test_a_comment_that_looks_like_another_picture_hides_no_scans():
    image = of_scans(150)
    second = image.index(b"\xff\xda", image.index(b"\xff\xda") + 2)
    comment = b"\xff\xfe\0\x07\xff\xd9\xff\xd8\xff"
    assert isinstance(normalise(image[:second] + comment + image[second:], PLAIN), Unfit)


def test_a_jpeg_with_previews_behind_it_is_one_picture():
    preview = of_scans(30)
    image = encoded(gradient(), "JPEG") + preview * 4
    assert isinstance(normalise(image, PLAIN), Checked)


def test_pictures_of_very_many_parts_are_refused():
    image = encoded(gradient(), "JPEG")
    found = normalise(image[:2] + b"\xff\xfe\0\2" * 20_000 + image[2:], PLAIN)
    assert isinstance(found, Unfit) and "segments" in found.why
    image = encoded(gradient(), "PNG")
    empty = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    found = normalise(image[:-12] + empty * 120_000 + image[-12:], PLAIN)
    assert isinstance(found, Unfit) and "chunks" in found.why


class Dali:
    """DALI's decoder, one image at a time."""

    def __init__(self):
        self.pipeline = None

    def __call__(self, image):
        """The picture, or None when DALI refuses it, which costs the pipeline."""
        if self.pipeline is None:
            self.pipeline = Pipeline(1, 1, None, exec_async=False, exec_pipelined=False)
            with self.pipeline:
                given = fn.external_source(lambda: [self.image], batch=True, dtype=types.UINT8)
                self.pipeline.set_outputs(fn.decoders.image(given, output_type=types.RGB))
        self.image = np.frombuffer(image, dtype=np.uint8)
        try:
            return self.pipeline.run()[0].as_array()[0].astype(int)
        except RuntimeError:
            self.pipeline = None
            return None


@pytest.fixture(scope="module")
def dali():
    return Dali()


def with_exif():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "a camera"
    return encoded(gradient(), "JPEG", exif=exif)


BASES = [
    with_exif(),
    encoded(gradient(), "JPEG"),
    encoded(gradient(), "JPEG", progressive=True),
    encoded(gradient().convert("L"), "JPEG"),
    encoded(gradient(), "JPEG", keep_rgb=True),
]


@pytest.mark.parametrize("base", BASES)
def test_dali_sees_what_was_checked(dali, base):
    assert normalise(base, PLAIN).jpeg is None
    assert looks_like(dali(base), Image.open(io.BytesIO(base)), within=3)


def test_stray_bytes_between_segments_which_dali_refuses_do_not_travel_on(dali):
    at = BASES[1].index(b"\xff\xc4")
    image = BASES[1][:at] + b"\x17\x2a" + BASES[1][at:]
    assert dali(image) is None, "then the check of headers is no longer needed"
    assert looks_like(dali(normalise(image, PLAIN).jpeg), gradient())


@settings(max_examples=200)
@given(
    base=st.sampled_from(BASES),
    flips=st.lists(st.tuples(st.integers(2, 700), st.integers(1, 255)), max_size=3),
    cut=st.one_of(st.none(), st.integers(0, 900)),
)
def test_dali_decodes_whatever_is_accepted(dali, base, flips, cut):
    """One image that DALI refuses would stop a training: it drops the whole pipeline. DALI carries
    out EXIF rotations, too, and must find none."""
    image = bytearray(base)
    for at, mask in flips:
        image[at % len(image)] ^= mask
    image = bytes(image[:cut])
    found = normalise(image, PLAIN)
    if isinstance(found, Checked):
        seen = dali(image if found.jpeg is None else found.jpeg)
        assert seen is not None and seen.shape == (found.height, found.width, 3)


@settings(max_examples=200)
@given(
    kind=st.sampled_from(sorted(CONVERTED)),
    flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_no_image_crashes_the_check(kind, flips):
    image = bytearray(CONVERTED[kind](gradient()))
    for at, mask in flips:
        image[at % len(image)] ^= mask
    assert isinstance(normalise(bytes(image), PLAIN), Checked | Unfit)


def test_png_is_kept_without_loss_where_it_is_asked_for(dali):
    """For exemplars whose pixels were learned: DALI decodes them to the same numbers."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    png, asked = png_of(pixels), ImageSettings(png=True)
    assert normalise(png, asked) == Checked(None, 9, 7, zlib.crc32(png))
    assert stored_size(png) == (9, 7) and stored_size(jpeg(0, 0, 12)) == (12, 12)
    assert (dali(png) == pixels).all()
    for other in (encoded(gradient().convert("L"), "PNG"), sixteen_bit(gradient())):
        found = normalise(other, asked)
        assert isinstance(found, Checked) and found.jpeg is not None, "no RGB of 8 bits"
    with pytest.raises(BadPicture, match="gives no size"):
        stored_size(png[:12])
    assert as_jpeg(jpeg(0, 0)) == jpeg(0, 0)
    assert looks_like(stored(as_jpeg(encoded(gradient(), "PNG"))), gradient())
    assert asked.model_dump() == PLAIN.model_dump(), "manifests of imports do not name it"
