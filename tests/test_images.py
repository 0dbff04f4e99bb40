"""Images are found, checked, decoded once, and named for what they are."""

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from dataclasses import replace
from http.client import IncompleteRead
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from resnet_limits.cli import main
from resnet_limits.data.class_folders import SPLITS
from resnet_limits.data.decoded import content_hash, read_stamp, write_decoded
from resnet_limits.data.images import Split, load_images
from resnet_limits.data.images import stamp as stamp_of
from resnet_limits.data.sources import NETWORK_SECONDS, SETS
from resnet_limits.errors import UserError

NUMBERS = [str(digit) for digit in range(10)]
COUNTS = (20, 10)  # of the small sets below: two and one of each of ten classes


def encode(pixels, form="PNG", mode=None, frames=1):
    content = io.BytesIO()
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    image = image if mode is None else image.convert(mode)
    if frames == 1:
        image.save(content, form)
    else:
        image.save(content, form, save_all=True, append_images=[image.rotate(90)] * (frames - 1))
    return content.getvalue()


def encode16(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint16) << 8).save(content, "PNG")
    return content.getvalue()


def chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def declared(width, height):
    """Return a valid PNG of zeros with any size in its header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def wrong_checksum():
    """Return a PNG whose pixels fail their checksum, which Pillow does not compare."""
    content = bytearray(encode(flat(1)))
    content[-13] ^= 1  # before the last chunk's 12 bytes
    return bytes(content)


def flat(value, shape=(28, 28)):
    return np.full(shape, value, dtype=np.uint8)


def class_folders(classes=NUMBERS, shape=(28, 28), form="PNG", suffix="png"):
    """Return files of flat images: 2 label and 2 label + 1 to train, 255 - label to test."""
    files = {}
    for label, name in enumerate(classes):
        for place in (0, 1):
            content = encode(flat(2 * label + place, shape), form)
            files[f"train/{name}/{place}.{suffix}"] = content
        files[f"test/{name}/7.{suffix}"] = encode(flat(255 - label, shape), form)
    return files


def pack(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def unpack(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def root(tmp_path):
    """Return a data root with a small mnist.zip."""
    pack(tmp_path / "mnist.zip", class_folders())
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    make_small(monkeypatch)


def make_small(monkeypatch):
    """Let the counts of the small sets be those of the whole data sets."""
    for name in SETS:
        monkeypatch.setitem(SETS, name, replace(SETS[name], counts=COUNTS))


@pytest.fixture
def offline(monkeypatch):
    """Replace the network by none; return the list of time limits of attempts to use it."""
    attempts = []

    def refuse(*_, **__):
        attempts.append(socket.getdefaulttimeout())
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return attempts


# --- class folders -----------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("where", ["mnist", "mnist-images.zip", "mnist.zip"])
def test_class_folders(tmp_path, where, offline):
    (pack if where.endswith("zip") else unpack)(tmp_path / where, class_folders())
    for _ in ("decoded now", "decoded before"):
        images = load_images("mnist", tmp_path)
        assert images.label == images.name == "mnist"
        assert "PNG images, not checked" in images.note
        assert images.classes == tuple(NUMBERS)
        assert images.source.file == where
        assert images.train.images.shape == (20, 28, 28, 1)
        assert images.train.images.dtype == np.uint8
        assert images.train.labels.dtype == np.int64
        assert images.train.labels.tolist() == sorted([*range(10), *range(10)])
        assert images.train.images[:, 3, 4, 0].tolist() == list(range(20))
        assert images.test.labels.tolist() == list(range(10))
        assert images.test.images[:, 27, 0, 0].tolist() == list(range(255, 245, -1))
    assert offline == []


def test_moments_per_channel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    files = {f"train/{name}/0.png": encode(pixels[label]) for label, name in enumerate(NUMBERS)}
    pack(tmp_path / "cifar10.zip", files | {f"test/{n}/0.png": encode(pixels[0]) for n in NUMBERS})
    images = load_images("cifar10", tmp_path)
    np.testing.assert_array_equal(images.train.images, pixels)
    scaled = pixels.astype(np.float64) / 255
    np.testing.assert_allclose(images.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(images.std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_hash_is_of_pixels_and_labels(tmp_path):
    def hash_of(name, files):
        pack(tmp_path / name / "mnist.zip", files)
        return load_images("mnist", tmp_path / name).hash

    for name in "abcd":
        (tmp_path / name).mkdir()
    files = class_folders()
    same = hash_of("a", dict(reversed(files.items())))
    assert same == hash_of("b", files)
    pixel = flat(0)
    pixel[5, 5] = 1
    assert same != hash_of("c", files | {"train/0/0.png": encode(pixel)})
    moved = dict(files)
    moved["train/0/2.png"] = moved.pop("train/1/0.png")
    assert same != hash_of("d", moved)


def test_numbered_classes_are_in_order_of_number(tmp_path):
    names = [str(number) for number in range(100)]
    pack(tmp_path / "cifar100.zip", class_folders(names, (32, 32, 3)))
    assert load_images("cifar100", tmp_path).classes == tuple(names)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("suffix", ["jpg", "png"])  # a JPEG may go by any name
def test_lossy_copies_are_not_called_by_the_bare_name(tmp_path, suffix):
    pack(tmp_path / "mnist.zip", class_folders(form="JPEG", suffix=suffix))
    images = load_images("mnist", tmp_path)
    assert images.label == "mnist (JPEG copy)"
    assert images.note == "decoded from JPEG, not bit-identical to the original"


def test_a_part_of_a_data_set_is_not_called_by_the_bare_name(root):
    assert load_images("mnist", root).label == "mnist (20 + 10 images)"


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_grey_images_stored_in_colour(tmp_path, mode):
    colour = encode(flat(77), mode=mode)
    pack(tmp_path / "mnist.zip", class_folders() | {"train/4/0.png": colour})
    assert (load_images("mnist", tmp_path).train.images[8] == 77).all()


def test_hidden_files_are_no_images(tmp_path):
    junk = {"train/.DS_Store": b"", "train/0/._0.png": b"", "__MACOSX/train/0/._0.png": b""}
    pack(tmp_path / "mnist.zip", class_folders() | junk)
    assert len(load_images("mnist", tmp_path).train.labels) == 20


# --- mistakes ----------------------------------------------------------------------------------


def without(*starts):
    return {name: c for name, c in class_folders().items() if not name.startswith(starts)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (without("train/3", "test/3"), "has 9 class folders under train/, not 10: 0, 1, 2, 4, 5"),
        (without("test/3"), "only one of them has 3"),
        (without("train"), "no class folders under train/; wanted are train/<class>"),
        (without("test"), "no class folders under test/; wanted are train/<class>"),
        (
            class_folders() | {"test/5/x.png": encode(flat(0, (8, 9)))},
            "test/5/x.png is 9x8; all images must be 28x28",
        ),
        (class_folders(shape=(8, 8)), "train/0/0.png is 8x8; all images must be 28x28"),
        (class_folders() | {"train/2/x.png": b"not a picture"}, "train/2/x.png is broken"),
        (class_folders() | {"train/2/x.png": encode(flat(1))[:45]}, "train/2/x.png is broken"),
        (class_folders() | {"train/2/x.png": b""}, "train/2/x.png is broken"),
        (
            class_folders() | {"train/2/x.png": encode(flat(1), "BMP")},
            "train/2/x.png is broken, or no PNG or JPEG",
        ),
        (
            class_folders() | {"train/2/x.png": encode16(flat(1))},
            "train/2/x.png has 16 bits a channel; at most 8 are allowed",
        ),
        (
            class_folders() | {"train/2/x.png": encode(flat(1), mode="RGB", frames=2)},
            "train/2/x.png is animated; one frame is allowed",
        ),
        (
            class_folders() | {"train/2/x.jpg": encode(flat(1), "MPO", frames=2)},
            "train/2/x.jpg is MPO of mode L, not grey or RGB",
        ),
        (
            class_folders() | {"train/2/x.jpg": encode(flat(1), "JPEG", mode="CMYK")},
            "train/2/x.jpg is JPEG of mode CMYK, not grey or RGB",
        ),
        (class_folders() | {"train/2/x.png": declared(0, 0)}, "train/2/x.png is broken"),
        (class_folders() | {"train/2/x.png": declared(28, 2000)}, "x.png is 28x2000; all images"),
        (class_folders() | {"train/2/x.png": declared(10_000, 10_000)}, "x.png is huge; all"),
        (class_folders() | {"train/2/x.png": declared(2**31 - 1, 2**31 - 1)}, "x.png is huge;"),
        (class_folders() | {"train/2/x.png": wrong_checksum()}, "train/2/x.png is broken"),
        (class_folders() | {"train/2/x.png": bytes(2**18 + 1)}, "x.png has (more than )?26214"),
        (
            class_folders() | {"train/2/x\n.png": encode(flat(1))},
            r"'train/2/x\\n.png' is no usable",
        ),
        (class_folders() | {"train/2/x.png/y.png": encode(flat(1))}, "is in a deeper folder"),
    ],
)
@pytest.mark.parametrize("write", [pack, unpack])
def test_wrong_class_folders(tmp_path, write, files, message):
    path = tmp_path / ("mnist" if write is unpack else "mnist.zip")
    write(path, files)
    with pytest.raises(UserError, match=message) as caught:
        load_images("mnist", tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert [file for file in (tmp_path / "decoded").iterdir() if file.suffix != ".lock"] == []


def test_empty_class(tmp_path):
    pack(tmp_path / "mnist.zip", without("train/3") | {"train/3/": b""})
    with pytest.raises(UserError, match=r"mnist.zip: train/3/ holds no images"):
        load_images("mnist", tmp_path)
    unpack(tmp_path / "mnist", without("train/3"))
    (tmp_path / "mnist/train/3").mkdir()
    with pytest.raises(UserError, match=r"mnist: train/3/ holds no images"):
        load_images("mnist", tmp_path)


@pytest.mark.parametrize(
    "name", ["../x.png", "/x.png", "train/0/../../../x.png", "C:\\x.png", "..\\x.png"]
)
def test_zip_that_climbs_out_is_refused_before_reading(tmp_path, name, monkeypatch):
    pack(tmp_path / "mnist.zip", class_folders() | {name: b""})
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("was read"))
    with pytest.raises(UserError, match=r"mnist.zip: the entry .* points out of the archive"):
        load_images("mnist", tmp_path)


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_corrupt_zip(root, damage):
    path = root / "mnist.zip"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[:-30], "text": b"<html>"}[damage])
    with pytest.raises(UserError, match=r"mnist.zip: corrupt or not a zip .*Copy it again"):
        load_images("mnist", root)


@pytest.mark.parametrize("longer", [0, 9])  # changed bytes, and entries that are not in place
def test_corrupt_zip_entry(root, longer):
    path = root / "mnist.zip"
    entry = class_folders()["train/1/0.png"]
    path.write_bytes(path.read_bytes().replace(entry, entry[:-9] + b"\0" * (9 + longer)))
    with pytest.raises(UserError, match=r"mnist.zip: corrupt: train/.* cannot be read"):
        load_images("mnist", root)


def test_encrypted_zip(root):
    path = root / "mnist.zip"
    content = bytearray(path.read_bytes())
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.find(header) + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mnist.zip: corrupt: train/0/0.png .*encrypted"):
        load_images("mnist", root)


def test_data_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*must be writable.*set data_root"):
        load_images("mnist", tmp_path / "file")


def test_full_disk(root, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", fail)
    with pytest.raises(UserError, match=r"decoded: No space left.*set data_root"):
        load_images("mnist", root)


def test_unknown_data_set(tmp_path):
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load_images("cifar01", tmp_path)


# --- limits ------------------------------------------------------------------------------------


def run_command(root):
    """Return exit status, standard error and peak memory in MB of the command in a process."""
    code = """
