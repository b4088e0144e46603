# SPDX-License-Identifier: Apache-2.0
"""The protocol between nodes, spoken with an implementation that was written from its page."""

import contextlib
import itertools
import os
import random
import socket
import ssl
import struct
import subprocess
import threading
import time

import pytest
import wire_peer as wire
from wire_peer import Ended, Message, Peer, Target, connector

NODE = os.environ.get("RR_NET_PEER", "")
QUIT = 0xFFFFFFFF


@contextlib.contextmanager
def node(*args, code=0):
    p = subprocess.Popen([NODE, *args], stdout=subprocess.PIPE, text=True)
    try:
        yield p
        assert p.wait(20) == code
    finally:
        p.kill()
        p.wait()
        p.stdout.close()


@contextlib.contextmanager
def listening(at="127.0.0.1:0", *tls):
    """A node that listens; gives (process, address)."""
    with node("listen", at, *tls) as p:
        port = int(p.stdout.readline())
        yield p, f"{at.rsplit(':', 1)[0]}:{port}" if port else at


def quit_node(peer):
    peer.control(QUIT)
    with pytest.raises(Ended, match="GOODBYE|end of|Broken pipe|reset"):
        while True:
            peer.pump()
    peer.close()


def message(size, seed=1, **more):
    return Message(random.Random(seed).randbytes(size), **more)


def check_echo(sent, got):
    assert got.payload == sent.payload
    for name in ("meta", "session", "run", "offset", "window", "slot_bytes", "status", "fixed"):
        assert getattr(got, name) == getattr(sent, name), name
    assert [(t.sender, t.receiver, t.id, t.attempt) for t in got.targets] == [
        (t.receiver, t.sender, t.id, t.attempt) for t in sent.targets
    ]


ADDRESSES = ["127.0.0.1:0", "[::1]:0", "unix"]


@pytest.mark.parametrize("at", ADDRESSES)
def test_echo(at, tmp_path):
    at = f"unix:{tmp_path}/s" if at == "unix" else at
    with listening(at) as (p, address):
        peer = Peer.dial(connector(address), {"node": "python"})
        assert p.stdout.readline().startswith("up python")
        assert peer.texts["node"] == "net-peer"
        for size in (0, 1, 4096, wire.INLINE, wire.INLINE + 1, 5 << 20):
            targets = [Target("a.out", "b.in", 5, 2, True), Target("a.out", "c.in", 6, 1)]
            m = message(
                size,
                size,
                targets=targets,
                meta=[(b"k", b"v" * 99), (b"x", b"")],
                session=b"s" * 16,
            )
            m.run, m.status, m.offset, m.fixed = 77, -3, 4096, True
            peer.send(m)
            peer.until(lambda: peer.messages and not peer.waiting)
            got = peer.messages.pop()
            check_echo(m, got)
            peer.ack(got.seq, 0)
        quit_node(peer)


@pytest.mark.parametrize("n_bulk", [1, 3, 8])
def test_node_dials(n_bulk):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with node("dial", f"127.0.0.1:{port}"):
            peer = Peer.accept(listener)
            for size in (3, 1 << 20):
                peer.send(message(size))
                peer.until(lambda: peer.messages)
                assert peer.messages.pop().payload == message(size).payload
            quit_node(peer)
    with listening() as (_, address):
        peer = Peer.dial(connector(address), n_bulk=n_bulk)
        for n in range(8):
            peer.send(message(400_000 + n, n))
        peer.until(lambda: len(peer.messages) == 8)
        assert {len(m.payload) for m in peer.messages} == {400_000 + n for n in range(8)}
        quit_node(peer)


def test_words_and_ping():
    with listening() as (_, address):
        peer = Peer.dial(connector(address))
        for n in range(200):  # more than is granted at once
            peer.control(n, bytes([n]) * (n * 300))
        peer.ping(9)
        peer.until(lambda: len(peer.words) == 200 and peer.pongs == 2)
        assert peer.words == [(n, bytes([n]) * (n * 300)) for n in range(200)]
        quit_node(peer)


