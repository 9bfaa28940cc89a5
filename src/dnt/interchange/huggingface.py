"""GPT as a transformers model, for AutoModel, generate, Trainer, PEFT and lm-eval. The only file that needs it."""
# B batch, T new tokens, S cached and new ones, V vocabulary

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dnt.data.tokenizers import Tokenizer, tokenizer_from
from dnt.extras import extra
from dnt.files import read_json
from dnt.interchange.tokenizer import FAST, as_fast
from dnt.nn.config import GPT_SIZES, GPTConfig
from dnt.nn.gpt import GPT
from dnt.nn.layers import KeyValueCache
from dnt.nn.ngpt import UnitHead
from dnt.weights import build_config, load

try:
    import transformers
    from transformers.modeling_outputs import CausalLMOutputWithPast
    from transformers.utils import can_return_tuple
except ImportError:
    extra("transformers", "transformers")  # says how to install it
    raise


class DNTConfig(transformers.PreTrainedConfig):
    """The fields of GPTConfig, a Placement as JSON, beside those of every transformers configuration."""

    model_type = "dnt"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "max_position_embeddings": "context",
        "tie_word_embeddings": "tie_embeddings",
    }

    def __init__(self, **given: Any) -> None:
        if "model" in given:
            raise ValueError("this config.json is that of a dnt run; use DNTForCausalLM.from_dnt or dnt export.")
        mine = {name: given.pop(name, default) for name, default in asdict(GPT_SIZES["gpt2-small"]).items()}
        for name, value in asdict(build_config({"kind": "gpt"} | mine)).items():
            setattr(self, name, value)
        super().__init__(**given)

    @property
    def gpt(self) -> GPTConfig:
        return build_config({"kind": "gpt"} | {field.name: getattr(self, field.name) for field in fields(GPTConfig)})


class CacheLayer(KeyValueCache):
    """One layer of a transformers Cache, as Attention fills it."""

    def __init__(self, cache: transformers.Cache, layer: int):
        self.cache, self.layer = cache, layer

    def __len__(self) -> int:
        return self.cache.get_seq_length(self.layer)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.cache.update(k, v, self.layer)


class DNTForCausalLM(transformers.PreTrainedModel, transformers.GenerationMixin):
    """A dnt.GPT, at `gpt`, as a causal language model of transformers.

    Attention has its own kernel, activation checkpointing is GPT.recompute for all blocks or none, and caches are those
    that grow (DynamicCache). Weights are read from safetensors unless use_safetensors=False asks for a pickle.
    """

    config: DNTConfig
    config_class = DNTConfig
    base_model_prefix = "gpt"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # num_items_in_batch, so that Trainer accumulates gradients rightly
    _tied_weights_keys = {"gpt.head.weight": "gpt.tokens.weight"}  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: DNTConfig):
        super().__init__(config)
        self.gpt = GPT(config.gpt)
        for parameter in self.parameters():
            if not parameter.is_meta:  # initialized by GPT, so post_init must not draw it again
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        self.post_init()

    @classmethod
    def from_dnt(cls, source: GPT | str | Path) -> "DNTForCausalLM":
        """Around a model (not a copy of it), or the one that dnt.load finds in a folder; in evaluation mode."""
        gpt = load(source) if isinstance(source, str | Path) else source
        if not isinstance(gpt, GPT):
            raise ValueError(f"got a {type(gpt).__name__}; DNTForCausalLM wraps a dnt.GPT, or that of a folder.")
        with torch.device("meta"):
            model = cls(DNTConfig(**asdict(gpt.config)))
        model.gpt = gpt
        return model.eval()

    @classmethod
    def from_pretrained(cls, *arguments: Any, use_safetensors: bool | None = True, **options: Any) -> Any:
        return super().from_pretrained(*arguments, use_safetensors=use_safetensors, **options)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: transformers.Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, T) -> logits (B, T, V), or of the last `logits_to_keep` tokens alone if that is not 0.

        attention_mask (B, S): 0 where a cached or new token is padding; positions count the others. labels (B, T) are
        input_ids or -100, which counts as no target; the loss is their sum / num_items_in_batch, or their mean.
        use_cache: return the cache; generate asks for it. ValueError for any other argument that is not empty.
        """
        if refused := [name for name, value in others.items() if value is not None and value is not False]:
            raise ValueError(f"DNTForCausalLM takes no {refused[0]}; positions follow from attention_mask.")
        if past_key_values is None and use_cache:
            past_key_values = transformers.DynamicCache()
        caches, seen = None, 0
        if past_key_values is not None:
            if past_key_values.is_compileable:
                raise ValueError(f"{type(past_key_values).__name__} has a fixed size; use a DynamicCache, the default.")
            caches = [CacheLayer(past_key_values, i) for i in range(self.config.depth)]
            seen = len(caches[0])
        shape = (input_ids.shape[0], seen + input_ids.shape[1])
        if attention_mask is not None and attention_mask.shape != shape:
            received = tuple(attention_mask.shape)
            raise ValueError(f"attention_mask has shape {received}; it must be (B, cached + new tokens) = {shape}.")
        real_BS = None if attention_mask is None or attention_mask.all() else attention_mask.bool()
        if real_BS is not None:  # whose id may lie outside the vocabulary
            input_ids = input_ids.masked_fill(~real_BS[:, seen:], 0)
        hidden_BTD = self.gpt.hidden(input_ids, caches, real_BS)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.gpt.head(hidden_BTD[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, logits.shape[-1], num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def get_input_embeddings(self) -> nn.Module:
        return self.gpt.tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.gpt.tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.gpt.head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.gpt.head = new_embeddings

    def resize_token_embeddings(self, *arguments: Any, **options: Any) -> nn.Embedding:
        if isinstance(self.gpt.head, UnitHead):
            raise ValueError("the head of nGPT has a learned number for each token; build a model of that vocab_size.")
        tokens = super().resize_token_embeddings(*arguments, **options)
        self.gpt.config = replace(self.gpt.config, vocab_size=tokens.num_embeddings)
        return tokens

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None, every_n_layers: int = 1
    ) -> None:
        if every_n_layers != 1:
            raise ValueError(f"every_n_layers is {every_n_layers}; dnt.GPT recomputes all blocks or none: make it 1.")
        self.gradient_checkpointing = self.gpt.recompute = enable


def transformers_tokenizer(tokenizer: Tokenizer) -> transformers.PreTrainedTokenizerFast:
    """A run's tokenizer for transformers, with the same ids. The token that ends a text is padding, too."""
    fast, end = as_fast(tokenizer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        eos_token=end,
        pad_token=end,
        padding_side="left",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def export(run: str | Path, folder: str | Path) -> None:
    """Write the model of a run (or any that dnt.load finds) and its tokenizer as a new folder for transformers."""
    path, folder = Path(run) / "tokenizer.json", Path(folder)
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} already holds a model; choose another folder.")
    model = DNTForCausalLM.from_dnt(run)
    described = read_json(path, "a run folder") if path.exists() else {}
    if described.get("kind") in FAST:  # neither bare ids nor what is no run's
        transformers_tokenizer(tokenizer_from(described)).save_pretrained(folder)
    model.save_pretrained(folder)


transformers.AutoConfig.register("dnt", DNTConfig, exist_ok=True)
transformers.AutoModelForCausalLM.register(DNTConfig, DNTForCausalLM, exist_ok=True)