import pathlib, sys
from resnet_limits.cli import main
status = main(["data", "mnist", "--data-root", sys.argv[1]])
print(pathlib.Path("/proc/self/status").read_text())
sys.exit(status)
"""
    command = [sys.executable, "-c", code, root]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    # Not from getrusage, whose peak includes that of the tests' process, which forked this one.
    peak = next(line for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    return done.returncode, done.stderr, int(peak.split()[1]) / 1024


def understate(path, name, size):
    """Let a zip claim of one of its entries that it is smaller."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        local = archive.getinfo(name).header_offset
    central = content.rfind(b"PK\1\2", 0, content.rfind(name.encode()))
    for start in (local + 22, central + 24):
        content[start : start + 4] = struct.pack("<I", size)
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("claimed", [None, 100])
def test_zip_bomb_takes_no_memory(tmp_path, claimed):
    path = tmp_path / "mnist.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in class_folders().items():
            archive.writestr(name, content)
        archive.writestr("test/9/x.png", bytes(300 * 2**20))
    assert path.stat().st_size < 2**20
    if claimed is not None:
        understate(path, "test/9/x.png", claimed)
    status, error, memory = run_command(tmp_path)
    assert status == 2
    assert "Traceback" not in error
    assert "mnist.zip: " in error
    assert "test/9/x.png" in error
    assert error.count("\n") == 1
    assert memory < 250


