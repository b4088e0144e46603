# SPDX-License-Identifier: Apache-2.0
"""A second implementation of the protocol of docs/wire.md, written from that page.

It is slow and blocks, but checks what comes: a Violation means that the other side does not keep to
the page, or that the page is wrong.
"""

import os
import select
import socket
import struct
from dataclasses import dataclass, field

HELLO, DATA, CHUNK, BACK, REFUSE, CREDIT, CANCEL, PING, PONG, ERROR, CONTROL, GOODBYE = range(1, 13)
NAMES = [
    "HELLO",
    "DATA",
    "CHUNK",
    "BACK",
    "REFUSE",
    "CREDIT",
    "CANCEL",
    "PING",
    "PONG",
    "ERROR",
    "CONTROL",
    "GOODBYE",
]
BULK, FIXED = 1, 2
RECEIVED, ACK, CANCELLED = 1, 2, 3
MAGIC = b"RRWIRE\0\0"
VERSION = 1
INLINE = 256 << 10
MAX_CHUNK = 1 << 20
SLOTS = (64 << 20, 1 << 30)
HEADER = struct.Struct("<IBBHQ")
HEAD = struct.Struct("<16sQQQQQQQQIiIIQ")
TARGET = struct.Struct("<QIBBBB")
GREETING = struct.Struct("<8sII16sIIII4Q")
GRANT = (1024, 16 << 20, 4 << 30, 4 << 20)


class Violation(Exception):
    """The peer broke a rule of docs/wire.md."""


class Ended(Exception):
    """The connection, or the session, is over."""


@dataclass
class Target:
    sender: str
    receiver: str
    id: int = 0
    attempt: int = 1
    acked: bool = False


@dataclass
class Message:
    payload: bytes = b""
    targets: list = field(default_factory=lambda: [Target("a.out", "b.in")])
    meta: list = field(default_factory=list)  # pairs of bytes
    session: bytes = bytes(16)
    run: int = 0
    offset: int = 0
    window: int = 1 << 30
    slot_bytes: int = SLOTS[0]
    deadline_ns: int = 0
    age_ns: int = 0
    copied_bytes: int = 0
    kind: int = 0
    status: int = 0
    fixed: bool = False
    seq: int = 0


def rule(good, text):
    if not good:
        raise Violation(text)


def is_name(raw, longest):
    return 1 <= len(raw) <= longest and all(0x21 <= c <= 0x7E for c in raw)


def put_meta(pairs):
    return b"".join(struct.pack("<II", len(k), len(v)) + k + v for k, v in pairs)


def get_meta(raw):
    pairs = []
    while raw:
        rule(len(raw) >= 8, "metadata is cut off")
        k, v = struct.unpack_from("<II", raw)
        rule(k > 0 and k + v <= len(raw) - 8, "an entry of the metadata is cut off")
        pairs.append((raw[8 : 8 + k], raw[8 + k : 8 + k + v]))
        raw = raw[8 + k + v :]
    return pairs


def put_data(m):
    """A DATA frame; of a large message, all but its payload."""
    bulk = len(m.payload) > INLINE
    meta = put_meta(m.meta)
    body = HEAD.pack(
        m.session,
        m.run,
        len(m.payload),
        m.offset,
        m.window,
        m.slot_bytes,
        m.deadline_ns,
        m.age_ns,
        m.copied_bytes,
        m.kind,
        m.status,
        len(m.targets),
        len(meta),
        0,
    )
    for t in m.targets:
        s, r = t.sender.encode(), t.receiver.encode()
        body += TARGET.pack(t.id, t.attempt, t.acked, len(s), len(r), 0) + s + r
    body += meta
    if not bulk:
        body += m.payload
    flags = (BULK if bulk else 0) | (FIXED if m.fixed else 0)
    return HEADER.pack(len(body), DATA, flags, 0, m.seq) + body


def get_target(body, at):
    rule(len(body) - at >= TARGET.size, "a target is cut off")
    number, attempt, acked, n_from, n_to, zero = TARGET.unpack_from(body, at)
    at += TARGET.size
    names = body[at : at + n_from], body[at + n_from : at + n_from + n_to]
    rule(all(is_name(n, 127) for n in names), f"names of a target: {names}")
    rule(attempt >= 1 and acked in (0, 1) and zero == 0, "a target's numbers")
    rule(len(names[1]) == n_to, "a target is cut off")
    target = Target(names[0].decode(), names[1].decode(), number, attempt, bool(acked))
    return target, at + n_from + n_to


