"""``noise=NAME`` changes the schedule of every slot of a masked family, and is refused by the others."""

import pytest
from omegaconf import OmegaConf

from xlm.core.config.errors import XLMError

from .running import composed

PLACES = {
    "mlm": ("datamodule.train.lm.collator.schedule",),
    "mdlm": (
        "datamodule.train.lm.collator.schedule",
        "datamodule.test.lm.collator.schedule",
        "predictor.schedule",
    ),
    "flexmdm": (
        "datamodule.train.lm.collator.interpolant.insertion",
        "datamodule.test.lm.collator.interpolant.unmasking",
        "predictor.interpolant.insertion",
    ),
}


@pytest.mark.parametrize("family", PLACES)
def test_a_schedule_reaches_every_slot_that_needs_one(family: str) -> None:
    config = composed(f"star_easy_{family}", "job_type=train", "job_name=x", "noise=cosine")
    for key in PLACES[family]:
        node = OmegaConf.select(config, key)
        assert node == {"_target_": "xlm.modules.Cosine", "eps": 0.0}, key


@pytest.mark.parametrize("family", ["arlm", "ilm"])
def test_a_family_without_noise_refuses_one(family: str) -> None:
    with pytest.raises(XLMError, match=r"noise: xlm\.modules\.Cosine is unused"):
        composed(f"star_easy_{family}", "job_type=train", "job_name=x", "noise=cosine")