@pytest.mark.slow
def test_zip_of_too_many_entries_takes_little_memory(tmp_path):
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, *[0] * 8, 7, *[0] * 6)
    directory = b"".join(entry + b"%07d" % number for number in range(600_000))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, len(directory), 0, 0)
    (tmp_path / "mnist.zip").write_bytes(directory + end)
    status, error, memory = run_command(tmp_path)
    assert status == 2
    assert "mnist.zip: has more than 300000 entries" in error
    assert memory < 700


def test_zip_with_a_huge_directory_is_refused_before_reading_it(tmp_path):
    size = 2**31
    with (tmp_path / "mnist.zip").open("wb") as file:
        file.seek(size)  # sparse
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, size, 0, 0))
    with pytest.raises(UserError, match=r"mnist.zip: .*its list of entries would take 2147483648"):
        load_images("mnist", tmp_path)


@pytest.mark.parametrize("write", [pack, unpack])
def test_too_many_entries(tmp_path, write, monkeypatch):
    monkeypatch.setattr("resnet_limits.data.class_folders.ENTRIES", 40)
    junk = {f"train/0/._{number}.png": b"" for number in range(11)}
    write(tmp_path / ("mnist" if write is unpack else "mnist.zip"), class_folders() | junk)
    with pytest.raises(UserError, match=r"mnist.*: has more than 40 entries.*delete it"):
        load_images("mnist", tmp_path)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("split", ["train", "test"])
