"""Images are found, checked, decoded once, and named for what they are."""

import gzip
import hashlib
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from resnet_limits.cli import main
from resnet_limits.data.images import load_images, stamp
from resnet_limits.data.sources import NETWORK_SECONDS, SETS
from resnet_limits.errors import UserError

NUMBERS = [str(digit) for digit in range(10)]
COUNTS = (20, 10)  # of the small sets below: two and one of each of ten classes


def encode(pixels, form="PNG", mode=None):
    content = io.BytesIO()
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    (image if mode is None else image.convert(mode)).save(content, form)
    return content.getvalue()


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
        assert images.source["file"] == where
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
            "train/0/0.png is 28x28 and test/5/x.png is 9x8; all images must be 28x28",
        ),
        (class_folders(shape=(8, 8)), "train/0/0.png is 8x8; all images must be 28x28"),
        (class_folders() | {"train/2/x.png": b"not a picture"}, "train/2/x.png is broken"),
        (class_folders() | {"train/2/x.png": encode(flat(1))[:45]}, "train/2/x.png is broken"),
        (class_folders() | {"train/2/x.png": b""}, "train/2/x.png is broken"),
        (
            class_folders() | {"train/2/x.tiff": encode(flat(1), "TIFF", mode="F")},
            "train/2/x.tiff is broken, or no image of 8 bits",
        ),
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
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("was read"))
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


# --- decoded once ------------------------------------------------------------------------------


def test_loading_neither_decodes_nor_writes(root, capsys):
    first = load_images("mnist", root)
    (root / "decoded/.mnist.lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in (root / "decoded").iterdir()}
    capsys.readouterr()
    assert stamp(load_images("mnist", root)) == stamp(first)
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
    assert load_images("mnist", root).source["file"] == "mnist-images.zip"


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
    ("at", "call"), [("images.read_source", 1), ("np.save", 2), ("images.write_whole", 1)]
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
        with pytest.raises(UserError, match=r"MNIST/raw: corrupt.*delete it"):
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
