"""Attention methods that are a model of another family in config.json."""

import dataclasses

from ctxext.attention.pieces import Attention
from ctxext.methods.query_temperature import Ministral3Temperature
from ctxext.model.config import LlamaConfig
from ctxext.model.parts import Parts


def native_config(config: LlamaConfig, attention: Attention) -> LlamaConfig | None:
    """The same model with the method as a part of it; None if no family has that part.

    Raises ValueError, with the reason, for a method that a family has, over a model that it does
    not describe.
    """
    if not isinstance(attention, Ministral3Temperature):
        return None
    plain = Ministral3Temperature(attention.original_max_position_embeddings, beta=attention.beta)
    if attention != plain:
        return None
    parts = dataclasses.replace(config.parts, temperature_beta=attention.beta)
    expected = Parts(sliding_window=config.parts.sliding_window, temperature_beta=attention.beta)
    if config.parts.temperature_beta is not None:
        raise ValueError("this model has the temperature of Ministral 3 already")
    if parts != expected or config.attention_bias or config.mlp_bias:
        raise ValueError(
            f"model_type ministral3, which has this temperature, is a Llama without biases, and "
            f"cannot represent this {config.family}; export with causal attention, and choose it "
            "again when loading"
        )
    window = config.max_position_embeddings
    if attention.original_max_position_embeddings != window:
        raise ValueError(
            "model_type ministral3 has one field for L of its temperature and the window of "
            f"pre-training: {attention.original_max_position_embeddings} is not {window}; train "
            f"and export with --original-max-position-embeddings {window}"
        )
    return dataclasses.replace(config, family="ministral3", parts=parts)