def test_many_small():
    with listening() as (_, address):
        peer = Peer.dial(connector(address))
        for n in range(5000):  # credit is used up and granted again
            peer.send(Message(struct.pack("<I", n)))
            while n - len(peer.messages) > 500:
                peer.pump()
        peer.until(lambda: len(peer.messages) == 5000)
        assert [struct.unpack("<I", m.payload)[0] for m in peer.messages] == list(range(5000))
        quit_node(peer)


def test_small_chunks():
    """Chunks of any size, and two messages in turns."""
    with listening() as (_, address):
        peer = Peer.dial(connector(address))
        m = message(300_000)
        peer.send(m, chunk=777)
        peer.until(lambda: peer.messages)
        assert peer.messages.pop().payload == m.payload
        quit_node(peer)


def test_refused_both_ways():
    with listening() as (_, address):
        peer = Peer.dial(connector(address))
        seq = peer.send(message(3 << 20, kind=4))
        peer.until(lambda: not peer.waiting)
        assert (seq, "refused", "asked to refuse") in peer.outcomes
        peer.refuse = "no room here"
        peer.send(message(3 << 20))
        peer.until(lambda: not peer.waiting and not peer.coming)
        peer.refuse = None
        peer.send(message(1 << 20))
        peer.until(lambda: peer.messages)
        quit_node(peer)


def test_cancel():
    with listening() as (p, address):
        peer = Peer.dial(connector(address))
        p.stdout.readline()
        for size in (5, 1 << 20):
            seq = peer.send(message(size, kind=3, targets=[Target("a.o", "b.i", acked=True)]))
            peer.ping()
            peer.until(lambda: peer.pongs == 2)  # it is there
            peer.pongs = 0
            peer.control(1)
            peer.until(lambda: peer.words)  # and delivered
            peer.words.clear()
            peer.cancel(seq)
            peer.until(lambda: not peer.waiting)
            assert peer.outcomes[-1] == (seq, wire.CANCELLED, 0)
            assert p.stdout.readline() == "cancelled\n"
        # in the midst of a payload
        m = message(2 << 20, kind=3)
        m.seq = 99 << 16 | 7
        peer.waiting[7] = [m.seq, set(), True, False]
        peer.sent[0] += 1
        peer.sent[2] += len(m.payload)
        extra = peer.extras[0]
        extra.send(wire.put_data(m))
        extra.send(wire.HEADER.pack(1000, wire.CHUNK, 0, 0, m.seq) + bytes(1000))
        peer.cancel(m.seq)
        peer.until(lambda: not peer.waiting)
        assert peer.outcomes[-1] == (m.seq, wire.CANCELLED, 0)
        quit_node(peer)


# --- rules ---------------------------------------------------------------------------------------


def raw_frame(kind, body=b"", seq=0, flags=0):
    return wire.HEADER.pack(len(body), kind, flags, 0, seq) + body


def row(seq, target, what):
    return raw_frame(wire.BACK, struct.pack("<QII", seq, target, what))


