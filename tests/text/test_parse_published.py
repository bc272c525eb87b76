"""Published templates: their marks tell the format, and a reply that they render is read as it was given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import vocabularies

from oneroof.text.chat import load_template
from oneroof.text.parse import ReplyParser, parsed
from oneroof.text.parse_formats import FORMATS, formats_of, opens_thinking
from oneroof.text.tokenizer import load_tokenizer
from oneroof.text.tool_choice import schemas_of

KINDS = {
    "s": "string",
    "n": "null",
    "b": "boolean",
    "i": "integer",
    "l": "array",
    "x": "number",
    "o": "object",
}
ARGUMENTS = {
    "s": "a <b>\n\n'q' \"r\" </parameter> é你\n",
    "n": None,
    "b": True,
    "i": -3,
    "l": [1, {"a": None, "c": "it's"}, False],
    "x": 1e-7,
    "o": {"a": ["\\", "\t"]},
}
TOOL = {
    "name": "f",
    "description": "does",
    "parameters": {"type": "object", "properties": {key: {"type": kind} for key, kind in KINDS.items()}},
}
ASKED = [{"role": "user", "content": "go"}]


@pytest.mark.parametrize(
    ("name", "word", "begins_in_thinking"),
    [
        ("ERNIE-4.5-PT", "plain", False),
        ("Qwen2-Instruct", "plain", False),
        ("Qwen2.5-7B-Instruct", "hermes", False),
        ("Qwen3-30B-A3B", "qwen3", False),
        ("Qwen3-30B-A3B-Thinking-2507", "qwen3", True),
        ("Qwen3-Coder", "qwen3_coder", False),
    ],
)
def test_a_reply_that_a_published_template_renders_is_read_again(
    shared: Path, tmp_path: Path, name: str, word: str, begins_in_thinking: bool
) -> None:
    source = (shared / "data/chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    vocabularies.write_json(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    template = load_template(tmp_path, load_tokenizer(tmp_path))
    style = formats_of(template.source)
    assert style == FORMATS[word]
    tools = [{"type": "function", "function": TOOL}]
    prompt = template.text(ASKED, tools=tools)
    assert opens_thinking(prompt) == begins_in_thinking
    if style.calls == "none":
        return
    reasoning = "hm\n\nso" if style.thinking else ""
    calls = [{"function": {"name": "f", "arguments": given}} for given in (ARGUMENTS, {}, {"i": 0})]
    turn = {"role": "assistant", "content": "I look.", "reasoning_content": reasoning, "tool_calls": calls}
    whole = template.text([*ASKED, turn], tools=tools, generate=False)
    start = "<|im_start|>assistant\n"
    text = whole[whole.rindex(start) + len(start) :].removesuffix("<|im_end|>\n")
    reply = parsed(text, ReplyParser(style, schemas_of(tools), thinking=begins_in_thinking))
    assert (reply.reasoning, reply.content) == (reasoning, "I look.")
    assert [json.loads(call.arguments) for call in reply.calls] == [ARGUMENTS, {}, {"i": 0}]
    assert all(call.whole and call.name == "f" for call in reply.calls)
