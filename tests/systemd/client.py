#!/usr/bin/env python3
"""The other side of the tests on a real systemd: sends webhooks, reads the feed, looks into things.

  client.py send SECONDS THREADS OUT    signed webhooks for that long; what became of each goes to OUT
  client.py post SOURCE KEY RUN_ID      one signed webhook; prints the status
  client.py flood COUNT                 so many forged ones; prints each status and how often it came
  client.py slow SOURCE KEY RUN_ID      the same, its body in pieces over three seconds
  client.py count OUT                   each accepted run of OUT has exactly one completion in the feed
  client.py get SOCKET PATH             GET on a Unix socket; prints status and body
"""
import hashlib
import hmac
import http.client
import json
import socket
import sys
import threading
import time

ADDRESS = ("127.0.0.1", 8675)


def body(run_id):
    return json.dumps({"run_id": run_id, "status": "completed", "run_type": "workflow_run",
                       "output": {"ok": True}, "padding": "x" * 1500}).encode()


def headers(key, data):
    signature = hmac.new(key.encode(), data, hashlib.sha256).hexdigest()
    return {"Content-Type": "application/json", "x-skyvern-signature": signature}


def post(source, key, run_id, connection=None):
    data = body(run_id)
    own = connection is None
    connection = connection or http.client.HTTPConnection(*ADDRESS, timeout=60)
    connection.request("POST", f"/hooks/{source}", data, headers(key, data))
    answer = connection.getresponse()
    answer.read()
    if own:
        connection.close()
    return answer.status


def send(seconds, threads, out):
    until = time.monotonic() + float(seconds)
    results = []

    def sender(number):
        count = 0
        while time.monotonic() < until:
            run_id = f"wr_{number}_{count}"
            count += 1
            try:
                results.append((run_id, post("sky", "key-of-the-test", run_id)))
            except OSError as error:
                results.append((run_id, f"{type(error).__name__}: {error}"))
            except http.client.HTTPException as error:
                results.append((run_id, f"{type(error).__name__}: {error}"))

    workers = [threading.Thread(target=sender, args=(number,)) for number in range(int(threads))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with open(out, "w") as file:
        json.dump(results, file)
    bad = [result for result in results if result[1] != 200]
    print(f"{len(results)} sent, {len(bad)} not accepted", *bad[:3])
    return 0 if results and not bad else 1


def slow(source, key, run_id):
    data = body(run_id)
    connection = http.client.HTTPConnection(*ADDRESS, timeout=60)
    connection.putrequest("POST", f"/hooks/{source}")
    for name, value in {**headers(key, data), "Content-Length": str(len(data))}.items():
        connection.putheader(name, value)
    connection.endheaders()
    third = len(data) // 3
    for piece in (data[:third], data[third:2 * third], data[2 * third:]):
        connection.send(piece)
        time.sleep(1)
    print(connection.getresponse().status)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path)


def get(path, target):
    connection = UnixConnection(path)
    connection.request("GET", target)
    answer = connection.getresponse()
    return answer.status, answer.read().decode().strip()


def count(out):
    with open(out) as file:
        accepted = {run_id for run_id, status in json.load(file) if status == 200}
    seen = {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        seen = {}
        _, text = get("/run/settled/feed.sock", "/v1/events?after=earliest")
        for line in text.splitlines():
            event = json.loads(line)
            if event["type"] == "settled.run.completion":
                seen[event["subject"]] = seen.get(event["subject"], 0) + 1
        if accepted <= seen.keys():
            break
        time.sleep(0.5)
    lost, twice = accepted - seen.keys(), [run for run, times in seen.items() if times > 1]
    print(f"{len(accepted)} accepted, {len(lost)} lost, {len(twice)} completed twice")
    return 0 if not lost and not twice else 1


def main(command, *arguments):
    if command == "send":
        return send(*arguments)
    if command == "count":
        return count(*arguments)
    if command == "post":
        print(post(*arguments))
    elif command == "flood":
        statuses = [post("sky", "not-the-key", f"wr_forged_{n}") for n in range(int(arguments[0]))]
        for status in sorted(set(statuses)):
            print(status, statuses.count(status))
    elif command == "slow":
        slow(*arguments)
    elif command == "get":
        print(*get(*arguments), sep="\n")
    return 0


sys.exit(main(*sys.argv[1:]))