SMALL = Message(b"x", [Target("a.o", "b.i", acked=True)], seq=1 << 16)
LARGE = Message(bytes(wire.INLINE + 1), seq=1 << 16)
BROKEN = {
    "unknown type": (0, raw_frame(13)),
    "a second hello": (0, wire.put_hello(bytes(16))),
    "flags": (0, raw_frame(wire.PING, flags=1)),
    "too long": (0, wire.HEADER.pack(2 << 20, wire.DATA, 0, 0, 0)),
    "large on main": (0, wire.put_data(LARGE)),
    "small on extra": (1, wire.put_data(SMALL)),
    "word on extra": (1, raw_frame(wire.CONTROL, bytes(4))),
    "chunk of nothing": (1, raw_frame(wire.CHUNK, b"x", 1 << 16)),
    "ack of nothing": (0, row(1 << 16, 0, wire.ACK)),
    "refuse nothing": (0, raw_frame(wire.REFUSE, bytes(4), 1 << 16)),
    "grant too much": (0, raw_frame(wire.CREDIT, struct.pack("<4Q", *[2 * n for n in wire.GRANT]))),
    "grant less": (0, raw_frame(wire.CREDIT, bytes(32))),
    "slot twice": (0, wire.put_data(SMALL) * 2),
    "slot too high": (0, wire.put_data(Message(b"x", SMALL.targets, seq=1 << 16 | 5000))),
    "no seq": (0, wire.put_data(Message(b"x", SMALL.targets))),
    "window": (0, wire.put_data(Message(b"x", window=12345))),
    "slot": (0, wire.put_data(Message(b"x", slot_bytes=4096))),
    "name": (0, wire.put_data(Message(b"x", [Target("a b", "c.d")]))),
    "no target": (0, wire.put_data(Message(bytes(20), []))),
    "too much payload": (
        1,
        wire.put_data(LARGE) + raw_frame(wire.CHUNK, bytes(1 << 19), LARGE.seq),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rule(name):
    """One peer breaks a rule and loses its session; another goes on."""
    which, raw = BROKEN[name]
    with listening() as (p, address):
        good = Peer.dial(connector(address))
        p.stdout.readline()
        bad = Peer.dial(connector(address))
        p.stdout.readline()
        # "slot twice" needs a message that stays unacked
        if name == "slot twice":
            raw = wire.put_data(Message(b"x", SMALL.targets, seq=1 << 16, kind=3)) * 2
        with pytest.raises(Ended):  # may be before all of it is sent
            [bad.main, *bad.extras][which].send(raw)
            while bad.pump():
                pass
        assert p.stdout.readline().startswith("down")
        good.send(message(100))
        good.until(lambda: good.messages)
        quit_node(good)


def refused(address, raw):
    c = wire.Connection(connector(address)())
    c.send(raw)
    with pytest.raises(Ended) as e:
        c.frame()
    c.close()
    return str(e.value)


def test_greetings():
    token = os.urandom(16)
    with listening() as (p, address):
        assert "ERROR 1" in refused(address, wire.put_hello(token, version=2))
        assert "ERROR 3" in refused(address, wire.put_hello(token, role=2))
        assert "ERROR 4" in refused(address, wire.put_hello(token, role=3))
        assert "ERROR 4" in refused(address, wire.put_hello(token, n_bulk=9))
        assert "ERROR 4" in refused(address, wire.put_hello(token, grant=(0, 1, 1, 1)))
        assert "ERROR" not in refused(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert "ERROR" not in refused(address, raw_frame(wire.DATA, bytes(200)))
        peer = Peer.dial(connector(address), token=token)
        p.stdout.readline()
        assert "ERROR 4" in refused(address, wire.put_hello(token))  # the token is taken
        assert "ERROR 3" in refused(address, wire.put_hello(token, role=2))  # and complete
        peer.send(message(10))
        peer.until(lambda: peer.messages)
        quit_node(peer)


def test_half_open():
    """A peer that says nothing any more is given up; one that answers pings is not."""
    with listening() as (p, address):
        good = Peer.dial(connector(address))
        bad = Peer.dial(connector(address))
        p.stdout.readline()
        p.stdout.readline()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            good.pump(0.1)
        good.send(message(10))
        good.until(lambda: good.messages)
        quit_node(good)
        assert "has not answered" in p.stdout.readline()
        bad.close()


def test_lost_in_the_midst():
    """A session ends within a payload; the next one is as new."""
    with listening() as (p, address):
        for n in range(3):
            peer = Peer.dial(connector(address))
            assert p.stdout.readline().startswith("up")
            m = message(5 << 20)
            m.seq = 1 << 16
            peer.extras[0].send(
                wire.put_data(m) + raw_frame(wire.CHUNK, bytes(1 << 20), m.seq)[: -n or None]
            )
            peer.close()
            assert p.stdout.readline().startswith("down")
        peer = Peer.dial(connector(address))
        peer.send(message(5 << 20))
        peer.until(lambda: peer.messages)
        quit_node(peer)


def test_dials_again():
    """A listener that goes, is away for a while, and comes back."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with node("dial", f"127.0.0.1:{port}") as p:
        peer = Peer.accept(listener)
        assert p.stdout.readline().startswith("up")
        peer.send(message(3 << 20, kind=2))
        peer.close()
        listener.close()
        assert p.stdout.readline().startswith("down")
        assert "refused" in p.stdout.readline()
        with socket.create_server(("127.0.0.1", port)) as listener:
            peer = Peer.accept(listener)
            peer.send(message(3 << 20))
            peer.until(lambda: peer.messages)
            quit_node(peer)


class Balancer:
    """Forwards each connection to the next of some addresses, as a Kubernetes Service does."""

    def __init__(self, addresses):
        self.addresses = itertools.cycle(addresses)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                server = connector(next(self.addresses))()
                for a, b in ((client, server), (server, client)):
                    threading.Thread(target=self.copy, args=(a, b), daemon=True).start()

    @staticmethod
    def copy(a, b):
        with contextlib.suppress(OSError):
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)


def test_balancer():
    """The main connection leads to one node, the extra one to another: it finds its way."""
    with listening() as (p, one), listening() as (q, other):
        balancer = Balancer([one, other])
        with node("dial", balancer.address) as d:
            assert d.stdout.readline().startswith("up net-peer")
            assert p.stdout.readline().startswith("up net-peer")
            d.kill()
            d.wait()
            d.returncode = 0
            assert p.stdout.readline().startswith("down")
        balancer.listener.close()
        for address in (one, other):
            quit_node(Peer.dial(connector(address)))
        assert q.stdout.readline().startswith("up")


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    d = tmp_path_factory.mktemp("pki")

    def openssl(*args):
        subprocess.run(["openssl", *args], cwd=d, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    for ca in ("ca", "other"):
        openssl(
            "req", "-x509", *key, "-subj", f"/CN={ca}", "-keyout", f"{ca}.key", "-out", f"{ca}.pem"
        )
    for name, ca in (("node", "ca"), ("python", "ca"), ("stranger", "other")):
        signed = [
            "-CA",
            f"{ca}.pem",
            "-CAkey",
            f"{ca}.key",
            "-addext",
            f"subjectAltName=DNS:{name}",
        ]
        openssl("req", "-x509", *key, "-subj", f"/CN={name}", *signed, "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip
    return d


def tls_connector(pki, name, address):
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ctx.check_hostname = False
    ctx.load_verify_locations(pki / "ca.pem")
    if name:
        ctx.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
    return lambda: ctx.wrap_socket(connector(address)())


def test_tls(pki):
    files = [str(pki / f) for f in ("node.pem", "node.key", "ca.pem")]
    with listening("127.0.0.1:0", *files) as (p, address):
        peer = Peer.dial(tls_connector(pki, "python", address), {"node": "python"})
        assert p.stdout.readline() == "up python python\n"
        for name in ("stranger", None):
            with pytest.raises((OSError, Ended, ssl.SSLError)):
                Peer.dial(tls_connector(pki, name, address))
        with pytest.raises(Ended):
            Peer.dial(connector(address))
        # a token alone does not let another identity join
        half = wire.Connection(tls_connector(pki, "python", address)())
        token = os.urandom(16)
        half.send(wire.put_hello(token))
        half.hello()
        thief = wire.Connection(tls_connector(pki, "node", address)())
        thief.send(wire.put_hello(token, role=2))
        with pytest.raises(Ended, match="ERROR 3"):
            thief.frame()
        for size in (10, 3 << 20):
            peer.send(message(size))
            peer.until(lambda: peer.messages)
            assert peer.messages.pop().payload == message(size).payload
        quit_node(peer)
        half.close()
        thief.close()
