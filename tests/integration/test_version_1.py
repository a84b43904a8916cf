"""What version 1 has written, of every family, is read in the words of this one."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from xlm.core.config import format
from xlm.core.config.build import make
from xlm.core.config.differences import flatten
from xlm.core.config.errors import XLMError
from xlm.core.config.recorded import read_config
from xlm.core.hub import pushed_config, source
from xlm.core.saving.folder import read_own
from xlm.modules import hub

from .running import composed

# Written without YAML's aliases, which a config does not have.
RECORDED = json.loads(
    json.dumps(
        yaml.safe_load("""
configs:
  star_tiny_arlm:
    format_version: 1
    model: {_target_: xlm_arlm.ARLM, vocab_size: '${vocab.size}', d_model: 64, num_layers: 3, num_heads: 4,
      d_ff: 128}
    loss: {_target_: xlm_arlm.ARLMLoss, loss_on_prompt: false}
    predictor: {_target_: xlm_arlm.ARLMPredictor, pad_id: '${vocab.pad_id}', eos_id: '${vocab.eos_id}',
      suppressed_ids: '${vocab.special_ids}', max_new_tokens: null, temperature: 0.0, top_k: null, top_p:
      null}
    optimizer: &muon {_target_: xlm.core.optimizers.MuonWithAdamW, _partial_: true, lr: 0.003, matrices:
      blocks|modulation, momentum: 0.95, betas: [0.9, 0.98], eps: 1.0e-08, weight_decay: 0.0}
    lr_scheduler: &schedule {_target_: xlm.core.lr_schedules.WarmupSchedule, name: cosine, warmup: 0.02}
    datamodule:
      train:
        lm: {collator: &arlm_collator {_target_: xlm_arlm.ARLMCollator, pad_id: '${vocab.pad_id}', bos_id:
          '${vocab.bos_id}', eos_id: '${vocab.eos_id}', max_length: '${task.max_target_length}'}}
      val:
        lm: {collator: *arlm_collator}
        prediction: {collator: {_target_: xlm_arlm.ARLMPromptCollator, pad_id: '${vocab.pad_id}', bos_id:
          '${vocab.bos_id}', max_length: '${task.max_target_length}'}}
  star_tiny_mlm:
    format_version: 1
    model: {_target_: xlm_mlm.MLM, vocab_size: '${vocab.size}', d_model: 64, num_layers: 3, num_heads: 4,
      d_ff: 128}
    loss: {_target_: xlm_mlm.MLMLoss, mask_id: '${vocab.mask_id}', pad_id: '${vocab.pad_id}', eos_id:
      '${vocab.eos_id}', suppressed_ids: '${vocab.special_ids}', normalise: masked_cells}
    predictor: {_target_: xlm_mlm.MLMPredictor, mask_id: '${loss.mask_id}', pad_id: '${loss.pad_id}',
      eos_id:
      '${loss.eos_id}', suppressed_ids: '${loss.suppressed_ids}', order: top_prob, num_steps: null, schedule:
      uniform, min_confidence: null, max_uncertainty: null, temperature: 0.0, top_k: null, top_p: null}
    optimizer: &adamw {_target_: torch.optim.AdamW, _partial_: true, lr: 0.003, betas: [0.9, 0.98],
      eps: 1.0e-08,
      weight_decay: 0.0}
    lr_scheduler: *schedule
    datamodule:
      train:
        lm: {collator: {_target_: xlm_mlm.MLMCollator, pad_id: '${vocab.pad_id}', mask_id:
          '${vocab.mask_id}', bos_id: '${vocab.bos_id}', eos_id: '${vocab.eos_id}', target_length:
          '${task.max_target_length}', mask_rate: null}}
      val:
        lm: {collator: {_target_: xlm_mlm.MLMLikelihoodCollator, pad_id: '${vocab.pad_id}', mask_id:
          '${vocab.mask_id}', bos_id: '${vocab.bos_id}', eos_id: '${vocab.eos_id}', target_length:
          '${task.max_target_length}', num_draws: 4}}
        prediction: {collator: {_target_: xlm_mlm.MLMPromptCollator, pad_id: '${vocab.pad_id}', mask_id:
          '${vocab.mask_id}', bos_id: '${vocab.bos_id}', eos_id: '${vocab.eos_id}', target_length:
          '${task.max_target_length}', default_length: null}}
  star_tiny_mdlm:
    format_version: 1
    model: {_target_: xlm_mdlm.MDLMRotary, vocab_size: '${vocab.size}', d_model: 64, num_layers: 3,
      num_heads: 4, d_ff: 128}
    loss: &mdlm_loss {_target_: xlm_mdlm.MDLMLoss, mask_id: '${vocab.mask_id}', pad_id: '${vocab.pad_id}',
      eos_id:
      '${vocab.eos_id}', suppressed_ids: '${vocab.special_ids}'}
    predictor: {_target_: xlm_mdlm.MDLMPredictor, schedule: {_target_: xlm.modules.LogLinear, eps: 0.001},
      sampler: {_target_: xlm_mdlm.ConfidenceOrder, num_steps: null, kind: top_prob}, mask_id:
      '${loss.mask_id}', pad_id: '${loss.pad_id}', eos_id: '${loss.eos_id}', suppressed_ids:
      '${loss.suppressed_ids}', temperature: 0.0, top_k: null, top_p: null, window_length: null, stride:
      null}
    optimizer: *adamw
    lr_scheduler: *schedule
    datamodule:
      train:
        lm: {collator: {_target_: xlm_mdlm.MDLMCollator, schedule: '${predictor.schedule}', mask_id:
          '${vocab.mask_id}', pad_id: '${vocab.pad_id}', bos_id: '${vocab.bos_id}', eos_id:
          '${vocab.eos_id}', target_length: '${task.max_target_length}', min_time: 0.4}}
      val:
        lm: {collator: &mdlm_likelihood {_target_: xlm_mdlm.MDLMLikelihoodCollator,
          mask_id: '${vocab.mask_id}', pad_id:
          '${vocab.pad_id}', bos_id: '${vocab.bos_id}', eos_id: '${vocab.eos_id}', target_length:
          '${task.max_target_length}', time_conditioning: '${oc.select:model.time_conditioning,false}',
          schedule: '${predictor.schedule}', num_draws: 4}}
        prediction: {collator: &mdlm_prompt {_target_: xlm_mdlm.MDLMPromptCollator,
          mask_id: '${vocab.mask_id}', pad_id:
          '${vocab.pad_id}', bos_id: '${vocab.bos_id}', eos_id: '${vocab.eos_id}', target_length:
          '${task.max_target_length}', default_length: null}}
  lm1b_mdlm:
    format_version: 1
    model: {_target_: xlm_mdlm.MDLMDiT, vocab_size: '${vocab.size}', d_model: 768, num_layers: 12,
      num_heads:
      12, d_condition: 128, dropout: 0.1, time_conditioning: false}
    loss: *mdlm_loss
    predictor: {_target_: xlm_mdlm.MDLMPredictor, schedule: {_target_: xlm.modules.LogLinear, eps: 0.001},
      sampler: {_target_: xlm_mdlm.Ancestral, num_steps: 128}, mask_id: '${loss.mask_id}', pad_id:
      '${loss.pad_id}', eos_id: '${loss.eos_id}', suppressed_ids: '${loss.suppressed_ids}', temperature: 1.0,
      top_k: null, top_p: null, window_length: null, stride: null}
    optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: 0.0003, betas: [0.9, 0.999], eps: 1.0e-08,
      weight_decay: 0.0}
    lr_scheduler: {_target_: xlm.core.lr_schedules.WarmupSchedule, name: constant_with_warmup, warmup: 2500}
    datamodule:
      train:
        lm: {collator: {_target_: xlm_mdlm.MDLMCollator, schedule: '${predictor.schedule}', mask_id:
          '${vocab.mask_id}', pad_id: '${vocab.pad_id}', bos_id: '${vocab.bos_id}', eos_id:
          '${vocab.eos_id}', target_length: '${task.max_target_length}', min_time: 0.001}}
      val:
        lm: {collator: *mdlm_likelihood}
        prediction: {collator: *mdlm_prompt}
  star_tiny_ilm:
    format_version: 1
    model: {_target_: xlm_ilm.ILM, vocab_size: '${vocab.size}', d_model: 64, num_layers: 3, num_heads: 4,
      d_ff: 128}
    loss: {_target_: xlm_ilm.ILMLoss, row_weight: one, stop_weight: 1.0, suppressed_ids:
      '${vocab.special_ids}'}
    predictor: {_target_: xlm_ilm.ILMPredictor, pad_id: '${vocab.pad_id}', suppressed_ids:
      '${loss.suppressed_ids}', stop: threshold, stop_threshold: 0.9, sampling: joint, temperature: 0.0,
      top_k: null, top_p: null, insertions_per_step: 1}
    optimizer: *muon
    lr_scheduler: *schedule
    datamodule:
      train:
        lm: {collator: {_target_: xlm_ilm.ILMCollator, pad_id: '${vocab.pad_id}', cls_id: '${vocab.cls_id}',
          bos_id: '${vocab.bos_id}', max_length: '${task.max_target_length}', num_draws: 1}}
      val:
        lm: {collator: {_target_: xlm_ilm.ILMCollator, pad_id: '${vocab.pad_id}', cls_id: '${vocab.cls_id}',
          bos_id: '${vocab.bos_id}', max_length: '${task.max_target_length}', num_draws: 4}}
        prediction: {collator: {_target_: xlm_ilm.ILMPromptCollator, pad_id: '${vocab.pad_id}', cls_id:
          '${vocab.cls_id}', bos_id: '${vocab.bos_id}', max_length: '${task.max_target_length}'}}
  star_tiny_flexmdm:
    format_version: 1
    model: {_target_: xlm_flexmdm.FlexMDM, vocab_size: '${vocab.size}', d_model: 64, num_layers: 3,
      num_heads: 4, d_ff: 128, max_length: '${task.max_target_length}', head: distribution}
    loss: {_target_: xlm_flexmdm.FlexMDMLoss, suppressed_ids: '${vocab.special_ids}', targets: posterior}
    predictor: {_target_: xlm_flexmdm.FlexMDMPredictor, interpolant: {_target_: xlm_flexmdm.Interpolant,
      insertion: {_target_: xlm.modules.Polynomial, exponent: 0.5}, unmasking: {_target_:
      xlm.modules.Polynomial, exponent: 3.0}, time_input: t}, mask_id: '${vocab.mask_id}', pad_id:
      '${vocab.pad_id}', suppressed_ids: '${loss.suppressed_ids}', num_steps: 128, sampler:
      hazard_integrated, order: top_prob, temperature: 0.0, top_k: null, top_p: null}
    optimizer: *muon
    lr_scheduler: *schedule
    datamodule:
      train:
        lm: {collator: {_target_: xlm_flexmdm.FlexMDMCollator, interpolant: '${predictor.interpolant}',
          pad_id: '${vocab.pad_id}', mask_id: '${vocab.mask_id}', bos_id: '${vocab.bos_id}', max_length:
          '${task.max_target_length}', time_power: 1.0, unmasking_weight: one}}
      val:
        lm: {collator: {_target_: xlm_flexmdm.FlexMDMLikelihoodCollator, interpolant:
          '${predictor.interpolant}', pad_id: '${vocab.pad_id}', mask_id: '${vocab.mask_id}', bos_id:
          '${vocab.bos_id}', max_length: '${task.max_target_length}', num_draws: 8}}
        prediction: {collator: {_target_: xlm_flexmdm.FlexMDMPromptCollator, pad_id: '${vocab.pad_id}',
          mask_id: '${vocab.mask_id}', bos_id: '${vocab.bos_id}', max_length: '${task.max_target_length}'}}