def get_data(flags, seq, body):
    """Returns the message, and the length of its payload if that is yet to come."""
    (
        session,
        run,
        length,
        offset,
        window,
        slot,
        deadline,
        age,
        copied,
        kind,
        status,
        n,
        n_meta,
        zero,
    ) = HEAD.unpack_from(body)
    rule(bool(flags & BULK) == (length > INLINE), "BULK says whether the payload is large")
    rule(slot in SLOTS and offset + length <= slot, "the payload lies in its slot")
    rule(window == 0 or (window % slot == 0 and 1 << 30 <= window < 3 << 30), f"window {window:#x}")
    rule(1 <= n <= 1024 and n_meta <= 65536 and zero == 0, "targets and metadata")
    rule(window or not flags & FIXED, "FIXED without a window")
    at, targets = HEAD.size, []
    for _ in range(n):
        target, at = get_target(body, at)
        targets.append(target)
    meta = get_meta(body[at : at + n_meta])
    payload = body[at + n_meta :]
    rule(len(payload) == (0 if flags & BULK else length), "a message of the wrong length")
    rule(bool(seq) == (bool(flags & BULK) or any(t.acked for t in targets)), "a seq where needed")
    message = Message(
        payload,
        targets,
        meta,
        session,
        run,
        offset,
        window,
        slot,
        deadline,
        age,
        copied,
        kind,
        status,
    )
    message.fixed = bool(flags & FIXED)
    message.seq = seq
    return message, length if flags & BULK else None


def put_hello(token, role=1, index=0, n_bulk=1, texts=None, grant=GRANT, version=VERSION):
    texts = texts or {}
    body = GREETING.pack(MAGIC, version, 0, token, role, index, n_bulk, len(texts), *grant)
    for key, value in texts.items():
        k, v = key.encode(), value.encode()
        body += struct.pack("<HH", len(k), len(v)) + k + v
    return HEADER.pack(len(body), HELLO, 0, 0, 0) + body


@dataclass
class Hello:
    token: bytes
    role: int
    index: int
    n_bulk: int
    texts: dict
    grant: list


def get_hello(body):
    magic, version, _, token, role, index, n_bulk, n_texts, *grant = GREETING.unpack_from(body)
    rule(magic == MAGIC and version == VERSION, f"magic {magic}, version {version}")
    rule(role in (1, 2) and 1 <= n_bulk <= 8 and index < n_bulk, "role, index, n_bulk")
    rule(1 <= grant[0] <= 32768 and n_texts <= 32, "grant, texts")
    at, texts = GREETING.size, {}
    for _ in range(n_texts):
        k, v = struct.unpack_from("<HH", body, at)
        key, value = body[at + 4 : at + 4 + k], body[at + 4 + k : at + 4 + k + v]
        rule(is_name(key, 31) and len(value) == v <= 1023 and 0 not in value, f"text {key}")
        rule(key.decode() not in texts, f"text {key} comes twice")
        texts[key.decode()] = value.decode()
        at += 4 + k + v
    rule(at == len(body), "bytes behind the texts")
    return Hello(token, role, index, n_bulk, texts, grant)


LENGTHS = {
    HELLO: (80, 16384),
    DATA: (122, 1 << 20),
    CHUNK: (1, 1 << 20),
    BACK: (16, 65536),
    REFUSE: (4, 1027),
    CREDIT: (32, 32),
    CANCEL: (0, 0),
    PING: (0, 0),
    PONG: (0, 0),
    ERROR: (4, 1027),
    CONTROL: (4, 65540),
    GOODBYE: (0, 0),
}


