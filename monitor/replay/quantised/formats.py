"""The format of a checkpoint, by ``quantization_config.quant_method`` of its config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from transformers import PreTrainedConfig

from monitor.replay.quantised import awq, bitsandbytes, compressed, fp8, gptq, hqq, mxfp4, torchao
from monitor.replay.quantised.form import Format, refusal

FIELD: Final = "quantization_config"
READERS: Final[Mapping[str, Callable[[Mapping[str, Any], str], Format]]] = {
    "fp8": fp8.read,
    "compressed-tensors": compressed.read,
    "mxfp4": mxfp4.read,
    "gptq": gptq.read,
    "awq": awq.read,
    "bitsandbytes": bitsandbytes.read,
    "torchao": torchao.read,
    "hqq": hqq.read,
}


def taken_format(config: PreTrainedConfig) -> Format | None:
    """The format that ``config`` names, taken out of it; None for a checkpoint that is not quantised.

    Taken out, so that the library reads open weights. Raises `ModelError` for a format that is not read.
    """
    parts = {id(part): part for part in (config, config.get_text_config())}.values()
    given = [found for part in parts if (found := getattr(part, FIELD, None)) is not None]
    if not given:
        return None
    fields = given[0] if isinstance(given[0], dict) else given[0].to_dict()
    method = str(getattr(fields.get("quant_method"), "value", fields.get("quant_method")))
    reader = READERS.get(method)
    if reader is None:
        raise refusal(
            f"the weights are quantised by {method}, which is not read; "
            f"these are: {', '.join(READERS)}"
        )
    found_format = reader(fields, config.get_text_config().model_type)
    for part in parts:
        part.__dict__.pop(FIELD, None)
    return found_format