def test_more_images_than_the_data_set_has(tmp_path, split):
    pack(tmp_path / "mnist.zip", class_folders() | {f"{split}/5/x.png": encode(flat(0))})
    most = dict(zip(("train", "test"), COUNTS, strict=True))[split]
    with pytest.raises(UserError, match=rf"has {most + 1} images under {split}/.*only {most}"):
        load_images("mnist", tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_expand_without_a_limit_are_refused(root, method):
    with zipfile.ZipFile(root / "mnist.zip", "a") as archive:
        archive.writestr("train/0/x.png", encode(flat(0)), method)
    with pytest.raises(UserError, match=r"train/0/x.png is neither stored nor deflated"):
        load_images("mnist", root)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_two_entries_of_one_name(root):
    with zipfile.ZipFile(root / "mnist.zip", "a") as archive:
        archive.writestr("train/0/0.png", encode(flat(0)))
    with pytest.raises(UserError, match=r"mnist.zip: has two entries of the same name"):
        load_images("mnist", root)


def test_damaged_name_is_no_missing_image(root):
    path = root / "mnist.zip"
    head, name, tail = path.read_bytes().rpartition(b"train/4/1.png")
    path.write_bytes(head + name.replace(b"train", b"drain") + tail)
    with pytest.raises(UserError, match=r"mnist.zip: corrupt: drain/4/1.png cannot be read"):
        load_images("mnist", root)


# --- files that are none -----------------------------------------------------------------------


def make_pipe(path):
    os.mkfifo(path)


def make_device(path):
    path.symlink_to("/dev/zero")


def make_loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_pipe, "x.png: not a regular file. Replace or delete it"),
        (make_device, "x.png: not a regular file. Replace or delete it"),
        (make_loop, "x.png: cannot be read .*delete it"),
        (lambda path: path.symlink_to("nowhere"), "x.png: cannot be read .*delete it"),
        (lambda path: path.mkdir(), "x.png/ is in a deeper folder, or is one"),
    ],
)
def test_only_regular_files_are_images(tmp_path, make, message):
    unpack(tmp_path / "mnist", class_folders())
    make(tmp_path / "mnist/train/2/x.png")
    with pytest.raises(UserError, match=rf"mnist.*train/2/{message}"):
        load_images("mnist", tmp_path)


def test_links_to_files_and_folders_are_followed(tmp_path):
    unpack(tmp_path / "elsewhere", class_folders())
    unpack(tmp_path / "mnist", {f"{split}/0/x.png": encode(flat(50)) for split in SPLITS})
    for split in SPLITS:
        for digit in NUMBERS[1:]:
            (tmp_path / "mnist" / split / digit).symlink_to(tmp_path / "elsewhere" / split / digit)
    (tmp_path / "mnist/train/0/0.png").symlink_to(tmp_path / "elsewhere/train/0/0.png")
    images = load_images("mnist", tmp_path)
    assert images.train.images[:, 0, 0, 0].tolist() == [0, 50, *range(2, 20)]


@pytest.mark.parametrize("make", [make_pipe, make_device])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar10", "cifar-10-batches-py"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("mnist", "mnist-images.zip"),
        ("mnist", "mnist.zip"),
    ],
)
def test_only_files_and_folders_are_sources(tmp_path, make, name, file, offline):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    make(tmp_path / file)
    with pytest.raises(UserError, match=rf"{file}: neither a file nor a folder"):
        load_images(name, tmp_path)
    assert offline == []


@pytest.mark.parametrize("file", ["mnist.npy", "mnist.labels.npy", "mnist.json"])
def test_pipe_in_place_of_a_decoded_file(root, file):
    first = load_images("mnist", root)
    (root / "decoded" / file).unlink()
    make_pipe(root / "decoded" / file)
    assert load_images("mnist", root).hash == first.hash


# --- decoded once ------------------------------------------------------------------------------


def test_loading_neither_decodes_nor_writes(root, capsys):
    first = load_images("mnist", root)
    (root / "decoded/.mnist.lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in (root / "decoded").iterdir()}
    capsys.readouterr()
    assert stamp_of(load_images("mnist", root)) == stamp_of(first)
    assert {path: path.stat().st_mtime_ns for path in (root / "decoded").iterdir()} == before
    assert capsys.readouterr().out == ""


def test_loaded_images_cannot_change_the_file(root):
    load_images("mnist", root).train.images[:] = 9
    assert load_images("mnist", root).train.images[0, 0, 0, 0] == 0


def test_decoded_images_outlive_their_source(root, offline):
    first = load_images("mnist", root)
    (root / "mnist.zip").unlink()
    assert load_images("mnist", root).hash == first.hash
    assert offline == []


def copied(images):
    """Return images that do not change with their file, from which they are mapped."""
    train, test = (Split(s.images.copy(), s.labels.copy()) for s in (images.train, images.test))
    return replace(images, train=train, test=test)


def assert_same(images, wanted):
    for ours, theirs in ((images.train, wanted.train), (images.test, wanted.test)):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("file", ["mnist.npy", "mnist.labels.npy", "mnist.json"])
@pytest.mark.parametrize("keep", [0, 50, -1, None])
def test_damaged_decoded_files_are_made_again(root, file, keep):
    wanted = load_images("mnist", root)
    path = root / "decoded" / file
    content = path.read_bytes()
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(content.rstrip()[:keep])
    images = load_images("mnist", root)
    assert images.hash == wanted.hash
    np.testing.assert_array_equal(images.train.images[:, 0, 0, 0], range(20))
    assert path.read_bytes() == content


@pytest.mark.parametrize("file", ["mnist.npy", "mnist.labels.npy", "mnist.json"])
@pytest.mark.usefixtures("offline")
def test_one_changed_bit_of_the_decoded_files_is_noticed(root, file, capsys):
    wanted = copied(load_images("mnist", root))
    path = root / "decoded" / file
    whole = path.read_bytes()
    for index in (len(whole) // 3, len(whole) - 20):
        changed = bytearray(whole)
        changed[index] ^= 1
        path.write_bytes(changed)
        capsys.readouterr()
        assert_same(load_images("mnist", root), wanted)
        assert capsys.readouterr().out.count("\n") == 1
        assert path.read_bytes() == whole
    path.write_bytes(changed)
    (root / "mnist.zip").unlink()
    with pytest.raises(UserError, match="holds no mnist"):
        load_images("mnist", root)
    assert "downloading again, since its decoded images are damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("counts", {"train": 0, "test": 10}, "counts.train: 0 is not allowed"),
        ("counts", {"train": 20.0, "test": 10}, "counts.train: 20.0 is not allowed"),
        ("classes", ["0", "0"], "classes: .*given twice"),
        ("mean", [float("nan")], "NaN is not a finite number"),
        ("mean", [2.0], "mean: 2.0 is not allowed"),
        ("shape", [28, 28], "shape"),
        ("extra", 1, "extra: unknown key"),
        ("note", "changed", "was changed after it was written"),
    ],
)
def test_stamps_are_read_strictly(root, key, value, message):
    path = root / "decoded/mnist.json"
    stamp = stamp_of(load_images("mnist", root))
    assert read_stamp(path) == stamp
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=rf"mnist.json: .*{message}"):
        read_stamp(path)


