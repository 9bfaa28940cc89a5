"""Image data: the same pixels from every source, the same batch for every process, and nothing of a file trusted."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import dnt
from dnt.data import hub, images, pictures
from dnt.data.augment import AUGMENTATIONS, Augment
from dnt.data.hub import HubDataset
from dnt.data.transforms import Mix, centered

SPLITS = ("train", "validation", "test")
EVERYTHING = replace(AUGMENTATIONS["deit"], pad=2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def pixels(i: int, height: int = 6, width: int = 6) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **options)
    return file.getvalue()


ENCODED = [png(pixels(i)) for i in range(40)]
NAMES = ["cat", "dog"]
LABELS = [i % 2 for i in range(40)]


def parquet(path: str, encoded=ENCODED, labels=LABELS, image="image", label="label", nested=True, names=None) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    column = [{"bytes": data, "path": None} for data in encoded] if nested else encoded
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}) if nested else pyarrow.binary()
    table = pyarrow.table({image: pyarrow.array(column, kind), label: labels})
    if names:
        features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, path, row_group_size=7)
    return path


def folder(root: str, encoded=ENCODED, labels=LABELS) -> str:
    for i, (data, label) in enumerate(zip(encoded, labels, strict=True)):
        path = Path(root, NAMES[label], f"{i:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def prepared(name: str, **options) -> images.ImageData:
    return dnt.prepare_images(name, progress=False, **options)


def content(data: images.ImageData, split: str | None = None) -> set[tuple[bytes, int]]:
    """The pixels and the label of every image, in no order."""
    found = set()
    for name in [split] if split else SPLITS:
        part = getattr(data, name)
        for i, label in zip(part.indices, part.labels.tolist(), strict=True):
            found.add((part.stored.image(int(i)).numpy().tobytes(), label))
    return found


def expected(encoded=ENCODED, labels=LABELS) -> set[tuple[bytes, int]]:
    arrays = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1) for data in encoded]
    return {(array.tobytes(), label) for array, label in zip(arrays, labels, strict=True)}


# --- sources --------------------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits, data = load_digits(), prepared("digits")
    assert (data.classes, data.channels, data.image_size) == (10, 1, 8)
    table = np.stack([data.stored.image(i)[0].numpy() for i in range(1797)])
    assert np.array_equal((table / 255 * 16).round(), digits.images)
    assert np.array_equal(data.stored.table["label"], digits.target)
    assert [len(data.train), len(data.validation), len(data.test)] == [1439, 179, 179]


def test_the_shared_cifar_is_what_datasets_reads(shared):
    import datasets

    files = {split: str(shared / f"cifar10/{split}.parquet") for split in ("train", "test")}
    theirs = datasets.load_dataset("parquet", data_files=files, cache_dir="datasets")
    data = prepared(str(shared / "cifar10"))
    assert data.class_names == tuple(theirs["train"].features["label"].names)
    assert [len(data.train), len(data.validation), len(data.test)] == [45_000, 5_000, 10_000]
    assert data.stored.table["label"].tolist() == [*theirs["train"]["label"], *theirs["test"]["label"]]
    assert data.stored.table["split"][50_000:].tolist() == [2] * 10_000, "no test image is trained or validated on"
    for i in range(50):
        assert np.array_equal(data.stored.image(i).permute(1, 2, 0), np.asarray(theirs["train"][i]["image"]))


@pytest.mark.parametrize("small", [True, False])
def test_folder_parquet_and_hub_hold_the_same_images(small, monkeypatch):
    if not small:
        monkeypatch.setattr(images, "DECODED", 0)
    made = [folder("images"), parquet("a.parquet", names=NAMES), parquet("b.parquet", nested=False), "owner/cats"]
    made.append(parquet("c.parquet", image="img", label="fine_label", labels=[NAMES[label] for label in LABELS]))
    monkeypatch.setattr(hub, "resolve", lambda *_: HubDataset("c0ffee", {"train": (str(Path("a.parquet").resolve()),)}))
    for name in made:
        data = prepared(name)
        assert content(data) == expected() and data.stored.meta["decoded"] == small
        assert data.class_names == (("0", "1") if name == "b.parquet" else ("cat", "dog"))
    assert prepared("owner/cats").describe()["revision"] == "c0ffee"


def test_a_folder_and_an_archive_of_it_are_the_same(tmp_path, monkeypatch):
    folder("images")
    with tarfile.open("d.tar.gz", "w:gz") as file:
        file.add("images")
    one, other = prepared("images"), prepared("d.tar.gz")
    assert content(one) == content(other) == expected() and one.class_names == ("cat", "dog")
    assert all(content(one, split) == content(other, split) for split in SPLITS), "the split is by name, not by place"
    assert one.describe()["sha256"] == other.describe()["sha256"]


def test_other_columns_are_asked_for():
    path = parquet("a.parquet", image="photo", label="kind")
    assert content(prepared(path, image="photo", label="kind")) == expected()


def test_encoded_and_decoded_caches_give_the_same_batches(monkeypatch):
    path = parquet("a.parquet")
    decoded = prepared(path, augment=EVERYTHING)
    monkeypatch.setattr(images, "DECODED", 0)
    monkeypatch.setattr(images, "FORMAT", 0)
    encoded = prepared(path, augment=EVERYTHING)
    assert decoded.stored.meta["decoded"] and not encoded.stored.meta["decoded"]
    assert torch.equal(decoded.train.batch(0, 3, 8)[0], encoded.train.batch(0, 3, 8)[0])


# --- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "trained_on"),
    [(("train",), 32), (("train", "test"), 36), (("train", "val"), 36), (("train", "validation", "test"), 40)],
)
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_given_splits_are_kept_and_lacking_ones_are_cut_out_of_train(there, trained_on, kind):
    given = {name: [png(pixels(100 * i + j)) for j in range(40)] for i, name in enumerate(there)}
    for name, encoded in given.items():
        folder(f"d/{name}", encoded) if kind == "folder" else parquet(f"d/{name}.parquet", encoded)
    data = prepared("d")
    assert len(data.train) == trained_on and content(data, "train") <= expected(given["train"])
    if len(there) > 1:
        assert content(data, "test") == expected(given[there[-1]]), "what is held out by its makers is the test"
    assert content(data) == set().union(*map(expected, given.values()))
    assert (
        set(data.describe()["made_splits"])
        == {
            1: {"validation", "test"},
            2: {"validation"} | ({"test"} if "val" in there else set()),
            3: set(),
        }[len(there)]
    )


def test_a_test_without_labels_is_left_out():
    parquet("d/train.parquet")
    parquet("d/test.parquet", labels=[-1] * 40)
    assert content(prepared("d")) == expected()


def test_a_class_may_be_called_train():
    for name in ("apple", "train"):
        Path("d", name).mkdir(parents=True)
        for i in range(9):
            Path("d", name, f"{i}.png").write_bytes(ENCODED[i])
    data = prepared("d")
    assert data.class_names == ("apple", "train")


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [*AUGMENTATIONS.values(), EVERYTHING, Augment(mixup=0.2), Augment(smoothing=0.1)])
def test_rows_of_two_ranks_are_the_whole_batch_whatever_was_read_before(augment):
    first, second = (prepared(parquet("a.parquet"), image_size=5, augment=augment) for _ in range(2))
    for step in (7, 0, 3):  # 3: across the end of an epoch
        whole, labels = first.train.batch(1, step, 10)
        for rank in range(2):
            rows, row_labels = second.train.batch(1, step, 10, rows=slice(rank, None, 2))
            assert torch.equal(rows, whole[rank::2]) and torch.equal(row_labels, labels[rank::2])
    assert whole.shape == (10, 3, 5, 5) and whole.dtype == torch.float32
    assert not torch.equal(whole, first.train.batch(2, step, 10)[0])


def test_only_asked_rows_and_their_partners_are_decoded(monkeypatch):
    data, read = prepared("digits", augment="deit"), []
    blank = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(images.Stored, "images", lambda self, indices: read.extend(indices) or blank)
    data.train.batch(0, 0, 16, rows=slice(1, None, 4))
    assert len(read) == 4, "a rank that has every fourth row has their partners too"


def test_a_loader_at_one_thread_leaves_the_others_to_who_computes_meanwhile():
    """Torch gives a thread the number that any thread set last, when it first computes in parallel, for good."""
    code = """
