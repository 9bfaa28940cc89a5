"""The same `fit` trains classifiers of images."""

import math
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

import dnt
from dnt.cli import main
from dnt.dryrun import plan
from dnt.settings import TrainSettings
from tests.dnt.test_cli import complaint
from tests.dnt.test_parallel import losses, needs_compiler, run_all

SHAPE = ["--model", "vit-tiny", "--depth", "2", "--dim", "32", "--heads", "2", "--patch-size", "2"]
VIT = [*SHAPE, "--data", "digits", "--batch-size", "8", "--steps", "12", "--warmup", "2", "--eval-tokens", "40"]
VIT += ["--no-compile", "--precision", "32"]


def small_vit(data, **fields) -> dnt.ViT:
    torch.manual_seed(0)
    of_data = {"classes": data.classes, "channels": data.channels, "image_size": data.image_size}
    return dnt.vit("vit-tiny", **{"depth": 2, "dim": 64, "heads": 2, "patch_size": 2} | of_data | fields)


def fit(model, data, optimizer=None, **options) -> dnt.Run:
    optimizer = optimizer or dnt.MSGDW(dnt.param_groups(model, weight_decay=1e-3), lr=0.1)
    base = {"steps": 100, "batch_size": 32, "warmup": 10, "compile": False, "precision": "32", "progress": False}
    return dnt.fit(model, data, optimizer, **base | options)


def test_digits_are_learned_and_accuracy_is_that_of_the_saved_model(workplace):
    data = dnt.prepare_images("digits")
    model = small_vit(data)
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-3)
    run = fit(model, data, adamw, out="run")
    assert run.end["test_top1"] > 0.8 and run.end["test_top5"] > 0.97, "10% and 50% by chance"
    scores, labels = [], []
    loaded = dnt.load("run")
    for x, y in data.test.whole(64):
        scores.append(loaded(x)[y >= 0])
        labels.append(y[y >= 0])
    scores, labels = torch.cat(scores), torch.cat(labels)
    order = scores.argsort(-1, descending=True)
    assert run.end["test_top1"] == pytest.approx((order[:, 0] == labels).float().mean().item(), abs=1e-6)
    assert run.end["test_top5"] == pytest.approx((order[:, :5] == labels[:, None]).any(-1).float().mean().item())
    negative = -scores.log_softmax(-1)[torch.arange(len(labels)), labels]
    assert run.end["test"] == pytest.approx(negative.mean().item(), rel=1e-4)
    rows = run.rows("train")
    assert all(row["images_per_s"] > 0 and "tokens_per_s" not in row for row in rows)
    assert not Path("run/tokenizer.json").exists() and run.config["data"]["images"]["train"] == len(data.train)


@torch.no_grad()
def test_top5_of_three_classes_is_always_one():
    model = dnt.ViT(dnt.ViTConfig(image_size=4, patch_size=2, channels=1, classes=3, depth=1, dim=8, heads=2))
    losses, top1, top5 = model.measure(torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, -1, 0]))
    assert top5.tolist() == [1, 1, 1, 0, 1] and losses[3] == top1[3] == 0
    assert float(losses.sum() / 4) == pytest.approx(math.log(3), rel=0.2)


def test_one_process_and_two_agree_with_every_augmentation(workplace):
    dnt.prepare_images("digits")
    mixed = [*VIT, "--augment", "deit", "--drop-path", "0"]
    ways = {"one": [], "ddp": ["--devices", "2"], "fsdp": ["--devices", "2", "--strategy", "fsdp", "--accumulate", "2"]}
    run_all(*([*mixed, *way, "--out", name] for name, way in ways.items()))
    for name in ways:
        assert losses(name) == pytest.approx(losses("one"), abs=1e-5), name


def test_the_beginning_of_a_sorted_folder_holds_all_classes(workplace):
    pictures = torch.Generator().manual_seed(0)
    for name in ("ant", "bee", "cow"):
        for i in range(60):
            path = Path("pics") / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(torch.randint(256, (4, 4, 3), generator=pictures).byte().numpy()).save(path)
    data = dnt.prepare_images("pics")
    few = data.test.beginning(9)
    assert len(few) == 9 and len(set(few.labels.tolist())) == 3 and len(data.test.beginning(0)) == len(data.test)
    before = data.describe()["sha256"]
    Path("pics/ant/9.png").rename("pics/bee/99.png")
    assert dnt.prepare_images("pics").describe()["sha256"] != before