def test_labels_without_a_class_are_not_loaded(root):
    images = load_images("mnist", root)
    labels = np.concatenate([images.train.labels, images.test.labels])
    labels[3] = 10
    pixels = np.concatenate([images.train.images, images.test.images])
    stamp = stamp_of(replace(images, hash=content_hash(pixels, labels, len(images.train.labels))))
    (root / "work").mkdir()
    write_decoded(root / "decoded", stamp, pixels, labels, root / "work")
    assert load_images("mnist", root).train.labels.max() == 9


@pytest.mark.usefixtures("offline")
def test_decoded_files_of_another_data_set_are_not_loaded(root):
    load_images("mnist", root)
    for file in ("npy", "labels.npy", "json"):
        (root / f"decoded/mnist.{file}").rename(root / f"decoded/cifar10.{file}")
    with pytest.raises(UserError, match="holds no cifar10"):
        load_images("cifar10", root)


def test_changed_zip_is_decoded_again(root):
    old = load_images("mnist", root)
    pack(root / "mnist.zip", class_folders() | {"train/0/0.png": encode(flat(99))})
    new = load_images("mnist", root)
    assert new.hash != old.hash
    assert new.train.images[0].max() == 99
    assert old.train.images[0].max() == 0


@pytest.mark.parametrize("change", ["added", "removed"])
def test_changed_folder_is_decoded_again(tmp_path, change):
    unpack(tmp_path / "mnist", class_folders())
    load_images("mnist", tmp_path)
    if change == "added":
        unpack(tmp_path / "mnist", {"train/0/5.png": encode(flat(99))})
    else:
        (tmp_path / "mnist/train/9/1.png").unlink()
    assert len(load_images("mnist", tmp_path).train.labels) == {"added": 21, "removed": 19}[change]


def test_better_source_replaces_a_lesser_one(root):
    load_images("mnist", root)
    pack(root / "mnist-images.zip", class_folders())
    assert load_images("mnist", root).source.file == "mnist-images.zip"


LOAD = "import sys, pathlib; from resnet_limits.data.images import load_images\n"
LOAD += "print('hash', load_images('mnist', pathlib.Path(sys.argv[1])).hash)"


def test_processes_that_start_at_once_decode_once(root):
    command = [sys.executable, "-c", LOAD, root]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    output = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * 5
    assert "".join(output).count("decoding") == 1
    hashes = {line for text in output for line in text.splitlines() if line.startswith("hash")}
    assert hashes == {f"hash {load_images('mnist', root).hash}"}


def load_and_die(root, at, call):
    """Load in another process that is killed when it calls a function that many times."""
    owner, name = at.split(".")
    code = f"""
import os, signal, numpy as np, resnet_limits.data.images as images
before, calls = {at}, []
def killed(*arguments):
    calls.append(arguments)
    return before(*arguments) if len(calls) < {call} else os.kill(os.getpid(), signal.SIGKILL)
{owner}.{name} = killed
"""
    process = subprocess.run([sys.executable, "-c", code + LOAD, root], check=False)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("at", "call"),
    [
        ("images.read_source", 1),
        ("np.save", 2),
        *((at, call) for at in ("os.fsync", "os.replace") for call in (1, 2, 3)),
    ],
)
def test_killed_decoding_leaves_nothing_taken_for_finished(root, at, call, capsys):
    load_and_die(root, at, call)
    assert not (root / "decoded/mnist.json").exists()
    images = load_images("mnist", root)
    assert "decoding" in capsys.readouterr().out
    np.testing.assert_array_equal(images.train.images[:, 0, 0, 0], range(20))
    files = {path.name for path in (root / "decoded").iterdir()}
    assert files == {".mnist.lock", "mnist.json", "mnist.npy", "mnist.labels.npy"}


