"""config.json: both spellings, both families, and every refusal on one line."""

import json
from pathlib import Path

import pytest
import torch

from model.config import ModelConfig
from model.fields import ConfigError
from model.tiny import config_json, presets

RELEASED = {
    "model_type": "deepseek_v32",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 2048,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "rope_theta": 10000,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


def released(**changes):
    return {**RELEASED, **changes}


def yarn(**changes):
    return released(rope_scaling={**RELEASED["rope_scaling"], **changes})


def test_the_released_config_gives_the_released_numbers():
    config = ModelConfig.from_dict(RELEASED)
    assert config.softmax_scale == pytest.approx(0.1352338, abs=1e-7)
    assert config.latent_dim == 576
    assert config.num_moe_layers == 58
    assert config.rope.attention_factor == 1.0
    assert config.fp8_block == (128, 128)


def test_both_rope_spellings_are_the_same_config():
    new = released(rope_parameters={**RELEASED["rope_scaling"], "rope_type": "yarn", "rope_theta": 10000.0})
    del new["rope_theta"], new["rope_scaling"], new["rope_parameters"]["type"]
    assert ModelConfig.from_dict(new) == ModelConfig.from_dict(RELEASED)


@pytest.mark.parametrize(("indexer", "theirs"), [(True, "DeepseekV32Config"), (False, "DeepseekV3Config")])
def test_a_config_that_transformers_rewrote_is_the_same_config(transformers, tmp_path, indexer, theirs):
    raw = config_json(presets()["test"], vocab_size=272, indexer=indexer, fp8=False, dtype=torch.bfloat16)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    getattr(transformers, theirs).from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    rewritten = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "rope_parameters" in rewritten and "rope_scaling" not in rewritten
    assert ModelConfig.from_dict(rewritten) == ModelConfig.from_dict(raw)


def test_without_rope_scaling_the_rope_is_plain():
    rope = ModelConfig.from_dict(released(rope_scaling=None)).rope
    assert not rope.is_yarn
    assert (rope.attention_factor, rope.softmax_factor) == (1.0, 1.0)


def test_deepseek_v3_has_no_indexer_and_may_lack_the_query_latent():
    config = ModelConfig.from_dict(released(model_type="deepseek_v3", q_lora_rank=None))
    assert config.indexer is None
    assert config.q_lora_rank is None


def test_several_eos_ids_are_kept_in_order():
    assert ModelConfig.from_dict(released(eos_token_id=[5, 3])).eos_token_ids == (5, 3)


REFUSED = {
    "another family": (released(model_type="llama"), "model_type is 'llama'"),
    "code in the checkpoint": (released(auto_map={"AutoModel": "evil.Model"}), "auto_map is set"),
    "a billion experts": (released(n_routed_experts=10**9), "n_routed_experts is 1000000000"),
    "a billion layers": (released(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "experts of all layers": (
        released(n_routed_experts=1 << 19, num_hidden_layers=61),
        "over the limit 1048576",
    ),
    "missing dimension": ({k: v for k, v in RELEASED.items() if k != "hidden_size"}, "hidden_size is None"),
    "text for a number": (released(hidden_size="7168"), "hidden_size is '7168'"),
    "true for a number": (released(kv_lora_rank=True), "kv_lora_rank is True"),
    "negative": (released(index_topk=-1), "index_topk is -1"),
    "groups that do not divide": (released(n_group=7), "must divide into n_group 7"),
    "one expert per group": (released(n_group=256), "needs two experts in each"),
    "more groups kept than there are": (released(topk_group=9), "topk_group is 9"),
    "more experts than the kept groups": (released(num_experts_per_tok=129), "the kept groups hold 128"),
    "odd rotary": (released(qk_rope_head_dim=63), "qk_rope_head_dim is 63"),
    "more dense layers than layers": (released(first_k_dense_replace=62), "first_k_dense_replace is 62"),
    "index head below rotary": (released(index_head_dim=32), "index_head_dim is 32"),
    "indexer without query latent": (released(q_lora_rank=None), "q_lora_rank is null"),
    "eps of zero": (released(rms_norm_eps=0), "rms_norm_eps is 0"),
    "eos outside": (released(eos_token_id=129280), "eos_token_id is 129280"),
    "eos as text": (released(eos_token_id="</s>"), "eos_token_id is '</s>'"),
    "no eos": (released(eos_token_id=[]), "lists 0 ids"),
    "bos outside": (released(bos_token_id=129280), "bos_token_id is 129280"),
    "biases": (released(attention_bias=True), "attention_bias is True"),
    "tied head": (released(tie_word_embeddings=True), "tie_word_embeddings is True"),
    "softmax gate": (released(scoring_func="softmax"), "scoring_func is 'softmax'"),
    "greedy gate": (released(topk_method="greedy"), "topk_method is 'greedy'"),
    "other activation": (released(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "interleaved indexer": (released(indexer_rope_interleave=True), "indexer_rope_interleave is True"),
    "layer kinds that contradict": (released(mlp_layer_types=["sparse"] * 61), "mlp_layer_types contradicts"),
    "flag as text": (released(norm_topk_prob="false"), "norm_topk_prob is 'false'"),
    "theta as text": (released(rope_theta="10000"), "rope_theta is '10000'"),
    "theta of one": (released(rope_theta=1), "rope_theta is 1: must be above 1"),
    "rope as text": (released(rope_scaling="yarn"), "rope_scaling is 'yarn'"),
    "other rope": (yarn(type="longrope"), "rope type is 'longrope'"),
    "yarn without factor": (yarn(factor=None), "factor is None"),
    "yarn that shrinks": (yarn(factor=0.5), "rope factor is 0.5"),
    "yarn with beta zero": (yarn(beta_slow=0), "beta_slow is 0"),
    "attention factor by hand": (yarn(attention_factor=2.0), "attention_factor"),
    "other quantisation": (released(quantization_config={"quant_method": "awq"}), "quantization_config is"),
    "quantisation without blocks": (
        released(quantization_config={"quant_method": "fp8"}),
        "weight_block_size is None",
    ),
    "infinite number": (released(routed_scaling_factor=float("inf")), "routed_scaling_factor is inf"),
    "long value": (released(model_type="x" * 100_000), "model_type is 'xxxx"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_config_that_cannot_be_served_is_refused_on_one_line_that_names_the_field(case):
    raw, words = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(raw)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


FILES = {
    "missing": (None, "is missing"),
    "not JSON": (b"{", "cannot be read as JSON"),
    "not text": (b"\xff\xfe\xff\xff", "cannot be read as JSON"),
    "a list": (b"[]", "holds a list"),
    "nested without end": (b"[" * 200_000, "cannot be read as JSON"),
    "a number of a million digits": (b'{"n_group": 1' + b"0" * 1_000_000 + b"}", "cannot be read as JSON"),
    "far too long": (b" " * ((16 << 20) + 1), "not a config.json"),
    "a bad field": (b'{"model_type": "llama"}', "model_type is 'llama'"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_config_is_refused_by_its_path(tmp_path: Path, case):
    content, words = FILES[case]
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_file(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