folders:
  arlm:
    config: {architectures: [ARLM], model_type: xlm_arlm, d_ff: 128, dropout: 0.0, activation: gelu,
      rotary_dim: null, vocab_size: 19, d_model: 64, num_layers: 1, num_heads: 4, xlm: {format_version: 1,
      class: xlm_arlm.model_arlm.ARLM, package: xlm-arlm, version: 1.0.0, weights: raw, step: 200,
      training_config: xlm_config.yaml}}
    weights: &rotary {transformer.embedding.weight: [19, 64],
      transformer.blocks.0.attention_norm.weight: [64],
      transformer.blocks.0.attention_norm.bias: [64], transformer.blocks.0.attention.qkv.weight: [192, 64],
      transformer.blocks.0.attention.output.weight: [64, 64], transformer.blocks.0.feed_forward_norm.weight:
      [64], transformer.blocks.0.feed_forward_norm.bias: [64],
      transformer.blocks.0.feed_forward.input.weight: [128, 64],
      transformer.blocks.0.feed_forward.input.bias: [128], transformer.blocks.0.feed_forward.output.weight:
      [64, 128], transformer.blocks.0.feed_forward.output.bias: [64], transformer.final_norm.weight: [64],
      transformer.final_norm.bias: [64], token_head.weight: [19, 64]}
  mlm:
    config: {architectures: [MLM], model_type: xlm_mlm, d_ff: 128, dropout: 0.0, activation: gelu,
      rotary_dim: null, vocab_size: 19, d_model: 64, num_layers: 1, num_heads: 4, xlm: {format_version: 1,
      class: xlm_mlm.model_mlm.MLM, package: xlm-mlm, version: 1.0.0, weights: raw, step: 200,
      training_config: xlm_config.yaml}}
    weights: *rotary
  mdlm:
    config: {architectures: [MDLMRotary], model_type: xlm_mdlm, d_ff: 128, dropout: 0.0, activation: gelu,
      rotary_dim: null, vocab_size: 19, d_model: 64, num_layers: 1, num_heads: 4, xlm: {format_version: 1,
      class: xlm_mdlm.model_mdlm.MDLMRotary, package: xlm-mdlm, version: 1.0.0, weights: raw, step: 200,
      training_config: xlm_config.yaml}}
    weights: *rotary
  ilm:
    config: {architectures: [ILM], model_type: xlm_ilm, d_ff: 128, dropout: 0.0, activation: gelu,
      rotary_dim: null, head: stop, num_length_classes: null, vocab_size: 19, d_model: 64, num_layers: 1,
      num_heads: 4, xlm: {format_version: 1, class: xlm_ilm.model_ilm.ILM, package: xlm-ilm, version: 1.0.0,
      weights: raw, step: 200, training_config: xlm_config.yaml}}
    weights: {<<: *rotary, stop_head.norm.weight: [64],
      stop_head.norm.bias: [64], stop_head.inner.weight: [128, 64], stop_head.inner.bias: [128],
      stop_head.outer.weight: [64, 128], stop_head.outer.bias: [64], stop_head.classifier.weight: [2, 64]}
  flexmdm:
    config: {architectures: [FlexMDM], model_type: xlm_flexmdm, d_condition: 128, d_ff: 128, dropout: 0.0,
      rotary_dim: null, head: distribution, vocab_size: 19, d_model: 64, num_layers: 1, num_heads: 4,
      max_length: 4, xlm: {format_version: 1, class: xlm_flexmdm.model_flexmdm.FlexMDM, package: xlm-flexmdm,
      version: 1.0.0, weights: raw, step: 200, training_config: xlm_config.yaml}}
    weights: {time_embedding.input.weight: [128, 256], time_embedding.input.bias: [128],
      time_embedding.output.weight: [128, 128], time_embedding.output.bias: [128],
      transformer.embedding.weight: [19, 64], transformer.blocks.0.attention_norm.weight: [64],
      transformer.blocks.0.attention.qkv.weight: [192, 64], transformer.blocks.0.attention.output.weight:
      [64, 64], transformer.blocks.0.feed_forward_norm.weight: [64],
      transformer.blocks.0.feed_forward.input.weight: [128, 64],
      transformer.blocks.0.feed_forward.input.bias: [128], transformer.blocks.0.feed_forward.output.weight:
      [64, 128], transformer.blocks.0.feed_forward.output.bias: [64], transformer.blocks.0.modulation.weight:
      [384, 128], transformer.blocks.0.modulation.bias: [384], transformer.final_norm.weight: [64],
      transformer.final_modulation.weight: [128, 128], transformer.final_modulation.bias: [128],
      token_head.weight: [19, 64], token_head.bias: [19], gap_head.modulation.weight: [128, 128],
      gap_head.modulation.bias: [128], gap_head.inner.weight: [64, 64], gap_head.inner.bias: [64],
      gap_head.outer.weight: [5, 64], gap_head.outer.bias: [5]}