def test_killed_renewal_leaves_no_mixture_of_old_and_new(root, offline):
    load_images("mnist", root)
    pack(root / "mnist.zip", class_folders() | {"train/0/0.png": encode(flat(99))})
    load_and_die(root, "np.save", 2)  # when the new images are in place, and not their labels
    (root / "mnist.zip").unlink()
    with pytest.raises(UserError, match="holds no mnist"):
        load_images("mnist", root)
    assert offline


# --- official files ----------------------------------------------------------------------------


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar_files(monkeypatch):
    """Return tiny files in the form of CIFAR-10's, of which torchvision takes these for true."""
    from torchvision.datasets import CIFAR10

    make_small(monkeypatch)

    def batch(labels):
        pixels = np.array([[label] * 1024 + [7] * 1024 + [9] * 1024 for label in labels])
        return pickle.dumps({"data": pixels.astype(np.uint8), "labels": labels})

    names = ["airplane", "automobile", *"cdefghij"]
    files = {
        "data_batch_1": batch([9, 3, *range(8)]),
        "data_batch_2": batch([*range(10)]),
        "test_batch": batch([*range(10)]),
        "batches.meta": pickle.dumps({"label_names": names}),
    }
    sums = [[name, md5(content)] for name, content in files.items()]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:2])
    monkeypatch.setattr(CIFAR10, "test_list", sums[2:3])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums[3][1]})
    files = {f"cifar-10-batches-py/{name}": content for name, content in files.items()}
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(tar(files)))
    return files


def tar(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(content.getvalue(), mtime=0)


@pytest.fixture
def mnist_files(monkeypatch):
    """Return tiny archives in the form of MNIST's, of which torchvision takes these for true."""
    from torchvision.datasets import MNIST

    make_small(monkeypatch)

    def idx(array):
        shape = np.array(array.shape, dtype=">i4").tobytes()
        return gzip.compress(bytes([0, 0, 8, array.ndim]) + shape + array.tobytes(), mtime=0)

    contents = []
    for count in COUNTS:
        labels = np.arange(count, dtype=np.uint8)[::-1] % 10
        pixels = np.broadcast_to(labels[:, None, None], (count, 28, 28))
        contents += [idx(np.ascontiguousarray(pixels)), idx(labels)]
    names = [name for name, _ in MNIST.resources]
    sums = [(name, md5(content)) for name, content in zip(names, contents, strict=True)]
    monkeypatch.setattr(MNIST, "resources", sums)
    return {f"MNIST/raw/{name}": content for name, content in zip(names, contents, strict=True)}


CIFAR_ARCHIVE = "cifar-10-python.tar.gz"
DAMAGE = [lambda content: content[:-20], lambda _: b"", lambda _: b"<html>"]


@pytest.mark.parametrize("extracted", [False, True])
def test_official_cifar(tmp_path, cifar_files, offline, extracted):
    unpack(tmp_path, cifar_files if extracted else {CIFAR_ARCHIVE: tar(cifar_files)})
    before = sorted(tmp_path.iterdir())
    pack(tmp_path / "cifar10.zip", class_folders(shape=(32, 32, 3)))  # not preferred
    for _ in ("decoded now", "decoded before"):
        images = load_images("cifar10", tmp_path)
        assert (images.label, images.note) == ("cifar10", "")
        assert images.classes[:2] == ("airplane", "automobile")
        assert images.train.images.shape == (20, 32, 32, 3)
        assert images.train.labels[:4].tolist() == [9, 3, 0, 1]
        assert images.train.images[0, 31, 0].tolist() == [9, 7, 9]
        assert images.test.labels.tolist() == list(range(10))
        assert images.mean[1] == pytest.approx(7 / 255, rel=1e-12)
        assert images.std[1] == pytest.approx(0, abs=1e-12)
    assert offline == []
    left = {*tmp_path.iterdir()} - {tmp_path / "decoded", tmp_path / "cifar10.zip"}
    assert sorted(left) == before


@pytest.mark.parametrize("extracted", [False, True])
def test_official_mnist(tmp_path, mnist_files, offline, extracted):
    files = {n.removesuffix(".gz"): gzip.decompress(c) for n, c in mnist_files.items()}
    unpack(tmp_path, files if extracted else mnist_files)
    images = load_images("mnist", tmp_path)
    assert images.label == "mnist"
    assert ("not checked" in images.note) == extracted
    assert images.classes == tuple(NUMBERS)
    assert images.train.images.shape == (20, 28, 28, 1)
    assert images.train.labels[:3].tolist() == [9, 8, 7]
    np.testing.assert_array_equal(images.test.images[:, 5, 6, 0], images.test.labels)
    assert offline == []


@pytest.mark.parametrize("change", DAMAGE)
def test_corrupt_official_archive(tmp_path, cifar_files, mnist_files, offline, change):
    unpack(tmp_path, {CIFAR_ARCHIVE: change(tar(cifar_files))})
    with pytest.raises(UserError, match=rf"{CIFAR_ARCHIVE}: corrupt .*delete it"):
        load_images("cifar10", tmp_path)
    name = "MNIST/raw/t10k-images-idx3-ubyte.gz"
    unpack(tmp_path, mnist_files | {name: change(mnist_files[name])})
    with pytest.raises(UserError, match=rf"{name}: corrupt .*delete it"):
        load_images("mnist", tmp_path)
    assert offline == []


@pytest.mark.parametrize("change", DAMAGE)
def test_corrupt_extracted_files(tmp_path, cifar_files, mnist_files, offline, change):
    name = "cifar-10-batches-py/data_batch_2"
    unpack(tmp_path, cifar_files | {name: change(cifar_files[name])})
    with pytest.raises(UserError, match=r"cifar-10-batches-py: corrupt.*delete it"):
        load_images("cifar10", tmp_path)
    files = {n.removesuffix(".gz"): gzip.decompress(c) for n, c in mnist_files.items()}
    for name in files:
        unpack(tmp_path, files | {name: change(files[name])})
        with pytest.raises(UserError, match=rf"{name}: corrupt.*delete it"):
            load_images("mnist", tmp_path)
    assert offline == []


# --- download ----------------------------------------------------------------------------------


class Response(io.BytesIO):
    """What urlopen returns, as far as torchvision looks at it."""

    url = None
    length = None


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("cifar10", CIFAR_ARCHIVE),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz"),
    ],
)
def test_without_files_and_network(tmp_path, name, archive, offline):
    with pytest.raises(UserError) as caught:
        load_images(name, tmp_path)
    message = str(caught.value)
    for part in (f"{tmp_path}: holds no {name}", "no route to host", archive, f"{name}-images.zip"):
        assert part in message
    assert "train/<class>/*.png" in message
    assert "set data_root in workflow/config.yaml (by hand: --data-root)" in message
    assert "\n" not in message
    assert 1 <= len(offline) <= 2  # mirrors; no retries
    assert set(offline) == {NETWORK_SECONDS}
    assert socket.getdefaulttimeout() is None
    assert {path.name for path in tmp_path.rglob("*")} == {"decoded", f".{name}.lock"}


