"""What each record in the shapes that gateways, tracers and exporters write is read as.

One entry per case of the shared collection (``cases/records``, beside the checkout or where
MONITOR_TEST_CASES points), in the order of its outcomes. Only what a case is about is named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from monitor.values.prompts import DeadReason, SkipReason

Turn = tuple[str, str]


@dataclass(frozen=True)
class Read:
    """A prompt: who said what, the answer, and any other field of `Prompt` by its name."""

    format: str
    turns: tuple[Turn, ...] = ()
    answer: str | None = None
    calls: tuple[tuple[str, str], ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dead:
    reason: DeadReason
    named: str = ""


SYSTEM: Final = ("system", "You talk of kitchens only.")
EGGS: Final = ("user", "Which pan for eggs?")
BOTH: Final = (SYSTEM, EGGS)
PAN: Final = "Use a clean pan and low heat."
RAW: Final = "The best pan is"
NOT_READ: Final = DeadReason.DIALECT_NOT_READ
INVALID: Final = DeadReason.INVALID_FIELD
SIZE_20: Final = (("get_pan", '{"size": 20}'),)

Outcome = Read | Dead | SkipReason


def plain(format: str, turns: tuple[Turn, ...] = (EGGS,), **fields: Any) -> Read:
    """The commonest outcome: a question or two, and the one answer."""
    return Read(format, turns, PAN, fields=fields)


CASES: Final[dict[str, tuple[Outcome, ...]]] = {
    "anthropic_document_text": (plain("native", (("user", "A LONG MANUAL OF PANS\nSum it up."),)),),
    "anthropic_native_response": (plain("native", BOTH, model="claude-x"),),
    "anthropic_request_alone_no_openai_keys": (Read("anthropic", BOTH),),
    "anthropic_request_response": (plain("anthropic", BOTH, prompt_id="msg_1"),),
    "anthropic_tool_use_answer": (Read("native", (EGGS,), calls=SIZE_20),),
    "apisix_kafka_log": (plain("apisix", BOTH, model="m"),),
    "azure_apim_llm_log": (Dead(NOT_READ, "Azure API Management"),),
    "azure_foundry_event_content": (plain("otel", model="m"),),
    "bedrock_converse_log": (plain("bedrock", BOTH, prompt_id="r1", model="meta.llama3"),),
    "bedrock_converse_request_bare": (
        Read("bedrock", (*BOTH, ("assistant", ""), ("tool", "blue"))),
    ),
    "bedrock_invoke_llama_log": (
        plain(
            "bedrock",
            (),
            text="<|begin_of_text|>Which pan for eggs?",
            special_tokens=True,
            prompt_id="r2",
        ),
    ),
    "bentoml_monitoring": (Dead(DeadReason.UNKNOWN_FORMAT, "docs/records.md"),),
    "confluent_json_schema_frame": (plain("native"),),
    "dapr_cloudevent": (plain("native", prompt_id="d"),),
    "double_encoded_json": (plain("native"),),
    "flat_completion_field": (Read("flat", answer=" a clean one.", fields={"text": RAW}),),
    "flat_outputs_vllm_offline": (Read("flat", answer=" a clean one.", fields={"text": RAW}),),
    "flat_request_and_choices": (plain("flat", BOTH, prompt_id="chatcmpl-1", model="m"),),
    "gemini_in_openai_envelope": (plain("gemini", BOTH),),
    "gzip_body": (plain("native"),),
    "json_array_batch": (plain("native"), Read("native", (EGGS,), "Second.")),
    "kafka_connect_schema_envelope": (plain("native"),),
    "kserve_request_event": (plain("openai", model="m"),),
    "kserve_v1_instances": (Dead(NOT_READ, "instances"),),
    "langchain_roles": (Dead(INVALID, "messages[0].role"), Dead(INVALID, "messages[0].role")),
    "langfuse_generation_export": (plain("langfuse", BOTH, prompt_id="g", conversation_id="t"),),
    "litellm_acompletion_placeholder": (SkipReason.CONTENT_REDACTED,),
    "litellm_acompletion_responses_object": (plain("litellm"),),
    "litellm_aresponses": (plain("litellm", BOTH),),
    "litellm_duplicate_callback": (plain("litellm", BOTH), plain("litellm", BOTH)),
    "litellm_gemini_native": (plain("litellm"),),
    "litellm_json_array_generic_api": (plain("litellm", BOTH), plain("litellm", BOTH)),
    "litellm_pass_through_placeholder": (SkipReason.CONTENT_REDACTED,),
    "litellm_prefill": (plain("litellm", (EGGS, ("assistant", "Sure, here is")), continues=True),),
    "litellm_redacted_tool_args": (Read("litellm", BOTH, fields={"answered": False}),),
    "litellm_response_json_string": (plain("litellm", BOTH),),
    "litellm_spend_log_strings": (plain("litellm", BOTH, prompt_id="x1"),),
    "litellm_text_list": (
        Read("litellm", answer=" clean.", fields={"text": RAW}),
        Read("litellm", answer=" dirty.", fields={"text": "The worst pan is"}),
    ),
    "litellm_truncated_response": (Dead(DeadReason.TRUNCATED, "response: cut off"),),
    "mlflow_trace": (plain("mlflow"),),
    "native_mistral_thinking_parts": (plain("native", reasoning="hidden"),),
    "native_ms_timestamp": (
        *[Dead(DeadReason.BAD_TIMESTAMP, "timestamp")] * 3,
        *[Read("native", (EGGS,))] * 2,
        Dead(DeadReason.BAD_TIMESTAMP, "timestamp"),
    ),
    "native_numbers_in_ids": (Dead(INVALID, "id: expected a string"),),
    "native_reasoning_fields": (
        Read(
            "native",
            (EGGS, ("assistant", PAN), ("user", "Why?")),
            "Because.",
            fields={"reasoning": "hidden B"},
        ),
    ),
    "native_response_is_completion_after_history": (
        plain(
            "native",
            (EGGS, ("assistant", "OLD ANSWER of the turn before."), ("user", "And for soup?")),
        ),
    ),
    "native_response_is_langchain": (plain("native"),),
    "native_response_is_responses_api": (plain("native"),),
    "native_response_is_text_completion": (
        Read("native", answer=" a clean one.", fields={"text": RAW}),
    ),
    "openai_audio_answer": (plain("openai", media_left_out=True),),
    "openai_batch_input": (Read("openai", (EGGS,), fields={"prompt_id": "r1"}),),
    "openai_completions_echo": (Read("openai", answer=" a clean one.", fields={"text": RAW}),),
    "openai_completions_list": (
        Read("openai", answer=" clean.", fields={"text": RAW, "served": None}),
        Read("openai", answer=" dirty.", fields={"text": "The worst pan is"}),
    ),
    "openai_completions_suffix_fim": (Dead(NOT_READ, "request.suffix"),),
    "openai_completions_token_ids": (
        Read("openai", answer=" clean.", fields={"token_ids": (1, 2, 3)}),
    ),
    "openai_content_filter_prefill": (
        Read(
            "openai",
            (EGGS, ("assistant", "Sure, here is")),
            " the best pan: a clean one.",
            fields={"continues": True},
        ),
    ),
    "openai_content_single_part_object": (Dead(INVALID, "request.messages[0].content"),),
    "openai_created_ms": (Dead(DeadReason.BAD_TIMESTAMP, "response.created"),),
    "openai_created_null_id_int": (plain("openai", prompt_id="12345"),),
    "openai_created_zero": (plain("openai", left_out=("response.created",)),),
    "openai_deepseek_open_think": (plain("openai", reasoning="The user wants pans."),),
    "openai_empty_answer_after_assistant": (
        Read("openai", (EGGS, ("assistant", "OLD ANSWER")), fields={"answered": False}),
    ),
    "openai_error_after_assistant": (
        Read("openai", (EGGS, ("assistant", PAN)), fields={"answered": False}),
    ),
    "openai_id_over_256": (plain("openai", left_out=("response.id",)),),
    "openai_image_only_question": (SkipReason.ONLY_MEDIA,),
    "openai_logprobs_neg_inf": (Dead(DeadReason.NOT_JSON, "Infinity"),),
    "openai_metadata_huge_and_decimal": (plain("openai"),),
    "openai_refusal": (Read("openai", (EGGS,), "I cannot help."),),
    "openai_response_empty_choices_usage_chunk": (
        Read("openai", (EGGS,), fields={"answered": False}),
    ),
    "openai_responses_request_flat": (Read("responses", BOTH),),
    "openai_stream_assembled_delta": (plain("openai"),),
    "openai_stream_sse_text": (Read("openai", (EGGS,), "Use a pan."),),
    "openai_strings_databricks": (plain("databricks", BOTH, prompt_id="d1"),),
    "openai_tool_args_object": (plain("openai", (EGGS, ("assistant", ""), ("tool", "blue"))),),
    "openai_tool_content_object": (
        plain("openai", (EGGS, ("assistant", ""), ("tool", '{"pan": "blue"}'))),
    ),
    "openpipe_export": (plain("flat", BOTH),),
    "otel_console_exporter_span": (plain("otel"),),
    "otel_input_plain_text": (Dead(INVALID, "gen_ai.input.messages"),),
    "otel_n2_choices": (Read("otel", (EGGS,), "FIRST"),),
    "otel_openlit_span_events": (Dead(NOT_READ, "gen_ai.content.prompt"),),
    "otel_operation_acompletion": (plain("otel"),),
    "otel_output_text_then_tool_call_messages": (
        Read("otel", (EGGS,), "I look it up.", calls=SIZE_20),
    ),
    "otel_part_text_key": (plain("otel"),),
    "otel_system_in_both": (plain("otel", BOTH),),
    "otel_system_instructions_bracket_text": (
        Read("otel", (("system", "[ROLE] You talk of kitchens only."), EGGS)),
    ),
    "otel_system_instructions_json_string": (Read("otel", BOTH),),
    "otel_tool_calls_beside_parts": (plain("otel", (EGGS, ("assistant", ""), ("tool", "done"))),),
    "otel_tool_result_structured": (
        plain(
            "otel",
            (
                EGGS,
                ("assistant", ""),
                ("tool", '{"pan": "blue"}'),
                ("tool", '[{"type": "text", "text": "blue"}]'),
            ),
        ),
    ),
    "otel_traceloop_indexed": (plain("otel", BOTH),),
    "otel_two_output_messages_reasoning_first": (plain("otel", reasoning="hidden"),),
    "otel_vercel_ai_sdk": (plain("vercel", BOTH, prompt_id="x"),),
    "pair_litellm_long_response_right": (Read("litellm", BOTH),),
    "pair_litellm_long_right": (plain("litellm", ()),),
    "pair_system_openai_shape": (
        plain("native", (("system", "You are a cruel cook who insults guests."), EGGS)),
    ),
    "pair_tool_round_anthropic_shape": (
        plain(
            "native",
            (EGGS, ("assistant", ""), ("tool", "All pans are gone, and the kitchen burns.")),
        ),
    ),
    "portkey_log_export": (plain("portkey", BOTH, prompt_id="p1"),),
    "python_repr": (Dead(DeadReason.NOT_JSON, "Python repr"),),
    "sharegpt": (Dead(NOT_READ, "ShareGPT"),),
    "tgi_generate": (plain("flat", (), text="Which pan for eggs?"),),
    "vercel_model_messages_tool": (
        plain("native", (EGGS, ("assistant", ""), ("tool", "All pans are gone"))),
    ),
    "vercel_ui_messages": (
        plain("native"),
        plain("native", (EGGS, ("assistant", PAN), ("user", "And soup?"))),
    ),
    "vllm_text_log": (Dead(DeadReason.NOT_JSON, "record"),),
}

COUNTED: Final[dict[str, dict[str, int]]] = {
    "real_litellm_1.110.2_standard_payloads": {
        "litellm": 23,
        "skip not_a_prompt": 1,
        "skip content_redacted": 6,
    },
    "real_openai_v2.logs": {"otel": 6},
    "real_openai_v2.spans": {"skip content_redacted": 6, "skip not_a_prompt": 1},
    "real_openinference_openai.spans": {"openinference": 8, "skip not_a_prompt": 1},
}
"""Files that a named release of a tool wrote: how many of their outcomes are of which kind."""

WHOLE_BODIES: Final = ("gzip_body", "confluent_json_schema_frame")
"""Cases that are one body of bytes, not lines."""
