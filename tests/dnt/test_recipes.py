"""The paper's runs: every setting, as shapes on the meta device, and cut down to two real steps."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dnt
from dnt.cli import main, with_recipe
from dnt.dryrun import plan
from dnt.recipes import RECIPES
from dnt.settings import TrainSettings
from tests.dnt.test_cli import complaint

OWT = [name for name in RECIPES if name.startswith("owt")]
IMAGENET = [name for name in RECIPES if name.startswith("imagenet")]
every = pytest.mark.parametrize("name", [*OWT, *IMAGENET])
CUT = ["--depth", "2", "--dim", "32", "--heads", "2", "--batch-size", "4", "--steps", "2", "--no-compile"]
CUT += ["--precision", "32"]
CUT_TEXT = ["--data", "words.txt", "--tokenizer", "byte", "--context", "16"]
CUT_IMAGES = ["--data", "digits", "--image-size", "8", "--patch-size", "2", "--eval-tokens", "8"]


def test_there_is_a_recipe_for_every_run_of_the_paper_and_both_readings_of_its_rate():
    shapes = {"124m": (12, 768, 12), "774m": (36, 1280, 20), "1.4b": (48, 1536, 24)}
    assert len(OWT) == 3 * (2 * 3 + 1) and len(IMAGENET) == 2 * (2 * 3 + 1) and len(RECIPES) == 21 + 14 + 2
    for name in OWT:
        recipe = RECIPES[name]
        _, size, rest = name.split("-", 2)
        config = recipe.model_config(recipe.placement, vocab_size=50257)
        assert (config.depth, config.dim, config.heads) == shapes[size] and config.vocab_size == 50304
        assert rest.startswith(recipe.placement) and recipe.optimizer in rest
        rates = {"adamw": 6e-4, "msgdw": 1.0, "averaged": 0.1, "calibrated": 0.3}
        assert recipe.lr == rates[rest.split("-")[-1]] and recipe.momentum == 0.9 and recipe.data == "owt"


@pytest.mark.parametrize("name", IMAGENET)
def test_a_recipe_of_imagenet_is_the_papers_where_it_says_something_and_deits_elsewhere(name):
    recipe = RECIPES[name]
    rates = {"adamw": 1e-3, "msgdw": 0.5, "averaged": 0.05, "calibrated": 0.3}
    _, size, rest = name.split("-", 2)
    patch, depth, dim = {"l": (16, 24, 1024), "h": (14, 32, 1280)}[size]
    config = recipe.model_config(recipe.placement, classes=1000, channels=3, image_size=recipe.image_size)
    assert (config.patch_size, config.depth, config.dim, config.heads) == (patch, depth, dim, 16)
    assert (config.image_size, config.pool, config.positions, config.norm_eps) == (224, "cls", "learned", 1e-6)
    assert rest.startswith(recipe.placement) and recipe.optimizer in rest
    assert recipe.lr == rates[rest.split("-")[-1]] and recipe.momentum == 0.9
    assert (recipe.schedule, recipe.precision, recipe.data) == ("cosine", "bf16-mixed", "ILSVRC/imagenet-1k")
    epoch = 1_281_167 // recipe.batch_size
    assert recipe.steps == 300 * epoch and recipe.warmup == 5 * epoch
    assert 5e-4 * recipe.batch_size / 512 == 1e-3 and 1e-3 * recipe.floor == pytest.approx(1e-5)


@pytest.mark.parametrize("name", [name for name in IMAGENET if "pre-ln-adamw" in name])
def test_the_baselines_of_imagenet_are_timms_models(name):
    timm = pytest.importorskip("timm")
    recipe = RECIPES[name]
    config = recipe.model_config(recipe.placement, classes=1000, channels=3, image_size=recipe.image_size)
    theirs = {"l": "vit_large_patch16_224", "h": "vit_huge_patch14_224"}[name.split("-")[1]]
    with torch.device("meta"):
        model = dnt.load_timm(timm.create_model(theirs, num_classes=1000))
    assert model.config == replace(config, drop_path=0.0, init=model.config.init, init_std=model.config.init_std)
    expected = {"l": 304.33, "h": 632.05}[name.split("-")[1]]
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == expected


def test_the_average_form_of_the_momentum_is_ours_at_a_tenth_of_its_rate():
    """m = mu m + (1 - mu) g at rate 1.0 moves w like m = mu m + g at 0.1."""
    gradients, w = [1.0, -0.5, 2.0, 0.3], [0.0, 0.0]
    ours = averaged = 0.0
    for g in gradients:
        ours, averaged = 0.9 * ours + g, 0.9 * averaged + 0.1 * g
        w = [w[0] - 0.1 * ours, w[1] - 1.0 * averaged]
    assert w[0] == pytest.approx(w[1])


@every
def test_the_options_of_a_recipe_say_what_it_says(name, monkeypatch):
    seen: list[TrainSettings] = []
    monkeypatch.setattr("dnt.dryrun.plan", lambda settings: seen.append(settings))
    assert main(["train", "--recipe", name, "--dry-run", "--devices", "8", "--strategy", "fsdp"]) == 0
    assert seen == [replace(RECIPES[name], dry_run=True, devices=8, strategy="fsdp")]


@pytest.mark.parametrize("name", [name for name in OWT if "averaged" not in name])
def test_a_dry_run_builds_every_shape_without_memory(name):
    text = plan(replace(RECIPES[name], devices=8, strategy="fsdp", accumulate=20))
    parameters = {"124m": 124, "774m": 773, "1.4b": 1437}[name.split("-")[1]]
    found = int(text.split(" parameters")[0].split()[-1].replace(",", ""))
    assert parameters <= found / 1e6 < parameters + 2
    assert "480 x 1024 = 491,520 tokens; 3 samples at a time in each of 8 processes" in text
    assert f"state {8 if 'adamw' in name else 4}.0 bytes a parameter" in text


def test_a_dry_run_of_a_mixture_says_the_rate_and_decay_of_the_first():
    text = plan(TrainSettings(optimizer="msgdw-adamw", lr=0.2, weight_decay=1e-3, tokenizer="byte"))
    assert "msgdw-adamw, lr 0.2, decay 0.001, state 4." in text


@pytest.mark.parametrize("name", [name for name in IMAGENET if "averaged" not in name])
def test_a_dry_run_builds_every_shape_of_imagenet_without_memory(name):
    text = plan(replace(RECIPES[name], devices=8, strategy="fsdp", accumulate=4))
    found = int(text.split(" parameters")[0].split()[-1].replace(",", ""))
    expected = {"l": {"pre-ln": 304.33, "dnt": 304.08}, "h": {"pre-ln": 632.05, "dnt": 631.64}}
    assert round(found / 1e6, 2) == expected[name.split("-")[1]][RECIPES[name].placement]
    tokens = {"l": "197 = 201,728", "h": "257 = 263,168"}[name.split("-")[1]]
    assert f"1024 x {tokens} tokens; 32 samples at a time in each of 8 processes" in text
    assert f"state {8 if 'adamw' in name else 4}.0 bytes a parameter" in text


def test_a_dry_run_of_the_largest_takes_no_memory_and_no_data():
    code = (
        "import resource; from dataclasses import replace\n"
        "from dnt.dryrun import plan; from dnt.recipes import RECIPES\n"
        "import dnt.train; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "plan(replace(RECIPES['owt-1.4b-dnt-adamw'], accumulate=480))\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert grown < 500_000, grown"  # KiB; the weights alone are 5.6 million
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@every
def test_a_recipe_cut_down_runs_two_steps(name, workplace):
    small = CUT_IMAGES if name in IMAGENET else CUT_TEXT
    assert main(["train", "--recipe", name, *CUT, *small, "--out", "run"]) == 0
    run = dnt.Run(Path("run"))
    assert run.end["step"] == 2 and run.config["optimizer"]["groups"][0]["lr"] == RECIPES[name].lr
    assert run.config["model"]["placement"] == RECIPES[name].placement
    assert run.config["training"]["warmup"] == RECIPES[name].warmup
    if name in OWT:
        assert run.config["model"]["vocab_size"] == 256
    else:
        assert run.config["data"]["augmentation"]["mixup"] == 0.8 and run.config["model"]["drop_path"] == 0.1


def test_list_shows_what_each_recipe_reads(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    rows = [line.replace("│", " ").split() for line in capfd.readouterr().out.splitlines()]
    shown = {row[0]: row[-2:] for row in rows if row and row[0] in RECIPES}
    large = {name: ["384M", "images"] if name in IMAGENET else ["295G", "tokens"] for name in (*OWT, *IMAGENET)}
    assert shown == large | {"tiny": ["0.2M", "tokens"], "tiny-images": ["9,600", "images"]}


@pytest.mark.parametrize(("name", "data"), [("tiny", ["--data", "words.txt"]), ("tiny-images", [])])
def test_the_small_recipes_run_and_a_comparison_takes_what_it_shares_with_them(name, data, workplace):
    cut = ["--steps", "2", "--warmup", "1", "--eval-tokens", "256", *data]
    Path("words.txt").write_text("some words\n" * 5000)
    assert main(["train", "--recipe", name, *cut, "--out", "run"]) == 0
    cells = ["--placements", "sigma-reparam", "--optimizers", "msgdw", "--vary"]
    assert main(["compare", "--recipe", name, *cut, *cells, "--lr", "msgdw=0.1", "--out", "runs"]) == 0
    (other,) = Path("runs").glob("sigma-reparam-*")
    one, other = dnt.Run(Path("run")).config, dnt.Run(other).config
    assert one["model"]["depth"] == other["model"]["depth"] == 6 and one["data"] == other["data"]
    assert one["training"]["warmup"] == 1 and other["training"]["warmup"] == 0, "as sigma-reparam prescribes"
    assert [group["weight_decay"] for group in other["optimizer"]["groups"]] == [0.0, 0.0]


def test_an_unknown_recipe_and_an_unknown_vocabulary_are_named(workplace, capfd):
    assert "unknown recipe 'owt-124m'. Did you mean" in complaint(capfd, "train", "--recipe", "owt-124m")
    line = complaint(capfd, "train", "--tokenizer", "char", "--dry-run")
    assert "how many characters there are depends on the data" in line
    assert with_recipe(["sample", "run"]) == ["sample", "run"]


def test_a_recipe_may_stand_anywhere_and_other_options_win():
    first = with_recipe(["train", "--recipe", "owt-124m-dnt-msgdw", "--lr", "0.3"])
    assert first == with_recipe(["train", "--lr", "0.3", "--recipe=owt-124m-dnt-msgdw"])
    assert first[-2:] == ["--lr", "0.3"] and first[0] == "train"


def test_a_dry_run_refuses_what_the_run_would(workplace, capfd):
    refused = {
        "batch_size is 480, no multiple of 7 processes": ["--devices", "7"],
        "16-mixed does not go with fsdp": ["--precision", "16-mixed", "--strategy", "fsdp"],
        "--dry-run says what a new run would be": ["--resume", "run"],
    }
    for message, options in refused.items():
        assert message in complaint(capfd, "train", "--recipe", "owt-124m-dnt-msgdw", "--dry-run", *options)