""")
    )
)
"""Configs of experiments (where an experiment changes on purpose, its lines here follow) and, of a small
network of each family, ``config.json`` and the shapes of the weights."""
CONFIGS: dict[str, dict[str, Any]] = RECORDED["configs"]
FOLDERS: dict[str, dict[str, Any]] = RECORDED["folders"]
STAGES = ("train", "val")


def recorded_parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a config, the keys that are recorded here, and what they refer to."""
    data = config["datamodule"]
    collators = {
        stage: {name: {"collator": loader["collator"]} for name, loader in data[stage].items()}
        for stage in STAGES
    }
    keys = ("model", "noise", "loss", "predictor", "optimizer", "lr_scheduler")
    return {
        **{key: config[key] for key in keys},
        "datamodule": {"collator": data["collator"], **collators},
    }


def write(folder: Path, config: Mapping[str, Any]) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    return file


BEFORE = {"star_tiny_flexmdm": ("predictor.num_steps=128",)}
"""Values of version 1 that an experiment has changed on purpose."""


@pytest.mark.parametrize("experiment", CONFIGS)
def test_a_config_of_version_1_is_that_of_the_same_command_now(experiment: str, tmp_path: Path) -> None:
    old = read_config(write(tmp_path, CONFIGS[experiment]))
    assert old["format_version"] == 4
    config = composed(experiment, "job_type=train", "job_name=x", *BEFORE.get(experiment, ()))
    now = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    assert dict(flatten(recorded_parts(old))) == dict(flatten(recorded_parts(now)))
    again = {**old, "format_version": 1}  # written while version 1 was on its way to version 2
    assert read_config(write(tmp_path, again)) == old


