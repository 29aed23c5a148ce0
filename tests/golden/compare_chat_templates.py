#!/usr/bin/env python3
"""Our chat templates against transformers', byte for byte.

  compare_chat_templates.py BUILD_DIR DIR     by hand: every template in DIR (*.jinja, or
      tokenizer_config.json in folders), 20 conversations each, rendered by both; exit 1 when any
      differs. Templates of models are others' text and stay outside of the repository.
  compare_chat_templates.py --write           our own small templates (chat_templates/*.jinja) with the
      same conversations, rendered by transformers alone, into chat_templates/goldens.json
"""

import collections
import glob
import json
import os
import subprocess
import sys

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def function(name, description, **parameters):
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": parameters,
                "required": list(parameters)[:1],
            },
        },
    }


WEATHER = function(
    "get_weather",
    "The weather at a place, \"now\" & later <C°>",
    city={"type": "string", "description": "Name of the city, e.g. Köln"},
    unit={"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
    days={"type": "integer", "minimum": 1},
)
SEARCH = function(
    "search",
    "Finds documents",
    query={"type": "string", "description": "What to find"},
    filters={
        "type": "object",
        "description": "Narrow it",
        "properties": {"tags": {"type": "array", "items": {"type": "string"}},
                       "score": {"type": "number", "default": 0.5}},
    },
    limit={"type": ["integer", "null"], "description": "At most"},
)


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, ident="abcdefghi"):
    return {"id": ident, "type": "function",
            "function": {"name": name, "arguments": arguments}}


USER = say("user", "What is the capital of France?")
ANSWER = say("assistant", "Paris.")
SYSTEM = say("system", "You are brief.")
CALLS = say("assistant", "", tool_calls=[call("get_weather", {"city": "Köln", "days": 2})])
RESULT = say("tool", '{"temperature": 21.5}', tool_call_id="abcdefghi", name="get_weather")
STRANGE = "  Ünïcödé \U0001f600 日本語 עברית\t\"quotes\" 'single' <b>&amp;</b> {{ x }} {% y %}\n\n"
THOUGHT = "<think>\nFirst this,\nthen that.\n</think>\n\nThe answer is 4."

# name, messages, tools, variables
CONVERSATIONS = [
    ("one turn", [USER], None, {}),
    ("system", [SYSTEM, USER], None, {}),
    ("several turns", [USER, ANSWER, say("user", "And of Italy?"), say("assistant", "Rome."),
                       say("user", "Thanks")], None, {}),
    ("system, several turns", [SYSTEM, USER, ANSWER, say("user", "And of Spain?")], None, {}),
    ("ends with the assistant", [SYSTEM, USER, ANSWER], None, {}),
    ("empty content", [say("system", ""), say("user", ""), say("assistant", ""),
                       say("user", " ")], None, {}),
    ("strange text", [say("system", STRANGE), say("user", STRANGE), say("assistant", STRANGE),
                      say("user", STRANGE)], None, {}),
    ("tools", [USER], [WEATHER], {}),
    ("tools and system", [SYSTEM, USER], [WEATHER, SEARCH], {}),
    ("tool call and result", [SYSTEM, USER, CALLS, RESULT, say("assistant", "21.5 degrees."),
                              say("user", "Good")], [WEATHER], {}),
    ("two calls at once", [USER, say("assistant", "Wait.", tool_calls=[
        call("get_weather", {"city": "Oslo"}, "aaaaaaaaa"),
        call("search", {"query": "x", "filters": {"tags": ["a", "b"], "score": 1.0},
                        "limit": None}, "bbbbbbbbb")]),
        say("tool", "cold", tool_call_id="aaaaaaaaa", name="get_weather"),
        say("tool", "nothing", tool_call_id="bbbbbbbbb", name="search")], [WEATHER, SEARCH], {}),
    ("arguments as text", [USER, say("assistant", None, tool_calls=[
        call("get_weather", '{"city": "Rom"}')]), RESULT], [WEATHER], {}),
    ("thinking", [say("user", "2+2?"), say("assistant", THOUGHT), say("user", "And 3+3?"),
                  say("assistant", THOUGHT)], None, {"enable_thinking": False}),
    ("reasoning_content", [say("user", "2+2?"),
                           say("assistant", "4.", reasoning_content="Count.\n"),
                           say("user", "Sure?")], None, {"enable_thinking": True}),
    ("parts", [say("user", [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]),
               ANSWER, say("user", [{"type": "text", "text": "three"}])], None, {}),
    ("roles out of order", [USER, USER, ANSWER, ANSWER], None, {}),
    ("begins with the assistant", [ANSWER, USER], None, {}),
    ("system last", [USER, ANSWER, SYSTEM], None, {}),
    ("unknown role", [say("critic", "No."), USER], None, {}),
    ("many numbers", [say("user", "n")], [function("f", "n", a={
        "default": -0.0, "x": [1e22, 1.5e-7, 123456789012, True, None, 0.1, 1e16, 100.0]})], {
            "date_string": "26 Jul 2024", "documents": None, "xml_tools": None}),
]


