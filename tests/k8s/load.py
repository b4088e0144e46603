#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""load.py HOST PORT CLIENTS: requests, each on a connection of its own, until stdin ends. Prints JSON."""

import http.client
import json
import sys
import threading


def ask(host, port, body):
    connection = http.client.HTTPConnection(host, port, timeout=20)
    try:
        connection.request("POST", "/", body)
        reply = connection.getresponse()
        got = reply.read()
        if reply.status != 200 or got != body:
            return f"status {reply.status}: {got[:200]!r}"
    except OSError as e:
        return repr(e)
    except http.client.HTTPException as e:
        return repr(e)
    finally:
        connection.close()
    return None


def main():
    host, port, clients = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    end, lock = threading.Event(), threading.Lock()
    told = {"ok": 0, "failed": []}

    def client(n):
        k = 0
        while not end.is_set():
            k += 1
            failed = ask(host, port, f"client {n}, request {k}".encode())
            with lock:
                if failed:
                    told["failed"].append(failed)
                else:
                    told["ok"] += 1
            end.wait(0.02)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    for t in threads:
        t.start()
    sys.stdin.read()
    end.set()
    for t in threads:
        t.join()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