class Connection:
    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(10)
        if sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self):
        return self.sock.fileno()

    def send(self, raw):
        try:
            self.sock.sendall(raw)
        except OSError as e:
            raise Ended(str(e)) from e

    def exactly(self, n):
        raw = bytearray()
        while len(raw) < n:
            try:
                piece = self.sock.recv(min(n - len(raw), 1 << 20))
            except OSError as e:
                raise Ended(str(e)) from e
            if not piece:
                raise Ended("end of the connection")
            raw += piece
        return bytes(raw)

    def frame(self):
        """The next frame: type, flags, seq, body."""
        length, kind, flags, zero, seq = HEADER.unpack(self.exactly(HEADER.size))
        rule(kind in LENGTHS and zero == 0, f"a frame of type {kind}")
        low, high = LENGTHS[kind]
        rule(low <= length <= high, f"{NAMES[kind - 1]} of {length} bytes")
        rule(flags == 0 or (kind == DATA and flags < 4), f"{NAMES[kind - 1]} with flags {flags}")
        rule(seq == 0 or kind in (DATA, CHUNK, REFUSE, CANCEL, PING, PONG), "a seq that is none")
        body = self.exactly(length)
        if kind == ERROR:
            raise Ended(
                f"ERROR {struct.unpack_from('<I', body)[0]}: {body[4:].decode(errors='replace')}"
            )
        return kind, flags, seq, body

    def hello(self):
        kind, _, _, body = self.frame()
        rule(kind == HELLO, f"{NAMES[kind - 1]} instead of HELLO")
        return get_hello(body)

    def close(self):
        self.sock.close()


