import ast
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import dnt
from dnt.cli import main
from dnt.listing import definitions, described
from dnt.nn.placement import PLACEMENTS
from tests.conftest import OPTIONS, TINY, small_corpora, tiny_model, tiny_msgdw


@pytest.fixture
def run(workplace) -> Path:
    assert main(["train", "--data", "words.txt", "--tokenizer", "char", *TINY, "--steps", "5", "--out", "run"]) == 0
    return Path("run")


def complaint(capfd, *arguments: str) -> str:
    """The one line that a command with bad input prints; exit status 2."""
    capfd.readouterr()
    assert main(arguments) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("dnt: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--placement", "ddnt"], "unknown placement 'ddnt'. Did you mean 'dnt'? Known: pre-ln, s2, "),
        (["--optimizer", "msgd"], "unknown optimizer 'msgd'. Did you mean 'msgdw'?"),
        (["--norm", "rms"], "unknown norm 'rms'. Did you mean 'rmsnorm'?"),
        (["--model", "gpt2small"], "unknown model 'gpt2small'. Did you mean 'gpt2-small'?"),
        (["--tokenizer", "bytes"], "unknown tokenizer 'bytes'. Did you mean 'byte'?"),
        (["--activation", "gleu"], "unknown activation 'gleu'. Did you mean 'gelu'?"),
        (["--dim", "33"], "heads=2 does not divide dim=33. Nearest that does: heads=1."),
        (["--data", "nowhere.txt"], "no data at 'nowhere.txt'"),
        (["--data", "empty.txt"], "'empty.txt' holds no text"),
        (["--context", "90000"], "the context of 90000 tokens is too long"),
        (["--lr", "-1"], "Invalid learning rate"),
        (["--seed", "-1"], "seed is -1; it must be at least 0"),
        (["--mlp-ratio", "-1"], "mlp_ratio is -1"),
        (["--data", "word.txt"], "no data at 'word.txt'. Did you mean 'words.txt'?"),
        (["--data", "stdlb"], "Did you mean 'stdlib'?"),
    ],
)
def test_bad_input_to_train_is_one_line_with_the_fix(workplace, capfd, arguments, message):
    Path("empty.txt").touch()
    assert message in complaint(capfd, "train", "--data", "words.txt", *TINY, "--out", "bad", *arguments)
    assert not Path("bad").exists(), "nothing is begun that cannot go on"


@pytest.mark.parametrize(
    "arguments",
    [["--optimizers", "lion"], ["--placements", "ddnt"], ["--norm", "rms"], ["--heads", "5"], ["--data", "no"]],
)
def test_bad_input_to_compare_stops_before_the_first_cell(workplace, capfd, arguments):
    complaint(capfd, "compare", "--data", "words.txt", *TINY, "--out", "cmp", *arguments)
    assert not Path("cmp").exists()


def test_an_unknown_command_suggests_the_nearest(capfd):
    assert "unknown command 'trian'. Did you mean 'train'?" in complaint(capfd, "trian")


def test_sample_continues_the_prompt_reproducibly_in_the_runs_own_alphabet(run, capfd):
    outputs = []
    for _ in range(2):
        assert main(["sample", "run", "--prompt", "kara ", "--tokens", "40"]) == 0
        outputs.append(capfd.readouterr().out)
    assert outputs[0] == outputs[1] and outputs[0].startswith("kara ") and len(outputs[0]) == 5 + 40 + 1
    assert set(outputs[0][:-1]) <= set(Path("words.txt").read_text())
    assert "character 'Q' is not among the" in complaint(capfd, "sample", "run", "--prompt", "Q")


def test_damaged_run_folders_are_one_line(run, capfd):
    assert "nowhere is not a run folder: it has no config.json." in complaint(capfd, "sample", "nowhere")
    tokenizer = (run / "tokenizer.json").read_text()
    longer = json.loads(tokenizer) | {"characters": "".join(map(chr, range(32, 400)))}
    (run / "tokenizer.json").write_text(json.dumps(longer))
    assert "the tokenizer has 368 symbols, the model" in complaint(capfd, "sample", "run")
    (run / "tokenizer.json").write_text("{}")
    assert "{} describes no tokenizer; its file is damaged." in complaint(capfd, "sample", "run")
    (run / "tokenizer.json").write_text("{")
    assert "tokenizer.json cannot be read" in complaint(capfd, "sample", "run")
    (run / "tokenizer.json").write_text(tokenizer)

    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(weights[:500])
    assert "run is damaged, its weights do not fit its config.json" in complaint(capfd, "sample", "run")
    config = (run / "config.json").read_text()
    (run / "config.json").write_text("{}")
    assert "run/config.json is damaged: it describes no model." in complaint(capfd, "sample", "run")
    (run / "config.json").write_text(config)
    (run / "model.safetensors").unlink()
    assert "run has no model.safetensors yet" in complaint(capfd, "sample", "run")
    (run / "config.json").write_text("not json")
    assert "config.json cannot be read" in complaint(capfd, "sample", "run")


def test_resume_takes_no_other_option(run, capfd):
    line = complaint(capfd, "train", "--resume", "run", "--steps", "9")
    assert "--resume takes its settings from run/config.json; drop the other options (but --devices," in line


