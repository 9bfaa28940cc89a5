"""`dnt inspect` on everything it takes; its page and its tables; what it says of hand-made numbers; each error."""

import json
import math
import re
import sys
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch
import transformers
from pyarrow import parquet
from rich.console import Console

import dnt
from dnt import inspection, loop
from dnt.cli import main
from dnt.report.findings import NOTICED, short
from dnt.report.inspection import Inspection
from dnt.settings import InspectSettings
from dnt.subjects import find_subject
from tests.conftest import TINY, tiny_model
from tests.dnt.test_cli import complaint

QUICK = ["--batch-size", "2", "--tokens", "8", "--singular-values", "2"]
FUNCTIONS = """
import torch
from torch import nn
import torch.nn.functional as F

def loss(model, x, y):
    return F.cross_entropy(model(x), y)

def mlp():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 5))
    return model, ((torch.randn(4, 20), torch.randint(5, (4,))) for _ in range(64)), loss

def number(): return 3
def swapped(): return loss, [], nn.Linear(2, 2)
def bare(): return nn.Linear(2, 2), [torch.randn(3, 2)], loss
def frozen(): return nn.Linear(2, 2).requires_grad_(False), [], loss
def empty(): return nn.Linear(2, 2), [], loss
def needs(more): return more
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Small Jacobians and few resamples: how exact the numbers are is tested where they are computed."""
    few = {"exact": 64, "resamples": 2}
    monkeypatch.setattr(inspection, "diagnose", partial(inspection.diagnose, **few))
    monkeypatch.setattr(loop, "IN_TRAINING", loop.IN_TRAINING | few)


@pytest.fixture
def run(workplace) -> Path:
    options = ["--data", "words.txt", "--tokenizer", "char", *TINY, "--steps", "4", "--eval-every", "4"]
    assert main(["train", *options, "--diagnose-every", "2", "--out", "run"]) == 0
    return Path("run")


@pytest.fixture
def gpt2(workplace) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained("gpt2")
    return Path("gpt2")


@pytest.fixture
def functions(workplace, monkeypatch) -> None:
    """In a module of the current folder, of a new name each time: what was imported stays."""
    Path("mine.py").write_text(FUNCTIONS)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def inspect(capfd, *arguments: str) -> str:
    capfd.readouterr()
    assert main(["inspect", *arguments]) == 0
    return capfd.readouterr().out


def self_contained(page: Path) -> str:
    """Its text; it loads nothing, from anywhere."""
    text = page.read_text()
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.S)  # plotly's own names servers of maps
    assert not re.search(r"""\b(src|href)\s*=|url\(|@import|<link|<script""", outside)
    assert not re.search(r"<script[^>]*\ssrc", text)
    return outside


def same(row: dict, other: dict) -> bool:
    """What parquet gives back; nan is nan."""
    return json.dumps(row) == json.dumps(other)


def test_a_run_is_read_at_its_last_checkpoint_on_its_own_data_and_drawn_along_its_training(run, capfd):
    shown = inspect(capfd, "run", *QUICK)
    assert "page: run/inspection/index.html" in shown and "W_q" in shown
    page = self_contained(Path("run/inspection/index.html"))
    assert "Along training" in page and "step: 4" in page and "data: words" in page and "placement: dnt" in page
    found = find_subject("run", InspectSettings(batch_size=2))
    [(x, y)] = found.batches
    expected = next(dnt.prepare("words.txt", "char", 16).validation.whole(2))
    assert torch.equal(x, expected[0]) and torch.equal(y, expected[1]) and not found.model.training
    assert [row["step"] for row in found.run.rows("diagnosis")] == [0, 2, 4]


def test_a_run_says_the_own_rate_of_each_matrix_that_a_norm_hides(run):
    """lr / ||W||^2 of all six in DNT, and of no embedding."""
    rows = dnt.inspect_model(run, batch_size=2, jacobians=False).tables["weights"]
    weights = {name: p.detach() for name, p in dnt.load(run).named_parameters()}
    lr = dnt.Run(run).config["optimizer"]["groups"][0]["lr"]
    out = next(row for row in rows if row["name"] == "blocks.1.attn.f.out.weight")
    assert out["effective_step"] == pytest.approx(lr / float(weights[out["name"]].square().sum()), rel=1e-5)
    assert {row["role"] for row in rows if row["effective_step"]} == {"q", "k", "v", "o", "1", "2"}