class Peer:
    """One side of a session. Blocks; pump() handles one frame of whichever connection has one."""

    def __init__(self, main, extras, theirs):
        self.main, self.extras = main, extras
        self.texts = theirs.texts
        self.window = list(theirs.grant)  # of the other side, at first
        self.granted = list(theirs.grant)
        self.sent = [0, 0, 0, 0]
        self.ours = list(GRANT)  # what we have granted so far
        self.got = [0, 0, 0, 0]
        self.count = 0
        self.waiting = {}  # our messages, by slot: [seq, open targets, large, received]
        self.outcomes = []  # (seq, what, target or text)
        self.coming = {}  # their large messages, by seq: [message, length, pieces, connection]
        self.unacked = {}  # their messages, by seq: targets without ack
        self.messages, self.words = [], []
        self.pongs = 0
        self.refuse = None  # a text: refuse large payloads

    # --- greeting

    @staticmethod
    def dial(connect, texts=None, n_bulk=1, token=None):
        """connect() returns a new socket to the other side."""
        token = token or os.urandom(16)
        main = Connection(connect())
        main.send(put_hello(token, texts=texts, n_bulk=n_bulk))
        theirs = main.hello()
        rule(theirs.token == token and theirs.role == 1 and theirs.n_bulk == n_bulk, "HELLO back")
        extras = []
        for index in range(n_bulk):
            extra = Connection(connect())
            extra.send(put_hello(token, 2, index, n_bulk))
            answer = extra.hello()
            rule(answer.token == token and answer.role == 2 and answer.index == index, "HELLO back")
            extras.append(extra)
        return Peer(main, extras, theirs)

    @staticmethod
    def accept(listener, texts=None):
        """Of a listening socket, at which one peer dials."""
        main = Connection(listener.accept()[0])
        theirs = main.hello()
        rule(theirs.role == 1 and theirs.index == 0, "the first connection is the main one")
        main.send(put_hello(theirs.token, n_bulk=theirs.n_bulk, texts=texts))
        extras = [None] * theirs.n_bulk
        while None in extras:
            extra = Connection(listener.accept()[0])
            hello = extra.hello()
            rule(hello.token == theirs.token and hello.role == 2, "an extra connection")
            rule(extras[hello.index] is None and not hello.texts, "each index once, without texts")
            extra.send(put_hello(theirs.token, 2, hello.index, theirs.n_bulk))
            extras[hello.index] = extra
        return Peer(main, extras, theirs)

    # --- what we send

    def _slot(self):
        for slot in range(self.window[0]):
            if slot not in self.waiting:
                return slot
        raise Violation("no slot is free, but the credit says so")

    def _spend(self, costs):
        for n, cost in enumerate(costs):
            alone = n == 2 and self.sent[2] + self.window[2] == self.granted[2]
            while cost and self.sent[n] + cost > self.granted[n] and not alone:
                self.pump()
        self.sent = [a + b for a, b in zip(self.sent, costs, strict=True)]

    def send(self, m, chunk=MAX_CHUNK):
        """Sends a message whole; returns its seq."""
        large = len(m.payload) > INLINE
        meta_len = len(put_meta(m.meta))
        self._spend(
            [1, 0 if large else len(m.payload) + meta_len + 256, len(m.payload) if large else 0, 0]
        )
        m.seq = 0
        if large or any(t.acked for t in m.targets):
            slot = self._slot()
            self.count += 1
            m.seq = self.count << 16 | slot
            still = {n for n, t in enumerate(m.targets) if t.acked}
            self.waiting[slot] = [m.seq, still, large, False]
        conn = self.extras[self.count % len(self.extras)] if large else self.main
        conn.send(put_data(m))
        for at in range(0, len(m.payload) if large else 0, chunk):
            piece = m.payload[at : at + chunk]
            conn.send(HEADER.pack(len(piece), CHUNK, 0, 0, m.seq) + piece)
        return m.seq

    def control(self, word, data=b""):
        self._spend([0, 0, 0, len(data) + 64])
        self.main.send(
            HEADER.pack(4 + len(data), CONTROL, 0, 0, 0) + struct.pack("<I", word) + data
        )

    def ping(self, number=1):
        for conn in [self.main, *self.extras]:
            conn.send(HEADER.pack(0, PING, 0, 0, number))

    def ack(self, seq, target):
        self.unacked[seq].remove(target)
        self._back(seq, target, ACK)
        if not self.unacked[seq]:
            del self.unacked[seq]

    def cancel(self, seq):
        slot = seq & 0xFFFF
        conn = self.extras[(seq >> 16) % len(self.extras)] if self.waiting[slot][2] else self.main
        conn.send(HEADER.pack(0, CANCEL, 0, 0, seq))

    def goodbye(self):
        self.main.send(HEADER.pack(0, GOODBYE, 0, 0, 0))

    def close(self):
        for conn in [self.main, *self.extras]:
            conn.close()

    def _back(self, seq, target, what):
        self.main.send(HEADER.pack(16, BACK, 0, 0, 0) + struct.pack("<QII", seq, target, what))

    def _grant(self, costs):
        self.ours = [a + b for a, b in zip(self.ours, costs, strict=True)]
        self.main.send(HEADER.pack(32, CREDIT, 0, 0, 0) + struct.pack("<4Q", *self.ours))

    # --- what comes

    def pump(self, timeout=10):
        """Handles one frame; False if none came in time."""
        conns = [self.main, *self.extras]
        ready = [c for c in conns if isinstance(c.sock, _SslTypes) and c.sock.pending()]
        ready = ready or select.select(conns, [], [], timeout)[0]
        if not ready:
            return False
        conn = ready[0]
        kind, flags, seq, body = conn.frame()
        if kind in (BACK, REFUSE, CREDIT, CONTROL, GOODBYE):
            rule(conn is self.main, f"{NAMES[kind - 1]} on an extra connection")
        getattr(self, "_on_" + NAMES[kind - 1].lower())(conn, flags, seq, body)
        return True

    def until(self, condition):
        while not condition():
            if not self.pump():
                raise Ended("nothing comes")

    def _on_hello(self, *_):
        raise Violation("a second HELLO")

    def _on_data(self, conn, flags, seq, body):
        m, length = get_data(flags, seq, body)
        rule((conn is self.main) == (length is None), "large messages come on extra connections")
        costs = (
            [1, 0, length, 0] if length else [1, len(m.payload) + len(put_meta(m.meta)) + 256, 0, 0]
        )
        alone = length and self.got[2] + GRANT[2] == self.ours[2]
        self.got = [a + b for a, b in zip(self.got, costs, strict=True)]
        rule(
            all(a <= b for a, b in zip(self.got, self.ours, strict=True)) or alone,
            "more than granted",
        )
        if seq:
            rule(seq & 0xFFFF < GRANT[0], "a slot above what was granted")
            busy = {s & 0xFFFF for s in [*self.coming, *self.unacked]}
            rule(seq & 0xFFFF not in busy, "a slot of a message that is not done with")
        if length is None:
            self._whole(m, costs)
            return
        if self.refuse:
            text = self.refuse.encode()
            self.main.send(
                HEADER.pack(4 + len(text), REFUSE, 0, 0, seq) + struct.pack("<I", 71) + text
            )
        self.coming[seq] = [m, length, [], conn, bool(self.refuse), costs]

    def _whole(self, m, costs):
        acked = {n for n, t in enumerate(m.targets) if t.acked}
        if acked:
            self.unacked[m.seq] = acked
        self.messages.append(m)
        self._grant(costs)

    def _on_chunk(self, conn, flags, seq, body):
        rule(seq in self.coming and self.coming[seq][3] is conn, "a chunk of no message")
        m, length, pieces, _, refused, costs = self.coming[seq]
        pieces.append(body)
        have = sum(len(p) for p in pieces)
        rule(have <= length, "more payload than announced")
        if have < length:
            return
        del self.coming[seq]
        self._back(seq, 0, RECEIVED)
        if refused:
            self._grant(costs)
            return
        m.payload = b"".join(pieces)
        self._whole(m, costs)

    def _on_cancel(self, conn, flags, seq, body):
        if seq in self.coming:
            costs = self.coming.pop(seq)[5]
            self._back(seq, 0, CANCELLED)
            self._grant(costs)
        elif seq in self.unacked:
            del self.unacked[seq]
            self._back(seq, 0, CANCELLED)

    def _on_back(self, conn, flags, seq, body):
        rule(len(body) % 16 == 0, "rows of 16 bytes")
        for at in range(0, len(body), 16):
            seq, target, what = struct.unpack_from("<QII", body, at)
            slot = seq & 0xFFFF
            rule(slot in self.waiting and self.waiting[slot][0] == seq, "BACK about nothing")
            entry = self.waiting[slot]
            self.outcomes.append((seq, what, target))
            if what == RECEIVED:
                rule(entry[2] and not entry[3], "RECEIVED of a small message, or twice")
                entry[3] = True
            elif what == ACK:
                rule(target in entry[1], "ACK of a target that waits for none")
                rule(entry[3] or not entry[2], "ACK before RECEIVED")
                entry[1].remove(target)
            else:
                rule(what == CANCELLED, f"BACK says {what}")
                entry[1].clear()
                entry[3] = True
            if not entry[1] and (entry[3] or not entry[2]):
                del self.waiting[slot]

    def _on_refuse(self, conn, flags, seq, body):
        slot = seq & 0xFFFF
        rule(slot in self.waiting and self.waiting[slot][0] == seq, "REFUSE of nothing")
        self.waiting[slot][1].clear()
        self.outcomes.append((seq, "refused", body[4:].decode()))

    def _on_credit(self, conn, flags, seq, body):
        totals = list(struct.unpack("<4Q", body))
        rule(all(a >= b for a, b in zip(totals, self.granted, strict=True)), "credit goes back")
        used = [t - w for t, w in zip(totals, self.window, strict=True)]
        rule(
            all(u <= s for u, s in zip(used, self.sent, strict=True)),
            "credit for what was not sent",
        )
        self.granted = totals

    def _on_ping(self, conn, flags, seq, body):
        conn.send(HEADER.pack(0, PONG, 0, 0, seq))

    def _on_pong(self, conn, flags, seq, body):
        self.pongs += 1

    def _on_control(self, conn, flags, seq, body):
        self.words.append((struct.unpack_from("<I", body)[0], body[4:]))
        self._grant([0, 0, 0, len(body) - 4 + 64])

    def _on_goodbye(self, *_):
        raise Ended("GOODBYE")


try:
    import ssl

    _SslTypes = (ssl.SSLSocket,)
except ImportError:  # a Python without it can still do plain sessions
    _SslTypes = ()


def connector(address):
    """For Peer.dial(): "unix:/path" or "host:port"."""

    def connect():
        if address.startswith("unix:"):
            s = socket.socket(socket.AF_UNIX)
            s.connect(address[5:])
            return s
        host, port = address.rsplit(":", 1)
        return socket.create_connection((host.strip("[]"), int(port)), timeout=10)

    return connect
