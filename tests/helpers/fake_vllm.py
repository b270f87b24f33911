"""What ``lookless bench --engine vllm`` talks to, played: servers with ``/health`` and ``/metrics``, and a client.

Every call is told to the file that ``FAKE_VLLM`` names, a line each. A model called ``broken`` dies on the way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

METRICS = """# HELP other text
other_total{kind="skipped"} 3.0
lookless_visual_rows_total{operator="attention",kind="skipped"} %d
lookless_visual_rows_total{operator="attention",kind="computed"} %d
lookless_visual_rows_total{operator="ffn",kind="skipped"} 0.0
lookless_visual_rows_total{kind="computed",operator="ffn"} %d
"""
VISUAL, TEXT, LAYERS = 144, 12, 12


def tell(**what: object) -> None:
    with open(os.environ["FAKE_VLLM"], "a", encoding="utf-8") as log:
        log.write(json.dumps(what) + "\n")


def told() -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(os.environ["FAKE_VLLM"]).read_text().splitlines()]


class Answers(BaseHTTPRequestHandler):
    has_plan = False

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        sent = sum(int(call["num-prompts"]) for call in told() if call.get("base-url", "").endswith(f":{port}"))
        rows = sent * VISUAL * LAYERS
        skipped = 0 if os.environ.get("FAKE_IDLE") else rows // 4
        text = METRICS % (skipped, rows - skipped, rows) if self.has_plan and self.path == "/metrics" else "nothing 1\n"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


def serve(words: list[str]) -> None:
    if "broken" in words[0]:
        print("ValueError: the cause\n" + "noise\n" * 30 + "RuntimeError: the last")
        sys.exit(7)
    Answers.has_plan = "--additional-config" in words
    child = subprocess.Popen(["sleep", "600"])  # a worker that nobody ends
    tell(serve=words, pids=[os.getpid(), child.pid])
    HTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Answers).serve_forever()


def bench(words: list[str]) -> None:
    given = dict(zip((w.removeprefix("--") for w in words[:-2:2]), words[1:-2:2], strict=True))
    tell(**given)
    requests = int(given["num-prompts"])
    result = {
        "completed": requests - bool(os.environ.get("FAKE_LOSS")),
        "total_input_tokens": requests * (VISUAL + TEXT),
        "request_throughput": 2.0,
        "output_throughput": 8.0,
        "median_ttft_ms": 50.0 + int(given["seed"]),
        "p95_ttft_ms": 90.0,
        "median_tpot_ms": 5.0,
    }
    Path(given["result-dir"], given["result-filename"]).write_text(json.dumps(result))


if __name__ == "__main__":
    serve(sys.argv[2:]) if sys.argv[1] == "serve" else bench(sys.argv[3:])
