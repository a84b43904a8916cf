"""The masked language model for transformers' Auto classes.

Importing this module registers it:

    import xlm_mlm.hf_mlm
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(folder_or_repository)

Needs the extra ``xlm-mlm[transformers]``; nothing else in the package imports transformers.
"""

from typing import Any, Literal

from torch import LongTensor, Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from xlm.modules.hub import make_part
from xlm_mlm.model_mlm import MLM

SIZES = ("d_model", "num_layers", "num_heads", "d_ff", "dropout", "activation", "rotary_dim")
"""Arguments of the network that a trunk has instead."""


class MLMConfig(PreTrainedConfig):
    """Arguments of :class:`xlm_mlm.MLM`, as its ``config.json`` has them."""

    model_type = "xlm_mlm"
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
    prompt_sees_target: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Copy the sizes that transformers requires from a trunk that has them.

        Raises:
            ValueError: If the prompt does not see the target.
        """
        if not self.prompt_sees_target:
            raise ValueError(
                "this network has prompt_sees_target=False, and transformers' interface does not say where "
                "the prompt ends: load it with xlm_mlm.MLM.from_pretrained"
            )
        for name in ("d_model", "num_layers", "num_heads"):
            setattr(self, name, (self.trunk or {}).get(name, getattr(self, name)))
        super().__post_init__(**kwargs)


class MLMForMaskedLM(PreTrainedModel):
    """:class:`xlm_mlm.MLM` with the interface of transformers."""

    config_class = MLMConfig
    base_model_prefix = "model"

    # Copied from xlm_arlm.hf_arlm.ARLMForCausalLM.__init__
    def __init__(self, config: MLMConfig) -> None:
        super().__init__(config)
        arguments: dict[str, Any]
        if config.trunk is None:
            arguments = {name: getattr(config, name) for name in SIZES}
        else:
            arguments = {"trunk": make_part("trunk", config.trunk)}
        self.model = MLM(vocab_size=config.vocab_size, **arguments)
        self.post_init()

    def forward(
        self,
        input_ids: LongTensor,
        attention_mask: Tensor | None = None,
        position_ids: LongTensor | None = None,
        labels: LongTensor | None = None,
        **_: object,
    ) -> MaskedLMOutput:
        """Logits of every cell, and with ``labels`` the mean cross entropy; -100 is left out."""
        mask = None if attention_mask is None else attention_mask.bool()
        logits: Tensor = self.model(input_ids, mask, position_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


AutoConfig.register(MLMConfig.model_type, MLMConfig)
AutoModelForMaskedLM.register(MLMConfig, MLMForMaskedLM)