def test_parquet_files_are_the_tables(run):
    Path("longer.txt").write_text(Path("words.txt").read_text() * 3)
    made = dnt.inspect_model("run", data="longer.txt", batch_size=2, tokens=8, out="elsewhere", noise=64, batches=2)
    assert made.page == Path("elsewhere/index.html") and made.page.exists()
    assert all(made.tables.values()) and set(made.tables) >= {"gradients", "noise", "jacobians", "attention"}
    for name, rows in made.tables.items():
        read = parquet.read_table(f"elsewhere/{name}.parquet").to_pylist()
        assert len(read) == len(rows) and all(map(same, read, rows)), name
    assert not list(Path("elsewhere").glob("*.unfinished"))
    page = made.page.read_text()
    assert all(f"{name}.parquet" in page for name in made.tables)


def test_a_saved_model_reads_random_tokens_that_the_seed_fixes(workplace, capfd):
    dnt.save(tiny_model(placement="pre-ln"), "saved")
    shown = inspect(capfd, "saved", *QUICK)
    assert "page: inspections/saved/index.html" in shown
    page = self_contained(Path("inspections/saved/index.html"))
    assert "data: random" in page and "Along training" not in page and "placement: pre-ln" in page
    batches = [next(iter(find_subject("saved", InspectSettings(seed=seed)).batches)) for seed in (0, 0, 1)]
    assert torch.equal(batches[0][0], batches[1][0]) and not torch.equal(batches[0][0], batches[2][0])


def test_a_named_size_is_measured_at_its_start(workplace, capfd):
    inspect(capfd, "gpt-tiny", "--placement", "s3", "--context", "8", "--no-jacobians", "--batch-size", "1")
    page = self_contained(Path("inspections/gpt-tiny-s3/index.html"))
    assert "Singular values of each block" not in page and "Weights" in page and "placement: s3" in page


def test_a_named_size_has_the_vocabulary_of_the_data_and_reads_their_validation_split(workplace):
    subject = find_subject("gpt-tiny", InspectSettings(context=8, data="words.txt", tokenizer="char", batch_size=2))
    data = dnt.prepare("words.txt", "char", 8)
    assert subject.model.config.vocab_size == data.vocab_size < 256 and subject.model.config.context == 8
    [(x, _)] = subject.batches
    assert torch.equal(x, next(data.validation.whole(2))[0])


def test_a_timm_model_by_name(workplace, capfd):
    shown = inspect(capfd, "timm:test_vit", "--no-jacobians", "--batch-size", "1")
    assert "page: inspections/timm-test_vit/index.html" in shown
    self_contained(Path("inspections/timm-test_vit/index.html"))


def test_a_folder_of_transformers(gpt2, capfd):
    inspect(capfd, "gpt2", *QUICK)
    assert "model: GPT2LMHeadModel" in self_contained(Path("inspections/gpt2/index.html"))
    subject = find_subject("gpt2", InspectSettings(batch_size=3, context=5))
    (x, y), *_ = subject.batches
    assert x.shape == y.shape == (3, 5)
    expected = torch.nn.functional.cross_entropy(subject.model(x).logits.flatten(0, 1), y.flatten())
    assert torch.equal(subject.loss(subject.model, x, y), expected)


def test_what_transformers_wrote_in_half_precision_is_measured_in_float32(workplace):
    sizes = {"vocab_size": 31, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).bfloat16().save_pretrained("half")
    assert {p.dtype for p in find_subject("half", InspectSettings()).model.parameters()} == {torch.float32}


def test_a_vit_of_transformers_reads_random_pixels(workplace):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3)
    transformers.ViTForImageClassification(config).save_pretrained("vit")
    subject = find_subject("vit", InspectSettings(batch_size=2))
    (x, y), *_ = subject.batches
    assert x.shape == (2, 3, 8, 8) and y.shape == (2,)
    assert subject.loss(subject.model, x, y).shape == ()


def test_what_dnt_export_wrote_for_transformers_is_known(run):
    assert main(["export", "run", "exported"]) == 0
    subject = find_subject("exported", InspectSettings())
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(subject.model(tokens), dnt.load("run")(tokens))


def test_a_function_of_a_module_here_without_blocks(functions, capfd):
    shown = inspect(capfd, "mine:mlp", "--noise", "64", "--batches", "3")
    assert "page: inspections/mine-mlp/index.html" in shown
    page = self_contained(Path("inspections/mine-mlp/index.html"))
    assert "batch: 3 x 4" in page and "residual stream" not in page and "Jacobian" not in page
    assert "Entries of the gradient" in page and Path("inspections/mine-mlp/noise.parquet").exists()


def test_a_name_is_escaped_on_the_page(tmp_path):
    made = hand_made(tmp_path, name="<script>alert(1)</script>", facts={"data": "<b>bold</b>"})
    made.write()
    page = made.page.read_text()
    assert "<script>alert(1)" not in page and "<b>bold" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "&lt;b&gt;bold" in page


