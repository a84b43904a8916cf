"""Make a package, train, push, and follow the model card, with huggingface_hub's client as it is.

Run by ``test_scaffold.py``, which serves the Hub, in a process of its own: the client reads its address when
it is imported.
"""

import re
import shlex
import sys
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download
from hydra.core.global_hydra import GlobalHydra

from xlm.core.command import compose
from xlm.scaffold.cli import FAMILIES

from .new_packages import FEW_ROWS, forget, make_package
from .published import FEW_STEPS
from .running import run_fast

KINDS = [
    pytest.param(name, marks=() if name in ("skeleton", "mlm") else pytest.mark.slow) for name in FAMILIES
]
"""The families are shared under their own names in any case, see ``test_sharing.py``."""


@pytest.mark.parametrize("family", KINDS)
def test_a_new_model_trains_is_pushed_and_used_as_its_card_says(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, runs, cache = f"my_{family}", tmp_path / "runs", tmp_path / "cache"
    package = make_package(name, tmp_path / "package", family)
    monkeypatch.syspath_prepend(str(package / "src"))
    monkeypatch.chdir(tmp_path)
    experiment = f"star_tiny_{name}"
    results = run_fast(runs, cache, "train", experiment, FEW_ROWS, *FEW_STEPS.get(family, ()))
    assert results["test/lm/nll"] > 0
    assert results["test/prediction/nfe_per_sequence"] > 0
    run_fast(runs, cache, "push_to_hub", experiment, f"+hub.repo_id=tester/{family}")
    card = Path(hf_hub_download(f"tester/{family}", "README.md")).read_text()
    assert f"`xlm_{name}.model_{name}.My{family.capitalize()}" in card

    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"\[(\[[\d, ]*\](, )?){2}\]", capsys.readouterr().out.strip())

    [command] = re.findall(r"```bash\n(.*?)```", card, re.DOTALL)
    assert command.strip() == f"xlm job_type=generate job_name=try ckpt_path=hf://tester/{family}"
    here = [f"datamodule.cache_dir={cache}", "trainer.accelerator=cpu", "callbacks.progress=null"]
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), *here])
    GlobalHydra.instance().clear()
    compose.main()
    [predictions] = Path("runs/try").glob("generate/*/predictions.jsonl")
    assert len(predictions.read_text().splitlines()) == 8  # of debug=fast
    forget(name)
