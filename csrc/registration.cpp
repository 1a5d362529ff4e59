// The schema of every op, for all devices. Each implementation is registered next to its code.

#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(paged_stream, m) {
  m.def(
      "rotary_and_cache(Tensor(a!) query, Tensor(b!)? sink_query, Tensor key, Tensor value, "
      "Tensor(c!) k_cache, Tensor(d!) v_cache, Tensor rotary, Tensor? sink_rotary, "
      "Tensor slot_mapping, bool interleaved) -> ()");
  m.def(
      "paged_attention(Tensor query, Tensor? sink_query, Tensor k_cache, Tensor v_cache, "
      "Tensor[] batch, float scale, Tensor? alibi_slopes, float softcap, int local_window) "
      "-> Tensor");
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
  m.def("quantized_weight_bytes(int[] rows, int in_features, str formats) -> int");
  m.def(
      "pack_quantized_weight(Tensor(a!) out, Tensor blocks, int first_row, int[] rows, int "
      "in_features, str formats) -> ()");
  m.def(
      "embedding_rows(Tensor ids, Tensor packed_weight, int in_features, bool is_bfloat16) -> "
      "Tensor");
  m.def(
      "linear(Tensor input, Tensor packed_weight, Tensor? bias, int out_features, "
      "bool float_output) -> Tensor");
  m.def("add_rms_norm(Tensor(a!) residual, Tensor? delta, Tensor weight, float eps) -> Tensor");
  m.def("silu_and_mul(Tensor gate_up) -> Tensor");
  m.def(
      "lay_out_attention_layer(Tensor?[] weights, int[] heads, float eps, bool interleaved, "
      "float scale, float softcap, int local_window, bool is_bfloat16) -> int");
  m.def("free_attention_layer(int layer) -> ()");
  m.def(
      "attention_layer(Tensor(a!) residual, Tensor? delta, int layer, Tensor rotary, "
      "Tensor? sink_rotary, Tensor(b!) k_cache, Tensor(c!) v_cache, Tensor[] batch) -> Tensor");
  m.def("lay_out_gated_mlp(Tensor?[] weights, float eps, bool is_bfloat16) -> int");
  m.def("free_gated_mlp(int mlp) -> ()");
  m.def("gated_mlp(Tensor(a!) residual, Tensor? delta, int mlp) -> Tensor");
  m.def("lay_out_decoder_layers(int[] attention, int[] mlp, int[] layer_rotary) -> int");
  m.def("free_decoder_layers(int layers) -> ()");
  m.def(
      "decoder_layers(Tensor(a!) residual, int layers, Tensor[] rotary, Tensor[] sink_rotary, "
      "Tensor(b!)[] k_caches, Tensor(c!)[] v_caches, Tensor[] batch, int[] adapters, "
      "Tensor? row_adapters) -> Tensor");
  m.def(
      "lay_out_adapter(Tensor[] weights, int[] places, Tensor scalings, int num_layers, "
      "bool is_bfloat16) -> int");
  m.def("free_adapter(int adapter) -> ()");
  m.def(
      "add_adapters(Tensor(a!) out, Tensor input, int[] adapters, Tensor row_adapters, int layer, "
      "int projection) -> ()");
  m.def(
      "lay_out_batch(Tensor token_ids, Tensor block_rows, Tensor sequences, int block_size) "
      "-> (Tensor[], bool)");
  m.def("rotary_table(Tensor positions, Tensor inv_freq, float scaling) -> Tensor");
  m.def("sample_tokens(Tensor logits, Tensor[] sampling, Tensor positions) -> Tensor");
  m.def(
      "advance_decode(Tensor sampled, Tensor(a!) generated, Tensor(b!) num_generated, "
      "Tensor(c!) num_left, Tensor stop_token_ids, Tensor(d!)[] batch, int block_size) -> ()");
  m.def("build_version() -> str");
  m.def("cpu_isa() -> str");
  m.def("set_cpu_isa(str name) -> ()");
}

// Importing the extension loads the library, whose static initialisers do the rest.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