import threading, torch
from dnt.data.transforms import one_thread
torch.set_num_threads(3)
inside, computed = threading.Event(), threading.Event()
def load():
    with one_thread():
        inside.set()
        computed.wait()
loader = threading.Thread(target=load)
loader.start()
inside.wait()
torch.randn(512, 512) @ torch.randn(512, 512)
during = torch.get_num_threads()
computed.set()
loader.join()
assert during == torch.get_num_threads() == 3, during
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_global_random_state_and_threads_are_left_alone():
    data, threads = prepared("digits", augment=EVERYTHING), torch.get_num_threads()
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    data.train.batch(0, 0, 8)
    assert torch.equal(before, torch.get_rng_state()) and np.array_equal(numpy_before, np.random.get_state()[1])
    assert torch.get_num_threads() == threads


def test_every_image_comes_once_an_epoch_each_epoch_in_another_order():
    train = prepared("digits").train
    orders = [train.members(np.arange(len(train)) + epoch * len(train), 0) for epoch in range(2)]
    assert all(sorted(order) == list(range(len(train))) for order in orders)
    assert not np.array_equal(*orders)
    member = orders[1][0]
    batch = train.batch(0, len(train), 1)  # batches of one: the first of the second epoch
    assert batch[1] == train.labels[member]


@pytest.mark.parametrize("batch_size", [7, 179, 1000])
def test_an_evaluation_sees_every_image_once_in_order(batch_size):
    split = prepared("digits", augment="deit").validation
    batches = list(split.whole(batch_size))
    assert {tuple(x.shape) for x, _ in batches} == {(batch_size, 1, 8, 8)}
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(y[y >= 0], split.labels) and not x[y < 0].any()
    for rank in range(2):
        for (whole, labels), (part, part_labels) in zip(
            batches, split.whole(batch_size, slice(rank, None, 2)), strict=True
        ):
            assert torch.equal(whole[rank::2], part) and torch.equal(labels[rank::2], part_labels)