def reference(template, messages, tools, variables, prompt):
    """(text, None) or (message, kind)."""
    try:
        texts, _ = render_jinja_template(
            conversations=[messages], tools=tools, chat_template=template,
            add_generation_prompt=prompt, **variables)
        texts[0].encode()
        return texts[0], None
    except jinja2.exceptions.TemplateSyntaxError as error:
        return str(error), "syntax"
    except jinja2.exceptions.UndefinedError as error:
        return str(error), "undefined"
    except jinja2.exceptions.SecurityError as error:
        return str(error), "undefined"
    except jinja2.exceptions.TemplateError as error:
        missing = str(error).startswith(("No filter named", "No test named"))
        return str(error), "unsupported" if missing else "raised"
    except RecursionError as error:
        return str(error), "limit"
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError,
            ZeroDivisionError, jinja2.exceptions.TemplateRuntimeError) as error:
        return f"{type(error).__name__}: {error}", "runtime"


def cases(template, prompts=(False, True)):
    for name, messages, tools, variables in CONVERSATIONS:
        for prompt in prompts:
            yield f"{name}, prompt {prompt}", template, messages, tools, {
                **TOKENS, **variables}, prompt


class Ours:
    def __init__(self, build):
        self.process = subprocess.Popen([os.path.join(build, "tests", "render_chat_cases")],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def render(self, template, messages, tools, variables, prompt):
        case = {"template": template, "messages": json.dumps(messages),
                "tools": "" if tools is None else json.dumps(tools),
                "variables": json.dumps({k: v for k, v in variables.items() if k != "documents"}),
                "add_generation_prompt": prompt}
        self.process.stdin.write(json.dumps(case).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"render_chat_cases ended with {self.process.wait()}")
        answer = json.loads(line)
        return (answer["text"], None) if "text" in answer else (answer["error"], answer["kind"])


def templates(folder):
    for path in sorted(glob.glob(os.path.join(folder, "**", "*.jinja"), recursive=True)):
        yield os.path.relpath(path, folder), open(path, newline="").read()
    pattern = os.path.join(folder, "**", "tokenizer_config.json")
    for path in sorted(glob.glob(pattern, recursive=True)):
        template = json.load(open(path)).get("chat_template")
        entries = template if isinstance(template, list) else [
            {"name": "default", "template": template}]
        for entry in entries:
            if entry["template"]:
                yield f"{os.path.relpath(path, folder)}:{entry['name']}", entry["template"]


def compare(build, folder):
    ours, total, bad = Ours(build), collections.Counter(), 0
    for name, template in templates(folder):
        counts = collections.Counter()
        for title, *case in cases(template):
            expected, kind = reference(*case)
            got, got_kind = ours.render(*case)
            same_text = kind is None and got_kind is None and expected == got
            raised = kind == "raised" and got_kind == "raised" and expected.replace(
                "\n", " ")[:400] in got
            failed = kind not in (None, "raised") and got_kind == kind
            if same_text:
                counts["equal"] += 1
            elif raised or failed:
                counts["same error"] += 1
            else:
                counts["DIFFERENT"] += 1
                if counts["DIFFERENT"] == 1:
                    print(f"  {name}: {title}\n    transformers: {kind} {expected[-300:]!r}\n"
                          f"    ours:         {got_kind} {got[-300:]!r}")
        total.update(counts)
        bad += counts["DIFFERENT"] > 0
        print(f"{name}: {dict(counts)}")
    print(f"{dict(total)}; templates with differences: {bad}")
    return 1 if bad else 0


def write():
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "chat_templates")
    goldens = []
    for path in sorted(glob.glob(os.path.join(folder, "*.jinja"))):
        results = []
        for _, *case in cases(open(path, newline="").read(), [True]):
            text, kind = reference(*case)
            results.append({"text": text} if kind is None else
                           {"kind": kind, **({"error": text} if kind == "raised" else {})})
        goldens.append({"template": os.path.basename(path), "results": results})
    conversations = [{"messages": json.dumps(case[1], ensure_ascii=False),
                      "tools": "" if case[2] is None else json.dumps(case[2], ensure_ascii=False),
                      "variables": json.dumps(case[3]), "add_generation_prompt": case[4]}
                     for _, *case in cases("", [True])]
    with open(os.path.join(folder, "goldens.json"), "w") as out:
        json.dump({"conversations": conversations, "goldens": goldens}, out, ensure_ascii=False,
                  indent=0)
        out.write("\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write()
    elif len(sys.argv) == 3:
        sys.exit(compare(sys.argv[1], sys.argv[2]))
    else:
        sys.exit(__doc__)