def serve(monkeypatch, files, damage=lambda content: content):
    contents = {name.rsplit("/", 1)[-1]: content for name, content in files.items()}

    def answer(request, **_):
        return Response(damage(contents[request.full_url.rsplit("/", 1)[-1]]))

    monkeypatch.setattr("urllib.request.urlopen", answer)


def test_downloaded_archives_are_kept(tmp_path, cifar_files, mnist_files, monkeypatch):
    archives = {"cifar10": {CIFAR_ARCHIVE: tar(cifar_files)}, "mnist": mnist_files}
    for name, files in archives.items():
        serve(monkeypatch, files)
        first = load_images(name, tmp_path)
        assert (first.label, first.note) == (name, "")
        assert all((tmp_path / file).read_bytes() == files[file] for file in files)
        serve(monkeypatch, {})
        (tmp_path / f"decoded/{name}.npy").unlink()
        assert load_images(name, tmp_path).hash == first.hash


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_truncated_download_leaves_nothing(tmp_path, name, cifar_files, mnist_files, monkeypatch):
    files = {CIFAR_ARCHIVE: tar(cifar_files)} if name == "cifar10" else mnist_files
    serve(monkeypatch, files, lambda content: content[:-5])
    with pytest.raises(UserError, match=rf"holds no {name}, and the download failed"):
        load_images(name, tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"decoded", f".{name}.lock"}
    serve(monkeypatch, files)
    assert load_images(name, tmp_path).label == name


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError("reset by peer"), IncompleteRead(b""), TimeoutError(), ValueError("?")],
)
@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_download_that_breaks_off_leaves_nothing(tmp_path, name, error, monkeypatch):
    class Broken(Response):
        def read(self, size=-1):
            if self.tell() > 0:
                raise error
            return super().read(10)

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Broken(bytes(100)))
    with pytest.raises(UserError, match=rf"holds no {name}, and the download failed") as caught:
        load_images(name, tmp_path)
    assert str(caught.value).isprintable()
    assert {path.name for path in tmp_path.rglob("*")} == {"decoded", f".{name}.lock"}


# --- random damage -----------------------------------------------------------------------------


def damaged(content, seed):
    """Cut bytes off, flip bits, or overwrite a few bytes."""
    chance, content = random.Random(seed), bytearray(content)
    start = chance.randrange(len(content))
    kind = chance.choice(["cut", "flip", "noise", "ones"])
    if kind == "cut":
        return bytes(content[:start])
    if kind == "flip":
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        return bytes(content)
    new = chance.randbytes(4) if kind == "noise" else bytes([255] * 4)
    return bytes(content[:start] + new + content[start + 4 :])


def load_damaged(name, root, path, content, seed):
    """Return the images; or None if they are refused, in one printable line."""
    path.write_bytes(damaged(content, seed))
    try:
        return load_images(name, root)
    except UserError as error:
        assert str(error).isprintable()
        return None