def test_normalized_training_images_have_mean_zero_and_deviation_one():
    train = prepared("digits").train
    [(x, _)] = train.whole(len(train))
    assert abs(x.mean()) < 1e-5 and abs(x.std() - 1) < 1e-3
    raw = torch.stack([train.stored.image(int(i)) for i in train.indices[:9]]) / 255
    torch.testing.assert_close((raw - train.mean[0]) / train.std[0], x[:9])


def test_flip_crop_gives_windows_of_the_padded_image_or_its_mirror():
    data = prepared("digits", augment="flip-crop")
    x, _ = data.train.batch(0, 0, 30)
    members = data.train.members(np.arange(30), 0)
    for image, member in zip(x, members, strict=True):
        raw = torch.nn.functional.pad(data.train.stored.image(int(data.train.indices[member])), [4] * 4)
        crops = [raw[:, i : i + 8, j : j + 8] for i in range(9) for j in range(9)]
        both = data.train.normalized(torch.stack(crops + [crop.flip(-1) for crop in crops]))
        assert (both == image).flatten(1).all(1).any()


def test_evaluation_resizes_the_shorter_side_and_crops_to_the_centre():
    image = torch.arange(12).expand(3, 6, 12).to(torch.uint8)
    assert torch.equal(centered(image, 6, 1.0), image[..., 3:9])
    assert torch.equal(centered(image, 3, 0.5), image[:, 1:4, 4:7]), "half of the shorter side, at its own resolution"
    assert centered(image, 9, 0.875).shape == (3, 9, 9)


def slow_mix(x: torch.Tensor, y: torch.Tensor, mix: Mix) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel by pixel, and the label by the share of pixels."""
    n, channels, size, _ = x.shape
    images, labels = torch.zeros_like(x), torch.zeros_like(y)
    for i in range(n):
        j = (i + n // 2) % n
        mine = torch.full((size, size), mix.share)
        if mix.box:
            mine = torch.ones(size, size)
            for row in range(*mix.box[0].indices(size)):
                for column in range(*mix.box[1].indices(size)):
                    mine[row, column] = 0
        for channel in range(channels):
            images[i, channel] = mine * x[i, channel] + (1 - mine) * x[j, channel]
        labels[i] = mine.mean() * y[i] + (1 - mine.mean()) * y[j]
    return images, labels


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0), (0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("batch_size", [8, 9, 1])
def test_mixtures_equal_a_slow_reference_and_labels_sum_to_one(mixup, cutmix, batch_size):
    plain = prepared("digits", augment=Augment(smoothing=0.1)).train
    augment = Augment(mixup=mixup, cutmix=cutmix, smoothing=0.1)
    mixed, boxes = prepared("digits", augment=augment).train, 0
    for step in range(12):
        mix = Mix(augment, 8, 0, step)
        boxes += mix.box is not None
        x, y = mixed.batch(0, step, batch_size)
        slow_x, slow_y = slow_mix(*plain.batch(0, step, batch_size), mix)
        torch.testing.assert_close(x, slow_x)
        torch.testing.assert_close(y, slow_y)
        torch.testing.assert_close(y.sum(1), torch.ones(batch_size))
    assert (boxes > 0) == bool(cutmix) and (boxes < 12) == bool(mixup)


def test_soft_labels_are_those_of_cross_entropy_with_smoothing():
    train = prepared("digits", augment=Augment(smoothing=0.1)).train
    _, soft = train.batch(0, 0, 16)
    hard = train.labels[torch.from_numpy(train.members(np.arange(16), 0))]
    scores, entropy = torch.randn(16, 10), torch.nn.functional.cross_entropy
    torch.testing.assert_close(entropy(scores, soft), entropy(scores, hard, label_smoothing=0.1))


# --- what is broken or hostile --------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is so large."""
    data = bytearray(png(pixels(0)))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


