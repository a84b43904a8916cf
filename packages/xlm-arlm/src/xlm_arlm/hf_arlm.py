"""The autoregressive model for transformers' Auto classes.

Importing this module registers it:

    import xlm_arlm.hf_arlm
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder_or_repository)

Needs the extra ``xlm-arlm[transformers]``; nothing else in the package imports transformers.
"""

from typing import Any, Literal

from torch import LongTensor, Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from xlm.modules.hub import make_part
from xlm_arlm.model_arlm import ARLM

SIZES = ("d_model", "num_layers", "num_heads", "d_ff", "dropout", "activation", "rotary_dim")
"""Arguments of the network that a trunk has instead."""


class ARLMConfig(PreTrainedConfig):
    """Arguments of :class:`xlm_arlm.ARLM`, as its ``config.json`` has them."""

    model_type = "xlm_arlm"
    attribute_map = {  # noqa: RUF012  # as transformers declares it
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
    }

    vocab_size: int = 1
    d_model: int = 2
    num_layers: int = 1
    num_heads: int = 1
    d_ff: int | None = None
    dropout: float = 0.0
    activation: Literal["gelu", "gelu_erf", "relu"] = "gelu"
    rotary_dim: int | None = None
    trunk: dict[str, Any] | None = None
    use_cache: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Copy the sizes that transformers requires from a trunk that has them."""
        for name in ("d_model", "num_layers", "num_heads"):
            setattr(self, name, (self.trunk or {}).get(name, getattr(self, name)))
        super().__post_init__(**kwargs)


class ARLMForCausalLM(PreTrainedModel, GenerationMixin):
    """:class:`xlm_arlm.ARLM` with the interface of transformers.

    ``generate`` runs the network on the whole text for every token; the package's own predictor has a cache.
    """

    config_class = ARLMConfig
    base_model_prefix = "model"

    def __init__(self, config: ARLMConfig) -> None:
        super().__init__(config)
        arguments: dict[str, Any]
        if config.trunk is None:
            arguments = {name: getattr(config, name) for name in SIZES}
        else:
            arguments = {"trunk": make_part("trunk", config.trunk)}
        self.model = ARLM(vocab_size=config.vocab_size, **arguments)
        self.post_init()

    def forward(
        self,
        input_ids: LongTensor,
        attention_mask: Tensor | None = None,
        position_ids: LongTensor | None = None,
        labels: LongTensor | None = None,
        **_: object,
    ) -> CausalLMOutput:
        """Logits of the next token, and with ``labels`` the mean cross entropy; -100 is left out."""
        mask = None if attention_mask is None else attention_mask.bool()
        logits: Tensor = self.model(input_ids, mask, position_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    # Arguments in between have other names in other releases; transformers looks for the name `kwargs`.
    def prepare_inputs_for_generation(
        self, input_ids: LongTensor, *_: Any, **kwargs: Any
    ) -> dict[str, object]:
        """The whole text again."""
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


AutoConfig.register(ARLMConfig.model_type, ARLMConfig)
AutoModelForCausalLM.register(ARLMConfig, ARLMForCausalLM)