def test_statements_are_a_table_of_the_page(functions, monkeypatch, tmp_path):
    monkeypatch.setattr(inspection, "statements", lambda: [])
    monkeypatch.setattr(inspection, "summary", lambda rows: [{"placement": "dnt", "W_q, W_k": "0"}])
    made = dnt.inspect_model("mine:mlp", statements=True)
    page = self_contained(made.page)
    assert "What each placement does not see" in page and "<th>W_q, W_k</th>" in page


# --- what it says ---------------------------------------------------------------------------------------------------


def test_findings_leave_out_roles_that_carry_nothing(tmp_path):
    made = hand_made(tmp_path)
    for row in made.tables["gradients"]:
        row["norm_share"] = {"q": 0.996, "bias": 0.004}.get(row["name"], row["norm_share"])
    assert made.findings()[0].startswith("The gradient's squared norm lies in W_q 100%. The parameter")


def gradient_row(level: str, name: str, **fields) -> dict:
    row = {"level": level, "name": name, "role": name, "layer": None, "count": 100, "zeros": 0, "rms": 0.1}
    row |= {"largest": 1.0, "median": 0.1, "max_to_median": 10.0, "kurtosis": 3.0, "top_share": 0.08}
    row |= {"histogram": [], "lowest_decade": -14, "bins_per_decade": 8, "zero_share": 0.0, "norm_share": 1.0}
    return row | fields


def scale_row(what: str, norm: str, change: float) -> dict:
    return {"what": what, "norm": norm, "factor": 2.0, "loss": 3.0, "times": change, "over": 0.0, "change": change}


def index_row(how: str, value: float, low: float, high: float) -> dict:
    return {"name": "blocks", "index": "hill", "how": how, "value": value, "low": low, "high": high}


def hand_made(folder: Path, name: str = "made", facts: dict | None = None, **tables) -> Inspection:
    gradients = [gradient_row("part", "a", norm_share=0.75, count=25), gradient_row("part", "b", norm_share=0.25)]
    gradients += [gradient_row("role", "q", norm_share=0.75), gradient_row("role", "bias", norm_share=0.25)]
    gradients += [gradient_row("all", "all", count=125, top_share=0.5, max_to_median=1234.5)]
    others = ("tails", "shares", "noise", "scales", "jacobians", "weights", "stream", "attention")
    return Inspection(name, facts or {}, {"gradients": gradients} | {key: [] for key in others} | tables, folder)


def test_findings_name_what_carries_the_gradient(tmp_path):
    carried, top, *none = hand_made(tmp_path).findings()
    assert carried.startswith("The gradient's squared norm lies in W_q 75%, bias 25%.")
    assert "most of it is a (75% of it, in 20.0% of the entries)" in carried
    assert top.startswith("50% of the squared norm is in the largest 1%") and "1,234 times the median" in top
    assert none == []


@pytest.mark.parametrize(("unused", "more"), [(1, ""), (6, ", ...")])
def test_findings_name_parameters_without_a_gradient(tmp_path, unused, more):
    made = hand_made(tmp_path)
    made.tables["gradients"][:0] = [gradient_row("part", f"u{i}", zeros=100, norm_share=0.0) for i in range(unused)]
    names = ", ".join(f"u{i}" for i in range(min(unused, 5)))
    assert made.findings()[2] == f"No gradient at all in {unused} of {unused + 2} parameters: {names}{more}."


def test_findings_name_the_norm_that_would_hide_what_the_loss_sees(tmp_path):
    scales = [scale_row("W_q, W_k", "QKNorm", 2 * NOTICED), scale_row("x_0", "InputNorm", NOTICED)]
    scales += [scale_row("W_v, W_o", "MidNorm", NOTICED / 2), scale_row("W_1, W_2", "MidNorm", 0.0)]
    *_, seen, edge, hidden = hand_made(tmp_path, scales=scales).findings()
    assert seen == (
        "The loss sees the scale of W_q, W_k: it changes by 0.002 nats at a factor of 2. QKNorm is what hides it."
    )
    ffn = [scale_row("W_1, W_2", "MidNorm after the feed-forward", 1.0)]
    said = hand_made(tmp_path, scales=ffn).findings()[-1]  # a model with gelu may have it, and see the scale of W_1
    assert said.endswith("MidNorm after the feed-forward hides that of W_2, and that of W_1 if the activation is relu.")
    assert "scale of x_0" in edge and "InputNorm is what hides it" in edge
    assert hidden.startswith("The loss hardly sees the scale of W_v, W_o; W_1, W_2 (less than 0.001 nats)")


