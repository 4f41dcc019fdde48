"""The description of a family of models that reading and writing its formats needs."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from ctxext.model.config import LlamaConfig
from ctxext.rope import RopeScaling


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models: its configuration keys and tensor names in published files.

    Within a layer, parameters have Hugging Face's names in the parameter tree already; a family
    names what is around the layers.
    """

    model_type: str
    """`model_type` in config.json."""
    architecture: str
    """The class name under `architectures` in config.json."""
    config_class: type[LlamaConfig]
    read_config: Callable[[dict[str, Any]], tuple[LlamaConfig, RopeScaling]]
    """Shape and scaling of a config.json. Raises ValueError naming the key it cannot represent."""
    write_config: Callable[[LlamaConfig], dict[str, Any]]
    """The keys of config.json, apart from those of the rotary embedding."""

    embedding: str
    layers: str
    """The prefix of all layers, which the number of the layer follows."""
    norm: str
    lm_head: str
    derived_tensors: re.Pattern[str]
    """Buffers that follow from the configuration, which older files hold; they are not read."""
    modules_to_save: Mapping[str, tuple[str, ...]]
    """PEFT's module names for each name in `LoRA.modules_to_save`."""

    gguf_architecture: str
    """`general.architecture` of a GGUF file and the prefix of its keys."""
    gguf_outer_names: Mapping[str, str]
    """HF name -> GGUF name outside the layers, both without ".weight"."""
    gguf_layer_names: Mapping[str, str]
    """The same within a layer, without the layer's prefix."""