def test_load_and_sample_never_open_the_checkpoint_folder(run, monkeypatch):
    (run / "checkpoint" / "step-000000009-0123456789abcdef.pt").write_bytes(b"poison")
    (run / "checkpoint" / ".metadata").write_bytes(b"poison")
    opened = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    dnt.load("run")
    dnt.sample("run")
    assert any("config.json" in path for path in opened) and not any("checkpoint" in path for path in opened)


def test_saved_models_load_with_the_same_weights_and_configuration(workplace):
    own = dnt.Placement(attn=dnt.Slots(mid=True, skip=0.5), mlp=dnt.Slots(pre=True), qk=True)
    for placement in ("post-ln", own):
        model = tiny_model(placement=placement, tie_embeddings=placement == "post-ln")
        dnt.save(model, "folder")
        loaded = dnt.load("folder")
        assert loaded.config == model.config and not loaded.training
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
        assert (loaded.head.weight is loaded.tokens.weight) == model.config.tie_embeddings


def test_list_shows_every_row_of_every_table_with_formula_and_source(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    shown = capfd.readouterr().out
    for name in (*dnt.PLACEMENTS, *dnt.NORMS, *dnt.OPTIMIZERS, *dnt.GPT_SIZES, *dnt.VIT_SIZES):
        assert name in shown
    assert (
        "x = N(embed); x + N(attn_qk(N(x))); x + N(mlp(x)); head(N(x))" in shown
        and "w <- (1 - lr wd) w - lr m" in shown
    )
    assert all(placement.source for placement in PLACEMENTS.values())
    for file, table, real in (("nn/norms.py", "NORMS", dnt.NORMS), ("optim/factory.py", "OPTIMIZERS", dnt.OPTIMIZERS)):
        assert {name: node.name for name, node in definitions(file, table).items()} == {
            name: entry.__name__ for name, entry in real.items()
        }
        assert all(all(described(node)) for node in definitions(file, table).values())


def test_data_says_what_is_in_it(workplace, capfd):
    assert main(["data", "words.txt"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    text = Path("words.txt").read_bytes()
    assert shown["sha256"] == hashlib.sha256(text).hexdigest() and shown["vocab_size"] == "256"
    assert sum(ast.literal_eval(shown["tokens"]).values()) == len(text)


def test_data_says_what_images_there_are_and_which_were_left_out(workplace, capfd):
    small_corpora()
    for i in range(200):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(f"photos/{('cat', 'dog')[i % 2]}/more{i}.png")
    Path("photos/cat/torn.png").write_bytes(Path("photos/cat/0.png").read_bytes()[:40])
    assert main(["data", "photos", "--images", "--image-size", "16"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    assert shown["classes"] == "2" and shown["channels"] == "3" and shown["image_size"] == "16"
    assert ast.literal_eval(shown["images"]) == {"train": 176, "validation": 22, "test": 22} and shown["broken"] == "1"
    mean = ast.literal_eval(shown["normalization"])["mean"]
    assert mean == pytest.approx(dnt.prepare_images("photos", image_size=16).train.mean) and len(mean) == 3
    assert shown["left"].startswith("out      cat/torn.png: ")
    assert main(["data", "digits"]) == 0
    assert "images        {'train': 1439, 'validation': 179, 'test': 179}" in capfd.readouterr().out
    refused = {
        "have several sizes; give the side to bring them to": ["photos", "--images"],
        "--tokenizer says nothing to images; drop it.": ["digits", "--tokenizer", "char"],
        "--image-size says nothing to text (without --images); drop it.": ["words.txt", "--image-size", "8"],
        "no data at 'photo'. Did you mean 'photos'?": ["photo", "--images"],
        "'words.txt' is no image data; give a folder": ["words.txt", "--images"],
    }
    for message, arguments in refused.items():
        assert message in complaint(capfd, "data", *arguments)


@pytest.mark.parametrize("command", ["train", "compare", "train --dry-run"])
def test_a_vit_without_images_is_one_line(workplace, capfd, command):
    line = complaint(capfd, *command.split(), "--model", "vit-tiny", "--out", "bad")
    assert line == "dnt: vit-tiny reads images; give --data: 'digits', a folder, parquet (docs/images.md)."
    assert not Path("bad").exists()


def test_python_m_dnt_is_the_command(workplace):
    child = subprocess.run([sys.executable, "-m", "dnt", "sample", "no"], capture_output=True, text=True, check=False)
    assert child.returncode == 2 and child.stderr == "dnt: no is not a run folder: it has no config.json.\n"


def test_a_diverging_run_exits_with_1_and_one_line(workplace, capfd):
    arguments = ["train", "--data", "words.txt", *TINY, "--steps", "60", "--out", "run", "--clip", "0", "--placement"]
    assert main([*arguments, "pre-ln", "--lr", "1e6"]) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("dnt: step ") and "Likely causes: too high a learning rate" in line


def test_public_fit_and_command_line_train_the_same_weights(workplace):
    arguments = [
        "train",
        "--data",
        "words.txt",
        *TINY,
        "--steps",
        "8",
        "--lr",
        "0.1",
        "--weight-decay",
        "1e-3",
        "--out",
        "cli",
    ]
    assert main(arguments) == 0
    model = tiny_model()
    data = dnt.prepare("words.txt", context=16)
    dnt.fit(model, data, tiny_msgdw(model), out="python", **OPTIONS)
    loaded = dnt.load("cli")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert os.path.exists("cli/tensorboard") and dnt.Run(Path("cli")).end["test"] == dnt.Run(Path("python")).end["test"]