@needs_compiler
def test_a_compiled_classifier_measures_a_padded_last_batch_alike(workplace):
    data = dnt.prepare_images("digits")
    ends = []
    for compiled in (False, True):
        torch._dynamo.reset()
        run = fit(small_vit(data), data, out=f"run{compiled}", steps=3, eval_tokens=40, compile=compiled)
        ends.append([run.end[name] for name in ("test", "test_top1", "test_top5")])
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)


def test_a_stopped_classifier_resumes_to_bit_identical_weights(workplace):
    from dnt.loop import Loop

    data = dnt.prepare_images("digits", augment="flip-crop")
    options = {"steps": 9, "checkpoint_every": 4, "batch_size": 8}
    fit(small_vit(data, drop_path=0.2), data, out="whole", **options)
    real = Loop.train_step
    try:
        Loop.train_step = lambda self: (_ for _ in ()).throw(RuntimeError) if self.step == 6 else real(self)
        with pytest.raises(RuntimeError):
            fit(small_vit(data, drop_path=0.2), data, out="half", **options)
    finally:
        Loop.train_step = real
    fit(small_vit(data, drop_path=0.2), data, out="half", resume=True, **options)
    first, second = (load_file(f"{name}/model.safetensors") for name in ("half", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_an_evaluation_that_is_not_finite_names_its_split(workplace, monkeypatch):
    data = dnt.prepare_images("digits")
    monkeypatch.setattr(dnt.ViT, "measure", lambda self, x, y: torch.full((3, len(x)), math.inf))
    with pytest.raises(FloatingPointError, match="step 1: the loss of the validation split is inf"):
        fit(small_vit(data), data, out="run", steps=2, eval_every=1)
    assert dnt.Run(Path("run")).end["event"] == "diverged"


def test_compare_runs_vits_and_shows_their_accuracy(workplace, cells_here, capfd):
    options = [*VIT, "--placements", "dnt", "--optimizers", "msgdw", "--out", "cmp"]
    assert main(["compare", *options]) == 0
    shown = capfd.readouterr().out
    assert "test top-1" in shown and "images/s" in shown and "nats a image" not in shown
    assert "%" in Path("cmp/index.html").read_text()


def test_a_dry_run_of_the_papers_vits():
    for size, millions in (("vit-large", 304), ("vit-huge", 632)):
        settings = {"placement": "pre-ln", "norm": "layernorm", "bias": True, "batch_size": 16}
        text = plan(TrainSettings(model=size, data="imagenet", **settings))
        found = int(text.split(" parameters")[0].split()[-1].replace(",", ""))
        assert found // 1_000_000 == millions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--context", "9"], "--context says nothing to vit-tiny, which reads images; drop it."),
        (["--tokenizer", "char"], "--tokenizer says nothing to vit-tiny"),
        (["--model", "gpt-tiny"], "--patch-size says nothing to gpt-tiny, which reads text; drop it."),
        (["--image-size", "0"], "image_size is 0; it is a side in pixels, at least 1."),
        (["--data", "stdlib"], "vit-tiny reads images; give --data: 'digits'"),
        (["--patch-size", "3"], "patch_size=3 does not divide image_size=8"),
        (["--augment", "diet"], "unknown augmentation 'diet'. Did you mean 'deit'?"),
        (["--pool", "max"], "unknown pool 'max'. Did you mean"),
        (["--positions", "rope"], "unknown positions 'rope'. Did you mean"),
    ],
)
def test_bad_input_is_one_line_with_the_fix(workplace, capfd, arguments, message):
    assert message in complaint(capfd, "train", *VIT, "--out", "bad", *arguments)
    assert not Path("bad").exists()


def test_models_and_data_that_do_not_match_are_named(workplace):
    digits, words = dnt.prepare_images("digits"), dnt.prepare("words.txt", context=16)
    with pytest.raises(ValueError, match="classes is 7 in the model and 10 in the data"):
        fit(small_vit(digits, classes=7), digits, out="run")
    with pytest.raises(ValueError, match="a ViT does not read tokens; a GPT reads tokens, a ViT images"):
        fit(small_vit(digits), words, out="run")