@pytest.mark.parametrize("experiment", CONFIGS)
def test_a_pushed_config_of_version_1_names_only_what_is_allowed(experiment: str, tmp_path: Path) -> None:
    old = {**CONFIGS[experiment], "task": {"max_target_length": 4}}
    taken = pushed_config.read(write(tmp_path, old), "hf://someone/old")
    assert recorded_parts(taken).keys() <= taken.keys()
    assert taken["model"]["trunk"]["_target_"].startswith("xlm.modules.")


def write_folder(folder: Path, family: str) -> dict[str, torch.Tensor]:
    """A folder that version 1 exported, with weights that no network has at its start."""
    (folder / "config.json").write_text(json.dumps(FOLDERS[family]["config"]), "utf-8")
    state = {name: torch.rand(shape) for name, shape in FOLDERS[family]["weights"].items()}
    save_file(state, folder / "model.safetensors")
    return state


def assert_has(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    weights = model.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], value) for name, value in state.items())


@pytest.mark.parametrize("family", FOLDERS)
def test_a_folder_of_version_1_is_loaded(family: str, tmp_path: Path) -> None:
    state = write_folder(tmp_path, family)
    [name] = FOLDERS[family]["config"]["architectures"]
    network = getattr(import_module(f"xlm_{family}"), name)
    assert_has(network.from_pretrained(tmp_path), state)

    old = {**CONFIGS[f"star_tiny_{family}"], "vocab": {"size": 19}, "task": {"max_target_length": 4}}
    config = OmegaConf.create(read_config(write(tmp_path, old)))
    node = cast("dict[str, Any]", OmegaConf.to_container(config.model, resolve=True))
    node["trunk"]["num_layers"] = 1
    model = cast("nn.Module", make(node, "model"))
    source.load(model, str(tmp_path))
    assert_has(model, state)


def test_a_folder_of_a_later_version_is_refused(tmp_path: Path) -> None:
    assert format.FORMAT_VERSION == hub.FORMAT_VERSION == 4
    write_folder(tmp_path, "ilm")
    content = json.loads((tmp_path / "config.json").read_text("utf-8"))
    content["xlm"]["format_version"] = 5
    (tmp_path / "config.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(XLMError, match=r"config\.json has format version 5, this xlm-core reads up to 4"):
        read_own(tmp_path)
    with pytest.raises(ValueError, match="version 5, this xlm-modules reads up to 4"):
        import_module("xlm_ilm").ILM.from_pretrained(tmp_path)
