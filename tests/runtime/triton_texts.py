"""Configurations as people write them, for tests of their reading."""

from __future__ import annotations

PLAIN = """
name: "plain"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" } ]
"""

WHOLE = """
backend: "onnxruntime"
default_model_filename: "net.onnx"
max_batch_size: 16
input [
  { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] format: FORMAT_NONE },
  { name: "hint" data_type: TYPE_STRING dims: [ 1 ] optional: true }
]
output [ { name: "y" data_type: TYPE_INT64 dims: [ -1 ] } ]
instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_CPU } ]
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 500
  preserve_ordering: true
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy {
    timeout_action: DELAY default_timeout_microseconds: 1000 allow_timeout_override: true max_queue_size: 32
  }
  priority_queue_policy { key: 1 value { max_queue_size: 7 } }
}
model_warmup [ {
  name: "full" batch_size: 16 count: 3
  inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 3, 4 ] random_data: true } }
  inputs { key: "hint" value { data_type: TYPE_STRING dims: [ 1 ] input_data_file: "hint.raw" } }
} ]
parameters { key: "intra_op_thread_count" value: { string_value: "3" } }
parameters { key: "execution_mode" value: { string_value: "1" } }
parameters { key: "team" value: { string_value: "vision" } }
optimization { graph { level: -1 } eager_batching: true }
response_cache { enable: true }
metric_tags { key: "a" value: "b" }
"""

SEQUENCES = """
platform: "onnxruntime_onnx"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
sequence_batching {
  max_sequence_idle_microseconds: 5000000
  oldest { max_candidate_sequences: 9 preferred_batch_size: [ 2 ] max_queue_delay_microseconds: 70 preserve_ordering: true }
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
    { name: "END" control [ { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } ] },
    { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING } ] }
  ]
  state [ {
    input_name: "s_in" output_name: "s_out" data_type: TYPE_FP32 dims: [ 5 ]
    initial_state { name: "z" data_type: TYPE_FP32 dims: [ 5 ] zero_data: true }
  } ]
}
"""