@pytest.mark.parametrize(
    ("levelled", "verdict"),
    [
        ((4.0, 3.5, 4.5), "unequal scales make a part of the tail."),
        ((2.5, 1.5, 3.5), "is not clear, since the intervals overlap."),
        ((1.0, 0.9, 1.1), "unequal scales hide a part of the tail."),
    ],
)
def test_findings_compare_the_tail_with_and_without_unequal_scales(tmp_path, levelled, verdict):
    shares = [{"name": "blocks", "parameters": 0.4, "rows": 0.3, "columns": 0.2, "entries": 0.1, "variance": 1.0}]
    tails = [index_row("raw", 2.0, 1.8, 2.2), index_row("levelled", *levelled)]
    [found] = hand_made(tmp_path, tails=tails, shares=shares).findings()[2:]
    assert "of 2.00 [1.80, 2.20], and of" in found and verdict in found
    assert "40% lies between matrices, 30% between rows, 20% between columns, 10% within." in found
    assert hand_made(tmp_path, tails=tails[:1], shares=shares).findings()[2:] == []


def test_findings_name_the_block_that_stretches_most_and_how_the_stream_grows(tmp_path):
    jacobians = [{"layer": i, "what": "block", "largest": float(i % 3)} for i in range(4)]
    jacobians += [{"layer": 0, "what": "mlp", "largest": 99.0}, {"layer": None, "what": "end to end", "largest": 7.0}]
    stream = [{"layer": i, "what": "stream", "mean": 1.0 + i, "of_x_0": 1 - i / 4} for i in range(3)]
    stretches, grows = hand_made(tmp_path, jacobians=jacobians, stream=stream).findings()[2:]
    assert stretches.startswith("Block 2 stretches most") and stretches.endswith("is 2, the whole stack 7.")
    assert grows == "The residual stream goes from an RMS of 1 to 3; its cosine with x_0 is 0.50 at the end."
    stream[-1]["of_x_0"] = None
    assert hand_made(tmp_path, stream=stream).findings()[-1] == "The residual stream goes from an RMS of 1 to 3."


