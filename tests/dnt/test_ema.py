"""The exponential moving average of the weights: what it is, who sees it, and that it survives a stop."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dnt
from dnt.cli import main
from dnt.loop import Loop
from dnt.optim.schedule import cosine
from tests.conftest import OPTIONS, TINY, tiny_model, tiny_msgdw
from tests.dnt.test_cli import complaint
from tests.dnt.test_parallel import SETTING, finish, losses, run_all, start, weights


def fit(out: str, **options) -> tuple[dnt.GPT, dnt.Run]:
    model = tiny_model(dropout=options.pop("dropout", 0.0))
    data = dnt.prepare("words.txt", context=16)
    return model, dnt.fit(model, data, tiny_msgdw(model), out=out, **OPTIONS | options)


def test_the_average_weighs_the_weights_after_each_step_by_their_age(workplace):
    """sum_i ema^(t - i) w_i / sum_i ema^(t - i), over the weights w_1 ... w_t of a loop written out."""
    model, _ = fit("run", ema=0.7, clip=0.5, eval_every=3)
    slow, data = tiny_model(), dnt.prepare("words.txt", context=16)
    optimizer, seen = tiny_msgdw(slow), []
    for step in range(8):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * cosine(step, 8, 2, 0.1)
        optimizer.zero_grad()
        slow.loss(*data.train.batch(0, step, 4)).backward()
        torch.nn.utils.clip_grad_norm_(slow.parameters(), 0.5)
        optimizer.step()
        seen.append({name: p.detach().clone() for name, p in slow.named_parameters()})
    shares = torch.tensor([0.7 ** (8 - i) for i in range(1, 9)])
    saved = load_file("run/model.safetensors")
    for name, p in model.named_parameters():
        average = torch.stack([weights[name] for weights in seen], -1) @ (shares / shares.sum())
        torch.testing.assert_close(saved[name], average, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(p.detach(), seen[-1][name], rtol=1e-5, atol=1e-6)  # the model itself goes on


def test_evaluations_are_of_the_average_and_training_does_not_see_it(workplace):
    plain, _ = fit("plain", eval_every=3)
    averaged, run = fit("averaged", eval_every=3, ema=0.9)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), averaged.parameters(), strict=True))
    assert dnt.Run(Path("plain")).rows("train")[-1]["loss"] == run.rows("train")[-1]["loss"]
    assert dnt.Run(Path("plain")).end["state_bytes"] == run.end["state_bytes"]
    data, loaded = dnt.prepare("words.txt", context=16), dnt.load("averaged")
    for split in ("validation", "test"):
        total = count = 0
        for x, y in getattr(data, split).whole(4):
            targets = int((y >= 0).sum())
            total, count = total + loaded.loss(x, y).item() * targets, count + targets
        assert run.end[split] == pytest.approx(total / count, rel=1e-5)
        assert run.end[split] != dnt.Run(Path("plain")).end[split]


def test_a_stopped_run_resumes_to_a_bit_identical_average(workplace):
    options = {"ema": 0.9, "dropout": 0.1, "checkpoint_every": 3}
    _, whole = fit("whole", **options)
    real = Loop.train_step
    try:
        Loop.train_step = lambda self: (_ for _ in ()).throw(RuntimeError) if self.step == 5 else real(self)
        with pytest.raises(RuntimeError):
            fit("half", **options)
    finally:
        Loop.train_step = real
    _, half = fit("half", resume=True, **options)
    assert torch.equal(weights("half"), weights("whole")) and half.end["test"] == whole.end["test"]
    with pytest.raises(ValueError, match=r"in its training, ema was 0\.9 and is now 0\.99"):
        fit("half", resume=True, **options | {"ema": 0.99})


def test_one_process_and_two_have_the_same_average_and_go_on_from_each_others(workplace):
    dnt.prepare("words.txt", context=16)
    shared = [*SETTING, "--lr", "0.03", "--ema", "0.8", "--eval-every", "3"]
    ways = {"one": [], "fsdp": ["--devices", "2", "--strategy", "fsdp"]}
    run_all(*([*shared, *way, "--out", name] for name, way in ways.items()))
    [line] = finish(start(*shared, *ways["fsdp"], "--out", "ddp", rank=1, name="SIGTERM", step=7), status=130)
    assert "stopped after step 7" in line
    run_all(["--resume", "ddp", "--devices", "2", "--strategy", "ddp"])
    for name in (*ways, "ddp"):
        assert losses(name)[-2:] == pytest.approx(losses("one")[-2:], abs=1e-5), name
        torch.testing.assert_close(weights(name), weights("one"), rtol=0, atol=1e-5)


def test_a_decay_that_is_none_is_named_and_a_dry_run_counts_the_average(workplace, capfd):
    assert "ema is 1.0; it must be at least 0 (none) and less than 1" in complaint(capfd, "train", *TINY, "--ema", "1")
    assert "ema is nan" in complaint(capfd, "train", *TINY, "--ema", "nan")
    held = []
    for ema in ("0", "0.999"):
        assert main(["train", "--dry-run", "--model", "gpt2-small", "--tokenizer", "gpt2", "--ema", ema]) == 0
        shown = capfd.readouterr().out
        held.append(float(shown.split("memory")[1].split()[0]))
        assert ("average of the weights 0.999" in shown) == (ema != "0")
    assert held[1] / held[0] == pytest.approx(16 / 12, abs=0.01)  # mSGDW: 4 bytes each of weight, gradient, momentum
