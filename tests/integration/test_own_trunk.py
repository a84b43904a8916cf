"""The trunk as a slot: the documentation's own one trains, and a config's network is that of its sizes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from xlm.core.config.build import make
from xlm.core.config.errors import XLMError
from xlm_arlm import ARLM
from xlm_flexmdm import FlexMDM
from xlm_ilm import ILM
from xlm_mdlm import MDLMDiT, MDLMRotary
from xlm_mlm import MLM

from .running import composed, run_fast

PAGE = Path(__file__).parents[2] / "docs/tutorials/own-trunk.md"
FEW_ROWS = "task.source.num_rows={train: 64, val: 16, test: 16}"
NETWORKS: dict[str, Any] = {
    "xlm_arlm.ARLM": ARLM,
    "xlm_mlm.MLM": MLM,
    "xlm_ilm.ILM": ILM,
    "xlm_mdlm.MDLMRotary": MDLMRotary,
    "xlm_mdlm.MDLMDiT": MDLMDiT,
    "xlm_flexmdm.FlexMDM": FlexMDM,
}
NODE = '{_target_: my_trunk.Encoder, vocab_size: "${vocab.size}", d_model: 16}'


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``my_trunk.py`` as the page has it."""
    [code] = re.findall(r'```python title="my_trunk.py"\n(.*?)```', PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_trunk.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_trunk", raising=False)


def with_trunk(node: str) -> list[str]:
    return ["~model.trunk", f"+model.trunk={node}", FEW_ROWS, "test_after_training=false"]


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize("family", ["mlm", "ilm", "mdlm", "flexmdm"])
def test_the_trunk_of_the_page_trains_under_a_family(family: str, tmp_path: Path) -> None:
    metrics = run_fast(tmp_path, tmp_path / "cache", "train", f"star_tiny_{family}", *with_trunk(NODE))
    assert metrics


@pytest.mark.usefixtures("encoder")
def test_a_trunk_that_does_not_fit_ends_in_one_line_before_training(tmp_path: Path) -> None:
    with pytest.raises(XLMError, match=r"(?s)^model: .*model\.trunk \(my_trunk\.Encoder\) is not causal"):
        run_fast(tmp_path, tmp_path / "cache", "train", "star_tiny_arlm", *with_trunk(NODE))
    (tmp_path / "wide_trunk.py").write_text(
        "from my_trunk import Encoder\n\n\nclass Wide(Encoder):\n"
        "    def forward(self, *arguments):\n"
        "        hidden = super().forward(*arguments)\n"
        "        return hidden.repeat(1, 1, 2)\n"
    )
    node = NODE.replace("my_trunk.Encoder", "wide_trunk.Wide")
    expected = r"model\.trunk \(wide_trunk\.Wide\) gave hidden states of shape \(2, \d+, 32\).*d_model=16"
    with pytest.raises(XLMError, match=expected):
        run_fast(tmp_path, tmp_path / "cache", "train", "star_tiny_mlm", *with_trunk(node))


@pytest.mark.parametrize("family", ["arlm", "mlm", "ilm", "mdlm", "flexmdm"])
def test_a_config_makes_the_network_of_its_sizes(family: str) -> None:
    """With the same seed the weights are those of the constructor by sizes, where a run's losses begin."""
    names = ["rotary_micro_mdlm", "dit_tiny_mdlm"] if family == "mdlm" else [None]
    for name in names:
        chosen = [] if name is None else [f"model={name}"]
        config = composed(f"star_tiny_{family}", "job_type=train", "job_name=x", *chosen)
        config.vocab.size = 20  # as the tokenizer fills it in
        node: Any = OmegaConf.to_container(config.model, resolve=True)
        torch.manual_seed(1)
        made = make(node, "model").state_dict()
        sizes = {key: value for key, value in node.pop("trunk").items() if key not in ("_target_", "causal")}
        rest = {key: value for key, value in node.items() if not key.endswith(("_target_", "_embedding"))}
        torch.manual_seed(1)
        expected = NETWORKS[node["_target_"]](**{**sizes, **rest}).state_dict()
        assert list(made) == list(expected)
        for key, value in expected.items():
            assert torch.equal(made[key], value), key
