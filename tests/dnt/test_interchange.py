"""GPT-2 of transformers and back, and GPT as a transformers model; each against transformers itself."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from tokenizers import pre_tokenizers

import dnt
from dnt.cli import main
from dnt.data.tokenizers import ByteTokenizer, CharTokenizer, FileTokenizer, GPT2Tokenizer, Tokenizer, learn_bpe
from dnt.interchange.gpt2 import DEFAULTS
from dnt.interchange.huggingface import transformers_tokenizer
from dnt.interchange.tokenizer import spelling
from tests.conftest import TINY
from tests.dnt.test_blocks import MODERN
from tests.dnt.test_cli import complaint
from tests.dnt.test_gpt import GPT2, build, randomize

OWN = dnt.Placement(attn=dnt.Slots(mid=True, skip=0.5), mlp=dnt.Slots(pre=True), qk=True)
KINDS = [{}, {"placement": "pre-ln", "positions": "rope"}, MODERN, {"placement": OWN, "tie_embeddings": False}]
kinds = pytest.mark.parametrize("fields", KINDS, ids=["dnt", "rope", "modern", "own"])
SMALL = {"vocab_size": 13, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 4}
GREEDY = {"do_sample": False, "pad_token_id": 0}


def gpt2(**fields) -> transformers.GPT2LMHeadModel:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL | fields))
    randomize(model.eval()).tie_weights()
    return model


def same_tensors(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def rewrite(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


# --- GPT-2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "relu", "n_inner": 24},
        {"activation_function": "gelu", "tie_word_embeddings": False},
        {"n_embd": 44, "n_inner": 29, "layer_norm_epsilon": 1e-3},
    ],
    ids=str,
)
def test_gpt2_equals_transformers_and_comes_back_bit_for_bit(fields, tmp_path):
    theirs = gpt2(**fields)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = dnt.load_gpt2(tmp_path / "theirs")
    assert not ours.training and ours.config.dropout == 0.1
    tokens = torch.randint(0, 13, (3, 8))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    assert same_tensors(dnt.load(tmp_path / "theirs"), ours)

    dnt.save_gpt2(ours, tmp_path / "again")
    again, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert same_tensors(again, theirs) and not any(report.values())
    torch.testing.assert_close(again(tokens).logits, theirs(tokens).logits, rtol=1e-5, atol=1e-6)
    matters = DEFAULTS.keys() - {"activation_function"}  # of two names of one function, GPT-2's own is written
    assert all(getattr(again.config, name) == getattr(theirs.config, name) for name in matters)
    assert dnt.load(tmp_path / "again").config == ours.config


def test_gpt2_of_the_first_releases_loads_without_prefix_head_or_defaults_and_with_buffers(tmp_path):
    theirs = gpt2()
    theirs.transformer.save_pretrained(tmp_path)
    tensors = tensors_of(tmp_path)
    assert "wte.weight" in tensors
    for i in range(2):
        tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8).tril(), f"h.{i}.attn.masked_bias": torch.tensor(-1e4)}
    write_tensors(tmp_path, tensors)
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"model_type": "gpt2"}))
    tokens = torch.randint(0, 13, (3, 8))
    torch.testing.assert_close(dnt.load(tmp_path)(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_widened_exactly(dtype, tmp_path):
    theirs = gpt2().to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = dnt.load_gpt2(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert torch.equal(ours.tokens.weight, theirs.transformer.wte.weight.float())
    assert torch.equal(ours.blocks[1].mlp.f.up.weight, theirs.transformer.h[1].mlp.c_fc.weight.float().T)


def test_shards_are_read_and_their_names_checked(tmp_path):
    theirs = gpt2()
    theirs.save_pretrained(tmp_path, max_shard_size="5KB")
    assert not (tmp_path / "model.safetensors").exists()
    dnt.save_gpt2(dnt.load(tmp_path), tmp_path / "again")
    assert same_tensors(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again"), theirs)

    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name, shard = next(iter(index["weight_map"].items()))
    for bad in ("../again/model.safetensors", "/etc/passwd", "sub/model.safetensors", "shard.bin"):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | {name: bad}}))
        with pytest.raises(ValueError, match=r"only \.safetensors files beside it are read"):
            dnt.load(tmp_path)
    path.write_text(json.dumps({"weight_map": {n: s for n, s in index["weight_map"].items() if n != name}}))
    with pytest.raises(ValueError, match="does not hold the tensors that model"):
        dnt.load(tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is damaged: it has no weight_map"):
        dnt.load(tmp_path)
    path.write_text(json.dumps(index))
    (tmp_path / shard).write_bytes(b"12345678")
    with pytest.raises(ValueError, match=f"{shard} cannot be read"):
        dnt.load(tmp_path)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (dnt.load, r"only pytorch_model.bin, a pickle, .*save_pretrained\(NEW_FOLDER\)"),
        (dnt.load_gpt2, r"only pytorch_model.bin, a pickle, .*save_pretrained\(NEW_FOLDER\)"),
        (dnt.DNTForCausalLM.from_pretrained, "no file named model.safetensors"),
    ],
)
def test_a_pickle_is_refused_and_never_opened(load, message, tmp_path):
    class Poison:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    own = load == dnt.DNTForCausalLM.from_pretrained
    (dnt.DNTConfig(**vars(build().config)) if own else gpt2().config).save_pretrained(tmp_path)
    torch.save({"transformer.wte.weight": Poison()}, tmp_path / "pytorch_model.bin")
    with pytest.raises((ValueError, OSError), match=message):
        load(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt_neo"}, "is a 'gpt_neo' model; load_gpt2 reads 'gpt2' alone"),
        ({"scale_attn_by_inverse_layer_idx": True}, "idx is True, which dnt.GPT has not (it has False)"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is True"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False, which dnt.GPT has not (it has True)"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"activation_function": "silu"}, "activation_function is 'silu', which dnt.GPT has not (it has gelu_new, "),
        ({"attn_pdrop": 0.2}, "embd_pdrop 0.1, attn_pdrop 0.2, resid_pdrop 0.1; dnt.GPT has one rate"),
        ({"n_layer": 3}, "lacks the tensors transformer.h.2.attn.c_attn.bias"),
        ({"n_layer": 1}, "also has the tensors transformer.h.1.attn.c_attn.bias"),
        ({"n_positions": 9}, "transformer.wpe.weight has shape (8, 16), the model's is (9, 16)"),
        ({"n_inner": 32}, "transformer.h.0.mlp.c_fc.weight has shape (16, 64), the model's is (16, 32)"),
        ({"tie_word_embeddings": False}, "lacks the tensors lm_head.weight"),
    ],
)
def test_what_gpt_has_not_or_does_not_fit_is_one_line(fields, message, tmp_path):
    gpt2().save_pretrained(tmp_path)
    rewrite(tmp_path, **fields)
    with pytest.raises(ValueError) as error:
        dnt.load_gpt2(tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_fields_change_training_alone(tmp_path):
    gpt2(attn_pdrop=0.0).save_pretrained(tmp_path)
    config = dnt.load_gpt2(tmp_path, dropout=0.25, drop_path=0.5).config
    assert (config.dropout, config.drop_path) == (0.25, 0.5)
    with pytest.raises(ValueError, match=r"heads is fixed by the weights in .*; only dropout, drop_path, "):
        dnt.load_gpt2(tmp_path, heads=2)


def test_a_tied_head_that_differs_and_other_kinds_of_numbers_are_named(tmp_path):
    theirs = gpt2()
    theirs.save_pretrained(tmp_path)
    tensors = tensors_of(tmp_path)
    write_tensors(tmp_path, tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()})
    assert torch.equal(dnt.load(tmp_path).head.weight, theirs.lm_head.weight)
    write_tensors(tmp_path, tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1})
    with pytest.raises(ValueError, match=r"lm_head.weight is not transformer.wte.weight, but its config"):
        dnt.load(tmp_path)
    write_tensors(tmp_path, tensors | {"transformer.ln_f.bias": torch.zeros(16, dtype=torch.int8)})
    with pytest.raises(ValueError, match=r"transformer.ln_f.bias is torch.int8; save the model as float32"):
        dnt.load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"placement": "dnt"}, "placement is 'dnt', which GPT-2 has not (it has 'pre-ln')"),
        ({"norm": "rmsnorm"}, "norm is 'rmsnorm', which GPT-2 has not (it has 'layernorm')"),
        ({"activation": "swiglu"}, "activation is 'swiglu', which GPT-2 has not"),
        ({"bias": False}, "bias is False"),
        ({"positions": "rope"}, "positions is 'rope'"),
        ({"kv_heads": 2}, "kv_heads is 2, which GPT-2 has not (it has 4)"),
    ],
)
def test_a_model_that_is_no_gpt2_is_not_written_as_one(fields, message, tmp_path):
    with pytest.raises(ValueError) as error:
        dnt.save_gpt2(build(**GPT2 | fields), tmp_path / "folder")
    assert message in str(error.value) and not (tmp_path / "folder").exists()


def test_gpt2_defaults_are_those_of_transformers_and_a_placement_counts_by_its_formula(tmp_path):
    theirs = transformers.GPT2Config().to_dict()
    assert {name: theirs[name] for name in DEFAULTS} == DEFAULTS
    own = dnt.Placement(attn=dnt.Slots(pre=True), mlp=dnt.Slots(pre=True))
    dnt.save_gpt2(build(**GPT2 | {"placement": own}), tmp_path)
    assert dnt.load(tmp_path).config.placement == "pre-ln"


# --- DNTForCausalLM -------------------------------------------------------------------------------------------------


def wrapped(**fields) -> dnt.DNTForCausalLM:
    return dnt.DNTForCausalLM.from_dnt(randomize(build(**fields)))


@kinds
def test_saved_pretrained_models_are_the_same_for_auto_classes_and_for_dnt(fields, tmp_path):
    model = wrapped(**fields)
    model.save_pretrained(tmp_path)
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is dnt.DNTForCausalLM and not any(report.values()) and same_tensors(loaded, model)
    assert loaded.gpt.config == model.gpt.config
    assert (loaded.gpt.head.weight is loaded.gpt.tokens.weight) == model.gpt.config.tie_embeddings
    ours = dnt.load(tmp_path)
    assert same_tensors(ours, model.gpt) and ours.config == model.gpt.config and not ours.training
    assert transformers.AutoConfig.from_pretrained(tmp_path).hidden_size == 16


def test_a_fresh_model_is_initialized_as_gpt_and_what_a_file_lacks_is_drawn_and_reported(tmp_path):
    config = dnt.DNTConfig(**vars(build().config))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert same_tensors(model.gpt, build())
    model.save_pretrained(tmp_path)
    lost = "gpt.blocks.0.attn.f.out.weight"
    write_tensors(tmp_path, {name: t for name, t in tensors_of(tmp_path).items() if name != lost})
    loaded, report = dnt.DNTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {lost} and 0.015 < loaded.get_parameter(lost).std() < 0.025
    assert torch.equal(loaded.gpt.blocks[1].attn.f.out.weight, model.gpt.blocks[1].attn.f.out.weight)
    with pytest.raises(ValueError, match=f"lacks the tensors {lost}"):
        dnt.load(tmp_path)


def test_a_model_of_bfloat16_computes_and_generates_in_it(tmp_path):
    model = wrapped()
    model.save_pretrained(tmp_path)
    half = dnt.DNTForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    tokens = torch.randint(0, 13, (2, 8))
    logits = half(tokens).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(tokens).logits, rtol=0.1, atol=0.2)
    assert half.generate(tokens[:, :3], max_new_tokens=4, **GREEDY).shape == (2, 7)


@kinds
def test_logits_and_greedy_generation_equal_those_of_gpt(fields):
    model = wrapped(**fields)
    tokens = torch.randint(0, 13, (2, 3))
    assert torch.equal(model(tokens).logits, model.gpt(tokens))
    torch.testing.assert_close(model(tokens, logits_to_keep=1).logits, model.gpt(tokens)[:, -1:])
    greedy = model.generate(tokens, max_new_tokens=5, **GREEDY)
    assert torch.equal(greedy, model.gpt.generate(tokens, 5, temperature=0))
    assert torch.equal(greedy, model.generate(tokens, max_new_tokens=5, use_cache=False, **GREEDY))
    beams = [model.generate(tokens, max_new_tokens=5, num_beams=3, use_cache=use, **GREEDY) for use in (True, False)]
    assert torch.equal(*beams)


@kinds
def test_a_left_padded_batch_generates_what_each_prompt_does_alone(fields):
    model = wrapped(**fields)
    prompts = [torch.randint(0, 13, (1, length)) for length in (4, 1, 3)]
    padding = 99  # outside the vocabulary
    tokens = torch.cat([F.pad(prompt, (4 - prompt.shape[1], 0), value=padding) for prompt in prompts])
    batch = model.generate(tokens, attention_mask=tokens != padding, max_new_tokens=4, do_sample=False)
    for row, prompt in zip(batch, prompts, strict=True):
        alone = model.generate(prompt, max_new_tokens=4, do_sample=False)
        assert torch.equal(row[4 - prompt.shape[1] :], alone[0])


def test_loss_is_that_of_gpt2_for_masked_labels_and_any_number_of_items(tmp_path):
    theirs = gpt2()
    theirs.save_pretrained(tmp_path)
    model = dnt.DNTForCausalLM.from_dnt(tmp_path)
    tokens = torch.randint(0, 13, (3, 8))
    labels = tokens.masked_fill(torch.rand(3, 8) < 0.4, -100)
    for options in ({}, {"num_items_in_batch": 7}, {"num_items_in_batch": torch.tensor(5)}):
        expected = theirs(tokens, labels=labels, **options).loss
        torch.testing.assert_close(model(tokens, labels=labels, **options).loss, expected, rtol=1e-5, atol=1e-6)
    loss, logits = model(tokens, labels=labels, return_dict=False)
    torch.testing.assert_close(loss, model.gpt.loss(tokens[:, :-1], labels[:, 1:].where(labels[:, 1:] >= 0, -1)))
    assert logits.shape == (3, 8, 13)


@kinds
def test_gradients_with_activation_checkpointing_are_the_same(fields):
    model, tokens = wrapped(**fields).train(), torch.randint(0, 13, (3, 8))
    parameters = list(model.parameters())
    kept = torch.autograd.grad(model(tokens, labels=tokens).loss, parameters)
    model.activation_checkpointing_enable()
    assert model.gpt.recompute and model.is_activation_checkpointing
    again = torch.autograd.grad(model(tokens, labels=tokens, use_cache=True).loss, parameters)
    torch.testing.assert_close(again, kept)
    model.activation_checkpointing_disable()
    assert not model.gpt.recompute and not model.is_activation_checkpointing


def test_a_cache_is_filled_while_blocks_are_recomputed():
    model, tokens = wrapped().train(), torch.randint(0, 13, (2, 6))
    model.activation_checkpointing_enable()
    first = model(tokens[:, :4], use_cache=True)
    second = model(tokens[:, 4:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), model(tokens).logits)


def rows(count: int = 8) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    texts = torch.randint(0, 13, (count, 8))
    kept = torch.arange(8) < 3 + torch.arange(count)[:, None] % 5
    return [{"input_ids": text, "labels": text.where(k, -100)} for text, k in zip(texts, kept, strict=True)]


def trained(model, folder: Path, **options) -> list[float]:
    """The losses that Trainer logs."""
    arguments = transformers.TrainingArguments(
        str(folder), learning_rate=1e-2, lr_scheduler_type="constant", logging_steps=1, report_to="none", seed=0,
        use_cpu=True, save_strategy="no", disable_tqdm=True, max_grad_norm=0, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows())
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_trainer_lowers_the_loss_and_accumulates_gradients_as_one_batch_does(tmp_path):
    losses = trained(dnt.DNTForCausalLM.from_dnt(build()), tmp_path, max_steps=8, per_device_train_batch_size=8)
    assert losses[-1] < 0.8 * losses[0]
    whole, parts = (dnt.DNTForCausalLM.from_dnt(build()).double() for _ in range(2))
    trained(whole, tmp_path, optim="sgd", max_steps=2, per_device_train_batch_size=8)
    trained(
        parts, tmp_path, optim="sgd", max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=4,
        activation_checkpointing=True,
    )  # fmt: skip
    torch.testing.assert_close(list(parts.parameters()), list(whole.parameters()))


def test_lora_trains_its_adapters_alone_and_merges_to_the_same_function(tmp_path):
    base = wrapped(dropout=0.0)
    before = {name: p.clone() for name, p in base.named_parameters()}
    adapters = peft.LoraConfig(r=2, target_modules=["qkv", "out", "up"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, adapters)
    assert all(("lora" in name) == p.requires_grad for name, p in model.named_parameters())
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2 * 4
    losses = trained(model, tmp_path, max_steps=5, per_device_train_batch_size=8, activation_checkpointing=True)
    assert losses[-1] < losses[0]
    after = {name.replace(".base_layer", ""): p for name, p in base.named_parameters() if "lora" not in name}
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    tokens = torch.randint(0, 13, (2, 8))
    model.eval()
    adapted, generated = model(tokens).logits, model.generate(tokens[:, :3], max_new_tokens=4, **GREEDY)
    model.save_pretrained(tmp_path / "adapters")
    again = peft.PeftModel.from_pretrained(wrapped(), tmp_path / "adapters").eval()
    torch.testing.assert_close(again(tokens).logits, adapted)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(tokens).logits, adapted, rtol=1e-4, atol=1e-5)
    assert torch.equal(merged.gpt.generate(tokens[:, :3], 4, temperature=0), generated)
    assert type(merged) is dnt.DNTForCausalLM and not torch.allclose(adapted, wrapped()(tokens).logits, atol=1e-3)


@pytest.mark.parametrize("tie", [True, False])
def test_resized_embeddings_keep_the_old_rows_and_reach_the_configurations(tie, tmp_path):
    model = wrapped(tie_embeddings=tie)
    tokens = torch.randint(0, 13, (2, 8))
    before = model(tokens).logits
    model.resize_token_embeddings(20)
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (20, 16)
    assert model.config.vocab_size == model.gpt.config.vocab_size == 20
    assert (model.gpt.head.weight is model.gpt.tokens.weight) == tie
    torch.testing.assert_close(model(tokens).logits[..., :13], before)
    model.save_pretrained(tmp_path)
    assert same_tensors(dnt.load(tmp_path), model.gpt)


def test_what_the_wrapper_does_not_take_is_one_line():
    model, tokens = wrapped(), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="DNTForCausalLM takes no position_ids; positions follow from attention_mask"):
        model(tokens, position_ids=tokens)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 2\); it must be .* = \(2, 3\)"):
        model(tokens, attention_mask=torch.ones(2, 2))
    with pytest.raises(ValueError, match="StaticCache has a fixed size; use a DynamicCache"):
        model.generate(tokens, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match=r"every_n_layers is 2; dnt.GPT recomputes all blocks or none"):
        model.activation_checkpointing_enable(every_n_layers=2)
    with pytest.raises(ValueError, match="got 9 tokens, but the model's context is 8"):
        model.generate(tokens, max_new_tokens=7, **GREEDY)
    with pytest.raises(ValueError, match=r"unknown norm 'rms'. Did you mean 'rmsnorm'"):
        dnt.DNTForCausalLM(dnt.DNTConfig(**vars(model.gpt.config) | {"norm": "rms"}))


# --- tokenizers and runs --------------------------------------------------------------------------------------------


TEXT = "  a\tb\r\n\n é 漢 <0x41> Ā 'll . </s> x<|endoftext|> "
BPE = learn_bpe(["the cat sat on the mat, the cat that sat"] * 9, 280)


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (ByteTokenizer(), TEXT + "\0"),
        (CharTokenizer("\t\n !abcé"), "  ab\n\té! a "),
        (CharTokenizer("\0\n ab"), " a\0\nb  "),
        (BPE, TEXT + "the cat sat"),
        (FileTokenizer(BPE.content, (10, 10)), TEXT + "\0the mat"),
    ],
    ids=["byte", "char", "char with NUL", "bpe", "file"],
)
def test_tokenizers_have_the_same_ids_for_transformers(tokenizer: Tokenizer, text, tmp_path):
    transformers_tokenizer(tokenizer).save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs(text).input_ids
    assert ids == tokenizer.encode(text).tolist() and theirs.decode(ids) == text
    assert theirs.eos_token_id == theirs.pad_token_id and theirs.padding_side == "left"
    assert theirs.eos_token_id == (tokenizer.end[0] if len(tokenizer.end) == 1 else tokenizer.vocab_size)


def test_ranks_of_tiktoken_become_merges_with_the_same_ids(tmp_path):
    order = sorted(BPE.model.get_vocab().items(), key=lambda item: item[1])[1:]  # without the end of a text
    assert set(spelling()) == set(pre_tokenizers.ByteLevel.alphabet())
    tokens = [bytes(map(spelling().index, text)) for text, _ in order]
    tokenizer = GPT2Tokenizer(" ".join(base64.b64encode(token).decode() for token in tokens))
    transformers_tokenizer(tokenizer).save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT, "the cat sat on the mat's", "  catthat  \n"):
        ids = theirs(text).input_ids
        assert ids == tokenizer.encode(text).tolist() and theirs.decode(ids) == text
    assert theirs.eos_token_id == len(tokens) and len(theirs) == tokenizer.vocab_size


def test_an_exported_run_writes_the_text_that_dnt_sample_does(workplace, capfd):
    assert main(["train", "--data", "words.txt", "--tokenizer", "char", *TINY, "--steps", "3", "--out", "run"]) == 0
    assert main(["export", "run", "exported"]) == 0
    with pytest.raises(ValueError, match=r"is that of a dnt run; use DNTForCausalLM.from_dnt or dnt export"):
        dnt.DNTForCausalLM.from_pretrained("run")
    write = transformers.pipeline("text-generation", "exported", device="cpu")
    [row] = write("kara ", max_new_tokens=9, do_sample=False)
    assert row["generated_text"] == dnt.sample("run", prompt="kara ", tokens=9, temperature=0)
    assert same_tensors(dnt.load("exported"), dnt.load("run"))
    assert "exported already holds a model; choose another folder." in complaint(capfd, "export", "run", "exported")
    assert "nowhere is not a run folder" in complaint(capfd, "export", "nowhere", "other")


def test_import_dnt_needs_no_transformers_and_says_how_to_get_it(workplace):
    dnt.save(build(), "folder")
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import dnt; dnt.load('folder'); assert dnt.load_gpt2 and dnt.save_gpt2\n"
        "from dnt.cli import main; assert main(['export', 'folder', 'other']) == 2\n"
        "try: dnt.DNTForCausalLM\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (
        done.stdout
        == "this needs the package transformers, which is not there: pip install 'dnt-torch[transformers]'\n"
    )
    assert done.stderr == "dnt: " + done.stdout


# --- lm-eval --------------------------------------------------------------------------------------------------------


def test_lm_eval_gets_the_sums_of_log_probabilities(tmp_path):
    lm_eval = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    def ask(kind: str, *arguments) -> Instance:
        return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)

    model, byte = dnt.DNTForCausalLM.from_dnt(randomize(build(vocab_size=256, context=32))), ByteTokenizer()
    transformers_tokenizer(byte).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    judge = lm_eval.HFLM(pretrained=str(tmp_path), batch_size=2, device="cpu")

    def after_the_first(ids: list[int]) -> torch.Tensor:
        """log p of each id given those before it."""
        tokens = torch.tensor([ids])
        return model.gpt(tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[:, 1:, None])[0, :, 0]

    pairs = [("The sky is", " blue"), ("a", " b"), ("", "word")]
    answers = judge.loglikelihood([ask("loglikelihood", *pair) for pair in pairs])
    for (context, continuation), (total, _) in zip(pairs, answers, strict=True):
        each = after_the_first([*(byte.encode(context).tolist() or [0]), *byte.encode(continuation).tolist()])
        assert total == pytest.approx(each[-len(continuation) :].sum().item(), rel=1e-4)
    text = "fifty letters are longer than what the context holds"
    ids = byte.encode(text).tolist()
    two_windows = after_the_first([0, *ids[:32]]).sum() + after_the_first(ids[-33:])[32 - len(ids) :].sum()
    [rolling] = judge.loglikelihood_rolling([ask("loglikelihood_rolling", text)])
    assert rolling == pytest.approx(two_windows.item(), rel=1e-4)
    prompts = ["The sky", "a longer prompt", "x"]
    options = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    texts = judge.generate_until([ask("generate_until", prompt, options) for prompt in prompts])
    for prompt, text in zip(prompts, texts, strict=True):
        ids = model.gpt.generate(torch.tensor([byte.encode(prompt).tolist()]), 8, temperature=0)[0, len(prompt) :]
        assert text == byte.decode(ids.tolist()).split("\n")[0].split("\0")[0]