def test_the_table_fits_a_line_and_shows_numbers_that_are_not_there(tmp_path):
    made = hand_made(tmp_path)
    made.tables["gradients"][-1] |= {"kurtosis": math.nan, "max_to_median": math.inf}
    console = Console(width=160, record=True, file=StringIO())
    console.print(made.table())
    lines = console.export_text().splitlines()
    assert len(lines) == 3 + 3 + 1, "no row is broken"
    assert "nan" in lines[-2] and "inf" in lines[-2] and "W_q" in lines[3] and "bias" in lines[4]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.0, "0"), (1234.5, "1,234"), (-5e5, "-500,000"), (2e9, "2e+09"), (0.12345, "0.123"), (7, "7"),
     (math.nan, "nan"), (math.inf, "inf"), ("0 (x)", "0 (x)")],
)  # fmt: skip
def test_numbers_are_shown_short(value, text):
    assert short(value) == text


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt-tinny"], "unknown model (and no folder of this name is here) 'gpt-tinny'. Did you mean 'gpt-tiny'?"),
        (["no/where"], "there is no folder no/where; give a run, a folder of transformers or a name."),
        (["."], ". is not a run or a folder of transformers: it has no config.json."),
        (["gpt-tiny", "--placement", "ddnt"], "unknown placement 'ddnt'. Did you mean 'dnt'?"),
        (["gpt-tiny", "--noise", "63"], "noise is 63; of fewer than 64 batches it says little. Give 64 or more, or 0."),
        (["gpt-tiny", "--noise", "-1"], "noise is -1"),
        (["gpt-tiny", "--batches", "0"], "batches is 0; it must be at least 1."),
        (["gpt-tiny", "--context", "0"], "context is 0; it must be at least 1."),
        (["gpt-tiny", "--pretrained"], "--pretrained says nothing to a size of GPT; drop it."),
        (["gpt-tiny", "--data", "nowhere.txt"], "no data at 'nowhere.txt'"),
        (["vit-tiny", "--context", "8"], "--context says nothing to a size of ViT; drop it."),
        (["timm:test_vitt"], "unknown timm model 'test_vitt'. Did you mean 'test_vit'?"),
        (["timm:test_vit.nope"], "timm:test_vit.nope: Invalid pretrained tag (nope)"),
        (["timm:test_vit", "--data", "digits"], "--data says nothing to a timm model; drop it."),
        (["mine:number"], "mine:number must take nothing and return (model, batches, loss_fn) (cannot unpack"),
        (["mine:needs"], "mine:needs must take nothing and return (model, batches, loss_fn) (needs() missing 1"),
        (["mine:swapped"], "return (model, batches, loss_fn), not a function and a Linear."),
        (["mine:bare"], "a batch is the tuple of what loss_fn is given, not a Tensor."),
        (["mine:frozen"], "mine:frozen: its model has no parameters that train, hence no gradient."),
        (["mine:empty"], "mine:empty gives 0 batches, 1 were asked for; take fewer."),
        (["mine:mlp", "--noise", "65"], "mine:mlp gives 64 batches, 65 were asked for; take fewer."),
        (["mine:mlp", "--batch-size", "2"], "--batch-size says nothing to a function; drop it."),
        (["mine:nothing"], "module 'mine' has no attribute 'nothing'; give MODULE:FUNCTION that can be imported"),
        (["nomodule:f"], "No module named 'nomodule'; give MODULE:FUNCTION that can be imported from here."),
        ([":f"], ":f: Empty module name; give MODULE:FUNCTION"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line_with_the_fix(functions, capfd, arguments, message):
    assert message in complaint(capfd, "inspect", *arguments)
    assert not Path("inspections").exists()


def test_what_does_not_fit_a_run_is_named(run, capfd):
    assert "--pretrained says nothing to a run; drop it." in complaint(capfd, "inspect", "run", "--pretrained")
    assert "--placement says nothing to a run" in complaint(capfd, "inspect", "run", "--placement", "s2")
    line = complaint(capfd, "inspect", "run", "--noise", "64", "--batch-size", "100")
    assert "batches of 100, 64 were asked for; take fewer, or smaller ones." in line
    text = Path("words.txt").read_text()
    Path("other.txt").write_text(text.replace("k", "q"))
    assert "these data have another alphabet than run" in complaint(capfd, "inspect", "run", "--data", "other.txt")
    Path("more.txt").write_text(text + "0123456789" * 500)
    line = complaint(capfd, "inspect", "run", "--data", "more.txt")
    assert re.search(r"vocab_size is \d+ in run and \d+ with these data; give --data that fit\.", line)
    model = tiny_model()
    dnt.save(model, "saved")
    line = complaint(capfd, "inspect", "saved", "--data", "words.txt")
    assert "saved was made by dnt.save and does not say how to read data; give MODULE:FUNCTION that does." in line
    (run / "model.safetensors").unlink()
    assert "run has no model.safetensors yet" in complaint(capfd, "inspect", "run")


def last_line(capfd, *arguments: str) -> str:
    """Behind the bar that transformers draws while it loads weights; exit status 2."""
    capfd.readouterr()
    assert main(arguments) == 2
    return capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["NewLMHeadModel"], "model_type": "new"}, "names the class 'NewLMHeadModel', which is no"),
        ({"architectures": None}, "names the class '', which is no model of transformers"),
        ({"architectures": ["GPT2Tokenizer"]}, "names the class 'GPT2Tokenizer', which is no model"),
        ({"architectures": ["pipeline"]}, "names the class 'pipeline', which is no model"),
        ({"architectures": ["GPT2Model"]}, "gpt2 is a GPT2Model, which predicts no tokens; give MODULE:FUNCTION"),
    ],
)
def test_a_folder_that_transformers_does_not_know_is_named(gpt2, capfd, change, message):
    path = gpt2 / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in last_line(capfd, "inspect", "gpt2")


def test_a_folder_of_transformers_that_is_damaged_is_named(gpt2, capfd):
    assert last_line(capfd, "inspect", "gpt2", "--context", "17") == "dnt: --context is 17; gpt2 has 16 positions."
    weights = gpt2 / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert complaint(capfd, "inspect", "gpt2").startswith("dnt: gpt2: ")
    weights.unlink()
    assert complaint(capfd, "inspect", "gpt2").startswith("dnt: gpt2: ")


def test_code_in_a_folder_is_not_run(gpt2, capfd):
    """Its auto_map names code beside it, which trust_remote_code alone would run."""
    path = gpt2 / "config.json"
    (gpt2 / "evil.py").write_text("open('executed', 'w')\nclass Evil: pass\n")
    found = json.loads(path.read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    path.write_text(json.dumps(found | {"architectures": ["Evil"]}))
    complaint(capfd, "inspect", "gpt2")
    path.write_text(json.dumps(found | {"architectures": ["AutoModelForCausalLM"]}))
    complaint(capfd, "inspect", "gpt2")
    assert not Path("executed").exists()