@pytest.mark.slow
@pytest.mark.parametrize("part", ["anywhere", "directory"])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_damaged_zips_are_refused_or_harmless(root, form, part):
    path = root / "mnist.zip"
    pack(path, class_folders(form=form))
    wanted, content = copied(load_images("mnist", root)), path.read_bytes()
    start = content.find(b"PK\1\2") if part == "directory" else 0
    for seed in range(100):
        path.write_bytes(content[:start] + damaged(content[start:], seed))
        try:
            assert_same(load_images("mnist", root), wanted)
        except UserError as error:
            assert str(error).isprintable()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_damaged_images_are_refused_or_harmless(tmp_path, form):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    content = encode(pixels, form)
    unpack(tmp_path / "mnist", class_folders() | {"train/4/0.png": content})
    wanted = load_images("mnist", tmp_path)
    for seed in range(100):
        shutil.rmtree(tmp_path / "decoded")  # a change inside a folder is not seen
        path = tmp_path / "mnist/train/4/0.png"
        images = load_damaged("mnist", tmp_path, path, content, seed)
        if images is not None and form == "PNG":  # JPEG has no checksums
            assert_same(images, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("index", range(4))
def test_damaged_idx_files_are_refused_or_harmless(tmp_path, mnist_files, index, packed, offline):
    if not packed:
        mnist_files = {n.removesuffix(".gz"): gzip.decompress(c) for n, c in mnist_files.items()}
    unpack(tmp_path, mnist_files)
    wanted = load_images("mnist", tmp_path)
    name, content = list(mnist_files.items())[index]
    for seed in range(25):
        images = load_damaged("mnist", tmp_path, tmp_path / name, content, seed)
        if images is not None and packed:  # what is in extracted files has no checksums
            assert_same(images, wanted)
        elif images is not None:
            assert set(images.train.labels) | set(images.test.labels) <= set(range(10))
    assert offline == []


@pytest.mark.slow
@pytest.mark.parametrize("file", ["mnist.npy", "mnist.labels.npy", "mnist.json"])
@pytest.mark.usefixtures("offline")
def test_damaged_decoded_files_never_load(root, file):
    wanted = copied(load_images("mnist", root))
    path = root / "decoded" / file
    content = path.read_bytes()
    for seed in range(50):
        assert_same(load_damaged("mnist", root, path, content, seed), wanted)
    (root / "mnist.zip").unlink()
    for seed in range(50):
        images = load_damaged("mnist", root, path, content, seed)
        assert images is None or path.read_bytes() == content


# --- digits and the command --------------------------------------------------------------------


def test_digits_are_all_of_scikit_learn(tmp_path):
    images = load_images("digits", tmp_path)
    theirs = load_digits()
    assert images.train.images.shape == (1437, 8, 8, 1)
    assert images.test.images.shape == (360, 8, 8, 1)
    assert images.train.images.dtype == np.uint8
    assert images.train.labels.dtype == np.int64
    pixels = np.concatenate([images.train.images, images.test.images]).reshape(-1, 64)
    labels = np.concatenate([images.train.labels, images.test.labels])
    ours = np.column_stack([np.rint(pixels / 255 * 16), labels])
    np.testing.assert_array_equal(
        np.unique(ours, axis=0), np.unique(np.column_stack([theirs.data, theirs.target]), axis=0)
    )
    assert (pixels.min(), pixels.max()) == (0, 255)
    share = np.bincount(images.test.labels) / np.bincount(theirs.target)
    np.testing.assert_allclose(share, 360 / 1797, atol=0.006)  # one image of 174
    assert load_images("digits", tmp_path).hash == images.hash
    assert list(tmp_path.iterdir()) == []


def test_command_prints_a_line_and_writes_the_stamp(root, capsys):
    path = root / "results/mnist.json"
    assert main(["data", "mnist", "--data-root", str(root), "--stamp", str(path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "mnist (20 + 10 images): 20 training and 10 test images from mnist.zip (zip)"
    assert path.read_bytes() == (root / "decoded/mnist.json").read_bytes()
    content = json.loads(path.read_text())
    assert content["counts"] == {"train": 20, "test": 10}
    assert content["shape"] == [28, 28, 1]
    assert content["source"]["size"] == os.path.getsize(root / "mnist.zip")  # noqa: PTH202
    assert content["hash"] == load_images("mnist", root).hash


def test_command_takes_several_data_sets(root, capsys):
    arguments = ["data", "digits", "mnist", "--data-root", str(root)]
    assert main(arguments) == 0
    assert "digits: 1437 training and 360 test images from scikit-learn" in capsys.readouterr().out
    assert main([*arguments, "--stamp", str(root / "stamp.json")]) == 2
    assert "takes one data set, not 2" in capsys.readouterr().err
    assert not (root / "stamp.json").exists()


def test_command_reports_mistakes_in_one_line(root, capsys):
    (root / "mnist.zip").write_text("<html>")
    assert main(["data", "mnist", "--data-root", str(root)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("resnet-limits data: ")
    assert error.count("\n") == 1


def test_decoded_data_is_loaded_without_heavy_imports(root):
    load_images("mnist", root)
    heavy = "assert not {'torch', 'torchvision', 'PIL', 'sklearn'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", f"{LOAD}\n{heavy}", root], check=True)
