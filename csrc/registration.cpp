// The schema of every op, for all devices. Implementations register themselves beside their code.

#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(paged_stream, m) {
  m.def(
      "rotary_and_cache(Tensor(a!) query, Tensor(b!)? sink_query, Tensor key, Tensor value, "
      "Tensor(c!) k_cache, Tensor(d!) v_cache, Tensor rotary, Tensor? sink_rotary, "
      "Tensor slot_mapping, bool interleaved) -> ()");
  m.def(
      "paged_attention(Tensor query, Tensor? sink_query, Tensor k_cache, Tensor v_cache, "
      "Tensor block_table, Tensor query_start_loc, Tensor seq_lens, Tensor num_sink_tokens, "
      "Tensor window_size, Tensor window_floor, Tensor ring_blocks, float scale, "
      "Tensor? alibi_slopes, float softcap, int local_window) -> Tensor");
  m.def(
      "gather_blocks(Tensor k_cache, Tensor v_cache, Tensor slot_mapping, Tensor? rotary, "
      "bool interleaved) -> (Tensor, Tensor)");
  m.def(
      "scatter_blocks(Tensor key, Tensor value, Tensor(a!) k_cache, Tensor(b!) v_cache, "
      "Tensor slot_mapping, Tensor? rotary, bool interleaved) -> ()");
  m.def(
      "rotary_reindex(Tensor(a!) k_cache, Tensor slot_mapping, Tensor rotary, bool interleaved) "
      "-> ()");
  m.def("copy_blocks(Tensor(a!) kv_cache, Tensor block_mapping) -> ()");
  m.def("pack_linear_weight(Tensor weight) -> Tensor");
  m.def("pack_quantized_weight(Tensor blocks, str format) -> Tensor");
  m.def(
      "linear(Tensor input, Tensor packed_weight, Tensor? bias, int out_features, "
      "bool float_output) -> Tensor");
  m.def("add_rms_norm(Tensor(a!) residual, Tensor? delta, Tensor weight, float eps) -> Tensor");
  m.def("silu_and_mul(Tensor gate_up) -> Tensor");
  m.def(
      "attention_block(Tensor(a!) residual, Tensor? delta, Tensor norm_weight, float eps, "
      "Tensor qkv_weight, Tensor? qkv_bias, Tensor output_weight, Tensor? output_bias, "
      "int num_heads, Tensor rotary, Tensor? sink_rotary, bool interleaved, "
      "Tensor(b!) k_cache, Tensor(c!) v_cache, Tensor slot_mapping, Tensor block_table, "
      "Tensor query_start_loc, Tensor seq_lens, Tensor num_sink_tokens, Tensor window_size, "
      "Tensor window_floor, Tensor ring_blocks, float scale, Tensor? alibi_slopes, "
      "float softcap, int local_window) -> Tensor");
  m.def(
      "gated_mlp(Tensor(a!) residual, Tensor? delta, Tensor norm_weight, float eps, "
      "Tensor up_weight, Tensor? up_bias, Tensor down_weight, Tensor? down_bias, "
      "int intermediate_size) -> Tensor");
  m.def(
      "lay_out_layers(Tensor[] attention_norms, Tensor[] qkv_weights, Tensor[] qkv_biases, "
      "Tensor[] output_weights, Tensor[] output_biases, Tensor[] mlp_norms, Tensor[] up_weights, "
      "Tensor[] up_biases, Tensor[] down_weights, Tensor[] down_biases, float eps, int num_heads, "
      "int num_kv_heads, int head_dim, int intermediate_size, bool interleaved, float scale, "
      "Tensor? alibi_slopes, float softcap, int[] local_windows, int[] layer_rotary, "
      "bool is_bfloat16) -> int");
  m.def("free_layers(int layers) -> ()");
  m.def(
      "decoder_layers(Tensor(a!) residual, int layers, Tensor[] rotary, Tensor[] sink_rotary, "
      "Tensor(b!)[] k_caches, Tensor(c!)[] v_caches, Tensor slot_mapping, Tensor block_table, "
      "Tensor query_start_loc, Tensor seq_lens, Tensor num_sink_tokens, Tensor window_size, "
      "Tensor window_floor, Tensor ring_blocks) -> Tensor");
  m.def(
      "lay_out_batch(Tensor token_ids, Tensor block_rows, int block_size, int[] lengths, "
      "int[] starts, int[] num_sink_tokens, int[] window_size, int[] window_floor, "
      "int[] ring_blocks, int[] row_lengths) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, bool)");
  m.def("rotary_table(Tensor positions, Tensor inv_freq, float scaling) -> Tensor");
  m.def(
      "sample_tokens(Tensor logits, Tensor temperature, Tensor min_p, Tensor top_k, Tensor top_p, "
      "Tensor seeds, Tensor positions) -> Tensor");
  m.def(
      "advance_decode(Tensor sampled, Tensor(a!) generated, Tensor(b!) num_generated, "
      "Tensor(c!) num_left, Tensor stop_token_ids, Tensor(d!) token_ids, Tensor(e!) positions, "
      "Tensor(f!) sink_positions, Tensor(g!) seq_lens, Tensor(h!) slot_mapping, "
      "Tensor block_table, Tensor num_sink_tokens, Tensor window_size, Tensor window_floor, "
      "Tensor ring_blocks, int block_size) -> ()");
  m.def("cpu_isa() -> str");
  m.def("set_cpu_isa(str name) -> ()");
}

// Importing the extension loads the library, whose static initialisers do the rest.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