BROKEN = {
    "truncated": (png(pixels(0, 50, 50))[:-2000], "truncated"),
    "empty": (b"", "it is empty"),
    "null": (None, "it is empty"),
    "text": (b"no image", "cannot identify image file"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify image file"),
    "deep": (png(np.arange(36, dtype=np.uint16).reshape(6, 6)), "more than 8 bits a channel"),
    "bomb": (bomb(10_000, 10_000), "decompression bomb"),
    "great bomb": (bomb(100_000, 100_000), "decompression bomb"),
    "no label": (ENCODED[0], "it has no label"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_images_are_named_counted_and_left_out_up_to_a_share(kind, capfd):
    data, reason = BROKEN[kind]
    encoded, labels = [*ENCODED[:5], data, *ENCODED[6:]], [*LABELS[:5], None if kind == "no label" else 1, *LABELS[6:]]
    path = parquet("a.parquet", encoded, labels)
    with pytest.raises(ValueError) as error:
        prepared(path)
    assert str(error.value).startswith(
        "'a.parquet' has 1 broken images of 40, more than 1%; the first is a.parquet, row 5"
    )
    assert reason in str(error.value) and "\n" not in str(error.value)
    found = prepared(path, most_broken=0.03)
    [left_out] = found.broken
    assert left_out["name"] == "a.parquet, row 5" and reason in left_out["reason"] and found.describe()["broken"] == 1
    assert content(found) == expected(ENCODED[:5] + ENCODED[6:], LABELS[:5] + LABELS[6:])
    with pytest.raises(ValueError, match="1 broken images of 40"):  # also of a cache that was made with a larger share
        prepared(path)
    assert not capfd.readouterr().err


def test_the_bound_on_pixels_holds_whatever_pil_is_set_to(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    seen = pictures.look(pictures.Encoded("train", "bomb", 0, bomb(10_000, 10_000)))
    assert "10000 x 10000 pixels, more than 89,478,485" in seen.wrong


class Poison:
    def __reduce__(self):
        return os.mkdir, ("poisoned",)


def test_nothing_beside_images_is_opened():
    poison = pickle.dumps(Poison())
    for name in (folder("images"), str(Path(parquet("tables/train.parquet")).parent)):
        for path in ("labels.pkl", "meta.npy", "train.pt"):
            Path(name, path).write_bytes(poison)
            Path(name, path).chmod(0)
        assert content(prepared(name)) == expected()
    folder("d", [*ENCODED[:-1], poison])
    assert len(prepared("d", most_broken=0.1).broken) == 1 and not Path("poisoned").exists()


def test_photographs_stand_upright_as_datasets_shows_them():
    import datasets

    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    data = png(pixels(0, 4, 6), exif=exif)
    theirs = datasets.Image().decode_example({"bytes": data, "path": None})
    assert np.array_equal(pictures.decode(data, 3).transpose(1, 2, 0), np.asarray(theirs))
    assert pictures.decode(data, 3).shape == (3, 6, 4)


# --- choices and errors ---------------------------------------------------------------------------------------------


def test_images_of_several_sizes_and_modes_are_brought_to_one():
    encoded = [png(pixels(i, 5 + i, 9)) for i in range(20)] + [png(pixels(i)[..., 0]) for i in range(20)]
    data = prepared(parquet("a.parquet", encoded), image_size=7)
    assert data.channels == 3 and data.train.batch(0, 0, 8)[0].shape == (8, 3, 7, 7)
    gray = prepared("a.parquet", image_size=7, channels=1, augment="deit")
    assert gray.train.batch(0, 0, 8)[0].shape == (8, 1, 7, 7)


def test_the_description_is_json_and_says_what_was_done():
    data = prepared("digits", augment="flip-crop")
    described = json.loads(json.dumps(data.describe()))
    assert described["images"] == {"train": 1439, "validation": 179, "test": 179}
    assert described["augmentation"]["pad"] == 4 and len(described["sha256"]) == 64
    colour = prepared(parquet("a.parquet"), normalization="imagenet").describe()["normalization"]
    assert colour == {"from": "imagenet", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def test_a_second_preparation_reads_the_cache_and_a_changed_file_does_not(monkeypatch):
    first = prepared(parquet("a.parquet"))
    with monkeypatch.context() as patch:
        patch.setattr(images, "write_images", None)
        assert content(prepared("a.parquet")) == content(first)
    os.utime("a.parquet", ns=(1, 1))
    assert prepared("a.parquet").stored.folder != first.stored.folder


def holding(path: str, data: bytes = b"x") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)
    return path.split("/")[0]


def both() -> str:
    parquet("d/train.parquet")
    return folder("d")


BAD = [
    (lambda: "digit", {}, "no data at 'digit'. Did you mean 'digits'? Give a folder of images"),
    (lambda: "https://user:secret@host/a.tar", {}, "'https://***@host/a.tar' is a URL, which is not read"),
    (lambda: holding("a.txt"), {}, "'a.txt' is no image data; give a folder of images"),
    (lambda: holding("d/a.txt"), {}, "'d' holds no images (.bmp, "),
    (lambda: holding("d/a.png"), {}, "a.png lies in no folder of a class"),
    (lambda: holding("d/test/cat/a.png"), {}, "'d' has a split 'test' but none to train on"),
    (lambda: holding("d/train/cat/a.png") + holding("d/more/cat/a.png")[1:], {}, "but 'more' is none; move it away"),
    (both, {}, "'d' holds images and parquet files (train.parquet)"),
    (lambda: holding("a.parquet"), {}, "a.parquet cannot be read ("),
    (lambda: parquet("a.parquet", label="y"), {}, "no column 'label'; there are: image, y. Choose one with label=."),
    (lambda: parquet("a.parquet", image="x"), {}, "no column 'image'; there are: x, label. Choose one with image=."),
    (lambda: parquet("a.parquet"), {"image": "label"}, "column 'label' holds int64, no encoded images"),
    (lambda: parquet("a.parquet", labels=[0.5] * 40), {}, "column 'label' holds '0.5', no number or name of a class"),
    (lambda: parquet("a.parquet", labels=[-1] * 40), {}, "no image to train on has a label"),
    (lambda: parquet("a.parquet", labels=[2] * 40, names=NAMES), {}, "a label is 2, beyond the 2 classes"),
    (lambda: parquet("a.parquet", ENCODED[:2], LABELS[:2]), {}, "2 images to train on; that is too few"),
    (lambda: parquet("a.parquet", [png(pixels(0, 5, 6))] * 40), {}, "are 5 x 6, no squares; give the side"),
    (lambda: parquet("a.parquet", [*ENCODED[1:], png(pixels(0, 5, 5))]), {}, "have several sizes; give the side"),
    (lambda: "digits", {"augment": "diet"}, "unknown augmentation 'diet'. Did you mean 'deit'?"),
    (lambda: "digits", {"normalization": "imagnet"}, "unknown normalization 'imagnet'. Did you mean 'imagenet'?"),
    (lambda: "digits", {"normalization": "imagenet"}, "is of RGB images, and those of 'digits' are gray; use 'train'"),
    (lambda: "digits", {"channels": 2}, "channels is 2; images have 1 (gray) or 3 (RGB)"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "options", "message"), BAD)
def test_unusable_data_is_one_line_with_the_fix(make, options, message):
    with pytest.raises(ValueError) as error:
        prepared(make(), **options)
    assert message in str(error.value) and "\n" not in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("flip", 1.5), ("center", 0), ("scale", (0.5, 0.1)), ("pad", -1), ("mixup", -0.1), ("magnitude", 11)],
)
def test_an_impossible_augmentation_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is "):
        Augment(**{field: value})


def test_the_magnitude_of_randaugment_is_of_ten():
    from torchvision.transforms import v2

    transform = next(t for t in images.Augmented(AUGMENTATIONS["deit"], 8).transforms if isinstance(t, v2.RandAugment))
    magnitudes, _ = transform._AUGMENTATION_SPACE["Rotate"]
    assert magnitudes(transform.num_magnitude_bins, 8, 8)[transform.magnitude] == 27  # of 30 degrees, as in timm
