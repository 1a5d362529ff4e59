"""Chat templates in the formats of models that people use, written anew for these tests.

They take `messages`, and where the models do, `tools` and `enable_thinking`.
"""

from __future__ import annotations

# System message in front of the first question, BOS before each question, EOS behind each answer.
LLAMA_2 = r"""
{%- if messages[0].role == 'system' -%}
  {%- set rules = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' -%}
  {%- set rest = messages[1:] -%}
{%- else -%}
  {%- set rules = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for m in rest -%}
  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('roles must alternate user/assistant') -}}
  {%- endif -%}
  {%- if m.role == 'user' -%}
    {%- set text = rules + m.content if loop.first else m.content -%}
    {{- bos_token + '[INST] ' + text.strip() + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + m.content.strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""

# System message in front of the last question.
MISTRAL = r"""
{%- if messages[0].role == 'system' -%}
  {%- set rules = messages[0].content + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}
  {%- set rules = '' -%}{%- set rest = messages -%}
{%- endif -%}
{{- bos_token -}}
{%- for m in rest -%}
  {%- if m.role == 'user' -%}
    {{- '[INST] ' + (rules if loop.last else '') + m.content + '[/INST]' -}}
  {%- elif m.role == 'assistant' -%}
    {{- ' ' + m.content + eos_token -}}
  {%- else -%}
    {{- raise_exception('only user and assistant roles') -}}
  {%- endif -%}
{%- endfor -%}
"""

LLAMA_3 = r"""
{{- bos_token -}}
{%- for m in messages -%}
  {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim -}}
  {{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
"""

CHATML = r"""
{%- for m in messages -%}
  {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""

# A system message of their own, if there is none.
QWEN_2 = (
    r"{%- if messages[0].role != 'system' -%}"
    r"{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}{%- endif -%}" + CHATML
)
SMOLLM_2 = QWEN_2.replace("You are a helpful assistant.", "You are a helpful AI named SmolLM")

# Thinking is left out of all answers before the last question.
QWEN_3 = r"""
{%- if tools -%}
  {{- '<|im_start|>system\n' -}}
  {%- if messages[0].role == 'system' -%}{{- messages[0].content + '\n\n' -}}{%- endif -%}
  {{- '# Tools\n<tools>' -}}
  {%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
  {{- '\n</tools><|im_end|>\n' -}}
{%- elif messages[0].role == 'system' -%}
  {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' -}}
{%- endif -%}
{%- set ns = namespace(last=messages|length - 1) -%}
{%- for m in messages[::-1] -%}
  {%- set index = messages|length - 1 - loop.index0 -%}
  {%- if ns.searching is not defined and m.role == 'user' -%}
    {%- set ns.searching = false -%}{%- set ns.last = index -%}
  {%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
  {%- if m.role == 'user' or (m.role == 'system' and not loop.first) -%}
    {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}
  {%- elif m.role == 'assistant' -%}
    {%- set text = m.content -%}{%- set thought = '' -%}
    {%- if '</think>' in text -%}
      {%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
      {%- set text = text.split('</think>')[-1].lstrip('\n') -%}
    {%- endif -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- if loop.index0 > ns.last and (loop.last or thought) -%}
      {{- '<think>\n' + thought + '\n</think>\n\n' -}}
    {%- endif -%}
    {{- text + '<|im_end|>\n' -}}
  {%- elif m.role == 'tool' -%}
    {{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
  {%- if enable_thinking is defined and enable_thinking is false -%}
    {{- '<think>\n\n</think>\n\n' -}}
  {%- endif -%}
{%- endif -%}
"""

# What the model thought is left out of all answers, and the head of an answer begins to think.
DEEPSEEK_R1 = r"""
{{- bos_token -}}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}
    {{- m.content -}}
  {%- elif m.role == 'user' -%}
    {{- '<|User|>' + m.content -}}
  {%- else -%}
    {{- '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|Assistant|><think>\n' -}}{%- endif -%}
"""

# The date is in the system message, whether there is one or not.
LLAMA_3_2 = r"""
{{- bos_token -}}
{%- if date_string is not defined -%}{%- set date_string = '26 Jul 2024' -%}{%- endif -%}
{%- set rules = '' -%}{%- set rest = messages -%}
{%- if messages[0].role == 'system' -%}
  {%- set rules = messages[0].content | trim -%}{%- set rest = messages[1:] -%}
{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' -}}
{{- rules + '<|eot_id|>' -}}
{%- for m in rest -%}
  {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim -}}
  {{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
"""

PHI_3 = r"""
{%- for m in messages -%}
  {{- '<|' + m.role + '|>\n' + m.content + '<|end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}
"""

ZEPHYR = PHI_3.replace("'<|end|>\\n'", "eos_token + '\\n'")

GEMMA = r"""
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
  {{- raise_exception('System role not supported') -}}
{%- endif -%}
{%- for m in messages -%}
  {%- set role = 'model' if m.role == 'assistant' else m.role -%}
  {{- '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}
"""

# System message in front of the first question.
GEMMA_3 = r"""
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
  {%- set rules = messages[0].content + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}
  {%- set rules = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for m in rest -%}
  {%- set role = 'model' if m.role == 'assistant' else m.role -%}
  {{- '<start_of_turn>' + role + '\n' + (rules if loop.first else '') -}}
  {{- m.content | trim + '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}
"""

TEMPLATES = {
    "llama 2": LLAMA_2,
    "mistral": MISTRAL,
    "llama 3": LLAMA_3,
    "chatml": CHATML,
    "qwen 2": QWEN_2,
    "smollm 2": SMOLLM_2,
    "qwen 3": QWEN_3,
    "deepseek r1": DEEPSEEK_R1,
    "llama 3.2": LLAMA_3_2,
    "phi 3": PHI_3,
    "zephyr": ZEPHYR,
    "gemma": GEMMA,
    "gemma 3": GEMMA_3,
}
