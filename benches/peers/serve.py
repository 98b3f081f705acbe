#!/usr/bin/env python3
"""`gems-engine serve` beside a batched PyTorch server that does the same on the same model: latency, requests a second.

    benches/peers/serve.py ENGINE RUN [--clients 1,8,32] [--requests 200] [--rounds 3] [--threads 2]

The peer is what a careful user of PyTorch writes: the exported model in transformers, one thread that answers everything that
waits at once (padded to its longest, at most 64), logits of one position only, the items' entries of their log-softmax; HTTP/1.1
that stays open, by Python's own server, one thread a connection. Both run on this machine, each alone in its turn; the
orders of their answers are compared first. Items must be single tokens of a decoder. Needs torch, transformers and jinja2.
(vLLM has no build for CPUs on the package index that could be tried here: it is not a contender.)
"""

import argparse
import http.client
import json
import queue
import statistics
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def peer(model_dir, port, threads):
    """Serves POST /rank until it is killed."""
    import torch
    from jinja2 import Environment
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    about = json.loads((Path(model_dir) / "gems.json").read_text())
    items = [json.loads(line) for line in open(Path(model_dir) / "items.jsonl", encoding="utf-8")]
    written = {item["item"]: item["tokens"] for item in items}
    targets = torch.tensor([item["ids"][0] for item in items])
    templates = {task: Environment().from_string(text) for task, text in about["prompts"].items()}

    def prompt_of(ask):
        history = [written[item] for item in ask["history"]][-about["history_limit"]:]
        values = {"history": about["separator"].join(history), "items": history, "query": ask["query"]}
        ids = tokenizer(templates[ask["task"]].render(values)).input_ids
        return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids

    waiting = queue.Queue()

    @torch.no_grad()
    def answer():
        while True:
            group = [waiting.get()]
            while len(group) < 64:
                try:
                    group.append(waiting.get_nowait())
                except queue.Empty:
                    break
            prompts = [prompt_of(ask) for ask, _ in group]
            longest = max(map(len, prompts))
            # Padded on the left: the last position is every prompt's.
            ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
            places = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(ids, attention_mask=mask, position_ids=places, logits_to_keep=1).logits[:, -1]
            scores = logits.log_softmax(-1)[:, targets]
            for (ask, done), row in zip(group, scores):
                best = row.topk(ask["top"])
                done.put([{"item": items[i]["item"], "log_likelihood": s}
                          for i, s in zip(best.indices.tolist(), best.values.tolist())])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self):
            ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            done = queue.Queue()
            waiting.put((ask, done))
            body = json.dumps({"task": ask["task"], "items": done.get()}).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            self.wfile.write(head.encode() + body)

        def log_message(self, *_):
            pass

    threading.Thread(target=answer, daemon=True).start()
    # Python's own queue of five drops what many clients ask at once.
    ThreadingHTTPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.serve_forever()


def ask(connection, request):
    connection.request("POST", "/rank", json.dumps(request), {"Content-Type": "application/json"})
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        sys.exit(f"{response.status}: {body.decode()}")
    return json.loads(body)["items"]


def ready(port, process):
    for _ in range(1200):
        if process.poll() is not None:
            sys.exit(f"the server on port {port} ended with {process.returncode}")
        try:
            return http.client.HTTPConnection("127.0.0.1", port, timeout=60).connect()
        except OSError:
            time.sleep(0.1)
    sys.exit(f"the server on port {port} does not come up")


def load(port, requests, clients):
    """Seconds of every request, and of all of them, from so many clients at once."""
    seconds, shares = [], [requests[n::clients] for n in range(clients)]

    def client(share):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for request in share:
            start = time.perf_counter()
            ask(connection, request)
            seconds.append(time.perf_counter() - start)

    threads = [threading.Thread(target=client, args=(share,)) for share in shares]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("engine")
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args.run / "model", args.port, args.threads)

    items = [json.loads(line) for line in open(args.run / "model/items.jsonl", encoding="utf-8")]
    ids, texts = [item["item"] for item in items], [item["text"] or "" for item in items]
    pick = lambda n: [ids[(n * 7 + k * 13) % len(ids)] for k in range(1 + n % 4)]
    requests = [{"task": "search", "history": pick(n), "query": texts[n * 5 % len(texts)], "top": 10}
                for n in range(args.requests)]

    ours = [args.engine, "serve", "--run", args.run, "--listen", f"127.0.0.1:{args.port}", "--threads", str(args.threads), "--device", "cpu"]
    theirs = [sys.executable, __file__, args.engine, args.run, "--peer", "--port", str(args.port + 1), "--threads", str(args.threads)]
    started = [subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL) for command in (ours, theirs)]
    contenders = {"engine": args.port, "batched PyTorch": args.port + 1}
    try:
        for port, process in zip(contenders.values(), started):
            ready(port, process)
        connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for port in contenders.values()]
        worst = 0.0
        for request in requests[:20]:
            first, second = (ask(connection, request) for connection in connections)
            if [row["item"] for row in first][:3] != [row["item"] for row in second][:3]:
                sys.exit(f"other answers to {request}:\n{first}\n{second}")
            worst = max(worst, *(abs(a["log_likelihood"] - b["log_likelihood"]) for a, b in zip(first, second)))
        print(f"the same answers to 20 requests; log-likelihoods differ by at most {worst:.1e}")
        for connection in connections:
            connection.close()
        print(f"{'clients':>7}  {'contender':<16} {'p50 ms':>8} {'p95 ms':>8} {'requests/s':>11}")
        for clients in map(int, args.clients.split(",")):
            rounds = {name: [] for name in contenders}
            for _ in range(args.rounds):
                for name, port in contenders.items():
                    rounds[name].append(load(port, requests, clients))
            rates = {}
            for name, measured in rounds.items():
                each = sorted(s for seconds, _ in measured for s in seconds)
                rates[name] = statistics.median(len(seconds) / whole for seconds, whole in measured)
                p50, p95 = each[len(each) // 2] * 1e3, each[int(len(each) * 0.95)] * 1e3
                print(f"{clients:>7}  {name:<16} {p50:>8.1f} {p95:>8.1f} {rates[name]:>11.1f}")
            print(f"{'':>7}  engine over it: {rates['engine'] / rates['batched PyTorch']:.2f}x")
    finally:
        for process in started:
            process.kill()


if __name__ == "__main__":
    main()
